"""Where a file system may be written to: only its own bytes, as they were told before anything was mounted.

What is told of a medium comes from a guest, and may be a lie. A lie can name other bytes of the same medium; it cannot
name bytes that another volume has, or that the kernel knows to be elsewhere, and after the mount none of it can change.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from mountsafe.errors import MountsafeError
from mountsafe.medium.encryption import UNIT, SegmentKind, Stack
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import ENCRYPTED, NO_SIGNATURE, Volume

# Of these types the guest's drivers write what other machines read.
TYPES = frozenset(
    ["ext2", "ext3", "ext4", "vfat", "msdos", "exfat", "ntfs", "xfs", "btrfs", "f2fs", "hfsplus", "hfsx", "udf"]
)


class ReadOnly(MountsafeError):
    """Why a medium, or a file system of it, cannot be written to."""


def check_medium(medium: Medium) -> None:
    """Raise ReadOnly for a medium that is never written to."""
    if medium.format is not Format.RAW:
        raise ReadOnly(f"a {medium.format} image is only read")


def window(volume: Volume, told: Sequence[Volume], size: int, medium: Medium | None) -> tuple[int, int]:
    """Return the first byte and the size of what a file system has of its disk, which has `size` bytes.

    `told`: all that was told of the disk along with it. `medium`: whose disk it is; None for what was unlocked. Raises
    ReadOnly.
    """
    if volume.fstype not in TYPES:
        raise ReadOnly(f"{volume.fstype} is only read")
    _check(volume, told, medium)
    start, length = volume.start, min(volume.size, size - volume.start) // UNIT * UNIT
    if start < 0 or length <= 0 or (volume.kind != "disk" and length < volume.size):
        raise ReadOnly("it does not lie on the medium as a whole")
    return start, length


def why_read_only(volume: Volume, told: Sequence[Volume], size: int, medium: Medium) -> str:
    """Return why a file system on the medium's own disk cannot be written to; "" if it can."""
    try:
        check_medium(medium)
        window(volume, told, size, medium)
    except ReadOnly as error:
        return str(error)
    return ""


def check_host(host: Volume, told: Sequence[Volume], medium: Medium | None) -> None:
    """Raise ReadOnly for what is in an encrypted volume that is only read: as `window` says."""
    if host.fstype in NO_SIGNATURE:  # in its free space one may lie, and nothing tells that it does
        raise ReadOnly(f"{ENCRYPTED[host.fstype]} may have a hidden volume in it, which would be written over")
    _check(host, told, medium)


def check_stack(stack: Stack) -> None:
    """Raise ReadOnly for an encrypted disk of which not all is encrypted: it is being changed by another system."""
    layouts = [layer.layout for layer in stack.layers if layer.layout is not None]
    if any(segment.kind is SegmentKind.PLAIN for layout in layouts for segment in layout.segments):
        raise ReadOnly("its encryption is not complete")


def _check(volume: Volume, told: Sequence[Volume], medium: Medium | None) -> None:
    if volume.nested or volume.kind not in ("disk", "partition"):
        raise ReadOnly("what is on LVM, an array or in another volume is only read")
    if volume.resorts or volume.condition:
        raise ReadOnly("what is damaged, or was found in an unusual way, is only read")
    for other in told:
        if _takes(other) and not _is(volume, other) and _overlap(_range(volume), _range(other)):
            raise ReadOnly(f"{other.title} has bytes of it")
    if medium is not None and medium.block_device:
        _check_kernel(volume, medium)


def _range(volume: Volume) -> tuple[int, int]:
    return volume.start, volume.size


def _is(volume: Volume, other: Volume) -> bool:
    """Whether two are the same volume, which may have got another name, or options, meanwhile."""
    return (volume.kind, volume.number, volume.start) == (other.kind, other.number, other.start)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def _takes(other: Volume) -> bool:
    """Whether a volume has bytes of the disk for itself: not the disk around it, nor what lies in another volume."""
    return not other.absent and not other.nested and other.kind == "partition" and other.size > 0


def _check_kernel(volume: Volume, medium: Medium) -> None:
    """Raise ReadOnly if the host's kernel has the partitions elsewhere. It need not know any."""
    start = medium.part.offset + volume.start
    known = kernel_partitions(os.fstat(medium.fd).st_rdev)
    if volume.kind == "partition" and known.get(volume.number) == (start, volume.size):
        return
    if any(_overlap((start, volume.size), there) for there in known.values()):
        raise ReadOnly("this machine's kernel has other partitions there")


def kernel_partitions(device: int) -> dict[int, tuple[int, int]]:
    """Return the first byte and the size of each partition of a disk that the host's kernel has, by its number.

    None that only contains others is among them: of such the kernel takes the first sectors alone.
    """
    found = {}
    for part in Path("/sys/dev/block", f"{os.major(device)}:{os.minor(device)}").glob("*/partition"):
        try:
            number, start, size = (int((part.parent / name).read_text()) for name in ("partition", "start", "size"))
            found[number] = (start * UNIT, size * UNIT)
        except (OSError, ValueError):  # it has gone meanwhile
            continue
    return found
