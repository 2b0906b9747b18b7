"""The benchmark of the thesis, with work instead of waiting: how much faster is the swarm than a loop?

    python client.py samples/expensive.py --local
    python client.py samples/expensive.py --set expensivesample.num_tasks=256 --set expensivesample.time_per_task=1

Each task does the same work: so many rounds of an integer loop. How many take `time_per_task` seconds of processor
time is measured once, in a worker while nothing else runs. Then, `repeats` times in turn:

    sequential    the client runs all tasks in a loop, without the framework, while the swarm is idle
    task system   a task system on the master makes the tasks
    plain tasks   the client pushes the tasks, in one batch or (`task_batch=false`) one by one

All three must get the same numbers. The fastest run of each counts, for what disturbs a run only makes it slower.

Speed-up is a ratio: seconds of the best sequential run over seconds of the best parallel run. What to expect of N
workers is Amdahl's law, 1 / ((1 - P) + P / N). P is measured in the sequential run: the share of its time that was
spent inside the tasks. A number of tasks that N does not divide leaves workers idle at the end; so P / N becomes
P * ceil(tasks / N) / tasks, which is the same where N divides it.

The sequential run is the best that one processor can do: it has the machine to itself, with all of the cache and the
highest clock. Workers share these, so a task may take more processor time in the swarm than alone. The table shows
the processor time of all tasks for each way: where it grows, the machine is the limit and not the framework.
"""

import statistics
from math import ceil
from time import perf_counter, process_time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import BoolItem, ConfigItem, FloatItem, IntItem, implements
from concurrent_swarm.tasks import IApp, ITaskSystem, Task

INSTALL = "pip install 'concurrent-swarm[samples]', in a checkout pip install -e '.[samples]'"
SEQUENTIAL, SYSTEM, PLAIN = WAYS = "sequential", "task system", "plain tasks"


# -- the work ------------------------------------------------------------------------------------------------------


def work(seed, rounds):
    """So many steps of a linear congruential generator; nothing in it can be skipped or done at once."""
    number = seed
    for _ in range(rounds):
        number = (number * 1103515245 + 12345) & 0x7FFFFFFF
    return number


class ExpensiveTask(Task):
    """Works, and returns the number it got to and the processor seconds it took."""

    def __call__(self):
        began = process_time()
        return work(self.seed, self.rounds), process_time() - began


class CalibrateTask(Task):
    """Measures how many rounds take a second of processor time: the fastest of five tries of 40 ms or more."""

    def __call__(self):
        rounds = 1000
        while seconds_for(rounds) < 0.04:
            rounds *= 2
        return rounds / min(seconds_for(rounds) for _ in range(5))


def seconds_for(rounds):
    """Processor seconds for so many rounds."""
    began = process_time()
    work(1, rounds)
    return process_time() - began


def make_tasks(count, rounds, system_id=None):
    """The tasks, each with another seed."""
    for seed in range(count):
        yield ExpensiveTask(f"expensive {seed}", system_id, seed=seed, rounds=rounds)


class ExpensiveTaskSystem(ITaskSystem):
    """Makes all tasks in one step; gathers the sum of their numbers and of their processor seconds."""

    def __init__(self, count, rounds):
        ITaskSystem.__init__(self)
        self.count, self.rounds = count, rounds
        self.number, self.cpu = 0, 0.0

    def generate_tasks(self, master):
        return make_tasks(self.count, self.rounds, self.system_id)

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        self.number += result[0]
        self.cpu += result[1]

    def gather_result(self, master):
        return self.number, self.cpu


# -- the figures ---------------------------------------------------------------------------------------------------


def amdahl(share, workers, count):
    """The speed-up that Amdahl's law allows `workers` with `count` equal tasks, if `share` of the time is in tasks."""
    return 1 / ((1 - share) + share * ceil(count / workers) / count)


def summary(runs, count, workers):
    """What the runs say. `runs` holds, for each way, (seconds, processor seconds, seconds inside the tasks)."""
    best = {way: min(runs[way]) for way in WAYS}
    share = best[SEQUENTIAL][2] / best[SEQUENTIAL][0]
    return {
        "tasks": count, "workers": workers, "parallel_share": share, "expected": amdahl(share, workers, count),
        "seconds": {way: best[way][0] for way in WAYS},
        "worst": {way: max(runs[way])[0] for way in WAYS},
        "cpu": {way: statistics.median(cpu for _, cpu, _ in runs[way]) for way in WAYS},
        "speedup": {way: best[SEQUENTIAL][0] / best[way][0] for way in WAYS},
    }  # fmt: skip


def table(figures):
    """The figures as lines of text."""
    speedup, expected = figures["speedup"], figures["expected"]
    yield (f"speed-up {speedup[SYSTEM]:.2f} (task system) and {speedup[PLAIN]:.2f} (plain tasks), "
           f"{expected:.2f} expected")  # fmt: skip
    yield f"{'':15}{'best s':>8} {'worst s':>8} {'CPU s':>8} {'speed-up':>9} {'of expected':>12}"
    for way in WAYS:
        reached = "" if way == SEQUENTIAL else f"{speedup[way] / expected:.0%}"
        numbers = (figures[name][way] for name in ("seconds", "worst", "cpu"))
        numbers = " ".join(f"{number:8.3f}" for number in numbers)
        yield f"  {way:13}{numbers} {speedup[way]:9.2f} {reached:>12}".rstrip()
    yield f"  N = {figures['workers']} workers, P = {figures['parallel_share']:.4f} of the sequential run inside tasks"


# -- the application -----------------------------------------------------------------------------------------------


class ExpensiveNode(ApplicationNode):
    """Runs all ways in turn. Each ends by calling `record`, which begins the next."""

    implements(IApp)

    num_tasks = IntItem("expensivesample", "num_tasks", 24, "how many tasks", minimum=1)
    time_per_task = FloatItem("expensivesample", "time_per_task", 0.1, "processor seconds per task", minimum=0.0001)
    task_batch = BoolItem("expensivesample", "task_batch", True, "push plain tasks in one batch instead of one by one")
    repeats = IntItem("expensivesample", "repeats", 3, "how often each way is run", minimum=1)
    picture = ConfigItem("expensivesample", "picture", "expensive.png", "file for the picture; empty: none")

    def start_processing(self):
        self.runs = {way: [] for way in WAYS}
        self.numbers = set()
        self.way = None
        self.push_task(CalibrateTask("calibrate"))

    def task_finished(self, task, result, error):
        if error:
            raise error
        if self.way is None:
            self.rounds = max(1, round(result * self.time_per_task))
            self.begin(SEQUENTIAL)
            return
        self.number += result[0]
        self.cpu += result[1]
        if not self.pending:
            self.record(self.number, self.cpu)

    def work_finished(self, result, task_system):
        self.record(*result)

    def begin(self, way):
        """Starts one run."""
        self.way, self.number, self.cpu = way, 0, 0.0
        self.began = perf_counter()
        if way == SEQUENTIAL:
            self.record(*self.run_alone())
        elif way == SYSTEM:
            self.push_tasksystem(ExpensiveTaskSystem(self.num_tasks, self.rounds))
        elif self.task_batch:
            self.push_tasks(make_tasks(self.num_tasks, self.rounds))
        else:
            for task in make_tasks(self.num_tasks, self.rounds):
                self.push_task(task)

    def run_alone(self):
        """The same program as a loop: number, processor seconds, seconds inside the tasks."""
        number, cpu, inside = 0, 0.0, 0.0
        for task in make_tasks(self.num_tasks, self.rounds):
            began = perf_counter()
            result = task()
            inside += perf_counter() - began
            number, cpu = number + result[0], cpu + result[1]
        return number, cpu, inside

    def record(self, number, cpu, inside=0.0):
        """A run has ended."""
        self.runs[self.way].append((perf_counter() - self.began, cpu, inside))
        self.numbers.add(number)
        if len(self.runs[PLAIN]) == self.repeats:
            self.report()
        else:
            self.begin(WAYS[(WAYS.index(self.way) + 1) % len(WAYS)])

    def report(self):
        """Leaves the table as result, draws the picture, ends."""
        figures = summary(self.runs, self.num_tasks, self.workers)
        self.result = "\n".join(table(figures))
        self.draw(figures)
        if len(self.numbers) > 1:
            self.fail(ArithmeticError(f"the runs got different numbers: {sorted(self.numbers)}"))
        self.shutdown_main_loop()

    def draw(self, figures):
        """Writes the picture, or says why there is none."""
        if not self.picture:
            return
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            self.log.info("no picture: matplotlib is not installed (%s)", INSTALL)
            return
        figure = Figure(figsize=(12, 5), layout="constrained")
        seconds, speedup = figure.subplots(1, 2)
        draw_seconds(seconds, figures, self.runs)
        draw_speedup(speedup, figures)
        figure.savefig(self.picture, dpi=120)
        self.log.info("wrote %s", self.picture)


# -- the picture ---------------------------------------------------------------------------------------------------

COLOURS = {SEQUENTIAL: "#7f8c8d", SYSTEM: "#1f5fa8", PLAIN: "#b9562d"}


def draw_seconds(axes, figures, runs):
    """A bar for the best run of each way, and a mark for every run."""
    for row, way in enumerate(WAYS):
        axes.barh(row, figures["seconds"][way], color=COLOURS[way], height=0.6)
        axes.plot([run[0] for run in runs[way]], [row] * len(runs[way]), "|", color="black", markersize=14)
        axes.text(figures["worst"][way], row, f"  {figures['seconds'][way]:.2f} s", va="center", fontsize=12)
    axes.set_yticks(range(len(WAYS)), WAYS)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(figures["worst"].values()))
    axes.set(xlabel="seconds", title=f"{figures['tasks']} tasks: the best of {len(runs[PLAIN])} runs, | each run")
    axes.spines[["top", "right"]].set_visible(False)


def draw_speedup(axes, figures):
    """What Amdahl's law allows each number of workers, and what was reached."""
    most = max(4, 2 * figures["workers"])
    numbers = range(1, most + 1)
    allowed = [amdahl(figures["parallel_share"], workers, figures["tasks"]) for workers in numbers]
    axes.plot(numbers, numbers, color="#d5dbdb", linewidth=7, label="one for each worker")
    axes.plot(numbers, allowed, "-", color="#2c3e50", label=f"Amdahl, P = {figures['parallel_share']:.4f}, whole tasks")
    for way, mark in ((SYSTEM, "o"), (PLAIN, "D")):
        label = f"{way}: {figures['speedup'][way]:.2f}"
        size = 11 if way == SYSTEM else 7
        axes.plot(figures["workers"], figures["speedup"][way], mark, color=COLOURS[way], markersize=size, label=label)
    axes.set(xlabel="workers", xlim=(0.5, most + 0.5), ylim=(0, most + 0.5))
    axes.set_title("Speed-up over the best sequential run")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


application = ExpensiveNode  # which one runs without --app
ExpensiveSimpleNode = ExpensiveNode  # the second application of 2014; both ways are measured in one run now
