"""How each image is made: values and mkfs commands. What is put in is in tree.py, writing in a guest in guest.py."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from images import hfsplus, tree
from images.tree import Item

MIB = 1 << 20
ALL = frozenset({"link", "hard", "mode", "node", "fifo", "xattr"})
POSIX = ALL - {"xattr"}
NOTHING: frozenset[str] = frozenset()


def uuid(number: int) -> str:
    """A fixed UUID of the random kind, so that images are the same each time."""
    return f"6d6f756e-7473-4166-8501-{number:012x}"


@dataclass(frozen=True)
class Plan:
    """One file system in a file of its own.

    `mkfs`: commands, "{}" standing for the file. `keeps`: what the file system can hold, see tree.as_kept.
    `lost_items` are removed and `late_items` added in the log only (a dirty image).
    """

    name: str
    filesystem: str
    size: int
    label: bytes
    mkfs: list[list[str]]
    items: list[Item] = field(default_factory=list)
    keeps: frozenset[str] = ALL
    mount_options: str = ""
    finish: Callable[[Path], None] | None = None  # runs after mkfs, before anything is put in
    is_dirty: bool = False
    late_items: list[Item] = field(default_factory=list)
    lost_items: list[Item] = field(default_factory=list)
    passphrase: str | None = None


@dataclass(frozen=True)
class Packed:
    """A read-only file system that its tool makes from a tar archive (standard input) or from a folder, "FOLDER"
    in the command.
    """

    name: str
    filesystem: str
    label: bytes
    command: list[str]
    items: list[Item]
    keeps: frozenset[str]
    is_from_archive: bool = False
    multiple: int = 4096


def command(text: str) -> list[str]:
    """The words of a command without quoting."""
    return text.split()


def ext(name: str, number: int, options: str, label: str) -> list[list[str]]:
    """The command for an ext file system; `number` makes its UUID."""
    seed = uuid(number + 0x1000)
    extended = f"hash_seed={seed},root_owner=0:0"
    return [command(f"mke2fs -q -F -t {name} -m 0 -U {uuid(number)} -E {extended} -L {label} {options} {{}}")]


def same_serial(path: Path) -> None:
    """mkntfs draws a random serial number; it is in the first sector and in that sector's copy at the end."""
    with path.open("r+b") as file:
        for offset in (0x48, path.stat().st_size - 512 + 0x48):
            file.seek(offset)
            file.write(bytes.fromhex("6d6f756e74736166"))


def make_hfsplus(path: Path) -> None:
    """The mkfs that Debian lacks."""
    path.write_bytes(hfsplus.volume(path.stat().st_size, "HFSPLUS", b"mountsaf", tree.EPOCH))


def clear_jfs_log(path: Path) -> None:
    """mkfs.jfs leaves its uninitialised memory in the log's pages: pieces of this machine's environment and mounts.

    The log's place is in the superblock (s_logpxd in jfs_superblock.h); its pages from the third on are a header of 8
    bytes, a record of 36, unused bytes, and a trailer of 8 (jfs_logmgr.h).
    """
    page, record_end, trailer = 4096, 8 + 36, 8
    with path.open("r+b") as file:
        file.seek(0x8000)
        length, address = struct.unpack_from("<II", file.read(96), 72)
        for number in range(2, length & 0xFFFFFF):
            file.seek((address + number) * page + record_end)
            file.write(bytes(page - record_end - trailer))


def hostile_label(path: Path) -> None:
    """Written by hand, so that no tool has a say. The superblock has no checksum (no metadata_csum)."""
    with path.open("r+b") as file:
        file.seek(1024 + 0x78)
        file.write(HOSTILE_LABEL.ljust(16, b"\0"))


HOSTILE_LABEL = b"\x1b]0;pwned\x07\n\xff/.."
NTFS = "mkntfs -q -F -Q -T -p 0 -H 0 -S 0 -s 512"
DIRTY_LOST = tree.file("deleted-at-the-end.txt", b"This file is gone once the log has been replayed.\n")
DIRTY_LATE = [
    tree.folder("saved-at-the-end"),
    *(tree.file(f"saved-at-the-end/photo-{number}.txt", tree.lines(5000 + number)) for number in range(5)),
]

PLANS = [
    Plan("ext4", "ext4", 16 * MIB, b"EXT4", ext("ext4", 1, "-b 4096 -N 1024", "EXT4"), tree.full("ext4", 4096)),
    Plan("ext2", "ext2", 8 * MIB, b"EXT2", ext("ext2", 2, "-b 1024 -N 512", "EXT2"), tree.full("ext2", 1024)),
    Plan(
        "vfat",
        "vfat",
        8 * MIB,
        b"VFAT",
        [command("mkfs.vfat --invariant -i 6d6f756e -F 16 -s 2 -n VFAT {}")],
        tree.full("vfat", 1024),
        NOTHING,
        mount_options="quiet,iocharset=utf8",
    ),
    Plan(
        "exfat",
        "exfat",
        8 * MIB,
        b"EXFAT",
        [command("mkfs.exfat -c 4K -L EXFAT {}"), command("tune.exfat -I 0x6d6f756e {}")],
        tree.full("exfat", 4096),
        NOTHING,
    ),
    Plan(
        "ntfs",
        "ntfs",
        8 * MIB,
        b"NTFS",
        [command(f"{NTFS} -c 4096 -L NTFS {{}}")],
        tree.full("ntfs", 4096),
        ALL - {"mode"},
        finish=same_serial,
    ),
    Plan("hfsplus", "hfsplus", 8 * MIB, b"HFSPLUS", [], tree.full("hfsplus", 4096), finish=make_hfsplus),
    Plan(
        "hfs",
        "hfs",
        8 * MIB,
        b"HFS",
        [command("hformat -l HFS {}")],
        tree.full("hfs", 512, unicode_name=b"Gr\x9f\xa7e.txt"),
        NOTHING,
        mount_options="quiet",
    ),
    Plan(
        "udf",
        "udf",
        8 * MIB,
        b"UDF",
        [command("mkudffs --utf8 --media-type=hd --blocksize=512 --uuid=6d6f756e74736166 --label=UDF {}")],
        tree.full("udf", 512),
        POSIX,
    ),
    Plan("minix", "minix", 4 * MIB, b"", [command("mkfs.minix -2 -n 30 -i 512 {}")], tree.full("minix", 1024), POSIX),
    Plan(
        "xfs",
        "xfs",
        300 * MIB,
        b"XFS",
        [command(f"mkfs.xfs -q -f -m uuid={uuid(10)} -L XFS {{}}")],
        tree.full("xfs", 4096),
    ),
    Plan(
        "btrfs",
        "btrfs",
        128 * MIB,
        b"BTRFS",
        [command(f"mkfs.btrfs -q -f -m single -d single -U {uuid(11)} -L BTRFS {{}}")],
        tree.full("btrfs", 4096),
        mount_options="compress-force=zstd,noatime",
    ),
    Plan(
        "f2fs",
        "f2fs",
        64 * MIB,
        b"F2FS",
        [command(f"mkfs.f2fs -q -f -r -t 0 -U {uuid(12)} -T {tree.EPOCH} -O extra_attr,inode_checksum -l F2FS {{}}")],
        tree.full("f2fs", 4096),
    ),
    Plan(
        "jfs",
        "jfs",
        16 * MIB,
        b"JFS",
        [command("mkfs.jfs -q -L JFS {}"), command(f"jfs_tune -U {uuid(13)} {{}}")],
        tree.full("jfs", 4096),
        finish=clear_jfs_log,
    ),
    Plan(
        "nilfs2",
        "nilfs2",
        32 * MIB,
        b"NILFS2",
        [command("mkfs.nilfs2 -q -f -B 128 -b 4096 -L NILFS2 {}")],
        tree.full("nilfs2", 4096),
        POSIX,
    ),
    Plan(
        "hostile-names",
        "ext4",
        4 * MIB,
        HOSTILE_LABEL,
        ext("ext4", 15, "-b 1024 -N 128 -O ^metadata_csum,^has_journal", "x"),
        tree.hostile(),
        finish=hostile_label,
    ),
    Plan(
        "dirty-ext4",
        "ext4",
        16 * MIB,
        b"DIRTY",
        ext("ext4", 16, "-b 4096 -N 128", "DIRTY"),
        tree.small("ext4"),
        is_dirty=True,
        late_items=DIRTY_LATE,
        lost_items=[DIRTY_LOST],
    ),
    Plan(
        "dirty-xfs",
        "xfs",
        300 * MIB,
        b"DIRTYXFS",
        [command(f"mkfs.xfs -q -f -m uuid={uuid(17)} -L DIRTYXFS {{}}")],
        tree.small("xfs"),
        is_dirty=True,
        late_items=DIRTY_LATE,
        lost_items=[DIRTY_LOST],
    ),
    Plan(
        "encrypted-luks",
        "crypto_LUKS",
        1 * MIB,
        b"LUKS",
        [
            command(
                "cryptsetup luksFormat -q --type luks2 --luks2-metadata-size 16k --luks2-keyslots-size 128k "
                "--key-size 256 --offset 320 "
                f"--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --uuid {uuid(18)} --label LUKS --key-file KEYFILE {{}}"
            )
        ],
        tree.small("vfat inside LUKS2"),
        NOTHING,
        mount_options="quiet",
        passphrase="mountsafe",
    ),
]

PACKED = [
    Packed(
        "iso9660",
        "iso9660",
        b"ISO9660",
        command(
            "xorriso -as mkisofs -quiet -R -J -uid 0 -gid 0 --set_all_file_dates 2023111422132000 "
            "-V ISO9660 -o {} FOLDER"
        ),
        tree.full("iso9660", 2048),
        frozenset({"link", "mode", "fifo"}),
    ),
    Packed(
        "squashfs",
        "squashfs",
        b"",
        command(
            f"mksquashfs - {{}} -tar -root-uid 0 -root-gid 0 -root-mode 755 -root-time {tree.EPOCH} "
            "-quiet -no-progress -noappend -b 128K -comp gzip -processors 1"
        ),
        tree.full("squashfs", 128 * 1024),
        ALL,
        is_from_archive=True,
    ),
    Packed(
        "erofs",
        "erofs",
        b"",
        command(f"mkfs.erofs --quiet -zlz4hc --all-root -T{tree.EPOCH} -U{uuid(20)} {{}} FOLDER"),
        tree.full("erofs", 4096),
        frozenset({"link", "hard", "mode", "xattr", "fifo"}),
    ),
    Packed(
        "romfs",
        "romfs",
        b"ROMFS",
        command("genromfs -a 512 -V ROMFS -d FOLDER -f {}"),
        tree.full("romfs", 1024),
        frozenset({"link", "fifo"}),
    ),
]

DESCRIPTIONS = {
    "ext4": "an ordinary Linux stick",
    "ext2": "an old Linux stick, no journal",
    "vfat": "an ordinary USB stick or camera card (FAT16, long names)",
    "exfat": "a large camera card",
    "ntfs": "an ordinary Windows disk",
    "hfsplus": "a Mac disk from before 2017",
    "hfs": "a Mac disk from before 1998; one name is in MacRoman, not UTF-8",
    "udf": "a DVD-RAM or a stick made to be read everywhere",
    "minix": "a file system for teaching (version 2, names of 30 bytes)",
    "xfs": "a server's disk",
    "btrfs": "a Linux disk with compression (zstd)",
    "f2fs": "a phone's memory",
    "jfs": "an old server's disk",
    "nilfs2": "a log-structured Linux disk",
    "iso9660": "a CD image with Rock Ridge and Joliet",
    "squashfs": "a compressed read-only image, as in live CDs and snaps",
    "erofs": "a read-only image, as in phones",
    "romfs": "a tiny read-only image, as in routers",
    "hostile-names": "ext4 whose names and label try to fool terminals, scripts and people",
    "dirty-ext4": "ext4 pulled out too early: the newest files are in the journal only",
    "dirty-xfs": "XFS pulled out too early: the newest files are in the log only",
    "encrypted-luks": "an encrypted disk (LUKS2, passphrase 'mountsafe'), a FAT inside",
    "disk-gpt": "a disk with a GPT: EFI system partition, ext4, exFAT, swap",
    "disk-mbr": "a disk with an MBR: a FAT partition and two logical ones, NTFS and ext2",
    "empty": "1 MiB of zeros",
    "garbage": "64 KiB of noise",
    "truncated": "the ext4 image, cut in half",
}
