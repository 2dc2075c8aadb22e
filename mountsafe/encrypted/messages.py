"""What the key process is asked and what it answers; both ends trust what the codec has read, and no more.

Its settings are the one argument of its program. Requests come one at a time, with descriptors: of `Unlock` the memory
that takes the key, then the secret if the form has one, then the key files.
"""

from dataclasses import dataclass

from mountsafe.codec import Messages
from mountsafe.encrypted.description import Description, Form, Kind
from mountsafe.encrypted.faults import Fault
from mountsafe.medium.encryption import Layout, Stack

MAX_KEYFILES = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """Descriptors are numbers in the new process. `header`: a file with a detached header.

    `memory`: bytes that argon2 may have.
    """

    control: int
    stack: Stack
    fds: tuple[int, ...]
    header: int | None
    memory: int


@dataclass(frozen=True, slots=True)
class Describe:
    """What is it? `kind`: None for what its signature says."""

    kind: Kind | None


@dataclass(frozen=True, slots=True)
class Unlock:
    """Put the volume key into the memory, and tell the layout."""

    form: Form
    kind: Kind | None
    pim: int
    hidden: bool
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
