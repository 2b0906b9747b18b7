"""Stop means stop: limits of tasks and cancelling, in the board and in a real swarm."""

import itertools
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
from concurrent_swarm.components import UsageError
from concurrent_swarm.master import LATE, Board, completed
from conftest import APPS, PATIENCE, Swarm, at_once, descriptors_of, in_time, text_of, wait_until, zygote_of
from test_board import Told, span

from concurrent_swarm import rpc, tasks

WITHIN = 2.0  # seconds from a limit, or a kill, until slot and processes are free, `in_time`
STUCK = ("loop", "sleep", "interpreter", "child", "daemon", "brood")


# -- the board -----------------------------------------------------------------------------------------------------


@pytest.fixture
def told():
    return Told()


def outcomes(told):
    """(lo, hi, kind of the failure of all its tasks) of every outcome that was sent since the last look."""
    found = told.sent("outcome")
    return [(message[3], message[4], message[6].get("*", {}).get("kind", "done")) for message in found]


def finish(told):
    """Every lease is reported, until there is none."""
    while told.board.leases:
        for lease in list(told.board.leases.values()):
            told("result", lease.slave.id, lease.id, *lease.open[0], 0.01, "results", {})


def submit(told, count=1, number=1, **limits):
    told("submit", "c1", number, count, options={"name": "n", "limits": limits})


@pytest.mark.parametrize("limit", ["timeout", "memory_limit"])
def test_a_task_that_its_slave_watches_has_a_lease_of_its_own(limit):
    told = Told(workers=1)
    told("submit", "c1", 0, 5000, options={"name": "n"})
    told.flow()  # the kind is known to be short
    submit(told, 20, **{limit: 60})
    assert set(told.flow()) == {1}


def test_limits_of_time_leave_leases_as_long_as_ever():
    told = Told(workers=1)
    submit(told, 5000, deadline=60, queue_timeout=30)
    assert max(told.flow()) > 3


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ([1], "limits are"), ({"timeout": "1"}, "timeout is '1'"), ({"timeout": True}, "timeout is True"),
        ({"deadline": -1}, "deadline is -1"), ({"deadline": float("inf")}, "deadline is inf"),
        ({"deadline": 10**400}, "deadline is 1000"), ({"retries": {"Exception": 10**400}}, "retries is"),
        ({"patience": 1}, "patience is 1"), ({"memory_limit": None}, "memory_limit is None"),
    ],
)  # fmt: skip
def test_a_batch_with_a_limit_that_is_none_is_refused_with_the_reason(told, limits, why):
    ((kind, *_, reason),) = told("submit", "c1", 1, 1, options={"limits": limits}).messages
    assert kind == "refused" and why in reason


@pytest.mark.parametrize(
    ("own", "master", "most"),
    [({}, {}, tasks.PROCESS_LIMIT), ({}, {"process_limit": 7}, 7), ({"process_limit": 3}, {"process_limit": 7}, 3),
     ({"process_limit": 0}, {"process_limit": 7}, float("inf")), ({}, {"process_limit": 0}, float("inf"))],
)  # fmt: skip
def test_the_net_for_processes_is_there_unless_task_or_master_says_something_else(own, master, most):
    assert tasks.process_limit_of({"limits": own, "default_limits": master}) == most


def test_a_process_limit_leaves_leases_as_long_as_ever():
    told = Told(workers=1)
    submit(told, 5000, process_limit=5)
    assert max(told.flow()) > 3


def test_what_does_not_run_within_its_queue_timeout_ends_and_names_the_limit():
    told = Told(slaves=0)
    submit(told, 3, queue_timeout=2)
    assert told.board.deadline == 2.0
    told.now = 2.5
    told("tick")
    ((_, _, _, lo, hi, _, failures, *_),) = told.sent("outcome")
    failure = failures["*"]
    assert (lo, hi, failure["kind"], failure["type"], failure["limit"]) == (0, 3, "limit", "TimedOut", "queue_timeout")
    assert (failure["measured"], failure["allowed"]) == (2.5, 2)
    assert "2.50 s" in failure["message"] and "its queue_timeout is 2 s" in failure["message"]


def test_what_runs_when_its_queue_timeout_passes_ends_well_and_what_its_slave_gives_back_does_not():
    told = Told(workers=1)
    submit(told, 1, queue_timeout=2)
    submit(told, 1, 2, queue_timeout=2)
    running, waiting = told.leases()
    told.now = 2.0
    told("tick")
    assert [message[2] for message in told.sent("steal")] == [running.id, waiting.id]
    told("given_back", "s1", waiting.id, *span(waiting))
    assert outcomes(told) == [(0, 1, "limit")]
    told.ended(running)
    assert outcomes(told) == [(0, 1, "done")]


def test_a_task_that_has_run_once_may_wait_for_longer_than_its_queue_timeout():
    told = Told(workers=1)
    submit(told, 1, queue_timeout=2)
    assert told.leases()
    told("slave_lost", "s1")
    told.now = 3.0
    told("tick")
    assert outcomes(told) == []
    told("slave_joined", "s2", {"cpus": 1}, [], 1)
    told.flow()
    assert outcomes(told) == [(0, 1, "done")]


def test_a_deadline_ends_what_waits_and_a_moment_later_what_its_slave_does_not_end():
    told = Told(workers=1)
    submit(told, 5, deadline=1)
    leases = told.leases()
    told.now = 1.0
    told("tick")
    assert total(outcomes(told)) == {"limit": 5 - len(leases)}
    assert told.sent("late") == [("late", "s1", lease.id, 1.0) for lease in leases]
    told.ended(leases[0], **{"*": {"kind": "limit"}})
    assert outcomes(told) == [(*span(leases[0]), "limit")]
    told.now = 1.0 + LATE
    assert told.board.deadline <= told.now
    told("tick")
    assert outcomes(told) == [(*span(lease), "limit") for lease in leases[1:]]
    assert sorted(told.sent("revoke")) == [("revoke", "s1", lease.id, True) for lease in leases[1:]]
    for lease in leases[1:]:
        told("given_back", "s1", lease.id, *span(lease))
    assert outcomes(told) == [] and not told.board.leases


def total(ended):
    """How many tasks ended in which way."""
    found = {}
    for lo, hi, kind in ended:
        found[kind] = found.get(kind, 0) + hi - lo
    return found


def test_a_limit_that_passes_after_the_last_outcome_does_nothing(told):
    submit(told, 1, deadline=1, queue_timeout=1)
    told.flow()
    told("settled", "c1", [1])
    told.now = 5.0
    effects = told("tick")
    assert effects == ([], [], []) and told.board.counters["expired"] == 0


def test_the_limits_of_the_master_count_where_a_task_says_nothing():
    head = b'{"name": "n", "limits": {"timeout": 0, "deadline": 5}}'
    limits = completed(head, "u", '{"timeout": 60.0, "queue_timeout": 7.0}')
    assert tasks.limits_of(tasks.read_head(limits)) == {"deadline": 5, "queue_timeout": 7.0}
    message = tasks.limit_failure(tasks.read_head(limits), "queue_timeout", 8.0)["message"]
    assert "limits.queue_timeout of the master is 7 s" in message


def test_timers_of_batches_that_are_gone_do_not_pile_up(told):
    for number in range(20_000):
        told.board.submit("c1", number, 1, 0.0, options={"limits": {"deadline": 1e6}})
        for _, slave, lease in told.board.tick(0.0).messages:
            told.board.result(slave, lease.id, 0, 1, 0.001, None, {}, 0.0)
        for lease in list(told.board.leases.values()):
            told.board.result("s1", lease.id, 0, 1, 0.001, None, {}, 0.0)
        told.board.settled("c1", [number], 0.0)
    told.board.check()
    assert len(told.board._timers) < 3000


def test_limits_of_time_begin_anew_when_the_master_is_started_again(told):
    told("slave_lost", "s1")
    submit(told, 1, deadline=3)
    again = Board()
    again.restore(told.records, 100.0)
    again.check()
    assert again.deadline == 103.0
    assert not again.tick(102.0).records and again.tick(103.0).records
    again.check()


# -- cancelling one task in the board ------------------------------------------------------------------------------


def test_a_waiting_task_is_cancelled_alone():
    told = Told(slaves=0)
    told("submit", "c1", 1, 5)
    told("cancel_task", "c1", 1, 2)
    assert outcomes(told) == [(2, 3, "cancelled")]
    told("cancel_task", "c1", 1, 2)
    told("cancel_task", "c1", 1, 7)
    told("cancel_task", "c1", 9, 0)
    assert outcomes(told) == [], "once, and only what there is"
    told("slave_joined", "s1", {"cpus": 1}, [], 1)
    told.flow()
    assert total(outcomes(told)) == {"done": 4}


@pytest.mark.parametrize("kill", [False, True])
def test_a_lease_whose_only_task_is_cancelled_is_revoked(told, kill):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    told("cancel_task", "c1", 1, 0, kill=kill)
    assert outcomes(told) == [(0, 1, "cancelled")] and told.sent("revoke") == [("revoke", "s1", lease.id, kill)]
    told.ended(lease)
    assert outcomes(told) == [] and not told.board.leases


def long_lease():
    """A board one of whose leases holds several tasks, and that lease."""
    told = Told(workers=1)
    told("submit", "c1", 0, 4000, options={"name": "n"})
    told.flow()
    told("submit", "c1", 1, 40, options={"name": "n"})
    leases = told.leases()
    outcomes(told)
    lease = max(leases, key=lambda lease: lease.tasks)
    assert lease.tasks > 4
    return told, lease


def test_a_task_is_cancelled_at_once_in_a_lease_of_several_whose_results_count_all_the_same():
    told, lease = long_lease()
    told("cancel_task", "c1", 1, lease.lo + 1)
    assert outcomes(told) == [(lease.lo + 1, lease.lo + 2, "cancelled")]
    assert told.sent("steal") == [("steal", "s1", lease.id)]
    effects = told("result", "s1", lease.id, lease.lo, lease.hi, 0.1, "results", {})
    (outcome,) = [message for message in effects.messages if message[0] == "outcome"]
    assert outcome[3:5] == span(lease) and outcome[7] == "results"
    assert outcome[6] == {str(lease.lo + 1): {**outcome[6][str(lease.lo + 1)], "kind": "cancelled", "again": True}}
    finish(told)
    batch = told.board.owners["c1"].batches[1]
    assert not batch.remaining and told.board.counters["repeated result"] == 0


@pytest.mark.parametrize("how", ["given back", "worker lost", "slave lost", "in pieces", "all of them"])
def test_a_cancelled_task_of_a_lease_never_runs_again_and_the_others_do(how):
    told, lease = long_lease()
    lo, hi = span(lease)
    told("cancel_task", "c1", 1, lo + 2)
    if how == "given back":
        told("given_back", "s1", lease.id, lo, hi)
    elif how == "worker lost":
        told("worker_lost", "s1", lease.id, lo, hi, "signal 9")
    elif how == "slave lost":
        told("slave_lost", "s1")
        told("slave_joined", "s1", {"cpus": 1}, [], 1)
    elif how == "in pieces":
        for at in range(lo, hi):
            told("result", "s1", lease.id, at, at + 1, 0.001, "results", {})
    else:
        for at in range(lo, hi):
            told("cancel_task", "c1", 1, at)
        assert told.board.leases[lease.id].revoked
        told("given_back", "s1", lease.id, lo, hi)
    finish(told)
    count = hi - lo if how == "all of them" else 1
    assert total(outcomes(told)) == {"cancelled": count, "done": 40 - count}
    assert not told.board.owners["c1"].batches[1].remaining


def test_a_kill_of_one_task_of_a_lease_takes_the_others_back_without_blame():
    told, lease = long_lease()
    told("cancel_task", "c1", 1, lease.lo, kill=True)
    assert told.sent("revoke") == [("revoke", "s1", lease.id, True)]
    told("given_back", "s1", lease.id, *span(lease))
    again = told.leases()
    assert all(one.attempt == 1 for one in again)
    assert lease.lo not in {task for one in again for task in range(*span(one))}


def test_a_batch_with_a_cancelled_task_inside_a_reported_range_outlives_a_restart():
    told, lease = long_lease()
    told("cancel_task", "c1", 1, lease.lo + 1)
    told("result", "s1", lease.id, *span(lease), 0.1, "results", {})
    again = Board()
    again.restore(told.records, 0.0)
    again.check()
    batch = again.owners["c1"].batches[1]
    assert batch.remaining == told.board.owners["c1"].batches[1].remaining
    again.owner_attached("c1", 0.0)
    kinds = [outcome[:2] for outcome in batch.outcomes]
    assert kinds.index((lease.lo + 1, lease.lo + 2)) < kinds.index(span(lease)), "the first outcome of a task counts"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_limits_and_cancels_among_events_in_any_order_leave_one_outcome_each(seed):
    """A slave that runs leases in pieces; tasks are cancelled, deadlines pass, and the books always balance."""
    rng, told = random.Random(seed), Told(slaves=3, workers=2)
    counts, seen = {}, {}
    for step in range(120):
        told.now += rng.expovariate(20)
        if rng.random() < 0.3:
            counts[step] = rng.choice((1, 3, 30, 200))
            limits = {name: rng.choice((0.2, 1.0)) for name in ("deadline", "queue_timeout", "timeout")
                      if rng.random() < 0.15}  # fmt: skip
            told("submit", "c1", step, counts[step], options={"name": rng.choice("ab"), "limits": limits})
        for lease in rng.sample(list(told.board.leases.values()), min(3, len(told.board.leases))):
            lo, hi = lease.open[0]
            cut = rng.randint(lo + 1, hi)
            verb = rng.choice(("result", "result", "result", "given_back", "worker_lost"))
            details = {"result": (0.01, "results", {}), "given_back": (), "worker_lost": ("signal 9",)}[verb]
            told(verb, lease.slave.id, lease.id, lo, cut, *details)
        if counts and rng.random() < 0.6:
            number = rng.choice(list(counts))
            told("cancel_task", "c1", number, rng.randrange(counts[number]), kill=rng.random() < 0.5)
        if told.board.deadline is not None and told.now >= told.board.deadline:
            told("tick")
    told.now += 10
    told("tick")
    finish(told)
    for _, _, number, lo, hi, *_ in told.sent("outcome"):
        for task in range(lo, hi):
            seen[number, task] = seen.get((number, task), 0) + 1
    assert set(seen) == {(number, task) for number, count in counts.items() for task in range(count)}
    assert told.board.counters["ended"] == sum(counts.values())


# -- an owner that cancels -----------------------------------------------------------------------------------------


class Number(tasks.Task):
    """A task."""


def owner_of(count):
    """An owner that has sent so many tasks, those tasks, what it has called since, and what its callback got."""
    calls, heard = [], []
    owner = tasks.Owner(lambda *call, parts=(): calls.append(call), lambda *told: heard.append(told), {}, "c1")
    made = [Number(f"n{n}", number=n) for n in range(count)]
    for task in made:
        owner.push(task)
    owner.pump()
    calls.clear()
    return owner, made, calls, heard


@pytest.mark.parametrize("given", [lambda task: task, lambda task: task.task_id, tasks.Handle.of])
def test_a_task_is_cancelled_by_itself_its_id_or_its_handle(given):
    owner, made, calls, _ = owner_of(3)
    owner.cancel(given(made[1]), kill=True)
    assert calls == [("cancel_task", 0, 1, True)]


def test_a_task_that_has_its_outcome_is_not_cancelled_any_more():
    owner, made, calls, heard = owner_of(1)
    owner.outcome(0, 0, 1, 0.1, {}, "s1", 1, [])
    calls.clear()
    owner.cancel(made[0])
    owner.cancel(Number("never pushed"))
    assert calls == [] and len(heard) == 1


@pytest.mark.parametrize("text", ["c2.0", "c1.x", "nonsense", "", "c1.-1"])
def test_a_text_that_is_no_id_of_a_task_here_cannot_be_cancelled(text):
    owner, *_ = owner_of(1)
    with pytest.raises(UsageError, match="cannot be cancelled"):
        owner.cancel(text)


def test_a_new_master_is_told_again_what_was_to_be_cancelled():
    owner, made, calls, _ = owner_of(3)
    owner.cancel(made[2])
    owner.outcome(0, 0, 1, 0.1, {}, "s1", 1, [])
    calls.clear()
    owner.resubmit(True)
    assert [call for call in calls if call[0] != "submit"] == [("cancel_task", 0, 2, False)]
    owner.outcome(0, 2, 3, 0.0, {"*": tasks.cancelled_failure()}, "", 1, [])
    calls.clear()
    owner.resubmit(True)
    assert {call[0] for call in calls} == {"submit"}


def test_all_tasks_are_cancelled_those_that_wait_for_room_too_and_nothing_more_is_drawn():
    owner, _, calls, heard = owner_of(2)
    owner.draw(iter([Number("drawn later")]))
    waiting = Number("not sent yet")
    owner.push(waiting)
    owner.cancel_all(kill=True)
    owner.pump()
    assert calls == [("cancel", None, True)]
    assert [(task, error.type) for task, _, error in heard] == [(waiting, "Cancelled")]
    owner.outcome(0, 0, 2, 0.0, {"*": tasks.cancelled_failure()}, "", 1, [])
    assert owner.idle and owner.failed == 3


def test_a_result_of_a_task_that_is_cancelled_is_not_heard():
    owner, _, _, heard = owner_of(3)
    owner.outcome(0, 1, 2, 0.0, {"*": tasks.cancelled_failure()}, "", 1, [])
    owner.outcome(0, 0, 3, 0.1, {"1": {**tasks.cancelled_failure(), "again": True}}, "s1", 1, [rpc.dumps([7, 8, 9])])
    assert [(task.name, result) for task, result, _ in heard] == [("n1", None), ("n0", 7), ("n2", 9)]


# -- a real swarm --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_slot():
    """A master and a slave with one worker: a task that runs after another one shows that the slot is free."""
    one = Swarm()
    try:
        one.start_master()
        one.start_slave(workers=1)
        yield one
    finally:
        one.close()


def run(here, app, folder, patience=PATIENCE, **settings):
    """Runs an application of limits.py, which must come to its end; returns its result."""
    words = itertools.chain.from_iterable(("--set", f"limits_app.{key}={value}") for key, value in settings.items())
    done = here.run_client("limits.py", "--app", app, "--set", f"limits_app.folder={folder}", *words,
                           seconds=patience)  # fmt: skip
    assert done.about["error"] is None, done.about["error"]
    return done.about["result"]


def marked(folder):
    """The processes that stuck tasks have told of."""
    return [int(pid) for path in Path(folder).glob("run-*") for pid in text_of(path).split()]


def all_gone(folder):
    pids = marked(folder)
    assert pids, "a task ran"
    began = time.monotonic()
    wait_until(lambda: not [pid for pid in pids if alive(pid)], f"{pids} are gone")
    assert in_time(time.monotonic() - began, WITHIN)


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("how", STUCK)
def test_a_task_that_is_stuck_ends_at_its_timeout_and_names_limit_measure_and_line(one_slot, tmp_path, how):
    stuck, whole = run(one_slot, "Limited", tmp_path, how=how, timeout=0.5 if how != "brood" else 5)
    assert (stuck["kind"], stuck["type"], stuck["limit"]) == ("limit", "TimedOut", "timeout")
    assert stuck["measured"] - stuck["allowed"] >= 0 and in_time(stuck["measured"] - stuck["allowed"], 1)
    assert in_time(stuck["after"] - stuck["allowed"], WITHIN + 3)
    assert f"on s1; its timeout is {stuck['allowed']:g} s" in stuck["message"]
    assert "# stuck" in stuck["traceback"] or "while True" in stuck["traceback"]
    assert f"in {how}" in stuck["where"] and "spawn_main" not in stuck["traceback"]
    assert in_time(whole["after"] - stuck["after"], WITHIN), "the slot is free"
    all_gone(tmp_path)
    assert "workers died" not in one_slot.master.err


@pytest.mark.parametrize("how", STUCK)
def test_a_running_task_that_is_cancelled_with_kill_frees_its_slot_and_leaves_no_process(one_slot, tmp_path, how):
    stuck, whole = run(one_slot, "Cancelling", tmp_path, how=how)
    assert (stuck["kind"], stuck["type"]) == ("cancelled", "Cancelled")
    assert in_time(whole["after"], WITHIN)
    all_gone(tmp_path)


@pytest.mark.parametrize("by", ["object", "id", "all"])
def test_tasks_that_run_and_wait_are_cancelled_and_each_is_told_once(one_slot, tmp_path, by):
    *stuck, whole = run(one_slot, "Cancelling", tmp_path, by=by, count=4)
    assert sorted(one["name"] for one in stuck) == ["t0", "t1", "t2", "t3"]
    assert {one["type"] for one in stuck} == {"Cancelled"} and in_time(whole["after"], WITHIN)
    assert len(list(tmp_path.glob("run-*"))) == 1, "what waited never ran"


@pytest.mark.slow
def test_a_running_task_that_is_cancelled_without_kill_goes_on_and_nobody_hears_of_it(one_slot, tmp_path):
    cancelled, whole = run(one_slot, "Cancelling", tmp_path, how="briefly", kill=0)
    assert cancelled["type"] == "Cancelled" and in_time(cancelled["after"], 1.2)
    assert cancelled["after"] < whole["after"]
    assert (tmp_path / "ended-t0").exists()


def test_a_task_that_was_not_sent_yet_is_cancelled_too(one_slot, tmp_path):
    *stuck, _ = run(one_slot, "Cancelling", tmp_path, by="before", count=2)
    assert sorted(one["name"] for one in stuck) == ["t0", "t1"] and {one["type"] for one in stuck} == {"Cancelled"}
    assert not (tmp_path / "run-t1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2], ids=["one by one", "all of them"])
def test_a_system_cancels_and_kills_the_tasks_that_it_does_not_need_any_more(swarm, tmp_path, count):
    assert run(swarm(workers=4), "RaceApplication", tmp_path, how="sleep", count=count) == ["cancelled"] * 3 + ["done"]
    for pid in marked(tmp_path):
        wait_until(lambda pid=pid: not alive(pid), "it is gone")


def test_a_system_that_is_cancelled_with_kill_leaves_no_task_behind(one_slot, tmp_path):
    cancelled, _ = run(one_slot, "KilledSystem", tmp_path, how="interpreter")
    assert cancelled["kind"] == "cancelled"
    all_gone(tmp_path)


@pytest.mark.parametrize("how", ["memory", "memory_of_a_child"])
def test_a_task_that_takes_too_much_memory_ends_with_its_peak(one_slot, tmp_path, how):
    stuck, whole = run(one_slot, "Limited", tmp_path, how=how, memory_limit=200)
    assert (stuck["kind"], stuck["type"], stuck["limit"]) == ("limit", "OutOfMemory", "memory_limit")
    assert 200 < stuck["measured"] < 1000 and "MiB of memory on s1; its memory_limit is 200 MiB" in stuck["message"]
    assert f"in {how}" in stuck["where"] and in_time(whole["after"] - stuck["after"], WITHIN)
    all_gone(tmp_path)


def test_memory_that_a_worker_kept_from_other_tasks_is_not_held_against_one_with_a_limit(one_slot, tmp_path):
    assert run(one_slot, "Hoarding", tmp_path) == {"same": True, "fresh": True, "errors": 0}


def test_tasks_that_wait_are_cancelled_in_one_process_too(one_slot, tmp_path):
    words = ["--workers", "0", "--json", "--set", f"limits_app.folder={tmp_path}"]
    done = one_slot.start("client", APPS / "limits.py", "--app", "CancellingTheRest", *words).wait()
    assert done.about["result"] == {"done": 1, "cancelled": 3}


@pytest.mark.slow
def test_a_deadline_ends_a_task_that_runs_and_one_that_waits(one_slot, tmp_path):
    *stuck, whole = run(one_slot, "Limited", tmp_path, how="interpreter", count=2, deadline=1)
    assert {one["limit"] for one in stuck} == {"deadline"} and all(one["measured"] >= 1 for one in stuck)
    assert in_time(max(one["measured"] for one in stuck) - 1, 0.5)
    assert sorted(one["where"] != "" and "stuck in C" in one["traceback"] for one in stuck) == [False, True]
    assert in_time(whole["after"] - 1, WITHIN + 1)
    all_gone(tmp_path)


ENDLESS = """
import os, time
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task

if "CONCURRENT_SWARM_ATTEMPT" in os.environ:  # in a worker
    time.sleep(1000)

class Never(Task):
    timeout = 0.3

class App(ApplicationNode):
    def start_processing(self):
        self.push_task(Never("never"))
    def task_finished(self, task, result, error):
        self.result = error.failure["limit"]
        self.shutdown_main_loop()
"""


@pytest.mark.slow
@at_once
def test_an_import_that_never_ends_is_no_way_around_a_timeout(swarm, tmp_path):
    here = swarm(workers=1)
    (here.slaves[0].folder / "plugins" / "less.py").write_text(
        "import logging\nfrom concurrent_swarm import slave\nslave.LOADING = 0.5\nlogging.error('less is loaded')\n")
    wait_until(lambda: "less is loaded" in here.slaves[0].err, "a slave that waits for less long")
    (tmp_path / "stuck.py").write_text(ENDLESS)
    assert here.run_client(str(tmp_path / "stuck.py")).about["result"] == "timeout"


@at_once
def test_a_task_that_no_slave_takes_ends_at_its_queue_timeout(swarm, tmp_path):
    (gone,) = run(swarm(slaves=0), "Gone", tmp_path, queue_timeout=0.3)
    assert (gone["limit"], gone["type"]) == ("queue_timeout", "TimedOut") and gone["measured"] >= 0.3
    assert in_time(gone["measured"], 1)


@pytest.mark.slow
@at_once
def test_limits_of_the_master_s_configuration_count_for_tasks_that_say_nothing(swarm, tmp_path):
    here = swarm(workers=1, master=("--set", "limits.timeout=0.4"))
    stuck, _ = run(here, "Limited", tmp_path, how="loop")
    assert stuck["limit"] == "timeout" and "limits.timeout of the master is 0.4 s" in stuck["message"]


@pytest.mark.slow
def test_limits_of_the_master_may_be_given_to_a_local_swarm(one_slot, tmp_path):
    words = ["--local", "--workers", "1", "--json", "--set", "limits.timeout=0.3"]
    words += ["--set", f"limits_app.folder={tmp_path}"]
    done = one_slot.start("client", APPS / "limits.py", "--app", "Limited", *words).wait()
    assert done.about["result"][0]["limit"] == "timeout"


def test_a_limit_that_is_no_number_fails_the_task_with_the_reason(one_slot):
    done = one_slot.run_client("limits.py", "--app", "Nonsense")
    assert "has the timeout 'soon'" in done.about["result"]


def test_what_a_killed_worker_has_left_behind_ends_also_when_it_dies_by_itself(one_slot, tmp_path):
    run(one_slot, "Limited", tmp_path, how="dies", timeout=20)
    all_gone(tmp_path)


@pytest.mark.slow
def test_what_tasks_have_started_ends_with_their_slave(swarm, tmp_path):
    here = swarm(workers=1)
    client = here.start_client("limits.py", "--app", "Limited", "--set", "limits_app.how=daemon",
                               "--set", f"limits_app.folder={tmp_path}")  # fmt: skip
    wait_until(lambda: marked(tmp_path), "the task runs")
    here.slaves[0].parent.close()
    here.slaves[0].wait()
    all_gone(tmp_path)
    client.ends()


@pytest.mark.slow
@at_once
def test_a_hundred_kills_in_a_row_leave_no_process_and_no_descriptor(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    slave = here.slaves[0]
    run(here, "Limited", tmp_path / "0", how="loop", timeout=0.05) if (tmp_path / "0").mkdir() is None else None
    before = len(descriptors_of(slave.pid)), len(descriptors_of(zygote_of(slave.pid)))
    began = time.monotonic()
    *stuck, _ = run(here, "Limited", tmp_path, how="child", count=100, timeout=0.05, patience=5 * PATIENCE)
    assert {one["limit"] for one in stuck} == {"timeout"} and len(stuck) == 100
    assert in_time(time.monotonic() - began, 100 * 0.5)
    all_gone(tmp_path)
    wait_until(lambda: len(here.workers_of(slave)) <= 3, "workers are gone")

    def as_few_as_before():
        after = len(descriptors_of(slave.pid)), len(descriptors_of(zygote_of(slave.pid)))
        return after[0] <= before[0] + 6 and after[1] <= before[1]

    wait_until(as_few_as_before, f"as few descriptors as before: {before}")
    assert os.path.exists(f"/proc/{slave.pid}")
