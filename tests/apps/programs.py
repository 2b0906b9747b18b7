"""An application that may start programs; what these then try goes further than that."""

import json
import os
import subprocess
import sys

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem
from concurrent_swarm.tasks import Task

CHILD = """
import json, os, signal, sys
told, found = json.loads(sys.argv[1]), {}
for name, action in {
    "read": lambda: open(told["key"]).read(),
    "list": lambda: os.listdir(os.path.dirname(told["key"])),
    "environ": lambda: open(f"/proc/{told['slave']}/environ").read(1),
    "write": lambda: open(told["outside"] + "/made", "w"),
    "signal": lambda: os.kill(told["slave"], signal.SIGCONT),
    "signal_group": lambda: os.killpg(told["slave"], signal.SIGCONT),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, told["slave"], 1),
    "processors": lambda: os.sched_setaffinity(told["slave"], os.sched_getaffinity(0)),
    "socket": lambda: __import__("socket").socket(),
}.items():
    try:
        found[name] = [True, repr(action())[:100]]
    except OSError as error:
        found[name] = [False, str(error)]
print(json.dumps(found))
"""


DAEMON = """
import os, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
time.sleep(1000)
"""


class Starts(Task):
    """Leaves a daemon behind, and tells what a program reaches that it has started."""

    def __call__(self):
        subprocess.run([sys.executable, "-S", "-c", DAEMON, self.told["mark"]], check=True)
        command = [sys.executable, "-c", CHILD, json.dumps(self.told)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return {"pid": os.getpid(), "tried": json.loads(run.stdout)}


class Programs(ApplicationNode):
    subprocess = True
    told = ConfigItem("programs", "told", "", "what the test says, in JSON")

    def start_processing(self):
        self.push_task(Starts("starts", told=json.loads(self.told)))

    def task_finished(self, task, result, error):
        self.result = result
        self.shutdown_main_loop()
