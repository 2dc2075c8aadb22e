"""What a supervisor and a session process say to each other. The supervisor trusts nothing that it hears.

Descriptors come with messages to the session process: a stream, a disk, or what it is to serve.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mountsafe import codec
from mountsafe.errors import ProtocolFault
from mountsafe.medium.encryption import Stack


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session process is started with: descriptors of its end of the conversation, and of a raw medium.

    `decrypts`: its disk will be an encrypted one, and what that needs is loaded. `writes`: so is what a file system
    needs that may be changed. `fuse`: it serves a mount, and else a stream.
    """

    control: int
    medium: int | None
    decrypts: bool = False
    writes: bool = False
    fuse: bool = True


# --- to the session process ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Writing:
    """It may be changed, by a virtual machine that has its bytes alone, as a disk. `device`: what that is called there.

    `idle`: seconds without a change after which it is left clean, and read-only underneath.
    """

    device: str
    idle: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which file system it serves, and how. `start`, `size`, `places`: the window of its disk, in bytes.

    `stack`: how that disk is made of the one that it has; a descriptor comes along for each key. `uid` and `gid`: whose
    its files are, None for as the medium says. `idle` and `entries` as in `session.presentation.Presentation`, and its
    `zone` in hexadecimal digits. `writing`: None if it is read-only.
    """

    device: str
    fstype: str
    options: tuple[str, ...]
    start: int
    size: int
    places: tuple[tuple[int, int, int], ...]
    stack: Stack
    uid: int | None
    gid: int | None
    idle: float
    entries: int
    zone: str
    writing: Writing | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """To the agent in the virtual machine of that number."""

    machine: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The virtual machine for writing has ended, and the medium has all that was changed; `why` it has not, or ""."""

    why: str


@dataclass(frozen=True, slots=True)
class Disk:
    """What the container process of that number makes of the medium."""

    container: int


@dataclass(frozen=True, slots=True)
class Connection:
    """The mount is made, or there is a stream: serve it. `guard_links`: the kernel follows links in it, and they must
    stay inside.
    """

    guard_links: bool


@dataclass(frozen=True, slots=True)
class Nothing:
    """What was asked for is not to be had."""

    why: str


# --- by the session process ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WantStream:
    """A stream, to a virtual machine that is started if need be: `Stream` or `Nothing` is the answer.

    `writing`: to one that may change the file system, whose numbers are its own. It has the bytes of the file system
    as its only disk.
    """

    writing: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """The guest has unmounted what it changed: end its virtual machine, and have the medium keep it.

    `Settled` is the answer. The next stream to a read-only virtual machine leads to one that has read nothing before.
    """


@dataclass(frozen=True, slots=True)
class Unsaved:
    """Changes that programs were told of are lost, or may be: `why`, how many of them, and `names` of files, a few."""

    why: str
    count: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Saving:
    """What programs were told of is being saved. `names`: of a few files, which are lost if nothing more is said.

    Without names it has been saved.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WantDisk:
    """A connection to the disk: `Disk` or `Nothing`. `instead`: the container process of that number is silent."""

    instead: int | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The guest has mounted it: `Connection` or `Nothing`. `state` is of `wire.MountState`, `resorts` of `wire.Resort`.

    `mode`: of its root. `landlock`: the version that holds the process in, or 0.
    """

    fstype: str
    state: int
    resorts: int
    direct: bool
    mode: int
    landlock: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """The kernel's first question is answered."""


@dataclass(frozen=True, slots=True)
class Resting:
    """It needs no virtual machine for now."""


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """The guest in the virtual machine of that number, for `writing` or not, broke a rule or a deadline."""

    number: int
    why: str
    writing: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The guest says no to the mount."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no mount, and the guest is at fault or lost."""

    why: str


Given = Assignment | Stream | Disk | Connection | Settled | Nothing
Said = WantStream | WantDisk | Ready | Serving | Resting | Settle | Unsaved | Saving | Misbehaved | Refused | Failed

GIVEN = codec.Messages[Given](
    {
        "assignment": Assignment,
        "stream": Stream,
        "disk": Disk,
        "connection": Connection,
        "settled": Settled,
        "nothing": Nothing,
    }
)
SAID = codec.Messages[Said](
    {
        "want-stream": WantStream,
        "want-disk": WantDisk,
        "ready": Ready,
        "serving": Serving,
        "resting": Resting,
        "settle": Settle,
        "unsaved": Unsaved,
        "saving": Saving,
        "misbehaved": Misbehaved,
        "refused": Refused,
        "failed": Failed,
    }
)


# --- whose turn it is ------------------------------------------------------------------------------------------------
class Phase(StrEnum):
    """How far the mount of one file system has come, as its supervisor sees it."""

    LEARNING = "learning"  # the guest mounts it, and the root is learned
    MADE = "made"  # the mount is made, and its descriptor handed down
    SERVING = "serving"  # the kernel has its first answer: whoever waits for the mount is told
    OVER = "over"  # it came to nothing; what ends may still be said


_ANYTIME: Mapping[type[Said], Phase | None] = dict.fromkeys(
    (WantStream, WantDisk, Resting, Settle, Unsaved, Saving, Misbehaved)
)
# What a session process may say, and the phase that it leads to; None is the same one. The supervisor may also end it.
TURNS: Mapping[Phase, Mapping[type[Said], Phase | None]] = {
    Phase.LEARNING: {**_ANYTIME, Ready: Phase.MADE, Refused: Phase.OVER, Failed: Phase.OVER},
    Phase.MADE: {**_ANYTIME, Serving: Phase.SERVING},
    Phase.SERVING: _ANYTIME,
    Phase.OVER: _ANYTIME,
}


def turned(phase: Phase, said: Said) -> Phase:
    """Return the phase after a message. Raises ProtocolFault if it is out of turn."""
    try:
        return TURNS[phase][type(said)] or phase
    except KeyError:
        raise ProtocolFault(f"{type(said).__name__} while it is {phase}") from None
