"""The host's end of the key process: it is asked what a volume is, and to unlock it. What it says is untrusted.

The volume key is never read here: it is in memory that this end made, which nobody can change once it is handed on.
"""

import fcntl
import json
import logging
import os
import socket
from dataclasses import dataclass

import trio

from mountsafe import channel, codec, sandbox, syscalls
from mountsafe.encrypted import told
from mountsafe.encrypted.description import Description, Form, Kind
from mountsafe.encrypted.messages import (
    ANSWERS,
    MAX_KEYFILES,
    REQUESTS,
    Answer,
    Describe,
    Described,
    Failed,
    Opened,
    Request,
    Settings,
    Unlock,
)
from mountsafe.errors import GuestGone, ProtocolFault
from mountsafe.limits import (
    DESCRIBE_DEADLINE,
    KEY_ADDRESS_SPACE,
    KEY_DEADLINE,
    KEY_LOCKED,
    KEY_MEMORY,
    KEY_PROCESSES,
    KEY_SCRATCH,
)
from mountsafe.medium.encryption import KEY_SIZES, Layout, Stack, check
from mountsafe.peer import Peer
from mountsafe.process import Child, said_by

log = logging.getLogger(__name__)
MAX_KEY = max(size for sizes in KEY_SIZES.values() for size in sizes)
# Each thread of argon2's would reserve 64 MiB of address space for what it allocates.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True, slots=True)
class Secret:
    """What somebody unlocks with. The descriptors stay the caller's: copies go down.

    `fd`: where the secret is read from to its end, None for a clear key. `kind`: what to take the volume for, None for
    what its signature says; VeraCrypt and TrueCrypt have none. `pim`, `hidden`, `keyfiles`: theirs alone.
    """

    form: Form
    fd: int | None
    kind: Kind | None = None
    pim: int = 0
    hidden: bool = False
    keyfiles: tuple[int, ...] = ()


def key_memory() -> int:
    """Return a descriptor of memory that takes a volume key, and cannot become larger."""
    fd = os.memfd_create("key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MAX_KEY)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return fd


def _seal(fd: int, size: int) -> None:
    """Have memory hold its first `size` bytes, and stay so. Raises ProtocolFault if somebody still writes to it."""
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        raise ProtocolFault("the memory of a key is still written to") from error


class KeyProcess(Peer):
    """A started key process of one volume. A wrong key may be followed by another; the right one ends it."""

    def __init__(self, size: int, process: Child, control: socket.socket) -> None:
        super().__init__(process, control, "the key process", "the key process")
        self._size = size

    @classmethod
    def start(cls, stack: Stack, fds: list[int], header: int | None = None, memory: int = KEY_MEMORY) -> "KeyProcess":
        """Start the process for what `stack` makes of its descriptors.

        `header`: a file with the header, if that lies elsewhere. `memory`: bytes that argon2 may have; more than the
        default only when somebody asked for it (`limits.KEY_MEMORY_MOST`).
        """
        with channel.handed_down() as (ours, theirs), syscalls.descriptor(syscalls.KEYS) as seccomp:
            box = sandbox.Box(
                *(KEY_SCRATCH, KEY_ADDRESS_SPACE + memory, KEY_PROCESSES), environment=ENVIRONMENT, locked=KEY_LOCKED
            )
            settings = codec.plain(Settings(theirs.fileno(), stack, tuple(fds), header, memory))
            command = box.command(
                sandbox.python("mountsafe.encrypted.derive", json.dumps(settings)), sandbox.outer_uid(), seccomp
            )
            log.debug("%s", sandbox.shown(command))
            inherited = [theirs.fileno(), *fds, seccomp, *([] if header is None else [header])]
            process = Child(command, inherited, "keys", said_by("keys"))
        size = stack.layers[-1].size if stack.layers else stack.size
        return cls(size, process, ours)

    async def describe(self, kind: Kind | None = None) -> Description:
        """Return what is known without a key, fit to be shown.

        Raises UserError (SOURCE) if it is not encrypted or damaged, GuestGone, DeadlinePassed, ProtocolFault.
        """
        answer = await self._exchange(Describe(kind), [], DESCRIBE_DEADLINE, "read the header")
        if isinstance(answer, Failed):
            raise told.refusal(answer.fault, answer.detail)
        if not isinstance(answer, Described):
            raise ProtocolFault("the key process answered something else")
        return told.believed(answer.description)

    async def unlock(self, secret: Secret, key: int) -> Layout:
        """Have the volume key put into `key` (of `key_memory`), sealed; return the plaintext's layout.

        Raises UserError: LOCKED for a wrong key, SOURCE for what is damaged or not supported, DEPENDENCY for missing
        memory; GuestGone, DeadlinePassed, ProtocolFault. After a success, and these three, the process is gone.
        """
        if len(secret.keyfiles) > MAX_KEYFILES:
            raise told.too_many_keyfiles()
        request = Unlock(secret.form, secret.kind, secret.pim, secret.hidden, len(secret.keyfiles))
        fds = [key, *([] if secret.fd is None else [secret.fd]), *secret.keyfiles]
        try:
            answer = await self._exchange(request, fds, KEY_DEADLINE, "derive the key")
        except GuestGone as gone:
            raise await self._end_of(gone) from gone
        if isinstance(answer, Failed):
            raise told.refusal(answer.fault, answer.detail)
        await self.stop()  # who is gone has no mapping of the key's memory
        if not isinstance(answer, Opened):
            raise ProtocolFault("the key process answered something else")
        check(answer.layout, self._size)
        _seal(key, answer.layout.key_size)
        return answer.layout

    async def _end_of(self, gone: GuestGone) -> Exception:
        """Return what its end means: the kernel kills who wants memory that is not there."""
        code: int | None = None
        with trio.move_on_after(1):
            code = await self.wait()
        return told.no_memory() if code in told.KILLED else gone

    async def _exchange(self, request: Request, fds: list[int], deadline: float, doing: str) -> Answer:
        async with self._requests:
            try:
                packet = channel.encode(REQUESTS.told(request))
                await self._control.sendmsg([packet], channel.descriptors(fds))
            except OSError as error:
                raise GuestGone("the key process ended") from error
            return ANSWERS.read(await self.receive(deadline, doing))
