"""What does harm in tests is right itself: faults begin, last and end as they were asked for, and leak nothing else."""

import os
import socket
import struct
import subprocess
import sys
import threading
from contextlib import closing, suppress

import pytest
from conftest import PATIENCE, text_of, wait_until

from concurrent_swarm import client, rpc

HARD = struct.pack("ii", 1, 0)  # SO_LINGER: closing is a reset


@pytest.fixture
def nemesis():
    with client.Nemesis(1) as one:
        yield one


@pytest.fixture
def listener():
    """A service, of which the test takes the connections itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.fixture
def idle():
    """A process that does nothing, by the name of a node."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "slave.py"]) as process:
        yield process
        process.kill()


def through(nemesis, listener):
    """A relay, and both ends of a connection through it."""
    relay = nemesis.relay(rpc.format_address(*listener.getsockname()))
    near = socket.create_connection(rpc.parse_address(relay.address))
    far, _ = listener.accept()
    near.send(b"through")
    assert hears(far, PATIENCE) == b"through"
    return relay, near, far


def hears(line, seconds):
    """What comes within the time: bytes, b"" for the end, None for nothing."""
    line.settimeout(seconds)
    with suppress(TimeoutError):
        return line.recv(100)


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_reset_passes_a_partition_only_when_it_heals(nemesis, listener, way):
    relay, near, far = through(nemesis, listener)
    first, last = (near, far) if way == "there" else (far, near)
    with near, far:
        nemesis.partition([relay], ways=way)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
        first.close()
        last.send(b"into the void")  # which does not tell either
        assert hears(last, 0.2) is None
        nemesis.heal([relay])
        with pytest.raises(ConnectionResetError):
            hears(last, PATIENCE)


def test_a_new_connection_passes_a_partition_only_when_it_heals(nemesis, listener):
    relay, near, far = through(nemesis, listener)
    with near, far:
        nemesis.partition([relay])
        with socket.create_connection(rpc.parse_address(relay.address)) as other:
            other.send(b"late")
            listener.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listener.accept()
            nemesis.heal([relay])
            listener.settimeout(PATIENCE)
            with closing(listener.accept()[0]) as late:
                assert hears(late, PATIENCE) == b"late"


def test_one_end_that_is_closed_and_another_that_is_reset_end_the_connection(nemesis, listener):
    _, near, far = through(nemesis, listener)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert hears(far, PATIENCE) == b""
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
        far.close()
        with pytest.raises(ConnectionResetError):
            hears(near, PATIENCE)


class Late(threading.Timer):
    """Has begun already whenever it is cancelled."""

    def cancel(self):
        """Comes too late."""


def test_a_fault_that_is_prolonged_when_its_time_is_up_goes_on(nemesis, idle, monkeypatch):
    monkeypatch.setattr(threading, "Timer", Late)
    nemesis.pause(idle.pid, 0.05)
    (first,) = [thread for thread in threading.enumerate() if isinstance(thread, Late)]
    nemesis.pause(idle.pid, 60)
    first.join()
    wait_until(lambda: state_of(idle.pid) == "T", "the second pause lasts")
    nemesis.resume(idle.pid)
    wait_until(lambda: state_of(idle.pid) != "T", "it goes on")


def state_of(pid):
    return text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


def test_what_the_seed_decides_does_not_depend_on_who_is_there(nemesis, listener):
    with client.Nemesis(1) as other:
        for one, port in ((nemesis, listener.getsockname()[1]), (other, 1)):  # nobody listens at port 1
            for kind in client.GARBAGE:
                one.garbage(f"127.0.0.1:{port}", kind)
        assert nemesis.random.random() == other.random.random()


def test_nodes_are_found_whichever_thread_has_started_them(nemesis):
    started, done = [], threading.Event()

    def start():
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "slave.py"]) as process:
            started.append(process.pid)
            done.wait()
            process.kill()

    thread = threading.Thread(target=start)
    thread.start()
    try:
        wait_until(lambda: started and "slave.py" in text_of(f"/proc/{started[0]}/cmdline"), "it runs")
        assert nemesis.nodes("slave") == started and os.getpid() not in started
    finally:
        done.set()
        thread.join()
