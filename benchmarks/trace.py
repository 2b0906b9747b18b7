"""Measures what `--trace` costs: the same run with and without it, in turn.

    python benchmarks/trace.py 10

Prints, for a flood of short tasks, for lone ones, and for a flood in leases of one task, medians of so many runs each:
tasks per second, and processor time per task over all processes of the swarm. The cost is the median over the pairs of
runs that followed each other.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from concurrent_swarm import client

NOOP = Path(__file__).parent / "noop.py"
RUNS = {"flood": ("batch", 400_000, []), "lone": ("lone", 4_000, []), "leases": ("batch", 20_000, ["max_lease=1"])}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(processes):
    """Seconds that these and all below them have run, those that have ended included."""
    seconds, left = 0.0, list(processes)
    while left:
        pid = left.pop()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, fields[11:15])) / TICKS
        left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return seconds


def one(swarm, pids, mode, tasks, file):
    """Tasks per second and µs of CPU per task of one run."""
    words = [sys.executable, "-m", "concurrent_swarm.client", str(NOOP), "--json", "-q", "--master", swarm.address]
    words += ["--access", swarm.access, "--set", f"noop.mode={mode}", "--set", f"noop.tasks={tasks}"]
    before = cpu_of(pids), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    run = subprocess.run(words + ["--trace", file] * bool(file), capture_output=True, text=True, check=True)
    after = cpu_of(pids), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    result = json.loads(run.stdout)["result"]
    rate = 1e6 / result["p50_us"] if mode == "lone" else result
    return rate, sum(after) - sum(before), Path(file).stat().st_size if file else 0


def compare(name, count, mode, tasks, settings):
    """Measures and prints one kind of run."""
    settings = {"master": [f"master.{one}" for one in settings], "slave": []}
    with client.LocalSwarm("2", settings) as swarm, tempfile.TemporaryDirectory() as folder:
        pids = [process.pid for process, *_ in swarm._children]
        file = os.path.join(folder, "run.json")
        rows = {"": [], file: []}
        one(swarm, pids, mode, tasks, "")
        for number in range(count):
            for chosen in ("", file) if number % 2 else (file, ""):
                rows[chosen].append(one(swarm, pids, mode, tasks, chosen))
    for chosen, told in (("", "without"), (file, "with")):
        rate, cpu, size = (statistics.median(column) for column in zip(*rows[chosen], strict=True))
        print(f"{name:7}{told:8} {rate:10,.0f} tasks/s  {1e6 * cpu / tasks:8.2f} us  {size / 1e6:6.1f} MB")
    pairs = list(zip(*rows.values(), strict=True))
    slower = statistics.median(a[0] / b[0] for a, b in pairs) - 1
    dearer = statistics.median(b[1] / a[1] for a, b in pairs) - 1
    print(f"{name:7}cost     {slower:+10.1%} time     {dearer:+8.1%} CPU", flush=True)


if __name__ == "__main__":
    for name, run in RUNS.items():
        compare(name, int(sys.argv[1]) if len(sys.argv) > 1 else 10, *run)
