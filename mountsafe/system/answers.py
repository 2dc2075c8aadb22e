"""An answer on a D-Bus bus, from whom was asked: for who asks a question and waits for nothing else.

Serials are small numbers, and anybody may write one into a message and send it to anybody: so an answer counts if it is
one at all, and comes from who has the name that was asked, or from the bus. Which name that is, the bus tells, whose
own name nobody else can have.
"""

import time
from typing import Any

from jeepney import HeaderFields, Message, MessageType, message_bus
from jeepney.io.blocking import DBusConnection
from jeepney.wrappers import unwrap_msg

BUS = "org.freedesktop.DBus"
_ANSWERS = (MessageType.method_return, MessageType.error)


class _Question:
    """A call that was sent. Answers wait until it is known who has the name."""

    def __init__(self, connection: DBusConnection, call: Message) -> None:
        self._connection = connection
        self._name: str = call.header.fields[HeaderFields.destination]
        self._serial = self._send(call)
        self._who = 0  # the serial of the question who has the name; 0 if it was not asked, or nobody had it
        self._owner = self._name if self._name.startswith(":") else ""
        self._waiting: list[Message] = []

    def _send(self, message: Message) -> int:
        serial = next(self._connection.outgoing_serial)
        self._connection.send_message(message, serial=serial)
        return int(serial)

    def hear(self, message: Message) -> Message | None:
        """Hear a message; return the answer if that is here now."""
        if message.header.message_type not in _ANSWERS:
            return None
        answered, sender = (message.header.fields.get(key) for key in (HeaderFields.reply_serial, HeaderFields.sender))
        if sender == BUS and self._who and answered == self._who:
            self._who = 0
            self._owner = message.body[0] if message.header.message_type is MessageType.method_return else ""
        elif answered == self._serial and sender == BUS:
            return message
        elif answered == self._serial:
            self._waiting.append(message)
            if not self._owner and not self._who:  # whoever answers has it by now, and was perhaps started for this
                self._who = self._send(message_bus.GetNameOwner(self._name))
        found = [each for each in self._waiting if each.header.fields.get(HeaderFields.sender) == self._owner]
        if self._owner or not self._who:
            self._waiting = []
        return found[0] if found else None


def ask(connection: DBusConnection, call: Message, timeout: float) -> Any:
    """Return the body of the answer. Raises DBusErrorResponse; TimeoutError and OSError if none comes."""
    end = time.monotonic() + timeout
    question = _Question(connection, call)
    while True:
        message = connection.receive(timeout=max(0.0, end - time.monotonic()))
        if (answer := question.hear(message)) is not None:
            return unwrap_msg(answer)
