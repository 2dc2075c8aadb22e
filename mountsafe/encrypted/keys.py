"""The host's end of the key process: it is asked what a volume is, and to unlock it. What it says is untrusted.

The volume key is never read here: it is in memory that this end made, which nobody can change once it is handed on.
"""

import ctypes
import fcntl
import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import trio

from mountsafe import channel, codec, distribution, sandbox, syscalls
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
from mountsafe.errors import ExitCode, GuestGone, ProtocolFault, UserError
from mountsafe.limits import (
    DESCRIBE_DEADLINE,
    KEY_ADDRESS_SPACE,
    KEY_DEADLINE,
    KEY_LOCKED,
    KEY_MEMORY,
    KEY_PROCESSES,
    KEY_SCRATCH,
)
from mountsafe.medium import libgcrypt
from mountsafe.medium.encryption import KEY_SIZES, Layout, Stack, check
from mountsafe.peer import Peer
from mountsafe.process import Child, said_by

log = logging.getLogger(__name__)
MAX_KEY = max(size for sizes in KEY_SIZES.values() for size in sizes)


class Given(Protocol):
    """What somebody answered who was asked for a key: `session.messages.Key` is one."""

    @property
    def form(self) -> str:
        """The name of a `Form`."""

    @property
    def pim(self) -> int:
        """VeraCrypt's PIM, 0 for none."""

    @property
    def hidden(self) -> bool:
        """Whether the hidden volume is meant."""

    @property
    def keyfiles(self) -> int:
        """How many key files come along."""

    @property
    def header(self) -> bool:
        """Whether a header comes along."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What somebody unlocks with, and which descriptors have it, in this order.

    The secret itself if the form has one; the header if `header`; so many `keyfiles`. `kind`: what to take the volume
    for, None for what the process was started with. `pim`, `hidden`, `keyfiles`: of VeraCrypt and TrueCrypt alone.
    """

    form: Form
    kind: Kind | None = None
    pim: int = 0
    hidden: bool = False
    keyfiles: int = 0
    header: bool = False

    @classmethod
    def of(cls, given: Given, kind: Kind | None = None) -> "Secret":
        """Return what was answered. Raises ValueError for a form that there is not."""
        return cls(Form(given.form), kind, given.pim, given.hidden, given.keyfiles, given.header)


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
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except OSError as error:
        raise ProtocolFault("the memory of a key is still written to") from error


class KeyProcess(Peer):
    """A started key process of one volume. A wrong key may be followed by another; the right one ends it."""

    def __init__(self, size: int, process: Child, control: socket.socket, kind: Kind | None = None) -> None:
        super().__init__(process, control, "the key process", "the key process")
        self._size = size
        self._kind = kind

    @classmethod
    def start(
        cls, stack: Stack, fds: Sequence[int], fstype: str | None = None, memory: int = KEY_MEMORY
    ) -> "KeyProcess":
        """Start the process for what `stack` makes of its descriptors, which stay the caller's.

        `fstype`: the volume's type by blkid(8)'s name; None, or one that is not known here, for what its header says.
        `memory`: bytes that argon2 may have; more than the default only if somebody asked for it (KEY_MEMORY_MOST).
        """
        with channel.handed_down() as (ours, theirs), syscalls.descriptor(syscalls.KEYS) as seccomp:
            bounds = (KEY_SCRATCH, KEY_ADDRESS_SPACE + memory, KEY_PROCESSES)
            box = sandbox.Box(*bounds, environment=sandbox.FEW_ARENAS, locked=KEY_LOCKED)
            settings = codec.plain(Settings(theirs.fileno(), stack, tuple(fds), memory))
            argv = sandbox.python("mountsafe.encrypted.derive", json.dumps(settings))
            command = box.command(argv, sandbox.outer_uid(), seccomp)
            log.debug("%s", sandbox.shown(command))
            process = Child(command, [theirs.fileno(), *fds, seccomp], "keys", said_by("keys"))
        size = stack.layers[-1].size if stack.layers else stack.size
        kind = next((kind for kind in Kind if kind == fstype), None)
        return cls(size, process, ours, kind)

    async def describe(self, header: int | None = None) -> Description:
        """Return what is known without a key, fit to be shown. `header`: a file with it, if that is elsewhere.

        Raises UserError (SOURCE) if it is not encrypted or damaged, GuestGone, DeadlinePassed, ProtocolFault.
        """
        request = Describe(self._kind, header is not None)
        fds = [] if header is None else [header]
        answer = await self._exchange(request, fds, DESCRIBE_DEADLINE, "read the header")
        if isinstance(answer, Failed):
            raise told.refusal(answer.fault, answer.detail)
        if not isinstance(answer, Described):
            raise ProtocolFault("the key process answered something else")
        return told.believed(answer.description)

    async def unlock(self, secret: Secret, fds: Sequence[int], key: int) -> Layout:
        """Have the volume key put into `key`, memory as of `key_memory`, which nobody changes after that.

        `fds`: as `Secret` says; they stay the caller's. Return the plaintext's layout in the volume.
        Raises UserError: LOCKED for a wrong key, SOURCE for what is damaged or not supported, DEPENDENCY for missing
        memory; GuestGone, DeadlinePassed, ProtocolFault. But for UserError the process is gone after that.
        """
        if secret.keyfiles > MAX_KEYFILES:
            raise told.too_many_keyfiles()
        how = (secret.pim, secret.hidden, secret.header, secret.keyfiles)
        request = Unlock(secret.form, secret.kind or self._kind, *how)
        self.process.hush()
        try:
            answer = await self._exchange(request, [key, *fds], KEY_DEADLINE, "derive the key")
        except GuestGone as gone:
            raise await self._end_of(gone) from gone
        if isinstance(answer, Failed):
            raise told.refusal(answer.fault, answer.detail, request.kind)
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
        return ANSWERS.read(await self.exchange(REQUESTS.told(request), fds, deadline, doing))


def require() -> None:
    """Raise UserError (DEPENDENCY) if what derives keys is missing. The box has the system's Python, as this one."""
    if find_spec("argon2") is None:
        raise UserError("Python's argon2 is missing", distribution.install("python3-argon2"), ExitCode.DEPENDENCY)
    try:
        ctypes.CDLL(libgcrypt.LIBRARY)
    except OSError as error:
        hint = distribution.install("libgcrypt20")
        raise UserError(f"{libgcrypt.LIBRARY} is missing", hint, ExitCode.DEPENDENCY) from error
