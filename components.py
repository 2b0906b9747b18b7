"""What every node stands on: components, configuration, environment, statistics, command line.

A program is a set of *components*. A component serves *interfaces*; whoever wants what an interface promises
asks an *extension point* and gets the components that are switched on. A plug-in is a file that defines more.

        env.ini     CONCURRENT_SWARM_…     --set section.key=value
           \\                |                  /               weakest on the left, strongest on the right
            `-----------> Config <------------'
                            |  typed items: config.get(item)
     plugins/*.py           v
     entry points -> ComponentManager -> one instance of each component class
     module:Class           ^
                            |  ExtensionPoint(interface), find_component(interface, name)
                       your classes

    state folder/            one environment per running node, held by a lock
        slave/   slave-2/    configs/env.ini logs/ plugins/ apps/ keys/ run/ VERSION lock

A component needs a base class and nothing else; `manager`, `config` and `log` are there when `__init__` runs:

    >>> class IGreeter(Interface):
    ...     def greet(self, name): ...
    >>> class Friendly(Component):
    ...     implements(IGreeter)
    ...     word = TextItem("greeter", "word", "Hello", "what to say first")
    ...     def greet(self, name):
    ...         return f"{self.word} {name}"
    >>> manager = ComponentManager(Config(arguments=["greeter.word=Bonjour"]))
    >>> manager.find_component(IGreeter, "Friendly").greet("Ada")
    'Bonjour Ada'

Nothing here starts a thread or opens a socket; `configure_logging` is for `main()` alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import re
import struct
import sys
import threading
import time
from array import array
from collections import Counter, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from inspect import getattr_static
from math import isfinite
from operator import mul, rshift
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

CONFIG_LIMIT = 1 << 20  # bytes of a configuration file; a larger one was hardly written by hand
POLL_SECONDS = 1.0  # between two looks at a file or folder that may change
LOG_BYTES, LOG_FILES = 10 << 20, 3  # a log file is rotated at this size, this many old ones stay
FORMAT = 1  # of an environment folder; goes up when an older version could not use it any more
GROUP = "concurrent_swarm.components"  # entry points that are plug-ins
VARIABLE = "CONCURRENT_SWARM_"  # start of the environment variables that set configuration items
LOG_EXTRAS = ("task", "attempt", "slave", "system")  # ids that a log record may carry

__version__ = "0.1.0"

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_GAVE_UP = 0, 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

# -- errors --------------------------------------------------------------------------------------------------

_CONTROL = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)]} | {9: " ", 10: r"\n"}


def printable(text: str, keep: str = "") -> str:
    r"""Text with its control characters spelled out, except those in `keep`; no message steers a terminal.

    >>> printable("red \x1b[31m")
    'red \\x1b[31m'
    """
    return text.translate({code: word for code, word in _CONTROL.items() if chr(code) not in keep})


class Error(Exception):
    """The root of our errors: `what` happened with which value, `why`, and a line to paste that may `fix` it.

    >>> print(Error("port 8080 is in use", "another program has it", "python master.py --port 8081").text())
    error: port 8080 is in use
    why:   another program has it
    fix:   python master.py --port 8081
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, why: str = "", fix: str = ""):
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        line = ": ".join(filter(None, (self.what, self.why))) + (f" ({self.fix})" if self.fix else "")
        return " ".join(line.split())

    def text(self) -> str:
        """The three lines for a person; an empty part is left out, a long one goes on under its beginning."""
        parts = (("error:", self.what), ("why:", self.why), ("fix:", self.fix))
        lines = (f"{word:7}{printable(part, keep=chr(10))}" for word, part in parts if part)
        return "\n".join(line.replace("\n", "\n       ") for line in lines)


class UsageError(Error):
    """Wrong use: an option, a file, a configuration, an environment in use."""

    exit_code = EXIT_USAGE


class Unreachable(Error):
    """The other side cannot be reached, or does not let us in."""

    exit_code = EXIT_UNREACHABLE


class GaveUp(Error):
    """Waited for as long as was asked."""

    exit_code = EXIT_GAVE_UP


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or "".

    >>> nearest("--mastre", ["--master", "--local"])
    '--master'
    """
    from difflib import get_close_matches

    spelled = {word.lower(): word for word in known}
    return next((spelled[word] for word in get_close_matches(name.lower(), spelled, 1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` with the nearest known name, or ""."""
    found = nearest(name, known)
    return f"did you mean {found}?" if found else ""


def describe(error: BaseException) -> str:
    """An exception in one line, with the file and line it comes from."""
    if isinstance(error, Error):
        return str(error)
    place, trace = "", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if module != __name__ and module.partition(".")[0] != "importlib":
            place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}: {error}{place}"


def run_foreign(what: str, function: Callable, *args) -> BaseException | None:
    """Call code that is not ours. What it raises becomes one log line and is returned: it cannot break us."""
    try:
        function(*args)
    except (Exception, SystemExit) as error:  # the one border to code of plug-ins
        log.error("%s: %s", what, describe(error), exc_info=log.isEnabledFor(logging.DEBUG))
        return error
    return None


# -- components ----------------------------------------------------------------------------------------------

_PLUGINS = "concurrent_swarm_plugins_"  # start of the private package name of a plug-in folder


class Interface:
    """Base of the interfaces: what a component promises. It is checked when the component is defined."""


def implements(*interfaces: type[Interface]) -> None:
    """In a class body: this component serves these interfaces. `implements = [IApp]` says the same."""
    if "__qualname__" not in (body := sys._getframe(1).f_locals):
        raise UsageError("implements(…) belongs into the body of a class")
    body["_implements"] = (*body.get("_implements", ()), *interfaces)


def component_name(cls: type) -> str:
    """The long name of a class, `package.module:Class`; a plug-in's module is called `plugins.<file>`."""
    first, _, rest = cls.__module__.partition(".")
    module = f"plugins.{rest}" if first.startswith(_PLUGINS) else cls.__module__
    return f"{module}:{cls.__qualname__}"


def _arity(member):
    """(fewest, most) positional arguments of a method, `self` included; None if Python cannot tell."""
    bound, function = isinstance(member, staticmethod), getattr(member, "__func__", member)
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    fewest = code.co_argcount - len(function.__defaults__ or ())
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return math.inf, -1  # a required keyword: no positional call can satisfy it
    return fewest + bound, math.inf if code.co_flags & 0x04 else code.co_argcount + bound  # 0x04: has *args


def _verify(cls, interface):
    """Raise unless `cls` has every public method of `interface`, callable the way the interface is called."""
    says = f"{component_name(cls)} implements {interface.__name__}"
    for name in dir(interface):
        if name.startswith("_") or not callable(getattr(interface, name)):
            continue
        if not callable(getattr(cls, name, None)):
            raise Error(f"{says} but has no method {name}()", fix=f"define {name}() in {cls.__qualname__}")
        want, have = _arity(getattr_static(interface, name)), _arity(getattr_static(cls, name))
        if want and have and (have[0] > want[0] or have[1] < want[1]):
            code = getattr(interface, name).__code__
            arguments = ", ".join(code.co_varnames[: code.co_argcount])
            raise Error(f"{says} but its {name}() takes other arguments", f"the interface has {name}({arguments})")


class Component:
    """Base of all components. Defining a subclass registers it; `abstract = True` keeps that one class out. A manager
    makes the one instance and gives it `manager`, `config` and `log` before `__init__(self)` runs. A method
    `config_changed(changes)`, if there is one, is called with a set of (section, key) on reload."""

    registry: list[type[Component]] = []
    interfaces: tuple[type[Interface], ...] = ()
    manager: ComponentManager
    config: Config
    log: logging.Logger

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        attribute = vars(cls).get("implements", ())
        declared = [*vars(cls).get("_implements", ())]
        declared += [attribute] if isinstance(attribute, type) else attribute
        for base in cls.__mro__[1:]:
            declared += getattr(base, "interfaces", ()) if issubclass(base, Component) else ()
            if issubclass(base, Interface) and base is not Interface and not issubclass(base, Component):
                declared.append(base)
        for interface in declared:
            if not (isinstance(interface, type) and issubclass(interface, Interface)):
                raise Error(f"{component_name(cls)} implements {interface!r}", "that is no Interface")
        cls.interfaces = tuple(dict.fromkeys(declared))
        if vars(cls).get("abstract", False):
            return
        for interface in cls.interfaces:
            _verify(cls, interface)
        name = component_name(cls)  # a class defined again is a new version of the old one
        Component.registry = [one for one in Component.registry if component_name(one) != name] + [cls]


@contextmanager
def isolated_registry() -> Iterator[None]:
    """For tests: inside the block no component and no configuration item of the outside is known."""
    components, items = Component.registry, ConfigItem.registry
    Component.registry = []
    ConfigItem.registry = {item.id: item for item in (COMPONENT_RULE, BASE_FILE)}
    try:
        yield
    finally:
        Component.registry, ConfigItem.registry = components, items


def implementations(interface: type[Interface]) -> list[type[Component]]:
    """All registered classes that serve an interface, in the order of their long names."""
    serving = (cls for cls in Component.registry if any(issubclass(one, interface) for one in cls.interfaces))
    return sorted(serving, key=component_name)


class ExtensionPoint:
    """Class attribute: the enabled components that serve an interface, as a list made at each access."""

    def __init__(self, interface: type[Interface]):
        self.interface = interface

    def __get__(self, instance, owner=None):
        return self if instance is None else _manager_of(instance).extensions(self.interface)


def _manager_of(instance):
    return instance if isinstance(instance, ComponentManager) else instance.manager


def _rule_matches(pattern, name):
    """Whether a pattern `module.Class`, `module.*` or `Class` means this dotted name (both in lower case)."""
    pattern = pattern.replace(":", ".")
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else f".{name}".endswith(f".{pattern}")


class ComponentManager:
    """Makes each component once, on first use: `manager[cls]`. Managers know nothing of each other."""

    def __init__(self, config: Config | None = None):
        self.config = Config() if config is None else config
        self._instances = {}
        self._disabled = set()
        self._lock = threading.RLock()

    def __contains__(self, cls: type[Component]) -> bool:
        return cls in self._instances

    def __getitem__(self, cls: type[Component]) -> Any:
        """The one instance of a component class. Raises Error if it is no component, or disabled."""
        with self._lock:
            if cls in self._instances:
                return self._instances[cls]
            if not (isinstance(cls, type) and issubclass(cls, Component)):
                raise Error(f"{cls!r} is not a component", "it does not derive from Component")
            if not self.is_component_enabled(cls):
                raise UsageError(f"component {component_name(cls)} is disabled", "[components] says so")
            component = cls.__new__(cls)
            component.manager, component.config = self, self.config
            component.log = logging.getLogger(component_name(cls).replace(":", "."))
            self._instances[cls] = component  # before __init__, whose helpers may ask for this one
            try:
                self.component_activated(component)
                component.__init__()
            except BaseException:
                del self._instances[cls]
                raise
            return component

    def is_component_enabled(self, cls: type[Component]) -> bool:
        """Whether a class may be used; a hook. The longest pattern that fits in [components] decides."""
        name = component_name(cls).replace(":", ".").lower()
        rules = self.config.section("components")
        pattern = max((one for one in rules if _rule_matches(one, name)), key=len, default=None)
        return cls not in self._disabled and (pattern is None or COMPONENT_RULE.parse(rules[pattern]))

    def component_activated(self, component: Component) -> None:
        """Called with each new instance before its `__init__`; a hook."""

    def disable_component(self, component: Component | type[Component]) -> None:
        """Switch off a component, given as class or instance, and let go of the instance."""
        cls = component if isinstance(component, type) else type(component)
        with self._lock:
            self._disabled.add(cls)
            self._instances.pop(cls, None)

    def extensions(self, interface: type[Interface]) -> list[Any]:
        """The enabled components that serve an interface, in the order of their long names."""
        return [self[cls] for cls in implementations(interface) if self.is_component_enabled(cls)]

    def find_component(self, interface: type[Interface], name: str) -> Any:
        """The component called `name`: `Class`, or `package.module:Class`, which is imported if need be. Raises
        UsageError: unknown (with a list of the known ones), ambiguous, disabled, or something else."""
        known = implementations(interface)
        found = [cls for cls in known if name in (cls.__name__, component_name(cls))]
        if not found and ":" in name:
            try:
                found = [resolve_name(name)]
            except (ImportError, AttributeError, SyntaxError, ValueError) as error:
                raise UsageError(f"cannot load {name}", describe(error), "the form is package.module:Name") from error
            if not (isinstance(found[0], type) and found[0] in implementations(interface)):
                raise UsageError(f"{name} is not a component that implements {interface.__name__}")
        if not found:
            names = [cls.__name__ for cls in known if self.is_component_enabled(cls)]
            raise UsageError(f'unknown {interface.__name__} "{name}"', f"known are: {', '.join(names) or 'none'}",
                             did_you_mean(name, names))
        if len(found) > 1:
            raise UsageError(f'"{name}" is ambiguous', "it may be " + " or ".join(map(component_name, found)))
        return self[found[0]]

    def config_changed(self, changes: set[tuple[str, str]]) -> None:
        """Tell every instance that has a method `config_changed` what `config.poll` returned."""
        for cls, component in list(self._instances.items()) if changes else ():
            if hasattr(component, "config_changed"):
                run_foreign(f"{component_name(cls)}.config_changed", component.config_changed, changes)


# -- configuration items -------------------------------------------------------------------------------------

def parse_host(text: str, port: int | None = None) -> tuple[str, int]:
    """(host, port) of `HOST:PORT`, or of `HOST` when there is a default port. Raises ValueError.

    >>> parse_host("node01:8080"), parse_host("[::1]", 8080), parse_host("::1", 8080)
    (('node01', 8080), ('::1', 8080), ('::1', 8080))
    """
    text = text.strip()
    host, colon, digits = text.rpartition(":")
    if text.endswith("]") or not colon or (host.count(":") and not host.endswith("]")):
        host, digits = text, "" if port is None else str(port)  # no port given
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or any(char in "/@[] " for char in host) or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{text!r} is not HOST:PORT")
    if int(digits) > 65535:
        raise ValueError(f"port {digits} is larger than 65535")
    return host, int(digits)


class ConfigItem:
    """A text in the configuration, as class attribute: reading `instance.item` reads `instance.config`. `section` and
    `key` ignore case. A `default` given as text is read like a value in the file. The key "*" stands for any key."""

    registry: dict[tuple[str, str], ConfigItem] = {}
    expected = "text"  # what `parse` accepts, in words
    choices: list[str] = []  # the words to choose from, where there is such a list

    def __init__(self, section: str, key: str, default: Any = "", doc: str = ""):
        self.section, self.key, self.default, self.doc = section, key, default, doc
        self.id = (section.lower(), key.lower())
        ConfigItem.registry[self.id] = self

    def __get__(self, instance, owner=None):
        return self if instance is None else self.read(instance)

    @property
    def kind(self) -> str:
        """One word for what it holds: text, bool, int, float, list, host, path, choice, extensionpoint."""
        return {"config": "text"}.get(name := type(self).__name__.removesuffix("Item").lower(), name)

    def read(self, instance: Any) -> Any:
        """The value for the component or node that has this item."""
        return instance.config.get(self)

    def parse(self, text: str) -> Any:
        """The value that a text stands for. Raises ValueError."""
        return text

    def format(self, value: Any) -> str:
        """The text that stands for a value; text stays as it is."""
        return "" if value is None else str(value)

    def resolve(self, value: Any, config: Config) -> Any:
        """What the program gets for a parsed value."""
        return value

    def check(self, text: str, loaded: bool) -> None:
        """Raise ValueError unless the text is good. Names are checked once all plug-ins are `loaded`."""
        self.parse(text)


TextItem = ConfigItem


class BoolItem(ConfigItem):
    """True or false, in one of the words below."""

    expected = "true or false"
    words = dict.fromkeys(("1", "true", "yes", "y", "on", "enabled", "ja", "si"), True)
    words |= dict.fromkeys(("0", "false", "no", "n", "off", "disabled", "nein"), False)

    def parse(self, text):
        if (word := text.strip().lower()) in self.words:
            return self.words[word]
        raise ValueError(text)

    def format(self, value):
        return str(value).lower()


class IntItem(ConfigItem):
    """A whole number, within `minimum` and `maximum` where given."""

    number: Callable = int
    noun = "a whole number"

    def __init__(self, section, key, default=0, doc="", minimum=None, maximum=None):
        super().__init__(section, key, default, doc)
        self.minimum = -math.inf if minimum is None else minimum
        self.maximum = math.inf if maximum is None else maximum
        bounds = ((" from ", minimum), (" up to ", maximum))
        self.expected = self.noun + "".join(f"{word}{bound}" for word, bound in bounds if bound is not None)

    def parse(self, text):
        value = self.number(text)
        if not self.minimum <= value <= self.maximum or value in (math.inf, -math.inf):
            raise ValueError(text)
        return value


class FloatItem(IntItem):
    """A finite number, within `minimum` and `maximum` where given."""

    number = float
    noun = "a number"


class ListItem(ConfigItem):
    """Texts, separated by commas or line ends; empty ones are left out."""

    expected = 'a list separated by ","'

    def parse(self, text):
        return [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]

    def format(self, value):
        return value if isinstance(value, str) else ", ".join(value or ())


class HostItem(ConfigItem):
    """(host, port) of `HOST:PORT`; `port` is what counts when only a host is given."""

    def __init__(self, section, key, default="", doc="", port=None):
        super().__init__(section, key, default, doc)
        self.port = port
        self.expected = "HOST:PORT" if port is None else f"HOST or HOST:PORT (port {port} if not given)"

    def parse(self, text):
        return parse_host(text, self.port) if text else None

    def format(self, value):
        if not isinstance(value, tuple):
            return super().format(value)
        return f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}"


class PathItem(ConfigItem):
    """A path; `~` is the home folder, a relative one begins at the environment's folder. Empty: None."""

    expected = "a path"

    def resolve(self, value, config):
        return Path(config.folder, os.path.expanduser(value)) if value else None


class ChoiceItem(ConfigItem):
    """One of a few words."""

    def __init__(self, section, key, default, choices: Iterable[str], doc=""):
        super().__init__(section, key, default, doc)
        self.choices = list(choices)
        self.expected = f"one of {', '.join(self.choices)}"

    def parse(self, text):
        if found := [choice for choice in self.choices if choice.lower() == text.strip().lower()]:
            return found[0]
        raise ValueError(text)


class ExtensionPointItem(ConfigItem):
    """The one component that the value names, as `Class` or `package.module:Class`. Empty: None."""

    def __init__(self, section, key, default, interface: type[Interface], doc=""):
        super().__init__(section, key, default, doc)
        self.interface = interface

    def read(self, instance):
        name = instance.config.get(self)
        return _manager_of(instance).find_component(self.interface, name) if name else None

    def parse(self, text):
        return text.strip()

    def check(self, text, loaded):
        names = self.parse(text)
        names = [names] if isinstance(names, str) else names
        if loaded and {name for name in names if name and ":" not in name} - {*self.choices}:
            raise ValueError(text)

    @property
    def choices(self):
        """The names that a value may have."""
        return [cls.__name__ for cls in implementations(self.interface)]

    @property
    def expected(self):
        """What a value should be, for messages."""
        return f"the name of {self.interface.__name__}: {', '.join(self.choices) or 'none is known yet'}"


class ExtensionPointListItem(ExtensionPointItem):
    """The components that the value names, in its order; `include_missing` appends the other enabled ones."""

    parse, format = ListItem.parse, ListItem.format

    def __init__(self, section, key, default, interface, doc="", include_missing=False):
        super().__init__(section, key, default, interface, doc)
        self.include_missing = include_missing

    def read(self, instance):
        manager = _manager_of(instance)
        found = [manager.find_component(self.interface, name) for name in instance.config.get(self)]
        rest = manager.extensions(self.interface) if self.include_missing else []
        return found + [component for component in rest if component not in found]


OrderedExtensionPointItem = ExtensionPointListItem
COMPONENT_RULE = BoolItem("components", "*", True, "whether module.Class, module.* or Class may be used")
BASE_FILE = TextItem("baseon", "file", "", "a file whose values count where this one has none")

# -- configuration -------------------------------------------------------------------------------------------

@contextmanager
def replacing(path: str | os.PathLike, mode: int = 0o644) -> Iterator[Any]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes otherwise."""
    target = os.path.realpath(path)
    temporary = f"{target}.{os.getpid()}-{threading.get_ident()}.new"
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _write_lines(path, lines):
    with replacing(path, path.stat().st_mode & 0o777 if path.exists() else 0o644) as file:
        file.write(("\n".join(lines) + "\n").encode())


_Entry = namedtuple("_Entry", "text path line")


def _stamp(path):
    """Changes whenever a file does; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_text(path):
    """The text of a configuration file. Raises UsageError."""
    if not path.is_file():
        absent = "it is a link to nothing" if path.is_symlink() else "it is gone"
        raise UsageError(f"cannot read {path}", "it is not a file" if path.exists() else absent)
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}", error.strerror or str(error)) from error
    if len(data) > CONFIG_LIMIT:
        raise UsageError(f"cannot read {path}", f"it is larger than {CONFIG_LIMIT >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path}:{data.count(10, 0, error.start) + 1}: byte 0x{data[error.start]:02x} is not UTF-8"
        raise UsageError(what, fix="save the file as UTF-8") from error


def _parse_ini(text, path):
    """{(section, key): entry} of an INI text, names in lower case. Raises UsageError with file and line."""
    import configparser
    import io

    number, numbers = 0, []

    def read():
        nonlocal number
        for line in io.StringIO(text, newline=None):
            number += 1
            yield line

    def note(key):  # configparser keeps no line numbers, but asks for the spelling of each key as it reads it
        numbers.append(number)
        return key.lower()

    parser = configparser.RawConfigParser(delimiters=("=",), default_section="", empty_lines_in_values=False)
    parser.optionxform = note
    try:
        parser.read_file(read(), str(path))
    except configparser.Error as error:
        raise UsageError(_syntax(error, path)) from error
    entries = {}
    keys = [(section, key, text) for section in parser.sections() for key, text in parser.items(section)]
    for (section, key, text), line in zip(keys, numbers, strict=True):
        if (section.lower(), key) in entries:
            raise UsageError(f"{path}:{line}: [{section}] {key} is there twice")
        entries[section.lower(), key] = _Entry(text, path, line)
    return entries


def _syntax(error, path):
    """What configparser complains of, as `PATH:LINE: reason`."""
    import configparser

    if isinstance(error, configparser.DuplicateSectionError):
        return f"{path}:{error.lineno}: section [{error.section}] is there twice"
    if isinstance(error, configparser.DuplicateOptionError):
        return f"{path}:{error.lineno}: [{error.section}] {error.option} is there twice"
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"{path}:{error.lineno}: a key before the first [section]"
    lines = [line for line, _ in getattr(error, "errors", ())] or [getattr(error, "lineno", 0)]
    return "; ".join(f"{path}:{line}: not `key = value`" for line in lines)


def _read_ini(path, stamps):
    """The entries of a file over those of the file it is based on. `stamps` learns which files were asked."""
    if path in stamps:
        raise UsageError(f"{path} is based on itself", "[baseon] file leads in a circle")
    stamps[path] = _stamp(path)
    entries = _parse_ini(_read_text(path), path)
    if BASE_FILE.id not in entries:
        return entries
    return {**_read_ini(path.parent / os.path.expanduser(entries[BASE_FILE.id].text), stamps), **entries}


def _item(id):
    return ConfigItem.registry.get(id) or ConfigItem.registry.get((id[0], "*"))


def _variable(id):
    return VARIABLE + "".join(char if char.isalnum() else "_" for char in "_".join(id)).upper()


def _unknown(id):
    """`unknown key [s] k, did you mean …?`"""
    known = [".".join(one) for one in ConfigItem.registry if one[1] != "*"]
    return ", ".join(filter(None, (f"unknown key [{id[0]}] {id[1]}", did_you_mean(".".join(id), known))))


def _mistakes(lines):
    if len(lines) == 1:
        return UsageError(lines[0], fix="`config show --origin` lists every key")
    return UsageError(f"{len(lines)} mistakes in the configuration", "\n".join(lines))


Changes = set[tuple[str, str]]  # (section, key) of configuration items


class Config:
    """The values of the configuration items: argument over environment variable over file over default.

    `path` is an INI file (it need not exist yet), `arguments` are `section.key=value`, `folder` is where relative paths
    begin. Raises UsageError with all mistakes at once. Items may be declared later; call `check_unknown` at the end.
    """

    def __init__(
        self, path: str | os.PathLike | None = None, arguments: Iterable[str] = (),
        environ: Mapping[str, str] | None = None, folder: str | os.PathLike | None = None,
    ):
        self.path = None if path is None else Path(path)
        self.folder = Path(os.curdir if folder is None else folder)
        self._environ = os.environ if environ is None else environ
        self._arguments, self._entries, self._stamps = {}, {}, {}
        self._complete, self._reported, self._polled = False, None, -math.inf
        for text in arguments:
            self._assign(text)
        if self.path is not None and os.path.lexists(self.path):
            self._entries = _read_ini(self.path, self._stamps)
        elif self.path is not None:
            self._stamps = {self.path: None}
        self._raise_mistakes(self._entries)

    # reading

    def _lookup(self, id):
        """(text or None, origin)"""
        if id in self._arguments:
            return self._arguments[id], "argument"
        if text := self._environ.get(_variable(id)):
            return text, "environment"
        if entry := self._entries.get(id):
            return entry.text, f"file {entry.path}:{entry.line}"
        return None, "default"

    def get(self, item: ConfigItem) -> Any:
        """The value of an item. Raises UsageError if what was set for it is not valid."""
        text, origin = self._lookup(item.id)
        value = item.default if text is None else text
        try:
            return item.resolve(item.parse(value) if isinstance(value, str) else value, self)
        except ValueError as error:
            raise _mistakes([self._mistake(item, value, origin)]) from error

    def origin(self, item: ConfigItem) -> str:
        """Where the value comes from: `argument`, `environment`, `file PATH:LINE` or `default`."""
        return self._lookup(item.id)[1]

    def section(self, name: str) -> dict[str, str]:
        """{key: text} of everything that file and arguments say in a section, keys in lower case."""
        both = {id: entry.text for id, entry in self._entries.items()} | self._arguments
        return {key: text for (section, key), text in both.items() if section == name.lower()}

    def show(self) -> list[tuple[str, str, str, str]]:
        """(section, key, text, origin) of every known item and rule, for `config show --origin`."""
        rows = []
        for id in sorted({*ConfigItem.registry, *self._entries, *self._arguments}):
            if (item := _item(id)) is not None and id[1] != "*":
                text, origin = self._lookup(id)
                name = item.key if item.id == id else id[1]
                rows.append((item.section, name, item.format(item.default) if text is None else text, origin))
        return rows

    def describe(self) -> list[dict[str, Any]]:
        """Every known item as JSON can say it: what it is set to, where, and what it may be."""
        rows = []
        for _, item in sorted(ConfigItem.registry.items()):
            if item.key != "*":
                text, origin = self._lookup(item.id)
                default = item.format(item.default)
                bounds = (getattr(item, name, None) for name in ("minimum", "maximum"))
                least, most = (None if one in (None, math.inf, -math.inf) else one for one in bounds)
                rows.append({
                    "section": item.section, "key": item.key, "type": item.kind, "doc": item.doc, "default": default,
                    "value": default if text is None else text, "origin": origin, "choices": list(item.choices),
                    "expected": item.expected, "minimum": least, "maximum": most})
        return rows

    # changing

    def set(self, section: str, key: str, value: Any) -> Callable[[], None]:
        """Set a value at the strongest level, for as long as the program runs. Returns what takes that back. Raises
        UsageError."""
        id = (section.lower(), key.lower())
        text = item.format(value) if (item := _item(id)) else str(value)
        problems = self._problems([(id, text, f"--set {section}.{key}")])
        if problems or "\n" in text or "\r" in text:
            raise _mistakes(problems or [f"--set {section}.{key} has more than one line"])
        before = {id: self._arguments[id]} if id in self._arguments else {}
        self._arguments[id] = text
        return lambda: (self._arguments.pop(id), self._arguments.update(before))

    def _assign(self, text):
        name, equals, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        if not (equals and section and key):
            raise UsageError(f"--set {text} sets nothing", "the form is section.key=value")
        self._arguments[section.lower(), key.lower()] = value.strip()

    def reload(self) -> Changes:
        """Read the file again. Returns the (section, key) whose values changed. All or nothing: when anything is wrong
        the old values stay, and one log line per version says why."""
        if self.path is None:
            return set()
        stamps = {}
        try:
            entries = _read_ini(self.path, stamps)
            if self._entries and not entries:
                raise UsageError(f"{self.path}:1: the file is empty", "was it cut while it was written?")
            self._raise_mistakes(entries)
        except UsageError as error:
            if stamps != self._reported:
                log.error("configuration not reloaded, the old values stay: %s", error)
            self._stamps = self._reported = stamps
            return set()
        ids = {*self._entries, *entries}
        before = {id: self._lookup(id)[0] for id in ids}
        self._entries, self._stamps, self._reported = entries, stamps, None
        if self._complete:
            self._warn()
        return {id for id in ids if self._lookup(id)[0] != before[id]}

    def poll(self, now: float) -> Changes:
        """Reload if a file changed; looks at most once a second. `now`: monotonic seconds."""
        if now - self._polled < POLL_SECONDS:
            return set()
        self._polled = now
        return self.reload() if any(_stamp(path) != stamp for path, stamp in self._stamps.items()) else set()

    # checking

    def check_unknown(self) -> list[str]:
        """All items are declared and all plug-ins are loaded: check what could not be checked before. Raises UsageError
        with all mistakes; an unknown key in an argument is one. Logs and returns a warning for each in the file."""
        self._complete = True
        self._raise_mistakes(self._entries)
        return self._warn()

    def _warn(self):
        unknown = {id: entry for id, entry in self._entries.items() if _item(id) is None}
        warnings = [f"{entry.path}:{entry.line}: {_unknown(id)}" for id, entry in unknown.items()]
        for warning in warnings:
            log.warning("%s", warning)
        return warnings

    def _raise_mistakes(self, entries):
        texts = [(id, text, f"--set {'.'.join(id)}") for id, text in self._arguments.items()]
        variables = ((id, _variable(id)) for id in ConfigItem.registry)
        texts += [(id, self._environ[name], name) for id, name in variables if self._environ.get(name)]
        texts += [(id, entry.text, f"{entry.path}:{entry.line}") for id, entry in entries.items()]
        if problems := self._problems(texts):
            raise _mistakes(problems)

    def _problems(self, texts):
        """A line for each (id, text, where) that is wrong; of unknown keys only those in arguments count."""
        problems = []
        for id, text, where in texts:
            item = _item(id)
            if item is None:
                if self._complete and where.startswith("--set"):
                    problems.append(f"{where}: {_unknown(id)}")
                continue
            try:
                item.check(text, self._complete)
            except ValueError:
                problems.append(self._mistake(item, text, where))
        return problems

    def _mistake(self, item, text, where):
        line = f"{where}: [{item.section}] {item.key} = {text} is not {item.expected}"
        return ", ".join(filter(None, (line, did_you_mean(text, item.choices))))

    # writing

    def save(self, path: str | os.PathLike | None = None) -> None:
        """Write what this file and the arguments say, and nothing else, in one step. Comments are lost."""
        own = {id: entry.text for id, entry in self._entries.items() if entry.path == self.path} | self._arguments
        lines, last = [], None
        for section, key in sorted(own):
            lines += [f"[{section}]"] if section != last else []
            lines.append(f"{key} = " + own[section, key].replace("\n", "\n    "))
            last = section
        _write_lines(Path(path or self.path), lines)

    @staticmethod
    def write_default(path: str | os.PathLike) -> None:
        """Write a file that shows every known item with its meaning and default, all commented out."""
        lines, last = ["# Take away the # in front of a key to change it. Running nodes notice."], None
        for _, item in sorted(ConfigItem.registry.items()):
            lines += ["", f"[{item.section}]"] if item.id[0] != last else []
            lines += [f"# {line}" for line in f"{item.doc} ({item.expected})".strip().splitlines()]
            key = "module.Class" if item.key == "*" else item.key
            lines.append(f"#{key} = {item.format(item.default)}".rstrip())
            last = item.id[0]
        _write_lines(Path(path), lines)


# -- plug-ins ------------------------------------------------------------------------------------------------

def _forget_modules(name):
    """Take a module and what is inside it out of Python's table, and return them."""
    return {key: sys.modules.pop(key) for key in [*sys.modules] if f"{key}.".startswith(f"{name}.")}


class PluginFolder:
    """The plug-ins of a folder: each `name.py` and each package. A broken one is reported and harms nobody: `failed`
    maps its file name to the reason. The folder becomes a package under a private name, so that a plug-in may say
    `from . import other`."""

    def __init__(self, path: str | os.PathLike):
        import hashlib
        import types

        self.path = Path(path).resolve()
        self.package = _PLUGINS + hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        self.failed: dict[str, str] = {}
        self._stamps, self._polled, self._trouble = {}, -math.inf, ""
        package = sys.modules.setdefault(self.package, types.ModuleType(self.package))
        package.__path__ = [str(self.path)]

    def poll(self, now: float) -> list[str]:
        """Load what is new or was edited; looks once a second at most. `now`: monotonic seconds."""
        if now - self._polled < POLL_SECONDS:
            return []
        self._polled = now
        try:
            loaded, trouble = self.load(), ""
        except (UsageError, OSError) as error:
            loaded, trouble = [], str(error)
            if trouble != self._trouble:
                log.error("plug-ins are not read: %s", trouble)
        self._trouble = trouble
        return loaded

    def load(self) -> list[str]:
        """Load what is new or was edited and return its names. If an edit is broken, the old version stays. Raises
        UsageError if others on this machine could write a plug-in here."""
        if not self.path.is_dir():
            return []
        status = self.path.stat()
        if os.name != "nt" and (status.st_mode & 0o022 or status.st_uid not in (os.getuid(), 0)):
            raise UsageError(f"plug-in folder {self.path} can be written by others",
                             "a plug-in runs with your rights", f"chmod go-w {self.path}")
        loaded, before = [], {*sys.modules}
        for path, stamp in self._candidates():
            if self._stamps.get(path.name) != stamp:
                self._stamps[path.name] = stamp
                name = f"{self.package}.{path.stem}"
                by_another = name in sys.modules and name not in before  # a plug-in has just imported it
                loaded += [path.stem] if by_another or self._load(path, name) else []
        return loaded

    def _candidates(self):
        for path in sorted(self.path.iterdir()):
            if path.name[0] in "._":
                continue
            if path.suffix == ".py":
                yield path, [_stamp(path)]
            elif (path / "__init__.py").exists():
                yield path, [(str(file), _stamp(file)) for file in sorted(path.rglob("*.py"))]

    def _load(self, path, name):
        """Import one plug-in anew, or report why not and put everything back."""
        import importlib

        what = f"plug-in {path.name} is left out"
        components, written = Component.registry, sys.dont_write_bytecode
        old = _forget_modules(name)
        Component.registry = [cls for cls in components if cls.__module__ not in old]
        sys.dont_write_bytecode = True  # a cache is told by whole seconds; an edit may be faster
        importlib.invalidate_caches()
        try:
            error = run_foreign(what, importlib.import_module, name)
        finally:
            sys.dont_write_bytecode = written
        if error is None:
            self.failed.pop(path.name, None)
            return True
        self.failed[path.name] = describe(error)
        _forget_modules(name)
        sys.modules.update(old)
        Component.registry = components
        return False


def load_plugins(path: str | os.PathLike) -> PluginFolder:
    """Load the plug-ins of a folder, each for itself. Raises UsageError if others may write there."""
    folder = PluginFolder(path)
    folder.load()
    return folder


def load_entry_points(group: str = GROUP) -> list[str]:
    """Load the plug-ins that installed packages offer, each for itself. Returns their names."""
    from importlib.metadata import entry_points

    what = "plug-in {0.name} ({0.value}) is left out"
    points = sorted(entry_points(group=group))
    return [one.name for one in points if run_foreign(what.format(one), one.load) is None]


# -- environment ---------------------------------------------------------------------------------------------

def state_root(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The folder under which nodes keep their environments; `CONCURRENT_SWARM_STATE` names another one."""
    if chosen := environ.get(VARIABLE + "STATE"):
        return Path(chosen).expanduser()
    if platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "concurrent_swarm")
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "concurrent_swarm"
    state = environ.get("XDG_STATE_HOME", "")
    return Path(state if os.path.isabs(state) else Path.home() / ".local" / "state", "concurrent_swarm")


class Environment:
    """The folder of one node: `env / "keys"` is a path in it, `env.config_path` its configuration file. `role` (by
    default the folder's name) names its log file. `claim` finds one that no running node uses; it is free again after
    `release`, at the end of a `with` block, or when the process dies."""

    FOLDERS = ("configs", "logs", "plugins", "apps", "keys", "run")
    PRIVATE = ("keys", "run")

    def __init__(self, path: str | os.PathLike, role: str = ""):
        self.path = Path(path).absolute()
        self.role = role or self.path.name
        self.config_path = self.path / "configs" / "env.ini"
        self._lock = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_) -> None:
        self.release()

    @classmethod
    def claim(cls, role: str, path: str | os.PathLike | None = None) -> Environment:
        """Create and lock `path`, or the first of `<role>`, `<role>-2`, … that is free. Raises UsageError."""
        if path is not None:
            return cls(path, role).create().lock()
        for number in itertools.count(1):
            env = cls(state_root() / (role if number == 1 else f"{role}-{number}"), role).create()
            if env._try_lock():
                return env

    def create(self) -> Environment:
        """Make what is missing. Raises UsageError if the folder is something else, or of another format."""
        version = self.path / "VERSION"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not version.exists():
                others = any(not entry.name.startswith(".VERSION.") for entry in self.path.iterdir())
                if others and not version.exists():  # else another process has just made it
                    raise UsageError(f"{self.path} is not an environment", "it has other files but no VERSION",
                                     "name a new folder")
                fresh = version.with_name(f".VERSION.{os.getpid()}.{threading.get_ident()}")
                fresh.write_text(f"{FORMAT}\n")
                fresh.replace(version)  # first and whole, so that a creation cut short can be repeated
            found = version.read_text(errors="replace").strip()
            if found != str(FORMAT):
                why = f"this version of the framework reads format {FORMAT}"
                raise UsageError(f"{self.path} has format {found[:20]}", why, "name a new folder: --env DIR")
            for name in self.FOLDERS:
                (self.path / name).mkdir(mode=0o700 if name in self.PRIVATE else 0o755, exist_ok=True)
            if not self.config_path.exists():
                Config.write_default(self.config_path)
        except OSError as error:
            raise UsageError(f"cannot use {self.path} as environment", str(error),
                             "name another folder: --env DIR") from error
        return self

    def _try_lock(self):
        file = open(self.path / "lock", "a+b", buffering=0)  # noqa: SIM115 (open as long as the lock is held)
        try:
            if os.name == "nt":
                import msvcrt

                file.seek(1 << 30)  # beyond the text, which others must be able to read
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return False
        except OSError as error:
            file.close()
            why = f"{error.strerror}: this file system may have no locks"
            raise UsageError(f"cannot lock {self.path}", why, "name a local folder: --env DIR") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        self._lock = file
        return True

    def lock(self) -> Environment:
        """Take the exclusive lock. Raises UsageError that names the process which has it."""
        if not self._try_lock():
            pid = (self.path / "lock").read_text(errors="replace").strip() or "unknown"
            raise UsageError(f"environment {self.path} is in use", f"process {pid} has it",
                             "stop that, or name another folder: --env DIR")
        return self

    def release(self) -> None:
        """Give the lock back. The lock file stays: removing it could take the lock from a newcomer."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def backup(self, target: str | os.PathLike | None = None, keys: bool = False) -> Path:
        """Write a zip archive (mode 0600) of all but logs, run and spool, keys only if asked. Returns its path: without
        `target` beside the folder, with the time in its name. The node may be running: databases (`*.db`) are copied by
        SQLite itself, and of what lies beside them (`*.blobs`) nothing goes meanwhile."""
        import zipfile

        name = f"{self.path.name}-{time.strftime('%Y%m%d-%H%M%S')}.zip"
        target = self.path.parent / name if target is None else Path(target).absolute()
        with ExitStack() as stack:
            for folder in self.path.glob("*.blobs"):
                stack.enter_context(may_remove(folder, reads=True))
            out = stack.enter_context(replacing(target, 0o600))
            archive = stack.enter_context(zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED))
            for databases in (True, False):  # first, for what lies beside them is looked at after
                for file in [file for file in self._files(keys) if (file.suffix == ".db") == databases]:
                    if file not in (target, Path(out.name)):
                        with suppress(FileNotFoundError):  # what goes while the node works is not needed
                            self._put_into(archive, file)
        return target

    def _put_into(self, archive, file):
        import zipfile

        name = file.relative_to(self.path).as_posix()
        info = zipfile.ZipInfo.from_file(file, name, strict_timestamps=False)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, _database(file) if file.suffix == ".db" else file.read_bytes())

    def _files(self, keys):
        left_out = {"logs", "run", "spool", "lock"} | (set() if keys else {"keys"})
        temporary, made = (".db-wal", ".db-shm", ".db-journal", ".db.ballast", ".pyc"), {".parts", ".parts-new"}
        for top in sorted(path for path in self.path.iterdir() if path.name not in left_out):
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if file.is_file() and not file.name.endswith(temporary) and made.isdisjoint(file.parts):
                    yield file

    def restore(self, archive: str | os.PathLike) -> Environment:
        """Fill this folder, which must be empty or not exist, from a backup: all of it, or UsageError."""
        import shutil
        import zipfile

        if self.path.exists() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty", "two environments would mix", "name a new folder")
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            with zipfile.ZipFile(archive) as source:
                _extract(source, part)
            if not (part / "VERSION").is_file():
                raise UsageError(f"{archive} is not the backup of an environment", "it has no VERSION file")
            if self.path.exists():
                self.path.rmdir()
            part.rename(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"cannot restore {archive}", str(error)) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return self.create()


@contextmanager
def may_remove(folder: Path, reads: bool = False) -> Iterator[bool]:
    """Whether files of this folder may be removed inside the block: False while a backup of it is made, which `reads`
    them and waits for who removes."""
    if os.name == "nt" or not folder.is_dir():
        yield True
        return
    import fcntl

    opened, locked = os.open(folder, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH if reads else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        yield locked
    finally:
        os.close(opened)


def _database(path):
    """A consistent copy of a SQLite file that others may be writing, as bytes."""
    import sqlite3
    import tempfile
    from contextlib import closing

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.db")
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as sink:
            source.backup(sink)
        return copy.read_bytes()


def _extract(source, folder):
    """Unpack a zip archive whose names all stay inside. Raises UsageError before anything is written."""
    for info in source.infolist():
        parts = info.filename.rstrip("/").split("/")
        if {"", ".", ".."} & {*parts} or any(char in info.filename for char in "\\:\0"):
            raise UsageError(f"{source.filename} has the name {info.filename!r}", "it would leave the folder")
    folder.mkdir(mode=0o700)
    for info in source.infolist():
        target = folder / info.filename
        if info.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read(info))
        target.chmod(info.external_attr >> 16 & 0o777 or 0o600)


# -- logging -------------------------------------------------------------------------------------------------

class _TextFormatter(logging.Formatter):
    """For people: time and message on the stream; date, level, logger and traceback in the file."""

    def __init__(self, full):
        super().__init__()
        self.full = full

    def format(self, record):
        date = "%Y-%m-%d " if self.full else ""
        stamp = time.strftime(date + "%H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        text = printable(record.getMessage())
        error = record.exc_info and record.exc_info[1]
        if self.full:
            trace = "\n" + printable(self.formatException(record.exc_info), keep="\n") if error else ""
            return f"{stamp} {level:7} {record.name}: {text}{trace}"
        level = f"{level}: " if record.levelno >= logging.WARNING else ""
        return f"{stamp} {level}{text}" + (f" ({printable(describe(error))})" if error else "")


class _JsonFormatter(logging.Formatter):
    """For programs: one object per line."""

    def format(self, record):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"ts": stamp, "level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage()}
        line |= {name: getattr(record, name) for name in LOG_EXTRAS if hasattr(record, name)}
        if record.exc_info and record.exc_info[1]:
            line["exc"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LastLines(logging.Handler):
    """Keeps the last lines of the log for whoever looks on: [number, monotonic time, level, logger, text]. `seen`: how
    many there ever were."""

    MOST, LENGTH = 1000, 500  # lines, characters of one

    def __init__(self):
        super().__init__()
        self.seen = 0
        self._lines = deque(maxlen=self.MOST)

    def emit(self, record):
        run_foreign("a line of the log cannot be shown", self._keep, record)  # its arguments may be anything

    def _keep(self, record):
        text, error = record.getMessage()[: self.LENGTH], record.exc_info and record.exc_info[1]
        text = printable(f"{text} ({describe(error)})" if error else text)
        self.seen += 1
        line = [self.seen, round(time.monotonic(), 3), record.levelname.lower(), record.name, text[: self.LENGTH]]
        self._lines.append((record.levelno, line))

    def since(self, number: int, most: int, level: str = "debug") -> list[list]:
        """The lines from a level on that came after this number, at most so many, the last ones."""
        least = logging.getLevelName(level.upper())
        if type(least) is not int:
            raise UsageError(f"{level!r} is no level", "known are: debug, info, warning, error")
        self.acquire()
        try:
            lines = list(self._lines)
        finally:
            self.release()
        found = [line for at, line in lines if line[0] > number and at >= least]
        return found[-most:] if most else []


def configure_logging(env: Environment, format: str = "text", level: str = "info", stream: Any = None) -> ExitStack:
    """Log into `logs/<role>.log`, which is rotated, and to a stream (stderr). For `main()` only. `format` is text or
    json, `level` one of debug, info, warning, error. Closing what this returns ends it."""
    from logging.handlers import RotatingFileHandler

    for name, known in ((format, ("text", "json")), (level, ("debug", "info", "warning", "error"))):
        if name not in known:
            raise UsageError(f"unknown log setting {name}", f"known are: {', '.join(known)}")
    path = env / "logs" / f"{env.role}.log"
    try:
        file = RotatingFileHandler(path, "a", LOG_BYTES, LOG_FILES, "utf-8", errors="backslashreplace")
    except OSError as error:
        raise Error(f"cannot write {path}", str(error)) from error
    root, stack = logging.getLogger(), ExitStack()
    stack.callback(root.setLevel, root.level)
    root.setLevel(level.upper())
    for handler in (file, logging.StreamHandler(stream)):
        handler.setFormatter(_JsonFormatter() if format == "json" else _TextFormatter(full=handler is file))
        root.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(root.removeHandler, handler)
    return stack


# -- statistics ----------------------------------------------------------------------------------------------

MANY = 512  # samples of a name that wait until they are sorted in together
FINEST = 47  # bits of a double that a bucket leaves out: it keeps sign, exponent and 5 bits of the fraction
BUCKETS = 512  # of a name, at most
NAMES = 1000  # that one Stats knows, at most
OTHERS = "(other names)"  # which has the samples of all further ones
STEPS = 200  # of a name that restarts with each step, kept
LONGEST_NAME = 100  # characters
MOST_ROWS = 2000  # figures of steps that a client is told
LARGEST = sys.float_info.max  # where sums stop
BOUNDS = (1e-5, 1e-4, 1e-3, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)  # seconds, of histograms
KEEP_WITHIN = 5.0  # seconds that a node that ends waits for its figures to be kept


class Figures(NamedTuple):
    """What is known of the samples of one name. p50, p95 and p99: so many per cent of them are not above it."""

    n: int
    sum: float
    avg: float
    min: float
    max: float
    last: float
    p50: float
    p95: float
    p99: float


class Histogram(NamedTuple):
    """Of `n` samples with this sum: how many are up to each of some bounds."""

    counts: dict[float, int]
    n: int
    sum: float


class Series:
    """The samples of one name: count, sum, bounds and a histogram with 32 buckets between a number and its double.

    A quantile is off by at most 1/64 of the sample that it stands for, while all samples lie in 512 buckets: so it is
    if they have one sign and the largest is up to 32,768 times the smallest. Beyond that, two buckets become one, which
    doubles this bound, as often as needed. All other figures are exact, as far as sums of doubles are.

    >>> one = Series()
    >>> one.add([1.0, 2.0, 40.0])
    >>> one.figures().max, one.quantile(0.5)
    (40.0, 2.03125)
    """

    __slots__ = ("counts", "known", "last", "max", "min", "n", "shift", "steps", "sum", "waiting")

    def __init__(self):
        self.waiting: list[float] = []  # samples that are not sorted in yet; any thread appends
        self.steps: dict[int, Figures] | None = None  # of earlier steps, if it restarts with each
        self.clear()

    def clear(self) -> None:
        """Forgets the samples that are sorted in."""
        self.n, self.sum, self.last, self.min, self.max = 0, 0.0, 0.0, math.inf, -math.inf
        self.known: Figures | None = None  # of as many samples as it says
        self.shift, self.counts = FINEST, Counter()

    def add(self, values: Iterable[float], weights: Iterable[int] | None = None) -> None:
        """Takes samples in; with `weights`, each as often as its weight says."""
        values = array("d", values)
        if not values:
            return
        low, high = min(values), max(values)
        buckets = map(rshift, memoryview(values).cast("B").cast("q"), itertools.repeat(self.shift))
        if weights is not None:
            weights = list(weights)
            for bucket, weight in zip(buckets, weights, strict=True):
                self.counts[bucket] += weight
            self._note(sum(weights), sum(map(mul, values, weights)), low, high, values[-1])
            return
        if low == high and low:  # there are a positive and a negative zero
            self.counts[next(buckets)] += len(values)
        else:
            self.counts.update(buckets)
        self._note(len(values), sum(values), low, high, values[-1])

    def merge(self, other: Series) -> None:
        """Takes the samples of another one in, as later ones."""
        if other.n:
            self._coarsen(other.shift)
            for bucket, count in other.counts.items():
                self.counts[bucket >> self.shift - other.shift] += count
            self._note(other.n, other.sum, other.min, other.max, other.last)

    def _note(self, n, total, low, high, last):
        self.n, self.sum = self.n + n, min(max(self.sum + total, -LARGEST), LARGEST)
        self.min, self.max, self.last = min(self.min, low), max(self.max, high), last
        while len(self.counts) > BUCKETS:
            self._coarsen(self.shift + 1)

    def _coarsen(self, shift):
        if shift > self.shift:
            counts: Counter = Counter()
            for bucket, count in self.counts.items():
                counts[bucket >> shift - self.shift] += count
            self.shift, self.counts = shift, counts

    def settle(self) -> Series:
        """Sorts in what waits; for one thread at a time."""
        if batch := self.waiting[:]:
            del self.waiting[: len(batch)]
            self.add(batch)
        return self

    def quantile(self, share: float) -> float:
        """About the smallest sample that so large a share (0..1) of all is not above."""
        return self.quantiles(share)[0]

    def quantiles(self, *shares: float) -> list[float]:
        """The same for several, the smallest first; zeros if there are no samples."""
        if not self.n:
            return [0.0] * len(shares)
        negative = 1 << 63 - self.shift  # buckets of these are -negative..-1, those near zero first
        order = sorted((~(one + negative) if one < 0 else one, one) for one in self.counts)
        found, passed, ordered = [], 0, iter(order)
        for share in shares:
            while passed < max(1, math.ceil(share * self.n)):
                _, bucket = next(ordered)
                passed += self.counts[bucket]
            found.append(min(max(self._middle(bucket, negative), self.min), self.max))
        return found

    def _middle(self, bucket, negative):
        bits = (bucket + negative if bucket < 0 else bucket) << self.shift | 1 << self.shift - 1
        (size,) = struct.unpack("d", struct.pack("Q", bits if bits >> self.shift else 0))
        return -size if bucket < 0 else size

    def histogram(self, bounds: Iterable[float] = BOUNDS) -> Histogram:
        """How many samples are up to each of some bounds. Those in the bucket of a bound count as such: then the counts
        never fall, not even when two buckets become one."""
        ends = [*bounds]
        last = map(rshift, memoryview(array("d", ends)).cast("B").cast("q"), itertools.repeat(self.shift))
        counts = [sum(count for bucket, count in self.counts.items() if bucket <= end) for end in last]
        return Histogram(dict(zip(ends, counts, strict=True)), self.n, self.sum)

    def figures(self) -> Figures:
        """What is known of the samples. Raises ZeroDivisionError if there are none."""
        if self.known is None or self.known.n != self.n:
            average = min(max(self.sum / self.n, self.min), self.max)
            quantiles = self.quantiles(0.5, 0.95, 0.99)
            self.known = Figures(self.n, self.sum, average, self.min, self.max, self.last, *quantiles)
        return self.known

    def pack(self) -> list:
        """All of it, to travel as JSON."""
        flat = [number for pair in self.counts.items() for number in pair]
        return [self.steps is not None, self.n, self.sum, self.min, self.max, self.last, self.shift, flat]

    @classmethod
    def unpack(cls, row: Any) -> Series:
        """What `pack` gave, from a stranger. Raises ValueError."""
        if type(row) is not list or [*map(type, row)] != [bool, int, float, float, float, float, int, list]:
            raise ValueError("the figures of a name are a flag, six numbers and a list")
        self = cls()
        per_step, self.n, self.sum, self.min, self.max, self.last, self.shift, flat = row
        self.steps = {} if per_step else None
        self.counts = Counter(dict(zip(flat[::2], flat[1::2], strict=True)))
        whole = {*map(type, flat)} == {int} and min(flat[1::2]) > 0 and sum(flat[1::2]) == self.n < 1 << 53
        if not (whole and FINEST <= self.shift <= 63 and 2 * BUCKETS >= len(flat) == 2 * len(self.counts)):
            raise ValueError("the histogram of a name is not whole")
        most = 1 << 63 - self.shift
        if not (-most <= min(flat[::2]) and max(flat[::2]) < most and math.isfinite(self.sum)
                and -LARGEST <= self.min <= self.last <= self.max <= LARGEST):
            raise ValueError("the figures of a name are not within bounds")
        return self


class Stats:
    """Figures by name, from any thread: `stats.add_avg("rating", 0.3)`, then `stats.rating.max`.

    Samples accumulate, or restart with each step where `per_step` says so; those of the last 200 steps are kept.

    >>> stats = Stats()
    >>> stats.add_avg("load", -2); stats.add_avg("load", 0)
    >>> stats.load
    Figures(n=2, sum=-2.0, avg=-1.0, min=-2.0, max=0.0, last=0.0, p50=-2.0, p95=0.0, p99=0.0)
    """

    _instance: Stats | None = None

    def __init__(self, names: int = NAMES):
        self._most, self._step, self._series = names, 0, {}
        self._lock, self._started = threading.RLock(), threading.local()

    @classmethod
    def getInstance(cls) -> Stats:
        """The one of this process: of its node, in a worker of the task that runs, in a host of the task system."""
        Stats._instance = Stats._instance or cls()
        return Stats._instance

    def stand_in(self) -> Stats:
        """Be what `getInstance` gives from now on; returns what it gave before."""
        before, Stats._instance = Stats.getInstance(), self
        return before

    def __getattr__(self, name):
        if name.startswith("_") or not (found := self._figures(name)):
            raise AttributeError(f"no samples of {name}")
        return found

    def __reduce__(self):
        return Stats, ()  # of an object that goes elsewhere: samples stay where they were taken

    @property
    def used(self) -> bool:
        """Whether there are any names."""
        return bool(self._series)

    def add_avg(self, name: str, value: float = 0, per_step: bool = False) -> None:
        """Add a sample. Raises ValueError unless it is a finite number."""
        try:
            if not isfinite(value):
                self.number(name, value)
            one = self._series[name]
            if per_step and one.steps is None:
                one.steps = {}
        except KeyError:
            one = self._declared(name, per_step)
        except OverflowError:
            self.number(name, value)
        one.waiting.append(value)
        if len(one.waiting) >= MANY:
            self._settled(one)

    @staticmethod
    def number(name: str, value: Any) -> float:
        """A sample as it is kept. Raises ValueError unless it is a finite number."""
        with suppress(OverflowError):  # a whole number larger than any double
            if isfinite(value):
                return float(value)
        raise ValueError(f"{name}: {str(value)[:50]} is not a finite number")

    def declare(self, name: str, per_step: bool = False) -> None:
        """Say before its first sample that a name restarts with each step. Raises ValueError for what is no name."""
        self._declared(name, per_step)

    def _declared(self, name, per_step):
        if type(name) is not str or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{str(name)[:LONGEST_NAME]!r} is no name: up to {LONGEST_NAME} printable characters")
        with self._lock:
            name = name if name in self._series or len(self._series) < self._most else OTHERS
            one = self._series.get(name) or self._series.setdefault(name, Series())
            if per_step and one.steps is None:
                one.steps = {}
            return one

    def _settled(self, one):
        with self._lock:
            return one.settle()

    def add_many(self, name: str, values: Iterable[float], weights: Iterable[int] | None = None) -> None:
        """Add samples that are finite numbers; with `weights`, each as often as its weight says."""
        one = self._declared(name, False)
        with self._lock:
            one.settle().add(values, weights)

    def merge(self, name: str, series: Series) -> None:
        """Add the samples of a series."""
        one = self._declared(name, series.steps is not None)
        with self._lock:
            one.settle().merge(series)

    def replace(self, name: str, series: Series) -> None:
        """Put these samples in the place of those of a name."""
        one = self._declared(name, series.steps is not None)
        with self._lock:
            one.clear()
            one.merge(series)

    def series(self) -> dict[str, Series]:
        """What has samples, by name, all of them sorted in."""
        with self._lock:
            return {name: one for name, one in sorted(self._series.items()) if one.settle().n}

    def pack(self, told: dict[str, int] | None = None) -> dict[str, list]:
        """All series, to travel as JSON; with `told`, only those that have grown since it was used last."""
        told = {} if told is None else told
        with self._lock:
            found = self.series()
            marks = {name: (one.steps is not None and self._step, one.n) for name, one in found.items()}
            rows = {name: found[name].pack() for name, mark in marks.items() if told.get(name) != mark}
            told.update(marks)
            return rows

    def take_in(self, rows: Any, replacing: bool = False) -> None:
        """Add what `pack` gave, from a stranger, or put it in the place of what is here. Raises ValueError if it is not
        whole; then nothing of it counts."""
        if type(rows) is not dict or len(rows) > NAMES + 1 or not all(
                0 < len(name) <= LONGEST_NAME and name.isprintable() for name in rows):
            raise ValueError("figures are rows by name")
        for name, one in [(name, Series.unpack(row)) for name, row in rows.items()]:
            (self.replace if replacing else self.merge)(name, one)

    def next_step(self, step: int) -> None:
        """A step begins: what restarts with each becomes history."""
        with self._lock:
            for name, one in self.series().items():
                if one.steps is not None:
                    kept = self._declared(name, True).steps
                    kept[self._step] = one.figures()
                    while len(kept) > STEPS:
                        del kept[min(kept)]
            for one in self._series.values():
                if one.steps is not None:
                    one.clear()
            self._step = step

    def steps(self, name: str) -> dict[int, Figures]:
        """The figures of each step, this one included, of a name that restarts with each."""
        with self._lock:
            one, now = self._series.get(name), self.series().get(name)
            earlier = one.steps if one and one.steps else {}
            return {**earlier, **({self._step: now.figures()} if now and now.steps is not None else {})}

    def rows(self) -> list[tuple[str, int | None, Figures]]:
        """(name, step, figures) of all that is known; the step is None for what accumulates."""
        with self._lock:
            rows = [(name, None, one.figures()) for name, one in self.series().items() if one.steps is None]
            names = {name for name, one in {**self._series, **self.series()}.items() if one.steps is not None}
            return rows + [(name, step, one) for name in sorted(names) for step, one in self.steps(name).items()]

    def _figures(self, name):
        with self._lock:
            one = self.series().get(name)
            return one.figures() if one else None

    def histogram(self, name: str, bounds: Iterable[float] = BOUNDS) -> Histogram:
        """See `Series.histogram`; of a name without samples too."""
        with self._lock:
            return self.series().get(name, Series()).histogram(bounds)

    def dump(self, name: str) -> dict[str, float]:
        """The figures of one name. Raises AttributeError if it has no samples."""
        return (self._figures(name) or getattr(self, name))._asdict()

    def dump_all(self) -> dict[str, dict[str, float]]:
        """The figures of all names."""
        with self._lock:
            return {name: one.figures()._asdict() for name, one in self.series().items()}

    def dump_stats(self, log: logging.Logger) -> None:
        """Log the figures of each name."""
        for name, one in self.dump_all().items():
            log.info("%s: %s", name, ", ".join(f"{key} {value:.6g}" for key, value in one.items()))

    def reset(self) -> None:
        """Forget all samples and names."""
        self._series = {}

    def time_push(self) -> None:
        """Start a stopwatch of this thread; they nest."""
        self._started.__dict__.setdefault("stack", []).append(time.perf_counter())

    def time_pop(self, name: str = "") -> float:
        """Stop the latest stopwatch of this thread: its seconds, a sample of `name` if one is given. Raises UsageError
        if there is none."""
        stack = self._started.__dict__.get("stack")
        if not stack:
            raise UsageError("no stopwatch runs in this thread", "each time_pop ends a time_push")
        seconds = time.perf_counter() - stack.pop()
        if name:
            self.add_avg(name, seconds)
        return seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The seconds that the block takes become a sample of `name`."""
        self.time_push()
        try:
            yield
        finally:
            self.time_pop(name)


def check_names(rows: Any) -> None:
    """Raises ValueError if somebody else's figures have names of the swarm's own."""
    if type(rows) is dict and any(name.startswith("swarm.") for name in rows):
        raise ValueError("names that begin with swarm. are the swarm's own")


class SystemStats(Stats):
    """Figures of a task system: what its tasks have recorded and, in `hooks`, what its hooks have. These their host
    says as a whole each time, since another host that takes its place repeats what the first one did."""

    def __init__(self, names: int = NAMES):
        super().__init__(names)
        self.hooks = Stats(names)
        self.step = 0  # the highest that it has reached

    def series(self) -> dict[str, Series]:
        """What has samples, by name: those of tasks and of hooks together."""
        with self._lock, self.hooks._lock:  # what is merged here must not grow meanwhile
            found = super().series()
            for name, one in self.hooks.series().items():
                both = Series()
                for part in (found.get(name), one):
                    if part:
                        both.merge(part)
                        both.steps = both.steps if part.steps is None else {}
                found[name] = both
            return dict(sorted(found.items()))

    def hooks_say(self, step: int, rows: Any) -> None:
        """What all hooks have recorded until now, in a step. Raises ValueError if that is not whole."""
        check_names(rows)
        rows = rows if type(rows) is not dict or step == self.step else {
            name: row for name, row in rows.items() if not (type(row) is list and row and row[0] is True)}
        self.hooks.take_in(rows, replacing=True)

    def next_step(self, step: int) -> None:
        """A step begins, if none as high has before."""
        if step > self.step:
            super().next_step(step)
            self.hooks.next_step(step)
            self.step = step

    def reset(self) -> None:
        """Forget all samples and names."""
        super().reset()
        self.hooks.reset()

    def told(self) -> dict[str, dict]:
        """What its client is told at the end."""
        rows = self.rows()
        return {"measured": by_name(rows), "measured_steps": by_name(rows[-MOST_ROWS:], per_step=True)}


class IStatsBackend(Interface):
    """Where the figures of nodes stay when these have gone. Called from several threads; may take its time."""

    def store(self, folder, rows):
        """Keep rows of (run, scope, name, step, at, figures) for the environment `folder`: a later row takes the place
        of an earlier one with the same run, scope, name and step. `run` and `at` are seconds since 1970, `step` is None
        for what accumulates, `figures` are `Figures`."""

    def load(self, folder, scope):
        """Return such rows: those of the latest run that has measured this scope; of all scopes if it is None."""


class SQLiteStats(Component):
    """Figures in `stats.db` in the folder of the node."""

    implements(IStatsBackend)
    rows = IntItem("stats", "rows", 100_000, "figures to keep in stats.db, the latest ones", minimum=1)
    days = FloatItem("stats", "days", 30.0, "how long to keep them", minimum=0)
    COLUMNS = ("run REAL", "scope TEXT", "name TEXT", "step INTEGER", "at REAL", "n INTEGER",
               *(f"{name} REAL" for name in Figures._fields[1:]))

    @contextmanager
    def _opened(self, folder):
        import sqlite3

        base = sqlite3.connect(Path(folder) / "stats.db", timeout=10.0)
        try:
            with base:
                base.execute(f"CREATE TABLE IF NOT EXISTS figures ({', '.join(self.COLUMNS)}, "
                             "PRIMARY KEY (scope, run, name, step))")
                yield base
        except sqlite3.Error as error:
            what = f"the figures in {Path(folder) / 'stats.db'} cannot be used ({error})"
            raise Error(what, "it is damaged, or its disk full", "remove it, or set stats.flush_every=0") from error
        finally:
            base.close()

    def store(self, folder, rows):
        marks = ", ".join("?" * len(self.COLUMNS))
        flat = [(run, scope, name, -1 if step is None else step, at, min(n, (1 << 63) - 1), *one)
                for run, scope, name, step, at, (n, *one) in rows]
        with self._opened(folder) as base:
            base.executemany(f"INSERT OR REPLACE INTO figures VALUES ({marks})", flat)
            oldest = max((row[4] for row in flat), default=0.0) - self.days * 86400
            base.execute("DELETE FROM figures WHERE at < ?", (oldest,))
            if base.execute("SELECT COUNT(*) FROM figures").fetchone()[0] > self.rows:
                base.execute("DELETE FROM figures WHERE rowid NOT IN (SELECT rowid FROM figures ORDER BY at DESC, "
                             "rowid DESC LIMIT ?)", (self.rows,))

    def load(self, folder, scope):
        if not (Path(folder) / "stats.db").exists():
            return []
        with self._opened(folder) as base:
            found = base.execute("SELECT * FROM figures AS one WHERE scope = coalesce(?, scope) AND run = (SELECT "
                                 "MAX(run) FROM figures WHERE scope = one.scope) ORDER BY scope, name, step", (scope,))
            return [(*row[:3], None if row[3] < 0 else row[3], row[4], Figures(*row[5:])) for row in found]


def by_name(rows: Iterable[tuple[str, int | None, Figures]], per_step: bool = False) -> dict[str, dict]:
    """What `Stats.rows` gives as {name: figures}, of what restarts with each step those of the latest one; with
    `per_step`, {name: {step: figures}} of that alone."""
    found: dict[str, dict] = {}
    for name, step, figures in rows:  # the later steps come later
        if not per_step:
            found[name] = figures._asdict()
        elif step is not None:
            found.setdefault(name, {})[str(step)] = figures._asdict()
    return found


class StatsKeeper(threading.Thread):
    """Hands what a node measures to a backend, every so often and at the end, in a thread that may wait for a disk.

    `scopes()` gives the node's `Stats` by scope, and `every()` the seconds; 0: never. `after()` is called each time.
    """

    def __init__(self, backend: Callable[[], Any], folder: Path, scopes: Callable[[], dict[str, Stats]],
                 every: Callable[[], float], after: Callable[[], Any] = lambda: None):
        super().__init__(name="stats", daemon=True)
        self._after = after
        self.run_at = time.time()  # names this life of the node; also shows when it was
        self._backend, self._folder, self._scopes, self._every = backend, folder, scopes, every
        self._stopped, self._failed = threading.Event(), False
        self._kept: dict[tuple, int] = {}  # (scope, name, step) -> samples, of all that the backend has

    def run(self) -> None:
        """Until `close`."""
        began = time.monotonic()
        while not self._stopped.wait(POLL_SECONDS):
            if time.monotonic() - began >= self._every() * (10 if self._failed else 1):
                self.flush()
                began = time.monotonic()

    def close(self) -> None:
        """Hands over what is new since the last time; returns when the backend has it, or has taken too long."""
        self._stopped.set()
        if self.is_alive():
            self.join(KEEP_WITHIN)
        if not self.is_alive():
            self.flush()

    def _store(self, rows):
        if backend := self._backend():
            backend.store(self._folder, rows)

    def flush(self) -> None:
        """Hands over what is new since the last time. What goes wrong is logged, and tried again later."""
        at, rows, kept = time.time(), [], {}
        for scope, stats in self._scopes().items() if self._every() else ():
            for name, step, figures in stats.rows():
                kept[scope, name, step] = figures.n
                if self._kept.get((scope, name, step)) != figures.n:
                    rows.append((self.run_at, scope, name, step, at, figures))
        if rows:
            self._failed = bool(run_foreign("statistics", self._store, rows))
        if not self._failed:
            self._kept = kept
        self._after()


# -- metrics -------------------------------------------------------------------------------------------------

PREFIX = "concurrent_swarm_"  # of metrics' names; what every process has goes by the names that are usual for it
_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = _IN_HELP | {ord('"'): r"\""}


class Metric(NamedTuple):
    """What is measured of one thing, for Prometheus. `samples` are (labels, value or `Histogram`)."""

    name: str
    help: str
    samples: list

    @property
    def kind(self) -> str:
        """Its type: a name tells a counter."""
        if self.samples and isinstance(self.samples[0][1], Histogram):
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


def metric(name: str, help: str, value: Any, **labels: str) -> Metric:
    """A metric with one sample. A name on _total is a counter's."""
    return Metric(name, help, [(labels, value)])


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Metrics as Prometheus reads them (text format 0.0.4)."""
    lines = []
    for one in metrics:
        name = one.name if one.name.startswith("process_") else PREFIX + one.name
        lines += [f"# HELP {name} {one.help.translate(_IN_HELP)}", f"# TYPE {name} {one.kind}"]
        for labels, value in one.samples:
            for suffix, more, number in _lines_of(value):
                lines.append(f"{name}{suffix}{_labelled({**labels, **more})} {_number(number)}")
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _lines_of(value: Any) -> Iterator[tuple[str, dict, float]]:
    if not isinstance(value, Histogram):
        yield "", {}, value
        return
    for bound, count in (*value.counts.items(), (math.inf, value.n)):
        yield "_bucket", {"le": _number(float(bound))}, count
    yield "_sum", {}, value.sum
    yield "_count", {}, value.n


def _labelled(labels: dict) -> str:
    pairs = ",".join(f'{name}="{str(value).translate(_IN_LABEL)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if value != value else repr(value))


# -- command line --------------------------------------------------------------------------------------------

class ArgumentParser(argparse.ArgumentParser):
    """Raises UsageError instead of ending the process, and says which option or value was probably meant. `page`: what
    `--help` prints in place of a line for each option."""

    def __init__(self, page: str = "", **options):
        super().__init__(allow_abbrev=False, **options)
        self._page = page

    def format_help(self):
        """The text of `--help`."""
        return self._page or super().format_help()

    def error(self, message):
        given = re.fullmatch(r"argument (\S+): ignored explicit argument '(.*)'", message)
        if given:
            word = "=".join(given.groups())
            message = f"{word}: {did_you_mean(word, self._option_string_actions) or 'this option has no value'}"
        raise UsageError(message.removeprefix("argument "), fix=f"{self.prog} --help")

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            name, known = "/".join(action.option_strings) or "command", list(map(str, action.choices))
            raise UsageError(f"{name} {value}: {did_you_mean(str(value), known) or 'unknown'}",
                             f"known are: {', '.join(known)}", f"{self.prog} --help")

    def parse_args(self, args=None, namespace=None):
        """As in argparse, but raises UsageError."""
        found, extra = self.parse_known_args(args, namespace)
        if extra:
            unknown = next((word for word in extra if word.startswith("-")), extra[0]).partition("=")[0]
            hint = did_you_mean(unknown, self._option_string_actions)
            raise UsageError(f"{unknown}: {hint or 'unknown'}", fix=f"{self.prog} --help")
        return found


def run_main(function: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run the body of a `main`; returns its exit code. An error goes to stderr; traceback if `--debug`."""
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: what a terminal cannot show ends nothing
    try:
        return function(argv) or EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as end:  # argparse after --help
        return end.code if isinstance(end.code, int) else EXIT_OK if end.code is None else EXIT_FAILED
    except Exception as error:  # the last border: a person reads what is left
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_FAILED
        if "--debug" in argv:
            import traceback

            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and error.name == "zmq":
            fix = f"{sys.executable} -m pip install pyzmq, or activate the environment that has it"
            error = Error("pyzmq is not installed for this Python", "nodes speak to each other through it", fix)
        elif not isinstance(error, Error):
            error = Error(f"internal error: {describe(error)}", "a fault in the program", "add --debug")
        print(error.text(), file=sys.stderr)
        return error.exit_code


def _nobody_reads() -> bool:
    """Whether the other end of stdout is closed, as with `| head -1`: no error of ours. What is left goes nowhere."""
    import select

    poller = select.poll()
    poller.register(sys.stdout, 0)
    closed = any(events & select.POLLERR for _, events in poller.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def shorten(fields: list[str], width: int) -> str:
    """A line of at most `width` columns: fields are dropped from the right, the last one last if it is a time; of what
    is left, the beginning.

    >>> shorten(["step 2", "2,411/4,000", "166/s", "ETA 10 s"], 30)
    'step 2  2,411/4,000  ETA 10 s'
    >>> shorten(["the local master is starting", "12 s"], 25)
    'the local master is  12 s'
    """
    *fields, last = fields
    if fields and re.match(r"ETA|\d+ s\b", last):
        last = f"  {last}"
    else:
        fields, last = [*fields, last], ""
    room = max(width - len(last), 0)
    while len(fields) > 1 and len("  ".join(fields)) > room:
        del fields[-1]
    return ("  ".join(fields)[:room].rstrip() + last)[: max(width, 0)]


class Terminal:
    """Where a person reads: lines, colours, a bar, and one status line that is rewritten in place; elsewhere a line
    every 10 s. It is a stream too, for log lines. Colour: `--color always|never`, else not with NO_COLOR, else with
    FORCE_COLOR (not 0), else on a terminal that is not dumb."""

    EVERY = 10.0  # seconds between two status lines in a file or pipe
    PATIENT = 1.0  # seconds that a person looks at a terminal on which nothing happens

    def __init__(self, stream: Any = None, color: str = "auto", environ: Mapping[str, str] | None = None):
        environ = os.environ if environ is None else environ
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty() and environ.get("TERM") != "dumb"
        forced = environ.get("FORCE_COLOR", "") not in ("", "0")
        wanted = not environ.get("NO_COLOR") and (forced or self.live)
        self.color = wanted if color == "auto" else color == "always"
        self.blocks = "█░"
        try:
            self.blocks.encode(getattr(self.stream, "encoding", None) or "ascii")
        except UnicodeEncodeError:
            self.blocks = "#-"
        self._shown, self._next = "", -math.inf
        self._lock = threading.RLock()  # who waits speaks from a thread of its own

    def paint(self, text: str, code: str) -> str:
        """Text in a colour, given as the number of an escape sequence (`31` is red), where colour is on."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def bar(self, share: float, width: int = 20) -> str:
        """A bar of `width` columns, of which the `share` (0..1) is full."""
        full = round(min(max(share, 0), 1) * width)
        return self.blocks[0] * full + self.blocks[1] * (width - full)

    def beside(self, left: str, right: str) -> str:
        """Both in a line, or in two where a terminal is too narrow for that."""
        fits = not self.stream.isatty() or len(left) + 4 + len(right) <= self._columns()
        return f"{left}    {right}".rstrip() if fits else f"{left}\n    {right}"

    @staticmethod
    def _columns() -> int:
        from shutil import get_terminal_size  # slow to import

        return get_terminal_size().columns or 80

    def status(self, line: str | list[str], now: float | None = None) -> None:
        """Show how it stands, as a line or as fields that may be dropped. `now`: monotonic seconds."""
        fields = [line] if isinstance(line, str) else line
        if self.live:
            text = shorten(fields, self._columns() - 1)
            with self._lock:
                if text == self._shown:
                    return
                self.stream.write("\r" + text.ljust(len(self._shown)) + "\r" * (not text))
                self._shown = text
        else:
            now = time.monotonic() if now is None else now
            if now < self._next:
                return
            self._next = now + self.EVERY
            self.stream.write("  ".join(fields) + "\n")
        self.stream.flush()

    def write(self, text: str) -> int:
        """Write text, the status line out of its way."""
        with self._lock:
            if self._shown:
                self.status("")
            return self.stream.write(text)

    @contextmanager
    def waiting(self, what: str, silent: float = 3.0) -> Iterator[None]:
        """Says that `what` is waited for in the `with` block: on a terminal each second from the first on, and nothing
        of it stays; elsewhere in a line of the log, once it takes `silent` seconds."""
        over, began = threading.Event(), time.monotonic()

        def speak():
            wait = self.PATIENT if self.live else silent
            while not over.wait(wait):
                if not self.live:
                    log.warning("still waiting: %s", what)
                    return
                self.status([what, f"{time.monotonic() - began:.0f} s"])

        thread = threading.Thread(target=speak, name=f"says: {what}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self.live:
                self.write("")

    def flush(self) -> None:
        """Hand on what was written."""
        self.stream.flush()
