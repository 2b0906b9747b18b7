"""Finds the number whose MD5 is known, by trying all: a task system that stops at the first hit.

    python client.py samples/md5.py --local
    python client.py samples/md5.py --set md5.number=31337 --set md5.jobs=16

prints `result   1763965`. The range 1..2,000,000 is cut into 128 tasks; once one of them has found the number, those
that are still queued never run.
"""

from hashlib import md5

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import IntItem, implements
from concurrent_swarm.tasks import IApp, ITaskSystem, Task, md5_search


class MD5ReverseTask(Task):
    """Tries the numbers start..stop-1."""

    def __init__(self, name, system_id, client_id=None, **kwargs):
        Task.__init__(self, name, system_id, client_id)
        self.digest = kwargs["digest"]
        self.start = kwargs["start"]
        self.stop = kwargs["stop"]

    def __call__(self):
        return md5_search(self.digest, self.start, self.stop)


class MD5HashReverseTaskSystem(ITaskSystem):
    """Made on the client, runs on the master: cuts the range into tasks and waits for the one that finds it."""

    def __init__(self, jobs, number, start, stop):
        ITaskSystem.__init__(self)
        self.digest = md5(str(number).encode()).digest()
        self.jobs = jobs
        self.start = start
        self.stop = stop
        self.found = None

    def generate_tasks(self, master):
        step = -(-(self.stop - self.start) // self.jobs)
        return [
            MD5ReverseTask(
                f"md5 {low}", self.system_id, digest=self.digest, start=low, stop=min(low + step, self.stop)
            )
            for low in range(self.start, self.stop, step)
        ]

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        if result is not None:
            self.found = result

    def is_complete(self, master):
        return self.found is not None or master.outstanding == 0

    def gather_result(self, master):
        return self.found


class MD5HashReverseNode(ApplicationNode):
    """The application on the client."""

    implements(IApp)

    number = IntItem("md5", "number", 1763965, "the number to find again; only its MD5 is sent", minimum=0)
    start = IntItem("md5", "start", 1, "the first number to try", minimum=0)
    stop = IntItem("md5", "stop", 2_000_000, "the first number not to try", minimum=1)
    jobs = IntItem("md5", "jobs", 128, "into how many tasks the range is cut", minimum=1)

    def get_task_system(self):
        return MD5HashReverseTaskSystem(self.jobs, self.number, self.start, self.stop)

    def work_finished(self, result, task_system):
        self.result = "not found" if result is None else result
        self.shutdown_main_loop()
