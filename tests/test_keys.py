"""The keys of master and nodes: who may read them, who is let in, and the words for everybody else."""

import json
import os
from pathlib import Path

import pytest

from concurrent_swarm import components, rpc

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
    keyring.check()


def test_keys_are_made_once(keyring, tmp_path):
    again = rpc.Keyring(keyring.folder)
    assert (again.public_key, again.secret_key) == (keyring.public_key, keyring.secret_key)
    assert rpc.NodeKeys(str(tmp_path / "n")).public_key == rpc.NodeKeys(str(tmp_path / "n")).public_key


@pytest.mark.parametrize("name", [".", "master.json", "authorized", "slave.access"])
def test_a_file_that_others_can_read_is_refused_with_the_chmod_line(keyring, tmp_path, name):
    enrol(keyring, tmp_path)
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
    assert keyring.role_of("x" * 40) is None


def test_enrolling_twice_leaves_one_line(keyring, tmp_path):
    enrol(keyring, tmp_path)
    enrol(keyring, tmp_path)
    assert Path(keyring.folder, "authorized").read_text().count("\n") == 1


def test_another_keyring_over_the_same_folder_sees_the_change(keyring, tmp_path):
    other = rpc.Keyring(keyring.folder)
    keys, _ = enrol(keyring, tmp_path)
    assert other.role_of(keys.public_key) == "slave"


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
    assert keyring.role_of(keys.public_key) is None
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
    assert rpc.Keyring(keyring.folder).role_of(keys.public_key) == "slave"
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
