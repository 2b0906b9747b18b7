"""Traces: what ran where and when, as viewers of Chrome's trace format read it.

`events_of` reads a file as they do: an array may lack its end, and what stands there half is left out. `Slices` checks
what they demand: slices of a thread nest, those of a task too, arrows touch slices, and everything has a name.
"""

import collections
import itertools
import json
import random
import signal
import urllib.error
import urllib.request

import pytest
from conftest import APPS, text_of, wait_until

from concurrent_swarm import components, master, tasks

PHASES = ["queue", "transfer", "run", "send"]


# -- reading as viewers do -----------------------------------------------------------------------------------------


def events_of(text):
    """The events of a trace, whole or cut off anywhere."""
    if text.startswith("{"):
        about = json.loads(text)
        assert about["displayTimeUnit"] == "ms"
        return about["traceEvents"]
    assert text.startswith("[")
    decoder, events, at = json.JSONDecoder(), [], 1
    while True:
        while at < len(text) and text[at] in ", \n":
            at += 1
        if at == len(text) or text[at] == "]":
            return events
        try:
            event, at = decoder.raw_decode(text, at)
        except ValueError:
            assert "\n" not in text[at:], "only the last event may be cut off"
            return events
        events.append(event)


class Slices:
    """What a viewer makes of events: `lanes` (pid, tid) -> slices, `lives` id -> slices, each (name, begin, end, depth)
    in order; `arrows` id -> [(phase, pid, tid, time)]; `names` of processes; `counts`, `instants`."""

    def __init__(self, events):
        self.lanes, self.lives, self.arrows = (collections.defaultdict(list) for _ in range(3))
        self.names, self.threads, self.args, self.counts, self.instants = {}, {}, [], [], []
        self._stacks = collections.defaultdict(list)
        for event in sorted(events, key=lambda event: event.get("ts", -1)):  # it is stable
            getattr(self, f"_{event['ph']}")(event)
        assert not any(stack for key, stack in self._stacks.items() if key[0] == "life"), "what begins must end"
        assert {pid for pid, _ in self.lanes} | {self.home(key) for key in self.lives} <= set(self.names)
        assert set(self.lanes) <= set(self.threads)
        assert len({tid for _, tid in self.threads}) == len(self.threads), "Perfetto knows threads by their tid alone"

    def _M(self, event):
        named = self.names if event["name"] == "process_name" else self.threads
        if event["name"] != "process_sort_index":
            key = event["pid"] if named is self.names else (event["pid"], event["tid"])
            assert key not in named
            named[key] = event["args"]["name"]

    def _X(self, event):
        place, begin, end = (event["pid"], event["tid"]), event["ts"], event["ts"] + event["dur"]
        stack = self._stacks["lane", place]
        while stack and stack[-1] <= begin and not (begin == end == stack[-1]):
            stack.pop()
        assert not stack or end <= stack[-1], f"{event} reaches beyond the slice around it"
        self.lanes[place].append((event["name"], begin, end, len(stack)))
        self.args.append(event.get("args"))
        stack.append(end)

    def _b(self, event):
        key, stack = event["id"], self._stacks["life", event["id"]]
        stack.append((event["name"], len(self.lives[key])))
        self.lives[key].append([event["name"], event["ts"], None, len(stack) - 1, event["pid"]])

    def _e(self, event):
        name, at = self._stacks["life", event["id"]].pop()
        assert name == event["name"]
        self.lives[event["id"]][at][2] = event["ts"]

    def home(self, key):
        (pid,) = {row[4] for row in self.lives[key]}
        return pid

    def _arrow(self, event):
        place, at = (event["pid"], event["tid"]), event["ts"]
        assert any(begin <= at <= end for _, begin, end, _ in self.lanes[place]), f"{event} is in no slice"
        assert type(event["id"]) is int, "a text is read as a hexadecimal number"
        self.arrows[event["id"]].append((event["ph"], place))

    _s = _t = _f = _arrow

    def _C(self, event):
        self.counts.append((event["name"], *event["args"].values()))

    def _i(self, event):
        assert event["s"] == "g"
        self.instants.append(event["name"])

    def of(self, role):
        """The names of the processes of a role."""
        return sorted(name for name in self.names.values() if name.startswith(role))

    def on(self, role):
        """All slices of threads of processes of a role."""
        return [row for (pid, _), rows in self.lanes.items() for row in rows if self.names[pid].startswith(role)]


def span(**given):
    """A span of ten tasks that took 4 ms, but for what is given."""
    usual = {
        "owner": "c1", "first": 40, "tasks": 10, "failed": 1, "attempt": 1, "slave": "s1", "lane": 0, "queued": 100.0,
        "leased": 100.001, "began": 100.002, "ended": 100.006, "heard": 100.007, "opening": 0.001, "packing": 0.0005,
        "step": 2, "kind": "app.Kind", "sent": 1000, "received": 200,
    }  # fmt: skip
    return master.Span(**{**usual, **given})


def rows_of(*spans):
    """What a trace tells of them."""
    thinned = tasks.Thinned()
    thinned.add(spans)
    return thinned.taken()[0]


def read(*spans):
    return shown(*(("span", row) for row in rows_of(*spans)))


def shown(*rows):
    return Slices(events_of(tasks.trace_of(rows).decode()))


# -- one span ------------------------------------------------------------------------------------------------------


def test_a_span_is_a_life_with_its_phases_and_a_run_in_its_lane_with_what_it_consists_of():
    seen = read(span())
    ((_, *phases),) = seen.lives.values()
    assert [row[:3] for row in phases] == [
        ["queue", 100_000_000, 100_001_000], ["transfer", 100_001_000, 100_002_000], ["run", 100_002_000, 100_006_000],
        ["send", 100_006_000, 100_007_000],
    ]  # fmt: skip
    assert {row[3] for row in phases} == {1}
    assert seen.on("slave s1") == [
        ("app.Kind", 100_002_000, 100_006_000, 0), ("unpickle", 100_002_000, 100_003_000, 1),
        ("run", 100_003_000, 100_005_500, 1), ("pickle", 100_005_500, 100_006_000, 1),
    ]  # fmt: skip
    about = {"task": "c1.40", "attempt": 1, "tasks": 10, "failed": 1, "step": 2, "sent": 1000, "received": 200}
    assert about in seen.args
    assert sorted(seen.names.values()) == ["client c1", "master", "slave s1"]
    assert "worker 0" in seen.threads.values()


def test_of_many_spans_in_a_second_the_first_are_told_whole_and_the_others_in_slices_of_their_lanes():
    ends = [100.0001 + number / 1000 for number in range(2000)]
    seen = read(*(span(first=10 * number, lane=number % 4, began=end - 0.0035, ended=end, heard=end + 0.0004)
                  for number, end in enumerate(ends)))
    assert tasks_in(seen) == 20_000
    lives = sorted(life[0][1] for life in seen.lives.values())
    assert len(seen.lives) == len(seen.arrows) == 2 * tasks.DETAILED and lives[0] == 100_000_000
    more, others = [about for about in seen.args if about and "leases" in about], 2000 - 2 * tasks.DETAILED
    assert len(more) == 2 * 4 * 8, "in two times three quarters of a second and four lanes, of up to 0.1 s each"
    assert sum(about["leases"] for about in more) == sum(about["failed"] for about in more) == others
    assert sum(float(about["ran"].removesuffix(" ms")) for about in more) == pytest.approx(3.5 * others)


@pytest.mark.parametrize("other", [{"kind": "app.Other"}, {"step": 3}, {"owner": "7"}, {"attempt": 2}, {"lane": 5},
                                   {"slave": "s2"}, {"began": 100.02, "ended": 100.021}])
def test_what_differs_or_comes_later_is_no_part_of_a_slice(other):
    whole = [span(lane=9, first=number) for number in range(tasks.DETAILED)]
    later = [span(began=100.007, ended=100.008), span(**{"began": 100.008, "ended": 100.009, **other})]
    *_, first, last = rows_of(*whole, *later)
    assert (first[18], last[18]) == (1, 1)


def test_leases_of_two_systems_of_a_client_that_take_turns_in_a_lane_are_no_slices_over_each_other():
    whole = [span(lane=5, first=number) for number in range(tasks.DETAILED)]
    turns = [span(owner="12"[number % 2], began=100.01 + number / 2000, ended=100.0104 + number / 2000)
             for number in range(40)]
    ((client, heard),) = master.grouped(whole + turns, "owner", lambda owner: "c1").items()
    assert client == "c1" and [row[18] for row in rows_of(*heard)[tasks.DETAILED :]] == [1] * 40


def test_an_arrow_leads_from_the_lease_to_the_run_to_the_result():
    seen = read(span())
    ((_, arrow),) = seen.arrows.items()
    assert [(phase, seen.names[pid]) for phase, (pid, _) in arrow] == [
        ("s", "master"), ("t", "slave s1"), ("f", "master")]  # fmt: skip


def test_what_a_client_knows_of_its_tasks_is_part_of_their_life():
    seen = shown(("own", "c1", "submit", 10, 99.0, 99.5), ("own", "c1", "settle", 10, 100.01, 100.02),
                 ("span", *rows_of(span()), (99.0, 99.5), (100.01, 100.02)))
    ((_, *phases),) = seen.lives.values()
    assert [row[0] for row in phases] == ["submit", *PHASES, "settle"]
    assert (phases[0][1:3], phases[-1][1:3]) == ([99_000_000, 99_500_000], [100_010_000, 100_020_000])
    ((_, arrow),) = seen.arrows.items()
    assert [(phase, seen.names[pid]) for phase, (pid, _) in arrow] == [
        ("s", "client c1"), ("t", "slave s1"), ("f", "client c1")]  # fmt: skip


def test_barriers_and_counts_are_instants_and_counters():
    seen = shown(("barrier", 5.0, "7", 3, False), ("barrier", 6.0, "7", 3, True), ("counts", 7.0, 1200, 8))
    assert seen.instants == ["system 7: step 3 begins", "system 7: step 3 is done and waits"]
    assert seen.counts == [("queue", 1200), ("busy", 8)]


def test_of_a_span_of_which_little_was_kept_there_is_the_run():
    seen = shown(("run", "7", 3, 2, 0, 1, "s1", 1, 5.0, 5.5, 4, "Kind"),
                 ("run", "7", 5, 2, 0, 1, "s1", 1, 5.4, 5.6, 4, "Kind"))
    assert seen.on("slave") == [("Kind", 5_000_000, 5_500_000, 0), ("Kind", 5_500_000, 5_600_000, 0)]
    assert not seen.lives and not seen.arrows
    assert seen.args[0] == {"task": "7.3", "attempt": 1, "tasks": 2, "failed": 0, "step": 4}


def test_names_of_a_user_s_classes_cannot_break_a_trace():
    kinds = ['a "quoted" \\ name\n', "ü€\U0001f600", "%s %d {x}", "</script>", ""]
    seen = read(*(span(first=10 * i, kind=kind) for i, kind in enumerate(kinds)))
    assert {row[0] for row in seen.on("slave") if row[3] == 0} <= {*kinds, "task"}


@pytest.mark.parametrize("seed", range(20))
def test_slices_nest_and_lanes_never_overlap_whatever_clocks_say(seed):
    chance = random.Random(seed)
    spans, now = [], 50.0
    for number in range(300):
        now += chance.expovariate(1000)
        times = [now + chance.uniform(-0.01, 0.01) for _ in range(5)]
        if chance.random() < 0.7:
            times.sort()
        spans.append(span(
            first=number, slave=f"s{chance.randrange(3)}", lane=chance.randrange(2), owner=chance.choice(["c1", "7"]),
            **dict(zip(master.Span._fields[7:12], times, strict=True)),
            opening=chance.choice([0.0, 0.001, 3.0]), packing=chance.choice([0.0, 0.001, 3.0]),
        ))  # fmt: skip
    seen = read(*spans)
    for place, rows in seen.lanes.items():
        if seen.names[place[0]].startswith("slave"):
            runs = [row for row in rows if row[3] == 0]
            assert all(a[2] <= b[1] for a, b in itertools.pairwise(runs))


# -- a file --------------------------------------------------------------------------------------------------------


def test_a_file_is_whole_json_at_its_end_and_readable_wherever_it_is_cut(tmp_path):
    file = tasks.TraceFile(tmp_path / "run.json")
    for number in range(5):
        file.put([("span", *rows_of(span(first=number))), ("counts", 100.0 + number, number, 1)])
    file.close()
    text = text_of(tmp_path / "run.json")
    whole = json.loads(text)
    assert len([event for event in whole if event["ph"] == "t"]) == 5
    for cut in range(1, len(text), 7):
        found = events_of(text[:cut])
        assert found == whole[: len(found)]


def test_a_file_that_nothing_was_put_into_is_a_trace_too(tmp_path):
    tasks.TraceFile(tmp_path / "run.json").close()
    assert json.loads(text_of(tmp_path / "run.json")) == []


def test_a_file_ends_before_it_exceeds_its_size_and_says_so_once(tmp_path, caplog):
    file = tasks.TraceFile(tmp_path / "run.json", most=10_000)
    for number in range(50):
        file.put([("span", *rows_of(span(first=number)))])
    file.close()
    assert 8_000 < (tmp_path / "run.json").stat().st_size <= 10_000
    Slices(json.loads(text_of(tmp_path / "run.json")))
    assert [record.getMessage() for record in caplog.records] == [
        f"the trace {tmp_path}/run.json ends here, with 0.01 MiB: it may have 0.01"]


def test_a_disk_without_room_ends_a_trace_with_a_line_and_nothing_else(caplog):
    file = tasks.TraceFile("/dev/full")
    file.put([("span", *rows_of(span()))])
    file.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the trace /dev/full ends here: [Errno 28] No space left on device"]


def test_a_trace_that_cannot_be_written_is_a_mistake_of_usage(tmp_path):
    with pytest.raises(components.UsageError, match="cannot be written"):
        tasks.TraceFile(tmp_path / "no" / "run.json")


# -- what a client knows itself ------------------------------------------------------------------------------------


def traced(tmp_path, *batches, ahead=0.0, same=True):
    """What the trace of a client shows that submitted tasks 0..9 at 100.0 of the master's time and settled them at
    100.02; its clock is `ahead`. `batches` are those of the master: (said, took until it came, spans)."""
    tracer = tasks.Tracer(tasks.TraceFile(tmp_path / "run.json"))
    tracer.begin("c1", same)
    tracer.note(0, 10, 0, 100.0 + ahead, 100.001 + ahead)
    tracer.note(0, 10, 1, 100.02 + ahead, 100.03 + ahead)
    for said, took, spans in batches:
        tracer.hear(said, said + took + ahead, rows_of(*spans))
    tracer.close()
    return Slices(json.loads(text_of(tmp_path / "run.json")))


NEAR = span(first=0, queued=100.002, leased=100.003, began=100.004, ended=100.01, heard=100.012)


@pytest.mark.parametrize("ahead", [0.0, 5_000.0, -99.0])
def test_the_clock_of_a_client_elsewhere_is_told_by_what_must_come_before_what(tmp_path, ahead):
    seen = traced(tmp_path, (100.25, 0.004, [NEAR]), (100.5, 0.003, []), ahead=ahead, same=False)
    (_, submit, *_), = seen.lives.values()
    assert submit[0] == "submit" and abs(submit[1] - 100_000_000) <= 2_500, "half of what is not known"
    assert [row[0] for row in seen.on("client c1")] == ["submit", "settle"]


def test_a_client_of_the_master_s_machine_has_its_clock(tmp_path):
    seen = traced(tmp_path, (100.25, 0.2, [NEAR]))
    (_, *phases), = seen.lives.values()
    assert phases[0][:3] == ["submit", 100_000_000, 100_001_000]
    assert phases[-1][:3] == ["settle", 100_020_000, 100_030_000]


def test_spans_travel_as_they_are():
    spans = [span(), span(owner="7", first=1 << 52, lane=1 << 52, kind="", step=9), span(kind="ü")]
    spans += [span(lane=2, first=number, began=99.0, ended=99.0005) for number in range(tasks.DETAILED + 5)]
    rows = rows_of(*spans)
    assert tasks.unpack_spans(tasks.pack_spans(rows)) == list(map(tuple, rows))
    assert [master.Span(*row[:-2]) for row in rows[: tasks.DETAILED]] == spans[: tasks.DETAILED]


def test_spans_wait_a_batch_for_outcomes_that_are_on_their_way(tmp_path):
    tracer = tasks.Tracer(tasks.TraceFile(tmp_path / "run.json"))
    tracer.begin("c1", True)
    tracer.hear(100.25, 100.25, rows_of(NEAR))
    tracer.note(0, 10, 1, 100.3, 100.4)
    tracer.hear(100.5, 100.5, [])
    tracer.close()
    (life,) = Slices(json.loads(text_of(tmp_path / "run.json"))).lives.values()
    assert life[-1][0] == "settle"


# -- runs ----------------------------------------------------------------------------------------------------------


def client_trace(here, file, app, *args, code=0, **more):
    """Runs a client with `--trace` to its end; what the file shows."""
    run = here.run_client(app, "--trace", file, *args, **more)
    assert run.code == code, run.err
    return Slices(json.loads(text_of(file)))


def tasks_in(seen):
    """The tasks of all runs, by slave."""
    return sum(about["tasks"] for about in seen.args if about and "task" in about)


def test_a_trace_of_a_client_has_every_task_from_its_submission_to_its_outcome(swarm_of_module, tmp_path):
    seen = client_trace(swarm_of_module, tmp_path / "run.json", "plain.py", "--app", "Many", "--set", "plain.count=500")
    assert tasks_in(seen) == 500
    for life in seen.lives.values():
        assert [row[0] for row in life[1:]] == ["submit", *PHASES, "settle"]
        assert all(before[2] <= after[1] for before, after in itertools.pairwise(life[1:]))
    assert len(seen.of("client")) == 1 and seen.of("slave")
    for arrow in seen.arrows.values():
        assert [(phase, seen.names[place[0]].partition(" ")[0]) for phase, place in arrow] == [
            ("s", "client"), ("t", "slave"), ("f", "client")]  # fmt: skip
    assert {"queue", "busy"} == {name for name, _ in seen.counts}


def test_a_trace_of_a_system_has_its_steps_and_nothing_of_other_clients(swarm_of_module, tmp_path):
    here, file = swarm_of_module, tmp_path / "run.json"
    words = ["--app", "WaitingSystem", "--set", "systems.count=2", "--set", f"systems.folder={tmp_path}"]
    client = here.start_client("systems.py", "--trace", file, *words)
    wait_until(lambda: list(tmp_path.glob("run-*")), "its tasks run")
    other = here.start_client("plain.py", "--app", "Many", "--set", "plain.count=3", "--json")
    wait_until(lambda: len(here.proxy.status()["clients"]) == 2, "another client is there")
    (tmp_path / "go").touch()
    assert client.wait().code == other.wait().code == 0
    seen = Slices(json.loads(text_of(file)))
    assert tasks_in(seen) == 2 and len(seen.of("system")) == 1
    (name,) = seen.of("system")
    assert seen.instants == [f"{name}: step 1 begins"]
    assert {about["step"] for about in seen.args if about and "step" in about} == {1}


def test_a_client_that_is_killed_leaves_a_trace_that_can_be_read(swarm_of_module, tmp_path):
    file = tmp_path / "run.json"
    words = ["--app", "OneByOneThenWait", "--set", "plain.count=50", "--set", f"plain.folder={tmp_path}"]
    client = swarm_of_module.start_client("plain.py", "--trace", file, *words)
    done = wait_until(lambda: tasks_in(Slices(events_of(text_of(file) or "["))), "the trace has some that are done")
    client.ends(signal.SIGKILL)
    (tmp_path / "go").touch()
    assert done <= tasks_in(Slices(events_of(text_of(file)))) < 50
    wait_until(lambda: not swarm_of_module.proxy.status()["busy"], "its last task has ended")


@pytest.mark.parametrize("how", ["busy", "dies"])
def test_each_attempt_of_a_task_is_a_run_of_its_own(swarm_of_module, tmp_path, how):
    seen = client_trace(swarm_of_module, tmp_path / "run.json", "retries.py", "--app", "Retrying", "--set",
                        f"retries.folder={tmp_path}", "--set", f"retries.called={how}",
                        code=int(how == "dies"))  # fmt: skip
    found = collections.defaultdict(list)
    for about in seen.args:
        if about and "task" in about:
            found[about["task"]].append(about["attempt"])
    assert list(found.values()) == [[1, 2, 3]], "also of those that ended with their worker"
    assert [life[-1][0] for life in seen.lives.values()] == ["send", "send", "settle"], "the last has an outcome"


@pytest.mark.parametrize("app", ["plain.py", "systems.py"])
def test_a_run_in_one_process_is_traced_too(swarm_of_module, tmp_path, app):
    words = {"plain.py": ["--app", "Many", "--set", "plain.count=200"],
             "systems.py": ["--app", "LockStepping", "--set", "systems.count=100", "--set", "systems.steps=2"]}
    seen = client_trace(swarm_of_module, tmp_path / "run.json", app, "--workers", "0", *words[app])
    assert tasks_in(seen) == {"plain.py": 200, "systems.py": 201}[app] and seen.of("slave") == ["slave here"]
    assert seen.instants == (["system 1: step 1 begins", "system 1: step 2 begins"] if app == "systems.py" else [])


@pytest.mark.slow
def test_a_trace_of_a_local_swarm_is_that_of_its_client(tmp_path, swarm):
    here = swarm(slaves=0)
    words = ["--local", "--workers", "2", "--app", "Many", "--set", "plain.count=300", "--trace", tmp_path / "run.json"]
    run = here.start("client", str(APPS / "plain.py"), "--json", *words).wait()
    assert run.code == 0, run.err
    assert tasks_in(Slices(json.loads(text_of(tmp_path / "run.json")))) == 300
    assert f"trace    {tmp_path / 'run.json'} (" in run.err


def test_a_run_in_one_process_that_fails_before_it_begins_has_one_error_and_a_trace(swarm_of_module, tmp_path):
    words = ["--app", "FailsAtFirst", "--workers", "0", "--trace", tmp_path / "run.json"]
    run = swarm_of_module.run_client("plain.py", *words)
    assert run.code == 1 and run.about["error"]["type"] == "ValueError" and "internal error" not in run.err
    assert json.loads(text_of(tmp_path / "run.json")) == []


def test_a_trace_that_cannot_be_written_stops_a_run_before_it_begins(swarm_of_module, tmp_path):
    run = swarm_of_module.run_client("plain.py", "--app", "Many", "--trace", tmp_path / "no" / "run.json")
    assert run.code == 2 and run.err.startswith("error: the trace ") and run.err.count("\n") == 3


# -- a master ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_master_traces_the_tasks_of_all(swarm, tmp_path, end):
    file = tmp_path / "all.json"
    here = swarm(slaves=2, workers=1, master=["--trace", file])
    assert here.run_client("plain.py", "--app", "Many", "--set", "plain.count=100").code == 0
    assert here.run_client("systems.py", "--app", "LockStepping", "--set", "systems.count=10").code == 0
    wait_until(lambda: tasks_in(Slices(events_of(text_of(file)))) == 132, "all is written")
    here.master.ends(end)
    text = text_of(file)
    seen = Slices(events_of(text))
    assert (len(seen.of("client")), len(seen.of("system")), len(seen.of("slave"))) == (1, 1, 2)
    assert len(seen.instants) == 3 and max(busy for name, busy in seen.counts if name == "busy") <= 2
    assert text.endswith("\n]\n") == (end == signal.SIGTERM)


def test_nothing_is_heard_for_traces_while_nobody_traces(master_here):
    node = master_here("master.journal=no")
    assert node.traces.hear not in node.spans.ears
    node.traces.follow("c1")
    assert node.spans.ears.count(node.traces.hear) == 1
    node.traces.leave("c1")
    assert node.traces.hear not in node.spans.ears


# -- a page --------------------------------------------------------------------------------------------------------


def test_the_page_of_a_trace_shows_what_is_kept_of_a_system_to_who_has_the_token(swarm, tmp_path):
    here = swarm(slaves=2, workers=1)
    assert here.run_client("plain.py", "--app", "Many", "--set", "plain.count=100").code == 0
    assert here.run_client("systems.py", "--app", "LockStepping", "--set", "systems.count=10").code == 0
    token = json.loads(text_of(here.master.folder / "keys" / "token.json"))["token"]

    def page(path, **headers):
        request = urllib.request.Request(f"http://{here.address}{path}", headers=headers)
        return Slices(events_of(urllib.request.urlopen(request, timeout=60).read().decode()))

    with pytest.raises(urllib.error.HTTPError, match="401"):
        page("/trace.json?system=1")
    of_one, of_all = (page(path, Authorization=f"Bearer {token}") for path in ("/trace.json?system=1", "/trace.json"))
    assert (tasks_in(of_one), tasks_in(of_all)) == (32, 132)
    assert of_one.instants == [f"system 1: step {number} begins" for number in (1, 2, 3)]
    assert of_one.of("slave") == ["slave s1", "slave s2"] and not of_one.of("client")
    assert {row[0] for row in of_one.on("slave")} == {"Number"}
