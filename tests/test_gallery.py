"""What the page is told: a Gallery that hears a real Board, fed by the seeded swarm of generator.py."""

import base64
import gzip
import json
import logging
import random
import time
import tracemalloc
import urllib.request
from contextlib import suppress

import pytest
from conftest import wait_until
from generator import Crowd, stage

from concurrent_swarm import components, master, rpc


@pytest.fixture(scope="module")
def large():
    """1,000 slaves with 8,000 workers in the middle of 100,000 tasks; for tests that change nothing but cursors."""
    crowd = Crowd(slaves=1000, workers=8, tasks=100_000)
    return crowd.run(until=crowd.start + 12)


def small(**options):
    """A few workers that have a lane each."""
    return Crowd(**{"slaves": 2, "workers": 2, "tasks": 400, "failing": 0.0, "steps": 1, **options})


def rows_of(told, name):
    """The row of a slave by column."""
    rows = told["slaves"]["rows"]
    return next(dict(zip(told["slaves"]["columns"], row, strict=True)) for row in rows if row[0] == name)


def kinds(crowd):
    """What people should hear of, after one more second."""
    crowd.run(until=crowd.now + 1)
    return {kind: text for _, kind, text, _ in crowd.poll(cursor={})["attention"]}


def bare(now=100.0, history=1000):
    """A gallery of a board on which nothing happens."""
    return master.Gallery(master.Board(), now, history)


def span(**facts):
    """A span of one task of one second."""
    told = {"owner": "1", "first": 0, "tasks": 1, "failed": 0, "attempt": 1, "slave": "s1", "lane": 0, "queued": 100.0,
            "leased": 100.0, "began": 100.0, "ended": 101.0, "heard": 101.0, "opening": 0.0, "packing": 0.0, "step": 1,
            "kind": "Noop", "sent": 10, "received": 20, **facts}  # fmt: skip
    return master.Span(**told)


def asked(cur=None, stream=None, slaves=None, opened=""):
    return master.Asked.of(cur or {}, stream or {}, slaves or {}, opened)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_the_head_adds_up_what_the_board_says():
    crowd = Crowd(slaves=20, workers=4, tasks=3000, failing=0.1)
    crowd.run(until=crowd.start + 6)
    head, board = crowd.poll()["head"], crowd.board
    assert head["slaves"] == 20 and head["workers"] == 80
    assert head["busy"] == sum(min(4, len(slave.leases)) for slave in board.slaves.values())
    assert head["done"] == board.counters["ended"] == sum(work.done for work in crowd.gallery.works.values())
    assert head["failed"] == sum(one.failed for one in crowd.spans) > 0
    assert head["queued"] == sum(user.queued for user in board.users.values())


def test_the_rate_is_the_mean_of_the_last_five_seconds():
    gallery = bare()
    gallery.owner_began("c1", "c1", "app.py", "ada", False, 100.0)
    gallery.submitted("c1", 1000, 0, 100.0)
    for second in range(1, 21):
        gallery.counted("c1", 30 if second > 10 else 5, 0)
        gallery.sample(100.0 + second)
    told = gallery.tell(gallery.copy(asked(), 120.0), asked(), True)
    assert told["head"]["rate"] == told["plain"][0]["rate"] == 30
    assert told["plain"][0] == {"id": "c1", "app": "app.py", "user": "ada", "tasks": 1000, "done": 350, "running": 0,
                                "failed": 0, "rate": 30.0}  # fmt: skip


def test_a_remaining_time_is_told_once_twenty_tasks_or_five_percent_are_done():
    gallery, found = bare(), {}
    gallery.owner_began("1", "c1", "md5", "ada", False, 100.0)
    gallery.submitted("1", 200, 1, 100.0)
    for second in range(1, 40):
        gallery.counted("1", 2, 0)
        gallery.sample(100.0 + second)
        (row,) = gallery.tell(gallery.copy(asked(), 100.0 + second), asked(), True)["systems"]
        found[row["done"]] = row["eta"], row["eta_rough"]
    assert found[8][0] is None and found[10][0] is not None
    assert found[78] == (pytest.approx(61, rel=0.05), False)


def test_the_last_twenty_systems_that_ended_stay_with_how_they_ended():
    gallery = bare()
    failure = {"type": "ValueError", "message": "range end", "where": "md5.py:4", "kind": "system"}
    for number in range(30):
        gallery.owner_began(str(number), "c1", "md5", "ada", False, 100.0)
        gallery.owner_ended(str(number), [None, failure, {"kind": "cancelled"}][number % 3], 100.0 + number)
    gallery.owner_began("30", "c1", "md5", "ada", False, 140.0)
    told = [gallery.tell(gallery.copy(asked(), 150.0), asked(), whole)["systems"] for whole in (True, False)]
    assert [row["id"] for row in told[0]] == ["30", *map(str, range(29, 9, -1))]
    assert [row["state"] for row in told[0][:4]] == ["running", "cancelled", "failed", "done"]
    assert told[0][2]["error"] == "ValueError: range end (md5.py:4)"
    assert told[1][2]["error"] == "ValueError (md5.py:4)"
    assert told[0][2]["elapsed"] == 28.0


def test_the_speedup_of_a_system_is_the_time_of_its_tasks_over_its_own():
    crowd = small(tasks=200).run()
    rows = {row["id"]: row for row in crowd.poll()["systems"]}
    for name, row in rows.items():
        busy = sum(one.ended - one.began for one in crowd.spans if one.owner == name)
        assert row["state"] == "done" and row["speedup"] == pytest.approx(busy / row["elapsed"], rel=0.02, abs=0.02)


def test_each_step_tells_of_its_tasks_and_of_the_wait_at_its_end():
    crowd = Crowd(slaves=2, workers=4, tasks=1000, steps=3, failing=0.1)
    crowd.run(until=crowd.start + 60)
    name = next(iter(crowd.gallery.works))
    told = crowd.poll(opened=name)["steps"]
    assert told["system"] == name and crowd.poll(opened="nobody")["steps"] is None
    for step, tasks, done, failed, seconds, longest, waits, messages, sent in told["rows"]:
        mine = [one for one in crowd.spans if one.owner == name and one.step == step]
        assert done + failed == sum(one.tasks for one in mine) <= tasks
        assert failed == sum(one.failed for one in mine)
        assert longest == pytest.approx(max((one.ended - one.began) / one.tasks for one in mine), abs=1e-4)
        assert messages == 2 * len(mine) and sent == 1200 * len(mine)
        assert 0 <= waits <= seconds
        assert waits == pytest.approx(max(one.ended for one in mine) - max(one.began for one in mine), abs=1e-3)


def test_samples_come_once_each_second_and_then_each_minute():
    gallery = bare()
    cursor, seen = {}, []
    for second in range(1, 2000):
        gallery.counted("c1", second % 7, 0)
        gallery.sample(100.0 + second)
        if second > 1500 and second % 3 == 0:
            told = gallery.tell(gallery.copy(asked(cursor), 100.0 + second), asked(cursor), True)
            cursor = told["cur"]
            seen += told["ts"]
    times = [row[0] for row in seen]
    assert times == sorted(set(times))
    assert times[-1] == 100.0 + 1998 and times[-900:] == [100.0 + second for second in range(1099, 1999)]
    older = [one for one in times if one < 703]
    assert older == [100.0 + 60 * minute for minute in range(1, 11)]
    assert all(row[1] == pytest.approx(3, abs=0.2) for row in seen if row[0] in older)


# -- slaves --------------------------------------------------------------------------------------------------------


def test_a_slave_tells_how_it_is_and_its_row_says_so():
    crowd = small()
    crowd.gallery.vitals("s2", 0.25, 5_000_000, 0.0007, {})
    row = rows_of(crowd.poll(), "s2")
    assert row["cpu"] == 0.25 and row["memory"] == 5_000_000 and row["round_trip"] == 0.0007
    assert row["host"] == "node0002" and row["state"] == "up" and row["workers"] == 2
    crowd.board.slave_draining("s2", crowd.now)
    assert rows_of(crowd.poll(), "s2")["state"] == "draining"


def test_slaves_come_by_the_page_sorted_and_filtered():
    large = Crowd(slaves=1000, workers=1, tasks=3000)
    large.run(until=large.start + 2)
    told = large.poll(slaves={"from": 10, "count": 3})["slaves"]
    assert told["total"] == 1000 and [row[0] for row in told["rows"]] == ["s11", "s12", "s13"]
    column = told["columns"].index("done")
    most = large.poll(slaves={"sort": "-done", "count": 1000})["slaves"]["rows"]
    assert [row[column] for row in most] == sorted((row[column] for row in most), reverse=True)
    some = large.poll(slaves={"filter": "NODE0999"})["slaves"]
    assert some["total"] == 1 and some["rows"][0][0] == "s999"


def test_a_slave_that_is_lost_is_shown_for_ten_minutes_and_one_that_left_is_not():
    crowd = small()
    crowd.run(until=crowd.start + 5)
    crowd.gallery.slave_gone("s2", "", 0, crowd.now)
    crowd.board.slave_lost("s2", crowd.now)
    crowd.lose("s1")
    told = crowd.poll()["slaves"]
    assert [row[:3] for row in told["rows"]] == [["s1", "node0001", "lost"]]
    crowd.run(until=crowd.now + 599)
    assert crowd.poll()["slaves"]["total"] == 1
    crowd.run(until=crowd.now + 3)
    assert crowd.poll()["slaves"]["total"] == 0


# -- spans ---------------------------------------------------------------------------------------------------------


def test_every_span_is_told_once_to_a_page_that_brings_its_cursors():
    crowd, found = small(tasks=600, workers=1), []
    while crowd.works:
        crowd.run(until=crowd.now + 0.5)
        told = crowd.poll(stream={"window": 60})["stream"]
        assert told["mode"] == "spans" and told["fresh"] == (not found)
        found += [(row[0], tuple(told["lanes"][row[1]]), *row[2:]) for row in told["rows"]]
    assert [row[0] for row in found] == list(range(len(crowd.spans)))
    for row, one in zip(found, crowd.spans, strict=True):
        assert row[1] == (one.slave, one.lane) and row[2] == round(one.began, 4)
        assert row[3] == pytest.approx(one.ended - one.began, rel=1e-3, abs=1e-5)
        assert row[4:] == (one.tasks, one.failed, one.step, one.owner, one.first, one.attempt, one.kind)


def test_other_lanes_or_another_window_begin_the_stream_anew():
    crowd = small().run(until=1003.0)
    assert crowd.poll()["stream"]["fresh"] and not crowd.poll()["stream"]["fresh"]
    for stream in ({"window": 60}, {"lanes": [1, 2]}, {"system": "2"}, {"filter": "s2"}):
        told = crowd.poll(stream=stream)["stream"]
        assert told["fresh"] and (told["rows"] or stream.get("system"))
    assert {tuple(lane) for lane in told["lanes"]} == {("s2", 0), ("s2", 1)}


def test_a_system_s_spans_alone_are_told_if_a_page_asks_for_one():
    crowd = small().run(until=1003.0)
    told = crowd.poll(stream={"system": "1"})["stream"]
    assert {row[7] for row in told["rows"]} == {"1"}
    assert {row[7] for row in crowd.poll(stream={"system": ""})["stream"]["rows"]} > {"1"}


def test_what_runs_now_is_told_with_its_lane_and_since_when():
    crowd = small().run(until=1004.0)
    told = crowd.poll()["stream"]
    assert len(told["running"]) == 4 and {row[0] for row in told["running"]} == {0, 1, 2, 3}
    runs = {lease for slave in crowd.running.values() for lease in slave}
    since = sorted(round(lease.since, 3) for lease in crowd.board.leases.values() if lease.id in runs)
    assert sorted(row[1] for row in told["running"]) == since


def test_the_lane_of_a_lease_is_the_one_that_its_slave_has_told():
    crowd = small().run(until=1004.0)
    leases = list(crowd.board.slaves["s1"].leases)
    crowd.gallery.vitals("s1", None, None, None, {leases[0]: 1, leases[1]: 0})
    told = crowd.poll()["stream"]["running"]
    first = crowd.board.leases[leases[0]]
    assert [1, round(first.since, 3), first.batch.owner.id, first.batch.first + first.lo, 1] in told


def test_barriers_are_told_of_those_systems_that_are_shown():
    crowd = small(steps=3, tasks=300, apps=[("md5", 0.5, 0.01), ("dna", 0.5, 0.1)]).run(until=1015.0)
    told = crowd.poll(stream={"window": 60})["stream"]["barriers"]
    assert {step for _, _, step in told} >= {1, 2, 3} and [1000.0, "1", 1] in told
    assert crowd.poll(stream={"window": 60})["stream"]["barriers"] == []  # they were told
    assert {system for _, system, _ in crowd.poll(stream={"window": 60, "system": "1"})["stream"]["barriers"]} == {"1"}


def test_without_history_spans_are_not_kept_and_density_is():
    crowd = small(history=0).run(until=1006.0)
    told = crowd.poll(stream={"window": 5})["stream"]
    assert told["mode"] == "density" and told["column"] == 1.0 and told["kept"] == 0 and told["columns"] == 5
    assert max(base64.b64decode(told["data"])) > 200


def test_names_that_no_span_has_any_more_are_let_go():
    gallery = bare(history=50)
    for number in range(20_000):
        gallery.hear([span(owner=f"c{number}")])
        if number % 1000 == 0:
            gallery.sample(101.0 + number)
    assert len(gallery.texts) < 10_000 and len(gallery.texts.texts) < 10_000
    gallery.slave_joined("s1", "here", "", "off")
    found = {gallery.texts.texts[row[9]] for row in gallery.spans.form.iter_unpack(gallery.spans.since(0)[1])}
    assert found == {f"c{number}" for number in range(19_950, 20_000)}


# -- density -------------------------------------------------------------------------------------------------------


def density(told, lanes):
    """lane -> shares of its columns."""
    data = base64.b64decode(told["data"])
    assert len(data) == told["columns"] * len(told["lanes"])
    return {tuple(lane): data[place :: len(told["lanes"])] for place, lane in enumerate(told["lanes"])}


def true_share(crowd, lane, workers, began, ended):
    """Of 254, from all spans of a slave."""
    busy = sum(max(0.0, min(ended, one.ended) - max(began, one.began)) for one in crowd.spans
               if one.slave == lane[0] and lane[1] in (-1, one.lane))  # fmt: skip
    return 254 * busy / (ended - began) / workers


@pytest.mark.slow
@pytest.mark.parametrize("seed, window", [(1, 10), (2, 30), (3, 300)])
def test_the_density_of_a_lane_is_the_share_of_the_time_in_which_it_was_busy(seed, window):
    crowd = Crowd(slaves=12, workers=8, tasks=8000, seed=seed, steps=2)
    crowd.run(until=crowd.start + 25)
    told = crowd.poll(stream={"window": window})["stream"]
    assert told["mode"] == "density" and told["lanes"][0] == ["s1", -1]
    crowd.run()  # spans of what ran then
    for lane, shares in density(told, told["lanes"]).items():
        for number, share in enumerate(shares):
            began = told["from"] + number * told["column"]
            wanted = true_share(crowd, lane, 8, began, began + told["column"])
            assert share == pytest.approx(wanted, abs=3.0), (lane, number)


def test_columns_are_told_once_and_go_on_where_the_last_answer_ended():
    crowd = Crowd(slaves=12, workers=8, tasks=20_000, seed=4, steps=2)
    crowd.run(until=crowd.start + 5)
    whole, at = {}, None
    for _ in range(8):
        told = crowd.poll(stream={"window": 10})["stream"]
        assert told["fresh"] == (at is None)
        assert at is None or told["from"] == pytest.approx(at, abs=2e-3)
        at = told["from"] + told["columns"] * told["column"]
        for lane, shares in density(told, told["lanes"]).items():
            whole[lane] = whole.get(lane, b"") + shares
        crowd.run(until=crowd.now + 1)
    again = crowd.poll(cursor={}, stream={"window": 10})["stream"]
    assert again["fresh"]
    for lane, shares in density(again, again["lanes"]).items():
        count = again["columns"] - round(1 / again["column"])
        assert whole[lane][-count:] == shares[:count]


@pytest.mark.slow
def test_many_spans_of_few_workers_are_told_as_density_of_workers():
    crowd = Crowd(slaves=2, workers=4, tasks=30_000, steps=1, apps=[("md5", 1.0, 0.01)])
    crowd.run(until=crowd.start + 6)
    told = crowd.poll(stream={"window": 10})["stream"]
    assert told["mode"] == "density"
    assert told["lanes"] == [[f"s{slave}", lane] for slave in (1, 2) for lane in range(4)]
    crowd.run(until=crowd.now + 60)
    for lane, shares in density(told, told["lanes"]).items():
        began, ended = told["from"], told["from"] + told["columns"] * told["column"]
        assert sum(shares) / len(shares) == pytest.approx(true_share(crowd, lane, 1, began, ended), abs=3.0)


def test_above_two_hundred_slaves_those_that_are_lost_fail_or_are_slow_come_first():
    crowd = Crowd(slaves=300, workers=1, tasks=4000, failing=0.0)
    crowd.run(until=crowd.start + 5)
    crowd.lose("s290")
    crowd.gallery.hear([span(slave="s280", owner="2", failed=1, began=1004.0, ended=1005.0, heard=1005.0)])
    crowd.board.slaves["s270"].pace = 5.0
    crowd.run(until=crowd.now + 11)
    told = crowd.poll(stream={"lanes": [0, 200]})["stream"]
    assert told["total_lanes"] == 200
    assert [lane[0] for lane in told["lanes"][:4]] == ["s290", "s280", "s270", "s1"]
    assert told["lanes"][-1] == ["s197", -1]


def test_a_lane_that_another_slave_had_begins_empty():
    crowd = Crowd(slaves=300, workers=1, tasks=9000, failing=0.0)
    crowd.run(until=crowd.start + 8)
    assert crowd.poll(stream={"lanes": [0, 200]})["stream"]["mode"] == "density"
    crowd.lose("s290")
    crowd.run(until=crowd.now + 10)
    told = crowd.poll(stream={"lanes": [0, 200]})["stream"]
    assert told["fresh"] and told["lanes"][0] == ["s290", -1]
    assert not any(density(told, told["lanes"])["s290", -1])


def test_a_slave_that_says_impossible_things_spoils_nothing():
    gallery = bare()
    gallery.slave_joined("s1", "here", "", "off")
    gallery.board.slave_joined("s1", {"cpus": 1}, [], 1, 100.0)
    gallery.sample(101.0)
    for wrong in ({"began": 120.0, "ended": 101.0}, {"lane": 1 << 40}, {"attempt": 10**6}, {"opening": 1e9}, {}):
        for _ in range(400):
            gallery.hear([span(**wrong)])
    gallery.sample(102.0)
    told = gallery.tell(gallery.copy(asked(stream={"window": 5}), 102.5), asked(stream={"window": 5}), True)
    assert json.dumps(told, allow_nan=False) and told["stream"]["rows"]


# -- what a person should hear of ----------------------------------------------------------------------------------


def test_a_swarm_in_good_health_asks_for_nobody_s_attention():
    crowd = small()
    assert not [kind for kind in (kinds(crowd) for _ in range(20)) if kind]


def test_no_slave_is_worth_a_word_and_an_error_once_tasks_wait():
    crowd = Crowd(slaves=0, tasks=0, steps=1)
    crowd.gallery.sample(crowd.now)
    assert crowd.poll()["attention"] == [["warn", "no slave", "no slave is connected", "#slaves"]]
    crowd._begin("9", "late", 1.0, 50, 1)
    crowd.gallery.sample(crowd.now + 1)
    assert crowd.poll()["attention"] == [["error", "no slave", "no slave is connected: 50 tasks wait", "#slaves"]]


def test_a_queue_that_grows_while_nothing_ends_and_nobody_is_free_is_told_after_half_a_minute():
    crowd = small(tasks=0)
    crowd._begin("8", "slow", 5000.0, 50, 1)
    crowd.run(until=crowd.now + 25)
    assert "stuck" not in kinds(crowd)
    crowd._begin("9", "late", 5000.0, 50, 1)
    crowd.run(until=crowd.now + 10)
    assert kinds(crowd)["stuck"].endswith("no worker is free, and 50 tasks more wait, 92 in all")


def test_a_queue_that_does_not_grow_is_not_stuck():
    crowd = small(tasks=0)
    crowd._begin("8", "slow", 5000.0, 50, 1)
    crowd.run(until=crowd.now + 60)
    assert "stuck" not in kinds(crowd)


def test_tasks_that_no_slave_can_take_are_told():
    crowd = small(tasks=0)
    crowd.gallery.owner_began("c9", "c9", "app.py", "ada", False, crowd.now)
    crowd.board.owner_joined("c9", "client", crowd.now)
    crowd.board.submit("c9", 1, 7, crowd.now, options={"resources": {"gpu": 1}})
    assert kinds(crowd)["unplaceable"] == "7 tasks wait in vain: no slave has 1 gpu, the most is 0"


def test_a_lost_slave_is_told_with_what_went_back_to_the_queue():
    crowd = small().run(until=1004.0)
    held = crowd.board.slaves["s1"].open_tasks
    crowd.lose("s1")
    assert kinds(crowd)["slave lost"] == f"slave s1 on node0001 was lost 1 s ago: {held} tasks went back to the queue"


def test_a_slave_with_another_python_is_told():
    crowd = small()
    crowd.gallery.slave_joined("s2", "node0002", "3.9", "standard")
    assert kinds(crowd)["version"] == f"slave s2 runs Python 3.9, the master {rpc.minor_version()}"


def test_failures_of_a_running_system_are_told_with_type_and_place_until_it_ends():
    crowd = small(failing=0.2).run(until=1003.0)
    told = kinds(crowd)["failures"]
    failed = crowd.gallery.works["1"].failed if "1" in crowd.gallery.works else 0
    assert f"{failed} task" in told or "system 2" in told
    assert any(place in told for place in ("samples/md5.py:41", "samples/pca.py:17", "tests/apps/dna.py:88"))
    crowd.run()
    assert "failures" not in kinds(crowd)


def test_a_task_that_holds_up_a_step_is_told_with_its_lane_and_the_median():
    crowd = small(tasks=0)
    crowd._begin("9", "md5", 0.5, 40, 2)
    crowd.run(until=crowd.now + 0.1)
    late = next(iter(crowd.board.leases.values()))
    crowd.events = [one for one in crowd.events if late not in one[3]]  # this one does not end
    crowd.run(until=crowd.now + 30)
    lane = crowd.running[late.slave.id][late.id]
    told = kinds(crowd)["straggler"]
    assert told.startswith(f"step 1 of system 9 md5 waits for 1 task on {late.slave.id}/w{lane}, 31")
    assert 0.3 < float(told.rpartition("median ")[2].removesuffix(" s")) < 0.7


def test_at_most_three_things_are_told_the_worst_first():
    crowd = small(failing=0.5, tasks=4000).run(until=1006.0)
    crowd.gallery.slave_joined("s2", "node0002", "3.9", "standard")
    crowd.gallery.sample(crowd.now + 1, [["warn", "network", "no certificate", "#about"]])
    told = crowd.poll()["attention"]
    assert len(told) == 3 and [row[0] for row in told] == sorted(row[0] for row in told)
    assert told[0][1] == "failures"


# -- failures ------------------------------------------------------------------------------------------------------


def why(**facts):
    return {"type": "ValueError", "message": "range end 17 before start 3.5", "where": "md5.py:41", "kind": "error",
            "traceback": "Traceback\n", "attempt": 2, **facts}  # fmt: skip


def test_failures_that_differ_by_numbers_alone_are_one_group():
    groups = rpc.Failures()
    for number in range(50):
        groups.add(why(message=f"range end {number} before {number}.5 at 0x{number:x}"), f"1.{number}", float(number),
                   "1", f"s{number % 3}")  # fmt: skip
    groups.add(why(where="md5.py:42"), "1.99", 60.0, "1", "s1")
    stamp, told, count = groups.since(0)
    assert count == 2 and [group["count"] for group in told] == [50, 1]
    told = rpc.Failures.told(told[0], True)
    assert told["tasks"] == [f"1.{number}" for number in range(5)] and told["slaves"] == ["s0", "s1", "s2"]
    assert told["first"] == 0 and told["last"] == 49 and told["attempts"] == 2
    assert told["message"] == "range end 0 before 0.5 at 0x0" and told["traceback"] == "Traceback\n"
    assert groups.since(stamp) == (stamp, [], 2)


def test_a_change_of_a_group_that_was_told_comes_without_its_traceback():
    groups = rpc.Failures()
    groups.add(why(), "1.1", 1.0)
    stamp, _, _ = groups.since(0)
    groups.add(why(), "1.2", 2.0)
    (group,) = groups.since(stamp)[1]
    assert group["count"] == 2 and group["traceback"] is None
    assert rpc.Failures.told(groups.get(group["id"]), True)["traceback"] == "Traceback\n"


def test_two_hundred_groups_are_kept_those_that_changed_last_and_told_fifty_at_a_time():
    groups, found, stamp = rpc.Failures(), [], 0
    for number in range(300):
        groups.add(why(where=f"md5.py:{number}"), "1.1", 1.0)
    groups.add(why(where="md5.py:150"), "1.1", 1.0)
    while told := groups.since(stamp)[1]:
        assert len(told) <= 50
        stamp = groups.since(stamp)[0]
        found += [group["where"] for group in told]
    assert found == [f"md5.py:{number}" for number in [*range(100, 150), *range(151, 300), 150]]
    with pytest.raises(components.Error):
        groups.get(1)


def test_of_a_traceback_the_last_eight_kilobytes_are_kept():
    groups = rpc.Failures()
    groups.add(why(traceback="x" * 20_000 + "ValueError: the end"), "1.1", 1.0)
    text = rpc.Failures.told(groups.get(1), True)["traceback"]
    assert len(text) == 8192 and text.endswith("ValueError: the end")


def test_a_guest_is_told_of_groups_without_what_tasks_have_said():
    crowd = small(failing=0.5).run(until=1003.0)
    told = crowd.poll(role="guest", cursor={})["errors"]["changed"]
    assert told and {group["message"] for group in told} == {group["traceback"] for group in told} == {None}
    assert all(group["type"] and group["where"] and group["count"] for group in told)
    assert all(group["message"] for group in crowd.poll(cursor={})["errors"]["changed"])


# -- what people do, and odd things ----------------------------------------------------------------------------------


def test_a_system_is_paused_until_it_goes_on_whatever_else_it_says():
    gallery = bare()
    gallery.owner_began("1", "c1", "app", "me", True, 100.0)
    gallery.system_step("1", 1, False, 100.0)
    gallery.system_paused("1", True)
    gallery.system_step("1", 2, True, 101.0)
    assert gallery.works["1"].state == "paused"
    gallery.system_paused("1", False)
    assert gallery.works["1"].state == "waiting"
    gallery.system_step("1", 3, False, 102.0)
    assert gallery.works["1"].state == "running"


def test_of_lost_slaves_the_last_are_kept():
    gallery = bare()
    for number in range(master.MOST_LOST + 50):
        gallery.board.slave_joined(f"s{number}", {"cpus": 1}, [], 1, 100.0)
        gallery.slave_joined(f"s{number}", "host", "3.11", "standard")
        gallery.slave_gone(f"s{number}", "silence", 0, 100.0)
        gallery.board.slave_lost(f"s{number}", 100.0, "silence")
    gallery.sample(101.0)
    assert len(gallery.slaves) == master.MOST_LOST and f"s{master.MOST_LOST + 49}" in gallery.slaves


def test_who_has_no_token_reads_no_message_of_a_task_that_has_ended():
    about = {"state": "ended", "failure": {"type": "ValueError", "message": "patient 4711"}}
    assert master.told_of(about, False)["failure"] == {"type": "ValueError", "message": None}
    assert master.told_of(about, True) is about and master.told_of({"state": "running"}, False) == {"state": "running"}


def test_a_line_of_the_log_that_cannot_be_shown_harms_nobody(caplog):
    class Odd:
        def __str__(self):
            raise RuntimeError("not today")

    lines, log = components.LastLines(), logging.getLogger("odd lines")
    log.addHandler(lines)
    try:
        with suppress(KeyError, RuntimeError):  # of the handlers of the test runner
            log.warning("%(missing)s", {"there": 1})
        with suppress(RuntimeError):
            log.warning("%s", Odd())
        log.log(35, "between two levels")
    finally:
        log.removeHandler(lines)
    assert [line[4] for line in lines.since(0, 10, "warning")] == ["between two levels"]


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_that_is_kept_for_a_page_stays_below_five_megabytes():
    """Everything is full: spans, columns, samples, groups with tracebacks, steps, lines, slaves; and somebody looks."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        gallery = master.Gallery(board := master.Board(), 1000.0)
        lines = components.LastLines()
        without = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            board.slave_joined(f"s{number}", {"cpus": 8}, [], 8, 1000.0)
        slaves = tracemalloc.get_traced_memory()[0] - without
        _fill(gallery, lines)
        for now in (gallery.now, gallery.now + 1.0):
            told = gallery.tell(gallery.copy(asked(stream={"window": 10}), now), asked(stream={"window": 10}), True)
            assert told["stream"]["mode"] == "density" and told["stream"]["columns"] == 600
        del told
        assert 3e6 < tracemalloc.get_traced_memory()[0] - before - slaves < 5e6
    finally:
        tracemalloc.stop()


def _fill(gallery, lines):
    made = random.Random(1)
    for number in range(1000):
        gallery.slave_joined(f"s{number}", f"node{number}", "3.11", "standard")
        gallery.vitals(f"s{number}", made.random(), 10**8, made.random(), {})
    for second in range(1000, 3000):
        for ring in (gallery.seconds, gallery.minutes):
            ring.put(second, *[made.random() for _ in range(6)])
    for number in range(60_000):
        gallery.now = now = 91_000 + number / 4000
        place = {"owner": str(number % 20), "slave": f"s{number % 1000}", "lane": number % 8}
        gallery.hear([span(**place, began=now - 0.5, ended=now, heard=now, failed=1, step=number % 3000)])
        if number % 4000 == 0:
            gallery.sample(now)
    for number in range(250):
        lines_of = (f'  File "samples/md{made.randrange(9)}.py", line {n}, in step\n    deeper(n + {n})\n'
                    for n in range(200))  # fmt: skip
        gallery.task_failed("1", f"1.{number}", why(where=f"x.py:{number}", traceback="".join(lines_of)), 1, "s1", now)
    for number in range(2000):
        lines.handle(components.logging.LogRecord("a.b", 20, "", 1, "x" * 480 + str(number), None, None))


def best(function, times=7):
    """The least ms of CPU of this thread that a call took, and what the last returned."""
    found = []
    for _ in range(times):
        began = time.thread_time()
        value = function()
        found.append(1000 * (time.thread_time() - began))
    return min(found), value


@pytest.mark.slow
def test_an_answer_about_a_thousand_slaves_and_a_hundred_thousand_tasks_is_within_the_budget(large):
    """2 ms of CPU, of which the loop's thread has less than one, and 40 kB; after the first answer, once a second."""
    large.poll(cursor={}, stream={"lanes": [0, 200]})
    spent, copied, size, fresh = [], [], [], 0
    for _ in range(10):  # the least of ten is what it takes where nobody else is
        large.run(until=large.now + 1)
        wanted = asked(large.cursor, {"lanes": [0, 200]})
        began = time.thread_time()
        copy = large.gallery.copy(wanted, large.now)
        copied.append(1000 * (time.thread_time() - began))
        told = large.gallery.tell(copy, wanted, True)
        text = json.dumps(told, allow_nan=False).encode()
        packed = gzip.compress(text, rpc.PACKING)
        spent.append(1000 * (time.thread_time() - began))
        size.append(len(packed))
        large.cursor = told["cur"]
        fresh += told["stream"]["fresh"]
    assert fresh <= 1  # once in ten seconds other slaves may have become the most interesting
    assert min(copied) < 1 and min(spent) < 2 and max(size) < 40_000, (sorted(copied), sorted(spent))


@pytest.mark.slow
def test_a_first_answer_about_so_many_is_below_forty_kilobytes_too(large):
    for window in (10, 60, 300):
        told = large.poll(cursor={}, stream={"window": window})
        assert len(gzip.compress(json.dumps(told).encode(), rpc.PACKING)) < 40_000


@pytest.mark.slow
def test_to_hear_of_a_span_costs_a_few_microseconds(large):
    spans = large.spans[-5000:]
    gallery = master.Gallery(large.board, large.start)
    for name in large.gallery.slaves:
        gallery.slave_joined(name, "", "", "")
    gallery.sample(large.now)
    milliseconds, _ = best(lambda: [gallery.hear(spans[at : at + 250]) for at in range(0, 5000, 250)])
    assert milliseconds / 5 < 10  # µs


def test_whatever_a_page_sends_an_answer_comes():
    made, crowd = random.Random(5), small(failing=0.2).run(until=1003.0)
    things = [None, True, -1, 0, 7, 1e308, -1e308, "x", "", [], [1], [1, 2, 3], ["a"], {}, {"a": 1}, 2**70, [{}, 9]]
    keys = ["window", "lanes", "system", "filter", "columns", "from", "count", "sort", "span", "ts", "errors", "stream",
            "column"]  # fmt: skip
    for _ in range(2000):
        parts = [{key: made.choice(things) for key in made.sample(keys, 5)} for _ in range(3)]
        wanted = master.Asked.of(*parts, "1")
        json.dumps(crowd.gallery.tell(crowd.gallery.copy(wanted, crowd.now), wanted, True), allow_nan=False)


# -- by HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    """The address of a swarm of twenty slaves, in real time."""
    crowd = Crowd(slaves=20, workers=8, tasks=100_000, start=time.monotonic() - 5, failing=0.05)
    crowd.run(until=crowd.start + 5)
    with stage(crowd) as address:
        yield address


def ask(address, method="ui.poll", token="letmein", **params):
    proxy = rpc.Proxy(address, token)
    for name in method.split("."):
        proxy = getattr(proxy, name)
    return proxy(**params)


def test_a_page_goes_on_from_its_cursors_and_begins_anew_with_another_process(shown):
    first = ask(shown)
    assert first["stream"]["fresh"] and first["ts"] and first["role"] == "admin"
    later = wait_until(lambda: (told := ask(shown, boot=first["boot"], cur=first["cur"]))["ts"] and told, "a sample")
    assert not later["stream"]["fresh"] and later["ts"][0][0] > first["ts"][-1][0]
    other = ask(shown, boot="00000000", cur=first["cur"])
    assert other["stream"]["fresh"] and other["ts"][0] == first["ts"][0]


def test_the_log_is_for_administrators_and_each_line_comes_once(shown):
    components.logging.getLogger("a.room").warning("something %s", "happened" * 100)
    told = ask(shown)
    line = next(line for line in told["log"] if line[3] == "a.room")
    assert line[2] == "warning" and len(line[4]) == 500 and line[4].startswith("something happened")
    assert not [line for line in ask(shown, boot=told["boot"], cur=told["cur"])["log"] if line[3] == "a.room"]
    guest = ask(shown, token=None)
    assert guest["log"] is None and guest["role"] == "guest"
    assert ask(shown, "log.tail", n=1)[0] == ask(shown, "log.tail")[-1]
    with pytest.raises(rpc.RpcError, match="needs the role admin"):
        ask(shown, "log.tail", token=None)
    with pytest.raises(rpc.RpcError, match="is no level"):
        ask(shown, "log.tail", level="loud")


def test_a_group_of_failures_is_told_in_full_to_administrators_alone(shown):
    group = wait_until(lambda: ask(shown)["errors"]["changed"], "failures")[0]
    whole = ask(shown, "errors.get", group=group["id"])
    assert whole["traceback"] == group["traceback"].replace("\r", "") and "work()" in whole["traceback"]
    assert ask(shown, "errors.get", token=None, group=group["id"])["traceback"] is None


def fetched(address, accepted, method="ui.poll", body=None, **headers):
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode() if body is None else body
    headers = {"Content-Type": "application/json", "Accept-Encoding": accepted, **headers}
    with urllib.request.urlopen(urllib.request.Request(f"http://{address}/api/1", message, headers)) as answer:
        return answer.headers.get("Content-Encoding"), answer.read()


@pytest.mark.parametrize("accepted, packed", [
    ("gzip", True), ("deflate, gzip;q=0.5", True), ("GZIP, br", True), ("gzip;q=0", False), ("gzip; q=0.0", False),
    ("identity", False), ("br", False), ("", False),
])  # fmt: skip
def test_large_answers_are_packed_for_those_who_take_it(shown, accepted, packed):
    kind, body = fetched(shown, accepted)
    assert (kind == "gzip") == packed
    assert "result" in json.loads(gzip.decompress(body) if packed else body)


def test_small_answers_are_not_packed(shown):
    kind, body = fetched(shown, "gzip", "ping")
    assert kind is None and json.loads(body)["result"] == "pong"


def test_nothing_packed_is_taken_in(shown):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetched(shown, "gzip", body=gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})
    assert refused.value.code == 415


# -- with real nodes -----------------------------------------------------------------------------------------------


def test_every_node_of_a_swarm_tells_what_its_page_shows(swarm):
    here = swarm(slaves=1, workers=2)
    assert here.run_client("plain.py", "--app", "Many", "--set", "plain.count=50").code == 0
    told = wait_until(lambda: (told := ask(here.address, token=None))["slaves"]["rows"][0][10] and told,
                      "the slave has told its round trip")  # fmt: skip
    row = rows_of(told, here.name_of(here.slaves[0]))
    assert row["state"] == "up" and row["done"] == 50 and row["memory"] > 10**7 and 0 < row["round_trip"] < 5
    assert 0 <= row["cpu"] <= 1 and row["seen"] < 10 and row["sandbox"].startswith("standard")
    assert sum(span[4] for span in told["stream"]["rows"]) == 50 and told["stream"]["rows"][0][10]
    assert told["head"]["done"] == 50 and told["node"] == "master" and told["sandbox"]
    first = told["stream"]["rows"][0]
    about = ask(here.address, "ui.task", token=None, task=f"{first[7]}.{first[8]}")
    assert about["span"]["slave"] == told["stream"]["lanes"][first[1]][0]
    assert about["span"]["first"] == f"{first[7]}.{first[8]}"
    of_slave = ask(here.slaves[0].started["address"], token=None)
    assert of_slave["node"] == "slave" and of_slave["head"]["done"] == 50 and of_slave["log"] is None
    assert {len(worker) for worker in of_slave["workers"]} == {8} and of_slave["workers"][0][4] == "idle"
    assert here.master.ends() in (0, 143)




LOOKS = """
import threading, time
from concurrent_swarm import rpc
from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.tasks import Task

class Nap(Task):
    def __call__(self):
        time.sleep(0.05)
        return 1 // self.number

class Looks(ApplicationNode):
    told = None
    def start_processing(self):
        self.push_tasks(Nap(f"nap {n}", number=n) for n in range(40))
    def task_finished(self, task, result, error):
        if self.told is None and error:
            self.told = threading.Thread(target=self.look)
            self.told.start()
        if not self.pending:
            self.told.join()
            self.shutdown_main_loop()
    def look(self):
        self.result = rpc.Proxy(self.swarm.server.address).ui.poll()
"""


def test_a_client_s_own_page_shows_its_tasks_and_what_failed(swarm, tmp_path):
    here = swarm(slaves=1, workers=1)
    (tmp_path / "looks.py").write_text(LOOKS)
    run = here.run_client(tmp_path / "looks.py")
    told = run.about["result"]
    assert told["node"] == "client" and told["name"] == "c1" and told["head"]["tasks"] == 40
    assert told["head"]["failed"] == 1 and told["head"]["slaves"] == 1
    (group,) = told["errors"]["changed"]
    assert group["type"] == "ZeroDivisionError" and group["tasks"] == ["c1.0"] and group["message"] is None


@pytest.mark.parametrize("wrong", [
    ("x", None, None, [], 1.0), (None, -1, None, [], 1.0), (0.5, 1, True, [], 1.0), (0.5, 1, 0.1, {}, 1.0),
    (0.5, 1, 0.1, [[1]], 1.0), (0.5, 1, 0.1, [[1, "x"]], 1.0), (0.5, 1, 0.1, [[1, -2]], 1.0), (0.5, 1, 0.1, [], []),
    (float("inf"), 1, 0.1, [], 1.0), (0.5, 1, 0.1, [[1, 1]] * 20_000, 1.0),
])  # fmt: skip
def test_a_slave_cannot_tell_nonsense_of_itself(wrong):
    with pytest.raises(components.UsageError):
        master.check_vitals(*wrong)
    assert master.check_vitals(0.5, 10**9, None, [[0, 17]], 3.5) == {17: 0}
