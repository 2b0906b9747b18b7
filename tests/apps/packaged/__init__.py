"""An application that is a package."""

from concurrent_swarm.client import ApplicationNode

from .work import Tripled


class Packaged(ApplicationNode):
    def start_processing(self):
        self.push_task(Tripled("tripled", number=14))
