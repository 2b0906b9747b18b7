"""Applications for the corpus of bad input: one that works while bad things come, and tasks that are bad themselves."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Held(Task):
    """Says that it runs, and goes on once it may."""

    def __call__(self):
        pathlib.Path(self.folder, f"began-{self.number}").touch()
        while not os.path.exists(os.path.join(self.folder, f"go-{self.number}")):
            time.sleep(0.005)
        return self.number**2


class Resident(ApplicationNode):
    """Pushes a task for each file `push-N`, whose result is in the file `done-N` then; ends with the file `end`."""

    write = ["/tmp"]
    folder = ConfigItem("corpus", "folder", "", "where the files are")

    def start_processing(self):
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        folder, pushed = pathlib.Path(self.folder), set()
        while not (folder / "end").exists():
            for path in set(folder.glob("push-*")) - pushed:
                pushed.add(path)
                number = int(path.name.partition("-")[2])
                self.push_task(Held(path.name, folder=self.folder, number=number))
            time.sleep(0.005)
        self.shutdown_main_loop()

    def task_finished(self, task, result, error):
        path = pathlib.Path(self.folder, f"done-{task.task.number}")
        path.with_suffix(".new").write_text(str(result if error is None else error))
        path.with_suffix(".new").rename(path)


class Plain:
    pass


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first)


class BadReduce(Exception):
    def __reduce__(self):
        raise OSError("no")


class Base(BaseException):
    pass


def deep(levels):
    made = []
    for _ in range(levels):
        made = [made]
    return made


def cyclic():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def throw(error):
    raise error


WAYS = {  # what a task returns or raises
    "lambda": lambda: (lambda: 1),
    "generator": lambda: (n for n in []),
    "lock": threading.Lock,
    "view": lambda: memoryview(b"x"),
    "deep": lambda: deep(100_000),
    "bad reduce": lambda: throw(BadReduce("text")),
    "two arguments": lambda: throw(TwoArguments("first", "second")),
    "base": lambda: throw(Base("base")),
    "long message": lambda: throw(ValueError("x" * 10_000_000)),
    "cyclic": cyclic,
    "recursion": lambda: (lambda f: f(f))(lambda f: f(f)),
    "too long name": lambda: throw(KeyError("\x1b[2J")),
    "forks": lambda: os.fork() and 1,
    "kills itself": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exits with 3": lambda: sys.exit(3),
    "many files": lambda: [open(os.devnull) for _ in range(10**6)],  # noqa: SIM115
    "many threads": lambda: many_threads(),
    "fine": lambda: "fine",
}
if sys.version_info >= (3, 11):
    WAYS["group"] = lambda: throw(ExceptionGroup("group", [ValueError(1), BadReduce("inner")]))  # noqa: F821


def many_threads():
    stop = threading.Event()
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(stop.set)
            for _ in range(300):
                threading.Thread(target=stop.wait, daemon=True).start()
    finally:
        stop.set()
    return "fine"


class Way(Task):
    def __call__(self):
        return WAYS[self.way]()


class Ways(ApplicationNode):
    """A task for each way named; tells what has become of each."""

    ways = ConfigItem("corpus", "ways", "fine", "which, with commas")

    def start_processing(self):
        self.told = {}
        self.pushed = self.ways.split(",")
        self.push_tasks([Way(way, way=way, retries=0) for way in self.pushed])

    def task_finished(self, task, result, error):
        failure = getattr(error, "failure", {})
        self.told[task.name] = {
            "result": None if error is not None else repr(result)[:100], "kind": failure.get("kind"),
            "type": failure.get("type"), "message": failure.get("message", "")[:5000],
            "traceback": len(failure.get("traceback", "")), "error": type(error).__name__, "text": str(error)[:5000],
        }  # fmt: skip
        if len(self.told) == len(self.pushed):
            self.result = self.told
            self.shutdown_main_loop()


def unsendable(way):
    class Local:
        pass

    value = {"lambda": lambda: 1, "local": Local(), "file": open(os.devnull), "deep": deep(100_000)}[way]  # noqa: SIM115
    return Way("it", way="fine", value=value)


class Unsendable(ApplicationNode):
    """A task that cannot be sent, then a good one."""

    way = ConfigItem("corpus", "way", "lambda", "what it holds")

    def start_processing(self):
        self.told = []
        self.push_tasks([unsendable(self.way), Way("fine", way="fine")])

    def task_finished(self, task, result, error):
        self.told.append([task.name, str(error) if error is not None else result])
        if len(self.told) == 2:
            self.result = dict(self.told)
            self.shutdown_main_loop()


class Odd(ITaskSystem):
    """Gives what a system should not give."""

    def __init__(self, way, count):
        super().__init__()
        self.way, self.count, self.ended = way, count, 0

    def generate_tasks(self, master):
        match self.way:
            case "none":
                return None
            case "no tasks":
                return [1, 2, 3]
            case "no list":
                return 7
        return (Way(f"n{n}", way="fine") for n in range(self.count))

    def task_finished(self, master, task, result, error):
        self.ended += 1

    def is_complete(self, master):
        return self.way != "none" and master.outstanding == 0

    def gather_result(self, master):
        return self.ended


class OddSystem(ApplicationNode):
    way = ConfigItem("corpus", "way", "none", "what it gives")
    count = IntItem("corpus", "count", 10, "how many tasks")

    def get_task_system(self):
        return Odd(self.way, self.count)
