"""The record that a supervisor keeps of its mounts, for whoever lists and unmounts them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mountsafe import codec
from mountsafe.errors import ExitCode
from mountsafe.medium.formats import Format
from mountsafe.session.order import KNOWN, VERSION, MountOptions

READ_ONLY, READ_WRITE = "read-only", "read-write"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that is mounted. `session` is the process id of its box; `note` is to be known by its user.

    `target`: where; of one that is served over a stream, the name of the folder that it would have beside others.
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
