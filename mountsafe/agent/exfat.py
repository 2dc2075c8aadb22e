"""What exFAT's folders say about files and its driver does not: their whole size, and which of their times are local.

After Microsoft's exFAT file system specification. Linux before 6.8 shows a file up to the end of what was written to it
(ValidDataLength); its size is DataLength, and the bytes between the two read as zeros.
"""

import os
import struct
from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

FILE, STREAM, NAME = 0x85, 0xC0, 0xC1  # types of directory entries
ENTRY = 32  # bytes of each
NO_CHAIN = 2  # the flag: its clusters follow one another
IS_FOLDER = 0x10  # the attribute
HAS_OFFSET = 0x80  # of a time: it says how far its clock was from UTC
UNITS = 15  # of a name in each of its entries: UTF-16
MAX_FOLDER = 16 << 20  # bytes of a folder that are looked at: 170,000 files
MOST_KEPT = 64  # folders


class Record(NamedTuple):
    """A file or folder; `valid` of `size` bytes were written. `local_access`, `local_change`: it has no offset."""

    cluster: int
    size: int
    valid: int
    chained: bool
    folder: bool
    local_access: bool
    local_change: bool


class Exfat:
    """The folders of one file system, as the device has them."""

    def __init__(self, device: str) -> None:
        self._device = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        self._folders: OrderedDict[bytes, dict[bytes, Record]] = OrderedDict()
        self.cluster_size = self._table = self._heap = self._clusters = self._root = self._sector_shift = 0
        with suppress(OSError, struct.error, IndexError):
            boot = os.pread(self._device, 512, 0)
            self._table, _, self._heap, self._clusters, self._root = struct.unpack_from("<IIIII", boot, 80)
            self._sector_shift = boot[108] & 15
            self.cluster_size = 1 << min(self._sector_shift + boot[109], 25)  # the specification's most

    def close(self) -> None:
        """Let go of the device."""
        os.close(self._device)

    def of(self, path: bytes) -> Record | None:
        """Return what is known of a file or folder, by its path from the root."""
        parent, _, name = path.rpartition(b"/")
        return self.folder(parent).get(name)

    def forget(self, path: bytes) -> None:
        """What is recorded of a file or folder is not so any more; where a folder's entries begin still is."""
        parent, _, name = path.rpartition(b"/")
        found = self._folders.get(parent, {})
        record = found.pop(name, None)
        if record is not None and record.folder:
            found[name] = record._replace(local_access=False, local_change=False)

    def removed(self, path: bytes) -> None:
        """A folder is no more."""
        parent, _, name = path.rpartition(b"/")
        self._folders.get(parent, {}).pop(name, None)
        self._folders.pop(path, None)

    def forget_all(self) -> None:
        """Paths lead elsewhere now."""
        self._folders.clear()

    def folder(self, path: bytes) -> dict[bytes, Record]:
        """Return what is in a folder, by names; nothing if that cannot be told."""
        at, record = b"", Record(self._root, 0, 0, True, True, False, False)
        found = self._kept(at, record)
        for name in path.split(b"/") if path else ():
            if name not in found or not found[name].folder:
                return {}
            at = at + b"/" + name if at else name
            found = self._kept(at, found[name])
        return found

    def _kept(self, path: bytes, folder: Record) -> dict[bytes, Record]:
        if path in self._folders:
            self._folders.move_to_end(path)
            return self._folders[path]
        found: dict[bytes, Record] = {}
        with suppress(OSError, struct.error, IndexError):
            found = records(self._bytes(folder))
        self._folders[path] = found
        if len(self._folders) > MOST_KEPT:
            self._folders.popitem(last=False)
        return found

    def _bytes(self, folder: Record) -> bytes:
        """Return the entries of a folder, as far as they are looked at."""
        size = min(folder.size or MAX_FOLDER, MAX_FOLDER)
        if not folder.chained:
            return os.pread(self._device, size, self._place(folder.cluster))
        data, cluster = bytearray(), folder.cluster
        while len(data) < size and 2 <= cluster < self._clusters + 2:
            data += os.pread(self._device, self.cluster_size, self._place(cluster))
            entry = os.pread(self._device, 4, (self._table << self._sector_shift) + 4 * cluster)
            (cluster,) = struct.unpack("<I", entry)
        return bytes(data)

    def _place(self, cluster: int) -> int:
        return (self._heap << self._sector_shift) + (cluster - 2) * self.cluster_size


def records(data: bytes) -> dict[bytes, Record]:
    """Return what the entries of a folder tell, by names as Linux shows them (UTF-8)."""
    found: dict[bytes, Record] = {}
    at = 0
    while at + ENTRY <= len(data) and data[at]:
        if data[at] != FILE or data[at + ENTRY] != STREAM:
            at += ENTRY
            continue
        count, attributes = data[at + 1], struct.unpack_from("<H", data, at + 4)[0]
        stream = at + ENTRY
        flags, length = data[stream + 1], data[stream + 3]
        (valid,) = struct.unpack_from("<Q", data, stream + 8)
        cluster, size = struct.unpack_from("<IQ", data, stream + 20)
        units = b"".join(
            data[name + 2 : name + ENTRY]
            for name in range(stream + ENTRY, at + (count + 1) * ENTRY, ENTRY)
            if data[name] == NAME
        )
        name = units[: 2 * length].decode("utf-16-le", "replace").encode()
        changed, accessed = data[at + 23], data[at + 24]
        times = (not accessed & HAS_OFFSET, not changed & HAS_OFFSET)
        if valid <= size < 1 << 62:
            found[name] = Record(cluster, size, valid, not flags & NO_CHAIN, bool(attributes & IS_FOLDER), *times)
        at += (count + 1) * ENTRY
    return found
