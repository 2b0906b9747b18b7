"""Applications that push plain tasks; each test picks one with `--app`."""

import os
import signal
import sys
import threading
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import Task


class Double(Task):
    def __call__(self):
        return 2 * self.number


class Application(ApplicationNode):
    """What all of them share: options, and counting down to the end."""

    abstract = True
    write = ["/tmp"]
    count = IntItem("plain", "count", 10, "how many tasks")
    how = ConfigItem("plain", "how", "list", "what is given to push_tasks")
    folder = ConfigItem("plain", "folder", "", "where tasks leave their marks")

    def app_init(self):
        self.heard = []
        self.results = []
        self.errors = []

    def task_finished(self, task, result, error):
        self.results.append(result)
        if error is not None:
            self.errors.append(error)
        if len(self.results) == self.count:
            self.last_one()

    def last_one(self):
        self.result = self.summary()
        self.shutdown_main_loop()

    def summary(self):
        return sum(result for result in self.results if result is not None)


# -- pushing


class OneByOne(Application):
    """push_task, `count` times; counts push_task_response."""

    def start_processing(self):
        for number in range(self.count):
            self.push_task(Double(f"d{number}", number=number))

    def push_task_response(self, result):
        self.heard.append(result)
        self.end_if_all_is_heard()

    def last_one(self):
        self.end_if_all_is_heard()

    def end_if_all_is_heard(self):
        if len(self.heard) == self.count == len(self.results):
            self.result = {"sum": self.summary(), "heard": self.heard == [True] * self.count}
            self.shutdown_main_loop()


class Many(Application):
    """push_tasks with a list, tuple, generator, set …; push_tasks_response gives the count."""

    def start_processing(self):
        made = (Double(f"d{number}", number=number) for number in range(self.count))
        self.push_tasks({"list": list, "tuple": tuple, "generator": iter, "set": set}[self.how](made))

    def push_tasks_response(self, result):
        self.heard.append(result)
        self.end_if_all_is_heard()

    def last_one(self):
        self.end_if_all_is_heard()

    def end_if_all_is_heard(self):
        if self.heard and len(self.results) == self.count:
            self.result = {"sum": self.summary(), "heard": self.heard}
            self.shutdown_main_loop()


class Nothing(Application):
    """push_tasks of nothing is answered too."""

    def start_processing(self):
        self.push_tasks([])

    def push_tasks_response(self, result):
        self.result = {"heard": result}
        self.shutdown_main_loop()


class FromThread(Application):
    """push_task from a thread of the application's own."""

    def start_processing(self):
        threading.Thread(target=self.push_all).start()

    def push_all(self):
        for number in range(self.count):
            self.push_task(Double(f"d{number}", number=number))


class SameTask(Application):
    """One task object, pushed many times: each run begins with what was pushed."""

    def start_processing(self):
        self.push_tasks([Counting("again", number=0)] * self.count)

    def summary(self):
        return self.results


class Counting(Task):
    def __call__(self):
        self.number += 1
        return self.number


class Fields(Application):
    """What the handle of a finished task tells."""

    def start_processing(self):
        self.push_task(Double("named", number=21))

    def task_finished(self, task, result, error):
        self.result = {
            "id": task == task.task_id, "text": str(task), "name": task.name, "object": type(task.task).__name__,
            "client": task.task.client_id == self.node_id_str, "system": task.task.system_id, "result": result,
        }
        self.shutdown_main_loop()


# -- errors


class Holder:
    """Something that cannot be pickled, well hidden."""

    def __init__(self):
        self.lock = threading.Lock()


class SomeBad(Application):
    """Every third task cannot be sent; the others end as ever."""

    def start_processing(self):
        made = [Double(f"d{number}", number=number) for number in range(self.count)]
        for task in made[::3]:
            task.holder = Holder()
        self.push_tasks(made)

    def push_tasks_failed(self, result):
        self.heard.append(result["m"])

    def summary(self):
        return {"sum": Application.summary(self), "failed": len(self.errors), "heard": self.heard,
                "error": str(self.errors[0])}


class LocalClass(Application):
    """A task whose class no worker can find."""

    def start_processing(self):
        class Hidden(Task):
            def __call__(self):
                return 1

        self.push_task(Hidden("hidden"))

    def push_task_failed(self, result):
        self.heard.append(result["m"])

    def task_finished(self, task, result, error):
        self.result = {"heard": self.heard, "error": str(error)}
        self.shutdown_main_loop()


class NotATask(Application):
    """Things that are no tasks."""

    def start_processing(self):
        self.push_tasks([1, 2, 3])


class Returns(Task):
    def __call__(self):
        return {"lock": lambda: None} if self.number % 2 else self.number


class BadResults(Application):
    """Results that cannot be pickled, among good ones."""

    def start_processing(self):
        self.push_tasks(Returns(f"r{number}", number=number) for number in range(self.count))

    def summary(self):
        return {"sum": Application.summary(self), "kinds": sorted({error.kind for error in self.errors}),
                "failed": len(self.errors), "error": str(self.errors[0])}


class Custom(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)
        self.first, self.second = first, second


class Stubborn(Exception):
    """Needs two arguments but hands one to its base: pickle cannot make it again."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


class Unsendable(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Raises(Task):
    def __call__(self):
        if self.how == "custom":
            raise Custom("one", 2)
        if self.how == "stubborn":
            raise Stubborn("one", 2)
        if self.how == "unsendable":
            raise Unsendable()
        if self.how == "chained":
            try:
                return {}["missing"]
            except KeyError as error:
                raise ValueError("no such thing") from error
        if self.how == "exit":
            sys.exit(5)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "recursion":
            return self()
        return None


class RaisesApplication(Application):
    """One task that raises; tells what came home."""

    def start_processing(self):
        self.push_task(Raises("raises", how=self.how))

    def task_finished(self, task, result, error):
        name = type(error).__name__
        self.result = {
            "type": name, "same": type(error) is globals().get(name), "text": str(error),
            "vars": [getattr(error, "first", None), getattr(error, "second", None)], "cause": str(error.__cause__),
            "kind": error.failure["kind"], "where": error.failure["where"], "remote": error.failure["type"],
        }
        self.shutdown_main_loop()


# -- hooks


class Hooked(Task):
    """Notes in a file, in which process each of its hooks ran."""

    def note(self, hook):
        with open(os.path.join(self.folder, f"{self.name}-{hook}"), "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self):
        self.note("call")
        if self.bad:
            raise ValueError("bad")

    def clean_up(self):
        self.note("clean_up")

    def finished(self, result, error):
        self.note("finished" if error is None else "finished-with-error")


class Hooks(Application):
    """Two tasks, one of which fails."""

    count = 2

    def start_processing(self):
        self.push_tasks([Hooked("good", folder=self.folder, bad=False), Hooked("bad", folder=self.folder, bad=True)])

    def last_one(self):
        self.result = {"pid": os.getpid()}
        self.shutdown_main_loop()


class FinishedRaises(Application):
    """A `finished` that raises."""

    def start_processing(self):
        self.push_task(BadlyFinished("badly"))


class BadlyFinished(Task):
    def __call__(self):
        return 1

    def finished(self, result, error):
        raise ZeroDivisionError("in finished")


class CleanUpRaises(Application):
    """A `clean_up` that raises fails its task."""

    count = 1

    def start_processing(self):
        self.push_task(BadlyCleaned("badly"))

    def last_one(self):
        self.result = {"kind": self.errors[0].failure["kind"], "text": str(self.errors[0])}
        self.shutdown_main_loop()


class BadlyCleaned(Task):
    def __call__(self):
        return 1

    def clean_up(self):
        raise ValueError("cannot clean up")


# -- resources


class Looks(Task):
    """Says where it runs and what it was granted."""

    def __call__(self):
        return {"parent": os.getppid(), "omp": os.environ.get("OMP_NUM_THREADS"),
                "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "attempt": os.environ.get("CONCURRENT_SWARM_ATTEMPT")}


class NeedsGpu(Looks):
    resources = {"gpu": 1}


class NeedsTwo(Looks):
    resources = {"cpus": 2}


class NeedsTag(Looks):
    resources = {"tags": ["fast"]}


class Resources(Application):
    """`count` tasks of the kind that `how` names; kinds may be mixed with `+`."""

    KINDS = {"plain": Looks, "gpu": NeedsGpu, "two": NeedsTwo, "tag": NeedsTag}

    def start_processing(self):
        kinds = self.how.split("+")
        self.push_tasks([self.KINDS[kinds[i % len(kinds)]](kinds[i % len(kinds)]) for i in range(self.count)])

    def app_init(self):
        Application.app_init(self)
        self.rows = []

    def task_finished(self, task, result, error):
        self.rows.append({"kind": task.name, **(result or {})})
        Application.task_finished(self, task, None, error)

    def summary(self):
        return self.rows


# -- trouble


def mark(folder, name):
    """Leaves a file; false if it was there."""
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wait_for(path):
    """Waits for a file to be there."""
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.005)


class DiesOnce(Task):
    """Kills its worker the first time it runs."""

    def __call__(self):
        if mark(self.folder, self.name):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.number


class OneDiesOnce(Application):
    def start_processing(self):
        for number in range(self.count):
            kind = DiesOnce if number == self.count // 2 else Double
            self.push_task(kind(f"t{number}", number=number, folder=self.folder))

    def summary(self):
        return {"sum": Application.summary(self), "errors": [str(error) for error in self.errors]}


class DiesAlways(Task):
    def __call__(self):
        mark(self.folder, f"{self.name}-{os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)


class OneDiesAlways(OneDiesOnce):
    def start_processing(self):
        for number in range(self.count):
            kind = DiesAlways if number == self.count // 2 else Double
            self.push_task(kind(f"t{number}", number=number, folder=self.folder))

    def summary(self):
        return {"sum": Application.summary(self), "kinds": [error.failure["kind"] for error in self.errors]}


class Waits(Task):
    """Says that it runs, and ends when the file `go` is there."""

    def __call__(self):
        with open(os.path.join(self.folder, f"run-{self.name}-{os.getpid()}"), "w") as file:
            file.write(str(os.getppid()))
        wait_for(os.path.join(self.folder, "go"))
        return self.number


class Waiting(Application):
    """`count` tasks that wait for a file; `heard` counts callbacks."""

    def start_processing(self):
        self.push_tasks([Waits(f"w{number}", number=number, folder=self.folder) for number in range(self.count)])

    def push_tasks_response(self, result):
        mark(self.folder, "accepted")

    def task_finished(self, task, result, error):
        with open(os.path.join(self.folder, "callbacks"), "a") as file:
            file.write(f"{task.name}\n")
        Application.task_finished(self, task, result, error)

    def summary(self):
        return {"sum": Application.summary(self), "errors": [str(error) for error in self.errors]}


class Version(Task):
    VERSION = "one"

    def __call__(self):
        wait_for(os.path.join(self.folder, "go"))
        return self.VERSION


class Versions(Application):
    """What VERSION the workers run; the test edits it."""

    def start_processing(self):
        mark(self.folder, f"started-{Version.VERSION}")
        self.push_tasks([Version(f"v{number}", folder=self.folder) for number in range(self.count)])

    def summary(self):
        return sorted(set(self.results))


class LastWaits(Task):
    """The last of its kind waits for the file `go`; the others leave a mark each time they run."""

    def __call__(self):
        if not self.last:
            with open(os.path.join(self.folder, f"ran-{self.name}-{os.urandom(4).hex()}"), "w"):
                return self.number
        return Waits.__call__(self)


class OneByOneThenWait(Waiting):
    def start_processing(self):
        for number in range(self.count):
            last = number == self.count - 1
            self.push_task(LastWaits(f"t{number}", number=number, last=last, folder=self.folder))


class Parting(Waiting):
    """Its result is how its master went away."""

    def start_processing(self):
        self.push_task(LastWaits("t", number=0, last=True, folder=self.folder))

    def master_disconnected(self, gracefully):
        self.result = gracefully
        self.shutdown_main_loop()


class FailsAtFirst(ApplicationNode):
    def app_init(self):
        raise ValueError("not today")


class OwnNames(ApplicationNode):
    """Keeps things under names that a framework may be tempted to use."""

    def app_init(self):
        for name in ("names", "ended", "systems", "owner", "progress", "waits", "started", "bundle", "busy"):
            setattr(self, name, "mine")

    def joined(self, text):
        return text

    hear = tally = shown = prepare = joined

    def start_processing(self):
        self.push_task(Double("double", number=4))

    def task_finished(self, task, result, error):
        self.result = [self.names, self.ended, self.owner, self.progress, self.bundle, self.tally("yours"), result]
        self.shutdown_main_loop()
