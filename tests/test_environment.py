"""The folder of a node: creation, lock, backup; and the log files in it."""

import io
import json
import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from concurrent_swarm.components import Config, Environment, UsageError, configure_logging, state_root

from concurrent_swarm import components, rpc


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No test touches the state folder of the person who runs it."""
    monkeypatch.setenv("CONCURRENT_SWARM_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# -- folders


def test_create_makes_every_folder_and_may_be_repeated(tmp_path):
    env = Environment(tmp_path / "env").create()
    assert {path.name for path in env.path.iterdir()} == {*Environment.FOLDERS, "VERSION"}
    assert mode(env / "keys") == mode(env / "run") == 0o700
    env.config_path.write_text("[node]\n")
    env.create()
    assert env.config_path.read_text() == "[node]\n"


def test_a_key_folder_that_was_opened_to_others_is_not_closed_in_silence(tmp_path):
    env = Environment(tmp_path / "env").create()
    (env / "keys").chmod(0o755)
    env.create()
    with pytest.raises(components.Error) as caught:
        rpc.NodeKeys(str(env / "keys"))
    assert caught.value.fix == f"chmod 700 {env / 'keys'}"


def test_nobody_else_may_write_plug_ins_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        env = Environment(tmp_path / "env").create()
    finally:
        os.umask(before)
    assert mode(env / "plugins") == 0o755


def test_a_new_environment_has_a_configuration_that_can_be_read(tmp_path):
    env = Environment(tmp_path / "env").create()
    assert Config(env.config_path, folder=env.path).check_unknown() == []


def test_a_creation_that_was_cut_short_is_completed(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "VERSION").write_text("1\n")
    assert (Environment(tmp_path / "env").create() / "logs").is_dir()


@pytest.mark.parametrize("text", ["7\n", "", "abc", "1.0"])
def test_another_format_is_one_clear_error(tmp_path, text):
    env = Environment(tmp_path / "env").create()
    (env / "VERSION").write_text(text)
    with pytest.raises(UsageError, match="reads format 1"):
        env.create()


@pytest.mark.parametrize("name", ["photo.jpg", "VERSION.md", "VERSIONS"])
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="is not an environment"):
        Environment(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "env").touch()
    with pytest.raises(UsageError, match="cannot use"):
        Environment(tmp_path / "env").create()


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"CONCURRENT_SWARM_STATE": "/s", "XDG_STATE_HOME": "/x"}, "linux", "/s"),
        ({"XDG_STATE_HOME": "/x"}, "linux", "/x/concurrent_swarm"),
        ({"XDG_STATE_HOME": "relative"}, "linux", "HOME/.local/state/concurrent_swarm"),
        ({}, "linux", "HOME/.local/state/concurrent_swarm"),
        ({}, "darwin", "HOME/Library/Application Support/concurrent_swarm"),
        ({"LOCALAPPDATA": "/l"}, "win32", "/l/concurrent_swarm"),
    ],
)
def test_the_state_folder_is_where_the_platform_wants_it(environ, platform, expected):
    assert state_root(environ, platform) == Path(expected.replace("HOME", str(Path.home())))


# -- lock


def test_claim_takes_the_first_environment_that_is_free(state):
    with Environment.claim("slave") as one, Environment.claim("slave") as two:
        assert (one.path, two.path) == (state / "slave", state / "slave-2")
        assert one.role == two.role == "slave"
        one.release()
        with Environment.claim("slave") as three, Environment.claim("slave") as four:
            assert (three.path, four.path) == (state / "slave", state / "slave-3")


def test_a_taken_environment_names_the_process_that_has_it(tmp_path):
    with (
        Environment.claim("master", tmp_path / "env"),
        pytest.raises(UsageError, match=f"is in use: process {os.getpid()} has it .*--env DIR"),
    ):
        Environment.claim("master", tmp_path / "env")
    Environment.claim("master", tmp_path / "env").release()


def test_the_lock_is_free_when_its_process_was_killed(state):
    code = "from concurrent_swarm.components import Environment\n"
    code += "env = Environment.claim('slave'); print(env.path, flush=True); input()"
    root = Path(components.__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout.readline().strip() == str(state / "slave")
        with pytest.raises(UsageError, match=f"process {process.pid} has it"):
            Environment(state / "slave").lock()
        process.kill()
    Environment(state / "slave").lock().release()


# -- backup and restore


@pytest.fixture
def env(tmp_path):
    env = Environment(tmp_path / "env").create()
    (env / "configs" / "env.ini").write_text("[node]\nport = 1\n")
    (env / "plugins" / "mine.py").write_text("x = 1\n")
    (env / "keys" / "secret").write_text("s3cret")
    (env / "keys" / "secret").chmod(0o600)
    (env / "logs" / "env.log").write_text("noise")
    return env


def test_a_backup_leaves_out_logs_run_lock_and_keys_unless_asked(env, tmp_path):
    with env.lock():
        target = env.backup(tmp_path / "a.zip")
        names = set(zipfile.ZipFile(target).namelist())
        assert names == {"VERSION", "configs/env.ini", "plugins/mine.py"} and mode(target) == 0o600
        assert "keys/secret" in zipfile.ZipFile(env.backup(tmp_path / "b.zip", keys=True)).namelist()


def test_a_backup_goes_beside_the_folder_and_never_into_itself(env):
    target = env.backup()
    assert target.parent == env.path.parent and target.name.startswith("env-")
    inside = env / "plugins" / "b.zip"
    assert env.backup(inside) == env.backup(inside) == inside
    assert "plugins/b.zip" not in zipfile.ZipFile(inside).namelist()


def test_a_backup_comes_back_whole(env, tmp_path):
    archive = env.backup(tmp_path / "b.zip", keys=True)
    again = Environment(tmp_path / "again").restore(archive)
    assert (again / "plugins" / "mine.py").read_text() == "x = 1\n"
    assert (again / "keys" / "secret").read_text() == "s3cret" and mode(again / "keys" / "secret") == 0o600
    assert again.config_path.read_text() == env.config_path.read_text() and (again / "logs").is_dir()


def test_a_database_in_use_is_copied_as_of_its_last_commit(env, tmp_path):
    with sqlite3.connect(env / "journal.db") as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE t (n)")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        writer.execute("INSERT INTO t VALUES (2)")  # not committed
        archive = env.backup(tmp_path / "b.zip")
        writer.rollback()
    writer.close()
    again = Environment(tmp_path / "again").restore(archive)
    assert not [name for name in zipfile.ZipFile(archive).namelist() if name.startswith("journal.db-")]
    copy = sqlite3.connect(again / "journal.db")
    assert copy.execute("SELECT n FROM t").fetchall() == [(1,)]
    copy.close()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a//b"])
def test_an_archive_with_a_name_that_escapes_is_refused_before_anything_is_written(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("VERSION", "1\n")
        archive.writestr(name, "x")
    with pytest.raises(UsageError, match="leave the folder"):
        Environment(tmp_path / "again").restore(tmp_path / "bad.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


def test_what_cannot_be_restored_leaves_nothing_behind(env, tmp_path):
    archive = env.backup(tmp_path / "b.zip")
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-40])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("x", "y")
    for name, says in (("cut.zip", "cannot"), ("none.zip", "cannot"), ("other.zip", "no VERSION")):
        with pytest.raises(UsageError, match=says):
            Environment(tmp_path / "again").restore(tmp_path / name)
    with pytest.raises(UsageError, match="is not empty"):
        env.restore(archive)
    assert {path.name for path in tmp_path.iterdir()} == {"env", "b.zip", "cut.zip", "other.zip"}


# -- logging


@pytest.fixture
def logged(env):
    """Configure logging, run the calls, and return what the stream and the file got."""

    def run(calls, **options):
        stream = io.StringIO()
        with configure_logging(env, stream=stream, **options):
            calls(logging.getLogger("concurrent_swarm.master"))
        return stream.getvalue(), (env / "logs" / "env.log").read_text().removeprefix("noise")

    return run


def test_a_line_on_the_stream_is_time_and_message_with_the_level_from_warning_up(logged):
    def calls(log):
        log.debug("hidden")
        log.info("slave %s joined", "s1")
        log.warning("odd")

    stream, file = logged(calls)
    assert re.fullmatch(r"\d\d:\d\d:\d\d slave s1 joined\n\d\d:\d\d:\d\d warning: odd\n", stream)
    assert re.search(r"^\d{4}-\d\d-\d\d \S+ info    concurrent_swarm.master: slave s1 joined$", file, re.M)


def test_no_message_can_forge_a_line_or_steer_the_terminal(logged):
    stream, file = logged(lambda log: log.info("a\nb\x1b[31m\x9b%s", "\r\x00"))
    assert stream.endswith(r" a\nb\x1b[31m\x9b\x0d\x00" + "\n")
    assert stream.count("\n") == file.count("\n") == 1


def test_a_traceback_is_in_the_file_and_one_line_on_the_stream(logged):
    def calls(log):
        try:
            raise ValueError("bad\nvalue")
        except ValueError:
            log.exception("task failed")

    stream, file = logged(calls)
    assert stream.count("\n") == 1 and r"error: task failed (ValueError: bad\nvalue" in stream
    assert "Traceback (most recent call last)" in file


def test_json_lines_carry_time_level_logger_message_and_ids(logged):
    def calls(log):
        log.warning("task %d failed\n", 3, extra={"task": "c1.3", "attempt": 2, "other": 1})

    stream, file = logged(calls, format="json")
    line = json.loads(stream)
    assert file == stream and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    ids = {"task": "c1.3", "attempt": 2}
    assert line == {"level": "warning", "logger": "concurrent_swarm.master", "msg": "task 3 failed\n", **ids}


def test_logging_ends_when_it_is_closed(env):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    configure_logging(env, level="debug", stream=io.StringIO()).close()
    assert (root.level, root.handlers) == before


def test_text_that_no_file_can_hold_is_logged_all_the_same(logged):
    assert "\\udcff" in logged(lambda log: log.info("name \udcff"))[1]


@pytest.mark.parametrize("options", [{"format": "xml"}, {"level": "loud"}])
def test_an_unknown_log_setting_lists_the_known_ones(env, options):
    with pytest.raises(UsageError, match="known are: "):
        configure_logging(env, **options)


def test_nodes_that_start_at_once_make_one_environment_together(tmp_path):
    def make(number, begin, problems):
        begin.wait()
        try:
            Environment(tmp_path / str(number), "client").create()
        except UsageError as error:
            problems.append(error)

    problems = []
    for number in range(60):
        begin = threading.Barrier(6)
        made = [threading.Thread(target=make, args=(number, begin, problems)) for _ in range(6)]
        for thread in made:
            thread.start()
        for thread in made:
            thread.join()
    assert not problems
