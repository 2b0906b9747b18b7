"""Task systems go on in another process: the master is killed, their host dies, and the result is as ever."""

import json
import os
import random
import signal
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager

import pytest
from concurrent_swarm.client import Nemesis
from concurrent_swarm.components import Error
from concurrent_swarm.master import summary_of
from conftest import at_once, children_of, running, text_of, wait_until, zygote_of

APP = "durable.py"


def words_of(system, **settings):
    """The command line that runs a system of durable.py."""
    settings = {"system": system, **settings}
    words = (word for key, value in settings.items() for word in ("--set", f"durable.{key}={value}"))
    return ["--app", "RunSystem", *words]


def result_of(run):
    """What the application left in `self.result`; it must have ended well."""
    assert run.code == 0, f"{run.out}\n{run.err}"
    return run.about["result"]


def right(count, steps=1):
    """The result of a run in which nothing happens."""
    extra = count // 20
    return {"total": steps * sum(n * n for n in range(count)), "outcomes": steps * count, "extra": extra, "wrong": 0,
            "begun": 1, "called": steps, "distinct": steps * count + extra}


def kill_master(here):
    """Ends the master as a power cut would."""
    old = here.master
    old.ends(signal.SIGKILL)
    old.parent.close()
    old.parent = None


def restart(here):
    """Starts the master in the same folder, on the same port."""
    here.start_master(port=int(here.address.rpartition(":")[2]), journal=True)


def done_of(here):
    """How many tasks of systems the master says are done."""
    return sum(row["done"] for row in here.proxy.systems())


def half_way(swarm, count):
    """A swarm with a client whose system of so many tasks has done a part of them."""
    here = swarm(slaves=1, workers=2, journal=True)
    client = here.start_client(APP, "--json", *words_of("Squares", count=count, how="slow"))
    wait_until(lambda: done_of(here) > 150, "a part is done")
    return here, client


def rows_of(here, kind):
    """(detail, size of the payload) of the journal's records of a kind."""
    with closing(sqlite3.connect(f"file:{here.master.folder / 'journal.db'}?mode=ro", uri=True)) as base:
        rows = base.execute("SELECT detail, length(payload) FROM records WHERE kind = ? ORDER BY number", (kind,))
        return [(json.loads(detail), size) for detail, size in rows]


@pytest.mark.slow
@at_once
def test_a_system_goes_on_after_its_master_was_killed_and_ends_as_if_nothing_had_been(swarm):
    here, client = half_way(swarm, count=600)
    kill_master(here)
    restart(here)
    assert result_of(client.wait(60)) == right(600)
    wait_until(lambda: rows_of(here, "system") == rows_of(here, "finished") == [], "the journal has forgotten it")


@pytest.mark.slow
@at_once
def test_what_the_journal_has_is_not_computed_again(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    words = words_of("Squares", count=300, how="slow", folder=tmp_path)
    client = here.start_client(APP, "--json", *words)
    wait_until(lambda: sum(d[1] - d[0] for d, _ in rows_of(here, "outcome")) > 100, "a part is safe")
    here.slaves[0].ends(signal.SIGKILL)  # nobody else may finish what it has
    here.slaves.clear()
    kill_master(here)
    ran = len(list(tmp_path.iterdir()))
    safe = sum(d[1] - d[0] for d, _ in rows_of(here, "outcome"))
    restart(here)
    here.start_slave(workers=1)
    assert result_of(client.wait(60)) == right(300)
    assert len(list(tmp_path.iterdir())) <= ran + 315 - safe + 2, "the worker outlives its slave by a moment"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["slow generator", "slow list"])
@at_once
def test_steps_and_published_objects_come_again(how):
    with running(slaves=1, workers=2, journal=True) as here:
        client = here.start_client(APP, "--json", *words_of("Publishing", count=200, steps=3, how=how))
        wait_until(lambda: done_of(here) > 230, "the second step has begun")
        kill_master(here)
        restart(here)
        assert result_of(client.wait(60)) == right(200, steps=3)


@pytest.mark.slow
@at_once
def test_a_system_that_was_let_run_on_waits_for_nobody_after_a_restart_either(swarm, tmp_path):
    here = swarm(slaves=1, workers=2, journal=True)
    words = [word for name, value in {"folder": tmp_path, "count": 8, "steps": 4}.items()
             for word in ("--set", f"systems.{name}={value}")]
    client = here.start_client("systems.py", "--json", "--app", "PatientSteps", *words, "--step")
    (tmp_path / "go").touch()
    name = wait_until(lambda: [one["name"] for one in here.proxy.systems() if one["state"] == "waiting"], "it waits")[0]
    (tmp_path / "go").unlink()
    here.proxy.system.step(name, True)
    wait_until(lambda: rows_of(here, "step") and here.proxy.systems()[0]["tasks"] == 16, "the second step has begun")
    kill_master(here)
    restart(here)
    (tmp_path / "go").touch()
    assert result_of(client.wait(60))["called"] == 4


@pytest.mark.slow
@at_once
def test_what_tasks_of_a_system_have_published_outlives_master_and_slave(swarm, tmp_path):
    here = swarm(slaves=1, workers=2, journal=True)
    client = here.start_client(APP, "--json", *words_of("Handing", count=20, folder=tmp_path))
    wait_until(lambda: done_of(here) == 20, "the first step is done")
    wait_until(lambda: len(rows_of(here, "shared")) == 20 and len(rows_of(here, "outcome")), "it is safe")
    here.slaves[0].ends(signal.SIGKILL)
    here.slaves.clear()
    kill_master(here)
    restart(here)
    (tmp_path / "go").touch()
    here.start_slave(workers=2)
    assert result_of(client.wait(60)) == sorted([(100, 100_000)[n % 2], n] for n in range(20))
    wait_until(lambda: not rows_of(here, "shared"), "they went with the client")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Heavy", "HeavyResumable"])
@at_once
def test_the_history_of_a_system_that_can_be_saved_does_not_grow_without_end(system):
    with running(slaves=1, workers=2, journal=True) as here:
        client = here.start_client(APP, "--json", *words_of(system, count=400, how="list", steps=2))
        wait_until(lambda: rows_of(here, "snapshot"), "it was saved")
        wait_until(lambda: done_of(here) > 500, "it has gone on since")
        assert sum(size or 0 for _, size in rows_of(here, "outcome")) < 5_000_000, "10 MB came in"
        kill_master(here)
        restart(here)
        assert result_of(client.wait(60)) == right(400, steps=2)


@pytest.mark.slow
@at_once
def test_processes_of_a_killed_master_that_end_late_take_nothing_from_the_next_one_s(swarm):
    here, client = half_way(swarm, count=600)
    late = zygote_of(here.master.pid)
    for pid in (late, *children_of(late)):
        os.kill(pid, signal.SIGSTOP)
    kill_master(here)
    os.kill(here.slaves[0].pid, signal.SIGSTOP)  # or the system could end before its folder is looked at
    restart(here)
    (host,) = wait_until(lambda: children_of(zygote_of(here.master.pid)), "the system has another host")
    folders = os.path.join(os.path.realpath(here.master.folder), "work", "")  # of processes that run code of users
    wait_until(lambda: os.readlink(f"/proc/{host}/cwd").startswith(folders), "it is in a folder of its own")
    os.kill(late, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f"/proc/{late}"), "the first life has ended")
    assert os.path.isdir(os.readlink(f"/proc/{host}/cwd"))
    os.kill(here.slaves[0].pid, signal.SIGCONT)
    assert result_of(client.wait(60)) == right(600)


@pytest.mark.slow
@at_once
def test_a_host_that_dies_is_replaced_by_one_that_repeats_what_it_did(swarm, tmp_path):
    here = swarm(slaves=1, workers=2, journal=True)
    run = here.run_client(APP, *words_of("Dying", count=200, folder=tmp_path))
    assert result_of(run) == right(200)
    assert here.master.err.count("another one repeats what it did") == 2


@pytest.mark.slow
@at_once
def test_a_host_that_dies_again_and_again_ends_its_system(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    run = here.run_client(APP, *words_of("AlwaysDying", count=200))
    assert run.code == 1 and run.about["error"]["type"] == "HostLost"
    assert run.about["error"]["message"] == "the process of the system ended: killed by SIGKILL, 3 times"


@pytest.mark.slow
@at_once
def test_a_system_that_does_not_repeat_itself_is_told_so(swarm, tmp_path):
    here = swarm(slaves=0, journal=True)
    client = here.start_client(APP, "--json", *words_of("Fickle", folder=tmp_path))
    wait_until(lambda: rows_of(here, "batch"), "its tasks are safe")
    kill_master(here)
    restart(here)
    assert client.wait(60).code == 1
    assert "does not repeat itself: its batch 0 had 6 tasks, now 7" in client.about["error"]["message"]


@pytest.mark.slow
@at_once
def test_a_client_that_was_away_hears_the_result_of_a_master_that_was_started_again(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    client = here.start_client(APP, "--json", *words_of("Squares", count=200, how="slow"))
    wait_until(lambda: done_of(here) > 50, "a part is done")
    client.send(signal.SIGSTOP)
    wait_until(lambda: rows_of(here, "finished"), "the system is done")
    kill_master(here)
    restart(here)
    client.send(signal.SIGCONT)
    assert result_of(client.wait(60)) == right(200)


# -- clients come and go


def detach(here, *words):
    """Leaves a system with the master; returns its name there."""
    run = here.run_client(APP, "--detach", *words)
    assert run.code == 0 and run.about["detached"], run.err
    (name,) = run.about["systems"]
    return name


@pytest.mark.slow
@at_once
def test_what_a_system_has_published_stays_when_another_client_collects_it(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    words = words_of("Publishing", count=1000, how="slow")
    name = detach(here, *words)
    assert result_of(here.run_client(APP, "--collect", name, *words)) == right(1000)


@pytest.mark.slow
@at_once
def test_what_a_detached_client_has_published_outlives_the_master(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    words = ["--app", "RunGiven", "--set", "durable.count=200"]
    name = detach(here, *words)
    wait_until(lambda: done_of(here) > 10, "some are done")
    here.slaves[0].ends(signal.SIGKILL)
    here.slaves.clear()
    kill_master(here)
    restart(here)
    here.start_slave(workers=2)
    assert result_of(here.run_client(APP, "--collect", name, *words)) == 200 * 1000


@pytest.mark.slow
@at_once
def test_a_system_that_was_left_with_the_master_is_collected_by_another_process(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    words = words_of("Squares", count=1500, how="slow")
    name = detach(here, *words)
    assert [row["name"] for row in here.proxy.systems()] == [name], "it goes on"
    assert result_of(here.run_client(APP, "--collect", name, *words)) == right(1500)
    wait_until(lambda: rows_of(here, "finished") == rows_of(here, "owner") == [], "nothing is left of it")


@pytest.mark.slow
@at_once
def test_it_is_collected_after_its_end_and_after_the_death_of_the_master(swarm):
    here = swarm(slaves=1, workers=2, journal=True)
    words = words_of("Squares", count=50)
    name = detach(here, *words)
    wait_until(lambda: rows_of(here, "finished"), "it is done")
    kill_master(here)
    restart(here)
    assert result_of(here.run_client(APP, "--collect", name, *words)) == right(50)
    again = here.run_client(APP, "--collect", name, *words)
    assert again.code == 1 and "there is none of that name" in again.about["error"]["message"]


@pytest.mark.slow
@at_once
def test_a_system_was_left_with_the_master_once_its_client_has_heard_that_it_was_taken(swarm):
    here = swarm(slaves=0, journal=True)
    words = words_of("Squares", count=50)
    with Nemesis() as nemesis:
        (_, compute), way = nemesis.way_in(here.address)
        compute.delay = 0.2
        access = here.master.folder / "keys" / "client.access"
        client = here.start_client(APP, "--json", "--detach", *words, "--access", access, *way)
        wait_until(lambda: rows_of(here, "system"), "it was taken")
        nemesis.partition([compute], ways="there")  # it hears so, and nobody hears it any more
        assert client.wait().code == 0 and client.about["detached"]
        kill_master(here)
    assert rows_of(here, "detached"), "the next master waits for no client, but until its retention after its end"
    restart(here)
    here.start_slave(workers=2)
    assert result_of(here.run_client(APP, "--collect", *client.about["systems"], *words)) == right(50)


@pytest.mark.slow
@at_once
def test_what_nobody_collects_is_forgotten_after_the_retention(swarm):
    here = swarm(slaves=1, workers=2, journal=True, master=["--set", "master.retention=1"])
    name = detach(here, *words_of("Squares", count=400, how="slow"))
    wait_until(lambda: rows_of(here, "finished"), "it ran to its end all the same")
    wait_until(lambda: rows_of(here, "finished") == [], "it is forgotten")
    assert here.run_client(APP, "--collect", name, *words_of("Squares")).code == 1


@pytest.mark.slow
@at_once
def test_a_system_whose_client_waits_for_it_cannot_be_collected(swarm, tmp_path):
    here = swarm(slaves=0, journal=True)
    words = words_of("Squares", count=5)
    client = here.start_client(APP, "--json", *words)
    wait_until(lambda: here.proxy.systems(), "it is there")
    run = here.run_client(APP, "--collect", here.proxy.systems()[0]["name"], *words)
    assert run.code == 1 and "its own client waits for it" in run.about["error"]["message"]
    client.ends(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["wait", "cancel"])
@at_once
def test_the_systems_of_a_client_that_vanishes_go_on_or_stop_by_its_choice(choice):
    with running(slaves=1, workers=1, journal=True) as here:
        words = words_of("Squares", count=1000, how="slow")
        client = here.start_client(APP, "--set", f"client.on_disconnect={choice}", *words)
        wait_until(lambda: done_of(here) > 10, "it runs")
        client.ends(signal.SIGKILL)
        if choice == "cancel":
            wait_until(lambda: not here.proxy.systems(), "it was cancelled")
        else:
            wait_until(lambda: rows_of(here, "finished"), "it is done, and its result kept")


@at_once
def test_plain_tasks_cannot_be_left_with_the_master(swarm):
    here = swarm(slaves=0)
    run = here.run_client("plain.py", "--app", "Many", "--detach")
    assert run.code == 2 and "--detach is for task systems" in run.err


@contextmanager
def explained(here, callbacks):
    """A failure tells what explains it, for the swarm is gone by then: logs, journal, which callbacks there were."""
    try:
        yield
    except (AssertionError, OSError) as error:
        logs = "".join(f"\n-- {one.err_file}, exit code {one.code}:\n{one.err[-3000:]}" for one in here.running)
        try:
            kept = summary_of(str(here.master.folder))
        except Error as problem:
            kept = problem.text()
        counts = Counter(map(int, text_of(callbacks).split()))
        told = sorted(set(range(1000)) - set(counts)), [number for number, times in counts.items() if times > 1]
        raise AssertionError(f"{error!r}{logs}\n{kept}\nno callback: {told[0]}\ntwice: {told[1]}") from error


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("KILL_SEEDS", 2))))
@at_once
def test_a_system_and_plain_tasks_survive_kills_of_the_master_at_random_moments(seed, tmp_path_factory):
    """A thousand tasks of each, five kills a seed: `KILL_SEEDS=10` makes fifty."""
    folder = tmp_path_factory.mktemp("marks")
    with running(slaves=1, workers=2, journal=True) as here, explained(here, folder / "callbacks"):
        chance = random.Random(seed)
        client = here.start_client(APP, "--json", *words_of("Squares", count=1000, how="slow"))
        words = ["--app", "RunPlain", "--set", "durable.count=1000", "--set", "durable.how=slow"]
        plain = here.start_client(APP, "--json", *words, "--set", f"durable.folder={folder}")
        for share in sorted(chance.sample(range(980), 5)):
            wait_until(lambda at=share: len(text_of(folder / "callbacks").split()) >= at, "it has come so far")
            kill_master(here)
            restart(here)
        assert result_of(client.wait(90)) == right(1000)
        assert result_of(plain.wait(90)) == {"total": sum(n * n for n in range(1000)), "outcomes": 1000, "wrong": 0}
        assert sorted(map(int, text_of(folder / "callbacks").split())) == list(range(1000)), "each callback came once"
