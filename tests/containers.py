"""Images of container formats, made by hand: as small as a header can be, and hostile where a test wants them to be."""

import struct

from mountsafe.medium.formats import VHDX_METADATA, VHDX_PARENT

SECTOR = 512
TABLE = 64 << 10
DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID={parent}
createType="{kind}"

# Extent description
{extents}

# The Disk Data Base
ddb.adapterType = "ide"
"""


def qcow2(
    size: int = 1 << 20,
    backing: bytes = b"",
    encryption: int = 0,
    features: int = 0,
    l1_entries: int = 1,
    data_file: bytes = b"",
    version: int = 3,
) -> bytes:
    """A qcow2 without data: header, refcount table, refcount block and L1 table in clusters of 64 KiB."""
    extensions = struct.pack(">II", 0x44415441, len(data_file)) + data_file.ljust(-(-len(data_file) // 8) * 8, b"\0")
    tail = (extensions if data_file else b"") + bytes(8)
    place = 104 + len(tail) if backing else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", version, place, len(backing), 16, size, encryption, l1_entries, 3 * TABLE, TABLE, 1, 0, 0),
        *(features, 0, 0, 4, 104),
    )
    return (
        (header + tail + backing).ljust(TABLE, b"\0")
        + struct.pack(">Q", 2 * TABLE).ljust(TABLE, b"\0")
        + (b"\0\1" * 4).ljust(TABLE, b"\0")
        + bytes(TABLE)
    )


def vmdk(
    sectors: int = 2048,
    extents: str = 'RW 2048 SPARSE "disk.vmdk"',
    parent: str = "ffffffff",
    descriptor: int = 1,
    kind: str = "monolithicSparse",
) -> bytes:
    """A sparse VMDK without data, with its description inside. `sectors`: 0 has QEMU follow what that names."""
    grains = 128
    table = 21 + 1
    header = struct.pack(
        "<4sII4QI3QB4s", b"KDMV", 1, 3, sectors, grains, descriptor, 20, 512, 21, 21, 128, 0, b"\n \r\n"
    )
    text = vmdk_text(extents, parent, kind).encode()
    directory = struct.pack("<I", table)
    made = header.ljust(SECTOR, b"\0") + text.ljust(20 * SECTOR, b"\0") + directory.ljust(SECTOR, b"\0")
    return made.ljust(128 * SECTOR, b"\0")


def vmdk_text(extents: str, parent: str = "ffffffff", kind: str = "monolithicSparse") -> str:
    """A VMDK that is a description alone."""
    return DESCRIPTOR.format(parent=parent, kind=kind, extents=extents)


def vdi(kind: int = 1) -> bytes:
    """The header of a VDI."""
    return (b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe").ljust(
        76, b"\0"
    ) + struct.pack("<I", kind).ljust(1 << 20, b"\0")


def vhd(kind: int = 3) -> bytes:
    """A footer of a VHD: 2 is of fixed size, 3 dynamic, 4 holds differences."""
    return b"conectix".ljust(60, b"\0") + struct.pack(">I", kind).ljust(SECTOR - 60, b"\0")


def vhdx(parent: bool = False) -> bytes:
    """The beginnings of a VHDX, as far as its metadata."""
    regions = struct.pack("<4sIII", b"regi", 0, 1, 0) + struct.pack("<16sQII", VHDX_METADATA, 1 << 20, TABLE, 1)
    item = struct.pack("<16sIIII", VHDX_PARENT if parent else bytes(16), TABLE, 0, 4, 0)
    metadata = struct.pack("<8sHH20x", b"metadata", 0, 1) + item
    return (b"vhdxfile".ljust(192 << 10, b"\0") + regions).ljust(1 << 20, b"\0") + metadata
