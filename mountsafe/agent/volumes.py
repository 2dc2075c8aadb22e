"""What is on the medium: its disk, partitions, logical volumes and arrays."""

import errno
import fcntl
import os
import sys
import time
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent.programs import Refused, read_text, run

MEDIUM_ADDRESS = ":0:8:0"  # where the host plugs the medium: SCSI channel, target and LUN
FOUND = (0, 8)  # blkid's exit codes: something is there, or several things that exclude each other
ENDS = 512 << 10  # bytes at the beginning and at the end of a device, where most signatures are
SIGNIFICANT = (
    *("ext4", "ext3", "ext2", "vfat", "exfat", "ntfs", "hfsplus", "hfs", "iso9660", "udf", "xfs", "btrfs", "f2fs"),
    *("squashfs", "erofs", "crypto_LUKS", "BitLocker", "LVM2_member", "linux_raid_member"),
)
BLKGETSIZE64, BLKRRPART = 0x80081272, 0x125F  # include/uapi/linux/fs.h


def find_medium(seconds: float = 10.0, disks: str = "/sys/class/scsi_disk") -> str:
    """Wait until the kernel has the medium's disk and return its name, for example "sdc"."""
    end = time.monotonic() + seconds
    while True:
        for device in os.listdir(disks):
            names: list[str] = []
            with suppress(FileNotFoundError):  # the kernel announces a disk before its block device
                names = os.listdir(f"{disks}/{device}/device/block") if device.endswith(MEDIUM_ADDRESS) else []
            if names and _opens(f"/dev/{names[0]}"):
                return names[0]
        if time.monotonic() > end:
            raise Refused(errno.ENODEV, "the medium did not appear in the appliance")
        time.sleep(0.005)


def _opens(device: str) -> bool:
    """Whether a disk can be opened: at first it has no node, then one that leads nowhere."""
    try:
        os.close(os.open(device, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENXIO)
    return True


def _signatures(device: str) -> str:
    """Return what blkid(8) says of a device.

    Where it cannot read a place that some type would have its signature at, it says nothing at all: then it is asked
    for one type after the other.
    """
    command = ("blkid", "-p", "-o", "udev", f"/dev/{device}")
    code, words = run(*command)
    if code in FOUND or not _has_bad_ends(device):
        return words
    for fstype in SIGNIFICANT:
        code, told = run(*command, "-n", fstype)
        if code in FOUND:
            words = told
            if "ID_FS_TYPE=" in told:
                break
    return words


def _has_bad_ends(device: str) -> bool:
    """Whether something cannot be read where signatures are."""
    with open(f"/dev/{device}", "rb") as file, suppress(OSError):
        size = file.seek(0, os.SEEK_END)
        length = min(ENDS, size)
        return any(len(os.pread(file.fileno(), length, at)) < length for at in (0, size - length))
    return True


def _blkid(device: str) -> dict[str, bytes]:
    words = _signatures(device)
    found: dict[str, bytes] = {}
    for line in words.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key] = _unescape(value.encode("utf-8", "replace"))
    # Several signatures, as "usage:type:version usage:type:version": the first file system is the best guess.
    for candidate in found.get("ID_FS_AMBIVALENT", b"").split():
        usage, _, rest = candidate.partition(b":")
        if usage == b"filesystem":
            found.setdefault("ID_FS_USAGE", usage)
            found.setdefault("ID_FS_TYPE", rest.partition(b":")[0])
    return found


def _unescape(value: bytes) -> bytes:
    r"""Undo blkid's \xNN."""
    head, *tail = value.split(b"\\x")
    for part in tail:
        try:
            head += bytes([int(part[:2], 16)]) + part[2:]
        except ValueError:
            head += b"\\x" + part
    return head


def _is_iso9660(device: str) -> bool:
    """Whether it is an ISO 9660 image: blkid(8) looks for none on a disk of up to 1.44 MB with a partition table."""
    with open(f"/dev/{device}", "rb") as file, suppress(OSError):  # a place that cannot be read
        return os.pread(file.fileno(), 5, 16 * 2048 + 1) == b"CD001"
    return False


def _volume(device: str, kind: int, number: int, start: int) -> wire.Volume:
    with open(f"/dev/{device}", "rb") as file:
        size = int.from_bytes(fcntl.ioctl(file, BLKGETSIZE64, bytes(8)), sys.byteorder)
    facts = _blkid(device)
    if kind == wire.VolumeKind.DISK and "ID_FS_TYPE" not in facts and _is_iso9660(device):
        facts |= {"ID_FS_TYPE": b"iso9660", "ID_FS_USAGE": b"filesystem"}

    def fact(*keys: str) -> bytes:
        return next((facts[key] for key in keys if facts.get(key)), b"")[: wire.MAX_TEXT]

    return wire.Volume(
        device.encode(), kind, number, start, size, fact("ID_FS_TYPE"), fact("ID_FS_USAGE"),
        fact("ID_FS_LABEL_ENC", "ID_FS_LABEL"), fact("ID_FS_UUID_ENC", "ID_FS_UUID"),
        fact("ID_PART_TABLE_TYPE"), fact("ID_PART_ENTRY_NAME", "ID_PART_ENTRY_TYPE"),
    )  # fmt: skip


def _mapped_devices() -> list[str]:
    return sorted(name for name in os.listdir("/sys/block") if name.startswith(("dm-", "md")))


def probe() -> list[wire.Volume]:
    """Return the medium's disk, its partitions, and the logical volumes and arrays that they make up."""
    disk = find_medium()
    # EINVAL: the disk is too small to be partitioned; EBUSY: in use, so it was scanned
    with open(f"/dev/{disk}", "rb") as file, suppress(OSError):
        fcntl.ioctl(file, BLKRRPART)  # returns when the kernel's scan for partitions is complete
    volumes = [_volume(disk, wire.VolumeKind.DISK, 0, 0)]
    parts = [name for name in os.listdir(f"/sys/block/{disk}") if name.startswith(disk)]
    numbers = {name: int(read_text(f"/sys/block/{disk}/{name}/partition") or 0) for name in parts}
    for name in sorted(parts, key=lambda name: numbers[name])[: wire.MAX_VOLUMES - 1]:
        start = int(read_text(f"/sys/block/{disk}/{name}/start") or 0) * 512
        volumes.append(_volume(name, wire.VolumeKind.PARTITION, numbers[name], start))
    types = {volume.fstype for volume in volumes}
    before = set(_mapped_devices())
    if b"LVM2_member" in types:
        run("lvm", "vgchange", "-aay", "--sysinit", "-qq")
    if types & {b"linux_raid_member", b"isw_raid_member", b"ddf_raid_member"}:
        run("mdadm", "-As", "--auto=yes", "--run", "--readonly")
    for number, name in enumerate(sorted(set(_mapped_devices()) - before), 1):
        if len(volumes) < wire.MAX_VOLUMES:
            volumes.append(_volume(name, wire.VolumeKind.MAPPED, number, 0))
    return volumes
