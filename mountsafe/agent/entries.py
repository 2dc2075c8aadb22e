"""What a listing says about an entry: its numbers, and where a link leads."""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent import reparse
from mountsafe.agent.amended import Amend

UNSEEN = (0,) * 10  # the numbers of what cannot be looked at
ONLY_WINDOWS = 0o444  # the mode of a file that ntfs-3g cannot read


def packed(name: bytes, folder: int, amend: Amend | None = None) -> bytes:
    """Return one wire.Entry. Spelled out: this is where the guest's time is spent."""
    target = b""
    try:
        st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if st.st_mode & 0o170000 == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=folder)[: wire.MAX_TARGET]
    except OSError:
        return wire.pack_entry(name, UNSEEN, target)
    told = numbers(st) if amend is None else amend(name, numbers(st))
    try:
        return wire.pack_entry(name, told, target)
    except struct.error:
        return wire.pack_entry(name, fitting(told), target)


def packed_of_ntfs(name: bytes, folder: int, where: bytes, depth: int) -> bytes:
    """Return one wire.Entry of a folder that lies in `depth` others: a reparse point is a link, or a file."""
    try:
        st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            return packed(name, folder)
        shown = os.readlink(name, dir_fd=folder)
    except OSError:
        return packed(name, folder)
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
    """The same, cut to what fits: there are media with times beyond the year 2262, and damaged ones with sizes that the
    kernel takes for negative. The host finds those too large.
    """
    mode, nlink, uid, gid, ino, size, blocks, *times = told
    rest = (number & 0xFFFFFFFFFFFFFFFF for number in (ino, size, blocks))
    return (mode, nlink & 0xFFFFFFFF, uid, gid, *rest, *(max(-(1 << 63), min((1 << 63) - 1, t)) for t in times))


def held(fd: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the extended attributes; hfsplus of Linux 6.12 lists some that it then has not."""
    for name in os.listxattr(fd):
        try:
            yield os.fsencode(name), os.getxattr(fd, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
