"""Which program checks a type's file systems, and what its exit codes and words mean, for both ends of the wall.

No command here writes to what it is given, but those of `preen`, `repair` and `replay`. Regular expressions are
searched for in what a program has said.
"""

from typing import NamedTuple


class Checker(NamedTuple):
    """How a type is checked. The device's name comes after each command.

    `program`: the one that must be there, and `package` the Debian package that has it.
    `looks`: commands that only look, in turn; all must find nothing. 0 is the exit code of one that found nothing.
    `errors`: exit codes that say it has errors. Every other says that it could not be checked, as `failed` does.
    `wrong`: words that say it has errors, whatever the code. `finished`: words without which it did not look at all.
    `unreplayed`: words of one that has left out a journal's changes; `replay` replays them, into a copy. Without a
    command, mounting does.
    `preen`: the command that asks nothing, and mends what is safe to mend: 1 says that this was all. None where the
    driver does it, or nobody should.
    `repair`: the command that writes; none where there is none, or none that is safe: `no_repair` says why.
    `partial`: what is to be known of a check that is no full one.
    """

    program: str
    package: str
    looks: tuple[tuple[str, ...], ...]
    errors: frozenset[int] = frozenset({4})
    failed: str = ""
    wrong: str = ""
    finished: str = ""
    unreplayed: str = ""
    replay: tuple[str, ...] = ()
    preen: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    no_repair: str = "there is no program that repairs it"
    partial: str = ""


_EXT = Checker(
    "e2fsck",
    "e2fsprogs",
    (("e2fsck", "-n", "-f"),),
    wrong="checksum does not match superblock",  # and there was no copy of it
    unreplayed="skipping journal recovery",
    replay=("e2fsck", "-y", "-E", "journal_only"),
    preen=("e2fsck", "-p"),
    repair=("e2fsck", "-y", "-f"),
)
_FAT = Checker(
    "fsck.fat",
    "dosfstools",
    (("fsck.fat", "-n"),),
    frozenset({1}),
    finished=r"\d+ files, \d+/\d+ clusters",
    preen=("fsck.fat", "-a"),
    repair=("fsck.fat", "-a", "-w"),
)
_NTFS = Checker(
    "ntfsfix",
    "ntfs-3g",
    (("ntfsfix", "-n"), ("ntfsinfo", "-m")),
    frozenset({1}),
    failed=r"NTFS signature is missing|Input/output error\. .*device|Unrecoverable error",
    wrong="scheduled for check|hibernated",
    repair=("ntfsfix",),
    partial="this looks at its boot sectors and the beginning of its file table alone: chkdsk, on Windows, at all",
)
# Debian's hfsprogs has one program for both.
_HFS = Checker(
    "fsck.hfsplus",
    "hfsprogs",
    (("fsck.hfsplus", "-n", "-f"),),
    frozenset({3, 8}),
    repair=("fsck.hfsplus", "-y", "-f"),
)
# Types in blkid(8)'s spelling.
CHECKERS = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "ext4dev": _EXT,
    "vfat": _FAT,
    "msdos": _FAT,
    "exfat": Checker(
        "fsck.exfat",
        "exfatprogs",
        (("fsck.exfat", "-n"),),
        preen=("fsck.exfat", "-p"),
        repair=("fsck.exfat", "-y"),
    ),
    "ntfs": _NTFS,
    "ntfs3": _NTFS,
    "xfs": Checker(
        "xfs_repair",
        "xfsprogs",
        (("xfs_repair", "-n"),),
        frozenset({1}),
        failed="could not find valid secondary superblock|fatal error|cannot open",
        unreplayed="valuable metadata changes in a log",
        repair=("xfs_repair",),
    ),
    "btrfs": Checker(
        "btrfs",
        "btrfs-progs",
        (("btrfs", "check", "--readonly"),),
        frozenset({1}),
        failed="cannot open file system|cannot open device|ERROR: cannot",
        no_repair="btrfs check --repair can make it worse: its own documentation says to copy the files off instead",
    ),
    "f2fs": Checker(
        "fsck.f2fs",
        "f2fs-tools",
        (("fsck.f2fs", "--dry-run"),),
        frozenset({1, 4, 255}),
        failed="Can't find a valid F2FS superblock at 0x1",
        wrong=r"\[Fail\]",
        repair=("fsck.f2fs", "-f"),
    ),
    "jfs": Checker(
        "jfs_fsck",
        "jfsutils",
        (("jfs_fsck", "-n"),),
        repair=("jfs_fsck", "-f", "-p"),
        partial="changes in its journal were left out",
    ),
    "reiserfs": Checker(
        "reiserfsck",
        "reiserfsprogs",
        (("reiserfsck", "--check", "--yes", "--quiet"),),
        frozenset({1, 2, 4, 6}),
        repair=("reiserfsck", "--fix-fixable", "--yes", "--quiet"),
    ),
    "minix": Checker("fsck.minix", "util-linux-extra", (("fsck.minix", "-f"),), repair=("fsck.minix", "-f", "-a")),
    "cramfs": Checker(
        "fsck.cramfs",
        "util-linux-extra",
        (("fsck.cramfs",),),
        failed="superblock magic not found",
        no_repair="it is a type that nobody writes to: make it anew",
    ),
    "erofs": Checker(
        "fsck.erofs",
        "erofs-utils",
        (("fsck.erofs", "--extract"),),
        frozenset({1}),
        failed="cannot find valid erofs superblock",
        wrong="<E>",
        no_repair="it is a type that nobody writes to: make it anew",
    ),
    "hfs": _HFS,
    "hfsplus": _HFS,
    "hfsx": _HFS,
    "ocfs2": Checker("fsck.ocfs2", "ocfs2-tools", (("fsck.ocfs2", "-n", "-f"),), repair=("fsck.ocfs2", "-f", "-y")),
    "gfs2": Checker("fsck.gfs2", "gfs2-utils", (("fsck.gfs2", "-n"),), repair=("fsck.gfs2", "-y")),
}  # fmt: skip
