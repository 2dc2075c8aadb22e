"""A connection to a D-Bus bus on which anybody may say anything, at any rate; its failures have one name."""

import array
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from jeepney import HeaderFields, Message, MessageType
from jeepney.io.trio import DBusConnection, open_dbus_connection

from mountsafe.errors import MountsafeError
from mountsafe.system.messages import Heard, Malformed, Reader

log = logging.getLogger(__name__)
BUS = "org.freedesktop.DBus"  # the bus's own name, which nobody else can have
ANYBODY = ""  # whoever answers
HELLO_DEADLINE = 20.0  # seconds
CHUNK = 64 << 10
DESCRIPTORS = 1  # that may come with a message; the kernel closes others before we have them
QUEUE = 256  # messages that are to be sent
_FULL = QUEUE // 2  # so many, and nothing more is heard until they are sent


class BusGone(MountsafeError):
    """The bus cannot be reached, or has ended."""


@dataclass(slots=True)
class _Question:
    answerer: str
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Heard | None = None  # None: none will come


class Bus:
    """One end of it. `heard` is called with each call and signal; it may not wait."""

    def __init__(self, connection: DBusConnection, heard: Callable[[Heard], None]) -> None:
        self.unique_name = str(connection.unique_name)
        self.why_gone = ""
        self._connection = connection
        self._heard = heard
        self._questions: dict[int, _Question] = {}
        self._outgoing, self._to_send = trio.open_memory_channel[tuple[int, Message]](QUEUE)
        self._sent = trio.Event()

    def post(self, message: Message) -> bool:
        """Have it sent, soon; return whether there was room."""
        try:
            self._outgoing.send_nowait((next(self._connection.outgoing_serial), message))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def ask(self, question: Message, signature: str = "", answerer: str = BUS) -> tuple[Any, ...]:
        """Return the body of the answer, which is of this signature, by this unique name or the bus itself.

        Serials can be guessed and anybody can write one into a message: so it matters who sent it, and that it is an
        answer at all. Raises DBusErrorResponse, Malformed, BusGone.
        """
        serial = next(self._connection.outgoing_serial)
        asked = self._questions[serial] = _Question(answerer)
        try:
            await self._outgoing.send((serial, question))
            await asked.answered.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise BusGone(self.why_gone) from error
        finally:
            del self._questions[serial]
        if asked.answer is None:
            raise BusGone(self.why_gone)
        return asked.answer.answer(signature)

    def _dispatch(self, message: Heard) -> None:
        if message.kind is not MessageType.method_call:
            message.close()
        if message.kind in (MessageType.method_call, MessageType.signal):
            try:
                self._heard(message)
            except Exception:  # one message is not to end what others need
                log.exception("a bug in hearing %s", message.kind.name)
                message.close()
            return
        asked = self._questions.get(message.header.fields.get(HeaderFields.reply_serial, 0))
        if asked is not None and (not asked.answerer or message.sender in (asked.answerer, BUS)):
            asked.answer = message
            asked.answered.set()

    async def receive(self, stop: trio.CancelScope) -> None:
        """Hear what comes until the bus is gone; then cancel `stop`."""
        try:
            await self._receive()
        except (OSError, trio.ClosedResourceError, trio.BrokenResourceError, Malformed) as error:
            self.why_gone = str(error) or type(error).__name__
        self._outgoing.close()
        for asked in self._questions.values():
            asked.answered.set()
        stop.cancel()

    async def _receive(self) -> None:
        reader = Reader()
        try:
            await self._read(reader)
        finally:
            reader.close()

    async def _read(self, reader: Reader) -> None:
        before = self._connection.parser.buf  # what came together with the greeting
        data = before.read(before.bytes_buffered) if before.bytes_buffered else b""
        descriptors: list[int] = []
        while True:
            for message in reader.feed(data, descriptors):
                self._dispatch(message)
                await trio.lowlevel.checkpoint()  # who claims media has the same thread
                while self._outgoing.statistics().current_buffer_used > _FULL:
                    self._sent = trio.Event()
                    await self._sent.wait()
            data, descriptors = await self._received()
            if not data:
                raise BrokenPipeError("it hung up")

    async def _received(self) -> tuple[bytes, list[int]]:
        """Wait for bytes, and what comes with them."""
        if not self._connection.enable_fds:
            return await self._connection.socket.recv(CHUNK), []
        found = array.array("i")
        space = socket.CMSG_SPACE(DESCRIPTORS * found.itemsize)
        data, ancillary, _, _ = await self._connection.socket.recvmsg(CHUNK, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, untrusted in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(untrusted[: len(untrusted) - len(untrusted) % found.itemsize])
        return data, found.tolist()

    async def send(self, message: Message) -> None:
        """Have it sent as soon as there is room. Raises BusGone."""
        try:
            await self._outgoing.send((next(self._connection.outgoing_serial), message))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise BusGone(self.why_gone) from error

    async def transmit(self, stop: trio.CancelScope) -> None:
        """Send what was posted, until the bus is gone; then cancel `stop`."""
        try:
            async for serial, message in self._to_send:
                await self._connection.send(message, serial=serial)
                self._sent.set()
        except (OSError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
            self.why_gone = str(error) or type(error).__name__
            stop.cancel()


@asynccontextmanager
async def connected(bus: str, heard: Callable[[Heard], None], descriptors: bool = False) -> AsyncIterator[Bus]:
    """Be connected to "SYSTEM" or "SESSION". Raises BusGone, also in the middle of what is done with it.

    `descriptors`: calls may bring some, and who hears such a call closes it.
    """
    failed: Exception | None = None
    connection = await _connection(bus, descriptors)
    async with connection, trio.open_nursery() as nursery:
        made = Bus(connection, heard)
        nursery.start_soon(made.receive, nursery.cancel_scope)
        nursery.start_soon(made.transmit, nursery.cancel_scope)
        try:
            yield made
        except Exception as error:  # noqa: BLE001  # raised below: the nursery would put it into a group
            failed = error
        nursery.cancel_scope.cancel()
    if made.why_gone:
        raise BusGone(made.why_gone)
    if failed is not None:
        raise failed


async def _connection(bus: str, descriptors: bool) -> DBusConnection:
    """Return a connection that has been greeted. jeepney fails in many ways when there is no bus. Raises BusGone."""
    try:
        with trio.fail_after(HELLO_DEADLINE):
            return await open_dbus_connection(bus=bus, enable_fds=descriptors)
    except (Exception, BaseExceptionGroup) as error:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise BusGone(str(error) or type(error).__name__) from error
