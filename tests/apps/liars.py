"""Code of a user's that speaks to the node in the name of its own process, and lies."""

import gc
import os
import pickle
import random
import sys
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


def wire():
    """What leads from this process to its node."""
    return next(one for one in gc.get_objects() if type(one).__name__ == "Wire")


def envelope():
    """What this worker runs."""
    frame = sys._getframe()
    while "envelope" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["envelope"]


def nested(levels):
    """A list in a list, so many times; this process can write it."""
    sys.setrecursionlimit(100_000)
    made = []
    for _ in range(levels):
        made = [made]
    return made


class Liar(Task):
    """Reports its own lease in the way that `how` says."""

    retries = {"WorkerLost": 0}

    def __call__(self):
        one = envelope()
        failures = {"failure": {"*": {"type": 5}}, "text": {"0": "x"}, "large": {"0": {"message": "x" * 3_000_000}},
                    "many": {str(number): {"type": "A"} for number in range(200_000)}}.get(self.how, {})
        if self.how.startswith("deep"):
            failures = {"0": {"type": "A", "more": nested(int(self.how[4:]))}}
        spent = {"seconds": ["x", 0, 0, 0], "short": [0, 0], "later": [1 << 60, 0, 1 << 70, -5]}.get(self.how, [0] * 4)
        hi = one.hi + 2**52 if self.how == "range" else one.hi
        wire().call("result", one.lease, one.lo, hi, failures, True, spent, parts=[pickle.dumps([None])])
        if self.how != "later":
            time.sleep(2)  # it is killed before that, or counts as idle
            os._exit(1)


class Lies(ApplicationNode):
    """How such a task ended."""

    how = ConfigItem("liars", "how", "seconds", "what it lies about")

    def start_processing(self):
        self.push_task(Liar("liar", how=self.how))

    def task_finished(self, task, result, error):
        self.result = error.failure["kind"] if error else "no failure"
        self.shutdown_main_loop()


class Quick(Task):
    def __call__(self):
        return 1


class LyingSystem(ITaskSystem):
    """Its host says of its step what `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def generate_tasks(self, master):
        said = {"negative": ["system_step", -1, False], "half": ["system_step", 1.5, False],
                "huge": ["system_step", 1 << 70, False], "values": ["value", 1, 2, 3], "snapshot": ["snapshot", "x"],
                "stats": ["system_done", None, {"steps": {}}], "text": ["snapshot", "x", 0, [], 0, 0],
                "table": ["snapshot", 0, 1, 7, 0, 0],
                "rows": ["snapshot", 0, 1, [[0, [[0]]]], 0, 0], "ranges": ["snapshot", 0, 1, [[0, [["x", 9]]]], 0, 0],
                "order": ["snapshot", 0, 1, [[0, [[5, 9], [0, 6]]]], 0, 0]}  # fmt: skip
        wire().call(*said[self.how], parts=[b""])
        return [Quick(str(number)) for number in range(20)]

    def is_complete(self, master):
        return False


class LyingSystems(ApplicationNode):
    how = ConfigItem("liars", "how", "negative", "what it lies about")

    def get_task_system(self):
        return LyingSystem(self.how)


KEY = "a" * 64 + "-" + "b" * 16
ODD = [None, True, -1, 0, 1, 2, 1.5, 1 << 52, 1 << 70, 10**400, 1e308, "", "x", "0", "*", KEY, [], [0], [[0, 1]],
       [["x"]], [[0, [[0, 5]]]], {}, {"a": 1}, {"0": {"type": "A", "message": "m"}},
       {"*": {"kind": "error", "retries": 2}}, {"n": [False, 1, 1.0, 1.0, 1.0, 1.0, 1.0, []]}, [0] * 4,
       "x" * 100_000]  # fmt: skip
HEADS = [b"", b"{}", b'{"classes": []}', b'{"resources": 5, "limits": 7}', b"[]", b"x" * 100]
FROM_HOST = {"submit": 4, "value": 1, "snapshot": 5, "publish": 3, "fetch_shared": 1, "settled": 1, "cancel": 2,
             "cancel_task": 3, "figures": 2, "system_step": 2, "view": 1, "system_done": 2, "confined": 1, "other": 1}
FROM_WORKER = {"result": 7, "publish": 3, "fetch_shared": 1, "begun": 1, "confined": 1, "other": 1}


def babble(seed, methods):
    """Says some things of which at least one cannot be, most of the time."""
    chance = random.Random(seed)
    for _ in range(chance.choice((1, 5, 50))):
        name, count = chance.choice(sorted(methods.items()))
        parts = [chance.choice(HEADS) for _ in range(chance.choice((0, 1, 3)))]
        wire().call(name, *[chance.choice(ODD) for _ in range(count - (chance.random() < 0.1))], parts=parts)


class Babbling(Task):
    """Says odd things of its own lease."""

    retries = {"WorkerLost": 0}

    def __call__(self):
        babble(self.seed, FROM_WORKER)
        one = envelope()
        chance = random.Random(self.seed)
        wire().call("result", one.lease, one.lo, one.hi, *[chance.choice(ODD) for _ in range(4)], parts=[b"x"])


class BabblingSystem(ITaskSystem):
    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def generate_tasks(self, master):
        babble(self.seed, FROM_HOST)
        return [Babbling(str(number), seed=self.seed + number) for number in range(3)]

    def is_complete(self, master):
        return True


class Babble(ApplicationNode):
    """Ten systems and tasks of that kind; some of them may never end."""

    seed = IntItem("liars", "seed", 1, "of what is said")

    def start_processing(self):
        for number in range(10):
            self.push_tasksystem(BabblingSystem(1000 * self.seed + number))
        self.push_tasks([Babbling(str(number), seed=2000 * self.seed + number) for number in range(10)])

    def task_system_finished(self, result, error, stats):
        pass
