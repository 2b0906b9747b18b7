"""What reads bytes that anybody may have made, each as a function of bytes that raises if a promise is broken.

`SEEDS` are good inputs to begin with. The tests (../test_fuzz.py) give a little to each at every run, `run.py` a lot.
"""

import contextlib
import io
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

from concurrent_swarm import components, rpc

SID = b"12345678"


# -- messages of the compute channel -------------------------------------------------------------------------------


def frames_of(data):
    """Frames from bytes: each begins with its length in two bytes."""
    frames = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "little")
        frames.append(data[2 : 2 + size])
        data = data[2 + size :]
    return frames


def messages(data):
    """A message is refused by ProtocolError, or is the same after it was packed again."""
    try:
        message = rpc.unpack(frames_of(data))
    except rpc.ProtocolError as error:
        assert error.what
        return "refused"
    calls = list(rpc.calls_in(message.call, message.parts))
    assert calls
    for call, parts in calls:
        packed = rpc.pack(message.kind, message.session, message.number, message.ack, call, parts)
        again = rpc.unpack([bytes(frame) for frame in packed])
        assert again.call == call and list(map(plain, again.parts)) == list(map(plain, parts))
        assert again[:4] == message[:4]
    return message.kind


def plain(part):
    """The bytes of a part."""
    return b"".join(map(bytes, part)) if type(part) is list else bytes(part)


def framed(*frames):
    return b"".join(len(frame).to_bytes(2, "little") + bytes(frame) for frame in frames)


# -- calls of the control channel ----------------------------------------------------------------------------------

SERVICE = rpc.Service()
CODES = {rpc.PARSE_ERROR, rpc.INVALID_REQUEST, rpc.METHOD_NOT_FOUND, rpc.INVALID_PARAMS, rpc.TOO_LARGE, rpc.NOT_ALLOWED,
         rpc.NOT_AUTHENTICATED}  # fmt: skip


@rpc.jsonremote(SERVICE)
def every(request, text: str, number: int = 0, fraction: float = 0.0, table: dict | None = None):
    """Returns what it is given."""
    return [text, number, fraction, table]


@rpc.jsonremote(SERVICE, name="slave.drain", roles=("admin",))
def drain(request, slave: str):
    """For administrators."""
    raise AssertionError("a guest may not call this")


def calls(data):
    """Every body has one answer: results and errors of the known codes, in strict JSON; and the same the next time."""
    status, answer = SERVICE.respond(data, rpc.HttpRequest())
    assert status in (200, 204, 400, 401, 403, 413) and (status == 204) == (answer is None)
    told = []
    for one in [] if answer is None else listed(json.loads(answer.decode("utf-8"), parse_constant=impossible)):
        assert one["jsonrpc"] == "2.0" and ("result" in one) != ("error" in one)
        if "error" in one:
            assert one["error"]["code"] in CODES and one["error"]["message"], one
            told.append(one["error"]["code"])
    assert SERVICE.respond(data, rpc.HttpRequest())[0] == status
    return status, *told


def listed(answer):
    return answer if isinstance(answer, list) else [answer]


def impossible(text):
    raise AssertionError(f"{text} in an answer")


# -- configuration files -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder():
    """A folder in memory, which is empty before and after."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


def configuration(data):
    """A file is refused by one UsageError, or it is read; and what was read is the same after it was saved."""
    with folder() as path:
        file = path / "env.ini"
        file.write_bytes(data)
        try:
            config = components.Config(file, environ={})
        except components.UsageError as error:
            assert error.what and "\0" not in error.text(), error
            return "refused"
        values = entries(config)
        config.save()
        assert entries(components.Config(file, environ={})) == values
    return sorted(values)


def entries(config):
    """What a configuration has from its file, as texts."""
    return {id: entry.text for id, entry in config._entries.items()}


# -- bundles -------------------------------------------------------------------------------------------------------


def bundle(data):
    """An archive with its manifest (the bytes up to a NUL) is unpacked whole below its folder, or refused by an Error
    and nothing is left of it."""
    text, _, archive = data.partition(b"\0")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        manifest = text.decode("utf-8", "replace")
    with folder() as path:
        (path / "apps").mkdir()
        try:
            digest = rpc._digest(manifest, rpc._unzip(archive))
        except (components.Error, AttributeError, TypeError, ValueError, KeyError):
            digest = "0" * 64
        try:
            root = rpc.open_bundle(digest, manifest, archive, path / "apps")
        except components.Error as error:
            assert error.what and not list((path / "apps").iterdir())
            return "refused"
        found = [one for one in path.rglob("*") if not one.is_dir()]
        assert found and all(one.is_file() and not one.is_symlink() and Path(root) in one.parents for one in found)
        assert rpc.known_bundles(path / "apps") == {digest: manifest}
    return "unpacked"


def archived(**files):
    """A bundle as `bundle` takes it."""
    facts = {"format": 1, "kind": "file", "entry": "app.py", "modules": [], "framework": "concurrent_swarm"}
    facts["needs"] = {}
    contents = {name.replace("__", "."): text.encode() for name, text in files.items()}
    digest = rpc._digest(facts, contents)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return json.dumps({"module": f"app_{digest[:12]}", **facts}).encode() + b"\0" + file.getvalue()


# -- results of plain data -----------------------------------------------------------------------------------------

HARMLESS = ("builtins", "collections", "datetime", "decimal", "pathlib", "pathlib._local", "uuid", "__swarm__")


def results(data):
    """A pickle is refused by an Error, or holds plain data alone."""
    try:
        value = rpc.READERS["data"](data)
    except components.Error as error:
        assert error.what and error.why
        return "refused"
    stack, seen = [value], set()
    while stack:
        one = stack.pop()
        if id(one) not in seen:
            seen.add(id(one))
            assert type(one).__module__ in HARMLESS or type(one) is rpc._Stand, type(one)
            assert not isinstance(one, type)
            if isinstance(one, dict):
                stack += [*one, *one.values()]
            elif isinstance(one, (list, tuple, set, frozenset)) and type(one) is not rpc._Stand:
                stack += one
    return "read"


TARGETS = {function.__name__: function for function in (messages, calls, configuration, bundle, results)}
SEEDS = {
    "messages": [
        framed(*rpc.pack(rpc.DATA, SID, 1, 0, ["result", 1, 0, 2, 0.5, {}], [b"part", b""])),
        framed(*rpc.pack(rpc.HELLO, SID, 1, 0, ["hello", {"node_id": "x"}, False])),
        framed(*rpc.pack(rpc.BEAT, SID, 0, 3, ["beat"])),
    ],
    "calls": [
        b'{"jsonrpc":"2.0","method":"every","params":["x",1,2.5,{"a":[null,true]}],"id":1}',
        b'[{"jsonrpc":"2.0","method":"every","params":{"text":"\\u00e9"},"id":"a"},{"jsonrpc":"2.0","method":"nothing"}]',
    ],
    "configuration": [
        b"[master]\nport = 8080\n# a remark\nhost = 127.0.0.1\n",
        b"[components]\nmaster.* = off\n[limits]\nretries = 3\n",
    ],
    "bundle": [archived(app__py="x = 1\n"), archived(app__py="import other\n", other__py="")],
    "results": [pickle.dumps(value, 5) for value in (
        [1, 2.5, "text", b"bytes", None, True], {"a": {1, 2}, (1, 2): frozenset({3})}, bytearray(b"x"))],
}  # fmt: skip
