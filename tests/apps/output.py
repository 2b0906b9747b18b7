"""Applications whose tasks write in every way there is; each test picks one with `--app`."""

import ctypes
import importlib
import logging
import os
import pickle
import re
import signal
import sys
import time
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import BoolItem, ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task


class Application(ApplicationNode):
    """What all of them share: they gather what comes home."""

    abstract = True
    write = ["/tmp"]
    subprocess = True
    count = IntItem("output", "count", 5, "how many tasks")
    folder = ConfigItem("output", "folder", "", "where marks and modules lie")

    def app_init(self):
        self.said = {}
        self.left = self.count
        self.failures = {}

    def task_output(self, task_id, attempt, text):
        self.said[task_id] = self.said.get(task_id, "") + text

    def task_finished(self, task, result, error):
        if error is not None:
            self.failures[task] = error.failure
        self.left -= 1
        if not self.left:
            self.result = {"said": self.said, "failures": self.failures}
            self.shutdown_main_loop()


class Default(ApplicationNode):
    """What an application has that says nothing about output."""

    abstract = True

    def task_finished(self, task, result, error):
        if not self.pending:
            self.shutdown_main_loop()


# -- ways to write


class Every(Task):
    """Writes in every way, in an order that must be kept."""

    def __call__(self):
        libc = ctypes.CDLL(None)
        print("1 printed")
        sys.stderr.write("2 to stderr\n")
        os.write(1, b"3 past Python\n")
        logging.getLogger("here").info("4 logged")
        libc.puts(b"5 by C")
        print("6 printed")
        libc.puts(b"7 by C, flushed")
        libc.fflush(None)
        os.write(2, "8 schön\n".encode())
        os.system("echo 9 by a child")
        sys.stdout.buffer.write(b"10 bytes\n")
        print("11 without an end", end="")


class Alone(Application):
    """One task at a time, so that each has a lease of its own."""

    def start_processing(self):
        self.push_task(Every("1"))

    def task_finished(self, task, result, error):
        super().task_finished(task, result, error)
        if self.left:
            self.push_task(Every("next"))


class Numbered(Task):
    """Every tenth says its number, through Python and past it."""

    def __call__(self):
        if self.number % 10 == 0:
            print("I am", self.number, end="")
            print(" and", self.number, file=sys.stderr)
            os.write(1, b"raw %d\n" % self.number)
        if self.number % 100 == 99:
            raise ValueError(self.number)

    def clean_up(self):
        if self.cleans and self.number % 10 == 0:
            print("cleaned", self.number)


class Many(Application):
    """Many short tasks at once, some of which write."""

    cleans = IntItem("output", "cleans", 0, "whether they have a clean_up that writes")

    def start_processing(self):
        self.push_tasks(Numbered(str(n), number=n, cleans=self.cleans) for n in range(self.count))


class PlainNumbered(Task):
    """The same without `clean_up`, for the quick loop."""

    __call__ = Numbered.__call__


class ManyPlain(Application):
    """Many short tasks of the kind that runs in the quick loop."""

    def start_processing(self):
        self.push_tasks(PlainNumbered(str(n), number=n) for n in range(self.count))


class Chatters(Task):
    def __call__(self):
        print("I am", self.number)
        if self.number % 50 == 0:
            raise ValueError(self.number)


class Chatty(Application):
    """Many short tasks that all write, and some of which fail."""

    def start_processing(self):
        self.push_tasks(Chatters(str(n), number=n) for n in range(self.count))


# -- too much


class Flood(Task):
    def __call__(self):
        Path(self.go + ".began").touch()
        while not os.path.exists(self.go):
            time.sleep(0.01)
        line = b"x" * 1023 + b"\n"
        for _ in range(self.mib):
            os.write(1, line * 1024)
        Path(self.go + ".done").touch()


class Ping(Task):
    def __call__(self):
        return None


class Flooded(Application):
    """A task that floods, and others meanwhile, without which it does not begin; counts what came. Or it is alone."""

    mib = IntItem("output", "mib", 100, "how much is written")
    go = ConfigItem("output", "go", "", "a file that lets the flood begin")
    alone = BoolItem("output", "alone", False, "whether there are no others")
    came = pings = 0

    def start_processing(self):
        self.push_task(Flood("flood", mib=self.mib, go=self.go))
        if not self.alone:
            self.push_task(Ping("ping"))

    def task_output(self, task_id, attempt, text):
        self.came += len(re.sub(r"… [\d,]+ bytes dropped\n", "", text))

    def task_finished(self, task, result, error):
        if task.name == "flood":
            self.at_end = self.pings
            self.push_task(Words("after"))
        elif task.name == "after":
            self.result = {"came": self.came, "dropped": self.output_dropped, "pings": self.at_end}
            self.shutdown_main_loop()
        else:
            if Path(self.go + ".began").exists():
                Path(self.go).touch()
            self.pings += self.came > 0
            self.push_task(Ping("ping"))


class Words(Task):
    def __call__(self):
        os.write(1, b"after\n")


# -- ends


class Dying(Task):
    """Says much, and something last, before it is killed."""

    def __call__(self):
        print("much " * 40_000)
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)


class Dies(Application):
    def start_processing(self):
        self.push_task(Dying("dying"))


class Crashing(Task):
    def __call__(self):
        ctypes.string_at(0)


class Crashes(Application):
    def start_processing(self):
        self.push_task(Crashing("crashing"))


class TooSlow(Task):
    timeout = 0.5

    def __call__(self):
        print("too slow")
        time.sleep(60)


class Late(Application):
    def start_processing(self):
        self.push_task(TooSlow("slow"))


class Closing(Task):
    def __call__(self):
        print("lost", end="")
        os.close(1)
        os.close(2)


class Closes(Application):
    def start_processing(self):
        self.push_task(Closing("closing"))
        self.push_task(Ping("after it"))


class OnceKilled(Task):
    def __call__(self):
        print("attempt", os.environ["CONCURRENT_SWARM_ATTEMPT"], "\x1b[31m")
        print("\r1/2\r2/2")
        if os.environ["CONCURRENT_SWARM_ATTEMPT"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


class Shown(Default):
    """What the default shows, of a task that needs two attempts."""

    def start_processing(self):
        self.push_task(OnceKilled("once"))


class Speaks(Default):
    """Says something in a callback while the progress line is there."""

    def start_processing(self):
        self.push_tasks(Waits(str(n), seconds=2.0) for n in range(2))

    def task_finished(self, task, result, error):
        print("from the callback")
        super().task_finished(task, result, error)


class Waits(Task):
    def __call__(self):
        time.sleep(self.seconds)
        print("from the task")


# -- exceptions


class Raises(Task):
    """Raises an exception of a class that nobody else has."""

    def __call__(self):
        sys.path.insert(0, self.folder)
        Path(self.folder, "only_here.py").write_text("class Strange(Exception): pass\n")
        strange = importlib.import_module("only_here").Strange("odd", 7)
        strange.__notes__ = ["look behind the door"]
        try:
            {}["key"]
        except KeyError as error:
            raise strange from error


class Unknown(Application):
    def start_processing(self):
        self.push_task(Raises("raises", folder=self.folder))

    def task_finished(self, task, result, error):
        told = [type(error).__name__, error.type, str(error), error.notes, error.cause.type, error.cause.message]
        trace = "which led to this" in str(error.__cause__) and error.remote_traceback in str(error.__cause__)
        sys.path.insert(0, self.folder)
        again = pickle.loads(error.pickled)
        self.result = [*told, trace, type(again).__name__, list(again.args)]
        self.shutdown_main_loop()


# -- systems


class Talkative(ITaskSystem):
    def __init__(self, how):
        ITaskSystem.__init__(self)
        self.how = how

    def generate_tasks(self, master):
        print("making tasks")
        return [Every("of a system"), Every("another")]

    def task_finished(self, master, task, result, error):
        self.log.info("one is done")
        if self.how == "dies":
            print("the host's last words")
            os._exit(3)
        if self.how == "raises":
            print("before it")
            raise ValueError("in a hook")

    def gather_result(self, master):
        print("gathering", end="")


class System(Application):
    how = ConfigItem("output", "how", "", "what the system does")

    def get_task_system(self):
        return Talkative(self.how)

    def app_init(self):
        super().app_init()
        self.attempts = []

    def task_output(self, task_id, attempt, text):
        super().task_output(task_id, attempt, text)
        self.attempts += [attempt] * text.count("making tasks")

    def task_system_finished(self, result, error, stats):
        self.result = {"said": self.said, "failure": error and error.failure, "attempts": self.attempts}
        self.shutdown_main_loop()


class FailingSystem(ITaskSystem):
    def generate_tasks(self, master):
        return [Fails(str(n), secret=4711 + n) for n in range(3)]


class FailsThere(ApplicationNode):
    """A system whose tasks fail."""

    def get_task_system(self):
        return FailingSystem()


class Fails(Task):
    def __call__(self):
        doubled = 2 * self.secret
        raise ValueError(doubled)


class FailsHere(Default):
    """Plain tasks that fail."""

    def start_processing(self):
        self.push_tasks(Fails(str(n), secret=4711 + n) for n in range(3))
