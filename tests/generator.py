"""A swarm that never was: a real Board and a real Gallery, fed by slaves and task systems that exist in simulated time.

    crowd = Crowd(slaves=1000, workers=8, tasks=100_000, seed=7)
    crowd.run()                                # to the end, or `crowd.run(until=crowd.start + 20)`
    answer = crowd.poll(stream={"window": 10}, role="admin")

The same seed gives the same swarm, time by time. `stage(crowd)` shows it at an address, in real time, to a browser:

    python tests/generator.py --slaves 1000 --tasks 100000      # prints the address
"""

import argparse
import collections
import heapq
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

from concurrent_swarm import components, master, rpc

ENDPOINTS = ("samples/md5.py:41 in __call__", "samples/pca.py:17 in project", "tests/apps/dna.py:88 in curve")
APPS = (("md5", 0.6, 0.001), ("mandelbrot", 0.3, 1.0), ("dna", 0.1, 5.0))  # share of the tasks, seconds of one


class Crowd:
    """Slaves that run what the board gives them, and systems that go from step to step, until all tasks are done."""

    def __init__(self, slaves=1000, workers=8, tasks=100_000, seed=1, start=1000.0, failing=0.01, history=50_000,
                 steps=4, apps=APPS):
        self.random, self.now, self.start, self.failing = random.Random(seed), start, start, failing
        self.board = master.Board(max_lease=200)
        self.gallery = master.Gallery(self.board, start, history)
        self.cursor = {}
        self.events, self.order = [], itertools.count()
        self.free = {}  # slave -> lanes without work
        self.running = {}  # slave -> lease -> lane
        self.waiting = {}  # slave -> leases
        self.seconds = {}  # system -> of a task, about
        self.left = {}  # system -> (tasks of each further step)
        self.spans = []
        self._join(slaves, workers)
        for number, (app, share, seconds) in enumerate(apps, 1):
            self._begin(str(number), app, seconds, int(tasks * share), steps)
        self.at(start + 1.0, self._sample)

    # what happens

    def at(self, when, function, *details):
        """Something happens then."""
        heapq.heappush(self.events, (when, next(self.order), function, details))

    def run(self, until=float("inf")):
        """Lets everything happen up to a time, or to the end of all tasks."""
        while self.events and self.events[0][0] <= until and (self.works or until < float("inf")):
            self.now, _, function, details = heapq.heappop(self.events)
            function(*details)
        self.now = max(self.now, until) if until < float("inf") else self.now
        return self

    @property
    def works(self):
        """Systems that are not done."""
        return [work for work in self.gallery.works.values() if work.state == "running"]

    def poll(self, role="admin", cursor=None, opened="", stream=None, slaves=None):
        """What a page is told that has asked before, unless it brings cursors of its own."""
        whole = role == "admin"
        asked = master.Asked.of(self.cursor if cursor is None else cursor, stream or {}, slaves or {}, opened, whole)
        told = self.gallery.tell(self.gallery.copy(asked, self.now), asked, whole)
        self.cursor = told["cur"]
        return json.loads(json.dumps(told, allow_nan=False))

    def _join(self, slaves, workers):
        for number in range(1, slaves + 1):
            name = f"s{number}"
            self.gallery.slave_joined(name, f"node{number:04}", rpc.minor_version(), "standard")
            self.apply(self.board.slave_joined(name, {"cpus": workers}, [], workers, self.now))
            self.free[name], self.waiting[name] = list(range(workers))[::-1], collections.deque()
            self.running[name] = {}
            self.at(self.now + self.random.random() * 5, self._vitals, name)

    def _vitals(self, name):
        if name in self.board.slaves:
            cpu, trip = self.random.random(), 0.0003 + self.random.random() / 1000
            self.gallery.vitals(name, round(cpu, 3), self.random.randrange(10**8, 10**9), round(trip, 5),
                                self.running[name].copy())
            self.at(self.now + 5, self._vitals, name)

    def _sample(self):
        self.gallery.sample(self.now)
        self.at(self.now + 1.0, self._sample)

    def lose(self, name):
        """A slave is lost."""
        held = self.board.slaves[name].open_tasks
        self.gallery.slave_gone(name, "no sign of life", held, self.now)
        self.waiting.pop(name), self.free.pop(name)
        self.apply(self.board.slave_lost(name, self.now))

    # systems

    def _begin(self, name, app, seconds, tasks, steps):
        self.seconds[name] = seconds
        self.gallery.owner_began(name, "c1", app, "ada", False, self.now)
        self.apply(self.board.owner_joined(name, "system", self.now, name=app, user="ada"))
        self.left[name] = [tasks // steps] * (steps - 1) + [tasks - tasks // steps * (steps - 1)]
        self._step(name, 1)

    def _step(self, name, step):
        count = self.left[name].pop(0)
        self.gallery.system_step(name, step, False, self.now)
        for number, first in enumerate(range(0, count, 500)):
            size = min(500, count - first)
            self.gallery.submitted(name, size, step, self.now)
            options = {"first": step * 1_000_000 + first, "name": f"{self.gallery.works[name].app.title()}Task"}
            self.apply(self.board.submit(name, step * 10_000 + number, size, self.now, options=options))

    def _went_on(self, name):
        work = self.gallery.works.get(name)
        if work is None or work.done < work.known:
            return
        if self.left[name]:
            self._step(name, work.step + 1)
        else:
            self.gallery.owner_ended(name, None, self.now)
            self.apply(self.board.owner_gone(name, self.now))

    # leases

    def apply(self, effects):
        """What an event of the board asks for."""
        for record in effects.records:
            if record[0] == "outcome":
                _, owner, number, lo, hi, _, failures, *_ = record
                self.gallery.counted(owner, hi - lo, len(failures))
                for place, why in failures.items():
                    task = self.board.owners[owner].batches[number].task_id(int(place))
                    self.gallery.task_failed(owner, task, why, 1, "s1", self.now)
        for kind, target, *details in effects.messages:
            if kind == "lease":
                self.waiting[target].append((details[0], self.now))
                self._start(target)

    def _start(self, slave):
        while self.waiting.get(slave) and self.free[slave]:
            lease, leased = self.waiting[slave].popleft()
            lane, each = self.free[slave].pop(), self.seconds[lease.batch.owner.id]
            count, self.running[slave][lease.id] = lease.hi - lease.lo, lane
            seconds = count * each * self.random.lognormvariate(0, 0.4 if count == 1 else 0.05)
            self.at(self.now + seconds, self._end, slave, lane, lease, leased, self.now)

    def _end(self, slave, lane, lease, leased, began):
        if slave not in self.free:
            return
        self.free[slave].append(lane)
        del self.running[slave][lease.id]
        if lease.id in self.board.leases:
            failures = {str(task): self._failure() for task in range(lease.lo, lease.hi)
                        if self.random.random() < self.failing}  # fmt: skip
            self._hear(slave, lane, lease, leased, began, len(failures))
            owner, seconds = lease.batch.owner.id, self.now - began
            self.apply(self.board.result(slave, lease.id, lease.lo, lease.hi, seconds, None, failures, self.now))
            self._went_on(owner)
        self._start(slave)

    def _hear(self, slave, lane, lease, leased, began, failed):
        batch, count = lease.batch, lease.hi - lease.lo
        step = self.gallery.works[batch.owner.id].step
        first = batch.first + lease.lo
        span = master.Span(batch.owner.id, first, count, failed, lease.attempt, slave, lane, batch.since, leased,
                           began, self.now, self.now, 1e-5, 1e-5, step, batch.options["name"], 900, 300)
        self.spans.append(span)
        self.gallery.hear([span])

    def _failure(self):
        where = self.random.choice(ENDPOINTS)
        kind = self.random.choice(("ValueError", "KeyError", "ZeroDivisionError"))
        message = f"range end {self.random.randrange(10_000)} before start"
        text = f'Traceback (most recent call last):\n  File "{where}"\n    work()\n{kind}: {message}\n'
        return {"type": kind, "message": message, "where": where, "kind": "error", "traceback": text, "attempt": 1}


# -- on a stage ----------------------------------------------------------------------------------------------------


class Node(rpc.BaseNode):
    """A master's page without a master: what it tells is of a crowd."""

    role = "master"
    tell, _ask = master.MasterNode.tell, master.MasterNode._ask

    def __init__(self, crowd, folder):
        super().__init__(components.Environment(folder, "master").__enter__(), components.Config())
        self.crowd, self.gallery, self._viewing = crowd, crowd.gallery, threading.Lock()
        self.failures = crowd.gallery.errors
        self.guard = SimpleNamespace(features=lambda: {"files": "active"})

    def tell_spans(self):
        """There are none: the crowd tells the gallery itself."""

    def tick(self, now):
        """The crowd goes on."""
        self.crowd.run(until=now)
        return now + 0.02


@contextmanager
def stage(crowd, port=0, token="letmein"):
    """Shows a crowd, which goes on in real time, at the address that the block gets; its past is as long as it ran
    before. `crowd.start` must have been a time of `time.monotonic`."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(crowd, folder)
        node.serve("127.0.0.1", port, token)
        thread = threading.Thread(target=node.loop.run, daemon=True)
        thread.start()
        try:
            yield node.server.address
        finally:
            node.loop.stop()
            thread.join(10)
            node.close()


def main():
    """Shows a crowd until it is interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slaves", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--past", type=float, default=15.0, help="seconds of simulated time before it begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    crowd = Crowd(options.slaves, options.workers, options.tasks, options.seed, time.monotonic() - options.past)
    crowd.run(until=crowd.start + options.past)
    with stage(crowd, options.port) as address:
        print(json.dumps({"address": address, "page": f"http://{address}/#token=letmein"}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
