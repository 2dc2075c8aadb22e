"""A boxed child process that is asked over a control channel. It may have been taken over: its answers are untrusted.

The parent makes every socket and hands one end down, so no descriptor ever comes up from a box.
"""

import socket

import trio

from mountsafe import channel
from mountsafe.errors import DeadlinePassed, GuestGone, ProtocolFault
from mountsafe.limits import ATTACH_DEADLINE, CONTROL_MESSAGE
from mountsafe.process import Child
from mountsafe.text import printable

LAST_WORDS = 0.1  # seconds for what a process said at its end to arrive


class Peer:
    """The process, and the talk with it. `process_name` and `what` it keeps are for messages: "the virtual machine".

    It is asked by one task at a time; `stop` may be called by any, and more than once.
    """

    def __init__(self, process: Child, control: socket.socket, process_name: str, what: str) -> None:
        self.process = process
        self._control = trio.socket.from_stdlib_socket(control)
        self._requests = trio.Lock()
        self._process_name = process_name
        self._what = what

    @property
    def pid(self) -> int:
        """The process id of the box."""
        return self.process.pid

    async def log_words(self) -> None:
        """Log what the process says, and the guest's console if it has one, until it ends."""
        await self.process.log_words()

    async def wait(self) -> int:
        """Wait until the process has ended; return its code."""
        return await self.process.wait()

    async def receive(self, deadline: float, doing: str) -> channel.Message:
        """Return what it says next. Raises GuestGone if it has ended, DeadlinePassed."""
        with trio.move_on_after(deadline):
            try:
                packet = await self._control.recv(CONTROL_MESSAGE)
            except ConnectionError:  # it ended before it read what we had asked
                packet = b""
            if not packet:
                await trio.sleep(LAST_WORDS)
                last = self.process.last_line
                raise GuestGone(f"{self._process_name} ended{': ' if last else ''}{last[:300]}")
            return channel.decode(packet)
        raise DeadlinePassed(f"{self._what} did not {doing} in {deadline:.0f} s")

    async def ask(self, what: str, fds: list[int], deadline: float, **how: str | int | None) -> None:
        """Have it do something; `how` goes along. Raises GuestGone if it could not, DeadlinePassed, ProtocolFault."""
        untrusted = await self.exchange({"do": what, **how}, fds, deadline, what)
        if untrusted.get("done") == what:
            return
        if untrusted.get("failed") == what:
            raise GuestGone(f"{self._what} could not {what}: {printable(str(untrusted.get('why')), 500)}")
        raise ProtocolFault(f"{self._process_name} answered something else")

    async def exchange(self, message: channel.Message, fds: list[int], deadline: float, doing: str) -> channel.Message:
        """Send a message, and return what it says next. Raises GuestGone if it has ended, DeadlinePassed."""
        async with self._requests:
            try:
                await self._control.sendmsg([channel.encode(message)], channel.descriptors(fds))
            except OSError as error:
                raise GuestGone(f"{self._process_name} ended") from error
            return await self.receive(deadline, doing)

    async def connected(self, what: str) -> socket.socket:
        """Return a socket that it connects, as `ask` says: a name in its box means nothing outside of that."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await self.ask(what, [sock.fileno()], ATTACH_DEADLINE)
        except BaseException:
            sock.close()
            raise
        return sock

    async def stop(self) -> None:
        """End it, and wait until every process of its box is gone."""
        self._control.close()
        await self.process.stop()
