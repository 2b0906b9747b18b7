"""Measures what people who look on cost: a flood of tasks with ten pages that ask once a second, and with none.

    python benchmarks/viewers.py                     # 4 rounds of 3,000,000 tasks
    python benchmarks/viewers.py --lease 1 --tasks 20000      # one task in each lease: the master is the limit

Takes turns; prints tasks a second of each round, both medians and their ratio, what the master took of CPU, what an
answer is in bytes, and what a question takes in ms of CPU while nothing runs. The pages are as many connections that
take gzip and keep their cursors.
"""

import argparse
import gzip
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from concurrent_swarm.client import LocalSwarm

from concurrent_swarm import rpc

ROOT = Path(__file__).parent.parent


class Viewer(threading.Thread):
    """A page: asks once a second with the cursors of the last answer."""

    def __init__(self, address, every=1.0):
        super().__init__(daemon=True)
        self.address, self.every, self.over = address, every, threading.Event()
        self.bytes, self.seconds = [], []

    def run(self):
        connection, known = http.client.HTTPConnection(self.address), {"boot": "", "cur": {}}
        while not self.bytes or not self.over.wait(self.every):
            wanted = {"stream": {"window": 10, "columns": 600, "lanes": [0, 64]}, "slaves": {"from": 0, "count": 60}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "ui.poll", "params": {**known, **wanted}}
            head = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
            began = time.perf_counter()
            connection.request("POST", "/api/1", json.dumps(body), head)
            answer = connection.getresponse()
            data = answer.read()
            self.seconds.append(time.perf_counter() - began)
            self.bytes.append(len(data))
            plain = gzip.decompress(data) if answer.headers.get("Content-Encoding") == "gzip" else data
            result = json.loads(plain)["result"]
            known = {"boot": result["boot"], "cur": result["cur"]}


class Viewers:
    """So many pages for a `with` block."""

    def __init__(self, address, count, every=1.0):
        self.all = [Viewer(address, every) for _ in range(count)]

    def __enter__(self):
        for one in self.all:
            one.start()
        while not all(one.bytes for one in self.all):  # a first answer has more than those after it
            time.sleep(0.05)
        for one in self.all:
            one.bytes.clear()
        return self

    def __exit__(self, *error):
        for one in self.all:
            one.over.set()
        for one in self.all:
            one.join()

    def told(self, what):
        """All of what the pages have measured."""
        return [each for one in self.all for each in getattr(one, what)]


def cpu_of(pid):
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def flood(swarm, tasks):
    """Tasks a second of one run."""
    settings = ["--set", "noop.mode=batch", "--set", f"noop.tasks={tasks}"]
    command = [sys.executable, ROOT / "client.py", ROOT / "benchmarks/noop.py", "--json", *settings]
    run = subprocess.run([*command, "--access", swarm.access], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])["result"]


def quiet_cost(address, pid, seconds=5.0):
    """Seconds of CPU of the master per question, and what it takes without any in the same time."""
    before = cpu_of(pid)
    time.sleep(seconds)
    alone = cpu_of(pid) - before
    before = cpu_of(pid)
    with Viewers(address, 10, 0.05) as viewers:
        time.sleep(seconds)
    return (cpu_of(pid) - before - alone) / len(viewers.told("bytes"))


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=3_000_000)
    parser.add_argument("--viewers", type=int, default=10)
    parser.add_argument("--lease", type=int, default=0, help="tasks in a lease at most")
    options = parser.parse_args()
    words = [f"master.max_lease={options.lease}"] if options.lease else []
    with LocalSwarm("2", {"master": words, "slave": []}) as swarm:
        flood(swarm, options.tasks)  # everything warms up
        rates, counts, spent = {0: [], options.viewers: []}, [], {0: 0.0, options.viewers: 0.0}
        pid = rpc.Proxy(swarm.address).status()["pid"]
        for number in range(options.rounds):
            for count in sorted(rates, reverse=number % 2 == 1):
                with Viewers(swarm.address, count) as viewers:
                    before = cpu_of(pid)
                    rates[count].append(flood(swarm, options.tasks))
                    spent[count] += cpu_of(pid) - before
                counts += viewers.told("bytes")
            print(f"round {number + 1}: " + ", ".join(f"{rates[count][-1]:,.0f}/s with {count}" for count in rates))
        middle = {count: statistics.median(found) for count, found in rates.items()}
        ratio = statistics.median(b / a for a, b in zip(rates[0], rates[options.viewers], strict=True))
        print(f"medians {middle[0]:,.0f}/s and {middle[options.viewers]:,.0f}/s; of pairs {100 * ratio - 100:+.1f} %")
        print(f"an answer {statistics.median(counts):,.0f} bytes, at most {max(counts):,}")
        for count, seconds in spent.items():
            each = 1e6 * seconds / options.rounds / options.tasks
            print(f"the master took {each:.2f} µs of CPU a task with {count} who look on, start of the client included")
        print(f"a question {1000 * quiet_cost(swarm.address, pid):.2f} ms of the master's CPU")


if __name__ == "__main__":
    main()
