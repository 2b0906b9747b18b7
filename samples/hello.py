"""The smallest application: one task that says hello from a worker.

    python client.py samples/hello.py --local

prints `result   Hello World`.
"""

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task


class HelloTask(Task):
    """Runs in a worker process of some slave."""

    def __call__(self):
        return "Hello World"

    def finished(self, result, error):
        """Called on the client, before the application's task_finished."""
        print(f"task {self.task_id} is done")


class HelloApplication(ApplicationNode):
    """Runs on the client; everything that happens is a notification."""

    def start_processing(self):
        """Called once we are connected."""
        self.push_task(HelloTask("hello", None, self.node_id_str))

    def push_task_response(self, result):
        """The master has the task."""
        self.log.info("the task is on its way")

    def task_finished(self, task, result, error):
        """The outcome is here: what we leave in self.result is printed."""
        self.result = result
        self.shutdown_main_loop()
