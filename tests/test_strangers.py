"""Who is no part of a swarm: another user of the machine, and whoever listens on the way."""

import json
import os
import re
import secrets
import socket
import stat
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import APPS, NOBODY, descriptors_of, processes_of, running, wait_until, zygote_of

from concurrent_swarm import rpc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is looked at is told by Linux alone")

# What another user tries; it prints what it reached, by kind.
STRANGER = r"""
import ctypes, json, os, resource, signal, socket, sys, urllib.request

told = json.loads(sys.argv[1])
found = {kind: [] for kind in ("listed", "read", "written", "processes", "reached", "sockets", "changed")}

def tried(kind, name, action):
    try:
        found[kind].append([name, str(action())[:200]])
    except (OSError, ValueError):
        pass

def look(path):
    with open(path, "rb") as file:
        return file.read(64)

for folder in told["folders"]:
    for place, folders, names in os.walk(folder):
        if folders or names:
            found["listed"].append(place)
        for name in names:
            path = os.path.join(place, name)
            tried("read", path, lambda: look(path))
            tried("written", path, lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        tried("written", place, lambda: [os.mkdir(place + "/new"), os.rmdir(place + "/new")])
for path in told["files"]:  # a folder that cannot be listed may still be gone through
    tried("read", path, lambda: look(path))
for pid in told["pids"]:
    for name in ("environ", "maps", "mem", "io", "auxv", "stack"):
        tried("processes", f"{pid}/{name}", lambda: look(f"/proc/{pid}/{name}"))
    for name in ("cwd", "root", "exe", "fd/1"):
        tried("processes", f"{pid}/{name}", lambda: os.readlink(f"/proc/{pid}/{name}"))
    tried("reached", f"signal {pid}", lambda: os.kill(pid, signal.SIGCONT))
    tried("reached", f"limit {pid}", lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)))
    tried("reached", f"priority {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 5))
    tried("reached", f"processors {pid}", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)))
    if ctypes.CDLL(None).ptrace(0x4206, pid, None, None) == 0:
        found["reached"].append([f"trace {pid}", ""])
for path in told["sockets"]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            tried("sockets", path, lambda: sock.connect(path))

def ask(address, method, params=(), token=None):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://{address}/", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()

answers = {}
for address in told["addresses"]:
    answers[address] = {name: ask(address, name) for name in told["methods"]}
    for name, params in told["changes"].items():
        for token in (None, "wrong" * 8, "x" * 32):
            answer = json.loads(ask(address, name, params, token))
            if "result" in answer:
                found["changed"].append([name, answer["result"]])
print(json.dumps({"found": found, "answers": answers}))
"""


@pytest.fixture(scope="module")
def inhabited():
    """A swarm as it is by default, with something in it; nothing but its own doors keeps others out of its folder."""
    if os.getuid():
        pytest.skip("only root can be another user too")
    with running(journal=True) as here:
        os.chmod(here.folder, 0o755)
        here.mark = secrets.token_hex(8)
        run = here.run_client("marked.py", "--set", f"marked.seed={here.mark}", "--set", "marked.times=8000")
        assert run.code == 0, run.err
        here.neighbour = here.start_client("neighbour.py")
        line = wait_until(lambda: re.search(r"\{.*\}", here.neighbour.err), "a worker holds something")
        here.hidden = json.loads(line.group())
        yield here


def secrets_of(swarm):
    """The words in the key files of a swarm that are no paths. A key may have a slash too."""
    files = [path for path in Path(swarm.folder).rglob("keys/*") if path.is_file()]
    return {word for path in files for word in re.findall(r'"([^"/ ][^" ]{31,42})"', path.read_text())}


def nodes_of(swarm):
    """Its processes, those of what runs in it, and the client."""
    nodes = [swarm.master.pid, *(slave.pid for slave in swarm.slaves)]
    return [*nodes, *map(zygote_of, nodes), swarm.hidden["pid"], swarm.neighbour.pid]


def visit(swarm, user, executable, environ):
    """What that user reaches of the swarm."""
    folders = [str(path) for path in Path(swarm.folder).iterdir() if path.is_dir()]
    folders.append(f"/dev/shm/concurrent-swarm-{os.getuid()}")
    every = [path for folder in folders for path in Path(folder).rglob("*")]
    addresses = [swarm.address, *(slave.started["address"] for slave in swarm.slaves)]
    told = {
        "folders": folders, "pids": nodes_of(swarm), "addresses": addresses,
        "files": [str(path) for path in every if path.is_file()],
        "sockets": [str(path) for path in every if stat.S_ISSOCK(path.lstat().st_mode)],
        "methods": [one["name"] for one in swarm.proxy.rpc.discover()["methods"]],
        "changes": {"config.set": ["master", "max_lease", "7"], "slave.set_workers": ["s1", 3], "slave.drain": ["s1"],
                    "slave.remove": ["s1"], "system.cancel": ["1"], "system.pause": ["1"], "system.step": ["1"],
                    "app.upload": ["x.py", ""], "app.start": ["0" * 16], "app.stop": ["1"]},
    }  # fmt: skip
    run = subprocess.run([executable, "-c", STRANGER, json.dumps(told)], user=user, group=user, extra_groups=[],
                         env=environ, stdout=subprocess.PIPE, text=True, timeout=120)
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def visited(inhabited, python):
    return visit(inhabited, NOBODY, python.executable, python.environ("/"))


def test_another_user_of_the_machine_reaches_nothing_of_a_running_swarm(visited):
    assert {kind: reached[:5] for kind, reached in visited["found"].items() if reached} == {}


def test_what_the_control_channel_tells_to_a_guest_holds_no_key_and_no_payload(inhabited, visited):
    words = {*secrets_of(inhabited), f"of-the-task-{inhabited.mark}"}
    text = json.dumps(visited["answers"])
    assert len(words) > 6 and len(text) > 500
    assert {word for word in words if word in text} == set()


def test_command_lines_which_everybody_can_read_hold_no_key(inhabited):
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(inhabited.folder)]
    assert len(lines) > 4
    assert [line for line in lines if any(word in line for word in secrets_of(inhabited))] == []


def test_the_user_of_the_swarm_reaches_all_that_a_stranger_has_tried(inhabited, visited):
    found = visit(inhabited, 0, sys.executable, dict(os.environ))["found"]
    assert {kind for kind, reached in found.items() if not reached} == {"changed"}, "that takes the token"
    assert len(found["read"]) > 20 and len(found["processes"]) > 40


# -- on the network ------------------------------------------------------------------------------------------------


def inodes_of(pids):
    """Of the sockets that these processes have."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            for text in descriptors_of(pid).values():
                found |= {int(number) for number in re.findall(r"socket:\[(\d+)\]", text)}
    return found


def address_of(text):
    """An address as Linux writes it: words of four bytes, each in the order of the processor."""
    host, port = text.split(":")
    host = host.removeprefix("0000000000000000FFFF0000")  # IPv4 in an IPv6 socket
    words = [bytes.fromhex(host[i : i + 8])[:: 1 if sys.byteorder == "big" else -1] for i in range(0, len(host), 8)]
    return socket.inet_ntop(socket.AF_INET6 if len(words) > 1 else socket.AF_INET, b"".join(words)), int(port, 16)


def listening(pids):
    """(kind, host, port) of whatever these processes can be reached by."""
    mine, found = inodes_of(pids), []
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if int(words[9]) in mine and (words[3] == "0A" or not kind.startswith("tcp")):
                found.append((kind, *address_of(words[1])))
    return found


def test_by_default_nothing_listens_beyond_this_machine(inhabited):
    doors = listening(processes_of(inhabited.folder))
    assert {door[2] for door in doors} >= {int(inhabited.address.rpartition(":")[2])} and len(doors) >= 3
    assert [door for door in doors if not rpc.is_loopback(door[1])] == []


class Capture(threading.Thread):
    """Reads all that goes over the loopback device."""

    def __init__(self):
        super().__init__()
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
        self.sock.bind(("lo", 0))
        self.sock.settimeout(0.1)
        self.packets, self.ended = [], threading.Event()

    def run(self):
        while not self.ended.is_set():
            with suppress(TimeoutError):
                self.packets.append(self.sock.recv(1 << 17))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.join()
        self.sock.close()

    @property
    def dropped(self):
        """How many packets it has missed."""
        return struct.unpack("II", self.sock.getsockopt(263, 6, 8))[1]

    def has(self, words):
        """Those of these words that were in a packet."""
        return {word for word in words if any(word in packet for packet in list(self.packets))}


def say_in_clear(words):
    """Sends them over TCP as they are."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as line:
        line.sendall(b" ".join(words))


@pytest.mark.slow
def test_no_byte_of_source_argument_published_object_output_or_result_is_seen_on_the_way():
    if os.getuid():
        pytest.skip("only root may listen on a network device")
    seed, times = secrets.token_hex(8), 5000
    bundle = rpc.make_bundle(APPS / "marked.py").zip
    middle = [bundle[at : at + 24] for at in range(40, len(bundle) - 100, 24)]
    marks = [f"{what}-of-the-task-{seed}".encode() for what in ("argument", "published", "printed", "result")]
    words = [*marks, *middle, b"a secret recipe of which"]
    with running(slaves=0) as here, Capture() as capture:
        door = here.proxy.status()["addresses"]["tcp"]
        here.start_slave("--set", f"node.compute_address={door}", workers=1)
        run = here.run_client("marked.py", "--set", f"node.compute_address={door}", "--set", f"marked.seed={seed}",
                              "--set", f"marked.times={times}")
        assert (run.code, run.about["result"]) == (0, len(f"result-of-the-task-{seed} ") * times), run.err
        port = struct.pack("!H", int(door.rpartition(":")[2]))
        ciphered = sum(len(packet) for packet in list(capture.packets) if port in packet[34:38])
        assert ciphered > 4 * len(marks[0]) * times, "argument and result came by there, to and from the master"
        assert capture.has(words) == set()
        say_in_clear(words)
        wait_until(lambda: capture.has(words) == set(words), "what goes in clear is seen")
        assert capture.dropped == 0
