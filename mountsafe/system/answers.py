"""A connection to a D-Bus bus for asking one question, or listening, and doing nothing else meanwhile.

Serials are small numbers, and anybody may write one into a message and send it to anybody: so an answer counts if it is
one at all, and comes from who has the name that was asked, or from the bus. Which name that is, the bus tells, whose
own name nobody else can have. Nothing else is parsed, and what is larger than an answer can be is passed over.
"""

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jeepney import DBusErrorResponse, HeaderFields, Message, MessageType, message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from mountsafe.system.messages import Heard, Reader

BUS = "org.freedesktop.DBus"
MOST = 1 << 20  # bytes of an answer: what a full daemon keeps takes a tenth of it
CHUNK = 64 << 10
KEPT = 256  # signals that came while an answer was waited for
_ANSWERS = (MessageType.method_return, MessageType.error)


class NoBus(OSError):
    """The bus cannot be reached."""


class _Question:
    """A call that was sent. Answers wait until it is known who has the name."""

    def __init__(self, connection: "Connection", call: Message) -> None:
        self._connection = connection
        self._name: str = call.header.fields[HeaderFields.destination]
        self._serial = connection.send(call)
        self._who = 0  # the serial of the question who has the name; 0 if it was not asked, or nobody had it
        self._owner = self._name if self._name.startswith(":") else ""
        self._waiting: list[Heard] = []

    def hear(self, message: Heard) -> Heard | None:
        """Hear an answer; return it if it is the one."""
        answered = message.header.fields.get(HeaderFields.reply_serial)
        if message.sender == BUS and self._who and answered == self._who:
            self._who = 0
            self._owner = str(message.body("s")[0]) if message.kind is MessageType.method_return else ""
        elif answered == self._serial and message.sender == BUS:
            return message
        elif answered == self._serial:
            self._waiting = [*(each for each in self._waiting if each.sender != message.sender), message]
            if not self._owner and not self._who:  # whoever answers has it by now, and was perhaps started for this
                self._who = self._connection.send(message_bus.GetNameOwner(self._name))
        found = [each for each in self._waiting if each.sender == self._owner]
        if self._owner or not self._who:
            self._waiting = []
        return found[0] if found else None


class Connection:
    """One end of a bus. `most`: bytes of the largest message that is heard."""

    def __init__(self, connection: DBusConnection, most: int) -> None:
        self._connection = connection
        self._socket: socket.socket = connection.sock
        self._reader = Reader(most)
        self._signals: deque[Heard] = deque(maxlen=KEPT)
        before = connection.parser.buf  # what came together with the greeting
        data = before.read(before.bytes_buffered) if before.bytes_buffered else b""
        self._heard = self._reader.feed(data)

    def send(self, message: Message) -> int:
        """Send a message; return its serial."""
        serial = int(next(self._connection.outgoing_serial))
        self._socket.settimeout(None)
        self._connection.send_message(message, serial=serial)
        return serial

    def ask(self, call: Message, timeout: float, signature: str = "") -> tuple[Any, ...]:
        """Return the body of the answer, which is of this signature.

        Raises DBusErrorResponse, Malformed; TimeoutError and OSError if no answer comes.
        """
        end = time.monotonic() + timeout
        question = _Question(self, call)
        while True:
            message = self._next(end)
            if message.kind is MessageType.signal:
                self._signals.append(message)
            elif message.kind in _ANSWERS and (answer := question.hear(message)) is not None:
                return answer.answer(signature)

    def signal(self) -> Heard:
        """Wait for a signal, by whoever it is."""
        while not self._signals:
            if (message := self._next(None)).kind is MessageType.signal:
                return message
        return self._signals.popleft()

    def owner(self, name: str, timeout: float) -> str:
        """Return who has a name; "" if nobody has. Raises OSError."""
        try:
            return str(self.ask(message_bus.GetNameOwner(name), timeout, "s")[0])
        except DBusErrorResponse:
            return ""

    def _next(self, end: float | None) -> Heard:
        while True:
            for message in self._heard:
                return message
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("nobody answers")
            self._socket.settimeout(left)
            data = self._socket.recv(CHUNK)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._heard = self._reader.feed(data)


@contextmanager
def connected(bus: str = "SYSTEM", most: int = MOST, descriptors: bool = False) -> Iterator[Connection]:
    """Be connected to a bus; `descriptors`: calls may bring some. Raises NoBus."""
    try:
        connection = open_dbus_connection(bus=bus, enable_fds=descriptors)
    except Exception as error:  # jeepney fails in many ways when there is no bus
        raise NoBus(str(error) or type(error).__name__) from error
    with connection:
        yield Connection(connection, most)
