"""Large data on a whole swarm: by reference, by frames and over TCP; published objects; memory, faults, bad peers.

The applications are in `apps/data.py`. What they report as `right` was compared with what was sent, byte by byte.
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import APPS, CHECKOUT, Swarm, at_once, descriptors_of, running, wait_until, zygote_of
from test_compute import swarm_in
from test_recovery import Knocking

from concurrent_swarm import components, rpc, tasks

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
    assert ended.about["result"], (ended.err, *(node.err[-600:] for node in nodes_of(swarm)))
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
@at_once
def test_values_of_every_size_come_back_as_they_were(swarm_of_module, app, kind):
    about = run(swarm_of_module, app, SIZES, kind=kind)
    check(about, len(SIZES))
    assert about["local"]


@pytest.fixture(scope="module", params=["master", "slave", "client", "tcp"])
def swarm_by_frames(request):
    """A swarm in which large data cannot go by reference everywhere, and the words for its clients."""
    one, node = Swarm(), request.param
    try:
        one.start_master(*(NO if node == "master" else ()))
        if node == "tcp":
            without_socket_file(one)
        one.start_slave(*(NO if node == "slave" else ()), workers=1)
        yield one, NO if node == "client" else (), node == "slave"
    finally:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("app", ["Echoes", "OneByOne", "InSystem"])
@at_once
def test_values_come_back_where_a_node_does_not_go_by_reference(swarm_by_frames, app):
    here, words, local = swarm_by_frames
    about = run(here, app, SIZES, *words, kind="nested")
    check(about, len(SIZES))
    assert about["local"] == local


def alone(command, state):
    """Runs a client without a swarm; it keeps what it must keep below `state`."""
    environ = {**os.environ, "CONCURRENT_SWARM_STATE": str(state)}
    return subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, timeout=60)


@pytest.mark.parametrize("app", ["Echoes", "InSystem"])
def test_values_come_back_without_a_swarm(app, tmp_path):
    command = [sys.executable, "client.py", str(APPS / "data.py"), "--app", app, "--workers", "0", "--json",
               "--set", "data.kind=nested", "--set", f"data.sizes={','.join(map(str, SIZES))}"]  # fmt: skip
    done = alone(command, tmp_path)
    assert json.loads(done.stdout)["result"]["right"] == len(SIZES), done.stderr.decode()


@pytest.mark.parametrize("size", [rpc.INLINE + 1, MIB])
@pytest.mark.parametrize("app", ["ReusesResults", "ClearsResults", "ReusesTasks"])
@at_once
def test_a_value_is_what_it_was_when_it_was_handed_over(swarm_of_module, app, size):
    check(run(swarm_of_module, app, [size], count=12), 12)


@pytest.mark.parametrize("app", ["ReusesResults", "ReusesTasks"])
@at_once
def test_a_value_is_what_it_was_when_it_was_handed_over_to_frames(swarm_by_frames, app):
    here, words, _ = swarm_by_frames
    check(run(here, app, [MIB], *words, count=12), 12)


# -- what is left afterwards ---------------------------------------------------------------------------------------


def descriptors_in_use(here):
    """How many descriptors each node and worker has open."""
    workers = [worker for slave in here.slaves for worker in here.workers_of(slave)]
    return {pid: len(descriptors_of(pid)) for pid in [*(node.pid for node in nodes_of(here)), *workers]}


def no_more(now, before):
    """Whether the same processes have no more descriptors open; at the first look a connection may have lingered."""
    return now.keys() == before.keys() and all(now[pid] <= before[pid] for pid in now)


@pytest.mark.slow
def test_nothing_is_left_of_runs_that_are_over(swarm, crew):
    here = swarm(slaves=1, workers=1)
    apps = ["Echoes", "InSystem", "Publishes", "AsksForResults", "PublishesInSystem"]
    run_all = lambda: list(crew.map(lambda app: run(here, app, SIZES, kind="nested"), apps))  # noqa: E731
    run_all()
    wait_until(lambda: here.proxy.status()["clients"] == [], "all clients have left")
    before = descriptors_in_use(here)
    run_all()
    wait_until(lambda: no_more(descriptors_in_use(here), before), f"no descriptor more is open than {before}")
    stores = [store_of(node) for node in nodes_of(here)]
    wait_until(lambda: not files_in(stores[0]), "no file of the master's is left")
    wait_until(lambda: len(files_in(stores[1])) <= 1, "no file of the slave's is left but its worker's spare")
    assert not spool_of(here)
    for node in (*here.slaves, here.master):
        node.ends()
    assert not any(store.exists() for store in stores)


@pytest.mark.parametrize("victim", [
    "worker", "master", pytest.param("client", marks=pytest.mark.slow), pytest.param("slave", marks=pytest.mark.slow),
])  # fmt: skip
@at_once
def test_nothing_is_left_after_a_kill(tmp_path_factory, victim):
    with running(slaves=2, workers=1) as here:
        kill_one(here, tmp_path_factory.mktemp("marks"), victim)


def kill_one(here, folder, victim):
    client = here.start_client("data.py", "--app", "Waiting", "--set", f"data.folder={folder}",
                               "--set", "data.sizes=5000000,5000000,5000000,5000000")  # fmt: skip
    wait_until(lambda: len(list(folder.glob("runs-*"))) == 2, "both workers run")
    stores = [store_of(node) for node in (client, *nodes_of(here))]
    assert any(map(files_in, stores))
    if victim == "master":
        restart_master(here)
        stores.append(store_of(here.master))
    else:
        dead = {"client": client.pid, "slave": here.slaves[0].pid, "worker": here.workers_of(here.slaves[0])[0]}
        os.kill(dead[victim], signal.SIGKILL)
    (folder / "go").touch()
    if victim != "client":
        assert client.wait().code == (1 if victim == "master" else 0), client.err
    for node in (*here.slaves, here.master):
        if node.code is None:
            node.ends()
    rpc.Store(rpc.payload_root()).close()  # a new store removes those of the dead, if no other is about it
    wait_until(lambda: not any(store.exists() for store in stores), "all are removed")


# -- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "nested"])
def test_a_task_whose_worker_was_killed_finds_its_data_again(swarm_of_module, tmp_path, kind):
    check(run(swarm_of_module, "WorkersDie", [5 * MIB] * 2, kind=kind, folder=tmp_path), 2)


def test_a_system_s_tasks_find_their_data_when_a_worker_is_killed(swarm_of_module):
    """The master keeps what it has taken until the outcome is there."""
    here = swarm_of_module
    for worker in [worker for slave in here.slaves for worker in here.workers_of(slave)]:
        os.kill(worker, signal.SIGKILL)
    check(run(here, "InSystem", [5 * MIB], kind="nested"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), NO], ids=["by reference", "by frames"])
@at_once
def test_large_tasks_outlive_a_master_with_a_journal(swarm, tmp_path, words):
    here = swarm(slaves=1, workers=1, journal=True)
    client = here.start_client("data.py", "--json", "--app", "Waiting", "--set", f"data.folder={tmp_path}", *words,
                               "--set", "data.kind=nested", "--set", "data.sizes=1000,200000,3000000")  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs-*")), "a task runs")
    restart_master(here, journal=True)
    (tmp_path / "go").touch()
    about = client.wait(60).about["result"]
    assert (about["right"], about["wrong"], about["errors"]) == (3, [], []), client.err


def restart_master(here, **options):
    """Kills the master as a power cut would, and starts it again at its address."""
    port = rpc.parse_address(here.address)[1]
    here.master.ends(signal.SIGKILL)
    here.master.parent.close()
    here.master.parent = None
    here.start_master(port=port, **options)


def remove_payloads(store):
    for name in files_in(store):
        (store / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False])
@at_once
def test_a_payload_file_that_vanished_fails_its_task_with_the_reason(swarm, tmp_path, local):
    here = swarm(slaves=0)
    client = here.start_client("data.py", "--json", "--app", "Echoes", "--set", "data.sizes=1000000",
                               "--wait", "30")  # fmt: skip
    store = store_of(here.master)
    wait_until(lambda: files_in(store), "the master holds the task")
    remove_payloads(store)
    if not local:
        without_socket_file(here)
    here.start_slave(workers=1)
    assert client.wait().code == 1
    assert "a payload is gone" in client.about["result"]["errors"][0]
    assert here.master.code is None and here.slaves[0].code is None
    check(run(here, "Echoes", kind="nested"), 1)


@pytest.mark.slow
@at_once
def test_a_result_file_that_vanished_fails_its_task_with_the_reason(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = here.start_client("data.py", "--json", "--app", "Slow", "--set", f"data.folder={tmp_path}",
                               "--set", "data.sizes=1000000", "--set", "data.count=3")  # fmt: skip
    wait_until(lambda: (tmp_path / "first").exists(), "the client is slow")
    wait_until(lambda: here.proxy.status()["done"] == 3, "all tasks have run")
    remove_payloads(store_of(here.master))
    (tmp_path / "go").touch()
    assert client.wait().code == 1
    about = client.about["result"]
    assert about["right"] == 1 and len(about["errors"]) == 2
    assert all("a payload is gone" in error for error in about["errors"])


@pytest.mark.slow
@pytest.mark.parametrize("node", ["slave", "client"])
@at_once
def test_a_node_without_room_copies_and_says_so_once(swarm, node):
    here = swarm(slaves=0)
    here.start_slave(workers=1)
    limit = ["prlimit", "--fsize=100000", "--pid"]
    if node == "slave":
        for pid in (here.slaves[0].pid, zygote_of(here.slaves[0].pid)):
            subprocess.run([*limit, str(pid)], check=True)
    words = [sys.executable, "-c", "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, "
             "100000)); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]  # fmt: skip
    command = [*(words if node == "client" else [sys.executable]), str(CHECKOUT / "client.py"), str(APPS / "data.py"),
               "--app", "Echoes", "--json", "--master", here.address, "--set", "data.kind=nested",
               "--set", f"data.sizes={','.join(map(str, SIZES))}"]  # fmt: skip
    done = subprocess.run(command, env=here.environ(), capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["result"]["right"] == len(SIZES), done.stderr
    log = done.stderr if node == "client" else here.slaves[0].err
    assert log.count("no room for a payload") == 1, log


# -- published objects ---------------------------------------------------------------------------------------------


def fetched(slave):
    """How many messages with published objects a slave has received, and of how many bytes."""
    told = rpc.Proxy(slave.started["address"]).stats().get("bytes of published objects", {"n": 0, "sum": 0})
    return told["n"], told["sum"]


@pytest.mark.parametrize("kind", ["bytes", "nested"])
@pytest.mark.parametrize("app, each", [("Publishes", 1), ("AsksForResults", 1), ("PublishesInSystem", 2)])
@at_once
def test_published_objects_of_every_size_arrive(swarm_of_module, app, each, kind):
    check(run(swarm_of_module, app, SIZES, kind=kind), each * len(SIZES))


@pytest.mark.slow
@pytest.mark.parametrize("app, each", [("Publishes", 1), ("AsksForResults", 1), ("PublishesInSystem", 2)])
@at_once
def test_published_objects_arrive_where_a_node_does_not_go_by_reference(swarm_by_frames, app, each):
    here, words, _ = swarm_by_frames
    check(run(here, app, [10, MIB, 40 * MIB], *words), each * 3)


@pytest.mark.parametrize("app", ["Publishes", "AsksForResults", "PublishesInSystem"])
def test_published_objects_arrive_without_a_swarm(app, tmp_path):
    command = [sys.executable, "client.py", str(APPS / "data.py"), "--app", app, "--workers", "0", "--json",
               "--set", "data.kind=nested", "--set", f"data.sizes={MIB}"]  # fmt: skip
    done = alone(command, tmp_path)
    assert json.loads(done.stdout)["result"]["right"] == 1 + (app == "PublishesInSystem"), done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("tcp", [False, True])
@at_once
def test_an_object_is_fetched_once_per_slave(tcp):
    with running(slaves=0) as here:
        if tcp:
            without_socket_file(here)
        for _ in range(2):
            here.start_slave(workers=2)
        about = run(here, "Publishes", [MIB], count=40, again=2)
        check(about, 80)
        sealed = len(rpc.dumps(bytes(MIB)))
        assert [fetched(slave) for slave in here.slaves] == [(1, sealed)] * 2, "equal content is one object"


def test_equal_content_is_sent_once_until_the_owner_changes():
    sent = []
    exchange = rpc.Exchange(lambda key, pieces: sent.append((key, b"".join(pieces))), {}.get)
    exchange.serve("c1")
    first, second = exchange.publish([1, b"x"]), exchange.publish([1, b"x"])
    assert first == second and len(sent) == 1 and first.size == len(sent[0][1])
    exchange.serve("c2")
    assert exchange.publish([1, b"x"]) != first, "nobody reaches the object of another owner by its content"


def test_an_object_that_cannot_be_pickled_is_named():
    exchange = rpc.Exchange(None, None)
    with pytest.raises(components.UsageError, match=r"the published object cannot be sent: attribute \"\[0\]\" is a l"):
        exchange.publish([lambda: 0])


@pytest.mark.slow
@at_once
def test_an_object_that_had_to_go_is_fetched_again(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, slave=("--set", "slave.shared=1"))
    check(run(here, "Chain", [700_000], steps="aabbxab", folder=tmp_path), 7)
    assert fetched(here.slaves[0])[0] == 4, "a, b, and after b had displaced a both again"


@pytest.mark.slow
@at_once
def test_objects_that_have_room_are_not_fetched_again_for_another_worker(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    check(run(here, "Chain", [700_000], steps="abxab", folder=tmp_path), 5)
    assert fetched(here.slaves[0])[0] == 2


@pytest.mark.slow
@at_once
def test_an_object_whose_file_vanished_is_fetched_again(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = here.start_client("data.py", "--json", "--app", "Chain", "--set", f"data.folder={tmp_path}",
                               "--set", "data.steps=awxa")  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs-w*")), "the object was looked at")
    remove_payloads(store_of(here.slaves[0]))
    (tmp_path / "go").touch()
    assert client.wait().about["result"]["right"] == 4, client.err
    assert fetched(here.slaves[0])[0] == 2


def maps_of(pid):
    """How many payloads a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count(rpc.payload_root())


@pytest.mark.slow
@at_once
def test_objects_go_when_their_client_ends(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = here.start_client("data.py", "--json", "--app", "Chain", "--set", f"data.folder={tmp_path}",
                               "--set", "data.steps=abw", "--set", "data.sizes=3000000")  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs-w*")), "the objects were looked at")
    (worker,) = here.workers_of(here.slaves[0])
    stores = [store_of(node) for node in nodes_of(here)]
    assert all(len(files_in(store)) >= 2 for store in stores)
    (tmp_path / "go").touch()
    assert client.wait().code == 0
    wait_until(lambda: not files_in(stores[0]), "the master has let them go")
    wait_until(lambda: len(files_in(stores[1])) <= 1, "the slave has let them go; one file is the worker's spare")
    wait_until(lambda: not maps_of(worker), "the worker has let them go")


@pytest.mark.slow
@at_once
def test_a_client_publishes_again_to_a_master_that_was_started_again(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client = here.start_client("data.py", "--json", "--app", "Chain", "--set", f"data.folder={tmp_path}",
                               "--set", "data.steps=wab")  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs-w*")), "the objects were published")
    restart_master(here, journal=True)
    (tmp_path / "go").touch()
    assert client.wait(60).about["result"]["right"] == 3, client.err


@pytest.mark.slow
@pytest.mark.parametrize("app", ["LooksForNothing", "AsksForNothing"])
@at_once
def test_an_object_that_nobody_has_gives_an_error_that_says_what_to_do(swarm_of_module, app):
    ended = swarm_of_module.run_client("data.py", "--app", app, seconds=90)
    assert ended.code == 1
    told = " ".join(ended.about["result"]["errors"]) if ended.about["result"] else ended.err
    assert "the published object 000000000000 is not here" in told, ended.err


def test_an_object_that_comes_anew_replaces_its_beginning(tmp_path):
    """As after a connection that broke in the middle."""
    shelf, key = rpc.Shelf(None), f"{'a' * 64}-{'b' * 16}"
    assert not shelf.take(key, 0, 6, b"abc")
    assert not shelf.take(key, 0, 6, b"abcd")
    assert shelf.take(key, 4, 6, b"ef")
    assert b"".join(shelf.get(key)) == b"abcdef"


@pytest.mark.slow
@at_once
def test_a_node_whose_folder_in_memory_vanished_copies(swarm):
    here = swarm(slaves=1, workers=1)
    for store in [store_of(node) for node in nodes_of(here)]:
        shutil.rmtree(store)
    check(run(here, "Echoes", SIZES, kind="nested"), len(SIZES))
    check(run(here, "PublishesInSystem", SIZES, kind="nested"), 2 * len(SIZES))


# -- memory --------------------------------------------------------------------------------------------------------


def highest_memory(pid):
    """The most memory that a process has had, in MiB."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


@pytest.mark.slow
@at_once
def test_tasks_for_which_memory_has_no_room_lie_on_the_disk_and_run(swarm):
    here = without_socket_file(swarm(slaves=0, master=("--set", "master.memory=4")))
    before = highest_memory(here.master.pid)
    words = ["--wait", "120", "--set", "data.sizes=3000000", "--set", "data.count=36"]
    clients = [here.start_client("data.py", "--json", "--app", "Echoes", *words) for _ in range(6)]
    wait_until(lambda: here.proxy.status()["queued"] >= 6 * 21, "what the windows let through is with the master")
    assert sum(path.stat().st_size for path in spool_of(here)) > 330 * MIB
    here.start_slave(workers=1)
    for client in clients:
        about = client.wait(60).about["result"]
        assert (about["right"], about["local"]) == (36, False), client.err
    on_their_way = 6 * (rpc.ROOM + tasks.MOST_BYTES) + rpc.ROOM  # each client and the slave, which go on to send
    assert highest_memory(here.master.pid) < before + 4 + on_their_way // MIB < before + 6 * 36 * 3
    wait_until(lambda: not spool_of(here), "nothing is left on the disk")


@pytest.mark.slow
@at_once
def test_results_for_a_slow_client_lie_on_the_disk_and_arrive(swarm, tmp_path):
    here = without_socket_file(swarm(slaves=0, master=("--set", "master.memory=4")))
    here.start_slave(workers=1)
    before = highest_memory(here.master.pid)
    client = here.start_client("data.py", "--json", "--app", "Slow", "--set", f"data.folder={tmp_path}",
                               "--set", "data.sizes=4000000", "--set", "data.count=60")  # fmt: skip
    wait_until(lambda: here.proxy.status()["done"] == 60, "all tasks have run")
    assert sum(path.stat().st_size for path in spool_of(here)) > 150 * MIB
    (tmp_path / "go").touch()
    about = client.wait(60).about["result"]
    assert (about["right"], about["local"]) == (60, False), client.err
    on_their_way = 2 * (rpc.ROOM + tasks.MOST_BYTES)  # from the slave and to the client
    assert highest_memory(here.master.pid) < before + 4 + on_their_way // MIB + 16 < before + 60 * 4
    wait_until(lambda: not spool_of(here), "nothing is left on the disk")


def test_a_backup_holds_no_payload(tmp_path):
    environment = components.Environment.claim("master", str(tmp_path / "m"))
    store = rpc.Store(rpc.own_folder(environment / "spool"))
    store.write([b"x" * 1000])
    files = [str(path) for path in environment._files(False)]
    assert files and not any("spool" in path for path in files)
    store.close()


class Told(list):
    """What an owner or a worker sends, in order."""

    def call(self, method, *params, parts=()):
        self.append((method, params, [rpc.frozen(part) for part in parts]))

    def report(self, *row):
        self.append(row)


class Gives(tasks.Task):
    values = ()

    def __call__(self):
        return self.values[self.which]


def test_a_task_that_is_too_large_is_refused_before_it_is_sent(monkeypatch):
    monkeypatch.setattr(rpc, "MAX_MESSAGE", MIB)
    told, ended, refused = Told(), [], []
    owner = tasks.Owner(told.call, lambda task, result, error: ended.append((task.name, error)), {})
    for name, size in (("small", 10), ("large", MIB), ("last", 10)):
        owner.push(Gives(name, value=bytes(size)), refused=refused.append)
    owner.pump()
    ((name, error),) = ended
    assert name == "large", error
    assert error.failure["kind"] == "unsendable" and len(refused) == 1
    assert "task large has 1,048," in str(error) and "a message holds 1,048,576" in str(error)
    assert sum(params[1] for method, params, _ in told if method == "submit") == 2


def results_of(*values, monkeypatch, most):
    """The rows that a worker reports for tasks that return these."""

    monkeypatch.setattr(rpc, "MAX_MESSAGE", most)
    made = [Gives(str(n), which=n) for n in range(len(values))]
    Gives.values = values
    batch = tasks.Packer({}).pack(made)
    told = Told()
    runner = tasks.LeaseRunner(told.report, lambda: False)
    runner.run(tasks.Envelope(1, "c1", 0, 0, len(made), batch.group, 1, 0, batch.parts))
    return told


def test_a_result_that_is_too_large_is_that_task_s_failure(monkeypatch):
    ((lo, hi, _, failures, _, last),) = results_of(1, bytes(MIB), 2, monkeypatch=monkeypatch, most=MIB)
    assert (lo, hi, last, list(failures)) == (0, 3, True, ["1"])
    assert failures["1"]["kind"] == "result"
    assert "1,048," in failures["1"]["message"] and "1,048,576" in failures["1"]["message"]


def test_results_that_are_too_large_together_go_one_by_one(monkeypatch):
    rows = results_of(*[bytes(700_000)] * 4, monkeypatch=monkeypatch, most=MIB)
    assert [row[:2] for row in rows] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [row[-1] for row in rows] == [False, False, False, True] and not any(row[3] for row in rows)


# -- bad peers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A master's channel and a node's link to it, both with a store below one root; `link(mechanism, announced)`."""
    root = str(tmp_path / "payloads")
    folder = tmp_path / "swarm"
    folder.mkdir()
    with ExitStack() as stack:
        here = stack.enter_context(swarm_in(folder))
        stores = [rpc.Store(root, 64 * MIB) for _ in range(2)]
        for store in stores:
            stack.callback(store.close)
        here.channel.store, here.came = stores[0], []
        rpc.tcpremote(here.channel, "result")(lambda endpoint, request, *_: here.came.append(request.parts))

        def link(mechanism="ipc", announced=True):
            made = here.link(addresses={mechanism: here.addresses[mechanism]})
            made.store = stores[1] if announced else None
            here.until(lambda: made.state == "ready")
            made.store = stores[1]
            return made

        yield here, link


def test_a_node_of_this_machine_sends_large_parts_as_references(pair):
    here, link = pair
    link().call("result", 1, parts=[b"x" * MIB, b"small"])
    here.until(lambda: here.came)
    (large, small), = here.came
    assert type(large) is rpc.Reference and large.read() == b"x" * MIB and small == b"small"


@pytest.mark.parametrize("mechanism, announced", [("tcp", True), ("ipc", False)])
def test_a_reference_of_a_node_that_may_not_send_one_is_garbage(pair, mechanism, announced):
    here, link = pair
    liar = link(mechanism, announced)
    assert not liar.master.local
    liar.master.local = liar.store.root  # as if it had been told so
    liar.call("result", 1, parts=[b"x" * MIB])
    here.until(lambda: here.channel.counts["garbage"])
    assert not here.came and [reason for _, reason in here.lost] == ["it sent garbage"]
    liar.master.local = ""
    here.until(lambda: liar.welcomes == [True, True])
    liar.call("result", 2, parts=[b"x" * MIB])
    here.until(lambda: here.came)


ODD = [
    "", "/", "../../etc/passwd/0/1", "0123456789abcdef/1/0", "0123456789abcdef/../0/1", "0123456789abcdeg/1/0/1",
    "0123456789abcdef/1/-1/1", "0123456789abcdef/lock/0/1", "0123456789ABCDEF/1/0/1", "x" * 255, "\0" * 40,
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_an_odd_text_is_garbage_and_the_channel_lives(pair, text):
    here, link = pair
    node = link()
    call, text = b'["result",1]', text.encode()
    head = struct.pack("<2sBB8sQQH2I", rpc.MAGIC, rpc.PROTOCOL, rpc.DATA, node.session.id, 1, 0, 2, len(call),
                       rpc.REFERENCE)  # fmt: skip
    node._post([head + call + bytes([len(text)]) + text])
    here.until(lambda: here.channel.counts["garbage"] == 1)
    here.until(lambda: node.welcomes == [True, True])
    node.call("result", 1, parts=[b"x" * MIB])
    here.until(lambda: here.came)


@pytest.mark.parametrize("lengths, more", [
    ([rpc.FRAMES | 2], [b'["result"', b",1]"]), ([rpc.REFERENCE], []), ([12, rpc.FRAMES | 3], [b"x"]),
    ([rpc.FRAMES | 0xFFFF], []),
], ids=["a call in two frames", "a call in a file", "frames that did not come", "65,535 frames"])  # fmt: skip
def test_an_odd_table_is_garbage_and_the_channel_lives(pair, lengths, more):
    here, link = pair
    node = link()
    own = {12: b'["result",1]', rpc.REFERENCE: b"\x1a0123456789abcdef/1/0/1000"}.get(lengths[0], b"")
    node._post([struct.pack(f"<2sBB8sQQH{len(lengths)}I", rpc.MAGIC, rpc.PROTOCOL, rpc.DATA, node.session.id, 1, 0,
                            len(lengths), *lengths) + own, *more])  # fmt: skip
    here.until(lambda: here.channel.counts["garbage"] == 1)
    here.until(lambda: node.welcomes == [True, True])


def test_a_reference_to_a_store_that_is_gone_is_no_garbage(pair):
    """The last message of a node that was killed, read after its store was swept."""
    here, link = pair
    node = link()
    node.master.local = node.store.root
    gone = rpc.Reference(f"{node.store.root}/0123456789abcdef", "1", 0, 10)
    node.call("result", 1, parts=[gone])
    here.until(lambda: here.came)
    ((part,),) = here.came
    with pytest.raises(FileNotFoundError):
        here.channel.store.adopt(part)
    with pytest.raises(rpc.PayloadGone, match="0123456789abcdef"):
        rpc.open_sealed(part)


@pytest.mark.parametrize("text", ["0/0/10", "63/0/10", "0/0/999999999999999", "x", ""])
def test_a_child_that_speaks_of_a_file_that_it_was_not_given_is_dropped(tmp_path, text):
    store = rpc.Store(str(tmp_path / "payloads"), MIB)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop, ended, heard = rpc.Loop(lambda now: now), [], []
    pipe = rpc.Pipe(loop, ours, lambda *call: heard.append(call), ended.append, store)
    theirs.sendall(struct.pack("<IH2I", 2 + 8 + 10 + 1 + len(text), 2, 10, rpc.REFERENCE) + b'["result"]'
                   + bytes([len(text)]) + text.encode())  # fmt: skip
    assert pipe._read() is False and ended == [pipe] and not heard and not pipe.open
    theirs.close()
    store.close()


def test_a_batch_in_a_file_that_is_not_there_is_refused(swarm_of_module, tmp_path):
    here = swarm_of_module
    with Knocking(here, "client", tmp_path, {}) as node:
        node.link.store = store = rpc.Store()
        heard = []
        rpc.tcpremote(node.link, name="refused")(lambda handler, request, number, reason: heard.append(reason))
        rpc.tcpremote(node.link, name="submit_failed")(lambda handler, request, error: heard.append(error["m"]))
        node.until(lambda: node.state == "welcome" and node.link.master.local, "it is let in")
        head = json.dumps({"bundle": "none", "name": "x", "classes": []}).encode()
        node.link.call("submit", 0, 1, 1, 0, parts=[head, b"", rpc.Reference(store.folder, "77", 0, 10)])
        node.until(lambda: heard, "the batch is refused")
        store.close()
    check(run(here, "Echoes"), 1)
