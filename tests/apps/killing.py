"""A task that ends whatever it may. Only for a swarm that has a PID namespace to itself: nothing else is reached."""

import os
import signal

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task


class Kills(Task):
    retries = {"WorkerLost": 0, "SlaveLost": 0}

    def __call__(self):
        if os.getpid() > 200:
            raise RuntimeError("this is no PID namespace that was just made")
        os.kill(-1, signal.SIGKILL)
        return "sent"


class Killing(ApplicationNode):
    def start_processing(self):
        self.push_task(Kills("kills"))

    def task_finished(self, task, result, error):
        self.result = result
        self.shutdown_main_loop()
