"""Applications whose tasks fail and run again; `--app` picks one.

Where LC_DEPENDENCY is "missing" this module cannot be imported, as if something that it needs were not installed.
"""

import os
import signal
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task

if os.environ.get("LC_DEPENDENCY") == "missing":
    raise ImportError("there is no dependency here")


class Busy(ConnectionError):
    """What a service says that is to be asked again."""


class Flaky(Task):
    """Notes each attempt in `folder`; raises until its last one, if its name says so."""

    retry_wait = 0.05
    retries = {ConnectionError: 5, ValueError: 1}

    def __call__(self):
        attempt = int(os.environ["CONCURRENT_SWARM_ATTEMPT"])
        Path(self.folder, f"{self.name}-{attempt}").touch()
        if self.name.startswith("busy") and attempt < 3:
            raise Busy("try later")
        if self.name.startswith("wrong"):
            raise ValueError("it is wrong each time")
        if self.name.startswith("key"):
            raise KeyError("no rule for this one")
        if self.name.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt


class Plain(Task):
    """Raises, and says nothing of retries."""

    def __call__(self):
        Path(self.folder, f"{self.name}-{os.environ['CONCURRENT_SWARM_ATTEMPT']}").touch()
        raise OSError("the disk of somebody else")


class Fragile(Flaky):
    """May not run again over the death of a worker."""

    retries = {"WorkerLost": 0}


class Easy(Task):
    """Notes on which slave it ran."""

    def __call__(self):
        return self.name


class Retrying(ApplicationNode):
    """Pushes tasks with these names, and tells how each ended, and how often it was told."""

    write = ["/tmp"]
    folder = ConfigItem("retries", "folder", "", "where tasks leave notes")
    called = ConfigItem("retries", "called", "busy", "names of tasks")
    kind = ConfigItem("retries", "kind", "Flaky", "their class")

    def start_processing(self):
        self.result, self.told = {}, 0
        self.push_tasks(globals()[self.kind](name, folder=self.folder) for name in self.called.split(","))

    def task_finished(self, task, result, error):
        self.told += 1
        if error is not None:
            result = [type(error).__name__, error.failure["kind"], error.failure.get("attempt", 1)]
        assert task.attempt == (result[2] if error else result), "the handle says in which attempt it was"
        self.result[task.name] = result
        if not self.pending:
            self.result["told"] = self.told
            self.shutdown_main_loop()


class Mixed(ITaskSystem):
    """Of its tasks some fail at first."""

    def __init__(self, folder, count):
        super().__init__()
        self.folder, self.count, self.ended = folder, count, {}

    def generate_tasks(self, master):
        for number in range(self.count):
            yield Flaky(f"busy{number}" if number % 7 == 0 else f"easy{number}", folder=self.folder)

    def task_finished(self, master, task, result, error):
        self.ended[task.name] = self.ended.get(task.name, 0) + 1
        assert error is None, error
        assert master.attempt == result, "the outcome says of which attempt it is"

    def is_complete(self, master):
        return len(self.ended) == self.count

    def gather_result(self, master):
        return sorted(set(self.ended.values())), len(self.ended)


class RetryingSystem(ApplicationNode):
    """The same in a task system."""

    folder = ConfigItem("retries", "folder", "", "where tasks leave notes")
    count = IntItem("retries", "count", 200, "tasks")

    def get_task_system(self):
        return Mixed(self.folder, self.count)

    def work_finished(self, result, systems):
        self.result = result
        self.shutdown_main_loop()


class Many(ApplicationNode):
    """So many tasks, none of which is to fail."""

    count = IntItem("retries", "count", 200, "tasks")

    def start_processing(self):
        self.failed = []
        self.push_tasks(Easy(f"{number}") for number in range(self.count))

    def task_finished(self, task, result, error):
        if error is not None:
            self.failed.append(str(error))
        if not self.pending:
            self.result = self.failed
            self.shutdown_main_loop()
