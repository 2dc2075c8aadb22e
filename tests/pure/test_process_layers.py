"""What is read of a process: one whose layers are known, because the test made them."""

import ctypes
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mountsafe.medium.sealed import sealed
from mountsafe.syscalls import APPLIANCE, program
from mountsafe.system.layers import Layers, group_limits, read, sources
from tests.conftest import missing
from tests.pure.test_syscalls import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, Program, libc


@contextmanager
def process(confined: bool, *fds: int) -> Iterator[Layers]:
    """A child that has only the descriptors given, and more layers if `confined`."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        if confined:
            code = program(APPLIANCE)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_NPROC, (123, 123))
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(code) // 8, code)))
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in (*fds, writing):
                with suppress(OSError):  # the listing's own
                    os.close(fd)
        os.close(writing)
        signal.pause()
    os.close(writing)
    try:
        os.read(reading, 1)  # until its end is closed, the last of all
        yield read(pid)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_free_process_and_one_that_is_held() -> None:
    with process(confined=False) as free, process(confined=True) as held:
        assert held.no_new_privileges
        assert held.seccomp == "filter"
        assert held.seccomp_filters == free.seccomp_filters + 1
        assert held.limits["processes"] == "123"
        assert held.limits["core file size"] == "0"
        assert free.limits["processes"] != "123"
        assert held.namespaces == free.namespaces == ()
        assert free.uid == os.geteuid()
        assert bool(free.capabilities.get("CapEff")) == (os.geteuid() == 0)
        assert held.descriptors == free.descriptors == {}
        assert free.program.startswith("python")


def test_descriptors_by_kind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fds = [
        os.open(tmp_path / "file", os.O_RDONLY),
        os.open(tmp_path / "file", os.O_RDWR),
        os.open(tmp_path, os.O_RDONLY),
        os.open("/dev/null", os.O_RDONLY),
        os.memfd_create("own"),
        os.eventfd(0),
        *os.pipe(),
    ]
    try:
        with process(False, *fds) as seen:
            assert seen.descriptors == {
                "file, read-only": 1,
                "file, writable": 1,
                "folder, read-only": 1,
                "/dev/null": 1,
                "own file, writable": 1,
                "eventfd": 1,
                "pipe": 2,
            }
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing")
def test_a_namespace_of_its_own() -> None:
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP if libc.unshare(0x04000000) == 0 else signal.SIGKILL)  # CLONE_NEWUTS
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        assert read(pid).namespaces == ("uts",)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_limits_of_groups_and_of_those_above(tmp_path: Path) -> None:
    """Version 2 has one hierarchy, version 1 one for each controller; a limit holds for all that is below."""
    unified, memory = tmp_path / "unified", tmp_path / "memory"
    files = {
        unified / "a.slice/memory.max": "1000\n",
        unified / "a.slice/b.scope/memory.max": "max\n",
        unified / "a.slice/b.scope/cpu.max": "200000 100000\n",
        unified / "a.slice/b.scope/pids.max": "1024\n",
        unified / "other/pids.max": "1\n",
        memory / "x/memory.limit_in_bytes": "9223372036854771712\n",
        memory / "memory.limit_in_bytes": "4096\n",
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    groups = ("0::/a.slice/b.scope", "4:memory:/x", "5:freezer:/x")
    found = dict(group_limits(groups, {"": unified, "memory": memory}))
    assert found == {
        str(unified / "a.slice/b.scope/cpu.max"): "200000 100000",
        str(unified / "a.slice/b.scope/pids.max"): "1024",
        str(unified / "a.slice/memory.max"): "1000",
        str(memory / "memory.limit_in_bytes"): "4096",
    }


def test_whether_what_a_process_reads_can_be_opened_anew_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    fds = [os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)]
    made = sealed(fds[0], path)
    if made is None:
        missing("read-only mounts of single files")
        raise AssertionError
    status = path.stat()
    number = (status.st_dev, status.st_ino)
    try:
        for fd, how in ((fds[0], [False]), (fds[1], []), (made, [True])):
            with process(False, fd) as seen:
                found = list(sources(seen.pid))
                assert [(each.number, each.block_device, each.sealed) for each in found] == [
                    (number, False, is_sealed) for is_sealed in how
                ]
    finally:
        for fd in (*fds, made):
            os.close(fd)


def test_a_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="No such"):
        read(2**22 + 1)


def test_descriptors_that_come_and_go_are_no_error() -> None:
    """A process that works opens and closes files all the time."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for fd in [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]:
                os.close(fd)

    working = threading.Thread(target=work)
    working.start()
    try:
        for _ in range(50):
            assert read(os.getpid()).pid == os.getpid()
            assert isinstance(list(sources(os.getpid())), list)
    finally:
        stop.set()
        working.join()
