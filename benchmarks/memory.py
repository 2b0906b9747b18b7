"""Measures how much memory the processes of a swarm take at most, while tasks that do nothing pass through it.

    python benchmarks/memory.py --tasks 100000,1000000

Starts a master, a slave with two workers and a client in a folder of their own, once per row. Peaks are VmHWM of
/proc, so this runs on Linux only; of several workers the largest counts.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ROLES = ("master", "host", "slave", "worker", "client")


def measure(mode, count, journal):
    """The peak of each role in MiB, and the rate in tasks per second."""
    with ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="cs", dir="/tmp"))
        environ = {**os.environ, "CONCURRENT_SWARM_STATE": folder}

        def start(role, *words, **more):
            node = subprocess.Popen([sys.executable, CHECKOUT / f"{role}.py", *words], env=environ, **more)
            ending.callback(node.wait, 30)
            ending.callback(node.terminate)
            return node

        words = [] if journal else ["--no-journal"]
        master = start("master", "--env", f"{folder}/m", "--port", "0", *words, stderr=subprocess.PIPE, text=True)
        address = next(line.split()[-1] for line in master.stderr if "--master" in line)
        next(line for line in master.stderr if line.startswith("ready"))
        slave = start("slave", "--env", f"{folder}/s", "--workers", "2", "--master", address, stderr=subprocess.DEVNULL)
        settings = (f"noop.mode={mode}", f"noop.tasks={count}", "noop.drawn=yes")
        words = itertools.chain.from_iterable(("--set", setting) for setting in settings)
        words = [CHECKOUT / "benchmarks/noop.py", "-q", "--master", address, *words]
        client = start("client", *words, stdout=subprocess.PIPE, text=True)
        return {**watch(master.pid, slave.pid, client), "rate": client.stdout.read().split()[-1]}


def watch(master, slave, client):
    """Looks at all processes until the client ends."""
    peaks = dict.fromkeys(ROLES, 0.0)
    while client.poll() is None:
        found = [("master", master), ("slave", slave), ("client", client.pid)]
        found += [("host", pid) for child in children_of(master) for pid in children_of(child)]
        found += [("worker", pid) for child in children_of(slave) for pid in children_of(child)]
        for role, pid in found:
            peaks[role] = max(peaks[role], peak_of(pid))
        time.sleep(0.02)  # a peak stays until the process ends
    return peaks


def children_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def peak_of(pid):
    """The most memory that a process had so far, in MiB; 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def main():
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--tasks", default="100000,1000000", metavar="NUMBER,…")
    made.add_argument("--mode", default="batch,system", metavar="MODE,…", help="as noop.mode of noop.py")
    made.add_argument("--no-journal", action="store_true", help="of the master")
    given = made.parse_args()
    print("mode       tasks", *(f"{role:>8}" for role in ROLES), "MiB  tasks/s")
    for mode, count in itertools.product(given.mode.split(","), given.tasks.split(",")):
        found = measure(mode, int(count), not given.no_journal)
        print(f"{mode:6} {count:>9}", *(f"{found[role]:8.1f}" for role in ROLES), f"{found['rate']:>12}", flush=True)


if __name__ == "__main__":
    main()
