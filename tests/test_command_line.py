"""What the command line tells, asks and measures: help, hints, events, status, orders, speedups."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
import xml.etree.ElementTree

import pytest
from conftest import CHECKOUT, text_of, wait_until
from test_cli import Typed, app, cli, said  # fixtures among them

from concurrent_swarm import client, components, master, rpc, slave

__all__ = ["app", "cli"]
HELP = CHECKOUT / "tests" / "help"
ROLES = {"master": master, "slave": slave, "client": client}
SECONDS = """
class T(Task):
    def __call__(self):
        time.sleep(self.seconds)
        return self.name
class A(ApplicationNode):
    def start_processing(self):
        self.push_tasks(T(f"t{i}", seconds=SECONDS) for i in range(COUNT))
    def task_finished(self, task, result, error):
        if not self.pending:
            self.result = result and "done"
            self.shutdown_main_loop()
"""


def sleepers(count, seconds):
    return SECONDS.replace("COUNT", str(count)).replace("SECONDS", str(seconds))


def events(run):
    return [json.loads(line) for line in run.out.splitlines()]


# -- help and what is nearly right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_help_is_the_stored_text(cli, role):
    shown = cli(role, "--help", env={**os.environ, "COLUMNS": "80"}).stdout
    assert shown == (HELP / f"{role}.txt").read_text(), f"COLUMNS=80 python {role}.py --help > tests/help/{role}.txt"


@pytest.mark.parametrize("role", ROLES)
def test_help_names_every_option_and_no_other(role):
    hidden = {"--parent", "--key-file", "--sequential", "-h", "--help", "--json=lines"}
    hidden |= set() if role == "client" else {"--color"}
    known = {option for action in ROLES[role].parser()._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", (HELP / f"{role}.txt").read_text()))
    assert known - hidden <= named <= known | {"--origin", "--system"}  # of examples


@pytest.mark.parametrize("role, words, hint", [
    ("client", ["docter"], "did you mean doctor?"),
    ("slave", ["confg", "show"], "did you mean config?"),
    ("master", ["kyes", "list"], "did you mean keys?"),
    ("master", ["keys", "invte", "slave"], "did you mean invite?"),
    ("master", ["journal", "chek"], "did you mean check?"),
    ("master", ["--scheduler", "pul"], "did you mean pull?"),
    ("master", ["--port", "0", "--scheduler", "GenericTaskSchedular"], "did you mean GenericTaskScheduler?"),
    ("client", ["samples/mandelbrot.py", "--local", "--app", "MandelbrotNod"], "did you mean MandelbrotNode?"),
    ("client", ["samples/hello.py", "--workers", "0", "--color", "alway"], "did you mean always?"),
])  # fmt: skip
def test_what_is_nearly_a_command_or_a_name_is_told_what_was_probably_meant(cli, role, words, hint):
    result = cli(role, *words)
    assert result.returncode == 2 and hint in result.stderr and result.stderr.count("error:") == 1, result.stderr


@pytest.mark.parametrize("words, text", [
    (["samples/md5.py", "--bench"], "--bench needs --local"),
    (["samples/md5.py", "--bench", "--local", "--workers", "0"], "--bench needs --local"),
    (["samples/md5.py", "--local", "--repeat", "3"], "--repeat 3"),
    (["samples/md5.py", "--bench", "--local", "--repeat", "0"], "--repeat 0"),
    (["samples/md5.py", "--baseline", "--workers", "0"], "--baseline compares"),
    (["samples/md5.py", "--watch"], "--watch needs --status"),
    (["--explain", "c1.1", "--watch"], "--watch needs --status"),
    (["--cancel", "1", "--watch"], "--watch needs --status"),
    (["--drain", "s1", "--watch"], "--watch needs --status"),
    (["samples/md5.py", "--keep"], "--keep needs --local"),
    (["samples/md5.py", "--workers", "0", "--keep"], "--keep needs --local"),
    (["samples/md5.py", "--workers", "2"], "--workers 2 needs --local"),
    (["samples/md5.py", "--local", "--workers", "many"], "--workers many"),
    (["samples/md5.py", "--local", "--master", "127.0.0.1:9"], "--local and --master"),
    (["--status", "samples/md5.py"], "--status with an application"),
    (["--status", "--cancel", "1"], "--status and --cancel"),
    ([], "which application?"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused_before_anything_starts(cli, words, text):
    result = cli("client", *words)
    assert result.returncode == 2 and said(result, text)


@pytest.mark.parametrize("role, words, text", [
    ("client", ["samples/md5.py", "--json=line"], "--json=line: did you mean --json=lines?"),
    ("client", ["--status", "--watch=3"], "--watch=3: did you mean --watch?"),
    ("client", ["samples/md5.py", "--timeout", "-1"], "--timeout: -1 is no number of seconds from 0"),
    ("client", ["samples/md5.py", "--wait", "soon"], "--wait: soon is no number of seconds from 0"),
    ("slave", ["--wait", "nan"], "--wait: nan is no number of seconds from 0"),
])  # fmt: skip
def test_a_value_that_an_option_cannot_have_is_wrong_use(cli, role, words, text):
    result = cli(role, *words)
    assert result.returncode == 2 and text in result.stderr and result.stderr.count("error:") == 1, result.stderr


def test_quiet_leaves_out_what_is_well(cli, tmp_path):
    assert cli("slave", "create", tmp_path / "one", "-q").stdout == ""
    shown = cli("client", "doctor", "-q").stdout
    assert "ok" not in [line.split()[0] for line in shown.splitlines()]
    assert "ok" in [line.split()[0] for line in cli("client", "doctor").stdout.splitlines()]


# -- errors of the first run ---------------------------------------------------------------------------------------


def test_a_port_that_a_master_of_this_user_has_is_told_with_its_process(cli, tmp_path):
    first = Typed("master.py", "--port", "0").until("ready in")
    port = re.search(r"--master \S+:(\d+)", first.text)[1]
    second = cli("master", "--port", port, "--env", tmp_path / "second")
    assert second.returncode == 2
    assert said(second, f"port {port} is in use", f"a master of yours, process {first.pid}", "--master HOST:")
    assert first.interrupt().exit_code() == 0


def test_a_wrong_key_and_another_version_are_told_to_the_slave(swarm_of_module, cli, tmp_path):
    here = swarm_of_module
    access = json.loads((here.master.folder / "keys" / "slave.access").read_text())
    path = tmp_path / "old.access"
    path.write_text(json.dumps({**access, "secret": "x" * 43}))
    path.chmod(0o600)
    result = cli("slave", "--master", here.address, "--access", path, "--wait", "0")
    assert result.returncode == 3 and said(result, "wrong key", "the access file there differs", "copy")
    path.write_text(json.dumps(access))
    other = ("import sys; from concurrent_swarm import components, slave\n"
             "components.__version__ = '0.0.7'; sys.exit(slave.main(sys.argv[1:]))")
    program = tmp_path / "other.py"
    program.write_text(f"if __name__ == '__main__':\n    {other.replace(chr(10), chr(10) + '    ')}\n")
    command = [sys.executable, program, "--master", here.address, "--access", path, "--env", tmp_path / "s"]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert result.returncode == 3
    assert said(result, f"concurrent_swarm 0.0.7; the master has {components.__version__}", "pip install")


def test_a_module_that_is_missing_on_a_slave_is_told_with_both_ways_out(swarm_of_module, app):
    path = app("class T(Task):\n    def __call__(self):\n        import no_such_module_anywhere\n"
               "class A(ApplicationNode):\n    def start_processing(self): self.push_task(T('one'))\n")
    run = swarm_of_module.start_client(path).wait()
    name = swarm_of_module.name_of(swarm_of_module.slaves[0])
    assert run.code == 1 and 'requirements = ["no_such_module_anywhere"]' in run.err
    assert f"keep {name} out: client.py --drain {name}" in run.err and f" on {name}\n" in run.err


def test_who_finds_no_master_is_offered_the_same_run_without_one(cli, app):
    path = app("class A(ApplicationNode): pass\nclass B(ApplicationNode): pass\n")
    result = cli("client", path, "--app", "B", "--master", "127.0.0.1:9", "--wait", "0")
    assert result.returncode == 3 and said(result, f"without a cluster: `python client.py {path} --app B --local`")


@pytest.mark.usefixtures("cli")
@pytest.mark.parametrize("words", [["samples/failing.py", "--workers", "0", "--json=lines", "-q"], ["doctor"]])
def test_who_stops_reading_hears_no_complaint(words):
    process = subprocess.Popen([sys.executable, "client.py", *words], cwd=CHECKOUT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(30) == 1 and told == ""


def test_a_result_that_the_terminal_cannot_show_is_shown_as_far_as_it_can(cli, app):
    path = app("class T(Task):\n    def __call__(self): return '\u00e9'\n"
               "class A(ApplicationNode):\n    def start_processing(self): self.push_task(T('one'))\n")
    result = cli("client", path, "--workers", "0", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stdout) == (0, "result   \\xe9\n")


# -- failures ------------------------------------------------------------------------------------------------------


FAILS = """
class T(Task):
    def __call__(self): return 1 / self.number
class S(ITaskSystem):
    def generate_tasks(self, master): return [T(str(n), number=n) for n in range(4)]
    def gather_result(self, master): return "three"
class A(ApplicationNode):
    def get_task_system(self): return S()
class B(A):
    pass
"""


def test_the_block_of_failures_begins_with_what_failed_and_ends_with_how_to_run_that_again(cli, app, tmp_path):
    path = app(FAILS)
    words = [path, "--app", "B", "--set", "client.page=no", "--workers", "0"]
    told = cli("client", *words, "--env", tmp_path / "env").stderr
    assert "FAILED   system 1 B: 1 of 4 tasks failed, 3 done" in told
    again = f"python client.py {path} --app B --set client.page=no"
    assert f"debug here: {again} --workers 0 --pdb" in told
    replay = re.search(rf"replay: python client.py {path} --replay (\S+) --env {tmp_path}/env\n", told)
    second = cli("client", path, "--replay", replay[1], "--env", tmp_path / "env")
    assert second.returncode == 1 and "ZeroDivisionError" in second.stderr
    assert "FAILED   FailingApplication: 3 of 64" in cli("client", "samples/failing.py", "--workers", "0").stderr


def test_the_object_says_where_a_browser_shows_the_run(swarm_of_module, cli, app):
    page = f"http://{swarm_of_module.address}/"
    system = swarm_of_module.run_client(app(FAILS), "--app", "A").about
    assert system["page"] == f"{page}#system={system['systems'][0]}"
    assert swarm_of_module.run_client(app(sleepers(1, 0))).about["page"] == page
    assert json.loads(cli("client", "samples/hello.py", "--workers", "0", "--json", "-q").stdout)["page"] is None


@pytest.mark.slow
def test_what_a_local_node_says_does_not_run_into_the_progress_line(cli):
    typed = Typed("client.py", "samples/failing.py", "--local", "--workers", "1")
    assert typed.exit_code() == 1
    assert re.search(r"(^|[\r\n])\d\d:\d\d:\d\d warning: c1.19 failed", typed.text), typed.text


@pytest.mark.slow
def test_a_master_counts_failed_tasks_that_it_does_not_tell_one_by_one_and_no_cancelled_ones(swarm, app):
    here = swarm(slaves=1, workers=2)
    assert here.run_client("failing.py").code == 1
    wait_until(lambda: "2 more tasks failed, 3 so far" in here.master.err, "they are counted")
    assert here.master.err.count(" failed: ValueError") == 1
    runs = here.start_client(app(sleepers(2, 60)))
    wait_until(lambda: here.proxy.status()["busy"] == 2, "it runs")
    runs.ends(2)
    wait_until(lambda: here.proxy.status()["failed"] == 5, "they are cancelled")
    assert "Cancelled" not in here.master.err


def test_framework_frames_are_counted_and_shown_on_demand(cli):
    short = cli("client", "samples/failing.py", "--workers", "0").stderr
    hidden = int(re.search(r"(\d+) framework frames? hidden \(--full-traceback\)", short)[1])
    assert "tasks.py" not in short and 'raise ValueError(f"range end' in short
    full = cli("client", "samples/failing.py", "--workers", "0", "--full-traceback").stderr
    assert len(re.findall(r"framework: (?:tasks\.py|fastpath\.pyx):\d+ in ", full)) == hidden > 0
    assert "hidden" not in full


def test_of_a_group_of_failures_the_first_task_is_shown_whichever_came_first():
    failures = [(f"c1.{n}", {"type": "E", "where": "a.py:1", "message": f"of {n}"}) for n in (30, 9, 100, 10)]
    (group,) = client.group_failures(failures, str)
    assert group["message"] == "of 9" and group["tasks"] == ["c1.9", "c1.10", "c1.30", "c1.100"]


def test_a_group_of_failures_says_where_and_in_which_attempt():
    failures = [(f"c1.{n}", {"type": "E", "where": "a.py:1", "slave": f"s{n % 2}", "attempt": 3}) for n in range(7)]
    (group,) = client.group_failures(failures, str)
    assert client._whose(group) == "tasks c1.0, c1.1, c1.2, c1.3, c1.4 … on s0, s1, after 3 attempts each"
    (group,) = client.group_failures([("c1.0", {"type": "E", "slave": "here"})], str)
    assert client._whose(group) == "task c1.0"


# -- hints ---------------------------------------------------------------------------------------------------------


def run_of(tasks_done, task_seconds, elapsed, workers, full_until=None, size=0):
    """An application that has run, as far as hints look at it, and what its summary says."""
    watch = types.SimpleNamespace(slot_seconds=workers * elapsed, full_at=elapsed if full_until is None else full_until)
    swarm = types.SimpleNamespace(watch=watch)
    run = types.SimpleNamespace(swarm=swarm, _started=0.0, _work=(task_seconds, 0.0, size, task_seconds))
    return run, {"tasks": tasks_done, "task_seconds": task_seconds, "elapsed_s": elapsed, "workers": workers}


@pytest.mark.parametrize("run, text", [
    (run_of(200_000, 4.0, 10.0, 4), "tasks are very short (20 us on average)"),
    (run_of(10_000, 3.0, 10.0, 4), "Put about 100 in one task"),
    (run_of(3, 12.0, 10.0, 8), "3 tasks for 8 workers: 5 had nothing to do. Cut the work into 32 tasks or more"),
    (run_of(40, 15.0, 10.0, 4, full_until=3.0), "in the last 7.0 s of 10.0 s not all workers had work"),
    (run_of(40, 10.0, 10.0, 4, size=4 << 30), "results are large (4,096 MiB, 102.4 MiB each)"),
])  # fmt: skip
def test_a_hint_says_what_would_make_the_next_run_faster(run, text):
    (hint,) = client.hints(*run)
    assert text in hint


@pytest.mark.parametrize("run", [
    run_of(200_000, 36.0, 10.0, 4),  # short tasks, and the workers are busy all the same
    run_of(100, 0.1, 1.0, 4),  # over in a second
    run_of(0, 0.0, 10.0, 4),  # nothing was done
    run_of(40, 20.0, 10.0, 4),  # half idle, for none of these reasons
])  # fmt: skip
def test_no_hint_without_need(run):
    assert client.hints(*run) == []


@pytest.mark.slow
def test_too_few_tasks_are_hinted_at_and_shares_of_the_workers_time_add_up(swarm, app):
    here = swarm(slaves=1, workers=4)
    run = here.run_client(app(sleepers(2, 2.5)))
    assert run.code == 0 and "2 tasks for 4 workers" in run.about["hints"][0]
    shares = here.run_client(app(sleepers(8, 2))).about["worker_time"]
    assert set(shares) == {"computing", "moving", "others", "waiting"}
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert shares["computing"] > 0.3 and shares["moving"] < 0.05
    shown = here.start_client(app(sleepers(8, 0.6))).wait().err
    assert re.search(r"4 workers: computing \d+ %, waiting for work \d+ %, moving data \d+ %\n", shown), shown


@pytest.mark.slow
def test_work_for_others_is_told_apart_from_waiting(swarm, app):
    here = swarm(slaves=1, workers=2)
    other = here.start_client(app(sleepers(1000, 0.2)), "-q")
    wait_until(lambda: here.proxy.status()["busy"], "the other one runs")
    run = here.run_client(app(sleepers(10, 0.2), "mine.py"))
    assert run.code == 0 and run.about["worker_time"]["others"] > 0.2, run.about["worker_time"]
    other.close()


# -- waiting -------------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_wait_of_more_than_a_second_is_shown_on_a_terminal_and_leaves_nothing():
    screen = Screen()
    terminal = components.Terminal(screen, environ={})
    with terminal.waiting("the kettle"):
        assert screen.getvalue() == ""
        wait_until(lambda: re.search(r"the kettle  \d s", screen.getvalue()), "it is shown")
    assert screen.getvalue().split("\r")[-2].strip() == "" and screen.getvalue().endswith("\r")
    before = screen.getvalue()
    with terminal.waiting("nothing to speak of"):
        pass
    assert screen.getvalue() == before


@pytest.mark.parametrize("fields, width, line", [
    (["step 2", "2,411/4,000", "166/s", "ETA 10 s"], 30, "step 2  2,411/4,000  ETA 10 s"),
    (["waiting for the master: no master at a:80", "3 s of 30"], 40, "waiting for the master: no ma  3 s of 30"),
    (["one", "two", "three"], 9, "one  two"),
    (["a long one", "two"], 6, "a long"),
    (["x", "ETA 3 s"], 4, "  ET"),
    (["x", "3 s"], 0, ""),
])  # fmt: skip
def test_a_line_that_is_too_long_keeps_how_long_it_takes(fields, width, line):
    assert components.shorten(fields, width) == line


def test_what_does_not_fit_beside_each_other_stands_below_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert components.Terminal(Screen(), environ={}).beside("x" * 30, "y" * 16) == f"{'x' * 30}    {'y' * 16}"
    assert components.Terminal(Screen(), environ={}).beside("x" * 30, "y" * 17) == f"{'x' * 30}\n    {'y' * 17}"
    assert components.Terminal(io.StringIO(), environ={}).beside("x" * 30, "y" * 17) == f"{'x' * 30}    {'y' * 17}"


def test_a_doctor_that_gets_no_answer_shows_that_it_waits(cli):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shown = Typed("client.py", "doctor", "--master", f"127.0.0.1:{silent.getsockname()[1]}")
        assert shown.until(r"the next check  \d s").exit_code() == 1 and "did not answer" in shown.text


@pytest.mark.slow
def test_with_json_a_person_still_sees_how_far_it_is(cli, app):
    path = app("class T(Task):\n    def __call__(self): time.sleep(0.1)\n"
               "class A(ApplicationNode):\n"
               "    def start_processing(self): self.push_tasks(T(str(n)) for n in range(9))\n")
    typed = Typed("client.py", path, "--workers", "0", "--json=lines").until(r"\d/9  1/1 busy")
    assert typed.exit_code() == 0 and len(re.findall(r'[\r\n]\{"event": ', typed.text)) >= 2, typed.text


def test_elsewhere_a_long_wait_is_one_line(caplog):
    with components.Terminal(io.StringIO(), environ={}).waiting("the kettle", silent=0.01):
        wait_until(lambda: caplog.messages, "it is said")
    assert caplog.messages == ["still waiting: the kettle"]


@pytest.mark.slow
def test_who_waits_for_a_slave_reads_at_once_how_to_start_one(cli):
    node = Typed("master.py", "--port", "0").until("ready in")
    address = re.search(r"--master (\S+)", node.text)[1]
    waits = Typed("client.py", "samples/md5.py", "--master", address)
    waits.until(rf"In another terminal: python slave.py --master {address}")
    waits.until(r"the master has no worker; \d+ tasks are queued \(\d+ s of 30\)")
    assert waits.interrupt().exit_code() == 130 and waits.text.count("In another terminal") == 1
    assert node.interrupt().exit_code() == 0


@pytest.mark.slow
def test_a_client_whose_system_has_no_task_yet_says_so_and_a_run_without_a_swarm_has_a_progress_line(cli, app):
    path = app("class T(Task):\n    def __call__(self): time.sleep(0.1)\n"
               "class S(ITaskSystem):\n    def generate_tasks(self, master):\n        time.sleep(4)\n"
               "        return [T(str(n)) for n in range(20)]\n"
               "    def gather_result(self, master): time.sleep(5)\n"
               "class A(ApplicationNode):\n    def get_task_system(self): return S()\n")
    swarm = Typed("client.py", path, "--local").until(r"no task is known yet \(\d+ s\)")
    where = r"A on (127.0.0.1:\d+): \d slaves?, \d+ workers?(\r\n)?    watch: http://\1/#system=1\r\n"
    assert re.search(where, swarm.text), swarm.text
    assert swarm.until(r"the task system itself is at work \(\d s\)  .* 20/20  0/").exit_code() == 0
    path.write_text(re.sub(r"sleep\([45]\)", "sleep(0)", path.read_text()))
    assert Typed("client.py", path, "--workers", "0").until(r"\d+/20  1/1 busy").exit_code() == 0


@pytest.mark.slow
def test_a_client_whose_master_is_away_says_so_and_no_longer_that_workers_are_busy(swarm, app):
    here = swarm(slaves=1, workers=1)
    access = here.master.folder / "keys" / "client.access"
    words = ["--master", here.address, "--access", access, "--env", here.master.folder.parent / "c"]
    runs = Typed("client.py", app(sleepers(200, 0.5)), *words).until("1/1 busy")
    here.master.send(signal.SIGKILL)
    runs.until(rf"the master at {here.address} is away; looking for it \(\d+ s\)")
    assert runs.interrupt().exit_code() == 130


@pytest.mark.slow
def test_a_slave_tells_where_the_master_s_page_shows_it_unless_it_has_none(swarm):
    here = swarm(slaves=1, workers=1)
    assert f"watch: http://{here.address}/#slave=s1\n" in here.slaves[0].err
    assert "(one per processor)" not in here.slaves[0].err
    there = swarm(slaves=1, workers=1, master=["--no-page"])
    assert "joined as s1: 1 worker\n" in there.slaves[0].err and "watch: " not in there.slaves[0].err


# -- events --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_events_are_an_object_a_line_from_accepted_to_done(swarm_of_module, app):
    run = swarm_of_module.start_client(app(sleepers(30, 0.2)), "--json=lines", "-q").wait()
    told = events(run)
    kinds = [one["event"] for one in told]
    assert run.code == 0 and kinds[-1] == "done" and "accepted" in kinds[:2] and run.err == ""
    times = [one["t"] for one in told if one["event"] == "progress"]
    assert 2 <= len(times) <= times[-1] + 1.01, "one a second at most"
    assert max(one["tasks"] for one in told if one["event"] == "accepted") == 30
    assert told[-1]["ok"] and told[-1]["done"] == 30 and told[-1]["result"] == "done"


def test_every_failed_task_and_every_step_is_an_event(cli, app):
    done = cli("client", "samples/failing.py", "--workers", "0", "--json=lines", "-q")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [one for one in told if one["event"] == "failed"]
    assert [one["task"] for one in failed] == ["c1.19", "c1.39", "c1.59"] and told[-1]["failed"] == 3
    assert {one["where"] for one in failed} == {"samples/failing.py:18 in __call__"}
    path = app("class T(Task):\n    def __call__(self): return 1\n"
               "class S(ITaskSystem):\n    left = 3\n"
               "    def generate_tasks(self, master):\n        self.left -= 1\n        return [T('one')]\n"
               "    def is_complete(self, master): return not self.left and not master.outstanding\n"
               "    def gather_result(self, master): return 'three steps'\n"
               "class A(ApplicationNode):\n    def get_task_system(self): return S()\n")
    told = [json.loads(line) for line in
            cli("client", path, "--workers", "0", "--json=lines", "-q").stdout.splitlines()]
    assert [one["step"] for one in told if one["event"] == "step"] == [1, 2, 3], told
    assert told[0]["event"] == "accepted" and told[0]["system"] == "1" and told[-1]["result"] == "three steps"


@pytest.mark.parametrize("words", [["samples/md5.py"], ["--status"], ["--explain", "c1.1"]])
@pytest.mark.parametrize("json_option", ["--json", "--json=lines"])
def test_an_error_is_an_object_with_the_same_three_parts(cli, words, json_option):
    result = cli("client", *words, json_option, "--master", "127.0.0.1:9", "--wait", "0")
    about = json.loads(result.stdout)
    assert result.returncode == about["exit"] == 3 and about["ok"] is False and said(result)
    parts = [re.search(rf"^{name}: +(.*)$", result.stderr, re.MULTILINE)[1] for name in ("error", "why", "fix")]
    assert [about["error"][name] for name in ("message", "why", "fix")] == parts


def test_an_error_of_what_was_measured_is_an_object_too(cli, tmp_path):
    result = cli("client", "stats", "--json", "--env", tmp_path / "none")
    about = json.loads(result.stdout)
    assert result.returncode == about["exit"] == 1 and about["error"]["message"] in result.stderr


# -- asking and ordering -------------------------------------------------------------------------------------------


def ask(here, *words, **environ):
    return here.start("client", *words, "--master", here.address, **environ).wait()


@pytest.mark.slow
def test_status_shows_slaves_and_systems_as_a_page_and_as_an_object(swarm):
    here = swarm(slaves=1, workers=2)
    assert here.run_client("md5.py").code == 0
    page = ask(here, "--status").out
    assert f"master {here.address}, up " in page and "1 slave, 0/2 workers busy (0 %)" in page
    assert re.search(r"^slave +workers +leases +tasks +done +state\ns1 +2 +0 +0 +\d+ +up$", page, re.MULTILINE), page
    about = json.loads(ask(here, "--status", "--json").out)
    assert about["slaves"][0]["name"] == "s1" and about["systems"] == [] and about["status"]["workers"] == 2


def test_the_page_of_text_puts_what_is_wrong_first():
    status = {"addresses": {"http": "h:1"}, "uptime": 3700, "version": "1", "python": "3", "busy": 1, "workers": 2,
              "slaves": 2, "queued": 1000, "done": 2, "failed": 0, "clients": ["c1"], "storage": "full",
              "unplaced": [{"tasks": 7, "why": "no slave offers gpu"}]}
    row = {"workers": 1, "leases": 0, "tasks": 0, "done": 12345, "draining": False, "quarantine": 0}
    slaves = [{**row, "name": "s1", "draining": True}, {**row, "name": "s2\x1b[31m", "quarantine": 9.6}]
    systems = [{"name": "3", "app": "pca", "client": "c1", "step": 2, "done": 5, "tasks": 9, "elapsed": 61.0}]
    lines = client.status_lines({"status": status, "slaves": slaves, "systems": systems})
    assert lines[0] == "master h:1, up 1 h 1 m, Concurrent 1, Python 3"
    assert [line[:4] for line in lines[1:4]] == ["  ! "] * 3 and "storage: full" in lines[1]
    assert "7 tasks fit no slave: no slave offers gpu" in lines[3] and "1,000 queued" in lines[4]
    assert lines[7].split() == ["3", "pca", "c1", "2", "5/9", "1", "m", "1", "s"]
    assert [line.split()[-1] for line in lines[-2:]] == ["draining", "quarantine"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.slow
def test_the_watched_status_is_redrawn_in_place_until_ctrl_c(swarm):
    here = swarm(slaves=1, workers=1)
    watched = Typed("client.py", "--status", "--watch", "--master", here.address)
    watched.until(r"(?s)\x1b\[Hmaster .*\x1b\[J.*\x1b\[Hmaster .*\x1b\[J.*\x1b\[Hmaster ")
    here.slaves[0].ends()
    watched.until("no slave is here; start one: python slave.py --master")
    assert "\x1b[2J" not in watched.text, "nothing is wiped: it would flicker"
    assert watched.interrupt().exit_code() == 0 and "Traceback" not in watched.text


@pytest.mark.slow
def test_who_has_the_token_of_a_master_cancels_a_system_and_its_client_ends_with_130(swarm, app):
    here = swarm(slaves=1, workers=2)
    text = sleepers(8, 60).replace("class A", "class S(ITaskSystem):\n    def generate_tasks(self, master):\n"
                                   "        return [T(str(n), seconds=60) for n in range(8)]\nclass A").replace(
        "    def start_processing(self):\n        self.push_tasks(T(f\"t{i}\", seconds=60) for i in range(8))\n",
        "    def get_task_system(self): return S()\n")
    runs = here.start_client(app(text), "--json")
    wait_until(lambda: here.proxy.systems(), "it runs")
    assert ask(here, "--cancel", "77").code == 1
    told = ask(here, "--cancel", here.proxy.systems()[0]["name"])
    assert told.code == 0 and re.match(r"system 1 is cancelled", told.out), told.err
    assert runs.wait().code == 130 and "was cancelled by somebody else" in runs.err
    assert not runs.about["ok"] and "--pdb" not in runs.err


@pytest.mark.slow
def test_a_slave_that_is_drained_leaves_and_an_unknown_one_is_told_who_is_here(swarm):
    here = swarm(slaves=1, workers=1)
    wrong = ask(here, "--drain", "s9")
    assert wrong.code == 1 and "there is no slave s9" in wrong.err and "here are: s1" in wrong.err
    told = ask(here, "--drain", "s1", "--json")
    assert json.loads(told.out)["ok"] and here.slaves[0].wait().code == 0


@pytest.mark.slow
def test_without_the_token_nothing_is_ordered_and_an_admin_s_file_brings_it(swarm, tmp_path):
    here, elsewhere = swarm(slaves=1, workers=1), {"CONCURRENT_SWARM_STATE": str(tmp_path)}
    keys = here.master.folder / "keys"
    for words in ((), ("--access", keys / "client.access")):
        refused = ask(here, "--drain", "s1", *words, **elsewhere)
        assert refused.code == 3 and "needs the token of the master" in refused.err, refused.err
        assert "keys/admin.access" in refused.err
    assert here.slaves[0].code is None
    assert ask(here, "--drain", "s1", "--access", keys / "admin.access", **elsewhere).code == 0
    assert here.slaves[0].wait().code == 0


def test_an_invitation_for_an_admin_does_not_hold_the_token_which_has_no_end(tmp_path):
    keyring = rpc.Keyring(str(tmp_path))
    keyring.write_access({"http": "h:1"})
    files = {role: json.loads((tmp_path / f"{role}.access").read_text()) for role in rpc.ROLES}
    assert [role for role, content in files.items() if "token" in content] == ["admin"]
    assert files["admin"]["token"] == keyring.token()
    _, path = keyring.invite("admin", 60, False, str(tmp_path / "guest.access"))
    assert "token" not in json.loads(text_of(path))


def test_the_token_does_not_travel_in_the_clear(tmp_path):
    keyring = rpc.Keyring(str(tmp_path))
    keyring.write_access({"http": "node01:8080"})
    path = str(tmp_path / "admin.access")
    with pytest.raises(components.Unreachable, match="there is no TLS"):
        rpc.token_of("node01:8080", path)
    assert rpc.token_of("127.0.0.1:8080", path) == keyring.token()
    keyring.write_access({"http": "node01:8080", "certificate": "ab" * 32})
    assert rpc.token_of("node01:8080", path) == keyring.token()


# -- measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points, fit", [
    ([(1, 4.0), (2, 2.5), (4, 1.75)], (1.0, 3.0)),
    ([(1, 8.0), (2, 4.0), (4, 2.0)], (0.0, 8.0)),
    ([(1, 2.0), (2, 2.0)], (2.0, 0.0)),
    ([(1, 2.0), (2, 3.0)], (2.5, 0.0)),
    ([(1, 9.0), (2, 4.0), (4, 1.5)], (0.0, 8.667)),
])  # fmt: skip
def test_amdahl_s_law_is_fitted_and_neither_part_is_negative(points, fit):
    assert client.amdahl(points) == pytest.approx(fit, abs=0.1)


def test_one_number_of_workers_is_no_scaling():
    assert client.amdahl([(1, 4.0)]) is None and client.amdahl([(2, 4.0), (2, 4.1)]) is None


def measured(**more):
    rows = [{"workers": n, "best_s": s, "runs": [s, s + 1], "task_seconds": 8.0, "speedup": 8 / s, "by_clock": 8 / s,
             "efficiency": 8 / s / n, "idle": 0.25} for n, s in ((1, 8.5), (2, 5.0), (4, 3.25))]
    base = {"by": "--workers 0", "base_s": 8.0, "cpu_s": 8.0, "elapsed_s": 8.1, "in_line_s": 0.0}
    return {"app": "a<b", "sequential": {**base, **more}, "rows": rows, "repeat": 3, "processors": 2, "p": 0.8,
            "fixed_s": 1.5, "shared_s": 7.0, "same_result": True}


def test_the_table_shows_what_was_measured_and_says_the_fit_in_words():
    lines = client.table(measured())
    assert "8.00 s of processor time by --workers 0" in lines[1]
    assert lines[4].split() == ["2", "5.00", "6.00", "1.60x", "1.60x", "80", "%", "8.00", "s", "25", "%"]
    assert lines[5].endswith("*") and "more workers than processors (2): not in the fit" in lines[6]
    assert lines[7:] == ["Amdahl   p = 0.800: of 8.50 s with one worker 7.00 s are shared by all workers, 1.50 s are "
                         "not: at most 5.3x with any number"]


@pytest.mark.parametrize("more, text", [
    ({"base_s": 0.5}, "Too short to say much"),
    ({"elapsed_s": 16.0, "in_line_s": 7.9}, "Others use this machine: for 7.90 s"),
    ({"elapsed_s": 16.0}, "It waits: without a swarm 8.00 s of 16.00 s are no work of a processor"),
])  # fmt: skip
def test_the_table_says_why_its_figures_may_mislead(more, text):
    assert text in "\n".join(client.table(measured(**more)))


def test_the_picture_is_whole_and_its_axes_begin_at_nothing():
    root = xml.etree.ElementTree.fromstring(client.draw(measured()))
    name = "{http://www.w3.org/2000/svg}"
    circles = [(float(one.get("cx")), float(one.get("cy"))) for one in root.iter(f"{name}circle")]
    assert len(circles) == 3 and "a<b" in "".join(root.itertext())
    assert [one.tag for one in root][:2] == [f"{name}title", f"{name}desc"]
    assert root[0].text == root.get("aria-label") == "Speedup of a<b"
    assert root[1].text == "1 worker: 0.94x; 2 workers: 1.60x; 4 workers: 2.46x"
    (x1, y1), (x2, y2), _ = circles
    assert (x2 - 60) / (x1 - 60) == pytest.approx(2, rel=0.01), "workers are drawn from 0 on"
    assert (350 - y2) / (350 - y1) == pytest.approx(8.5 / 5, rel=0.01), "speedups are drawn from 0 on"
    assert "NaN" not in client.draw({**measured(), "p": None, "fixed_s": None, "shared_s": None})


WORK = """
class T(Task):
    def __call__(self):
        return sum(i * i % 7 for i in range(200_000))
class A(ApplicationNode):
    def start_processing(self):
        self.result = 0
        self.push_tasks(T(f"t{i}") for i in range(8))
    def task_finished(self, task, result, error):
        self.result += result
        if not self.pending:
            self.shutdown_main_loop()
"""


@pytest.mark.slow
def test_a_bench_measures_one_to_n_workers_and_writes_picture_and_figures(cli, app, tmp_path):
    path = app(WORK)
    command = [sys.executable, CHECKOUT / "client.py", path, "--bench", "--local", "--workers", "3", "--repeat", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +(\d) +[\d.]+ +[\d.]+ +[\d.]+x", done.stdout, re.MULTILINE)
    assert rows == ["1", "2", "3"] and "by --workers 0" in done.stdout
    about = json.loads((tmp_path / "app-bench.json").read_text())
    assert [len(row["runs"]) for row in about["rows"]] == [2, 2, 2] and about["same_result"]
    for row in about["rows"]:
        assert row["best_s"] == min(row["runs"])
        assert row["speedup"] == pytest.approx(about["sequential"]["base_s"] / row["best_s"])
    xml.etree.ElementTree.parse(tmp_path / "app-scaling.svg")
    left = {one.name for one in tmp_path.iterdir()}
    assert left >= {"app-bench.json", "app-scaling.svg"} and not [name for name in left if name.endswith(".new")]


@pytest.mark.slow
def test_a_run_that_fails_ends_a_bench_with_what_it_says(cli):
    result = cli("client", "samples/failing.py", "--bench", "--local", "--repeat", "1")
    assert result.returncode == 1 and said(result, "the run without a swarm failed", "ValueError: range end before")


@pytest.mark.slow
def test_a_baseline_is_the_application_s_own_sequential_version_if_it_has_one(swarm, app):
    here = swarm(slaves=1, workers=2)
    own = WORK + "    def sequential(self): return sum(T('one')() for _ in range(8))\n"
    run = here.run_client(app(own), "--baseline", seconds=60)
    assert run.code == 0 and run.about["speedup"]["kind"] == "measured"
    assert run.about["speedup"]["base"] == "sequential()" and "another one" not in str(run.about["hints"])
    shown = here.start_client(app(WORK), "--baseline").wait().err
    assert re.search(r"x on 2 workers \(\d+ %\), measured: [\d.]+ s of processor time by --workers 0", shown)
    other = here.run_client(app(WORK + "    def sequential(self): return 'something else'\n"), "--baseline", seconds=60)
    assert "the result without a swarm is another one: something else" in other.about["hints"][0]


def test_waiting_is_no_work_in_a_sequential_run(cli, app):
    about = json.loads(cli("client", app(sleepers(3, 0.2)), "--workers", "0", "--sequential", "--json", "-q").stdout)
    assert about["elapsed_s"] > 0.6 and about["cpu_s"] < 0.3 and client._own_seconds(about) == about["cpu_s"]


@pytest.mark.slow
def test_who_interrupts_a_baseline_has_the_result_of_the_swarm(cli, app):
    own = WORK + "    def sequential(self): time.sleep(60)\n"
    typed = Typed("client.py", app(own), "--local", "--workers", "1", "--baseline")
    typed.until(r"result   \d+").until(r"without a swarm, run 1 of 1  \d+ s").interrupt()
    assert typed.exit_code() == 130 and "done     8 tasks" in typed.text and "Traceback" not in typed.text


@pytest.mark.slow
def test_a_bench_whose_files_cannot_be_written_has_told_what_it_measured(cli):
    command = [sys.executable, CHECKOUT / "client.py", CHECKOUT / "samples" / "hello.py", "--bench", "--local"]
    result = subprocess.run([*command, "--workers", "1", "--repeat", "1"], cwd="/proc", capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 1 and "bench    hello: one run each" in result.stdout
    assert said(result, "figures and picture cannot be written to /proc")
