"""How the sources are laid out: which file may import which, where things live, how large they are.

    samples ──► client, tasks, components
    master, slave, client ──► tasks ──► rpc ──► components          fastpath imports nothing of ours
"""

import ast
import fnmatch
import functools
import importlib
import inspect
import re
import statistics
import tokenize
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = "concurrent_swarm"
ROLES = ["master", "slave", "client"]
MODULES = [*ROLES, "tasks", "rpc", "components"]

# What a file may import of ours.
ARROWS = {
    "components": set(),
    "rpc": {"components", "fastpath"},
    "tasks": {"components", "rpc", "fastpath"},
    **{role: {"components", "rpc", "tasks"} for role in ROLES},
    PACKAGE: set(),
    "setup": set(),
}

TOP_LEVEL = {
    "master.py", "slave.py", "client.py", "components.py", "rpc.py", "tasks.py", "fastpath.pyx", "setup.py",
    "concurrent_swarm.py", "dashboard.html", "py.typed", "pyproject.toml", ".gitignore", "LICENSE",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
    "samples", "tests", "docs", "benchmarks", ".ci",
}  # fmt: skip

# Lines of each file as it is, nearly. These numbers only go down: a file that grows past its own holds a room that
# was not found yet, or something that can be cut. Single ones went up for rooms that were not there before: sealed
# pickles with buffers, payloads in files, large messages on a socketpair, published objects, both kernels; then the
# journal that is checked, systems that go on, limits, output that comes home, explanations, doctor, the nemesis; then
# retries, quarantine, limits of processes and hooks, and calls that travel together, while the total went down.
LINES = {
    "client.py": 2617,
    "components.py": 2138,
    "concurrent_swarm.py": 33,
    "fastpath.pyx": 831,
    "master.py": 6820,
    "rpc.py": 6336,
    "setup.py": 66,
    "slave.py": 1257,
    "tasks.py": 4532,
}
TOTAL_LINES = 24_630

LONGEST_FUNCTION = 40  # lines, its docstring not counted
MEDIAN_FUNCTION = 8
BROAD_HANDLERS = {"client.py": 1, "components.py": 2, "master.py": 2, "rpc.py": 7, "tasks.py": 2}  # only go down
ROOMS_FROM = 150  # lines

PICKLE = {"rpc.py", "tasks.py"}  # who may import it
OPENERS = {  # what opens the user's pickles or runs the user's code, of rpc and tasks
    "open_sealed", "open_failure", "Records", "LeaseRunner", "Owner", "SystemRun", "load_app",
    "install_bundle", "find_class", "worker_main", "host_main",
}  # fmt: skip
WALL_CLOCK = {"components.py": 2, "rpc.py": 3, "tasks.py": 1}  # mentions of time.time: dates of
# figures, keys, enrolments and answers, and `master.now`

# Names of the original that stay where a user would look for them.
CALLBACKS = """app_init app_main get_task_system start_processing task_finished work_finished push_task push_tasks
    push_task_response push_task_failed push_tasks_response push_tasks_failed push_tasksystem_response
    push_tasksystem_failed shutdown_main_loop node_id_str stats"""
NAMES = {
    "components": "Component Interface ExtensionPoint ComponentManager implements IntItem BoolItem FloatItem HostItem "
    "ExtensionPointItem",
    "components.Stats": "getInstance add_avg dump dump_all dump_stats",
    "client": "ApplicationNode",
    "client.ApplicationNode": CALLBACKS,
    "tasks": "IApp Task ITaskSystem ITaskManager ITaskScheduler ITaskScheduleStrategy GenericTaskScheduler "
    "ZMQTaskScheduler",
    "tasks.Task": "__call__ finished clean_up task_id",
    "tasks.ITaskSystem": "init_system generate_tasks task_finished gather_result is_complete system_id",
    "master": "MasterNode",
    "slave": "SlaveNode",
    "rpc": "jsonremote tcpremote",
}


# -- reading the sources -------------------------------------------------------------------------------------------


@functools.cache
def tree(path):
    return ast.parse((CHECKOUT / path).read_text("utf-8"), str(path))


def sources():
    """The Python files of the package."""
    return [f"{name}.py" for name in ARROWS]


def samples():
    """The applications and plug-ins that come with the package."""
    return sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("samples/**/*.py"))


def functions(path):
    """(name, lines without docstring, line) of every function in a file, inner ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring, node.lineno


def imported(node):
    """The modules that an import statement names, ours as ".name"."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        home = f"{PACKAGE}.{node.module or ''}".rstrip(".") if node.level else node.module
        names = [f"{home}.{alias.name}" for alias in node.names] if home == PACKAGE else [home]
    return [re.sub(rf"^{PACKAGE}(\.|$)", ".", name) for name in names]


def imports(path, below=None):
    """(module, statement) of every import in a file, those inside functions too."""
    for node in ast.walk(below or tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((name, node) for name in imported(node))


def ours(path):
    """Which of our modules a file imports, and by which statements."""
    return {name[1:]: node for name, node in imports(path) if name.startswith(".")}


def comments(path):
    """line -> comment."""
    with open(CHECKOUT / path, "rb") as file:
        return {token.start[0]: token.string for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.COMMENT}  # fmt: skip


def is_broad(handler):
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in types)


def broad_handlers(path):
    """Handlers that may swallow anything; one that ends by raising it again only tidies up."""
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler) and is_broad(node)]
    return [node for node in handlers if ast.unparse(node.body[-1]) != "raise"]


def hand_over(path):
    """What the first lines of a role import to hand over to its one copy, see concurrent_swarm.py."""
    return {"run"} if Path(path).stem in ROLES else set()


# -- arrows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_lies_below_it(path):
    name = Path(path).stem
    assert ours(path).keys() - hand_over(path) <= ARROWS[name]


@pytest.mark.parametrize("path", sources())
def test_our_modules_import_each_other_by_relative_imports(path):
    found = {name: node for name, node in ours(path).items() if name not in hand_over(path)}
    assert all(isinstance(node, ast.ImportFrom) and node.level == 1 for node in found.values())


def test_the_arrows_make_no_circle():
    left = {name: set(below) & set(ARROWS) for name, below in ARROWS.items()}
    while leaves := [name for name, below in left.items() if not below]:
        left = {name: below.difference(leaves) for name, below in left.items() if name not in leaves}
    assert not left


def test_fastpath_imports_nothing_of_ours():
    text = (CHECKOUT / "fastpath.pyx").read_text("utf-8")
    lines = re.findall(r"^\s*(?:from|c?import)\s.*$", text, re.MULTILINE)
    assert not [line for line in lines if re.search(rf"{PACKAGE}|from\s+\.|\b({'|'.join(MODULES)})\b", line)]


@pytest.mark.parametrize("path", samples())
def test_a_sample_imports_only_what_applications_use(path):
    assert ours(path).keys() <= {"client", "tasks", "components"}


@pytest.mark.parametrize("path", sources())
def test_zeromq_is_imported_inside_functions_only(path):
    inside = [node for function in ast.walk(tree(path)) if isinstance(function, ast.FunctionDef)
              for name, node in imports(path, function) if is_zeromq(name)]  # fmt: skip
    lines = {node.lineno for name, node in imports(path) if is_zeromq(name)}
    assert lines == {node.lineno for node in inside}
    assert path == "rpc.py" or not lines


def is_zeromq(name):
    return name.partition(".")[0] == "zmq"


def test_only_the_rooms_of_sealed_bytes_know_pickle():
    knowing = {path for path in sources()
               if {name for name, _ in imports(path)} & {"pickle", "_pickle", "marshal", "shelve", "dill"}}  # fmt: skip
    assert knowing <= PICKLE


@pytest.mark.parametrize("path", ["master.py", "slave.py"])
def test_master_and_slave_open_nothing_of_the_user_s(path):
    names = [node.names for _, node in ours(path).items() if node.level]
    used = {alias.name for aliases in names for alias in aliases}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("rpc", "tasks"):
            used.add(node.attr)
    assert not used & OPENERS


@pytest.mark.parametrize("path", sources())
def test_no_import_is_tried_but_the_one_of_fastpath(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Try) and any(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in node.body):
            names = [name for inner in node.body for name, _ in imports(path, inner)]
            assert (path, names) == ("tasks.py", [".fastpath"])
            assert [ast.unparse(handler.type) for handler in node.handlers] == ["ModuleNotFoundError"]


@pytest.mark.parametrize("path", sources())
def test_the_search_path_is_left_alone(path):
    for node in ast.walk(tree(path)):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        assert not [one for one in targets if isinstance(one, ast.AST) and "sys.path" in ast.unparse(one).split("[")]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert ast.unparse(node.func.value) != "sys.path"


# -- files ---------------------------------------------------------------------------------------------------------


def test_the_top_level_holds_what_it_may_hold():
    ignored = [line.strip("/") for line in (CHECKOUT / ".gitignore").read_text().split("\n")
               if line and not line.startswith("#")]  # fmt: skip
    found = {path.name for path in CHECKOUT.iterdir() if path.name != ".git"}
    found = {name for name in found if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert found <= TOP_LEVEL


def test_no_folder_of_ours_is_a_package_by_an_init_file():
    folders = ["", "samples/", "samples/plugins/", "tests/", "benchmarks/", "docs/"]
    assert not [folder for folder in folders if (CHECKOUT / folder / "__init__.py").exists()]


def test_no_file_grows():
    found = {name: len((CHECKOUT / name).read_text("utf-8").splitlines()) for name in LINES}
    assert not {name: (lines, LINES[name]) for name, lines in found.items() if lines > LINES[name]}
    assert sum(found.values()) <= TOTAL_LINES


@pytest.mark.parametrize("path", [f"{name}.py" for name in MODULES])
def test_a_long_file_is_divided_into_rooms(path):
    lines = (CHECKOUT / path).read_text("utf-8").splitlines()
    marks = [line for line in lines if line.startswith("# --")]
    assert [line for line in marks if not re.fullmatch(r"# -- \S.*\S -{5,}", line)] == []
    assert len(marks) >= 3 or len(lines) <= ROOMS_FROM
    names = [line.strip("# -") for line in marks]
    assert len(set(names)) == len(names)


# -- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources())
def test_no_function_is_long(path):
    assert not [found for found in functions(path) if found[1] > LONGEST_FUNCTION]


def test_the_median_function_is_short():
    assert statistics.median(lines for path in sources() for _, lines, _ in functions(path)) <= MEDIAN_FUNCTION


@pytest.mark.parametrize("path", sources())
def test_a_broad_handler_says_why_and_does_something(path):
    handlers, remarks = broad_handlers(path), comments(path)
    assert len(handlers) <= BROAD_HANDLERS.get(path, 0)
    assert not [f"{path}:{one.lineno}" for one in handlers if one.lineno not in remarks]
    silent = (ast.Pass, ast.Continue, ast.Break)
    assert not [f"{path}:{one.lineno}" for one in handlers if all(isinstance(step, silent) for step in one.body)]
    for call in ast.walk(tree(path)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("suppress"):
            assert not {"Exception", "BaseException"} & set(map(ast.unparse, call.args))


@pytest.mark.parametrize("path", sources())
def test_only_dates_come_from_the_wall_clock(path):
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
    uses = [node for node in nodes if ast.unparse(node) == "time.time"]
    assert len(uses) <= WALL_CLOCK.get(path, 0), "durations and deadlines take time.monotonic, or an argument"


# -- names and docstrings ------------------------------------------------------------------------------------------


def module(name):
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.mark.parametrize("home, name", [(home, name) for home, names in NAMES.items() for name in names.split()])
def test_a_name_of_the_original_is_where_a_user_looks_for_it(home, name):
    first, *rest = home.split(".")
    place = module(first)
    for step in rest:
        place = getattr(place, step)
    assert hasattr(place, name)


def test_tasks_and_nodes_have_the_attributes_of_the_original():
    task = module("tasks").Task("name", "system", "client", more=1)
    assert (task.name, task.system_id, task.client_id, task.more) == ("name", "system", "client", 1)
    assert "log" in inspect.get_annotations(module("components").Component)


def public(owner, home):
    """(name, member) of what a module or class defines itself, and shows."""
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        if name.startswith("_") or not (inspect.isfunction(function) or inspect.isclass(function)):
            continue
        if function.__module__ == home.__name__ and function.__qualname__.rpartition(".")[2] == name:
            yield name, function


def is_documented(function, name, owner):
    """By a docstring of its own, of what it overrides, or of the interface that its class implements."""
    if inspect.getdoc(function):
        return True
    return any(getattr(getattr(above, name, None), "__doc__", None) for above in getattr(owner, "interfaces", ()))


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name):
    home, missing = module(name), []
    assert home.__doc__ and len(home.__doc__.splitlines()) >= 8
    for outer, thing in public(home, home):
        missing += [] if thing.__doc__ else [outer]
        for inner, function in public(thing, home) if inspect.isclass(thing) else ():
            missing += [] if is_documented(function, inner, thing) else [f"{outer}.{inner}"]
    assert not missing


@pytest.mark.parametrize("path", [path for path in sources() if path != "setup.py"])
def test_a_module_opens_with_a_docstring(path):
    assert ast.get_docstring(tree(path))
