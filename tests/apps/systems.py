"""Applications with task systems; each test picks one with `--app`."""

import os
import signal
import sys
import threading
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Number(Task):
    """Returns its number; with a folder, leaves a file that says when it ran."""

    folder = ""

    def __call__(self):
        began = time.time()
        if self.folder:
            with open(os.path.join(self.folder, f"{self.name}-{os.getpid()}"), "w") as file:
                file.write(f"{began} {time.time()}")
        return self.number


class Application(ApplicationNode):
    """Sends the system that `make` returns and tells what comes of it."""

    abstract = True
    write = ["/tmp"]
    count = IntItem("systems", "count", 10, "how many tasks a step has")
    steps = IntItem("systems", "steps", 3, "how many steps there are")
    how = ConfigItem("systems", "how", "", "what is asked of the system")
    folder = ConfigItem("systems", "folder", "", "where tasks leave their marks")

    def get_task_system(self):
        self.system = self.make()
        return self.system

    def make(self):
        return self.kind(self.count, self.steps, self.how, self.folder)


class System(ITaskSystem):
    """What most of them share: the sum of the results, and a count of calls."""

    def __init__(self, count, steps, how, folder):
        ITaskSystem.__init__(self)
        self.count, self.steps, self.how, self.folder = count, steps, how, folder
        self.called = self.total = self.outcomes = 0
        self.pids = set()

    def generate_tasks(self, master):
        self.called += 1
        self.pids.add(os.getpid())
        made = [self.make(n) for n in range(self.count)]
        return iter(made) if self.how == "generator" else made

    def make(self, n):
        return Number(f"step{self.called}-{n}", self.system_id, number=n, folder=self.folder)

    def task_finished(self, master, task, result, error):
        self.outcomes += 1
        self.total += result

    def is_complete(self, master):
        return self.called == self.steps and master.outstanding == 0

    def gather_result(self, master):
        return {"sum": self.total, "called": self.called, "outcomes": self.outcomes, "step": master.step,
                "hosts": len(self.pids), "same": os.getpid() in self.pids}


class Stepping(Application):
    kind = System


class Once(System):
    """Leaves is_complete to the default."""

    is_complete = ITaskSystem.is_complete


class DefaultComplete(Application):
    kind = Once


class EmptyStep(System):
    def generate_tasks(self, master):
        return [] if self.how == "list" else iter(()) if self.how == "generator" else None

    def is_complete(self, master):
        return False


class Empty(Application):
    kind = EmptyStep


class LockStep(System):
    lockstep = True

    def task_finished(self, master, task, result, error):
        System.task_finished(self, master, task, result, error)
        if task.name.endswith("-0") and self.called < self.steps:
            master.push_task(Number(f"step{self.called + 1}-extra", number=0, folder=self.folder))


class LockStepping(Application):
    kind = LockStep


class Chain(System):
    """Each task brings the next, `count` of them, from task_finished."""

    def generate_tasks(self, master):
        self.called += 1
        return [Number("first", number=1)]

    def task_finished(self, master, task, result, error):
        System.task_finished(self, master, task, result, error)
        if self.outcomes < self.count:
            (master.task_scheduler if self.how == "scheduler" else master).push_task(Number("next", number=1))

    is_complete = ITaskSystem.is_complete


class Chained(Application):
    kind = Chain


class Early(System):
    """Complete after the first outcome, with many tasks queued."""

    def is_complete(self, master):
        return self.outcomes > 0


class Stopping(Application):
    kind = Early

    def work_finished(self, result, task_system):
        self.result = result
        self.push_task(Number("after", number=1))  # so that the swarm has seen the end of the system

    def task_finished(self, task, result, error):
        self.shutdown_main_loop()


class Raising(System):
    """Raises in the hook that `how` names."""

    def init_system(self, master):
        self.trip("init_system")

    def generate_tasks(self, master):
        if self.how == "generator":
            return self.breaking()
        self.trip("generate_tasks")
        return System.generate_tasks(self, master)

    def breaking(self):
        yield self.make(1)
        raise ArithmeticError("in generator")

    def make(self, n):
        task = Number(f"n{n}", number=n)
        if self.how == "finished":
            task.__class__ = BadFinished
        return task

    def task_finished(self, master, task, result, error):
        self.trip("task_finished")
        if self.how == "nonsense":  # what only the framework may say, and not so
            master._run.call("system_done", None, "no stats", parts=[b"x"])
        System.task_finished(self, master, task, result, error)

    def is_complete(self, master):
        self.trip("is_complete")
        return System.is_complete(self, master)

    def gather_result(self, master):
        self.trip("gather_result")
        if self.how == "unpicklable":
            return {"deep": [threading.Lock()]}
        return System.gather_result(self, master)

    def trip(self, hook):
        if self.how == hook:
            raise ArithmeticError(f"in {hook}")
        if self.how == f"exit-{hook}":
            sys.exit(3)
        if self.how == f"kill-{hook}":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == f"hang-{hook}":
            with open(os.path.join(self.folder, "hangs"), "w") as file:
                file.write(str(os.getpid()))
            while True:
                pass


class BadFinished(Number):
    def finished(self, result, error):
        raise ArithmeticError("in finished")


class RaisingApplication(Application):
    kind = Raising


class Three(Application):
    """Three systems at once, the second of which fails in task_finished."""

    def get_task_system(self):
        return None

    def start_processing(self):
        self.ends = {}
        self.sent = {}
        for n, how in enumerate(("", self.how, "generator")):
            kind = Raising if n == 1 else System
            system = kind(self.count, 2, how, self.folder)
            self.sent[str(system.system_id)] = n
            self.push_tasksystem(system)

    def task_system_finished(self, result, error, stats):
        self.ends[len(self.ends)] = error.failure.get("hook") if error else result["sum"]
        if len(self.ends) == 3:
            self.result = sorted(map(str, self.ends.values()))
            self.shutdown_main_loop()


class Answers(Application):
    """What push_tasksystem_response and work_finished are given."""

    kind = System

    def push_tasksystem_response(self, result):
        self.answered = result

    def work_finished(self, result, task_system):
        self.result = {
            "same": task_system == self.system.system_id == self.system.get_system_id(),
            "property": task_system.system_id == self.system.system_id, "name": task_system.name,
            "answered": self.answered, "done": task_system.stats["done"], "steps": task_system.stats["steps"],
        }
        self.shutdown_main_loop()


class Cancelling(Application):
    """Cancels its system as soon as it runs; then pushes a task to see that all goes on."""

    kind = Raising

    def push_tasksystem_response(self, result):
        if not self.how:
            self.cancel_tasksystem(self.system)
        else:
            threading.Thread(target=self.cancel_when_it_hangs).start()

    def cancel_when_it_hangs(self):
        mark = os.path.join(self.folder, "hangs")
        while not (os.path.exists(mark) and os.path.getsize(mark)):
            time.sleep(0.005)
        self.cancel_tasksystem(self.system)

    def task_system_finished(self, result, error, stats):
        self.kind_of_end = error.failure["kind"]
        self.push_task(Number("after", number=3))

    def task_finished(self, task, result, error):
        self.result = {"kind": self.kind_of_end, "after": result}
        self.shutdown_main_loop()


class UnsendableSystem(System):
    def __init__(self, *arguments):
        System.__init__(self, *arguments)
        self.held = threading.Lock()


class Unsendable(Application):
    kind = UnsendableSystem


class FailingTasks(System):
    """Its tasks fail; task_finished hears the error with its class and remote traceback."""

    def make(self, n):
        return Fails("fails", number=n)

    def task_finished(self, master, task, result, error):
        self.outcomes += 1
        self.heard = [type(error).__name__, str(error), "raise KeyError" in str(error.__cause__)]

    def gather_result(self, master):
        return self.heard


class Fails(Task):
    def __call__(self):
        raise KeyError(self.number)


class FailingInside(Application):
    kind = FailingTasks


class Resourceful(System):
    """Tasks with and without resources in one step."""

    def make(self, n):
        task = Number(f"n{n}", number=n)
        if n % 2:
            task.resources = {"gpu": 1}
        return task


class ResourcefulApplication(Application):
    kind = Resourceful


class WaitingNumber(Number):
    """Ends when the file `go` is there."""

    def __call__(self):
        with open(os.path.join(self.folder, f"run-{self.name}-{os.getpid()}"), "w"):
            while not os.path.exists(os.path.join(self.folder, "go")):
                time.sleep(0.005)
        return self.number


class Waits(System):
    def make(self, n):
        return WaitingNumber(f"n{n}", number=n, folder=self.folder)

    def is_complete(self, master):
        return self.outcomes == self.count

    def gather_result(self, master):
        return self.total


class WaitingSystem(Application):
    kind = Waits


class PatientSystem(System):
    """Steps whose tasks wait for the file `go`."""

    def make(self, n):
        return WaitingNumber(f"step{self.called}-{n}", number=n, folder=self.folder)


class PatientSteps(Application):
    kind = PatientSystem

    def step_reached(self, number, step):
        """Somebody else lets it go on."""


class Showing(PatientSystem):
    """Shows pictures of itself, as `how` says, and then waits."""

    def generate_tasks(self, master):
        kinds = {"png": (PNG, "image/png"), "svg": ("<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
                 "gif": (b"GIF89a", "image/gif"), "text": (b"no picture", "image/png"),
                 "large": (PNG + bytes(300_000), "image/png")}  # fmt: skip
        if self.how == "many":
            self.drawn, began = 0, time.monotonic()
            for _ in range(1000):
                self.publish_view(self.draw)
            self.took = time.monotonic() - began
        elif self.how == "raises":
            self.publish_view(lambda: 1 / 0)
        else:
            self.publish_view(*kinds[self.how])
        return System.generate_tasks(self, master)

    def draw(self):
        """Says in the picture how many were drawn before."""
        self.drawn += 1
        return PNG + str(self.drawn).encode()

    def gather_result(self, master):
        return getattr(self, "drawn", 0), getattr(self, "took", 0.0)


PNG = b"\x89PNG\r\n\x1a\n"


class ShowingSystem(Application):
    kind = Showing
