"""What all other tests, which run before this one, have left behind: nothing."""

import fcntl
import gc
import multiprocessing.resource_tracker
import os
from contextlib import suppress

import zmq.utils.garbage
from conftest import Swarm, descriptors_of, processes_with, text_of, wait_until

from concurrent_swarm import rpc


def test_the_suite_has_left_no_process_behind(suite):
    multiprocessing.resource_tracker._resource_tracker._stop()  # of this process, whose tests have forked
    mark = f"LC_SWARM_SUITE={os.getpid()}"
    with suppress(AssertionError):
        wait_until(lambda: not processes_with(mark), "all processes have ended", 20)
    assert [text_of(f"/proc/{pid}/cmdline") for pid in processes_with(mark)] == []


def test_the_suite_has_left_no_descriptor_open(suite):
    gc.collect()
    zmq.utils.garbage.gc.stop()  # pyzmq keeps one thread and its sockets for the buffers that it sends
    now = descriptors_of(os.getpid())
    assert len(now) <= len(suite.descriptors), sorted(now.items() - suite.descriptors.items())


def test_the_suite_has_left_no_folder_and_no_key_behind(suite):
    assert [folder for folder in Swarm.folders if os.path.exists(folder)] == []
    assert sorted(path for path in suite.state.rglob("*")) == [], "a test has used the state folder of this user"


def test_files_in_memory_of_processes_that_were_killed_are_gone_with_the_next_store(suite):
    entries = os.scandir(rpc.payload_root())
    of_the_dead = [entry.path for entry in entries if entry.is_dir() and is_free(f"{entry.path}/lock")]
    store = rpc.Store()
    try:
        assert os.path.isdir(store.folder) and [folder for folder in of_the_dead if os.path.exists(folder)] == []
    finally:
        store.close()


def is_free(lock):
    """Whether no process holds this lock any more."""
    with suppress(BlockingIOError, FileNotFoundError), open(lock) as file:  # another suite may remove it just now
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
