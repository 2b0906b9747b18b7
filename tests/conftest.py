"""Real swarms for tests: processes and sockets as a user has them, each in a folder of its own.

    def test_something(swarm):
        here = swarm(slaves=2, workers=1)          # master and slaves, ready when the call returns
        run = here.run_client("plain.py", "--app", "Many", "--set", "plain.count=7")
        assert run.code == 0 and run.about["result"] == 7

`swarm_of_module` is one swarm that the tests of a module share. However a test ends, every process that it started is
gone afterwards, with all that those have started, and so are their folders: the fixtures assert it. Tests that are
marked `@at_once` run a few at a time.
"""

import compileall
import functools
import importlib.util
import inspect
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from concurrent_swarm import components, master, rpc

CHECKOUT = Path(__file__).parent.parent
APPS = Path(__file__).parent / "apps"
SAMPLES = CHECKOUT / "samples"
ALLOWED = {"WRITE": "/tmp,/dev/shm", "READ": "/proc", "SUBPROCESS": "true"}  # on all nodes, for apps that ask for it
NOBODY = 65534  # the user whom no file belongs to
PATIENCE = 60.0  # seconds after which something that must happen counts as never, however busy the machine is
LAPTOP = 0.25  # seconds for `client.py --help` on a laptop at rest
BUSY = 4 if os.environ.get("CI") else 1  # how much longer what is timed may take where others may begin meanwhile
rpc.Proxy.__init__.__defaults__ = (None, PATIENCE, "")  # an answer has as much time as anything else, not 5 s
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_collection_modifyitems(items):
    """In each file, what runs at once comes last; what is left behind is looked at in the end."""
    files = list(dict.fromkeys(item.path for item in items))
    files.sort(key=lambda path: path.name == "test_leaks.py")
    items.sort(key=lambda item: (files.index(item.path), -len(_asks(item)) if runs_at_once(item) else -99))


@pytest.fixture(scope="session", autouse=True)
def suite():
    """Marks every process that comes of this run, and where one would keep what no test gave it a place for."""
    with tempfile.TemporaryDirectory() as state:
        os.environ["LC_SWARM_SUITE"], os.environ["XDG_STATE_HOME"] = str(os.getpid()), state
        yield Suite(Path(state), descriptors_of(os.getpid()))


@pytest.fixture
def ends():
    """The two ends of a socketpair."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def master_here(tmp_path, monkeypatch):
    """Makes a master in this process, whose loop does not turn: `master_here("master.max_lease=1")`."""
    monkeypatch.setenv("CONCURRENT_SWARM_STATE", str(tmp_path / "state"))
    environment = components.Environment(tmp_path / "m", "master").create()
    with ExitStack() as stack:

        def make(*settings):
            config = components.Config(arguments=["master.port=0", *settings], folder=environment.path)
            made = master.MasterNode(environment, config)
            made.setup()
            stack.callback(made.close)
            return made

        yield make


class Suite(NamedTuple):
    """What the test of leaks compares with."""

    state: Path  # the folder of nodes that were given none
    descriptors: dict  # what was open at first


@pytest.fixture(autouse=True)
def stays_out(suite):
    """Fails the test after which a node has kept something in the place of this user."""
    before = os.listdir(suite.state)
    yield
    assert os.listdir(suite.state) == before, "a test has used the state folder of this user"


def wait_until(condition, what, seconds=PATIENCE):
    """Waits for a condition to be true and returns its value; fails with `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)  # between two looks at the condition


def pace():
    """How much slower this machine is now than a laptop at rest."""
    began = time.monotonic()
    subprocess.run([sys.executable, "client.py", "--help"], cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=True)
    return max(1.0, (time.monotonic() - began) / LAPTOP)


def in_time(took, most):
    """Whether so many seconds are fewer than `most`, which counts for a laptop at rest."""
    return took < most * BUSY or took < most * BUSY * pace()


def module_in(path):
    """The module in a file, under its stem, and no further place to import from: others would find more there."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(path):
    """A file's text, empty if it is not there (yet)."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def processes_of(folder):
    """Processes of a swarm by a variable that nodes leave to whatever they start."""
    return processes_with(f"LC_SWARM={folder}")


def processes_with(setting):
    """Processes that have this in their environment, others than this one."""
    mark = setting.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                if mark in words and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(entry.name))
    return found


def children_of(pid):
    """The processes whose parent this is."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def zygote_of(pid):
    """The zygote of a node, or None; its other child is Python's resource tracker."""
    return next((child for child in children_of(pid) if "spawn_main" in text_of(f"/proc/{child}/cmdline")), None)


def descriptors_of(pid):
    """What the open descriptors of a process point to, by number."""
    folder, found = Path(f"/proc/{pid}/fd"), {}
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # the one by which this process reads the folder
            found[int(name)] = os.readlink(folder / name)
    return found


class Running:
    """A process of ours: its exit code, what it wrote, and how to end it."""

    def __init__(self, command, environ, output, pass_fds=(), user=None):
        self.out_file, self.err_file = f"{output}.out", f"{output}.err"
        with open(self.out_file, "wb") as out, open(self.err_file, "wb") as err:
            self.process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=pass_fds,
                start_new_session=True, cwd=CHECKOUT, user=user, group=user, extra_groups=None if user is None else [],
            )
        self.pid = self.process.pid
        self.parent = None  # our end of the line that a node follows

    @property
    def out(self):
        """What it has written to stdout so far."""
        return text_of(self.out_file)

    @property
    def err(self):
        """What it has written to stderr so far."""
        return text_of(self.err_file)

    @property
    def code(self):
        """Its exit code; None while it runs."""
        return self.process.poll()

    @property
    def about(self):
        """The object that `--json` printed."""
        assert self.out, f"no output; exit code {self.code}, stderr:\n{self.err}"
        return json.loads(self.out.splitlines()[-1])

    def wait(self, seconds=PATIENCE):
        """Waits for its end and returns itself."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            told = f"{self.process.args}\n{self.out}\n{self.err}"
            raise AssertionError(f"still running after {seconds} s: {told}") from None
        return self

    def send(self, number):
        """Sends a signal to this process alone."""
        self.process.send_signal(number)

    def ends(self, number=signal.SIGTERM, seconds=PATIENCE):
        """Sends a signal, waits for the end, returns the exit code."""
        self.send(number)
        return self.wait(seconds).code

    def close(self):
        """Ends it in the gentlest way that works."""
        if self.parent:
            self.parent.close()
        elif self.code is None:
            self.send(signal.SIGTERM)
        with suppress(AssertionError):
            self.wait()
        if self.code is None:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.process.args} did not end by itself\n{self.err}")


class Swarm:
    """Nodes in a folder of their own. `master` and `slaves` are `Running`; `address` is where the master is."""

    folders = []  # of all swarms
    python, code, user = sys.executable, CHECKOUT, None  # what runs, and as whom: None is this user

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="cs", dir="/var/tmp")
        self.folders.append(self.folder)
        self.temporary = os.path.join(self.folder, "t")
        os.mkdir(self.temporary)
        self.running = []
        self.numbers = itertools.count()  # of processes, which several threads may start
        self.slaves = []
        self.master = None
        self.address = ""
        self.ports = []  # sockets that hold one

    # processes

    def environ(self, **more):
        """The environment of every process here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONCURRENT_")}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        kept.update({f"CONCURRENT_SWARM_{role}_ALLOW_{what}": value for role in ("SLAVE", "MASTER")
                     for what, value in ALLOWED.items()})  # fmt: skip
        return {**kept, "PYTHONPATH": path, "CONCURRENT_SWARM_STATE": self.folder, "LC_SWARM": self.folder,
                "TMPDIR": self.temporary, **more}

    def start(self, role, *args, ready=True, name=None, **environ):
        """Starts `role`.py; with `ready`, returns when it says that it is."""
        number = next(self.numbers)
        name = name or f"{role}{number}"
        command = [self.python, str(self.code / f"{role}.py"), *map(str, args)]
        output = os.path.join(self.folder, f"{number}-{name}")
        if role == "client":
            process = Running(command, self.environ(**environ), output, user=self.user)
            self.running.append(process)
            return process
        ours, theirs = socket.socketpair()
        with theirs:
            command += ["--env", os.path.join(self.folder, name), "--parent", str(theirs.fileno())]
            process = Running(command, self.environ(**environ), output, [theirs.fileno()], self.user)
        process.parent, process.folder, process.started = ours, Path(self.folder, name), None
        self.running.append(process)
        return self.until_ready(process) if ready else process

    def until_ready(self, process):
        """Waits for a node's word that it is ready, and keeps what it told."""
        process.parent.settimeout(PATIENCE)
        with process.parent.makefile("rb") as line:
            told = line.readline()
        assert told, f"did not start: {process.process.args}\nexit code {process.wait().code}\n{process.err}"
        process.started = json.loads(told)
        return process

    def hold_port(self):
        """A port that stays ours while no master listens there: nobody is given it who asks for any."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the master's, which may share it then
        held.bind(("127.0.0.1", 0))
        self.ports.append(held)
        return held.getsockname()[1]

    def start_master(self, *args, port=0, journal=False, **environ):
        """Starts the master in the folder `m`; again there if one was there before."""
        words = [] if journal else ["--no-journal"]
        self.master = self.start("master", "--port", port or self.hold_port(), *words, *args, name="m", **environ)
        self.address = self.master.started["address"]
        return self.master

    def start_slave(self, *args, workers=2, ready=True, **environ):
        """Starts one more slave, in the folder `s1`, `s2`, …"""
        name = f"s{len(self.slaves) + 1}"
        words = ["--workers", workers, "--master", self.address]
        slave = self.start("slave", *words, *args, name=name, ready=ready, **environ)
        self.slaves.append(slave)
        if ready:
            wait_until(lambda: self.known_to_master(slave), f"slave {name} is known to the master")
        return slave

    def known_to_master(self, slave):
        """True once the master lists the slave."""
        name = self.name_of(slave)
        return name and any(row["name"] == name for row in self.proxy.slaves())

    def start_client(self, app, *args, **environ):
        """Starts a client with an app of tests/apps or samples, and does not wait for it."""
        path = next((str(folder / app) for folder in (APPS, SAMPLES) if (folder / app).exists()), app)
        return self.start("client", path, "--master", self.address, *args, **environ)

    def run_client(self, app, *args, seconds=PATIENCE, **environ):
        """Runs an app with `--json` to its end. `run.code`, `run.about`, `run.err`."""
        return self.start_client(app, "--json", *args, **environ).wait(seconds)

    # looking in

    @property
    def proxy(self):
        """The master's control channel, as its administrator."""
        token = json.loads((self.master.folder / "keys" / "token.json").read_text())
        return rpc.Proxy(self.address, token["token"] if isinstance(token, dict) else token)

    def name_of(self, slave):
        """The name that the master gave to a slave."""
        return rpc.Proxy(slave.started["address"]).status()["name"]

    def workers_of(self, slave):
        """The worker processes of a slave."""
        return children_of(zygote_of(slave.pid))

    # the end

    def close(self):
        """Ends everything; asserts that no process and no temporary file is left."""
        problems = []
        for process in [*[p for p in self.running if p is not self.master][::-1], self.master]:
            if process:
                try:
                    process.close()
                except AssertionError as error:
                    problems.append(str(error))
        try:
            wait_until(lambda: not processes_of(self.folder), "all processes are gone")
        except AssertionError:
            left = processes_of(self.folder)
            problems += [f"left: {pid} {text_of(f'/proc/{pid}/cmdline')}" for pid in left]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for held in self.ports:
            held.close()
        problems += [f"left: {path}" for path in Path(self.temporary).iterdir()]
        problems += [f"{p.err_file}:\n{p.err}" for p in self.running if "Exception ignored" in p.err]
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not problems, "\n".join(problems)


@contextmanager
def running(slaves=1, workers=2, journal=False, master=(), slave=()):
    """A swarm for a `with` block."""
    one = Swarm()
    try:
        one.start_master(*master, journal=journal)
        for _ in range(slaves):
            one.start_slave(*slave, workers=workers)
        yield one
    finally:
        one.close()


EACH = {}  # (module, name) -> a function fixture as a context manager


def one_each(fixture):
    """Decorates a fixture of which every test has one of its own, those that run at once too."""

    @functools.wraps(fixture)
    def make(**given):
        yield fixture(**given)

    generates = inspect.isgeneratorfunction(fixture)
    EACH[fixture.__module__, fixture.__name__] = contextmanager(fixture if generates else make)
    return pytest.fixture(fixture)


@one_each
def swarm():
    """A function that starts a swarm: `swarm(slaves=1, workers=2, journal=False, master=(), slave=())`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(**options))


@contextmanager
def a_folder():
    """What `tmp_path` is for tests that run at once."""
    with tempfile.TemporaryDirectory(prefix="at-once-") as folder:
        yield Path(folder)


EACH[__name__, "tmp_path"] = a_folder


@pytest.fixture(scope="module")
def swarm_of_module():
    """A master and two slaves with one worker each, for tests that leave them as they were."""
    one = Swarm()
    try:
        one.start_master()
        one.start_slave(workers=1)
        one.start_slave(workers=1)
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def crew():
    """Threads that do a few things at a time. What has not begun when a session is cut short never does."""
    pool = ThreadPoolExecutor(4)
    yield pool
    pool.shutdown(cancel_futures=True)


BEGUN = {}  # node id -> what becomes of it


def at_once(test):
    """Decorates tests that do not have to wait for each other: when the first is wanted, all that were chosen begin, a
    few at a time. These are tests of a module that share the same fixtures or fewer, and all their cases; they come
    last in their module. Of `swarm`, `tmp_path` and what is `@one_each` every test has its own; what they share must be
    there for the whole module."""
    asks = _shared(test, test.__module__)

    def begin(**given):
        with ExitStack() as stack:
            for name in inspect.signature(test).parameters:
                _make(name, test.__module__, given, stack)
            test(**{name: given[name] for name in inspect.signature(test).parameters})

    @functools.wraps(test)
    def wait(request, **given):
        if request.node.nodeid not in BEGUN:
            pool = request.getfixturevalue("crew")
            for item in request.session.items:
                if _goes_with(item, request.node):
                    shared = {name: given[name] for name in _asks(item)}
                    BEGUN[item.nodeid] = pool.submit(item.obj.begin, **shared, **_cases_of(item)[0])
        BEGUN[request.node.nodeid].result()

    names = [*sorted(asks), "request"]
    wait.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])
    wait.begin, wait.asks = begin, asks
    return wait


def _maker(name, module):
    """What makes a test its own fixture of this name; None for what is shared."""
    return EACH.get((module, name)) or EACH.get((__name__, name))


def _shared(function, module):
    """The names that a test, or a fixture of its own, takes from what is shared."""
    found = set()
    for name in inspect.signature(function).parameters:
        maker = _maker(name, module)
        found |= _shared(maker, module) if maker else {name}
    return found


def _make(name, module, made, stack):
    """Puts a fixture of a test's own, and what that takes, among those that are made."""
    if name not in made:
        maker = _maker(name, module)
        for needed in inspect.signature(maker).parameters:
            _make(needed, module, made, stack)
        made[name] = stack.enter_context(maker(**{one: made[one] for one in inspect.signature(maker).parameters}))


def _cases_of(item):
    """The parameters of a test by name: its own, and those of fixtures."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    marks = [mark.args[0] for mark in item.iter_markers("parametrize") if not mark.kwargs.get("indirect")]
    names = {name.strip() for words in marks for name in (words.split(",") if isinstance(words, str) else words)}
    cases = {name: params[name] for name in names & params.keys()}
    return cases, {name: params[name] for name in params.keys() - names}


def runs_at_once(item):
    """Whether a test is marked `@at_once`."""
    return hasattr(getattr(item, "obj", None), "asks")


def _asks(item):
    """The fixtures that a test shares with others."""
    return item.obj.asks - _cases_of(item)[0].keys()


def _goes_with(item, first):
    """Whether a test begins when this one does."""
    if item.path != first.path or not runs_at_once(item) or item.nodeid in BEGUN:
        return False
    return _asks(item) <= _asks(first) and _cases_of(item)[1] == _cases_of(first)[1]


def quick_compiler(folder):
    """A compiler for builds that need not be fast: it takes a fifth of the time."""
    script = Path(folder, "quick-cc")
    script.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


# -- a Python that every user can run ------------------------------------------------------------------------------


class Python(NamedTuple):
    """A copy of what runs this test, made of links, outside of anybody's home."""

    folder: Path

    @property
    def executable(self):
        return str(self.folder / "bin" / "python3")

    def environ(self, folder):
        """The variables that it needs, for a process whose home is that folder."""
        return {"PYTHONPATH": str(self.folder / "site"), "LD_LIBRARY_PATH": str(self.folder / "lib"),
                "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"}


def linked(source, target):
    """Copies by links where that is possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_python(folder):
    """Interpreter, standard library, pyzmq and this package, below a folder."""
    stdlib, left_out = Path(sysconfig.get_path("stdlib")), shutil.ignore_patterns("test", "site-packages", "idlelib")
    for name in ("bin", "lib", "site"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(stdlib, folder / "lib" / stdlib.name, ignore=left_out, copy_function=linked, symlinks=True)
    shutil.copy(os.path.realpath(sys.executable), folder / "bin" / "python3")
    for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
        shutil.copy(library, folder / "lib")
    packages = Path(importlib.util.find_spec("zmq").origin).parent.parent
    for package in [packages / "zmq", *packages.glob("pyzmq.libs")]:
        shutil.copytree(package, folder / "site" / package.name, copy_function=linked)
    for file in [*CHECKOUT.glob("*.py"), *CHECKOUT.glob("*.so"), *CHECKOUT.glob("*.html")]:
        shutil.copy(file, folder)
    compileall.compile_dir(folder, maxlevels=0, quiet=1)
    return Python(folder)


@pytest.fixture(scope="session")
def python():
    """A Python for other users; skips where this one cannot be shared, or where nobody else can be."""
    if os.getuid():
        pytest.skip("only root can start processes of another user")
    with tempfile.TemporaryDirectory(prefix="python", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        made = copy_python(Path(folder, "all"))
        run = subprocess.run([made.executable, "-c", "import zmq, ctypes, sqlite3"], user=NOBODY, group=NOBODY,
                             extra_groups=[], env=made.environ(folder), capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"another user cannot run this Python: {run.stderr.strip().splitlines()[-1]}")
        yield made
