"""Where the bytes of files are on their device, as reported by the guest kernel's drivers."""

import array
import fcntl
import os
import struct

from mountsafe import wire
from mountsafe.agent import runs
from mountsafe.agent.programs import run

FIBMAP, FIGETBSZ, FIEMAP = 1, 2, 0xC020660B  # include/uapi/linux/fs.h
_FIEMAP_HEAD = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT = struct.Struct("=QQQQQLLLL")
_FIEMAP_BATCH = 512
_FIEMAP_ONE = struct.Struct("=20xL8xQQQ16xL12x")  # an answer: how many, and logical, physical, length, flags of one
_ASK_FOR_TWO = _FIEMAP_HEAD.pack(0, 0xFFFFFFFFFFFFFFFF, 0, 0, 2, 0) + bytes(2 * _FIEMAP_EXTENT.size)
EXTENT_LAST, EXTENT_UNWRITTEN = 0x1, 0x800
# unknown, delalloc, encoded, encrypted, not aligned, inline, tail: bytes that are not on the device as they are
EXTENT_OPAQUE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
FIBMAP_STEPS = 2048  # ioctls for one answer to EXTENTS: each takes some microseconds in an emulated machine

# File systems whose FIEMAP or FIBMAP answers are addresses on their own device. Not btrfs (logical addresses), and not
# erofs (its driver does not say which extents are compressed).
MAPS_EXTENTS = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"f2fs", b"nilfs2", b"ocfs2", b"gfs2"})
MAPS_BLOCKS = frozenset(
    {b"vfat", b"msdos", b"exfat", b"iso9660", b"udf", b"hfs", b"hfsplus", b"minix", b"jfs", b"ntfs-3g"}
)
PARSED = frozenset({b"vfat", b"msdos", b"exfat", b"iso9660", b"hfsplus", b"ntfs-3g"})  # `runs` knows them
PARSED_STEPS = 64  # where asking FIBMAP for each block takes longer than parsing
CLUSTERED = frozenset({b"vfat", b"msdos", b"exfat"})  # st_blksize is the unit of allocation, of many blocks


def fiemap(fd: int, size: int, start: int, limit: int) -> tuple[list[wire.Extent], int]:
    """Return the extents from `start` on, holes as ZERO, and where to go on (0: they reach the file's end)."""
    extents: list[wire.Extent] = []
    at = start
    while at < size and len(extents) < limit:
        batch = min(_FIEMAP_BATCH, limit)
        request = bytearray(_FIEMAP_HEAD.size + batch * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(request, 0, at, size - at, 0, 0, batch, 0)
        fcntl.ioctl(fd, FIEMAP, request)
        count = _FIEMAP_HEAD.unpack_from(request)[3]
        last = count == 0
        for index in range(count):
            logical, physical, length, _, _, flags, *_ = _FIEMAP_EXTENT.unpack_from(
                request, _FIEMAP_HEAD.size + index * _FIEMAP_EXTENT.size
            )
            if logical > at:
                extents.append(wire.Extent(at, 0, logical - at, wire.ExtentKind.ZERO))
            told = max(0, at - logical)  # an extent that begins before `start` is told whole
            logical, physical, length = logical + told, physical + told, length - told
            if flags & EXTENT_UNWRITTEN:
                extents.append(wire.Extent(logical, 0, length, wire.ExtentKind.ZERO))
            elif not flags & EXTENT_OPAQUE:
                extents.append(wire.Extent(logical, physical, length, wire.ExtentKind.DATA))
            at = max(at, logical + length)
            last = last or bool(flags & EXTENT_LAST)
        if last:
            if at < size:
                extents.append(wire.Extent(at, 0, size - at, wire.ExtentKind.ZERO))
            return extents, 0
    return extents, 0 if at >= size else at


def only_extent(fd: int) -> wire.Extent | None:
    """Return the extent of a file that is whole in one, as most small files are, in the fewest steps; else None.

    Where a hole follows it nothing is said of that.
    """
    request = bytearray(_ASK_FOR_TWO)
    fcntl.ioctl(fd, FIEMAP, request)
    count, logical, physical, length, flags = _FIEMAP_ONE.unpack_from(request)
    if count != 1 or logical or not flags & EXTENT_LAST or flags & (EXTENT_OPAQUE | EXTENT_UNWRITTEN):
        return None
    return wire.Extent(0, physical, length, wire.ExtentKind.DATA)


def fibmap(fd: int, size: int, start: int, block: int, cluster: int) -> tuple[list[wire.Extent], int]:
    """The same by FIBMAP, one block of each cluster. Block 0 may be a hole, a tail or inline data: it is left out."""
    extents: list[wire.Extent] = []
    number = array.array("I", [0])
    step = max(1, cluster // block)
    end = (size + block - 1) // block
    first = start // block // step * step
    stop = min(end, first + FIBMAP_STEPS * step)
    run_start = run_physical = run_length = 0
    for logical in range(first, stop, step):
        number[0] = logical
        fcntl.ioctl(fd, FIBMAP, number)
        physical = number[0]
        count = min(step, end - logical)
        if run_length and physical == run_physical + run_length:
            run_length += count
            continue
        if run_length:
            extents.append(_blocks(run_start, run_physical, run_length, block))
        run_start, run_physical, run_length = logical, physical, count if physical else 0
    if run_length:
        extents.append(_blocks(run_start, run_physical, run_length, block))
    return extents, 0 if stop >= end else stop * block


def _blocks(logical: int, physical: int, count: int, block: int) -> wire.Extent:
    return wire.Extent(logical * block, physical * block, count * block, wire.ExtentKind.DATA)


def without(extents: list[wire.Extent], ranges: list[tuple[int, int]]) -> list[wire.Extent]:
    """Return `extents` less the DATA that lies in `ranges` of the device."""
    if not ranges:
        return extents
    kept: list[wire.Extent] = []
    for extent in extents:
        if extent.kind != wire.ExtentKind.DATA:
            kept.append(extent)
            continue
        at, end = extent.physical, extent.physical + extent.length
        shift = extent.logical - extent.physical
        for low, high in ranges:
            if high <= at or low >= end:
                continue
            if low > at:
                kept.append(wire.Extent(at + shift, at, low - at, extent.kind))
            at = high
        if at < end:
            kept.append(wire.Extent(at + shift, at, end - at, extent.kind))
    return kept


class ExtentMap:
    """Where the bytes of a mounted file system's files are, as its driver tells."""

    def __init__(
        self, kernel_type: str, mapped: bool, changed: list[tuple[int, int]], root: int, device: str = ""
    ) -> None:
        name = kernel_type.encode()
        self._type = name
        self._path = device
        self._device = -1
        self._changed = changed
        self._fiemap = not mapped and name in MAPS_EXTENTS
        self._clusters = name in CLUSTERED
        self._block = 0
        if not mapped and (name in MAPS_BLOCKS or self._fiemap):
            number = array.array("i", [0])
            fcntl.ioctl(root, FIGETBSZ, number)
            self._block = number[0]
        if device and name in PARSED:  # last: what fails before it leaves nothing open
            self._device = os.open(device, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def direct(self) -> bool:
        """Whether DATA extents can be told at all."""
        return self._block > 0

    def close(self) -> None:
        """Let go of the device."""
        if self._device >= 0:
            os.close(self._device)

    def only(self, fd: int) -> wire.Extent | None:
        """Return the extent of a file that has one, where that can be had in a few steps; else None."""
        if not self._block or not self._fiemap or self._changed:
            return None
        try:
            return only_extent(fd)
        except OSError:
            return None

    def of(self, fd: int, st: os.stat_result, start: int, limit: int) -> tuple[list[wire.Extent], int]:
        """Return extents from `start` on and where to go on (0: these are all, or the driver cannot tell)."""
        if not self._block:
            return [], 0
        try:
            if self._fiemap:
                extents, following = fiemap(fd, st.st_size, start, limit)
            else:
                cluster = st.st_blksize if self._clusters else self._block
                parsed = self._parsed(fd, st) if st.st_size > PARSED_STEPS * cluster else None
                if parsed is not None:
                    return [extent for extent in parsed if extent.logical + extent.length > start], 0
                if self._type == b"ntfs-3g":
                    return [], 0  # FIBMAP does not tell where the initialised part ends
                extents, following = fibmap(fd, st.st_size, start, self._block, cluster)
        except OSError:
            return [], 0  # inline or compressed: through the agent
        return without(extents, self._changed), following

    def _parsed(self, fd: int, st: os.stat_result) -> list[wire.Extent] | None:
        """Return the extents as the medium's structures tell them, where FIBMAP agrees at both ends of each."""
        if self._device < 0 or self._changed:
            return None

        def bmap(offset: int) -> int:
            number = array.array("I", [offset // self._block])
            fcntl.ioctl(fd, FIBMAP, number)
            return number[0] * self._block

        try:
            found = self._runs(st, bmap)
            if found is None or any(not _agrees(bmap, run, st.st_size, self._block) for run in found):
                return None
        except (ValueError, IndexError, ZeroDivisionError, struct.error):
            return None  # a damaged structure: the driver is asked for every block
        return [wire.Extent(*run, wire.ExtentKind.DATA) for run in found]

    def _runs(self, st: os.stat_result, bmap: runs.Bmap) -> list[runs.Run] | None:
        if self._type in (b"vfat", b"msdos"):
            return runs.fat(self._device, st.st_size, bmap)
        if self._type == b"exfat":
            return runs.exfat(self._device, st.st_size, bmap)
        if self._type == b"iso9660":
            return runs.iso9660(self._device, st.st_size, bmap, st.st_ino)
        if self._type == b"hfsplus":
            return runs.hfsplus(self._device, st.st_size, bmap, st.st_ino)
        _, words = run("ntfsinfo", "-f", "-v", "-v", "-i", str(st.st_ino), self._path)
        return runs.ntfs(words, self._block, st.st_size)


def _agrees(bmap: "runs.Bmap", run_: "runs.Run", size: int, block: int) -> bool:
    """Whether the driver puts the first and the last block of a run where the run has them."""
    logical, physical, length = run_
    last = (min(logical + length, size) - 1) // block * block
    return bool(physical) and bmap(logical) == physical and bmap(last) == physical + last - logical
