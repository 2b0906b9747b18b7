"""Applications of several users; each test picks one with `--app`."""

import os
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import FloatItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task

from concurrent_swarm import rpc


class Nap(Task):
    def __call__(self):
        time.sleep(self.seconds)


class Who(Task):
    def __call__(self):
        return os.getpid()


class Worker(ApplicationNode):
    """The result is the process that ran its task."""

    def start_processing(self):
        self.push_task(Who("who"))


class Naps(ApplicationNode):
    """Pushes so many tasks of so many seconds; the result is how many were done, and why others were refused."""

    abstract = True
    count = IntItem("users", "count", 100, "how many tasks")
    seconds = FloatItem("users", "seconds", 0.005, "how long each of them takes")

    def app_init(self):
        self.refusals, self.done, self.refused = [], 0, 0

    def start_processing(self):
        self.push_tasks([Nap("nap", seconds=self.seconds) for _ in range(self.count)])

    def push_tasks_failed(self, result):
        self.refusals.append(result["m"])

    def task_finished(self, task, result, error):
        self.refused += error is not None
        self.done += error is None
        if self.done + self.refused == self.count:
            self.end()

    def end(self):
        self.result = {"done": self.done, "refused": self.refused, "refusals": self.refusals}
        self.shutdown_main_loop()


class Plain(Naps):
    """Just that; the result has what the master had done for all by then, too."""

    def end(self):
        Naps.end(self)
        self.result["done by all"] = rpc.Proxy(self.swarm.address).status()["done"]


class Again(Naps):
    """Pushes a few more, once what was refused is known and the rest is done."""

    def end(self):
        if self.count == self.done + self.refused and self.refused:
            self.before, self.count, self.done, self.refused = self.done, 10, 0, 0
            self.start_processing()
        else:
            self.done += self.before
            Naps.end(self)


class NapSystem(ITaskSystem):
    def __init__(self, seconds):
        ITaskSystem.__init__(self)
        self.seconds, self.ended = seconds, False

    def generate_tasks(self, master):
        return [Nap("nap", seconds=self.seconds)]

    def task_finished(self, master, task, result, error):
        self.ended = True

    def is_complete(self, master):
        return self.ended

    def gather_result(self, master):
        return "done"


class Systems(Naps):
    """Pushes so many task systems."""

    def start_processing(self):
        for _ in range(self.count):
            self.push_tasksystem(NapSystem(self.seconds))

    def push_tasksystem_failed(self, result):
        self.refusals.append(result["m"])
        self.task_finished(None, None, result)

    def task_system_finished(self, result, error, stats):
        self.task_finished(None, result, error)
