"""The control channel: JSON-RPC to the letter, and an HTTP server that junk and slow peers cannot trouble."""

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, SAMPLES, in_time

from concurrent_swarm import components
from concurrent_swarm import rpc as jsonrpc

GUEST, ADMIN = jsonrpc.HttpRequest(), jsonrpc.HttpRequest("admin", "10.0.0.1", {})
HEAD = "Host: localhost\r\nContent-Type: application/json\r\n"


class Quick(jsonrpc.ControlServer):
    REQUEST_TIME, IDLE_TIME, PATIENCE = 0.3, 0.8, 0.2


@pytest.fixture
def service():
    service = jsonrpc.Service()
    calls = service.calls = []

    @jsonrpc.jsonremote(service)
    def ping(request):
        """Answers "pong"."""
        return "pong"

    @jsonrpc.jsonremote(service)
    def subtract(request, minuend: int, subtrahend: int = 0):
        return minuend - subtrahend

    @jsonrpc.jsonremote(service, name="slave.drain", doc="Sends no more tasks to a slave.", roles=["admin"])
    def drain(request, slave: str, wait: float | None = None):
        calls.append(slave)
        return [slave, wait]

    @jsonrpc.jsonremote(service)
    def everything(request, *things, **named):
        calls.append(things)
        return [request.role, things, named]

    @jsonrpc.jsonremote(service)
    def fail(request, how="crash"):
        if how == "told":
            raise components.Error("the disk is full", "3 GB of results", "remove some")
        if how == "code":
            data = {"fix": "status lists them", "slave": "s9"}
            raise jsonrpc.RpcError(jsonrpc.UNKNOWN_OBJECT, "no slave s9", data)
        if how == "result":
            return object()
        if how == "nan":
            return float("nan")
        raise TypeError("ping() missing the secret")

    return service


@pytest.fixture
def serve(service):
    with contextlib.ExitStack() as stack:

        def start(kind=jsonrpc.ControlServer, **options):
            server = kind(service, **options)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def proxy(serve):
    with contextlib.closing(jsonrpc.Proxy(serve(token="key").address, "key")) as proxy:
        yield proxy


def call(service, message, request=GUEST):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    answer = service.dispatch(body, request)
    return None if answer is None else json.loads(answer)


def ask(service, method, params=None, request=GUEST, **more):
    message = {"jsonrpc": "2.0", "method": method, "id": 1, **more}
    return call(service, message if params is None else message | {"params": params}, request)


def code(answer):
    assert set(answer) == {"jsonrpc", "error", "id"}
    assert set(answer["error"]["data"]) >= {"why", "fix", "id"}
    return answer["error"]["code"]


def connect(server):
    return socket.create_connection((server.server_name, server.port), PATIENCE)


def read_answer(connection):
    """(status, headers, body) of the next answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.headers, response.read()


def read_end(connection):
    """What comes until the other side closes; raises TimeoutError if it does not."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            data += more
    return data


def talk(server, data):
    """The status of the answer to raw bytes, and that nothing comes after it: the connection is closed."""
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(data.encode() if isinstance(data, str) else data)
        answer = read_end(connection)
        assert answer.count(b"HTTP/1.1 ") == 1, answer
        assert b"Connection: close" in answer and b"Traceback" not in answer and b"ython" not in answer
        return int(answer.split()[1])


def post(body=b'{"jsonrpc":"2.0","method":"ping","id":1}', path="/api/1", **headers):
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# -- messages ------------------------------------------------------------------------------------------------


def test_positional_and_named_parameters_mean_the_same(service):
    assert ask(service, "subtract", [42, 23]) == {"jsonrpc": "2.0", "result": 19, "id": 1}
    assert ask(service, "subtract", {"subtrahend": 23, "minuend": 42})["result"] == 19


@pytest.mark.parametrize("identity", ["a", "", 7, -1, 2.5, None])
def test_the_id_comes_back_as_it_was(service, identity):
    assert ask(service, "ping", id=identity) == {"jsonrpc": "2.0", "result": "pong", "id": identity}


@pytest.mark.parametrize("identity", [True, [1], {"a": 1}])
def test_an_id_of_a_wrong_kind_is_refused_and_answered_with_null(service, identity):
    answer = ask(service, "ping", id=identity)
    assert code(answer) == -32600 and answer["id"] is None


@pytest.mark.parametrize("message", [
    {"jsonrpc": "2.0", "method": "everything", "params": [1]},
    {"jsonrpc": "2.0", "method": "nothing"},
    {"jsonrpc": "2.0", "method": "fail"},
    {"jsonrpc": "2.0", "method": "subtract", "params": {"x": 1}},
])  # fmt: skip
def test_a_notification_is_never_answered(service, message):
    assert call(service, message) is None
    assert call(service, [message, message]) is None


def test_a_notification_is_carried_out(service):
    call(service, {"jsonrpc": "2.0", "method": "everything", "params": [1]})
    assert service.calls == [(1,)]


def test_each_request_of_a_batch_gets_its_own_answer(service):
    answers = call(service, [
        {"jsonrpc": "2.0", "method": "ping", "id": "1"},
        {"jsonrpc": "2.0", "method": "everything"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "id": "5"},
        1,
        {"jsonrpc": "2.0", "method": "subtract", "params": [3, 1], "id": "9"},
    ])  # fmt: skip
    told = [(a["id"], a["result"] if "result" in a else a["error"]["code"]) for a in answers]
    assert told == [("1", "pong"), (None, -32600), ("5", -32601), (None, -32600), ("9", 2)]


def test_an_empty_batch_is_one_error_and_not_a_batch(service):
    answer = call(service, [])
    assert code(answer) == -32600 and answer["id"] is None


def test_a_batch_has_a_limit(service):
    item = {"jsonrpc": "2.0", "method": "everything"}
    assert call(service, [item] * 1000) is None
    assert code(call(service, [item] * 1001)) == -32003
    assert len(service.calls) == 1000


@pytest.mark.parametrize("message", [
    1, "ping", None, {}, {"method": "ping", "id": 1}, {"jsonrpc": "1.0", "method": "ping", "id": 1},
    {"jsonrpc": 2.0, "method": "ping", "id": 1}, {"jsonrpc": "2.0", "method": 42, "id": 1},
    {"jsonrpc": "2.0", "id": 1}, {"jsonrpc": "2.0", "method": "ping", "params": "bar"},
    {"jsonrpc": "2.0", "method": "ping", "params": None, "id": 1},
])  # fmt: skip
def test_what_is_no_request_is_an_invalid_request(service, message):
    answer = call(service, message)
    assert code(answer) == -32600
    assert answer["id"] == (message.get("id") if isinstance(message, dict) else None)


@pytest.mark.parametrize("name", ["_private", "__class__", "methods", "dispatch", "", "rpc.x", "x" * 9999])
def test_only_marked_functions_can_be_called(service, name):
    assert code(ask(service, name)) == -32601


def test_an_unknown_method_comes_with_the_nearest_known_one(service):
    data = ask(service, "substract")["error"]["data"]
    assert data["nearest"] == "subtract" and "did you mean subtract?" in data["fix"]


@pytest.mark.parametrize("params, name", [
    ([], "minuend"), ({}, "minuend"), ({"minuend": 1, "sub": 2}, "sub"),
    ([1, 2, 3], "subtract(minuend, subtrahend=0)"),
    ([1.5], "minuend"), ([True], "minuend"), (["1"], "minuend"), ([1, None], "subtrahend"),
    ([[1]], "minuend"),
])  # fmt: skip
def test_wrong_parameters_are_named(service, params, name):
    answer = ask(service, "subtract", params)
    assert code(answer) == -32602
    assert name in answer["error"]["message"] + answer["error"]["data"]["why"]


@pytest.mark.parametrize("wait", [1, 1.5, None])
def test_a_float_parameter_takes_an_integer_and_a_union_takes_its_parts(service, wait):
    assert ask(service, "slave.drain", ["s1", wait], ADMIN)["result"] == ["s1", wait]


def test_any_number_of_parameters_can_be_taken(service):
    assert ask(service, "everything", [1, 2])["result"] == ["guest", [1, 2], {}]
    assert ask(service, "everything", {"self": 1})["result"] == ["guest", [], {"self": 1}]


def test_the_request_cannot_be_given_by_the_caller(service):
    assert code(ask(service, "everything", {"request": {"role": "admin"}})) == -32602
    assert code(ask(service, "ping", {"request": {"role": "admin"}})) == -32602


def test_an_error_of_a_method_tells_what_why_and_fix(service):
    error = ask(service, "fail", ["told"])["error"]
    assert (error["code"], error["message"]) == (-32000, "the disk is full")
    assert (error["data"]["why"], error["data"]["fix"]) == ("3 GB of results", "remove some")


def test_a_method_can_choose_the_code_and_add_data(service):
    error = ask(service, "fail", ["code"])["error"]
    assert (error["code"], error["data"]["slave"], error["data"]["why"]) == (-32007, "s9", "")


@pytest.mark.parametrize("how", ["crash", "result", "nan"])
def test_a_crash_is_logged_once_with_the_id_and_not_shown(service, caplog, how):
    with caplog.at_level(logging.DEBUG):
        answer = ask(service, "fail", [how])
    assert code(answer) == -32603 and "secret" not in json.dumps(answer)
    (record,) = caplog.records
    assert answer["error"]["data"]["id"] in record.getMessage() and record.exc_info


def test_the_id_of_an_error_is_in_the_log(service, caplog):
    with caplog.at_level(logging.INFO):
        answer = ask(service, "nothing\nhere")
    assert answer["error"]["data"]["id"] in caplog.text and "nothing\nhere" not in caplog.text


def test_roles_say_who_may_call(service):
    slave = jsonrpc.HttpRequest("slave")
    assert code(ask(service, "slave.drain", ["s1"], GUEST)) == -32001
    assert code(ask(service, "slave.drain", ["s1"], slave)) == -32002
    assert service.calls == []
    assert ask(service, "slave.drain", ["s1"], ADMIN)["result"] == ["s1", None]


def test_discover_lists_methods_with_parameters_and_documentation(service):
    methods = {each["name"]: each for each in ask(service, "rpc.discover")["result"]["methods"]}
    assert set(methods) == {"rpc.discover", "ping", "subtract", "slave.drain", "everything", "fail"}
    assert methods["ping"]["doc"] == 'Answers "pong".'
    assert methods["slave.drain"] == {
        "name": "slave.drain", "usage": "slave.drain(slave, wait=None)",
        "doc": "Sends no more tasks to a slave.",
        "params": [{"name": "slave", "required": True}, {"name": "wait", "required": False}],
        "roles": ["admin"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ping", "rpc.mine"])
def test_a_taken_or_reserved_name_cannot_be_marked(service, name):
    with pytest.raises(components.Error, match="cannot be added"):
        jsonrpc.jsonremote(service, name=name)(lambda request: None)


@pytest.mark.parametrize("body", [
    b'{"jsonrpc":"2.0","method":"sta', b"", b"\xff", b'{"method": "\xff\xfe"}',
    '{"method":"ping"}'.encode("utf-16"),
    b"[" * 100_000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 65 + b"1" + b"}" * 65, b"{} {}", b"\xef\xbb\xbf{}",
    b"{'a':1}",
])  # fmt: skip
def test_what_is_no_json_is_a_parse_error(service, body):
    answer = call(service, body)
    assert code(answer) == -32700 and answer["id"] is None


def test_a_parse_error_says_where(service):
    assert "char 23" in call(service, b'{"jsonrpc":"2.0","met":')["error"]["message"]


def test_depth_counts_brackets_and_not_texts(service):
    deep = json.loads("[" * 62 + "]" * 62)
    assert ask(service, "everything", [deep])["result"][1] == [deep]
    text = '["\\' * 100
    assert ask(service, "everything", [text])["result"][1] == [text]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999", "9" * 301, "-" + "9" * 301])
def test_a_number_nobody_can_use_is_refused_with_its_place(service, number):
    body = '{"jsonrpc":"2.0","method":"everything","params":{"a":[0,NUMBER]},"id":1}'
    answer = call(service, body.replace("NUMBER", number).encode())
    assert code(answer) == -32602 and answer["id"] == 1
    assert answer["error"]["message"].startswith("params.a[1] is ")


def test_a_number_of_300_digits_is_read(service):
    assert ask(service, "everything", [10**299, -(10**299)])["result"][1] == [10**299, -(10**299)]


def test_a_number_nobody_can_use_is_no_id(service):
    answer = call(service, b'{"jsonrpc":"2.0","method":"ping","id":1e999}')
    assert code(answer) == -32600 and answer["id"] is None


@pytest.mark.parametrize("body", [
    b'{"jsonrpc":"2.0","method":"ping","method":"fail","id":1}',
    b'{"jsonrpc":"2.0","method":"everything","params":{"a":1,"a":2},"id":1}',
])  # fmt: skip
def test_a_key_that_is_there_twice_is_refused(service, body):
    assert code(call(service, body)) == -32600


@pytest.mark.parametrize("body", [
    b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b',"1":1}',
    b'{"jsonrpc":"2.0","method":"a","id":1,"params":{"' + b"x" * 500_000 + b'":[' + b"1," * 200_000 + b"1]}}",
    b'{"jsonrpc":"2.0","method":"' + b"pin" * 300_000 + b'","id":1}', b"[]" * 500_000,
    b'"' + b"\\n" * 500_000,
])  # fmt: skip
def test_nothing_within_the_size_limit_takes_long(service, body):
    begin = time.process_time()
    assert len(body) < 2**20 + 100 and code(call(service, body)) in (-32700, -32600, -32601, -32602)
    assert in_time(time.process_time() - begin, 1)


def test_half_a_surrogate_pair_is_refused_anywhere(service):
    assert code(ask(service, "everything", ["\ud800"])) == -32602
    assert code(ask(service, "everything", [{"\udfff": 1}])) == -32602
    assert code(ask(service, "\ud800")) == -32600
    assert code(ask(service, "ping", id="\ud800")) == -32600
    assert ask(service, "everything", ["\U0001f600 <script>"])["result"][1] == ["\U0001f600 <script>"]


# -- the server: what it answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/1", "/api/1/"])
def test_calls_go_to_three_paths(serve, path):
    with contextlib.closing(connect(serve())) as connection:
        connection.sendall(post(path=path))
        status, headers, body = read_answer(connection)
    assert (status, json.loads(body)["result"]) == (200, "pong")
    assert headers["Content-Type"] == "application/json" and int(headers["Content-Length"]) == len(body)
    assert headers["Server"] is None and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("body, status", [
    (b'{"jsonrpc":"2.0","method":"nothing","id":1}', 200), (b'{"jsonrpc":"2.0","method":"fail","id":1}', 200),
    (b'[{"jsonrpc":"2.0","method":"slave.drain","id":1}]', 200), (b'{"jsonrpc":"2.0","method":"ping"}', 204),
])  # fmt: skip
def test_errors_of_calls_keep_the_connection(serve, body, status):
    with contextlib.closing(connect(serve())) as connection:
        for _ in range(3):
            connection.sendall(post(body))
            assert read_answer(connection)[0] == status


@pytest.mark.parametrize("body, status", [
    (b'{"jsonrpc":"2.0","method":"sta', 400), (b'{"jsonrpc":"2.0","method":"slave.drain","id":1}', 401),
    (json.dumps([1] * 1001).encode(), 413),
])  # fmt: skip
def test_some_errors_of_calls_have_an_http_status(serve, body, status):
    assert talk(serve(), post(body)) == status


def test_pages_and_health_are_read_by_get(serve):
    server = serve(pages={"/": ("text/html; charset=utf-8", lambda: b"<html>")})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        for path, kind, body in [
            ("/", "text/html; charset=utf-8", b"<html>"), ("/health", "application/json", b'{"ok": true}'),
            ("/ping?x=1", "application/json", b'{"ok": true}'),
        ]:  # fmt: skip
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.headers["Content-Type"], response.read()) == (200, kind, body)


def test_a_page_that_fails_is_a_500_logged_once(serve, caplog, capfd):
    def page():
        raise KeyError("secret")

    server = serve(pages={"/x": ("text/plain", page)})
    assert talk(server, "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n") == 500
    assert [record.exc_info is not None for record in caplog.records] == [True, False]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("lead, status", [
    ("GET /api/1", 405), ("PUT /api/1", 405), ("DELETE /", 405), ("POST /health", 405), ("HEAD /health", 405),
    ("BREW /api/1", 501), ("GET /nothing", 404), ("GET /../../etc/passwd", 404),
    ("GET /%2e%2e/etc/passwd", 404),
    ("GET http://evil.example/health", 421), ("GET http://localhost/health", 200), ("OPTIONS *", 404),
    ("GET //evil.example/health", 404), ("GET http://[x/health", 400), ("CONNECT evil.example:80", 404),
])  # fmt: skip
def test_verbs_and_paths_outside_the_table_are_refused(serve, lead, status):
    assert talk(serve(), f"{lead} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == status


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 421), ({"Host": "localhost.evil.example"}, 421),
    ({"Host": "127.0.0.1@evil"}, 421),
    ({"Host": None}, 400), ({"Host": "10.1.2.3"}, 421), ({"Host": "["}, 421), ({"Host": ""}, 421),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:1"}, 403),
    ({"Content_Type": "application/x-www-form-urlencoded"}, 415), ({"Content_Type": None}, 415),
    ({"Content_Type": "text/plain"}, 415),
])  # fmt: skip
def test_what_a_foreign_web_page_can_make_a_browser_send_is_refused(serve, service, headers, status):
    assert talk(serve(), post(b'{"jsonrpc":"2.0","method":"everything","id":1}', **headers)) == status
    assert service.calls == []


@pytest.mark.parametrize("headers", [
    {"Host": "127.0.0.1:9999"}, {"Host": "LOCALHOST."}, {"Host": "[::1]:80"}, {"Host": "node7.lan"},
    {"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80"},
    {"Content_Type": "application/json; charset=utf-8"},
])  # fmt: skip
def test_names_of_this_node_and_its_own_pages_are_let_in(serve, headers):
    assert talk(serve(allowed_hosts=["Node7.lan"]), post(Connection="close", **headers)) == 200


@pytest.mark.parametrize("headers, status", [
    ({"Content_Length": None}, 411), ({"Content_Length": "-1"}, 400), ({"Content_Length": "abc"}, 400),
    ({"Content_Length": "+5"}, 400), ({"Content_Length": "99999999999"}, 413),
    ({"Content_Length": "9" * 5000}, 413),
    ({"Content_Length": str(2**20 + 1)}, 413), ({"Transfer_Encoding": "chunked"}, 501),
    ({"Content_Length": "1\r\nContent-Length: 2"}, 400), ({"Content_Length": "\u0661"}, 400),
])  # fmt: skip
def test_a_body_without_a_usable_length_is_not_read(serve, headers, status):
    assert talk(serve(), post(**headers)) == status


def test_a_body_that_is_too_large_is_refused_and_the_sender_reads_why(serve):
    assert talk(serve(), post(b" " * 2**24)) == 413


def test_a_body_of_one_mebibyte_is_read(serve):
    with contextlib.closing(connect(serve())) as connection:
        connection.sendall(post(b'{"jsonrpc":"2.0","method":"ping","id":1}'.ljust(2**20)))
        assert read_answer(connection)[0] == 200


def test_a_body_longer_than_said_closes_the_connection(serve):
    with contextlib.closing(connect(serve())) as connection:
        connection.sendall(post() + b"}}}\r\n")
        answers = read_end(connection)
    assert answers.startswith(b"HTTP/1.1 200 ") and answers.count(b"HTTP/1.1 400 ") == 1


def test_a_pipelined_bad_request_closes_the_connection_after_the_good_ones(serve):
    with contextlib.closing(connect(serve())) as connection:
        connection.sendall(post() + post() + b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n" + post())
        answers = read_end(connection)
    assert [part[:4] for part in answers.split(b"HTTP/1.1")[1:]] == [b" 200", b" 200", b" 501"]


@pytest.mark.parametrize("junk, status", [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400), (b"GET /\r\n", 400), (b"GET /\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400), (b"\x00" * 5000, 400),
    (b"GET / HTTP/1.1\nHost: localhost\n\n\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nA: b\rHost: c\r\n\r\n", 400),
    (b"GET /" + b"a" * 70_000, 414),
    (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n X: y\r\nHost: localhost\r\n\r\n", 400),
])  # fmt: skip
def test_junk_is_refused_at_once(serve, junk, status, capfd):
    assert talk(serve(), junk) == status
    assert "Traceback" not in capfd.readouterr().err


def test_junk_is_one_line_in_the_log(serve, caplog):
    class Calm(jsonrpc.ControlServer):
        COMPLAINT_TIME = 10 * PATIENCE

    server = serve(Calm)
    for _ in range(20):
        talk(server, b"\x16\x03\x01 junk\r\n")
    assert len(caplog.records) == 1


def test_a_client_that_expects_100_is_told_to_go_on_but_not_for_a_body_that_is_refused(serve):
    server = serve()
    head, body = post(Expect="100-continue").split(b"\r\n\r\n")
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection)[0] == 200
    assert talk(server, post(b"", Expect="100-continue", Content_Length=2**21)) == 413


def test_http_1_0_is_answered_and_closed(serve):
    assert talk(serve(), post().replace(b"HTTP/1.1", b"HTTP/1.0")) == 200


def test_a_hundred_calls_on_one_connection_do_not_wait_for_acknowledgements(serve):
    with contextlib.closing(connect(serve())) as connection:
        took = []
        for _ in range(100):
            begin = time.monotonic()
            connection.sendall(post())
            assert read_answer(connection)[0] == 200
            took.append(time.monotonic() - begin)
        assert sorted(took)[20] < 0.03  # the kernel delays an acknowledgement by 40 ms, but for some at first


# -- the server: tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, status", [
    ("Bearer wrong", 401), ("Bearer ", 401), ("Basic key", 401), ("key", 401), ("Bearer clé", 401), ("", 401),
    ("Bearer key", 200), ("bearer key", 200), ("Bearer kéy", 401), (None, 401),
])  # fmt: skip
def test_only_the_right_token_makes_an_admin(serve, given, status):
    body = b'{"jsonrpc":"2.0","method":"slave.drain","params":["s1"],"id":1}'
    assert talk(serve(token="key"), post(body, Connection="close", Authorization=given)) == status


def test_a_token_may_have_any_letters(serve):
    assert talk(serve(token="clé"), post(Connection="close", Authorization="Bearer clé")) == 200


def test_a_token_in_the_address_is_refused(serve):
    assert talk(serve(token="key"), post(path="/api/1?token=key")) == 401


def test_without_a_token_a_guest_may_read(serve):
    assert talk(serve(token="key"), post(Connection="close")) == 200


def test_a_server_without_a_token_has_no_admin(serve):
    for given in ["Bearer None", "Bearer "]:
        assert talk(serve(), post(Authorization=given)) == 401


def test_many_wrong_tokens_are_too_many_and_the_right_one_still_works(serve):
    server = serve(token="key")
    wrong = post(Authorization="Bearer wrong")
    assert [talk(server, wrong) for _ in range(12)] == [401] * 10 + [429] * 2
    assert talk(server, post(Authorization="Bearer key", Connection="close")) == 200


def test_wrong_tokens_count_per_address_before_anything_is_read(serve):
    class Far(jsonrpc.ControlServer):
        address_of_all = "127.0.0.1"

        def get_request(self):
            return super().get_request()[0], (self.address_of_all, 1)

    server = serve(Far, token="key")
    wrong = post(Authorization="Bearer wrong", Content_Length="1048576")[:-2]  # the body never comes
    assert [talk(server, wrong) for _ in range(11)] == [401] * 10 + [429]
    server.address_of_all = "127.0.0.2"
    assert talk(server, wrong) == 401


def test_who_asks_longer_for_a_token_waits_longer(serve):
    server, waits = serve(token="key"), []
    for _ in range(19):
        with contextlib.closing(connect(server)) as connection:
            connection.sendall(post(Authorization="Bearer wrong"))
            waits.append(read_answer(connection)[1]["Retry-After"])
    assert waits == [None] * 10 + ["2", "4", "8", "16", "32", "60", "60", "60", "60"]


# -- the server: pages and what goes with them ---------------------------------------------------------------


PAGE = b"""<!doctype html><style>p { color: red }</style><script type="module">
let one = 1;</script><SCRIPT>two()</SCRIPT ><p onclick="three()">"""


def sources(policy):
    return {name: words for name, *words in (part.split() for part in policy.split(";"))}


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def test_a_page_may_run_what_stands_in_its_own_tags_and_nothing_else(serve):
    server = serve(pages={"/page": ("text/html; charset=utf-8", lambda: PAGE)})
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, headers, body = read_answer(connection)
    policy = sources(headers["Content-Security-Policy"])
    assert body == PAGE
    assert policy["script-src"] == [digest(b"\nlet one = 1;"), digest(b"two()")]
    assert policy["style-src"] == [digest(b"p { color: red }")] and policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"] and policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize("request_", [post(), post(b"{"), post(path="/nothing"), b"GET /health HTTP/1.1\r\n\r\n"])
def test_no_answer_can_be_framed_sniffed_kept_or_tell_where_it_was_called_from(serve, request_):
    with contextlib.closing(connect(serve())) as connection:
        connection.sendall(request_)
        _, headers, _ = read_answer(connection)
    assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.fixture
def far(serve):
    """A server to which all callers come from another machine."""

    class Far(jsonrpc.ControlServer):
        def get_request(self):
            return super().get_request()[0], ("10.9.8.7", 1)

    return lambda **options: serve(Far, token="key", pages={"/": ("text/html", lambda: PAGE)}, **options)


def test_without_tls_a_token_is_not_taken_from_another_machine_and_pages_are_not_shown(far):
    server = far()
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(post(Authorization="Bearer key"))
        status, _, body = read_answer(connection)
    told = json.loads(body)["error"]
    assert status == 403 and told["code"] == jsonrpc.NOT_ALLOWED
    assert "tokens are not taken beyond this machine without TLS" in told["message"]
    assert "master.certificate" in told["data"]["fix"]
    assert talk(server, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == 403
    assert talk(server, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    assert talk(server, post(Connection="close")) == 200  # nodes sign what they say


# -- the server: TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """(certificate, key, other certificate, its key), each a PEM file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")
    folder, made = tmp_path_factory.mktemp("tls"), []
    for name in ("one", "other"):
        made += [folder / f"{name}.pem", folder / f"{name}.key"]
        about = ["-subj", "/CN=swarm", "-days", "2", "-out", made[-2], "-keyout", made[-1]]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run(["openssl", "req", "-x509", *kind, *about], check=True, capture_output=True)
        made[-1].chmod(0o600)
    return [str(path) for path in made]


@pytest.fixture
def secured(serve, certificates):
    """A function that starts a server under TLS; returns it and the fingerprint of its certificate."""

    def start(kind=jsonrpc.ControlServer, **options):
        tls, pin = jsonrpc.server_tls(*certificates[:2])
        return serve(kind, tls=tls, **options), pin

    return start


def test_under_tls_a_proxy_speaks_to_the_certificate_that_it_knows(secured):
    server, pin = secured(token="key")
    with contextlib.closing(jsonrpc.Proxy(server.address, "key", certificate=pin)) as proxy:
        assert [proxy.ping() for _ in range(3)] == ["pong"] * 3 and proxy.slave.drain("s1") == ["s1", None]
        sock = proxy._connection.sock
        assert sock.version() in ("TLSv1.2", "TLSv1.3") and proxy.ping() and proxy._connection.sock is sock


def test_another_certificate_is_told_and_gets_to_hear_nothing(secured, service, certificates):
    server, _ = secured(token="key")
    _, other = jsonrpc.server_tls(*certificates[2:])
    with pytest.raises(jsonrpc.OtherCertificate, match="another certificate"):
        jsonrpc.Proxy(server.address, "key", certificate=other).slave.drain("s1")
    assert service.calls == []


def test_a_token_from_another_machine_is_taken_under_tls(far, certificates):
    tls, pin = jsonrpc.server_tls(*certificates[:2])
    assert jsonrpc.Proxy(far(tls=tls).address, "key", certificate=pin).slave.drain("s1") == ["s1", None]


def test_http_without_tls_and_half_a_handshake_are_closed_and_hold_up_nobody(secured, caplog):
    class Patient(jsonrpc.ControlServer):
        REQUEST_TIME = 2.0

    server, pin = secured(Patient)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(20)]
        silent[1].sendall(b"\x16\x03\x01\x02")
        silent[2].sendall(post())
        assert jsonrpc.Proxy(server.address, certificate=pin).ping() == "pong"
        silent[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # it has not been cut yet: nobody has waited for that
            silent[0].recv(1)
        silent[0].settimeout(PATIENCE)
        assert not [answer for answer in map(read_end, silent) if b"HTTP" in answer]
        with pytest.raises(components.Unreachable, match="one of the two speaks TLS"):
            jsonrpc.Proxy(server.address).ping()
    assert not [record for record in caplog.records if record.exc_info]
    assert jsonrpc.Proxy(server.address, certificate=pin).ping() == "pong"


def test_an_idle_connection_under_tls_gives_its_place_to_a_newcomer(secured):
    class Small(Quick):
        CONNECTIONS = 1

    server, pin = secured(Small)
    first = jsonrpc.Proxy(server.address, certificate=pin)
    assert first.ping() == jsonrpc.Proxy(server.address, certificate=pin).ping() == first.ping() == "pong"


def test_a_server_without_tls_is_told_to_who_expects_it(serve):
    with pytest.raises(components.Unreachable, match="speaks no TLS"):
        jsonrpc.Proxy(serve().address, certificate="0" * 64).ping()


def test_a_certificate_may_lack_its_last_line_end(certificates, tmp_path):
    (bare := tmp_path / "bare.pem").write_text(Path(certificates[0]).read_text().rstrip())
    assert jsonrpc.server_tls(str(bare), certificates[1])[1] == jsonrpc.server_tls(*certificates[:2])[1]


def test_a_certificate_that_cannot_be_used_is_named(certificates, tmp_path):
    one, key, other, _ = certificates
    for pair in [(other, key), (one, str(tmp_path / "none")), (key, key), ("", "")]:
        with pytest.raises(components.UsageError, match="cannot be used") as caught:
            jsonrpc.server_tls(*pair)
        assert caught.value.why and "master.certificate" in caught.value.fix
    wide = tmp_path / "wide.key"
    wide.write_bytes(Path(key).read_bytes())
    wide.chmod(0o644)
    with pytest.raises(components.Error) as caught:
        jsonrpc.server_tls(one, str(wide))
    assert caught.value.fix == f"chmod 600 {wide}"


@pytest.mark.slow
def test_nodes_of_a_master_with_a_certificate_come_in_by_their_access_file(swarm, certificates):
    words = [f"--set=master.certificate={certificates[0]}", f"--set=master.certificate_key={certificates[1]}"]
    here = swarm(slaves=0, master=words)
    slave = here.start("slave", "--workers", 1, "--master", here.address, name="s1")
    run = here.run_client("hello.py")
    assert run.code == 0 and run.about["ok"], run.err
    file = here.master.folder / "keys" / "client.access"
    named = here.start("client", SAMPLES / "hello.py", "--access", file, CONCURRENT_SWARM_MASTER=here.address).wait()
    assert named.code == 0, named.err
    doctor = here.start_client("doctor").wait()
    assert "a master answers" in doctor.out and "fail" not in doctor.out, doctor.out
    explained = here.start("client", "--explain", "c1.1", "--master", here.address).wait()
    assert "Traceback" not in explained.err and explained.code in (0, 1) and "c1.1" in explained.out, explained.err
    path = here.master.folder / "keys" / "client.access"
    access = json.loads(path.read_text())
    _, access["addresses"]["certificate"] = jsonrpc.server_tls(*certificates[2:])
    other = Path(here.folder, "other.access")
    other.touch(0o600)
    other.write_text(json.dumps(access))
    refused = here.run_client("hello.py", "--access", other)
    assert refused.code == 3 and "another certificate" in refused.out + refused.err
    assert slave.code is None


# -- the server: slow and many -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"POST /api/1 HTTP/1.1\r\n", post(b" " * 1000)[:-999]])
def test_a_dripping_request_is_cut_after_its_time_in_all(serve, start):
    with contextlib.closing(connect(serve(Quick))) as connection:
        begin = time.monotonic()
        connection.sendall(start)
        connection.settimeout(0.02)
        answer = b""
        while not answer:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1000)
            if not answer:
                connection.sendall(b"x")
            assert time.monotonic() - begin < 10  # it needs longer than that to be whole
        assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - begin > 0.2


def test_a_silent_connection_is_closed_in_the_time_of_a_request_and_an_idle_one_later(serve):
    class Idle(Quick):
        IDLE_TIME = 3.0

    server = serve(Idle)
    begin = time.monotonic()
    with contextlib.closing(connect(server)) as silent, contextlib.closing(connect(server)) as idle:
        idle.sendall(post())
        read_answer(idle)
        assert read_end(silent) == b"" and time.monotonic() - begin > 0.2
        idle.sendall(post())
        assert read_answer(idle)[0] == 200
        assert read_end(idle) == b"" and time.monotonic() - begin > 3.2


def test_three_hundred_half_requests_do_not_keep_a_good_client_out(serve):
    class Patient(jsonrpc.ControlServer):
        PATIENCE = 0.2

    server = serve(Patient)
    with contextlib.ExitStack() as stack:
        halves = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(300)]
        for half in halves:
            with contextlib.suppress(ConnectionError):
                half.sendall(b"POST /api/1 HTTP/1.1\r\nHost: loc")
        proxy = stack.enter_context(contextlib.closing(jsonrpc.Proxy(server.address)))
        assert proxy.ping() == "pong"  # may wait for its place once
        wait_until(lambda: min(list(server._open.values())) < time.monotonic())
        begin = time.monotonic()
        assert jsonrpc.Proxy(server.address).ping() == "pong"
        assert in_time(time.monotonic() - begin, 0.5)
        assert len(server._open) <= server.CONNECTIONS


def test_a_connection_beyond_the_limit_is_told_to_come_again_while_all_are_served(serve, service):
    go, inside = threading.Event(), threading.Semaphore(0)

    @jsonrpc.jsonremote(service)
    def wait(request):
        inside.release()
        return go.wait(PATIENCE)

    class Small(Quick):
        CONNECTIONS, HANDLERS = 2, 2

    server = serve(Small)
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(2)]
        for connection in served:
            connection.sendall(post(b'{"jsonrpc":"2.0","method":"wait","id":1}'))
            assert inside.acquire(timeout=PATIENCE)
        late = stack.enter_context(contextlib.closing(connect(server)))
        status, headers, _ = read_answer(late)
        assert (status, headers["Retry-After"]) == (503, "1")
        go.set()
        assert [read_answer(connection)[0] for connection in served] == [200, 200]


def test_requests_beyond_the_limit_of_handlers_are_told_to_come_again(serve, service):
    go, inside = threading.Event(), threading.Semaphore(0)

    @jsonrpc.jsonremote(service)
    def wait(request):
        inside.release()
        return go.wait(PATIENCE)

    class Small(Quick):
        HANDLERS = 1

    server = serve(Small)
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(post(b'{"jsonrpc":"2.0","method":"wait","id":1}'))
        assert inside.acquire(timeout=PATIENCE)
        assert talk(server, post()) == 503
        go.set()
        assert read_answer(connection)[0] == 200


def test_a_thousand_nodes_that_connect_at_once_are_all_answered(serve):
    server = serve()
    answered = 0
    with contextlib.ExitStack() as stack:
        begin = time.monotonic()
        for _ in range(4):
            several = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(250)]
            for connection in several:
                connection.sendall(post(Connection="close"))
            answered += sum(read_answer(connection)[0] == 200 for connection in several)
    assert answered == 1000 and in_time(time.monotonic() - begin, 10)


def test_an_idle_connection_gives_its_place_to_a_newcomer(serve):
    class Small(jsonrpc.ControlServer):
        CONNECTIONS = 1

    server = serve(Small)
    with contextlib.closing(connect(server)) as first, contextlib.closing(connect(server)) as second:
        first.sendall(post())
        assert read_answer(first)[0] == 200
        second.sendall(post())
        assert read_answer(second)[0] == 200 and read_end(first) == b""


# -- the server: life ----------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_with_a_way_out(serve, service):
    port = serve().port
    with pytest.raises(components.Error) as caught:
        jsonrpc.ControlServer(service, port=port)
    assert caught.value.what == f"port {port} is in use"
    assert f"--port {port + 1}" in caught.value.fix and caught.value.why


@pytest.mark.parametrize("host, port, what", [
    ("192.0.2.1", 0, "not an address of this machine"), ("no.such.invalid", 0, "cannot find the host"),
    ("127.0.0.1", 70000, "cannot listen"),
])  # fmt: skip
def test_an_address_where_it_cannot_listen_is_told(service, host, port, what):
    with pytest.raises(components.Error) as caught:
        jsonrpc.ControlServer(service, host, port)
    assert what in caught.value.what


def test_stop_ends_idle_connections_and_frees_the_port(serve, service):
    server = jsonrpc.ControlServer(service)
    server.start()
    with contextlib.closing(connect(server)) as idle:
        idle.sendall(post())
        read_answer(idle)
        begin = time.monotonic()
        server.stop()
        assert read_end(idle) == b"" and time.monotonic() - begin < server.IDLE_TIME / 2
        assert serve(port=server.port).port == server.port


def test_stop_lets_a_call_end_first(service):
    inside, server = threading.Event(), jsonrpc.ControlServer(service)

    @jsonrpc.jsonremote(service)
    def slow(request):
        inside.set()
        wait_until(lambda: stopping.is_alive())
        return "done"

    stopping = threading.Thread(target=server.stop)
    server.start()
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(post(b'{"jsonrpc":"2.0","method":"slow","id":1}'))
        assert inside.wait(PATIENCE)
        stopping.start()
        assert json.loads(read_answer(connection)[2])["result"] == "done"
    stopping.join(PATIENCE)


def test_a_server_that_never_started_can_stop(service):
    jsonrpc.ControlServer(service).stop()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_addresses_work(serve):
    try:
        server = serve(host="::1")
    except components.Error as error:
        pytest.skip(str(error))
    assert server.address == f"[::1]:{server.port}"
    with contextlib.closing(jsonrpc.Proxy(server.address)) as proxy:
        assert proxy.ping() == "pong"


# -- the proxy -----------------------------------------------------------------------------------------------


def test_a_proxy_makes_remote_calls_look_local(proxy):
    assert proxy.ping() == "pong"
    assert proxy.subtract(minuend=5, subtrahend=3) == 2
    assert proxy.slave.drain("s1") == ["s1", None]
    assert proxy.rpc.discover()["methods"]


def test_a_proxy_raises_the_error_of_the_other_side(proxy):
    with pytest.raises(jsonrpc.RpcError) as caught:
        proxy.fail("told")
    error = caught.value
    assert (error.code, error.message, error.data["id"] != "") == (-32000, "the disk is full", True)
    assert (error.why, error.fix) == ("3 GB of results", "remove some")


def test_a_proxy_with_a_wrong_token_is_told(serve):
    with pytest.raises(jsonrpc.RpcError) as caught:
        jsonrpc.Proxy(serve(token="key").address, "wrong").ping()
    assert caught.value.code == -32001


def test_a_notification_of_a_proxy_returns_nothing(proxy, service):
    assert proxy.notify.slave.drain("s1") is None
    assert proxy.notify.nothing() is None
    assert service.calls == ["s1"]


def test_a_batch_of_a_proxy_returns_results_and_errors_in_order(proxy):
    pong, error, drained = proxy.batch([("ping", []), ("nothing", []), ("slave.drain", {"slave": "s1"})])
    assert (pong, drained) == ("pong", ["s1", None])
    assert isinstance(error, jsonrpc.RpcError) and error.code == -32601
    assert proxy.batch([]) == []
    with pytest.raises(jsonrpc.RpcError, match="1001"):
        proxy.batch([("ping", [])] * 1001)


def test_positional_and_named_parameters_do_not_mix(proxy):
    with pytest.raises(TypeError, match="not both"):
        proxy.subtract(1, subtrahend=2)


def test_a_proxy_keeps_its_connection(serve):
    server = serve()
    with contextlib.closing(jsonrpc.Proxy(server.address)) as proxy:
        proxy.ping()
        before = proxy._connection.sock
        proxy.notify.ping()
        with pytest.raises(jsonrpc.RpcError):
            proxy.nothing()
        assert proxy.ping() == "pong" and proxy._connection.sock is before


def test_a_proxy_reconnects_if_the_kept_connection_was_closed(serve, service):
    server = serve()
    with contextlib.closing(jsonrpc.Proxy(server.address)) as proxy:
        assert proxy.ping() == "pong"
        server.stop()
        again = serve(port=server.port)
        assert proxy.ping() == "pong" and again.port == server.port


def test_threads_may_share_a_proxy(proxy):
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append((n, proxy.subtract(n)))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == [(n, n) for n in range(20)]


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def stranger(answer):
    """A server that reads a little, sends `answer` and closes (None: keeps silent)."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection = stack.enter_context(server.accept()[0])
                    if answer is not None:
                        connection.recv(65536)
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_no_master_there_is_told_with_a_way_out():
    port = free_port()
    with pytest.raises(components.Unreachable) as caught:
        jsonrpc.Proxy(f"127.0.0.1:{port}").ping()
    assert caught.value.what == f"no master at 127.0.0.1:{port} (connection refused)"
    assert "python master.py" in caught.value.fix


def test_no_answer_in_time_is_told():
    with stranger(None) as address, pytest.raises(components.Unreachable) as caught:
        jsonrpc.Proxy(address, timeout=0.2).ping()
    assert caught.value.what == f"{address} did not answer within 0.2 s"
    assert f"curl http://{address}/health" in caught.value.fix


def test_a_name_that_does_not_resolve_is_told():
    with pytest.raises(components.Unreachable) as caught:
        jsonrpc.Proxy("mastre1.invalid:8080").ping()
    assert caught.value.what == 'cannot find the host "mastre1.invalid"'
    with pytest.raises(components.Unreachable, match="cannot find the host"):
        jsonrpc.Proxy("x" * 70 + ".example").ping()


@pytest.mark.parametrize("answer, sent", [
    (b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nhello", "nginx"),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 Not Found"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"ok\": true}", "200 OK"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "200 OK"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"), (b"\x1b[31m\x00\xff junk\r\n", "\\x1b[31m"),
    (b"HTTP/1.1 200 OK\r\nServer: \x1b[31m\r\nContent-Length: 0\r\n\r\n", "\\x1b[31m"),
])  # fmt: skip
def test_a_port_of_something_else_is_told(answer, sent):
    with stranger(answer) as address, pytest.raises(components.Unreachable) as caught:
        jsonrpc.Proxy(address).ping()
    assert f'{address} answers, but it is not a Concurrent node (it sent "{sent}' in caught.value.what


def test_a_connection_closed_without_an_answer_is_told_and_the_call_not_repeated(serve):
    with stranger(b"") as address, pytest.raises(components.Unreachable, match="closed the connection"):
        jsonrpc.Proxy(address).ping()


@pytest.mark.parametrize("text, address", [
    ("node7", ("node7", 8080)), ("node7:81", ("node7", 81)), ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ("[::1]", ("::1", 8080)), ("[fe80::1]:81", ("fe80::1", 81)), (" node7 ", ("node7", 8080)),
])  # fmt: skip
def test_an_address_is_read(text, address):
    assert jsonrpc.parse_address(text) == address


@pytest.mark.parametrize("text", [
    "http://node7", "https://node7:80", "node7:80/x", "", ":80", "node7:", "node7:x", "node7:0",
    "node7:70000", "::1",
    "::1:8080", "[::1", "me@node7", "two words", "node7:-1", "node7:\u0661",
])  # fmt: skip
def test_what_is_no_address_is_told_with_the_right_form(text):
    with pytest.raises(components.Error) as caught:
        jsonrpc.parse_address(text)
    assert "HOST:PORT" in caught.value.fix and caught.value.why


def test_a_proxy_takes_an_address_with_http(serve):
    assert jsonrpc.Proxy(f"http://{serve().address}/").ping() == "pong"
