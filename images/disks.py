"""The partitioned disks: tables and what is in the partitions."""

from dataclasses import dataclass

from images import tree
from images.recipes import ALL, MIB, NOTHING, NTFS, Plan, command, ext, same_serial, uuid


@dataclass(frozen=True)
class Table:
    """A partitioned disk: an sfdisk script, and for each partition number its first sector and what is in it."""

    name: str
    size: int
    script: str
    partitions: dict[int, tuple[int, Plan]]


GPT = f"""label: gpt
label-id: {uuid(0x20)}
first-lba: 34
start=2048, size=4096, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid={uuid(0x21)}, name="EFI system"
start=6144, size=8192, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid={uuid(0x22)}, name="data"
start=14336, size=8192, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, uuid={uuid(0x23)}, name="shared"
start=22528, size=2048, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, uuid={uuid(0x24)}, name="swap"
"""
MBR = """label: dos
label-id: 0x6d6f756e
1: start=2048, size=4096, type=6
2: start=6144, size=14336, type=5
5: start=8192, size=6144, type=7
6: start=16384, size=4096, type=83
"""


def fat(name: str, serial: str, label: str) -> Plan:
    """A small FAT partition; `serial` is eight hex digits."""
    mkfs = [command(f"mkfs.vfat --invariant -i {serial} -F 12 -n {label} {{}}")]
    return Plan(name, "vfat", 2 * MIB, label.encode(), mkfs, tree.small("vfat"), NOTHING, mount_options="quiet")


TABLES = [
    Table(
        "disk-gpt",
        13 * MIB,
        GPT,
        {
            1: (2048, fat("gpt-1", "65737020", "ESP")),
            2: (
                6144,
                Plan(
                    "gpt-2",
                    "ext4",
                    4 * MIB,
                    b"DATA",
                    ext("ext4", 0x32, "-b 1024 -N 64", "DATA"),
                    tree.small("ext4"),
                ),
            ),
            3: (
                14336,
                Plan(
                    "gpt-3",
                    "exfat",
                    4 * MIB,
                    b"SHARED",
                    [command("mkfs.exfat -c 4K -L SHARED {}"), command("tune.exfat -I 0x73686172 {}")],
                    tree.small("exfat"),
                    NOTHING,
                ),
            ),
            4: (22528, Plan("gpt-4", "swap", MIB, b"SWAP", [command(f"mkswap -U {uuid(0x34)} -L SWAP {{}}")])),
        },
    ),
    Table(
        "disk-mbr",
        11 * MIB,
        MBR,
        {
            1: (2048, fat("mbr-1", "63616d20", "CAMERA")),
            5: (
                8192,
                Plan(
                    "mbr-5",
                    "ntfs",
                    3 * MIB,
                    b"WINDOWS",
                    [command(f"{NTFS} -c 4096 -L WINDOWS {{}}")],
                    tree.small("ntfs"),
                    ALL - {"mode"},
                    finish=same_serial,
                ),
            ),
            6: (
                16384,
                Plan(
                    "mbr-6",
                    "ext2",
                    2 * MIB,
                    b"BACKUP",
                    ext("ext2", 0x46, "-b 1024 -N 64", "BACKUP"),
                    tree.small("ext2"),
                ),
            ),
        },
    ),
]
