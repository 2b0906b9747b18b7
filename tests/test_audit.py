"""The audit log: who did what, whatever it is called; and what no log may ever hold."""

import json
import os
import re
from contextlib import closing
from pathlib import Path

import pytest
from conftest import at_once, processes_of, text_of, wait_until
from test_keys import keep
from test_recovery import Knocking

from concurrent_swarm import components, master, rpc


@pytest.fixture
def audit(tmp_path):
    """A function that begins an audit log; `lines()` of it ends it and reads."""
    made = []

    def begin(path=tmp_path / "audit.jsonl"):
        one = master.Audit(path)
        one.start()
        made.append(one)

        def lines():
            one.close()
            return [json.loads(line) for line in text_of(path).splitlines()]

        one.lines = lines
        return one

    yield begin
    for one in made:
        one.close()


def events(here):
    return [json.loads(line) for line in text_of(here.master.folder / "logs" / "audit.jsonl").splitlines()]


def heard(here, event, **facts):
    """Waits for a line with these facts."""
    def found():
        return next((line for line in events(here) if {"event": event, **facts}.items() <= line.items()), None)

    return wait_until(found, f"{event} {facts} of {[line['event'] for line in events(here)]}")


# -- lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["two\nlines", "\r\n", "\x1b[31mred", "\x00", "\u2028", "\x85", '"}', "\ud800", "\x7f", "ü" * 9]
)
def test_no_value_breaks_its_line_or_steers_a_terminal(audit, tmp_path, text):
    one = audit()
    one.put("enrol", "key", {"name": text, text: [text, {"inner": text}]})
    (line,) = one.lines()
    assert line["name"] == text and line["event"] == "enrol"
    assert re.fullmatch(rb"[ -~]+\n", (tmp_path / "audit.jsonl").read_bytes())


def test_what_is_no_json_is_written_all_the_same_and_the_next_one_too(audit):
    one, circle = audit(), {}
    circle["itself"] = circle
    one.put("admin", "key", circle)
    one.put("enrol", "key", {"name": "n1"})
    strange, next_one = one.lines()
    assert strange["event"] == "admin" and "Circular" in strange["begins"] and next_one["name"] == "n1"


@pytest.mark.parametrize("fact", ["ü" * 1000, ["x" * 1000] * 1000, {"\x1b" * 1000: object()}], ids=type)
def test_of_what_is_long_the_beginning_is_kept(audit, tmp_path, fact):
    one = audit()
    one.put("admin", "key", {"who": "n1", "params": fact})
    (line,) = one.lines()
    assert line["event"] == "admin" and '"who": "n1"' in line["begins"]
    assert len((tmp_path / "audit.jsonl").read_bytes()) < 3 * master.AUDIT_TEXT


def test_the_file_is_this_user_s_alone_and_grows_at_its_end(audit, tmp_path):
    before = os.umask(0)
    try:
        for number in range(2):
            one = audit()
            one.put("config", "", {"number": number})
            one.lines()
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "audit.jsonl").st_mode & 0o777 == 0o600
    assert [line["number"] for line in audit().lines()] == [0, 1]


def test_what_one_source_does_too_often_is_counted_and_others_are_heard(audit):
    one = audit()
    for _ in range(1000):
        one.put("refuse", "10.0.0.1", {"from": "10.0.0.1"})
    one.put("refuse", "10.0.0.2", {"from": "10.0.0.2"})
    one.put("submit", "10.0.0.1", {"from": "10.0.0.1"})
    one.next_window()
    one.put("refuse", "10.0.0.1", {"again": True})
    lines = one.lines()
    assert [line.get("from") for line in lines[: master.AUDIT_LINES + 2]] == ["10.0.0.1"] * master.AUDIT_LINES + [
        "10.0.0.2", "10.0.0.1"]
    told, again = lines[master.AUDIT_LINES + 2 :]
    assert (told["event"], told["of"], told["lines"]) == ("suppressed", "refuse", 1000 - master.AUDIT_LINES)
    assert again["again"] and one.counts["suppressed"] == 1000 - master.AUDIT_LINES


def test_any_number_of_sources_takes_little_memory(audit):
    one = audit()
    for number in range(3 * master.AUDIT_SOURCES):
        one.put("refuse", str(number), {})
    assert len(one._lines) == master.AUDIT_SOURCES + 1
    assert len(one.lines()) == master.AUDIT_SOURCES + master.AUDIT_LINES + 1


def test_a_large_file_makes_room_and_some_old_ones_stay(audit, tmp_path, monkeypatch):
    monkeypatch.setattr(components, "LOG_BYTES", 100)
    one = audit()
    for number in range(30):
        one.put("config", str(number), {"number": number})
    one.lines()
    names = sorted(os.listdir(tmp_path))
    assert names == ["audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    kept = [json.loads(line)["number"] for name in names[::-1] for line in text_of(tmp_path / name).splitlines()]
    assert kept == list(range(30 - len(kept), 30))


def test_lines_that_cannot_be_written_are_counted_and_told_once(audit, tmp_path, caplog):
    (tmp_path / "full").symlink_to("/dev/full")
    one = audit(tmp_path / "full")
    for _ in range(5):
        one.put("config", "", {})
    one.close()
    assert one.counts == {"lost": 5} and len(caplog.records) == 1 and "No space left" in caplog.text


# -- what a master writes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(swarm_of_module):
    return swarm_of_module


def test_who_joined_and_who_submitted_what_is_written_with_its_key(here):
    run = here.run_client("md5.py")
    assert run.code == 0
    slave = next(line for line in events(here) if line["event"] == "join")
    assert slave["role"] == "slave" and slave["key"] == here.proxy.slaves()[0]["key"]
    new = heard(here, "enrol", role="client")
    submitted = heard(here, "submit", key=new["key"])
    begun = heard(here, "system", key=new["key"])
    assert new["address"] == "127.0.0.1" and begun["application"] == submitted["application"]
    assert (here.master.folder / "apps" / submitted["application"]).is_dir()


def test_a_cancelled_system_is_written_with_who_did_it(here):
    assert here.run_client("systems.py", "--app", "Cancelling", "--set", "systems.count=100000").code == 0
    line = heard(here, "cancel")
    begun = heard(here, "system", system=line["system"])
    assert line["role"] == "client" and (line["key"], line["who"]) == (begun["key"], begun["who"])


def test_the_calls_of_administrators_are_written_with_their_parameters(here):
    here.proxy.config.set("limits", "hook_timeout", "61")
    line = heard(here, "admin", method="config.set", params=["limits", "hook_timeout", "61"])
    assert line["from"] == "127.0.0.1" and line["role"] == "admin"
    assert heard(here, "config")["changed"] == ["limits.hook_timeout"]


def test_who_is_refused_is_written_with_the_reason(here, tmp_path):
    with pytest.raises(rpc.RpcError):
        rpc.Proxy(here.address, "wrong").ping()
    heard(here, "refuse", why="wrong token", **{"from": "127.0.0.1"})
    with pytest.raises(rpc.RpcError):
        rpc.Proxy(here.address).enrol("slave", "k" * 40, "evil\nname", "n", 0.0, "mac")
    assert "wrong key" in heard(here, "refuse", role="guest")["why"]
    with Knocking(here, "slave", tmp_path) as knocking:
        knocking.until(lambda: knocking.state == "welcome", "it is let in")
        knocking.link.call("submit", 0, 1, 1, 0)
        knocking.until(lambda: not knocking.link.session.pending, "it is heard")
    assert heard(here, "refuse", why="a slave may not call submit")["who"] == "knocking"


def test_what_an_application_asks_for_and_a_slave_does_not_grant_is_written_with_whose_it_is(here):
    run = here.run_client("connects.py", "--set", "connects.told={}")
    assert run.code == 1
    why = "the application asks for what s1 does not allow: network = 127.0.0.1:1"
    line = heard(here, "refuse", role="client", why=why)
    begun = heard(here, "submit", client=line["owner"])
    assert (line["key"], line["user"]) == (begun["key"], begun["who"])


def test_a_stranger_at_the_compute_channel_is_written_with_its_address(here, tmp_path):
    access = rpc.Access.load(str(here.master.folder / "keys" / "slave.access"))
    link = rpc.Link(rpc.NodeKeys(str(tmp_path / "keys")).credentials(access), {})
    refused = []
    link.on_refused = refused.append
    with closing(link):
        link.connect({"tcp": access.addresses["tcp"]})
        wait_until(lambda: [link.receive(), link.tick(link.clock())] and refused, "it is refused")
    heard(here, "refuse", why="unknown or revoked key", **{"from": "127.0.0.1"})


@pytest.mark.slow
@at_once
def test_a_slave_cannot_publish_for_an_owner_of_whom_it_has_no_lease(here, tmp_path):
    with Knocking(here, "client", tmp_path / "c") as client, Knocking(here, "slave", tmp_path / "s") as slave:
        client.until(lambda: client.state == "welcome", "the client is let in")
        slave.until(lambda: slave.state == "welcome", "the slave is let in")
        name = sorted(here.proxy.status()["clients"])[-1]
        key = "0" * 64 + "-" + "0" * 16
        slave.link.call("publish_for", name, key, 0, 4, parts=[b"fake"])
        slave.until(lambda: not slave.link.session.pending, "it is heard")
        heard(here, "refuse", owner=name)
        answers = []
        for method in ("shared", "no_shared"):
            rpc.tcpremote(client.link, method)(lambda endpoint, request, *_: answers.append(request.method))
        client.link.call("fetch_shared", key)
        client.until(lambda: answers, "there is an answer", 30)
        assert answers == ["no_shared"]


@pytest.mark.slow
@at_once
def test_a_master_that_cannot_write_its_audit_log_works_on_and_says_so(swarm):
    here = swarm(slaves=0)
    log = here.master.folder / "logs" / "audit.jsonl"
    log.unlink(missing_ok=True)
    log.symlink_to("/dev/full")
    here.start_slave(workers=1)
    assert here.run_client("hello.py").code == 0
    wait_until(lambda: here.proxy.status()["audit"].get("lost", 0) >= 3, "it counts what is lost")
    assert here.master.err.count("the audit log cannot be written") == 1


# -- secrets -------------------------------------------------------------------------------------------------


def secrets_of(folder):
    """Everything that nobody may read, of all nodes below a folder."""
    found = {}
    for path in [*Path(folder).rglob("keys/*.json"), *Path(folder).rglob("*.access")]:
        content = json.loads(path.read_text())
        found |= {content[name]: path for name in ("secret_key", "secret", "token") if name in content}
    for path in Path(folder).rglob("invitations"):
        found |= {line.split()[2]: path for line in path.read_text().splitlines()}
    return found


def is_theirs(path):
    """Whether a file is one of those that hold secrets."""
    return path.parent.name == "keys" or path.suffix == ".access"


@pytest.mark.slow
@at_once
def test_no_secret_is_in_a_log_a_journal_a_command_line_or_an_environment(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True, master=["--set", "node.log_level=debug"])
    keep(here, "invite", "client", "--once")
    keep(here, "rotate")
    client = here.start_client("md5.py")
    with pytest.raises(rpc.RpcError):
        rpc.Proxy(here.address, "wrong").ping()
    with Knocking(here, "slave", tmp_path) as knocking:
        knocking.until(lambda: knocking.state == "welcome", "it is let in")
        knocking.link.call("crash", 1)
        knocking.until(lambda: not knocking.link.session.pending, "it is heard")
    processes = "".join(text_of(f"/proc/{pid}/{what}") for pid in processes_of(here.folder)
                        for what in ("cmdline", "environ"))  # fmt: skip
    assert client.wait().code == 0
    wide = here.master.folder / "keys" / "client.access"
    wide.chmod(0o644)
    assert here.run_client("hello.py", "--debug").code == 3
    wide.chmod(0o600)
    found = secrets_of(here.folder)
    assert len(found) >= 3 + 3 + 1 + 3 and "slave.py" in processes
    files = [path for path in Path(here.folder).rglob("*") if path.is_file() and not is_theirs(path)]
    assert {"audit.jsonl", "master.log", "journal.db", "env.ini"} <= {path.name for path in files}
    for secret, owner in found.items():
        assert secret not in processes, f"a secret of {owner} in a process"
        assert not [path for path in files if secret.encode() in path.read_bytes()], f"a secret of {owner}"
