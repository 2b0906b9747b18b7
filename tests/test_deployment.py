"""Nodes under somebody else's care: what they tell a supervisor, which signals they heed, what they may use.

The files and commands of docs/deployment.md are started as they stand there, with this Python in place of
/opt/concurrent.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, PATIENCE, Swarm, children_of, wait_until
from test_cli import Typed, cli  # noqa: F401 (a fixture)

from concurrent_swarm import components, master, rpc, slave, tasks

PAGE = (CHECKOUT / "docs" / "deployment.md").read_text("utf-8")
UNITS = dict(re.findall(r"```ini\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
ROLES = {"concurrent-master.service": "master", "concurrent-slave@.service": "slave"}


class Supervisor:
    """A datagram socket, as systemd has one for its services."""

    def __init__(self, address):
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.heard = []

    def until(self, *words):
        """Listens until a message holds all these lines, and returns what came before it."""
        began, deadline = len(self.heard), time.monotonic() + PATIENCE
        while not self.heard[began:] or not set(words) <= set(self.heard[-1]):
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.heard.append(self.socket.recv(4096).decode().splitlines())
            except TimeoutError:
                raise AssertionError(f"no {words} in {self.heard}") from None
        return [word for message in self.heard[began:-1] for word in message]


@pytest.fixture
def supervisor(tmp_path):
    one = Supervisor(str(tmp_path / "notify"))
    yield one
    one.socket.close()


@pytest.fixture
def nodes():
    """Where nodes are started one by one."""
    one = Swarm()
    yield one
    one.close()


# -- what a node tells ---------------------------------------------------------------------------------------------


def test_a_master_tells_that_it_is_ready_what_it_is_about_and_that_it_stops(nodes, supervisor):
    node = nodes.start("master", "--port", "0", "--no-journal", NOTIFY_SOCKET=supervisor.address)
    assert supervisor.until("READY=1") == []
    assert supervisor.until("STATUS=0 slaves, 0 workers, 0 busy") == []
    node.send(signal.SIGTERM)
    supervisor.until("STOPPING=1")
    assert node.wait().code == 143


@pytest.mark.slow
def test_a_slave_is_ready_once_it_has_joined(nodes, supervisor):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = ("--workers", 1, "--master", f"127.0.0.1:{port}")
    node = nodes.start("slave", *words, ready=False, NOTIFY_SOCKET=supervisor.address)
    supervisor.until(f"STATUS=waiting for the master: no master at 127.0.0.1:{port} (connection refused)")
    nodes.start("master", "--port", port, "--no-journal")
    assert "READY=1" not in supervisor.until("READY=1")
    supervisor.until(f"STATUS=s1 at 127.0.0.1:{port}: 1 workers, 0 busy")
    node.send(signal.SIGTERM)
    supervisor.until("STOPPING=1")
    assert node.wait().code == 143


@pytest.mark.slow
def test_a_node_that_is_watched_gives_signs_of_life(nodes):
    at = Supervisor(f"@concurrent-test-{os.getpid()}")  # an address without a file
    with contextlib.closing(at.socket):
        node = nodes.start("master", "--port", "0", NOTIFY_SOCKET=at.address, WATCHDOG_USEC="4000000")
        for _ in range(3):
            at.until("WATCHDOG=1")
        node.send(signal.SIGSTOP)
        at.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while at.socket.recv(4096):
                pass
        at.socket.settimeout(2)
        with pytest.raises(TimeoutError):
            at.socket.recv(4096)
        node.send(signal.SIGCONT)
        at.until("WATCHDOG=1")


def alone(supervisor, **environ):
    """What a node tells its supervisor through, without the node."""
    environ |= {"NOTIFY_SOCKET": supervisor.address, "HOME": "/"}
    one = rpc.Supervisor(environ)
    assert environ == {"HOME": "/"}, "what a node starts could speak for it"
    return one


@pytest.mark.parametrize("pid, told", [("", True), (str(os.getpid()), True), ("1", False)])
def test_only_the_process_that_is_watched_gives_signs_of_life(supervisor, pid, told):
    one = alone(supervisor, WATCHDOG_USEC="4000000", WATCHDOG_PID=pid)
    one.ready()
    one.look(lambda: "at work")
    one.look(lambda: "at work")
    one.tell(STOPPING=1)
    assert supervisor.until("STOPPING=1").count("WATCHDOG=1") == 2 * told


def test_a_status_is_told_when_it_changes(supervisor):
    one = alone(supervisor)
    one.look(lambda: "too early")
    one.ready()
    for status in ("idle", "idle", "busy", "idle"):
        one.look(lambda status=status: status)
    one.tell(STOPPING=1)
    assert supervisor.until("STOPPING=1") == ["READY=1", "STATUS=idle", "STATUS=busy", "STATUS=idle"]


def test_a_supervisor_that_does_not_listen_is_told_when_it_does(tmp_path, supervisor):
    os.rename(supervisor.address, tmp_path / "away")
    one = alone(supervisor)
    one.ready()
    one.look(lambda: "at work")
    os.rename(tmp_path / "away", supervisor.address)
    one.look(lambda: "at work")
    assert supervisor.until("READY=1", "STATUS=at work") == []


ASKING = """
import os
from concurrent_swarm.client import ApplicationNode
class Asking(ApplicationNode):
    def start_processing(self):
        self.result = os.environ.get("NOTIFY_SOCKET")
        self.shutdown_main_loop()
"""


def test_what_an_application_may_tell_a_supervisor_is_its_own(swarm, supervisor, tmp_path):
    (tmp_path / "asking.py").write_text(ASKING)
    run = swarm(slaves=0).run_client(str(tmp_path / "asking.py"), NOTIFY_SOCKET=supervisor.address)
    assert run.about["result"] == supervisor.address
    supervisor.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.socket.recv(1)


# -- signals -------------------------------------------------------------------------------------------------------


def test_sighup_reads_the_configuration_again_even_if_the_file_looks_the_same(nodes, supervisor):
    node = nodes.start("master", "--port", "0", NOTIFY_SOCKET=supervisor.address)
    (file,) = (node.folder / "configs").glob("*.ini")
    file.write_text("[node]\nlog_level = error\n")
    wait_until(lambda: "changed node.log_level" in node.err, "the first change is in the log")
    was = file.stat()
    with open(file, "r+") as same:  # as long, as old, and the same file: nobody can see it without reading
        same.write("[node]\nlog_level = debug\n")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    supervisor.heard.clear()
    node.send(signal.SIGHUP)
    supervisor.until("RELOADING=1")
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", supervisor.heard[-1][-1])
    supervisor.until("READY=1")
    rows = {(section, key): value for section, key, value, _ in rpc.Proxy(node.started["address"]).config()}
    assert rows["node", "log_level"] == "debug"


def test_the_end_of_its_terminal_ends_a_node(cli):  # noqa: F811
    node = Typed("master.py", "--port", "0").until("ready in")
    os.close(node.fd)
    ended = wait_until(lambda: os.waitpid(node.pid, os.WNOHANG)[1], "the master has ended")
    assert os.WTERMSIG(ended) == signal.SIGHUP


@pytest.mark.slow
def test_a_second_sigterm_ends_a_slave_at_once(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    words = ("--app", "Waiting", "--set", "plain.count=2", "--set", f"plain.folder={tmp_path}")
    client = here.start_client("plain.py", *words)
    wait_until(lambda: list(tmp_path.glob("run-*")), "a task runs")
    here.slaves[0].send(signal.SIGTERM)
    wait_until(lambda: "leaving" in here.slaves[0].err, "it says that it leaves")
    began = time.monotonic()
    here.slaves[0].send(signal.SIGTERM)
    assert here.slaves[0].wait().code == 143 and time.monotonic() - began < slave.GRACE / 2
    client.ends()


@pytest.mark.slow
def test_no_task_is_blamed_if_a_batch_system_ends_all_processes_of_a_slave(swarm, tmp_path):
    here = swarm(slaves=2, workers=1, master=("--set", "limits.worker_retries=0"))
    words = ("--json", "--app", "Waiting", "--set", "plain.count=4", "--set", f"plain.folder={tmp_path}")
    client = here.start_client("plain.py", *words)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "both slaves run a task")
    leaving, there = here.slaves[0], [here.slaves[0].pid]
    for pid in there:
        there += children_of(pid)
    assert len(there) >= 4  # the slave, the tracker of its resources, the zygote, a worker
    for pid in there:
        os.kill(pid, signal.SIGTERM)
    assert leaving.wait().code == 143 and "zygote" not in leaving.err
    (tmp_path / "go").touch()
    assert client.wait().about["result"] == {"sum": 6, "errors": []}


# -- processors ----------------------------------------------------------------------------------------------------


def counted(tmp_path, monkeypatch, files=(), **environ):
    """What a slave counts where `files` (name and text, below a folder for control groups) say what it may use."""
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    quotas = tasks.cpu_quotas(str(tmp_path / "groups"), str(tmp_path))
    monkeypatch.setattr(tasks, "cpu_quotas", lambda: quotas)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    return tasks.usable_cpus()


def test_processors_are_those_of_the_affinity_mask():
    words = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    words += "from concurrent_swarm import tasks; print(tasks.usable_cpus())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout == "1\n"


QUOTAS = {
    "none": ([("groups", "0::/\n"), ("cpu.max", "max 100000")], 16),
    "of the group": ([("groups", "0::/a/b\n"), ("a/b/cpu.max", "350000 100000")], 3),
    "of a group above": ([("groups", "0::/a/b\n"), ("a/b/cpu.max", "max 100000"), ("a/cpu.max", "200000 100000")], 2),
    "as seen from inside a container": ([("groups", "0::/docker/abc\n"), ("cpu.max", "400000 100000")], 4),
    "less than one": ([("groups", "0::/\n"), ("cpu.max", "50000 100000")], 1),
    "of the first kind of groups": (
        [("groups", "3:cpuset:/\n2:cpu,cpuacct:/a\n0::/\n"),
         ("cpu/a/cpu.cfs_quota_us", "500000\n"), ("cpu/a/cpu.cfs_period_us", "100000\n"),
         ("cpu/cpu.cfs_quota_us", "-1\n"), ("cpu/cpu.cfs_period_us", "100000\n")], 5),
}  # fmt: skip


@pytest.mark.parametrize("files, count", QUOTAS.values(), ids=QUOTAS)
def test_processors_are_at_most_the_quota_of_each_control_group(tmp_path, monkeypatch, files, count):
    assert counted(tmp_path, monkeypatch, files) == count


@pytest.mark.parametrize("environ, count", [
    ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4),
    ({"SLURM_CPUS_ON_NODE": "8"}, 8),
    ({"SLURM_CPUS_ON_NODE": "64"}, 16),
    ({"SLURM_CPUS_PER_TASK": ""}, 16),
])  # fmt: skip
def test_processors_are_at_most_what_slurm_gives_the_task(tmp_path, monkeypatch, environ, count):
    assert counted(tmp_path, monkeypatch, **environ) == count


# -- the files of the page -----------------------------------------------------------------------------------------


def settings(unit):
    """(key, value) of a unit, several of one key included."""
    return [tuple(line.split("=", 1)) for line in UNITS[unit].splitlines() if "=" in line]


def unit_of(role):
    return next(path for path in UNITS if ROLES[Path(path).name] == role)


@pytest.mark.parametrize("role", ROLES.values())
def test_a_unit_fits_what_the_node_does(role):
    given = dict(settings(unit_of(role)))
    assert given["Type"] == "notify" and int(given["WatchdogSec"]) >= 10
    assert given["KillMode"] == "mixed", "SIGTERM is for the node alone, or its workers die of it"
    assert int(given["TimeoutStopSec"]) > {"master": master, "slave": slave}[role].GRACE
    assert int(given["SuccessExitStatus"]) == components.EXIT_TERMINATED
    assert int(given["RestartPreventExitStatus"]) == components.EXIT_USAGE


def commands():
    """(role, arguments) of each command on the page that starts a node."""
    found = re.findall(r"(?:concurrent-|python )(master|slave)(?:\.py)? ((?:--|-[a-z]\b)[^\n'>&`]*)", PAGE)
    return sorted({(role, " ".join(words.split())) for role, words in found})


@pytest.mark.slow
@pytest.mark.parametrize("role, words", commands())
def test_a_command_of_the_page_starts_a_node_that_is_ready(role, words, swarm, supervisor):
    here = swarm(slaves=0)
    access = rpc.Access.load(str(here.master.folder / "keys" / "slave.access"))
    places = {
        r"--access \S+": f"--access {here.master.folder}/keys/slave.access", r"(?<=--master )\S+": here.address,
        r"(?<=compute_address=)\S+": access.addresses["tcp"], "0.0.0.0": "127.0.0.1", r"(?<=compute_port=)\d+": "0",
    }  # fmt: skip
    for old, new in places.items():
        words = re.sub(old, new, words)
    node = here.start(role, *shlex.split(words), NOTIFY_SOCKET=supervisor.address, CONCURRENT_SWARM_MASTER_PORT="0")
    supervisor.until("READY=1")
    assert node.ends() == 143


def test_the_page_starts_nodes_in_each_of_its_ways():
    assert len([role for role, _ in commands() if role == "slave"]) >= 3 and len(commands()) >= 5
    for unit, role in ROLES.items():
        words = shlex.split(dict(settings(next(path for path in UNITS if Path(path).name == unit)))["ExecStart"])
        assert words[0] == f"/opt/concurrent/bin/concurrent-{role}" and (role, " ".join(words[1:])) in commands()


@pytest.mark.skipif(not shutil.which("bash"), reason="the scripts are for bash")
def test_the_scripts_of_the_page_are_scripts():
    for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root can be another user")
def test_an_access_file_of_another_user_is_an_error_that_says_so(tmp_path):
    (tmp_path / "slave.access").write_text("{}")
    os.chmod(tmp_path / "slave.access", 0o600)
    words = "import sys; from concurrent_swarm import rpc; import os; os.setuid(65534); rpc.Access.load(sys.argv[1])"
    command = [sys.executable, "-c", words, str(tmp_path / "slave.access")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert "slave.access cannot be read" in done.stderr and "chmod 600" in done.stderr, done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_the_units(tmp_path):
    for path, text in UNITS.items():
        program = shlex.quote(shutil.which("true"))
        (tmp_path / Path(path).name).write_text(re.sub(r"/opt/concurrent/bin/\S+", program, text))
    files = [str(tmp_path / name) for name in ROLES]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
