"""What the board does, event by event."""

import collections
import itertools
import random
import time
import tracemalloc

import pytest
from concurrent_swarm.master import MAX_LEASE, MAX_LOSSES, STEAL_AGE, Board, Demand, Effects, Slave, depth


class Told:
    """A board whose every event is checked, with what it sent lately by kind."""

    def __init__(self, slaves=1, workers=2, owners=("c1",), **named):
        self.board = Board(**named)
        self.now = 0.0
        self.records, self.messages, self.after = [], [], []
        for owner in owners:
            self("owner_joined", owner, "client")
        for number in range(slaves):
            self("slave_joined", f"s{number + 1}", {"cpus": workers}, [], workers)

    def __call__(self, verb, *params, **named):
        effects = getattr(self.board, verb)(*params, now=self.now, **named)
        self.board.check()
        self.records += effects.records
        self.messages += effects.messages
        self.after += effects.after
        return effects

    def sent(self, kind):
        """The messages of that kind that were not looked at before."""
        found = [message for message in self.messages if message[0] == kind]
        self.messages = [message for message in self.messages if message[0] != kind]
        return found

    def leases(self):
        return [message[2] for message in self.sent("lease")]

    def ended(self, lease, lo=None, hi=None, seconds=0.001, **named):
        """The slave of a lease reports it, or a part of it."""
        lo, hi = lease.lo if lo is None else lo, lease.hi if hi is None else hi
        return self("result", lease.slave.id, lease.id, lo, hi, seconds * (hi - lo), "results", named or {})

    def flow(self, seconds=0.001, until=10**9):
        """Report every lease at once, until none is left; returns their sizes."""
        sizes, waiting = [], self.leases()
        while waiting and len(sizes) < until:
            lease = waiting.pop(0)
            sizes.append(lease.hi - lease.lo)
            self.ended(lease, seconds=seconds)
            waiting += self.leases()
        return sizes


@pytest.fixture
def told():
    return Told()


def span(lease):
    return lease.lo, lease.hi


# -- owners and batches --------------------------------------------------------------------------------------------


def test_a_lone_task_leaves_at_once_and_is_accepted_after_the_commit(told):
    effects = told("submit", "c1", 1, 1, options={"name": "n"}, payload="bytes")
    assert effects.records == [("batch", "c1", 1, 1, 1, {"name": "n"}, "bytes")]
    assert effects.after == [("accepted", "c1", 1)]
    ((kind, slave, lease),) = effects.messages
    assert (kind, slave, span(lease), lease.attempt) == ("lease", "s1", (0, 1), 1)
    assert lease.batch.payload == "bytes"


def test_a_result_goes_to_the_attached_owner_at_once_and_to_the_journal(told):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    effects = told("result", "s1", lease.id, 0, 1, 0.5, "results", {"0": {"kind": "task"}})
    assert effects.messages == [("outcome", "c1", 1, 0, 1, 0.5, {"0": {"kind": "task"}}, "results", "s1", 1)]
    assert effects.records == [("outcome", "c1", 1, 0, 1, 0.5, {"0": {"kind": "task"}}, 1, "results")]


def test_a_repeated_submit_is_accepted_again_and_runs_once(told):
    told("submit", "c1", 1, 1)
    again = told("submit", "c1", 1, 1)
    assert (again.records, again.messages, again.after) == ([], [], [("accepted", "c1", 1)])
    told.flow()
    told("settled", "c1", [1])
    again = told("submit", "c1", 1, 1)
    assert (again.records, again.messages, again.after) == ([], [], [("accepted", "c1", 1)])


def test_a_batch_that_cannot_be_kept_is_as_if_it_had_not_come(told):
    told("submit", "c1", 1, 4)
    (lease, *_) = told.leases()
    effects = told("withdrawn", "c1", 1, "the disk is full")
    assert ("refused", "c1", 1, "the disk is full") in effects.messages
    assert ("revoke", "s1", lease.id, False) in effects.messages and effects.after == []
    assert told.board.owners["c1"].tasks == 0 and not told.board.knows("c1", 1)
    assert told.ended(lease).records == [], "what ran of it is dropped"
    again = told("submit", "c1", 1, 4)
    assert again.after == [("accepted", "c1", 1)] and told.board.knows("c1", 1)
    told.flow()
    told("settled", "c1", [1])
    assert told.board.knows("c1", 1), "settled is not withdrawn"


def test_a_batch_that_is_gone_already_can_be_withdrawn(told):
    for owner, number in (("c1", 7), ("nobody", 1)):
        assert told("withdrawn", owner, number, "why") == ([], [("refused", owner, number, "why")], [])


@pytest.mark.parametrize(
    ("count", "group", "resources", "why"),
    [
        (0, 1, {}, "at least 1"),
        (1, 0, {}, "at least 1"),
        (1, 1, {"cpus": -1}, "cpus is -1"),
        (1, 1, {"cpus": True}, "cpus is True"),
        (1, 1, {"cpus": 10**400}, "cpus is 1000"),
        (1, 1, {"gpu": "two"}, "gpu is 'two'"),
        (1, 1, {"gpu": float("nan")}, "gpu is nan"),
        (1, 1, {"tags": "big"}, "tags is 'big'"),
        (1, 1, [1], "resources is"),
        (101, 1, {}, "passes 100"),
    ],
)
def test_a_batch_that_cannot_be_taken_is_refused_with_the_reason(count, group, resources, why):
    told = Told(limit=100)
    effects = told("submit", "c1", 1, count, group=group, options={"resources": resources})
    ((kind, owner, number, reason),) = effects.messages
    assert (kind, owner, number) == ("refused", "c1", 1) and why in reason
    assert not effects.records and not effects.after


def test_an_unknown_owner_is_refused(told):
    ((kind, *_),) = told("submit", "c9", 1, 1).messages
    assert kind == "refused"


def test_outcomes_of_a_detached_owner_wait_and_are_sent_when_it_is_back(told):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    told("owner_detached", "c1")
    assert told.ended(lease).messages == []
    effects = told("owner_attached", "c1")
    assert effects.messages == []
    assert effects.after == [("accepted", "c1", 1), ("outcome", "c1", 1, 0, 1, 0.001, {}, "results", "s1", 1)]


def test_a_settled_batch_is_forgotten_with_its_payload(told):
    told("submit", "c1", 1, 1)
    told.flow()
    assert told("settled", "c1", [1, 7]).records == [("settled", "c1", 1)]
    assert not told.board.owners["c1"].batches
    assert told("owner_attached", "c1").after == []


def test_cancel_ends_what_waits_and_revokes_what_runs_whose_results_then_count_for_nothing(told):
    told("submit", "c1", 1, 10)
    leases = told.leases()
    effects = told("cancel", "c1", 1)
    revoked = [message for message in effects.messages if message[0] == "revoke"]
    assert sorted(revoked) == [("revoke", "s1", lease.id, False) for lease in leases]
    outcomes = [message[3:5] for message in effects.messages if message[0] == "outcome"]
    assert sum(hi - lo for lo, hi in outcomes) == 10
    assert all(message[6]["*"]["kind"] == "cancelled" for message in effects.messages if message[0] == "outcome")
    assert told.ended(leases[0]).messages == []
    assert told.board.counters["revoked result"] == 1


def test_a_revoked_lease_keeps_its_slot_until_the_slave_is_rid_of_it():
    told = Told(workers=1)
    told("submit", "c1", 1, 2, options={"name": "long"})
    told.flow(seconds=1.0)
    told("submit", "c1", 2, 1, options={"name": "long"})
    (lease,) = told.leases()
    told("cancel", "c1", 2)
    told("submit", "c1", 3, 1, options={"name": "long"})
    assert told.leases() == []
    told("given_back", "s1", lease.id, 0, 1)
    assert [lease.batch.number for lease in told.leases()] == [3]


@pytest.mark.parametrize("how", [("cancel", "c1", None), ("owner_gone", "c1")])
def test_what_is_not_wanted_is_revoked_newest_first_so_that_nothing_waits_behind_a_worker_that_is_killed(how, told):
    for number in (1, 2):
        told("submit", "c1", number, 2)
    leases = told.leases()
    assert {lease.batch.number for lease in leases} == {1, 2} and len(leases) > 2
    effects = told(*how, kill=True)
    revoked = [message for message in effects.messages if message[0] == "revoke"]
    assert revoked == [("revoke", "s1", lease.id, True) for lease in reversed(leases)]


def test_a_second_cancel_may_kill(told):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    told("cancel", "c1", None)
    assert told("cancel", "c1", 1, kill=True).messages == [("revoke", "s1", lease.id, True)]
    assert told("cancel", "c1", 1, kill=True).messages == []


def test_the_tasks_of_an_owner_that_is_gone_never_run(told):
    told("submit", "c1", 1, 100)
    effects = told("owner_gone", "c1")
    assert effects.records == [("gone", "c1")]
    assert {message[0] for message in effects.messages} == {"revoke"}
    told("slave_joined", "s2", {"cpus": 8}, [], 8)
    for lease in told.leases():
        told.ended(lease)
    assert told.leases() == []


@pytest.mark.parametrize("together", [False, True])
def test_reports_bring_the_same_together_as_one_by_one(together):
    told = Told(workers=2, max_lease=1)
    told("submit", "c1", 1, 100, options={"name": "quick"})
    told.flow(seconds=0.0001, until=40)
    out, effects = list(told.board.leases.values()), Effects([], [], [])
    for lease in out:
        report = lease.slave.id, lease.id, lease.lo, lease.hi, 0.0001, "results", {}
        if together:
            told.board.collect(effects, *report, now=1.0)
        else:
            one = told.board.result(*report, now=1.0)
            effects.records.extend(one.records)
            effects.messages.extend(one.messages)
    if together:
        assert not told.board.leases and told.board.assigned(effects, 1.0) is effects
    told.board.check()
    assert [record[:5] for record in effects.records] == [("outcome", "c1", 1, lease.lo, lease.hi) for lease in out]
    kinds = collections.Counter(message[0] for message in effects.messages)
    assert len(out) > 16 and kinds == {"outcome": len(out), "lease": len(told.board.leases)}
    assert sorted(lease.lo for lease in told.board.leases.values()) == [*range(40 + len(out), 100)][: len(out)]


# -- leases ------------------------------------------------------------------------------------------------------


def test_a_lease_grows_from_one_at_most_doubling_to_what_takes_ten_milliseconds(told):
    told("submit", "c1", 1, 100_000)
    sizes = told.flow(seconds=0.0001, until=200)
    assert sizes[0] == 1
    assert max(sizes) == 100
    steps = [b / a for a, b in itertools.pairwise(sizes) if b > a]
    assert max(steps) <= 2


def test_a_lease_never_holds_more_tasks_than_a_batch_and_ends_between_groups():
    told = Told()
    told("submit", "c1", 1, 1_000_000, group=64)
    leases, waiting = [], told.leases()
    while waiting and len(leases) < 100:
        leases.append(waiting.pop(0))
        told.ended(leases[-1], seconds=0.0)
        waiting += told.leases()
    assert max(lease.hi - lease.lo for lease in leases) == MAX_LEASE
    assert all(lease.hi % 64 == 0 for lease in leases if lease.hi - lease.lo > 64)


def test_long_tasks_stay_alone_in_their_leases_and_none_is_sent_ahead(told):
    told("submit", "c1", 1, 10)
    first = told.leases()
    assert len(first) == 4  # two a slot while nothing is known
    for lease in first:
        told.ended(lease, seconds=0.5)
    assert [span(lease) for lease in told.leases()] == [(4, 5), (5, 6)]


def test_the_last_tasks_are_spread_over_all_slots():
    told = Told(slaves=2)
    told("submit", "c1", 1, 3000)
    told.flow(seconds=0.0005)
    told("submit", "c1", 2, 80)
    assert [lease.hi - lease.lo for lease in told.leases()][:3] == [10, 9, 8]


def test_the_last_tasks_are_not_spread_thinner_than_a_millisecond():
    told = Told(slaves=2)
    told("submit", "c1", 1, 3000)
    told.flow(seconds=0.0001)
    told("submit", "c1", 2, 80)
    assert [lease.hi - lease.lo for lease in told.leases()] == [10] * 8


def test_a_large_swarm_gets_fewer_leases_than_slots_rather_than_more_than_the_master_can_make():
    told = Told(slaves=0)
    for number in range(50):
        told.board.slave_joined(f"s{number}", {"cpus": 2}, [], 2, 0.0)
    told("submit", "c1", 1, 64_000, group=64)
    told.flow(seconds=0.00005)
    told("submit", "c1", 2, 3200, group=64)
    assert [lease.hi - lease.lo for lease in told.leases()] == [128] * 25  # 6.4 ms each, of 160 ms


def test_depth_follows_the_time_of_a_lease():
    assert [depth(t) for t in (0.0, 0.0009, 0.001, 0.004, 0.005, 0.02, 0.09, 0.1, 9)] == [
        16,
        16,
        16,
        6,
        5,
        2,
        2,
        1,
        1,
    ]


def test_short_leases_are_not_sent_to_wait_behind_long_ones():
    told = Told(workers=2)
    for name, seconds in (("long", 1.0), ("short", 0.0001)):
        told("submit", "c1", name, 40, options={"name": name})
        told.flow(seconds=seconds)
    told("submit", "c1", "l", 1, options={"name": "long"})
    told("submit", "c1", "s", 40, options={"name": "short"})
    assert len(told.leases()) == 2


def test_the_tasks_of_a_lease_may_be_reported_in_parts_and_any_order(told):
    told("submit", "c1", 1, 100)
    told.flow(seconds=0.0001, until=8)
    told.board.check()
    lease = max(told.board.leases.values(), key=lambda lease: lease.tasks)
    middle = (lease.lo + lease.hi) // 2
    told.ended(lease, middle, lease.hi)
    assert lease.open == [(lease.lo, middle)]
    told.ended(lease, lease.lo, middle)
    assert lease.id not in told.board.leases


def test_a_result_counts_once_and_only_from_the_slave_that_holds_the_lease():
    told = Told(slaves=2)
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    other = {"s1": "s2", "s2": "s1"}[lease.slave.id]
    assert told("result", other, lease.id, 0, 1, 0.1, None, {}).messages == []
    assert len(told.ended(lease).messages) == 1
    assert told.ended(lease).messages == []
    assert told.board.counters["foreign report"] == told.board.counters["late report"] == 1


def test_a_result_over_tasks_already_reported_is_dropped_and_its_open_part_runs_again(told):
    told("submit", "c1", 1, 64)
    told.flow(seconds=0.0001, until=6)
    lease = max(told.board.leases.values(), key=lambda lease: lease.tasks)
    assert lease.tasks >= 4
    told.ended(lease, lease.lo, lease.lo + 2)
    told.messages.clear()
    effects = told.ended(lease)
    assert "outcome" not in {message[0] for message in effects.messages}
    assert told.board.counters["repeated result"] == 1


# -- pausing -------------------------------------------------------------------------------------------------------


def test_a_paused_owner_gets_no_lease_until_it_goes_on_and_what_runs_of_it_ends():
    told = Told(workers=1, max_lease=1)
    told("submit", "c1", 1, 40)
    held = told.leases()
    effects = told("owner_paused", "c1", True)
    assert effects == ([("paused", "c1", True)], [], [])
    assert told.board.standing("c1") == {"waiting": 40 - len(held), "running": len(held)}
    for lease in held:
        told.ended(lease)
    told("submit", "c1", 2, 5)
    told("tick")
    assert told.leases() == [] and len(told.sent("outcome")) == len(held)
    assert told.board.standing("c1") == {"waiting": 45 - len(held), "running": 0}
    told("owner_paused", "c1", False)
    told.flow()
    assert told.board.standing("c1") == {"waiting": 0, "running": 0}


def test_a_paused_owner_holds_up_nobody_else_of_its_user_or_another():
    told = Told(workers=1, owners=(), max_lease=1)
    for owner, user in (("1", "a"), ("2", "a"), ("3", "b")):
        told("owner_joined", owner, "system", user=user)
        told("owner_paused", owner, owner == "1")
        told("submit", owner, 1, 50)
    told.flow()
    standing = {owner: told.board.standing(owner)["waiting"] for owner in "123"}
    assert standing == {"1": 50, "2": 0, "3": 0}
    assert told.board.deadline is None or told("tick").messages == [], "nothing is to be done"


def test_what_a_paused_owner_has_out_is_not_asked_back_for_others():
    told = Told(workers=1)
    told("submit", "c1", 1, 1000)
    told.flow(seconds=0.0001)
    told("submit", "c1", 2, 60)
    told("owner_paused", "c1", True)
    told("slave_joined", "s2", {"cpus": 1}, [], 1)
    told.now = 2 * STEAL_AGE
    told("tick")
    assert told.board.leases and told.sent("steal") == []
    told("owner_paused", "c1", False)
    told("tick")
    assert told.sent("steal")


def test_what_comes_back_to_a_paused_owner_waits_with_the_rest():
    told = Told(workers=1, slaves=2, max_lease=1)
    told("submit", "c1", 1, 10)
    told("owner_paused", "c1", True)
    told("slave_lost", "s1")
    assert told.sent("lease")[-1][1] != "s3" and told("tick").messages == []
    told("slave_joined", "s3", {"cpus": 1}, [], 1)
    assert told.leases() == [] and told.board.standing("c1")["waiting"] > 0


def test_a_pause_outlives_a_restart(told):
    told("owner_paused", "c1", True)
    told("submit", "c1", 1, 8)
    again = restarted(told)
    again("slave_joined", "s1", {"cpus": 2}, [], 2)
    assert again.leases() == [] and again.board.owners["c1"].paused
    again("owner_paused", "c1", False)
    assert again.leases()


def test_a_paused_task_fails_of_no_slave_and_says_that_a_person_paused_it():
    told = Told(slaves=1, unplaceable_wait=1.0)
    told("submit", "c1", 1, 1, options={"first": 0, "resources": {"tags": ["gpu"]}})
    told("owner_paused", "c1", True)
    told.now = 5.0
    told("tick")
    about = told.board.explain("c1", 0, told.now)
    assert (about["state"], about["paused"], about["unplaceable"]) == ("waiting", True, "")
    told("owner_paused", "c1", False)
    assert not told.board.explain("c1", 0, told.now)["paused"] and told.board.unplaced(told.now)


# -- losses ------------------------------------------------------------------------------------------------------


def test_what_a_lost_slave_held_goes_first_with_the_next_attempt():
    told = Told()
    told("submit", "c1", 1, 6)
    first = told.leases()
    effects = told("slave_lost", "s1", reason="silence")
    assert effects.records == [("retry", "c1", 1, lease.lo, lease.hi, 0, 1, 0, 0, 0) for lease in reversed(first)]
    told("slave_joined", "s2", {"cpus": 2}, [], 2)
    again = told.leases()
    assert [(span(lease), lease.attempt) for lease in again] == [(span(lease), 2) for lease in first]
    assert told("result", "s1", first[0].id, 0, 1, 0.1, None, {}).messages == []


def test_what_is_given_back_runs_again_under_another_lease_without_blame(told):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    effects = told("given_back", "s1", lease.id, 0, 1)
    assert effects.records == []
    (again,) = told.leases()
    assert (span(again), again.attempt) == ((0, 1), 1) and again.id != lease.id


def test_after_a_worker_died_its_tasks_run_one_by_one():
    told = Told(workers=4)
    told("submit", "c1", 1, 200)
    told.flow(seconds=0.0001, until=8)
    lease = max(told.board.leases.values(), key=lambda lease: lease.tasks)
    lo, hi = span(lease)
    assert hi - lo > 4
    told.leases()
    told("worker_lost", lease.slave.id, lease.id, lo, hi, "signal 9")
    seen, waiting = [], told.leases()
    while waiting:
        one = waiting.pop(0)
        if lo <= one.lo < hi:
            seen.append((span(one), one.attempt))
        told.ended(one)
        waiting += told.leases()
    assert sorted(seen) == [((task, task + 1), 2) for task in range(lo, hi)]


def test_a_task_that_kills_its_workers_is_poisoned_at_the_third(told):
    told("submit", "c1", 1, 1)
    for attempt in (1, 2, 3):
        (lease,) = told.leases()
        assert lease.attempt == attempt
        told("worker_lost", "s1", lease.id, 0, 1, "signal 11", output=f"said in attempt {attempt}")
    ((*_, lo, hi, _, failures, payload, slave, attempt),) = told.sent("outcome")
    assert (lo, hi, payload, slave, attempt) == (0, 1, None, "s1", 3)
    assert failures["*"]["type"] == "WorkerLost" and failures["*"]["kind"] == "poisoned"
    assert "signal 11" in failures["*"]["message"]
    assert (failures["*"]["output"], failures["*"]["attempt"]) == ("said in attempt 3", 3)
    assert told.leases() == []


def test_lost_slaves_do_not_poison_but_have_a_budget_of_their_own(told):
    told("submit", "c1", 1, 1)
    for _ in range(MAX_LOSSES):
        assert len(told.leases()) == 1
        told("slave_lost", "s1", reason="silence")
        told("slave_joined", "s1", {"cpus": 1}, [], 1)
    ((*_, failures, _, _, _),) = told.sent("outcome")
    assert failures["*"]["kind"] == "lost"


def test_a_draining_slave_gets_nothing_more_and_ends_what_it_has(told):
    told("submit", "c1", 1, 6)
    first = told.leases()
    told("slave_draining", "s1")
    for lease in first:
        told.ended(lease)
    assert told.leases() == []
    assert told.board.slots == 0


def test_a_slave_that_joins_again_without_a_word_starts_with_empty_hands(told):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    told("slave_joined", "s1", {"cpus": 1}, [], 1)
    (again,) = told.leases()
    assert again.attempt == 2
    told.ended(lease)
    assert told.board.counters["late report"] == 1


# -- resources and turns -------------------------------------------------------------------------------------------


def test_a_task_goes_only_where_its_amounts_and_tags_are():
    told = Told(slaves=1)
    told("slave_joined", "g", {"cpus": 2, "gpu": 1}, ["big"], 2)
    told("submit", "c1", 1, 3, options={"resources": {"gpu": 1}})
    told("submit", "c1", 2, 3, options={"resources": {"tags": ["big"]}})
    told("submit", "c1", 3, 1, options={"resources": {"cpus": 3}})
    assert {lease.slave.id for lease in told.leases()} == {"g"}
    (waiting,) = told.board.unplaced(told.now + 5)
    assert waiting["owner"] == "c1" and waiting["number"] == 3 and waiting["waits"] == 5
    assert waiting["slaves"] == {"s1": "has 2 cpus, 3 needed", "g": "has 2 cpus, 3 needed"}


def test_promised_amounts_stay_within_depth_times_the_pool():
    told = Told(workers=4)
    told("submit", "c1", 1, 10, options={"resources": {"cpus": 2}})
    assert len(told.leases()) == 4  # 2 x 4 cpus: two run, two wait on the slave
    told = Told(workers=4)
    told("submit", "c1", 1, 4, options={"resources": {"cpus": 2}, "name": "x"})
    told.flow(seconds=1.0)
    told("submit", "c1", 2, 10, options={"resources": {"cpus": 2}, "name": "x"})
    assert len(told.leases()) == 2


def test_a_batch_that_fits_nowhere_holds_up_nothing_else(told):
    for number in range(1, 50):
        told("submit", "c1", number, 1, options={"resources": {"gpu": 1}})
    told("submit", "c1", 99, 1)
    assert [lease.batch.number for lease in told.leases()] == [99]
    told("slave_joined", "g", {"cpus": 1, "gpu": 1}, [], 1)
    assert told.leases()[0].batch.number == 1


def test_more_workers_and_amounts_let_waiting_tasks_leave(told):
    told("submit", "c1", 1, 1, options={"resources": {"cpus": 3}})
    assert told.leases() == []
    told("slave_changed", "s1", {"cpus": 4}, 4)
    assert len(told.leases()) == 1
    assert told.board.unplaced(told.now) == []


def test_owners_take_turns_whatever_each_has_queued():
    told = Told(slaves=0, owners=("c1", "c2", "c3"))
    told("submit", "c1", 1, 1000)
    told("submit", "c2", 1, 1000)
    told("submit", "c3", 1, 1000)
    told("slave_joined", "s1", {"cpus": 30}, [], 30)
    order = [lease.batch.owner.id for lease in told.leases()]
    assert order == ["c1", "c2", "c3"] * 20


def test_owners_with_different_demands_take_turns_too():
    told = Told(slaves=0, owners=("c1", "c2", "c3"))
    told("submit", "c1", 1, 1000)
    told("submit", "c2", 1, 1000)
    told("submit", "c2", 2, 1000, options={"resources": {"gpu": 0.01}})
    told("submit", "c3", 1, 1000, options={"resources": {"gpu": 0.01}})
    told("slave_joined", "s1", {"cpus": 30, "gpu": 30}, [], 30)
    order = [lease.batch.owner.id for lease in told.leases()]
    assert {owner: order[:30].count(owner) for owner in set(order)} == {"c1": 10, "c2": 10, "c3": 10}


def test_batches_of_an_owner_go_in_order(told):
    for number in (3, 1, 2):
        told("submit", "c1", number, 4)
    order, waiting = [], told.leases()
    while waiting:
        lease = waiting.pop(0)
        order.append((lease.batch.number, lease.lo))
        told.ended(lease, seconds=1.0)
        waiting += told.leases()
    assert order == [(number, task) for number in (3, 1, 2) for task in range(4)]


# -- stealing and schedulers ---------------------------------------------------------------------------------------


def test_a_slave_without_work_gets_a_part_of_the_biggest_lease_after_50_milliseconds():
    told = Told(workers=1)
    told("submit", "c1", 1, 1000)
    told.flow(seconds=0.0001)
    told("submit", "c1", 2, 60)
    leases = told.leases()
    assert not told.board.owners["c1"].lines
    told("slave_joined", "s2", {"cpus": 1}, [], 1)
    told("tick")
    assert told.sent("steal") == []
    told.now = told.board.deadline
    assert told.now == STEAL_AGE
    told("tick")
    ((_, slave, number),) = told.sent("steal")
    lease = told.board.leases[number]
    assert slave == "s1" and lease.tasks == max(lease.tasks for lease in leases) > 1
    told("tick")
    assert number not in {message[2] for message in told.sent("steal")}, "asked twice"
    told("given_back", "s1", number, lease.lo + 1, lease.hi)
    assert told.leases()[0].slave.id == "s2"


def test_big_leases_that_no_idle_slave_can_take_do_not_hide_those_that_one_can():
    told = Told(slaves=0)
    told("slave_joined", "g", {"cpus": 70, "gpu": 70}, [], 70)
    told("submit", "c1", 1, 6000, options={"name": "gpu", "resources": {"gpu": 1}})
    told.flow(seconds=0.0001)
    told("submit", "c1", 2, 7000, options={"name": "gpu", "resources": {"gpu": 1}})
    assert sum(lease.tasks > 2 for lease in told.leases()) >= 70
    told("slave_joined", "s", {"cpus": 1}, [], 1)
    told("submit", "c1", 3, 6, options={"name": "plain"})
    told("slave_joined", "t", {"cpus": 1}, [], 1)
    told.leases()
    told.now = 2 * STEAL_AGE
    told("tick")
    stolen = [told.board.leases[number] for _, _, number in told.sent("steal")]
    assert [lease.batch.number for lease in stolen] == [3]


def test_an_idle_board_asks_for_no_time(told):
    assert told.board.deadline is None
    told("submit", "c1", 1, 1)
    told("slave_joined", "s2", {"cpus": 1}, [], 1)
    told.now = told.board.deadline
    told("tick")  # one long task runs and nothing can be stolen
    assert told.board.deadline is None


class Odd:
    """A scheduler that misbehaves in the way it is told."""

    def __init__(self, way):
        self.way = way

    def place(self, slaves, lease):
        return self.way(slaves)

    def task_pushed(self, slave, count):
        raise RuntimeError("pushed")

    task_finished = task_pushed


def test_a_scheduler_that_raises_or_invents_slaves_stops_nothing():
    for way in (lambda slaves: 1 / 0, lambda slaves: "s9"):
        told = Told(scheduler=Odd(way))
        told("submit", "c1", 1, 3)
        told.flow()
        assert told.board.counters["ended"] == 3
        assert told.board.scheduler_error is not None


def test_a_scheduler_that_declines_is_asked_again_in_time():
    told = Told(scheduler=Odd(lambda slaves: None))
    told("submit", "c1", 1, 1)
    assert told.leases() == []
    told.board.scheduler = None
    told.now = told.board.deadline
    told("tick")
    assert len(told.leases()) == 1


# -- size and restart ----------------------------------------------------------------------------------------------


def test_leases_of_two_lives_never_share_an_id():
    first, second = Board(), Board()
    records = first.restore([], 0.0).records
    assert records == [("life", 1)]
    assert second.restore(records, 0.0).records == [("life", 2)]
    ids = []
    for board in (first, second):
        board.owner_joined("c1", "client", 0.0)
        board.slave_joined("s1", {"cpus": 1}, [], 1, 0.0)
        ids += [message[2].id for message in board.submit("c1", 1, 1, 0.0).messages]
    assert ids[0] != ids[1] and max(ids) < 2**53


def test_a_restored_board_knows_deaths_and_goes_on():
    told = Told()
    told("submit", "c1", 1, 3)
    lease = told.leases()[0]
    told("worker_lost", "s1", lease.id, 0, 1, "signal 9")
    board = Board()
    board.restore(told.records, 0.0)
    board.check()
    assert not board.owners["c1"].attached
    messages = board.slave_joined("s2", {"cpus": 4}, [], 4, 0.0).messages
    assert sorted((span(lease), lease.attempt) for _, _, lease in messages) == [
        ((0, 1), 2),
        ((1, 2), 1),
        ((2, 3), 1),
    ]


def test_a_settled_batch_that_a_restart_made_incomplete_is_dropped():
    told = Told()
    told("submit", "c1", 1, 10)
    board = Board()
    board.restore(told.records, 0.0)
    board.owner_attached("c1", 0.0)
    board.settled("c1", [1], 0.0)
    board.check()
    assert board.slave_joined("s1", {"cpus": 1}, [], 1, 0.0).messages == []


def test_a_million_tasks_cost_as_much_to_submit_and_cancel_as_ten(told):
    told.board.limit = 10**9
    told("submit", "c1", 1, 10**8)
    assert len(told.board.owners["c1"].batches[1].queue) == 1
    assert len([message for message in told("cancel", "c1", 1).messages if message[0] == "outcome"]) <= 5


def test_a_queued_task_weighs_less_than_a_kilobyte_besides_its_payload(told):
    tracemalloc.start()
    try:
        for number in range(10_000):
            told.board.submit("c1", number, 1, 0.0, options={"name": "n", "first": number})
        assert tracemalloc.get_traced_memory()[0] < 1000 * 10_000
    finally:
        tracemalloc.stop()
    told.board.check()


def test_batches_settled_in_any_order_fold_into_one_range_and_are_known_as_repeats(told):
    numbers = random.Random(1).sample(range(500), 500)
    for number in numbers:
        told.board.submit("c1", number, 1, 0.0)
        told.board.cancel("c1", number, 0.0)
        told.board.settled("c1", [number], 0.0)
        assert told.board.submit("c1", number, 1, 0.0).records == [], "taken again"
    assert told.board.owners["c1"].forgotten == [[0, 500]]


def test_demands_and_names_that_nobody_uses_any_more_do_not_pile_up(told):
    for number in range(2000):
        told.board.submit(
            "c1", number, 1, 0.0, options={"resources": {"cpus": 1, "x": number + 1}, "name": str(number)}
        )
        told.board.cancel("c1", number, 0.0)
        told.board.settled("c1", [number], 0.0)
    told.board.check()
    assert len(told.board.demands) <= 64
    assert len(told.board.owners["c1"].kinds) <= 1001
    assert len(told.board.owners["c1"].forgotten) == 1


def test_a_slave_tells_why_it_can_never_take_a_lease():
    slave = Slave("s1", "", {"cpus": 2}, ["a"], 2)
    assert slave.lacks(Demand((("cpus", 2),), frozenset("a"))) == ""
    assert slave.lacks(Demand((("gpu", 1),), frozenset())) == "has 0 gpu, 1 needed"
    assert slave.lacks(Demand((), frozenset("b"))) == "lacks the tag b"


def restarted(told):
    """A board of the next life of its master, with a `Told` around it."""
    again = Told(slaves=0, owners=())
    again.records = list(told.records)
    again("restore", again.records)
    return again


def test_a_slave_of_an_earlier_life_goes_on_with_what_it_holds_and_nothing_runs_twice(told):
    told("submit", "c1", 1, 8)
    first, second = told.leases()[:2]
    told.ended(first)
    held = [[second.id, "c1", 1, second.lo, second.hi, 1]]
    again = restarted(told)
    again("rest", 5.0)
    again("slave_joined", "s1", {"cpus": 2}, [], 2, holds=held)
    assert again.leases() == [] and list(again.board.leases) == [second.id]
    again("rest", 0.0)
    again("owner_attached", "c1")
    again("result", "s1", second.id, second.lo, second.hi, 0.1, "late", {})
    again.flow()
    ranges = sorted(message[3:5] for message in again.sent("outcome"))
    assert span(second) in ranges and span(first) not in ranges
    assert sorted(n for lo, hi in ranges for n in range(lo, hi)) == sorted({*range(8)} - {first.lo})


@pytest.mark.parametrize(
    "row", [(7, "c2", 1, 0, 1, 1), (7, "c1", 2, 0, 1, 1), (7, "c1", 1, 1, 9, 1), (7, "c1", 1, 0, 1, 1)], ids=str
)
def test_what_is_not_open_here_any_more_is_not_taken_over(told, row):
    told("submit", "c1", 1, 4)
    told.ended(told.leases()[0])
    again = restarted(told)
    again("rest", 5.0)
    again("slave_joined", "s1", {"cpus": 2}, [], 2, holds=[row])
    assert not again.board.leases


@pytest.mark.parametrize("restart", [True, False])
def test_a_lease_that_comes_back_with_its_slave_is_the_attempt_that_it_was(told, restart):
    told("submit", "c1", 1, 1)
    (lease,) = told.leases()
    if restart:
        told = restarted(told)
        told("rest", 5.0)
    else:
        told("rest", 5.0)
        told("slave_lost", "s1", reason="silence")
    told("slave_joined", "s1", {"cpus": 2}, [], 2, holds=[[lease.id, "c1", 1, 0, 1, 1]])
    assert told.board.leases[lease.id].attempt == 1
    told("slave_lost", "s1", reason="silence")
    told("slave_joined", "s1", {"cpus": 2}, [], 2, holds=[[lease.id, "c1", 1, 0, 1, 3]])
    assert told.board.leases[lease.id].attempt == 3, "what the journal did not hold any more, the slave knows"


def test_a_lease_of_a_life_of_which_nothing_is_known_is_of_another_owner_of_that_name():
    told = Told(slaves=0, owners=())
    told("restore", [], salt=1000)
    told("owner_joined", "c1", "client")
    told("submit", "c1", 1, 1)
    told("slave_joined", "s1", {"cpus": 2}, [], 2, holds=[[(1 << 32) + 7, "c1", 1, 0, 1, 1]])
    (lease,) = told.leases()
    assert lease.id == (1 << 32) + 1001 and not told.board.counters["adopted"]


def test_a_new_lease_never_has_the_number_of_one_that_was_taken_over():
    told = Told(slaves=0, owners=())
    told("restore", [])
    told("owner_joined", "c1", "client")
    told("slave_joined", "s1", {"cpus": 2}, [], 2)
    told("submit", "c1", 1, 8)
    held = told.leases()[0]
    told.records = [record for record in told.records if record[0] != "life"]  # this life was never noted down
    again = restarted(told)
    again("slave_joined", "s1", {"cpus": 2}, [], 2, holds=[[held.id, "c1", 1, held.lo, held.hi, 1]])
    numbers = [lease.id for lease in again.leases()]
    assert numbers and held.id in again.board.leases and held.id not in numbers


def test_nothing_is_leased_while_slaves_are_expected_back_and_all_of_it_after_that():
    told = Told()
    told("rest", 5.0)
    told("submit", "c1", 1, 2)
    assert told.leases() == [] and told.board.deadline == 5.0
    told.now = 5.0
    told("tick")
    assert len(told.leases()) == 2


def test_a_snapshot_stands_for_the_outcomes_before_it():
    told = Told(owners=())
    told("owner_joined", "1", "system")
    told("submit", "1", 0, 4)
    told("submit", "1", 1, 1)
    by_batch = {(lease.batch.number, lease.lo): lease for lease in told.leases()}
    while told.board.leases:
        told.ended(next(iter(told.board.leases.values())))
    assert by_batch
    told("settled", "1", [0, 1])
    assert not [record for record in told.records if record[0] == "settled"]
    records = [record for record in told.records if record[1:3] != ("1", 1)]
    records = [record for record in records if record[0] != "outcome" or record[3] > 0]
    board = Board()
    board.restore([*records, ("snapshot", "1", 2, 2, [[0, [[1, 4]]]], 5, 2, "state")], 0.0)
    board.check()
    (batch,) = board.owners["1"].batches.values()
    assert sorted(outcome[:2] for outcome in batch.outcomes) == [(0, 1), (1, 2), (2, 3), (3, 4)] and not batch.queue


# -- cost --------------------------------------------------------------------------------------------------------


def bench(size, leases=30_000, slaves=1):
    """Microseconds from submit to result per lease of `size` tasks: `python tests/test_board.py`."""
    board = Board(limit=10**9)
    board.owner_joined("c1", "client", 0.0)
    for number in range(slaves):
        board.slave_joined(f"s{number}", {"cpus": 2}, [], 2, 0.0)
    seconds = 0.0049 / size if size > 1 else 0.004
    begun, ended = time.perf_counter(), 0
    waiting = [message[2] for message in board.submit("c1", 1, size * leases, 0.0, 64).messages]
    while waiting:
        lease = waiting.pop()
        ended += 1
        effects = board.result(lease.slave.id, lease.id, lease.lo, lease.hi, seconds * lease.tasks, None, {}, 0.0)
        waiting += [message[2] for message in effects.messages if message[0] == "lease"]
    spent = time.perf_counter() - begun
    print(f"{slaves} slaves, {size} tasks a lease: {spent / ended * 1e6:.1f} us a lease, {ended / spent:,.0f} leases/s")


if __name__ == "__main__":
    for number in (1, 2, 1000):
        bench(1, slaves=number)
        bench(512, slaves=number)
