"""What applications need travels: requirements from their sources to the installer's last word, compiled parts, and
how all of it is gone afterwards. Wheels are made here and lie in a folder: no test asks the network."""

import importlib.util
import io
import os
import shutil
import signal
import socket
import time
import zipfile

import pytest
from conftest import at_once, children_of, in_time, one_each, running, wait_until

from concurrent_swarm import components, rpc

COMPILES = pytest.mark.skipif(not (shutil.which("cc") and importlib.util.find_spec("Cython")),
                              reason="a C compiler and Cython are needed to compile")  # fmt: skip
APP = """
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import ITaskSystem, Task

class Ask(Task):
    def __call__(self):
{body}

class App(ApplicationNode):
{needs}

    def start_processing(self):
        self.push_task(Ask("ask"))

    def task_finished(self, task, result, error):
        if error:
            raise error
        self.result = result
        self.shutdown_main_loop()
"""
VERSION = "import importlib.metadata, {0}; return [{0}.version, importlib.metadata.version('{0}')]"
PURE = "def total(n):\n    s = 0\n    for i in range(n):\n        s += i * i\n    return s\n"
CYTHON = "def total(long n):\n    cdef long i, s = 0\n    for i in range(n):\n        s += i * i\n    return s\n"


def app(body="return 1", needs="pass", before=""):
    """The text of an application with one task, which does this."""

    def indented(text, columns):
        return "\n".join(" " * columns + line for line in text.splitlines())

    return before + APP.format(body=indented(body, 8), needs=indented(needs, 4))


@one_each
def source(tmp_path):
    """Writes files, given as {name: text}, into a folder and returns it."""

    def write(files, folder="work"):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / folder

    return write


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with wheels of `tinydep` 1.0 and 2.0, which needs nothing, and of `upper`, which needs tinydep 2."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version, needs in ("tinydep", "1.0", ""), ("tinydep", "2.0", ""), ("upper", "1.0", "tinydep>=2"):
        about = f"{name}-{version}.dist-info"
        required = f"Requires-Dist: {needs}\n" if needs else ""
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f"version = '{version}'\n")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return folder


@one_each
def silent_index():
    """The address of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://localhost:{server.getsockname()[1]}/simple"


def parts_in(node):
    """What lies in a node's folder because an application needed it."""
    return sorted((node.folder / "apps").glob("*/.parts*"))


def told(run):
    """The one kind of failure that a run had."""
    (group,) = run.about["errors"]
    return group


# -- what is declared ----------------------------------------------------------------------------------------------

HEADER = """# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "attrs[x]>=1",
#   "concurrent-swarm",
#   "six",
# ]
# ///
"""


def test_requirements_of_class_file_and_header_are_put_together(source):
    folder = source({"app.py": app(needs='requirements = ["numpy>=1.26", "six"]', before=HEADER),
                     "requirements.txt": "# more\n\npandas==2.* ; python_version > '3.9'  # new\nsix\n"})  # fmt: skip
    found = rpc.make_bundle(folder / "app.py").manifest["needs"]["requirements"]
    assert found == ["numpy>=1.26", "six", "pandas==2.* ; python_version > '3.9'", "attrs[x]>=1"]


def test_a_requirement_of_very_many_blanks_is_judged_at_once():
    began = time.monotonic()
    assert not rpc._is_requirement("a" + " " * 100_000 + "/") and rpc._is_requirement("six  >= 1.0 , < 2")
    assert in_time(time.monotonic() - began, 5)


def test_of_a_log_of_any_size_only_the_end_is_read(tmp_path):
    with open(tmp_path / rpc._BUILD_LOG, "wb") as said:
        said.truncate(1 << 40)  # takes no room
        said.seek(0, os.SEEK_END)
        said.write(b"\nthe last word\n")
    assert rpc.said_last(tmp_path).endswith("the last word")


def test_the_requirements_of_a_package_lie_in_its_folder(source):
    files = {"pkg/__init__.py": "", "pkg/deep/__init__.py": "", "pkg/deep/app.py": app()}
    folder = source({**files, "pkg/requirements.txt": "six", "requirements.txt": "-e ."})
    for bundle in rpc.make_bundle(folder / "pkg"), rpc.make_bundle(folder / "pkg/deep"):
        assert bundle.manifest["needs"] == {"requirements": ["six"]}


@pytest.mark.parametrize("line", [
    "-r more.txt", "-e .", "--index-url https://example.org", "git+https://example.org/six", "six @ https://example.org",
    "./six", "six.whl/../six", "six --no-deps", "file:six",
])  # fmt: skip
def test_what_cannot_travel_is_refused_with_file_and_line(source, line):
    folder = source({"app.py": app(), "requirements.txt": f"six\n{line}\n"})
    with pytest.raises(components.UsageError) as error:
        rpc.make_bundle(folder / "app.py")
    assert "requirements.txt:2: " in error.value.what and line in error.value.what and "node.wheels" in error.value.fix


@pytest.mark.parametrize("small", [False, True])
def test_a_header_is_read_with_and_without_a_reader_of_toml(source, monkeypatch, small):
    if small:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tomllib" else find(name))
    folder = source({"app.py": HEADER + app(), "wrong.py": "x = 1\n" + HEADER.replace('"six",', "six") + app()})
    assert rpc.make_bundle(folder / "app.py").manifest["needs"] == {"requirements": ["attrs[x]>=1", "six"]}
    with pytest.raises(components.UsageError, match=r"wrong\.py:2: the dependencies of this header"):
        rpc.make_bundle(folder / "wrong.py")


def test_cython_beside_the_file_travels_with_what_it_imports(source):
    folder = source({"app.py": app(before="import fast\n"), "fast.pyx": "import helper, os\ncimport types_ as t\n",
                     "helper.py": "", "types_.pxd": "", "other.pyx": ""})  # fmt: skip
    bundle = rpc.make_bundle(folder / "app.py")
    assert zipfile.ZipFile(io.BytesIO(bundle.zip)).namelist() == ["app.py", "fast.pyx", "helper.py", "types_.pxd"]
    assert bundle.manifest["modules"] == ["fast", "helper", "types_"]


def test_what_was_compiled_in_place_stays_at_home(source):
    files = ("fast.pyx", "fast.cpython-311-x86_64-linux-gnu.so", "data.so")
    folder = source({"pkg/__init__.py": app(), **{f"pkg/{name}": "" for name in files}})
    bundle = rpc.make_bundle(folder / "pkg")
    assert zipfile.ZipFile(io.BytesIO(bundle.zip)).namelist() == ["pkg/__init__.py", "pkg/data.so", "pkg/fast.pyx"]


@pytest.mark.parametrize("requirement", ["--index-url=https://example.org", "six @ file:///tmp", "/tmp/six"])
def test_a_node_installs_nothing_that_pip_would_take_for_more_than_a_name(source, tmp_path, requirement):
    bundle = rpc.make_bundle(source({"app.py": app(needs='requirements = ["six"]')}) / "app.py")
    manifest = {**bundle.manifest, "needs": {"requirements": [requirement]}}
    with pytest.raises(components.Error, match="needs that this node does not know"):
        rpc.open_bundle(bundle.digest, manifest, bundle.zip, tmp_path / "apps")


# -- installed -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def offline(wheels):
    """A master and a slave that install from the folder of wheels, and from nowhere else."""
    where = ("--set", f"node.wheels={wheels}")
    with running(master=where, slave=where) as swarm:
        yield swarm


@pytest.mark.slow
def test_two_applications_with_conflicting_versions_run_at_once_on_one_slave(offline, source, tmp_path):
    gate = tmp_path / "gate"
    wait = f"import os, time, tinydep\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
    wait += "return tinydep.version"
    runs = []
    for version in "1.0", "2.0":
        folder = source({"app.py": app(wait, f'requirements = ["tinydep=={version}"]')}, version)
        runs.append(offline.start_client(str(folder / "app.py"), "--json"))
    (slave,) = offline.slaves
    status = rpc.Proxy(slave.started["address"]).status
    wait_until(lambda: status()["running"] == 2 and len(parts_in(slave)) == 2, "both run at the same time")
    gate.touch()
    assert [run.wait().about["result"] for run in runs] == ["1.0", "2.0"]


def test_nobody_else_sees_what_was_installed(offline, source):
    needs = 'requirements = ["tinydep==1.0"]'
    assert offline.run_client(str(source({"a.py": app("import tinydep; return 1", needs)}) / "a.py")).code == 0
    run = offline.run_client(str(source({"b.py": app("import tinydep")}) / "b.py"))
    assert run.code == 1 and run.about["errors"][0]["type"] == "ModuleNotFoundError"


def test_what_a_requirement_needs_itself_is_installed_with_its_description(offline, source):
    body = VERSION.format("tinydep")
    run = offline.run_client(str(source({"app.py": app(body), "requirements.txt": "upper"}) / "app.py"))
    assert run.about["result"] == ["2.0", "2.0"]


def system_app(requirement, body="return 1"):
    """The text of an application whose task system has one task and needs tinydep where it is hosted."""
    system = """
class Sum(ITaskSystem):
    def generate_tasks(self, master):
        return [Ask("ask")]

    def task_finished(self, master, task, result, error):
        self.told = result

    def gather_result(self, master):
        import tinydep
        return [tinydep.version, self.told]


class App("""
    text = app(body, f'requirements = ["{requirement}"]').replace("class App(", system, 1)
    text = text.replace('push_task(Ask("ask"))', "push_tasksystem(Sum())")
    return f"{text}\n    def work_finished(self, result, system):\n        self.result = result\n" \
           "        self.shutdown_main_loop()\n"


@pytest.mark.slow
def test_the_host_of_a_task_system_has_what_its_application_requires(offline, source):
    run = offline.run_client(str(source({"app.py": system_app("tinydep<2")}) / "app.py"))
    assert (run.code, run.about["result"]) == (0, ["1.0", 1]), run.err
    assert len(parts_in(offline.master)) == 1


def test_a_task_system_whose_application_cannot_have_what_it_requires_ends_with_the_reason(offline, source):
    run = offline.run_client(str(source({"app.py": system_app("tinydep==8")}) / "app.py"))
    assert run.code == 1 and run.about["error"]["message"] == "tinydep==8 cannot be installed on the master"
    assert "No matching distribution found for tinydep==8" in run.about["error"]["traceback"]


@pytest.mark.slow
@at_once
def test_a_task_system_goes_on_when_a_new_master_has_installed_what_it_requires(swarm, source, wheels, tmp_path):
    where, gate = ("--set", f"node.wheels={wheels}"), tmp_path / "gate"
    here = swarm(journal=True, master=where, slave=where)
    body = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\nreturn 3"
    run = here.start_client(str(source({"app.py": system_app("tinydep<2", body)}) / "app.py"), "--json")
    status = rpc.Proxy(here.slaves[0].started["address"]).status
    wait_until(lambda: status()["running"], "the task runs")
    port = here.address.rpartition(":")[2]
    here.master.ends(signal.SIGKILL)
    here.start_master(*where, port=port, journal=True)
    gate.touch()
    assert run.wait().about["result"] == ["1.0", 3], run.err


@pytest.mark.slow
def test_an_installation_that_fails_shows_the_last_lines_the_requirement_and_the_setting(offline, source, wheels):
    text = app(needs='requirements = ["tinydep==9"]')
    run = offline.run_client(str(source({"app.py": text}) / "app.py"))
    failure = told(run)
    assert (run.code, failure["kind"]) == (1, "setup")
    assert failure["message"].startswith("tinydep==9 cannot be installed on s1 (")
    assert "No matching distribution found for tinydep==9" in failure["traceback"]
    assert str(wheels) in failure["traceback"] and "node.wheels" in failure["traceback"]
    (slave,) = offline.slaves
    wait_until(lambda: {path.name for path in parts_in(slave)} <= {".parts"}, "nothing is left of the attempt")


@pytest.mark.slow
@at_once
def test_what_the_slave_has_is_not_installed_and_the_owner_may_refuse_the_rest(swarm, source):
    here = swarm(slave=("--set", "node.install=no"))
    has, lacks = (app(needs=f'requirements = ["{one}"]') for one in ("pyzmq>=1", "tinydep"))
    assert here.run_client(str(source({"has.py": has}) / "has.py")).code == 0
    (parts,) = parts_in(here.slaves[0])
    assert not list((parts / "installed").iterdir())
    failure = told(here.run_client(str(source({"lacks.py": lacks}) / "lacks.py")))
    assert failure["message"].startswith("tinydep cannot be installed on s1 (")
    assert "node.install is no there" in failure["traceback"]


@pytest.mark.slow
@at_once
def test_a_slave_that_installs_too_long_gives_up_and_works_on_meanwhile(swarm, source, silent_index):
    here = swarm(slave=("--set", f"node.index={silent_index}", "--set", "node.build_timeout=15"))
    text = app(needs='requirements = ["tinydep"]')
    run = here.start_client(str(source({"app.py": text}) / "app.py"))
    wait_until(lambda: parts_in(here.slaves[0]), "the slave installs")
    assert here.run_client("plain.py", "--app", "Many", "--set", "plain.count=7").about["result"]["heard"] == [7]
    assert run.code is None
    assert run.wait().code == 1, run.err
    assert "still waiting: s1 prepares tinydep" in run.err, run.err
    assert "it was not ready within 15 s" in run.err and silent_index in run.err and "node.build_timeout" in run.err
    assert "making tinydep" in here.slaves[0].err


@pytest.mark.slow
@at_once
def test_a_builder_that_is_killed_is_told_and_nothing_is_left_of_it(swarm, source, silent_index):
    here = swarm(slave=("--set", f"node.index={silent_index}"))
    run = here.start_client(str(source({"app.py": app(needs='requirements = ["tinydep"]')}) / "app.py"), "--json")
    builder = wait_until(lambda: here.workers_of(here.slaves[0]), "a child is at it")[0]
    wait_until(lambda: children_of(builder), "the installer runs")
    os.kill(builder, signal.SIGKILL)
    assert "something killed the process that made it" in told(run.wait())["traceback"]
    wait_until(lambda: not parts_in(here.slaves[0]), "nothing is left of it")


# -- gone ----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@at_once
def test_what_was_installed_goes_when_nothing_of_the_application_is_there(swarm, source, wheels):
    here = swarm(slave=("--set", f"node.wheels={wheels}", "--set", "node.keep_apps=0"))
    folder, (slave,) = source({"app.py": app("import tinydep; return 1", 'requirements = ["tinydep"]')}), here.slaves
    for _ in range(2):  # it comes again when it is needed again
        assert here.run_client(str(folder / "app.py")).about["result"] == 1
        wait_until(lambda: not parts_in(slave), "what was installed is gone")
        (left,) = (slave.folder / "apps").iterdir()
        assert sorted(path.name for path in left.iterdir()) == [".bundle.json", "app.py"]
        wait_until(lambda: not here.workers_of(slave), "its worker has ended")


@pytest.mark.slow
@at_once
def test_what_was_installed_goes_with_the_slave_or_what_a_killed_one_left_with_the_next(swarm, source, wheels):
    here = swarm(slaves=0)
    folder = source({"app.py": app("import tinydep; return 1", 'requirements = ["tinydep"]')})
    slave = here.start_slave("--set", f"node.wheels={wheels}")
    assert here.run_client(str(folder / "app.py")).code == 0 and parts_in(slave)
    assert slave.ends(signal.SIGKILL) == -signal.SIGKILL and parts_in(slave)
    again = here.start("slave", "--master", here.address, name="s1")
    assert not parts_in(again)
    assert "it is damaged" not in again.err
    slave = here.start_slave("--set", f"node.wheels={wheels}")
    again.ends()
    assert here.run_client(str(folder / "app.py")).code == 0 and parts_in(slave)
    slave.ends()
    assert not parts_in(slave)


# -- compiled ------------------------------------------------------------------------------------------------------

TOTAL = "import fast; return [fast.total(100_000), fast.__file__]"


@pytest.mark.slow
@COMPILES
@at_once
def test_a_cython_application_runs_where_it_never_was_and_equals_its_pure_version(swarm, source):
    here = swarm()
    results = {}
    for end, text in ("py", PURE), ("pyx", CYTHON):
        folder = source({"app.py": app(TOTAL, before="import fast\n"), f"fast.{end}": text}, end)
        run = here.run_client(str(folder / "app.py"))
        assert run.code == 0, run.err
        results[end], file = run.about["result"]
        assert file.startswith(str(here.slaves[0].folder)) and file.endswith({"py": ".py", "pyx": ".so"}[end])
    assert results["py"] == results["pyx"]


@pytest.mark.slow
@COMPILES
@at_once
def test_a_slave_without_a_compiler_says_what_is_missing(swarm, source):
    here = swarm(slaves=0)
    here.start_slave(PATH="/nonexistent")
    folder = source({"app.py": app(TOTAL, before="import fast\n"), "fast.pyx": CYTHON})
    failure = told(here.run_client(str(folder / "app.py")))
    assert failure["kind"] == "setup" and failure["message"].startswith("fast.pyx cannot be compiled on s1 (")
    assert "there is no C compiler: none of " in failure["traceback"]
    assert "put a pure twin beside it: fast.py" in failure["traceback"]


def test_where_cython_is_missing_that_is_said_but_a_pure_twin_will_do(source, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "Cython" else find(name))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    folder = source({"fast.pyx": CYTHON})
    with pytest.raises(rpc.CannotBuild, match=r"fast\.pyx cannot be compiled on s1: there is no Cython") as error:
        rpc.build_parts(str(folder), str(tmp_path / "parts"), "s1", sources=["fast.pyx"])
    assert error.value.kind == "setup"
    source({"fast.py": PURE})
    rpc.build_parts(str(folder), str(tmp_path / "parts"), "s1", sources=["fast.pyx"])


@pytest.mark.slow
@COMPILES
def test_a_client_compiles_the_same_source_once_and_tells_what_is_wrong_in_it(source, tmp_path):
    wrong = {"pkg/__init__.py": "", "pkg/bad.pyx": "x = ("}
    folder = source({"app.py": app(before="import fast\n"), "fast.pyx": CYTHON, **wrong})
    environment = components.Environment(tmp_path / "client", "client")
    first = rpc.compile_here(rpc.make_bundle(folder / "app.py"), environment)
    (folder / "app.py").write_text(app("return 2", before="import fast\n"))
    assert rpc.compile_here(rpc.make_bundle(folder / "app.py"), environment) == first
    assert [path.name.partition(".")[0] for path in (first / "compiled").iterdir()] == ["fast"]
    with pytest.raises(rpc.CannotBuild, match=r"pkg/bad\.pyx cannot be compiled on this machine.*bad\.pyx:1:") as error:
        rpc.compile_here(rpc.make_bundle(folder / "pkg"), environment)
    assert error.value.kind == "load"
    assert [path for path in (environment / "apps").iterdir() if path != first] == []


@COMPILES
@pytest.mark.slow
@at_once
def test_what_is_compiled_reaches_no_file_of_the_node(swarm, source):
    here = swarm(slaves=0)
    files = {}
    for level in "standard", "off":
        slave = here.start_slave("--set", f"slave.sandbox={level}")
        secret = slave.folder / "keys" / "secret.pxi"
        secret.write_text("secret = 1\n")
        folder = source({"app.py": app(TOTAL, before="import fast\n"), "fast.py": PURE,
                         "fast.pyx": f"include '{secret}'\n{CYTHON}"}, level)  # fmt: skip
        files[level] = here.run_client(str(folder / "app.py")).about["result"][1]
        slave.ends()
        assert ("the pure twin of fast.pyx is used" in slave.err) == (level == "standard")
    assert files["standard"].endswith("fast.py") and files["off"].endswith(".so")
