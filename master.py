"""The master: takes work from owners, hands it to slaves, and answers for every task.

    client  --submit, push_tasksystem-->  Channel  -.                       .->  Channel  --lease-->   slave
            <--accepted, outcome--------            |                       |             <--result--
                                                    v                       |
    host    --submit, system_done------>  Pipe  --> MasterNode --event--> Board --Effects(records, messages, after)
            <--outcome------------------                                    |
                                                              Journal  <----'  records; `after` goes out on commit

`Board` decides and does no I/O; `MasterNode` moves messages, in one thread, and decides nothing. The journal's thread
commits. User code runs in hosts, one process per task system, and never here: payloads pass through unopened.

The Board holds ranges. A *batch* is (owner, number, count), numbers count up from 0, its tasks are 0..count-1; a
*lease* is a part lo..hi of a batch in the hands of one slave; nothing on the healthy path costs per task. `now`
(seconds, monotonic) is an argument of every event, and `check()` states what always holds.

    owner --submit--> batch ----> queue --assign--> lease --result--> outcome --settled--> forgotten
                                    ^                 |
                                    '-- given back, worker or slave lost, master restarted

Records, in order, are all that `restore` needs:
    ("life", n)                                         nth start of the master; lease ids of two lives never meet
    ("owner", owner, kind, key, name) · ("gone", owner)
    ("batch", owner, number, count, group, options, payload) · ("settled", owner, number)
    ("retry", owner, number, lo, hi, deaths, losses)    these tasks lost their worker or slave, and wait again
    ("outcome", owner, number, lo, hi, seconds, failures, payload)

Messages: the second item names the peer.
    ("lease", slave, Lease) · ("revoke", slave, lease id, kill) · ("steal", slave, lease id)
    ("late", slave, lease id, seconds since the acceptance)
    ("accepted", owner, number) · ("refused", owner, number, reason)
    ("outcome", owner, number, lo, hi, seconds, failures, payload, slave)
A key of `failures` is an ordinal in the batch as text, or "*" for every task of lo..hi (cancelled, lost, poisoned). One
with "again" tells of a task that was cancelled alone and has its outcome: the results of its lease were not cut.
A slave holds a lease until it has reported every task of it, a revoked one too: its tasks have their outcome already,
and its slot is free when the slave says so.
"""

from __future__ import annotations

if __name__ == "__main__":  # hand over to the one copy of this module, under its real name
    if __spec__ is None:  # python master.py
        from concurrent_swarm import run

        run(__file__)
    from importlib import import_module  # python -m concurrent_swarm.master

    raise SystemExit(import_module(__spec__.name).main())

import argparse
import bisect
import collections
import functools
import heapq
import itertools
import json
import logging
import math
import queue
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from . import components, rpc, tasks
from .components import Error

log = logging.getLogger(__spec__.name)


TARGET = 0.010  # seconds of work a lease should hold: 20 times what a lease itself costs
LEAST = 0.001  # seconds of work below which a lease is not divided, though a slot stays idle for that long
COST = 0.0001  # seconds that a lease takes of the master itself, sockets and all; a swarm of 100 slots feels it
MAX_LEASE = tasks.CHUNK  # tasks; beyond, nothing is gained and tails grow
UNKNOWN = 0.020  # seconds a lease of a kind that was never measured is taken for: two per slot
STEAL_AGE = 0.050  # seconds a lease is left alone before a slave without work may ask for a part of it
STEAL_WIDTH = 64  # leases asked for per round
STEAL_LOOK = 2e-5  # seconds between two rounds per lease that is out: looking at it takes 4 % of that
WIDTH = 8  # slaves shown to the scheduler per lease: best of eight, whatever the size of the swarm
MAX_ATTEMPTS = 3  # worker deaths until a task counts as poisoned
MAX_LOSSES = 10  # slaves lost under one task until it counts as lost
LIMIT = 10_000_000  # unsettled tasks per owner
MAX_KINDS = 1000  # names measured apart per owner
MAX_DEMANDS = 64  # unused demands kept
LATE = 1.0  # seconds that a slave has to tell where tasks were that passed their deadline
MIN_TIMERS = 1000  # timers that may wait before those that nobody needs any more are looked for
SMOOTH = 0.3  # weight of the newest measurement
EPSILON = 1e-9  # sums of amounts such as 0.1 may miss by this much


# -- ranges --------------------------------------------------------------------------------------------------


def split(ranges: list, lo: int, hi: int) -> tuple[list, list]:
    """Divide the tuples (lo, hi, …) into what lies inside lo..hi and what lies outside, cutting where
    needed."""
    if len(ranges) == 1 and ranges[0][:2] == (lo, hi):  # the healthy path
        return ranges, []
    inside, outside = [], []
    for piece in ranges:
        a, b, rest = piece[0], piece[1], piece[2:]
        cuts = (a, min(b, lo), outside), (max(a, lo), min(b, hi), inside), (max(a, hi), b, outside)
        for x, y, side in cuts:
            if x < y:
                side.append((x, y, *rest))
    return inside, outside


def total(ranges: list) -> int:
    """How many tasks the ranges hold."""
    tasks = 0
    for piece in ranges:
        tasks += piece[1] - piece[0]
    return tasks


def _add(numbers: list, number: int):
    """Add a number to a sorted list of disjoint [lo, hi] lists; it stays short while numbers come about in
    order."""
    at = bisect.bisect(numbers, [number, math.inf])
    if at and numbers[at - 1][1] == number:
        numbers[at - 1][1] += 1
    else:
        numbers.insert(at, [number, number + 1])
        at += 1
    if at < len(numbers) and numbers[at - 1][1] == numbers[at][0]:
        numbers[at - 1][1] = numbers.pop(at)[1]


def _added(numbers: list, number: int) -> bool:
    """Whether the number is in such a list."""
    at = bisect.bisect(numbers, [number, math.inf])
    return at > 0 and number < numbers[at - 1][1]


@functools.lru_cache(maxsize=128)
def _fresh(count: int) -> tuple:
    """The queue of a batch none of whose tasks ran: one for all batches of that size."""
    return ((0, count, 0, 0),)


# -- what the board holds ------------------------------------------------------------------------------------


class Effects(NamedTuple):
    """What an event asks for: records to journal, messages to send now, and messages to send once these
    records and all earlier ones are committed."""

    records: list
    messages: list
    after: list


class Kind:
    """Tasks of one owner with one name: their measured seconds (each, smoothed; None at first) and lease
    size."""

    __slots__ = ("seconds", "size")

    def __init__(self):
        self.seconds = None
        self.size = 1

    def measure(self, each: float, slots: int):
        """Take in the seconds one task took. The size follows, at most doubling: TARGET, or what keeps so many
        slots busy while the master makes a lease for each."""
        self.seconds = each if self.seconds is None else self.seconds + SMOOTH * (each - self.seconds)
        target = max(TARGET, COST * slots)
        fitting = int(min(target / self.seconds, MAX_LEASE)) if self.seconds > 0 else MAX_LEASE
        self.size = max(1, min(self.size * 2, fitting))

    def least(self, tasks: int, slots: int) -> int:
        """Tasks in which a lease is not worth dividing further, of so many that wait. Cut into k leases, W seconds of
        work end after k * COST + W / k, which is least for leases of sqrt(W * COST)."""
        if self.seconds is None:
            return 1
        seconds = max(LEAST, min(math.sqrt(COST * tasks * self.seconds), COST * slots))
        return int(min(self.size, seconds / max(self.seconds, EPSILON)))

    def estimate(self, tasks: int) -> float:
        """Seconds that a lease of so many tasks is expected to take."""
        return UNKNOWN if self.seconds is None else self.seconds * tasks


class Demand:
    """What a lease needs of a slave, with the owners that wait for it, in turn, and the slaves that may have
    room.

    `idle` and `free` may name a slave whose room is gone (it is taken out when met), never miss one that has
    room: idle for a free slot, free for prefetching."""

    __slots__ = ("able", "batches", "free", "idle", "needs", "ring", "tags", "tasks")

    def __init__(self, needs: tuple, tags: frozenset):
        self.needs = needs  # ((name, amount), …), amounts above 0
        self.tags = tags
        self.batches = 0  # live batches with this demand
        self.tasks = 0  # queued ones
        self.ring = OrderedDict()  # Owner -> Line, the next in turn first
        self.able = set()
        self.idle = OrderedDict()
        self.free = OrderedDict()

    def offer(self, slave: Slave):
        """The slave may have room (again)."""
        if slave in self.able:
            self.idle[slave] = self.free[slave] = None

    def with_room(self, slaves: OrderedDict, estimate: float | None, width: int) -> list:
        """Up to `width` of these (`idle` or `free`) that may take a lease of so many seconds now; None: that have a
        free slot. Those met that may not are taken out until they have reported a lease."""
        found, full = [], []
        for slave in slaves:
            if slave.room(self.needs, 1 if estimate is None else slave.deep(estimate)):
                found.append(slave)
                if len(found) == width:
                    break
            else:
                full.append(slave)
        for slave in full:
            del slaves[slave]
            slave.missing.add(self)
        return found

    def fit(self, slave: Slave, here: bool = True):
        """Look anew whether the slave could ever take this; it could not when it is not here any more."""
        if here and not slave.draining and not slave.lacks(self):
            self.able.add(slave)
            self.offer(slave)
        else:
            self.able.discard(slave)
            self.idle.pop(slave, None)
            self.free.pop(slave, None)

    def served(self, slave: Slave):
        """The slave took a lease: the others come first now."""
        for slaves in (self.idle, self.free):
            if slave in slaves:
                slaves.move_to_end(slave)


class Line:
    """The queued batches of one owner with one demand, in order, and how many tasks of them are queued."""

    __slots__ = ("batches", "tasks")

    def __init__(self):
        self.batches = OrderedDict()  # Batch -> None
        self.tasks = 0


class Owner:
    """Whoever submits: a client or the host of a task system. `attached`: its connection is there."""

    __slots__ = (
        *("attached", "batches", "forgotten", "id", "key", "kind", "kinds", "lines", "name", "served", "tasks"),
    )

    def __init__(self, owner: str, kind: str, key: str, name: str):
        self.id, self.kind, self.key, self.name = owner, kind, key, name
        self.attached = False
        self.batches = {}  # number -> Batch, until settled
        self.forgotten = []  # numbers settled, as [lo, hi] lists
        self.tasks = 0  # of all batches here
        self.kinds = {}  # name -> Kind
        self.lines = {}  # Demand -> Line, only with something queued
        self.served = 0  # the last lease made for it

    def kind_of(self, name: str) -> Kind:
        """The kind of that name; an owner with too many names gets one for all further ones."""
        if name not in self.kinds and len(self.kinds) >= MAX_KINDS:
            name = ""
        return self.kinds.setdefault(name, Kind())


NONE = MappingProxyType({})


class Batch:
    """Tasks 0..count-1 submitted together. `payload` is only handed through, and let go with the last
    outcome. A million of them may wait, so one that waits has no containers of its own."""

    __slots__ = (
        *("count", "demand", "group", "kind", "leases", "limits", "number", "options", "outcomes", "owner", "payload"),
        *("queue", "queued", "remaining", "serial", "since", "stale"),
    )

    def __init__(self, owner: Owner, number: int, count: int, group: int, options: dict, payload: Any):
        self.owner, self.number, self.count, self.group = owner, number, count, group
        self.options, self.payload = options, payload
        self.demand = self.kind = None
        self.limits = NONE  # what its tasks may take, by name; see `tasks.limits_of`
        self.stale = False  # its queue_timeout has passed: what has not run never will
        self.serial = 0  # order of arrival
        self.since = 0.0  # when it arrived
        self.queue = ()  # (lo, hi, deaths, losses), next first
        self.queued = 0  # tasks in it
        self.leases = NONE  # id -> Lease, revoked ones too
        self.outcomes = ()  # (lo, hi, seconds, failures, payload, slave)
        self.remaining = count  # tasks without outcome

    def take(self, lease: Lease):
        """A part of it is in the hands of a slave."""
        if not self.leases:
            self.leases = {}
        self.leases[lease.id] = lease

    def drop(self, lease: Lease):
        """A lease is reported."""
        del self.leases[lease.id]
        if not self.leases:
            self.leases = NONE

    @property
    def alone(self) -> bool:
        """Whether a slave watches each of its tasks, in a lease of its own."""
        return bool(self.limits) and not tasks.WATCHED.isdisjoint(self.limits)

    def end(self, outcome: tuple, tasks: int):
        """So many tasks of it have their outcome, for good."""
        if not self.outcomes:
            self.outcomes = []
        self.outcomes.append(outcome)
        self.remaining -= tasks
        if not self.remaining:
            self.payload = None


class Lease:
    """The tasks lo..hi of a batch in the hands of one slave. `open`: the ranges it has not reported yet; `ended`: those
    that have their outcome all the same (all of them if it is revoked)."""

    __slots__ = (
        *("asked", "batch", "deaths", "ended", "estimate", "hi", "id", "killed", "lo", "losses", "open", "revoked"),
        *("since", "slave", "tasks"),
    )

    def __init__(self, number: int, batch: Batch, lo: int, hi: int, deaths: int, losses: int, now: float):
        self.id, self.batch, self.lo, self.hi = number, batch, lo, hi
        self.deaths, self.losses = deaths, losses
        self.open = [(lo, hi)]
        self.ended = ()
        self.tasks = hi - lo  # open ones
        self.estimate = batch.kind.estimate(hi - lo)
        self.since = now
        self.slave = None
        self.asked = self.revoked = self.killed = False

    def live(self, parts: list) -> list:
        """Those of these ranges that have no outcome yet."""
        if self.revoked:
            return []
        for lo, hi in self.ended:
            parts = split(parts, lo, hi)[1]
        return parts

    @property
    def attempt(self) -> int:
        """1 for tasks that never lost a worker or a slave, and one more for each time they did."""
        return self.deaths + self.losses + 1

    @property
    def divisible(self) -> bool:
        """Whether its slave may have a part to give back: several tasks, or leases that wait for a slot."""
        return self.tasks > 1 or len(self.slave.leases) > self.slave.workers


def depth(seconds: float) -> int:
    """How many leases per slot a slave may hold when they take so many seconds each: enough for 20 ms, at
    most 16, and from 100 ms on just the one that runs, since work held back can go to whoever is free
    first."""
    if seconds >= 0.1:
        return 1
    return min(16, math.ceil(0.02 / seconds) + 1) if seconds >= 0.001 else 16


class Slave:
    """A slave as the board and the schedulers see it (a scheduler reads, and changes nothing).

    `workers` slots; `resources` amounts by name and `tags`; in its hands are `open_tasks` in `open_leases`,
    expected to take `open_seconds` of one worker; `credit` leases it may take now; `done_tasks` took
    `seconds`; `pace` is above 1 where tasks take longer than elsewhere; `last` is the id of its newest lease.
    """

    __slots__ = (
        *("done_tasks", "draining", "id", "last", "leases", "missing", "name", "open_seconds", "open_tasks", "pace"),
        *("resources", "seconds", "tags", "used", "workers"),
    )

    def __init__(self, slave: str, name: str, resources: dict, tags, workers: int):
        self.id, self.name = slave, name or slave
        self.resources, self.tags, self.workers = dict(resources), frozenset(tags), workers
        self.draining = False
        self.leases = {}  # id -> Lease, oldest first
        self.used = {}  # resource name -> amount its leases need together
        self.missing = set()  # demands that took it out of `idle` or `free`
        self.open_seconds = 0.0
        self.open_tasks = self.done_tasks = self.last = 0
        self.seconds = 0.0
        self.pace = 1.0

    @property
    def open_leases(self) -> int:
        """Leases in its hands."""
        return len(self.leases)

    @property
    def slots(self) -> int:
        """Leases that it could run now if it had none."""
        return 0 if self.draining else self.workers

    @property
    def credit(self) -> int:
        """Leases like those it holds that it may take besides them."""
        if self.draining:
            return 0
        mean = self.open_seconds / len(self.leases) if self.leases else UNKNOWN
        return max(0, depth(mean) * self.workers - len(self.leases))

    def deep(self, estimate: float) -> int:
        """Leases per slot when one of so many seconds joins those it holds; their mean time decides, so
        nothing short is sent to wait behind something long, or the other way round."""
        return depth((self.open_seconds + estimate) / (len(self.leases) + 1))

    def room(self, needs: tuple, deep: int) -> bool:
        """Whether a lease with these needs fits, with up to `deep` times its slots and amounts promised. The
        slave itself keeps to the amounts: it starts a lease when they are free."""
        if self.draining or len(self.leases) >= deep * self.workers:
            return False
        for name, amount in needs:
            if self.used.get(name, 0) + amount > deep * self.resources.get(name, 0) + EPSILON:
                return False
        return True

    def lacks(self, demand: Demand) -> str:
        """Why it can never take such a lease, however idle it is; "" when it can."""
        for name, amount in demand.needs:
            if amount > self.resources.get(name, 0) + EPSILON:
                return f"has {self.resources.get(name, 0)} {name}, {amount} needed"
        missing = ", ".join(sorted(demand.tags - self.tags))
        return f"lacks the tag {missing}" if missing else ""

    def take(self, lease: Lease):
        """Count a lease in."""
        lease.slave = self
        self.leases[lease.id] = lease
        self.last = lease.id
        self.open_tasks += lease.tasks
        self.open_seconds += lease.estimate
        for name, amount in lease.batch.demand.needs:
            self.used[name] = self.used.get(name, 0) + amount

    def drop(self, lease: Lease):
        """Count a lease out, all of whose tasks are reported."""
        del self.leases[lease.id]
        self.open_seconds -= lease.estimate
        for name, amount in lease.batch.demand.needs:
            self.used[name] -= amount
        if not self.leases:  # rounding errors do not add up
            self.open_seconds = 0.0
            self.used.clear()

    def measure(self, kind: Kind, tasks: int, seconds: float):
        """Take in that it ran so many tasks of a kind in so many seconds."""
        self.done_tasks += tasks
        self.seconds += seconds
        if kind.seconds:
            ratio = min(10.0, max(0.1, seconds / tasks / kind.seconds))
            self.pace += SMOOTH * (ratio - self.pace)


def failure(kind: str, name: str, message: str, where: str = "") -> dict:
    """The failures of an outcome that the board itself decides, for every task of its range."""
    return {"*": {"type": name, "message": message, "traceback": "", "where": where, "kind": kind}}


CANCELLED = failure("cancelled", "Cancelled", "the task was cancelled")
AGAIN = {**CANCELLED["*"], "again": True}  # in the outcome of a lease, for a task that was cancelled alone

ONE_PROCESSOR = ((("cpus", 1),), frozenset())  # what tasks need that say nothing else


def _demanded(options: dict) -> tuple[tuple, frozenset]:
    """The needs and tags of a batch's options. Raises ValueError with the reason."""
    resources = options.get("resources")
    if not resources:
        return ONE_PROCESSOR
    if not isinstance(resources, dict):
        raise ValueError(f"resources is {resources!r}, an object of amounts by name is needed")
    tags = resources.get("tags", [])
    if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"the resource tags is {tags!r}, a list of texts is needed")
    needs = {"cpus": 1, **{name: amount for name, amount in resources.items() if name != "tags"}}
    for name, amount in needs.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise ValueError(f"the resource {name} is {amount!r}, a number from 0 is needed")
    return tuple(sorted((name, amount) for name, amount in needs.items() if amount)), frozenset(tags)


# -- the board -----------------------------------------------------------------------------------------------


class Board:
    """Owners, batches, leases, slaves and queues; each event method returns `Effects`. Ids are texts, ranges
    half open.

    scheduler -- has `place(slaves, lease)`, `task_pushed(slave, count)`, `task_finished(slave, count)`; may
        be replaced while running. None takes the slave that was not served for longest.
    limit -- unsettled tasks an owner may have.
    max_attempts -- worker deaths that make a task poisoned.
    max_lease -- tasks that a lease may hold.

    `deadline`: when to call `tick` next (None: not before the next event). `counters`: what happened, by
    name. `scheduler_error`: the last exception of the scheduler, for the node to report (the board then chose
    by itself)."""

    def __init__(
        self, scheduler: Any = None, limit: int = LIMIT, max_attempts: int = MAX_ATTEMPTS, max_lease: int = MAX_LEASE
    ):
        self.scheduler, self.limit, self.max_attempts, self.max_lease = scheduler, limit, max_attempts, max_lease
        self.owners = {}  # id -> Owner
        self.slaves = {}  # id -> Slave
        self.leases = {}  # id -> Lease
        self.demands = {}  # (needs, tags) -> Demand
        self.slots = 0  # workers of all slaves that do not drain
        self.life = 0
        self.counters = Counter()
        self.deadline = None
        self.scheduler_error = None
        self._lease_ids = itertools.count(1)
        self._serials = itertools.count(1)
        self._timers = []  # heap of (when, serial, owner, number, limit), only of batches that have such a limit
        self._most_timers = MIN_TIMERS  # then those of batches that are gone are taken out

    # -- owners ----------------------------------------------------------------------------------------------

    def owner_joined(self, owner: str, kind: str, now: float, key: str = "", name: str = "") -> Effects:
        """A new owner, attached. One that is known already is attached again."""
        if owner in self.owners:
            return self.owner_attached(owner, now)
        self.owners[owner] = Owner(owner, kind, key, name)
        self.owners[owner].attached = True
        return Effects([("owner", owner, kind, key, name)], [], [])

    def owner_detached(self, owner: str, now: float) -> Effects:
        """Its connection is gone. Its work goes on and outcomes are kept until it is back."""
        if owner in self.owners:
            self.owners[owner].attached = False
        return Effects([], [], [])

    def owner_attached(self, owner: str, now: float) -> Effects:
        """It is back: it hears again what was accepted, and every outcome that it has not settled."""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        if known is not None:
            known.attached = True
            for number, batch in known.batches.items():
                effects.after.append(("accepted", owner, number))
                for outcome in batch.outcomes:
                    effects.after.append(("outcome", owner, number, *outcome))
        return effects

    def owner_gone(self, owner: str, now: float, kill: bool = False) -> Effects:
        """It will not come back: what it has queued never runs, its leases are revoked (with `kill` what runs is
        killed), its outcomes forgotten."""
        effects = Effects([], [], [])
        if owner in self.owners:
            self._drop_owner(owner, effects, kill)
            effects.records.append(("gone", owner))
        return self._assigned(effects, now)

    def _drop_owner(self, owner, effects, kill=False):
        known = self.owners[owner]
        for batch in list(known.batches.values()):
            self._forget(batch, effects, kill)
        del self.owners[owner]

    # -- batches ---------------------------------------------------------------------------------------------

    def submit(
        self,
        owner: str,
        number: int,
        count: int,
        now: float,
        group: int = 1,
        options: dict | None = None,
        payload: Any = None,
    ) -> Effects:
        """Take in a batch. A repeat of (owner, number) is accepted again and changes nothing.

        group -- tasks per record of the payload; leases end between groups where they can.
        options -- "resources": {"cpus": 1, amounts by name, "tags": […]}, "name": what is measured together, "limits":
            see `tasks.limits_of`.
        """
        effects = Effects([], [], [])
        options = options or {}
        known = self.owners.get(owner)
        if known is not None and self._submitted(known, number):
            self.counters["repeated submit"] += 1
            effects.after.append(("accepted", owner, number))
            return effects
        reason = self._objection(known, owner, count, group, options)
        if reason:
            self.counters["refused"] += 1
            effects.messages.append(("refused", owner, number, reason))
            return effects
        batch = self._add_batch(known, number, count, group, options, payload, now)
        self._enqueue(batch, _fresh(count))
        effects.records.append(("batch", owner, number, count, group, options, payload))
        effects.after.append(("accepted", owner, number))
        return self._assigned(effects, now)

    def cancel(self, owner: str, number: int | None, now: float, kill: bool = False) -> Effects:
        """End one batch, or all of an owner (None): every task without outcome is cancelled. Leases are
        revoked; with `kill` what runs is killed too."""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        if known is not None:
            batches = known.batches.values() if number is None else [known.batches.get(number)]
            for batch in batches:
                if batch is not None:
                    self._cancel(batch, kill, effects, CANCELLED)
        return self._assigned(effects, now)

    def cancel_task(self, owner: str, number: int, task: int, now: float, kill: bool = False) -> Effects:
        """End one task of a batch as cancelled, unless it has its outcome. A slave that has it gives back what it has
        not begun; with `kill` its worker is killed, and the other tasks of the lease wait again, without blame."""
        effects = Effects([], [], [])
        batch = self.owners[owner].batches.get(number) if owner in self.owners else None
        if batch is not None:
            gone, left = split(list(batch.queue), task, task + 1)
            self._keep_queued(batch, gone, left)
            if gone:
                self._end(batch, task, task + 1, 0.0, CANCELLED, None, "", effects)
            for lease in list(batch.leases.values()):
                self._cancel_in(lease, task, kill, effects)
        return self._assigned(effects, now)

    def settled(self, owner: str, numbers: list, now: float) -> Effects:
        """The owner's callbacks of these batches ran: they are forgotten. (One that still lacks outcomes here
        had them before a restart of the master; the owner knows best, so what is left of it is dropped.)"""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        for number in numbers if known is not None else ():
            batch = known.batches.get(number)
            if batch is not None:
                self._forget(batch, effects)
                effects.records.append(("settled", owner, number))
        return self._assigned(effects, now)

    @staticmethod
    def _submitted(owner, number):
        return number in owner.batches or _added(owner.forgotten, number)

    def _objection(self, known, owner, count, group, options):
        """Why a batch cannot be taken, "" if it can."""
        if known is None:
            return f"{owner} is not registered here"
        if count < 1 or group < 1:
            return f"the batch has {count} tasks in groups of {group}, at least 1 is needed of both"
        if known.tasks + count > self.limit:
            return f"{owner} has {known.tasks} unsettled tasks; with {count} more it passes {self.limit}"
        try:
            _demanded(options)
            tasks.limits_of(options)
        except ValueError as error:
            return str(error)
        return ""

    def _add_batch(self, owner, number, count, group, options, payload, now):
        batch = Batch(owner, number, count, group, options, payload)
        batch.demand = self._demand(options)
        batch.demand.batches += 1
        batch.kind = owner.kind_of(str(options.get("name", "")))
        batch.serial = next(self._serials)
        batch.since = now
        if "limits" in options or "default_limits" in options:
            batch.limits = tasks.limits_of(options)
            self._set_timers(batch)
        owner.batches[number] = batch
        owner.tasks += count
        self.counters["submitted"] += count
        return batch

    def _demand(self, options):
        needs = _demanded(options)
        demand = self.demands.get(needs)
        if demand is None:
            if len(self.demands) >= MAX_DEMANDS:
                self.demands = {key: demand for key, demand in self.demands.items() if demand.batches}
            demand = self.demands[needs] = Demand(*needs)
            for slave in self.slaves.values():
                demand.fit(slave)
        return demand

    def _cancel(self, batch, kill, effects, what):
        for lo, hi, _, _ in self._dequeue_all(batch):
            self._end(batch, lo, hi, 0.0, what, None, "", effects)
        for lease in batch.leases.values():
            for lo, hi in lease.live(lease.open):
                self._end(batch, lo, hi, 0.0, what, None, "", effects)
            self._revoke(lease, kill, effects)

    def _cancel_in(self, lease, task, kill, effects):
        """Cancel one task of a lease, if it has it; what else it has goes on, or waits again."""
        inside, outside = split(lease.open, task, task + 1)
        if not inside:
            return
        if lease.live(inside):
            self._end(lease.batch, task, task + 1, 0.0, CANCELLED, None, "", effects)
        if not lease.live(outside):
            self._revoke(lease, kill, effects)
        elif lease.live(inside):
            lease.ended = (*lease.ended, (task, task + 1))
            order = ("revoke", lease.slave.id, lease.id, True) if kill else ("steal", lease.slave.id, lease.id)
            effects.messages.append(order)

    def _revoke(self, lease, kill, effects):
        if not lease.revoked or (kill and not lease.killed):
            lease.revoked, lease.killed = True, lease.killed or kill
            effects.messages.append(("revoke", lease.slave.id, lease.id, kill))

    def _end(self, batch, lo, hi, seconds, failures, payload, slave, effects, tasks=None):
        """Give tasks their outcome, for good. `tasks`: how many, if some have theirs."""
        tasks = hi - lo if tasks is None else tasks
        batch.end((lo, hi, seconds, failures, payload, slave), tasks)
        self.counters["ended"] += tasks
        owner = batch.owner
        effects.records.append(("outcome", owner.id, batch.number, lo, hi, seconds, failures, payload))
        if owner.attached:
            effects.messages.append(("outcome", owner.id, batch.number, lo, hi, seconds, failures, payload, slave))

    def _forget(self, batch, effects, kill=False):
        self._dequeue_all(batch)
        for lease in batch.leases.values():
            self._revoke(lease, kill, effects)
        self.counters["dropped"] += batch.remaining
        batch.demand.batches -= 1
        owner = batch.owner
        owner.tasks -= batch.count
        del owner.batches[batch.number]
        _add(owner.forgotten, batch.number)

    # -- queues ----------------------------------------------------------------------------------------------

    def _enqueue(self, batch, pieces, front=False):
        """Put the ranges (lo, hi, deaths, losses) at the end of the owner's queue, or what came back at its front."""
        owner, demand = batch.owner, batch.demand
        line = owner.lines.get(demand)
        if line is None:
            line = owner.lines[demand] = demand.ring[owner] = Line()
        tasks = total(pieces)
        line.tasks += tasks
        demand.tasks += tasks
        batch.queued += tasks
        line.batches[batch] = None
        if front:
            batch.queue = pieces + batch.queue
            line.batches.move_to_end(batch, last=False)
        else:
            batch.queue += pieces

    def _requeue(self, batch, parts, deaths, losses):
        """Put ranges that came back at the front."""
        if parts:
            self._enqueue(batch, tuple((lo, hi, deaths, losses) for lo, hi in parts), front=True)

    def _take_back(self, lease, parts, effects, now):
        """Queue again what a slave has not run of a lease, nobody is blamed."""
        self._requeue(lease.batch, parts, lease.deaths, lease.losses)
        if lease.batch.stale:
            self._end_unbegun(lease.batch, effects, now)

    def _keep_queued(self, batch, gone, left):
        """Of the queue of a batch only this is left."""
        if gone:
            batch.queue = tuple(left)
            self._shorten(batch, total(gone))

    def _dequeue(self, batch, tasks):
        """Take the first tasks of the batch's first range out."""
        (lo, hi, deaths, losses), rest = batch.queue[0], batch.queue[1:]
        batch.queue = rest if lo + tasks == hi else ((lo + tasks, hi, deaths, losses), *rest)
        self._shorten(batch, tasks)

    def _dequeue_all(self, batch):
        pieces, batch.queue = batch.queue, ()
        if pieces:
            self._shorten(batch, batch.queued)
        return pieces

    @staticmethod
    def _shorten(batch, tasks):
        owner, demand = batch.owner, batch.demand
        line = owner.lines[demand]
        line.tasks -= tasks
        demand.tasks -= tasks
        batch.queued -= tasks
        if not batch.queued:
            del line.batches[batch]
            if not line.batches:
                del owner.lines[demand], demand.ring[owner]

    # -- slaves ----------------------------------------------------------------------------------------------

    def slave_joined(
        self, slave: str, resources: dict, tags: list, workers: int, now: float, name: str = ""
    ) -> Effects:
        """A slave with these amounts, tags and slots is here, with empty hands."""
        effects = Effects([], [], [])
        if slave in self.slaves:
            self._lose(slave, "joined again", effects)
        self.slaves[slave] = Slave(slave, name, resources, tags, workers)
        self._fit(slave, 0)
        return self._assigned(effects, now)

    def slave_changed(self, slave: str, resources: dict, workers: int, now: float) -> Effects:
        """Its amounts or slots are others now. What it holds it keeps."""
        known = self.slaves.get(slave)
        if known is not None:
            slots, known.resources, known.workers = known.slots, dict(resources), workers
            self._fit(slave, slots)
        return self._assigned(Effects([], [], []), now)

    def slave_draining(self, slave: str, now: float) -> Effects:
        """It takes no more leases; it ends or gives back those that it has."""
        known = self.slaves.get(slave)
        if known is not None:
            slots, known.draining = known.slots, True
            self._fit(slave, slots)
        return self._assigned(Effects([], [], []), now)

    def slave_lost(self, slave: str, now: float, reason: str = "") -> Effects:
        """It is gone. What it held goes back to the front of the queue, and counts against the budget of
        losses."""
        effects = Effects([], [], [])
        if slave in self.slaves:
            self._lose(slave, reason or "lost", effects)
        return self._assigned(effects, now)

    def _fit(self, slave, slots):
        """Look anew at what a slave can take, which had so many slots."""
        known = self.slaves[slave]
        self.slots += known.slots - slots
        for demand in self.demands.values():
            demand.fit(known)

    def _lose(self, slave, reason, effects):
        gone = self.slaves[slave]
        self.counters["slaves lost"] += 1
        for lease in reversed(list(gone.leases.values())):  # the oldest is put in front last
            for lo, hi in reversed(lease.live(self._report(lease, lease.lo, lease.hi))):
                self._retry(lease, lo, hi, lease.deaths, lease.losses + 1, reason, effects)
        del self.slaves[slave]
        for demand in self.demands.values():
            demand.fit(gone, here=False)
        self.slots -= gone.slots

    # -- leases ----------------------------------------------------------------------------------------------

    def result(
        self,
        slave: str,
        lease: int,
        lo: int,
        hi: int,
        seconds: float,
        payload: Any,
        failures: dict,
        now: float,
    ) -> Effects:
        """The slave ran the tasks lo..hi of a lease in so many seconds together. Accepted once, from the
        slave that holds the lease; anything else is counted and dropped."""
        effects = Effects([], [], [])
        held = self._held(slave, lease)
        if held is None:
            return effects
        parts = self._report(held, lo, hi)
        live = parts if not held.ended else held.live(parts)
        if held.revoked or (parts and not live):
            self.counters["revoked result"] += 1
        elif parts == [(lo, hi)]:
            seconds = seconds if 0 <= seconds < 1e9 else 0.0
            held.slave.measure(held.batch.kind, hi - lo, seconds)
            held.batch.kind.measure(seconds / (hi - lo), self.slots)
            if live is not parts:
                failures = {**failures, **{str(task): AGAIN for task, _ in held.ended if lo <= task < hi}}
            self._end(held.batch, lo, hi, seconds, failures, payload, slave, effects, total(live))
        else:  # the payload cannot be cut here: what a confused slave left open runs again
            self.counters["repeated result"] += 1
            self._take_back(held, live, effects, now)
        return self._assigned(effects, now)

    def given_back(self, slave: str, lease: int, lo: int, hi: int, now: float) -> Effects:
        """The slave has not begun these tasks and will not: they go to the front of the queue, nobody is
        blamed."""
        effects = Effects([], [], [])
        held = self._held(slave, lease)
        if held is not None:
            held.asked = False
            parts = self._report(held, lo, hi)
            self.counters["given back"] += total(parts)
            if not held.revoked:
                self._take_back(held, held.live(parts), effects, now)
        return self._assigned(effects, now)

    def worker_lost(self, slave: str, lease: int, lo: int, hi: int, reason: str, now: float) -> Effects:
        """A worker died over these tasks. They run again one by one, so that the culprit is found; a task
        whose workers died too often is poisoned."""
        effects = Effects([], [], [])
        held = self._held(slave, lease)
        if held is not None:
            self.counters["workers lost"] += 1
            for a, b in reversed(held.live(self._report(held, lo, hi))):
                self._retry(held, a, b, held.deaths + 1, held.losses, reason, effects)
        return self._assigned(effects, now)

    def _held(self, slave, lease):
        held = self.leases.get(lease)
        if held is None:
            self.counters["late report"] += 1  # lease ended, superseded or of an earlier life
        elif held.slave.id != slave:
            self.counters["foreign report"] += 1
            held = None
        return held

    def _report(self, lease, lo, hi):
        """Close lo..hi of a lease; returns the ranges of it that were open."""
        parts, lease.open = split(lease.open, lo, hi)
        tasks = total(parts)
        lease.tasks -= tasks
        slave = lease.slave
        slave.open_tasks -= tasks
        if tasks:
            self._tell("task_finished", slave, tasks)
        if parts and not lease.open:
            slave.drop(lease)
            lease.batch.drop(lease)
            del self.leases[lease.id]
            while slave.missing:
                slave.missing.pop().offer(slave)
        return parts

    def _retry(self, lease, lo, hi, deaths, losses, reason, effects):
        """Queue tasks that lost their worker or slave again, or end them when their budget is spent."""
        batch, where = lease.batch, lease.slave.id
        if deaths >= self.max_attempts:
            text = f"{deaths} workers died over this task, the last one on {where}: {reason}"
            what = failure("poisoned", "WorkerLost", text, where)
            self._end(batch, lo, hi, 0.0, what, None, where, effects)
        elif losses >= MAX_LOSSES:
            text = f"{losses} slaves were lost with this task, the last one was {where}: {reason}"
            self._end(batch, lo, hi, 0.0, failure("lost", "SlaveLost", text, where), None, where, effects)
        else:
            effects.records.append(("retry", batch.owner.id, batch.number, lo, hi, deaths, losses))
            self._requeue(batch, [(lo, hi)], deaths, losses)

    # -- limits of time --------------------------------------------------------------------------------------

    def _set_timers(self, batch):
        """Look at the batch when a limit of it passes: from its acceptance on, or from a restart of the master."""
        for limit in ("deadline", "queue_timeout"):
            if limit in batch.limits:
                when = batch.since + batch.limits[limit]
                heapq.heappush(self._timers, (when, batch.serial, batch.owner.id, batch.number, limit))
                self._look_at(when)
        if len(self._timers) > self._most_timers:
            self._timers = [timer for timer in self._timers if timer[1] == batch.serial or self._timed(timer)]
            heapq.heapify(self._timers)
            self._most_timers = 2 * len(self._timers) + MIN_TIMERS

    def _timed(self, timer):
        """The batch of a timer; None if it has all its outcomes, or is forgotten."""
        _, serial, owner, number, _ = timer
        batch = self.owners[owner].batches.get(number) if owner in self.owners else None
        return batch if batch is not None and batch.serial == serial and batch.remaining else None

    def _expire(self, effects, now):
        """End what has passed its deadline, and what has not run within its queue_timeout."""
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            batch = self._timed(timer)
            if batch is None:
                continue
            self.counters["expired"] += 1
            if timer[-1] == "deadline":
                self._end_late(batch, effects, now)
            elif timer[-1] == "overdue":
                self._cancel(batch, True, effects, self._late(batch, "deadline", now))
            else:
                batch.stale = True
                self._end_unbegun(batch, effects, now)
                for lease in batch.leases.values():
                    if not lease.revoked and lease.attempt == 1:  # some of it may not have begun there
                        effects.messages.append(("steal", lease.slave.id, lease.id))

    def _end_late(self, batch, effects, now):
        """What waits at the deadline ends here, what is with a slave there: it knows where the task was."""
        for lo, hi, _, _ in self._dequeue_all(batch):
            self._end(batch, lo, hi, 0.0, self._late(batch, "deadline", now), None, "", effects)
        for lease in batch.leases.values():
            if not lease.revoked:
                effects.messages.append(("late", lease.slave.id, lease.id, now - batch.since))
        if batch.remaining:
            heapq.heappush(self._timers, (now + LATE, batch.serial, batch.owner.id, batch.number, "overdue"))

    def _end_unbegun(self, batch, effects, now):
        """What waits and never was in a worker has waited too long."""
        gone = [piece for piece in batch.queue if not (piece[2] or piece[3])]
        self._keep_queued(batch, gone, [piece for piece in batch.queue if piece not in gone])
        for lo, hi, _, _ in gone:
            self._end(batch, lo, hi, 0.0, self._late(batch, "queue_timeout", now), None, "", effects)

    @staticmethod
    def _late(batch, limit, now):
        return {"*": tasks.limit_failure(batch.options, limit, now - batch.since)}

    # -- assigning -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Time has passed: end what has passed its limits, ask busy slaves for work that others could do. Sets
        `deadline`."""
        effects = Effects([], [], [])
        self.deadline = None
        self._expire(effects, now)
        self._steal(effects, now)
        self._assign(effects, now)
        if self._timers:
            self._look_at(self._timers[0][0])
        return effects

    def _assigned(self, effects, now):
        """The end of every event that may free or add work."""
        self._assign(effects, now)
        if self.leases and (self.deadline is None or self._timers):
            self._look_at(now + self._pause)
        return effects

    def _assign(self, effects, now):
        """Make leases until nothing that waits fits anywhere. Owners take turns; one owner's batches go in
        order, except that a batch which fits nowhere does not hold up those with another demand."""
        ready = [demand for demand in self.demands.values() if demand.ring and demand.free]
        while ready:
            demand = ready[0] if len(ready) == 1 else min(ready, key=self._turn)
            if not self._lease(demand, effects, now) or not demand.ring:
                ready.remove(demand)
            elif len(ready) > 1:
                ready = [demand for demand in ready if demand.ring]

    @staticmethod
    def _turn(demand):
        owner, line = next(iter(demand.ring.items()))
        return owner.served, next(iter(line.batches)).serial

    def _lease(self, demand, effects, now):
        """Make one lease for the owner whose turn it is. Returns whether it found a slave."""
        owner, line = next(iter(demand.ring.items()))
        batch = next(iter(line.batches))
        tasks = self._size(batch, line)
        slaves = self._candidates(demand, batch.kind.estimate(tasks))
        if not slaves:
            return False
        lo, _, deaths, losses = batch.queue[0]
        lease = Lease(next(self._lease_ids), batch, lo, lo + tasks, deaths, losses, now)
        slave = self._place(slaves, lease)
        if slave is None:
            self._look_at(now + STEAL_AGE)  # ask again then
            return False
        owner.served = lease.id
        for other in owner.lines:
            other.ring.move_to_end(owner)
        self._dequeue(batch, tasks)
        slave.take(lease)
        demand.served(slave)
        batch.take(lease)
        self.leases[lease.id] = lease
        self.counters["leases"] += 1
        self._tell("task_pushed", slave, tasks)
        effects.messages.append(("lease", slave.id, lease))
        return True

    def _size(self, batch, line):
        """Tasks for the next lease: what was found to take TARGET seconds, but not more than a fair share, so
        that all slots end together; one where a worker died, to find out over which."""
        lo, hi, deaths, _ = batch.queue[0]
        if deaths or batch.alone:
            return 1
        least = batch.kind.least(max(batch.demand.tasks, batch.count), self.slots)
        fair = max(-(-line.tasks // (2 * self.slots or 1)), least)
        fair += -fair % batch.group if fair > batch.group else 0
        tasks = min(batch.kind.size, hi - lo, fair, self.max_lease)
        if tasks > batch.group and lo + tasks < hi:
            tasks -= (lo + tasks) % batch.group
        return tasks

    @staticmethod
    def _candidates(demand, estimate):
        """Up to WIDTH slaves that may take such a lease now: those with a free slot, else those with
        credit."""
        return demand.with_room(demand.idle, None, WIDTH) or demand.with_room(demand.free, estimate, WIDTH)

    def _place(self, slaves, lease):
        if self.scheduler is None:
            return slaves[0]
        try:
            slave = self.scheduler.place(slaves, lease)
        except Exception as error:  # a plug-in must not stop the swarm; the node reports it
            self.scheduler_error = error
            return slaves[0]
        if slave is not None and slave not in slaves:
            self.scheduler_error = Error(f"the scheduler placed a lease on {slave!r}", "it was not offered")
            return slaves[0]
        return slave

    def _tell(self, event, slave, tasks):
        if self.scheduler is not None:
            try:
                getattr(self.scheduler, event)(slave, tasks)
            except Exception as error:  # as in _place
                self.scheduler_error = error

    def _steal(self, effects, now):
        """Ask the holders of the biggest leases to give a part back, one for each slave with a free slot (which
        may be the holder itself)."""
        idle = {}  # Demand -> slaves with a free slot for it
        for demand in self.demands.values():
            slaves = demand.with_room(demand.idle, None, STEAL_WIDTH) if demand.batches else ()
            if slaves:
                idle[demand] = slaves
        served = set()
        for lease in self._ripe(idle, now) if idle else ():
            slave = next((slave for slave in idle[lease.batch.demand] if slave not in served), None)
            if slave is not None:
                served.add(slave)
                lease.asked = True
                self.counters["steals"] += 1
                effects.messages.append(("steal", lease.slave.id, lease.id))
                self._look_at(now + self._pause)

    @property
    def _pause(self):
        """Seconds between two rounds of stealing: what all leases in a large swarm cost to look at is little of it."""
        return max(STEAL_AGE, STEAL_LOOK * len(self.leases))

    def _ripe(self, demands, now):
        """The biggest leases of these demands that are old enough, and may have a part to give back."""
        ripe = []
        for lease in self.leases.values():  # in the order in which they were made
            if now < lease.since + STEAL_AGE:
                self._look_at(now + self._pause)
                break
            if not (lease.asked or lease.revoked) and lease.batch.demand in demands and lease.divisible:
                ripe.append(lease)
        return heapq.nlargest(STEAL_WIDTH, ripe, key=lambda lease: (lease.tasks, lease.id))

    def _look_at(self, when):
        """Call `tick` then at the latest."""
        self.deadline = when if self.deadline is None else min(self.deadline, when)

    def unplaced(self, now: float) -> list[dict]:
        """What waits though no slave that is here could ever take it: per owner and demand, the first batch,
        how many tasks wait, for how many seconds, and why each slave cannot."""
        found = []
        for demand in self.demands.values():
            if demand.able:
                continue
            slaves = self.slaves.values()
            reasons = {one.id: "is draining" if one.draining else one.lacks(demand) for one in slaves}
            for owner, line in demand.ring.items():
                batch = next(iter(line.batches))
                found.append(
                    {
                        "owner": owner.id,
                        "number": batch.number,
                        "tasks": line.tasks,
                        "waits": now - batch.since,
                        "needs": dict(demand.needs),
                        "tags": sorted(demand.tags),
                        "slaves": reasons,
                    }
                )
        return found

    # -- after a restart -------------------------------------------------------------------------------------

    def restore(self, records, now: float) -> Effects:
        """Rebuild an empty board from the records of earlier lives, in order. Owners are detached, what has
        no outcome is queued. Returns the record of this life, to journal first. Raises Error on a record that
        fits nothing before it."""
        waiting = {}  # Batch -> its ranges without outcome
        life = 0
        for record in records:
            try:
                if record[0] == "life":
                    life = record[1]
                else:
                    self._replay(record, waiting, now)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise Error(
                    f"the journal cannot be read at the record {str(record[:5])[:200]}",
                    f"it does not fit the records before it ({error!r})",
                    "move the journal aside and start again; what it held is not run",
                ) from error
        for batch, pieces in waiting.items():
            if pieces:
                self._enqueue(batch, tuple(sorted(pieces)))
        self.life = life + 1
        self._lease_ids = itertools.count((self.life << 32) + 1)
        return Effects([("life", self.life)], [], [])

    def _replay(self, record, waiting, now):
        event, owner, *rest = record
        effects = Effects([], [], [])
        if event == "owner":
            self.owners[owner] = Owner(owner, *rest)
        elif event == "gone":
            for batch in self.owners[owner].batches.values():
                waiting.pop(batch, None)
            self._drop_owner(owner, effects)
        elif event == "batch":
            batch = self._add_batch(self.owners[owner], *rest, now)
            waiting[batch] = [(0, batch.count, 0, 0)]
        else:
            batch = self.owners[owner].batches[rest[0]]
            if event == "settled":
                waiting.pop(batch, None)
                self._forget(batch, effects)
                return
            lo, hi, *rest = rest[1:]
            inside, outside = split(waiting[batch], lo, hi)
            if event not in ("retry", "outcome") or not inside or (event == "retry" and total(inside) != hi - lo):
                raise ValueError("not open")
            if event == "retry":
                outside.append((lo, hi, *rest))
            else:
                self._end(batch, lo, hi, *rest, "", effects, total(inside))
            waiting[batch] = outside

    # -- what always holds -----------------------------------------------------------------------------------

    def check(self):
        """Raise AssertionError unless everything holds that must hold between two events."""
        lines = {}
        for owner in self.owners.values():
            assert owner.tasks == sum(batch.count for batch in owner.batches.values()) <= self.limit
            for batch in owner.batches.values():
                self._check_batch(batch)
                if batch.queued:
                    line = lines.setdefault((owner, batch.demand), [0, 0])
                    line[0] += batch.queued
                    line[1] += 1
        for (owner, demand), (queued, batches) in lines.items():
            line = owner.lines[demand]
            assert demand.ring[owner] is line and self.demands[demand.needs, demand.tags] is demand
            assert line.tasks == queued and len(line.batches) == batches, "a queue holds what does not wait"
        for demand in self.demands.values():
            assert demand.tasks == sum(line.tasks for line in demand.ring.values())
        assert len(lines) == sum(len(owner.lines) for owner in self.owners.values())
        assert len(lines) == sum(len(demand.ring) for demand in self.demands.values())
        for slave in self.slaves.values():
            self._check_slave(slave)
        assert len(self.leases) == sum(len(slave.leases) for slave in self.slaves.values()), "no slave has it"
        assert self.slots == sum(slave.workers for slave in self.slaves.values() if not slave.draining)
        self._check_counters()
        self._check_timers()

    def _check_timers(self):
        """Whatever has a limit of time is looked at when it passes."""
        timed = {timer[1:] for timer in self._timers}
        for owner in self.owners.values():
            for batch in owner.batches.values():
                about = batch.serial, owner.id, batch.number
                if batch.remaining and "deadline" in batch.limits:
                    assert (*about, "deadline") in timed or (*about, "overdue") in timed
                if batch.remaining and "queue_timeout" in batch.limits:
                    assert batch.stale != ((*about, "queue_timeout") in timed)
        assert not self._timers or self.deadline <= self._timers[0][0], "nobody looks at the next timer"

    def _check_batch(self, batch):
        """Each task is in one place: it waits, is with a slave, or has its outcome."""
        ended = self._ended(batch)
        pieces = [piece[:2] for piece in batch.queue] + ended
        assert batch.queued == total(batch.queue)
        assert batch.remaining == batch.count - total(ended)
        for _, _, deaths, losses in batch.queue:
            assert deaths < self.max_attempts and losses < MAX_LOSSES, "more attempts than the budget"
            assert deaths or losses or not batch.stale, "what waits too long"
        for lease in batch.leases.values():
            assert self.leases[lease.id] is lease and lease.batch is batch
            assert not batch.alone or lease.hi - lease.lo == 1, "nobody could say which of them takes too long"
            pieces += lease.live(lease.open)
        end = 0
        for lo, hi in sorted(pieces):
            assert lo == end < hi, f"{batch.owner.id}.{batch.number}: {end}..{lo} are nowhere or twice"
            end = hi
        assert end == batch.count

    @staticmethod
    def _ended(batch):
        """The ranges of a batch that have an outcome; one that was cancelled alone may lie inside another."""
        ended = []
        for lo, hi, *_ in sorted(batch.outcomes, key=lambda outcome: (outcome[0], -outcome[1])):
            if ended and lo < ended[-1][1]:
                assert hi == lo + 1 <= ended[-1][1], "two outcomes of one task"
            else:
                ended.append((lo, hi))
        return ended

    def _check_slave(self, slave):
        used, seconds, tasks = {}, 0.0, 0
        for number, lease in slave.leases.items():
            batch = lease.batch
            assert self.leases[number] is lease is batch.leases[number] and lease.slave is slave
            assert lease.tasks == total(lease.open) > 0
            live = self.owners.get(batch.owner.id) is batch.owner and batch.number in batch.owner.batches
            assert live or lease.revoked, "a lease of a batch that is forgotten"
            tasks += lease.tasks
            seconds += lease.estimate
            for name, amount in batch.demand.needs:
                used[name] = used.get(name, 0) + amount
        assert tasks == slave.open_tasks and abs(seconds - slave.open_seconds) < 1e-6, "miscounted"
        for name, amount in slave.used.items():
            assert abs(used.pop(name, 0) - amount) < 1e-6, "amounts are miscounted"
        assert not used
        for demand in self.demands.values():
            able = slave in demand.able
            assert able == (not slave.draining and not slave.lacks(demand))
            if able and (slave not in demand.idle or slave not in demand.free):
                assert not slave.room(demand.needs, 1), "room that nobody knows of"

    def _check_counters(self):
        batches = [batch for owner in self.owners.values() for batch in owner.batches.values()]
        ended = self.counters["ended"] + self.counters["dropped"]
        assert self.counters["submitted"] == ended + sum(batch.remaining for batch in batches), "miscounted"
        for demand in self.demands.values():
            assert all(slave in demand.able for slave in (*demand.idle, *demand.free))
            if self.scheduler is None and demand.ring:
                assert not any(one.room(demand.needs, 1) for one in demand.idle), "work and room both wait"

# -- journal -------------------------------------------------------------------------------------------------------

SCHEMA = """
CREATE TABLE IF NOT EXISTS format (version INTEGER);
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY, kind TEXT, owner, batch INTEGER, detail TEXT, payload BLOB);
CREATE INDEX IF NOT EXISTS by_batch ON records (owner, batch);
"""
FORMAT = 1
OF_BATCH = ("batch", "retry", "outcome")
WITH_PAYLOAD = ("batch", "outcome")
GATHER = 0.01  # seconds that records may wait for others: nobody is told that they are safe before they are


class Journal(threading.Thread):
    """Keeps the Board's records in SQLite, from a thread of its own, as many as there are in one commit.

    `put(records, after)` never waits; `committed(after)` is called, in this thread, once the records are safe. The
    last item of "batch" and "outcome" records, the payload, is a list of byte strings. What nobody needs is deleted.
    """

    def __init__(self, path: Path, committed: Callable[[list], None], failed: Callable[[Exception], None]):
        super().__init__(name="journal", daemon=True)
        self._failed = failed
        self._path = path
        self._committed = committed
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._base = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            base = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.executescript(SCHEMA)
            found = base.execute("SELECT version FROM format").fetchone()
            if found is None:
                base.execute("INSERT INTO format VALUES (?)", (FORMAT,))
        except sqlite3.DatabaseError as error:
            raise components.Error(
                f"the journal {self._path} cannot be read ({error})", "it is damaged, or not a journal",
                "move it away to start with an empty one, or start with --no-journal",
            ) from None
        if found and found[0] != FORMAT:
            raise components.UsageError(
                f"the journal {self._path} has format {found[0]}, this version reads {FORMAT}",
                "another version of the program wrote it", "use that version, or move the file away",
            )
        return base

    def load(self) -> list[tuple]:
        """All records, oldest first. Before `start`."""
        rows = self._base.execute("SELECT kind, owner, batch, detail, payload FROM records ORDER BY number")
        return [_record(*row) for row in rows]

    def put(self, records: list[tuple], after: list) -> None:
        """Takes records, and what is to be sent once they are committed."""
        self._queue.put((records, after))

    def run(self) -> None:
        """Commits until `stop`."""
        while True:
            batch = [self._queue.get()]
            time.sleep(GATHER)
            while not self._queue.empty():
                batch.append(self._queue.get())
            try:
                self._commit([record for records, _ in batch for record in records or ()])
            except (sqlite3.Error, OSError, Error, ValueError, TypeError, OverflowError) as error:  # a full disk
                self._failed(error)
                return
            after = [message for _, messages in batch for message in messages]
            if after:
                self._committed(after)
            if any(records is None for records, _ in batch):
                self._base.close()
                return

    def _commit(self, records: list[tuple]) -> None:
        self._base.execute("BEGIN")
        for record in records:
            self._write(record)
        self._base.execute("COMMIT")

    def stop(self) -> None:
        """Commits what is there and ends."""
        self._queue.put((None, []))
        self.join(10)

    def _write(self, record: tuple) -> None:
        kind, owner, *rest = record
        if kind == "settled":
            self._base.execute("DELETE FROM records WHERE owner = ? AND batch = ?", (owner, rest[0]))
        elif kind == "gone":
            self._base.execute("DELETE FROM records WHERE owner = ?", (owner,))
        else:
            if kind == "life":
                self._base.execute("DELETE FROM records WHERE kind = 'life'")
            payload = pack_payload(rest.pop()) if kind in WITH_PAYLOAD else None
            batch = rest.pop(0) if kind in OF_BATCH else None
            self._base.execute(
                "INSERT INTO records (kind, owner, batch, detail, payload) VALUES (?, ?, ?, ?, ?)",
                (kind, owner, batch, json.dumps(rest), payload),
            )


def _record(kind: str, owner: Any, batch: int | None, detail: str, payload: bytes | None) -> tuple:
    numbers = (batch,) if kind in OF_BATCH else ()
    payloads = (unpack_payload(payload),) if kind in WITH_PAYLOAD else ()
    return (kind, owner, *numbers, *json.loads(detail), *payloads)


def pack_payload(parts: list | None) -> bytes | None:
    """A payload as one blob: the body of a message without a call."""
    return None if parts is None else b"".join(rpc.pack_stream(["payload"], parts))


def unpack_payload(blob: bytes | None) -> list | None:
    """The parts of a payload."""
    if blob is None:
        return None
    return rpc.unpack_body([blob[4:]])[1]


# -- the master ----------------------------------------------------------------------------------------------------

SWEEP_EVERY = 1.0  # seconds between two looks at configuration, plug-ins and the swarm
ACCEPT_EVERY = 0.01  # seconds that the news of accepted batches may wait for more of its kind
MOST_WORKERS = 10_000  # of one slave
MOST_HEAD = 64 * 1024  # bytes of what the tasks of a batch have in common
GRACE = 10.0  # seconds that a stopping master lets tasks run on
WANTED_FOR = 10.0  # seconds that a published object which is not here may still come
FAILURES_TOLD = 1000  # kinds of failures that are logged
TELL_EVERY = 0.25  # seconds between two reports of progress to a client


def check_version(role: str, info: dict) -> None:
    """Raises Error for a node of another version, and logs one that runs another Python."""
    theirs, ours = str(info.get("version")), components.__version__
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise components.Error(
            f"this {role} has concurrent_swarm {theirs}; the master has {ours}",
            "nodes of a swarm need the same version", f"python -m pip install concurrent-swarm=={ours}",
        )
    python, here = str(info.get("python")), ".".join(map(str, sys.version_info[:2]))
    if not python.startswith(f"{here}."):
        log.warning("a %s runs Python %s, the master %s: tasks must suit both", role, python, here)


def check_whole(*numbers: Any) -> None:
    """Raises UsageError unless all are numbers of things: what a peer sends may be anything."""
    if numbers and ({*map(type, numbers)} != {int} or min(numbers) < 0 or max(numbers) >= 1 << 53):
        shown = ", ".join(str(number)[:80] for number in numbers[:10])
        raise components.UsageError(f"one of {shown} is no number of a thing", "whole numbers from 0 are meant")


def read_options(parts: list) -> dict:
    """The head of a batch that somebody submits. Raises UsageError if it has none."""
    try:
        if not parts or len(parts[0]) > MOST_HEAD:
            raise ValueError(f"{len(parts)} parts, the first of at most {MOST_HEAD:,} bytes")
        return tasks.read_head(bytes(parts[0]))
    except ValueError as error:
        raise components.UsageError("the batch has no head that can be read", str(error)) from None


@functools.lru_cache(maxsize=1024)
def with_limits(head: bytes, limits: tuple) -> bytes:
    """The head of a batch, with the limits of this master for what its tasks do not say."""
    return json.dumps({**tasks.read_head(head), "default_limits": dict(limits)}).encode()


def check_report(lease: Any, lo: Any, hi: Any, failures: Any = None) -> None:
    """Raises UsageError unless a slave's report names a range, and failures are objects by ordinal."""
    check_whole(lease, lo, hi)
    if lo >= hi:
        raise components.UsageError(f"{lo}..{hi} holds no task", "a report names at least one")
    if failures is not None and not (type(failures) is dict and all(type(one) is dict for one in failures.values())):
        raise components.UsageError("the failures of a report are no objects", "an object by ordinal is meant")


def check_offer(amounts: Any, workers: Any, tags: Any = ()) -> None:
    """Raises UsageError unless a slave offers amounts by name, a number of workers, and words."""
    check_whole(workers)
    numbers = list(amounts.values()) if type(amounts) is dict else [None]
    if not all(type(one) in (int, float) and 0 <= one < math.inf for one in numbers):
        raise components.UsageError(f"{str(amounts)[:80]} is no offer", "amounts from 0 by name are meant")
    if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) for tag in tags):
        raise components.UsageError(f"the tags {str(tags)[:80]} are no list of words")


def identity_of(peer: rpc.Peer, info: dict) -> str:
    """Who a node is across its sessions. With its key: nobody else comes back as this node."""
    return f"{peer.key} {info.get('node_id')}"


class Names:
    """Short names for people: c1, s1, 1; the same again for the same identity."""

    def __init__(self):
        self._given: dict[tuple[str, str], str] = {}
        self._last: collections.Counter = collections.Counter()

    def give(self, prefix: str, identity: str) -> str:
        """The name of an identity, a new one if it has none."""
        if (prefix, identity) not in self._given:
            self._last[prefix] += 1
            self._given[prefix, identity] = f"{prefix}{self._last[prefix]}"
        return self._given[prefix, identity]

    def forget(self, prefix: str, identity: str) -> None:
        """Whoever had it will not come back."""
        self._given.pop((prefix, identity), None)

    def take(self, name: str, identity: str) -> None:
        """An earlier life gave this name."""
        prefix = name.rstrip("0123456789")
        self._given[prefix, identity] = name
        self._last[prefix] = max(self._last[prefix], int(name[len(prefix) :]))


class Memory:
    """Counts the bytes of the payloads in memory: `count` gives a list that counts until nobody holds it any more."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self.dropped: collections.deque[int] = collections.deque()  # by whatever thread

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held."""
        while self.dropped:
            self.used -= self.dropped.popleft()
        return self.used + size <= self.limit

    def count(self, parts: list, size: int) -> list:
        """The same parts, of which so many bytes are in memory, counted."""
        counted = Counted(parts)
        counted.memory, counted.size = self, size
        self.used += size
        return counted


def bytes_in_memory(parts: list) -> int:
    """How many bytes of a payload are not in files."""
    return sum([rpc.size_of(part) for part in parts if type(part) is not rpc.Reference])


class Counted(list):
    """Parts of a payload that take up memory as long as this list is there."""

    __slots__ = ("memory", "size")

    def __del__(self):
        self.memory.dropped.append(self.size)


class System:
    """A task system as the master sees it: the pipe to its host, and the client that waits for it."""

    def __init__(self, name: str, client: str, number: int, app: str, now: float):
        self.name = name
        self.client = client
        self.number = number
        self.app = app
        self.since = now
        self.token = 0
        self.step = self.done = self.known = 0  # done, known: tasks with an outcome, and all tasks
        self.waiting = False
        self.pipe: rpc.Pipe | None = None


class MasterNode(rpc.BaseNode):
    """Takes work from owners, gives leases to slaves, hosts task systems; decides everything through its Board."""

    role = "master"
    host = components.ConfigItem("master", "host", "127.0.0.1", "address to listen on; beyond loopback with keys")
    port = components.IntItem("master", "port", 8080, "port of the control channel; 0 is any", minimum=0, maximum=65535)
    names_here = components.ListItem(
        "master", "allowed_hosts", "", "further names of this machine by which nodes and people may call it"
    )
    compute_port = components.IntItem(
        "master", "compute_port", 0, "port of the compute channel; 0 is any", minimum=0, maximum=65535
    )
    scheduler = components.ExtensionPointItem(
        "master", "task_scheduler", "ZMQTaskScheduler", tasks.ITaskScheduler, "what places work on slaves"
    )
    max_lease = components.IntItem("master", "max_lease", MAX_LEASE, "tasks that a lease may hold", minimum=1)
    memory_limit = components.IntItem(
        "master", "memory", 64, "MiB of payloads to hold in memory; more lie on the disk until needed", minimum=0
    )
    journalled = components.BoolItem("master", "journal", True, "keep accepted work in SQLite until its owner has it")
    retention = components.FloatItem(
        "master", "retention", 3600.0, "seconds to keep the work of a client that went away without a word", minimum=0
    )
    timeout = components.FloatItem(
        "limits", "timeout", 0.0, "seconds that an attempt may run of a task that says nothing; 0: any", minimum=0
    )
    deadline = components.FloatItem(
        "limits", "deadline", 0.0, "seconds from acceptance to outcome of a task that says nothing; 0: any", minimum=0
    )
    queue_timeout = components.FloatItem(
        "limits", "queue_timeout", 0.0, "seconds until a task that says nothing first runs; 0: any", minimum=0
    )
    task_memory = components.FloatItem(
        "limits", "memory_limit", 0.0, "MiB that the worker of a task that says nothing may take; 0: any", minimum=0
    )

    def setup(self) -> None:
        """Builds everything that listens, in this order: zygote, keys, journal, compute channel, control channel."""
        self.names = Names()
        self.stopping = False
        self.broken: components.Error | None = None
        self.systems: dict[str, System] = {}
        self._system_numbers = itertools.count(1)
        self._hosts: dict[int, System] = {}  # zygote token -> system
        self._peers: dict[str, rpc.Peer] = {}  # name of a client or slave -> its connection
        self._finished: dict[tuple, tuple] = {}  # (client, number) -> how its system ended, until heard
        self._gone_at: dict[str, float] = {}  # clients that went away without a word
        self._told: dict[str, Any] = {}
        self._counts: collections.Counter = collections.Counter()
        self._failures: set[str] = set()  # kinds that were logged
        self._accepted: collections.defaultdict = collections.defaultdict(list)  # owner -> batches to be told of
        self._slow_at = self._sweep_at = self._tell_at = self._accept_at = 0.0
        self._zygotes = tasks.Recent()
        self.start_zygote()
        self.closing.callback(lambda: self.zygote.stop())
        self.store = self.open_store()
        self.spool = rpc.Store(rpc.own_folder(self.environment / "spool"))
        self.closing.callback(self.spool.close)
        self.memory = Memory(self.memory_limit * 1024 * 1024)
        self.read_limits()
        self.shelf = rpc.Shelf(self.store or self.spool)
        self.published: dict[str, str] = {}  # key of an object -> the client that it belongs to
        self._wanted: dict[str, list[tuple]] = {}  # key of one that is not here -> (who, since when) asks for it
        self.board = Board(max_lease=self.max_lease)
        self.journal = None
        self.set_scheduler()
        self.keyring = rpc.Keyring(str(self.environment / "keys"))
        if self.journalled:
            self.open_journal()
        else:
            self.board.restore([], time.monotonic())
        apps = self.environment / "apps"  # one without its zip is asked for again
        self.bundles = {d: m for d, m in rpc.known_bundles(apps).items() if (apps / f"{d}.zip").exists()}
        self.open_compute_channel()
        self.open_control_channel()

    def start_zygote(self) -> None:
        """Makes the process from which hosts are forked."""
        self._zygotes.append(time.monotonic())
        self.zygote = tasks.start_zygote()
        self.loop.add(self.zygote, self._zygote_speaks)

    def set_scheduler(self) -> None:
        """Puts the configured scheduler in charge of placing."""
        chosen = self.scheduler
        if chosen is not self.board.scheduler:
            chosen.setup(self)  # may raise: then the old one stays
            old, self.board.scheduler = self.board.scheduler, chosen
            if old:
                old.stop()

    def read_limits(self) -> None:
        """Takes over what is configured for tasks that say nothing: it is put into the heads of their batches."""
        limits = {"timeout": self.timeout, "deadline": self.deadline, "queue_timeout": self.queue_timeout,
                  "memory_limit": self.task_memory}
        self.limits = tuple((name, value) for name, value in limits.items() if value)

    def open_journal(self) -> None:
        """Reads what an earlier life accepted and has not delivered, and goes on from there."""
        self.journal = Journal(
            self.environment / "journal.db", lambda after: self.loop.post(lambda: self._send_all(after)),
            lambda error: self.loop.post(lambda: self._journal_failed(error)),
        )
        records = self.journal.load()
        effects = self.board.restore(records, time.monotonic())
        self.journal.start()
        self.closing.callback(self.journal.stop)
        self.apply(effects)
        now = time.monotonic()
        for owner in list(self.board.owners.values()):
            if owner.kind == "system":  # its host is gone; its client pushes it again
                self.apply(self.board.owner_gone(owner.id, now))
            else:
                self.names.take(owner.id, owner.key)
                self._gone_at[owner.id] = now
        waiting = sum(batch.remaining for owner in self.board.owners.values() for batch in owner.batches.values())
        if self.board.owners:
            log.info("took over %s clients with %s unfinished tasks", len(self.board.owners), waiting)

    def _journal_failed(self, error: Exception) -> None:
        """Nothing can be promised any more: the master ends, and its clients wait for the next one."""
        self.broken = components.Error(
            f"the journal cannot be written ({error})", "nothing that is accepted from now on would be safe",
            "make room on the disk, and start the master again: it goes on where it was",
        )
        self.loop.stop()

    # -- effects

    def apply(self, effects: Effects) -> None:
        """Journals, sends, and sends after the commit what an event of the Board asks for."""
        for record in effects.records:
            if record[0] == "outcome":  # counted here, for it is sent again to a client that comes back
                self._count(record[1], record[4] - record[3], record[6])
        if self.journal and (effects.records or effects.after):
            self.journal.put(effects.records, effects.after)
            self._send_all(effects.messages)
        else:
            self._send_all(effects.messages)
            self._send_all(effects.after)

    def _send_all(self, messages: list) -> None:
        for kind, target, *details in messages:
            try:
                self._senders[kind](self, target, *details)
            except (OSError, Error) as error:
                self._not_sent(kind, target, details, error)

    def _not_sent(self, kind: str, target: str, details: list, error: Exception) -> None:
        """A payload that is gone, or too large for where it should go: its tasks end in order all the same."""
        reason = f"it cannot be sent ({error})"
        log.error("%s for %s: %s", kind, target, reason)
        if kind == "lease":
            lease = details[0]
            lost = functools.partial(self.board.worker_lost, target, lease.id, lease.lo, lease.hi, reason)
            self.loop.post(lambda: self.apply(lost(time.monotonic())))
        elif kind == "outcome":
            number, lo, hi, seconds, _, _, slave = details
            self._send_outcome(target, number, lo, hi, seconds, failure("result", "NotSent", reason, slave), [], slave)

    def _send_lease(self, slave: str, lease: Lease) -> None:
        batch = lease.batch
        first, last = lease.lo // batch.group, -(-lease.hi // batch.group)
        parts = [*batch.payload[:2], *batch.payload[2 + first : 2 + last]]
        call = ["lease", lease.id, batch.owner.id, batch.number, lease.lo, lease.hi, batch.group, lease.attempt]
        self._send(slave, [*call, batch.options["first"]], parts)

    def _send_revoke(self, slave: str, lease: int, kill: bool) -> None:
        self._send(slave, ["revoke", lease, kill])

    def _send_steal(self, slave: str, lease: int) -> None:
        self._send(slave, ["steal", lease])

    def _send_late(self, slave: str, lease: int, seconds: float) -> None:
        self._send(slave, ["late", lease, seconds])

    def _send_accepted(self, owner: str, number: int) -> None:
        """Soon, with others: nobody waits for it."""
        if not self._accepted:
            self._accept_at = time.monotonic() + ACCEPT_EVERY
        self._accepted[owner].append(number)

    def _flush_accepted(self) -> None:
        accepted, self._accepted = self._accepted, collections.defaultdict(list)
        for owner, numbers in accepted.items():
            self._send(owner, ["accepted", numbers])

    def _send_refused(self, owner: str, number: int, reason: str) -> None:
        self._send(owner, ["refused", number, reason])

    def _send_outcome(
        self, owner: str, number: int, lo: int, hi: int, seconds: float, failures: dict, payload: list, slave: str
    ) -> None:
        self._send(owner, ["outcome", number, lo, hi, seconds, failures, slave], payload or ())

    _senders = {
        "lease": _send_lease, "revoke": _send_revoke, "steal": _send_steal, "late": _send_late,
        "accepted": _send_accepted, "refused": _send_refused, "outcome": _send_outcome,
    }

    def _send(self, target: str, call: list, parts: Iterable = ()) -> None:
        """To a slave or client by the compute channel, to a system by the pipe of its host."""
        if target in self.systems:
            self.systems[target].pipe.call(*call, parts=parts)
        elif target in self._peers:
            self.channel.send(self._peers[target], call, parts)

    def _count(self, owner: str, tasks: int, failures: dict) -> None:
        if failures:
            counted = {key: one for key, one in failures.items() if one is not AGAIN}
            tasks, failures = tasks - len(failures) + len(counted), counted
        self._counts["tasks"] += tasks
        if owner in self.systems:
            self.systems[owner].done += tasks
        if failures:
            self._note_failures(owner, tasks, failures)

    def _note_failures(self, owner: str, count: int, failures: dict) -> None:
        for failure in list(failures.values())[:3]:
            key = f"{failure.get('type')} at {failure.get('where') or '?'}"
            if key not in self._failures and len(self._failures) < FAILURES_TOLD:
                self._failures.add(key)
                log.warning("a task of %s failed: %s: %s", owner, key, failure.get("message"))
        self._counts["failed"] += count if "*" in failures else len(failures)

    # -- compute channel

    def open_compute_channel(self) -> None:
        """Binds ipc for this user and TCP for everybody with a key, and exposes the methods of the compute channel."""
        self.channel = rpc.Channel(self.keyring)
        self.channel.store = self.store
        self.closing.callback(self.channel.close)
        self.closing.callback(lambda: self.loop.remove(self.channel.socket))
        self.channel.on_hello = self._hello
        self.channel.on_lost = self._lost
        self.socket_file = rpc.socket_path(self.environment / "run")
        self.closing.callback(rpc.forget_socket, self.socket_file)
        self.channel.bind_ipc(self.socket_file)
        self.tcp_port = self.channel.bind_tcp(self.host, self.compute_port)
        self.loop.add(self.channel.socket, self.channel.receive)
        self._expose_to_owners(self.channel)
        self._expose_systems_to_owners(self.channel)
        self._expose_to_slaves(self.channel)
        self._expose_shared(self.channel)

    def _expose_to_owners(self, channel: rpc.Channel) -> None:
        owners = ("client", "admin")

        @rpc.tcpremote(channel, roles=owners)
        def bundle(handler, request, digest, manifest):
            self.store_bundle(digest, manifest, bytes(request.parts[0]))

        @rpc.tcpremote(channel, roles=owners)
        def submit(handler, request, number, count, group, first):
            self.submit(request.peer.label, number, count, group, first, request.parts)

        @rpc.tcpremote(channel, roles=owners)
        def settled(handler, request, numbers):
            check_whole(*numbers)
            self.apply(self.board.settled(request.peer.label, numbers, time.monotonic()))

        @rpc.tcpremote(channel, roles=owners)
        def cancel(handler, request, number, kill=False):
            check_whole(*([] if number is None else [number]))
            self.apply(self.board.cancel(request.peer.label, number, time.monotonic(), bool(kill)))

        @rpc.tcpremote(channel, roles=owners)
        def cancel_task(handler, request, number, place, kill=False):
            check_whole(number, place)
            self.apply(self.board.cancel_task(request.peer.label, number, place, time.monotonic(), bool(kill)))

    def _expose_shared(self, channel: rpc.Channel) -> None:
        owners = ("client", "admin")

        @rpc.tcpremote(channel, roles=owners)
        def publish(handler, request, key, at, total):
            self.publish(request.peer.label, key, at, total, request.parts[0])

        @rpc.tcpremote(channel, roles=("slave",))
        def publish_for(handler, request, owner, key, at, total):
            self.publish(owner, key, at, total, request.parts[0])

        @rpc.tcpremote(channel, roles=(*owners, "slave"))
        def fetch_shared(handler, request, key):
            self.want_shared(request.peer.label, key)

    def _expose_systems_to_owners(self, channel: rpc.Channel) -> None:
        owners = ("client", "admin")

        @rpc.tcpremote(channel, roles=owners)
        def push_tasksystem(handler, request, number, digest, options):
            check_whole(number)
            self.start_system(request.peer.label, number, digest, options, request.parts)

        @rpc.tcpremote(channel, roles=owners)
        def cancel_tasksystem(handler, request, number, kill=False):
            system = self._system_of(request.peer.label, number)
            if system:
                self.end_system(system, tasks.cancelled_failure(), {}, (), bool(kill))

        @rpc.tcpremote(channel, roles=owners)
        def step(handler, request, number):
            system = self._system_of(request.peer.label, number)
            if system:
                system.pipe.call("step")

        @rpc.tcpremote(channel, roles=owners)
        def work_settled(handler, request, number):
            self._finished.pop((request.peer.label, number), None)

        @rpc.tcpremote(channel, roles=owners)
        def goodbye(handler, request):
            self.forget_client(request.peer.label)

    def _expose_to_slaves(self, channel: rpc.Channel) -> None:
        slaves = ("slave",)

        @rpc.tcpremote(channel, roles=slaves)
        def result(handler, request, lease, lo, hi, seconds, failures):
            check_report(lease, lo, hi, failures)
            self.take_result(request.peer.label, lease, lo, hi, seconds, failures, request.parts)

        @rpc.tcpremote(channel, roles=slaves)
        def given_back(handler, request, lease, lo, hi):
            check_report(lease, lo, hi)
            self.apply(self.board.given_back(request.peer.label, lease, lo, hi, time.monotonic()))

        @rpc.tcpremote(channel, roles=slaves)
        def worker_lost(handler, request, lease, lo, hi, reason):
            check_report(lease, lo, hi)
            log.warning("slave %s: %s", request.peer.label, reason)
            self.apply(self.board.worker_lost(request.peer.label, lease, lo, hi, reason, time.monotonic()))

        @rpc.tcpremote(channel, roles=slaves)
        def fetch(handler, request, digest):
            self.send_bundle(request.peer, digest)

        @rpc.tcpremote(channel, roles=slaves)
        def resources(handler, request, amounts, workers):
            check_offer(amounts, workers)
            self.apply(self.board.slave_changed(request.peer.label, amounts, workers, time.monotonic()))

        @rpc.tcpremote(channel, roles=slaves)
        def leaving(handler, request):
            self.apply(self.board.slave_draining(request.peer.label, time.monotonic()))

    def _hello(self, peer: rpc.Peer, info: dict) -> dict:
        """Admits a node: gives it a name, and tells it what it needs to know."""
        now = time.monotonic()
        check_version(peer.role, info)
        if peer.role == "slave":
            return self._admit_slave(peer, info, now)
        return self._admit_client(peer, info, now)

    def _admit_slave(self, peer: rpc.Peer, info: dict, now: float) -> dict:
        amounts, workers, tags = info.get("resources"), info.get("workers"), info.get("tags", [])
        check_offer(amounts, workers, tags)
        peer.label = name = self.names.give("s", identity_of(peer, info))
        self._drop_old_connection(name, peer)
        self._peers[name] = peer
        self.apply(self.board.slave_joined(name, amounts, tags, workers, now))
        host, python = info.get("host", "?"), info.get("python")
        log.info("slave %s joined from %s: %s workers, Python %s", name, host, workers, python)
        return {"name": name, "page": self.server.address}

    def _admit_client(self, peer: rpc.Peer, info: dict, now: float) -> dict:
        missing = info.get("bundle") not in self.bundles  # first, for it may be anything, and then nobody is let in
        identity = identity_of(peer, info)
        peer.label = name = self.names.give("c", identity)
        self._drop_old_connection(name, peer)
        self._peers[name] = peer
        self._gone_at.pop(name, None)
        known = name in self.board.owners
        self.apply(self.board.owner_joined(name, "client", now, key=identity))
        self._told.pop(name, None)
        slaves, workers, _ = self.swarm_size()
        return {
            "name": name, "known": known, "slaves": slaves, "workers": workers, "page": self.server.address,
            "missing": missing,
        }

    def _drop_old_connection(self, name: str, peer: rpc.Peer) -> None:
        old = self._peers.pop(name, None)
        if old is not None and old is not peer:
            self.channel.drop(old, "the node connected anew")
            if old.role == "slave":
                self.apply(self.board.slave_lost(name, time.monotonic(), "it connected anew"))

    def _lost(self, peer: rpc.Peer, reason: str) -> None:
        name = getattr(peer, "label", "")
        if self._peers.get(name) is not peer:
            return
        del self._peers[name]
        self._told.pop(name, None)
        now = time.monotonic()
        if peer.role == "slave":
            held = self.board.slaves[name].open_tasks if name in self.board.slaves else 0
            log.info("slave %s left (%s): %s tasks back in the queue", name, reason, held)
            self.apply(self.board.slave_lost(name, now, reason))
        elif reason == rpc.LEFT:
            self.forget_client(name)
        elif name in self.board.owners:
            log.info("client %s is away (%s); its work goes on", name, reason)
            self._gone_at[name] = now
            self.apply(self.board.owner_detached(name, now))

    def forget_client(self, name: str) -> None:
        """The client is done, or never came back: its systems end and what is left of its work is dropped."""
        for system in [system for system in self.systems.values() if system.client == name]:
            self.end_system(system, tasks.cancelled_failure(), {}, ())
        self._finished = {key: end for key, end in self._finished.items() if key[0] != name}
        self._gone_at.pop(name, None)
        self._forget_shared(name)
        if name in self.board.owners:
            self.names.forget("c", self.board.owners[name].key)
        self.apply(self.board.owner_gone(name, time.monotonic()))

    def submit(self, owner: str, number: int, count: int, group: int, first: int, parts: list) -> None:
        """Takes a batch of a client or a system. Raises UsageError for what is no batch at all."""
        check_whole(number, count, group, first)
        if parts and type(parts[0]) is rpc.Reference:
            parts[0] = parts[0].read()
        head = read_options(parts)
        if self.limits:
            parts[0] = with_limits(bytes(parts[0]), self.limits)
            head = read_options(parts)
        if head.get("bundle") not in self.bundles:
            self._send_refused(owner, number, "its application was never sent here")
        elif len(parts) != 2 + -(-count // max(1, group)):
            self._send_refused(owner, number, f"{count} tasks in groups of {group} do not make {len(parts) - 2} groups")
        else:
            if owner in self.systems:
                self.systems[owner].known += count
            options = {**head, "first": first}
            try:
                parts = self.take_in(parts, 1)
            except OSError as error:
                self._send_refused(owner, number, f"the file that it lies in cannot be opened ({error})")
                return
            self.apply(self.board.submit(owner, number, count, time.monotonic(), group, options, parts))

    def take_result(
        self, slave: str, lease: int, lo: int, hi: int, seconds: float, failures: dict, parts: list
    ) -> None:
        """What a slave reports of a lease; results that cannot be opened any more are computed again."""
        now = time.monotonic()
        try:
            parts = self.take_in(parts)
        except OSError as error:
            reason = f"the file with its results cannot be opened ({error})"
            self.apply(self.board.worker_lost(slave, lease, lo, hi, reason, now))
        else:
            self.apply(self.board.result(slave, lease, lo, hi, seconds, parts, failures, now))

    def take_in(self, parts: list, first: int = 0) -> list:
        """Parts that this master holds on to: files are linked, so that they stay whatever becomes of their sender, and
        what memory has no room for is written to the disk, from the part `first` on. Raises OSError if a file is gone.
        """
        taken = [self._adopted(part) if type(part) is rpc.Reference else part for part in parts]
        size = bytes_in_memory(taken)
        if self.memory.has_room(size):
            return self.memory.count(taken, size)
        large = [i for i, part in enumerate(taken) if i >= first and bytes_in_memory([part])]
        for i, reference in zip(large, self.spool.write([taken[i] for i in large]) or (), strict=False):
            taken[i] = reference.held(self.spool)
        return self.memory.count(taken, bytes_in_memory(taken))

    def _adopted(self, part: rpc.Reference) -> rpc.Reference | bytes:
        if part.store is self.store:
            return part  # the host of a system wrote it here
        adopted = self.store.adopt(part)
        return adopted.held(self.store) if adopted else part.read()

    # -- bundles

    def store_bundle(self, digest: str, manifest: dict, data: bytes) -> None:
        """Keeps a bundle, unpacked for hosts and packed for slaves."""
        folder = self.environment / "apps"
        if digest not in self.bundles:
            rpc.open_bundle(digest, manifest, data, folder)
            with components.replacing(folder / f"{digest}.zip") as file:
                file.write(data)
            self.bundles[digest] = manifest

    def send_bundle(self, peer: rpc.Peer, digest: str) -> None:
        """Gives a slave what it runs leases of."""
        if digest in self.bundles:
            data = (self.environment / "apps" / f"{digest}.zip").read_bytes()
            self.channel.send(peer, ["bundle", digest, self.bundles[digest]], [data])
        else:
            self.channel.send(peer, ["no_bundle", digest])

    # -- published objects

    def publish(self, owner: str, key: str, at: int, total: int, part: Any) -> None:
        """Takes a slice of an object that somebody publishes; it stays until the client ends to which it belongs."""
        rpc.check_key(key, at, total)
        client = self.systems[owner].client if owner in self.systems else owner
        if client not in self.board.owners or self.published.setdefault(key, client) != client:
            return
        if self.shelf.take(key, at, total, part):
            for target, _ in self._wanted.pop(key, ()):
                self._send_shared(target, key)

    def want_shared(self, target: str, key: str) -> None:
        """Sends a published object; one that is not here may come yet, from a client that has just come back."""
        rpc.check_key(key)
        if self.shelf.get(key) is None:
            self._wanted.setdefault(key, []).append((target, time.monotonic()))
        else:
            self._send_shared(target, key)

    def _send_shared(self, target: str, key: str) -> None:
        part = self.shelf.get(key)
        if target in self.systems:
            for at, total, piece in rpc.slices(part, type(part) is rpc.Reference):
                self.systems[target].pipe.call("shared", key, at, total, parts=[piece])
        elif target in self._peers:
            here = self._peers[target].local
            by_file = type(part) is rpc.Reference and bool(here) and part.folder.startswith(here)
            for at, total, piece in rpc.slices(part, by_file):
                self._send(target, ["shared", key, at, total], [piece])

    def _forget_shared(self, client: str) -> None:
        keys = [key for key, owner in self.published.items() if owner == client]
        for key in keys:
            del self.published[key]
        self.shelf.forget(keys)
        for slave in self.board.slaves if keys else ():
            self._send(slave, ["forget_shared", keys])

    def _give_up_wanted(self, now: float) -> None:
        for key, asking in list(self._wanted.items()):
            if now - asking[0][1] > WANTED_FOR:
                for target, _ in self._wanted.pop(key):
                    self._send(target, ["no_shared", key, "the client that published it has ended, or lost it"])

    # -- task systems

    def start_system(self, client: str, number: int, digest: str, options: dict, parts: list) -> None:
        """Forks a host for a client's system; the same number of the same client is started once."""
        known = self._system_of(client, number)
        if (client, number) in self._finished:
            self._send_finished(client, number)
            return
        if known is None:
            if digest not in self.bundles:
                failure = {"c": -32007, "m": "its application was never sent here", "t": ""}
                self._send(client, ["push_tasksystem_failed", number, failure])
                return
            try:
                known = self._fork_host(client, number, digest, options, parts)
            except OSError as error:
                failure = {"c": -32000, "m": f"no process can be started for it ({error})", "t": ""}
                self._send(client, ["push_tasksystem_failed", number, failure])
                return
        self._send(client, ["push_tasksystem_response", number, known.name])

    def _fork_host(self, client: str, number: int, digest: str, options: dict, parts: list) -> System:
        now = time.monotonic()
        system = System(str(next(self._system_numbers)), client, number, options.get("name", "?"), now)
        root = self.environment / "apps" / digest
        system.token, sock = self.zygote.fork("host", str(root))
        system.pipe = rpc.Pipe(
            self.loop, sock, lambda pipe, call, parts: self._host_speaks(system, call, parts), lambda pipe: None,
            self.store, digest,
        )
        self.systems[system.name] = self._hosts[system.token] = system
        self.apply(self.board.owner_joined(system.name, "system", now, name=system.app))
        system.pipe.call("system", system.name, {**options, "bundle": digest}, parts=parts)
        log.info("system %s %s: from client %s", system.name, system.app, client)
        return system

    def _host_speaks(self, system: System, call: list, parts: list) -> None:
        method, *params = call
        if system.name not in self.systems:
            return
        if method == "submit":
            self.submit(system.name, *params, parts)
        elif method == "publish":
            self.publish(system.name, *params, parts[0])
        elif method == "fetch_shared":
            self.want_shared(system.name, *params)
        elif method == "settled":
            self.apply(self.board.settled(system.name, *params, time.monotonic()))
        elif method == "cancel":
            self.apply(self.board.cancel(system.name, params[0], time.monotonic(), params[1]))
        elif method == "cancel_task":
            number, place, kill = params
            self.apply(self.board.cancel_task(system.name, number, place, time.monotonic(), kill))
        elif method == "system_step":
            system.step, system.waiting = params
            self._send(system.client, ["system_step", system.number, *params])
        elif method == "system_done":
            self.end_system(system, *params, parts)

    def end_system(
        self, system: System, failure: dict | None, stats: dict, parts: Iterable, kill: bool = False
    ) -> None:
        """The system is done, failed or cancelled: nothing of it that is queued runs, and its client hears of it. With
        `kill`, its tasks that run are killed."""
        if self.systems.pop(system.name, None) is None:
            return
        seconds = time.monotonic() - system.since
        stats = {**stats, "elapsed": seconds, "id": system.name}
        what = f"failed ({failure['type']}: {failure['message']})" if failure else "done"
        log.info("system %s %s: %s, %s tasks in %.1f s", system.name, system.app, what, stats.get("tasks", 0), seconds)
        system.pipe.close()
        self.zygote.kill(system.token)  # a hook that never returns would not notice the end of its pipe
        self.apply(self.board.owner_gone(system.name, time.monotonic(), kill))
        self._finished[system.client, system.number] = (failure, stats, list(parts))
        self._send_finished(system.client, system.number)

    def _send_finished(self, client: str, number: int) -> None:
        failure, stats, parts = self._finished[client, number]
        self._send(client, ["work_finished", number, failure, stats], parts)

    def _system_of(self, client: str, number: int) -> System | None:
        return next((s for s in self.systems.values() if (s.client, s.number) == (client, number)), None)

    def _zygote_speaks(self) -> None:
        try:
            events = self.zygote.receive()
        except components.Error as error:
            if self._zygotes.crowded:
                raise tasks.no_zygote() from None
            log.error("%s; starting another", error.what)
            self.loop.remove(self.zygote)
            self.zygote.stop()
            self.start_zygote()
            events = [["died", token, "it went with the zygote"] for token in self._hosts]
        for event, token, detail in events:
            system = self._hosts.pop(token, None) if event == "died" else None
            if system:
                system.pipe.drain()
                failure = {"type": "HostLost", "message": f"the process of the system ended: {detail}", "traceback": "",
                           "where": "", "kind": "system"}
                self.end_system(system, failure, {}, ())

    # -- time, people, the end

    def swarm_size(self) -> tuple[int, int, int]:
        """Slaves, their slots, and how many of these are busy."""
        slaves = self.board.slaves.values()
        return len(slaves), sum(s.workers for s in slaves), sum(min(s.workers, s.open_leases) for s in slaves)

    def tick(self, now: float) -> float:
        board = self.board
        if board.deadline is not None and now >= board.deadline:
            self.apply(board.tick(now))
        if self._accepted and now >= self._accept_at:
            self._flush_accepted()
        if now >= self._slow_at or self.stopping:
            self._slow_tick(now)
        deadline = min(self._slow_at, self.channel.tick(now), math.inf if board.deadline is None else board.deadline)
        return min(deadline, self._accept_at) if self._accepted else deadline

    def _slow_tick(self, now: float) -> None:
        """What need not be looked at in each turn."""
        look_at = super().tick(now)
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY
            self._tell_clients()
        if self.stopping and (now >= self._stop_at or not (self.board.leases or self._unheard())):
            self.loop.stop()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            self._sweep(now)
        self._slow_at = min(look_at, self._sweep_at, self._tell_at if self._busy() else math.inf)

    def _unheard(self) -> bool:
        """True while a node has not acknowledged what was sent to it."""
        return any(peer.unheard for peer in self._peers.values())

    def _busy(self) -> bool:
        return bool(self.board.owners)

    def _sweep(self, now: float) -> None:
        self._give_up_wanted(now)
        self.spool.tidy()
        for name, since in list(self._gone_at.items()):
            if now - since > self.retention:
                log.info("client %s did not come back in %.0f s: its work is dropped", name, self.retention)
                self.forget_client(name)
        if self.board.scheduler_error:
            error, self.board.scheduler_error = self.board.scheduler_error, None
            log.error("the scheduler failed, the board placed a lease itself: %s", components.describe(error))

    def _tell_clients(self) -> None:
        """How the swarm stands, to every client for which that changed."""
        size = self.swarm_size()
        for name, peer in self._peers.items():
            if peer.role != "slave":
                mine = {s.number: [s.step, s.done, s.known] for s in self.systems.values() if s.client == name}
                told = [*size, mine]
                if self._told.get(name) != told:
                    self._told[name] = told
                    self.channel.send(peer, ["swarm", *told])

    def config_changed(self, changes: set) -> None:
        super().config_changed(changes)
        if ("master", "task_scheduler") in changes:
            components.run_foreign("the scheduler stays as it was", self.set_scheduler)
        if any(section == "limits" for section, _ in changes):
            self.read_limits()

    def open_control_channel(self) -> None:
        """Opens the HTTP port, writes the access files, and notes for nodes of this user where they are."""
        self.token = self.keyring.token()
        self._expose_to_people()
        self.serve(self.host, self.port, self.token, self.names_here)
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host  # what others can call
        self.addresses = {
            "http": rpc.format_address(host, self.server.port), "tcp": rpc.format_address(host, self.tcp_port),
            "ipc": self.socket_file,
        }
        self.keyring.write_access(self.addresses)
        self._note = rpc.masters_folder() / str(self.server.port)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(f"{self.environment.path}\n")
        self.closing.callback(self._forget_note)

    def _forget_note(self) -> None:
        if self._note.exists() and self._note.read_text().strip() == str(self.environment.path):
            self._note.unlink()

    def _expose_to_people(self) -> None:
        service = self.service

        @rpc.jsonremote(service)
        def enrol(request, role: str, public_key: str, name: str, nonce: str, time: float, mac: str):
            """Lets a node's key in, if the request is signed with the join secret of its role."""
            asked = {"role": role, "public_key": public_key, "name": name, "nonce": nonce, "time": time, "mac": mac}
            return self.loop.ask(lambda: self.keyring.enrol(asked, self.addresses))

        @rpc.jsonremote(service)
        def slaves(request):
            """Every slave: slots, leases and tasks in its hands, tasks done."""
            return self.loop.ask(self.describe_slaves)

        @rpc.jsonremote(service)
        def systems(request):
            """Every task system that runs: its application, client, step, and seconds since its start."""
            return self.loop.ask(self.describe_systems)

        @rpc.jsonremote(service, name="slave.set_workers", roles=("admin",))
        def set_workers(request, slave: str, workers: int):
            """Sets how many leases a slave runs at once."""
            if not 0 <= workers <= MOST_WORKERS:
                raise components.UsageError(f"{workers} workers", f"a slave has 0 to {MOST_WORKERS}")
            return self.loop.ask(lambda: self.order_slave(slave, ["workers", workers]))

        @rpc.jsonremote(service, name="slave.drain", roles=("admin",))
        def drain(request, slave: str):
            """Lets a slave end what it runs, take no more, and leave."""
            return self.loop.ask(lambda: self.order_slave(slave, ["drain"]))

        @rpc.jsonremote(service, name="system.cancel", roles=("admin",))
        def cancel(request, system: str, kill: bool = False):
            """Ends a task system; what it has queued never runs. kill: ends what runs of it, too."""
            return self.loop.ask(lambda: self.cancel_system(system, kill))

    def order_slave(self, slave: str, call: list) -> bool:
        """Passes an order on. Raises Error for a slave that is not here."""
        if slave not in self.board.slaves or slave not in self._peers:
            raise components.Error(f"there is no slave {slave}", f"here are: {', '.join(self.board.slaves) or 'none'}")
        self.channel.send(self._peers[slave], call)
        return True

    def cancel_system(self, name: str, kill: bool = False) -> bool:
        """Ends a system by name. Raises Error if there is none."""
        if name not in self.systems:
            raise components.Error(f"no task system {name} runs", f"running: {', '.join(self.systems) or 'none'}")
        self.end_system(self.systems[name], tasks.cancelled_failure(), {}, (), kill)
        return True

    def describe_slaves(self) -> list[dict]:
        """A row per slave."""
        return [
            {"name": s.id, "workers": s.workers, "leases": s.open_leases, "tasks": s.open_tasks, "done": s.done_tasks,
             "seconds": round(s.seconds, 3), "resources": s.resources, "tags": sorted(s.tags), "draining": s.draining}
            for s in self.board.slaves.values()
        ]

    def describe_systems(self) -> list[dict]:
        """A row per running system."""
        now = time.monotonic()
        return [
            {"name": s.name, "app": s.app, "client": s.client, "step": s.step, "elapsed": round(now - s.since, 1),
             "done": s.done, "tasks": s.known}
            for s in self.systems.values()
        ]

    def status(self) -> dict:
        slaves, workers, busy = self.swarm_size()
        queued = sum(line.tasks for owner in self.board.owners.values() for line in owner.lines.values())
        return {
            **super().status(), "slaves": slaves, "workers": workers, "busy": busy, "queued": queued,
            "clients": sorted(name for name, peer in self._peers.items() if peer.role != "slave"),
            "systems": len(self.systems), "done": self._counts["tasks"], "failed": self._counts["failed"],
            "scheduler": type(self.board.scheduler).__name__, "journal": bool(self.journal),
            "addresses": self.addresses, "unplaced": self.board.unplaced(time.monotonic()),
            "counters": dict(self.board.counters), "refused": dict(self.channel.counts),
        }

    def stop_soon(self) -> None:
        """Lets what runs end, for GRACE seconds, and stops; at once if nothing runs or this is the second time."""
        if self.stopping or not (self.board.leases or self._unheard()):
            self.loop.stop()
            return
        self.stopping = True
        now = time.monotonic()
        self._stop_at = now + GRACE
        running = sum(slave.open_tasks for slave in self.board.slaves.values())
        log.warning("stopping: no new work, %s tasks may finish (%.0f s); Ctrl-C again stops at once", running, GRACE)
        for slave in list(self.board.slaves):
            self.apply(self.board.slave_draining(slave, now))


# -- command line --------------------------------------------------------------------------------------------------

EXAMPLES = """examples:
  master.py                        for slaves and clients of this user
  master.py --host 0.0.0.0         also others, with a file of its keys
  master.py config show --origin   what is configured, and where

exit: 0 stopped, 1 internal error, 2 usage or port taken, 130/143 signals
"""


def parser() -> components.ArgumentParser:
    """The options of `master.py`."""
    made = components.ArgumentParser(
        prog="master.py", usage="master.py [options]   coordinate slaves and run applications",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--host", metavar="ADDR", help="address to listen on (127.0.0.1)")
    made.add_argument("--port", metavar="N", help="port of the control channel (8080)")
    made.add_argument("--scheduler", metavar="NAME", help="push, pull, or the name of a component")
    made.add_argument("--no-journal", action="store_true", help="forget what was accepted when it ends")
    rpc.common_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs a master; returns its exit code."""
    return components.run_main(_main, argv)


SCHEDULERS = {"push": "GenericTaskScheduler", "pull": "ZMQTaskScheduler"}


def _main(argv: list[str]) -> int:
    code = rpc.administer("master", argv)
    if code is not None:
        return code
    options = parser().parse_args(argv)
    chosen = {"host": options.host, "port": options.port, "task_scheduler": options.scheduler}
    chosen["task_scheduler"] = SCHEDULERS.get(options.scheduler, options.scheduler)
    settings = [f"master.{key}={value}" for key, value in chosen.items() if value is not None]
    environment, config = rpc.open_environment("master", options, settings + ["master.journal=no"] * options.no_journal)
    with environment:
        node = MasterNode(environment, config)
        with rpc.start_logging(node, components.Terminal(color=options.color)):
            return _run(node, options)


def _run(node: MasterNode, options: Any) -> int:
    began = time.monotonic()
    code = 0
    rpc.raise_open_files()
    rpc.tune_process()

    def interrupt(number: int) -> None:
        nonlocal code
        if number == signal.SIGTERM:
            code = components.EXIT_TERMINATED
        elif node.stopping:
            code = components.EXIT_INTERRUPTED
        node.loop.post(node.stop_soon)

    rpc.stop_on_signals(interrupt)
    try:
        node.setup()
        node.config.check_unknown()
        parent = rpc.Parent(options.parent, node.loop, node.loop.stop)
        if not options.quiet:
            _greet(node, time.monotonic() - began)
        parent.ready({"address": node.server.address})
        node.loop.run()
        if node.broken:
            raise node.broken
        return code
    finally:
        node.close()


def _greet(node: MasterNode, seconds: float) -> None:
    """The start lines."""
    address = node.addresses["http"]
    lines = [
        rpc.greeting("master"),
        f"  slaves   python slave.py --master {address}",
        f"  run      python client.py samples/md5.py --master {address}",
        f"  folder   {node.environment.path}",
        "Only this machine can connect. For a network: --host 0.0.0.0, and copy keys/slave.access to the slaves"
        if rpc.is_loopback(node.host) else f"Nodes elsewhere need a file of {node.environment / 'keys'}: --access FILE",
        f"ready in {seconds:.1f} s, Ctrl-C stops",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
