"""Mounts by identity: the kernel's calls that make a mount and recognise it, wherever it is moved."""

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mountsafe.mountinfo import Mounted, mounted
from mountsafe.session.places import number_of, walk

FSTYPE = "fuse.mountsafe"
# include/uapi/linux/mount.h, fcntl.h, stat.h; the numbers of the calls are the same on every architecture but alpha.
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC, _STATX_MNT_ID_UNIQUE = 0x1000, 0x4000, 0x4000
_LONGEST = 255  # bytes of a string for fsconfig


@dataclass(frozen=True, slots=True)
class MountId:
    """One of our mounts. `unique` is never used again for another one; 0 where the kernel (before 6.8) has no such."""

    number: int
    unique: int
    device: tuple[int, int]
    source: str

    def told(self) -> tuple[int, int, tuple[int, int], str]:
        """What a record keeps of it: what it is made from."""
        return self.number, self.unique, self.device, self.source


def fsmount(source: str, options: dict[str, str | None], attributes: int) -> int:
    """Make a FUSE mount that is nowhere yet; return its descriptor. An option that is None is a flag. OSError."""
    context = _call(_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
    try:
        name = os.fsencode(source)[:_LONGEST]
        _call(_FSCONFIG, context, _SET_STRING, b"source", name, 0)
        _call(_FSCONFIG, context, _SET_STRING, b"subtype", FSTYPE.partition(".")[2].encode(), 0)
        for key, value in options.items():
            kind, what = (_SET_FLAG, None) if value is None else (_SET_STRING, value.encode())
            _call(_FSCONFIG, context, kind, key.encode(), what, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(mount: int, folder: int) -> None:
    """Put a mount on the folder that a descriptor holds. Raises OSError."""
    _call(_MOVE_MOUNT, mount, b"", folder, b"", _F_EMPTY_PATH | _T_EMPTY_PATH)


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return result


def unique_of(fd: int) -> int:
    """Return the number that no other mount will have, of the one that a descriptor is in; 0 if there is none."""
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC  # a mount's server may not answer yet, or any more
    statx = ctypes.CDLL(None, use_errno=True).statx
    if statx(fd, b"", flags, _STATX_MNT_ID_UNIQUE, buffer) != 0:
        return 0
    (mask,) = struct.unpack_from("=I", buffer, 0)
    (unique,) = struct.unpack_from("=Q", buffer, 144)
    return int(unique) if mask & _STATX_MNT_ID_UNIQUE else 0


def identity(each: Mounted, fd: int) -> MountId:
    """Return what a mount is known by; `fd` is a descriptor of it."""
    return MountId(each.id, unique_of(fd), each.number, each.source)


def find(which: MountId) -> Mounted | None:
    """Return where a mount is now, as the kernel tells it; None if it is not in this mount namespace any more."""
    for each in mounted():
        if (each.id, each.number, each.fstype, each.source) == (which.number, which.device, FSTYPE, which.source):
            now = at(Path(each.point)) if which.unique else None
            other = now is not None and now.number == which.number and now.unique != which.unique
            return None if other else each
    return None


def top_at(parent: int, name: str) -> int:
    """Return a descriptor of what is mounted last on the folder `name` of a held one. Asks nobody."""
    return os.open(name or ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def over(number: int, which: int, mounts: Iterable[Mounted]) -> bool:
    """Whether mount `number` hangs on mount `which`, or on one that does."""
    parents = {each.id: each.parent for each in mounts}
    seen: set[int] = set()
    while number in parents and number not in seen:
        seen.add(number)
        number = parents[number]
        if number == which:
            return True
    return False


def at(path: Path) -> MountId | None:
    """Return the mount of ours that is on top at `path`; None if there is none, or another one."""
    try:
        parent = walk(path.parent)
    except OSError:
        return None
    try:
        fd = top_at(parent, path.name)
    except OSError:
        return None
    finally:
        os.close(parent)
    try:
        number = number_of(fd)
        for each in mounted():
            if each.id == number and each.fstype == FSTYPE and each.point == os.fspath(path):
                return identity(each, fd)
    finally:
        os.close(fd)
    return None
