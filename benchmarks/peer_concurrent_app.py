"""The work of the peer benchmark as an application: a task class for each function of the harness's `tasks`.

`MAKE` makes the task of a call; `at` is the number under which the application keeps the result.
"""

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import ITaskSystem, Task

import tasks


class Empty(Task):
    def __call__(self):
        return tasks.empty(self.i)


class Echo(Task):
    def __call__(self):
        return tasks.echo(self.data)


class Broadcast(Task):
    def __call__(self):
        return tasks.broadcast(self.obj.get(), self.i)


class Dna(Task):
    def __call__(self):
        return tasks.dna(self.data)


class Busy(Task):
    def __call__(self):
        return tasks.busy(self.seconds)


class Logged(Task):
    def __call__(self):
        return tasks.logged(self.i, self.seconds, self.log)


class Md5Range(Task):
    def __call__(self):
        return tasks.md5_range(self.start, self.stop, self.digest)


class MandelColumn(Task):
    def __call__(self):
        return tasks.mandel_column(self.px, self.width, self.height, self.iterations)


MAKE = {
    tasks.empty: lambda at, i: Empty("empty", at=at, i=i),
    tasks.echo: lambda at, data: Echo("echo", at=at, data=data),
    tasks.broadcast: lambda at, obj, i: Broadcast("broadcast", at=at, obj=obj, i=i),
    tasks.dna: lambda at, data: Dna("dna", at=at, data=data),
    tasks.busy: lambda at, seconds: Busy("busy", at=at, seconds=seconds),
    tasks.logged: lambda at, i, seconds, log: Logged("logged", at=at, i=i, seconds=seconds, log=log),
    tasks.md5_range: lambda at, start, stop, digest: Md5Range("md5", at=at, start=start, stop=stop, digest=digest),
    tasks.mandel_column: lambda at, px, width, height, iterations: MandelColumn(
        "column", at=at, px=px, width=width, height=height, iterations=iterations
    ),
}


class EmptySystem(ITaskSystem):
    """Makes `count` empty tasks on the master, and brings all results home in order."""

    def __init__(self, count):
        ITaskSystem.__init__(self)
        self.results = [None] * count

    def generate_tasks(self, master):
        return (Empty("empty", i=i) for i in range(len(self.results)))

    def task_finished(self, master, task, result, error):
        if error is not None:
            raise error
        self.results[task.i] = result

    def gather_result(self, master):
        return self.results


class Work(ApplicationNode):
    """Keeps what comes home until somebody asks for it: `results` by number, `errors` of those that failed."""

    def app_init(self):
        self.results, self.errors = {}, {}
        self.gathered = []  # (result, error) of each task system

    def task_finished(self, task, result, error):
        if error is not None:
            self.errors[task.task.at] = error
        self.results[task.task.at] = result

    def task_system_finished(self, result, error, stats):
        self.gathered.append((result, error))
