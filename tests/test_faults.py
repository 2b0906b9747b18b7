"""Every fault of docs/faults.md on real processes: what a swarm does when something breaks, stops, or speaks nonsense.

A fault has a test of its name here, or one in another file that FAULTS names. The nemesis of `client.py` does the harm;
slaves and clients come to the master through its relays where the network is to fail.
"""

import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from concurrent_swarm.master import TELL_EVERY
from concurrent_swarm.slave import processes_below
from conftest import (
    CHECKOUT,
    PATIENCE,
    Running,
    at_once,
    descriptors_of,
    in_time,
    one_each,
    running,
    text_of,
    wait_until,
    zygote_of,
)
from test_durable import right
from test_recovery import Knocking, kill_and_restart, port_of, waiting

from concurrent_swarm import client, components, rpc

FAULTS_APP = "faults.py"
DEAD = rpc.TIMING.dead
NO_CONNECTION = 3  # exit code of a client that did not get in
NO_ROOM = "no application can be unpacked"

FAULTS = {
    "F01": ["test_cluster.py::test_the_work_of_a_killed_slave_ends_on_another"],
    "F02": ["test_cluster.py::test_a_task_whose_worker_is_killed_runs_again",
            "test_cluster.py::test_a_task_that_always_kills_its_worker_is_poisoned_after_three_and_the_others_end"],
    "F03": ["test_limits.py::test_a_task_that_is_stuck_ends_at_its_timeout_and_names_limit_measure_and_line"],
    "F04": ["test_limits.py::test_a_task_that_is_stuck_ends_at_its_timeout_and_names_limit_measure_and_line"],
    "F05": ["test_limits.py::test_a_task_that_takes_too_much_memory_ends_with_its_peak"],
    "F08": ["test_cluster.py::test_a_result_that_cannot_be_pickled_fails_its_task_alone"],
    "F09": ["test_cluster.py::test_an_exception_that_cannot_be_pickled_comes_home_as_a_task_error"],
    "F10": ["test_cluster.py::test_an_exception_that_cannot_be_pickled_comes_home_as_a_task_error"],
    "F12": ["test_limits.py::test_a_running_task_that_is_cancelled_with_kill_frees_its_slot_and_leaves_no_process",
            "test_limits.py::test_what_a_killed_worker_has_left_behind_ends_also_when_it_dies_by_itself"],
    "F14": ["test_output.py"
            "::test_a_flood_of_output_is_counted_and_dropped_and_neither_the_slave_grows_nor_others_wait"],
    "F15": ["test_durable.py::test_the_systems_of_a_client_that_vanishes_go_on_or_stop_by_its_choice"],
    "F17": ["test_durable.py::test_a_system_and_plain_tasks_survive_kills_of_the_master_at_random_moments",
            "test_recovery.py::test_a_task_that_outlasts_two_masters_runs_once"],
    "F18": ["test_journal.py::test_a_master_with_a_damaged_journal_ends_with_the_remedies_and_changes_nothing",
            "test_journal.py::test_a_damaged_write_ahead_log_loses_nothing_silently"],
    "F19": ["test_journal.py::test_a_master_whose_disk_is_full_refuses_new_work_ends_what_runs_and_goes_on_by_itself"],
    "F30": ["test_recovery.py::test_bad_json_is_answered_and_the_master_serves_on"],
    "F35": ["test_systems.py::test_a_hook_that_raises_ends_the_system_and_the_client_hears_hook_and_traceback",
            "test_systems.py::test_other_systems_of_the_client_do_not_notice_a_failing_one"],
    "F36": ["test_systems.py::test_the_process_of_a_system_that_hangs_ends_when_the_system_is_cancelled"],
    "F37": ["test_systems.py::test_a_hook_that_raises_ends_the_system_and_the_client_hears_hook_and_traceback"],
    "F38": ["test_durable.py::test_a_host_that_dies_is_replaced_by_one_that_repeats_what_it_did",
            "test_durable.py::test_a_host_that_dies_again_and_again_ends_its_system"],
    "F41": ["test_retries.py::test_F41_a_slave_that_fails_what_others_can_do_gets_nothing_for_a_while"],
    "F39": ["test_cluster.py::test_a_running_slave_takes_an_edited_configuration",
            "test_config.py::test_no_damage_to_a_file_ever_breaks_a_running_node"],
}  # fmt: skip

LATER = {"F23"}  # second copies of stragglers: not done yet


@one_each
def nemesis():
    with client.Nemesis(int(os.environ.get("FAULT_SEED", 1))) as one:
        yield one


def result_of(run):
    """What the application left in `self.result`; it must have ended well."""
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run.about["result"]


def words_of(app, **settings):
    """The words that choose an application of faults.py."""
    return ["--json", "--app", app, *(f"--set=faults.{key}={value}" for key, value in settings.items())]


def access(here, role):
    return str(here.master.folder / "keys" / f"{role}.access")


def far_slave(here, nemesis, workers=1):
    """A slave that reaches the master through relays; returns it and them."""
    relays, words = nemesis.way_in(here.address)
    return here.start_slave("--access", access(here, "slave"), *words, workers=workers), relays


def runs(folder, what="run-*"):
    return len(list(folder.glob(what)))


def lines(folder, name):
    return sorted(map(int, text_of(folder / name).split()))


def lost(here):
    """How many slaves the master has given up."""
    return here.proxy.status()["counters"].get("slaves lost", 0)


def serves(here):
    """The swarm takes and ends work."""
    assert result_of(here.run_client("hello.py", seconds=60)) == "Hello World"


# -- the page ------------------------------------------------------------------------------------------------------


def shown_by():
    """row -> tests that show it, as "file::test"; those of this file are found by their names."""
    found = {row: list(tests) for row, tests in FAULTS.items()}
    for name in globals():
        if match := re.match(r"test_(F\d\d)_", name):
            found.setdefault(match[1], []).append(f"test_faults.py::{name}")
    return found


def test_every_fault_has_a_test_that_exists_or_says_what_is_missing():
    rows = {f"F{n:02}" for n in range(1, 43)}
    assert shown_by().keys() == rows - LATER
    for name in (name for tests in shown_by().values() for name in tests):
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", text_of(CHECKOUT / "tests" / file), re.MULTILINE), f"there is no {name}"


def test_the_page_of_faults_has_every_row_with_the_tests_that_show_it():
    page = text_of(CHECKOUT / "docs" / "faults.md")
    rows = dict(re.findall(r"^\| (F\d\d) \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    assert rows.keys() == {f"F{n:02}" for n in range(1, 43)}
    for row, last in rows.items():
        assert re.findall(r"`(test_\w+)`", last) == [name.partition("::")[2] for name in shown_by().get(row, ())]
        assert ("not yet" in last) == (row in LATER), row


# -- the nemesis itself --------------------------------------------------------------------------------------------


@pytest.fixture
def echo():
    """The address of a service that says everything again."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(ConnectionResetError):
                while data := self.request.recv(1000):
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield rpc.format_address(*server.server_address)
        server.shutdown()


def say(line, data, seconds=PATIENCE, more=0):
    """Sends bytes and reads as many, and some more; fewer if they do not come within the time."""
    line.settimeout(seconds)
    line.sendall(data)
    heard = b""
    with suppress(TimeoutError):
        while len(heard) < len(data) + more:
            heard += line.recv(1 << 20)
    return heard


def test_a_relay_passes_everything_and_the_end_of_each_direction(nemesis, echo):
    sent = nemesis.random.randbytes(3_000_000)
    with socket.create_connection(rpc.parse_address(nemesis.relay(echo).address)) as line:
        heard, sender = [], threading.Thread(target=lambda: (line.sendall(sent), line.shutdown(socket.SHUT_WR)))
        sender.start()
        while data := line.recv(1 << 20):
            heard.append(data)
        sender.join()
    assert b"".join(heard) == sent


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_relay_holds_or_drops_a_direction_and_delays(nemesis, echo, way):
    relay = nemesis.relay(echo)
    with socket.create_connection(rpc.parse_address(relay.address)) as line:
        assert say(line, b"before") == b"before"
        nemesis.partition([relay], ways=[way])
        assert say(line, b"held", 0.1) == b""
        nemesis.heal([relay])
        assert say(line, b"!", more=4) == b"held!", "late, but all of it"
        setattr(relay, way, "drop")
        assert say(line, b"dropped", 1.0) == b"", "and it has been read by then"
        setattr(relay, way, "pass")
        relay.delay = 0.1
        began = time.monotonic()
        assert say(line, b"after") == b"after"
        assert time.monotonic() - began >= 0.2, "a tenth of a second in each direction"


def test_a_relay_resets_its_connections_and_takes_new_ones(nemesis, echo):
    relay = nemesis.relay(echo)
    with socket.create_connection(rpc.parse_address(relay.address)) as line:
        assert say(line, b"x") == b"x"
        nemesis.reset([relay])
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    with socket.create_connection(rpc.parse_address(relay.address)) as line:
        assert say(line, b"x") == b"x" and relay.resets == 1


SLEEPER = """import time, sys
while True:
    print(time.time(), flush=True)
    try:
        with open(sys.argv[1], "w") as file: file.write("room")
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.03)
"""


@pytest.fixture
def sleeper(nemesis, tmp_path):
    """A process that says the time, and whether it can write a file."""
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / "file")]
    with subprocess.Popen(command, env={**os.environ, **nemesis.environ()}, stdout=subprocess.PIPE, text=True) as one:
        yield one
        one.kill()


def state_of(pid):
    return text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


def test_a_nemesis_undoes_in_time_or_at_its_end_what_can_be_undone(nemesis, sleeper):
    sleeper.stdout.readline()
    nemesis.full_disk(sleeper.pid)
    wait_until(lambda: "File too large" in sleeper.stdout.readline(), "it cannot write")
    nemesis.jump(1e6)
    wait_until(lambda: sleeper.stdout.readline()[:1].isdigit(), "it says the time")
    wait_until(lambda: float(re.match(r"[\d.]+|", sleeper.stdout.readline())[0] or 0) > time.time() + 9e5, "it jumps")
    nemesis.pause(sleeper.pid, 1.0)
    assert wait_until(lambda: state_of(sleeper.pid) == "T", "it is stopped")
    wait_until(lambda: state_of(sleeper.pid) != "T", "it goes on by itself")
    nemesis.pause(sleeper.pid)
    wait_until(lambda: state_of(sleeper.pid) == "T", "it is stopped")
    nemesis.__exit__()
    wait_until(lambda: state_of(sleeper.pid) != "T", "it goes on")
    two = lambda: sleeper.stdout.readline() + sleeper.stdout.readline()  # noqa: E731
    wait_until(lambda: re.fullmatch(r"([\d.]+\n){2}", two()), "it can write: only the time is said")
    assert [words.split()[0] for _, words in nemesis.done] == ["no", "clocks", "pause", "pause"]


def test_the_same_seed_does_the_same():
    def done(seed):
        with client.Nemesis(seed) as one:
            acts = [one.random_fault(addresses=["127.0.0.1:1"], kill=[2**22 + 1], weights={"garbage": 3})
                    for _ in range(20)]  # fmt: skip
            return acts, [words for _, words in one.done]

    assert done(3) == done(3) != done(4)


def test_a_random_fault_needs_something_to_do_it_to(nemesis):
    with pytest.raises(components.UsageError, match="all lists are empty"):
        nemesis.random_fault()


# -- tasks and their workers ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"), [("segfault", "SIGSEGV"), ("closes_all", "worker"), ("writes_garbage", "worker")]
)
def test_F06_a_task_that_crashes_its_worker_is_poisoned_with_the_signal_and_others_go_on(swarm_of_module, how, words):
    run = swarm_of_module.run_client(FAULTS_APP, *words_of("One", how=how))
    assert run.about["result"]["good"] == "fine", run.err
    assert run.about["result"]["bad"]["kind"] == "poisoned" and words in run.about["result"]["bad"]["text"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kind", "words"), [("exits", "poisoned", "code 0"), ("sys_exits", "error", "")])
def test_F07_a_task_that_ends_its_process_has_failed_whatever_the_exit_code(swarm_of_module, how, kind, words):
    run = swarm_of_module.run_client(FAULTS_APP, *words_of("One", how=how))
    about = run.about["result"]
    assert (about["bad"]["kind"], about["good"]) == (kind, "fine") and words in about["bad"]["text"], about


def test_F11_a_result_over_the_limit_fails_its_task_with_both_numbers_and_the_worker_lives(swarm_of_module):
    size = rpc.MAX_MESSAGE + 1_000_000
    run = swarm_of_module.run_client(FAULTS_APP, *words_of("One", how="giant", size=size), seconds=60)
    about = run.about["result"]
    assert about["good"] == "fine"
    assert f"{rpc.MAX_MESSAGE:,}" in about["bad"]["text"] and "269,4" in about["bad"]["text"], about


def test_F13_a_task_that_runs_out_of_descriptors_fails_and_its_worker_goes_on(swarm_of_module):
    about = swarm_of_module.run_client(FAULTS_APP, *words_of("One", how="descriptors")).about["result"]
    assert about["bad"]["type"] == "OSError" and "Too many open files" in about["bad"]["text"]
    assert about["good"] == "fine"


def are_gone(folder):
    """Whether a bomb's processes have ended, all of them."""
    return not [pid for pid in lines(folder, "pids") if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def here():
    """A slave with two workers, for bombs."""
    with running(slaves=1, workers=2) as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize("how", ["group", "sessions", "doubling"])
def test_F12_a_fork_bomb_is_gone_within_two_seconds_names_the_limit_and_holds_up_nobody(here, tmp_path, how):
    client = here.start_client(FAULTS_APP, *words_of("Bombs", how=how, folder=tmp_path))
    zygote = zygote_of(here.slaves[0].pid)
    wait_until(lambda: processes_below(zygote, 300) > 250 or client.code is not None, "it is about to pass the limit")
    began = time.monotonic()
    wait_until(lambda: are_gone(tmp_path), "they are gone")
    assert in_time(time.monotonic() - began, 2)
    told = client.wait().about["result"]
    bomb = told["bomb"]
    assert (bomb["kind"], bomb["type"], bomb["limit"], bomb["allowed"]) == (
        "limit", "TooManyProcesses", "process_limit", 256)  # fmt: skip
    assert bomb["measured"] > 256 and "processes at once on s1; limits.process_limit of the master" in bomb["message"]
    assert told["after"] == "fine" and in_time(told["beats"], 1.0), "the machine stays usable"
    assert not here.proxy.status()["counters"].get("workers lost"), "nobody is blamed"


@pytest.mark.slow
def test_F12_a_bomb_that_outlives_its_task_is_gone_too_and_the_task_is_done(here, tmp_path):
    told = result_of(here.run_client(FAULTS_APP, *words_of("Bombs", how="left", folder=tmp_path)))
    assert type(told["bomb"]) is int and told["after"] == "fine"
    wait_until(lambda: "processes were left behind in it" in here.slaves[0].err, "its worker is ended")
    wait_until(lambda: are_gone(tmp_path), "they are gone")


@pytest.mark.slow
def test_F12_of_tasks_that_share_a_lease_only_the_bomb_fails(here, tmp_path):
    told = here.run_client(FAULTS_APP, *words_of("Bombs", how="sessions", folder=tmp_path, among=400)).about["result"]
    assert told.pop("bomb")["limit"] == "process_limit"
    assert len(told) == 802 and not [one for one in told.values() if type(one) is dict]


@pytest.mark.slow
@pytest.mark.parametrize(("own", "master", "said"), [(5, 3, "its process_limit is 5"), (-1, 3, "of the master is 3")])
@at_once
def test_F12_task_and_master_say_how_many_processes_a_task_may_have(swarm, tmp_path, own, master, said):
    here = swarm(slaves=1, workers=2, master=("--set", f"limits.process_limit={master}"))
    told = here.run_client(FAULTS_APP, *words_of("Bombs", folder=tmp_path, process_limit=own)).about["result"]
    assert said in told["bomb"]["message"] and "in __call__" in told["bomb"]["where"]


@pytest.mark.slow
@at_once
def test_F13_a_worker_that_keeps_descriptors_is_replaced_between_tasks_and_nobody_is_blamed(swarm):
    here = swarm(slaves=1, workers=1)
    told = result_of(here.run_client(FAULTS_APP, *words_of("Leaks", count=40, files=10)))
    assert not told["errors"] and max(files for _, files in told["told"]) <= 200
    workers = len({pid for pid, _ in told["told"]})
    wait_until(lambda: here.slaves[0].err.count("descriptors open, of 200") >= workers - 1, "it is said")
    assert workers >= 3 and not here.proxy.status()["counters"].get("workers lost")


@pytest.mark.slow
@at_once
def test_F13_a_worker_that_grows_is_replaced_if_the_slave_says_so(swarm):
    here = swarm(slaves=1, workers=1, slave=("--set", "slave.recycle=60"))
    told = result_of(here.run_client(FAULTS_APP, *words_of("Leaks", count=30, mebibytes=10)))
    assert not told["errors"] and len({pid for pid, _ in told["told"]}) >= 3
    assert "slave.recycle is 60 MiB" in here.slaves[0].err and "workers lost" not in here.proxy.status()["counters"]


@pytest.mark.slow
@at_once
def test_F40_a_slave_without_room_fails_tasks_with_the_reason_and_works_again_once_there_is(swarm, nemesis):
    here = swarm(slaves=1, workers=1)
    nemesis.full_disk(here.slaves[0].pid)
    run = here.run_client(FAULTS_APP, *words_of("Steady", count=3))
    assert run.code == 1 and all(NO_ROOM in text for text in run.about["result"]["errors"]), run.about
    assert {one["kind"] for one in run.about["errors"]} == {"setup"}
    nemesis.free_disk(here.slaves[0].pid)
    assert result_of(here.run_client(FAULTS_APP, *words_of("Steady", count=3))) == {"sum": 3, "errors": []}


def kinds_of(run):
    return {(one["kind"], one["type"]) for one in run.about["errors"]}


@pytest.mark.slow
@at_once
def test_F40_what_a_slave_has_no_room_for_runs_on_another(swarm, nemesis):
    here = swarm(slaves=2, workers=1)
    nemesis.full_disk(here.slaves[0].pid)
    assert result_of(here.run_client(FAULTS_APP, *words_of("Steady", count=40))) == {"sum": 780, "errors": []}
    assert here.proxy.status()["counters"]["retried"]


FORKLESS = """import os
fork = os.fork
def fails():
    if os.path.exists({flag!r}): raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fails
"""


@pytest.mark.slow
@at_once
def test_F40_tasks_whose_worker_cannot_be_forked_fail_for_want_of_room_and_no_worker_is_lost(swarm, tmp_path):
    flag = tmp_path / "no-fork"
    (tmp_path / "sitecustomize.py").write_text(FORKLESS.format(flag=str(flag)))
    here = swarm(slaves=0)
    here.start_slave(workers=1, PYTHONPATH=str(tmp_path))
    flag.touch()
    run = here.run_client(FAULTS_APP, *words_of("Steady", count=3))
    assert kinds_of(run) == {("setup", "Error")} and "temporarily unavailable" in run.about["result"]["errors"][0]
    assert "workers lost" not in here.proxy.status()["counters"]
    flag.unlink()
    assert result_of(here.run_client(FAULTS_APP, *words_of("Steady", count=3))) == {"sum": 3, "errors": []}


@pytest.mark.slow
@at_once
def test_F40_tasks_whose_application_cannot_be_read_fail_for_want_of_it_and_no_worker_is_lost(swarm):
    here = swarm(slaves=1, workers=1)
    assert result_of(here.run_client(FAULTS_APP, *words_of("Steady", count=3)))
    (manifest,) = (here.slaves[0].folder / "apps").glob("*/*.json")
    manifest.rename(manifest.with_suffix(".away"))
    (worker,) = here.workers_of(here.slaves[0])
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in here.workers_of(here.slaves[0]), "the zygote has seen its end")
    run = here.run_client(FAULTS_APP, *words_of("Steady", count=3))
    assert kinds_of(run) == {("setup", "FileNotFoundError")}
    manifest.with_suffix(".away").rename(manifest)
    assert result_of(here.run_client(FAULTS_APP, *words_of("Steady", count=3))) == {"sum": 3, "errors": []}
    assert not here.proxy.status()["counters"].get("workers lost")


@at_once
def test_F38_a_host_that_closes_its_line_has_ended(swarm):
    here = swarm(slaves=0)
    run = here.run_client(FAULTS_APP, *words_of("RunClosing"))
    assert run.code == 1 and run.about["error"]["type"] == "HostLost"


HOOKS = {"init_system": "init_system", "generate_tasks": "generate_tasks", "drawing": "generate_tasks",
         "finished": "finished", "task_finished": "task_finished", "is_complete": "is_complete",
         "gather_result": "gather_result"}  # fmt: skip


def check_hung(run, hook, how, said):
    told = run.about["result"]
    assert told["good"]["result"] == "gathered", "no other system is touched"
    bad = told["bad"]
    assert (bad["type"], bad["kind"], bad["limit"], bad["hook"]) == ("TimedOut", "limit", "hook_timeout", hook)
    assert bad["measured"] > bad["allowed"] and f"its hook {hook} ran for" in bad["message"] and said in bad["message"]
    assert "in hang" in bad["where"] and f"# stuck in {how}" in bad["traceback"]
    assert in_time(bad["after"] - bad["allowed"], 4), bad


@pytest.mark.slow
@pytest.mark.parametrize("hook", HOOKS)
def test_F36_a_hook_that_hangs_ends_its_system_at_its_hook_timeout_with_name_and_line(swarm_of_module, hook):
    how = "C" if hook in ("generate_tasks", "finished", "gather_result") else "Python"
    run = swarm_of_module.run_client(FAULTS_APP, *words_of("Hooks", hook=hook, how=how, limit=1))
    check_hung(run, HOOKS[hook], how, "its hook_timeout is 1 s")
    wait_until(lambda: not swarm_of_module.proxy.systems(), "both are gone")


@pytest.mark.slow
def test_F36_the_master_says_how_long_a_hook_may_take_and_each_draw_counts_alone(swarm):
    here = swarm(slaves=1, workers=1, master=("--set", "limits.hook_timeout=2"))
    run = here.run_client(FAULTS_APP, *words_of("Hooks", hook="drawing", pause=0.6, count=1), seconds=60)
    check_hung(run, "generate_tasks", "C", "limits.hook_timeout of the master is 2 s")
    assert run.about["result"]["good"]["after"] > 3, "all hooks together take longer than one may"


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["task_finished", "drawing"])
def test_F37_a_hook_that_hangs_in_a_system_that_goes_on_after_a_restart_ends_it_too(swarm, hook):
    here = swarm(slaves=0, journal=True)
    client = here.start_client(FAULTS_APP, *words_of("Hooks", hook=hook, how="Python", limit=3.0))
    wait_until(lambda: len(here.proxy.systems()) == 2, "the master has both")
    kill_and_restart(here)
    here.start_slave(workers=1)
    check_hung(client.wait(), HOOKS[hook], "Python", "its hook_timeout is 3 s")


def beat_of(host):
    """The number by which a host tells of its hooks; 0 while it waits."""
    with suppress(FileNotFoundError):  # it opens and closes others meanwhile
        files = [number for number, what in descriptors_of(host).items() if "memfd:stack" in what]
        return files and int.from_bytes(Path(f"/proc/{host}/fd/{files[0]}").read_bytes()[:8], sys.byteorder)
    return 0


@pytest.mark.slow
@at_once
def test_F37_the_time_of_a_suspended_machine_does_not_count_against_a_hook(swarm, nemesis):
    here = swarm(slaves=1, workers=1, master=("--set", "limits.hook_timeout=2"))
    client = here.start_client(FAULTS_APP, *words_of("Hooks", pause=1.0, count=1))
    (host,) = wait_until(lambda: here.workers_of(here.master), "the system has a process")
    wait_until(lambda: beat_of(host), "its first hook is called")
    seen = time.monotonic() + 2 * TELL_EVERY
    wait_until(lambda: time.monotonic() > seen, "the master has looked")
    nemesis.pause(host, 4.0)
    nemesis.pause(here.master.pid, 4.0)
    assert result_of(client.wait(60))["good"]["result"] == "gathered"


def test_F36_a_hook_timeout_that_is_no_number_is_refused_with_the_reason(swarm_of_module):
    run = swarm_of_module.run_client(FAULTS_APP, *words_of("Nonsense"))
    assert run.code != 0 and "has the hook_timeout 'soon'" in run.err


@pytest.mark.slow
def test_F28_a_slave_whose_workers_all_hold_the_interpreter_is_never_suspected(swarm):
    here = swarm(slaves=1, workers=2)
    run = here.run_client(FAULTS_APP, *words_of("Hogs", seconds=1.5 * DEAD), seconds=120)
    assert result_of(run) > DEAD
    assert lost(here) == 0 and "lost the master" not in here.slaves[0].err


# -- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.5, pytest.param(3, marks=pytest.mark.slow)])
@at_once
def test_F20_a_short_partition_is_nothing_but_a_delay(swarm, nemesis, tmp_path, seconds):
    here = swarm(slaves=0)
    slave, relays = far_slave(here, nemesis, workers=2)
    run = waiting(here, tmp_path, 6)
    nemesis.partition(relays, seconds)
    (tmp_path / "go").touch()
    assert result_of(run.wait()) == {"sum": 15, "errors": []}
    assert runs(tmp_path) == 6, "no task ran twice"
    assert lost(here) == 0 and "lost the master" not in slave.err


@pytest.mark.slow
def test_a_slave_that_was_removed_while_nothing_reached_it_is_not_let_in_again(swarm, nemesis):
    here = swarm(slaves=0)
    slave, relays = far_slave(here, nemesis)
    for relay in relays:
        relay.back = "drop"
    here.proxy.slave.remove(here.name_of(slave))
    assert here.proxy.slaves() == []
    nemesis.reset(relays)
    for relay in relays:
        relay.back = "pass"
    assert slave.wait().code == 3 and "was removed from the swarm by an admin" in slave.err
    here.start_slave(workers=1)


def give_to_both(here, nemesis, folder):
    """A slave behind relays and one beside the master, each of which runs a task that waits."""
    far, relays = far_slave(here, nemesis)
    near = here.start_slave(workers=1)
    run = waiting(here, folder, 4)
    wait_until(lambda: runs(folder) == 2, "both run a task")
    return far, near, relays, run


def ends_without(here, far, run, folder):
    """The master gives the far slave up, and the near one ends its work; returns when it has."""
    name = here.name_of(far)
    (folder / "go").touch()
    wait_until(lambda: f"slave {name} left (no word" in here.master.err, "the slave is given up")
    assert result_of(run.wait()) == {"sum": 6, "errors": []}
    assert sorted(text_of(folder / "callbacks").split()) == ["w0", "w1", "w2", "w3"]


def comes_back(here, far):
    """The slave that was given up has joined again, and alone it serves."""
    wait_until(lambda: here.known_to_master(far), "it has joined again")
    for slave in here.slaves:
        if slave is not far:
            slave.ends()
    serves(here)


@pytest.mark.slow
@at_once
def test_F20_after_a_long_partition_the_work_is_done_elsewhere_and_late_results_are_dropped(swarm, nemesis, tmp_path):
    here = swarm(slaves=0)
    far, _, relays, run = give_to_both(here, nemesis, tmp_path)
    nemesis.partition(relays, 15)
    ends_without(here, far, run, tmp_path)
    wait_until(lambda: here.proxy.status()["counters"].get("late report"), "its late result is dropped")
    comes_back(here, far)


@pytest.mark.slow
@at_once
def test_F22_a_master_that_hangs_for_long_is_waited_for_by_slave_and_client(swarm, nemesis, tmp_path):
    here = swarm(slaves=1, workers=1)
    run = waiting(here, tmp_path, 4)
    nemesis.pause(here.master.pid)
    for node in (here.slaves[0], run):  # three attempts to shake hands, which the kernel took, have come to nothing
        wait_until(lambda one=node: "trying on" in one.err or one.code is not None, "it has tried", 2 * PATIENCE)
        assert node.code is None, node.err
    nemesis.resume(here.master.pid)
    (tmp_path / "go").touch()
    assert result_of(run.wait(60)) == {"sum": 6, "errors": []}
    assert runs(tmp_path) == 4 and lost(here) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["there", "back"])
@at_once
def test_F21_a_partition_of_one_direction_counts_as_one_of_both(swarm, nemesis, tmp_path, way):
    here = swarm(slaves=0)
    far, _, relays, run = give_to_both(here, nemesis, tmp_path)
    nemesis.partition(relays, ways=[way])
    ends_without(here, far, run, tmp_path)
    nemesis.heal(relays)
    comes_back(here, far)


@pytest.mark.slow
@at_once
def test_F22_a_peer_that_is_stopped_while_its_connections_stay_open_is_given_up_and_may_return(
    swarm, nemesis, tmp_path
):
    here = swarm(slaves=0)
    far, _, _, run = give_to_both(here, nemesis, tmp_path)
    name = here.name_of(far)
    nemesis.pause(far.pid)
    (tmp_path / "go").touch()
    wait_until(lambda: f"slave {name} left (no word" in here.master.err, "the slave is given up")
    assert result_of(run.wait()) == {"sum": 6, "errors": []}
    nemesis.resume(far.pid)
    comes_back(here, far)


@pytest.mark.slow
@at_once
def test_F16_a_client_whose_connection_is_cut_at_random_moments_misses_nothing_and_hears_nothing_twice(
    swarm, nemesis, tmp_path
):
    here = swarm(slaves=1, workers=2)
    relays, words = nemesis.way_in(here.address)
    settings = words_of("Steady", count=400, folder=tmp_path)
    run = here.start_client(FAULTS_APP, *settings, "--access", access(here, "client"), *words)
    for share in sorted(nemesis.random.sample(range(1, 380), 8)):
        wait_until(lambda at=share: len(lines(tmp_path, "callbacks")) >= at or run.code is not None, "it goes on")
        wait_until(lambda: relays[1]._streams or run.code is not None, "there is a connection to cut")
        nemesis.reset(relays)
    assert result_of(run.wait(60)) == {"sum": sum(range(400)), "errors": []}
    assert lines(tmp_path, "callbacks") == list(range(400)) == lines(tmp_path, "ran")
    assert relays[1].resets >= 4


@pytest.mark.slow
@at_once
def test_F26_a_task_that_ran_twice_counts_once(swarm, nemesis, tmp_path):
    here = swarm(slaves=1, workers=2)
    run = here.start_client(FAULTS_APP, *words_of("Steady", count=200, pause=0.02, folder=tmp_path))
    for share in (20, 60, 100):
        wait_until(lambda at=share: len(lines(tmp_path, "callbacks")) >= at, "it goes on")
        nemesis.kill(nemesis.random.choice(nemesis.workers_of(here.slaves[0].pid)))
    assert result_of(run.wait(60)) == {"sum": sum(range(200)), "errors": []}
    assert lines(tmp_path, "callbacks") == list(range(200))
    assert len(lines(tmp_path, "began")) > 200, "something began twice"


@pytest.mark.slow
@at_once
def test_F27_a_slave_whose_connection_is_reset_every_200_ms_loses_and_repeats_nothing(swarm, nemesis, tmp_path):
    here = swarm(slaves=0)
    slave, relays = far_slave(here, nemesis, workers=2)
    run = here.start_client(FAULTS_APP, *words_of("Steady", count=500, folder=tmp_path))
    wait_until(lambda: lines(tmp_path, "ran"), "it runs")
    while run.code is None:
        before = len(lines(tmp_path, "callbacks"))
        nemesis.reset(relays)
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(0.2)
        wait_until(lambda at=before: len(lines(tmp_path, "callbacks")) > at or run.code is not None, "it goes on")
    assert result_of(run.wait(60)) == {"sum": sum(range(500)), "errors": []}
    assert lines(tmp_path, "ran") == list(range(500)) == lines(tmp_path, "callbacks")
    assert relays[1].resets >= 3 and lost(here) == 0 and "lost the master" not in slave.err


@one_each
def network():
    """A network of its own for a slave, and who pulls its cable."""
    with client.Nemesis() as nemesis:
        try:
            made = nemesis.network()
        except components.Error as error:
            pytest.skip(error.what)
        yield made, nemesis


def slave_in(here, network):
    """A slave with one worker in a network of its own, by whose cable it comes to the master."""
    host = network.host
    http, tcp = (here.master.started["address"], here.proxy.status()["addresses"]["tcp"])
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*network.command, sys.executable, str(CHECKOUT / "slave.py"), "--workers", "1",
                   "--master", f"{host}:{http.rpartition(':')[2]}", "--access", access(here, "slave"),
                   "--set", f"node.compute_address={host}:{tcp.rpartition(':')[2]}",
                   "--env", os.path.join(here.folder, "far"), "--parent", str(theirs.fileno())]  # fmt: skip
        slave = Running(command, here.environ(), os.path.join(here.folder, "far-slave"), [theirs.fileno()])
    slave.parent, slave.folder = ours, Path(here.folder, "far")
    here.running.append(slave)
    here.until_ready(slave)
    wait_until(lambda: here.proxy.slaves(), "it has joined")
    return slave


@pytest.mark.slow
@at_once
def test_F20_a_cable_that_is_pulled_for_a_moment_is_a_delay(swarm, network, tmp_path):
    network, nemesis = network
    here = swarm(slaves=0, master=("--set", f"master.host={network.host}", "--set", "master.allowed_hosts=127.0.0.1"))
    slave = slave_in(here, network)
    run = waiting(here, tmp_path, 3, "--access", access(here, "client"))
    nemesis.unplug(network)
    (tmp_path / "go").touch()
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(3)
    assert run.code is None, "nothing came through"
    nemesis.plug(network)
    assert result_of(run.wait()) == {"sum": 3, "errors": []}
    assert runs(tmp_path) == 3 and lost(here) == 0 and "lost the master" not in slave.err


# -- clocks and sleep ----------------------------------------------------------------------------------------------


def path_with(here, nemesis):
    """The search path of a node that follows the nemesis."""
    return os.pathsep.join([nemesis.environ()["PYTHONPATH"].split(os.pathsep)[0], here.environ()["PYTHONPATH"]])


@pytest.mark.slow
@at_once
def test_F24_a_clock_that_jumps_disturbs_nothing_and_one_that_is_wrong_is_named(swarm, nemesis, tmp_path):
    here = swarm(slaves=0)
    here.master.close()
    path = path_with(here, nemesis)
    here.start_master(PYTHONPATH=path)
    here.start_slave(workers=2, PYTHONPATH=path)
    run = here.start_client(FAULTS_APP, *words_of("Steady", count=600, folder=tmp_path), PYTHONPATH=path)
    for share, seconds in ((50, 86_400), (200, -86_400), (350, 3e8), (450, -3e8)):
        wait_until(lambda at=share: len(lines(tmp_path, "callbacks")) >= at, "it goes on")
        nemesis.jump(seconds)
    assert result_of(run.wait(60)) == {"sum": sum(range(600)), "errors": []}
    assert lines(tmp_path, "ran") == list(range(600)) == lines(tmp_path, "callbacks")
    assert lost(here) == 0
    wrong = here.run_client("hello.py")
    assert wrong.code == 3 and "the clock of" in wrong.err and "is wrong" in wrong.err
    assert result_of(here.run_client("hello.py", PYTHONPATH=path)) == "Hello World"


@pytest.mark.slow
@at_once
def test_F19_a_slow_disk_delays_nothing_but_the_word_that_tasks_are_safe(swarm, nemesis, tmp_path):
    here = swarm(slaves=0)
    here.master.close()
    here.start_master(journal=True, PYTHONPATH=path_with(here, nemesis))
    here.start_slave(workers=1)
    nemesis.slow_disk(8.0)
    settings = [f"--set=plain.folder={tmp_path}", "--set=plain.count=5"]
    run = here.start_client("plain.py", "--json", "--app", "Waiting", *settings)
    wait_until(lambda: runs(tmp_path), "a task runs")
    began = time.monotonic()
    assert here.proxy.ping() == "pong" and in_time(time.monotonic() - began, 1.5)
    assert not (tmp_path / "accepted").exists(), "the journal is still at it"
    nemesis.slow_disk(0)
    wait_until(lambda: (tmp_path / "accepted").exists(), "all are safe")
    (tmp_path / "go").touch()
    assert result_of(run.wait()) == {"sum": 10, "errors": []}


@pytest.mark.slow
@at_once
def test_F25_a_master_that_was_suspended_gives_nobody_up(swarm, nemesis, tmp_path):
    here = swarm(slaves=2, workers=1)
    run = waiting(here, tmp_path, 6)
    wait_until(lambda: runs(tmp_path) == 2, "both slaves run a task")
    nemesis.pause(here.master.pid, 15)
    wait_until(lambda: all("lost the master" in slave.err for slave in here.slaves), "the slaves look for it")
    (tmp_path / "go").touch()
    assert result_of(run.wait(60)) == {"sum": 15, "errors": []}
    assert runs(tmp_path) == 6 and lost(here) == 0


# -- the doors -----------------------------------------------------------------------------------------------------


def connections(stack, address, count):
    """Open TCP connections to an address."""
    made = []
    for _ in range(count):
        made.append(stack.enter_context(socket.create_connection(rpc.parse_address(address), PATIENCE)))
    return made


def request(body=b'{"jsonrpc":"2.0","method":"ping","id":1}', length=None):
    head = "POST /api/1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


class Crowd:
    """Many slaves in one process, each with a session of its own: they say hello and wait for their welcome."""

    def __init__(self, here, folder, count, sessions=16):
        import zmq

        rpc.raise_open_files()
        self.context = zmq.Context()
        self.context.max_sockets = 2 * count
        self.poller, self.waiting = zmq.Poller(), {}
        given = rpc.Access.load(access(here, "slave"))
        for n in range(count):
            if n % sessions == 0:
                keys = rpc.NodeKeys(str(folder / f"keys{n}"))
                with closing(rpc.Proxy(here.address, timeout=30)) as proxy:
                    addresses = keys.accept(given, proxy.enrol(**keys.enrolment(given, f"crowd{n}")))
            line = self.context.socket(zmq.DEALER)
            line.linger = 0
            keys.credentials(given).dress(line, f"tcp://{addresses['tcp']}")
            line.connect(f"tcp://{addresses['tcp']}")
            info = {"version": components.__version__, "node_id": f"{n:032x}", "role": "slave",
                    "resources": {"cpus": 1}, "workers": 1}  # fmt: skip
            line.send_multipart(rpc.pack(rpc.HELLO, n.to_bytes(8, "little"), 1, 0, ["hello", info, False]))
            self.waiting[line] = n
            self.poller.register(line, zmq.POLLIN)
        self.lines = list(self.waiting)

    def welcome(self):
        """Reads what has come; True when all are in."""
        for line, _ in self.poller.poll(100):
            message = rpc.unpack(line.recv_multipart())
            if message.kind == rpc.WELCOME:
                self.waiting.pop(line, None)
            assert message.kind != rpc.REFUSE, message.call
        return not self.waiting

    def close(self):
        self.context.destroy(linger=0)


@pytest.mark.slow
def test_F29_a_thousand_slaves_that_connect_at_once_are_all_let_in_within_ten_seconds(swarm, tmp_path):
    here = swarm(slaves=0)
    with ExitStack() as stack:
        began, answered = time.monotonic(), 0
        for _ in range(4):
            several = connections(stack, here.address, 250)
            for one in several:
                one.sendall(request())
            answered += sum(b"pong" in one.recv(4096) for one in several)
        assert answered == 1000 and in_time(time.monotonic() - began, 10)
    began = time.monotonic()
    with closing(Crowd(here, tmp_path, 1000)) as crowd:
        wait_until(crowd.welcome, f"{len(crowd.waiting)} still wait")
        assert here.proxy.status()["slaves"] == 1000
        assert in_time(time.monotonic() - began, 10)
    assert here.proxy.ping() == "pong"


@pytest.mark.slow
@at_once
def test_F31_slow_requests_are_cut_and_keep_no_good_client_waiting(swarm):
    here = swarm(slaves=0)
    with ExitStack() as stack:
        halves = connections(stack, here.address, 200)
        for half in halves:
            half.sendall(request(length=100)[:-1])
        (drip,) = connections(stack, here.address, 1)
        drip.sendall(request(b"", length=1000))
        began = time.monotonic()
        assert rpc.Proxy(here.address).ping() == "pong"
        assert in_time(time.monotonic() - began, 1.5)

        def all_cut():
            with suppress(OSError):
                drip.sendall(b" ")
            return all(is_closed(line) for line in (*halves, drip))

        wait_until(all_cut, "every half request is cut")
    assert rpc.Proxy(here.address).ping() == "pong"


def is_closed(line):
    """The other end has closed it; what it said before is read away."""
    line.setblocking(False)
    try:
        while line.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_F32_silent_connections_and_tls_on_the_plain_port_hold_up_nobody(swarm, nemesis):
    here = swarm(slaves=0)
    for n in range(40):
        nemesis.garbage(here.address, ("silence", "tls")[n % 2])
    began = time.monotonic()
    assert rpc.Proxy(here.address).ping() == "pong"
    assert in_time(time.monotonic() - began, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["http", "tcp"])
@at_once
def test_F33_every_kind_of_garbage_leaves_the_swarm_serving(swarm, nemesis, channel):
    here = swarm(slaves=0)
    far_slave(here, nemesis)
    for kind in client.GARBAGE:
        for _ in range(5):
            nemesis.garbage(here.proxy.status()["addresses"][channel], kind)
    serves(here)
    assert "Traceback" not in here.master.err and here.master.err.count("bad requests") <= 2


def test_F34_a_node_of_another_version_is_refused_with_both_versions(swarm, tmp_path):
    here = swarm(slaves=0)
    with Knocking(here, "slave", tmp_path, {"node_id": "x", "version": "9.9"}) as knocking:
        knocking.until(lambda: knocking.state, "an answer")
        assert knocking.state == "refused"
        assert "9.9" in str(knocking.error) and components.__version__ in str(knocking.error)


# -- the end of nodes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.slow if n else ()) for n in range(4)])
@pytest.mark.parametrize("role", ["master", "slave", "client"])
@at_once
def test_F42_a_node_that_is_told_to_end_at_any_moment_does_so_in_order(swarm, tmp_path, role, seed):
    chance, count = random.Random(f"{role}{seed}"), 900 if role == "client" else 300  # it must not end by itself before
    here = swarm(slaves=1, workers=2, journal=True)
    run = here.start_client(FAULTS_APP, *words_of("Steady", count=count, folder=tmp_path))
    share, number = chance.randrange(280), chance.choice([signal.SIGTERM, signal.SIGINT])
    wait_until(lambda: len(lines(tmp_path, "ran")) >= share, "it has come so far")
    node = {"master": here.master, "slave": here.slaves[0], "client": run}[role]
    began = time.monotonic()
    code = node.ends(number)
    assert code == (128 + number if role == "client" or number == signal.SIGTERM else 0), node.err
    assert in_time(time.monotonic() - began, 12) and "Traceback" not in node.err
    if role == "client":
        wait_until(lambda: here.proxy.status()["queued"] == 0, "its work is dropped")
        serves(here)
        return
    if role == "master":
        here.start_master(port=port_of(here), journal=True)
    else:
        here.start_slave(workers=2)
    assert result_of(run.wait(60)) == {"sum": sum(range(300)), "errors": []}
    assert lines(tmp_path, "callbacks") == list(range(300)) == lines(tmp_path, "ran")


# -- all of it together --------------------------------------------------------------------------------------------


class Soak:
    """A swarm with a master that comes back, a near slave and one behind relays; and what may happen to it."""

    def __init__(self, here, nemesis):
        self.here, self.nemesis, self.chance = here, nemesis, nemesis.random
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.words = ["--set", f"master.compute_port={free.getsockname()[1]}"]
        here.master.close()
        here.start_master(*self.words, journal=True)
        self.relays, self.far = nemesis.way_in(here.address)
        self.slaves = [self.start_slave(far) for far in (True, False)]
        self.happened = {}

    def start_slave(self, far):
        words = ["--access", access(self.here, "slave"), *self.far] if far else []
        return self.here.start_slave(*words, workers=2, ready=False), far

    def client(self, *words):
        """A client of durable.py; every second one comes by the relays."""
        far = ["--access", access(self.here, "client"), *self.far] if self.chance.random() < 0.5 else []
        return self.here.start_client("durable.py", "--json", *words, *far)

    def strike(self):
        """One thing happens."""
        names = ["fault", "kill slave", "kill master"]
        (name,) = self.chance.choices(names, [20, 1, 1])
        if name == "fault":
            (seconds,) = self.chance.choices([0.5, 2, 12], [10, 4, 1])
            nodes = [slave.pid for slave, _ in self.slaves] + ([self.here.master.pid] if seconds < 10 else [])
            workers = [pid for slave, _ in self.slaves for pid in self.nemesis.workers_of(slave.pid)]
            name = self.nemesis.random_fault(
                workers, nodes, self.relays, [self.here.address, *(one.address for one in self.relays)], seconds
            )
        elif name == "kill slave":
            victim = self.chance.randrange(len(self.slaves))
            slave, far = self.slaves[victim]
            self.nemesis.kill(slave.pid)
            slave.wait()
            self.slaves[victim] = self.start_slave(far)
        else:
            self.nemesis.resume(self.here.master.pid)
            kill_and_restart(self.here, *self.words)
        self.happened[name] = self.happened.get(name, 0) + 1


@pytest.mark.slow
@at_once
def test_whatever_happens_results_are_those_of_a_quiet_run_and_each_callback_comes_once(swarm, nemesis, tmp_path):
    """`SOAK_SECONDS` of it, 20 by default, more by hand; `FAULT_SEED` decides what happens."""
    soak, count, rounds = Soak(swarm(slaves=0), nemesis), 400, 0
    settings = [f"--set=durable.count={count}", "--set=durable.how=slow"]
    until = time.monotonic() + float(os.environ.get("SOAK_SECONDS", 20))
    while time.monotonic() < until:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        commands = [["--app", "RunSystem", *settings],
                    ["--app", "RunPlain", *settings, f"--set=durable.folder={folder}"]]  # fmt: skip
        clients = [soak.client(*words) for words in commands]
        while any(one.code in (None, NO_CONNECTION) for one in clients):
            for n, one in enumerate(clients):
                with suppress(subprocess.TimeoutExpired):
                    one.process.wait(soak.chance.uniform(0.1, 0.5))
                if one.code == NO_CONNECTION:  # the master was away when it came
                    clients[n] = soak.client(*commands[n])
            if time.monotonic() < until:
                soak.strike()
            assert time.monotonic() < until + 300, f"{nemesis.done}\n{[one.err for one in clients]}"
        system, plain = clients
        assert result_of(system) == right(count)
        assert result_of(plain) == {"total": sum(n * n for n in range(count)), "outcomes": count, "wrong": 0}
        assert lines(folder, "callbacks") == list(range(count)), "each callback came once"
        rounds += 1
    print(f"{rounds} rounds; {soak.happened}")
    assert "Traceback" not in "".join(node.err for node in soak.here.running)
