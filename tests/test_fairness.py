"""Users of one swarm: how its slots are shared between them, and what each may have of the master.

`Shop` is a master's board with slaves on a virtual clock. Its owners have always something queued, of tasks of the
lengths that were asked for, and what each user had of the slots is measured.
"""

import collections
import heapq
import itertools
import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
from concurrent_swarm.client import explained
from concurrent_swarm.master import TURN, Board, Quotas, User
from conftest import at_once, text_of, wait_until

from concurrent_swarm import components, rpc

CHECK_EVERY = 16  # events of a schedule
QUEUED = 40  # tasks of an owner, at least


class Shop:
    """A board, and slaves that run leases in order. `had`: seconds of slots by user, `ended`: tasks by owner."""

    def __init__(self, slots=2, slaves=1, **quotas):
        self.board, self.now = Board(weigh=lambda payload: len(payload or "")), 0.0
        self.board.quotas = Quotas(**quotas)
        self.had, self.ended, self.events = collections.Counter(), collections.Counter(), 0
        self.owners, self.numbers = {}, itertools.count()  # owner -> (options, tasks in a batch, seconds of the next)
        self.free = {f"s{number}": slots for number in range(slaves)}
        self.waiting = {name: collections.deque() for name in self.free}
        self.running, self.refused = [], []
        self.changes, self.last = 0, {}  # of applications on slaves
        for name in self.free:
            self("slave_joined", name, {"cpus": slots}, [], slots)

    def __call__(self, verb, *params, **named):
        effects = getattr(self.board, verb)(*params, now=self.now, **named)
        self.events += 1
        if self.events % CHECK_EVERY == 0 or self.now == 0.0:
            self.board.check()
        for kind, name, *rest in effects.messages:
            if kind == "lease":
                self.waiting[name].append(rest[0])
                self.begin(name)
            elif kind == "refused":
                self.refused.append(rest[-1])
        return effects

    def join(self, owner, user, seconds, app="", count=64, kind="client"):
        """An owner that always has something queued, batches of `count` tasks of `seconds()` each; 0: nothing."""
        self.owners[owner] = {"name": "n", "bundle": app or user}, count, seconds
        self("owner_joined", owner, kind, user=user)
        self.refill(owner)

    def refill(self, owner):
        count = self.owners[owner][1]
        while count and sum(line.tasks for line in self.board.owners[owner].lines.values()) < QUEUED:
            self.submit(owner, count)

    def submit(self, owner, count=1, **options):
        options = {**self.owners[owner][0], **options}
        return self("submit", owner, next(self.numbers), count, options=options, payload="12345")

    def begin(self, slave):
        while self.free[slave] and self.waiting[slave]:
            lease = self.waiting[slave].popleft()
            self.free[slave] -= 1
            seconds = sum(self.owners[lease.batch.owner.id][2]() for _ in range(lease.tasks))
            app = lease.batch.options["bundle"]
            self.changes += self.last.get(slave) != app
            self.last[slave] = app
            heapq.heappush(self.running, (self.now + seconds, lease.id, seconds, slave, lease))

    def run(self, until):
        """Let the time pass."""
        while self.running and self.running[0][0] <= until:
            if self.board.deadline is not None and self.board.deadline < self.running[0][0]:
                self.now = max(self.now, self.board.deadline)
                self("tick")
                continue
            self.end(*heapq.heappop(self.running))
        self.now = until
        return self

    def time_of(self, user):
        """Seconds of slots that it had, of what runs too."""
        running = [one for one in self.running if one[-1].batch.owner.user.name == user]
        return self.had[user] + sum(self.now - (when - seconds) for when, _, seconds, *_ in running)

    def end(self, when, _, seconds, slave, lease):
        self.now, owner = when, lease.batch.owner
        self.free[slave] += 1
        self.had[owner.user.name] += seconds
        self.ended[owner.id] += lease.tasks
        self("result", slave, lease.id, lease.lo, lease.hi, seconds, "result", {})
        self.begin(slave)
        if not lease.batch.remaining:
            self("settled", owner.id, [lease.batch.number])
        self.refill(owner.id)

    def holds(self, user):
        """Slots that run tasks of a user."""
        return sum(one[-1].batch.owner.user.name == user for one in self.running)


def always(seconds):
    return lambda: seconds


def around(seconds, spread, rng):
    return lambda: seconds * rng.uniform(1 - spread, 1 + spread)


def about_equal(one, other, share=0.1):
    return abs(one - other) < share * max(one, other)


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_two_users_get_the_same_time_whatever_the_length_of_their_tasks(seed):
    rng = random.Random(seed)
    slots, slaves, means = rng.choice((1, 2, 4)), rng.choice((1, 2)), []
    shop = Shop(slots, slaves)
    for user in "ab":
        means.append(10 ** rng.uniform(-3, 0))
        shop.join(f"c{user}", user, around(means[-1], rng.uniform(0.1, 0.9), rng), count=rng.choice((1, 64, 500)))
    shop.run(max(3.0, 200 * max(means) / slots / slaves))
    assert about_equal(shop.time_of("a"), shop.time_of("b"))


def test_three_systems_of_one_user_and_one_of_another_get_half_each():
    shop = Shop(slots=2)
    for number, seconds in enumerate((0.001, 0.02, 0.3)):
        shop.join(str(number), "a", always(seconds))
    shop.join("3", "b", always(0.004))
    shop.run(20.0)
    assert about_equal(shop.had["a"], shop.had["b"])
    assert min(shop.ended.values()) > 0, "one of them got nothing"


def test_time_of_several_processors_counts_for_each():
    shop = Shop(slots=4)
    for owner in "ab":
        shop.join(f"c{owner}", owner, always(1.0), count=0)
    shop.submit("ca"), shop.submit("cb", resources={"cpus": 2})
    shop.submit("ca")
    shop.run(1.0)
    assert shop.board.users["b"].spent == shop.board.users["a"].spent == 2.0


@pytest.mark.parametrize("first", ["short", "long"])
def test_neither_a_flood_of_short_tasks_nor_a_few_long_ones_starve_the_other(first):
    shop, held = Shop(slots=4), []
    joining = {"short": ("short", "a", always(0.0005), "", 500), "long": ("long", "b", always(2.0), "", 1)}
    shop.join(*joining.pop(first))
    shop.run(1.0)
    shop.join(*joining.popitem()[1])
    shop.run(1.1 if first == "short" else 4.5)  # what was handed out before anybody else was here has ended
    for _ in range(40):
        shop.run(shop.now + 0.2)
        held.append(shop.holds("b"))
    assert 1.5 <= sum(held) / len(held) <= 2.5 and max(held) < 4, held


def test_whoever_was_away_is_owed_nothing_for_it_and_owes_nothing():
    shop = Shop(slots=2)
    shop.join("ca", "a", always(0.003))
    shop.run(10.0)
    shop.had.clear()
    shop.join("cb", "b", always(0.003))
    shop.run(14.0)
    assert about_equal(shop.had["a"], shop.had["b"])


def test_a_lone_task_of_a_user_waits_for_no_turn_of_one_who_floods():
    shop, waits = Shop(slots=2), []
    shop.join("ca", "a", always(0.002), count=500)
    shop.join("cb", "b", always(0.001), count=0)
    shop.run(1.0)
    for _ in range(20):
        began, ended = shop.now, shop.ended["cb"]
        shop.submit("cb")
        while shop.ended["cb"] == ended:
            shop.run(shop.now + 0.001)
        waits.append(shop.now - began)
    assert max(waits) < TURN


def test_what_others_cannot_use_goes_to_whoever_can():
    shop = Shop(slots=4, running=1)
    shop.join("ca", "a", always(0.01))
    shop.run(1.0)
    assert 0.9 < shop.had["a"] < 1.1, "it may have one slot"
    shop.board.quotas = Quotas()
    shop("tick")
    shop.run(2.0)
    assert shop.had["a"] > 4.5, "and now all of them"


# -- turns -----------------------------------------------------------------------------------------------------------


def test_the_application_changes_on_a_slave_once_in_a_turn_and_not_with_each_lease():
    for users in ("ab", "aa"):
        shop = Shop(slots=1)
        for number, user in enumerate(users):
            shop.join(f"c{number}", user, always(0.002), app=f"app {number}", count=500)
        shop.run(4.0)
        assert about_equal(shop.ended["c0"], shop.ended["c1"])
        assert 4.0 / TURN / 2 < shop.changes < 4.0 / TURN * 1.2, f"{shop.changes} changes in 4 s, users {users}"


def test_owners_of_one_user_with_one_application_take_turns_lease_by_lease():
    shop = Shop(slots=1)
    for number in range(5):
        shop.join(f"c{number}", "a", always(0.002), count=500)
    shop.run(1.0)
    del shop.ended["c0"]
    order = [lease.batch.owner.id for lease in shop.board.leases.values()]
    assert len(set(order)) == len(order) > 1


def test_a_thousand_owners_of_a_user_cost_as_much_per_lease_as_ten():
    def cost(owners):
        shop = Shop(slots=2)
        shop.board.check = lambda: None
        shop.join("cb", "b", always(0.01), app="other")
        for number in range(owners):
            shop.join(f"c{number}", "a", always(0.01), app=f"app {number}", count=QUEUED)
        shop.run(1.0)
        began, before = time.process_time(), shop.board.counters["leases"]
        shop.run(3.0)
        return (time.process_time() - began) / (shop.board.counters["leases"] - before)

    assert cost(1000) < 10 * cost(10)


# -- quotas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "count", "why"),
    [
        ({"queued": 10}, 6, "user a has 6 queued tasks; with 6 more it passes 10 (quotas.queued of the master)"),
        ({"bytes": 12}, 1, "user a has 10 bytes; with 5 more it passes 12 (quotas.bytes of the master)"),
    ],
)
def test_what_passes_a_quota_is_refused_as_a_whole_with_value_limit_and_setting(quota, count, why):
    shop = Shop(slots=0, **quota)
    for owner in ("c1", "c2", "c3"):
        shop.join(owner, "b" if owner == "c3" else "a", always(0.01), count=0)
    shop.submit("c1", count)
    if "bytes" in quota:
        shop.submit("c2", count)
    effects = shop.submit("c2", count)
    assert shop.refused == [why] and effects.records == effects.after == []
    shop.submit("c3", count)
    assert len(shop.refused) == 1, "another user has quotas of its own"
    shop("cancel", "c1", None)
    shop("settled", "c1", [0])
    assert shop.submit("c2", count).after, "there is room again"


def test_a_system_that_runs_is_not_refused_its_tasks_for_it_must_come_to_the_same_ones_again():
    shop = Shop(slots=0, queued=10)
    shop.join("1", "a", always(0.01), count=0, kind="system")
    assert shop.submit("1", 100).after and not shop.refused
    shop.join("c1", "a", always(0.01), count=0)
    shop.submit("c1")
    assert shop.refused, "its tasks count"


def test_a_user_never_has_more_leases_than_it_may_and_others_do_not_notice():
    shop = Shop(slots=3, running=1)
    shop.join("ca", "a", always(0.005))
    shop.join("cc", "a", always(0.005), app="second")
    shop.join("cb", "b", always(0.005))
    for _ in range(200):
        shop.run(shop.now + 0.01)
        assert shop.board.users["a"].running <= 1 and shop.board.users["b"].running <= 1
    assert about_equal(shop.had["a"], shop.had["b"]) and shop.had["a"] > 1.8
    waiting = next(batch for batch in shop.board.owners["ca"].batches.values() if batch.queued)
    about = shop.board.explain("ca", waiting.first + waiting.queue[-1][1] - 1, shop.now)
    assert about["behind"] == "user a has 1 leases, as many as it may (quotas.running of the master)"
    assert f"  user     {about['behind']}" in explained(about)


def test_a_waiting_task_is_told_whose_turn_it_is():
    shop = Shop(slots=1)
    for user in "ab":
        shop.join(f"c{user}", user, always(1.0))
    shop.run(10.5)
    told = {user: shop.board.explain(f"c{user}", QUEUED, shop.now) for user in "ab"}
    assert {about["state"] for about in told.values()} == {"waiting"}
    first, behind = sorted("ab", key=lambda user: told[user]["behind"])
    assert told[first]["behind"] == ""
    assert told[behind]["behind"].startswith(f"it is the turn of user {first}; ")
    assert [turn["owner"] for turn in told[behind]["turns"]] == [f"c{first}", f"c{behind}"]
    assert Shop().board.behind(User("c")) == ""


def test_what_users_have_is_counted_anew_after_a_restart():
    shop, records = Shop(slots=0), []
    for owner, user in (("c1", "a"), ("c2", "a"), ("c3", "b")):
        records += shop("owner_joined", owner, "client", user=user).records
        records += shop("submit", owner, 1, 4, payload="12345").records
    board = Board(weigh=lambda payload: len(payload or ""))
    board.restore(records, 0.0)
    board.check()
    assert {name: (user.queued, user.bytes) for name, user in board.users.items()} == {"a": (8, 10), "b": (4, 5)}
    old = Board()
    old.restore([("owner", "c1", "client", "key", "")], 0.0)
    assert old.owners["c1"].user.name == "", "as journals of before have it"


def test_users_that_come_and_go_are_forgotten_but_for_those_whose_leases_still_run():
    shop = Shop(slots=1)
    shop.join("c", "stays", always(1.0), count=1)
    running = shop.run(0.5).board.users["stays"].running
    for number in range(1000):
        shop("owner_joined", f"c{number}", "client", user=f"user {number}")
        shop("owner_gone", f"c{number}" if number else "c")  # the first leaves while its lease runs
        shop.board.check()
    assert len(shop.board.users) < 100
    assert shop.board.users["stays"].running == running > 0, "its leases are not given back yet"


# -- in a swarm ------------------------------------------------------------------------------------------------------


def as_user(here, user, name):
    """The arguments by which a client has a key of its own that is enrolled under the name of this user."""
    folder = components.Environment(Path(here.folder, name), "client").create().path
    keyring = rpc.Keyring(str(here.master.folder / "keys"))
    ticket = rpc.Access.load(str(here.master.folder / "keys" / "client.access"))
    keyring.enrol(rpc.NodeKeys(str(folder / "keys")).enrolment(ticket, user))
    return "--env", folder


def queued(here, user):
    return here.proxy.status()["users"].get(user, {}).get("queued", 0)


@pytest.mark.slow
@at_once
def test_a_client_over_its_quota_is_told_value_and_limit_and_its_other_work_goes_on(swarm):
    here = swarm(slaves=1, workers=1, master=("--set", "quotas.queued=50"))
    run = here.run_client("users.py", "--app", "Again", "--set", "users.count=200", *as_user(here, "alice", "c"))
    sentence = r"user alice has (\d+) queued tasks; with (\d+) more it passes 50 \(quotas.queued of the master\)"
    told = [re.fullmatch(sentence, why) for why in run.about["result"]["refusals"]]
    assert told and all(told) and all(int(one[1]) + int(one[2]) > 50 for one in told)
    assert run.about["result"]["refused"] == 0 and run.about["result"]["done"] >= 10 + 16, "what was taken was done"
    assert run.about["failed"] == sum(int(one[2]) for one in told), "a batch was refused in part"
    audit = here.master.folder / "logs" / "audit.jsonl"
    written = wait_until(lambda: re.findall(r'"event": "refuse", "who": "alice".*passes 50', text_of(audit)), "audited")
    assert len(written) == len(told)


@pytest.mark.slow
@at_once
def test_a_worker_serves_one_user_alone(swarm):
    here = swarm(slaves=1, workers=1)
    words = [as_user(here, user, f"{user}{number}") for number in (1, 2) for user in ("alice", "bob")]
    pids = [here.run_client("users.py", "--app", "Worker", *word).about["result"] for word in words]
    assert pids[:2] == pids[2:] and pids[0] != pids[1]


@pytest.mark.slow
@at_once
def test_a_user_has_as_many_task_systems_at_once_as_it_may(swarm):
    here = swarm(slaves=1, workers=2, master=("--set", "quotas.systems=2"))
    run = here.run_client("users.py", "--app", "Systems", "--set", "users.count=3", "--set", "users.seconds=0.3",
                          *as_user(here, "alice", "c"))
    about = run.about["result"]
    assert (about["done"], about["refused"]) == (2, 1)
    why = "user alice has 2 task systems; with 1 more it passes 2 (quotas.systems of the master)"
    assert about["refusals"] == [why]
    audit = (here.master.folder / "logs" / "audit.jsonl").read_text().splitlines()
    assert [line["who"] for line in map(json.loads, audit) if line.get("why") == why] == ["alice"]


@pytest.mark.slow
@at_once
def test_what_a_user_may_have_follows_the_configuration_of_a_running_master(swarm):
    here = swarm(slaves=1, workers=2)
    file = here.master.folder / "configs" / "env.ini"
    file.write_text("[quotas]\nrunning = 1\n")
    wait_until(lambda: here.proxy.status()["quotas"].get("running") == 1, "the quota counts")
    here.start_client("users.py", "--app", "Plain", "--set", "users.seconds=0.2", *as_user(here, "alice", "c"))
    wait_until(lambda: queued(here, "alice"), "tasks wait")
    for _ in range(20):
        status = here.proxy.status()
        assert status["busy"] <= 1 and status["users"]["alice"]["running"] <= 1
    assert status["users"]["alice"]["bytes"] > 0 and status["users"]["alice"]["systems"] == 0
    file.write_text("[quotas]\nrunning = 0\n")
    wait_until(lambda: here.proxy.status()["busy"] == 2, "both slots are used")


@pytest.mark.slow
@at_once
def test_the_work_of_a_client_that_vanished_is_kept_as_long_as_its_user_may_have_it(swarm):
    here = swarm(slaves=1, workers=1, master=("--set", "quotas.retention=1"))
    run = here.start_client("users.py", "--app", "Plain", *as_user(here, "alice", "c"))
    wait_until(lambda: queued(here, "alice"), "tasks wait")
    run.send(signal.SIGKILL)
    wait_until(lambda: "did not come back in 1 s: its work is dropped" in here.master.err, "it is forgotten", 60)


@pytest.mark.slow
def test_two_users_share_a_slave_equally_however_many_clients_each_has(swarm):
    here = swarm(slaves=1, workers=1)
    many = ("users.py", "--app", "Plain", "--set", "users.count=3000")
    for number in range(3):
        here.start_client(*many, *as_user(here, "alice", f"a{number}"))
    wait_until(lambda: queued(here, "alice") > 6000, "all of them are here")
    few = ("users.py", "--app", "Plain", "--json", "--set", "users.count=300")
    one = here.start_client(*few, *as_user(here, "bob", "b"))
    status = here.proxy.status
    before = wait_until(lambda: (told := status())["users"].get("bob", {}).get("queued") and told, "so is the other")
    his, result = before["users"]["bob"]["queued"], one.wait().about["result"]
    others = result["done by all"] - before["done"] - his
    assert result["done"] == 300 and his / 2 < others < 2 * his, f"while bob had {his} tasks done alice had {others}"
