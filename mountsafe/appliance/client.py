"""The host's end of an agent stream: requests in, checked answers out.

Any number of tasks may call `request`; answers are matched by id. One reader task (`run`) owns the receiving side. The
stream ends for everybody, with one reason, when the guest closes it, breaks the protocol or misses a deadline: a guest
that did one of these is not asked again.
"""

import errno
import itertools
import os
import socket
import time
from contextlib import suppress

import trio

from mountsafe import wire
from mountsafe.errors import DeadlinePassed, GuestFault, GuestGone, MountsafeError
from mountsafe.limits import INFLIGHT, PROBE_DEADLINE, REQUEST_DEADLINE
from mountsafe.text import printable

RECEIVE_SIZE = 256 << 10
# Errnos by which a file system speaks to the kernel and not to a program: ENOSYS means "never ask this again".
_MEANT_FOR_THE_KERNEL = frozenset({errno.ENOSYS, errno.EINTR, errno.EAGAIN})


class GuestRefused(MountsafeError):
    """The agent answered that it cannot: `errno` is one of Linux's, `words` are fit to be shown."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"{os.strerror(number)}: {words}" if words else os.strerror(number))
        self.errno = number
        self.words = words


def refused(untrusted_errno: int, untrusted_words: bytes) -> GuestRefused:
    """Return what a refusal means."""
    known = untrusted_errno in errno.errorcode and untrusted_errno not in _MEANT_FOR_THE_KERNEL
    return GuestRefused(untrusted_errno if known else errno.EIO, printable(untrusted_words, wire.MAX_MESSAGE))


class Pending:
    """A question that was sent and is not answered yet."""

    def __init__(self, client: "AgentClient", kind: int, receive: "trio.MemoryReceiveChannel[wire.Frame]") -> None:
        self._client = client
        self._kind = kind
        self._receive = receive

    async def result(self, deadline: float) -> bytes:
        """Return the untrusted body of the answer, as `AgentClient.request` does."""
        return await self._client.finish(self._kind, self._receive, deadline)


class AgentClient:
    """A stream to one worker of the agent, in the virtual machine that its parent calls by the number `machine`.

    `writing`: that one may change its disk, and numbers of its kind are counted apart.
    """

    def __init__(self, sock: socket.socket, machine: int = 0, writing: bool = False) -> None:
        self.machine = machine
        self.writing = writing
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._sending = trio.Lock()
        self._cut = False  # only half of a question was sent: the guest would take the next one for the rest
        self._places = trio.CapacityLimiter(INFLIGHT)
        self._idents = itertools.count(1)
        self._waiting: dict[int, trio.MemorySendChannel[wire.Frame]] = {}
        self.ended: MountsafeError | None = None

    async def run(self) -> None:
        """Receive until the stream ends; then every waiting and later request raises the reason."""
        decoder = wire.Decoder()
        reason: MountsafeError = GuestGone("the virtual machine is gone")
        try:
            while data := await self._stream.receive_some(RECEIVE_SIZE):
                for untrusted_frame in decoder.feed(data):
                    self._deliver(untrusted_frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except wire.WireError as error:
            reason = GuestFault(str(error))
        except GuestFault as fault:
            reason = fault
        finally:
            self.end(reason)

    def _deliver(self, untrusted_frame: wire.Frame) -> None:
        waiter = self._waiting.pop(untrusted_frame.ident, None)
        if waiter is None:
            raise GuestFault(f"an answer to request {untrusted_frame.ident}, which nobody made")
        waiter.send_nowait(untrusted_frame)

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._waiting)

    def end(self, reason: MountsafeError) -> None:
        """Close the stream; the first reason stays."""
        self.ended = self.ended or reason
        self._stream.socket.close()
        for waiter in self._waiting.values():
            waiter.close()
        self._waiting.clear()

    async def request(self, kind: int, body: bytes = b"", deadline: float = REQUEST_DEADLINE) -> bytes:
        """Return the body of the answer, which is still untrusted.

        Raises GuestRefused (the agent says no), GuestGone, GuestFault or DeadlinePassed (after `deadline` seconds;
        the stream is then ended). A cancelled request's answer is awaited no longer, but ends nothing.
        """
        async with self._places:
            if self.ended is not None:
                raise self.ended
            ident = next(self._idents) & 0xFFFFFFFF
            send, receive = trio.open_memory_channel[wire.Frame](1)
            self._waiting[ident] = send
            frame: wire.Frame | None = None
            with trio.move_on_after(deadline) as scope:
                try:
                    frame = await self._exchange(wire.frame(ident, kind, body), receive)
                except trio.Cancelled:
                    if ident in self._waiting:
                        # The guest will still answer: let that be delivered to nobody.
                        self._waiting[ident] = trio.open_memory_channel[wire.Frame](1)[0]
                    if self._cut and not scope.cancel_called:
                        self.end(GuestGone("a question to the virtual machine was cut short"))
                    raise
            if frame is None:
                if scope.cancelled_caught:
                    self.end(self._late(deadline))
                raise self._reason()
        return self._body_of(frame, kind)

    def _reason(self) -> MountsafeError:
        return self.ended or GuestGone("the virtual machine is gone")

    async def begin(self, kind: int, body: bytes, deadline: float) -> "Pending":
        """Send a question and come back when it is sent: as `request` otherwise.

        Those of one task are asked, and answered, in the order in which it calls this.
        """
        if self.ended is not None:
            raise self.ended
        ident = next(self._idents) & 0xFFFFFFFF
        send, receive = trio.open_memory_channel[wire.Frame](1)
        self._waiting[ident] = send
        with trio.move_on_after(deadline) as scope:
            try:
                async with self._sending:
                    await self._send(wire.frame(ident, kind, body))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._reason() from None
            except trio.Cancelled:
                if self._cut:
                    self.end(self._late(deadline) if scope.cancel_called else GuestGone("a question was cut short"))
                raise
        if scope.cancelled_caught:
            self.end(self._late(deadline))
            raise self._reason()
        return Pending(self, kind, receive)

    @staticmethod
    def _late(deadline: float) -> DeadlinePassed:
        return DeadlinePassed(f"no answer from the virtual machine in {deadline:.0f} s")

    async def finish(self, kind: int, receive: "trio.MemoryReceiveChannel[wire.Frame]", deadline: float) -> bytes:
        """Wait for the answer to what was begun; see `Pending`."""
        frame: wire.Frame | None = None
        with trio.move_on_after(deadline) as scope:
            with suppress(trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                frame = await receive.receive()
        if scope.cancelled_caught:
            self.end(self._late(deadline))
        if frame is None:
            raise self._reason()
        return self._body_of(frame, kind)

    def _body_of(self, frame: wire.Frame, kind: int) -> bytes:
        if frame.kind == wire.Kind.ERROR:
            raise self._refusal(frame.body)
        if frame.kind != kind:
            fault = GuestFault(f"an answer of kind {frame.kind} to a request of kind {kind}")
            self.end(fault)
            raise fault
        return frame.body

    async def _exchange(self, data: bytes, receive: "trio.MemoryReceiveChannel[wire.Frame]") -> wire.Frame | None:
        try:
            async with self._sending:
                await self._send(data)
            return await receive.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            return None

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.Cancelled:
            self._cut = True
            raise

    def _refusal(self, untrusted_body: bytes) -> MountsafeError:
        try:
            return refused(*wire.unpack_error(untrusted_body))
        except wire.WireError as error:
            fault = GuestFault(str(error))
            self.end(fault)
            return fault

    async def hello(self, deadline: float = REQUEST_DEADLINE) -> str:
        """Check that both ends speak the same version; return the guest's kernel release."""
        try:
            now = wire.pack_hello_request(time.time_ns())
            version, release = wire.unpack_hello(await self.request(wire.Kind.HELLO, now, deadline))
        except wire.WireError as error:
            raise GuestFault(str(error)) from error
        if version != wire.VERSION:
            raise GuestFault(f"the agent speaks version {version}, this program {wire.VERSION}")
        return printable(release)

    async def probe(self) -> list[wire.Volume]:
        """Return the medium's volumes as the guest sees them: untrusted, but well-formed."""
        try:
            return wire.unpack_volumes(await self.request(wire.Kind.PROBE, deadline=PROBE_DEADLINE))
        except wire.WireError as error:
            raise GuestFault(str(error)) from error
