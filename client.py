"""A client: runs an application on a swarm, from the command line or inside a program.

    your file.py                       this process                                   master
    ----------------------------       ------------------------------------------     ---------------------------
    class My(ApplicationNode)  <----   callbacks, one thread        bundle, submit -> Board -> slaves
      start_processing, ...    ---->   Owner (tasks, outcomes)  <- outcome, accepted
      get_task_system          ---->   sealed ITaskSystem      push_tasksystem ->     host process of the system
      work_finished            <----                            <- work_finished

What tasks and hooks print comes home through `task_output`. Of the first tasks that fail, `Replays` keeps a file each,
with which `--replay` runs such a task again in this process.

`main` loads the file, finds the one `ApplicationNode` in it, calls `app_init` and `app_main`, and prints the result to
stdout and everything else to stderr. `--local` starts a master and a slave for the run; `--workers 0` runs every task
in this process, one after the other, so that breakpoints and `--pdb` work.
"""

if __name__ == "__main__":  # hand over to the one copy of this module, under its real name
    if __spec__ is None:  # python client.py
        from concurrent_swarm import run

        run(__file__)
    from importlib import import_module  # python -m concurrent_swarm.client

    raise SystemExit(import_module(__spec__.name).main())

import argparse
import base64
import collections
import contextlib
import functools
import html
import itertools
import json
import logging
import math
import os
import platform
import random
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import components, rpc, tasks

log = logging.getLogger(__spec__.name)

WELCOME_WITHIN = 15.0  # seconds until the compute channel must have answered
HEARD_WITHIN = 5.0  # seconds until the master must have heard that a client leaves its systems there
PROGRESS_EVERY = 0.2  # seconds between two drawings of the progress line
TRACEBACK = "Traceback (most recent call last):"  # a line that says nothing
GIVE_UP_CANCELLING = 5.0  # seconds that a first Ctrl-C waits for what runs
HINT_FROM = 2.0  # seconds that a run takes before it is worth a hint
SHORT_TASK = 0.0005  # seconds
LARGE_RESULTS = 50 << 20  # bytes a second
REPLAYS_KEPT = 100  # files of failed tasks
OF_ALL_NODES = ("node.install", "node.wheels", "node.index", "node.build_timeout", "node.keep_apps")  # of a local swarm


# -- applications --------------------------------------------------------------------------------------------------

class ApplicationNode(components.Component):
    """The part of an application that runs on the client. Subclass it in a file and run `python client.py file.py`.

    Return a task system from `get_task_system`, or return None and push tasks in `start_processing`. Everything after
    that is a notification; all callbacks run one after the other in one thread. Call `shutdown_main_loop` when the
    work is done. What you leave in `self.result` is printed to stdout.
    """

    abstract = True
    results = "any"  # what results of tasks and systems may hold: "data" and "data,numpy" let them run no code here
    result: Any = None
    error: BaseException | None = None
    exit_code = 0
    output_dropped = 0  # bytes that tasks have printed and that did not come home
    _welcomed = _finishing = _by_hand = _detaches = _detached = _gave_up = False
    _collects = ""  # the name of a system that another client has left with the master
    _size = 0, 0, 0  # of the swarm: slaves, workers, and busy ones
    _started = _cpu = _in_line = 0.0  # when it began; seconds of, and of waiting for, a processor until then
    _progress: dict = {}  # number of a system -> [step, tasks done, tasks known]
    _waits: list = []  # what nothing can be seen of: [kind, tasks, why, first task]
    _running: dict = {}  # name of an owner -> tasks that slaves have
    _accepted = 0  # plain tasks
    _work: tuple = ()  # seconds of workers for it, how many of them moved data, bytes of results, seconds for everybody
    _others_before: float | None = None  # seconds of workers for others when it began
    components.implements(tasks.IApp)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if cls.__module__ == "__main__":
            file = sys.argv[0] if hasattr(sys.modules["__main__"], "__file__") else "FILE"
            print(components.UsageError(
                f"{file} is an application", "it runs inside a client", f"python client.py {file} --local"
            ).text(), file=sys.stderr)
            raise SystemExit(components.EXIT_USAGE)

    def app_init(self) -> None:
        """Called once before anything else; the place to set attributes up."""

    def app_main(self) -> int:
        """Connects, starts the work, runs the main loop. Returns the exit code: 0 if nothing failed."""
        self.connect()
        system = None if self._collects else self.get_task_system()
        if self._collects:
            self.collect_tasksystem(self._collects)
        elif system is not None:
            self.push_tasksystem(system)
        elif self._detaches:
            raise components.UsageError("--detach is for task systems", "callbacks of plain tasks happen in the client",
                                        "return a system from get_task_system, or leave --detach away")
        else:
            self.start_processing()
        self.main_loop()
        return self.exit_code

    def get_task_system(self) -> tasks.ITaskSystem | None:
        """Returns the task system to run, or None if the application pushes its tasks itself."""
        return None

    def start_processing(self) -> None:
        """Called when there is no task system: push the first tasks here."""

    def task_finished(self, task: tasks.Handle, result: Any, error: BaseException | None) -> None:
        """The outcome of a plain task. `task` is its id as text, with `name` and the `task` itself."""

    def work_finished(self, result: Any, task_system: tasks.Handle) -> None:
        """A task system is complete; `result` is what `gather_result` returned. By default, the application ends."""
        self.shutdown_main_loop()

    def task_system_finished(self, result: Any, error: BaseException | None, stats: dict) -> None:
        """A task system has ended. By default calls `work_finished`, or ends the application with exit code 1."""
        if error is None:
            self.work_finished(result, self._system_handle)
        else:
            self.fail(error)

    def push_tasksystem_response(self, result: Any) -> None:
        """The master has taken the task system; `result` is its number there."""

    def push_tasksystem_failed(self, result: dict) -> None:
        """The master has not taken the task system: `m` says why, `t` is a traceback if there is one."""
        self.fail(result.get("e") or components.Error(result.get("m", "the task system was refused")))

    def push_task_response(self, result: Any) -> None:
        """A task is safe with the master."""

    def push_task_failed(self, result: dict) -> None:
        """A task could not be sent; it also ends as failed. `m` says why."""

    def push_tasks_response(self, result: Any) -> None:
        """All tasks of a `push_tasks` are safe with the master; `result` is how many."""

    def push_tasks_failed(self, result: dict) -> None:
        """A task of a `push_tasks` could not be sent; it also ends as failed. `m` says why."""

    def stats_response(self, system_id: str, figures: dict) -> None:
        """What `get_stats` has asked for: {name: {"n", "sum", "avg", "min", "max", "last", "p50", "p95", "p99"}}."""

    def step_reached(self, number: int, step: int) -> None:
        """With `--step`: a system has ended a step and waits. By default, Enter in the terminal begins the next one."""
        print(f"step {step} of system {number} is done; Enter begins the next", file=sys.stderr, flush=True)
        sys.stdin.readline()
        self.next_step(number)

    def task_output(self, task_id: str, attempt: int, text: str) -> None:
        """What a task has printed, logged or written to descriptor 1 or 2, soon after; in order for each task.
        `task_id` is that of a task, `c1.17-40` where it may be any of these (C code in a lease of short tasks),
        `system 1` for the hooks of a task system, and `c1` for the count of what the master dropped while this client
        was away or slow. By default it is shown on stderr, except with `--quiet`."""
        self.swarm.watch.show_output(task_id, attempt, text)

    def master_disconnected(self, gracefully: bool) -> None:
        """The master went away; work goes on when it comes back. `gracefully`: it was stopped, and has said so."""

    # what an application has and calls

    @functools.cached_property
    def stats(self) -> components.Stats:
        """Figures of this client's process: `self.stats.add_avg("rating", 0.3)`."""
        return self.swarm.stats

    @property
    def node_id_str(self) -> str:
        """The client's id, made anew at each start."""
        return self.swarm.node_id

    def push_task(self, task: tasks.Task) -> None:
        """Sends one task; tasks pushed in a row travel together. From any thread."""
        if not task.client_id:
            task.client_id = self.node_id_str
        self.swarm.on_loop(self._owner.push, task, self._task_pushed, self.push_task_failed)

    def push_tasks(self, tasks: Iterable[tasks.Task]) -> None:
        """Sends the tasks of any iterable, which is drawn as the swarm has room. From any thread."""
        self.swarm.on_loop(self._owner.draw, tasks, self.push_tasks_response, self.push_tasks_failed)

    def push_tasksystem(self, system: tasks.ITaskSystem) -> None:
        """Sends a task system to the master, where it runs. Several may run at once."""
        self.swarm.on_loop(self._push_system, system)

    def publish(self, obj: Any) -> rpc.Shared:
        """A reference to an object, for many tasks to carry: `self.publish(array)` here, `self.data.get()` in the task.
        Each slave fetches it once, and its workers map the same memory. It stays until the client ends. From callbacks
        only. Raises UsageError if the object cannot be pickled."""
        return tasks.publish(obj)

    def collect_tasksystem(self, name: str) -> None:
        """Waits for a task system that an earlier client has left with the master, by its name there."""
        self.swarm.on_loop(self._collect, name)

    def next_step(self, number: int) -> None:
        """Lets a task system that waits at its barrier go on."""
        self.swarm.on_loop(self.swarm.call, "step", number)

    def cancel_task(self, task: tasks.Task | str, kill: bool = False) -> None:
        """Ends a plain task, given by itself, its handle or its id: unless it has its outcome by then, it fails with
        "Cancelled". What runs of it goes on unheard, or is ended too with `kill`. From any thread."""
        self.swarm.on_loop(self._owner.cancel, task, kill)

    def cancel_tasks(self, kill: bool = False) -> None:
        """Ends all plain tasks in the same way, and draws no more of what was pushed. From any thread."""
        self.swarm.on_loop(self._owner.cancel_all, kill)

    def cancel_tasksystem(self, system: tasks.ITaskSystem, kill: bool = False) -> None:
        """Ends a task system: what is queued never runs, what runs goes on unheard, or is ended too with `kill`."""
        number = next(number for number, known in self._systems.items() if known is system)
        self._gave_up = True
        self.swarm.on_loop(self.swarm.call, "cancel_tasksystem", number, kill)

    def get_stats(self, system_id: str | tasks.ITaskSystem | None = None) -> None:
        """Asks what was measured of a task system, by itself or its id, or of the plain tasks; `stats_response` gets
        the answer. From any thread. Raises UsageError for a system that is not of this application."""
        wanted = str(getattr(system_id, "system_id", system_id or ""))
        ids = {"": 0, **{str(one.system_id): number for number, one in self._systems.items()},
               **{name: number for number, name in self._names.items()}}
        if wanted not in ids:
            raise components.UsageError(f"there are no figures of a task system {wanted}",
                                        "this client has not pushed it", "give the system, or its system_id")
        self.swarm.on_loop(self._ask_stats, ids[wanted], wanted)

    def _ask_stats(self, number: int, wanted: str) -> None:
        self._asked[number] = wanted
        end = self._ended.get(number)
        if end is None or isinstance(self.swarm, Inline):
            self.swarm.call("get_stats", number)
        else:  # not at once: who asks again in `stats_response` would never return
            told = self._hear_stats, [], number, end.get("measured", {})
            self.swarm.loop.post(lambda: self.swarm._todo.append(told))

    def shutdown_main_loop(self) -> None:
        """Lets `main_loop` return once the current callback has. From any thread."""
        self._finishing = True
        self.swarm.on_loop(lambda: None)

    def fail(self, error: BaseException) -> None:
        """Ends the application with exit code 1 and this error in the report."""
        self.error = error
        self.exit_code = 1
        self.shutdown_main_loop()

    # inside: connection and messages

    def _run_alone(self) -> int:
        """The sequential version: `sequential()` if the application has it, else its tasks one after the other."""
        alone = getattr(self, "sequential", None)
        if not callable(alone):
            return self.app_main()
        self.connect()
        self.result = alone()
        return self.exit_code

    def _prepare(self) -> None:
        """What must be there before anything of the application's runs, or a person interrupts it."""
        self._systems: dict[int, tasks.ITaskSystem] = {}
        self._names: dict[int, str] = {}  # number of a system -> its name at the master
        self._ended: dict[int, dict] = {}  # number of a system -> its stats
        self._asked: dict[int, str] = {}  # number of a system -> the id by which its figures were asked for
        self._out: dict[int, tuple] = {}  # number of a system without an end -> the call that began it
        self._published: dict[str, Any] = {}  # what was published, for a master that must be told again
        self._load = self._reader()
        rpc.Exchange(self._publish, self.swarm.fetch, load=self._load)
        unheard = type(self).task_finished is ApplicationNode.task_finished
        callback = self._unheard if unheard else self.task_finished
        kind = tasks.TracedOwner if self.swarm.tracer else tasks.Owner
        self._owner = kind(self.swarm.call, callback, {"bundle": self._bundle.digest}, handles=True, load=self._load)
        self._owner.tracer = self.swarm.tracer
        self._owner.keep = self.swarm.keep

    @classmethod
    def _reader(cls) -> Callable:
        kind = cls.results if isinstance(cls.results, str) else "any"  # what is no text is the application's own
        if kind not in rpc.READERS:
            raise components.UsageError(f"{cls.__name__} has results = {kind!r}", "it says what a result may hold",
                                        f"one of {', '.join(rpc.READERS)}")
        return rpc.READERS[kind]

    def connect(self) -> None:
        """Joins the swarm. Raises Unreachable."""
        self._started, self._cpu, self._in_line = time.monotonic(), time.process_time(), _seconds_in_line()
        self.swarm.join(self)

    def main_loop(self) -> None:
        """Runs callbacks until `shutdown_main_loop`."""
        while not self._finishing:
            self.swarm.step()

    def _hear(self, method: str, params: list, parts: list) -> None:
        """A call from the master."""
        self.HEARD[method](self, parts, *params)

    def _joined(self, welcome: dict, fresh: bool) -> None:
        """The master has let us in; `fresh` if it does not know what was sent before."""
        self._owner.name = welcome["name"]
        self._size = welcome["slaves"], welcome["workers"], 0
        self._welcomed = True
        if welcome["missing"]:
            self.swarm.call("bundle", self._bundle.digest, self._bundle.manifest, parts=[self._bundle.zip])
        if fresh:
            for key in self._published:
                self._send_published(key)
            self._owner.resubmit(welcome.get("known", True))
            for (method, *params), parts in list(self._out.values()):
                self.swarm.call(method, *params, parts=parts)
            for number in self._asked:
                self.swarm.call("get_stats", number)

    @property
    def _was_cancelled(self) -> bool:
        """Whether it ended because its task system was cancelled, by whomever."""
        return getattr(self.error, "failure", {}).get("kind") == "cancelled"

    @property
    def slaves(self) -> int:
        """How many slaves the swarm has."""
        return self._size[0]

    @property
    def workers(self) -> int:
        """How many leases the swarm runs at once."""
        return self._size[1]

    @property
    def pending(self) -> bool:
        """True while tasks or systems are out."""
        return not self._owner.idle or len(self._ended) < len(self._systems)

    def _tally(self) -> tuple[int, int, int, int]:
        """Step, tasks with an outcome, all tasks known, failed ones; of plain tasks and running systems together."""
        plain = self._owner.done + self._owner.failed
        rows = list(self._progress.values())
        done, known = plain + sum(row[1] for row in rows), plain + self._owner.outstanding + sum(row[2] for row in rows)
        return max([row[0] for row in rows], default=0), done, known, self._owner.failed

    def _failures(self) -> list[tuple[str, dict]]:
        """The ids of tasks that failed, and how; of a system's tasks, once it has ended."""
        ended = self._ended.values()
        return [*self._owner.failures, *(failure for one in ended for failure in one.get("failures", ()))]

    def _system_row(self, number: int) -> dict:
        """A task system as this node's page shows it."""
        step, done, known = self._progress.get(number, (0, 0, 0))
        name = self._names.get(number, "")
        return {"id": name, "number": number, "app": type(self._systems[number]).__name__, "client": self.swarm.name,
                "state": "ended" if number in self._ended else "running" if name else "waiting", "step": step,
                "tasks": known, "done": done}

    def _shown(self, text: str) -> str:
        """Text in which the application's files have the names by which the user knows them."""
        return rpc.with_local_names(text, self._bundle)

    def _cancel_everything(self) -> None:
        """Ends all task systems and plain tasks of this client."""
        self.swarm.call("cancel", None, True)
        for number in self._systems.keys() - self._ended.keys():
            self.swarm.call("cancel_tasksystem", number)
        if not self.pending:
            self.shutdown_main_loop()

    def _publish(self, key: str, pieces: list) -> None:
        kept = self.swarm.store and self.swarm.store.write([pieces])
        self._published[key] = kept[0].held(self.swarm.store) if kept else b"".join(pieces)  # as it is now
        if self._welcomed:
            self._send_published(key)

    def _send_published(self, key: str) -> None:
        part = self._published[key]
        for at, total, piece in rpc.slices(part, type(part) is rpc.Reference and self.swarm.is_local):
            self.swarm.call("publish", key, at, total, parts=[piece])

    def _push_system(self, system: tasks.ITaskSystem) -> None:
        limit = system.hook_timeout
        try:
            if not (limit is None or tasks.is_limit(limit)):
                raise components.UsageError(f"task system {type(system).__name__} has the hook_timeout {limit!r}",
                                            "this attribute is a limit: a number from 0", "give the seconds, or 0")
            sealed = rpc.seal(system, f"task system {type(system).__name__}")  # one pickle: its arrays can be written
        except components.Error as error:
            self.push_tasksystem_failed({"c": -32602, "m": str(error), "t": "", "e": error})
            return
        options = {"name": type(system).__name__, "client_id": self.node_id_str, "by_hand": self._by_hand,
                   "system_id": str(system.system_id), "hook_timeout": limit, "detaches": self._detaches}
        self._begin_system(system, "push_tasksystem", self._bundle.digest, options, parts=[sealed])

    def _collect(self, name: str) -> None:
        self._begin_system(tasks.ITaskSystem(), "collect", name)

    def _begin_system(self, system: tasks.ITaskSystem, method: str, *params: Any, parts: Iterable = ()) -> None:
        number = len(self._systems) + 1
        self._systems[number] = system
        self._out[number] = (method, number, *params), parts  # a new master needs it again
        self.swarm.call(method, number, *params, parts=parts)

    def _unheard(self, task: tasks.Handle, result: Any, error: BaseException | None) -> None:
        """Stands in for `task_finished` in an application without one."""
        if self._owner.idle:
            self.result = self.result if self.result is not None else result
            self.shutdown_main_loop()

    def _task_pushed(self, count: int) -> None:
        if type(self).push_task_response is not ApplicationNode.push_task_response:
            for _ in range(count):
                self.push_task_response(True)

    def _hear_system_taken(self, parts: list, number: int, name: str) -> None:
        if number in self._names:
            return
        self._names[number] = name
        self._tell("accepted", system=name)
        self.push_tasksystem_response(name)
        if self._detaches and len(self._names) == len(self._systems) and self._owner.idle:  # nobody waits for them here
            self._detached = True
            self.swarm.call("detach")
            self.shutdown_main_loop()

    def _hear_system_refused(self, parts: list, number: int, failure: dict) -> None:
        self._out.pop(number, None)
        self.push_tasksystem_failed(failure)

    def _hear_output(self, parts: list, owner: str, attempt: int, pieces: list) -> None:
        whole = owner if owner == self._owner.name else f"system {owner}"
        for lo, hi, text, dropped in pieces:
            name = f"{owner}.{lo}-{hi - 1}" if hi - lo > 1 else f"{owner}.{lo}" if hi > lo else whole
            self.output_dropped += dropped
            self.task_output(name, attempt, f"… {dropped:,} bytes dropped\n{text}" if dropped else text)

    def _hear_stats(self, parts: list, number: int, figures: dict) -> None:
        if number in self._asked:
            self.stats_response(self._asked.pop(number), figures)

    def _hear_swarm(self, parts: list, *params: Any) -> None:
        *self._size, self._progress, self._waits, self._running = params[:6]
        self._work = params[6:]
        self._others_before = params[-1] - params[6] if self._others_before is None else self._others_before

    def _hear_accepted(self, parts: list, numbers: list) -> None:
        flights = filter(None, map(self._owner.flights.get, numbers))
        self._accepted += sum(len(flight.tasks) for flight in flights if not flight.accepted)
        self._owner.accepted(numbers)

    def _hear_step(self, parts: list, number: int, step: int, waits: bool) -> None:
        self._tell("step", system=self._names.get(number, ""), step=step, waits=waits)
        if waits:
            self.step_reached(number, step)

    def _tell(self, event: str, **facts: Any) -> None:
        if self.swarm.watch and self.swarm.watch.events:
            self.swarm.watch.events.say(event, **facts)

    def _hear_work_finished(self, parts: list, number: int, failure: dict | None, stats: dict) -> None:
        system = self._systems.get(number)
        if system is None or number in self._ended:
            return
        self._ended[number] = stats
        self._out.pop(number, None)
        result, error = self._open_outcome(failure, parts)
        self.swarm.call("work_settled", number)
        self._system_handle = tasks.Handle(stats.get("system_id") or system.system_id)
        self._system_handle.title, self._system_handle.stats = stats.get("app") or type(system).__name__, stats
        self._hear_stats([], number, stats.get("measured", {}))  # whoever has asked and had no answer
        if error is None:
            self.result = result
        self._announce(result, error, stats)

    def _open_outcome(self, failure: dict | None, parts: list) -> tuple[Any, BaseException | None]:
        result, error = (None, None) if failure else tasks.attempt(rpc.open_sealed, parts[0], self._load)
        failure = failure or (error and tasks.describe_failure(error, kind="result"))
        return result, failure and tasks.open_failure(failure, self._load)

    def _announce(self, result: Any, error: BaseException | None, stats: dict) -> None:
        old = getattr(self, "task_system_finsihed", None)  # the spelling of the thesis
        if old is None:
            self.task_system_finished(result, error, stats)
            return
        self.log.warning("task_system_finsihed is now task_system_finished")
        old(result, error, stats)
        if len(self._ended) == len(self._systems):
            self.shutdown_main_loop()

    HEARD = {
        "accepted": _hear_accepted,
        "submit_failed": lambda self, parts, failure: self.fail(not_taken(failure)),
        "outcome": lambda self, parts, *params: self._owner.outcome(*params, parts),
        "refused": lambda self, parts, *params: self._owner.refused(*params),
        "push_tasksystem_response": _hear_system_taken, "push_tasksystem_failed": _hear_system_refused,
        "system_step": _hear_step, "work_finished": _hear_work_finished, "output": _hear_output, "swarm": _hear_swarm,
        "stats_response": _hear_stats,
    }


def not_taken(failure: dict) -> components.Error:
    """The error of a client whose tasks the master did not even refuse."""
    return components.Error(f"the master could not take tasks ({failure['m']})",
                            "the two do not understand each other", "its log may say more")


# -- ways to a swarm -----------------------------------------------------------------------------------------------

class ClientNode(rpc.Node):
    """The client as a node of a swarm: holds the link to the master and runs the loop in which callbacks happen."""

    role = "client"
    master_address = components.ConfigItem("client", "master", "", "HOST:PORT of the master")
    on_disconnect = components.ChoiceItem("client", "on_disconnect", "wait",
                                          ("wait", "cancel"), "what becomes of the work when this client vanishes")
    page = components.BoolItem("client", "page", True, "listen on a port of its own for people who look in")
    busy_loop = True
    _has_page = True  # the master
    app: ApplicationNode | None = None
    watch: "Watch | None" = None  # what shows the progress
    tracer: tasks.Tracer | None = None

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._todo: collections.deque = collections.deque()  # what the application has not heard yet
        self._shelf = rpc.Shelf(self.store)  # published objects on their way
        self._missing: dict[str, str] = {}
        self._grouped = 0  # failures that `failures` has
        self.wait, self.terminal = 0.0, components.Terminal()  # how long for a master that is away, and who is told

    def info(self) -> dict:
        return {**super().info(), "bundle": self.app._bundle.digest, "on_disconnect": self.on_disconnect,
                "trace": bool(self.tracer)}

    def join(self, app: ApplicationNode) -> None:
        """Enrols and connects; what is sent before the welcome waits for it. Raises Unreachable, GaveUp."""
        self.app = app
        if not rpc.wait_for_master(self, self.wait, self.terminal):
            raise components.GaveUp("stopped while it waited for the master")
        if self.page:
            self.serve()
        self.open_link(self.expose)
        limit = time.monotonic() + WELCOME_WITHIN
        with self.terminal.waiting(f"the compute channel of the master at {self.address}", 2 * WELCOME_WITHIN):
            while not (app._welcomed or app._finishing or self.loop.stopped):
                self.loop.step(1.0)
                self._hear()
                if time.monotonic() > limit:
                    raise self.no_compute_channel(WELCOME_WITHIN)
        if self.refusal:
            raise self.refusal
        if self.watch and app._welcomed:
            secure = rpc.certificate_of("client", self.address, self._access_file)
            self.watch.page = f"http{'s' * bool(secure)}://{self.address}/" * self._has_page

    def on_signal(self, function: Callable) -> None:
        """Runs it in the loop, from a signal handler; who still waits for a master has nothing to do but to stop."""
        self.loop.post(lambda: function() if self.link else self.loop.stop())

    def expose(self, link: rpc.Link) -> None:
        """The methods that the master may call: those the application hears."""
        for method in ApplicationNode.HEARD:
            rpc.tcpremote(link, name=method)(functools.partial(self._take, method))

        @rpc.tcpremote(link)
        def shared(handler, request, key, at, total):
            self._shelf.take(key, at, total, request.parts[0])

        @rpc.tcpremote(link)
        def no_shared(handler, request, key, reason):
            self._missing[key] = reason

        @rpc.tcpremote(link)
        def spans(handler, request, said, *more):
            self.tracer.hear(said, time.monotonic(), tasks.unpack_spans(request.parts), *more)

    def _take(self, method: str, handler: rpc.Link, request: rpc.Request, *params: Any) -> None:
        self._todo.append((self.app._hear, method, params, list(map(self._kept, request.parts))))

    def _kept(self, part: Any) -> Any:
        """A part that stays until the application has heard of it, whatever becomes of the master. Raises OSError if a
        master that is gone has said this: the next one says it again."""
        try:
            return self.store.kept(part) if type(part) is rpc.Reference else part
        except OSError:
            if not os.path.exists(part.folder):
                raise
            return part  # the file alone is missing: whoever opens it says so

    def welcomed(self, info: dict, fresh: bool) -> None:
        if self.tracer and fresh:
            self.tracer.begin(info["name"], self.is_local)
        self._has_page = bool(info.get("page"))
        if self.watch:
            self.watch.away = False
        self._todo.append((self.app._joined, info, fresh))

    def lost(self, reason: str) -> None:
        log.warning("lost the master at %s (%s); looking for it", self.address, reason)
        if self.watch:
            self.watch.away = True
        self._todo.append((self.app.master_disconnected, reason == rpc.STOPPED))

    def on_loop(self, function: Callable, *args: Any) -> None:
        """Calls it now in the loop's thread, or soon from another."""
        if threading.get_ident() == self.loop.thread:
            function(*args)
        else:
            self.loop.post(functools.partial(function, *args))

    def call(self, method: str, *params: Any, parts: Iterable = ()) -> None:
        """Sends a call to the master."""
        self.link.call(method, *params, parts=parts)

    def keep(self, parts: list) -> list:
        """The parts of a batch as they are now: in a file if the master takes it, else copied if need be."""
        return list(map(rpc.frozen, self.link.by_file(parts, 1) if self.is_local else parts))

    def fetch(self, key: str) -> Any:
        """Waits for the bytes of a published object; callbacks wait meanwhile. Raises Error."""
        if key in self.app._published:
            return self.app._published[key]
        self._shelf.forget([key])
        asked, speak_at = None, time.monotonic() + rpc.SILENT
        while self._shelf.get(key) is None:
            if time.monotonic() >= speak_at:
                speak_at = math.inf
                log.warning("still waiting: the published object %s has not come from the master yet", key[:12])
            if asked is not self.link.session and self.link.state == "ready":  # a new master was not asked yet
                asked = self.link.session
                self.call("fetch_shared", key)
            if self.loop.stopped or self.refusal or key in self._missing:
                raise rpc.no_such_object(key, self._missing.pop(key, "the master is gone"))
            self.loop.step(1.0)
        part = self._shelf.get(key)
        self._shelf.forget([key])
        return part

    def unready(self) -> str:
        return "" if self.link and self.link.state == "ready" else "it has no master"

    @property
    def hears_master(self) -> bool:
        """Whether the master gave a sign of life a moment ago."""
        return time.monotonic() - self.link.session.heard_at < rpc.SILENT

    def metrics(self) -> list[components.Metric]:
        owner, app, metric = self.app._owner, self.app, components.metric
        return [
            *super().metrics(),
            metric("connected", "1 while its master is there.", int(not self.unready())),
            metric("systems", "Task systems without an end.", len(app._systems) - len(app._ended)),
            metric("tasks_out", "Plain tasks without an outcome.", owner.outstanding),
            metric("tasks_total", "Plain tasks with an outcome.", owner.done + owner.failed),
            metric("tasks_failed_total", "Those of them that failed.", owner.failed),
        ]

    def step(self) -> None:
        """Waits for something and lets the application hear it. Its exceptions pass through."""
        self.app._owner.pump()
        self.loop.step()
        if self.refusal:
            raise self.refusal
        self._hear()

    def _hear(self) -> None:
        """Lets the application hear what came, outside the link: its exceptions end the application, not a session."""
        while self._todo and not self.app._finishing:
            function, *details = self._todo.popleft()
            function(*details)

    def tick(self, now: float) -> float:
        deadline = super().tick(now)
        if self.watch:
            deadline = min(deadline, self.watch.tick(now))
        return min(deadline, self.app._owner.deadline or math.inf)

    def outline(self) -> dict:
        app, now = self.app, time.monotonic()
        step, done, known, failed = app._tally()
        failures = app._owner.failures
        for task_id, failure in failures[self._grouped :]:
            self.failures.add(failure, task_id, now)
        self._grouped = len(failures)
        slaves, workers, busy = app._size
        head = {"slaves": slaves, "workers": workers, "busy": busy, "done": done, "failed": failed, "tasks": known,
                "step": step, "master": self.address, "link": self.link.state if self.link else "none",
                "uptime": round(now - self.started, 1)}
        return {"head": head, "systems": [app._system_row(number) for number in app._systems], "sandbox": {}}

    def close(self) -> None:
        """Tells the master that nobody waits here any more, and leaves."""
        if self.link and self.link.state == "ready":
            limit = time.monotonic() + HEARD_WITHIN
            if self.tracer:
                self.call("rest_of_trace")
                with self.terminal.waiting("the rest of the trace has not come yet"):
                    while self.link.state == "ready" and not self.tracer.complete and time.monotonic() < limit:
                        self.loop.step(0.1)
            if not self.app._detached:
                self.call("goodbye")
            self.link.tick(time.monotonic())
            limit = time.monotonic() + HEARD_WITHIN
            with self.terminal.waiting("the master has not heard yet that this client leaves"):
                while self.app._detached and self.link.master.unheard and time.monotonic() < limit:
                    self.loop.step(0.1)
        super().close()


class Inline(components.ComponentManager):
    """No swarm at all: every task runs in this process, one after the other, through the same packing as elsewhere."""

    log_level = rpc.BaseNode.log_level
    log_format = rpc.BaseNode.log_format
    address = "this process"
    node_id = "inline"
    store = None
    is_local = False
    watch: "Watch | None" = None
    tracer: tasks.Tracer | None = None

    def __init__(self, config: components.Config, on_error: Callable | None = None):
        super().__init__(config)
        self._on_error = on_error
        self.stats = components.Stats()
        self.stats.stand_in()
        self.scopes: collections.defaultdict = collections.defaultdict(components.SystemStats)  # by owner
        self._objects: dict[str, bytes] = {}
        self._runs: dict[int, tasks.SystemRun] = {}
        self._todo: collections.deque = collections.deque()
        self._spans = tasks.Thinned()  # that were not traced yet, and barriers
        self._barriers: list[tuple] = []
        self._traced = 0.0
        self.interrupted = False

    def join(self, node: ApplicationNode) -> None:
        """Welcomes the node."""
        self._node = node
        if self.tracer:
            self.tracer.begin("c1", True)
        node._joined({"name": "c1", "slaves": 1, "workers": 1, "missing": False}, True)
        node._size = 1, 1, 1

    def on_loop(self, function: Callable, *args: Any) -> None:
        """Calls it."""
        function(*args)

    def call(self, method: str, *params: Any, parts: Iterable = ()) -> None:
        """A call of the client's."""
        if method == "publish":
            key, at, _total = params
            self._objects[key] = self._objects.get(key, b"") + parts[0] if at else bytes(parts[0])
            return
        self._todo.append((self._node._owner, self._node._hear, method, params, list(parts), time.monotonic()))
        if method in ("cancel", "cancel_task"):
            self._todo.rotate()  # before the batches that wait

    def step(self) -> None:
        """Does one thing that is to be done. Raises Error if nothing ever will be."""
        if self.interrupted:
            self._node.shutdown_main_loop()
            return
        self._node._owner.pump()
        if not self._todo:
            raise components.Error(
                "the application waits for ever", "no task is out and shutdown_main_loop was not called",
                "call self.shutdown_main_loop() when the work is done",
            )
        owner, hear, method, params, parts, since = self._todo.popleft()
        if method == "submit":
            self._run_batch(owner, hear, params, parts, since)
        elif method == "push_tasksystem":
            self._run_system(params, parts)
        elif method == "step":
            self._runs[params[0]].next_step()
        elif method == "get_stats":
            figures = self.scopes[str(params[0] or owner.name)].told()["measured"]
            self._node._hear("stats_response", [params[0], figures], [])
        elif method == "system_done":  # here, where what the application raises is seen
            self._node._hear("work_finished", list(params), parts)
        elif method in ("cancel", "cancel_task"):
            self._cancel(owner, hear, method, *params)

    keep = staticmethod(tasks.Owner.keep)

    def fetch(self, key: str) -> bytes:
        """The bytes of a published object. Raises Error."""
        if key not in self._objects:
            raise rpc.no_such_object(key, "nobody in this process published it")
        return self._objects[key]

    def close(self) -> None:
        """Traces what was not traced yet."""
        if self.tracer:
            now = time.monotonic()
            self.tracer.hear(now, now, self._spans.taken()[0], self._barriers)
            self._barriers = []

    def _run_batch(self, owner: tasks.Owner, hear, params: tuple, parts: list, since: float) -> None:
        number, count, group, first = params
        hear("accepted", [[number]], [])
        waiting = [(0, count, 1)]
        while waiting and not self.interrupted:
            lo, hi, attempt = waiting.pop(0)
            envelope = tasks.Envelope(0, owner.name, number, lo, hi, group, attempt, first, parts)
            waiting += [(task, task + 1, attempt + 1) for task in self._run_lease(owner, hear, envelope, since)]

    def _run_lease(self, owner: tasks.Owner, hear, envelope: tasks.Envelope, since: float) -> list[int]:
        """Returns the tasks of it that failed and run again: at once, for nobody else would use the time."""
        again = []

        def report(lo: int, hi: int, seconds: float, failures: dict, results: list, last: bool) -> None:
            for task, failure in failures.items():
                failure |= {"attempt": envelope.attempt}
                if failure.get("retries", 0) >= envelope.attempt:
                    again.append(int(task))
                    failure["retried"] = True
            before.stand_in()
            for figures in runner.figures:
                self.scopes[owner.name].take_in(figures)
            if self.tracer:
                self._trace(envelope, lo, hi, len(failures), since, runner.spent, results)
            hear("outcome", [envelope.number, lo, hi, seconds, failures, "here", envelope.attempt], results)
            runner.stats.stand_in()
            if self.watch:
                known = {number: run for number, run in self._runs.items() if not run.done}
                self._node._progress = {number: [run.step, run.owner.done + run.owner.failed, run.owner.taken]
                                        for number, run in known.items()}
                self.watch.tick(time.monotonic())

        os.environ["CONCURRENT_SWARM_ATTEMPT"] = str(envelope.attempt)
        runner = tasks.LeaseRunner(report, lambda: owner.closed or self.interrupted,
                                   str(self._node._bundle.root), self._on_error)
        before = runner.stats.stand_in()
        try:
            runner.run(envelope)
        finally:
            before.stand_in()
        return again

    def _trace(self, envelope: tasks.Envelope, lo: int, hi: int, failed: int, since: float, spent: list,
               results: list) -> None:
        """Notes a span as a master would, see `master.Span`."""
        *times, opening, packing = (each / 1e6 for each in spent)
        now, ahead = time.monotonic(), time.monotonic() - time.perf_counter()
        began, ended = (each + ahead for each in times)
        run = self._runs.get(int(envelope.owner)) if envelope.owner.isdecimal() else None
        sent = sum(map(rpc.size_of, envelope.parts[2:]))
        self._spans.add([(
            envelope.owner, envelope.first + lo, hi - lo, failed, envelope.attempt, "here", 0, since, began, began,
            ended, now, opening, packing, run.step if run else 0, envelope.head["classes"][0][1], sent,
            sum(map(rpc.size_of, results)))])
        if now - self._traced > PROGRESS_EVERY:
            self._traced = now
            self.close()

    @staticmethod
    def _cancel(owner: tasks.Owner, hear, method: str, number: int | None, *details) -> None:
        """Ends tasks whose batch waits; it runs later all the same, for nobody but their siblings."""
        for flight in list(owner.flights.values()):
            if number in (None, flight.number):
                lo, hi = (details[0], details[0] + 1) if method == "cancel_task" else (0, len(flight.tasks))
                hear("outcome", [flight.number, lo, hi, 0.0, {"*": tasks.cancelled_failure()}, "", 1], [])

    def _run_system(self, params: tuple, parts: list) -> None:
        number, _digest, options = params

        def call(method: str, *details: Any, parts: Iterable = ()) -> None:
            if method in ("submit", "cancel", "cancel_task"):
                self._todo.append((run.owner, hear, method, details, tasks.Owner.keep(parts), time.monotonic()))
                self._todo.rotate(method != "submit")  # before the batches that wait
            elif method == "system_step":
                if self.tracer:
                    self._barriers.append((time.monotonic(), str(number), *details))
                self.scopes[str(number)].next_step(details[0])
                self._node._hear("system_step", [number, *details], [])
            elif method == "figures":
                self.scopes[str(number)].hooks_say(*details)
            elif method == "system_done":
                failure, stats = details
                stats = {**stats, **self.scopes[str(number)].told()}
                del stats["shown"]  # it is here
                self._todo.append((run.owner, hear, method, (number, failure, stats), list(parts), 0.0))

        def hear(method: str, details: list, parts: list) -> None:
            if method == "outcome" and not run.done:
                run.outcome(*details, parts)
            elif method == "accepted":
                run.owner.accepted(*details)

        system = rpc.open_sealed(parts[0])
        options = {**options, "bundle": self._node._bundle.digest}
        run = tasks.SystemRun(system, call, options, str(number), str(self._node._bundle.root))
        self._runs[number] = run
        self._node._hear("push_tasksystem_response", [number, str(number)], [])
        run.start()


# -- what a person sees --------------------------------------------------------------------------------------------

class Watch:
    """The progress line, what tasks print above it, and the patience with a swarm that has no worker."""

    LASTING = ("slave", "nothing")  # waits in which a person must do something: told in a line that stays

    def __init__(self, app: ApplicationNode, terminal: components.Terminal, wait: float, quiet: bool,
                 events: "Events | None" = None):
        self._app, self._terminal, self._wait, self._quiet, self.events = app, terminal, wait, quiet, events
        self.page: str | None = None  # the address of the master's page; "" if it has none, None as long as we are out
        self.away = False  # whether the master is
        self._introduced = False
        self._next = 0.0
        self._state, self._why = "", ""  # what it waits for
        self._since, self._said = 0.0, False  # and since when, and whether it has said so
        self._silent = terminal.PATIENT if terminal.live else rpc.SILENT
        self._looked, self.slot_seconds, self.full_at = 0.0, 0.0, 0.0  # when all workers were busy last

    def tick(self, now: float) -> float:
        """Draws if it is time. Raises GaveUp if no worker came within the wait."""
        if now >= self._next:
            self._next = now + PROGRESS_EVERY
            self._measure(now)
            if self.events:
                self.events.tick(now)
            if self.page is not None and (self._app._names or not self._app._systems):
                self._introduce()
            if self._app._welcomed:
                self._look(now)
                self._draw(now)
        return self._next if self._app.pending else now + 1.0

    @property
    def place(self) -> str | None:
        """The address at which a browser shows the run; None or "" if there is none."""
        names = list(self._app._names.values())
        return f"{self.page}#system={names[-1]}" if self.page and names else self.page

    def _introduce(self) -> None:
        """Says once, on a terminal, where the application runs, and where a browser shows it."""
        if not self._quiet and self._terminal.stream.isatty() and not self._introduced:
            swarm, (slaves, workers, _) = self._app.swarm, self._app._size
            size = f"{_count(slaves, 'slave')}, {_count(workers, 'worker')}"
            head = f"{type(self._app).__name__} on {swarm.address}: {size}"
            self._terminal.write(self._terminal.beside(head, f"watch: {self.place}" if self.page else "") + "\n")
            if swarm.server and swarm.shows_page:
                self._terminal.write(f"this client itself: http://{swarm.server.address}/\n")
        self._introduced = True

    def end(self) -> None:
        """Takes the line away."""
        if self.page is not None:
            self._introduce()
        self._measure(time.monotonic())
        self._terminal.write("")

    def _measure(self, now: float) -> None:
        _, workers, busy = self._app._size
        self.slot_seconds += workers * (now - (self._looked or self._app._started or now))
        self._looked, self.full_at = now, now if busy >= workers else self.full_at

    def _hindered(self) -> tuple[str, str]:
        """What keeps it from going on: a word for the first that does, and how a person is told."""
        app, (_, done, known, _) = self._app, self._app._tally()
        if self.away or not (app.workers or app.swarm.hears_master):
            return "master", f"the master at {app.swarm.address} is away; looking for it"
        if not app.workers:
            return "slave" * app.pending, f"the master has no worker; {known:,} tasks are queued"
        if app._waits:
            kind, tasks, why, task = app._waits[0]
            waits = f"{tasks:,} task{' waits' if tasks == 1 else 's wait'}: {why}; see --explain {task}"
            return kind, waits if task else why
        if not app.pending:
            return "nothing", "no task is out; the application ends when it calls shutdown_main_loop()"
        return "system" * (0 < known == done), "the task system itself is at work"

    def _look(self, now: float) -> None:
        """Notes since when it waits for the same; says so in a line, once, where no line is rewritten."""
        state, self._why = self._hindered()
        if state != self._state:
            self._state, self._since, self._said = state, now, False
        start = f"python slave.py --master {self._app.swarm.address}"
        if state == "slave" and now - self._since >= self._wait:
            raise components.GaveUp(f"no worker within {self._wait:.0f} s; {self._app._tally()[2]} tasks are queued",
                                    "no slave is connected to the master", f"in another terminal: {start}")
        if self._waiting(now) and not self._said and not self._quiet:
            self._said = True
            slave = f"no slave is connected to the master. In another terminal: {start}"
            if state in self.LASTING or not self._terminal.live:
                self._terminal.write(f"still waiting: {slave if state == 'slave' else self._why}\n")
                self._terminal.flush()

    def _waiting(self, now: float) -> list[str]:
        """What it has waited for in silence for a while, as a field of the progress line."""
        waited, limit = now - self._since, f" of {self._wait:.0f}" * (self._state == "slave")
        return [f"{self._why} ({waited:.0f} s{limit})"] if self._state and waited > self._silent else []

    def show_output(self, task_id: str, attempt: int, text: str) -> None:
        """Shows what a task has printed, each line with its id; of one that was rewritten in place, how it ended."""
        if not self._quiet:
            prefix = f"[{task_id}]" if attempt == 1 else f"[{task_id}, attempt {attempt}]"
            ended = (line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n"))
            self._terminal.write("".join(f"{prefix} {components.printable(line, chr(9))}\n" for line in ended))
            self._terminal.flush()

    def _draw(self, now: float) -> None:
        app = self._app
        elapsed = now - app._started
        if self._quiet or (elapsed < 0.5 and not self._terminal.live):
            return
        fields = self._waiting(now) if app.pending else []
        if self._state not in ("master", "slave"):
            fields += self._progress(elapsed, bool(fields))
        if fields:
            self._terminal.status(fields)

    def _progress(self, elapsed: float, waits: bool) -> list[str]:
        """How far it is, as fields of the progress line; `waits`: it is said what it waits for."""
        step, done, known, failed = self._app._tally()
        if not known:
            silent = waits or not self._app.pending or elapsed <= self._silent
            return [] if silent else [f"no task is known yet ({elapsed:.0f} s)"]
        _, workers, busy = self._app._size
        rate = done / elapsed if elapsed else 0.0
        fields = [f"step {step}"] if step > 1 else []
        fields += [self._terminal.bar(done / known), f"{done:,}/{known:,}"]
        fields += [f"{failed:,} failed"] if failed else []
        fields += [f"{busy}/{workers} busy", f"{_rate(rate)}/s"]
        if known > done > min(20, known * 0.05):
            fields.append(f"ETA {(known - done) / rate:,.0f} s")
        return fields


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 9.5 else f"{a_second:.2g}"


class Events:
    """What happens, as an object a line: accepted, progress (at most one a second), step, failed, done."""

    def __init__(self, app: ApplicationNode, stream: Any):
        self._app, self._stream = app, stream
        self._next, self._accepted, self._failed = 0.0, 0, 0
        self._ended: set[int] = set()  # systems whose failures were told

    def say(self, event: str, **facts: Any) -> None:
        """Writes one."""
        elapsed = round(time.monotonic() - self._app._started, 3) if self._app._started else 0.0
        print(_as_json({"event": event, "t": elapsed, **facts}), file=self._stream, flush=True)

    def tick(self, now: float) -> None:
        """Says how far it is, if it is time."""
        if now < self._next:
            return
        self._next = now + 1.0
        self.catch_up()
        step, done, known, failed = self._app._tally()
        _, workers, busy = self._app._size
        if known:
            rate = done / max(now - self._app._started, 1e-6)
            self.say("progress", step=step, done=done, tasks=known, failed=failed, workers=workers, busy=busy,
                     rate=round(rate, 1), eta_s=round((known - done) / rate, 1) if done else None)

    def catch_up(self) -> None:
        """Says what was accepted and what failed since the last time; of a system's tasks, once it has ended."""
        app, failures = self._app, self._app._owner.failures[self._failed :]
        if app._accepted > self._accepted:
            self._accepted = app._accepted
            self.say("accepted", tasks=self._accepted)
        self._failed += len(failures)
        for number in app._ended.keys() - self._ended:
            self._ended.add(number)
            failures += app._ended[number].get("failures", ())
        for task_id, failure in failures:
            told = {key: failure.get(key, "") for key in ("type", "message", "slave")}
            self.say("failed", task=task_id, **told, where=app._shown(failure.get("where", "")))


def _as_json(about: dict) -> str:
    """A line of JSON, whatever the application has left as its result."""
    try:
        return json.dumps(about, default=str, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # such as keys that are tuples
        return json.dumps({**about, "result": str(about.get("result"))}, default=str)


def explained(about: dict) -> list[str]:
    """The lines that tell a person where a task is and what it waits for, from the master's answer."""
    head = " ".join(filter(None, (about["task"], about.get("name"))))
    if about["state"] == "unknown":
        return [f"{head} is not here: {about['why']}"]
    if about["state"] == "settled":
        return [f"{head} has ended, and its owner has its outcome"]
    if about["state"] == "ended":
        failure = about["failure"]
        how = f"failed with {': '.join(filter(None, (failure['type'], failure['message'])))}" if failure else "is done"
        where = f" on {about['slave']}" if about["slave"] else ""
        return [f"{head} {how}{where}; its owner has not taken its outcome in yet"]
    if about["state"] == "delayed":
        return [f"{head} has failed, and runs again in {about['in']:.1f} s, attempt {about['attempt']}"]
    return _explained_lease(head, about) if about["state"] == "running" else _explained_wait(head, about)


def _explained_lease(head: str, about: dict) -> list[str]:
    slots, before = about["slots"], about["before"]
    waits = f", behind {before} earlier leases on {slots} slots" if before >= slots else ""
    tasks = "alone" if about["first"] == about["last"] else f"in a lease of {about['first']} to {about['last']}"
    return [f"{head} is with {about['slave']} for {about['since']:.1f} s, {tasks}, attempt {about['attempt']}{waits}"]


def _explained_wait(head: str, about: dict) -> list[str]:
    needs = [f"{amount:g} {name}" for name, amount in about["needs"].items()]
    needs += [f"the tag {tag}" for tag in about["tags"]]
    lines = [f"{head} waits for {about['here']:.1f} s, attempt {about['attempt']}; it needs {', '.join(needs)}"]
    if about["unplaceable"]:
        end = "it waits for one that comes" if about["fails_in"] is None else f"it fails in {about['fails_in']:.0f} s"
        lines.append(f"  {about['unplaceable']}: {end}")
    lines += ["  paused   by a person: nothing of it is leased until somebody lets it go on"] if about["paused"] else []
    lines.append(f"  ahead    {about['ahead']:,} tasks of the same owner")
    turns = [f"{turn['owner']} ({turn['tasks']:,} tasks)" for turn in about["turns"]]
    lines.append(f"  turns    {', '.join(turns)}")
    lines += [f"  user     {about['behind']}"] if about["behind"] else []
    lines += [f"  {name:8} {obstacle or 'has room'}" for name, obstacle in about["slaves"].items()]
    return lines if about["slaves"] else [*lines, "  no slave is here"]


def summary(app: ApplicationNode, code: int) -> dict:
    """How a run ended, as the object that `--json` prints."""
    elapsed = time.monotonic() - app._started if app._started else 0.0
    plain = {key: getattr(app._owner, key) for key in ("done", "failed", "seconds")}
    done, failed, seconds, steps = (sum(one.get(key, 0) for one in (plain, *app._ended.values()))
                                    for key in ("done", "failed", "seconds", "steps"))
    tasks_done = done + failed
    about = {
        "ok": code == 0, "exit": code, "app": type(app).__name__, "systems": list(app._names.values()),
        "detached": app._detached,
        "tasks": tasks_done, "done": done, "failed": failed, "steps": steps,
        "elapsed_s": round(elapsed, 3), "rate": round(tasks_done / elapsed, 1) if elapsed else 0.0,
        "workers": app.workers, "slaves": app.slaves,
        "speedup": {"value": round(seconds / elapsed, 2) if elapsed else 0.0, "kind": "task_time"},
        "task_seconds": round(seconds, 3), "cpu_s": round(time.process_time() - app._cpu, 3),
        "in_line_s": round(_seconds_in_line() - app._in_line, 3), "result": app.result,
        "errors": group_failures(app._failures(), app._shown), "output_dropped": app.output_dropped,
        "error": describe_end(app), "page": app.swarm.watch.place or None,
    }
    return {**about, "worker_time": worker_time(app, seconds), "hints": hints(app, about)}


def worker_time(app: ApplicationNode, seconds: float) -> dict | None:
    """What the workers did while the application ran, in shares of 1; None if nothing is known of it."""
    slots = app.swarm.watch.slot_seconds
    if not (app._work and app._work[0] and slots):
        return None
    mine, moving, _, everybody = app._work
    shares = {"computing": (1 - moving / mine) * seconds / slots, "moving": moving / mine * seconds / slots,
              "others": max(0.0, everybody - mine - app._others_before) / slots}
    shares["waiting"] = max(0.0, 1 - sum(shares.values()))
    return {name: round(share, 3) for name, share in shares.items()}


def _seconds_in_line() -> float:
    """How long this process's main thread has waited for a processor, where the kernel counts that."""
    with contextlib.suppress(OSError), open("/proc/self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


def describe_end(app: ApplicationNode) -> dict | None:
    """The error that ended the application, if one did."""
    if app.error is None:
        return None
    failure = getattr(app.error, "failure", None) or tasks.describe_failure(app.error, str(app._bundle.root))
    keys = ("type", "message", "where", "traceback", "hook", "output")
    return {key: app._shown(failure.get(key, "")) for key in keys}


def group_failures(failures: list, shown: Callable[[str], str]) -> list[dict]:
    """Failures of the same type at the same place as one: how many, of which tasks, with the traceback of the first."""
    groups: dict[tuple, dict] = {}
    for task_id, failure in sorted(failures, key=lambda pair: (len(pair[0]), pair[0])):  # c1.9 is before c1.10
        key = failure.get("type"), failure.get("where")
        group = groups.setdefault(key, {
            "type": failure.get("type"), "message": failure.get("message"), "where": shown(failure.get("where", "")),
            "kind": failure.get("kind"), "count": 0, "tasks": [], "slaves": [], "attempts": 1,
            "traceback": shown(failure.get("traceback", "")), "hidden": failure.get("hidden", ""),
            "output": failure.get("output", ""),
        })
        group["count"] += 1
        group["tasks"].append(task_id)
        group["slaves"] = sorted({*group["slaves"], failure.get("slave", "")} - {"", "here"})
        group["attempts"] = max(group["attempts"], failure.get("attempt", 1))
    return sorted(groups.values(), key=lambda group: -group["count"])


def print_end(about: dict, terminal: components.Terminal, options: argparse.Namespace) -> None:
    """The lines at the end of a run, to stderr: what was done, or what failed and why."""
    say, full, again = functools.partial(print, file=sys.stderr), options.full_traceback, _again(options)
    system = f"system{'s' * (len(about['systems']) > 1)} {', '.join(about['systems'])} " * bool(about["systems"])
    head = f"FAILED   {system}{about['app']}: "
    if about["errors"]:
        counts = f"{about['failed']:,} of {about['tasks']:,} tasks failed, {about['done']:,} done"
        say(terminal.paint(f"{head}{counts}, {about['elapsed_s']:.1f} s", "31"))
        for group in about["errors"]:
            _print_group(group, full, terminal, say)
        told = sum(group["count"] for group in about["errors"])
        if told < about["failed"]:
            say(f"\nof {about['failed']:,} failed tasks the first {told:,} are counted above")
    if about["error"]:
        where = f" in {about['error']['hook']}" if about["error"]["hook"] else ""
        say(terminal.paint(f"{head}{about['error']['type']}{where}: {about['error']['message']}", "31"))
        if about["error"]["traceback"]:
            say(_indent(about["error"]["traceback"]))
        _print_output(about["error"]["output"], full, say)
    if about["detached"]:
        given = [("--master", options.master), ("--access", options.access)]
        where = shlex.join(word for pair in given if pair[1] for word in pair)
        for name in about["systems"]:
            say(f"detached system {name} goes on; collect it: {again} --collect {name} {where}".rstrip())
    elif about["errors"] or about["error"]:
        say(f"\ndebug here: {again} --workers 0 --pdb")
        if about["replays"]:
            words = [*_file(options), "--replay", about["replays"][0], *options.replays.place()]
            say(f"replay: {shlex.join(['python', 'client.py', *words])}")
    elif about["tasks"]:
        steps = f" in {about['steps']} steps" if about["steps"] > 1 else ""
        say(f"done     {_count(about['tasks'], 'task')}{steps}, {about['elapsed_s']:.1f} s, {_rate(about['rate'])} "
            "tasks/s, 0 failed")
        if about["workers"] and (about["task_seconds"] > 1 or about["speedup"]["kind"] == "measured"):
            _print_speedup(about, say)
        for hint in about["hints"]:
            say(f"hint     {hint}")


def _again(options: argparse.Namespace) -> str:
    """The command that runs the same application."""
    return shlex.join(["python", "client.py", *_words(options)])


def _print_speedup(about: dict, say: Callable) -> None:
    value, base = about["speedup"]["value"], about["speedup"].get("base_s", about["task_seconds"])
    workers = _count(about["workers"], "worker")
    against = f"against {base:.1f} s of task time one after the other"
    if about["speedup"]["kind"] == "measured":
        against = f"measured: {base:.2f} s of processor time by {about['speedup']['base']}"
    say(f"speedup  {value:.1f}x on {workers} ({100 * value / about['workers']:.0f} %), {against}")
    if about["worker_time"]:
        shares = {name: f"{100 * share:.0f} %" for name, share in about["worker_time"].items()}
        others = f", working for others {shares['others']}" if about["worker_time"]["others"] >= 0.005 else ""
        say(f"         {workers}: computing {shares['computing']}, waiting for work {shares['waiting']}, "
            f"moving data {shares['moving']}{others}")


def hints(app: ApplicationNode, about: dict) -> list[str]:
    """What would make the next run faster, as far as this one shows it; nothing if it was short or went well."""
    watch, elapsed, tasks_done, workers = app.swarm.watch, about["elapsed_s"], about["tasks"], about["workers"]
    busy = about["task_seconds"] / (watch.slot_seconds or math.inf)
    if isinstance(app.swarm, Inline) or elapsed < HINT_FROM or not tasks_done or busy > 0.7:
        return []
    mean, late = about["task_seconds"] / tasks_done, elapsed - (watch.full_at - app._started)
    size = app._work[2] if app._work else 0
    if tasks_done < workers:
        return [f"{_count(tasks_done, 'task')} for {workers} workers: {workers - tasks_done} had nothing to do. "
                f"Cut the work into {4 * workers} tasks or more"]
    if size / elapsed > LARGE_RESULTS:
        return [f"results are large ({size / 2**20:,.0f} MiB, {size / 2**20 / tasks_done:.1f} MiB each): to bring them "
                "home takes longer than to make them. Let tasks return less"]
    if mean < SHORT_TASK:
        together = 10 ** math.ceil(math.log10(10 * SHORT_TASK / max(mean, 1e-6)))
        return [f"tasks are very short ({_duration(mean)} on average): to hand them out takes longer than to run them. "
                f"Put about {together:,} in one task"]
    if watch.full_at and late > max(1.0, 0.3 * elapsed):
        return [f"in the last {late:.1f} s of {elapsed:.1f} s not all workers had work: begin with the tasks that take "
                "longest, or cut them"]
    return []


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds * 1e6:.2g} us"


def _print_group(group: dict, full: bool, terminal: components.Terminal, say: Callable) -> None:
    message = components.printable(group["message"].splitlines()[0][:200]) if group["message"] else ""
    say("\n" + terminal.beside(f"{group['count']} x {group['type']}: {message}", group["where"]))
    say(f"    {_whose(group)}")
    lines = group["traceback"].removeprefix(f"{TRACEBACK}\n").rstrip().splitlines()
    missing = re.fullmatch(r"No module named '([\w.]+)'", message)
    if missing:
        name, slaves = missing[1].partition(".")[0], group["slaves"]
        away = f", or keep {slaves[0]} out: client.py --drain {slaves[0]}" if slaves else ""
        say(f'    fix: requirements = ["{name}"] in the application, or {name} beside its file{away}')
    if "SIGKILL" in message:
        say("    if nobody killed it, the machine had no memory left: fewer --workers, or a memory_limit of the task")
    hidden = group["hidden"].splitlines()
    if full and hidden:
        say(_indent("\n".join(f"  framework: {frame}" for frame in hidden)))
    if lines:
        say(_indent("\n".join(lines if full or len(lines) <= 12 else [*lines[:1], "  …", *lines[-9:]])))
    if hidden and not full:
        say(f"    {_count(len(hidden), 'framework frame')} hidden (--full-traceback)")
    _print_output(group["output"], full, say)


def _whose(group: dict) -> str:
    """The tasks of a group of failures, where they ran, and how often."""
    names = ", ".join(task[:60] for task in group["tasks"][:5]) + " …" * (len(group["tasks"]) > 5)
    where = f" on {', '.join(group['slaves'][:5])}{' …' * (len(group['slaves']) > 5)}" if group["slaves"] else ""
    tries = f", after {group['attempts']} attempts{' each' * (group['count'] > 1)}" if group["attempts"] > 1 else ""
    return f"task{'s' * (group['count'] > 1)} {names}{where}{tries}"


def _print_output(text: str, full: bool, say: Callable) -> None:
    """The last that a failed task has printed."""
    lines = text.rstrip().splitlines()
    if lines:
        say("    its last output:")
        say(_indent("\n".join(f"  {line}" for line in (lines if full else lines[-10:]))))


def _indent(text: str) -> str:
    return "\n".join(f"    {components.printable(line)}" for line in text.rstrip().splitlines())


# -- a swarm for one run -------------------------------------------------------------------------------------------

class LocalSwarm:
    """A master and a slave on free loopback addresses, in a temporary folder, for as long as the `with` block."""

    def __init__(self, workers: str | None, settings: dict[str, list[str]], needs: dict | None = None,
                 terminal: components.Terminal | None = None):
        self._workers, self._settings, self._terminal = workers, settings, terminal or components.Terminal()
        self._reached = [os.path.realpath(path) for name in ("read", "write") for path in (needs or {}).get(name, ())]
        self._children: list[tuple[subprocess.Popen, socket.socket, threading.Thread]] = []

    def __enter__(self) -> "LocalSwarm":
        self.folder = tempfile.mkdtemp(prefix="concurrent-", dir=self._place())
        try:
            self.address = self._start("master", "--port", "0", "--no-journal")["address"]
            self.access = os.path.join(self.folder, "master", "keys", "client.access")
            access = os.path.join(self.folder, "master", "keys", "slave.access")
            workers = ["--workers", self._workers] if self._workers else []
            self._start("slave", "--master", self.address, "--access", access, *workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _place(self) -> str | None:
        """Where the folder lies: not where the application may reach its keys, if there is such a place."""
        places = [os.path.realpath(path) for path in (tempfile.gettempdir(), "/var/tmp") if os.path.isdir(path)]
        return next((p for p in places if not any(os.path.commonpath([p, one]) == one for one in self._reached)), None)

    def __exit__(self, *_: Any) -> None:
        for process, line, listener in reversed(self._children):
            line.close()  # the node follows its parent
            try:
                with self._terminal.waiting("a node of the local swarm is ending"):
                    process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            listener.join(1)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, role: str, *arguments: str) -> dict:
        """Starts a node and waits for what it says when it is ready. Raises Error if it ends instead."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", f"{__package__}.{role}", "--env", os.path.join(self.folder, role), "-q"]
        command += [word for setting in self._settings[role] for word in ("--set", setting)]
        with theirs:
            process = subprocess.Popen(
                [*command, "--parent", str(theirs.fileno()), *arguments], env=environ_of_children(self.folder),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                start_new_session=True, text=True, errors="replace",
            )
        listener = threading.Thread(target=self._listen, args=(process.stderr,), name=f"hears {role}", daemon=True)
        listener.start()
        self._children.append((process, ours, listener))
        ours.settimeout(30)
        with ours.makefile("rb") as lines, self._terminal.waiting(f"the local {role} is starting"):
            try:
                line = lines.readline()
            except TimeoutError:
                raise components.GaveUp(f"the local {role} did not start within 30 s", "the machine is busy") from None
            if not line:
                code = process.wait(5)
                listener.join(1)
                raise components.Error(f"the local {role} did not start", f"it ended with exit code {code}",
                                       f"its reason stands above; try it alone: python {role}.py")
        return json.loads(line)

    def _listen(self, said: Any) -> None:
        """Shows what a node says, the status line out of its way."""
        with said:
            for line in said:
                self._terminal.write(line)
                self._terminal.flush()


def environ_of_children(state: str) -> dict[str, str]:
    """The environment variables of processes that import what this one can, with a state folder of their own."""
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**os.environ, "PYTHONPATH": path, "CONCURRENT_SWARM_STATE": state}


# -- measuring -----------------------------------------------------------------------------------------------------

class Bench:
    """Runs an application again and again, each time as a client in a process of its own, and compares the times."""

    def __init__(self, options: argparse.Namespace, terminal: components.Terminal):
        self._options, self._terminal = options, terminal

    def sequential(self, times: int) -> dict:
        """The best of so many runs without a swarm: its processor seconds, and whose way it was."""
        runs = [self._run("without a swarm", turn, times, "--sequential", "--workers", "0") for turn in range(times)]
        best = min(runs, key=_own_seconds)
        told = {key: best[key] for key in ("by", "cpu_s", "elapsed_s", "in_line_s")}
        return {**told, "base_s": _own_seconds(best), "runs": [[run["cpu_s"], run["elapsed_s"]] for run in runs],
                "result": str(best["result"])}

    def scaling(self, swarm_of: Callable, most: str | None, times: int) -> list[dict]:
        """Runs it with 1, 2, 4 … `most` workers; a row for each of these numbers."""
        rows = [self._with_workers(swarm_of, most, times)]
        most = rows[0]["workers"]
        numbers = itertools.takewhile(lambda number: number < most, (1 << power for power in itertools.count()))
        return [self._with_workers(swarm_of, str(number), times) for number in numbers] + rows

    def _with_workers(self, swarm_of: Callable, workers: str | None, times: int) -> dict:
        label = f"with {_count(int(workers), 'worker') if workers else 'all workers'}"
        with swarm_of(workers) as swarm:
            words = ["--master", swarm.address, "--access", swarm.access, "--env", os.path.join(swarm.folder, "client")]
            runs = [self._run(label, turn, times, *words) for turn in range(times)]
        best = min(runs, key=lambda run: run["elapsed_s"])
        return {"workers": best["workers"], "best_s": best["elapsed_s"], "task_seconds": best["task_seconds"],
                "runs": [run["elapsed_s"] for run in runs], "results": sorted({str(run["result"]) for run in runs})}

    def _run(self, label: str, turn: int, times: int, *words: str) -> dict:
        """One run. Raises Error if it fails, with what it says."""
        command = [sys.executable, "-m", f"{__package__}.client", *_words(self._options), "--json", "-q", *words]
        environ = environ_of_children(str(components.state_root()))
        with tempfile.TemporaryFile("w+") as said, self._terminal.waiting(f"{label}, run {turn + 1} of {times}", 10):
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=said, text=True)
            try:
                out, _ = process.communicate(timeout=self._options.timeout)
            except subprocess.TimeoutExpired:
                raise components.GaveUp(f"the run {label} took more than {self._options.timeout:g} s") from None
            finally:
                process.kill()
            about = json.loads(out.splitlines()[-1]) if out.strip() else {"ok": False}
            if about["ok"]:
                return about
            said.seek(0)
            raise components.Error(f"the run {label} failed", said.read().strip()[-1000:] or _first_error(about),
                                   "what fails cannot be measured: run it alone first")


def _own_seconds(run: dict) -> float:
    """What a sequential run costs one processor: waiting is no work, and who uses several has no more than the time."""
    return min(run["cpu_s"], run["elapsed_s"])


def _first_error(about: dict) -> str:
    errors = [about["error"]] if about.get("error") else about.get("errors", [])
    return f"{errors[0]['type']}: {errors[0].get('message') or errors[0].get('what')}" if errors else "it said nothing"


def _words(options: argparse.Namespace) -> list[str]:
    """Which application, of which file, with which settings."""
    words = ["--app", options.chosen] if options.chosen else []
    return [*_file(options), *words, *(word for one in options.set for word in ("--set", one))]


def _file(options: argparse.Namespace) -> list[str]:
    return [options.app] if options.app else ["-m", options.module]


def bench(options: argparse.Namespace, swarm_of: Callable) -> int:
    """`--bench`: measures, writes the picture and the figures, prints the table. Returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(components.EXIT_TERMINATED))
    times, made = options.repeat or 3, Bench(options, components.Terminal(color=options.color))
    base = made.sequential(times)
    rows = made.scaling(swarm_of, options.workers, times)
    for row in rows:
        row["speedup"] = base["base_s"] / row["best_s"]
        row["by_clock"] = base["elapsed_s"] / row["best_s"]
        row["efficiency"] = row["speedup"] / row["workers"]
        row["idle"] = max(0.0, 1 - row["task_seconds"] / (row["best_s"] * row["workers"]))
    cpus = tasks.usable_cpus()
    fit = amdahl([(row["workers"], row["best_s"]) for row in rows if row["workers"] <= cpus])
    name = Path(options.app).resolve().stem if options.app else options.module.rpartition(".")[2]
    about = {"ok": True, "exit": 0, "app": name, "sequential": base, "rows": rows, "repeat": times,
             "p": fit and fit[1] / sum(fit), "fixed_s": fit and fit[0], "shared_s": fit and fit[1],
             "processors": cpus, "machine": platform.machine(), "system": platform.platform(),
             "python": platform.python_version(), "version": components.__version__,
             "same_result": len({base["result"], *(one for row in rows for one in row["results"])}) == 1}
    if not options.json:
        print("\n".join(table(about)), flush=True)  # first: it took long, and files may not be written
    try:
        for path, text in ((f"{name}-bench.json", json.dumps(about, indent=1)), (f"{name}-scaling.svg", draw(about))):
            with components.replacing(path) as file:
                file.write(text.encode() + b"\n")
    except OSError as error:
        raise components.Error(f"figures and picture cannot be written to {os.getcwd()}", components.describe(error),
                               "run it in a folder of yours") from None
    if options.json:
        print(json.dumps(about), flush=True)
    if not options.quiet:
        print(f"wrote    {name}-scaling.svg, {name}-bench.json", file=sys.stderr)
    return components.EXIT_OK


def amdahl(points: list[tuple[int, float]]) -> tuple[float, float] | None:
    """Amdahl's law through (workers, seconds): the seconds that stay whatever the number of workers, and those that
    they share; the fit with the least squares, or None for less than two numbers of workers.

    >>> amdahl([(1, 4.0), (2, 2.5), (4, 1.75)])
    (1.0, 3.0)
    """
    if len(dict(points)) < 2:
        return None
    xs, ys = [1 / workers for workers, _ in points], [seconds for _, seconds in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    shared = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    if shared <= 0:
        return y, 0.0
    if y < shared * x:  # even better: nothing stays
        return 0.0, sum(a * b for a, b in zip(xs, ys, strict=True)) / sum(a * a for a in xs)
    return round(y - shared * x, 9), round(shared, 9)


def table(about: dict) -> list[str]:
    """The lines of `--bench`."""
    base, cpus = about["sequential"], about["processors"]
    each = f"the best of {about['repeat']} runs" if about["repeat"] > 1 else "one run"
    lines = [f"bench    {about['app']}: {each} each",
             f"         without a swarm {base['base_s']:.2f} s of processor time by {base['by']}",
             "workers   seconds   slowest   speedup   by clock   efficiency   task time   idle"]
    for row in about["rows"]:
        times = f"{row['workers']:7}  {row['best_s']:8.2f}  {max(row['runs']):8.2f}"
        ratios = f"{row['speedup']:7.2f}x  {row['by_clock']:7.2f}x  {100 * row['efficiency']:9.0f} %"
        idle = f"{row['task_seconds']:8.2f} s  {100 * row['idle']:3.0f} %"
        lines.append(f"{times}  {ratios}  {idle}{' *' if row['workers'] > cpus else ''}")
    if about["rows"][-1]["workers"] > cpus:
        lines.append(f"* more workers than processors ({cpus}): not in the fit")
    lines += [_amdahl_in_words(about)] if about["p"] is not None else []
    waits = base["elapsed_s"] - base["base_s"] - base["in_line_s"]
    if base["base_s"] < HINT_FROM:
        lines.append(f"Too short to say much: give it work for {HINT_FROM:.0f} s or more")
    if base["in_line_s"] > 0.1 * base["elapsed_s"]:
        lines.append(f"Others use this machine: for {base['in_line_s']:.2f} s the run without a swarm waited for a "
                     "processor. Measure again when it is quiet")
    if waits > 0.1 * base["elapsed_s"]:
        lines.append(f"It waits: without a swarm {waits:.2f} s of {base['elapsed_s']:.2f} s are no work of a "
                     'processor; "by clock" counts them, "speedup" does not')
    return lines if about["same_result"] else [*lines, "The runs had different results: see the figures"]


def _amdahl_in_words(about: dict) -> str:
    fixed, shared = about["fixed_s"], about["shared_s"]
    limit = f"at most {about['sequential']['base_s'] / fixed:,.1f}x with any number" if fixed else "no limit is seen"
    return (f"Amdahl   p = {about['p']:.3f}: of {fixed + shared:.2f} s with one worker {shared:.2f} s are shared by "
            f"all workers, {fixed:.2f} s are not: {limit}")


def draw(about: dict) -> str:
    """The picture of a scaling, as SVG: measured speedups, from the slowest to the best run, what Amdahl's law allows,
    and one for each worker; both axes begin at nothing."""
    rows, base, fixed = about["rows"], about["sequential"]["base_s"], about["fixed_s"]
    most = max(row["workers"] for row in rows)
    top = max(most, *(row["speedup"] for row in rows))

    def at(workers: float, speedup: float) -> tuple[float, float]:
        return 60 + 480 * workers / most, 350 - 280 * speedup / top

    parts = [_line(at(0, 0), at(most, most), stroke="#aaa", stroke_dasharray="4 4"),
             _line(at(0, 0), at(most, 0)), _line(at(0, 0), at(0, top))]
    if about["p"]:
        steps = [1 + (most - 1) * step / 50 for step in range(51)]
        law = [at(n, base / (fixed + about["shared_s"] / n)) for n in steps]
        parts += [_line(*ends, stroke="#1f5fa8", stroke_width="2") for ends in itertools.pairwise(law)]
        parts.append(_text((75, 62), f"Amdahl's law, p = {about['p']:.3f}", fill="#1f5fa8"))
    for row in rows:
        x, y = at(row["workers"], row["speedup"])
        parts += [_line((x, y), at(row["workers"], base / max(row["runs"])), stroke="#b9562d"),
                  f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#b9562d"/>',
                  _text((x + 9, y + 15), f"{row['speedup']:.2f}x"),
                  _text((x, 370), str(row["workers"]), text_anchor="middle"),
                  _line(at(0, row["workers"]), at(most, row["workers"]), stroke="#eee"),
                  _text((52, at(0, row["workers"])[1] + 4), f"{row['workers']}x", text_anchor="end")]
    parts += [_text((60, 24), f"{about['app']}: speedup over {about['sequential']['by']}", font_weight="bold"),
              _text((75, 44), "one for each worker", fill="#888"), _text((300, 392), "workers", text_anchor="middle")]
    title, words = html.escape(f"Speedup of {about['app']}"), html.escape("; ".join(
        f"{_count(row['workers'], 'worker')}: {row['speedup']:.2f}x" for row in rows))
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 400" font-family="sans-serif" font-size="13" '
            f'role="img" aria-label="{title}"><title>{title}</title><desc>{words}</desc>'
            f'<rect width="620" height="400" fill="#fff"/>{"".join(parts)}</svg>')


def _line(start: tuple, end: tuple, **more: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {_attributes({"stroke": "#333", **more})}/>'


def _text(place: tuple, words: str, **more: str) -> str:
    return f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" {_attributes(more)}>{html.escape(words)}</text>'


def _attributes(named: dict) -> str:
    return " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in named.items())


# -- asking a master -----------------------------------------------------------------------------------------------

def ask(options: argparse.Namespace) -> int:
    """`--explain`, `--status`, `--cancel`, `--drain`: asks the master and prints its answer. Returns the exit code."""
    given = rpc.configuration("client", options).get(ClientNode.master_address)
    address = rpc.address_of_master(options.master or given, options.access)
    made = functools.partial(rpc.Proxy, address, certificate=rpc.certificate_of("client", address, options.access))
    with components.Terminal().waiting(f"{address} has not answered yet"), contextlib.closing(made()) as proxy:
        if options.cancel or options.drain:
            proxy.ping()  # before the question who may
            with contextlib.closing(made(rpc.token_of(address, options.access))) as proxy:
                about, lines = _order(proxy, options)
        elif options.explain:
            about = proxy.task.explain(options.explain)
            lines = explained(about)
        else:
            about = _status_of(proxy)
            lines = status_lines(about)
    if options.watch:
        return _watch_status(made(), options.json)
    print(json.dumps(about) if options.json else "\n".join(lines), flush=True)
    return components.EXIT_FAILED if about.get("state") == "unknown" else components.EXIT_OK


def _order(proxy: rpc.Proxy, options: argparse.Namespace) -> tuple[dict, list[str]]:
    """Has a system ended, or a slave leave; returns what that was."""
    if options.cancel:
        about, what = {"cancelled": options.cancel}, f"system {options.cancel} is cancelled"
        told = proxy.system.cancel(options.cancel)
    else:
        about, what = {"draining": options.drain}, f"slave {options.drain} ends what it runs, takes no more, and leaves"
        told = proxy.slave.drain(options.drain)
    counts = told if isinstance(told, dict) else {}
    numbers = ", ".join(f"{counts[key]:,} {key}" for key in ("waiting", "running") if key in counts)
    return {"ok": True, **about, **counts}, [f"{what}{f' ({numbers})' * bool(numbers)}"]


def _status_of(proxy: rpc.Proxy) -> dict:
    names = ("status", "slaves", "systems")
    answers = dict(zip(names, proxy.batch((name, []) for name in names), strict=True))
    for answer in answers.values():
        if isinstance(answer, rpc.RpcError):
            raise answer
    return answers


def _watch_status(proxy: rpc.Proxy, as_json: bool) -> int:
    """Prints it each second, in place on a terminal, until Ctrl-C; a master that is away for a while is waited for."""
    live = components.Terminal(sys.stdout).live and not as_json
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may have it ignored
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                about = _status_of(proxy)
                lines = [json.dumps(about)] if as_json else status_lines(about)
            except components.Unreachable as error:
                lines = [json.dumps({"ok": False, "error": _told(error)})] if as_json else [f"no answer: {error.what}"]
            if live:
                columns, rows = shutil.get_terminal_size()
                lines = [f"{line[:columns]}\x1b[K" for line in lines[: rows - 1]]  # nothing flickers, as none is wiped
                lines = ["\x1b[H" + lines[0], *lines[1:], "\x1b[J"]
            print("\n".join(lines), end="" if live else "\n", flush=True)
            time.sleep(1.0)
    print("\n" * live, end="")
    return components.EXIT_OK


def _told(error: components.Error) -> dict:
    return {"type": type(error).__name__, "message": error.what, "why": error.why, "fix": error.fix}


def status_lines(about: dict) -> list[str]:
    """How a swarm stands, as a page of text: what is wrong, the sums, its systems, its slaves."""
    status, slaves, systems = about["status"], about["slaves"], about["systems"]
    lines = [f"master {status['addresses']['http']}, up {_span(status['uptime'])}, Concurrent {status['version']}, "
             f"Python {status['python']}"]
    lines += [f"  ! {line}" for line in _worries(status, slaves)]
    share = f" ({100 * status['busy'] / status['workers']:.0f} %)" if status["workers"] else ""
    counts = ", ".join(f"{status[key]:,} {key}" for key in ("queued", "done", "failed"))
    lines.append(f"  {_count(status['slaves'], 'slave')}, {status['busy']}/{status['workers']} workers busy{share}, "
                 f"{counts}, {_count(len(status['clients']), 'client')}")
    rows = [["system", "app", "client", "step", "done", "since"]]
    rows += [[one["name"], one["app"], one["client"], str(one["step"]), f"{one['done']:,}/{one['tasks']:,}",
              _span(one["elapsed"])] for one in systems]
    lines += ["", *_aligned(rows)] if systems else ["", "no task system runs"]
    rows = [["slave", "workers", "leases", "tasks", "done", "state"]]
    rows += [[one["name"], str(one["workers"]), str(one["leases"]), f"{one['tasks']:,}", f"{one['done']:,}",
              _state(one)] for one in slaves]
    lonely = f"no slave is here; start one: python slave.py --master {status['addresses']['http']}"
    return [*lines, "", *(_aligned(rows) if slaves else [lonely])]


def _worries(status: dict, slaves: list[dict]) -> list[str]:
    found = [] if status["storage"] == "ok" else [f"storage: {status['storage']}"]
    found += [f"{one['name']} is in quarantine for {one['quarantine']:.0f} s: tasks failed there and not elsewhere"
              for one in slaves if one["quarantine"]]
    found += [f"{one['tasks']:,} tasks fit no slave: {one['why']}" for one in status["unplaced"]]
    return list(map(components.printable, found))


def _state(slave: dict) -> str:
    return "draining" if slave["draining"] else "quarantine" if slave["quarantine"] else "up"


def _span(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {seconds} s" if minutes else f"{seconds} s"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as columns; those whose first value is a number stand to the right."""
    columns = [list(map(components.printable, column)) for column in zip(*rows, strict=True)]
    made = []
    for column in columns:
        width, right = max(map(len, column)), column[1][:1].isdigit()
        made.append([text.rjust(width) if right else text.ljust(width) for text in column])
    return ["  ".join(row).rstrip() for row in zip(*made, strict=True)]


# -- faults for tests ----------------------------------------------------------------------------------------------

PIECE = 65_536  # bytes that a relay reads at once
GARBAGE: dict[str, Callable[[random.Random], bytes]] = {
    "http": lambda chance: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": lambda chance: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(64),
    "random": lambda chance: chance.randbytes(4096),
    "half": lambda chance: b"\xff" + bytes(8) + b"\x7f\x03\x01NU",  # of a greeting of ZeroMQ
    "silence": lambda chance: b"",
}


class Relay(threading.Thread):
    """Passes TCP connections on to an address, as well or badly as it is told; `address` is where it listens.

    `there` and `back`, for the two directions, are "pass", "hold" (as in a network that is cut: nothing arrives, no new
    connection and no end of one either, and all of it later once it is "pass" again) or "drop" (bytes vanish for good).
    `delay`: seconds that everything takes. All of them may be changed at any time.
    """

    def __init__(self, target: str, host: str = "127.0.0.1", port: int = 0):
        super().__init__(name=f"relay to {target}", daemon=True)
        self.target = rpc.parse_address(target)
        self.there = self.back = "pass"
        self.delay = 0.0
        self.resets = 0  # connections that were cut
        self._listener = socket.create_server((host, port), backlog=1024)
        self.address = rpc.format_address(*self._listener.getsockname()[:2])
        self._streams: list[_Stream] = []
        self._cut = self._closed = False
        self.start()

    def reset(self) -> None:
        """Cuts all connections, as a router does that has forgotten them: both ends get an RST."""
        self._cut = True

    def close(self) -> None:
        """Ends all connections and stops listening."""
        self._closed = True
        self.join()

    def run(self) -> None:
        """The thread: reads what comes, and hands on what is due."""
        while not self._closed:
            self._read(2 if any(stream.late for stream in self._streams) else 20)
            now = time.monotonic()
            if self._cut:
                self._cut = False
                self.resets += len(self._streams) // 2
                self._end(self._streams, hard=True)
            for stream in self._streams:
                stream.write(now, getattr(self, stream.way))
            self._end([stream for stream in self._streams if stream.broken], hard=True)
            self._end([stream for stream in self._streams if stream.over and stream.other.over])
        self._end(self._streams)
        self._listener.close()

    def _read(self, milliseconds: int) -> None:
        poller, known = select.poll(), {self._listener.fileno(): None} if self.there != "hold" else {}
        known |= {stream.source.fileno(): stream for stream in self._streams if stream.wants}
        for number in known:
            poller.register(number, select.POLLIN)
        for number, _ in poller.poll(milliseconds):
            stream = known[number]
            if stream is None and self.there != "hold":  # it may have become so meanwhile
                self._accept()
            elif stream:
                stream.read(time.monotonic() + self.delay, getattr(self, stream.way))

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self.target, 5)
        except OSError as error:
            log.debug("%s: %s", self.name, error)
            near.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there, back = _Stream(near, far, "there"), _Stream(far, near, "back")
        there.other, back.other = back, there
        self._streams += [there, back]

    def _end(self, streams: list, hard: bool = False) -> None:
        """Closes the connections of these streams; `hard`: with an RST to both ends."""
        ends = {end for stream in streams for end in (stream.source, stream.sink)}
        for end in ends:
            if hard:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
        self._streams = [stream for stream in self._streams if stream.source not in ends]


class _Stream:
    """One direction of a connection through a relay: what was read, and when it is to arrive."""

    def __init__(self, source: socket.socket, sink: socket.socket, way: str):
        self.source, self.sink, self.way = source, sink, way
        self.other = self
        self.late: collections.deque[tuple[float, bytes | None]] = collections.deque()
        self.wants = True  # more from its source
        self.broken = self.over = False

    def read(self, due: float, mode: str) -> None:
        """Takes what has come; the end of the stream is an empty piece, a reset None."""
        try:
            data = self.source.recv(PIECE)
        except OSError:
            data = None
        if not data or mode != "drop":
            self.late.append((due, data))
        self.wants = bool(data) and len(self.late) < 64

    def write(self, now: float, mode: str) -> None:
        """Hands on what is due."""
        while self.late and self.late[0][0] <= now and mode != "hold" and not self.broken:
            due, data = self.late.popleft()
            try:
                sent = self.sink.send(data) if data else self._end(data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the receiver is gone: the sender hears of it by the other direction
                self.other.late.append((now, None))
                break
            if data and sent < len(data):
                self.late.appendleft((due, data[sent:]))
                break
        ending = self.over or (self.late and not self.late[-1][1])
        self.wants = not ending and len(self.late) < 64

    def _end(self, data: bytes | None) -> int:
        self.over, self.broken = True, data is None
        if data is not None:
            self.sink.shutdown(socket.SHUT_WR)
        return 0


# What a process does at its start that follows a nemesis: its time is that of the file "clock", and writing, as SQLite
# does it, takes as long as the file "disk" says. SQLite has a way to replace its system calls, made for such tests.
FOLLOWS = """import atexit, ctypes, os, time
_time, _time_ns, _kept = time.time, time.time_ns, []


def _told(name):
    try:
        with open(os.path.join({folder!r}, name)) as file:
            return float(file.read())
    except (OSError, ValueError):
        return 0.0


def _slowly(name, *more):
    kind = ctypes.CFUNCTYPE(
        ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, *more, use_errno=True
    )
    real = kind((name, ctypes.CDLL(None, use_errno=True)))
    _kept.append(kind(lambda *details: time.sleep(_told("disk")) or real(*details)))
    return ctypes.cast(_kept[-1], ctypes.c_void_p)


def _slow_sqlite():
    import _sqlite3

    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.c_void_p
    vfs = library.sqlite3_vfs_find(None)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    replace = kind(ctypes.c_void_p.from_address(vfs + 18 * ctypes.sizeof(ctypes.c_void_p)).value)  # xSetSystemCall
    replace(vfs, b"write", _slowly("write"))
    for name in ("pwrite", "pwrite64"):
        replace(vfs, name.encode(), _slowly(name, ctypes.c_int64))
    atexit.register(replace, vfs, None, None)


time.time = lambda: _time() + _told("clock")
time.time_ns = lambda: _time_ns() + int(_told("clock") * 1e9)
_slow_sqlite()
"""


class Network(NamedTuple):
    """A network namespace by its `name`, and its `cable`: programs there reach this machine at `host`."""

    name: str
    host: str
    cable: str

    @property
    def command(self) -> list[str]:
        """The words before a command that runs there."""
        return ["ip", "netns", "exec", self.name]


def _ip(*words: str) -> None:
    try:
        run = subprocess.run(["ip", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise components.Error("there is no program ip", "networks are made with it", "install iproute2") from None
    if run.returncode:
        raise components.Error(f"there is no network of its own here (ip {' '.join(words)}: {run.stderr.strip()})",
                               "this takes root and a kernel with network namespaces and veth", "do without it")


class Nemesis:
    """Does to a swarm, or to any processes, what happens to them in the long run; for tests of your own, on Linux.

        with LocalSwarm("2", {"master": [], "slave": []}) as swarm, Nemesis(seed=7) as nemesis:
            ...
            nemesis.kill(nemesis.random.choice(nemesis.workers_of(slave)))

    `random` decides by the seed wherever there is a choice, and `done` tells what was done when (seconds, words). At
    the end of the block everything is undone that can be: what was stopped goes on, relays close, disks have room.
    """

    def __init__(self, seed: int = 0):
        self.random = random.Random(seed)
        self.done: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._undoing: dict[tuple, tuple[Callable, threading.Timer | None]] = {}
        self._stack = contextlib.ExitStack()
        self._folder = ""  # of `environ`

    def __enter__(self) -> "Nemesis":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._stack:
            for key in list(self._undoing):
                self._undo(key)

    # processes

    def kill(self, pid: int) -> None:
        """Ends a process at once, as a lack of memory does. One that is gone already is left alone."""
        self._note(f"kill {pid}")
        _signal(pid, signal.SIGKILL)

    def pause(self, pid: int, seconds: float | None = None) -> None:
        """Stops a process for so many seconds, or until `resume`; this call returns at once."""
        self._note(f"pause {pid} for {seconds} s")
        act, undo = (functools.partial(_signal, pid, number) for number in (signal.SIGSTOP, signal.SIGCONT))
        self._until(("pause", pid), seconds, act, lambda _: undo())

    def resume(self, pid: int) -> None:
        """Lets a stopped process go on."""
        self._undo(("pause", pid))

    def nodes(self, role: str) -> list[int]:
        """The masters or slaves (`role`) that this process, or one that it has started, runs."""
        found, below = [], tasks.children_of(os.getpid())
        while below:
            pid = below.pop()
            words = {os.path.basename(word) for word in _command_of(pid).split(b"\0")[:4]}
            found += [pid] if {f"{role}.py".encode(), f"{__package__}.{role}".encode()} & words else []
            below += tasks.children_of(pid)
        return sorted(found)

    def workers_of(self, slave: int) -> list[int]:
        """The worker processes of the slave with this process id."""
        zygotes = [child for child in tasks.children_of(slave) if b"spawn_main" in _command_of(child)]
        return [worker for zygote in zygotes for worker in tasks.children_of(zygote)]

    def full_disk(self, pid: int, seconds: float | None = None, room: int = 0) -> None:
        """No file of the process may grow beyond `room` bytes, for so many seconds or until `free_disk`. Writing fails
        with EFBIG, where a disk that is full says ENOSPC. Processes that it has started have room."""
        self._note(f"no room for files of {pid} for {seconds} s")
        self._until(("disk", pid), seconds, lambda: _limit_files(pid, room), lambda before: _limit_files(pid, before))

    def free_disk(self, pid: int) -> None:
        """There is room again."""
        self._undo(("disk", pid))

    def environ(self) -> dict[str, str]:
        """Environment variables for Python processes that are to follow `jump` and `slow_disk` while they run."""
        if not self._folder:
            self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="concurrent-nemesis-"))
            with open(os.path.join(self._folder, "sitecustomize.py"), "w") as file:
                file.write(FOLLOWS.format(folder=self._folder))
        path = [path for path in (self._folder, os.environ.get("PYTHONPATH")) if path]
        return {"PYTHONPATH": os.pathsep.join(path)}

    def jump(self, seconds: float) -> None:
        """Sets `time.time` in processes that were started with `environ` to so many seconds off the true time."""
        self._note(f"clocks are {seconds:.0f} s off")
        self._tell("clock", seconds)

    def slow_disk(self, seconds: float) -> None:
        """Each writing of SQLite (a journal's) takes so much longer in processes that were started with `environ`."""
        self._note(f"disks take {seconds} s")
        self._tell("disk", seconds)

    # the network

    def relay(self, target: str, host: str = "127.0.0.1", port: int = 0) -> Relay:
        """A relay to an address that is closed at the end. Raises UsageError for what is no address, OSError."""
        relay = Relay(target, host, port)
        self._stack.callback(relay.close)
        return relay

    def way_in(self, master: str) -> tuple[list[Relay], list[str]]:
        """Relays to both channels of a master, and the words that make a node or a client take them; its command needs
        its access file too. A master that starts again under another port is not found: give it `--port` and
        `master.compute_port`. Raises Unreachable."""
        with contextlib.closing(rpc.Proxy(master)) as proxy:
            relays = [self.relay(master), self.relay(proxy.status()["addresses"]["tcp"])]
        words = ["--master", relays[0].address, "--set", f"node.compute_address={relays[1].address}"]
        return relays, words

    def partition(
        self, relays: Iterable[Relay], seconds: float | None = None, ways: Iterable[str] = ("there", "back")
    ) -> None:
        """Nothing passes these relays, for so many seconds or until `heal`; what is sent meanwhile arrives then."""
        relays, ways = list(relays), [ways] if isinstance(ways, str) else list(ways)
        self._note(f"partition {', '.join(relay.address for relay in relays)} {'+'.join(ways)} for {seconds} s")
        for relay in relays:
            hold = functools.partial(vars(relay).update, dict.fromkeys(ways, "hold"))
            mend = functools.partial(vars(relay).update, there="pass", back="pass")
            self._until(("cut", relay), seconds, hold, lambda _, mend=mend: mend())

    def heal(self, relays: Iterable[Relay]) -> None:
        """Ends a partition."""
        for relay in relays:
            self._undo(("cut", relay))

    def reset(self, relays: Iterable[Relay]) -> None:
        """Cuts the connections through these relays; new ones pass."""
        self._note("reset")
        for relay in relays:
            relay.reset()

    def network(self) -> "Network":
        """A network of its own for nodes, which reach this machine by one cable alone, for as long as this nemesis
        lasts. Takes root, network namespaces, and the program `ip`. Raises Error with what is missing."""
        name, ours, theirs = (f"cs{os.urandom(3).hex()}{end}" for end in "nab")
        subnet = f"10.203.{os.urandom(1)[0]}"
        _ip("netns", "add", name)
        self._stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        self._stack.callback(subprocess.run, ["ip", "link", "del", ours], capture_output=True)
        there = ["-n", name]
        for end, link, where in ((1, ours, []), (2, theirs, there)):
            _ip(*where, "addr", "add", f"{subnet}.{end}/30", "dev", link)
            _ip(*where, "link", "set", link, "up")
        _ip(*there, "link", "set", "lo", "up")
        return Network(name, f"{subnet}.1", ours)

    def unplug(self, network: "Network", seconds: float | None = None) -> None:
        """Pulls the cable of a network, for so many seconds or until `plug`: nothing passes, and nobody is told."""
        self._note(f"unplug {network.name} for {seconds} s")
        pull, mend = (functools.partial(_ip, "link", "set", network.cable, state) for state in ("down", "up"))
        self._until(("unplugged", network.name), seconds, pull, lambda _: mend())

    def plug(self, network: "Network") -> None:
        """Puts the cable back."""
        self._undo(("unplugged", network.name))

    def garbage(self, address: str, kind: str = "") -> None:
        """Sends what does not belong there, of one of the kinds in GARBAGE, and leaves the connection open."""
        kind = kind or self.random.choice(sorted(GARBAGE))
        self._note(f"garbage for {address}: {kind}")
        data = GARBAGE[kind](self.random)  # whoever is there: the seed decides what comes next
        with contextlib.suppress(OSError):  # nobody there, or turned away: an answer too
            line = self._stack.enter_context(socket.create_connection(rpc.parse_address(address), 5))
            line.sendall(data)

    # by chance

    def random_fault(
        self, kill: Iterable[int] = (), pause: Iterable[int] = (), relays: Iterable[Relay] = (),
        addresses: Iterable[str] = (), seconds: float = 1.0, weights: dict[str, float] | None = None,
    ) -> str:
        """Does one thing to one of these and returns its name: "kill", "pause", "partition", "reset", "garbage". Pauses
        and partitions take up to `seconds`. What has no weight in `weights` is as likely as the others."""
        relays = list(relays)
        faults = {
            "kill": (list(kill), self.kill),
            "pause": (list(pause), lambda pid: self.pause(pid, self.random.uniform(0, seconds))),
            "partition": (relays, lambda relay: self.partition([relay], self.random.uniform(0, seconds))),
            "reset": (relays, lambda relay: self.reset([relay])), "garbage": (list(addresses), self.garbage),
        }
        names = [name for name, (victims, _) in faults.items() if victims]
        if not names:
            raise components.UsageError("nothing to do anything to", "all lists are empty")
        (name,) = self.random.choices(names, [(weights or {}).get(name, 1.0) for name in names])
        victims, act = faults[name]
        act(self.random.choice(victims))
        return name

    # inside

    def _tell(self, name: str, seconds: float) -> None:
        self.environ()
        with open(os.path.join(self._folder, "new"), "w") as file:
            file.write(str(seconds))
        os.replace(file.name, os.path.join(self._folder, name))

    def _note(self, words: str) -> None:
        self.done.append((round(time.monotonic() - self._began, 3), words))
        log.debug("nemesis: %s", words)

    def _until(self, key: tuple, seconds: float | None, act: Callable, undo: Callable) -> None:
        """Acts, and undoes it after so many seconds or when asked to; of what is done again, the last time counts."""
        with self._lock:
            first, old = self._undoing.get(key, (None, None))
            if old:
                old.cancel()
            before = act()
            timer = None if seconds is None else threading.Timer(seconds, lambda: self._undo(key, timer))
            self._undoing[key] = first or functools.partial(undo, before), timer
            if timer:
                timer.daemon = True
                timer.start()

    def _undo(self, key: tuple, asking: threading.Timer | None = None) -> None:
        """`asking`: the timer that does, which may have been too late to be cancelled when another took its place."""
        with self._lock:
            undo, timer = self._undoing.get(key, (None, None))
            if undo and asking in (None, timer):
                del self._undoing[key]
                undo()
                if timer:
                    timer.cancel()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
    return b""


def _limit_files(pid: int, size: int) -> int:
    """Sets how large files of a process may grow; returns how large they might before."""
    import resource  # not everywhere

    with contextlib.suppress(ProcessLookupError):
        before, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))
        return before
    return resource.RLIM_INFINITY


# -- command line --------------------------------------------------------------------------------------------------

HELP = """usage: client.py APP [options]    run a .py file or package; or -m MODULE
       client.py --status [--watch] | --explain TASK
       client.py --cancel ID | --drain SLAVE
       client.py doctor | stats | config show | create DIR | backup [FILE]

examples:
  client.py samples/md5.py --local              start a swarm here, run, stop it
  client.py samples/md5.py --master node01 --access client.access
  client.py samples/md5.py --workers 0 --pdb    run every task in this process
  client.py samples/md5.py --bench --local      measure speedup, draw a picture

run:     --master HOST[:PORT]  where the master is (127.0.0.1:8080)
         --local       start a master and a slave for this run; --keep leaves
                       them up until Ctrl-C
         --workers N   workers of --local; 0: run in this process
         --app CLASS   which application of the file
         --set SECTION.KEY=VALUE  set a configuration item
         --step        lock-step; Enter begins the next step
         --detach      leave its task systems with the master; --collect ID
                       waits for one that was left there
         --replay TASK run a task that failed again, here, with pdb
measure: --bench       1, 2, 4 ... N workers, the best of --repeat N (3) runs
                       each; writes NAME-scaling.svg and NAME-bench.json
         --baseline    also run it without a swarm, and compare with that
look:    --status      the master's slaves and systems; --watch: each second
         --trace FILE  write what ran where and when, for ui.perfetto.dev
         --explain TASK  where a task is and what it waits for
control: --cancel ID   end a task system; --drain SLAVE lets a slave leave
output:  --json        one object on stdout at the end; --json=lines: one for
                       each event
         -q, --quiet   only warnings and errors; --color auto|always|never
         --full-traceback, --debug  show every frame; those of the framework
         --pdb         debug a failing task (with --workers 0)
         --log-format text|json
limits:  --wait S      seconds to wait for master, worker (30); --timeout S
node:    --env DIR     its folder; --access FILE  what lets it in

exit: 0 ok, 1 failed, 2 usage, 3 no connection, 4 gave up, 130 Ctrl-C, 143 TERM
"""


def parser() -> components.ArgumentParser:
    """The options of `client.py`."""
    made = components.ArgumentParser(HELP, prog="client.py")
    made.add_argument("app", nargs="?")
    made.add_argument("-m", dest="module")
    for name in ("--master", "--workers", "--collect", "--replay", "--explain", "--cancel", "--drain", "--trace"):
        made.add_argument(name)
    made.add_argument("--app", dest="chosen")
    for name in ("--local", "--keep", "--detach", "--step", "--bench", "--baseline", "--status", "--watch", "--json",
                 "--full-traceback", "--pdb"):
        made.add_argument(name, action="store_true")
    made.add_argument("--json=lines", dest="json", action="store_const", const="lines")
    made.add_argument("--sequential", action="store_true", help=argparse.SUPPRESS)  # of --bench and --baseline
    made.add_argument("--repeat", type=int)
    made.add_argument("--wait", type=rpc.seconds, default=30.0)
    made.add_argument("--timeout", type=rpc.seconds)
    rpc.common_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs an application; returns the exit code."""
    return components.run_main(_main, argv)


def _main(argv: list[str]) -> int:
    try:
        code = rpc.administer("client", argv, tasks.checks)
        return _act(argv) if code is None else code
    except components.Error as error:
        if not {"--json", "--json=lines"}.isdisjoint(argv):
            event = {"event": "done"} if "--json=lines" in argv else {}
            print(json.dumps({**event, "ok": False, "exit": error.exit_code, "error": _told(error)}), flush=True)
        raise


def _act(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    asked = [name for name in ("status", "explain", "cancel", "drain") if getattr(options, name)]
    _check_options(options, asked)
    if asked:
        return ask(options)
    bundle = rpc.make_bundle(options.app, options.module)
    rpc.answer_framework([rpc.FRAMEWORK, rpc.PUBLIC_NAME])
    environment = components.Environment(options.env or components.state_root() / "client", "client")
    module = rpc.load_app(bundle.root, bundle.manifest, rpc.compile_here(bundle, environment))
    options.replays = Replays(environment.path / "failed")
    if options.replay:
        return _replay(options, bundle)
    cls = rpc.find_application(module, ApplicationNode, options.chosen)
    terminal = components.Terminal(color=options.color)
    with contextlib.ExitStack() as stack:
        if options.local and options.workers != "0":
            settings, needs = _settings_of_nodes(options, bundle), bundle.manifest["needs"]
            if options.bench:
                return bench(options, lambda workers: LocalSwarm(workers, settings, needs, terminal))
            swarm = stack.enter_context(LocalSwarm(options.workers, settings, needs, terminal))
            options.access, options.env = swarm.access, os.path.join(swarm.folder, "client")
            options.master = swarm.address
        return _run(options, bundle, cls, stack, terminal)


def _check_options(options: argparse.Namespace, asked: list[str]) -> None:
    """Raises UsageError for options that do not go together."""
    alone = options.workers == "0" and not options.sequential
    for wrong, *words in (
        (len(asked) > 1 or (asked and (options.app or options.module)),
         f"--{' and --'.join(asked)} {'with an application' * (len(asked) == 1)}", "each asks the master for itself",
         "use one at a time"),
        (not asked and bool(options.app) == bool(options.module), "which application?",
         "give one file, or one module with -m",
         "client.py samples/md5.py --local"),
        (options.watch and asked != ["status"], "--watch needs --status", "that is what it shows each second",
         "client.py --status --watch"),
        (not (options.workers or "0").isdecimal(), f"--workers {options.workers}", "it is a whole number from 0",
         "--workers 4"),
        (options.workers not in (None, "0") and not options.local, f"--workers {options.workers} needs --local",
         "slaves of a master that runs have workers of their own", "add --local, or leave it away"),
        (options.keep and (alone or not options.local), "--keep needs --local", "that is what stays up",
         "client.py APP --local --keep"),
        (options.local and options.master, "--local and --master", "the first starts a master of its own",
         "leave one away"),
        (options.pdb and options.workers != "0", "--pdb needs --workers 0", "only then do tasks run here",
         "add --workers 0"),
        ((options.detach or options.collect) and (options.local or options.workers == "0"),
         "--detach and --collect need a master that stays", "this one ends with the run",
         "start one: python master.py"),
        (options.bench and (alone or not options.local), "--bench needs --local",
         "it starts swarms of 1, 2, 4 … workers on this machine", "client.py APP --bench --local"),
        (options.bench and options.trace, "--bench writes no trace", "its runs are processes of their own",
         "trace one run: client.py APP --local --trace FILE"),
        (options.repeat is not None and not (options.repeat > 0 and (options.bench or options.baseline)),
         f"--repeat {options.repeat}", "it says how often --bench or --baseline runs it", "--bench --local --repeat 5"),
        (options.baseline and (alone or options.bench or options.detach), "--baseline compares with a run of a swarm",
         "--workers 0 is none, --bench has it already, --detach does not wait for the end", "leave it away"),
    ):  # fmt: skip
        if wrong:
            raise components.UsageError(*words)


def _settings_of_nodes(options: argparse.Namespace, bundle: rpc.Bundle) -> dict[str, list[str]]:
    """Takes the settings of the local master and slave out of the client's, and checks the others. What the application
    asks for is allowed there: who runs it owns the machine."""
    sections = {"master": ("master.", "limits."), "slave": ("slave.",)}
    nodes = {role: [one for one in options.set if one.lower().startswith(sections[role])] for role in sections}
    options.set = [one for one in options.set if one not in nodes["master"] + nodes["slave"]]
    components.Config(arguments=options.set).check_unknown()
    shared = [one for one in options.set if one.lower().startswith(OF_ALL_NODES)]
    for role, settings in nodes.items():
        asked = {name: value for name, value in bundle.manifest["needs"].items() if name in tasks.GRANTS}
        settings[:0] = [f"{role}.allow_{name}={'true' if value is True else ','.join(value)}"
                        for name, value in asked.items()]  # fmt: skip
        settings += shared
    return nodes


def _run(options: argparse.Namespace, bundle: rpc.Bundle, cls: type, stack: contextlib.ExitStack,
         terminal: components.Terminal) -> int:
    rpc.tune_process()
    settings = [f"client.master={options.master}"] if options.master else []
    environment, config = rpc.open_environment("client", options, settings)
    stack.enter_context(environment)
    if options.workers == "0":
        swarm = Inline(config, _debugger if options.pdb else None)
    else:
        swarm = ClientNode(environment, config, config.get(ClientNode.master_address), options.access)
    stack.enter_context(components.configure_logging(environment, swarm.log_format, swarm.log_level, terminal))
    if options.trace:
        swarm.tracer = tasks.Tracer(tasks.TraceFile(options.trace))
        stack.callback(_end_trace, swarm.tracer, options.quiet)
    stack.callback(swarm.close)
    swarm.wait, swarm.terminal = options.wait, terminal
    app = swarm[cls]
    app.swarm, app._bundle, app._by_hand = swarm, bundle, options.step
    app._detaches, app._collects = options.detach, options.collect or ""
    events = Events(app, _Beside(sys.stdout, terminal)) if options.json == "lines" else None
    swarm.watch = Watch(app, terminal, options.wait, options.quiet, events)
    config.check_unknown()
    code = _perform(app, options, terminal)
    if options.keep and options.local:
        token = rpc.token_of(options.master, os.path.join(os.path.dirname(options.access), "admin.access"))
        place = f"#token={token}" if sys.stderr.isatty() else ""  # what reads a pipe may keep it
        print(f"the swarm stays up: http://{options.master}/{place}\nCtrl-C stops it", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return code


def _end_trace(tracer: tasks.Tracer, quiet: bool) -> None:
    tracer.close()
    if not quiet:
        size = tracer.file.size / 2**20
        print(f"trace    {tracer.file.path} ({size:.1f} MiB), for https://ui.perfetto.dev", file=sys.stderr)


def _perform(app: ApplicationNode, options: argparse.Namespace, terminal: components.Terminal) -> int:
    """Runs the application and reports. Returns the exit code."""
    interrupted = Interrupts(app, options)
    code = _play(app, options, terminal, interrupted)
    if app._was_cancelled and not interrupted.code:
        interrupted.code = components.EXIT_INTERRUPTED
        who = "" if app._gave_up else " by somebody else"
        print(f"system {', '.join(app._names.values())} was cancelled{who}", file=sys.stderr)
    about = {**summary(app, interrupted.code or code), "replays": options.replays.keep(app)}
    if not about["exit"] and about["failed"]:
        about["ok"], about["exit"] = False, components.EXIT_FAILED
    if options.sequential:
        about["by"] = "sequential()" if callable(getattr(app, "sequential", None)) else "--workers 0"
    if app.result is not None and not options.json:
        print(f"result   {app.result}", flush=True)
    if options.baseline and about["ok"]:
        _compare(about, Bench(options, terminal), options.repeat or 1)
    if app.swarm.watch.events:
        app.swarm.watch.events.catch_up()
        app.swarm.watch.events.say("done", **about)
    elif options.json:
        print(_as_json(about), flush=True)
    if interrupted.code:
        print(f"stopped  {about['done']:,} tasks done, {about['elapsed_s']:.1f} s", file=sys.stderr)
    elif not options.quiet or about["exit"]:
        print_end(about, terminal, options)
    return about["exit"]


def _play(app: ApplicationNode, options: argparse.Namespace, terminal: components.Terminal,
          interrupted: "Interrupts") -> int:
    """Runs the application to its end; what it raises stands in its `error`. Returns the exit code."""
    streams = sys.stderr if options.json else sys.stdout, sys.stderr
    out, err = (_Beside(stream, terminal) if terminal.live else stream for stream in streams)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app._prepare()
            app.app_init()
            return (app.app_main if not options.sequential else app._run_alone)() or 0
    except (components.Unreachable, components.GaveUp, components.UsageError) as error:
        if not interrupted.code:
            error.fix = error.fix.replace("python client.py samples/md5.py", _again(options))
            raise
        return interrupted.code
    except Exception as error:  # the application's own
        app.error = error
        return components.EXIT_FAILED
    finally:
        app.swarm.watch.end()


def _compare(about: dict, made: Bench, times: int) -> None:
    """Runs it so often without a swarm; what that takes stands in the place of what is reckoned from times of tasks."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)  # that run has a --timeout of its own
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nothing goes round that could hear of signals
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(components.EXIT_TERMINATED))
    try:
        base = made.sequential(times)
    except KeyboardInterrupt:  # what the swarm has done stays
        about["ok"], about["exit"] = False, components.EXIT_INTERRUPTED
        return
    about["baseline"] = base
    about["speedup"] = {"value": round(base["base_s"] / about["elapsed_s"], 2), "kind": "measured",
                        "base_s": base["base_s"], "base": base["by"]}
    if base["result"] != str(about["result"]):
        about["hints"].append(f"the result without a swarm is another one: {base['result'][:200]}")


class _Beside:
    """A stream of the application's on the terminal that has the status line, which goes out of its way."""

    def __init__(self, stream: Any, terminal: components.Terminal):
        self._stream, self._terminal = stream, terminal

    def write(self, text: str) -> int:
        self._terminal.write("")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Interrupts:
    """Ctrl-C, SIGTERM and --timeout: the first cancels what runs and waits a moment, the second leaves at once."""

    def __init__(self, app: ApplicationNode, options: argparse.Namespace):
        self.code = 0
        self._app = app
        rpc.stop_on_signals(self._signal)
        if options.timeout:
            why = f"--timeout {options.timeout:g} s passed"
            signal.signal(signal.SIGALRM, lambda *_: self._end(components.EXIT_GAVE_UP, why))
            signal.setitimer(signal.ITIMER_REAL, options.timeout)

    def _signal(self, number: int) -> None:
        app, (_, done, known, _) = self._app, self._app._tally()
        systems = ", ".join(name for one, name in app._names.items() if one not in app._ended)
        running = min(sum(app._running.values()), known - done)
        what = f": cancelling {f'system {systems}' if systems else 'tasks'} "
        what += f"({known - done - running:,} waiting, {running:,} running)"
        again = "; Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        self._end(128 + number, f"stopping{what if app.pending else ''}{again}")

    def _end(self, code: int, why: str) -> None:
        if self.code or isinstance(self._app.swarm, Inline):
            self.code = self.code or code
            self._app.swarm.interrupted = True  # what raises ends one task
            raise KeyboardInterrupt
        self.code = code
        signal.signal(signal.SIGALRM, lambda *_: self._app.swarm.on_signal(self._app.shutdown_main_loop))
        signal.setitimer(signal.ITIMER_REAL, GIVE_UP_CANCELLING)  # the master may be away
        self._app.swarm.watch.end()
        print(f"{why}\x1b[K" if self._app.swarm.terminal.live else why, file=sys.stderr)  # over what shows Ctrl-C
        self._app.swarm.on_signal(self._app._cancel_everything)


class Replays:
    """Files of tasks that failed: a task as it travels, and what is needed to run it again. The newest stay."""

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self, app: ApplicationNode) -> list[str]:
        """Writes the first failed tasks of a run; returns their ids, of those that can be run again."""
        records = dict(app._owner.records)
        for stats in app._ended.values():
            for task_id, parts in stats.get("records", {}).items():
                records.setdefault(task_id, [base64.b64decode(part) for part in parts])
        failures, kept = dict(app._failures()), list(records.items())[: tasks.FAILED_KEPT]
        try:
            if kept:
                components.Environment(self.folder.parent, "client").create()  # with --local it is not this run's
                self.folder.mkdir(mode=0o700, exist_ok=True)
            for task_id, parts in kept:
                self._write(app, task_id, failures.get(task_id, {}), parts)
            self._tidy()
        except (OSError, components.UsageError) as error:
            log.warning("failed tasks cannot be kept for a replay: %s", error)
            return []
        return [task_id for task_id, _ in kept]

    def open(self, task_id: str) -> tuple[dict, list]:
        """What is known of a failed task, and the task as it travels. Raises UsageError."""
        path = self.folder / f"{task_id}.task"
        try:
            if not re.fullmatch(r"\w+\.\d+", task_id):
                raise FileNotFoundError(f"{task_id!r} is no id of a task")
            data = path.read_bytes()
        except OSError as error:
            known = sorted(self.folder.glob("*.task"), key=lambda file: file.stat().st_mtime)
            kept = f"kept are {', '.join(file.stem for file in known[-5:])}" if known else "no failed task is kept"
            raise components.UsageError(
                f"task {task_id} cannot be run again ({error})", f"in {self.folder}: {kept}",
                f"the first {tasks.FAILED_KEPT} tasks that fail in a run are kept; its report names one",
            ) from None
        call, parts = rpc.unpack_body([data[4:]])
        return call[1], parts

    def place(self) -> list[str]:
        """The words of the command line that tell where they are, none for where everybody would look."""
        usual = self.folder.parent == components.state_root() / "client"
        return [] if usual else ["--env", str(self.folder.parent)]

    def _write(self, app: ApplicationNode, task_id: str, failure: dict, parts: list) -> None:
        about = {"bundle": app._bundle.digest, "module": app._bundle.manifest["module"],
                 "attempt": failure.get("attempt", 1), "message": failure.get("message", "")}
        with components.replacing(self.folder / f"{task_id}.task", 0o600) as file:
            file.writelines(rpc.pack_stream(["failed", about], parts))

    def _tidy(self) -> None:
        files = sorted(self.folder.glob("*.task"), key=lambda file: file.stat().st_mtime)
        for file in files[:-REPLAYS_KEPT]:
            file.unlink(missing_ok=True)


def _replay(options: argparse.Namespace, bundle: rpc.Bundle) -> int:
    """Runs a task that failed again, in this process; returns 1 if it fails, having opened the debugger."""
    about, parts = options.replays.open(options.replay)
    if about["bundle"] != bundle.digest:
        print("the application is not what it was when this task failed; it runs as it is now", file=sys.stderr)
    sys.modules.setdefault(about["module"], sys.modules[bundle.manifest["module"]])
    os.environ["CONCURRENT_SWARM_ATTEMPT"] = str(about["attempt"])
    rpc.Exchange(lambda key, pieces: None, _not_here)
    outcome: dict = {}

    def report(lo: int, hi: int, seconds: float, failures: dict, results: list, last: bool) -> None:
        outcome["failure"] = failures.get("0") or failures.get("*")
        outcome["result"] = rpc.open_sealed(results[0])[0]

    owner, _, ordinal = options.replay.rpartition(".")
    debug = _debugger if sys.stdin.isatty() else None
    envelope = tasks.Envelope(0, owner, 0, 0, 1, 1, about["attempt"], int(ordinal), parts)
    tasks.LeaseRunner(report, lambda: False, str(bundle.root), debug).run(envelope)
    if outcome["failure"] is None:
        print(f"task {options.replay} did not fail this time", file=sys.stderr)
        print(f"result   {outcome['result']}")
        return components.EXIT_OK
    if not debug or outcome["failure"]["kind"] != "error":  # else it has been shown
        print(rpc.with_local_names(outcome["failure"]["traceback"], bundle).rstrip(), file=sys.stderr)
    return components.EXIT_FAILED


def _not_here(key: str) -> Any:
    raise rpc.no_such_object(key, "objects that a run has published are not kept for a replay")


def _debugger(task: tasks.Task, error: BaseException) -> None:
    """Post mortem of a task that raised."""
    import pdb  # slow to import, seldom needed

    traceback.print_exception(error)
    pdb.post_mortem(error.__traceback__)
