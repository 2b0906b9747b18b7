"""One set of files under any name: by path, with -m, vendored, zipped, installed; one copy of each module.

`start(way, role, *args)` starts a role in each of these ways; FAST_WAYS need no build, SLOW_WAYS do.
"""

import email.parser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import at_once, in_time, quick_compiler

CHECKOUT = Path(__file__).resolve().parent.parent
MODULES = ["client", "components", "master", "rpc", "slave", "tasks"]
ROLES = ["master", "slave", "client"]
VENDORED = "myproject._vendor.concurrent_swarm"
BIN, EXE = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")

FAST_WAYS = ["path", "linked path", "module", "vendored", "zipped"]
SLOW_WAYS = ["wheel", "wheel script", "no compiler", "editable", "editable script"]
ALL_WAYS = [*FAST_WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW_WAYS)]

# Loads every module, then fails if a file of ours has two names or a name that belongs to everybody.
ONE_COPY = """
    import collections, importlib, sys
    for name in MODULES * 2:
        importlib.import_module(f"{PACKAGE}.{name}")
    names = collections.defaultdict(list)
    for name, module in list(sys.modules.items()):
        names[getattr(module, "__file__", None)].append(name)
    for name in MODULES:
        found = names[sys.modules[f"{PACKAGE}.{name}"].__file__]
        # multiprocessing calls the main module __mp_main__ too
        assert set(found) - {"__main__", "__mp_main__"} == {f"{PACKAGE}.{name}"}, found
    assert not set(sys.modules) & {*MODULES, "fastpath"}
"""

# Does what `python master.py` or `python -m package.master` does, and comes back.
AS_MAIN = """
    import runpy, sys
    target, sys.argv[1:] = sys.argv[1], ["--help"]
    try:
        if target.endswith(".py"):
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end.code
"""


class Place(NamedTuple):
    """Where a way of starting lives: interpreter, folder to be in, name of the package, more environment."""

    python: str
    folder: Path
    package: str
    environment: dict[str, str] = {}

    def run(self, code, *args):
        """Run Python code here, which may use PACKAGE and MODULES; return what it prints."""
        code = f"PACKAGE, MODULES = {self.package!r}, {MODULES}\n{textwrap.dedent(code)}"
        done = subprocess.run([self.python, "-c", code, *args], cwd=self.folder, env=clean(self.environment),
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


def clean(more):
    """This environment without what would make other copies importable, and with `more`."""
    ours = ("PYTHON", "CONCURRENT_SWARM")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | more


def copy_sources(target):
    """The files of the checkout as git would clone them, so that a build writes nothing into the checkout."""
    target.mkdir(parents=True)
    for path in CHECKOUT.iterdir():
        if path.is_file() and path.suffix not in (".so", ".pyd", ".c"):
            shutil.copy(path, target)
    return target


def pip(*args, **environment):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    done = subprocess.run(command, env=clean(environment), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


class Places:
    """Makes the place of each way of starting once, when it is first asked for."""

    def __init__(self, folder):
        self.folder, self.made, self.locks = folder, {}, {}

    def at(self, kind):
        """The place of a way of starting, as in `at("vendored")`."""
        name = kind.replace(" ", "_")
        return self.once(kind, lambda: getattr(self, name)(self.folder / name))

    def once(self, what, make):
        """What was made under this name, for the first thread that asks."""
        with self.locks.setdefault(what, threading.Lock()):
            if what not in self.made:
                self.made[what] = make()
            return self.made[what]

    def path(self, folder):
        folder.mkdir()
        return Place(sys.executable, folder, "concurrent_swarm", {"PYTHONPATH": str(CHECKOUT)})

    def linked_path(self, folder):
        folder.mkdir()
        for role in ROLES:
            (folder / f"{role}.py").symlink_to(CHECKOUT / f"{role}.py")
        (folder / "concurrent_swarm.py").symlink_to(CHECKOUT / "concurrent_swarm.py")
        return Place(sys.executable, folder, "concurrent_swarm")

    def module(self, folder):
        return Place(sys.executable, CHECKOUT, "concurrent_swarm")

    def vendored(self, folder):
        target = folder.joinpath(*VENDORED.split("."))
        target.mkdir(parents=True)
        for name in MODULES:
            shutil.copy(CHECKOUT / f"{name}.py", target)
        shutil.copy(CHECKOUT / "dashboard.html", target)
        return Place(sys.executable, folder, VENDORED)

    def zipped(self, folder):
        self.at("vendored")
        folder.mkdir()
        shutil.make_archive(str(folder / "host"), "zip", self.folder / "vendored", "myproject")
        return Place(sys.executable, folder, VENDORED, {"PYTHONPATH": str(folder / "host.zip")})

    def wheel(self, folder):
        return self.installed(folder, self.built("isolated"))

    def no_compiler(self, folder):
        return self.installed(folder, self.built("no compiler"))

    def editable(self, folder):
        return self.installed(folder, "--editable", copy_sources(folder / "source"), CC=self.quick)

    def built(self, how):
        """The wheel of the sources that is built in this way: "isolated", as pip does it, "own" or "no compiler"."""
        folder = self.folder / f"built-{how.replace(' ', '-')}"
        words = [] if how == "isolated" else ["--no-build-isolation"]
        compiler = "false" if how == "no compiler" else self.quick
        return self.once(f"built {how}", lambda: build_wheel(folder, *words, CC=compiler))

    @property
    def quick(self):
        """A compiler that takes little time."""
        return self.once("quick", lambda: quick_compiler(self.folder))

    def installed(self, folder, *what, **environment):
        """A fresh virtual environment with the package and what it requires, and nothing else."""
        venv.create(folder / "venv", symlinks=os.name != "nt")
        python = str(folder / "venv" / BIN / f"python{EXE}")
        pip("--python", python, "install", "--quiet", *what, **environment)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        return Place(python, elsewhere, "concurrent_swarm")


def build_wheel(folder, *options, source=None, **environment):
    pip("wheel", "--quiet", "--no-deps", *options, "--wheel-dir", folder,
        source or copy_sources(folder / "source"), **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="session")
def start(places):
    """start(way, role, *args): start a role in one of the ways; returns the Popen, with pipes for text.

    The caller ends the process, with `communicate` or `terminate`.
    """

    def start(way, role, *args):
        kind = way.removesuffix(" script")
        place = places.at(kind)
        if way.endswith("path"):
            command = [place.python, str((CHECKOUT if way == "path" else place.folder) / f"{role}.py")]
        elif way.endswith("script"):
            command = [str(Path(place.python).with_name(f"concurrent-{role}{EXE}"))]
        else:
            command = [place.python, "-m", f"{place.package}.{role}"]
        environment = clean({} if way == "path" else place.environment)
        return subprocess.Popen([*command, *args], cwd=place.folder, env=environment, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


# -- every way of starting -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("role", ROLES)
@at_once
def test_help_is_printed_by_every_way_of_starting(start, way, role):
    process = start(way, role, "--help")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "usage:" in output


@pytest.mark.parametrize("way", ALL_WAYS)
@at_once
def test_a_wrong_option_ends_with_code_2(start, way):
    process = start(way, "client", "--no-such-option")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert "--no-such-option" in errors and "Traceback" not in errors


@pytest.mark.parametrize("way", [way for way in ALL_WAYS if "script" not in str(way)])
@at_once
def test_importing_twice_gives_one_copy_under_one_name(places, way):
    places.at(way).run(ONE_COPY)


@pytest.mark.parametrize("way", FAST_WAYS)
@pytest.mark.parametrize("role", ROLES)
@at_once
def test_a_role_that_is_the_main_module_has_one_copy_too(places, way, role):
    place = places.at(way)
    target = str(CHECKOUT / f"{role}.py") if "path" in way else f"{place.package}.{role}"
    place.run(textwrap.dedent(AS_MAIN) + textwrap.dedent(ONE_COPY), target)


@pytest.mark.parametrize("way", FAST_WAYS)
@at_once
def test_an_application_may_import_the_framework_by_every_name(places, way):
    places.at(way).run("""
        import importlib
        rpc = importlib.import_module(f"{PACKAGE}.rpc")
        names = ["concurrent_swarm", "myproject._vendor.concurrent_swarm", "other.concurrent_swarm"]
        rpc.answer_framework(names)
        for module in MODULES:
            assert len({importlib.import_module(f"{name}.{module}") for name in [PACKAGE, *names]}) == 1
        assert rpc.__name__ == rpc.__spec__.name == f"{PACKAGE}.rpc"
    """)


# -- a whole application -------------------------------------------------------------------------------------


def run_sample(start, way, sample):
    """Run a sample with a swarm of its own; returns the last line of stdout."""
    process = start(way, "client", str(CHECKOUT / "samples" / f"{sample}.py"), "--local")
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ALL_WAYS)
@at_once
def test_hello_runs_on_a_local_swarm_by_every_way_of_starting(start, way):
    assert run_sample(start, way, "hello") == "result   Hello World"


@pytest.mark.parametrize("way", ["path", "vendored", pytest.param("wheel", marks=pytest.mark.slow),
                                 pytest.param("no compiler", marks=pytest.mark.slow)])  # fmt: skip
@at_once
def test_md5_finds_its_number_on_a_local_swarm(start, way):
    assert run_sample(start, way, "md5") == "result   1763965"


# -- importing the client ------------------------------------------------------------------------------------


def test_importing_the_client_is_quick_and_leaves_zeromq_alone(places):
    code = """
        import sys, time
        begin = time.process_time()
        import concurrent_swarm.client
        print(time.process_time() - begin, "zmq" in sys.modules)
    """
    runs = [places.at("path").run(code).split() for _ in range(5)]
    assert {zmq for _, zmq in runs} == {"False"}
    assert in_time(min(float(seconds) for seconds, _ in runs), 0.1)


@pytest.mark.parametrize("way", FAST_WAYS)
@at_once
def test_importing_starts_nothing_and_changes_no_path(places, way):
    places.at(way).run("""
        import importlib, logging, signal, sys, threading
        path, finders, handler = list(sys.path), list(sys.meta_path), signal.getsignal(signal.SIGINT)
        for name in MODULES:
            importlib.import_module(f"{PACKAGE}.{name}")
        assert (sys.path, sys.meta_path, signal.getsignal(signal.SIGINT)) == (path, finders, handler)
        assert threading.active_count() == 1 and not logging.root.handlers
    """)


@pytest.mark.parametrize("way", ALL_WAYS)
@at_once
def test_a_node_finds_its_page_beside_its_code(places, way):
    shown = places.at(way.removesuffix(" script")).run("""
        import importlib
        rpc = importlib.import_module(f"{PACKAGE}.rpc")
        print(len(rpc.read_beside("dashboard.html")), rpc.read_beside("nothing.html"))
    """)
    assert shown.split() == [str((CHECKOUT / "dashboard.html").stat().st_size), "None"]


# -- building ------------------------------------------------------------------------------------------------


def wheel_names(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def compiled(names):
    return {name for name in names if name.endswith((".so", ".pyd"))}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_no_tests_samples_or_setup(places):
    names = wheel_names(places.built("no compiler"))
    expected = {f"concurrent_swarm/{name}.py" for name in [*MODULES, "concurrent_swarm"]}
    assert expected <= names and not compiled(names)
    assert {Path(name).parent.as_posix() for name in names} == {"concurrent_swarm"}
    assert "concurrent_swarm/dashboard.html" in names
    assert "concurrent_swarm/setup.py" not in names and "concurrent_swarm/py.typed" in names


@pytest.mark.slow
def test_the_wheel_requires_pyzmq_alone_and_has_the_three_scripts(places):
    archive = zipfile.ZipFile(places.built("no compiler"))
    (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.parser.Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line.partition(">")[0] for line in required] == ["pyzmq"]
    assert metadata["Requires-Python"] == ">=3.10" and metadata["Name"] == "concurrent-swarm"
    scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert all(f"concurrent-{role} = concurrent_swarm.{role}:main" in scripts for role in ROLES)
    assert any(name.endswith("LICENSE") for name in archive.namelist())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_with_a_compiler_the_fast_path_is_built(places, way):
    places.at(way).run("import concurrent_swarm.fastpath")


@pytest.mark.slow
def test_without_a_compiler_the_package_works_without_the_fast_path(places):
    places.at("no compiler").run("""
        import concurrent_swarm.tasks
        try:
            import concurrent_swarm.fastpath
        except ModuleNotFoundError:
            print("none")
    """)


@pytest.mark.slow
def test_a_build_without_isolation_gives_the_same_files(places):
    assert wheel_names(places.built("isolated")) == wheel_names(places.built("own"))


@pytest.mark.slow
def test_the_source_distribution_holds_what_a_build_needs(places, tmp_path):
    source = copy_sources(tmp_path / "source")
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, env=clean({}))
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build_wheel(tmp_path / "again", "--no-build-isolation", source=unpacked, CC=places.quick)
    assert wheel_names(again) == wheel_names(places.built("own"))


@pytest.mark.slow
def test_the_version_is_the_one_of_components(places):
    found = places.at("wheel").run("""
        import importlib.metadata, json
        from concurrent_swarm import components
        print(json.dumps([importlib.metadata.version("concurrent-swarm"), components.__version__]))
    """)
    installed, own = json.loads(found)
    assert installed == own
