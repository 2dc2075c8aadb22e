"""What a supervisor tells whoever started it, and what clients ask it; the version is that of `session.order`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mountsafe import codec
from mountsafe.errors import ExitCode, UserError
from mountsafe.policy.inside import Seen
from mountsafe.session.order import KNOWN, VERSION, Order
from mountsafe.session.record import Record


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done now."""

    what: str


@dataclass(frozen=True, slots=True)
class Warned:
    """What is worse than it might be."""

    what: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is on the medium, before any of it is shown; where it was ordered to be judged, a `Judged` is waited for."""

    volumes: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """Which of the volumes that were found are not to be shown, by their positions, and why.

    `options`: what others are to be mounted with, as far as their types take it, by positions; `read_only`: those that
    may not be written to.
    """

    refused: tuple[int, ...]
    words: str
    options: tuple[tuple[int, tuple[str, ...]], ...] = ()
    read_only: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Locked:
    """An encrypted volume, which needs a key: where it was ordered with `unlock`, a `Key` is waited for.

    `name` and `kind` as a person calls them: "partition 2", "LUKS2". `hint`: what helps to find the key; `why`: why the
    last one did not do, "" the first time.
    """

    name: str
    kind: str
    uuid: str
    label: str
    hint: str
    why: str


class KeyForm(StrEnum):
    """What a secret is."""

    PASSPHRASE = "passphrase"
    KEY_FILE = "key-file"
    RECOVERY_KEY = "recovery-key"
    BEK_FILE = "bek-file"


@dataclass(frozen=True, slots=True)
class Key:
    """The answer. Descriptors come with it: of the secret, of a LUKS header if `header`, and of so many `keyfiles`.

    Not `given`: none is to be had, and what is locked stays so. `pim`, `hidden`: of VeraCrypt.
    `big_memory`: its derivation may have more memory than `mountsafe.limits.KEY_MEMORY`.
    """

    form: KeyForm
    given: bool = True
    pim: int = 0
    hidden: bool = False
    keyfiles: int = 0
    header: bool = False
    big_memory: bool = False


@dataclass(frozen=True, slots=True)
class Streamed:
    """A file system is served over the stream that comes along, of `Mount.name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Mounted:
    """It is there."""

    record: Record


@dataclass(frozen=True, slots=True)
class Failed:
    """It came to nothing."""

    message: str
    hint: str
    code: ExitCode

    @classmethod
    def of(cls, error: UserError) -> "Failed":
        """Return the message of an error."""
        return cls(error.message, error.hint, error.code)

    def error(self) -> UserError:
        """Return the error of the message."""
        return UserError(self.message, self.hint, self.code)


@dataclass(frozen=True, slots=True)
class Incident:
    """A virtual machine was lost."""

    words: str


@dataclass(frozen=True, slots=True)
class NotSaved:
    """Changes that programs were told of are not on the medium: which, and why."""

    words: str


@dataclass(frozen=True, slots=True)
class Changing:
    """Of which mounts, by `Mount.name`, something was changed that the medium may not have yet: of none it has all."""

    names: tuple[str, ...]


class Verb(StrEnum):
    """What a client may ask for."""

    STATUS = "status"
    UNMOUNT = "unmount"
    LEND = "lend"  # a descriptor of the medium comes with the answer


@dataclass(frozen=True, slots=True)
class Request:
    """A client's. `force`: unmount it, whatever uses it."""

    do: Verb
    force: bool = False
    version: int = 1  # as long as a supervisor of version 1 understands it

    @classmethod
    def read(cls, untrusted: Mapping[str, object]) -> "Request":
        """Return the request of an object. Raises ProtocolFault, OtherVersion."""
        codec.check_version(untrusted, VERSION, KNOWN)
        return codec.read(cls, untrusted)


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked for is done; after `Verb.UNMOUNT` the supervisor ends."""

    what: Verb


Report = Progress | Warned | Found | Locked | Streamed | Mounted | Failed | Incident | NotSaved | Changing
Answer = Mounted | Failed | Done

ORDERS = codec.Messages[Order | Judged | Key]({"order": Order, "judged": Judged, "key": Key}, VERSION, (VERSION,))
REPORTS = codec.Messages[Report](
    {
        "progress": Progress,
        "warning": Warned,
        "found": Found,
        "locked": Locked,
        "streamed": Streamed,
        "mounted": Mounted,
        "failed": Failed,
        "incident": Incident,
        "not-saved": NotSaved,
        "changing": Changing,
    },
    VERSION,
    KNOWN,
    strict=False,
)
ANSWERS = codec.Messages[Answer]({"mounted": Mounted, "failed": Failed, "done": Done}, VERSION, KNOWN, strict=False)
