"""What runs: tasks, task systems, the schedulers that place them and the processes that run them.

    owner (client, or the host of a task system)                  slave
    ------------------------------------------------              -----------------------------------------
    Task objects --Packer--> head + record groups         ......>  zygote --fork--> worker
       ^                                                             LeaseRunner: open a group, call each task,
       |  Owner: keeps each task until its outcome,                  clean_up, pack results and failures
       +-- finished, task_finished <-- results, failures  <......

A *batch* is what an owner submits in one message: a *head* with what its tasks have in common (JSON: application, name,
resources, classes), an index that names the class of each task (empty if there is only one class) and *groups*, each
the pickle of up to 64 task states. Nobody between the owner and the worker opens a group. A *lease* is a range of a
batch; the worker opens the groups that the range touches and runs its part.

What a child prints goes into a pipe, its descriptors 1 and 2; its node has the other end, see the room "output". What
an application requires is there before its first child: a child too makes it, see "what applications need".

A *task system* is an owner that lives on the master: its host process is forked like a worker, holds an `Owner` and
drives `ITaskSystem`. User code runs in workers, hosts and clients; never in a master or a slave.

A task's state travels as a plain dictionary and a result as the value itself; where one of them refers to a class or
function of this package, it does so by a fixed name. So nodes that know the package under different names understand
each other.
"""

from __future__ import annotations

import base64
import bisect
import collections
import contextlib
import copyreg
import errno
import faulthandler
import functools
import gc
import glob
import io
import itertools
import json
import linecache
import logging
import math
import mmap
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import queue
import random
import re
import reprlib
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import traceback
import uuid
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import md5
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from . import components, rpc
from .components import Component, ExtensionPointItem, Interface, implements

log = logging.getLogger(__name__)

GROUP = 64  # tasks in one pickle, at most
GROUP_BYTES = 16 * 1024  # a group of larger tasks holds fewer: a lease of one task opens a whole group
CHUNK = 62 * GROUP  # tasks in one batch, at most: a message has room for a group of each
CHUNK_BYTES = 4 * 1024 * 1024  # a batch is closed once its records weigh this much
WINDOW = 64 * 1024  # tasks an owner has out without an outcome; more are drawn as these end
WINDOW_BYTES = 64 * 1024 * 1024
MOST_BYTES = 16 * 1024 * 1024  # of the records of a batch that has more than one task
MOST_HEADS = 256  # kept by an owner
MOST_HEAD = 64 * 1024  # bytes of what the tasks of a batch have in common
FAILED_KEPT = 20  # failed tasks that an owner keeps, for somebody to run them again
SETTLE_MANY, SETTLE_EVERY = 64, 0.1  # finished batches, seconds: when the master hears that they may be forgotten
REPORT_EVERY = 0.05  # seconds after which a worker reports what it has finished of a longer lease
QUICK = 0.001  # seconds: a worker whose last lease took no longer may be handed others ahead
LOOK_EVERY = 0.02  # seconds after which a worker looks for a revoke or steal between two tasks
TRACEBACK_LIMIT = 64 * 1024  # characters of a remote traceback that travel
NOT_RUN = frozenset({"unsendable", "refused", "cancelled", "lost", "setup"})  # failures of what no worker ran to an end
SNAPSHOT_LEAST = 1024 * 1024  # bytes of history from which on a task system is saved
HISTORY_EACH = 200  # bytes, about, of an outcome in the journal besides its results
FIGURES = 100  # names that tasks, or hooks of a system, may record
TELL_FIGURES = 1.0  # seconds between two moments at which a host says what hooks have recorded
MANY_ROWS = 8192  # samples of a task that wait one by one
FORGOTTEN = {"type": "Forgotten", "message": "the master was started again without its journal", "traceback": "",
             "where": "", "kind": "lost"}
CHAIN_LIMIT = 20  # exceptions of a chain of causes that are told

# Errors in loading an application that say that this machine is short of something: another one may not be.
SHORTAGES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}

LISTED = frozenset({type(iter([])), type(iter(()))})  # iterators that a pickle holds

# Values of which nobody can tell whether a pickle copied or shared them: tasks that have no other may share one pickle.
ATOMS = frozenset({int, float, str, bytes, bool, complex, type(None), rpc.Shared})
SIZED = frozenset({str, bytes})  # those of them that may be large


def attempt(function: Callable, *args: Any) -> tuple[Any, BaseException | None]:
    """The border to the user's code: what the call returns, or what it raises, SystemExit and its like included.

    Ask `error is None`: an exception of the user's may be false.
    """
    try:
        return function(*args), None
    except BaseException as error:  # whatever it is, it is for the user to hear, and must not end this process
        return None, error


# -- tasks ---------------------------------------------------------------------------------------------------------

class Measured:
    """The attribute `stats` of tasks and task systems that have none of their own: where their code records figures."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else vars(instance).get("_swarm_stats") or components.Stats.getInstance()


class Task:
    """One piece of work: subclass it, keep the arguments as attributes, compute in `__call__`.

    `name` is for people. `system_id` names the task system it belongs to and `client_id` the client; both may be left
    out, the owner that pushes the task fills them in. Further keyword arguments become attributes. What `__call__`
    returns, or the exception it raises, goes home as `result` or `error`.

    >>> class Square(Task):
    ...     def __call__(self):
    ...         return self.number ** 2
    >>> Square("nine", number=3)()
    9
    """

    resources: dict | None = None  # what a slave must have for it: {"cpus": 2, "gpu": 1, "tags": ["ssd"]}
    timeout: float | None = None  # seconds that an attempt may run; None here and below: what the master says, 0: any
    deadline: float | None = None  # seconds from its acceptance by the master to its outcome
    queue_timeout: float | None = None  # seconds from its acceptance until it first runs
    memory_limit: float | None = None  # MiB of memory of its own that its worker may take, children included
    process_limit: float | None = None  # processes that it may have at once beside its worker
    retries: int | dict | None = None  # further attempts after an exception of its own: 3, or {ConnectionError: 3}
    retry_wait: float | None = None  # seconds before the first of them; each later one waits twice as long
    stats = Measured()  # `self.stats.add_avg("rounds", 3)` in `__call__`: it counts if the task succeeds
    _owner = ""
    _ordinal = -1

    def __init__(self, name: str, system_id: str | None = None, client_id: str | None = None, **kwargs: Any):
        self.name = name
        self.system_id = system_id
        self.client_id = client_id
        self.__dict__.update(kwargs)

    @property
    def task_id(self) -> str | None:
        """`owner.ordinal`, such as `c1.17`; None until the task was pushed."""
        return f"{self._owner}.{self._ordinal}" if self._ordinal >= 0 else None

    def __call__(self) -> Any:
        """Computes the result. Runs once per attempt in a worker process of some slave."""
        raise components.UsageError(f"{type(self).__name__} has no __call__", "a task computes there",
                                    "define __call__(self)")

    def clean_up(self) -> None:
        """Called in the worker right after `__call__`, whether it returned or raised."""

    def finished(self, result: Any, error: BaseException | None) -> None:
        """Called once with the outcome: on the client for plain tasks, in the system's host for those of a system."""


# Limits of a task, and how one tells that it was passed.
LIMITS = {
    "timeout": ("TimedOut", "it ran for {:.2f} s{}; {} is {:g} s"),
    "deadline": ("TimedOut", "it had no outcome{1} {0:.2f} s after it was accepted; {2} is {3:g} s"),
    "queue_timeout": ("TimedOut", "it did not run within {:.2f} s of its acceptance{}; {} is {:g} s"),
    "memory_limit": ("OutOfMemory", "it took {:,.0f} MiB of memory{}; {} is {:g} MiB"),
    "process_limit": ("TooManyProcesses", "it had {:,.0f} processes at once{}; {} is {:g}"),
}
PROCESS_LIMIT = 256  # where neither task nor master say anything else: a net that need not be asked for
WATCHED = frozenset(("timeout", "memory_limit"))  # by the slave, which must know what a worker is at
RETRY_WAIT = 1.0  # seconds
ASKS = ("resources", *LIMITS, "retries", "retry_wait")  # attributes by which a task may say what it needs


def limits_of(head: dict) -> dict[str, Any]:
    """The limits by name in the head of a batch, "retries" by kind of failure among them: those that its tasks set
    ("limits"), else those of the master ("default_limits"). Raises ValueError for what is none."""
    limits: dict[str, Any] = {}
    for said in filter(None, (head.get("default_limits"), head.get("limits"))):
        if type(said) is not dict:
            raise ValueError(f"the limits are {said!r}, an object by name is needed")
        for name, value in said.items():
            if not may_ask(name, value):
                raise ValueError(f"the limit {name} is {value!r}: known are {', '.join(ASKS[1:])}, numbers from 0")
            limits[name] = {**limits.get(name, {}), **value} if name == "retries" else value
    return {name: value for name, value in limits.items() if value or name == "retry_wait"}


def process_limit_of(head: dict) -> float:
    """How many processes a task of this batch may have at once."""
    said = {**(head.get("default_limits") or {}), **(head.get("limits") or {})}
    return said.get("process_limit", PROCESS_LIMIT) or math.inf


def is_limit(value: Any) -> bool:
    """Whether this says how much a task may take: a number that can be reckoned with, 0 being no limit."""
    return type(value) in (int, float) and 0 <= value < 1 << 53


def may_ask(name: str, value: Any) -> bool:
    """Whether a task may ask for this: one of the limits, or whole numbers of "retries" by kind of failure."""
    if name == "retries":
        return type(value) is dict and all(type(one) is int and is_limit(one) for one in value.values())
    return name in ASKS[1:] and is_limit(value)


def retry_rules(said: Any) -> Any:
    """What a task says of its `retries`, by names: a number alone counts for all exceptions."""
    if type(said) is int:
        return {"Exception": said}
    if type(said) is dict:
        return {_class_name(key) if isinstance(key, type) else str(key): most for key, most in said.items()}
    return said


def retries_after(head: dict, names: Iterable[str]) -> int:
    """How often a task runs again after a failure that goes by these names, the most particular first."""
    rules = limits_of(head).get("retries", {})
    return next((rules[name] for name in names if name in rules), 0)


def names_of(error: BaseException) -> Iterator[str]:
    """The names by which rules may speak of an exception: of its class, then of those that it derives from."""
    for cls in type(error).__mro__:
        yield from (_class_name(cls), cls.__qualname__)


def limit_failure(head: dict, name: str, measured: float, where: str = "", stack: tuple[str, str] = ("", "")) -> dict:
    """The failure of a task that passed a limit of its batch, with what was measured. `where`: on which slave. `stack`:
    the Python traceback of that moment and its last line."""
    kind, text = LIMITS[name]
    setting = f"its {name}" if name in (head.get("limits") or {}) else f"limits.{name} of the master"
    allowed = limits_of(head).get(name, PROCESS_LIMIT)
    message = text.format(measured, where and f" on {where}", setting, allowed)
    return {"type": kind, "message": message, "traceback": stack[0], "where": stack[1], "kind": "limit",
            "limit": name, "measured": measured, "allowed": allowed,
            "retries": 0 if name in ("deadline", "queue_timeout") else retries_after(head, [kind])}


class Handle(str):
    """A name that carries what it names: equal to the plain text of the id, with further attributes."""

    __slots__ = ("stats", "task", "title", "tried")

    @classmethod
    def of(cls, task: Task, attempt: int = 1) -> Handle:
        """The handle of a task that was pushed."""
        self = cls.in_attempt(attempt, task.task_id or "")
        self.task = task
        return self

    @classmethod
    def in_attempt(cls, attempt: int, text: str) -> Handle:
        """A handle that says in which attempt its task had its outcome."""
        self = cls(text)
        self.tried = attempt
        return self

    @property
    def attempt(self) -> int:
        """In which attempt the task had its outcome: 1 unless it ran again."""
        return getattr(self, "tried", 1)

    @property
    def name(self) -> str:
        """What it is called by the one who made it."""
        task = getattr(self, "task", None)
        return self.title if task is None else task.name

    @property
    def task_id(self) -> str:
        """The id itself."""
        return str(self)

    system_id = task_id

    def __reduce__(self):
        return str, (str(self),)  # our classes never travel; the id does


class TaskError(components.Error):
    """A task failed with an exception that does not exist here, or for a reason that is no exception (a lost worker).

    `type`, `message`, `where` (file:line) and `remote_traceback` tell what happened there; `kind` is "error" for the
    task's own exception, else what went wrong ("poisoned", "limit", "cancelled", "result", "load", ...). `notes` are
    those of the exception, `cause` is a TaskError for what led to it, or None. `pickled` are the bytes of the exception
    itself, for who has its class: b"" if it cannot be pickled.
    """

    def __init__(self, failure: dict):
        super().__init__(f"{failure.get('type', 'Error')}: {failure.get('message', '')}")
        self.failure = failure
        self.type = failure.get("type", "Error")
        self.message = failure.get("message", "")
        self.where = failure.get("where", "")
        self.kind = failure.get("kind", "error")
        self.remote_traceback = failure.get("traceback", "")
        self.notes = failure.get("notes", [])
        self.cause = TaskError(failure["cause"]) if "cause" in failure else None
        self.pickled = attempt(base64.b64decode, failure.get("pickle", ""))[0] or b""

    def __reduce__(self):
        return RuntimeError, (str(self),)


class RemoteTraceback(Exception):
    """The traceback of the process in which a task failed; the `__cause__` of the error that came home."""

    def __str__(self):
        return "\n" + self.args[0]

    def __reduce__(self):
        return Exception, self.args


# -- task systems --------------------------------------------------------------------------------------------------

class ITaskSystem:
    """An application's brain on the master: it makes tasks, is told of every outcome, and says when it is complete.

    The instance is created on the client, travels to the master as a pickle and runs there in a process of its own.
    All hooks of one system are called by one thread, one after the other. `lockstep = True` holds tasks that are
    pushed during a step back until every task of the step has its outcome.

    After the death of the master or of that process, the hooks of a fresh copy are called once more, in the same order
    and with the same outcomes: they may depend on their arguments, on the system's own attributes, on `master.now()`
    and on `master.random` or the module `random`, and on nothing else.
    """

    lockstep = False
    resumable = False  # a new `generate_tasks` goes on where an earlier one, cut off, had come to
    hook_timeout: float | None = None  # seconds that a call of a hook may take; None: what the master says, 0: any
    stats = Measured()  # `self.stats.add_avg("rating", 0.3)` in a hook

    def __init__(self):
        self._system_id = str(uuid.uuid1())

    @property
    def system_id(self) -> str:
        """The system's own id, made on the client."""
        if "_system_id" not in self.__dict__:  # a subclass did not call our __init__
            self._system_id = str(uuid.uuid1())
        return self._system_id

    def get_system_id(self) -> str:
        """The same as `system_id`."""
        return self.system_id

    def init_system(self, master: SystemMaster) -> None:
        """Called once, before anything else, in the process that hosts the system."""

    def generate_tasks(self, master: SystemMaster) -> Iterable[Task] | None:
        """Returns the tasks of the next step, as a list or a generator that is drawn as the swarm has room.

        Called again whenever all tasks have their outcomes and `is_complete` is false.
        """
        raise components.UsageError(f"{type(self).__name__} has no generate_tasks",
                                    "a task system makes its tasks there", "define it")

    def task_finished(self, master: SystemMaster, task: Task, result: Any, error: BaseException | None) -> None:
        """Called once per task with its outcome, after `task.finished`."""

    def is_complete(self, master: SystemMaster) -> Any:
        """Asked after every outcome; true ends the system and drops what is queued. Default: all tasks are done."""
        return master.outstanding == 0

    def gather_result(self, master: SystemMaster) -> Any:
        """Returns what the client gets in `work_finished`, as it is. To signal an error, raise."""

    def publish_view(self, data: Any, type: str = "image/png") -> None:
        """Shows a picture of the system on the master's page, in place of the last one.

        `data` is a PNG, or an SVG ("image/svg+xml", as bytes or text), of up to 256 KiB, or a function that gives it:
        that is called only when the picture goes out, twice a second at most, and should only look. Raises UsageError
        for anything else.
        """
        VIEWS.show(data, type)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "_swarm_stats")}


MOST_VIEW = 256 * 1024  # bytes of a picture
VIEW_EVERY = 0.5  # seconds between two pictures that go out
VIEW_TYPES = {  # how a picture begins
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/svg+xml": re.compile(rb"(\xef\xbb\xbf)?\s*(?=<).{0,1000}?<svg[\s>]", re.DOTALL),
}


def checked_view(data: Any, type: str) -> bytes:
    """The bytes of a picture that a page may show. Raises UsageError."""
    if type not in VIEW_TYPES:
        raise components.UsageError(f"a picture of the type {str(type)[:80]!r} cannot be shown",
                                    f"it is one of {', '.join(VIEW_TYPES)}")
    data = data.encode() if isinstance(data, str) else data
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise components.UsageError(f"a picture is bytes, not {data.__class__.__name__}", "it is a file's content")
    data = bytes(data)
    if not VIEW_TYPES[type].match(data):
        raise components.UsageError(f"what begins with {data[:20]!r} is no {type}", "a picture begins otherwise",
                                    "publish_view(data, type) takes the content of a file of that type")
    if len(data) > MOST_VIEW:
        raise components.UsageError(f"a picture of {len(data):,} bytes is too large",
                                    f"a page shows up to {MOST_VIEW:,}", "draw it smaller, or with fewer colours")
    return data


class Views:
    """The pictures that the task system of this process shows. `send(type, data)` is set where a master hears it."""

    def __init__(self):
        self.send: Callable[[str, bytes], None] = lambda type, data: None
        self._next: tuple[Any, str] | None = None
        self._due = -math.inf

    def show(self, data: Any, type: str) -> None:
        """Takes a picture, which goes out now or, if the last one just did, soon. Raises UsageError."""
        self._next = data if callable(data) else checked_view(data, type), type
        if time.monotonic() >= self._due:
            self.flush()

    @property
    def wait(self) -> float | None:
        """Seconds until a picture that waits may go out; None if none does."""
        return None if self._next is None else max(0.0, self._due - time.monotonic())

    def flush(self) -> None:
        """Sends the picture that waits, if one does. Raises UsageError, and what its function raises."""
        if self._next is not None:
            (data, type), self._next = self._next, None
            self.send(type, checked_view(data(), type) if callable(data) else data)
            self._due = time.monotonic() + VIEW_EVERY


VIEWS = Views()


class IApp(Interface):
    """What a client runs: `ApplicationNode` is one, and so is every application."""

    def app_init(self) -> None:
        """Called once before anything else."""

    def app_main(self) -> int:
        """Does the work. Returns the exit code."""


class ITaskManager(Interface):
    """What runs leases on a slave: the processes of `ProcessTaskManager`, or any other engine that takes envelopes."""

    def init(self, identity: str, address: str) -> None:
        """Called once the slave has joined as `identity` at the master at `address`."""

    def held(self) -> list[list]:
        """The leases in its hands: rows of lease, owner, number, lo and hi, the tasks that were not reported."""

    def keep(self, leases: set[int]) -> None:
        """The slave has joined a master, maybe another one, that wants only these of them; called before `init`."""

    def start(self) -> None:
        """Starts the workers."""

    def stop(self) -> None:
        """Ends every worker; returns when all are gone."""

    def get_num_workers(self) -> int:
        """How many leases may run at once."""

    def update_pool(self, workers: int) -> None:
        """Sets how many leases may run at once, now."""

    def push_task(self, envelope: Envelope) -> None:
        """Takes a sealed lease to run; what comes of it is reported through `envelope.report`."""


class Envelope(NamedTuple):
    """A lease as a slave sees it: who, what range, and the sealed parts. `first`: the ordinal of the batch's task 0."""

    lease: int
    owner: str
    number: int
    lo: int
    hi: int
    group: int
    attempt: int
    first: int
    parts: list

    @property
    def head(self) -> dict:
        """What the tasks have in common, see `read_head`."""
        return read_head(bytes(self.parts[0]))


# -- sealed records ------------------------------------------------------------------------------------------------

def fits(size: int) -> bool:
    """Whether payloads of so many bytes go into one message, beside its call and head."""
    return size <= rpc.MAX_MESSAGE - rpc.INLINE * 2


def too_much(name: str) -> components.UsageError:
    """The error for a task that asks for more than the head of a batch holds."""
    return components.UsageError(f"what task {name[:80]} asks for, with the name of its class, exceeds {MOST_HEAD:,} "
                                 "bytes", "every node reads that", "shorten its resources, tags and limits")


def too_large(what: str, size: int) -> components.UsageError:
    """The error for something that does not fit into a message."""
    return components.UsageError(f"{what} has {size:,} bytes, a message holds {rpc.MAX_MESSAGE:,}",
                                 "both ends have a message in memory as a whole (rpc.MAX_MESSAGE)",
                                 "publish the large object and pass the reference, or split the work")


class Batch(NamedTuple):
    """Packed tasks: `parts` are the head (JSON), the class of each task (u16 each) and the groups (pickles)."""

    count: int
    group: int
    parts: list[bytes]
    size: int


def class_form(cls: type) -> list:
    """[module, qualified name, whole] of a task class; `whole` if its instances pickle themselves in their own way.

    Raises Error if a worker could not find the class by that name.
    """
    if not issubclass(cls, Task):
        raise components.Error(f"an object of type {cls.__qualname__} is not a task", "only tasks can be pushed",
                               f"derive {cls.__name__} from Task")
    found = sys.modules.get(cls.__module__)
    for step in cls.__qualname__.split("."):
        found = getattr(found, step, None)
    if found is not cls:
        raise components.UsageError(
            f"tasks of class {cls.__qualname__} cannot be sent",
            "a worker finds a class by its name in its module, and this one is not there (made inside a function?)",
            f"move class {cls.__name__} to the top of its module",
        )
    own = object.__reduce_ex__, object.__reduce__, object.__new__
    whole = (
        (cls.__reduce_ex__, cls.__reduce__, cls.__new__) != own
        or bool(copyreg._slotnames(cls))
        or any(hasattr(cls, name) for name in ("__setstate__", "__getnewargs__", "__getnewargs_ex__"))
        or getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None)
    )
    return [cls.__module__, cls.__qualname__, whole]


@functools.lru_cache(maxsize=1024)
def read_head(data: bytes) -> dict:
    """What the tasks of a batch have in common, from its first part: "bundle" (digest), "name" (what is measured
    together), "classes" (`class_form` of each), "resources" if they need more than one processor, and their "limits".

    Heads repeat from batch to batch, so each is read once; nobody may change what this returns. Raises ValueError.
    """
    head = json.loads(data)
    if type(head) is not dict:
        raise ValueError("the head of a batch is no object")
    return head


class Packer:
    """Packs the tasks of one owner. `common` goes into the head of every batch (the bundle's digest)."""

    def __init__(self, common: dict):
        self._common = common
        self._forms: dict[type, list] = {}
        self._heads: dict[tuple, bytes] = {}  # of batches without a demand of their own
        self._seal = rpc.dumps  # what suited the last batch

    def pack(self, tasks: list[Task], asked: dict | None = None) -> Batch:
        """Packs tasks for one batch. `asked`: the "resources" and "limits" of each of them.

        Raises Error naming the task and the attribute if one cannot be pickled, with its index as `index`; None if it
        is not a task.
        """
        kinds = list(dict.fromkeys(map(type, tasks)))
        table = [self._forms.get(cls) or self._form(cls, tasks) for cls in kinds]
        index = b"" if len(kinds) == 1 else array("H", map(kinds.index, map(type, tasks))).tobytes()
        plain = not any(whole for _, _, whole in table)
        states = [task.__dict__ if plain or not self._forms[type(task)][2] else task for task in tasks]
        group, groups = _pack_states(states, plain, self._seal)
        self._seal = rpc.seal_pieces if rpc.size_of(groups[0]) >= rpc.INLINE else rpc.dumps
        size = sum(map(rpc.size_of, groups))
        return Batch(len(tasks), group, [self._head(kinds, table, asked), index, *groups], size)

    def _form(self, cls: type, tasks: list[Task]) -> list:
        try:
            form = self._forms[cls] = class_form(cls)
        except components.Error as error:
            a_task = issubclass(cls, Task)
            error.index = next(i for i, task in enumerate(tasks) if type(task) is cls) if a_task else None
            raise
        return form

    def _head(self, kinds: list[type], table: list, asked: dict | None) -> bytes:
        head = None if asked else self._heads.get(tuple(kinds))
        if head is None:
            about = {**self._common, "name": kinds[0].__name__, "classes": table}
            head = json.dumps({**about, **asked} if asked else about).encode()
            if not asked and len(self._heads) < MOST_HEADS:
                self._heads[tuple(kinds)] = head
        return head


def _pack_states(states: list, plain: bool, seal: Callable) -> tuple[int, list]:
    """Groups where no state holds anything that siblings could share, else one pickle a task."""
    first = _sealed(states, 0, seal)
    if len(states) == 1:
        return 1, [first]
    if rpc.size_of(first) >= rpc.INLINE:
        seal = rpc.seal_pieces
    group = 1
    values = itertools.chain.from_iterable(map(dict.values, states))
    if plain and ATOMS.issuperset(map(type, values)):
        group = max(1, min(GROUP, GROUP_BYTES // rpc.size_of(first)))
    while group > 1:
        groups = [pickle.dumps(states[i : i + group], 5) for i in range(0, len(states), group)]
        largest = max(map(len, groups))
        if largest <= 4 * GROUP_BYTES:
            return group, groups
        group = max(1, group * GROUP_BYTES // largest)  # the first task was a small one
    return 1, [first, *(_sealed(states, i, seal) for i in range(1, len(states)))]


def _sealed(states: list, i: int, seal: Callable) -> bytes | list:
    data, error = attempt(seal, [states[i]])
    if error is not None:
        problem = rpc.explain_unpicklable(states[i], error, "task")
        problem.index = i
        raise problem from None
    return data


def find_class(module: str, qualname: str) -> type:
    """The class of that name, importing its module; what pickle does, for our class tables."""
    __import__(module)
    found = sys.modules[module]
    for step in qualname.split("."):
        found = getattr(found, step)
    return found


class Records:
    """The sealed tasks of a lease, opened group by group: `task(i)` for i in lo..hi-1 of the batch.

    `known` remembers the classes that heads name, from lease to lease, and `half` the group of which the last one had
    only the first tasks, as it travels, with its states.
    """

    def __init__(self, envelope: Envelope, known: dict[bytes, list] | None = None, half: tuple | None = None):
        head = bytes(envelope.parts[0])
        self._table = read_head(head)["classes"]
        self._classes = ({} if known is None else known).setdefault(head, [None] * len(self._table))
        self._index = array("H", bytes(envelope.parts[1]))
        self._groups = envelope.parts[2:]
        self._first = envelope.lo // envelope.group  # the groups of a lease begin here
        self._group = envelope.group
        self._hi = envelope.hi
        self.owner = envelope.owner
        self.ordinal = envelope.first
        self.seconds = 0.0  # that opening has taken so far
        self._opened = -1
        self._states: list = []
        if half and half[0] == self._groups[0]:
            self._opened, self._states = self._first, half[1]

    @property
    def half(self) -> tuple | None:
        """What the next lease may go on with: states in groups hold nothing that a task could have changed."""
        group, place = divmod(self._hi, self._group)
        return (self._groups[-1], self._states) if place and group == self._opened else None

    def alike(self, i: int) -> tuple[type, list, int, int] | None:
        """The class and the states of the group of task i, with the places in it from i to the end of the lease; None
        if its tasks are of several classes, or have a way of their own."""
        if self._index or self._table[0][2]:
            return None
        cls = self._classes[0] or self._find(0)
        if cls.clean_up is not Task.clean_up:
            return None
        group, place = divmod(i, self._group)
        states = self._open(group)
        stop = min(len(states), self._hi - group * self._group)
        return (cls, states, place, stop) if place < stop else None

    def task(self, i: int) -> Task:
        """Makes task i; a new object at each call."""
        group, place = divmod(i, self._group)
        task = self._open(group)[place]
        kind = self._index[i] if self._index else 0
        if not self._table[kind][2]:
            cls = self._classes[kind] or self._find(kind)
            state, task = task, cls.__new__(cls)
            task.__dict__ = state.copy()  # one task may have been pushed many times
        task._owner = self.owner
        task._ordinal = self.ordinal + i
        return task

    def _open(self, group: int) -> list:
        if group != self._opened:
            began = time.perf_counter()
            self._states = rpc.open_sealed(self._groups[group - self._first])
            self._opened = group
            self.seconds += time.perf_counter() - began
        return self._states

    def _find(self, kind: int) -> type:
        cls = self._classes[kind] = find_class(*self._table[kind][:2])
        return cls


def publish(obj: Any) -> rpc.Shared:
    """Publishes an object: a reference that any task may carry, whose `get()` gives the object where it is needed.

    For tasks and hooks of task systems as for clients. Each slave fetches the object once, and its workers map the same
    memory; it stays until the client ends for which it was published. A task that returns `publish(result)` leaves a
    large result where it is until somebody asks. Raises UsageError if the object cannot be pickled.
    """
    return sys.modules[rpc.WIRE].Shared.exchange.publish(obj)


# -- failures ------------------------------------------------------------------------------------------------------

OUR_FILES = ("tasks.py", "rpc.py", "client.py", "slave.py", "master.py", "components.py")


def describe_failure(error: BaseException, root: str = "", kind: str = "error", itself: bool = True) -> dict:
    """An exception as a JSON object that every node can read.

    `root` is cut from file names, so that they read as in the user's own folder; frames of this package are left out.
    `itself`: with the pickle of the exception, which this process then opens to see whether it can be.
    """
    frames = _frames(error)
    if isinstance(error, components.Error) and not frames:  # ours, about something of the user's
        text, where = error.text(), ""
        return {"type": type(error).__name__, "message": error.what, "traceback": text, "where": where, "kind": kind}
    if getattr(error, "errno", 0) in (errno.EPERM, errno.EACCES, errno.EROFS) and _confinement.level != "off":
        attempt(setattr, error, "__notes__", [*getattr(error, "__notes__", ()), CONFINED])
    text = _format(error, root)[-TRACEBACK_LIMIT:]
    where = _place_of(frames[-1], root) if frames else ""
    failure = {"type": _type_name(error), "message": _text_of(error), "traceback": text, "where": where, "kind": kind,
               "hidden": "\n".join(map(_place_of, _frames(error, ours=True)[-100:]))}
    sealed = _seal_exception(error) if itself else ""
    return {**failure, **_beside(error), **({"pickle": sealed} if sealed else {})}


def _beside(error: BaseException, depth: int = 1) -> dict:
    """What an exception carries beside its text: its notes, and its cause (or what was being handled) as an object."""
    notes = getattr(error, "__notes__", ())
    told: dict = {"notes": list(map(_text_of, notes[:CHAIN_LIMIT]))} if isinstance(notes, list) and notes else {}
    handled = None if error.__suppress_context__ else error.__context__
    cause = handled if error.__cause__ is None else error.__cause__
    if cause is not None and depth < CHAIN_LIMIT:
        told["cause"] = {"type": _type_name(cause), "message": _text_of(cause), **_beside(cause, depth + 1)}
    return told


def _text_of(error: Any) -> str:
    text, problem = attempt(str, error)
    return f"(its text cannot be made: {type(problem).__name__})" if problem is not None else text[:4096]


def _is_ours(filename: str) -> bool:
    folder, name = os.path.split(filename)
    return filename == "fastpath.pyx" or (name in OUR_FILES and folder == os.path.dirname(__file__))


def _place_of(frame: traceback.FrameSummary, root: str = os.path.dirname(__file__)) -> str:
    return f"{_shorten(frame.filename, root)}:{frame.lineno} in {frame.name}"


def _shorten(filename: str, root: str) -> str:
    return filename[len(root) + 1 :] if root and filename.startswith(root + os.sep) else filename


def _format(error: BaseException, root: str) -> str:
    """The traceback of an exception and of what led to it, frames of this package left out."""
    texts, seen = [], set()
    link = ""
    while error is not None and id(error) not in seen and len(texts) < CHAIN_LIMIT:
        seen.add(id(error))
        texts.insert(0, _format_one(error, root) + link)
        if error.__cause__ is not None:
            error, link = error.__cause__, "\nwhich led to this:\n\n"
        else:
            error, link = None if error.__suppress_context__ else error.__context__, "\nand while this was handled:\n\n"
    return "".join(texts)


def _format_one(error: BaseException, root: str) -> str:
    lines = ["Traceback (most recent call last):\n"]
    for frame in _frames(error):
        lines.append(f'  File "{_shorten(frame.filename, root)}", line {frame.lineno}, in {frame.name}\n')
        if frame.line:
            lines.append(f"    {frame.line}\n")
    notes = "".join(f"{note}\n"[:4096] for note in getattr(error, "__notes__", ()))
    return "".join(lines[-100:]) + f"{_type_name(error)}: {_text_of(error)}\n{notes}"


def _frames(error: BaseException, ours: bool = False) -> list:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename) == ours]


def _type_name(error: BaseException) -> str:
    return _class_name(type(error))


def _class_name(cls: type) -> str:
    plain = cls.__module__ in ("builtins", "__main__") or cls.__module__.rpartition(".")[0] == __package__
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def read_stack(text: str, root: str) -> tuple[str, str]:
    """What `faulthandler` wrote of a process, as a traceback of its main thread without frames of ours, and the last
    line of the application's; two empty texts if there is none."""
    _, _, current = text.partition("Current thread ")
    found = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', current.partition("\n\n")[0], re.MULTILINE)[::-1]
    ours = [at for at, (file, _, _) in enumerate(found) if _is_ours(file)]  # the first of these began the worker
    frames = [(file, int(line), name) for file, line, name in found[ours[0] if ours else 0 :] if not _is_ours(file)]
    if not frames:
        return "", ""
    lines = ["Traceback (most recent call last):\n"]
    for file, line, name in frames:
        lines.append(f'  File "{_shorten(file, root)}", line {line}, in {name}\n')
        source = linecache.getline(file, line).strip() if file.startswith(root + os.sep) else ""
        lines += [f"    {source}\n"] if source else []
    file, line, name = next((one for one in reversed(frames) if one[0].startswith(root + os.sep)), frames[-1])
    return "".join(lines[-100:]), f"{_shorten(file, root)}:{line} in {name}"


def _seal_exception(error: BaseException) -> str:
    """The exception itself, if it survives the journey and names nothing of ours; else an empty text."""
    if isinstance(error, components.Error) or type(error).__module__.startswith(__package__ or "?"):
        return ""
    data, problem = attempt(rpc.dumps, error)
    if problem is not None or len(data) > TRACEBACK_LIMIT:
        return ""
    again, problem = attempt(pickle.loads, data)
    return "" if problem is not None or type(again) is not type(error) else base64.b64encode(data).decode()


def cancelled_failure() -> dict:
    """The failure of what was stopped on request."""
    return {"type": "Cancelled", "message": "it was cancelled", "traceback": "", "where": "", "kind": "cancelled"}


def open_failure(failure: dict, load: Callable = pickle.loads) -> BaseException:
    """The exception to hand to callbacks: the original one where `load` can make it, else a `TaskError`.

    Its `__cause__` shows the remote traceback; `failure` holds the description.
    """
    sealed, _ = attempt(base64.b64decode, failure.get("pickle", ""))
    error, _ = attempt(load, sealed) if sealed else (None, None)
    if not isinstance(error, BaseException) or attempt(_dress, error, failure)[1] is not None:
        error = TaskError(failure)  # its class does not exist here, or takes no attributes
        _dress(error, failure)
    return error


def _dress(error: BaseException, failure: dict) -> None:
    error.__cause__ = RemoteTraceback(failure.get("traceback", ""))
    error.failure = failure


# -- the owner's half ----------------------------------------------------------------------------------------------

class Flight:
    """A batch that is out: its tasks, what is still open, and the message to repeat until it is accepted."""

    __slots__ = ("accepted", "answered", "first", "message", "number", "open", "size", "source", "tasks")

    def __init__(self, number: int, first: int, tasks: list[Task], source: Source, size: int, message: tuple):
        self.number = number
        self.first = first  # the ordinal of its first task
        self.tasks: list[Task | None] = tasks
        self.source = source
        self.size = size
        self.message: tuple | None = message
        self.open = len(tasks)
        self.accepted = self.answered = False


class Source:
    """Where tasks come from: an iterable that is drawn by credit. `response` and `refused` are called at most once.

    `step` is the step of the system that made it (0 for plain tasks).
    """

    def __init__(self, tasks: Iterable[Task], response: Callable[[int], None], refused: Callable[[dict], None]):
        self.tasks = iter(tasks)
        self.response = response
        self.refused = refused
        self.unaccepted = 0
        self.count = 0
        self.drawn = False

    def settle(self) -> None:
        """Calls `response` once all of it was drawn and accepted."""
        if self.drawn and not self.unaccepted and self.response:
            response, self.response = self.response, None
            response(self.count)


class Owner:
    """Keeps tasks from the push to the outcome: draws by credit, packs, submits, opens results, calls back.

    `call(method, *params, parts=())` sends to the master. `callback(task, result, error)` gets every outcome, after
    `task.finished`; with `handles` it gets a `Handle` of the task. `options` go with every batch (the bundle's digest).
    `load` opens the pickles that come from slaves. All methods belong to one thread.
    """

    @staticmethod
    def keep(parts: list) -> list:
        """The parts of a batch, copied where the user's code may change them."""
        return list(map(rpc.frozen, parts))

    def __init__(self, call: Callable, callback: Callable, options: dict, name: str = "", handles: bool = False,
                 load: Callable = pickle.loads):
        rpc.speak_wire()
        self.call = call
        self.load = load
        self.callback = callback
        self.handles = handles
        self.name = name
        self.flights: dict[int, Flight] = {}
        self.taken = 0  # tasks pushed or drawn so far
        self.unsent = 0  # tasks of batches that wait for room
        self.weight = 0  # bytes of the records that are out
        self.done = self.failed = 0  # tasks
        self.failures: list[tuple[str, dict]] = []  # the first thousand, for the report
        self.records: dict[str, list[bytes]] = {}  # the first failed tasks, as they travel
        self.most_records = WINDOW_BYTES  # bytes of these
        self.seconds = 0.0
        self.attempt = 1  # of the outcomes that are told now
        self.slaves: set[str] = set()
        self._sources: collections.deque[Source] = collections.deque()
        self._loose: list[Task] = []
        self._loose_source: Source | None = None
        self._waiting: collections.deque[tuple[list[Task], Source]] = collections.deque()  # batches that wait for room
        self._packer = Packer(options)
        self.drawn = 0  # tasks sent so far; the ordinal of the next one
        self.batches = 0  # number of the next batch
        self._settled: list[int] = []  # batches whose callbacks ran, not yet told
        self._settle_at = 0.0
        self._unsendable: collections.deque[tuple] = collections.deque()  # tasks and why
        self._cancelled: dict[tuple, bool] = {}  # (batch, place or None) -> kill; for a master that must be told again
        self._chunk = 16
        self.closed = False
        self.pulse: Any = None  # where to write the next of `turns` before each task is drawn
        self.turns: Iterator[int] = iter(())

    # what the application gives

    def push(self, task: Task, response: Callable | None = None, refused: Callable | None = None) -> None:
        """Takes one task. Tasks pushed in a row travel together."""
        if self._loose_source is None:
            self._loose_source = Source((), response, refused)
            self._loose_source.drawn = True
        self._loose.append(task)
        self.taken += 1
        if len(self._loose) >= self._chunk:
            self._gather()
            if self._room():
                self._submit_waiting()

    def draw(self, tasks: Iterable[Task], response: Callable | None = None, refused: Callable | None = None) -> Source:
        """Takes an iterable, which is drawn as the swarm has room."""
        source = Source(tasks, response, refused)
        self._sources.append(source)
        return source

    def pump(self) -> None:
        """Sends as much as the window lets through: loose tasks first, then what the sources give."""
        if self._loose:
            self._gather()
        while not self.closed and (self._unsendable or ((self._waiting or self._sources) and self._room())):
            if self._unsendable:
                self._failed(*self._unsendable.popleft())
            elif self._waiting:
                self._submit_waiting()
            else:
                self._draw_some()
        if self._settled and (len(self._settled) >= SETTLE_MANY or time.monotonic() >= self._settle_at):
            settled, self._settled = self._settled, []
            self.call("settled", settled)

    def cancel(self, task: Task | str, kill: bool = False) -> None:
        """Cancels a task, given by itself, its handle or its id: it ends as failed with "Cancelled", unless it has its
        outcome by then, or is not out at all. `kill`: its worker is killed if it runs. Raises UsageError for a text
        that is no id of a task of this owner."""
        if isinstance(task, Task) and (self._withdraw(task) or not task.task_id):
            return
        ordinal = self._ordinal_of(task)
        for flight in self.flights.values():
            place = ordinal - flight.first
            if 0 <= place < len(flight.tasks) and flight.tasks[place] is not None:
                self._cancelled[flight.number, place] = kill
                self.call("cancel_task", flight.number, place, kill)

    def cancel_all(self, kill: bool = False) -> None:
        """Cancels every task that has no outcome yet, and draws no more."""
        self._sources.clear()
        for task in [*self._loose, *(task for tasks, _ in self._waiting for task in tasks)]:
            self._withdraw(task)
        self._cancelled.update({(number, None): kill for number in self.flights})
        self.call("cancel", None, kill)

    def _withdraw(self, task: Task) -> bool:
        """Takes a task back that was not sent yet."""
        for tasks in (self._loose, *(tasks for tasks, _ in self._waiting)):
            at = next((at for at, one in enumerate(tasks) if one is task), None)
            if at is not None:
                self.unsent -= tasks is not self._loose
                self._unsendable.append((tasks.pop(at), cancelled_failure()))
                return True
        return False

    def _ordinal_of(self, task: Task | str) -> int:
        if isinstance(task, Task):
            return task._ordinal
        name, _, ordinal = str(task).rpartition(".")
        mine = name == self.name or isinstance(task, Handle)  # one from before a master gave us another name
        if not (mine and ordinal.isdecimal()):
            raise components.UsageError(
                f"{str(task)[:80]!r} cannot be cancelled", f"tasks of this owner have ids such as {self.name}.0",
                "give the task, the handle of a callback, or the task_id",
            )
        return int(ordinal)

    def _draw_some(self) -> None:
        source = self._sources[0]
        tasks = self._take(source, self._chunk)
        self._submit(tasks, source)
        if source.drawn and source in self._sources:  # its own code may have cancelled everything
            self._sources.remove(source)
            source.settle()

    @property
    def outstanding(self) -> int:
        """Tasks pushed or drawn that have no outcome yet."""
        return self.taken - self.done - self.failed

    @property
    def idle(self) -> bool:
        """True if nothing is out and nothing is left to draw."""
        return not self.outstanding and not self._sources

    def close(self) -> None:
        """Draws no more and forgets what is out."""
        self.closed = True
        self._sources.clear()
        self._loose.clear()
        self._waiting.clear()
        self.flights.clear()
        self.taken = self.done + self.failed

    # what the master says

    def accepted(self, numbers: list[int]) -> None:
        """These batches are safe with the master."""
        for number in numbers:
            flight = self.flights.get(number)
            if flight is None:  # settled before, and the master never heard of it
                self._settle(number)
            elif not flight.accepted:
                flight.accepted = True
                flight.message = None
                self._answer(flight)
                self._forget_if_done(flight)

    def refused(self, number: int, reason: str) -> None:
        """The master takes this batch not; its tasks end as failed."""
        flight = self.flights.get(number)
        if flight is None:
            return
        failure = {"type": "Refused", "message": reason, "traceback": "", "where": "", "kind": "refused"}
        if flight.source.refused and flight.open:
            flight.source.refused({"c": -32000, "m": reason, "t": ""})
        flight.source.response = None
        self.accepted([number])
        self.outcome(number, 0, len(flight.tasks), 0.0, {"*": failure}, "", 1, [])

    def resubmit(self, known: bool) -> None:
        """Sends again what was never accepted, to a master that may be a new one.

        If it does not know this owner any more, it has lost what an earlier one had accepted: those tasks fail.
        """
        for flight in list(self.flights.values()):
            if not flight.open:  # all outcomes are here: nothing is to run again
                self.accepted([flight.number])
            elif flight.message:
                params, parts = flight.message
                self.call("submit", *params, parts=parts)
            elif not known:
                self.outcome(flight.number, 0, len(flight.tasks), 0.0, {"*": FORGOTTEN}, "", 1, [])
        self._cancel_again()

    def _cancel_again(self) -> None:
        """What was to be cancelled may have got lost with the master that heard it."""
        self._cancelled = {place: kill for place, kill in self._cancelled.items() if place[0] in self.flights}
        for (number, place), kill in self._cancelled.items():
            if place is None:
                self.call("cancel", number, kill)
            elif self.flights[number].tasks[place] is not None:
                self.call("cancel_task", number, place, kill)

    def outcome(self, number: int, lo: int, hi: int, seconds: float, failures: dict, slave: str, attempt: int,
                parts: list) -> None:
        """Outcomes of tasks lo..hi-1 of a batch, of the attempt of that number; a repeated one changes nothing."""
        flight = self.flights.get(number)
        if flight is None:
            return
        self._answer(flight)
        results, failures = self._open(lo, hi, parts, failures)
        self.seconds += seconds
        self.slaves.add(slave)
        self.attempt = attempt
        if failures:
            self._settle_one_by_one(flight, lo, results, failures, slave)
        else:
            settle(self, flight, lo, results, self._handle, Task.finished)
        if not flight.open:
            self.weight -= flight.size
            flight.size = 0
        self._forget_if_done(flight)

    @property
    def deadline(self) -> float | None:
        """When to call `pump` again though nothing happens."""
        return self._settle_at if self._settled else None

    # what outlives its process

    KEPT = ("taken", "drawn", "done", "failed", "failures", "seconds", "slaves", "batches", "_chunk", "unsent")

    def can_be_saved(self, left_out: Source | None) -> bool:
        """Whether all that is begun can be pickled, apart from the source `left_out`."""
        sources = [source for source in self._sources if source is not left_out]
        return not (self._loose or self._unsendable) and all(type(one.tasks) in LISTED for one in sources)

    def save(self, left_out: Source | None) -> dict:
        """All that a copy needs to go on from here, to be pickled, but for the source `left_out`."""
        out = [flight for flight in self.flights.values() if flight.open]
        return {
            **{name: getattr(self, name) for name in self.KEPT},
            "flights": [(one.number, one.first, one.tasks, one.size, one.open) for one in out],
            "waiting": [tasks for tasks, _ in self._waiting],
            "sources": [None if source is left_out else source.tasks for source in self._sources],
        }

    def resume(self, saved: dict, left_out: Iterable[Task]) -> Source | None:
        """Goes on from what another has saved; the master knows the batches that are out. `left_out` takes the place of
        the source that was; returns that source."""
        for name in self.KEPT:
            setattr(self, name, saved[name])
        done = Source((), None, None)
        done.drawn, done.unaccepted = True, len(saved["waiting"])
        self._waiting.extend((tasks, done) for tasks in saved["waiting"])
        for number, first, tasks, size, left in saved["flights"]:
            flight = self.flights[number] = Flight(number, first, tasks, done, size, None)
            flight.open, flight.accepted, flight.answered = left, True, True
            self.weight += size
        drawn = [self.draw(left_out if one is None else one) for one in saved["sources"]]
        return drawn[saved["sources"].index(None)] if None in saved["sources"] else None

    def open_ranges(self) -> list[list]:
        """[number, [[lo, hi], ...]] for each batch that is out: its tasks without an outcome."""
        return [[number, _ranges(flight.tasks)] for number, flight in self.flights.items() if flight.open]

    # inside

    def _room(self) -> bool:
        """Whether a whole batch may go out: were the window filled up with what each outcome leaves free, batches would
        become ever smaller."""
        return self.outstanding - self.unsent + self._chunk <= WINDOW and self.weight < WINDOW_BYTES

    def _take(self, source: Source, count: int) -> list[Task]:
        drawn, pulse = itertools.islice(source.tasks, count), self.pulse
        tasks = list(drawn) if pulse is None else [task for pulse[0], task in zip(self.turns, drawn, strict=False)]
        source.drawn = len(tasks) < count
        source.count += len(tasks)
        self.taken += len(tasks)
        return tasks

    def _gather(self) -> None:
        """The loose tasks become a batch that waits for room."""
        tasks, self._loose = self._loose, []
        source, self._loose_source = self._loose_source, None
        source.count = len(tasks)
        self._wait(tasks, source)

    def _wait(self, tasks: list[Task], source: Source, first: bool = False) -> None:
        """These tasks are a batch that waits for room, at the end or as the first one."""
        self.unsent += len(tasks)
        source.unaccepted += 1
        if first:
            self._waiting.appendleft((tasks, source))
        else:
            self._waiting.append((tasks, source))

    def _submit_waiting(self) -> None:
        tasks, source = self._waiting.popleft()
        self.unsent -= len(tasks)
        self._submit(tasks, source)
        source.unaccepted -= 1
        source.settle()

    def _submit(self, tasks: list[Task], source: Source) -> None:
        """Packs and sends tasks, in a batch for each run of equal resources and limits; what cannot be packed fails
        here."""
        if asks_nothing(tasks, ASKS):
            self._submit_alike(tasks, source, None)
            return
        pairs = []
        for task in tasks:
            try:
                pairs.append((_asked(task), task))
            except components.Error as error:
                self._unsendable_task(task, error, source)
        pairs.sort(key=lambda pair: json.dumps(pair[0], sort_keys=True))
        for asked, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
            self._submit_alike([task for _, task in run], source, asked)

    def _submit_alike(self, tasks: list[Task], source: Source, asked: dict | None) -> None:
        while tasks:
            try:
                batch = self._packer.pack(tasks, asked)
            except components.Error as error:
                if error.index is None:  # no task at all: the mistake of whoever pushed it
                    raise
                self._unsendable_task(tasks.pop(error.index), error, source)
            else:
                short = len(batch.parts[0]) <= MOST_HEAD
                fitting = short and fits(batch.size)
                if len(tasks) > 1 and (batch.size > MOST_BYTES or not fitting):
                    self._wait(tasks[len(tasks) // 2 :], source, first=True)
                    self._submit_alike(tasks[: len(tasks) // 2], source, asked)
                elif fitting:
                    self._send(batch, tasks, source)
                else:
                    name = tasks[0].name
                    error = too_large(f"task {name}", batch.size) if short else too_much(name)
                    self._unsendable_task(tasks[0], error, source)
                return

    def _unsendable_task(self, task: Task, error: components.Error, source: Source) -> None:
        self._unsendable.append((task, describe_failure(error, kind="unsendable")))
        if source.refused:
            source.refused({"c": -32602, "m": error.what, "t": "", "e": error})

    def _send(self, batch: Batch, tasks: list[Task], source: Source) -> None:
        number, first = self.batches, self.drawn
        self.batches += 1
        self.drawn += batch.count
        params, parts = (number, batch.count, batch.group, first), self.keep(batch.parts)
        number_tasks(tasks, self.name, first)
        self.flights[number] = Flight(number, first, tasks, source, batch.size, (params, parts))
        source.unaccepted += 1
        self.weight += batch.size
        if batch.size < CHUNK_BYTES // 4:
            self._chunk = min(self._chunk * 2, CHUNK)
        elif batch.size > CHUNK_BYTES:
            self._chunk = max(1, self._chunk // 4)
        self.call("submit", *params, parts=parts)

    @staticmethod
    def _answer(flight: Flight) -> None:
        """The master has it: whoever pushed it hears so, before any outcome."""
        if not flight.answered:
            flight.answered = True
            flight.source.unaccepted -= 1
            flight.source.settle()

    def _open(self, lo: int, hi: int, parts: list, failures: dict) -> tuple[list, dict]:
        """The results of lo..hi-1; one that cannot be opened here is a failure more."""
        if not parts:
            return [None] * (hi - lo), failures
        results: list = []
        for part in parts:
            some, error = attempt(rpc.open_sealed, part, self.load)
            if isinstance(error, rpc.PayloadGone):  # how many were in it?
                return [None] * (hi - lo), {**failures, "*": describe_failure(error, kind="result")}
            if error is not None:  # only single results can fail, groups are plain
                failures = {**failures, str(lo + len(results)): describe_failure(error, kind="result")}
            results += some or [None]
        if len(results) != hi - lo:
            error = components.Error(f"{len(results)} results came for {hi - lo} tasks", "a worker lost count")
            return [None] * (hi - lo), {**failures, "*": describe_failure(error, kind="result")}
        return results, failures

    def _failed(self, task: Task, failure: dict) -> None:
        self.failed += 1
        if len(self.failures) < 1000:
            self.failures.append((task.task_id or task.name, failure))
        if len(self.records) < FAILED_KEPT and failure.get("kind") not in NOT_RUN and task.task_id:
            self._keep_record(task)
        error = open_failure(failure, self.load)
        if type(task).finished is not Task.finished:
            task.finished(None, error)
        self.callback(Handle.of(task, failure.get("attempt", self.attempt)) if self.handles else task, None, error)

    def _keep_record(self, task: Task) -> None:
        """Keeps a task as it travels, unless it is too large."""
        batch, error = attempt(self._packer.pack, [task], task.resources)
        if error is None and batch.size <= self.most_records:
            self.most_records -= batch.size
            self.records[task.task_id] = [part if type(part) is bytes else b"".join(part) for part in batch.parts]

    @property
    def _handle(self) -> Callable | None:
        """What makes the handles of tasks that have their outcome now."""
        if not self.handles:
            return None
        return Handle if self.attempt == 1 else functools.partial(Handle.in_attempt, self.attempt)

    def _settle_one_by_one(self, flight: Flight, lo: int, results: list, failures: dict, slave: str) -> None:
        for i, result in enumerate(results, lo):
            failure = failures.get(str(i)) or failures.get("*")
            if failure is None:
                settle(self, flight, i, [result], self._handle, Task.finished)
            elif not (flight.tasks[i] is None or self.closed or "retried" in failure):
                task, flight.tasks[i] = flight.tasks[i], None
                task._ordinal = flight.first + i
                flight.open -= 1
                self._failed(task, {**failure, "slave": slave})

    def _forget_if_done(self, flight: Flight) -> None:
        if not flight.open and flight.accepted and self.flights.pop(flight.number, None):
            self._settle(flight.number)

    def _settle(self, number: int) -> None:
        if not self._settled:
            self._settle_at = time.monotonic() + SETTLE_EVERY
        self._settled.append(number)


def _ranges(tasks: list[Task | None]) -> list[list[int]]:
    """The ranges of a list in which there are tasks."""
    runs = itertools.groupby(enumerate(tasks), key=lambda pair: pair[1] is not None)
    found = [list(run) for there, run in runs if there]
    return [[run[0][0], run[-1][0] + 1] for run in found]


def _asked(task: Task) -> dict:
    """The resources and limits of a task, for the head of its batch. Raises UsageError for a limit that is none."""
    said = {name: getattr(task, name, None) for name in ASKS[1:]}  # something that is no task: packing will say so
    limits = {name: value for name, value in said.items() if value is not None}
    if "retries" in limits:
        limits["retries"] = retry_rules(limits["retries"])
    for name, value in limits.items():
        if not may_ask(name, value):
            raise components.UsageError(
                f"task {getattr(task, 'name', '?')} has the {name} {value!r}",
                "this attribute of a task is a limit: a number from 0"
                + (", or whole ones by exception, such as {ConnectionError: 3}" if name == "retries" else ""),
                "give the number, or another name to an attribute that means something else",
            )
    resources = getattr(task, "resources", None)
    return {**({"resources": resources} if resources else {}), **({"limits": limits} if limits else {})}


class SystemMaster:
    """What a task system sees of its master: push more tasks, know the step, read the clock.

    Passed as `master` to every hook. `task_scheduler` is the same object, for applications that push through it.
    `random` (a `random.Random`) gives the same numbers to a copy of the system that goes on elsewhere.
    """

    def __init__(self, run: SystemRun):
        self._run, self.random = run, run.random
        self.log = logging.getLogger(f"{__name__}.system")

    @property
    def task_scheduler(self) -> SystemMaster:
        """This object."""
        return self

    def push_task(self, task: Task) -> None:
        """Adds a task, at any time."""
        self.push_tasks([task])

    def push_tasks(self, tasks: Iterable[Task]) -> None:
        """Adds tasks from any iterable, drawn as the swarm has room."""
        self._run.push(tasks)

    def cancel_task(self, task: Task, kill: bool = False) -> None:
        """Ends a task as failed with "Cancelled", unless it has its outcome by then. What runs of it goes on unheard,
        or is ended too with `kill`."""
        self._run.owner.cancel(task, kill)

    def cancel_tasks(self, kill: bool = False) -> None:
        """Ends all tasks that have no outcome, and draws no more of what was pushed."""
        self._run.cancel_all(kill)

    def publish(self, obj: Any) -> rpc.Shared:
        """A reference to an object, for tasks to carry; see `tasks.publish`."""
        return publish(obj)

    def now(self) -> float:
        """Seconds since 1970, as `time.time()`; a copy of the system that goes on elsewhere is told the same."""
        return self._run.value(time.time)

    @property
    def outstanding(self) -> int:
        """How many tasks have no outcome yet, those not drawn from a generator left out."""
        return self._run.outstanding

    @property
    def step(self) -> int:
        """The number of the current step, from 1."""
        return self._run.step

    @property
    def attempt(self) -> int:
        """In `task_finished`: the attempt in which the task had its outcome, 1 unless it ran again."""
        return self._run.owner.attempt


BRIEF = 300  # characters of a result that people are shown
PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), list, tuple, dict, set, frozenset})


class _Briefly(reprlib.Repr):
    """Names things of Python's own kinds; code of others never runs, for it may never end."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 200

    def repr1(self, x, level):
        known = type(x) in PLAIN
        if type(x) in (dict, set, frozenset):  # they are sorted
            known = PLAIN.difference((tuple, frozenset)).issuperset(map(type, x))
        return super().repr1(x, level) if known else "…"


def brief(result: Any) -> str:
    """A result in a few words, for people, if it is of Python's own kinds; "" if not, or if it is None."""
    text, error = attempt(_Briefly().repr, result)  # a number may have too many digits
    return text[:BRIEF] if result is not None and type(result) in PLAIN and error is None else ""


# The hooks of a system; a beat of its host says by its remainder which of them was called last, 0: it waits.
HOOKS = ("", "init_system", "generate_tasks", "finished", "task_finished", "is_complete", "gather_result")


class SystemRun:
    """Drives one task system: steps, outcomes, completion. The owner lives in this process; nothing here waits.

    `call(method, *params, parts=())` speaks to the master as `Owner` does. `pulse[0]` becomes another number whenever a
    call of a hook begins.
    """

    def __init__(self, system: ITaskSystem, call: Callable, options: dict, name: str, root: str = "",
                 pulse: Any = None):
        self.system = system
        self.system.log = logging.getLogger(f"{__name__}.{type(system).__name__}")
        self.call = call
        self.root = root
        self.step = 0
        self.done = False
        self.waiting = False  # for a person to allow the next step
        self.random = random.Random(options.pop("seed", None))
        self._values = collections.deque(options.pop("values", ()))  # what the clock said to an earlier copy
        self._saves = bool(options.pop("saves", False))
        self._heard = self._history = 0  # messages, and bytes about, since the last snapshot
        self._saved_size = SNAPSHOT_LEAST // 2
        self.stats = self.system._swarm_stats = components.Stats(FIGURES)
        self._told: dict[str, tuple] = {}  # what of it the master has heard
        self._tell_at, self.unsaid = 0.0, True  # there may be something to say
        options.pop("hook_timeout", None)  # the master's affair
        self.by_hand = bool(options.pop("by_hand", False))
        self.lockstep = bool(options.pop("lockstep", False) or system.lockstep or self.by_hand)
        self.owner = Owner(call, self._task_finished, options, name)
        self.owner.keep = list  # what a host sends has left it when the call returns
        self.owner.most_records = CHUNK_BYTES // 4  # they go home in a call
        self._turns = {hook: itertools.count(len(HOOKS) + place, len(HOOKS)) for place, hook in enumerate(HOOKS)}
        self._pulse = self.owner.pulse = [0] if pulse is None else pulse
        self.owner.turns = self._turns["generate_tasks"]
        self.master = SystemMaster(self)
        self._held: list[Iterable[Task]] = []
        self._renewable: Source | None = None  # what generate_tasks gave last, if a new call gives the rest of it
        self._began_at = 0

    @property
    def outstanding(self) -> int:
        """Tasks without an outcome; at least 1 while some are still to be drawn or held back."""
        owner = self.owner
        return owner.taken - owner.done - owner.failed or int(not owner.idle or bool(self._held))

    def start(self) -> None:
        """Calls `init_system` and begins the first step."""
        self._guarded("init_system", self.system.init_system, self.master)
        self._begin_step()

    def value(self, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept by the master; a copy that repeats an earlier one gets what that one got."""
        if self._values:
            return self._values.popleft()
        value = make()
        self.call("value", value)
        return value

    # snapshots: what a copy starts from, in place of all that happened before

    def _look_back(self, size: int) -> None:
        """A message was dealt with; saves the system once its history outweighs it."""
        self._heard += 1
        self._history += size
        self.unsaid = self.stats.used
        if self.unsaid and time.monotonic() >= self._tell_at:
            self.tell_figures()
        if self._saves and not self.done and self._history > 2 * self._saved_size and self._can_save():
            self._save()

    def tell_figures(self) -> None:
        """Says what hooks have recorded, as far as that has grown."""
        self._tell_at, self.unsaid = time.monotonic() + TELL_FIGURES, False
        if rows := self.stats.pack(self._told):
            self.call("figures", self.step, rows)

    def _can_save(self) -> bool:
        published = sys.modules[rpc.WIRE].Shared.exchange.used  # only a repetition publishes it again
        return not (self._held or self._values or published) and self.owner.can_be_saved(self._renewable)

    def _save(self) -> None:
        state = {"system": self.system, "step": self.step, "began_at": self._began_at, "waiting": self.waiting,
                 "by_hand": self.by_hand, "random": (self.random.getstate(), random.getstate()),
                 "owner": self.owner.save(self._renewable), "figures": self.stats.pack()}
        sealed, error = attempt(rpc.seal, state, "the system")
        if error is not None or not fits(rpc.size_of(sealed)):
            log.warning("the system cannot be saved, its whole history is kept: %s", error or "it is too large")
            self._saves = False
            return
        self._saved_size = max(SNAPSHOT_LEAST // 2, rpc.size_of(sealed))
        owner, ended = self.owner, self.owner.done + self.owner.failed
        self.call("snapshot", self._heard, owner.batches, owner.open_ranges(), owner.drawn, ended, parts=[sealed])
        self._heard = self._history = 0

    def resume(self, state: dict) -> None:
        """Goes on from a snapshot."""
        self.step, self._began_at, self.waiting = state["step"], state["began_at"], state["waiting"]
        self.by_hand = state.get("by_hand", self.by_hand)
        self.stats.next_step(self.step)
        self.stats.take_in(state.get("figures", {}))
        self.random.setstate(state["random"][0])
        random.setstate(state["random"][1])
        renew = None in state["owner"]["sources"]
        tasks = self._guarded("generate_tasks", self.system.generate_tasks, self.master) if renew else ()
        self._renewable = self._guarded("generate_tasks", self.owner.resume, state["owner"], tasks or ())
        self.call("system_step", self.step, self.waiting)  # a master that was started again does not know
        self.pump()

    def push(self, tasks: Iterable[Task]) -> None:
        """Tasks from a hook: they join the current step, or wait for the next in lock-step."""
        if self.lockstep and self.step and not self.owner.idle:
            self._held.append(tasks)
        else:
            self.owner.draw(tasks)

    def cancel_all(self, kill: bool) -> None:
        """Ends all tasks that are out or held back."""
        self._held.clear()
        self.owner.cancel_all(kill)

    def next_step(self, on: bool = False) -> None:
        """A person lets a system go on that waits at its barrier; `on`: and wait at no further one."""
        self.by_hand = self.by_hand and not on
        if self.waiting:
            self._begin_step()
        self._look_back(HISTORY_EACH)

    def _begin_step(self) -> None:
        """What was held back and a round of `generate_tasks`; sends what can be sent."""
        if self.done:
            return
        self.waiting = False
        self.tell_figures()
        self.step += 1
        self.stats.next_step(self.step)
        self._began_at = self.owner.drawn
        held, self._held = self._held, []
        for tasks in held:
            self.owner.draw(tasks)
        tasks = self._guarded("generate_tasks", self.system.generate_tasks, self.master)
        if not self.done:
            source = self._guarded("generate_tasks", self.owner.draw, tasks or ())
            self._renewable = source if self.system.resumable else None
            self.call("system_step", self.step, self.waiting)
            self.unsaid = self.stats.used
            self.pump()

    def outcome(self, *params: Any) -> None:
        """The master's message of that name."""
        self._guarded("finished", self.owner.outcome, *params)
        self.pump()
        self._look_back(HISTORY_EACH + sum(map(rpc.size_of, params[-1])))

    def pump(self) -> None:
        """Sends what can be sent, and passes the barrier once nothing is out."""
        if not self.done:
            self._guarded("generate_tasks", self.owner.pump)
        if not self.done and not self.waiting and self.owner.idle:
            self._at_barrier()

    def _at_barrier(self) -> None:
        if self._guarded("is_complete", self.system.is_complete, self.master):
            self.complete()
        elif self.done:
            return
        elif self.owner.drawn == self._began_at and not self._held:
            self.fail(components.Error(f"task system {type(self.system).__name__} would wait for ever",
                                       "generate_tasks gave no tasks, none is out, and is_complete is false",
                                       "return tasks, or let is_complete return true"), "generate_tasks")
        elif self.by_hand:
            self.waiting = True
            self.call("system_step", self.step, True)
        else:
            self._begin_step()

    def _task_finished(self, task: Task, result: Any, error: BaseException | None) -> None:
        if self.done:
            return
        hook, self._pulse[0] = "task_finished", next(self._turns["task_finished"])
        _, problem = attempt(self.system.task_finished, self.master, task, result, error)
        if problem is None and not self.done:
            hook, self._pulse[0] = "is_complete", next(self._turns["is_complete"])
            complete, problem = attempt(self.system.is_complete, self.master)
            if complete and problem is None:
                self.complete()
        if problem is not None:
            self.fail(problem, hook)
        elif type(task).finished is not Task.finished:
            self._pulse[0] = next(self._turns["finished"])  # that of the next task follows

    def complete(self) -> None:
        """Gathers the result and sends it home; nothing of the system runs after that."""
        result = self._guarded("gather_result", self.system.gather_result, self.master)
        shown = brief(result)
        self.show()
        if self.done:
            return
        try:
            sealed = rpc.seal(result, "the result of gather_result", rpc.seal_pieces)
            if not fits(rpc.size_of(sealed)):
                raise too_large("the result of gather_result", rpc.size_of(sealed))
        except components.Error as error:
            self.fail(error, "gather_result")
            return
        self.done = True
        self._report(None, [sealed], shown)

    def show(self) -> None:
        """Sends the picture of itself that waits."""
        if VIEWS.wait is not None and not self.done:
            self._guarded("task_finished", VIEWS.flush)

    def fail(self, error: BaseException, hook: str) -> None:
        """Ends the system with an error."""
        if self.done:
            return
        failure = describe_failure(error, self.root, "system")
        failure["hook"] = hook
        self.done = True
        self._report(failure, [])

    def _report(self, failure: dict | None, parts: list, shown: str = "") -> None:
        owner = self.owner
        stats = {"tasks": owner.drawn, "done": owner.done, "failed": owner.failed,
                 "steps": self.step, "seconds": owner.seconds, "slaves": sorted(owner.slaves - {""}),
                 "failures": owner.failures[:200], "records": {}, "shown": shown}
        for task, record in owner.records.items():
            stats["records"][task] = [base64.b64encode(part).decode() for part in record]
        owner.close()
        self.tell_figures()
        self.call("system_done", failure, stats, parts=parts)

    def _guarded(self, hook: str, function: Callable, *args: Any) -> Any:
        """Calls a hook of the user's; whatever it raises ends this system, and only it."""
        self._pulse[0] = next(self._turns[hook])
        result, error = attempt(function, *args)
        if error is not None:
            self.fail(error, hook)
        return result


# -- schedulers ----------------------------------------------------------------------------------------------

class ITaskScheduler(Interface):
    """Chooses the slave for each lease. A slave, here, has the attributes `id name workers resources
    tags open_tasks open_leases open_seconds credit done_tasks seconds pace last`, only to be read.

    The original's `start_system`, `push_task`, `push_tasks` and `handle_task` are gone: what is submitted,
    and that nothing of it is lost, is the Board's affair.
    """

    def setup(self, master):
        """Called once, before the first lease. `master.board.slaves` maps ids to the slaves that are here."""

    def place(self, slaves, lease):
        """Return the one of `slaves` that gets the lease, or None to be asked again later.

        slaves -- at least one, at most eight: in a large swarm those that were not served for longest.
        lease -- has `batch`, `lo`, `hi`, `attempt` and `estimate` (seconds).
        """

    def task_pushed(self, slave, count):
        """So many tasks went to the slave."""

    def task_finished(self, slave, count):
        """So many tasks are off the slave's hands, whatever became of them."""

    def rate_slaves(self):
        """(rating, slave) of every slave, the next to be chosen first; for people."""

    def stop(self):
        """Called once, after the last lease."""


class ITaskScheduleStrategy(Interface):
    """How a GenericTaskScheduler compares slaves."""

    def setup(self, scheduler, master):
        """Called once, before the first rating."""

    def rate(self, slave):
        """A number; the lower, the sooner it is chosen."""

    def get_next_slave(self, slaves):
        """The best of these slaves, or None."""


class _TaskScheduler(Component):
    """What all schedulers here have in common: they need no books of their own."""

    abstract = True
    master = None

    def setup(self, master):
        self.master = master

    def task_pushed(self, slave, count):
        pass

    def task_finished(self, slave, count):
        pass

    def stop(self):
        self.master = None


class GenericTaskScheduleStrategy(Component):
    """The slave whose tasks are likely to be done first: (open tasks + 1) / workers, times its pace, which is
    above 1 where tasks take longer than elsewhere. Without workers it is the worst."""

    implements(ITaskScheduleStrategy)

    def setup(self, scheduler, master):
        pass

    def rate(self, slave):
        return (slave.open_tasks + 1) * slave.pace / slave.workers if slave.workers else float("inf")

    def get_next_slave(self, slaves):
        return min(slaves, key=self.rate, default=None)


class GenericTaskScheduler(_TaskScheduler):
    """Push: the slave with the best rating gets the work; how slaves are rated is a strategy of its own."""

    implements(ITaskScheduler)

    strategy = ExtensionPointItem(
        "GenericTaskScheduler",
        "strategy",
        "GenericTaskScheduleStrategy",
        ITaskScheduleStrategy,
        "how slaves are compared: the one with the lowest rating gets the next lease",
    )

    def setup(self, master):
        super().setup(master)
        self._use(self.strategy)

    def _use(self, strategy):
        self._strategy = strategy
        strategy.setup(self, self.master)

    def config_changed(self, changes):
        """Another strategy takes over from the next lease on."""
        if self.master is not None and self.strategy is not self._strategy:
            self._use(self.strategy)

    def place(self, slaves, lease):
        return slaves[0] if len(slaves) == 1 else self._strategy.get_next_slave(slaves)

    def rate_slaves(self):
        rated = ((self._strategy.rate(slave), slave) for slave in self.master.board.slaves.values())
        return sorted(rated, key=lambda pair: pair[0])


class ZMQTaskScheduler(_TaskScheduler):
    """Pull: slaves announce credit, and those that have some are served in turn."""

    implements(ITaskScheduler)

    def place(self, slaves, lease):
        return slaves[0] if len(slaves) == 1 else min(slaves, key=_turn)

    def rate_slaves(self):
        slaves = sorted(self.master.board.slaves.values(), key=lambda slave: (not slave.credit, slave.last))
        return list(enumerate(slaves))


def _turn(slave):
    return slave.last


# -- the sandbox ---------------------------------------------------------------------------------------------------

LEVELS, GRANTS = ("standard", "strict", "off"), ("network", "read", "write", "subprocess")
CONFINED_FILES, CONFINED_PROCESSES = 4096, 1024  # that a confined process may have; processes: of a uid of its own
STRICT_LANDLOCK = 6  # the first that knows all that `strict` promises: files, TCP ports, signals
PROBE_WITHIN = 10.0  # seconds
MOST_ASKED = 32 * 1024  # bytes of what one application is granted: an order to the zygote has at most 64 KiB
SLOTS = 256  # uids, from the first
CONFINED = ("it runs in a sandbox: it may write in its temporary folder, and has what its application asks for by "
            "network, read, write and subprocess, as far as the owner of the node allows it")
# What is read without being asked for, beside Python itself: of the system nothing that is secret.
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")
SETTINGS = ("/etc/ld.so.cache", "/etc/localtime", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf",
            "/etc/services", "/etc/protocols", "/etc/mime.types", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
            "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/alternatives")  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
GPUS = ("/dev/nvidia*", "/dev/dri/*", "/dev/kfd")
ANYWHERE = "*"  # a network that nobody can ask for

# Of Landlock: rights to files by bit, how many of them each version knows, and its calls, alike on all processors.
EXECUTE, WRITE_FILE, READ, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2 | 1 << 3, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | 1 << 2 | 1 << 14 | IOCTL_DEV  # what a rule about something but a folder may name
WRITE = READ | WRITE_FILE | IOCTL_DEV | sum(1 << bit for bit in (4, 5, 7, 8, 9, 10, 12, 13, 14))  # none makes devices
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16, 9: 17}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446

# Of seccomp: what the kernel calls a processor, the number of `seccomp` there and a column of the calls below. That of
# aarch64 follows the kernel's headers and has not been tried.
MACHINES = {"x86_64": (0xC000003E, 317, 1), "aarch64": (0xC00000B7, 277, 2)}
NEVER = """ptrace 101 117 process_vm_readv 310 270 process_vm_writev 311 271 process_madvise 440 440 kcmp 312 272
    process_mrelease 448 448 pidfd_getfd 438 438 io_uring_setup 425 425 io_uring_enter 426 426 io_uring_register 427 427
    bpf 321 280 perf_event_open 298 241 userfaultfd 323 282 keyctl 250 219 add_key 248 217 request_key 249 218
    mount 165 40 umount2 166 39 move_mount 429 429 open_tree 428 428 fsopen 430 430 fsconfig 431 431 fsmount 432 432
    fspick 433 433 mount_setattr 442 442 open_tree_attr 467 467 pivot_root 155 41 chroot 161 51 unshare 272 97
    setns 308 268 shmget 29 194 shmat 30 196 shmctl 31 195 semget 64 190 semop 65 193 semctl 66 191 semtimedop 220 192
    msgget 68 186 msgsnd 69 189 msgrcv 70 188 msgctl 71 187 mq_open 240 180 mq_unlink 241 181 init_module 175 105
    finit_module 313 273 delete_module 176 106 kexec_load 246 104 kexec_file_load 320 294 reboot 169 142 swapon 167 224
    swapoff 168 225 syslog 103 116 quotactl 179 60 quotactl_fd 443 443 acct 163 89 settimeofday 164 170 iopl 172 -
    clock_settime 227 112 sethostname 170 161 setdomainname 171 162 vhangup 153 58 fanotify_init 300 262 ioperm 173 -
    open_by_handle_at 304 265 name_to_handle_at 303 264 migrate_pages 256 238 move_pages 279 239 listen 50 201
    modify_ldt 154 - personality 135 92"""
PROGRAMS = "fork 57 - vfork 58 - execve 59 221 execveat 322 281"  # these and the next not without `subprocess`
NAMED = """chmod 90 - fchmodat 268 53 fchmodat2 452 452 chown 92 -
    lchown 94 - fchownat 260 54 setxattr 188 5 lsetxattr 189 6 setxattrat 463 463 removexattr 197 14 lremovexattr 198 15
    removexattrat 466 466 utime 132 - utimes 235 - futimesat 261 -"""  # nor for a client: chmod and its like
# reach files that Landlock does not guard: by their names all of this user's, by a descriptor those that can be read,
# which for root is the system.
OPEN = "fchmod 91 52 fchown 93 55 fsetxattr 190 7 fremovexattr 199 16"
NEW_MOUNTS, BIND, PRIVATE, MOUNT_SETATTR, READ_ONLY = 0x20000, 0x5000, 0x44000, 442, 1
DECIDED = """clone 56 220 clone3 435 435 socket 41 198 socketpair 53 199 prlimit64 302 261 setpriority 141 140
    ioprio_set 251 30 sched_setaffinity 203 122 sched_setscheduler 144 119 sched_setparam 142 118 sched_setattr 314 274
    sendto 44 206 sendmsg 46 211 sendmmsg 307 269 utimensat 280 88"""
NEW_SPACES, THREAD, FAST_OPEN = 0x7E020000, 0x10000, 0x20000000  # flags of clone; of sendto: connects past Landlock
LOAD, AND, IF, FROM, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # steps of a filter
ALLOW, KILL, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


class Confinement(NamedTuple):
    """What one child may do beside computing. Travels as JSON in the order to fork it."""

    level: str = "off"
    folder: str = ""  # its own: where it may write, its HOME and TMPDIR
    read: tuple[str, ...] = ()  # further files and folders
    write: tuple[str, ...] = ()
    network: tuple[str, ...] = ()  # HOST:PORT to which it may connect
    subprocess: bool = False  # whether it may start programs
    uid: int = 0  # of its slot; 0: that of its node
    client: bool = False  # whether it speaks ZeroMQ


UNCONFINED = Confinement()
_confinement = UNCONFINED  # of this process


def confine(wanted: Confinement, root: str) -> dict[str, Any]:
    """Takes from this process, and from all that it starts, for good, what it is not to have; `root` is its bundle.
    Returns what was applied. Raises OSError if something that this kernel has cannot be.

    Call it before there is any thread and before anything of the user's is read.
    """
    global _confinement
    if wanted.level == "off":
        return {}
    _confinement, answers = wanted, _resolve(wanted.network)
    _move_in(wanted, root)
    if os.name == "posix":
        _limit_resources(wanted.uid)
    applied = {"landlock": 0, "seccomp": False, "uid": bool(wanted.uid)}
    if sys.platform == "linux":
        locked = os.geteuid() != 0 or wanted.uid != 0 or _lock_mounts(wanted, root)
        _drop_privileges(wanted, root)
        applied.update(landlock=_restrict_files(wanted, root), seccomp=_filter_calls(wanted, locked))
    if answers:
        socket.getaddrinfo = functools.partial(_getaddrinfo, socket.getaddrinfo, answers)
    if applied["seccomp"] and not wanted.subprocess:
        os.chmod, os.utime = (functools.partial(_by_descriptor, change) for change in (os.chmod, os.utime))
    return applied


def _move_in(wanted: Confinement, root: str) -> None:
    """The folder of its own, also for those who have asked for a place before."""
    os.makedirs(wanted.folder, 0o700, exist_ok=True)
    if wanted.uid:
        os.chown(wanted.folder, wanted.uid, wanted.uid)
        os.chmod(root, 0o755)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), wanted.folder))
    tempfile.tempdir = None
    os.chdir(wanted.folder)


def _limit_resources(uid: int) -> None:
    import resource

    for name, value in {"CORE": 0, "NOFILE": CONFINED_FILES, **({"NPROC": CONFINED_PROCESSES} if uid else {})}.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _lock_mounts(wanted: Confinement, root: str) -> bool:
    """Makes what this process may read and not write read-only, for it and its children: for root, a descriptor for
    reading would do to change who may use a file of the system. False where that cannot be, as in a container."""
    rules = [(path, rights & 1 << 8) for path, rights in _rules(wanted, root) if os.path.exists(path)]
    rules = [(path, write) for path, write in rules if not (write and os.statvfs(path).f_flag & os.ST_RDONLY)]
    try:
        _call("unshare", NEW_MOUNTS)
        _call("mount", b"none", b"/", 0, PRIVATE, 0)
        for path, write in sorted(rules, key=lambda rule: rule[1]):  # its own folder may lie in another one
            name, change = os.fsencode(path), (0, READ_ONLY) if write else (READ_ONLY, 0)
            _call("mount", name, name, 0, BIND, 0)
            _call("syscall", MOUNT_SETATTR, -100, name, 0x8000, struct.pack("=QQQQ", *change, 0, 0), 32)
    except OSError as error:
        log.debug("what is read here is not locked: %s", error)
        return False
    return True


def _drop_privileges(wanted: Confinement, root: str) -> None:
    """Another user if one was given; and no capabilities, now and later: without them root is a user like others."""
    if uid := wanted.uid:
        os.setgroups([os.stat(f"{wanted.folder}/../..").st_gid])  # of its node's environment: lets it pass there
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it went with the user
        for path in (os.__file__, __file__):  # does this user get there?
            with open(path, "rb"):
                os.listdir(root)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:
        _call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    """Calls a function of the C library. Raises OSError."""
    import ctypes

    function = getattr(_libc(), name)
    result = function(*(one if type(one) is bytes else ctypes.c_long(one) for one in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


@functools.cache
def kernel_features() -> dict[str, Any]:
    """What this kernel has for a sandbox: the version of Landlock (0: none), and whether calls can be filtered."""
    told = {"landlock": 0, "seccomp": False}
    if sys.platform == "linux":
        version, error = attempt(_call, "syscall", CREATE_RULESET, 0, 0, 1)
        told["landlock"] = version if error is None else 0
        _, seccomp, _ = MACHINES.get(os.uname().machine, (0, 0, 0))
        told["seccomp"] = bool(seccomp) and attempt(_call, "syscall", seccomp, 2, 0, struct.pack("=I", 0x50000))[0] == 0
    return told


def _restrict_files(wanted: Confinement, root: str) -> int:
    """Landlock: files, TCP ports, signals and abstract sockets, as far as this kernel's has them."""
    version = int(kernel_features()["landlock"])
    if not version:
        return 0
    handled = (1 << RIGHTS[min(version, max(RIGHTS))]) - 1
    ports = version >= 4 and ANYWHERE not in wanted.network
    about = struct.pack("=QQQ", handled, 3 if ports else 0, 3 if version >= 6 else 0)  # bind, connect; scopes
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call("syscall", CREATE_RULESET, about[:size], size, 0)
    for path, rights in _rules(wanted, root):
        _allow_path(ruleset, path, rights & handled, path in (*wanted.read, *wanted.write))
    for port in {int(one.rpartition(":")[2]) for one in wanted.network} if ports else ():
        _call("syscall", ADD_RULE, ruleset, 2, struct.pack("=QQ", 2, port), 0)  # to connect there
    _call("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return version


def _rules(wanted: Confinement, root: str) -> Iterator[tuple[str, int]]:
    """Paths, and what is allowed there and below."""
    start = EXECUTE if wanted.subprocess else 0
    yield from ((path, WRITE | start) for path in (wanted.folder, *wanted.write))
    yield from ((path, READ) for path in (root, *wanted.read, *SETTINGS))
    yield from ((path, READ | start) for path in (*SYSTEM, *_of_python()) if not _holds(path, wanted.folder))
    yield from ((path, READ | WRITE_FILE | IOCTL_DEV) for path in DEVICES)
    yield os.path.dirname(__file__), 1 << 3  # a checkout has more in it: the rest can only be listed


@functools.cache
def _of_python() -> list[str]:
    """Where Python and what was installed for it lies; what else is below a person's home is not read."""
    here = os.path.dirname(__file__)
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)]
    found += (path for end in ("*.py", "*.so", "__pycache__") for path in glob.glob(os.path.join(here, end)))
    home = os.path.realpath(os.path.expanduser("~"))
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    chosen = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    started = [one for one in ("", os.getcwd()) if one not in chosen]  # python -m puts it there, whatever it is
    paths = [one for one in sys.path if one not in started]
    for path in map(os.path.realpath, filter(os.path.exists, [*paths, *libraries])):
        at_home = home != "/" and (_holds(home, path) or _holds(path, home))
        if not at_home or os.path.basename(path) in ("site-packages", "dist-packages"):
            found.append(path)
    return list(dict.fromkeys(map(os.path.realpath, found)))


def _holds(folder: str, path: str) -> bool:
    """Whether a path is this folder or lies below it."""
    return f"{path}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _allow_path(ruleset: int, path: str, rights: int, granted: bool) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:  # what is not here need not be read
        log.debug("%s is left out: %s", path, error)
        return
    try:
        if granted and os.readlink(f"/proc/self/fd/{file}") != path:
            raise OSError(errno.ELOOP, "something else is there now", path)
        rights &= -1 if stat.S_ISDIR(os.fstat(file).st_mode) else OF_FILES
        _call("syscall", ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, file), 0)
    finally:
        os.close(file)


def _filter_calls(wanted: Confinement, locked: bool) -> bool:
    """seccomp: what Landlock does not know of, for all threads."""
    import ctypes

    if not kernel_features()["seccomp"]:
        return False
    program = _program(wanted, os.uname().machine, locked)
    filters = ctypes.create_string_buffer(program)
    about = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    return _call("syscall", MACHINES[os.uname().machine][1], 1, 1, about) == 0


def _program(wanted: Confinement, machine: str, locked: bool = False) -> bytes:
    """The filter: which calls fail, and which only for some arguments. `locked`: what can be read cannot be changed."""
    architecture, _, column = MACHINES[machine]
    steps = [(LOAD, 4), (IF, architecture, 1, 0), (RETURN, KILL), (LOAD, 0)]
    if machine == "x86_64":  # has a second set of numbers
        steps += [(FROM, 0x40000000, 0, 1), (RETURN, UNKNOWN)]
    alone = "" if wanted.subprocess else PROGRAMS
    if wanted.client or not wanted.subprocess:
        alone += f" {NAMED}" if locked else f" {NAMED} {OPEN}"
    for number in _numbers(f"{NEVER} {alone}", column).values():
        steps += [(IF, number, 0, 1), (RETURN, REFUSE)]
    numbers = _numbers(DECIDED, column)
    for name, conditions in _conditions(wanted).items():
        rest = [step for one in conditions for step in _required(*one)]
        rest.append((RETURN, ALLOW if rest else UNKNOWN if name == "clone3" else REFUSE))
        steps += [(IF, numbers[name], 0, len(rest)), *rest]
    steps.append((RETURN, ALLOW))
    return b"".join(struct.pack("=HBBI", code, *(jumps or (0, 0)), k) for code, k, *jumps in steps)


def _required(place: float, mask: int, values: list[int]) -> list[tuple]:
    """Goes on only if an argument, or its upper half (place and a half), masked, is one of these values."""
    tests = [(IF, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [(LOAD, 16 + int(8 * place)), (AND, mask), *tests, (RETURN, REFUSE)]


def _numbers(table: str, column: int) -> dict[str, int]:
    """The calls of a table that this processor has."""
    words = table.split()
    rows = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _conditions(wanted: Confinement) -> dict[str, list[tuple[float, int, list[int]]]]:
    """Calls that work only if each of these arguments, masked, is one of these values; without any, never."""
    every, mine = 0xFFFFFFFF, [0, os.getpid()]
    told = {name: [(0, every, mine)] for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler",
                                                  "sched_setparam", "sched_setattr")}  # fmt: skip
    if wanted.client:  # its threads are no `mine`: those of ZeroMQ set themselves to what is usual, or all ends
        told["sched_setscheduler"] = [(1, every, [0])]
    told["clone"] = [(0, NEW_SPACES, [0])] if wanted.subprocess else [(0, NEW_SPACES | THREAD, [THREAD])]
    told["clone3"] = []  # its flags cannot be seen: libraries go on with clone
    told["setpriority"], told["ioprio_set"] = [(0, every, [0]), (1, every, mine)], [(0, every, [1]), (1, every, mine)]
    told["socketpair"] = [(0, every, [socket.AF_UNIX]), (1, 0xF, [socket.SOCK_STREAM])]  # others can turn elsewhere
    if wanted.client or not wanted.subprocess:  # by a descriptor alone
        told["utimensat"] = [(1, every, [0]), (1.5, every, [0])]
    told["socket"] = []
    if ANYWHERE in wanted.network:
        told["socket"] = [(0, every, [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK])]  # none of this machine's
    elif wanted.network:  # TCP alone: what else there is knows no ports, or other ones
        families = [socket.AF_INET, socket.AF_INET6]
        told["socket"] = [(0, every, families), (1, 0xF, [socket.SOCK_STREAM]), (2, every, [0, socket.IPPROTO_TCP])]
        told.update({name: [(at, FAST_OPEN, [0])] for name, at in {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}.items()})
    return told


def _resolve(network: Iterable[str]) -> dict[str, list]:
    """The addresses of these hosts, found while they still can be."""
    found: dict[str, list] = {}
    for host, _, port in (one.rpartition(":") for one in network if one != ANYWHERE):
        host = host.strip("[]").lower()
        answer, error = attempt(functools.partial(socket.getaddrinfo, host, int(port), type=socket.SOCK_STREAM))
        found[host] = answer or []
        if error is not None:
            log.warning("%s cannot be found from here: %s", host, error)
    return found


def _getaddrinfo(ask: Callable, answers: dict[str, list], host: Any, port: Any, family: int = 0, type: int = 0,
                 proto: int = 0, flags: int = 0) -> list:  # fmt: skip
    """`socket.getaddrinfo` for hosts that were found before: names cannot be asked for inside."""
    rows = answers.get(host.lower()) if isinstance(host, str) and str(port).isdigit() else None
    if not rows:
        return ask(host, port, family, type, proto, flags)
    return [(kind, *about, (place[0], int(port), *place[2:])) for kind, *about, place in rows if family in (0, kind)]


def _by_descriptor(change: Callable, path: Any, *values: Any, dir_fd: int | None = None, follow_symlinks: bool = True,
                   **named: Any) -> None:
    """`os.chmod` or `os.utime` for files that this process may open: by its path it could be any file."""
    file = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        change(file, *values, **named)
    finally:
        if file is not path:
            os.close(file)


def probe(keys: str) -> list[str]:
    """What this process should not be able to do, and can. `keys` is the folder of its node's keys."""
    attempts = {
        "read the keys": lambda: os.listdir(keys),
        "write anywhere": lambda: (os.mkdir(f"{keys}/probe"), os.rmdir(f"{keys}/probe")),
        "limit other processes": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 0),
        "open sockets": lambda: socket.socket().close(),
        "start processes": lambda: os.fork() or os._exit(0),
    }
    return [name for name, function in attempts.items() if not isinstance(attempt(function)[1], PermissionError)]


class Sandbox:
    """How a node confines its children, and what its owner lets them have besides.

    The node has the items `sandbox`, `allow_network`, `allow_read`, `allow_write` and `allow_subprocess`; one with
    `uid_base` gives each child a user of its own. `sparing`: what is not allowed is left out instead of refused.
    """

    def __init__(self, node: Any, sparing: bool = False):
        self._node, self._sparing = node, sparing
        self._home = os.path.join(os.path.realpath(node.environment.path), "work")
        self._life = uuid.uuid4().hex[:8]  # children of a life that was killed may end, and tidy up, once this runs
        self._numbers = itertools.count(1)
        self._uid_base, self._level = 0, node.sandbox  # as it is at the start
        self.missing: list[str] = []
        self.applied: dict[str, Any] = {}

    def start(self, zygote: Any) -> None:
        """Clears away what an earlier life has left, and lets a child try how far it is confined. Raises Error."""
        self.close()
        node = self._node
        if self._level == "off":
            log.warning("sandbox off: whatever runs here may do all that this node may do")
            return
        os.makedirs(self._home, exist_ok=True)
        os.chmod(self._home, 0o711)
        no_uid = "" if not hasattr(os, "geteuid") or os.geteuid() else self._try_uids(zygote)
        self.applied, holes = self._try(zygote)
        self.missing = [*lacking(self.applied), *(f"it is possible to {hole}" for hole in holes)]
        if self._level == "strict" and self.missing:
            raise components.Error(f"the sandbox cannot be strict here: missing are {', '.join(self.missing)}",
                                   "strict takes all or nothing", f"{node.role}.sandbox=standard takes what is here")
        self.missing += [f"a uid of its own ({no_uid})"] if no_uid else []
        log.info("%s", self)

    def _try_uids(self, zygote: Any) -> str:
        """Opens the way to the applications, and to nothing else here, to other users. Returns why that fails."""
        path = self._node.environment.path
        self._uid_base = getattr(self._node, "uid_base", 0)
        if not self._uid_base:
            return "none is given"
        for entry in (one for one in path.iterdir() if one.is_dir() and not one.is_symlink()):
            entry.chmod(0o711 if entry.name in ("apps", "work") else 0o700)
        for one in (path, path / "apps", path / "work"):  # a group that no account has
            os.chown(one, -1, self._uid_base)
        path.chmod(0o710)
        try:
            self._try(zygote)
        except components.Error as error:
            self._uid_base = 0
            path.chmod(0o700)
            return error.why
        return ""

    def _try(self, zygote: Any) -> tuple[dict[str, Any], list[str]]:
        """What a child applied, and what it could do all the same. Raises Error if it could not confine itself."""
        _, sock = zygote.fork("probe", str(self._node.environment.path), confinement=self._next())
        sock.settimeout(PROBE_WITHIN)
        try:
            with sock, sock.makefile("rb") as lines:
                applied, holes = json.loads(lines.readline() or '["it ended", []]')
        except OSError as error:
            applied, holes = str(error), []
        if type(applied) is not dict:
            raise components.Error("no process can be confined here", applied,
                                   f"{self._node.role}.sandbox=off does without, and protects from nothing")
        return applied, holes

    def _next(self, **given: Any) -> Confinement:
        number = next(self._numbers)
        uid = self._uid_base and self._uid_base + number % SLOTS
        return Confinement(self._level, os.path.join(self._home, f"{self._life}-{number}"), uid=uid, **given)

    def __str__(self) -> str:
        told = self.status()
        texts = {"landlock": f"Landlock {told['landlock']}", "seccomp": "seccomp", "uid": f"uids from {told['uid']}"}
        active = [text for name, text in texts.items() if told[name]]
        named = (", ".join(names) or "nothing" for names in (active, told["missing"]))
        return "sandbox {}: active: {}; missing: {}".format(told["level"], *named)

    def status(self) -> dict[str, Any]:
        """The level, what is active and what is missing."""
        active = {"landlock": 0, "seccomp": False, **self.applied, "uid": self._uid_base}
        return {"level": self._level, **active, "missing": self.missing}

    def features(self) -> dict[str, str]:
        """What of it is "active", and of what is not, why."""
        if self._level == "off":
            return {"sandbox": "off, as configured"}
        whole = {"files": self.applied.get("landlock"), "calls": self.applied.get("seccomp"), "uid": self._uid_base}
        return {**{name: "active" for name, there in whole.items() if there},
                **{name: why.rstrip(")") or "missing" for name, _, why in (it.partition(" (") for it in self.missing)}}

    @property
    def word(self) -> str:
        """The level, with what is missing of it, as short as can be."""
        gone = [name for name in ("landlock", "seccomp") if not self.applied.get(name)]
        return self._level if self._level == "off" or not gone else f"{self._level} (no {', no '.join(gone)})"

    def is_whole(self, applied: dict[str, Any] | str) -> bool:
        """Whether a child has applied all that the first one could."""
        return applied == self.applied

    def close(self) -> None:
        """Removes the folders of all children."""
        remove_tree(self._home)

    def confinement(self, needs: dict[str, Any]) -> Confinement:
        """That of the next child, for an application that needs this. Raises Error if it is not allowed to have it."""
        if self._level == "off":
            return UNCONFINED
        asked = {name: [True] if needs.get(name) is True else needs.get(name) or [] for name in GRANTS}
        given = {name: [one for one in asked[name] if self._allows(name, one)] for name in GRANTS}
        refused = {name: asked[name] for name in GRANTS if asked[name] != given[name]}
        if refused and not self._sparing:
            raise self._refusal(refused)
        given.update({name: list(map(os.path.realpath, given[name])) for name in ("read", "write")})
        if getattr(self._node, "resources", {}).get("gpu"):  # their drivers tell of themselves in /proc and /sys
            given["read"] += ["/proc", "/sys"]
            given["write"] += itertools.chain(*map(glob.glob, GPUS))
        if len(json.dumps(given)) > MOST_ASKED:
            raise components.Error(f"the application asks for more than {MOST_ASKED:,} bytes of paths and addresses",
                                   "an order to make a process holds no more", "ask for the folder that holds them")
        return self._next(**{**given, "subprocess": bool(given["subprocess"])})

    def of_builder(self, read: list[str], write: list[str], network: bool) -> Confinement:
        """That of a child that installs and compiles: it starts programs, and may have to reach any address."""
        if self._level == "off":
            return UNCONFINED
        read = [*map(os.path.realpath, [*read, *self._allowed("read")])]  # pip's settings may name folders of wheels
        made = self._next(read=read, write=write, network=[ANYWHERE] if network else [], subprocess=True)
        return made._replace(uid=0)  # what it makes belongs to the node

    def of_client(self, addresses: list[str]) -> Confinement:
        """That of a child that becomes a client: it reads Python and its application, and connects to its master alone.
        With the sandbox off there is no more than its folder."""
        return self._next(network=addresses, subprocess=True, client=True)._replace(uid=0)

    def _allowed(self, name: str) -> list:
        value = getattr(self._node, f"allow_{name}")
        return [] if self._level == "strict" else value if isinstance(value, list) else [value]

    def _allows(self, name: str, asked: Any) -> bool:
        """Whether the owner's word covers it. Never what holds this node's keys, or lies beside them."""
        allowed = [*self._allowed(name), *(self._allowed("write") if name == "read" else ())]
        if name == "subprocess":
            return allowed == [True]
        if name == "network":
            return any(_covers(one, asked) for one in allowed)
        path, own = os.path.realpath(asked), os.path.realpath(self._node.environment.path)
        safe = os.path.isabs(asked) and not (_holds(path, own) or _holds(own, path))
        return safe and any(_holds(os.path.realpath(one), path) for one in allowed)

    def _refusal(self, refused: dict[str, list]) -> components.Error:
        node, strict = self._node, self._level == "strict"
        asked = ", ".join(f"{name} = {', '.join(map(str, values))}" for name, values in refused.items())
        allows = ", ".join(f"{name} = {', '.join(map(str, self._allowed(name))) or 'nothing'}" for name in refused)
        settings = [f"{node.role}.allow_{name}={','.join(map(str, refused[name]))}" for name in refused]
        settings += [f"{node.role}.sandbox=standard"] if strict else []
        return components.Error(
            f"the application asks for what {node.name} does not allow: {asked}",
            "its sandbox is strict and allows nothing" if strict else f"it allows {allows}; never its own environment",
            f"its owner can set {' '.join(settings)}; or ask for less, by full paths and HOST:PORT")


def _covers(allowed: str, asked: str) -> bool:
    """Whether a HOST:PORT of the owner's, each of which may be *, covers one that is asked for."""
    (ours, _, door), (host, _, port) = allowed.rpartition(":"), asked.rpartition(":")
    known = bool(host and re.fullmatch("[0-9]{1,5}", port)) and 0 < int(port) < 65536
    return known and ours.lower() in ("*", host.lower()) and door in ("*", port)


def lacking(active: dict[str, Any]) -> list[str]:
    """What a sandbox leaves open for want of something in this system."""
    version, seccomp = active["landlock"], active["seccomp"]
    by_version = {1: "files (Landlock)", 3: "truncation of files (Landlock 3)", 4: "TCP by port (Landlock 4)",
                  STRICT_LANDLOCK: f"signals (Landlock {STRICT_LANDLOCK})"}  # fmt: skip
    told = [text for least, text in by_version.items() if version < least] + ([] if seccomp else ["calls (seccomp)"])
    return told if sys.platform == "linux" else [*told, f"not verified on {sys.platform}"]


def remove_tree(folder: str) -> None:
    """Removes a folder with all in it, locked and deep ones too, if it is there. Follows no link."""
    if sys.platform != "linux":
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        top, names = _unlocked(folder), ["."]
        for name in names:  # they become more
            with contextlib.suppress(OSError):
                names += _emptied(name, top)
        for name in reversed(names[1:]):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=top)
        os.close(top)
        os.rmdir(folder)


def _emptied(name: str, top: int) -> list[str]:
    """Removes the files of a folder, and moves its folders up, so that no path is ever too long; their new names."""
    file, moved = _unlocked(name, top), []
    with os.scandir(file) as entries:
        found = list(entries)
    for entry in found:
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                os.close(_unlocked(entry.name, file))
                new = str(uuid.uuid4())
                os.rename(entry.name, new, src_dir_fd=file, dst_dir_fd=top)
                moved.append(new)
            else:
                os.unlink(entry.name, dir_fd=file)
    os.close(file)
    return moved


def _unlocked(path: str, within: int | None = None) -> int:
    """A folder, no link, that this process may now list and change."""
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=within)
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(found)


# -- the zygote ----------------------------------------------------------------------------------------------------

# Variables that reach workers and hosts; everything else in a node's environment stays with the node.
KEPT_VARIABLES = frozenset(
    ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "USER", "LOGNAME", "SYSTEMROOT",
     "LD_LIBRARY_PATH")
)
KEPT_PREFIXES = ("LC_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
PULSE = 8  # bytes
STACK_EVERY, STACK_LOOKS = 0.01, 25  # seconds between two looks whether a child has told where it is, and how many
END_WITHIN = 2.0  # seconds that a zygote waits for the end of what it has killed
RESPAWN_LIMIT = 5  # processes that may be replaced within RESPAWN_PERIOD seconds before something must be wrong
RESPAWN_PERIOD = 10.0


class Recent(collections.deque):
    """When the last of something happened, newest last."""

    def __init__(self):
        super().__init__(maxlen=RESPAWN_LIMIT)

    @property
    def crowded(self) -> bool:
        """Whether it happens too often."""
        return len(self) == RESPAWN_LIMIT and self[-1] - self[0] < RESPAWN_PERIOD


def no_zygote() -> components.Error:
    """The error of a node that has replaced its zygote too often."""
    return components.Error(f"the zygote ended {RESPAWN_LIMIT} times within {RESPAWN_PERIOD:.0f} s",
                            "something on this machine kills it, or it cannot start here",
                            "look above for what it printed")


class Zygote:
    """The node's handle on the one child that forks all others.

    Start it before any key is read. `fork` gives the parent's end of a new child's socket; `receive` tells births and
    deaths.
    """

    def __init__(self):
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=zygote_main, args=(theirs,), name="zygote", daemon=True)
        with _deaf_to_interrupts(), _kept_variables():
            self._process.start()
        theirs.close()
        self._tokens = itertools.count(1)

    def fileno(self) -> int:
        """For a poller: readable when a child was born or died."""
        return self.sock.fileno()

    def fork(self, kind: str, root: str, output: int = 2,
             confinement: Confinement = UNCONFINED) -> tuple[int, socket.socket]:  # fmt: skip
        """Makes a child, of one of the kinds in MAINS, for the bundle in `root`. Returns its token and a socket to it.

        `output` is the descriptor to which it writes what is printed; by default it shares this process's stderr.
        """
        ours, theirs = socket.socketpair()
        token = next(self._tokens)
        message = json.dumps(["fork", token, kind, root, confinement]).encode()
        with theirs:
            socket.send_fds(self.sock, [message], [theirs.fileno(), output])
        ours.setblocking(False)
        return token, ours

    def kill(self, token: int) -> None:
        """Kills a child and all that it started."""
        self._order("kill", token)

    def show_stack(self, token: int) -> None:
        """Lets a child write down where it is, if it was given a file for that; else it dies."""
        self._order("stack", token)

    def _order(self, order: str, token: int) -> None:
        try:
            self.sock.send(json.dumps([order, token]).encode())
        except OSError as error:
            log.debug("the zygote is gone, and its children with it: %s", error)

    def receive(self) -> list[list]:
        """What happened: ["born", token, pid], ["died", token, how], or ["unborn", token, why]. Raises Error if the
        zygote itself is gone."""
        events = []
        while select.select([self.sock], [], [], 0)[0]:
            try:
                message = self.sock.recv(65536)
            except ConnectionError:  # it was killed with an order unread
                message = b""
            if not message:
                raise components.Error("the zygote ended", "it was killed from outside", "the node starts a new one")
            events.append(json.loads(message))
        return events

    def stop(self) -> None:
        """Ends the zygote, which ends its children first."""
        self.sock.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A child started meanwhile hears no Ctrl-C until it has decided what that means to it."""
    multiprocessing.resource_tracker.ensure_running()  # it would unblock what we block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _kept_variables() -> Iterator[None]:
    """A child started meanwhile never had another variable than those that it may keep: what is deleted later stays in
    its memory. And it hashes texts as those of every other life of this node: a task system that is repeated walks
    through its sets in the same order."""
    before = dict(os.environ)
    _scrub_environment()
    os.environ.setdefault("PYTHONHASHSEED", "0")
    try:
        yield
    finally:
        if "PYTHONHASHSEED" not in before:
            del os.environ["PYTHONHASHSEED"]
        os.environ.update(before)


class Spawner:
    """Stands in for the zygote where there is no fork to rely on (macOS, Windows): each child is spawned by itself."""

    def __init__(self):
        self.sock, self._tell = socket.socketpair()
        self._children: dict[int, Any] = {}
        self._tokens = itertools.count(1)

    def fileno(self) -> int:
        """For a poller: readable when a child has died."""
        return self.sock.fileno()

    def fork(self, kind: str, root: str, output: int = 2,
             confinement: Confinement = UNCONFINED) -> tuple[int, socket.socket]:  # fmt: skip
        """As `Zygote.fork`, in the time that it takes to start an interpreter."""
        ours, theirs = socket.socketpair()
        token = next(self._tokens)
        context = multiprocessing.get_context("spawn")
        with multiprocessing.connection.Connection(os.dup(output), readable=False) as told:
            about = theirs, kind, root, confinement, told
            child = context.Process(target=spawned_main, args=about, name=kind, daemon=True)
            with _kept_variables():
                child.start()
        theirs.close()
        self._children[token] = child
        about = token, child, confinement.folder
        threading.Thread(target=self._wait_for, args=about, name=f"{kind} {token}", daemon=True).start()
        ours.setblocking(False)
        return token, ours

    def kill(self, token: int) -> None:
        """Kills a child."""
        if token in self._children:
            self._children[token].kill()

    def show_stack(self, token: int) -> None:
        """Nothing: its children are given no file for that."""

    def receive(self) -> list[list]:
        """As `Zygote.receive`."""
        events = []
        while select.select([self.sock], [], [], 0)[0]:
            token = int.from_bytes(self.sock.recv(8), "little")
            events.append(["died", token, describe_exit(self._children.pop(token).exitcode)])
        return events

    def stop(self) -> None:
        """Kills what still runs."""
        for child in self._children.values():
            child.kill()
            child.join(5)
        self.sock.close()

    def _wait_for(self, token: int, child: Any, folder: str) -> None:
        child.join()
        remove_tree(folder)
        try:
            self._tell.send(token.to_bytes(8, "little"))
        except OSError as error:
            log.debug("nobody listens any more: %s", error)


class Witness:
    """What can be told of a child that does not answer: a file whose first eight bytes are its pulse, and into which it
    writes its Python stack when it is told to, even while C code holds the interpreter.

    Only where there are files in memory; elsewhere the pulse stays 0 and the stack is empty.
    """

    def __init__(self, pipe: rpc.Pipe):
        self._file = -1
        try:
            self._file = os.memfd_create("stack", os.MFD_CLOEXEC)
            os.write(self._file, bytes(PULSE))
            pipe.hand("stack", os.dup(self._file))
        except (AttributeError, OSError) as error:
            log.debug("a child has nothing to write its stack into: %s", error)
            self.close()

    @property
    def pulse(self) -> int:
        """A number that the child changes."""
        return int.from_bytes(os.pread(self._file, PULSE, 0), sys.byteorder) if self._file >= 0 else 0

    def ask(self, zygote: Any, token: int, loop: rpc.Loop, then: Callable[[], None]) -> None:
        """Lets the child write down where it is; calls `then` once that is there, or the child has not done so."""
        if self._file >= 0:
            zygote.show_stack(token)
        self._wait(loop, then, 0, STACK_LOOKS if self._file >= 0 else 0)

    def stack(self, root: str) -> tuple[str, str]:
        """What it wrote, see `read_stack`."""
        text = os.pread(self._file, TRACEBACK_LIMIT, PULSE).decode(errors="replace") if self._file >= 0 else ""
        return read_stack(text, root)

    def close(self) -> None:
        """The child has ended."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _wait(self, loop: rpc.Loop, then: Callable[[], None], size: int, looks: int) -> None:
        """It has told all once that does not grow any more."""
        told = os.fstat(self._file).st_size - PULSE if self._file >= 0 else 0
        if looks and not (told and told == size):
            loop.later(STACK_EVERY, functools.partial(self._wait, loop, then, told, looks - 1))
        else:
            then()


def start_zygote() -> Zygote | Spawner:
    """What makes this node's children, as the platform allows."""
    return Zygote() if sys.platform == "linux" else Spawner()


def spawned_main(sock: socket.socket, kind: str, root: str, confinement: Confinement, output: Any) -> None:
    """A child of `Spawner`."""
    _scrub_environment()
    _quiet_stdio()
    _write_to(output.fileno())
    output.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _run_child(sock, kind, root, confinement)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.debug("the node is gone, or wants this process gone")


def zygote_main(sock: socket.socket) -> None:
    """Forks on demand, reaps, reports; ends with its node. Single-threaded, and imports nothing of the user's."""
    rpc.keep_memory()
    os.setsid()  # a Ctrl-C in the terminal is the node's business
    _scrub_environment()
    _quiet_stdio()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch system may send it to all there is of a job
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    if sys.platform == "linux":
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives a child of ours comes to us
    gc.freeze()
    _of_python(), kernel_features()  # once for all
    children: dict[int, tuple] = {}  # pid -> token, own folder; token 0: it only removes that
    try:
        _serve_forks(sock, woken, children)
    except (BrokenPipeError, ConnectionResetError):
        log.debug("the node closed its end")
    finally:
        signal.set_wakeup_fd(-1)
        _end_all(children)


def _serve_forks(sock: socket.socket, woken: socket.socket, children: dict[int, tuple]) -> None:
    while True:
        ready, _, _ = select.select([sock, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _reap(sock, children)
        if sock in ready:
            message, fds, _, _ = socket.recv_fds(sock, 65536, 2)
            if not message:
                return
            order, token, *rest = json.loads(message)
            if order == "fork":
                _fork_and_tell(sock, fds, token, rest, children)
            else:
                for pid in [pid for pid, known in children.items() if known[0] == token]:
                    _kill_trees([pid]) if order == "kill" else os.kill(pid, signal.SIGUSR2)


def _fork_and_tell(sock: socket.socket, fds: list, token: int, order: list, children: dict[int, tuple]) -> None:
    try:
        pid = _fork_child(*fds, *order)
    except OSError as error:  # no process or memory is left: the others live on
        for fd in fds:
            os.close(fd)
        _tell(sock, ["unborn", token, f"could not be forked ({error})"])
        return
    children[pid] = token, order[-1][1]
    _tell(sock, ["born", token, pid])


def _fork_child(fd: int, output: int, kind: str, root: str, confinement: list) -> int:
    pid = os.fork()
    if pid:
        os.close(fd)
        os.close(output)
        return pid
    code = 1
    try:
        _write_to(output)
        _become_child(fd)
        _run_child(socket.socket(fileno=fd), kind, root, Confinement(*confinement))
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the node is gone, or wants us gone
    except BaseException:  # nothing is left to report to but stderr
        traceback.print_exc()
    finally:
        os._exit(code)


def _run_child(sock: socket.socket, kind: str, root: str, wanted: Confinement) -> None:
    """The life of a child. It tells what it has applied; if that is not all, it does nothing else."""
    applied, error = attempt(confine, wanted, os.path.join(root, "apps") if kind == "probe" else root)
    told = applied if error is None else str(error)
    if kind == "probe":
        sock.sendall(json.dumps([told, [] if error else probe(os.path.join(root, "keys"))]).encode() + b"\n")
        return
    if wanted.level != "off":
        sock.sendall(b"".join(rpc.pack_stream(["confined", told], [])))
    multiprocessing.current_process()._config["daemon"] = False  # as such it could not start processes of its own
    multiprocessing.resource_tracker._resource_tracker._fd = None  # that of the node: it is closed here
    if error is None:
        MAINS[kind](sock, root)


def _become_child(fd: int) -> None:
    """A session of its own, no descriptor but 0-2 and the socket, and death with the zygote. What its children leave
    behind comes to it, and after its death to the zygote, which ends that: so nothing escapes, in whatever session.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def prctl(option: int, value: int) -> None:
    """Tells the kernel something about this process."""
    _call("prctl", option, value, 0, 0, 0)


def _reap(sock: socket.socket, children: dict[int, tuple]) -> None:
    for pid, status in _ended_children():
        token, folder = children.pop(pid, (0, ""))
        if token:
            _tell(sock, ["died", token, describe_exit(os.waitstatus_to_exitcode(status))])
            _discard(folder, children)
    _end_strays(children)


def _discard(folder: str, children: dict[int, tuple]) -> None:
    """Removes what a child leaves behind: at once if that is nothing, else in a process while others are served."""
    try:
        if os.path.isdir(folder) and os.listdir(folder):
            pid = os.fork()
            if not pid:
                attempt(remove_tree, folder)
                os._exit(0)
            children[pid] = 0, folder
        elif folder:
            os.rmdir(folder)
    except OSError as error:  # the node does it when it ends
        log.debug("%s is not removed: %s", folder, error)


def _ended_children() -> Iterator[tuple[int, int]]:
    """Children of this process that have ended, with their status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def _end_strays(children: dict[int, tuple]) -> None:
    """Kills what a child has left behind: it has become a child of this process."""
    _kill_trees(pid for pid in children_of(os.getpid()) if pid not in children)


def _end_all(children: dict[int, tuple]) -> None:
    """Kills everything below this process, and waits until it is gone."""
    until = time.monotonic() + END_WITHIN
    folders = [folder for _, folder in children.values()]
    _kill_trees(children)
    while children_of(os.getpid()) and time.monotonic() < until:
        for pid, _ in _ended_children():
            children.pop(pid, None)
        _end_strays(children)
        time.sleep(0.002)
    for folder in filter(None, folders):
        remove_tree(folder)


def children_of(pid: int) -> list[int]:
    """The processes whose parent this is; none where the kernel does not tell."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError as error:
        log.debug("the children of %s cannot be told: %s", pid, error)
    return found


def usable_cpus() -> int:
    """Processors this process may use: by its affinity mask, the quotas of its control groups, and Slurm."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_slurm = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return max(1, int(min([count, *cpu_quotas(), *([int(by_slurm)] if by_slurm.isdecimal() else [])])))


def cpu_quotas(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[float]:
    """The processors that this process' control groups may use, for each group above it that has a quota."""
    found = []
    try:
        lines = [line.split(":", 2) for line in Path(groups).read_text().splitlines()]
    except OSError as error:
        log.debug("no control group limits the processors: %s", error)
        return found
    for _, controllers, path in lines:
        if not controllers or "cpu" in controllers.split(","):
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            place = Path(root, "cpu" if controllers else "", path.lstrip("/"))
            found += filter(None, (_quota(group, files) for group in (place, *place.parents)))
    return found


def _quota(group: Path, files: tuple) -> float:
    try:
        quota, period = " ".join((group / name).read_text() for name in files).split()
    except (OSError, ValueError):  # not ours to see, or none
        return 0.0
    return int(quota) / int(period) if quota not in ("max", "-1") else 0.0


def describe_exit(code: int) -> str:
    """An exit code in words: "killed by SIGKILL", "exit code 3"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _tell(sock: socket.socket, event: list) -> None:
    sock.send(json.dumps(event).encode())


def _kill_trees(pids: Iterable[int]) -> None:
    """Kills processes and all below them: each is stopped before it is asked for its children, so that none escapes,
    however fast they multiply."""
    found = list(pids)
    for pid in found:  # they become more meanwhile
        _signal(pid, signal.SIGSTOP)
        found += children_of(pid)
    for pid in found:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    for send in (os.killpg, os.kill):  # the group may not exist yet if the child was just born
        try:
            send(pid, number)
        except OSError as error:  # it is gone already, or somebody else's by now
            log.debug("process %s hears no signal: %s", pid, error)


def _scrub_environment() -> None:
    for name in list(os.environ):
        if name not in KEPT_VARIABLES and not name.startswith(KEPT_PREFIXES):
            del os.environ[name]


def _quiet_stdio() -> None:
    """Nothing to read on 0, and what tasks print goes to stderr: stdout belongs to the node's own result."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)


def _write_to(output: int) -> None:
    """From now on this process's descriptors 1 and 2 are that one."""
    os.dup2(output, 1)
    os.dup2(output, 2)


# -- output --------------------------------------------------------------------------------------------------------

OUTPUT_KEPT = 64 * 1024  # bytes that a child wrote last which its node remembers
OUTPUT_TOLD = 8 * 1024  # bytes of it that go into the failure of a task that raised
OUTPUT_RATE = 256  # KiB a second of a child that go home
OUTPUT_BURST = 4.0  # seconds of this rate that may come at once
OUTPUT_EVERY = 0.05  # seconds that output waits for more of it
OUTPUT_LINE = 1.0  # seconds that a line waits for its end
OUTPUT_READS = 64  # of a pipe in one go, at most
PIECE_COST = 32  # bytes that a piece of output counts beside its text
# In a child's output: the eight bytes after it say whose the rest is. Whoever prints this fakes nothing but the tag of
# a task in his own lease.
MARK = b"\x1econcurrent-swarm task "
NOBODY = (1 << 64) - 1  # instead of an ordinal: of some task of the lease


def _marked(ordinal: int) -> bytes:
    return MARK + ordinal.to_bytes(8, "little")


class Voice(io.RawIOBase):
    """Descriptor 1 or 2 of a child for Python: what `whose()` says to be of one task of many stands between marks.

    So what is written past it, by C or a child, is never taken for a task's that wrote something before.
    """

    def __init__(self, file: int, whose: Callable[[], int]):
        self._file, self._whose, self.name = file, whose, {1: "<stdout>", 2: "<stderr>"}.get(file, file)
        self.of: int | None = None  # whose the text is that leaves the buffers now, if not of who runs

    def fileno(self) -> int:
        return self._file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Writes all of it."""
        data = memoryview(data).cast("B")
        whose = self._whose() if self.of is None else self.of
        rest = data if whose == NOBODY else memoryview(b"".join((_marked(whose), data, _marked(NOBODY))))
        while rest:
            rest = rest[os.write(self._file, rest) :]
        return len(data)


class Speech(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr` of a child: a line goes at its end, and text of one task before that of the next."""

    def __init__(self, file: int, whose: Callable[[], int]):
        super().__init__(Voice(file, whose), "utf-8", "backslashreplace", "\n", line_buffering=True)
        self._whose, self._of = whose, NOBODY
        self.used = False  # since the last `flush`

    def write(self, text: str) -> int:
        """Takes text; it goes at the end of its line."""
        whose = self._whose()
        if whose != self._of:
            self.flush()
            self._of = whose
        self.used = True
        written = super().write(text)
        self.used = True  # another thread may have flushed in between
        return written

    def flush(self) -> None:
        """Writes what waits, as of the task that gave it."""
        self.used = False
        if not self.closed:
            self.buffer.of = self._of
            super().flush()
            self.buffer.of = None


def speak(whose: Callable[[], int] = lambda: NOBODY) -> Callable[[], None]:
    """Prepares this child to write: what is printed and logged goes to 1 and 2 by lines, in order, and C's stdout too.

    `whose()` is the ordinal of the task that runs. Returns what writes the lines without an end.
    """
    out, err = sys.stdout, sys.stderr = Speech(1, whose), Speech(2, whose)
    faulthandler.enable(2)  # a crash in C tells its stack
    logging.getLogger().setLevel(logging.INFO)
    logging.lastResort.setLevel(logging.INFO)  # a `basicConfig` of the user's takes its place
    logging.lastResort.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    if sys.platform == "linux":
        import ctypes

        libc, by_line = ctypes.CDLL(None), 1
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, by_line, 0)

    def flush() -> None:
        for stream in (out, err):
            error = attempt(stream.flush)[1] if stream.used else None
            if error is not None:  # a task may have closed the descriptor
                log.debug("what was printed is lost: %s", error)

    return flush


class Output:
    """What a child wrote, as its node keeps it: the last 64 KiB, and the pieces that are to go home. Has no clock.

    A piece is [ordinal, text, bytes dropped before it]; the ordinal is NOBODY where no task is named. `rate`: bytes a
    second that go home, what comes faster is counted and dropped.
    """

    def __init__(self, rate: int):
        self._rate = rate
        self._room, self._now = rate * OUTPUT_BURST, 0.0
        self._pieces: list[list] = []
        self._dropping = 0  # bytes dropped since the last piece
        self._line, self._line_at = bytearray(), 0.0  # what waits, and since when
        self.begin()

    def begin(self) -> None:
        """Another lease begins: what came before is nobody's any more."""
        self._whose, self._cut = NOBODY, b""
        self._last: collections.deque[tuple[int, bytearray]] = collections.deque()
        self._size = 0  # bytes of these
        self._line.clear()
        self._pieces.clear()
        self._dropping = 0

    def take(self, data: bytes, now: float) -> None:
        """Takes bytes that the child has written, cut anywhere."""
        data = self._cut + data
        end = len(data) - _begun(data)
        self._cut = data[end:]
        first, *marked = data[:end].split(MARK)
        self._add(first, now)
        for piece in marked:
            self._end_line()
            self._whose = int.from_bytes(piece[:8], "little")
            self._add(piece[8:], now)

    def pieces(self, now: float, final: bool = False) -> list[list]:
        """Takes out what is to go home now. A line waits for its end unless this is `final`."""
        if final and self._cut:  # it looked like a mark
            cut, self._cut = self._cut, b""
            self._add(cut, now)
        whole = self._line.rfind(b"\n") + 1
        if final or now - self._line_at >= OUTPUT_LINE or (self.heavy and not whole):
            self._end_line()
        elif whole:
            rest = self._line[whole:]
            del self._line[whole:]
            self._end_line()
            self._line, self._line_at = rest, now
        if final and self._dropping:
            self._tell_dropped()
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def waits(self) -> bool:
        """Whether something is to go home, now or soon."""
        return bool(self._line or self._pieces)

    @property
    def empty(self) -> bool:
        """Whether nothing is to go home, not even at the end."""
        return not (self._line or self._pieces or self._cut or self._dropping)

    @property
    def heavy(self) -> bool:
        """Whether so much waits that it should not wait for more."""
        return len(self._line) >= OUTPUT_KEPT

    def last(self, ordinal: int | None = None) -> str:
        """The end of what was written in this lease; with an ordinal, of what is known to be this task's."""
        told = (data for whose, data in self._last if ordinal is None or whose == ordinal)
        return b"".join(told).decode("utf-8", "replace")

    def _add(self, data: bytes, now: float) -> None:
        if not data:
            return
        self._remember(data)
        self._room = min(self._rate * OUTPUT_BURST, self._room + (now - self._now) * self._rate)
        self._now = now
        if self._dropping and self._room < self._rate / 2:  # few large gaps are easier to read than many small ones
            self._dropping += len(data)
            return
        kept = data[: max(0, int(self._room))]
        if len(kept) < len(data):
            kept = kept[: kept.rfind(b"\n") + 1] or kept  # whole lines, if there are
        self._room -= len(kept)
        if not self._line:
            self._line_at = now
        if self._dropping and kept:
            self._tell_dropped()
        self._line += kept
        if len(kept) < len(data):
            self._end_line()
            self._dropping += len(data) - len(kept)

    def _remember(self, data: bytes) -> None:
        if self._last and self._last[-1][0] == self._whose:
            self._last[-1][1].extend(data)
        else:
            self._last.append((self._whose, bytearray(data)))
        self._size += len(data)
        while self._size > OUTPUT_KEPT:
            first = self._last[0][1]
            excess = min(self._size - OUTPUT_KEPT, len(first))
            del first[:excess]
            self._size -= excess
            if not first:
                self._last.popleft()
        if len(self._last) > OUTPUT_KEPT // PIECE_COST:
            self._size -= len(self._last.popleft()[1])

    def _end_line(self) -> None:
        """What waits becomes a piece, or goes to the last one."""
        if self._line:
            text = self._line.decode("utf-8", "replace")
            if self._pieces and self._pieces[-1][0] == self._whose:
                self._pieces[-1][1] += text
            else:
                self._pieces.append([self._whose, text, 0])
                self._room -= PIECE_COST
            self._line.clear()

    def _tell_dropped(self) -> None:
        self._pieces.append([NOBODY, "", self._dropping])
        self._dropping = 0


def _begun(data: bytes) -> int:
    """How many bytes at the end of data may be the beginning of a mark."""
    whole = len(MARK) + 8
    at = data.rfind(MARK, max(0, len(data) - whole + 1))
    if at < 0:
        at = data.rfind(MARK[:1], max(0, len(data) - len(MARK) + 1))
        if at < 0 or not MARK.startswith(data[at:]):
            return 0
    return len(data) - at


class Ear:
    """A node's end of the pipe that a child has as its descriptors 1 and 2; never waits.

    `send(pieces)`, set by the node, gets what is to go home. Give `theirs` to the child and close it.
    """

    send: Callable[[list], None]

    def __init__(self, loop: rpc.Loop, rate: int):
        self._file, self.theirs = os.pipe()
        os.set_blocking(self._file, False)
        self._written = select.poll()  # asked first: a read that finds nothing raises, which takes longer
        self._written.register(self._file, select.POLLIN)
        self.output = Output(rate)
        self._loop = loop
        self._alarmed = False
        self._open = True
        loop.add(self, self._read)

    def fileno(self) -> int:
        """For a poller: readable when the child has written."""
        return self._file

    def settle(self, final: bool = True, hear: bool = True) -> None:
        """Hears all that the child has written so far, and sends it; `final`: the lease ends with it. Not `hear`: all
        that matters was heard already."""
        for _ in range(OUTPUT_READS if hear else 0):
            if not (self._open and self._written.poll(0) and self._take()):
                break
        if not self.output.empty:
            self._flush(final)

    def close(self) -> None:
        """Hears nothing any more."""
        if self._open:
            self._open = False
            self._loop.remove(self)
            os.close(self._file)

    def _read(self) -> None:
        if self._take() and self.output.heavy:
            self._flush(False)
        if not self._alarmed:
            self._wait()

    def _alarm(self) -> None:
        self._flush(False)
        self._alarmed = False
        if self._open:
            self._wait()

    def _wait(self) -> None:
        self._alarmed = self.output.waits
        if self._alarmed:
            self._loop.later(OUTPUT_EVERY, self._alarm)

    def _take(self) -> bool:
        """Reads once; False if nothing is there."""
        try:
            data = os.read(self._file, 65536)
        except BlockingIOError:  # the child has read it itself
            return False
        if data:
            self.output.take(data, time.monotonic())
        else:
            self.close()  # the child has closed its end
        return bool(data)

    def _flush(self, final: bool) -> None:
        pieces = self.output.pieces(time.monotonic(), final)
        if pieces:
            self.send(pieces)


def fork_heard(zygote: Any, kind: str, root: str, confinement: Confinement, loop: rpc.Loop,
               rate: int) -> tuple[int, socket.socket, Ear]:  # fmt: skip
    """A new child's token and socket, and the ear for what it prints, `rate` bytes a second of it. Raises OSError."""
    ear = Ear(loop, rate)
    try:
        return *zygote.fork(kind, root, ear.theirs, confinement), ear
    except OSError:
        ear.close()
        raise
    finally:
        os.close(ear.theirs)


def placed(pieces: list[list], lo: int, hi: int) -> list[list]:
    """Pieces of output with the range of ordinals of which each is: one task of lo..hi-1, or all of them."""
    return [[*((whose, whose + 1) if lo <= whose < hi else (lo, hi)), text, dropped] for whose, text, dropped in pieces]


def weight_of(pieces: list[list]) -> int:
    """Bytes of output in pieces, those that were dropped before them too."""
    return sum(len(text.encode()) + dropped for *_, text, dropped in pieces)


# -- the worker process --------------------------------------------------------------------------------------------

class Wire:
    """A blocking end of a socketpair, for the process that has only this one thing to listen to."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(True)
        self._sock = sock
        self._receiver = rpc.Receiver(sock, descriptors=rpc.MOST_FILES, follow=rpc.Place.from_text)
        self._calls: collections.deque = collections.deque()
        self._reading = threading.RLock()  # threads of a task fetch too, and some stay behind
        self.dropped: set[int] = set()  # leases that are not wanted any more, as far as was read
        self._spare = -1  # the file that the node gave for large parts
        self.witness = -1  # the file of the node's `Witness`

    def call(self, method: str, *params: Any, parts: Iterable = ()) -> None:
        """Sends a call; returns when the kernel has it."""
        parts, first = list(parts), rpc.LARGE_CALLS.get(method)
        if self._spare >= 0 and first is not None and sum(map(rpc.size_of, parts[first:])) >= rpc.BY_FILE:
            parts[first:] = self._by_file(parts[first:])
        buffers = rpc.pack_stream([method, *params], parts)
        if len(buffers) == 1:
            self._sock.sendall(buffers[0])
            return
        while buffers:
            buffers = rpc.left_of(buffers, self._sock.sendmsg(buffers[:512]))

    def _by_file(self, parts: list) -> list:
        """Writes the parts into the spare file; they stay as they are if there is no room for it."""
        large = [i for i, part in enumerate(parts) if rpc.size_of(part) >= rpc.PART_BY_FILE]
        pieces, places, _ = rpc.lay_out([parts[i] for i in large])
        try:
            rpc.write_pieces(self._spare, pieces)
        except OSError as error:
            log.debug("a payload does not fit into a file, and is sent: %s", error)
            return parts
        os.close(self._spare)
        self._spare = -1
        for i, (at, size) in zip(large, places, strict=True):
            parts[i] = rpc.Place(0, at, size)
        return parts

    def publish(self, key: str, pieces: list) -> None:
        """Hands a sealed object of this process on to the node."""
        large = self._spare >= 0 and rpc.size_of(pieces) >= rpc.BY_FILE
        (whole,) = self._by_file([pieces]) if large else [pieces]
        for at, total, part in rpc.slices(whole, type(whole) is rpc.Place):
            self.call("publish", key, at, total, parts=[part])

    def fetch(self, key: str) -> Any:
        """Waits for the bytes of a published object; other calls wait meanwhile. Raises Error if nobody has it."""
        with self._reading:
            self.call("fetch_shared", key)
            slices: list = []
            while True:
                call, parts = self._answer_about(key)
                if call[0] == "no_shared":
                    raise rpc.no_such_object(key, call[2])
                slices.append(parts[0])
                if call[2] + len(parts[0]) == call[3]:
                    return slices if len(slices) > 1 else slices[0]

    def _answer_about(self, key: str) -> tuple[list, list]:
        """The next call about a published object, out of its turn."""
        while True:
            for place, (call, parts) in enumerate(self._calls):
                if call[0] in ("shared", "no_shared") and call[1] == key:
                    del self._calls[place]
                    return call, parts
            self._read()

    def next(self) -> tuple[list, list]:
        """Waits for a call. Raises EOFError when the node has closed its end."""
        with self._reading:
            while not self._calls:
                self.dropped.clear()  # those that came too late
                self._read()
            return self._calls.popleft()

    def is_quiet(self, seconds: float) -> bool:
        """Waits for a call, but no longer; True if none came."""
        return not (self._calls or select.select([self._sock], [], [], seconds)[0])

    def unwanted(self, lease: int) -> bool:
        """Whether a lease was dropped, as far as is known without waiting."""
        if self._reading.acquire(blocking=False):  # else a thread that fetches hears of it
            try:
                while select.select([self._sock], [], [], 0)[0]:
                    self._read()
            finally:
                self._reading.release()
        return lease in self.dropped

    def _read(self) -> None:
        select.select([self._sock], [], [])  # who waits in `recv` is also woken each time the node has read something
        for call, parts in self._receiver.receive():
            if call[0] == "spare":
                self._spare = self._receiver.take_descriptor()
            elif call[0] == "stack":  # works even while C code holds the interpreter
                self.witness = self._receiver.take_descriptor()
                faulthandler.register(signal.SIGUSR2, self.witness, all_threads=True)
            elif call[0] == "drop":
                self.dropped.add(call[1])
            elif call[0] == "forget_shared":
                sys.modules[rpc.WIRE].Shared.exchange.forget(call[1])
            else:
                self._calls.append((call, self._open(parts)))

    def _open(self, parts: list) -> list:
        """The parts, those that lie in files mapped."""
        if rpc.Place not in map(type, parts):
            return parts
        count = max(part.file + 1 for part in parts if type(part) is rpc.Place)
        files = [self._receiver.take_descriptor() for _ in range(count)]
        try:
            return [rpc.map_payload(files[part.file], part.at, part.size) if type(part) is rpc.Place else part
                    for part in parts]
        finally:
            for file in files:
                os.close(file)


class Attempts(components.Stats):
    """What tasks record in a worker, until they are done: it counts with their results, and what a task records that
    fails is dropped. `whose()` is the task that runs."""

    def __init__(self, whose: Callable[[], int]):
        super().__init__(FIGURES)
        self._whose, self._rows, self._most = whose, [], MANY_ROWS
        self._sorted: dict[int, components.Stats] = {}  # of tasks with very many samples

    @property
    def used(self) -> bool:
        """Whether anything was recorded that was not taken."""
        return bool(self._rows or self._sorted)

    def add_avg(self, name: str, value: float = 0, per_step: bool = False) -> None:
        """Add a sample. Raises ValueError unless it is a finite number."""
        if name not in self._series or per_step:
            self.declare(name, per_step)
        self._rows.append((self._whose(), name, self.number(name, value)))
        if len(self._rows) >= self._most:
            self._sort_own()

    def _sort_own(self):
        """The task that runs has recorded a lot, or those before it have: their fate is not known yet."""
        with self._lock:
            whose, rows = self._whose(), self._taken()
            self._sum_up([row for row in rows if row[0] == whose], self._sorted.setdefault(whose, self._empty()))
            self._rows[:0] = others = [row for row in rows if row[0] != whose]
            self._most = len(others) + MANY_ROWS

    def _taken(self):
        rows = self._rows[:]
        del self._rows[: len(rows)]  # what other threads add meanwhile stays
        return rows

    def _empty(self):
        made = components.Stats(FIGURES)
        for name, one in self._series.items():
            made.declare(name, one.steps is not None)
        return made

    @staticmethod
    def _sum_up(rows, into):
        values: dict[str, list] = {}
        for _, name, value in rows:
            values.setdefault(name, []).append(value)
        for name, some in values.items():
            into.add_many(name, some)

    def _but_for(self, failed, rows):
        found = self._empty()
        self._sum_up([row for row in rows if row[0] not in failed], found)
        for whose, stats in self._sorted.items():
            for name, one in stats.series().items() if whose not in failed else ():
                found.merge(name, one)
        return found

    def series(self) -> dict[str, components.Series]:
        """What the tasks that are not reported yet have recorded."""
        with self._lock:
            return self._but_for((), self._rows[:]).series()

    def take(self, failed: Collection[int], upto: float = math.inf) -> dict[str, list]:
        """What tasks before `upto` have recorded since the last time, but for those that failed, to travel as JSON."""
        with self._lock:
            rows, self._most = self._taken(), MANY_ROWS
            later = {whose: self._sorted.pop(whose) for whose in [*self._sorted] if whose >= upto}
            found = self._but_for(failed, [row for row in rows if row[0] < upto])
            self._rows[:0], self._sorted = [row for row in rows if row[0] >= upto], later
            if len(self._series) >= FIGURES and not self.used:
                self._series = {}  # others follow, which have names of their own
        return found.pack()

    def reset(self) -> None:
        """Forget all samples."""
        self.take(())


class LeaseRunner:
    """Runs the tasks of a lease one after the other and reports in pieces.

    `report(lo, hi, seconds, failures, parts, last)` sends outcomes; `look()` says from time to time, between two tasks,
    whether the rest is not wanted any more. `on_error(task, error)` is called for an exception of a task.
    """

    def __init__(self, report: Callable, look: Callable[[], bool], root: str = "", on_error: Callable | None = None):
        self.report = report
        self.look = look
        self.root = root
        self.on_error = on_error
        self._known: dict[bytes, list] = {}  # the classes of heads
        self._half: tuple | None = None  # of the last lease, see `Records`
        self._plain: list = []  # results that may share a pickle
        self._parts: list = []
        self._weight = 0  # bytes of these, about
        self._lent = False  # one of them is memory of the user's
        self._failures: dict[str, dict] = {}
        self._lo, self._began = 0, 0.0  # the first task that was not reported, and when it began
        self._packing = 0.0  # seconds that results took since then
        self._records: Records | None = None
        self.spent: list = []  # of what is reported: when it began and ended, and opening and packing, in microseconds
        self._first, self._place, self._several = 0, 0, False
        self._head: dict = {}
        self._quick = False  # a lease was: others may have run before the slave has heard of one
        self.stats = Attempts(lambda: self.current)
        self.figures: list[dict] = []  # what the tasks of a report have recorded, if anything

    @property
    def current(self) -> int:
        """The ordinal of the task that runs; NOBODY in a lease of one as long as none was quick: there is no doubt.

        Costs the loop nothing: what runs is as many places further as it has appended results.
        """
        return self._place + len(self._plain) if self._several else NOBODY

    def _places(self, failures: dict) -> set[int]:
        """These tasks, as `current` names them."""
        return {self._first + int(i) for i in failures} if self._several else {NOBODY} if failures else set()

    def _runs(self, i: int) -> None:
        self._place = self._first + i - len(self._plain)

    def run(self, envelope: Envelope) -> int:
        """Runs lo..hi-1 of the envelope. Returns where it stopped: hi, or less if the rest was not wanted."""
        records = self._records = Records(envelope, self._known, self._half)
        i = self._lo = envelope.lo
        self._head, self._first = envelope.head, envelope.first
        self._several = self._quick or envelope.hi - envelope.lo > 1
        looked = self._began = began = time.perf_counter()
        while i < envelope.hi:
            i = self._some(records, i, looked + LOOK_EVERY)
            now = time.perf_counter()
            heavy = self._lent or self._weight > MOST_BYTES
            if (heavy or now - looked > LOOK_EVERY) and i < envelope.hi:
                looked = now
                if self.look():
                    self._send(i, True)
                    return i
                if heavy or now - self._began > REPORT_EVERY:
                    self._send(i, False)
        self._send(envelope.hi, True)
        self._quick, self._half = self._quick or self._began - began <= QUICK, records.half
        return envelope.hi

    def load(self, envelope: Envelope) -> None:
        """Imports what the lease needs, so that its time is its own. What fails here fails again when it runs."""
        for module, qualname, _ in envelope.head["classes"]:
            attempt(find_class, module, qualname)

    def _some(self, records: Records, i: int, until: float) -> int:
        """Runs task i, and those after it in its group as long as nothing is odd and it is not `until` yet; returns the
        next."""
        self._runs(i)
        alike, error = attempt(records.alike, i)
        if alike is None or error is not None:
            self._one(records, i)
            return i + 1
        cls, states, place, stop = alike
        first, before = records.ordinal + i - place, len(self._plain)
        told, error = attempt(run_alike, cls, states, place, stop, records.owner, first, self._plain, until)
        if error is not None:  # a task that cannot even be made in the quick way
            i += len(self._plain) - before
            self._one(records, i)
            return i + 1
        ran, task, result, error = told
        i += ran - place
        if len(self._plain) >= GROUP:
            self._flush()
        if task is not None:
            self._settle(i - 1, task, result, error)
        return i

    def _one(self, records: Records, i: int) -> None:
        task, error = attempt(records.task, i)
        if error is not None:
            self._fail(i, error, "setup" if getattr(error, "errno", None) in SHORTAGES else "load")
            return
        self._settle(i, task, *attempt(task))

    def _settle(self, i: int, task: Task, result: Any, error: BaseException | None) -> None:
        self._runs(i)
        if error is None:
            self._keep(i, result, type(task).clean_up is not Task.clean_up)
        else:
            if self.on_error:
                self.on_error(task, error)
            self._fail(i, error, "error")
        if type(task).clean_up is not Task.clean_up:
            self._clean_up(i, task)

    def _clean_up(self, i: int, task: Task) -> None:
        self._runs(i)
        _, error = attempt(task.clean_up)
        if error is not None and str(i) not in self._failures:
            self._failures[str(i)] = describe_failure(error, self.root, "clean_up")

    def _keep(self, i: int, result: Any, copy: bool) -> None:
        """`copy`: more of the user's code runs before it can be sent."""
        if type(result) in ATOMS and not (type(result) in SIZED and len(result) > GROUP_BYTES):
            self._plain.append(result)
            if len(self._plain) >= GROUP:
                self._flush()
            return
        began = time.perf_counter()
        pieces, error = attempt(rpc.seal_pieces, [result])
        self._packing += time.perf_counter() - began
        if error is not None:
            self._fail(i, rpc.explain_unpicklable(result, error, "the result"), "result")
            return
        size = rpc.size_of(pieces)
        if not fits(size):
            self._fail(i, too_large("the result", size), "result")
            return
        self._flush()
        if not fits(self._weight + size):
            self._send(i, False)
        part = rpc.frozen(pieces) if copy else pieces
        self._parts.append(part[0] if len(pieces) == 1 else part)
        self._lent = self._lent or rpc.is_lent(part)
        self._weight += size

    def _fail(self, i: int, error: BaseException, kind: str) -> None:
        failure = self._failures[str(i)] = describe_failure(error, self.root, kind)
        if kind == "error" and (retries := retries_after(self._head, names_of(error))):
            failure["retries"] = retries
        self._plain.append(None)

    def _flush(self) -> None:
        if self._plain:
            began = time.perf_counter()
            self._parts.append(pickle.dumps(self._plain, 5))
            self._weight += len(self._parts[-1])
            self._plain = []
            self._packing += time.perf_counter() - began

    def _send(self, hi: int, last: bool) -> None:
        self._flush()
        now = time.perf_counter()
        self.spent = [int(1e6 * each) for each in (self._began, now, self._records.seconds, self._packing)]
        self._records.seconds = self._packing = 0.0
        lo, seconds, self._lo, self._began = self._lo, now - self._began, hi, now
        parts, self._parts, self._weight, self._lent = self._parts, [], 0, False
        failures, self._failures = self._failures, {}
        if self.stats.used:
            told = self.stats.take(self._places(failures), math.inf if last else self._first + hi)
            self.figures = [told] if told else []
        self.report(lo, hi, seconds, failures, parts, last)


def worker_main(sock: socket.socket, root: str) -> None:
    """The life of a worker: one bundle, one lease after the other, until the slave closes the socket."""
    wire = Wire(sock)
    _, closed = attempt(_open_application, root)
    exchange = rpc.Exchange(wire.publish, wire.fetch)
    granted: dict[str, str] = {}  # the variables of the last grant
    lease = 0

    def report(lo: int, hi: int, seconds: float, failures: dict, parts: list, last: bool) -> None:
        flush()  # what a task has printed is there before its outcome
        wire.call("result", lease, lo, hi, failures, last, runner.spent, *runner.figures, parts=parts)
        runner.spent, runner.figures = [], []

    runner = LeaseRunner(report, lambda: wire.unwanted(lease), root)
    runner.stats.stand_in()
    flush = speak(lambda: runner.current)
    while True:
        call, parts = wire.next()
        if call[0] == "run":
            _, lease, *details, number, first, grant = call
            if lease in wire.dropped:
                report(details[2], details[2], 0.0, {}, [], True)
                continue
            exchange.serve(details[0])
            _grant(granted, grant, number)
            envelope = Envelope(lease, *details, number, first, parts)
            if closed is not None:
                _, closed = attempt(_open_application, root)
            if closed is not None:
                failures = {"*": describe_failure(closed, root, "setup")}
                report(envelope.lo, envelope.hi, 0.0, failures, [], True)
                continue
            if not WATCHED.isdisjoint(limits_of(envelope.head)):
                runner.load(envelope)
                wire.call("begun", lease)
            runner.run(envelope)


def _open_application(root: str) -> None:
    """Makes the bundle importable, and this package under the name by which the application knows it."""
    rpc.speak_wire()
    manifest = rpc.manifest_of(root)
    rpc.answer_framework([rpc.PUBLIC_NAME, manifest["framework"]])
    rpc.install_bundle(root, manifest)


def _grant(before: dict[str, str], now: dict[str, str] | None, attempt: int) -> None:
    """Sets the variables of a lease, and takes those of the last one away; None: they are the same."""
    now = {**(before if now is None else now), "CONCURRENT_SWARM_ATTEMPT": str(attempt)}
    if now != before:
        for name in before.keys() - now.keys():
            os.environ.pop(name, None)
        os.environ.update(now)
        before.clear()
        before.update(now)


# -- the process that hosts a task system --------------------------------------------------------------------------

def host_main(sock: socket.socket, root: str) -> None:
    """The life of a system host: takes the sealed system, runs it until it is done or the master closes the socket."""
    wire = Wire(sock)
    flush = speak()
    (_, name, options), parts = wire.next()
    pulse = memoryview(mmap.mmap(wire.witness, PULSE)).cast("Q") if wire.witness >= 0 else [0]
    _open_application(root)
    seed = options["seed"]
    rpc.Exchange(wire.publish, wire.fetch, md5(seed.encode()).hexdigest()[:16])
    random.seed(seed)

    def tell(method: str, *params: Any, parts: Iterable = ()) -> None:
        if method == "system_done":
            flush()  # what its hooks have printed is there before
        wire.call(method, *params, parts=parts)

    run = None
    VIEWS.send = lambda type, data: wire.call("view", type, parts=[data])
    opened, error = attempt(rpc.open_sealed, parts[0])
    if error is not None:
        tell("system_done", describe_failure(error, root, "system"), {}, parts=[])
    elif options.pop("saved"):
        run = SystemRun(opened["system"], tell, options, name, root, pulse)
        run.stats.stand_in()
        run.resume(opened)
    else:
        run = SystemRun(opened, tell, options, name, root, pulse)
        run.stats.stand_in()
        run.start()
    handlers = {"outcome": _host_outcome, "accepted": _host_accepted, "refused": _host_refused, "step": _host_step}
    while True:
        pulse[0] = 0
        if run and not run.done and (wait := VIEWS.wait) is not None and (not wait or wire.is_quiet(wait)):
            run.show()
            continue
        if run and run.unsaid and wire.is_quiet(TELL_FIGURES):
            run.tell_figures()
        call, parts = wire.next()
        if run:
            handlers[call[0]](run, call[1:], parts)


def _host_outcome(run: SystemRun, params: list, parts: list) -> None:
    run.outcome(*params, parts)


def _host_accepted(run: SystemRun, params: list, parts: list) -> None:
    run.owner.accepted(*params)
    run.pump()


def _host_refused(run: SystemRun, params: list, parts: list) -> None:
    run.owner.refused(*params)
    run.pump()


def _host_step(run: SystemRun, params: list, parts: list) -> None:
    run.next_step(*params)


# -- what applications need ----------------------------------------------------------------------------------------

def builder_main(sock: socket.socket, root: str) -> None:
    """The life of a builder: makes what one bundle needs, says how that ended, and waits to be killed."""
    os.umask(0o022)  # workers may be other users
    wire = Wire(sock)
    (_, order), _ = wire.next()
    size, error = attempt(functools.partial(rpc.build_parts, root, **order))
    told = [getattr(error, name, "") for name in ("what", "why", "fix", "kind")] if error else []
    if error and not isinstance(error, rpc.CannotBuild):
        told = [f"what it needs cannot be made on {order['where']}", str(error), "make room there", "setup"]
    wire.call("built", size, told)
    wire.next()


def program_main(sock: socket.socket, root: str) -> None:
    """The life of a child that becomes another program: it is told which, with what variables."""
    (_, command, environ), _ = Wire(sock).next()
    sock.close()
    os.execve(command[0], command, {**os.environ, **environ})


MAINS = {"worker": worker_main, "host": host_main, "builder": builder_main, "program": program_main}
PIP_READS = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf", "/etc/xdg/pip",
             "/etc/*release", "/etc/*[-_]version")  # it tells an index on which system it runs
BUILDING = f"{rpc.PARTS}-new"  # its folder in the bundle's
FAILED_FOR = 30.0  # seconds in which what could not be built is not tried again
USE_EVERY = 1.0  # seconds between two looks whether anything uses what was built


class Prerequisites:
    """What the applications on a node need beside their own files: installed and compiled by a child, and removed when
    nothing of them was here for `node.keep_apps` seconds, or when the node ends.

    The node has `prepared(digest, error)`, called when that is there or cannot be (with a `rpc.CannotBuild`);
    `preparing(digest, what)`, told what is being made, "" when that is over; and `uses(digest)`, whether anything of
    the bundle is here. `parted(digest)` is called before its parts are removed.
    """

    def __init__(self, node: Any, parted: Callable[[str], None] = lambda digest: None):
        self._node, self._parted = node, parted
        self._building: dict[str, tuple[rpc.Pipe, float, Callable]] = {}  # the builder, since when, and what kills it
        self._failed: dict[str, tuple[float, rpc.CannotBuild]] = {}
        self._used: dict[str, float] = {}  # digest of what was built -> when something of it was last here

    def here(self, digest: str) -> bool:
        """Whether a bundle has what it needs; if not, a child begins to make it, unless one does already."""
        if digest in self._used or digest in self._building:
            return digest in self._used
        wanted = rpc.wanted_parts(self._root(digest))
        failed_at, error = self._failed.get(digest, (-math.inf, None))
        if not any(wanted.values()):
            return True
        if time.monotonic() - failed_at < FAILED_FOR:
            self._node.loop.later(0, functools.partial(self._node.prepared, digest, error))
        else:
            self._begin(digest, wanted)
        return False

    def close(self) -> None:
        """The node has ended, and all that it forked."""
        for root in (self._node.environment / "apps").iterdir():
            rpc.remove_parts(root)

    def _root(self, digest: str) -> Path:
        return self._node.environment / "apps" / digest

    def _begin(self, digest: str, wanted: dict) -> None:
        node, root, what = self._node, self._root(digest), ", ".join(itertools.chain(*wanted.values()))
        place = f"{node.name} ({socket.gethostname()})" if node.role == "slave" else f"the {node.role}"
        order = {**wanted, "into": str(root / BUILDING), "where": place, "install": node.install,
                 "wheels": str(node.wheels or ""), "index": node.index}
        read = [path for one in PIP_READS for path in glob.glob(os.path.expanduser(one))]
        order["settings"] = next((path for path in read if path.endswith("pip.conf")), "")
        online = bool(wanted["requirements"]) and node.install and not node.wheels
        confinement = node.guard.of_builder([*read, *filter(None, [order["wheels"]])], [order["into"]], online)
        try:
            (root / BUILDING).mkdir()
            token, sock = node.zygote.fork("builder", str(root), confinement=confinement)
        except OSError as error:
            error = rpc.CannotBuild(f"{what} cannot be made on {place}", str(error))
            node.loop.later(0, functools.partial(self._end, digest, error))  # who asks does not wait yet
            return
        zygote, seconds = node.zygote, node.build_timeout
        pipe = rpc.Pipe(node.loop, sock, lambda pipe, call, parts: self._heard(digest, *call),
                        lambda pipe: self._cut_short(digest, f"{what} cannot be made on {place}", seconds))
        kill = functools.partial(zygote.kill, token)
        self._building[digest] = pipe, time.monotonic(), kill
        node.loop.later(seconds, lambda: pipe.open and kill())
        pipe.call("build", order)
        log.info("application %s: making %s", digest[:12], what)
        node.preparing(digest, what)

    def _heard(self, digest: str, method: str, *told: Any) -> None:
        guard = self._node.guard  # a builder has the node's user
        if method == "built":
            self._built(digest, *told)
        elif type(told[0]) is not dict or not guard.is_whole({**told[0], "uid": guard.applied["uid"]}):
            self._end(digest, rpc.CannotBuild("what it needs cannot be made here", f"no sandbox: {told[0]}"))

    def _built(self, digest: str, size: int, told: list) -> None:
        if told:
            self._end(digest, rpc.CannotBuild(*told))
            return
        seconds, root = time.monotonic() - self._building[digest][1], self._root(digest)
        (root / BUILDING).rename(root / rpc.PARTS)
        log.info("application %s: all it needs is here, %.1f MiB in %.1f s", digest[:12], size / 2**20, seconds)
        if not self._used:
            self._node.loop.later(USE_EVERY, self._look)
        self._used[digest] = time.monotonic()
        self._end(digest, None)

    def _cut_short(self, digest: str, what: str, most: float) -> None:
        """The builder ended without a word: it was killed."""
        if digest in self._building:
            late = time.monotonic() - self._building[digest][1] >= most
            why = f"it was not ready within {most:g} s" if late else "something killed the process that made it"
            said = rpc.said_last(self._root(digest) / BUILDING)
            self._end(digest, rpc.CannotBuild(what, f"{why}; the last lines:\n{said}", "node.build_timeout there"))

    def _end(self, digest: str, error: rpc.CannotBuild | None) -> None:
        pipe, _, kill = self._building.pop(digest, (None, 0.0, None))
        if pipe:
            pipe.close()
            kill()
            self._node.preparing(digest, "")
        if error:
            log.error("application %s: %s", digest[:12], error)
            self._failed[digest] = time.monotonic(), error
            self._remove(digest)
        self._node.prepared(digest, error)

    def _look(self) -> None:
        now = time.monotonic()
        for digest, used in list(self._used.items()):
            if self._node.uses(digest):
                self._used[digest] = now
            elif now - used >= self._node.keep_apps:
                del self._used[digest]
                self._parted(digest)
                log.info("application %s: what was made for it is removed", digest[:12])
                self._remove(digest)
        if self._used:
            self._node.loop.later(USE_EVERY, self._look)

    def _remove(self, digest: str) -> None:
        """Aside at once, and away in a thread: the loop waits for no disk."""
        for name in rpc.PARTS, BUILDING:
            path, aside = self._root(digest) / name, self._root(digest) / f"{rpc.PARTS}-{uuid.uuid4()}"
            if path.is_dir():
                path.rename(aside)
                threading.Thread(target=shutil.rmtree, args=[aside, True], name="remove parts").start()


# -- traces --------------------------------------------------------------------------------------------------------

MOST_TRACE = 1 << 30  # bytes of a trace file; no viewer opens more
MOST_UNWRITTEN = 100  # batches of events that may wait for the disk
DETAILED = 250  # spans a second of which a trace tells all, which takes some 20 µs each
CLOSE = 0.001  # seconds between two of all others in one lane that become one slice
LONGEST = 0.1  # seconds of such a slice
FIRST_LANE = 10**6  # number of the first thread that is a lane; below are those of processes
MOST_SUBMITTED = 100_000  # submissions that a client remembers until it hears of their spans
MOST_SETTLED = 20_000  # and outcomes; also of both that it has noted since the last batch

_ROW = struct.Struct("<IQQQQIQ7dQIQQQd")  # of `Thinned`; texts are numbers
_TASKS, _FAILED, _BEGAN, _ENDED, _HEARD, _LEASES, _RAN = 2, 3, 9, 10, 11, 18, 19  # places in it
_TEXTS = 0, 5, 15
_lane_of = itemgetter(5, 6)  # the slave, and which of its lanes
_kind_of = itemgetter(0, 4, 14, 15)  # owner, attempt, step, class
_NAME = '{"ph":"M","pid":%d,"tid":%d,"name":"%s","args":{"%s":%s}}'
_SLICE = '{"ph":"X","pid":%d,"tid":%d,"ts":%d,"dur":%d,"name":"%s","args":{%s}}'
_ARROW = '{"ph":"%s","bp":"e","cat":"flow","id":%d,"pid":%d,"tid":%d,"ts":%d,"name":"task"}'
_COUNT = '{"ph":"C","pid":%d,"tid":%d,"ts":%d,"name":"%s","args":{"%s":%d}}'
_INSTANT = '{"ph":"i","s":"g","pid":%d,"tid":%d,"ts":%d,"name":"%s"}'


class Ration:
    """The first DETAILED of each second."""

    def __init__(self):
        self._second, self._left = 0, 0

    def take(self, when: float) -> bool:
        """Whether there is one left."""
        if int(when) != self._second:
            self._second, self._left = int(when), DETAILED
        self._left -= 1
        return self._left >= 0


class Thinned:
    """Collects what a trace tells of spans (see `master.Span`): of DETAILED in a second all, of the others together
    what follows closely in a lane and is alike. Rows are the fields of a span, the first one's if they are several,
    and then how many they are, 0 for a span with all details, and in how many seconds they ran. No more than `most`
    rows wait here."""

    def __init__(self, most: float = math.inf):
        self._most, self._missing = most, 0
        self._ration = Ration()
        self._rows: list[list | tuple] = []
        self._last: dict[tuple[str, int], list] = {}  # slave and lane -> the row that may grow

    def add(self, spans: Iterable[tuple]) -> None:
        """More spans, as they were heard of."""
        for span in spans:
            if self._ration.take(span[_HEARD]):
                self._last.clear()
                self._put((*span, 0, 0.0))
            elif not self._grows(span):
                self._put([*span, 1, span[_ENDED] - span[_BEGAN]])

    def _grows(self, span: tuple) -> bool:
        """Whether there is a row that has taken it in."""
        row, began, ended = self._last.get(_lane_of(span)), span[_BEGAN], span[_ENDED]
        if row is None or _kind_of(row) != _kind_of(span):
            return False
        if began - row[_ENDED] >= CLOSE or ended - row[_BEGAN] >= LONGEST:
            return False
        row[_TASKS] += span[_TASKS]
        row[_FAILED] += span[_FAILED]
        row[_ENDED] = max(row[_ENDED], ended)
        row[_LEASES] += 1
        row[_RAN] += ended - began
        return True

    def _put(self, row: list | tuple) -> None:
        if len(self._rows) >= self._most:
            self._missing += 1
            return
        self._rows.append(row)
        if row[_LEASES]:
            self._last[_lane_of(row)] = row

    def taken(self) -> tuple[list[list | tuple], int]:
        """The rows, which are here no more, and how many spans have found no room since."""
        told = self._rows, self._missing
        self._rows, self._missing, self._last = [], 0, {}
        return told


class Trace:
    """Turns spans (see `master.Span`) into events of Chrome's trace format: each method returns JSON texts. Processes
    are owners, the master and slaves, threads are lanes of a slave. Pure; it remembers what it has named, and how far
    each lane is. Times are the master's in seconds; events have whole microseconds, for slices must nest. Numbers of
    threads are never used twice, and those of arrows are no texts: Perfetto would mix them up."""

    ROLES = ("client", "system", "master", "slave")  # in the order in which they are shown

    def __init__(self):
        self._pids: dict[str, int] = {}
        self._lanes: dict[tuple[str, int], list[int]] = {}  # slave and lane -> pid, tid, when its last span ended
        self._arrows = itertools.count(1)
        self._kinds: dict[str, str] = {}
        self._names: list[str] = []  # of what is new

    def events(self, rows: Iterable[tuple]) -> list[str]:
        """Those of all rows, each the name of a method and its arguments."""
        return [event for name, *details in rows for event in getattr(self, name)(*details)]

    def span(self, row: Iterable, submitted: tuple | None = None, settled: tuple | None = None) -> list[str]:
        """A row of `Thinned`: a span with its life at its owner, its run in its lane, and arrows from one to the other,
        or what several did in a lane. Of its own tasks a client also knows from when to when they were `submitted` and
        `settled`."""
        (owner, first, count, failed, attempt, slave, lane, *times, opening, packing, step, kind, sent, received,
         leases, ran) = row
        if leases:
            return self.run(owner, first, count, failed, attempt, slave, lane, *times[2:4], step, kind, leases, ran)
        task, name = f'"task":"{owner}.{first}","attempt":{attempt}', self._kind(kind)
        home, place, arrow = self._owner(owner), self._lane(slave, lane), next(self._arrows)
        pid, tid, last = place
        queued, leased, began, ended, heard = map(_micro, itertools.accumulate(times, max))
        began = max(began, last)  # the reports of two spans were not equally long on their way
        ended = place[2] = max(began, ended)
        unpickled = min(began + _micro(opening), ended)
        pickling = max(ended - _micro(packing), unpickled)
        heard = max(ended, heard)
        lane = f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":'
        return [
            *_life(f"{owner}.{first}/{attempt}", home, name, f'{task},"slave":"{slave}"',
                   (queued, leased, began, ended, heard), submitted if attempt == 1 else None, settled),
            *self._end("s", arrow, home, submitted, leased, "lease"),
            f'{lane}{began},"dur":{ended - began},"name":"{name}","args":{{{task},"tasks":{count},"failed":{failed},'
            f'"step":{step},"sent":{sent},"received":{received}}}}}',
            f'{{"ph":"t","cat":"flow","id":{arrow},"pid":{pid},"tid":{tid},"ts":{began},"name":"task"}}',
            f'{lane}{began},"dur":{unpickled - began},"name":"unpickle"}}',
            f'{lane}{unpickled},"dur":{pickling - unpickled},"name":"run"}}',
            f'{lane}{pickling},"dur":{ended - pickling},"name":"pickle"}}',
            *self._end("f", arrow, home, settled, heard, "result"),
            *self._new(),
        ]

    def run(self, owner: str, first: int, count: int, failed: int, attempt: int, slave: str, lane: int, began: float,
            ended: float, step: int, kind: str, leases: int = 1, ran: float = 0.0) -> list[str]:
        """Of a span of which no more is known, or of several `leases`, what was done in its lane."""
        place, since = self._lane(slave, lane), max(_micro(began), self._lane(slave, lane)[2])
        place[2] = max(since, _micro(ended))
        about = f'"task":"{owner}.{first}","attempt":{attempt},"tasks":{count},"failed":{failed},"step":{step}'
        if leases > 1:
            about += f',"leases":{leases},"ran":"{1e3 * ran:.3f} ms"'
        return [_SLICE % (*place[:2], since, place[2] - since, self._kind(kind), about), *self._new()]

    def barrier(self, when: float, system: str, step: int, waits: bool) -> list[str]:
        """A step of a task system begins, or is done and waits for somebody."""
        text, pid = f"system {system}: step {step} {'is done and waits' if waits else 'begins'}", self._owner(system)
        return [_INSTANT % (pid, pid, _micro(when), text), *self._new()]

    def counts(self, when: float, queued: int, busy: int) -> list[str]:
        """How many tasks wait and how many workers are busy."""
        place = [self._pid("master")] * 2 + [_micro(when)]
        rows = ("queue", "tasks", queued), ("busy", "workers", busy)
        return [*(_COUNT % (*place, *row) for row in rows), *self._new()]

    def own(self, owner: str, what: str, tasks: int, began: float, ended: float) -> list[str]:
        """What a client did in its one thread."""
        pid, start, count = self._owner(owner), _micro(began), f'"tasks":{tasks}'
        return [_SLICE % (pid, pid, start, _micro(ended) - start, what, count), *self._new()]

    def _end(self, phase: str, arrow: int, home: int, known: tuple | None, at: int, what: str) -> list[str]:
        """Where an arrow begins or ends: in what the client did, or at the master where nobody knows of that."""
        if known:
            return [_ARROW % (phase, arrow, home, home, _micro(known[0]))]
        master = self._pid("master")
        return [_SLICE % (master, master, at, 1, what, ""), _ARROW % (phase, arrow, master, master, at)]

    def _kind(self, kind: str) -> str:
        if kind not in self._kinds:
            self._kinds[kind] = json.dumps(kind or "task")[1:-1]
        return self._kinds[kind]

    def _owner(self, owner: str) -> int:
        return self._pid(f"system {owner}" if owner.isdecimal() else f"client {owner}")

    def _lane(self, slave: str, lane: int) -> list[int]:
        place = self._lanes.get((slave, lane))
        if place is None:
            place = self._lanes[slave, lane] = [self._pid(f"slave {slave}"), FIRST_LANE + len(self._lanes), 0]
            self._names.append(_NAME % (*place[:2], "thread_name", "name", f'"worker {lane}"'))
        return place

    def _pid(self, name: str) -> int:
        if name not in self._pids:
            pid = self._pids[name] = len(self._pids) + 1
            role, _, number = name.partition(" ")
            order = self.ROLES.index(role) * 10**6 + int("0" + re.sub("[^0-9]", "", number)[:5])
            thread = {"client": "callbacks", "master": "leases"}.get(role, role)
            named = ("process_name", "name", json.dumps(name)), ("process_sort_index", "sort_index", order)
            self._names += [_NAME % (pid, pid, *row) for row in (*named, ("thread_name", "name", f'"{thread}"'))]
        return self._pids[name]

    def _new(self) -> list[str]:
        names, self._names = self._names, []
        return names


def _micro(seconds: float) -> int:
    return int(seconds * 1e6)


def _life(key: str, home: int, name: str, about: str, times: tuple, submitted: tuple | None, settled: tuple | None
          ) -> list[str]:
    """The phases of a span within one slice, on a track of their own: those of others go on meanwhile."""
    queued, leased, began, ended, heard = times
    phases = [("queue", queued, leased), ("transfer", leased, began), ("run", began, ended), ("send", ended, heard)]
    if submitted:
        phases.insert(0, ("submit", *(min(_micro(at), queued) for at in submitted)))
    if settled:
        phases.append(("settle", *(max(_micro(at), heard) for at in settled)))
    begin, end = (f'{{"ph":"{one}","cat":"task","id":"{key}","pid":{home},"tid":{home},"ts":' for one in "be")
    events = [f'{begin}{phases[0][1]},"name":"{name}","args":{{{about}}}}}']
    for what, since, until in phases:
        events += f'{begin}{since},"name":"{what}"}}', f'{end}{until},"name":"{what}"}}'
    events.append(f'{end}{phases[-1][2]},"name":"{name}"}}')
    return events


def trace_of(rows: Iterable[tuple]) -> bytes:
    """A whole trace as one JSON object, of rows as `Trace.events` takes them."""
    return b'{"displayTimeUnit":"ms","traceEvents":[\n%s\n]}\n' % ",\n".join(Trace().events(rows)).encode()


def pack_spans(rows: Iterable[Sequence]) -> list[bytes]:
    """Rows of `Thinned` as two parts of a message: their texts as JSON, and all else."""
    texts: dict[str, int] = {}
    number = texts.setdefault
    packed = []
    for row in rows:
        owner, slave, kind = (number(row[place], len(texts)) for place in _TEXTS)
        packed.append(_ROW.pack(owner, *row[1:5], slave, *row[6:15], kind, *row[16:]))
    return [json.dumps(list(texts)).encode(), b"".join(packed)]


def unpack_spans(parts: list) -> list[tuple]:
    """The rows of which `pack_spans` made these parts."""
    texts, rows = json.loads(bytes(parts[0])), _ROW.iter_unpack(bytes(parts[1]))
    return [(texts[row[0]], *row[1:5], texts[row[5]], *row[6:15], texts[row[15]], *row[16:]) for row in rows]


class TraceFile(threading.Thread):
    """Writes a trace as the run goes on, whole events at a time: the array form, of which viewers do without the end.
    So whatever becomes of this process, the file can be read. Another thread makes the events, so that no disk holds up
    a loop. Raises UsageError if the file cannot be made."""

    def __init__(self, path: str | Path, most: int = MOST_TRACE):
        super().__init__(name="trace", daemon=True)
        self.path, self.size, self._most = Path(path), 0, most
        self.missing = 0  # batches that were not written
        self._trace = Trace()
        self._waiting: queue.Queue = queue.Queue(MOST_UNWRITTEN)
        try:
            self._file = io.FileIO(path, "w")
        except OSError as error:
            what = f"the trace {path} cannot be written"
            raise components.UsageError(what, str(error), "name another file") from None
        self._open = self._write(b"[\n", most)
        self.start()

    def put(self, rows: list[tuple]) -> None:
        """Takes rows as `Trace.events` does. Never waits."""
        try:
            self._waiting.put_nowait(rows)
        except queue.Full:
            self.missing += 1

    def run(self) -> None:
        """Writes until `close`."""
        while (rows := self._waiting.get()) is not None:
            events = self._trace.events(rows)
            if self._open and events:
                text = (",\n" * (self.size > 2) + ",\n".join(events)).encode()
                self._open = self._write(text, self._most)

    def close(self) -> None:
        """Writes what waits, and the end."""
        self._waiting.put(None)
        self.join()
        if self._open:
            self._write(b"\n]\n", math.inf)
        self._file.close()
        if self.missing:
            log.warning("the trace %s lacks %s batches of spans: its disk was too slow", self.path, self.missing)

    def _write(self, text: bytes, most: float) -> bool:
        """Whether more can be written."""
        if self.size + len(text) + 3 > most:
            log.warning("the trace %s ends here, with %.2f MiB: it may have %.2f", self.path, self.size / 2**20,
                        self._most / 2**20)
            text, most = b"\n]\n", 0
        try:
            at = 0
            while at < len(text):
                at += self._file.write(text[at:])
            self.size += at
        except OSError as error:
            log.error("the trace %s ends here: %s", self.path, error)
            return False
        return most > 0


class Tracer:
    """The trace of a client: puts together what it knows itself of its tasks and the spans that the master sends."""

    def __init__(self, file: TraceFile):
        self.file, self.name = file, ""
        self.complete = False  # the master has sent all
        self._missing = 0  # spans
        self._noted: list[tuple] = []  # submissions (attempt 0) and outcomes since the last batch
        self._own: list[list] = []  # what it did since then
        self._spans: list = []  # rows of the last batch: some of their outcomes may still be on their way
        self._firsts: list[int] = []  # of submissions: the ordinals of their first tasks, in order
        self._submitted: list[list] = []
        self._settled: dict[tuple[int, int], list] = {}  # first task and attempt -> when
        self._ration = Ration()
        self._same = True
        self._least, self._most = -math.inf, math.inf  # by how much our clock is ahead of the master's

    def begin(self, name: str, same: bool) -> None:
        """A master has let the client in under this name. `same`: its clock is also ours."""
        self.name = name
        self._same, self._least, self._most = same, -math.inf, math.inf

    def note(self, first: int, tasks: int, attempt: int, began: float, ended: float) -> None:
        """Between these times of our clock outcomes of an attempt were opened and called back, or (0) tasks were packed
        and sent. No more than noted: a client that has just woken up has nothing in its caches."""
        self._noted.append((first, tasks, attempt, began, ended))
        if len(self._noted) > MOST_SETTLED:
            self._sort_in()

    def _sort_in(self) -> None:
        noted, self._noted = self._noted, []
        for first, tasks, attempt, *times in noted:
            self._did("settle" if attempt else "submit", tasks, *times)
            if attempt:
                self._settled[first, attempt] = times
            else:
                self._firsts.append(first)
                self._submitted.append(times)
        self._tidy()

    def _did(self, what: str, tasks: int, began: float, ended: float) -> None:
        last = self._own[-1] if self._own else ["", 0, 0.0, 0.0]
        close = last[0] == what and began - last[3] < CLOSE and ended - last[2] < LONGEST
        if self._ration.take(ended) or not close:
            self._own.append([what, tasks, began, ended])
        else:
            last[1] += tasks
            last[3] = ended

    def _tidy(self) -> None:
        if len(self._firsts) > MOST_SUBMITTED:
            del self._firsts[: MOST_SUBMITTED // 2], self._submitted[: MOST_SUBMITTED // 2]
        if len(self._settled) > MOST_SETTLED:
            for key in list(self._settled)[: MOST_SETTLED // 2]:
                del self._settled[key]

    def hear(self, said: float, now: float, spans: list[tuple], barriers: Iterable = (), missing: int = 0,
             counts: Iterable = (), last: bool = False) -> None:
        """A batch that the master sent at `said` by its clock, and that came at `now` by ours; `spans` are rows of
        `Thinned`."""
        self._sort_in()
        self._compare(said, now, spans)
        own, self._own = self._own, []
        shift = self._shift
        rows = [("own", self.name, *what, began - shift, ended - shift) for *what, began, ended in own]
        rows += [("span", one, *self._known(one, shift)) for one in self._spans]
        rows += [("barrier", *one) for one in barriers]
        rows += [("counts", said, *counts)] if counts else []
        self._spans = spans
        self._missing += missing
        self.complete = self.complete or last
        self.file.put(rows)

    def close(self) -> None:
        """Writes what it has, and the end."""
        if self.name:
            self.hear(0.0, math.inf, [])
        self.file.close()
        if self._missing:
            log.warning("the trace %s lacks %s spans: this client was too slow", self.file.path, self._missing)

    def _known(self, row: Sequence, shift: float) -> tuple:
        """When these tasks were submitted and settled, as far as is known, by the master's clock."""
        owner, first, _, _, attempt, *_ = row
        if owner != self.name or row[_LEASES]:
            return None, None
        place = bisect.bisect_right(self._firsts, first) - 1
        both = self._submitted[place] if place >= 0 else None, self._settled.pop((first, attempt), None)
        return tuple(one and (one[0] - shift, one[1] - shift) for one in both)

    def _compare(self, said: float, now: float, spans: list) -> None:
        """How far are the clocks apart? What is queued was submitted before, and what is heard was said before."""
        self._most = min(self._most, now - said)
        for owner, first, _, _, attempt, _, _, queued, *_, leases, _ in spans:
            place = bisect.bisect_right(self._firsts, first) - 1
            if owner == self.name and attempt == 1 and place >= 0 and not leases:
                self._least = max(self._least, self._submitted[place][0] - queued)

    @property
    def _shift(self) -> float:
        """By how many seconds our clock is ahead of the master's, about."""
        if self._same or self._most == math.inf:
            return 0.0
        return (min(self._least, self._most) + self._most) / 2 if self._least > -math.inf else self._most


class TracedOwner(Owner):
    """An owner that tells a `Tracer` when it submits and settles."""

    tracer: Tracer
    _packing_at = 0.0

    def _submit_alike(self, tasks: list[Task], source: Source, asked: dict | None) -> None:
        self._packing_at = time.monotonic()
        super()._submit_alike(tasks, source, asked)

    def _send(self, batch: Batch, tasks: list[Task], source: Source) -> None:
        first = self.drawn
        super()._send(batch, tasks, source)
        self.tracer.note(first, batch.count, 0, self._packing_at, time.monotonic())

    def outcome(self, number: int, lo: int, hi: int, seconds: float, failures: dict, slave: str, attempt: int,
                parts: list) -> None:
        flight, began = self.flights.get(number), time.monotonic()
        super().outcome(number, lo, hi, seconds, failures, slave, attempt, parts)
        if flight:
            self.tracer.note(flight.first + lo, hi - lo, attempt, began, time.monotonic())


# -- pure twins ----------------------------------------------------------------------------------------------

def md5_search(digest: bytes, start: int, stop: int) -> int | None:
    """The first number in start..stop-1 whose decimal text has this MD5 digest (16 bytes); None if none has.

    The numbers lie in 0..2**63-1. Raises ValueError for a digest that is not 16 bytes and for other numbers.
    """
    if not isinstance(digest, bytes) or len(digest) != 16:
        raise ValueError(f"an MD5 digest is 16 bytes, not {digest!r}")
    if not range(start, stop):
        return None
    if start < 0 or stop > 2**63:
        raise ValueError(f"md5_search knows the numbers 0..2**63-1, not {start}..{stop - 1}")
    for number in range(start, stop):
        if md5(b"%d" % number, usedforsecurity=False).digest() == digest:
            return number
    return None


def run_alike(cls: type, states: list, place: int, stop: int, owner: str, first: int, results: list,
              until: float) -> tuple[int, Task | None, Any, BaseException | None]:
    """The loop of a worker: makes a task of each of states[place:stop] and calls it; its result goes to `results`.

    Stops after the first task that raises or whose result may not share a pickle, or once the clock (that of
    `time.perf_counter`) has passed `until`. Returns (place of the next state, task, result, error); the last three are
    None unless it stopped over this task, whose result is then still to be kept. `first` is the ordinal of states[0].
    """
    new, clock = cls.__new__, time.perf_counter
    while place < stop:
        task = new(cls)
        task.__dict__ = state = states[place].copy()  # one task may have been pushed many times
        state["_owner"] = owner
        state["_ordinal"] = first + place
        place += 1
        result, error = attempt(task)
        kind = type(result)
        if error is not None or kind not in ATOMS or (kind in SIZED and len(result) > GROUP_BYTES):
            return place, task, result, error
        results.append(result)
        if clock() > until:
            break
    return place, None, None, None


def asks_nothing(tasks: list[Task], names: tuple) -> bool:
    """Whether none of the tasks, nor their classes, sets one of these attributes; False also for what is no task."""
    for cls in set(map(type, tasks)):
        if any(getattr(cls, name, None) is not None for name in names):
            return False
    try:
        return all(map(frozenset(names).isdisjoint, map(vars, tasks)))
    except TypeError:
        return False


def number_tasks(tasks: list[Task], owner: str, first: int) -> None:
    """Tells tasks whose they are, and their ordinals."""
    for ordinal, task in enumerate(tasks, first):
        task._owner = owner
        task._ordinal = ordinal


def settle(owner: Owner, flight: Flight, lo: int, results: list, handle: type | None, plain: Callable) -> None:
    """The loop of an owner: the results of the tasks from `lo` on go to `task.finished` and the owner's callback, which
    gets a `handle` of the task if that is not None. `plain` is the `finished` that does nothing.

    A task that has its outcome already is left out, and so is everything once the owner is closed.
    """
    tasks, callback, name, first = flight.tasks, owner.callback, owner.name, flight.first
    for i, result in enumerate(results, lo):
        task = tasks[i]
        if task is None or owner.closed:
            continue
        tasks[i] = None
        task._ordinal = first + i  # again: one task may have been pushed many times
        flight.open -= 1
        owner.done += 1
        if type(task).finished is not plain:
            task.finished(result, None)
        if handle is None:
            callback(task, result, None)
        else:
            told = handle(f"{name}.{first + i}")
            told.task = task
            callback(told, result, None)


def mandelbrot(left: float, right: float, top: float, bottom: float, width: int, height: int,
               start: int, stop: int, limit: int) -> bytes:  # fmt: skip
    """The escape counts of the columns start..stop-1 of an image, column by column: `height` native uint32 each.

    Pixel (px, py) is c = complex(left + (right-left)*px/width, top + (bottom-top)*py/height), reckoned in this order,
    so that no count depends on how the image was cut. Its count is the number of steps z = z*z + c, from z = 0, that
    leave |z|**2 = re*re + im*im below 4 before the first one that does not; at most `limit`.

    Needs 0 <= start <= stop <= width, width and height in 1..2**31-1, limit in 0..2**32-1, and a window whose
    corners, and sides times width or height, are finite. Raises ValueError for others.
    """
    left, right, top, bottom = array("d", (left, right, top, bottom))
    width, height, start, stop, limit = array("q", (width, height, start, stop, limit))
    if not (0 <= start <= stop <= width < 2**31 and 0 < height < 2**31 and width > 0 and 0 <= limit < 2**32):
        raise ValueError("mandelbrot needs 0 <= start <= stop <= width, width and height in 1..2**31-1 and limit in "
                         f"0..2**32-1, not {start=}, {stop=}, {width=}, {height=}, {limit=}")  # fmt: skip
    if not all(abs(size) < float("inf") for size in (left, (right - left) * width, top, (bottom - top) * height)):
        raise ValueError(f"mandelbrot needs a window of finite size, not {left=}, {right=}, {top=}, {bottom=}")
    ys = [top + (bottom - top) * py / height for py in range(height if start < stop else 0)]
    xs = (left + (right - left) * px / width for px in range(start, stop))
    return array("I", (_escape_count(x, y, limit) for x in xs for y in ys)).tobytes()


def _escape_count(x: float, y: float, limit: int) -> int:
    re = im = 0.0
    for count in range(limit):  # z*z + c, as `complex` reckons it up to Python 3.13
        re, im = re * re - im * im + x, re * im + im * re + y
        if re * re + im * im >= 4:
            return count
    return limit


def simd() -> str:
    """The vector instructions at work in the compiled kernels, such as "avx512"; "none" if they are not built."""
    return "none"


def openmp() -> bool:
    """Whether the compiled kernels can use several cores."""
    return False


pure_md5_search, pure_mandelbrot, pure_simd, pure_openmp = md5_search, mandelbrot, simd, openmp
pure_run_alike, pure_settle, pure_number_tasks, pure_asks_nothing = run_alike, settle, number_tasks, asks_nothing

try:  # only a missing build is in order: a broken one raises ImportError and must be heard
    from .fastpath import asks_nothing, mandelbrot, md5_search, number_tasks, openmp, run_alike, settle, simd
except ModuleNotFoundError:
    log.debug("fastpath is not built")

FASTPATH = md5_search is not pure_md5_search


def kernels() -> dict[str, Any]:
    """What the kernels run on: whether `fastpath` is built, its vector instructions, whether it can use more cores."""
    return {"fastpath": FASTPATH, "simd": simd(), "openmp": openmp()}


def checks() -> Iterator[rpc.Check]:
    """What `doctor` says of the kernels and of how this platform makes workers."""
    about = kernels()
    if FASTPATH:
        yield rpc.Check("ok", "compiled part", f"fastpath is built; {about['simd']}")
    else:
        why = "fastpath is not built: short tasks and the kernels are slower"
        yield rpc.Check("warn", "compiled part", why, "install a C compiler, then pip install -e . again")
    if sys.platform == "linux":
        yield rpc.Check("ok", "workers", "are forked from a zygote")
    else:
        yield rpc.Check("warn", "workers", f"are started anew on {sys.platform}: half a second each", "run it on Linux")
    active = kernel_features()
    missing = lacking(active)
    told = f"Landlock {active['landlock']}, seccomp {'works' if active['seccomp'] else 'is missing'}"
    if missing:
        yield rpc.Check("warn", "sandbox", f"{told}; missing: {', '.join(missing)}", "run it on Linux 6.12 or later")
    else:
        yield rpc.Check("ok", "sandbox", told)
