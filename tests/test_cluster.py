"""Applications on a real swarm: master, slaves and clients as processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import (
    APPS,
    CHECKOUT,
    SAMPLES,
    at_once,
    children_of,
    descriptors_of,
    running,
    text_of,
    wait_until,
    zygote_of,
)
from test_durable import kill_master

from concurrent_swarm import rpc, tasks

PLAIN = "plain.py"


def plain(swarm, app, *settings, **environ):
    """Runs an application of plain.py and returns the run."""
    words = [word for setting in settings for word in ("--set", f"plain.{setting}")]
    return swarm.run_client(PLAIN, "--app", app, *words, **environ)


def result_of(run):
    """What the application left in `self.result`; it must have ended well."""
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run.about["result"]


# -- the samples


@at_once
def test_md5_finds_its_number_on_two_slaves_of_one_host(swarm_of_module):
    run = swarm_of_module.start_client("md5.py", "--set", "md5.stop=200000", "--set", "md5.number=176396").wait()
    assert (run.code, run.out) == (0, "result   176396\n"), run.err
    assert "done " in run.err and "0 failed" in run.err


@at_once
def test_hello_prints_its_result_on_stdout_and_the_rest_on_stderr(swarm_of_module):
    run = swarm_of_module.start_client("hello.py").wait()
    assert run.code == 0
    assert run.out.splitlines()[-1] == "result   Hello World"
    assert "the task is on its way" in run.err


@at_once
def test_a_failing_application_exits_with_1_and_groups_the_failures_at_the_users_line(swarm_of_module):
    run = swarm_of_module.start_client("failing.py").wait()
    line = (SAMPLES / "failing.py").read_text().partition("raise ValueError")[0].count("\n") + 1
    assert run.code == 1
    assert "3 of 64 tasks failed" in run.err
    assert run.err.count("3 x ValueError: range end before start") == 1
    assert f"failing.py:{line} in __call__" in run.err or f'failing.py", line {line}' in run.err


@pytest.mark.slow
def test_md5_with_local_needs_no_swarm(tmp_path):
    environ = {**os.environ, "CONCURRENT_SWARM_STATE": str(tmp_path), "TMPDIR": str(tmp_path)}
    words = ["samples/md5.py", "--local", "--set", "md5.stop=200000", "--set", "md5.number=17639"]
    command = [sys.executable, "client.py", *words]
    run = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "result   17639\n"), run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("concurrent-*"))


# -- applications and where their code is


@at_once
def test_a_file_takes_its_siblings_along(swarm_of_module):
    assert result_of(swarm_of_module.run_client("siblings/main.py")) == 41


@at_once
def test_a_package_runs_with_its_own_module_names(swarm_of_module):
    assert result_of(swarm_of_module.run_client("packaged")) == 42


@at_once
def test_a_module_of_a_package_runs_with_m(swarm_of_module):
    path = os.pathsep.join([str(APPS), *(entry or os.getcwd() for entry in sys.path)])
    words = ["-m", "packaged", "--master", swarm_of_module.address, "--json"]
    assert result_of(swarm_of_module.start("client", *words, PYTHONPATH=path).wait()) == 42


@pytest.mark.slow
@at_once
def test_a_slave_runs_what_it_never_saw(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    app = tmp_path / "unseen.py"
    shutil.copy(APPS / PLAIN, app)
    run = here.run_client(str(app), "--app", "Many")
    assert result_of(run)["sum"] == 90
    app.unlink()
    assert len(list((here.slaves[0].folder / "apps").iterdir())) >= 1


@pytest.mark.slow
@at_once
def test_a_late_slave_gets_work(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 2)
    late = here.start_slave(workers=1)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "the late slave runs the other")
    assert here.workers_of(late)
    (tmp_path / "go").touch()
    assert result_of(client.wait())["sum"] == 1


@pytest.mark.slow
@at_once
def test_two_versions_of_a_file_run_side_by_side(swarm, tmp_path):
    here = swarm(slaves=1, workers=2)
    app, source = tmp_path / "app.py", (APPS / PLAIN).read_text()
    clients = []
    for version in ("one", "two"):
        app.write_text(source.replace('VERSION = "one"', f'VERSION = "{version}"'))
        words = ["--json", "--app", "Versions", "--set", f"plain.folder={tmp_path}"]
        clients.append(here.start_client(str(app), *words))
        wait_until(lambda v=version: (tmp_path / f"started-{v}").exists(), f"version {version} has started")
    (tmp_path / "go").touch()
    assert [result_of(client.wait()) for client in clients] == [["one"], ["two"]]
    assert result_of(here.run_client(str(app), "--app", "Versions", "--set", f"plain.folder={tmp_path}")) == ["two"]


# -- pushing


@at_once
def test_push_task_runs_each_and_answers_each(swarm_of_module):
    assert result_of(plain(swarm_of_module, "OneByOne", "count=100")) == {"sum": 9900, "heard": True}


@pytest.mark.parametrize("how", ["list", "tuple", "generator", "set"])
@at_once
def test_push_tasks_takes_any_iterable_and_answers_with_the_count(swarm_of_module, how):
    assert result_of(plain(swarm_of_module, "Many", f"how={how}", "count=50")) == {"sum": 2450, "heard": [50]}


def test_push_tasks_draws_a_hundred_thousand_from_a_generator(swarm_of_module):
    run = plain(swarm_of_module, "Many", "how=generator", "count=100000")
    assert result_of(run) == {"sum": 9999900000, "heard": [100000]}


@at_once
def test_push_tasks_of_nothing_is_answered(swarm_of_module):
    assert result_of(plain(swarm_of_module, "Nothing")) == {"heard": 0}


@at_once
def test_tasks_may_be_pushed_from_another_thread(swarm_of_module):
    assert result_of(plain(swarm_of_module, "FromThread", "count=300")) == 89700


@at_once
def test_a_task_that_is_pushed_many_times_begins_anew_each_time(swarm_of_module):
    assert result_of(plain(swarm_of_module, "SameTask", "count=100")) == [1] * 100


@at_once
def test_a_handle_is_the_id_and_carries_the_task(swarm_of_module):
    about = result_of(plain(swarm_of_module, "Fields"))
    text = about.pop("text")
    assert about == {"id": True, "name": "named", "object": "Double", "client": True, "system": None, "result": 42}
    assert text.partition(".")[0].startswith("c") and text.endswith(".0")


@at_once
def test_an_application_may_give_its_attributes_and_methods_any_names(swarm_of_module):
    assert result_of(plain(swarm_of_module, "OwnNames")) == ["mine"] * 5 + ["yours", 8]


# -- what cannot be sent


@at_once
def test_tasks_that_cannot_be_pickled_fail_by_attribute_name_and_the_others_end(swarm_of_module):
    run = plain(swarm_of_module, "SomeBad", "count=10")
    assert run.code == 1
    about = run.about["result"]
    assert about["sum"] == 2 * sum(n for n in range(10) if n % 3)
    assert about["failed"] == 4
    assert about["heard"] and all("holder" in text for text in about["heard"])
    assert "holder" in about["error"] and "lock" in about["error"]


@pytest.mark.slow
@at_once
def test_a_thousand_tasks_that_cannot_be_pickled_fail_one_by_one(swarm_of_module):
    run = plain(swarm_of_module, "SomeBad", "count=6000")
    assert run.about["result"] and run.about["result"]["failed"] == 2000, run.about["error"]


@at_once
def test_a_task_of_a_class_inside_a_function_is_told_to_move(swarm_of_module):
    about = plain(swarm_of_module, "LocalClass").about["result"]
    assert "Hidden" in about["error"]
    assert len(about["heard"]) == 1 and "Hidden" in about["heard"][0]


@at_once
def test_what_is_no_task_is_named_in_the_error(swarm_of_module):
    run = plain(swarm_of_module, "NotATask", "count=3")
    assert run.code == 1
    assert "int" in run.about["error"]["message"] and "not a task" in run.about["error"]["message"]


@at_once
def test_a_result_that_cannot_be_pickled_fails_its_task_alone(swarm_of_module):
    about = plain(swarm_of_module, "BadResults").about["result"]
    assert (about["sum"], about["failed"], about["kinds"]) == (20, 5, ["result"])
    assert "lock" in about["error"]


# -- errors come home


def raised(swarm, how):
    return plain(swarm, "RaisesApplication", f"how={how}").about["result"]


@at_once
def test_an_exception_of_the_users_comes_home_as_itself_with_the_remote_traceback(swarm_of_module):
    about = raised(swarm_of_module, "custom")
    assert (about["type"], about["same"], about["vars"]) == ("Custom", True, ["one", 2])
    assert 'raise Custom("one", 2)' in about["cause"] and "plain.py" in about["cause"]
    assert about["where"].startswith("plain.py:") and about["kind"] == "error"


@pytest.mark.parametrize(("how", "name"), [("stubborn", "Stubborn"), ("unsendable", "Unsendable")])
@at_once
def test_an_exception_that_cannot_be_pickled_comes_home_as_a_task_error(swarm_of_module, how, name):
    about = raised(swarm_of_module, how)
    assert about["type"] == "TaskError" and about["remote"].endswith(name)
    assert f"raise {name}" in about["cause"]


@at_once
def test_the_cause_of_an_exception_is_part_of_its_traceback(swarm_of_module):
    about = raised(swarm_of_module, "chained")
    assert about["type"] == "ValueError"
    assert about["cause"].index("KeyError: 'missing'") < about["cause"].index("ValueError: no such thing")


@pytest.mark.parametrize(
    ("how", "name"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("recursion", "RecursionError")]
)
@at_once
def test_even_these_fail_the_task_and_not_the_worker(swarm_of_module, how, name):
    about = raised(swarm_of_module, how)
    assert about["remote"] == name and about["kind"] == "error"


# -- hooks


@at_once
def test_clean_up_runs_once_in_the_worker_and_finished_once_on_the_client(swarm_of_module, tmp_path):
    client = result_of(plain_allowing_failure(swarm_of_module, "Hooks", f"folder={tmp_path}"))["pid"]
    marks = {path.name: [int(word) for word in path.read_text().split()] for path in tmp_path.iterdir()}
    hooks = {"bad": ["call", "clean_up", "finished-with-error"], "good": ["call", "clean_up", "finished"]}
    assert sorted(marks) == [f"{name}-{hook}" for name, names in hooks.items() for hook in names]
    assert all(len(pids) == 1 for pids in marks.values())
    assert marks["good-finished"] == marks["bad-finished-with-error"] == [client]
    for name in ("good", "bad"):
        assert marks[f"{name}-call"] == marks[f"{name}-clean_up"] != [client]


def plain_allowing_failure(swarm, app, *settings):
    run = plain(swarm, app, *settings)
    assert run.code == 1 and run.about["failed"] == 1, run.err
    run.process.returncode = 0
    return run


@at_once
def test_a_finished_that_raises_ends_the_application_with_its_traceback(swarm_of_module):
    run = plain(swarm_of_module, "FinishedRaises")
    assert run.code == 1
    assert "in finished" in run.about["error"]["message"] and "plain.py" in run.about["error"]["traceback"]


@at_once
def test_a_clean_up_that_raises_fails_its_task(swarm_of_module):
    assert plain(swarm_of_module, "CleanUpRaises").about["result"] == {"kind": "clean_up", "text": "cannot clean up"}


# -- resources


@pytest.mark.slow
@at_once
def test_tasks_run_where_their_resources_are(swarm):
    here = swarm(slaves=0)
    here.start_slave(workers=1)
    special = here.start_slave("--resources", "gpu=1", "--tags", "fast,ssd", workers=2)
    zygote = zygote_of(special.pid)
    for kind in ("gpu", "tag", "two"):
        rows = result_of(plain(here, "Resources", f"how={kind}", "count=20"))
        assert {row["parent"] for row in rows} == {zygote}, kind
        assert {row["gpu"] for row in rows} == ({"0"} if kind == "gpu" else {None}), kind
        assert {row["omp"] for row in rows} == {"2" if kind == "two" else "1"}, kind


@pytest.mark.slow
@at_once
def test_tasks_of_different_resources_may_be_pushed_together(swarm):
    here = swarm(slaves=0)
    here.start_slave(workers=1)
    here.start_slave("--resources", "gpu=1", workers=2)
    rows = result_of(plain(here, "Resources", "how=plain+gpu+two", "count=30"))
    assert {row["kind"]: row["gpu"] for row in rows} == {"plain": None, "gpu": "0", "two": None}
    assert {(row["kind"], row["omp"]) for row in rows} == {("plain", "1"), ("gpu", "1"), ("two", "2")}


@pytest.mark.slow
@at_once
def test_what_a_task_was_granted_is_taken_from_the_worker_again(swarm):
    here = swarm(slaves=0)
    here.start_slave("--resources", "gpu=1", workers=1)
    clean = ("--set", "plain.count=1", "--app", "Resources")
    assert result_of(here.run_client(PLAIN, *clean, "--set", "plain.how=gpu"))[0]["gpu"] == "0"
    assert result_of(here.run_client(PLAIN, *clean, "--set", "plain.how=plain"))[0]["gpu"] is None


# -- workers and slaves that end


def test_a_task_whose_worker_is_killed_runs_again(swarm_of_module, tmp_path):
    about = result_of(plain(swarm_of_module, "OneDiesOnce", f"folder={tmp_path}"))
    assert about == {"sum": 2 * sum(range(10)) - 5, "errors": []}


def test_a_task_that_always_kills_its_worker_is_poisoned_after_three_and_the_others_end(swarm_of_module, tmp_path):
    run = plain(swarm_of_module, "OneDiesAlways", f"folder={tmp_path}")
    assert run.code == 1
    assert run.about["result"] == {"sum": 2 * sum(range(10)) - 10, "kinds": ["poisoned"]}
    assert len(list(tmp_path.iterdir())) == 3


def waiting(here, folder, count, *words):
    """A client whose tasks wait for `folder`/go, once one of them runs."""
    words = [*words, "--json", "--app", "Waiting", "--set", f"plain.folder={folder}", "--set", f"plain.count={count}"]
    client = here.start_client(PLAIN, *words)
    wait_until(lambda: list(folder.glob("run-*")), f"a task runs\n{client.err}")
    return client


@pytest.mark.slow
@at_once
def test_the_work_of_a_killed_slave_ends_on_another(swarm, tmp_path):
    here = swarm(slaves=2, workers=1)
    client = waiting(here, tmp_path, 6)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "both slaves run a task")
    workers = here.workers_of(here.slaves[0])
    here.slaves[0].ends(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "its workers end with it")
    (tmp_path / "go").touch()
    about = result_of(client.wait(60))
    assert about == {"sum": 15, "errors": []}
    assert len(text_of(tmp_path / "callbacks").split()) == 6


@pytest.mark.slow
@at_once
def test_a_slave_that_is_told_to_leave_ends_what_runs_and_gives_back_the_rest(swarm, tmp_path):
    here = swarm(slaves=2, workers=1)
    client = waiting(here, tmp_path, 6)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "both slaves run a task")
    here.slaves[0].send(signal.SIGTERM)
    wait_until(lambda: "leaving" in here.slaves[0].err, "it says that it leaves")
    (tmp_path / "go").touch()
    assert here.slaves[0].wait().code == 143
    assert result_of(client.wait()) == {"sum": 15, "errors": []}
    assert len(list(tmp_path.glob("run-*"))) == 6, "no task ran twice"


@pytest.mark.slow
@at_once
def test_the_only_slave_leaves_with_its_last_result_delivered(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 1)
    here.slaves[0].send(signal.SIGTERM)
    wait_until(lambda: "leaving" in here.slaves[0].err, "it says that it leaves")
    (tmp_path / "go").touch()
    assert result_of(client.wait()) == {"sum": 0, "errors": []}


@at_once
def test_a_slave_is_drained_by_its_master(swarm):
    here = swarm(slaves=1, workers=1)
    assert here.proxy.slave.drain(here.name_of(here.slaves[0])) is True
    assert here.slaves[0].wait().code == 0
    wait_until(lambda: here.proxy.slaves() == [], "the master has seen it go")


@pytest.mark.slow
@at_once
def test_a_stopping_master_lets_what_runs_end(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 1)
    here.master.send(signal.SIGTERM)
    wait_until(lambda: "stopping" in here.master.err, "it says that it stops")
    (tmp_path / "go").touch()
    assert result_of(client.wait()) == {"sum": 0, "errors": []}
    assert here.master.wait().code == 143


@pytest.mark.slow
@pytest.mark.parametrize("node", ["slave", "master"])
@at_once
def test_a_node_whose_zygote_is_killed_starts_another(swarm, tmp_path, node):
    here = swarm(slaves=1, workers=1)
    victim = here.master if node == "master" else here.slaves[0]
    zygote = zygote_of(victim.pid)
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: zygote_of(victim.pid) not in (None, zygote) or victim.code is not None, "another zygote")
    assert victim.code is None, victim.err
    assert result_of(here.run_client("md5.py", "--set", "md5.stop=2000", "--set", "md5.number=77")) == 77


@pytest.mark.slow
@pytest.mark.parametrize("node", ["slave", "master"])
@at_once
def test_a_node_that_cannot_keep_a_zygote_ends_with_the_reason(swarm, node):
    here = swarm(slaves=1, workers=1)
    victim = here.master if node == "master" else here.slaves[0]
    killed = set()
    while victim.code is None:  # one that comes too slowly to count with the others makes no difference
        zygote = zygote_of(victim.pid)
        if zygote not in (None, *killed):
            os.kill(zygote, signal.SIGKILL)
            killed.add(zygote)
        with suppress(subprocess.TimeoutExpired):
            victim.process.wait(0.01)
        assert len(killed) < 10 * tasks.RESPAWN_LIMIT, "it never has enough"
    assert victim.code == 1 and len(killed) >= tasks.RESPAWN_LIMIT
    assert victim.err.count("the zygote ended; starting another") == len(killed) - 1
    assert "error: the zygote ended 5 times within 10 s" in victim.err


# -- processes that speak for the framework


def nobody_else_notices(here):
    """No lease is left behind, and the swarm runs something else."""
    wait_until(lambda: all(row["leases"] == 0 for row in here.proxy.slaves()), "no slave holds a lease")
    assert here.run_client("hello.py").code == 0


@pytest.mark.parametrize("how", ["seconds", "failure", "text", "range", "short", "later", "large", "many",
                                 *(f"deep{levels}" for levels in (400, *range(950, 1000, 3)))])
def test_a_task_that_reports_itself_in_odd_ways_is_lost_alone(swarm_of_module, how):
    run = swarm_of_module.run_client("liars.py", "--app", "Lies", "--set", f"liars.how={how}")
    assert run.about["result"] == ("no failure" if how == "later" else "poisoned"), run.err
    nobody_else_notices(swarm_of_module)


@pytest.mark.parametrize("how", ["negative", "half", "huge"])
def test_a_host_that_says_an_odd_step_ends_alone_also_while_somebody_traces(swarm_of_module, tmp_path, how):
    words = ["--app", "LyingSystems", "--set", f"liars.how={how}", "--trace", tmp_path / "run.json"]
    run = swarm_of_module.run_client("liars.py", *words)
    assert run.code == 1 and run.about["error"]["type"] == "HostLost", run.err
    nobody_else_notices(swarm_of_module)


@pytest.fixture(scope="module")
def with_journal():
    """A slave, and a master that writes down what it takes."""
    with running(journal=True) as here:
        yield here


@pytest.mark.parametrize("how", ["values", "stats", "snapshot", "text", "table", "rows", "ranges", "order"])
def test_a_host_that_says_what_fits_no_journal_ends_alone(with_journal, how):
    run = with_journal.run_client("liars.py", "--app", "LyingSystems", "--set", f"liars.how={how}")
    assert run.code == 1 and run.about["error"]["type"] == "HostLost", run.err
    nobody_else_notices(with_journal)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@at_once
def test_whatever_processes_of_users_say_others_are_served_and_the_master_can_be_started_again(swarm, seed):
    here = swarm(slaves=1, workers=2, journal=True)
    here.run_client("liars.py", "--app", "Babble", "--timeout", "4", "--set", f"liars.seed={seed}")
    nobody_else_notices(here)
    assert here.slaves[0].code is None and "lost the master" not in here.slaves[0].err, here.slaves[0].err
    kill_master(here)
    here.start_master(port=int(here.address.rpartition(":")[2]), journal=True)
    wait_until(here.proxy.slaves, "the slave is back")
    nobody_else_notices(here)


# -- processes


@pytest.mark.slow
@at_once
def test_a_worker_has_no_descriptor_but_three_and_its_line(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    client = waiting(here, tmp_path, 1)
    (worker,) = here.workers_of(here.slaves[0])
    found = descriptors_of(worker)
    assert sum(target.startswith("socket:") for target in found.values()) == 1
    assert len(found) == 4, found
    (tmp_path / "go").touch()
    assert result_of(client.wait())["sum"] == 0


@pytest.mark.slow
@at_once
def test_descriptors_do_not_grow_with_the_work(swarm, tmp_path):
    here = swarm(slaves=1, workers=2)
    result_of(plain(here, "Many"))
    nodes = [pid for node in (here.master, here.slaves[0]) for pid in (node.pid, *children_of(node.pid))]

    def lasting():
        """Those of each but events: pyzmq begins a thread that has some when something large is sent, once."""
        return {pid: {file: target for file, target in descriptors_of(pid).items() if "[event" not in target}
                for pid in nodes}

    def more():
        """What each of them has more of than a few."""
        now = lasting()
        return {pid: sorted(now[pid].items() - before[pid].items()) for pid in nodes
                if len(now[pid]) > len(before[pid]) + 4}

    before = lasting()
    for n in range(4):
        (tmp_path / str(n)).mkdir()
        plain(here, "OneDiesAlways", f"folder={tmp_path / str(n)}")
        result_of(here.run_client("md5.py", "--set", "md5.stop=2000", "--set", "md5.number=77"))
    with suppress(AssertionError):
        wait_until(lambda: not more(), "there are as few as before")
    assert more() == {}


@pytest.mark.slow
@at_once
def test_the_workers_of_an_application_do_not_import_the_one_of_another(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    first = result_of(plain(here, "Resources", "how=plain", "count=1"))
    app = tmp_path / "other.py"
    others = "sorted(name for name in sys.modules if name.startswith('plain'))"
    app.write_text((APPS / PLAIN).read_text().replace("os.getppid()", others))
    words = ("--set", "plain.how=plain", "--set", "plain.count=1")
    second = result_of(here.run_client(str(app), "--app", "Resources", *words))
    assert first and second[0]["parent"] == []


# -- schedulers and settings


@pytest.mark.slow
@pytest.mark.parametrize(("option", "name"), [("push", "GenericTaskScheduler"), ("pull", "ZMQTaskScheduler")])
@at_once
def test_both_schedulers_spread_work_over_all_slaves(swarm, tmp_path, option, name):
    here = swarm(slaves=2, workers=1, master=("--scheduler", option))
    assert here.proxy.status()["scheduler"] == name
    client = waiting(here, tmp_path, 8)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 2, "both slaves run a task")
    (tmp_path / "go").touch()
    assert result_of(client.wait())["sum"] == 28
    assert all(row["done"] for row in here.proxy.slaves())


@at_once
def test_an_unknown_scheduler_is_an_error_that_lists_the_known_ones(swarm):
    here = swarm(slaves=0)
    with pytest.raises(rpc.RpcError) as caught:
        here.proxy.config.set("master", "task_scheduler", "Nonsense")
    assert "Nonsense" in str(caught.value) and "ZMQTaskScheduler" in str(caught.value)
    assert here.proxy.status()["scheduler"] == "ZMQTaskScheduler"


@pytest.mark.slow
@at_once
def test_a_scheduler_dropped_into_plugins_of_a_running_master_can_be_chosen(swarm):
    here = swarm(slaves=2, workers=1)
    plugins = here.master.folder / "plugins"
    shutil.copy(SAMPLES / "plugins" / "least_time.py", plugins)
    wait_until(lambda: "least_time" in here.master.err, "the plug-in is loaded")
    here.proxy.config.set("master", "task_scheduler", "LeastTimeScheduler")
    assert here.proxy.status()["scheduler"] == "LeastTimeScheduler"
    assert result_of(plain(here, "Many", "count=2000"))["sum"] == 3998000
    assert all(row["done"] for row in here.proxy.slaves())


@pytest.mark.slow
@at_once
def test_the_number_of_workers_is_set_over_json_rpc(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    name = here.name_of(here.slaves[0])
    client = waiting(here, tmp_path, 3)
    assert here.proxy.slave.set_workers(name, 3) is True
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 3, "three tasks run at once")
    assert [row["workers"] for row in here.proxy.slaves()] == [3]
    here.proxy.slave.set_workers(name, 1)
    wait_until(lambda: here.proxy.slaves()[0]["workers"] == 1, "one again")
    (tmp_path / "go").touch()
    assert result_of(client.wait())["sum"] == 3


@pytest.mark.parametrize("count", [-1, 10**9, 1.5, "many"])
def test_a_number_of_workers_that_cannot_be_is_refused(swarm_of_module, count):
    with pytest.raises(rpc.RpcError):
        swarm_of_module.proxy.slave.set_workers(swarm_of_module.name_of(swarm_of_module.slaves[0]), count)
    assert result_of(plain(swarm_of_module, "Many"))["sum"] == 90


def test_an_order_without_the_token_is_refused(swarm_of_module):
    with pytest.raises(rpc.RpcError):
        rpc.Proxy(swarm_of_module.address).slave.drain("s1")
    assert len(swarm_of_module.proxy.slaves()) == 2


@pytest.mark.slow
@at_once
def test_a_running_slave_takes_an_edited_configuration(swarm):
    here = swarm(slaves=1, workers=1)
    (file,) = (here.slaves[0].folder / "configs").glob("*.ini")
    name = here.name_of(here.slaves[0])
    file.write_text("[node]\nlog_level = nonsense\n")
    wait_until(lambda: "nonsense" in here.slaves[0].err, "the mistake is in the log")
    assert "node" in here.slaves[0].err and str(file.name) in here.slaves[0].err
    file.write_text("[node]\nlog_level = debug\n")
    wait_until(lambda: "changed node.log_level" in here.slaves[0].err, "the change is in the log")
    assert here.name_of(here.slaves[0]) == name


@pytest.mark.slow
@at_once
def test_a_running_master_changes_its_scheduler_with_its_file(swarm):
    here = swarm(slaves=1, workers=1)
    (file,) = (here.master.folder / "configs").glob("*.ini")
    file.write_text("[master]\ntask_scheduler = GenericTaskScheduler\n")
    wait_until(lambda: here.proxy.status()["scheduler"] == "GenericTaskScheduler", "the scheduler has changed")
    assert result_of(plain(here, "Many"))["sum"] == 90


# -- several at once


@at_once
def test_two_clients_at_once_get_their_own_results(swarm_of_module):
    words = ["--json", "--app", "Many", "--set", "plain.how=generator"]
    clients = [swarm_of_module.start_client(PLAIN, *words, "--set", f"plain.count={n}") for n in (3000, 4000)]
    assert [result_of(client.wait())["sum"] for client in clients] == [2999 * 3000, 3999 * 4000]


@pytest.mark.slow
def test_idle_nodes_use_under_one_percent_of_a_core(swarm):
    here = swarm(slaves=1, workers=2)
    result_of(plain(here, "Many"))
    nodes = {"master": [here.master.pid], "slave": [here.slaves[0].pid]}
    for pids in nodes.values():
        pids += children_of(pids[0])
    nodes["slave"] += here.workers_of(here.slaves[0])
    used = {}

    def are_quiet():
        began, before = time.monotonic(), {name: cpu_seconds(pids) for name, pids in nodes.items()}
        wait_until(lambda: time.monotonic() - began >= 3, "three seconds have passed")
        elapsed = time.monotonic() - began
        used.update({name: (cpu_seconds(pids) - before[name]) / elapsed for name, pids in nodes.items()})
        return all(share < 0.0101 for share in used.values())

    wait_until(are_quiet, used)


def cpu_seconds(pids):
    """Processor time that these processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(words[11]) + int(words[12]) for words in fields) / os.sysconf("SC_CLK_TCK")
