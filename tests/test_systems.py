"""Task systems on a real swarm: steps, hooks, completion, failure, and several at once."""

import os
import signal
from pathlib import Path

import pytest
from conftest import at_once, text_of, wait_until

APP = "systems.py"


def system(swarm, app, *settings):
    """Runs an application of systems.py and returns the run."""
    words = [word for setting in settings for word in ("--set", f"systems.{setting}")]
    return swarm.run_client(APP, "--app", app, *words)


def result_of(run):
    """What the application left in `self.result`; it must have ended well."""
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run.about["result"]


def still_serves(swarm):
    """The swarm runs another system to its end."""
    assert result_of(system(swarm, "Stepping", "count=5", "steps=1"))["sum"] == 10


# -- steps


@pytest.mark.parametrize("how", ["list", "generator"])
@at_once
def test_generate_tasks_is_called_again_for_each_step_in_one_process(swarm_of_module, how):
    about = result_of(system(swarm_of_module, "Stepping", f"how={how}", "count=40", "steps=4"))
    assert about == {"sum": 4 * 780, "called": 4, "outcomes": 160, "step": 4, "hosts": 1, "same": True}


@at_once
def test_by_default_a_system_is_complete_when_all_its_tasks_are(swarm_of_module):
    about = result_of(system(swarm_of_module, "DefaultComplete", "count=100"))
    assert (about["sum"], about["called"]) == (4950, 1)


@pytest.mark.parametrize("how", ["list", "generator", "none"])
@at_once
def test_a_step_without_tasks_is_an_error_that_says_what_to_do(swarm_of_module, how):
    run = system(swarm_of_module, "Empty", f"how={how}")
    assert run.code == 1
    assert "wait for ever" in run.about["error"]["message"] and run.about["error"]["hook"] == "generate_tasks"


@pytest.mark.parametrize("how", ["master", "scheduler"])
@at_once
def test_tasks_are_pushed_from_task_finished_one_by_one(swarm_of_module, how):
    assert result_of(system(swarm_of_module, "Chained", f"how={how}", "count=20"))["outcomes"] == 20


@at_once
def test_in_lock_step_no_task_of_a_step_begins_before_the_step_before_has_ended(swarm_of_module, tmp_path):
    about = result_of(system(swarm_of_module, "LockStepping", f"folder={tmp_path}", "count=20", "steps=4"))
    assert about["outcomes"] == 4 * 20 + 3
    times = {}
    for file in tmp_path.iterdir():
        began, ended = map(float, file.read_text().split())
        times.setdefault(file.name.partition("-")[0], []).append((began, ended))
    assert sorted(map(len, times.values())) == [20, 21, 21, 21]
    for step in range(1, 4):
        assert max(ended for _, ended in times[f"step{step}"]) <= min(began for began, _ in times[f"step{step + 1}"])


def test_after_completion_queued_tasks_never_run(swarm_of_module, tmp_path):
    about = result_of(system(swarm_of_module, "Stopping", f"folder={tmp_path}", "count=50000", "how=generator"))
    assert about["outcomes"] < 50_000
    ran = len(list(tmp_path.iterdir()))
    assert ran < 25_000, "what was queued never ran"
    wait_until(lambda: swarm_of_module.proxy.status()["queued"] == 0, "nothing is queued")
    still_serves(swarm_of_module)
    assert len(list(tmp_path.iterdir())) <= ran + 128, "at most the leases that had begun"


# -- hooks that raise


@pytest.mark.parametrize(
    "hook", ["init_system", "generate_tasks", "generator", "finished", "task_finished", "is_complete", "gather_result"]
)
@at_once
def test_a_hook_that_raises_ends_the_system_and_the_client_hears_hook_and_traceback(swarm_of_module, hook):
    run = system(swarm_of_module, "RaisingApplication", f"how={hook}")
    error = run.about["error"]
    assert run.code == 1
    assert error["hook"] == {"generator": "generate_tasks"}.get(hook, hook)
    assert error["message"] == f"in {hook}" and error["type"] == "ArithmeticError"
    assert "systems.py" in error["traceback"] and "raise ArithmeticError" in error["traceback"]
    assert f"in {error['hook']}" in run.err


@at_once
def test_a_hook_that_exits_ends_the_system_alone(swarm_of_module):
    run = system(swarm_of_module, "RaisingApplication", "how=exit-task_finished")
    assert run.code == 1 and run.about["error"]["type"] == "SystemExit"
    still_serves(swarm_of_module)


@at_once
def test_other_systems_of_the_client_do_not_notice_a_failing_one(swarm_of_module):
    run = system(swarm_of_module, "Three", "how=task_finished")
    assert run.about["result"] == ["90", "90", "task_finished"]


@at_once
def test_a_host_that_is_killed_is_told_to_the_client(swarm_of_module):
    run = system(swarm_of_module, "RaisingApplication", "how=kill-task_finished")
    assert run.code == 1
    assert "SIGKILL" in run.about["error"]["message"]
    still_serves(swarm_of_module)


@at_once
def test_a_host_that_says_nonsense_of_its_end_ends_alone(swarm_of_module):
    run = system(swarm_of_module, "RaisingApplication", "how=nonsense")
    assert run.code == 1 and run.about["error"]["type"] == "HostLost", run.err
    still_serves(swarm_of_module)


@at_once
def test_a_result_that_cannot_be_pickled_is_told_with_its_place(swarm_of_module):
    run = system(swarm_of_module, "RaisingApplication", "how=unpicklable")
    assert run.code == 1 and run.about["error"]["hook"] == "gather_result"
    assert "deep" in run.about["error"]["message"] and "lock" in run.about["error"]["message"]


@at_once
def test_a_system_that_cannot_be_pickled_is_told_with_its_attribute(swarm_of_module):
    run = system(swarm_of_module, "Unsendable")
    assert run.code == 1 and "held" in run.about["error"]["message"]


@at_once
def test_a_systems_tasks_bring_their_errors_with_class_and_traceback(swarm_of_module):
    run = system(swarm_of_module, "FailingInside", "count=2", "steps=1")
    assert run.about["result"][0] == "KeyError" and run.about["result"][2] is True
    assert run.about["failed"] == 2 and run.code == 1


# -- the client's side


@at_once
def test_work_finished_is_given_a_handle_that_equals_the_system_id(swarm_of_module):
    about = result_of(system(swarm_of_module, "Answers", "count=3", "steps=2"))
    assert about.pop("answered").isdigit()
    assert about == {"same": True, "property": True, "name": "System", "done": 6, "steps": 2}


@at_once
def test_an_application_in_the_style_of_the_thesis_runs(swarm_of_module):
    run = swarm_of_module.run_client("thesis.py")
    assert result_of(run) == sum(range(200))
    assert "task_system_finsihed is now task_system_finished" in run.err


def test_a_cancelled_system_ends_and_the_application_goes_on(swarm_of_module):
    assert system(swarm_of_module, "Cancelling", "count=100000").about["result"] == {"kind": "cancelled", "after": 3}


@pytest.mark.parametrize("hook", ["init_system", "generate_tasks", "task_finished"])
def test_the_process_of_a_system_that_hangs_ends_when_the_system_is_cancelled(swarm_of_module, tmp_path, hook):
    run = system(swarm_of_module, "Cancelling", f"how=hang-{hook}", f"folder={tmp_path}")
    assert run.about["result"] == {"kind": "cancelled", "after": 3}
    ends(int(text_of(tmp_path / "hangs")))


def test_the_process_of_a_system_that_hangs_ends_with_its_client(swarm_of_module, tmp_path):
    client = hanging(swarm_of_module, tmp_path)
    assert client.ends(signal.SIGTERM) == 143
    ends(int(text_of(tmp_path / "hangs")))


def hanging(swarm, folder):
    """A client whose system hangs in task_finished; its process id is in `folder`/hangs."""
    words = ["--set", "systems.how=hang-task_finished", "--set", f"systems.folder={folder}"]
    client = swarm.start_client(APP, "--app", "RaisingApplication", "--json", *words)
    wait_until(lambda: text_of(folder / "hangs"), "the system hangs")
    return client


def ends(pid):
    """Waits for a process to be gone; ends it if it is not, so that no test after this one suffers."""
    try:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the hanging process {pid} is gone")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise


@at_once
def test_tasks_of_one_step_may_ask_for_different_resources(swarm):
    here = swarm(slaves=0)
    here.start_slave(workers=1)
    here.start_slave("--resources", "gpu=1", workers=1)
    assert result_of(system(here, "ResourcefulApplication", "count=20", "steps=2"))["sum"] == 380


def test_a_system_is_listed_and_cancelled_by_an_administrator(swarm_of_module, tmp_path):
    wait_until(lambda: not swarm_of_module.proxy.systems(), "those of before have ended")
    client = hanging(swarm_of_module, tmp_path)
    (row,) = swarm_of_module.proxy.systems()
    assert row["app"] == "Raising" and row["step"] == 1
    swarm_of_module.proxy.system.cancel(row["name"])
    assert client.wait().code == 130 and client.about["error"]["type"] == "Cancelled"
    ends(int(text_of(tmp_path / "hangs")))
