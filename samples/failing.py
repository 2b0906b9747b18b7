"""An application in which some tasks fail: shows how errors come home.

    python client.py samples/failing.py --local

ends with exit code 1 and a report that groups the failures and names the line in this file.
"""

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import IntItem
from concurrent_swarm.tasks import Task


class RangeTask(Task):
    """Adds up a range, but refuses one that runs backwards."""

    def __call__(self):
        if self.stop < self.start:
            raise ValueError(f"range end before start (start={self.start}, end={self.stop})")
        return sum(range(self.start, self.stop))


class FailingApplication(ApplicationNode):
    """Pushes tasks, some of which cannot succeed, and lets the others be."""

    count = IntItem("failing", "tasks", 64, "how many tasks", minimum=1)
    every = IntItem("failing", "every", 20, "every n-th task fails", minimum=1)

    def start_processing(self):
        self.left = self.count
        self.total = 0
        self.push_tasks(self.make_tasks())

    def make_tasks(self):
        """Draws tasks one by one: any iterable will do."""
        for number in range(self.count):
            start = number * 100
            length = -1 if number % self.every == self.every - 1 else 100
            yield RangeTask(f"range {number}", start=start, stop=start + length)

    def task_finished(self, task, result, error):
        self.left -= 1
        if error is None:
            self.total += result
        if not self.left:
            self.result = self.total
            self.shutdown_main_loop()
