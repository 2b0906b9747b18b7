"""Bad input on real processes: the thirty kinds of docs/bad-input.md, each with its one clear answer.

An input that is a file lies in tests/corpus, named after its kind. Whatever comes, nobody else notices: `unharmed` runs
a task meanwhile, and looks at every process, at what it has written and at how long the next good request takes.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from conftest import CHECKOUT, PATIENCE, Swarm, in_time, text_of, wait_until
from test_compute import GARBAGE
from test_jsonrpc import post, read_answer
from test_recovery import Knocking

from concurrent_swarm import client, components, rpc

CORPUS = CHECKOUT / "tests" / "corpus"
QUICK = 0.1  # seconds that the next good request may take, `in_time`
ID = re.compile(r"[0-9a-f]{8}")

KINDS = [
    "rpc_truncated", "rpc_not_utf8", "rpc_deep", "rpc_numbers", "rpc_duplicate_key", "rpc_surrogate", "rpc_batch",
    "rpc_wrong_shape", "http_length", "http_junk", "http_auth", "http_browser", "zmq_garbage", "zmq_wrong_key",
    "zmq_frames", "zmq_version", "zmq_forged_result", "zmq_too_large", "zmq_flood", "cfg_syntax", "cfg_values",
    "cfg_insecure", "cli_args", "app_files", "app_pickle", "sys_poison", "res_unpicklable", "res_process",
    "res_resources", "res_hostile",
]  # fmt: skip
ITEMS = [f"D{number:02}_{name}" for number, name in enumerate(KINDS, 1)]

# Kinds of which more is shown elsewhere, over the same code.
ELSEWHERE = {
    "D09": ["test_jsonrpc.py::test_a_dripping_request_is_cut_after_its_time_in_all"],
    "D10": ["test_jsonrpc.py::test_junk_is_refused_at_once", "test_jsonrpc.py::test_junk_is_one_line_in_the_log"],
    "D11": ["test_jsonrpc.py::test_many_wrong_tokens_are_too_many_and_the_right_one_still_works",
            "test_keys.py::test_a_wrong_clock_is_told_the_right_time",
            "test_keys.py::test_a_changed_enrolment_is_refused"],
    "D14": ["test_compute.py::test_a_wrong_master_key_gets_a_sentence", "test_compute.py::test_no_key_gets_a_sentence",
            "test_recovery.py::test_a_revoked_key_ends_its_slave_and_keeps_it_out"],
    "D17": ["test_board_faults.py::test_nonsense_in_any_order_never_breaks_the_books"],
    "D18": ["test_compute.py::test_what_is_too_large_or_too_many_is_refused_before_it_is_sent",
            "test_faults.py::test_F11_a_result_over_the_limit_fails_its_task_with_both_numbers_and_the_worker_lives"],
    "D20": ["test_config.py::test_a_bad_file_leaves_the_running_values_and_is_logged_once",
            "test_config.py::test_no_damage_to_a_file_ever_breaks_a_running_node"],
    "D22": ["test_components.py::test_a_plug_in_folder_that_becomes_unsafe_is_reported_once_and_left_alone"],
    "D24": ["test_bundles.py::test_a_zip_bomb_is_refused_by_ratio_and_by_size",
            "test_bundles.py::test_a_failed_unpacking_leaves_nothing_behind"],
    "D26": ["test_systems.py::test_a_hook_that_raises_ends_the_system_and_the_client_hears_hook_and_traceback",
            "test_faults.py::test_F36_a_hook_that_hangs_ends_its_system_at_its_hook_timeout_with_name_and_line",
            "test_cluster.py::test_a_host_that_says_what_fits_no_journal_ends_alone",
            "test_limits.py::test_an_import_that_never_ends_is_no_way_around_a_timeout"],
    "D28": ["test_faults.py::test_F06_a_task_that_crashes_its_worker_is_poisoned_with_the_signal_and_others_go_on",
            "test_cluster.py::test_a_task_that_reports_itself_in_odd_ways_is_lost_alone"],
    "D29": ["test_limits.py::test_a_task_that_is_stuck_ends_at_its_timeout_and_names_limit_measure_and_line",
            "test_limits.py::test_a_task_that_takes_too_much_memory_ends_with_its_peak",
            "test_output.py"
            "::test_a_flood_of_output_is_counted_and_dropped_and_neither_the_slave_grows_nor_others_wait"],
    "D30": ["test_results.py"
            "::test_a_result_that_runs_code_when_it_is_opened_is_a_failure_that_names_what_it_would_call",
            "test_results.py::test_no_pickle_takes_more_than_some_hundred_times_its_size",
            "test_pickles.py::test_no_node_opens_a_pickle_whatever_runs_and_after_a_restart_from_its_journal"],
}  # fmt: skip


# -- the swarm that all of it meets --------------------------------------------------------------------------------


class Peaceful(Swarm):
    """A swarm with a client that always works, and what is to be as it was after each test."""

    def begin(self):
        self.start_master(journal=True)
        for _ in range(2):
            self.start_slave(workers=2)
        self.marks = Path(tempfile.mkdtemp(prefix="corpus", dir="/tmp"))  # where tasks may write
        self.numbers_of_tasks = itertools.count()
        self.resident = self.start_client("corpus.py", "--app", "Resident", f"--set=corpus.folder={self.marks}")
        self.quiet = self.best()
        with self.unharmed():
            pass

    @property
    def port(self):
        return rpc.parse_address(self.address)[1]

    @property
    def token(self):
        token = json.loads((self.master.folder / "keys" / "token.json").read_text())
        return token["token"] if isinstance(token, dict) else token

    def best(self):
        """Seconds of the quickest of a few good requests, each on a connection of its own."""
        return min(self._request() for _ in range(5))

    def _request(self):
        began = time.perf_counter()
        with contextlib.closing(rpc.Proxy(self.address)) as proxy:
            assert proxy.ping() == "pong"
        return time.perf_counter() - began

    @contextlib.contextmanager
    def unharmed(self):
        """A task runs while the block does, and has its result afterwards; nothing has ended, nothing is slow."""
        number = next(self.numbers_of_tasks)
        written = {process.err_file: len(process.err) for process in self.nodes}
        (self.marks / f"push-{number}").touch()
        wait_until((self.marks / f"began-{number}").exists, "a task runs")
        yield
        assert [process.code for process in [*self.nodes, self.resident]] == [None] * 4, "a process has ended"
        quick = self.best()
        told = f"the next good request takes {quick * 1000:.0f} ms, a quiet one {self.quiet * 1000:.0f}"
        assert in_time(quick, QUICK), told
        (self.marks / f"go-{number}").touch()
        wait_until((self.marks / f"done-{number}").exists, "the task that ran has its result")
        assert (self.marks / f"done-{number}").read_text() == str(number**2)
        for process in self.nodes:
            new = process.err[written[process.err_file]:]
            assert "Traceback" not in new and "internal error" not in new, new
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", new), ascii(new)

    @property
    def nodes(self):
        return [self.master, *self.slaves]


@pytest.fixture(scope="module")
def whole():
    one = Peaceful()
    try:
        one.begin()
        yield one
        (one.marks / "end").touch()
        assert one.resident.wait().code == 0, one.resident.err
    finally:
        one.close()
        shutil.rmtree(one.marks)


@pytest.fixture
def here(whole):
    with whole.unharmed():
        yield whole


# -- the page ------------------------------------------------------------------------------------------------------


def shown_by():
    """item -> names of the tests that show it, those of this file first."""
    found = {item[:3]: [] for item in ITEMS}
    for name in globals():
        if match := re.match(r"test_(D\d\d)_", name):
            found[match[1]].append(f"test_corpus.py::{name}")
    return {item: tests + ELSEWHERE.get(item, []) for item, tests in found.items()}


def test_every_kind_has_tests_that_exist():
    for item, tests in shown_by().items():
        assert any(name.startswith("test_corpus") for name in tests), f"{item} has no test"
        for file, _, test in (name.partition("::") for name in tests):
            assert re.search(rf"^def {test}\(", text_of(CHECKOUT / "tests" / file), re.MULTILINE), f"there is no {test}"


def test_the_page_of_bad_input_has_every_kind_with_the_tests_that_show_it():
    page = text_of(CHECKOUT / "docs" / "bad-input.md")
    rows = dict(re.findall(r"^\| (D\d\d) `\w+` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    assert re.findall(r"^\| (D\d\d) `(\w+)`", page, re.MULTILINE) == [tuple(item.split("_", 1)) for item in ITEMS]
    for item, tests in shown_by().items():
        assert re.findall(r"`(test_\w+)`", rows[item]) == [name.partition("::")[2] for name in tests], item


def test_every_file_of_the_corpus_belongs_to_a_kind():
    assert {path.name.partition(".")[0] for path in CORPUS.iterdir()} <= set(ITEMS)


def files(item):
    """What lies in the corpus for an item, as parameters whose ids are the files' names."""
    found = sorted(path for path in CORPUS.iterdir() if path.name.startswith(f"{item}_"))
    return [pytest.param(path, id=path.stem) for path in found]


# -- JSON-RPC ------------------------------------------------------------------------------------------------------


def talk(here, data, seconds=PATIENCE):
    """(status, body) of the first answer to raw bytes, and whether the connection is closed then."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", here.port), seconds)) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(data)
        try:
            status, _, body = read_answer(line)
        except (http.client.HTTPException, ConnectionError):
            return None, b""
        assert b"Traceback" not in body and b"File " not in body
        return status, body


def ask(here, body, **headers):
    """(status, answer) to a body that an administrator sends."""
    status, answer = talk(here, post(body, Authorization=f"Bearer {here.token}", **headers))
    return status, json.loads(answer) if answer else None


def check(answer, code, word=""):
    """The error of an answer says what, why or how, and an id that the log has."""
    error = answer["error"]
    assert error["code"] == code, error
    assert word in json.dumps(error), error
    assert error["message"] and (error["data"]["why"] or error["data"]["fix"]) and ID.fullmatch(error["data"]["id"])
    return error["data"]["id"]


ANSWERS = {  # file: HTTP status, code, a word of the error
    "D01_rpc_truncated": (400, -32700, "char 26"),
    "D02_rpc_not_utf8.bytes": (400, -32700, "must be UTF-8"),
    "D02_rpc_not_utf8.utf16": (400, -32700, "must be UTF-8"),
    "D04_rpc_numbers.nan": (200, -32602, "time"),
    "D04_rpc_numbers.infinite": (200, -32602, "time"),
    "D04_rpc_numbers.true": (200, -32602, "time"),
    "D04_rpc_numbers.text": (200, -32602, "time"),
    "D04_rpc_numbers.fraction": (200, -32602, "workers must be int, not 1.5"),
    "D05_rpc_duplicate_key": (200, -32600, "method"),
    "D06_rpc_surrogate.half": (200, -32602, "surrogate"),
    "D06_rpc_surrogate.nul": (200, -32000, ""),
    "D06_rpc_surrogate.newline": (200, -32000, ""),
    "D06_rpc_surrogate.script": (200, -32000, "<script>"),
    "D06_rpc_surrogate.escape": (200, -32000, ""),
    "D07_rpc_batch.empty": (200, -32600, "empty"),
    "D08_rpc_wrong_shape.version": (200, -32600, "2.0"),
    "D08_rpc_wrong_shape.method": (200, -32600, "method"),
    "D08_rpc_wrong_shape.params": (200, -32600, "params"),
    "D08_rpc_wrong_shape.unknown": (200, -32601, "did you mean status"),
    "D08_rpc_wrong_shape.private": (200, -32601, "_private"),
    "D08_rpc_wrong_shape.class": (200, -32601, "__class__"),
    "D08_rpc_wrong_shape.missing": (200, -32602, "task"),
    "D08_rpc_wrong_shape.extra": (200, -32602, "ping"),
    "D08_rpc_wrong_shape.wrong_name": (200, -32602, "task.explain(task)"),
}  # fmt: skip


def check_file(here, path):
    status, code, word = ANSWERS[path.stem]
    found, answer = ask(here, path.read_bytes())
    assert found == status, answer
    mark = check(answer, code, word)
    wait_until(lambda: mark in text_of(next((here.master.folder / "logs").glob("*.log"))), "the log has the id")


@pytest.mark.parametrize("path", files("D01"))
def test_D01_a_body_that_is_cut_off_is_told_where(here, path):
    check_file(here, path)


@pytest.mark.parametrize("path", files("D02"))
def test_D02_a_body_must_be_utf8(here, path):
    check_file(here, path)


DEEP = {
    "D03_rpc_deep.open": b"[" * 100_000, "D03_rpc_deep.closed": b"[" * 5000 + b"]" * 5000,
    "D03_rpc_deep.tables": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "D03_rpc_deep.inside": b'{"jsonrpc":"2.0","method":"ping","params":' + b"[" * 70 + b"]" * 70 + b',"id":1}',
}  # fmt: skip


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
def test_D03_a_body_nested_deeper_than_64_is_refused(here, body):
    status, answer = ask(here, body)
    assert status == 400
    check(answer, -32700, "nested deeper than 64")


@pytest.mark.parametrize("path", files("D04"))
def test_D04_a_number_that_is_none_names_the_parameter(here, path):
    check_file(here, path)


def test_D04_an_integer_of_5000_digits_names_the_parameter(here):
    body = b'{"jsonrpc":"2.0","method":"slave.set_workers","params":["s1",%s],"id":1}' % (b"7" * 5000)
    check(ask(here, body)[1], -32602, "5000 digits")


@pytest.mark.parametrize("path", files("D05"))
def test_D05_a_key_that_is_there_twice_is_refused(here, path):
    check_file(here, path)


@pytest.mark.parametrize("path", files("D06"))
def test_D06_texts_that_are_none_are_refused_and_odd_ones_are_shown_as_such(here, path):
    check_file(here, path)


def test_D06_a_name_of_10_kb_is_told_shortened(here):
    body = json.dumps({"jsonrpc": "2.0", "method": "task.explain", "params": ["x" * 10_000], "id": 1}).encode()
    _, answer = ask(here, body)
    check(answer, -32000)
    assert len(json.dumps(answer)) < 2000


def test_D07_an_empty_batch_is_one_error_and_of_a_mixed_one_each_has_its_answer(here):
    check_file(here, CORPUS / "D07_rpc_batch.empty.json")
    status, answers = ask(here, (CORPUS / "D07_rpc_batch.mixed.json").read_bytes())
    assert status == 200 and [one.get("result") or one["error"]["code"] for one in answers] == ["pong", -32600, -32601]
    assert ask(here, (CORPUS / "D07_rpc_batch.notification.json").read_bytes()) == (204, None)


@pytest.mark.parametrize(("count", "word"), [(1001, "1000"), (10**6, "1048576")])
def test_D07_a_batch_that_is_too_long_is_refused_with_the_limit(here, count, word):
    status, answer = ask(here, b"[" + b",".join([b"1"] * count) + b"]")
    assert status == 413
    check(answer, -32003, word)


@pytest.mark.parametrize("path", files("D08"))
def test_D08_what_is_no_call_of_ours_names_what_is_wrong_with_it(here, path):
    check_file(here, path)


# -- HTTP ----------------------------------------------------------------------------------------------------------

LENGTHS = {
    "D09_http_length.missing": ({"Content_Length": None}, 411),
    "D09_http_length.negative": ({"Content_Length": -1}, 400),
    "D09_http_length.letters": ({"Content_Length": "abc"}, 400),
    "D09_http_length.huge": ({"Content_Length": 99999999999}, 413),
    "D09_http_length.too_small": ({"Content_Length": 5}, 400),
    "D09_http_length.chunked": ({"Transfer_Encoding": "chunked"}, 501),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "status"), LENGTHS.values(), ids=LENGTHS)
def test_D09_a_body_without_a_usable_length_is_not_read(here, headers, status):
    assert talk(here, post(**headers))[0] == status


def test_D09_whoever_expects_100_gets_it(here):
    head, _, body = post(Expect="100-continue").partition(b"\r\n\r\n")
    with contextlib.closing(socket.create_connection(("127.0.0.1", here.port), PATIENCE)) as line:
        line.sendall(head + b"\r\n\r\n")
        assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        assert read_answer(line)[0] == 200


@pytest.mark.slow
def test_D09_a_body_that_does_not_come_is_waited_for_10_seconds(here):
    began = time.monotonic()
    assert talk(here, post(Content_Length=1000))[0] == 408
    took = time.monotonic() - began
    assert took > 9 and in_time(took, 12)


JUNK = {
    "D10_http_junk.tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "D10_http_junk.long_url": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    "D10_http_junk.many_headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    "D10_http_junk.brew": (b"BREW /api/1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    "D10_http_junk.put": (b"PUT /api/1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "D10_http_junk.http_0_9": (b"GET /\r\n", 400),
    "D10_http_junk.other_host": (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
    "D10_http_junk.outside": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "D10_http_junk.outside_coded": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), JUNK.values(), ids=JUNK)
def test_D10_junk_is_refused(here, data, status):
    assert talk(here, data)[0] == status


def test_D10_junk_is_one_line_in_ten_seconds(here):
    before, began = here.master.err.count("bad requests"), time.monotonic()
    for _ in range(30):
        talk(here, b"\x16\x03\x01 junk\r\n")
    assert here.master.err.count("bad requests") <= before + 1 + (time.monotonic() - began) / 10


TOKENS = {
    "D11_http_auth.none": None, "D11_http_auth.wrong": "Bearer wrong", "D11_http_auth.empty": "Bearer ",
    "D11_http_auth.letters": "Bearer cl\xe9", "D11_http_auth.basic": "Basic eDp5",
}  # fmt: skip
DRAIN = b'{"jsonrpc":"2.0","method":"slave.drain","params":["s1"],"id":1}'


@pytest.mark.parametrize("given", TOKENS.values(), ids=TOKENS)
def test_D11_nobody_administers_without_the_token(here, given):
    status, answer = talk(here, post(DRAIN, Authorization=given))
    assert status in (401, 429)  # 429: ten wrong ones in a minute
    if status == 401:
        check(json.loads(answer), -32001)
    assert here.token.encode() not in answer and not any(row["draining"] for row in here.proxy.slaves())


def test_D11_a_token_in_the_address_is_refused_and_not_logged(here):
    status, answer = talk(here, post(DRAIN, path=f"/api/1?token={here.token}"))
    assert status == 401
    check(json.loads(answer), -32001)
    assert here.token not in here.master.err


def test_D11_an_enrolment_that_was_changed_or_is_late_is_refused_with_the_reason(here, tmp_path):
    access = rpc.Access.load(str(here.master.folder / "keys" / "slave.access"))
    asked = rpc.NodeKeys(str(tmp_path / "keys")).enrolment(access, "late")
    for changed in ({"name": "other"}, {"time": 1.0}, {"role": "client"}, {"nonce": "another"}):
        with pytest.raises(rpc.RpcError, match="wrong key"):
            here.proxy.enrol(**{**asked, **changed})


BROWSERS = {
    "D12_http_browser.host": (post(Host="evil.example"), 421),
    "D12_http_browser.origin": (post(Origin="http://evil.example"), 403),
    "D12_http_browser.null_origin": (post(Origin="null"), 403),
    "D12_http_browser.form": (post(Content_Type="application/x-www-form-urlencoded"), 415),
    "D12_http_browser.get": (b"GET /api/1?method=slave.drain HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "D12_http_browser.cookie": (post(DRAIN, Cookie="token=x"), 401),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), BROWSERS.values(), ids=BROWSERS)
def test_D12_what_a_foreign_page_can_make_a_browser_send_does_nothing(here, data, status):
    assert talk(here, data)[0] in (status, 429 if status == 401 else status)
    assert not any(row["draining"] for row in here.proxy.slaves())


# -- ZeroMQ --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"D13_zmq_garbage.{kind}") for kind in client.GARBAGE])
@pytest.mark.parametrize("channel", ["tcp", "ipc"])
def test_D13_garbage_on_the_compute_channel_is_nobody_s_concern(here, channel, kind):
    where = here.proxy.status()["addresses"][channel]
    with contextlib.ExitStack() as stack:
        for seed in range(10):
            line = stack.enter_context(socket.socket(socket.AF_UNIX if channel == "ipc" else socket.AF_INET))
            line.connect(where if channel == "ipc" else rpc.parse_address(where))
            with contextlib.suppress(ConnectionError):
                line.sendall(client.GARBAGE[kind](client.random.Random(seed)))


@pytest.mark.slow
def test_D13_300_silent_connections_keep_nobody_out_and_are_closed(here, tmp_path):
    where = rpc.parse_address(here.proxy.status()["addresses"]["tcp"])
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(where, PATIENCE)) for _ in range(300)]
        with Knocking(here, "client", tmp_path) as knocking:
            knocking.until(lambda: knocking.state, "it is let in")
            assert knocking.state == "welcome"
        for line in silent:
            assert line.recv(1000)  # its half of a greeting
            with contextlib.suppress(ConnectionResetError):
                assert line.recv(1000) == b""


def stranger(here, tmp_path):
    """A link with a key that was never enrolled, on the right port."""
    access = rpc.Access.load(str(here.master.folder / "keys" / "slave.access"))
    keys = rpc.NodeKeys(str(tmp_path / "stranger"))
    link = rpc.Link(keys.credentials(access), {"version": components.__version__, "node_id": "x", "role": "slave"})
    link.refusals = []
    link.on_refused = link.refusals.append
    link.connect({"tcp": here.proxy.status()["addresses"]["tcp"]})
    return link


def test_D14_a_key_that_was_never_enrolled_is_told_so(here, tmp_path):
    with contextlib.closing(stranger(here, tmp_path)) as link:

        def turn():
            link.receive()
            link.tick(link.clock())
            return link.refusals

        (error,) = wait_until(turn, "it is refused")
    assert "does not know this node's key" in error.what and error.why and error.fix


@pytest.mark.parametrize(("role", "other"), [("slave", "client"), ("client", "slave")])
def test_D14_a_key_of_another_role_is_told_so(here, role, other):
    words = ["--access", str(here.master.folder / "keys" / f"{other}.access")]
    if role == "slave":
        refused = here.start("slave", "--master", here.address, "--wait", "0.2", *words, ready=False)
    else:
        refused = here.start_client("hello.py", *words)
    assert refused.wait().code == 3 and other in refused.err and "fix:" in refused.err
    assert "Traceback" not in refused.err


@contextlib.contextmanager
def dealer(here, tmp_path):
    """A socket with a node's keys and no manners."""
    with Knocking(here, "client", tmp_path) as knocking:
        knocking.until(lambda: knocking.state, "it is let in")
        address = here.proxy.status()["addresses"]["tcp"]
        raw = knocking.link._context.socket(5)
        raw.linger = 0
        knocking.link.credentials.dress(raw, f"tcp://{address}")
        raw.connect(f"tcp://{address}")
        try:
            yield raw
        finally:
            raw.close()


@pytest.mark.parametrize("what", [pytest.param(what, id=f"D15_zmq_frames.{what}") for what in GARBAGE])
def test_D15_frames_that_are_no_message_are_refused_with_the_reason(here, tmp_path, what):
    with dealer(here, tmp_path) as raw:
        raw.send_multipart(GARBAGE[what])
        assert raw.poll(1000 * PATIENCE), "it is answered"
        assert rpc.unpack(raw.recv_multipart()).call[1]["reason"] == "garbage"


@pytest.mark.parametrize("step", [pytest.param(step, id=f"D16_zmq_version.{step:+}") for step in (-1, 1)])
def test_D16_another_protocol_is_refused_with_both_numbers(here, tmp_path, step):
    with dealer(here, tmp_path) as raw:
        first, *rest = rpc.pack(rpc.HELLO, b"12345678", 1, 0, ["hello", {}, False])
        raw.send_multipart([first[:2] + bytes([rpc.PROTOCOL + step]) + first[3:], *rest])
        assert raw.poll(1000 * PATIENCE), "it is answered"
        about = rpc.unpack(raw.recv_multipart()).call[1]
    assert about["reason"] == "version" and about["fix"]
    assert str(rpc.PROTOCOL) in str(about) and str(rpc.PROTOCOL + step) in str(about)


def test_D16_a_program_of_tomorrow_is_refused_with_both_versions(here, tmp_path):
    with Knocking(here, "slave", tmp_path, {"node_id": "x", "version": "9.9"}) as knocking:
        knocking.until(lambda: knocking.state, "an answer")
    assert knocking.state == "refused"
    assert "9.9" in str(knocking.error) and components.__version__ in str(knocking.error)


def test_D17_results_that_nobody_asked_this_slave_for_change_nothing(here, tmp_path):
    with Knocking(here, "slave", tmp_path, {"node_id": "f", "resources": {}, "workers": 0}) as knocking:
        knocking.until(lambda: knocking.state == "welcome", "it is let in")
        for lease in range(50):  # those of others, of the future, and of what has ended
            knocking.link.call("result", lease, 0, 1, {}, [0] * 5, parts=[b"\x80\x05]K\x07a."])
        knocking.until(lambda: not knocking.link.session.pending or knocking.state != "welcome", "it is heard")


def test_D18_a_message_over_the_limit_is_refused_before_it_is_sent(here, tmp_path):
    with Knocking(here, "client", tmp_path) as knocking:
        knocking.until(lambda: knocking.state, "it is let in")
        with pytest.raises(components.Error) as caught:
            knocking.link.call("bundle", "x", {}, parts=[bytes(rpc.MAX_MESSAGE + 1)])
    assert f"{rpc.MAX_MESSAGE:,}" in str(caught.value)


@pytest.mark.slow
def test_D19_a_flood_of_beats_and_of_greetings_stops_nobody_else(here, tmp_path):
    with dealer(here, tmp_path) as raw:
        until = time.monotonic() + 2
        rest = {"version": components.__version__, "role": "client", "bundle": "b"}
        while time.monotonic() < until:
            with contextlib.suppress(rpc.importlib.import_module("zmq").Again):
                raw.send_multipart(rpc.pack(rpc.BEAT, os.urandom(8), 0, 0, ["beat"]), 1)
                greeting = ["hello", {**rest, "node_id": os.urandom(8).hex()}, False]
                raw.send_multipart(rpc.pack(rpc.HELLO, os.urandom(8), 1, 0, greeting), 1)
        assert here.run_client("hello.py").code == 0
    assert len(here.proxy.slaves()) == 2


# -- configuration and command line --------------------------------------------------------------------------------


def start_with(here, content, name, *words):
    """A master that starts with this configuration file; it has ended."""
    folder = Path(here.folder, name)
    components.Environment(folder, "master").create()
    file = folder / "configs" / "env.ini"
    content(file) if callable(content) else file.write_bytes(content)
    return here.start("master", "--port", 0, *words, name=name, ready=False).wait()


def told(process, code, *words):
    """It ended with this code, and told what, why and how to mend it, without a traceback."""
    assert process.code == code, process.err
    assert "Traceback" not in process.err and "error:" in process.err
    for word in words:
        assert word in process.err, process.err


SYNTAX = {
    "D20_cfg_syntax.no_equals": "env.ini:2", "D20_cfg_syntax.section_twice": "env.ini:3",
    "D20_cfg_syntax.latin1": "UTF-8", "D20_cfg_syntax.binary": "env.ini", "D20_cfg_syntax.no_section": "env.ini:1",
}  # fmt: skip


@pytest.mark.parametrize("path", files("D20"))
def test_D20_a_configuration_that_cannot_be_read_names_file_and_line(here, path):
    told(start_with(here, path.read_bytes(), path.stem), 2, SYNTAX[path.stem])


def make_folder(file):
    file.unlink()
    file.mkdir()


def dangle(file):
    file.unlink()
    file.symlink_to("nowhere")


ODD_FILES = {
    "D20_cfg_syntax.folder": make_folder,
    "D20_cfg_syntax.huge": lambda file: os.truncate(file, 100_000_000),
}  # fmt: skip


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_D20_what_is_no_file_of_a_sensible_size_is_named(here, make, request):
    told(start_with(here, make, request.node.callspec.id), 2, "env.ini")


def test_D20_a_byte_order_mark_windows_line_ends_and_an_empty_file_are_fine(here):
    for number, content in enumerate([b"\xef\xbb\xbf[master]\r\nmax_lease = 3\r\n", b""]):
        ended = start_with(here, content, f"fine{number}", "--set", "master.max_lease=x")
        told(ended, 2, "max_lease")  # nothing else is wrong
        assert "env.ini" not in ended.err


@pytest.mark.parametrize("path", files("D21"))
def test_D21_all_wrong_values_are_told_at_once_with_what_is_allowed(here, path):
    ended = start_with(here, path.read_bytes(), path.stem)
    told(ended, 2, "70000", "ten", "-1", "1e999")
    assert ended.err.count("env.ini:") >= 4


@pytest.mark.slow
def test_D21_an_unknown_option_names_the_nearest(here):
    told(start_with(here, b"", "near", "--set", "master.prot=1"), 2, "master.port")
    told(start_with(here, b"", "nobody", "--set", "master.task_scheduler=Nobody"), 2, "Nobody", "ZMQTaskScheduler")


@pytest.mark.slow
def test_D22_keys_and_folders_that_others_can_reach_are_refused_with_the_line_to_type(here):
    for name, path, mode, line in [
        ("wide-key", "keys/slave.access", 0o644, "chmod"), ("wide-plugins", "plugins", 0o777, "chmod go-w"),
    ]:  # fmt: skip
        start_with(here, b"[master]\nmax_lease = x\n", name)  # makes its folder
        folder = Path(here.folder, name)
        (folder / "configs" / "env.ini").write_bytes(b"")
        if not (folder / path).exists():
            (folder / path).write_text("{}")
        os.chmod(folder / path, mode)
        if name == "wide-key":
            ended = here.start_client("hello.py", "--access", folder / path).wait()
            told(ended, 3, line, path)
        else:
            ended = here.start("master", "--port", 0, name=name, ready=False).wait()
            told(ended, 2, line, path)


COMMANDS = {  # what is typed: exit code and a word
    "D23_cli_args.unknown_command": (["master", "strat"], 2, "strat"),
    "D23_cli_args.missing_value": (["slave", "--master"], 2, "--master"),
    "D23_cli_args.unknown_option": (["master", "--prot", "1"], 2, "--port"),
    "D23_cli_args.ipv6": (["client", "hello.py", "--master", "::1:8080"], 2, "["),
    "D23_cli_args.not_resolved": (["client", "hello.py", "--master", "no.such.invalid", "--wait", "0.2"], 3, "no.such"),
    "D23_cli_args.nobody_there": (["client", "hello.py", "--master", "127.0.0.1:1", "--wait", "0.2"], 3, "127.0.0.1:1"),
    "D23_cli_args.letters": (["client", "hello.py", "--timeout", "soon"], 2, "soon"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code", "word"), COMMANDS.values(), ids=COMMANDS)
def test_D23_a_command_that_makes_no_sense_says_so_in_a_line(here, words, code, word):
    role, *rest = words
    rest = [str(CHECKOUT / "samples" / one) if one == "hello.py" else one for one in rest]
    ended = here.start(role, *rest, ready=False).wait()
    assert ended.code == code, ended.err
    assert word in ended.err and "Traceback" not in ended.err and len(ended.err.splitlines()) < 12


def test_D23_a_port_that_is_taken_names_it_and_another(here):
    told(here.start("master", "--port", here.port, name="taken", ready=False).wait(), 2, str(here.port), "--port")


# -- applications and tasks ----------------------------------------------------------------------------------------

APP_FILES = {
    "D24_app_files.syntax": ".py:1", "D24_app_files.import": "no_such_module_anywhere",
    "D24_app_files.none": "no ApplicationNode", "D24_app_files.two": "--app", "D24_app_files.tabs": ".py:3",
    "D24_app_files.encoding": "UTF-8", "D24_app_files.raises": "line 1", "D24_app_files.exits": "line 1",
}  # fmt: skip


@pytest.mark.parametrize("path", files("D24"))
def test_D24_a_file_that_is_no_application_is_told_with_its_line_before_anything_is_sent(here, path):
    ended = here.start_client(path).wait()
    assert ended.code in (1, 2), ended.err
    told(ended, ended.code, APP_FILES[path.stem], "fix:")


def test_D24_a_file_that_is_not_there_is_told(here):
    told(here.start_client("/nowhere/app.py").wait(), 2, "app.py")


def archive(*names, data=b"x = 1\n"):
    """The bytes of a zip file with these names."""
    file = rpc.io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in names:
            pack.writestr(name, data)
    return file.getvalue()


ARCHIVES = {
    "D24_app_files.escapes": archive("app.py", "../evil.py"), "D24_app_files.absolute": archive("/tmp/evil.py"),
    "D24_app_files.clash": archive("app.py", "APP.py"), "D24_app_files.no_zip": b"PK\x03\x04 junk",
    "D24_app_files.bomb": archive("app.py", data=bytes(200_000_000)),
}  # fmt: skip


@pytest.mark.parametrize("data", ARCHIVES.values(), ids=ARCHIVES)
def test_D24_an_archive_that_is_no_application_leaves_nothing_on_any_node(here, tmp_path, data):
    digest = rpc.hashlib.sha256(data).hexdigest()
    before = {path for node in here.nodes for path in (node.folder / "apps").iterdir()}
    with Knocking(here, "client", tmp_path) as knocking:
        knocking.until(lambda: knocking.state, "it is let in")
        knocking.link.call("bundle", digest, {"format": 1, "files": ["app.py"], "module": "app"}, parts=[data])
        knocking.until(lambda: not knocking.link.session.pending or knocking.state != "welcome", "it is heard")
    assert {path for node in here.nodes for path in (node.folder / "apps").iterdir()} == before
    assert not list(Path(here.folder).rglob("evil.py")) and not Path("/tmp/evil.py").exists()


def result_of(run):
    """What the application left; it ended with a report in place of a crash."""
    assert run.code in (0, 1), run.err
    return run.about["result"]


@pytest.mark.parametrize("way", [pytest.param(way, id=f"D25_app_pickle.{way}") for way in [
    "lambda", "local", "file", "deep"]])  # fmt: skip
def test_D25_a_task_that_cannot_be_sent_names_the_attribute_and_the_others_run(here, way):
    ended = result_of(here.run_client("corpus.py", "--app", "Unsendable", f"--set=corpus.way={way}"))
    assert ended["fine"] == "fine" and 'attribute "value' in ended["it"], ended


def test_D25_a_class_that_no_worker_finds_is_told_at_the_push(here):
    ended = result_of(here.run_client("plain.py", "--app", "LocalClass"))
    assert ended["heard"] and "Hidden" in ended["error"]


@pytest.mark.parametrize(("way", "word"), [
    pytest.param("none", "generate_tasks", id="D26_sys_poison.none"),
    pytest.param("no tasks", "generate_tasks", id="D26_sys_poison.no_tasks"),
    pytest.param("no list", "generate_tasks", id="D26_sys_poison.no_list"),
])  # fmt: skip
def test_D26_a_system_that_gives_no_tasks_ends_with_the_name_of_the_hook(here, way, word):
    run = here.run_client("corpus.py", "--app", "OddSystem", f"--set=corpus.way={way}")
    assert run.code == 1 and word in run.err, run.err


@pytest.mark.parametrize("how", [pytest.param(how, id=f"D26_sys_poison.{how}") for how in [
    "generate_tasks", "generator", "task_finished", "is_complete", "gather_result", "unpicklable"]])  # fmt: skip
def test_D26_a_hook_that_raises_ends_its_system_with_its_name(here, how):
    run = here.run_client("systems.py", "--app", "RaisingApplication", f"--set=systems.how={how}")
    assert run.code == 1
    assert {"generator": "generate_tasks", "unpicklable": "result"}.get(how, how) in run.err, run.err


@pytest.mark.slow
def test_D26_a_system_of_a_million_tasks_is_drawn_as_there_is_room(here):
    run = here.start_client("corpus.py", "--app", "OddSystem", "--set=corpus.way=many", "--set=corpus.count=1000000")
    wait_until(lambda: sum(row["done"] for row in here.proxy.systems()) > 1000, "some are done", 60)
    assert in_time(here.best(), QUICK)
    run.send(2)
    assert run.wait().code == 130


# -- results -------------------------------------------------------------------------------------------------------


def ways_of(here, *ways, seconds=PATIENCE):
    """What becomes of a task that returns or raises in each of these ways."""
    found = result_of(here.run_client("corpus.py", "--app", "Ways", f"--set=corpus.ways={','.join(ways)}",
                                      seconds=seconds))  # fmt: skip
    assert found.keys() == set(ways)
    return found


def test_D27_results_that_cannot_be_pickled_fail_their_tasks_with_what_they_are(here):
    found = ways_of(here, "lambda", "generator", "lock", "view", "deep", "fine")
    assert found.pop("fine")["result"] == "'fine'"
    for way, told in found.items():
        assert told["kind"] == "result" and "cannot be sent" in told["message"], (way, told)


def test_D27_exceptions_that_cannot_be_pickled_come_as_their_description(here):
    ways = ["bad reduce", "two arguments", "base", "long message", "cyclic", "too long name"]
    ways += ["group"] if rpc.sys.version_info >= (3, 11) else []
    found = ways_of(here, *ways)
    types = {"bad reduce": "BadReduce", "two arguments": "TwoArguments", "base": "Base", "long message": "ValueError",
             "cyclic": "ValueError", "too long name": "KeyError", "group": "ExceptionGroup"}  # fmt: skip
    for way, told in found.items():
        assert told["type"].endswith(types[way]) and 0 < told["traceback"] <= 70_000, (way, told)
        assert told["kind"] == "error" and len(told["text"]) <= 5000


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param(how, id=f"D28_res_process.{how}") for how in [
    "exits", "sys_exits", "segfault", "closes_all", "writes_garbage"]])  # fmt: skip
def test_D28_a_task_that_does_away_with_its_process_has_failed_and_the_next_one_runs(here, how):
    found = result_of(here.run_client("faults.py", "--app", "One", f"--set=faults.how={how}", seconds=60))
    assert found["good"] == "fine" and found["bad"]["text"] and found["bad"]["kind"], found


def test_D28_a_task_that_kills_its_process_or_leaves_it_has_failed(here):
    found = ways_of(here, "kills itself", "exits with 3", "fine")
    assert found["fine"]["result"] == "'fine'" and found["kills itself"]["kind"] == "poisoned"
    assert "SIGKILL" in found["kills itself"]["message"] and "3" in found["exits with 3"]["text"], found


@pytest.mark.slow
def test_D28_of_a_task_that_forks_and_both_return_one_counts(here):
    found = ways_of(here, "forks", "fine")
    assert found["fine"]["result"] == "'fine'" and (found["forks"]["result"] == "1" or found["forks"]["kind"]), found


def test_D29_a_task_that_takes_too_much_of_something_is_told_what_and_the_next_one_runs(here):
    found = ways_of(here, "recursion", "many files", "many threads", "fine", seconds=60)
    assert found["fine"]["result"] == "'fine'"
    assert found["recursion"]["type"] == "RecursionError"
    assert found["many files"]["type"] == "OSError" and "Too many open files" in found["many files"]["message"]
    assert found["many threads"]["result"] == "'fine'" or "thread" in found["many threads"]["text"], found


HOSTILE = ["runs", "raises", "endless"]


@pytest.mark.parametrize("app", ["Any", "Data", "AnySystem", "DataSystem"])
@pytest.mark.parametrize("how", [pytest.param(how, id=f"D30_res_hostile.{how}") for how in HOSTILE])
def test_D30_a_hostile_result_reaches_nobody_but_its_client_and_with_data_not_even_that(here, tmp_path, app, how):
    words = [f"--set=hostile.how={how}", f"--set=hostile.folder={tmp_path}"]
    run = here.run_client("hostile.py", "--app", app, *words)
    found = result_of(run)
    kind = "TaskError" if app.startswith("Data") else "RuntimeError" if how == "raises" else "NoneType"
    assert found["kind"] == kind, found
    marks = [path.name for path in tmp_path.iterdir()]
    assert marks == ([f"ran-{found['pid']}"] if how == "runs" and app.startswith("Any") else [])


def test_D30_eight_gigabytes_in_36_bytes_are_refused_with_data(here):
    found = result_of(here.run_client("hostile.py", "--app", "Data", "--set=hostile.how=eight"))
    assert found["message"] == "a result holds builtins.bytearray" and found["peak"] < 300


def test_D30_names_and_errors_with_codes_for_the_terminal_are_shown_as_text(here):
    words = ["--set=hostile.how=escapes", "--set=hostile.name=escapes"]
    run = here.start_client("hostile.py", "--app", "Any", *words).wait()
    assert run.code == 1 and r"\x1b[2J" in run.err and "\x1b" not in run.err + run.out, ascii(run.err)
    log = "".join(text_of(path) for node in here.nodes for path in (node.folder / "logs").iterdir())
    assert "\x1b" not in log and r"\x1b[2J" in log
