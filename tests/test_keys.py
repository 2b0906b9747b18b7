"""The keys of master and nodes: who may read them, who is let in and to what, and the words for everybody else."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CHECKOUT, at_once, in_time, wait_until

from concurrent_swarm import components, master, rpc

ADDRESSES = {"http": "127.0.0.1:8080", "tcp": "127.0.0.1:5555", "ipc": "/nowhere/socket"}


@pytest.fixture
def keyring(tmp_path):
    made = rpc.Keyring(str(tmp_path / "keys"))
    made.write_access(ADDRESSES)
    return made


def access(keyring, role="slave"):
    return rpc.Access.load(os.path.join(keyring.folder, f"{role}.access"))


def enrol(keyring, folder, role="slave", name="n1"):
    keys, ticket = rpc.NodeKeys(str(folder / name)), access(keyring, role)
    return keys, keys.accept(ticket, keyring.enrol(keys.enrolment(ticket, name), ADDRESSES))


def test_everything_in_the_folder_is_private(keyring, tmp_path):
    enrol(keyring, tmp_path)
    assert os.stat(keyring.folder).st_mode & 0o777 == 0o700
    assert {os.stat(entry.path).st_mode & 0o777 for entry in os.scandir(keyring.folder)} == {0o600}
    rpc.check_keys(keyring.folder)


def test_keys_are_made_once(keyring, tmp_path):
    again = rpc.Keyring(keyring.folder)
    assert (again.public_key, again.secret_key) == (keyring.public_key, keyring.secret_key)
    assert rpc.NodeKeys(str(tmp_path / "n")).public_key == rpc.NodeKeys(str(tmp_path / "n")).public_key


@pytest.mark.parametrize(
    "name", [".", "master.json", "authorized", "revoked", "invitations", "token.json", "client.access", "slave.access"]
)
def test_a_file_that_others_can_read_is_refused_with_the_chmod_line(keyring, tmp_path, name):
    enrol(keyring, tmp_path)
    keyring.token()
    keyring.revoke("nobody")
    path = os.path.normpath(os.path.join(keyring.folder, name))
    os.chmod(path, 0o755 if name == "." else 0o644)
    with pytest.raises(components.Error) as caught:
        access(keyring) if name == "slave.access" else rpc.Keyring(keyring.folder)
    assert caught.value.fix == f"chmod {'700' if name == '.' else '600'} {path}"
    with pytest.raises(components.Error, match="does not listen on"):
        rpc.require_keys("0.0.0.0", keyring)


@pytest.mark.parametrize(
    "host, alone", [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback_is_known(host, alone):
    assert rpc.is_loopback(host) is alone


def test_enrolment_gives_a_role_a_name_and_the_addresses(keyring, tmp_path):
    keys, addresses = enrol(keyring, tmp_path, "client")
    assert addresses == ADDRESSES
    assert keyring.entry(keys.public_key) == ("client", "n1")
    assert keyring.entry("x" * 40) is None


def test_enrolling_twice_leaves_one_line(keyring, tmp_path):
    enrol(keyring, tmp_path)
    enrol(keyring, tmp_path)
    assert Path(keyring.folder, "authorized").read_text().count("\n") == 1


def test_another_keyring_over_the_same_folder_sees_the_change(keyring, tmp_path):
    other = rpc.Keyring(keyring.folder)
    keys, _ = enrol(keyring, tmp_path)
    assert other.entry(keys.public_key)[0] == "slave"


@pytest.mark.parametrize("field", ["role", "public_key", "name", "nonce", "time", "mac"])
@pytest.mark.parametrize("value", [None, "admin", 7, [], "ü"])
def test_a_changed_enrolment_is_refused(keyring, tmp_path, field, value):
    request = rpc.NodeKeys(str(tmp_path / "n")).enrolment(access(keyring), "n")
    with pytest.raises(components.Error, match="wrong key"):
        keyring.enrol({**request, field: value})


def test_a_wrong_clock_is_told_the_right_time(keyring, tmp_path):
    request = rpc.NodeKeys(str(tmp_path / "n"), clock=lambda: 0.0).enrolment(access(keyring), "n")
    with pytest.raises(components.Error, match=r"the master's says 20\d\d-"):
        keyring.enrol(request)


@pytest.mark.parametrize("name", ["a b", "", "x" * 65, "a\nb"])
def test_an_odd_name_is_refused(keyring, tmp_path, name):
    with pytest.raises(components.Error, match="no name"):
        keyring.enrol(rpc.NodeKeys(str(tmp_path / "n")).enrolment(access(keyring), name))


def test_a_revoked_key_may_not_enrol_again(keyring, tmp_path):
    keys, _ = enrol(keyring, tmp_path)
    keyring.revoke(keys.public_key)
    assert keyring.entry(keys.public_key) is None
    with pytest.raises(components.Error, match="was revoked"):
        enrol(rpc.Keyring(keyring.folder), tmp_path)


def test_a_key_has_one_role(keyring, tmp_path):
    enrol(keyring, tmp_path, "client")
    with pytest.raises(components.Error, match="is a client key, it cannot be a slave key"):
        enrol(keyring, tmp_path, "slave")


def test_removed_lines_are_reported_once(keyring, tmp_path):
    keys, _ = enrol(keyring, tmp_path)
    assert keyring.drop_removed() == set()
    Path(keyring.folder, "authorized").write_text("")
    assert keyring.drop_removed() == {keys.public_key}
    assert keyring.drop_removed() == set()


def test_a_broken_line_is_left_out_and_said(keyring, tmp_path, caplog):
    keys, _ = enrol(keyring, tmp_path)
    with open(os.path.join(keyring.folder, "authorized"), "a") as file:
        file.write("nonsense\n")
    assert rpc.Keyring(keyring.folder).entry(keys.public_key)[0] == "slave"
    assert "authorized line 2" in caplog.text


def test_a_forged_answer_is_refused(keyring, tmp_path):
    keys, ticket = rpc.NodeKeys(str(tmp_path / "n")), access(keyring)
    answer = keyring.enrol(keys.enrolment(ticket, "n"), ADDRESSES)
    with pytest.raises(components.Unreachable, match="not signed by this master"):
        keys.accept(ticket, {**answer, "addresses": {"tcp": "evil:1"}})
    keys.enrolment(ticket, "n")  # a new nonce: the old answer does not fit
    with pytest.raises(components.Unreachable):
        keys.accept(ticket, answer)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"version": 2}', '{"version": 1, "role": "king"}'])
def test_a_damaged_access_file_is_named(keyring, damage):
    path = os.path.join(keyring.folder, "slave.access")
    with open(path, "w") as file:
        file.write(damage)
    with pytest.raises(components.Error) as caught:
        rpc.Access.load(path)
    assert path in caught.value.what and caught.value.fix


def test_a_missing_access_file_says_how_to_get_one(tmp_path):
    with pytest.raises(components.Error, match="there is no access file"):
        rpc.Access.load(str(tmp_path / "none"))


def test_no_secret_is_in_a_repr(keyring, tmp_path):
    keys, _ = enrol(keyring, tmp_path)
    ticket = access(keyring)
    shown = repr([keyring, keys, ticket, keys.credentials(ticket)])
    secret = json.loads((tmp_path / "n1" / "node.json").read_text())["secret_key"]
    assert not any(hidden in shown for hidden in (secret, keyring.secret_key, ticket.secret))


def test_ipc_is_preferred_only_in_a_private_folder_of_ours(tmp_path):
    path = tmp_path / "socket"
    path.touch()
    os.chmod(tmp_path, 0o700)
    assert rpc.preferred_address({"ipc": str(path), "tcp": "h:1"}) == f"ipc://{path}"
    os.chmod(tmp_path, 0o755)
    assert rpc.preferred_address({"ipc": str(path), "tcp": "h:1"}) == "tcp://h:1"
    with pytest.raises(components.Unreachable, match="is not here"):
        rpc.preferred_address({"ipc": str(path)})


def test_a_socket_file_in_an_open_folder_is_refused(keyring, tmp_path):
    os.chmod(tmp_path, 0o755)
    channel = rpc.Channel(keyring)
    with pytest.raises(components.Error, match="can be reached by others"):
        channel.bind_ipc(str(tmp_path / "socket"))
    channel.close()


# -- invitations ---------------------------------------------------------------------------------------------


def invited(keyring, tmp_path, role="slave", seconds=3600.0, once=False, file="invited.access"):
    made, path = keyring.invite(role, seconds, once, str(tmp_path / file))
    assert os.stat(path).st_mode & 0o777 == 0o600
    return made, rpc.Access.load(path)


def join(keyring, folder, ticket, name="n1", node="n1"):
    keys = rpc.NodeKeys(str(folder / node))
    return keys, keys.accept(ticket, keyring.enrol(keys.enrolment(ticket, name), ADDRESSES))


def password_of(keys, ticket):
    socket = SimpleNamespace()
    keys.credentials(ticket).dress(socket, "ipc://x")
    return [socket.plain_username, socket.plain_password]


def gets_in(keyring, keys, ticket):
    """Whether the socket file lets in who knows this access file's secret."""
    return keyring.admit(b"PLAIN", password_of(keys, ticket)) == keys.public_key


def test_an_invitation_for_one_lets_in_one_who_may_come_back(keyring, tmp_path):
    _, ticket = invited(keyring, tmp_path, once=True)
    keys, _ = join(keyring, tmp_path, ticket)
    join(keyring, tmp_path, ticket)
    assert gets_in(keyring, keys, ticket)
    with pytest.raises(components.Error, match="lets nobody in any more: it was for one node"):
        join(keyring, tmp_path, ticket, node="n2")
    keyring.revoke(keys.public_key)
    with pytest.raises(components.Error, match="lets nobody in any more: it was for one node"):
        join(keyring, tmp_path, ticket, node="n2")


def test_an_invitation_ends_with_its_time_and_who_came_by_it_stays(tmp_path):
    now = [time.time()]
    keyring = rpc.Keyring(str(tmp_path / "keys"), lambda: now[0])
    keyring.write_access(ADDRESSES)
    _, ticket = invited(keyring, tmp_path, seconds=100)
    keys, _ = join(keyring, tmp_path, ticket)
    now[0] += 101
    with pytest.raises(components.Error, match="its time was over at 20"):
        join(keyring, tmp_path, ticket, node="n2")
    join(keyring, tmp_path, ticket)
    assert gets_in(keyring, keys, ticket)


def test_an_invitation_is_for_its_role_alone(keyring, tmp_path):
    _, ticket = invited(keyring, tmp_path, "client")
    ticket.role = "admin"
    with pytest.raises(components.Error, match="wrong key"):
        join(keyring, tmp_path, ticket)


def test_a_node_that_came_by_an_earlier_secret_stays_in_when_a_later_one_ends(keyring, tmp_path):
    node = rpc.NodeKeys(str(tmp_path / "n"))
    keyring.write_access(ADDRESSES)
    for _ in range(3):
        access = rpc.Access.load(os.path.join(keyring.folder, "slave.access"))
        keyring.rotate()
        assert (keyring.entry(node.public_key) is None) or keyring.enrol(node.enrolment(access, "node"))
        access = rpc.Access.load(os.path.join(keyring.folder, "slave.access"))
        assert keyring.enrol(node.enrolment(access, "node"))["name"] == "node"


def test_a_key_is_revoked_whatever_the_file_ends_with(keyring, tmp_path):
    keyring.write_access(ADDRESSES)
    access = rpc.Access.load(os.path.join(keyring.folder, "client.access"))
    nodes = [rpc.NodeKeys(str(tmp_path / name)) for name in "ab"]
    for node in nodes:
        keyring.enrol(node.enrolment(access, "node"))
    path = os.path.join(keyring.folder, "revoked")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(nodes[0].public_key)  # by hand, and no line's end
    keyring.revoke(nodes[1].public_key)
    assert [keyring.entry(node.public_key) for node in nodes] == [None, None]


def test_the_name_of_a_revoked_node_is_not_given_to_who_comes_by_another_invitation(keyring, tmp_path):
    keyring.write_access(ADDRESSES)
    alice, bob = (rpc.NodeKeys(str(tmp_path / name)) for name in ("alice", "bob"))
    standing = rpc.Access.load(os.path.join(keyring.folder, "client.access"))
    keyring.enrol(alice.enrolment(standing, "alice"))
    keyring.revoke(alice.public_key)
    _, path = keyring.invite("client", 60, True, str(tmp_path / "bob.access"))
    assert keyring.enrol(bob.enrolment(rpc.Access.load(path), "alice"))["name"] == "alice-2"


def test_a_revoked_invitation_lets_nobody_in(keyring, tmp_path):
    made, ticket = invited(keyring, tmp_path)
    keyring.revoke(made.name)
    with pytest.raises(components.Error, match="it was revoked"):
        join(keyring, tmp_path, ticket)


def test_after_a_rotation_only_the_new_files_let_in_and_who_is_in_stays(keyring, tmp_path):
    running = rpc.Keyring(keyring.folder)  # of the master, while another process rotates
    old, (_, ticket) = access(keyring), invited(keyring, tmp_path)
    keys, _ = enrol(running, tmp_path)
    keyring.rotate()
    for ended in (old, ticket):
        with pytest.raises(components.Error, match="has made new secrets since"):
            join(running, tmp_path, ended, node="n2")
    join(running, tmp_path, old)
    assert gets_in(running, keys, old)
    assert access(keyring).addresses == ADDRESSES and access(keyring).secret != old.secret
    join(running, tmp_path, access(keyring), node="n2")


def test_a_node_comes_back_with_its_own_file_or_one_that_counts_and_with_no_other(keyring, tmp_path):
    _, passing = invited(keyring, tmp_path)
    keys, _ = enrol(keyring, tmp_path)
    old = access(keyring)
    keyring.rotate()
    new = access(keyring)
    for ticket in (old, new, old):
        join(keyring, tmp_path, ticket)
        assert gets_in(keyring, keys, ticket)
    assert not gets_in(keyring, keys, passing) and not gets_in(keyring, keys, access(keyring, "client"))
    assert len(keyring.nodes()) == 1


def test_nobody_can_take_the_file_of_another_node_out_of_force(keyring, tmp_path):
    _, ours = invited(keyring, tmp_path, once=True)
    keys, _ = join(keyring, tmp_path, ours)
    _, theirs = invited(keyring, tmp_path, file="theirs.access")
    join(keyring, tmp_path, theirs)  # with our public key, which is no secret
    join(keyring, tmp_path, ours)
    assert gets_in(keyring, keys, ours)


def test_two_processes_see_the_same_secrets_from_the_first_start(keyring, tmp_path):
    other = rpc.Keyring(keyring.folder)
    _, ticket = invited(other, tmp_path)
    join(keyring, tmp_path, ticket)
    assert other.access("slave", {}) == keyring.access("slave", {})


def test_a_name_belongs_to_who_came_first_by_an_invitation(keyring, tmp_path):
    """Otherwise a client could call itself as another, and fetch the work of that."""
    _, ours = invited(keyring, tmp_path, "client")
    _, theirs = invited(keyring, tmp_path, "client", file="theirs.access")
    by = {node: join(keyring, tmp_path, ticket, "alice", node)[0].public_key
          for node, ticket in [("a", ours), ("b", ours), ("c", theirs), ("d", access(keyring, "client"))]}  # fmt: skip
    by["slave"] = join(keyring, tmp_path, access(keyring), "alice", "e")[0].public_key
    by["admin"] = join(keyring, tmp_path, access(keyring, "admin"), "alice", "f")[0].public_key
    names = {node: keyring.entry(key)[1] for node, key in by.items()}
    assert names == {"a": "alice", "b": "alice", "c": "alice-2", "d": "alice-3", "slave": "alice", "admin": "alice-3"}


def test_a_broken_line_of_invitations_lets_nobody_in_and_stops_nothing(keyring, tmp_path):
    with open(os.path.join(keyring.folder, "invitations"), "a") as file:
        file.write("nonsense\nx king secret 99999999999.0 many\nx slave secret never many\n")
    assert rpc.Keyring(keyring.folder).invitations() == {}
    enrol(keyring, tmp_path)


def test_an_invitation_shows_no_secret(keyring, tmp_path):
    made, ticket = invited(keyring, tmp_path)
    assert ticket.secret not in repr([made, keyring.invitations(), keyring.nodes()])


# -- doors ---------------------------------------------------------------------------------------------------


@pytest.fixture
def doors(keyring, tmp_path):
    """A channel that is bound to a socket file and a port."""
    (tmp_path / "run").mkdir(mode=0o700)
    channel = rpc.Channel(keyring)
    channel.bind_ipc(str(tmp_path / "run" / "s"))
    channel.bind_tcp("127.0.0.1")
    yield channel
    channel.close()


def test_a_key_that_nobody_knows_is_kept_out_at_each_door_and_that_is_no_news(doors, caplog):
    heard = []
    doors.audit = lambda *what, **facts: heard.append(what)
    doors.check_doors()
    assert not caplog.records and not heard and not doors.counts["unknown keys"]


@pytest.mark.parametrize("door", ["ipc", "tcp"])
def test_a_master_whose_door_lets_strangers_in_does_not_start(doors, keyring, door):
    doors._doors = [address for address in doors._doors if address.startswith(door)]
    keyring.admit = lambda mechanism, secret: "anybody"
    with pytest.raises(components.Error, match="lets in keys that nobody knows") as caught:
        doors.check_doors()
    assert len(doors._doors) == 1 and door in caught.value.what


# -- roles ---------------------------------------------------------------------------------------------------

OWNERS, SLAVES = {"client", "admin"}, {"slave"}
WHO_MAY = {
    **dict.fromkeys(["bundle", "submit", "settled", "cancel", "cancel_task", "push_tasksystem", "cancel_tasksystem",
                     "step", "work_settled", "get_stats", "goodbye", "detach", "collect", "publish",
                     "rest_of_trace"], OWNERS),
    **dict.fromkeys(["result", "given_back", "worker_lost", "output", "fetch", "preparing", "resources", "leaving",
                     "publish_for", "not_granted", "vitals"], SLAVES),
    "fetch_shared": OWNERS | SLAVES,
}  # fmt: skip
ADMINISTRATORS = {"config.set", "slave.set_workers", "slave.drain", "slave.remove", "system.cancel", "system.pause",
                  "system.step", "ui.view", "app.upload", "app.start", "app.stop", "app.runs", "stats.reset",
                  "log.tail"}  # fmt: skip
EVERYBODY = {"rpc.discover", "ping", "status", "stats", "stats.get", "config", "config.items", "enrol", "enrol.check",
             "slaves", "systems", "task.explain", "ui.poll", "ui.slave", "ui.task", "errors.get"}  # fmt: skip


@pytest.fixture
def exposed(keyring):
    """A master's channel with all methods that it has for nodes; none of them can do anything."""
    channel, node = rpc.Channel(keyring), object.__new__(master.MasterNode)
    for expose in [name for name in vars(master.MasterNode) if name.startswith("_expose_")]:
        if "channel" in getattr(master.MasterNode, expose).__annotations__:
            getattr(node, expose)(channel)
    channel.ran, channel.sent = [], []
    for name, method in channel.methods.items():
        channel.methods[name] = method._replace(function=lambda *_, name=name: channel.ran.append(name))
    channel.send = lambda peer, call, parts=(): channel.sent.append(call)
    yield channel
    channel.close()


def test_the_table_of_who_may_call_what_knows_every_method_of_the_compute_channel(exposed):
    assert set(exposed.methods) == set(WHO_MAY)


@pytest.mark.parametrize("role", ["slave", "client", "admin"])
@pytest.mark.parametrize("name", WHO_MAY)
def test_a_method_of_the_compute_channel_is_run_for_the_roles_that_may_call_it_alone(exposed, name, role):
    heard = []
    exposed.audit = lambda event, who, **facts: heard.append((event, who.name))
    peer = rpc.Peer(rpc.Session(bytes(8), rpc.TIMING, 0.0), role, "key", "n1")
    exposed.dispatch(peer, [name, *range(exposed.methods[name].few)], [])
    if role in WHO_MAY[name]:
        assert (exposed.ran, exposed.sent, heard) == ([name], [], [])
    else:
        ((answer, why),) = exposed.sent
        assert (exposed.ran, heard) == ([], [("refuse", "n1")])
        assert (answer, why["c"]) == (f"{name}_failed", rpc.NOT_ALLOWED) and f"a {role} may not" in why["m"]


def test_every_method_that_changes_something_needs_an_administrator_by_http(swarm):
    here = swarm(slaves=0)
    found = {each["name"]: each["roles"] for each in here.proxy.rpc.discover()["methods"]}
    assert found == {**{name: ["admin"] for name in ADMINISTRATORS}, **dict.fromkeys(EVERYBODY)}
    for name in ADMINISTRATORS:
        with pytest.raises(rpc.RpcError) as caught:
            rpc.Proxy(here.address)._request(name, ["x"] * 5)
        assert caught.value.code == rpc.NOT_AUTHENTICATED


# -- by hand, while the master runs --------------------------------------------------------------------------


def keep(here, *words, code=0):
    """`master.py keys …` on the folder of a master."""
    command = [sys.executable, str(CHECKOUT / "master.py"), "keys", "--env", str(here.master.folder), *map(str, words)]
    done = subprocess.run(command, env=here.environ(), cwd=here.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def listed(here, role):
    """(fingerprint, name) of the nodes of a role."""
    return re.findall(rf"^{role} +(\w{{12}})  (\S+)  since", keep(here, "list"), re.MULTILINE)


@pytest.mark.slow
def test_a_revoked_slave_is_out_in_two_seconds_and_the_others_go_on(swarm):
    here = swarm(slaves=2, workers=1)
    first, second = here.slaves
    gone = next(row["key"] for row in here.proxy.slaves() if row["name"] == here.name_of(first))
    assert len(listed(here, "slave")) == 2 and "name one key, or add --all" in keep(
        here, "revoke", listed(here, "slave")[0][1], code=2)
    client = here.start_client("plain.py", "--app", "Many", "--set", "plain.count=20000", "--json")
    assert "is revoked" in keep(here, "revoke", gone)
    said = time.monotonic()
    wait_until(lambda: gone not in [row["key"] for row in here.proxy.slaves()], "it is out")
    assert in_time(time.monotonic() - said, 2.0)
    assert [row["key"] for row in here.proxy.slaves()] == [key for key, _ in listed(here, "slave")]
    assert first.wait().code == 3 and "key" in first.err
    assert client.wait().code == 0 and second.code is None
    assert [key for key, _ in listed(here, "slave")] != [gone]
    assert "nobody here is" in keep(here, "revoke", gone, code=2)


@pytest.mark.slow
@at_once
def test_one_node_comes_by_an_invitation_for_one(swarm):
    here = swarm(slaves=1, workers=1)
    path = keep(here, "invite", "client", "--once", "--hours", "0.5").strip()
    assert Path(path).parent == Path(here.folder) and os.stat(path).st_mode & 0o777 == 0o600
    for _ in range(2):
        assert here.run_client("hello.py", "--access", path, "--env", f"{here.folder}/mine").code == 0
    other = here.run_client("hello.py", "--access", path, "--env", f"{here.folder}/other")
    assert other.code == 3 and "it was for one node" in other.out + other.err
    assert "once, until" in keep(here, "list") and "is used" in keep(here, "list")
    assert "cannot be written" in keep(here, "invite", "slave", "--out", path, code=1)
    for words in (["slave", "--hours", "0"], ["slave", "--hours", "nan"], ["king"], []):
        assert "an invitation is for" in keep(here, "invite", *words, code=2)


def copied(here, role, *without):
    """A copy of an access file, as another machine has it."""
    content = json.loads((here.master.folder / "keys" / f"{role}.access").read_text())
    for name in without:
        del content["addresses"][name]
    path = Path(here.folder, f"copy-{role}.access")
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    return path


def restart(here):
    """The master once more, on the same ports."""
    addresses = here.proxy.status()["addresses"]
    port, compute_port = (addresses[name].rpartition(":")[2] for name in ("http", "tcp"))
    here.master.ends(signal.SIGTERM)
    here.start_master("--set", f"master.compute_port={compute_port}", port=port)
    return f"127.0.0.1:{compute_port}"


def all_here(here, count):
    return wait_until(lambda: len(here.proxy.slaves()) == count, f"{count} slaves are here")


@pytest.mark.slow
@at_once
def test_after_a_rotation_slaves_by_socket_file_and_by_port_come_back_to_a_master_that_restarts(swarm):
    here = swarm(slaves=1, workers=1)
    old, compute = copied(here, "slave", "ipc"), here.proxy.status()["addresses"]["tcp"]
    here.start_slave("--access", old, "--set", f"node.compute_address={compute}")
    keep(here, "rotate")
    assert len(here.proxy.slaves()) == 2
    restart(here)
    all_here(here, 2)
    assert [slave.code for slave in here.slaves] == [None, None]
    late = here.start("slave", "--master", here.address, "--access", old, "--wait", "0.2", ready=False)
    assert late.wait().code == 3 and "has made new secrets" in late.err


@pytest.mark.slow
@at_once
def test_a_master_with_a_new_key_gets_its_far_slaves_back_with_the_new_access_file(swarm):
    here = swarm(slaves=0)
    path, compute = copied(here, "slave", "ipc"), here.proxy.status()["addresses"]["tcp"]
    slave = here.start_slave("--access", path, "--set", f"node.compute_address={compute}")
    before = json.loads(path.read_text())["public_key"]
    keep(here, "rotate", "--own")
    assert json.loads(copied(here, "slave", "ipc").read_text())["public_key"] == before
    restart(here)
    wait_until(lambda: "does not let this node speak" in slave.err, "the slave sees that it is another")
    assert here.proxy.slaves() == []
    assert json.loads(copied(here, "slave", "ipc").read_text())["public_key"] != before
    all_here(here, 1)
    assert here.run_client("hello.py").code == 0 and slave.code is None


def test_keys_of_a_folder_without_a_master_are_a_usage_error(tmp_path):
    here = SimpleNamespace(master=SimpleNamespace(folder=tmp_path), environ=lambda: None, folder=tmp_path)
    assert "no master has run there" in keep(here, "list", code=2)
