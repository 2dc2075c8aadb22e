"""Reads of a disk that another process serves by NBD: the only module that imports `nbd`, libnbd's binding.

libnbd gets sockets that are already connected, starts no thread, and makes no calls but to send and to receive. The
other end may have been taken over by the medium. So only the simplest parts of the protocol are used, every wait has a
deadline, and a server that breaks the protocol is disconnected.
"""

import socket
import time
from collections.abc import Awaitable, Callable
from threading import Lock

import nbd
import trio

from mountsafe.errors import DeadlinePassed, DiskGone, GuestGone, MountsafeError
from mountsafe.limits import ATTACH_DEADLINE, CALL_DEADLINE, REQUEST_DEADLINE
from mountsafe.medium.block import MediumError

MOST = 1 << 20  # bytes of a request
# Returns a new connection, and the number of the process at its end. Its argument: the number of one that does not
# answer, and is to be replaced.
Connect = Callable[[int | None], Awaitable[tuple[socket.socket, int]]]


def _handle() -> nbd.NBD:
    """Return a handle that asks for as little of the protocol as can be."""
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.set_request_block_size(False)
    return handle


class _Request:
    """What came of a request: `error` if the other end could not read."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.error: nbd.Error | None = None


class _Connection:
    """One connection: requests in flight by libnbd's numbers for them. `run` until it is lost."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self.lost = False
        self._sock = sock  # libnbd has a descriptor of its own
        self._requests: dict[int, _Request] = {}
        self._handle = _handle()
        self._handle.aio_connect_socket(sock.dup().detach())

    async def ready(self, size: int) -> None:
        """Shake hands. Raises GuestGone if the other end does not, or does not have a disk of this size."""
        try:
            while not self._handle.aio_is_ready():
                await self._step()
            told = self._handle.get_size()
        except (nbd.Error, OSError) as error:
            raise GuestGone(f"no disk at the other end: {error}") from error
        if told != size:
            raise GuestGone(f"a disk of {told} bytes, not of {size}")

    async def _step(self) -> None:
        if self._handle.aio_is_dead() or self._handle.aio_is_closed():
            raise GuestGone("the other end has gone")
        direction = self._handle.aio_get_direction()
        if direction & nbd.AIO_DIRECTION_READ:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            self._handle.aio_notify_read()
        elif direction & nbd.AIO_DIRECTION_WRITE:
            await trio.lowlevel.wait_writable(self._sock.fileno())
            self._handle.aio_notify_write()

    async def run(self) -> None:
        """Take answers until the connection is lost. Requests are small, and never fill the socket."""
        try:
            while not self.lost:
                await self._step()
                while self._requests and (done := self._handle.aio_peek_command_completed()):
                    self._finish(done)
        except (nbd.Error, GuestGone, OSError, trio.ClosedResourceError):
            pass
        finally:
            self.drop()

    def _finish(self, done: int) -> None:
        request = self._requests.pop(done)
        try:
            self._handle.aio_command_completed(done)
        except nbd.Error as error:
            request.error = error
        request.answered.set()

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk. Raises GuestGone if the connection is lost, MediumError if they cannot be read."""
        buffer = nbd.Buffer(length)
        request = _Request()
        try:
            self._requests[self._handle.aio_pread(buffer, offset)] = request
        except nbd.Error as error:
            self.drop()
            raise GuestGone(f"the other end has gone: {error}") from error
        await request.answered.wait()
        if request.error is not None and not self.lost:
            raise MediumError(f"reading the disk at {offset}: {request.error}")
        if request.error is not None or self.lost:
            raise GuestGone("the other end has gone")
        return bytes(buffer.to_buffer())

    def drop(self) -> None:
        """Leave the other end; who waits for it is told."""
        self.lost = True
        for request in self._requests.values():
            request.answered.set()
        self._requests.clear()
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()


class NbdReader:
    """Reads a disk of `size` bytes through whatever connection there is; a lost one is replaced once for each read."""

    def __init__(self, connect: Connect, size: int, nursery: trio.Nursery) -> None:
        self._connect = connect
        self._size = size
        self._nursery = nursery
        self._connection: _Connection | None = None
        self._connecting = trio.Lock()
        self._stalled: int | None = None

    def read_now(self, offset: int, length: int) -> memoryview | None:
        """Return None: another process has to be asked."""

    def cut_short(self) -> bool:
        """Return False: what is behind the other end is not seen."""
        return False

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end, in its sector, are zeros."""
        available = max(0, min(length, self._size - offset))
        data = b""
        if available:
            with trio.move_on_after(CALL_DEADLINE) as waiting:  # others may have to be waited for, to get a connection
                data = await self._read(offset, available)
            if waiting.cancelled_caught:
                raise MediumError(f"no bytes in {CALL_DEADLINE:.0f} s, new connection included")
        return data if available == length else data + bytes(length - available)

    async def _read(self, offset: int, length: int) -> bytes:
        for attempt in (1, 2):
            try:
                return await self._try(await self._usable(), offset, length)
            except MediumError:
                raise
            except MountsafeError as error:
                if attempt == 2:
                    raise MediumError(str(error)) from error
        raise AssertionError

    async def _try(self, connection: _Connection, offset: int, length: int) -> bytes:
        data = b""
        with trio.move_on_after(REQUEST_DEADLINE) as waiting:
            data = await connection.read(offset, length)
        if waiting.cancelled_caught:
            self._stalled = connection.number
            connection.drop()
            raise MediumError(f"no answer in {REQUEST_DEADLINE:.0f} s")
        return data

    async def _usable(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or self._connection.lost:
                instead, self._stalled = self._stalled, None
                connection = _Connection(*await self._connect(instead))
                try:
                    with trio.move_on_after(ATTACH_DEADLINE) as waiting:
                        await connection.ready(self._size)
                    if waiting.cancelled_caught:
                        self._stalled = connection.number
                        raise DeadlinePassed(f"no greeting in {ATTACH_DEADLINE:.0f} s")
                except BaseException:
                    connection.drop()
                    raise
                self._connection = connection
                self._nursery.start_soon(connection.run)
            return self._connection


class BlockingNbd:
    """A disk of `size` bytes that another process serves, for readers that may block. No thread but the caller's."""

    def __init__(self, fd: int, size: int) -> None:
        """Take a connected socket, which is closed with the disk, and shake hands. Raises DiskGone."""
        self.size = size
        self._using = Lock()
        self._gone = ""  # why
        self._handle = _handle()
        try:
            self._handle.aio_connect_socket(fd)
            self._until(self._handle.aio_is_ready, ATTACH_DEADLINE)
            told = self._handle.get_size()
        except nbd.Error as error:
            raise DiskGone(f"no disk at the other end: {error}") from error
        if told != size:
            raise DiskGone(f"a disk of {told} bytes, not of {size}")

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError, DiskGone. Beyond the end are zeros."""
        available = max(0, min(length, self.size - offset))
        with self._using:
            if self._gone:  # nor is it polled: an answer that comes late has no buffer any more
                raise DiskGone(self._gone)
            parts = [
                self._read(at, min(MOST, offset + available - at)) for at in range(offset, offset + available, MOST)
            ]
        return b"".join(parts).ljust(length, b"\0")

    def _read(self, offset: int, length: int) -> bytes:
        buffer = nbd.Buffer(length)
        try:
            command = self._handle.aio_pread(buffer, offset)
            self._until(lambda: self._handle.aio_command_completed(command), REQUEST_DEADLINE)
        except nbd.Error as error:
            if self._handle.aio_is_dead() or self._handle.aio_is_closed():
                self._gone = str(error)
            raise (DiskGone if self._gone else MediumError)(f"reading the disk at {offset}: {error}") from error
        return bytes(buffer.to_buffer())

    def _until(self, done: Callable[[], bool], deadline: float) -> None:
        end = time.monotonic() + deadline
        while not done():
            left = end - time.monotonic()
            if left <= 0 or self._handle.aio_is_dead() or self._handle.aio_is_closed():
                self._gone = "the other end has gone" if left > 0 else f"no answer in {deadline:.0f} s"
                raise DiskGone(self._gone)
            self._handle.poll(max(1, round(left * 1000)))
