"""An image of a container format as the host sees it: a boxed child process that opens it, and sockets to the disk."""

import json
import logging
import shutil
import socket
from importlib.util import find_spec

from mountsafe import channel, distribution, sandbox, syscalls
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.limits import (
    CONTAINER_ADDRESS_SPACE,
    CONTAINER_DEADLINE,
    CONTAINER_PROCESSES,
    CONTAINER_SCRATCH,
    MAX_DISK_SIZE,
)
from mountsafe.medium.formats import Fault, refusal
from mountsafe.medium.source import Medium
from mountsafe.peer import Peer
from mountsafe.process import Child, said_by
from mountsafe.text import printable

log = logging.getLogger(__name__)


class Container(Peer):
    """A started container process. `opened` first, then `connect` as often as needed."""

    def __init__(self, medium: Medium, process: Child, control: socket.socket) -> None:
        super().__init__(process, control, "the container process", "the container process")
        self._medium = medium

    @classmethod
    def start(cls, medium: Medium) -> "Container":
        """Start the process; `opened` says what came of it."""
        with channel.handed_down() as (ours, theirs), syscalls.descriptor(syscalls.APPLIANCE) as seccomp:
            bounds = (CONTAINER_SCRATCH, CONTAINER_ADDRESS_SPACE, CONTAINER_PROCESSES)
            box = sandbox.Box(*bounds, environment=sandbox.FEW_ARENAS)
            settings = {"control": theirs.fileno(), "medium": medium.fd, "format": medium.format}
            argv = sandbox.python("mountsafe.container.serve", json.dumps(settings))
            command = box.command(argv, sandbox.outer_uid(), seccomp)
            log.debug("%s", sandbox.shown(command))
            process = Child(command, [theirs.fileno(), medium.fd, seccomp], "container", said_by("container"))
        return cls(medium, process, ours)

    async def opened(self) -> int:
        """Wait until the image is open; return the size of the disk in it, in bytes.

        Raises UserError (SOURCE) if it cannot be opened, GuestGone or DeadlinePassed if the process failed.
        """
        untrusted = await self.receive(CONTAINER_DEADLINE, "open the image")
        if untrusted.get("failed") == "open":
            raise self._refusal(untrusted)
        size = untrusted.get("size")
        if untrusted.get("event") != "opened" or type(size) is not int or not 0 <= size <= MAX_DISK_SIZE:
            raise ProtocolFault("the container process tells no size that could be")
        if size == 0:
            raise UserError(f"the disk in {self._medium.name} is empty", "Nothing is in it.", ExitCode.SOURCE)
        return size

    def _refusal(self, untrusted: channel.Message) -> UserError:
        untrusted_fault = str(untrusted.get("fault"))
        if untrusted_fault in Fault.__members__:
            return refusal(Fault[untrusted_fault], self._medium.name)
        why = printable(str(untrusted.get("why", "")), 300)
        message = f"{self._medium.name} cannot be opened as {self._medium.format}: {why}"
        return UserError(message, "It may be damaged. --format says what to take it for.", ExitCode.SOURCE)

    async def connect(self, relayed: bool) -> socket.socket:
        """Return a socket at whose other end the disk is served by NBD. Raises GuestGone, DeadlinePassed.

        `relayed`: for a client that is QEMU (see `relay`).
        """
        return await self.connected("relay" if relayed else "connect")


def require() -> None:
    """Raise UserError (DEPENDENCY) if what opens containers is missing."""
    if find_spec("nbd") is None:
        raise UserError("Python's nbd is missing", distribution.install("python3-libnbd"), ExitCode.DEPENDENCY)
    if shutil.which("qemu-system-x86_64") is None:
        raise UserError("qemu-system-x86_64 is missing", distribution.install("qemu-system-x86"), ExitCode.DEPENDENCY)
