"""What blkid(8) says about devices."""

import os
from contextlib import suppress

from mountsafe.agent import copies
from mountsafe.agent.programs import run, run_all

FOUND = (0, 8)  # blkid's exit codes: something is there, or several things that exclude each other
ENDS = 512 << 10  # bytes at the beginning and at the end of a device, where most signatures are
SIGNIFICANT = (
    *("ext4", "ext3", "ext2", "vfat", "exfat", "ntfs", "hfsplus", "hfs", "iso9660", "udf", "xfs", "btrfs", "f2fs"),
    *("squashfs", "erofs", "crypto_LUKS", "BitLocker", "LVM2_member", "linux_raid_member"),
)
AMBIVALENT = "ID_FS_AMBIVALENT"  # what blkid(8) says if several signatures exclude each other
_EACH = 'for device; do echo "=$device"; blkid -p -o udev "/dev/$device"; done'
_AT_ONCE = 2  # the processors of a guest


def _signatures(device: str, *options: str) -> str:
    """Return what blkid(8) says of a device.

    Where it cannot read a place that some type would have its signature at, it says nothing at all: then it is asked
    for one type after the other.
    """
    command = ("blkid", "-p", "-o", "udev", *options, f"/dev/{device}")
    code, words = run(*command)
    if code in FOUND or options or not _has_bad_ends(device):
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


def blkid(device: str, *options: str) -> dict[str, bytes]:
    """Return the facts about a device (its name in /dev) as udev names them; with `options` it looks for less."""
    words = _signatures(device, *options)
    found = _parsed(words)
    if found.get(AMBIVALENT) and not options:
        found |= _likeliest(device, found[AMBIVALENT])
    return found


def blkid_all(devices: list[str]) -> dict[str, dict[str, bytes]]:
    """Return it of each of several, which takes less: in a guest, starting a program is most of the work."""
    parts = [devices[start::_AT_ONCE] for start in range(_AT_ONCE)]
    found = {}
    for _, words in run_all([("sh", "-c", _EACH, "sh", *part) for part in parts if part]):
        for block in f"\n{words}".split("\n=")[1:]:
            device, _, told = block.partition("\n")
            found[device] = _parsed(told)
    # Of a partition blkid(8) knows its number at least: where it says nothing, something cannot be read.
    doubtful = [device for device in devices if not found.get(device) or found[device].get(AMBIVALENT)]
    return found | {device: blkid(device) for device in doubtful}


def _parsed(words: str) -> dict[str, bytes]:
    pairs = [line.partition("=") for line in words.splitlines()]
    return {key: _unescape(value.encode("utf-8", "replace")) for key, equals, value in pairs if equals}


def _likeliest(device: str, candidates: bytes) -> dict[str, bytes]:
    """Return what a device is of which there are several signatures, as "usage:type:version usage:type:version".

    It is the first file system of which there is more than a signature.
    """
    split = [candidate.partition(b":") for candidate in candidates.split()]
    types = [rest.partition(b":")[0] for usage, _, rest in split if usage == b"filesystem"]
    if len(types) > 1:
        with suppress(OSError), open(f"/dev/{device}", "rb") as file:
            read = copies.reader(file.fileno())
            types = [fstype for fstype in types if not copies.is_leftover(fstype, read)] or types
    if not types:
        return {}
    told = blkid(device, "-n", types[0].decode("ascii", "replace"))
    return {"ID_FS_USAGE": b"filesystem", "ID_FS_TYPE": types[0]} | told


def _unescape(value: bytes) -> bytes:
    r"""Undo blkid's \xNN."""
    head, *tail = value.split(b"\\x")
    for part in tail:
        try:
            head += bytes([int(part[:2], 16)]) + part[2:]
        except ValueError:
            head += b"\\x" + part
    return head
