"""The command line: what a person reads, what a script gets, and what Ctrl-C does."""

import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs `python ROLE.py …` in the checkout, with a state folder of its own."""
    state = tmp_path / "state"
    monkeypatch.setenv("CONCURRENT_SWARM_STATE", str(state))
    monkeypatch.setenv("LC_SWARM", str(state))
    for name in ("NO_COLOR", "FORCE_COLOR", "CONCURRENT_SWARM_MASTER", "CONCURRENT_SWARM_ACCESS"):
        monkeypatch.delenv(name, raising=False)

    def run(role, *arguments, **options):
        command = [sys.executable, f"{role}.py", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL, **options
        )

    return run


@pytest.fixture
def app(tmp_path):
    """Writes an application file: the imports, then `text`."""

    def write(text, name="app.py"):
        path = tmp_path / name
        path.write_text(
            "import time\nfrom concurrent_swarm.client import ApplicationNode\n"
            f"from concurrent_swarm.tasks import ITaskSystem, Task\n{text}"
        )
        return path

    return write


def said(result, *texts):
    """Asserts that stderr has exactly one error of three parts, with these texts."""
    assert result.stderr.count("error:") == 1, result.stderr
    assert "why:" in result.stderr and "fix:" in result.stderr and "Traceback" not in result.stderr, result.stderr
    for text in texts:
        assert text in result.stderr, (text, result.stderr)
    return True


# -- errors --------------------------------------------------------------------------------------------------------


def test_a_client_without_a_master_is_told_to_start_one_or_to_use_local(cli):
    result = cli("client", "samples/md5.py", "--master", "127.0.0.1:9", "--wait", "0")
    assert result.returncode == 3 and said(result, "no master at 127.0.0.1:9", "python master.py", "--local")


def test_a_master_whose_port_is_taken_says_which_port_and_what_to_do(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("master", "--port", port)
    assert result.returncode == 2 and said(result, f"port {port} is in use", "--port")


def test_a_port_that_is_something_else_is_named_with_what_it_sent(cli):
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_serve_nginx, args=(other,), daemon=True).start()
        result = cli("client", "samples/md5.py", "--master", f"127.0.0.1:{other.getsockname()[1]}", "--wait", "0")
    assert result.returncode == 3 and said(result, "answers, but", "nginx")


def _serve_nginx(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nnginx")


def test_a_host_that_does_not_resolve_and_a_scheme_are_told_apart(cli):
    words = ("client", "samples/md5.py", "--wait", "0", "--master")
    assert said(cli(*words, "no-such-host.invalid"), "cannot find the host")
    assert said(cli(*words, "http://localhost"), "http://")


def test_a_master_elsewhere_needs_an_access_file(cli, tmp_path):
    result = cli("slave", "--access", tmp_path / "missing.access", "--wait", "0")
    assert result.returncode == 3 and said(result, "there is no access file")


def test_an_access_file_that_others_can_read_is_refused_with_the_chmod(cli, tmp_path):
    path = tmp_path / "slave.access"
    path.write_text("{}")
    path.chmod(0o644)
    result = cli("slave", "--access", path, "--wait", "0")
    assert result.returncode == 3 and said(result, f"chmod 600 {path}")


def test_a_missing_application_names_the_nearest_file(cli):
    result = cli("client", "samples/helo.py", "--local")
    assert result.returncode == 2 and said(result, "did you mean samples/hello.py?")


def test_a_file_without_and_a_file_with_two_applications_say_what_is_there(cli, app):
    assert said(cli("client", app("x = 1\n"), "--local"), "defines no ApplicationNode subclass")
    two = app("class A(ApplicationNode): pass\nclass B(ApplicationNode): pass\n")
    assert said(cli("client", two, "--local"), "A, B", "--app A")


def test_a_broken_application_names_file_and_line(cli, app):
    result = cli("client", app("def broken(:\n"), "--local")
    assert result.returncode == 2 and said(result, "app.py", "line 4")


def test_an_application_of_the_first_concurrent_is_told_what_to_change(cli, tmp_path):
    old = tmp_path / "old.py"
    old.write_text("from concurrent.core.async.task import Task\n")
    result = cli("client", old)
    assert result.returncode == 2 and said(result, "line 1", "from concurrent_swarm.tasks import Task", "porting.md")


def test_an_application_that_is_run_directly_names_the_client(app):
    path = app("class A(ApplicationNode): pass\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, path], env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2 and said(result, "is an application", f"python client.py {path} --local")


def test_a_python_without_pyzmq_is_told_what_to_install(tmp_path):
    command = [sys.executable, "-S", "master.py", "--port", "0", "--env", str(tmp_path / "m")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and said(done, "pyzmq is not installed for this Python", "pip install pyzmq")


@pytest.mark.parametrize("role", ["master", "slave", "client"])
def test_an_unknown_option_suggests_the_nearest(cli, role):
    result = cli(role, "--sett", "x.y=z")
    assert result.returncode == 2 and "did you mean --set?" in result.stderr


def test_an_unknown_or_wrong_setting_is_refused_before_anything_starts(cli):
    assert "did you mean md5.number?" in cli("client", "samples/md5.py", "--local", "--set", "md5.numbr=3").stderr
    assert "whole number" in cli("client", "samples/md5.py", "--local", "--set", "md5.jobs=many").stderr


def test_a_task_that_cannot_be_sent_names_the_attribute(cli, app):
    path = app(
        "class T(Task):\n    def __call__(self): return 1\n"
        "class A(ApplicationNode):\n"
        "    def start_processing(self): self.push_task(T('one', callback=lambda: 1))\n"
        "    def task_finished(self, task, result, error): self.shutdown_main_loop()\n"
    )
    result = cli("client", path, "--workers", "0")
    assert result.returncode == 1
    assert 'task one cannot be sent: attribute "callback" is a lambda (app.py:7)' in result.stderr


@pytest.mark.slow
def test_a_swarm_without_a_worker_is_given_up_after_the_wait(cli, app):
    path = app(
        "class T(Task):\n    def __call__(self): return 1\n"
        "class A(ApplicationNode):\n"
        "    def start_processing(self): self.push_task(T('one'))\n"
    )
    master = Typed("master.py", "--port", "0").until("ready in")
    address = re.search(r"--master (\S+)", master.text)[1]
    result = cli("client", path, "--master", address, "--wait", "1")
    assert result.returncode == 4 and said(result, "no worker within 1 s; 1 tasks are queued", "python slave.py")
    assert master.interrupt().exit_code() == 0


# -- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_result_is_all_of_stdout_and_nothing_is_left_behind(cli, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    result = cli("client", "samples/md5.py", "--local")
    assert (result.returncode, result.stdout) == (0, "result   1763965\n")
    assert re.search(r"done     \d+ tasks, .* tasks/s, 0 failed", result.stderr)
    assert not list((tmp_path / "tmp").iterdir())


def test_failures_are_grouped_with_the_users_own_line_and_a_way_to_debug(cli):
    result = cli("client", "samples/failing.py", "--workers", "0")
    assert result.returncode == 1
    assert "3 of 64 tasks failed, 61 done" in result.stderr
    assert "3 x ValueError: range end before start" in result.stderr
    assert "samples/failing.py:18 in __call__" in result.stderr
    assert "debug here: python client.py samples/failing.py --workers 0 --pdb" in result.stderr
    assert "tasks.py" not in result.stderr


def test_json_is_one_object_on_stdout_whatever_the_application_prints(cli):
    result = cli("client", "samples/hello.py", "--workers", "0", "--json")
    about = json.loads(result.stdout)
    assert about["ok"] and about["exit"] == 0 and about["result"] == "Hello World" and about["tasks"] == 1
    failed = json.loads(cli("client", "samples/failing.py", "--workers", "0", "--json", "-q").stdout)
    assert not failed["ok"] and failed["failed"] == 3 and failed["errors"][0]["count"] == 3
    assert failed["errors"][0]["where"] == "samples/failing.py:18 in __call__"


@pytest.mark.parametrize("color, escapes", [("always", True), ("never", False), ("auto", False)])
def test_colour_goes_by_the_option_and_never_to_a_pipe_by_itself(cli, color, escapes):
    result = cli("client", "samples/failing.py", "--workers", "0", "--color", color)
    assert ("\x1b[" in result.stderr) == escapes


def test_the_same_settings_reach_the_application_by_argument_and_by_environment(cli, monkeypatch):
    arguments = ("client", "samples/md5.py", "--workers", "0", "--set", "md5.stop=100")
    assert cli(*arguments, "--set", "md5.number=42").stdout == "result   42\n"
    monkeypatch.setenv("CONCURRENT_SWARM_MD5_NUMBER", "43")
    assert cli(*arguments).stdout == "result   43\n"


def test_the_debugger_opens_where_a_task_failed(cli, app):
    path = app(
        "class T(Task):\n    def __call__(self):\n        secret = 4711\n        return 1 / 0\n"
        "class A(ApplicationNode):\n"
        "    def start_processing(self): self.push_task(T('one'))\n"
        "    def task_finished(self, task, result, error): self.shutdown_main_loop()\n"
    )
    command = [sys.executable, "client.py", str(path), "--workers", "0", "--pdb"]
    result = subprocess.run(command, cwd=ROOT, input="p secret\nq\n", capture_output=True, text=True, timeout=PATIENCE)
    assert "4711" in result.stdout and "ZeroDivisionError" in result.stderr and result.returncode == 1


@pytest.mark.parametrize("role", ["master", "slave", "client"])
def test_help_fits_a_screen_and_ends_with_the_exit_codes(cli, role):
    result = cli(role, "--help", env={**os.environ, "COLUMNS": "80"})
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) <= 40 and max(map(len, lines)) <= 80
    assert any(line.startswith("exit: 0") for line in lines) and "examples:" in lines


def test_config_show_tells_where_each_value_comes_from(cli, tmp_path, monkeypatch):
    assert cli("master", "create", tmp_path / "env").returncode == 0
    (tmp_path / "env" / "configs" / "env.ini").write_text("[master]\nport = 8181\n")
    monkeypatch.setenv("CONCURRENT_SWARM_MASTER_RETENTION", "7")
    shown = cli("master", "config", "show", "--origin", "--env", tmp_path / "env", "--set", "master.host=::1").stdout
    assert re.search(r"master.port = 8181 .*env.ini:2", shown)
    assert re.search(r"master.retention = 7 .*environment", shown)
    assert re.search(r"master.host = ::1 .*argument", shown)
    assert re.search(r"master.compute_port = 0 .*default", shown)


def test_backup_writes_an_archive_that_only_its_owner_can_read(cli, tmp_path):
    cli("slave", "create", tmp_path / "env")
    result = cli("slave", "backup", "--env", tmp_path / "env", tmp_path / "saved.zip")
    assert result.returncode == 0 and (tmp_path / "saved.zip").stat().st_mode & 0o777 == 0o600


def test_a_master_on_all_addresses_answers_to_its_machines_name_and_those_it_was_given(cli):
    master = Typed("master.py", "--port", "0", "--host", "0.0.0.0", "--set", "master.allowed_hosts=alias.example")
    host, port = re.search(r"--master (\S+):(\d+)", master.until("ready in").text).groups()
    assert host == socket.gethostname(), "what others can call is told"
    for name, status in ((host, 200), ("alias.example", 200), ("evil.example", 421)):
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
        connection.request("GET", "/ping", headers={"Host": f"{name}:{port}"})
        assert connection.getresponse().status == status, name
        connection.close()
    assert master.interrupt().exit_code() == 0


# -- Ctrl-C --------------------------------------------------------------------------------------------------------

SLEEPERS = """
class T(Task):
    def __call__(self): time.sleep(60)
class S(ITaskSystem):
    def generate_tasks(self, master): return [T(str(n)) for n in range(8)]
class A(ApplicationNode):
    def get_task_system(self): return S()
"""


class Typed:
    """A command in a pseudo-terminal, as a person has it."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, *map(str, arguments)])
        self.text = ""

    def until(self, pattern, seconds=PATIENCE):
        """Reads until the output matches; None stands for the end."""
        limit = time.monotonic() + seconds
        while pattern is None or not re.search(pattern, self.text):
            assert time.monotonic() < limit, f"no {pattern!r} in {self.text!r}"
            if not select.select([self.fd], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                assert pattern is None, f"ended without {pattern!r}: {self.text!r}"
                break
            self.text += data.decode(errors="replace")
        return self

    def interrupt(self):
        os.write(self.fd, b"\x03")
        return self

    def exit_code(self):
        self.until(None)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def no_process_of(state):
    """Waits until no process has this state folder among the variables that nodes leave to what they start."""
    mark, limit = f"LC_SWARM={state}".encode(), time.monotonic() + PATIENCE
    while True:
        alive = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                    alive.append(entry.name)
            except OSError:
                continue
        if not alive:
            return True
        assert time.monotonic() < limit, alive
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_cancels_what_the_client_started_and_says_so(cli, app, tmp_path):
    typed = Typed("client.py", app(SLEEPERS), "--local").until(r"/8 +[1-9]\d*/\d+ busy").interrupt()
    assert typed.exit_code() == 130
    pattern = r"stopping: cancelling system 1 \((\d) waiting, (\d) running\); Ctrl-C again to leave at once"
    waiting, running = map(int, re.search(pattern, typed.text).groups())
    assert waiting + running == 8 and running >= 1
    assert "Traceback" not in typed.text and "stopped  0 tasks done" in typed.text
    assert no_process_of(tmp_path / "state")


@pytest.mark.slow
def test_ctrl_c_stops_an_idle_master_and_an_idle_slave_with_code_0(cli, tmp_path):
    master = Typed("master.py", "--port", "0").until("ready in")
    address = re.search(r"--master (\S+)", master.text)[1]
    assert re.search(rf"page     http://{address}/#token=\S{{20,}}\s", master.text), "a person may open the page"
    slave = Typed("slave.py", "--master", address).until("joined as s1")
    assert slave.interrupt().exit_code() == 0 and "Traceback" not in slave.text
    assert re.search(r"left: 0 tasks, 0 failed", slave.text)
    assert master.interrupt().exit_code() == 0 and "Traceback" not in master.text
    assert no_process_of(tmp_path / "state")


INTERRUPTS = """import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "concurrent_swarm.tasks":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
"""


@pytest.mark.parametrize("role", ["master", "slave", "client"])
def test_ctrl_c_while_the_program_is_being_loaded_has_no_traceback(cli, role, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    result = cli(role, "--help", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_a_slave_that_waits_for_its_master_stops_on_ctrl_c(cli):
    slave = Typed("slave.py", "--master", "127.0.0.1:9").until("waiting for the master")
    assert slave.interrupt().exit_code() == 0


def test_a_client_that_waits_for_its_master_stops_on_ctrl_c_and_at_its_timeout(cli):
    words = ("client.py", "samples/md5.py", "--master", "127.0.0.1:9")
    client = Typed(*words).until("waiting for the master: no master at 127.0.0.1:9")
    assert client.interrupt().exit_code() == 130
    assert "stopped  0 tasks done" in client.text and "error" not in client.text
    assert Typed(*words, "--timeout", "2").until("waiting for the master").exit_code() == 4


def test_what_only_asks_a_master_does_not_wait_for_one(cli):
    result = cli("client", "--explain", "c1.1", "--master", "127.0.0.1:9")
    assert result.returncode == 3 and said(result, "no master at 127.0.0.1:9") and "waiting" not in result.stderr


@pytest.mark.slow
def test_the_second_ctrl_c_ends_a_slave_at_once_and_its_tasks_go_back(cli, app):
    master = Typed("master.py", "--port", "0").until("ready in")
    address = re.search(r"--master (\S+)", master.text)[1]
    slave = Typed("slave.py", "--master", address, "--workers", "2").until("joined as s1")
    client = Typed("client.py", app(SLEEPERS), "--master", address).until("2/2 busy")
    slave.interrupt().until(r"leaving: 2 running leases may finish \(10 s\)").until(r"2 leases run, \d+ s left")
    assert slave.interrupt().exit_code() == 130
    master.until(r"slave s1 left .* 2 tasks back in the queue")
    assert client.interrupt().exit_code() == 130
    os.kill(master.pid, signal.SIGTERM)
    assert master.exit_code() == 143
