"""Errors, components, plug-ins, statistics and the command line."""

import importlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from concurrent_swarm.components import (
    Component,
    ComponentManager,
    Config,
    Error,
    ExtensionPoint,
    ExtensionPointItem,
    Interface,
    OrderedExtensionPointItem,
    Stats,
    Terminal,
    UsageError,
    implements,
)

from concurrent_swarm import components


@pytest.fixture(autouse=True)
def isolated():
    with components.isolated_registry():
        yield


class IShape(Interface):
    def area(self, scale): ...


def shapes():
    """Two components, defined anew in the registry of this test."""

    class Square(Component):
        implements(IShape)

        def area(self, scale):
            return scale

    class Circle(Component):
        implements = [IShape]

        def area(self, scale, pi=3):
            return pi * scale

    return Square, Circle


class Owner(Component):
    abstract = True
    shapes = ExtensionPoint(IShape)


# -- errors


def test_an_error_is_one_line_as_text_and_three_for_a_person():
    error = Error("port 1 is taken", "another\nhas it", "stop it")
    assert str(error) == "port 1 is taken: another has it (stop it)"
    assert error.text() == "error: port 1 is taken\nwhy:   another\n       has it\nfix:   stop it"
    assert Error("x").text() == "error: x"


def test_each_kind_of_error_has_its_exit_code():
    kinds = (Error, UsageError, components.Unreachable, components.GaveUp)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4]


def test_an_error_cannot_steer_the_terminal():
    assert "\x1b" not in Error("peer said \x1b[2J").text()


# -- components


def test_an_extension_point_lists_instances_in_the_order_of_names():
    square, circle = shapes()
    manager = ComponentManager()

    class User(Owner):
        pass

    assert manager[User].shapes == [manager[circle], manager[square]]


def test_there_is_one_instance_per_manager_and_managers_are_independent():
    square, _ = shapes()
    one, two = ComponentManager(), ComponentManager()
    assert one[square] is one[square] and one[square] is not two[square]
    assert square in one and square not in ComponentManager()


def test_manager_config_and_log_are_there_before_init_runs():
    class Early(Component):
        def __init__(self):
            self.seen = (self.manager, self.config, self.log.name)

    manager = ComponentManager()
    assert manager[Early].seen[:2] == (manager, manager.config) and manager[Early].seen[2].endswith("Early")


def test_components_may_ask_for_each_other_while_they_are_made():
    class Left(Component):
        def __init__(self):
            self.other = self.manager[Right]

    class Right(Component):
        def __init__(self):
            self.other = self.manager[Left]

    left = ComponentManager()[Left]
    assert left.other.other is left


def test_a_component_whose_init_fails_is_made_anew_next_time():
    class Shaky(Component):
        fail = True

        def __init__(self):
            if self.fail:
                raise ValueError("not yet")

    manager = ComponentManager()
    with pytest.raises(ValueError):
        manager[Shaky]
    Shaky.fail = False
    assert Shaky not in manager and manager[Shaky]


def test_many_threads_get_the_same_instance():
    square, _ = shapes()
    manager, found = ComponentManager(), []
    threads = [threading.Thread(target=lambda: found.append(manager[square])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1


def test_a_subclass_serves_the_interfaces_of_its_bases_and_abstract_is_not_inherited():
    class Base(Component):
        abstract = True
        implements(IShape)

        def area(self, scale):
            return 1

    class Leaf(Base):
        pass

    assert components.implementations(IShape) == [Leaf]


def test_a_component_that_inherits_its_interface_serves_it_with_its_defaults():
    class IDefault(Interface):
        def stop(self):
            return "stopped"

    class Lazy(Component, IDefault):
        pass

    assert ComponentManager().extensions(IDefault)[0].stop() == "stopped"


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ({}, "Bad implements IShape but has no method area()"),
        ({"area": 3}, "has no method area()"),
        ({"area": lambda self: 1}, "the interface has area(self, scale)"),
        ({"area": lambda self, a, b: 1}, "takes other arguments"),
        ({"area": staticmethod(lambda self, a: 1)}, "takes other arguments"),
    ],
)
def test_a_broken_promise_names_class_and_method(member, says):
    with pytest.raises(Error, match=re.escape(says)):
        type("Bad", (Component,), {"implements": IShape, **member})
    assert components.implementations(IShape) == []


@pytest.mark.parametrize(
    "area",
    [
        lambda self, s: 1,
        lambda self, *a: 1,
        lambda self, s, more=1: 1,
        staticmethod(lambda s: 1),
        classmethod(lambda cls, s: 1),
    ],
)
def test_a_kept_promise_may_take_more_than_asked(area):
    assert type("Good", (Component,), {"implements": IShape, "area": area}) in Component.registry


def test_only_interfaces_can_be_implemented_and_only_in_a_class_body():
    with pytest.raises(Error, match="no Interface"):
        type("Bad", (Component,), {"implements": int})
    with pytest.raises(UsageError, match="body of a class"):
        implements(IShape)


def test_a_class_defined_again_replaces_its_old_version():
    old, new = shapes()[0], shapes()[0]
    assert new in components.implementations(IShape) and old not in components.implementations(IShape)


def test_what_is_no_component_is_refused():
    with pytest.raises(Error, match="does not derive from Component"):
        ComponentManager()[int]


def test_the_hook_sees_each_instance_before_its_init():
    class Hooked(ComponentManager):
        def component_activated(self, component):
            component.port = 8080

    class Reader(Component):
        def __init__(self):
            self.seen = self.port

    assert Hooked()[Reader].seen == 8080


def test_the_registry_is_back_after_an_isolated_block():
    square, _ = shapes()
    with components.isolated_registry():
        assert components.implementations(IShape) == []
    assert square in components.implementations(IShape)


# -- enabled and disabled


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([], "Circle Square"),
        (["Circle=off"], "Square"),
        (["{module}.*=disabled"], ""),
        (["{module}.*=disabled", "{module}.shapes.<locals>.Circle=enabled"], "Circle"),
        (["*=off", "{module}.*=on"], "Circle Square"),
        (["*=off", "square=on"], "Square"),
    ],
)
def test_the_longest_pattern_decides_whether_a_component_is_enabled(rules, names):
    shapes()
    config = Config(arguments=["components." + rule.format(module=__name__) for rule in rules])
    found = ComponentManager(config).extensions(IShape)
    assert [type(one).__name__ for one in found] == names.split()


def test_a_disabled_component_cannot_be_had():
    square, circle = shapes()
    manager = ComponentManager()
    manager.disable_component(manager[square])
    assert square not in manager and manager.extensions(IShape) == [manager[circle]]
    with pytest.raises(UsageError, match="is disabled"):
        manager.find_component(IShape, "Square")


# -- by name


def test_a_component_is_found_by_short_and_long_name():
    square, _ = shapes()
    manager = ComponentManager()
    assert manager.find_component(IShape, "Square") is manager[square]
    assert manager.find_component(IShape, components.component_name(square)) is manager[square]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    shapes()
    with pytest.raises(UsageError) as caught:
        ComponentManager().find_component(IShape, "Sqare")
    assert caught.value.text() == (
        'error: unknown IShape "Sqare"\nwhy:   known are: Circle, Square\nfix:   did you mean Square?'
    )


def test_an_ambiguous_name_is_an_error_that_lists_the_long_names():
    square, _ = shapes()
    type("Square", (square,), {"__module__": "elsewhere"})
    with pytest.raises(UsageError, match=r'"Square" is ambiguous: it may be elsewhere:Square or '):
        ComponentManager().find_component(IShape, "Square")


def test_a_long_name_is_imported_on_demand(tmp_path, monkeypatch):
    code = f"from {__name__} import IShape\nfrom concurrent_swarm.components import *\n"
    code += "class Late(Component):\n    implements(IShape)\n    def area(self, scale): return 7\n"
    (tmp_path / "latecomer.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert ComponentManager().find_component(IShape, "latecomer:Late").area(1) == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:X", "cannot load no_such_module:X"),
        ("json:Nothing", "cannot load json:Nothing"),
        (":X", "cannot load :X"),
        ("json:loads", "json:loads is not a component that implements IShape"),
    ],
)
def test_a_long_name_that_leads_nowhere_is_one_clear_error(name, says):
    with pytest.raises(UsageError, match=says):
        ComponentManager().find_component(IShape, name)


def test_an_extension_point_item_is_the_component_that_the_value_names():
    square, circle = shapes()

    class User(Component):
        shape = ExtensionPointItem("user", "shape", "Square", IShape)
        some = OrderedExtensionPointItem("user", "some", "Square", IShape)
        all = OrderedExtensionPointItem("user", "all", "Square", IShape, include_missing=True)

    manager = ComponentManager()
    user = manager[User]
    assert user.shape is manager[square] and user.some == [manager[square]]
    assert user.all == [manager[square], manager[circle]]
    manager.config.set("user", "shape", "Circle")
    manager.config.set("user", "some", "Circle, Square")
    assert user.shape is manager[circle] and user.some == [manager[circle], manager[square]]
    manager.config.set("user", "shape", "")
    assert user.shape is None


def test_an_unknown_component_in_the_configuration_is_found_when_all_is_loaded():
    shapes()
    ExtensionPointItem("user", "shape", "Square", IShape)
    config = Config(arguments=["user.shape=Cirle"])
    with pytest.raises(UsageError, match="the name of IShape: Circle, Square, did you mean Circle"):
        config.check_unknown()


def test_components_are_told_of_changes_and_one_that_fails_harms_no_other(caplog):
    told = []

    class Angry(Component):
        def config_changed(self, changes):
            raise RuntimeError("no")

    class Calm(Component):
        def config_changed(self, changes):
            told.append(changes)

    manager = ComponentManager()
    assert manager[Angry] and manager[Calm]
    manager.config_changed(set())
    manager.config_changed({("node", "port")})
    assert told == [{("node", "port")}] and "RuntimeError: no" in caplog.text


# -- plug-ins

PLUGIN = """
from concurrent_swarm.components import Component, implements
from test_components_host import IShape

class Star(Component):
    implements(IShape)
    def area(self, scale):
        return {value}
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_components_host", sys.modules[__name__])
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    yield folder
    for name in [name for name in sys.modules if name.startswith("concurrent_swarm_plugins_")]:
        del sys.modules[name]


def areas():
    return [shape.area(1) for shape in ComponentManager().extensions(IShape)]


def test_a_file_dropped_into_the_folder_becomes_available_and_an_edit_replaces_it(plugins):
    folder = components.load_plugins(plugins)
    assert areas() == []
    (plugins / "star.py").write_text(PLUGIN.format(value=1))
    assert folder.poll(10.0) == ["star"] and areas() == [1]
    assert folder.poll(10.5) == [] and folder.poll(12.0) == []
    (plugins / "star.py").write_text(PLUGIN.format(value=2))
    assert folder.poll(14.0) == ["star"] and areas() == [2]


def test_a_plug_in_is_known_by_its_file_name(plugins):
    (plugins / "star.py").write_text(PLUGIN.format(value=1))
    components.load_plugins(plugins)
    assert ComponentManager().find_component(IShape, "plugins.star:Star")
    off = Config(arguments=["components.plugins.star.*=off"])
    assert ComponentManager(off).extensions(IShape) == []


def test_a_broken_plug_in_is_one_line_and_the_others_load(plugins, caplog):
    (plugins / "bad.py").write_text("x = 1\ndef broken(:\n")
    (plugins / "exits.py").write_text("raise SystemExit(3)\n")
    (plugins / "star.py").write_text(PLUGIN.format(value=1))
    folder = components.load_plugins(plugins)
    assert areas() == [1] and set(folder.failed) == {"bad.py", "exits.py"}
    assert len(caplog.records) == 2 and "bad.py:2" in caplog.text
    assert folder.load() == [] and len(caplog.records) == 2  # said once per version


def test_an_edit_that_does_not_load_leaves_the_old_version(plugins):
    (plugins / "star.py").write_text(PLUGIN.format(value=1))
    folder = components.load_plugins(plugins)
    (plugins / "star.py").write_text(PLUGIN.format(value=2) + "\n1 / 0\n")
    assert folder.load() == [] and areas() == [1] and "ZeroDivisionError" in folder.failed["star.py"]
    (plugins / "star.py").write_text(PLUGIN.format(value=3))
    assert folder.load() == ["star"] and areas() == [3] and folder.failed == {}


def test_a_package_is_a_plug_in_and_plug_ins_may_import_each_other(plugins, capsys):
    (plugins / "pack").mkdir()
    (plugins / "pack" / "__init__.py").write_text("from .inner import Star\n")
    (plugins / "pack" / "inner.py").write_text("from ..number import VALUE\n" + PLUGIN.format(value="VALUE"))
    (plugins / "number.py").write_text("VALUE = 5\nprint('once')\n")
    folder = components.load_plugins(plugins)
    assert folder.failed == {} and areas() == [5] and capsys.readouterr().out == "once\n"
    (plugins / "pack" / "inner.py").write_text(PLUGIN.format(value=66))
    assert folder.load() == ["pack"] and areas() == [66]


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_a_plug_in_folder_that_others_may_write_is_refused_with_the_line_to_fix_it(plugins, mode):
    plugins.chmod(mode)
    with pytest.raises(UsageError) as caught:
        components.load_plugins(plugins)
    assert caught.value.fix == f"chmod go-w {plugins}"


def test_a_plug_in_folder_that_becomes_unsafe_is_reported_once_and_left_alone(plugins, caplog):
    folder = components.load_plugins(plugins)
    plugins.chmod(0o777)
    (plugins / "star.py").write_text(PLUGIN.format(value=1))
    assert folder.poll(1.0) == folder.poll(3.0) == [] and areas() == [] and len(caplog.records) == 1
    plugins.chmod(0o755)
    assert folder.poll(5.0) == ["star"]


def test_a_missing_plug_in_folder_is_empty(tmp_path):
    assert components.load_plugins(tmp_path / "none").load() == []


def test_entry_points_are_loaded_each_for_itself(tmp_path, monkeypatch, caplog, plugins):
    (tmp_path / "offered.py").write_text(PLUGIN.format(value=9))
    info = tmp_path / "offer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{components.GROUP}]\ngood = offered\nbad = not_there:X\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert components.load_entry_points() == ["good"] and areas() == [9]
    assert [record.levelname for record in caplog.records] == ["ERROR"] and "not_there" in caplog.text
    sys.modules.pop("offered")


# -- statistics


def test_statistics_are_right_for_negative_and_zero_samples():
    stats = Stats()
    for value in (-3, 0, -1):
        stats.add_avg("load", value)
    assert (stats.load.max, stats.load.min, stats.load.n, stats.load.last) == (0, -3, 3, -1)
    assert stats.dump("load")["avg"] == pytest.approx(-4 / 3)
    assert list(stats.dump_all()) == ["load"]


def test_statistics_refuse_what_is_no_number_and_unknown_names():
    with pytest.raises(ValueError):
        Stats().add_avg("x", float("nan"))
    with pytest.raises(AttributeError):
        _ = Stats().x
    assert Stats.getInstance() is Stats.getInstance()


def test_stopwatches_nest_and_belong_to_their_thread():
    stats = Stats()
    with stats.timed("outer"):
        stats.time_push()
        thread = threading.Thread(target=lambda: (stats.time_push(), stats.time_pop("other")))
        thread.start()
        thread.join()
        stats.time_pop("inner")
    assert {name: one["n"] for name, one in stats.dump_all().items()} == {"inner": 1, "other": 1, "outer": 1}
    assert stats.outer.sum >= stats.inner.sum >= 0


# -- command line


def test_an_unknown_option_names_the_nearest_one():
    parser = components.ArgumentParser(prog="slave.py")
    parser.add_argument("--master")
    with pytest.raises(UsageError, match=r"--mastre: did you mean --master\?"):
        parser.parse_args(["--mastre", "x"])
    with pytest.raises(UsageError, match="unknown"):
        parser.parse_args(["--zzz=3"])
    with pytest.raises(UsageError, match="expected one argument"):
        parser.parse_args(["--master"])
    assert parser.parse_args(["--master", "x"]).master == "x"


def test_run_main_returns_exit_codes_and_shows_no_traceback(capsys):
    def fail(error):
        def main(argv):
            raise error

        return main

    assert components.run_main(lambda argv: None, []) == 0
    assert components.run_main(lambda argv: len(argv), ["a", "b"]) == 2
    assert components.run_main(fail(components.GaveUp("waited", "nobody came", "start one")), []) == 4
    assert capsys.readouterr().err == "error: waited\nwhy:   nobody came\nfix:   start one\n"
    assert components.run_main(fail(KeyboardInterrupt()), []) == 130
    assert components.run_main(fail(SystemExit(0)), []) == 0
    assert components.run_main(fail(ZeroDivisionError("x")), []) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert components.run_main(fail(Error("x")), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


class Tty(io.TextIOWrapper):
    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding)

    def isatty(self):
        return True

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize(
    ("color", "environ", "expected"),
    [
        ("auto", {}, True),
        ("auto", {"TERM": "dumb"}, False),
        ("auto", {"NO_COLOR": "1"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        ("auto", {"FORCE_COLOR": "0", "TERM": "dumb"}, False),
    ],
)
def test_colour_follows_option_environment_and_terminal(color, environ, expected):
    assert Terminal(Tty(), color, environ).color is expected
    assert (Terminal(io.StringIO(), "auto", {}).paint("x", "31")) == "x"


def test_the_status_is_rewritten_on_a_terminal_and_makes_way_for_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Tty()
    terminal = Terminal(stream, environ={})
    terminal.status("a long status")
    terminal.status("short")
    terminal.write("line\n")
    assert stream.text() == "\ra long status\rshort        \r     \rline\n"


def test_the_status_fits_the_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Tty()
    Terminal(stream, environ={}).status(["step 2", "2,411/4,000", "166/s", "ETA 10 s"])
    assert stream.text() == "\rstep 2  ETA 10 s"


def test_a_terminal_that_does_not_know_its_width_shows_the_status(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()  # 0 columns, as a program makes it
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", 0) as person:
        monkeypatch.setattr(sys, "__stdout__", terminal)  # what shutil.get_terminal_size asks
        Terminal(terminal, environ={}).status(["1/4", "2/2 busy"])
        assert person.read(100) == b"\r1/4  2/2 busy"


def test_the_status_is_a_line_every_ten_seconds_elsewhere():
    stream = io.StringIO()
    terminal = Terminal(stream, environ={})
    for now in (0.0, 5.0, 9.9, 10.0):
        terminal.status(f"at {now}", now)
    assert stream.getvalue() == "at 0.0\nat 10.0\n"


def test_the_bar_uses_what_the_encoding_has():
    assert Terminal(Tty("utf-8"), environ={}).bar(0.5, 4) == "██░░"
    assert Terminal(Tty("ascii"), environ={}).bar(2, 3) == "###"


def test_log_lines_may_go_through_the_terminal(monkeypatch):
    stream = Tty()
    terminal = Terminal(stream, environ={})
    terminal.status("busy")
    handler = logging.StreamHandler(terminal)
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    assert stream.text().endswith("\r    \rhello\n")


def test_importing_is_fast_and_loads_nothing_heavy():
    code = "import sys, concurrent_swarm.components; print(*sys.modules)"
    root = Path(components.__file__).parent
    environ = {**os.environ, "PYTHONPATH": str(root)}
    modules = subprocess.check_output([sys.executable, "-c", code], env=environ, text=True).split()
    heavy = {"zipfile", "sqlite3", "importlib.metadata", "difflib", "configparser", "logging.handlers", "zmq"}
    assert not heavy & set(modules)
