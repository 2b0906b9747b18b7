"""Tasks without processes: packing, running a lease, failures on their way, and the owner's half of the protocol."""

import copy
import errno
import json
import pickle
import sys
import threading

import pytest
from concurrent_swarm.tasks import ITaskSystem, Owner, SystemRun, Task
from hypothesis import given, settings
from hypothesis import strategies as st

from concurrent_swarm import components, rpc, tasks

# -- tasks of many kinds -------------------------------------------------------------------------------------


class Square(Task):
    def __call__(self):
        return self.number**2


class Other(Task):
    def __call__(self):
        return -self.number


class Slotted(Task):
    __slots__ = ("hidden",)

    def __init__(self, name, hidden):
        Task.__init__(self, name)
        self.hidden = hidden

    def __call__(self):
        return self.hidden


class Reduced(Task):
    def __reduce__(self):
        return type(self), (self.name,), {"number": self.number * 10, "name": self.name}

    def __call__(self):
        return self.number


class Stated(Task):
    def __getstate__(self):
        return {"kept": self.kept}

    def __setstate__(self, state):
        self.__dict__.update(state, name="restored")

    def __call__(self):
        return self.kept, self.name


class Outer:
    class Inner(Square):
        pass


class Failing(Task):
    def __call__(self):
        raise ValueError(f"number {self.number}")


class Appends(Task):
    """Changes its argument, returns it, and changes it once more in clean_up."""

    def __call__(self):
        self.items.append(self.name)
        return self.items

    def clean_up(self):
        self.items.append("cleaned")


class BadCleanUp(Square):
    def clean_up(self):
        raise OSError("no space")


class Opaque:
    """Cannot be opened: as if its class had changed on the way."""

    def __reduce__(self):
        return _refuse_to_open, ()


def _refuse_to_open():
    raise RuntimeError("not here")


class Returns(Task):
    def __call__(self):
        return self.value


def pack(made, packer=None):
    return (packer or tasks.Packer({})).pack(list(made))


def envelope(batch, lo=0, hi=None, first=0):
    """The lease of a range, with the groups that a master would send."""
    hi = batch.count if hi is None else hi
    groups = batch.parts[2 + lo // batch.group : 2 + -(-hi // batch.group)]
    return tasks.Envelope(1, "c1", 0, lo, hi, batch.group, 1, first, [*batch.parts[:2], *groups])


def opened(batch, lo=0, hi=None):
    """The tasks of a range, as a worker has them."""
    lease = envelope(batch, lo, hi)
    records = tasks.Records(lease)
    return [records.task(i) for i in range(lease.lo, lease.hi)]


# -- packing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 127, 128, 129, 1000, 2000])
def test_tasks_of_one_class_come_out_as_they_went_in(count):
    found = opened(pack(Square(f"t{n}", number=n) for n in range(count)))
    assert [(task.name, task(), task.task_id) for task in found] == [(f"t{n}", n * n, f"c1.{n}") for n in range(count)]


@given(st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_of_a_batch_opens_by_itself(count, data):
    batch = pack((Square if n % 3 else Other)(f"t{n}", number=n) for n in range(count))
    lo = data.draw(st.integers(0, count - 1))
    hi = data.draw(st.integers(lo + 1, count))
    assert [task() for task in opened(batch, lo, hi)] == [n * n if n % 3 else -n for n in range(lo, hi)]


def test_one_class_needs_no_index_and_more_need_one():
    assert pack([Square("a", number=1), Square("b", number=2)]).parts[1] == b""
    assert pack([Square("a", number=1), Other("b", number=2)]).parts[1] != b""


def test_more_classes_than_a_byte_can_count_fit_in_a_batch():
    made = [type(f"Kind{n}", (Square,), {"__module__": __name__}) for n in range(300)]
    globals().update({cls.__name__: cls for cls in made})
    assert [type(task) for task in opened(pack(cls("t", number=1) for cls in made))] == made


def test_plain_states_share_a_pickle_and_mutable_ones_do_not():
    assert pack(Square(f"t{n}", number=n) for n in range(200)).group == tasks.GROUP
    assert pack(Appends(f"t{n}", items=[]) for n in range(200)).group == 1


def test_groups_of_larger_tasks_are_smaller():
    batch = pack(Returns(f"t{n}", value=b"x" * 1000) for n in range(200))
    assert 1 < batch.group <= tasks.GROUP_BYTES // 1000
    assert len(batch.parts) == 2 + -(-200 // batch.group)


def test_a_large_task_after_small_ones_does_not_travel_with_all_of_them():
    batch = pack(Returns(f"t{n}", value=b"" if n < 10 else b"x" * 100_000) for n in range(64))
    assert max(map(len, batch.parts[2:])) < 1_000_000


def test_a_list_that_tasks_share_is_a_list_of_its_own_in_each():
    shared = []
    found = opened(pack(Appends(f"t{n}", items=shared) for n in range(100)))
    assert [task() for task in found] == [[f"t{n}"] for n in range(100)]
    assert shared == []


def test_one_task_given_many_times_is_a_task_of_its_own_each_time():
    found = opened(pack([Square("again", number=3)] * 100))
    found[0].number = 5
    assert [task() for task in found] == [25] + [9] * 99
    assert [task.task_id for task in found] == [f"c1.{n}" for n in range(100)]


@pytest.mark.parametrize(
    ("task", "result"),
    [
        (Slotted("s", "value"), "value"),
        (Reduced("r", number=4), 40),
        (Stated("g", kept=7, dropped=threading.Lock()), (7, "restored")),
        (Outer.Inner("i", number=3), 9),
    ],
)
def test_a_class_that_pickles_in_its_own_way_does(task, result):
    others = [Square(f"t{n}", number=n) for n in range(3)]
    assert opened(pack([task]))[0]() == result
    assert [made() for made in opened(pack([*others, task, *others]))] == [0, 1, 4, result, 0, 1, 4]


def test_a_task_that_cannot_be_pickled_is_named_with_its_attribute_and_index():
    made = [Square(f"t{n}", number=n) for n in range(5)]
    made[3].held = {"deep": [threading.Lock()]}
    with pytest.raises(components.UsageError) as caught:
        pack(made)
    assert caught.value.index == 3
    assert "t3" in str(caught.value) and "held" in str(caught.value) and "lock" in str(caught.value)


def test_a_class_inside_a_function_is_told_to_move():
    class Hidden(Square):
        pass

    with pytest.raises(components.UsageError, match="top of its module"):
        pack([Hidden("h", number=1)])


@pytest.mark.parametrize("thing", [1, "text", None, object(), [Square("a", number=1)]])
def test_what_is_no_task_is_named(thing):
    with pytest.raises(components.Error, match=type(thing).__name__):
        pack([Square("a", number=1), thing])


def test_packing_leaves_the_tasks_as_they_were():
    task = Square("t", number=2)
    before = dict(vars(task))
    pack([task])
    assert vars(task) == before


def test_no_class_of_ours_is_in_a_pickle():
    batch = pack([Square("a", number=1), Stated("g", kept=1), Reduced("r", number=1)])
    assert all(b"concurrent_swarm" not in part for part in batch.parts)


# -- running a lease -----------------------------------------------------------------------------------------


class Reports:
    """What a LeaseRunner reported; `stop_after`: the look after so many says that the rest is not wanted."""

    def __init__(self, looks=()):
        self.rows, self.looks = [], list(looks)

    def __call__(self, lo, hi, seconds, failures, parts, last):
        assert seconds >= 0
        self.rows.append((lo, hi, failures, parts, last))

    def look(self):
        return self.looks.pop(0) if self.looks else False

    @property
    def results(self):
        return [result for row in self.rows for part in row[3] for result in pickle.loads(part)]

    @property
    def failures(self):
        return {int(i): failure for row in self.rows for i, failure in row[2].items()}


def run(made, lo=0, hi=None, looks=()):
    reports = Reports(looks)
    stopped = tasks.LeaseRunner(reports, reports.look).run(envelope(pack(made), lo, hi))
    return stopped, reports


def test_a_lease_is_run_in_order_and_reported_once():
    stopped, reports = run(Square(f"t{n}", number=n) for n in range(200))
    assert stopped == 200 and reports.results == [n * n for n in range(200)]
    assert [(lo, hi, last) for lo, hi, _, _, last in reports.rows] == [(0, 200, True)]
    assert not reports.failures


def test_a_failure_keeps_its_place_among_the_results():
    _, reports = run((Failing if n % 5 == 2 else Square)(f"t{n}", number=n) for n in range(12))
    assert reports.results == [None if n % 5 == 2 else n * n for n in range(12)]
    assert sorted(reports.failures) == [2, 7]
    assert reports.failures[7]["message"] == "number 7" and reports.failures[7]["kind"] == "error"


def test_results_of_all_kinds_keep_their_order():
    _, reports = run(Picks(f"t{n}", number=n) for n in range(len(PICKED)))
    assert reports.results == [None if n == 6 else PICKED[n] for n in range(len(PICKED))]
    assert reports.failures[6]["kind"] == "result" and "lambda" in reports.failures[6]["message"]


PICKED = [1, [2], "three", {"four": 4}, None, (5,), lambda: 6, b"7", 8.0]


class Picks(Task):
    def __call__(self):
        return PICKED[self.number]


def test_a_long_lease_is_reported_in_pieces(monkeypatch):
    monkeypatch.setattr(tasks, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(tasks, "REPORT_EVERY", 0.0)
    stopped, reports = run(Square(f"t{n}", number=n) for n in range(20))
    assert stopped == 20 and reports.results == [n * n for n in range(20)]
    assert len(reports.rows) > 2
    assert [row[0] for row in reports.rows[1:]] == [row[1] for row in reports.rows[:-1]]
    assert [row[4] for row in reports.rows] == [False] * (len(reports.rows) - 1) + [True]


def test_a_lease_that_is_not_wanted_stops_between_two_tasks(monkeypatch):
    monkeypatch.setattr(tasks, "LOOK_EVERY", 0.0)
    stopped, reports = run((Square(f"t{n}", number=n) for n in range(20)), looks=[False, False, True])
    assert stopped == 3
    assert reports.results == [0, 1, 4] and reports.rows[-1][1] == 3 and reports.rows[-1][4] is True


def test_a_range_in_the_middle_has_its_own_ordinals():
    stopped, reports = run((Failing(f"t{n}", number=n) for n in range(100)), 70, 72)
    assert stopped == 72 and sorted(reports.failures) == [70, 71]
    assert reports.failures[70]["message"] == "number 70"


def test_a_mutable_result_is_pickled_before_clean_up_changes_it():
    _, reports = run(Appends(f"t{n}", items=["x"]) for n in range(3))
    assert reports.results == [["x", f"t{n}"] for n in range(3)]


def test_a_clean_up_that_raises_fails_the_task_and_an_error_of_the_task_comes_first():
    _, reports = run([BadCleanUp("a", number=2), BadFailing("b", number=3)])
    assert reports.failures[0]["kind"] == "clean_up" and "no space" in reports.failures[0]["message"]
    assert reports.failures[1]["kind"] == "error" and "number 3" in reports.failures[1]["message"]


class BadFailing(Failing):
    def clean_up(self):
        raise OSError("no space")


def test_a_task_that_cannot_be_opened_fails_alone():
    _, reports = run([Square("a", number=2), Returns("b", value=Opaque()), Square("c", number=3)])
    assert reports.results == [4, None, 9]
    assert reports.failures[1]["kind"] == "load" and "not here" in reports.failures[1]["message"]


def test_a_task_that_cannot_be_opened_for_want_of_room_on_this_machine_says_so():
    full = Returns("b", value=Raising(OSError(errno.ENOSPC, "No space left on device")))
    _, reports = run([full, Returns("c", value=Raising(FileNotFoundError(2, "no such file")))])
    assert [reports.failures[i]["kind"] for i in range(2)] == ["setup", "load"]


class Raising:
    """Raises when it is opened."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return raise_it, (self.error,)


def raise_it(error):
    raise error


def test_tasks_of_a_class_that_a_worker_does_not_have_fail_and_the_others_run():
    batch = pack([Square("a", number=2), Other("b", number=3)])
    head = json.loads(batch.parts[0])
    head["classes"][1][1] = "Vanished"
    batch.parts[0] = json.dumps(head).encode()
    reports = Reports()
    tasks.LeaseRunner(reports, reports.look).run(envelope(batch))
    assert reports.results == [4, None]
    assert reports.failures[1]["kind"] == "load" and "Vanished" in reports.failures[1]["message"]


def test_leases_that_follow_each_other_open_the_group_that_they_share_once(monkeypatch):
    batch, reports, groups = pack(Square(f"t{n}", number=n) for n in range(100)), Reports(), []
    opens = tasks.rpc.open_sealed
    monkeypatch.setattr(tasks.rpc, "open_sealed", lambda part: groups.append(part) or opens(part))
    runner = tasks.LeaseRunner(reports, reports.look)
    for lo in range(0, 100, 5):
        runner.run(envelope(batch, lo, lo + 5))
    assert reports.results == [n * n for n in range(100)]
    assert len(groups) == len(set(batch.parts[2:])) == 2


def test_a_task_that_runs_again_does_not_see_what_it_has_done_the_first_time():
    batch, reports = pack([Appends(f"t{n}", items=[n]) for n in range(5)]), Reports()
    runner = tasks.LeaseRunner(reports, reports.look)
    for at in (0, 1, 1, 2, 0):
        runner.run(envelope(batch, at, at + 1))
    assert reports.results == [[at, f"t{at}"] for at in (0, 1, 1, 2, 0)]


# -- failures on their way -----------------------------------------------------------------------------------


class Empty(Exception):
    """An exception that is false."""

    def __len__(self):
        return 0


class RaisesEmpty(Task):
    def __call__(self):
        raise Empty("nothing in it")


def test_an_exception_that_is_false_is_a_failure_all_the_same(owner, master):
    owner.draw([RaisesEmpty("e")])
    finish(owner, master)
    ((_, result, error),) = owner.heard
    assert result is None and isinstance(error, Empty) and (owner.done, owner.failed) == (0, 1)


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class BadReduce(Exception):
    def __reduce__(self):
        raise RuntimeError("no")


class ExitsInReduce(Exception):
    def __reduce__(self):
        raise SystemExit(3)


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class ExitsInText(Exception):
    def __str__(self):
        raise SystemExit(3)


class NoText(Exception):
    def __str__(self):
        return 5


class BadOpen(Exception):
    def __reduce__(self):
        return _refuse_to_open, ()


class Sealed(Exception):
    """Takes no attributes."""

    def __setattr__(self, name, value):
        raise AttributeError(name)


def caught(error):
    try:
        raise error
    except BaseException as raised:
        return raised


def travelled(error):
    """The failure as it arrives, through the JSON that carries it, and the exception made of it."""
    failure = json.loads(json.dumps(tasks.describe_failure(caught(error))))
    assert len(json.dumps(failure)) < 1_000_000
    return failure, tasks.open_failure(failure)


def test_an_exception_comes_home_as_itself_with_the_remote_traceback_as_its_cause():
    failure, error = travelled(ZeroDivisionError("over", 0))
    assert type(error) is ZeroDivisionError and error.args == ("over", 0)
    assert "ZeroDivisionError" in str(error.__cause__) and error.failure == failure
    assert "test_tasks.py" in failure["where"] and failure["where"].endswith("in caught")


@pytest.mark.parametrize(
    "error",
    [TwoArguments("a", "b"), BadReduce("b"), ExitsInReduce("e"), BadText("t"), ExitsInText("x"), NoText("n"),
     BadOpen("o"), Sealed("s"), OSError(2, "no")],
    ids=lambda error: type(error).__name__,
)
def test_the_nastiest_exceptions_come_home_with_their_type_and_place(error):
    failure, opened = travelled(error)
    assert failure["type"].endswith(type(error).__name__)
    assert "test_tasks.py" in failure["where"]
    assert isinstance(opened, BaseException)
    assert type(error).__name__ in str(opened.__cause__)


def test_an_exception_that_pickle_cannot_make_again_is_a_task_error_that_tells_all():
    failure, error = travelled(TwoArguments("a", "b"))
    assert type(error) is tasks.TaskError
    assert error.type.endswith("TwoArguments") and "a and b" in str(error) and error.where == failure["where"]
    assert error.kind == "error" and "raise error" in error.remote_traceback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_even_a_base_exception_is_described(kind):
    failure, _ = travelled(kind())
    assert failure["type"] == kind.__name__


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_causes_that_go_round_in_a_circle_are_described(link):
    first, second, third = ValueError("first"), KeyError("second"), OSError("third")
    for error, cause in ((first, second), (second, third), (third, first)):
        setattr(error, link, cause)
    failure, opened = travelled(first)
    assert all(name in failure["traceback"] for name in ("first", "second", "third"))
    assert str(opened) == "first"


def test_a_long_chain_of_causes_is_described():
    error = None
    for n in range(3000):
        following = ValueError(f"number {n}")
        following.__cause__ = error
        error = following
    failure, _ = travelled(error)
    assert "number 2999" in failure["traceback"]


def test_ten_megabytes_of_message_do_not_travel():
    failure, error = travelled(ValueError("x" * 10_000_000))
    assert len(json.dumps(failure)) < 300_000
    assert type(error) is tasks.TaskError and str(error).startswith("ValueError: xxx")
    assert "test_tasks.py" in failure["where"]
    assert "raise error" in failure["traceback"], "the frames matter more than the end of the message"


def test_the_message_of_a_task_error_says_why_and_what_to_do():
    with pytest.raises(components.UsageError) as raised:
        pack([_local_class()])
    error = tasks.open_failure(tasks.describe_failure(raised.value, kind="unsendable"))
    assert "cannot be sent" in str(error)
    assert "top of its module" in f"{error}{error.__cause__}"


def _local_class():
    class Hidden(Task):
        pass

    return Hidden("h")


def test_what_comes_home_can_be_pickled_once_more():
    _, error = travelled(TwoArguments("a", "b"))
    assert "a and b" in str(pickle.loads(pickle.dumps(error)))
    assert copy.copy(error) is not None


# -- the owner -----------------------------------------------------------------------------------------------


class Master:
    """The other end of an Owner or SystemRun: keeps what was sent, and answers with real workers' reports."""

    def __init__(self):
        self.sent = []

    def call(self, method, *params, parts=()):
        json.dumps(params)  # what cannot be JSON could not be sent
        self.sent.append((method, params, list(parts)))

    def of(self, method):
        """Parameters of all calls of one method, oldest first."""
        return [params for name, params, _ in self.sent if name == method]

    @property
    def submitted(self):
        """number -> (count, group, first, parts)"""
        return {params[0]: (*params[1:], parts) for name, params, parts in self.sent if name == "submit"}

    def run(self, number, lo=0, hi=None):
        """What a worker reports of a range of a batch: parameters of `outcome`."""
        count, group, first, parts = self.submitted[number]
        reports = Reports()
        batch = tasks.Batch(count, group, parts, 0)
        hi = count if hi is None else hi
        tasks.LeaseRunner(reports, reports.look).run(envelope(batch, lo, hi, first))
        ((lo, hi, failures, results, _),) = reports.rows
        return number, lo, hi, 0.5, failures, "s1", 1, results


@pytest.fixture
def master():
    return Master()


@pytest.fixture
def owner(master):
    """An owner whose outcomes gather in `owner.heard` as (name, result, error)."""
    heard = []
    made = Owner(master.call, lambda task, *outcome: heard.append((task.name, *outcome)), {"bundle": "b"}, "c1")
    made.heard = heard
    return made


def squares(count, start=0):
    return [Square(f"t{n}", number=n) for n in range(start, start + count)]


def finish(owner, master):
    """Plays the master until nothing is out."""
    answered = 0
    owner.pump()
    while not owner.idle:
        numbers = list(master.submitted)[answered:]
        assert numbers, "the owner waits, and nothing was sent"
        answered += len(numbers)
        owner.accepted(numbers)
        for number in numbers:
            owner.outcome(*master.run(number))
        owner.pump()


def test_tasks_pushed_in_a_row_travel_together(owner, master):
    for task in squares(5):
        owner.push(task)
    assert master.sent == []
    owner.pump()
    assert [count for count, *_ in master.submitted.values()] == [5]
    finish(owner, master)
    assert owner.heard == [(f"t{n}", n * n, None) for n in range(5)]


def test_tasks_with_different_resources_never_share_a_batch(owner, master):
    made = squares(6)
    made[1].resources = made[4].resources = {"gpu": 1}
    made[5].resources = {"cpus": 2}
    owner.draw(made)
    owner.pump()
    found = {}
    for count, group, _, parts in master.submitted.values():
        for task in opened(tasks.Batch(count, group, parts, 0)):
            found[task.name] = tasks.read_head(parts[0]).get("resources")
    assert found == {task.name: getattr(task, "resources", None) for task in made}


def test_a_task_that_asks_for_too_much_fails_alone_with_the_limit(owner, master):
    made = squares(3)
    made[1].resources = {"tags": ["x" * tasks.MOST_HEAD]}
    owner.draw(made)
    finish(owner, master)
    (error,) = [error for name, _, error in owner.heard if name == "t1"]
    assert "what task t1 asks for" in str(error) and "65,536 bytes" in str(error)
    assert sorted(result for _, result, error in owner.heard if not error) == [0, 4]


def test_tasks_of_very_many_classes_go_in_several_batches(owner, master):
    kinds = [type(f"Square{n}", (Square,), {"__module__": __name__}) for n in range(3000)]
    for kind in kinds:
        setattr(sys.modules[__name__], kind.__name__, kind)
    owner.draw(kind(kind.__name__, number=2) for kind in kinds)
    finish(owner, master)
    assert owner.heard == [(kind.__name__, 4, None) for kind in kinds]
    assert len(master.submitted) > 1
    assert max(len(parts[0]) for *_, parts in master.submitted.values()) <= tasks.MOST_HEAD


def test_no_more_is_drawn_than_the_window_holds(owner, master):
    drawn = []
    owner.draw(drawn.append(n) or Square(f"t{n}", number=n) for n in range(100_000))
    owner.pump()
    assert tasks.WINDOW - tasks.CHUNK < len(drawn) == owner.outstanding <= tasks.WINDOW
    for number in list(master.submitted):
        owner.accepted([number])
        owner.outcome(*master.run(number))
        owner.pump()
        assert owner.outstanding <= tasks.WINDOW
    assert len(drawn) > tasks.WINDOW


def test_large_tasks_are_drawn_by_weight(owner):
    drawn = []
    owner.draw(drawn.append(n) or Returns(f"t{n}", value=b"x" * 1_000_000) for n in range(1000))
    owner.pump()
    assert len(drawn) <= 2 * tasks.WINDOW_BYTES / 1_000_000


def test_an_outcome_may_come_before_the_news_that_the_batch_was_accepted(owner, master):
    owner.draw(squares(3))
    owner.pump()
    owner.outcome(*master.run(0))
    assert len(owner.heard) == 3 and 0 in owner.flights
    owner.accepted([0])
    assert owner.idle and not owner.flights


def test_outcomes_in_pieces_out_of_order_and_twice_are_heard_once_each(owner, master):
    owner.draw(squares(10))
    owner.pump()
    for lo, hi in ((7, 10), (0, 2), (0, 2), (5, 9), (0, 7), (0, 10)):
        owner.outcome(*master.run(0, lo, hi))
    assert sorted(owner.heard) == [(f"t{n}", n * n, None) for n in range(10)]
    assert owner.outstanding == 0 and len(owner.heard) == 10


def test_outcomes_of_unknown_batches_are_ignored(owner):
    owner.outcome(99, 0, 1, 0.1, {}, "s1", 1, [pickle.dumps([1])])
    owner.accepted([99])
    owner.refused(99, "why")
    assert owner.heard == [] and owner.idle


def test_only_what_was_never_accepted_is_sent_again(owner, master):
    for start in (0, 10):
        for task in squares(10, start):
            owner.push(task)
        owner.pump()
    owner.accepted([0])
    before = len(master.sent)
    owner.resubmit(True)
    assert [call[1][0] for call in master.sent[before:]] == [1]
    assert master.sent[-1] == [call for call in master.sent[:before] if call[0] == "submit"][-1]


def test_the_answer_comes_once_when_all_was_drawn_and_accepted(owner, master):
    answers = []
    owner.draw(squares(3000), answers.append)
    owner.pump()
    numbers = list(master.submitted)
    for number in numbers[:-1]:
        owner.accepted([number])
    assert answers == []
    owner.accepted(numbers)
    owner.accepted(numbers)
    assert answers == [3000]


def test_a_refused_batch_fails_its_tasks_with_the_reason_and_is_not_answered_as_accepted(owner, master):
    answers, refusals = [], []
    owner.draw(squares(3), answers.append, refusals.append)
    owner.pump()
    owner.refused(0, "no room")
    owner.refused(0, "no room")
    assert [str(error) for _, _, error in owner.heard] == ["Refused: no room"] * 3
    assert [refusal["m"] for refusal in refusals] == ["no room"]
    assert owner.idle and answers == []


def test_one_task_that_cannot_be_sent_fails_and_the_rest_goes(owner, master):
    made, refusals = squares(10), []
    made[4].lock = threading.Lock()
    owner.draw(made, None, refusals.append)
    finish(owner, master)
    assert [(name, result) for name, result, error in owner.heard if error is None] == [
        (f"t{n}", n * n) for n in range(10) if n != 4
    ]
    ((name, _, error),) = [row for row in owner.heard if row[2] is not None]
    assert name == "t4" and error.kind == "unsendable" and len(refusals) == 1


def test_a_thousand_tasks_that_cannot_be_sent_fail_without_running_out_of_stack(owner, master):
    made = squares(3000)
    for task in made:
        task.lock = threading.Lock()
    owner.draw(made)
    finish(owner, master)
    assert [error.kind for _, _, error in owner.heard] == ["unsendable"] * 3000


def test_a_result_that_cannot_be_opened_fails_its_task_alone(owner, master):
    owner.draw([Square("a", number=2), MakesOpaque("b"), Square("c", number=3)])
    finish(owner, master)
    assert [(name, result) for name, result, _ in owner.heard] == [("a", 4), ("b", None), ("c", 9)]
    assert "not here" in str(owner.heard[1][2])


class MakesOpaque(Task):
    def __call__(self):
        return Opaque()


def test_finished_comes_before_the_callback_and_both_once(master):
    heard = []
    owner = Owner(master.call, lambda task, result, error: heard.append(("callback", task.name)), {}, "c1")
    owner.draw([Notes("n", heard=None)])
    owner.pump()
    flight = owner.flights[0]
    flight.tasks[0].heard = heard
    owner.outcome(*master.run(0))
    owner.outcome(*master.run(0))
    assert heard == [("finished", "n"), ("callback", "n")]


class Notes(Task):
    def __call__(self):
        return 1

    def finished(self, result, error):
        self.heard.append(("finished", self.name))


def test_finished_batches_are_settled_in_the_end(owner, master):
    owner.draw(squares(500))
    finish(owner, master)
    while owner.deadline is not None:
        owner.pump()
    assert sorted(n for (numbers,) in master.of("settled") for n in numbers) == sorted(master.submitted)


def test_an_iterable_that_raises_lets_the_error_through_and_the_owner_goes_on(owner, master):
    def breaks():
        yield from squares(3)
        raise LookupError("no more")

    owner.draw(breaks())
    with pytest.raises(LookupError):
        owner.pump()
    owner.draw(squares(2, 10))
    finish(owner, master)
    assert [name for name, _, _ in owner.heard][-2:] == ["t10", "t11"]


# -- systems -------------------------------------------------------------------------------------------------


class Steps(ITaskSystem):
    """Gives `counts[n]` tasks in step n, and is complete after the last."""

    def __init__(self, counts, lockstep=False):
        ITaskSystem.__init__(self)
        self.counts, self.lockstep, self.heard, self.called = counts, lockstep, [], 0

    def generate_tasks(self, master):
        count = self.counts[self.called]
        self.called += 1
        return squares(count, 100 * self.called)

    def task_finished(self, master, task, result, error):
        self.heard.append(task.name)

    def is_complete(self, master):
        return self.called == len(self.counts) and master.outstanding == 0

    def gather_result(self, master):
        return len(self.heard)


def drive(system, master, **options):
    """Plays the master of a system until it is done; returns its failure, stats and result."""
    one = SystemRun(system, master.call, {"bundle": "b", **options}, "1")
    one.start()
    answered = 0
    while not one.done:
        numbers = list(master.submitted)[answered:]
        assert numbers or one.waiting, "the system waits for ever"
        if one.waiting:
            one.next_step()
        answered += len(numbers)
        one.owner.accepted(numbers)
        for number in numbers:
            if not one.done:
                one.outcome(*master.run(number))
    (failure, stats), parts = next((params, parts) for name, params, parts in master.sent if name == "system_done")
    return failure, stats, rpc.open_sealed(parts[0]) if parts else None


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_system_goes_on_step_by_step_until_it_is_complete(master, lockstep):
    failure, stats, result = drive(Steps([3, 1, 200], lockstep), master)
    assert failure is None and result == 204
    assert (stats["steps"], stats["tasks"], stats["done"], stats["failed"]) == (3, 204, 204, 0)
    assert [params[0] for params in master.of("system_step")] == [1, 2, 3]


def test_a_step_without_tasks_before_the_end_is_an_error(master):
    failure, _, _ = drive(Steps([2, 0, 1]), master)
    assert failure["hook"] == "generate_tasks" and "wait for ever" in failure["message"]


class Pushes(Steps):
    """Its first task brings another, from task_finished."""

    def task_finished(self, master, task, result, error):
        Steps.task_finished(self, master, task, result, error)
        if task.name == "t100":
            (master if self.direct else master.task_scheduler).push_task(Square("extra", number=7))

    is_complete = ITaskSystem.is_complete


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_tasks_pushed_from_task_finished_are_run_before_the_system_is_complete(master, lockstep, direct, count):
    system = Pushes([count], lockstep)
    system.direct = direct
    if lockstep:
        system.counts.append(0)
    failure, _, result = drive(system, master)
    assert failure is None and result == count + 1
    assert system.heard[-1] == "extra" or not lockstep


class Replaces(ITaskSystem):
    """Its only task cannot be sent; task_finished replaces it by one that can."""

    def generate_tasks(self, master):
        return [Square("bad", number=1, lock=threading.Lock())]

    def task_finished(self, master, task, result, error):
        self.result = result
        if error is not None:
            master.push_task(Square("good", number=5))

    def gather_result(self, master):
        return self.result


def test_a_task_pushed_in_place_of_one_that_cannot_be_sent_is_sent_at_once(master):
    assert drive(Replaces(), master)[2] == 25


def test_by_hand_a_system_waits_at_each_barrier_and_an_early_step_changes_nothing(master):
    one = SystemRun(Steps([2, 2]), master.call, {"by_hand": True}, "1")
    one.start()
    one.next_step()
    assert one.step == 1, "the first step has not ended"
    one.outcome(*master.run(0))
    assert one.waiting and master.of("system_step")[-1] == (1, True)
    one.next_step()
    assert one.step == 2 and not one.waiting


def test_a_system_that_is_let_run_on_waits_at_no_barrier_any_more_after_a_snapshot_either(master):
    one = SystemRun(Steps([2, 2, 2, 2]), master.call, {"by_hand": True, "saves": True}, "1")
    one.start()
    one.outcome(*master.run(0))
    one.next_step(True)
    one.outcome(*master.run(1))
    assert one.step == 3 and not one.waiting
    one.owner.accepted([0, 1, 2])
    one._save()
    state = rpc.open_sealed(next(parts for name, _, parts in master.sent if name == "snapshot")[0])
    later = SystemRun(state["system"], master.call, {"by_hand": True}, "1")
    later.resume(state)
    assert not later.by_hand


class Half:
    def __repr__(self):
        raise ValueError


@pytest.mark.parametrize("result, text", [
    ([1, "a" * 500], "'aaa"), ({"best": 4194304}, "{'best': 4194304}"), (None, ""), (Half(), ""),
    ([Half()], "[…]"),
])  # fmt: skip
def test_of_a_result_of_python_s_own_kinds_a_few_words_are_told(master, result, text):
    system = Steps([1])
    system.gather_result = lambda master: result
    _, stats, _ = drive(system, master)
    assert text in stats["shown"] and len(stats["shown"]) <= 300 and bool(stats["shown"]) == bool(text)


class Raises(Steps):
    def __init__(self, hook):
        Steps.__init__(self, [2, 2])
        self.hook = hook

    def __getattribute__(self, name):
        if not name.startswith("_") and name == object.__getattribute__(self, "__dict__").get("hook"):
            return self._raise
        return Steps.__getattribute__(self, name)

    def _raise(self, *_):
        raise ZeroDivisionError(f"in {self.hook}")


@pytest.mark.parametrize("hook", ["init_system", "generate_tasks", "task_finished", "is_complete", "gather_result"])
def test_a_hook_that_raises_ends_the_system_with_its_name(master, hook):
    failure, _, _ = drive(Raises(hook), master)
    assert failure["hook"] == hook and failure["message"] == f"in {hook}" and failure["type"] == "ZeroDivisionError"
    assert len(master.of("system_done")) == 1


class Stops(Steps):
    """Complete after its first outcome."""

    def is_complete(self, master):
        return bool(self.heard)


def test_nothing_is_heard_or_drawn_after_the_system_is_complete(master):
    failure, stats, result = drive(Stops([500, 500]), master)
    assert failure is None and result == 1 and stats["steps"] == 1
    sent = len(master.sent)
    assert master.sent[sent - 1][0] == "system_done"


class Unsendable(Steps):
    def gather_result(self, master):
        return {"best": threading.Lock()}


def test_a_result_of_the_system_that_cannot_be_pickled_is_told_with_its_place(master):
    failure, _, _ = drive(Unsendable([1]), master)
    assert failure["hook"] == "gather_result" and "best" in failure["message"]


def test_a_generator_is_drawn_as_there_is_room(master):
    drawn = []

    class Endless(Stops):
        def generate_tasks(self, master):
            return (drawn.append(n) or Square(f"t{n}", number=n) for n in range(10**9))

    assert drive(Endless([1]), master)[2] == 1
    assert len(drawn) <= tasks.WINDOW + tasks.CHUNK


# -- results in a few words ----------------------------------------------------------------------------------------


class Loud:
    """Runs code whatever anybody does with it."""

    def shout(self, *_):
        raise SystemExit("nobody may ask")

    __repr__ = __str__ = __iter__ = __len__ = __lt__ = __eq__ = shout
    __hash__ = object.__hash__


def test_a_result_is_named_in_a_few_words_without_code_of_others():
    impostor = type("list", (Loud,), {})()
    for one in (Loud(), impostor, type("Meta", (type,), {"__name__": property(Loud.shout)})("X", (), {})()):
        assert tasks.brief(one) == ""
        assert tasks.brief([1, one, "x"]) == "[1, …, 'x']"
        assert tasks.brief({"a": one}) == "{'a': …}"
        assert tasks.brief({one: 1}) == tasks.brief({one}) == tasks.brief({(1, one): 1}) == "…"


@pytest.mark.parametrize("result, text", [
    (1763965, "1763965"), ("ab\ncd", "'ab\\ncd'"), ([1, None, 2.5], "[1, None, 2.5]"), ({"a": (1,)}, "{'a': (1,)}"),
    ({3, 1, 2}, "{1, 2, 3}"), (None, ""), (range(3), ""),
])  # fmt: skip
def test_a_result_of_python_s_own_kinds_is_what_its_program_says(result, text):
    assert tasks.brief(result) == text


def test_a_large_result_is_cut():
    assert tasks.brief(10**5000) in ("", f"1{'0' * 97}...{'0' * 99}"), "Python does not show it, or its ends"
    assert len(tasks.brief(["x" * 10_000] * 1000)) <= tasks.BRIEF
    assert tasks.brief(list(range(1000))) == "[0, 1, 2, 3, 4, 5, ...]"
