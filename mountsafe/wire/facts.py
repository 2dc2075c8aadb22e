"""What the agent protocol tells of: a medium's volumes, file systems, their entries and extents."""

from typing import NamedTuple


class ExtentKind:
    """How the bytes of an extent are to be had. What no extent covers is read through the agent."""

    DATA = 1  # at `physical` on the file system's device, byte for byte
    ZERO = 2  # a hole or unwritten space: zeros, `physical` has no meaning


class MountState:
    """What had to be done about a journal to mount."""

    CLEAN = 0
    RECOVERED = 1  # replayed into a copy-on-write layer in the guest's memory
    SKIPPED = 2  # mounted without replay: the newest changes are missing
    REPAIRED = 3  # for writing: its type's checker has put it in order first, on the medium


class CheckOutcome:
    """What came of checking a file system."""

    CLEAN = 0
    ERRORS = 1  # as it is now, after a repair as well
    REPAIRED = 2  # it had errors, and has none now
    FAILED = 3  # its checker could not look at it, or ended in an unknown way
    MISSING = 4  # its checker is not in the appliance
    NONE = 5  # its type has no checker
    TIME = 6  # it was not done in time

    ALL = frozenset({CLEAN, ERRORS, REPAIRED, FAILED, MISSING, NONE, TIME})


class VolumeKind:
    """What a volume is."""

    DISK = 1
    PARTITION = 2  # of the disk, or of an array or a logical volume
    LOGICAL = 3  # a logical volume of LVM
    ARRAY = 4  # md


class Trouble:
    """Why a volume that the medium tells of is not there to be mounted."""

    NONE = 0
    INCOMPLETE = 1  # too many of its members are missing
    DUPLICATE = 2  # others have the same name or identity
    REFUSED = 3  # the guest's tools or its kernel cannot start it
    CUT_OFF = 4  # it begins after the end of the medium


class Resort:
    """What it took to open something whose usual structures are damaged or missing: bits, of a volume or a mount."""

    BACKUP_TABLE = 1  # its partitions are those of the GPT's copy at the end of the disk
    BACKUP_SUPERBLOCK = 2  # the copy of an ext or HFS+ superblock
    BACKUP_BOOT = 4  # the copy of a boot sector: FAT32, exFAT, NTFS
    SECOND_FAT = 8
    MFT_MIRROR = 16  # NTFS's copy of the first records of its file table
    DEGRADED = 32  # btrfs: of its devices some are missing
    OLDER_ROOT = 64  # btrfs: an older root of its trees
    UNVERIFIED = 128  # btrfs: damaged trees are passed over, and no checksum of a file's bytes is looked at
    JOURNAL_ELSEWHERE = 256  # its journal is on another device
    JOURNAL_UNREADABLE = 512  # its journal is damaged or not there, and nothing in it was missing
    AMBIGUOUS = 1024  # there are signatures of other types on it
    UNFINISHED = 2048  # of the disk: there was more on it than could be looked at
    LAST_SESSION = 4096  # of several on a disc
    PART_OF_DISC = 8192  # a session whose disc is not there before it
    ALL = 16383


class Extent(NamedTuple):
    """A run of a file: offsets and length in bytes; physical is relative to the file system's device."""

    logical: int
    physical: int
    length: int
    kind: int


class Entry(NamedTuple):
    """One directory entry with the attributes of its inode. Sizes in bytes, blocks of 512 bytes, times in ns."""

    name: bytes
    mode: int
    nlink: int
    uid: int
    gid: int
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    target: bytes


class Place(NamedTuple):
    """A run of a volume that lies on the medium as it is: where in the volume, where on the medium, and its length."""

    offset: int
    physical: int
    length: int


class Volume(NamedTuple):
    """One thing on the medium that may hold a file system, in bytes. Volumes are a graph: parents come first.

    `start` is where it begins in its parent, for partitions. `parents` are positions in the answer's list; a partition
    without any is the disk's. `name` is the array's, or VG/LV. `present` of `wanted` members are there (0 of 0: it has
    no members that could be missing). `places`: those of its bytes that can be read from the medium, for what is
    neither the disk nor one of its partitions. `resorts`: bits of `Resort`. `claimed`: the bytes that its file system,
    or the table that has it, says it has, if those are more than there are. `sector`: the size of the sectors that the
    table counts which a partition is in, if they are not the disk's own. `inside`: its bytes are those of the file
    system that the disk has as a whole.
    """

    device: bytes
    kind: int
    number: int
    start: int
    size: int
    fstype: bytes
    usage: bytes
    label: bytes
    uuid: bytes
    table: bytes
    part_name: bytes
    name: bytes = b""
    parents: tuple[int, ...] = ()
    present: int = 0
    wanted: int = 0
    trouble: int = Trouble.NONE
    places: tuple[Place, ...] = ()
    resorts: int = 0
    claimed: int = 0
    sector: int = 0
    inside: bool = False


class MountRequest(NamedTuple):
    """What MOUNT asks: to mount `device` (a name as PROBE gave it), read-only or `writable`.

    `zone`: by which local times are told, a TZif file's bytes or a rule as POSIX's TZ has it. `options` are those of
    `mountsafe.fsoptions`. `again`: another virtual machine has died while it wrote to it.
    """

    device: bytes
    fstype: bytes
    zone: bytes
    options: tuple[bytes, ...] = ()
    writable: bool = False
    again: bool = False


class Mounted(NamedTuple):
    """The answer to MOUNT: the type that the kernel took, MountState, whether DATA extents can be told, the root, and
    bits of `Resort`.
    """

    fstype: bytes
    state: int
    direct: bool
    root: Entry
    resorts: int = 0


class Checked(NamedTuple):
    """The answer to CHECK: a `CheckOutcome`, what was done about a journal (CLEAN, RECOVERED or SKIPPED of
    `MountState`), the checker's exit code (negative: the signal that ended it), and what it said.
    """

    outcome: int
    journal: int
    code: int
    words: bytes


class Statfs(NamedTuple):
    """statvfs(3) of the mounted file system; counts in blocks of frsize bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int
