"""Measures what the framework costs: tasks that do nothing.

    python client.py benchmarks/noop.py --set noop.mode=batch --set noop.tasks=100000
    python client.py benchmarks/noop.py --set noop.mode=system
    python client.py benchmarks/noop.py --set noop.mode=loop
    python client.py benchmarks/noop.py --set noop.mode=lone --set noop.tasks=2000

`batch` is one `push_tasks`, `loop` is one `push_task` per task, `system` an `ITaskSystem`; the result is tasks per
second, from the first push to the last callback. The tasks are there before the clock starts, those of a system and,
with `noop.drawn=yes`, of a batch are made as they are drawn. `lone` sends one task at a time and gives round trips in
µs. `noop.bytes=100000` gives each task so many bytes of its own to carry, `noop.back=10000` each result.
"""

from time import perf_counter

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import BoolItem, ChoiceItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Noop(Task):
    """Returns its number."""

    def __call__(self):
        return self.number


class Loaded(Task):
    """Carries bytes there and back."""

    def __call__(self):
        return self.number, self.data[: self.back]


class NoopSystem(ITaskSystem):
    """Makes all tasks in one step and checks each result."""

    def __init__(self, count):
        ITaskSystem.__init__(self)
        self.left = self.count = count

    def generate_tasks(self, master):
        self.began = perf_counter()
        return (Noop("noop", number=number) for number in range(self.count))

    def task_finished(self, master, task, result, error):
        if error or result != task.number:
            raise error or ValueError(result)
        self.left -= 1

    def is_complete(self, master):
        return not self.left

    def gather_result(self, master):
        return self.count / (perf_counter() - self.began)


class NoopBench(ApplicationNode):
    """Pushes the tasks in the chosen way and measures."""

    count = IntItem("noop", "tasks", 100_000, "how many tasks", minimum=1)
    mode = ChoiceItem("noop", "mode", "batch", ("batch", "loop", "system", "lone"), "how they are pushed")
    size = IntItem("noop", "bytes", 0, "bytes that each task of a batch carries", minimum=0)
    back = IntItem("noop", "back", 0, "bytes that each result carries", minimum=0)
    drawn = BoolItem("noop", "drawn", False, "make the tasks of a batch while the clock runs, as they are drawn")

    def get_task_system(self):
        return NoopSystem(self.count) if self.mode == "system" else None

    def start_processing(self):
        self.left = self.total = self.count
        self.loaded = self.size > 0  # to ask the configuration for each task costs more than the task
        self.trips = []
        self.lone = self.mode == "lone"
        tasks = map(self.make, range(self.total))
        if not self.drawn:
            tasks = list(tasks)
        self.began = perf_counter()
        if self.lone:
            self.waiting = iter(tasks)
            self.push_task(next(self.waiting))
        elif self.mode == "batch":
            self.push_tasks(tasks)
        else:
            for task in tasks:
                self.push_task(task)

    def make(self, number):
        """One task, with bytes of its own if it carries any."""
        if not self.loaded:
            return Noop("noop", number=number)
        return Loaded("loaded", number=number, data=bytes([number % 256]) * self.size, back=self.back)

    def task_finished(self, task, result, error):
        result = result[0] if self.loaded and not error else result
        if error or result != task.task.number:
            self.fail(error or ValueError(result))
        self.left -= 1
        now = perf_counter()
        if self.lone:
            self.trips.append(now - self.began)
            self.began = now
            if self.left:
                self.push_task(next(self.waiting))
        if not self.left:
            self.report(now)

    def report(self, now):
        """Leaves the figures in the result."""
        if self.lone:
            trips = sorted(self.trips)
            self.result = {f"p{p}_us": round(trips[int(len(trips) * p / 100)] * 1e6) for p in (50, 90, 99)}
        else:
            self.result = round(self.total / (now - self.began))
        self.shutdown_main_loop()

    def work_finished(self, result, task_system):
        self.result = round(result)
        self.shutdown_main_loop()
