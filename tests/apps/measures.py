"""Applications that record figures, for test_stats.py."""

import json
import os
import time
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import IntItem, Stats, TextItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Rounds(Task):
    """Records its number, and in each step anew; what else it does says `how`."""

    retries = 2
    retry_wait = 0.01

    def __call__(self):
        first = os.environ["CONCURRENT_SWARM_ATTEMPT"] == "1"
        self.stats.add_avg("rounds", self.number)
        Stats.getInstance().add_avg("in step", self.number, per_step=True)
        if self.number % 5 == 3 and self.how == "raises" and first:
            raise ConnectionError("the first attempt")
        if self.number == 7 and self.how == "dies" and first:
            os._exit(3)
        if self.number % 2 and self.how == "fails":
            raise AssertionError("always")
        return self.number


class Counting(ITaskSystem):
    """So many steps of so many tasks; its hooks record figures as well."""

    def __init__(self, count, steps, how="", base=0):
        ITaskSystem.__init__(self)
        self.count, self.steps, self.how, self.base = count, steps, how, base

    def generate_tasks(self, master):
        self.stats.add_avg("called", master.step)
        self.stats.add_avg("step of hook", master.step, per_step=True)
        numbers = range(self.base, self.base + self.count)
        return [Rounds(f"r{n}", self.system_id, number=n, how=self.how) for n in numbers]

    def task_finished(self, master, task, result, error):
        with self.stats.timed("hook"):
            self.stats.add_avg("outcomes", 1)

    def is_complete(self, master):
        return master.step == self.steps and master.outstanding == 0


class Measuring(ApplicationNode):
    """Runs one such system; its result is what was measured of it."""

    count = IntItem("measures", "count", 20)
    steps = IntItem("measures", "steps", 3)
    how = TextItem("measures", "how", "")

    def get_task_system(self):
        return Counting(self.count, self.steps, self.how)

    def work_finished(self, result, task_system):
        self.result = {**task_system.stats["measured"], "by step": task_system.stats["measured_steps"]}
        self.shutdown_main_loop()


class TwoAtOnce(ApplicationNode):
    """Two systems and plain tasks that record under the same name. It asks for the figures of each."""

    def start_processing(self):
        self.sums = {}
        self.systems = [Counting(10, 1), Counting(10, 1, base=100)]
        self.push_tasks(Rounds(f"p{n}", number=n, how="") for n in range(1000, 1010))
        for system in self.systems:
            self.push_tasksystem(system)

    def task_finished(self, task, result, error):
        if not self._owner.outstanding:
            self.get_stats()

    def stats_response(self, system_id, figures):
        which = [system.system_id for system in self.systems].index(system_id) if system_id else "plain"
        self.sums[which] = figures["rounds"]["sum"]
        if len(self.sums) == 3:
            self.result = self.sums
            self.shutdown_main_loop()

    def work_finished(self, result, task_system):
        self.get_stats(task_system)


class Asking(ApplicationNode):
    """Asks for the figures of a system that still runs, until its tasks have recorded something."""

    folder = TextItem("measures", "folder", "")
    write = ["/tmp"]

    def get_task_system(self):
        self.system = Holding(self.folder)
        return self.system

    def push_tasksystem_response(self, result):
        self.get_stats(self.system)

    def stats_response(self, system_id, figures):
        wanted = Path(self.folder).is_dir() and not Path(self.folder, "go").exists()
        if wanted and {"held", "called"} <= figures.keys():
            Path(self.folder, "go.new").write_text(json.dumps(figures))
            Path(self.folder, "go.new").rename(Path(self.folder, "go"))
        if self.pending:
            self.get_stats(self.system)

    def work_finished(self, result, task_system):
        self.result = task_system.stats["measured"]
        self.shutdown_main_loop()


class Held(Task):
    """Waits for a file if it is the last one."""

    def __call__(self):
        self.stats.add_avg("held", self.number)
        while self.number == 3 and not Path(self.folder, "go").exists():
            time.sleep(0.01)


class Holding(ITaskSystem):
    def __init__(self, folder):
        ITaskSystem.__init__(self)
        self.folder = folder

    def generate_tasks(self, master):
        self.stats.add_avg("called")
        return [Held(f"h{n}", number=n, folder=self.folder) for n in range(4)]


class Recording(ApplicationNode):
    """Records something in the client itself."""

    def start_processing(self):
        Stats.getInstance().add_avg("own", 7)
        assert self.stats.own.n == 1
        self.shutdown_main_loop()


class OwnAttributes(ApplicationNode):
    """Applications of before may use the name `stats` for something of their own."""

    def start_processing(self):
        self.stats = {"mine": 1}
        self.push_task(Own("own", stats=[1, 2]))

    def task_finished(self, task, result, error):
        self.result = [self.stats, result]
        self.shutdown_main_loop()


class Own(Task):
    def __call__(self):
        return sum(self.stats)
