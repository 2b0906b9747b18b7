"""Measures what a fresh worker costs, without and with its sandbox: from the order to fork it to its first result.

    python benchmarks/workers.py 100

Prints medians in ms of so many workers each, taken in turns, with the CPU time of one, and what of it is the sandbox.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from concurrent_swarm import rpc, tasks

TASK = """import os, time
from concurrent_swarm.tasks import Task

class Look(Task):
    def __call__(self):
        return time.process_time()
"""


def bundle_in(folder):
    """An application with one task, unpacked; where, and the name of its module."""
    source = Path(folder, "look.py")
    source.write_text(TASK)
    bundle = rpc.make_bundle(source)
    return rpc.open_bundle(bundle.digest, bundle.manifest, bundle.zip, Path(folder, "apps")), bundle.manifest["module"]


def one(zygote, root, module, confinement):
    """Seconds until the result of a fresh worker, and of CPU that it took."""
    head = json.dumps({"classes": [[module, "Look", False]]}).encode()
    parts = [head, b"", rpc.dumps([{"name": "look", "system_id": None, "client_id": None}])]
    zygote.receive()  # births and deaths so far
    began = time.perf_counter()
    _, sock = zygote.fork("worker", root, confinement=confinement)
    with sock:
        sock.setblocking(True)
        for buffer in rpc.pack_stream(["run", 1, "c1", 0, 0, 1, 1, 1, 0, {}], parts):
            sock.sendall(buffer)
        receiver = rpc.Receiver(sock)
        while True:
            for call, parts in receiver.receive():
                if call[0] == "result":
                    return time.perf_counter() - began, rpc.open_sealed(parts[0])[0]


def main(count):
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        root, module = bundle_in(folder)
        zygote = tasks.Zygote()
        taken = {"off": [], "standard": []}
        one(zygote, str(root), module, tasks.UNCONFINED)  # it has to start itself first
        for number in range(count):
            for level in taken:
                wanted = tasks.Confinement(level, os.path.join(folder, f"{level}{number}"))
                taken[level].append(one(zygote, str(root), module, wanted))
        zygote.stop()
    middle = {level: [1000 * statistics.median(column) for column in zip(*rows, strict=True)]
              for level, rows in taken.items()}  # fmt: skip
    for level, (wall, cpu) in middle.items():
        print(f"{level:9} {wall:6.2f} ms  {cpu:6.2f} ms of CPU")
    print("sandbox   {:6.2f} ms  {:6.2f} ms of CPU".format(*(b - a for a, b in zip(*middle.values(), strict=True))))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
