"""The board under faults: a stress of random events, and a simulated swarm in which everything may go wrong.

A schedule is one run of `Swarm`: owners, slaves and a master on a virtual clock, all chance from one seed. Faults rain
until at least 50 events have passed; then they stop, and every task of every owner that is still there must reach
exactly one outcome. `check()` runs after every event. A failing run names its seed:

    SEED=4711 python -m pytest tests/test_board_faults.py -k one_schedule
    SCHEDULES=100000 python -m pytest tests/test_board_faults.py -k many
"""

import collections
import functools
import heapq
import math
import os
import random
import time

import pytest
from concurrent_swarm.components import Error
from concurrent_swarm.master import Board, Effects, Quotas, split
from conftest import in_time

from concurrent_swarm import tasks

SEED = int(os.environ.get("SEED", 0))
SCHEDULES = int(os.environ.get("SCHEDULES", 1_000))
MIN_EVENTS = 50  # events under faults per schedule
END = 1000.0  # virtual seconds after which a schedule hangs
RARE = ({"cpus": 2}, {"gpu": 1}, {"tags": ["big"]})  # what not every slave has
USER_OF = {"c1": "b"}  # the owners of others than user a
DEADLY = 9  # task 0 of every so manyth batch kills its worker


def weight(payload):
    return len(payload or ())


# -- a simulated owner -------------------------------------------------------------------------------------------


class SimOwner:
    """A client: sends again what was not acknowledged, drops repeated outcomes, settles what is complete."""

    def __init__(self, swarm, name):
        self.swarm, self.name = swarm, name
        self.there, self.attached, self.joined = True, False, False
        self.batches = {}  # number -> (count, group, options)
        self.accepted = set()
        self.outcomes = {}  # number -> {task: kind of outcome}
        self.settled = set()
        self.cancelled = set()

    def attach(self):
        """Connect; say again what may have got lost."""
        if not self.there or self.attached:
            return
        self.attached = True
        board = self.swarm.board
        known = self.name in board.owners
        joining = {} if known else {"kind": "client", "user": USER_OF.get(self.name, "a")}
        self.swarm.event(board.owner_attached if known else board.owner_joined, self.name, **joining)
        for number in self.batches:
            if number not in self.accepted and number not in self.settled:
                self.send(number)

    def submit(self, number, count, group, options):
        self.batches[number] = (count, group, options)
        self.outcomes[number] = {}
        if self.attached:
            self.send(number)

    def send(self, number):
        count, group, options = self.batches[number]
        payload = (self.name, number)
        self.swarm.post(lambda: self.call("submit", number, count, group=group, options=options, payload=payload))

    def call(self, verb, *params, **named):
        """A message that has arrived at the master, if the owner is still connected by then."""
        if self.there and self.attached and self.name in self.swarm.board.owners:
            self.swarm.event(getattr(self.swarm.board, verb), self.name, *params, **named)

    def hear(self, kind, number, *rest):
        if not (self.there and self.attached):
            return
        if kind == "accepted":
            self.accepted.add(number)
            return
        if kind == "retrying":
            return
        if kind == "unplaceable":  # here, number is the id of a task
            assert number.startswith(f"{self.name}.") and rest[0] > 0 and rest[1].startswith("no slave has ")
            return
        assert kind == "outcome", f"{kind} {number} {rest}"
        lo, hi, _, failures, payload, _, attempt = rest
        assert attempt >= 1 and all(one.get("attempt", attempt) == attempt for one in failures.values())
        reason = failures.get("*", {}).get("kind", "")
        assert reason or payload == ("ran", self.name, number, lo, hi, attempt), "results of others, another attempt"
        assert reason != "cancelled" or number in self.cancelled or (number, lo) in self.cancelled
        assert reason != "unplaceable" or rest[3]["*"]["message"].startswith("no slave has ")
        assert reason != "unplaceable" or self.batches[number][2]["resources"] in RARE, "any slave can take it"
        assert reason != "limit" or self.batches[number][2].get("limits")
        failed = {int(task): one for task, one in failures.items() if task != "*"}
        again = {task for task, one in failed.items() if one.get("again")}
        later = {task for task, one in failed.items() if one.get("retried")}
        for task, one in failed.items():
            if one["kind"] == "error":
                assert (task in later) == (one["retries"] > one["errors"]), "more attempts than its rules say, or less"
        assert {(number, task) for task in again} <= self.cancelled
        assert reason or lo or number % DEADLY, "a task that kills its worker has a result"
        assert 0 <= lo < hi <= self.batches[number][0]
        for task in again:  # an owner that was away may hear it here first
            assert self.outcomes[number].setdefault(task, "cancelled") == "cancelled", "it ran, or ended otherwise"
        for task in {*range(lo, hi)} - later:
            self.outcomes[number].setdefault(task, reason or failed.get(task, {}).get("kind", ""))
        if len(self.outcomes[number]) == self.batches[number][0]:
            self.settled.add(number)
            self.swarm.post(lambda: self.call("settled", [number]))

    def unfinished(self):
        return self.there and len(self.settled) < len(self.batches)


# -- a simulated slave -------------------------------------------------------------------------------------------


class SimSlave:
    """Runs leases on its slots in order. What it sends arrives in order, late, and sometimes twice."""

    def __init__(self, swarm, name):
        self.swarm, self.name = swarm, name
        self.connected = False
        self.life = 0
        self.leases = {}  # id -> Lease
        self.open = {}  # id -> (lo, hi) not reported yet
        self.running = set()
        self.held = {}  # id -> lease as it was when the connection broke, if the slave goes on without one
        self.unsaid = []  # what it has to report since

    def join(self):
        if self.connected:
            return
        rng = self.swarm.random
        self.connected = True
        self.life += 1
        self.workers, self.draining = rng.choice((1, 2, 2, 3)), False
        self.broken = rng.random() < 0.3  # it can set up nothing
        pools = {"cpus": self.workers, **({"gpu": 1} if rng.random() < 0.3 else {})}
        tags = ["big"] if rng.random() < 0.3 else []
        if self.swarm.calm:
            self.workers, pools, tags, self.broken = 4, {"cpus": 4, "gpu": 2}, ["big"], False
        holds = list(self.held.values())
        self.swarm.event(self.swarm.board.slave_joined, self.name, pools, tags, self.workers, holds=holds)
        self.go_on()

    def go_on(self):
        """Keep what the master wants of what was held, and report what came of it."""
        board, held, unsaid = self.swarm.board, self.held, self.unsaid
        self.held, self.unsaid = {}, []
        kept = {number for number in held if number in board.leases and board.leases[number].slave.id == self.name}
        self.swarm.adopted += len(kept)
        for number in [number for number in self.leases if number in held and number not in kept]:
            self.done(number)
        for verb, number, *rest in unsaid:
            if number in kept:
                self.send(verb, number, *rest)
        self.start()  # what had not begun when the connection broke

    def leave(self, dead):
        """The connection breaks. A slave that is not dead goes on, and its results come when nobody waits for them,
        perhaps at the next master."""
        if not self.connected:
            return None if not dead else self.clear()
        self.connected = False
        if not dead and self.swarm.random.random() < 0.5:
            owners = {number: lease.batch.owner.id for number, lease in self.leases.items()}
            self.held = {n: (n, owners[n], self.leases[n].batch.number, *self.open[n], self.leases[n].attempt)
                         for n in owners}  # fmt: skip
            return None
        for number, (lo, hi) in () if dead else self.open.items():
            batch = self.leases[number].batch
            payload = ("ran", batch.owner.id, batch.number, lo, hi, self.leases[number].attempt)
            arrive = functools.partial(self.arrive_late, number, lo, hi, payload)
            self.swarm.later(self.swarm.random.uniform(0, 0.3), arrive)
        self.clear()

    def arrive_late(self, number, lo, hi, payload):
        self.swarm.event(self.swarm.board.result, self.name, number, lo, hi, 0.1, payload, {})

    def clear(self):
        self.leases, self.open, self.running = {}, {}, set()
        self.held, self.unsaid = {}, []

    def hear(self, kind, *rest):
        if not self.connected:
            return
        if kind == "lease":
            lease = rest[0]
            assert lease.id not in self.leases
            self.leases[lease.id], self.open[lease.id] = lease, (lease.lo, lease.hi)
            self.start()
        elif rest[0] in self.leases:
            getattr(self, kind)(*rest)

    def start(self):
        waiting = [number for number in self.leases if number not in self.running]
        for number in waiting[: max(0, self.workers - len(self.running))]:
            self.running.add(number)
            self.swarm.later(self.swarm.work(), lambda number=number: self.step(number))

    def step(self, number):
        """A running lease gets somewhere: it ends, reports a part, or loses its worker."""
        if number not in self.running:
            return
        rng, swarm, lease = self.swarm.random, self.swarm, self.leases[number]
        lo, hi = self.open[number]
        fate = 1.0 if swarm.calm else rng.random()
        if lo == 0 and lease.batch.number % DEADLY == 0:
            self.send("worker_lost", number, lo, hi, "signal 11")
            self.done(number)
        elif fate < 0.05:
            at = rng.randrange(lo, hi)
            if rng.random() < 0.5 and at > lo:
                self.result(lease, lo, at)
                lo = at
            self.send("worker_lost", number, lo, hi, "signal 9")
            self.done(number)
        elif fate < 0.3 and hi - lo > 1:
            at = rng.randrange(lo + 1, hi)
            self.result(lease, lo, at)
            self.open[number] = (at, hi)
            swarm.later(swarm.work(), lambda: self.step(number))
        else:
            self.result(lease, lo, hi)
            self.done(number)

    def result(self, lease, lo, hi):
        payload = ("ran", lease.batch.owner.id, lease.batch.number, lo, hi, lease.attempt)
        self.send("result", lease.id, lo, hi, self.swarm.work() * (hi - lo), payload, self.failures(lease, lo, hi))

    def failures(self, lease, lo, hi):
        """What goes wrong with these tasks themselves."""
        rng = self.swarm.random
        if self.broken:
            return {str(task): {"kind": "setup"} for task in range(lo, hi)}
        if self.swarm.calm or rng.random() < 0.5:
            return {}
        rules = lease.batch.options.get("limits", {}).get("retries", {})
        why = {"kind": "error", "retries": rules.get("Exception", 0), "errors": lease.past.errors}
        return {str(task): why for task in range(lo, hi) if rng.random() < 0.5}

    def done(self, number):
        del self.leases[number], self.open[number]
        self.running.discard(number)
        self.start()

    def revoke(self, number, kill):
        if number not in self.running or kill:
            self.send("given_back", number, *self.open[number])
            self.done(number)

    def late(self, number, seconds):
        if self.swarm.random.random() < 0.8:  # else it hangs
            failures = {"*": {"kind": "limit", "retries": 0}}
            self.send("result", number, *self.open[number], seconds, ("ran",), failures)
            self.done(number)

    def steal(self, number):
        lo, hi = self.open[number]
        if number not in self.running:
            self.send("given_back", number, lo, hi)
            self.done(number)
        elif hi - lo > 1:
            middle = (lo + hi) // 2
            self.send("given_back", number, middle, hi)
            self.open[number] = (lo, middle)

    def drain(self):
        self.draining = True
        for number in [number for number in self.leases if number not in self.running]:
            self.send("given_back", number, *self.open[number])
            self.done(number)

    def send(self, verb, *params):
        """To the master: lost with the connection, unless it comes late under the next one; sometimes doubled."""
        rng, swarm, life, master = self.swarm.random, self.swarm, self.life, self.swarm.lives
        if self.held and not self.connected:
            self.unsaid.append((verb, *params))
            return
        copies = 2 if not swarm.calm and rng.random() < 0.05 else 1

        def arrive():
            late = rng.random() < 0.5
            if (self.connected and (life, master) == (self.life, swarm.lives)) or (late and not swarm.calm):
                swarm.event(getattr(swarm.board, verb), self.name, *params)

        for _ in range(copies):
            swarm.post(arrive, link=self.name)


# -- the simulated swarm ------------------------------------------------------------------------------------------


class Swarm:
    """Master, slaves and owners on one clock, and a nemesis. `run()` is one schedule."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now, self.heap, self.count = 0.0, [], 0
        self.events = self.lives = self.adopted = 0
        self.told = collections.Counter()  # what the Board said for the log
        self.calm = False
        self.unplaceable_wait = random.Random(seed).choice((0.0, 0.05, 0.5, 5.0))
        self.most_running = random.Random(-seed).choice((*[math.inf] * 8, 1, 3))  # leases of a user at once
        self.links = {}  # peer -> when its last message arrives: order is kept
        self.journal, self.pending = [], []  # records committed; (records, messages after) not yet
        self.start_master()
        self.owners = [SimOwner(self, f"c{i}") for i in range(self.random.randint(1, 3))]
        self.slaves = [SimSlave(self, f"s{i}") for i in range(self.random.randint(3, 5))]
        self.numbers = 0
        self.pace = self.random.choice((0.00001, 0.001, 0.01, 0.3))

    # time

    def later(self, delay, action):
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay, self.count, action))

    def post(self, action, link=None):
        """Deliver a message after the delay of the network, in order on its link."""
        delay = self.random.choice((0.0001, 0.0005, 0.002)) if self.random.random() < 0.9 else 0.2
        at = max(self.now + delay, self.links.get(link, 0.0))
        if link is not None:
            self.links[link] = at
        self.later(at - self.now, action)

    def work(self):
        return self.pace * self.random.uniform(0.5, 2.0)

    # the master

    def start_master(self):
        self.lives += 1
        self.board = Board(limit=100_000, unplaceable_wait=self.unplaceable_wait, weigh=weight)
        self.board.quotas = Quotas(running=self.most_running)
        self.pending, self.found = [], None
        self.apply(self.board.restore(self.journal, self.now, salt=self.lives << 16))
        if self.random.random() < 0.5:
            self.apply(self.board.rest(self.now + self.random.uniform(0, 0.2), self.now))
        self.board.check()

    def event(self, verb, *params, **named):
        if verb == self.board.result and not params[-1] and self.random.random() < 0.5:
            self.collect(params)
            return
        effects = verb(*params, now=self.now, **named)
        self.happened(effects)

    def collect(self, report):
        """A report in a turn that may have more of them: all are dealt with at its end, or before what comes next."""
        if self.found is None:
            self.found = Effects([], [], [])
            self.later(self.random.choice((0.0, 0.0001)), functools.partial(self.turn_ends, self.found))
        self.board.collect(self.found, *report, now=self.now)
        self.events += not self.calm

    def turn_ends(self, found):
        if found is self.found is not None:
            self.found = None
            self.happened(self.board.assigned(found, self.now))

    def happened(self, effects):
        self.events += not self.calm
        given = [message[2].batch.owner for message in effects.messages if message[0] == "lease"]
        assert not any(owner.paused for owner in given), "a paused owner got a lease"
        self.apply(effects)
        self.board.check()  # now that the reports of this turn are dealt with too

    def apply(self, effects):
        self.turn_ends(self.found)
        for message in effects.messages:
            self.tell(message)
        if effects.records or effects.after:
            self.pending.append(effects)
            if len(self.pending) == 1:
                self.later(self.random.choice((0.0, 0.001, 0.02)), lambda life=self.lives: self.commit(life))

    def commit(self, life):
        if life == self.lives:
            pending, self.pending = self.pending, []
            for effects in pending:
                self.journal += effects.records
            for effects in pending:
                for message in effects.after:
                    self.tell(message)

    def tell(self, message):
        kind, name, *rest = message
        self.told[kind] += 1
        if kind == "quarantined":
            return
        peers = self.slaves if kind in ("lease", "revoke", "steal", "late") else self.owners
        peer = next(peer for peer in peers if peer.name == name)
        life, master = getattr(peer, "life", 0), self.lives

        def arrive():
            if (life, master) == (getattr(peer, "life", 0), self.lives):
                peer.hear(kind, *rest)

        self.post(arrive, link=("to", name))

    # the nemesis

    def crash(self):
        """The master dies: what was not committed is gone, and so are all connections."""
        committed = self.random.randrange(len(self.pending) + 1)
        for effects in self.pending[:committed]:
            self.journal += effects.records
        if committed < len(self.pending):  # a crash may part the records of one event
            records = self.pending[committed].records
            self.journal += records[: self.random.randrange(len(records) + 1)]
        for slave in self.slaves:
            slave.leave(dead=self.random.random() < 0.5)
            self.later(self.random.uniform(0, 0.1), slave.join)
        for owner in self.owners:
            owner.attached = False
            self.later(self.random.uniform(0, 0.1), owner.attach)
        self.start_master()

    def lose(self, slave):
        if slave.connected:
            slave.leave(dead=self.random.random() < 0.5)
            self.event(self.board.slave_lost, slave.name, reason="silence")
            self.later(self.random.uniform(0, 0.5), slave.join)

    def change(self, slave):
        if slave.connected:
            slave.workers = self.random.randint(0, 3)
            self.event(self.board.slave_changed, slave.name, {"cpus": slave.workers}, slave.workers)
            slave.start()

    def drain(self, slave):
        if slave.connected:
            slave.drain()
            self.event(self.board.slave_draining, slave.name)
            self.later(0.3, lambda: self.lose(slave))

    def detach(self, owner):
        if owner.attached:
            owner.attached = False
            self.event(self.board.owner_detached, owner.name)
            self.later(self.random.uniform(0, 0.3), owner.attach)

    def pause(self, owner):
        if owner.name in self.board.owners:
            self.event(self.board.owner_paused, owner.name, not self.board.owners[owner.name].paused)

    def submit(self, owner):
        rng = self.random
        needs = rng.choice(({}, {}, {}, {"cpus": 0.5}, *RARE))
        options = {"name": rng.choice("ab"), "resources": needs}
        if rng.random() < 0.3:
            limits = {name: rng.choice((0.01, 0.1, 1.0)) for name in tasks.LIMITS if rng.random() < 0.4}
            options["limits"] = limits
        if rng.random() < 0.5:
            rules = {name: rng.choice((0, 1, 2, 5)) for name in ("Exception", "WorkerLost", "SlaveLost")}
            options["limits"] = {**options.get("limits", {}), "retries": rules, "retry_wait": rng.choice((0, 0.01, 1))}
        self.numbers += 1
        owner.submit(self.numbers, rng.choice((1, 1, 2, 3, 8, 20)), rng.choice((1, 8)), options)

    def cancel(self, owner):
        numbers = [number for number in owner.accepted if number not in owner.settled]
        number = self.random.choice([None, *numbers])
        if owner.attached and owner.there:
            owner.cancelled.update(owner.batches if number is None else [number])
            owner.call("cancel", number, kill=self.random.random() < 0.5)

    def cancel_task(self, owner):
        leased = [lease for lease in self.board.leases.values() if lease.batch.owner.id == owner.name]
        lease = max(leased, key=lambda lease: lease.tasks, default=None)  # where it is hardest
        number = self.random.choice([*owner.batches, *([lease.batch.number] * 20 if lease else [0])])
        if owner.attached and owner.there and number in owner.batches:
            span = (lease.lo, lease.hi) if lease and lease.batch.number == number else (0, owner.batches[number][0])
            task = self.random.randrange(*span)
            owner.cancelled.add((number, task))
            owner.call("cancel_task", number, task, kill=self.random.random() < 0.5)

    def fault(self):
        """One thing that may happen, by the weights of the table."""
        slave, owner = self.random.choice(self.slaves), self.random.choice(self.owners)
        action = self.random.choices(
            (
                self.submit,
                self.cancel,
                self.cancel_task,
                self.lose,
                self.drain,
                self.change,
                self.detach,
                self.gone,
                self.crash,
                self.pause,
            ),
            (24, 6, 12, 10, 4, 6, 8, 1, 4, 4),
        )[0]
        target = {self.crash: ()}.get(action)
        if target is None:
            of_owner = self.submit, self.cancel, self.cancel_task, self.detach, self.gone, self.pause
            target = (owner,) if action in of_owner else (slave,)
        action(*target)
        if self.events < MIN_EVENTS:
            self.later(self.random.expovariate(100), self.fault)
        elif not self.calm:
            self.heal()

    def gone(self, owner):
        if owner.there and len(self.owners) > 1 and owner.name in self.board.owners:
            owner.there = owner.attached = False
            self.event(self.board.owner_gone, owner.name)

    def heal(self):
        """No more faults: everybody comes back, with slaves that can take anything."""
        self.calm = True
        self.pace = min(self.pace, 0.001)
        for slave in self.slaves:
            if slave.connected:
                slave.leave(dead=True)
                self.event(self.board.slave_lost, slave.name)
            slave.join()
        for owner in self.owners:
            owner.attached = False
            owner.attach()
            self.event(self.board.owner_paused, owner.name, False)

    # one schedule

    def run(self):
        for peer in (*self.slaves, *self.owners):
            self.later(self.random.uniform(0, 0.05), getattr(peer, "join", None) or peer.attach)
        self.later(0.0, self.fault)
        while not self.calm or any(owner.unfinished() for owner in self.owners):
            deadline = self.board.deadline
            if not self.heap and deadline is None:
                break
            if deadline is not None and (not self.heap or deadline <= self.heap[0][0]):
                self.now = max(self.now, deadline)
                self.event(self.board.tick)
                continue
            self.now, _, action = heapq.heappop(self.heap)
            assert self.now < END, "hangs"
            action()
        assert not any(owner.unfinished() for owner in self.owners), "tasks without outcome"
        assert self.events >= MIN_EVENTS
        return self


TOLD = collections.Counter()  # leases that slaves got back, and what the Board said, over all schedules


def play(seeds):
    """Run a schedule per seed; a failure names its seed. Returns how many events there were."""
    events = 0
    for seed in seeds:
        try:
            swarm = Swarm(seed).run()
        except Exception as error:
            raise AssertionError(f"SEED={seed}: {error!r}") from error
        events += swarm.events
        TOLD.update(swarm.told, adopted=swarm.adopted)
    return events


def test_every_task_reaches_one_outcome_in_one_schedule():
    play([SEED])


@pytest.mark.slow
def test_every_task_reaches_one_outcome_in_many_schedules():
    TOLD.clear()
    play(range(SEED, SEED + SCHEDULES))
    assert TOLD["adopted"] > SCHEDULES / 6, "slaves came back with what they held"
    assert TOLD["retrying"] > SCHEDULES * 4 / 3, "tasks failed"
    assert TOLD["quarantined"] >= SCHEDULES // 300, "and slaves what others could do"


# -- restarts ----------------------------------------------------------------------------------------------------


def fingerprint(board):
    """The state that must survive a restart: batches, outcomes, what waits and how often it failed."""
    owners = {}
    for owner in board.owners.values():
        batches = {}
        for number, batch in owner.batches.items():
            waiting = list(batch.queue)
            for lease in batch.leases.values():
                waiting += [(*open, lease.past) for open in lease.live(lease.open)]
            waiting = [(lo, hi, past[:4]) for lo, hi, past, *_ in (*waiting, *batch.delayed)]
            merged = []
            for piece in sorted(waiting):
                if merged and merged[-1][1] == piece[0] and merged[-1][2:] == piece[2:]:
                    piece = (merged.pop()[0], *piece[1:])
                merged.append(piece)
            outcomes = sorted(outcome[:5] for outcome in batch.outcomes)
            batches[number] = (batch.count, batch.group, batch.options, batch.payload, merged, outcomes)
        about = owner.kind, owner.key, owner.name, owner.user.name, owner.paused
        owners[owner.id] = (*about, owner.tasks, str(owner.forgotten), batches)
    return owners


def restored(records):
    board = Board(limit=100_000)
    board.restore(records, 0.0)
    board.check()
    return board


class Recorded(Swarm):
    """A swarm whose journal commits at once; keeps a fingerprint for every length of the journal."""

    def apply(self, effects):
        if self.found is not None:
            self.turn_ends(self.found)
            del self.prints[len(self.journal)]  # this event has happened then, and has no record yet
        self.journal += effects.records
        for message in (*effects.messages, *effects.after):
            self.tell(message)
        self.prints[len(self.journal)] = fingerprint(self.board)

    prints: dict = {}


@pytest.mark.parametrize("seed", range(10))
def test_a_board_restored_from_all_records_equals_the_one_that_wrote_them(seed):
    Recorded.prints = {}
    swarm = Recorded(seed)
    swarm.run()
    assert len(Recorded.prints) > 20
    for length, print_ in Recorded.prints.items():
        assert fingerprint(restored(swarm.journal[:length])) == print_


@pytest.mark.parametrize("seed", range(5))
def test_a_crash_after_any_record_loses_no_accepted_task(seed):
    Recorded.prints = {}
    swarm = Recorded(seed)
    swarm.run()
    for length in range(len(swarm.journal) + 1):
        board = restored(swarm.journal[:length])
        for owner in board.owners:
            board.owner_paused(owner, False, 0.0)
        effects = board.slave_joined("s", {"cpus": 4, "gpu": 2}, ["big"], 4, 0.0)
        leases = [message[2] for message in effects.messages]
        while leases:
            lease = leases.pop()
            effects = board.result("s", lease.id, lease.lo, lease.hi, 0.01, None, {}, 0.0)
            leases += [message[2] for message in effects.messages]
        board.check()
        assert all(not batch.remaining for owner in board.owners.values() for batch in owner.batches.values())


def test_a_journal_in_which_every_second_task_failed_is_read_in_seconds():
    count, why = 60_000, (1, 0, 0, 0)
    failed = range(0, count, 2)
    told = {str(task): {"kind": "error", "retried": True} for task in failed}
    board, began = Board(limit=count), time.monotonic()
    board.restore([
        ("owner", "c1", "client", "", ""),
        ("batch", "c1", 1, count, 1, {}, None),
        *(("retry", "c1", 1, task, task + 1, *why) for task in failed),
        ("outcome", "c1", 1, 0, count, 0.1, told, 1, None),
    ], 0.0)  # fmt: skip
    assert in_time(time.monotonic() - began, 10)
    board.check()
    (batch,) = board.owners["c1"].batches.values()
    assert [piece[:2] for piece in batch.queue] == [(task, task + 1) for task in failed]


def test_a_damaged_journal_is_refused_with_the_record_that_does_not_fit():
    for records in (
        [("batch", "c9", 1, 1, 1, {}, None)],
        [("owner", "c1", "client", "", ""), ("outcome", "c1", 1, 0, 1, 0.0, {}, 1, None)],
        [("owner", "c1", "client", "", ""), ("what", "c1", 1)],
        [()],
    ):
        with pytest.raises(Error, match="record"):
            Board().restore(records, 0.0)


# -- stress ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_in_any_order_never_breaks_the_books(seed):
    """Any event with any plausible or wrong argument at any time: thousands on one board."""
    rng, now = random.Random(seed), 0.0
    board = Board(limit=2000, unplaceable_wait=seed * 0.1, weigh=weight)
    owner, slave = lambda: f"c{rng.randrange(4)}", lambda: f"s{rng.randrange(5)}"

    def failures(lo, hi):
        why = rng.choice(({"kind": "setup"}, {"kind": "error", "retries": rng.randrange(3)}, {"kind": "result"}))
        return rng.choice(({}, {}, {"*": why}, {str(rng.randint(lo, hi)): why, str(hi): why}))

    def result():
        where = report()
        return board.result(*where, rng.choice((0.0, 1e-5, 0.2, float("nan"))), "result", failures(*where[2:]), now)

    def report():
        if not board.leases or rng.random() < 0.05:
            return slave(), rng.randrange(10**6), 0, 1
        lease = rng.choice(list(board.leases.values()))
        lo = rng.randrange(-1, lease.hi + 1)
        who = lease.slave.id if rng.random() < 0.95 else slave()
        return rng.choice(((who, lease.id, lease.lo, lease.hi), (who, lease.id, lo, lo + rng.randrange(9))))

    def submit():
        needs = rng.choice(({}, {"cpus": 2}, {"gpu": 1}, {"tags": ["x"]}, {"cpus": -1}, {"cpus": "2"}))
        limits = rng.choice(({}, {}, {"deadline": 0.1, "queue_timeout": 0.05}, {"timeout": 1}, {"deadline": -1},
                             {"retry_wait": rng.random(), "retries": {"WorkerLost": rng.randrange(3)}}))
        options = {"resources": needs, "name": rng.choice("abc"), "limits": limits, "bundle": rng.choice("xy")}
        numbers = rng.randrange(60), rng.choice((0, 1, 3, 100)), now, rng.choice((1, 7))
        return board.submit(owner(), *numbers, options, "payload")

    def join():
        pools = {"cpus": rng.randrange(4), "gpu": rng.randrange(2)}
        return board.slave_joined(slave(), pools, rng.choice(([], ["x"])), rng.randrange(4), now)

    def allow():
        most = rng.choice((10, 300, math.inf)), rng.choice((100, 3000, math.inf)), rng.choice((0, 1, 3, math.inf))
        board.quotas = Quotas(*most)
        return board.tick(now)

    verbs = [
        allow,
        *[submit] * 6,
        *[result] * 12,
        *[lambda: board.given_back(*report(), now), lambda: board.worker_lost(*report(), "signal 11", now)] * 2,
        *[join, lambda: board.owner_joined(owner(), "client", now, user=rng.choice("ab")),
          lambda: board.tick(now)] * 2,
        lambda: board.slave_lost(slave(), now),
        lambda: board.slave_draining(slave(), now),
        lambda: board.slave_changed(slave(), {"cpus": 2}, rng.randrange(4), now),
        lambda: board.cancel(owner(), rng.choice((None, rng.randrange(60))), now, rng.random() < 0.5),
        lambda: board.cancel_task(owner(), rng.randrange(60), rng.randrange(100), now, rng.random() < 0.5),
        lambda: board.settled(owner(), [rng.randrange(60), rng.randrange(60)], now),
        lambda: board.withdrawn(owner(), rng.randrange(60), "full", now),
        lambda: board.owner_detached(owner(), now),
        lambda: board.owner_paused(owner(), rng.random() < 0.4, now),
        lambda: board.owner_gone(owner(), now) if rng.random() < 0.1 else board.owner_attached(owner(), now),
    ]
    for _ in range(3000):
        now += rng.expovariate(100)
        rng.choice(verbs)()
        board.check()
    assert board.counters["ended"] > 500
    assert bool(board.counters["unplaceable"]) == bool(board.unplaceable_wait)


def test_cutting_ranges_keeps_every_task_once():
    rng = random.Random(1)
    for _ in range(500):
        edges = sorted(rng.sample(range(60), 8))
        ranges = [(a, b, "x") for a, b in zip(edges[::2], edges[1::2], strict=True)]
        lo, hi = sorted(rng.sample(range(60), 2))
        inside, outside = split(ranges, lo, hi)
        every = {task for a, b, _ in ranges for task in range(a, b)}
        assert {task for a, b, _ in inside for task in range(a, b)} == {task for task in every if lo <= task < hi}
        assert {task for a, b, _ in outside for task in range(a, b)} == {t for t in every if not lo <= t < hi}
