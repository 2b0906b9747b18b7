"""A slave: offers this machine's processors to a master.

                       lease, revoke, steal, bundle                    run, drop
    master  ------------------------------------------>  SlaveNode  --------------->  worker (one user and bundle)
            <------------------------------------------             <---------------
              result, given_back, worker_lost, fetch, output           result, ended, what it prints

The slave opens nothing of what it passes on. `ProcessTaskManager` grants each lease its resources when it starts, runs
it in a warm worker of the lease's user and bundle or forks one, and replaces workers that die. Leases beyond the free
slots wait here so that a worker never idles for the length of a round trip; the master may take them back. A worker
that was quick with its last lease is handed more of that kind ahead: each message less is a process less that must be
woken up.
"""

if __name__ == "__main__":  # hand over to the one copy of this module, under its real name
    if __spec__ is None:  # python slave.py
        from concurrent_swarm import run

        run(__file__)
    from importlib import import_module  # python -m concurrent_swarm.slave

    raise SystemExit(import_module(__spec__.name).main())

import argparse
import collections
import contextlib
import functools
import heapq
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path

from . import components, rpc, tasks

log = logging.getLogger(__spec__.name)

EPSILON = 1e-9  # sums of amounts such as 0.1 may miss by this much
MOST_AHEAD = 8  # leases that a worker may have ahead of it
IDLE_KEPT = 2  # workers that stay warm beyond the number of slots
RESPAWN_PAUSE = 1.0  # seconds that new workers wait after too many have died
LONGEST = 10**15  # microseconds that a worker may say it took
LOADING = 300.0  # seconds that it may take to load what a task needs, before the task's time counts all the same


# -- workers -------------------------------------------------------------------------------------------------------

class Worker:
    """One worker process as its slave sees it."""

    def __init__(self, token: int, digest: str, user: str, now: float):
        self.token = token
        self.digest, self.user = digest, user  # it serves these alone
        self.pipe: rpc.Pipe | None = None
        self.pid = 0
        self.envelope: tasks.Envelope | None = None  # what it runs
        self.ahead: collections.deque[tasks.Envelope] = collections.deque()  # what it has to run after that
        self.room = 0  # leases like the last one that it may have ahead
        self.ran_on = False  # the slave has not seen between which of its leases it has printed something
        self.grant: dict = {}
        self.told: dict | None = None  # the variables of the last grant
        self.lo = 0  # the first task of the lease that was not reported
        self.forgotten = False  # the lease belongs to a master that is gone
        self.doomed = False  # it was killed, and its end has not been heard of yet
        self.ear: tasks.Ear | None = None  # hears what it prints
        self.used = now
        self.limits: dict[str, float] = {}  # of what it runs
        self.began = math.inf  # when it was ready to run that
        self.peak = 0.0  # MiB that it and its children were seen to take
        self.witness: tasks.Witness | None = None  # to which it tells where it is, if it has limits
        self.passed: tuple | None = None  # the limit that it passed, and what was measured
        self.most = tasks.PROCESS_LIMIT  # processes that what it ran last may have at once
        self.least = math.inf  # MiB that it was seen to take at least
        self.confined = True  # as it is to be, as far as it has told
        self.leaks = False  # it was seen to keep too much, maybe only while it runs something
        self.lane = 0  # which of the leases that run here has it; small numbers are used again

    def ago(self, spent: list[int]) -> list[int]:
        """Its lane, and what it says it has spent, as a report tells it: microseconds before now at which it began and
        ended (of the clock that all processes of a machine share), and of opening and packing. Nothing, if it has run
        nothing. Raises ProtocolError."""
        if type(spent) is not list or len(spent) not in (0, 4) or {*map(type, spent)} - {int}:
            raise rpc.ProtocolError("a worker has not said how long it took")
        now = int(time.perf_counter() * 1e6)
        began, ended, opening, packing = spent or (now, now, 0, 0)
        if now - LONGEST < began <= ended <= now and 0 <= opening < LONGEST and 0 <= packing < LONGEST:
            return [self.lane, now - began, now - ended, opening, packing]
        return [self.lane, 0, 0, 0, 0]

    def row(self, app: str, now: float) -> list:
        """It as the page of its slave shows it: lane (-1: none), process, application, user, state, seconds in that
        state, tasks, bytes."""
        one = self.envelope
        state = "ends" if self.doomed else "idle" if one is None else "runs"
        count, lane = (one.hi - self.lo, self.lane) if one else (0, -1)
        return [lane, self.pid, app, self.user, state, round(now - self.used, 2), count, memory_of(self.pid)]


class ProcessTaskManager(components.Component):
    """Runs leases in worker processes, one lease a worker at a time.

    Reports through `node`: result, given_back, worker_lost, fetch. `free` is what of the pools is not granted.
    """

    components.implements(tasks.ITaskManager)

    def __init__(self):
        self.waiting: collections.deque[tasks.Envelope] = collections.deque()
        self.workers: dict[int, Worker] = {}
        self.pool: dict[str, float] = {}
        self.free: dict[str, float] = {}
        self.units: list[int] = []  # numbers of the GPUs that are free
        self.done = collections.Counter(tasks=0, failed=0, leases=0)
        self._lanes: list[int] = []  # of all that were in use, those that are free
        self._unwanted: dict[int, bool] = {}  # leases that a worker has ahead, and whether to kill it if it begins one
        self._fetching: set[str] = set()
        self._least = math.inf  # processors that the most modest of the waiting leases needs
        self._asking: dict[str, list[Worker]] = {}  # published objects that are on their way, and who waits
        self._deaths = tasks.Recent()
        self._watch = Watch(self)

    # ITaskManager

    def held(self) -> list[list]:
        """Every lease that waits or runs, with the part that was not reported."""
        rows = [(envelope, envelope.lo) for envelope in self.waiting]
        rows += [(worker.envelope, worker.lo) for worker in self.running if not worker.forgotten]
        rows += [(envelope, envelope.lo) for worker in self.running for envelope in worker.ahead]
        return [[one.lease, one.owner, one.number, lo, one.hi, one.attempt] for one, lo in rows if lo < one.hi]

    def keep(self, leases: set[int]) -> None:
        """Drops what the master does not want, and asks it again for what the others wait for."""
        self.waiting = collections.deque(one for one in self.waiting if one.lease in leases)
        for worker in self.running:
            for envelope in [one for one in worker.ahead if one.lease not in leases]:
                self._take_back(worker, envelope.lease)
            if worker.envelope.lease not in leases:
                self._forget(worker)
        self._fetching.clear()
        for key in self._asking:
            self.node.report("fetch_shared", key)
        self.schedule()

    def init(self, identity: str, address: str) -> None:
        """The slave has joined as `identity`."""
        for worker in [worker for worker in self.workers.values() if not worker.envelope]:
            self._end(worker)  # what it has published went with the earlier master

    def start(self) -> None:
        """Takes the pools from the node; workers are forked when the first lease of a bundle comes."""
        self.pool = dict(self.node.resources)
        self.free = dict(self.pool)
        self.units = list(range(int(self.pool.get("gpu", 0))))
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            log.warning("this system does not tell what a worker takes and starts: memory_limit and process_limit are "
                        "not kept, and no worker is replaced because it leaks")  # fmt: skip

    def stop(self) -> None:
        """Closes every worker's socket, upon which it ends."""
        self.drop_everything()
        for worker in list(self.workers.values()):
            self._end(worker)

    def get_num_workers(self) -> int:
        """How many leases of one processor may run at once."""
        return int(self.pool.get("cpus", 0))

    def update_pool(self, workers: int) -> None:
        """Sets the number of processors on offer; what runs goes on, what does not fit any more waits."""
        self.free["cpus"] += workers - self.pool["cpus"]
        self.pool["cpus"] = workers
        for envelope in [e for e in self.waiting if demand_of(e).get("cpus", 0) > workers]:
            self.steal(envelope.lease)  # it would wait here for ever
        self.schedule()

    def push_task(self, envelope: tasks.Envelope) -> None:
        """Takes a lease; starts it as soon as its bundle is here and its resources are free."""
        if self._can_start(envelope) or (not self.waiting and self._hand_ahead(envelope)):
            return
        if not self.waiting:
            self._least = math.inf
        self._least = min(self._least, demand_of(envelope).get("cpus", 0))
        self.waiting.append(envelope)

    # the life of a lease

    @property
    def node(self) -> "SlaveNode":
        """The slave this manager belongs to."""
        return self.manager

    @property
    def running(self) -> list[Worker]:
        """Workers that have a lease."""
        return [worker for worker in self.workers.values() if worker.envelope]

    def schedule(self) -> None:
        """Starts every waiting lease that can start, oldest first, and hands further ones ahead."""
        if self.free["cpus"] >= self._least:
            waiting, self.waiting = self.waiting, collections.deque()
            try:
                while waiting and self.free["cpus"] >= self._least:
                    envelope = waiting.popleft()
                    if not self._can_start(envelope):
                        self.waiting.append(envelope)
            finally:  # whatever is wrong with one, the others wait on
                self.waiting.extend(waiting)
        while self.waiting and self._hand_ahead(self.waiting[0]):
            self.waiting.popleft()

    def _can_start(self, envelope: tasks.Envelope) -> bool:
        """Starts it, if its bundle is here and its resources are free."""
        return self._fits(envelope) and self._has_bundle(envelope) and self._start(envelope)

    def _hand_ahead(self, envelope: tasks.Envelope) -> bool:
        """Hands it to a worker that will be done in a moment with one of the same owner and kind, if there is one. It
        must be the first that waits, or it would overtake for ever what needs a worker of its own."""
        quick = [worker for worker in self.workers.values() if worker.envelope and len(worker.ahead) < worker.room]
        if not quick or self.free["cpus"] < -EPSILON:
            return False
        worker = min(quick, key=lambda worker: len(worker.ahead)) if len(quick) > 1 else quick[0]
        runs, head = worker.envelope, envelope.parts[0]
        alike = (runs.owner, runs.attempt, runs.parts[0]) == (envelope.owner, 1, head) and envelope.attempt == 1
        if worker.doomed or not alike or {*map(type, envelope.parts)} != {bytes} or _limits_in(head):
            return False
        worker.ahead.append(envelope)
        worker.ran_on = True
        self.node.loop.crowded = True  # there may be more of them
        worker.pipe.call("run", *envelope[:8], None, parts=envelope.parts)
        return True

    def revoke(self, lease: int, kill: bool) -> None:
        """The master does not want it any more; a running task ends first unless it is to be killed."""
        self.steal(lease)
        worker = self._worker_of(lease)
        if worker and kill and worker.envelope.lease == lease:
            self._kill(worker)
        elif worker and kill:
            self._unwanted[lease] = True

    def steal(self, lease: int) -> None:
        """The master has a free slot elsewhere: give back what has not begun."""
        envelope = self._forget_waiting(lease)
        worker = self._worker_of(lease)
        if envelope:
            self.node.report("given_back", lease, envelope.lo, envelope.hi)
        elif worker:
            self._take_back(worker, lease)

    def _take_back(self, worker: Worker, lease: int) -> None:
        worker.pipe.call("drop", lease)
        if lease != worker.envelope.lease:
            self._unwanted.setdefault(lease, False)

    def late(self, lease: int, seconds: float) -> None:
        """The deadline of these tasks has passed, so long after their acceptance: they fail."""
        envelope = self._forget_waiting(lease)
        worker = self._worker_of(lease)
        if envelope:
            failures = {"*": tasks.limit_failure(envelope.head, "deadline", seconds)}
            self.node.report("result", lease, envelope.lo, envelope.hi, failures, [])
        elif worker and not worker.doomed:  # a lease with limits is never handed ahead
            self._watch.pass_limit(worker, "deadline", seconds)

    def drop_everything(self) -> None:
        """Forgets all leases and kills the workers that run one."""
        self.waiting.clear()
        self._fetching.clear()
        self._asking.clear()
        self._unwanted.clear()
        for worker in self.running:
            worker.ahead.clear()
            self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        worker.forgotten = True
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        worker.doomed = True  # if it reports at this moment, nothing else is begun on it
        self.node.zygote.kill(worker.token)

    def bundle_here(self, digest: str) -> None:
        """A bundle has been unpacked: what waited for it may start."""
        self._fetching.discard(digest)
        self.schedule()

    def bundle_failed(self, digest: str, error: Exception) -> None:
        """A bundle cannot be used here: its leases fail, each task with the reason."""
        self._fetching.discard(digest)
        kind = getattr(error, "kind", "setup" if isinstance(error.__cause__ or error, OSError) else "load")
        for envelope in [e for e in self.waiting if e.head["bundle"] == digest]:
            self.waiting.remove(envelope)
            self._fail(envelope, envelope.lo, error, kind)

    def _fail(self, envelope: tasks.Envelope, lo: int, error: Exception, kind: str = "setup") -> None:
        """The rest of a lease cannot run here: "setup" is for want of something that another slave may have."""
        failures = {"*": tasks.describe_failure(error, kind=kind, itself=False)}
        self.node.report("result", envelope.lease, lo, envelope.hi, failures, [])

    def uses(self, digest: str) -> bool:
        """Whether a lease of this bundle waits or runs here."""
        held = [*self.waiting, *(worker.envelope for worker in self.running)]
        return any(envelope.head["bundle"] == digest for envelope in held)

    def forget_bundle(self, digest: str) -> None:
        """Ends its workers, of which none runs anything."""
        for worker in [worker for worker in self.workers.values() if worker.digest == digest]:
            self._end(worker)

    def _has_bundle(self, envelope: tasks.Envelope) -> bool:
        digest = envelope.head["bundle"]
        if digest in self.node.bundles:
            return True
        if digest not in self._fetching:
            self._fetching.add(digest)
            self.node.report("fetch", digest)
        return False

    def _fits(self, envelope: tasks.Envelope) -> bool:
        return all(self.free.get(name, 0) + EPSILON >= amount for name, amount in demand_of(envelope).items())

    def _start(self, envelope: tasks.Envelope) -> bool:
        limits = _limits_in(bytes(envelope.parts[0]))
        try:
            worker = self._worker_for(envelope.head["bundle"], envelope.head.get("user", ""), limits)
        except components.Error as error:  # its application asks for what is not allowed here
            self.node.report("not_granted", envelope.owner, error.what)
            self._fail(envelope, envelope.lo, error)
            return True
        if worker is None:
            return False
        worker.lane = heapq.heappop(self._lanes) if self._lanes else len(self.running)
        worker.grant = dict(demand_of(envelope))
        for name, amount in worker.grant.items():
            self.free[name] -= amount
        worker.envelope, worker.lo, worker.forgotten = envelope, envelope.lo, False
        worker.ran_on, worker.used = False, time.monotonic()
        worker.ear.output.begin()
        if limits:
            self._watch.begin(worker, limits)
        variables = self._granted(worker)
        news = None if variables == worker.told else variables
        try:
            worker.pipe.call("run", *envelope[:8], news, parts=envelope.parts)
            worker.told = variables
        except OSError as error:
            self._release(worker)
            why = f"its payload cannot be opened on {self.node.name}"
            self._fail(envelope, envelope.lo, components.Error(f"{why}: {error}"))
        self._watch.attend()
        return True

    def _granted(self, worker: Worker) -> dict[str, str]:
        """What the grant means to libraries, as environment variables."""
        threads = str(max(1, int(worker.grant.get("cpus", 1))))
        variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        if worker.grant.get("gpu"):
            taken, self.units = self.units[: int(worker.grant["gpu"])], self.units[int(worker.grant["gpu"]) :]
            worker.grant["units"] = taken
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, taken))
        return variables

    def _release(self, worker: Worker) -> None:
        self.units += worker.grant.pop("units", [])
        for name, amount in worker.grant.items():
            self.free[name] += amount
        heapq.heappush(self._lanes, worker.lane)
        worker.envelope, worker.grant, worker.used = None, {}, time.monotonic()
        worker.limits = {}

    def _worker_for(self, digest: str, user: str, limits: dict[str, float]) -> Worker | None:
        """A worker; one that takes much memory since it ran others is not held against a task with a limit."""
        worker = self._idle_worker(digest, user)
        if worker and "memory_limit" in limits and memory_of(worker.pid) > limits["memory_limit"] * 2**19:
            self._end(worker)
            return self._fork(digest, user)
        return worker

    def _idle_worker(self, digest: str, user: str) -> Worker | None:
        idle = []
        for worker in self.workers.values():
            if worker.envelope is None and worker.pipe.open and not worker.doomed:
                if (worker.digest, worker.user) == (digest, user):
                    return worker
                idle.append(worker)
        if len(self.workers) >= self.get_num_workers() + IDLE_KEPT and idle:
            self._end(min(idle, key=lambda worker: worker.used))
        return self._fork(digest, user)

    def _fork(self, digest: str, user: str) -> Worker | None:
        now = time.monotonic()
        if self._deaths.crowded and now - self._deaths[-1] < RESPAWN_PAUSE:
            self.node.loop.later(RESPAWN_PAUSE, self.schedule)
            return None
        zygote = self.node.zygote  # one that comes later may have another child of this token
        try:
            root, rate = str(self.node.bundles[digest]), self.node.output_rate * 1024
            confinement = self.node.guard.confinement(self.node.needs[digest])
            token, sock, ear = tasks.fork_heard(zygote, "worker", root, confinement, self.node.loop, rate)
        except OSError as error:
            log.warning("no worker can be forked now (%s)", error)
            self.node.loop.later(1.0, self.schedule)
            return None
        worker = self.workers[token] = Worker(token, digest, user, now)
        worker.ear, worker.confined = ear, confinement.level == "off"
        ear.send = lambda pieces: self._send_output(worker, pieces)
        worker.pipe = rpc.Pipe(
            self.node.loop, sock, lambda pipe, call, parts: self._heard(worker, call, parts),
            lambda pipe: zygote.kill(token), self.node.store, digest,  # it cannot report any more
        )
        return worker

    def _end(self, worker: Worker) -> None:
        worker.pipe.close()
        worker.ear.close()
        self._watch.forget(worker)
        self.workers.pop(worker.token, None)

    # what workers and the zygote say

    def _heard(self, worker: Worker, call: list, parts: list) -> None:
        envelope = worker.envelope
        if call[0] != "result":
            self._heard_of_shared(worker, *call, parts)
            return
        if envelope is None or call[1] != envelope.lease or worker.passed or not worker.confined:
            return
        _, lease, lo, hi, failures, last, spent, *figures = call
        if type(lo) is not int or type(hi) is not int or not worker.lo == lo <= hi <= envelope.hi:
            raise rpc.ProtocolError("a worker has left tasks of its lease out")  # it would stay open at the master
        spent = worker.ago(spent)
        seconds = (spent[1] - spent[2]) / 1e6
        self.node.remember(envelope)
        worker.ear.settle(bool(last), worker.pipe.fresh)
        worker.pipe.fresh = False  # what was printed before any report that came with this one has been heard
        if failures:
            self._add_output(worker, failures)
        self.done["tasks"] += hi - lo
        self.done["failed"] += hi - lo if "*" in failures else len(failures)
        worker.lo = hi
        if hi > lo and not worker.forgotten:
            self.node.report("result", lease, lo, hi, failures, spent, *figures[:1], parts=parts)
            self.node.stats.add_avg("swarm.run", seconds)
            self.node.stats.add_avg("swarm.tasks", hi - lo)
        if last:
            self.done["leases"] += 1
            if hi < envelope.hi and not worker.forgotten:
                self.node.report("given_back", lease, hi, envelope.hi)
            self._went_on(worker, seconds)
            if worker.leaks:
                self._watch.part_with(worker)
            if self.waiting:
                self.schedule()

    def _went_on(self, worker: Worker, seconds: float) -> None:
        """A worker has ended a lease within so many seconds: it runs the next one that it has, or none."""
        worker.room = min(MOST_AHEAD, int(tasks.QUICK / max(seconds, EPSILON)))
        if not worker.ahead:
            self._release(worker)
            return
        worker.envelope, worker.forgotten = worker.ahead.popleft(), False
        worker.lo = worker.envelope.lo
        if self._unwanted.pop(worker.envelope.lease, False):
            self._kill(worker)

    def _send_output(self, worker: Worker, pieces: list) -> None:
        """What a worker has printed goes to the owner of its lease, or how much it was if the way there is full."""
        envelope = worker.envelope
        if envelope is None or worker.forgotten or not self.node.link:
            return
        held = [envelope, *worker.ahead]
        lo, hi = min(one.first + one.lo for one in held), max(one.first + one.hi for one in held)
        lags = self.node.link.master.lags
        placed = [[lo, hi, "", tasks.weight_of(pieces)]] if lags else tasks.placed(pieces, lo, hi)
        self.node.report("output", envelope.lease, placed)

    @staticmethod
    def _add_output(worker: Worker, failures: dict) -> None:
        """Each failure of a single task gets the end of what this task has printed."""
        envelope = worker.envelope
        alone = envelope.hi - envelope.lo == 1 and not worker.ran_on
        for place, failure in failures.items():
            if place != "*" and (text := worker.ear.output.last(None if alone else envelope.first + int(place))):
                failure["output"] = text[-tasks.OUTPUT_TOLD :]
            failure["attempt"] = envelope.attempt

    def _heard_of_shared(self, worker: Worker, method: str, key: str, *details) -> None:
        """A worker publishes an object, or wants one."""
        *numbers, parts = details
        if method == "publish" and worker.envelope:
            if self.node.shelf.take(key, *numbers, parts[0]):
                part = self.node.shelf.get(key)
                for at, total, piece in rpc.slices(part, type(part) is rpc.Reference and self.node.is_local):
                    self.node.report("publish_for", worker.envelope.owner, key, at, total, parts=[piece])
        elif method == "begun":
            self._watch.begun(worker)
        elif method == "confined":
            self._confined(worker, key)
        elif method == "fetch_shared":
            if self.node.shelf.get(key) is not None:
                self._hand_shared(worker, key)
                return
            if key not in self._asking:
                self.node.report("fetch_shared", key)
            self._asking.setdefault(key, []).append(worker)

    def _confined(self, worker: Worker, applied: dict | str) -> None:
        """A worker has told what of the sandbox it has applied, before anything else; less than all does not count."""
        worker.confined = self.node.guard.is_whole(applied)
        if not worker.confined:
            log.error("worker %s is not used: of the sandbox it has applied %s", worker.pid, applied)
            self.node.zygote.kill(worker.token)
            self.died(worker.token, f"could not confine itself: {applied}", unborn=True)

    def _hand_shared(self, worker: Worker, key: str) -> None:
        part = self.node.shelf.get(key)
        for at, total, piece in rpc.slices(part, type(part) is rpc.Reference):
            worker.pipe.call("shared", key, at, total, parts=[piece])

    def shared_here(self, key: str) -> None:
        """A published object has come."""
        for worker in self._asking.pop(key, ()):
            self._hand_shared(worker, key)

    def shared_missing(self, key: str, reason: str) -> None:
        """Nobody has that object."""
        for worker in self._asking.pop(key, ()):
            worker.pipe.call("no_shared", key, reason)

    def forget_shared(self, keys: list) -> None:
        """Nobody needs these objects any more."""
        for worker in self.workers.values():
            worker.pipe.call("forget_shared", keys)

    def died(self, token: int, how: str, unborn: bool = False) -> None:
        """A worker ended: its lease, if it had one, is reported lost, and its slot is free again. `unborn`: it never
        was, and nobody is blamed."""
        worker = self.workers.pop(token, None)
        if worker:
            self._bury(worker, how, unborn)
            self.schedule()

    def _bury(self, worker: Worker, how: str, unborn: bool = False) -> None:
        worker.pipe.drain()
        worker.pipe.close()
        worker.ear.settle()
        worker.ear.close()
        envelope, lo, since = worker.envelope, worker.lo, worker.used
        if envelope:
            self._release(worker)
            self._wait_again(worker)
            if worker.passed and not worker.forgotten:
                self._report_passed(worker, envelope)
            elif (worker.doomed or self.node.leaving_at) and not worker.forgotten:
                self.node.report("given_back", envelope.lease, lo, envelope.hi)  # killed on request: nobody is blamed
            elif unborn and not worker.forgotten:
                self._deaths.append(time.monotonic())
                self._fail(envelope, lo, components.Error(f"a worker for it on {self.node.name} {how}"))
            elif not worker.forgotten:
                self._deaths.append(time.monotonic())
                about = {"task": f"{envelope.owner}.{envelope.first + lo}", "attempt": envelope.attempt}
                log.warning("worker %s ended (%s) in %s, attempt %s", worker.pid, how, *about.values(), extra=about)
                last, spent = worker.ear.output.last(), [worker.lane, int(1e6 * (worker.used - since)), 0, 0, 0]
                self.node.report("worker_lost", envelope.lease, lo, envelope.hi, f"worker {how}", last, spent)
        self._watch.forget(worker)

    def _wait_again(self, worker: Worker) -> None:
        """What a worker has ahead when it ends has not begun: it waits again, or goes back if it is not wanted."""
        while worker.ahead:
            envelope = worker.ahead.pop()
            if self._unwanted.pop(envelope.lease, None) is None:
                self.waiting.appendleft(envelope)
                self._least = min(self._least, demand_of(envelope).get("cpus", 0))
            else:
                self.node.report("given_back", envelope.lease, envelope.lo, envelope.hi)

    def _report_passed(self, worker: Worker, envelope: tasks.Envelope) -> None:
        """The task that passed a limit has failed. If it may be any of several, these run again one by one."""
        count, (name, measured) = envelope.hi - worker.lo, worker.passed
        if name == "process_limit" and count > 1:
            reason = f"one of these tasks passed its process_limit, {worker.most:g}, with {measured:,} processes"
            self.node.report("worker_lost", envelope.lease, worker.lo, envelope.hi, reason)
            return
        self.done.update(tasks=count, failed=count, leases=1)
        failures = {"*": self._watch.failure_of(worker, envelope.head)}
        if last := worker.ear.output.last():
            failures["*"]["output"] = last
        seconds = max(0.0, time.monotonic() - worker.began)
        spent = [worker.lane, int(seconds * 1e6), 0, 0, 0]
        self.node.report("result", envelope.lease, worker.lo, envelope.hi, failures, spent)

    def all_died(self) -> None:
        """The zygote is gone and with it every worker."""
        dead, self.workers = self.workers, {}  # the new zygote gives tokens from 1 again
        for worker in dead.values():
            self._bury(worker, "ended with the zygote")
        self.schedule()

    def _worker_of(self, lease: int) -> Worker | None:
        return next((w for w in self.running if lease in [one.lease for one in (w.envelope, *w.ahead)]), None)

    def _forget_waiting(self, lease: int) -> tasks.Envelope | None:
        for envelope in self.waiting:
            if envelope.lease == lease:
                self.waiting.remove(envelope)
                return envelope
        return None


# -- limits --------------------------------------------------------------------------------------------------------

MEMORY_EVERY = 0.1  # seconds between two looks at the memory of workers for which there is a limit
ATTEND_EVERY = 0.25  # seconds between two looks at the processes and descriptors of all workers
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Watch:
    """Keeps workers to the limits of the tasks that they run; of those without one it looks at how many processes they
    have, and whether they keep more and more for themselves.

    A worker that passes one writes down its Python stack, then it is killed with all that it has started, and its task
    has failed. Time counts from the moment at which the worker has loaded what the task needs, or should have.
    """

    def __init__(self, manager: ProcessTaskManager):
        self._manager = manager
        self._at = math.inf  # when to look next
        self._attends = False

    def begin(self, worker: Worker, limits: dict[str, float]) -> None:
        """It is about to be told to run a lease with these limits."""
        worker.limits, worker.began, worker.peak = limits, time.monotonic() + LOADING, 0.0
        if "timeout" in limits:
            self._look_within(LOADING + limits["timeout"])
        worker.witness = worker.witness or tasks.Witness(worker.pipe)
        if "memory_limit" in limits:
            self._look_within(MEMORY_EVERY)

    def begun(self, worker: Worker) -> None:
        """It has loaded what it needs: its time begins."""
        worker.began = time.monotonic()
        if "timeout" in worker.limits:
            self._look_within(worker.limits["timeout"])

    def pass_limit(self, worker: Worker, name: str, measured: float) -> None:
        """It has passed a limit: it tells where it is, and is killed."""
        worker.passed, worker.doomed = (name, measured), True
        node, kill = self._manager.node, functools.partial(self._kill, worker)
        if worker.witness:
            worker.witness.ask(node.zygote, worker.token, node.loop, kill)
        else:
            kill()

    def forget(self, worker: Worker) -> None:
        """It has ended."""
        if worker.witness:
            worker.witness.close()

    def failure_of(self, worker: Worker, head: dict) -> dict:
        """How its task failed."""
        root = str(self._manager.node.bundles.get(worker.digest, ""))
        stack = worker.witness.stack(root) if worker.witness else ("", "")
        name, measured = worker.passed
        log.warning("worker %s was ended: its task passed its %s", worker.pid, name)
        return tasks.limit_failure(head, name, measured, self._manager.node.name, stack)

    def _look_within(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        if at < self._at:
            self._at = at
            self._manager.node.loop.later(seconds, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._at:
            return  # it was needed earlier than now, and again later
        self._at = math.inf
        for worker in self._manager.running:
            if worker.limits and not worker.doomed:
                self._check(worker, now)

    def _check(self, worker: Worker, now: float) -> None:
        timeout, most = worker.limits.get("timeout", math.inf), worker.limits.get("memory_limit", math.inf)
        if now - worker.began >= timeout:
            self.pass_limit(worker, "timeout", now - worker.began)
            return
        if timeout < math.inf:
            self._look_within(worker.began + timeout - now)
        if most < math.inf:
            worker.peak = max(worker.peak, memory_of(worker.pid) / 2**20)
            if worker.peak > most:
                self.pass_limit(worker, "memory_limit", worker.peak)
            else:
                self._look_within(MEMORY_EVERY)

    def _kill(self, worker: Worker) -> None:
        if self._manager.workers.get(worker.token) is worker:
            self._manager.node.zygote.kill(worker.token)

    # what needs no limit to be looked at, and no lease of its own

    def attend(self) -> None:
        """Something runs: looks at all workers until nothing does and none has a child left."""
        if not self._attends:
            self._attends = True
            self._manager.node.loop.later(ATTEND_EVERY, self._attend)

    def _attend(self) -> None:
        self._attends = False
        for worker in list(self._manager.workers.values()):
            if worker.pid and not worker.doomed:
                self._count(worker)
                self.part_with(worker)

    def _count(self, worker: Worker) -> None:
        if worker.envelope:
            worker.most = tasks.process_limit_of(worker.envelope.head)
        count = processes_below(worker.pid, worker.most)
        if count or worker.envelope:
            self.attend()
        if count <= worker.most:
            return
        if worker.envelope:
            self.pass_limit(worker, "process_limit", count)
        else:
            log.warning("worker %s was ended: %s processes were left behind in it", worker.pid, f"{count:,}")
            self._manager._kill(worker)

    def part_with(self, worker: Worker) -> None:
        """Ends a worker that keeps too much, once it runs nothing; another takes its place when one is needed."""
        why = self._leak_of(worker)
        worker.leaks = bool(why)
        if why and not worker.envelope and not worker.doomed:
            log.warning("worker %s is replaced: %s", worker.pid, why)
            self._manager._end(worker)

    def _leak_of(self, worker: Worker) -> str:
        files, most = descriptors_of(worker.pid)
        if files > most / 2:
            return f"its tasks have left {files:,} descriptors open, of {most:,} that it may have"
        recycle = self._manager.node.recycle
        if recycle:
            now = memory_of(worker.pid) / 2**20
            worker.least = min(worker.least, now)
            if now - worker.least > recycle:
                return f"it has grown by {now - worker.least:,.0f} MiB; slave.recycle is {recycle:,} MiB"
        return ""


def processes_below(pid: int, most: float) -> int:
    """How many descendants a process has, if they are not more than `most`; else some more than that."""
    found = tasks.children_of(pid)
    for one in found:  # they become more meanwhile
        if len(found) > most:
            break
        found += tasks.children_of(one)
    return len(found)


def descriptors_of(pid: int) -> tuple[int, int]:
    """How many descriptors a process has, and how many it may have; none where the system does not tell."""
    if sys.platform != "linux":
        return 0, 0
    import resource

    try:
        files = os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))  # the size from Linux 6.2 on
        return files, resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError as error:
        log.debug("the descriptors of %s cannot be told: %s", pid, error)
        return 0, 0


def memory_of(pid: int) -> int:
    """Bytes of memory that a process and all its descendants have for themselves: what they map of files, such as
    published objects, is not theirs. 0 where the system does not tell."""
    found, waiting = 0, [pid] if pid else []
    while waiting:
        one = waiting.pop()
        waiting += tasks.children_of(one)
        try:
            with open(f"/proc/{one}/statm") as file:
                _, resident, shared, *_ = file.read().split()
        except OSError as error:
            log.debug("the memory of %s cannot be told: %s", one, error)
            continue
        found += (int(resident) - int(shared)) * PAGE
    return found


# -- what this machine has -----------------------------------------------------------------------------------------

def processor_times() -> tuple[int, int]:
    """How long this machine's processors were busy, and how long there were any, in ticks; zeros where the system does
    not tell."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, wait, *more = map(int, file.readline().split()[1:9])
    except (OSError, ValueError) as error:
        log.debug("the load of this machine cannot be told: %s", error)
        return 0, 0
    busy = user + nice + system + sum(more)
    return busy, busy + idle + wait


def demand_of(envelope: tasks.Envelope) -> dict[str, float]:
    """What a lease takes of the pools: one processor unless its tasks say otherwise. Nobody may change it."""
    return _demand_in(bytes(envelope.parts[0]))


@functools.lru_cache(maxsize=1024)
def _demand_in(head: bytes) -> dict[str, float]:
    needs = {"cpus": 1, **(tasks.read_head(head).get("resources") or {})}
    return {name: amount for name, amount in needs.items() if name != "tags" and amount}


@functools.lru_cache(maxsize=1024)
def _limits_in(head: bytes) -> dict[str, float]:
    limits = tasks.limits_of(tasks.read_head(head))
    return {name: limits[name] for name in tasks.LIMITS.keys() & limits}


# -- the slave -----------------------------------------------------------------------------------------------------

OUTLIVING = ("result", "given_back", "worker_lost")  # reports that the next master hears if this one may not have
REMEMBERED = 10_000  # leases
VITALS_EVERY = 5.0  # seconds between two reports of how the slave is
GRACE = 10.0  # seconds that a leaving slave lets tasks run on


class SlaveNode(rpc.Node):
    """Joins a master, runs its leases, and comes back when the master does."""

    role = "slave"
    master_address = components.ConfigItem("slave", "master", "", "HOST:PORT of the master")
    page_host = components.ConfigItem("slave", "host", "127.0.0.1", "address of its own page, metrics and health")
    page_port = components.IntItem("slave", "port", 0, "port of these; 0 is any", minimum=0, maximum=65535)
    workers = components.IntItem("slave", "workers", -1, "leases that run at once; -1: one per processor", minimum=-1)
    amounts = components.ListItem("slave", "resources", "", "named amounts on offer, such as gpu=2, memory=16")
    shared_limit = components.IntItem("slave", "shared", 1024,
                                      "MiB of published objects to keep for further tasks", minimum=0)
    tags = components.ListItem("slave", "tags", "", "words that tasks may ask for")
    output_rate = components.IntItem("slave", "output", tasks.OUTPUT_RATE,
                                     "KiB a second of what a worker prints that go home", minimum=0)
    recycle = components.IntItem("slave", "recycle", 0,
                                 "MiB by which a worker may grow until another takes its place; 0: any", minimum=0)
    sandbox = components.ChoiceItem("slave", "sandbox", "standard", tasks.LEVELS, "how far workers are confined")
    allow_network = components.ListItem("slave", "allow_network", "", "HOST:PORT, each may be *, for apps that ask")
    allow_read = components.ListItem("slave", "allow_read", "", "paths, for apps that ask to read there")
    allow_write = components.ListItem("slave", "allow_write", "", "paths, for apps that ask to write there")
    allow_subprocess = components.BoolItem("slave", "allow_subprocess", False, "whether apps that ask start programs")
    uid_base = components.IntItem("slave", "uid_base", 60800, "the first of 256 users for workers of a slave that is "
                                  "root; 0: they are root without privileges", minimum=0)
    chosen = components.ExtensionPointItem("slave", "task_manager", "ProcessTaskManager",
                                           tasks.ITaskManager, "what runs leases")
    _vitals_at, _times = 0.0, (0, 0)
    _trip: float | None = None  # seconds that the last report of vitals and its answer took

    def setup(self) -> None:
        """Starts the zygote and the task manager; needs no master yet."""
        self.bundles: dict[str, Path] = {}  # digest -> where it was unpacked, of those that can run
        self.leaving_at = 0.0
        self._zygotes = tasks.Recent()
        self._reported = collections.OrderedDict()  # lease -> owner, number, attempt, of the last that were reported
        self.joined_at = 0.0
        self.resources = {"cpus": self.workers if self.workers >= 0 else tasks.usable_cpus(), **self._named_amounts()}
        self.parts = tasks.Prerequisites(self, self.parted)
        self.closing.callback(self.parts.close)
        self.guard = tasks.Sandbox(self)
        self.closing.callback(self.guard.close)
        self.start_zygote()
        self.closing.callback(lambda: self.zygote.stop())
        self.guard.start(self.zygote)
        self.shelf = rpc.Shelf(self.store, self.shared_limit * 1024 * 1024)
        self.manager = self.chosen  # for this life: to ask the configuration at each lease costs more than a lease
        self.needs: dict[str, dict] = {}  # digest -> what the application asks for
        self.entries: dict[str, str] = {}  # digest -> the file with which it begins
        apps = self.environment / "apps"
        for digest, manifest in rpc.known_bundles(apps).items():
            if not any(rpc.wanted_parts(apps / digest).values()):
                self.bundles[digest] = apps / digest
                self.know(digest, manifest)
        self.manager.start()
        self.closing.callback(self.manager.stop)

    def start_zygote(self) -> None:
        """Makes the process from which workers are forked."""
        self._zygotes.append(time.monotonic())
        self.zygote = tasks.start_zygote()
        self.loop.add(self.zygote, self._zygote_speaks)

    def _named_amounts(self) -> dict[str, float]:
        found = {}
        for text in self.amounts:
            name, _, amount = text.partition("=")
            try:
                found[name.strip()] = float(amount) if "." in amount else int(amount)
            except ValueError:
                raise components.UsageError(f"[slave] resources: {text!r} is no amount", "the form is name=number",
                                            "such as gpu=2,memory=16") from None
        return found

    def info(self) -> dict:
        return {**super().info(), "resources": self.manager.pool, "tags": self.tags,
                "workers": self.manager.get_num_workers(), "sandbox": self.guard.word,
                "features": self.guard.features()}

    def hello(self) -> dict:
        """Which leases it holds, those included of which a master may not have heard the end."""
        rows = {row[0]: row for row in self.manager.held()}
        for (_, lease, lo, hi, *_), _ in reversed(self.link.master.unsaid(self.outlives)):
            if lease in self._reported:
                owner, number, attempt = self._reported[lease]
                hi = max(hi, rows[lease][4] if lease in rows else hi)
                rows[lease] = [lease, owner, number, lo, hi, attempt]
        return {"holds": list(rows.values())}

    @staticmethod
    def outlives(call: list) -> bool:
        """Whether a call that a master may not have heard is for the next one too."""
        return call[0] in OUTLIVING

    def remember(self, envelope: tasks.Envelope) -> None:
        """A part of this lease is reported; until the master has heard of it, another one may have to know whose."""
        self._reported[envelope.lease] = envelope.owner, envelope.number, envelope.attempt
        if len(self._reported) > REMEMBERED:
            self._reported.popitem(last=False)

    def report(self, method: str, *params, parts=()) -> None:
        """Sends a call to the master, with others of this turn."""
        if self.link:
            self.link.gather(self.link.master, [method, *params], parts)

    def expose(self, link: rpc.Link) -> None:
        """The methods that the master may call, and what outlives the link."""
        link.on_hello, link.outlives = self.hello, self.outlives

        @rpc.tcpremote(link)
        def lease(handler, request, *details):
            self.manager.push_task(tasks.Envelope(*details, list(request.parts)))

        @rpc.tcpremote(link)
        def revoke(handler, request, lease, kill):
            self.manager.revoke(lease, kill)

        @rpc.tcpremote(link)
        def steal(handler, request, lease):
            self.manager.steal(lease)

        @rpc.tcpremote(link)
        def late(handler, request, lease, seconds):
            self.manager.late(lease, seconds)

        @rpc.tcpremote(link)
        def bundle(handler, request, digest, manifest):
            self.take_bundle(digest, manifest, bytes(request.parts[0]))

        @rpc.tcpremote(link)
        def no_bundle(handler, request, digest):
            missing = components.Error(f"the master has no application {digest[:12]}", "it was removed there")
            self.manager.bundle_failed(digest, missing)

        @rpc.tcpremote(link)
        def workers(handler, request, count):
            self.set_workers(count)

        @rpc.tcpremote(link)
        def drain(handler, request):
            self.leave()

        self._expose_shared(link)

    def _expose_shared(self, link: rpc.Link) -> None:
        @rpc.tcpremote(link)
        def seen(handler, request, stamp):
            self._trip = max(0.0, time.monotonic() - stamp)

        @rpc.tcpremote(link)
        def shared(handler, request, key, at, total):
            self.stats.add_avg("bytes of published objects", rpc.size_of(request.parts[0]))
            if self.shelf.take(key, at, total, request.parts[0]):
                self.manager.shared_here(key)

        @rpc.tcpremote(link)
        def no_shared(handler, request, key, reason):
            self.manager.shared_missing(key, reason)

        @rpc.tcpremote(link)
        def forget_shared(handler, request, keys):
            self.shelf.forget(keys)
            self.manager.forget_shared(keys)

    def take_bundle(self, digest: str, manifest: dict, data: bytes) -> None:
        """Unpacks an application; what waited for it starts, or fails with the reason."""
        try:
            rpc.open_bundle(digest, manifest, data, self.environment / "apps")
        except (components.Error, OSError) as error:
            log.error("application %s cannot be unpacked: %s", digest[:12], error)
            self.manager.bundle_failed(digest, error)
            return
        self.know(digest, manifest)
        if self.parts.here(digest):
            self.prepared(digest, None)

    def prepared(self, digest: str, error: rpc.CannotBuild | None) -> None:
        """What an application needs is here, or cannot be had."""
        if error:
            self.manager.bundle_failed(digest, error)
        else:
            self.bundles[digest] = self.environment / "apps" / digest
            self.manager.bundle_here(digest)

    def preparing(self, digest: str, what: str) -> None:
        """Tells the master what its clients wait for."""
        self.report("preparing", digest, what)

    def uses(self, digest: str) -> bool:
        """Whether anything of an application is here."""
        return self.manager.uses(digest)

    def parted(self, digest: str) -> None:
        """What an application needs goes; when it comes again, its bundle is fetched again."""
        self.bundles.pop(digest, None)
        self.manager.forget_bundle(digest)

    def set_workers(self, count: int) -> None:
        """Sets how many leases run at once, and tells the master."""
        self.manager.update_pool(count)
        self.report("resources", self.manager.pool, self.manager.get_num_workers())
        log.info("%s workers now", count)

    def welcomed(self, info: dict, fresh: bool) -> None:
        if fresh:
            self.manager.keep(set(info.get("kept", ())))
            self.manager.init(info["name"], self.address)
            self.report("resources", self.manager.pool, self.manager.get_num_workers())  # the hello may be an old one
            if self.leaving_at:
                self.report("leaving")
            if not self.joined_at:
                self.joined_at = time.monotonic()
                self.supervisor.ready()
            each = " (one per processor)" if self.workers < 0 else ""
            count = self.manager.get_num_workers()
            log.info("joined as %s: %s worker%s%s", info["name"], count, "s" * (count != 1), each)
            if info.get("page"):
                secure = rpc.certificate_of("slave", self.address, self._access_file)
                log.info("watch: http%s://%s/#slave=%s", "s" * bool(secure), self.address, info["name"])

    def lost(self, reason: str) -> None:
        log.warning("lost the master at %s (%s); looking for it", self.address, reason)

    def leave(self) -> None:
        """Gives back what has not begun, lets the rest run for GRACE seconds, and ends; the second time at once."""
        self.supervisor.tell(STOPPING=1)
        if self.leaving_at or not (self.manager.running or self.manager.waiting or self.unheard()):
            self.loop.stop()
            return
        self.leaving_at = time.monotonic() + GRACE
        running, waiting = len(self.manager.running), len(self.manager.waiting)
        log.warning("leaving: %s running leases may finish (%.0f s), %s waiting ones go back", running, GRACE, waiting)
        self.report("leaving")
        for envelope in list(self.manager.waiting):
            self.manager.steal(envelope.lease)

    def tell_vitals(self, now: float) -> None:
        """Tells the master how this machine and its slave are, and in which lanes what runs."""
        (busy, total), before = processor_times(), self._times
        self._times = busy, total
        cpu = round((busy - before[0]) / (total - before[1]), 3) if total > before[1] > 0 else None
        running = [[worker.lane, worker.envelope.lease] for worker in self.manager.running]
        trip = None if self._trip is None else round(self._trip, 5)
        self.report("vitals", cpu, memory_of(os.getpid()) or None, trip, running, now)

    def tick(self, now: float) -> float:
        deadline = super().tick(now)
        if now >= self._vitals_at and self.link and self.link.state == "ready":
            self._vitals_at = now + VITALS_EVERY
            self.tell_vitals(now)
        if self.leaving_at and self.terminal:
            self.terminal.status(f"{len(self.manager.running)} leases run, {max(0, self.leaving_at - now):.0f} s left")
            deadline = min(deadline, now + 1)
        if self.leaving_at and (now >= self.leaving_at or not (self.manager.running or self.unheard())):
            self.loop.stop()
        return deadline

    def unheard(self) -> bool:
        """True while the master has not acknowledged what another one would have to hear."""
        return bool(self.link and self.link.state == "ready" and self.link.master.unsaid(self.outlives))

    def config_changed(self, changes: set) -> None:
        super().config_changed(changes)
        if ("slave", "workers") in changes:
            self.set_workers(self.workers if self.workers >= 0 else tasks.usable_cpus())

    def know(self, digest: str, manifest: dict) -> None:
        """Takes note of what an application's manifest says."""
        self.needs[digest], self.entries[digest] = rpc.needs_of(manifest), str(manifest.get("entry", ""))[:100]

    def outline(self) -> dict:
        now = time.monotonic()
        running = self.manager.running
        head = {"workers": self.manager.get_num_workers(), "busy": len(running), "queued": len(self.manager.waiting),
                "done": self.manager.done["tasks"], "failed": self.manager.done["failed"], "master": self.address,
                "link": self.link.state if self.link else "none", "uptime": round(now - self.started, 1)}
        rows = [worker.row(self.entries.get(worker.digest, ""), now) for worker in self.manager.workers.values()]
        return {"head": head, "workers": rows, "sandbox": self.guard.features()}

    def summary(self) -> str:
        busy = f"{self.manager.get_num_workers()} workers, {len(self.manager.running)} busy"
        if self.leaving_at:
            return f"leaving {self.address}: {busy}"
        state = self.link.state if self.link else ""
        return f"{self.name} at {self.address}: {busy}" if state == "ready" else f"looking for {self.address}"

    def status(self) -> dict:
        manager = self.manager
        return {
            **super().status(), "name": self.name, "master": self.address if self.link else "", "pool": manager.pool,
            "free": manager.free, "workers": len(manager.workers), "running": len(manager.running),
            "waiting": len(manager.waiting), "ahead": sum(len(worker.ahead) for worker in manager.running),
            "done": dict(manager.done), **tasks.kernels(),
            "link": self.link.state if self.link else "none", "applications": len(self.bundles),
            "sandbox": self.guard.status(),
        }

    def unready(self) -> str:
        if self.leaving_at:
            return "it is leaving"
        return "" if self.link and self.link.state == "ready" else "it has no master"

    def metrics(self) -> list[components.Metric]:
        manager, metric = self.manager, components.metric
        return [
            *super().metrics(),
            metric("connected", "1 while its master is there.", int(not self.unready())),
            metric("workers", "Leases that it runs at once.", manager.get_num_workers()),
            metric("worker_processes", "Processes that are there for them.", len(manager.workers)),
            metric("leases_running", "Leases that run.", len(manager.running)),
            metric("leases_waiting", "Leases that wait for a worker.", len(manager.waiting)),
            metric("applications", "Applications that can run here.", len(self.bundles)),
            metric("leases_total", "Leases that workers have ended.", manager.done["leases"]),
            metric("tasks_total", "Tasks that workers have ended.", manager.done["tasks"]),
            metric("tasks_failed_total", "Those of them that failed.", manager.done["failed"]),
        ]

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
            self.manager.all_died()
            return
        for event, token, detail in events:
            if event != "born":
                self.manager.died(token, detail, event == "unborn")
            elif token in self.manager.workers:
                self.manager.workers[token].pid = detail


# -- command line --------------------------------------------------------------------------------------------------

EXAMPLES = """examples:
  slave.py                      join the master of this machine and user
  slave.py --master node01 --access slave.access
  slave.py --workers 4 --resources gpu=1 --tags ssd,fast
  slave.py doctor --master node01   what is missing on the way there

exit: 0 stopped, 1 internal error, 2 usage, 3 not admitted,
      130 second Ctrl-C, 143 TERM
"""


def parser() -> components.ArgumentParser:
    """The options of `slave.py`."""
    made = components.ArgumentParser(prog="slave.py", usage="slave.py [options]   offer this machine's processors",
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--master", metavar="HOST[:PORT]", help="where the master is (127.0.0.1:8080)")
    made.add_argument("--workers", metavar="N", help="leases that run at once (one per processor)")
    made.add_argument("--resources", metavar="NAME=N,...", help="named amounts on offer")
    made.add_argument("--tags", metavar="WORD,...", help="words that tasks may ask for")
    made.add_argument("--wait", metavar="S", type=rpc.seconds, default=30.0, help="seconds to wait for the master (30)")
    rpc.common_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs a slave; returns its exit code."""
    return components.run_main(_main, argv)


def _main(argv: list[str]) -> int:
    code = rpc.administer("slave", argv, tasks.checks)
    if code is not None:
        return code
    options = parser().parse_args(argv)
    chosen = {key: getattr(options, key) for key in ("master", "workers", "resources", "tags")}
    settings = [f"slave.{key}={value}" for key, value in chosen.items() if value is not None]
    environment, config = rpc.open_environment("slave", options, settings)
    terminal = components.Terminal(color=options.color)
    with environment:
        node = SlaveNode(environment, config, config.get(SlaveNode.master_address), options.access)
        with components.configure_logging(environment, node.log_format, node.log_level, terminal):
            return _run(node, options, terminal)


def _run(node: SlaveNode, options, terminal: components.Terminal) -> int:
    code = components.EXIT_OK
    rpc.raise_open_files()
    rpc.tune_process()

    def interrupt(number: int) -> None:
        nonlocal code
        if number == signal.SIGTERM:
            code = components.EXIT_TERMINATED
        elif node.leaving_at:
            code = components.EXIT_INTERRUPTED
        node.loop.post(node.leave)

    rpc.stop_on_signals(interrupt)
    rpc.reload_on_hangup(node)
    if not options.quiet:
        print(rpc.greeting("slave"), file=sys.stderr)
    try:
        with contextlib.nullcontext() if options.quiet else terminal.waiting("this slave is starting"):
            node.setup()
        node.terminal = terminal if terminal.live else None
        node.config.check_unknown()
        tell_parent = rpc.follow_parent(options.parent, node.loop, node.loop.stop)
        node.serve(node.page_host, node.page_port)
        log.info("its page, metrics and health are at http://%s", node.server.address)
        if rpc.wait_for_master(node, options.wait, terminal):
            node.open_link(node.expose)
            tell_parent({"address": node.server.address})
            node.loop.run()
        if node.refusal:
            raise node.refusal
        terminal.write("\r" * terminal.live)  # the status line goes, and what a terminal shows of Ctrl-C
        _farewell(node, options)
        return code
    finally:
        node.close()


def _farewell(node: SlaveNode, options) -> None:
    if node.joined_at and not options.quiet:
        done = node.manager.done
        minutes, seconds = divmod(int(time.monotonic() - node.joined_at), 60)
        print(f"left: {done['tasks']:,} tasks, {done['failed']:,} failed, {minutes} m {seconds} s", file=sys.stderr)
