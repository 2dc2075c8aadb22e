"""What a supervisor is ordered: what to mount, where, how, and for whom."""

from dataclasses import dataclass

from mountsafe.limits import IDLE, INDEX_ENTRIES
from mountsafe.medium.formats import Format
from mountsafe.medium.part import WHOLE, Part

# Of all that supervisors are told and tell: one may outlive an upgrade, so whoever reads looks at the version. Add to
# what is told only with a default, and count it up when a field is taken away, means something else, or must be
# understood.
VERSION = 2
KNOWN = (1, 2)  # 1 wrote no version, had other orders, and tells the same of what is mounted


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
    `write`: what can be changed may be changed, and a descriptor that is open for writing comes along; `if_possible`:
    what cannot be is shown read-only, and nobody need be told. `stream`: nothing is mounted, and each file system
    comes as a stream (`messages.Streamed`); with `foreground`, which ends it when nobody reads.
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
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What to mount where, and for whom. Three descriptors come with it: the medium, the target's parent, the target.

    With `MountOptions.write` a fourth does: the medium, open for writing as well. With `MountOptions.stream` it is the
    medium alone.

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
