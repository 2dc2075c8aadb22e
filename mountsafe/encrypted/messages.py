"""What the key process is asked and what it answers; both ends trust what the codec has read, and no more.

Its settings are the one argument of its program. Requests come one at a time, with descriptors: of `Unlock` the memory
that takes the key; the secret if the form has one; for both a file with the header if that is elsewhere; the key files.
"""

from dataclasses import dataclass

from mountsafe import channel
from mountsafe.codec import Messages
from mountsafe.encrypted.description import Description, Form, Kind
from mountsafe.encrypted.faults import Fault
from mountsafe.medium.encryption import Layout, Stack

MAX_KEYFILES = channel.MAX_DESCRIPTORS - 3


@dataclass(frozen=True, slots=True)
class Settings:
    """Descriptors are numbers in the new process. `memory`: bytes that argon2 may have."""

    control: int
    stack: Stack
    fds: tuple[int, ...]
    memory: int


@dataclass(frozen=True, slots=True)
class Describe:
    """What is it? `kind`: None for what its signature says."""

    kind: Kind | None
    header: bool


@dataclass(frozen=True, slots=True)
class Unlock:
    """Put the volume key into the memory, and tell the layout."""

    form: Form
    kind: Kind | None
    pim: int
    hidden: bool
    header: bool
    keyfiles: int


@dataclass(frozen=True, slots=True)
class Described:
    """What it is."""

    description: Description


@dataclass(frozen=True, slots=True)
class Opened:
    """The key is in the memory."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Failed:
    """Why not."""

    fault: Fault
    detail: str


Request = Describe | Unlock
Answer = Described | Opened | Failed
REQUESTS: Messages[Request] = Messages({"describe": Describe, "unlock": Unlock})
ANSWERS: Messages[Answer] = Messages({"described": Described, "opened": Opened, "failed": Failed})
