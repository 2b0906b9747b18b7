"""An application that there is much to see of: a system in steps whose tasks take a while, and some of which fail."""

import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import FloatItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task

PICTURE = (b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60">'
           b'<rect width="90" height="60" fill="teal"/></svg>')
MARKUP = "<img src=x onerror=document.title='owned'>"


class Nap(Task):
    """Takes so many seconds; every so manyth fails, with a message that is markup."""

    def __call__(self):
        time.sleep(self.seconds)
        if self.failing and self.number % self.failing == 0:
            raise ValueError(f"{MARKUP} number {self.number}")
        return self.number


class Naps(ITaskSystem):
    """`steps` steps of `count` naps."""

    def __init__(self, count, steps, seconds, failing):
        ITaskSystem.__init__(self)
        self.count, self.steps, self.seconds, self.failing = count, steps, seconds, failing
        self.step = self.failed = 0

    def generate_tasks(self, master):
        self.step += 1
        return [Nap(f"{self.step}-{n}", self.system_id, number=n, seconds=self.seconds, failing=self.failing)
                for n in range(1, self.count + 1)]  # fmt: skip

    def task_finished(self, master, task, result, error):
        self.failed += error is not None

    def is_complete(self, master):
        if self.step == 1:
            self.publish_view(PICTURE, "image/svg+xml")
        return self.step == self.steps and master.outstanding == 0

    def gather_result(self, master):
        return self.failed


class Shown(ApplicationNode):
    """Pushes one such system."""

    count = IntItem("shown", "count", 10, "tasks per step")
    steps = IntItem("shown", "steps", 3, "how many steps")
    seconds = FloatItem("shown", "seconds", 0.05, "how long a task takes", 0.0)
    failing = IntItem("shown", "failing", 0, "every so manyth task fails; 0: none")

    def step_reached(self, number, step):
        """Somebody else lets it go on."""

    def get_task_system(self):
        return Naps(self.count, self.steps, self.seconds, self.failing)
