"""Applications that move large data; each test picks one with `--app`."""

import hashlib
import os
import signal
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ChoiceItem, ConfigItem, IntItem
from concurrent_swarm.tasks import ITaskSystem, Task

from concurrent_swarm import rpc, tasks


def pattern(size, number=0):
    """Bytes of which every stretch tells where it comes from."""
    block = hashlib.sha512(str(number).encode()).digest() + bytes(range(199))
    return (block * (size // len(block) + 1))[:size]


def make(kind, size, number=0):
    """A value of about so many bytes."""
    if kind == "bytes":
        return pattern(size, number)
    if kind == "bytearray":
        return bytearray(pattern(size, number))
    import numpy

    array = numpy.frombuffer(pattern(size, number), "u1").copy()
    if kind == "array":
        return array
    return {"number": number, "list": [array, array[: size // 3].copy(), pattern(size // 2, number)], "same": array}


def digest(value):
    """What is equal for equal values, whatever their type."""
    if isinstance(value, dict):
        value = [*value["list"], value["same"]]
    if isinstance(value, list):
        return [digest(one) for one in value]
    return hashlib.sha256(memoryview(value)).hexdigest()[:16], len(value)


class Echo(Task):
    def __call__(self):
        return self.value


class Digest(Task):
    def __call__(self):
        return digest(self.value)


class Grow(Task):
    def __call__(self):
        return make(self.kind, self.size, self.number)


class Base(ApplicationNode):
    abstract = True
    write = ["/tmp"]
    kind = ChoiceItem("data", "kind", "bytes", ["bytes", "bytearray", "array", "nested"], "what travels")
    sizes = ConfigItem("data", "sizes", "1000000", "how large, with commas")
    count = IntItem("data", "count", 1, "how often")
    folder = ConfigItem("data", "folder", "", "where tasks leave their marks")

    def app_init(self):
        self.errors, self.wrong, self.right = [], [], 0

    def make_all(self):
        sizes = [int(size) for size in self.sizes.split(",")] * self.count
        return [(number, size, make(self.kind, size, number)) for number, size in enumerate(sizes)]

    def task_finished(self, task, result, error):
        if error is not None:
            self.errors.append(f"{error.failure['kind']}: {error}")
        elif self.is_right(task.task, result):
            self.right += 1
        else:
            self.wrong.append(task.name)
        if not self.pending:
            self.end()

    def end(self):
        self.result = {"right": self.right, "wrong": self.wrong, "errors": self.errors, "local": self.swarm.is_local}
        self.shutdown_main_loop()


class Echoes(Base):
    """Each value there and back."""

    def start_processing(self):
        self.push_tasks(Echo(str(n), number=n, size=size, value=value) for n, size, value in self.make_all())

    def is_right(self, task, result):
        value = make(self.kind, task.size, task.number)
        return type(result) is type(value) and digest(result) == digest(value)


class OneByOne(Echoes):
    """The same, each value once the last one is back: a worker answers each lease by itself."""

    def start_processing(self):
        self.left = self.make_all()
        self.next_one()

    def next_one(self):
        n, size, value = self.left.pop(0)
        self.push_task(Echo(str(n), number=n, size=size, value=value))

    def task_finished(self, task, result, error):
        if self.left:
            self.next_one()
        super().task_finished(task, result, error)


# -- in a system ---------------------------------------------------------------------------------------------------


class EchoSystem(ITaskSystem):
    def __init__(self, kind, sizes):
        ITaskSystem.__init__(self)
        self.kind, self.sizes, self.right = kind, sizes, 0

    def generate_tasks(self, master):
        for number, size in enumerate(self.sizes):
            yield Echo(str(number), self.system_id, number=number, size=size, value=make(self.kind, size, number))

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        self.right += digest(result) == digest(make(self.kind, task.size, task.number))

    def gather_result(self, master):
        return self.right, make(self.kind, max(self.sizes), 7)


class InSystem(Base):
    """Echoes on the master; the result of the system is a large value too."""

    def get_task_system(self):
        return EchoSystem(self.kind, [int(size) for size in self.sizes.split(",")] * self.count)

    def work_finished(self, result, system):
        right, value = result
        if digest(value) != digest(make(self.kind, max(map(int, self.sizes.split(","))), 7)):
            self.wrong.append("the result")
        self.right = right
        self.end()


# -- memory that the user's code uses again ------------------------------------------------------------------------

BUFFER = {}


class Reuse(Task):
    """Each task of a worker fills and returns the same memory."""

    def __call__(self):
        import numpy

        buffer = BUFFER.setdefault("it", numpy.zeros(self.size, "u1"))
        buffer[:] = self.number
        return buffer


class Clears(Reuse):
    def clean_up(self):
        BUFFER["it"][:] = 255


class ReusesResults(Base):
    """Results that lie in memory which the next task overwrites."""

    task_class = Reuse

    def start_processing(self):
        size = int(self.sizes)
        self.push_tasks([self.task_class(str(n), number=n, size=size) for n in range(1, self.count + 1)])

    def is_right(self, task, result):
        return result.min() == result.max() == task.number


class ClearsResults(ReusesResults):
    """The same, and `clean_up` overwrites it at once."""

    task_class = Clears


class ReusesTasks(Base):
    """One array is changed in each callback and pushed again, while earlier ones may still be on their way."""

    def start_processing(self):
        import numpy

        self.array, self.pushed = numpy.zeros(int(self.sizes), "u1"), 0
        self.more()
        self.swarm.on_loop(self.more)
        self.swarm.app._owner.pump()
        self.more()

    def more(self):
        if self.pushed < self.count:
            self.pushed += 1
            self.array[:] = self.pushed
            self.push_task(Digest(str(self.pushed), number=self.pushed, size=len(self.array), value=self.array))
            self._owner.pump()

    def is_right(self, task, result):
        return result == digest(bytes([task.number]) * task.size)

    def task_finished(self, task, result, error):
        self.more()
        super().task_finished(task, result, error)


# -- faults --------------------------------------------------------------------------------------------------------


class DiesOnce(Task):
    """Leaves a mark, and kills its worker where there was none."""

    def __call__(self):
        try:
            os.close(os.open(f"{self.folder}/{self.name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return digest(self.value)
        os.kill(os.getpid(), signal.SIGKILL)


class WorkersDie(Base):
    def start_processing(self):
        self.push_tasks(
            DiesOnce(str(n), number=n, size=size, value=value, folder=self.folder)
            for n, size, value in self.make_all()
        )

    def is_right(self, task, result):
        return result == digest(make(self.kind, task.size, task.number))


class Waits(Task):
    """Says that it runs, and waits for a word to go on."""

    def __call__(self):
        open(f"{self.folder}/runs-{self.name}", "w").close()
        while not os.path.exists(f"{self.folder}/go"):
            time.sleep(0.01)
        return self.value


class Waiting(Echoes):
    """Echoes that wait until `go` is there."""

    def start_processing(self):
        self.push_tasks(
            Waits(str(n), number=n, size=size, value=value, folder=self.folder) for n, size, value in self.make_all()
        )


class GrowOnceSlow(Grow):
    """Ends while the client is slow already."""

    def __call__(self):
        while self.number and self.folder and not os.path.exists(f"{self.folder}/first"):
            time.sleep(0.01)
        return Grow.__call__(self)


class Slow(Base):
    """Results of a given size, and a pause in the first callback, during which the others come."""

    def start_processing(self):
        about = {"kind": self.kind, "size": int(self.sizes), "folder": self.folder}
        self.push_tasks(GrowOnceSlow(str(n), number=n, **about) for n in range(self.count))

    def is_right(self, task, result):
        if self.folder and self.right == 0:
            open(f"{self.folder}/first", "w").close()
            while not os.path.exists(f"{self.folder}/go"):
                time.sleep(0.01)
        return digest(result) == digest(make(self.kind, task.size, task.number))


# -- published objects ---------------------------------------------------------------------------------------------


class Look(Task):
    def __call__(self):
        return digest(self.shared.get())


class Publishes(Base):
    """Each value is published, and looked at by `count` tasks."""

    again = IntItem("data", "again", 1, "how often each is published")

    def start_processing(self):
        sizes = [int(size) for size in self.sizes.split(",")]
        self.shared = [self.publish(make(self.kind, size, number)) for number, size in enumerate(sizes)]
        for _ in range(1, self.again):
            self.shared += [self.publish(make(self.kind, size, number)) for number, size in enumerate(sizes)]
        self.push_tasks(
            Look(f"{n}-{i}", number=n % len(sizes), size=sizes[n % len(sizes)], shared=shared)
            for i in range(self.count)
            for n, shared in enumerate(self.shared)
        )

    def is_right(self, task, result):
        return result == digest(make(self.kind, task.size, task.number))


class PublishesResult(Task):
    def __call__(self):
        return tasks.publish(make(self.kind, self.size, self.number))


class AsksForResults(Base):
    """Tasks return references; the client asks for what they refer to."""

    def start_processing(self):
        for number, size in enumerate([int(size) for size in self.sizes.split(",")] * self.count):
            self.push_task(PublishesResult(str(number), kind=self.kind, number=number, size=size))

    def is_right(self, task, result):
        return digest(result.get()) == digest(make(self.kind, task.size, task.number))


class PublishingSystem(EchoSystem):
    """Publishes, lets tasks look, lets tasks publish, and asks for it."""

    def generate_tasks(self, master):
        for number, size in enumerate(self.sizes):
            shared = master.publish(make(self.kind, size, number))
            yield Look(str(number), self.system_id, number=number, size=size, shared=shared)
            yield PublishesResult(str(number), self.system_id, number=number, size=size, kind=self.kind)

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        found = digest(result.get()) if hasattr(result, "get") else result
        self.right += found == digest(make(self.kind, task.size, task.number))


class PublishesInSystem(InSystem):
    def get_task_system(self):
        return PublishingSystem(self.kind, [int(size) for size in self.sizes.split(",")])


class LooksForNothing(Base):
    """A reference that nobody knows."""

    def start_processing(self):
        self.push_task(Look("nothing", shared=rpc.Shared(f"{'0' * 64}-{'0' * 16}", 10)))

    def is_right(self, task, result):
        return False


class AsksForNothing(Base):
    """The client asks for what nobody knows."""

    def start_processing(self):
        rpc.Shared(f"{'0' * 64}-{'0' * 16}", 10).get()


class Chain(Base):
    """Publishes two objects; then one task after the other, as `steps` says: a, b look at them, x kills its worker, w
    waits for `go`."""

    steps = ConfigItem("data", "steps", "ab", "what happens")

    def start_processing(self):
        size = int(self.sizes)
        self.shared = {name: self.publish(make(self.kind, size, number)) for number, name in enumerate("ab")}
        self.left = list(self.steps)
        self.next_one()

    def next_one(self):
        step = self.left.pop(0)
        name = f"{step}{len(self.left)}"
        if step == "x":
            self.push_task(DiesOnce(name, value=b"", folder=self.folder))
        elif step == "w":
            self.push_task(Waits(name, value=digest(b""), folder=self.folder))
        else:
            self.push_task(Look(name, shared=self.shared[step]))

    def is_right(self, task, result):
        wanted = b"" if task.name[0] in "xw" else make(self.kind, int(self.sizes), "ab".index(task.name[0]))
        return result == digest(wanted)

    def task_finished(self, task, result, error):
        if self.left:
            self.next_one()
        super().task_finished(task, result, error)
