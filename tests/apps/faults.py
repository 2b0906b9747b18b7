"""Applications for tests of faults: steady work that counts, and tasks that do what tasks should not do."""

import contextlib
import ctypes
import itertools
import os
import sys
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, FloatItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


def note(folder, name, line):
    """Adds a line to a file; lines of several processes do not mix."""
    if folder:
        with open(os.path.join(folder, name), "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


class Work(Task):
    """Takes a while, says that it ran, and returns its number."""

    def __call__(self):
        note(self.folder, "began", self.number)
        time.sleep(self.pause)
        note(self.folder, "ran", self.number)
        return self.number


class Steady(ApplicationNode):
    """`count` tasks of `pause` seconds; each callback is a line in `folder`/callbacks."""

    count = IntItem("faults", "count", 100, "how many tasks")
    pause = FloatItem("faults", "pause", 0.005, "seconds that each takes")
    folder = ConfigItem("faults", "folder", "", "where lines are written")

    def start_processing(self):
        self.total, self.outcomes, self.errors = 0, 0, []
        made = (Work(f"w{n}", number=n, pause=self.pause, folder=self.folder) for n in range(self.count))
        self.push_tasks(made)

    def task_finished(self, task, result, error):
        note(self.folder, "callbacks", task.task.number)
        self.outcomes += 1
        self.total += result or 0
        if error is not None:
            self.errors.append(str(error))
        if self.outcomes == self.count:
            self.result = {"sum": self.total, "errors": self.errors}
            self.shutdown_main_loop()


class Hog(Task):
    """Holds the interpreter's lock in one call of C for about so many seconds."""

    def __call__(self):
        began = time.monotonic()
        sum(itertools.repeat(0, 3_000_000))
        rate = 3_000_000 / (time.monotonic() - began)
        began = time.monotonic()
        sum(itertools.repeat(0, int(rate * self.seconds)))
        return time.monotonic() - began


class Hogs(ApplicationNode):
    """`count` of them; the result is the shortest time that one has taken."""

    count = IntItem("faults", "hogs", 2, "how many tasks")
    seconds = FloatItem("faults", "seconds", 1.0, "how long each holds the lock")

    def start_processing(self):
        self.took = []
        self.push_tasks([Hog(f"hog{n}", seconds=self.seconds) for n in range(self.count)])

    def task_finished(self, task, result, error):
        self.took.append(result)
        if len(self.took) == self.count:
            self.result = min(self.took)
            self.shutdown_main_loop()


class Bad(Task):
    """Does what `how` says to its own process."""

    def __call__(self):
        return getattr(self, self.how)()

    def segfault(self):
        ctypes.string_at(0)

    def exits(self):
        os._exit(0)

    def sys_exits(self):
        sys.exit(0)

    def giant(self):
        return bytes(self.size)

    def closes_all(self):
        os.closerange(0, 256)
        time.sleep(60)

    def writes_garbage(self):
        for number in range(3, 32):
            with contextlib.suppress(OSError):
                os.write(number, b"\xff" * 4096)
        time.sleep(60)

    def descriptors(self):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        held = []
        while True:
            held.append(open("/dev/null"))  # noqa: SIM115

    def fine(self):
        return "fine"


class One(ApplicationNode):
    """One task that is bad in the way of `how`, then a good one; tells how both have ended."""

    how = ConfigItem("faults", "how", "fine", "what it does")
    size = IntItem("faults", "size", 0, "bytes")

    def start_processing(self):
        self.push_task(Bad("bad", how=self.how, size=self.size))

    def task_finished(self, task, result, error):
        if task.name == "bad":
            self.bad = {"kind": getattr(error, "failure", {}).get("kind"), "text": str(error),
                          "type": getattr(error, "failure", {}).get("type")}  # fmt: skip
            self.push_task(Bad("good", how="fine"))
        else:
            self.result = {"bad": self.bad, "good": result, "pid": os.getpid()}
            self.shutdown_main_loop()


class Closing(ITaskSystem):
    """Its process closes everything that it has open, and stays."""

    def generate_tasks(self, master):
        os.closerange(3, 256)
        time.sleep(60)


class RunClosing(ApplicationNode):
    def get_task_system(self):
        return Closing()
