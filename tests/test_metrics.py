"""What programs ask a node: /metrics, /healthz, /readyz."""

import http.client
import math
import signal
from contextlib import closing

import pytest
from conftest import descriptors_of, text_of, wait_until
from hypothesis import given
from hypothesis import strategies as st

from concurrent_swarm import components, rpc

PREFIX = components.PREFIX


def parsed(text):
    """name of a sample -> {labels: value}, by the parser of Prometheus' own client."""
    parser = pytest.importorskip("prometheus_client.parser", reason="pip install prometheus_client")
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def read(address, path, **headers):
    """The status, the headers and the text of a page."""
    connection = http.client.HTTPConnection(address, timeout=60)
    with closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def metrics_of(node):
    """What a node's page says, without the prefix."""
    status, headers, text = read(node.started["address"], "/metrics")
    assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {name.removeprefix(PREFIX): values for name, values in parsed(text).items()}


def value(found, name, **labels):
    """The value of one sample."""
    return found[name][tuple(sorted(labels.items()))]


# -- the text ------------------------------------------------------------------------------------------------------


def test_the_official_parser_reads_every_kind_of_metric_and_any_label():
    odd = 'a "quoted" \\ back\nline, {brace}=\U0001f600'
    measured = components.Series()
    measured.add((0.1, 0.5, 7.0))
    text = components.exposition([
        components.metric("tasks_total", "Tasks: \\ and\nmore.", 3, slave=odd + "\ud800"),
        components.metric("load", "No help", -0.25),
        components.metric("odd", "", math.inf),
        components.metric("task_seconds", "Seconds.", measured.histogram((0.1, 1.0)), kind="x"),
        components.metric("process_open_fds", "Theirs.", 7),
    ]).decode()
    assert text.endswith("\n") and text.count("# TYPE") == 5
    assert parsed(text) == {
        f"{PREFIX}tasks_total": {(("slave", f"{odd}?"),): 3}, f"{PREFIX}load": {(): -0.25},
        f"{PREFIX}odd": {(): math.inf},
        f"{PREFIX}task_seconds_bucket": {
            (("kind", "x"), ("le", "0.1")): 1, (("kind", "x"), ("le", "1.0")): 2, (("kind", "x"), ("le", "+Inf")): 3},
        f"{PREFIX}task_seconds_sum": {(("kind", "x"),): 7.6}, f"{PREFIX}task_seconds_count": {(("kind", "x"),): 3},
        "process_open_fds": {(): 7},
    }  # fmt: skip


@given(st.lists(st.floats(1e-7, 1e5), max_size=200), st.integers(0, 6))
def test_a_histogram_counts_what_is_up_to_each_bound_and_never_less_than_before(values, coarser):
    measured = components.Series()
    measured.add(values)
    before = measured.histogram()
    for bound, count in before.counts.items():
        assert sum(one <= bound for one in values) <= count <= sum(one <= bound * 33 / 32 for one in values)
    measured._coarsen(measured.shift + coarser)
    after = measured.histogram()
    assert all(after.counts[bound] >= count for bound, count in before.counts.items()) and after.n == len(values)


# -- what nodes tell -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(swarm_of_module):
    """A swarm that has done 1,001 tasks, of which one has failed."""
    run = swarm_of_module.run_client("plain.py", "--app", "Many", "--set", "plain.count=1000")
    assert run.code == 0, run.err
    failed = swarm_of_module.run_client("plain.py", "--app", "RaisesApplication", "--set",
                                        "plain.how=custom")
    assert failed.code == 1
    return swarm_of_module


def test_the_metrics_of_a_master_count_what_was_done(here):
    found = metrics_of(here.master)
    done = here.proxy.status()["done"]
    assert done > 1000 and value(found, "tasks_total") == done
    assert value(found, "tasks_failed_total") == here.proxy.status()["failed"] > 0
    assert (value(found, "slaves"), value(found, "workers"), value(found, "tasks_queued")) == (2, 2, 0)
    assert sum(found["slave_tasks_total"].values()) == done
    assert {dict(labels)["slave"] for labels in found["slave_workers"]} == {"s1", "s2"}
    assert value(found, "info", role="master", version=components.__version__,
                 python=here.proxy.status()["python"]) == 1  # fmt: skip
    assert value(found, "process_resident_memory_bytes") > 1e6 and value(found, "process_cpu_seconds_total") > 0


def test_histograms_of_a_master_count_each_task_once(here):
    found = metrics_of(here.master)
    done = here.proxy.status()["done"]
    for name in ("task_seconds", "queue_seconds"):
        assert value(found, f"{name}_count") == value(found, f"{name}_bucket", le="+Inf") == done
        assert 0 < value(found, f"{name}_sum") / done < 60
    assert value(found, "sent_bytes_total") > 1000 and value(found, "received_bytes_total") > 100


def test_the_metrics_of_a_slave_count_what_it_has_run(here):
    rows = [metrics_of(slave) for slave in here.slaves]
    assert sum(value(found, "tasks_total") for found in rows) == here.proxy.status()["done"]
    assert all(value(found, "connected") == value(found, "workers") == 1 for found in rows)
    assert all(value(found, "leases_running") == 0 for found in rows)


def page_of(client):
    """Where a client listens; it tells nobody."""
    own = {target for target in descriptors_of(client.pid).values() if target.startswith("socket:")}
    rows = [line.split() for line in text_of(f"/proc/{client.pid}/net/tcp").splitlines()[1:]]
    ports = [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    assert len(ports) == 1
    return f"127.0.0.1:{ports[0]}"


def test_a_client_has_metrics_too(here, tmp_path):
    words = ["--app", "Waiting", "--set", "plain.count=3", "--set", f"plain.folder={tmp_path}", "--debug"]
    client = here.start_client("plain.py", *words)
    wait_until(lambda: (tmp_path / "accepted").exists(), "its tasks are accepted")
    address = page_of(client)
    found = {name.removeprefix(PREFIX): values for name, values in parsed(read(address, "/metrics")[2]).items()}
    assert (value(found, "tasks_out"), value(found, "connected")) == (3, 1)
    assert [read(address, path)[:1] for path in ("/healthz", "/readyz")] == [(200,), (200,)]
    (tmp_path / "go").touch()
    assert client.wait().code == 0


def test_no_more_than_200_slaves_have_samples_of_their_own(node):
    for number in range(205):
        node.board.slave_joined(f"s{number}", {"cpus": 1}, [], 1, 0.0)
    found = parsed(components.exposition(node.metrics()).decode())
    assert len(found[f"{PREFIX}slave_workers"]) == 200
    assert value(found, f"{PREFIX}slaves_not_shown") == 5 and value(found, f"{PREFIX}slaves") == 205


@pytest.fixture
def node(master_here):
    return master_here("master.journal=no")


# -- whether it lives, whether it is ready -------------------------------------------------------------------------


def test_a_master_and_a_slave_are_alive_and_ready(here):
    for node in (here.master, *here.slaves):
        assert read(node.started["address"], "/healthz")[::2] == (200, "ok\n")
        assert read(node.started["address"], "/readyz")[::2] == (200, "ready\n")


def test_a_node_whose_loop_does_not_turn_is_not_alive(node, monkeypatch):
    monkeypatch.setattr(rpc, "ALIVE_WITHIN", 0.1)
    for path in ("/healthz", "/readyz", "/metrics"):
        status, _, text = read(node.server.address, path)
        assert status == 503 and "has not turned" in text


@pytest.mark.slow
def test_a_master_that_stops_is_alive_and_not_ready(swarm, tmp_path):
    here = swarm(workers=1)
    words = ["--app", "Waiting", "--set", "plain.count=1", "--set", f"plain.folder={tmp_path}"]
    client = here.start_client("plain.py", *words)
    wait_until(lambda: here.proxy.status()["busy"], "its task runs")
    here.master.send(signal.SIGTERM)
    _, _, text = wait_until(lambda: (answer := read(here.address, "/readyz"))[0] == 503 and answer, "it stops")
    assert text == "not ready: it is stopping\n" and read(here.address, "/healthz")[0] == 200
    (tmp_path / "go").touch()
    client.send(signal.SIGTERM)
    client.wait()


@pytest.mark.slow
def test_a_slave_without_a_master_is_alive_and_not_ready(swarm):
    here = swarm()
    slave = here.slaves[0].started["address"]
    here.master.ends()
    _, _, text = wait_until(lambda: (answer := read(slave, "/readyz"))[0] == 503 and answer, "it has noticed")
    assert text == "not ready: it has no master\n" and read(slave, "/healthz")[0] == 200


# -- who may read what ---------------------------------------------------------------------------------------------


def test_a_page_for_administrators_is_not_shown_to_guests():
    page = rpc.Page("text/plain", lambda request: (request.query["of"].encode(), 200), ("admin",))
    server = rpc.ControlServer(rpc.Service(), token="key", pages={"/x": page})
    server.start()
    try:
        assert read(server.address, "/x?of=me")[0] == 401
        assert read(server.address, "/x?of=me", Authorization="Bearer key")[::2] == (200, "me")
    finally:
        server.stop()
