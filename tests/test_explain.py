"""Why something waits: what the board knows of a task, what people are told, and what `doctor` finds."""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from concurrent_swarm.master import LONG, STEAL_AGE
from conftest import CHECKOUT, PATIENCE, at_once, in_time, one_each, running, text_of, wait_until
from test_board import Told

from concurrent_swarm import components, rpc

GPU = {"resources": {"tags": ["gpu"]}}


def first(number, **more):
    """The options of a batch whose first task has this ordinal."""
    return {"first": number, "name": "T", **more}


# -- where a task is -----------------------------------------------------------------------------------------------


def test_a_waiting_task_is_told_its_place_in_the_line_the_turns_and_what_keeps_each_slave_from_it():
    told = Told(slaves=1, workers=1, owners=("c1", "c2"), max_lease=1)
    told("slave_joined", "s2", {"cpus": 2}, [], 2)
    told("submit", "c1", 1, 100, options=first(0))
    told("submit", "c1", 2, 10, options=first(100))
    told("submit", "c2", 1, 7, options=first(0))
    told("slave_draining", "s2")
    told("slave_joined", "s3", {"cpus": 0.5}, [], 1)
    held = len(told.board.slaves["s1"].leases)
    queued = told.board.owners["c1"].batches[1].queued
    about = told.board.explain("c1", 104, told.now + 3)
    assert (about["task"], about["state"], about["batch"], about["here"]) == ("c1.104", "waiting", 2, 3)
    assert (about["ahead"], about["attempt"], about["needs"], about["tags"]) == (queued + 4, 1, {"cpus": 1}, [])
    assert {turn["owner"]: turn["tasks"] for turn in about["turns"]} == {"c1": queued + 10, "c2": 7}
    assert about["slaves"]["s1"] == f"has 1 of 1 slots full, holds {held} leases of at most {held}"
    assert about["slaves"]["s2"] == "is draining" and about["slaves"]["s3"] == "has 0.5 cpus, 1 needed"
    assert (about["unplaceable"], about["fails_in"]) == ("", None)
    json.dumps(about, allow_nan=False)


def test_a_slave_whose_amounts_are_promised_says_how_much_of_what():
    told = Told(slaves=0)
    told("slave_joined", "s1", {"cpus": 4, "gpu": 1}, [], 4)
    needs = {"resources": {"gpu": 1}}
    told("submit", "c1", 1, 1, options=first(0, **needs))
    told.ended(*told.leases(), seconds=1.0)  # so long that one runs and none waits on the slave
    told("submit", "c1", 2, 2, options=first(1, **needs))
    assert told.board.explain("c1", 2, told.now)["slaves"] == {"s1": "has 1 of 1 gpu promised, 1 more needed"}


def test_tasks_that_came_back_count_as_ahead_of_those_behind_them():
    told = Told(workers=1, max_lease=4)
    told("submit", "c1", 1, 1, options=first(0))
    told.ended(*told.leases(), seconds=0.0025)
    told("submit", "c1", 2, 40, options=first(1))
    lease = told.leases()[0]
    told("given_back", "s1", lease.id, lease.hi - 1, lease.hi)
    queue = told.board.owners["c1"].batches[2].queue
    ahead = [told.board.explain("c1", 1 + task, told.now)["ahead"] for lo, hi, *_ in queue for task in range(lo, hi)]
    assert len(queue) > 1 and ahead == list(range(len(ahead)))


def test_a_running_task_is_told_its_slave_its_lease_and_how_many_leases_are_before_it():
    told = Told(workers=1, max_lease=1)
    told("submit", "c1", 1, 4, options=first(10))
    told.now = 2.0
    one, two = (told.board.explain("c1", ordinal, told.now) for ordinal in (10, 11))
    assert (one["state"], one["slave"], one["first"], one["last"]) == ("running", "s1", "c1.10", "c1.10")
    assert (one["since"], one["attempt"], one["before"], one["slots"]) == (2.0, 1, 0, 1)
    assert two["before"] == 1
    (lease, *_) = told.leases()
    told("worker_lost", "s1", lease.id, 0, 1, "signal 9")
    assert told.board.explain("c1", 10, told.now)["attempt"] == 2


def test_an_ended_task_is_told_its_outcome_until_that_is_settled():
    told = Told()
    told("submit", "c1", 1, 1, options=first(0))
    told("submit", "c1", 2, 1, options=first(1))
    one, two = told.leases()
    told.ended(one)
    what = {"type": "ValueError", "message": "no", "kind": "error", "traceback": "long", "where": "x"}
    told("result", "s1", two.id, 0, 1, 0.1, None, {"0": what})
    assert told.board.explain("c1", 0, told.now)["failure"] is None
    about = told.board.explain("c1", 1, told.now)
    assert (about["state"], about["slave"]) == ("ended", "s1")
    assert about["failure"] == {"type": "ValueError", "message": "no", "kind": "error"}
    told("settled", "c1", [1])
    assert told.board.explain("c1", 0, told.now) == {"task": "c1.0", "state": "settled"}


def test_a_task_that_nobody_has_is_told_why():
    told = Told()
    assert told.board.explain("c1", 3, 0.0)["state"] == "unknown"
    assert "no client or task system c9" in told.board.explain("c9", 3, 0.0)["why"]


def test_a_cancelled_task_whose_lease_is_revoked_has_ended():
    told = Told(workers=1)
    told("submit", "c1", 1, 1, options=first(0))
    told("cancel", "c1", 1)
    assert told.board.leases and told.board.explain("c1", 0, told.now)["failure"]["kind"] == "cancelled"


# -- what no slave can take ----------------------------------------------------------------------------------------


def test_a_task_that_no_slave_here_can_take_is_told_in_the_event_that_brought_it():
    told = Told(unplaceable_wait=10.0)
    effects = told("submit", "c1", 1, 12, options=first(3, **GPU))
    assert ("unplaceable", "c1", "c1.3", 12, "no slave has the tag gpu") in effects.messages
    assert not told("submit", "c1", 2, 1, options=first(15, **GPU)).messages, "once per line"
    about = told.board.explain("c1", 4, told.now + 4)
    assert (about["unplaceable"], about["fails_in"]) == ("no slave has the tag gpu", 6.0)
    assert about["slaves"] == {"s1": "lacks the tag gpu"}
    (waiting,) = told.board.unplaced(told.now)
    assert (waiting["task"], waiting["why"]) == ("c1.3", "no slave has the tag gpu")


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({"tags": ["a", "b"]}, "no slave has the tag b"),
        ({"cpus": 5}, "no slave has 5 cpus, the most is 4"),
        ({"gpu": 1}, "no slave has 1 gpu, the most is 0"),
        ({"cpus": 4, "tags": ["a"]}, "no slave has all of 4 cpus, the tag a"),
    ],
)
def test_what_is_missing_is_a_tag_else_an_amount_else_all_of_it_together(needs, why):
    told = Told(slaves=1, workers=4)
    told("slave_joined", "s2", {"cpus": 1}, ["a"], 1)
    told("submit", "c1", 1, 1, options={"resources": needs})
    assert [message[-1] for message in told.sent("unplaceable")] == [why]


def test_it_fails_after_the_wait_with_the_explanation_and_not_before():
    told = Told(slaves=7, unplaceable_wait=10.0)
    told("submit", "c1", 1, 3, options=first(0, **GPU))
    told.now = 6.0
    told("submit", "c1", 2, 2, options=first(3, **GPU))
    assert told.board.deadline == 10.0
    told.now = 9.9
    assert not told("tick").records and told.board.deadline == 10.0
    told.now = 10.0
    (record,) = told("tick").records
    (failed,) = told.sent("outcome")
    what = failed[6]["*"]
    assert record[:5] == failed[:5] == ("outcome", "c1", 1, 0, 3)
    assert (what["type"], what["kind"]) == ("Unplaceable", "unplaceable")
    assert what["message"] == "no slave has the tag gpu, for 10 s (s1, s2, s3, s4, s5 and 2 more: lacks the tag gpu)"
    assert told.board.deadline == 16.0, "each batch has the whole wait"
    told.now = 16.0
    told("tick")
    assert [message[2] for message in told.sent("outcome")] == [2] and told.board.deadline is None


def test_a_slave_that_comes_in_time_takes_it_and_the_wait_begins_anew_when_it_goes():
    told = Told(unplaceable_wait=10.0)
    told("submit", "c1", 1, 1, options=first(0, **GPU))
    told.now = 9.0
    told("slave_joined", "g", {"cpus": 1}, ["gpu"], 1)
    (lease,) = told.leases()
    assert lease.slave.id == "g"
    told("submit", "c1", 2, 30, options=first(1, **GPU))
    told.sent("unplaceable")
    told("slave_lost", "g")
    assert [message[2] for message in told.sent("unplaceable")] == ["c1.0"]
    told.now = 18.0
    assert not told("tick").records
    told.now = 19.0
    told("tick")
    assert {message[2] for message in told.sent("outcome")} == {1, 2}


def test_nothing_fails_while_no_slave_is_here_or_all_are_leaving():
    told = Told(slaves=1, unplaceable_wait=1.0)
    told("submit", "c1", 1, 1, options=first(0, **GPU))
    told("slave_draining", "s1")
    told.now = 100.0
    told("tick")
    told("slave_lost", "s1")
    told.now = 200.0
    told("tick")
    assert not told.sent("outcome") and told.board.explain("c1", 0, told.now)["unplaceable"] == ""
    told("slave_joined", "s2", {"cpus": 1}, [], 1)
    assert told.board.explain("c1", 0, told.now)["fails_in"] == 1.0


def test_without_a_wait_it_is_told_and_waits_for_ever():
    told = Told(unplaceable_wait=0.0)
    told("submit", "c1", 1, 1, options=first(0, **GPU))
    assert told.sent("unplaceable")
    told.now = 1e6
    told("tick")
    assert not told.sent("outcome") and told.board.explain("c1", 0, told.now)["fails_in"] is None


def test_what_waits_in_vain_does_not_keep_others_from_stealing():
    told = Told(workers=1, unplaceable_wait=100 * LONG)
    told("submit", "c1", 1, 1, options=first(0, **GPU))
    told("submit", "c1", 2, 1, options=first(1))
    assert told.board.deadline == told.now + STEAL_AGE


def test_what_failed_so_is_in_the_journal_and_stays_failed():
    told = Told(unplaceable_wait=1.0)
    told("submit", "c1", 1, 2, options=first(0, **GPU))
    told.now = 1.0
    told("tick")
    again = Told(slaves=0, owners=())
    again("restore", told.records)
    assert again.board.explain("c1", 1, 0.0)["failure"]["type"] == "Unplaceable"


# -- what people are told ------------------------------------------------------------------------------------------

APPS = """
import os, signal, time
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import ITaskSystem, Task

class Picky(Task):
    resources = {"tags": ["gpu"]}
    def __call__(self): return 1

class Sleeper(Task):
    def __call__(self): time.sleep(60)

class Quick(Task):
    def __call__(self):
        from concurrent_swarm import tasks
        return tasks.publish(b"x" * 100)

class Waits(ApplicationNode):
    def start_processing(self): self.push_tasks(Picky(str(n)) for n in range(12))
    def task_finished(self, task, result, error):
        self.result = f"{type(error).__name__} {error.type}, {error.kind}: {error}"
        if not self.pending: self.shutdown_main_loop()

class PickySystem(ITaskSystem):
    def generate_tasks(self, master): return [Picky("one")]

class WaitsInSystem(ApplicationNode):
    def get_task_system(self): return PickySystem()

class Sleeps(ApplicationNode):
    def start_processing(self): self.push_tasks(Sleeper(str(n)) for n in range(40))

class Forgets(ApplicationNode):
    def start_processing(self): pass

class Asks(ApplicationNode):
    def start_processing(self):
        from concurrent_swarm import rpc
        rpc.Shared("0" * 64 + "-" + "0" * 16, 1).get()

class Fetches(ApplicationNode):
    def start_processing(self): self.push_task(Quick("one"))
    def task_finished(self, task, result, error):
        os.kill(int(os.environ["MASTER"]), signal.SIGSTOP)
        self.result = len(result.get())
        self.shutdown_main_loop()
"""


@pytest.fixture(scope="module")
def apps(tmp_path_factory):
    path = tmp_path_factory.mktemp("apps") / "apps.py"
    path.write_text(APPS)
    return path


def explain(here, *words):
    return here.start("client", "--explain", *words, "--master", here.address).wait()


@pytest.mark.slow
@at_once
def test_a_client_and_the_log_say_what_no_slave_has_and_the_tasks_fail_with_it_after_the_wait(apps):
    with running(master=("--set", "master.unplaceable_wait=20")) as here:
        client = here.start_client(apps, "--app", "Waits")
        wait_until(lambda: "12 tasks of c1 wait: no slave has the tag gpu; they fail in 20 s" in here.master.err, "log")
        wait_until(lambda: "12 tasks wait: no slave has the tag gpu; see --explain c1.0" in client.err, "progress")
        told = explain(here, "c1.3")
        said = r"no slave has the tag gpu: it fails in \d+ s\n.*\n.*\n  s1 +lacks"
        assert told.code == 0 and re.search(said, told.out)
        assert client.wait().code == 1
        why = "no slave has the tag gpu, for 20 s (s1: lacks the tag gpu)"
        assert f"TaskError Unplaceable, unplaceable: Unplaceable: {why}" in client.out
        assert here.master.err.count("no slave has the tag gpu; they fail") == 1
        assert client.err.count("still waiting") == 1


@at_once
def test_the_client_of_a_task_system_hears_of_its_tasks_too(apps):
    with running() as here:
        client = here.start_client(apps, "--app", "WaitsInSystem")
        wait_until(lambda: "1 task waits: no slave has the tag gpu; see --explain 1.0" in client.err, "progress")
        assert explain(here, "1.0").code == 0
        assert client.ends(signal.SIGINT) == 130


@at_once
def test_explain_says_where_a_task_is_for_people_and_for_programs(apps):
    with running(workers=1) as here:
        client = here.start_client(apps, "--app", "Sleeps")
        wait_until(lambda: here.proxy.status()["busy"], "a task runs")
        runs_now = explain(here, "c1.0")
        assert runs_now.code == 0 and re.match(r"c1.0 Sleeper is with s1 for \d+\.\d s, alone, attempt 1", runs_now.out)
        waiting = json.loads(explain(here, "c1.39", "--json").out)
        guest = rpc.Proxy(here.address).task.explain("c1.39")  # reading needs no token
        assert waiting["state"] == guest["state"] == "waiting" and waiting.keys() == guest.keys()
        assert waiting["slaves"].keys() == {"s1"} and "slots full" in waiting["slaves"]["s1"]
        assert client.ends(signal.SIGINT) == 130


def test_explain_of_a_task_that_is_not_there_ends_with_code_1(swarm_of_module):
    unknown, wrong = explain(swarm_of_module, "c77.1"), explain(swarm_of_module, "seventeen")
    assert unknown.code == 1 and "no client or task system c77 is here" in unknown.out
    assert wrong.code == 1 and wrong.err.count("error:") == 1 and "c1.17" in wrong.err
    away = swarm_of_module.start("client", "--explain", "c1.1", "--master", "127.0.0.1:9").wait()
    assert away.code == 3 and "no master at" in away.err


@at_once
def test_a_client_whose_tasks_wait_behind_others_says_whose(apps):
    with running(workers=1) as here:
        one = here.start_client(apps, "--app", "Sleeps")
        wait_until(lambda: here.proxy.status()["busy"], "a task runs")
        two = here.start_client(apps, "--app", "Sleeps")
        said = r"tasks wait: the slaves run tasks of c1; see --explain c2\.\d+"
        wait_until(lambda: re.search(said, two.err), "why")
        assert "still waiting" not in one.err
        assert [client.ends(signal.SIGINT) for client in (one, two)] == [130, 130]


@at_once
def test_an_application_that_forgot_to_end_is_told_so(apps):
    with running() as here:
        client = here.start_client(apps, "--app", "Forgets")
        said = "still waiting: no task is out; the application ends when it calls shutdown_main_loop()"
        wait_until(lambda: said in client.err, "it says so")
        assert client.ends(signal.SIGINT) == 130


@pytest.mark.slow
@at_once
def test_a_master_that_does_not_answer_is_named_before_the_client_gives_up(apps):
    with running(slaves=0) as here:
        here.master.send(signal.SIGSTOP)
        try:
            client = here.start_client(apps, "--app", "Waits", "--wait", "1").wait()
        finally:
            here.master.send(signal.SIGCONT)
        assert client.code == 3
        said = f"still waiting: the master at {here.address} has not answered"
        assert client.err.index(said) < client.err.index("error:")


@at_once
def test_a_published_object_that_does_not_come_is_named(apps):
    with running(workers=1) as here:
        client = here.start_client(apps, "--app", "Fetches", MASTER=str(here.master.pid))
        try:
            wait_until(lambda: "still waiting: the published object" in client.err, "it says so")
        finally:
            here.master.send(signal.SIGCONT)
        assert client.wait().code == 0 and client.out == "result   100\n"


@pytest.mark.slow
@at_once
def test_a_published_object_that_nobody_sends_is_named_by_who_waits_for_it(apps):
    with running(slaves=0) as here:
        client = here.start_client(apps, "--app", "Asks")
        wait_until(lambda: "c1 waits for a published object" in here.master.err, "the master says so")
        wait_until(lambda: "still waiting: the published object 000000000000 has not come" in client.err, "so does he")
        client.wait()
        assert client.code == 1 and "the client that published it has ended, or lost it" in client.err


@at_once
def test_a_local_swarm_that_starts_slowly_says_what_is_starting(apps):
    folder = apps.with_name("slow")
    folder.mkdir()
    slow = "import sys, time\nif 'concurrent_swarm.slave' in sys.orig_argv: time.sleep(3.5)\n"
    (folder / "sitecustomize.py").write_text(slow)
    path = os.pathsep.join([str(folder), *(entry or os.getcwd() for entry in sys.path)])
    with running(slaves=0) as here:
        client = here.start("client", CHECKOUT / "samples" / "hello.py", "--local", PYTHONPATH=path).wait()
        assert client.code == 0 and client.err.count("still waiting: the local slave is starting") == 1


class Relay:
    """Passes what comes to a port of 127.0.0.2 on to a port of 127.0.0.1, and nothing else there."""

    def __init__(self, port):
        self._port = port
        self._server = socket.create_server(("127.0.0.2", 0))
        self.address = f"127.0.0.2:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                ours, _ = self._server.accept()
            except OSError:  # closed
                return
            theirs = socket.create_connection(("127.0.0.1", self._port))
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        with source, sink, suppress(OSError):  # the other direction may have closed both
            while data := source.recv(65536):
                sink.sendall(data)

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@one_each
def half_open(swarm):
    """A swarm, and an address at which its control channel answers and its compute channel does not."""
    here = swarm(slaves=0, master=("--set", "master.allowed_hosts=127.0.0.2"))
    (here.master.folder / "run").chmod(0o755)  # nobody trusts the socket file then
    relay = Relay(int(here.address.rpartition(":")[2]))
    yield here, relay.address
    relay.close()


@pytest.mark.slow
@at_once
def test_a_slave_that_only_the_control_channel_answers_says_which_port_is_silent(half_open):
    here, address = half_open
    access = here.master.folder / "keys" / "slave.access"
    slave = here.start("slave", "--master", address, "--access", access)
    said = rf"still waiting: the master at {address} lets this node in, but tcp://127.0.0.2:\d+ has not answered yet"
    wait_until(lambda: re.search(said, slave.err), "it says so")


# -- doctor --------------------------------------------------------------------------------------------------------


def doctor(role, folder, *words, **environ):
    """Runs `ROLE.py doctor` with this environment; returns its exit code and {check: (level, the rest of the line)}."""
    command = [sys.executable, CHECKOUT / f"{role}.py", "doctor", "--env", folder, *words]
    run = subprocess.run(command, env=environ, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
    assert not run.stderr, run.stderr
    rows = {line[6:19].strip(): (line[:5].strip(), line[20:]) for line in run.stdout.splitlines()}
    assert {level for level, _ in rows.values()} <= {"ok", "warn", "fail"}, run.stdout
    assert run.returncode == ("fail" in {level for level, _ in rows.values()}), run.stdout
    return run.returncode, rows


def levels(rows, *names):
    return [rows[name][0] for name in names]


@pytest.mark.parametrize("role", ["slave", "client"])
def test_doctor_finds_all_in_order_on_the_way_to_a_master_and_lets_nobody_in(swarm_of_module, role):
    here = swarm_of_module
    authorized = text_of(here.master.folder / "keys" / "authorized")
    folder = Path(here.folder, f"never-{role}")
    code, rows = doctor(role, folder, "--master", here.address, **here.environ())
    assert code == 0 and {level for level, _ in rows.values()} == {"ok"}, rows
    assert rows["join"] == ("ok", "the master would let this node in")
    assert rows["control"][1] == f"a master answers at {here.address}, 2 slaves, 2 workers"
    assert text_of(here.master.folder / "keys" / "authorized") == authorized and not folder.exists()


def test_doctor_of_a_node_that_has_joined_says_that_the_master_knows_it(swarm_of_module):
    here = swarm_of_module
    _, rows = doctor("slave", here.slaves[0].folder, "--master", here.address, **here.environ())
    assert rows["join"] == ("ok", "the master knows this node")


def test_doctor_of_a_master_finds_it_by_its_folder_whatever_its_port(swarm_of_module):
    here = swarm_of_module
    code, rows = doctor("master", here.master.folder, **here.environ())
    assert code == 0 and rows["port"] == ("ok", f"the master of this folder answers at {here.address}")
    assert levels(rows, "compute", "version", "clock", "keys") == ["ok"] * 4


@pytest.mark.parametrize("role", ["slave", "client"])
def test_doctor_without_a_master_fails_with_the_fix_and_looks_at_the_rest(tmp_path, role):
    code, rows = doctor(role, tmp_path / "e", "--master", "127.0.0.1:9", CONCURRENT_SWARM_STATE=str(tmp_path))
    assert code == 1 and levels(rows, "control", "access") == ["fail", "fail"]
    assert "fix: `python master.py`" in rows["control"][1] and f"keys/{role}.access" in rows["access"][1]
    assert levels(rows, "join", "version", "clock", "compute") == ["warn"] * 4
    assert levels(rows, "python", "disk", "payloads", "keys", "workers") == ["ok"] * 5


@pytest.mark.slow
def test_doctor_of_a_master_that_does_not_run_says_whether_its_port_is_free(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        setting = f"master.port={port}"
        code, rows = doctor("master", tmp_path / "e", "--set", setting, CONCURRENT_SWARM_STATE=str(tmp_path))
        assert code == 1 and rows["port"][1].startswith(f"port {port} is in use")
    code, rows = doctor("master", tmp_path / "e", "--set", setting, CONCURRENT_SWARM_STATE=str(tmp_path))
    assert code == 0 and rows["port"] == (
        "warn", f"127.0.0.1:{port} is free: no master runs here; fix: python master.py"
    )


def test_doctor_names_a_host_that_does_not_resolve_once(tmp_path):
    _, rows = doctor("client", tmp_path / "e", "--master", "no-such-host.invalid", CONCURRENT_SWARM_STATE=str(tmp_path))
    level, text = rows["master's name"]
    assert level == "fail" and 'cannot find the host "no-such-host.invalid"' in text
    assert rows["control"][0] == "warn"


@pytest.mark.slow
def test_doctor_does_not_hang_at_a_port_that_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        code, rows = doctor("client", tmp_path / "e", "--master", address, CONCURRENT_SWARM_STATE=str(tmp_path))
    assert code == 1 and rows["control"][1].startswith(f"{address} did not answer within 2 s")
    assert in_time(time.monotonic() - began, 10)


def test_doctor_finds_key_files_that_others_can_read_and_the_wrong_access_file(swarm_of_module, tmp_path):
    here = swarm_of_module
    keys = tmp_path / "e" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "node.json").write_text("{}")
    (keys / "node.json").chmod(0o644)
    wrong = here.master.folder / "keys" / "client.access"
    words = ("--master", here.address, "--access", wrong)
    code, rows = doctor("slave", tmp_path / "e", *words, **here.environ())
    assert code == 1 and levels(rows, "keys", "access", "join") == ["fail", "fail", "warn"]
    assert rows["keys"][1].endswith(f"fix: chmod 600 {keys / 'node.json'}")
    assert "lets in a client, and this is a slave" in rows["access"][1]


def test_doctor_finds_an_access_file_of_another_master_and_a_key_that_was_revoked(swarm_of_module, tmp_path):
    here = swarm_of_module
    other = rpc.Keyring(str(tmp_path / "other"))
    other.write_access({"http": here.address})
    words = ("--master", here.address, "--access", tmp_path / "other" / "slave.access")
    code, rows = doctor("slave", tmp_path / "e", *words, **here.environ())
    assert code == 1 and rows["join"][0] == "fail" and "wrong key" in rows["join"][1]
    node = rpc.NodeKeys(str(tmp_path / "f" / "keys"))
    rpc.Keyring(str(here.master.folder / "keys")).revoke(node.public_key)
    code, rows = doctor("slave", tmp_path / "f", "--master", here.address, **here.environ())
    assert code == 1 and rows["join"][0] == "fail" and "was revoked on the master" in rows["join"][1]


@at_once
def test_doctor_finds_a_compute_port_that_is_closed(half_open):
    here, address = half_open
    access = here.master.folder / "keys" / "slave.access"
    words = ("--master", address, "--access", access)
    code, rows = doctor("slave", Path(here.folder, "e"), *words, **here.environ())
    assert code == 1 and levels(rows, "control", "join", "compute") == ["ok", "ok", "fail"]
    text = rows["compute"][1]
    assert re.match(r"tcp://127.0.0.2:\d+ does not answer \(Connection refused\); fix: .*compute_port", text)


class OldMaster(http.server.BaseHTTPRequestHandler):
    """Answers as a master of another version would whose clock is ten minutes late."""

    def date_time_string(self, timestamp=None):
        return formatdate(time.time() - 600, usegmt=True)

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        about = {"role": "master", "version": "9.9.0", "python": "2.7.18", "slaves": 0, "workers": 0, "addresses": {}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": about}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_doctor_finds_a_clock_and_a_version_that_do_not_fit_the_master_s(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OldMaster) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        code, rows = doctor("client", tmp_path / "e", "--master", address, CONCURRENT_SWARM_STATE=str(tmp_path))
        server.shutdown()
    assert code == 1 and levels(rows, "clock", "version") == ["fail", "fail"]
    assert re.match(r"(599|60\d) s from the master's", rows["clock"][1])
    assert "pip install concurrent-swarm==9.9.0" in rows["version"][1]


def test_a_check_of_an_enrolment_lets_nobody_in_and_is_no_enrolment(tmp_path):
    ring, node = rpc.Keyring(str(tmp_path / "m")), rpc.NodeKeys(str(tmp_path / "n"))
    ring.write_access({})
    access = rpc.Access.load(str(tmp_path / "m" / "client.access"))
    asked = node.enrolment(access, "n1", "check")
    assert node.checked(access, ring.check_enrolment(asked)) is False and ring.entry(node.public_key) is None
    with pytest.raises(components.Error, match="wrong key"):
        ring.enrol(asked)
    node.accept(access, ring.enrol(node.enrolment(access, "n1")))
    assert node.checked(access, ring.check_enrolment(node.enrolment(access, "n1", "check"))) is True
    with pytest.raises(components.Unreachable, match="not signed"):
        node.checked(access, {"known": True, "public_key": access.public_key, "mac": "0"})
