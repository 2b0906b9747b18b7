"""Nodes that know the framework under different names understand each other: nothing that travels says its name.

Each role is a process of its own, and each imports the framework by a name of its own: plain, or vendored. RECORDER is
the program that such a process runs: it starts the role and writes down every message as the role packs it, before it
is encrypted, and as it was unpacked. What workers and system hosts send passes through a slave and the master, which
open none of it, so their records hold every payload pickle of a run.
"""

import base64
import collections
import io
import json
import os
import pickle
import pickletools
import shutil
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from concurrent_swarm import components, tasks

CHECKOUT = Path(__file__).resolve().parent.parent
MODULES = ["client", "components", "master", "rpc", "slave", "tasks"]
PLAIN, VENDORED, OTHER = "concurrent_swarm", "myproject._vendor.concurrent_swarm", "other.concurrent_swarm"

# master, slave, client
MIXTURES = {
    "a plain client": (VENDORED, VENDORED, PLAIN),
    "a vendored client": (PLAIN, PLAIN, VENDORED),
    "three names": (PLAIN, VENDORED, OTHER),
}

RECORDER = """
    import base64, importlib, json, sys

    def record(message, parts):
        for call, own in rpc.calls_in(message, parts):
            # a bundle is the user's source, not a pickle
            coded = [] if call[0] == "bundle" else [base64.b64encode(bytes(part)).decode() for part in own]
            file.write(json.dumps([call, coded]) + "\\n")

    def recording_pack(pack):
        def packed(call, parts=(), *more):
            parts = list(parts)
            record(call, parts)
            return pack(call, parts, *more)
        return packed

    def recording_unpack(unpack):
        def unpacked(*frames):
            call, parts = unpack(*frames)
            record(call, parts)
            return call, parts
        return unpacked

    if __name__ == "__main__":  # the zygote, which is spawned, loads this file under another name
        package, role, path, *arguments = sys.argv[1:]
        file = open(path, "a", buffering=1)
        rpc = importlib.import_module(f"{package}.rpc")
        rpc.pack_body, rpc.pack_stream = recording_pack(rpc.pack_body), recording_pack(rpc.pack_stream)
        rpc.unpack_body = recording_unpack(rpc.unpack_body)
        sys.exit(importlib.import_module(f"{package}.{role}").main(arguments))
"""

# An application whose tasks and results carry what is most likely to name us.
TRAVELLERS = """
    import json

    from concurrent_swarm.client import ApplicationNode
    from concurrent_swarm.components import Error
    from concurrent_swarm.tasks import ITaskSystem, Task

    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

    class Trouble(Exception):
        def __init__(self, text, count):
            super().__init__(text, count)
            self.place = Point(1, count)

    class Echo(Task):
        def __call__(self):
            return Point(type(self.parent).__name__, self.parent)

    class Whole(Echo):
        def __setstate__(self, state):
            self.__dict__.update(state)

    class Fail(Task):
        def __call__(self):
            raise Trouble("the user's", 3) if self.mine else Error("ours", "why", "fix")

    def kinds(parent):
        return [Echo("echo", parent=parent), Whole("whole", parent=parent), Fail("mine", mine=True),
                Fail("ours", mine=False)]

    def told(result, error):
        return [result.x, str(result.y)] if error is None else [type(error).__name__, str(error)]

    class System(ITaskSystem):
        def __init__(self, parent):
            super().__init__()
            self.parent, self.heard = parent, {}

        def init_system(self, master):
            self.log.info("init %s", self.system_id)

        def generate_tasks(self, master):
            self.log.info("generate")
            return kinds(self.parent)

        def task_finished(self, master, task, result, error):
            self.log.info("finished %s", task.task_id)
            self.heard[task.name] = told(result, error)

        def gather_result(self, master):
            return self.heard

    class Travellers(ApplicationNode):
        def start_processing(self):
            self.heard, self.systems_heard = {}, 0
            self.push_task(Echo("first", parent=None))

        def task_finished(self, task, result, error):
            if task.name == "first":
                self.parent = task
                self.push_tasks(kinds(task))
                return
            self.heard[task.name] = told(result, error)
            if task.name == "last":
                self.result = json.dumps(self.heard)
                self.shutdown_main_loop()
            elif len(self.heard) == 4:
                self.push_tasksystem(System(self.parent))

        def work_finished(self, result, task_system):
            assert len(result) == 4 and result == self.heard, (result, self.heard)
            self.push_task(Echo("last", parent=task_system))
"""

# An application that refers to the framework itself, both ways; each pair is what arrives and what was meant.
REFERRERS = """
    from concurrent_swarm import components, tasks
    from concurrent_swarm.client import ApplicationNode

    THINGS = {"class": tasks.Task, "function": tasks.md5_search, "error": components.Error("what", "why", "fix")}

    def same(thing, name):
        return thing is THINGS[name] or type(thing) is components.Error and thing.fix == "fix"

    class Refer(tasks.Task):
        def __call__(self):
            if not same(self.thing, self.name):
                raise TypeError(f"{self.thing!r} arrived as {self.name}")
            if self.fail:
                raise ValueError(THINGS[self.name])
            return THINGS[self.name]

    class Referrers(ApplicationNode):
        def start_processing(self):
            self.heard = []
            self.push_tasks(Refer(name, thing=thing, fail=fail) for name, thing in THINGS.items() for fail in (0, 1))

        def task_finished(self, task, result, error):
            thing = error.args[0] if error else result
            self.heard.append(f"{type(error).__name__} {task.name} {same(thing, task.name)}")
            if len(self.heard) == 2 * len(THINGS):
                self.result = sorted(set(self.heard))
                self.shutdown_main_loop()
"""


# -- processes -----------------------------------------------------------------------------------------------------


class Swarm(NamedTuple):
    """A master and a slave that run, and the means to start a client for them."""

    folder: Path
    client: str  # the name by which it will know us

    def run(self, app, *arguments):
        """Run an application to its end; returns what it printed."""
        access = ["--access", str(self.folder / "master" / "keys" / "client.access")]
        command = [*recorded(self.folder, self.client, "client"), str(app), *access, *arguments]
        return subprocess.run(command, env=environment(self.folder, self.client), cwd=self.folder, capture_output=True,
                              text=True, timeout=60)

    def messages(self):
        """(call, parts) of every message that any of the three has sent or heard so far."""
        lines = [line for path in self.folder.glob("*.record") for line in path.read_text().splitlines()]
        return [(call, [base64.b64decode(part) for part in parts]) for call, parts in map(json.loads, lines)]


def environment(folder, package):
    """A copy of the framework under this name is all that can be imported of it."""
    home = folder / f"as {package}"
    target = home.joinpath(*package.split("."))
    if not target.exists():
        target.mkdir(parents=True)
        for name in MODULES:
            shutil.copy(CHECKOUT / f"{name}.py", target)
    ours = ("PYTHON", "CONCURRENT_SWARM")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "PYTHONPATH": str(home), "CONCURRENT_SWARM_STATE": str(folder / "state")}


def recorded(folder, package, role):
    """The command that runs a role under a name, recorded."""
    program = folder / "recorder.py"
    program.write_text(textwrap.dedent(RECORDER))
    return [sys.executable, str(program), package, role, str(folder / f"{role}.record"), "--env", str(folder / role)]


def start_node(stack, folder, package, role, *arguments):
    """Start a master or slave, which ends with the stack; returns once it is ready."""
    ours, theirs = socket.socketpair()
    command = [*recorded(folder, package, role), "-q", "--parent", str(theirs.fileno()), *arguments]
    with theirs:
        process = subprocess.Popen(command, env=environment(folder, package), cwd=folder, pass_fds=[theirs.fileno()],
                                   stdin=subprocess.DEVNULL, start_new_session=True)
    stack.callback(process.wait, 10)
    stack.callback(ours.close)  # a node ends with the process that started it
    ours.settimeout(30)
    assert ours.makefile("rb").readline(), f"the {role} did not start"


@pytest.fixture(scope="module", params=MIXTURES)
def swarm(request, tmp_path_factory):
    """A swarm for each mixture of names, with a client that has not started yet."""
    folder = tmp_path_factory.mktemp("names")
    master, slave, client = MIXTURES[request.param]
    with ExitStack() as stack:
        start_node(stack, folder, master, "master", "--port", "0", "--no-journal")
        start_node(stack, folder, slave, "slave", "--access", str(folder / "master" / "keys" / "slave.access"))
        yield Swarm(folder, client)


# -- reading what travels ------------------------------------------------------------------------------------------


def names_in(data):
    """Every text in a pickle: the names of modules and classes are among them. Raises ValueError if it is none."""
    stream = io.BytesIO(data)
    texts = [argument for _, argument, _ in pickletools.genops(stream) if isinstance(argument, str)]
    assert not stream.read(), "something follows the pickle"
    return texts


def exceptions_in(value):
    """The pickles of exceptions, which travel as text inside a call."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [base64.b64decode(inner)] if key == "pickle" else exceptions_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from exceptions_in(inner)


def sorted_out(messages):
    """The payload pickles by the method that carried them, and the class tables."""
    pickles, tables = collections.defaultdict(list), []
    for call, parts in messages:
        pickles["failure"] += exceptions_in(call)
        if call[0] in ("submit", "lease", "run", "failed"):
            tables.append(json.loads(parts[0])["classes"])
            parts = parts[2:]
        pickles[call[0]] += parts
    return pickles, tables


class Runs(NamedTuple):
    """What came of a few applications, and what travelled for it."""

    done: dict
    pickles: dict
    tables: list


@pytest.fixture(scope="module")
def runs(swarm):
    """Runs hello, md5, hello with the client's own name in its imports, and TRAVELLERS."""
    apps = {name: CHECKOUT / "samples" / f"{name}.py" for name in ("hello", "md5")}
    named = apps["hello"].read_text().replace("from concurrent_swarm.", f"from {swarm.client}.")
    apps["named"] = write(swarm, "named", named)
    apps["travellers"] = write(swarm, "travellers", TRAVELLERS)
    done = {name: swarm.run(app) for name, app in apps.items()}
    return Runs(done, *sorted_out(swarm.messages()))


def write(swarm, name, source):
    path = swarm.folder / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    return path


# -- claims --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app, result", [("hello", "Hello World"), ("md5", "1763965"), ("named", "Hello World")])
def test_a_sample_runs_where_client_and_nodes_know_us_by_other_names(runs, app, result):
    done = runs.done[app]
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [f"result   {result}"]), done.stderr


def test_handles_errors_and_systems_arrive_where_names_differ(runs):
    done = runs.done["travellers"]
    assert done.returncode == 1, done.stderr  # some of its tasks are meant to fail
    heard = json.loads(done.stdout.partition("result   ")[2])
    assert heard["echo"] == heard["whole"] == ["str", heard["echo"][1]]
    assert (heard["mine"][0], heard["ours"]) == ("Trouble", ["TaskError", "Error: ours: why (fix)"])
    assert heard["last"][0] == "str"


def test_no_payload_pickle_names_the_framework(runs):
    for method, pickles in runs.pickles.items():
        for data in pickles:
            assert not [text for text in names_in(data) if PLAIN in text], f"{method} carries our name"


def test_every_kind_of_payload_was_read(runs):
    pickles = runs.pickles
    for method in ("submit", "lease", "result", "outcome", "push_tasksystem", "system", "system_done", "work_finished"):
        assert pickles[method], f"no payload of {method} was recorded"
    found = {text for texts in pickles.values() for data in texts for text in names_in(data)}
    assert {"System", "Whole", "Point"} <= found
    assert {"Trouble", "Point"} <= {text for data in pickles["failure"] for text in names_in(data)}


def test_class_tables_name_classes_of_the_application_alone(runs):
    modules = {module for table in runs.tables for module, _, _ in table}
    assert modules and not [module for module in modules if PLAIN in module]


def test_what_an_application_refers_to_of_ours_is_the_receiver_s_own(swarm, runs):
    done = swarm.run(write(swarm, "referrers", REFERRERS))
    answers = [f"{kind} {name} True" for kind in ("NoneType", "ValueError") for name in ("class", "error", "function")]
    assert done.stdout.splitlines()[-1:] == [f"result   {answers}"], done.stderr


@pytest.mark.parametrize("of_ours", [components.Error("x"), tasks.Task("x"), tasks.md5_search, tasks.Handle])
def test_the_reader_finds_our_name_where_it_is(of_ours):
    assert [text for text in names_in(pickle.dumps(of_ours, 5)) if PLAIN in text]


@pytest.mark.parametrize("of_ours", [tasks.Handle("c1.2"), tasks.TaskError({"type": "X", "message": "m"}),
                                     tasks.RemoteTraceback("t")])
def test_what_we_hand_to_callbacks_may_be_sent_on_without_our_name(of_ours):
    data = pickle.dumps(of_ours, 5)
    assert not [text for text in names_in(data) if PLAIN in text]
    assert str(pickle.loads(data)).strip() == str(of_ours).strip()
