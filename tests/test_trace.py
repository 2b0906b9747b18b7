"""Traces: what ran where and when, as viewers of Chrome's trace format read it.

`events_of` reads a file as they do: an array may lack its end, and what stands there half is left out. `Slices` checks
what they demand: slices of a thread nest, those of a task too, arrows touch slices, and everything has a name.
"""

import collections
import itertools
import json
import random

import pytest
from concurrent_swarm.master import Span
from conftest import text_of

from concurrent_swarm import components, tasks

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
    return Span(**{**usual, **given})


def read(*spans, barriers=()):
    return Slices(events_of(tasks.trace_of(spans, barriers).decode()))


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


def test_an_arrow_leads_from_the_lease_to_the_run_to_the_result():
    seen = read(span())
    ((_, arrow),) = seen.arrows.items()
    assert [(phase, seen.names[pid]) for phase, (pid, _) in arrow] == [
        ("s", "master"), ("t", "slave s1"), ("f", "master")]  # fmt: skip


def test_what_a_client_knows_of_its_tasks_is_part_of_their_life():
    made = tasks.Trace()
    events = made.own("c1", "submit", 10, 99.0, 99.5) + made.own("c1", "settle", 10, 100.01, 100.02)
    events += made.span(span(), (99.0, 99.5), (100.01, 100.02))
    seen = Slices(events_of(f"[{','.join(events)}]"))
    ((_, *phases),) = seen.lives.values()
    assert [row[0] for row in phases] == ["submit", *PHASES, "settle"]
    assert (phases[0][1:3], phases[-1][1:3]) == ([99_000_000, 99_500_000], [100_010_000, 100_020_000])
    ((_, arrow),) = seen.arrows.items()
    assert [(phase, seen.names[pid]) for phase, (pid, _) in arrow] == [
        ("s", "client c1"), ("t", "slave s1"), ("f", "client c1")]  # fmt: skip


def test_barriers_and_counts_are_instants_and_counters():
    made = tasks.Trace()
    events = made.barrier(5.0, "7", 3, False) + made.barrier(6.0, "7", 3, True) + made.counts(7.0, 1200, 8)
    seen = Slices(events_of(f"[{','.join(events)}]"))
    assert seen.instants == ["system 7: step 3 begins", "system 7: step 3 is done and waits"]
    assert seen.counts == [("queue", 1200), ("busy", 8)]


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
            **dict(zip(Span._fields[7:12], times, strict=True)),
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
        file.put([("span", span(first=number)), ("counts", 100.0 + number, number, 1)])
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
        file.put([("span", span(first=number))])
    file.close()
    assert 8_000 < (tmp_path / "run.json").stat().st_size <= 10_000
    Slices(json.loads(text_of(tmp_path / "run.json")))
    assert [record.getMessage() for record in caplog.records] == [
        f"the trace {tmp_path}/run.json ends here, with 0.01 MiB: it may have 0.01"]


def test_a_disk_without_room_ends_a_trace_with_a_line_and_nothing_else(caplog):
    file = tasks.TraceFile("/dev/full")
    file.put([("span", span())])
    file.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the trace /dev/full ends here: [Errno 28] No space left on device"]


def test_a_trace_that_cannot_be_written_is_a_mistake_of_usage(tmp_path):
    with pytest.raises(components.UsageError, match="cannot be written"):
        tasks.TraceFile(tmp_path / "no" / "run.json")
