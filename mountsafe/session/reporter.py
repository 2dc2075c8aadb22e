"""What a supervisor tells the one who started it."""

import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import trio

from mountsafe import channel, pieces
from mountsafe.errors import ProtocolFault, UserError
from mountsafe.session.machines import Listener
from mountsafe.session.messages import (
    ORDERS,
    REPORTS,
    Changing,
    Failed,
    Found,
    Incident,
    Judged,
    Key,
    Locked,
    NotSaved,
    Progress,
    Report,
    Streamed,
    Warned,
)
from mountsafe.session.order import Order

log = logging.getLogger(__name__)
KEPT_REPORTS = 4096
MAX_INCIDENT = 2000  # characters of an incident's words, in one packet
ORDERED = 3  # descriptors that come with an order to read
OTHER_VERSION = "Has mountsafe been upgraded meanwhile? sudo systemctl restart mountsafe"
LAST_REPORT = 5.0  # seconds for one who listens, and reads nothing


class Asker(Protocol):
    """Who is told how far a search for file systems is, and asked what it needs: a `Reporter`, or a job's own."""

    def tell(self, message: Report) -> None:
        """Hear what was found."""

    def progress(self, what: str) -> None:
        """Hear what is being done now."""

    def warn(self, what: str) -> None:
        """Hear of what is worse than it might be."""

    async def judged(self, found: Found) -> Judged:
        """Return what is judged of what was found."""

    async def key(self, locked: Locked) -> tuple[Key, list[int]]:
        """Return a key, and the descriptors that come with it."""


def given() -> socket.socket:
    """Return the connection that we have as standard input, which is left empty: no child is to have it."""
    report = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return report


class Reporter(Listener):
    """Tells whoever started us how far we are, as long as they listen. They may be slow: nothing waits for them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # What there was no room for yet, with what goes along.
        self._kept: deque[tuple[bytes, socket.socket | None]] = deque(maxlen=KEPT_REPORTS)
        self._answers, self._answered = trio.open_memory_channel[tuple[Judged | Key, list[int]]](1)

    def tell(self, message: Report) -> None:
        """Send a message, now or when there is room; nobody may be there any more. One that is too long is a bug."""
        self._tell([(packet, None) for packet in pieces.split(REPORTS.told(message))])

    def hand(self, message: Streamed, stream: socket.socket) -> None:
        """Send a message and a stream, which is closed here then."""
        self._tell([(channel.encode(REPORTS.told(message)), stream)])

    def _tell(self, packets: list[tuple[bytes, socket.socket | None]]) -> None:
        waiting = bool(self._kept)
        self._kept.extend(packets)
        if not waiting and not self._sent():
            with suppress(RuntimeError):  # outside of trio's loop, `finish` sends it
                trio.lowlevel.spawn_system_task(self._send_on)

    def _sent(self) -> bool:
        """Send what there is room for; return whether that was all."""
        try:
            while self._kept:
                packet, stream = self._kept[0]
                fds = channel.descriptors([stream.fileno()] if stream else [])
                self._sock.sendmsg([packet], fds, socket.MSG_DONTWAIT)
                self._kept.popleft()
                if stream is not None:
                    stream.close()
        except BlockingIOError:
            return False
        except OSError:  # nobody is there
            self._kept.clear()
        return True

    async def _send_on(self) -> None:
        while not self._sent():
            await trio.lowlevel.wait_writable(self._sock.fileno())

    def finish(self) -> None:
        """Wait, not for ever, until what was told last has been sent."""
        end = time.monotonic() + LAST_REPORT
        while not self._sent() and time.monotonic() < end:
            select.select([], [self._sock], [], max(0.0, end - time.monotonic()))

    def progress(self, what: str) -> None:
        """Say what is being done now."""
        super().progress(what)
        self.tell(Progress(what))

    def warn(self, what: str) -> None:
        """Say what is worse than it might be."""
        super().warn(what)
        self.tell(Warned(what))

    def not_saved(self, words: str) -> None:
        """Say that what programs were told of is not on the medium: nobody who listens may miss that."""
        log.warning("%s", words)
        self.tell(NotSaved(words[:MAX_INCIDENT]))

    def changing(self, names: Sequence[str]) -> None:
        """Say of which volumes something was changed that the medium may not have yet."""
        self.tell(Changing(tuple(names)))

    def failed(self, error: UserError) -> None:
        """Say that it came to nothing."""
        self.tell(Failed.of(error))

    async def order(self) -> tuple[Order, list[int]] | None:
        """Wait for what is to be mounted, and where; None if nobody is there any more.

        Descriptors come with it, as it says. Raises UserError if it is no order, or one of another version.
        """
        await trio.lowlevel.wait_readable(self._sock.fileno())
        try:
            received = channel.receive(self._sock)
            if received is None:
                return None
            told, fds = received
            try:
                order = ORDERS.read(told)
                if isinstance(order, Order) and len(fds) == _ordered(order):
                    return order, fds
                raise ProtocolFault("it is no order")
            except ProtocolFault:
                channel.close(fds)
                raise
        except ProtocolFault as fault:
            raise UserError(f"the supervisor does not understand its order: {fault}", OTHER_VERSION) from fault

    def incident(self, words: str) -> None:
        """Say that something went wrong with a mount that is there. Who listens may be slow: it is then left out."""
        super().incident(words)
        if not self._kept:
            with suppress(OSError):
                self._sock.send(channel.encode(REPORTS.told(Incident(words[:MAX_INCIDENT]))), socket.MSG_DONTWAIT)

    async def judged(self, found: Found) -> Judged:
        """Return what is judged of what was found."""
        answer, fds = await self._asked(found)
        channel.close(fds)
        if not isinstance(answer, Judged):
            raise ProtocolFault("a key, where a judgement was asked for")
        return answer

    async def key(self, locked: Locked) -> tuple[Key, list[int]]:
        """Return a key, and the descriptors that came with it."""
        answer, fds = await self._asked(locked)
        if isinstance(answer, Key) and len(fds) == descriptors_of(answer):
            return answer, fds
        channel.close(fds)
        raise ProtocolFault("no key, where one was asked for")

    async def _asked(self, question: Found | Locked) -> tuple[Judged | Key, list[int]]:
        """Return the answer to a question. Somebody must wait in `gone` meanwhile, who hears it."""
        self.tell(question)
        return await self._answered.receive()

    async def gone(self) -> None:
        """Return when nobody listens any more. What is said meanwhile is the answer to a question."""
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            try:
                heard = channel.receive(self._sock)  # nobody else reads here, so it does not block
            except (OSError, ProtocolFault):
                return
            if heard is None or not self._take(*heard):
                return

    def _take(self, told: channel.Message, fds: list[int]) -> bool:
        """Pass an answer on; whether it is one that was waited for."""
        with suppress(ProtocolFault, trio.WouldBlock):
            if not isinstance(answer := ORDERS.read(told), Order):
                self._answers.send_nowait((answer, fds))
                return True
        channel.close(fds)
        return False


def _ordered(order: Order) -> int:
    """Return how many descriptors come with an order."""
    return 1 if order.options.stream else ORDERED + order.options.write


def descriptors_of(key: Key) -> int:
    """Return how many descriptors come with a key."""
    return 1 + key.header + key.keyfiles if key.given else 0
