"""Task systems that outlive the master and their own process; each test picks one with `--app`."""

import os
import signal
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task, publish


class Square(Task):
    """Returns the square of its number, and what it was told."""

    told = None
    folder = ""
    pause = 0.0

    def __call__(self):
        time.sleep(self.pause)
        if self.folder:
            with open(os.path.join(self.folder, f"{self.name}-{os.getpid()}-{time.time_ns()}"), "w") as file:
                file.write(os.environ["CONCURRENT_SWARM_ATTEMPT"])
        told = self.told.get() if hasattr(self.told, "get") else self.told
        return self.number**2, told


class Squares(ITaskSystem):
    """The sum of squares. Every tenth outcome brings another task, which is told the time and a random number."""

    publishes = False

    def __init__(self, count, steps, how, folder):
        ITaskSystem.__init__(self)
        self.count, self.steps, self.how, self.folder = count, steps, how, folder
        self.begun = self.called = self.total = self.outcomes = self.wrong = self.weight = 0
        self.seen = set()
        self.told = {}

    def init_system(self, master):
        self.begun += 1
        self.salt = master.random.random()

    def generate_tasks(self, master):
        self.called += 1
        if self.publishes:
            self.salt = master.publish(f"the salt {master.random.random()}")
        pause = 0.002 if "slow" in self.how else 0.0
        made = (self.make(n, told=self.salt, pause=pause) for n in range(self.count))
        return list(made) if "list" in self.how else made

    def make(self, number, told, pause=0.0):
        name = f"step{self.called}-{number}"
        return Square(name, self.system_id, number=number, told=told, folder=self.folder, pause=pause)

    def task_finished(self, master, task, result, error):
        square, told = result
        self.outcomes += 1
        self.total += square
        self.wrong += task.name in self.seen or self.expected(task) != told
        self.seen.add(task.name)
        if self.outcomes % 10 == 0 and len(self.told) < self.count // 20:
            number = self.count + 1000 * self.called + len(self.told)
            self.told[number] = master.now(), master.random.random(), sorted({str(n) for n in range(50)})[0]
            master.push_task(self.make(number, told=self.told[number]))
        self.happens(master)

    def expected(self, task):
        told = self.told.get(task.number, self.salt)
        return told.get() if hasattr(told, "get") else told

    def happens(self, master):
        """What goes wrong in it."""

    def is_complete(self, master):
        return self.called == self.steps and master.outstanding == 0

    def gather_result(self, master):
        extra = sum(number**2 for number in self.told)
        return {"total": self.total - extra, "outcomes": self.outcomes - len(self.told), "extra": len(self.told),
                "wrong": self.wrong, "begun": self.begun, "called": self.called, "distinct": len(self.seen)}


class Publishing(Squares):
    publishes = True


class Dying(Squares):
    """Its process dies at some outcomes, as long as the folder says so."""

    def happens(self, master):
        mark = os.path.join(self.folder, f"died-{self.outcomes}")
        if self.outcomes in (40, 90) and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class AlwaysDying(Squares):
    def happens(self, master):
        if self.outcomes == 20:
            os.kill(os.getpid(), signal.SIGKILL)


class Fickle(Squares):
    """Depends on more than it may."""

    def generate_tasks(self, master):
        file = os.path.join(self.folder, "lives")
        with open(file, "a") as lives:
            lives.write("x")
        return [self.make(n, self.salt) for n in range(5 + os.path.getsize(file))]


class Heavy(Squares):
    """Results heavy enough for a history to be cut; a list can be saved, a generator only if it is resumable."""

    def make(self, number, told, pause=0.0):
        return Weigh(f"step{self.called}-{number}", self.system_id, number=number, told=told, size=20_000)

    def task_finished(self, master, task, result, error):
        self.weight += len(result[2])
        Squares.task_finished(self, master, task, result[:2], error)


class Weigh(Square):
    def __call__(self):
        time.sleep(0.003)
        return *Square.__call__(self), os.urandom(self.size)


class HeavyResumable(Heavy):
    resumable = True
    drawn = 0

    def generate_tasks(self, master):
        if self.drawn % self.count == 0:
            self.called += 1
        while True:
            number = self.drawn % self.count
            self.drawn += 1
            yield self.make(number, self.salt)
            if self.drawn % self.count == 0:
                return


class Leave(Task):
    """Leaves a large result where it is, and returns a reference."""

    def __call__(self):
        return publish(bytes([self.number % 256]) * self.size)


class Use(Task):
    """Uses what another task has left."""

    pause = 0.0

    def __call__(self):
        while self.wait and not os.path.exists(self.wait):
            time.sleep(0.01)
        time.sleep(self.pause)
        left = self.left.get()
        return len(left), left[0]


class Handing(Squares):
    """What tasks of the first step have published is used in the second."""

    def generate_tasks(self, master):
        self.called += 1
        if self.called == 1:
            self.left = []
            sizes = (100, 100_000) * (self.count // 2)
            return [Leave("leave", self.system_id, number=n, size=size) for n, size in enumerate(sizes)]
        wait = os.path.join(self.folder, "go")
        return [Use("use", self.system_id, left=left, wait=wait) for left in self.left]

    def task_finished(self, master, task, result, error):
        if self.called == 1:
            self.left.append(result)
        else:
            self.seen.add(result)

    def is_complete(self, master):
        return self.called == 2 and master.outstanding == 0

    def gather_result(self, master):
        return sorted(map(list, self.seen))


class Given(ITaskSystem):
    """Its tasks use what the client has published."""

    def __init__(self, left, count):
        ITaskSystem.__init__(self)
        self.left, self.count, self.total = left, count, 0

    def generate_tasks(self, master):
        return [Use("use", self.system_id, left=self.left, wait="", pause=0.02) for _ in range(self.count)]

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        self.total += result[0]

    def is_complete(self, master):
        return master.outstanding == 0

    def gather_result(self, master):
        return self.total


class Application(ApplicationNode):
    abstract = True
    write = ["/tmp"]
    count = IntItem("durable", "count", 1000, "how many tasks a step has")
    steps = IntItem("durable", "steps", 1, "how many steps there are")
    how = ConfigItem("durable", "how", "generator", "what generate_tasks returns")
    folder = ConfigItem("durable", "folder", "", "where tasks leave their marks")

    def work_finished(self, result, task_system):
        self.result = result
        self.shutdown_main_loop()


class RunSystem(Application):
    """Runs the system of that name."""

    system = ConfigItem("durable", "system", "Squares", "which of these systems")

    def get_task_system(self):
        return globals()[self.system](self.count, self.steps, self.how, self.folder)


class RunPlain(Application):
    """Plain tasks; each callback leaves a line."""

    def start_processing(self):
        self.result = {"total": 0, "outcomes": 0, "wrong": 0}
        pause = 0.002 if self.how == "slow" else 0.0
        self.push_tasks(Square(f"t{n}", number=n, told=n, pause=pause) for n in range(self.count))

    def task_finished(self, task, result, error):
        square, told = result
        self.result["total"] += square
        self.result["outcomes"] += 1
        self.result["wrong"] += task.task.number != told
        with open(os.path.join(self.folder, "callbacks"), "a") as file:
            file.write(f"{told}\n")
        if not self.pending:
            self.shutdown_main_loop()


class RunGiven(Application):
    """Pushes a system with something published."""

    def get_task_system(self):
        return Given(self.publish(b"x" * 1000), self.count)
