"""What a listing says about an entry: its numbers, and where a link leads."""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent import reparse
from mountsafe.agent.amended import Amend

UNSEEN = (0,) * 10  # the numbers of what cannot be looked at
ONLY_WINDOWS = 0o444  # the mode of a file that ntfs-3g cannot read

# Python's own stat makes an object of sixteen numbers, three of them floating, and reads none of them faster.
_statx = ctypes.PyDLL(None).statx
_AS_LSTAT, _BASIC_STATS = 0x100, 0x7FF  # include/uapi/linux/fcntl.h, stat.h
_told = bytearray(256)  # a `struct statx`, filled anew for each file
_address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(_told)))
_TYPE = 29 if sys.byteorder == "little" else 28  # the upper byte of stx_mode,
_LINK = stat.S_IFLNK >> 8  # and what it has of a symbolic link


def all_packed(names: list[bytes], folder: int) -> list[bytes]:
    """Return one wire.Entry for each name in an open folder. Spelled out: this is where the guest's time is spent."""
    entries: list[bytes] = []
    told, address, look, pack = _told, _address, _statx, wire.pack_told
    attributes = memoryview(told)[: wire.STATX]
    for name in names:
        target = b""
        if look(folder, name, _AS_LSTAT, _BASIC_STATS, address):
            entries.append(wire.pack_entry(name, UNSEEN, b""))
            continue
        if told[_TYPE] & 0xF0 == _LINK:
            try:
                target = os.readlink(name, dir_fd=folder)[: wire.MAX_TARGET]
            except OSError:
                entries.append(wire.pack_entry(name, UNSEEN, b""))
                continue
        entries.append(pack(attributes, name, target))
    return entries


def packed(name: bytes, folder: int, amend: Amend) -> bytes:
    """Return one wire.Entry, amended."""
    target = b""
    try:
        st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode):
            target = os.readlink(name, dir_fd=folder)[: wire.MAX_TARGET]
    except OSError:
        return wire.pack_entry(name, UNSEEN, target)
    return wire.pack_entry(name, fitting(amend(name, numbers(st))), target)


def packed_of_ntfs(name: bytes, folder: int, where: bytes, depth: int) -> bytes:
    """Return one wire.Entry of a folder that lies in `depth` others: a reparse point is a link, or a file."""
    try:
        st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            return all_packed([name], folder)[0]
        shown = os.readlink(name, dir_fd=folder)
    except OSError:
        return all_packed([name], folder)[0]
    data = b""
    with suppress(OSError):
        data = os.getxattr(os.path.join(b"/proc/self/fd/%d" % folder, name), reparse.XATTR, follow_symlinks=False)
    target = reparse.told(shown, data, where, depth)
    told = fitting(numbers(st))
    if target is None:
        return wire.pack_entry(name, (stat.S_IFREG | ONLY_WINDOWS, *told[1:]), b"")
    target = target[: wire.MAX_TARGET]
    return wire.pack_entry(name, (*told[:5], len(target), *told[6:]), target)


def numbers(st: os.stat_result) -> tuple[int, ...]:
    """The numbers of a wire.Entry."""
    return (
        st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_ino, st.st_size, st.st_blocks,
        st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns,
    )  # fmt: skip


def fitting(told: tuple[int, ...]) -> tuple[int, ...]:
    """The same, cut to what fits: there are damaged media with sizes that Python takes for negative. The host finds
    those too large.
    """
    mode, nlink, uid, gid, ino, size, blocks, *times = told
    rest = (number & 0xFFFFFFFFFFFFFFFF for number in (ino, size, blocks))
    return (mode, nlink & 0xFFFFFFFF, uid, gid, *rest, *times)


def held(fd: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the extended attributes; hfsplus of Linux 6.12 lists some that it then has not."""
    for name in os.listxattr(fd):
        try:
            yield os.fsencode(name), os.getxattr(fd, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
