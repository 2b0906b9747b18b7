"""Applications whose results do harm to whoever opens or shows them, and what data there is to return instead."""

import collections
import datetime
import decimal
import os
import pathlib
import time
import uuid

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem
from concurrent_swarm.tasks import ITaskSystem, Task, publish

ESCAPES = "\x1b[2J\x1b]0;owned\x07red"


def most_memory():
    """MiB that this process has taken since it began to run this program; what rusage says includes its parent's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM:"))


def note(folder, name):
    """Leaves a mark that says which process it was."""
    pathlib.Path(folder, f"{name}-{os.getpid()}").touch()
    return name


def fail():
    raise RuntimeError("it does not want to be opened")


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Endless:
    """Never says what it is."""

    def __repr__(self):
        while True:
            time.sleep(1)


class OwnError(Exception):
    pass


def data():
    """Something of every kind that plain data may be."""
    return [
        None, True, 2**100, 1.5, 2j, "text", b"bytes", bytearray(b"more"), (1, (2,)), {1: [2]}, {3}, frozenset({4}),
        range(5), datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc), datetime.date(2026, 1, 2),
        datetime.time(3), datetime.timedelta(4), decimal.Decimal("0.1"), uuid.UUID(int=5),
        pathlib.PurePosixPath("/a/b"), pathlib.Path("c"), collections.Counter("aab"),
        collections.OrderedDict(a=1), collections.deque([1, 2], 3),
        collections.defaultdict(list, a=[1]),
    ]  # fmt: skip


def array():
    import numpy

    return numpy.arange(12.0).reshape(3, 4)[:, ::2]


def made(how, folder):
    """A result of this kind."""
    match how:
        case "runs":
            return Reduced(note, folder, "ran")
        case "eight":
            return Reduced(bytearray, 8_000_000_000)
        case "raises":
            return Reduced(fail)
        case "endless":
            return Endless()
        case "escapes":
            print(ESCAPES, flush=True)
            raise ValueError(ESCAPES)
        case "own error":
            raise OwnError("ours")
        case "published":
            return publish([1, 2])
        case "array":
            return array()
        case "data":
            return data()
    return how


class Make(Task):
    def __call__(self):
        return made(self.how, self.folder)


class MakeAll(ITaskSystem):
    """Its task and its result are both of the kind."""

    def __init__(self, how, folder):
        super().__init__()
        self.how, self.folder, self.ended = how, folder, 0

    def generate_tasks(self, master):
        return [Make("one", how="fine", folder=self.folder)]

    def task_finished(self, master, task, result, error):
        self.ended += 1

    def is_complete(self, master):
        return self.ended == 1

    def gather_result(self, master):
        return made(self.how, self.folder)


class Any(ApplicationNode):
    """Pushes one task that returns this, then a harmless one; tells what has come."""

    write = ["/tmp"]
    how = ConfigItem("hostile", "how", "fine", "what it returns")
    folder = ConfigItem("hostile", "folder", "", "where marks are left")
    name = ConfigItem("hostile", "name", "one", "the name of the task")

    def start_processing(self):
        self.push_task(Make(ESCAPES if self.name == "escapes" else self.name, how=self.how, folder=self.folder))

    def task_finished(self, task, result, error):
        if task.task.how == "fine":
            self.result = {**self.heard, "good": result}
            self.shutdown_main_loop()
        else:
            self.heard = self.told(result, error)
            self.push_task(Make("fine", how="fine", folder=self.folder))

    def told(self, result, error):
        return {
            "kind": type(error).__name__, "error": str(error), "pid": os.getpid(),
            "peak": most_memory(), "equal": self.equal(result),
            "message": getattr(error, "message", ""),
        }  # fmt: skip

    def equal(self, result):
        if self.how == "published":
            return result.get() == [1, 2] if result else None
        if self.how == "array":
            return result is not None and type(result) is type(array()) and (result == array()).all().item()
        return self.how == "data" and [*map(type, result)] == [*map(type, data())] and result == data()


class Data(Any):
    results = "data"


class Arrays(Any):
    results = "data,numpy"


class Unknown(Any):
    results = "pickle"


class AnySystem(Any):
    def get_task_system(self):
        return MakeAll(self.how, self.folder)

    def task_system_finished(self, result, error, stats):
        self.result = self.told(result, error)
        self.shutdown_main_loop()


class DataSystem(AnySystem):
    results = "data"
