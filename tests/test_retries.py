"""Further attempts, and slaves that fail what others can do: budgets by kind of failure, back-off, quarantine."""

import json
import operator

import pytest
from concurrent_swarm.master import LONGEST, QUARANTINE, SHUN, STRIKES, Board, check_report, without
from conftest import at_once, text_of, wait_until
from test_board import Told, span
from test_limits import finish, outcomes

from concurrent_swarm import components, tasks

SETUP = {"kind": "setup", "type": "ImportError", "message": "no module"}


# -- the board -----------------------------------------------------------------------------------------------------


def own(retries, kind="error"):
    """A failure as a worker tells it, whose rules allow so many further attempts."""
    return {"kind": kind, "type": "ValueError", "message": "no", "retries": retries}


def submit(told, count=1, number=1, wait=0, **rules):
    limits = {"retry_wait": wait, **({"retries": rules} if rules else {})}
    told("submit", "c1", number, count, options={"name": "n", "first": 1000 * number, "limits": limits})


def fail(told, lease, why, *places):
    """The slave of a lease reports it; these tasks of it failed, or all."""
    return told.ended(lease, **{str(place): why for place in places or range(lease.lo, lease.hi)})


def at(told, seconds):
    told.now = seconds
    told("tick")


@pytest.mark.parametrize("how", ["raised", "died", "lost"])
def test_an_outcome_says_which_attempt_it_is_of_also_to_an_owner_of_a_later_life(how):
    told = Told(slaves=2, workers=1)
    submit(told)
    (lease,) = told.leases()
    if how == "raised":
        fail(told, lease, own(1))
    elif how == "died":
        told("worker_lost", lease.slave.id, lease.id, 0, 1, "signal 9")
    else:
        told("slave_lost", lease.slave.id, reason="silence")
    (lease,) = told.leases()
    effects = told.ended(lease)
    assert [message[-1] for message in effects.messages if message[0] == "outcome"] == [2]
    board = Board()
    board.restore(told.records, 0.0)
    assert [message[-1] for message in board.owner_attached("c1", 0.0).after if message[0] == "outcome"] == [2]


def test_a_task_that_raises_runs_as_often_as_its_rules_say_and_then_fails():
    told = Told()
    submit(told)
    for attempt in (1, 2):
        (lease,) = told.leases()
        assert lease.attempt == attempt
        effects = fail(told, lease, own(2))
        assert effects.records == [("retry", "c1", 1, 0, 1, 0, 0, attempt, 0, lease.id)] and not told.sent("outcome")
    (lease,) = told.leases()
    fail(told, lease, own(2))
    ((*_, failures, _, _, attempt),) = told.sent("outcome")
    assert failures == {"0": own(2)} and attempt == 3 and not told.leases()


def test_each_further_attempt_waits_twice_as_long_and_never_longer_than_five_minutes():
    told, waits = Told(), []
    submit(told, wait=4)
    for _ in range(9):
        (lease,) = told.leases()
        fail(told, lease, own(99))
        due = told.board.owners["c1"].batches[1].delayed[0][3]
        waits.append(due - told.now)
        assert told.board.explain("c1", 1000, told.now)["state"] == "delayed"
        at(told, due - 0.001)
        assert not told.leases()
        at(told, due)
    assert all(0.5 <= waits[n] / min(4 * 2**n, 300) < 1 for n in range(9)), waits
    assert len({round(wait / 2**n, 3) for n, wait in enumerate(waits[:6])}) == 6, "what fails together comes apart"


def test_those_of_a_long_lease_that_failed_run_again_and_the_others_have_their_outcome():
    told = Told(slaves=1, workers=1)
    told("submit", "c1", 0, 5000, options={"name": "n"})
    told.flow()
    told.sent("outcome")
    submit(told, 40, wait=1)
    (lease, *_) = told.leases()
    assert lease.tasks > 3
    fail(told, lease, own(1), 0, 1, 3)
    ((_, _, _, lo, hi, _, failures, _, _, attempt),) = told.sent("outcome")
    assert {key for key in failures if "retried" in failures[key]} == {"0", "1", "3"}
    assert (lo, hi) == span(lease) and attempt == 1
    assert [piece[:2] for piece in told.board.owners["c1"].batches[1].delayed] == [(0, 2), (3, 4)]
    finish(told)
    at(told, 1.0)
    finish(told)
    assert told.board.owners["c1"].batches[1].remaining == 0


@pytest.mark.parametrize("crash", [0, 1, 2])
def test_a_master_that_was_started_again_knows_what_runs_again(crash):
    told = Told(workers=1)
    told("submit", "c1", 0, 5000, options={"name": "n"})
    told.flow()
    submit(told, 40, wait=1)
    (lease, *_) = told.leases()
    fail(told, lease, own(1), 1)
    again = Board()
    again.restore(told.records[: len(told.records) - crash], 0.0)
    again.check()
    batch = again.owners["c1"].batches[1]
    errors = {task: past.errors for lo, hi, past in batch.queue for task in range(lo, hi)}
    assert errors[1] == (0 if crash == 2 else 1) and errors[39] == 0
    assert batch.remaining == len(errors) == (40 if crash else 40 - (lease.hi - lease.lo) + 1)


@pytest.mark.parametrize(("end", "kinds"), [
    (("cancel", "c1", 1), ["cancelled"]), (("cancel_task", "c1", 1, 0), ["cancelled"]), (("owner_gone", "c1"), []),
    (("tick",), ["limit"]),
], ids=["cancel", "cancel_task", "owner_gone", "deadline"])  # fmt: skip
def test_a_task_that_waits_for_its_next_attempt_can_be_ended(end, kinds):
    told = Told()
    told("submit", "c1", 1, 1, options={"limits": {"deadline": 2, "retry_wait": 100}})
    (lease,) = told.leases()
    fail(told, lease, own(1))
    told.now = 2.0 if end == ("tick",) else 1.0
    told(*end)
    assert [kind for _, _, kind in outcomes(told)] == kinds
    at(told, 200.0)
    assert not told.leases()


@pytest.mark.parametrize(("verb", "rule", "kind"), [
    ("worker_lost", "WorkerLost", "poisoned"), ("slave_lost", "SlaveLost", "lost"),
])  # fmt: skip
def test_deaths_and_losses_have_budgets_of_their_own(verb, rule, kind):
    told = Told()
    submit(told, **{rule: 1, "Exception": 7})
    for attempt in (1, 2):
        (lease,) = told.leases()
        assert lease.attempt == attempt
        told(verb, "s1", *((lease.id, 0, 1, "signal 9") if verb == "worker_lost" else ()))
        if verb == "slave_lost":
            told("slave_joined", "s1", {"cpus": 1}, [], 1)
    assert outcomes(told) == [(0, 1, kind)] and not told.leases()


def test_what_was_killed_at_a_limit_or_on_request_counts_against_nobody():
    told = Told()
    submit(told, WorkerLost=0)
    (lease,) = told.leases()
    told("given_back", "s1", lease.id, 0, 1)
    (lease,) = told.leases()
    assert lease.attempt == 1
    fail(told, lease, own(0, kind="limit"))
    assert told.board.slaves["s1"].strikes == 0 and len(told.sent("outcome")) == 1


def test_what_cannot_be_set_up_on_one_slave_goes_to_another_at_once():
    told = Told(slaves=2)
    submit(told)
    (lease,) = told.leases()
    fail(told, lease, SETUP)
    (again,) = told.leases()
    assert again.slave is not lease.slave and again.attempt == 2
    told.ended(again)
    assert outcomes(told) == [(0, 1, "done")]


@pytest.mark.parametrize(("slaves", "attempts"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_what_can_be_loaded_nowhere_fails_after_three_slaves_or_as_many_as_there_are(slaves, attempts):
    told, seen = Told(slaves=slaves), []
    submit(told)
    while leases := told.leases():
        seen += [lease.slave.id for lease in leases]
        fail(told, leases[0], {**SETUP, "kind": "load"})
    assert len(seen) == attempts and all(map(operator.ne, seen, seen[1:]))
    assert len(told.sent("outcome")) == 1


def test_the_only_slave_tries_three_times_to_find_room_for_a_task():
    told = Told(slaves=1)
    submit(told, wait=1)
    for attempt in (1, 2):
        (lease,) = told.leases()
        fail(told, lease, SETUP)
        assert told.board.explain("c1", 1000, told.now)["state"] == "delayed"
        at(told, told.now + attempt)
    (lease,) = told.leases()
    fail(told, lease, SETUP)
    assert len(told.sent("outcome")) == 1 and not told.leases()


def test_a_task_goes_back_to_where_it_failed_if_nobody_else_can_take_it_for_long():
    told = Told(slaves=2, workers=1)
    told("submit", "c1", 1, 1, options={"name": "long"})
    (long,) = told.leases()
    submit(told, number=2)
    (lease,) = told.leases()
    fail(told, lease, own(1))
    assert not told.leases(), "the other slave is busy with something long"
    at(told, SHUN)
    (again,) = told.leases()
    assert again.slave is lease.slave is not long.slave


def bad_slave(told, number, why=SETUP):
    """A task fails on the first slave and succeeds on the second; returns how long the first gets nothing then."""
    bad, good = list(told.board.slaves.values())[:2]
    told("slave_changed", good.id, {"cpus": 0}, 0)
    submit(told, number=number)
    (lease,) = told.leases()
    assert lease.slave is bad
    told("slave_changed", good.id, {"cpus": 1}, 1)
    if why == "died":
        told("worker_lost", bad.id, lease.id, 0, 1, "signal 11")
    else:
        fail(told, lease, why)
    (lease,) = told.leases()
    assert lease.slave is good
    told.ended(lease)
    return bad.released - told.now if bad.released else 0


@pytest.mark.parametrize("why", [SETUP, own(1), "died"], ids=["setup", "error", "died"])
def test_a_slave_that_fails_what_others_can_do_gets_nothing_for_a_minute_then_two(why):
    told = Told(slaves=2, workers=1)
    bad, good = told.board.slaves.values()
    assert [bad_slave(told, number, why) for number in range(STRIKES)] == [0] * (STRIKES - 1) + [QUARANTINE]
    assert told.sent("quarantined") == [("quarantined", "s1", QUARANTINE)]
    submit(told, 100, number=100)
    assert {lease.slave for lease in told.leases()} == {good} and told.board.slots == 1
    assert told.board.explain("c1", 100_099, told.now)["slaves"]["s1"] == "is in quarantine"
    while good.leases:
        told.ended(next(iter(good.leases.values())))
    told.leases()
    at(told, QUARANTINE)
    assert not bad.released and told.board.slots == 2
    assert [bad_slave(told, 200 + number, why) for number in range(STRIKES)][-1] == 2 * QUARANTINE
    bad.penalty = LONGEST
    at(told, 3 * QUARANTINE)
    assert [bad_slave(told, 300 + number, why) for number in range(STRIKES)][-1] == LONGEST


def test_one_success_wipes_the_slate():
    told = Told(slaves=2, workers=1)
    good = told.board.slaves["s2"]
    for number in range(3 * STRIKES):
        assert bad_slave(told, number) == 0
        if number % (STRIKES - 1) == 0:
            told("slave_changed", good.id, {"cpus": 0}, 0)
            submit(told, number=1000 + number)
            (lease,) = told.leases()
            told.ended(lease)
            told("slave_changed", good.id, {"cpus": 1}, 1)


def test_tasks_that_fail_everywhere_are_held_against_no_slave():
    told = Told(slaves=3)
    submit(told, 100)
    while leases := told.leases():
        for lease in leases:
            fail(told, lease, SETUP)
    assert told.board.counters["quarantined"] == 0 and told.board.counters["ended"] == 100


def test_a_task_that_kills_its_workers_is_not_held_against_the_slave_that_ran_it_among_others():
    told = Told(slaves=2, workers=1)
    told("submit", "c1", 0, 5000, options={"name": "n"})
    told.flow()
    submit(told, 200)
    (lease, *_) = told.leases()
    assert lease.tasks > STRIKES
    told("worker_lost", lease.slave.id, lease.id, *span(lease), "signal 9")
    told.flow()
    assert told.board.counters["quarantined"] == 0


def test_the_last_slave_that_could_take_what_waits_comes_out_of_quarantine():
    told = Told(slaves=2, workers=1)
    for number in range(STRIKES):
        bad_slave(told, number)
    told("slave_lost", "s2")
    submit(told, number=50)
    (lease,) = told.leases()
    assert lease.slave.id == "s1" and not lease.slave.released


def test_the_only_slave_is_never_in_quarantine():
    told = Told(slaves=2, workers=1)
    bad, _ = told.board.slaves.values()
    for number in range(STRIKES - 1):
        bad_slave(told, number)
    told("slave_changed", "s2", {"cpus": 0}, 0)
    submit(told, number=99)
    (lease,) = told.leases()
    told("slave_changed", "s2", {"cpus": 1}, 1)
    fail(told, lease, SETUP)
    (lease,) = told.leases()
    told("slave_draining", "s2")
    told.ended(lease)
    assert not bad.released


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("how", ["raised", "died"])
def test_a_failure_that_a_slave_tells_again_after_a_new_connection_counts_once(restart, how):
    told = Told(workers=1)
    submit(told)
    (lease,) = told.leases()
    report = ("worker_lost", "s1", lease.id, 0, 1, "signal 9") if how == "died" else (
        "result", "s1", lease.id, 0, 1, 0.1, "results", {"0": own(1)})  # fmt: skip
    told("slave_draining", "s1")
    told(*report)
    if restart:
        told.board = Board()
        told.board.restore(told.records, 0.0)
    told("slave_joined", "s1", {"cpus": 1}, [], 1, holds=[[lease.id, "c1", 1, 0, 1, 1]])
    told(*report)
    (again,) = told.leases()
    assert again.id != lease.id and again.attempt == 2 and told.board.counters["late report"] == 1


def test_nobody_is_poisoned_for_the_worker_of_another_task():
    told = Told(workers=1)
    told("submit", "c1", 0, 5000, options={"name": "n"})
    told.flow()
    told.sent("outcome")
    submit(told, 40, WorkerLost=0)
    (lease, *_) = told.leases()
    told("worker_lost", "s1", lease.id, *span(lease), "died")
    assert outcomes(told) == [(*span(lease), "poisoned")] and span(lease) == (0, 1)


def test_a_slave_without_room_takes_none_of_the_attempts_that_rules_give():
    told = Told(slaves=3, workers=1)
    submit(told)
    (lease,) = told.leases()
    fail(told, lease, SETUP)
    (lease,) = told.leases()
    fail(told, lease, own(1))
    (lease,) = told.leases()
    assert lease.attempt == 3 and not told.sent("outcome")


@pytest.mark.slow
def test_a_moment_without_a_service_that_all_tasks_need_is_held_against_no_slave():
    told = Told(slaves=10, workers=1)
    told("submit", "c1", 0, 20000, options={"name": "n"})
    told.flow()
    submit(told, 1000, wait=1)
    leases = told.leases()
    while leases:
        for lease in leases:
            fail(told, lease, own(3))
        leases = told.leases()
    for moment in range(1, 40):
        at(told, moment / 8)
        finish(told)
    assert told.board.counters["quarantined"] == 0 == told.board.owners["c1"].batches[1].remaining


def test_thousands_of_scattered_failures_in_a_lease_are_cut_out_in_one_pass():
    ranges = [(0, 10, "x"), (20, 30, "y"), (30, 31, "z")]
    assert without(ranges, [9, 25, 22, 30, 99, 5]) == [
        (0, 5, "x"), (6, 9, "x"), (20, 22, "y"), (23, 25, "y"), (26, 30, "y")]  # fmt: skip


@pytest.mark.parametrize("failures", [{"9" * 99: {}}, {"x": {}}, {"0": {"retried": 1}}, {"0": {"again": 1}}, {"0": 7}])
def test_a_report_whose_failures_are_none_is_refused_before_anything_counts(failures):
    with pytest.raises(components.UsageError):
        check_report(1, 0, 1, failures)


# -- rules ---------------------------------------------------------------------------------------------------------


class Odd(ConnectionResetError):
    """An exception of an application."""


@pytest.mark.parametrize(("said", "error", "times"), [
    (3, ValueError(), 3), (3, SystemExit(), 0), (0, ValueError(), 0), ({}, ValueError(), 0),
    ({ConnectionError: 5}, Odd(), 5), ({"ConnectionError": 5, Odd: 1}, Odd(), 1), ({"Odd": 2, OSError: 1}, Odd(), 2),
    ({OSError: 4, Exception: 1}, ValueError(), 1), ({f"{__name__}.Odd": 6}, Odd(), 6),
    ({BaseException: 1}, SystemExit(), 1),
])  # fmt: skip
def test_the_rule_for_the_most_particular_class_counts(said, error, times):
    head = {"limits": {"retries": tasks.retry_rules(said)}}
    assert tasks.retries_after(head, tasks.names_of(error)) == times


def test_what_a_task_does_not_say_the_master_says():
    head = {"default_limits": {"retries": {"Exception": 2, "WorkerLost": 0}}, "limits": {"retries": {"OSError": 5}}}
    assert tasks.limits_of(head)["retries"] == {"Exception": 2, "WorkerLost": 0, "OSError": 5}


def test_no_wait_at_all_can_be_asked_for():
    assert tasks.limits_of({"default_limits": {"retry_wait": 9.0}, "limits": {"retry_wait": 0}}) == {"retry_wait": 0}
    told = Told()
    submit(told, wait=0)
    (lease,) = told.leases()
    fail(told, lease, own(1))
    assert len(told.leases()) == 1


# -- a swarm -------------------------------------------------------------------------------------------------------


def run(here, app, folder, *words, **settings):
    """Runs an application of apps/retries.py to its end; returns its result."""
    chosen = [f"--set=retries.{key}={value}" for key, value in {"folder": folder, **settings}.items()]
    return here.run_client("retries.py", "--app", app, *chosen, *words).about["result"]


def attempts(folder, name):
    return len(list(folder.glob(f"{name}-*")))


@at_once
def test_tasks_run_again_after_those_exceptions_of_theirs_that_their_rules_name(swarm, tmp_path):
    here = swarm(workers=1)
    told = run(here, "Retrying", tmp_path, called="busy,wrong,key,fine")
    assert told["told"] == 4 and (told["busy"], told["fine"]) == (3, 1)
    assert told["wrong"] == ["ValueError", "error", 2] and told["key"] == ["KeyError", "error", 1]
    assert [attempts(tmp_path, name) for name in ("busy", "wrong", "key", "fine")] == [3, 2, 1, 1]


def test_a_task_may_say_that_it_must_not_outlive_its_worker(swarm_of_module, tmp_path):
    told = run(swarm_of_module, "Retrying", tmp_path, called="dies", kind="Fragile")
    assert told["dies"] == ["TaskError", "poisoned", 1] and attempts(tmp_path, "dies") == 1


@at_once
def test_the_budgets_of_the_master_s_configuration_count_for_tasks_that_say_nothing(swarm, tmp_path):
    here = swarm(workers=1, master=("--set", "limits.retries=2", "--set", "limits.retry_wait=0.01"))
    told = run(here, "Retrying", tmp_path, called="plain", kind="Plain")
    assert told["plain"] == ["OSError", "error", 3] and attempts(tmp_path, "plain") == 3


@at_once
def test_the_log_names_task_and_attempt_of_what_failed(swarm, tmp_path):
    words = "--set", "limits.retries=2", "--set", "limits.retry_wait=0", "--log-format", "json"
    here = swarm(workers=1, master=words)
    run(here, "Retrying", tmp_path, called="plain", kind="Plain")
    run(here, "Retrying", tmp_path, called="dies", kind="Fragile")
    lines = map(json.loads, text_of(here.master.folder / "logs" / "master.log").splitlines())
    told = {(line["task"], line["attempt"]) for line in lines if "task" in line}
    assert told == {("c1.0", 1), ("c1.0", 3), ("c2.0", 1)}, "a reason is told once while it goes on, and at the end"


def test_a_system_hears_once_of_tasks_that_ran_again(swarm_of_module, tmp_path):
    assert run(swarm_of_module, "RetryingSystem", tmp_path) == [[1], 200]
    assert sum(attempts(tmp_path, f"busy{number}") for number in range(0, 200, 7)) == 3 * 29


@pytest.mark.slow
@at_once
def test_F41_a_slave_that_fails_what_others_can_do_gets_nothing_for_a_while(swarm, tmp_path):
    here = swarm(slaves=0)
    good, bad = here.start_slave(), here.start_slave(LC_DEPENDENCY="missing")
    for _ in range(STRIKES):
        assert run(here, "Many", tmp_path) == [], "what could not be set up ran elsewhere"
    rows = {row["name"]: row for row in here.proxy.slaves()}
    assert rows[here.name_of(bad)]["quarantine"] > 0 and rows[here.name_of(good)]["quarantine"] == 0
    wait_until(lambda: "gets nothing for 60 s: 5 leases in a row failed there" in text_of(here.master.err_file), "told")
    audit = here.master.folder / "logs" / "audit.jsonl"
    wait_until(lambda: '"quarantine"' in text_of(audit), "it is in the audit log")
    (line,) = [line for line in map(json.loads, text_of(audit).splitlines()) if line["event"] == "quarantine"]
    assert line["key"] == rows[here.name_of(bad)]["key"]
    done = rows[here.name_of(bad)]["done"]
    assert run(here, "Many", tmp_path) == []
    assert {row["name"]: row["done"] for row in here.proxy.slaves()}[here.name_of(bad)] == done


@pytest.mark.slow
@at_once
def test_a_client_whose_tasks_wait_for_another_attempt_says_so(swarm, tmp_path):
    here = swarm(workers=1, master=("--set", "limits.retries=1", "--set", "limits.retry_wait=300"))
    chosen = ["--set", f"retries.folder={tmp_path}", "--set", "retries.called=a,b", "--set", "retries.kind=Plain"]
    client = here.start_client("retries.py", "--app", "Retrying", *chosen)
    wait_until(lambda: "they failed, and the first runs again in" in client.err, "it is said")
    assert "2 tasks wait: " in client.err and 60 < here.proxy.task.explain("c1.0")["in"] < 300
    assert client.ends() == 143
