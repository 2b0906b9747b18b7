"""Tasks, and a task system, that try to get out of where they run; the result tells what did.

Every attempt is a function of what the test has told: where things lie that are not its business, which processes are
not its own, who listens. It raises what refused it, or returns what it has got hold of. None of them does harm where
it succeeds: signals are those that a process ignores, limits are set to what they are, files are baits.
"""

import ctypes
import errno
import fcntl
import gc
import hashlib
import json
import mmap
import os
import re
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem
from concurrent_swarm.tasks import ITaskSystem, Task

REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH, errno.EXDEV}
AT_FDCWD = -100
QUEUE = b"escape-%d" % os.getpid()
MANY = 6000  # descriptors, more than a worker should have
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
ATTEMPTS = {}  # group -> name -> function


def attempt(group):
    """Registers a function as an attempt, under its name."""

    def register(function):
        ATTEMPTS.setdefault(group, {})[function.__name__] = function
        return function

    return register


def attempts(group, **functions):
    """Registers several."""
    for name, function in functions.items():
        ATTEMPTS.setdefault(group, {})[name] = function


def try_all(told, groups=None):
    """[group, name, got out, what it got or what refused it] of every attempt."""
    return [[group, name, *outcome(function, told)]
            for group in groups or ATTEMPTS for name, function in ATTEMPTS[group].items()]


def outcome(function, told):
    """Whether an attempt got out, and what it got hold of or what refused it."""
    try:
        found = function(told)
    except (Exception, SystemExit) as error:
        return False, f"{type(error).__name__}: {error}"[:200]
    return (False, "nothing was there") if found is None else (True, str(found)[:200])


def call(number, *args):
    """A system call by its number on x86_64."""
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if answer == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def reaches(number, *args):
    """Whether the kernel came to look at what a system call is about; it may not like that then."""
    try:
        answer = call(number, *args)
    except OSError as error:
        if error.errno in REFUSALS:
            raise
        return f"reached, {error}"
    return f"returned {answer}"


@contextmanager
def own_path(name):
    """A path in the task's own temporary folder, that is cleaned up."""
    path = os.path.join(tempfile.gettempdir(), f"{name}-{os.getpid()}")
    try:
        yield path
    finally:
        with suppress(OSError):
            os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def in_child(function):
    """What it returns or raises in a child, where one can be had: so that a success changes nothing here."""
    try:
        ours, theirs = os.pipe()
        pid = os.fork()
    except OSError:
        return function()
    if not pid:
        got, text = outcome(lambda told: function(), None)
        os.write(theirs, json.dumps([got, text]).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        got, text = json.loads(pipe.read() or '[true, "the child is gone"]')
    os.waitpid(pid, 0)
    if not got:
        raise PermissionError(text)
    return text


# -- reading what is not ours


def head_of(path):
    """The first bytes of a file, or the names in a folder."""
    if os.path.isdir(path):
        return os.listdir(path)
    with open(path, "rb") as file:
        return file.read(16)


def by_reopening(path):
    """A descriptor that only names the file, opened again for reading."""
    file = os.open(path, os.O_PATH)
    try:
        return head_of(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def by_folder(path):
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        return os.read(os.open(path.lstrip("/"), os.O_RDONLY, dir_fd=folder), 16)
    finally:
        os.close(folder)


def by_symlink(path):
    with own_path("symlink") as link:
        os.symlink(path, link)
        return head_of(link)


def by_hard_link(path):
    with own_path("link") as link:
        os.link(path, link)
        return head_of(link)


def by_link_of_descriptor(path):
    file = os.open(path, os.O_PATH)
    with own_path("linked") as link:
        try:
            libc.linkat.restype = ctypes.c_int
            call(265, file, b"", AT_FDCWD, link.encode(), 0x1000)  # AT_EMPTY_PATH
            return head_of(link)
        finally:
            os.close(file)


def by_database(path):
    with closing(sqlite3.connect(":memory:")) as base:
        try:
            base.execute("ATTACH ? AS outside", [path])
            return base.execute("SELECT count(*) FROM outside.sqlite_master").fetchall()
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                return f"was read, {error}"
            raise


def by_handle(path):
    """The way by which root opens a file without its name."""
    handle, mount = (ctypes.c_uint32 * 34)(128), ctypes.c_int()
    call(303, AT_FDCWD, path.encode(), handle, ctypes.byref(mount), 0)
    folder = os.open(os.path.dirname(path), os.O_PATH)
    for base in (folder, AT_FDCWD):
        with suppress(OSError):
            return os.read(call(304, base, handle, os.O_RDONLY), 16)
    return os.read(call(304, AT_FDCWD, handle, os.O_RDONLY), 16)


WAYS = {
    "open": head_of,
    "proc_root": lambda path: head_of(f"/proc/self/root{path}"),
    "proc_cwd": lambda path: head_of("/proc/self/cwd/" + "../" * 30 + path.lstrip("/")),
    "climbing": lambda path: head_of(tempfile.gettempdir() + "/.." * 30 + path),
    **{name: value for name, value in globals().items() if name.startswith("by_")},
}


def read_by(way):
    """All secrets that can be read by this way."""

    def read_secrets(told):
        found, errors = {}, {}
        for label, path in told["secrets"].items():
            got, text = outcome(lambda told, path=path: WAYS[way](path), told)
            (found if got else errors)[label] = text
        if not found:
            raise PermissionError(json.dumps(errors))
        return found

    return read_secrets


attempts("reading", **{f"secrets_by_{way.removeprefix('by_')}": read_by(way) for way in WAYS})
attempts("reading", **{
    "list_the_root": lambda told: os.listdir("/"),
    "list_the_state": lambda told: os.listdir(told["state"]),
    "list_etc": lambda told: os.listdir("/etc"),
    "list_homes": lambda told: os.listdir(os.path.expanduser("~root")),
    "list_temporary_folders": lambda told: os.listdir("/tmp"),
    "list_memory": lambda told: os.listdir("/dev/shm"),
    "list_processes": lambda told: [name for name in os.listdir("/proc") if name.isdigit()],
})


@attempt("reading")
def payloads_in_memory(told):
    """What other workers have there."""
    for folder, _, names in os.walk(told["payloads"]):
        for name in names:
            return os.path.join(folder, name), head_of(os.path.join(folder, name))


@attempt("reading")
def named_shared_memory(told):
    from _posixshmem import shm_open

    with open(shm_open(f"/{told['shared']}", os.O_RDWR, 0), "rb") as file:
        return file.read(8)


@attempt("reading")
def inherited_descriptors(told):
    """There is none but what this process needs: folders lead out of it."""
    for file in range(3, 4096):
        with suppress(OSError):
            if os.path.isdir(f"/proc/self/fd/{file}") or (os.fstat(file).st_mode & 0o170000) == 0o040000:
                return os.open("..", os.O_RDONLY, dir_fd=file)


def of_process(what, look=head_of):
    """Reads a file below /proc of the processes that are not its own."""

    def read_of_process(told):
        found, errors = {}, {}
        for label, pid in told["pids"].items():
            got, text = outcome(lambda told, pid=pid: look(f"/proc/{pid}/{what}") or None, told)
            (found if got else errors)[label] = text
        if not found:
            raise PermissionError(json.dumps(errors))
        return found

    return read_of_process


def memory_below(path):
    """What `mem` says at an address that is there in every process that this one was forked with."""
    with open(path, "rb", buffering=0) as file:
        file.seek(id(None))
        try:
            return file.read(8)
        except OSError as error:
            return f"opened, {error}"


attempts("reading", **{
    f"proc_{what.replace('/', '_')}": of_process(what)
    for what in ("environ", "maps", "fd", "cwd", "root", "root/etc", "task", "stat", "cmdline", "io", "net/tcp")
}, proc_mem=of_process("mem", memory_below))


# -- writing what is not ours


def bait(name):
    """An attempt at a file of its own in the folder outside."""

    def register(function):
        def write_outside(told):
            return function(os.path.join(told["outside"], name)) or "done"

        attempts("writing", **{name: write_outside})
        return function

    return register


def write(path, mode="w"):
    with open(path, mode) as file:
        return file.write("changed")


for name, action in {
    "open_for_writing": write,
    "append": lambda path: write(path, "a"),
    "make_a_file": lambda path: write(path + ".new"),
    "truncate": lambda path: os.truncate(path, 0),
    "unlink": os.unlink,
    "make_a_folder": lambda path: os.mkdir(path + ".new"),
    "make_a_fifo": lambda path: os.mkfifo(path + ".new"),
    "make_a_socket": lambda path: os.mknod(path + ".new", 0o140600),
    "make_a_symlink": lambda path: os.symlink("/", path + ".new"),
    "make_a_link": lambda path: os.link(path, path + ".new"),
    "rename_there": lambda path: os.rename(path, path + ".new"),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, os.getuid(), 0 if os.getuid() == 0 else os.getgid()),
    "set_times": lambda path: os.utime(path, (1, 1)),
    "set_attribute": lambda path: os.setxattr(path, "user.escape", b"1"),
    "chmod_of_the_folder": lambda path: os.chmod(os.path.dirname(path), 0o777),
}.items():
    bait(name)(action)


@bait("rename_in")
def rename_in(path):
    with own_path("renamed") as mine:
        os.rename(path, mine)
        return head_of(mine)


@bait("rename_out")
def rename_out(path):
    with own_path("moved") as mine:
        write(mine)
        os.rename(mine, path)


@bait("link_out")
def link_out(path):
    with own_path("linked") as mine:
        write(mine)
        os.link(mine, path + ".new")


@bait("through_a_symlink")
def through_a_symlink(path):
    with own_path("way") as link:
        os.symlink(path, link)
        write(link)


@bait("by_database")
def by_database_out(path):
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute("ATTACH ? AS outside", [path + ".new"])
        base.execute("CREATE TABLE outside.made (one)")
        base.commit()


@bait("set_mode_of_descriptor")
def set_mode_of_descriptor(path):
    file = os.open(path, os.O_PATH)
    try:
        call(452, file, b"", 0o777, 0x1000)  # fchmodat2 with AT_EMPTY_PATH
    finally:
        os.close(file)


@attempt("writing")
def mode_of_what_is_read(told):
    """A descriptor for reading is enough to change who may use a file, for its owner. Here it stays as it is."""
    with open(os.__file__) as file:
        return os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & 0o7777) or os.__file__


@attempt("writing")
def times_of_what_is_read(told):
    with open(os.__file__) as file:
        status = os.fstat(file.fileno())
        return os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns)) or os.__file__


@attempt("writing")
def own_source(told):
    """The application's files here are for all its workers, and for all who send the same application."""
    return open(__file__, "a").close() or __file__


@attempt("writing")
def beside_own_source(told):
    path = Path(__file__).with_name("sitecustomize.py")
    write(path)
    path.unlink()
    return path


@attempt("writing")
def into_python(told):
    path = os.path.join(sys.prefix, f"escape-{os.getpid()}")
    write(path)
    os.unlink(path)
    return path


@attempt("writing")
def into_memory(told):
    path = f"/dev/shm/escape-{os.getpid()}"
    write(path)
    os.unlink(path)
    return path


@attempt("writing")
def kernel_settings(told):
    path = Path("/proc/sys/kernel/core_pattern")
    was = path.read_bytes()
    path.write_bytes(was)
    return was


@attempt("writing")
def device(told):
    """The door to everything, for who may make it."""
    with own_path("device") as path:
        os.mknod(path, 0o020600, os.makedev(1, 3))
        return os.open(path, os.O_RDWR)


# -- other processes


def at_each(action):
    """Does something to every process that is not its own."""

    def reach_processes(told):
        found, errors = {}, {}
        for label, pid in told["pids"].items():
            got, text = outcome(lambda told, pid=pid: action(pid) or "done", told)
            (found if got else errors)[label] = text
        if not found:
            raise PermissionError(json.dumps(errors))
        return found

    return reach_processes


@contextmanager
def handle_of(pid):
    file = os.pidfd_open(pid)
    try:
        yield file
    finally:
        os.close(file)


def by_pidfd(pid):
    with handle_of(pid) as file:
        signal.pidfd_send_signal(file, signal.SIGCONT)


def steal_descriptor(pid):
    with handle_of(pid) as file:
        return os.fstat(call(438, file, 2, 0)).st_ino


def trace(pid):
    """Looks into it as a debugger does, and lets it go."""
    call(101, 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    call(101, 0x4207, pid, 0, 0)  # PTRACE_INTERRUPT
    os.waitpid(pid, 0x40000000)
    call(101, 17, pid, 0, 0)  # PTRACE_DETACH


def limit(pid):
    """Its own limit, set again: any other could be set as well."""
    was = (ctypes.c_uint64 * 2)()
    call(302, pid, 7, None, was)
    call(302, pid, 7, was, None)


def read_limit(pid):
    was = (ctypes.c_uint64 * 2)()
    call(302, pid, 0, None, was)


def vector():
    """Eight bytes here, and where they are to be read or written in another process."""
    here = ctypes.create_string_buffer(8)
    iovec = struct.pack("PN", ctypes.addressof(here), 8)
    return here, iovec, struct.pack("PN", id(None), 8)


def copy_memory(pid):
    here, mine, theirs = vector()
    return reaches(310, pid, mine, 1, theirs, 1, 0), here.raw


def change_memory(pid):
    _, mine, _ = vector()
    return reaches(311, pid, mine, 1, struct.pack("PN", 8, 8), 1, 0)  # nothing is at that address


attempts("processes", **{name: at_each(action) for name, action in {
    "kill": lambda pid: os.kill(pid, signal.SIGCONT),
    "ask_by_kill": lambda pid: os.kill(pid, 0),
    "kill_its_group": lambda pid: os.killpg(os.getpgid(pid), signal.SIGCONT),
    "kill_a_thread": lambda pid: call(234, pid, pid, int(signal.SIGCONT)),
    "queue_a_signal": lambda pid: call(129, pid, int(signal.SIGCONT), struct.pack("iii116x", 18, 0, -1)),
    "kill_by_pidfd": by_pidfd,
    "steal_a_descriptor": steal_descriptor,
    "trace": trace,
    "set_a_limit": limit,
    "read_a_limit": read_limit,
    "read_memory": copy_memory,
    "write_memory": change_memory,
    "set_priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)),
    "set_processors": lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
    "set_scheduler": lambda pid: os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0)),
    "set_scheduler_attributes": lambda pid: call(314, pid, struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 0, 0, 0), 0),
    "set_io_priority": lambda pid: call(251, 1, pid, 2 << 13 | 4),
    "compare": lambda pid: reaches(312, os.getpid(), pid, 2, 0, 0),
    "advise_memory": lambda pid: reaches(440, os.pidfd_open(pid), struct.pack("PN", 4096, 4096), 1, 20, 0),
    "count_events": lambda pid: os.close(call(298, events(), pid, -1, -1, 0)),
    "find_robust_list": lambda pid: call(274, pid, struct.pack("P", 0) * 2, struct.pack("P", 8)),
}.items()})
attempts("processes", **{
    "set_priority_of_the_user": lambda told: os.setpriority(os.PRIO_USER, os.getuid(), 0) or "done",
    "set_io_priority_of_the_user": lambda told: call(251, 3, os.getuid(), 2 << 13 | 4),
    "raise_own_priority": lambda told: in_child(lambda: os.nice(-5)),
    "run_in_real_time": lambda told: in_child(
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or "done"),
})


def events():
    """What `perf` asks for: the processor time of a process."""
    return struct.pack("IIQQQQQ", 1, 64, 0, 0, 0, 0, 1 << 5 | 1 << 6).ljust(64, b"\0")


@attempt("processes")
def signal_of_a_socket(told):
    """The kernel sends this one, on behalf of who has asked for it: SIGTERM when there is something to read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.fcntl(ours, fcntl.F_SETOWN, told["victim"])
        fcntl.fcntl(ours, 10, int(signal.SIGTERM))  # F_SETSIG
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        theirs.send(b"x")
        select.select([ours], [], [], 1)
    return None  # the test looks whether that process lives


# -- the network


def tcp(told, protocol=0, flags=0):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
        if flags:
            return sock.sendto(b"x", flags, tuple(told["tcp"]))
        sock.settimeout(2)
        sock.connect(tuple(told["tcp"]))
        return sock.getpeername()


def listen(told, bind):
    with socket.socket() as sock:
        if bind:
            sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.getsockname()


def connect_to(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
        return "connected"


def a_socket(*kind):
    """An attempt to have one at all."""

    def make(told):
        with socket.socket(*kind) as sock:
            return sock

    return make


@attempt("network")
def udp(told):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"x", tuple(told["udp"]))


@attempt("network")
def own_descriptor_as_a_client(told):
    """What it inherited is connected; a datagram socket of its own could be sent elsewhere."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        return ours.sendto(b"x", told["datagrams"])


attempts("network", **{
    "tcp_connect": tcp,
    "multipath_tcp_connect": lambda told: tcp(told, 262),
    "fast_open": lambda told: tcp(told, flags=0x20000000),
    "tcp_connect_6": lambda told: connect_to(socket.AF_INET6, tuple(told["tcp6"])),
    "tcp_listen": lambda told: listen(told, True),
    "listen_without_bind": lambda told: listen(told, False),
    "master_control": lambda told: connect_to(socket.AF_INET, tuple(told["control"])),
    "unix_connect": lambda told: connect_to(socket.AF_UNIX, told["unix"]),
    "master_socket": lambda told: connect_to(socket.AF_UNIX, told["compute"]),
    "unix_connect_abstract": lambda told: connect_to(socket.AF_UNIX, f"\0{told['abstract']}"),
    "raw": a_socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": a_socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300),
    "netlink": a_socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "algorithm": a_socket(38, socket.SOCK_SEQPACKET, 0),
    "host_of_the_machine": a_socket(40, socket.SOCK_STREAM, 0),
    "multicast": a_socket(socket.AF_INET6, socket.SOCK_DGRAM, 0),
})


# -- programs and processes


def forked(number, *args):
    """A child by a system call; it ends at once."""
    pid = call(number, *args)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def machine_code(code):
    """Runs a few bytes of it, and returns the register eax."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    anchor = ctypes.c_char.from_buffer(page)
    try:
        return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(anchor))()
    finally:
        del anchor
        page.close()


def positive(answer):
    """An error of the kernel is a negative number there."""
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer


@attempt("programs")
def vfork(told):
    """mov eax, 58; syscall; test eax, eax; jnz over; mov eax, 60; xor edi, edi; syscall; over: ret"""
    code = bytes.fromhex("b83a000000 0f05 85c0 7509 b83c000000 31ff 0f05 c3")
    pid = positive(machine_code(code))
    os.waitpid(pid, 0)
    return pid


@attempt("programs")
def fork_bomb(told):
    """Of a few only."""
    made = []
    try:
        for _ in range(20):
            pid = os.fork()
            if not pid:
                os._exit(0)
            made.append(pid)
    finally:
        for pid in made:
            os.waitpid(pid, 0)
    return made


@attempt("programs")
def without_a_trace(told):
    """The function below `subprocess`, of which no audit hook hears."""
    from _posixsubprocess import fork_exec

    ours, theirs = os.pipe()
    args = [[b"true"], [b"/bin/true"], True, (theirs,), None, None, -1, -1, -1, -1, -1, -1, ours, theirs, False, False]
    group, by_vfork = [-1] * (sys.version_info >= (3, 11)), [True] * ((3, 11) <= sys.version_info < (3, 14))
    try:
        pid = fork_exec(*args, *group, None, None, None, -1, None, *by_vfork)
    finally:
        os.close(ours)
        os.close(theirs)
    os.waitpid(pid, 0)
    return pid


attempts("programs", **{
    "fork": lambda told: forked(57),
    "clone": lambda told: forked(56, int(signal.SIGCHLD), 0, 0, 0, 0),
    "clone_of_a_namespace": lambda told: forked(56, 0x10000000 | int(signal.SIGCHLD), 0, 0, 0, 0),
    "clone3": lambda told: forked(435, struct.pack("8Q", 0, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0), 64),
    "subprocess": lambda told: subprocess.run(["/bin/true"], check=True),
    "posix_spawn": lambda told: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "system": lambda told: system_call("true"),
    "popen": lambda told: libc_popen(),
    "daemon": lambda told: daemon(),
})


def system_call(command):
    """`os.system` tells of a refusal by its answer."""
    code = os.system(command)
    if code:
        raise PermissionError(f"system() returned {code}")
    return command


def libc_popen():
    libc.popen.restype = ctypes.c_void_p
    file = libc.popen(b"echo out", b"r")
    if not file:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return libc.pclose(ctypes.c_void_p(file))


def daemon():
    """Its grandchild lives in a session of its own."""
    pid = os.fork()
    if not pid:
        os.setsid()
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


SHELL = ["sh", "-c", "echo a program has run; exit 7"]


def loaded():
    """Of the file that loads a program, the first that is here."""
    return next(path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-x86-64.so.2") if os.path.exists(path))


def in_memory(path="/bin/sh"):
    """A program that lies in no file."""
    file = os.memfd_create("program")
    with open(path, "rb") as program:
        os.write(file, program.read())
    return file


EXECS = {  # what takes the place of this process if it succeeds
    "exec": lambda: os.execv("/bin/sh", SHELL),
    "exec_by_loader": lambda: os.execv(loaded(), ["ld.so", "/bin/sh", *SHELL[1:]]),
    "exec_of_descriptor": lambda: os.execve(os.open("/bin/sh", os.O_PATH), SHELL, {}),
    "exec_of_memory": lambda: os.execve(in_memory(), SHELL, {}),
    "execveat_of_memory": lambda: call(322, in_memory(), b"", (ctypes.c_char_p * 4)(*map(str.encode, SHELL)), None,
                                       0x1000),
    "exec_of_own_copy": lambda: exec_copy(),
}


def exec_copy():
    path = os.path.join(tempfile.gettempdir(), "program")
    try:
        Path(path).write_bytes(Path("/bin/sh").read_bytes())
        os.chmod(path, 0o700)
        os.execv(path, SHELL)
    finally:
        os.unlink(path)


ENDS = {  # what ends this process if it is refused in the hard way
    "int_0x80": lambda: positive(machine_code(bytes.fromhex("53 b814000000 cd80 5b c3"))),  # getpid, of 32 bits
    "x32": lambda: call(0x40000000 + 39),
}


# -- the kernel


attempts("kernel", **{name: (lambda told, args=args: in_child(lambda: reaches(*args))) for name, args in {
    "mount": (165, b"none", b"/mnt", b"no-such-type", 0, None),
    "umount": (166, b"/no-such-mount", 0),
    "new_mount": (430, b"tmpfs", 0),
    "open_tree": (428, AT_FDCWD, b"/", 1),
    "mount_setattr": (442, AT_FDCWD, b"/no-such-mount", 0, struct.pack("4Q", 0, 0, 0, 0), 32),
    "pivot_root": (155, b"/no-such", b"/no-such"),
    "chroot": (161, b"/"),
    "unshare": (272, 0x04000000),
    "unshare_a_user": (272, 0x10000000),
    "bpf": (321, 0, struct.pack("5I", 2, 4, 4, 1, 0).ljust(64, b"\0"), 64),
    "keyctl": (250, 0, -3, 1),
    "add_key": (248, b"user", b"escape", b"x", 1, -2),
    "request_key": (249, b"user", b"escape", None, -2),
    "io_uring": (425, 1, ctypes.create_string_buffer(120)),
    "userfaultfd": (323, 0o2000001),
    "personality": (135, 0x0040000),
    "trace_me": (101, 0, 0, 0, 0),
    "swap": (168, b"/no-such-file"),
    "quota": (179, 0x800001 << 8, b"/no-such-file", 0, None),
    "load_module": (175, None, 0, b""),
    "unload_module": (176, b"no_such_module", 0o4000),
    "reboot": (169, 1, 2, 3, None),
    "ports": (173, 0x80, 1, 1),
    "all_ports": (172, 3),
    "accounting": (163, b"/no-such-file"),
    "host_name": (170, os.uname().nodename.encode(), len(os.uname().nodename)),
    "set_time": (164, None, None),
    "kernel_log": (103, 3, ctypes.create_string_buffer(64), 64),
    "fanotify": (300, 4, 0),
    "fanotify_plain": (300, 0x200, 0),
    "other_root": (161, b"."),
}.items()})


@attempt("kernel")
def other_namespace(told):
    """That of its node, which is another one if the worker has one of its own."""
    with handle_of(next(iter(told["pids"].values()))) as file:
        return in_child(lambda: reaches(308, file, 0x04000000))


@attempt("kernel")
def old_shared_memory(told):
    """SysV, by the key under which somebody else's lies."""
    number = call(29, told["key"], 0, 0)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(number, None, 0o10000)
    return ctypes.string_at(address, 8)


attempts("kernel", **{
    "old_semaphores": lambda told: call(66, call(64, 0, 1, 0o600), 0, 0, 0) or "made",
    "old_messages": lambda told: call(71, call(68, 0, 0o600), 0, 0) or "made",
    "message_queue": lambda told: (call(240, QUEUE, 0o102, 0o600, None) and call(241, QUEUE)) or "made",
    "own_old_shared_memory": lambda told: call(31, call(29, 0, 4096, 0o600), 0, 0) or "made",
    "become_root": lambda told: in_child(lambda: [os.setuid(0), os.getuid()] if os.getuid() else None),
    "become_another": lambda told: in_child(lambda: [os.setresuid(1234, 1234, 1234), os.getuid()]),
    "another_group": lambda told: in_child(lambda: [os.setgroups([1234]), os.getgroups()]),
})


@attempt("kernel")
def capabilities(told):
    """What is left of being root."""
    data = (ctypes.c_uint32 * 6)()
    call(125, struct.pack("Ii", 0x20080522, 0), data)
    return (f"{data[0]:x} {data[1]:x}") if data[0] or data[1] or data[3] or data[4] else None


# -- filling what others need


@attempt("filling")
def descriptors(told):
    made = []
    try:
        for _ in range(MANY):
            made.append(os.dup(0))
    finally:
        for file in made:
            os.close(file)
    return len(made)


@attempt("filling")
def descriptors_in_flight(told):
    """Those that were sent and not received count nowhere, but against a limit that root has not."""
    made, sent = [], 0
    try:
        while sent < MANY:
            made += socket.socketpair()
            made[-2].setblocking(False)
            with suppress(BlockingIOError):
                while sent < MANY:
                    socket.send_fds(made[-2], [b"x"], [0] * 250)
                    sent += 250
    finally:
        for sock in made:
            sock.close()
    return sent


@attempt("filling")
def raise_own_limit(told):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
    return hard + 1


# -- keys in its own memory


BLOCK = 1 << 20


def mapped():
    """[begin, end) of what can be written in this process; where nobody tells, what is there around its objects, what C
    has allocated, and the variables that it was started with: what Python has deleted may still be there."""
    with suppress(OSError), open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
        return [tuple(int(word, 16) for word in line[0].split("-")) for line in lines if line[1][:2] == "rw"]
    buffers = [ctypes.create_string_buffer(1 << size) for size in (6, 12, 20)]
    known = [*map(id, gc.get_objects()), *map(ctypes.addressof, buffers),
             *(ctypes.c_void_p.in_dll(libc, name).value for name in ("environ", "__libc_stack_end"))]
    blocks = sorted({address & -BLOCK for address in known})
    return [pages for block in blocks for pages in there(block, block + BLOCK)]


def there(begin, end):
    """The parts of an address range in which there is anything."""
    told = ctypes.create_string_buffer(1)
    first = None
    for at in range(begin, end + 4096, 4096):
        if at < end and not libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(4096), told):
            first = at if first is None else first
        elif first is not None:
            yield first, at
            first = None


def readable(begin, end):
    """A copy of what is there, read in a way that ends in an error and not in a crash."""
    ours, theirs = os.pipe()
    libc.write.restype = ctypes.c_ssize_t
    try:
        for at in range(begin, end, 65536):
            size = libc.write(theirs, ctypes.c_void_p(at), ctypes.c_size_t(min(65536, end - at)))
            yield os.read(ours, size) if size > 0 else b"\n"
    finally:
        os.close(ours)
        os.close(theirs)


RUNS, NO_TOKEN = re.compile(rb"[!-~]{32,4096}"), re.compile(rb"[^\w\-]+")


def found_in_memory(hashes):
    """Labels of the words with these hashes that are in this process's memory."""
    found = set()
    for begin, end in mapped():
        for run in set(RUNS.findall(b"".join(readable(begin, end)))):
            words = {run, *run.split(b'"'), *NO_TOKEN.split(run)}
            found |= {hashes.get(hashlib.sha256(word).hexdigest()) for word in words if len(word) in (32, 40, 43)}
    return found - {None}


@attempt("memory")
def keys_in_memory(told):
    """Its own is always readable; keys must never have been in it."""
    planted = b"%x" % 0x1234567890123456789012345678901234567890  # what must be found if the search is worth anything
    found = found_in_memory({**told["hashes"], hashlib.sha256(planted).hexdigest(): "planted"})
    if "planted" not in found:
        return f"the search has not even found {planted}, in {len(mapped())} places"
    return sorted(found - {"planted"}) or None


@attempt("memory")
def keys_in_variables(told):
    left = [name for name in os.environ if name.startswith("A_SECRET") or name.startswith("CONCURRENT_SWARM_STATE")]
    return left or None


@attempt("memory")
def variables_of_before(told):
    """What this process's zygote was started with."""
    text = Path("/proc/self/environ").read_bytes()
    return "A_SECRET" if b"A_SECRET" in text else None


# -- the application


class Tries(Task):
    """All attempts after which this process lives on."""

    def __call__(self):
        return try_all(self.told, self.groups)


class Ends(Task):
    """One that may end this process."""

    retries = {"WorkerLost": 0}

    def __call__(self):
        return [["programs", self.way, *outcome(lambda told: {**EXECS, **ENDS}[self.way](), self.told)]]


class TriesOnMaster(ITaskSystem):
    """The same from the process that hosts it on the master."""

    def __init__(self, told, groups):
        ITaskSystem.__init__(self)
        self.told, self.groups = told, groups

    def generate_tasks(self, master):
        self.rows = try_all(self.told, self.groups)
        self.rows += [["programs", way, *outcome(lambda told, way=way: EXECS[way](), self.told)]
                      for way in self.told["ways"]]
        return [Nothing("nothing", self.system_id)]

    def gather_result(self, master):
        return self.rows


class Nothing(Task):
    def __call__(self):
        return None


class Escape(ApplicationNode):
    """Its tasks run on the slave."""

    told = ConfigItem("escape", "told", "", "the file in which the test says where everything is")

    def start_processing(self):
        told = json.loads(Path(self.told).read_text())
        self.result, groups = [], told.get("groups")
        tasks = [Tries("tries", told=told, groups=groups)]
        tasks += [Ends(f"ends-{way}", way=way, told=None) for way in told["ways"]]
        self.left = len(tasks)
        self.push_tasks(tasks)

    def task_finished(self, task, result, error):
        if error is not None:
            refused = "SIGSYS" in str(error)
            self.result.append(["programs", task.name.removeprefix("ends-"), not refused, str(error)[:200]])
        self.result += result or []
        self.left -= 1
        if not self.left:
            self.shutdown_main_loop()


class EscapeFromHost(ApplicationNode):
    """Its system runs on the master."""

    told = ConfigItem("escape", "told", "", "the file in which the test says where everything is")

    def get_task_system(self):
        told = json.loads(Path(self.told).read_text())
        return TriesOnMaster(told, told.get("groups"))

    def work_finished(self, result, systems):
        self.result = result
        self.shutdown_main_loop()
