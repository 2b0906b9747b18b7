"""Measures the Board alone, without sockets: what a queued task weighs, and what it costs to submit, place and end it.

    python benchmarks/board.py
    python benchmarks/board.py --tasks 100000 --batch 1 --slaves 2,1000 --owners 1 --scheduler ZMQTaskScheduler

Each row is a process of its own. All tasks are submitted first (`submit`), then every lease is reported in the order in
which it was made until none is left, and batches are settled as an owner does it (`run`). The clock of the Board is
that of the simulated slaves, so that it is told of the time as often as they would let it. `long` tasks take a second,
`fast` ones 50 µs: leases of long tasks stay at one. Memory is what the process grew by until all tasks were queued,
without payloads, and with options as the master makes them, a dictionary per batch.
"""

import argparse
import itertools
import multiprocessing
from collections import defaultdict, deque
from pathlib import Path
from time import process_time
from types import SimpleNamespace

from concurrent_swarm.master import Board

from concurrent_swarm import components, tasks

HEAD = {"bundle": "0" * 64, "name": "Noop", "classes": [["noop", "Noop", False]]}  # read once, whatever the batch
SCHEDULERS = ("none", "ZMQTaskScheduler", "GenericTaskScheduler")
SECONDS = {"long": 1.0, "fast": 0.00005}


def measure(scheduler, speed, batch, owners, slaves, count):
    """One row: bytes and µs per task."""
    board = Board(limit=count)
    if scheduler != "none":
        board.scheduler = components.ComponentManager().find_component(tasks.ITaskScheduler, scheduler)
        board.scheduler.setup(SimpleNamespace(board=board))
    for number in range(owners):
        board.owner_joined(f"c{number}", "client", 0.0)
    for number in range(slaves):
        board.slave_joined(f"s{number}", {"cpus": 2}, [], 2, 0.0)
    began, before = process_time(), memory()
    waiting = submit(board, count // batch, batch, owners)
    submitted, after = process_time(), memory()
    leases = run(board, waiting, SECONDS[speed], 2 * slaves)
    ended = process_time()
    assert board.counters["ended"] == count // batch * batch and board.scheduler_error is None
    return {
        "bytes": (after - before) / count,
        "submit": (submitted - began) / count * 1e6,
        "run": (ended - submitted) / count * 1e6,
        "lease": (ended - began) / leases * 1e6,
        "leases": leases,
    }


def memory():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def submit(board, batches, size, owners):
    """Submits all batches, owner by owner in turn; returns the leases made so far."""
    waiting = deque()
    for number in range(batches):
        turn, owner = divmod(number, owners)
        options = {**HEAD, "first": turn * size}
        effects = board.submit(f"c{owner}", turn, size, 0.0, tasks.GROUP, options)
        waiting.extend(message[2] for message in effects.messages)
    return waiting


def run(board, waiting, seconds, slots):
    """Reports leases until none is left, and lets the time pass; returns how many there were."""
    now, leases, settled = 0.0, 0, defaultdict(list)
    while waiting:
        lease = waiting.popleft()
        leases += 1
        now += seconds * lease.tasks / slots
        if board.deadline is not None and now >= board.deadline:
            board.tick(now)
        spent = seconds * lease.tasks
        effects = board.result(lease.slave.id, lease.id, lease.lo, lease.hi, spent, None, {}, now)
        if not lease.batch.remaining:
            settle(board, settled[lease.batch.owner.id], lease.batch, now)
        waiting.extend(message[2] for message in effects.messages if message[0] == "lease")
    return leases


def settle(board, numbers, batch, now):
    """The owner tells of its finished batches, many at once."""
    numbers.append(batch.number)
    if len(numbers) == tasks.SETTLE_MANY:
        board.settled(batch.owner.id, numbers, now)
        numbers.clear()


def parser():
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--tasks", type=int, default=1_000_000)
    made.add_argument("--scheduler", default=",".join(SCHEDULERS), metavar="NAME,…")
    made.add_argument("--speed", default="long,fast", metavar="long,fast")
    made.add_argument("--batch", default=f"{tasks.CHUNK},1", metavar="TASKS,…", help="tasks in a batch")
    made.add_argument("--owners", default="1,100", metavar="NUMBER,…")
    made.add_argument("--slaves", default="2,1000", metavar="NUMBER,…", help="slaves with two workers each")
    return made


def main():
    given = parser().parse_args()
    numbers = [[int(word) for word in words.split(",")] for words in (given.batch, given.owners, given.slaves)]
    rows = itertools.product(given.scheduler.split(","), given.speed.split(","), *numbers)
    print(f"{'scheduler':22}speed batch owners slaves  bytes/task  submit + run µs/task  µs/lease    leases")
    for row in rows:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply(measure, (*row, given.tasks))
        print("{:22}{:5} {:5} {:6} {:6}".format(*row), end=" ")
        print("{bytes:11.0f} {submit:8.2f} + {run:8.2f} {lease:12.2f} {leases:9}".format(**found), flush=True)


if __name__ == "__main__":
    main()
