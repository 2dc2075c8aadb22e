"""Which format of disk image a file is, by bytes at fixed places of its header, and why such a disk cannot be opened.

Nothing here follows a header anywhere but to another place in the same file. Sources: docs/interop/qcow2 and
block/vdi.c of QEMU; VMware's Virtual Disk Format 5.0; Microsoft's VHD Image Format Specification and [MS-VHDX].
"""

import re
import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from uuid import UUID

from mountsafe.errors import ExitCode, UserError

Read = Callable[[int, int], bytes]  # offset, length; fewer bytes at the end of the file

SECTOR = 512
DESCRIPTOR_BYTES = 64 << 10  # of a VMDK's description of itself; real ones have less than 2 KiB
VHD_MAGIC, VHD_DIFFERENCING = b"conectix", 4
VMDK_MAGIC, VMDK_PART_MAGIC, VMDK_TEXT = b"KDMV", b"COWD", b"# Disk DescriptorFile"
VMDK_NO_PARENT = 0xFFFFFFFF
VDI_UNDO, VDI_DIFFERENCING = 3, 4
QCOW2_FIRST = 2  # version
QCOW2_DATA_FILE = 1 << 2  # of the incompatible features
VHDX_REGIONS, VHDX_TABLE = 192 << 10, 64 << 10
VHDX_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
VHDX_PARENT = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
ISO9660_AT, ISO9660_MAGIC = 32769, b"CD001"  # its first 32 KiB are anybody's


class Format(StrEnum):
    """How a disk lies in a file, as QEMU calls it; `vpc` is VHD."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VPC = "vpc"
    VHDX = "vhdx"


class Fault(StrEnum):
    """Why a container is not opened. Only the member's name leaves the process that looks; the words are here."""

    OTHER = "it is not an image of that format"
    BACKING = "it holds only what differs from another disk, and names that disk's file"
    DATA_FILE = "its data is in another file, which it names"
    EXTENTS = "its data is in other files, or it is a part of a disk that several files make up"
    ENCRYPTED = "it is encrypted"
    OLD = "it is a qcow image of version 1, which mountsafe does not open"


MAGIC = {
    Format.QCOW2: (0, b"QFI\xfb"),
    Format.VMDK: (0, VMDK_MAGIC),
    Format.VDI: (64, b"\x7f\x10\xda\xbe"),
    Format.VPC: (0, VHD_MAGIC),
    Format.VHDX: (0, b"vhdxfile"),
}


def detect(read: Read, size: int) -> Format:
    """Return the format of a file of `size` bytes. Raises UserError (SOURCE) if it could be two things."""
    head = read(0, SECTOR)
    found = next((each for each, (at, magic) in MAGIC.items() if head.startswith(magic, at)), None)
    if found is None and head.startswith((VMDK_TEXT, VMDK_PART_MAGIC)):
        return Format.VMDK
    if found is None:
        return Format.VPC if _fixed_vhd(read, size) else Format.RAW
    if read(ISO9660_AT, len(ISO9660_MAGIC)) == ISO9660_MAGIC:
        hint = f"Say what to take it for: --format raw or --format {found}."
        raise UserError(f"it looks like {found} and like an ISO 9660 image at once", hint, ExitCode.SOURCE)
    return found


def fault(wanted: Format, read: Read, size: int) -> Fault | None:
    """Return why a file cannot be opened as `wanted`, which is not RAW; None if nothing speaks against it."""
    head = read(0, SECTOR)
    at, magic = MAGIC[wanted]
    if wanted is Format.VMDK and head.startswith((VMDK_TEXT, VMDK_PART_MAGIC)):
        return Fault.EXTENTS
    if not head.startswith(magic, at) and not (wanted is Format.VPC and _fixed_vhd(read, size)):
        return Fault.OTHER
    head = head.ljust(SECTOR, b"\0")
    match wanted:
        case Format.QCOW2:
            return _of_qcow2(head)
        case Format.VMDK:
            return _of_vmdk(head, read)
        case Format.VDI:
            (kind,) = struct.unpack_from("<I", head, 76)
            return Fault.BACKING if kind in (VDI_UNDO, VDI_DIFFERENCING) else None
        case Format.VPC:
            footers = (head, read(max(0, size - SECTOR), SECTOR).ljust(SECTOR, b"\0"))
            kinds = {struct.unpack_from(">I", each, 60)[0] for each in footers if each.startswith(VHD_MAGIC)}
            return Fault.BACKING if VHD_DIFFERENCING in kinds else None
        case _:
            return _of_vhdx(read)


def refusal(why: Fault, name: str) -> UserError:
    """Return what a user is told of a fault; `name` is the file's, fit to be shown."""
    if why is Fault.OTHER:
        return UserError(f"{name} cannot be opened: {why}", "--format says what to take it for.", ExitCode.SOURCE)
    if why is Fault.OLD:
        hint = "On a machine that you can lose, convert it: qemu-img convert -O raw IMAGE NEW"
        return UserError(f"{name} cannot be opened: {why}", hint, ExitCode.SOURCE)
    hint = "No second file is opened. On a machine that you can lose, convert it: qemu-img convert -O raw IMAGE NEW"
    return UserError(f"{name} cannot be opened: {why}", hint, ExitCode.SOURCE)


def _fixed_vhd(read: Read, size: int) -> bool:
    """A VHD of fixed size is the raw disk with a footer behind it."""
    return size > SECTOR and read(size - SECTOR, len(VHD_MAGIC)) == VHD_MAGIC


def _of_qcow2(head: bytes) -> Fault | None:
    version, backing = struct.unpack_from(">IQ", head, 4)
    (encryption,) = struct.unpack_from(">I", head, 32)
    (features,) = struct.unpack_from(">Q", head, 72)
    if version < QCOW2_FIRST:  # its header has other fields at these places
        return Fault.OLD
    if backing:
        return Fault.BACKING
    if encryption:
        return Fault.ENCRYPTED
    return Fault.DATA_FILE if version >= 3 and features & QCOW2_DATA_FILE else None


def _of_vmdk(head: bytes, read: Read) -> Fault | None:
    capacity, _, descriptor, sectors = struct.unpack_from("<4Q", head, 12)
    if not capacity or not descriptor or descriptor >= 1 << 50:
        return Fault.EXTENTS
    text = read(descriptor * SECTOR, min(sectors * SECTOR, DESCRIPTOR_BYTES)).partition(b"\0")[0]
    parent = re.search(rb"(?im)^[ \t]*parentCID[ \t]*=[ \t]*([0-9a-f]{1,8})\b", text)
    if parent and int(parent[1], 16) != VMDK_NO_PARENT:
        return Fault.BACKING
    extents = re.findall(rb'(?m)^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)(?:[ \t]+"([^"\n]*))?', text)
    # The one extent of such a file is itself, by the name that it once had.
    alone = len(extents) == 1 and extents[0][0] == b"SPARSE" and not re.search(rb"[/\\:]", extents[0][1])
    return None if alone else Fault.EXTENTS


def _of_vhdx(read: Read) -> Fault | None:
    # Two tables of 64 KiB: where the regions are, and in one of these what is said of the disk.
    for region in _entries(read(VHDX_REGIONS, VHDX_TABLE), b"regi", 16, VHDX_METADATA):
        (at,) = struct.unpack_from("<Q", region, 16)
        if at < 1 << 60 and any(_entries(read(at, VHDX_TABLE), b"metadata", 32, VHDX_PARENT)):
            return Fault.BACKING
    return None


def _entries(table: bytes, magic: bytes, start: int, kind: bytes) -> Iterator[bytes]:
    """Yield the entries of one kind, of 32 bytes each."""
    if table.startswith(magic):
        for at in range(start, len(table) - 31, 32):
            if table.startswith(kind, at):
                yield table[at : at + 32]
