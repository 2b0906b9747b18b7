"""Application bundles: what is sent, what is refused, what is imported, what a bad application is told."""

import builtins
import hashlib
import importlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path

import pytest

from concurrent_swarm import components, rpc

APP = "class Base: pass\nclass App(Base):\n    def run(self): return 42\n"


@pytest.fixture(autouse=True)
def clean_imports():
    """Each test is a process dedicated to its own bundle, as far as imports go."""
    finders, modules = list(sys.meta_path), dict(sys.modules)
    yield
    sys.meta_path[:] = finders
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Writes files, given as {name: text or bytes}, into a folder, goes there, and returns it."""

    def write(files, folder="work"):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.chdir(tmp_path / folder)
        return tmp_path / folder

    return write


def names(bundle):
    return zipfile.ZipFile(io.BytesIO(bundle.zip)).namelist()


def unpacked(bundle, tmp_path):
    return rpc.open_bundle(bundle.digest, bundle.manifest, bundle.zip, tmp_path / "apps")


def told(error):
    return f"{error.value.what} {error.value.why} {error.value.fix}"


# -- what is sent --------------------------------------------------------------------------------------------


def test_a_lone_file_is_one_module_named_after_its_digest(source):
    source({"md5.py": APP, "other.py": "x = 1"})
    bundle = rpc.make_bundle("md5.py")
    assert names(bundle) == ["md5.py"]
    assert bundle.manifest["module"] == f"md5_{bundle.digest[:12]}"
    assert bundle.manifest["kind"] == "file" and bundle.manifest["modules"] == []
    assert json.loads(json.dumps(bundle.manifest)) == bundle.manifest


def test_the_same_source_from_two_paths_and_times_is_one_bundle(source):
    first = source({"app.py": APP}, "one")
    second = source({"app.py": APP}, "two")
    os.utime(second / "app.py", (1, 1))
    one, two = rpc.make_bundle(first / "app.py"), rpc.make_bundle(second / "app.py")
    assert (one.digest, one.manifest, one.zip) == (two.digest, two.manifest, two.zip)
    assert one.root != two.root


@pytest.mark.parametrize("change", [{"app.py": APP + "#"}, {"helper.py": "x = 2"}])
def test_an_edited_file_is_another_bundle(source, change):
    files = {"app.py": APP + "import helper\n", "helper.py": "x = 1"}
    source(files)
    before = rpc.make_bundle("app.py").digest
    source({**files, **change})
    assert rpc.make_bundle("app.py").digest != before


def test_the_framework_name_of_the_client_is_part_of_the_bundle(source):
    source({"app.py": APP})
    plain, vendored = (
        rpc.make_bundle("app.py"),
        rpc.make_bundle("app.py", framework="p._vendor.concurrent_swarm"),
    )
    assert plain.manifest["framework"] == "concurrent_swarm"
    assert vendored.manifest["framework"] == "p._vendor.concurrent_swarm"
    assert plain.digest != vendored.digest


def test_siblings_come_along_transitively_and_from_inside_functions(source):
    source(
        {
            "app.py": "import os, helper\ndef f():\n    from deep import y\n",
            "helper.py": "import third.part\n",
            "deep.py": "",
            "third/__init__.py": "",
            "third/part.py": "import fourth",
            "third/data.txt": "1",
            "fourth.py": "from third import part",
            "unused.py": "",
        }
    )
    bundle = rpc.make_bundle("app.py")
    assert names(bundle) == sorted(
        [
            "app.py",
            "deep.py",
            "fourth.py",
            "helper.py",
            "third/__init__.py",
            "third/data.txt",
            "third/part.py",
        ]
    )
    assert bundle.manifest["modules"] == ["deep", "fourth", "helper", "third"]


def test_neighbours_named_like_the_standard_library_or_the_framework_stay_at_home(source):
    source(
        {
            "app.py": "import queue\nfrom concurrent_swarm import tasks\n",
            "queue.py": "1/0",
            "concurrent_swarm.py": "1/0",
        }
    )
    assert names(rpc.make_bundle("app.py")) == ["app.py"]


def test_a_package_ships_whole_but_for_hidden_and_compiled_files(source):
    source(
        {
            "pkg/__init__.py": "",
            "pkg/app.py": APP,
            "pkg/data/table.csv": "1,2",
            "pkg/tests/test_it.py": "",
            "pkg/__pycache__/app.cpython-310.pyc": b"",
            "pkg/old.pyc": b"",
            "pkg/.git/config": "",
            "pkg/.env": "",
            "x.py": "",
        }
    )
    bundle = rpc.make_bundle(module="pkg.app")
    assert names(bundle) == ["pkg/__init__.py", "pkg/app.py", "pkg/data/table.csv", "pkg/tests/test_it.py"]
    assert (bundle.manifest["entry"], bundle.manifest["module"]) == ("pkg/app.py", "pkg.app")
    assert bundle.manifest["kind"] == "package" and bundle.manifest["modules"] == ["pkg"]


@pytest.mark.parametrize("how", [{"path": "pkg/sub"}, {"path": "pkg/sub/__init__.py"}, {"module": "pkg.sub"}])
def test_a_folder_inside_a_package_is_started_as_part_of_it(source, how):
    source({"pkg/__init__.py": "", "pkg/sub/__init__.py": APP})
    bundle = rpc.make_bundle(**how)
    assert (bundle.manifest["module"], len(names(bundle))) == ("pkg.sub", 2)


def test_a_vendored_framework_is_not_sent_with_the_package_that_holds_it(source):
    source({"pkg/__init__.py": "", "pkg/_vendor/concurrent_swarm/rpc.py": "", "pkg/_vendor/other.py": ""})
    bundle = rpc.make_bundle("pkg", framework="pkg._vendor.concurrent_swarm")
    assert names(bundle) == ["pkg/__init__.py", "pkg/_vendor/other.py"]


def test_a_package_over_the_limit_is_refused_with_both_numbers(source):
    folder = source({"pkg/__init__.py": ""})
    with open(folder / "pkg/data.bin", "wb") as big:
        big.truncate(70 << 20)
    with pytest.raises(components.UsageError) as error:
        rpc.make_bundle("pkg")
    assert "70.0 MiB" in told(error) and "64 MiB" in told(error)


def test_a_bundle_of_zeros_can_still_be_opened(source, tmp_path):
    source({"pkg/__init__.py": "", "pkg/zeros.bin": bytes(5 << 20)})
    assert Path(unpacked(rpc.make_bundle("pkg"), tmp_path), "pkg/zeros.bin").stat().st_size == 5 << 20


# -- opening -------------------------------------------------------------------------------------------------


def test_an_opened_bundle_holds_the_files_under_its_digest_and_is_known(source, tmp_path):
    source({"app.py": APP + "import helper", "helper.py": "x = 1"})
    bundle = rpc.make_bundle("app.py")
    path = unpacked(bundle, tmp_path)
    assert path == str(tmp_path / "apps" / bundle.digest)
    assert Path(path, "helper.py").read_text() == "x = 1"
    assert unpacked(bundle, tmp_path) == path
    assert rpc.known_bundles(tmp_path / "apps") == {bundle.digest: bundle.manifest}


def test_no_folder_means_no_known_bundles(tmp_path):
    assert rpc.known_bundles(tmp_path / "none") == {}


NEEDS = """
from concurrent_swarm.client import ApplicationNode

requirements = ["not of a class"]

class Base(ApplicationNode):
    requirements = ["numpy>=1.26"]
    read = ["/data"]

class App(Base):
    requirements = ["six", "numpy>=1.26"]
    network = ["node01:5432"]
    subprocess = True
"""


def test_what_classes_of_the_file_declare_is_in_the_manifest(source):
    source({"app.py": NEEDS, "pkg/__init__.py": "", "pkg/app.py": NEEDS})
    needs = {"requirements": ["numpy>=1.26", "six"], "network": ["node01:5432"], "read": ["/data"], "subprocess": True}
    assert rpc.make_bundle("app.py").manifest["needs"] == needs
    assert rpc.make_bundle(module="pkg.app").manifest["needs"] == needs


def test_other_needs_make_another_bundle(source):
    source({"app.py": NEEDS, "other.py": NEEDS.replace("node01", "node02")})
    assert rpc.make_bundle("app.py").digest != rpc.make_bundle("other.py").digest


@pytest.mark.parametrize("said", ["read = [FOLDER]", "read = '/data'", "subprocess = 1", "network = ['a\\n']"])
def test_a_need_that_is_not_written_out_is_named_with_its_line(source, said):
    source({"app.py": f"class App(Node):\n    {said}\n"})
    with pytest.raises(components.UsageError, match=r"app\.py:2: what (read|subprocess|network) says cannot be read"):
        rpc.make_bundle("app.py")


def test_a_bundle_damaged_on_disk_is_removed_and_can_be_opened_again(source, tmp_path):
    source({"app.py": APP})
    bundle = rpc.make_bundle("app.py")
    Path(unpacked(bundle, tmp_path), "app.py").write_text("half")
    assert rpc.known_bundles(tmp_path / "apps") == {}
    assert Path(unpacked(bundle, tmp_path), "app.py").read_text() == APP


def forged(files, manifest=None, link=False, method=zipfile.ZIP_DEFLATED):
    """A bundle as an attacker would make it: the digest fits, the names are as given."""
    facts = {
        "format": 1,
        "kind": "file",
        "entry": "app.py",
        "modules": [],
        "framework": "concurrent_swarm",
        "needs": {},
        **(manifest or {}),
    }
    digest = rpc._digest(facts, dict(files))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            entry.external_attr = (stat.S_IFLNK | 0o777 if link and name != "app.py" else 0o100644) << 16
            archive.writestr(entry, data)
    return digest, {"module": f"app_{digest[:12]}", **facts}, buffer.getvalue()


def refused(tmp_path, digest, manifest, data):
    with pytest.raises(components.Error) as error:
        rpc.open_bundle(digest, manifest, data, tmp_path / "apps")
    assert not (tmp_path / "apps").exists() or not list((tmp_path / "apps").iterdir())
    return told(error)


@pytest.mark.parametrize(
    "name",
    [
        "../x.py",
        "a/../../x",
        "/etc/x",
        "C:/x",
        "C:x",
        "a\\b",
        ".hidden",
        "a//b",
        "a/",
        "a.",
        "x\n.py",
        "..",
        ".bundle.json",
        "a/.ssh/b",
    ],
)
def test_a_name_that_escapes_or_hides_is_refused(tmp_path, name):
    assert "file name" in refused(tmp_path, *forged([("app.py", b""), (name, b"x")]))


@pytest.mark.parametrize(
    "pair",
    [("a.py", "A.py"), ("Pkg/a", "pkg/b"), ("a", "a/b"), ("a/b", "a"), ("ﬁ", "fi"), ("\u00e9", "e\u0301")],
)
def test_names_that_clash_where_case_does_not_count_are_refused(tmp_path, pair):
    assert "case" in refused(tmp_path, *forged([("app.py", b""), *((name, b"") for name in pair)]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice_is_refused(tmp_path):
    digest, manifest, data = forged([("app.py", b"1"), ("app.py", b"2")])
    assert "one file" in refused(tmp_path, digest, manifest, data)


def test_a_link_is_refused(tmp_path):
    assert "link" in refused(tmp_path, *forged([("app.py", b""), ("passwd", b"/etc/passwd")], link=True))


def test_a_zip_bomb_is_refused_by_ratio_and_by_size(tmp_path, monkeypatch):
    files = [("app.py", b""), ("zeros", bytes(4 << 20))]
    assert "unpacks to" in refused(tmp_path, *forged(files))
    monkeypatch.setattr(rpc, "UNPACKED_LIMIT", 1 << 20)
    assert "unpacks to" in refused(tmp_path, *forged(files, method=zipfile.ZIP_STORED))
    assert "unpacks to" in refused(tmp_path, *forged([(f"f{n}", b"") for n in range(rpc.FILES_LIMIT + 1)]))


def test_a_zip_that_declares_less_than_it_holds_is_refused(tmp_path):
    digest, manifest, data = forged([("app.py", b"x" * 5000)])
    lying = data.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != data
    refused(tmp_path, digest, manifest, lying)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"entry": "missing.py"},
        {"entry": "../app.py"},
        {"format": 2},
        {"format": True},
        {"framework": "../x"},
        {"framework": ""},
        {"modules": [1]},
        {"modules": "os"},
        {"needs": []},
        {"needs": {"network": "all"}},
        {"needs": {"read": [1]}},
        {"needs": {"subprocess": "yes"}},
        {"needs": {"keys": ["all"]}},
        {"more": 1},
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path, change):
    refused(tmp_path, *forged([("app.py", b"")], change))


def test_an_application_of_before_that_could_not_say_what_it_needs_is_known_again(tmp_path):
    digest, manifest, data = forged([("app.py", b"")])
    facts = {name: value for name, value in manifest.items() if name not in ("needs", "module")} | {"requirements": []}
    digest = rpc._digest(facts, {"app.py": b""})
    rpc.open_bundle(digest, {"module": f"app_{digest[:12]}", **facts}, data, tmp_path)
    (known,) = rpc.known_bundles(tmp_path).values()
    assert rpc.needs_of(known) == {}


@pytest.mark.parametrize("manifest", [None, [], {}, "app"])
def test_a_manifest_that_is_no_table_is_refused(tmp_path, manifest):
    digest, _, data = forged([("app.py", b"")])
    refused(tmp_path, digest, manifest, data)


def test_content_under_a_wrong_digest_or_module_is_refused(tmp_path):
    digest, manifest, data = forged([("app.py", b"")])
    other = hashlib.sha256(b"").hexdigest()
    assert "digest" in refused(tmp_path, other, {**manifest, "module": f"app_{other[:12]}"}, data)
    assert "digest" in refused(tmp_path, digest, {**manifest, "module": "os"}, data)
    assert "digest" in refused(tmp_path, "../../x", manifest, data)


def test_a_zip_with_any_byte_changed_is_refused_or_the_same(tmp_path):
    digest, manifest, data = forged([("app.py", APP.encode()), ("pkg/data", b"abc" * 50)])
    for place in range(len(data)):
        broken = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        folder = tmp_path / f"apps{place}"
        try:
            path = rpc.open_bundle(digest, manifest, broken, folder)
            assert Path(path, "app.py").read_text() == APP
        except components.Error:
            assert not folder.exists()


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 100])
def test_what_is_no_zip_is_refused(tmp_path, data):
    digest, manifest, _ = forged([("app.py", b"")])
    assert "zip" in refused(tmp_path, digest, manifest, data)


def test_a_failed_unpacking_leaves_nothing_behind(source, tmp_path, monkeypatch):
    source({"app.py": APP})
    bundle = rpc.make_bundle("app.py")
    (tmp_path / "apps").mkdir()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refused(tmp_path, bundle.digest, bundle.manifest, bundle.zip)


# -- importing -----------------------------------------------------------------------------------------------


def test_client_and_worker_load_the_application_under_the_same_name(source, tmp_path):
    source({"app.py": "import helper\n" + APP, "helper.py": "x = 7"})
    bundle = rpc.make_bundle("app.py")
    module = rpc.load_app(bundle.root, bundle.manifest)
    assert module.__file__ == str(Path(bundle.root, "app.py")) and module.helper.x == 7
    data = pickle.dumps(module.App())
    code = (
        "import sys, pickle; from concurrent_swarm import rpc;"
        "root, manifest, data = eval(sys.stdin.read());"
        "rpc.load_app(root, manifest); print(pickle.loads(data).run())"
    )
    worker = subprocess.run(
        [sys.executable, "-c", code],
        input=repr((unpacked(bundle, tmp_path), bundle.manifest, data)),
        cwd=Path(rpc.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (worker.stdout, worker.stderr) == ("42\n", "")


def test_a_package_loads_with_its_relative_imports_and_data(source, tmp_path):
    source(
        {
            "pkg/__init__.py": "",
            "pkg/app.py": "from . import part\nfrom .space import deep\n" + APP,
            "pkg/part.py": "import pkgutil\ndata = pkgutil.get_data(__package__, 'table.csv')",
            "pkg/table.csv": "1",
            "pkg/space/deep.py": "x = 3",
        }
    )
    bundle = rpc.make_bundle(module="pkg.app")
    module = rpc.load_app(unpacked(bundle, tmp_path), bundle.manifest)
    assert (module.__name__, module.part.data, module.deep.x) == ("pkg.app", b"1", 3)
    assert str(tmp_path / "apps") in module.part.__file__


def test_an_application_called_queue_neither_shadows_nor_is_shadowed(source):
    import queue

    source({"queue.py": "import queue\n" + APP})
    bundle = rpc.make_bundle("queue.py")
    module = rpc.load_app(bundle.root, bundle.manifest)
    assert module.queue is queue and module.App().run() == 42 and importlib.import_module("queue") is queue


def test_two_versions_of_an_application_live_side_by_side(source):
    modules = []
    for number in 1, 2:
        source({"app.py": f"x = {number}"})
        bundle = rpc.make_bundle("app.py")
        modules.append(rpc.load_app(bundle.root, bundle.manifest))
    assert [module.x for module in modules] == [1, 2]


def test_neighbours_that_were_not_sent_cannot_be_imported(source):
    source(
        {
            "app.py": "import importlib\nname = 'neigh' + 'bour'\nimportlib.import_module(name)",
            "neighbour.py": "",
        }
    )
    bundle = rpc.make_bundle("app.py")
    with pytest.raises(components.Error, match="neighbour"):
        rpc.load_app(bundle.root, bundle.manifest)


def test_a_sibling_that_imports_the_entry_file_gets_the_one_module(source):
    source({"app.py": "x = 1\nimport helper\n", "helper.py": "import app\nfrom app import x"})
    bundle = rpc.make_bundle("app.py")
    module = rpc.load_app(bundle.root, bundle.manifest)
    assert module.helper.app is module and module.__name__.startswith("app_")


def test_the_main_guard_does_not_fire(source):
    source({"app.py": 'ran = False\nif __name__ == "__main__":\n    ran = True\n'})
    bundle = rpc.make_bundle("app.py")
    assert rpc.load_app(bundle.root, bundle.manifest).ran is False


def test_a_failing_import_leaves_nothing_behind(source):
    source({"app.py": "import helper\n1 / 0", "helper.py": ""})
    bundle = rpc.make_bundle("app.py")
    before = set(sys.modules), list(sys.meta_path)
    with pytest.raises(components.Error, match=r"app\.py line 2 .*"):
        rpc.load_app(bundle.root, bundle.manifest)
    assert (set(sys.modules), sys.meta_path) == before


def test_installing_twice_is_installing_once(source):
    source({"app.py": APP})
    bundle = rpc.make_bundle("app.py")
    before = len(sys.meta_path)
    assert rpc.install_bundle(bundle.root, bundle.manifest) is rpc.install_bundle(
        bundle.root, bundle.manifest
    )
    assert len(sys.meta_path) == before + 1
    assert rpc.load_app(bundle.root, bundle.manifest) is rpc.load_app(bundle.root, bundle.manifest)


def test_an_edit_within_the_same_second_is_not_hidden_by_a_compiled_file(source):
    for number in 1, 2:
        folder = source({"app.py": "import helper", "helper.py": f"x = {number}"})
        os.utime(folder / "helper.py", (1000, 1000))
        bundle = rpc.make_bundle("app.py")
        assert rpc.load_app(bundle.root, bundle.manifest).helper.x == number
        sys.modules.pop("helper")
        sys.meta_path.pop(0)
    assert not (folder / "__pycache__").exists()


def test_a_traceback_shows_the_source_line_also_when_the_file_is_gone(source):
    folder = source({"app.py": "def fail():\n    raise ValueError('here')  # the line\n"})
    bundle = rpc.make_bundle("app.py")
    module = rpc.load_app(bundle.root, bundle.manifest)
    with pytest.raises(ValueError) as error:
        module.fail()
    text = "".join(traceback.format_exception(error.value))
    assert str(folder / "app.py") in text and "# the line" in text
    assert "# the line" in module.__spec__.loader.get_source(module.__name__)


# -- one framework under every name --------------------------------------------------------------------------


def test_other_names_of_the_framework_give_the_identical_modules():
    before = components.__spec__, components.__loader__, components.__name__
    alias = rpc.answer_framework(["myproject._vendor.concurrent_swarm", "concurrent_swarm"])
    other = importlib.import_module("myproject._vendor.concurrent_swarm.components")
    package = importlib.import_module("myproject._vendor.concurrent_swarm")
    assert other is components and package is sys.modules["concurrent_swarm"] and package.rpc is rpc
    assert (components.__spec__, components.__loader__, components.__name__) == before
    exec("from myproject._vendor.concurrent_swarm.rpc import make_bundle as found", names_found := {})
    assert names_found["found"] is rpc.make_bundle
    assert rpc.answer_framework(["other"]) is alias and sys.meta_path.count(alias) == 1


def test_a_name_the_framework_does_not_have_is_missing_under_all_names():
    rpc.answer_framework(["vend.concurrent_swarm"])
    for name in "vend.concurrent_swarm.nothing", "vend.more", "vendor":
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(name)


def test_real_parents_of_a_name_are_kept_and_missing_ones_are_made(source, monkeypatch):
    monkeypatch.syspath_prepend(source({"realproject/__init__.py": "x = 5"}))
    rpc.answer_framework(["realproject._vendor.concurrent_swarm"])
    assert importlib.import_module("realproject._vendor.concurrent_swarm.rpc") is rpc
    assert sys.modules["realproject"].x == 5 and sys.modules["realproject._vendor"].__path__ == []


def test_a_bundle_that_holds_the_real_parent_gets_the_running_framework(source, tmp_path):
    source(
        {
            "hostproject/__init__.py": "",
            "hostproject/_vendor/__init__.py": "x = 6",
            "hostproject/_vendor/concurrent_swarm/rpc.py": "1/0",
            "hostproject/app.py": "from ._vendor.concurrent_swarm import rpc\nfrom ._vendor import x",
        }
    )
    bundle = rpc.make_bundle(module="hostproject.app", framework="hostproject._vendor.concurrent_swarm")
    for root in unpacked(bundle, tmp_path), bundle.root:
        rpc.answer_framework([bundle.manifest["framework"]])
        module = rpc.load_app(root, bundle.manifest)
        assert module.rpc is rpc and module.x == 6
        for name in [name for name in sys.modules if name.startswith("hostproject")]:
            del sys.modules[name]
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, rpc.BundleFinder)]


def test_importing_installs_no_finder():
    code = "import sys; old = [*sys.meta_path]; from concurrent_swarm import rpc; assert old == sys.meta_path"
    subprocess.run([sys.executable, "-c", code], cwd=Path(rpc.__file__).parent, check=True)


# -- what a bad application is told --------------------------------------------------------------------------


def usage(path=None, **more):
    with pytest.raises(components.UsageError) as error:
        rpc.make_bundle(path, **more)
    return told(error)


def test_a_missing_file_names_its_nearest_neighbour(source):
    source({"samples/hello.py": "", "samples/other.py": "", "samples/notes.txt": ""})
    assert "did you mean samples/hello.py?" in usage("samples/helo.py")
    assert "did you mean samples/hello.py?" in usage("samples/hello.txt")
    assert "did you mean samples/hello.py?" in usage("sample/hello.py")
    assert "no application in samples/notes.txt it is not a .py file" in usage("samples/notes.txt")
    assert "did you mean" not in usage("samples/zzzzzzzzzzzzzzz")


def test_a_folder_or_module_that_is_no_package_is_told_so(source):
    source({"folder/app.py": ""})
    assert "__init__.py" in usage("folder")
    assert "no application in module nothing.here" in usage(module="nothing.here")
    assert "no application in module ../x" in usage(module="../x")


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\ndef f(:\n", "bad.py:2:"),
        (b"x = '\xff'\n", "cannot be read"),
        ("# coding: klingon\n", "cannot be read"),
        ("x = 1\0", "bad.py:1:"),
        ("from . import x\n", "bad.py line 1 has a relative import"),
    ],
)
def test_source_that_cannot_be_parsed_names_file_and_line(source, text, said):
    source({"bad.py": text})
    assert said in usage("bad.py")


def test_a_relative_import_in_a_file_of_a_package_is_told_the_module_name(source):
    source({"pkg/__init__.py": "", "pkg/app.py": "from . import x"})
    assert "client.py -m pkg.app" in usage("pkg/app.py")


def test_a_syntax_error_in_a_sibling_or_a_package_names_that_file(source):
    source(
        {
            "app.py": "import helper",
            "helper.py": "\n)",
            "pkg/__init__.py": "from . import part",
            "pkg/part.py": "\n\n)",
        }
    )
    assert "helper.py:2:" in usage("app.py")
    bundle = rpc.make_bundle("pkg")
    with pytest.raises(components.Error) as error:
        rpc.load_app(bundle.root, bundle.manifest)
    assert "pkg/part.py line 3" in told(error)


def test_a_missing_module_is_named_with_file_and_line(source):
    source({"app.py": "x = 1\nimport helper\n", "helper.py": "\n\nimport not_there.at_all\n"})
    bundle = rpc.make_bundle("app.py")
    with pytest.raises(components.Error) as error:
        rpc.load_app(bundle.root, bundle.manifest)
    assert 'helper.py line 3 cannot import "not_there"' in told(error) and "pip install not_there" in told(
        error
    )


def test_the_line_named_is_the_users_own_also_when_an_installed_module_fails(source, monkeypatch):
    folder = source({"app.py": "\n\nimport installed_one\n", "venv/lib/installed_one.py": "\n\n\n\n1 / 0"})
    monkeypatch.syspath_prepend(folder / "venv/lib")
    bundle = rpc.make_bundle("app.py")
    with pytest.raises(components.Error, match=r"app\.py line 3 .*ZeroDivisionError"):
        rpc.load_app(bundle.root, bundle.manifest)


def test_an_application_that_exits_while_it_is_loaded_does_not_end_the_node(source):
    source({"app.py": "\nimport sys\nsys.exit(3)\n"})
    bundle = rpc.make_bundle("app.py")
    with pytest.raises(components.Error, match=r"app\.py line 3"):
        rpc.load_app(bundle.root, bundle.manifest)


@pytest.mark.parametrize(
    "line, change",
    [
        ("from concurrent.core.async.task import Task", "from concurrent_swarm.tasks import Task"),
        (
            "from concurrent.core.async.api import ITaskSystem",
            "from concurrent_swarm.tasks import ITaskSystem",
        ),
        (
            "from concurrent.core.components.component import implements",
            "from concurrent_swarm.components import implements",
        ),
        (
            "from concurrent.framework.nodes.applicationnode import ApplicationNode",
            "from concurrent_swarm.client import ApplicationNode",
        ),
        ("from concurrent.core.application.api import IApp", "from concurrent_swarm.tasks import IApp"),
        ("import md5", "from hashlib import md5"),
        ("import cPickle as pickle", "import pickle"),
    ],
)
def test_old_imports_are_told_what_to_write(source, line, change):
    for rest in "", "print 'x'\n":  # parsed by Python 3, and not
        source({"old.py": f"\n\n\n{line}\n{rest}"})
        text = usage("old.py")
        assert "old.py line 4 imports " in text and f"`{change}`" in text and "docs/porting.md" in text


@pytest.mark.parametrize("line", ['print "x"', "print x", "exec 'x'", "raise ValueError, 'x'"])
def test_statements_of_python_2_are_named_with_their_line(source, line):
    source({"old.py": f"import sys\n{line}\n"})
    assert f"old.py line 2 is Python 2: {line}" in usage("old.py")


def test_an_except_clause_of_python_2_is_named(source):
    source({"old.py": "try:\n    pass\nexcept ValueError, error:\n    pass\n"})
    assert "old.py line 3 is Python 2" in usage("old.py")


@pytest.mark.parametrize(
    "text",
    [
        "import hashlib\nfrom concurrent.futures import Future\n",
        "try:\n    import cPickle\nexcept ImportError:\n    pass\n",
        "print('x')\n",
        "",
        "from .concurrent.core import x",
    ],
)
def test_code_of_today_is_not_taken_for_old(text):
    assert rpc.explain_old_imports(text, "app.py") is None


def test_a_sibling_called_md5_is_not_the_old_module(source):
    source({"app.py": "import md5", "md5.py": ""})
    assert names(rpc.make_bundle("app.py")) == ["app.py", "md5.py"]


# -- the application class -----------------------------------------------------------------------------------


class Node:
    pass


def application(text, **more):
    Path("app.py").write_text("from builtins import Node\n" + text)
    builtins.Node = Node
    bundle = rpc.make_bundle("app.py")
    module = rpc.load_app(bundle.root, bundle.manifest)
    return rpc.find_application(module, Node, **more)


def test_the_one_subclass_defined_in_the_module_is_the_application(source):
    source({"app.py": ""})
    assert application("class Hello(Node): pass\nAlias = Hello\nclass Other: pass\nn = 1").__name__ == "Hello"


def test_no_application_class_is_an_error_that_says_so(source):
    source({"app.py": ""})
    with pytest.raises(components.UsageError) as error:
        application("class Other: pass")
    assert "no application in app.py it defines no Node subclass" in told(error)


def test_two_applications_are_listed_and_one_can_be_chosen(source):
    source({"app.py": ""})
    two = "class A(Node): pass\nclass B(A): pass"
    with pytest.raises(components.UsageError) as error:
        application(two)
    assert "it defines 2: A, B" in told(error) and "--app A" in told(error)
    assert application(two, name="B").__name__ == "B"
    with pytest.raises(components.UsageError, match=r"no application C in app\.py"):
        application(two, name="C")


def test_of_several_applications_the_one_called_application_runs_unless_another_is_chosen(source):
    source({"app.py": ""})
    text = "class A(Node): pass\nclass B(A): pass\napplication = B\nOldName = A"
    assert application(text).__name__ == "B"
    assert application(text, name="A").__name__ == application(text, name="OldName").__name__ == "A"
    with pytest.raises(components.UsageError, match=r"no application C in app\.py.*it defines 2: A, B"):
        application(text, name="C")


def test_a_package_may_hand_up_an_application_from_its_own_module(source):
    source({"pkg/__init__.py": "from .app import App", "pkg/app.py": APP})
    bundle = rpc.make_bundle("pkg")
    module = rpc.load_app(bundle.root, bundle.manifest)
    assert rpc.find_application(module, sys.modules["pkg.app"].Base) is module.App
