"""What is recognised on a medium and cannot be opened: what it is, and what to do. In blkid(8)'s spelling."""

from dataclasses import dataclass

UNKNOWN_TYPE = "unknown filesystem type"  # mount(8)'s words for a driver that is not there
NO_DRIVER = "this machine's kernel has no driver for it"
_ELSEWHERE = "Copy its files on a machine whose kernel has one."
_OTHERS = "It is no file system by itself: connect all that it is a part of to a machine that you can lose."


@dataclass(frozen=True, slots=True)
class Unopened:
    """A kind of content, and what a person can do."""

    what: str
    what_to_do: str


_SWAP = Unopened("swap space", "There are no files in it.")
_LVM = Unopened("a part of a volume group (LVM) in which no volume was found", _OTHERS)
_RAID = Unopened("a member of an array of a disk controller", _OTHERS)
_WINDOWS = "Windows reads it."
_NO_FILES = "There are no files in it: name the disk that it belongs to."

UNOPENED = {
    "swap": _SWAP,
    "swsuspend": Unopened("swap space with a hibernated system", "There are no files in it."),
    "jbd": Unopened("the journal of an ext4 on another disk", "Name that disk: it opens without its journal."),
    "xfs_external_log": Unopened("the log of an XFS on another disk", "Name that disk."),
    "zfs_member": Unopened("a disk of ZFS", "zpool import -o readonly=on, on a machine with ZFS that you can lose."),
    "bcache": Unopened("a disk of bcache", _OTHERS),
    "DM_integrity": Unopened("a disk of dm-integrity", f"integritysetup opens it. {_OTHERS}"),
    "DM_verity_hash": Unopened("the hashes of dm-verity", _NO_FILES),
    "DM_snapshot_cow": Unopened("the changes of a snapshot", _NO_FILES),
    "vdo": Unopened("a disk of VDO (compressed and deduplicated)", _OTHERS),
    "stratis": Unopened("a disk of Stratis", _OTHERS),
    "drbd": Unopened("a replicated disk (DRBD)", "Its content begins at its first byte: name its type with --type."),
    "ceph_bluestore": Unopened("a disk of Ceph", _OTHERS),
    "oracleasm": Unopened("a disk of Oracle ASM", _OTHERS),
    "VMFS_volume_member": Unopened("a disk of VMware ESXi (VMFS)", "vmfs-tools or ESXi read it."),
    "VMFS": Unopened("a file system of VMware ESXi (VMFS)", "vmfs-tools or ESXi read it."),
    "LVM2_member": _LVM,
    "LVM1_member": _LVM,
    "linux_raid_member": Unopened("a member of an array (md) in which nothing was found", _OTHERS),
    "cs_fvault2": Unopened("encrypted (FileVault)", "mountsafe cannot unlock encrypted media yet."),
    "ubi": Unopened("an image of flash memory (UBI)", "Linux reads it from flash memory alone."),
    "ubifs": Unopened("a file system of flash memory (UBIFS)", "Linux reads it from flash memory alone."),
    "jffs2": Unopened("a file system of flash memory (JFFS2)", "Linux reads it from flash memory alone."),
    "ReFS": Unopened("a file system of Windows (ReFS)", _WINDOWS),
    "apfs": Unopened("a file system of macOS (APFS)", "macOS reads it."),
    "bcachefs": Unopened("a file system of newer kernels (bcachefs)", _ELSEWHERE),
    "reiser4": Unopened("a file system that was never in Linux (Reiser4)", _ELSEWHERE),
    **{f"{maker}_raid_member": _RAID for maker in (
        "adaptec", "ddf", "highpoint", "hpt37x", "hpt45x", "isw", "jmicron", "lsi_mega", "nvidia", "promise_fasttrack",
        "silicon_medley", "via",
    )},
}  # fmt: skip


def without_driver(fstype: str, why: str) -> tuple[str, str] | None:
    """Return the reason and the hint for a file system that has no driver; None if that is not what is wrong.

    `why`: what mount(8) said.
    """
    if UNKNOWN_TYPE not in why:
        return None
    return NO_DRIVER, UNOPENED[fstype].what_to_do if fstype in UNOPENED else _ELSEWHERE
