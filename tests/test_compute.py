"""The compute channel: frames and sessions without a socket, then endpoints over real sockets."""

import collections
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from contextlib import closing, contextmanager, suppress

import pytest
from conftest import PATIENCE, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from concurrent_swarm import components, rpc

SID = b"sessions"
FAST = rpc.Timing(
    beat=0.05, dead=0.6, probe=0.03, ack=0.01, asleep=0.3, hello=0.1, retry=0.02, retry_max=0.2, held=0.005
)

# -- frames --------------------------------------------------------------------------------------------------

calls = st.lists(st.none() | st.integers(-(2**60), 2**60) | st.text(max_size=8), max_size=4).map(
    lambda params: ["m", *params]
)
blobs = st.lists(st.binary(max_size=50) | st.just(b"x" * rpc.INLINE), max_size=5)


@given(calls, blobs, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_what_is_packed_is_unpacked(call, parts, number, ack):
    message = rpc.unpack(rpc.pack(rpc.DATA, SID, number, ack, call, parts))
    assert message == (rpc.DATA, SID, number, ack, call, parts)


def test_a_large_part_is_a_frame_of_its_own_and_not_copied():
    large = b"x" * rpc.INLINE
    frames = rpc.pack(rpc.DATA, SID, 1, 0, ["m"], [b"small", large, memoryview(b"view")])
    assert len(frames) == 2 and frames[1] is large
    assert rpc.unpack(frames).parts == [b"small", large, b"view"]


@pytest.mark.parametrize("parts", [[], [b"abc", b""], [b"y" * rpc.INLINE, b"z"]])
def test_a_damaged_byte_is_a_protocol_error_or_another_message(parts):
    frames = rpc.pack(rpc.DATA, SID, 1, 0, ["method", 1, "two", {"three": [4]}], parts)
    for at in range(min(len(frames[0]), 200)):
        for value in range(256):
            damaged = bytearray(frames[0])
            damaged[at] = value
            try:
                rpc.unpack([bytes(damaged), *frames[1:]])
            except rpc.ProtocolError:
                continue


@given(st.lists(st.tuples(calls, st.lists(st.binary(max_size=50), max_size=3)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_is_grouped_is_taken_apart_again(several):
    message = rpc.unpack(rpc.pack(rpc.DATA, SID, 1, 0, *rpc._grouped(collections.deque(several))))
    assert rpc.calls_in(message.call, message.parts) == several


@pytest.mark.parametrize("group, parts", [
    ([0], []), ([0, ["m"], 0], []), ([1, ["m"]], []), ([0, ["m"]], [b"x"]), ([-1, ["m"], 2, ["m"]], [b"x"]),
    ([0, []], []), ([0, [1]], []), ([0, "m"], []), ([0, ["m"], "n", ["m"]], []), ([0, ["m"], True, ["m"]], [b"x"]),
])  # fmt: skip
def test_an_odd_group_of_calls_is_a_protocol_error(group, parts):
    with pytest.raises(rpc.ProtocolError):
        rpc.unpack(rpc.pack(rpc.DATA, SID, 1, 0, group, parts))


def test_only_a_message_with_data_holds_a_group():
    with pytest.raises(rpc.ProtocolError, match="several calls"):
        rpc.unpack(rpc.pack(rpc.BEAT, SID, 1, 0, [0, ["beat"]]))


@given(st.lists(st.binary(max_size=80), max_size=4))
@settings(max_examples=300, deadline=None)
def test_random_frames_are_a_protocol_error(frames):
    with pytest.raises(rpc.ProtocolError):
        rpc.unpack(frames)
    head = struct.pack("<2sBB8sQQ", b"CS", rpc.PROTOCOL, 3, SID, 1, 0)
    with suppress(rpc.ProtocolError):
        rpc.unpack([head + (frames[0] if frames else b""), *frames[1:]])


def body(*texts):
    return struct.pack(f"<H{len(texts)}I", len(texts), *map(len, texts)) + b"".join(texts)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [body()],
        [body(b"{}")],
        [body(b"[]")],
        [body(b"[1]")],
        [body(b'["m"] ')],
        [body(b'["m", NaN]')],
        [body(b"[" * 100_000)],
        [body(b'["\xff"]')],
        [body(b'["m"]') + b"x"],
        [body(b'["m"]')[:-1]],
        [body(b'["m"]'), b"extra"],
        [struct.pack("<H2I", 2, 5, rpc.FRAMES | 1) + b'["m"]'],
        [struct.pack("<HI", 1, 1_000_000_000) + b'["m"]'],
        [struct.pack("<H4097I", 4097, 5, *[0] * 4096) + b'["m"]'],
    ],
)
def test_an_odd_body_is_a_protocol_error(frames):
    head = struct.pack("<2sBB8sQQ", b"CS", rpc.PROTOCOL, 3, SID, 1, 0)
    with pytest.raises(rpc.ProtocolError):
        rpc.unpack([head + frames[0], *frames[1:]] if frames else [])


def test_another_protocol_number_is_named_with_ours():
    frame = bytearray(rpc.pack(rpc.DATA, SID, 1, 0, ["m"])[0])
    frame[2] = 7
    with pytest.raises(rpc.VersionMismatch, match=f"protocol 7.*protocol {rpc.PROTOCOL}"):
        rpc.unpack([bytes(frame)])


def test_what_is_too_large_or_too_many_is_refused_before_it_is_sent(monkeypatch):
    with pytest.raises(rpc.ProtocolError, match="4097 parts"):
        rpc.pack(rpc.DATA, SID, 1, 0, ["m"], [b""] * 4096)
    assert rpc.MAX_PARTS * (rpc.INLINE - 1) <= rpc.MAX_MESSAGE, "small parts are never too much"
    monkeypatch.setattr(rpc, "MAX_MESSAGE", rpc.INLINE)
    with pytest.raises(rpc.ProtocolError, match="split the work"):
        rpc.pack(rpc.DATA, SID, 1, 0, ["m"], [bytes(rpc.INLINE)])


# -- sessions ------------------------------------------------------------------------------------------------


class Network:
    """Two sessions and a network that loses, repeats and reorders, by a seed and with a clock of its own."""

    def __init__(self, seed, loss=0.2):
        self.random, self.now, self.loss = random.Random(seed), 0.0, loss
        self.ends = [rpc.Session(SID, rpc.TIMING, 0.0) for _ in range(2)]
        self.flying = []  # (arrival, order, to, frames)
        self.got = ([], [])

    def send(self, to, frames):
        for _ in range(self.random.choice([1, 1, 1, 2])):
            if self.random.random() >= self.loss:
                arrival = self.now + self.random.random() * 0.3
                self.flying.append((arrival, self.random.random(), to, frames))

    def say(self, end, call):
        frames = self.ends[end].wrap(call)
        if frames is not None and self.random.random() < 0.8:  # else the socket is full
            self.send(1 - end, frames)
            self.ends[end].sent(self.now)

    def turn(self):
        self.now += 0.05
        arrived = sorted(item for item in self.flying if item[0] <= self.now)
        self.flying = [item for item in self.flying if item[0] > self.now]
        for _, _, to, frames in arrived:
            self.take(to, rpc.unpack(frames))
        for end, session in enumerate(self.ends):
            while (frames := session.due()) is not None:
                self.send(1 - end, frames)
                session.sent(self.now)
            if (frames := session.beat(self.now)) is not None:
                self.send(1 - end, frames)
                session.beat_sent(self.now)

    def take(self, to, message):
        session = self.ends[to]
        if message.kind == rpc.BEAT:
            session.heard(message.ack, self.now)
            session.beaten(message.number, message.call, self.now)
        elif session.accept(message.number, message.ack, self.now):
            self.got[to].append(message.call[1])


@pytest.mark.parametrize("block", range(10))
def test_a_lossy_network_delivers_everything_once_and_in_order(block):
    for seed in range(block * 20, block * 20 + 20):
        net = Network(seed)
        for n in range(100):
            net.say(n % 2, ["m", n])
            if net.random.random() < 0.3:
                net.turn()
        while any(end.pending for end in net.ends):
            net.turn()
            assert net.now < 600, seed
        assert net.got == (list(range(1, 100, 2)), list(range(0, 100, 2))), seed
        assert not any(end.pending_bytes for end in net.ends)


def test_a_quiet_session_beats_once_a_second():
    session = rpc.Session(SID, rpc.TIMING, 0.0)
    assert session.beat(0.9) is None
    assert rpc.unpack(session.beat(1.0)).call == ["beat"]
    session.beat_sent(1.0)
    assert session.beat(1.9) is None and session.deadline(1.9) == 2.0


def test_messages_are_acknowledged_after_64_or_a_tenth_of_a_second():
    session = rpc.Session(SID, rpc.TIMING, 0.0)
    session.accept(1, 0, 0.0)
    assert session.beat(0.05) is None
    assert rpc.unpack(session.beat(0.1)).ack == 1
    for number in range(2, 65):
        session.accept(number, 0, 0.0)
    assert rpc.unpack(session.beat(0.0)).ack == 64


def test_a_gap_is_asked_for_at_once_and_only_once():
    session = rpc.Session(SID, rpc.TIMING, 0.0)
    assert not session.accept(3, 0, 0.0)
    assert rpc.unpack(session.beat(0.0)).call == ["resend"]
    session.beat_sent(0.0)
    assert not session.accept(4, 0, 0.01)
    assert session.beat(0.01) is None


def test_an_acknowledgement_of_what_was_never_sent_is_a_protocol_error():
    with pytest.raises(rpc.ProtocolError, match="never sent"):
        rpc.Session(SID, rpc.TIMING, 0.0).heard(1, 0.0)


@pytest.mark.parametrize("text", [b"", b"-", b"[1,", b" ", b"nan", b'["beat"'])
def test_a_call_that_is_no_json_is_refused_in_words(text):
    envelope = rpc._ENVELOPE.pack(rpc.MAGIC, rpc.PROTOCOL, rpc.DATA, SID, 1, 0)
    with pytest.raises(rpc.ProtocolError, match="no JSON") as caught:
        rpc.unpack([rpc.pure_join_parts([text], envelope)])
    assert not caught.value.why.isdecimal()


# -- a small swarm -------------------------------------------------------------------------------------------


class Swarm:
    """A master's channel and links, turned by hand in one thread."""

    def __init__(self, folder, ipc=True):
        self.folder = folder
        os.chmod(folder, 0o700)
        self.keyring = rpc.Keyring(str(folder / "master"))
        self.links, self.lost, self.channel = [], [], None
        self.path = str(folder / "socket") if ipc else None
        self.port = 0
        self.start()

    def start(self):
        self.channel = rpc.Channel(self.keyring, timing=FAST)
        if self.path:
            self.channel.bind_ipc(self.path)
        self.port = self.channel.bind_tcp("127.0.0.1", self.port)
        self.addresses = {"tcp": f"127.0.0.1:{self.port}"} | ({"ipc": self.path} if self.path else {})
        self.channel.on_lost = lambda peer, reason: self.lost.append((peer, reason))
        self.got = []
        rpc.tcpremote(self.channel, "echo")(lambda endpoint, request, text: text)
        rpc.tcpremote(self.channel, "note")(lambda endpoint, request, n: self.got.append(n))
        rpc.tcpremote(self.channel, "size")(lambda endpoint, request: [len(part) for part in request.parts])
        rpc.tcpremote(self.channel, "crash")(lambda endpoint, request: 1 / 0)
        rpc.tcpremote(self.channel, "admins", roles=["admin"])(lambda endpoint, request: 1)

    def enrolled(self, role="slave", name="n1"):
        access = rpc.Access.load(self.access(role))
        keys = rpc.NodeKeys(str(self.folder / name))
        answer = self.keyring.enrol(keys.enrolment(access, name), self.addresses)
        keys.accept(access, answer)
        return keys.credentials(access)

    def access(self, role):
        self.keyring.write_access(self.addresses)
        return os.path.join(self.keyring.folder, f"{role}.access")

    def link(self, credentials=None, addresses=None, info=None):
        link = rpc.Link(credentials or self.enrolled(), info or {}, timing=FAST)
        link.answers, link.welcomes, link.errors, link.losses, link.got = [], [], [], [], []
        link.on_welcome = lambda info, fresh: link.welcomes.append(fresh)
        link.on_refused = link.errors.append
        link.on_lost = link.losses.append
        for name in ("echo", "size", "crash", "admins", "nothing", "note"):
            for kind in ("response", "failed"):
                register = rpc.tcpremote(link, f"{name}_{kind}")
                register(lambda endpoint, request, result: link.answers.append((request.method, result)))
        rpc.tcpremote(link, "note")(lambda endpoint, request, n: link.got.append(n))
        link.connect(addresses or self.addresses)
        self.links.append(link)
        return link

    def turn(self, master=True):
        poller = rpc.Poller()
        poller.register(self.channel.socket, select.POLLIN)
        for link in self.links:
            link.watch(poller)
        poller.poll(5)
        for end in [self.channel, *self.links] if master else self.links:
            end.receive()
            end.tick(time.monotonic())

    def until(self, condition, seconds=PATIENCE, master=True):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.turn(master)

    def pause(self, seconds, master=True):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn(master)

    def raw(self, credentials=None, address=None):
        """A DEALER with a node's keys and no manners."""
        dealer = self.links[0]._context.socket(5)
        dealer.linger = 0
        address = address or rpc.preferred_address(self.addresses)
        (credentials or self.links[0].credentials).dress(dealer, address)
        dealer.connect(address)
        return dealer

    def stop(self):
        for end in [*self.links, self.channel]:
            end.close()


@pytest.fixture
def swarm(tmp_path):
    with swarm_in(tmp_path) as made:
        yield made


@contextmanager
def swarm_in(folder, **options):
    made = Swarm(folder, **options)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("mechanism", ["ipc", "tcp"])
def test_a_call_is_answered_over(swarm, mechanism):
    link = swarm.link(addresses={mechanism: swarm.addresses[mechanism]})
    link.proxy().echo("hello")
    link.proxy().size(parts=[b"x", b"y" * 3_000_000])
    swarm.until(lambda: len(link.answers) == 2)
    assert link.answers == [("echo_response", "hello"), ("size_response", [1, 3_000_000])]
    (peer,) = swarm.channel.peers.values()
    assert (peer.role, peer.name, peer.key) == ("slave", "n1", link.credentials.public_key)
    assert link.state == "ready" and link.welcomes == [True]


def test_the_master_calls_a_node_without_waiting(swarm):
    link = swarm.link()
    swarm.channel.on_hello = lambda peer, info: swarm.channel.proxy(peer).note(info["n"])
    link.info["n"] = 5
    swarm.until(lambda: link.got == [5])


def gathering(swarm):
    """A link that is ready, in a turn of its loop that has several things to do."""
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    link.loop = rpc.Loop(lambda now: None)
    link.loop.crowded = True
    return link


def test_the_only_call_of_a_turn_is_sent_at_once(swarm):
    link = gathering(swarm)
    link.loop.crowded = False
    link.gather(link.master, ["note", 1], [])
    assert link.session.pending == 1
    swarm.until(lambda: swarm.got == [1])


def test_calls_of_one_turn_travel_as_one_message_and_in_order(swarm):
    link = gathering(swarm)
    for number in range(10):
        link.gather(link.master, ["note", number], [b"x"] * (number % 3))
    assert link.session.pending == 0 and link.master.unheard
    link.loop.step(0.0)
    assert link.session.pending == 1
    swarm.until(lambda: swarm.got == list(range(10)))


def test_a_call_that_is_not_gathered_does_not_overtake_those_that_are(swarm):
    link = gathering(swarm)
    link.gather(link.master, ["note", 0], [])
    link.call("note", 1)
    link.gather(link.master, ["note", 2], [bytes(2 * rpc.SMALL)])
    link.gather(link.master, ["note", 3], [])
    link.loop.step(0.0)
    assert link.session.pending == 3
    swarm.until(lambda: swarm.got == [0, 1, 2, 3])


def test_gathered_calls_do_not_wait_for_the_end_of_a_long_turn(swarm):
    link = gathering(swarm)
    for number in range(rpc.GATHERED):
        link.gather(link.master, ["note", number], [])
    assert link.session.pending == 1


def test_a_call_of_a_group_that_fails_is_answered_and_the_others_are_run(swarm):
    link = gathering(swarm)
    for call in (["note", 1], ["crash"], ["note", 2], ["echo", "x"]):
        link.gather(link.master, call, [])
    link.loop.step(0.0)
    swarm.until(lambda: len(link.answers) == 2)
    assert swarm.got == [1, 2] and [name for name, _ in link.answers] == ["crash_failed", "echo_response"]


def test_what_was_gathered_outlives_its_session_if_it_should(swarm):
    link = gathering(swarm)
    link.outlives = lambda call: call[0] == "note"
    swarm.channel.drop(swarm.channel.peers[link.session.id], "the test wants it")
    for number in range(2):
        link.gather(link.master, ["note", number], [b"x"])
    link.gather(link.master, ["echo", "lost"], [])
    link.loop.step(0.0)
    link.loop.crowded = True
    link.gather(link.master, ["note", 2], [])
    told = [call for call, _ in link.master.unsaid(link.outlives)]
    assert told == [["note", 0], ["note", 1], ["note", 2]]
    swarm.until(lambda: link.welcomes == [True, True] and swarm.got == [0, 1, 2])
    assert not link.answers


@pytest.mark.parametrize(
    "call, text",
    [
        (["nothing"], "no method 'nothing'"),
        (["echo"], "takes 1 to 1 parameters, not 0"),
        (["echo", 1, 2], "takes 1 to 1 parameters, not 2"),
        (["crash"], "ZeroDivisionError"),
        (["admins"], "a slave may not call 'admins'"),
    ],
)
def test_a_wrong_call_is_answered_and_the_channel_lives(swarm, call, text):
    link = swarm.link()
    link.call(*call)
    link.call("echo", "alive")
    swarm.until(lambda: len(link.answers) == 2)
    assert link.answers[0][0] == f"{call[0]}_failed" and text in link.answers[0][1]["m"]
    assert link.answers[1] == ("echo_response", "alive")


def test_an_answer_that_nobody_waits_for_is_not_answered(swarm):
    link = swarm.link()
    link.call("some_response", 1)
    link.call("echo", 1)
    swarm.until(lambda: link.answers)
    assert link.answers == [("echo_response", 1)] and swarm.channel.counts["unwanted answers"] == 1


# -- who may come in -----------------------------------------------------------------------------------------


def refusal(swarm, link):
    swarm.until(lambda: link.errors)
    swarm.pause(0.3)
    assert len(link.errors) == 1 and isinstance(link.errors[0], components.Unreachable)
    assert link.errors[0].why and link.errors[0].fix
    return str(link.errors[0])


@pytest.mark.parametrize("mechanism", ["ipc", "tcp"])
def test_a_key_that_was_never_enrolled_gets_a_sentence(swarm, mechanism):
    keys = rpc.NodeKeys(str(swarm.folder / "stranger"))
    credentials = keys.credentials(rpc.Access.load(swarm.access("slave")))
    link = swarm.link(credentials, {mechanism: swarm.addresses[mechanism]})
    assert "does not know this node's key" in refusal(swarm, link)


def test_a_refused_link_comes_in_once_its_key_is_enrolled(swarm):
    keys, access = rpc.NodeKeys(str(swarm.folder / "late")), rpc.Access.load(swarm.access("slave"))
    link = swarm.link(keys.credentials(access))
    swarm.until(lambda: link.errors)
    swarm.keyring.enrol(keys.enrolment(access, "late"))
    swarm.until(lambda: link.state == "ready")


def test_a_wrong_master_key_gets_a_sentence(swarm):
    credentials = swarm.enrolled()
    credentials._server_key = rpc.Keyring(str(swarm.folder / "other")).public_key
    link = swarm.link(credentials, {"tcp": swarm.addresses["tcp"]})
    assert "another key than this node expects" in refusal(swarm, link)


@pytest.mark.parametrize("mechanism", ["ipc", "tcp"])
def test_no_key_gets_a_sentence(swarm, mechanism):
    credentials = swarm.enrolled()
    credentials.dress = lambda socket, address: None
    link = swarm.link(credentials, {mechanism: swarm.addresses[mechanism]})
    assert "do not secure the connection in the same way" in refusal(swarm, link)


def test_a_wrong_password_on_the_socket_file_gets_a_sentence(swarm):
    credentials = swarm.enrolled()
    credentials._join = "guessed"
    assert "does not know this node's key" in refusal(swarm, swarm.link(credentials))


@pytest.mark.parametrize(("role", "wanted"), list(itertools.permutations(rpc.ROLES, 2)))
def test_a_key_of_one_role_is_refused_in_every_other_with_a_sentence(swarm, role, wanted):
    credentials = swarm.enrolled(role)
    credentials.role = wanted
    assert f"has a {role} key and wants to be '{wanted}'" in refusal(swarm, swarm.link(credentials))
    assert not swarm.channel.peers


@pytest.mark.parametrize("how", ["line removed", "revoked"])
def test_a_removed_key_ends_the_session_with_a_sentence(swarm, how):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    if how == "revoked":
        swarm.keyring.revoke(link.credentials.public_key)
    else:
        open(os.path.join(swarm.keyring.folder, "authorized"), "w").close()
    assert "does not know this node's key" in refusal(swarm, link)
    assert link.state == "lost" and [reason for _, reason in swarm.lost] == ["its key was removed"]


def test_an_error_of_on_hello_refuses_with_its_words(swarm):
    def too_old(peer, info):
        raise components.Error("Python 3.9 there, 3.13 here", "they must be equal", "install 3.13")

    swarm.channel.on_hello = too_old
    assert "Python 3.9 there" in refusal(swarm, swarm.link())
    assert not swarm.channel.peers


def test_another_protocol_is_refused_with_both_numbers(swarm, monkeypatch):
    link = swarm.link()
    real = link._post
    monkeypatch.setattr(link, "_post", lambda frames: real([frames[0][:2] + b"\x09" + frames[0][3:]]))
    assert "protocol 9" in refusal(swarm, link) and f"protocol {rpc.PROTOCOL}" in str(link.errors[0])


# -- what goes wrong on the way ------------------------------------------------------------------------------


class Proxy(threading.Thread):
    """A TCP relay that can eat bytes and cut connections."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target, self.listener = port, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.pairs, self.eating, self.cuts = [], False, 0
        self.start()

    def run(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.pairs.append((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self.relay, args=pair, daemon=True).start()

    def relay(self, source, sink):
        try:
            while data := source.recv(2000):
                if not self.eating:
                    sink.sendall(data)
        except OSError:
            sink.close()
        for end in (source, sink):
            end.close()

    def cut(self):
        self.cuts += 1
        for pair in self.pairs:
            for end in pair:
                with_reset(end)
        self.pairs = []

    def stop(self):
        self.listener.close()
        self.cut()


def with_reset(end):
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        end.close()


@pytest.fixture
def proxied(tmp_path):
    with swarm_in(tmp_path, ipc=False) as made:
        proxy = Proxy(made.port)
        link = made.link(addresses={"tcp": proxy.address})
        made.until(lambda: link.state == "ready")
        yield made, proxy, link
        proxy.stop()


@pytest.mark.slow
def test_connections_reset_every_200_ms_lose_and_repeat_nothing(proxied):
    swarm, proxy, link = proxied
    (peer,), last = swarm.channel.peers.values(), time.monotonic()
    for n in range(500):
        link.call("note", n, parts=[b"x" * (100_000 if n % 50 == 0 else 100)])
        swarm.channel.send(peer, ["note", n])
        swarm.turn()
        time.sleep(0.002)  # spread the messages over some resets
        if time.monotonic() - last > 0.2 and link.state == "ready":
            proxy.cut()
            last = time.monotonic()
    swarm.until(lambda: len(swarm.got) == 500 and len(link.got) == 500)
    assert swarm.got == link.got == list(range(500))
    assert proxy.cuts > 3 and link.losses == [] and set(link.welcomes[1:]) == {False}


def test_eaten_bytes_are_noticed_and_sent_again(proxied):
    swarm, proxy, link = proxied
    proxy.eating = True
    for n in range(20):
        link.call("note", n)
    swarm.pause(0.3)
    proxy.eating = False
    swarm.until(lambda: len(swarm.got) >= 20)
    assert swarm.got == list(range(20)) and link.welcomes[0] is True and True not in link.welcomes[1:]


@pytest.mark.slow
def test_a_partition_longer_than_patience_gives_a_fresh_session(proxied):
    swarm, proxy, link = proxied
    proxy.eating = True
    swarm.until(lambda: link.state == "lost" and swarm.lost)
    swarm.pause(0.4)
    proxy.eating = False
    swarm.until(lambda: link.state == "ready")
    assert link.welcomes[-1] is True and "no word" in link.losses[0] and "no word" in swarm.lost[0][1]
    link.call("echo", "back")
    swarm.until(lambda: link.answers == [("echo_response", "back")])


@pytest.mark.parametrize("mechanism", ["ipc", "tcp"])
def test_a_restarted_master_gives_a_fresh_session(swarm, mechanism):
    link = swarm.link(addresses={mechanism: swarm.addresses[mechanism]})
    swarm.until(lambda: link.state == "ready")
    old = link.session
    swarm.channel.close()
    swarm.start()
    swarm.until(lambda: link.welcomes == [True, True])
    assert link.session is not old and len(link.losses) == 1
    link.call("echo", 1)
    swarm.until(lambda: link.answers == [("echo_response", 1)])


def test_a_link_waits_for_a_master_that_is_not_there_yet(swarm):
    port, credentials = swarm.port, swarm.enrolled()
    swarm.channel.close()
    link = swarm.link(credentials, {"tcp": f"127.0.0.1:{port}"})
    for _ in range(20):
        link.receive()
        link.tick(time.monotonic())
    swarm.start()
    swarm.until(lambda: link.state == "ready")


def test_a_node_that_leaves_says_so(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    swarm.links.remove(link)
    link.close()
    swarm.until(lambda: swarm.lost)
    assert swarm.lost[0][1] == "it left"


def parting(swarm):
    """Closes the channel while its links turn in another thread, until all of these know."""
    ended = threading.Event()

    def turn():
        while not ended.wait(0.001):
            for link in swarm.links:
                link.receive()
                link.tick(time.monotonic())

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        swarm.channel.close()
        wait_until(lambda: not any(link.state == "ready" for link in swarm.links), "all links know")
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("mechanism", ["ipc", "tcp"])
def test_a_master_that_stops_says_so_and_waits_until_its_nodes_know_and_no_longer(swarm, monkeypatch, mechanism):
    monkeypatch.setattr(rpc, "FAREWELL", 10 * PATIENCE)
    links = [swarm.link(swarm.enrolled(name=name), {mechanism: swarm.addresses[mechanism]}) for name in ("n1", "n2")]
    swarm.until(lambda: all(link.state == "ready" for link in links))
    began = time.monotonic()
    parting(swarm)
    assert time.monotonic() - began < PATIENCE
    assert [link.losses for link in links] == [["it has stopped"]] * 2


def test_a_master_does_not_wait_for_long_for_nodes_that_hear_nothing(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    began = time.monotonic()
    swarm.channel.close()
    assert rpc.FAREWELL <= time.monotonic() - began < PATIENCE and not link.losses
    swarm.channel.close()


def test_a_node_that_has_turned_to_tcp_while_its_master_was_away_is_back_on_the_socket_file(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    parting(swarm)
    with suppress(FileNotFoundError):
        os.unlink(swarm.path)
    wait_until(lambda: link.tick(time.monotonic()) and link.socket, "it tries again")
    assert link.socket.last_endpoint == b"tcp://" + swarm.addresses["tcp"].encode()
    swarm.start()
    swarm.until(lambda: link.state == "ready")
    assert link.socket.last_endpoint == b"ipc://" + swarm.path.encode()


def test_a_silent_node_is_lost(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    swarm.links.remove(link)
    swarm.until(lambda: swarm.lost)
    assert "no word" in swarm.lost[0][1]
    link.close()


def test_a_master_that_was_suspended_kills_nobody(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    swarm.channel.tick(time.monotonic() + 15)
    assert len(swarm.channel.peers) == 1


@pytest.mark.slow
def test_a_pulse_keeps_a_busy_owner_alive(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    (peer,) = swarm.channel.peers.values()
    route = peer.route
    pulse = rpc.Pulse(link.credentials, swarm.addresses, link.session)
    pulse.start()
    swarm.links.remove(link)  # its loop does not turn any more
    swarm.pause(2 * FAST.dead)
    assert not swarm.lost and peer.route == route
    pulse.stop()
    swarm.until(lambda: swarm.lost)
    link.close()


# -- bad peers -----------------------------------------------------------------------------------------------

GARBAGE = {
    "an empty frame": [b""],
    "one byte": [b"x"],
    "500 frames": [b"x"] * 500,
    "5000 frames": [b"x"] * 5000,
    "wrong magic": [b"XY" + rpc.pack(rpc.DATA, SID, 1, 0, ["m"])[0][2:]],
    "huge length": [struct.pack("<2sBB8sQQHI", b"CS", rpc.PROTOCOL, 3, SID, 1, 0, 1, 1_000_000_000)],
    "deep JSON": [struct.pack("<2sBB8sQQHI", b"CS", rpc.PROTOCOL, 0, SID, 1, 0, 1, 50_000) + b"[" * 50_000],
    "a HELLO without information": rpc.pack(rpc.HELLO, SID, 1, 0, ["hello"]),
    "a HELLO with a list": rpc.pack(rpc.HELLO, SID, 1, 0, ["hello", [], False]),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_leaves_the_channel_serving(swarm, what):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    bad = swarm.raw()
    bad.send_multipart(GARBAGE[what])
    swarm.until(lambda: swarm.channel.counts["garbage"] == 1)
    swarm.until(lambda: bad.poll(0))
    assert rpc.unpack(bad.recv_multipart()).call[1]["reason"] == "garbage"
    link.call("echo", 1)
    swarm.until(lambda: link.answers == [("echo_response", 1)])
    assert link.welcomes == [True]
    bad.close()


def test_a_peer_that_sends_garbage_is_refused_and_comes_back_fresh(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    link._post([b"garbage"])
    swarm.until(lambda: link.welcomes == [True, True])
    assert [reason for _, reason in swarm.lost] == ["it sent garbage"]


def test_a_session_cannot_be_used_with_another_key(swarm):
    link = swarm.link()
    swarm.until(lambda: link.state == "ready")
    thief = swarm.raw(swarm.enrolled("client", "thief"))
    for kind in (rpc.DATA, rpc.BEAT, rpc.REFUSE, rpc.HELLO):
        thief.send_multipart(rpc.pack(kind, link.session.id, 1, 0, ["note", {}, True]))
    swarm.until(lambda: swarm.channel.counts["forged"] == 4)
    link.call("note", "mine")
    swarm.until(lambda: swarm.got == ["mine"])
    assert link.welcomes == [True] and not swarm.lost
    thief.close()


def test_an_unknown_session_is_told_to_say_hello(swarm):
    swarm.link()
    node = swarm.raw()
    node.send_multipart(rpc.pack(rpc.DATA, SID, 1, 0, ["note", 1]))
    swarm.until(lambda: node.poll(0))
    message = rpc.unpack(node.recv_multipart())
    assert (message.kind, message.session, message.call[1]) == (
        rpc.REFUSE,
        SID,
        {"reason": "unknown session"},
    )
    node.close()


def test_noise_on_the_port_does_not_stop_the_channel(swarm):
    noise = [socket.create_connection(("127.0.0.1", swarm.port)) for _ in range(20)]
    for n, end in enumerate(noise):
        end.sendall([b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\x16\x03\x01", b""][n % 4])
    link = swarm.link(addresses={"tcp": swarm.addresses["tcp"]})
    swarm.until(lambda: link.state == "ready")
    for end in noise:
        end.close()


# -- the loop of a node


@pytest.fixture
def pair():
    """Two ZeroMQ sockets that are connected."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other


def test_a_deadline_that_the_end_of_a_turn_brings_forward_is_kept(ends):
    due, looks, (read, write) = [None], [], ends
    with closing(rpc.Loop(lambda now: looks.append(now) or due[0])) as loop:
        loop.add(read, lambda: (read.recv(9), loop.at_end(lambda: due.append(due.pop() or time.monotonic() + 0.05))))
        loop.step(0.0)
        threading.Timer(0.1, write.send, [b"x"]).start()  # once it has slept for longer than TICK_WITHIN
        began = time.monotonic()
        for limit in (30.0, 30.0, 0.0):  # until the event, until the deadline that it brings, and no further
            loop.step(limit)
        assert looks[-1] >= due[0] and time.monotonic() - began < 15


def test_a_loop_hears_what_a_socket_has_noticed_while_it_was_used_for_something_else(pair):
    import zmq

    (one, other), heard = pair, []
    with closing(rpc.Loop(lambda now: None)) as loop:
        loop.add(one, lambda: heard.append(one.recv(zmq.NOBLOCK)))
        for text in (b"1", b"2"):
            other.send(text)
            wait_until(lambda: select.select([one.fd], [], [], 0)[0] or one.get(zmq.EVENTS) & zmq.POLLIN, "it is there")
            one.send(b"now the descriptor tells no more of what came")
            assert one.get(zmq.EVENTS) & zmq.POLLIN and not select.select([one.fd], [], [], 0)[0]
            loop.step(60.0)
        assert heard == [b"1", b"2"]


def test_a_loop_hears_sockets_and_descriptors_in_the_same_turn(pair, ends):
    (one, other), (read, write), heard = pair, ends, []
    with closing(rpc.Loop(lambda now: None)) as loop:
        loop.add(one, lambda: heard.append(one.recv()))
        loop.add(read, lambda: heard.append(read.recv(9)))
        for text in (b"a", b"b"):
            other.send(text)
            write.send(text * 2)
            wait_until(lambda: one.get(15) & 1, "it is there")
            loop.step(60.0)
        assert sorted(heard) == [b"a", b"aa", b"b", b"bb"]
        loop.remove(one)
        other.send(b"c")
        write.send(b"cc")
        loop.step(60.0)
        assert heard[4:] == [b"cc"]


def test_a_poll_waits_on_for_a_descriptor_that_was_another_s_which_is_let_go_only_now(pair):
    one, _ = pair
    poller = rpc.Poller()
    poller.register(one, select.POLLIN)
    poller.register(one.fd, select.POLLOUT)  # as if it had been closed, and opened for something else
    poller.unregister(one)
    assert one not in poller and poller.poll(1000) == [(one.fd, select.POLLOUT)]


def test_a_poll_hears_each_time_of_a_socket_that_is_only_read_without_asking_it(pair):
    import zmq

    one, other = pair
    poller = rpc.Poller()
    for text in (b"1", b"2", b"3"):
        with pytest.raises(zmq.Again):
            one.recv(zmq.NOBLOCK)
        if one not in poller:
            poller.register(one, select.POLLIN, ask=False)
        assert poller.poll(0) == [] and one not in poller._asked
        other.send(text)
        assert poller.poll(10_000) == [(one, select.POLLIN)] and one.recv(zmq.NOBLOCK) == text


def test_a_loop_forgets_a_link_whose_socket_was_closed_in_the_same_turn(swarm):
    with closing(rpc.Loop(lambda now: None)) as loop:
        loop.link = swarm.link()
        loop.step(0)
        loop.link._over("it is gone", time.monotonic())
        assert loop.link.socket is None
        loop.forget_link()
        loop.link = swarm.link()
        loop.step(0)
        loop.forget_link()


def test_a_loop_calls_each_alarm_once_in_order_and_not_before_its_time():
    loop, rung, began = rpc.Loop(lambda now: None), [], time.monotonic()
    try:
        loop.later(0.02, lambda: rung.append(("second", time.monotonic() - began)))
        loop.later(0.01, lambda: loop.later(0.02, loop.stop))
        loop.later(0.01, lambda: rung.append(("first", time.monotonic() - began)))
        loop.run()
    finally:
        loop.close()
    assert [name for name, _ in rung] == ["first", "second"]
    assert rung[0][1] >= 0.01 and rung[1][1] >= 0.02 and time.monotonic() - began >= 0.03
