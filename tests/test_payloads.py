"""Large payloads: sealed in pieces without a copy, in files that stores share, received into memory of their own."""

import array
import contextlib
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
from conftest import CHECKOUT
from hypothesis import given, settings
from hypothesis import strategies as st

from concurrent_swarm import components, rpc, tasks

numpy = pytest.importorskip("numpy")

BIG = rpc.INLINE
MIB = 1 << 20


def sweep(root):
    """Removes the stores of the dead, as every new store does."""
    rpc.Store(str(root)).close()


def sealed(obj):
    """The sealed form, joined."""
    return b"".join(rpc.seal_pieces(obj))


def opened_again(obj):
    return rpc.open_sealed(sealed(obj))


def address(buffer):
    return numpy.frombuffer(buffer, "u1").__array_interface__["data"][0]


def lies_in(array_, buffer):
    """Whether an array's memory is a part of the buffer's."""
    start = address(buffer)
    return start <= array_.__array_interface__["data"][0] < start + len(buffer)


@pytest.fixture
def make_store(tmp_path):
    """Makes stores below one root, closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(budget=64 * MIB, root=tmp_path / "payloads"):
            store = rpc.Store(str(root), budget)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(make_store):
    return make_store()


def files_of(store):
    return sorted(set(os.listdir(store.folder)) - {"lock"}, key=int)


# -- sealed pickles with buffers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    None, 0, "", b"", [], {}, (1, 2.5, "é"), {"a": [1, {"b": (2,)}]}, b"x" * 10, b"x" * BIG, b"x" * (BIG - 1),
    "é" * BIG, bytearray(b"y" * 10), bytearray(BIG), 1 << 8 * BIG, [b"x" * BIG, bytearray(BIG), "z" * BIG, b"x" * BIG],
], ids=lambda value: f"{type(value).__name__} of {len(sealed(value))}")  # fmt: skip
def test_plain_data_arrives_as_it_was(value):
    found = opened_again(value)
    assert found == value and type(found) is type(value)
    assert sealed(value) == pickle.dumps(value, 5)


@pytest.mark.parametrize("shape", [(0,), (1,), (), (BIG,), (3, BIG), (2, 3, 5, 7), (300, 0), (129, 257), (BIG // 8,)])
@pytest.mark.parametrize("kind", ["u1", "<f8", ">i4", "c16", "?", "S3", "M8[s]"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_arrives_as_it_was(shape, kind, order):
    size = int(numpy.prod(shape))
    value = numpy.arange(size).astype("i8").astype(kind).reshape(shape, order=order)
    found = opened_again(value)
    assert found.dtype == value.dtype and found.shape == value.shape and found.tobytes() == value.tobytes()
    assert found.strides == pickle.loads(pickle.dumps(value)).strides


@pytest.mark.parametrize("cut", [numpy.s_[::2], numpy.s_[:, 1:-1], numpy.s_[::-1, ::3], numpy.s_[5]])
def test_an_array_that_is_not_contiguous_arrives_as_it_was(cut):
    value = numpy.arange(400 * 500).reshape(400, 500)[cut]
    assert numpy.array_equal(opened_again(value), value)


def test_arrays_deep_inside_and_shared_arrive_as_they_were():
    one = numpy.arange(BIG)
    found = opened_again({"a": [one, (one, b"b" * BIG)], "c": numpy.ones(5)})
    assert found["a"][0] is found["a"][1][0] and numpy.array_equal(found["a"][0], one)
    assert found["a"][1][1] == b"b" * BIG and numpy.array_equal(found["c"], numpy.ones(5))


def test_large_bytes_are_pieces_as_they_are():
    data, text = os.urandom(MIB), bytearray(BIG)
    pieces = rpc.seal_pieces({"a": data, "b": [text]})
    assert any(piece is data for piece in pieces) and any(piece is text for piece in pieces)
    assert sum(map(len, pieces)) < MIB + BIG + 200


def test_a_large_array_is_a_piece_in_its_own_memory():
    value = numpy.arange(BIG)
    pieces = rpc.seal_pieces([value])
    assert address(pieces[-1]) == value.__array_interface__["data"][0] and len(pieces[-1]) == value.nbytes


def test_a_large_array_arrives_as_a_read_only_view_of_the_sealed_form():
    data = bytearray(sealed({"a": numpy.arange(BIG), "b": numpy.arange(BIG)[1:]}))
    for found in rpc.open_sealed(data).values():
        assert lies_in(found, data) and not found.flags.writeable


def test_a_small_array_stays_in_the_pickle_and_can_be_written():
    value = numpy.arange(BIG // 8 - 1)
    found = opened_again(value)
    assert sealed(value)[0] == 0x80 and found.flags.writeable


@given(st.lists(st.integers(BIG, 2 * BIG), min_size=1, max_size=4), st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_every_buffer_begins_aligned(sizes, more):
    data = sealed(["x" * more, *(numpy.zeros(size, "u1") for size in sizes)])
    for found in rpc.open_sealed(data)[1:]:
        assert (found.__array_interface__["data"][0] - address(data)) % rpc.ALIGNMENT == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("value", [{"a": 1}, numpy.arange(BIG)], ids=["plain", "buffers"])
def test_either_form_is_opened_from_any_contiguous_bytes(kind, value):
    assert pickle.dumps(rpc.open_sealed(kind(sealed(value)))) == pickle.dumps(value)


def test_our_classes_are_referred_to_by_the_fixed_name_beside_large_data():
    data = sealed([tasks.Task, b"x" * BIG, numpy.arange(BIG), rpc.parse_address])
    assert rpc.WIRE.encode() in data and b"concurrent_swarm" not in data
    assert rpc.open_sealed(data)[0] is tasks.Task and rpc.open_sealed(data)[3] is rpc.parse_address


@pytest.mark.parametrize("before", [1, BIG - 1, 20 * BIG, (1 << 8 * BIG)], ids=["small", "a frame", "frames", "number"])
def test_a_reference_to_us_is_seen_wherever_it_stands(before):
    before = before if before.bit_length() > 64 else ["x" * 50 + str(i) for i in range(before // 60)]
    after = ["x" * 50 + str(i) for i in range(BIG // 20)]
    data = sealed([before, tasks.Task, after, [b"\x95" * BIG, b"\x80" * BIG]])
    assert b"concurrent_swarm" not in data and rpc.open_sealed(data)[1] is tasks.Task


def test_our_name_in_the_user_s_large_bytes_is_not_looked_for():
    class Watched(bytes):
        def __contains__(self, item):
            raise AssertionError("looked through")

    large = Watched(b"concurrent_swarm" * BIG)
    assert not rpc._mentions_us([b"\x80\x05", large, b"."])
    assert sealed(bytes(large)) == pickle.dumps(bytes(large), 5)


def test_what_cannot_be_pickled_raises_what_pickle_raises():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        rpc.seal_pieces([b"x" * BIG, lambda: 0])


@pytest.mark.parametrize("cut", [1, 15, 20, 40, 100, BIG, -64, -1])
def test_a_form_that_is_cut_short_is_a_protocol_error(cut):
    with pytest.raises(rpc.ProtocolError):
        rpc.open_sealed(sealed(numpy.arange(BIG))[:cut])


@pytest.mark.parametrize("count, length, sizes", [
    (2**32 - 1, 10, []), (1, 2**64 - 1, [5]), (1, 10, [2**64 - 1]), (0, 11, []), (2, 10, [0, 1]),
])  # fmt: skip
def test_lengths_that_do_not_add_up_are_a_protocol_error(count, length, sizes):
    head = rpc._BUFFERS_HEAD.pack(rpc.BUFFERS, count, length) + struct.pack(f"<{len(sizes)}Q", *sizes)
    with pytest.raises(rpc.ProtocolError):
        rpc.open_sealed(head + pickle.dumps(1234567))


# -- references ----------------------------------------------------------------------------------------------------


def test_a_reference_crosses_the_wire_as_text(store):
    (reference,) = store.write([b"hello"])
    again = rpc.Reference.from_text(reference.to_text(), store.root)
    assert again == reference and len(again) == 5 and bytes(again.view()) == again.read() == b"hello"


@pytest.mark.parametrize("text", [
    "", "a/1/0/5", "../1/0/5", "{folder}/../0/5", "{folder}/lock/0/5", "{folder}/./0/5",
    "{folder}/1/-1/5", "{folder}/1/0", "{folder}/1/0/5/", "/{folder}/1/0/5", "{folder}/1/0/5\n", "{folder}/1/0/٥",
    "{folder}/1/0/5\0", "..{folder}/1/0/5", "{folder}/1/0/9999999999999999",
    "{FOLDER}/1/0/5", None, 5, ["{folder}/1/0/5"], b"{folder}/1/0/5",
], ids=repr)  # fmt: skip
def test_only_a_strict_name_is_a_reference(store, text):
    store.write([b"hello"])
    if isinstance(text, str):
        text = text.replace("{folder}", os.path.basename(store.folder)).replace("{FOLDER}", "A" * 16)
    with pytest.raises(rpc.ProtocolError):
        rpc.Reference.from_text(text, store.root)


def test_a_reference_into_a_folder_that_others_can_reach_is_refused(store):
    (reference,) = store.write([b"hello"])
    os.chmod(store.folder, 0o750)
    with pytest.raises(OSError, match="can be reached by others"):
        rpc.Reference.from_text(reference.to_text(), store.root).open()


def test_a_reference_into_a_linked_folder_is_refused(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "1").write_text("secret")
    os.symlink(elsewhere, f"{store.root}/{'a' * 16}")
    with pytest.raises(OSError, match="is no folder"):
        rpc.Reference.from_text(f"{'a' * 16}/1/0/6", store.root).open()


def test_a_link_in_the_place_of_a_payload_is_not_followed(store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", f"{store.folder}/7")
    with pytest.raises(OSError):
        rpc.Reference(store.folder, "7", 0, 6).open()


def test_a_view_is_read_only_and_outlives_its_file(store):
    (reference,) = store.write([b"hello"])
    view = reference.view()
    store.close()
    assert view.readonly and bytes(view) == b"hello"
    with pytest.raises(FileNotFoundError):
        reference.view()


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 4097, 100_000])
def test_a_view_may_begin_anywhere(store, at):
    data = os.urandom(MIB)
    (reference,) = store.write([data])
    for size in (5000, rpc.MAPPED):
        part = rpc.Reference(reference.folder, reference.name, at, size)
        assert bytes(part.view()) == part.read() == data[at : at + size]


def test_a_part_of_no_bytes_has_a_view(store):
    empty, _ = store.write([b"", b"x"])
    assert empty and len(empty) == 0 and bytes(empty.view()) == empty.read() == b""


@pytest.mark.parametrize("open_it", [rpc.Reference.view, rpc.Reference.read])
@pytest.mark.parametrize("have", [5, rpc.MAPPED])
@pytest.mark.parametrize("at", [0, 1, 5000, 2 * MIB])
def test_a_file_that_is_shorter_than_said_is_a_protocol_error(store, open_it, have, at):
    (reference,) = store.write([bytes(have)])
    with pytest.raises(rpc.ProtocolError, match=f"has {have:,} bytes"):
        open_it(rpc.Reference(reference.folder, reference.name, at, have - min(at, 1) + 1))
    with pytest.raises(rpc.ProtocolError, match=f"has {have:,} bytes"):
        open_it(rpc.Reference(reference.folder, reference.name, at, 10**14))


# -- stores --------------------------------------------------------------------------------------------------------


def test_parts_are_written_into_one_file_and_found_again(store):
    array_ = numpy.arange(BIG)
    parts = [b"a", memoryview(b"bc"), bytearray(BIG), rpc.seal_pieces(array_), b"", rpc.seal_pieces({"d": b"d" * BIG})]
    references = store.write(parts)
    assert len(files_of(store)) == 1 and all(reference.at % rpc.ALIGNMENT == 0 for reference in references)
    flat = [b"".join(part) if isinstance(part, list) else bytes(part) for part in parts]
    assert [reference.read() for reference in references] == flat
    assert numpy.array_equal(rpc.open_sealed(references[3].view()), array_)


def test_thousands_of_pieces_are_written(store):
    pieces = [bytes([i % 251]) * (i % 7) for i in range(5000)]
    (reference,) = store.write([pieces])
    assert reference.read() == b"".join(pieces)


def test_an_opened_array_is_the_file_s_memory(store):
    (reference,) = store.write([rpc.seal_pieces(numpy.arange(BIG))])
    view = reference.view()
    found = rpc.open_sealed(view)
    assert lies_in(found, view) and not found.flags.writeable


def test_a_released_plain_file_is_written_again(store):
    (first,) = store.write([b"a" * BIG])
    inode = os.stat(f"{store.folder}/{first.name}").st_ino
    store.release(first)
    (second,) = store.write([b"b" * (BIG - 5)])
    assert os.stat(f"{store.folder}/{second.name}").st_ino == inode and second.read() == b"b" * (BIG - 5)
    assert store.used == BIG


def test_a_file_is_in_use_until_all_its_parts_are_released(store):
    first, second = store.write([b"a" * BIG, b"b" * BIG])
    store.release(first)
    store.write([b"c" * BIG * 2])
    assert second.read() == b"b" * BIG
    store.release(second)
    assert len(files_of(store)) == 2
    store.write([b"d" * BIG * 2])
    assert len(files_of(store)) == 2


def test_a_file_that_another_store_holds_is_not_written_again(make_store):
    ours, theirs = make_store(), make_store()
    (reference,) = ours.write([b"a" * BIG])
    held = theirs.adopt(reference)
    ours.release(reference)
    (other,) = ours.write([b"b" * BIG])
    assert other.name != reference.name and held.read() == b"a" * BIG
    theirs.release(held)
    (again,) = ours.write([b"c" * BIG])
    assert again.name == reference.name


def test_a_file_with_buffers_is_never_written_again(store):
    (reference,) = store.write([rpc.seal_pieces(numpy.arange(BIG))])
    array_ = rpc.open_sealed(reference.view())
    store.release(reference)
    assert files_of(store) == [] and store.used == 0
    store.write([b"x" * reference.size])
    assert numpy.array_equal(array_, numpy.arange(BIG))


def test_a_file_is_written_again_only_for_the_same_owner(store):
    (reference,) = store.write([b"a" * BIG], "one")
    store.release(reference)
    assert store.write([b"b" * BIG], "two")[0].name != reference.name
    assert store.write([b"b" * BIG], "one")[0].name == reference.name


def test_the_smallest_free_file_that_fits_is_taken(store):
    references = [store.write([bytes(size)])[0] for size in (3 * BIG, BIG, 2 * BIG, 9 * BIG)]
    for reference in references:
        store.release(reference)
    assert store.write([bytes(BIG + 1)])[0].name == references[2].name
    assert store.write([bytes(BIG)])[0].name == references[1].name
    assert store.write([bytes(BIG)])[0].name == references[0].name
    assert store.write([bytes(BIG)])[0].name != references[3].name  # it would be held for a ninth of it


def test_free_files_are_bounded(store, monkeypatch):
    monkeypatch.setattr(rpc, "KEPT_FILES", 3)
    monkeypatch.setattr(rpc, "KEPT_BYTES", 2 * BIG)
    for reference in [store.write([bytes(size)])[0] for size in (10, 20, 30, 40)]:
        store.release(reference)
    assert files_of(store) == ["2", "3", "4"]
    store.release(store.write([bytes(2 * BIG)])[0])
    assert files_of(store) == ["5"]
    store.trim()
    assert files_of(store) == [] and store.used == 0


def test_a_write_over_the_budget_is_refused_and_said_once(make_store, caplog):
    store = make_store(budget=2 * BIG)
    kept = store.write([bytes(BIG)])
    assert store.write([bytes(BIG + 1)]) is None and store.write([bytes(BIG + 1)]) is None
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert store.used == BIG and store.write([bytes(BIG)]) and kept[0].read() == bytes(BIG)


def test_free_files_make_way_when_the_budget_is_short(make_store):
    store = make_store(budget=10 * BIG)
    for reference in [store.write([bytes(BIG)])[0] for _ in range(4)]:
        store.release(reference)
    assert store.write([bytes(8 * BIG)]) and store.used == 10 * BIG


def test_a_file_system_without_room_leaves_no_half_of_a_file(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BIG, limits[1]))
    try:
        assert store.write([bytes(2 * BIG)]) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(store) == [] and store.used == 0 and store.write([bytes(2 * BIG)])


def test_a_free_file_that_somebody_removed_is_not_counted_on(store):
    (reference,) = store.write([bytes(BIG)])
    store.release(reference)
    os.unlink(f"{store.folder}/{reference.name}")
    assert store.write([bytes(BIG)])[0].read() == bytes(BIG)
    store.trim()
    assert store.used == BIG


def test_a_folder_that_somebody_removed_is_no_room(store):
    store.release(store.write([bytes(BIG)])[0])
    shutil.rmtree(store.folder)
    assert store.write([bytes(BIG)]) is None


def test_the_budget_is_half_of_what_the_file_system_has_left(tmp_path):
    store = rpc.Store(str(tmp_path / "payloads"))
    system = os.statvfs(tmp_path)
    assert 0 < store.budget <= system.f_bavail * system.f_frsize * 0.6
    store.close()


def test_a_file_filled_through_its_descriptor_is_referred_to(store):
    name, file = store.create(10)
    pieces, places, _ = rpc.lay_out([b"abc", rpc.seal_pieces(b"x" * BIG)])
    assert rpc.write_pieces(file, pieces) == sum(places[-1])
    os.close(file)
    references = [store.reference(name, *place) for place in places]
    assert references[0].read() == b"abc" and rpc.open_sealed(references[1].view()) == b"x" * BIG
    assert store.used == sum(places[-1])
    store.release(references[0])
    assert references[1].read()
    store.release(references[1])
    again, file = store.create(BIG)
    os.close(file)
    assert again == name


def test_a_file_filled_with_buffers_is_not_written_again(store):
    name, file = store.create(BIG * 8)
    end = rpc.write_pieces(file, rpc.seal_pieces(numpy.arange(BIG)))
    os.close(file)
    store.release(store.reference(name, 0, end))
    assert files_of(store) == []


@pytest.mark.parametrize("name, at, size", [("1", 0, 6), ("1", 6, 1), ("2", 0, 1), ("lock", 0, 0), ("../1", 0, 1)])
def test_what_a_filling_process_says_of_its_file_is_checked(store, name, at, size):
    _, file = store.create(5)
    os.write(file, b"hello")
    os.close(file)
    with pytest.raises(rpc.ProtocolError):
        store.reference(name, at, size)


def test_a_free_file_cannot_be_referred_to(store):
    (reference,) = store.write([b"hello"])
    store.release(reference)
    with pytest.raises(rpc.ProtocolError):
        store.reference(reference.name, 0, 5)


def test_an_adopted_payload_survives_its_first_owner(make_store):
    first, second = make_store(), make_store()
    references = first.write([b"hello", b"world"])
    held = [second.adopt(reference) for reference in references]
    first.close()
    assert [reference.read() for reference in held] == [b"hello", b"world"]
    assert len(files_of(second)) == 1 and second.used == 0
    second.release(held[0])
    assert held[1].read() == b"world"
    second.release(held[1])
    assert files_of(second) == []


def test_a_payload_of_another_file_system_is_copied(make_store, tmp_path):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is only one file system")
    memory = rpc.Store(f"/dev/shm/concurrent-swarm-test-{os.getpid()}", MIB)
    try:
        (reference,) = memory.write([b"hello"])
        held = make_store().adopt(reference)
        assert make_store(budget=4).adopt(reference) is None
        memory.close()
        assert held.read() == b"hello"
    finally:
        memory.close()
        os.unlink(f"{memory.root}/lock")
        os.rmdir(memory.root)


def test_what_is_gone_cannot_be_adopted(make_store):
    first, second = make_store(), make_store()
    (reference,) = first.write([b"hello"])
    first.close()
    with pytest.raises(FileNotFoundError):
        second.adopt(reference)


def test_a_closed_store_leaves_nothing(store):
    store.write([b"hello"])
    store.close()
    store.close()
    assert os.listdir(store.root) == ["lock"]


def test_a_root_that_others_can_reach_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(components.Error, match="can be reached by others"):
        rpc.Store(str(tmp_path), MIB)


def test_the_root_of_this_user_is_private():
    status = os.stat(rpc.payload_root())
    assert status.st_uid == os.getuid() and status.st_mode & 0o777 == 0o700


# -- the stores of the dead ----------------------------------------------------------------------------------------

OWNER = """
import sys
from concurrent_swarm import rpc
store = rpc.Store(sys.argv[1], 1 << 20)
(reference,) = store.write([b"hello"])
print(reference.to_text(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """A process with a store below the root, and its reference."""
    root = tmp_path / "payloads"
    root.mkdir(mode=0o700)
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(root)], cwd=CHECKOUT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        yield process, rpc.Reference.from_text(process.stdout.readline().strip(), str(root)), str(root)
        process.kill()


def test_a_sweep_leaves_the_living_alone(owner):
    _, reference, root = owner
    sweep(root)
    assert reference.read() == b"hello"


def test_a_sweep_removes_the_store_of_a_killed_process(owner):
    process, reference, root = owner
    process.send_signal(signal.SIGKILL)
    process.wait()
    sweep(root)
    assert not os.path.exists(reference.folder)


def test_a_new_store_removes_those_of_the_dead_but_not_what_it_holds(owner, make_store):
    process, reference, root = owner
    held = make_store(root=root).adopt(reference)
    process.kill()
    process.wait()
    make_store(root=root)
    assert not os.path.exists(reference.folder) and held.read() == b"hello"


def test_a_folder_without_a_lock_is_swept_and_what_is_no_store_is_not(store):
    for name in ("a" * 16, "notes", "b" * 17):
        os.mkdir(f"{store.root}/{name}")
    sweep(store.root)
    assert sorted(os.listdir(store.root)) == sorted(["notes", "b" * 17, "lock", os.path.basename(store.folder)])


def test_a_store_whose_lock_cannot_be_looked_at_stays(store):
    os.mkdir(f"{store.root}/{'a' * 16}")
    os.symlink("nowhere", f"{store.root}/{'a' * 16}/lock")
    sweep(store.root)
    assert "a" * 16 in os.listdir(store.root)


def test_stores_made_while_others_sweep_stay(tmp_path):
    root, failures = str(tmp_path / "payloads"), []

    def make_many():
        for _ in range(25):
            store = rpc.Store(root, MIB)
            written = store.write([b"hello"])
            sweep(root)
            if not written or written[0].read() != b"hello":
                failures.append(store.folder)
            store.close()

    threads = [threading.Thread(target=make_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and os.listdir(root) == ["lock"]


# -- large messages on a socketpair --------------------------------------------------------------------------------


def bytes_of(messages):
    return b"".join(b"".join(rpc.pack_stream(call, parts)) for call, parts in messages)


def plain(messages):
    return [(call, [bytes(part) for part in parts]) for call, parts in messages]


def received(receiver, count):
    messages = []
    while len(messages) < count:
        messages += receiver.receive()
    return messages


MESSAGES = st.lists(st.tuples(
    st.tuples(st.text(max_size=5), st.integers()).map(list),
    st.lists(st.binary(max_size=50) | st.sampled_from([BIG - 1, BIG, rpc.LARGE, 5 * BIG]).map(bytes), max_size=3),
), min_size=1, max_size=6)  # fmt: skip


@given(MESSAGES, st.lists(st.integers(1, 3 * BIG), max_size=20), st.booleans(), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_messages_arrive_however_their_bytes_are_cut(messages, cuts, blocking, descriptors):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(blocking)
        receiver, data, found = rpc.Receiver(ours, descriptors=descriptors), bytes_of(messages), []
        sender = threading.Thread(target=send_cut, args=(theirs, data, cuts))
        sender.start()
        while len(found) < len(messages):
            with contextlib.suppress(BlockingIOError):
                found += receiver.receive()
        sender.join()
    assert plain(found) == messages


def send_cut(sock, data, cuts):
    for cut in cuts:
        sock.sendall(data[:cut])
        data = data[cut:]
    sock.sendall(data)


def test_a_large_message_arrives_in_memory_of_its_own_once(ends):
    ours, theirs = ends
    data = os.urandom(4 * MIB)
    receiver = rpc.Receiver(ours)
    threading.Thread(target=theirs.sendall, args=(bytes_of([(["a"], [data, b"b" * BIG])]),)).start()
    ((_, (first, second)),) = received(receiver, 1)
    assert first.obj is second.obj and len(first.obj) < 5 * MIB and first == data and second == b"b" * BIG


@pytest.mark.parametrize("size", [10, BIG - 1, BIG, rpc.LARGE - 200, rpc.LARGE, rpc.LARGE + BIG])
def test_parts_keep_their_bytes_when_later_messages_come(ends, size):
    ours, theirs = ends
    receiver, found = rpc.Receiver(ours), []
    for letter in b"abcd":
        sender = threading.Thread(target=theirs.sendall, args=(bytes_of([(["a"], [bytes([letter]) * size])]),))
        sender.start()
        found += received(receiver, 1)
        sender.join()
    assert [bytes(part) for _, (part,) in found] == [bytes([letter]) * size for letter in b"abcd"]


def test_parts_of_small_messages_are_bytes(ends):
    ours, theirs = ends
    theirs.sendall(bytes_of([(["a", 1], [b"x", b""])]))
    assert rpc.Receiver(ours).receive() == [(["a", 1], [b"x", b""])]


def test_an_empty_socket_that_does_not_block_says_so(ends):
    ours, theirs = ends
    ours.setblocking(False)
    receiver = rpc.Receiver(ours)
    with pytest.raises(BlockingIOError):
        receiver.receive()
    theirs.sendall(bytes_of([(["a"], [])])[:3])
    assert receiver.receive() == []
    with pytest.raises(BlockingIOError):
        receiver.receive()


@pytest.mark.parametrize("sent", [0, 3, 20, rpc.LARGE + 500])
def test_a_closed_end_is_an_end_of_file_wherever_it_was(ends, sent):
    ours, theirs = ends
    threading.Thread(target=send_and_close, args=(theirs, bytes_of([(["a"], [bytes(2 * rpc.LARGE)])])[:sent])).start()
    receiver = rpc.Receiver(ours)
    with pytest.raises(EOFError):
        while True:
            assert receiver.receive() == []


def send_and_close(sock, data):
    sock.sendall(data)
    sock.close()


@pytest.mark.parametrize("data", [struct.pack("<I", 1001), struct.pack("<I", 4) + b"abcd", struct.pack("<I", 0)])
def test_bytes_that_are_no_message_are_a_protocol_error(ends, data):
    ours, theirs = ends
    theirs.sendall(data)
    with pytest.raises(rpc.ProtocolError):
        rpc.Receiver(ours, limit=1000).receive()


# -- descriptors ---------------------------------------------------------------------------------------------------


def send_with(sock, data, *files):
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])


@contextlib.contextmanager
def open_files(tmp_path, *names):
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600) for name in names]
    yield files
    for file in files:
        os.close(file)


def taken(receiver, count):
    """The names of the next descriptors, closed then."""
    names = []
    for _ in range(count):
        file = receiver.take_descriptor()
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        assert not os.get_inheritable(file)
        os.close(file)
    return names


def test_descriptors_come_in_order_with_every_cut_of_the_bytes(ends, tmp_path):
    ours, theirs = ends
    first, second = (bytes_of([([name], [b"x" * 9])]) for name in ("first", "second"))
    receiver = rpc.Receiver(ours, descriptors=3)
    with open_files(tmp_path, "a", "b", "c") as (a, b, c):
        for cut in range(1, len(first)):
            send_with(theirs, first[:cut], a)
            theirs.sendall(first[cut:])
            send_with(theirs, second[:cut], b, c)
            theirs.sendall(second[cut:])
            assert [call for call, _ in received(receiver, 2)] == [["first"], ["second"]]
            assert taken(receiver, 3) == ["a", "b", "c"]


def test_a_descriptor_comes_with_a_large_message(ends, tmp_path):
    ours, theirs = ends
    receiver, data = rpc.Receiver(ours, descriptors=1), bytes_of([(["a"], [os.urandom(MIB)])])
    with open_files(tmp_path, "a") as (a,):
        send_with(theirs, data[:1000], a)
        threading.Thread(target=theirs.sendall, args=(data[1000:],)).start()
        assert bytes_of(received(receiver, 1)) == data and taken(receiver, 1) == ["a"]


def test_a_descriptor_that_did_not_come_is_a_protocol_error(ends):
    with pytest.raises(rpc.ProtocolError):
        rpc.Receiver(ends[0], descriptors=1).take_descriptor()


def open_count():
    return len(os.listdir("/proc/self/fd"))


def test_more_descriptors_than_agreed_are_closed_and_an_error(ends, tmp_path):
    ours, theirs = ends
    receiver, data = rpc.Receiver(ours, descriptors=1), bytes_of([(["a"], [])])
    with open_files(tmp_path, "a") as (a,):
        before = open_count()
        send_with(theirs, data, a)
        receiver.receive()
        send_with(theirs, data, a)
        with pytest.raises(rpc.ProtocolError, match="descriptors"):
            received(receiver, 2)
        send_with(theirs, data, a, a, a)
        with pytest.raises(rpc.ProtocolError, match="descriptors"):
            received(receiver, 2)
        assert open_count() == before


@pytest.mark.parametrize("descriptors", [0, 1])
def test_descriptors_that_nobody_takes_are_closed(ends, tmp_path, descriptors):
    ours, theirs = ends
    receiver = rpc.Receiver(ours, descriptors=descriptors)
    with open_files(tmp_path, "a") as (a,):
        before = open_count()
        send_with(theirs, bytes_of([(["a"], [])]), a)
        assert len(receiver.receive()) == 1
        receiver.close()
        assert open_count() == before


def test_a_file_made_here_is_filled_by_a_process_that_has_only_the_socket(store, ends):
    """As a worker does it that cannot reach the folder."""
    ours, theirs = ends
    name, file = store.create(BIG)
    send_with(theirs, bytes_of([(["fill"], [])]), file)
    os.close(file)
    if not (child := os.fork()):
        receiver = rpc.Receiver(ours, descriptors=1)
        receiver.receive()
        rpc.write_pieces(receiver.take_descriptor(), rpc.seal_pieces(b"x" * BIG))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    size = len(sealed(b"x" * BIG))
    assert rpc.open_sealed(store.reference(name, 0, size).view()) == b"x" * BIG
