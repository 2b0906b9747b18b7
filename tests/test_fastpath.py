"""The compiled hot paths and their pure twins: every claim here is tested on both.

    pure        tasks.pure_<name>
    compiled    the package's own extension where it is built, else one built here in a temporary folder;
                skipped, with the reason, where there is no Cython, no setuptools or no C compiler
"""

import _thread
import shutil
import subprocess
import sys
import threading
from hashlib import md5
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concurrent_swarm import tasks

CHECKOUT = Path(__file__).resolve().parent.parent
EMPTY_MODULE = "#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n"
LIMIT = 2**63


def digest(text) -> bytes:
    return md5(str(text).encode(), usedforsecurity=False).digest()


# -- both versions -------------------------------------------------------------------------------------------

def build(extensions, folder: Path) -> Path:
    """Builds one extension into the folder; returns its file. Raises what setuptools raises."""
    from setuptools import Distribution

    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_outputs()[0])


@pytest.fixture(scope="session")
def fastpath(tmp_path_factory):
    if tasks.FASTPATH:
        from concurrent_swarm import fastpath
        return fastpath
    cython = pytest.importorskip("Cython.Build", reason="no Cython here: the compiled version is not tested")
    setuptools = pytest.importorskip("setuptools", reason="no setuptools: the compiled version is not tested")
    from setuptools import errors
    folder = tmp_path_factory.mktemp("fastpath")
    (folder / "probe.c").write_text(EMPTY_MODULE)
    try:
        build([setuptools.Extension("probe", [str(folder / "probe.c")])], folder)
    except (errors.CompileError, errors.LinkError, errors.PlatformError) as error:
        pytest.skip(f"no C compiler that finds Python.h: the compiled version is not tested ({error})")
    source = shutil.copy(CHECKOUT / "fastpath.pyx", folder)
    extension = setuptools.Extension("fastpath", [str(source)])
    built = build(cython.cythonize([extension], quiet=True), folder)
    module = module_from_spec(spec := spec_from_file_location("fastpath", built))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=["pure", "compiled"])
def md5_search(request):
    if request.param == "pure":
        return tasks.pure_md5_search
    return request.getfixturevalue("fastpath").md5_search


# -- the search ----------------------------------------------------------------------------------------------

def test_it_finds_numbers_by_digests_known_from_elsewhere(md5_search):
    assert md5_search(bytes.fromhex("cfcd208495d565ef66e7dff9f98764da"), 0, 10) == 0
    assert md5_search(bytes.fromhex("c4ca4238a0b923820dcc509a6f75849b"), 0, 10) == 1


@pytest.mark.parametrize("digits", range(1, 20))
def test_it_finds_every_number_around_a_change_of_digits(md5_search, digits):
    start, stop = max(10 ** (digits - 1) - 15, 0), min(10 ** (digits - 1) + 15, LIMIT)
    for number in range(start, stop):
        assert md5_search(digest(number), start, stop) == number


def test_it_finds_the_last_number_it_knows(md5_search):
    assert md5_search(digest(LIMIT - 1), LIMIT - 30, LIMIT) == LIMIT - 1


def test_the_start_belongs_to_the_range_and_the_stop_does_not(md5_search):
    assert md5_search(digest(95), 95, 107) == 95
    assert md5_search(digest(106), 95, 107) == 106
    assert md5_search(digest(94), 95, 107) is None
    assert md5_search(digest(107), 95, 107) is None


def test_a_digest_of_no_number_is_not_found(md5_search):
    assert md5_search(digest("no number"), 0, 5000) is None
    assert md5_search(digest("007"), 0, 1000) is None


def test_every_byte_of_the_digest_counts(md5_search):
    for at in range(16):
        wrong = bytearray(digest(123))
        wrong[at] ^= 1
        assert md5_search(bytes(wrong), 120, 130) is None


@pytest.mark.parametrize("start, stop", [(5, 5), (0, 0), (6, 5), (5, -5), (-3, -7), (LIMIT + 2, LIMIT)])
def test_a_range_without_numbers_holds_none(md5_search, start, stop):
    assert md5_search(digest(5), start, stop) is None


@pytest.mark.parametrize("start, stop", [(-1, 5), (-7, -3), (9, 2**64), (LIMIT, LIMIT + 1), (2**70, 2**80)])
def test_a_number_it_does_not_know_is_refused(md5_search, start, stop):
    with pytest.raises(ValueError, match=rf"not {start}\.\.{stop - 1}"):
        md5_search(digest(5), start, stop)


@pytest.mark.parametrize("wrong", [b"", bytes(15), bytes(17), digest(5).hex(), "x" * 16, None])
def test_a_digest_that_is_not_16_bytes_is_refused(md5_search, wrong):
    with pytest.raises(ValueError, match="16 bytes"):
        md5_search(wrong, 0, 10)


@pytest.mark.parametrize("start, stop", [(1.5, 3), (0, 9.0), ("1", "3"), (None, 3)])
def test_a_bound_that_is_no_integer_is_refused(md5_search, start, stop):
    with pytest.raises(TypeError):
        md5_search(digest(1), start, stop)


def test_ctrl_c_ends_a_long_search(md5_search):
    threading.Timer(0.05, _thread.interrupt_main).start()  # runs only if the search lets go of the GIL
    with pytest.raises(KeyboardInterrupt):
        md5_search(digest("no number"), 0, 200_000_000)


@given(st.integers(0, LIMIT) | st.integers(0, 2000), st.integers(-3, 200), st.integers(-5, 210))
def test_both_versions_give_the_same_answer_everywhere(fastpath, start, count, pick):
    stop = min(start + count, LIMIT)
    wanted = digest(start + pick)
    assert fastpath.md5_search(wanted, start, stop) == tasks.pure_md5_search(wanted, start, stop)


# -- which version is at work --------------------------------------------------------------------------------

def import_tasks_from(folder: Path, line: str) -> subprocess.CompletedProcess:
    for module in CHECKOUT.glob("*.py"):
        shutil.copy(module, folder)
    return subprocess.run([sys.executable, "-S", "-c", f"from concurrent_swarm import tasks; {line}"], cwd=folder,
                          capture_output=True, text=True, timeout=60)


def test_without_a_build_the_pure_twin_is_at_work(tmp_path):
    run = import_tasks_from(tmp_path, "print(tasks.FASTPATH, tasks.md5_search is tasks.pure_md5_search)")
    assert run.stdout.split() == ["False", "True"], run.stderr


def test_a_built_extension_is_at_work(fastpath, tmp_path):
    shutil.copy(fastpath.__file__, tmp_path)
    run = import_tasks_from(tmp_path, "print(tasks.FASTPATH, tasks.md5_search is tasks.pure_md5_search)")
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_broken_build_is_heard(tmp_path):
    (tmp_path / f"fastpath{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    run = import_tasks_from(tmp_path, "print(tasks.FASTPATH)")
    assert run.returncode != 0 and "ImportError" in run.stderr
