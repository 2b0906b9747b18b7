"""A scheduler for tasks of very different length: it counts seconds where the others count tasks.

Copy this file into the `plugins` folder of a master's environment and choose it, while it runs if you like:

    --set master.task_scheduler=LeastTimeScheduler

The slave whose leases are expected to keep it busy for the shortest time per worker gets the next one. The
expectation comes from the tasks of the same name that ran before, and from how fast this slave was with them.
"""

from concurrent_swarm.components import Component, implements
from concurrent_swarm.tasks import ITaskScheduler


class LeastTimeScheduler(Component):
    """Chooses the slave with the least open work, in seconds per worker."""

    implements(ITaskScheduler)

    def setup(self, master):
        self.master = master

    def place(self, slaves, lease):
        return min(slaves, key=lambda slave: busy(slave, lease.estimate))

    def task_pushed(self, slave, count):
        pass

    def task_finished(self, slave, count):
        pass

    def rate_slaves(self):
        rated = ((busy(slave), slave) for slave in self.master.board.slaves.values())
        return sorted(rated, key=lambda pair: pair[0])

    def stop(self):
        self.master = None


def busy(slave, more=0.0):
    """Seconds until the slave has done what it holds and `more`; without workers, never."""
    return (slave.open_seconds + more) * slave.pace / slave.workers if slave.workers else float("inf")
