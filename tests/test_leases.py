"""Leases of one quick task each: a worker has some ahead of it, and nothing is lost, repeated, mixed up or held up."""

import os
import platform
import re
import signal
import socket

import pytest
from conftest import at_once, one_each, wait_until
from test_board import Told

from concurrent_swarm import components, master, rpc, slave, tasks

ALONE = ("--set", "master.max_lease=1")
AT = 60  # which task is the odd one: those before it were quick


def words_of(**settings):
    return [word for name, value in settings.items() for word in ("--set", f"leases.{name}={value}")]


def run(here, app="Row", code=0, **settings):
    done = here.run_client("leases.py", "--app", app, *words_of(**settings))
    assert done.code == code, done.err
    assert done.about["result"], done.err
    return done.about["result"]


def status_of(slave):
    return rpc.Proxy(slave.started["address"]).status()


@one_each
def blocked(swarm, tmp_path):
    """A swarm with one worker, which runs a task that waits and has others ahead; its client, and the worker."""
    here = swarm(slaves=1, workers=1, master=ALONE)
    client = here.start_client("leases.py", "--json", "--app", "Row", *words_of(at=AT, folder=tmp_path))
    (mark,) = wait_until(lambda: list(tmp_path.glob("pid-*")), "the odd task runs")
    wait_until(lambda: status_of(here.slaves[0])["ahead"], "others are ahead")
    return here, client, int(mark.name.partition("-")[2])


def ended(client, code=0):
    assert client.wait().code == code, client.err
    return client.about["result"]


@pytest.mark.slow
@at_once
def test_a_worker_that_dies_takes_only_the_task_that_it_ran_with_it(swarm):
    here = swarm(slaves=1, workers=1, master=ALONE)
    told = run(here, code=1, at=AT, what="die")
    assert {number: one["kind"] for number, one in told["failures"].items()} == {str(AT): "poisoned"}
    assert told["again"] == {}, "others were blamed"


@at_once
def test_what_a_killed_worker_had_ahead_runs_on_another_as_its_first_attempt(blocked, tmp_path):
    _, client, worker = blocked
    (tmp_path / "go").touch()
    os.kill(worker, signal.SIGKILL)
    told = ended(client)
    assert told["failures"] == {} and told["again"] in ({}, {str(AT): "2"})


@at_once
def test_what_a_worker_has_ahead_never_runs_once_it_is_cancelled(blocked, tmp_path):
    here, client, _ = blocked
    (tmp_path / "cancel").touch()
    told = ended(client, code=1)
    assert {one["kind"] for one in told["failures"].values()} == {"cancelled"}
    assert str(AT) in told["failures"]
    wait_until(lambda: not (status_of(here.slaves[0])["running"]), "the worker ends")
    assert not (tmp_path / "later").exists()
    assert run(here, count=20)["failures"] == {}, "the slave goes on"


@pytest.mark.slow
@at_once
def test_what_a_worker_has_ahead_survives_a_new_session(blocked, tmp_path):
    """The slave says what it holds, and what is ahead is a part of it."""
    here, client, _ = blocked
    held = status_of(here.slaves[0])["ahead"]
    here.slaves[0].send(signal.SIGSTOP)
    try:
        wait_until(lambda: not here.proxy.slaves(), "the master has given it up")
    finally:
        here.slaves[0].send(signal.SIGCONT)
    wait_until(lambda: here.proxy.slaves() and here.proxy.slaves()[0]["leases"] > held, "it came back with its leases")
    (tmp_path / "go").touch()
    told = ended(client)
    assert told["failures"] == {} and told["again"] == {}


@pytest.mark.slow
def test_a_flood_of_quick_tasks_holds_nobody_else_up(swarm):
    here = swarm(slaves=1, workers=1, master=ALONE)
    flood = here.start_client("leases.py", "--json", "--app", "Row", *words_of(count=200_000))
    wait_until(lambda: here.proxy.status()["done"] > 1000, "the flood is there")
    assert run(here, count=1)["failures"] == {}
    assert flood.code is None, "the flood ended first"
    flood.ends(signal.SIGKILL)


@pytest.mark.slow
@at_once
def test_a_slave_that_is_given_fewer_workers_in_a_flood_uses_fewer(swarm):
    here = swarm(slaves=1, workers=2, master=ALONE)
    flood = here.start_client("leases.py", "--json", "--app", "Row", *words_of(count=200_000))
    wait_until(lambda: status_of(here.slaves[0])["running"] == 2, "both workers run")
    here.proxy.slave.set_workers(here.name_of(here.slaves[0]), 1)
    wait_until(lambda: status_of(here.slaves[0])["free"]["cpus"] >= 0, "one worker has ended")
    assert flood.code is None
    flood.ends(signal.SIGKILL)


@pytest.mark.slow
@at_once
def test_what_quick_tasks_print_is_told_as_of_each_and_what_passes_python_with_a_range_that_holds_it(swarm):
    here = swarm(slaves=1, workers=1, master=ALONE)
    told = run(here, "Talk", code=1)
    raw = set()
    for name, text in told["said"].items():
        first, _, last = name.partition(".")[2].partition("-")
        mine = [int(number) for number in re.findall(r"I am (\d+)", text)]
        assert mine in ([], [int(first)]) and (not mine or not last), (name, text)
        for number in map(int, re.findall(r"raw (\d+)", text)):
            assert int(first) <= number <= int(last or first), (name, text)
            raw.add(number)
    assert raw == set(range(200))
    assert [re.findall(r"I am \d+", one["output"]) for one in told["failures"].values()] == [
        [f"I am {number}"] for number in (49, 99, 149, 199)
    ]


# -- what slaves report in one turn --------------------------------------------------------------------------------


@pytest.fixture
def node(master_here, monkeypatch):
    """A master in this process with a slave and a client; what it sends, and to whom."""
    made = master_here("master.max_lease=1")
    made.sent, made.told = [], []
    made._peers.update(s1=peer("slave", 1), c1=peer("client", 2))
    monkeypatch.setattr(made.channel, "gather", lambda *sent: (made.told.append(sent[0]), made.sent.append(sent[1])))
    made.board.slave_joined("s1", {"cpus": 4}, [], 4, 0.0)
    made.board.owner_joined("c1", "client", 0.0)
    made.board.owner_attached("c1", 0.0)
    yield made
    made._peers.clear()


def peer(role, number):
    return rpc.Peer(rpc.Session(bytes([number] * 8), rpc.TIMING, 0.0), role, "key", f"n{number}")


def leases_of(node):
    """The leases that were sent since the last time."""
    found = [node.board.leases[call[1]] for call in node.sent if call[0] == "lease"]
    node.sent.clear()
    node.told.clear()
    return found


def report(node, lease, failures=()):
    node.take_result("s1", lease.id, lease.lo, lease.hi, dict(failures), [b"result"], [0, 2, 1, 0, 0])


@pytest.fixture
def several(node):
    """Leases of one quick task each that are out, of a batch that has more."""
    node.apply(node.board.submit("c1", 1, 1000, 0.0, payload=[b"head", b"common", *[b"task"] * 1000],
                                 options={"first": 0, "name": "quick"}))  # fmt: skip
    for _ in range(20):
        leases = leases_of(node)
        if len(leases) > 2 * master.TOGETHER:
            return leases
        for lease in leases:
            report(node, lease)
        node.loop._end_turn()
    raise AssertionError("so many were never out")


def test_what_slaves_report_in_a_turn_is_told_and_replaced_at_its_end(node, several):
    for lease in several[:3]:
        report(node, lease)
    assert node.sent == []
    node.loop._end_turn()
    assert [call[:4] for call in node.sent[:3]] == [["outcome", 1, lease.lo, lease.hi] for lease in several[:3]]
    assert [call[0] for call in node.sent[3:]] == ["lease"] * 3


def test_reports_of_a_turn_count_before_what_comes_after_them(node, several):
    report(node, several[0])
    node.apply(node.board.cancel("c1", None, 1.0))
    assert node.sent[0][:5] == ["outcome", 1, several[0].lo, several[0].hi, 1e-6], "it has its result"
    assert "cancelled" in {one["kind"] for call in node.sent[1:] if call[0] == "outcome" for one in call[5].values()}
    ended = [number for call in node.sent if call[0] == "outcome" for number in range(call[2], call[3])]
    assert len(ended) == len(set(ended)) and several[0].lo in ended


def test_a_failure_is_told_at_once_and_so_are_many_reports(node, several):
    report(node, several[0])
    report(node, several[1], {str(several[1].lo): {"kind": "error", "type": "ValueError", "message": "no"}})
    assert [call[2] for call in node.sent if call[0] == "outcome"] == [lease.lo for lease in several[:2]]
    node.sent.clear()
    for lease in several[2 : master.TOGETHER + 1]:
        report(node, lease)
    assert node.sent == []
    report(node, several[master.TOGETHER + 1])
    assert [call[0] for call in node.sent] == ["outcome"] * master.TOGETHER + ["lease"] * master.TOGETHER


def test_what_was_reported_when_the_host_of_a_system_is_found_dead_is_of_the_past_for_the_next_one(node):
    system = node.systems["1"] = master.System("1", "c1", 1, "app", "bundle", {}, 0.0)
    ours, theirs = socket.socketpair()
    system.pipe, system.ear = rpc.Pipe(node.loop, ours, None, None), tasks.Ear(node.loop, 1000)
    system.witness = tasks.Witness(system.pipe)
    node.board.owner_joined("1", "system", 0.0)
    node.board.owner_attached("1", 0.0)
    node.apply(node.board.submit("1", 1, 1, 0.0, payload=[b"head", b"common", b"task"],
                                 options={"first": 0, "name": "quick"}))  # fmt: skip
    (lease,) = leases_of(node)
    report(node, lease)
    node._host_died(system, "signal 9")
    assert system.late == [], "it hears of it with its history"
    assert b"outcome" in theirs.recv(10_000) + theirs.recv(10_000), "the stack's file comes before"
    system.pipe.close()
    theirs.close()
    os.close(system.ear.theirs)


def test_no_lease_that_a_slave_gets_on_a_new_connection_was_made_for_the_last_one(node, several):
    report(node, several[0])
    info = {"version": components.__version__, "python": platform.python_version(), "resources": {"cpus": 4},
            "workers": 4, "node_id": "n1"}  # fmt: skip
    new = peer("slave", 3)
    assert node._hello(new, info)["name"] == "s1"
    got = [call[1] for whom, call in zip(node.told, node.sent, strict=True) if whom is new and call[0] == "lease"]
    assert got and set(got) == set(node.board.leases)


def test_what_is_reported_is_sent_before_it_is_seen(node, several, monkeypatch):
    node.tell_spans()
    monkeypatch.setattr(master, "AT_ONCE", 1)
    node.spans.ears.append(lambda spans: node.sent.append(["span", *(span.first for span in spans)]))
    report(node, several[0])
    node.loop._end_turn()
    assert [call[0] for call in node.sent] == ["outcome", "lease", "span"] and node.sent[-1] == ["span", several[0].lo]


def test_what_a_slave_has_reported_is_seen_before_what_it_leaves_behind_and_that_it_is_gone(node, several, monkeypatch):
    node.tell_spans()
    seen, slave = [], node._peers["s1"]
    slave.label = "s1"
    node.spans.ears.append(lambda spans: seen.extend(span.first for span in spans))
    monkeypatch.setattr(node.gallery, "slave_gone", lambda *details: seen.append("gone"))
    report(node, several[0])
    report(node, several[1])
    node._lost(slave, rpc.LEFT)
    assert seen[:2] == [several[0].lo, several[1].lo] and seen[-1] == "gone"


# -- what a report tells of its time -------------------------------------------------------------------------------


def test_a_span_speaks_of_the_master_s_time_whatever_the_slave_s_clock_says():
    told = Told(slaves=1, workers=1)
    told("submit", "c1", 1, 1, options={"name": "n", "first": 100, "classes": [["m", "Square", False]]})
    (lease,) = told.leases()
    facts = "c1", 100, 1, 1, 1, "s1", 0.0, lease.since, lease.since + 1, 7, "Square", 9, 5
    found = master.span_of(*facts, 3, 250_000, 50_000, 1_000, 2_000)
    assert (found.owner, found.first, found.tasks, found.failed, found.attempt) == ("c1", 100, 1, 1, 1)
    assert (found.slave, found.lane, found.step, found.kind, found.received) == ("s1", 3, 7, "Square", 5)
    assert [round(found.heard - at, 6) for at in (found.began, found.ended)] == [0.25, 0.05]
    assert (found.opening, found.packing) == (0.001, 0.002)
    early = master.span_of(*facts, 0, 10**12, 10**11, 0, 0)
    assert early.leased == early.began == early.ended, "nothing began before its lease"


@pytest.mark.parametrize("spent", [None, [1], [0, 0, 0, 0, -1], [0, 0, 0, 0, 1.5], [0] * 6, "01234"])
def test_a_report_that_tells_nonsense_of_its_time_is_refused(spent):
    with pytest.raises(components.UsageError):
        master.check_report(1, 0, 1, {}, spent)


@pytest.mark.parametrize("said", [[], [10**20] * 4, [1 << 62, 0, -5, 0], [0, 0, 10**20, 0]])
def test_times_of_a_worker_that_cannot_be_count_as_none(said):
    told = slave.Worker(1, "", "", 0.0).ago(said)
    master.check_report(1, 0, 1, {}, told)
    assert told == [0] * 5


@pytest.mark.parametrize("said", [None, [1, 2], ["a", 1, 1, 1], [1, 1, 1, 1.0], {}])
def test_a_worker_that_says_its_times_in_other_words_is_not_heard(said):
    with pytest.raises(rpc.ProtocolError):
        slave.Worker(1, "", "", 0.0).ago(said)
