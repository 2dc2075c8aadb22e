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
from mountsafe.encrypted.tally import Tally
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.limits import (
    PLAINTEXT_ADDRESS_SPACE,
    PLAINTEXT_DEADLINE,
    PLAINTEXT_PROCESSES,
    PLAINTEXT_SCRATCH,
)
from mountsafe.medium.encryption import Stack
from mountsafe.medium.stacked import size_of, verify
from mountsafe.medium.writable import verify_writable
from mountsafe.peer import Peer
from mountsafe.process import Child, said_by
from mountsafe.text import printable

log = logging.getLogger(__name__)
SCRIPT = f"{sandbox.INSIDE}/{sandbox.PACKAGE.name}/encrypted/serve.py"
PLUGINS = ("lib/*", "lib64", "lib")  # below /usr, as distributions have it
# In the foreground, no TLS, by the protocol that every client speaks.
NBDKIT = ["nbdkit", "--foreground", "--newstyle", "--tls=off", "--unix", SOCKET]


class Plaintext(Peer):
    """A started plaintext server, or one that writes. `opened` first, then `connect` as often as needed."""

    def __init__(self, size: int, process: Child, control: socket.socket, writes: bool) -> None:
        name = "the writing server" if writes else "the plaintext server"
        super().__init__(process, control, name, name)
        self._size = size
        self._cannot = "the disk cannot be opened for writing" if writes else "the encrypted disk cannot be read"

    @classmethod
    def start(cls, stack: Stack, disk: int, keys: Sequence[int], tally: Tally | None = None) -> "Plaintext":
        """Start the process; `opened` says what came of it.

        `disk`: the medium, or a socket of its own to who serves the disk below. `keys`: for each layer that has a
        layout a file with its key. All stay the caller's. Raises ProtocolFault for a stack that cannot be.
        `tally`: it is written to, `disk` is open for that, and this is where it is counted.
        """
        if tally is None:
            words, filter_, further = "plaintext", syscalls.PLAINTEXT, list(keys)
            verify(stack)
        else:
            words, filter_, further = "writing", syscalls.WRITING, [*keys, tally.fd]
            verify_writable(stack)
        told = _file("stack", json.dumps(codec.plain(stack)).encode())
        try:
            with channel.handed_down() as (ours, theirs), syscalls.descriptor(filter_) as seccomp:
                settings = Settings(theirs.fileno(), told, disk, tuple(keys), tally.fd if tally else None)
                box = sandbox.Box(
                    PLAINTEXT_SCRATCH, PLAINTEXT_ADDRESS_SPACE, PLAINTEXT_PROCESSES, environment=sandbox.FEW_ARENAS
                )
                mode = [] if tally else ["--readonly"]
                argv = [*NBDKIT, *mode, "python", SCRIPT, f"settings={json.dumps(codec.plain(settings))}"]
                command = box.command(argv, sandbox.outer_uid(), seccomp)
                log.debug("%s", sandbox.shown(command))
                process = Child(command, [theirs.fileno(), told, disk, *further, seccomp], words, said_by(words))
            return cls(size_of(stack), process, ours, tally is not None)
        finally:
            os.close(told)

    async def opened(self) -> int:
        """Wait until the disk is there; return its size in bytes.

        Raises UserError (SOURCE) if it cannot be read, GuestGone or DeadlinePassed if the process failed.
        """
        untrusted = await self.receive(PLAINTEXT_DEADLINE, "open the disk")
        if untrusted.get("failed") == "open":
            why = printable(str(untrusted.get("why", "")), 300)
            raise UserError(f"{self._cannot}: {why}", "It may be damaged.", ExitCode.SOURCE)
        if untrusted.get("event") != "opened" or untrusted.get("size") != self._size:
            raise ProtocolFault(f"{self._what} tells of another disk")
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
