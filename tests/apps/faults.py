"""Applications for tests of faults: steady work that counts, and tasks that do what tasks should not do."""

import contextlib
import ctypes
import itertools
import os
import subprocess
import sys
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, FloatItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


def note(folder, name, line):
    """Adds a line to a file; lines of several processes do not mix."""
    if folder:
        with open(os.path.join(folder, name), "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


class Work(Task):
    """Takes a while, says that it ran, and returns its number."""

    def __call__(self):
        note(self.folder, "began", self.number)
        time.sleep(self.pause)
        note(self.folder, "ran", self.number)
        return self.number


class Steady(ApplicationNode):
    """`count` tasks of `pause` seconds; each callback is a line in `folder`/callbacks."""

    write = ["/tmp"]
    read = ["/proc"]
    subprocess = True
    count = IntItem("faults", "count", 100, "how many tasks")
    pause = FloatItem("faults", "pause", 0.005, "seconds that each takes")
    folder = ConfigItem("faults", "folder", "", "where lines are written")

    def start_processing(self):
        self.total, self.outcomes, self.errors = 0, 0, []
        made = (Work(f"w{n}", number=n, pause=self.pause, folder=self.folder) for n in range(self.count))
        self.push_tasks(made)

    def task_finished(self, task, result, error):
        note(self.folder, "callbacks", task.task.number)
        self.outcomes += 1
        self.total += result or 0
        if error is not None:
            self.errors.append(str(error))
        if self.outcomes == self.count:
            self.result = {"sum": self.total, "errors": self.errors}
            self.shutdown_main_loop()


class Hog(Task):
    """Holds the interpreter's lock in one call of C for about so many seconds."""

    def __call__(self):
        began = time.monotonic()
        sum(itertools.repeat(0, 3_000_000))
        rate = 3_000_000 / (time.monotonic() - began)
        began = time.monotonic()
        sum(itertools.repeat(0, int(rate * self.seconds)))
        return time.monotonic() - began


class Hogs(ApplicationNode):
    """`count` of them; the result is the shortest time that one has taken."""

    count = IntItem("faults", "hogs", 2, "how many tasks")
    seconds = FloatItem("faults", "seconds", 1.0, "how long each holds the lock")

    def start_processing(self):
        self.took = []
        self.push_tasks([Hog(f"hog{n}", seconds=self.seconds) for n in range(self.count)])

    def task_finished(self, task, result, error):
        self.took.append(result)
        if len(self.took) == self.count:
            self.result = min(self.took)
            self.shutdown_main_loop()


class Bad(Task):
    """Does what `how` says to its own process."""

    def __call__(self):
        return getattr(self, self.how)()

    def segfault(self):
        ctypes.string_at(0)

    def exits(self):
        os._exit(0)

    def sys_exits(self):
        sys.exit(0)

    def giant(self):
        return bytes(self.size)

    def closes_all(self):
        os.closerange(0, 256)
        time.sleep(60)

    def writes_garbage(self):
        for number in range(3, 32):
            with contextlib.suppress(OSError):
                os.write(number, b"\xff" * 4096)
        time.sleep(60)

    def descriptors(self):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        held = []
        while True:
            held.append(open("/dev/null"))  # noqa: SIM115

    def fine(self):
        return "fine"


class One(ApplicationNode):
    """One task that is bad in the way of `how`, then a good one; tells how both have ended."""

    how = ConfigItem("faults", "how", "fine", "what it does")
    size = IntItem("faults", "size", 0, "bytes")

    def start_processing(self):
        self.push_task(Bad("bad", how=self.how, size=self.size))

    def task_finished(self, task, result, error):
        if task.name == "bad":
            self.bad = {"kind": getattr(error, "failure", {}).get("kind"), "text": str(error),
                          "type": getattr(error, "failure", {}).get("type")}  # fmt: skip
            self.push_task(Bad("good", how="fine"))
        else:
            self.result = {"bad": self.bad, "good": result, "pid": os.getpid()}
            self.shutdown_main_loop()


class Closing(ITaskSystem):
    """Its process closes everything that it has open, and stays."""

    def generate_tasks(self, master):
        os.closerange(3, 256)
        time.sleep(60)


class RunClosing(ApplicationNode):
    def get_task_system(self):
        return Closing()


DOUBLING = """
f() { echo $BASHPID >>pids; sleep 0.05; if [ $1 -gt 0 ]; then f $(($1-1)) & f $(($1-1)) & fi; sleep 1000; }
f 10
"""


class Bomb(Task):
    """Starts process after process, some two thousand, which stay; each notes its number. `how`: in its own process
    "group", in "sessions" of their own, or "doubling", where each of them does the same; "left": so, and it is done."""

    def __call__(self):
        if self.how == "none":
            return time.sleep(0.0005)
        if self.how == "left":
            return subprocess.Popen(["bash", "-c", DOUBLING], cwd=self.folder, start_new_session=True).pid
        if self.how == "doubling":
            subprocess.run(["bash", "-c", DOUBLING], cwd=self.folder)
        for _ in range(2000):
            time.sleep(0.001)
            if not os.fork():
                if self.how == "sessions":
                    os.setsid()
                note(self.folder, "pids", os.getpid())
                break
        time.sleep(1000)


class Beats(Task):
    """For a while, sleeps for moments; returns the longest of them in seconds."""

    def __call__(self):
        beats = [time.monotonic()]
        while beats[-1] - beats[0] < self.seconds:
            time.sleep(0.01)
            beats.append(time.monotonic())
        return max(after - before for before, after in itertools.pairwise(beats))


class Bombs(ApplicationNode):
    """A bomb, a task that beats beside it, and one that runs after it. With `among`, before all that so many tasks of
    the bomb's kind, then it comes with as many of them."""

    how = ConfigItem("faults", "how", "group", "what kind of bomb")
    folder = ConfigItem("faults", "folder", "", "where lines are written")
    process_limit = FloatItem("faults", "process_limit", -1.0, "of the bomb")
    among = IntItem("faults", "among", 0, "how many harmless ones")

    def start_processing(self):
        self.outcomes = {}
        self.push_tasks([Bomb(f"before{n}", how="none") for n in range(self.among)])
        if not self.among:
            self.light()

    def light(self):
        limit = {"process_limit": self.process_limit} if self.process_limit >= 0 else {}
        bomb = Bomb("bomb", how=self.how, folder=self.folder, **limit)
        harmless = [Bomb(f"with{n}", how="none") for n in range(self.among)]
        self.push_task(Beats("beats", seconds=2.5))
        self.push_tasks([*harmless[: self.among // 2], bomb, *harmless[self.among // 2 :]])

    def task_finished(self, task, result, error):
        self.outcomes[task.name] = getattr(error, "failure", result)
        if self.among and len(self.outcomes) == self.among:
            self.light()
        elif len(self.outcomes) == 2 * self.among + 2:
            self.push_task(Bad("after", how="fine"))
        elif task.name == "after":
            self.result = self.outcomes
            self.shutdown_main_loop()


class Leaky(Task):
    """Keeps descriptors and memory; returns its process, and how many descriptors that has."""

    kept = []

    def __call__(self):
        import resource

        if self.files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        self.kept.extend(os.dup(0) for _ in range(self.files))
        self.kept.append(bytearray(os.urandom(1 << 20) * self.mebibytes))
        time.sleep(0.1)
        return os.getpid(), len(os.listdir("/proc/self/fd"))


class Leaks(ApplicationNode):
    """`count` leaky tasks, one after the other; the result is what each returned, and the errors."""

    count = IntItem("faults", "count", 30, "how many tasks")
    files = IntItem("faults", "files", 0, "descriptors that each keeps")
    mebibytes = IntItem("faults", "mebibytes", 0, "memory that each keeps")

    def start_processing(self):
        self.result = {"told": [], "errors": []}
        self.push_tasks([Leaky(f"l{n}", files=self.files, mebibytes=self.mebibytes) for n in range(self.count)])

    def task_finished(self, task, result, error):
        self.result["errors" if error else "told"].append(str(error) if error else result)
        if sum(map(len, self.result.values())) == self.count:
            self.shutdown_main_loop()


class Nothing(Task):
    def __call__(self):
        return 1

    def finished(self, result, error):
        if getattr(self, "hangs", False):
            hang(self.how)


def hang(how):
    if how == "C":
        sum(itertools.repeat(0))  # stuck in C
    while True:
        time.sleep(0.01)  # stuck in Python


class Hanging(ITaskSystem):
    """Hangs in one of its hooks, or takes `pause` seconds for each of them."""

    def __init__(self, hook, how, limit, pause, count):
        super().__init__()
        self.hook, self.how, self.pause, self.count = hook, how, pause, count
        if limit >= 0:
            self.hook_timeout = limit

    def reached(self, hook):
        time.sleep(self.pause)
        if hook == self.hook:
            hang(self.how)

    def init_system(self, master):
        self.reached("init_system")

    def generate_tasks(self, master):
        self.reached("generate_tasks")
        for number in range(self.count):
            time.sleep(self.pause)
            yield Nothing(f"n{number}", hangs=self.hook == "finished" and number == self.count - 1, how=self.how)
        self.reached("drawing")

    def task_finished(self, master, task, result, error):
        self.reached("task_finished")

    def is_complete(self, master):
        self.reached("is_complete")
        return master.outstanding == 0

    def gather_result(self, master):
        self.reached("gather_result")
        return "gathered"


class Hooks(ApplicationNode):
    """A system that hangs in `hook`, if that is given, and one whose hooks take `pause` seconds each."""

    hook = ConfigItem("faults", "hook", "", "which hook hangs")
    how = ConfigItem("faults", "how", "C", "C or Python")
    limit = FloatItem("faults", "limit", -1.0, "hook_timeout of the systems")
    pause = FloatItem("faults", "pause", 0.0, "seconds that each hook of the second one takes")
    count = IntItem("faults", "count", 4, "tasks of each")

    def start_processing(self):
        self.began, self.told = time.monotonic(), {}
        bad = [Hanging(self.hook, self.how, self.limit, 0.0, self.count)] if self.hook else []
        self.left = [*bad, Hanging("", "", self.limit, self.pause, self.count)]
        for system in self.left:
            self.push_tasksystem(system)

    def task_system_finished(self, result, error, stats):
        told = {"result": result} if error is None else error.failure
        self.told["good" if error is None else "bad"] = {**told, "after": time.monotonic() - self.began}
        self.left.pop()
        if not self.left:
            self.result = self.told
            self.shutdown_main_loop()


class Nonsense(ApplicationNode):
    def get_task_system(self):
        system = Hanging("", "", -1, 0, 1)
        system.hook_timeout = "soon"
        return system
