"""Runs of blocks, parsed from a medium's own structures, for drivers that answer only FIBMAP, a block at a time.

Each parser reads the guest's device, in the guest, with the guest's rights; it returns None whenever it is not sure.
What it returns is compared with FIBMAP at both ends of every run before it is relied on (`agent.extents`). A run is
(logical, physical, length) in bytes.
"""

import array
import os
import struct
from collections.abc import Callable

Run = tuple[int, int, int]
Bmap = Callable[[int], int]  # logical byte offset -> physical byte offset, 0 where there is none
MAX_RUNS = 65536


def _pread(device: int, length: int, offset: int) -> bytes:
    data = os.pread(device, length, offset)
    if len(data) < length:
        raise ValueError("the device ends here")
    return data


class Runs:
    """Collects pieces that may join into runs."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.length = 0

    def add(self, physical: int, length: int) -> None:
        """Append a piece at the logical end."""
        if self.runs:
            logical, start, size = self.runs[-1]
            if start + size == physical:
                self.runs[-1] = (logical, start, size + length)
                self.length += length
                return
        if len(self.runs) >= MAX_RUNS:
            raise ValueError("too many runs")
        self.runs.append((self.length, physical, length))
        self.length += length


# --- FAT and exFAT: a table of which cluster comes next --------------------------------------------------------------
class _Chain:
    """A file allocation table of 16- or 32-bit entries."""

    WINDOW = 16384  # entries read at a time

    def __init__(self, device: int, table: int, code: str, clusters: int) -> None:
        self._device = device
        self._table = table
        self._code = code
        self._width = array.array(code).itemsize
        self._clusters = clusters

    def follow(self, first: int, count: int, cluster_at: Callable[[int], int], size: int) -> list[Run] | None:
        """Return the runs of `count` clusters from `first` on; None if the chain ends early or leaves the table."""
        runs = Runs()
        cluster = first
        while count:
            if not 2 <= cluster < self._clusters + 2:
                return None
            window = min(self.WINDOW, count, self._clusters + 2 - cluster)
            raw = _pread(self._device, window * self._width, self._table + cluster * self._width)
            ahead = self._ascending(raw, cluster, window)
            take = min(ahead + 1, window)
            runs.add(cluster_at(cluster), take * size)
            count -= take
            if ahead == window:
                cluster += window
            else:
                entry = int.from_bytes(raw[ahead * self._width : (ahead + 1) * self._width], "little")
                cluster = entry & 0x0FFFFFFF if self._width == 4 else entry
        return runs.runs

    def _ascending(self, raw: bytes, cluster: int, window: int) -> int:
        """Return how many entries, from the first on, name just the next cluster."""
        expected = array.array(self._code, range(cluster + 1, min(cluster + 1 + window, 1 << 8 * self._width)))
        wanted = memoryview(expected).cast("B")
        have = memoryview(raw)
        low, high = 0, len(expected)
        if have[: len(wanted)] == wanted:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if have[low * self._width : middle * self._width] == wanted[low * self._width : middle * self._width]:
                low = middle
            else:
                high = middle - 1
        return low


def fat(device: int, size: int, bmap: Bmap) -> list[Run] | None:
    """Runs of a file on FAT16 or FAT32 (Microsoft's FAT specification, 1.03)."""
    boot = _pread(device, 512, 0)
    sector, per_cluster, reserved, tables, roots, small = struct.unpack_from("<HBHBHH", boot, 11)
    fat16, total = struct.unpack_from("<H", boot, 22)[0], small or struct.unpack_from("<I", boot, 32)[0]
    fat_sectors = fat16 or struct.unpack_from("<I", boot, 36)[0]
    data = (reserved + tables * fat_sectors) * sector + (roots * 32 + sector - 1) // sector * sector
    cluster_size = sector * per_cluster
    clusters = (total * sector - data) // cluster_size
    if clusters < 4085:
        return None  # FAT12: small enough for FIBMAP
    chain = _Chain(device, reserved * sector, "H" if clusters < 65525 else "I", clusters)
    return _clustered(chain, data, cluster_size, size, bmap)


def exfat(device: int, size: int, bmap: Bmap) -> list[Run] | None:
    """Runs of a file on exFAT (Microsoft's exFAT specification): by its chain, or contiguous if it has none."""
    boot = _pread(device, 512, 0)
    fat_offset, _, heap, clusters = struct.unpack_from("<IIII", boot, 80)
    sector_shift, cluster_shift = boot[108], boot[109]
    cluster_size = 1 << (sector_shift + cluster_shift)
    chain = _Chain(device, fat_offset << sector_shift, "I", clusters)
    found = _clustered(chain, heap << sector_shift, cluster_size, size, bmap)
    if found is not None:
        return found
    # The flag NoFatChain: the table says nothing about this file, because its clusters follow one another.
    length = -(-size // cluster_size) * cluster_size
    return [(0, bmap(0), length)]


def _clustered(chain: _Chain, data: int, cluster_size: int, size: int, bmap: Bmap) -> list[Run] | None:
    start = bmap(0)
    if start < data or (start - data) % cluster_size:
        return None
    first = (start - data) // cluster_size + 2
    return chain.follow(first, -(-size // cluster_size), lambda c: data + (c - 2) * cluster_size, cluster_size)


# --- ISO 9660: a file is one extent, unless its directory record says that another follows ---------------------------
def iso9660(device: int, size: int, bmap: Bmap, ino: int) -> list[Run] | None:
    """The one run of a file: its inode number says where its directory record is, to 32 bytes (fs/isofs/isofs.h)."""
    block, wanted = _pread(device, 2048, ino // 64 * 2048), ino % 64
    at = 0
    while at // 32 < wanted:
        if not block[at]:
            return None
        at += block[at]
    record = block[at : at + 34]
    length = struct.unpack_from("<I", record, 10)[0]
    interleaved, multi_extent = record[26] or record[27], record[25] & 0x80
    if multi_extent or interleaved or length != size:
        return None
    return [(0, bmap(0), -(-size // 2048) * 2048)]


# --- HFS+: B-trees (Apple's TN1150) ---------------------------------------------------------------------------------
class _Fork:
    """A special file that the volume header describes by up to eight extents."""

    def __init__(self, device: int, header: bytes, offset: int, block: int, base: int) -> None:
        self._device = device
        self._base = base
        self._block = block
        self._extents = struct.unpack_from(">16I", header, offset + 16)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the fork that lie within one of its extents."""
        at = offset
        for start, count in zip(self._extents[::2], self._extents[1::2], strict=True):
            if at < count * self._block:
                if at + length > count * self._block:
                    raise ValueError("a node across extents")
                return _pread(self._device, length, self._base + start * self._block + at)
            at -= count * self._block
        raise ValueError("beyond the special file's first extents")


class _BTree:
    """A B-tree of HFS+: finds leaf records from the first that may have a key's first number."""

    MAX_STEPS = 4096

    def __init__(self, fork: _Fork, key_number: struct.Struct) -> None:
        head = fork.read(0, 512)
        self._depth, self._root = struct.unpack_from(">HI", head, 14)
        self._size = struct.unpack_from(">H", head, 32)[0]
        self._fork = fork
        self._number = key_number

    def _records(self, node: bytes) -> list[int]:
        count = struct.unpack_from(">H", node, 10)[0]
        offsets = struct.unpack_from(f">{count}H", node, self._size - 2 * count)
        return list(reversed(offsets))

    def _first_leaf(self, number: int) -> int:
        """Return the node where the first record of `number` must be, if there is one."""
        place = int(self._root)
        for _ in range(self._depth - 1):
            node = self._fork.read(place * self._size, self._size)
            place = 0
            for at in self._records(node):
                length = struct.unpack_from(">H", node, at)[0]
                if place and self._number.unpack_from(node, at + 2)[0] >= number:
                    break
                place = struct.unpack_from(">I", node, at + 2 + length)[0]
        return place

    def leaves(self, number: int) -> list[tuple[bytes, bytes]]:
        """Return (key, data) of the leaf records whose number is `number`, in order."""
        found: list[tuple[bytes, bytes]] = []
        place = self._first_leaf(number)
        for _ in range(self.MAX_STEPS):
            if not place:
                return found
            node = self._fork.read(place * self._size, self._size)
            if node[8] != 0xFF:  # kBTLeafNode is -1
                raise ValueError("not a leaf")
            for at in self._records(node):
                have = self._number.unpack_from(node, at + 2)[0]
                if have > number:
                    return found
                if have == number:
                    data = at + 2 + struct.unpack_from(">H", node, at)[0]
                    found.append((node[at + 2 : data], node[data : data + 248]))
            place = struct.unpack_from(">I", node, 0)[0]
        raise ValueError("too many records")


def hfsplus(device: int, size: int, bmap: Bmap, ino: int) -> list[Run] | None:
    """Runs of a file's data fork: eight extents in its catalog record, the others in the extents overflow file."""
    header = _pread(device, 512, 1024)
    if header[:2] not in (b"H+", b"HX"):
        return None  # wrapped in HFS
    block = struct.unpack_from(">I", header, 40)[0]
    catalog = _BTree(_Fork(device, header, 272, block, 0), struct.Struct(">I"))
    thread = next((data for _, data in catalog.leaves(ino) if data[:2] == b"\0\4"), None)
    if thread is None:
        return None
    parent, units = struct.unpack_from(">IH", thread, 4)
    name = thread[8 : 10 + 2 * units]
    record = next((data for key, data in catalog.leaves(parent) if key[4:] == name and data[:2] == b"\0\2"), None)
    if record is None:
        return None
    runs = Runs()
    extents = list(struct.unpack_from(">16I", record, 88 + 16))
    overflow = _BTree(_Fork(device, header, 192, block, 0), struct.Struct(">xxI"))
    for key, data in overflow.leaves(ino):
        if key[0] == 0:  # the data fork
            if struct.unpack_from(">I", key, 6)[0] != sum(extents[1::2]):
                return None
            extents += struct.unpack_from(">16I", data, 0)
    for start, count in zip(extents[::2], extents[1::2], strict=True):
        if count:
            runs.add(start * block, count * block)
    return runs.runs if runs.length >= size else None


# --- NTFS: ntfsinfo(8) of ntfs-3g prints the runlist ------------------------------------------------------------------
def ntfs(words: str, cluster: int, size: int) -> list[Run] | None:
    """Runs of an unnamed data attribute, from the words of `ntfsinfo -f -v -v -i INODE DEVICE`.

    What lies beyond the initialised size reads as zeros whatever its clusters hold: such a file has no runs here.
    """
    runs = Runs()
    wanted = listed = False
    for line in words.splitlines():
        if line.startswith("Dumping attribute "):
            wanted, listed = "$DATA" in line, False
        elif wanted and "Name length:" in line and line.split()[2] != "0":
            wanted = False  # a named stream
        elif wanted and "Initialized size:" in line and int(line.split()[2]) < size:
            return None
        elif wanted and "Attribute flags:" in line and int(line.split()[2], 16):
            return None  # compressed, encrypted or sparse
        elif wanted and "Runlist:" in line:
            listed = True
        elif wanted and listed:
            numbers = line.split()
            if len(numbers) != 3 or not all(number.startswith("0x") for number in numbers):
                listed = False
                continue
            vcn, lcn, count = (int(number, 16) for number in numbers)
            if vcn * cluster != runs.length:
                return None
            runs.add(lcn * cluster, count * cluster)
    return runs.runs if runs.length >= size else None
