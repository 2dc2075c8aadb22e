"""What a supervisor is ordered and asked, what it tells, and the record that it keeps of its mounts.

A supervisor may outlive an upgrade, so whoever reads looks at the version. Add to what is told only with a default, and
count the version up when a field is taken away, means something else, or must be understood.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mountsafe import codec
from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import IDLE, INDEX_ENTRIES
from mountsafe.medium.formats import Format
from mountsafe.medium.part import WHOLE, Part
from mountsafe.policy.inside import Seen

VERSION = 2
KNOWN = (1, 2)  # 1 wrote no version, had other orders, and tells the same of what is mounted


# --- the order ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Begin:
    """How a supervisor is started. `spare`: it starts a virtual machine before it has an order."""

    verbose: bool = False
    spare: bool = False


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the user asked for. `links` as in `mountsafe.session.presentation.Presentation`.

    `by_label`: each file system gets a folder of its own in the target, named after its label. `judged`:
    `Starting.follow` is given a judge of what is found. `timezone`: by which local times are told, as
    `mountsafe.system.zones.rules_of` takes it.
    `mount_options`: of each type those that it takes; one that none takes is an error. `unlock`: `Starting.follow` is
    given who has keys; `key_named`: they wait for nobody, so what comes after a key may begin before it is asked for.
    `write`: what can be changed may be changed, and a descriptor that is open for writing comes
    along; `if_possible`: what cannot be is shown read-only, and nobody need be told.
    """

    partition: int | str | None = None
    fstype: str | None = None
    owner: str = "user"
    links: str = "nofollow"
    verbose: bool = False
    foreground: bool = False
    idle: float = IDLE
    entries: int = INDEX_ENTRIES
    by_label: bool = False
    judged: bool = False
    timezone: str = ""
    mount_options: tuple[str, ...] = ()
    unlock: bool = False
    write: bool = False
    if_possible: bool = False
    key_named: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What to mount where, and for whom. Three descriptors come with it: the medium, the target's parent, the target.

    With `MountOptions.write` a fourth does: the medium, open for writing as well.

    `source` to `sector_size`, `part` and `sequence` as in `mountsafe.medium.source.Medium`; `uid` and `gid` of whom it
    is for.
    """

    source: str
    size: int
    block_device: bool
    format: Format
    sector_size: int | None
    target: str
    created_target: bool
    uid: int
    gid: int
    options: MountOptions
    part: Part = WHOLE
    sequence: int = 0


READ_ONLY, READ_WRITE = "read-only", "read-write"


# --- the record -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that is mounted. `session` is the process id of its box; `note` is to be known by its user.

    `options`: mount options that were given. `encryption`: how it lies on the medium, if it was unlocked.
    `access`: READ_ONLY or READ_WRITE, and `read_only` why if it was to be written to; `written`: whether a byte was, so
    far. `changing`: something was changed that the medium may not have yet. `unsaved`: which changes are lost, and why.
    """

    target: str
    device: str
    partition: int
    name: str
    fstype: str
    label: str
    note: str
    resorts: tuple[str, ...]
    direct_reads: bool
    landlock: int
    session: int
    options: tuple[str, ...] = ()
    encryption: str = ""
    access: str = READ_ONLY
    written: bool = False
    unsaved: str = ""
    read_only: str = ""
    changing: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A file system that was asked for and is not there. `message` says why, and `code` as the exit code would."""

    device: str
    partition: int
    fstype: str
    label: str
    message: str
    code: ExitCode


@dataclass(frozen=True, slots=True)
class Held:
    """What is needed to clean up after a supervisor: what is or will be mounted, and which folders are its own.

    `mounts` and `created` as `MountId.told` and `Place.told` have them; `name`: what its mounts show as their source.
    """

    mounts: tuple[tuple[int, int, tuple[int, int], str], ...] = ()
    planned: tuple[str, ...] = ()
    created: tuple[tuple[str, int, int], ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as in `MountOptions`: who asks for the same has it already."""

    partition: int | str | None
    fstype: str | None
    owner: str
    links: str
    timezone: str = ""
    mount_options: tuple[str, ...] = ()
    write: bool = False

    @classmethod
    def of(cls, options: MountOptions) -> "Asked":
        """Return what options ask for."""
        how = (options.owner, options.links, options.timezone, options.mount_options, options.write)
        return cls(options.partition, options.fstype, *how)


@dataclass(frozen=True, slots=True)
class Record:
    """A medium and its mounts. No mount: not yet.

    `virtual_machine` (the first, if several disks of it have one), `container` and `decrypting` (one for each encrypted
    volume that is open): process ids of boxes that run. So are `writing` and `writing_machines`, of each file system
    that is being written to: of what alone writes to the medium, and of the virtual machine that has it do so.

    `offset` and `sizelimit`, in bytes: what counts of its disk; a limit of None is the disk's end.
    `asked`: None where an earlier version made it. `sequence`: as in `Medium`.
    """

    source: str
    target: str
    supervisor: int
    created: tuple[str, ...] = ()
    format: Format = Format.RAW
    sector_size: int | None = None
    offset: int = 0
    sizelimit: int | None = None
    asked: Asked | None = None
    accelerator: str = ""
    virtual_machine: int | None = None
    container: int | None = None
    decrypting: tuple[int, ...] = ()
    writing: tuple[int, ...] = ()
    writing_machines: tuple[int, ...] = ()
    mounts: tuple[Mount, ...] = ()
    missing: tuple[Missing, ...] = ()
    held: Held = field(default_factory=Held)
    sequence: int = 0

    def saved(self) -> dict[str, Any]:
        """What is written down."""
        return {**codec.plain(self), "version": VERSION}

    @classmethod
    def restored(cls, untrusted: Mapping[str, object]) -> "Record":
        """Return what was written down. Raises ProtocolFault, OtherVersion."""
        codec.check_version(untrusted, VERSION, KNOWN)
        return codec.read(cls, untrusted, strict=False)

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        facts: dict[str, Any] = codec.plain(self)
        del facts["held"], facts["sequence"]
        return facts


# --- what is told, asked and answered ---------------------------------------------------------------------------------
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


Report = Progress | Warned | Found | Locked | Mounted | Failed | Incident | NotSaved | Changing
Answer = Mounted | Failed | Done

ORDERS = codec.Messages[Order | Judged | Key]({"order": Order, "judged": Judged, "key": Key}, VERSION, (VERSION,))
REPORTS = codec.Messages[Report](
    {
        "progress": Progress,
        "warning": Warned,
        "found": Found,
        "locked": Locked,
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
