"""Applications whose tasks pass a limit, or are cancelled, while they are at something; `--app` picks one."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, FloatItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Stuck(Task):
    """Says in `folder` that it runs, with its process and its children's, and never ends."""

    def __call__(self):
        getattr(self, self.how)()

    def mark(self, *children):
        path = Path(self.folder, f"run-{self.name}")
        path.with_suffix(".new").write_text(" ".join(map(str, (os.getpid(), *children))))
        path.with_suffix(".new").rename(path)

    def loop(self):
        self.mark()
        while True:
            pass  # stuck in a loop

    def sleep(self):
        self.mark()
        time.sleep(1000)  # stuck in a sleep

    def interpreter(self):
        self.mark()
        sum(itertools.repeat(0))  # stuck in C

    def child(self):
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        self.mark(child.pid)
        child.wait()  # stuck in a child

    def daemon(self):
        """A grandchild in a session of its own, whose parent has ended."""
        code = "import subprocess as s; print(s.Popen(['sleep', '1000'], start_new_session=True, stdout=s.DEVNULL).pid)"
        made = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        self.mark(int(made.stdout))
        time.sleep(1000)  # stuck with a daemon

    def brood(self):
        """Many children, each in a session of its own, which have children of theirs."""
        code = "import os, time; os.fork(); time.sleep(1000)"
        made = [subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True).pid for _ in range(10)]
        while any(len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) < 1 for pid in made):
            time.sleep(0.01)
        text = " ".join(Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in made)
        self.mark(*made, *text.split())
        time.sleep(1000)  # stuck with a brood

    def briefly(self):
        self.mark()
        time.sleep(1.5)
        Path(self.folder, f"ended-{self.name}").touch()

    def dies(self):
        """Leaves a child behind; the attempts after the first one end at once."""
        if os.environ["CONCURRENT_SWARM_ATTEMPT"] == "1":
            self.mark(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
            os._exit(7)

    def memory(self):
        self.mark()
        held = []
        while True:
            held.append(bytearray(8 << 20))  # stuck with memory
            time.sleep(0.02)

    def memory_of_a_child(self):
        code = "import time; held = bytearray(300 << 20); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", code])
        self.mark(child.pid)
        child.wait()  # stuck with the memory of a child


class Whole(Task):
    """A task that ends."""

    def __call__(self):
        return os.getpid()


class Limited(ApplicationNode):
    """`count` stuck tasks, and one that ends when all of them have their outcomes."""

    write = ["/tmp"]
    read = ["/proc"]
    subprocess = True
    how = ConfigItem("limits_app", "how", "loop", "at what the task is stuck")
    count = IntItem("limits_app", "count", 1, "how many")
    folder = ConfigItem("limits_app", "folder", "", "where tasks leave their marks")
    timeout = FloatItem("limits_app", "timeout", -1.0, "limit of the tasks")
    deadline = FloatItem("limits_app", "deadline", -1.0, "limit of the tasks")
    queue_timeout = FloatItem("limits_app", "queue_timeout", -1.0, "limit of the tasks")
    memory_limit = FloatItem("limits_app", "memory_limit", -1.0, "limit of the tasks")

    def start_processing(self):
        self.told, self.began = [], time.monotonic()
        self.push_tasks(self.make(number) for number in range(self.count))

    def make(self, number):
        task = Stuck(f"t{number}", how=self.how, folder=self.folder)
        for name in ("timeout", "deadline", "queue_timeout", "memory_limit"):
            if getattr(self, name) >= 0:
                setattr(task, name, getattr(self, name))
        return task

    def task_finished(self, task, result, error):
        self.told.append({"name": task.name, "after": time.monotonic() - self.began, "result": result,
                           **(getattr(error, "failure", None) or {})})
        if len(self.told) == self.count:
            self.push_task(Whole("whole"))
        elif len(self.told) > self.count:
            self.result = self.told
            self.shutdown_main_loop()


class Gone(Limited):
    """The same, but nobody could run another task."""

    def task_finished(self, task, result, error):
        self.told.append(error.failure)
        if len(self.told) == self.count:
            self.result = self.told
            self.shutdown_main_loop()


class Cancelling(Limited):
    """Cancels its tasks once one of them runs: by `by`, with `kill`."""

    by = ConfigItem("limits_app", "by", "object", "object, id or all")
    kill = IntItem("limits_app", "kill", 1, "whether what runs is killed")

    def start_processing(self):
        self.made = [self.make(number) for number in range(self.count)]
        self.told, self.began = [], time.monotonic()
        for task in self.made:
            self.push_task(task)
        if self.by == "before":
            self.cancel_task(self.made[-1])
            self.by = "object"

    def push_task_response(self, result):
        if self.by == "done":
            return
        limit = time.monotonic() + 60
        while not list(Path(self.folder).glob("run-t*[0-9]")):
            assert time.monotonic() < limit
            time.sleep(0.01)
        by, self.by, self.began = self.by, "done", time.monotonic()
        if by == "all":
            self.cancel_tasks(kill=bool(self.kill))
        for task in self.made if by != "all" else ():
            self.cancel_task(task if by == "object" else task.task_id, kill=bool(self.kill))


class Race(ITaskSystem):
    """Cancels all other tasks, and kills them, when the first one has ended."""

    def __init__(self, how, folder):
        ITaskSystem.__init__(self)
        self.how, self.folder, self.told, self.at_once = how, folder, [], False

    def generate_tasks(self, master):
        self.losers = [Stuck(f"t{number}", how=self.how, folder=self.folder) for number in range(3)]
        return [Whole("whole"), *self.losers]

    def task_finished(self, master, task, result, error):
        self.told.append(error.kind if error else "done")
        if not error and self.at_once:
            master.cancel_tasks(kill=True)
        elif not error:
            for loser in self.losers:
                master.cancel_task(loser, kill=True)

    def gather_result(self, master):
        return sorted(self.told)


class RaceApplication(Limited):
    def get_task_system(self):
        race = Race(self.how, self.folder)
        race.at_once = self.count > 1
        return race

    def work_finished(self, result, task_system):
        self.result = result
        self.shutdown_main_loop()


class KilledSystem(Limited):
    """Cancels a system whose tasks are stuck, and kills them."""

    def start_processing(self):
        self.began, self.system = time.monotonic(), Jam(self.how, self.folder)
        self.push_tasksystem(self.system)

    def push_tasksystem_response(self, result):
        limit = time.monotonic() + 60
        while not list(Path(self.folder).glob("run-t*[0-9]")):
            assert time.monotonic() < limit
            time.sleep(0.01)
        self.cancel_tasksystem(self.system, kill=True)

    def task_system_finished(self, result, error, stats):
        self.told, self.count = [{"kind": error.kind}], 1
        self.push_task(Whole("whole"))


class Jam(Race):
    """Tasks that are stuck."""

    def generate_tasks(self, master):
        return [Stuck(f"t{number}", how=self.how, folder=self.folder) for number in range(3)]


class Nonsense(ApplicationNode):
    """A limit that is none."""

    def start_processing(self):
        task = Whole("whole")
        task.timeout = "soon"
        self.push_task(task)

    def task_finished(self, task, result, error):
        self.result = str(error)
        self.shutdown_main_loop()


class Hoards(Task):
    """Leaves memory with its worker, whose process it returns."""

    def __call__(self):
        Hoards.held = bytearray(self.size << 20)
        return os.getpid()


class Hoarding(ApplicationNode):
    """Two tasks without a limit in one worker, then one with a limit that such a worker would pass at once."""

    folder = ConfigItem("limits_app", "folder", "", "where tasks leave their marks")

    def start_processing(self):
        self.pids, self.errors = [], 0
        self.push_task(Hoards("first", size=150))

    def task_finished(self, task, result, error):
        self.pids.append(result)
        self.errors += error is not None
        if len(self.pids) < 3:
            size, limit = ((150, None), (1, 120))[len(self.pids) - 1]
            self.push_task(Hoards("next", size=size, memory_limit=limit))
            return
        first, second, third = self.pids
        self.result = {"same": first == second, "fresh": second != third, "errors": self.errors}
        self.shutdown_main_loop()


class CancellingTheRest(ApplicationNode):
    """Cancels all others in the callback of the first task."""

    folder = ConfigItem("limits_app", "folder", "", "where tasks leave their marks")

    def start_processing(self):
        self.counts = {"done": 0, "cancelled": 0}
        for number in range(4):
            task = Whole(f"t{number}")
            task.deadline = 100 + number  # a batch for each
            self.push_task(task)

    def task_finished(self, task, result, error):
        self.counts[error.kind if error else "done"] += 1
        if self.counts["done"] and not self.counts["cancelled"]:
            self.cancel_tasks()
        if sum(self.counts.values()) == 4:
            self.result = self.counts
            self.shutdown_main_loop()
