"""The escape suite: what tasks on a slave, and task systems on the master, try in order to get out, and do not.

The attempts are in apps/escape.py; a *trial* runs all of them on a swarm of its own, as one user, at one level of the
sandbox. Where nothing confines them they succeed: that shows that a refusal means something.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import APPS, CHECKOUT, NOBODY, Swarm, processes_with, running, text_of, wait_until, zygote_of

from concurrent_swarm import rpc

ME = "root" if os.getuid() == 0 else "user"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64",
                                reason="the attempts are written for Linux on x86_64")

spec = importlib.util.spec_from_file_location("escape", APPS / "escape.py")
escape = importlib.util.module_from_spec(spec)
spec.loader.exec_module(escape)

# What cannot succeed, also where nothing confines it: nothing of the kind is there to begin with.
NOTHING_THERE = {"inherited_descriptors", "keys_in_memory", "keys_in_variables", "variables_of_before", "x32",
                 "signal_of_a_socket", "become_root", "raise_own_limit", "descriptors_in_flight"}
# What only root could do anyway.
ONLY_ROOT = {
    "secrets_by_handle", "secrets_by_link_of_descriptor", "list_homes", "into_python", "mode_of_what_is_read",
    "times_of_what_is_read", "kernel_settings", "device",
    "raise_own_priority", "run_in_real_time", "raw", "packet", "become_another", "another_group",
    "capabilities", "mount", "umount", "new_mount", "open_tree", "mount_setattr", "pivot_root", "chroot", "unshare",
    "bpf", "quota", "swap", "load_module", "unload_module", "reboot", "ports", "all_ports", "accounting", "host_name",
    "set_time", "kernel_log", "fanotify", "other_root", "other_namespace", "set_attribute", "advise_memory",
}


# -- a trial -------------------------------------------------------------------------------------------------------


class Listening:
    """Somebody listens in every way there is; who gets through has got out."""

    def __init__(self, folder, stack):
        self.stack, self.name = stack, f"escape-{secrets.token_hex(8)}"
        self.told = {
            "tcp": self._bound(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "tcp6": self._bound(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            "udp": self._bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "unix": self._bound(socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/stream.sock"),
            "datagrams": self._bound(socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/datagrams.sock"),
            "shared": self.name, "abstract": self.name, "key": secrets.randbelow(1 << 30) + 1,
        }
        self._bound(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.name}")
        self._share(self.told["key"])

    def _bound(self, family, kind, address):
        sock = self.stack.enter_context(socket.socket(family, kind))
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        if isinstance(address, str) and address[0] == "/":
            os.chmod(address, 0o777)
        return sock.getsockname()

    def _share(self, key):
        """Memory for everybody, in both ways."""
        path = f"/dev/shm/{self.name}"
        Path(path).write_bytes(b"not for tasks")
        os.chmod(path, 0o666)
        self.stack.callback(os.unlink, path)
        number = ctypes.CDLL(None).shmget(key, 4096, 0o1666)
        self.stack.callback(ctypes.CDLL(None).shmctl, number, 0, None)


def sums_of(*texts):
    """Names of secrets by the sums of their words, which tell nobody the words."""
    found = {}
    for label, text in texts:
        for word in re.findall(r'"([^"]{32,43})"', text) or [text]:
            found[hashlib.sha256(word.encode()).hexdigest()] = label
    return found


class Trial:
    """All attempts, on a swarm of a user at a level; `rows` by where they ran."""

    def __init__(self, user, level, python, stack, groups=None):
        self.level, self.stack, self.secret = level, stack, secrets.token_urlsafe(32)
        here = self.here = Swarm()
        stack.callback(here.close)
        if python:
            here.python, here.code = python.executable, python.folder
        if user != ME:
            here.user = NOBODY
        self.variables = {**(python.environ(here.folder) if python else {}), "A_SECRET_OF_THE_OWNER": self.secret}
        for folder in (here.folder, here.temporary):
            os.chown(folder, self.uid, self.uid if here.user else -1)
            os.chmod(folder, 0o755 if python else 0o700)  # the way to workers that are users of their own
        self.start()
        self.told = {**self.where(), "ways": [*escape.EXECS, *escape.ENDS], "groups": groups}

    @property
    def uid(self):
        return self.here.user or os.getuid()

    def start(self):
        """Nodes, a neighbour, baits and a victim."""
        here, level = self.here, self.level
        here.start_master("--set", f"master.sandbox={level}", journal=True, **self.variables)
        self.slave = here.start_slave("--set", f"slave.sandbox={level}", **self.variables)
        self.neighbour = here.start_client("neighbour.py", **self.variables)
        line = wait_until(lambda: re.search(r"\{.*\}", self.neighbour.err), f"a neighbour {self.neighbour.err}")
        self.hidden = json.loads(line.group())
        self.stack.callback(Path(self.hidden["file"]).unlink, missing_ok=True)
        self.outside = self.folder("outside")
        for name in escape.ATTEMPTS["writing"]:
            self.outside.joinpath(name).write_text("a bait")
            os.chown(self.outside / name, self.uid, -1)
        self.before = self.baits()
        self.victim = subprocess.Popen(["sleep", "1000"], user=self.here.user)
        self.stack.callback(lambda: (self.victim.kill(), self.victim.wait()))

    def folder(self, name):
        made = Path(self.here.folder, name)
        made.mkdir()
        os.chown(made, self.uid, -1)
        return made

    def baits(self):
        """What can be seen of the files outside."""
        found = {".": os.stat(self.outside).st_mode}
        for path in sorted(self.outside.iterdir()):
            if not path.name.endswith(".sock"):
                status = os.lstat(path)
                text = text_of(path) if stat.S_ISREG(status.st_mode) else ""
                found[path.name] = (text, status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
                                    status.st_mtime_ns, os.listxattr(path, follow_symlinks=False))
        return found

    def where(self):
        """All that an attempt needs to know."""
        master, slave = self.here.master, self.slave
        keys = [master.folder / "keys" / "master.json", slave.folder / "keys" / "node.json",
                master.folder / "keys" / "token.json"]
        files = {"access": master.folder / "keys" / "slave.access", "keys": keys[0], "node": keys[1], "token": keys[2],
                 "journal": master.folder / "journal.db", "audit": master.folder / "logs" / "audit.jsonl",
                 "shadow": "/etc/shadow", "neighbour": self.hidden["file"], "source": self.hidden["source"]}
        processes = {"slave": slave.pid, "zygote": zygote_of(slave.pid), "master": master.pid,
                     "neighbour": self.hidden["pid"]}
        listening = Listening(self.outside, self.stack)
        user_id = self.uid
        return {
            **listening.told, "secrets": {label: str(path) for label, path in files.items()}, "pids": processes,
            "control": list(rpc.parse_address(self.here.address)),
            "compute": self.here.proxy.status()["addresses"]["ipc"],
            "state": self.here.folder, "outside": str(self.outside), "victim": self.victim.pid,
            "payloads": f"/dev/shm/concurrent-swarm-{user_id}",
            "hashes": sums_of(("owner", self.secret), *[(path.name, path.read_text()) for path in keys]),
        }

    def run(self, app):
        """The rows of one application."""
        ways = [*escape.EXECS, *escape.ENDS] if app == "Escape" else [*escape.EXECS] * (self.level != "off")
        path = Path(self.here.folder, f"{app}.json")
        path.write_text(json.dumps({**self.told, "ways": ways}))
        client = self.here.run_client("escape.py", "--app", app, "--set", f"escape.told={path}", **self.variables)
        Path(self.here.temporary, "program").unlink(missing_ok=True)  # it could not clean up after it had succeeded
        assert client.about.get("result"), f"{client.out[-2000:]}\n{client.err[-2000:]}"
        return client.about["result"]

    def harm(self):
        """What is not any more as it was."""
        found = [f"{name}: {self.before.get(name)} -> {now}" for name, now in self.baits().items()
                 if self.before.get(name) != now]
        found += [f"{name} is gone" for name in self.before.keys() - self.baits().keys()]
        found += ["a signal has ended a process"] if self.victim.poll() is not None else []
        ended = [name for name, pid in self.told["pids"].items() if not text_of(f"/proc/{pid}/stat")]
        return found + [f"{name} has ended" for name in ended]


class Outcome(NamedTuple):
    """What came of a trial."""

    user: str
    rows: dict  # by place
    harm: list
    active: dict  # what the slave said of its sandbox


TRIALS = {}  # by parameter, for the tests that look at one


@pytest.fixture(scope="module")
def trial(request):
    """The outcome of one trial, which runs when the first test asks for it."""
    user, level, *copied = request.param.split("-")
    if request.param not in TRIALS:
        shared = user != ME or copied
        with ExitStack() as stack:
            one = Trial(user, level, request.getfixturevalue("python") if shared else None, stack)
            rows = {"worker": one.run("Escape"), "host": one.run("EscapeFromHost")}
            active = rpc.Proxy(one.slave.started["address"]).status()["sandbox"]
            TRIALS[request.param] = Outcome(user, rows, one.harm(), active)
    return TRIALS[request.param]


def got_out(rows):
    return [f"{name}: {text}" for _, name, out, text in rows if out]


SLOW = pytest.mark.slow
CONFINED = [
    f"{ME}-standard", "nobody-standard", *(pytest.param(f"{user}-strict", marks=SLOW) for user in (ME, "nobody")),
    pytest.param(f"{ME}-standard-shared", marks=SLOW),  # with this Python, each worker can be a user of its own
]
# What a refusal looks like; anything else would be a fault in the attempt.
REFUSED = re.compile("PermissionError|OSError: \\[Errno|nothing was there|ValueError: not allowed"
                     "|DatabaseError|OperationalError: unable to open|.* killed by SIGSYS")


@pytest.mark.parametrize("group", escape.ATTEMPTS)
@pytest.mark.parametrize("place", ["worker", "host"])
@pytest.mark.parametrize("trial", CONFINED, indirect=True)
def test_nothing_that_is_tried_gets_out(trial, place, group):
    tried = [row for row in trial.rows[place] if row[0] == group]
    ending = {*escape.EXECS, *(escape.ENDS if place == "worker" else ())} if group == "programs" else set()
    assert {name for _, name, *_ in tried} == escape.ATTEMPTS[group].keys() | ending
    assert got_out(tried) == []
    assert [f"{name}: {text}" for _, name, _, text in tried if not REFUSED.match(text)] == []


@pytest.mark.parametrize("trial", CONFINED, indirect=True)
def test_what_is_outside_is_as_it_was(trial):
    assert trial.harm == []


@pytest.mark.slow
@pytest.mark.parametrize("trial", [f"{ME}-standard-shared"], indirect=True)
def test_the_attempts_ran_in_workers_that_were_users_of_their_own(trial):
    assert trial.active["uid"] and trial.active["missing"] == []


@pytest.mark.parametrize("trial", [f"{ME}-off", pytest.param("nobody-off", marks=SLOW)], indirect=True)
def test_where_nothing_confines_it_every_attempt_gets_out(trial):
    failed = {name: text for _, name, out, text in trial.rows["worker"] if not out}
    missing = {name for name, text in failed.items() if "not implemented" in text or "not supported" in text}
    others = failed.keys() - NOTHING_THERE - missing - (ONLY_ROOT if trial.user != "root" else set())
    assert {name: failed[name] for name in others} == {}
    assert "a signal has ended a process" in trial.harm and len(trial.harm) > 20
    if missing:
        pytest.skip(f"all others got out; this kernel has no {', '.join(sorted(missing))}")


# -- what was granted, and no more ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generous():
    """A slave whose owner lets applications start programs, and connect on this machine."""
    with running(slave=["--set", "slave.allow_subprocess=true", "--set", "slave.allow_network=127.0.0.1:*"]) as here:
        yield here


def tell(swarm, app, **about):
    """Runs an application with what it is told in JSON."""
    section = Path(app).stem
    return swarm.run_client(app, "--set", f"{section}.told={json.dumps(about)}")


def test_programs_that_a_task_may_start_are_as_confined_and_their_daemons_end_with_the_worker(generous, tmp_path):
    slave, mark = generous.slaves[0], f"daemon-{secrets.token_hex(8)}"
    key = next((slave.folder / "keys").iterdir())
    run = tell(generous, "programs.py", key=str(key), slave=slave.pid, outside=str(tmp_path), mark=mark)
    tried = run.about["result"]["tried"]
    assert {name: text for name, (got, text) in tried.items() if got} == {} and len(tried) == 9
    assert list(tmp_path.iterdir()) == []
    daemons = processes_named(mark)
    assert daemons, "the daemon is not hindered to begin with"
    os.kill(run.about["result"]["pid"], signal.SIGKILL)
    wait_until(lambda: not processes_named(mark), f"the daemon {daemons} has ended with its worker")


def processes_named(mark):
    """Processes with this word on their command line."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if mark in text_of(path)]


def test_a_granted_port_opens_that_port_and_nothing_else(generous, tmp_path):
    with ExitStack() as stack:
        granted, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        path = tmp_path / "connects.py"
        source = (APPS / "connects.py").read_text()
        path.write_text(source.replace("127.0.0.1:1", f"127.0.0.1:{granted.getsockname()[1]}"))
        told = {"granted": granted.getsockname(), "other": other.getsockname(), "unix": unix.getsockname()}
        got = tell(generous, str(path), **told).about["result"]
    assert got.pop("granted") is True
    assert {name for name, out in got.items() if out} == set()


INHERITS = """
import os, sys
from concurrent_swarm import tasks

folder, file, private = os.open("/etc", os.O_RDONLY), os.open("/etc/passwd", os.O_RDONLY), sys.argv[1]
if sys.argv[2] == "confined":
    tasks.confine(tasks.Confinement("standard", private), private)
for attempt in [lambda: os.open("passwd", os.O_RDONLY, dir_fd=folder), lambda: os.open("../root", 0, dir_fd=folder),
                lambda: os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=folder) and os.unlink("made", dir_fd=folder),
                lambda: os.open(f"/proc/self/fd/{file}", os.O_RDONLY), lambda: os.listdir(f"/proc/self/fd/{folder}")]:
    try:
        attempt()
        print("out", end=" ")
    except PermissionError:
        print("in", end=" ")
"""


@pytest.mark.parametrize("how, all_of_them", [("confined", "in"), ("free", "out")])
def test_a_folder_that_was_inherited_leads_nowhere(tmp_path, how, all_of_them):
    if how == "free" and os.getuid():
        pytest.skip("that it would lead somewhere shows to root alone")
    private = tmp_path / "private"
    private.mkdir()
    run = subprocess.run([sys.executable, "-c", INHERITS, str(private), how], capture_output=True, text=True)
    assert run.stdout.split() == [all_of_them] * 5, run.stderr


@pytest.fixture
def alone(tmp_path):
    """Starts a local swarm whose task ends whatever it may, in a PID namespace; a function that counts what lives."""
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("needs root, and the program unshare, for a PID namespace of its own")
    with ExitStack() as stack:

        def start(level):
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "client.py",
                       str(APPS / "killing.py"), "--json", "--local", "--workers", "1",
                       "--set", f"slave.sandbox={level}"]  # fmt: skip
            environ = {**os.environ, "CONCURRENT_SWARM_STATE": str(tmp_path), "ESCAPE": str(tmp_path)}
            run = subprocess.Popen(command, cwd=CHECKOUT, env=environ, stdout=subprocess.PIPE)
            stack.callback(run.stdout.close)
            stack.callback(run.wait, 60)
            stack.callback(run.kill)  # and with it all in its namespace
            return run, lambda: len(processes_with(f"ESCAPE={tmp_path}"))

        yield start


@pytest.mark.slow
def test_a_signal_to_everybody_reaches_nobody(alone):
    run, _ = alone("standard")
    told = json.loads(run.stdout.read().splitlines()[-1])
    assert (run.wait(), told["result"]) == (0, "sent")


@pytest.mark.slow
def test_where_nothing_confines_it_a_signal_to_everybody_ends_the_nodes(alone):
    _, living = alone("off")
    wait_until(lambda: living() >= 4, "master and slave have begun")
    wait_until(lambda: living() <= 2, "nothing is left but the client, which nobody in there can end")
