"""What a person may do to a running swarm, and the numbers in the answers: pause, step, cancel, remove, start."""

import base64
import json
import re
import socket
import textwrap
from contextlib import suppress

import pytest
from concurrent_swarm.master import MOST_RUNS, MasterNode
from conftest import APPS, CHECKOUT, SAMPLES, children_of, processes_of, text_of, wait_until
from test_durable import rows_of
from test_systems import APP, result_of

from concurrent_swarm import rpc, tasks

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def left_alone(request, tmp_path):
    """However a test ends, nothing of it runs on."""
    yield
    (tmp_path / "go").touch()
    if "swarm_of_module" in request.fixturenames:
        here = request.getfixturevalue("swarm_of_module")
        for row in here.proxy.systems():
            with suppress(rpc.RpcError):  # it may have ended by itself
                here.proxy.system.cancel(row["name"], True)


def started(swarm, folder, app="PatientSteps", *words, json=True, **settings):
    """A client whose system waits for the file `go`, and the row of that system."""
    settings = {"folder": folder, "count": 8, "steps": 1, **settings}
    told = [word for name, value in settings.items() for word in ("--set", f"systems.{name}={value}")]
    known = {row["name"] for row in swarm.proxy.systems()}
    client = swarm.start_client(APP, *["--json"] * json, "--app", app, *told, *words)
    (name,) = wait_until(lambda: {row["name"] for row in swarm.proxy.systems()} - known, "the system is there")
    wait_until(lambda: system_row(swarm, name)["tasks"] == settings["count"], "the system has made its tasks")
    return client, name


def system_row(swarm, name):
    return next((row for row in swarm.proxy.systems() if row["name"] == name), None)


def audited(swarm, event):
    lines = text_of(swarm.master.folder / "logs" / "audit.jsonl").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


# -- systems


def test_a_paused_system_runs_no_further_task_until_it_goes_on(swarm_of_module, tmp_path):
    here = swarm_of_module
    client, name = started(here, tmp_path, count=200)
    wait_until(lambda: system_row(here, name)["running"] >= 2, "both workers have one of its tasks")
    about = here.proxy.system.pause(name)
    assert (about["system"], about["paused"]) == (name, True) and about["running"] >= 2
    assert about["waiting"] + about["running"] == 200 and system_row(here, name)["state"] == "paused"
    (tmp_path / "go").touch()
    wait_until(lambda: here.proxy.status()["busy"] == 0, "what ran has ended")
    done = system_row(here, name)["done"]
    assert done == about["running"] and here.proxy.system.pause(name)["waiting"] == 200 - done
    waiting = here.proxy.task.explain(f"{name}.199")
    assert (waiting["state"], waiting["paused"]) == ("waiting", True)
    assert result_of(here.run_client(APP, "--app", "Stepping", "--set", "systems.steps=1"))["sum"] == 45, "others run"
    assert system_row(here, name)["done"] == done
    about = here.proxy.system.pause(name, False)
    assert not about["paused"] and about["running"] and about["waiting"] + about["running"] == 200 - done
    assert result_of(client.wait())["outcomes"] == 200


@pytest.mark.slow
def test_explain_and_the_progress_of_the_client_say_that_a_person_paused_it(swarm_of_module, tmp_path):
    here = swarm_of_module
    client, name = started(here, tmp_path, count=40, json=False)
    wait_until(lambda: system_row(here, name)["running"] >= 2, "two of its tasks run")
    here.proxy.system.pause(name)
    wait_until(lambda: "tasks wait: a person has paused it" in client.err, "the client says so")
    told = here.start("client", "--master", here.address, "--explain", f"{name}.39").wait()
    assert "paused   by a person" in told.out, told.out + told.err
    here.proxy.system.cancel(name, True)
    client.wait()


def test_a_cancelled_system_says_how_many_tasks_waited_and_ran(swarm_of_module, tmp_path):
    client, name = started(swarm_of_module, tmp_path, count=20)
    wait_until(lambda: system_row(swarm_of_module, name)["running"] >= 2, "both workers have one of its tasks")
    about = swarm_of_module.proxy.system.cancel(name, True)
    assert (about["system"], about["kill"], about["waiting"] + about["running"]) == (name, True, 20)
    assert about["running"] >= 2 and client.wait().about["error"]["type"] == "Cancelled"


def test_a_system_in_lock_step_goes_on_when_a_person_says_so(swarm_of_module, tmp_path):
    (tmp_path / "go").touch()
    client, name = started(swarm_of_module, tmp_path, "PatientSteps", "--step", steps=2)
    wait_until(lambda: system_row(swarm_of_module, name)["state"] == "waiting", "it waits at its barrier")
    assert swarm_of_module.proxy.system.step(name) == {"system": name, "step": 2}
    assert result_of(client.wait())["called"] == 2


def test_a_system_in_lock_step_runs_on_without_further_stops(swarm_of_module, tmp_path):
    (tmp_path / "go").touch()
    client, name = started(swarm_of_module, tmp_path, "PatientSteps", "--step", steps=5)
    wait_until(lambda: system_row(swarm_of_module, name)["state"] == "waiting", "it waits at its barrier")
    assert swarm_of_module.proxy.system.step(name, True) == {"system": name, "step": 2}
    assert result_of(client.wait())["called"] == 5


def test_a_system_that_waits_for_nobody_is_not_stepped(swarm_of_module, tmp_path):
    client, name = started(swarm_of_module, tmp_path)
    with pytest.raises(rpc.RpcError, match=r"does not wait for a person.*--step"):
        swarm_of_module.proxy.system.step(name)
    (tmp_path / "go").touch()
    result_of(client.wait())


@pytest.mark.parametrize("call", ["system.pause", "system.step", "system.cancel", "slave.remove", "ui.view"])
def test_a_name_of_nothing_here_is_an_error_that_names_what_is(swarm_of_module, call):
    with pytest.raises(rpc.RpcError) as caught:
        swarm_of_module.proxy._request(call, ["s77"])
    assert caught.value.code == rpc.UNKNOWN_OBJECT and "s77" in str(caught.value)


@pytest.mark.parametrize("call", ["system.pause", "system.step", "slave.remove", "ui.view"])
def test_a_guest_controls_nothing(swarm_of_module, call):
    with pytest.raises(rpc.RpcError) as caught:
        rpc.Proxy(swarm_of_module.address)._request(call, ["1"])
    assert caught.value.code == rpc.NOT_AUTHENTICATED


@pytest.mark.slow
def test_a_pause_outlives_a_master_that_is_killed(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    client, name = started(here, tmp_path, count=5)
    here.proxy.system.pause(name)
    wait_until(lambda: rows_of(here, "paused"), "the pause is in the journal")
    port = here.address.rpartition(":")[2]
    here.master.process.kill()
    here.master.wait()
    (tmp_path / "go").touch()
    here.start_master(port=port, journal=True)
    row = wait_until(lambda: here.proxy.slaves() and system_row(here, name), "it is there again")
    assert row["state"] == "paused"
    here.proxy.system.pause(name, False)
    assert result_of(client.wait())["outcomes"] == 5


# -- pictures


@pytest.mark.parametrize(("how", "kind"), [("png", "image/png"), ("svg", "image/svg+xml")])
def test_a_picture_that_a_system_shows_comes_by_ui_view_with_its_type_and_number(swarm_of_module, tmp_path, how, kind):
    here = swarm_of_module
    client, name = started(here, tmp_path, "ShowingSystem", how=how)
    wait_until(lambda: system_row(here, name)["view"], "its picture is there")
    about = here.proxy.ui.view(name)
    assert (about["type"], about["version"]) == (kind, 1)
    assert base64.b64decode(about["data"]) == (PNG if how == "png" else b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "go").touch()
    assert client.wait().code == 0
    assert here.proxy.ui.view(name) == about, "it stays when the system has ended"
    assert not [entry for entry in audited(here, "admin") if entry["method"] == "ui.view"], "who looks changes nothing"


@pytest.mark.slow
def test_of_many_pictures_two_a_second_are_drawn_and_the_last_one_is_not_lost(swarm_of_module, tmp_path):
    here = swarm_of_module
    client, name = started(here, tmp_path, "ShowingSystem", how="many")
    wait_until(lambda: (system_row(here, name)["view"] or 0) >= 2, "more came, without anything else that happened")
    (tmp_path / "go").touch()
    drawn, took = result_of(client.wait())
    about = here.proxy.ui.view(name)
    assert (about["version"], base64.b64decode(about["data"])) == (drawn, PNG + b"%d" % drawn), "the last one is here"
    assert 2 <= drawn <= 2 + took / tasks.VIEW_EVERY, "of 1000"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("gif", "a picture of the type 'image/gif' cannot be shown"),
        ("text", "what begins with b'no picture' is no image/png"),
        ("large", "a picture of 300,008 bytes is too large"),
        ("raises", "division by zero"),
    ],
)
def test_what_is_no_picture_ends_its_system_with_the_reason(swarm_of_module, tmp_path, how, why):
    (tmp_path / "go").touch()
    words = ("--set", f"systems.folder={tmp_path}", "--set", f"systems.how={how}")
    run = swarm_of_module.run_client(APP, "--app", "ShowingSystem", *words)
    assert run.code == 1 and why in run.about["error"]["message"], run.about["error"]


@pytest.mark.slow
def test_the_picture_of_mandelbrot_fills_up_while_it_runs(swarm_of_module, tmp_path):
    here = swarm_of_module
    words = {"picture": "", "width": 1536, "height": 1024, "iters": 3000, "factor": 16}
    told = [word for name, value in words.items() for word in ("--set", f"mandelbrotsample.{name}={value}")]
    client = here.start_client("mandelbrot.py", "--json", *told)
    (name,) = wait_until(lambda: [row["name"] for row in here.proxy.systems() if row["view"]], "a picture is there")
    first = here.proxy.ui.view(name)
    assert client.wait(120).code == 0
    last = here.proxy.ui.view(name)
    assert last["version"] > first["version"] and last["data"] != first["data"]
    assert len(base64.b64decode(last["data"])) <= tasks.MOST_VIEW


# -- slaves


@pytest.mark.slow
def test_a_removed_slave_ends_at_once_says_by_whom_and_its_tasks_run_elsewhere(swarm, tmp_path):
    here = swarm(slaves=2, workers=1)
    client, _ = started(here, tmp_path, count=2)
    wait_until(lambda: here.proxy.status()["busy"] == 2, "both slaves have a task")
    gone = here.slaves[0]
    removed = here.name_of(gone)
    assert here.proxy.slave.remove(removed) == {"slave": removed, "leases": 1, "tasks": 1}
    assert gone.wait().code == 3
    assert "was removed from the swarm by an admin at 127.0.0.1" in gone.err and "Traceback" not in gone.err
    (tmp_path / "go").touch()
    assert result_of(client.wait())["outcomes"] == 2
    wait_until(lambda: [entry["method"] for entry in audited(here, "admin")] == ["slave.remove"], "it is audited")


# -- applications


def ended(swarm, run, seconds=60):
    """What became of a run."""
    return wait_until(lambda: [row for row in swarm.proxy.app.runs(run) if row["state"] == "ended"],
                      "the run has ended", seconds)[0]  # fmt: skip


def begun(swarm, name, source, *arguments):
    """Uploads an application and starts it; returns the run."""
    proxy = swarm.proxy
    return proxy.app.start(proxy.app.upload(name, source)["app"], list(arguments))["run"]


def says(body):
    """An application whose client does something and ends."""
    return (f"from concurrent_swarm.client import ApplicationNode\n\n\nclass Says(ApplicationNode):\n"
            f"    def app_main(self):\n{textwrap.indent(textwrap.dedent(body), ' ' * 8)}")  # fmt: skip


def test_an_application_is_uploaded_started_and_its_output_kept(swarm_of_module):
    here = swarm_of_module
    app = here.proxy.app.upload("md5.py", (SAMPLES / "md5.py").read_text())["app"]
    about = here.proxy.app.start(app, ["--timeout", "50"])
    assert (about["app"], about["name"], about["running"]) == (app, "md5.py", 1)
    row = ended(here, about["run"])
    assert (row["app"], row["code"], row["how"]) == (app, 0, "exit code 0"), row["output"]
    assert "result" in row["output"] and row["arguments"] == ["--timeout", "50"]
    assert here.proxy.app.runs()[0]["id"] == about["run"]
    work = here.master.folder / "work"
    wait_until(lambda: not list(work.iterdir()), "its folder went with it")
    wait_until(lambda: [entry["params"][0] for entry in audited(here, "admin") if entry["method"] == "app.start"][-1:]
               == [app], "its start is audited")  # fmt: skip
    assert [entry["name"] for entry in audited(here, "upload") if entry["app"] == app] == ["md5.py"]


@pytest.mark.slow
def test_two_runs_are_one_node_for_the_master_however_many_there_are(swarm_of_module):
    for _ in range(2):
        assert ended(swarm_of_module, begun(swarm_of_module, "says.py", says("print('here')")))["code"] == 0
    lines = (swarm_of_module.master.folder / "keys" / "authorized").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == len(lines)
    before = len(lines)
    ended(swarm_of_module, begun(swarm_of_module, "says.py", says("print('here')")))
    assert len((swarm_of_module.master.folder / "keys" / "authorized").read_text().splitlines()) == before


def test_an_uploaded_application_is_no_part_of_the_master_and_reaches_its_own_folder_and_this_master_alone(
    swarm_of_module, tmp_path
):
    here = swarm_of_module
    (tmp_path / "secret").write_text("secret")
    other = socket.create_server(("127.0.0.1", 0))
    run = begun(here, "tries.py", says(f"""
        import json, os, socket, sys

        def tried(function, *arguments):
            try:
                return bool(function(*arguments)) or True
            except OSError as error:
                return type(error).__name__

        keys = {str(here.master.folder / "keys")!r}
        connect = lambda port: socket.create_connection(("127.0.0.1", port), 5)
        own = os.path.join(os.getcwd(), "own")
        print(json.dumps({{
            "pid": os.getpid(),
            "keys": tried(os.listdir, keys), "token": tried(open, keys + "/token.json"),
            "secret": tried(open, {str(tmp_path / "secret")!r}), "write": tried(open, {str(tmp_path / "new")!r}, "w"),
            "source": tried(open, sys.modules[type(self).__module__].__file__, "a"),
            "other": tried(connect, {other.getsockname()[1]}), "listen": tried(socket.create_server, ("", 0)),
            "master": tried(connect, {int(here.address.rpartition(":")[2])}), "own": tried(open, own, "w"),
            "kill": tried(os.kill, {here.master.pid}, 0),
        }}), flush=True)
        """))  # fmt: skip
    row = ended(here, run)
    assert row["code"] == 0, row["output"]
    tried = json.loads(next(line for line in row["output"].splitlines() if line.startswith("{")))
    other.close()
    assert tried.pop("pid") not in {here.master.pid, *children_of(here.master.pid)}
    assert tried.pop("source") in ("PermissionError", "OSError"), "the last where the file system is read-only"
    refused = dict.fromkeys(["keys", "token", "secret", "write", "other", "listen", "kill"], "PermissionError")
    assert tried == {**refused, "master": True, "own": True}
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_stopped_ends_with_its_work(swarm_of_module, tmp_path):
    here = swarm_of_module
    source = text_of(APPS / "systems.py")
    run = begun(here, "systems.py", source, "--app", "PatientSteps", "--set", f"systems.folder={tmp_path}")
    wait_until(lambda: here.proxy.systems(), "its system runs")
    assert here.proxy.app.runs()[0]["state"] == "running"
    assert here.proxy.app.stop(run) == {"run": run, "running": True}
    assert ended(here, run)["how"] == "killed by SIGKILL"
    wait_until(lambda: not here.proxy.systems(), "its system went with it")


def test_of_what_a_run_prints_the_last_64_kib_are_kept(swarm_of_module):
    run = begun(swarm_of_module, "says.py", says("""
        for n in range(20_000):
            print(f"line {n:06}")
        """))  # fmt: skip
    row = ended(swarm_of_module, run)
    assert row["code"] == 0 and 60_000 < len(row["output"].encode()) <= 65536
    assert "line 019999" in row["output"] and "line 000001" not in row["output"]
    assert len(swarm_of_module.proxy.app.runs()[0]["output"]) <= 2000


@pytest.mark.slow
def test_only_so_many_applications_run_at_once_and_all_end_with_the_master(swarm):
    here = swarm(slaves=0)
    source = text_of(APPS / "plain.py")
    runs = [begun(here, "plain.py", source, "--app", "Many") for _ in range(MOST_RUNS)]
    with pytest.raises(rpc.RpcError, match="4 applications run already") as caught:
        begun(here, "plain.py", source, "--app", "Many")
    assert caught.value.code == rpc.TOO_MANY
    here.proxy.app.stop(runs[0])
    ended(here, runs[0])
    begun(here, "plain.py", source, "--app", "Many")
    assert len([row for row in here.proxy.app.runs() if row["state"] == "running"]) == MOST_RUNS
    here.master.process.kill()
    wait_until(lambda: not processes_of(here.folder), "no process is left, though the master could say nothing")


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("../up.py", "", "is no name for an application"),
        ("a/b.py", "", "is no name"),
        ("sh", "", "is no name"),
        (".py", "", "is no name"),
        ("large.py", "#" * 300_000, "has 300,000 bytes"),
        ("x.py", 5, "source must be str"),
    ],
)
def test_what_is_no_application_is_not_taken(swarm_of_module, name, source, why):
    with pytest.raises(rpc.RpcError, match=why):
        swarm_of_module.proxy.app.upload(name, source)


@pytest.mark.parametrize(
    ("app", "arguments", "why"),
    [
        ("0" * 16, [], "there is no application 0000"),
        ("../../keys", [], "there is no application"),
        (None, [5], "the arguments cannot be passed"),
        (None, ["a\0b"], "the arguments cannot be passed"),
        (None, ["a" * 9000], "the arguments cannot be passed"),
    ],
)
def test_what_cannot_be_started_is_an_error(swarm_of_module, app, arguments, why):
    app = app or swarm_of_module.proxy.app.upload("says.py", says("pass"))["app"]
    with pytest.raises(rpc.RpcError, match=why):
        swarm_of_module.proxy.app.start(app, arguments)


def test_a_source_that_cannot_be_loaded_says_so_in_its_output(swarm_of_module):
    row = ended(swarm_of_module, begun(swarm_of_module, "broken.py", "def (:\n"))
    assert row["code"] and "broken.py:1: invalid syntax" in row["output"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--set", "master.uploads=no"), ("--host", "0.0.0.0")])
def test_a_master_takes_no_applications_where_its_owner_or_the_network_forbids_it(swarm, words):
    here = swarm(slaves=0, master=words)
    here.address = here.address.replace("0.0.0.0", "127.0.0.1")
    for call, params in (("app.upload", ["says.py", says("pass")]), ("app.start", ["0" * 16])):
        with pytest.raises(rpc.RpcError, match=r"takes no applications.*master.uploads=yes") as caught:
            here.proxy._request(call, params)
        assert caught.value.code == rpc.NOT_ALLOWED
    assert not (here.master.folder / "uploads").exists() and here.proxy.app.runs() == []


@pytest.mark.parametrize("call", ["app.upload", "app.start", "app.stop", "app.runs"])
def test_a_guest_starts_nothing_and_reads_no_output(swarm_of_module, call):
    with pytest.raises(rpc.RpcError) as caught:
        rpc.Proxy(swarm_of_module.address)._request(call, ["x"])
    assert caught.value.code == rpc.NOT_AUTHENTICATED


# -- configuration


def test_the_items_are_told_with_type_choices_and_meaning_so_that_a_form_can_be_drawn(swarm_of_module):
    rows = {f"{row['section']}.{row['key']}": row for row in swarm_of_module.proxy.config.items()}
    scheduler, quota, sandbox = (rows[name] for name in ("master.task_scheduler", "quotas.queued", "master.sandbox"))
    assert {"GenericTaskScheduler", "ZMQTaskScheduler"} <= set(scheduler["choices"])
    assert (scheduler["type"], scheduler["value"], scheduler["live"]) == ("extensionpoint", "ZMQTaskScheduler", True)
    assert (quota["type"], quota["minimum"], quota["maximum"], quota["value"]) == ("int", 0, None, "1000000")
    assert (sandbox["type"], sandbox["choices"], sandbox["live"]) == ("choice", ["standard", "strict", "off"], False)
    assert all(row["doc"] or row["section"] == "baseon" for row in rows.values())


def test_what_the_document_says_to_count_at_the_next_start_cannot_be_set_before():
    rows = re.findall(r"^\| `((?:master|node|limits|quotas|baseon)\.\w+)` .*\| (at once|next start) \|$",
                      (CHECKOUT / "docs" / "configuration.md").read_text(), re.MULTILINE)  # fmt: skip
    assert len(rows) > 40 and {name for name, when in rows if when == "next start"} == MasterNode.FIXED


def test_an_item_that_counts_from_the_start_is_not_set_and_says_where_to(swarm_of_module):
    for section, key, value in (("master", "port", "9000"), ("Master", "Uploads", "yes"), ("node", "log_format", "")):
        with pytest.raises(rpc.RpcError, match=r"counts when the master starts.*env\.ini"):
            swarm_of_module.proxy.config.set(section, key, value)
    rows = {row["key"]: row for row in swarm_of_module.proxy.config.items()}
    assert rows["uploads"]["value"] == "loopback"


@pytest.mark.slow
def test_another_scheduler_and_another_strategy_count_at_once(swarm):
    here = swarm(slaves=0)
    (here.master.folder / "plugins" / "odd.py").write_text(textwrap.dedent("""
        from concurrent_swarm.components import Component, implements
        from concurrent_swarm.tasks import ITaskScheduler, ITaskScheduleStrategy

        class Raises(Component):
            implements(ITaskScheduler)
            def setup(self, master): raise ArithmeticError("no setup")
            def stop(self): pass
            def place(self, slaves, lease): return slaves[0]
            def rate_slaves(self): return []
            def task_pushed(self, slave, count): pass
            def task_finished(self, slave, count): pass

        class Told(Component):
            implements(ITaskScheduleStrategy)
            def setup(self, scheduler, master): self.log.warning("a strategy is told")
            def rate(self, slave): return 0
            def get_next_slave(self, slaves): return slaves[0]
        """))
    wait_until(lambda: "plug-in odd" in here.master.err, "the plug-in is loaded")
    set_item, status = here.proxy.config.set, here.proxy.status
    assert set_item("master", "task_scheduler", "GenericTaskScheduler") == "GenericTaskScheduler"
    assert status()["scheduler"] == "GenericTaskScheduler"
    set_item("generictaskscheduler", "strategy", "Told")
    wait_until(lambda: "a strategy is told" in here.master.err, "it is in the log")
    for value, why in (("Raises", "no setup"), ("Nonsense", "GenericTaskScheduler"), ("", "needs a")):
        with pytest.raises(rpc.RpcError, match=why):
            set_item("master", "task_scheduler", value)
        rows = {row["key"]: row["value"] for row in here.proxy.config.items()}
        assert (status()["scheduler"], rows["task_scheduler"]) == ("GenericTaskScheduler", "GenericTaskScheduler")


def test_a_quota_counts_at_once_for_what_waits_and_nonsense_changes_nothing(swarm_of_module, tmp_path):
    here = swarm_of_module
    here.proxy.config.set("quotas", "running", "1")
    try:
        client, name = started(here, tmp_path, count=30)
        wait_until(lambda: system_row(here, name)["running"] == 1, "one of its tasks runs")
        for value in ("-1", "many", "1.5"):
            with pytest.raises(rpc.RpcError, match="whole number from 0"):
                here.proxy.config.set("quotas", "running", value)
        with pytest.raises(rpc.RpcError, match=r"did you mean quotas\.running"):
            here.proxy.config.set("quotas", "runing", "1")
        assert here.proxy.status()["quotas"]["running"] == 1 and system_row(here, name)["running"] == 1
    finally:
        here.proxy.config.set("quotas", "running", "0")
    wait_until(lambda: system_row(here, name)["running"] >= 2, "more of them run")
    (tmp_path / "go").touch()
    assert result_of(client.wait())["outcomes"] == 30
