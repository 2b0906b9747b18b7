"""Children of a node: forked by the zygote, or spawned where there is no fork."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from concurrent_swarm import rpc, tasks

PATIENCE = 60.0
STATUS = Path("/proc/self/status")
MYSELF = STATUS.read_text() if STATUS.exists() else ""

LOOK = '''
import os, signal, sys
from concurrent_swarm.tasks import Task

class Look(Task):
    def __call__(self):
        print("looking")
        os.write(2, b"around\\n")
        return {
            "pid": os.getpid(), "zmq": "zmq" in sys.modules, "leader": os.getsid(0) == os.getpid(),
            "files": sorted(map(int, os.listdir("/proc/self/fd"))), "variables": sorted(os.environ),
            "interrupts": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        }
'''


@pytest.fixture
def setup(tmp_path):
    """What a worker of the little application above is told."""
    source = tmp_path / "look.py"
    source.write_text(LOOK)
    bundle = rpc.make_bundle(source)
    root = rpc.open_bundle(bundle.digest, bundle.manifest, bundle.zip, tmp_path / "apps")
    return {"root": str(root), "manifest": bundle.manifest}


@pytest.fixture(params=["Zygote", "Spawner"])
def nursery(request, monkeypatch):
    """Both makers of children."""
    monkeypatch.setenv("A_SECRET_OF_THE_NODE", "x")
    made = getattr(tasks, request.param)()
    yield made
    made.stop()


def send_one(sock, setup, lease=1):
    """Sends a lease of one task by hand."""
    head = json.dumps({"classes": [[setup["manifest"]["module"], "Look", False]]}).encode()
    parts = [head, b"", rpc.dumps([{"name": "look", "system_id": None, "client_id": None}])]
    for buffer in rpc.pack_stream(["run", lease, "c1", 0, 0, 1, 1, 1, 0, {}], parts):
        sock.setblocking(True)
        sock.sendall(buffer)


def run_one(sock, setup, lease=1):
    """Sends a lease of one task by hand, and waits for its result."""
    send_one(sock, setup, lease)
    return result_on(sock)


def result_on(sock):
    """Waits for the result of such a lease."""
    receiver, calls = rpc.Receiver(sock), []
    sock.settimeout(PATIENCE)
    while not calls:
        calls += receiver.receive()
    (call, parts) = calls[0]
    assert call[0] == "result" and not call[4], call
    return rpc.open_sealed(parts[0])[0]


def until(condition, what):
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, what
        time.sleep(0.01)
    return found


def test_a_worker_runs_a_lease_and_ends_when_its_socket_closes(nursery, setup):
    token, sock = nursery.fork("worker", setup["root"])
    assert run_one(sock, setup)["pid"] != os.getpid()
    sock.close()
    events = until(lambda: [e for e in nursery.receive() if e[0] == "died"], "the death is told")
    assert events == [["died", token, "exit code 0"]]


def test_a_worker_never_has_zeromq_nor_the_nodes_secrets_and_is_deaf_to_ctrl_c(nursery, setup):
    _, sock = nursery.fork("worker", setup["root"])
    seen = run_one(sock, setup)
    assert not seen["zmq"] and "A_SECRET_OF_THE_NODE" not in seen["variables"] and seen["interrupts"]
    sock.close()


@pytest.mark.skipif("voluntary_ctxt" not in MYSELF, reason="only Linux counts how often a process waits")
def test_a_worker_sleeps_on_while_its_node_reads_what_it_has_sent(nursery, setup):
    _, sock = nursery.fork("worker", setup["root"])
    told = Path(f"/proc/{run_one(sock, setup)['pid']}/status")

    def status(name):
        return re.search(rf"^{name}:\s*(\S+)", told.read_text(), re.MULTILINE)[1]

    woken = 0
    for lease in range(2, 12):
        send_one(sock, setup, lease)
        until(lambda: select.select([sock], [], [], 0)[0] and status("State") == "S", "its result is there, it sleeps")
        before = int(status("voluntary_ctxt_switches"))
        result_on(sock)
        until(lambda: status("State") == "S", "it sleeps, still or again")
        woken += int(status("voluntary_ctxt_switches")) - before
    assert woken < 5
    sock.close()


def test_a_killed_worker_is_reported_with_the_signal(nursery, setup):
    token, sock = nursery.fork("worker", setup["root"])
    run_one(sock, setup)
    nursery.kill(token)
    events = until(lambda: [e for e in nursery.receive() if e[0] == "died"], "the death is told")
    assert events == [["died", token, "killed by SIGKILL"]]
    sock.close()


def test_a_forked_worker_leads_a_session_and_has_no_file_but_0_1_2_and_its_socket(setup):
    zygote = tasks.Zygote()
    try:
        _, sock = zygote.fork("worker", setup["root"])
        seen = run_one(sock, setup)
        assert seen["leader"] and len(seen["files"]) == 5, "0, 1, 2, the socket, and the folder that was listed"
    finally:
        zygote.stop()


def test_what_a_worker_prints_goes_into_the_pipe_that_it_was_given(nursery, setup):
    read, write = os.pipe()
    _, sock = nursery.fork("worker", setup["root"], write)
    os.close(write)
    run_one(sock, setup)
    sock.close()
    with os.fdopen(read) as pipe:
        assert pipe.read() == "looking\naround\n", "and the end comes with the worker's"


@pytest.fixture
def wired(ends):
    """A wire, what the node at its other end hears, and what that says."""
    ours, theirs = ends
    ours.settimeout(PATIENCE)
    return tasks.Wire(theirs), rpc.Receiver(ours), lambda *call, parts=(): ours.sendall(
        b"".join(rpc.pack_stream([*call], parts)))


def in_thread(function, *args):
    """Calls it in a thread of its own; returns that, and where its result will be."""
    got = []
    thread = threading.Thread(target=lambda: got.append(function(*args)), daemon=True)
    thread.start()
    return thread, got


def test_threads_of_a_task_that_fetch_at_once_get_each_its_own(wired):
    wire, node, say = wired
    threads = {key: in_thread(wire.fetch, key) for key in "abcd"}
    for _ in threads:
        (((method, key), _),) = node.receive()
        assert method == "fetch_shared"
        say("shared", key, 0, 1, parts=[key.encode()])
    for key, (thread, got) in threads.items():
        thread.join(PATIENCE)
        assert got == [key.encode()]


def test_a_thread_that_still_fetches_when_its_task_has_ended_gets_what_it_waits_for_and_holds_nobody_up(wired):
    wire, node, say = wired
    left, got = in_thread(wire.fetch, "a")
    assert node.receive() == [(["fetch_shared", "a"], [])]
    assert not wire.unwanted(1)
    main, calls = in_thread(wire.next)
    say("drop", 1)
    say("shared", "a", 0, 1, parts=[b"a"])
    say("run", 2)
    for thread in (left, main):
        thread.join(PATIENCE)
    assert got == [b"a"] and calls == [(["run", 2], [])]


def test_a_child_that_reads_its_own_output_takes_nothing_but_that(monkeypatch):
    with contextlib.closing(rpc.Loop(lambda now: None)) as loop:
        ear = tasks.Ear(loop, 1000)
        said = []
        ear.send = said.extend
        os.write(ear.theirs, b"x")
        asked = ear._written.poll(0)
        assert asked and os.read(ear.fileno(), 1) == b"x"  # between the two, as by /proc/self/fd/1
        with monkeypatch.context() as patch:
            patch.setattr(ear, "_written", SimpleNamespace(poll=lambda wait: asked))
            ear.settle()
        os.write(ear.theirs, b"y")
        ear.settle()
        assert [text for _, text, _ in said] == ["y"]
        ear.close()
        os.close(ear.theirs)


def test_workers_die_with_a_node_that_is_killed(setup, tmp_path):
    program = tmp_path / "node.py"
    program.write_text(
        "import time\nfrom concurrent_swarm import tasks\n"
        "if __name__ == '__main__':\n"
        "    zygote = tasks.Zygote()\n"
        f"    held = zygote.fork('worker', {setup['root']!r})\n"
        "    while True:\n"
        "        for event in zygote.receive():\n"
        "            print(event[2], zygote._process.pid, flush=True)\n"
        "        time.sleep(0.01)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    node = subprocess.Popen([sys.executable, program], env=environ, stdout=subprocess.PIPE, text=True)
    pids = list(map(int, node.stdout.readline().split()))
    node.send_signal(signal.SIGKILL)
    node.wait()
    node.stdout.close()
    until(lambda: not any(map(alive, pids)), f"{pids} are gone")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
