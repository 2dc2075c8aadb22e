"""How risky it is to parse a file system in a kernel: data with a date and a source, and the words for it.

Every class goes to the virtual machine; the class decides what a user is told, and which parsers strict mode blocks.
The well-kept ones are not safe against a crafted image either.
"""

from dataclasses import dataclass
from enum import StrEnum

SOURCE = "MAINTAINERS of Linux 7.2.13, read on 2026-09-01"


class RiskClass(StrEnum):
    """From nobody looks after it, to many do."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Risk:
    """The class of a type, and why."""

    level: RiskClass
    reason: str


_ORPHAN = Risk(RiskClass.CRITICAL, "orphaned: nobody maintains its driver")
_ODD_FIXES = Risk(RiskClass.CRITICAL, "odd fixes: its driver has no regular maintainer")
_NO_ENTRY = Risk(RiskClass.CRITICAL, "its driver has no entry among the kernel's maintainers")
_REMOVED = Risk(RiskClass.CRITICAL, "its driver was removed from the kernel")
_NICHE = Risk(RiskClass.HIGH, "rarely used: few people look at its driver")
_ADOPTED = Risk(RiskClass.HIGH, "its driver was neglected for years and only lately adopted")
_COMPLEX = Risk(RiskClass.HIGH, "a large driver with many rarely used paths")
_MEMBER = Risk(RiskClass.HIGH, "part of an array or volume group: several parsers run before a file system is seen")
_KEPT = Risk(RiskClass.MEDIUM, "well kept, but a crafted image can still crash or take over its driver")
_SIMPLE = Risk(RiskClass.LOW, "simple and widely used, but still parsed by the kernel")
_USER_SPACE = Risk(RiskClass.HIGH, "parsed by a program with the rights of root")
_ENCRYPTED = Risk(RiskClass.MEDIUM, "encrypted: it needs a key, and what is inside is judged once that is there")
_UNKNOWN = Risk(RiskClass.UNKNOWN, "no known type: whatever parses it has not been looked at")

RISKS: dict[str, Risk] = {
    **dict.fromkeys(("efs", "qnx6"), _ORPHAN),
    **dict.fromkeys(("affs", "ecryptfs", "jffs2", "jfs"), _ODD_FIXES),
    **dict.fromkeys(("adfs", "minix", "romfs", "ufs"), _NO_ENTRY),
    **dict.fromkeys(("bcachefs", "reiserfs", "reiser4", "sysv", "xenix"), _REMOVED),
    **dict.fromkeys(
        ("befs", "bfs", "cramfs", "freevxfs", "vxfs", "hpfs", "omfs", "qnx4", "nilfs2", "zonefs", "gfs2", "ocfs2"),
        _NICHE,
    ),
    **dict.fromkeys(("hfs", "hfsplus", "ntfs"), _ADOPTED),
    **dict.fromkeys(("f2fs", "ntfs3", "udf"), _COMPLEX),
    **dict.fromkeys(("LVM2_member", "linux_raid_member", "bcache", "ddf_raid_member", "isw_raid_member"), _MEMBER),
    **dict.fromkeys(("ext2", "ext3", "ext4", "xfs", "btrfs", "erofs", "squashfs", "iso9660"), _KEPT),
    **dict.fromkeys(("vfat", "msdos", "exfat"), _SIMPLE),
    "apfs": _USER_SPACE,
    **dict.fromkeys(("crypto_LUKS", "BitLocker", "cs_fvault2", "veracrypt", "truecrypt"), _ENCRYPTED),
}
# Types that need a key. The last two have no signature: nothing tells them from random bytes before they are unlocked.
ENCRYPTED = frozenset(fstype for fstype, risk in RISKS.items() if risk is _ENCRYPTED)


def risk_of(fstype: str) -> Risk:
    """Return the risk of a type in blkid's spelling; an unknown type is the worst guess to make, and says so."""
    return RISKS.get(fstype, _UNKNOWN)
