"""A secret in a pipe or in memory: all of it comes out, as often as it is needed, and what is neither is refused."""

import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from mountsafe.system import handed
from mountsafe.system.handed import NoCarrier


def drained(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.fixture(params=[0, 1, 12, 30_000, 65_536, 1 << 20])
def secret(request: pytest.FixtureRequest) -> bytes:
    return os.urandom(request.param)


def test_a_secret_comes_out_as_often_as_it_is_needed(secret: bytes) -> None:
    fd = handed.carried(secret)
    handed.require(fd)
    handed.wait(fd)
    for _ in range(3):
        assert drained(handed.again(fd)) == secret
    assert handed.is_pipe(fd) == (len(secret) <= 32_768)
    handed.close([fd])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_nobody_waits_longer_than_that_for_who_writes() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"half")
    began = time.monotonic()
    with pytest.raises(NoCarrier, match="does not end"):
        handed.wait(reader, 0.3)
    assert 0.2 < time.monotonic() - began < 60
    threading.Timer(0.2, os.close, [writer]).start()
    handed.wait(reader, 20)
    assert drained(handed.again(reader)) == b"half"
    os.close(reader)


def test_what_is_neither_a_pipe_nor_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"secret")
    file = os.open(tmp_path / "f", os.O_RDONLY)
    one, other = socket.socketpair()
    reader, writer = os.pipe()
    try:
        on_disk = not handed.is_memory(file)  # the tests' folder may be a tmpfs
        for fd in (*([file] if on_disk else []), one.fileno(), writer):
            with pytest.raises(NoCarrier):
                handed.require(fd)
    finally:
        handed.close([file, reader, writer])
        one.close()
        other.close()


def test_a_pipe_that_its_owner_drains_meanwhile_is_no_secret() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    os.read(reader, 100)
    assert drained(handed.again(reader)) == b""
    os.close(reader)


def test_descriptors_are_not_inherited() -> None:
    fd = handed.carried(b"x")
    for each in (fd, handed.again(fd)):
        assert fcntl.fcntl(each, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(each)


def test_what_was_read_is_overwritten() -> None:
    secret = bytearray(b"secret")
    handed.wipe(secret)
    assert secret == bytes(6)
