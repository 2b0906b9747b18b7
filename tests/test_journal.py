"""The journal: what it keeps, how large it is, what it says when it is damaged, and what a full disk does to it."""

import base64
import hashlib
import json
import queue
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import CHECKOUT, Swarm, wait_until

from concurrent_swarm import components, master, rpc

MIB = 1024 * 1024
OWNER = ("owner", "c1", "client", "key of c1", "")
LARGE = bytes(range(256)) * 200


class Kept:
    """A journal that runs, and what it told."""

    def __init__(self, path, **options):
        self.path = Path(path)
        self.sent, self.failed, self.full, self.rooms = [], [], [], []
        self.journal = master.Journal(
            self.path, self.sent.extend, self.failed.append, lambda *told: self.full.append(told),
            lambda: self.rooms.append(1), **options,
        )
        self.before = self.journal.load()
        self.journal.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.journal.stop()
        assert not self.failed, self.failed

    def put(self, *records, told=None):
        """Puts records and, unless they are about a full disk, waits until they are committed."""
        mark = ("mark", len(self.sent), object()) if told is None else told
        self.journal.put(list(records), [mark])
        if told is None:
            wait_until(lambda: mark in self.sent or self.failed, "they are committed")


def batch(number, *parts, owner="c1", count=3):
    return ("batch", owner, number, count, 1, {"first": 3 * number, "name": "n"}, [b"head", b"", *parts])


def outcome(number, lo, hi, *parts, owner="c1"):
    return ("outcome", owner, number, lo, hi, 0.25, {}, 1, list(parts))


def plain(records):
    """Records with the bytes of their payloads."""
    return [
        (*record[:-1], [b"".join(rpc.pieces_of(part)) for part in record[-1]])
        if record[0] in master.WITH_PAYLOAD else record
        for record in records
    ]  # fmt: skip


def loaded(path):
    return plain(master.read_journal(Path(path)))


RECORDS = [
    ("life", 1), OWNER, batch(0, b"a" * 90, b"b"), outcome(0, 0, 2, b"result"), batch(1, LARGE, b"", b"small"),
    ("retry", "c1", 1, 0, 1, 1, 0), outcome(1, 1, 2, LARGE, LARGE[:100]), batch(2, b"c" * 5000),
]  # fmt: skip


def copied(source, target):
    """The files of a journal that runs, as they would be were its process killed now."""
    target.mkdir()
    for path in source.parent.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy(path, target / path.name)
    return target / source.name


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The files of a journal whose process was killed: every record a commit of its own, none in the main file."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "a").mkdir()
    with Kept(folder / "a" / "journal.db") as kept:
        for record in RECORDS:
            kept.put(record)
        path = copied(kept.path, folder / "b")
    return path


@pytest.fixture(scope="module")
def stopped(killed, tmp_path_factory):
    """The files of a journal that was closed in order."""
    path = copied(killed, tmp_path_factory.mktemp("stopped") / "c")
    with Kept(path):
        pass
    assert not Path(f"{path}-wal").exists()
    return path


# -- what it keeps


def test_what_was_put_is_there_at_the_next_start(killed, stopped):
    assert loaded(killed) == loaded(stopped) == RECORDS


def test_what_is_put_in_a_row_is_few_commits(tmp_path):
    commits = []
    journal = master.Journal(tmp_path / "journal.db", commits.append, pytest.fail)
    journal.start()
    for number in range(1000):
        journal.put([batch(number, b"x")], [number])
    journal.stop()
    assert [number for told in commits for number in told] == list(range(1000)) and len(commits) < 100
    assert loaded(tmp_path / "journal.db") == [batch(number, b"x") for number in range(1000)]


def test_a_large_payload_lies_in_a_file_and_is_not_read_into_memory_at_the_start(stopped):
    parts = master.read_journal(stopped)[4][-1]
    assert {type(part) for part in parts} == {rpc.Reference}
    assert len(list(master.blobs_of(stopped).iterdir())) == 2


def test_what_is_settled_or_gone_leaves_nothing(tmp_path):
    with Kept(tmp_path / "journal.db") as kept:
        kept.put(*RECORDS, ("owner", "c2", "client", "key", ""), batch(0, LARGE, owner="c2"))
        kept.put(("settled", "c1", 1))
        kept.put(("gone", "c2"))
    assert loaded(kept.path) == [*RECORDS[:4], RECORDS[7]]
    assert not list(master.blobs_of(kept.path).iterdir())


def test_the_end_of_a_system_takes_the_place_of_all_that_there_was_of_it(tmp_path):
    system = ("system", "1", "c1", 1, "App", "d" * 64, {}, [LARGE])
    end = ("finished", "1", "c1", 1, "App", "", None, {}, [b"result"])
    for records in ([system, batch(0, LARGE, owner="1"), end], [end]):
        with Kept(tmp_path / "journal.db") as kept:
            for record in records:
                kept.put(record)
        assert loaded(kept.path) == master.lasting(records) == [end]
    assert not list((tmp_path / "journal.blobs").iterdir())


def test_whenever_its_master_dies_a_system_is_in_the_journal_or_how_it_has_ended(master_here, monkeypatch):
    node = master_here()
    put, entries = node.journal.put, []
    monkeypatch.setattr(node.journal, "put", lambda records, after: (entries.append(records), put(records, after)))
    node.apply(node.board.owner_joined("1", "system", 0.0, name="App"))
    node.systems["1"] = master.System("1", "c1", 1, "App", "d" * 64, {}, 0.0)
    node._record("system", "1", "c1", 1, "App", "d" * 64, {}, [])
    first = len(entries)
    node.end_system(node.systems["1"], None, {}, [b"result"])
    other = rpc.Peer(rpc.Session(bytes(8), rpc.TIMING, 0.0), "client")
    other.label = "c2"
    node.collect(other, 1, "1")
    for count in range(first, len(entries) + 1):
        left = master.lasting([record for records in entries[:count] for record in records])
        assert [record[:2] for record in left if record[0] in ("system", "finished")][-1:] in (
            [("system", "1")], [("finished", "1")])  # fmt: skip
    assert left[-1][:4] == ("finished", "1", "c2", 1)


def test_what_a_killed_master_left_half_done_is_swept(killed, tmp_path):
    path = copied(killed, tmp_path / "here")
    orphan = master.blobs_of(path) / "999"
    orphan.write_bytes(LARGE)
    with Kept(path) as kept:
        assert plain(kept.before) == RECORDS and not orphan.exists()


def test_a_file_that_is_written_again_holds_what_was_written_last(tmp_path):
    with Kept(tmp_path / "journal.db") as kept:
        kept.put(("life", 1), OWNER, batch(0, LARGE))
        for number in range(1, 20):
            kept.put(batch(number, LARGE[number:]))
            kept.put(("settled", "c1", number - 1))
        path = copied(kept.path, tmp_path / "copy")
    assert loaded(path) == loaded(kept.path) == [("life", 1), OWNER, batch(19, LARGE[19:])]


def test_a_record_that_a_later_one_takes_back_is_not_written():
    settled, again = ("settled", "c1", 1), batch(1, b"again")
    assert master.lasting([OWNER, batch(1), outcome(1, 0, 3), settled, again]) == [OWNER, settled, again]
    assert master.lasting([("life", 2), OWNER, batch(1), settled, ("gone", "c1"), OWNER]) == [
        ("life", 2), settled, ("gone", "c1"), OWNER,
    ]  # fmt: skip
    assert master.lasting(RECORDS) is RECORDS


@pytest.mark.parametrize(("word", "number"), [("normal", 1), ("full", 2)])
def test_synchronous_says_what_accepted_work_outlives(tmp_path, word, number):
    with Kept(tmp_path / "journal.db", synchronous=word) as kept:
        assert kept.journal._base.execute("PRAGMA synchronous").fetchone() == (number,)
        kept.put(*RECORDS)
    assert loaded(kept.path) == RECORDS


def test_a_backup_of_a_journal_at_work_is_whole(tmp_path):
    environment = components.Environment(tmp_path / "m", "master").create()
    done = threading.Event()
    with Kept(environment / "journal.db") as kept:
        kept.put(("life", 1), OWNER)

        def work():
            number = 0
            while not done.is_set():
                kept.put(*[batch(number + i, LARGE) for i in range(20)])
                kept.put(*[("settled", "c1", number + i) for i in range(20)])
                number += 20

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for turn in range(5):
                archive = environment.backup(tmp_path / f"{turn}.zip")
                again = components.Environment(tmp_path / f"again{turn}", "master").restore(archive)
                assert loaded(again / "journal.db")[:2] == [("life", 1), OWNER]
        finally:
            done.set()
            worker.join()


# -- how large it is


def size_of(path):
    return sum(file.stat().st_size for file in [path, Path(f"{path}-wal")] if file.exists())


@pytest.mark.slow
def test_the_file_follows_what_is_in_it(tmp_path):
    with Kept(tmp_path / "journal.db") as kept:
        kept.put(("life", 1), OWNER)
        for first in range(0, 8000, 1000):
            kept.put(*[batch(number, b"x" * 5000) for number in range(first, first + 1000)])
        assert size_of(kept.path) > 40 * MIB
        for first in range(0, 7900, 1000):
            kept.put(*[("settled", "c1", number) for number in range(first, min(first + 1000, 7900))])
        small = 9 * MIB + master.LOG_LIMIT
        wait_until(lambda: size_of(kept.path) < small, f"{size_of(kept.path)} bytes become less")
        wait_until(lambda: not kept.journal._excess, "it has come to rest")
        kept.put(("settled", "c1", 7900))
    assert len(loaded(kept.path)) == 2 + 99


@pytest.mark.slow
def test_a_journal_whose_work_comes_and_goes_stays_as_it_is(tmp_path):
    with Kept(tmp_path / "journal.db") as kept:
        kept.put(("life", 1), OWNER)
        for turn in range(40):
            numbers = range(100 * turn, 100 * turn + 100)
            kept.put(*[batch(number, b"x" * 5000, count=1) for number in numbers])
            kept.put(*[outcome(number, 0, 1, LARGE) for number in numbers])
            kept.put(*[("settled", "c1", number) for number in numbers])
            assert size_of(kept.path) < 3 * MIB + master.LOG_LIMIT
            files = sum(file.stat().st_size for file in master.blobs_of(kept.path).iterdir())
            assert files < 2 * 100 * len(LARGE) + master.KEPT_BLOBS


# -- damage


def harmless_or_refused(path, allowed):
    """The journal gives one of these lists of records, or is refused with the reason, the next time too."""
    try:
        found = loaded(path)
    except components.Error as error:
        assert error.exit_code in (1, 2) and str(path) in error.what and error.why and error.fix, error.text()
        with pytest.raises(components.Error):  # what is damaged stays so: nothing was changed by looking
            Kept(path)
        return False
    assert found in allowed
    return True


def places(size, count, seed=7):
    chance = random.Random(seed)
    return sorted({0, size - 1, *(chance.randrange(size) for _ in range(count))})


def with_damage(source, target, name, damage):
    """A copy of a journal one of whose files is changed by `damage(bytes)`."""
    shutil.rmtree(target, ignore_errors=True)
    path = copied(source, target)
    file = path.parent / name
    data = bytearray(file.read_bytes())
    file.write_bytes(damage(data))
    return path


def flipped(at):
    def damage(data):
        data[at] ^= 0x55
        return data

    return damage


def cut(at):
    return lambda data: data[:at]


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_file_is_refused_or_was_not_needed(stopped, tmp_path, damage):
    size = stopped.stat().st_size
    results = [
        harmless_or_refused(with_damage(stopped, tmp_path / "x", stopped.name, damage(at)), [RECORDS])
        for at in places(size, 60)
        if damage is flipped or at
    ]
    assert results.count(False) > 5, "most bytes are unused, some are not"


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_write_ahead_log_loses_nothing_silently(killed, tmp_path, damage):
    log = f"{killed.name}-wal"
    size = (killed.parent / log).stat().st_size
    results = [
        harmless_or_refused(with_damage(killed, tmp_path / "x", log, damage(at)), [RECORDS])
        for at in places(size, 60)
    ]
    assert results.count(False) > 20, "all of it was committed"


def test_a_last_transaction_that_was_never_committed_is_left_out(killed, tmp_path):
    """Its pages are in the log when the process dies, and nobody was told that they are safe."""
    begun = with_damage(killed, tmp_path / "x", f"{killed.name}-wal", lambda data: data)
    log = Path(f"{begun}-wal")
    with Kept(begun) as kept:
        before = log.stat().st_size
        kept.put(batch(3, b"d" * 9000))
        data = log.read_bytes()[: before + 4120 + 2000] if log.stat().st_size > before else log.read_bytes()
    path = with_damage(killed, tmp_path / "y", f"{killed.name}-wal", lambda own: own + data[len(own) :])
    assert loaded(path) == RECORDS


def test_a_log_that_was_cut_by_a_loss_of_power_gives_what_was_committed_before(killed, tmp_path):
    """The note of what was committed does not outlive it either."""
    data = Path(f"{killed}-wal").read_bytes()
    prefixes = [RECORDS[:count] for count in range(len(RECORDS) + 1)]
    found = set()
    for at in places(len(data), 40):
        path = with_damage(killed, tmp_path / "x", f"{killed.name}-wal", cut(at))
        Path(f"{path}-shm").unlink()
        with suppress(components.Error):  # not even the tables
            found.add(prefixes.index(loaded(path)))
    assert len(found) > 4


def test_the_note_can_be_removed_to_go_on_without_what_is_missing(killed, tmp_path):
    size = Path(f"{killed}-wal").stat().st_size
    path = with_damage(killed, tmp_path / "x", f"{killed.name}-wal", cut(size - 10))
    with pytest.raises(components.Error, match="were committed") as caught:
        Kept(path)
    assert f"{path.name}-shm" in caught.value.fix
    Path(f"{path}-shm").unlink()
    with Kept(path) as kept:
        assert plain(kept.before) == RECORDS[:-1]


@pytest.mark.parametrize("damage", [flipped(7), flipped(len(LARGE) - 1), cut(100), cut(0)])
def test_a_damaged_payload_is_refused(stopped, tmp_path, damage):
    name = sorted(file.name for file in master.blobs_of(stopped).iterdir())[0]
    path = with_damage(stopped, tmp_path / "x", f"journal.blobs/{name}", damage)
    assert not harmless_or_refused(path, [])


def test_a_payload_that_is_gone_is_refused(stopped, tmp_path):
    path = copied(stopped, tmp_path / "x")
    next(master.blobs_of(path).iterdir()).unlink()
    assert not harmless_or_refused(path, [])


def test_a_journal_that_is_gone_while_its_payloads_are_there_is_refused(stopped, tmp_path):
    path = copied(stopped, tmp_path / "x")
    path.unlink()
    assert not harmless_or_refused(path, [])
    shutil.rmtree(master.blobs_of(path))
    assert loaded(path) == []


@pytest.mark.parametrize("content", [b"no journal" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_journal_is_refused(tmp_path, content):
    (tmp_path / "journal.db").write_bytes(content)
    assert not harmless_or_refused(tmp_path / "journal.db", [])


def test_a_journal_of_another_format_is_refused_with_both_numbers(stopped, tmp_path):
    path = copied(stopped, tmp_path / "x")
    with closing(sqlite3.connect(path)) as base:
        base.execute("UPDATE format SET version = 77")
        base.commit()
    with pytest.raises(components.UsageError, match=f"format 77, this version reads {master.FORMAT}"):
        Kept(path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage"), [("journal.db", flipped(30)), ("journal.blobs/5", cut(9))])
def test_a_master_with_a_damaged_journal_ends_with_the_remedies_and_changes_nothing(stopped, name, damage):
    here = Swarm()
    try:
        folder = Path(here.folder, "m")
        components.Environment(folder, "master").create()
        for path in with_damage(stopped, Path(here.folder, "x"), name, damage).parent.iterdir():
            shutil.move(path, folder / path.name)
        before = (folder / name).read_bytes()
        for _ in range(2):
            process = here.start("master", "--port", 0, name="m", ready=False).wait()
            assert process.code == 1 and "Traceback" not in process.err, process.err
            for word in ("journal.db", "damaged", "backup", "away"):
                assert word in process.err
            assert (folder / name).read_bytes() == before
        here.master = None
    finally:
        here.close()


# -- a full disk


@pytest.fixture
def disk(request):
    """A disk of 24 MiB in the folder of a new swarm."""
    here = Swarm()
    folder = Path(here.folder, "m")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "none", folder], capture_output=True)
    if mounted.returncode:
        shutil.rmtree(here.folder)
        pytest.skip(f"a disk of its own cannot be mounted: {mounted.stderr.decode().strip()}")
    here.disk = folder
    try:
        yield here
    finally:
        try:
            here.close()
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
            shutil.rmtree(here.folder, ignore_errors=True)


def fill(folder):
    """Takes all the room there is; returns what to remove to have it back."""
    filler = Path(folder, "filler")
    with open(filler, "ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


def test_on_a_full_disk_batches_are_refused_and_all_else_waits_for_room(disk, tmp_path):
    with Kept(disk.disk / "journal.db") as kept:
        kept.put(("life", 1), OWNER, *[batch(number, LARGE * 4) for number in range(5)])
        filler = fill(disk.disk)
        refused = batch(5, LARGE * 40)
        kept.put(refused, told=("accepted", "c1", 5))
        wait_until(lambda: kept.full, "the disk is full")
        error, numbers = kept.full[0]
        assert numbers == [("c1", 5)] and master.is_storage(error)
        fill(disk.disk)  # what the ballast had
        kept.put(outcome(0, 0, 3, LARGE * 100), told=("outcome", "c1", 0))
        kept.put(batch(6, b"x"), told=("accepted", "c1", 6))
        kept.put(told=("accepted", "c1", 1))  # of an owner that is back
        wait_until(lambda: ("accepted", "c1", 1) in kept.sent, "what is safe is told")
        both = [("c1", 5), ("c1", 6)]
        wait_until(lambda: [one for told in kept.full for one in told[1]] == both, "it is refused too")
        kept.put(("settled", "c1", 5), ("settled", "c1", 6), told=("none",))  # the Board has heard
        assert not kept.rooms
        killed = copied(kept.path, tmp_path / "killed")
        filler.unlink()
        wait_until(lambda: kept.rooms, "there is room")
        kept.put(batch(5, b"again"))
    accepted = [message for message in kept.sent if message[0] == "accepted"]
    assert accepted == [("accepted", "c1", 1)] and ("outcome", "c1", 0) in kept.sent
    batches = [batch(number, LARGE * 4) for number in range(5)]
    assert loaded(kept.path) == [("life", 1), OWNER, *batches, outcome(0, 0, 3, LARGE * 100), batch(5, b"again")]
    assert loaded(killed) == [("life", 1), OWNER, *batches], "what waited would run again"


def test_files_that_are_kept_to_be_written_again_go_before_anybody_is_refused(disk):
    with Kept(disk.disk / "journal.db") as kept:
        kept.put(("life", 1), OWNER, *[batch(number, LARGE * 4) for number in range(50)])
        kept.put(*[("settled", "c1", number) for number in range(50)])
        fill(disk.disk)
        kept.put(batch(50, LARGE * 100))
        assert not kept.full
    assert loaded(kept.path) == [("life", 1), OWNER, batch(50, LARGE * 100)]


def test_on_a_full_disk_what_is_settled_is_deleted(disk):
    path = disk.disk / "journal.db"
    with Kept(path) as kept:
        kept.put(("life", 1), OWNER)
        for first in range(0, 900, 100):
            kept.put(*[batch(number, b"x" * 10_000) for number in range(first, first + 100)])
        kept.put(*[batch(number, LARGE) for number in range(900, 950)])
        filler = fill(disk.disk)
        kept.put(batch(2000, LARGE * 40), told=("accepted", "c1", 2000))
        wait_until(lambda: kept.full, "the disk is full")
        kept.put(outcome(0, 0, 3, LARGE * 20), told=("outcome",))
        kept.put(*[("settled", "c1", number) for number in [*range(10, 950), 2000]], told=("settled",))
        count = "SELECT count(*) FROM records"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as base:
            wait_until(lambda: base.execute(count).fetchone() in [(12,), (13,)], "they are deleted")
        wait_until(lambda: kept.rooms, "what they had is room enough")
        assert filler.exists()
        kept.put(batch(2000, b"again"))
    assert len(loaded(path)) == 14


class Working:
    """A board and its journal, without nodes: an owner that submits and settles, a slave that runs everything."""

    def __init__(self, path, seed):
        self.random = random.Random(seed)
        self.told = queue.SimpleQueue()
        put = lambda event: lambda *details: self.told.put((event, *details))  # noqa: E731
        self.journal = master.Journal(path, put("after"), put("failed"), put("full"), put("room"))
        self.board = master.Board()
        self.full, self.number, self.marks, self.settled = False, 0, 0, 0
        self.accepted, self.refused, self.done = set(), set(), Counter()
        self.leases = []
        self.apply(self.board.restore(self.journal.load(), 0.0))
        self.journal.start()
        self.apply(self.board.owner_joined("c1", "client", 0.0))
        self.apply(self.board.slave_joined("s1", {"cpus": 2}, [], 2, 0.0))

    def apply(self, effects):
        self.journal.put(effects.records, effects.after)
        self.send(effects.messages)
        self.board.check()

    def send(self, messages):
        for kind, _, *details in messages:
            if kind == "lease":
                self.leases.append(details[0])
            elif kind == "outcome":
                self.done[details[0]] += details[2] - details[1]
            elif kind == "accepted":
                assert details[0] not in self.refused, "accepted, and refused"
                self.accepted.add(details[0])
            elif kind == "refused":
                assert details[0] not in self.accepted, "refused, and accepted"
                self.refused.add(details[0])

    def hear(self):
        """What the journal told, in order."""
        self.marks += 1
        self.journal.put([], [("mark", "", self.marks)])
        while True:
            event, *details = self.told.get(timeout=60)
            assert event != "failed", details
            if event == "full":
                self.full = True
                for owner, number in details[1]:
                    self.apply(self.board.withdrawn(owner, number, "full", 0.0))
            elif event == "room":
                self.full = False
            else:
                self.send(details[0])
                if ("mark", "", self.marks) in details[0]:
                    return

    def submit(self):
        size = self.random.choice([10, 3000, 30_000])
        effects = self.board.submit("c1", self.number, 3, 0.0, payload=[b"h", b"x" * size])
        self.number += 1
        self.apply(effects)

    def run(self):
        if self.leases:
            lease = self.leases.pop(0)
            for lo, hi in list(lease.open):
                self.apply(self.board.result("s1", lease.id, lo, hi, 0.1, [b"r" * 500], {}, 0.0))

    def settle(self):
        whole = [number for number in self.accepted if self.done[number] == 3]
        if whole:
            numbers = self.random.sample(whole, self.random.randint(1, len(whole)))
            self.accepted -= set(numbers)
            self.settled += len(numbers)
            self.apply(self.board.settled("c1", numbers, 0.0))

    def turn_disk(self, full):
        self.journal._base.execute(f"PRAGMA max_page_count={1 if full else 1 << 30}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_disk_does_what_was_accepted_is_there_and_what_was_refused_is_not(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(master, "PROBE_EVERY", 0.02)
    path = tmp_path / "journal.db"
    here = Working(path, seed)
    steps = [here.submit] * 6 + [here.run] * 12 + [here.settle] * 2 + [here.hear] * 4
    for turn in range(9):
        here.turn_disk(full=turn % 2)
        for _ in range(70):
            here.random.choice(steps)()
    wait_until(lambda: here.hear() or not here.full, "there is room again")
    here.journal.stop()
    again = master.Board()
    again.restore(master.read_journal(path), 0.0)
    again.check()
    assert here.refused and here.settled, "both happened"
    kept = again.owners["c1"].batches
    assert here.accepted == set(kept), "accepted and not settled"
    assert {number: batch.remaining for number, batch in kept.items()} == {
        number: batch.remaining for number, batch in here.board.owners["c1"].batches.items()
    }


@pytest.mark.slow
def test_a_master_whose_disk_is_full_refuses_new_work_ends_what_runs_and_goes_on_by_itself(disk, tmp_path):
    here = disk
    here.start_master(journal=True)
    here.start_slave(workers=2)
    small = ["--app", "Echoes", "--env", tmp_path / "c", "--set", "data.sizes=100000"]
    large = [*small, "--set", "data.sizes=5000000"]
    assert here.run_client("data.py", *small).code == 0
    (tmp_path / "a").mkdir()
    words = ["--app", "Waiting", "--json", "--set", "plain.count=40", "--set", f"plain.folder={tmp_path / 'a'}"]
    running = here.start_client("plain.py", *words)
    wait_until(lambda: (tmp_path / "a" / "accepted").exists(), "its tasks are accepted")
    filler = fill(here.disk)
    refused = here.run_client("data.py", *large)
    assert "storage full" in str(refused.about), refused.out + refused.err
    assert "storage full" in here.proxy.status()["storage"]
    with pytest.raises(urllib.error.HTTPError, match="503") as told:
        urllib.request.urlopen(f"http://{here.address}/readyz", timeout=60)
    assert b"not ready: storage full" in told.value.read()
    (tmp_path / "a" / "go").touch()
    assert running.wait(60).about["result"] == {"sum": 780, "errors": []}
    filler.unlink()
    wait_until(lambda: here.proxy.status()["storage"] == "ok", "it has noticed that there is room")
    run = here.run_client("data.py", *large)
    assert run.code == 0 and not run.about["result"]["errors"], run.err
    assert here.master.err.count("new work is refused") == 1, here.master.err
    assert here.master.err.count("new work is accepted") == 1, here.master.err
    assert "Traceback" not in here.master.err


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_whoever_is_new_to_a_master_whose_disk_is_full_is_told_why_it_cannot_come(disk, tmp_path, known):
    here = disk
    here.start_master(journal=True)
    here.start_slave(workers=1)
    words = ["--env", tmp_path / "c"] if known else []
    assert here.run_client("hello.py", *words).code == 0
    fill(here.disk)
    more = [] if known else ["--env", tmp_path / "new"]
    run = here.run_client("data.py", "--app", "Echoes", "--set", "data.sizes=50000", *words, *more)
    assert run.code != 0 and ("stored by the master" in run.err or "storage full" in run.err), "one finds it out first"
    assert "make room" in run.err, run.err
    assert "Traceback" not in here.master.err + run.err


@pytest.mark.slow
def test_a_task_system_that_could_not_be_kept_is_refused(disk, tmp_path):
    here = disk
    here.start_master(journal=True)
    here.start_slave(workers=1)
    system = ["durable.py", "--app", "RunSystem", "--set", "durable.count=5", "--env", tmp_path / "c"]
    plain = ["data.py", "--app", "Echoes", "--env", tmp_path / "c", "--set"]
    for words in (system, [*plain, "data.sizes=100000"]):
        assert here.run_client(*words).code == 0
    fill(here.disk)
    here.run_client(*plain, "data.sizes=5000000")
    wait_until(lambda: "storage full" in here.proxy.status()["storage"], "the master has found out")
    run = here.run_client(*system)
    assert run.code == 1 and "storage full" in run.err and "make room" in run.err, run.err


# -- looking at it


def look(*words):
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "master.py"), "journal", *map(str, words)], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


@contextmanager
def environment_with(source, folder):
    """A master's folder with this journal."""
    made = components.Environment(folder, "master").create()
    for path in source.parent.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, made / path.name)
    yield made


@pytest.mark.parametrize("which", ["killed", "stopped"])
def test_export_writes_a_line_per_record_and_changes_nothing(request, tmp_path, which):
    with environment_with(request.getfixturevalue(which), tmp_path / "m") as made:
        files = [made / name for name in ("journal.db", "journal.db-wal") if (made / name).exists()]
        before = [file.read_bytes() for file in files]
        run = look("export", "--env", made.path, "--payloads")
        assert run.returncode == 0, run.stderr
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        assert [line["kind"] for line in lines] == [record[0] for record in RECORDS]
        assert lines[4]["owner"] == "c1" and lines[4]["batch"] == 1 and lines[4]["detail"] == list(RECORDS[4][3:-1])
        payload = b"".join(RECORDS[4][-1])
        assert lines[4]["payload"] == {
            "size": len(payload), "sizes": [len(part) for part in RECORDS[4][-1]],
            "sha256": hashlib.sha256(payload).hexdigest(), "base64": base64.b64encode(payload).decode(),
        }  # fmt: skip
        assert "base64" not in look("export", "--env", made.path).stdout
        assert [file.read_bytes() for file in files] == before
        assert loaded(made / "journal.db") == RECORDS


def test_check_says_what_is_in_it(stopped, tmp_path):
    with environment_with(stopped, tmp_path / "m") as made:
        run = look("check", "--env", made.path)
        assert run.returncode == 0 and "whole" in run.stdout, run.stderr
        assert "3 batch, 1 life, 2 outcome, 1 owner, 1 retry" in run.stdout
        assert "6 without an outcome, 3 whose outcome" in run.stdout


def test_check_names_the_damage_and_the_next_one_too(killed, tmp_path):
    path = with_damage(killed, tmp_path / "x", f"{killed.name}-wal", cut(5000))
    with environment_with(path, tmp_path / "m") as made:
        for _ in range(2):
            run = look("check", "--env", made.path)
            assert run.returncode == 1 and "were committed" in run.stderr, run.stderr
        with pytest.raises(components.Error, match="were committed"):
            Kept(made / "journal.db")


def test_there_is_nothing_to_look_at_where_no_master_was(tmp_path):
    run = look("check", "--env", tmp_path)
    assert run.returncode == 2 and "there is no journal" in run.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_journal_can_be_looked_at_while_its_master_works(swarm, tmp_path):
    here = swarm(slaves=1, workers=1, journal=True)
    words = ["--app", "Waiting", "--json", "--set", "plain.count=40", "--set", f"plain.folder={tmp_path}"]
    client = here.start_client("plain.py", *words)
    wait_until(lambda: (tmp_path / "accepted").exists(), "its tasks are accepted")
    run = look("check", "--env", here.master.folder)
    assert run.returncode == 0 and "40 without an outcome" in run.stdout and "a master that runs" in run.stdout, run
    kinds = [json.loads(line)["kind"] for line in look("export", "--env", here.master.folder).stdout.splitlines()]
    assert kinds[0] == "life" and {"slave", "owner", "batch"} <= set(kinds)
    (tmp_path / "go").touch()
    assert client.wait(60).about["result"]["sum"] == 780
    here.master.ends(signal.SIGKILL)
    here.master.parent.close()
    here.master.parent = None
    run = look("check", "--env", here.master.folder)
    assert run.returncode == 0 and "whole" in run.stdout and "that runs" not in run.stdout, run
    here.start_master(journal=True)
