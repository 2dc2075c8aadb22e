"""The filters of system calls, in force: each attempt is made in a process of its own, under the real kernel."""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe import landlock
from mountsafe.syscalls import APPLIANCE, PLAINTEXT, SESSION, Argument, Filter, Rule, descriptor, program

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # include/uapi/linux/prctl.h
CLONE_NEWUSER = 0x10000000
# arch/x86/entry/syscalls/syscall_64.tbl; those above 424 are the same everywhere
CLONE, KEYCTL, BPF, USERFAULTFD, IO_URING, CLONE3, NEWER = 56, 250, 321, 323, 425, 435, 463
F_OFD_SETLK = 37  # include/uapi/asm-generic/fcntl.h
MEMFD_CREATE, SHMGET, IO_SETUP, INOTIFY_INIT1, FCNTL = 319, 29, 206, 294, 72
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the tests' numbers are x86_64's")


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def under(filter_: Filter, attempt: Callable[[], object]) -> str:
    """Make the attempt in a child under the filter; return the name of the errno it failed with, or ""."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        code = program(filter_)
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(code) // 8, code))) == 0
        try:
            attempt()
            os.write(writing, b"done")
        except OSError as error:
            os.write(writing, errno.errorcode[error.errno or 0].encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said
    return said.replace("done", "")


def call(number: int, *arguments: object) -> Callable[[], None]:
    def attempt() -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")

    return attempt


def thread() -> None:
    done = threading.Event()
    threading.Thread(target=done.set).start()
    assert done.wait(10)


def pairs() -> None:
    for each in socket.socketpair():
        each.close()


def unblocked() -> None:
    for each in socket.socketpair():
        os.set_blocking(each.fileno(), False)
        each.close()


def forked() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("attempt", "session", "appliance"),
    [
        pytest.param(thread, "", "", id="thread"),
        pytest.param(pairs, "", "", id="socketpair"),
        pytest.param(lambda: Path("/dev/null").read_bytes(), "", "", id="read-file"),
        pytest.param(forked, "ENOSYS", "", id="fork"),
        pytest.param(lambda: socket.socket(socket.AF_UNIX), "ENOSYS", "", id="unix-socket"),
        pytest.param(lambda: socket.socket(socket.AF_INET), "ENOSYS", "EAFNOSUPPORT", id="inet-socket"),
        pytest.param(lambda: socket.socket(socket.AF_ALG, 5), "ENOSYS", "EAFNOSUPPORT", id="crypto-socket"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGCONT), "ENOSYS", "", id="kill"),
        pytest.param(lambda: os.unlink("/nowhere"), "ENOSYS", "ENOENT", id="unlink"),
        pytest.param(call(CLONE, CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0), "ENOSYS", "EPERM", id="clone-user"),
        pytest.param(call(CLONE3, 0, 0), "ENOSYS", "ENOSYS", id="clone3"),
        pytest.param(lambda: libc.unshare(CLONE_NEWUSER) and _fail(), "ENOSYS", "EPERM", id="unshare"),
        pytest.param(lambda: libc.ptrace(0, 0, 0, 0) and _fail(), "ENOSYS", "EPERM", id="ptrace"),
        pytest.param(call(KEYCTL, 0, -3, 0), "ENOSYS", "EPERM", id="keys"),
        pytest.param(call(BPF, 0, 0, 0), "ENOSYS", "EPERM", id="bpf"),
        pytest.param(call(USERFAULTFD, 1), "ENOSYS", "EPERM", id="userfaultfd"),
        pytest.param(call(IO_URING, 1, 0), "ENOSYS", "EPERM", id="io-uring"),
        pytest.param(call(MEMFD_CREATE, b"x", 0), "ENOSYS", "EPERM", id="memory-without-a-limit"),
        pytest.param(call(SHMGET, 0, 4096, 0o1600), "ENOSYS", "EPERM", id="shared-memory"),
        pytest.param(call(IO_SETUP, 1, ctypes.byref(ctypes.c_ulong(0))), "ENOSYS", "EPERM", id="aio"),
        pytest.param(call(INOTIFY_INIT1, 0), "ENOSYS", "EPERM", id="inotify"),
        pytest.param(lambda: fcntl.flock(1, fcntl.LOCK_UN), "ENOSYS", "EPERM", id="lock-of-a-file"),
        pytest.param(lambda: fcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_UNLCK), "ENOSYS", "EPERM", id="lease"),
        pytest.param(call(FCNTL, 1, 1 << 32 | fcntl.F_SETLEASE, 2), "ENOSYS", "EPERM", id="lease-in-64-bits"),
        pytest.param(lambda: fcntl.fcntl(1, fcntl.F_GETFL), "", "", id="flags-of-a-descriptor"),
        pytest.param(unblocked, "", "", id="no-waiting"),
        pytest.param(lambda: fcntl.fcntl(1, fcntl.F_SETFL, os.O_DIRECT), "ENOSYS", "EPERM", id="direct-io"),
        pytest.param(
            call(FCNTL, 1, 1 << 32 | fcntl.F_SETFL, os.O_DIRECT), "ENOSYS", "EPERM", id="direct-io-in-64-bits"
        ),
        pytest.param(call(NEWER, 0, 0, 0, 0), "ENOSYS", "ENOSYS", id="newer-than-the-list"),
    ],
)
def test_what_a_filter_leaves(attempt: Callable[[], object], session: str, appliance: str) -> None:
    assert under(SESSION, attempt) == session
    assert under(APPLIANCE, attempt) == appliance


def listens() -> None:
    """A socket with a name of its own, and one that is connected to it."""
    name = f"/tmp/test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        os.unlink(name)
        server.listen()
        client.setblocking(False)


@pytest.mark.parametrize(
    ("attempt", "failure"),
    [
        pytest.param(listens, "", id="listen"),
        pytest.param(lambda: libc.prctl(4, 0, 0, 0, 0) and _fail(), "", id="not-dumpable"),
        pytest.param(lambda: libc.prctl(24, 0, 0, 0, 0) and _fail(), "ENOSYS", id="another-prctl"),
        pytest.param(forked, "ENOSYS", id="fork"),
        pytest.param(lambda: socket.socket(socket.AF_INET), "ENOSYS", id="inet-socket"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGCONT), "ENOSYS", id="kill"),
        pytest.param(lambda: os.mkdir("/tmp/test"), "ENOSYS", id="mkdir"),
        pytest.param(call(MEMFD_CREATE, b"x", 0), "ENOSYS", id="memory-without-a-limit"),
        pytest.param(call(KEYCTL, 0, -3, 0), "ENOSYS", id="keys"),
    ],
)
def test_what_the_plaintext_server_has_beyond_a_session(attempt: Callable[[], object], failure: str) -> None:
    assert under(PLAINTEXT, attempt) == failure


@pytest.mark.parametrize(
    "command", [F_OFD_SETLK, F_OFD_SETLK + 1, 1 << 32 | F_OFD_SETLK, fcntl.F_SETLK, fcntl.F_SETLKW]
)
def test_a_lock_that_the_appliance_process_takes_is_none(tmp_path: Path, command: int) -> None:
    """QEMU would give up without one, and the medium's file is to be nobody's."""
    path = tmp_path / "medium"
    path.touch()
    with path.open("rb") as file, path.open("r+b") as writer:

        def locked() -> None:
            call(FCNTL, file.fileno(), command, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))()
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            (kind,) = struct.unpack_from("h", fcntl.fcntl(writer, F_OFD_SETLK - 1, asked))
            if kind != fcntl.F_UNLCK:
                raise OSError(errno.EXDEV, "")

        assert under(APPLIANCE, locked) == ""
        assert under(Filter(0, ()), locked) == "EXDEV"  # for good: our own descriptor is the same open file


def _fail() -> None:
    raise OSError(ctypes.get_errno(), "")


def test_a_terminal_cannot_be_typed_into() -> None:
    """ioctl is left for four requests, of which TIOCSTI is none."""
    main, other = os.openpty()
    failing = call(16, other, 0x5412, b"x")
    try:
        assert under(SESSION, failing) == "ENOSYS"
        assert under(SESSION, lambda: os.isatty(other)) == ""
    finally:
        os.close(main)
        os.close(other)


def test_conditions_are_what_the_kernel_looks_at() -> None:
    only = Filter(0, (Rule(errno.EXDEV, ("kill",), (Argument(1, signal.SIGCONT),)),))
    assert under(only, lambda: os.kill(os.getpid(), signal.SIGCONT)) == "EXDEV"
    assert under(only, lambda: os.kill(os.getpid(), 0)) == ""


def test_a_descriptor_is_read_from_its_start_each_time() -> None:
    for _ in range(2):
        with descriptor(SESSION) as fd:
            assert os.read(fd, 1 << 20) == program(SESSION)


# --- Landlock --------------------------------------------------------------------------------------------------------
def enclosed(attempt: Callable[[], object]) -> Callable[[], None]:
    def both() -> None:
        assert landlock.enclose() == landlock.version() > 0
        attempt()

    return both


FREE = Filter(0, ())


@pytest.mark.skipif(not landlock.version(), reason="Landlock is missing in this kernel")
@pytest.mark.parametrize(
    "attempt",
    [
        lambda path: (path / "file").read_bytes(),
        lambda path: os.listdir(path),
        lambda path: (path / "new").write_bytes(b""),
        lambda path: (path / "new").mkdir(),
        lambda path: (path / "file").rename(path / "other"),
        lambda path: (path / "file").unlink(),
        lambda path: os.symlink("file", path / "new"),
        lambda path: os.execv("/bin/true", ["true"]),
        lambda path: os.truncate(path / "file", 0),
    ],
    ids=["read", "list", "create", "mkdir", "rename", "unlink", "symlink", "execute", "truncate"],
)
def test_no_path_is_left_in_landlock(tmp_path: Path, attempt: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert under(FREE, enclosed(lambda: attempt(tmp_path))) == "EACCES"


@pytest.mark.skipif(not landlock.version(), reason="Landlock is missing in this kernel")
def test_what_is_open_stays_so_in_landlock() -> None:
    with open("/dev/zero", "rb", buffering=0) as file:
        assert under(FREE, enclosed(lambda: file.read(1))) == ""
    assert under(FREE, enclosed(pairs)) == ""


def test_a_kernel_without_landlock_is_no_failure() -> None:
    without = Filter(0, (Rule(errno.ENOSYS, (landlock.CREATE_RULESET,)),))

    def attempt() -> None:
        assert landlock.version() == landlock.enclose() == 0
        Path("/dev/null").read_bytes()

    assert under(without, attempt) == ""


@pytest.mark.skipif(not landlock.version(), reason="Landlock is missing in this kernel")
@pytest.mark.parametrize(
    "give_up", [landlock.enclose, lambda: landlock.write_only_in(["/tmp"])], ids=["all", "writing"]
)
@pytest.mark.parametrize("number", [landlock.ADD_RULE, landlock.RESTRICT_SELF], ids=["rule", "restrict"])
def test_landlock_that_is_there_and_is_not_put_in_force_is_a_failure(give_up: Callable[[], int], number: int) -> None:
    """Who opened the medium counts on it: a process that goes on without it would have one layer less, unsaid."""
    refused = "" if number == landlock.ADD_RULE and give_up is landlock.enclose else "ENOMEM"
    assert under(Filter(0, (Rule(errno.ENOMEM, (number,)),)), give_up) == refused


@pytest.mark.parametrize("request_", [0xC0189436, 0x40086604, 0x6609, 0x660C, 0x50009402, 0x40309410], ids=hex)
def test_what_file_systems_change_for_a_reader_is_refused(tmp_path: Path, request_: int) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open("rb") as file:

        def attempt() -> None:
            fcntl.ioctl(file, request_, bytes(64))

        assert under(FREE, attempt) != "EPERM"
        assert under(APPLIANCE, attempt) == "EPERM"
