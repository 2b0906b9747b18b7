"""A task whose argument, published object, output and result carry marks that must not be seen on the way."""

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem, IntItem
from concurrent_swarm.tasks import Task

SOURCE = "a secret recipe of which no line must be seen by others " * 3


def mark(what, seed, times):
    """So often the same words, of which each packet of the network has some if it has any."""
    return f"{what}-of-the-task-{seed} " * times


class Marked(Task):
    def __call__(self):
        assert self.shared.get().startswith("published")
        print(mark("printed", self.seed, 4))
        return mark("result", self.argument.rpartition("-")[2].strip(), self.times)


class Marks(ApplicationNode):
    seed = ConfigItem("marked", "seed", "", "what the marks end with")
    times = IntItem("marked", "times", 20, "how often a mark is repeated")

    def start_processing(self):
        shared = self.publish(mark("published", self.seed, self.times))
        argument = mark("argument", self.seed, self.times)
        self.push_task(Marked("marked", seed=self.seed, times=self.times, argument=argument, shared=shared))

    def task_finished(self, task, result, error):
        self.result = len(result)
        self.shutdown_main_loop()
