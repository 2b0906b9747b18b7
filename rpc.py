"""What nodes say to each other and to people, and the rooms in which it is said.

The *control channel* is for people, their pages and tools, and for the first word between nodes: JSON-RPC 2.0 by HTTP.

    Proxy ── POST /api/1 ──►  ControlServer  ── body ──►  Service.respond ──►  a function marked @jsonremote
          ◄── 200, 204 ────   limits, Host,  ◄─ bytes ──  batch, ids,     ◄──  its result, or an Error
                              Origin, token               codes

The *compute channel* carries work: a node's `Link` (DEALER) talks to the master's `Channel` (ROUTER). ZeroMQ may lose
messages at a reconnect; a *session* on top of it numbers, acknowledges and sends again, so that every call arrives once
and in order for as long as both processes live. A message is one frame, and one more for each part of 64 KiB and up:

    magic b"CS" | protocol u8 | kind u8 | session 8 bytes | number u64 | ack u64      the envelope, 28 bytes
    count u16 | length u32 each | the parts                                           the body
    part 0: the call, JSON [method, *params]; the others opaque. Length 0xFFFFFFFF: the part is the next frame.
            several small calls of one turn: [n, [method, *params], …], the next n parts are of the call after n

On a socketpair the body travels alone behind its total length (u32), every part inline. Little endian throughout.

    kind       from    number                  call                            meaning
    HELLO 0    node    which attempt           ["hello", info, known]          here I am; known: the session goes on
    WELCOME 1  master  0                       ["welcome", info]               the session stands
    REFUSE 2   both    0                       ["refuse", {reason, what, …}]   the session is over, and why; a node
                                                                               answers so that its master has stopped
    DATA 3     both    1, 2, … per direction   [method, *params]               a call of a `tcpremote` method
    BEAT 4     both    highest DATA sent       ["beat"] or ["resend"]          alive; "resend": something is missing

Every kind carries `ack`, the highest DATA number received in order. A connection keeps its order, so a receiver that
meets a number too high, in a DATA or in a BEAT, knows that something was lost and asks for everything after its ack;
after a reconnect HELLO and WELCOME carry the acks and both ends send the rest again. A peer that is only slow is never
sent a message twice.

The calls, with their opaque parts in braces; an owner is a client, or the host of a task system:

    owner → master   publish(key, at, total) {, bytes} · fetch_shared(key)
                     bundle(digest, manifest) {zip} · submit(number, count, group, first) {head, index, groups…}
                     settled([numbers]) · cancel(number, kill) · push_tasksystem(number, digest, options) {system}
                     cancel_task(number, place, kill) · cancel_tasksystem(number, kill) · step(number)
                     work_settled(number) · get_stats(number) · goodbye()
                     rest_of_trace(), of one that said `trace` in its hello
    host → master    system_step(step, waiting) · figures(step, rows) · system_done(failure, stats) {result}
                     view(type) {picture}
    master → owner   accepted([numbers]) · refused(number, reason)
                     outcome(number, lo, hi, seconds, failures, slave, attempt) {groups…}
                     push_tasksystem_response(number, name) · push_tasksystem_failed(number, error)
                     work_finished(number, failure, stats) {result} · swarm(slaves, workers, busy, systems)
                     shared(key, at, total) {, bytes} · no_shared(key, reason)
                     output(owner, attempt, [[lo, hi, text, dropped]…]) · stats_response(number, figures)
                     spans(now, [[when, system, step, waits]…], missing, [queued, busy], last) {texts, rows}
    master → slave   lease(id, owner, number, lo, hi, group, attempt, first) {head, index, groups…}
                     revoke(id, kill) · steal(id) · late(id, seconds) · bundle(digest, manifest) {zip}
                     workers(count) · drain() · shared(key, at, total) {, bytes} · no_shared(key, reason) · seen(when)
                     forget_shared([keys]) · no_bundle(digest)
    slave → master   result(id, lo, hi, failures, [lane, began, ended, opening, packing], figures) {groups…}
                     given_back(id, lo, hi) · fetch(digest)
                     output(id, [[lo, hi, text, dropped]…]) · worker_lost(id, lo, hi, reason, output, [lane, …])
                     resources(amounts, workers) · leaving() · preparing(digest, what), "" when that is over
                     publish_for(owner, key, at, total) {, bytes} · fetch_shared(key) · not_granted(owner, what)
                     vitals(cpu, memory, round trip, [[lane, id] of what runs…], when), every few seconds
    slave → worker   run(id, owner, number, lo, hi, group, attempt, first, grant) {head, index, groups…} · drop(id)
                     shared(key) {bytes} · no_shared(key, reason) · spare() and stack(), with a descriptor each
    worker → slave   result(id, lo, hi, failures, last, [began, ended, opening, packing], figures) {groups…}
                     publish(key, at, total) {, bytes} · fetch_shared(key) · begun(id), if its tasks have limits
    node → builder   build({what of, into which folder, from where}); it says built(size, [what, why, fix, kind] or [])
    node → program   program(command, variables), which it becomes

Beside its socketpair a child has a pipe for what it prints. What Python prints in a lease of several tasks stands
between marks of its task; the lo..hi of an `output` are ordinals of the owner, 0..0 for it as a whole, such as the
hooks of a system. Output may be dropped anywhere on the way: `dropped` counts the bytes that are missing before `text`.

On TCP a message is encrypted and its sender known by CURVE; on a socket file in a private folder PLAIN says the same
with a password that both ends derive. Either way the master reads the sender's public key from the connection, never
from the message. What this package makes is JSON; pickles are opened only where the user's code runs.
"""

from __future__ import annotations

import argparse
import ast
import base64
import concurrent.futures
import email.utils
import errno
import functools
import gc
import gzip
import hashlib
import heapq
import hmac
import http.client
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import io
import ipaddress
import itertools
import json
import logging
import math
import mmap
import os
import pickle
import pkgutil
import platform
import re
import secrets
import select
import selectors
import shlex
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import types
import unicodedata
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_origin
from urllib.parse import parse_qsl, urlsplit

from . import components
from .components import Error, Unreachable, UsageError

log = logging.getLogger(__name__)

PICKLE_PROTOCOL = 5


# -- JSON-RPC: messages, pure --------------------------------------------------------------------------------

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL_ERROR, SERVER_ERROR = -32602, -32603, -32000
NOT_AUTHENTICATED, NOT_ALLOWED, TOO_LARGE, TOO_MANY, UNKNOWN_OBJECT = -32001, -32002, -32003, -32004, -32007

MAX_DEPTH = 64  # of brackets; the limit of Python's own parser differs from version to version
MAX_DIGITS = 300  # of an integer; a float ends at 1.8e308
MAX_BATCH = 1000

_STATUS = {PARSE_ERROR: 400, NOT_AUTHENTICATED: 401, NOT_ALLOWED: 403, TOO_LARGE: 413, TOO_MANY: 429}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SURROGATE = re.compile("[\ud800-\udfff]")


class RpcError(components.Error):
    """An error with a JSON-RPC code. A `@jsonremote` function raises it to choose one, and a `Proxy` does. `data` may
    be anything; a table's "why" and "fix" become those of the error."""

    def __init__(self, code: int, message: str, data: object = None):
        told = data if isinstance(data, dict) else {}
        super().__init__(message, str(told.get("why", "")), str(told.get("fix", "")))
        self.code, self.message, self.data = code, message, data


def _error(code, what, why="", fix="", **more):
    return RpcError(code, what[:500], {"why": why, "fix": fix, **more})


class _Unfit(str):
    """Stands for a number that JSON can spell and nobody can use; the text is the reason."""


def _unique_keys(pairs):
    table = dict(pairs)
    if len(table) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _error(INVALID_REQUEST, f"the key {key!r} is there twice", "which one counts is a guess", "send it once")
    return table


def _integer(digits):
    count = len(digits.lstrip("-"))
    return int(digits) if count <= MAX_DIGITS else _Unfit(f"an integer of {count} digits")


_NUMBERS = {"parse_int": _integer, "parse_constant": _Unfit,
            "parse_float": lambda digits: number if math.isfinite(number := float(digits)) else _Unfit(digits[:40])}


def parse(body: bytes) -> object:
    """The value of a JSON text, read alike on every Python. Raises RpcError -32700; repeated keys: -32600. Numbers that
    are infinite, no number, or longer than MAX_DIGITS come as `_Unfit`: its reader knows where."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(PARSE_ERROR, f"the body must be UTF-8 (byte {error.start} is not)", fix="encode it so") from None
    outline = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    if max(itertools.accumulate(map(_STEPS.__getitem__, outline)), default=0) > MAX_DEPTH:
        raise _error(PARSE_ERROR, f"the body is nested deeper than {MAX_DEPTH}", fix="send flatter values")
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, **_NUMBERS)
    except ValueError as error:
        raise _error(PARSE_ERROR, f"the body is not JSON: {error}", "it is cut off or wrong there", "mend it") from None


def _flaws(value) -> Iterator[tuple[str, str]]:
    """What in a parsed value nobody can use: where, and why. (Only for this is a path put together.)"""
    if isinstance(value, _Unfit):
        yield "", f"is {value}, not a finite number of at most {MAX_DIGITS} digits"
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield "", "has half a surrogate pair, which is no text"
    elif isinstance(value, (list, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for path, why in itertools.chain(_flaws(key), _flaws(item)):
                yield (f".{key}{path}" if isinstance(key, str) else f"[{key}]{path}"), why


def _identity(item):
    """The id to answer with; null where there is none or it is of a wrong kind."""
    identity = item.get("id") if isinstance(item, dict) else None
    usable = isinstance(identity, (str, int, float)) and not isinstance(identity, bool)
    return identity if usable and not any(_flaws(identity)) else None


_SHAPE = 'it looks like {"jsonrpc": "2.0", "method": "status", "params": [], "id": 1}'


def _check_shape(item):
    """Raises RpcError -32600 unless item is a JSON-RPC 2.0 request."""
    if not isinstance(item, dict):
        raise _error(INVALID_REQUEST, "a request is an object", fix=_SHAPE)
    if item.get("jsonrpc") != "2.0":
        raise _error(INVALID_REQUEST, 'the request lacks "jsonrpc": "2.0"', fix=_SHAPE)
    if not isinstance(item.get("method"), str) or any(_flaws(item["method"])):
        raise _error(INVALID_REQUEST, '"method" must be a text', fix=_SHAPE)
    if not isinstance(item.get("params", []), (list, dict)):
        raise _error(INVALID_REQUEST, '"params" must be an array or an object', fix=_SHAPE)
    if item.get("id") is not None and _identity(item) is None:
        raise _error(INVALID_REQUEST, '"id" must be a text, a number or null', fix=_SHAPE)


# -- JSON-RPC: methods, pure ---------------------------------------------------------------------------------

_KINDS = {kind: kind for kind in (int, str, bool, list, dict, types.NoneType)} | {float: (int, float)}


@dataclass(frozen=True)
class HttpRequest:
    """Who calls: `role` ("admin", "guest"), the peer's `address`, the HTTP `headers` (by `get`), and what the address
    of a page has behind its question mark."""

    role: str = "guest"
    address: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A function that may be called from outside: `roles` is who may (None: anyone who is let in). Calls of
    one with `roles` are `audited`, unless it says otherwise."""

    name: str
    function: Callable
    signature: inspect.Signature
    doc: str
    roles: frozenset[str] | None
    audited: bool = True

    def call(self, request: HttpRequest, params: list | dict) -> object:
        """Calls the function. Raises RpcError -32602 that names the parameter if it cannot be called so."""
        for path, why in _flaws(params):
            raise _error(INVALID_PARAMS, f"params{path} {why}", f"it is called as {self.usage}", "correct that value")
        try:
            args, kwargs = ((), params) if isinstance(params, dict) else (params, {})
            bound = self.signature.bind(request, *args, **kwargs)
        except TypeError as error:
            raise _error(INVALID_PARAMS, f"{self.name}: {error}", f"it is called as {self.usage}") from None
        for each in self.parameters:
            if each.name in bound.arguments and not _fits(value := bound.arguments[each.name], each):
                wanted = getattr(each.annotation, "__name__", each.annotation)
                what = f"{self.name}: {each.name} must be {wanted}, not {json.dumps(value)}"
                raise _error(INVALID_PARAMS, what, f"it is called as {self.usage}")
        return self.function(*bound.args, **bound.kwargs)

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """Those that a caller gives: all but the request."""
        return list(self.signature.parameters.values())[1:]

    @property
    def usage(self) -> str:
        """How it is called: its name and parameters."""
        return f"{self.name}{inspect.Signature([each.replace(annotation=each.empty) for each in self.parameters])}"


def _fits(value, parameter):
    """Whether a JSON value is what the parameter's annotation says, as far as that is about JSON's types."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return True
    kind = parameter.annotation
    for each in kind.__args__ if isinstance(kind, types.UnionType) else [kind]:
        known = _KINDS.get(get_origin(each) or each)
        if known is None or (isinstance(value, known) and (each is bool or not isinstance(value, bool))):
            return True
    return False


class Service:
    """The methods of a node that JSON-RPC may call, in one table; `@jsonremote` is the only way in."""

    def __init__(self) -> None:
        self.methods: dict[str, Method] = {}
        self.audit: Callable[..., None] = lambda event, who, **facts: None  # hears of administrators and wrong tokens
        self._add("rpc.discover", self._discover, "The methods of this node.", None)

    def dispatch(self, body: bytes, request: HttpRequest) -> bytes | None:
        """Answers a JSON-RPC 2.0 message, single or batch; None where only notifications came."""
        return self.respond(body, request)[1]

    def respond(self, body: bytes, request: HttpRequest) -> tuple[int, bytes | None]:
        """The HTTP status that fits the answer, and the answer."""
        try:
            message = parse(body)
            if message == []:
                raise _error(INVALID_REQUEST, "the batch is empty", fix="send one request at least")
            if isinstance(message, list) and len(message) > MAX_BATCH:
                raise _error(TOO_LARGE, f"{len(message)} requests, at most {MAX_BATCH} per batch", fix="send several")
        except RpcError as error:
            return _STATUS.get(error.code, 200), _failure(error, None, request)[1].encode()
        if not isinstance(message, list):
            code, text = self._answer(message, request)
            return (_STATUS.get(code, 200), text.encode()) if text else (204, None)
        texts = [text for _, text in (self._answer(item, request) for item in message) if text]
        return (200, f"[{','.join(texts)}]".encode()) if texts else (204, None)

    def _answer(self, item, request) -> tuple[int, str]:
        """The code and the text of the answer to one request; no text for a notification."""
        identity, silent = _identity(item), False
        try:
            _check_shape(item)
            silent = "id" not in item
            result = self._call(item["method"], item.get("params", []), request)
            answer = 0, f'{{"jsonrpc":"2.0","result":{result},"id":{json.dumps(identity)}}}'
        except components.Error as error:
            answer = _failure(error, identity, request)
        except Exception:  # the border to the functions of nodes and plug-ins
            mark = secrets.token_hex(4)
            log.exception("the method %r failed [%s]", item["method"], mark)
            fault = _error(INTERNAL_ERROR, "the method failed", "a fault of this node", "its log has the id")
            answer = _failure(fault, identity, request, mark)
        return (0, "") if silent else answer

    def _call(self, name, params, request) -> str:
        method = self.methods.get(name)
        if method is None:
            nearest = components.nearest(name, self.methods) if len(name) < 100 else ""  # else looking takes too long
            fix = f"did you mean {nearest}?" if nearest else "rpc.discover lists the methods"
            raise _error(METHOD_NOT_FOUND, f"no method {name!r}", "this node has none", fix, nearest=nearest)
        if method.roles is not None and request.role not in method.roles:
            who = " or ".join(sorted(method.roles))
            code = NOT_AUTHENTICATED if request.role == "guest" else NOT_ALLOWED
            fix = "send the token of this node: Authorization: Bearer TOKEN"
            self.audit("refuse", request, why=f"a {request.role} may not call {name}")
            raise _error(code, f"{name} needs the role {who}", f"the caller's is {request.role}", fix)
        if method.roles is not None and method.audited:
            self.audit("admin", request, method=name, params=params)
        return json.dumps(method.call(request, params), allow_nan=False)

    def _add(self, name, function, doc, roles, audited=True):
        roles = None if roles is None else frozenset(roles)
        signature = inspect.signature(function, eval_str=True)
        self.methods[name] = Method(name, function, signature, inspect.cleandoc(doc), roles, audited)

    def _discover(self, request):
        return {"methods": [{
            "name": method.name, "usage": method.usage, "doc": method.doc,
            "params": [{"name": each.name, "required": each.default is each.empty} for each in method.parameters],
            "roles": None if method.roles is None else sorted(method.roles),
        } for _, method in sorted(self.methods.items())]}


def _failure(error, identity, request, mark="") -> tuple[int, str]:
    """The code and the text of an error answer; without a mark from the log, a line there gets one."""
    if not mark:
        mark = secrets.token_hex(4)
        log.info("%s (%s) is refused: %r [%s]", request.address, request.role, error.what, mark)
    code = error.code if isinstance(error, RpcError) else SERVER_ERROR
    more = error.data if isinstance(error, RpcError) and isinstance(error.data, dict) else {}
    told = {"code": code, "message": error.what, "data": {"why": error.why, "fix": error.fix, **more, "id": mark}}
    return code, json.dumps({"jsonrpc": "2.0", "error": told, "id": identity})


def jsonremote(service: Service, name: str | None = None, doc: str | None = None,
               roles: Collection[str] | None = None, audited: bool = True) -> Callable[[Callable], Callable]:
    """Marks a function as a method of `service`, under its own name and docstring unless others are given. It is called
    as `function(request, *params)` with an `HttpRequest`, in a thread of the server; signature and annotations (int,
    float, str, bool, list, dict, None and unions of them) are checked before. It returns what JSON can say, or raises
    `Error` or, to choose the code, `RpcError`. `roles` says who may call it, None is anyone who is let in. Calls
    for some roles alone are `audited`, unless they change nothing. Raises Error if the name is taken or reserved."""

    def mark(function: Callable) -> Callable:
        known = name or function.__name__
        if known in service.methods or known.startswith("rpc."):
            what = f"the method {known!r} cannot be added"
            raise components.Error(what, "the name is taken or begins with rpc.", "choose another name")
        service._add(known, function, doc or function.__doc__ or "", roles, audited)
        return function

    return mark


# -- JSON-RPC: addresses -------------------------------------------------------------------------------------

DEFAULT_PORT = 8080
_NO_NAME = "no such name in DNS or hosts file"


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "HOST", "HOST:PORT", "[IPV6]" or "[IPV6]:PORT". Raises UsageError for anything else."""
    try:
        if "//" in text:
            raise ValueError("it has a scheme, as in http://")
        if text.count(":") > 1 and "[" not in text:
            raise ValueError(f"an IPv6 address needs brackets, as in [{text}]:{DEFAULT_PORT}")
        host, port = components.parse_host(text, DEFAULT_PORT)
        if port == 0:
            raise ValueError("a port is 1 to 65535")
        return host, port
    except ValueError as error:
        fix = "the form is HOST or HOST:PORT, as in 192.168.1.20:8080, without http://"
        raise components.UsageError(f"{text!r} is not an address", str(error), fix) from None


def format_address(host: str, port: int | str) -> str:
    """The text that `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- JSON-RPC: the server ------------------------------------------------------------------------------------

_API = ("/", "/api/1", "/api/1/")
_VERBS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}
_CODES = {401: NOT_AUTHENTICATED, 403: NOT_ALLOWED, 413: TOO_LARGE, 414: TOO_LARGE, 421: NOT_ALLOWED, 429: TOO_MANY,
          431: TOO_LARGE, 500: INTERNAL_ERROR, 503: TOO_MANY}
_SECURITY = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
             "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
             "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
PACKED_FROM = 1400  # bytes of an answer, which then needs several packets
PACKING = 4  # the level: a quarter less than at 1, for 0.3 ms of the largest answer
_FOR_ALL = ("/health", "/ping", "/healthz", "/readyz", "/metrics")  # pages for programs, which ask for no token
_FULL = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FIRST_LINE = re.compile(rb"[A-Za-z]{1,32} [!-~]+ HTTP/1\.[01]\r\n")
_HEAD = re.compile(_FIRST_LINE.pattern + rb"(?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")


class _Refused(RpcError):
    """Why a request is answered by an HTTP status alone; the connection is closed then."""

    def __init__(self, status, what, why="", fix="", **headers):
        super().__init__(_CODES.get(status, INVALID_REQUEST), what, {"why": why, "fix": fix})
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Page:
    """A page that depends on who asks: `answer(request)` returns the bytes and the HTTP status."""

    kind: str  # Content-Type
    answer: Callable[[HttpRequest], tuple[bytes, int]]
    roles: tuple[str, ...] = ("guest", "admin")


def _split(address):
    try:
        return urlsplit(address)
    except ValueError as error:
        raise _Refused(400, f"{address[:100]!r} is no address", str(error)) from None


@functools.lru_cache(maxsize=8)
def content_policy(page: bytes) -> str:
    """The Content-Security-Policy of a page: the scripts and styles between its tags and nothing else, calls to its own
    node, pictures that it made itself. An attribute such as onclick or style does nothing."""
    inline = {}
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}\s*>".encode(), page, re.DOTALL | re.IGNORECASE)
        sums = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts)
        inline[tag] = " ".join(f"'sha256-{one}'" for one in sums) or "'none'"
    return (f"default-src 'none'; script-src {inline['script']}; style-src {inline['style']}; connect-src 'self'; "
            "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header allows gzip."""
    for name, _, quality in (one.partition(";") for one in accepted.lower().split(",")):
        if name.strip() == "gzip":
            return not re.fullmatch(r"q=0(\.0*)?", quality.replace(" ", ""))
    return False


class _Exchange(BaseHTTPRequestHandler):
    """One connection. The library parses a head only when it is whole, in time, small and well formed."""

    server: ControlServer
    protocol_version = "HTTP/1.1"

    # .. reading ..

    def setup(self):
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._begun = self._refused = self._unpacks = False
        self.command = self.path = ""
        self._patience = self.server.REQUEST_TIME  # of a connection that has said nothing

    def handle(self):
        try:
            if self.server.tls:  # in this thread, for a peer that says nothing holds up nobody else
                self.connection.settimeout(self.server.REQUEST_TIME)
                self.connection.do_handshake()
        except OSError as error:
            self.server.complain(self.client_address[0], f"no TLS: {error}", "")
        else:
            super().handle()

    def finish(self):
        """Reads on for a moment after a refusal: closing on unread bytes would take it from the peer."""
        if not self._refused:
            return
        deadline = time.monotonic() + self.server.PATIENCE
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(65536):
                    break

    def handle_one_request(self):
        self.close_connection = True
        try:
            self._read_head()
            self._answer()
        except _Refused as refusal:
            self._refuse(refusal)
        except OSError as error:
            log.debug("%s has gone: %s", self.client_address[0], error)
        except Exception:  # the border to the pages of nodes and plug-ins
            mark = secrets.token_hex(4)
            log.exception("%s %s failed [%s]", self.command, ascii(self.path), mark)
            self._refuse(_Refused(500, "the page failed", "a fault of this node", "its log has the id"), mark)

    def _read_head(self):
        if not self._buffer:
            self._receive(time.monotonic() + self._patience)
        self._begun, self._unpacks = True, False
        self._deadline = time.monotonic() + self.server.REQUEST_TIME
        self.server.keep(self.connection, time.monotonic() + self.server.PATIENCE)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._check_start(len(self._buffer))
            self._receive(self._deadline)
        self._check_start(end)
        head = self._take(end + 4)
        if not _HEAD.fullmatch(head):
            raise _Refused(400, "this is not HTTP/1.1", "the request's head is malformed")
        self.raw_requestline, _, fields = head.partition(b"\r\n")
        self.rfile = io.BytesIO(fields)
        self.parse_request()

    def _check_start(self, length):
        """Refuses a head that cannot become a good one before more of it is read."""
        whole_line = self._buffer.find(b"\n", 0, self.server.HEAD_LIMIT) >= 0
        if length > self.server.HEAD_LIMIT:
            raise _Refused(431 if whole_line else 414, f"the head is over {self.server.HEAD_LIMIT} bytes")
        if not (_FIRST_LINE.match(self._buffer) if whole_line else self._buffer[:1].isalpha()):
            raise _Refused(400, "this is not HTTP/1.1",
                           f"the port speaks HTTP{' under TLS' if self.server.tls else ', without TLS'}")

    def _receive(self, deadline):
        """Waits for more bytes. Raises OSError when none come, `_Refused` when a request is overdue."""
        try:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("idle for too long")
            self.connection.settimeout(left)
            data = self.connection.recv(65536)
        except TimeoutError:
            if self._begun:
                raise _Refused(408, f"no whole request within {self.server.REQUEST_TIME} s") from None
            raise
        if not data:
            raise ConnectionResetError("closed by the peer")
        self._buffer += data

    def _take(self, count):
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def handle_expect_100(self):
        return True  # said in _read_body, when the body is known to be wanted

    def send_error(self, code, message=None, explain=None):
        raise _Refused(code, f"the head is refused: {message}")

    # .. checking ..

    def _answer(self):
        """Checks the request in the order of cost, lets the service or a page answer, and sends that."""
        path = self._check_address()
        self._check_secrecy(path)
        role = self.server.role_of(self.headers, self.client_address[0])
        body = self._read_body()
        self._unpacks = takes_gzip(self.headers.get("Accept-Encoding", ""))
        if not self.server.keep(self.connection, math.inf):
            raise ConnectionResetError("closed for a newcomer")
        with self.server.turn():
            query = dict(parse_qsl(_split(self.path).query)) if self.command == "GET" else {}
            request = HttpRequest(role, self.client_address[0], self.headers, query)
            if self.command == "GET":
                kind, answer, status = self.server.read(path, request)
            else:
                kind, (status, answer) = "application/json", self.server.service.respond(body, request)
        self.close_connection = status >= 400 or self.close_connection or self.request_version == "HTTP/1.0"
        self._send(status, kind, answer)
        self._begun, self._refused = False, status >= 400
        self._patience = self.server.IDLE_TIME
        self.server.keep(self.connection, time.monotonic())

    def _check_address(self):
        """The path, if it is one of this node's and the request came on purpose, not by a page's trick."""
        target = _split(self.path)
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1:
            raise _Refused(400, "a request has one Host header")
        for name in {hosts[0], target.netloc or hosts[0]}:
            if not self.server.is_mine(name, self.connection.getsockname()[0]):
                fix = "use its address, or add the name to the allowed hosts of this node"
                raise _Refused(421, f"{name[:100]!r} is not this node", "the name is not one it knows", fix)
        origin = self.headers.get("Origin")
        if origin is not None and _split(origin).netloc.lower() != hosts[0].lower():
            raise _Refused(403, f"pages of {origin[:100]!r} may not call this node", "it is another site")
        verbs = ["GET"] * (target.path in self.server.pages) + ["POST"] * (target.path in _API)
        if not verbs:
            raise _Refused(404, f"nothing is at {target.path[:100]!r}", fix="calls go to /api/1")
        if self.command not in verbs:
            status = 405 if self.command in _VERBS else 501
            raise _Refused(status, f"{self.command} is not for {target.path!r}", Allow=", ".join(verbs))
        if "token=" in target.query:
            fix = "send it as a header: Authorization: Bearer TOKEN"
            raise _Refused(401, "a token has no place in an address", "addresses end up in logs", fix)
        return target.path

    def _check_secrecy(self, path):
        """A token travels beyond this machine under TLS only, and so do the pages that ask for one."""
        here, there = _plain(self.connection.getsockname()[0]), _plain(self.client_address[0])
        if self.server.tls or there == here or is_loopback(there):
            return
        what = "tokens are not taken" if "Authorization" in self.headers else "pages are not shown"
        if "Authorization" in self.headers or (self.command == "GET" and path not in _FOR_ALL):
            fix = "give the node a certificate: --set master.certificate=FILE --set master.certificate_key=FILE"
            raise _Refused(403, f"{what} beyond this machine without TLS", "anybody between could read them", fix)

    def _read_body(self):
        length = self._check_length()
        if "100-continue" in self.headers.get("Expect", "").lower() and len(self._buffer) < length:
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._buffer) < length:
            self._receive(self._deadline)
        return self._take(length)

    def _check_length(self):
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers:
            raise _Refused(501, "chunked bodies are not read here", fix="send a Content-Length")
        if "Content-Encoding" in self.headers:
            raise _Refused(415, "packed bodies are not read here", fix="send the JSON as it is")
        if self.command == "GET" and not lengths:
            return 0
        if not lengths:
            raise _Refused(411, "the Content-Length is missing")
        if len(lengths) > 1 or not re.fullmatch("[0-9]+", lengths[0].strip()):
            raise _Refused(400, f"{lengths[0][:40]!r} is no Content-Length")
        if len(lengths[0].strip()) > 18 or int(lengths[0]) > self.server.BODY_LIMIT:
            raise _Refused(413, f"{lengths[0][:40]} bytes, at most {self.server.BODY_LIMIT} are read", fix="send less")
        if self.command == "POST" and self.headers.get_content_type() != "application/json":
            raise _Refused(415, f"{self.headers.get_content_type()} is not read", fix="send application/json")
        return int(lengths[0])

    # .. writing ..

    def _refuse(self, refusal, mark=""):
        self.close_connection = self._refused = True
        mark = mark or secrets.token_hex(4)
        self.server.complain(self.client_address[0], refusal.what, mark)
        request = HttpRequest(address=self.client_address[0])
        with suppress(OSError):  # it has gone, and there is nobody to tell
            _, text = _failure(refusal, None, request, mark)
            self._send(refusal.status, "application/json", text.encode(), refusal.headers)

    def _send(self, status, kind, body, headers=None):
        """Sends the whole answer at once: of two small packets the second would wait for the peer."""
        fields = {"Date": self.date_time_string(), **_SECURITY, **(headers or {})}
        if body is not None:
            if kind.startswith("text/html"):
                fields["Content-Security-Policy"] = content_policy(body)
            if self._unpacks and len(body) > PACKED_FROM:
                body = gzip.compress(body, PACKING, mtime=0)
                fields |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            fields |= {"Content-Type": kind, "Content-Length": len(body)}
        if self.close_connection:
            fields["Connection"] = "close"
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n"
        self.connection.settimeout(self.server.REQUEST_TIME)
        self.connection.sendall(head.encode("latin-1") + (body or b""))


class ControlServer(ThreadingHTTPServer):
    """The door of a node for people: JSON-RPC by POST to /api/1, `pages` and /health by GET. `host` and `port` say
    where it listens (port 0: any free one); `pages` maps a path to (content type, function that returns the bytes) or
    to a `Page`;
    `token` makes a caller "admin" (None: nobody can be); `allowed_hosts` are names of this machine beside its
    addresses; with `tls` it speaks nothing else. Methods and pages run in threads of the server. It listens from the
    start, at `port` of `address` (HOST:PORT), and answers after `start`. Raises UsageError if it cannot listen there.

    A connection gets a thread of its own, so that slow ones hold up nobody. When there are CONNECTIONS, a newcomer
    takes the place of the one that has idled longest, or has not sent its whole request within PATIENCE."""

    CONNECTIONS = 256
    HANDLERS = 64  # requests answered at a time
    PATIENCE = 1.0  # seconds
    REQUEST_TIME = 10.0  # seconds for a whole request to arrive, however it drips
    IDLE_TIME = 60.0  # seconds between two requests
    HEAD_LIMIT = 64 * 1024  # bytes; the library stops at 100 headers
    BODY_LIMIT = 1024 * 1024  # bytes
    WRONG_TOKENS = 10  # per minute and address; then 429
    COMPLAINT_TIME = 10.0  # seconds between two lines about bad requests

    request_queue_size = 1024  # with the default of 5, of a thousand nodes that start together most fail
    allow_reuse_address = sys.platform != "win32"  # there it would share the port
    allow_reuse_port = False

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 0, token: str | None = None,
                 pages: Mapping[str, Page | tuple[str, Callable[[], bytes]]] | None = None,
                 allowed_hosts: Iterable[str] = (), tls: ssl.SSLContext | None = None):
        health = ("application/json", lambda: b'{"ok": true}')
        self.service, self.tls = service, tls
        self.pages = {"/health": health, "/ping": health, **(pages or {})}
        names = {"localhost", "127.0.0.1", "::1", host, *allowed_hosts} - {"0.0.0.0", "::"}
        self._hosts = {name.lower() for name in names}
        self._digest = _token_digest(token if token else secrets.token_urlsafe())
        self._change = threading.Condition()  # guards the next three, which threads of connections change
        self._open: dict[socket.socket, float] = {}  # connection: when it may lose its place (monotonic)
        self._wrong_tokens: dict[str, tuple[int, float]] = {}  # address: how many, since when
        self._complaints, self._next_complaint = 0, -math.inf
        self._turns = threading.BoundedSemaphore(self.HANDLERS)
        self._thread: threading.Thread | None = None
        try:
            if not 0 <= port < 65536:
                raise OverflowError("a port is 0 to 65535")
            self.address_family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(place, _Exchange)
        except (OSError, OverflowError, UnicodeError) as error:
            raise _cannot_listen(error, host, port) from error

    def server_bind(self):
        """Binds without the library's reverse look-up of the host's name, which can take seconds."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.port = self.server_address[:2]
        self.address = format_address(self.server_name, self.port)

    # .. life ..

    def start(self) -> None:
        """Begins to answer, in threads of its own."""
        self._thread = threading.Thread(target=self.serve_forever, name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends listening, lets the calls that run end (within PATIENCE), and closes all connections."""
        if self._thread:
            with suppress(OSError):  # where it cannot be done, the loop looks up twice a second
                self.socket.shutdown(socket.SHUT_RDWR)
            self.shutdown()
            self._thread.join()
        self.server_close()
        with self._change:
            self._change.wait_for(lambda: math.inf not in self._open.values(), self.PATIENCE)
            for connection in list(self._open):
                self._drop(connection)

    def handle_error(self, request, client_address):
        log.exception("the connection of %s failed", client_address[0])

    # .. connections ..

    def get_request(self):
        """The next connection, under TLS of which nothing is said yet."""
        connection, address = super().get_request()
        if self.tls:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request, client_address):
        if self._admit(request):
            super().process_request(request, client_address)
            return
        self.complain(client_address[0], f"{self.CONNECTIONS} connections are being served", "")
        with suppress(OSError):
            request.settimeout(0.1)
            request.sendall(_FULL)
        self.shutdown_request(request)

    def shutdown_request(self, request):
        with self._change:
            self._open.pop(request, None)
            self._change.notify_all()
        super().shutdown_request(request)

    def _admit(self, connection):
        """Whether there is a place, or one can be had in time."""
        deadline = time.monotonic() + self.PATIENCE
        with self._change:
            while len(self._open) >= self.CONNECTIONS:
                now, first = time.monotonic(), min(self._open, key=self._open.__getitem__)
                if self._open[first] <= now:
                    self._drop(first)
                elif now >= deadline:
                    return False
                else:
                    self._change.wait(min(self._open[first], deadline) - now)
            self._open[connection] = time.monotonic() + self.PATIENCE
            return True

    def _drop(self, connection):
        del self._open[connection]
        with suppress(OSError):  # it has gone by itself
            connection.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def keep(self, connection: socket.socket, until: float) -> bool:
        """Says until when a newcomer may not have its place; False if one has it already."""
        with self._change:
            if connection in self._open:
                self._open[connection] = until
                self._change.notify_all()
            return connection in self._open

    @contextmanager
    def turn(self):
        """One of the HANDLERS turns to answer."""
        if not self._turns.acquire(timeout=self.PATIENCE):
            raise _Refused(503, f"{self.HANDLERS} requests are being answered", Retry_After=1)
        try:
            yield
        finally:
            self._turns.release()

    # .. people ..

    def read(self, path: str, request: HttpRequest) -> tuple[str, bytes, int]:
        """The content type, the bytes and the HTTP status of a page."""
        page = self.pages[path]
        if not isinstance(page, Page):
            return page[0], page[1](), 200
        if request.role not in page.roles:
            self.service.audit("refuse", request, why=f"a {request.role} may not read {path}")
            fix = "send the token of this node: Authorization: Bearer TOKEN"
            raise _Refused(401, f"{path} needs the role {' or '.join(page.roles)}", "no token came with the request",
                           fix, WWW_Authenticate="Bearer")
        return page.kind, *page.answer(request)

    def is_mine(self, name: str, local: str) -> bool:
        """Whether a Host header's name is this node's; `local` is the address that the connection came to. A page that
        got its own name to resolve to this machine is stopped here."""
        parts = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?", name)
        host = (parts[1] or parts[2] or "").lower().rstrip(".") if parts else ""
        return host in self._hosts or host == _plain(local)

    def role_of(self, headers: Mapping[str, str], address: str) -> str:
        """Who calls: "admin" by the right token, "guest" by none. A wrong one is refused with 401, many with 429. The
        right token is taken even then: a neighbour on the same address must not lock its owner out."""
        given = headers.get("Authorization")
        if given is None:
            return "guest"
        scheme, _, token = given.partition(" ")
        right = hmac.compare_digest(_token_digest(token.strip(), "latin-1"), self._digest)
        if right and scheme.lower() == "bearer":
            return "admin"
        self.service.audit("refuse", address, why="wrong token")
        if wait := self._count_wrong_token(address):
            raise _Refused(429, "too many wrong tokens", f"wait {wait} s", Retry_After=wait)
        fix = "use the address that the node prints at its start"
        raise _Refused(401, "the token is wrong", "it is not this node's", fix, WWW_Authenticate="Bearer")

    def _count_wrong_token(self, address):
        """How many seconds the address should wait: 0 at first, then doubling."""
        now = time.monotonic()
        with self._change:
            count, since = self._wrong_tokens.get(address, (0, now))
            count, since = (count + 1, since) if now - since < 60 else (1, now)
            if len(self._wrong_tokens) > 1000:
                self._wrong_tokens.clear()
            self._wrong_tokens[address] = count, since
        return 0 if count <= self.WRONG_TOKENS else min(60, 2 ** (count - self.WRONG_TOKENS))

    def complain(self, address: str, what: str, mark: str) -> None:
        """Logs a bad request, unless one was logged just now: junk must not fill the disk."""
        with self._change:
            self._complaints += 1
            now = time.monotonic()
            if now < self._next_complaint:
                return
            count, self._complaints, self._next_complaint = self._complaints, 0, now + self.COMPLAINT_TIME
        log.warning("%d bad requests, the last from %s: %r [%s]", count, address, what, mark)


_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def server_tls(certificate: str, key: str) -> tuple[ssl.SSLContext, str]:
    """What makes a `ControlServer` speak TLS, from PEM files, and the certificate's fingerprint. Raises UsageError, and
    Error for a key that everybody can read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # nothing comes that nobody asked for: a kept connection that has bytes has ended
    try:
        if os.name == "posix" and os.stat(key).st_mode & 0o007:
            raise Error(f"{key} can be read by everybody", "who has it can pass for this node", f"chmod 600 {key}")
        context.load_cert_chain(certificate, key, password="")
        found = _CERTIFICATE.search(Path(certificate).read_text("latin-1"))
        return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).hexdigest()
    except (OSError, ValueError, TypeError) as error:
        what = f"the certificate {certificate} with the key {key} cannot be used"
        fix = "set master.certificate and master.certificate_key to PEM files that belong together"
        raise UsageError(what, str(error), fix) from None


def _token_digest(token, encoding="utf-8"):
    """Of one length for all tokens, so that comparing tells nothing; a header's bytes come as Latin-1."""
    return hashlib.sha256(token.encode(encoding, "replace")).digest()


def _cannot_listen(error, host, port):
    number = getattr(error, "errno", None)
    what, why = f"cannot listen on {format_address(host, port)}", str(error)
    fix = "choose another --port or --host"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        what, why, fix = f'cannot find the host "{host}"', _NO_NAME, "use an address of this machine"
    elif number == errno.EADDRINUSE:
        what, why = f"port {port} is in use", f"{_who_has(port)} has it"
        fix = f"stop that, or choose another, as in --port {port + 1}; slaves then need --master HOST:{port + 1}"
    elif number == errno.EADDRNOTAVAIL:
        what, why = f"{host} is not an address of this machine", "no network interface here has it"
    return components.UsageError(what, why, fix)


def _who_has(port):
    """Who listens there, as far as masters of this user have noted it."""
    with suppress(OSError):
        folder = Path((masters_folder() / str(port)).read_text().strip())
        return f"a master of yours, process {(folder / 'lock').read_text().strip()},"
    return "another program, perhaps an older node,"


# -- JSON-RPC: the proxy -------------------------------------------------------------------------------------

_ANSWER_LIMIT = 64 * 1024 * 1024  # bytes


class _Remote:
    """A method of a distant node: attributes lengthen its name, a call calls it."""

    def __init__(self, call, name=""):
        self._call, self._name = call, name

    def __getattr__(self, name):
        if name.startswith("_"):  # what Python itself asks for, as in copying
            raise AttributeError(name)
        return _Remote(self._call, f"{self._name}.{name}" if self._name else name)

    def __call__(self, *args, **kwargs):
        if args and kwargs:
            raise TypeError(f"{self._name}: JSON-RPC has positional or named parameters, not both")
        return self._call(self._name, kwargs or list(args))


class OtherCertificate(Unreachable):
    """Somebody answers in the master's place, or it has a new certificate."""


class _Pinned(http.client.HTTPSConnection):
    """Under TLS with whoever has this certificate, whatever name is in it, and nobody else."""

    def __init__(self, host, port, timeout, pin):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the fingerprint says more
        super().__init__(host, port, timeout=timeout, context=context)
        self._pin = pin

    def connect(self):
        super().connect()
        shown = hashlib.sha256(self.sock.getpeercert(binary_form=True)).hexdigest()
        if not hmac.compare_digest(shown, self._pin):
            self.close()
            place = format_address(self.host, self.port)
            raise OtherCertificate(f"{place} has another certificate than the access file says",
                                   "the master has a new one, or somebody answers in its place",
                                   "copy the master's access file again and pass --access FILE")


class Proxy(_Remote):
    """The methods of a node, as if they were here: `proxy.status()`, `proxy.slave.drain("s1")`. `url` is HOST:PORT,
    with or without http://. `timeout` (seconds) is for connecting and for each wait. A call blocks, returns the result
    or raises `RpcError`, or `Unreachable` when there is no node or no answer. With the fingerprint of its `certificate`
    (SHA-256, hex) it is spoken to under TLS; another one raises `OtherCertificate`. `proxy.notify.status()` asks for no
    result. Threads may share a proxy; its calls go one after the other on one connection. A call without an answer is
    not repeated: nobody knows whether the node has carried it out."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 5.0, certificate: str = ""):
        super().__init__(self._request)
        self._host, port = parse_address(url.removeprefix("http://").rstrip("/"))
        self._place, self._timeout = format_address(self._host, port), timeout
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = b"Bearer " + token.strip().encode()
        self._lock = threading.Lock()  # guards the connection from sending to the end of the answer
        plain = functools.partial(http.client.HTTPConnection, self._host, port, timeout=timeout)
        self._connection = _Pinned(self._host, port, timeout, certificate) if certificate else plain()
        self._numbers = itertools.count(1)
        self.notify = _Remote(self._notify)

    def batch(self, calls: Iterable[tuple[str, list | dict]]) -> list:
        """Calls several methods, each (name, params), in one request; returns results or `RpcError`s."""
        message = [self._message(name, params) | {"id": next(self._numbers)} for name, params in calls]
        if not message:
            return []
        answers = self._exchange(message)
        if not isinstance(answers, list):
            return _result(answers)  # raises: the batch was refused as a whole
        known = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
        return [_outcome(known.get(item["id"])) for item in message]

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        with self._lock:
            self._connection.close()

    def _message(self, name, params):
        return {"jsonrpc": "2.0", "method": name, "params": params}

    def _request(self, name, params):
        return _result(self._exchange(self._message(name, params) | {"id": next(self._numbers)}))

    def _notify(self, name, params):
        if (answer := self._exchange(self._message(name, params))) is not None:
            _result(answer)  # raises: it was refused

    def _exchange(self, message):
        """Sends a message and returns the answer, None for status 204."""
        body = json.dumps(message, allow_nan=False).encode()
        with self._lock:
            try:
                if _has_ended(self._connection.sock):
                    self._connection.close()  # it reconnects by itself
                self._connection.request("POST", "/api/1", body, self._headers)
                response = self._connection.getresponse()
                content = response.read(_ANSWER_LIMIT)
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                self._connection.close()
                raise self._unreachable(error) from error
            if response.status == 204:
                return None
            try:
                return _checked_answer(json.loads(content), message)
            except (ValueError, RecursionError):
                self._connection.close()
                raise self._stranger(response.headers.get("Server") or f"{response.status} {response.reason}") from None

    def _unreachable(self, error):
        place = self._place
        if isinstance(error, (socket.gaierror, UnicodeError)):
            what, why = f'cannot find the host "{self._host}"', _NO_NAME
            fix = "check the spelling or use the IP address (form HOST or HOST:PORT, without http://)"
        elif isinstance(error, ConnectionRefusedError):
            what = f"no master at {place} (connection refused)"
            why = "nothing listens there; the master is not started or has another port"
            fix = "`python master.py`, or without a cluster: `python client.py samples/md5.py --local`"
        elif isinstance(error, (ConnectionError, http.client.IncompleteRead)):
            what = f"{place} closed the connection without an answer"
            why = "it is stopping, or not a master, or one of the two speaks TLS and the other does not"
            fix = f"look at its log; test with `curl http://{place}/health`"
        elif isinstance(error, ssl.SSLError):
            what, why = f"{place} speaks no TLS", f"the access file says that the master there does ({error.reason})"
            fix = "copy the master's access file again and pass --access FILE"
        elif isinstance(error, http.client.HTTPException):
            return self._stranger(str(error))
        else:
            how = f"within {self._timeout:g} s" if isinstance(error, TimeoutError) else f"({error.strerror})"
            what = f"{place} did not answer {how}"
            why = "wrong address, a firewall, or a master that listens on its own machine only (the default)"
            fix = f"on the master `python master.py --host 0.0.0.0`; test with `curl http://{place}/health`"
        return components.Unreachable(what, why, fix)

    def _stranger(self, sent):
        what = f'{self._place} answers, but it is not a Concurrent node (it sent "{ascii(sent[:60])[1:-1]}")'
        fix = "the master prints its address on start; pass that with `--master`"
        return components.Unreachable(what, "another server uses this port", fix)


def _has_ended(connection):
    """Whether a connection that was kept for the next call has ended, or has bytes that nobody asked for."""
    if connection is None:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(0))


def _checked_answer(answer, message):
    """Raises ValueError unless it is what a JSON-RPC 2.0 server says to the message."""
    several = isinstance(answer, list) and isinstance(message, list)
    for each in answer if several else [answer]:
        if not isinstance(each, dict) or each.get("jsonrpc") != "2.0" or not {"result", "error"} & set(each):
            raise ValueError("no JSON-RPC 2.0 answer")
    return answer


def _outcome(answer):
    """The result, or an RpcError as a value."""
    if answer is None:
        return RpcError(INTERNAL_ERROR, "the node did not answer this call")
    if "result" in answer:
        return answer["result"]
    error = answer["error"] if isinstance(answer["error"], dict) else {}
    code, message = error.get("code"), error.get("message")
    return RpcError(code if isinstance(code, int) else INTERNAL_ERROR, str(message), error.get("data"))


def _result(answer):
    outcome = _outcome(answer)
    if isinstance(outcome, RpcError):
        raise outcome
    return outcome


# -- frames --------------------------------------------------------------------------------------------------

MAGIC = b"CS"
PROTOCOL = 3
HELLO, WELCOME, REFUSE, DATA, BEAT = range(5)
FRAMES = 0xFFFF0000  # FRAMES | n, in place of a length: the part is the next n ZeroMQ frames
REFERENCE = FRAMES  # in place of a length: the part lies in a file; a byte with a length and a text that says where
INLINE = 64 * 1024  # bytes; a part from this size on is sent uncopied: below it the copy is cheaper than the frame
MAX_PARTS = 4096
DEEPEST = 300  # levels of lists and objects in a call
MAX_MESSAGE = 256 * 1024 * 1024  # bytes, all parts together

_ENVELOPE = struct.Struct("<2sBB8sQQ")
_COUNT = struct.Struct("<H")
_TOTAL = struct.Struct("<I")


class ProtocolError(components.Error):
    """Bytes that are not a message of this protocol, or a message that would not be one."""


class VersionMismatch(ProtocolError):
    """The other side speaks another protocol number. `session` is the one it used."""

    def __init__(self, theirs: int, session: bytes) -> None:
        super().__init__(f"the other side speaks protocol {theirs}, this node speaks protocol {PROTOCOL}",
                         "the nodes of one swarm must have the same version of concurrent_swarm",
                         "install the same version on both, then start the older one again")
        self.session = session


class Message(NamedTuple):
    """One message of the compute channel, taken apart."""

    kind: int
    session: bytes
    number: int
    ack: int
    call: list
    parts: list


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


def _finite(text):
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)  # 1e999: it could not be sent on


def _no_json(value):
    raise TypeError(f"{type(value).__name__} is no JSON")


def _make_encode():
    """What turns a call into text. `JSONEncoder.encode` makes its C encoder anew, which is half of its cost."""
    plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
    make = json.encoder.c_make_encoder
    if make is None:
        return plain.encode
    encoder = make(None, _no_json, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda call: "".join(encoder(call, 0))


_encode = _make_encode()
_decode = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).scan_once


def size_of(part: Any) -> int:
    """Bytes of a part: a bytes-like, a list of bytes-likes that follow each other, or what lies in a file."""
    return sum(map(len, part)) if type(part) is list else part.size if type(part) is Place else len(part)


def join_parts(parts: list, envelope: bytes | None) -> bytes | None:
    """A message of which all parts are bytes and shorter than INLINE: its envelope (or None: the length of the rest),
    the number of parts, their lengths, and they themselves. None if some are not."""
    if not 1 <= len(parts) <= MAX_PARTS or {*map(type, parts)} != {bytes}:
        return None
    lengths = list(map(len, parts))
    if max(lengths) >= INLINE:
        return None
    table = struct.pack(f"<H{len(parts)}I", len(parts), *lengths)
    return b"".join((_TOTAL.pack(len(table) + sum(lengths)) if envelope is None else envelope, table, *parts))


def cut_parts(body: bytes, start: int) -> list[bytes] | None:
    """The parts of such a message, whose table is at `start`. None if it is another one, or not whole."""
    if type(body) is not bytes or not 0 <= start <= len(body) - _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(body, start)
    first = start + _COUNT.size + 4 * count
    if not 1 <= count <= MAX_PARTS or first > len(body):
        return None
    lengths = struct.unpack_from(f"<{count}I", body, start + _COUNT.size)
    if max(lengths) >= INLINE or first + sum(lengths) != len(body):
        return None
    return [body[at:end] for at, end in itertools.pairwise(itertools.accumulate(lengths, initial=first))]


def bytes_in(parts: Iterable) -> int:
    """How long parts are together that are all simply bytes; -1 if some are not."""
    return sum(map(len, parts)) if {*map(type, parts)} <= {bytes} else -1


pure_join_parts, pure_cut_parts, pure_bytes_in = join_parts, cut_parts, bytes_in
with suppress(ModuleNotFoundError):  # `tasks` says it if `fastpath` is not built
    from .fastpath import bytes_in, cut_parts, join_parts


def _sized(flat, name, by_file=False):
    """The sizes of all parts; what is in files is no part of the message if it goes `by_file`. Raises ProtocolError."""
    sizes = list(map(size_of if SEVERAL.intersection(map(type, flat)) else len, flat))
    inside = sum(sizes)
    if inside > MAX_MESSAGE:
        inside -= sum(size_of(part) for part in flat if isinstance(part, (Place, Reference) if by_file else Place))
    if len(flat) > MAX_PARTS or inside > MAX_MESSAGE:
        raise ProtocolError(
            f"{name} has {len(flat)} parts and {inside:,} bytes",
            f"a message may have {MAX_PARTS} parts and {MAX_MESSAGE:,} bytes (rpc.MAX_MESSAGE)",
            "split the work into smaller tasks, publish what many of them need, or pass large data as a file")
    return sizes


def pack_body(call: list, parts: Iterable = (), envelope: bytes = b"", local: str = "") -> list:
    """The body of a message as frames: the first holds `envelope`, the lengths and the small parts. A part is bytes, a
    view of bytes, a list of these that follow each other, or a `Reference`, which the peer can follow below `local`."""
    flat = [_encode(call).encode(), *parts]
    whole = join_parts(flat, envelope)
    if whole is not None:
        return [whole]
    lengths, small, frames = [], [], []
    for part, size in zip(flat, _sized(flat, call[0], bool(local)), strict=True):
        if type(part) is Reference and local and part.folder.startswith(local):
            text = part.to_text().encode()
            lengths.append(REFERENCE)
            small += (bytes([len(text)]), text)
        else:
            pieces = list(filter(len, pieces_of(part)))
            lengths.append(sum(map(len, pieces)) if size < INLINE else FRAMES | len(pieces))
            (small if size < INLINE else frames).extend(pieces)
    return [b"".join((envelope, struct.pack(f"<H{len(flat)}I", len(flat), *lengths), *small)), *frames]


def unpack_body(frames: list, start: int = 0, follow: Callable[[str], Any] | None = None) -> tuple[list, list]:
    """The call and the parts of a body that begins at `start` of the first frame; `follow` makes a part of the text of
    a reference, which nobody else may send. Raises ProtocolError."""
    parts = cut_parts(frames[0], start) if len(frames) == 1 else None
    if parts is None:
        parts = _cut(frames, start, follow)
    return _read_call(parts.pop(0)), parts


def _cut(frames, start, follow):
    body = frames[0]
    try:
        (count,) = _COUNT.unpack_from(body, start)
        lengths = struct.unpack_from(f"<{count}I", body, start + 2)
    except struct.error as error:
        raise ProtocolError("a message is cut short", str(error)) from error
    at, own, parts = start + 2 + 4 * count, 1, []
    for length in lengths:
        if length > FRAMES:
            pieces = frames[own : own + (length & 0xFFFF)]
            parts.append(pieces[0] if len(pieces) == 1 else pieces)
            own += length & 0xFFFF
        elif length == REFERENCE:
            end = at + 1 + body[at] if at < len(body) else at
            parts.append(_followed(bytes(body[at + 1 : end]), follow))
            at = end
        elif length < INLINE:
            parts.append(body[at : at + length])
            at += length
        else:
            parts.append(memoryview(body)[at : at + length])
            at += length
    if not 1 <= count <= MAX_PARTS or at != len(body) or own != len(frames):
        raise ProtocolError("the lengths in a message do not add up")
    return parts


def _followed(text, follow):
    if follow is None:
        raise ProtocolError("a message refers to a file, and its sender is not of this machine and user")
    return follow(text.decode("ascii", "replace"))


def _read_call(text):
    try:
        text = str(text, "utf-8")
        call, end = _decode(text, 0)
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: it is in frames of its own, or in a file
        raise ProtocolError("the call in a message is no JSON", str(error)) from error
    except StopIteration as place:
        raise ProtocolError("the call in a message is no JSON", f"a value is missing at character {place}") from place
    if end != len(text) or type(call) is not list or not call or type(call[0]) not in (str, int):
        raise ProtocolError("the call in a message is no list that begins with a method name")
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(call):
        raise ProtocolError(f"the call in a message is nested deeper than {DEEPEST} levels")
    return call


def _is_deep(call):
    """Whether it has more levels than it may: what is as deep as Python can read is too deep to be written again."""
    level = [call]
    for _ in range(DEEPEST):
        inside = itertools.chain.from_iterable(one.values() if type(one) is dict else one for one in level)
        level = [one for one in inside if type(one) in (list, dict)]
        if not level:
            return False
    return True


def _is_small(parts):
    return len(parts) <= GATHERED and 0 <= bytes_in(parts) <= SMALL


def _grouped(calls: deque) -> tuple[list, list]:
    """Takes the first of these (call, parts) out, or as many small ones as go together; see `calls_in`."""
    if len(calls) == 1 or not _is_small(calls[0][1]):
        return calls.popleft()
    group, parts = [], []
    while calls and len(group) < 2 * GATHERED and _is_small(calls[0][1]):
        call, own = calls.popleft()
        group += (len(own), call)
        parts += own
    return group, parts


def calls_in(call: list, parts: list) -> list[tuple[list, list]]:
    """The calls of a message, each with its parts."""
    if type(call[0]) is str:
        return [(call, parts)]
    ends = list(itertools.accumulate(call[::2]))
    return [(one, parts[end - count : end]) for count, one, end in zip(call[::2], call[1::2], ends, strict=True)]


def _check_group(call, parts):
    counts, calls = call[::2], call[1::2]
    if len(counts) != len(calls) or {*map(type, counts)} != {int} or min(counts) < 0 or sum(counts) != len(parts):
        raise ProtocolError("the parts of a group of calls do not add up")
    if not all(type(one) is list and one and type(one[0]) is str for one in calls):
        raise ProtocolError("a call of a group is no list that begins with a method name")


def pack(kind: int, session: bytes, number: int, ack: int, call: list, parts: Iterable = (), local: str = "") -> list:
    """One message as ZeroMQ frames; parts of 64 KiB and up become frames of their own, uncopied.

    Raises ProtocolError when it is too large, TypeError or ValueError when `call` cannot be JSON.
    """
    return pack_body(call, parts, _ENVELOPE.pack(MAGIC, PROTOCOL, kind, session, number, ack), local)


def unpack(frames: list, follow: Callable[[str], Any] | None = None) -> Message:
    """The message in ZeroMQ frames. Raises ProtocolError on anything odd, VersionMismatch on another protocol."""
    if not frames or len(frames[0]) < _ENVELOPE.size:
        raise ProtocolError("a message is too short for its envelope")
    magic, protocol, kind, session, number, ack = _ENVELOPE.unpack_from(frames[0])
    if magic != MAGIC:
        raise ProtocolError("a message does not begin with CS")
    if protocol != PROTOCOL:
        raise VersionMismatch(protocol, session)
    if kind > BEAT:
        raise ProtocolError(f"a message of the unknown kind {kind}")
    if len(frames) > 1 and sum(map(len, frames)) > MAX_MESSAGE + INLINE:
        raise ProtocolError(f"a message of more than {MAX_MESSAGE:,} bytes")
    call, parts = unpack_body(frames, _ENVELOPE.size, follow)
    if type(call[0]) is int:
        _check_group(call, parts)
        if kind != DATA:
            raise ProtocolError(f"several calls in a message of kind {kind}")
    return Message(kind, session, number, ack, call, parts)


def pack_stream(call: list, parts: Iterable = (), files: list | None = None) -> list:
    """One message for a socketpair, as buffers for `sendmsg`: large parts uncopied, the rest joined. Files that parts
    refer to are added to `files`, to send their descriptors along; without it what they hold is in the message."""
    flat = [_encode(call).encode(), *parts]
    whole = join_parts(flat, None)
    if whole is not None:
        return [whole]
    sizes = _sized(flat, call[0], files is not None)
    if SEVERAL.intersection(map(type, flat)):
        flat, sizes, lengths = _inline(flat, files)
    else:
        lengths = sizes
    small = [struct.pack(f"<IH{len(lengths)}I", 2 + 4 * len(lengths) + sum(sizes), len(lengths), *lengths)]
    buffers = []
    for part in flat:
        if len(part) < INLINE:
            small.append(part)
        else:
            buffers += [b"".join(small), part] if small else [part]
            small = []
    return [*buffers, b"".join(small)] if small else buffers


def _inline(flat, files):
    """Parts for a stream as pieces, with the sizes of these, and the lengths that the table has for the parts."""
    pieces, lengths = [], []
    for part in flat:
        if type(part) is Reference and files is not None:
            place = part.folder, part.name
            if place not in files:
                files.append(place)
            part = Place(files.index(place), part.at, part.size)
        if type(part) is Place:
            text = part.to_text().encode()
            lengths.append(REFERENCE)
            pieces += (bytes([len(text)]), text)
        else:
            own = pieces_of(part)
            lengths.append(sum(map(len, own)))
            pieces += own
    return pieces, list(map(len, pieces)), lengths


def pieces_of(part):
    """A part as bytes-likes. What a file holds is read: who can cut a mapped one short could end this process. If it
    is gone, whoever opens the part will hear why."""
    if type(part) is not Reference:
        return part if type(part) is list else [part]
    try:
        return [part.read()]
    except (OSError, ProtocolError) as error:
        return [bytes([GONE]) + str(error).encode()]


# -- sessions ------------------------------------------------------------------------------------------------

class Timing(NamedTuple):
    """The intervals of the compute channel, in seconds. Both ends of a swarm use the same ones."""

    beat: float = 1.0  # a sign of life when nothing else was sent for so long
    dead: float = 10.0  # a peer silent for so long is lost
    probe: float = 0.5  # a beat when messages were not acknowledged for so long
    ack: float = 0.1  # an acknowledgement of its own after so long
    asleep: float = 5.0  # a pause of the own loop that means: we were suspended, the peers were not silent
    hello: float = 1.0  # between two HELLOs
    retry: float = 0.1  # before a refused link tries again; doubles
    retry_max: float = 5.0
    held: float = 0.05  # before a message that ZeroMQ did not take is tried again


TIMING = Timing()
ACK_EVERY = 64  # received messages


class Session:
    """One end of a conversation: numbers what it sends and keeps it until acknowledged, delivers once and in order. It
    has no socket and no clock. To send: `wrap`, and whenever it or `due` returns frames, give them to the socket and
    say `sent` (or do not, when it refused: they stay due). To receive: `accept` for DATA, `heard` for a BEAT."""

    def __init__(self, ident: bytes, timing: Timing, now: float) -> None:
        self.id = ident
        self.timing = timing
        self.received = 0  # highest number received in order
        self.unsaid = 0  # messages received since we last said so
        self.pending_bytes = 0
        self.heard_at = self.sent_at = now
        self._window = deque()  # (frames, size, parts, call) of the numbers _acked + 1, + 2, …
        self._acked = 0
        self._cursor = 1  # the first number not given to the socket
        self._ack_by = math.inf
        self._ask = False  # something is missing: the next BEAT asks for it
        self._asked_at = -math.inf

    @property
    def pending(self) -> int:
        """How many messages were not acknowledged yet."""
        return len(self._window)

    @property
    def waiting(self) -> bool:
        """Whether a message has still to be given to the socket."""
        return self._cursor <= self._acked + len(self._window)

    def wrap(self, call: list, parts: Iterable = (), local: str = "") -> list | None:
        """Number a call and keep it, and files that it refers to. Returns its frames if they may be sent now, None if
        others wait before it. `local` as for `pack_body`."""
        number = self._acked + len(self._window) + 1
        frames = pack(DATA, self.id, number, self.received, call, parts, local)
        size = sum(map(len, frames))
        self._window.append((frames, size, list(parts) if local else None, call))
        self.pending_bytes += size
        if not self._ask:
            self.unsaid, self._ack_by = 0, math.inf
        return frames if self._cursor == number else None

    def due(self) -> list | None:
        """The frames of the next message that the socket should get, None if it has them all."""
        return self._window[self._cursor - self._acked - 1][0] if self.waiting else None

    def sent(self, now: float) -> None:
        """The socket took what `wrap` or `due` returned."""
        self._cursor += 1
        self.sent_at = now

    def accept(self, number: int, ack: int, now: float) -> bool:
        """A DATA message came. True: it is the next one; False: drop it. Raises ProtocolError as `heard`."""
        self.heard(ack, now)
        if number == self.received + 1:
            self.received = number
            self.unsaid += 1
            self._asked_at = -math.inf
            self._ack_by = min(self._ack_by, now + self.timing.ack)
            return True
        if number <= self.received:  # our acknowledgement may be lost
            self._ack_by = min(self._ack_by, now + self.timing.ack)
        else:
            self._missing(now)
        return False

    def _missing(self, now):
        if now - self._asked_at >= self.timing.probe:
            self._ask, self._asked_at = True, now

    def heard(self, ack: int, now: float) -> None:
        """The peer is alive and has everything up to `ack`. Raises ProtocolError if that was never sent."""
        if ack > self._acked + len(self._window):
            raise ProtocolError(f"message {ack} was acknowledged but never sent")
        self.heard_at = now
        while self._acked < ack:
            self.pending_bytes -= self._window.popleft()[1]
            self._acked += 1
        self._cursor = max(self._cursor, self._acked + 1)

    def beaten(self, number: int, call: list, now: float) -> None:
        """A BEAT of the peer, which has sent DATA up to `number`; "resend" asks for everything not acknowledged."""
        if number > self.received:
            self._missing(now)
        if call[0] == "resend":
            self.rewind()

    def unheard(self, wanted: Callable[[list], bool]) -> list[tuple[list, Iterable]]:
        """Those of the wanted calls that are not acknowledged, with their parts."""
        found = []
        for frames, _, parts, call in self._window:
            if any(map(wanted, call[1::2] if call and type(call[0]) is int else [call])):
                found += calls_in(call, unpack(frames).parts if parts is None else parts)
        return [one for one in found if wanted(one[0])]

    def rewind(self) -> None:
        """Send everything that is not acknowledged again: the connection may have lost it."""
        self._cursor = self._acked + 1

    def beat(self, now: float) -> list | None:
        """The frames of a BEAT, if one is due: to acknowledge, to ask for lost messages, to show life."""
        quiet = self.timing.probe if self._window else self.timing.beat
        if not (self._ask or self.unsaid >= ACK_EVERY or now >= min(self._ack_by, self.sent_at + quiet)):
            return None
        call = ["resend"] if self._ask else ["beat"]
        return pack(BEAT, self.id, self._cursor - 1, self.received, call)

    def beat_sent(self, now: float) -> None:
        """The socket took what `beat` returned."""
        self.sent_at, self.unsaid, self._ack_by, self._ask = now, 0, math.inf, False

    def silent(self, now: float) -> bool:
        """Whether the peer gave no sign of life for too long."""
        return now - self.heard_at >= self.timing.dead

    def deadline(self, now: float) -> float:
        """When to look at this session again, if nothing happens before."""
        if self._ask or self.waiting:
            return now
        quiet = self.timing.probe if self._window else self.timing.beat
        return min(self._ack_by, self.sent_at + quiet, self.heard_at + self.timing.dead)


# -- endpoints -----------------------------------------------------------------------------------------------

NOBLOCK, SNDMORE, EVENTS, READABLE = 1, 2, 15, 1  # ZeroMQ's numbers: pyzmq's enums cost a tenth of a busy loop
HANDSHAKE_FAILED = 0x0800 | 0x2000 | 0x4000  # without a word, by the protocol, by the key
HIGH_WATER = 1000  # messages in a ZeroMQ queue: credits keep far below, this stops what credits did not foresee
MAX_SESSIONS = 16  # of one key at the same time
GATHERED = 32  # calls that wait for the end of a turn at most
SMALL = 16 * 1024  # bytes of the parts of a call that may wait for others
ROOM = 32 * 1024 * 1024  # bytes that a peer may leave unacknowledged until further calls to it wait
LAGGING = 1024 * 1024  # bytes that a peer has not acknowledged from which on it gets no output of tasks
LEFT = "it left"  # the reason of `on_lost` when a node said goodbye
STOPPED = "it has stopped"  # and of a link's when its master did
FAREWELL = 1.0  # seconds in which nodes say that they have heard that
COMPLAIN = 10.0  # seconds between two log lines about the same kind of trouble


def tcpremote(endpoint: Endpoint, name: str | None = None, roles: Iterable[str] | None = None) -> Callable:
    """Decorate a function as a method that the other side may call on `endpoint`, by `name` (its own by default), if it
    has one of the `roles` (by default any). It is called `function(endpoint, request, *params)`; what it returns, other
    than None, goes back as `<name>_response`, an error as `<name>_failed`."""

    def register(function):
        allowed = None if roles is None else frozenset(roles)
        endpoint.methods[name or function.__name__] = _Method(function, *_arity(function), allowed)
        return function

    return register


class _Method(NamedTuple):
    function: Callable
    few: int
    many: float
    roles: frozenset | None


def _arity(function):
    """How few and how many parameters may follow endpoint and request."""
    given = list(inspect.signature(function).parameters.values())
    plain = [each.default is each.empty for each in given if each.kind <= each.POSITIONAL_OR_KEYWORD]
    open_end = any(each.kind is each.VAR_POSITIONAL for each in given)
    return sum(plain) - 2, math.inf if open_end else len(plain) - 2


@dataclass(slots=True)
class Request:
    """One call that came in: `peer` sent it, `parts` are its opaque bytes."""

    peer: Peer
    method: str
    parts: list


class Peer:
    """Who is at the other end: `session` carries the calls, `role`, `key` and `name` come from its authenticated key,
    `info` is what it said of itself, `route` where ZeroMQ finds it. `lost` once the session is over."""

    def __init__(self, session: Session, role: str, key: str = "", name: str = "", info: dict | None = None) -> None:
        self.session, self.role, self.key, self.name, self.info = session, role, key, name, info or {}
        self.id = session.id  # its eight bytes
        self.route, self.attempt, self.welcome, self.lost = b"", 0, {}, False
        self.local = ""  # the folder below which it can follow references to files
        self.backlog: deque[tuple[list, Iterable]] = deque()  # calls that its session has no room for, or of this turn

    @property
    def unheard(self) -> bool:
        """Whether it has not acknowledged all that was sent."""
        return bool(self.session.pending or self.backlog)

    def unsaid(self, wanted: Callable[[list], bool]) -> list[tuple[list, Iterable]]:
        """Those of the wanted calls that it has not acknowledged, oldest first, with their parts."""
        return [*self.session.unheard(wanted), *(one for one in self.backlog if wanted(one[0]))]

    @property
    def lags(self) -> bool:
        """Whether so much is on its way that what can be spared should not be sent."""
        return self.session.pending_bytes > LAGGING

    def __repr__(self) -> str:
        return f"<{self.role} {self.name or self.id.hex()}>"


class _Proxy:
    """Calls of one peer that look like methods and wait for nothing."""

    def __init__(self, endpoint, peer):
        self._endpoint, self._peer = endpoint, peer

    def __getattr__(self, method):
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *params, parts=(): self._endpoint.send(self._peer, [method, *params], parts)


class Endpoint:
    """What both ends share: the table of methods, dispatch, and the care for sessions. It belongs to one thread. The
    owner polls its sockets, calls `receive` when one is readable and `tick` in each turn, and waits no longer than
    until the time that `tick` returned. `counts` tells what was refused or dropped."""

    def __init__(self, clock: Callable[[], float], timing: Timing) -> None:
        import zmq

        self._zmq = zmq
        self.clock, self.timing = clock, timing
        self.methods: dict[str, _Method] = {}
        self.counts: Counter[str] = Counter()
        self.socket = None
        self.store: Store | None = None  # of the node, if large parts go to and from peers on this machine by file
        self._context = zmq.Context()
        self._get = self._receive = self._send = None  # of the socket, past what pyzmq does for people
        self._wake = self._turned = clock()
        self.loop: Loop | None = None  # of the owner, if `gather` is to gather
        self.audit: Callable[..., None] = lambda event, who, **facts: None  # hears of what was refused, in any thread
        self._complained: dict[str, tuple[float, int]] = {}

    def proxy(self, peer: Peer | None = None) -> Any:
        """An object whose methods are calls of `peer`, or of a link's master: `proxy(peer).lease(1, 2, parts=[…])`."""
        return _Proxy(self, peer)

    def send(self, peer: Peer, call: list, parts: Iterable = ()) -> None:
        """Send a call once and in order, without waiting; to a lost peer it goes nowhere (`on_lost` said so). Raises
        ProtocolError when it is too large, TypeError or ValueError when `call` cannot be JSON."""
        if peer.lost:
            self.counts["to lost peers"] += 1
        elif peer.backlog or peer.session.pending_bytes > ROOM:
            parts = list(parts)
            _sized([_encode(call).encode(), *parts], call[0], bool(peer.local))  # it may be too large
            peer.backlog.append((call, parts))
        else:
            self._send_now(peer, call, parts)

    def gather(self, peer: Peer, call: list, parts: Collection) -> None:
        """Send a call that is JSON; in a turn that has more to send, at its end, with others in one message."""
        if self.loop is None or not self.loop.crowded or peer.lost or not _is_small(parts):
            self.send(peer, call, parts)
            return
        if not peer.backlog:
            self.loop.at_end(lambda: self._care(peer, self.clock()))
        peer.backlog.append((call, parts))
        if len(peer.backlog) == GATHERED:
            self._care(peer, self.clock())

    def _send_now(self, peer, call, parts):
        frames = peer.session.wrap(call, parts, peer.local)
        now = self.clock()
        if frames is not None and self._transmit(peer, frames):
            peer.session.sent(now)
        self._wake = min(self._wake, now + self.timing.ack)

    def dispatch(self, peer: Peer, call: list, parts: list) -> None:
        """Run the method that `call` names and answer for it; whatever happens inside is the sender's answer."""
        name, params = call[0], call[1:]
        method = self.methods.get(name)
        if method is None:
            self._answer_failed(peer, name, METHOD_NOT_FOUND, f"there is no method {name[:80]!r}")
        elif method.roles is not None and peer.role not in method.roles:
            self.audit("refuse", peer, why=f"a {peer.role} may not call {name}")
            self._answer_failed(peer, name, NOT_ALLOWED, f"a {peer.role} may not call {name!r}")
        elif not method.few <= len(params) <= method.many:
            text = f"{name!r} takes {method.few} to {method.many} parameters, not {len(params)}"
            self._answer_failed(peer, name, INVALID_PARAMS, text)
        else:
            result, error = self._attempt(method.function, self, Request(peer, name, parts), *params)
            if error is None and result is not None and not _is_answer(name):
                _, error = self._attempt(self.send, peer, [f"{name}_response", result])
            if error is not None:
                self._answer_failed(peer, name, SERVER_ERROR, str(error))

    def _attempt(self, function, *args):
        """Call what a peer set off: the border where nothing may pass. Returns (result, Error or None)."""
        try:
            return function(*args), None
        except components.Error as error:
            return None, error
        except Exception as crash:  # whatever a handler raises is its caller's answer
            self._complain("crashes", "what a peer set off failed", level=logging.ERROR, exc_info=True)
            return None, components.Error(f"{type(crash).__name__}: {crash}")

    def _answer_failed(self, peer, name, code, text):
        self.counts["failed calls"] += 1
        if _is_answer(name):
            self._complain("unwanted answers", "%r sent %.80r, which nobody waits for: %s", peer, name, text)
        else:
            self.send(peer, [f"{name[:80]}_failed", {"c": code, "m": text, "t": ""}])

    def _complain(self, kind, text, *args, level=logging.WARNING, exc_info=False):
        """Count a trouble that a peer can cause, and log it, but not faster than the log can be read."""
        self.counts[kind] += 1
        now = self.clock()
        last, before = self._complained.get(kind, (-math.inf, 0))
        if now - last >= COMPLAIN:
            text += " (%d more since the last line)"
            log.log(level, text, *args, self.counts[kind] - before - 1, exc_info=exc_info)
            self._complained[kind] = (now, self.counts[kind])

    def _open_socket(self, kind, **options):
        """Make the endpoint's socket. No ZMTP heartbeats: they prove that an I/O thread lives, ours prove that
        the node's loop does; and where they cut a slow line they lose messages."""
        plain = self._zmq.backend.Socket
        made = self.socket = self._context.socket(kind)
        self._get, self._receive, self._send = (one.__get__(made) for one in (plain.get, plain.recv, plain.send))
        keys = {
            "LINGER": 0,
            "HANDSHAKE_IVL": 3000,  # ms; the default of 30 s leaves a node deaf after a short partition
            "TCP_KEEPALIVE": 1,  # frees the descriptor of a machine that vanished
            "TCP_KEEPALIVE_IDLE": 60, "IPV6": 1,
            "SNDHWM": HIGH_WATER, "RCVHWM": HIGH_WATER, "MAXMSGSIZE": MAX_MESSAGE + INLINE, **options,
        }
        for key, value in keys.items():
            made.set(getattr(self._zmq, key), value)

    def _read(self, routed=False, ask=True):
        """The route (with `routed`) and the frames of the next message, and the first frame as ZeroMQ gave it, which is
        None when there is no message. Whether there is one need not be asked after a poll: there is, nearly always."""
        if ask and not self._get(EVENTS) & READABLE:
            return b"", [], None
        try:
            route = self._receive(NOBLOCK) if routed else b""
            first = frame = self._receive(NOBLOCK, False)
        except self._zmq.Again:
            return b"", [], None
        frames = [first.bytes]
        while frame.more:
            frame = self._receive(NOBLOCK, False)
            if len(frames) <= MAX_PARTS + 1:  # more than a message can have: unpack will say so
                frames.append(frame.bytes if len(frame) < INLINE else frame.buffer)
        return route, frames, first

    def _post(self, frames):
        """Give a message to ZeroMQ without waiting. False: there is no connection or no room, the session keeps it."""
        try:
            for frame in frames[:-1]:
                self._send(frame, SNDMORE | NOBLOCK, len(frame) < INLINE)
            self._send(frames[-1], NOBLOCK, len(frames[-1]) < INLINE)
        except self._zmq.ZMQError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                raise
            return False
        return True

    def _take(self, peer, message, now):
        """A DATA or BEAT of a known session. Raises ProtocolError."""
        session = peer.session
        if message.kind == DATA:
            if session.accept(message.number, message.ack, now):
                calls = calls_in(message.call, message.parts)
                self._crowd(len(calls))
                for call, parts in calls:
                    if not peer.lost:
                        self.dispatch(peer, call, parts)
        else:
            session.heard(message.ack, now)
            session.beaten(message.number, message.call, now)
        if session.waiting or session.unsaid >= ACK_EVERY or peer.backlog:
            self._care(peer, now)
        self._wake = min(self._wake, now + self.timing.ack)

    def _crowd(self, calls):
        if calls > 1 and self.loop is not None:
            self.loop.crowded = True

    def _care(self, peer, now):
        """Send what is due in a session; returns when to look again."""
        session = peer.session
        if peer.lost:
            return math.inf
        while peer.backlog and session.pending_bytes <= ROOM and not peer.lost:
            _, error = self._attempt(self._send_now, peer, *_grouped(peer.backlog))
            if error is not None:  # a file that is gone; in a new session everything is said again
                self._give_up(peer, f"what it was to get is gone: {error.what}", now)
        while (frames := session.due()) is not None and self._transmit(peer, frames):
            session.sent(now)
        if (frames := session.beat(now)) is not None and self._transmit(peer, frames):
            session.beat_sent(now)
        return max(session.deadline(now), now + self.timing.held)  # a socket that takes nothing is no reason to spin

    def _follow(self, text):
        return Reference.from_text(text, self.store.root)

    def _slept(self, now):
        """How long this loop was suspended since its last turn, 0 for a normal turn."""
        pause, self._turned = now - self._turned, now
        return pause if pause > self.timing.asleep else 0.0

    def close(self) -> None:
        """Close the sockets, giving the last messages a moment to leave. The endpoint is of no use afterwards."""
        if self.socket is not None:
            self.socket.close(linger=200)
            self.socket = None
        self._context.term()


def _is_answer(name):
    return name.endswith(("_response", "_failed"))


class Channel(Endpoint):
    """The master's end: one ROUTER, bound to a socket file and to TCP ports, that admits the keys of a keyring. Assign
    the hooks: `on_hello(peer, info)` returns what the node is told in its welcome, or raises Error to refuse it;
    `on_lost(peer, reason)` says that a session is over and what was sent in it may be lost."""

    def __init__(self, keyring: Keyring, clock: Callable[[], float] = time.monotonic, timing: Timing = TIMING) -> None:
        super().__init__(clock, timing)
        self.keyring = keyring
        self.peers: dict[bytes, Peer] = {}
        self.on_hello: Callable[[Peer, dict], dict] = lambda peer, info: {}
        self.on_lost: Callable[[Peer, str], None] = lambda peer, reason: None
        self._doors: list[str] = []  # that are open
        self._knocked: set[str] = set()  # keys of our own, which nobody knows
        door = self._context.socket(self._zmq.REP)
        door.bind("inproc://zeromq.zap.01")  # before any other bind: without it nobody is refused
        threading.Thread(target=self._keep_door, args=(door,), name="zap", daemon=True).start()
        self._open_socket(self._zmq.ROUTER, ROUTER_MANDATORY=1, ZAP_ENFORCE_DOMAIN=1)
        self.socket.zap_domain = b"compute"

    def _keep_door(self, door):
        """Answer ZeroMQ, for each handshake, whose key it is; ends with the context."""
        with door:
            while True:
                try:
                    version, request, _domain, address, _identity, mechanism, *secret = door.recv_multipart()
                    key, _ = self._attempt(self.keyring.admit, mechanism, secret)
                    if key is None and claimed_key(mechanism, secret) not in self._knocked:
                        self._complain("unknown keys", "an unknown key from %r was turned away", address)
                        self.audit("refuse", _plain(address.decode("ascii", "replace")), why="unknown or revoked key")
                    user = b"%s %s" % (key.encode(), mechanism) if key else b""
                    verdict = [b"200", b"", user] if key else [b"400", b"unknown key", b""]
                    door.send_multipart([version, request, *verdict, b""])
                except self._zmq.ContextTerminated:
                    return

    def bind_ipc(self, path: str) -> None:
        """Listen on a socket file for nodes of this user. Its folder must be private. Raises Error."""
        _check_private(os.path.dirname(os.path.abspath(path)), 0o700)
        self.socket.plain_server = 1  # options are copied at bind: each address keeps its own mechanism
        self._bind(f"ipc://{path}")

    def bind_tcp(self, host: str, port: int = 0) -> int:
        """Listen on a TCP port, any free one for 0; returns it. Raises Error, also if the keys are not in order."""
        require_keys(host, self.keyring)
        self.socket.plain_server = 0
        self.socket.curve_server = 1
        self.socket.curve_secretkey = self.keyring.secret_key.encode()
        self._bind(f"tcp://{format_address(host, port or '*')}")
        return int(self.socket.last_endpoint.decode().rpartition(":")[2])

    def _bind(self, address):
        try:
            self.socket.bind(address)
        except self._zmq.ZMQError as error:
            raise Error(f"cannot listen on {address} ({error})",
                        "another program has it, it is not an address of this machine, or the path is too long",
                        "stop that program, or choose another address") from error
        self._doors.append(self.socket.last_endpoint.decode())

    def check_doors(self, patience: float = 5.0) -> None:
        """Knocks at each address with a key that nobody knows. Raises Error if it gets in: then anybody would."""
        zmq = self._zmq
        for address in self._doors:
            pair = _key_pair()
            self._knocked.add(pair["public_key"])
            stranger = Credentials("slave", pair, Access({}, self.keyring.public_key, "slave", pair["secret_key"]))
            with self._context.socket(zmq.DEALER) as knocking:
                knocking.linger, knocking.ipv6 = 0, 1
                stranger.dress(knocking, address)
                with knocking.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_FAILED) as told:
                    knocking.connect(address)
                    event = struct.unpack_from("=H", told.recv())[0] if told.poll(1000 * patience) else None
                    knocking.disable_monitor()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                raise Error(f"{address} lets in keys that nobody knows", "nothing would keep strangers out",
                            "install pyzmq with a libzmq that has CURVE and ZAP: python -m pip install pyzmq")
            if event is None:
                log.warning("%s has not answered the knock of a stranger within %.0f s", address, patience)

    def receive(self, limit: int = 256) -> int:
        """Read and dispatch up to `limit` messages without waiting; returns how many there were."""
        for count in range(limit):
            route, frames, first = self._read(routed=True, ask=count > 0)
            if first is None:
                return count
            self._crowd(1 + count)
            self._arrived(route, frames, first, self.clock())
        return limit

    def _arrived(self, route, frames, first, now):
        try:
            peer = self.peers.get(frames[0][4:12])
            message = unpack(frames, self._follow if peer and peer.local and peer.route == route else None)
            user = peer.key if peer and route == peer.route else _user_of(first)[0]
            if message.kind == HELLO:
                self._hello(route, user, message, now, _user_of(first)[1] == "PLAIN")
            elif peer is None:
                self._refuse(route, message.session, "unknown session")
            elif user != peer.key:
                self._complain("forged", "%.40r used the session of %r", user, peer)
                self.audit("refuse", user, why=f"it used the session of {peer.name}")
                self._refuse(route, message.session, "session of another node")
            elif message.kind == REFUSE:
                self.drop(peer, LEFT)
            elif message.kind == WELCOME:
                raise ProtocolError("a node sent a welcome")
            else:
                self._take(peer, message, now)
        except VersionMismatch as error:
            self._complain("other versions", "a node was refused: %s", error)
            self._refuse(route, error.session, "version", error)
        except ProtocolError as error:
            self._garbage(route, error)

    def _garbage(self, route, error):
        self._complain("garbage", "a message was dropped: %s", error)
        for peer in [peer for peer in self.peers.values() if peer.route == route]:
            self.drop(peer, "it sent garbage")
        self._refuse(route, bytes(8), "garbage", error)

    def _hello(self, route, key, message, now, here):
        peer = self.peers.get(message.session)
        info, known = message.call[1:] if len(message.call) == 3 else (None, None)
        if not isinstance(info, dict):
            raise ProtocolError("a HELLO without information")
        if peer is None:
            if known:
                return self._refuse(route, message.session, "unknown session")
            role, name = self.keyring.entry(key) or ("", "")
            peer = Peer(Session(message.session, self.timing, now), role, key, name, info)
            _, error = self._attempt(self._admit, peer)
            if error is not None:
                self._complain("refused", "%r was refused: %s", peer, error)
                self.audit("refuse", peer, why=error.what)
                return self._refuse(route, message.session, "not admitted", error)
        elif peer.key != key:
            self._complain("forged", "%.40r said hello with the session of %r", key, peer)
            self.audit("refuse", key, why=f"it said hello with the session of {peer.name}")
            return self._refuse(route, message.session, "session of another node")
        if message.number <= peer.attempt:
            return None  # from a connection before this one
        peer.session.heard(message.ack, now)
        peer.session.rewind()
        peer.route, peer.attempt = route, message.number
        payloads = self.store.identity if self.store else ""
        peer.local = self.store.root if here and self.store and info.get("payloads") == payloads else ""
        welcome = {**peer.welcome, "payloads": payloads if peer.local else ""}
        self._post([route, *pack(WELCOME, peer.id, 0, peer.session.received, ["welcome", welcome])])
        self._wake = min(self._wake, self._care(peer, now))

    def _admit(self, peer):
        """Take a newcomer in. Raises Error."""
        wanted = peer.info.get("role")
        if not peer.role:
            raise Unreachable(*_REMOVED_KEY)
        if wanted != peer.role:
            raise Unreachable(
                f"the master refused {peer.name}: it has a {peer.role} key and wants to be {str(wanted)[:20]!r}",
                "each role has an access file of its own",
                "take the access file of that role, and an environment made for it (--env DIR)")
        if sum(other.key == peer.key for other in self.peers.values()) >= MAX_SESSIONS:
            raise components.Error(f"{peer.name!r} has {MAX_SESSIONS} sessions already")
        peer.welcome = self.on_hello(peer, peer.info) or {}
        self.peers[peer.id] = peer

    def _refuse(self, route, session, reason, error=None):
        about = {"reason": reason}
        if error is not None:
            about |= {"what": error.what, "why": error.why, "fix": error.fix}
        self.counts["refusals"] += 1
        self._post([route, *pack(REFUSE, session, 0, 0, ["refuse", about])])

    def drop(self, peer: Peer, reason: str, error: components.Error | None = None) -> None:
        """End the session of a peer: tell it, and the owner by `on_lost`."""
        if self.peers.pop(peer.id, None) is not None:
            peer.lost = True
            self._refuse(peer.route, peer.id, "session over" if error else "unknown session", error)
            self._attempt(self.on_lost, peer, reason)

    def close(self) -> None:
        """Tell all peers that their master stops, and close once they have heard it, or soon: what comes together with
        the end of its connection a node may not read any more."""
        try:
            self._part()
        finally:
            super().close()

    def _part(self):
        for peer in self.peers.values():
            self._post([peer.route, *pack(REFUSE, peer.id, 0, peer.session.received, ["refuse", {"reason": STOPPED}])])
        until = self.clock() + FAREWELL
        while self.peers and (left := until - self.clock()) > 0 and self.socket.poll(1 + int(1000 * left)):
            with suppress(ProtocolError):
                message = unpack(self._read(routed=True)[1])
                if message.kind == REFUSE:
                    self.peers.pop(message.session, None)
        self.peers.clear()

    def _transmit(self, peer, frames):
        return self._post([peer.route, *frames])

    def _give_up(self, peer, reason, now):
        self.drop(peer, reason)

    def tick(self, now: float) -> float:
        """Send what is due, notice who is lost or whose key was removed; returns when to call again at the latest."""
        slept = self._slept(now)
        for peer in self.peers.values() if slept else ():
            peer.session.heard_at += slept
        if now < self._wake and not slept:
            return self._wake
        removed = self.keyring.drop_removed()
        wake = now + self.timing.beat
        for peer in list(self.peers.values()):
            if peer.key in removed:
                self.drop(peer, "its key was removed", Unreachable(*_REMOVED_KEY))
            elif peer.session.silent(now):
                self.drop(peer, f"no word for {now - peer.session.heard_at:.0f} s")
            else:
                wake = min(wake, self._care(peer, now))
        self._wake = wake
        return wake


def _plain(address):
    """An address as people write it, of IPv4 also where a socket for both says it."""
    return address.removeprefix("::ffff:")


def _user_of(frame):
    """The key of whoever sent this frame, and how its connection is secured, as the doorkeeper said."""
    key, _, mechanism = frame.get("User-Id").partition(" ")
    return key, mechanism


# What, why and how to fix it.
_REMOVED_KEY = ("the master does not know this node's key",
                "it was removed or revoked there, or this node never enrolled",
                "ask the master's owner for access, then start this node again with the master's access file")
_OTHER_MECHANISM = ("the master and this node do not secure the connection in the same way",
                    "one of them has no key, or something else than a master listens there",
                    "start this node with the access file that the master wrote (--access FILE)")
_OTHER_KEY = ("the master has another key than this node expects",
              "the key file here belongs to another master, or the master made new keys",
              "copy the master's access file again and pass --access FILE")


class Link(Endpoint):
    """A node's end: one DEALER, a session that survives reconnects, and clear words when the master says no. `state` is
    "connecting", "ready" or "lost". Assign the hooks: `on_welcome(info, fresh)`: calls go through, and if `fresh` this
    is a new session, nothing of an older one will arrive any more, so submit again; `on_lost(reason)`;
    `on_refused(error)`: why the master does not let this node in. The link keeps trying: the owner gives up, or not."""

    def __init__(self, credentials: Credentials, info: dict, clock: Callable[[], float] = time.monotonic,
                 timing: Timing = TIMING) -> None:
        super().__init__(clock, timing)
        self.credentials = credentials
        self.info = {**info, "role": credentials.role}
        self.state = "connecting"
        self.monitor = None
        self.on_welcome: Callable[[dict, bool], None] = lambda info, fresh: None
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.on_refused: Callable[[components.Error], None] = lambda error: None
        self.outlives: Callable[[list], bool] = lambda call: False  # a call that is said again in the next session
        self.on_hello: Callable[[], dict] = dict  # what else to say of this node
        self._addresses: dict = {}
        self._retired: list = []  # closed sockets that a poller may still know
        self.moved = False  # its sockets are others than those that `watch` has seen
        self._wait, self._open_at, self._welcomed_at = timing.retry, math.inf, -math.inf
        self._attempt_number = self._bad_handshakes = 0
        self._said = ""
        self._new_session()

    def _new_session(self):
        """Leave the old session behind, with everything queued in it."""
        self.master = Peer(Session(secrets.token_bytes(8), self.timing, self.clock()), "master", name="master")
        self._known = False  # whether the master welcomed this session
        self._greeted = False  # ... on this connection
        self._hello_at = math.inf  # the connection is not there yet

    @property
    def session(self) -> Session:
        """The session with the master. A new object when the old one is over."""
        return self.master.session

    def connect(self, addresses: dict) -> None:
        """Begin to connect to a master with these addresses: {"ipc": path, "tcp": "HOST:PORT"}, see `Access`."""
        self._addresses = addresses
        self._open(self.clock())

    def _open(self, now):
        zmq = self._zmq
        address = self._address = preferred_address(self._addresses)
        # IMMEDIATE: without a connection a message waits in the session, so HELLO is the first on a new one
        self._open_socket(zmq.DEALER, IMMEDIATE=1, RECONNECT_IVL=100, RECONNECT_IVL_MAX=2000)
        self.credentials.dress(self.socket, address)
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_FAILED)
        self.socket.connect(address)
        self.moved = True
        self._greeted, self._hello_at, self._open_at = False, math.inf, math.inf
        self.session.heard_at = self._wake = now
        self._read_monitor(now)  # its descriptor tells of what comes after somebody has found nothing

    def _shut(self, linger):
        if self.socket is not None:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close(linger=linger)
            self._retired += (self.socket, self.monitor)
            self.socket, self.monitor, self.moved = None, None, True

    def _reopen(self, now):
        """Close the socket and open a fresh one later: later each time, unless the last session was a long one."""
        if now - self._welcomed_at > self.timing.retry_max:
            self._wait = self.timing.retry
        self._shut(0)
        self._greeted, self._hello_at = False, math.inf
        self._open_at = self._wake = now + self._wait
        self._wait = min(2 * self._wait, self.timing.retry_max)

    def watch(self, poller: Poller) -> None:
        """Keep a poller on the sockets in use, which change when the link reopens; call it before each poll for which
        they have `moved`. Between attempts there are none."""
        self.moved = False
        self._let_go(poller, self._retired)
        self._retired.clear()
        if self.socket is not None and self.socket not in poller:
            poller.register(self.socket, select.POLLIN)
            poller.register(self.monitor, select.POLLIN, ask=False)

    def unwatch(self, poller: Poller) -> None:
        """Keep the poller from all sockets, also from those that were closed since the last wait."""
        self._let_go(poller, [*self._retired, self.socket, self.monitor])

    @staticmethod
    def _let_go(poller, sockets):
        for one in sockets:
            if one in poller:
                poller.unregister(one)

    def call(self, method: str, *params: Any, parts: Iterable = ()) -> None:
        """Call a method of the master without waiting. Before the welcome it waits its turn. Raises as `send`."""
        self.send(self.master, [method, *params], parts)

    def send(self, peer: Peer | None, call: list, parts: Iterable = ()) -> None:
        """Send a call to the master; what answers a session that is over goes nowhere."""
        peer = peer or self.master
        if peer.local and call[0] in LARGE_CALLS:
            parts = self.by_file(parts, LARGE_CALLS[call[0]])
        super().send(peer, call, parts)

    def by_file(self, parts: Iterable, first: int) -> list:
        """The same parts; from the part `first` on, what is large and in memory lies in a file now if there is room."""
        parts = list(parts)
        if 0 <= bytes_in(parts) < BY_FILE:
            return parts
        sizes = [0 if type(part) is Reference else size_of(part) for part in parts]
        large = [i for i, size in enumerate(sizes) if i >= first and size >= PART_BY_FILE]
        if sum(sizes[i] for i in large) >= BY_FILE:
            for i, reference in zip(large, self.store.write([parts[i] for i in large]) or (), strict=False):
                parts[i] = reference.held(self.store)
        return parts

    def _transmit(self, peer, frames):
        return self._greeted and self.socket is not None and self._post(frames)

    def receive(self, limit: int = 256) -> int:
        """Read and dispatch up to `limit` messages without waiting; returns how many there were."""
        self._read_monitor(self.clock())
        return self._read_messages(limit)

    def readable(self, source: Any) -> None:
        """One of the sockets that `watch` has named is readable."""
        if source is self.monitor:
            self._read_monitor(self.clock())
        else:
            self._read_messages(256)

    def _read_messages(self, limit):
        for count in range(limit):
            _, frames, first = self._read(ask=count > 0) if self.socket is not None else (b"", [], None)
            if first is None:
                return count
            now = self.clock()
            try:
                self._arrived(unpack(frames, self._follow if self.master.local else None), now)
            except VersionMismatch as error:
                self._refused(components.Unreachable(error.what, error.why, error.fix), now)
            except ProtocolError as error:
                self._complain("garbage", "a message of the master was dropped: %s", error)
                self._over("the master sent garbage", now)
        return limit

    def _arrived(self, message, now):
        about = message.call[1] if len(message.call) > 1 and isinstance(message.call[1], dict) else {}
        mine = message.session == self.session.id
        if mine and message.kind in (DATA, BEAT) and self._known:
            self._take(self.master, message, now)
        elif message.kind == REFUSE and (mine or message.session == bytes(8)):
            self._refusal(about, now)
        elif not mine:
            self.counts["old session"] += 1
        elif message.kind == WELCOME:
            self._welcomed(message, about, now)
        else:
            raise ProtocolError(f"a message of kind {message.kind} at the wrong time")

    def _welcomed(self, message, info, now):
        session, fresh = self.session, not self._known
        shared = self.store and info.get("payloads") == self.store.identity
        self.master.local = self.store.root if shared else ""
        session.heard(message.ack, now)
        session.rewind()
        self._known = self._greeted = True
        self._said, self._bad_handshakes = "", 0
        if fresh:
            self._welcomed_at = now
        self.state = "ready"
        self._attempt(self.on_welcome, info, fresh)
        self._care(self.master, now)

    def _refusal(self, about, now):
        if "what" in about:
            texts = [str(about.get(key, "")) for key in ("what", "why", "fix")]
            self._refused(components.Unreachable(*texts), now)
        elif about.get("reason") == STOPPED:
            self._leave()
            self._over(STOPPED, now)
        else:
            self._over("the master does not know this session any more", now)

    def _refused(self, error, now):
        """The master does not want us: say why, once, and try again later."""
        self._over(error.what, now)
        if self._said != error.what:
            self._said = error.what
            self._attempt(self.on_refused, error)

    def _over(self, reason, now):
        """The session is over: begin a new one on a fresh socket."""
        unsaid = self.master.unsaid(self.outlives)
        self.master.lost = True
        self._new_session()
        for call, parts in unsaid:
            self._attempt(self.send, self.master, call, parts)
        self._reopen(now)
        self._lose(reason)

    def _give_up(self, peer, reason, now):
        self._over(reason, now)

    def _lose(self, reason):
        if self.state == "ready":
            self.state = "lost"
            self._attempt(self.on_lost, reason)

    def _read_monitor(self, now):
        while self.monitor is not None:
            try:
                frames = self.monitor.recv_multipart(NOBLOCK)
            except self._zmq.Again:
                return
            event = struct.unpack_from("=H", frames[0])[0]
            if event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED and self._address != preferred_address(self._addresses):
                self._reopen(now)  # the master was stopped, and with it its socket file was away
            elif event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._greeted, self._hello_at, self._wake, self._bad_handshakes = False, now, now, 0
            else:
                self._handshake_failed(event, now)

    def _handshake_failed(self, event, now):
        zmq = self._zmq
        self._bad_handshakes += 1
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # ZeroMQ never tries again on this socket
            self._refused(Unreachable(*_REMOVED_KEY), now)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._refused(Unreachable(*_OTHER_MECHANISM), now)
        elif self._welcomed_at > -math.inf:  # it is the right key, then: the master hangs, or the network swallows it
            if self._bad_handshakes == 3:
                log.warning("whoever answers at the master's address does not let this node speak; trying on")
        elif self._bad_handshakes >= 3:  # one alone may be a connection that broke
            known = self.socket.mechanism == zmq.CURVE
            self._refused(Unreachable(*(_OTHER_KEY if known else _OTHER_MECHANISM)), now)

    def tick(self, now: float) -> float:
        """Send what is due, say HELLO, notice a lost master; returns when to call again at the latest."""
        slept = self._slept(now)
        self.session.heard_at += slept
        if now < self._wake and not slept:
            return self._wake
        if self.socket is None:
            if now >= self._open_at and self._attempt(self._open, now)[1] is not None:
                self._reopen(now)  # no address to try yet: the master's socket file is gone
        elif self.session.silent(now):
            self._lose(f"no word from the master for {now - self.session.heard_at:.0f} s")
            self._reopen(now)
        if now >= self._hello_at and not self._greeted:
            self._say_hello(now)
        if self._greeted:
            self._wake = self._care(self.master, now)
        elif self.socket is not None:
            self._wake = min(self._hello_at, self.session.heard_at + self.timing.dead)
        else:
            self._wake = self._open_at
        return self._wake

    def _say_hello(self, now):
        self._attempt_number += 1
        payloads = self.store.identity if self.store else ""
        call = ["hello", {**self.info, **self.on_hello(), "payloads": payloads}, self._known]
        sent = self._post(pack(HELLO, self.session.id, self._attempt_number, self.session.received, call))
        self._hello_at = now + (self.timing.hello if sent else self.timing.held)

    def close(self) -> None:
        """Tell the master that this node leaves, and close."""
        self._leave()
        super().close()

    def _leave(self):
        if self._greeted:
            self._post(pack(REFUSE, self.session.id, 0, self.session.received, ["refuse", {"reason": "left"}]))
        self._shut(200)


class Pulse(threading.Thread):
    """Signs of life for one session from a thread and a connection of its own, for an owner whose callbacks keep its
    loop busy. The master accepts a BEAT of a session from any connection with the same key."""

    def __init__(self, credentials: Credentials, addresses: dict, session: Session) -> None:
        super().__init__(name="pulse", daemon=True)
        self._credentials, self._timing = credentials, session.timing
        self._address = preferred_address(addresses)
        self._beat = pack(BEAT, session.id, 0, 0, ["beat"])
        self._over = threading.Event()

    def stop(self) -> None:
        """Stop beating and wait for the thread."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """What the thread does."""
        heart = Endpoint(time.monotonic, self._timing)
        heart._open_socket(heart._zmq.DEALER, IMMEDIATE=1, RECONNECT_IVL=100, RECONNECT_IVL_MAX=2000)
        self._credentials.dress(heart.socket, self._address)
        heart.socket.connect(self._address)
        while not self._over.wait(self._timing.beat if heart._post(self._beat) else self._timing.held):
            while heart._read()[2] is not None:  # a refusal also reaches the link
                heart.counts["dropped"] += 1
        heart.close()


def preferred_address(addresses: dict) -> str:
    """The ZeroMQ address to use: the socket file if it is here and its folder is this user's own, else TCP."""
    path = addresses.get("ipc")
    if path and os.path.exists(path):
        folder = os.stat(os.path.dirname(path))
        if folder.st_uid == os.getuid() and not folder.st_mode & 0o077:
            return f"ipc://{path}"
    if not addresses.get("tcp"):
        raise Unreachable(f"the master's socket file {path} is not here",
                          "no master runs on this machine, or it runs as another user, and it offers no TCP port",
                          "start it: python master.py")
    return f"tcp://{addresses['tcp']}"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
# New objects after which Python looks for cycles among them; its own 700 are those of a few leases, which stay until
# their batch is settled, and hold no cycles.
GARBAGE_EVERY = 10_000


def tune_process() -> None:
    """What a process of a node does first: its loop gets a turn soon, garbage is looked for seldom, and memory is kept
    for the next payload."""
    sys.setswitchinterval(0.0005)  # a tenth of Python's own: so long may a busy thread keep the loop from its messages
    gc.freeze()  # what is imported stays
    gc.set_threshold(GARBAGE_EVERY)
    keep_memory()


def keep_memory() -> None:
    """Lets this process use memory again that it has freed, up to 256 MiB: to get blocks of megabytes anew costs
    several times what it costs to fill them. Only the GNU C library knows how; elsewhere this does nothing."""
    import ctypes

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


def raise_open_files() -> None:
    """Allow this process as many open files as the system lets it: without descriptors ZeroMQ's accept spins."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# -- keys ----------------------------------------------------------------------------------------------------

ROLES = ("slave", "client", "admin")
ACCESS_VERSION = 1
CLOCK_SKEW = 300.0  # seconds that the clocks of two machines may differ at an enrolment

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # a CURVE key in Z85
_NAME = re.compile(r"[\w.\-]{1,64}")
_INVITATION = re.compile(rf"\w+ ({'|'.join(ROLES)}) [\w\-]+ ([0-9.]+|inf) (once|many)")


def _sign(secret, *fields):
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _signed(mac, secret, *fields):
    return isinstance(mac, str) and hmac.compare_digest(mac.encode(errors="replace"), _sign(secret, *fields).encode())


def _check_private(path, mode, status=None):
    """Raise Error unless `path` belongs to this user and nobody else can reach it; `mode` is what it should be."""
    status = status or os.stat(path)
    if os.name == "posix" and status.st_uid != os.getuid():
        raise Error(f"{path} belongs to another user (uid {status.st_uid})",
                    "keys are only safe in files of the user who runs the node",
                    "run the node as that user, or choose another environment with --env DIR")
    if os.name == "posix" and status.st_mode & 0o077:
        raise Error(f"{path} can be reached by others (mode {stat.S_IMODE(status.st_mode):04o})",
                    "who reads a key file can act as this node", f"chmod {mode:o} {path}")


def check_keys(folder: str) -> None:
    """Raise Error unless a folder and all files in it are this user's own."""
    _check_private(folder, 0o700)
    for name in sorted(os.listdir(folder)):
        with suppress(FileNotFoundError):  # one that was being written
            _check_private(os.path.join(folder, name), 0o600)


def _private_folder(folder):
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _check_private(folder, 0o700)
    return os.path.abspath(folder)


def _read_private(path):
    """The text of a private file, checked on the open file. Raises Error, FileNotFoundError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        _check_private(path, 0o600, os.fstat(file.fileno()))
        return file.read(1 << 24)


def _write_private(path, text):
    """Write a private file in one step: readers see the old or the new text. No fsync: many may enrol at once."""
    fresh = f"{path}.{secrets.token_hex(4)}"
    append_private(fresh, text, os.O_EXCL)
    os.replace(fresh, path)


def append_private(path: str, text: str, flags: int = 0) -> int:
    """Add all of a text to a private file in one step, whoever else does, or raise OSError; returns its size before."""
    data = text.encode()
    with open(path, "ab", 0, opener=lambda path, given: os.open(path, given | flags, 0o600)) as file:
        before = os.fstat(file.fileno()).st_size
        if file.write(data) != len(data):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return before


def _load_or_make(path, make):
    """The JSON object in a private file, made and written on the first call. Raises Error."""
    with suppress(FileNotFoundError):
        return _json_object(_read_private(path), path)
    fresh = make()
    _write_private(path, json.dumps(fresh, indent=1))
    return fresh


def _json_object(text, path):
    try:
        value, reason = json.loads(text), "it holds no JSON object"
    except ValueError as error:
        value, reason = None, str(error)
    if isinstance(value, dict):
        return value
    raise Error(f"{path} is damaged ({reason})", "it was cut or edited", "restore it from a backup, or copy it again")


def _key_pair():
    import zmq

    public, secret = zmq.curve_keypair()
    return {"public_key": public.decode(), "secret_key": secret.decode()}


class Enrolled(NamedTuple):
    """A node that is let in: `since` (a date), `by` the name of the invitation that it came by."""

    role: str
    name: str
    since: str = ""
    by: str = ""


@dataclass(frozen=True)
class Invitation:
    """What lets nodes join in a role: its secret, `until` (seconds since 1970; infinite: the access file of the role,
    until the next is made), and whether only `once`."""

    name: str
    role: str
    secret: str = field(repr=False)
    until: float = math.inf
    once: bool = False


class Keyring:
    """The master's keys: its own pair, what lets others join, and the nodes that are authorized.

    `folder`/master.json   its key pair
    `folder`/invitations   a line each: name, role, secret, until, once or many; only ever grows
    `folder`/authorized    a line per node: public key, role, name, since, invitation; read again when it changes
    `folder`/revoked       a public key, or an invitation's name, per line; only ever grows
    `folder`/ROLE.access   what a node of this role needs, see `Access`

    A deleted line of `authorized` ends that node's session; `revoke` also keeps it from enrolling again. A node that is
    enrolled stays so when its invitation ends. Safe to use from several threads; and from several processes, of which
    one, the master, enrols. Raises Error when the folder or a file in it can be reached by others, or is damaged."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.time) -> None:
        self.folder = _private_folder(folder)
        check_keys(self.folder)
        self._clock = clock
        self._lock = threading.RLock()  # guards the tables below and the files they mirror
        own = _load_or_make(self._path("master.json"), _key_pair)
        self.public_key, self.secret_key = own["public_key"], own["secret_key"]
        self._nodes: dict[str, Enrolled] = {}
        self._used: set[str] = set()  # invitations by which somebody came
        self._invitations: dict[str, Invitation] = {}
        self._standing: dict[str, Invitation] = {}  # role: that of its access file
        self._revoked: set[str] = set()
        self._read_at = None
        self._reload()
        if len(self._standing) < len(ROLES):
            self.rotate()
        self._reported = set(self._nodes)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _lines(self, name):
        with suppress(FileNotFoundError):
            return [line.split() for line in _read_private(self._path(name)).splitlines() if line.strip()]
        return []

    def _reload(self):
        """Read the tables if they changed. Called with the lock held, or before there are threads."""
        stamp = [_stamp(self._path(name)) for name in ("authorized", "revoked", "invitations")]
        if stamp == self._read_at:
            return
        self._read_at = stamp
        nodes = {}
        for number, line in enumerate(self._lines("authorized"), 1):
            if len(line) < 3 or not _KEY.fullmatch(line[0]) or line[1] not in ROLES:
                log.error("%s line %d is no 'key role name since', left out", self._path("authorized"), number)
            else:
                nodes[line[0]] = Enrolled(*line[1:5])
        self._revoked = {line[0] for line in self._lines("revoked")}
        self._used = {node.by for node in nodes.values()}
        self._all = nodes  # those that were revoked, too
        self._nodes = {key: node for key, node in nodes.items() if key not in self._revoked}
        lines = [line for line in self._lines("invitations") if _INVITATION.fullmatch(" ".join(line))]
        self._invitations = {line[0]: Invitation(*line[:3], float(line[3]), line[4] == "once") for line in lines}
        self._order = {name: place for place, name in enumerate(self._invitations)}
        self._standing = {one.role: one for one in self._invitations.values() if one.until == math.inf}

    def entry(self, public_key: str) -> tuple[str, str] | None:
        """Role and name of an authorized node, None if it is not authorized."""
        with self._lock:
            try:
                self._reload()
            except components.Error as error:  # it was fine at the start: keep what we have, say so once per change
                log.error("the authorized nodes were not read again: %s", error)
            node = self._nodes.get(public_key)
            return node and node[:2]

    def admit(self, mechanism: bytes, secret: list) -> str | None:
        """The public key of a node whose handshake is right, else None: the answer to ZeroMQ's question."""
        key = claimed_key(mechanism, secret)
        with self._lock:
            node = self._nodes[key] if self.entry(key) else Enrolled("", "")
            known = [one.secret for one in self._invitations.values()
                     if mechanism != b"CURVE" and self._counts(one, node)]
        right = node.role if mechanism == b"CURVE" else any(
            hmac.compare_digest(secret[1], _ipc_password(one, key)) for one in known)
        return key if right else None

    def _counts(self, invitation, node):
        """Whether a node may show that it knows this secret: it came by it, or anybody of its role could."""
        return invitation.role == node.role and (invitation.name == node.by or not self._ended(invitation))

    def token(self) -> str:
        """What lets a person administer the master over HTTP; kept in `folder`/token.json."""
        return _load_or_make(self._path("token.json"), lambda: {"token": secrets.token_urlsafe(24)})["token"]

    def access(self, role: str, addresses: dict) -> dict:
        """The content of an access file."""
        return {"version": ACCESS_VERSION, "addresses": addresses, "public_key": self.public_key, "role": role,
                "secret": self._standing[role].secret, **({"token": self.token()} if role == "admin" else {})}

    def write_access(self, addresses: dict) -> None:
        """Write the access file of each role. `addresses`: {"http": "HOST:PORT", "tcp": "HOST:PORT", "ipc": path}, and
        "certificate", its fingerprint, if HTTP is under TLS."""
        for role in ROLES:
            _write_private(self._path(f"{role}.access"), json.dumps(self.access(role, addresses), indent=1))

    def invite(self, role: str, seconds: float, once: bool, path: str = "") -> tuple[Invitation, str]:
        """Write an access file with a secret of its own, that lets nodes in for so many seconds, or only one; returns
        where it lies. Raises Error if no master has run here, or there is such a file already."""
        made = Invitation(secrets.token_hex(4), role, secrets.token_urlsafe(32), self._clock() + seconds, once)
        path = os.path.abspath(path or f"{role}-{made.name}.access")
        content = {**_access_content(self._path(f"{role}.access")), "secret": made.secret}
        content.pop("token", None)  # which does not end
        try:
            append_private(path, json.dumps(content, indent=1), os.O_EXCL)
        except OSError as error:
            raise Error(f"{path} cannot be written", str(error), "name another: --out FILE") from None
        self._add_invitations([made])
        return made, path

    def _add_invitations(self, made):
        lines = [f"{one.name} {one.role} {one.secret} {one.until} {'once' if one.once else 'many'}\n" for one in made]
        append_private(self._path("invitations"), "".join(lines))
        with self._lock:
            self._reload()

    def rotate(self, own: bool = False) -> None:
        """Make new join secrets and put them into the access files; what invited until now lets nobody in any more.
        Nodes that are enrolled stay. `own`: also a new key pair for the master, which counts from its next start."""
        if own:
            _write_private(self._path("master.json"), json.dumps(_key_pair(), indent=1))
        self._add_invitations([Invitation(secrets.token_hex(4), role, secrets.token_urlsafe(32)) for role in ROLES])
        for role in ROLES:
            path = self._path(f"{role}.access")
            if os.path.exists(path):
                content = {**_access_content(path), "secret": self._standing[role].secret}
                _write_private(path, json.dumps(content, indent=1))

    def nodes(self) -> dict[str, Enrolled]:
        """The nodes that are authorized, by public key."""
        with self._lock:
            self._reload()
            return dict(self._nodes)

    def invitations(self) -> dict[Invitation, str]:
        """All but those of the access files, with why they let nobody in any more, empty for those that do."""
        with self._lock:
            self._reload()
            return {one: self._ended(one) for one in self._invitations.values() if one.until < math.inf}

    def _ended(self, invitation):
        """Why it lets nobody in any more; empty if it does."""
        if invitation.name in self._revoked:
            return "it was revoked"
        if self._order[invitation.name] < self._order[self._standing[invitation.role].name]:
            return "the master's owner has made new secrets since"
        if invitation.once and invitation.name in self._used:
            return "it was for one node, and is used"
        return "" if self._clock() < invitation.until else f"its time was over at {_date(invitation.until)}"

    def find(self, who: str) -> list[str]:
        """The keys, or the invitation, that are meant by a public key, its fingerprint, or a name."""
        keys = [key for key, node in self.nodes().items() if who in (key, fingerprint(key), node.name)]
        return keys or [one.name for one in self.invitations() if one.name == who]

    def enrol(self, request: dict, addresses: dict | None = None) -> dict:
        """Authorize the key in a node's request and answer it, both signed with the join secret of its role. Asking
        again gives the same answer. Raises Error with what is wrong."""
        with self._lock:  # of two that come by an invitation for one, the second comes late
            by, key, name, nonce = self._verified(request, "enrol")
            known = self._may_join(key, by.role, name)
            self._reported.add(key)
            node = known or Enrolled(by.role, self._own_name(name, by), _date(self._clock()))
            if not known:
                lines = [*map(" ".join, self._lines("authorized")), " ".join([key, *node[:3], by.name])]
                _write_private(self._path("authorized"), "".join(f"{line}\n" for line in lines))
                self._reload()
        about = {"name": node.name, "public_key": self.public_key, "addresses": addresses or {}}
        return {**about, "mac": _sign(by.secret, "enrolled", nonce, about)}

    def check_enrolment(self, request: dict) -> dict:
        """What `enrol` would do, doing nothing: `known`: the key is authorized already. Raises Error as it does."""
        by, key, name, nonce = self._verified(request, "check")
        about = {"public_key": self.public_key, "known": self._may_join(key, by.role, name) is not None}
        return {**about, "mac": _sign(by.secret, "checked", nonce, about)}

    def _verified(self, request, verb):
        """Invitation, key, name and nonce of a request that is signed with a join secret of its role, just now."""
        request = request if isinstance(request, dict) else {}
        role, key, name, nonce, at = (request.get(k) for k in ("role", "public_key", "name", "nonce", "time"))
        file = self._path(f"{role if role in ROLES else ROLES[0]}.access")
        with self._lock:
            self.entry("")  # reads again
            node, asked = self._nodes.get(str(key), Enrolled("", "")), (verb, role, key, name, nonce, at)
            mine = [one for one in self._invitations.values() if one.role == role]
            by = next((one for one in mine if _signed(request.get("mac"), one.secret, *asked)), None)
            ended = self._ended(by) if by and node.role != role else ""
        if by is None:
            raise Error(f"the master refused {role if role in ROLES else 'node'} {str(name)[:64]!r}: wrong key",
                        "the access file there differs from the master's",
                        f"copy the master's file {file} to that machine")
        now = self._clock()
        if not isinstance(at, (int, float)) or abs(at - now) > CLOCK_SKEW:
            raise Error(f"the clock of {str(name)[:64]!r} is wrong: the master's says {_date(now)}",
                        f"the two may differ by {CLOCK_SKEW:.0f} s",
                        "set the clock there, for example with an NTP service")
        if ended:
            raise Error(f"the access file of {role} {str(name)[:64]!r} lets nobody in any more", ended,
                        f"ask the master's owner for another: python master.py keys invite {role}")
        return by, key, name, nonce

    def _may_join(self, key, role, name):
        """Raise Error unless this key may have this role; returns its entry, None if it is new."""
        if not isinstance(key, str) or not _KEY.fullmatch(key) or not _NAME.fullmatch(str(name)):
            raise components.Error(f"{str(key)[:50]!r} is no key, or {str(name)[:64]!r} is no name for a node")
        with self._lock:
            known = self._nodes.get(key) if self.entry(key) else None
            if key in self._revoked:
                raise Error(f"the key of {name!r} was revoked on the master",
                            "its owner removed this node",
                            "ask the master's owner; then delete the node's keys folder and start it again")
            if known and known[0] != role:
                raise Error(f"the key of {name!r} is a {known[0]} key, it cannot be a {role} key too",
                            "each node has a key of one role",
                            f"start it with the access file of a {known[0]}, or with another --env DIR")
            return known

    def _own_name(self, name, by):
        """`name`, or name-2 and so on, if a node has it that came by another invitation: work is a name's."""
        slaves, standing = by.role == "slave", by.until == math.inf
        taken = {node.name for node in self._all.values() if (node.role == "slave") == slaves and not (
            node.by == by.name or (standing and self._invitations.get(node.by, by).until == math.inf))}
        return next(one for one in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if one not in taken)

    def revoke(self, public_key: str) -> None:
        """Take a key out for good: its session ends, and it may not enrol again. Or end an invitation, by its name."""
        append_private(self._path("revoked"), f"\n{public_key}\n")
        with self._lock:
            self._reload()

    def drop_removed(self) -> set[str]:
        """The keys whose line went away since the last call."""
        with self._lock:
            self.entry("")
            gone, self._reported = self._reported - self._nodes.keys(), set(self._nodes)
            return gone


def claimed_key(mechanism: bytes, secret: list) -> str:
    """The public key that a handshake shows."""
    from zmq.utils import z85

    return z85.encode(secret[0]).decode() if mechanism == b"CURVE" else secret[0].decode("ascii", "replace")


def fingerprint(key: str) -> str:
    """What people call a public key by."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _stamp(path):
    with suppress(FileNotFoundError):
        status = os.stat(path)
        return status.st_ctime_ns, status.st_size, status.st_ino
    return None


def minor_version(version: str = "") -> str:
    """The first two numbers of a Python version, of this one if none is given."""
    return ".".join((version or platform.python_version()).split(".")[:2])


def _date(at):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _ipc_password(join_secret, public_key):
    return hmac.new(join_secret.encode(), b"ipc" + public_key.encode(), hashlib.sha256).hexdigest().encode()


@contextmanager
def _told_as(kind, cause):
    """An error of the one kind is raised as one of the other, in the same words."""
    try:
        yield
    except OtherCertificate:  # waiting does not help
        raise
    except cause as error:
        raise kind(error.what, error.why, error.fix) from None


def _access_content(path):
    try:
        return _json_object(_read_private(path), path)
    except FileNotFoundError as error:
        raise Error(f"there is no access file {path}",
                    "the master writes it at its start: no master has run here, or the file was not copied",
                    "start a master (python master.py), or copy its keys/<role>.access: --access FILE") from error
    except PermissionError as error:
        raise Error(f"the access file {path} cannot be read", "it or its folder is another user's",
                    "give the user who runs this node a copy: chown, chmod 600") from error


class Access:
    """An access file: where the master is, its public key, and the secret that lets one role join."""

    def __init__(self, addresses: dict, public_key: str, role: str, secret: str) -> None:
        self.addresses, self.public_key, self.role, self.secret = addresses, public_key, role, secret
        self.certificate = str(addresses.get("certificate", ""))  # its fingerprint, if the master speaks TLS

    @classmethod
    @_told_as(Unreachable, Error)
    def load(cls, path: str) -> Access:
        """Read an access file. Raises Unreachable: it is missing, damaged, readable by others or of another version."""
        content = _access_content(path)
        if content.get("version") != ACCESS_VERSION:
            raise Error(f"{path} has version {content.get('version')!r}, this node reads version {ACCESS_VERSION}",
                        "another version of concurrent_swarm wrote it",
                        "install the same version on both machines and copy the file again")
        found = [content.get(key) for key in ("addresses", "public_key", "role", "secret")]
        if list(map(type, found)) != [dict, str, str, str] or found[2] not in ROLES or not _KEY.fullmatch(found[1]):
            raise components.Error(f"{path} is no access file", "a field is missing or wrong", "copy it again")
        return cls(*found)


class Credentials:
    """How a node shows who it is: its key pair and the master's key on TCP, a password on a socket file."""

    def __init__(self, role: str, pair: dict, access: Access) -> None:
        self.role, self.public_key = role, pair["public_key"]
        self._secret_key, self._server_key, self._join = pair["secret_key"], access.public_key, access.secret

    def dress(self, socket: Any, address: str) -> None:
        """Set up a ZeroMQ socket that is about to connect to `address`."""
        if address.startswith("ipc://"):
            socket.plain_username = self.public_key.encode()
            socket.plain_password = _ipc_password(self._join, self.public_key)
        else:
            socket.curve_publickey, socket.curve_secretkey = self.public_key.encode(), self._secret_key.encode()
            socket.curve_serverkey = self._server_key.encode()


class NodeKeys:
    """A node's own key pair, made once in `folder`/node.json, and its side of the enrolment. `public_key` is in Z85."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.time) -> None:
        self._pair = _load_or_make(os.path.join(_private_folder(folder), "node.json"), _key_pair)
        self.public_key = self._pair["public_key"]
        self._clock = clock
        self._nonce = ""

    def to_text(self) -> str:
        """The content of its file, for another place."""
        return json.dumps(self._pair)

    def enrolment(self, access: Access, name: str, verb: str = "enrol") -> dict:
        """The signed request to send to the master's `enrol`, or with the verb "check" to its `enrol.check`."""
        self._nonce = secrets.token_urlsafe(16)
        about = {"role": access.role, "public_key": self.public_key, "name": name, "nonce": self._nonce}
        about["time"] = round(self._clock(), 3)
        return {**about, "mac": _sign(access.secret, verb, *about.values())}

    def checked(self, access: Access, answer: dict) -> bool:
        """Whether the master knows this node's key already, by its answer to the last check. Raises Unreachable."""
        return self._proven(access, answer, "checked")["known"]

    def accept(self, access: Access, answer: dict) -> dict:
        """Check the master's answer to the last enrolment; returns its addresses. Raises Unreachable if forged."""
        return self._proven(access, answer, "enrolled")["addresses"] or access.addresses

    def _proven(self, access, answer, verb):
        about = {key: value for key, value in answer.items() if key != "mac"}
        right = _signed(answer.get("mac"), access.secret, verb, self._nonce, about)
        if not right or about.get("public_key") != access.public_key:
            raise Unreachable("the answer to the enrolment is not signed by this master",
                              "another master answered, or somebody between changed it",
                              "copy the master's access file again and pass --access FILE")
        return about

    def credentials(self, access: Access) -> Credentials:
        """What a `Link` needs to connect to the master of `access`."""
        return Credentials(access.role, self._pair, access)


def require_keys(host: str, keyring: Keyring) -> None:
    """Raise Error if `host` is beyond this machine and the keys are not in order."""
    if is_loopback(host):
        return
    try:
        check_keys(keyring.folder)
    except components.Error as error:
        raise Error(f"the master does not listen on {host}: its keys are not in order ({error.what})",
                    error.why, error.fix) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address on `host`."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


# -- sealed pickles ------------------------------------------------------------------------------------------------

WIRE = "__swarm__"  # the module under which our classes and functions are referred to in pickles, everywhere


def named(module, qualname):
    """What a reference to one of our classes or functions leads to, whatever this process calls our package."""
    found = importlib.import_module(f"{__package__}.{module}")
    for step in qualname.split("."):
        found = getattr(found, step)
    return found


named.__module__ = WIRE
_PACKAGE = (__package__ or "").encode()
_COMPILED = b"concurrent_swarm.fastpath"  # a compiled function calls itself so under every name of the package


def speak_wire() -> None:
    """Lets this process open pickles that refer to us. The first copy of the framework in a process speaks for all."""
    sys.modules.setdefault(WIRE, sys.modules[__name__])


class Sealer(pickle.Pickler):
    """Pickles as always, but refers to what is ours by `named`, never by the name of our package."""

    def reducer_override(self, obj: Any) -> Any:
        """Called for everything but plain data. What `fastpath` holds is found in `tasks`, compiled or not."""
        qualname, module = getattr(obj, "__qualname__", None), getattr(obj, "__module__", None)
        if qualname is None or not isinstance(module, str) or isinstance(obj, types.MethodType) or obj is named:
            return NotImplemented
        if module.encode() == _COMPILED:
            return sys.modules[WIRE].named, ("tasks", qualname)
        if not _below(module, __package__):
            return NotImplemented
        return sys.modules[WIRE].named, (module[len(__package__) + 1 :], qualname)


def dumps(obj: Any) -> bytes:
    """A pickle of the user's object. Raises whatever its own code raises."""
    try:
        data = pickle.dumps(obj, PICKLE_PROTOCOL)
        if _PACKAGE not in data and _COMPILED not in data:  # three times as fast, and nearly always enough
            return data
    except (pickle.PicklingError, ImportError, AttributeError) as error:
        log.debug("pickle alone cannot: %s", error)
    speak_wire()
    file = io.BytesIO()
    Sealer(file, PICKLE_PROTOCOL).dump(obj)
    return file.getvalue()


def seal(obj: Any, what: str, how: Callable = dumps) -> Any:
    """What `how` (`dumps` or `seal_pieces`) makes of the user's object. `what` names it in the error if it cannot."""
    try:
        return how(obj)
    except Exception as error:  # pickle runs user code, which may raise anything
        raise explain_unpicklable(obj, error, what) from None


def explain_unpicklable(obj: Any, error: Exception, what: str) -> components.UsageError:
    """Says which attribute keeps an object from being pickled; `what` is "task" for a task or its state."""
    if what == "task":  # given as its attributes
        name = obj.get("name") if isinstance(obj, dict) else getattr(obj, "name", "")
        what, obj = f"task {name or type(obj).__name__}", obj if isinstance(obj, dict) else vars(obj)
        obj = types.SimpleNamespace(**{str(name): value for name, value in obj.items()})
    path, culprit = _find_unpicklable(obj, "", 0)
    kind, code = f"of type {type(culprit).__name__}", getattr(culprit, "__code__", None)
    if code and code.co_name == "<lambda>":
        kind = f"a lambda ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
    return UsageError(
        f"{what} cannot be sent: " + (f'attribute "{path}" is {kind}' if path else f"it is {kind} ({error})"),
        "tasks and results travel as pickles; lambdas, open files, locks, generators and local classes cannot",
        "use a function or class at the top of its module, or keep the value out of the object")


def _find_unpicklable(obj: Any, path: str, depth: int) -> tuple[str, Any]:
    """The path to the innermost value that cannot be pickled by itself."""
    for name, value in _values_of(obj):
        try:
            dumps(value)
        except Exception:  # as above; this is the one that we look for
            inner = f"{path}.{name}" if path and not name.startswith("[") else f"{path}{name}"
            return _find_unpicklable(value, inner, depth + 1) if depth < 8 else (inner, value)
    return path, obj


def _values_of(obj: Any) -> list[tuple[str, Any]]:
    if isinstance(obj, dict):
        return [(f"[{key!r}]", value) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        return [(f"[{i}]", value) for i, value in enumerate(obj)]
    return [] if isinstance(obj, (type, types.FunctionType)) else list(getattr(obj, "__dict__", {}).items())


# -- sealed pickles with buffers -----------------------------------------------------------------------------------

BUFFERS = 0xC5  # the first byte of the sealed form that has buffers beside its pickle; a pickle begins with 0x80
GONE = 0xC4  # the first byte in place of a part whose file is gone; a text says why
ALIGNMENT = 64  # bytes; every buffer begins at a whole cache line

_FRAME_OPCODE = 0x95
_BUFFERS_HEAD = struct.Struct("<B3xIQ")  # BUFFERS, how many, the pickle's length; their lengths follow, u64 each


class PayloadGone(components.Error):
    """The file with a task, a result or a published object is not there any more."""

    def __init__(self, why: str) -> None:
        super().__init__("a payload is gone", why, "leave the files of running nodes alone; node.by_reference = no "
                         "makes them copy instead")  # fmt: skip


class _Pieces(list):
    """A file for a pickler, which hands `bytes` of 64 KiB and up to `write` as they are."""

    write = list.append


def seal_pieces(obj: Any) -> list:
    """The sealed form of the user's object in pieces that `open_sealed` opens; large data is not copied. The form is
    that of `dumps`, unless the object has contiguous buffers of 64 KiB and up (arrays); then these follow its pickle,
    each aligned. The pieces may be the object's own memory: use them before the user's code goes on. Raises whatever
    the object's own code raises."""
    try:
        pieces, buffers = _pickled(pickle.Pickler, obj)
        plain = not _mentions_us(pieces)
    except (pickle.PicklingError, ImportError, AttributeError) as error:
        log.debug("pickle alone cannot: %s", error)
        plain = False
    if not plain:
        speak_wire()
        pieces, buffers = _pickled(Sealer, obj)
    if not buffers:
        return pieces
    head = _BUFFERS_HEAD.pack(BUFFERS, len(buffers), sum(map(len, pieces)))
    head += struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    return lay_out([[head, *pieces], *buffers])[0]


def _pickled(pickler, obj):
    pieces, buffers = _Pieces(), []

    def in_band(buffer):
        raw = buffer.raw()
        return True if len(raw) < INLINE else buffers.append(raw)  # None: it is not in the pickle

    pickler(pieces, PICKLE_PROTOCOL, buffer_callback=in_band).dump(obj)
    return list(pieces), buffers


def _mentions_us(pieces):
    """Whether the pickle's own bytes hold our name; the user's large data are pieces of their own and passed over."""
    for piece in pieces:
        own = len(piece) < INLINE or piece[0] == _FRAME_OPCODE or piece is pieces[0]
        if own and (_PACKAGE in piece or _COMPILED in piece):
            return True
    return False


def is_lent(part: Any) -> bool:
    """Whether a part is memory of the user's objects, which may change as soon as the user's code goes on."""
    return type(part) is list and any(type(piece) is not bytes for piece in part)


def frozen(part: Any) -> Any:
    """The same part, or a copy if it is lent."""
    return b"".join(part) if is_lent(part) else part


def open_sealed(part: Any, load: Callable = pickle.loads) -> Any:
    """The object in a sealed form of either kind: bytes, pieces or what lies in a file. Only for processes that run the
    user's code: workers, hosts, clients. Buffers become read-only views of the bytes, without a copy: an array of 64
    KiB and up arrives read-only. `load` opens the pickle, see READERS. Raises ProtocolError if the lengths do not add
    up, PayloadGone if the file is gone."""
    try:
        data = part.view() if type(part) is Reference else b"".join(part) if type(part) is list else part
    except OSError as error:
        raise PayloadGone(str(error)) from error
    if not data or data[0] not in (BUFFERS, GONE):
        return load(data)
    if data[0] == GONE:
        raise PayloadGone(str(data[1:], "utf-8", "replace"))
    data = memoryview(data).toreadonly()
    try:
        _, count, length = _BUFFERS_HEAD.unpack_from(data)
        sizes = struct.unpack_from(f"<{count}Q", data, _BUFFERS_HEAD.size)
    except struct.error as error:
        raise ProtocolError("a sealed pickle is cut short", str(error)) from error
    start, buffers = _BUFFERS_HEAD.size + 8 * count, []
    end = start + length
    for size in sizes:
        end += -end % ALIGNMENT
        buffers.append(data[end : end + size])
        end += size
    if end != len(data):
        raise ProtocolError("the lengths in a sealed pickle do not add up", f"{end:,} bytes of {len(data):,}")
    return load(data[start : start + length], buffers=buffers)


# -- sealed pickles of plain data ----------------------------------------------------------------------------------

_COPIED = 16  # elements and characters that a pickle of data may copy, for each of its bytes
_NESTED = 1000  # tuples within tuples: C computes their hash by a recursion that knows no limit
_ELEMENT = re.compile(r"[<>|=](?:[biufc]\d{1,2}|[SU]\d{1,9})")  # of an array; others hold objects, fields or a unit


class _Stand(NamedTuple):
    """Stands for what a pickle of data names, or for what awaits its state: it can be called, and nothing be set."""

    make: Callable | None
    factory: type | None = None  # of a defaultdict


class _DataReader(pickle._Unpickler):
    """The unpickler written in Python (that in C lets a pickle say how large its tables are), without what it calls
    and sets in the name of a pickle: only the stands are called."""

    dispatch = pickle._Unpickler.dispatch.copy()
    for _code in (pickle.OBJ, pickle.INST, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[_code[0]]

    def __init__(self, data: Any, buffers: Iterable, stands: dict[str, _Stand]):
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._stands, self._depths, self._sizes = stands, {}, {}
        self._left = self._most = _COPIED * sum(map(len, [data, *buffers]))

    def find_class(self, module: str, name: str) -> _Stand:
        """What stands for it. Raises Error if it is no data."""
        if name in _DATA.get(module, "").split():
            return _Stand(functools.partial(_made, getattr(importlib.import_module(module), name)))
        if (stand := self._stands.get(f"{module}.{name}")) is None:
            raise _no_data(f"{module}.{name}")
        return stand

    def _call(self):
        args, stand = self.stack.pop(), self.stack[-1]
        self._left -= len(args) + sum(len(arg) for arg in args if hasattr(arg, "__len__"))
        if self._left < 0:
            raise ValueError(f"its values copy more than {_COPIED} times its size")
        self.stack[-1] = stand.make(*args)

    def _build(self):
        stand, state = self.stack[-2:]
        self._left -= sum(len(one) for one in state if hasattr(one, "__len__"))
        self.stack[-1] = (self.stack[-1],)
        self._call()
        for key in itertools.islice(reversed(self.memo), 64):  # it was put there before its state was read
            if self.memo[key] is stand:
                self.memo[key] = self.stack[-1]
                break

    def _bytearray(self):
        size = int.from_bytes(self.read(8), "little")
        if len(data := self.read(min(size, sys.maxsize))) < size:
            raise EOFError("it is cut short")
        self.append(bytearray(data))

    def _nest(self):
        depth = 1 + max((self._depths.get(id(one), 1) for one in self.stack[-1] if type(one) is tuple), default=0)
        if depth > _NESTED:
            raise ValueError(f"its tuples are nested deeper than {_NESTED}")
        if depth > 1:
            self._depths[id(self.stack[-1])] = depth
            inside = [self._sizes.get(id(one), len(one)) for one in self.stack[-1] if type(one) is tuple]
            self._sizes[id(self.stack[-1])] = size = len(self.stack[-1]) + sum(inside)
            if size > self._most:
                raise ValueError(f"its tuples hold more than {_COPIED} times its size")

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _call
    dispatch[pickle.BUILD[0]], dispatch[pickle.BYTEARRAY8[0]] = _build, _bytearray
    for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[_code[0]] = lambda self, load=dispatch[_code[0]]: (load(self), self._nest())


def _no_data(name):
    numpy = name.startswith("numpy.")
    return components.Error(
        f"a result holds {name[:200]}", "this application opens results of plain data only",
        "results = \"data,numpy\" admits arrays of numbers and texts" if numpy else
        "return containers, numbers, texts, bytes, dates, paths, or set results = \"any\" if you trust all slaves")


def _made(cls, *args):
    if any(type(arg) is int and arg.bit_length() > 4096 for arg in args):
        raise ValueError("a number is too long")
    if any(arg and isinstance(arg, (tuple, list, os.PathLike)) for arg in args):
        raise TypeError(f"{cls.__name__} copies more than it is told")  # what no pickler writes, and nobody counts
    return cls(*args)


def _element(code, *_):
    def make(state):
        if not _ELEMENT.fullmatch(f"{state[1]}{code}") or any(one is not None for one in state[2:5]):
            raise _no_data(f"numpy.dtype {code}")
        return importlib.import_module("numpy").dtype(state[1] + code)

    return _Stand(make)


def _array(raw, element, shape=(), order="C", axes=None):
    flat = importlib.import_module("numpy").frombuffer(raw, element)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


_DATA = {  # module -> classes that plain data may name, and that hold what they are called with
    "builtins": "complex range", "collections": "Counter OrderedDict deque", "decimal": "Decimal",
    "datetime": "date datetime time timedelta timezone",
    "pathlib": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
}
_DATA["pathlib._local"] = _DATA["pathlib"]  # Python 3.13
_STANDS = {f"builtins.{cls.__name__}": _Stand(None, cls) for cls in (int, float, str, list, dict, set)} | {
    "collections.defaultdict": _Stand(lambda stand=None: defaultdict(stand and stand.factory)),
    "uuid.UUID": _Stand(lambda: _Stand(lambda state: importlib.import_module("uuid").UUID(int=state["int"]))),
    f"{WIRE}.Shared": _Stand(lambda key, size: check_key(key, 0, size) or sys.modules[WIRE].Shared(key, size)),
}
_NUMPY = {"numpy.dtype": _Stand(_element), "numpy.ndarray": _Stand(None)}
for _home in ("core", "_core"):  # of numpy 1 and 2
    _NUMPY |= {
        f"numpy.{_home}.numeric._frombuffer": _Stand(_array),
        f"numpy.{_home}.multiarray.scalar": _Stand(lambda element, raw: _array(raw, element)[()]),
        f"numpy.{_home}.multiarray._reconstruct": _Stand(
            lambda *_: _Stand(lambda of: _array(of[4], of[2], of[1], "F" if of[3] else "C").copy("K")))}


def _load_data(stands, data, *, buffers=()):
    """What a pickle of data holds, in memory of some hundred times its size at most. Raises Error."""
    try:
        return _DataReader(data, buffers, stands).load()
    except components.Error as error:
        raise error.with_traceback(None) from None  # the lines of the unpickler say nothing
    except (pickle.UnpicklingError, struct.error, EOFError, LookupError, TypeError, ValueError, AttributeError,
            ArithmeticError, MemoryError, RecursionError, ImportError) as error:
        why = f"{type(error).__name__} {error}".strip()[:500]
    raise components.Error("a result cannot be read as data", why, "look at the slave that it comes from")


READERS: dict[str, Callable] = {  # what an application may say in `results` -> how pickles from slaves are opened
    "any": pickle.loads, "data": functools.partial(_load_data, _STANDS),
    "data,numpy": functools.partial(_load_data, _STANDS | _NUMPY),
}


# -- payloads in files ---------------------------------------------------------------------------------------------

MAPPED = 512 * 1024  # bytes; a payload below this is read: to map it costs more than the copy
KEPT_FILES, KEPT_BYTES = 64, 512 << 20  # free files that a store keeps, since new memory costs more than the copy

_FOLDER = re.compile(r"[0-9a-f]{16}")
_REFERENCE = re.compile(r"([0-9a-f]{16})/([0-9]{1,15})/([0-9]{1,15})/([0-9]{1,15})")


def payload_root() -> str:
    """The folder in memory where this user's nodes lay their stores, made on the first call. Raises Error."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    return own_folder(os.path.join(memory, f"concurrent-swarm-{os.getuid()}"))


def own_folder(path: str | os.PathLike) -> str:
    """A folder's path, made if it is not there: this user's, out of others' reach, no link. Raises Error, OSError."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return _checked_folder(os.fspath(path))


def _checked_folder(path):
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise components.Error(f"{path} is no folder", "payloads lie in a folder of this user's", f"remove {path}")
    _check_private(path, 0o700, status)
    return path


@dataclass(frozen=True, slots=True)
class Reference:
    """A part of a message that lies in a file of this machine: `size` bytes from `at`; `len` says the size."""

    folder: str
    name: str
    at: int
    size: int
    store: Store | None = field(default=None, compare=False, repr=False)  # that is told when nobody holds this any more

    def __del__(self) -> None:
        if self.store is not None:
            self.store.dropped.append(self)  # from any thread; the store looks there in its own

    def held(self, store: Store) -> Reference:
        """The same reference; with the last one the store may have the part back."""
        return Reference(self.folder, self.name, self.at, self.size, store)

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def to_text(self) -> str:
        """What goes over the wire: the store's folder without its root, the file, where, how much."""
        return f"{os.path.basename(self.folder)}/{self.name}/{self.at}/{self.size}"

    @classmethod
    def from_text(cls, text: Any, root: str) -> Reference:
        """The reference that a peer sent, into a store below `root`, which is this user's alone, and nowhere else.
        Whether the file is there shows when it is opened. Raises ProtocolError for any other text."""
        found = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
        if not found:
            raise ProtocolError(f"{text!r:.80} names no payload", "a peer sent folder/file/offset/size of another form")
        folder, name, at, size = found.groups()
        return cls(f"{root}/{folder}", name, int(at), int(size))

    def open(self) -> int:
        """A descriptor for reading; the caller closes it. Raises OSError."""
        return open_payload(self.folder, self.name)

    def view(self) -> memoryview:
        """The bytes, read-only, large ones not copied; they stay when the file goes. Raises OSError, ProtocolError. Not
        for a file that somebody distrusted may still cut short: to touch what is gone ends the process."""
        return self._with_file(map_payload)

    def read(self) -> bytes:
        """The bytes, copied. Raises OSError, ProtocolError."""
        return self._with_file(read_payload)

    def _with_file(self, function):
        file = self.open()
        try:
            return function(file, self.at, self.size)
        finally:
            os.close(file)


def open_payload(folder: str, name: str) -> int:
    """A descriptor for reading a file of a store. Raises OSError, also for a folder that is not this user's alone."""
    _check_store(folder)
    return os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


@functools.lru_cache(maxsize=256)
def _check_store(folder):
    try:
        _checked_folder(folder)
    except components.Error as error:
        raise OSError(errno.EPERM, error.what, folder) from None


class Place(NamedTuple):
    """A part that lies in a file whose descriptor both ends of a socketpair have: the file's number in its message."""

    file: int
    at: int
    size: int

    def to_text(self) -> str:
        """What goes over the wire."""
        return f"{self.file}/{self.at}/{self.size}"

    @classmethod
    def from_text(cls, text: str) -> Place:
        """Raises ProtocolError."""
        if not re.fullmatch(r"[0-9]{1,3}/[0-9]{1,15}/[0-9]{1,15}", text):
            raise ProtocolError(f"{text!r:.80} is no place in a file")
        return cls(*map(int, text.split("/")))


SEVERAL = frozenset((list, Reference, Place))  # parts that are not simply bytes
BY_FILE = 128 * 1024  # bytes of a message; from here on a file costs less than the copies
PART_BY_FILE = 8 * 1024  # bytes of a part that goes there then
# Calls whose parts may lie in files, and how many parts come first that the receiver reads itself.
LARGE_CALLS = {"submit": 1, "result": 0, "publish": 0, "publish_for": 0, "system_done": 0}


def read_payload(file: int, at: int, size: int) -> bytes:
    """So many bytes of an open file. Raises ProtocolError if it is shorter."""
    _length(file, at + size)
    data = os.pread(file, size, at)
    if len(data) < size:
        raise ProtocolError(f"{len(data):,} of {size:,} bytes of a payload were read")
    return data


def map_payload(file: int, at: int, size: int) -> memoryview:
    """A read-only view of so many bytes of an open file: mapped, or read where that is faster. Raises ProtocolError."""
    if size < MAPPED:
        return memoryview(read_payload(file, at, size))
    _length(file, at + size)
    skip = at % mmap.ALLOCATIONGRANULARITY
    return memoryview(mmap.mmap(file, skip + size, access=mmap.ACCESS_READ, offset=at - skip))[skip:]


def _length(file, wanted):
    """The length of an open file. Raises ProtocolError if that is less than wanted."""
    have = os.fstat(file).st_size
    if have < wanted:
        raise ProtocolError(f"a payload file has {have:,} bytes", f"{wanted:,} were announced")
    return have


def write_pieces(file: int, pieces: Iterable, at: int = 0) -> int:
    """Writes the pieces one after the other into an open file, from `at` on; returns where they end."""
    pieces = list(pieces)
    for first in range(0, len(pieces), 512):  # the kernel takes 1,024 at a time
        some = pieces[first : first + 512]
        while some:
            written = os.pwritev(file, some, at)
            at += written
            some = left_of(some, written)
    return at


def left_of(buffers: list, done: int) -> list:
    """What is left of the buffers when so many bytes of them are done."""
    for i, buffer in enumerate(buffers):
        if done < len(buffer):
            return [memoryview(buffer)[done:], *buffers[i + 1 :]]
        done -= len(buffer)
    return []


def lay_out(parts: Iterable) -> tuple[list, list[tuple[int, int]], bool]:
    """The pieces of parts for one file, (at, size) of each, and whether all can be read by copying only. A part is a
    bytes-like or a list of them; each begins aligned."""
    pieces, places, plain, end = [], [], True, 0
    for part in parts:
        part = part if isinstance(part, list) else [part]
        if end % ALIGNMENT:
            pieces.append(bytes(-end % ALIGNMENT))
            end += -end % ALIGNMENT
        size = sum(map(len, part))
        plain = plain and (not size or next(filter(len, part))[0] != BUFFERS)
        places.append((end, size))
        pieces += part
        end += size
    return pieces, places, plain


@dataclass(slots=True)
class _File:
    """A file of a store: `size` is what counts, `parts` are not released yet; `source` is where it was linked from."""

    size: int
    whose: str = ""
    parts: int = 0
    plain: bool = True
    source: tuple[str, str] | None = None
    length: int = 0  # of a file that was linked


class Store:
    """The payload files of one node, in a folder that lives as long as its process; for one thread at a time. A file
    that is not needed any more is written again, which costs a third of a new one, if its link count says that no other
    store holds it, and if it was plain: who reads a plain pickle has copied what it needs, while arrays are views of
    their file. It is written again for the same `whose` only: who once had its descriptor may have kept it. `budget` is
    in bytes of files written here, in use or free; as a rule half of what the file system has left."""

    def __init__(self, root: str | None = None, budget: int | None = None) -> None:
        self.root = own_folder(root) if root else payload_root()
        system = os.statvfs(self.root)
        self.budget = system.f_bavail * system.f_frsize // 2 if budget is None else budget
        self.used = 0  # bytes, free files included
        self.folder = f"{self.root}/{secrets.token_hex(8)}"
        self._files: dict[str, _File] = {}
        self._free: dict[str, int] = {}  # name -> size; the oldest first
        self._adopted: dict[tuple[str, str], str] = {}
        self._names = itertools.count(1)
        self._warned = False
        self._idle = False  # nothing was written since the last `tidy`
        status = os.stat(self.root)
        # equal for the stores that can follow each other's references
        self.identity = f"{self.root} {status.st_dev} {status.st_ino}"
        self.dropped: deque[Reference] = deque()
        alone = _lock_file(f"{self.root}/lock")  # one makes or removes stores at a time: only the dead hold no lock
        try:
            _remove_dead(self.root)
            os.mkdir(self.folder, 0o700)
            self._lock = _lock_file(f"{self.folder}/lock")
        finally:
            os.close(alone)

    def write(self, parts: Iterable, whose: str = "") -> list[Reference] | None:
        """Writes parts (bytes-likes, lists of them) into one file: a reference to each. None if there is no room."""
        pieces, places, plain = lay_out(parts)
        name, file = self.create(sum(map(len, pieces)), whose) or ("", -1)
        if not name:
            return None
        try:
            write_pieces(file, pieces)
        except OSError as error:
            self._remove(name)
            return self._refuse(error)
        finally:
            os.close(file)
        self._files[name].parts, self._files[name].plain = len(places), plain
        return [Reference(self.folder, name, at, size) for at, size in places]

    def create(self, size: int, whose: str = "") -> tuple[str, int] | None:
        """A file for about `size` bytes: its name, and a descriptor to fill it by, which the caller closes. None as
        above. It is in use until `release_file`, or until all its references are released."""
        self.collect()
        self._idle = False
        again = self._fitting(size, whose)
        name, new = again or str(next(self._names)), 0 if again else os.O_CREAT | os.O_EXCL
        try:
            while new and self._free and self.used + size > self.budget:
                self._remove(next(iter(self._free)))
            if new and self.used + size > self.budget:
                return self._refuse(f"{self.used:,} of {self.budget:,} bytes are in use")
            file = os.open(f"{self.folder}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | new, 0o600)
        except OSError as error:
            return self._refuse(error)
        self.used += size if new else 0
        self._files[name] = _File(self._free.pop(name, size), whose)
        return name, file

    def _fitting(self, size, whose):
        """The smallest free file that so much fits into and that nobody holds any more."""
        for _, name in sorted((have, name) for name, have in self._free.items() if size <= have <= 4 * size):
            with suppress(FileNotFoundError):
                if self._files[name].whose == whose and os.stat(f"{self.folder}/{name}").st_nlink == 1:
                    return name
        return None

    def _refuse(self, reason):
        log.log(logging.DEBUG if self._warned else logging.WARNING,
                "no room for a payload in %s (%s): such payloads are copied instead", self.folder, reason)  # fmt: skip
        self._warned = True

    def reference(self, name: str, at: int, size: int) -> Reference:
        """One more reference into a file that was filled. Raises ProtocolError if it is not there, or shorter."""
        kept = self._files.get(name)
        if kept is None or name in self._free:
            raise ProtocolError(f"{name!r:.80} is no payload file in use")
        reference = Reference(self.folder, name, at, size)
        have, first = reference._with_file(lambda file, *_: (_length(file, at + size), os.pread(file, 1, at)))
        self.used += max(0, have - kept.size)
        kept.size, kept.parts = max(kept.size, have), kept.parts + 1
        kept.plain = kept.plain and first != bytes([BUFFERS])
        return reference

    def adopt(self, reference: Reference, whose: str = "") -> Reference | None:
        """The same bytes as a reference of this store's own, whatever becomes of the other store: the file is linked,
        or copied where that cannot be, and then None if there is no room. Raises OSError if it is gone."""
        self.collect()
        source = (reference.folder, reference.name)
        name = self._adopted.get(source)
        if name is None:
            name = str(next(self._names))
            _check_store(reference.folder)
            try:
                os.link("/".join(source), f"{self.folder}/{name}", follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOENT):
                    raise
                copied = self.write([reference.view()], whose)
                return copied and copied[0]
            length = os.stat(f"{self.folder}/{name}", follow_symlinks=False).st_size
            self._files[name] = _File(0, source=source, length=length)
            self._adopted[source] = name
        if reference.at + reference.size > self._files[name].length:
            raise OSError(errno.ENODATA, "the file is shorter than was said", "/".join(source))
        self._files[name].parts += 1
        return Reference(self.folder, name, reference.at, reference.size)

    def kept(self, reference: Reference) -> Reference | bytes:
        """The same bytes as a part that stays, whatever becomes of the sender's file. Raises OSError if it is gone."""
        if reference.store is self:
            return reference  # the host of a system wrote it here
        adopted = self.adopt(reference)
        return adopted.held(self) if adopted else reference.read()

    def tidy(self) -> None:
        """Takes back what was let go, and keeps no free files if nothing was written for a while."""
        self.collect()
        if self._idle:
            self.trim()
        self._idle = True

    def collect(self) -> None:
        """Takes back what held references have let go."""
        while self.dropped:
            self.release(self.dropped.popleft())

    def release(self, reference: Reference) -> None:
        """This node needs the part no more; with the last one of a file goes the file."""
        file = self._files.get(reference.name)
        if file is not None:
            file.parts -= 1
            if file.parts <= 0:
                self.release_file(reference.name)

    def release_file(self, name: str, again: bool = True) -> None:
        """This node needs nothing of the file any more. `again`: it may be written again."""
        file = self._files.get(name)
        if file is None or name in self._free:
            return
        if file.source or not (file.plain and again):
            self._remove(name)
            return
        self._free[name] = file.size
        self.trim(KEPT_FILES, KEPT_BYTES)

    def trim(self, files: int = 0, size: int = 0) -> None:
        """Keeps at most so many free files and bytes, the youngest; an idle node keeps none."""
        while len(self._free) > files or sum(self._free.values()) > size:
            self._remove(next(iter(self._free)))

    def _remove(self, name):
        file = self._files.pop(name)
        self._free.pop(name, None)
        self._adopted.pop(file.source, None)
        self.used -= file.size
        with suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/{name}")

    def close(self) -> None:
        """Removes the folder; who has linked, opened or mapped a file keeps it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._files, self._free, self._adopted, self._lock = {}, {}, {}, None


def _lock_file(path, wait=True, create=os.O_CREAT):
    """An open file that is locked until it is closed, or the process ends."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _remove_dead(root):
    for name in filter(_FOLDER.fullmatch, os.listdir(root)):
        try:
            os.close(_lock_file(f"{root}/{name}/lock", wait=False, create=0))
        except FileNotFoundError:
            log.debug("the store %s has no lock", name)
        except OSError:  # its owner lives; or who knows, with no descriptor left
            continue
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)


# -- published objects -------------------------------------------------------------------------------------------------

SLICE = 16 * 1024 * 1024  # bytes of a published object in one message, where it does not travel by file
KEPT_OPEN = 512 * 1024 * 1024  # bytes of published objects that a process keeps open, the last used ones
_PUBLISHED = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")


@dataclass(repr=False, unsafe_hash=True)
class Shared:
    """A reference to a published object, which tasks may carry; `get` gives the object. The object is fetched once per
    slave and mapped by its workers: arrays of 64 KiB and up are read-only views of the same memory. It stays until the
    client that published it, or for which it was published, ends."""

    key: str
    size: int
    exchange: ClassVar[Exchange | None] = None  # of this process

    def get(self) -> Any:
        """The object. Raises Error if nobody has it any more."""
        return sys.modules[WIRE].Shared.exchange.get(self)

    def __repr__(self) -> str:
        return f"<Shared {self.key[:12]}, {self.size:,} bytes>"

    def __reduce__(self):
        return sys.modules[WIRE].Shared, (self.key, self.size)


Shared.__module__ = WIRE  # found there by every node, see `named`


class Exchange:
    """How the user's code publishes objects and reaches published ones: `send(key, pieces)` hands a sealed object on,
    `fetch(key)` waits for the bytes, `load` opens them. `mark` makes its keys its own; a process that repeats another
    has the same."""

    def __init__(self, send: Callable[[str, list], None], fetch: Callable[[str], Any], mark: str = "",
                 load: Callable = pickle.loads):
        self._send, self._fetch, self._load = send, fetch, load
        self._mark, self._owner = mark, "" if mark else None
        self._sent: set[str] = set()
        self._open: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._opening = threading.RLock()  # what is opened may hold references itself
        self.serve("")
        speak_wire()
        sys.modules[WIRE].Shared.exchange = self

    def serve(self, owner: str) -> None:
        """From now on this owner publishes; what an earlier one has published may be gone with it."""
        if owner != self._owner:
            self._owner = owner
            self._mark = secrets.token_hex(8)  # nobody else's object has this key, whatever its content
            self._sent = set()

    @property
    def used(self) -> bool:
        """Whether anything was published."""
        return bool(self._sent)

    def publish(self, obj: Any) -> Shared:
        """Publishes an object; equal content is sent once. Raises UsageError if it cannot be pickled."""
        pieces = seal(obj, "the published object", seal_pieces)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        shared = sys.modules[WIRE].Shared(f"{digest.hexdigest()}-{self._mark}", sum(map(len, pieces)))
        if shared.key not in self._sent:
            self._send(shared.key, pieces)
            self._sent.add(shared.key)
        return shared

    def get(self, shared: Shared) -> Any:
        """The object of a reference, opened once while it is among the last used. Raises Error."""
        with self._opening:
            found = self._open.pop(shared.key, None)
            if found is None:
                found = open_sealed(self._fetch(shared.key), self._load), shared.size
                while self._open and shared.size + sum([size for _, size in [*self._open.values()]]) > KEPT_OPEN:
                    self._open.popitem(last=False)
            self._open[shared.key] = found  # the last used
            return found[0]

    def forget(self, keys: Iterable[str]) -> None:
        """Keeps these objects open no more."""
        for key in keys:
            self._open.pop(key, None)


def no_such_object(key: str, why: str) -> components.Error:
    """The error for a published object that nobody has."""
    return components.Error(f"the published object {key[:12]} is not here", why,
                            "publish it again, from a client that runs as long as its tasks need it")  # fmt: skip


def slices(part: Any, by_file: bool) -> Iterator[tuple[int, int, Any]]:
    """(at, total, part) of the messages in which a published object travels: one if it goes `by_file`, or is small."""
    total = size_of(part)
    if by_file or total <= SLICE:
        yield 0, total, part
        return
    data = memoryview(b"".join(part) if type(part) is list else part.read() if type(part) is Reference else part)
    for at in range(0, total, SLICE):
        yield at, total, data[at : at + SLICE]


def check_key(key: Any, at: Any = 0, total: Any = 0) -> None:
    """Raises ProtocolError unless these can say what of a published object a message holds."""
    numbers = type(at) is type(total) is int and 0 <= at <= total
    if type(key) is not str or not _PUBLISHED.fullmatch(key) or not numbers:
        raise ProtocolError(f"{str(key)[:80]!r} names no published object")


class _Incoming:
    """A published object whose slices are coming, into a file of the store, or into memory where it has no room."""

    def __init__(self, store: Store | None, total: int):
        self.have, self.total = 0, total
        self._store = store
        self._name, self._file = (store and store.create(total)) or ("", -1)
        self._pieces: list = []

    def add(self, part: Any) -> None:
        pieces = part if type(part) is list else [part.read() if type(part) is Reference else part]
        if self._file >= 0:
            try:
                write_pieces(self._file, pieces, self.have)
            except OSError as error:
                log.warning("a published object goes to memory, for its file cannot grow (%s)", error)
                self._pieces.append(os.pread(self._file, self.have, 0))
                os.close(self._file)
                self._file = -1
                self._store.release_file(self._name)
        if self._file < 0:
            self._pieces += pieces
        self.have += sum(map(len, pieces))

    def end(self) -> Any:
        """The object as a part. Nothing comes any more."""
        if self._file < 0:
            return self._pieces
        os.close(self._file)
        return self._store.reference(self._name, 0, self.have).held(self._store)


class Shelf:
    """The published objects that a node holds, each as a part: in a file of its store, or in memory where it has none.
    The last used ones are kept, up to `budget` bytes (None: all)."""

    def __init__(self, store: Store | None, budget: int | None = None):
        self._store, self._budget = store, budget
        self._held: OrderedDict[str, Any] = OrderedDict()
        self._coming: dict[str, _Incoming] = {}

    def get(self, key: str) -> Any:
        """The part, or None; one whose file somebody removed is not here."""
        part = self._held.get(key)
        if type(part) is Reference and not os.access(f"{part.folder}/{part.name}", os.R_OK):
            part = self._held.pop(key) and None
        if part is not None:
            self._held.move_to_end(key)
        return part

    def take(self, key: str, at: int, total: int, part: Any) -> bool:
        """One slice; True if that completes the object. Raises OSError if its file is gone, ProtocolError."""
        check_key(key, at, total)
        if key in self._held:
            return True
        if type(part) is Reference and part.size == total:
            self._put(key, self._store.kept(part))
            return True
        if at == 0:  # from the beginning, maybe again
            self.forget([key])
            self._coming[key] = _Incoming(self._store, total)
        coming = self._coming.get(key)
        if coming is None or at != coming.have or at + size_of(part) > coming.total != total:
            raise ProtocolError(f"a slice of a published object begins at {at:,}, which nobody waits for")
        coming.add(part)
        if coming.have < total:
            return False
        self._put(key, self._coming.pop(key).end())
        return True

    def forget(self, keys: Iterable[str]) -> None:
        """Lets objects go; who has mapped one keeps it."""
        for key in keys:
            self._held.pop(key, None)
            if key in self._coming:
                self._coming.pop(key).end()

    def _put(self, key: str, part: Any) -> None:
        self._held[key] = part
        budget = math.inf if self._budget is None else self._budget
        while len(self._held) > 1 and sum(map(size_of, self._held.values())) > budget:
            self._held.popitem(last=False)


# -- large messages on a socketpair --------------------------------------------------------------------------------

MOST_FILES = 64  # descriptors that may wait in a socketpair
LARGE = 256 * 1024  # bytes; a message from this size on is received into memory of its own
CLOEXEC, CUT = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0)), int(socket.MSG_CTRUNC)  # macOS has not both; enums are slow


class Receiver:
    """Takes messages from a socketpair, however their bytes were cut, and the descriptors that came with them. Large
    ones are received into memory of their own. The socket may block or not. At most `descriptors` may wait to be taken;
    0: none are received, the kernel closes them. `follow` as for `unpack_body`."""

    def __init__(self, sock: socket.socket, limit: int = MAX_MESSAGE + INLINE, descriptors: int = 0,
                 follow: Callable[[str], Any] | None = None) -> None:
        self._sock = sock
        self._follow = follow
        self._limit = limit
        self._buffer = memoryview(bytearray(LARGE + INLINE))  # for small messages, again and again
        self._have = 0
        self._large = None  # the memory of the large message that is coming, as much of it as is empty yet
        self._whole = None
        self._most = descriptors
        self._space = socket.CMSG_SPACE(4 * descriptors) if descriptors else 0
        self._descriptors: deque = deque()

    def receive(self) -> list[tuple[list, list]]:
        """Reads once; returns (call, parts) of each message that is complete now, parts being bytes or views. Raises
        EOFError when the other end has closed, ProtocolError, and OSError as the socket does, BlockingIOError too."""
        if self._large is None:
            self._have += self._read(self._buffer[self._have :], 0)
            return self._complete()
        self._large = self._large[self._read(self._large, socket.MSG_WAITALL) :]
        if len(self._large):
            return []
        whole, self._whole, self._large = self._whole, None, None
        return [unpack_body([whole], 0, self._follow)]

    def _read(self, room, flags):
        if self._space:
            size, ancillary, flags, _ = self._sock.recvmsg_into([room], self._space, flags | CLOEXEC)
            if ancillary or flags & CUT:
                self._collect(ancillary, flags)
        else:
            size = self._sock.recv_into(room, 0, flags)
        if not size:
            raise EOFError("the other end of a socketpair has closed")
        return size

    def _collect(self, ancillary, flags):
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        if flags & CUT or len(self._descriptors) > self._most:
            self.close()
            raise ProtocolError(f"more than {self._most} descriptors came that no message has taken")

    def _complete(self):
        """The messages in the buffer; the rest moves to its front, or on to memory of its own."""
        messages, at, have, buffer = [], 0, self._have, self._buffer
        while have - at >= 4:
            (total,) = _TOTAL.unpack_from(buffer, at)
            if total > self._limit:
                raise ProtocolError(f"a message of {total:,} bytes", f"at most {self._limit:,} are taken")
            end = at + 4 + total
            if end > have:
                if total >= LARGE:
                    self._begin(total, buffer[at + 4 : have])
                    at = have
                break
            messages.append(unpack_body([bytes(buffer[at + 4 : end])], 0, self._follow))
            at = end
        self._have = have - at
        if at and self._have:
            buffer[: self._have] = buffer[at:have]
        return messages

    def _begin(self, total, begun):
        self._whole = memoryview(bytearray(total))
        self._whole[: len(begun)] = begun
        self._large = self._whole[len(begun) :]

    def take_descriptor(self) -> int:
        """The next descriptor, in the order in which they were sent; the caller closes it. Raises ProtocolError."""
        if not self._descriptors:
            raise ProtocolError("a message speaks of a descriptor that did not come with it")
        return self._descriptors.popleft()

    def close(self) -> None:
        """Closes the descriptors that nobody has taken; the socket is the caller's."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


# -- bundles: what is sent -----------------------------------------------------------------------------------

FRAMEWORK = __name__.rpartition(".")[0]  # the package under which this process knows the framework
PUBLIC_NAME = "concurrent_swarm"  # the name that every application may import it by
BUNDLE_FORMAT = 1
BUNDLE_LIMIT = 64 << 20  # bytes of source that a client sends
UNPACKED_LIMIT = 256 << 20  # bytes that a node unpacks, whoever sends it
UNPACKED_RATIO = 100  # unpacked bytes for each byte of zip, above 1 MiB
FILES_LIMIT = 10_000

_MANIFEST = {"format": int, "kind": str, "entry": str, "module": str, "modules": list,
             "framework": str, "needs": dict}
_MANIFEST_BEFORE = {**{name: form for name, form in _MANIFEST.items() if name != "needs"}, "requirements": list}
NEEDS = {"requirements": list, "network": list, "read": list, "write": list, "subprocess": bool}  # of texts
_ZIP_METHODS = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED
_MANIFEST_FILE = ".bundle.json"  # cannot meet a file of the application: hidden ones are not shipped
PARTS = ".parts"  # the folder beside it of what a node has installed and compiled for the application


class Bundle(NamedTuple):
    """An application as it travels. `digest` is the SHA-256 (hex) of the content and of the manifest's facts, never of
    the place it came from: the same source in two folders is one bundle, an edited file is another. `manifest` is a
    table for JSON: `format`, `kind` (file or package), `entry` (the entry file's name in the zip), `module` (what to
    import), `modules` (the other top-level names the bundle answers), `framework` (the package under which the client
    knows us), `needs` (what its class declares, see NEEDS). `root` is the folder of the source on the client; it is
    not sent."""

    digest: str
    manifest: dict
    zip: bytes
    root: str


def make_bundle(path: str | os.PathLike | None = None, module: str | None = None, framework: str = FRAMEWORK) -> Bundle:
    """The bundle of the application in `path` (a .py file or package folder) or of `module` (as after `-m`). A file
    takes along the modules and packages next to it that its imports name, also inside functions and through other
    siblings, but for names that the standard library has. A package takes all its files but hidden and compiled ones.
    What its class, a requirements.txt beside it, and the header of the file (PEP 723) require is put together.
    Raises UsageError for source that cannot be found, read, parsed or sent."""
    root, entry = _locate_module(module) if module is not None else _locate_path(Path(path))
    needs = _with_requirements(_needs(_parse(root / entry), root / entry), root, entry)
    if "/" in entry:
        names, modules = _package_files(root, entry.partition("/")[0], framework), {entry.partition("/")[0]}
    else:
        names, modules = _with_siblings(root, entry, framework)
    files = _read_files(root, names)
    manifest = {"format": BUNDLE_FORMAT, "kind": "package" if "/" in entry else "file", "entry": entry,
                "modules": sorted(modules), "framework": framework, "needs": needs}
    digest = _digest(manifest, files)
    manifest["module"] = _module_name(manifest, digest)
    return Bundle(digest, manifest, _zip(files), str(root))


def _digest(manifest, files):
    facts = {key: value for key, value in manifest.items() if key != "module"}  # made from the digest
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, data in sorted(files.items()):
        digest.update(struct.pack("<IQ", len(name.encode()), len(data)) + name.encode())
        digest.update(data)
    return digest.hexdigest()


def _module_name(manifest, digest):
    stem = manifest["entry"].removesuffix(".py")
    if manifest["kind"] == "file":
        return re.sub(r"\W", "_", stem) + "_" + digest[:12]
    return stem.removesuffix("/__init__").replace("/", ".")


def _zip(files):
    """The same bytes for the same files; stored as they are if they shrink so much as a bomb."""
    for method in _ZIP_METHODS:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in sorted(files.items()):
                entry = zipfile.ZipInfo(name)  # 1980, whenever it is made
                entry.compress_type, entry.create_system, entry.external_attr = method, 3, 0o100644 << 16
                archive.writestr(entry, data)
        packed = buffer.getvalue()
        if sum(map(len, files.values())) <= _unpacked_limit(packed):
            break
    return packed


def _unpacked_limit(packed):
    return min(UNPACKED_LIMIT, max(1 << 20, UNPACKED_RATIO * len(packed)))


# -- bundles: finding the source -----------------------------------------------------------------------------

def _shown(path):
    """A path as the user would type it."""
    full, here = Path(os.path.abspath(path)), Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else path)


def _no_application(path, why):
    return UsageError(f"no application in {_shown(path)}", why, "give the .py file with the class")


def _locate_path(path):
    """Where a path's application is, as (root folder, name of the entry file below it)."""
    path = path.parent if path.name == "__init__.py" else path
    if path.is_dir():
        if not (path / "__init__.py").is_file():
            raise _no_application(path, "this folder has no __init__.py, so it is no package")
        top = path = path.resolve()
        while (top.parent / "__init__.py").is_file():
            top = top.parent
        return top.parent, (path / "__init__.py").relative_to(top.parent).as_posix()
    if not path.is_file() or path.suffix != ".py":
        folder, pattern = (path.parent, "*.py") if path.parent.is_dir() else (path.parent.parent, "*/*.py")
        hint = components.did_you_mean(str(path), map(str, folder.glob(pattern)))
        why = "it is not a .py file" if path.exists() else "the file does not exist"
        raise _no_application(path, f"{why} ({hint})" if hint else why)
    path = path.resolve()
    return path.parent, path.name


def _locate_module(module):
    """Where the application of `-m module` is: the current folder is searched first, as by Python's `-m`."""
    parts = module.split(".")
    for root in map(Path, [os.getcwd(), *sys.path]):
        for entry in "/".join([*parts, "__init__.py"]), "/".join(parts) + ".py":
            if all(parts) and (root / entry).is_file():
                return root.resolve(), entry
    raise UsageError(f"no application in module {module}", "neither this folder nor Python's path has it",
                     "start in the folder that holds the package, or give the .py file")


def _parse(path):
    """The syntax tree of a source file; UsageError with file and line if it has none or is of Python 2."""
    try:
        source = importlib.util.decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{_shown(path)} cannot be read", str(error), "save it as UTF-8") from error
    if old := explain_old_imports(source, path):
        raise old
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte, before Python 3.12
        line = getattr(error, "lineno", None) or 1
        why = "Python {}.{} cannot parse this file".format(*sys.version_info)
        what = f"{_shown(path)}:{line}: {getattr(error, 'msg', error)}"
        raise UsageError(what, why, f"correct line {line}") from error


def _needs(tree, path) -> dict[str, Any]:
    """What the classes of a file declare that they need. It is read, not run: nodes must know it before they run it."""
    found: dict[str, Any] = {}
    for cls in [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]:
        for node in [node for node in cls.body if isinstance(node, ast.Assign) and len(node.targets) == 1]:
            name = getattr(node.targets[0], "id", None)
            if name in NEEDS:
                found[name] = found.get(name, NEEDS[name]()) + _written_out(name, node, path)
    return {name: list(dict.fromkeys(value)) if NEEDS[name] is list else True for name, value in found.items() if value}


def _written_out(name, node, path):
    with suppress(ValueError):
        value = ast.literal_eval(node.value)
        if _is_need(name, value):
            return value
    form = "a list of texts" if NEEDS[name] is list else "True or False"
    raise UsageError(f"{_shown(path)}:{node.lineno}: what {name} says cannot be read",
                     f"{form}, written out, is meant: nodes read it before anything of the file runs", f"{name} = ...")


def _is_need(name, value):
    texts = value if type(value) is list else []
    return type(value) is NEEDS.get(name) and all(type(one) is str and one.isprintable() for one in texts)


def _with_requirements(needs, root, entry):
    """The needs with what a requirements.txt beside the entry file or in its package says, and the file's header."""
    found = [("", one) for one in needs.get("requirements", [])]
    for folder in sorted({(root / entry).parent, root / (entry.partition("/")[0] if "/" in entry else "")}):
        if (folder / "requirements.txt").is_file():
            lines = (folder / "requirements.txt").read_text("utf-8-sig", "replace").splitlines()
            words = ((number, re.sub(r"(^|\s)#.*", "", line).strip()) for number, line in enumerate(lines, 1))
            found += [(f"{_shown(folder / 'requirements.txt')}:{number}: ", word) for number, word in words if word]
    found += [(f"{_shown(root / entry)}: ", one) for one in _header_requirements(root / entry)]
    for where, one in found:
        if not _is_requirement(one):
            why = "options, other files, paths and addresses mean something else, or nothing, on another machine"
            raise UsageError(f"{where}{one!r} is no requirement that can travel", why,
                             "a name with versions, as numpy>=1.26; what lies in a file goes into node.wheels of nodes")
    ours = re.compile(r"concurrent[-_.]swarm\b", re.IGNORECASE)  # a file's header may well name it; every node has it
    requirements = list(dict.fromkeys(one for _, one in found if not ours.match(one)))
    return {**needs, **({"requirements": requirements} if requirements else {})}


def _is_requirement(text):
    """Whether it is a name with versions (PEP 508): nothing that pip would take for an option, a file or an address."""
    versions = r"\(?[=<>!~][\w.*+!,<>=~\s-]*\)?"
    return re.fullmatch(rf"[A-Za-z0-9][\w.-]*\s*(\[[\w.,\s-]*\])?\s*({versions})?\s*(;[^/@]*)?", " ".join(text.split()))


def _header_requirements(path):
    """The dependencies in a file's header "# /// script" (PEP 723)."""
    source = importlib.util.decode_source(path.read_bytes())
    found = re.search(r"^# /// script$\n((?:^#(?:| .*)$\n)+?)^# ///$", source, re.MULTILINE)
    if not found:
        return []
    text = re.sub(r"^# ?", "", found[1], flags=re.MULTILINE)
    with suppress(ValueError, SyntaxError):
        value = _toml_dependencies(text)
        if _is_need("requirements", value):
            return value
    line = source.count("\n", 0, found.start()) + 1
    raise UsageError(f"{_shown(path)}:{line}: the dependencies of this header cannot be read",
                     "a list of texts is meant, in TOML (PEP 723)", '# dependencies = ["numpy>=1.26"]')


def _toml_dependencies(text):
    if importlib.util.find_spec("tomllib"):
        return importlib.import_module("tomllib").loads(text).get("dependencies", [])
    alone = re.search(r"^dependencies\s*=\s*(\[.*?\])\s*$", text, re.MULTILINE | re.DOTALL)  # before Python 3.11
    return ast.literal_eval(alone[1]) if alone else []


def _imports_of(path):
    """The imports in a file, of Cython too: of that the names are read, line by line."""
    if path.suffix == ".py":
        yield from _imports(_parse(path))
        return
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if found := re.match(r"\s*(?:from\s+(\w+)[\w.]*\s+c?import\b|c?import\s+([\w.]+(?:\s*,\s*[\w.]+)*))", line):
            yield from ((number, 0, name.strip(), []) for name in (found[1] or found[2]).split(","))


def _imports(tree) -> Iterator[tuple[int, int, str, list[str]]]:
    """All imports in a file, those inside functions too, as (line, level, module, names)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", [alias.name for alias in node.names]


def _with_siblings(root, entry, framework):
    """The entry file and what its imports reach next to it, as (names of files, names of modules)."""
    names, modules, todo = {entry}, set(), [entry]
    while todo:
        file = todo.pop()
        for line, level, module, _ in _imports_of(root / file):
            if level and "/" not in file:
                raise _relative_import(root, file, line)
            top = module.partition(".")[0]
            if level or top in modules or top in sys.stdlib_module_names or top in (framework, PUBLIC_NAME):
                continue
            alone = {f"{top}{end}" for end in (".py", ".pyx", ".pxd") if (root / f"{top}{end}").is_file()}
            found = _package_files(root, top, framework) if (root / top / "__init__.py").is_file() else alone
            if found and (file, found) != (entry, {entry}):  # an import of its own name means another module
                modules.add(top)
                todo += sorted(name for name in found - names if name.endswith((".py", ".pyx", ".pxd")))
                names |= found
    return names, modules


def _relative_import(root, file, line):
    fix = "drop the dot: modules next to the file are sent with it"
    if (root / "__init__.py").is_file():
        fix = f"in the folder above {root.name}: client.py -m {root.name}.{file.removesuffix('.py')}"
    return UsageError(f"{_shown(root / file)} line {line} has a relative import",
                      "a file that is started by its path belongs to no package", fix)


def _package_files(root, package, framework):
    """The names of a package's files, but for hidden and compiled ones and a copy of the framework."""
    names, copy = set(), tuple(framework.split("."))
    for folder, folders, files in os.walk(root / package):
        inside = Path(folder).relative_to(root)
        folders[:] = [name for name in filter(_shipped, folders) if (inside / name).parts != copy]
        files = {name for name in filter(_shipped, files) if Path(folder, name).is_file()}
        files -= {name for name in files if name.endswith((".so", ".pyd")) and f"{name.partition('.')[0]}.pyx" in files}
        names |= {(inside / name).as_posix() for name in files}
    return names


def _shipped(name):
    return not name.startswith(".") and name != "__pycache__" and not name.endswith(".pyc")


def _read_files(root, names):
    _check_names(names)
    try:
        size = sum((root / name).stat().st_size for name in names)
        if size <= BUNDLE_LIMIT and len(names) <= FILES_LIMIT:
            return {name: (root / name).read_bytes() for name in names}
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read", str(error.strerror), "allow it") from error
    limit = f"at most {FILES_LIMIT:,} files and {BUNDLE_LIMIT >> 20} MiB can be sent"
    raise UsageError(f"the application has {len(names):,} files and {size / 2**20:.1f} MiB; {limit}",
                     "all files of a package travel with it", "move large data out of the package")


# -- bundles: opening them -----------------------------------------------------------------------------------

def open_bundle(digest: str, manifest: dict[str, Any], data: bytes, folder: str | os.PathLike) -> str:
    """Unpack a bundle into `folder/<digest>/`, all of it or nothing, and return that path; once is enough. Raises Error
    for a bundle that is not what its digest says, or whose files would land elsewhere."""
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise _refused("its digest is not 64 hexadecimal digits")
    target = Path(folder, digest)
    if target.is_dir():
        return str(target)
    files = _unzip(data)
    _check_bundle(digest, manifest, files)
    try:
        _unpack({_MANIFEST_FILE: json.dumps(manifest).encode(), **files}, target)
    except OSError as error:
        raise Error(f"no application can be unpacked into {folder}", str(error), "make room there") from error
    return str(target)


def manifest_of(root: str | os.PathLike) -> dict[str, Any]:
    """The manifest of an unpacked bundle."""
    return json.loads((Path(root) / _MANIFEST_FILE).read_bytes())


def needs_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What an application needs, as its manifest says; those of before could not."""
    return manifest.get("needs", {})


def known_bundles(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The bundles that lie intact in `folder`, as {digest: manifest}; what a crash has damaged is removed, and what
    was installed and compiled for the node that crashed."""
    known = {}
    for path in Path(folder).glob(f"*/{_MANIFEST_FILE}"):
        root = path.parent
        remove_parts(root)
        try:
            manifest = json.loads(path.read_bytes())
            files = [file for file in root.rglob("*") if file.is_file() and file != path]
            contents = {file.relative_to(root).as_posix(): file.read_bytes() for file in files}
            _check_bundle(root.name, manifest, contents)
            known[root.name] = manifest
        except (Error, OSError, ValueError) as error:
            log.warning("the application in %s is damaged and is removed: %s", root, error)
            shutil.rmtree(root, ignore_errors=True)
    return known


def _refused(why, fix="start the client again, in the same version as this node"):
    return Error("an application was refused", why, fix)


def _check_names(names: Iterable[str]):
    """Raise Error unless these files can lie side by side below one folder on every system."""
    seen = {}
    for name in names:
        parts = name.split("/")
        portable = all(part and part[0] != "." and part[-1] not in ". " for part in parts)
        if not portable or not name.isprintable() or set(name) & set("\\:"):
            raise _refused(f"the file name {name!r} cannot be used on every node", "rename the file")
        for depth in range(1, len(parts) + 1):
            spelled, leaf = "/".join(parts[:depth]), depth == len(parts)
            key = unicodedata.normalize("NFC", spelled).casefold()
            if key in seen and (leaf or seen[key] != (spelled, leaf)):
                why = f"{name!r} and {seen[key][0]!r} are one file where case does not count"
                raise _refused(why, "rename one of them")
            seen[key] = spelled, leaf


def _unzip(data):
    """The files of a zip, of which no more is read than it declares, and nothing if it declares too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > FILES_LIMIT or size > _unpacked_limit(data):
                raise _refused(f"its zip of {len(data)} bytes unpacks to {size} in {len(entries)} files")
            if any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries):
                raise _refused("its zip holds a link")
            if any(entry.compress_type not in _ZIP_METHODS for entry in entries):
                raise _refused("its zip is compressed by another method than deflate")
            _check_names(entry.orig_filename for entry in entries)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError) as error:
        raise _refused(f"its zip is damaged ({error})") from error


def _check_bundle(digest, manifest, files):
    """Raise Error unless manifest and files have the form that make_bundle gives and this digest."""
    forms = {key: type(manifest[key]) for key in manifest} if type(manifest) is dict else None
    if forms not in (_MANIFEST, _MANIFEST_BEFORE):
        raise _refused("its manifest has not the fields " + ", ".join(_MANIFEST))
    names = [manifest["framework"], *manifest["modules"]]
    if manifest["format"] != BUNDLE_FORMAT:
        raise _refused(f"its format is {manifest['format']}, this node knows {BUNDLE_FORMAT}")
    if not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) for name in names):
        raise _refused("its manifest names modules that cannot be")
    needs = needs_of(manifest)
    known = all(itertools.starmap(_is_need, needs.items()))
    if not known or not all(map(_is_requirement, needs.get("requirements", []))):
        raise _refused("its manifest has needs that this node does not know")
    if manifest["entry"] not in files or manifest["kind"] not in ("file", "package"):
        raise _refused(f"it is a {manifest['kind']!r} without its entry file {manifest['entry']!r}")
    if _digest(manifest, files) != digest or _module_name(manifest, digest) != manifest["module"]:
        raise _refused(f"its content is not what its digest {digest[:12]}… says")


def _unpack(files, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        for name, data in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        for path in temporary.rglob("*"):  # for workers with a uid of their own, whatever the umask
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -- bundles: what is installed and compiled for them --------------------------------------------------------

INSTALLED, COMPILED, TEMPORARY = "installed", "compiled", "tmp"  # folders below the one of a bundle's parts
_BUILD_LOG = "build.log"
TOLD_LINES = 8  # of what a tool said that failed
COMPILED_KEPT = 3600.0  # seconds without use after which a client removes what it has compiled
_FLAGS = ["-O2", "-fPIC", "-fwrapv", "-ffp-contract=off", "-w"]  # the same last bit as the pure twin


class CannotBuild(Error):
    """Something cannot be installed or compiled. `kind`: "setup" where another machine may do it, else "load"."""

    def __init__(self, what: str, why: str = "", fix: str = "", kind: str = "setup"):
        super().__init__(what, why, fix)
        self.kind = kind


def wanted_parts(root: str | os.PathLike) -> dict[str, list]:
    """What an unpacked bundle needs beside its own files: `requirements`, and as `sources` its .pyx files."""
    sources = (path.relative_to(root).as_posix() for path in Path(root).rglob("*.pyx"))
    own = sorted(name for name in sources if not name.startswith(PARTS))
    return {"requirements": needs_of(manifest_of(root)).get("requirements", []), "sources": own}


def build_parts(root: str, into: str, where: str, requirements: Iterable[str] = (), sources: Iterable[str] = (),
                install: bool = True, wheels: str = "", index: str = "", settings: str = "") -> int:
    """Installs the requirements, of wheels only, and compiles the sources of the bundle in `root` into the folder
    `into`; returns the bytes that this takes. `wheels` is a folder to take them from, `index` an address; without
    either, pip's settings count, and those in the file `settings`. Without `install`, nothing may be missing. `where`
    is what errors call this machine. Takes its time: for a process of its own. Raises CannotBuild, OSError."""
    folder = Path(into)
    for name in INSTALLED, COMPILED, TEMPORARY:
        (folder / name).mkdir(parents=True, exist_ok=True)
    if missing := [one for one in requirements if not _is_installed(one)]:
        what = f"{', '.join(missing)} cannot be installed on {where}"
        if not install:
            raise CannotBuild(what, "node.install is no there", "its owner sets that, or installs it for all")
        _install(folder, requirements, what, wheels, index, settings)
    for name in sources:
        try:
            _compile(Path(root), name, folder, f"{name} cannot be compiled on {where}")
        except CannotBuild as error:
            if not (Path(root) / name).with_suffix(".py").is_file():
                raise
            log.warning("the pure twin of %s is used: %s", name, error)
    shutil.rmtree(folder / TEMPORARY)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_installed(requirement):
    """Whether this Python has it without us, as pip reads it."""
    if not importlib.util.find_spec("pip"):
        return False
    one = importlib.import_module("pip._vendor.packaging.requirements").Requirement(requirement)
    with suppress(importlib.metadata.PackageNotFoundError):
        if one.marker is None or one.marker.evaluate():
            version = importlib.metadata.version(one.name)
            return not one.extras and one.specifier.contains(version, prereleases=True)
        return True
    return False


def _install(folder, requirements, what, wheels, index, settings):
    environ = {"PIP_CONFIG_FILE": os.devnull if wheels or index else settings}  # that: no settings of pip's at all
    places = ["--no-index", "--find-links", wheels] if wheels else ["--index-url", index] if index else []
    source = f"node.wheels, {wheels}" if wheels else f"node.index, {index}" if index else "where pip's settings say"
    _tool(folder, [sys.executable, "-m", "pip", "install", "--only-binary", ":all:", "--no-cache-dir", "--no-input",
                   "--disable-pip-version-check", "--target", str(folder / INSTALLED), *places, *requirements],
          what, f"wheels only, from {source}; node.wheels and node.index there say from where", environ=environ)


def _compile(root, name, folder, what):
    """Makes a module of a .pyx file, with Cython, which may be one of the requirements, and the compiler of here."""
    words = shlex.split(sysconfig.get_config_var("LDSHARED") or "cc")
    names = list(dict.fromkeys([words[0], "cc", "gcc", "clang"]))
    compiler = next(filter(None, map(shutil.which, names)), None)
    if not compiler:
        raise CannotBuild(what, f"there is no C compiler: none of {', '.join(names)}",
                          f"install one there, or put a pure twin beside it: {name.removesuffix('x')}")
    if not (importlib.util.find_spec("Cython") or (folder / INSTALLED / "Cython").is_dir()):
        raise CannotBuild(what, "there is no Cython", 'requirements = ["cython"] in the application installs it')
    stem = name.removesuffix(".pyx")
    c_file, library = folder / TEMPORARY / "module.c", folder / COMPILED / f"{stem}{EXTENSION_SUFFIXES[0]}"
    library.parent.mkdir(parents=True, exist_ok=True)
    _tool(folder, [sys.executable, "-m", "cython", "-3", "--module-name", stem.replace("/", "."), "-I", str(root),
                   str(root / name), "-o", str(c_file)],
          what, f"correct {name}", "load")
    _tool(folder, [compiler, *words[1:], *_FLAGS, "-I", sysconfig.get_path("include"), str(c_file), "-o", str(library)],
          what, "the headers of Python must be there, as in python3-dev")


def _tool(folder, command, what, fix, kind="setup", environ=()):
    """Runs a program for this folder; what it says is kept there, and its last lines are told if it fails."""
    path = os.pathsep.join([str(folder / INSTALLED), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, **dict(environ), "TMPDIR": str(folder / TEMPORARY), "PYTHONPATH": path}
    with open(folder / _BUILD_LOG, "ab") as said:
        if subprocess.run(command, cwd=folder / TEMPORARY, env=environ, stdin=subprocess.DEVNULL, stdout=said,
                          stderr=subprocess.STDOUT).returncode == 0:
            return
    raise CannotBuild(what, said_last(folder), fix, kind)


def said_last(folder: str | os.PathLike) -> str:
    """The last lines of what the tools said that worked for this folder."""
    with suppress(OSError), open(Path(folder) / _BUILD_LOG, "rb", opener=_open_itself) as said:
        said.seek(max(0, os.fstat(said.fileno()).st_size - 8192))
        text = said.read(8192).decode(errors="replace")
        return "\n".join([line for line in text.splitlines() if line.strip()][-TOLD_LINES:])
    return "nothing was said"


def _open_itself(path, flags):
    """No link: a node reads what a child of its own could have put there."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def compiled_twin(folder: Path, fullname: str) -> Path | None:
    """The compiled module of this name below a folder, unless its source there is newer."""
    stem = folder.joinpath(*fullname.split("."))
    source = stem.with_name(f"{stem.name}.pyx")
    found = [file for end in EXTENSION_SUFFIXES if (file := stem.with_name(stem.name + end)).is_file()]
    stale = found and source.is_file() and source.stat().st_mtime > found[0].stat().st_mtime
    return found[0] if found and not stale else None


def compile_here(bundle: Bundle, environment: components.Environment) -> Path | None:
    """What the application has as .pyx only, compiled for this client below its apps/; None where that is nothing.
    The same source is compiled once. Raises CannotBuild."""
    files, root = _unzip(bundle.zip), Path(bundle.root)
    alone = [name for name in files if name.endswith(".pyx") and not (root / name).with_suffix(".py").is_file()
             and not compiled_twin(root, name.removesuffix(".pyx").replace("/", "."))]
    if not alone:
        return None
    facts = [EXTENSION_SUFFIXES[0], alone, sorted(one for one in files.items() if not one[0].endswith(".py"))]
    target = environment.create() / "apps" / f"compiled-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as new:
            with components.Terminal().waiting(f"{', '.join(alone)} is being compiled"):
                build_parts(bundle.root, new, "this machine", sources=alone)
            shutil.copytree(new, target, dirs_exist_ok=True)
    os.utime(target)
    for old in target.parent.glob("compiled-*"):
        if target.stat().st_mtime - old.stat().st_mtime > COMPILED_KEPT:
            shutil.rmtree(old, ignore_errors=True)
    return target


def remove_parts(root: str | os.PathLike) -> None:
    """Removes what was installed and compiled for an unpacked bundle, or was about to be."""
    for path in Path(root).glob(f"{PARTS}*"):
        shutil.rmtree(path, ignore_errors=True)


# -- bundles: importing them ---------------------------------------------------------------------------------

def _below(module, package):
    return f"{module}.".startswith(f"{package}.")


class _FreshSource(importlib.machinery.SourceFileLoader):
    """Loads source, never a .pyc: after an edit within a second it would be old code under a new name."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)


class _SameModule(importlib.abc.Loader):
    """Makes an import give a module that has another name, untouched: it replaces the one being made."""

    def __init__(self, name):
        self.name = name

    def exec_module(self, module):
        sys.modules[module.__spec__.name] = importlib.import_module(self.name)


class BundleFinder(importlib.abc.MetaPathFinder):
    """Answers the modules of one bundle from the folder `root`, and no others. Neighbours that were not sent are not
    there; a single file, with its digest in its name, hides nothing and is hidden by nothing. What was installed and
    compiled for the bundle is answered from the folder `parts`: before all others but the standard library."""

    def __init__(self, root: str | os.PathLike, manifest: dict[str, Any], parts: str | os.PathLike | None = None):
        self.root, self.manifest = Path(root), manifest
        self.parts = self.root / PARTS if parts is None else Path(parts)

    def owns(self, fullname: str) -> bool:
        """Whether a module of this name would come from the bundle."""
        names = [self.manifest["module"], *self.manifest["modules"]]
        return fullname.partition(".")[0] in names and not _below(fullname, self.manifest["framework"])

    def find_spec(self, fullname, path=None, target=None):
        """The spec of a module of the bundle, or of one that was installed for it; None for all others."""
        entry, module = self.manifest["entry"], self.manifest["module"]
        if not self.owns(fullname):
            ours = path is None and fullname not in sys.stdlib_module_names and self.parts.is_dir()
            return importlib.machinery.PathFinder.find_spec(fullname, [str(self.parts / INSTALLED)]) if ours else None
        if f"{fullname}.py" == entry:  # a sibling imports the entry file by its plain name
            return importlib.util.spec_from_loader(fullname, _SameModule(module))
        if compiled := compiled_twin(self.parts / COMPILED, fullname) or compiled_twin(self.root, fullname):
            loader = importlib.machinery.ExtensionFileLoader(fullname, str(compiled))
            return importlib.util.spec_from_loader(fullname, loader)
        folder = self.root.joinpath(*fullname.split("."))
        module_file = self.root / entry if fullname == module else folder.with_name(f"{folder.name}.py")
        for file in folder / "__init__.py", module_file:
            if file.is_file():
                return importlib.util.spec_from_loader(fullname, _FreshSource(fullname, str(file)))
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations.append(str(folder))
        return spec if folder.is_dir() else None

    def find_distributions(self, context: Any = importlib.metadata.DistributionFinder.Context()) -> Iterable:  # noqa: B008
        """What was installed for the bundle, for those who ask for versions and entry points."""
        told = {**vars(context), "path": [str(self.parts / INSTALLED)]}
        return importlib.metadata.MetadataPathFinder.find_distributions(type(context)(**told))

    def forget(self) -> None:
        """Take the finder and all that it has loaded out of this process again."""
        for name in filter(self.owns, list(sys.modules)):
            del sys.modules[name]
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]


def install_bundle(root: str | os.PathLike, manifest: dict[str, Any], parts: str | os.PathLike | None = None
                   ) -> BundleFinder:
    """Make the bundle's modules importable in this process, which belongs to it; once is enough."""
    for finder in sys.meta_path:
        if isinstance(finder, BundleFinder) and (finder.root, finder.manifest) == (Path(root), manifest):
            return finder
    sys.meta_path.insert(0, BundleFinder(root, manifest, parts))
    return sys.meta_path[0]


def load_app(root: str | os.PathLike, manifest: dict[str, Any], parts: str | os.PathLike | None = None
             ) -> types.ModuleType:
    """Import the entry module of the bundle in `root`, with what was compiled for it in `parts`; if it fails, raise
    Error and leave nothing behind."""
    finder = install_bundle(root, manifest, parts)
    try:
        return importlib.import_module(manifest["module"])
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is loaded
        finder.forget()
        raise _load_error(error, Path(root), manifest) from error


def _load_error(error, root, manifest):
    """What the user is told: the last line of their own source that took part, and what it met."""
    file, line = root / manifest["entry"], 1
    own = [file, *(root / f"{name}{end}" for name in manifest["modules"] for end in ("", ".py"))]
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno or 1))
    for name, number in places:
        if any(Path(name).is_relative_to(path) for path in own):  # an environment may lie in the same folder
            file, line = name, number
    text = Path(file).read_bytes().decode(errors="replace") if Path(file).is_file() else ""
    if old := explain_old_imports(text, file):
        return old
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return Error(f'{_shown(file)} line {line} cannot import "{error.name}"', said,
                     f"{sys.executable} -m pip install {error.name.partition('.')[0]}")
    return Error(f"{_shown(file)} line {line} failed while the application was loaded", said,
                 f"correct line {line}; code outside functions runs on every node that loads the file")


def find_application(module: types.ModuleType, base_class: type, name: str | None = None) -> type:
    """The subclass of `base_class` that `module` (or, of a package, a module in it) defines: the only one, that of this
    `name`, by any it has there, or without a name that called `application`. Raises UsageError that lists them."""
    home, shown = module.__name__, _shown(module.__file__)
    aliases = {known_as: one for known_as, one in vars(module).items() if isinstance(one, type)
               and _below(one.__module__, home) and issubclass(one, base_class) and one is not base_class}
    own = {one.__name__: one for one in aliases.values()}
    if not own:
        raise _no_application(module.__file__, f"it defines no {base_class.__name__} subclass")
    chosen = own.get(name) or aliases.get(name or "application")
    if chosen or (name is None and len(own) == 1):
        return chosen or own[min(own)]
    problem = f"no application {name}" if name else "no single application"
    raise UsageError(f"{problem} in {shown}", f"it defines {len(own)}: {', '.join(sorted(own))}",
                     components.did_you_mean(name or "", own) or f"choose one, as with --app {min(own)}")


# -- bundles: one framework under every name -----------------------------------------------------------------

class FrameworkAlias(importlib.abc.MetaPathFinder):
    """Answers the `names` of packages and their submodules with the framework that this process runs. Parents of a name
    ("a" and "a.b" of "a.b.c") are made, empty, only where no real one can be found."""

    def __init__(self, names: Iterable[str]):
        self.names = set(names)

    def find_spec(self, fullname, path=None, target=None):
        """The spec of one of our modules under another name, or of a parent of that name; else None."""
        for name in self.names:
            if _below(fullname, name):
                own = FRAMEWORK + fullname[len(name) :]
                known = own in sys.modules or importlib.util.find_spec(own)
                return importlib.util.spec_from_loader(fullname, _SameModule(own)) if known else None
        if not any(_below(name, fullname) for name in self.names):
            return None
        real = any(finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        return None if real else importlib.machinery.ModuleSpec(fullname, None, is_package=True)


def answer_framework(names: Iterable[str]) -> FrameworkAlias:
    """Let applications of this process import the framework by these package names too; more may follow."""
    alias = next((finder for finder in sys.meta_path if isinstance(finder, FrameworkAlias)), None)
    if alias is None:
        alias = FrameworkAlias(())
        sys.meta_path.insert(0, alias)
    alias.names |= set(names) - {FRAMEWORK}
    return alias


# -- bundles: applications of the first Concurrent -----------------------------------------------------------

_OLD_HOMES = {"concurrent.framework": "client", "concurrent.core.application": "tasks",
              "concurrent.core.async": "tasks", "concurrent.core": "components"}
_OLD_MODULES = {"md5": "from hashlib import md5", "cPickle": "import pickle", "Queue": "import queue",
                "StringIO": "from io import StringIO", "ConfigParser": "import configparser"}
_IMPORT_LINE = re.compile(r"[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+([\w, \t]+)|import[ \t]+([\w.]+))")
_OLD_STATEMENT = re.compile(r"(?:print|exec)\s+[\w'\"`]|(?:except|raise)\s+[\w.]+\s*,")


def explain_old_imports(source: str, path: str | os.PathLike) -> UsageError | None:
    """What to change first in an application of Concurrent 0.1 or of Python 2; None if it is neither."""
    broken = 0
    try:
        tree = ast.parse(source)
        for attempt in [node for node in ast.walk(tree) if isinstance(node, ast.Try)]:
            attempt.body, attempt.handlers = [], []  # code for both has its own answer
        imports = _imports(tree)
    except (SyntaxError, ValueError) as error:
        imports, broken = _imports_by_line(source), getattr(error, "lineno", None) or 1
    for line, level, module, names in sorted(imports):
        if not level and (old := _old_import(line, module, names, Path(path))):
            return old
    text = ["", *source.splitlines(), ""][broken].strip()
    return _OLD_STATEMENT.match(text) and UsageError(
        f"{_shown(path)} line {broken} is Python 2: {text}", "the framework runs on Python 3",
        "change it, as in print(x) and `except E as error:`; see docs/porting.md")


def _imports_by_line(source):
    """The imports of a file that Python 3 cannot parse (`async` in a module's name is enough)."""
    for line, text in enumerate(source.splitlines(), 1):
        if found := _IMPORT_LINE.match(text):
            yield line, 0, found[1] or found[3], (found[2] or "").replace(",", " ").split()


def _old_import(line, module, names, path):
    sibling = path.with_name(f"{module}.py")
    if module in _OLD_MODULES and (sibling == path or not sibling.exists()):
        return UsageError(f"{_shown(path)} line {line} imports {module}, a module of Python 2",
                          "the framework runs on Python 3",
                          f"first change: `{_OLD_MODULES[module]}`; see docs/porting.md")
    for prefix, home in _OLD_HOMES.items():
        if _below(module, prefix):
            fix = f"from {PUBLIC_NAME}.{home} import {', '.join(names) or '…'}"
            layout = "the module layout of Concurrent 0.1 for Python 2"
            return UsageError(f"{_shown(path)} line {line} imports {module}, {layout}",
                              "`async` is a keyword and `concurrent` a standard package in Python 3",
                              f"first change: `{fix}`; see docs/porting.md")
    return None


# -- the loop of a node --------------------------------------------------------------------------------------------

TICK_WITHIN = 0.01  # seconds after something happened: it may have brought a deadline forward


class Poller:
    """Waits for ZeroMQ sockets and for descriptors as `zmq.Poller` does, with half of its system calls: 3 % of the time
    of a lone task. The descriptor of a ZeroMQ socket tells only that something may have changed since somebody used the
    socket last, so it is asked itself before each wait, unless whoever registers it only reads, until nothing is left.
    """

    def __init__(self):
        import zmq

        self._get = zmq.backend.Socket.get
        self._poll = select.poll()
        self._sources: dict[int, Any] = {}  # by descriptor
        self._sockets: dict[Any, int] = {}  # ZeroMQ's, with their descriptors
        self._asked: dict[Any, Callable] = {}  # what asks those that are to be asked

    def __contains__(self, source: Any) -> bool:
        return source in self._sockets

    def register(self, source: Any, events: int, ask: bool = True) -> None:
        """Waits from now on for these events (as of `select.poll`) of a ZeroMQ socket or a descriptor. Not `ask`: of a
        socket from which nothing could be read a moment ago, and which nobody uses for anything else."""
        file = source
        if type(source) is not int:
            file = self._sockets[source] = source.fd
            if ask:
                self._asked[source] = self._get.__get__(source)
        self._sources[file] = source
        self._poll.register(file, events)

    def unregister(self, source: Any) -> None:
        """Waits for it no more; it may be closed already."""
        file = source if type(source) is int else self._sockets.pop(source)
        self._asked.pop(source, None)
        if self._sources.get(file) is source or file is source:  # else it is another's by now
            del self._sources[file]
            self._poll.unregister(file)

    def poll(self, wait: int) -> list[tuple[Any, int]]:
        """What something has happened to, and what; after so many milliseconds nothing."""
        told = []
        for one, get in self._asked.items():
            if get(EVENTS) & READABLE:
                told.append((one, select.POLLIN))
        found = [(self._sources[file], event) for file, event in self._poll.poll(0 if told else wait)]
        return told + [one for one in found if one[0] not in self._asked] if told else found


class Loop:
    """One thread that waits for everything a node listens to: sockets, timers' deadlines, calls from other threads.

    `add(source, handler)` calls `handler()` when the source is readable. `post(function)` from any thread runs it here;
    `ask(function)` also waits for what it returns; `later(seconds, function)` runs it then. `run` goes on until `stop`.
    """

    def __init__(self, tick: Callable[[float], float | None]):
        self._poller = Poller()
        self._handlers: dict[Any, Callable] = {}
        self._writers: dict[Any, Callable] = {}
        self._posted: deque = deque()
        self._tick = tick
        self._due = 0.0  # when to tick, or to ring
        self._alarms, self._order = [], itertools.count()  # a heap of (when, in which order, function)
        self.link: Link | None = None  # whose sockets come and go
        self._ends: list[Callable] = []  # what to do before the next wait
        self.crowded = False  # this turn has several things to do: what they send may travel together
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self.stopped = False
        self.thread = threading.get_ident()
        self.add(self._woken, self._run_posted)

    def add(self, source: Any, handler: Callable[[], None]) -> None:
        """Calls handler whenever the source (ZeroMQ socket, or anything with fileno) is readable."""
        self._handlers[_fd(source)] = handler
        self._poller.register(_fd(source), select.POLLIN)

    def write_when_ready(self, source: Any, handler: Callable[[], None] | None) -> None:
        """Calls handler while the source is writable; None ends that."""
        if handler is None:
            self._writers.pop(_fd(source), None)
            self._poller.register(_fd(source), select.POLLIN)
        else:
            self._writers[_fd(source)] = handler
            self._poller.register(_fd(source), select.POLLIN | select.POLLOUT)

    def remove(self, source: Any) -> None:
        """Listens to it no more."""
        if self._handlers.pop(_fd(source), None):
            self._writers.pop(_fd(source), None)
            self._poller.unregister(_fd(source))

    def post(self, function: Callable[[], Any]) -> None:
        """Runs function in the loop's thread, soon; from any thread or signal handler."""
        self._posted.append(function)
        try:
            self._wake.send(b"x")
        except (BlockingIOError, OSError) as error:
            log.debug("the loop is awake already, or ended: %s", error)

    def ask(self, function: Callable[[], Any], timeout: float = 10.0) -> Any:
        """Runs function in the loop's thread and returns what it returns; for other threads only."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self.post(lambda: _fulfil(future, function))
        return future.result(timeout)

    def stop(self) -> None:
        """Lets `run` return; from any thread or signal handler."""
        self.stopped = True
        self.post(lambda: None)

    def run(self) -> None:
        """Waits and dispatches until `stop`."""
        self.thread = threading.get_ident()
        while not self.stopped:
            self.step()
        self._end_turn()

    def step(self, limit: float = 3600.0) -> None:
        """Waits once, at most `limit` seconds, and dispatches what came."""
        self._end_turn()  # before the look at the time: it may bring a deadline forward
        now = time.monotonic()
        if now >= self._due:
            self._look_at_the_time(now)
            self._end_turn()
        if self.link and self.link.moved:
            self.link.watch(self._poller)
        wait = min(limit, max(0.0, self._due - now))
        ready = self._poller.poll(0 if self._posted else math.ceil(wait * 1000))
        if ready:
            self._due = min(self._due, now + TICK_WITHIN)
            self.crowded = len(ready) > 1
        for source, event in ready:
            if event & select.POLLOUT and source in self._writers:
                self._writers[source]()
            if event & ~select.POLLOUT:
                handler = self._handlers.get(source)
                if handler is not None:
                    handler()
                elif self.link:
                    self.link.readable(source)

    def later(self, seconds: float, function: Callable[[], Any]) -> None:
        """Calls function once, in so many seconds; for the loop's own thread."""
        heapq.heappush(self._alarms, (time.monotonic() + seconds, next(self._order), function))
        self._due = min(self._due, self._alarms[0][0])

    def at_end(self, function: Callable[[], Any]) -> None:
        """Calls function once, when all is done that this turn began with, before the next wait."""
        self._ends.append(function)

    def _end_turn(self) -> None:
        while self._ends:
            self._ends.pop()()
        self.crowded = False

    def _look_at_the_time(self, now: float) -> None:
        while self._alarms and self._alarms[0][0] <= now:
            heapq.heappop(self._alarms)[2]()
        due = self._tick(now)
        self._due = min(math.inf if due is None else due, self._alarms[0][0] if self._alarms else math.inf)

    def forget_link(self) -> None:
        """The link is about to close."""
        if self.link:
            self.link.unwatch(self._poller)
        self.link = None

    def close(self) -> None:
        """Frees the loop's own sockets."""
        self._woken.close()
        self._wake.close()

    def _run_posted(self) -> None:
        self._woken.recv(4096)
        while self._posted:
            self._posted.popleft()()


def _fd(source: Any) -> Any:
    """What a poll names this source by: a ZeroMQ socket is named by itself, all else by its descriptor."""
    return source if hasattr(source, "getsockopt") and not hasattr(source, "family") else source.fileno()


def _fulfil(future: concurrent.futures.Future, function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # handed to the thread that asked
        future.set_exception(error)


class Pipe:
    """A node's end of a child's socketpair: calls in and out, never waiting.

    `on_call(pipe, call, parts)` gets each call of the child, `on_end(pipe)` is told once that the child has closed.
    Parts that lie in files go as descriptors. With a `store`, a child that has sent something large is given a *spare*,
    a file of the store, into which it writes the next large thing instead of sending it. `whose`: see `Store`."""

    def __init__(self, loop: Loop, sock: socket.socket, on_call: Callable, on_end: Callable,
                 store: Store | None = None, whose: str = ""):
        self._loop = loop
        self._sock = sock
        self._on_call = on_call
        self._on_end = on_end
        self._receiver = Receiver(sock, follow=self._stored if store else None)
        self._unsent: deque[tuple[list, list]] = deque()  # buffers and descriptors of messages
        self._blocked = False  # the child has to read first
        self.fresh = False  # nobody has attended to the child yet since its last calls came, several perhaps
        self._store, self._whose = store, whose
        self._spare = ""  # the name of the file that the child has
        self._wanted = 0  # bytes of the last large thing that it sent
        self.open = True
        loop.add(sock, self._read)

    def call(self, method: str, *params: Any, parts: Iterable = ()) -> None:
        """Sends a call as far as the child reads; the rest waits here."""
        if not self.open:
            return
        if self._wanted and not self._spare:
            self._give_spare()
        places: list[tuple[str, str]] = []
        buffers = pack_stream([method, *params], parts, places)
        self._queue(buffers, _open_all(places) if places else [])

    def hand(self, method: str, file: int) -> None:
        """Sends a call with a descriptor, which is closed here."""
        if self.open:
            self._queue(pack_stream([method]), [file])
        else:
            os.close(file)

    def close(self) -> None:
        """Ends it; the child reads an end of file."""
        if self.open:
            self.open = False
            self._loop.remove(self._sock)
            self._sock.close()
            while self._unsent:
                _close_all(self._unsent.popleft()[1])
            if self._spare:
                self._store.release_file(self._spare, again=False)  # the child may still write into it

    def _give_spare(self) -> None:
        made = self._store.create(self._wanted, self._whose)
        if made is not None:
            self._spare, file = made
            self.hand("spare", file)

    def _stored(self, text: str) -> Reference:
        """The part that the child has written into its spare."""
        place = Place.from_text(text)
        if not self._spare:
            raise ProtocolError("a child speaks of a file that it was not given")
        return self._store.reference(self._spare, place.at, place.size).held(self._store)

    def _queue(self, buffers: list, files: list) -> None:
        idle = not self._unsent
        if idle or files or self._unsent[-1][1]:
            self._unsent.append((buffers, files))
        else:
            self._unsent[-1][0].extend(buffers)
        if idle and self._loop.crowded:
            self._loop.at_end(self._write)
        elif idle:
            self._write()

    def _send_first(self) -> bool:
        """Sends of the first message what the child takes now; True if that is all of it."""
        buffers, files = self._unsent[0]
        try:
            sent = socket.send_fds(self._sock, buffers[:64], files) if files else self._sock.sendmsg(buffers[:64])
        except BlockingIOError:
            return False
        except OSError as error:
            log.debug("a child does not read any more: %s", error)
            buffers = []
            sent = 0
        _close_all(files)
        rest = left_of(buffers, sent)
        if rest:
            self._unsent[0] = (rest, [])
        else:
            self._unsent.popleft()
        return not rest

    def _write(self) -> None:
        while self._unsent and self._send_first():
            pass
        if self.open and self._blocked != bool(self._unsent):
            self._blocked = not self._blocked
            self._loop.write_when_ready(self._sock, self._write if self._blocked else None)

    def drain(self) -> None:
        """Reads all that a child left behind when it ended."""
        while self.open and self._read():
            pass

    def _read(self) -> bool:
        messages = None
        try:
            messages = self._receiver.receive()
        except BlockingIOError:
            return False
        except (EOFError, OSError) as error:
            log.debug("a child has ended its connection: %s", error)
        except ProtocolError as error:
            log.error("what a child sent cannot be; it is dropped: %s", error)
        wrong = "what a child sent cannot be; it is dropped"
        if messages is None or components.run_foreign(wrong, self._deliver, messages):
            self.close()
            self._on_end(self)
            return False
        return True

    def _deliver(self, messages: list) -> None:
        self._loop.crowded = self._loop.crowded or len(messages) > 1
        self.fresh = True
        for call, parts in messages:
            if self._store:
                self._notice(parts)
            self._on_call(self, call, parts)

    def _notice(self, parts: list) -> None:
        """Whether the child sends large things, and has used its spare."""
        size = bytes_in(parts)
        if size < 0:
            self._spare = "" if Reference in map(type, parts) else self._spare
            size = sum(map(len, parts))
        if size >= BY_FILE:
            self._wanted = size


def _open_all(places: list[tuple[str, str]]) -> list[int]:
    files: list[int] = []
    try:
        for place in places:
            files.append(open_payload(*place))
    except OSError:
        _close_all(files)
        raise
    return files


def _close_all(files: list[int]) -> None:
    for file in files:
        os.close(file)


# -- what a page is told -------------------------------------------------------------------------------------------

GROUPS_KEPT, GROUPS_TOLD = 200, 50  # groups of failures; those told in one answer
NAMED = 5  # tasks and slaves that a group names
TRACE_KEPT = 8192  # bytes
LINES_TOLD = 200  # lines of the log in one answer
_BLANKED = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)*")


class Failures:
    """What has failed, in groups: those of one type at one place whose messages differ by numbers alone. The groups
    that changed last are kept."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple, dict] = OrderedDict()  # what changed last comes last
        self._stamp = 0

    def add(self, why: dict, task: str, now: float, owner: str = "", slave: str = "", count: int = 1) -> None:
        """A task failed, and with it `count` together, as the object `why` says."""
        kind, where, message = (str(why.get(key) or "")[:4096] for key in ("type", "where", "message"))
        key = kind, where, _BLANKED.sub("#", message[:500])
        self._stamp += 1
        group = self._groups.pop(key, None) or self._begin(why, kind, where, message, owner, now)
        self._groups[key] = group
        group["count"] += count
        for name, known in ((task, group["tasks"]), (slave, group["slaves"])):
            if name and name not in known and len(known) < NAMED:
                known.append(name)
        attempt = why.get("attempt", 1)
        group["attempts"] = max(group["attempts"], attempt if type(attempt) is int else 1)
        group["last"], group["stamp"] = now, self._stamp
        if len(self._groups) > GROUPS_KEPT:
            self._groups.popitem(last=False)

    def _begin(self, why, kind, where, message, owner, now):
        text = str(why.get("traceback") or "").encode("utf-8", "replace")[-TRACE_KEPT:]
        return {"id": self._stamp, "type": kind, "where": where, "kind": str(why.get("kind", ""))[:100], "count": 0,
                "tasks": [], "slaves": [], "attempts": 1, "first": now, "last": now, "owner": owner,
                "message": message, "traceback": zlib.compress(text, 1), "stamp": self._stamp}  # fmt: skip

    def since(self, stamp: int) -> tuple[int, list[dict], int]:
        """What has changed since a stamp, the oldest first: the next stamp, up to GROUPS_TOLD groups, and how many
        there are. A group of which somebody has heard comes without its traceback. The stamp is negative while more is
        to be told: what changes meanwhile was never told, however old it is."""
        behind, stamp = stamp <= 0, abs(stamp)
        fresh = itertools.takewhile(lambda group: group["stamp"] > stamp, reversed(self._groups.values()))
        told = [{**group, "tasks": group["tasks"][:], "slaves": group["slaves"][:]} for group in fresh]
        more = len(told) > GROUPS_TOLD
        told = told[::-1][:GROUPS_TOLD]
        for group in told:
            group["traceback"] = group["traceback"] if behind or group["id"] > stamp else None
        after = told[-1]["stamp"] if told else min(stamp, self._stamp)
        return -after if more else after, told, len(self._groups)

    def get(self, number: int) -> dict:
        """A group in full. Raises Error if there is none of that number."""
        for group in self._groups.values():
            if group["id"] == number:
                return dict(group)
        raise Error(f"there is no group {number} of failures", "it has given way to later ones, or never was")

    @staticmethod
    def told(group: dict, whole: bool) -> dict:
        """A group as a page gets it; `whole`: with what its tasks have said."""
        text = group["traceback"] and zlib.decompress(group["traceback"]).decode("utf-8", "replace")
        times = {key: round(group[key], 3) for key in ("first", "last")}
        content = {"message": group["message"] if whole else None, "traceback": text if whole else None}
        return {**{key: value for key, value in group.items() if key != "stamp"}, **times, **content}


# -- nodes ---------------------------------------------------------------------------------------------------------

LOOK_EVERY = 1.0  # seconds between two looks at the configuration file and the plug-in folder
SILENT = 3.0  # seconds that anything may wait without saying what for
ALIVE_WITHIN = 10.0  # seconds in which a loop must have turned: knocking at a master may take as long
STUCK = b"the loop of this node has not turned for 10 s\n", 503


def read_beside(name: str) -> bytes | None:
    """A file that lies beside this one, on the disk or in an archive; None where this file came alone."""
    try:
        return pkgutil.get_data(__name__, name)
    except OSError:
        return None


def _seen_by_kernel() -> Iterator[components.Metric]:
    """Memory and descriptors of this process, where the kernel tells."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        yield components.metric("process_resident_memory_bytes", "Memory of this process.", size)
        yield components.metric("process_open_fds", "Its open descriptors.", len(os.listdir("/proc/self/fd")))


class BaseNode(components.ComponentManager):
    """What every node has: an environment, a configuration that reloads itself, a loop, a server for people. Subclasses
    give `role`, override `status`, add methods to `service`. All but those methods belongs to the loop's thread."""

    role = ""
    FIXED = frozenset(("baseon.file", "node.log_format", "node.by_reference", "node.compute_address", "node.page"))
    busy_loop = False  # whether code of the user's may keep the loop from giving signs of life
    terminal: components.Terminal | None = None  # where a person waits for its end
    log_level = components.ChoiceItem("node", "log_level", "info", ("debug", "info", "warning", "error"), "what to log")
    log_format = components.ChoiceItem("node", "log_format", "text", ("text", "json"), "how to log")
    by_reference = components.BoolItem(
        "node", "by_reference", True, "pass large payloads between nodes of one machine as files in memory")
    install = components.BoolItem("node", "install", True, "install what applications require")
    wheels = components.PathItem("node", "wheels", "", "a folder of wheels to install from, and from nowhere else")
    shows_page = components.BoolItem("node", "page", True, "show a page to browsers")
    index = components.ConfigItem("node", "index", "", "address of a package index; empty: where pip's settings say")
    build_timeout = components.FloatItem("node", "build_timeout", 600.0,
                                         "seconds to install and compile what an application needs", minimum=1)
    keep_apps = components.FloatItem("node", "keep_apps", 3600.0,
                                     "seconds to keep that once nothing of the application is here", minimum=0)
    flush_every = components.FloatItem("stats", "flush_every", 30.0,
                                       "seconds between two moments at which figures are kept; 0: never", minimum=0)
    stats_backend = components.ExtensionPointItem("stats", "backend", "SQLiteStats",
                                                  components.IStatsBackend, "what keeps figures")

    def __init__(self, environment: components.Environment, config: components.Config):
        super().__init__(config)
        self.environment = environment
        self.node_id = secrets.token_hex(16)
        self.started = time.monotonic()
        self.loop = Loop(self.tick)
        components.load_entry_points()
        self.plugins = components.load_plugins(environment / "plugins")
        self.stats = components.Stats()
        self.stats.stand_in()
        self.supervisor = Supervisor({} if self.role == "client" else os.environ)  # a client's is its application's
        self.store: Store | None = None  # where large payloads lie for others on this machine
        self._look_at = 0.0
        self.service = Service()
        self.server: ControlServer | None = None
        self.boot = secrets.token_hex(4)  # by which a page sees that a node is another one
        self.lines, self.failures = components.LastLines(), Failures()
        self.closing = ExitStack()  # what is to be ended, the last opened first
        self.closing.callback(self.loop.close)
        self._expose()

    def serve(self, host: str = "127.0.0.1", port: int = 0, token: str | None = None,
              names: Iterable[str] = (), tls: ssl.SSLContext | None = None) -> None:
        """Opens the control channel. `names` are those by which others may call this machine, beside its own."""
        keeper = components.StatsKeeper(lambda: self.stats_backend, self.environment.path, self.scopes,
                                        lambda: self.flush_every, self.figures_kept)
        keeper.start()
        self.closing.callback(keeper.close)
        names = [socket.gethostname(), *names]
        logging.getLogger().addHandler(self.lines)
        self.closing.callback(logging.getLogger().removeHandler, self.lines)
        self.server = ControlServer(self.service, host, port, token, self.pages(), names, tls)
        self.server.start()
        self.closing.callback(self.server.stop)

    def pages(self) -> dict[str, Any]:
        """What is read by GET, by path, see `ControlServer`."""
        page = read_beside("dashboard.html") if self.shows_page else None
        return {
            **({"/": ("text/html; charset=utf-8", lambda: page)} if page else {}),
            "/healthz": Page("text/plain; charset=utf-8", lambda request: self._is_alive()),
            "/readyz": Page("text/plain; charset=utf-8", lambda request: self._is_ready()),
            "/metrics": Page("text/plain; version=0.0.4; charset=utf-8", lambda request: self._measured()),
        }

    def _ask_soon(self, function: Callable[[], Any]) -> Any:
        """What the loop says; None if it does not turn."""
        with suppress(concurrent.futures.TimeoutError):
            return self.loop.ask(function, ALIVE_WITHIN)

    def _is_alive(self) -> tuple[bytes, int]:
        """Whether the loop turns; while a user's code runs in it, nobody can tell."""
        return (b"ok\n", 200) if self.busy_loop or self._ask_soon(lambda: True) else STUCK

    def _is_ready(self) -> tuple[bytes, int]:
        why = self._ask_soon(self.unready)
        return STUCK if why is None else (f"not ready: {why}\n".encode(), 503) if why else (b"ready\n", 200)

    def _measured(self) -> tuple[bytes, int]:
        found = self._ask_soon(self.metrics)
        return STUCK if found is None else (components.exposition(found), 200)

    def unready(self) -> str:
        """Why this node cannot do its work now, "" if it can. In the loop's thread."""
        return ""

    def metrics(self) -> list[components.Metric]:
        """What is counted and measured of this node, for Prometheus. In the loop's thread."""
        about = {"role": self.role, "version": components.__version__, "python": platform.python_version()}
        return [
            components.metric("info", "What this node is.", 1, **about),
            components.metric("uptime_seconds", "Seconds since its start.", time.monotonic() - self.started),
            components.metric("process_cpu_seconds_total", "Processor time of this process.", time.process_time()),
            *_seen_by_kernel(),
        ]

    def tick(self, now: float) -> float | None:
        """Does what time asks for; returns when to be called again, None for only when something happens."""
        if now < self._look_at:
            return self._look_at
        self._look_at = now + LOOK_EVERY
        self._adopt(self.config.poll(now))
        self.supervisor.look(self.summary)
        for name in self.plugins.poll(now):
            log.info("plug-in %s loaded", name)
        if self.store:
            self.store.tidy()
        return self._look_at

    def reload(self) -> None:
        """Reads the configuration file again, at once."""
        log.info("configuration: read again")
        with self.supervisor.reloading():
            self._adopt(self.config.reload())

    def _adopt(self, changes: set) -> None:
        if changes:
            log.info("configuration: changed %s", ", ".join(f"{s}.{k}" for s, k in sorted(changes)))
            self.config_changed(changes)

    def summary(self) -> str:
        """What it is about, in a line."""
        return ""

    def status(self) -> dict:
        """What a person wants to know first."""
        return {
            "role": self.role, "version": components.__version__, "python": platform.python_version(),
            "pid": os.getpid(), "host": socket.gethostname(), "uptime": round(time.monotonic() - self.started, 1),
            "environment": str(self.environment.path), "plugins_failed": self.plugins.failed,
        }

    def scopes(self) -> dict[str, components.Stats]:
        """What is measured here, by whom it is about; "" is this node. From any thread."""
        return {"": self.stats}

    def figures_kept(self) -> None:
        """What was measured until now is kept, as far as it can be."""

    def figures_of(self, scope: str, per_step: bool = False) -> dict[str, dict]:
        """The figures of a scope, also of one that a node before this one has measured. Raises Error if none has."""
        scopes = self.scopes()
        stats = scopes.get("" if scope == getattr(self, "name", "") else scope)
        rows = stats.rows() if stats else kept_figures(self, self.environment.path, scope, scopes)
        return components.by_name(rows, per_step)

    def open_store(self) -> Store | None:
        """Where this node lays large payloads for others on this machine; None where they travel as frames."""
        if not self.by_reference:
            return None
        try:
            store = Store()
        except (components.Error, OSError) as error:
            log.warning("large payloads are copied, for no folder in memory can be used: %s", error)
            return None
        self.closing.callback(store.close)
        return store

    def close(self) -> None:
        """Ends everything that was opened, the last first."""
        self.closing.close()

    def _expose(self) -> None:
        def tell(name, doc, what):
            jsonremote(self.service, name, doc)(lambda request: what())

        tell("ping", 'Answers "pong": the node\'s loop is alive.', lambda: self.loop.ask(lambda: "pong"))
        tell("status", "What the node is and does.", lambda: self.loop.ask(self.status))
        tell("stats", "Count, sum, average, smallest, largest, last value and quantiles of what the node measures.",
             lambda: self.stats.dump_all())
        tell("config", "Every configuration item: section, key, value, and where the value comes from.",
             lambda: self.loop.ask(lambda: [list(row) for row in self.config.show()]))

        self._expose_page()
        tell("config.items", "Every item of the configuration with its type, choices and meaning; live: it can be set.",
             lambda: self.loop.ask(self.describe_items))

        @jsonremote(self.service, name="stats.get")
        def get_stats(request, scope: str = "", per_step: bool = False):
            """Figures by name of a scope: "" the node, a system's or client's name, slave:NAME, class:NAME; with
            per_step, by step of what restarts with each."""
            return self.figures_of(scope, per_step)

        @jsonremote(self.service, name="stats.reset", roles=("admin",))
        def reset_stats(request):
            """Forgets what this node has measured; what it measures from now on takes the place of what it has kept."""
            for stats in self.scopes().values():
                stats.reset()
            return True

        @jsonremote(self.service, name="config.set", roles=("admin",))
        def set_config(request, section: str, key: str, value: str):
            """Sets an item until the node ends; returns the value in force."""
            return self.loop.ask(lambda: self.change(section, key, value))

    def _expose_page(self) -> None:
        service = self.service

        @jsonremote(service, name="ui.poll")
        def poll(request, boot: str = "", cur: dict | None = None, stream: dict | None = None,
                 slaves: dict | None = None, system: str = ""):
            """What a page of this node shows, as far as it is new since `cur`, the cursors of the last answer."""
            known, asked = cur or {}, {"stream": stream or {}, "slaves": slaves or {}, "system": system}
            return self.poll(known if boot == self.boot else {}, asked, request.role == "admin")

        @jsonremote(service, name="errors.get")
        def error(request, group: int):
            """A group of failures in full; what tasks have said for administrators alone."""
            return Failures.told(self.loop.ask(lambda: self.failures.get(group)), request.role == "admin")

        @jsonremote(service, name="log.tail", roles=("admin",))
        def tail(request, n: int = LINES_TOLD, level: str = "info"):
            """The last lines of the log from a level on: number, time, level, logger, text."""
            return self.lines.since(0, max(0, n), level)

    def poll(self, cur: dict, asked: dict, whole: bool) -> dict:
        """What a page of this node shows, new since the cursors; `whole`: also what is for administrators alone. Any
        thread may call it."""
        told = self.tell(cur, asked, whole)
        seen = cur["log"] if type(cur.get("log")) is int else 0
        lines = self.lines.since(seen, LINES_TOLD) if whole else None
        return {
            "boot": self.boot, "t": round(time.monotonic(), 3), "wall": round(time.time(), 1),
            "role": "admin" if whole else "guest", "node": self.role, "name": getattr(self, "name", "") or self.role,
            "version": components.__version__, "python": platform.python_version(), "host": socket.gethostname(),
            "address": self.server.address if self.server else "", "attention": [], "systems": [], "plain": [],
            "steps": None, "slaves": None, "stream": None, "ts": [], "stats": self.stats.dump_all(), **told,
            "cur": {**told.get("cur", {}), "log": lines[-1][0] if lines else seen}, "log": lines,
        }

    def tell(self, cur: dict, asked: dict, whole: bool) -> dict:
        """The part of an answer to a page that depends on what the node is."""
        stamp = cur.get("errors", 0)
        told, (stamp, changed, groups) = self.loop.ask(
            lambda: (self.outline(), self.failures.since(stamp if type(stamp) is int else 0)))
        changed = [Failures.told(group, whole) for group in changed]
        return {**told, "cur": {"errors": stamp}, "errors": {"groups": groups, "changed": changed}}

    def outline(self) -> dict:
        """What a page shows of this node beside its log and statistics."""
        return {"head": {"uptime": round(time.monotonic() - self.started, 1)}, "sandbox": {}}

    def config_changed(self, changes: set) -> BaseException | None:
        """Takes over what is configured now; returns why that could not be, which is in the log."""
        super().config_changed(changes)
        if ("node", "log_level") in changes:
            logging.getLogger().setLevel(self.log_level.upper())
        return None

    def describe_items(self) -> list[dict]:
        """A row for each configuration item."""
        return [{**row, "live": f"{row['section']}.{row['key']}".lower() not in self.FIXED}
                for row in self.config.describe()]  # fmt: skip

    def change(self, section: str, key: str, value: str) -> str:
        """Sets a configuration item and tells the components; returns the value in force. Raises UsageError for a value
        that does not fit, or does not work, or for an item that counts at the start only: then all is as before."""
        name = f"{section}.{key}".lower()
        if name in self.FIXED:
            raise components.UsageError(f"{name} counts when the {self.role} starts", "it runs already",
                                        f"set it in {self.config.path}, and start it again")
        undo = self.config.set(section, key, value)
        problem = self.config_changed({(section.lower(), key.lower())})
        if problem is not None:
            undo()
            raise components.UsageError(f"{name} stays as it was", components.describe(problem))
        return value


def kept_figures(holder: Any, folder: Path, scope: str, others: Iterable[str] | None = None) -> list[tuple]:
    """(name, step, figures) of a scope that `holder`, a component manager, finds in the backend. Raises Error if there
    are none, which names `others`, by default all that the backend has: finding these can take seconds."""
    backend = BaseNode.stats_backend.read(holder)
    load = backend.load if backend else lambda folder, scope: []
    rows = [(row[2], row[3], row[5]) for row in load(folder, scope)]
    if not rows:
        scopes = sorted({row[1] for row in load(folder, None)} if others is None else others)
        scope = scope[:100]
        known = ", ".join(scope or "the node itself" for scope in scopes[:10])
        raise Error(f"nothing was measured of {scope or 'this node'}", f"known are: {known or 'none'}",
                    components.did_you_mean(scope, scopes))
    return rows


class Node(BaseNode):
    """A node with a master: finds the way in, enrols, holds the link, comes back after the master went away. `master`
    (HOST:PORT) and `access` (an access file's path) may be empty. Subclasses override `info`, `welcomed`, `lost`."""

    compute_address = components.HostItem(
        "node", "compute_address", "", "HOST:PORT of the master's compute channel where a tunnel or relay leads to it")
    RETRY = 1.0  # seconds between two attempts to reach a master

    def __init__(self, environment: components.Environment, config: components.Config, master: str = "",
                 access: str = ""):
        super().__init__(environment, config)
        self.keys = NodeKeys(str(environment / "keys"))
        self.master, self._access_file = master, access
        self.link: Link | None = None
        self.name = ""
        self.refusal: components.Error | None = None
        self.store = self.open_store()
        self._pulse: Pulse | None = None
        self._retry_at = self._speak_at = math.inf
        self._looking: threading.Thread | None = None
        self._addresses: dict = {}
        self.closing.callback(self._close_link)

    @property
    def is_local(self) -> bool:
        """Whether the master can follow references to files of this node."""
        return bool(self.link and self.link.master.local)

    def info(self) -> dict:
        """What this node tells of itself when it says hello."""
        return {"node_id": self.node_id, "version": components.__version__, "python": platform.python_version(),
                "host": socket.gethostname(), "pid": os.getpid()}

    def whereabouts(self) -> str:
        """HOST:PORT where it looks for its master. Raises Unreachable, UsageError."""
        return address_of_master(self.master, self._access_file)

    def enrol(self) -> None:
        """Asks the master in by HTTP, once. Sets the addresses of the compute channel. Raises Unreachable."""
        given = self.master or os.environ.get("CONCURRENT_SWARM_MASTER", "")
        access = find_access(self.role, "", self._access_file) if self._access_file and not given else None
        host, port = parse_address(given or (access.addresses["http"] if access else DEFAULT_MASTER))
        pin = access.certificate if access else certificate_of(self.role, given, self._access_file)
        with (_told_as(Unreachable, RpcError),
              closing(Proxy(format_address(host, port), certificate=pin)) as proxy):
            with _told_as(MasterAway, Unreachable):
                proxy.ping()
            access = access or find_access(self.role, given, self._access_file)
            addresses = self.keys.accept(access, proxy.enrol(**self.keys.enrolment(access, _node_name())))
        tcp = addresses.get("tcp", "").rpartition(":")[2]
        self.address = format_address(host, port)
        self._credentials = self.keys.credentials(access)
        self._addresses = {**addresses, "tcp": format_address(host, int(tcp))} if tcp else addresses
        if self.compute_address:
            self._addresses = {"tcp": format_address(*self.compute_address)}

    def open_link(self, expose: Callable[[Link], None]) -> None:
        """Connects to the compute channel; `expose` adds the methods that the master may call."""
        self._close_link()
        self.refusal = None
        self.link = self.loop.link = Link(self._credentials, self.info())
        self.link.store = self.store
        self.link.on_welcome = self._on_welcome
        self.link.on_lost = self._on_lost
        self.link.on_refused = self._on_refused
        self._expose_to_master = expose
        self.link.loop = self.loop
        expose(self.link)
        self.link.connect(self._addresses)
        self._speak_at = time.monotonic() + SILENT

    def welcomed(self, info: dict, fresh: bool) -> None:
        """The master has let this node in; `fresh`: nothing that was sent before will be answered."""

    def lost(self, reason: str) -> None:
        """The master is silent, or does not know this node any more. The node keeps trying."""

    def _on_welcome(self, info: dict, fresh: bool) -> None:
        self.name = info["name"]
        self.refusal = None
        self._retry_at = self._speak_at = math.inf
        if fresh and self.busy_loop:
            self._stop_pulse()
            self._pulse = Pulse(self._credentials, self._addresses, self.link.session)
            self._pulse.start()
        self.welcomed(info, fresh)

    def _on_lost(self, reason: str) -> None:
        self._retry_at = time.monotonic() + self.RETRY
        self.lost(reason)

    def _on_refused(self, error: components.Error) -> None:
        self.refusal = error
        self.loop.stop()

    def tick(self, now: float) -> float:
        deadline = super().tick(now)
        if now >= self._retry_at:
            self._retry_at = now + self.RETRY
            self._look_for_master()
        if now >= self._speak_at:
            self._speak_at = math.inf
            log.warning("still waiting: the master at %s lets this node in, but %s has not answered yet",
                        self.address, preferred_address(self._addresses))
        return min(deadline, self._retry_at, self._speak_at, self.link.tick(now)) if self.link else deadline

    def no_compute_channel(self, seconds: float) -> components.Unreachable:
        """The error for a master that answers by HTTP only."""
        address = preferred_address(self._addresses)
        return Unreachable(
            f"the master at {self.address} lets this node in, but {address} did not answer within {seconds:.0f} s",
            "a firewall lets only the port of the control channel through",
            "start the master with --set master.compute_port=N, and open that port too")

    def _look_for_master(self) -> None:
        """A master that was started again may listen elsewhere. Asking takes seconds if it is gone: not in the loop."""
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(target=self._look, name="look for master", daemon=True)
            self._looking.start()

    def _look(self) -> None:
        before = self._addresses, vars(self._credentials)
        try:
            self.enrol()
        except components.Error as error:
            log.debug("the master is still away: %s", error)
            return
        if (self._addresses, vars(self._credentials)) != before:  # it moved, or has new keys
            self.loop.post(self._move)

    def _move(self) -> None:
        if self.link and self.link.state != "ready":
            self.open_link(self._expose_to_master)

    def _stop_pulse(self) -> None:
        if self._pulse:
            self._pulse.stop()
            self._pulse = None

    def _close_link(self) -> None:
        self._stop_pulse()
        if self.link:
            self.loop.forget_link()
            self.link.close()
            self.link = None


DEFAULT_MASTER = f"127.0.0.1:{DEFAULT_PORT}"


class MasterAway(components.Unreachable):
    """Nobody answers at the master's address; that may change."""


def wait_for_master(node: Node, seconds: float, terminal: components.Terminal) -> bool:
    """Enrols, trying again while nobody answers. False if the node was stopped. Raises Unreachable in the end."""
    began = time.monotonic()
    speak: Any = terminal.waiting(f"the master at {node.whereabouts()} has not answered yet")
    try:
        while not node.loop.stopped:
            try:
                with speak:
                    node.enrol()
                return True
            except MasterAway as error:
                waited, speak = time.monotonic() - began, nullcontext()
                if waited >= seconds:
                    raise
                terminal.status([f"waiting for the master: {error.what}", f"{waited:.0f} s of {seconds:.0f}"])
                node.supervisor.tell(STATUS=f"waiting for the master: {error.what}")
                node.loop.step(node.RETRY)
        return False
    finally:
        terminal.write("")  # the status line goes


def find_access(role: str, master: str = "", path: str = "") -> Access:
    """The access file for a node of this role: `path`, or that of this user's master here. Raises Unreachable."""
    path = path or os.environ.get("CONCURRENT_SWARM_ACCESS", "")
    if not path:
        host, port = parse_address(master or DEFAULT_MASTER)
        note = masters_folder() / str(port)
        if not (is_loopback(host) and note.exists()):
            raise Unreachable(f"no access file for the master at {format_address(host, port)}",
                              "it runs on another machine, or as another user: this node needs a file that lets it in",
                              f"copy keys/{role}.access from the master's environment and pass --access FILE")
        path = os.path.join(note.read_text().strip(), "keys", f"{role}.access")
    access = Access.load(path)
    if access.role != role and (role, access.role) != ("client", "admin"):
        raise Unreachable(f"{path} lets in a {access.role}, and this is a {role}",
                          "each role has an access file of its own", f"copy keys/{role}.access of the master instead")
    return access


def token_of(master: str, path: str = "") -> str:
    """What makes a caller the administrator of a master: as an admin's access file says (`path`), or as the folder of
    this user's master here does. Raises Unreachable: there is none, or it may not travel."""
    path = path or os.environ.get("CONCURRENT_SWARM_ACCESS", "")
    host, port = parse_address(master)
    note, here = masters_folder() / str(port), is_loopback(host)
    token = _access_content(path).get("token") if path else ""
    try:
        if not token and here and note.exists():
            token = _json_object(_read_private(path := f"{note.read_text().strip()}/keys/token.json"), path)["token"]
    except (OSError, Error) as error:
        raise Unreachable(f"the token of the master at {master} cannot be read", components.describe(error),
                          "run this as the user of the master") from None
    if not token:
        why = f"{path} is no admin's access file" if path else "only who runs it has that, and this user's it is not"
        raise Unreachable(f"this needs the token of the master at {master}", why,
                          "run it as the master's user there, or pass a copy of its keys/admin.access: --access FILE")
    if not (here or certificate_of("client", master, path)):
        raise Unreachable(f"the token is not sent to {master}", "on the way there it could be read: there is no TLS",
                          "run this on the master's machine, or give the master a certificate (master.certificate)")
    return token


def certificate_of(role: str, master: str = "", path: str = "") -> str:
    """The fingerprint of the certificate that the access file says the master has, empty for none or no file."""
    with suppress(Unreachable):
        return find_access(role, master, path).certificate
    return ""


def address_of_master(given: str = "", access: str = "") -> str:
    """HOST:PORT of a node's master: as given, else by its access file, else here. Raises Unreachable, UsageError."""
    given = given or os.environ.get("CONCURRENT_SWARM_MASTER", "")
    if not given and access:
        given = Access.load(access).addresses["http"]
    return format_address(*parse_address(given or DEFAULT_MASTER))


def masters_folder() -> Path:
    """Where masters of this user note, by port, which environment is theirs."""
    return components.state_root() / "masters"


def _node_name() -> str:
    """The machine's name, as far as it can be part of an authorized line."""
    return re.sub(r"[^\w.\-]", "-", socket.gethostname())[:64] or "node"


# -- doctor --------------------------------------------------------------------------------------------------------

PATIENCE = 2.0  # seconds that `doctor` waits for each answer
LITTLE_DISK, LITTLE_MEMORY, FEW_FILES = 1 << 30, 256 << 20, 4096  # below these `doctor` warns
CLOCKS_APART = 30.0  # seconds between two clocks from which `doctor` warns


class Check(NamedTuple):
    """One thing that `doctor` looked at: `level` is ok, warn or fail; `fix` says what to do."""

    level: str
    name: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:5} {self.name:13} {self.text}{f'; fix: {self.fix}' if self.fix else ''}"


class Doctor:
    """Looks at what a node needs: on this machine, in its folder, on the way to its master. Lets nobody in, makes at
    most the folder of payloads in memory, waits PATIENCE for an answer; what needs a master says so without one."""

    def __init__(self, role: str, config: components.Config, environment: components.Environment, options: Any):
        self.role, self.config, self.environment, self.access_file = role, config, environment, options.access
        self.given = "" if role == "master" else options.master or config.get(_item(role, "master"))
        self.address = self.host = self.pin = ""  # of the master
        self.port = 0
        self.about: dict | None = None  # the master's status
        self.access: Access | None = None

    def checks(self) -> Iterator[Check]:
        """Every check, the cheap ones first."""
        steps = ["python", "open files", "disk", "payloads", "keys", "own name", "port"]
        if self.role != "master":
            steps[-1:] = ["master's name", "control", "access", "join"]
        yield from map(self._look, steps)
        if self.about or self.role != "master":
            yield from map(self._look, ["version", "clock", "compute"])

    def _look(self, name):
        if name in ("join", "version", "clock", "compute") and not (self.about and (self.access or name != "join")):
            return Check("warn", name, "not looked at, see above")
        try:
            return self.LOOKS[name](self, name)
        except Error as error:
            return Check("fail", name, ": ".join(filter(None, (error.what, error.why))), error.fix)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Check("fail", name, str(error) or type(error).__name__)

    # this machine

    def _python(self, name):
        return Check("ok", name, f"{platform.python_version()}, concurrent_swarm {components.__version__}")

    def _open_files(self, name):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
            return Check("warn", name, f"{hard} at most: a connection takes some", f"ulimit -Hn {FEW_FILES}, as root")
        return Check("ok", name, f"{'any number' if hard == resource.RLIM_INFINITY else hard} at most")

    def _disk(self, name):
        folder = next(path for path in (self.environment.path, *self.environment.path.parents) if path.exists())
        if not os.access(folder, os.W_OK):
            return Check("fail", name, f"{folder} cannot be written to", "name another folder: --env DIR")
        free = shutil.disk_usage(folder).free
        where = f"{free >> 20:,} MiB free for {self.environment.path}"
        return Check("ok", name, where) if free >= LITTLE_DISK else Check("warn", name, where, "make room there")

    def _payloads(self, name):
        if not self.config.get(BaseNode.by_reference):
            return Check("ok", name, "are copied, as node.by_reference says")
        root = payload_root()
        free = shutil.disk_usage(root).free
        where = f"{free >> 20:,} MiB free in {root}"
        if free < LITTLE_MEMORY:
            return Check("warn", name, f"{where}: large ones are copied when it is full", "make room there")
        return Check("ok", name, where)

    def _keys(self, name):
        folder = str(self.environment / "keys")
        if not os.path.exists(folder):
            return Check("ok", name, f"none yet in {folder}; they are made at the first start")
        check_keys(folder)
        return Check("ok", name, f"{folder} is this user's alone")

    def _own_name(self, name):
        try:
            address = _resolved(socket.gethostname())
        except components.Unreachable as error:
            fix = "add it to DNS or /etc/hosts; nodes on other machines may use this one's address meanwhile"
            return Check("warn", name, error.what, fix)
        return Check("ok", name, f"{socket.gethostname()} is {address}")

    # the master

    def _own_port(self, name):
        """A master that runs in this folder has left its address there."""
        host, port = self.config.get(_item("master", "host")), self.config.get(_item("master", "port"))
        with suppress(Error, OSError, KeyError):
            own = Access.load(str(self.environment / "keys" / "client.access"))
            self.pin = own.certificate
            self._find(own.addresses["http"])
            return Check("ok", name, f"the master of this folder answers at {self.address}")
        here = format_address("127.0.0.1" if host in ("0.0.0.0", "::") else host, port)
        with suppress(components.Unreachable, UsageError):  # port 0 is no address to ask at
            self._find(here)
            return Check("warn", name, f"another master is at {here}", f"python master.py --port {port + 1}")
        try:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except (OSError, OverflowError) as error:
            raise _cannot_listen(error, host, port) from None
        where = f"{format_address(host, port)} is free" if port else f"any of {host}"
        return Check("warn", name, f"{where}: no master runs here", "python master.py")

    def _find(self, address):
        """Asks the master at an address what it is. Raises Unreachable."""
        self.address = address
        self.host, self.port = parse_address(address)
        with _told_as(Unreachable, RpcError), closing(Proxy(address, None, PATIENCE, self.pin)) as proxy:
            about = proxy.status()
        role = about.get("role") if isinstance(about, dict) else "stranger"
        if role != "master":
            raise Unreachable(f"{address} is a {role}, not a master",
                              "each node has a port", "the master prints its address on start")
        self.about = about

    def _master_name(self, name):
        host, port = parse_address(address_of_master(self.given, self.access_file))
        self.pin = certificate_of(self.role, format_address(host, port), self.access_file)
        found = _resolved(host)
        self.host, self.port = host, port
        return Check("ok", name, f"{host} is {found}")

    def _control(self, name):
        if not self.host:
            return Check("warn", name, "not looked at, for the master's address is not known")
        self._find(format_address(self.host, self.port))
        slaves, workers = self.about.get("slaves"), self.about.get("workers")
        return Check("ok", name, f"a master answers at {self.address}, {slaves} slaves, {workers} workers")

    def _access(self, name):
        master = format_address(self.host, self.port) if self.host else ""
        self.access = find_access(self.role, self.given or master, self.access_file)
        return Check("ok", name, f"the access file lets in a {self.access.role}")

    def _join(self, name):
        with tempfile.TemporaryDirectory() as folder, closing(
                Proxy(self.address, None, PATIENCE, self.pin)) as proxy:
            there = (self.environment / "keys" / "node.json").exists()
            keys = NodeKeys(str(self.environment / "keys") if there else os.path.join(folder, "keys"))
            known = keys.checked(self.access, proxy.enrol.check(**keys.enrolment(self.access, _node_name(), "check")))
        return Check("ok", name, "the master knows this node" if known else "the master would let this node in")

    def _version(self, name):
        theirs, python = str(self.about.get("version")), str(self.about.get("python"))
        text = f"the master has concurrent_swarm {theirs}, Python {python}"
        if theirs.split(".")[:2] != components.__version__.split(".")[:2]:
            return Check("fail", name, text, f"python -m pip install concurrent-swarm=={theirs}")
        if python.split(".")[:2] != platform.python_version().split(".")[:2]:
            return Check("warn", name, f"{text}: tasks must suit both", "run both under the same Python")
        return Check("ok", name, text)

    def _clock(self, name):
        plain = functools.partial(http.client.HTTPConnection, timeout=PATIENCE)
        kind = functools.partial(_Pinned, timeout=PATIENCE, pin=self.pin) if self.pin else plain
        with closing(kind(self.host, self.port)) as connection:
            connection.request("GET", "/health")
            told = email.utils.parsedate_to_datetime(connection.getresponse().headers.get("Date", ""))
        apart = abs(email.utils.localtime().timestamp() - told.timestamp())
        if apart < CLOCKS_APART:
            return Check("ok", name, f"within {math.ceil(apart) + 1} s of the master's")
        level = "fail" if apart > CLOCK_SKEW else "warn"
        text = f"{apart:.0f} s from the master's; a node that joins may be {CLOCK_SKEW:.0f} s off"
        return Check(level, name, text, "set the clocks, for example with an NTP service")

    def _compute(self, name):
        addresses = self.about.get("addresses")
        addresses = addresses if isinstance(addresses, dict) else {}
        port = int(str(addresses.get("tcp", "")).rpartition(":")[2] or 0)
        where = preferred_address({**addresses, "tcp": format_address(self.host, port) if port else ""})
        kind, _, path = where.partition("://")
        with socket.socket(socket.AF_UNIX) if kind == "ipc" else socket.socket() as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect(path if kind == "ipc" else (self.host, port))
                greeting = sock.recv(1)
            except OSError as error:
                fix = "open that port too; --set master.compute_port=N on the master makes it a known one"
                return Check("fail", name, f"{where} does not answer ({error.strerror or error})", fix)
        if greeting != b"\xff":  # ZeroMQ's first byte
            return Check("fail", name, f"{where} is something else than the master", "look what listens there")
        return Check("ok", name, f"{where} answers")

    LOOKS = {
        "python": _python, "open files": _open_files, "disk": _disk, "payloads": _payloads, "keys": _keys,
        "own name": _own_name, "port": _own_port, "master's name": _master_name, "control": _control,
        "access": _access, "join": _join, "version": _version, "clock": _clock, "compute": _compute}


def _item(section, key):
    return components.ConfigItem.registry[section, key]


def _resolved(host: str) -> str:
    """The address of a host. Raises Unreachable if it has none, or there is no answer in time."""
    found: list = []

    def ask():
        with suppress(OSError, UnicodeError):
            found.append(socket.getaddrinfo(host, None)[0][4][0])

    asking = threading.Thread(target=ask, name="resolve", daemon=True)  # a resolver may take half a minute
    asking.start()
    asking.join(PATIENCE)
    if not found:
        why = f"no answer within {PATIENCE:.0f} s" if asking.is_alive() else _NO_NAME
        raise Unreachable(f'cannot find the host "{host}"', why, "check the spelling or use the IP address")
    return found[0]


def _run_doctor(role: str, parser: components.ArgumentParser, argv: list[str], more: Callable) -> int:
    """`doctor`: a line per check on stdout. Returns 1 if any failed."""
    if role != "master":
        parser.add_argument("--master", metavar="HOST[:PORT]", help="where the master is (127.0.0.1:8080)")
    parser.add_argument("--access", "--key-file", metavar="FILE", default="", help="the access file that lets it in")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[])
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    environment = components.Environment(options.env or components.state_root() / role, role)
    terminal = components.Terminal(sys.stdout, options.color)
    doctor, levels = Doctor(role, configuration(role, options), environment, options), set()
    checks = itertools.chain(more(), doctor.checks())

    def look() -> Any:
        with components.Terminal().waiting("the next check"):
            return next(checks, None)

    for check in iter(look, None):
        levels.add(check.level)
        if options.quiet and check.level == "ok":
            continue
        text = components.printable(str(check)).removeprefix(check.level)
        print(terminal.paint(check.level, {"ok": "32", "warn": "33", "fail": "31"}[check.level]) + text, flush=True)
    return components.EXIT_FAILED if "fail" in levels else components.EXIT_OK


# -- command line of nodes -----------------------------------------------------------------------------------------

def common_options(parser: components.ArgumentParser) -> None:
    """The options that every node has."""
    group = parser.add_argument_group("this node")
    group.add_argument("--env", metavar="DIR", help="its folder (default: one under the state folder)")
    group.add_argument("--set", metavar="S.KEY=VALUE", action="append", default=[], help="set a configuration item")
    group.add_argument("--access", metavar="FILE", default="", help="the access file that lets it in")
    group.add_argument("--key-file", dest="access", metavar="FILE", help=argparse.SUPPRESS)
    group.add_argument("-q", "--quiet", action="store_true", help="only warnings and errors")
    group.add_argument("--color", choices=("auto", "always", "never"), default="auto", help=argparse.SUPPRESS)
    group.add_argument("--log-format", choices=("text", "json"), metavar="FORMAT", help="text or json")
    group.add_argument("--debug", action="store_true", help="show tracebacks of the framework")
    group.add_argument("--parent", type=int, metavar="FD", help=argparse.SUPPRESS)


def seconds(text: str) -> float:
    """The value of an option that is a time. Raises ArgumentTypeError."""
    with suppress(ValueError):
        if 0 <= float(text) < 1e9:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0")


def open_environment(role: str, options: argparse.Namespace, settings: Iterable[str] = ()) -> tuple:
    """The environment and the configuration of a node that starts. `settings` are further section.key=value."""
    environment = components.Environment.claim(role, options.env)
    arguments = [*settings, *options.set]
    if options.log_format:
        arguments.append(f"node.log_format={options.log_format}")
    if options.quiet or options.debug:
        arguments.append(f"node.log_level={'warning' if options.quiet else 'debug'}")
    return environment, components.Config(environment.config_path, arguments, folder=environment.path)


def configuration(role: str, options: argparse.Namespace) -> components.Config:
    """The configuration that a node of this role would have, without a claim on its environment."""
    environment = components.Environment(options.env or components.state_root() / role, role)
    return components.Config(environment.config_path, options.set, folder=environment.path)


COMMANDS = ("config", "create", "backup", "doctor", "stats")


def administer(role: str, argv: list[str], more: Callable[[], Iterable[Check]] = tuple,
               further: Iterable[str] = ()) -> int | None:
    """The commands that every role has beside running: config, create, backup, doctor, stats. None if argv is none of
    them. `more` gives further checks for `doctor`; `further` are commands of this role. Raises UsageError for what is
    nearly a command.

    doctor [--env DIR] [--master HOST[:PORT]] [--access FILE]
    create DIR · backup [--env DIR] [FILE] · config show [--origin] [--env DIR] [--set section.key=value]
    stats [--system ID | --node s1 | --kind CLASS] [--steps] [--json] [--env DIR] [--set section.key=value]"""
    if not argv or argv[0] not in COMMANDS:
        word = argv[0] if argv and argv[0].isalpha() and argv[0] not in further and not os.path.exists(argv[0]) else ""
        if hint := components.did_you_mean(word, known := [*COMMANDS, *further]):
            raise UsageError(f"{word}: {hint}", f"commands are: {', '.join(known)}", f"{role}.py --help")
        return None
    if argv[0] == "stats":
        return _show_stats(role, argv[1:])
    parser = components.ArgumentParser(prog=f"{role}.py {argv[0]}")
    parser.add_argument("--env", metavar="DIR", help="the node's folder")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what is wrong")
    if argv[0] == "config":
        return _show_config(role, parser, argv[1:])
    if argv[0] == "doctor":
        return _run_doctor(role, parser, argv[1:], more)
    parser.add_argument("target", nargs="?", help="a folder to create, or the file to write the backup to")
    options = parser.parse_args(argv[1:])
    folder = (options.target if argv[0] == "create" else None) or options.env or components.state_root() / role
    environment = components.Environment(folder, role)
    made = environment.create().path if argv[0] == "create" else environment.backup(options.target)
    if not options.quiet:
        print(made)
    return components.EXIT_OK


def _show_config(role: str, parser: components.ArgumentParser, argv: list[str]) -> int:
    parser.add_argument("what", choices=("show",))
    parser.add_argument("--origin", action="store_true", help="also say where each value comes from")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[])
    options = parser.parse_args(argv)
    config = configuration(role, options)
    config.check_unknown()
    for section, key, value, origin in config.show():
        print(f"{section}.{key} = {value}" + (f"    # {origin}" if options.origin else ""))
    return components.EXIT_OK


def stats_parser(role: str) -> components.ArgumentParser:
    """The options of `stats`."""
    parser = components.ArgumentParser(prog=f"{role}.py stats")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--system", metavar="ID", help="of a task system, or the plain tasks of a client (c1)")
    of.add_argument("--node", metavar="NAME", help="of a slave, as its master sees it")
    of.add_argument("--kind", metavar="CLASS", help="of all tasks of a class")
    parser.add_argument("--steps", action="store_true", help="of each step, where figures restart with it")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--env", metavar="DIR", help="the node's folder")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[])
    return parser


def _show_stats(role: str, argv: list[str]) -> int:
    """`stats`: what was measured, by a master that runs here as it is now, else as it was kept."""
    options = stats_parser(role).parse_args(argv)
    named = {"": options.system, "slave:": options.node, "class:": options.kind}
    scope = next((kind + name for kind, name in named.items() if name), "")
    folder = components.Environment(options.env or components.state_root() / role, role).path
    config = configuration(role, options)
    try:
        own = Access.load(str(folder / "keys" / "client.access"))
        with closing(Proxy(own.addresses["http"], None, PATIENCE, own.certificate)) as proxy:
            if proxy.status()["environment"] != str(folder):
                raise Unreachable(f"another master is at {own.addresses['http']}")
            found = proxy.stats.get(scope, options.steps)
    except (Error, OSError, KeyError):  # none runs, or none that knows of it
        components.load_entry_points()
        components.load_plugins(folder / "plugins")
        rows = kept_figures(components.ComponentManager(config), folder, scope)
        found = components.by_name(rows, options.steps)
    print(json.dumps(found) if options.json else "\n".join(_stats_table(found, options.steps)))
    return components.EXIT_OK


def _stats_table(found: dict[str, dict], steps: bool) -> Iterator[str]:
    rows = found
    if steps:
        rows = {f"{name} {step}": one for name, by_step in found.items() for step, one in by_step.items()}
    width = max(map(len, rows), default=4)
    columns = components.Figures._fields
    yield f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)
    for name, one in rows.items():
        yield f"{components.printable(name):{width}}" + "".join(f"{one[column]:>11.4g}" for column in columns)


def with_local_names(text: str, bundle: Bundle) -> str:
    """A text from a node with the names of the application's files as they are seen from the current folder."""

    def local(match: re.Match) -> str:
        path = os.path.join(bundle.root, match[2])
        near = os.path.relpath(path)
        return match[1] + (match[2] if not os.path.isfile(path) else path if near.startswith("..") else near)

    return re.sub(r'(File "|^)((?:[^/\s":]+/)*[^/\s":]+\.py)(?=[":])', local, text, flags=re.MULTILINE)


def socket_path(folder: Path) -> str:
    """Where the socket file of the compute channel goes: `folder`, or a temporary one if that name is too long."""
    path = str(folder / "compute.sock")
    if len(os.fsencode(path)) > 100:  # the system's limit is 107 bytes
        path = os.path.join(tempfile.mkdtemp(prefix="swarm-"), "compute.sock")
    return path


def forget_socket(path: str) -> None:
    """Removes a socket file, and its folder if `socket_path` made one."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    if os.path.basename(os.path.dirname(path)).startswith("swarm-"):
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def follow_parent(fd: int | None, loop: Loop, ended: Callable[[], None]) -> Callable[[dict], None]:
    """Calls `ended` when the process that started this node ends, if it passed a socket; returns what tells it more."""
    if fd is None:
        return lambda about: None
    sock = socket.socket(fileno=fd)

    def gone():
        loop.remove(sock)
        ended()

    def tell(about: dict) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: `gone` hears of it
            sock.sendall(json.dumps(about).encode() + b"\n")

    loop.add(sock, gone)
    return tell


def greeting(role: str) -> str:
    """The first line that a node prints."""
    return f"Concurrent {components.__version__} {role} (Python {platform.python_version()}, pid {os.getpid()})"


def stop_on_signals(interrupt: Callable[[int], None]) -> None:
    """SIGINT and SIGTERM call `interrupt(signal number)` and do nothing else. For main() only."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: interrupt(received))


def reload_on_hangup(node: BaseNode) -> None:
    """SIGHUP lets a node read its configuration again, unless it means that its terminal is gone. For main() only."""
    if not hasattr(signal, "SIGHUP"):
        return
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:  # it has none
        signal.signal(signal.SIGHUP, lambda *_: node.loop.post(node.reload))


class Supervisor:
    """What started this node and waits for word of it: systemd, or whoever else sets NOTIFY_SOCKET (sd_notify(3))."""

    def __init__(self, environ: Any) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")  # nothing that a node starts speaks for it
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watches = environ.pop("WATCHDOG_USEC", "") and environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._alive = {"WATCHDOG": 1} if watches else {}
        self._unsaid: dict[str, Any] = {}
        self._status = ""
        self._ready = False

    def ready(self) -> None:
        """The node does its work from now on."""
        self._ready = True
        self.tell(READY=1)

    def look(self, summary: Callable[[], str]) -> None:
        """The loop goes round, and this says what it is about. To be called about once a second."""
        status = summary() if self._address and self._ready else self._status
        if status != self._status or self._unsaid or (self._ready and self._alive):
            self._status = status
            self.tell(STATUS=status, **self._alive)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The node reads its configuration again meanwhile."""
        if self._ready:
            self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        yield
        if self._ready:
            self.tell(READY=1)

    def tell(self, **words: Any) -> None:
        """Says NAME=value each, now or, if there is no room, with what comes next."""
        if not self._address:
            return
        self._unsaid |= {name: " ".join(str(value).split()) for name, value in words.items()}  # one line each
        message = "\n".join(f"{name}={value}" for name, value in self._unsaid.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
            self._unsaid.clear()
        except OSError as error:
            log.debug("the supervisor at %s does not hear: %s", self._address, error)
