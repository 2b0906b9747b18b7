"""Configuration: items, where values come from, reload, files in every bad shape."""

import os
import random
from pathlib import Path

import pytest
from concurrent_swarm.components import (
    BoolItem,
    ChoiceItem,
    Config,
    FloatItem,
    HostItem,
    IntItem,
    ListItem,
    PathItem,
    TextItem,
    UsageError,
)

from concurrent_swarm import components


class Node:
    """Anything with a `config` may have items."""

    def __init__(self, config):
        self.config = config


@pytest.fixture(autouse=True)
def items():
    """The items of these tests, in a registry of their own."""
    with components.isolated_registry():
        Node.port = IntItem("node", "port", 8080, "where people connect", minimum=0, maximum=65535)
        Node.name = TextItem("node", "name", "unnamed")
        Node.gzip = BoolItem("node", "use_gzip", True, "compress large answers")
        Node.timer = FloatItem("node", "timer", 5.0, minimum=0.1)
        Node.tags = ListItem("node", "tags", "")
        Node.master = HostItem("node", "master", "localhost", "whom to join", port=8080)
        Node.work = PathItem("node", "work")
        Node.mode = ChoiceItem("node", "mode", "pull", ["push", "pull"])
        yield


@pytest.fixture
def ini(tmp_path):
    return tmp_path / "env.ini"


def write(path, text):
    """Write a file so that its stamp surely differs."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    stat = path.stat()
    write.tick = getattr(write, "tick", 0) + 1
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + write.tick))


def config(path=None, *arguments, environ=None, **options):
    return Config(path, arguments, environ or {}, **options)


# -- typed items


def test_every_item_has_its_default_without_any_file(tmp_path):
    node = Node(config(folder=tmp_path))
    assert (node.port, node.name, node.gzip, node.timer) == (8080, "unnamed", True, 5.0)
    assert (node.tags, node.master, node.work, node.mode) == ([], ("localhost", 8080), None, "pull")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", " 9090 ", 9090),
        ("name", "Zoë = 50 %", "Zoë = 50 %"),
        ("timer", "1e3", 1000.0),
        ("tags", "a, b,, c\n d", ["a", "b", "c", "d"]),
        ("master", "node01", ("node01", 8080)),
        ("master", "node01:1", ("node01", 1)),
        ("master", "[fe80::1]:9", ("fe80::1", 9)),
        ("master", "", None),
        ("mode", "PUSH", "push"),
        *((("gzip", word, True)) for word in ("1", "true", "YES", "y", "on", "enabled", "ja", "si")),
        *((("gzip", word, False)) for word in ("0", "false", "No", "n", "off", "disabled", "nein")),
    ],
)
def test_a_text_becomes_a_value_of_its_type(ini, name, text, value):
    key = getattr(Node, name).key
    write(ini, f"[node]\n{key} = " + text.replace("\n", "\n  "))
    assert getattr(Node(config(ini)), name) == value


def test_a_relative_path_begins_at_the_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    node = Node(config(folder=tmp_path))
    for text, path in (("a/b", tmp_path / "a/b"), ("/x", Path("/x")), ("~/y", Path("/home/ada/y"))):
        node.config.set("node", "work", text)
        assert node.work == path


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("port", "many", "a whole number from 0 up to 65535"),
        ("port", "65536", "a whole number from 0 up to 65535"),
        ("port", "1.5", "a whole number"),
        ("timer", "nan", "a number from 0.1"),
        ("timer", "inf", "a number from 0.1"),
        ("timer", "0", "a number from 0.1"),
        ("use_gzip", "maybe", "true or false"),
        ("mode", "pul", "one of push, pull, did you mean pull?"),
        ("master", "http://x", "HOST or HOST:PORT"),
        ("master", "x:70000", "HOST or HOST:PORT"),
    ],
)
def test_a_bad_value_is_one_line_with_file_line_and_what_is_allowed(ini, name, text, says):
    write(ini, f"# a comment\n[node]\n\n{name} = {text}\n")
    with pytest.raises(UsageError) as caught:
        config(ini)
    assert caught.value.what.startswith(f"{ini}:4: [node] {name} = {text} is not {says}")


@pytest.mark.parametrize("text", ["", ":80", "a:b", "a b:1", "[::1", "x:-1", "host:٣", "::1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError):
        components.parse_host(text)


# -- where a value comes from


def test_argument_beats_environment_beats_file_beats_default(ini):
    write(ini, "[node]\nport = 1\nname = file\n\n[NODE2]\n")
    environ = {"CONCURRENT_SWARM_NODE_PORT": "2", "CONCURRENT_SWARM_NODE_NAME": "variable"}
    found = config(ini, "Node.PORT=3", environ=environ)
    node = Node(found)
    assert (node.port, node.name, node.timer) == (3, "variable", 5.0)
    origins = [found.origin(item) for item in (Node.port, Node.name, Node.timer)]
    assert origins == ["argument", "environment", "default"]
    del environ["CONCURRENT_SWARM_NODE_NAME"]
    assert node.name == "file" and found.origin(Node.name) == f"file {ini}:3"


def test_a_file_inherits_from_the_one_it_is_based_on(tmp_path):
    write(tmp_path / "base.ini", "[node]\nport = 1\nname = base\n")
    write(tmp_path / "top.ini", "[baseon]\nfile = base.ini\n[node]\nport = 2\n")
    found = config(tmp_path / "top.ini")
    assert (Node(found).port, Node(found).name) == (2, "base")
    assert found.origin(Node.name) == f"file {tmp_path / 'base.ini'}:3"
    write(tmp_path / "base.ini", "[node]\nname = edited\n")
    assert found.poll(1.0) == {("node", "name")}


def test_files_based_on_each_other_in_a_circle_are_an_error(tmp_path):
    write(tmp_path / "a.ini", "[baseon]\nfile = b.ini\n")
    write(tmp_path / "b.ini", "[baseon]\nfile = a.ini\n")
    with pytest.raises(UsageError, match="circle"):
        config(tmp_path / "a.ini")


def test_all_mistakes_are_told_at_once(ini):
    write(ini, "[node]\nport = x\ntimer = y\n")
    with pytest.raises(UsageError) as caught:
        config(ini, "node.mode=z", environ={"CONCURRENT_SWARM_NODE_USE_GZIP": "w"})
    assert caught.value.what == "4 mistakes in the configuration"
    starts = [line.split(": [")[0] for line in caught.value.why.splitlines()]
    assert starts == ["--set node.mode", "CONCURRENT_SWARM_NODE_USE_GZIP", f"{ini}:2", f"{ini}:3"]


def test_an_unknown_key_warns_in_a_file_but_is_an_error_in_an_argument(ini, caplog):
    write(ini, "[node]\nprot = 1\n\n[nonsense]\nzzz = 2\n")
    found = config(ini)
    assert found.check_unknown() == [
        f"{ini}:2: unknown key [node] prot, did you mean node.port?",
        f"{ini}:5: unknown key [nonsense] zzz",
    ]
    assert len(caplog.records) == 2
    with pytest.raises(UsageError, match=r"--set node\.prot: unknown key"):
        config(None, "node.prot=1").check_unknown()
    with pytest.raises(UsageError, match=r"--set node\.prot: unknown key"):
        found.set("node", "prot", 1)


def test_items_may_be_declared_after_their_values_were_given(ini):
    write(ini, "[md5]\njobs = many\n")
    found = config(ini, "md5.limit=7")
    IntItem("md5", "jobs", 128)
    limit = IntItem("md5", "limit", 9)
    assert found.get(limit) == 7
    with pytest.raises(UsageError, match=r"env.ini:2: \[md5\] jobs = many"):
        found.check_unknown()


@pytest.mark.parametrize("text", ["node.port", "port=1", ".port=1", "node.=1", "=", ""])
def test_a_setting_must_have_its_form(text):
    with pytest.raises(UsageError, match=r"the form is section\.key=value"):
        config(None, text)


def test_set_is_checked_and_seen_at_once():
    node = Node(config())
    node.config.set("Node", "port", 5)
    assert node.port == 5 and node.config.origin(Node.port) == "argument"
    with pytest.raises(UsageError, match="65535"):
        node.config.set("node", "port", 65536)
    with pytest.raises(UsageError, match="more than one line"):
        node.config.set("node", "name", "a\n[node]")
    assert node.port == 5 and node.name == "unnamed"


def test_show_lists_every_item_with_value_and_origin(ini):
    write(ini, "[node]\nport = 1\n[components]\nx.* = off\n")
    rows = config(ini, "node.tags=a,b").show()
    assert ("node", "port", "1", f"file {ini}:2") in rows
    assert ("node", "tags", "a,b", "argument") in rows
    assert ("node", "master", "localhost", "default") in rows
    assert ("node", "use_gzip", "true", "default") in rows
    assert ("components", "x.*", "off", f"file {ini}:4") in rows
    assert len(rows) == 8 + 1 + 1  # the items, the rule, [baseon] file


def test_a_component_rule_is_checked_like_any_value(ini):
    write(ini, "[components]\na:B = perhaps\n")
    with pytest.raises(UsageError, match=r"env.ini:2: .* is not true or false"):
        config(ini)


# -- files in bad shape


def unreadable(path):
    path.write_text("[node]\n")
    path.chmod(0)


BAD_FILES = {
    "cut off": (lambda path: write(path, "[node]\nport"), ":2: not `key = value`"),
    "cut off header": (lambda path: write(path, "[node"), ":1: "),
    "no section": (lambda path: write(path, "port = 1\n"), ":1: a key before the first [section]"),
    "no value": (lambda path: write(path, "[node]\nname = a\nport\n"), ":3: not `key = value`"),
    "two keys": (lambda path: write(path, "[node]\nport = 1\nPORT = 2\n"), ":3: [node] port is there twice"),
    "two sections": (lambda path: write(path, "[node]\n[node]\n"), ":2: section [node] is there twice"),
    "two cases": (lambda path: write(path, "[a]\nport=1\n[A]\nport=2\n"), ":4: [A] port is there twice"),
    "Latin-1": (lambda path: write(path, b"[node]\n\nname = Zo\xeb\n"), ":3: byte 0xeb is not UTF-8"),
    "binary": (lambda path: write(path, bytes(range(256))), ":"),
    "folder": (lambda path: path.mkdir(), "it is not a file"),
    "pipe": (lambda path: os.mkfifo(path), "it is not a file"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "it is a link to nothing"),
    "too large": (lambda path: write(path, b"#" * (2 << 20)), "it is larger than 1 MiB"),
    "unreadable": (unreadable, "Permission denied"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_clear_error(ini, kind):
    make, says = BAD_FILES[kind]
    make(ini)
    if kind == "unreadable" and os.access(ini, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UsageError) as caught:
        config(ini)
    assert str(ini) in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_leaves_the_running_values_and_is_logged_once(ini, kind, caplog):
    write(ini, "[node]\nport = 1\n")
    found = config(ini)
    ini.unlink()
    BAD_FILES[kind][0](ini)
    if kind == "unreadable" and os.access(ini, os.R_OK):
        pytest.skip("this user may read everything")
    assert found.poll(2.0) == found.poll(4.0) == found.reload() == set()
    assert found.get(Node.port) == 1 and len(caplog.records) == 1 and str(ini) in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf[node]\nport = 7\n",
        b"[node]\r\nport = 7\r\n",
        b"[node]\rport = 7\r",
        b"\n[node]\nport=7",
    ],
)
def test_byte_order_mark_and_any_line_end_are_fine(ini, data):
    write(ini, data)
    assert config(ini).get(Node.port) == 7


def test_a_file_that_is_not_there_yet_is_empty_and_may_come(ini):
    found = config(ini)
    assert found.get(Node.port) == 8080 and found.poll(1.0) == set()
    write(ini, "[node]\nport = 2\n")
    assert found.poll(2.0) == {("node", "port")} and found.get(Node.port) == 2


# -- hot reload


def test_an_edit_is_seen_by_the_next_look_and_a_look_is_at_most_once_a_second(ini):
    write(ini, "[node]\nport = 1\nname = a\n")
    found = config(ini)
    assert found.poll(100.0) == set()
    write(ini, "[node]\nport = 2\nname = a\ntimer = 1\n")
    assert found.poll(100.9) == set() and found.get(Node.port) == 1
    assert found.poll(101.0) == {("node", "port"), ("node", "timer")} and found.get(Node.port) == 2
    write(ini, "[node]\nname = a\n")
    assert found.poll(102.0) == {("node", "port"), ("node", "timer")} and found.get(Node.port) == 8080


def test_a_reload_is_all_or_nothing(ini, caplog):
    write(ini, "[node]\nport = 1\nname = old\n")
    found = config(ini)
    write(ini, "[node]\nname = new\nport = 99999\n")
    assert found.poll(1.0) == set() and found.get(Node.name) == "old"
    assert [record.levelname for record in caplog.records] == ["ERROR"] and f"{ini}:3: " in caplog.text
    write(ini, "[node]\nname = new\nport = 999999\n")
    assert found.poll(2.0) == set() and len(caplog.records) == 2  # another broken version
    write(ini, "[node]\nname = new\nport = 2\n")
    assert found.poll(3.0) == {("node", "name"), ("node", "port")}


def test_what_an_argument_hides_has_not_changed(ini):
    write(ini, "[node]\nport = 1\n")
    found = config(ini, "node.port=5")
    write(ini, "[node]\nport = 2\n")
    assert found.poll(1.0) == set() and found.get(Node.port) == 5


def test_a_file_emptied_or_removed_leaves_the_values(ini, caplog):
    write(ini, "[node]\nport = 1\n")
    found = config(ini)
    write(ini, "")
    assert found.poll(1.0) == set() and "the file is empty" in caplog.text
    ini.unlink()
    assert found.poll(2.0) == set() and "it is gone" in caplog.text and found.get(Node.port) == 1


def test_a_running_node_refuses_an_unknown_component_and_warns_of_unknown_keys(ini, caplog):
    class IShape(components.Interface):
        pass

    class Square(components.Component):
        components.implements(IShape)

    item = components.ExtensionPointItem("node", "shape", "Square", IShape)
    write(ini, "[node]\nshape = Square\n")
    found = config(ini)
    found.check_unknown()
    write(ini, "[node]\nshape = Sqare\n")
    assert found.poll(1.0) == set() and found.get(item) == "Square" and "did you mean Square" in caplog.text
    write(ini, "[node]\nshape = Square\nprot = 1\n")
    assert found.poll(2.0) == {("node", "prot")} and "did you mean node.port" in caplog.text


def test_no_damage_to_a_file_ever_breaks_a_running_node(ini):
    good = b"[node]\nport = 1\nname = \xc3\xa4\ntags = a,\n  b\n[components]\nx.* = off\n"
    write(ini, good)
    found, dice = config(ini), random.Random(7)
    for now in range(1, 400):
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.choice(b"[]=\n\r #;\x00\xff9\t")
        write(ini, bytes(data[: dice.randint(0, len(data))]))
        found.poll(float(now))
        assert 0 <= found.get(Node.port) <= 65535
    write(ini, good)
    found.poll(1000.0)
    assert (Node(found).port, Node(found).tags) == (1, ["a", "b"])


# -- writing


def test_save_writes_what_was_said_and_nothing_else(tmp_path, ini):
    write(tmp_path / "base.ini", "[node]\nname = base\n")
    write(ini, "[baseon]\nfile = base.ini\n[node]\nport = 1\ntags = a,\n  b\n")
    ini.chmod(0o600)
    found = config(ini, "node.timer=2.5")
    found.save()
    text = "[baseon]\nfile = base.ini\n[node]\nport = 1\ntags = a,\n    b\ntimer = 2.5\n"
    assert ini.read_text() == text and ini.stat().st_mode & 0o777 == 0o600
    again = Node(config(ini))
    assert (again.port, again.name, again.tags, again.timer) == (1, "base", ["a", "b"], 2.5)
    assert found.poll(5.0) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"base.ini", "env.ini"}


def test_a_save_that_fails_leaves_the_old_file(ini, monkeypatch):
    write(ini, "[node]\nport = 1\n")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        config(ini, "node.port=2").save()
    assert ini.read_text() == "[node]\nport = 1\n" and len(list(ini.parent.iterdir())) == 1


def test_the_default_file_explains_every_item_and_changes_nothing(ini):
    Config.write_default(ini)
    text = ini.read_text()
    assert "# where people connect (a whole number from 0 up to 65535)\n#port = 8080\n" in text
    assert "# whom to join (HOST or HOST:PORT (port 8080 if not given))\n#master = localhost\n" in text
    assert all(row[3] == "default" for row in config(ini).show())
    write(ini, text.replace("#port = 8080", "port = 8081"))
    assert config(ini).get(Node.port) == 8081
