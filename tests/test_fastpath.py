"""The compiled hot paths and their pure twins: every claim here is tested on both, on each level of instructions.

    pure        tasks.pure_<name>
    compiled    the package's own extension where it is built, else one built here in a temporary folder;
                skipped, with the reason, where there is no Cython, no setuptools or no C compiler
"""

import _thread
import cmath
import contextlib
import functools
import itertools
import math
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from array import array
from hashlib import md5
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concurrent_swarm import rpc, tasks

CHECKOUT = Path(__file__).resolve().parent.parent
EMPTY_MODULE = "#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n"
PURE = SimpleNamespace(md5_search=tasks.pure_md5_search, mandelbrot=tasks.pure_mandelbrot)
LEVELS = ["neon", "plain"] if platform.machine() in ("aarch64", "arm64") else ["avx512", "avx2", "sse2", "plain"]
LIMIT = 2**63


def digest(text) -> bytes:
    return md5(str(text).encode(), usedforsecurity=False).digest()


# -- all versions --------------------------------------------------------------------------------------------

def load(name: str, file: Path):
    module = module_from_spec(spec := spec_from_file_location(name, file))
    spec.loader.exec_module(module)
    return module


def build(extensions, folder: Path, command=None) -> Path:
    """Builds one extension into the folder as setup.py does; returns its file. Raises what setuptools raises."""
    from setuptools import Distribution

    command = (command or load("setup", CHECKOUT / "setup.py").BuildKernels)(Distribution({"ext_modules": extensions}))
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_outputs()[0])


@functools.cache
def c_source() -> str:
    """What Cython makes of the source."""
    cython = pytest.importorskip("Cython.Build", reason="no Cython here: the compiled version is not tested")
    with tempfile.TemporaryDirectory() as folder:
        source = shutil.copy(CHECKOUT / "fastpath.pyx", folder)
        cython.cythonize([source], quiet=True)
        return Path(source).with_suffix(".c").read_text()


def build_fastpath(folder: Path, command=None):
    setuptools = pytest.importorskip("setuptools", reason="no setuptools: the compiled version is not tested")
    from setuptools import errors
    (folder / "fastpath.c").write_text(c_source())
    (folder / "probe.c").write_text(EMPTY_MODULE)
    try:
        build([setuptools.Extension("probe", [str(folder / "probe.c")])], folder)
    except (errors.CompileError, errors.LinkError, errors.PlatformError) as error:
        pytest.skip(f"no C compiler that finds Python.h: the compiled version is not tested ({error})")
    extension = setuptools.Extension("fastpath", [str(folder / "fastpath.c")])
    return load("fastpath", build([extension], folder, command))


@pytest.fixture(scope="session")
def fastpath(tmp_path_factory):
    if tasks.FASTPATH:
        from concurrent_swarm import fastpath
        return fastpath
    return build_fastpath(tmp_path_factory.mktemp("fastpath"))


@contextlib.contextmanager
def at_level(fastpath, level: str):
    before = fastpath.simd()
    fastpath._use(level)
    yield fastpath
    fastpath._use(before)


@pytest.fixture(params=LEVELS)
def compiled(request, fastpath):
    if request.param not in fastpath.levels():
        pytest.skip(f"this processor or build has no {request.param}")
    with at_level(fastpath, request.param):
        yield fastpath


@pytest.fixture(params=["pure", *LEVELS])
def kernels(request, fastpath):
    if request.param == "pure":
        yield PURE
    elif request.param not in fastpath.levels():
        pytest.skip(f"this processor or build has no {request.param}")
    else:
        with at_level(fastpath, request.param):
            yield fastpath


@pytest.fixture
def md5_search(kernels):
    return kernels.md5_search


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


@pytest.fixture
def interruptible():
    """Ctrl-C is heard in the test, also where the run was started in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_long_search(md5_search):
    threading.Timer(0.05, _thread.interrupt_main).start()  # runs only if the search lets go of the GIL
    with pytest.raises(KeyboardInterrupt):
        md5_search(digest("no number"), 0, 10**13)


@given(st.integers(0, LIMIT) | st.integers(0, 2000), st.integers(-3, 200), st.integers(-5, 210))
def test_all_versions_give_the_same_answer_everywhere(fastpath, start, count, pick):
    stop = min(start + count, LIMIT)
    wanted = digest(start + pick)
    for level in fastpath.levels():
        with at_level(fastpath, level):
            assert fastpath.md5_search(wanted, start, stop) == tasks.pure_md5_search(wanted, start, stop)


# One for each word of the message that can vary, then with many words of fixed digits, with several runs, with few.
CHUNKS = [(10_000, 99_999), (1_000_000, 1_015_625), (10**11 + 5, 10**11 + 10_005), (10**15, 10**15 + 9999),
          (10**18, 10**18 + 1000), (8_000_123, 9_000_321), (10**8 - 50_000, 10**8 + 50_000), (10**12, 10**12 + 300),
          (0, 1_100_000)]  # fmt: skip


@pytest.mark.parametrize("start, stop", CHUNKS)
def test_a_hit_anywhere_in_a_chunk_is_found_and_none_beside_it(compiled, start, stop):
    some = random.Random(start).sample(range(start, stop), 5)
    for number in [start, start + 1, *range(start + 95, start + 98), *some, stop - 2, stop - 1]:
        assert compiled.md5_search(digest(number), start, stop) == number
    for number in [start - 1, *range(stop, stop + 96, 19)]:
        assert compiled.md5_search(digest(number), start, stop) is None


def test_numbers_of_eight_digits_are_found_in_chunks_of_any_size(compiled):
    some = random.Random(8)
    for _ in range(300):
        number = some.randrange(10**7, 10**8)
        start, stop = number - some.choice([0, 9, 99, 12_345]), number + some.choice([1, 8, 99, 12_345])
        assert compiled.md5_search(digest(number), start, stop) == number


def md5_steps(number):
    """The additive constant and word, and the bits to turn, of the 64 steps of RFC 1321 for a number's text."""
    text = str(number).encode()
    words = struct.unpack("<16I", text + b"\x80" + bytes(55 - len(text)) + struct.pack("<Q", 8 * len(text)))
    turns = [(7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21)]
    for i in range(64):
        word = (i, 5 * i + 1, 3 * i + 5, 7 * i)[i // 16] % 16
        yield int(abs(math.sin(i + 1)) * 2**32) + words[word], turns[i // 16][i % 4]


def md5_mix(i, x, y, z):
    return ((x & y) | (~x & z), (x & z) | (y & ~z), x ^ y ^ z, y ^ (x | ~z))[i // 16]


def turned(x, bits):
    return (x << bits | x % 2**32 >> 32 - bits) % 2**32


def step_forward(number, last):
    """The value that this step makes on the way to the digest of the number."""
    d, c, b, a = 0x10325476, 0x98BADCFE, 0xEFCDAB89, 0x67452301
    for i, (plus, bits) in itertools.islice(enumerate(md5_steps(number)), last + 1):
        a, d, c, b = d, c, b, (b + turned(a + md5_mix(i, b, c, d) + plus, bits)) % 2**32
    return b


def step_backward(number, digest, last):
    """The value that this step would make if the number had that digest."""
    a, b, c, d = struct.unpack("<4I", digest)
    a, b, c, d = a - 0x67452301, b - 0xEFCDAB89, c - 0x98BADCFE, d - 0x10325476
    for i, (plus, bits) in reversed(list(enumerate(md5_steps(number)))[last + 4 :]):
        a, b, c, d = turned(b - c, 32 - bits) - md5_mix(i, c, d, a) - plus, c, d, a
    return a % 2**32


# Found by trying 10**10: with the digest of the second number, step 49 of the first would be what it really is.
FALSE_HITS = [(73749435, 73749998), (61813273, 61819985), (70364805, 70369875)]


@pytest.mark.parametrize("false, true", FALSE_HITS)
def test_a_number_that_agrees_in_32_bits_is_no_hit_and_does_not_end_the_search(compiled, false, true):
    assert step_forward(false, 49) == step_backward(false, digest(true), 49)  # which is all that the vectors compare
    start = true - true % 10_000
    assert compiled.md5_search(digest(true), start, start + 10_000) == true
    assert compiled.md5_search(digest(true), start, true) is None
    assert compiled.md5_search(digest(true), false, false + 1) is None


# -- the Mandelbrot set --------------------------------------------------------------------------------------

def counts(data: bytes) -> list[int]:
    return array("I", data).tolist()


def count_at(kernels, c: complex, limit: int) -> int:
    (count,) = counts(kernels.mandelbrot(c.real, c.real, c.imag, c.imag, 1, 1, 0, 1, limit))
    return count


def test_escape_counts_known_by_hand(kernels):
    wanted = {0: 50, -1: 50, 0.25: 50, 0.2501: 50, 2: 0, -2: 0, 1: 1, 1j: 50, 1 + 1j: 1, -1.9999999999999998: 50,
              0.5: 4, 2j: 0, -2.0000000000000004: 0, 1e300: 0, 1e-310 - 1e-310j: 50}  # fmt: skip
    assert {c: count_at(kernels, complex(c), 50) for c in wanted} == wanted


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="complex products follow C99 there")
def test_the_counts_are_those_of_complex_numbers():
    def escape(c, limit):
        z = 0j
        for i in range(limit):
            z = z * z + c
            if z.real * z.real + z.imag * z.imag >= 4:
                return i
        return limit

    wanted = [escape(complex(-2 + 3 * px / 60, -1 + 2 * py / 40), 30) for px in range(60) for py in range(40)]
    assert counts(tasks.pure_mandelbrot(-2, 1, -1, 1, 60, 40, 0, 60, 30)) == wanted


WINDOWS = st.tuples(st.floats(-2.1, 0.6), st.floats(-1.2, 1.2), st.floats(1e-16, 1) | st.sampled_from([0, 1e-12, 3]))


@given(WINDOWS, st.integers(1, 9), st.integers(1, 70), st.sampled_from([0, 1, 2, 3, 4, 5, 19, 20, 200]))
def test_all_versions_draw_the_same(fastpath, window, width, height, limit):
    x, y, size = window
    image = (x, x + size, y - size, y + size / 2, width, height, 0, width, limit)
    wanted = tasks.pure_mandelbrot(*image)
    for level in fastpath.levels():
        with at_level(fastpath, level):
            assert fastpath.mandelbrot(*image) == wanted


@pytest.mark.parametrize("limit", [20, 1000, 20_000])
def test_points_by_the_borders_of_cardioid_and_circle_get_the_count_of_plain_iteration(compiled, limit):
    some = random.Random(limit)
    for _ in range(2_000_000 // limit // 100 + 30):
        inwards = some.choice([-1, 1]) * 10 ** some.uniform(-15, -0.5)
        multiplier = (1 - inwards) * cmath.exp(1j * some.choice([0, math.pi, some.uniform(0, 6.3)]))
        for c in (multiplier / 2 - multiplier**2 / 4, multiplier / 4 - 1):
            assert count_at(compiled, c, limit) == count_at(PURE, c, limit)


@pytest.mark.parametrize("middle", [0.25, -0.75, -2, -1.25, -1.7548776662466927])
def test_neighbours_of_a_delicate_point_get_the_count_of_plain_iteration(compiled, middle):
    for size in (4e-16, 1e-12, 1e-7, 3e-4):
        image = (middle - size, middle + size, -size, size, 9, 9, 0, 9, 500)
        assert compiled.mandelbrot(*image) == tasks.pure_mandelbrot(*image)


RESTLESS = (-0.748, -0.7475, 0.0995, 0.1, 40, 30, 0, 40, 3000)  # where a last bit decides: long orbits that escape


@pytest.fixture(scope="session")
def restless():
    return tasks.pure_mandelbrot(*RESTLESS)


def test_restless_points_get_the_count_of_plain_iteration(compiled, restless):
    assert compiled.mandelbrot(*RESTLESS) == restless


def test_however_an_image_is_cut_its_counts_are_the_same(kernels):
    image = (-2, 1, -1.1, 1.2, 13, 70)
    whole = kernels.mandelbrot(*image, 0, 13, 25)
    for start, stop in itertools.combinations_with_replacement(range(14), 2):
        assert kernels.mandelbrot(*image, start, stop, 25) == whole[start * 70 * 4 : stop * 70 * 4]


def test_a_large_limit_is_reached_at_once_where_it_is_proven(compiled):
    assert count_at(compiled, -0.2 + 0.1j, 10**9) == count_at(compiled, complex(-1), 10**9) == 10**9
    assert count_at(compiled, complex(-0.4), 2**32 - 1) == 2**32 - 1


INF, NAN = math.inf, math.nan


WINDOWS_WITHOUT_SIZE = [(NAN, 1, 0, 1), (0, NAN, 0, 1), (0, 1, NAN, 1), (0, 1, 0, NAN), (-INF, 1, 0, 1), (0, INF, 0, 1),
                        (0, 1, -INF, INF), (-1e308, 1e308, 0, 1), (0, 1, 0, 1.7e308)]  # fmt: skip
UNKNOWN_SIZES = [(0, 8, 0, 0, 9), (8, 0, 0, 8, 9), (8, 8, -1, 8, 9), (8, 8, 0, 9, 9), (8, 8, 5, 4, 9), (8, 8, 0, 8, -1),
                 (8, 8, 0, 8, 2**32), (2**31, 8, 0, 8, 9), (8, 2**31, 0, 8, 9)]  # fmt: skip
NO_NUMBERS = [("0", 1, 0, 1, 8, 8, 0, 8, 9), (0, 1j, 0, 1, 8, 8, 0, 8, 9), (0, 1, 0, 1, 8.0, 8, 0, 8, 9),
              (0, 1, 0, 1, 8, 8, None, 8, 9), (0, 1, 0, 1, 8, 8, 0, 8, "9")]  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS_WITHOUT_SIZE)
def test_a_window_that_is_not_finite_is_refused(kernels, window):
    with pytest.raises(ValueError, match="window of finite size"):
        kernels.mandelbrot(*window, 8, 8, 0, 8, 20)


@pytest.mark.parametrize("size", UNKNOWN_SIZES)
def test_a_size_that_it_does_not_know_is_refused(kernels, size):
    with pytest.raises(ValueError, match="width and height in"):
        kernels.mandelbrot(-2, 1, -1, 1, *size)


@pytest.mark.parametrize("wrong", NO_NUMBERS)
def test_what_is_no_number_is_refused(kernels, wrong):
    with pytest.raises(TypeError):
        kernels.mandelbrot(*wrong)


def test_no_columns_have_no_counts(kernels):
    assert kernels.mandelbrot(-2, 1, -1, 1, 8, 2**31 - 1, 3, 3, 20) == b""


def test_more_counts_than_memory_are_refused(compiled):
    with pytest.raises(MemoryError):
        compiled.mandelbrot(-2, 1, -1, 1, 2**31 - 1, 2**31 - 1, 0, 2**31 - 1, 20)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_large_image(kernels):
    threading.Timer(0.05, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        kernels.mandelbrot(-0.1, -0.1, 0.75, 0.75, 10**6, 64, 0, 10**6, 100_000)


# -- cores ---------------------------------------------------------------------------------------------------

THREADS = """
import os, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("fastpath", sys.argv[1])
spec.loader.exec_module(fastpath := module_from_spec(spec))
threads = lambda: len(os.listdir("/proc/self/task"))
search = lambda: fastpath.md5_search(bytes.fromhex(sys.argv[2]), 10_000_000, 20_000_000)
"""


def run_threads(fastpath, line: str, threads: str | None) -> list[str]:
    if not sys.platform.startswith("linux") or not fastpath.openmp() or (os.cpu_count() or 1) < 2:
        pytest.skip("needs Linux, a build with OpenMP and two processors")
    variables = {**os.environ, "OMP_NUM_THREADS": threads or ""}
    if threads is None:
        del variables["OMP_NUM_THREADS"]
    command = [sys.executable, "-S", "-c", THREADS + line, fastpath.__file__, digest(19_999_998).hex()]
    return subprocess.check_output(command, env=variables, text=True, timeout=60).split()


def test_importing_it_starts_no_thread(fastpath):
    assert run_threads(fastpath, "print(threads())", "2") == ["1"]


@pytest.mark.parametrize("said", [None, "", "1", "0", "many"])
def test_it_works_in_one_thread_unless_told_otherwise(fastpath, said):
    assert run_threads(fastpath, "print(search(), threads())", said) == ["19999998", "1"]


@pytest.mark.parametrize("said", ["2", "2,1", "64"])
def test_it_works_in_as_many_threads_as_the_environment_says(fastpath, said):
    threads = str(min(int(said.split(",")[0]), os.cpu_count()))
    assert run_threads(fastpath, "print(search(), threads())", said) == ["19999998", threads]


def test_the_environment_counts_as_it_is_at_the_call(fastpath):
    line = "search(); os.environ['OMP_NUM_THREADS'] = '2'; print(search(), threads())"
    assert run_threads(fastpath, line, "1") == ["19999998", "2"]


def test_several_threads_find_the_same_numbers_and_draw_the_same(fastpath):
    code = """
import hashlib, random
def same(call):
    results = set()
    for os.environ["OMP_NUM_THREADS"] in "12":
        results.add(call())
    return len(results) == 1
some, found = random.Random(3), []
for number in some.sample(range(10_000_000, 13_000_000), 20):
    wanted = hashlib.md5(b"%d" % number).digest()
    found.append(same(lambda: fastpath.md5_search(wanted, 10_000_000, 13_000_000)))
found.append(same(lambda: fastpath.mandelbrot(-2, 1, -1, 1, 301, 207, 0, 301, 300)))
print(all(found), threads())
"""
    assert run_threads(fastpath, code, "1") == ["True", "2"]


def test_a_child_of_a_process_that_used_several_threads_works_in_one(fastpath):
    code = """
search()
if not (child := os.fork()):
    os._exit(search() != 19_999_998 or threads() != 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_threads(fastpath, code, "2") == ["0"]


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


def test_kernels_says_what_is_at_work(fastpath, tmp_path):
    line = "print(tasks.kernels())"
    assert eval(import_tasks_from(tmp_path, line).stdout) == {"fastpath": False, "simd": "none", "openmp": False}
    shutil.copy(fastpath.__file__, tmp_path)
    wanted = {"fastpath": True, "simd": fastpath.levels()[0], "openmp": fastpath.openmp()}
    assert eval(import_tasks_from(tmp_path, line).stdout) == wanted


def test_a_level_that_is_not_there_is_refused(fastpath):
    with pytest.raises(ValueError, match="not 'mmx'"):
        fastpath._use("mmx")


def test_a_broken_build_is_heard(tmp_path):
    (tmp_path / f"fastpath{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    run = import_tasks_from(tmp_path, "print(tasks.FASTPATH)")
    assert run.returncode != 0 and "ImportError" in run.stderr
    run = subprocess.run([sys.executable, "client.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    error, why, fix = run.stderr.splitlines()
    assert run.returncode == 1 and error == "error: the compiled part cannot be used"
    assert "fastpath" in why and fix == f"  fix:   {sys.executable} -m pip install -e {tmp_path}"


# -- other builds --------------------------------------------------------------------------------------------

def compiler(folder: Path, program: str, flags: str = "", refused: str = "none") -> str:
    """A compiler that adds some flags to every command, and refuses one."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\ncase " $* " in *" {refused} "*) exit 1;; esac\nexec {program} "$@" {flags}\n')
    script.chmod(0o755)
    return str(script)


def check_build(fastpath):
    wanted = tasks.pure_mandelbrot(*RESTLESS)
    for level in fastpath.levels():
        with at_level(fastpath, level):
            assert fastpath.mandelbrot(*RESTLESS) == wanted
            assert fastpath.md5_search(digest(1_013_579), 1_000_000, 1_015_625) == 1_013_579


@pytest.mark.slow
@pytest.mark.parametrize("program", ["gcc", "clang"])
@pytest.mark.parametrize("flags", ["", "-march=native -ffp-contract=fast"])
def test_every_compiler_builds_the_same_results(program, flags, fastpath, tmp_path, monkeypatch):
    if not shutil.which(program):
        pytest.skip(f"no {program} here")
    if not flags and os.path.realpath(shutil.which(program)) == os.path.realpath(shutil.which("cc") or ""):
        check_build(fastpath)  # which it has built
        return
    monkeypatch.setenv("CC", compiler(tmp_path, program, flags))
    check_build(build_fastpath(tmp_path))


@pytest.mark.slow
def test_without_openmp_it_is_built_for_one_core(tmp_path, monkeypatch):
    if not shutil.which("cc"):
        pytest.skip("no C compiler here")
    monkeypatch.setenv("CC", compiler(tmp_path, "cc", "-O0", refused="-fopenmp"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    fastpath = build_fastpath(tmp_path)
    assert not fastpath.openmp()
    check_build(fastpath)


# -- the loops of workers and owners -------------------------------------------------------------------------------


@pytest.fixture(params=["pure", "compiled"])
def loops(request):
    """The loops over tasks, of one kind."""
    names = ("run_alike", "settle", "number_tasks", "asks_nothing")
    if request.param == "pure":
        return SimpleNamespace(**{name: getattr(tasks, f"pure_{name}") for name in names})
    compiled = request.getfixturevalue("fastpath")
    return SimpleNamespace(**{name: getattr(compiled, name) for name in names})


class Gives(tasks.Task):
    """Returns its value, or raises it."""

    def __call__(self):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class Count(int):
    """A number of a class of its own."""


def run_values(loops, *values, place=0, until=math.inf):
    results = []
    states = [{"name": str(at), "value": value} for at, value in enumerate(values)]
    told = loops.run_alike(Gives, states, place, len(states), "c1", 100, results, until)
    return told, results


def test_plain_results_are_gathered_in_order(loops):
    assert run_values(loops, 1, None, "x", b"y", 2.5, True, 3j) == (
        (7, None, None, None), [1, None, "x", b"y", 2.5, True, 3j])  # fmt: skip


def test_a_run_begins_where_it_is_told_to(loops):
    assert run_values(loops, 1, 2, 3, place=1) == ((3, None, None, None), [2, 3])


LONG = tasks.GROUP_BYTES + 1


@pytest.mark.parametrize("odd", [[1], (1,), {}, Count(3), b"x" * LONG, "x" * LONG])
def test_a_run_stops_after_a_result_that_may_not_share_a_pickle(loops, odd):
    (place, task, result, error), results = run_values(loops, 1, odd, 3)
    assert (place, task.name, result, error, results) == (2, "1", odd, None, [1])


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_run_stops_after_a_task_that_raises(loops, error):
    told, results = run_values(loops, 1, 2, error, 4)
    assert told[0] == 3 and told[1].name == "2" and told[3] is error and results == [1, 2]


def test_a_run_stops_when_its_time_is_up_but_runs_one_task_at_least(loops):
    assert run_values(loops, 1, 2, 3, until=-1.0) == ((1, None, None, None), [1])


def test_tasks_of_a_run_know_who_they_are_and_leave_their_states_alone(loops):
    state = {"name": "x", "value": [1]}
    _, task, _, _ = loops.run_alike(Gives, [None, state], 1, 2, "c7", 40, [], math.inf)
    assert task.task_id == "c7.41" and type(task) is Gives and task.value is state["value"]
    assert state == {"name": "x", "value": [1]}


def owner_of(heard, count):
    """An owner with a flight of so many tasks, as `settle` sees them."""
    made = [Gives(f"t{at}") for at in range(count)]
    owner = SimpleNamespace(closed=False, done=0, name="c1", callback=lambda *told: heard.append(told))
    return owner, SimpleNamespace(tasks=list(made), open=count, first=10), made


def test_outcomes_go_to_the_callback_in_order_and_once(loops):
    heard = []
    owner, flight, made = owner_of(heard, 4)
    flight.tasks[2] = None
    loops.settle(owner, flight, 1, ["a", "b", "c"], None, tasks.Task.finished)
    assert heard == [(made[1], "a", None), (made[3], "c", None)]
    assert (owner.done, flight.open, flight.tasks) == (2, 2, [made[0], None, None, None])
    assert [task._ordinal for task in made] == [-1, 11, -1, 13]


def test_a_handle_is_the_id_and_carries_the_task(loops):
    heard = []
    owner, flight, made = owner_of(heard, 2)
    loops.settle(owner, flight, 0, [1, 2], tasks.Handle, tasks.Task.finished)
    assert [(told, told.task) for told, _, _ in heard] == [("c1.10", made[0]), ("c1.11", made[1])]


def test_finished_of_a_task_comes_before_the_callback(loops):
    heard = []
    owner, flight, _ = owner_of(heard, 1)
    flight.tasks[0] = Finishes("f")
    flight.tasks[0].heard = heard
    loops.settle(owner, flight, 0, [5], None, tasks.Task.finished)
    assert heard[0] == "finished 5" and heard[1][1] == 5


class Finishes(Gives):
    def finished(self, result, error):
        self.heard.append(f"finished {result}")


def test_nothing_is_told_once_the_owner_is_closed(loops):
    heard = []
    owner, flight, _ = owner_of(heard, 3)
    owner.callback = lambda *told: (heard.append(told), setattr(owner, "closed", True))
    loops.settle(owner, flight, 0, [1, 2, 3], None, tasks.Task.finished)
    assert len(heard) == 1 and owner.done == 1 and flight.open == 2


def test_a_callback_that_raises_leaves_the_outcomes_after_it_untold(loops):
    owner, flight, made = owner_of([], 3)

    def fail(*told):
        raise ValueError("mine")

    owner.callback = fail
    with pytest.raises(ValueError, match="mine"):
        loops.settle(owner, flight, 0, [1, 2, 3], None, tasks.Task.finished)
    assert (owner.done, flight.open, flight.tasks) == (1, 2, [None, *made[1:]])


def test_tasks_are_numbered_in_order(loops):
    made = [Gives("a"), Gives("b")]
    loops.number_tasks(made, "c3", 7)
    assert [task.task_id for task in made] == ["c3.7", "c3.8"]


class Asking(Gives):
    """Its class says that it has a limit."""

    timeout = 5


@pytest.mark.parametrize("name", tasks.ASKS)
def test_a_task_that_asks_for_something_is_found_among_others(loops, name):
    made = [Gives(f"t{n}", value=n) for n in range(5)]
    assert loops.asks_nothing(made, tasks.ASKS) and loops.asks_nothing([], tasks.ASKS)
    setattr(made[3], name, None)
    assert not loops.asks_nothing(made, tasks.ASKS)
    assert not loops.asks_nothing([*made[:2], Asking("a")], tasks.ASKS)
    assert not loops.asks_nothing([made[0], 1], tasks.ASKS) and not loops.asks_nothing([object()], tasks.ASKS)
    loops.asks_nothing([Gives, int], tasks.ASKS)  # classes instead of tasks: packing says so


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pure", "compiled"])
def messages(request):
    """What joins and cuts the parts of messages, of one kind."""
    if request.param == "pure":
        return SimpleNamespace(join_parts=rpc.pure_join_parts, cut_parts=rpc.pure_cut_parts, bytes_in=rpc.pure_bytes_in)
    return request.getfixturevalue("fastpath")


def test_small_parts_are_one_message_with_a_table_of_their_lengths(messages):
    assert messages.join_parts([b"call", b"", b"xy"], b"HEAD") == (
        b"HEAD" b"\x03\x00" b"\x04\0\0\0" b"\0\0\0\0" b"\x02\0\0\0" b"call" b"xy")
    assert messages.join_parts([b"z"], None) == b"\x07\0\0\0" b"\x01\x00" b"\x01\0\0\0" b"z"
    assert messages.join_parts([b"z"] * rpc.MAX_PARTS, b"")[:2] == b"\x00\x10"


@pytest.mark.parametrize("odd", [bytearray(b"x"), memoryview(b"x"), [b"x"], "x", None, bytes(rpc.INLINE)])
def test_what_is_not_small_bytes_is_for_others_to_join(messages, odd):
    assert messages.join_parts([b"call", odd], b"HEAD") is None and messages.join_parts([odd], None) is None


def test_parts_that_are_simply_bytes_are_as_long_as_they_are_together(messages):
    class Several(list):
        """What counts its parts."""

    for parts in ([], (), [b""], [b"ab", b"c" * 100_000], (b"ab",), Several([b"x", b"yz"])):
        assert messages.bytes_in(parts) == sum(map(len, parts))
    for odd in (bytearray(b"x"), memoryview(b"x"), [b"x"], "x", None, 7):
        assert messages.bytes_in([b"ab", odd]) == messages.bytes_in((odd,)) == -1


def test_a_message_has_a_part_and_not_too_many(messages):
    assert messages.join_parts([], b"") is messages.join_parts([b""] * (rpc.MAX_PARTS + 1), b"") is None
    assert messages.cut_parts(b"\0\0", 0) is messages.cut_parts(b"\x01\x10" + bytes(4 * 4097), 0) is None


def test_parts_of_a_message_are_what_was_joined_wherever_it_begins(messages):
    parts = [b"call", b"", bytes(range(256)) * 200]
    for envelope in (b"", b"HEAD"):
        assert messages.cut_parts(messages.join_parts(parts, envelope), len(envelope)) == parts
    assert messages.cut_parts(messages.join_parts(parts, None), 4) == parts


def test_a_message_that_is_cut_or_too_long_is_for_others_to_refuse(messages):
    whole = messages.join_parts([b"call", b"part"], b"HEAD")
    assert all(messages.cut_parts(whole[:end], 4) is None for end in range(len(whole)))
    assert messages.cut_parts(whole + b"x", 4) is None and messages.cut_parts(b"HEAD" + whole, 4) is None
    for odd in (bytearray(whole), memoryview(whole), whole.decode("latin1"), None):
        assert messages.cut_parts(odd, 4) is None


@pytest.mark.parametrize("length", [rpc.INLINE, rpc.FRAMES, rpc.FRAMES | 1, 2**31, 2**32 - 1])
def test_parts_that_are_elsewhere_are_for_others_to_find(messages, length):
    table = struct.pack("<H2I", 2, 1, length)
    assert messages.cut_parts(table + b"c", 0) is messages.cut_parts(table + b"c" * rpc.INLINE * 2, 0) is None


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(-3, 20), st.data())
def test_whatever_becomes_of_a_message_both_cut_it_alike(fastpath, parts, start, chance):
    whole = bytearray(rpc.pure_join_parts(parts, b"HEAD"))
    for at in chance.draw(st.lists(st.integers(0, len(whole) - 1), max_size=2)):
        whole[at] = chance.draw(st.integers(0, 255))
    cut = bytes(whole[: chance.draw(st.integers(len(whole) - 1, len(whole)))])
    for begin in (4, start, 1 << 62, -(1 << 62)):
        assert fastpath.cut_parts(cut, begin) == rpc.pure_cut_parts(cut, begin)
