"""The NBD client that may wait: an honest server, one that has gone, is silent, or has another disk."""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from mountsafe.errors import DiskGone, MediumError
from mountsafe.medium import nbd
from mountsafe.medium.encryption import Layer, Stack
from mountsafe.medium.nbd import BlockingNbd
from mountsafe.medium.stacked import open_blocking

SIZE = 3 << 20
DISK = os.urandom(SIZE)
BAD = 1 << 20  # a byte that cannot be read
EIO = 5
GO = 7

Answer = Callable[[socket.socket, int, int, int], None]


def take(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def honest(sock: socket.socket, handle: int, offset: int, length: int) -> None:
    bad = offset <= BAD < offset + length
    sock.sendall(struct.pack(">IIQ", 0x67446698, EIO if bad else 0, handle))
    if not bad:
        sock.sendall(DISK[offset : offset + length])


def serve(sock: socket.socket, answer: Answer, size: int) -> None:
    """proto.md of the Network Block Device project, the newest handshake and simple replies."""
    with sock, suppress(ConnectionError, OSError):
        sock.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
        take(sock, 4)
        while True:
            _, option, length = struct.unpack(">8sII", take(sock, 16))
            take(sock, length)
            head = struct.pack(">QI", 0x3E889045565A9, option)
            if option == GO:
                sock.sendall(head + struct.pack(">IIHQH", 3, 12, 0, size, 3) + head + struct.pack(">II", 1, 0))
                break
            sock.sendall(head + struct.pack(">II", (1 << 31) + 1, 0))
        while True:
            _, _, kind, handle, offset, length = struct.unpack(">IHHQQI", take(sock, 28))
            if kind != 0:
                return
            answer(sock, handle, offset, length)


@contextmanager
def server(answer: Answer = honest, size: int = SIZE) -> Iterator[int]:
    """Give a socket to one."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs, answer, size), daemon=True)
    thread.start()
    yield ours.detach()


def test_every_byte_is_there() -> None:
    with server() as fd:
        disk = BlockingNbd(fd, SIZE)
        for offset, length in [(0, 1), (5, 1000), (0, BAD), (BAD + 1, SIZE - BAD - 1)]:
            assert disk.read(offset, length) == DISK[offset : offset + length]
        assert disk.read(SIZE - 10, 30) == DISK[-10:] + bytes(20)
        assert disk.read(SIZE + 10, 30) == bytes(30)


def test_what_cannot_be_read_is_an_error_and_the_rest_is_read() -> None:
    with server() as fd:
        disk = BlockingNbd(fd, SIZE)
        for _ in range(3):
            with pytest.raises(MediumError) as failure:
                disk.read(BAD - 5, 10)
            assert not isinstance(failure.value, DiskGone)
            assert disk.read(0, 10) == DISK[:10]


def test_who_goes_is_gone() -> None:
    def leaving(sock: socket.socket, handle: int, offset: int, length: int) -> None:
        if offset:
            raise ConnectionError
        honest(sock, handle, offset, length)

    with server(leaving) as fd:
        disk = BlockingNbd(fd, SIZE)
        assert disk.read(0, 10) == DISK[:10]
        for _ in range(2):
            with pytest.raises(DiskGone):
                disk.read(512, 10)


@pytest.mark.parametrize("said", [b"", b"\0" * 16, struct.pack(">IIQ", 0x67446698, 0, 999)])
def test_who_breaks_the_protocol_is_gone(said: bytes) -> None:
    def wrong(sock: socket.socket, handle: int, offset: int, length: int) -> None:
        sock.sendall(said)
        raise ConnectionError

    with server(wrong) as fd:
        disk = BlockingNbd(fd, SIZE)
        with pytest.raises(DiskGone):
            disk.read(0, 512)


def test_who_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "REQUEST_DEADLINE", 1.0)
    monkeypatch.setattr(nbd, "ATTACH_DEADLINE", 1.0)
    with server(lambda *_: None) as fd:
        disk = BlockingNbd(fd, SIZE)
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(DiskGone, match="no answer"):
                disk.read(0, 512)
        assert time.monotonic() - began < 40  # once, and not for each
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(DiskGone, match="no answer"):
        BlockingNbd(ours.detach(), SIZE)


@pytest.mark.parametrize("size", [0, SIZE - 512, SIZE + 512])
def test_another_disk_is_no_disk(size: int) -> None:
    with server(size=size) as fd, pytest.raises(DiskGone):
        BlockingNbd(fd, SIZE)


def test_a_stack_may_begin_with_a_server() -> None:
    with server() as fd:
        stack = Stack(False, SIZE, 512, 4096, (Layer(((0, 1024, 1024),), 1024, None),))
        disk = open_blocking(stack, [fd])
        assert disk.read(0, disk.size) == DISK[1536:2560]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_server_that_is_none_leaves_nothing_open() -> None:
    with server(size=512) as fd:
        with pytest.raises(DiskGone):
            open_blocking(Stack(False, SIZE, 0, SIZE), [fd])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
