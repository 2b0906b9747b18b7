"""Nodes open no pickles: only workers, hosts of task systems and clients do, where the user's code runs anyway."""

import ast
import pickle

import pytest
from conftest import text_of, wait_until
from test_durable import kill_master, restart, right, words_of
from test_layout import OPENERS, sources, tree

from concurrent_swarm import tasks

NODES = {"master.py", "slave.py", "components.py", "concurrent_swarm.py"}  # and what of `rpc` and `tasks` they use
FORMATS = ("pickle", "_pickle", "marshal", "shelve", "dill")
LOADERS = {"load", "loads", "Unpickler", "_Unpickler"}

# Who opens pickles, of each file. What is called from here is among test_layout's OPENERS, or is called by such.
READERS = {
    "rpc.py": {"open_sealed": "loads", "_DataReader": "_Unpickler", "READERS": "loads", "Exchange": "loads"},
    "tasks.py": {"open_failure": "loads", "_seal_exception": "loads", "Owner": "loads"},
}
RUNNERS = {"tasks.py": {"find_class": "__import__"}}  # who runs code that it was given by name or as a text

# The plug-in says which classes and functions the pickles name that are opened in the process that loads it, from its
# own first one on, and which functions of ours it calls that open any.
PLUGIN = """
import importlib, os, pickle, sys

PACKAGE = next(name for name in sys.modules if name.endswith("concurrent_swarm.rpc"))
MARKS = os.path.join({folder!r}, str(os.getpid()))

def record(line):
    with open(MARKS, "a") as file:
        file.write(line + "\\n")

def hook(event, args):
    if event == "pickle.find_class" and os.path.basename(MARKS) == str(os.getpid()):
        record(".".join(args))

def recorded(function):
    def call(*args, **more):
        record(function.__name__)
        return function(*args, **more)
    return call

if not hasattr(sys, "pickles_are_recorded"):
    sys.pickles_are_recorded = True
    sys.addaudithook(hook)
    pickle.loads({control!r})
    rpc, tasks = sys.modules[PACKAGE], importlib.import_module(PACKAGE.replace("rpc", "tasks"))
    for module, name in [(rpc, "open_sealed"), (tasks, "open_failure"), (pickle, "loads"), (pickle, "load")]:
        setattr(module, name, recorded(getattr(module, name)))
"""
CONTROL = b"cbuiltins\nlen\n."  # shows that the hook hears


# -- as written ----------------------------------------------------------------------------------------------------


def uses(path, wanted):
    """(the function or class at the top of its file, name) of every use of a name that `wanted` says yes to."""
    for top in tree(path).body:
        names = [target.id for target in getattr(top, "targets", [getattr(top, "target", None)]) if target is not None
                 and isinstance(target, ast.Name)]  # fmt: skip
        home = getattr(top, "name", names[0] if names else "")
        yield from ((home, wanted(node)) for node in ast.walk(top) if wanted(node))


def loader(node):
    """The name of what opens a pickle; None for anything else."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in FORMATS:
        return node.attr if node.attr in LOADERS or ast.unparse(node.value) != "pickle" else None
    if isinstance(node, ast.ImportFrom) and node.module in FORMATS:
        return f"from {node.module}"
    return None


def runner(node):
    """The name of what runs a text or imports by name."""
    called = isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__")
    return node.id if called else None


@pytest.mark.parametrize("path", sources())
def test_pickles_are_opened_by_named_functions_only(path):
    assert set(uses(path, loader)) == set(READERS.get(path, {}).items())


@pytest.mark.parametrize("path", sources())
def test_texts_are_run_by_named_functions_only(path):
    assert set(uses(path, runner)) == set(RUNNERS.get(path, {}).items())


@pytest.mark.parametrize("path", ["master.py", "slave.py"])
def test_nodes_use_nothing_that_opens_pickles(path):
    opening = {name for readers in READERS.values() for name in readers} | OPENERS
    named = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)
             and ast.unparse(node.value) in ("rpc", "tasks")}  # fmt: skip
    assert not named & opening


@pytest.mark.parametrize("path", ["master.py", "slave.py"])
def test_nodes_describe_errors_without_the_errors_themselves(path):
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)
             and ast.unparse(node.func) == "tasks.describe_failure"]  # fmt: skip
    for call in calls:  # our own errors are never pickled
        made_here = ast.unparse(call.args[0]).startswith("components.Error(")
        assert made_here or "itself=False" in ast.unparse(call)
    described = tasks.describe_failure(OSError(28, "no room"), kind="setup", itself=False)
    assert "pickle" not in described and "pickle" in tasks.describe_failure(OSError(28, "no room"), kind="setup")


# -- as it runs ----------------------------------------------------------------------------------------------------


def watch(node, folder):
    """Has a node record what it opens, from now on and after a restart in its folder."""
    folder.mkdir(exist_ok=True)
    (node.folder / "plugins" / "pickles.py").write_text(PLUGIN.format(folder=str(folder), control=CONTROL))
    wait_until(lambda: text_of(folder / str(node.pid)), "it watches itself")


def everything(here, tmp_path):
    """Runs what sends anything anywhere: tasks, systems, published objects, results, failures, hostile ones."""
    for words in [
        ["data.py", "--app", "Echoes"], ["data.py", "--app", "Publishes"], ["data.py", "--app", "AsksForResults"],
        ["data.py", "--app", "PublishesInSystem"], ["systems.py", "--app", "Chained"], ["failing.py"],
        ["systems.py", "--app", "RaisingApplication"], ["plain.py", "--app", "BadResults"], ["hello.py"],
        ["hostile.py", "--app", "Any", "--set=hostile.how=runs", f"--set=hostile.folder={tmp_path}"],
        ["hostile.py", "--app", "AnySystem", "--set=hostile.how=runs", f"--set=hostile.folder={tmp_path}"],
        ["hostile.py", "--app", "Data", "--set=hostile.how=eight"],
        ["hostile.py", "--app", "Any", "--set=hostile.how=own error"],
    ]:  # fmt: skip
        run = here.run_client(*words, seconds=60)
        assert run.code in (0, 1), run.err
        yield run


@pytest.mark.slow
def test_no_node_opens_a_pickle_whatever_runs_and_after_a_restart_from_its_journal(swarm, tmp_path):
    here, marks = swarm(slaves=1, workers=2, journal=True), tmp_path / "marks"
    nodes = [here.master, *here.slaves]
    for node in nodes:
        watch(node, marks)
    assert len(list(everything(here, tmp_path))) == 13
    run = here.start_client("durable.py", "--json", *words_of("Squares", count=200, how="slow"))
    wait_until(lambda: sum(row["done"] for row in here.proxy.systems()) > 20, "a system runs")
    kill_master(here)
    restart(here)
    nodes.append(here.master)
    wait_until(lambda: text_of(marks / str(here.master.pid)), "the new master watches itself")
    assert run.wait(60).code == 0 and run.about["result"] == right(200), run.err
    assert {int(path.name) for path in marks.iterdir()} == {node.pid for node in nodes}
    assert {path.read_text() for path in marks.iterdir()} == {"builtins.len\n"}, "a node has opened a pickle"
    opened = [path.name for path in tmp_path.glob("ran-*")]
    assert len(opened) == 2 and not {f"ran-{node.pid}" for node in nodes} & set(opened)


def test_the_control_pickle_names_what_it_should():
    assert pickle.loads(CONTROL) is len
