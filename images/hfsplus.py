"""Make an empty HFS+ volume: Debian 12 has no mkfs.hfsplus.

Format: Apple Technical Note TN1150. Only what an empty volume needs: volume header and its copy, allocation
file, extents tree, catalog with the root folder. No journal. The kernel that mounts it makes the attributes
file and the hard link folder when it first needs them.
"""

import struct

BLOCK = 4096
NODE = 4096
EXTENTS_BLOCKS = 4
CATALOG_BLOCKS = 64
MAC_EPOCH = 2_082_844_800  # seconds from 1904 to 1970
ROOT_ID = 2
FIRST_USER_ID = 16
UNMOUNTED = 0x100
BIG_KEYS, VARIABLE_INDEX_KEYS = 2, 4
CASE_FOLDING = 0xCF


def volume(size: int, label: str, uuid: bytes, when: int) -> bytes:
    """The bytes of an empty volume of `size` bytes (a multiple of 4096, at most 128 MiB).

    `uuid`: 8 bytes; `when`: Unix seconds.
    """
    blocks = size // BLOCK
    if size % BLOCK or blocks > BLOCK * 8:
        raise ValueError(f"{size}: not a size for one allocation block")
    extents_at = 2
    catalog_at = extents_at + EXTENTS_BLOCKS
    used = catalog_at + CATALOG_BLOCKS
    bitmap = _bits([*range(used), blocks - 1], BLOCK)
    forks = b"".join(
        [
            _fork(1, 1),
            _fork(extents_at, EXTENTS_BLOCKS),
            _fork(catalog_at, CATALOG_BLOCKS),
            bytes(80),
            bytes(80),
        ]
    )
    date = when + MAC_EPOCH
    header = struct.pack(
        ">2sHI4sI4I2I4I2I2IQ24s8s",
        *(b"H+", 4, UNMOUNTED, b"10.0", 0),
        *(date, date, 0, date),
        *(0, 0),
        *(BLOCK, blocks, blocks - used - 1, used),
        *(BLOCK * 4, BLOCK * 4),
        *(FIRST_USER_ID, 1, 1),
        *(bytes(24), uuid),
    )
    header += forks
    image = bytearray(size)
    image[1024 : 1024 + 512] = header
    image[size - 1024 : size - 512] = header
    image[BLOCK : 2 * BLOCK] = bitmap
    _put(image, extents_at, _header_node(EXTENTS_BLOCKS, key=10, leaf_records=0))
    _put(image, catalog_at, _header_node(CATALOG_BLOCKS, key=516, leaf_records=2))
    _put(image, catalog_at + 1, _root_leaf(label, date))
    return bytes(image)


def _put(image: bytearray, block: int, node: bytes) -> None:
    image[block * BLOCK : block * BLOCK + NODE] = node


def _fork(start: int, count: int) -> bytes:
    return struct.pack(">QII", count * BLOCK, count * BLOCK, count) + struct.pack(">II", start, count) + bytes(56)


def _bits(numbers: list[int], length: int) -> bytes:
    bits = bytearray(length)
    for number in numbers:
        bits[number // 8] |= 0x80 >> (number % 8)
    return bytes(bits)


def _node(kind: int, height: int, records: list[bytes], *, links: tuple[int, int] = (0, 0)) -> bytes:
    """A tree node: descriptor, records, and from the end backwards the offset of each record and of the free space."""
    body = struct.pack(">IIbBHH", *links, kind, height, len(records), 0)
    offsets = []
    for record in records:
        offsets.append(len(body))
        body += record
    offsets.append(len(body))
    tail = b"".join(struct.pack(">H", offset) for offset in reversed(offsets))
    return body + bytes(NODE - len(body) - len(tail)) + tail


def _header_node(nodes: int, *, key: int, leaf_records: int) -> bytes:
    leaf = 1 if leaf_records else 0
    used = 1 + leaf
    is_catalog = key > 10
    attributes = BIG_KEYS | (VARIABLE_INDEX_KEYS if is_catalog else 0)
    header = struct.pack(
        ">HIIIIHHIIHIBBI64s",
        *(leaf, leaf, leaf_records, leaf, leaf, NODE, key, nodes, nodes - used, 0, NODE * 4),
        *(0, CASE_FOLDING if is_catalog else 0, attributes, bytes(64)),
    )
    map_length = NODE - 14 - len(header) - 128 - 8
    return _node(1, 0, [header, bytes(128), _bits(list(range(used)), map_length)])


def _root_leaf(label: str, date: int) -> bytes:
    utf16 = label.encode("utf-16-be")
    name = struct.pack(">H", len(utf16) // 2) + utf16
    folder = struct.pack(">hHII5I", 1, 0, 0, ROOT_ID, date, date, date, date, 0)
    folder += struct.pack(">IIBBHI", 0, 0, 0, 0, 0o40755, 0) + bytes(32 + 8)
    folder_key = struct.pack(">HI", 4 + len(name), 1) + name
    thread_key = struct.pack(">HIH", 6, ROOT_ID, 0)
    thread = struct.pack(">hhI", 3, 0, 1) + name
    return _node(-1, 1, [folder_key + folder, thread_key + thread])
