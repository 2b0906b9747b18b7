"""What tasks and task systems may do, what an application asks for, and what the owner of a node allows."""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import struct
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from conftest import Swarm, at_once, one_each, text_of, wait_until
from test_durable import kill_master

from concurrent_swarm import rpc, tasks

APP = '''
import os, sys
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem
from concurrent_swarm.tasks import ITaskSystem, Task

class Try(Task):
    def __call__(self):
        folder = self.folder
{body}

class Hook(ITaskSystem):
    def init_system(self, master):
        folder = self.folder
        self.told = self.body(folder)
    def body(self, folder):
{body}
    def generate_tasks(self, master):
        return []
    def is_complete(self, master):
        return True
    def gather_result(self, master):
        return self.told

class App(ApplicationNode):
    folder = ConfigItem("app", "folder", "", "where it tries")
    {needs}
    def app_init(self):
        self.errors = []
    def start_processing(self):
        self.push_task(Try("try", folder=self.folder))
    def task_finished(self, task, result, error):
        self.result = result
        if error is not None:
            self.result = {{"error": str(error), "kind": getattr(error, "kind", ""),
                           "text": getattr(error, "remote_traceback", ""), "notes": getattr(error, "__notes__", [])}}
        self.shutdown_main_loop()

class SystemApp(App):
    def start_processing(self):
        self.system = Hook()
        self.system.folder = self.folder
        self.push_tasksystem(self.system)
    def work_finished(self, result, *rest):
        self.result = result
        self.shutdown_main_loop()
'''


@pytest.fixture(scope="module")
def outside():
    """A folder outside all environments, where tasks try."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder, "file").write_text("outside")
        yield Path(folder)


@pytest.fixture(scope="module")
def here(outside):
    """One slave that allows some things, with one worker."""
    one = Swarm()
    try:
        one.start_master(CONCURRENT_SWARM_MASTER_ALLOW_WRITE="")
        one.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_ALLOW_WRITE=f"{outside}/write,/dev/shm",
                        CONCURRENT_SWARM_SLAVE_ALLOW_READ=f"{outside}/read",
                        CONCURRENT_SWARM_SLAVE_ALLOW_NETWORK="127.0.0.1:*,localhost:*")
        for name in ("read", "write"):
            Path(outside, name).mkdir()
            Path(outside, name, "file").write_text("inside")
        yield one
    finally:
        one.close()


@one_each
def attempt(here, outside, tmp_path):
    """What becomes of these lines of code as a task, for an application with these needs."""

    def run(body, needs="pass", app="App", swarm=here, *more):
        path = tmp_path / "app.py"
        code = textwrap.indent(textwrap.dedent(body), " " * 8)
        path.write_text(APP.format(body=code, needs=needs))
        done = swarm.run_client(str(path), "--app", app, "--set", f"app.folder={outside}", *more)
        return done.about["result"]

    return run


def granted_by(slave):
    return rpc.Proxy(slave.started["address"]).status()["sandbox"]


# -- what is told --------------------------------------------------------------------------------------------------


def test_a_node_tells_in_its_status_and_at_its_start_what_is_active_and_what_is_missing(here):
    features = tasks.kernel_features()
    for node in (here.master, here.slaves[0]):
        told = granted_by(node)
        assert told["level"] == "standard" and {name: told[name] for name in features} == features
        for missing in tasks.lacking(features):
            assert missing in told["missing"]
        assert "sandbox standard: active: " in node.err and f"Landlock {features['landlock']}" in node.err


def test_doctor_says_what_this_system_has_for_a_sandbox():
    (told,) = (check for check in tasks.checks() if check.name == "sandbox")
    assert told.level == ("warn" if tasks.lacking(tasks.kernel_features()) else "ok") and "Landlock" in told.text


# -- what a task has without asking --------------------------------------------------------------------------------


def test_a_task_has_a_folder_of_its_own_as_home_temporary_folder_and_current_one(attempt, here):
    told = attempt("""
        import tempfile
        with tempfile.NamedTemporaryFile() as file, open("there", "w") as other:
            os.chmod("there", 0o600)
            return [os.getcwd(), os.environ["HOME"], os.path.dirname(file.name), tempfile.gettempdir()]
    """)
    assert len(set(told)) == 1 and Path(told[0]).parent == here.slaves[0].folder / "work"


@at_once
def test_what_python_needs_works_without_asking(attempt):
    assert attempt("""
        import asyncio, ctypes, json, random, sqlite3, ssl, threading, time, numpy
        heard = []
        thread = threading.Thread(target=heard.append, args=[1])
        thread.start()
        thread.join()
        with open("/dev/null", "w") as null, open("/dev/urandom", "rb") as noise, open("/dev/zero", "rb") as zero:
            null.write("gone")
            assert len(noise.read(8)) == 8 and zero.read(2) == bytes(2)
        database = sqlite3.connect("there.db")
        database.execute("create table t (x)")
        database.commit()
        async def later():
            return await asyncio.to_thread(lambda: 5)
        return [heard, asyncio.run(later()), bool(ssl.create_default_context()), int(numpy.arange(4).sum())]
    """) == [[1], 5, True, 6]


REFUSED = {
    "reads the keys": 'os.listdir(os.path.join(os.getcwd(), "..", "..", "keys"))',
    "reads a file": 'open(folder + "/file").read()',
    "writes a file": 'open(folder + "/new", "w")',
    "changes a mode": "os.chmod(folder, 0o777)",
    "reads what its node is told": 'open(f"/proc/{os.getppid()}/environ", "rb").read()',
    "signals its zygote": "os.kill(os.getppid(), 0)",
    "limits its zygote": '__import__("resource").prlimit(os.getppid(), __import__("resource").RLIMIT_CPU)',
    "opens a socket": '__import__("socket").socket()',
    "starts a program": 'os.execv("/bin/true", ["true"])',
    "forks": "os.fork()",
}


@pytest.mark.parametrize("app", ["App", "SystemApp"])
@at_once
def test_neither_a_task_nor_a_hook_may_do_what_was_not_asked_for(attempt, app, outside):
    lines = [f'"{name}": lambda: {code},' for name, code in REFUSED.items()]
    done = attempt("tries = {\n" + "\n".join(lines) + """\n}
done = {}
for name, function in tries.items():
    try:
        done[name] = str(function())
    except OSError as error:
        done[name] = type(error).__name__
return done""", app=app)
    assert done == dict.fromkeys(REFUSED, "PermissionError") and not (outside / "new").exists()


@at_once
def test_a_task_sees_no_setting_of_its_node(attempt, here):
    mark = str(here.folder)
    told = attempt("return dict(os.environ)")
    assert not [name for name in told if name.startswith("CONCURRENT_SWARM_") and name != "CONCURRENT_SWARM_ATTEMPT"]
    assert mark not in told.get("PATH", "")


@at_once
def test_the_error_of_what_is_not_allowed_says_that_a_sandbox_is_the_reason(attempt):
    told = attempt('open(folder + "/file")')
    assert "Permission denied" in told["error"] and tasks.CONFINED in told["notes"]


@pytest.mark.parametrize("body, why", [
    ("os.kill(os.getppid(), 0)", "PermissionError at app.py:"),
    ("import ctypes, mmap\n"
     "page = mmap.mmap(-1, 4096, prot=7)\n"
     "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # getpid, as a call of 32 bits
     "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()", "worker killed by SIGSYS"),
])  # fmt: skip
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are of this processor")
@at_once
def test_a_task_that_fails_because_of_the_sandbox_is_in_the_audit_log_with_its_user(here, attempt, body, why):
    told = attempt(body)
    path = here.master.folder / "logs" / "audit.jsonl"
    lines = wait_until(lambda: [line for line in map(json.loads, text_of(path).splitlines())
                                if line["event"] == "confined" and why in line["why"]], f"{why} after {told}")
    assert {(line["role"], line["user"]) for line in lines} == {("client", lines[0]["who"])}
    assert why.startswith("worker") or "(in the sandbox)" in here.master.err


# -- what an application asks for ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("needs, asked, allows, setting", [
    ('write = ["{0}"]', "write = {0}", "write = {0}/write", "slave.allow_write={0}"),
    ('read = ["/etc"]', "read = /etc", "read = {0}/read", "slave.allow_read=/etc"),
    ('network = ["10.0.0.1:80"]', "network = 10.0.0.1:80", "network = 127.0.0.1:*", "slave.allow_network=10.0.0.1:80"),
    ("subprocess = True", "subprocess = True", "subprocess = False", "slave.allow_subprocess=True"),
])  # fmt: skip
@at_once
def test_what_is_asked_for_and_not_allowed_fails_with_what_was_asked_what_is_allowed_and_the_setting(
        swarm, attempt, outside, needs, asked, allows, setting):  # fmt: skip
    here = swarm(slaves=0)
    here.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_ALLOW_WRITE=f"{outside}/write",
                     CONCURRENT_SWARM_SLAVE_ALLOW_READ=f"{outside}/read", CONCURRENT_SWARM_SLAVE_ALLOW_SUBPROCESS="no",
                     CONCURRENT_SWARM_SLAVE_ALLOW_NETWORK="127.0.0.1:*")
    told = attempt("return 1", needs.format(outside), "App", here)
    assert told["kind"] == "setup" and f"s1 does not allow: {asked.format(outside)}" in told["error"]
    assert allows.format(outside) in told["text"] and setting.format(outside) in told["text"]


@pytest.mark.slow
@at_once
def test_what_one_slave_does_not_allow_runs_on_another_that_does(swarm, attempt, outside):
    here = swarm(slaves=0)
    here.start_slave(workers=2, CONCURRENT_SWARM_SLAVE_ALLOW_WRITE="")
    here.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_ALLOW_WRITE=str(outside))
    assert attempt('open(folder + "/by-another", "w").close()', f'write = ["{outside}"]', "App", here) is None
    assert (outside / "by-another").exists()


@at_once
def test_a_granted_folder_is_written_and_no_other_one(attempt, outside):
    told = attempt("""
        with open(folder + "/write/new", "w") as file:
            file.write("x")
        try:
            open(folder + "/read/new", "w")
        except PermissionError:
            return open(folder + "/write/file").read()
    """, f'write = ["{outside}/write"]')
    assert told == "inside" and (outside / "write" / "new").read_text() == "x"


@at_once
def test_a_granted_folder_is_read_and_not_written(attempt, outside):
    assert attempt("""
        try:
            open(folder + "/read/file", "a")
        except OSError:
            return open(folder + "/read/file").read()
    """, f'read = ["{outside}/read"]') == "inside"


@at_once
def test_more_than_was_asked_for_is_not_given(attempt, outside):
    told = attempt('open(folder + "/read/file")', f'write = ["{outside}/write"]')
    assert "Permission denied" in told["error"]


@one_each
def servers():
    """Two servers that greet, as (host, port)."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]

        def greet(server):
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].sendall(b"hello")

        for server in made:
            threading.Thread(target=greet, args=[server], daemon=True).start()
        yield [server.getsockname() for server in made]


@pytest.mark.skipif(tasks.kernel_features()["landlock"] < 4, reason="this kernel cannot tell TCP ports apart")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@at_once
def test_a_granted_address_is_reached_and_no_other_port_nor_kind_of_socket(attempt, servers, host):
    (_, port), (_, other) = servers
    assert attempt(f"""
        import socket
        with socket.create_connection(("{host}", {port}), 5) as sock:
            told = [sock.recv(5).decode()]
        tries = [lambda: socket.create_connection(("127.0.0.1", {other}), 5), lambda: socket.create_server(("", 0)),
                 lambda: socket.socket(type=socket.SOCK_DGRAM), lambda: socket.socket(socket.AF_UNIX),
                 lambda: socket.socket(proto=262)]
        for function in tries:
            try:
                told.append(str(function()))
            except PermissionError:
                told.append("no")
        return told
    """, f'network = ["{host}:{port}"]') == ["hello", *["no"] * 5]


@at_once
def test_granted_programs_are_started_and_confined_too(attempt, outside):
    told = attempt("""
        import subprocess, sys
        done = subprocess.run(["cat", folder + "/file"], capture_output=True, text=True)
        return [subprocess.check_output([sys.executable, "-c", "print(6)"], text=True), done.stdout, done.stderr]
    """, "subprocess = True")
    assert told[:2] == ["6\n", ""] and "Permission denied" in told[2]


@at_once
def test_granted_processes_share_their_work(attempt):
    assert attempt("""
        from multiprocessing import get_context
        with get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, 2])
    """, 'subprocess = True; write = ["/dev/shm"]') == [1, 2]


@pytest.mark.slow
@at_once
def test_a_folder_that_holds_the_environment_of_the_node_is_never_granted(swarm, attempt):
    here = swarm(slaves=0)
    here.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_ALLOW_READ="/")
    told = attempt("return 1", 'read = ["/var"]', "App", here)
    assert told["kind"] == "setup" and "never its own environment" in told["text"]
    assert attempt("return len(os.listdir('/etc')) > 0", 'read = ["/etc"]', "App", here) is True


@pytest.mark.slow
def test_who_runs_a_swarm_of_their_own_has_what_the_application_asks_for(tmp_path, outside):
    one = Swarm()
    try:
        path = tmp_path / "app.py"
        body = ' ' * 8 + 'open(folder + "/local", "w").close()'
        path.write_text(APP.format(body=body, needs=f'write = ["{outside}"]'))
        words = ["--app", "App", "--local", "--workers", "1", "--json", "--set", f"app.folder={outside}"]
        done = one.start("client", path, *words, CONCURRENT_SWARM_SLAVE_ALLOW_WRITE="").wait()
        assert done.about["result"] is None and (outside / "local").exists()
    finally:
        one.close()


def test_the_folder_in_which_a_swarm_was_started_is_not_read_by_its_tasks(tmp_path, monkeypatch):
    one = Swarm()
    try:
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "app.py").write_text(APP.format(body=" " * 8 + "return open(folder).read()", needs="pass"))
        monkeypatch.chdir(tmp_path)
        words = ["--app", "App", "--local", "--workers", "1", "--json", "--set", f"app.folder={tmp_path}/secret"]
        done = one.start("client", tmp_path / "app.py", *words).wait()
        assert "Permission" in str(done.about["result"]), done.about
    finally:
        one.close()


@at_once
def test_an_application_that_asks_for_too_much_is_refused_and_others_run(swarm, attempt):
    here = swarm(slaves=0)
    here.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_ALLOW_NETWORK="*:443")
    told = attempt("return 1", f"network = ['{'a' * 70000}:443']", "App", here)
    assert told["kind"] == "setup" and "32,768 bytes" in told["error"]
    assert attempt("return 1", "network = ['h:²']", "App", here)["kind"] == "setup"
    assert attempt("return 1", "pass", "App", here) == 1


WAITS = """
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import ITaskSystem, Task

class System(ITaskSystem):
    def generate_tasks(self, master):
        return [Task("waits")]
    def is_complete(self, master):
        return True

class App(ApplicationNode):
    network = ["{0}:443"]
    def get_task_system(self):
        return System()
"""


@pytest.mark.slow
@at_once
def test_a_system_that_a_later_master_cannot_give_a_process_ends_with_the_reason(swarm, tmp_path):
    here = swarm(slaves=0, journal=True)
    (tmp_path / "waits.py").write_text(WAITS.format("a" * 70000))
    client = here.start_client(str(tmp_path / "waits.py"), "--json")
    wait_until(lambda: here.proxy.systems(), "the system waits for a slave")
    kill_master(here)
    here.start_master(port=int(here.address.rpartition(":")[2]), journal=True,
                      CONCURRENT_SWARM_MASTER_ALLOW_NETWORK="*:443")
    assert "32,768 bytes" in client.wait().about["error"]["message"]
    again = here.run_client(str(tmp_path / "waits.py"))
    assert "no process can be started for it" in again.about["error"]["message"] and "32,768 bytes" in again.err


@pytest.mark.parametrize("allowed, asked, covered", [
    ("db:5432", "db:5432", True), ("db:*", "DB:1", True), ("*:443", "x.org:443", True), ("*:*", "[::1]:1", True),
    ("db:5432", "db:5433", False), ("db:5432", "other:5432", False), ("*", "db:1", False), ("*:*", "db", False),
    ("*:*", "db:0", False), ("*:*", "db:x", False), ("*:*", ":80", False),
    ("*:*", "db:²", False),
])  # fmt: skip
def test_a_word_of_the_owner_covers_hosts_and_ports(allowed, asked, covered):
    assert tasks._covers(allowed, asked) is covered


def test_a_granted_path_that_has_become_another_one_is_not_opened(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "keys")  # it was a folder when it was granted
    with pytest.raises(OSError, match="something else is there now"):
        tasks._allow_path(-1, str(tmp_path / "data"), tasks.READ, True)
    assert str(tmp_path / "keys") not in map(os.path.realpath, Path("/proc/self/fd").iterdir()), "it stays open"


def test_a_builder_may_open_sockets_to_addresses_and_none_of_this_machine():
    (first, *_) = tasks._conditions(tasks.Confinement(network=(tasks.ANYWHERE,)))["socket"]
    assert first[0] == 0 and socket.AF_INET in first[2] and socket.AF_UNIX not in first[2]


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_calls_are_those_of_the_kernel_s_headers(machine):
    text = text_of(HEADERS[machine])
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(?:3264_)?(\w+)\s+(\d+)\b", text)}
    if not known:
        pytest.skip("the headers are not installed")
    named = f"{tasks.NEVER} {tasks.PROGRAMS} {tasks.NAMED} {tasks.OPEN} {tasks.DECIDED}"
    told = tasks._numbers(named, tasks.MACHINES[machine][2])
    assert {name: known[name] for name in told if name in known} == {n: told[n] for n in told if n in known}
    assert set(told) - set(known) <= {"open_tree_attr", "fchmodat2", "setxattrat", "removexattrat"}, "newer than these"


def test_a_filter_for_each_processor_fits_the_kernel_and_jumps_only_forward_within_it():
    for machine in tasks.MACHINES:
        for wanted in (tasks.Confinement("standard"), tasks.Confinement("standard", network=["h:1"], subprocess=True)):
            program = tasks._program(wanted, machine)
            steps = list(struct.iter_unpack("=HBBI", program))
            assert len(steps) < 4096 and steps[-1] == (tasks.RETURN, 0, 0, tasks.ALLOW)
            jumps = [(place, max(yes, no)) for place, (code, yes, no, _) in enumerate(steps) if code != tasks.RETURN]
            assert all(place + 1 + most < len(steps) for place, most in jumps)


# -- levels --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@at_once
def test_strict_grants_nothing_beyond_the_default(swarm, attempt, outside):
    here = swarm(slaves=1, workers=1, slave=["--set", "slave.sandbox=strict"])
    assert granted_by(here.slaves[0])["level"] == "strict"
    assert attempt("return 5", "pass", "App", here) == 5
    told = attempt("return 1", 'write = ["/tmp"]', "App", here)
    assert told["kind"] == "setup" and "strict" in told["text"] and "slave.sandbox=standard" in told["text"]


@at_once
def test_without_the_sandbox_a_task_may_do_all_and_the_node_says_so(swarm, attempt, outside):
    here = swarm(slaves=1, workers=1, slave=["--set", "slave.sandbox=off"])
    assert attempt('return open(folder + "/file").read()', "pass", "App", here) == "outside"
    assert "sandbox off" in here.slaves[0].err and granted_by(here.slaves[0])["level"] == "off"


LACKING = """import ctypes, os, struct
if os.environ.get("LACKING"):
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
    steps = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)
    assert not libc.syscall(317, 1, 0, struct.pack("@HP", 4, ctypes.addressof(steps)))
"""


@one_each
def older(tmp_path):
    """Settings with which a process finds a kernel that has no Landlock."""
    if os.uname().machine != "x86_64" or not tasks.kernel_features()["seccomp"]:
        pytest.skip("the call cannot be taken away here")
    (tmp_path / "sitecustomize.py").write_text(LACKING)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "LACKING": "yes"}


@at_once
def test_strict_does_not_start_where_something_is_missing_and_says_what(swarm, older):
    here = swarm(slaves=0)
    slave = here.start_slave("--set", "slave.sandbox=strict", ready=False, **older).wait()
    assert slave.code == 1 and "cannot be strict here" in slave.err and "files (Landlock)" in slave.err


@pytest.mark.slow
@at_once
def test_standard_takes_what_there_is_and_says_what_is_missing_and_what_is_open(swarm, older, attempt):
    here = swarm(slaves=0)
    slave = here.start_slave(workers=1, **older)
    told = granted_by(slave)
    assert told["landlock"] == 0 and told["seccomp"] and "files (Landlock)" in told["missing"]
    assert "it is possible to read the keys" in told["missing"] and "files (Landlock)" in slave.err
    assert "not permitted" in attempt("os.fork()", "pass", "App", here)["error"]


UNFIT = """import os
chdir = os.chdir
def fails(path):
    if os.path.exists({flag!r}): raise OSError(5, "it cannot move in")
    chdir(path)
os.chdir = fails
"""


@pytest.mark.slow
@at_once
def test_a_worker_that_cannot_confine_itself_is_not_used(swarm, attempt, tmp_path):
    flag = tmp_path / "unfit"
    (tmp_path / "sitecustomize.py").write_text(UNFIT.format(flag=str(flag)))
    here = swarm(slaves=0)
    here.start_slave(workers=1, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    flag.touch()
    told = attempt("return 1", "pass", "App", here)
    assert told["kind"] == "setup" and "could not confine itself: [Errno 5] it cannot move in" in told["error"]


# -- what is left behind -------------------------------------------------------------------------------------------

LITTER = """
        os.makedirs("deep/deeper")
        open("deep/deeper/file", "w").close()
        os.chmod("deep/deeper", 0)
        return os.getcwd()
"""


@pytest.mark.slow
@at_once
def test_the_folder_of_a_worker_goes_with_it(swarm, attempt):
    here = swarm(slaves=1, workers=1)
    folder = Path(attempt(LITTER, "pass", "App", here))
    assert (folder / "deep").exists()
    os.kill(here.workers_of(here.slaves[0])[0], signal.SIGKILL)
    wait_until(lambda: not folder.exists(), "the folder is gone")


@pytest.mark.slow
@at_once
def test_the_folders_of_a_killed_slave_are_gone_too(swarm, attempt):
    here = swarm(slaves=1, workers=1)
    folder = Path(attempt(LITTER, "pass", "App", here))
    here.slaves[0].send(signal.SIGKILL)
    wait_until(lambda: not folder.exists(), "the folder is gone")


@pytest.mark.slow
@at_once
def test_what_a_killed_slave_and_its_zygote_leave_is_swept_at_the_next_start(swarm):
    here = swarm(slaves=1, workers=1)
    slave = here.slaves.pop()
    assert slave.ends() == 143
    (slave.folder / "work" / "7" / "left").mkdir(parents=True)
    here.start_slave(workers=1)
    assert not (slave.folder / "work" / "7").exists()


def test_a_tree_of_any_depth_and_mode_is_removed_and_no_link_followed(tmp_path):
    kept, tree = tmp_path / "kept", tmp_path / "tree"
    for folder in (kept, tree):
        folder.mkdir()
    (kept / "file").write_text("kept")
    here = os.open(tree, os.O_RDONLY)
    for _ in range(1500):  # deeper than a path, or Python's stack
        os.mkdir("d" * 200, dir_fd=here)
        os.symlink(kept, "link", dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.fchmod(here, 0)
    os.close(here)
    tasks.remove_tree(str(tree))
    assert not tree.exists() and (kept / "file").read_text() == "kept"


@at_once
def test_a_deep_tree_that_a_task_leaves_does_no_harm_to_its_slave(swarm, attempt):
    here = swarm(slaves=1, workers=1)
    body = """
        for _ in range(1200):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        return os.environ["HOME"]
    """
    folder = Path(attempt(body, "pass", "App", here))
    (pid,) = here.workers_of(here.slaves[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not folder.exists(), "the folder is gone")
    assert attempt("return 1", "pass", "App", here) == 1


# -- users of their own --------------------------------------------------------------------------------------------


def others_may_enter(path):
    """Whether any user gets to this file."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).resolve().parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives workers users of their own")
@pytest.mark.skipif(not (others_may_enter(sys.executable) and others_may_enter(os.__file__)), reason="Python is locked")
@at_once
def test_each_worker_of_a_slave_of_root_is_a_user_of_its_own(attempt, swarm):
    here = swarm(slaves=0)
    os.chmod(here.folder, 0o755)
    slave = here.start_slave(workers=1, CONCURRENT_SWARM_SLAVE_UID_BASE="60800")
    told = attempt("return [os.getuid(), os.stat('.').st_uid]", "pass", "App", here)
    assert told[0] == told[1] and 60800 <= told[0] < 61056
    assert slave.folder.stat().st_mode & 0o777 == 0o710 and (slave.folder / "keys").stat().st_mode & 0o777 == 0o700
    assert granted_by(slave)["uid"] == 60800


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives workers users of their own")
@at_once
def test_root_without_users_for_its_workers_says_why_and_they_have_no_privileges(attempt, swarm):
    here = swarm(slaves=1, workers=1)
    told = attempt("os.setuid(5)", "pass", "App", here)
    assert "not permitted" in told["error"]
    assert any("a uid of its own (" in text for text in granted_by(here.slaves[0])["missing"])
