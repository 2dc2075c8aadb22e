"""What is known about each file system type: how its files are read, or why it cannot be mounted.

The tests hold this against what happens; README.md's table is made from it and from a run (tests.vm.types_table).
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

DIRECT = "from the medium, by extents"
AGENT = "through the agent"
NOT = ""


@dataclass(frozen=True, slots=True)
class Type:
    """A type: `read` is DIRECT, AGENT or NOT, `why` explains what is not DIRECT."""

    read: str
    why: str = ""


_NO_FIEMAP = "its driver tells no extents"
_CONTAINER = "a container of forensic tools, which is not opened"
OPENED_CONTAINERS = ("qcow2", "vmdk", "vdi", "vhd", "vhdx")  # as the corpus calls them: a disk like any other is inside

TYPES: dict[str, Type] = {
    "affs": Type(AGENT, _NO_FIEMAP),
    "apfs": Type(NOT, "Linux has no driver"),
    "bcachefs": Type(NOT, "Debian's kernel has no driver"),
    "btrfs": Type(AGENT, "its extents are logical addresses, often compressed"),
    "cramfs": Type(NOT, "Debian's kernel has no driver"),
    "crypto_LUKS": Type(NOT, "encrypted: needs a key, and has a section of its own"),
    "erofs": Type(AGENT, "its files may be compressed, and its driver does not say which"),
    "ewf": Type(NOT, _CONTAINER),
    "exfat": Type(DIRECT),
    "ext2": Type(DIRECT),
    "ext3": Type(DIRECT),
    "ext4": Type(DIRECT),
    "f2fs": Type(DIRECT),
    "gfs2": Type(DIRECT),
    "hfs": Type(DIRECT),
    "hfsplus": Type(DIRECT),
    "iso9660": Type(DIRECT),
    "jfs": Type(DIRECT),
    "minix": Type(DIRECT),
    "nilfs2": Type(DIRECT),
    "ntfs": Type(DIRECT, "files of up to 64 clusters through the agent: what they hold is not told cheaply"),
    "ocfs2": Type(DIRECT),
    "reiserfs": Type(AGENT, _NO_FIEMAP),
    "romfs": Type(AGENT, _NO_FIEMAP),
    "squashfs": Type(AGENT, "its files are compressed"),
    "udf": Type(DIRECT),
    "ufs": Type(AGENT, _NO_FIEMAP),
    "vfat": Type(DIRECT),
    "xfs": Type(DIRECT),
}

# Other names of these: blkid's, the kernel's, the corpus's.
ALIASES = {
    "affs (OFS/FFS)": "affs",
    "cramfs-big": "cramfs",
    "cramfs-i386": "cramfs",
    "ext4dev": "ext4",
    "msdos": "vfat",
    "ntfs-3g": "ntfs",
    "ntfs3": "ntfs",
    "squashfs3": "squashfs",
}


def named(fstype: str) -> str:
    """Return a type's name in `TYPES`."""
    return ALIASES.get(fstype, fstype)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Images of the corpus (a pattern of paths) that must be refused: words of the error, and why that is right."""

    images: str
    words: str
    why: str


NO_DRIVER = "this machine's kernel has no driver for it"
# Of types that mount in general, or whose refusal is not that there is no driver.
REFUSED = (
    Refusal("dfvfs/ext2.E01", "no file system was found", _CONTAINER),
    Refusal("*lzma*sq*fs", '"lzma" compression', "lzma compression, which was never in Linux"),
    Refusal("disktype-sampler/squashfs-2.*", NO_DRIVER, "Linux reads squashfs 4 alone"),
    Refusal("*/syz_mount_image_udf_26.img.gz", "No anchor found", "the image has no anchor: cut off"),
    Refusal("*/syz_mount_image_efs_9.img.gz", "wrong fs type", "an FFS2 of 64 KiB, which Linux's driver refuses"),
    *(
        Refusal(f"*/syz_mount_image_reiserfs_{number}.img.gz", "Structure needs cleaning", "its root inode is damaged")
        for number in (4, 14, 23)
    ),
    *(
        Refusal(f"*/syz_mount_image_reiserfs_{number}.img.gz", "can't find a reiserfs", "Linux finds no superblock")
        for number in (30, 55)
    ),
)


def refusal(image: str, fstype: str) -> Refusal | None:
    """Return why an image of the corpus must be refused, or None if it must mount."""
    found = next((refusal for refusal in REFUSED if fnmatchcase(image, refusal.images)), None)
    if found is None and TYPES[fstype].read == NOT:
        return Refusal(image, NO_DRIVER, TYPES[fstype].why)
    return found
