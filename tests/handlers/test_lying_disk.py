"""Reads by NBD from a container process that is honest, gone, silent, or does not keep to the protocol."""

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from mountsafe import trios
from mountsafe.errors import GuestGone
from mountsafe.limits import CALL_DEADLINE, REQUEST_DEADLINE
from mountsafe.medium.block import MediumError
from mountsafe.medium.nbd import NbdReader

SIZE = 1 << 20
DISK = os.urandom(SIZE)
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")  # of a structured reply: magic, flags, type, handle, length
REPLY_MAGIC = 0x67446698
GO, ACK, INFO = 7, 1, 3

Server = Callable[[trio.SocketStream], Awaitable[None]]


async def take(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await stream.receive_some(length - len(data))
        if not more:
            raise trio.BrokenResourceError
        data += more
    return data


async def greet(stream: trio.SocketStream, size: int = SIZE) -> None:
    """The server's part of the handshake, as QEMU plays it: proto.md of the Network Block Device project."""
    await stream.send_all(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    await take(stream, 4)
    while True:
        _, option, length = struct.unpack(">8sII", await take(stream, 16))
        await take(stream, length)
        head = struct.pack(">QI", 0x3E889045565A9, option)
        if option != GO:
            await stream.send_all(head + struct.pack(">II", (1 << 31) + 1, 0))  # not supported
            continue
        await stream.send_all(head + struct.pack(">IIHQH", INFO, 12, 0, size, 3))
        await stream.send_all(head + struct.pack(">II", ACK, 0))
        return


async def answer(stream: trio.SocketStream, how: Callable[[int, int, int], bytes]) -> None:
    """Answer requests: `how` gets handle, offset and length."""
    while True:
        _, _, _, handle, offset, length = REQUEST.unpack(await take(stream, REQUEST.size))
        await stream.send_all(how(handle, offset, length))


def truth(handle: int, offset: int, length: int) -> bytes:
    return REPLY.pack(REPLY_MAGIC, 0, handle) + DISK[offset : offset + length]


async def honest(stream: trio.SocketStream) -> None:
    await greet(stream)
    await answer(stream, truth)


def saying(how: Callable[[int, int, int], bytes]) -> Server:
    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await answer(stream, how)

    return serve


async def of_another_size(stream: trio.SocketStream) -> None:
    await greet(stream, SIZE + 512)
    await answer(stream, truth)


async def garbage(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n" * 100)


async def gone(stream: trio.SocketStream) -> None:
    """Ends at once."""


async def gone_when_asked(stream: trio.SocketStream) -> None:
    await greet(stream)
    await take(stream, REQUEST.size)


async def gone_in_the_middle(stream: trio.SocketStream) -> None:
    await greet(stream)
    _, _, _, handle, offset, length = REQUEST.unpack(await take(stream, REQUEST.size))
    await stream.send_all(truth(handle, offset, length)[:-7])


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def silent_when_asked(stream: trio.SocketStream) -> None:
    await greet(stream)
    await trio.sleep_forever()


BROKEN: dict[str, Server] = {
    "of another size": of_another_size,
    "garbage": garbage,
    "gone": gone,
    "gone when asked": gone_when_asked,
    "gone in the middle": gone_in_the_middle,
    "another magic": saying(lambda handle, offset, length: b"\0" * 16 + DISK[:length]),
    "nobody's answer": saying(lambda handle, offset, length: truth(handle ^ 1, offset, length)),
    # Not asked for, which libnbd 1.22 would bear; and longer than anything may be, which none bears.
    "a structured reply": saying(lambda handle, offset, length: CHUNK.pack(0x668E33EF, 1, 1, handle, 1 << 31)),
    "a flood": saying(lambda handle, offset, length: truth(handle ^ 1, offset, length) * 20),
}


class Ends:
    """Connects to one server after the other; the last stays. Notes what was to be replaced."""

    def __init__(self, nursery: trio.Nursery, *servers: Server) -> None:
        self._nursery = nursery
        self._servers = list(servers)
        self.instead: list[int | None] = []

    async def connect(self, instead: int | None) -> tuple[socket.socket, int]:
        self.instead.append(instead)
        server = self._servers.pop(0) if len(self._servers) > 1 else self._servers[0]
        ours, theirs = socket.socketpair()
        self._nursery.start_soon(self._serve, server, theirs)
        return ours, len(self.instead)

    async def _serve(self, server: Server, sock: socket.socket) -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await server(stream)


def with_servers(test: Callable[[NbdReader, Ends], Awaitable[None]], *servers: Server) -> None:
    """Run a test against servers; time passes as soon as everybody waits for it."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            ends = Ends(nursery, *servers)
            await test(NbdReader(ends.connect, SIZE, nursery), ends)
            nursery.cancel_scope.cancel()

    trios.run(run, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_bytes_are_what_and_where_they_are() -> None:
    async def test(reader: NbdReader, ends: Ends) -> None:
        assert reader.read_now(0, 512) is None
        for offset, length in ((0, 1), (0, SIZE), (4095, 8192), (SIZE - 1, 1)):
            assert await reader.read(offset, length) == DISK[offset : offset + length]
        assert await reader.read(SIZE - 100, 512) == DISK[-100:] + bytes(412)  # the last sector is filled up
        assert len(ends.instead) == 1

    with_servers(test, honest)


def test_many_at_once() -> None:
    async def test(reader: NbdReader, ends: Ends) -> None:
        async def read(offset: int) -> None:
            assert await reader.read(offset, 40_000) == DISK[offset : offset + 40_000]

        async with trio.open_nursery() as nursery:
            for offset in range(0, 900_000, 30_000):
                nursery.start_soon(read, offset)
        assert len(ends.instead) == 1

    with_servers(test, honest)


@pytest.mark.parametrize("name", BROKEN)
def test_who_breaks_the_protocol_is_left_for_another(name: str) -> None:
    async def test(reader: NbdReader, ends: Ends) -> None:
        assert await reader.read(512, 4096) == DISK[512:4608]
        assert ends.instead == [None, None]

    with_servers(test, BROKEN[name], honest)


@pytest.mark.parametrize("name", BROKEN)
def test_two_of_them_are_an_error(name: str) -> None:
    async def test(reader: NbdReader, ends: Ends) -> None:
        with pytest.raises(MediumError):
            await reader.read(512, 4096)
        assert len(ends.instead) == 2

    with_servers(test, BROKEN[name])


@pytest.mark.parametrize("server", [silent, silent_when_asked])
def test_who_is_silent_is_replaced(server: Server) -> None:
    async def test(reader: NbdReader, ends: Ends) -> None:
        began = trio.current_time()
        if server is silent_when_asked:
            with pytest.raises(MediumError, match="no answer"):
                await reader.read(0, 512)
        assert await reader.read(0, 512) == DISK[:512]
        assert trio.current_time() - began < REQUEST_DEADLINE + 5
        assert ends.instead == [None, 1]

    with_servers(test, server, honest)


def test_a_place_that_cannot_be_read_is_no_reason_to_leave() -> None:
    def partly(handle: int, offset: int, length: int) -> bytes:
        return REPLY.pack(REPLY_MAGIC, 5, handle) if offset == 4096 else truth(handle, offset, length)

    async def test(reader: NbdReader, ends: Ends) -> None:
        with pytest.raises(MediumError, match="4096"):
            await reader.read(4096, 512)
        assert await reader.read(0, 512) == DISK[:512]
        assert len(ends.instead) == 1

    with_servers(test, saying(partly))


def test_a_reader_that_leaves_disturbs_nobody() -> None:
    async def late(stream: trio.SocketStream) -> None:
        await greet(stream)
        requests = [REQUEST.unpack(await take(stream, REQUEST.size)) for _ in range(2)]
        await trio.sleep(5)
        for *_, handle, offset, length in requests:
            await stream.send_all(truth(handle, offset, length))
        await answer(stream, truth)

    async def test(reader: NbdReader, ends: Ends) -> None:
        found: dict[str, Any] = {}

        async def stay() -> None:
            found["data"] = await reader.read(512, 512)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            with trio.move_on_after(1):
                await reader.read(0, 512)
        assert found["data"] == DISK[512:1024]
        assert await reader.read(1024, 512) == DISK[1024:1536]
        assert len(ends.instead) == 1

    with_servers(test, late)


def test_no_disk_to_be_had_is_an_error() -> None:
    async def connect(instead: int | None) -> tuple[socket.socket, int]:
        raise GuestGone("the container process ended 3 times within 60 s")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            with pytest.raises(MediumError, match="3 times"):
                await NbdReader(connect, SIZE, nursery).read(0, 512)

    trios.run(run)


def test_nobody_waits_for_ever_for_a_connection() -> None:
    async def connect(instead: int | None) -> tuple[socket.socket, int]:
        await trio.sleep_forever()
        raise AssertionError

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            reader = NbdReader(connect, SIZE, nursery)
            for _ in range(3):
                nursery.start_soon(refused, reader)

    async def refused(reader: NbdReader) -> None:
        with pytest.raises(MediumError, match="no bytes"):
            await reader.read(0, 512)
        assert trio.current_time() < begin + CALL_DEADLINE + 1

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    begin = clock.current_time()
    trios.run(run, clock=clock)
