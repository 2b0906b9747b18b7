"""An application whose task uses a module next to it, which uses another."""

import helper
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task


class Helped(Task):
    def __call__(self):
        return helper.help_with(self.number)


class Siblings(ApplicationNode):
    def start_processing(self):
        self.push_task(Helped("helped", number=20))
