"""Statistics: what is exact and how far quantiles are off, what counts and what does not, and where it all stays."""

import json
import math
import os
import pickle
import random
import signal
import statistics
import struct
import sys
import threading
import time
import timeit
from contextlib import suppress

import pytest
from concurrent_swarm.components import Figures, Series, SQLiteStats, Stats, StatsKeeper, SystemStats
from conftest import APPS, Running, Swarm, text_of, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from concurrent_swarm import components, master, rpc, tasks

APP = "measures.py"
finite = st.floats(allow_nan=False, allow_infinity=False)
LEAST = struct.unpack("d", struct.pack("Q", 1 << 52))[0]  # below it numbers have fewer digits


def series_of(values):
    made = Series()
    made.add(values)
    return made


def true_quantile(values, share):
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


# -- one series


@given(st.lists(st.lists(finite), min_size=1, max_size=4).filter(any))
def test_parts_put_together_are_the_whole(parts):
    together = [value for part in parts for value in part]
    whole, merged = series_of(together), Series()
    for part in parts:
        merged.merge(series_of(part))
    assert (merged.n, merged.min, merged.max, merged.last) == (whole.n, whole.min, whole.max, whole.last)
    assert (merged.shift, merged.counts) == (whole.shift, whole.counts), "and so all quantiles are the same"
    size = sum(min(abs(value), 1e300) for value in together)
    assert merged.sum == pytest.approx(whole.sum, abs=1e-12 * size) or size > 1e299


@given(st.lists(finite, min_size=1), st.sampled_from([0, 0.25, 0.5, 0.95, 0.99, 1]))
def test_a_quantile_is_off_by_no_more_than_its_bound(values, share):
    one = series_of(values)
    found, true = one.quantile(share), true_quantile(values, share)
    assert one.shift == components.FINEST
    assert abs(found - true) <= max(abs(true) / 64, LEAST)


@settings(max_examples=20, deadline=None)
@given(st.integers(0), st.floats(1e-9, 1e9), st.booleans())
def test_the_bound_of_quantiles_holds_over_a_range_of_32_768(seed, least, negative):
    chance = random.Random(seed)
    values = [(-1 if negative else 1) * least * 2 ** chance.uniform(0, 15) for _ in range(3000)]
    one = series_of(values)
    for share in (0.01, 0.5, 0.95, 0.99):
        true = true_quantile(values, share)
        assert abs(one.quantile(share) - true) <= abs(true) / 64


def test_beyond_it_the_bound_doubles_as_often_as_the_histogram_had_to():
    chance = random.Random(1)
    values = [chance.choice((-1, 1)) * 10 ** chance.uniform(-12, 12) for _ in range(20_000)]
    one = series_of(values)
    assert len(one.counts) <= components.BUCKETS and components.FINEST < one.shift <= 52
    for share in (0.05, 0.5, 0.95):
        true = true_quantile(values, share)
        assert abs(one.quantile(share) - true) <= abs(true) * 2.0 ** (one.shift - 53)


@pytest.mark.parametrize("values", [[0], [-0.0, 0.0], [-1, 0, 1], [-5, -3, -1], [5e-324], [-5e-324, 5e-324],
                                    [sys.float_info.max], [-sys.float_info.max, sys.float_info.max], [2**53, 1]])
def test_negative_numbers_zero_and_extremes_are_right(values):
    found = series_of(values).figures()
    assert (found.n, found.min, found.max, found.last) == (len(values), min(values), max(values), values[-1])
    assert found.sum == sum(map(float, values)) and found.avg == pytest.approx(statistics.fmean(values))
    assert found.min <= found.p50 <= found.p95 <= found.p99 <= found.max


def test_sums_stop_at_the_largest_number():
    one = series_of([1.7e308] * 3)
    assert one.figures().sum == sys.float_info.max and one.figures().avg == 1.7e308
    json.dumps(one.figures()._asdict(), allow_nan=False)


@given(st.lists(st.tuples(finite, st.integers(1, 50)), min_size=1, max_size=20))
def test_a_weight_is_as_good_as_so_many_samples(pairs):
    weighed = Series()
    weighed.add([value for value, _ in pairs], [weight for _, weight in pairs])
    repeated = series_of([value for value, weight in pairs for _ in range(weight)])
    assert (weighed.n, weighed.counts, weighed.last) == (repeated.n, repeated.counts, repeated.last)


@given(st.lists(finite, min_size=1), st.booleans())
def test_a_series_arrives_as_it_was_sent(values, per_step):
    one = series_of(values)
    one.steps = {} if per_step else None
    other = Series.unpack(json.loads(json.dumps(one.pack())))
    assert other.figures() == one.figures() and other.steps == one.steps and other.counts == one.counts


GOOD = [False, 2, 3.0, 1.0, 2.0, 2.0, 47, [32736, 1, 32768, 1]]


@pytest.mark.parametrize("place, value", [
    (0, 1), (1, 3), (1, True), (1, -2), (2, math.nan), (2, 3), (3, 2.5), (3, -math.inf), (4, math.nan), (5, 9.0),
    (6, 46), (6, 64), (7, [1]), (7, [32736, 1, 32736, 1]), (7, [32736, 1, 65536, 1]), (7, [32736, 3, 32768, -1]),
    (7, {}), (7, [32736, 1, 32768, 1.0]), (7, ["a", 2]), (7, []), (7, None),
])  # fmt: skip
def test_figures_of_a_stranger_are_refused_unless_they_are_whole(place, value):
    assert Series.unpack(list(GOOD)).n == 2
    row = [*GOOD[:place], value, *GOOD[place + 1:]]
    with pytest.raises(ValueError):
        Series.unpack(row)
    stats = Stats()
    with pytest.raises(ValueError):
        stats.take_in({"good": list(GOOD), "bad": row})
    assert not stats.used, "then nothing of it counts"


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner))


@given(anything)
def test_whatever_a_stranger_sends_is_figures_or_a_value_error(rows):
    stats = SystemStats()
    try:
        stats.hooks_say(1, rows)
    except ValueError:
        return
    stats.told()


# -- names


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_what_is_no_finite_number_is_refused_and_counts_nowhere(value):
    for stats in (Stats(), tasks.Attempts(lambda: 1)):
        stats.add_avg("x", 1)
        with pytest.raises(ValueError, match="x: "):
            stats.add_avg("x", value)
        assert stats.x.n == 1


@pytest.mark.parametrize("name", ["", "x" * 101, 7, None])
def test_what_is_no_name_is_refused(name):
    for stats in (Stats(), tasks.Attempts(lambda: 1)):
        with pytest.raises(ValueError, match="name"):
            stats.add_avg(name, 1)


def test_names_are_bounded_and_further_ones_share_one():
    stats = Stats(names=3)
    for number in range(2000):
        stats.add_avg(f"n{number}", 1)
    assert stats.dump_all().keys() == {"n0", "n1", "n2", components.OTHERS}
    assert stats.dump(components.OTHERS)["n"] == 1997


def test_no_sample_is_lost_while_several_threads_add_and_others_look():
    stats, done = Stats(), threading.Event()

    def add(number):
        for value in range(20_000):
            stats.add_avg("shared", value)
            stats.add_avg(f"own {number}", 1, per_step=True)

    def look():
        while not done.is_set():
            stats.dump_all()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    looking = threading.Thread(target=look)
    for thread in (*threads, looking):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    looking.join()
    assert (stats.shared.n, stats.shared.sum) == (80_000, 4 * sum(range(20_000)))
    assert all(stats.dump(f"own {number}")["n"] == 20_000 for number in range(4))


def test_an_update_takes_less_than_a_microsecond():
    stats, values = Stats(), [random.lognormvariate(-5, 1) for _ in range(2048)]

    def add():
        for value in values:
            stats.add_avg("seconds", value)

    assert min(timeit.repeat(add, number=1, repeat=50, timer=time.thread_time)) / len(values) < 1e-6


def test_stopwatches_that_do_not_run_are_an_error_that_says_so():
    with pytest.raises(components.UsageError, match="time_push"):
        Stats().time_pop("x")


def test_figures_are_logged_on_request(caplog):
    stats = Stats()
    stats.add_avg("load", 2)
    with caplog.at_level("INFO"):
        stats.dump_stats(components.log)
    assert "load: n 1, sum 2, avg 2, min 2, max 2, last 2, p50 2" in caplog.text


def test_an_object_that_holds_on_to_its_stats_can_travel():
    stats = Stats()
    stats.add_avg("x", 1)
    assert not pickle.loads(pickle.dumps(stats)).used


# -- steps


def test_what_is_declared_per_step_restarts_and_its_history_stays():
    stats = Stats()
    stats.declare("each", per_step=True)
    for step in (1, 2, 3):
        stats.next_step(step)
        for value in range(step):
            stats.add_avg("each", value)
            stats.add_avg("all", value)
    assert {step: one.n for step, one in stats.steps("each").items()} == {1: 1, 2: 2, 3: 3}
    assert (stats.each.n, stats.dump("all")["n"], stats.steps("all")) == (3, 6, {})
    rows = stats.rows()
    assert components.by_name(rows)["each"]["n"] == 3
    assert components.by_name(rows, per_step=True).keys() == {"each"}


def test_the_history_of_steps_is_bounded():
    stats = Stats()
    for step in range(1, 1000):
        stats.next_step(step)
        stats.add_avg("each", step, per_step=True)
    stats.next_step(1000)
    assert [*stats.steps("each")] == [*range(800, 1000)]


def host_says(stats, name, step, value, per_step=False):
    told = Stats()
    told.add_avg(name, value, per_step)
    stats.hooks_say(step, told.pack())


def test_a_host_that_repeats_what_another_has_said_counts_once():
    stats = SystemStats()
    for step in (1, 2, 1, 2, 3):
        stats.next_step(step)
        host_says(stats, "all", step, step)
        host_says(stats, "each", step, step, per_step=True)
    assert stats.dump("all")["sum"] == 3, "what it says is the whole"
    assert {step: one.sum for step, one in stats.steps("each").items()} == {1: 1, 2: 2, 3: 3}


def test_hooks_and_tasks_may_use_the_same_name():
    stats, other = SystemStats(), Stats()
    stats.next_step(1)
    for per_step in (False, True):
        other.add_avg(f"same {per_step}", 5, per_step)
        host_says(stats, f"same {per_step}", 1, 1, per_step)
    stats.take_in(other.pack())
    stats.next_step(2)
    assert (stats.dump("same False")["n"], stats.dump("same False")["sum"]) == (2, 6)
    assert stats.steps("same True")[1].sum == 6
    assert components.by_name(stats.rows())["same True"]["sum"] == 6


# -- what tasks record


def test_what_a_failed_task_has_recorded_is_dropped_and_the_rest_of_the_lease_counts():
    now = 0
    stats = tasks.Attempts(lambda: now)
    for now in range(10):
        stats.add_avg("x", now)
    found = Stats()
    found.take_in(stats.take({3, 4}))
    assert (found.x.n, found.x.sum) == (8, 45 - 7)
    assert not stats.used and stats.take(set()) == {}


def test_what_the_task_that_runs_has_recorded_waits_for_its_own_report():
    now = 0
    stats = tasks.Attempts(lambda: now)
    for now in range(6):
        for _ in range(3 * tasks.MANY_ROWS if now > 3 else 1):
            stats.add_avg("x", now)
    first = Stats()
    first.take_in(stats.take({2}, upto=5))
    assert (first.x.n, first.x.max) == (3 + 3 * tasks.MANY_ROWS, 4)
    assert stats.take({5}) == {} and not stats.used


class Records(tasks.Task):
    def __call__(self):
        if self.told:
            self.stats.add_avg("x", 1)


@pytest.mark.parametrize("told", [True, False])
def test_a_report_speaks_of_figures_only_if_there_are_any(told):
    batch = tasks.Packer({}).pack([Records("r", told=told)] * 5)
    runner = tasks.LeaseRunner(lambda *report: None, lambda: False)
    before = runner.stats.stand_in()
    try:
        runner.run(tasks.Envelope(1, "c1", 0, 0, 5, batch.group, 1, 0, batch.parts))
    finally:
        before.stand_in()
    assert [sorted(figures) for figures in runner.figures] == [["x"]] * told


def test_a_task_with_very_many_samples_takes_bounded_memory_and_may_still_fail():
    now = 0
    stats = tasks.Attempts(lambda: now)
    for now in range(3):
        for value in range(40_000):
            stats.add_avg("x", value)
        assert stats.x.n == (now + 1) * 40_000, "it may look at it"
        assert len(stats._rows) <= 4 * tasks.MANY_ROWS
    found = Stats()
    found.take_in(stats.take({1}))
    assert found.x.n == 80_000


# -- what the master measures


def span(number, owner="1", slave="s1", kind="Round", count=10):
    began = 100.0 + number
    times = began - 3, began - 0.5, began, began + 2, began + 2.25, 0.25, 0.125
    return master.Span(owner, number * count, count, 1, 1, slave, 0, *times, 1, kind, 1000, 50)


def test_parts_of_leases_are_measured_for_node_owner_slave_and_class():
    measures = master.Measures(Stats())
    measures.hear([span(number, owner="12c"[number % 3], slave=f"s{number % 2}") for number in range(6)])
    found = measures.scopes()
    assert found.keys() == {"", "1", "2", "c", "slave:s0", "slave:s1", "class:Round"}
    assert [found[one].dump("swarm.tasks")["sum"] for one in ("", "1", "slave:s0", "class:Round")] == [60, 20, 30, 60]
    sums = {name: one["sum"] for name, one in found["1"].dump_all().items()}
    assert sums == {"swarm.queue": 50.0, "swarm.transfer": 1.5, "swarm.unpickle": 0.5, "swarm.run": 3.25,
                    "swarm.pickle": 0.25, "swarm.sent": 2000, "swarm.received": 100, "swarm.tasks": 20,
                    "swarm.failed": 2, "swarm.task": pytest.approx(3.25)}  # fmt: skip
    assert found["1"].dump("swarm.task")["n"] == 20, "each task counts"


def test_what_the_master_remembers_is_bounded():
    measures = master.Measures(Stats())
    measures.hear([span(number, owner=str(number), slave=f"s{number}", kind=f"K{number}") for number in range(3000)])
    living = {"", "2999", *(f"slave:s{number}" for number in range(10))}
    measures.forget(living)
    found = measures.scopes()
    assert living <= found.keys()
    assert sum(one.startswith("class:") for one in found) == master.MOST_SCOPES + 1
    assert len(found) <= master.MOST_SCOPES + 1 + len(living) + master.REMEMBERED
    assert found["class:(others)"].dump("swarm.tasks")["sum"] == 10 * (3000 - master.MOST_SCOPES)


# -- where it stays


def figures(value):
    return series_of([value]).figures()


def test_what_was_kept_last_is_found_again(tmp_path):
    backend = components.ComponentManager(components.Config())[SQLiteStats]
    assert backend.load(tmp_path, None) == []
    rows = [(1.0, "", "a", None, 5.0, figures(1.0)), (1.0, "7", "b", 2, 5.0, figures(2.0))]
    backend.store(tmp_path, rows)
    later = (1.0, "", "a", None, 6.0, figures(9.0))
    backend.store(tmp_path, [later])
    assert backend.load(tmp_path, "") == [later] and backend.load(tmp_path, "7") == [rows[1]]
    assert backend.load(tmp_path, None) == [later, rows[1]] and backend.load(tmp_path, "8") == []
    backend.store(tmp_path, [(2.0, "", "c", None, 7.0, figures(3.0))])
    assert [row[2] for row in backend.load(tmp_path, "")] == ["c"], "only the latest run that has measured it"
    assert backend.load(tmp_path, "7") == [rows[1]]


def test_what_is_kept_is_bounded_by_rows_and_age(tmp_path):
    config = components.Config(arguments=["stats.rows=10", "stats.days=1"])
    backend = components.ComponentManager(config)[SQLiteStats]
    backend.store(tmp_path, [(1.0, "", f"n{n}", None, float(n), figures(n)) for n in range(25)])
    assert {row[2] for row in backend.load(tmp_path, "")} == {f"n{n}" for n in range(15, 25)}
    backend.store(tmp_path, [(1.0, "", "new", None, 86_400.0 + 20, figures(1.0))])
    assert {row[2] for row in backend.load(tmp_path, "")} == {"new", *(f"n{n}" for n in range(20, 25))}


class Remembering:
    def __init__(self):
        self.stored, self.fails = [], False

    def store(self, folder, rows):
        if self.fails:
            raise OSError("the disk is full")
        self.stored.append(rows)


def test_only_what_is_new_is_handed_over_and_what_could_not_be_is_handed_over_later(tmp_path, caplog):
    stats, backend, every = Stats(), Remembering(), 1.0
    keeper = StatsKeeper(lambda: backend, tmp_path, lambda: {"": stats}, lambda: every)
    stats.add_avg("a", 1)
    keeper.flush()
    keeper.flush()
    stats.add_avg("b", 2)
    backend.fails = True
    keeper.flush()
    assert "the disk is full" in caplog.text
    backend.fails = False
    keeper.close()
    assert [[row[2] for row in rows] for rows in backend.stored] == [["a"], ["b"]]
    stats.add_avg("c", 3)
    every = 0.0
    keeper.flush()
    assert len(backend.stored) == 2, "0 means never"


def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "stats.db").write_bytes(b"no database" * 100)
    backend = components.ComponentManager(components.Config())[SQLiteStats]
    for use, *more in ((backend.load, ""), (backend.store, [(1.0, "", "a", None, 1.0, figures(1))])):
        with pytest.raises(components.Error) as caught:
            use(tmp_path, *more)
        assert "stats.db" in caught.value.what and "stats.flush_every=0" in caught.value.fix


def test_another_backend_takes_its_place_by_configuration(tmp_path):
    class Elsewhere(components.Component):
        components.implements(components.IStatsBackend)

        def store(self, folder, rows):
            (folder / "elsewhere").write_text(rows[0][2])

        def load(self, folder, scope):
            return [(1.0, scope, "there", None, 1.0, figures(4.0))]

    try:
        node = components.ComponentManager(components.Config(arguments=["stats.backend=Elsewhere"]))
        assert [row[0] for row in rpc.kept_figures(node, tmp_path, "7")] == ["there"]
    finally:
        components.Component.registry.remove(Elsewhere)


# -- on a swarm


@pytest.fixture(scope="module")
def here():
    one = Swarm()
    try:
        one.start_master("--set", "stats.flush_every=0.2")
        one.start_slave(workers=2)
        yield one
    finally:
        one.close()


def measured(here, *settings, **more):
    words = [word for setting in settings for word in ("--set", f"measures.{setting}")]
    run = here.run_client(APP, "--app", "Measuring", *words, **more)
    assert run.about.get("result"), f"{run.out}\n{run.err}"
    return run.about["result"]


@pytest.mark.parametrize("how", ["", "raises", "dies"])
def test_each_task_counts_once_whatever_became_of_its_first_attempts(here, how):
    found = measured(here, f"how={how}", "count=20", "steps=3")
    assert (found["rounds"]["n"], found["rounds"]["sum"]) == (60, 3 * 190)
    assert (found["rounds"]["min"], found["rounds"]["max"]) == (0, 19)
    each = {step: (one["n"], one["sum"]) for step, one in found["by step"]["in step"].items()}
    assert each == dict.fromkeys("123", (20, 190))
    assert found["called"]["sum"] == 6 and found["outcomes"]["n"] == 60 and found["hook"]["n"] == 60
    assert {step: one["sum"] for step, one in found["by step"]["step of hook"].items()} == {"1": 1, "2": 2, "3": 3}


def test_what_failed_tasks_have_recorded_does_not_count(here):
    found = measured(here, "how=fails", "count=20", "steps=1")
    assert (found["rounds"]["n"], found["rounds"]["sum"]) == (10, 90)


def test_one_run_yields_queue_network_processor_and_serialising_together(here):
    found = measured(here, "count=40", "steps=2")
    for name in ("transfer", "unpickle", "run", "pickle", "sent", "received"):
        assert found[f"swarm.{name}"]["n"] == found["swarm.tasks"]["n"] > 0
        assert found[f"swarm.{name}"]["sum"] > 0
    assert found["swarm.tasks"]["sum"] == found["swarm.task"]["n"] == found["swarm.queue"]["n"] == 80


@pytest.mark.parametrize("how, counted", [("", 60), ("raises", 60), ("fails", 30)])
def test_without_a_swarm_the_same_counts(here, how, counted):
    words = ["--set", f"measures.how={how}", "--set", "measures.count=20", "--workers", "0", "--json"]
    found = here.start("client", APPS / APP, "--app", "Measuring", *words).wait().about["result"]
    assert (found["rounds"]["n"], found["outcomes"]["n"]) == (counted, 60)
    assert found["by step"]["in step"]["2"]["n"] == counted / 3 and found["by step"]["step of hook"]["3"]["sum"] == 3


def test_a_client_gets_the_figures_of_its_own_system_and_of_no_other(here):
    run = here.run_client(APP, "--app", "TwoAtOnce")
    base = sum(range(10))
    assert run.about["result"] == {"0": base, "1": base + 1000, "plain": base + 10_000}, run.err


def test_a_client_may_ask_while_the_system_runs(here, tmp_path):
    run = here.run_client(APP, "--app", "Asking", "--set", f"measures.folder={tmp_path}")
    early = json.loads(text_of(tmp_path / "go"))
    assert early["held"]["n"] < 4 and early["called"]["n"] == 1
    assert run.about["result"]["held"]["n"] == 4, run.err


def test_an_application_of_before_may_use_the_name_for_something_else(here):
    assert here.run_client(APP, "--app", "OwnAttributes").about["result"] == [{"mine": 1}, 3]


def test_people_ask_the_master_for_any_scope_and_only_its_administrator_resets(here):
    found = measured(here, "count=10", "steps=1")
    proxy = rpc.Proxy(here.address)
    assert proxy.stats.get("class:Rounds")["rounds"]["n"] >= found["rounds"]["n"]
    assert proxy.stats.get("slave:s1")["swarm.tasks"]["sum"] >= 10
    assert proxy.stats.get()["swarm.tasks"] == proxy.stats()["swarm.tasks"]
    assert proxy.stats.get("1", True)["in step"]["1"]["n"] > 0
    with pytest.raises(rpc.RpcError, match="nothing was measured of class:Ruonds"):
        proxy.stats.get("class:Ruonds")
    with pytest.raises(rpc.RpcError):
        proxy.stats.reset()
    slave = rpc.Proxy(here.slaves[0].started["address"])
    assert slave.stats()["swarm.tasks"]["sum"] == slave.stats.get("s1")["swarm.tasks"]["sum"] >= 10


def command(here, role, folder, *words):
    """Runs `stats` of a role over a folder of the swarm."""
    output = os.path.join(here.folder, f"{next(here.numbers)}-stats")
    words = ["stats", "--env", os.path.join(here.folder, folder), *words]
    run = Running([here.python, str(here.code / f"{role}.py"), *words], here.environ(), output)
    here.running.append(run)
    return run


@pytest.mark.slow
def test_figures_are_there_after_the_node_has_gone(swarm):
    here = swarm(slaves=1, master=["--set", "stats.flush_every=1000"])
    found = measured(here, "count=10", "steps=2")
    live = json.loads(command(here, "master", "m", "--system", "1", "--json").wait().out)
    assert live["rounds"] == found["rounds"], "a master that runs is asked"
    assert here.master.ends(signal.SIGTERM) == components.EXIT_TERMINATED
    here.slaves[0].ends(signal.SIGTERM)
    kept = json.loads(command(here, "master", "m", "--system", "1", "--json").wait().out)
    assert kept["rounds"] == found["rounds"] and kept["outcomes"] == found["outcomes"]
    steps = json.loads(command(here, "master", "m", "--system", "1", "--steps", "--json").wait().out)
    assert steps["in step"] == found["by step"]["in step"]
    table = command(here, "master", "m", "--node", "s1").wait().out
    assert table.split()[:9] == list(Figures._fields) and "swarm.run" in table
    assert "swarm.tasks" in command(here, "slave", "s1").wait().out, "the slave has its own"
    missing = command(here, "master", "m", "--kind", "Ronds").wait()
    assert missing.code == 1 and "did you mean class:Rounds?" in missing.err
    here.master.parent.close()
    here.start_master()
    assert rpc.Proxy(here.address).stats.get("1")["rounds"] == found["rounds"], "a later master knows it"


def test_figures_outlive_a_master_that_is_killed_but_for_the_last_moments(swarm):
    here = swarm(slaves=1, master=["--set", "stats.flush_every=0.1"])
    found = measured(here, "count=10", "steps=1")

    def kept():
        with suppress(components.Error):
            node = components.ComponentManager(components.Config())
            return components.by_name(rpc.kept_figures(node, here.master.folder, "1")).get("rounds")

    wait_until(lambda: kept() == found["rounds"], "what was measured is kept")
    here.master.ends(signal.SIGKILL)
    assert json.loads(command(here, "master", "m", "--system", "1", "--json").wait().out)["rounds"] == found["rounds"]


def test_one_setting_switches_it_off(swarm):
    here = swarm(slaves=1, master=["--set", "stats.flush_every=0"], slave=["--set", "stats.flush_every=0"])
    measured(here, "count=5", "steps=1")
    here.master.ends(signal.SIGTERM)
    here.slaves[0].ends(signal.SIGTERM)
    assert not (here.master.folder / "stats.db").exists() and not (here.slaves[0].folder / "stats.db").exists()


@pytest.mark.slow
def test_hooks_that_another_process_repeats_count_once(swarm, tmp_path):
    here = swarm(slaves=1, journal=True)
    client = here.start_client(APP, "--json", "--app", "Asking", "--set", f"measures.folder={tmp_path}/none")
    wait_until(lambda: here.proxy.systems() and here.proxy.systems()[0]["done"] == 3, "one task is left")
    old = here.master
    old.ends(signal.SIGKILL)
    old.parent.close()
    old.parent = None
    here.start_master(port=rpc.parse_address(here.address)[1], journal=True)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "go").touch()
    found = client.wait(60).about["result"]
    assert found["called"]["n"] == 1, "though two hosts have called it"
    assert found["held"]["n"] >= 1


def test_a_client_keeps_a_file_only_if_it_has_measured_something(here):
    measured(here, "count=1", "steps=1")
    kept = os.path.join(here.folder, "client", "stats.db")
    assert not os.path.exists(kept)
    assert here.run_client(APP, "--app", "Recording").code == 0
    run = command(here, "client", "client").wait()
    assert "own" in run.out, run.err
