"""The plaintext of an encrypted disk as the host sees it: a boxed server that has the key, and sockets to the disk.

It is nbdkit, which is kept and fuzzed by others, with a script of ours. Its readers have no part in what is below:
headers, key slots and what else is not the payload are out of their reach.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from mountsafe import channel, codec, distribution, sandbox, syscalls
from mountsafe.encrypted.settings import SOCKET, Settings
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.limits import (
    PLAINTEXT_ADDRESS_SPACE,
    PLAINTEXT_DEADLINE,
    PLAINTEXT_PROCESSES,
    PLAINTEXT_SCRATCH,
)
from mountsafe.medium.encryption import Stack
from mountsafe.medium.stacked import size_of, verify
from mountsafe.peer import Peer
from mountsafe.process import Child, said_by
from mountsafe.text import printable

log = logging.getLogger(__name__)
SCRIPT = f"{sandbox.INSIDE}/{sandbox.PACKAGE.name}/encrypted/serve.py"
PLUGINS = ("lib/*", "lib64", "lib")  # below /usr, as distributions have it
# Read-only, in the foreground, no TLS, by the protocol that every client speaks.
NBDKIT = ["nbdkit", "--foreground", "--readonly", "--newstyle", "--tls=off", "--unix", SOCKET, "python", SCRIPT]


class Plaintext(Peer):
    """A started plaintext server. `opened` first, then `connect` as often as needed."""

    def __init__(self, size: int, process: Child, control: socket.socket) -> None:
        super().__init__(process, control, "the plaintext server", "the plaintext server")
        self._size = size

    @classmethod
    def start(cls, stack: Stack, disk: int, keys: Sequence[int]) -> "Plaintext":
        """Start the process; `opened` says what came of it.

        `disk`: the medium, or a socket of its own to who serves the disk below. `keys`: for each layer that has a
        layout a file with its key. All stay the caller's. Raises ProtocolFault for a stack that cannot be.
        """
        verify(stack)
        told = _file("stack", json.dumps(codec.plain(stack)).encode())
        try:
            with channel.handed_down() as (ours, theirs), syscalls.descriptor(syscalls.PLAINTEXT) as seccomp:
                settings = Settings(theirs.fileno(), told, disk, tuple(keys))
                box = sandbox.Box(
                    PLAINTEXT_SCRATCH, PLAINTEXT_ADDRESS_SPACE, PLAINTEXT_PROCESSES, environment=sandbox.FEW_ARENAS
                )
                argv = [*NBDKIT, f"settings={json.dumps(codec.plain(settings))}"]
                command = box.command(argv, sandbox.outer_uid(), seccomp)
                log.debug("%s", sandbox.shown(command))
                process = Child(
                    command, [theirs.fileno(), told, disk, *keys, seccomp], "plaintext", said_by("plaintext")
                )
            return cls(size_of(stack), process, ours)
        finally:
            os.close(told)

    async def opened(self) -> int:
        """Wait until the disk is there; return its size in bytes.

        Raises UserError (SOURCE) if it cannot be read, GuestGone or DeadlinePassed if the process failed.
        """
        untrusted = await self.receive(PLAINTEXT_DEADLINE, "open the disk")
        if untrusted.get("failed") == "open":
            why = printable(str(untrusted.get("why", "")), 300)
            raise UserError(f"the encrypted disk cannot be read: {why}", "It may be damaged.", ExitCode.SOURCE)
        if untrusted.get("event") != "opened" or untrusted.get("size") != self._size:
            raise ProtocolFault("the plaintext server tells of another disk")
        return self._size

    async def connect(self, relayed: bool) -> socket.socket:
        """Return a socket at whose other end the disk is served by NBD. Raises GuestGone, DeadlinePassed.

        `relayed`: for a client that is QEMU, which makes no difference: after an error nbdkit goes on in any case.
        """
        return await self.connected("connect")


def _file(name: str, data: bytes) -> int:
    fd = os.memfd_create(name)
    os.pwrite(fd, data, 0)
    return fd


def require() -> None:
    """Raise UserError (DEPENDENCY) if what serves plaintext is missing."""
    plugin = "nbdkit/plugins/nbdkit-python-plugin.so"
    if shutil.which("nbdkit") is None or not any(any(Path("/usr").glob(f"{place}/{plugin}")) for place in PLUGINS):
        hint = distribution.install("nbdkit-plugin-python")
        raise UserError("nbdkit or its Python plugin is missing", hint, ExitCode.DEPENDENCY)
