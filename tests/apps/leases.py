"""Quick tasks with one among them that is not."""

import os
import signal
import threading
import time
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import Task


class Quick(Task):
    def __call__(self):
        begun = self.folder and list(Path(self.folder).glob("pid-*"))
        if self.number == self.at:
            getattr(self, self.what)()
        elif begun:
            Path(self.folder, "later").touch()
        return self.number, os.environ["CONCURRENT_SWARM_ATTEMPT"]

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(self):
        Path(self.folder, f"pid-{os.getpid()}").touch()
        while not Path(self.folder, "go").exists():
            time.sleep(0.01)  # between two looks


class Speaking(Task):
    def __call__(self):
        print("I am", self.number)
        os.write(1, b"raw %d\n" % self.number)
        if self.number % 50 == 49:
            raise ValueError(self.number)
        return self.number, os.environ["CONCURRENT_SWARM_ATTEMPT"]


class Row(ApplicationNode):
    """How `count` tasks ended; the one `at` does `what`. With a folder, all are cancelled once its file `cancel` is
    there."""

    write = ["/tmp"]
    count = IntItem("leases", "count", 200, "how many tasks")
    at = IntItem("leases", "at", 1 << 30, "which is the odd one")
    what = ConfigItem("leases", "what", "wait", "what it does")
    folder = ConfigItem("leases", "folder", "", "where tasks leave their marks")

    def app_init(self):
        self.ended, self.attempts, self.said, self.failures = {}, {}, {}, {}

    def start_processing(self):
        self.push_tasks([self.make(number) for number in range(self.count)])
        if self.folder:
            threading.Thread(target=self.look, daemon=True).start()

    def make(self, number):
        return Quick("quick", number=number, at=self.at, what=self.what, folder=self.folder)

    def look(self):
        while not Path(self.folder, "cancel").exists():
            time.sleep(0.01)  # between two looks
        self.cancel_tasks(kill=True)

    def task_output(self, task_id, attempt, text):
        self.said[task_id] = self.said.get(task_id, "") + text

    def task_finished(self, task, result, error):
        number = task.task.number
        if error is None:
            self.attempts[number] = result[1]
            assert str(task.attempt) == result[1], "the handle says in which attempt it was"
        else:
            self.failures[number] = {"kind": error.failure["kind"], "output": error.failure.get("output", "")}
        if len(self.attempts) + len(self.failures) == self.count:
            again = {number: attempt for number, attempt in self.attempts.items() if attempt != "1"}
            self.result = {"again": again, "failures": self.failures, "said": self.said}
            self.shutdown_main_loop()


class Talk(Row):
    """The same with tasks that say who they are."""

    def make(self, number):
        return Speaking("speaking", number=number)
