"""Concurrent as a peer of the benchmark harness whose `common` and `tasks` are on the path.

    PYTHONPATH=HARNESS python benchmarks/peer_concurrent.py --workloads w2,w1,w1m,w1s

One master, one slave (two for w6n) and, in this process, the client, whose loop runs while results are waited for. The
loop form is a `push_task` per task, the batch form one `push_tasks`; w1s, a workload of our own, is w1m as a task
system. Nodes use the socket file and no journal; `--opt journal=yes` and `--opt transport=tcp` change that. Workers
that are killed need no preparation.
"""

import itertools
import json
import math
import os
import subprocess
import sys
import time

import common

from concurrent_swarm import client, components, rpc

APP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_concurrent_app.py")


class Deadline:
    """Wakes the client's loop when a result has been waited for long enough."""

    at = math.inf
    events = None  # nobody reads them

    def tick(self, now):
        """When the loop must come round again; the client calls this where it would draw its progress line."""
        return self.at


class Concurrent(common.Peer):
    """A swarm of its own for one run of the harness; its handles are the numbers of tasks."""

    has_nodes = True

    def __init__(self, opts):
        super().__init__(opts)
        self.journal, self.tcp = opts.get("journal") == "yes", opts.get("transport") == "tcp"
        self.name = "concurrent" + "-journal" * self.journal + "-tcp" * self.tcp
        self.numbers, self.started, self.app = itertools.count(), [], None

    def version(self):
        return components.__version__

    # -- the swarm -------------------------------------------------------------------------------------------------

    def start(self, workers, nodes, fault):
        os.chdir(self.dir)  # where no other module has the name of one of the harness
        self.master = self.node("master", "master", "--port", "0", *["--no-journal"] * (not self.journal))
        access = os.path.join(self.dir, "master", "keys", "client.access")
        common.wait_file(access)
        if self.tcp:
            with open(access) as file:
                os.unlink(json.load(file)["addresses"]["ipc"])  # as on another machine: no socket file is there
        own = ["--access", access.replace("client", "slave"), "--workers", str(workers // nodes)]
        self.slaves = [self.node("slave", f"slave{number}", *own) for number in range(nodes)]
        self.app = self.join(access)
        while self.app.workers < workers:
            self.app.swarm.step()

    def node(self, role, folder, *options):
        """Starts a master or slave with a folder of its own; what it logs goes to stderr."""
        command = [sys.executable, "-m", f"concurrent_swarm.{role}", "-q", "--env", os.path.join(self.dir, folder)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self.started.append(subprocess.Popen([*command, *options], **quiet))
        return self.started[-1]

    def join(self, access):
        """The application, connected; as `client.py` does it, but for the main loop."""
        rpc.keep_memory()
        bundle = rpc.make_bundle(APP)
        rpc.answer_framework([rpc.PUBLIC_NAME])
        self.module = rpc.load_app(bundle.root, bundle.manifest)
        environment = components.Environment.claim("client", os.path.join(self.dir, "client"))
        config = components.Config(environment.config_path, folder=environment.path)
        swarm = client.ClientNode(environment, config, "", access)
        app = swarm[self.module.Work]
        app.swarm, app._bundle = swarm, bundle
        self.deadline = swarm.watch = Deadline()
        app._prepare()
        app.app_init()
        app.connect()
        return app

    def stop(self):
        if self.app:
            self.app.swarm.close()
        for process in reversed(self.started):  # the master last, so that slaves can say goodbye
            common.stop_procs([process])

    def roles(self):
        return {"master": [self.master.pid]}

    def nodes(self):
        return [slave.pid for slave in self.slaves]

    # -- the work --------------------------------------------------------------------------------------------------

    def submit(self, fn, *args):
        number = next(self.numbers)
        self.app.push_task(self.module.MAKE[fn](number, *args))
        return number

    def submit_many(self, fn, rows, n):
        push, make, handles = self.app.push_task, self.module.MAKE[fn], []
        for row, number in zip(rows, self.numbers, strict=False):
            push(make(number, *row))
            handles.append(number)
        return handles

    def map(self, fn, rows, n, chunk):
        make, handles = self.module.MAKE[fn], list(itertools.islice(self.numbers, n))
        self.app.push_tasks(make(number, *row) for number, row in zip(handles, rows, strict=True))
        return self.collect(handles)

    def broadcast(self, fn, obj, n):
        self.mode["w3b"] = "object published once, reference as the argument"
        shared = self.app.publish(obj)
        return self.collect(self.submit_many(fn, ((shared, i) for i in range(n)), n))

    def result(self, handle, timeout=None):
        self.deadline.at = math.inf if timeout is None else time.monotonic() + timeout
        while handle not in self.app.results:
            if time.monotonic() >= self.deadline.at:
                raise TimeoutError(f"no result within {timeout:.2f} s")
            self.app.swarm.step()
        result, error = self.app.results.pop(handle), self.app.errors.pop(handle, None)
        if error is not None:
            raise error
        return result

    def collect(self, handles):
        results, errors, step = self.app.results, self.app.errors, self.app.swarm.step
        self.deadline.at = math.inf
        for handle in handles:
            while handle not in results:
                step()
            if errors and handle in errors:
                raise errors[handle]
        return [results.pop(handle) for handle in handles]

    def run_system(self, n):
        """All results of n empty tasks that a task system makes, in order."""
        self.app.push_tasksystem(self.module.EmptySystem(n))
        while not self.app.gathered:
            self.app.swarm.step()
        result, error = self.app.gathered.pop()
        if error is not None:
            raise error
        return result


def w1s(peer, a):
    """n empty tasks through a task system, until the client holds all results."""
    began = time.perf_counter()
    got = peer.run_system(a.n)
    wall = time.perf_counter() - began
    return {"n": a.n, "wall_s": wall, "value": a.n / wall, "unit": "tasks/s", "ok": got == list(range(a.n))}


common.WORKLOADS["w1s"] = w1s


if __name__ == "__main__":
    common.main(Concurrent)
