"""One suite for every scheduler: what a board must be able to rely on, whichever it is given."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from concurrent_swarm.master import Board

from concurrent_swarm import components, tasks

PLUGINS = Path(__file__).resolve().parents[1] / "samples" / "plugins"
NAMES = ("GenericTaskScheduler", "ZMQTaskScheduler", "LeastTimeScheduler")


@pytest.fixture(autouse=True, scope="module")
def plugin():
    """The third scheduler, loaded as the plug-in that it is."""
    source = (PLUGINS / "least_time.py").read_text()
    exec(compile(source, "least_time.py", "exec"), {"__name__": "plugins.least_time"})


class Swarm:
    """A board with a scheduler found by its name, and slaves that report when they are told to."""

    def __init__(self, name, *workers, settings=()):
        self.manager = components.ComponentManager(components.Config(arguments=list(settings)))
        self.board = Board()
        self.board.scheduler = self.scheduler(name)
        self.now, self.number, self.open = 0.0, 0, []
        self.board.owner_joined("c1", "client", 0.0)
        for number, count in enumerate(workers, 1):
            self.take(self.board.slave_joined(f"s{number}", {"cpus": count}, [], count, 0.0))

    def scheduler(self, name):
        found = self.manager.find_component(tasks.ITaskScheduler, name)
        found.setup(SimpleNamespace(board=self.board))
        return found

    def take(self, effects):
        self.board.check()
        assert self.board.scheduler_error is None
        self.open += [message[2] for message in effects.messages if message[0] == "lease"]

    def submit(self, count, **resources):
        self.number += 1
        self.take(self.board.submit("c1", self.number, count, self.now, 1, {"resources": resources}))

    def end(self, lease, seconds=0.2):
        """Report a lease whose tasks took so many seconds each."""
        self.open.remove(lease)
        spent = seconds * (lease.hi - lease.lo)
        self.take(self.board.result(lease.slave.id, lease.id, lease.lo, lease.hi, spent, None, {}, self.now))

    def flow(self, seconds=0.2):
        done = {}
        while self.open:
            lease = self.open[0]
            done[lease.slave.id] = done.get(lease.slave.id, 0) + lease.hi - lease.lo
            self.end(lease, seconds)
        return done


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_every_task_runs_and_every_slave_takes_part(name):
    swarm = Swarm(name, 2, 2, 2)
    swarm.submit(120)
    done = swarm.flow()
    assert sum(done.values()) == 120
    assert set(done) == {"s1", "s2", "s3"}


def test_no_slot_stays_free_while_work_waits(name):
    swarm = Swarm(name, 1, 2, 3)
    swarm.submit(6)
    assert sorted((slave.workers, slave.open_tasks) for slave in swarm.board.slaves.values()) == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def test_equal_slaves_get_equal_work(name):
    swarm = Swarm(name, 1, 1, 1)
    swarm.submit(90)
    done = swarm.flow(0.02)
    assert max(done.values()) - min(done.values()) <= 6, done


def test_a_demand_is_kept_and_never_starves_others(name):
    swarm = Swarm(name, 1, 4)
    swarm.submit(3, cpus=2)
    swarm.submit(3, gpu=1)
    swarm.submit(5)
    assert {lease.slave.id for lease in swarm.open if lease.batch.number == 1} == {"s2"}
    done = swarm.flow()
    assert sum(done.values()) == 8
    assert [waiting["tasks"] for waiting in swarm.board.unplaced(0.0)] == [3]


def test_it_can_be_replaced_while_tasks_run(name):
    swarm = Swarm(name, 2, 2)
    swarm.submit(40)
    for other in NAMES:
        swarm.board.scheduler = swarm.scheduler(other)
        for _ in range(8):
            swarm.end(swarm.open[0])
    assert sum(swarm.flow().values()) + 8 * len(NAMES) == 40


def test_slaves_may_join_and_leave_at_any_time(name):
    swarm = Swarm(name, 2, 2)
    swarm.submit(30)
    swarm.open = [lease for lease in swarm.open if lease.slave.id != "s1"]
    swarm.take(swarm.board.slave_lost("s1", 0.0))
    swarm.take(swarm.board.slave_joined("s9", {"cpus": 1}, [], 1, 0.0))
    done = swarm.flow()
    assert sum(done.values()) == 30 and set(done) == {"s2", "s9"}


def test_it_rates_every_slave_for_people_best_first(name):
    swarm = Swarm(name, 1, 2, 0)
    swarm.submit(1)
    rated = swarm.board.scheduler.rate_slaves()
    assert sorted(slave.id for _, slave in rated) == ["s1", "s2", "s3"]
    assert rated[-1][1].id == "s3"
    assert [rating for rating, _ in rated] == sorted(rating for rating, _ in rated)


def test_it_stops(name):
    Swarm(name, 1).board.scheduler.stop()


# -- each in its own way -------------------------------------------------------------------------------------------


def test_push_chooses_the_slave_with_the_fewest_open_tasks_per_worker():
    swarm = Swarm("GenericTaskScheduler", 1, 4)
    swarm.submit(1)
    assert swarm.open[0].slave.id == "s2"


def test_push_prefers_the_faster_of_two_equal_slaves():
    swarm = Swarm("GenericTaskScheduler", 1, 1)
    swarm.submit(40)
    while swarm.open:
        swarm.end(swarm.open[0], 0.4 if swarm.open[0].slave.id == "s1" else 0.2)
    first, second = swarm.board.slaves.values()
    assert first.pace > second.pace
    swarm.submit(1)
    assert swarm.open[0].slave.id == "s2"


def test_pull_serves_slaves_in_turn():
    swarm = Swarm("ZMQTaskScheduler", 4, 4, 4)
    swarm.submit(12)
    assert [lease.slave.id for lease in swarm.open] == ["s1", "s2", "s3"] * 4


def test_least_time_counts_seconds_where_push_counts_tasks():
    for name, chosen in (("GenericTaskScheduler", "s1"), ("LeastTimeScheduler", "s2")):
        swarm = Swarm(name, 2, 2)
        swarm.submit(100)
        swarm.flow(0.0001)
        slaves = list(swarm.board.slaves.values())
        for slave, count, seconds in zip(slaves, (1, 40), (9.0, 0.004), strict=True):
            slave.open_tasks, slave.open_seconds, slave.pace = count, seconds, 1.0
        lease = SimpleNamespace(estimate=0.001)
        assert swarm.board.scheduler.place(slaves, lease).id == chosen


class Backwards(components.Component):
    """A strategy that prefers the slave with the last name."""

    components.implements(tasks.ITaskScheduleStrategy)

    def setup(self, scheduler, master):
        assert master.board is not None and hasattr(scheduler, "place")

    def rate(self, slave):
        return -int(slave.id[1:])

    def get_next_slave(self, slaves):
        return min(slaves, key=self.rate, default=None)


def test_push_takes_its_strategy_from_the_configuration():
    swarm = Swarm("GenericTaskScheduler", 1, 1, 1, settings=["GenericTaskScheduler.strategy=Backwards"])
    swarm.submit(3)
    assert [lease.slave.id for lease in swarm.open] == ["s3", "s2", "s1"]


def test_a_strategy_can_be_replaced_while_tasks_run():
    swarm = Swarm("GenericTaskScheduler", 1, 1, 1)
    swarm.manager.config.set("GenericTaskScheduler", "strategy", "Backwards")
    swarm.manager.config_changed({("GenericTaskScheduler", "strategy")})
    swarm.submit(1)
    assert swarm.open[0].slave.id == "s3"


def test_an_unknown_strategy_is_an_error_that_lists_the_known():
    with pytest.raises(components.Error, match="GenericTaskScheduleStrategy"):
        Swarm("GenericTaskScheduler", 1, settings=["GenericTaskScheduler.strategy=Best"])
