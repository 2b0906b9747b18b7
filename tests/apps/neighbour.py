"""An application that has something to hide from others: its task says where it is, and stays."""

import json
import os
import tempfile
import time

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task


class Stays(Task):
    """Keeps a file in its own temporary folder and tells, in what it prints, what another one would have to find."""

    def __call__(self):
        file = os.path.join(tempfile.gettempdir(), f"kept-{os.getpid()}")
        with open(file, "w") as out:
            out.write("a result that is not there yet")
        print(json.dumps({"pid": os.getpid(), "file": file, "source": __file__}), flush=True)
        time.sleep(1000)


class Neighbour(ApplicationNode):
    """One task that stays until the client is interrupted."""

    def start_processing(self):
        self.push_task(Stays("stays"))
