"""What a swarm does when something of it goes away or somebody else knocks: restart, loss, keys, ports, garbage."""

import json
import os
import random
import re
import signal
import socket
import socketserver
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import APPS, PATIENCE, Swarm, at_once, in_time, running, text_of, wait_until

from concurrent_swarm import components, master, rpc, tasks

PLAIN = "plain.py"


@pytest.fixture(scope="module")
def shared():
    """A master without slaves, for tests that only knock."""
    one = Swarm()
    try:
        one.start_master()
        yield one
    finally:
        one.close()


def result_of(run):
    """What the application left in `self.result`; it must have ended well."""
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run.about["result"]


def waiting(here, folder, count, *words):
    """A client whose tasks wait for `folder`/go, once one of them runs and all are accepted."""
    settings = ["--set", f"plain.folder={folder}", "--set", f"plain.count={count}"]
    client = here.start_client(PLAIN, "--json", "--app", "Waiting", *settings, *words)
    wait_until(lambda: list(folder.glob("run-*")), "a task runs")
    wait_until(lambda: (folder / "accepted").exists(), "all are accepted")
    return client


def port_of(here):
    """The port of the master's control channel."""
    return rpc.parse_address(here.address)[1]


def kill_and_restart(here, *words, journal=True, between=lambda: None):
    """Kills the master as a power cut would, and starts it again in the same folder on the same port."""
    port = port_of(here)
    old = here.master
    old.ends(signal.SIGKILL)
    old.parent.close()
    old.parent = None
    between()
    here.start_master(*words, port=port, journal=journal)


def unfinished(here):
    """How many tasks the journal would give to the next master to run; None before it has any."""
    with closing(sqlite3.connect(f"file:{here.master.folder / 'journal.db'}?mode=ro", uri=True)) as base:
        rows = base.execute("SELECT kind, detail FROM records WHERE kind IN ('batch', 'outcome')").fetchall()
    details = [(kind, json.loads(detail)) for kind, detail in rows]
    tasks = [detail[0] if kind == "batch" else detail[0] - detail[1] for kind, detail in details]
    return sum(tasks) if tasks else None


# -- the master goes away


@at_once
def test_a_killed_master_finishes_what_it_had_accepted_and_each_callback_comes_once(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = waiting(here, tmp_path, 40)
    kill_and_restart(here)
    (tmp_path / "go").touch()
    assert result_of(client.wait(60)) == {"sum": 780, "errors": []}
    assert sorted(text_of(tmp_path / "callbacks").split()) == sorted(f"w{n}" for n in range(40))
    assert here.slaves[0].code is None, "the slave came back by itself"


@at_once
def test_the_port_of_a_killed_master_of_these_tests_is_given_to_nobody_else(swarm):
    here = swarm(slaves=0, journal=True)

    def it_is_not_free():
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port_of(here)))

    kill_and_restart(here, between=it_is_not_free)
    assert here.proxy.status()["queued"] == 0


@at_once
def test_a_killed_master_leaves_no_process_behind(swarm, tmp_path):
    here = swarm(slaves=0, journal=True)
    words = ["--set", "systems.how=hang-init_system", "--set", f"systems.folder={tmp_path}"]
    client = here.start_client("systems.py", "--app", "RaisingApplication", *words)
    wait_until(lambda: text_of(tmp_path / "hangs"), "a system hangs in its host")
    here.master.ends(signal.SIGKILL)
    host = int(text_of(tmp_path / "hangs"))
    wait_until(lambda: not Path(f"/proc/{host}").exists(), "the host ends with its master")
    client.ends(signal.SIGKILL)


@at_once
def test_results_that_came_before_the_master_was_killed_are_not_computed_again(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = here.start_client(
        PLAIN, "--json", "--app", "OneByOneThenWait", "--set", f"plain.folder={tmp_path}", "--set", "plain.count=30"
    )
    wait_until(lambda: list(tmp_path.glob("run-*")), "the last task runs")
    wait_until(lambda: len(text_of(tmp_path / "callbacks").split()) == 29, "the others are done")
    wait_until(lambda: unfinished(here) == 1, "their results are safe")
    kill_and_restart(here)
    (tmp_path / "go").touch()
    result_of(client.wait(60))
    assert sorted(text_of(tmp_path / "callbacks").split()) == sorted(f"t{n}" for n in range(30))
    assert len(list(tmp_path.glob("ran-*"))) == 29, "none of them ran twice"


@pytest.mark.slow
@at_once
def test_a_slave_computes_on_while_its_master_is_away_and_delivers_to_the_next(swarm, tmp_path):
    here = swarm(slaves=1, workers=2, journal=True)
    client = waiting(here, tmp_path, 6)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "both workers have a task")

    def all_end():
        (tmp_path / "go").touch()
        slave = rpc.Proxy(here.slaves[0].started["address"])
        wait_until(lambda: slave.status()["running"] == 0, "what ran has ended without a master")

    kill_and_restart(here, between=all_end)
    assert result_of(client.wait(60)) == {"sum": 15, "errors": []}
    assert len(list(tmp_path.glob("run-*"))) == 6, "no task ran twice"
    assert here.proxy.status()["counters"]["adopted"] >= 2


@pytest.mark.slow
@at_once
def test_a_task_that_outlasts_two_masters_runs_once(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = waiting(here, tmp_path, 1)
    kill_and_restart(here)
    wait_until(lambda: here.proxy.status()["counters"].get("adopted"), "the second master knows of it")
    kill_and_restart(here)
    wait_until(lambda: here.proxy.status()["counters"].get("adopted"), "the third master knows of it")
    (tmp_path / "go").touch()
    assert result_of(client.wait(60)) == {"sum": 0, "errors": []}
    assert len(list(tmp_path.glob("run-*"))) == 1


@pytest.mark.slow
@at_once
def test_a_client_and_a_slave_find_a_master_that_is_away_for_a_while(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = waiting(here, tmp_path, 5)

    def nodes_notice():
        wait_until(lambda: "lost the master" in here.slaves[0].err, "the slave notices")
        wait_until(lambda: "lost the master" in client.err, "the client notices")

    kill_and_restart(here, between=nodes_notice)
    (tmp_path / "go").touch()
    assert result_of(client.wait(60))["sum"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
@at_once
def test_an_application_hears_whether_its_master_was_stopped(swarm, tmp_path, end):
    here = swarm(slaves=1, workers=1)
    client = here.start_client("plain.py", "--json", "--app", "Parting", "--set", f"plain.folder={tmp_path}")
    wait_until(lambda: here.proxy.status()["busy"] == 1, "its task runs")
    here.master.send(end)
    if end == signal.SIGINT:
        wait_until(lambda: "may finish (10 s)" in here.master.err, "it waits for what runs")
        here.master.send(end)
    assert client.wait().about["result"] is (end == signal.SIGINT), client.err + here.master.err
    reason = "it has stopped" if end == signal.SIGINT else r"no word from the master for \d+ s"
    told = rf"lost the master at {here.address} \({reason}\); looking for it"
    wait_until(lambda: re.search(told, here.slaves[0].err), reason)
    (tmp_path / "go").touch()


def test_a_slave_whose_master_was_stopped_is_not_ready_and_ends_at_once(swarm):
    here = swarm(slaves=1, workers=1)
    assert here.run_client("hello.py").code == 0
    slave = here.slaves[0]
    here.master.ends(signal.SIGTERM)
    wait_until(lambda: "(it has stopped)" in slave.err, "it has heard it")
    assert rpc.Proxy(slave.started["address"]).status()["link"] != "ready"
    began = time.monotonic()
    slave.ends(signal.SIGTERM)
    assert in_time(time.monotonic() - began, 3) and "may finish" not in slave.err


@pytest.mark.slow
@at_once
def test_what_a_slave_still_has_to_report_to_a_dead_master_is_no_result_of_the_next_one_s_tasks(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client, slave = waiting(here, tmp_path, 1), here.slaves[0]

    def it_ends_unheard():
        client.ends(signal.SIGKILL)
        (tmp_path / "go").touch()
        wait_until(lambda: rpc.Proxy(slave.started["address"]).status()["running"] == 0, "what ran has ended")
        slave.send(signal.SIGSTOP)

    kill_and_restart(here, journal=False, between=it_ends_unheard)
    other = here.start_client("hello.py", "--json")
    wait_until(lambda: here.proxy.status()["queued"] == 1, "the first task of this life waits")
    slave.send(signal.SIGCONT)
    assert result_of(other.wait(60)) == "Hello World"


@pytest.mark.slow
@at_once
def test_the_time_in_which_the_master_is_away_is_no_wait_for_a_worker(swarm, tmp_path):
    here = swarm(slaves=0, journal=True)
    client = here.start_client("hello.py", "--json", "--wait", "9")
    wait_until(lambda: unfinished(here) == 1, "its task is safe")

    def it_notices():
        wait_until(lambda: "lost the master" in client.err, "it notices, after 10 s")

    kill_and_restart(here, between=it_notices)
    here.start_slave(workers=1)
    assert result_of(client.wait(60)) == "Hello World"


@pytest.mark.slow
@at_once
def test_a_system_of_a_killed_master_starts_anew(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    words = ["--app", "WaitingSystem", "--json", "--set", f"systems.folder={tmp_path}", "--set", "systems.count=4"]
    client = here.start_client("systems.py", *words)
    wait_until(lambda: list(tmp_path.glob("run-*")), "a task runs")
    kill_and_restart(here)
    (tmp_path / "go").touch()
    assert result_of(client.wait(60)) == 6


@pytest.mark.slow
@at_once
def test_without_a_journal_a_client_is_not_left_waiting_by_a_new_master(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 5)
    kill_and_restart(here, journal=False)
    (tmp_path / "go").touch()
    client.wait()
    assert client.about["tasks"] == 5 or client.about["error"], "the tasks end, or the client is told why they do not"


@pytest.mark.slow
@at_once
def test_work_of_before_runs_though_its_client_comes_back_later(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = waiting(here, tmp_path, 6)
    client.send(signal.SIGSTOP)
    kill_and_restart(here)
    (tmp_path / "go").touch()
    wait_until(lambda: sum(row["done"] for row in here.proxy.slaves()) == 6, "all tasks are done")
    client.send(signal.SIGCONT)
    assert result_of(client.wait(60)) == {"sum": 15, "errors": []}


# -- a client goes away


@pytest.mark.slow
@at_once
def test_the_work_of_a_killed_client_is_dropped_after_the_retention(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, master=("--set", "master.retention=0.5"))
    client = waiting(here, tmp_path, 200)
    client.ends(signal.SIGKILL)
    wait_until(lambda: "its work is dropped" in here.master.err, "the retention has passed")
    assert here.proxy.status()["queued"] == 0
    (tmp_path / "go").touch()
    assert result_of(here.run_client("hello.py")) == "Hello World"
    assert len(list(tmp_path.glob("run-*"))) <= 64, "what was queued never runs"


def test_the_work_of_a_client_that_stops_is_dropped_at_once(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 200)
    client.send(signal.SIGTERM)
    wait_until(lambda: here.proxy.status()["queued"] == 0, "nothing is queued")
    assert client.wait().code == 143
    assert result_of(here.run_client("hello.py")) == "Hello World"


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code"), [(["--timeout", "10"], 4), ([], 143)])
@at_once
def test_a_client_whose_master_is_gone_still_ends(tmp_path_factory, words, code):
    with running(slaves=1, workers=1) as here:
        client = waiting(here, tmp_path_factory.mktemp("marks"), 3, *words)
        here.master.ends(signal.SIGKILL)
        if code == 143:
            client.send(signal.SIGTERM)
        assert client.wait().code == code, client.err


# -- a slave or a client comes first


@pytest.mark.slow
def test_a_slave_and_a_client_that_are_started_first_wait_and_join():
    here = Swarm()
    try:
        here.address = f"127.0.0.1:{here.hold_port()}"
        slave, client = here.start_slave(workers=1, ready=False), here.start_client("hello.py", "--json")
        for process in (slave, client):
            wait_until(lambda process=process: "waiting for the master: no" in process.err, "it says that it waits")
        here.start_master(port=port_of(here))
        here.until_ready(slave)
        assert result_of(client.wait()) == "Hello World"
    finally:
        here.close()


@pytest.mark.slow
@at_once
def test_a_slave_gives_up_after_its_wait_with_exit_code_3(shared):
    slave = shared.start("slave", "--master", unused(), "--wait", "0.2", ready=False).wait()
    sentence(slave, 3, "master")


def unused():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def sentence(process, code, *words):
    """The process ended with this code and told why in a block of error, why and fix, without a traceback."""
    assert process.wait().code == code, process.err
    lines = process.err.splitlines()
    assert sum(line.startswith("error:") for line in lines) == 1, process.err
    assert "Traceback" not in process.err and "internal error" not in process.err
    assert any(line.startswith("fix:") for line in lines), process.err
    for word in words:
        assert word in process.err, process.err


# -- keys


def knock(here, role, *words, **environ):
    """A slave or client that tries to get in."""
    if role == "slave":
        return here.start("slave", "--master", here.address, "--wait", "0.2", *words, ready=False, **environ)
    return here.start_client("hello.py", *words, **environ)


def access_file(here, role):
    return here.master.folder / "keys" / f"{role}.access"


@pytest.mark.parametrize("role", ["slave", "client"])
@at_once
def test_the_access_file_of_another_master_is_a_wrong_key(shared, tmp_path, role):
    about = json.loads(access_file(shared, role).read_text())
    other = rpc.Keyring(str(tmp_path / "keys"))
    path = tmp_path / "other.access"
    path.write_text(json.dumps(other.access(role, about["addresses"])))
    path.chmod(0o600)
    sentence(knock(shared, role, "--access", path), 3, "wrong key")


@pytest.mark.parametrize("role", ["slave", "client"])
@at_once
def test_no_access_file_names_the_file_to_copy(shared, tmp_path_factory, role):
    state = tmp_path_factory.mktemp("state")
    process = knock(shared, role, CONCURRENT_SWARM_STATE=str(state))
    sentence(process, 3, f"{role}.access", "--access")


@pytest.mark.parametrize("role", ["slave", "client"])
@at_once
def test_an_access_file_that_others_can_read_names_the_chmod_line(shared, tmp_path, role):
    path = tmp_path / "wide.access"
    path.write_text(access_file(shared, role).read_text())
    path.chmod(0o644)
    sentence(knock(shared, role, "--access", path), 3, "chmod", str(path))


@pytest.mark.parametrize(("role", "other"), [("slave", "client"), ("client", "slave")])
@at_once
def test_an_access_file_for_another_role_is_named(shared, role, other):
    sentence(knock(shared, role, "--access", access_file(shared, other)), 3, other)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 99}', b"\xff\xfe"])
@at_once
def test_a_damaged_access_file_is_named(shared, tmp_path_factory, content):
    path = tmp_path_factory.mktemp("damaged") / "damaged.access"
    path.write_bytes(content)
    path.chmod(0o600)
    sentence(knock(shared, "client", "--access", path), 3, str(path))


@at_once
def test_a_missing_access_file_is_named(shared, tmp_path):
    sentence(knock(shared, "client", "--access", tmp_path / "none.access"), 3, "none.access")


@pytest.mark.slow
@at_once
def test_a_revoked_key_ends_its_slave_and_keeps_it_out(swarm):
    here = swarm(slaves=1, workers=1)
    slave = here.slaves[0]
    keyring = rpc.Keyring(str(here.master.folder / "keys"))
    lines = text_of(here.master.folder / "keys" / "authorized").splitlines()
    (key,) = [line.split()[0] for line in lines if " slave " in line]
    keyring.revoke(key)
    sentence(slave, 3, "revoked")
    again = here.start("slave", "--master", here.address, "--wait", "0.2", name="s1", ready=False)
    sentence(again, 3, "revoked")
    here.start_slave(workers=1)
    assert result_of(here.run_client("hello.py")) == "Hello World"


# -- ports


@at_once
def test_a_port_that_is_taken_is_named_with_exit_code_2(shared):
    process = shared.start("master", "--port", port_of(shared), name="second", ready=False)
    sentence(process, 2, str(port_of(shared)))


@pytest.mark.slow
@at_once
def test_no_master_at_all_is_exit_code_3(shared):
    address = unused()
    process = shared.start("client", str(APPS / "plain.py"), "--app", "Many", "--master", address, "--wait", "0.2")
    sentence(process, 3, address)


class Stranger(socketserver.BaseRequestHandler):
    """Not a master."""

    def handle(self):
        self.request.recv(1024)
        self.request.sendall(self.server.answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
     b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
     bytes(range(256))],
    ids=["closes", "ssh", "page", "404", "json", "bytes"],
)
@pytest.mark.parametrize("role", ["slave", "client"])
@at_once
def test_a_port_that_is_something_else_is_said_to_be_so(shared, role, answer):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger) as server:
        server.daemon_threads, server.answer = True, answer
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            port = server.server_address[1]
            note = Path(shared.folder, "masters", str(port))
            note.write_text(f"{shared.master.folder}\n")
            words = ["--master", f"127.0.0.1:{port}", "--wait", "0.2"]
            app = [str(APPS / "plain.py"), "--app", "Many"] if role == "client" else []
            process = shared.start(role, *app, *words, ready=False)
            sentence(process, 3, str(port))
        finally:
            server.shutdown()
            note.unlink()


# -- garbage


def send(port, data, host="127.0.0.1"):
    """Sends bytes to a port, and what comes back is of no interest."""
    with socket.create_connection((host, port), PATIENCE) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while line.recv(4096):
                pass
        except OSError:  # closed at once, which is an answer too
            return


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["http", "tcp", "ipc"])
@at_once
def test_garbage_leaves_the_swarm_serving(channel):
    with running(slaves=1, workers=1) as here:
        send_garbage(here, channel)


def send_garbage(here, channel):
    where = here.proxy.status()["addresses"][channel]
    chance = random.Random(7)
    attacks = [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"POST /api/1 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
               GREETING, GREETING + bytes(2000), b"\xff" * 10_000]
    attacks += [chance.randbytes(chance.randrange(5000)) for _ in range(40)]
    for attack in attacks:
        if channel == "ipc":
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(PATIENCE)
                line.connect(where)
                try:
                    line.sendall(attack)
                except ConnectionError:
                    continue
        else:
            send(rpc.parse_address(where)[1], attack)
    assert result_of(here.run_client("hello.py")) == "Hello World"
    assert "Traceback" not in here.master.err


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"jsonrpc": "2.0", "method": "ping"', b"[" * 100_000, b'{"jsonrpc":"2.0","method":"x","id":1}', b"\xff"],
)
@at_once
def test_bad_json_is_answered_and_the_master_serves_on(shared, body):
    head = f"POST /api/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    send(port_of(shared), head.encode() + body)
    assert shared.proxy.ping() == "pong"


class Knocking:
    """A node with a right key that says what it should not. `role`: slave or client."""

    def __init__(self, here, role, folder, info=None):
        access = rpc.Access.load(str(access_file(here, role)))
        keys = rpc.NodeKeys(str(folder / "keys"))
        proxy = rpc.Proxy(here.address)
        addresses = keys.accept(access, proxy.enrol(**keys.enrolment(access, "knocking")))
        about = {"node_id": os.urandom(8).hex(), "resources": {"cpus": 1}, "workers": 1} if info is None else info
        self.link = rpc.Link(keys.credentials(access), {"version": components.__version__, **about})
        self.state = ""
        self.link.on_welcome = lambda info, fresh: setattr(self, "state", "welcome")
        self.link.on_lost = lambda reason: setattr(self, "state", "lost")
        self.link.on_refused = self.refused
        for method in ("lease", "swarm", "accepted", "outcome", "refused"):
            rpc.tcpremote(self.link, name=method)(lambda *_: None)
        self.link.connect(addresses)

    def refused(self, error):
        self.state, self.error = "refused", error

    def until(self, condition, what, seconds=PATIENCE):
        """Lets the link work until a condition holds."""

        def turn():
            self.link.receive()
            self.link.tick(self.link.clock())
            return condition()

        return wait_until(turn, f"{what}, {self.state}", seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()


BAD_CALLS = {
    "slave": [
        ("result", 1), ("result", "x", "y", "z", "w", "v"), ("result", 1, 0, 10**9, {}, []),
        ("result", 1, -5, 2, [], []), ("result", 1, 0, 1, {}, [0, float("1e308"), 0, 0, 0]),
        ("result", None, None, None, None, None, None), ("result", 1, 0, 1, {"0": "no table"}, [0] * 5),
        ("given_back", 1, 0, 1), ("given_back", "x", None, {}), ("worker_lost", 1, 0, 1, None),
        ("worker_lost", [], [], [], []), ("worker_lost", 1, 0, 1, "", {}),
        ("output", 1, 7), ("output", 1, [[0, 1, 2, 3]]), ("output", 1, [[0, 1, "x", 0]]),
        ("fetch", "nothing"), ("fetch", {"a": 1}), ("fetch", ["../../etc/passwd"]),
        ("resources", {"cpus": "many"}, "x"),
        ("resources", [], -1), ("resources", {"cpus": -7}, -7), ("leaving", 1, 2), ("submit", 0, 1, 1, {}),
        ("nonsense",), (7,), (),
    ],
    "client": [
        ("submit",), ("submit", "x", "y", "z", {}), ("submit", 0, -1, 1, {"bundle": "b"}),
        ("submit", 0, 1, 0, {"bundle": []}),
        ("submit", 0, 10**12, 1, {}), ("submit", 0, 1, 1, "no table"), ("submit", 0, 1, 1, {"bundle": {}}),
        ("settled", "x"), ("settled", [[]]), ("settled", None), ("cancel", "x"), ("cancel", []), ("cancel", {}, 7),
        ("push_tasksystem", 1, "nothing", {}), ("push_tasksystem", [], [], []), ("push_tasksystem", 1, {}, None),
        ("cancel_tasksystem", []), ("step", {}), ("work_settled", [1]), ("bundle", "x", {}),
        ("bundle", "../x", {"format": 1}),
        ("bundle", 7, 7), ("goodbye", 1), ("result", 1, 0, 1, {}, []), ("nonsense",),
    ],
}




@pytest.mark.slow
@pytest.mark.parametrize("role", ["slave", "client"])
@at_once
def test_nonsense_from_a_node_with_a_right_key_leaves_the_swarm_serving(swarm, tmp_path, role):
    here = swarm(slaves=1, workers=1)
    for call in BAD_CALLS[role]:
        with Knocking(here, role, tmp_path) as knocking:
            knocking.until(lambda k=knocking: k.state, "it is let in")
            assert knocking.state == "welcome", (call, knocking.error)
            knocking.link.call(*call) if call else knocking.link.send(knocking.link.master, [])
            heard = lambda k=knocking: not k.link.session.pending or k.state in ("lost", "refused")  # noqa: E731
            knocking.until(heard, f"{call} is heard")
        assert here.master.code is None, f"after {call}: {here.master.err}"
    assert result_of(here.run_client("hello.py")) == "Hello World"
    assert here.master.code is None, here.master.err


@contextmanager
def let_in(here, folder):
    """A slave that has been let in."""
    with Knocking(here, "slave", folder) as knocking:
        knocking.until(lambda: knocking.state == "welcome", "it is let in")
        yield knocking


@at_once
def test_a_fault_that_a_peer_sets_off_again_and_again_is_counted_and_no_flood_of_lines(swarm, tmp_path):
    here = swarm(slaves=0)
    with let_in(here, tmp_path) as knocking:
        for _ in range(100):
            knocking.link.call("fetch", {"no": "digest"})
        knocking.until(lambda: here.proxy.status()["refused"].get("crashes") == 100, "all are counted")
    assert 0 < here.master.err.count("what a peer set off failed") < 10


@pytest.mark.slow
@at_once
def test_a_peer_that_waits_for_many_objects_that_nobody_has_is_a_line_or_two(swarm, tmp_path):
    here = swarm(slaves=0)
    with let_in(here, tmp_path) as knocking:
        for number in range(200):
            knocking.link.call("fetch_shared", f"{number:064x}-{number:016x}")
        knocking.until(lambda: ", and for " in here.master.err, "the master says so", 30)
    assert here.master.err.count("waits for a published object") < 10


@pytest.mark.parametrize("role", ["slave", "client"])
@pytest.mark.parametrize(
    "info", [{}, {"node_id": 7}, {"node_id": "x", "resources": "many", "workers": "x"},
             {"node_id": [], "resources": {}, "workers": []}, {"node_id": "x", "bundle": []},
             {"node_id": "x", "resources": {"cpus": None}, "workers": -1, "tags": 7}],
    ids=str,
)
@at_once
def test_nonsense_in_a_hello_leaves_the_swarm_serving(shared, tmp_path, role, info):
    with Knocking(shared, role, tmp_path, info) as knocking:
        knocking.until(lambda: knocking.state or shared.master.code is not None, "an answer")
    assert shared.proxy.ping() == "pong", shared.master.err


def test_a_damaged_journal_is_named(swarm, tmp_path):
    here = Swarm()
    try:
        folder = Path(here.folder, "m")
        components.Environment(folder, "master").create()
        (folder / "journal.db").write_bytes(b"this is no journal" * 100)
        process = here.start("master", "--port", 0, name="m", ready=False).wait()
        assert process.code in (1, 2) and "journal.db" in process.err and "Traceback" not in process.err
        here.master = None
    finally:
        here.close()


BROKEN = """
from concurrent_swarm.master import MasterNode

def submit(self, *batch):
    raise ZeroDivisionError("a fault of the master")

MasterNode.submit = submit
"""


@pytest.mark.slow
@at_once
def test_a_client_whose_tasks_meet_a_fault_of_the_master_ends_and_says_so(swarm):
    here = swarm(slaves=0)
    (here.master.folder / "plugins" / "broken.py").write_text(BROKEN)
    wait_until(lambda: "broken" in here.master.err, "the plug-in is loaded")
    run = here.run_client(PLAIN, "--app", "Many")
    assert run.code == 1 and "the master could not take tasks (ZeroDivisionError: a fault of the master)" in run.err


@pytest.mark.parametrize("told", [{"attempt": "x"}, {"type": 1}, {"cause": {"type": 2}}, {"cause": 3}, {"notes": 1},
                                  {"notes": [1]}, {"retries": "x"}, {"retries": 10**400}])  # fmt: skip
def test_a_failure_of_other_types_is_no_report(told):
    with pytest.raises(components.UsageError):
        master.check_report(1, 0, 1, {"0": told})


@pytest.mark.parametrize("amount", [10**400, -1, True, "1", float("nan")])
def test_what_nobody_can_reckon_with_is_no_offer(amount):
    with pytest.raises(components.UsageError, match="is no offer"):
        master.check_offer({"cpus": amount}, 1)


def test_a_failure_whose_pickle_is_garbage_comes_as_a_description():
    error = tasks.open_failure({"type": "Odd", "message": "text", "pickle": "abc"})
    assert isinstance(error, tasks.TaskError) and "text" in str(error)
