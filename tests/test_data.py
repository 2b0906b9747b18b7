"""Large data on a whole swarm: by reference, by frames and over TCP; published objects; memory, faults, bad peers.

The applications are in `apps/data.py`. What they report as `right` was compared with what was sent, byte by byte.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import APPS, CHECKOUT, descriptors_of

from concurrent_swarm import rpc, tasks

numpy = pytest.importorskip("numpy")

MIB = 1 << 20
NO = ("--set", "node.by_reference=no")
SIZES = [
    size + more
    for size in (0, rpc.PART_BY_FILE, tasks.GROUP_BYTES, rpc.INLINE, rpc.BY_FILE, rpc.LARGE, rpc.MAPPED, MIB, 5 * MIB)
    for more in (-1, 0, 1)
    if size + more >= 0
]


# -- tools ---------------------------------------------------------------------------------------------------------


def run(swarm, app, sizes=(MIB,), *args, seconds=60, **items):
    """What an application of apps/data.py reports, run to its end."""
    options = [f"data.{name}={value}" for name, value in items.items()]
    options.append(f"data.sizes={','.join(map(str, sizes))}")
    words = [word for option in options for word in ("--set", option)]
    ended = swarm.run_client("data.py", "--app", app, *words, *args, seconds=seconds)
    assert ended.about["result"], ended.err
    return {**ended.about["result"], "log": ended.err, "code": ended.code}


def check(about, right):
    """Asserts that so many values came and were right, and no other."""
    assert (about["right"], about["wrong"], about["errors"]) == (right, [], []), about["log"]


def without_socket_file(here):
    """From now on nodes come to this master by TCP, as from another machine."""
    os.unlink(json.loads((here.master.folder / "keys" / "client.access").read_text())["addresses"]["ipc"])
    return here


def store_of(node):
    """The folder with a node's payloads, by the lock that it holds; None if it has none."""
    root = rpc.payload_root()
    locks = [path for path in descriptors_of(node.pid).values() if path.startswith(root) and path.endswith("/lock")]
    return Path(locks[0]).parent if locks else None


def files_in(folder):
    return sorted(set(os.listdir(folder)) - {"lock"})


def nodes_of(here):
    return [here.master, *here.slaves]


def spool_of(here):
    """The files that the master keeps on the disk."""
    return [path for path in (here.master.folder / "spool").rglob("*") if path.is_file() and path.name != "lock"]


# -- there and back ------------------------------------------------------------------------------------------------

KINDS = ["bytes", "bytearray", "array", "nested"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["Echoes", "OneByOne", "InSystem"])
def test_values_of_every_size_come_back_as_they_were(swarm_of_module, app, kind):
    about = run(swarm_of_module, app, SIZES, kind=kind)
    check(about, len(SIZES))
    assert about["local"]


@pytest.fixture(scope="module", params=["master", "slave", "client", "tcp"])
def swarm_by_frames(request):
    """A swarm in which large data cannot go by reference everywhere, and the words for its clients."""
    from conftest import Swarm

    one, node = Swarm(), request.param
    try:
        one.start_master(*(NO if node == "master" else ()))
        if node == "tcp":
            without_socket_file(one)
        one.start_slave(*(NO if node == "slave" else ()), workers=1)
        yield one, NO if node == "client" else (), node == "slave"
    finally:
        one.close()


@pytest.mark.parametrize("app", ["Echoes", "OneByOne", "InSystem"])
def test_values_come_back_where_a_node_does_not_go_by_reference(swarm_by_frames, app):
    here, words, local = swarm_by_frames
    about = run(here, app, SIZES, *words, kind="nested")
    check(about, len(SIZES))
    assert about["local"] == local


@pytest.mark.parametrize("app", ["Echoes", "InSystem"])
def test_values_come_back_without_a_swarm(app):
    command = [sys.executable, "client.py", str(APPS / "data.py"), "--app", app, "--workers", "0", "--json",
               "--set", "data.kind=nested", "--set", f"data.sizes={','.join(map(str, SIZES))}"]  # fmt: skip
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["result"]["right"] == len(SIZES), done.stderr.decode()


@pytest.mark.parametrize("size", [rpc.INLINE + 1, MIB])
@pytest.mark.parametrize("app", ["ReusesResults", "ClearsResults", "ReusesTasks"])
def test_a_value_is_what_it_was_when_it_was_handed_over(swarm_of_module, app, size):
    check(run(swarm_of_module, app, [size], count=12), 12)


@pytest.mark.parametrize("app", ["ReusesResults", "ReusesTasks"])
def test_a_value_is_what_it_was_when_it_was_handed_over_to_frames(swarm_by_frames, app):
    here, words, _ = swarm_by_frames
    check(run(here, app, [MIB], *words, count=12), 12)
