"""The options that verbs which open a medium have in common."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from mountsafe.cli import completion, screen
from mountsafe.cli.typers import argument, option
from mountsafe.medium import formats


class Format(StrEnum):
    """What a source is taken for."""

    AUTO = "auto"
    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VPC = "vpc"
    VHDX = "vhdx"


# readable=False: whether it may be read is found out by opening it, and has an exit code of its own.
Source = Annotated[
    Path,
    argument(
        help="An image file or a block device.", show_default=False, readable=False, autocompletion=completion.images
    ),
]
Partition = Annotated[
    str | None,
    option(
        "--partition",
        "-p",
        metavar="NUMBER|NAME",
        help="Open this partition, array or logical volume only, as inspect calls it; 0 is the whole disk.",
        show_default=False,
    ),
]
FsType = Annotated[
    str | None,
    option(
        "--type",
        "-t",
        metavar="FSTYPE",
        help="Treat it as this type.",
        show_default=False,
        autocompletion=completion.types,
    ),
]
FormatOption = Annotated[
    Format,
    option(
        "--format",
        help="The image format of the source; vpc is VHD. auto looks at the first bytes of a file, and treats a device"
        " as raw.",
    ),
]
SectorSize = Annotated[
    int | None,
    option(
        "--sector-size",
        metavar="BYTES",
        help="The sector size that its partition table counts in: 512, 1024, 2048 or 4096. By default that of the"
        " device (for an image: 512) is tried first, and then the others, if nothing is found.",
        show_default=False,
    ),
]
Offset = Annotated[
    str | None,
    option(
        "--offset",
        metavar="BYTES",
        help="Where the disk or file system begins, in bytes (of the disk in a container): 1048576, 0x100000,"
        " 1MiB, or 2048s for sectors of 512.",
        show_default=False,
    ),
]
SizeLimit = Annotated[
    str | None,
    option("--sizelimit", metavar="BYTES", help="Its size in bytes: a multiple of 512.", show_default=False),
]
Timezone = Annotated[
    str,
    option(
        "--timezone",
        metavar="NAME|±HH:MM",
        help="The time zone of the local times that FAT, exFAT, HFS and a few more store; by default this machine's.",
        show_default=False,
    ),
]
MountOption = Annotated[
    list[str] | None,
    option(
        "--mount-option",
        "-o",
        metavar="OPT",
        help="An option of its type, as map=off (iso9660), codepage=850 (vfat), subvol=NAME (btrfs) or ufstype=44bsd"
        " (ufs); may be repeated. inspect --json shows what each file system takes.",
        show_default=False,
    ),
]
Write = Annotated[
    bool,
    option(
        "--write",
        "-w",
        help="Allow changes: of a raw image or a device. Nothing is written until somebody changes something.",
    ),
]
Json = Annotated[bool, option("--json", callback=screen.for_programs, is_eager=True, help="Print JSON; errors too.")]
Verbose = Annotated[bool, option("--verbose", "-v", help="Show the sandbox command and the guest's console.")]
Force = Annotated[bool, option("--force", "-f", help="Detach it even if programs use it.")]


def named(format_: Format) -> formats.Format | None:
    """Return the format that an option names; None for auto."""
    return None if format_ is Format.AUTO else formats.Format(format_)
