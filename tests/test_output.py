"""What tasks and hooks write comes home: tagged, in order, bounded; and what failed can be run again.

    print, logging, C ──> Speech, descriptors 1 and 2 ──pipe──> Ear, Output ──> master ──> task_output
"""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, PATIENCE, at_once, text_of, wait_until
from test_cli import Typed

from concurrent_swarm import client, components, master, tasks

EVERY = ("1 printed\n2 to stderr\n3 past Python\nINFO:here:4 logged\n5 by C\n6 printed\n7 by C, flushed\n8 schön\n"
         "9 by a child\n10 bytes\n11 without an end")  # fmt: skip


def peak_of(pid):
    """The most memory that a process has had, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", text_of(f"/proc/{pid}/status"))[1])


def range_in(name):
    """The ordinals of c1.17 or c1.17-40, the first and the last."""
    first, _, last = name.partition(".")[2].partition("-")
    return int(first), int(last or first)


def run(swarm, app, *settings, code=0):
    words = [word for setting in settings for word in ("--set", f"output.{setting}")]
    done = swarm.run_client("output.py", "--app", app, *words, seconds=90)
    assert done.code == code, done.err
    return done.about


# -- whose it is, and in which order -------------------------------------------------------------------------------


def test_everything_that_a_lone_task_writes_comes_home_under_its_id_and_in_order(swarm_of_module):
    said = run(swarm_of_module, "Alone", "count=3")["result"]["said"]
    assert list(said.values()) == [EVERY] * 3
    assert [re.fullmatch(r"c\d+\.(\d)", name)[1] for name in said] == ["0", "1", "2"]


@pytest.mark.parametrize("app, cleans", [("ManyPlain", 0), ("Many", 0), ("Many", 1)])
def test_in_a_flood_of_tasks_each_line_of_python_is_tagged_right_and_c_with_a_range_that_holds_it(
    swarm_of_module, app, cleans
):
    settings = ["count=1000"] + [f"cleans={cleans}"] * (app == "Many")
    about = run(swarm_of_module, app, *settings, code=1)
    printed, raw = {}, {}
    for name, text in about["result"]["said"].items():
        first, last = range_in(name)
        for number in re.findall(r"raw (\d+)", text):
            assert first <= int(number) <= last, (name, text)
            raw[int(number)] = True
        rest = re.sub(r"raw \d+\n", "", text)
        if rest:
            assert first == last, (name, rest)
            printed[first] = rest
    ending = "".join("cleaned {0}\n" for _ in range(cleans))
    wanted = {n: sorted(f"I am {n} and {n}\n{ending.format(n)}") for n in range(0, 1000, 10)}
    assert {n: sorted(text) for n, text in printed.items()} == wanted
    assert sorted(raw) == list(range(0, 1000, 10))
    assert any("-" in name for name in about["result"]["said"]), "there were leases of several tasks"


def test_a_task_that_failed_among_many_has_its_own_output_and_no_other(swarm_of_module):
    failures = run(swarm_of_module, "Chatty", "count=400", code=1)["result"]["failures"]
    assert {name.partition(".")[2]: failure["output"] for name, failure in failures.items()} == {
        str(n): f"I am {n}\n" for n in range(0, 400, 50)
    }


def test_what_the_hooks_of_a_system_print_and_log_comes_home_and_what_its_tasks_do(swarm_of_module):
    said = run(swarm_of_module, "System")["result"]["said"]
    systems = {name: text for name, text in said.items() if name.startswith("system ")}
    (number,) = (name.split()[1] for name in systems)
    assert "".join(systems.values()) == "making tasks\n" + 2 * f"INFO:{LOGGER}:one is done\n" + "gathering"
    assert said[f"{number}.0"] == said[f"{number}.1"] == EVERY


LOGGER = "concurrent_swarm.tasks.Talkative"


def test_by_default_lines_are_shown_with_their_task_and_attempt_and_cannot_steer_the_terminal(swarm_of_module):
    done = swarm_of_module.start_client("output.py", "--app", "Shown").wait()
    assert re.search(r"^\[c\d+\.0\] attempt 1 \\x1b\[31m$", done.err, re.M), done.err
    assert re.search(r"^\[c\d+\.0, attempt 2\] attempt 2 \\x1b\[31m$", done.err, re.M), done.err
    assert re.search(r"^\[c\d+\.0\] 2/2$", done.err, re.M) and "] 1/2" not in done.err
    assert not re.search("attempt 2", swarm_of_module.start_client("output.py", "--app", "Shown", "-q").wait().err)


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flood_of_output_is_counted_and_dropped_and_neither_the_slave_grows_nor_others_wait(swarm, tmp_path):
    here = swarm(workers=2)
    (slave,) = here.slaves
    run(here, "Alone", "count=3")
    before = [peak_of(slave.pid), peak_of(here.master.pid)]
    about = run(here, "Flooded", "mib=100", f"go={tmp_path / 'go'}")
    result = about["result"]
    assert result["came"] + result["dropped"] == 100 * 2**20 + len("after\n")
    assert result["came"] < (tasks.OUTPUT_BURST + about["elapsed_s"] + 1) * 2**18, "the burst, and 256 KiB a second"
    assert result["pings"] > 10
    grown = [peak_of(slave.pid) - before[0], peak_of(here.master.pid) - before[1]]
    assert max(grown) < 10 * 1024, grown


@pytest.mark.slow
@at_once
def test_output_for_a_client_that_does_not_read_is_dropped_by_the_master_and_counted(swarm, tmp_path):
    here = swarm(slave=("--set", "slave.output=100000"))
    run(here, "Alone", "count=3")
    before = peak_of(here.master.pid)
    settings = ["--set", "output.mib=30", "--set", f"output.go={tmp_path / 'go'}", "--set", "output.alone=yes"]
    reader = here.start_client("output.py", "--json", "--app", "Flooded", *settings)
    wait_until((tmp_path / "go.began").exists, "the flood is about to begin")
    reader.send(signal.SIGSTOP)
    (tmp_path / "go").touch()
    wait_until((tmp_path / "go.done").exists, "the flood is over")
    reader.send(signal.SIGCONT)
    result = reader.wait().about["result"]
    assert result["came"] + result["dropped"] == 30 * 2**20 + len("after\n")
    assert result["dropped"] > 10 * 2**20 and peak_of(here.master.pid) - before < 15 * 1024


# -- ends ----------------------------------------------------------------------------------------------------------


def test_the_last_64_kib_of_a_task_that_was_killed_are_in_its_failure_and_the_report(swarm_of_module):
    (failure,) = run(swarm_of_module, "Dies", "count=1", code=1)["result"]["failures"].values()
    assert failure["type"] == "WorkerLost" and len(failure["output"]) == 64 * 1024
    assert failure["output"].endswith("much \nlast words\n")
    report = swarm_of_module.start_client("output.py", "--app", "Dies", "-q", "--set", "output.count=1").wait()
    assert re.search("its last output:\n.*much .*\n *last words", report.err)


@pytest.mark.slow
def test_a_task_that_passes_its_limit_of_time_has_its_last_output_too(swarm_of_module):
    (failure,) = run(swarm_of_module, "Late", "count=1", code=1)["result"]["failures"].values()
    assert failure["output"] == "too slow\n" and failure["type"] != "WorkerLost"


def test_a_crash_in_c_tells_where_in_python_it_happened(swarm_of_module):
    (failure,) = run(swarm_of_module, "Crashes", "count=1", code=1)["result"]["failures"].values()
    assert "Segmentation fault" in failure["output"] and re.search(r"output\w*.py\", line \d+ in __call__",
                                                                   failure["output"]), failure  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how, kind, last", [("dies", "HostLost", "the host's last words\n"),
                                             ("raises", "ValueError", "before it\n")])  # fmt: skip
def test_the_last_output_of_a_host_is_in_the_failure_of_its_system(swarm_of_module, how, kind, last):
    failure = run(swarm_of_module, "System", f"how={how}")["result"]["failure"]
    assert failure["type"] == kind and failure["output"].endswith(last)


@pytest.mark.slow
@at_once
def test_a_host_that_takes_anothers_place_is_heard_as_another_attempt(swarm):
    result = run(swarm(journal=True), "System", "how=dies")["result"]
    assert result["failure"]["type"] == "HostLost" and result["failure"]["output"].endswith("the host's last words\n")
    assert result["attempts"] == list(range(1, master.MAX_HOSTS + 1))


# -- exceptions ----------------------------------------------------------------------------------------------------


def test_an_exception_of_an_unknown_class_has_a_stand_in_with_all_that_it_said_and_can_be_opened_later(
    swarm_of_module, tmp_path
):
    result = run(swarm_of_module, "Unknown", "count=1", f"folder={tmp_path}", code=1)["result"]
    assert result[:4] == ["TaskError", "only_here.Strange", "only_here.Strange: ('odd', 7)", ["look behind the door"]]
    assert result[4:] == ["KeyError", "'key'", True, "Strange", ["odd", 7]]


# -- a replay ------------------------------------------------------------------------------------------------------


@pytest.fixture
def failed(swarm_of_module, tmp_path, monkeypatch):
    """Runs an application of which tasks fail; returns its file and the id that the report names."""
    monkeypatch.setenv("CONCURRENT_SWARM_STATE", str(tmp_path / "state"))

    def start(name):
        app = tmp_path / "failing.py"
        app.write_text(Path(CHECKOUT, "tests", "apps", "output.py").read_text())
        access = swarm_of_module.master.folder / "keys" / "client.access"
        words = ["--app", name, "--master", swarm_of_module.address, "--access", access]
        command = [sys.executable, "client.py", app, *words]
        done = subprocess.run(list(map(str, command)), cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1, done.stderr
        return app, re.search(r"^replay: python client.py \S+ --replay (\S+)$", done.stderr, re.M)[1]

    return start


@pytest.mark.parametrize("name", ["FailsHere", "FailsThere"])
def test_a_failed_task_is_run_again_here_and_the_debugger_opens_where_it_fails(failed, name):
    app, task = failed(name)
    typed = Typed("client.py", app, "--replay", task).until(r"\(Pdb\)")
    os.write(typed.fd, b"p doubled, self.task_id\n")
    typed.until(rf"\((9422|9424|9426), '{re.escape(task)}'\)")
    os.write(typed.fd, b"q\n")
    assert typed.exit_code() == 1 and "ValueError: 94" in typed.text


def test_without_a_terminal_a_replay_prints_the_traceback_and_a_corrected_application_gives_the_result(failed):
    app, task = failed("FailsHere")
    again = replay(app, task)
    assert again.returncode == 1 and re.search(r"failing.py\", line \d+, in __call__", again.stderr)
    app.write_text(app.read_text().replace("raise ValueError(doubled)", "return doubled"))
    corrected = replay(app, task)
    assert corrected.returncode == 0 and re.fullmatch(r"result   942[246]\n", corrected.stdout), corrected.stderr
    assert "not what it was when this task failed" in corrected.stderr


def test_a_replay_of_a_task_that_is_not_kept_names_those_that_are(failed):
    app, task = failed("FailsHere")
    for wrong in ("c9.99", "../../etc/passwd"):
        missing = replay(app, wrong)
        assert missing.returncode == 2 and missing.stderr.count("error:") == 1 and task in missing.stderr


@pytest.mark.slow
def test_failed_tasks_of_a_local_swarm_are_kept_in_the_clients_own_folder_which_stays_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCURRENT_SWARM_STATE", str(tmp_path / "state"))
    command = [sys.executable, "client.py", "tests/apps/output.py", "--app", "FailsHere"]
    for where in (["--local", "--workers", "1"], ["--workers", "0"]):
        done = subprocess.run([*command, *where], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1 and "--replay c1.0" in done.stderr and "error:" not in done.stderr, done.stderr
    folder = tmp_path / "state" / "client" / "failed"
    assert sorted(file.name for file in folder.iterdir()) == ["c1.0.task", "c1.1.task", "c1.2.task"]
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600} and folder.stat().st_mode & 0o77 == 0


def test_the_newest_hundred_failed_tasks_are_kept(tmp_path):
    for number in range(105):
        path = tmp_path / f"c1.{number}.task"
        path.touch()
        os.utime(path, (number, number))
    client.Replays(tmp_path)._tidy()
    assert {file.name for file in tmp_path.iterdir()} == {f"c1.{number}.task" for number in range(5, 105)}


def replay(app, task):
    command = [sys.executable, "client.py", str(app), "--replay", task]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE,
                          stdin=subprocess.DEVNULL)  # fmt: skip


@pytest.mark.slow
def test_what_a_callback_prints_does_not_run_into_the_progress_line(swarm_of_module):
    access = swarm_of_module.master.folder / "keys" / "client.access"
    where = ("--master", swarm_of_module.address, "--access", access, "--env", Path(swarm_of_module.folder, "typed"))
    typed = Typed("client.py", CHECKOUT / "tests" / "apps" / "output.py", "--app", "Speaks", *where)
    assert typed.exit_code() == 0
    assert "busy" in typed.text and typed.text.count("from the callback") == 2
    for line in re.split(r"[\r\n]+", typed.text):
        assert "from the" not in line or re.fullmatch(r"(\[c\d+\.\d\] from the task|from the callback)", line), line


# -- the parts by themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 30, 31, 64, 1000])
def test_marks_and_characters_are_found_however_the_bytes_were_cut(size):
    parts = [(tasks.NOBODY, "before\n"), (5, "fünf\n"), (tasks.NOBODY, "between \x1e\n"), (6, "sechs"), (5, "√\n")]
    data = b"".join(text.encode() if of == tasks.NOBODY else marked(of, text) for of, text in parts)
    output = tasks.Output(1 << 20)
    for at in range(0, len(data), size):
        output.take(data[at : at + size], 0.0)
    assert output.pieces(0.0, True) == [[of, text, 0] for of, text in parts]
    assert output.last() == "".join(text for _, text in parts) and output.last(5) == "fünf\n√\n"
    output.take(b"the end\x1econc", 0.0)
    assert output.pieces(0.0, True) == [[tasks.NOBODY, "the end\x1econc", 0]], "no mark came of it"


def marked(ordinal, text):
    """What a child writes of one of many tasks."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        voice = tasks.Voice(write, lambda: ordinal)
        voice.write(text.encode())
        os.close(write)
        return pipe.read()


def test_a_line_waits_for_its_end_but_not_long():
    output = tasks.Output(1 << 20)
    output.take(b"one\ntw", 0.0)
    assert output.pieces(0.1) == [[tasks.NOBODY, "one\n", 0]]
    output.take(b"o\nthree", 0.2)
    assert output.pieces(0.3) == [[tasks.NOBODY, "two\n", 0]] and output.pieces(0.9) == []
    assert output.pieces(1.4) == [[tasks.NOBODY, "three", 0]] and not output.waits


def test_what_comes_faster_than_the_rate_is_dropped_and_counted_in_its_place():
    output = tasks.Output(1000)
    output.take(b"a" * 5000, 10.0)
    output.take(b"b" * 100, 10.0)
    output.take(b"c" * 100, 11.0)
    of = tasks.NOBODY
    assert output.pieces(11.0, True) == [[of, "a" * 4000, 0], [of, "c" * 100, 1100]]
    output.take(b"d" * 4000, 11.0)
    rest = 900 - tasks.PIECE_COST
    assert output.pieces(11.0, True) == [[of, "d" * rest, 0], [of, "", 4000 - rest]] and output.pieces(11.0, True) == []


def test_the_last_64_kib_stay_whatever_was_dropped_and_another_lease_begins_without():
    output = tasks.Output(0)
    for number in range(20_000):
        output.take(b"%09d\n" % number, 0.0)
    assert len(output.last()) == tasks.OUTPUT_KEPT and output.last().endswith("000019999\n")
    output.begin()
    assert output.last() == "" and output.pieces(0.0, True) == []


def test_many_small_pieces_cost_no_more_than_the_rate_and_the_memory_of_the_last_is_bounded():
    output = tasks.Output(1000)
    for number in range(50_000):
        output.take(tasks._marked(number) + b"x" + tasks._marked(tasks.NOBODY), 0.0)
    assert len(output.pieces(0.0, True)) < 4000 / tasks.PIECE_COST + 3 and len(output._last) <= 2048


def test_text_without_an_end_is_of_the_task_that_wrote_it_not_of_the_one_that_flushes():
    read, write = os.pipe()
    runs = [3]
    speech = tasks.Speech(write, lambda: runs[0])
    speech.write("three")
    runs[0] = 4
    speech.flush()
    speech.write("four\n")
    speech.buffer.write(b"4\n")
    os.close(write)
    output = tasks.Output(1 << 20)
    with os.fdopen(read, "rb") as pipe:
        output.take(pipe.read(), 0.0)
    assert output.pieces(0.0, True) == [[3, "three", 0], [4, "four\n4\n", 0]]


@pytest.mark.parametrize("way", ["write", "writelines", "print"])
def test_whatever_was_written_waits_to_be_flushed_and_nothing_else_does(way):
    read, write = os.pipe()
    speech = tasks.Speech(write, lambda: tasks.NOBODY)
    assert not speech.used
    {"write": speech.write, "writelines": lambda text: speech.writelines([text]),
     "print": lambda text: print(text, end="", file=speech)}[way]("no end")  # fmt: skip
    assert speech.used
    speech.flush()
    assert not speech.used and os.read(read, 100) == b"no end"
    os.close(read)
    os.close(write)


def test_what_a_thread_writes_while_another_flushes_waits_for_the_next_flush():
    class Interrupted(io.TextIOWrapper):
        def write(self, text):
            self.flush()  # as if another thread had its turn here
            return super().write(text)

    class Both(tasks.Speech, Interrupted):
        """Speech whose write is interrupted."""

    read, write = os.pipe()
    speech = Both(write, lambda: tasks.NOBODY)
    speech.write("no end")
    assert speech.used
    speech.flush()
    assert os.read(read, 100) == b"no end"
    os.close(read)
    os.close(write)


def test_a_task_that_closes_its_descriptors_ends_as_any_other(swarm_of_module):
    assert run(swarm_of_module, "Closes", "count=2")["result"]["failures"] == {}


def test_a_slave_that_tells_nonsense_about_output_is_refused():
    for nonsense in (7, [7], [[1, 2, "x"]], [[1, 2, 3, 4]], [[-1, 2, "x", 0]], [["1", 2, "x", 0]]):
        with pytest.raises(components.UsageError):
            master.check_output(nonsense)
    master.check_output([[0, 2, "text", 0]])
