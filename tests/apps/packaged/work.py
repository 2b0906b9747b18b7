"""The package's tasks."""

from concurrent_swarm.tasks import Task

from . import numbers


class Tripled(Task):
    def __call__(self):
        return numbers.FACTOR * self.number
