"""An application in the style of the thesis; only its imports and Python 2 spellings were changed."""

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import implements
from concurrent_swarm.tasks import IApp, ITaskSystem, Task


class SumTask(Task):
    def __init__(self, name, system_id, **kwargs):
        Task.__init__(self, name, system_id)
        self.start = kwargs["start"]
        self.end = kwargs["end"]

    def __call__(self):
        return sum(range(self.start, self.end))

    def finished(self, result, error):
        pass

    def clean_up(self):
        pass


class SumTaskSystem(ITaskSystem):
    def __init__(self, jobs):
        super().__init__()
        self.jobs = jobs

    def init_system(self, master):
        self.sum = 0
        self.finished_jobs = 0

    def generate_tasks(self, master):
        self.log.info("Making tasks")
        job_list = []
        for i in range(self.jobs):
            job_list.append(SumTask(f"sum_{i}", self.system_id, start=i * 10, end=i * 10 + 10))
        return job_list

    def task_finished(self, master, task, result, error):
        self.finished_jobs += 1
        if error:
            self.log.error(error)
        else:
            self.sum += result

    def gather_result(self, master):
        return self.sum

    def is_complete(self, master):
        self.log.info("%s of %s", self.finished_jobs, self.jobs)
        return self.finished_jobs == self.jobs


class SumNode(ApplicationNode):
    implements(IApp)

    def app_init(self):
        super().app_init()

    def app_main(self):
        return super().app_main()

    def get_task_system(self):
        self.task_system = SumTaskSystem(20)
        return self.task_system

    def task_system_finsihed(self, result, error, stats):
        self.log.info("Result: %s", result)
        self.result = result

    def push_tasksystem_response(self, result):
        self.log.info("Tasks system send to computation node")

    def push_tasksystem_failed(self, result):
        self.log.error("Tasks system failed to be send to computation node")
