"""The larger samples: their numbers, on a swarm and alone, and what they say when something is missing."""

import os
import re
import struct
import subprocess
import sys
import zlib
from array import array
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from conftest import CHECKOUT, SAMPLES, at_once, one_each

from concurrent_swarm import tasks

FACTORS = [1, 7, 100, 5000]  # of 37 columns: each alone, one that leaves a rest, and two that are larger than all
GOLDEN = [  # curvature, bend and smoothed curvature of nucleotides 18..21 of ATGCAAATTG x 5, as dnacurve prints them
    [0.58061616, 0.58163338, 0.58277938, 0.583783],
    [0.08029914, 0.11292516, 0.07675816, 0.03166286],
    [0.57923902, 0.57580064, 0.57367815, 0.57349872],
]


def load(name):
    """A sample as a module, which tasks can be packed from."""
    spec = spec_from_file_location(f"sample_{name}", SAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(section, **values):
    """`--set section.key=value` for each value."""
    return [word for key, value in values.items() for word in ("--set", f"{section}.{key}={value}")]


def run(swarm, sample, *words, **environ):
    """Runs a sample to its end, which must be a good one."""
    run = swarm.run_client(sample, *words, **environ)
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run


# -- mandelbrot ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mandelbrot():
    return load("mandelbrot")


def small(**more):
    """Settings for a picture of 37 by 23 pixels, and for none in a file."""
    return settings("mandelbrotsample", **{"width": 37, "height": 23, "iters": 30, "picture": "", **more})


def direct(width=37, height=23, iters=30):
    """The counts, computed here."""
    return tasks.mandelbrot(-2.0, 1.0, 1.0, -1.0, width, height, 0, width, iters)


WAYS = [("MandelbrotNode", "true"), ("MandelbrotSimpleNode", "true"), ("MandelbrotSimpleNode", "false")]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("optimized", ["true", "false"])
@pytest.mark.parametrize("app, batch", WAYS)
@at_once
def test_every_way_to_the_mandelbrot_set_gives_the_same_counts(swarm_of_module, app, batch, optimized, factor):
    words = small(task_batch=batch, use_optimized_task=optimized, factor=factor)
    done = run(swarm_of_module, "mandelbrot.py", "--app", app, *words)
    assert done.about["result"] == f"37 x 23 pixels, checksum {zlib.crc32(direct()):08x}"
    assert done.about["tasks"] == -(-37 // factor)
    assert done.about["steps"] == (app == "MandelbrotNode")


@at_once
def test_the_thesis_spelling_of_mandelbrot_still_counts(swarm_of_module):
    words = settings("mandlebrotsample", width=11, height=7, iters=20, picture="")
    done = run(swarm_of_module, "mandelbrot.py", "--app", "MandlebrotSimpleNode", *words)
    assert done.about["result"] == f"11 x 7 pixels, checksum {zlib.crc32(direct(11, 7, 20)):08x}"
    assert done.about["app"] == "MandelbrotSimpleNode"


@at_once
def test_the_right_spelling_comes_before_the_old_one(swarm_of_module):
    done = run(swarm_of_module, "mandelbrot.py", *small(), *settings("mandlebrotsample", width=11))
    assert done.about["result"].startswith("37 x 23 pixels")


def test_the_lazy_tasks_carry_the_coordinates_and_the_others_do_not(mandelbrot):
    lazy, optimized = (mandelbrot.Job(37, 23, 30, 5, choice) for choice in (False, True))
    sizes = [tasks.Packer({}).pack(list(job.tasks())).size for job in (lazy, optimized)]
    assert sizes[0] > 37 * 23 * 16 > 10 * sizes[1]


def decode(path):
    """(width, height, rows of three bytes a pixel) of a PNG as write_png makes it; checks its sums."""
    data, chunks, at = path.read_bytes(), {}, 8
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    lines = zlib.decompress(chunks[b"IDAT"])
    rows = [lines[start : start + 1 + 3 * width] for start in range(0, len(lines), 1 + 3 * width)]
    assert len(rows) == height and {row[0] for row in rows} == {0}
    return width, height, [row[1:] for row in rows]


def test_each_pixel_of_the_picture_is_where_its_count_belongs(mandelbrot, tmp_path):
    job, path = mandelbrot.Job(4, 3, 12, 1, True), tmp_path / "p.png"
    mandelbrot.write_png(path, 4, mandelbrot.rows_of(array("I", range(12)).tobytes(), job))
    width, height, rows = decode(path)
    assert (width, height) == (4, 3)
    found = [[rows[y][3 * x : 3 * x + 3] for y in range(3)] for x in range(4)]
    assert found == [[mandelbrot.colour(3 * x + y, 12) for y in range(3)] for x in range(4)]


@at_once
def test_mandelbrot_without_matplotlib_writes_its_picture(swarm_of_module, tmp_path, no_packages):
    path = tmp_path / "set.png"
    run(swarm_of_module, "mandelbrot.py", *small(picture=path), PYTHONPATH=no_packages)
    width, height, rows = decode(path)
    assert (width, height) == (37, 23)
    inside = [(x, y) for x in range(37) for y in range(23) if rows[y][3 * x : 3 * x + 3] == b"\0\0\0"]
    counts = array("I", direct())
    assert inside == [(x, y) for x in range(37) for y in range(23) if counts[x * 23 + y] == 30]


# -- expensive -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expensive():
    return load("expensive")


@pytest.mark.parametrize("share, workers, count, wanted", [
    (0.67, 8, 8_000_000, 2.417), (1.0, 8, 8, 8.0), (1.0, 8, 9, 4.5), (1.0, 1, 5, 1.0), (0.5, 1000, 1000, 1.998),
])  # fmt: skip
def test_amdahls_law_counts_whole_tasks(expensive, share, workers, count, wanted):
    assert expensive.amdahl(share, workers, count) == pytest.approx(wanted, abs=1e-3)


def test_the_speed_up_is_that_of_the_best_runs(expensive):
    runs = {"sequential": [(8.4, 8.0, 8.3), (8.0, 7.9, 7.9)], "task system": [(5.0, 8.8, 0), (4.0, 8.2, 0)],
            "plain tasks": [(2.0, 8.1, 0), (9.0, 8.1, 0)]}  # fmt: skip
    figures = expensive.summary(runs, count=8, workers=2)
    assert figures["speedup"] == {"sequential": 1.0, "task system": 2.0, "plain tasks": 4.0}
    assert figures["parallel_share"] == 7.9 / 8.0
    assert figures["expected"] == pytest.approx(1 / (0.0125 + 0.9875 / 2))
    assert figures["worst"]["plain tasks"] == 9.0


def test_a_task_does_its_rounds_and_measures_processor_time(expensive):
    task = expensive.ExpensiveTask("one", seed=7, rounds=3)
    number = 7
    for _ in range(3):
        number = (number * 1103515245 + 12345) % 2**31
    found, seconds = task()
    assert found == number and seconds >= 0


@pytest.mark.parametrize("batch", ["true", "false"])
@at_once
def test_the_benchmark_prints_figures_that_agree_with_each_other(swarm_of_module, batch):
    words = settings("expensivesample", num_tasks=7, time_per_task=0.01, repeats=2, task_batch=batch, picture="")
    done = run(swarm_of_module, "expensive.py", *words)
    assert done.about["tasks"] == 1 + 2 * 2 * 7  # the calibration; two ways, twice
    rows = re.findall(r"^  (sequential|task system|plain tasks) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)",
                      done.about["result"], re.MULTILINE)  # fmt: skip
    figures = {way: [float(number) for number in numbers] for way, *numbers in rows}
    alone = figures["sequential"][0]
    assert len(figures) == 3
    for best, worst, cpu, speedup in figures.values():
        assert 0 < best <= worst and cpu > 0
        assert speedup == pytest.approx(alone / best, rel=0.05, abs=0.01)
    expected, share = (float(re.search(pattern, done.about["result"]).group(1))
                       for pattern in (r" ([\d.]+) expected\n", r"N = 2 workers, P = ([\d.]+) of"))  # fmt: skip
    assert expected == pytest.approx(1 / ((1 - share) + share * 4 / 7), abs=0.01)  # the busier worker does 4 of the 7


@pytest.mark.slow
@at_once
def test_the_benchmark_draws_its_picture(swarm_of_module, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib: pip install -e '.[samples]'")
    path = tmp_path / "e.png"
    words = settings("expensivesample", num_tasks=2, time_per_task=0.001, repeats=1, picture=path)
    done = run(swarm_of_module, "expensive.py", *words)
    assert path.read_bytes().startswith(b"\x89PNG") and f"wrote {path}" in done.err


# -- dna -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def np():
    return pytest.importorskip("numpy", reason="DNA curvature needs numpy: pip install -e '.[samples]'")


@pytest.fixture(scope="module")
def dna(np):
    return load("dna")


def letters(length, pattern="ATGCAAATTG"):
    return (pattern * length)[:length]


def test_the_curvature_has_the_published_values(dna, np):
    _, curvature = dna.curved(letters(50), "trifonov")
    assert np.round(curvature[:, 18:22], 8).tolist() == GOLDEN


def one_step_at_a_time(dna, np, sequence, model):
    """The frames in the literal way: each matrix moves all nucleotides before it, n * n / 2 products."""
    known, frames = dna.matrices(model), np.array([np.eye(4)] * len(sequence))
    for i in range(len(sequence) - 1):
        for j in range(i + 1):
            frames[j] = frames[j] @ known[sequence[i : i + 2]]
    return frames


@pytest.mark.parametrize("model", ["straight", "aawedge", "calladine", "trifonov", "desantis", "reversed"])
def test_the_scan_equals_one_step_at_a_time(dna, np, model):
    sequence = letters(70, "GATTACACCGTGGCTAAAAC")
    frames = dna.frames_of(dna.steps_of(sequence, model))
    slow = one_step_at_a_time(dna, np, sequence, model)
    assert np.abs(frames - slow).max() < 1e-9
    assert np.abs(dna.curvature_of(frames) - dna.curvature_of(slow)).max() < 1e-9


def test_a_straight_model_has_no_curvature(dna, np):
    path, curvature = dna.curved(letters(200), "straight")
    whole_turns = dna.inside(curvature.T, dna.HALO)
    assert whole_turns.shape == (160, 3) and np.abs(whole_turns).max() < 1e-9
    assert np.linalg.norm(path[-1] - path[0]) == pytest.approx(199 * dna.RISE)


def test_the_path_is_turned_and_centred(dna, np):
    path, _ = dna.curved(letters(300, "GATTACACCGTGGCTAAAAC"), "trifonov")
    assert path[0, 1:] == pytest.approx(path[-1, 1:], abs=1e-9) and path[-1, 0] > path[0, 0]
    bow = path[:, 1:] - path[0, 1:]
    farthest = bow[np.argmax(np.linalg.norm(bow, axis=1))]
    assert farthest[0] == pytest.approx(0, abs=1e-9) and farthest[1] > 0
    assert path.min(axis=0) + path.max(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)


SIZES = [(2, 1), (3, 500), (11, 4), (30, 7), (50, 1), (50, 10), (97, 13), (1000, 20), (1003, 500), (10_000, 999)]


@pytest.mark.parametrize("length, factor", SIZES)
@at_once
def test_blocks_on_the_swarm_equal_the_whole_alone(swarm_of_module, dna, np, tmp_path_factory, length, factor):
    table = tmp_path_factory.mktemp("table") / "t.tsv"
    words = settings("dnasample", length=length, factor=factor, table=table, picture="", verify="false")
    done = run(swarm_of_module, "dna.py", *words)
    path, curvature = dna.curved(letters(length), "trifonov")
    found = np.loadtxt(table, ndmin=2)
    assert found.shape == (length, 6)
    assert np.abs(found[:, :3] - path).max() < 1e-9 * max(1, np.abs(path).max())
    assert np.abs(found[:, 3:] - curvature.T).max() < 1e-9
    assert (done.about["steps"], done.about["tasks"]) == (2, 2 * -(-length // factor))


@at_once
def test_the_swarm_gets_the_published_values(swarm_of_module, np, tmp_path):
    table = tmp_path / "t.tsv"
    run(swarm_of_module, "dna.py", *settings("dnasample", length=50, factor=9, table=table, picture=""))
    assert np.round(np.loadtxt(table)[18:22, 3:].T, 8).tolist() == GOLDEN


@at_once
def test_the_overload_adds_up_what_the_windows_return(swarm_of_module, dna, np):
    words = settings("dnasample", windows=400, window=60, sequence="GATTACACCGTGGCTAAAAC", picture="")
    done = run(swarm_of_module, "dna.py", "--app", "DNAOverloadNode", *words)
    frames = dna.frames_of(dna.steps_of(letters(460, "GATTACACCGTGGCTAAAAC"), "trifonov"))
    squares = [np.sum((frames[i + 60, 3, :3] - frames[i, 3, :3]) ** 2) for i in range(400)]
    assert done.about["result"] == f"400 windows, {np.mean(squares) ** 0.5:,.1f} Å across 60 nucleotides"
    apart = re.search(r"differs from the computation without a swarm by (\S+) of", done.err)
    assert float(apart[1]) < 1e-9


def test_windows_carry_128_bytes_a_nucleotide_and_return_16(dna):
    window = dna.WindowTask("one", steps=dna.steps_of(letters(801), "trifonov"))
    assert 128 * 800 < tasks.Packer({}).pack([window]).size < 128 * 800 + 1000
    assert window().nbytes == 16 * 800


@at_once
def test_dna_that_is_none_is_refused(swarm_of_module, np):
    done = swarm_of_module.start_client("dna.py", *settings("dnasample", sequence="ATGX")).wait()
    assert done.code == 2
    assert "dnasample.sequence = ATGX" in done.err and "A, C, G and T" in done.err and "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("app, more", [("DNACurveNode", {"length": 50}), ("DNACurveNode", {"length": 3000}),
                                       ("DNACurveNode", {"length": 5, "model": "straight"}),
                                       ("DNAOverloadNode", {"windows": 5, "window": 9})])  # fmt: skip
@at_once
def test_dna_draws_its_picture(swarm_of_module, np, tmp_path_factory, app, more):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib: pip install -e '.[samples]'")
    path = tmp_path_factory.mktemp("picture") / "d.png"
    run(swarm_of_module, "dna.py", "--app", app, *settings("dnasample", picture=path, **more))
    assert path.read_bytes().startswith(b"\x89PNG")


# -- what is not installed -----------------------------------------------------------------------------------------


def without(folder, *names):
    """A search path on which these packages are not to be found."""
    for name in names:
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        (folder / f"{name}.py").write_text(text)
    return os.pathsep.join([str(folder), *(entry or os.getcwd() for entry in sys.path)])


@one_each
def no_packages(tmp_path):
    return without(tmp_path, "numpy", "matplotlib")


@one_each
def no_matplotlib(tmp_path):
    return without(tmp_path, "matplotlib")


def test_dna_without_numpy_says_what_to_install(tmp_path, no_packages):
    environ = {**os.environ, "PYTHONPATH": no_packages, "CONCURRENT_SWARM_STATE": str(tmp_path)}
    command = [sys.executable, "client.py", "samples/dna.py", "--workers", "0"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert 'cannot import "numpy"' in done.stderr and "pip install 'concurrent-swarm[samples]'" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 3


@at_once
def test_a_slave_without_numpy_fails_the_tasks_by_its_name(swarm, np, no_packages):
    here = swarm(slaves=0)
    here.start_slave(PYTHONPATH=no_packages)
    done = here.start_client("dna.py", *settings("dnasample", length=50, picture="")).wait()
    assert done.code == 1
    assert "No module named 'numpy'" in done.err and "pip install 'concurrent-swarm[samples]'" in done.err


@at_once
def test_expensive_without_matplotlib_gives_its_figures_and_says_why_no_picture(swarm_of_module, no_packages):
    words = settings("expensivesample", num_tasks=2, time_per_task=0.001, repeats=1)
    done = run(swarm_of_module, "expensive.py", *words, PYTHONPATH=no_packages)
    assert "no picture: matplotlib is not installed" in done.err and "[samples]" in done.err
    assert done.about["result"].startswith("speed-up ")


@at_once
def test_dna_without_matplotlib_gives_its_figures_and_says_why_no_picture(swarm_of_module, np, no_matplotlib):
    done = run(swarm_of_module, "dna.py", *settings("dnasample", length=50), PYTHONPATH=no_matplotlib)
    assert "no picture: matplotlib is not installed" in done.err and "[samples]" in done.err
    assert done.about["result"].startswith("50 nucleotides, ")
