"""D-Bus messages out of a stream of bytes, sans-I/O: what is too large is skipped by its header, unread.

https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-messages. A bus passes on up to 128 MiB from
anybody, nested 64 deep. Nothing that we expect is larger than the reader's bound, and only callers that know a body's
signature parse it: so no sender can keep us busy for more than some milliseconds.
"""

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jeepney import DBusErrorResponse, Header, HeaderFields, Message, MessageType

from mountsafe.errors import MountsafeError
from mountsafe.system import handed

MAX_BODY = 64 << 10  # bytes, where nothing else is said; the longest that is asked of us is some names long
MAX_FIELDS = 2 << 10  # bytes of header: five names of 255 at most, and a path, of which ours has 24
_FIXED = 16  # bytes, with the length of the fields
_ORDERS = {ord("l"): "<", ord("B"): ">"}
_KINDS = {kind.value for kind in MessageType}
_ERROR_WORDS = ("", "s", "ss")  # what errors say


class Malformed(MountsafeError):
    """Not what it should be: by its sender's fault, or the bus's own."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message whose header is known. `untrusted_bytes`: all of it; None if it was too large, and is lost.

    `descriptors` came with it, as many as its header says; they are open until `close`.
    """

    header: Any
    untrusted_bytes: bytes | None
    descriptors: list[int] = field(default_factory=list)

    @property
    def kind(self) -> Any:
        """A MessageType."""
        return self.header.message_type

    @property
    def sender(self) -> str:
        """Who sent it, by the bus's word: a unique name, or the bus's own."""
        return str(self.header.fields.get(HeaderFields.sender, ""))

    @property
    def signature(self) -> str:
        """What its body is said to be."""
        return str(self.header.fields.get(HeaderFields.signature, ""))

    def body(self, *signatures: str) -> tuple[Any, ...]:
        """Return its body, which is one of these signatures. Raises Malformed."""
        if self.untrusted_bytes is None or self.signature not in signatures:
            raise Malformed(f"a body of another kind than {' or '.join(signatures) or 'none'}")
        try:
            body: tuple[Any, ...] = Message.from_buffer(self.untrusted_bytes, fds=self.descriptors).body
        except Exception as error:  # jeepney checks nothing: anything may come of bytes
            raise Malformed(f"a body that is no {self.signature}: {error!r}") from error
        return body

    def close(self) -> None:
        """Close what came with it."""
        handed.close(self.descriptors)
        self.descriptors.clear()

    def answer(self, signature: str) -> tuple[Any, ...]:
        """Return the body of an answer, which is of this signature. Raises DBusErrorResponse if it is an error."""
        if self.kind is MessageType.error:
            words = self.body(*_ERROR_WORDS) if self.signature in _ERROR_WORDS else ()
            raise DBusErrorResponse(Message(self.header, words))
        return self.body(signature)


class Reader:
    """Takes bytes as they come, and descriptors. `most`: of a body that is heard.

    `lost`: how many messages nobody heard of, for their header could not be read.
    Descriptors belong to the message that the last byte is of which was received with them: the kernel joins nothing to
    bytes that bring descriptors (unix(7)), and a bus sends each message by itself. So no message can come by those of
    another one, whatever its header says.
    """

    def __init__(self, most: int = MAX_BODY) -> None:
        self.lost = 0
        self._most = most
        self._buffer = bytearray()
        self._skipped = 0  # bytes of a message that is too large which are still to come
        self._position = 0  # of the buffer's first byte, in all that came
        self._brought: deque[tuple[int, list[int]]] = deque()  # descriptors, and the end of what came with them

    def close(self) -> None:
        """Close what no message was given."""
        handed.close(self._taken(self._position + len(self._buffer)))

    def feed(self, untrusted_bytes: bytes, descriptors: Sequence[int] = ()) -> Iterator[Heard]:
        """Yield the messages that are complete. Raises Malformed where this is no stream of messages."""
        self._buffer += untrusted_bytes
        if descriptors:
            self._brought.append((self._position + len(self._buffer), list(descriptors)))
        while True:
            gone = min(self._skipped, len(self._buffer))
            del self._buffer[:gone]
            self._skipped -= gone
            self._position += gone
            handed.close(self._taken(self._position))
            if len(self._buffer) < _FIXED:
                return
            kind, body, fields = self._measured()
            start = _FIXED + fields + -fields % 8
            if fields > MAX_FIELDS:
                self.lost += 1
                self._skipped = start + body
                continue
            if len(self._buffer) < start + (0 if body > self._most else body):
                return
            header = _header(bytes(self._buffer[:start])) if kind in _KINDS else None
            whole = None if body > self._most else bytes(self._buffer[: start + body])
            self._skipped = start + body
            if header is None:
                self.lost += 1
            else:
                yield self._heard(header, whole)

    def _heard(self, header: Any, whole: bytes | None) -> Heard:
        brought = self._taken(self._position + self._skipped)
        if whole is not None and len(brought) == header.fields.get(HeaderFields.unix_fds, 0):
            return Heard(header, whole, brought)
        handed.close(brought)
        return Heard(header, None)

    def _taken(self, end: int) -> list[int]:
        """Return the descriptors that came with bytes up to there."""
        taken: list[int] = []
        while self._brought and self._brought[0][0] <= end:
            taken += self._brought.popleft()[1]
        return taken

    def _measured(self) -> tuple[int, int, int]:
        """Return the kind of the next message, the length of its body, and that of its header's fields."""
        order = _ORDERS.get(self._buffer[0])
        if order is None:
            raise Malformed("the bus speaks another language")
        kind, body, fields = struct.unpack_from(f"{order}xBxxI4xI", self._buffer)
        return kind, body, fields


def _header(untrusted_bytes: bytes) -> Any:
    """Return a header; None if it is broken, or has a field that we do not know."""
    try:
        header, _ = Header.from_buffer(untrusted_bytes)
        fields = header.fields
        if not all(_is_well_typed(*each) for each in fields.items()):
            return None
    except Exception:  # noqa: BLE001  # jeepney checks nothing: anything may come of bytes
        return None
    return header


def _is_well_typed(field: HeaderFields, value: object) -> bool:
    return isinstance(value, int if field in (HeaderFields.reply_serial, HeaderFields.unix_fds) else str)
