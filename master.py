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
    ("owner", owner, kind, key, name, user) · ("gone", owner) · ("paused", owner, whether)
    ("batch", owner, number, count, group, options, payload) · ("settled", owner, number)
    ("retry", owner, number, lo, hi, *`Past` but for shun)   these failed, or lost worker or slave, and wait again
    ("outcome", owner, number, lo, hi, seconds, failures, attempt, payload)
and, which the Board only passes over but for the snapshot, what a task system needs to go on in another process: it is
repeated from its beginning, or its last snapshot, with the same outcomes, steps and values in the same order.
    ("system", owner, client, number, app, bundle, options, payload)
    ("step", owner, on) · ("value", owner, value)       a person let it go on; what its clock said
    ("snapshot", owner, heard, batches, out, drawn, ended, payload)
                                                        the system after `heard` more outcomes and steps, when it had
                                                        sent `batches` batches, of which those tasks were `out`
    ("moved", owner, client, number)                    another client waits for it now
    ("finished", owner, client, number, app, user, failure, stats, payload)   in place of all that was there of it;
                                                        not heard by its client yet
    ("detached", client)                                it left its task systems here, for others to collect
    ("slave", slave, key)                               it may come back with leases
    ("shared", client, key, payload)                    a task has published this object

Messages: the second item names the peer.
    ("lease", slave, Lease) · ("revoke", slave, lease id, kill) · ("steal", slave, lease id)
    ("late", slave, lease id, seconds since the acceptance)
    ("accepted", owner, number) · ("refused", owner, number, reason)
    ("outcome", owner, number, lo, hi, seconds, failures, payload, slave, attempt)
    ("unplaceable", owner, task id, tasks, why)         these wait for what no slave here has; told once, for the log
    ("retrying", owner, task id, tasks, attempt, seconds, failure) · ("quarantined", slave, seconds)    for the log
A key of `failures` is an ordinal in the batch as text, or "*" for every task of lo..hi (cancelled, lost, poisoned,
unplaceable). One with "again" tells of a task that was cancelled alone and has its outcome, one with "retried" of one
that has none yet and runs once more: the results of a lease are not cut.
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
import array
import base64
import bisect
import collections
import errno
import functools
import hashlib
import heapq
import itertools
import json
import logging
import math
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import threading
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import contextmanager, nullcontext, suppress
from operator import itemgetter, sub, truediv
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
LONG = 1.0  # seconds: a deadline beyond that is one of tasks that nobody can take, and stealing comes first
STEAL_WIDTH = 64  # leases asked for per round
STEAL_LOOK = 2e-5  # seconds between two rounds per lease that is out: looking at it takes 4 % of that
WIDTH = 8  # slaves shown to the scheduler per lease: best of eight, whatever the size of the swarm
TURN = 0.050  # seconds of each slot dealt to a user, or an application, before the next one: another worker costs 10 ms
OWED = 10.0  # seconds of each slot that a user which could not use its share may have later
FRONT = 64  # owners looked at, WIDTH ranges of each, for something that may go to a slave on which others have failed
MAX_ATTEMPTS = 3  # worker deaths until a task counts as poisoned, if it says nothing else
MAX_HOSTS = 3  # processes that a task system may have until its death counts as its own fault
MAX_LOSSES = 10  # slaves lost under one task until it counts as lost, if it says nothing else
UNSAID = {"process_limit": tasks.PROCESS_LIMIT, "retry_wait": tasks.RETRY_WAIT, "Exception": 0,
          "WorkerLost": MAX_ATTEMPTS - 1, "SlaveLost": MAX_LOSSES - 1}  # what counts where nobody says anything
MAX_SETUPS = 3  # attempts to set up a task
MAX_WAIT = 300.0  # seconds between two attempts
SHUN = 10.0  # seconds for which a task that failed does not go back to the same slave, if another could take it
STRIKES = 5  # leases that fail in a row on a slave, and succeed elsewhere, until it is in quarantine
QUARANTINE, LONGEST = 60.0, 3600.0  # seconds of it; the next one is twice as long
LIMIT = 10_000_000  # unsettled tasks per owner
MAX_KINDS = 1000  # names measured apart per owner
MAX_DEMANDS = 64  # unused demands kept
SHOWN = 5  # slaves and reasons that an explanation in one line names
LATE = 1.0  # seconds that a slave has to tell where tasks were that passed their deadline
KEPT_USERS = 64  # for whom no owner works any more
MIN_TIMERS = 1000  # timers that may wait before those that nobody needs any more are looked for
SMOOTH = 0.3  # weight of the newest measurement
EPSILON = 1e-9  # sums of amounts such as 0.1 may miss by this much


# -- ranges --------------------------------------------------------------------------------------------------

def split(ranges: list, lo: int, hi: int) -> tuple[list, list]:
    """Divide the tuples (lo, hi, …) into what lies inside lo..hi and what lies outside, cutting where needed."""
    if len(ranges) == 1 and ranges[0][:2] == (lo, hi):  # the healthy path
        return ranges, []
    inside, outside = [], []
    for piece in ranges:
        a, b, rest = piece[0], piece[1], piece[2:]
        if b <= lo or hi <= a:
            outside.append(piece)
            continue
        cuts = (a, min(b, lo), outside), (max(a, lo), min(b, hi), inside), (max(a, hi), b, outside)
        for x, y, side in cuts:
            if x < y:
                side.append((x, y, *rest))
    return inside, outside


def take(ranges: list, lo: int, hi: int) -> list:
    """Remove from sorted ranges what lies inside lo..hi, and return it."""
    first, last = bisect.bisect(ranges, (lo, math.inf)), bisect.bisect_left(ranges, (hi,))
    first -= first > 0 and ranges[first - 1][1] > lo
    inside, ranges[first:last] = split(ranges[first:last], lo, hi)
    return inside


def total(ranges: list) -> int:
    """How many tasks the ranges hold."""
    tasks = 0
    for piece in ranges:
        tasks += piece[1] - piece[0]
    return tasks


def _add(numbers: list, number: int):
    """Add a number to a sorted list of disjoint [lo, hi] lists; it stays short while numbers come about in order."""
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


def without(ranges: list, numbers: Iterable[int]) -> list:
    """The ranges less these numbers."""
    cuts, found = sorted(numbers), []
    for lo, hi, *rest in ranges:
        for number in cuts[bisect.bisect_left(cuts, lo) : bisect.bisect_left(cuts, hi)]:
            found += [(lo, number, *rest)] if lo < number else []
            lo = number + 1
        found += [(lo, hi, *rest)] if lo < hi else []
    return found


def retried(failures: dict) -> list[int]:
    """The tasks of which an outcome says only that they run again."""
    return [int(task) for task, one in failures.items() if "retried" in one]


class Past(NamedTuple):
    """What befell tasks that wait, or run, again: workers that died, slaves that were lost, failures after which they
    may run again, times that they could not begin. `lease`: under which they failed last, if it was no slave that was
    lost. `shun`: the slave on which a lone one failed last, and when."""

    deaths: int = 0
    losses: int = 0
    errors: int = 0
    setups: int = 0
    lease: int = 0
    shun: tuple[str, float] | None = None

    @property
    def attempt(self) -> int:
        """1 for tasks to which nothing happened, and one more for each time."""
        return self.deaths + self.losses + self.errors + self.setups + 1


NOTHING = Past()


@functools.lru_cache(maxsize=128)
def _fresh(count: int) -> tuple:
    """The queue of a batch none of whose tasks ran: one for all batches of that size."""
    return ((0, count, NOTHING),)


# -- what the board holds ------------------------------------------------------------------------------------

class Effects(NamedTuple):
    """What an event asks for: records to journal, messages to send now, and messages to send once these
    records and all earlier ones are committed."""

    records: list
    messages: list
    after: list


class Kind:
    """Tasks of one owner with one name: their measured seconds (each, smoothed; None at first) and lease size."""

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
    """What a lease needs of a slave, with the users that wait for it and their owners, in turn, and the slaves that may
    have room.

    `idle` and `free` may name a slave whose room is gone (it is taken out when met), never miss one that has
    room: idle for a free slot, free for prefetching."""

    __slots__ = ("able", "batches", "free", "idle", "needs", "rings", "tags", "tasks", "wanting", "width")

    def __init__(self, needs: tuple, tags: frozenset):
        self.needs = needs  # ((name, amount), …), amounts above 0
        self.tags = tags
        self.width = max([1, *(amount for name, amount in needs if name == "cpus")])  # slots that a lease takes
        self.batches = 0  # live batches with this demand
        self.tasks = 0  # queued ones
        self.rings = {}  # User -> OrderedDict(Owner -> Line), the next in turn first
        self.able = set()
        self.idle = OrderedDict()
        self.free = OrderedDict()
        self.wanting = ""  # what no slave here has of it, while tasks wait for that

    def __str__(self):
        amounts = [f"{amount:g} {name}" for name, amount in self.needs]
        return ", ".join([*amounts, *(f"the tag {tag}" for tag in sorted(self.tags))]) or "nothing"

    @property
    def lines(self) -> list[tuple]:
        """(Owner, Line) of all that waits for it."""
        return [pair for ring in self.rings.values() for pair in ring.items()]

    def missing(self, slaves: Iterable) -> str:
        """What none of these slaves has of it: a tag, else an amount, else all of it together."""
        slaves = list(slaves)
        tags = self.tags.difference(*(slave.tags for slave in slaves))
        if tags:
            return f"no slave has the tag {', '.join(sorted(tags))}"
        for name, amount in self.needs:
            most = max((slave.resources.get(name, 0) for slave in slaves), default=0)
            if amount > most + EPSILON:
                return f"no slave has {amount:g} {name}, the most is {most:g}"
        return f"no slave has all of {self}"

    def offer(self, slave: Slave):
        """The slave may have room (again)."""
        if slave in self.able:
            self.free[slave] = None
            if self.rings and not slave.room(self.needs, 1):  # it would be met at once, in vain
                slave.missing.add(self)
            else:
                self.idle[slave] = None

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
        if here and not slave.closed and not slave.lacks(self):
            self.able.add(slave)
            self.offer(slave)
        else:
            self.able.discard(slave)
            self.idle.pop(slave, None)
            self.free.pop(slave, None)

    def served(self, slave: Slave, estimate: float):
        """The slave took a lease of so many seconds: the others come first now, and it not at all if it is full."""
        full = not slave.room(self.needs, slave.deep(estimate))
        for slaves in (self.idle, self.free):
            if slave in slaves:
                slaves.move_to_end(slave)
                if full:
                    del slaves[slave]
                    slave.missing.add(self)


class Line:
    """The queued batches of one owner with one demand, in order, and how many tasks of them are queued."""

    __slots__ = ("batches", "stuck", "tasks")

    def __init__(self):
        self.batches = OrderedDict()  # Batch -> None
        self.tasks = 0
        self.stuck = None  # since when it waits for what no slave here has

    @property
    def head(self) -> str:
        """The id of the task that is next."""
        batch = next(iter(self.batches))
        return batch.task_id(batch.queue[0][0])


class Quotas(NamedTuple):
    """What a user may have here at once. `running` counts leases, `retention` is in seconds."""

    queued: float = math.inf
    bytes: float = math.inf
    running: float = math.inf
    systems: float = math.inf
    retention: float = math.inf

    def passed(self, user: str, name: str, value: int, more: int) -> str:
        """Why so much more of something is too much; "" if it is not."""
        most = getattr(self, name)
        if value + more <= most:
            return ""
        what = {"queued": "queued tasks", "systems": "task systems"}.get(name, name)
        return f"user {user} has {value:,} {what}; with {more:,} more it passes {most:,} (quotas.{name} of the master)"


class User:
    """For whom owners work: its tasks that wait, those of them whose owner is paused, bytes of payloads, leases in the
    hands of slaves. `spent`: the seconds of slots that it had, to compare with those of others that have work,
    `expected` ones of its leases among them."""

    __slots__ = ("bytes", "expected", "name", "paused", "queued", "running", "spent")

    def __init__(self, name: str):
        self.name = name
        self.queued = self.paused = self.bytes = self.running = 0
        self.spent = self.expected = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing of it runs or may be leased."""
        return not self.running and self.queued == self.paused


class Owner:
    """Whoever submits: a client or the host of a task system. `attached`: its connection is there. `paused`: none of
    what it has queued is leased; its lines are in no ring."""

    __slots__ = ("attached", "batches", "forgotten", "id", "key", "kind", "kinds", "lines", "name", "paused", "served",
                 "tasks", "turn", "user")

    def __init__(self, owner: str, kind: str, key: str, name: str, user: User):
        self.id, self.kind, self.key, self.name, self.user = owner, kind, key, name, user
        self.attached = self.paused = False
        self.batches = {}  # number -> Batch, until settled
        self.forgotten = []  # numbers settled, as [lo, hi] lists
        self.tasks = 0  # of all batches here
        self.kinds = {}  # name -> Kind
        self.lines = {}  # Demand -> Line, only with something queued
        self.served = 0  # the last lease made for it
        self.turn = 0.0  # seconds of slots that it had since it became the first of its user

    def kind_of(self, name: str) -> Kind:
        """The kind of that name; an owner with too many names gets one for all further ones."""
        if name not in self.kinds and len(self.kinds) >= MAX_KINDS:
            name = ""
        return self.kinds.setdefault(name, Kind())


NONE = MappingProxyType({})
PASSED_OVER = ("system", "step", "value", "moved", "finished", "detached", "slave", "shared")  # it does without


class Batch:
    """Tasks 0..count-1 submitted together. `payload` is only handed through, and let go with the last
    outcome. A million of them may wait, so one that waits has no containers of its own."""

    __slots__ = ("count", "delayed", "demand", "group", "kind", "leases", "limits", "number", "options", "outcomes",
                 "owner", "payload", "queue", "queued", "remaining", "serial", "since", "stale")

    def __init__(self, owner: Owner, number: int, count: int, group: int, options: dict, payload: Any):
        self.owner, self.number, self.count, self.group = owner, number, count, group
        self.options, self.payload = options, payload
        self.demand = self.kind = None
        self.limits = NONE  # what its tasks may take, by name; see `tasks.limits_of`
        self.stale = False  # its queue_timeout has passed: what has not run never will
        self.serial = 0  # order of arrival
        self.since = 0.0  # when it arrived
        self.queue = ()  # (lo, hi, Past), next first
        self.queued = 0  # tasks in it
        self.delayed = ()  # (lo, hi, Past, when it joins the queue), of what failed and waits
        self.leases = NONE  # id -> Lease, revoked ones too
        self.outcomes = ()  # (lo, hi, seconds, failures, payload, slave, attempt)
        self.remaining = count  # tasks without outcome

    @property
    def first(self) -> int:
        """The ordinal of its first task among all of its owner."""
        return self.options.get("first", 0)

    def task_id(self, number: int) -> str:
        """The id under which its owner knows task `number` of it."""
        return f"{self.owner.id}.{self.first + number}"

    def take(self, lease: Lease):
        """A part of it is in the hands of a slave."""
        user, expected = self.owner.user, lease.expected * self.demand.width
        user.running += 1
        user.spent += expected
        user.expected += expected
        if not self.leases:
            self.leases = {}
        self.leases[lease.id] = lease

    def drop(self, lease: Lease):
        """A lease is reported."""
        user, width = self.owner.user, self.demand.width
        user.running -= 1
        user.spent += (lease.seconds - lease.counted - lease.expected) * width
        user.expected -= lease.expected * width
        del self.leases[lease.id]
        if not self.leases:
            self.leases = NONE

    @property
    def alone(self) -> bool:
        """Whether a slave watches each of its tasks, in a lease of its own."""
        limits = self.limits  # the one over which a worker died is to be known also where that must not happen twice
        return bool(limits) and (not tasks.WATCHED.isdisjoint(limits) or not self.retries("WorkerLost"))

    def retries(self, name: str) -> int:
        """How often its tasks run again after such a failure."""
        return self.limits.get("retries", NONE).get(name, UNSAID[name])

    def end(self, outcome: tuple, tasks: int, weigh: Callable[[Any], int]):
        """So many tasks of it have their outcome, for good."""
        if not self.outcomes:
            self.outcomes = []
        self.outcomes.append(outcome)
        self.owner.user.bytes += weigh(outcome[4])
        self.remaining -= tasks
        if not self.remaining:
            self.owner.user.bytes -= weigh(self.payload)
            self.payload = None


class Lease:
    """The tasks lo..hi of a batch in the hands of one slave. `open`: the ranges it has not reported yet; `ended`: those
    that have their outcome all the same (all of them if it is revoked). `seconds`: measured so far; its user is charged
    for those `counted` as they passed and for those `expected` still. `attempt`: which one this is of its tasks."""

    __slots__ = ("asked", "attempt", "batch", "counted", "ended", "estimate", "expected", "hi", "id", "killed", "lo",
                 "open", "past", "revoked", "seconds", "since", "slave", "tasks")

    def __init__(self, number: int, batch: Batch, lo: int, hi: int, past: Past, now: float):
        self.id, self.batch, self.lo, self.hi, self.past, self.attempt = number, batch, lo, hi, past, past.attempt
        self.open = [(lo, hi)]
        self.ended = ()
        self.tasks = hi - lo  # open ones
        self.estimate = self.expected = batch.kind.estimate(hi - lo)
        self.seconds = self.counted = 0.0
        self.since = now
        self.slave = None
        self.asked = self.revoked = self.killed = False

    def has_open(self, lo: int, hi: int) -> bool:
        """Whether none of these tasks is reported yet."""
        return self.open == [(lo, hi)] or any(a <= lo and hi <= b for a, b in self.open)

    def live(self, parts: list) -> list:
        """Those of these ranges that have no outcome yet."""
        if self.revoked:
            return []
        for lo, hi in self.ended:
            parts = split(parts, lo, hi)[1]
        return parts

    @property
    def divisible(self) -> bool:
        """Whether its slave may have a part to give back: several tasks, or leases that wait for a slot."""
        return self.tasks > 1 or len(self.slave.leases) > self.slave.workers


def depth(seconds: float) -> int:
    """How many leases per slot a slave may hold when they take so many seconds each: enough for 20 ms, at most 16, and
    from 100 ms on just the one that runs, since work held back can go to whoever is free first."""
    if seconds >= 0.1:
        return 1
    return min(16, math.ceil(0.02 / seconds) + 1) if seconds >= 0.001 else 16


class Slave:
    """A slave as the board and the schedulers see it (a scheduler reads, and changes nothing).

    `workers` slots; `resources` amounts by name and `tags`; in its hands are `open_tasks` in `open_leases`,
    expected to take `open_seconds` of one worker; `credit` leases it may take now; `done_tasks` took
    `seconds`; `pace` is above 1 where tasks take longer than elsewhere; `last` is the id of its newest lease.
    `released`: when its quarantine ends, 0 while it is in none.
    """

    __slots__ = ("done_tasks", "draining", "good_at", "id", "last", "leases", "missing", "name", "open_seconds",
                 "open_tasks", "pace", "penalty", "released", "resources", "seconds", "strikes", "tags", "used",
                 "workers")

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
        self.strikes = 0  # leases that failed here since its last success, and succeeded elsewhere
        self.good_at = -math.inf  # its last success
        self.released = self.penalty = 0.0  # `penalty`: seconds of its last quarantine, unless it had a success since

    @property
    def closed(self) -> str:
        """Why it gets no leases at all; "" if it does."""
        return "is draining" if self.draining else "is in quarantine" if self.released else ""

    @property
    def open_leases(self) -> int:
        """Leases in its hands."""
        return len(self.leases)

    @property
    def slots(self) -> int:
        """Leases that it could run now if it had none."""
        return 0 if self.closed else self.workers

    @property
    def credit(self) -> int:
        """Leases like those it holds that it may take besides them."""
        if self.closed:
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
        if self.draining or self.released or len(self.leases) >= deep * self.workers:
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

    def obstacle(self, demand: Demand, estimate: float) -> str:
        """The first condition that keeps it from a lease of so many seconds now; "" when it has room."""
        deep, held = self.deep(estimate), len(self.leases)
        if self.closed or self.lacks(demand):
            return self.closed or self.lacks(demand)
        if held >= deep * self.workers:
            more = f", holds {held} leases of at most {deep * self.workers}" if deep > 1 else ""
            return f"has {min(held, self.workers)} of {self.workers} slots full{more}"
        for name, amount in demand.needs:
            used, most = self.used.get(name, 0), deep * self.resources.get(name, 0)
            if used + amount > most + EPSILON:
                return f"has {used:g} of {most:g} {name} promised, {amount:g} more needed"
        return ""

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

    def succeeded(self, now: float):
        """It did something right: nothing is held against it any more."""
        self.good_at, self.strikes, self.penalty = now, 0, 0.0

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

NOT_BEGUN = ("setup", "load")  # kinds of failures of tasks for which a slave had no room, or could not load them

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
        if not tasks.is_limit(amount):
            raise ValueError(f"the resource {name} is {amount!r}, a number from 0 is needed")
    return tuple(sorted((name, amount) for name, amount in needs.items() if amount)), frozenset(tags)


# -- the board -----------------------------------------------------------------------------------------------

class Board:
    """Owners, batches, leases, slaves and queues; each event method returns `Effects`. Ids are texts, ranges
    half open.

    scheduler -- has `place(slaves, lease)`, `task_pushed(slave, count)`, `task_finished(slave, count)`; may
        be replaced while running. None takes the slave that was not served for longest.
    limit -- unsettled tasks an owner may have.
    max_lease -- tasks that a lease may hold.
    unplaceable_wait -- seconds until tasks fail that none of the slaves here can ever take; 0: never. While no
        slave is here nothing fails.
    weigh -- bytes of a payload, or of None.

    `quotas`: what a user may have; may be replaced while running. `deadline`: when to call `tick` next (None: not
    before the next event). `counters`: what happened, by name. `scheduler_error`: the last exception of the scheduler,
    for the node to report (the board then chose by itself)."""

    def __init__(self, scheduler: Any = None, limit: int = LIMIT, max_lease: int = MAX_LEASE,
                 unplaceable_wait: float = 0.0, weigh: Callable[[Any], int] = lambda payload: 0):
        self.scheduler, self.limit, self.max_lease = scheduler, limit, max_lease
        self.unplaceable_wait, self.weigh, self.quotas = unplaceable_wait, weigh, Quotas()
        self.users = {}  # name -> User
        self.busy = {}  # users that have something queued or running; an ordered set
        self._woken = {}  # those of them that had not, while others had
        self._turn, self._until = None, math.inf  # the user that is served, and what it may have spent then
        self._top, self._level_at = 0.0, -math.inf
        self.owners = {}  # id -> Owner
        self.slaves = {}  # id -> Slave
        self.leases = {}  # id -> Lease
        self.demands = {}  # (needs, tags) -> Demand
        self.slots = 0  # workers of all slaves that do not drain
        self.life = 0
        self.counters = Counter()
        self.deadline = None
        self.scheduler_error = None
        self._doubtful = {}  # demands of which it is to be seen whether a slave can take them; an ordered set
        self.resting_until = -math.inf
        self._lease_ids, self._first, self._newest = itertools.count(1), 1, 0
        self._serials, self._restored = itertools.count(1), 0
        self._timers = []  # heap of (when, serial, owner, number, limit), only of batches that have such a limit
        self._most_timers = MIN_TIMERS  # then those of batches that are gone are taken out

    # -- owners ----------------------------------------------------------------------------------------------

    def owner_joined(self, owner: str, kind: str, now: float, key: str = "", name: str = "", user: str = "") -> Effects:
        """A new owner, attached, that works for this user. One that is known already is attached again."""
        if owner in self.owners:
            return self.owner_attached(owner, now)
        self._add_owner(owner, kind, key, name, user)
        self.owners[owner].attached = True
        return Effects([("owner", owner, kind, key, name, user)], [], [])

    def _add_owner(self, owner, kind, key, name, user=""):
        self.owners[owner] = Owner(owner, kind, key, name, self.users.setdefault(user, User(user)))

    def owner_detached(self, owner: str, now: float) -> Effects:
        """Its connection is gone. Its work goes on and outcomes are kept until it is back."""
        if owner in self.owners:
            self.owners[owner].attached = False
        return Effects([], [], [])

    def owner_attached(self, owner: str, now: float, knows: bool = False) -> Effects:
        """It is back: unless it `knows`, it hears again what was accepted, and all outcomes it has not settled."""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        if known is not None:
            known.attached = True
        if known is not None and not knows:
            for number, batch in known.batches.items():
                effects.after.append(("accepted", owner, number))
                for outcome in batch.outcomes:
                    effects.after.append(("outcome", owner, number, *outcome))
        return effects

    def owner_paused(self, owner: str, paused: bool, now: float) -> Effects:
        """A person lets nothing more of it be leased, or lets it go on. What slaves have of it they run; its limits of
        time pass all the same."""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        if known is not None and known.paused != paused:
            known.paused, user, sign = paused, known.user, 1 if paused else -1
            for demand, line in known.lines.items():
                (self._leave_ring if paused else self._join_ring)(known, demand, line)
                user.paused += sign * line.tasks
                demand.tasks -= sign * line.tasks
            if user in self.busy and user.idle:
                self._sleep(user)
            elif user not in self.busy and not user.idle:
                self._wake(user)
            effects.records.append(("paused", owner, paused))
        return self.assigned(effects, now)

    def standing(self, owner: str) -> dict[str, int]:
        """How many tasks of an owner wait, also for their next attempt, and how many slaves have to run."""
        known = self.owners.get(owner)
        batches = list(known.batches.values()) if known is not None else []
        running = sum(total(lease.live(lease.open)) for batch in batches for lease in batch.leases.values())
        return {"waiting": sum(batch.queued + total(batch.delayed) for batch in batches), "running": running}

    def owner_gone(self, owner: str, now: float, kill: bool = False) -> Effects:
        """It will not come back: what it has queued never runs, its leases are revoked (with `kill` what runs is
        killed), its outcomes forgotten."""
        effects = Effects([], [], [])
        if owner in self.owners:
            self._drop_owner(owner, effects, kill)
            effects.records.append(("gone", owner))
        return self.assigned(effects, now)

    def _drop_owner(self, owner, effects, kill=False):
        known = self.owners[owner]
        self._revoke_all(known.batches.values(), kill, effects)
        for batch in list(known.batches.values()):
            self._forget(batch, effects)
        del self.owners[owner]
        if len(self.users) > 2 * len(self.owners) + KEPT_USERS:  # most of them are nobody's
            served = {one.user for one in self.owners.values()} | self.busy.keys()
            self.users = {name: user for name, user in self.users.items() if user in served}

    # -- batches ---------------------------------------------------------------------------------------------

    def submit(self, owner: str, number: int, count: int, now: float, group: int = 1, options: dict | None = None,
               payload: Any = None) -> Effects:
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
        reason = self._objection(known, owner, count, group, options, payload)
        if reason:
            self.counters["refused"] += 1
            effects.messages.append(("refused", owner, number, reason))
            return effects
        batch = self._add_batch(known, number, count, group, options, payload, now)
        self._enqueue(batch, _fresh(count))
        effects.records.append(("batch", owner, number, count, group, options, payload))
        effects.after.append(("accepted", owner, number))
        return self.assigned(effects, now)

    def cancel(self, owner: str, number: int | None, now: float, kill: bool = False) -> Effects:
        """End one batch, or all of an owner (None): every task without outcome is cancelled. Leases are
        revoked; with `kill` what runs is killed too."""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        if known is not None:
            batches = known.batches.values() if number is None else filter(None, [known.batches.get(number)])
            self._cancel(list(batches), kill, effects, CANCELLED)
        return self.assigned(effects, now)

    def cancel_task(self, owner: str, number: int, task: int, now: float, kill: bool = False) -> Effects:
        """End one task of a batch as cancelled, unless it has its outcome. A slave that has it gives back what it has
        not begun; with `kill` its worker is killed, and the other tasks of the lease wait again, without blame."""
        effects = Effects([], [], [])
        batch = self.owners[owner].batches.get(number) if owner in self.owners else None
        if batch is not None:
            gone, left = split(list(batch.queue), task, task + 1)
            self._keep_queued(batch, gone, left)
            late, batch.delayed = map(tuple, split(list(batch.delayed), task, task + 1))
            if gone or late:
                (_, _, past, *_), = gone or late
                self._end(batch, task, task + 1, 0.0, CANCELLED, None, "", effects, attempt=past.attempt)
            for lease in list(batch.leases.values()):
                self._cancel_in(lease, task, kill, effects)
        return self.assigned(effects, now)

    def settled(self, owner: str, numbers: list, now: float) -> Effects:
        """The owner's callbacks of these batches ran: they are forgotten. (One that still lacks outcomes here
        had them before a restart of the master; the owner knows best, so what is left of it is dropped.)"""
        effects = Effects([], [], [])
        known = self.owners.get(owner)
        for number in numbers if known is not None else ():
            batch = known.batches.get(number)
            if batch is not None:
                self._forget(batch, effects)
                if known.kind != "system":  # its outcomes are what it is repeated with
                    effects.records.append(("settled", owner, number))
        return self.assigned(effects, now)

    def withdrawn(self, owner: str, number: int, reason: str, now: float) -> Effects:
        """The batch cannot be kept, so it was never accepted: as if it had not come, but for what its owner has heard
        of it already. It may be submitted again."""
        effects = Effects([], [("refused", owner, number, reason)], [])
        known = self.owners.get(owner)
        batch = known.batches.get(number) if known is not None else None
        if batch is not None:
            self.counters["withdrawn"] += 1
            self._drop_batch(batch, effects)
            effects.records.append(("settled", owner, number))
        return self.assigned(effects, now)

    def knows(self, owner: str, number: int) -> bool:
        """Whether such a batch was taken in, settled or not."""
        return owner in self.owners and self._submitted(self.owners[owner], number)

    @staticmethod
    def _submitted(owner, number):
        return number in owner.batches or _added(owner.forgotten, number)

    def _objection(self, known, owner, count, group, options, payload):
        """Why a batch cannot be taken, "" if it can."""
        if known is None:
            return f"{owner} is not registered here"
        if count < 1 or group < 1:
            return f"the batch has {count} tasks in groups of {group}, at least 1 is needed of both"
        if known.tasks + count > self.limit:
            return f"{owner} has {known.tasks} unsettled tasks; with {count} more it passes {self.limit}"
        if known.kind != "system" and (why := self.over_quota(known.user, count, self.weigh(payload))):
            return why  # a system must come to the same tasks when it is repeated; what it has out is bounded
        try:
            _demanded(options)
            tasks.limits_of(options)
        except ValueError as error:
            return str(error)
        return ""

    def over_quota(self, user: User, count: int, size: int) -> str:
        """Why a user may not have so many tasks and bytes more, "" if it may."""
        quotas = self.quotas
        if user.queued + count <= quotas.queued and user.bytes + size <= quotas.bytes:
            return ""
        passed = functools.partial(quotas.passed, user.name)
        return passed("queued", user.queued, count) or passed("bytes", user.bytes, size)

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
        owner.user.bytes += self.weigh(payload)
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

    def _cancel(self, batches, kill, effects, what):
        for batch in batches:
            for lo, hi, past, *_ in self._dequeue_all(batch):
                self._end(batch, lo, hi, 0.0, what, None, "", effects, attempt=past.attempt)
            for lease in batch.leases.values():
                for lo, hi in lease.live(lease.open):
                    self._end(batch, lo, hi, 0.0, what, None, "", effects, attempt=lease.attempt)
        self._revoke_all(batches, kill, effects)

    def _cancel_in(self, lease, task, kill, effects):
        """Cancel one task of a lease, if it has it; what else it has goes on, or waits again."""
        inside, outside = split(lease.open, task, task + 1)
        if not inside:
            return
        if lease.live(inside):
            self._end(lease.batch, task, task + 1, 0.0, CANCELLED, None, "", effects, attempt=lease.attempt)
        if not lease.live(outside):
            self._revoke(lease, kill, effects)
        elif lease.live(inside):
            lease.ended = (*lease.ended, (task, task + 1))
            order = ("revoke", lease.slave.id, lease.id, True) if kill else ("steal", lease.slave.id, lease.id)
            effects.messages.append(order)

    def _revoke_all(self, batches, kill, effects):
        # The newest first: a worker that is killed has nothing behind it then that another would begin.
        leases = [lease for batch in batches for lease in batch.leases.values()]
        for lease in sorted(leases, key=lambda lease: lease.id, reverse=True):
            self._revoke(lease, kill, effects)

    def _revoke(self, lease, kill, effects):
        if not lease.revoked or (kill and not lease.killed):
            lease.revoked, lease.killed = True, lease.killed or kill
            effects.messages.append(("revoke", lease.slave.id, lease.id, kill))

    def _end(self, batch, lo, hi, seconds, failures, payload, slave, effects, tasks=None, attempt=1):
        """Give tasks their outcome, for good. `tasks`: how many, if some have theirs. `attempt`: the one that ran."""
        tasks = hi - lo if tasks is None else tasks
        batch.end((lo, hi, seconds, failures, payload, slave, attempt), tasks, self.weigh)
        self.counters["ended"] += tasks
        owner = batch.owner
        told = owner.id, batch.number, lo, hi, seconds, failures
        effects.records.append(("outcome", *told, attempt, payload))
        if owner.attached:
            effects.messages.append(("outcome", *told, payload, slave, attempt))

    def _forget(self, batch, effects):
        self._drop_batch(batch, effects)
        _add(batch.owner.forgotten, batch.number)

    def _drop_batch(self, batch, effects):
        self._dequeue_all(batch)
        if batch.leases:  # seldom: most are dropped once they are settled
            self._revoke_all([batch], False, effects)
        self.counters["dropped"] += batch.remaining
        batch.demand.batches -= 1
        owner = batch.owner
        owner.tasks -= batch.count
        owner.user.bytes -= self.weigh(batch.payload) + sum([self.weigh(outcome[4]) for outcome in batch.outcomes])
        del owner.batches[batch.number]

    # -- queues ----------------------------------------------------------------------------------------------

    def _enqueue(self, batch, pieces, front=False):
        """Put the ranges (lo, hi, Past) at the end of the owner's queue, or what came back at its front."""
        owner, demand, user = batch.owner, batch.demand, batch.owner.user
        line = owner.lines.get(demand)
        if line is None:
            line = owner.lines[demand] = Line()
            if not owner.paused:
                self._join_ring(owner, demand, line)
        tasks = total(pieces)
        user.queued += tasks
        line.tasks += tasks
        batch.queued += tasks
        if owner.paused:
            user.paused += tasks
        else:
            demand.tasks += tasks
            if user not in self.busy:
                self._wake(user)
        line.batches[batch] = None
        if front:
            batch.queue = pieces + batch.queue
            line.batches.move_to_end(batch, last=False)
        else:
            batch.queue += pieces

    def _requeue(self, batch, parts, past):
        """Put ranges that came back at the front."""
        if parts:
            self._enqueue(batch, tuple((lo, hi, past) for lo, hi in parts), front=True)

    def _take_back(self, lease, parts, effects, now):
        """Queue again what a slave has not run of a lease, nobody is blamed."""
        self._requeue(lease.batch, parts, lease.past)
        if lease.batch.stale:
            self._end_unbegun(lease.batch, effects, now)

    def _keep_queued(self, batch, gone, left):
        """Of the queue of a batch only this is left."""
        if gone:
            batch.queue = tuple(left)
            self._shorten(batch, total(gone))

    def _dequeue(self, batch, place, tasks):
        """Take the first tasks of a range in the batch's queue out."""
        (lo, hi, past), before, rest = batch.queue[place], batch.queue[:place], batch.queue[place + 1 :]
        batch.queue = before + (rest if lo + tasks == hi else ((lo + tasks, hi, past), *rest))
        self._shorten(batch, tasks)

    def _dequeue_all(self, batch):
        """Take out what waits, also for its next attempt."""
        pieces, batch.queue = batch.queue, ()
        if pieces:
            self._shorten(batch, batch.queued)
        delayed, batch.delayed = batch.delayed, ()
        return pieces + delayed

    def _shorten(self, batch, tasks):
        owner, demand, user = batch.owner, batch.demand, batch.owner.user
        line = owner.lines[demand]
        user.queued -= tasks
        line.tasks -= tasks
        batch.queued -= tasks
        if owner.paused:
            user.paused -= tasks
        else:
            demand.tasks -= tasks
        if not batch.queued:
            del line.batches[batch]
            if not line.batches:
                del owner.lines[demand]
                if not owner.paused:
                    self._leave_ring(owner, demand, line)
        if not owner.paused and user.idle:
            self._sleep(user)

    def _join_ring(self, owner, demand, line):
        """The owner takes turns with the others that wait for the same."""
        demand.rings.setdefault(owner.user, OrderedDict())[owner] = line
        if not demand.able:
            self._doubtful[demand] = None

    def _leave_ring(self, owner, demand, line):
        line.stuck = None
        del demand.rings[owner.user][owner]
        if not demand.rings[owner.user]:
            del demand.rings[owner.user]
            if demand.wanting:
                self._doubtful[demand] = None

    # -- slaves ----------------------------------------------------------------------------------------------

    def slave_joined(self, slave: str, resources: dict, tags: list, workers: int, now: float, name: str = "",
                     holds: Iterable = ()) -> Effects:
        """A slave with these amounts, tags and slots is here. It begins anew: nothing is held against it.

        holds -- leases of an earlier life or connection that it still has, as (lease, owner, number, lo, hi, attempt).
            Those of which all tasks wait here are its own again, as the same attempt; see `Slave.leases`. Of an earlier
            life only those of a batch that was restored: else that life had another owner of this name, perhaps.
        """
        effects = Effects([], [], [])
        if slave in self.slaves:
            self._lose(slave, "joined again", effects)
        joined = self.slaves[slave] = Slave(slave, name, resources, tags, workers)
        for row in holds:
            self._adopt(joined, *row, now)
        self._fit(slave, 0)
        return self.assigned(effects, now)

    def _adopt(self, slave, number, owner, batch, lo, hi, attempt, now):
        known = self.owners.get(owner)
        batch = known.batches.get(batch) if known is not None else None
        ours = batch is not None and (batch.serial < self._restored or self._first <= number <= self._newest)
        if not ours or number in self.leases:
            return
        inside, outside = split(batch.queue, lo, hi)
        heard = any(past.lease == number for _, _, past in inside)  # it says again how they failed
        if heard or total(inside) != hi - lo or slave.lacks(batch.demand):
            return
        batch.queue = tuple(outside)
        lease = Lease(number, batch, lo, hi, max((past for _, _, past in inside), key=lambda past: past[:4]), now)
        lease.attempt = attempt
        batch.take(lease)
        if batch.owner.user not in self.busy:  # all that it has is paused
            self._wake(batch.owner.user)
        self._shorten(batch, hi - lo)
        slave.take(lease)
        self.leases[number] = lease
        self.counters["adopted"] += 1
        self._tell("task_pushed", slave, hi - lo)

    def rest(self, until: float, now: float) -> Effects:
        """Make no leases before then: slaves that may have some are expected back. A time in the past ends it."""
        self.resting_until = until if until > now else -math.inf
        return self.assigned(Effects([], [], []), now)

    def slave_changed(self, slave: str, resources: dict, workers: int, now: float) -> Effects:
        """Its amounts or slots are others now. What it holds it keeps."""
        known = self.slaves.get(slave)
        if known is not None:
            slots, known.resources, known.workers = known.slots, dict(resources), workers
            self._fit(slave, slots)
        return self.assigned(Effects([], [], []), now)

    def slave_draining(self, slave: str, now: float) -> Effects:
        """It takes no more leases; it ends or gives back those that it has."""
        known = self.slaves.get(slave)
        if known is not None:
            slots, known.draining = known.slots, True
            self._fit(slave, slots)
        return self.assigned(Effects([], [], []), now)

    def slave_lost(self, slave: str, now: float, reason: str = "") -> Effects:
        """It is gone. What it held goes back to the front of the queue, and counts against the budget of losses."""
        effects = Effects([], [], [])
        if slave in self.slaves:
            self._lose(slave, reason or "lost", effects)
        return self.assigned(effects, now)

    def _fit(self, slave, slots):
        """Look anew at what a slave can take, which had so many slots."""
        known = self.slaves[slave]
        self.slots += known.slots - slots
        for demand in self.demands.values():
            demand.fit(known)
        self._doubt()

    def _lose(self, slave, reason, effects):
        gone = self.slaves[slave]
        self.counters["slaves lost"] += 1
        for lease in reversed(list(gone.leases.values())):  # the oldest is put in front last
            for lo, hi in reversed(lease.live(self._report(lease, lease.lo, lease.hi))):
                self._retry(lease, lo, hi, lease.past._replace(losses=lease.past.losses + 1), reason, effects)
        del self.slaves[slave]
        for demand in self.demands.values():
            demand.fit(gone, here=False)
        self.slots -= gone.slots
        self._doubt()

    def _doubt(self):
        """The slaves are others now: look anew at what waits."""
        self._doubtful.update((demand, None) for demand in self.demands.values() if demand.rings)

    # -- leases ----------------------------------------------------------------------------------------------

    def result(self, slave: str, lease: int, lo: int, hi: int, seconds: float, payload: Any, failures: dict, now: float
               ) -> Effects:
        """The slave ran the tasks lo..hi of a lease in so many seconds together. Accepted once, from the
        slave that holds the lease; anything else is counted and dropped."""
        effects = Effects([], [], [])
        self.collect(effects, slave, lease, lo, hi, seconds, payload, failures, now)
        return self.assigned(effects, now)

    def collect(self, effects: Effects, slave: str, lease: int, lo: int, hi: int, seconds: float, payload: Any,
                failures: dict, now: float) -> None:
        """As `result`, but what it asks for is added to `effects`, which others have begun, and no leases are made: for
        all of them together call `assigned`. So a report costs two thirds of one alone."""
        held = self._held(slave, lease)
        if held is None:
            return
        seconds = seconds if 0 <= seconds < 1e9 else 0.0
        held.seconds += seconds
        parts = self._report(held, lo, hi)
        live = parts if not held.ended else held.live(parts)
        if held.revoked or (parts and not live):
            self.counters["revoked result"] += 1
        elif parts == [(lo, hi)]:
            held.slave.measure(held.batch.kind, hi - lo, seconds)
            held.batch.kind.measure(seconds / (hi - lo), self.slots)
            if live is not parts:
                failures = {**failures, **{str(task): AGAIN for task, _ in held.ended if lo <= task < hi}}
            if failures or held.past.shun is not None:
                live, failures = self._judge(held, live, failures, effects, now)
            else:
                held.slave.succeeded(now)
            if live:
                tasks = None if live is parts else total(live)
                self._end(held.batch, lo, hi, seconds, failures, payload, slave, effects, tasks, held.attempt)
        else:  # the payload cannot be cut here: what a confused slave left open runs again
            self.counters["repeated result"] += 1
            self._take_back(held, live, effects, now)

    def given_back(self, slave: str, lease: int, lo: int, hi: int, now: float) -> Effects:
        """The slave has not begun these tasks and will not: they go to the front of the queue, nobody is blamed."""
        effects = Effects([], [], [])
        held = self._held(slave, lease)
        if held is not None:
            held.asked = False
            parts = self._report(held, lo, hi)
            self.counters["given back"] += total(parts)
            if not held.revoked:
                self._take_back(held, held.live(parts), effects, now)
        return self.assigned(effects, now)

    def worker_lost(self, slave: str, lease: int, lo: int, hi: int, reason: str, now: float, output: str = ""
                    ) -> Effects:
        """A worker died over these tasks. They run again one by one, so that the culprit is found; a task
        whose workers died too often is poisoned. `output` is what the worker has printed last."""
        effects = Effects([], [], [])
        held = self._held(slave, lease)
        if held is not None:
            self.counters["workers lost"] += 1
            held.seconds = max(held.seconds, now - held.since)
            for a, b in reversed(held.live(self._report(held, lo, hi))):
                past = self._shunning(held, now) if b == a + 1 else held.past
                self._retry(held, a, b, past._replace(deaths=past.deaths + 1, lease=lease), reason, effects, output)
        return self.assigned(effects, now)

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
        slave, (parts, lease.open) = lease.slave, split(lease.open, lo, hi)
        tasks = hi - lo if parts == [(lo, hi)] else total(parts)
        lease.tasks -= tasks
        slave.open_tasks -= tasks
        if tasks:
            self._tell("task_finished", slave, tasks)
        if parts and not lease.open:
            slave.drop(lease)
            lease.batch.drop(lease)
            del self.leases[lease.id]
            user = lease.batch.owner.user
            if user.idle:
                self._sleep(user)
            missing, slave.missing = slave.missing, set()
            for demand in missing:
                demand.offer(slave)
        return parts

    def _retry(self, lease, lo, hi, past, reason, effects, output=""):
        """Queue tasks that lost their worker or slave again, or end them when their budget is spent."""
        batch, where = lease.batch, lease.slave.id
        if past.deaths > batch.retries("WorkerLost"):
            text = f"{past.deaths} workers died over this task, the last one on {where}: {reason}"
            what = failure("poisoned", "WorkerLost", text, where)
            what["*"] |= {"attempt": lease.attempt, **({"output": output} if output else {})}
            self._end(batch, lo, hi, 0.0, what, None, where, effects, attempt=lease.attempt)
        elif past.losses > batch.retries("SlaveLost"):
            text = f"{past.losses} slaves were lost with this task, the last one was {where}: {reason}"
            what = failure("lost", "SlaveLost", text, where)
            self._end(batch, lo, hi, 0.0, what, None, where, effects, attempt=lease.attempt)
        else:
            effects.records.append(("retry", batch.owner.id, batch.number, lo, hi, *past[:5]))
            self._requeue(batch, [(lo, hi)], past)

    # -- failures of tasks -----------------------------------------------------------------------------------

    def _judge(self, lease, live, failures, effects, now):
        """Let those of the tasks that ended run again whose failures allow it. Returns the ranges that have their
        outcome now, and the failures, marked where there is none."""
        failed = {}
        for key, one in failures.items():
            for lo, hi in live if key == "*" else split(live, int(key), int(key) + 1)[0]:
                failed.update(dict.fromkeys(range(lo, hi), one))
        if len(failed) < total(live):
            lease.slave.succeeded(now)
            self._strike(lease.past.shun, lease.slave, effects, now)
        again = {task: one for task, one in failed.items() if self._allows(lease, one)}
        for unset in (True, False):
            ranges = []
            for task, one in again.items():
                if (one.get("kind") in NOT_BEGUN) == unset:
                    _add(ranges, task)
            for lo, hi in ranges:
                self._try_again(lease, lo, hi, again[lo], effects, now)
        return without(live, again), failures | {str(task): {**one, "retried": True} for task, one in again.items()}

    @staticmethod
    def _allows(lease, failure):
        """Whether a task may run again after such a failure: as often as its rules say. One that did not begin goes to
        other slaves, if there are any; if it was for want of room, else later."""
        if failure.get("kind") in NOT_BEGUN:
            others = math.inf if failure["kind"] == "setup" else len(lease.batch.demand.able - {lease.slave})
            return lease.past.setups < min(MAX_SETUPS - 1, others)
        retries = failure.get("retries")
        return type(retries) is int and retries > lease.past.errors

    def _try_again(self, lease, lo, hi, why, effects, now):
        """Let tasks that failed wait for their next attempt: the longer, the more attempts there were."""
        batch, past = lease.batch, self._shunning(lease, now)
        unset = why.get("kind") in NOT_BEGUN
        past = past._replace(lease=lease.id, setups=past.setups + unset, errors=past.errors + (not unset))
        delay = 0.0 if unset and past.shun is not None else self._delay(batch, lo, past.errors + past.setups)
        self.counters["retried"] += hi - lo
        effects.records.append(("retry", batch.owner.id, batch.number, lo, hi, *past[:5]))
        effects.messages.append(("retrying", batch.owner.id, batch.task_id(lo), hi - lo, past.attempt, delay, why))
        if delay:
            batch.delayed += ((lo, hi, past, now + delay),)
            heapq.heappush(self._timers, (now + delay, batch.serial, batch.owner.id, batch.number, "delay"))
            self._look_at(now + delay)
        else:
            self._requeue(batch, [(lo, hi)], past)

    def delayed(self, owners: Collection[str]) -> list[Batch]:
        """The batches of these owners of which tasks failed and wait for another attempt."""
        timers = [timer for timer in self._timers if timer[-1] == "delay" and timer[2] in owners]
        return [batch for batch in dict.fromkeys(map(self._timed, timers)) if batch is not None and batch.delayed]

    @staticmethod
    def _delay(batch, lo, errors):
        """Seconds, doubling from attempt to attempt. What failed together is spread over the second half of it, by what
        looks like chance and is the same each time."""
        wait = min(batch.limits.get("retry_wait", tasks.RETRY_WAIT) * 2.0 ** min(errors - 1, 60), MAX_WAIT)
        return wait * (0.5 + zlib.crc32(f"{batch.task_id(lo)} {errors}".encode()) / 2**33)

    @staticmethod
    def _shunning(lease, now):
        """The past of a task that failed just now: another slave comes first, if there is one."""
        return lease.past._replace(shun=(lease.slave.id, now) if lease.batch.demand.able - {lease.slave} else None)

    def _strike(self, shun, other, effects, now):
        """Tasks that failed on one slave succeeded on another. Too often in a row, and that one gets nothing for a
        while, unless nobody else would be left."""
        slave = self.slaves.get(shun[0]) if shun is not None else None
        if slave is None or slave is other or slave.closed or shun[1] < slave.good_at:
            return
        slave.strikes += 1
        if slave.strikes >= STRIKES and self.slots > slave.slots:
            slots = slave.slots
            slave.strikes, slave.penalty = 0, min(max(QUARANTINE, 2 * slave.penalty), LONGEST)
            slave.released = now + slave.penalty
            self.counters["quarantined"] += 1
            self._fit(slave.id, slots)
            self._look_at(slave.released)
            effects.messages.append(("quarantined", slave.id, slave.penalty))

    def _release(self, slaves):
        """End the quarantine of these; returns whether there were any."""
        found = [slave for slave in slaves if slave.released]
        for slave in found:
            slots, slave.released = slave.slots, 0.0
            self._fit(slave.id, slots)
        return bool(found)

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
            if timer[-1] == "delay":
                self._join(batch, now)
                continue
            self.counters["expired"] += 1
            if timer[-1] == "deadline":
                self._end_late(batch, effects, now)
            elif timer[-1] == "overdue":
                self._cancel([batch], True, effects, self._late(batch, "deadline", now))
            else:
                batch.stale = True
                self._end_unbegun(batch, effects, now)
                for lease in batch.leases.values():
                    if not lease.revoked and lease.attempt == 1:  # some of it may not have begun there
                        effects.messages.append(("steal", lease.slave.id, lease.id))

    def _join(self, batch, now):
        """What has waited long enough for its next attempt joins the queue."""
        due = [piece for piece in batch.delayed if piece[3] <= now]
        batch.delayed = tuple(piece for piece in batch.delayed if piece[3] > now)
        for lo, hi, past, _ in reversed(due):
            self._requeue(batch, [(lo, hi)], past)

    def _end_late(self, batch, effects, now):
        """What waits at the deadline ends here, what is with a slave there: it knows where the task was."""
        what = self._late(batch, "deadline", now)
        for lo, hi, past, *_ in self._dequeue_all(batch):
            self._end(batch, lo, hi, 0.0, what, None, "", effects, attempt=past.attempt)
        for lease in batch.leases.values():
            if not lease.revoked:
                effects.messages.append(("late", lease.slave.id, lease.id, now - batch.since))
        if batch.remaining:
            heapq.heappush(self._timers, (now + LATE, batch.serial, batch.owner.id, batch.number, "overdue"))

    def _end_unbegun(self, batch, effects, now):
        """What waits and never was in a worker has waited too long."""
        gone = [piece for piece in batch.queue if piece[2].attempt == 1]
        self._keep_queued(batch, gone, [piece for piece in batch.queue if piece not in gone])
        for lo, hi, _ in gone:
            self._end(batch, lo, hi, 0.0, self._late(batch, "queue_timeout", now), None, "", effects)

    @staticmethod
    def _late(batch, limit, now):
        return {"*": tasks.limit_failure(batch.options, limit, now - batch.since)}

    # -- users -----------------------------------------------------------------------------------------------
    #
    # The one that had the least time of slots, of those that have work, is served until it is half a turn ahead of the
    # others. Time counts as expected from when a lease is made, as it passes while it runs, and as measured in the end.

    def _wake(self, user):
        """It has work again. If nobody else has, what was before counts no more."""
        if self.busy:
            self._woken[user] = None
            self._turn = None
        else:
            user.spent = max(user.spent, self._top)
        self.busy[user] = None

    def _sleep(self, user):
        del self.busy[user]
        user.expected = 0.0  # rounding errors do not add up
        self._top = max(self._top, user.spent)

    def _level(self, now):
        """Count the time of what runs; who has come back is half a turn ahead of the others, and no more."""
        if now >= self._level_at:
            self._level_at = now + self._pause
            for slave in self.slaves.values():
                for lease in itertools.islice(slave.leases.values(), slave.workers):
                    user, width = lease.batch.owner.user, lease.batch.demand.width
                    more = now - lease.since - lease.counted
                    less = 0.0 if lease.batch.kind.seconds is None else min(more, lease.expected)
                    lease.counted += more
                    lease.expected -= less
                    user.spent += (more - less) * width
                    user.expected -= less * width
        least = min([user.spent - user.expected for user in self.busy if user not in self._woken], default=0.0)
        for user in self._woken:
            user.spent = max(user.spent, least - TURN / 2 * self.slots)
        self._woken.clear()

    def _full(self, user):
        """Whether it has as many leases as it may."""
        return user.running >= self.quotas.running

    def _next_user(self, ready):
        """Whose turn it is of those that wait for one of these demands; None if all are held back."""
        user = self._turn
        if any(user in demand.rings for demand in ready) and user.spent < self._until and not self._full(user):
            return user
        able = dict.fromkeys(user for demand in ready for user in demand.rings if not self._full(user))
        self._turn = user = min(able, key=lambda user: user.spent, default=None)
        if user is not None:
            for other in self.busy:  # one that could take nothing
                other.spent = max(other.spent, user.spent - OWED * self.slots)
            half = TURN / 2 * self.slots
            self._until = half + min(other.spent + half * (other is user) for other in self.busy)
        return user

    # -- assigning -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Time has passed: end what has passed its limits or waits in vain, ask busy slaves for work that others could
        do. Sets `deadline`."""
        effects = Effects([], [], [])
        self.deadline = None
        if now >= self.resting_until:
            self.resting_until = -math.inf
        self._release(slave for slave in self.slaves.values() if slave.released <= now)
        self._expire(effects, now)
        self._steal(effects, now)
        self._assign(effects, now)
        if self._doubtful:  # something came back to the queue
            self._flag(effects, now)
        self._end_stuck(effects, now)
        if self._timers:
            self._look_at(self._timers[0][0])
        for slave in self.slaves.values():
            if slave.released:
                self._look_at(slave.released)
        return effects

    def assigned(self, effects: Effects, now: float) -> Effects:
        """The end of every event that may free or add work: leases are added to its effects."""
        self._assign(effects, now)
        if self._doubtful:
            self._flag(effects, now)
        if self.leases and (self.deadline is None or self._timers or self.deadline > now + LONG):
            self._look_at(now + self._pause)
        return effects

    def _assign(self, effects, now):
        """Make leases until nothing that waits fits anywhere. Users take turns, and the owners of each; one owner's
        batches go in order, except that a batch which fits nowhere does not hold up those with another demand."""
        if now < self.resting_until:
            self._look_at(self.resting_until)
            return
        ready = [demand for demand in self.demands.values() if demand.rings and demand.free]
        shared = len(self.busy) > 1 or self.quotas.running < math.inf
        if ready and shared:
            self._level(now)
        while ready:
            user = self._next_user(ready) if shared else next(iter(ready[0].rings))
            if user is None:
                return
            demand = ready[0] if len(ready) == 1 else min(ready, key=functools.partial(self._order, user))
            if not self._lease(demand, user, effects, now) or not (demand.rings and demand.free):
                ready.remove(demand)
            elif len(ready) > 1:
                ready = [demand for demand in ready if demand.rings]

    @staticmethod
    def _order(user, demand):
        if user not in demand.rings:
            return math.inf, 0
        owner, line = next(iter(demand.rings[user].items()))
        return owner.served, next(iter(line.batches)).serial

    def _lease(self, demand, user, effects, now):
        """Make one lease for the user whose turn it is. Returns whether it found a slave."""
        found = self._next(demand, user, now)
        if found is None:
            return False
        batch, place, tasks, slaves = found
        lo, _, past = batch.queue[place]
        while (number := next(self._lease_ids)) in self.leases:  # an adopted one may have it
            pass
        lease = Lease(number, batch, lo, lo + tasks, past, now)
        slave = self._place(slaves, lease)
        if slave is None:
            self._look_at(now + STEAL_AGE)  # ask again then
            return False
        if batch.kind.seconds is None:
            lease.expected = TURN * self.slots  # or it might be on all slots before one knows that it takes long
        owner = batch.owner
        owner.served = lease.id
        if len(owner.lines) > 1 or len(demand.rings[owner.user]) > 1:
            self._pass_turn(lease, owner)
        batch.take(lease)
        self._dequeue(batch, place, tasks)
        slave.take(lease)
        demand.served(slave, lease.estimate)
        self._newest = lease.id
        self.leases[lease.id] = lease
        self.counters["leases"] += 1
        self._tell("task_pushed", slave, tasks)
        effects.messages.append(("lease", slave.id, lease))
        return True

    def _pass_turn(self, lease, owner):
        """The next owner of the user follows; if it has another application, when this one had its turn."""
        owner.turn += lease.estimate
        ring = lease.batch.demand.rings[owner.user]
        if len(ring) > 1 and owner.turn < TURN * self.slots:
            other = next(iter(next(itertools.islice(ring.values(), 1, None)).batches))
            if other.options.get("bundle") != lease.batch.options.get("bundle"):
                return
        owner.turn = 0.0
        for demand in owner.lines:
            demand.rings[owner.user].move_to_end(owner)

    def _next(self, demand, user, now):
        """The first of what waits that a slave may take: (batch, place in its queue, tasks, slaves). None if there is
        none. A slave on which a task has just failed is passed over for it, if there are others."""
        batch = next(iter(next(iter(demand.rings[user].values())).batches))
        front = ((batch, 0),) if batch.queue[0][2].shun is None else self._front(demand, user)  # the first is short
        for batch, place in front:
            tasks, shun = self._size(batch, batch.queue[place], batch.owner.lines[demand]), batch.queue[place][2].shun
            slaves = self._candidates(demand, batch.kind.estimate(tasks))
            if slaves and shun is not None and now < shun[1] + SHUN and len(demand.able) > 1:
                self._look_at(shun[1] + SHUN)
                slaves = [slave for slave in slaves if slave.id != shun[0]]
            elif not slaves:
                return None
            if slaves:
                return batch, place, tasks, slaves
        return None

    def _front(self, demand, user):
        """What comes next for a user, and what would come if that cannot be, and so on: (batch, place in its queue)."""
        rings = [ring for one, ring in demand.rings.items() if one is not user and not self._full(one)]
        lines = itertools.chain.from_iterable(ring.values() for ring in (demand.rings.get(user, {}), *rings))
        for line in itertools.islice(lines, FRONT):
            pieces = ((batch, place) for batch in line.batches for place in range(len(batch.queue)))
            yield from itertools.islice(pieces, WIDTH)

    def _size(self, batch, piece, line):
        """Tasks for the next lease: what was found to take TARGET seconds, but not more than a fair share, so
        that all slots end together; one where a worker died, to find out over which."""
        lo, hi, past = piece
        if past.deaths or batch.alone or min(batch.kind.size, self.max_lease) == 1:
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
        """Up to WIDTH slaves that may take such a lease now: those with a free slot, else those with credit."""
        idle = demand.idle and demand.with_room(demand.idle, None, WIDTH)
        return idle or demand.with_room(demand.free, estimate, WIDTH)

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
            wanted = not (lease.asked or lease.revoked) and lease.batch.demand in demands and lease.divisible
            if wanted and not (lease.batch.owner.paused or self._full(lease.batch.owner.user)):
                ripe.append(lease)
        return heapq.nlargest(STEAL_WIDTH, ripe, key=lambda lease: (lease.tasks, lease.id))

    def _look_at(self, when):
        """Call `tick` then at the latest."""
        self.deadline = when if self.deadline is None else min(self.deadline, when)

    # -- what waits in vain ----------------------------------------------------------------------------------

    def _flag(self, effects, now):
        """See which lines wait for what no slave here has, and tell of each that is new."""
        doubtful, self._doubtful = self._doubtful, {}
        needed = [demand for demand in doubtful if demand.rings and not demand.able]
        if self._release(slave for slave in self.slaves.values() if not all(map(slave.lacks, needed))):
            self._assign(effects, now)  # better than nobody
        for demand in doubtful:
            stuck = bool(demand.rings and self.slots and not demand.able)
            demand.wanting = demand.missing(one for one in self.slaves.values() if not one.closed) if stuck else ""
            for owner, line in demand.lines:
                if stuck and line.stuck is None:
                    effects.messages.append(("unplaceable", owner.id, line.head, line.tasks, demand.wanting))
                    if self.unplaceable_wait:
                        self._look_at(now + self.unplaceable_wait)
                line.stuck = (now if line.stuck is None else line.stuck) if stuck else None

    def _end_stuck(self, effects, now):
        """End what has waited too long for what no slave here has."""
        if self.unplaceable_wait and self.slots:
            for demand in self.demands.values():
                for _, line in () if demand.able else demand.lines:
                    self._end_line(demand, line, effects, now)

    def _end_line(self, demand, line, effects, now):
        """The same for one line. Each batch has the whole wait; `deadline` follows the first that still has some."""
        while line.batches:
            batch = next(iter(line.batches))
            due = max(line.stuck, batch.since) + self.unplaceable_wait
            if now < due:
                self._look_at(due)
                return
            text = f"{demand.wanting}, for {self.unplaceable_wait:g} s ({self._reasons(demand)})"
            what = failure("unplaceable", "Unplaceable", text)
            for lo, hi, *_ in self._dequeue_all(batch):
                self.counters["unplaceable"] += hi - lo
                self._end(batch, lo, hi, 0.0, what, None, "", effects)

    def _reasons(self, demand):
        """Why no slave can take it, in a line: "s1: is draining; s2, s3: lacks the tag x"."""
        reasons = {}
        for one in self.slaves.values():
            reasons.setdefault(one.closed or one.lacks(demand), []).append(one.id)
        told = []
        for reason, names in list(reasons.items())[:SHOWN]:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            told.append(f"{', '.join(names[:SHOWN])}{more}: {reason}")
        return "; ".join(told) + (f"; {len(reasons) - SHOWN} further reasons" if len(reasons) > SHOWN else "")

    def unplaced(self, now: float) -> list[dict]:
        """What waits though no slave that is here could ever take it: per owner and demand, the first batch and
        task, how many tasks wait, for how many seconds, and why each slave cannot."""
        found = []
        for demand in self.demands.values():
            if demand.able:
                continue
            slaves = self.slaves.values()
            reasons = {one.id: one.closed or one.lacks(demand) for one in slaves}
            for owner, line in demand.lines:
                batch = next(iter(line.batches))
                about = {"owner": owner.id, "number": batch.number, "task": line.head, "tasks": line.tasks}
                why = {"needs": dict(demand.needs), "tags": sorted(demand.tags), "why": demand.wanting}
                found.append({**about, "waits": now - batch.since, **why, "slaves": reasons})
        return found

    # -- explaining ------------------------------------------------------------------------------------------

    def explain(self, owner: str, ordinal: int, now: float) -> dict:
        """Where the task with this ordinal of an owner is and what it waits for, as JSON can say it.

        `state` is one of
            "delayed" -- it failed, and runs again `in` seconds
            "waiting" -- `ahead`: tasks of its owner before it in the same line; `turns`: the owners that wait for
                slaves of the same kind, the next one first, with the tasks of each; `user`: whose task it is, and
                `behind`: why other users come first, "" if none does; `slaves`: the first unmet condition
                of each, "" where there is room; `unplaceable`: why no slave here can ever take it, "" if one can;
                `fails_in`: seconds until it fails of that, None if it does not; `paused`: by a person
            "running" -- `slave`, `first` and `last` task of the lease, for `since` seconds; `before`: leases that this
                slave got earlier and still has, on `slots`
            "ended" -- `slave`, `failure`: None or its type, message and kind; its owner has not settled it yet
            "settled" -- its owner has its outcome, and nothing is kept here
            "unknown" -- there is no such task here, and `why`
        """
        known = self.owners.get(owner)
        about = {"task": f"{owner}.{ordinal}", "state": "unknown"}
        if known is None:
            return {**about, "why": f"no client or task system {owner} is here: it has ended, or never was"}
        batch = next((one for one in known.batches.values() if 0 <= ordinal - one.first < one.count), None)
        if batch is None and any(one.first > ordinal for one in known.batches.values()):
            return {**about, "state": "settled"}
        if batch is None:
            return {**about, "why": f"{owner} has its outcome already, or has not sent it yet"}
        place = self._explain_place(batch, ordinal - batch.first, now)
        return {**about, "name": str(batch.options.get("name", "")), "batch": batch.number, "here": now - batch.since,
                "needs": dict(batch.demand.needs), "tags": sorted(batch.demand.tags), **place}

    def _explain_place(self, batch, at, now):
        for lo, hi, _, failures, _, slave, _ in batch.outcomes:
            if lo <= at < hi and "retried" not in failures.get(str(at), NONE):
                what = failures.get(str(at)) or failures.get("*")
                what = what and {key: what.get(key, "") for key in ("type", "message", "kind")}
                return {"state": "ended", "slave": slave, "failure": what}
        for lo, hi, past in batch.queue:
            if lo <= at < hi:
                return {"state": "waiting", "attempt": past.attempt, **self._explain_wait(batch, at, now)}
        for lo, hi, past, when in batch.delayed:
            if lo <= at < hi:
                return {"state": "delayed", "attempt": past.attempt, "in": max(0.0, when - now)}
        lease = next(one for one in batch.leases.values() if not one.revoked and split(one.open, at, at + 1)[0])
        return self._explain_lease(batch, lease, now)

    def _explain_lease(self, batch, lease, now):
        slave = lease.slave
        return {
            "state": "running", "attempt": lease.attempt, "slave": slave.id, "since": now - lease.since,
            "first": batch.task_id(lease.lo), "last": batch.task_id(lease.hi - 1), "slots": slave.workers,
            "before": list(slave.leases).index(lease.id),
        }

    def _explain_wait(self, batch, at, now):
        demand = batch.demand
        line = batch.owner.lines[demand]
        ahead = sum(other.queued for other in itertools.takewhile(lambda other: other is not batch, line.batches))
        for lo, hi, _ in batch.queue:
            if lo <= at < hi:
                ahead += at - lo
                break
            ahead += hi - lo
        estimate = batch.kind.estimate(self._size(batch, batch.queue[0], line))
        fails_in = None
        if line.stuck is not None and self.unplaceable_wait:
            fails_in = max(0.0, max(line.stuck, batch.since) + self.unplaceable_wait - now)
        return {
            "ahead": ahead, "turns": [{"owner": one.id, "tasks": other.tasks} for user in self._in_turn(demand.rings)
                                      for one, other in demand.rings[user].items()],
            "user": batch.owner.user.name, "behind": self.behind(batch.owner.user),
            "slaves": {one.id: one.obstacle(demand, estimate) for one in self.slaves.values()},
            "unplaceable": demand.wanting, "fails_in": fails_in, "paused": batch.owner.paused,
        }

    def _in_turn(self, users):
        return sorted(users, key=lambda user: (self._full(user), user is not self._turn, user.spent))

    def behind(self, user: User) -> str:
        """Why other users come before this one now, "" if none does."""
        if self._full(user):
            return f"user {user.name} has {user.running:,} leases, as many as it may (quotas.running of the master)"
        first = next(iter(self._in_turn(one for one in self.busy if one.queued > one.paused)), user)
        return "" if first is user else f"it is the turn of user {first.name}; users share the slots equally"

    # -- after a restart -------------------------------------------------------------------------------------

    def restore(self, records, now: float, salt: int = 0) -> Effects:
        """Rebuild an empty board from the records of earlier lives, in order. Owners are detached, what has
        no outcome is queued. Returns the record of this life, to journal first. Raises Error on a record that
        fits nothing before it.

        salt -- below 2**31, by chance: the first lease of this life. A life that died before its record was on the
            disk, or that has no journal, is not known to the next one, and slaves still report of its leases.
        """
        waiting = {}  # Batch -> its ranges without outcome
        life = 0
        for record in records:
            try:
                if record[0] == "life":
                    life = record[1]
                else:
                    self._replay(record, waiting, now)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise Error(f"the journal cannot be read at the record {str(record[:5])[:200]}",
                            f"it does not fit the records before it ({error!r})",
                            "move the journal aside and start again; what it held is not run") from error
        for batch, pieces in waiting.items():
            if pieces:
                self._enqueue(batch, tuple(pieces))
        self.life = life + 1
        self._restored = next(self._serials)
        self._first = (self.life << 32) + salt + 1
        self._lease_ids = itertools.count(self._first)
        return Effects([("life", self.life)], [], [])

    def _replay(self, record, waiting, now):
        event, owner, *rest = record
        effects = Effects([], [], [])
        if event in PASSED_OVER:
            return
        if event == "snapshot":
            self._replay_snapshot(self.owners[owner], rest[1], dict(rest[2]), waiting)
        elif event == "owner":
            self._add_owner(owner, *rest)
        elif event == "paused":
            (self.owners[owner].paused,) = rest
        elif event == "gone":
            for batch in self.owners[owner].batches.values():
                waiting.pop(batch, None)
            self._drop_owner(owner, effects)
        elif event == "batch":
            batch = self._add_batch(self.owners[owner], *rest, now)
            waiting[batch] = [(0, batch.count, NOTHING)]
        else:
            batch = self.owners[owner].batches[rest[0]]
            if event == "settled":
                waiting.pop(batch, None)
                self._forget(batch, effects)
                return
            lo, hi, *rest = rest[1:]
            inside = take(waiting[batch], lo, hi)
            if event not in ("retry", "outcome") or not inside or (event == "retry" and total(inside) != hi - lo):
                raise ValueError("not open")
            if event == "retry":
                still = [(lo, hi, Past(*rest))]
            else:
                still = [piece for task in sorted(retried(rest[1])) for piece in take(inside, task, task + 1)]
                seconds, failures, attempt, payload = rest
                self._end(batch, lo, hi, seconds, failures, payload, "", effects, total(inside), attempt)
            at = bisect.bisect(waiting[batch], (lo,))
            waiting[batch][at:at] = still

    def _replay_snapshot(self, owner, batches, out, waiting):
        """Of the batches that were sent before it, only those tasks are open that it says are out: the outcomes of the
        others are in it."""
        for number, batch in owner.batches.items():
            if number < batches:
                still = []
                for lo, hi in out[number]:
                    still += take(waiting[batch], lo, hi)
                for lo, hi, *_ in waiting[batch]:
                    batch.end((lo, hi, 0.0, {}, None, "", 1), hi - lo, self.weigh)
                self.counters["ended"] += total(waiting[batch])
                waiting[batch] = still

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
            shown = demand.rings.get(owner.user, NONE).get(owner)
            assert shown is (None if owner.paused else line) and self.demands[demand.needs, demand.tags] is demand
            assert line.tasks == queued and len(line.batches) == batches, "a queue holds what does not wait"
        for demand in self.demands.values():
            assert demand.tasks == sum(line.tasks for _, line in demand.lines) and all(demand.rings.values())
            stuck = bool(demand.rings and self.slots and not demand.able)
            assert {line.stuck is not None for _, line in demand.lines} <= {stuck}, "flagged in vain, or not"
            assert not stuck or not self.unplaceable_wait or self.deadline is not None, "nobody will end what is stuck"
        assert len(lines) == sum(len(owner.lines) for owner in self.owners.values())
        taking_turns = [owner for owner, _ in lines if not owner.paused]
        assert len(taking_turns) == sum(len(demand.lines) for demand in self.demands.values())
        self._check_users()
        for slave in self.slaves.values():
            self._check_slave(slave)
        assert len(self.leases) == sum(len(slave.leases) for slave in self.slaves.values()), "no slave has it"
        assert self.slots == sum(slave.workers for slave in self.slaves.values() if not slave.closed)
        self._check_counters()
        self._check_timers()

    def _check_users(self):
        """What is counted for a user is what its owners have; few are kept that have none."""
        assert len(self.users) <= 2 * len(self.owners) + KEPT_USERS + len(self.busy), "they only become more"
        for user in self.users.values():
            owners = [owner for owner in self.owners.values() if owner.user is user]
            batches = [batch for owner in owners for batch in owner.batches.values()]
            payloads = [part for batch in batches for part in (batch.payload, *(one[4] for one in batch.outcomes))]
            leases = [lease for lease in self.leases.values() if lease.batch.owner.user is user]
            found = sum(batch.queued for batch in batches), sum(map(self.weigh, payloads)), len(leases)
            assert (user.queued, user.bytes, user.running) == found, "miscounted"
            assert user.paused == sum(batch.queued for batch in batches if batch.owner.paused), "miscounted"
            assert (user in self.busy) == bool(user.queued > user.paused or user.running), "not served, or in vain"

    def _check_timers(self):
        """Whatever has a limit of time is looked at when it passes."""
        timed = {timer[1:] for timer in self._timers}
        for owner in self.owners.values():
            for batch in owner.batches.values():
                about = batch.serial, owner.id, batch.number
                if batch.remaining and "deadline" in batch.limits:
                    assert (*about, "deadline") in timed or (*about, "overdue") in timed
                assert not batch.delayed or (*about, "delay") in timed, "nobody ends its delay"
                if batch.remaining and "queue_timeout" in batch.limits:
                    assert batch.stale != ((*about, "queue_timeout") in timed)
        assert all(self.deadline <= slave.released for slave in self.slaves.values() if slave.released)
        assert not self._timers or self.deadline <= self._timers[0][0], "nobody looks at the next timer"

    def _check_batch(self, batch):
        """Each task is in one place: it waits, is with a slave, or has its outcome."""
        ended = self._ended(batch)
        pieces = [piece[:2] for piece in batch.queue] + ended
        pieces += [piece[:2] for piece in batch.delayed]
        assert batch.queued == total(batch.queue)
        assert batch.remaining == batch.count - total(ended)
        for _, _, past, *_ in (*batch.queue, *batch.delayed):
            assert past.deaths <= batch.retries("WorkerLost"), "more attempts than the budget"
            assert past.losses <= batch.retries("SlaveLost"), "more attempts than the budget"
            assert past.attempt > 1 or not batch.stale, "what waits too long"
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
        ended, ranges = [], []
        for lo, hi, _, failures, *_ in batch.outcomes:
            ranges += without([(lo, hi)], retried(failures)) if failures else [(lo, hi)]
        for lo, hi in sorted(ranges, key=lambda one: (one[0], -one[1])):
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
            assert able == (not slave.closed and not slave.lacks(demand))
            if able and (slave not in demand.idle or slave not in demand.free):
                assert not slave.room(demand.needs, 1), "room that nobody knows of"

    def _check_counters(self):
        batches = [batch for owner in self.owners.values() for batch in owner.batches.values()]
        ended = self.counters["ended"] + self.counters["dropped"]
        assert self.counters["submitted"] == ended + sum(batch.remaining for batch in batches), "miscounted"
        for demand in self.demands.values():
            assert all(slave in demand.able for slave in (*demand.idle, *demand.free))
            if self.scheduler is None and demand.rings and self.resting_until == -math.inf:
                shuns = [(batch.queue[place][2].shun or ("",))[0] for batch, place in self._front(demand, None)]
                free = {one.id for one in demand.idle if one.room(demand.needs, 1)}
                assert all(shuns.count(one) == len(shuns) for one in free), "work and room both wait"

# -- journal -------------------------------------------------------------------------------------------------------

SCHEMA = """
CREATE TABLE IF NOT EXISTS format (version INTEGER);
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY, kind TEXT, owner, batch INTEGER, detail TEXT, sizes TEXT, sum INTEGER, payload BLOB);
CREATE INDEX IF NOT EXISTS by_batch ON records (owner, batch);
"""
ROWS = "SELECT number, kind, owner, batch, detail, sizes, sum, payload FROM records"
FORMAT = 3
OF_BATCH = ("batch", "retry", "outcome")
ENDS = ("settled", "gone", "finished")  # what deletes others
WITH_PAYLOAD = ("batch", "outcome", "system", "snapshot", "finished", "shared")
GATHER = 0.01  # seconds that records may wait for others: nobody is told that they are safe before they are
LARGE = 16 * 1024  # bytes of a payload that gets a file of its own: a row of that size takes 90 µs, a file 30
PAGE = 4096  # bytes of a page of the database
KEPT_BLOBS = 64 * 1024 * 1024  # bytes of files that are not needed, to be written again
KEPT_PAGES = 8 * 1024 * 1024 // PAGE  # free ones that are not worth giving back
STEP_PAGES = 256  # given back at a time, between two commits
LOG_LIMIT = 4 * 1024 * 1024  # bytes that the write-ahead log keeps
BALLAST = LOG_LIMIT  # bytes of a file that is let go when the disk is full: even to delete takes room in the log
READ_ROWS = 500  # at a time
FEW = 64  # deletions in a commit while the disk is full
PROBE_EVERY = 1.0  # seconds between two looks whether a full disk has room again
STORAGE_ERRORS = (
    "database or disk is full", "disk I/O error", "unable to open database file", "database is locked",
    "attempt to write a readonly database",
)  # fmt: skip


def is_storage(error: Exception) -> bool:
    """Whether an error is the disk's, which may pass, and not the journal's own."""
    text = str(error)
    of_sqlite = isinstance(error, sqlite3.OperationalError) and text.startswith(STORAGE_ERRORS)
    return of_sqlite or isinstance(error, OSError)


def lasting(records: list[tuple]) -> list[tuple]:
    """The records without those that a later one of them takes back."""
    ended: set = set()
    kept = []
    for record in reversed(records):
        kind = record[0]
        if kind in OF_BATCH:
            if ended and (record[1] in ended or record[1:3] in ended):
                continue
        elif kind == "settled":
            ended.add(record[1:3])
        elif record[1] in ended and kind != "gone":
            continue
        elif kind in ("gone", "finished"):
            ended.add(record[1])
        kept.append(record)
    return kept[::-1] if ended else records


class Journal(threading.Thread):
    """Keeps the Board's records in SQLite, from a thread of its own, as many as there are in one commit.

    `put(records, after)` never waits; `committed(after)` is called, in this thread, once the records are safe. The
    last item of "batch" and "outcome" records, the payload, is a list of byte strings. What nobody needs is deleted.

    When the disk is full (or cannot be written), `full(error, refused)` is called with the (owner, number) of the
    batches that could not be kept: they count as never submitted. Other records wait in memory and are tried again;
    were the master killed then, their tasks would run again. `room()` is called when all are on the disk. Any other
    error is final: `failed(error)`.
    """

    def __init__(
        self, path: Path, committed: Callable[[list], None], failed: Callable[[Exception], None],
        full: Callable[[Exception, list], None] | None = None, room: Callable[[], None] = lambda: None,
        synchronous: str = "normal",
    ):  # fmt: skip
        super().__init__(name="journal", daemon=True)
        self._failed = failed
        self._path = path
        self._committed = committed
        self._full, self._room = full or (lambda error, refused: failed(error)), room
        self._synchronous = synchronous
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._waiting: list[tuple] = []  # records that the disk did not take
        self._held: list[tuple] = []  # messages to send once these are committed
        self._systems: set = set()  # task systems: their batches wait, for they must come again in the same way
        self._withdrawn: set = set()  # (owner, number) of refused batches, until the Board has taken them out
        self._blocked = False
        self._probe_at = 0.0
        self._excess = False  # the file has many free pages
        self._ballast = Path(f"{path}.ballast")
        self._ballast.unlink(missing_ok=True)
        self._blobs = Blobs(blobs_of(path), synchronous == "full")
        self._loaded = read_journal(path)
        self._base = self._open()
        self._number = self._base.execute("SELECT coalesce(max(number), 0) FROM records").fetchone()[0]
        self._systems.update(record[1] for record in self._loaded if record[0] == "system")

    def _open(self) -> sqlite3.Connection:
        try:
            base = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            for pragma in (
                "auto_vacuum=INCREMENTAL", "journal_mode=WAL", f"synchronous={self._synchronous}",
                f"journal_size_limit={LOG_LIMIT}",
            ):  # fmt: skip
                base.execute(f"PRAGMA {pragma}")
            base.executescript(SCHEMA)
            if base.execute("SELECT version FROM format").fetchone() is None:
                base.execute("INSERT INTO format VALUES (?)", (FORMAT,))
            base.create_function("drop_blob", 1, self._blobs.drop)
            base.execute(
                "CREATE TEMP TRIGGER dropped AFTER DELETE ON main.records WHEN old.sizes IS NOT NULL "
                "BEGIN SELECT drop_blob(old.number); END"
            )
            self._blobs.sweep({number for (number,) in base.execute("SELECT number FROM records WHERE sizes NOT NULL")})
        except (sqlite3.DatabaseError, OSError) as error:
            raise unusable(self._path, error) from None
        return base

    def load(self) -> list[tuple]:
        """All records, oldest first. Before `start`, once."""
        loaded, self._loaded = self._loaded, []
        return loaded

    def put(self, records: list[tuple], after: list) -> None:
        """Takes records, and what is to be sent once they are committed."""
        self._queue.put((records, after))

    def run(self) -> None:
        """Commits until `stop`."""
        entries: list = [([], [])]
        while True:
            try:
                after = self._keep(entries)
            except (sqlite3.Error, OSError, Error, ValueError, TypeError, OverflowError) as error:
                self._failed(error)
                return
            if after:
                self._committed(after)
            if any(records is None for records, _ in entries):
                self._ballast.unlink(missing_ok=True)
                self._blobs.trim()
                self._base.close()
                return
            entries = self._next()

    def _next(self) -> list:
        """What was put, gathered; nothing when there is something else to do meanwhile."""
        pause = PROBE_EVERY if self._blocked else GATHER if self._excess else None
        try:
            entries = [self._queue.get(timeout=pause)]
        except queue.Empty:
            return []
        time.sleep(GATHER)
        while not self._queue.empty():
            entries.append(self._queue.get())
        return entries

    def _keep(self, entries: list) -> list:
        """Commits what was put, or holds it; returns what may be sent now."""
        self._waiting += self._not_withdrawn([record for records, _ in entries for record in records or ()])
        self._systems.update(record[1] for record in self._waiting if record[0] == "system")
        for records, after in entries:
            self._held += [(message, bool(records)) for message in after]
        stopping = any(records is None for records, _ in entries)
        if self._blocked and time.monotonic() < self._probe_at and not stopping:
            self._refuse(None)
        else:
            self._try()
        now = [message for message, waits in self._held if not (waits and self._blocked)]
        self._held = [held for held in self._held if held[1]] if self._blocked else []
        return [message for message in now if not self._withdrawn or message[1:3] not in self._withdrawn]

    def _try(self) -> None:
        try:
            if self._blocked:
                self._delete_first()
            if not self._ballast.exists():
                self._load_ballast()
            self._commit(lasting(self._waiting))
            self._waiting = []
        except (sqlite3.OperationalError, OSError) as error:
            if not is_storage(error):
                raise
            if self._blobs.trim():
                self._try()
            else:
                self._refuse(error)
        else:
            if self._blocked:
                self._blocked = False
                self._room()

    def _delete_first(self) -> None:
        """What the ballast had is for deletions, which make room for the rest: few at a time, with an empty log."""
        self._waiting = lasting(self._waiting)
        ends = [record for record in self._waiting if record[0] in ENDS]
        ends.sort(key=lambda record: record[0] == "finished")  # which takes room of its own
        for first in range(0, len(ends), FEW):
            self._base.execute("PRAGMA wal_checkpoint").fetchall()
            self._commit(ends[first : first + FEW])
        for _ in range(FEW):
            self._base.execute("PRAGMA wal_checkpoint").fetchall()
            self._shrink()
            if not self._excess:
                break
        self._waiting = [record for record in self._waiting if record[0] not in ENDS]

    def _refuse(self, error: Exception | None) -> None:
        """The disk takes nothing: batches that wait are refused, all else goes on waiting."""
        batches = [record[1:3] for record in self._waiting if record[0] == "batch"]
        refused = [batch for batch in batches if batch[0] not in self._systems]
        self._withdrawn.update(refused)
        self._waiting = self._not_withdrawn(self._waiting)
        self._held = [held for held in self._held if held[0][1:3] not in self._withdrawn]
        if error is not None:
            self._probe_at = time.monotonic() + (PROBE_EVERY if self._blocked else 0)
            self._blocked = True
            self._ballast.unlink(missing_ok=True)
            self._error = error
        if refused or error is not None:
            self._full(self._error, refused)

    def _not_withdrawn(self, records: list[tuple]) -> list[tuple]:
        """The records without those of refused batches."""
        if not self._withdrawn:
            return records
        kept = []
        for record in records:
            if record[1:3] not in self._withdrawn or record[0] not in (*OF_BATCH, "settled"):
                kept.append(record)
            elif record[0] == "settled":  # the Board has taken it out; it may come again
                self._withdrawn.discard(record[1:3])
        return kept

    def _load_ballast(self) -> None:
        try:
            with open(self._ballast, "wb", buffering=0) as file:
                rpc.write_pieces(file.fileno(), [bytes(BALLAST)])
            room = shutil.disk_usage(self._path.parent).free
            if self._blocked and room < BALLAST:  # else it would be full again at once
                raise OSError(errno.ENOSPC, f"{room:,} bytes are left")
        except OSError:
            self._ballast.unlink(missing_ok=True)
            raise

    def _commit(self, records: list[tuple]) -> None:
        """All of them or none."""
        if records:
            done = False
            try:
                self._base.execute("BEGIN IMMEDIATE")
                for record in records:
                    self._write(record)
                self._blobs.sync()
                self._base.execute("COMMIT")
                done = True
            finally:
                if not done:
                    self._roll_back()
            self._blobs.committed()
        self._shrink()

    def _roll_back(self) -> None:
        if self._base.in_transaction:  # SQLite may have done it
            self._base.execute("ROLLBACK")
        self._blobs.rolled_back()

    def _shrink(self) -> None:
        """Gives a little of the file back while more than half of it is free, or if the disk is full."""
        (free,), (pages,) = (self._base.execute(f"PRAGMA {of}").fetchone() for of in ("freelist_count", "page_count"))
        before, self._excess = self._excess, free > (0 if self._blocked else max(KEPT_PAGES, pages // 2))
        if before and not self._excess:
            self._base.execute("PRAGMA wal_checkpoint").fetchall()  # the file itself becomes shorter
        if self._excess:
            self._base.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")  # `execute` would do one page

    def stop(self) -> None:
        """Commits what is there and ends."""
        self._queue.put((None, []))
        self.join(10)

    def _write(self, record: tuple) -> None:
        kind, owner, *rest = record
        if kind == "history":  # no record: all that there is of this owner at this moment
            rest[0][:] = [_record(*row[1:]) for row in rows_of(self._base, self._path, only=owner)]
        elif kind == "settled":
            self._base.execute("DELETE FROM records WHERE owner = ? AND batch = ?", (owner, rest[0]))
        elif kind == "gone":
            self._base.execute("DELETE FROM records WHERE owner = ?", (owner,))
        else:
            if kind == "life":
                self._base.execute("DELETE FROM records WHERE kind = 'life'")
            elif kind == "paused":
                self._base.execute("DELETE FROM records WHERE owner = ? AND kind = 'paused'", (owner,))
            elif kind == "finished":
                self._base.execute("DELETE FROM records WHERE owner = ?", (owner,))
            elif kind == "snapshot":
                self._forget_before(owner, *rest[:3])
            payload = rest.pop() if kind in WITH_PAYLOAD else None
            batch = rest.pop(0) if kind in OF_BATCH else None
            self._insert(kind, owner, batch, json.dumps(rest), payload)

    def _insert(self, kind: str, owner: Any, batch: int | None, detail: str, parts: list | None) -> None:
        """A row; a large payload goes to a file of its own, before the row is committed."""
        self._number += 1
        sizes = payload = None
        pieces: list = []
        if parts is not None and sum(map(rpc.size_of, parts)) >= LARGE:
            found = [rpc.pieces_of(part) for part in parts]
            sizes = json.dumps([sum(map(len, some)) for some in found])
            pieces = list(itertools.chain.from_iterable(found))
            self._blobs.write(self._number, pieces)
        elif parts is not None:
            payload = pack_payload(parts)
            pieces = [payload]
        total = sum_of(kind, owner, batch, detail, sizes, pieces)
        row = (self._number, kind, owner, batch, detail, sizes, total, payload)
        self._base.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _forget_before(self, owner: str, heard: int, batches: int, out: list) -> None:
        """What a snapshot stands for is needed no more."""
        delete = "DELETE FROM records WHERE owner = ? AND kind"
        inputs = "owner = ? AND kind IN ('outcome', 'step')"
        first = f"SELECT number FROM records WHERE {inputs} ORDER BY number LIMIT ?"
        self._base.execute(f"DELETE FROM records WHERE number IN ({first})", (owner, heard))
        self._base.execute(f"{delete} IN ('value', 'snapshot')", (owner,))
        still = {number for number, _ in out}
        rows = self._base.execute("SELECT batch FROM records WHERE owner = ? AND kind = 'batch'", (owner,)).fetchall()
        over = [(owner, batch) for (batch,) in rows if batch < batches and batch not in still]
        self._base.executemany(f"{delete} IN ('batch', 'retry', 'outcome') AND batch = ?", over)


def _record(kind: str, owner: Any, batch: int | None, detail: str, payload: list | None) -> tuple:
    numbers = (batch,) if kind in OF_BATCH else ()
    payloads = (payload,) if kind in WITH_PAYLOAD else ()
    return (kind, owner, *numbers, *json.loads(detail), *payloads)


def pack_payload(parts: list | None) -> bytes | None:
    """A payload as one blob: the body of a message without a call."""
    return None if parts is None else b"".join(rpc.pack_stream(["payload"], parts))


def unpack_payload(blob: bytes | None) -> list | None:
    """The parts of a payload."""
    if blob is None:
        return None
    return rpc.unpack_body([blob[4:]])[1]


def sum_of(kind: str, owner: Any, batch: int | None, detail: str, sizes: str | None, pieces: Iterable) -> int:
    """The check sum of a row and its payload: SQLite has none, and would not notice another byte in a value."""
    total = zlib.crc32(f"{kind} {owner} {batch} {detail} {sizes}".encode())
    for piece in pieces:
        total = zlib.crc32(piece, total)
    return total


class Blobs:
    """Payloads beside the journal, a file each, named by the number of its row.

    A file is written before its row is committed, and not needed once the row's deletion was. Some of these are kept
    to be written again, which costs a third of a new one; they, and what a killed master left in between, are removed
    at the next start. `safe`: files are on the disk before the commit, and not only with the system.
    """

    def __init__(self, folder: Path, safe: bool = False):
        self.folder = folder
        self._safe = safe
        self._sizes: dict[int, int] = {}  # of files written in this life
        self._written: list[int] = []  # since the last commit
        self._deleted: list[int] = []  # their rows are
        self._dropped: list[int] = []  # and that is committed
        self._free: collections.defaultdict = collections.defaultdict(list)  # bits of the size -> files, to write again
        self._kept = 0  # bytes of these

    def write(self, number: int, pieces: list) -> None:
        """A file of these pieces. Raises OSError."""
        path, size = f"{self.folder}/{number}", sum(map(len, pieces))
        again = self._free[size.bit_length()]
        self._written.append(number)
        if again:
            before = again.pop()
            os.rename(f"{self.folder}/{before}", path)
            self._kept -= (had := self._sizes.pop(before))
            self._sizes[number] = max(had, size)
        else:
            self._sizes[number] = size
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            rpc.write_pieces(file, pieces)
            if self._safe:
                os.fsync(file)
        finally:
            os.close(file)

    def drop(self, number: int) -> None:
        """Its row is deleted, though not committed."""
        self._deleted.append(number)

    def sync(self) -> None:
        """Before a commit: the names of what was written are safe too."""
        if self._safe and self._written:
            _sync_folder(self.folder)

    def committed(self) -> None:
        """Lets go what is not needed, unless a backup is being made."""
        self._written.clear()
        self._dropped += self._deleted
        self._deleted.clear()
        if self._dropped:
            with components.may_remove(self.folder) as allowed:
                dropped, self._dropped = (self._dropped, []) if allowed else ([], self._dropped)
                for number in dropped:
                    self._let_go(number)

    def rolled_back(self) -> None:
        """Nothing of what was written since the last commit counts."""
        self._deleted.clear()
        self._remove(self._written)
        self._written.clear()

    def trim(self) -> bool:
        """Keeps no file to write again; whether there were any."""
        for numbers in self._free.values():
            self._remove(numbers)
        self._free.clear()
        kept, self._kept = self._kept, 0
        return kept > 0

    def sweep(self, needed: set[int]) -> None:
        """Makes the folder, private, and removes all files that are not needed."""
        rpc.own_folder(self.folder)
        for name in os.listdir(self.folder):
            if not (name.isdigit() and int(name) in needed):
                os.unlink(self.folder / name)

    def _let_go(self, number: int) -> None:
        size = self._sizes.get(number, 0)
        if size and self._kept + size <= KEPT_BLOBS:
            self._free[size.bit_length()].append(number)
            self._kept += size
        else:
            self._remove([number])

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            self._sizes.pop(number, None)
            with suppress(FileNotFoundError):
                os.unlink(f"{self.folder}/{number}")


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# -- reading a journal -------------------------------------------------------------------------------------------------

SHM_HEADER = struct.Struct("=3IBBH2I2I2I2I")  # of SQLite's index of a write-ahead log, which holds it twice


def blobs_of(path: Path) -> Path:
    """Where large payloads of a journal are."""
    return path.with_suffix(".blobs")


def damaged(path: Path, why: str, further: str = "") -> components.Error:
    """The error for a journal that is not what was written."""
    return components.Error(
        f"the journal {path} is damaged: {why}", "what it holds of accepted work cannot be relied on",
        f"restore {path.parent} from a backup, or move {path.name}* and {blobs_of(path).name} away to start with an "
        f"empty one: accepted work that is in them does not run then{further}",
    )


def unusable(path: Path, error: Exception) -> components.Error:
    """The error for a journal that cannot be opened or read."""
    if is_storage(error):
        return components.Error(
            f"the journal {path} cannot be used ({error})", "the disk is full, or the folder cannot be written",
            f"make room and let this user write {path.parent}, or start with --no-journal",
        )
    return damaged(path, str(error))


def committed_pages(path: Path) -> int:
    """How many pages of the write-ahead log hold commits, as whoever wrote there last has noted; 0 if nobody has."""
    try:
        with open(f"{path}-shm", "rb") as file:
            note = file.read(2 * SHM_HEADER.size)
    except FileNotFoundError:
        return 0
    if len(note) < 2 * SHM_HEADER.size or note[: SHM_HEADER.size] != note[SHM_HEADER.size :]:
        return 0
    _, _, _, valid, _, _, pages, *_ = SHM_HEADER.unpack_from(note)
    return pages if valid else 0


@contextmanager
def reading(path: Path, alone: bool) -> Any:
    """A connection that changes nothing. `alone`: no master has the journal open; then the note of what was committed
    to the write-ahead log, which SQLite corrects by what it can read there, is left as it was."""
    note = Path(f"{path}-shm")
    before = note.read_bytes() if alone and note.exists() else None
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        yield base
    finally:
        base.close()
        if before is not None:
            note.write_bytes(before)


def check_journal(base: sqlite3.Connection, path: Path, pages: int) -> None:
    """Raises Error unless the file is whole, its format is ours, and the write-ahead log has that many pages."""
    base.execute("SELECT count(*) FROM sqlite_master").fetchone()  # SQLite looks at the log
    here = committed_pages(path)
    if here < pages:
        raise damaged(path, f"{pages} pages were committed to {path.name}-wal, {here} of them can be read",
                      f"; or remove {path.name}-shm to go on without what is missing")
    problems = [text for (text,) in base.execute("PRAGMA integrity_check(3)")]
    if problems != ["ok"]:
        raise damaged(path, "; ".join(problems))
    found = base.execute("SELECT version FROM format").fetchone()
    if found and found[0] != FORMAT:
        raise components.UsageError(
            f"the journal {path} has format {found[0]}, this version reads {FORMAT}",
            "another version of the program wrote it", "use that version, or move the file away",
        )


def rows_of(base: sqlite3.Connection, path: Path, running: bool = False, only: str | None = None) -> Iterable[tuple]:
    """(number, kind, owner, batch, detail, parts) of all rows, or `only` those of an owner, in order. Parts in files
    are references. Raises Error for a row that is not what was written. `running`: a master may delete rows meanwhile,
    these are left out."""
    folder = str(blobs_of(path))
    for number, kind, owner, batch, detail, sizes, total, payload in _read_rows(base, only):
        where = f"{folder}/{number}"
        pieces: Iterable = () if payload is None else (payload,)
        parts = None
        try:
            if sizes is not None:
                parts = _in_file(folder, number, json.loads(sizes))
                pieces = _content_of(where, parts)
            if sum_of(kind, owner, batch, detail, sizes, pieces) != total:
                raise ValueError("it does not have its check sum")
            yield number, kind, owner, batch, detail, unpack_payload(payload) if parts is None else parts
        except (OSError, ValueError, TypeError, rpc.ProtocolError) as error:
            if running and sizes is not None and not _is_there(base, number):
                continue
            raise damaged(path, f"record {number} ({kind} of {owner}): {error}") from None


def _read_rows(base: sqlite3.Connection, owner: str | None) -> Iterable[tuple]:
    """Some at a time: whoever reads on keeps the write-ahead log from being emptied."""
    last = 0
    which = f"{ROWS} WHERE number > ? AND (? IS NULL OR owner = ?) ORDER BY number LIMIT {READ_ROWS}"
    while rows := base.execute(which, (last, owner, owner)).fetchall():
        yield from rows
        last = rows[-1][0]


def _is_there(base: sqlite3.Connection, number: int) -> bool:
    return base.execute("SELECT 1 FROM records WHERE number = ?", (number,)).fetchone() is not None


def _in_file(folder: str, number: int, sizes: list) -> list:
    ends = list(itertools.accumulate(sizes))
    return [rpc.Reference(folder, str(number), end - size, size) for end, size in zip(ends, sizes, strict=True)]


def _content_of(where: str, parts: list) -> Iterable[bytes]:
    left = sum(map(len, parts))
    with open(where, "rb") as file:
        if os.fstat(file.fileno()).st_size < left:
            raise ValueError(f"{where} does not have {left:,} bytes")
        while left and (piece := file.read(min(left, 1 << 20))):
            left -= len(piece)
            yield piece


def read_journal(path: Path) -> list[tuple]:
    """All records of a journal that no master has open; none if there is no file. Raises Error if it is damaged."""
    if not path.exists():
        left = [one for one in (Path(f"{path}-wal"), *blobs_of(path).glob("*")) if one.exists() and one.stat().st_size]
        if left:
            raise damaged(path, f"it is not there, but {left[0]} is")
        Path(f"{path}-shm").unlink(missing_ok=True)
        return []
    pages = committed_pages(path)
    try:
        with reading(path, alone=True) as base:
            check_journal(base, path, pages)
            return [_record(*row[1:]) for row in rows_of(base, path)]
    except (sqlite3.DatabaseError, OSError) as error:
        raise unusable(path, error) from None


# -- looking at a journal ----------------------------------------------------------------------------------------------

@contextmanager
def opened_journal(folder: str | None) -> Any:
    """(connection, path, whether a master runs there) of the journal in a master's folder, to read it only. Raises
    Error for one that is damaged or not there."""
    environment = components.Environment(folder or components.state_root() / "master", "master")
    path = environment / "journal.db"
    if not path.exists():
        raise components.UsageError(f"there is no journal {path}", "no master kept one there", "name its folder: --env")
    alone = True
    try:
        environment.lock()
    except components.UsageError:
        alone = False
    pages = committed_pages(path) if alone else 0
    try:
        with environment, reading(path, alone) as base:
            check_journal(base, path, pages)
            yield base, path, not alone
    except (sqlite3.DatabaseError, OSError) as error:
        raise unusable(path, error) from None


def export_journal(folder: str | None, payloads: bool = False) -> None:
    """Writes a line of JSON per record to stdout."""
    with opened_journal(folder) as (base, path, running):
        for row in rows_of(base, path, running):
            print(json.dumps(described(*row, payloads)))


def described(number: int, kind: str, owner: Any, batch: int | None, detail: str, parts: list | None,
              payloads: bool) -> dict:
    """A record for people and their programs."""
    made = {"number": number, "kind": kind, "owner": owner, "batch": batch, "detail": json.loads(detail)}
    if parts is not None:
        data = b"".join(piece for part in parts for piece in rpc.pieces_of(part))
        sizes = list(map(rpc.size_of, parts))
        made["payload"] = {"size": sum(sizes), "sizes": sizes, "sha256": hashlib.sha256(data).hexdigest()}
        if payloads:
            made["payload"]["base64"] = base64.b64encode(data).decode()
    return made


def summary_of(folder: str | None) -> str:
    """What a journal holds, in lines; Error unless it is whole."""
    with opened_journal(folder) as (base, path, running):
        counts, tasks, ended = Counter(), 0, 0
        for _, kind, _, _, detail, _ in rows_of(base, path, running):
            counts[kind] += 1
            if kind == "batch":
                tasks += json.loads(detail)[0]
            elif kind == "outcome":
                lo, hi, _, failures, _ = json.loads(detail)
                ended += hi - lo - len(retried(failures))
        sizes = [file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists()]
        beside = [file.stat().st_size for file in blobs_of(path).glob("*")]
        records = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())) or "none"
        return (
            f"journal {path}: whole, format {FORMAT}{', in use by a master that runs' * running}\n"
            f"  records  {records}\n"
            f"  tasks    {tasks - ended:,} without an outcome, {ended:,} whose outcome was not acknowledged\n"
            f"  size     {sum(sizes):,} bytes, and {sum(beside):,} in {len(beside):,} files beside it"
        )


# -- who follows spans ---------------------------------------------------------------------------------------------

MOST_ROWS = 20_000  # of spans, or barriers, of which a client that lags is still to be told
AT_ONCE = 256  # spans; to tell of them takes about a millisecond
UNTOLD = 0, 0, 0, 0, 0  # of a slave that does not say how it spent the time


class Spans:
    """What slaves report of leases, until all who follow it are told, of many at once: this costs a third of telling
    them of each."""

    def __init__(self):
        self.ears: list[Callable[[list[Span]], None]] = []
        self._reports: list = []  # their fields, one after the other: lists that stay would cost as much again

    def add(self, lease: Lease, payload: list | None, lo: int, hi: int, failures: dict, spent: list, parts: list,
            step: int, now: float) -> None:
        """What a slave reports of the tasks lo..hi of a lease, whose batch has had this payload; `parts` are their
        results. `spent`: see `check_report`."""
        batch, group = lease.batch, lease.batch.group
        sent = weight_of(payload[2 + lo // group : 2 - (-hi // group)]) if payload else 0
        failed = 0 if not failures else hi - lo if "*" in failures else min(len(failures), hi - lo)
        self._reports += (batch.owner.id, batch.first + lo, hi - lo, failed, lease.attempt, lease.slave.id,
                          batch.since, lease.since, now, step, kind_of(batch), sent, weight_of(parts),
                          *(spent or UNTOLD))
        if len(self._reports) >= AT_ONCE * len(Span._fields):
            self.tell()

    def tell(self) -> None:
        """Tells of what there is."""
        reports, self._reports = iter(self._reports), []
        spans = list(itertools.starmap(span_of, zip(*[reports] * len(Span._fields), strict=True)))
        for hear in self.ears if spans else ():
            components.run_foreign("reports are not shown", hear, spans)


class Traces:
    """Who traces: clients, each told what became of its own tasks and task systems, and a file with everything. While
    nobody does, nothing is heard."""

    def __init__(self, node: MasterNode):
        self.file: tasks.TraceFile | None = None
        self._node = node
        self._told: dict[str, tuple[tasks.Thinned, list]] = {}  # client -> spans, barriers
        self._all = tasks.Thinned()
        self._barriers: list[tuple] = []  # of all

    def open(self, path: Path) -> None:
        """Writes everything to a file from now on. Raises UsageError."""
        self.file = tasks.TraceFile(path)
        self._node.closing.callback(self.close)
        self._listen()

    def close(self) -> None:
        """Ends the file."""
        self.file.put(self._rows())
        self.file.close()

    def follow(self, client: str) -> None:
        """Tells a client from now on."""
        self._told.setdefault(client, (tasks.Thinned(MOST_ROWS), []))
        self._listen()

    def leave(self, client: str) -> None:
        """Tells it no more."""
        if self._told.pop(client, None):
            self._listen()

    def _listen(self) -> None:
        ears, wanted = self._node.spans.ears, bool(self.file or self._told)
        if wanted != (self.hear in ears):
            (ears.append if wanted else ears.remove)(self.hear)

    def hear(self, spans: list[Span]) -> None:
        """More spans."""
        if self.file:
            self._all.add(spans)
        for client, some in grouped(spans, "owner", self._client_of).items() if self._told else ():
            if client in self._told:
                self._told[client][0].add(some)

    def barrier(self, system: System) -> None:
        """A system begins a step, or waits after one."""
        row = (time.monotonic(), system.name, system.step, system.waiting)
        if self.file:
            self._barriers.append(row)
        told = self._told.get(system.client)
        if told and len(told[1]) < MOST_ROWS:
            told[1].append(row)

    def _client_of(self, owner: str) -> str:
        return self._node.systems[owner].client if owner in self._node.systems else owner

    def tell(self, now: float) -> None:
        """Tells all what there is, and how the swarm stands."""
        if not (self.file or self._told):
            return
        counts = self._counts()
        for client in self._told:
            self.tell_client(client, now, counts)
        if self.file:
            self.file.put([*self._rows(), ("counts", now, *counts)])

    def _rows(self) -> list[tuple]:
        barriers, self._barriers = self._barriers, []
        return [*(("span", row) for row in self._all.taken()[0]), *(("barrier", *row) for row in barriers)]

    def tell_client(self, client: str, now: float, counts: tuple | None = None) -> None:
        """Tells one client; without `counts` it is the last time."""
        peer = self._node._peers.get(client)
        if client in self._told and peer is not None and not (counts and peer.lags):
            spans, barriers = self._told[client]
            rows, missing = spans.taken()
            call = ["spans", now, [*barriers], missing, counts or self._counts(), counts is None]
            barriers.clear()
            self._node.channel.send(peer, call, tasks.pack_spans(rows))

    def _counts(self) -> tuple[int, int]:
        queued = sum(one.queued for one in dict.fromkeys(owner.user for owner in self._node.board.owners.values()))
        return queued, self._node.swarm_size()[2]


# -- audit log -----------------------------------------------------------------------------------------------------

AUDIT_LINES = 30  # of one event from one source in AUDIT_WINDOW seconds; what is more is counted
AUDIT_WINDOW = 60.0
AUDIT_SOURCES = 1000  # beyond, those that are new count as one
AUDIT_TEXT = 2000  # characters of what is known of an event; of more the beginning is kept


class Audit(threading.Thread):
    """Who did what, in a file of this user's own: a JSON line per event, that no value in it can break. What one source
    does too often is counted instead, and so are lines that cannot be written; neither stops anybody. Any thread may
    `put`; a thread of its own writes. `counts`: lines written, suppressed, lost."""

    def __init__(self, path: Path):
        super().__init__(name="audit", daemon=True)
        self.counts: Counter[str] = Counter()
        self._path = path
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the next
        self._lines: Counter[tuple[str, str]] = Counter()  # event, source
        self._works = True

    def put(self, event: str, source: str, facts: dict) -> None:
        """Takes note of an event; `source`, a key or an address, is whose lines are counted."""
        with self._lock:
            known = (event, source) in self._lines or len(self._lines) < AUDIT_SOURCES
            place = event, source if known else "others"
            self._lines[place] += 1
            if self._lines[place] > AUDIT_LINES:
                self.counts["suppressed"] += 1
                return
        self._queue.put({"event": event, **facts})

    def next_window(self) -> None:
        """Says what was suppressed, and counts anew."""
        with self._lock:
            lines, self._lines = self._lines, Counter()
        for (event, source), count in lines.items():
            if count > AUDIT_LINES:
                told = {"event": "suppressed", "of": event, "from": source, "lines": count - AUDIT_LINES}
                self._queue.put(told)

    def run(self) -> None:
        """What the thread does."""
        while (entry := self._queue.get()) is not None:
            entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
            try:
                text = json.dumps(entry, default=str)
            except (ValueError, RecursionError) as error:
                text = json.dumps({"time": entry["time"], "event": entry["event"], "begins": str(error)})
            if len(text) > AUDIT_TEXT:
                text = json.dumps({"time": entry["time"], "event": entry["event"], "begins": text[:AUDIT_TEXT]})
            try:
                self._write(text.replace("\x7f", r"\u007f") + "\n")  # the one control character that JSON lets through
                self.counts["written"] += 1
                self._works = True
            except OSError as error:
                self.counts["lost"] += 1
                if self._works:
                    self._works = False
                    log.error("the audit log cannot be written (%s): what it misses is counted in the status", error)

    def _write(self, line: str) -> None:
        """At the end, whoever else writes there; a file that is large enough makes room for the next."""
        if rpc.append_private(str(self._path), line) > components.LOG_BYTES:
            names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, components.LOG_FILES + 1))]
            for old, new in [*itertools.pairwise(names)][::-1]:
                with suppress(FileNotFoundError):
                    os.replace(old, new)

    def close(self) -> None:
        """Writes what is left, and ends."""
        self.next_window()
        self._queue.put(None)
        self.join(5)


# -- what the page is told -----------------------------------------------------------------------------------------
#
# A Gallery hears what happens, keeps as much of it as a screen can show, and tells a page what is new since its last
# question. What it hears costs per span, second and question, never per task. Of an answer `copy` belongs to the thread
# of the loop; `tell` makes the rest of that copy, in the thread of whoever asks.

LANES = 64  # workers that have a lane each; with more of them, slaves have
MOST_LANES = 200  # lanes at most, the most interesting
COLUMNS = 600  # of a window
KEPT = COLUMNS + 40  # for those that are not settled yet
WHOLE, EMPTY = 254 << 16, array.array("I", bytes(4 * MOST_LANES))
MOST_FILMS, WATCHED = 4, 30.0  # seconds without a question after which nobody watches one
REVIEW_EVERY = 10  # samples between two looks at which slaves are the most interesting
SPANS_SHOWN = 2000  # spans in the window above which their density is told instead
SHORTEST = 5.0  # seconds of a window
SETTLED = 0.3  # seconds after which nearly all spans of a column have been heard of, but for tasks that still run
SECONDS, MINUTES = 900, 1440  # samples kept
SAMPLE_EVERY = 1.0  # seconds
MEAN = 5  # samples over which rates are told
STUCK = 30.0  # seconds without an end of a task while the queue grows that a person should hear of
LOST_KEPT, MOST_LOST = 600.0, 200  # seconds for which a lost slave is shown, and how many are
RECENTLY = 60.0  # seconds for which a failure makes a slave interesting
STRAGGLES = 5  # times the median that a task takes which a person should hear of
STEPS_KEPT, STEPS_SHOWN = 600, 200  # of all systems together, of one
NEXT_FILM = 3.0  # seconds between two grids that begin: each is filled from all spans that are kept, in up to 150 ms
GUEST_WINDOWS = (10.0, 60.0, 600.0)  # seconds; each window that is watched costs every span a microsecond or two
ENDED_KEPT, WORKS_SHOWN = 20, 100  # systems; those that run, and clients, in one answer
MOST_TEXTS = 8192  # names of slaves, owners and kinds before those that no span has any more are let go
SPAN_FORM = "<dfIBHHIHHHHB"  # began, seconds, first and what of it is above 32 bits, tasks, failed, step, slave, lane,
# owner, kind, attempt
SAMPLE_FORM = "<d6f"  # when, tasks and failures a second, queued, busy, median and 95 % of the seconds of a task
SLAVE_COLUMNS = ("name", "host", "state", "workers", "busy", "mean_busy", "done", "failed", "cpu", "memory",
                 "round_trip", "seen", "sandbox")


class Ring:
    """The last rows of numbers of one form. `seen`: how many there ever were; their serials count from 0."""

    def __init__(self, form: str, size: int):
        self.form, self.size, self.seen = struct.Struct(form), size, 0
        self._data = bytearray(self.form.size * size)

    def put(self, *row: float) -> None:
        """Takes in a row, in place of the oldest."""
        self.form.pack_into(self._data, self.seen % self.size * self.form.size, *row)
        self.seen += 1

    def since(self, serial: int) -> tuple[int, bytes]:
        """A copy of the rows from a serial on, or from the oldest, with the serial of the first of them."""
        first = max(serial, self.seen - self.size, 0)
        if first >= self.seen:
            return self.seen, b""
        size, data = self.form.size, memoryview(self._data)
        a, b = first % self.size * size, ((self.seen - 1) % self.size + 1) * size
        return first, bytes(data[a:b]) if a < b else b"".join((data[a:], data[:b]))

    def last(self, count: int) -> list[tuple]:
        """The last rows, the oldest first."""
        return list(self.form.iter_unpack(self.since(self.seen - count)[1]))


class Texts(dict):
    """Numbers for texts, 0 for what there is no number left for; `texts` are the texts of the numbers."""

    def __init__(self):
        super().__init__({"": 0})
        self.texts, self._free = [""], []

    def __missing__(self, text: str) -> int:
        number = self._free.pop() if self._free else len(self.texts)
        if number > 0xFFFF:
            return 0
        if number == len(self.texts):
            self.texts.append(text)
        self.texts[number] = text
        self[text] = number
        return number

    def keep(self, used: set) -> None:
        """Lets go the texts of all other numbers."""
        self.texts = list(self.texts)  # whoever reads the old one goes on
        for text, number in [item for item in self.items() if item[1] not in used and item[1]]:
            del self[text]
            self._free.append(number)


class Grid:
    """How busy each row was in each of the last columns: 32 bits a row, WHOLE for all of a column."""

    def __init__(self, width: float):
        self.width = width
        self.newest = -1
        self.cells = array.array("I", bytes(4 * MOST_LANES * KEPT))

    def add(self, row: int, scale: float, began: float, ended: float) -> None:
        """The row was busy for a while; `scale` is WHOLE over its workers."""
        width, cells = self.width, self.cells
        first, last = int(began / width), int(ended / width)
        if last > self.newest:
            self.turn(last)
        oldest = self.newest - KEPT + 1
        try:
            if first == last:
                if first >= oldest:
                    cells[first % KEPT * MOST_LANES + row] += int((ended - began) / width * scale)
                return
            if first >= oldest:
                cells[first % KEPT * MOST_LANES + row] += int((first + 1 - began / width) * scale)
            for column in range(max(first + 1, oldest), last):
                cells[column % KEPT * MOST_LANES + row] += int(scale)
            if last >= oldest:
                cells[last % KEPT * MOST_LANES + row] += int((ended / width - last) * scale)
        except OverflowError:  # a slave says that it did far more at once than it can
            cells[last % KEPT * MOST_LANES + row] = WHOLE

    def turn(self, newest: int) -> None:
        """Begins columns up to this one."""
        for column in range(max(self.newest + 1, newest - KEPT + 1), newest + 1):
            at = column % KEPT * MOST_LANES
            self.cells[at : at + MOST_LANES] = EMPTY
        self.newest = max(self.newest, newest)

    def clear(self, rows: Iterable[int]) -> None:
        """These rows are somebody else's now."""
        for row in rows:
            self.cells[row::MOST_LANES] = array.array("I", bytes(4 * KEPT))

    def of(self, first: int, end: int) -> list[int]:
        """The columns from `first` to before `end`, each as one number of 32 bits a row."""
        self.turn(end - 1)
        oldest, size, data = self.newest - KEPT + 1, 4 * MOST_LANES, memoryview(self.cells).cast("B")
        places = [column % KEPT * size if column >= oldest else -1 for column in range(first, end)]
        return [int.from_bytes(data[at : at + size], sys.byteorder) if at >= 0 else 0 for at in places]


class Film:
    """What viewers are told of a grid: its columns as bytes, each made once. `end`: the first that is not made."""

    def __init__(self, grid: Grid, system: str, since: int):
        self.grid, self.system = grid, system
        self.past: Grid | None = None  # of the spans before the serial `since`, if the grid began with that one
        self.since, self.filled = since, False
        self.end, self.asked = 0, 0.0
        self.rows: dict[tuple, int] = {}  # of the layout for which it was made
        self.columns: collections.deque[bytes] = collections.deque(maxlen=COLUMNS)

    def make(self, first: int, columns: list[int], running: list, scales: list) -> None:
        """Makes columns from number `first` on; `running` are (row, since when) of what has not been heard of."""
        if first != self.end:
            self.columns.clear()
        begins: collections.defaultdict = collections.defaultdict(list)
        for row, since in running:
            begins[max(first, int(since / self.grid.width))].append((row, since / self.grid.width))
        level = 0
        past = self.past.of(first, first + len(columns)) if self.past else itertools.repeat(0)
        for number, column, before in zip(itertools.count(first), columns, past):
            column += level + before
            for row, since in begins.get(number, ()):
                column += int(min(1.0, number + 1 - since) * scales[row]) << 32 * row
                level += int(scales[row]) << 32 * row
            self.columns.append(shares(column))
        self.end = first + len(columns)

    def fit(self, rows: dict) -> None:
        """Lanes have other rows now: nothing is known of those that are new."""
        gone = [row for lane, row in rows.items() if self.rows.get(lane) != row] if self.rows else []
        self.rows = rows
        if gone:
            for place, column in enumerate(self.columns):
                changed = bytearray(column)
                for row in gone:
                    changed[row] = 0
                self.columns[place] = bytes(changed)

    def told(self, first: int, rows: list) -> tuple[int, bytes]:
        """The columns from number `first` on, of these rows, with the number of the first of them."""
        first = max(first, self.end - len(self.columns))
        data = b"".join(itertools.islice(self.columns, first - self.end + len(self.columns), None))
        told = bytearray(len(data) // MOST_LANES * len(rows))
        for place, row in enumerate(rows):
            told[place :: len(rows)] = data[row::MOST_LANES]
        return first, bytes(told)


def shares(column: int) -> bytes:
    """A byte for each row of a column, 254 where it is full, and 255 where what runs and what has ended overlap."""
    data = column.to_bytes(4 * MOST_LANES + 4, "little")
    told, over = bytearray(data[2 : 4 * MOST_LANES : 4]), data[3 : 4 * MOST_LANES : 4]
    if over.count(0) < MOST_LANES:
        for row in itertools.compress(range(MOST_LANES), over):
            told[row] = 255
    return bytes(told)


class Layout(NamedTuple):
    """Which row of the grids belongs to which lane: (slave, worker), or (slave, -1) for all of a slave's. `scales` by
    row: the units of a `Grid` over the workers of a lane. `order`: that of the lanes for the eye."""

    by_worker: bool
    rows: dict
    scales: list
    order: list
    version: int


class Lanes:
    """The layout of the lanes, which is replaced when slaves come and go."""

    def __init__(self):
        self.layout = Layout(True, {}, [0.0] * MOST_LANES, [], 0)

    def fit(self, slaves: list) -> list[int]:
        """Gives rows to those that come first of these (name, workers). Returns the rows that have another owner."""
        old = self.layout
        by_worker = sum(workers for _, workers in slaves) <= LANES
        if by_worker:
            wanted = {(name, lane): 1 for name, workers in slaves for lane in range(workers)}
        else:
            wanted = {(name, -1): workers for name, workers in slaves[:MOST_LANES]}
        rows = {lane: row for lane, row in old.rows.items() if lane in wanted}
        free = sorted(set(range(MOST_LANES)).difference(rows.values()), reverse=True)
        rows.update({lane: free.pop() for lane in wanted if lane not in rows})
        scales = [0.0] * MOST_LANES
        for lane, workers in wanted.items():
            scales[rows[lane]] = WHOLE / max(1, workers)
        changed = (list(wanted), scales) != (old.order, old.scales)
        self.layout = Layout(by_worker, rows, scales, list(wanted), old.version + changed)
        return [row for lane, row in old.rows.items() if lane not in wanted]


class Step:
    """What is known of one step of a system."""

    __slots__ = ("began", "bytes", "done", "ended", "failed", "last", "longest", "messages", "number", "owner", "tasks")

    def __init__(self, owner: str, number: int, now: float):
        self.owner, self.number, self.began = owner, number, now
        self.tasks = self.done = self.failed = self.messages = self.bytes = 0
        self.last = self.ended = now  # when what ran last began, and ended
        self.longest = 0.0

    def row(self) -> list:
        """As the page gets it."""
        seconds, waited = self.ended - self.began, max(0.0, self.ended - self.last)
        return [self.number, self.tasks, self.done, self.failed, round(seconds, 3), round(self.longest, 4),
                round(waited, 3), self.messages, self.bytes]


class Work:
    """What an owner has done so far: a task system, or a client with its plain tasks."""

    __slots__ = ("app", "busy", "by_hand", "client", "done", "elapsed", "error", "failed", "groups", "id", "known",
                 "last", "pace", "past", "paused", "rate", "result", "since", "state", "step", "times", "user", "view",
                 "waiting")

    def __init__(self, owner: str, client: str, app: str, user: str, by_hand: bool, now: float):
        self.id, self.client, self.app, self.user, self.by_hand = owner, client, app, user, by_hand
        self.since = now
        self.known = self.done = self.failed = self.step = self.view = 0
        self.busy = self.rate = self.pace = 0.0  # seconds of tasks; tasks a second, of late and over a longer time
        self.times = components.Series()  # seconds of its tasks
        self.past = collections.deque([0], maxlen=MEAN + 1)  # what was done, each second
        self.last = ""  # its latest failure, as type and place
        self.state, self.error, self.elapsed, self.result = "running", None, None, None
        self.paused = self.waiting = False

    def look(self) -> None:
        """Sets its state, of one that has not ended."""
        self.state = "paused" if self.paused else "waiting" if self.waiting else "running"

    def sample(self) -> None:
        """A second has passed."""
        self.past.append(self.done)
        self.rate = (self.past[-1] - self.past[0]) / (len(self.past) - 1)
        self.pace = self.rate if len(self.past) <= MEAN else self.pace + 0.1 * (self.rate - self.pace)

    def eta(self, left: int) -> float | None:
        """Seconds until it has done so many more tasks, once that can be told."""
        known = self.done >= 20 or self.done >= 0.05 * self.known
        return left / self.pace if known and left > 0 and self.pace > 0.001 else None


class Seen:
    """What the board does not know of a slave."""

    __slots__ = ("cpu", "failed", "failed_at", "host", "key", "lost", "mean", "memory", "python", "running", "sandbox",
                 "trip")

    def __init__(self, name: str, host: str, python: str, sandbox: str):
        self.host, self.python, self.sandbox = host, python, sandbox
        self.key = int("0" + "".join(filter(str.isdigit, name))[-9:]), name  # s2 comes before s10
        self.failed, self.failed_at, self.mean = 0, -math.inf, 0.0
        self.cpu = self.memory = self.trip = None
        self.running: dict[int, int] = {}  # lease -> lane, of those that run for a while
        self.lost: tuple | None = None  # when, why, tasks that it held, its row then


def asked_number(value: Any, default: float, least: float, most: float) -> float:
    """A number that somebody sent, if it is one, within bounds."""
    known = type(value) in (int, float) and value == value  # not nan
    return min(max(value, least), most) if known else default


class Asked(NamedTuple):
    """What a page wants to see; whatever it sends, this is sound."""

    cur: dict
    window: float
    lanes: tuple[int, int]
    lane_filter: str
    system: str  # whose spans alone are wanted
    slaves: tuple[int, int]
    sort: str
    filter: str
    opened: str  # the system whose steps are wanted
    whole: bool  # the question of an administrator, who may begin any grid

    @classmethod
    def of(cls, cur: dict, stream: dict, slaves: dict, opened: str, whole: bool = True) -> Asked:
        """From the parameters of `ui.poll`."""
        first, count = (*stream["lanes"], 0, 0)[:2] if type(stream.get("lanes")) is list else (0, LANES)
        lanes = int(asked_number(first, 0, 0, 1e6)), int(asked_number(count, LANES, 0, MOST_LANES))
        page = int(asked_number(slaves.get("from"), 0, 0, 1e6)), int(asked_number(slaves.get("count"), 60, 0, 200))
        window = round(asked_number(stream.get("window"), 10.0, SHORTEST, COLUMNS), 1)
        window = window if whole else next(one for one in GUEST_WINDOWS if window <= one)
        return cls(cur, window, lanes, str(stream.get("filter", "")).lower(), str(stream.get("system", "")), page,
                   str(slaves.get("sort", "name")), str(slaves.get("filter", "")).lower(), opened, whole)

    def after(self, name: str) -> int:
        """The cursor of that name."""
        return int(asked_number(self.cur.get(name), 0, 0, 2**62))


class Copy(NamedTuple):
    """What an answer is made of, copied in the thread of the loop."""

    now: float
    head: dict
    slaves: list
    systems: list
    plain: list
    steps: dict | None
    lanes: list
    rows: list
    layout: tuple
    spans: tuple[int, bytes]
    texts: list
    seen: int
    running: list
    barriers: list
    film: tuple | None
    columns: tuple
    failed: list
    samples: list
    errors: tuple
    attention: list


class Gallery:
    """What the page is told of a board. Events are methods that take the time as an argument, as those of the board."""

    def __init__(self, board: Board, now: float = 0.0, history: int = 50_000, errors: rpc.Failures | None = None,
                 heard_at: Callable[[str], float | None] = lambda slave: None):
        self.board, self.since, self.heard_at = board, now, heard_at
        self.spans = Ring(SPAN_FORM, max(1, history))
        self.keeps = history > 0
        self.texts, self.lanes = Texts(), Lanes()
        self.grid = Grid(1.0)
        self.works: dict[str, Work] = {}
        self.ended: OrderedDict[str, Work] = OrderedDict()
        self.steps: OrderedDict[tuple, Step] = OrderedDict()
        self.slaves: dict[str, Seen] = {}
        self.barriers: collections.deque[tuple] = collections.deque(maxlen=STEPS_SHOWN)
        self.failures: collections.deque[tuple] = collections.deque(maxlen=STEPS_SHOWN)  # when, slave, lane, system
        self.errors = errors or rpc.Failures()
        self.seconds, self.minutes = Ring(SAMPLE_FORM, SECONDS), Ring(SAMPLE_FORM, MINUTES)
        self.done = self.failed = 0
        self.attention: list[list] = []
        self._times, self._minute = components.Series(), components.Series()  # seconds of tasks, of this second, minute
        self._past: collections.deque[tuple] = collections.deque(maxlen=MEAN + 1)  # when, done, failed, busy, serial
        self._serials: collections.deque[tuple] = collections.deque(maxlen=COLUMNS)  # when, spans seen
        self._finished_at, self._queue_then = now, -1  # when a task ended last or a worker was free, and what waited
        self._was_full = False
        self._films: OrderedDict[tuple, Film] = OrderedDict()  # (width, system) -> Film, the last used one last
        self._live: list[Film] = []  # those of them that have a grid of their own
        self._names: list[str] | None = []
        self._orders: dict[str, list[str]] = {}  # names by a column, as they were a second ago
        self._wanted: dict[str, float] = {}  # parts of names of slaves that somebody looks for, and since when
        self._next_film = -math.inf  # when another grid may begin
        self._stale = True  # the lanes are to be laid out anew

    # -- what it hears

    def hear(self, spans: list[Span]) -> None:
        """Parts of leases were run."""
        if self._stale and len(self.slaves) <= MOST_LANES:
            self._lay_out(spans[-1].heard)
        for owner, some in grouped(spans, "owner").items():
            counts = [span.tasks for span in some]
            found = components.Series()
            found.add(map(truediv, map(self._draw, some), counts), None if {*counts} == {1} else counts)
            self._times.merge(found)
            if owner in self.works:
                self.works[owner].times.merge(found)

    def _draw(self, span: Span) -> float:
        """Takes one in; returns the seconds of its tasks alone."""
        (owner, first, tasks, failed, attempt, slave, lane, _, _, began, ended, heard, opening, packing, step, kind,
         *_) = span
        numbers, ran, layout = self.texts, ended - began, self.lanes.layout
        if ran < 0:  # a clock of a slave that jumps
            began, ran = ended, 0.0
        if self.keeps:
            self.spans.put(began, ran, first & 0xFFFFFFFF, first >> 32 & 0xFF, tasks if tasks < 65536 else 65535,
                           failed if failed < 65536 else 65535, step & 0xFFFFFFFF, numbers[slave], lane & 0xFFFF,
                           numbers[owner], numbers[kind], attempt if attempt < 256 else 255)
        row = layout.rows.get((slave, lane if layout.by_worker else -1))
        if row is not None:
            self.grid.add(row, layout.scales[row], began, ended)
            for film in self._live:
                if film.system in ("", owner):
                    film.grid.add(row, layout.scales[row], began, ended)
        work = self.works.get(owner)
        if work is not None:
            work.busy += ran
            if step:
                self._in_step(span, ran)
        if failed:
            self._failed_there(slave, lane, owner, failed, heard)
        return max(0.0, ran - opening - packing)

    def _in_step(self, span: Span, ran: float) -> None:
        step = self._step(span.owner, span.step, span.began)
        step.done += span.tasks - span.failed
        step.failed += span.failed
        step.longest = max(step.longest, ran / span.tasks)
        step.last, step.ended = max(step.last, span.began), max(step.ended, span.ended)
        step.messages += 2
        step.bytes += span.sent + span.received

    def _step(self, owner: str, number: int, now: float) -> Step:
        step = self.steps.get((owner, number))
        if step is None:
            step = self.steps[owner, number] = Step(owner, number, now)
            if len(self.steps) > STEPS_KEPT:
                self.steps.popitem(last=False)
        return step

    def _failed_there(self, slave: str, lane: int, owner: str, failed: int, now: float) -> None:
        self.failures.append((now, slave, lane, owner))
        seen = self.slaves.get(slave)
        if seen is not None:
            seen.failed += failed
            seen.failed_at = now

    def owner_began(self, owner: str, client: str, app: str, user: str, by_hand: bool, now: float) -> None:
        """A task system, or a client (of its own name), is here."""
        if owner not in self.works:
            self.works[owner] = Work(owner, client, app, user, by_hand, now)

    def owner_is(self, owner: str, app: str) -> None:
        """It is known now what the owner runs."""
        if owner in self.works:
            self.works[owner].app = app

    def owner_repeats(self, owner: str, known: int, done: int) -> None:
        """A system does again what an earlier process of it did; so many tasks it will not."""
        work = self.works.get(owner)
        if work is not None:
            work.known, work.done = known, done

    def submitted(self, owner: str, tasks: int, step: int, now: float) -> None:
        """An owner has so many tasks more; a system in this step."""
        work = self.works.get(owner)
        if work is not None:
            work.known += tasks
            if step:
                self._step(owner, step, now).tasks += tasks

    def counted(self, owner: str, tasks: int, failed: int) -> None:
        """So many tasks have their outcome, of which so many failed."""
        self.done += tasks
        self.failed += failed
        self._queue_then = -1
        work = self.works.get(owner)
        if work is not None:
            work.done += tasks
            work.failed += failed

    def task_failed(self, owner: str, task: str, why: dict, count: int, slave: str, now: float) -> None:
        """This task failed for good, and others of the same range, so many together."""
        if why.get("kind") == "cancelled":
            return
        self.errors.add(why, task, now, owner, slave, count)
        work = self.works.get(owner)
        if work is not None:
            work.last = ", ".join(filter(None, (str(why.get("type", "?")), str(why.get("where", "")))))[:200]

    def kept(self, system: str = "") -> Iterable[tuple]:
        """What is kept of the runs of a system, or of all, and its barriers, as `tasks.Trace.events` takes them; a copy
        that another thread may read."""
        data, texts, barriers = self.spans.since(0)[1], [*self.texts.texts], list(self.barriers)
        return self._kept(system, data, texts, barriers)

    def _kept(self, system, data, texts, barriers):
        wanted = range(len(texts)) if not system else [n for n, text in enumerate(texts) if text == system]
        for row in self.spans.form.iter_unpack(data):
            began, seconds, low, high, count, failed, step, slave, lane, owner, kind, attempt = row
            if owner in wanted:
                yield ("run", texts[owner], low | high << 32, count, failed, attempt, texts[slave], lane, began,
                       began + seconds, step, texts[kind])
        for when, owner, step in barriers:
            if system in ("", owner):
                yield "barrier", when, owner, step, False

    def system_step(self, owner: str, step: int, waiting: bool, now: float) -> None:
        """A system is in this step, or waits at its end for a person."""
        work = self.works.get(owner)
        if work is not None:
            work.waiting = waiting
            work.look()
            if step != work.step:
                work.step = step
                self.barriers.append((now, owner, step))

    def system_paused(self, owner: str, paused: bool) -> None:
        """A person has stopped a system, or lets it go on."""
        if owner in self.works:
            self.works[owner].paused = paused
            self.works[owner].look()

    def system_runs_on(self, owner: str) -> None:
        """A person lets a system wait at no further barrier."""
        if owner in self.works:
            self.works[owner].by_hand = False

    def system_shown(self, owner: str, version: int) -> None:
        """A system has a picture, the how manyth it is."""
        if owner in self.works:
            self.works[owner].view = version

    def owner_ended(self, owner: str, failure: dict | None, now: float, result: str = "") -> None:
        """An owner is done; of the last systems it is kept how they ended, and with what result, in a few words."""
        work = self.works.pop(owner, None)
        if work is not None and owner != work.client:
            work.state = "done" if failure is None else "cancelled" if failure.get("kind") == "cancelled" else "failed"
            kept = failure or {}
            work.error = failure and {key: str(kept.get(key) or "")[:1000] for key in ("type", "message", "where")}
            work.elapsed, work.result = now - work.since, result[:tasks.BRIEF] or None
            self.ended[owner] = work
            if len(self.ended) > ENDED_KEPT:
                self.ended.popitem(last=False)

    def slave_joined(self, slave: str, host: str, python: str, sandbox: str) -> None:
        """A slave is here."""
        self.slaves[slave] = Seen(slave, host, python, sandbox)
        self._sort()

    def slave_changed(self) -> None:
        """A slave has more workers than before, or fewer."""
        self._stale = True

    def slave_gone(self, slave: str, lost: str, tasks: int, now: float) -> None:
        """A slave has left, or was `lost` for this reason with so many tasks."""
        seen, known = self.slaves.get(slave), self.board.slaves.get(slave)
        if seen is not None and lost and known is not None:
            seen.lost, seen.running = (now, lost, tasks, known.workers, known.done_tasks), {}
        else:
            self.slaves.pop(slave, None)
        lost = [name for name, one in self.slaves.items() if one.lost]
        for name in lost[:-MOST_LOST]:
            del self.slaves[name]
        self._sort()

    @property
    def names(self) -> list[str]:
        """Of the slaves, as a person would sort them."""
        if self._names is None:
            self._names = sorted(self.slaves, key=lambda name: self.slaves[name].key)
        return self._names

    def _sort(self) -> None:
        self._names, self._stale = None, True
        self._orders.clear()

    def vitals(self, slave: str, cpu: float | None, memory: int | None, trip: float | None, running: dict) -> None:
        """How a slave is: share of its machine's processors that is busy, bytes, seconds; lease -> lane of what
        runs."""
        seen = self.slaves.get(slave)
        if seen is not None:
            seen.cpu, seen.memory, seen.trip, seen.running = cpu, memory, trip, running

    # -- each second

    def sample(self, now: float, notes: Collection = ()) -> None:
        """Takes its samples; to be called once a second. `notes`: what the node has to say to the attention of people.
        """
        workers, busy, _ = self._size()
        self._average()
        self._orders.clear()
        then, done, failed = self._past[-1][:3] if self._past else (now - 1.0, self.done, self.failed)
        self._past.append((now, self.done, self.failed, busy / workers if workers else 0.0))
        self._serials.append((now, self.spans.seen))
        passed, queued = max(0.1, now - then), self.queued
        times, self._times = self._times, components.Series()
        self.seconds.put(now, (self.done - done) / passed, (self.failed - failed) / passed, queued, busy,
                         *times.quantiles(0.5, 0.95))
        self._minute.merge(times)
        if self.seconds.seen % 60 == 0:
            self._end_minute()
        for work in self.works.values():
            work.sample()
        full = 0 < workers <= busy and queued > 0
        if self._queue_then < 0 or not (full and self._was_full):
            self._finished_at, self._queue_then = now, queued
        self._was_full = full
        self._tidy(now)
        self.attention = self._attention(now, workers, queued, notes)

    def _size(self) -> tuple[int, int, int]:
        """Workers, how many of these are busy, and tasks in the hands of slaves."""
        slaves = self.board.slaves.values()
        workers, held = [slave.workers for slave in slaves], [len(slave.leases) for slave in slaves]
        return sum(workers), sum(map(min, held, workers)), sum([slave.open_tasks for slave in slaves])

    def _average(self) -> None:
        for name, slave in self.board.slaves.items():
            seen = self.slaves.get(name)
            if seen is not None:
                share = min(1.0, len(slave.leases) / slave.workers) if slave.workers else 0.0
                seen.mean += 0.33 * (share - seen.mean)

    @property
    def queued(self) -> int:
        """Tasks that wait."""
        return sum([user.queued for user in self.board.users.values()])

    def _end_minute(self) -> None:
        rows = self.seconds.last(60)
        means = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:5]]
        self.minutes.put(rows[-1][0], *means, *self._minute.quantiles(0.5, 0.95))
        self._minute.clear()

    def _tidy(self, now: float) -> None:
        """Forgets lost slaves, texts and films that nobody needs, and lays the lanes out anew if that is to be done."""
        for name in [name for name, seen in self.slaves.items() if seen.lost and now - seen.lost[0] > LOST_KEPT]:
            del self.slaves[name]
            self._sort()
        if len(self.texts) > MOST_TEXTS:
            rows = list(self.spans.form.iter_unpack(self.spans.since(0)[1]))
            self.texts.keep({number for row in rows for number in (row[7], row[9], row[10])})
        self._wanted = {text: asked for text, asked in [*self._wanted.items()][-8:] if now - asked < WATCHED}
        for key in [key for key, film in self._films.items() if now - film.asked > WATCHED]:
            self._drop_film(key)
        if self._stale or (len(self.slaves) > MOST_LANES and self.seconds.seen % REVIEW_EVERY == 0):
            self._lay_out(now)

    def _lay_out(self, now: float) -> None:
        self._stale = False
        names = sorted(self.names, key=lambda name: self._dullness(name, now))
        freed = self.lanes.fit([(name, self._workers(name)) for name in names])
        for grid in (self.grid, *(film.grid for film in self._live)):
            grid.clear(freed)

    def _dullness(self, name: str, now: float) -> int:
        """Which slaves come first if not all can be shown: what is lost, fails, or is slow."""
        seen, slave = self.slaves[name], self.board.slaves.get(name)
        if len(self.slaves) <= MOST_LANES:
            return 0
        if any(self._fits(name, text) for text in self._wanted):
            return -1
        if slave is None or seen.lost:
            return 0
        return 1 if now - seen.failed_at < RECENTLY else 2 if slave.pace > 2 else 3

    def _workers(self, name: str) -> int:
        slave, seen = self.board.slaves.get(name), self.slaves.get(name)
        return slave.workers if slave else seen.lost[3] if seen and seen.lost else 0

    # -- what a person should hear of

    def _attention(self, now: float, workers: int, queued: int, notes: Collection) -> list[list]:
        """[level, kind, text, place], the worst first."""
        found = [*self._without_workers(workers, queued), *self._stuck(now, queued), *notes]
        found += [*self._of_slaves(now), *self._of_works(now)]
        return sorted(found, key=lambda one: one[0] != "error")[:3]

    def _without_workers(self, workers: int, queued: int) -> Iterable[list]:
        if not self.board.slaves:
            waits = f": {queued:,} tasks wait" if queued else ""
            yield ["error" if queued else "warn", "no slave", f"no slave is connected{waits}", "#slaves"]
        elif queued and not workers:
            yield ["error", "no worker", f"no slave has a worker: {queued:,} tasks wait", "#slaves"]
        for demand in self.board.demands.values():
            if demand.wanting:
                yield ["error", "unplaceable", f"{demand.tasks:,} tasks wait in vain: {demand.wanting}", "#slaves"]

    def _stuck(self, now: float, queued: int) -> Iterable[list]:
        """Nothing ends, nobody is free, and the queue grows."""
        still = now - self._finished_at
        if self._was_full and still >= STUCK and queued > self._queue_then:
            more = f"{queued - self._queue_then:,} tasks more wait, {queued:,} in all"
            yield ["error", "stuck", f"no task has ended for {still:.0f} s, no worker is free, and {more}", "#slaves"]

    def _of_slaves(self, now: float) -> Iterable[list]:
        for name, seen in self.slaves.items():
            if seen.lost:
                at, _, held, *_ = seen.lost
                text = (f"slave {name} on {seen.host} was lost {now - at:.0f} s ago: {held:,} tasks went back to the "
                        "queue")
                yield ["error" if now - at < RECENTLY else "warn", "slave lost", text, f"#slave={name}"]
        ours = rpc.minor_version()
        others = [(name, seen) for name, seen in self.slaves.items() if seen.python and seen.python != ours]
        if others:
            name, seen = others[0]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            text = f"slave {name}{more} runs Python {seen.python}, the master {ours}"
            yield ["warn", "version", text, f"#slave={name}"]

    def _of_works(self, now: float) -> Iterable[list]:
        for work in self.works.values():
            if work.failed and work.last:
                what = f"system {work.id} {work.app}" if work.client != work.id else f"client {work.id}"
                place = f"#system={work.id}" if work.client != work.id else "#errors"
                tasks = f"{work.failed:,} task{'' if work.failed == 1 else 's'}"
                yield ["error", "failures", f"{tasks} failed in {what} ({work.last or '?'})", place]
            if work.client != work.id:
                yield from self._straggler(work, now)

    def _straggler(self, work: Work, now: float) -> Iterable[list]:
        """The last task of a step that takes far longer than others did."""
        owner = self.board.owners.get(work.id)
        left = work.known - work.done
        if owner is None or owner.lines or not 0 < left <= SHOWN or not work.times.n:
            return
        median = work.times.quantiles(0.5)[0]
        batches = itertools.islice(owner.batches.values(), 1000)
        leases = [lease for batch in batches for lease in batch.leases.values() if not lease.revoked]
        oldest = min(leases, key=lambda lease: lease.since, default=None)
        if oldest is not None and now - oldest.since > max(1.0, STRAGGLES * median):
            which = f"{left} task{'' if left == 1 else 's'}"
            lane = self.slaves[oldest.slave.id].running.get(oldest.id) if oldest.slave.id in self.slaves else None
            where = oldest.slave.id if lane is None else f"{oldest.slave.id}/w{lane}"
            text = (f"step {work.step} of system {work.id} {work.app} waits for {which} on {where}, "
                    f"{now - oldest.since:,.1f} s, median {median:.2g} s")
            yield ["warn", "straggler", text, f"#task={oldest.batch.task_id(oldest.lo)}"]

    # -- copying, in the thread of the loop

    def copy(self, asked: Asked, now: float) -> Copy:
        """What an answer is made of. It takes well under a millisecond, whatever is here."""
        if asked.lane_filter and asked.whole:
            self._want(asked.lane_filter, now)
        mode, first, film = self._mode(asked, now)
        limit = int((now - SETTLED) / film.grid.width) if film else 0
        spans, columns, running = (self.spans.seen, b""), (0, []), []
        if film is None:
            key = self._key(asked, mode, self.lanes.layout)
            spans = self.spans.since(max(first, asked.after("span") if asked.cur.get("stream") == key else 0))
        elif film.end < limit:
            begin = max(film.end, limit - COLUMNS)
            columns, running = (begin, film.grid.of(begin, limit)), self._unheard(limit * film.grid.width)
            spans = spans if film.filled else self.spans.since(first)
        workers, busy, held = self._size()
        total, chosen = self._chosen(asked, now)
        layout = self.lanes.layout
        lanes = [lane for lane in layout.order if self._fits(lane[0], asked.lane_filter)]
        shown = lanes[asked.lanes[0] : asked.lanes[0] + asked.lanes[1]]
        running = self._running_rows(shown) if film is None else running
        return Copy(
            now, self._head(now, workers, busy), [total, [self._slave_row(name, now) for name in chosen]],
            self._systems(now, held), self._plain(held),
            self._steps_of(asked.opened), [shown, len(lanes)], [layout.rows[lane] for lane in shown],
            layout, spans, self.texts.texts, self.spans.seen,
            running, list(self.barriers),
            film and (film, limit), columns, list(self.failures), self._samples(asked.after("ts")),
            self.errors.since(int(asked_number(asked.cur.get("errors"), 0, -(2**62), 2**62))), self.attention,
        )

    def _mode(self, asked: Asked, now: float) -> tuple[str, int, Film | None]:
        """"spans" with the serial of the first in the window, or "density" with the film that shows it."""
        first = self._serial_at(now - asked.window - SETTLED)
        many = self.spans.seen - first
        if self.keeps and self.lanes.layout.by_worker and many <= SPANS_SHOWN:
            return "spans", first, None
        system = asked.system if asked.whole else ""
        key = asked.window / COLUMNS, system
        fine = self.keeps and (system or (asked.window <= 60 and many <= self.spans.size))
        if not fine or (key not in self._films and now < self._next_film):
            fine, key = False, (1.0, "")  # which is always there
        film = self._films.get(key) or self._begin_film(*key, fine, now)
        self._films.move_to_end(key)
        film.asked = now
        return "density", first, film

    def _want(self, text: str, now: float) -> None:
        """An administrator looks for slaves, which have lanes before others for a while."""
        if text not in self._wanted and len(self.slaves) > MOST_LANES:
            self._stale = True
        self._wanted[text] = now

    def _begin_film(self, width: float, system: str, fine: bool, now: float) -> Film:
        self._next_film = now + NEXT_FILM if fine else self._next_film
        film = self._films[width, system] = Film(Grid(width) if fine else self.grid, system, self.spans.seen)
        film.filled = not fine
        self._live += [film] if fine else []
        if len(self._films) > MOST_FILMS:
            self._drop_film(next(iter(self._films)))
        return film

    def _drop_film(self, key: tuple) -> None:
        film = self._films.pop(key)
        self._live = [one for one in self._live if one is not film]

    def _serial_at(self, when: float) -> int:
        """The serial of the first span that was heard of after that."""
        serial = self.spans.seen if not self._serials else self._serials[0][1]
        for then, seen in reversed(self._serials):
            if then <= when:
                return seen
            serial = seen
        return serial if len(self._serials) == COLUMNS else 0

    @staticmethod
    def _key(asked: Asked, mode: str, layout: Layout) -> str:
        """What an answer must have in common with the one before it to go on from there."""
        return f"{mode} {asked.window} {asked.lanes} {asked.system} {asked.lane_filter} {layout.version}"

    def _head(self, now: float, workers: int, busy: int) -> dict:
        past = self._past[0] if self._past else (self.since, 0, 0, 0.0)
        rate = (self.done - past[1]) / max(1.0, now - past[0])
        mean = sum([row[3] for row in self._past]) / len(self._past) if self._past else 0.0
        return {"slaves": len(self.board.slaves), "workers": workers, "busy": busy, "mean_busy": round(mean, 3),
                "rate": round(rate, 2), "queued": self.queued, "done": self.done, "failed": self.failed,
                "scheduler": type(self.board.scheduler).__name__, "uptime": round(now - self.since, 1)}

    def _chosen(self, asked: Asked, now: float) -> tuple[int, list[str]]:
        """How many slaves fit the filter, and those of them that are on the page."""
        names = [name for name in self._ordered(asked.sort.lstrip("-"), now) if self._fits(name, asked.filter)]
        first, count = asked.slaves
        return len(names), (names[::-1] if asked.sort.startswith("-") else names)[first : first + count]

    def _fits(self, name: str, text: str) -> bool:
        """Whether a slave is among those that a page asks for by a part of the name, or of its host's."""
        return not text or text in name.lower() or (name in self.slaves and text in self.slaves[name].host.lower())

    def _ordered(self, column: str, now: float) -> list[str]:
        """The names of all slaves, sorted at most once a second: that takes 3 ms for a thousand."""
        if column not in SLAVE_COLUMNS[1:]:
            return self.names
        if column not in self._orders:
            at = SLAVE_COLUMNS.index(column)
            rows = {name: self._slave_row(name, now)[at] for name in self.names}
            self._orders[column] = sorted(rows, key=lambda name: () if rows[name] is None else (rows[name],))
        return self._orders[column]

    def look_at(self, slave: str, now: float) -> dict[str, Any]:
        """A slave as its row has it, by the names of the columns."""
        return dict(zip(SLAVE_COLUMNS, self._slave_row(slave, now), strict=True))

    def _slave_row(self, name: str, now: float) -> list:
        seen, slave = self.slaves[name], self.board.slaves.get(name)
        if slave is None or seen.lost:
            at, _, _, workers, done = seen.lost or (now, "", 0, 0, 0)
            figures = "lost", workers, 0, 0.0, done
        else:
            state = "draining" if slave.draining else "quarantine" if slave.released else "up"
            at, held = self.heard_at(name), min(slave.workers, len(slave.leases))
            figures = state, slave.workers, held, round(seen.mean, 3), slave.done_tasks
        silent = None if at is None else round(max(0.0, now - at), 1)
        return [name, seen.host, *figures, seen.failed, seen.cpu, seen.memory, seen.trip, silent, seen.sandbox]

    def _systems(self, now: float, held: int) -> list[dict]:
        here = [work for work in self.works.values() if work.id != work.client][:WORKS_SHOWN]
        return [self._system_row(work, now, held) for work in (*here, *reversed(self.ended.values()))]

    def _system_row(self, work: Work, now: float, held: int) -> dict:
        running = self._in_hands(work, held)
        left = work.known - work.done
        eta = work.eta(left) if work.elapsed is None else None
        elapsed = now - work.since if work.elapsed is None else work.elapsed
        return {"id": work.id, "app": work.app, "client": work.client, "user": work.user, "state": work.state,
                "step": work.step, "tasks": work.known, "done": work.done, "running": running, "failed": work.failed,
                "rate": round(work.rate, 2), "eta": eta and round(eta, 1), "elapsed": round(elapsed, 1),
                "began": round(work.since, 1),
                "eta_rough": abs(work.rate - work.pace) > 0.3 * work.pace, "by_hand": work.by_hand,
                "speedup": round(work.busy / elapsed, 2) if work.elapsed and work.busy else None,
                "view": work.view, "error": work.error, "result": work.result}

    def _in_hands(self, work: Work, held: int) -> int:
        """How many tasks of an owner are with slaves, which have so many `held` in all: what waits for another attempt
        is nowhere else counted."""
        owner = self.board.owners.get(work.id)
        if owner is None or work.elapsed is not None:
            return 0
        left = work.known - work.done - sum([line.tasks for line in owner.lines.values()])
        return max(0, min(left, held))

    def _plain(self, held: int) -> list[dict]:
        works = [work for work in self.works.values() if work.id == work.client and work.known][:WORKS_SHOWN]
        return [{"id": work.id, "app": work.app, "user": work.user, "tasks": work.known, "done": work.done,
                 "running": self._in_hands(work, held), "failed": work.failed, "rate": round(work.rate, 2)}
                for work in works]

    def _steps_of(self, system: str) -> dict | None:
        if system not in self.works and system not in self.ended:
            return None
        rows = [step.row() for step in self.steps.values() if step.owner == system]
        return {"system": system, "rows": rows[-STEPS_SHOWN:]}

    def _unheard(self, before: float) -> list[tuple]:
        """(row, since) of what began before then, and of which nothing was heard yet."""
        by_worker, rows, *_ = self.lanes.layout
        if by_worker:
            return [(rows[lane], lease.since) for lane, lease in self._running(rows) if lease.since < before]
        return [(row, lease.since) for (name, _), row in rows.items() for lease in self._begun(name)
                if lease.since < before]

    def _running(self, lanes: Collection) -> list[tuple]:
        """What runs in these lanes of workers: (lane, lease)."""
        found = []
        for name in dict.fromkeys(lane[0] for lane in lanes):
            found += [((name, lane), lease) for lane, lease in self.running(name)]
        return [one for one in found if one[0] in lanes]

    def running(self, name: str) -> list[tuple]:
        """(lane, lease) of what runs at a slave and of which nothing was reported yet."""
        begun = self._begun(name)
        return list(zip(self._lanes_of(name, begun), begun, strict=True))

    def _begun(self, name: str) -> list[Lease]:
        slave = self.board.slaves.get(name)
        leases = itertools.islice(slave.leases.values(), slave.workers) if slave else ()
        return [lease for lease in leases if lease.open[0][0] == lease.lo]

    def _running_rows(self, shown: list) -> list[list]:
        """The same as the page gets it: place of the lane, since, owner, first, tasks."""
        places = {lane: place for place, lane in enumerate(shown)}
        return [[places[lane], round(lease.since, 3), lease.batch.owner.id, lease.batch.first + lease.lo, lease.tasks]
                for lane, lease in self._running(places)]

    def _lanes_of(self, name: str, leases: list) -> list[int]:
        """The lane of each lease, as its slave has told of those that run for a while; the others fill what is left."""
        known = self.slaves[name].running if name in self.slaves else {}
        told = {lease.id: known[lease.id] for lease in leases if lease.id in known}
        free = iter([lane for lane in range(self._workers(name) + len(leases)) if lane not in told.values()])
        return [told[lease.id] if lease.id in told else next(free) for lease in leases]

    def _samples(self, cursor: int) -> list:
        """(minutes before, seconds) as copies of what is new since a cursor."""
        seconds = self.seconds.since(cursor)
        minutes = self.minutes.since(0)[1] if not cursor else b""
        return [seconds, minutes]

    # -- telling, in any thread, one question at a time

    def tell(self, copy: Copy, asked: Asked, whole: bool) -> dict:
        """The answer, but for what is of the node itself; `whole`: with what tasks have said."""
        stream, cursor = self._tell_stream(copy, asked)
        (first, seconds), minutes = copy.samples
        systems = [{**row, "error": self._tell_error(row["error"], whole), "result": row["result"] if whole else None}
                   for row in copy.systems]
        errors = [rpc.Failures.told(group, whole) for group in copy.errors[1]]
        total, rows = copy.slaves
        return {
            "cur": {"span": copy.seen, "ts": first + len(seconds) // self.seconds.form.size, "errors": copy.errors[0],
                    **cursor},
            "head": copy.head, "attention": copy.attention, "systems": systems, "plain": copy.plain,
            "steps": copy.steps, "slaves": {"total": total, "columns": SLAVE_COLUMNS, "rows": rows}, "stream": stream,
            "ts": self._tell_samples(minutes, seconds), "errors": {"groups": copy.errors[2], "changed": errors},
        }

    @staticmethod
    def _tell_error(failure: dict | None, whole: bool) -> str | None:
        if failure is None:
            return None
        text = f"{failure['type']}: {failure['message']}" if whole else failure["type"]
        return f"{text} ({failure['where']})" if failure["where"] else text

    def _tell_samples(self, minutes: bytes, seconds: bytes) -> list:
        later = list(self.seconds.form.iter_unpack(seconds))
        first = later[0][0] if later else 0.0
        rows = [row for row in self.minutes.form.iter_unpack(minutes) if row[0] < first] + later
        return [[round(row[0], 3), *[float(f"{value:.4g}") for value in row[1:]]] for row in rows]

    def _tell_stream(self, copy: Copy, asked: Asked) -> tuple[dict, dict]:
        film, system = copy.film[0] if copy.film else None, copy.film[0].system if copy.film else asked.system
        about = {"lanes": copy.lanes[0], "total_lanes": copy.lanes[1], "kept": self.spans.size * self.keeps,
                 "seen": copy.seen, "system": system}
        key = self._key(asked, f"density {film.grid.width} {system}" if film else "spans", copy.layout)
        fresh, since = asked.cur.get("stream") != key, copy.now - asked.window
        if not fresh:
            since = max(since, asked_number(asked.cur.get("at"), 0.0, 0.0, copy.now))
        barriers = [[round(at, 3), system, step] for at, system, step in copy.barriers
                    if at > since and asked.system in ("", system)]
        if film is None:
            told = {"mode": "spans", "rows": self._tell_spans(copy, asked), "running": copy.running}
            cursor = {"span": copy.seen}
        else:
            told, column = self._tell_density(copy, asked, fresh)
            cursor = {"span": 0, "column": column}
        return {**told, "fresh": fresh, **about, "barriers": barriers}, {**cursor, "stream": key, "at": copy.now}

    def _tell_spans(self, copy: Copy, asked: Asked) -> list:
        first, data = copy.spans
        texts, rows = copy.texts, []
        places = {lane: place for place, lane in enumerate(copy.lanes[0])}
        for serial, row in enumerate(self.spans.form.iter_unpack(data), first):
            began, ran, low, high, tasks, failed, step, slave, lane, owner, kind, attempt = row
            place = places.get((texts[slave], lane))
            if place is not None and asked.system in ("", texts[owner]):
                rows.append([serial, place, round(began, 4), round(ran, 5), tasks, failed, step, texts[owner],
                             low | high << 32, attempt, texts[kind]])
        return rows

    def _tell_density(self, copy: Copy, asked: Asked, fresh: bool) -> tuple[dict, int]:
        film, limit = copy.film
        width = film.grid.width
        self._develop(copy, film)
        wanted = limit - min(COLUMNS, round(asked.window / width))
        if not fresh:
            wanted = max(wanted, asked.after("column"))
        first, data = film.told(wanted, copy.rows)
        places = {lane: place for place, lane in enumerate(copy.lanes[0])}
        failed = [[place, int(at / width) - first] for at, slave, lane, owner in copy.failed
                  if first <= int(at / width) < film.end and film.system in ("", owner)
                  and (place := places.get((slave, lane), places.get((slave, -1)))) is not None]
        return {"mode": "density", "from": round(first * width, 3), "column": width, "columns": film.end - first,
                "data": base64.b64encode(data).decode(), "failed": failed}, film.end

    def _develop(self, copy: Copy, film: Film) -> None:
        """Makes what is new of a film, unless somebody else has meanwhile."""
        first, columns = copy.columns
        if not film.filled:
            self._fill(copy, film)
        film.fit(copy.layout.rows)
        if columns and film.end <= first:
            film.make(first, columns, copy.running, copy.layout.scales)
        if film.past and film.end > film.past.newest:
            film.past = None

    def _fill(self, copy: Copy, film: Film) -> None:
        """Takes what was heard before the film's grid began from the spans that are kept."""
        first, data = copy.spans
        texts, (by_worker, rows, scales, *_) = copy.texts, copy.layout
        film.past, film.filled = Grid(film.grid.width), True
        for row in self.spans.form.iter_unpack(data[: max(0, film.since - first) * self.spans.form.size]):
            began, ran, *_, slave, lane, owner, _, _ = row
            place = rows.get((texts[slave], lane if by_worker else -1))
            if place is not None and film.system in ("", texts[owner]):
                film.past.add(place, scales[place], began, began + ran)

    def find(self, data: tuple[int, bytes], texts: list, owner: str, ordinal: int) -> dict | None:
        """The last span of a task among copied rows, as an object."""
        size, rows = self.spans.form.size, memoryview(data[1])
        number = self.texts.get(owner)
        for at in range(len(rows) - size, -1, -size) if number is not None else ():
            row = self.spans.form.unpack_from(rows, at)
            began, ran, low, high, tasks, failed, step, slave, lane, whose, kind, attempt = row
            first = low | high << 32
            if whose == number and first <= ordinal < first + tasks:
                return {"began": round(began, 4), "seconds": round(ran, 5), "first": f"{owner}.{first}", "tasks": tasks,
                        "failed": failed, "step": step, "slave": texts[slave], "lane": lane, "kind": texts[kind],
                        "attempt": attempt}
        return None


# -- applications that people start --------------------------------------------------------------------------------

MOST_SOURCE = 256 * 1024  # bytes of one
MOST_UPLOADS = 100  # kept; the oldest goes first
MOST_RUNS = 4  # at once
RUNS_KEPT = 20  # of those that have ended
MOST_ARGUMENTS = 8 * 1024  # characters
SHOWN_OUTPUT = 2000  # characters of what a run has printed, in the list of all


class Run:
    """A client process that a person has started."""

    def __init__(self, number: int, app: str, name: str, arguments: list[str]):
        self.id, self.app, self.name, self.arguments = str(number), app, name, arguments
        self.began, self.seconds, self.pid = time.monotonic(), 0.0, 0
        self.how = self._said = ""  # how it ended, and what it printed
        self.ear: tasks.Ear | None = None

    def ended(self, how: str) -> None:
        """Its process is gone."""
        self.ear.settle()
        self.ear.close()
        self.how, self.seconds, self._said, self.ear = how, time.monotonic() - self.began, self.ear.output.last(), None

    def row(self, characters: int) -> dict[str, Any]:
        """What people are told, with so many characters of its output, the last ones."""
        code = self.how.removeprefix("exit code ")
        said = self.ear.output.last() if self.ear else self._said
        return {"id": self.id, "app": self.app, "name": self.name, "arguments": self.arguments,
                "state": "ended" if self.how else "running", "code": int(code) if code.isdecimal() else None,
                "how": self.how, "seconds": round(self.seconds or time.monotonic() - self.began, 1),
                "output": said[-characters:]}


class Uploads:
    """Applications that people have sent, and the client processes that run them, each as confined as its node can:
    it reads Python and the application, writes in a folder that goes with it, and connects to this master alone.
    `upload` and `start` are for other threads than the loop's, to which all else belongs."""

    def __init__(self, node: MasterNode):
        self._node, self._folder = node, node.environment / "uploads"
        self.allowed = node.uploads == "yes" or (node.uploads == "loopback" and rpc.is_loopback(node.host))
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards the folder of sources
        self._key = ""  # of all their clients
        self._runs: dict[str, Run] = {}
        self._running: dict[int, tuple[Run, rpc.Pipe]] = {}  # by token of the zygote

    def upload(self, name: str, source: str) -> str:
        """Keeps a source; returns the id of the application. Raises RpcError."""
        self._check_allowed()
        data = source.encode()
        if not re.fullmatch(r"[A-Za-z_]\w{0,99}\.py", name, re.ASCII):
            raise components.UsageError(f"{name[:100]!r} is no name for an application", "it is a file such as md5.py")
        if len(data) > MOST_SOURCE:
            raise rpc.RpcError(rpc.TOO_LARGE, f"{name} has {len(data):,} bytes", {
                "why": f"up to {MOST_SOURCE:,} are taken", "fix": "run it with client.py from where it is"})
        app = hashlib.sha256(f"{name}\0".encode() + data).hexdigest()[:16]
        try:
            with self._lock:
                self._keep(self._folder / app / name, data)
        except OSError as error:
            raise components.Error(f"{name} cannot be kept", str(error), "make room on the master's disk") from None
        return app

    def _keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        with components.replacing(path, 0o600) as file:
            file.write(data)
        os.utime(path.parent)
        for old in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST_UPLOADS]:
            shutil.rmtree(old, ignore_errors=True)

    def start(self, app: str, arguments: list) -> dict[str, Any]:
        """Starts a client process for an application. Raises Error."""
        self._check_allowed()
        sources = [*(self._folder / app).glob("*.py")] if re.fullmatch("[0-9a-f]{16}", app) else []
        if not sources:
            raise unknown(f"there is no application {app[:40]}", "it was not uploaded here, or long ago", "upload it")
        texts = all(isinstance(one, str) and "\0" not in one for one in arguments)
        if not texts or sum(map(len, arguments)) > MOST_ARGUMENTS or len(arguments) > MOST_ARGUMENTS // 80:
            raise components.UsageError("the arguments cannot be passed", "they are a few texts, as in a command line")
        run = Run(next(self._numbers), app, sources[0].name, arguments)
        confinement = self._node.guard.of_client(list(self._node.loopback_addresses()))
        try:
            command = self._prepare(run, sources[0], Path(confinement.folder))
            return self._node.loop.ask(lambda: self._begin(run, sources[0], confinement, command))
        except (OSError, Error) as error:
            tasks.remove_tree(confinement.folder)
            raise error if isinstance(error, Error) else Error(f"{run.name} cannot be started", str(error)) from None

    def stop(self, number: str) -> dict[str, Any]:
        """Ends a run at once; its work at the master goes with it. Raises RpcError."""
        if number not in self._runs:
            raise unknown(f"there is no run {number[:40]}", f"here are: {', '.join(self._runs) or 'none'}")
        for token in [token for token, (run, _) in self._running.items() if run.id == number]:
            self._node.zygote.kill(token)
        return {"run": number, "running": not self._runs[number].how}

    def rows(self, number: str = "") -> list[dict[str, Any]]:
        """A row for each run, or for one with all that is kept of its output, the newest first."""
        shown = tasks.OUTPUT_KEPT if number else SHOWN_OUTPUT
        return [run.row(shown) for run in reversed(self._runs.values()) if number in ("", run.id)]

    def born(self, token: int, pid: int) -> None:
        """A child of the zygote has begun."""
        if token in self._running:
            self._running[token][0].pid = pid

    def died(self, token: int, how: str) -> None:
        """A child of the zygote has ended."""
        if token in self._running:
            run = self._end(token, how)
            for peer in self._node.peers_of(self._key):
                if peer.info.get("pid") == run.pid:  # what it had no time to say
                    self._node.channel.drop(peer, "its process ended")
            for old in [one.id for one in self._runs.values() if one.how][:-RUNS_KEPT]:
                del self._runs[old]

    def _end(self, token: int, how: str) -> Run:
        run, pipe = self._running.pop(token)
        pipe.close()
        run.ended(how)
        log.info("run %s of %s ended: %s", run.id, run.name, how)
        return run

    @property
    def tokens(self) -> list[int]:
        """Of the children that run."""
        return list(self._running)

    def close(self) -> None:
        """The node has ended, and all that it forked."""
        for token in self.tokens:
            self._end(token, "it goes with the master")

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise rpc.RpcError(rpc.NOT_ALLOWED, "this master takes no applications from its page", {
                "why": f"master.uploads is {self._node.uploads}", "fix": "start it with --set master.uploads=yes"})

    def _prepare(self, run: Run, source: Path, folder: Path) -> list[str]:
        """Makes the folder of a run, with what lets it in; returns its command line."""
        node, (http, tcp) = self._node, self._node.loopback_addresses()
        folder.mkdir(0o700, parents=True)
        keys = components.Environment(folder / "client", "client").create() / "keys"
        own = rpc.NodeKeys(str(node.environment / "uploads-keys"))  # one for all of them, for it is let in for good
        rpc.append_private(str(keys / "node.json"), own.to_text())
        self._key = own.public_key
        access = node.keyring.access("client", {**node.addresses, "http": http, "tcp": tcp})
        rpc.append_private(str(folder / "client.access"), json.dumps(access))
        settings = ["client.page=no", "client.on_disconnect=cancel", "node.by_reference=no",
                    f"node.compute_address={tcp}"]
        return [sys.executable, "-m", f"{__package__}.client", str(source), "--master", http, "--access",
                str(folder / "client.access"), "--env", str(folder / "client"),
                *(word for setting in settings for word in ("--set", setting)), *run.arguments]

    def _begin(self, run: Run, source: Path, confinement: tasks.Confinement, command: list[str]) -> dict[str, Any]:
        node, app = self._node, str(source.parent)
        if len(self._running) >= MOST_RUNS:
            raise rpc.RpcError(rpc.TOO_MANY, f"{MOST_RUNS} applications run already", {
                "why": "no more may at once", "fix": "stop one, or run it with client.py elsewhere"})
        token, sock, run.ear = tasks.fork_heard(node.zygote, "program", app, confinement, node.loop, 0)
        run.ear.send = lambda pieces: None  # it is asked for what it keeps
        pipe = rpc.Pipe(node.loop, sock, lambda pipe, call, parts: self._heard(token, call), lambda pipe: pipe.close())
        path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        pipe.call("program", command, {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"})
        self._running[token], self._runs[run.id] = (run, pipe), run
        log.info("run %s of %s %s began", run.id, run.name, " ".join(run.arguments))
        return {"run": run.id, "app": run.app, "name": run.name, "running": len(self._running), "most": MOST_RUNS}

    def _heard(self, token: int, call: list) -> None:
        """What it has applied of the sandbox: all, or it ends."""
        guard, told = self._node.guard, call[1] if len(call) == 2 else None
        if call[0] == "confined" and not (type(told) is dict and guard.is_whole({**told, "uid": guard.applied["uid"]})):
            log.error("an application is not started: of the sandbox it has applied %s", told)
            self._node.zygote.kill(token)
# -- what is measured ----------------------------------------------------------------------------------------------

REMEMBERED = 50  # systems, clients and slaves that are gone, of which the figures stay in memory
MOST_SCOPES = 100  # slaves, and classes of tasks, that are measured one by one
HISTOGRAMS = (("task_seconds", "task", "Seconds that a task took; of those in one lease, the mean."),
              ("queue_seconds", "queue", "Seconds that tasks waited for their lease."))
TOTALS = (("unpickling_seconds", "unpickle", "Seconds in which workers opened tasks."),
          ("pickling_seconds", "pickle", "Seconds in which workers packed results."),
          ("transfer_seconds", "transfer", "Seconds of leases on their way, and in a slave's queue."),
          ("sent_bytes", "sent", "Bytes of tasks that went to slaves."),
          ("received_bytes", "received", "Bytes of results that came from slaves."))
OF_SPANS = ("queue", "transfer", "unpickle", "run", "pickle", "sent", "received", "tasks", "failed")


def summed_up(spans: list[Span]) -> dict[str, components.Series]:
    """What parts of leases say, in one series for each thing that is measured: seconds until they were sent, between
    master and worker, and in the worker; bytes both ways; tasks, and those of them that failed."""
    (_, _, counts, failed, _, _, _, queued, leased, began, ended, heard, opening, packing, _, _, sent,
     received) = zip(*spans, strict=True)
    away = [b - a + d - c for a, b, c, d in zip(leased, began, ended, heard, strict=True)]
    run = [max(0.0, b - a - c - d) for a, b, c, d in zip(began, ended, opening, packing, strict=True)]
    columns = map(sub, leased, queued), away, opening, run, packing, sent, received, counts, failed
    weights = None if {*counts} == {1} else counts
    found = {f"swarm.{name}": components.Series() for name in (*OF_SPANS, "task")}
    for name, values in zip(OF_SPANS, columns, strict=True):
        found[f"swarm.{name}"].add(values, weights if name == "queue" else None)
    found["swarm.task"].add(run if weights is None else map(truediv, run, weights), weights)
    return found


def grouped(spans: list[Span], name: str, whose: Callable[[Any], Any] = lambda key: key) -> dict[Any, list[Span]]:
    """The same spans in their order, by what they have in this field, or by whose that is."""
    place = Span._fields.index(name)
    keys = {key: whose(key) for key in {*map(itemgetter(place), spans)}}
    if len({*keys.values()}) == 1:
        return {keys[spans[0][place]]: spans}
    groups: collections.defaultdict = collections.defaultdict(list)
    for span in spans:
        groups[keys[span[place]]].append(span)
    return groups


class Measures:
    """Figures by scope: "" the node, a system's or client's name, `slave:NAME`, `class:NAME`."""

    def __init__(self, node: components.Stats):
        self._scopes: dict[str, components.Stats] = {"": node}
        self._gone: dict[str, None] = {}  # scopes of what is not here any more, the first to go first
        self._lock = threading.RLock()

    def hear(self, spans: list[Span]) -> None:
        """Parts of leases were reported."""
        for owner, some in grouped(spans, "owner").items():
            self._add(owner, some)

    def _add(self, owner, spans):
        whole = summed_up(spans)
        scopes = [("", whole), (owner, whole)]
        for field, scope in (("slave", "slave:"), ("kind", "class:")):
            scopes += [(self._bounded(scope, name), whole if some is spans else summed_up(some))
                       for name, some in grouped(spans, field).items()]
        for scope, found in scopes:
            stats = self.of(scope)
            for name, one in found.items():
                stats.merge(name, one)

    def _bounded(self, kind, name):
        name = kind + name
        known = name in self._scopes or sum(one.startswith(kind) for one in list(self._scopes)) < MOST_SCOPES
        return name if known else f"{kind}(others)"

    def of(self, scope: str) -> components.SystemStats:
        """The figures of a scope, which may be new."""
        with self._lock:
            if scope not in self._scopes:
                self._scopes[scope] = components.SystemStats(tasks.FIGURES + len(OF_SPANS) + 1)
            return self._scopes[scope]

    def take_in(self, owner: str, kind: str, figures: Any) -> None:
        """What tasks of a class have recorded themselves. Raises ValueError if it is not whole."""
        components.check_names(figures)
        self.of(owner).take_in(figures)
        self.of(self._bounded("class:", kind)).take_in(figures)

    def forget(self, living: set[str]) -> None:
        """Lets go of systems, clients and slaves that have gone, but for the last ones."""
        with self._lock:
            gone = [one for one in self._scopes if one not in living and not one.startswith("class:")]
            self._gone = {one: None for one in [*self._gone, *gone] if one in gone}
            for scope in list(self._gone)[:-REMEMBERED]:
                del self._gone[scope], self._scopes[scope]

    def scopes(self) -> dict[str, components.Stats]:
        """All of it."""
        with self._lock:
            return dict(self._scopes)


# -- the master ----------------------------------------------------------------------------------------------------

COUNT_EVERY = 10.0  # seconds between two lines that count failed tasks
SWEEP_EVERY = 1.0  # seconds between two looks at configuration, plug-ins and the swarm
TOGETHER = 16  # reports of slaves that are dealt with at once: more would keep their slaves waiting
ACCEPT_EVERY = 0.01  # seconds that the news of accepted batches may wait for more of its kind
MOST_WORKERS = 10_000  # of one slave
SLAVES_MEASURED = 200  # that have samples of their own in /metrics
GRACE = 10.0  # seconds that a stopping master lets tasks run on
REGATHER = 5.0  # seconds that a master which was started again waits for the slaves that it had
WANTED_FOR = 10.0  # seconds that a published object which is not here may still come
FAILURES_TOLD = 1000  # kinds of failures that are logged
NO_WORK = 0.0, 0.0, 0  # of a client that was not heard of
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NEVER_SENT = "its application was never sent here"
TELL_EVERY = 0.25  # seconds between two reports of progress to a client
PAUSED = "a person has paused it"
VIEWS_KEPT = 40  # pictures of task systems, of up to `tasks.MOST_VIEW` bytes
REMOVED_KEPT = 1000  # slaves that were removed and may not join again


def parse_task_id(task: str) -> tuple[str, int]:
    """Owner and ordinal of a task's id, such as c1.17. Raises UsageError."""
    owner, _, ordinal = task.rpartition(".")
    if not (owner and ordinal.isascii() and ordinal.isdecimal() and len(ordinal) < 16):
        why = "it is the name of a client or a task system, a dot, and a number: c1.17, or 3.17"
        raise components.UsageError(f"{task[:80]!r} is no id of a task", why)
    return owner, int(ordinal)


def check_version(role: str, info: dict) -> None:
    """Raises Error for a node of another version, and logs one that runs another Python."""
    theirs, ours = str(info.get("version")), components.__version__
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise components.Error(f"this {role} has concurrent_swarm {theirs}; the master has {ours}",
                               "nodes of a swarm need the same version",
                               f"python -m pip install concurrent-swarm=={ours}")
    python, here = str(info.get("python")), ".".join(map(str, sys.version_info[:2]))
    if not python.startswith(f"{here}."):
        log.warning("a %s runs Python %s, the master %s: tasks must suit both", role, python, here)


MOST_THINGS = 1 << 53  # what any JSON can hold


def check_whole(*numbers: Any) -> None:
    """Raises UsageError unless all are numbers of things: what a peer sends may be anything."""
    if {*map(type, numbers)} - {int} or (numbers and not 0 <= min(numbers) <= max(numbers) < MOST_THINGS):
        shown = ", ".join(str(number)[:80] for number in numbers[:10])
        raise components.UsageError(f"one of {shown} is no number of a thing", "whole numbers from 0 are meant")


def read_options(parts: list) -> dict:
    """The head of a batch that somebody submits. Raises UsageError if it has none."""
    try:
        if not parts or len(parts[0]) > tasks.MOST_HEAD:
            raise ValueError(f"{len(parts)} parts, the first of at most {tasks.MOST_HEAD:,} bytes")
        return tasks.read_head(bytes(parts[0]))
    except ValueError as error:
        raise components.UsageError("the batch has no head that can be read", str(error)) from None


@functools.lru_cache(maxsize=1024)
def completed(head: bytes, user: str, limits: str) -> bytes:
    """The head of a batch, with the user whose tasks they are, for workers serve one alone, and the limits of this
    master (as JSON, or empty) for what they do not say."""
    more = {"default_limits": json.loads(limits)} if limits else {}
    return json.dumps({**tasks.read_head(head), **more, "user": user}).encode()


FAILURE_BYTES = 2 * 1024 * 1024  # of one as JSON
FAILURE_TEXTS = ("type", "message", "traceback", "where", "kind", "pickle", "output", "hidden")


def check_report(lease: Any, lo: Any, hi: Any, failures: Any = None, spent: Any = ()) -> None:
    """Raises UsageError unless a slave's report names a range, failures are objects by ordinal of a sane size, and
    `spent`, if there is any, tells how the report came about: [lane, microseconds ago at which the worker began and
    ended, microseconds of opening tasks and of packing results]."""
    if type(spent) not in (list, tuple) or len(spent) not in (0, 5):
        raise components.UsageError("what a report says of its time cannot be", "five numbers are meant")
    check_whole(lease, lo, hi, *spent)
    if spent and spent[1] < spent[2]:
        raise components.UsageError("a report ends before it begins", f"{spent[1]} and {spent[2]} µs ago")
    if lo >= hi:
        raise components.UsageError(f"{lo}..{hi} holds no task", "a report names at least one")
    if failures and not (type(failures) is dict and all(itertools.starmap(_is_failure, failures.items()))):
        raise components.UsageError("the failures of a report are no objects", "an object by ordinal is meant")
    if failures and (len(failures) > hi - lo or len(json.dumps(failures)) > FAILURE_BYTES * len(failures)):
        raise components.UsageError("the failures of a report are too many, or too large",
                                    f"one a task is meant, of at most {FAILURE_BYTES:,} bytes")


def _is_failure(key: str, one: Any) -> bool:
    """Whether a slave may say this of a task; the marks are the Board's."""
    named = key == "*" or (key.isdecimal() and len(key) < 16)
    return named and type(one) is dict and "again" not in one and "retried" not in one and _is_told(one)


def _is_told(one: Any) -> bool:
    """Whether it describes a failure in the types that everybody reads it by, its causes too."""
    texts = all(type(one.get(name, "")) is str for name in FAILURE_TEXTS)
    cause, notes = one.get("cause", {}), one.get("notes", [])
    texts = texts and type(notes) is list and {*map(type, notes)} <= {str}
    numbers = type(one.get("attempt", 1)) is int and tasks.is_limit(one.get("retries", 0))
    return texts and numbers and type(cause) is dict and (not cause or _is_told(cause))


def _is_summary(stats: dict) -> bool:
    """Whether a host may say this of a system that has ended: its client adds it up."""
    numbers = all(tasks.is_limit(stats.get(name, 0)) for name in ("tasks", "done", "failed", "steps", "seconds"))
    return numbers and type(stats.get("failures", [])) is list and type(stats.get("records", {})) is dict


def check_snapshot(heard: Any, batches: Any, out: Any, drawn: Any, ended: Any) -> None:
    """Raises UsageError unless a host says what its snapshot stands for: four numbers, and ranges by batch, upwards."""
    check_whole(heard, batches, drawn, ended)
    rows = out if type(out) is list else [None]
    pairs = [row for row in rows if type(row) is list and len(row) == 2 and type(row[1]) is list]
    ranges = [one for _, some in pairs for one in some if type(one) is list and len(one) == 2]
    if len(pairs) < len(rows) or len(ranges) < sum(len(some) for _, some in pairs):
        raise components.UsageError("what is out at a snapshot is no table", "[number, [[lo, hi]…]] a batch is meant")
    for number, some in pairs:
        edges = list(itertools.chain.from_iterable(some))
        check_whole(number, *edges)
        if edges != sorted(set(edges)):
            raise components.UsageError(f"the ranges {str(some)[:80]} are in no order", "they go up, and touch nowhere")


def check_output(pieces: Any) -> None:
    """Raises UsageError unless a slave tells output as [lo, hi, text, dropped] for ranges of tasks."""
    if type(pieces) is not list or not all(type(one) is list and len(one) == 4 for one in pieces):
        raise components.UsageError("the output of tasks is no list of pieces", "[lo, hi, text, dropped] is meant")
    check_whole(*(number for lo, hi, _, dropped in pieces for number in (lo, hi, dropped)))
    if not all(type(one[2]) is str for one in pieces):
        raise components.UsageError("a piece of output is no text", "[lo, hi, text, dropped] is meant")


def check_offer(amounts: Any, workers: Any, tags: Any = ()) -> None:
    """Raises UsageError unless a slave offers amounts by name, a number of workers, and words."""
    check_whole(workers)
    numbers = list(amounts.values()) if type(amounts) is dict else [None]
    if not all(map(tasks.is_limit, numbers)):
        raise components.UsageError(f"{str(amounts)[:80]} is no offer", "amounts from 0 by name are meant")
    if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) for tag in tags):
        raise components.UsageError(f"the tags {str(tags)[:80]} are no list of words")


def check_vitals(cpu: Any, memory: Any, trip: Any, running: Any, stamp: Any) -> dict[int, int]:
    """What a slave runs, as lease -> lane. Raises UsageError unless this is what a slave may tell of itself."""
    for one in (cpu, memory, trip, stamp):
        if one is not None and (type(one) not in (int, float) or not 0 <= one < 1 << 60):
            raise components.UsageError(f"{str(one)[:80]} is no figure of a slave", "a number from 0 is meant")
    if type(running) is not list or len(running) > MOST_WORKERS:
        raise components.UsageError("what a slave runs is no list", "lanes and leases are meant")
    for row in running:
        if type(row) is not list or len(row) != 2:
            raise components.UsageError(f"{str(row)[:80]} does not run", "a lane and a lease are meant")
        check_whole(*row)
    return {lease: lane for lane, lease in running}


def check_holds(rows: Any) -> None:
    """Raises UsageError unless these are leases that a slave may say to have."""
    rows = rows if isinstance(rows, list) else [rows]
    for row in rows:
        if not (isinstance(row, list) and len(row) == 6 and isinstance(row[1], str)):
            raise components.UsageError(f"{str(row)[:80]} is no lease",
                                        "lease, owner, number, lo, hi and attempt are meant")
        check_whole(row[0], *row[2:])
        check_report(row[0], *row[3:5])


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


def unknown(what: str, why: str, fix: str = "") -> rpc.RpcError:
    """The error for a name of something that is not here."""
    return rpc.RpcError(rpc.UNKNOWN_OBJECT, what, {"why": why, "fix": fix})


def told_of(about: dict, whole: bool) -> dict:
    """What `Board.explain` says, as a person gets it; `whole`: with what the task has said."""
    failure = about.get("failure")
    return about if whole or not failure else {**about, "failure": {**failure, "message": None}}


def removed(slave: str, who: str) -> components.Unreachable:
    """What a slave says that was removed."""
    return components.Unreachable(f"{slave} was removed from the swarm by {who}", "what it ran goes on elsewhere",
                                  "start it again to let it join anew")


def weight_of(parts: list | None) -> int:
    """The bytes of a payload, in memory and in files."""
    if type(parts) is Counted:
        return parts.weight
    weight = rpc.bytes_in(parts or ())
    return weight if weight >= 0 else sum(map(rpc.size_of, parts))


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

    def count(self, parts: list, size: int, weight: int) -> list:
        """The same parts, of which so many bytes are in memory and so many are there at all, counted."""
        counted = Counted(parts)
        counted.memory, counted.size, counted.weight = self, size, weight
        self.used += size
        return counted


def bytes_in_memory(parts: list) -> int:
    """How many bytes of a payload are not in files."""
    return sum([rpc.size_of(part) for part in parts if type(part) is not rpc.Reference])


class Counted(list):
    """Parts of a payload that take up memory as long as this list is there."""

    __slots__ = ("memory", "size", "weight")

    def __del__(self):
        self.memory.dropped.append(self.size)


class Span(NamedTuple):
    """What became of a part of a lease, as one report of a slave tells it: seconds are this master's, monotonic."""

    owner: str
    first: int  # ordinal of its first task
    tasks: int
    failed: int
    attempt: int
    slave: str
    lane: int  # which of the leases that its slave runs at once, from 0
    queued: float  # when its tasks were accepted
    leased: float
    began: float  # in the worker, and so is `ended`; between them are seconds of opening tasks and packing results
    ended: float
    heard: float
    opening: float
    packing: float
    step: int  # of the task system, 0 for plain tasks
    kind: str  # the class of its tasks, the first one if they have several
    sent: int  # bytes of tasks, whole groups of them, and of results
    received: int


def kind_of(batch: Batch) -> str:
    """The class of its tasks, the first one if they have several; "" if whoever sent them does not say it."""
    try:
        return str(batch.options["classes"][0][1])[:80]
    except (LookupError, TypeError):
        return ""


def span_of(owner: str, first: int, count: int, failed: int, attempt: int, slave: str, queued: float, leased: float,
            heard: float, step: int, kind: str, sent: int, received: int, lane: int, began: int, ended: int,
            opening: int, packing: int) -> Span:
    """What a report tells of a part of a lease; the last four in microseconds. Clocks need not agree, for `began` and
    `ended` are times before the report."""
    return Span(owner, first, count, failed, attempt, slave, lane, queued, leased, max(heard - began / 1e6, leased),
                max(heard - ended / 1e6, leased), heard, opening / 1e6, packing / 1e6, step, kind, sent, received)


class System:
    """A task system as the master sees it: the pipe to its host, and the client that waits for it."""

    def __init__(self, name: str, client: str, number: int, app: str, bundle: str, options: dict, now: float):
        self.name = name
        self.client = client
        self.number = number
        self.app = app
        self.user = options.get("user", "")  # whoever may collect it
        self.bundle = bundle
        self.options = options
        self.since = now
        self.token = self.deaths = 0
        self.step = self.done = self.known = 0  # done, known: tasks with an outcome, and all tasks
        self.waiting = False
        self.pipe: rpc.Pipe | None = None
        self.ear: tasks.Ear | None = None  # hears what its hooks print
        self.witness: tasks.Witness | None = None  # to which its host tells where it is
        self.beat, self.quiet = 0, 0.0  # which call of a hook was seen last in it, and for how many seconds
        self.late: list[tuple] | None = None  # what its next host is to hear after all that the last one heard


class Finished(NamedTuple):
    """How a task system has ended, kept until its client has heard of it."""

    name: str
    app: str
    user: str  # whoever may collect it
    failure: dict | None
    stats: dict
    parts: list


class View(NamedTuple):
    """The newest picture that a task system has shown of itself, and the how manyth it is."""

    type: str
    data: bytes
    version: int


class History:
    """What a task system is repeated with: where it starts, and the outcomes, steps and values since."""

    def __init__(self, record: tuple):
        _, self.name, self.client, self.number, self.app, self.bundle, self.options, self.parts = record
        self.saved = False
        self.drawn = self.ended = 0
        self.inputs: list[tuple] = []
        self.values: list = []

    def add(self, record: tuple) -> None:
        """One more record of this system."""
        if record[0] in ("outcome", "step"):
            self.inputs.append(record)
            self.ended += record[4] - record[3] - len(retried(record[6])) if record[0] == "outcome" else 0
        elif record[0] == "value":
            self.values.append(record[2])
        elif record[0] == "moved":
            self.client, self.number = record[2:]
        elif record[0] == "snapshot":
            *_, self.drawn, ended, self.parts = record
            self.saved = True
            self.ended += ended


def histories(records: Iterable[tuple]) -> dict[str, History]:
    """The histories of all task systems in these records, by their names."""
    found: dict[str, History] = {}
    for record in records:
        if record[0] == "system":
            found[record[1]] = History(record)
        elif record[1] in found:
            found[record[1]].add(record)
    return found


class MasterNode(rpc.BaseNode):
    """Takes work from owners, gives leases to slaves, hosts task systems; decides everything through its Board."""

    role = "master"
    FIXED = rpc.BaseNode.FIXED | {f"master.{key}" for key in (
        "host", "port", "compute_port", "certificate", "certificate_key", "allowed_hosts", "journal", "synchronous",
        "sandbox", "uploads", "history", "trace")}  # fmt: skip
    host = components.ConfigItem("master", "host", "127.0.0.1", "address to listen on; beyond loopback with keys")
    port = components.IntItem("master", "port", 8080, "port of the control channel; 0 is any", minimum=0, maximum=65535)
    certificate = components.PathItem("master", "certificate", "",
                                      "PEM file: the control channel speaks TLS with it, and nothing else")
    certificate_key = components.PathItem("master", "certificate_key", "", "PEM file of the certificate's key")
    names_here = components.ListItem("master", "allowed_hosts", "",
                                     "further names of this machine by which nodes and people may call it")
    compute_port = components.IntItem("master", "compute_port", 0,
                                      "port of the compute channel; 0 is any", minimum=0, maximum=65535)
    scheduler = components.ExtensionPointItem("master", "task_scheduler", "ZMQTaskScheduler",
                                              tasks.ITaskScheduler, "what places work on slaves")
    max_lease = components.IntItem("master", "max_lease", MAX_LEASE, "tasks that a lease may hold", minimum=1)
    memory_limit = components.IntItem("master", "memory", 64,
                                      "MiB of payloads to hold in memory; more lie on the disk until needed", minimum=0)
    journalled = components.BoolItem("master", "journal", True, "keep accepted work in SQLite until its owner has it")
    unplaceable_wait = components.FloatItem("master", "unplaceable_wait", 300.0,
                                            "seconds until a task fails that no slave here can ever take; 0: never",
                                            minimum=0)
    synchronous = components.ChoiceItem(
        "master", "synchronous", "normal", ("normal", "full"), "what accepted work outlives: normal the death of the "
        "master, full also a loss of power"
    )
    retention = components.FloatItem("master", "retention", 3600.0,
                                     "seconds to keep the work of a client that went away without a word", minimum=0)
    queued = components.IntItem("quotas", "queued", 1_000_000, "tasks of a user that wait; 0: any", 0)
    held = components.IntItem("quotas", "bytes", 10_000_000_000, "bytes of a user's tasks and results here; 0: any", 0)
    running = components.IntItem("quotas", "running", 0, "leases of a user at once, further ones wait; 0: any", 0)
    most_systems = components.IntItem("quotas", "systems", 100, "task systems of a user at once; 0: any", 0)
    kept_for = components.FloatItem("quotas", "retention", 0.0, "seconds that cap master.retention; 0: any", 0)
    timeout = components.FloatItem("limits", "timeout", 0.0,
                                   "seconds that an attempt may run of a task that says nothing; 0: any", minimum=0)
    deadline = components.FloatItem("limits", "deadline", 0.0,
                                    "seconds from acceptance to outcome of a task that says nothing; 0: any", minimum=0)
    queue_timeout = components.FloatItem("limits", "queue_timeout", 0.0,
                                         "seconds until a task that says nothing first runs; 0: any", minimum=0)
    task_memory = components.FloatItem("limits", "memory_limit", 0.0,
                                       "MiB that the worker of a task that says nothing may take; 0: any", minimum=0)
    retries = components.IntItem("limits", "retries", 0,
                                 "attempts after an exception of a task that says nothing", minimum=0)
    retry_wait = components.FloatItem("limits", "retry_wait", tasks.RETRY_WAIT,
                                      "seconds before the first of them; then twice as long", minimum=0)
    worker_retries = components.IntItem("limits", "worker_retries", UNSAID["WorkerLost"],
                                        "attempts after the death of a worker", minimum=0)
    slave_retries = components.IntItem("limits", "slave_retries", UNSAID["SlaveLost"],
                                       "attempts after the loss of a slave", minimum=0)

    history = components.IntItem("master", "history", 50_000,
                                 "parts of leases that the page can show one by one; 0: none", minimum=0,
                                 maximum=1_000_000)
    uploads = components.ChoiceItem(
        "master", "uploads", "loopback", ("loopback", "yes", "no"), "whether who has the token may upload and start "
        "applications; loopback: if only this machine can call")
    sandbox = components.ChoiceItem("master", "sandbox", "standard", tasks.LEVELS, "how far task systems are confined")
    allow_network = components.ListItem("master", "allow_network", "", "HOST:PORT, each may be *, for apps that ask")
    allow_read = components.ListItem("master", "allow_read", "", "paths, for apps that ask to read there")
    allow_write = components.ListItem("master", "allow_write", "", "paths, for apps that ask to write there")
    allow_subprocess = components.BoolItem("master", "allow_subprocess", False, "whether apps that ask start programs")
    process_limit = components.IntItem("limits", "process_limit", tasks.PROCESS_LIMIT,
                                       "processes at once of a task that says nothing; 0: any", minimum=0)
    hook_timeout = components.FloatItem("limits", "hook_timeout", 60.0,
                                        "seconds for a call of a hook of a system that says nothing; 0: any", minimum=0)

    trace_path = components.PathItem("master", "trace", "", "file to write a trace of everything to")

    def setup(self) -> None:
        """Builds everything that listens, in this order: zygote, keys, journal, compute channel, control channel."""
        self._begin_empty()
        self.parts = tasks.Prerequisites(self)
        self.closing.callback(self.parts.close)
        self.audit_log = Audit(self.environment / "logs" / "audit.jsonl")
        self.audit_log.start()
        self.closing.callback(self.audit_log.close)
        self.guard = tasks.Sandbox(self, sparing=True)
        self.closing.callback(self.guard.close)
        self.start_zygote()
        self.closing.callback(lambda: self.zygote.stop())
        self.guard.start(self.zygote)
        self.runs = Uploads(self)
        self.closing.callback(self.runs.close)
        self.store = self.open_store()
        self.spool = rpc.Store(rpc.own_folder(self.environment / "spool"))
        self.closing.callback(self.spool.close)
        self.memory = Memory(self.memory_limit * 1024 * 1024)
        self.read_limits()
        self.shelf = rpc.Shelf(self.store or self.spool)
        self.board = Board(max_lease=self.max_lease, unplaceable_wait=self.unplaceable_wait, weigh=weight_of)
        self.read_quotas()
        self.set_scheduler()
        self.open_gallery()
        self.keyring = rpc.Keyring(str(self.environment / "keys"))
        apps = self.environment / "apps"  # one without its zip is asked for again
        self.bundles = {d: m for d, m in rpc.known_bundles(apps).items() if (apps / f"{d}.zip").exists()}
        if self.journalled:
            self.open_journal()
        else:
            self.board.restore([], time.monotonic(), secrets.randbits(31))
        if self.trace_path:
            self.traces.open(self.trace_path)
        self.open_compute_channel()
        self.open_control_channel()

    def _begin_empty(self) -> None:
        """Of all that it keeps account of, there is nothing yet."""
        self.names = Names()
        self.stopping = False
        self.broken: components.Error | None = None
        self.systems: dict[str, System] = {}
        self._system_numbers = itertools.count(1)
        self._hosts: dict[int, System] = {}  # zygote token -> system
        self._unhosted: collections.defaultdict = collections.defaultdict(list)  # bundle -> (system, History) that wait
        self._preparing: dict[tuple[str, str], str] = {}  # (slave, bundle) -> what is made for it there
        self._peers: dict[str, rpc.Peer] = {}  # name of a client or slave -> its connection
        self._finished: dict[tuple, Finished] = {}  # by client and number
        self._detached: set[str] = set()  # clients that left their systems here
        self._expected: set[str] = set()  # slaves of an earlier life that may come back
        self._removed: collections.deque = collections.deque(maxlen=REMOVED_KEPT)  # (identity, by whom)
        self.views: dict[str, View] = {}  # newest last
        self._gone_at: dict[str, float] = {}  # clients that went away without a word
        self._told: dict[str, Any] = {}
        self._counts: collections.Counter = collections.Counter()
        self._failures: set[str] = set()  # kinds that were logged
        self._failures_told, self._count_at = 0, 0.0  # of failed tasks, one by one or by their number
        self._found: Effects | None = None  # what the reports of this turn ask for
        self._unseen: list[tuple] = []  # what `spans` gets of them, once what somebody waits for is sent
        self._accepted: collections.defaultdict = collections.defaultdict(list)  # owner -> batches to be told of
        self._slow_at = self._sample_at = self._sweep_at = self._tell_at = self._accept_at = self._audit_at = 0.0
        self._unsaid: collections.Counter = collections.Counter()  # client -> bytes of output that it did not get
        self._zygotes = tasks.Recent()
        self.measures = Measures(self.stats)
        self.spans = Spans()
        self.spans.ears += [self.measures.hear, self._note_work]
        self.closing.callback(self.tell_spans)  # before the figures are kept for the last time, and a trace ends
        self._work: dict[str, tuple] = {}  # client -> seconds of workers, those that moved data, bytes of results
        self._all_work = 0.0  # seconds of workers, for everybody
        self.published: dict[str, str] = {}  # key of an object -> the client that it belongs to
        self._lasting: set[str] = set()  # those of them that are in the journal
        self._wanted: dict[str, list[tuple]] = {}  # key of one that is not here -> (who, since when) asks for it
        self.traces = Traces(self)
        self.journal: Journal | None = None
        self.storage = ""  # why the journal takes no new work
        self._unstored = ""  # why the last application was not stored

    def start_zygote(self) -> None:
        """Makes the process from which hosts are forked."""
        self._zygotes.append(time.monotonic())
        self.zygote = tasks.start_zygote()
        self.loop.add(self.zygote, self._zygote_speaks)

    def set_scheduler(self) -> None:
        """Puts the configured scheduler in charge of placing."""
        chosen = self.scheduler
        if chosen is None:
            raise components.UsageError("a master needs a scheduler", "none is named")
        if chosen is not self.board.scheduler:
            chosen.setup(self)  # may raise: then the old one stays
            old, self.board.scheduler = self.board.scheduler, chosen
            if old:
                old.stop()

    def read_limits(self) -> None:
        """Takes over what is configured for tasks that say nothing: it is put into the heads of their batches."""
        limits = {"timeout": self.timeout, "deadline": self.deadline, "queue_timeout": self.queue_timeout,
                  "memory_limit": self.task_memory, "process_limit": self.process_limit, "retry_wait": self.retry_wait}
        retries = {"Exception": self.retries, "WorkerLost": self.worker_retries, "SlaveLost": self.slave_retries}
        limits["retries"] = {name: most for name, most in retries.items() if most != UNSAID[name]}
        said = {name: value for name, value in limits.items() if value != UNSAID.get(name, 0.0) and value != {}}
        self.limits = json.dumps(said) if said else ""

    def open_gallery(self) -> None:
        """Keeps from now on what the page shows."""
        self.gallery = Gallery(self.board, self.started, self.history, self.failures, self._heard_at)
        self.spans.ears.append(self.gallery.hear)
        self._viewing = threading.Lock()  # one question at a time is made into an answer

    def read_quotas(self) -> None:
        """Takes over what is configured for users."""
        said = self.queued, self.held, self.running, self.most_systems, self.kept_for
        self.board.quotas = Quotas(*(most or math.inf for most in said))

    def open_journal(self) -> None:
        """Reads what an earlier life accepted and has not delivered, and goes on from there."""
        self.journal = Journal(self.environment / "journal.db",
                               lambda after: self.loop.post(lambda: self._send_all(after)),
                               lambda error: self.loop.post(lambda: self._journal_failed(error)), lambda error,
                               refused: self.loop.post(lambda: self._storage_full(error, refused)),
                               lambda: self.loop.post(self._storage_has_room), self.synchronous)
        records = self.journal.load()
        effects = self.board.restore(records, time.monotonic(), secrets.randbits(31))
        self.journal.start()
        self.closing.callback(self.journal.stop)
        self.apply(effects)
        now = time.monotonic()
        for owner in list(self.board.owners.values()):
            if owner.kind != "system":
                self.gallery.owner_began(owner.id, owner.id, "", owner.user.name, False, now)
                left = sum(batch.remaining for batch in owner.batches.values())
                self.gallery.owner_repeats(owner.id, owner.tasks, owner.tasks - left)
                self.names.take(owner.id, owner.key)
                self._gone_at[owner.id] = now
        self._detached = {record[1] for record in records if record[0] == "detached"}
        for _, name, client, number, *end in filter(lambda record: record[0] == "finished", records):
            self._finished[client, number] = Finished(name, *end)
        for _, client, key, (part,) in filter(lambda record: record[0] == "shared", records):
            self.published[key] = client
            self._lasting.add(key)
            self.shelf.take(key, 0, rpc.size_of(part), [part.read()] if type(part) is rpc.Reference else part)
        self._go_on(histories(records), now)
        self._expect([record[1:] for record in records if record[0] == "slave"], now)
        waiting = sum(batch.remaining for owner in self.board.owners.values() for batch in owner.batches.values())
        if self.board.owners:
            log.info("took over %s clients with %s unfinished tasks", len(self.board.owners), waiting)

    def _expect(self, slaves: list[tuple[str, str]], now: float) -> None:
        """Waits a moment for slaves that may still run what is queued here."""
        for name, identity in slaves:
            self.names.take(name, identity)
        self._expected = {name for name, _ in slaves}
        if self._expected and any(owner.batches for owner in self.board.owners.values()):
            self.apply(self.board.rest(now + REGATHER, now))

    def _go_on(self, found: dict[str, History], now: float) -> None:
        """The task systems of an earlier life go on where they were."""
        names = [*found, *(end.name for end in self._finished.values())]
        self._system_numbers = itertools.count(1 + max(map(int, names), default=0))
        for owner in [owner.id for owner in self.board.owners.values() if owner.kind == "system"]:
            if owner not in found:
                self.apply(self.board.owner_gone(owner, now))
        for name, one in found.items():
            system = System(name, one.client, one.number, one.app, one.bundle, one.options, now)
            self.systems[name] = system
            self._show(system)
            if self.board.owners[name].paused:
                self.gallery.system_paused(name, True)
            self._repeat(system, one)
            self.apply(self.board.owner_attached(name, now, knows=True))
            log.info("system %s %s goes on: %s of its tasks have their outcome", name, one.app, f"{system.done:,}")

    def _journal_failed(self, error: Exception) -> None:
        """Nothing can be promised any more: the master ends, and its clients wait for the next one."""
        self.broken = components.Error(
            f"the journal cannot be written ({error})", "nothing that is accepted from now on would be safe",
            "make room on the disk, and start the master again: it goes on where it was",
        )
        self.loop.stop()

    def _storage_full(self, error: Exception, refused: list) -> None:
        """New work is refused until there is room, and so are these batches, which could not be kept. The rest goes
        on."""
        folder = self.environment.path
        what = "full" if "full" in str(error) or getattr(error, "errno", 0) in FULL else "not writable"
        reason = f"storage {what}: the journal in {folder} cannot be written ({error})"
        if not self.storage:
            log.error("%s: new work is refused until there is room, what is accepted goes on", reason)
        self.storage = f"{reason}; make room on that disk and submit again: the master goes on by itself"
        for owner, number in refused:
            self.apply(self.board.withdrawn(owner, number, self.storage, time.monotonic()))

    def _storage_has_room(self) -> None:
        self.storage = ""
        log.warning("the journal can be written again: new work is accepted")

    # -- effects

    def apply(self, effects: Effects) -> None:
        """Journals, sends, and sends after the commit what an event of the Board asks for."""
        self._apply_collected()  # which came before
        for record in effects.records:
            if record[0] == "outcome":  # counted here, for it is sent again to a client that comes back
                self._count(*record[1:5], record[6])
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
            number, lo, hi, seconds, told, _, slave, attempt = details
            told = {**told, **failure("result", "NotSent", reason, slave)}
            self._send_outcome(target, number, lo, hi, seconds, told, [], slave, attempt)

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
        self.audit("refuse", self._peers.get(owner, ""), why=reason, owner=owner, batch=number)
        self._send(owner, ["refused", number, reason])

    def _send_outcome(self, owner: str, number: int, lo: int, hi: int, seconds: float, failures: dict, payload: list,
                      slave: str, attempt: int) -> None:
        self._send(owner, ["outcome", number, lo, hi, seconds, failures, slave, attempt], payload or ())

    def _note_unplaceable(self, owner: str, task: str, tasks: int, why: str) -> None:
        """Logs, once per owner and reason, that its tasks wait in vain; its client hears of it with the progress."""
        key = f"{owner} waits: {why}"
        if key not in self._failures and len(self._failures) < FAILURES_TOLD:
            self._failures.add(key)
            seconds = self.unplaceable_wait
            wait = f"they fail in {seconds:g} s" if seconds else "they wait for one that comes"
            log.warning("%s tasks of %s wait: %s; %s (client.py --explain %s)", tasks, owner, why, wait, task)

    def _note_retrying(self, owner: str, task: str, tasks: int, attempt: int, seconds: float, why: dict) -> None:
        """Logs, once per owner and reason, that tasks failed and run again."""
        key = f"{why.get('type')}: {why.get('message')}"
        if f"{owner} again: {key}" not in self._failures and len(self._failures) < FAILURES_TOLD:
            self._failures.add(f"{owner} again: {key}")
            about = {"task": task, "attempt": attempt - 1}
            text = f"failed in attempt {attempt - 1}, and runs again in {seconds:.1f} s"
            log.warning("%s %s: %s", task, text, key, extra=about)

    def _note_quarantined(self, slave: str, seconds: float) -> None:
        self.audit("quarantine", self._peers.get(slave, ""), slave=slave, seconds=seconds)
        why = f"{STRIKES} leases in a row failed there that others could do"
        log.warning("%s gets nothing for %.0f s: %s", slave, seconds, why)

    def _send_history(self, name: str, records: list) -> None:
        """To the new host of a system whose last one died."""
        system = self.systems.get(name)
        if system is not None:
            late, system.late = system.late, None
            self._repeat(system, histories(records)[name])
            for call, parts in late:
                self._send(name, call, parts)

    def _send_taken(self, client: str, number: int, name: str) -> None:
        self._send(client, ["push_tasksystem_response", number, name])

    _senders = {
        "unplaceable": _note_unplaceable, "retrying": _note_retrying, "quarantined": _note_quarantined,
        "lease": _send_lease, "revoke": _send_revoke, "steal": _send_steal, "late": _send_late,
        "accepted": _send_accepted, "refused": _send_refused, "outcome": _send_outcome, "history": _send_history,
        "taken": _send_taken,
    }

    def _send(self, target: str, call: list, parts: Collection = ()) -> None:
        """To a slave or client by the compute channel, to a system by the pipe of its host."""
        if target in self.systems:
            self._send_host(self.systems[target], call, parts)
        elif target in self._peers:
            self.channel.gather(self._peers[target], call, parts)

    @staticmethod
    def _send_host(system: System, call: list, parts: Iterable) -> None:
        if system.late is None:
            system.pipe.call(*call, parts=parts)
        else:
            system.late.append((call, parts))

    def _count(self, owner: str, number: int, lo: int, hi: int, failures: dict) -> None:
        tasks = hi - lo
        if failures:
            counted = {key: one for key, one in failures.items() if one is not AGAIN and "retried" not in one}
            tasks, failures = tasks - len(failures) + len(counted), counted
        self._counts["tasks"] += tasks
        failed = 0 if not failures else tasks if "*" in failures else len(failures)
        self.gallery.counted(owner, tasks, failed)
        if owner in self.systems:
            self.systems[owner].done += tasks
        if failures:
            self._counts["failed"] += failed
            self._note_failures(self.board.owners[owner].batches[number], lo, tasks, failures)

    def _note_failures(self, batch: Batch, lo: int, count: int, failures: dict) -> None:
        slave = next((outcome[5] for outcome in reversed(batch.outcomes) if outcome[0] == lo), "")
        for place, failure in failures.items():
            task, those = batch.task_id(lo if place == "*" else int(place)), count if place == "*" else 1
            self.gallery.task_failed(batch.owner.id, task, failure, those, slave, time.monotonic())
            self._failures_told += those * (failure.get("kind") == "cancelled")  # who cancels knows
        for place, failure in itertools.islice(failures.items(), 3):
            key, confined = f"{failure.get('type')} at {failure.get('where') or '?'}", ""
            if tasks.CONFINED in failure.get("notes", ()):
                confined = " (in the sandbox)"
                self._audit_owner("confined", batch.owner.id, f"{key}: {failure.get('message')}")
            known = key in self._failures or failure.get("kind") == "cancelled"
            if not known and len(self._failures) < FAILURES_TOLD:
                self._failures.add(key)
                task = batch.task_id(lo if place == "*" else int(place))
                number = failure.get("attempt", 1)
                which, about = f" in attempt {number}" if number > 1 else "", {"task": task, "attempt": number}
                log.warning("%s failed%s: %s: %s%s", task, which, key, failure.get("message"), confined, extra=about)
                self._failures_told += 1

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
        self.channel.check_doors()
        self.channel.audit = self.audit
        self.loop.add(self.channel.socket, self.channel.receive)
        self.channel.loop = self.loop
        self._expose_to_owners(self.channel)
        self._expose_systems_to_owners(self.channel)
        self._expose_to_slaves(self.channel)
        self._expose_offers(self.channel)
        self._expose_bundles(self.channel)
        self._expose_shared(self.channel)
        self._expose_figures(self.channel)

    def _expose_to_owners(self, channel: rpc.Channel) -> None:
        owners = ("client", "admin")

        @rpc.tcpremote(channel, roles=owners)
        def bundle(handler, request, digest, manifest):
            self.store_bundle(digest, manifest, bytes(request.parts[0]))
            self.gallery.owner_is(request.peer.label, self.entry_of(digest))

        @rpc.tcpremote(channel, roles=owners)
        def submit(handler, request, number, count, group, first):
            self.submit(request.peer.label, number, count, group, first, request.parts)

        @rpc.tcpremote(channel, roles=owners)
        def rest_of_trace(handler, request):
            self.tell_spans()
            self.traces.tell_client(request.peer.label, time.monotonic())

        @rpc.tcpremote(channel, roles=owners)
        def settled(handler, request, numbers):
            check_whole(*numbers)
            self.apply(self.board.settled(request.peer.label, numbers, time.monotonic()))

        @rpc.tcpremote(channel, roles=owners)
        def cancel(handler, request, number, kill=False):
            check_whole(*([] if number is None else [number]))
            self.audit("cancel", request.peer, batch=number)
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
            if self.works_for(request.peer.label, owner):
                self.publish(owner, key, at, total, request.parts[0], lasting=True)
            else:
                self.audit("refuse", request.peer, why="it published for an owner of whom it has no lease", owner=owner)

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
                self.audit("cancel", request.peer, system=system.name)
                self.end_system(system, tasks.cancelled_failure(), {}, (), bool(kill))

        @rpc.tcpremote(channel, roles=owners)
        def step(handler, request, number):
            system = self._system_of(request.peer.label, number)
            if system:
                self._step(system)

        @rpc.tcpremote(channel, roles=owners)
        def work_settled(handler, request, number):
            self._forget_finished(request.peer.label, number)

        @rpc.tcpremote(channel, roles=owners)
        def goodbye(handler, request):
            self.forget_client(request.peer.label)

        @rpc.tcpremote(channel, roles=owners)
        def detach(handler, request):
            self._leave(request.peer.label)

        @rpc.tcpremote(channel, roles=owners)
        def collect(handler, request, number, name):
            check_whole(number)
            self.collect(request.peer, number, str(name))

    def _expose_figures(self, channel: rpc.Channel) -> None:
        @rpc.tcpremote(channel, roles=("client", "admin"))
        def get_stats(handler, request, number):
            check_whole(number)
            self.tell_figures(request.peer.label, number)

    def _expose_to_slaves(self, channel: rpc.Channel) -> None:
        slaves = ("slave",)

        @rpc.tcpremote(channel, roles=slaves)
        def result(handler, request, lease, lo, hi, failures, spent, figures=None):
            try:
                check_report(lease, lo, hi, failures, spent)
            except components.UsageError as error:  # a worker wrote it: its slave will not say more of this lease
                self.give_up(request.peer.label, lease, f"a report that cannot be read: {error.what}")
                raise
            self.take_result(request.peer.label, lease, lo, hi, failures, request.parts, spent, figures)

        @rpc.tcpremote(channel, roles=slaves)
        def given_back(handler, request, lease, lo, hi):
            check_report(lease, lo, hi)
            self.apply(self.board.given_back(request.peer.label, lease, lo, hi, time.monotonic()))

        @rpc.tcpremote(channel, roles=slaves)
        def worker_lost(handler, request, lease, lo, hi, reason, output="", spent=()):
            check_report(lease, lo, hi, None, spent)
            log.warning("slave %s: %s", request.peer.label, reason)
            self.take_lost(request.peer.label, lease, lo, hi, reason, str(output)[-tasks.OUTPUT_KEPT :], spent)

        @rpc.tcpremote(channel, roles=slaves)
        def not_granted(handler, request, owner, what):
            if self.works_for(request.peer.label, owner):
                self._audit_owner("refuse", owner, str(what))

        @rpc.tcpremote(channel, roles=slaves)
        def output(handler, request, lease, pieces):
            check_whole(lease)
            check_output(pieces)
            self.take_output(request.peer.label, lease, pieces)

    def _expose_offers(self, channel: rpc.Channel) -> None:
        @rpc.tcpremote(channel, roles=("slave",))
        def resources(handler, request, amounts, workers):
            check_offer(amounts, workers)
            self.apply(self.board.slave_changed(request.peer.label, amounts, workers, time.monotonic()))
            self.gallery.slave_changed()

        @rpc.tcpremote(channel, roles=("slave",))
        def leaving(handler, request):
            self.apply(self.board.slave_draining(request.peer.label, time.monotonic()))

    def _expose_bundles(self, channel: rpc.Channel) -> None:
        @rpc.tcpremote(channel, roles=("slave",))
        def fetch(handler, request, digest):
            self.send_bundle(request.peer, digest)

        @rpc.tcpremote(channel, roles=("slave",))
        def preparing(handler, request, digest, what):
            self.preparing(digest, what, request.peer.label)

        @rpc.tcpremote(channel, roles=("slave",))
        def vitals(handler, request, cpu, memory, trip, running, stamp):
            runs = check_vitals(cpu, memory, trip, running, stamp)
            self.gallery.vitals(request.peer.label, cpu, memory, trip, runs)
            self._send(request.peer.label, ["seen", stamp])

    def _hello(self, peer: rpc.Peer, info: dict) -> dict:
        """Admits a node: gives it a name, and tells it what it needs to know."""
        self._apply_collected()  # of its last connection, perhaps
        now = time.monotonic()
        check_version(peer.role, info)
        if peer.role == "slave":
            return self._admit_slave(peer, info, now)
        return self._admit_client(peer, info, now)

    def _admit_slave(self, peer: rpc.Peer, info: dict, now: float) -> dict:
        if by := dict(self._removed).get(identity_of(peer, info)):
            raise removed("this slave", by)
        amounts, workers, tags = info.get("resources"), info.get("workers"), info.get("tags", [])
        check_offer(amounts, workers, tags)
        holds = info.get("holds", [])
        check_holds(holds)
        peer.label = name = self.names.give("s", identity_of(peer, info))
        self._drop_old_connection(name, peer)
        self._peers[name] = peer
        self._record("gone", name)
        self._record("slave", name, identity_of(peer, info))
        self.gallery.slave_joined(name, str(info.get("host", "?"))[:100], rpc.minor_version(str(info.get("python"))),
                                  str(info.get("sandbox", ""))[:60])
        self.apply(self.board.slave_joined(name, amounts, tags, workers, now, holds=holds))
        kept = [row[0] for row in holds if row[0] in self.board.slaves[name].leases]
        host, python = info.get("host", "?"), info.get("python")
        log.info("slave %s joined from %s: %s worker%s, Python %s", name, host, workers, "s" * (workers != 1), python)
        self.audit("join", peer, slave=name, workers=workers)
        self._came_back(name, kept, now)
        return {"name": name, "page": self.server.address if self.shows_page else "", "kept": kept}

    def _came_back(self, slave: str, kept: list, now: float) -> None:
        """A slave of an earlier life is here again; with the last of them, leases are made again."""
        if kept:
            log.info("slave %s goes on with %s leases", slave, len(kept))
        self._expected.discard(slave)
        if not self._expected and self.board.resting_until > now:
            self.apply(self.board.rest(now, now))

    def _admit_client(self, peer: rpc.Peer, info: dict, now: float) -> dict:
        missing = info.get("bundle") not in self.bundles  # first, for it may be anything, and then nobody is let in
        identity = identity_of(peer, info)
        peer.label = name = self.names.give("c", identity)
        self._drop_old_connection(name, peer)
        self._peers[name] = peer
        self._gone_at.pop(name, None)
        known = name in self.board.owners
        self.audit("submit", peer, client=name, application=info.get("bundle"))
        self.apply(self.board.owner_joined(name, "client", now, key=identity, user=peer.name))
        self.gallery.owner_began(name, name, "", peer.name, False, now)
        self.gallery.owner_is(name, "" if missing else self.entry_of(info["bundle"]))
        self._told.pop(name, None)
        if info.get("trace") is True:
            self.traces.follow(name)
        slaves, workers, _ = self.swarm_size()
        return {
            "name": name, "known": known, "slaves": slaves, "workers": workers, "missing": missing,
            "page": self.server.address if self.shows_page else "",
        }

    def _drop_old_connection(self, name: str, peer: rpc.Peer) -> None:
        old = self._peers.pop(name, None)
        if old is not None and old is not peer:
            self.channel.drop(old, "the node connected anew")

    def _lost(self, peer: rpc.Peer, reason: str) -> None:
        name = getattr(peer, "label", "")
        if self._peers.get(name) is not peer:
            return
        del self._peers[name]
        self._told.pop(name, None)
        self.traces.leave(name)
        now = time.monotonic()
        if peer.role == "slave":
            self._preparing = {key: what for key, what in self._preparing.items() if key[0] != name}
            held = self.board.slaves[name].open_tasks if name in self.board.slaves else 0
            log.info("slave %s left (%s): %s tasks back in the queue", name, reason, held)
            for lane, lease in self.gallery.running(name):
                self._note_lost(lease, lease.lo, lease.hi, [lane, int(1e6 * (now - lease.since)), 0, 0, 0], now)
            self.tell_spans()
            self.gallery.slave_gone(name, "" if reason == rpc.LEFT else reason, held, now)
            self.apply(self.board.slave_lost(name, now, reason))
            self._record("gone", name)
        elif name not in self._detached and (reason == rpc.LEFT or peer.info.get("on_disconnect") == "cancel"):
            self.forget_client(name)
        elif name in self.board.owners:
            log.info("client %s is away (%s); its work goes on", name, reason)
            self._gone_at[name] = now
            self.apply(self.board.owner_detached(name, now))

    def forget_client(self, name: str) -> None:
        """The client is done, or never came back: its systems end and what is left of its work is dropped."""
        self.tell_spans()
        for system in [system for system in self.systems.values() if system.client == name]:
            self.end_system(system, tasks.cancelled_failure(), {}, ())
        for _, number in [key for key in self._finished if key[0] == name]:
            self._forget_finished(name, number)
        self._gone_at.pop(name, None)
        self._unsaid.pop(name, None)
        self._work.pop(name, None)
        self._detached.discard(name)
        self._forget_shared(name)
        if name in self.board.owners:
            self.names.forget("c", self.board.owners[name].key)
        self.gallery.owner_ended(name, None, time.monotonic())
        self.apply(self.board.owner_gone(name, time.monotonic()))

    def submit(self, owner: str, number: int, count: int, group: int, first: int, parts: list) -> None:
        """Takes a batch of a client or a system. Raises UsageError for what is no batch at all."""
        check_whole(number, count, group, first)
        if parts and type(parts[0]) is rpc.Reference:
            parts[0] = parts[0].read()
        if read_options(parts) and owner in self.board.owners:
            parts[0] = completed(bytes(parts[0]), self.board.owners[owner].user.name, self.limits)
        head = tasks.read_head(bytes(parts[0]))
        if head.get("bundle") not in self.bundles:
            self._send_refused(owner, number, self._unstored or NEVER_SENT)
        elif self.storage and owner not in self.systems and not self.board.knows(owner, number):
            self._send_refused(owner, number, self.storage)
        elif len(parts) != 2 + -(-count // max(1, group)):
            self._send_refused(owner, number, f"{count} tasks in groups of {group} do not make {len(parts) - 2} groups")
        else:
            system = self.systems.get(owner)
            if system:
                system.known += count
            new = bool(system) or not self.board.knows(owner, number)
            options = {**head, "first": first}
            try:
                parts = self.take_in(parts, 1)
            except OSError as error:
                self._send_refused(owner, number, f"the file that it lies in cannot be opened ({error})")
                return
            self.apply(self.board.submit(owner, number, count, time.monotonic(), group, options, parts))
            if new and self.board.knows(owner, number):  # else it was refused
                self.gallery.submitted(owner, count, system.step if system else 0, time.monotonic())

    def give_up(self, slave: str, lease: Any, reason: str) -> None:
        """What is open of a lease is lost with its worker."""
        held = self.board.leases.get(lease) if type(lease) is int else None
        if held is not None:
            self.apply(self.board.worker_lost(slave, lease, held.lo, held.hi, reason, time.monotonic()))

    def take_lost(self, slave: str, lease: int, lo: int, hi: int, reason: str, output: str, spent: list) -> None:
        """A worker died over these tasks; `spent` as in the report of a result."""
        held, now = self.board.leases.get(lease), time.monotonic()
        if spent and held is not None and held.slave.id == slave and held.has_open(lo, hi):
            self._note_lost(held, lo, hi, spent, now)
        if held is not None and "SIGSYS" in str(reason):  # so the kernel ends who makes calls in the 32-bit way
            self._audit_owner("confined", held.batch.owner.id, str(reason))
        self.apply(self.board.worker_lost(slave, lease, lo, hi, reason, now, output))

    def _note_lost(self, lease: Lease, lo: int, hi: int, spent: list, now: float) -> None:
        self._add_spans()  # of a lane in the order of time
        self.spans.add(lease, lease.batch.payload, lo, hi, {"*": {}}, spent, [], self._step_of(lease), now)

    def _step_of(self, lease: Lease) -> int:
        system = self.systems.get(lease.batch.owner.id)
        return system.step if system else 0

    def take_result(self, slave: str, lease: int, lo: int, hi: int, failures: dict, parts: list, spent: list,
                    figures: Any = None) -> None:
        """What a slave reports of a lease; results that cannot be opened any more are computed again. `figures`: what
        its tasks have recorded, which counts with their outcome."""
        now = time.monotonic()
        held = self.board.leases.get(lease)
        whole = held is not None and held.slave.id == slave and held.has_open(lo, hi)
        try:
            parts = self.take_in(parts)
        except OSError as error:
            reason = f"the file with its results cannot be opened ({error})"
            self.apply(self.board.worker_lost(slave, lease, lo, hi, reason, now))
        else:
            if whole:
                step = self._step_of(held)
                self._unseen.append((held, held.batch.payload, lo, hi, failures, spent, parts, step, now))
            seconds = (spent[1] - spent[2]) / 1e6 if spent else 0.0
            effects = self._collected()
            before = len(effects.records)
            self.board.collect(effects, slave, lease, lo, hi, seconds, parts, failures, now)
            if figures and held:
                self._take_figures(held.batch, lo, hi, effects.records[before:], figures)
            if failures or len(effects.records) >= TOGETHER:
                self._apply_collected()

    def _collected(self) -> Effects:
        """What the reports of this turn ask for so far; it is applied together, at the end or before anything else."""
        if self._found is None:
            self._found = Effects([], [], [])
            self.loop.at_end(self._apply_collected)
        return self._found

    def _apply_collected(self) -> None:
        found, self._found = self._found, None
        if found is not None:
            self.apply(self.board.assigned(found, time.monotonic()))
            self._add_spans()

    def _add_spans(self) -> None:
        """What was reported is seen from now on."""
        unseen, self._unseen = self._unseen, []
        for report in unseen:
            self.spans.add(*report)

    def tell_spans(self) -> None:
        """Tells whoever follows of all reports that have come."""
        self._add_spans()
        self.spans.tell()

    def _take_figures(self, batch: Batch, lo: int, hi: int, records: list, figures: Any) -> None:
        """Counts what tasks have recorded if these records bring their outcome: no attempt counts twice."""
        owner = batch.owner.id
        if not any(record[:5] == ("outcome", owner, batch.number, lo, hi) for record in records):
            return
        try:
            self.measures.take_in(owner, kind_of(batch), figures)
        except (ValueError, TypeError) as error:  # from a worker: its slave is not to blame
            if f"{owner} figures" not in self._failures and len(self._failures) < FAILURES_TOLD:
                self._failures.add(f"{owner} figures")
                log.warning("what tasks of %s have recorded is left out: %s", owner, error)

    def take_in(self, parts: list, first: int = 0) -> list:
        """Parts that this master holds on to: files are linked, so that they stay whatever becomes of their sender, and
        what memory has no room for is written to the disk, from the part `first` on. Raises OSError if a file is gone.
        """
        if rpc.Reference not in map(type, parts):
            weight = weight_of(parts)
            if self.memory.has_room(weight):
                return self.memory.count(parts, weight, weight)
        taken = [self.store.kept(part) if type(part) is rpc.Reference else part for part in parts]
        size, weight = bytes_in_memory(taken), weight_of(taken)
        if self.memory.has_room(size):
            return self.memory.count(taken, size, weight)
        large = [i for i, part in enumerate(taken) if i >= first and bytes_in_memory([part])]
        for i, reference in zip(large, self.spool.write([taken[i] for i in large]) or (), strict=False):
            taken[i] = reference.held(self.spool)
        return self.memory.count(taken, bytes_in_memory(taken), weight)

    # -- output

    def take_output(self, slave: str, lease: int, pieces: list) -> None:
        """What tasks of a lease have printed goes to the client that waits for them; nothing of it is kept."""
        held = self.board.leases.get(lease)
        if held is not None and held.slave.id == slave:
            self._send_output(held.batch.owner.id, held.attempt, pieces)

    def _send_output(self, owner: str, attempt: int, pieces: list) -> None:
        client = self.systems[owner].client if owner in self.systems else owner
        peer = self._peers.get(client)
        if peer is None or peer.lags:
            if client in self.board.owners:
                self._unsaid[client] += tasks.weight_of(pieces)
            return
        self._tell_unsaid(client, peer)
        self._send(client, ["output", owner, attempt, pieces])

    def _tell_unsaid(self, client: str, peer: rpc.Peer) -> None:
        if client in self._unsaid and not peer.lags:
            self._send(client, ["output", client, 1, [[0, 0, "", self._unsaid.pop(client)]]])

    # -- bundles

    def store_bundle(self, digest: str, manifest: dict, data: bytes) -> None:
        """Keeps a bundle, unpacked for hosts and packed for slaves."""
        folder = self.environment / "apps"
        if digest not in self.bundles:
            try:
                rpc.open_bundle(digest, manifest, data, folder)
                with components.replacing(folder / f"{digest}.zip") as file:
                    file.write(data)
            except (OSError, components.Error) as error:
                if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                    raise
                log.error("an application cannot be stored: %s", error)
                self._unstored = f"the application cannot be stored by the master ({error}): make room on its disk"
            else:
                self.bundles[digest], self._unstored = manifest, ""

    def entry_of(self, digest: str) -> str:
        """The file with which an application begins; "" if it is not here."""
        return str(self.bundles.get(digest, {}).get("entry", ""))[:100]

    def send_bundle(self, peer: rpc.Peer, digest: str) -> None:
        """Gives a slave what it runs leases of."""
        if digest in self.bundles:
            data = (self.environment / "apps" / f"{digest}.zip").read_bytes()
            self.channel.send(peer, ["bundle", digest, self.bundles[digest]], [data])
        else:
            self.channel.send(peer, ["no_bundle", digest])

    def preparing(self, digest: str, what: str, where: str = "the master") -> None:
        """A slave, or this master, makes what an application needs, until it says "" of it."""
        if {type(digest), type(what)} != {str}:
            raise rpc.ProtocolError("what a slave prepares is two texts")
        self._preparing.pop((where, digest), None)
        if what and digest in self.bundles:
            self._preparing[where, digest] = f"{where} prepares {components.printable(what)[:80]}"

    def prepared(self, digest: str, error: rpc.CannotBuild | None) -> None:
        """What an application needs is here, or cannot be had: its systems that wait for it begin, or end."""
        for system, history in self._unhosted.pop(digest, ()):
            if self.systems.get(system.name) is not system:
                continue
            if error:
                self.end_system(system, tasks.describe_failure(error, kind=error.kind, itself=False), {}, ())
                continue
            late, system.late = system.late, None
            self._repeat(system, history)
            for call, parts in late if system.pipe else ():
                self._send(system.name, call, parts)

    def uses(self, digest: str) -> bool:
        """Whether a task system of an application is here."""
        return any(system.bundle == digest for system in self.systems.values())

    # -- published objects

    def works_for(self, slave: str, owner: str) -> bool:
        """Whether a slave has a lease of an owner, so that it may speak for one of its tasks."""
        known = self.board.slaves.get(slave)
        return known is not None and any(lease.batch.owner.id == owner for lease in known.leases.values())

    def publish(self, owner: str, key: str, at: int, total: int, part: Any, lasting: bool = False) -> None:
        """Takes a slice of an object that somebody publishes; it stays until the client ends to which it belongs.
        `lasting`: nobody could publish it again, if this master dies."""
        rpc.check_key(key, at, total)
        client = self.systems[owner].client if owner in self.systems else owner
        if client not in self.board.owners or self.published.setdefault(key, client) != client:
            return
        if self.shelf.take(key, at, total, part):
            if lasting and key not in self._lasting:
                self._keep_shared(client, key)
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

    def _keep_shared(self, client: str, key: str) -> None:
        """This object outlives the master, until the client ends to which it belongs."""
        part = self.shelf.get(key)
        if self.journal and part is not None:
            self._lasting.add(key)
            self.journal.put([("shared", client, key, [part])], [])

    def _hand_on_shared(self, client: str, heir: str) -> None:
        """What a client that leaves its systems here has published outlives it."""
        for key in [key for key, owner in self.published.items() if owner == client]:
            self.published[key] = heir
            if heir != client or key not in self._lasting:
                self._keep_shared(heir, key)

    def _forget_shared(self, client: str) -> None:
        keys = [key for key, owner in self.published.items() if owner == client]
        for key in keys:
            del self.published[key]
            self._lasting.discard(key)
        self.shelf.forget(keys)
        for slave in self.board.slaves if keys else ():
            self._send(slave, ["forget_shared", keys])

    def _give_up_wanted(self, now: float) -> None:
        late = Counter(asking[0][0] for asking in self._wanted.values()
                       if rpc.SILENT <= now - asking[0][1] < rpc.SILENT + SWEEP_EVERY)  # in one sweep
        for target, count in late.items():
            more = f", and for {count - 1:,} more" if count > 1 else ""
            log.info("%s waits for a published object%s: its client has not sent it, again, yet", target, more)
        for key, asking in list(self._wanted.items()):
            if now - asking[0][1] > WANTED_FOR:
                for target, _ in self._wanted.pop(key):
                    self._send(target, ["no_shared", key, "the client that published it has ended, or lost it"])

    # -- task systems

    def start_system(self, client: str, number: int, digest: str, options: dict, parts: list) -> None:
        """Forks a host for a client's system; the same number of the same client is started once. One that `detaches`
        has left it here as soon as it hears that it was taken."""
        known = self._system_of(client, number)
        if (client, number) in self._finished:
            self._send_finished(client, number)
            return
        if options.pop("detaches", False):
            self._leave(client)
        if known is not None:
            self.apply(Effects([], [], [("taken", client, number, known.name)]))
        elif digest not in self.bundles:
            self._refuse_system(client, number, self._unstored or NEVER_SENT)
        elif why := self.storage or self._over_quota(client):
            self._refuse_system(client, number, why)
        else:
            try:
                self._fork_host(client, number, digest, options, parts)
            except (OSError, components.Error) as error:
                self._refuse_system(client, number, f"no process can be started for it ({error})", -32000)

    def _leave(self, client: str) -> None:
        """The systems of a client are here for others to collect."""
        if client not in self._detached:
            self._detached.add(client)
            self._record("detached", client)
        self._hand_on_shared(client, client)

    def _refuse_system(self, client: str, number: int, why: str, code: int = -32007) -> None:
        self.audit("refuse", self._peers.get(client, ""), why=why, owner=client)
        self._send(client, ["push_tasksystem_failed", number, {"c": code, "m": why, "t": ""}])

    def _over_quota(self, client: str) -> str:
        """Why the user of a client may not have one more task system, "" if it may."""
        user = self.board.owners[client].user
        systems = self.board.quotas.passed(user.name, "systems", self._systems_of(user), 1)
        return systems or self.board.over_quota(user, 1, 1)

    def _systems_of(self, user: User) -> int:
        return sum(system.user == user.name for system in self.systems.values())

    def collect(self, peer: rpc.Peer, number: int, name: str) -> None:
        """Lets a client wait for a system, running or finished, whose own client is not here."""
        running = self.systems.get(name)
        place = next((place for place, end in self._finished.items() if end.name == name), None)
        if not running and not place:
            why = "there is none of that name"
        else:
            client = running.client if running else place[0]
            why = self._why_not_collect(peer, client, running.user if running else self._finished[place].user)
        if why:
            self._refuse_system(peer.label, number, f"task system {name} cannot be collected: {why}")
            return
        if running:
            running.client, running.number = peer.label, number
            self._record("moved", name, peer.label, number)
        else:
            self._keep_finished(peer.label, number, self._finished.pop(place), Effects([], [], []))
        self._send_taken(peer.label, number, name)
        if place:
            self._send_finished(peer.label, number)
        if not self._waits_for_anything(client):
            self._hand_on_shared(client, peer.label)
            self.forget_client(client)

    def _why_not_collect(self, peer: rpc.Peer, client: str, user: str) -> str:
        if client in self._peers:
            return "its own client waits for it"
        return "" if user == peer.name or peer.role == "admin" else "somebody else pushed it"

    def _keep_finished(self, client: str, number: int, end: Finished, effects: Effects) -> None:
        """In one record with what becomes of its tasks: the next master knows the system, or how it has ended."""
        self._finished[client, number] = end
        records = [one for one in effects.records if one != ("gone", end.name)]
        self.apply(effects._replace(records=[*records, ("finished", end.name, client, number, *end[1:])]))

    def _waits_for_anything(self, client: str) -> bool:
        owner = self.board.owners.get(client)
        systems = [system.client for system in self.systems.values()] + [place[0] for place in self._finished]
        return client in systems or bool(owner and owner.batches)

    def _record(self, *record: Any) -> None:
        if self.journal:
            self.apply(Effects([record], [], []))

    def _fork_host(self, client: str, number: int, digest: str, options: dict, parts: list) -> None:
        user = self._peers[client].name if client in self._peers else ""
        options = {**options, "seed": secrets.token_hex(8), "user": user}
        name, app = str(next(self._system_numbers)), options.get("name", "?")
        system = System(name, client, number, app, digest, options, time.monotonic())
        history = History(("system", name, client, number, app, digest, options, list(parts)))
        if self._can_host(system, history):
            self._fork(system)
        self.systems[name] = system
        self.apply(self.board.owner_joined(name, "system", system.since, name=app, user=user))
        self._show(system)
        record = "system", name, client, number, app, digest, options, list(parts)
        self.apply(Effects([record], [], [("taken", client, number, name)]))
        if system.pipe:
            self._begin(system, parts)
        log.info("system %s %s: from client %s", name, app, client)
        self.audit("system", self._peers.get(client, ""), system=name, client=client, name=app, application=digest)

    def _show(self, system: System) -> None:
        by_hand = bool(system.options.get("by_hand"))
        self.gallery.owner_began(system.name, system.client, system.app, system.user, by_hand, system.since)

    def _can_host(self, system: System, history: History) -> bool:
        """Whether its application has what it needs here; if not, the system begins, or goes on, once it has."""
        if self.parts.here(system.bundle):
            return True
        system.late = [] if system.late is None else system.late
        self._unhosted[system.bundle].append((system, history))
        return False

    def _fork(self, system: System) -> None:
        """Makes the process that hosts it. Raises OSError."""
        zygote = self.zygote  # one that comes later may have another child of this token
        root = str(self.environment / "apps" / system.bundle)
        confinement, rate = self.guard.confinement(rpc.needs_of(self.bundles[system.bundle])), tasks.OUTPUT_RATE * 1024
        token, sock, system.ear = tasks.fork_heard(zygote, "host", root, confinement, self.loop, rate)
        system.ear.send = lambda pieces: self._send_output(system.name, system.deaths + 1, tasks.placed(pieces, 0, 0))
        system.token, system.pipe = token, rpc.Pipe(
            self.loop, sock, lambda pipe, call, parts: self._host_speaks(system, call, parts),
            lambda pipe: zygote.kill(token), self.store, system.bundle,  # nobody can hear it any more
        )
        self._hosts[token] = system
        system.witness, system.beat, system.quiet = tasks.Witness(system.pipe), 0, 0.0

    def _begin(self, system: System, parts: list, saved: bool = False, values: Iterable = ()) -> None:
        more = {"bundle": system.bundle, "saves": bool(self.journal), "saved": saved, "values": list(values)}
        system.pipe.call("system", system.name, {**system.options, **more}, parts=parts)

    def _repeat(self, system: System, history: History) -> None:
        """Lets a new host of the system do all again that an earlier one did; what it sends again changes nothing."""
        system.known, system.done = history.drawn, history.ended
        self.gallery.owner_repeats(system.name, system.known, system.done)
        if system.bundle not in self.bundles:
            self._lost_host(system, "its application is not here any more")
            return
        if not self._can_host(system, history):
            return
        try:
            self._fork(system)
        except (OSError, components.Error) as error:
            self._lost_host(system, f"no process can be started for it ({error})")
            return
        self._begin(system, history.parts, history.saved, history.values)
        for kind, _, *details in history.inputs:
            if kind == "step":
                system.pipe.call("step", *details)
            else:
                *numbers, attempt, payload = details
                system.pipe.call("outcome", *numbers, "", attempt, parts=payload or ())

    def _host_died(self, system: System, how: str) -> None:
        """With a journal another host takes its place, but not for ever."""
        if self.systems.get(system.name) is not system:
            return
        self._apply_collected()  # the next host hears of it as of the past
        system.ear.settle()
        system.ear.close()
        system.witness.close()
        system.deaths += 1
        if self.journal and system.deaths < MAX_HOSTS:
            log.warning("the host of system %s ended (%s); another one repeats what it did", system.name, how)
            system.late, records = [], []
            self.apply(Effects([("history", system.name, records)], [], [("history", system.name, records)]))
        else:
            again = f", {system.deaths} times" if system.deaths > 1 else ""
            self._lost_host(system, f"the process of the system ended: {how}{again}")

    def _lost_host(self, system: System, why: str) -> None:
        failure = {"type": "HostLost", "message": why, "traceback": "", "where": "", "kind": "system"}
        self.end_system(system, failure, {}, ())

    def _host_speaks(self, system: System, call: list, parts: list) -> None:
        method, *params = call
        if system.name not in self.systems:
            return
        if method == "submit":
            self._submit_again(system, *params, parts)
        elif method == "value":
            (value,) = params
            self._record("value", system.name, value)
        elif method == "snapshot":
            check_snapshot(*params)  # what fits no journal would end this master, or keep the next from starting
            self._record("snapshot", system.name, *params, list(parts))
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
        elif method == "figures":
            self.measures.of(system.name).hooks_say(*params)
        elif method == "system_step":
            self._in_step(system, *params)
        elif method == "view":
            self.keep_view(system, *params, parts)
        elif method == "system_done":
            failure, stats = params
            if type(stats) is not dict or not _is_summary(stats) or not (failure is None or _is_failure("*", failure)):
                raise rpc.ProtocolError("a host has not said how its system ended")
            self.end_system(system, failure, stats, parts)
        elif method == "confined" and not self.guard.is_whole(params[0]):
            log.error("the host of system %s is not used: of the sandbox it has applied %s", system.name, params[0])
            self.zygote.kill(system.token)

    def _in_step(self, system: System, step: int, waiting: bool) -> None:
        check_whole(step)  # others reckon with it
        self.tell_spans()  # those of the step before
        system.step, system.waiting = step, waiting is True
        self.gallery.system_step(system.name, step, system.waiting, time.monotonic())
        self.measures.of(system.name).next_step(step)
        self.traces.barrier(system)
        self._send(system.client, ["system_step", system.number, step, system.waiting])

    def _watch_hooks(self, seconds: float) -> None:
        """Ends systems of which a hook takes longer than it may; so many seconds have passed since the last look."""
        for system in list(self.systems.values()):
            said, beat = system.options.get("hook_timeout"), system.witness.pulse if system.witness else 0
            most = said if tasks.is_limit(said) else self.hook_timeout
            system.quiet = system.quiet + seconds if beat and beat == system.beat else 0.0
            system.beat = beat
            if most and system.quiet > most:
                hook = tasks.HOOKS[beat % len(tasks.HOOKS)]
                setting = "its hook_timeout" if most is said else "limits.hook_timeout of the master"
                text = f"its hook {hook} ran for {system.quiet:.2f} s; {setting} is {most:g} s"
                failure = {"type": "TimedOut", "message": text, "kind": "limit", "limit": "hook_timeout",
                           "measured": system.quiet, "allowed": most, "hook": hook}
                system.quiet = -math.inf  # while it tells where it is
                then = functools.partial(self._hook_hung, system, failure)
                system.witness.ask(self.zygote, system.token, self.loop, then)

    def _hook_hung(self, system: System, failure: dict) -> None:
        """If the hook has not returned after all, the system ends."""
        if system.quiet == -math.inf and system.name in self.systems:
            stack = system.witness.stack(str(self.environment / "apps" / system.bundle))
            self.end_system(system, {**failure, "traceback": stack[0], "where": stack[1]}, {}, ())

    def _submit_again(self, system: System, number: int, count: int, group: int, first: int, parts: list) -> None:
        """Takes a batch of a system, which it may have sent before in another process."""
        owner = self.board.owners[system.name]
        before = owner.batches.get(number)
        if before is None or before.count == count:
            self.submit(system.name, number, count, group, first, parts)
            return
        self.end_system(system, tasks.describe_failure(components.Error(
            f"system {system.app} does not repeat itself: its batch {number} had {before.count} tasks, now {count}",
            "its hooks depend on more than their arguments, its own attributes, master.now() and master.random",
            "see 'What is promised' in docs/programming-model.md",
        ), kind="system"), {}, ())

    def end_system(self, system: System, failure: dict | None, stats: dict, parts: Iterable, kill: bool = False
                   ) -> None:
        """The system is done, failed or cancelled: nothing of it that is queued runs, and its client hears of it. With
        `kill`, its tasks that run are killed."""
        if system.name not in self.systems:
            return
        self.tell_spans()
        if system.ear:
            system.ear.settle()
            system.ear.close()
            system.witness.close()
            if failure and failure.get("kind") != "cancelled" and (last := system.ear.output.last()):
                failure["output"] = last
        del self.systems[system.name]
        self.gallery.owner_ended(system.name, failure, time.monotonic(), str(stats.pop("shown", "")))
        seconds = time.monotonic() - system.since
        stats = {**stats, "elapsed": seconds, "id": system.name, "app": system.app,
                 "system_id": system.options.get("system_id"), **self.measures.of(system.name).told()}
        what = f"failed ({failure['type']}: {failure['message']})" if failure else "done"
        log.info("system %s %s: %s, %s tasks in %.1f s", system.name, system.app, what, stats.get("tasks", 0), seconds)
        if system.pipe:
            system.pipe.close()
            self.zygote.kill(system.token)  # a hook that never returns would not notice the end of its pipe
        end = Finished(system.name, system.app, system.user, failure, stats, list(parts))
        effects = self.board.owner_gone(system.name, time.monotonic(), kill)
        self._keep_finished(system.client, system.number, end, effects)
        self._send_finished(system.client, system.number)

    def tell_figures(self, client: str, number: int) -> None:
        """Answers a client what was measured of one of its systems, or of its plain tasks (0)."""
        self.tell_spans()
        system = self._system_of(client, number)
        if system or not number:
            figures = self.measures.of(system.name if system else client).dump_all()
        else:
            end = self._finished.get((client, number))
            figures = end.stats.get("measured", {}) if end else {}
        self._send(client, ["stats_response", number, figures])

    def _send_finished(self, client: str, number: int) -> None:
        end = self._finished[client, number]
        self._send(client, ["work_finished", number, end.failure, end.stats], end.parts)

    def _forget_finished(self, client: str, number: int) -> None:
        """Its client has heard how it ended, or will not."""
        end = self._finished.pop((client, number), None)
        if end is not None:
            self._record("gone", end.name)

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
            events = [["died", token, "it went with the zygote"] for token in [*self._hosts, *self.runs.tokens]]
        for event, token, detail in events:
            (self.runs.born if event == "born" else self.runs.died)(token, detail)
            system = self._hosts.pop(token, None) if event != "born" else None
            if system:
                system.pipe.drain()
                self._host_died(system, detail)

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
            self._watch_hooks(TELL_EVERY + min(now - self._tell_at, TELL_EVERY))  # less, if the master was suspended
            self._tell_at = now + TELL_EVERY
            self.tell_spans()
            self._tell_clients()
            self.traces.tell(now)
        if self.stopping and self.terminal:
            self.terminal.status(f"{len(self.board.leases)} leases run, {max(0, self._stop_at - now):.0f} s left")
        if self.stopping and (now >= self._stop_at or not (self.board.leases or self._unheard())):
            self.loop.stop()
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_EVERY
            self.gallery.sample(now, self._notes())
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            self._sweep(now)
        if now >= self._audit_at:
            self._audit_at = now + AUDIT_WINDOW
            self.audit_log.next_window()
        self._slow_at = min(look_at, self._sweep_at, self._sample_at, self._tell_at if self._busy() else math.inf)

    def _notes(self) -> list[list]:
        """What people should hear of this node."""
        notes = [["error", "storage", self.storage, "#log"]] if self.storage else []
        if not rpc.is_loopback(self.host) and not self.certificate:
            text = (f"the master listens on {self.host} without a certificate: its page and its token are for this "
                    "machine alone, see master.certificate")
            notes.append(["warn", "network", text, "#about"])
        return notes

    def _heard_at(self, slave: str) -> float | None:
        peer = self._peers.get(slave)
        return peer.session.heard_at if peer else None

    def _unheard(self) -> bool:
        """True while a node has not acknowledged what was sent to it."""
        return any(peer.unheard for peer in self._peers.values())

    def _busy(self) -> bool:
        return bool(self.board.owners)

    def _sweep(self, now: float) -> None:
        self._give_up_wanted(now)
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY
            self._count_failures()
        while self._expected and now >= self.board.resting_until:
            self._record("gone", self._expected.pop())
        self.spool.tidy()
        for name, since in list(self._gone_at.items()):
            if name in self._detached and any(system.client == name for system in self.systems.values()):
                self._gone_at[name] = now  # retention begins with the end of what it left here
            elif now - since > (kept := min(self.retention, self.board.quotas.retention)):
                log.info("client %s did not come back in %.0f s: its work is dropped", name, kept)
                self.forget_client(name)
        if self.board.scheduler_error:
            error, self.board.scheduler_error = self.board.scheduler_error, None
            log.error("the scheduler failed, the board placed a lease itself: %s", components.describe(error))

    def _count_failures(self) -> None:
        """Says how many tasks failed beside those that were told one by one."""
        failed = self._counts["failed"]
        if failed > self._failures_told:
            log.warning("%s more tasks failed, %s so far", f"{failed - self._failures_told:,}", f"{failed:,}")
            self._failures_told = failed

    def _tell_clients(self) -> None:
        """How the swarm stands, to every client for which that changed."""
        size = self.swarm_size()
        running: Counter = Counter()
        for lease in self.board.leases.values():
            running[lease.batch.owner.id] += lease.tasks
        owners = set(running)
        for name, peer in self._peers.items():
            if peer.role != "slave":
                mine = {s.number: [s.step, s.done, s.known] for s in self.systems.values() if s.client == name}
                self._tell_unsaid(name, peer)
                here = {owner: running[owner] for owner in self._owners_of(name) if owner in running}
                work = [*self._work.get(name, NO_WORK), self._all_work]
                told = [*size, mine, self._waits_of(name, owners), here, *work]
                if self._told.get(name) != told:
                    self._told[name] = told
                    self.channel.send(peer, ["swarm", *told])

    def _note_work(self, spans: list[Span]) -> None:
        for owner, some in grouped(spans, "owner").items():
            lasted = sum([one.ended - one.began for one in some])
            self._all_work += lasted
            client = self.systems[owner].client if owner in self.systems else owner
            if client in self._peers:
                seconds, moving, size = self._work.get(client, NO_WORK)
                moved, more = sum([one.opening + one.packing for one in some]), sum([one.received for one in some])
                self._work[client] = seconds + lasted, moving + moved, size + more

    def _owners_of(self, client: str) -> list[str]:
        return [client, *(system.name for system in self.systems.values() if system.client == client)]

    def _waits_of(self, client: str, running: set) -> list:
        """What work of a client waits for while nothing else is to be seen of it: [kind, tasks, why, first task]."""
        owners = self._owners_of(client)
        known = [self.board.owners[owner] for owner in owners if owner in self.board.owners]
        used = {self._peers[client].info.get("bundle"), *(self.systems[one].bundle for one in owners[1:])}
        waits = [["preparing", 0, what, ""] for (_, digest), what in self._preparing.items() if digest in used]
        paused = [line for owner in known if owner.paused for line in owner.lines.values()]
        waits += [["paused", line.tasks, PAUSED, line.head] for line in paused]
        lines = [pair for owner in known if not owner.paused for pair in owner.lines.items()]
        waits += [["unplaceable", line.tasks, demand.wanting, line.head] for demand, line in lines if demand.wanting]
        if running.isdisjoint(owners):
            others = ", ".join(sorted(running)[:SHOWN])
            why = f"the slaves run tasks of {others}" if running else "no slave takes them yet"
            why = (known and self.board.behind(known[0].user)) or why
            waits += [["behind", line.tasks, why, line.head] for demand, line in lines if not demand.wanting]
            failed = self.board.delayed(owners)
            pieces = [(when, batch, lo, hi) for batch in failed for lo, hi, _, when in batch.delayed]
            if pieces:
                when, batch, lo, _ = min(pieces, key=lambda piece: piece[0])
                why = f"they failed, and the first runs again in {max(0.0, when - time.monotonic()):.0f} s"
                waits.append(["delayed", sum(hi - lo for *_, lo, hi in pieces), why, batch.task_id(lo)])
        return waits[:SHOWN]

    def config_changed(self, changes: set) -> BaseException | None:
        super().config_changed(changes)
        self.audit("config", "", changed=sorted(f"{section}.{key}" for section, key in changes))
        self.board.max_lease, self.memory.limit = self.max_lease, self.memory_limit * 1024 * 1024
        if ("master", "unplaceable_wait") in changes:
            self.board.unplaceable_wait = self.unplaceable_wait
            self.apply(self.board.tick(time.monotonic()))
        if any(section == "limits" for section, _ in changes):
            self.read_limits()
        if any(section == "quotas" for section, _ in changes):
            self.read_quotas()
            self.apply(self.board.tick(time.monotonic()))  # some may wait no more
        if ("master", "task_scheduler") in changes:
            return components.run_foreign("the scheduler stays as it was", self.set_scheduler)
        return None

    def open_control_channel(self) -> None:
        """Opens the HTTP port, writes the access files, and notes for nodes of this user where they are."""
        self.token = self.keyring.token()
        self._expose_to_people()
        self._expose_controls_of_systems()
        self._expose_applications()
        self._expose_explanations()
        self.service.audit = self.audit
        tls, pin = None, {}
        if self.certificate or self.certificate_key:
            tls, pin["certificate"] = rpc.server_tls(str(self.certificate or ""), str(self.certificate_key or ""))
        self.serve(self.host, self.port, self.token, self.names_here, tls)
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host  # what others can call
        self.addresses = {
            "http": rpc.format_address(host, self.server.port), "tcp": rpc.format_address(host, self.tcp_port),
            "ipc": self.socket_file, **pin,
        }
        self.keyring.write_access(self.addresses)
        self._note = rpc.masters_folder() / str(self.server.port)
        try:
            self._note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._note.write_text(f"{self.environment.path}\n")
            self.closing.callback(self._forget_note)
        except OSError as error:
            log.warning("nodes on this machine need --access FILE too, for %s cannot be written: %s", self._note, error)

    def peers_of(self, key: str) -> list[rpc.Peer]:
        """The nodes here that have this key."""
        return [peer for peer in self._peers.values() if peer.key == key]

    def loopback_addresses(self) -> tuple[str, str]:
        """The control and the compute channel, as a process of this machine reaches them."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server.server_name, self.server.server_name)
        return rpc.format_address(host, self.server.port), rpc.format_address(host, self.tcp_port)

    def _forget_note(self) -> None:
        if self._note.exists() and self._note.read_text().strip() == str(self.environment.path):
            self._note.unlink()

    def _expose_to_people(self) -> None:
        service = self.service

        @rpc.jsonremote(service)
        def enrol(request, role: str, public_key: str, name: str, nonce: str, time: float, mac: str):
            """Lets a node's key in, if the request is signed with the join secret of its role."""
            asked = {"role": role, "public_key": public_key, "name": name, "nonce": nonce, "time": time, "mac": mac}
            return self.loop.ask(lambda: self.enrol(asked, request))

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

        @rpc.jsonremote(service, name="slave.remove", roles=("admin",))
        def remove(request, slave: str):
            """Ends a slave at once; says how many tasks go back to the queue."""
            return self.loop.ask(lambda: self.remove_slave(slave, f"an {request.role} at {request.address}"))

    def _expose_controls_of_systems(self) -> None:
        service = self.service

        @rpc.jsonremote(service, name="system.cancel", roles=("admin",))
        def cancel(request, system: str, kill: bool = False):
            """Ends a task system; says how many tasks wait, which never run, and how many run. kill: ends these too."""
            return self.loop.ask(lambda: self.cancel_system(system, kill))

        @rpc.jsonremote(service, name="system.pause", roles=("admin",))
        def pause(request, system: str, paused: bool = True):
            """Gives slaves nothing more of a task system, or again; says how many of its tasks wait, and run on."""
            return self.loop.ask(lambda: self.pause_system(system, paused))

        @rpc.jsonremote(service, name="system.step", roles=("admin",))
        def step(request, system: str, on: bool = False):
            """Lets a task system that waits after each step begin the next one; says which. on: and wait no more."""
            return self.loop.ask(lambda: self.step_system(system, on))

        @rpc.jsonremote(service, name="ui.view", roles=("admin",), audited=False)
        def view(request, system: str):
            """The newest picture that a task system has shown of itself, as base64, and its number."""
            kind, data, version = self.loop.ask(lambda: self.view_of(system))
            return {"type": kind, "data": base64.b64encode(data).decode(), "version": version}

    def _expose_applications(self) -> None:
        service = self.service

        @rpc.jsonremote(service, name="app.upload", roles=("admin",), audited=False)  # the source is too much
        def upload(request, name: str, source: str):
            """Keeps the source of an application, a file such as md5.py, to be started here; returns its id."""
            app = self.runs.upload(name, source)
            self.audit("upload", request, app=app, name=name, characters=len(source))
            return {"app": app}

        @rpc.jsonremote(service, name="app.start", roles=("admin",))
        def start(request, app: str, arguments: list | None = None):
            """Starts a client process for an application that was uploaded, with arguments as of client.py."""
            return self.runs.start(app, arguments or [])

        @rpc.jsonremote(service, name="app.stop", roles=("admin",))
        def stop(request, run: str):
            """Ends a client process that was started here, and its work with it."""
            return self.loop.ask(lambda: self.runs.stop(run))

        @rpc.jsonremote(service, name="app.runs", roles=("admin",), audited=False)
        def runs(request, run: str = ""):
            """What was started here: state, exit code, the end of the output; of one run as much as is kept of it."""
            return self.loop.ask(lambda: self.runs.rows(run))

    def _expose_explanations(self) -> None:
        service = self.service

        @rpc.jsonremote(service, name="enrol.check")
        def check_enrolment(request, role: str, public_key: str, name: str, nonce: str, time: float, mac: str):
            """Says whether a node's enrolment would be let in, and lets nobody in."""
            asked = {"role": role, "public_key": public_key, "name": name, "nonce": nonce, "time": time, "mac": mac}
            return self.loop.ask(lambda: self.keyring.check_enrolment(asked))

        @rpc.jsonremote(service, name="task.explain")
        def explain(request, task: str):
            """Where a task is and what it waits for: the queue, the turns, and what keeps each slave from it."""
            owner, ordinal = parse_task_id(task)
            about = self.loop.ask(lambda: self.board.explain(owner, ordinal, time.monotonic()))
            return told_of(about, request.role == "admin")

        @rpc.jsonremote(service, name="ui.task")
        def show(request, task: str):
            """What task.explain says, and when and where the task ran last, if that is still kept."""
            return told_of(self.explain(task), request.role == "admin")

        @rpc.jsonremote(service, name="ui.slave")
        def look(request, slave: str):
            """A slave: how it is, what it offers, and what of the sandbox is active there."""
            return self.loop.ask(lambda: self.describe_slave(slave))

    def describe_slave(self, name: str) -> dict[str, Any]:
        """What its row on the page shows, and what it told of itself. Raises RpcError for a slave that is not here."""
        if name not in self.gallery.slaves:
            raise unknown(f"there is no slave {name[:40]}", f"here are: {', '.join(self.board.slaves) or 'none'}")
        row = self.gallery.look_at(name, time.monotonic())
        told = self._peers[name].info if name in self._peers else {}
        more = {key: told[key] for key in ("version", "python", "pid", "resources", "tags", "features") if key in told}
        return {**row, **more}

    def tell(self, cur: dict, asked: dict, whole: bool) -> dict:
        """What the page shows. The loop only copies; one question at a time is made into an answer."""
        wanted = Asked.of(cur, asked["stream"], asked["slaves"], asked["system"], whole)
        with self._viewing:
            copied = self._ask(lambda: self.gallery.copy(wanted, time.monotonic()))
            return {**self.gallery.tell(copied, wanted, whole), "sandbox": self.guard.features()}

    def _ask(self, function: Callable[[], Any]) -> Any:
        """What this returns in the thread of the loop, after all reports that have come."""
        return self.loop.ask(lambda: (self.tell_spans(), function())[1])

    def explain(self, task: str) -> dict:
        """Where a task is, and when it ran last, if that is still known. Any thread may call it."""
        owner, ordinal = parse_task_id(task)
        about, texts, spans = self._ask(lambda: (self.board.explain(owner, ordinal, time.monotonic()),
                                                 self.gallery.texts.texts, self.gallery.spans.since(0)))
        return {**about, "span": self.gallery.find(spans, texts, owner, ordinal)}

    def audit(self, event: str, peer_or_key: rpc.Peer | rpc.HttpRequest | str, **facts: Any) -> None:
        """Writes into the audit log what happened, and who it was: a peer, a caller by HTTP, a public key or an
        address; empty for this node itself. Any thread may call it."""
        who = peer_or_key
        if isinstance(who, rpc.Peer):
            about = {"who": who.name, "role": who.role, "key": rpc.fingerprint(who.key)}
        elif isinstance(who, rpc.HttpRequest):
            about = {"from": who.address, "role": who.role}
        elif known := self.keyring.entry(who):
            about = {"who": known[1], "role": known[0], "key": rpc.fingerprint(who)}
        else:
            about = {"from": who} if who else {}
        self.audit_log.put(event, about.get("key") or about.get("from", ""), {**about, **facts})

    def _audit_owner(self, event: str, owner: str, why: str) -> None:
        """Writes what the work of an owner did, with the key of its client if that is here."""
        client = self.systems[owner].client if owner in self.systems else owner
        known = self.board.owners.get(owner)
        self.audit(event, self._peers.get(client, ""), why=why, owner=owner, user=known.user.name if known else "")

    def enrol(self, asked: dict, request: rpc.HttpRequest) -> dict:
        """Lets a node's key in. Raises Error if it may not be, or cannot be stored."""
        new = not self.keyring.entry(asked["public_key"])
        try:
            answer = self.keyring.enrol(asked, self.addresses)
            if new:
                self.audit("enrol", asked["public_key"], address=request.address)
            return answer
        except OSError as error:
            raise components.Error(
                f"the key of this node cannot be stored by the master ({error})",
                "its disk is full, or cannot be written", "make room there, and try again",
            ) from None
        except Error as error:
            self.audit("refuse", request, why=error.what)
            raise

    def order_slave(self, slave: str, call: list) -> bool:
        """Passes an order on. Raises RpcError for a slave that is not here."""
        self.channel.send(self._peers[self._slave(slave).id], call)
        return True

    # controls: each says what becomes of how many tasks

    def remove_slave(self, name: str, who: str) -> dict[str, Any]:
        """Ends a slave at once: what it holds goes back to the queue, as when it is lost, and it hears who did it."""
        slave, peer = self._slave(name), self._peers[name]
        about = {"slave": name, "leases": slave.open_leases, "tasks": slave.open_tasks}
        self._removed.append((identity_of(peer, peer.info), who))
        self.channel.drop(peer, f"removed by {who}", removed(name, who))
        return about

    def cancel_system(self, name: str, kill: bool = False) -> dict[str, Any]:
        """Ends a system by name. Raises RpcError if there is none."""
        system, standing = self._running(name), self.board.standing(name)
        self.end_system(system, tasks.cancelled_failure(), {}, (), kill)
        return {"system": name, "kill": kill, **standing}

    def pause_system(self, name: str, paused: bool) -> dict[str, Any]:
        """Lets nothing more of a system be leased, or lets it go on. Raises RpcError if there is none."""
        system = self._running(name)
        app = system.app
        self.apply(self.board.owner_paused(name, paused, time.monotonic()))
        self.gallery.system_paused(name, paused)
        self.gallery.system_step(name, system.step, system.waiting, time.monotonic())  # it may wait at its barrier
        log.info("system %s %s: %s", name, app, PAUSED if paused else "it goes on")
        return {"system": name, "paused": paused, **self.board.standing(name)}

    def step_system(self, name: str, on: bool = False) -> dict[str, Any]:
        """Lets a system begin its next step; `on`: it waits at no further barrier. Raises RpcError if there is none, or
        it does not wait for that."""
        system = self._running(name)
        if not system.waiting:
            by_hand = self.gallery.works[name].by_hand
            raise components.Error(f"task system {name} does not wait for a person",
                                   f"its step {system.step} is not over" if by_hand else "it goes on by itself",
                                   "" if by_hand else "a client lets it wait after each step with --step")
        if on:
            self.gallery.system_runs_on(name)
        self._step(system, on)
        return {"system": name, "step": system.step + 1}

    def _step(self, system: System, on: bool = False) -> None:
        system.waiting = False
        self._record("step", system.name, on)
        self._send(system.name, ["step", on])

    def _running(self, name: str) -> System:
        if name not in self.systems:
            raise unknown(f"no task system {name[:40]} runs", f"running: {', '.join(self.systems) or 'none'}")
        return self.systems[name]

    def _slave(self, name: str) -> Slave:
        if name not in self.board.slaves or name not in self._peers:
            raise unknown(f"there is no slave {name[:40]}", f"here are: {', '.join(self.board.slaves) or 'none'}")
        return self.board.slaves[name]

    def keep_view(self, system: System, kind: str, parts: list) -> None:
        """Keeps a picture of a system, the newest of each; pictures of the last few systems are kept."""
        if len(parts) != 1 or rpc.size_of(parts[0]) > tasks.MOST_VIEW or type(parts[0]) is rpc.Reference:
            raise rpc.ProtocolError("a host sent a picture that is too large")
        data, before = tasks.checked_view(bytes(parts[0]), kind), self.views.pop(system.name, None)
        self.views[system.name] = View(kind, data, before.version + 1 if before else 1)
        self.gallery.system_shown(system.name, self.views[system.name].version)
        while len(self.views) > VIEWS_KEPT:
            del self.views[next(iter(self.views))]

    def view_of(self, name: str) -> View:
        """The newest picture of a system. Raises RpcError if it has shown none."""
        if name not in self.views:
            raise unknown(f"task system {name[:40]} has shown no picture", "it never did, or it was long ago",
                          "a system shows one with self.publish_view(data)")
        return self.views[name]

    def scopes(self) -> dict[str, components.Stats]:
        return self.measures.scopes()

    def figures_kept(self) -> None:
        owners, slaves = list(self.board.owners), list(self.board.slaves)
        self.measures.forget({"", *owners, *(f"slave:{name}" for name in slaves)})

    def describe_slaves(self) -> list[dict]:
        """A row per slave."""
        now = time.monotonic()
        return [
            {"name": s.id, "workers": s.workers, "leases": s.open_leases, "tasks": s.open_tasks, "done": s.done_tasks,
             "seconds": round(s.seconds, 3), "resources": s.resources, "tags": sorted(s.tags), "draining": s.draining,
             "key": rpc.fingerprint(self._peers[s.id].key) if s.id in self._peers else "",
             "quarantine": round(max(0.0, s.released - now), 1) if s.released else 0}
            for s in self.board.slaves.values()
        ]

    def describe_systems(self) -> list[dict]:
        """A row per running system."""
        now = time.monotonic()
        standing = {name: self.board.standing(name) for name in self.systems}
        return [
            {"name": s.name, "app": s.app, "client": s.client, "step": s.step, "elapsed": round(now - s.since, 1),
             "done": s.done, "tasks": s.known, "queued": standing[s.name]["waiting"],
             "running": standing[s.name]["running"], "state": self.state_of(s),
             "view": self.views[s.name].version if s.name in self.views else 0}
            for s in self.systems.values()
        ]

    def state_of(self, system: System) -> str:
        """Of a running system: "paused" by a person, "waiting" for one at its barrier, or "running"."""
        paused = self.board.owners[system.name].paused
        return "paused" if paused else "waiting" if system.waiting else "running"

    def status(self) -> dict:
        slaves, workers, busy = self.swarm_size()
        users = dict.fromkeys(owner.user for owner in self.board.owners.values())
        return {
            **super().status(), "slaves": slaves, "workers": workers, "busy": busy,
            "queued": sum(one.queued for one in users),
            "clients": sorted(name for name, peer in self._peers.items() if peer.role != "slave"),
            "systems": len(self.systems), "done": self._counts["tasks"], "failed": self._counts["failed"],
            "scheduler": type(self.board.scheduler).__name__, "journal": bool(self.journal),
            "storage": self.storage or "ok", "addresses": self.addresses,
            "users": {one.name: {"queued": one.queued, "bytes": one.bytes, "running": one.running,
                                 "systems": self._systems_of(one)} for one in users},
            "quotas": {name: most for name, most in self.board.quotas._asdict().items() if most < math.inf},
            "unplaced": self.board.unplaced(time.monotonic()), "counters": dict(self.board.counters),
            "refused": dict(self.channel.counts), "audit": dict(self.audit_log.counts),
            "sandbox": self.guard.status(),
        }

    def pages(self) -> dict[str, Any]:
        return {**super().pages(), "/trace.json": rpc.Page("application/json", self._kept_trace, ("admin",))}

    def _kept_trace(self, request: rpc.HttpRequest) -> tuple[bytes, int]:
        rows = self._ask(lambda: self.gallery.kept(request.query.get("system", "")))
        return tasks.trace_of(rows), 200

    def unready(self) -> str:
        if self.broken:
            return f"the journal cannot be written: {self.broken.what}"
        return "it is stopping" if self.stopping else self.storage

    def metrics(self) -> list[components.Metric]:
        metric = components.metric
        slaves, workers, busy = self.swarm_size()
        users = dict.fromkeys(owner.user for owner in self.board.owners.values())
        clients = sum(peer.role != "slave" for peer in self._peers.values())
        events = [({"event": event}, count) for event, count in sorted(self.board.counters.items())]
        refused = [({"reason": str(reason)}, count) for reason, count in sorted(self.channel.counts.items())]
        return [
            *super().metrics(),
            metric("slaves", "Slaves that are here.", slaves),
            metric("workers", "Leases that they run at once.", workers),
            metric("workers_busy", "Those of them that run one.", busy),
            metric("clients", "Clients that are here.", clients),
            metric("systems", "Task systems that run.", len(self.systems)),
            metric("tasks_queued", "Tasks that wait.", sum(one.queued for one in users)),
            metric("payload_bytes", "Bytes of tasks and results held.", sum(one.bytes for one in users)),
            metric("storage_ok", "0 while new work is refused for want of room.", int(not self.storage)),
            metric("tasks_total", "Tasks with an outcome.", self._counts["tasks"]),
            metric("tasks_failed_total", "Those of them that failed.", self._counts["failed"]),
            components.Metric("events_total", "What befell leases and reports.", events),
            components.Metric("refused_total", "Messages of the compute channel that were refused.", refused),
            *self._metrics_of_work(),
            *self._metrics_of_slaves(),
        ]

    def _metrics_of_work(self) -> list[components.Metric]:
        """What the statistics of this node have counted; they begin anew when somebody resets these."""
        metric, found, nothing = components.metric, self.stats.dump_all(), {"sum": 0.0}
        histograms = [metric(name, text, self.stats.histogram(f"swarm.{which}")) for name, which, text in HISTOGRAMS]
        return histograms + [metric(f"{name}_total", text, found.get(f"swarm.{which}", nothing)["sum"])
                             for name, which, text in TOTALS]

    def _metrics_of_slaves(self) -> list[components.Metric]:
        """A sample per slave, unless there are so many that they would cost whoever reads them more than they tell."""
        shown = list(itertools.islice(self.board.slaves.values(), SLAVES_MEASURED))
        hosts = {s.id: self._peers[s.id].info.get("host", "?") for s in shown if s.id in self._peers}
        rows = [({"slave": s.id, "host": str(hosts.get(s.id, "?"))[:255]}, s) for s in shown]

        def each(name: str, help: str, value: Callable[[Slave], float]) -> components.Metric:
            return components.Metric(name, help, [(labels, value(slave)) for labels, slave in rows])

        return [
            components.metric("slaves_not_shown", f"Slaves beyond the {SLAVES_MEASURED} that have samples of their "
                              "own.", len(self.board.slaves) - len(shown)),
            each("slave_workers", "Leases that a slave runs at once.", lambda s: s.workers),
            each("slave_leases", "Leases in its hands.", lambda s: s.open_leases),
            each("slave_tasks", "Tasks in its hands.", lambda s: s.open_tasks),
            each("slave_tasks_total", "Tasks that it has done.", lambda s: s.done_tasks),
            each("slave_busy_seconds_total", "Seconds of workers that these took.", lambda s: s.seconds),
            each("slave_usable", "0 while it drains or is in quarantine.", lambda s: int(not s.closed)),
        ]

    def summary(self) -> str:
        slaves, workers, busy = self.swarm_size()
        return f"{'stopping: ' * self.stopping}{slaves} slaves, {workers} workers, {busy} busy"

    def stop_soon(self) -> None:
        """Lets what runs end, for GRACE seconds, and stops; at once if nothing runs or this is the second time."""
        self.supervisor.tell(STOPPING=1)
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
  master.py doctor                 what is missing here, and what to do
  master.py stats --system 1       what was measured, also of what has gone
  master.py journal check          what is accepted and not done, is it whole
  master.py keys invite slave      a file that lets slaves in for a day
  master.py keys list              who is let in; keys revoke NAME, keys rotate

exit: 0 stopped, 1 failed, 2 usage or port taken, 130/143 signals
"""


def parser() -> components.ArgumentParser:
    """The options of `master.py`."""
    made = components.ArgumentParser(prog="master.py",
                                     usage="master.py [options]   coordinate slaves and run applications",
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--host", metavar="ADDR", help="address to listen on (127.0.0.1)")
    made.add_argument("--port", metavar="N", help="port of the control channel (8080)")
    made.add_argument("--scheduler", metavar="NAME", help="push, pull, or the name of a component")
    made.add_argument("--no-page", action="store_true", help="show no page to browsers")
    made.add_argument("--trace", metavar="FILE", help="write what runs where and when, for ui.perfetto.dev")
    made.add_argument("--no-journal", action="store_true", help="forget what was accepted when it ends")
    rpc.common_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs a master; returns its exit code."""
    return components.run_main(_main, argv)


SCHEDULERS = {"push": "GenericTaskScheduler", "pull": "ZMQTaskScheduler"}


def _main(argv: list[str]) -> int:
    code = rpc.administer("master", argv, tasks.checks, ("journal", "keys"))
    if code is None and argv[:1] == ["journal"]:
        code = _show_journal(argv[1:])
    if code is None and argv[:1] == ["keys"]:
        code = _keep_keys(argv[1:])
    if code is not None:
        return code
    options = parser().parse_args(argv)
    hint = components.did_you_mean(options.scheduler or "", SCHEDULERS)
    if hint and options.scheduler.islower() and options.scheduler not in SCHEDULERS:
        raise components.UsageError(f"--scheduler {options.scheduler}: {hint}", "else the name of a component is meant",
                                    "master.py --help")
    chosen = {"host": options.host, "port": options.port, "task_scheduler": options.scheduler}
    chosen["task_scheduler"] = SCHEDULERS.get(options.scheduler, options.scheduler)
    chosen["trace"] = options.trace and os.path.abspath(options.trace)
    settings = [f"master.{key}={value}" for key, value in chosen.items() if value is not None]
    environment, config = rpc.open_environment("master", options, settings + ["master.journal=no"] * options.no_journal
                                               + ["node.page=no"] * options.no_page)
    with environment:
        node = MasterNode(environment, config)
        terminal = components.Terminal(color=options.color)
        with components.configure_logging(environment, node.log_format, node.log_level, terminal):
            return _run(node, options, terminal)


def _show_journal(argv: list[str]) -> int:
    made = components.ArgumentParser(prog="master.py journal")
    made.add_argument("what", choices=("check", "export"), help="say what is in it, or write it as JSON lines")
    made.add_argument("--env", metavar="DIR", help="the master's folder")
    made.add_argument("--payloads", action="store_true", help="export what tasks and results carry too, as base64")
    made.add_argument("-q", "--quiet", action="store_true", help="check: say only what is wrong")
    options = made.parse_args(argv)
    if options.what == "export":
        export_journal(options.env, options.payloads)
    elif (text := summary_of(options.env)) and not options.quiet:
        print(text)
    return components.EXIT_OK


KEYS_USAGE = """master.py keys list                                  who is let in, and the invitations
       master.py keys invite ROLE [--hours N] [--once] [--out FILE]   an access file that ends
       master.py keys revoke NAME|KEY|NUMBER [--all]        a node, or an invitation
       master.py keys rotate [--own]                        new access files, who is in stays"""


def keys_parser() -> components.ArgumentParser:
    """The options of `master.py keys`."""
    made = components.ArgumentParser(prog="master.py keys", usage=KEYS_USAGE)
    made.add_argument("what", choices=KEEPERS, help=argparse.SUPPRESS)
    made.add_argument("who", nargs="?", default="", help=argparse.SUPPRESS)
    made.add_argument("--env", metavar="DIR", help="the master's folder")
    made.add_argument("--hours", type=float, default=24.0, help="how long an invitation lets nodes in (24)")
    made.add_argument("--once", action="store_true", help="it lets in one node")
    made.add_argument("--out", metavar="FILE", default="", help="where it goes (ROLE-NUMBER.access)")
    made.add_argument("--all", action="store_true", help="revoke all nodes of that name")
    made.add_argument("--own", action="store_true", help="also a new key for the master, from its next start")
    return made


def _keep_keys(argv: list[str]) -> int:
    """`keys`: acts on the folder of a master that runs, or will run."""
    options = keys_parser().parse_args(argv)
    folder = Path(options.env or components.state_root() / "master").absolute()
    if not (folder / "keys").is_dir():
        raise components.UsageError(f"there are no keys in {folder}", "no master has run there", "name it: --env DIR")
    audit = Audit(folder / "logs" / "audit.jsonl")
    audit.start()
    try:
        for line in KEEPERS[options.what](rpc.Keyring(str(folder / "keys")), options, audit):
            print(line)
    except OSError as error:
        raise Error(f"the keys in {folder} cannot be changed", str(error), "make room on that disk") from None
    finally:
        audit.close()
    return components.EXIT_OK


def _list_keys(keyring: rpc.Keyring, options: Any, audit: Audit) -> Iterable[str]:
    ends = {one.name: ended for one, ended in keyring.invitations().items()}
    for key, node in sorted(keyring.nodes().items(), key=lambda pair: (pair[1].role, pair[1].name)):
        by = f"by {node.by}" if node.by in ends else f"by {node.role}.access"
        yield f"{node.role:7}{rpc.fingerprint(key)}  {node.name}  since {node.since}, {by}"
    for one, ended in keyring.invitations().items():
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.until))
        yield f"invites {one.name}      a {one.role}{', once' * one.once}, until {until}{ended and f': ended, {ended}'}"


def _invite(keyring: rpc.Keyring, options: Any, audit: Audit) -> Iterable[str]:
    if options.who not in rpc.ROLES or not 0 < options.hours < 1e6:
        why = f"an invitation is for a {', '.join(rpc.ROLES)}, and for up to a million hours"
        fix = "python master.py keys invite slave --hours 8"
        raise components.UsageError(f"invite {options.who} --hours {options.hours:g}: no invitation", why, fix)
    made, path = keyring.invite(options.who, options.hours * 3600, options.once, options.out)
    audit.put("invite", "", {"invitation": made.name, "role": made.role, "once": made.once, "hours": options.hours})
    yield path


def _revoke(keyring: rpc.Keyring, options: Any, audit: Audit) -> Iterable[str]:
    found, nodes = keyring.find(options.who), keyring.nodes()
    if not found:
        raise components.UsageError(f"nobody here is {options.who}", "it was not let in, or is revoked already",
                                    "`master.py keys list` shows who is")
    if len(found) > 1 and not options.all:
        each = ", ".join(f"{rpc.fingerprint(key)} ({nodes[key].role})" for key in found)
        raise components.UsageError(f"{len(found)} nodes are called {options.who}", each, "name one key, or add --all")
    for key in found:
        keyring.revoke(key)
        role, name = nodes[key][:2] if key in nodes else ("invitation", key)
        audit.put("revoke", "", {"key": rpc.fingerprint(key), "role": role, "name": name})
        yield f"{role} {name} is revoked"


def _rotate(keyring: rpc.Keyring, options: Any, audit: Audit) -> Iterable[str]:
    keyring.rotate(options.own)
    audit.put("rotate", "", {"own": options.own})
    yield f"new secrets are in the access files of {keyring.folder}; invitations have ended, nodes that are in stay"
    if options.own:
        yield "from its next start the master has a new key: then copy its access files to the other machines again"


KEEPERS = {"list": _list_keys, "invite": _invite, "revoke": _revoke, "rotate": _rotate}


def _run(node: MasterNode, options: Any, terminal: components.Terminal) -> int:
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
    rpc.reload_on_hangup(node)
    try:
        with nullcontext() if options.quiet else terminal.waiting("this master is starting"):
            node.setup()
        node.terminal = terminal if terminal.live else None
        node.config.check_unknown()
        tell_parent = rpc.follow_parent(options.parent, node.loop, node.loop.stop)
        if not options.quiet:
            _greet(node, time.monotonic() - began)
        tell_parent({"address": node.server.address})
        node.supervisor.ready()
        node.loop.run()
        terminal.write("")  # the status line goes
        if node.broken:
            raise node.broken
        return code
    finally:
        node.close()


def _greet(node: MasterNode, seconds: float) -> None:
    """The start lines. The token is for a person's eyes: what reads a pipe may keep it."""
    address = node.addresses["http"]
    place = f"#token={node.token}" if sys.stderr.isatty() else f"  (token: {node.environment / 'keys' / 'token.json'})"
    lines = [
        rpc.greeting("master"),
        *[f"  page     http{'s' * bool(node.server.tls)}://{address}/{place}"] * node.shows_page,
        f"  slaves   python slave.py --master {address}",
        f"  run      python client.py samples/md5.py --master {address}",
        f"  folder   {node.environment.path}",
        "Only this machine can connect. For a network: --host 0.0.0.0, and copy keys/slave.access to the slaves"
        if rpc.is_loopback(node.host) else f"Nodes elsewhere need a file of {node.environment / 'keys'}: --access FILE",
        f"ready in {seconds:.1f} s, Ctrl-C stops",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
