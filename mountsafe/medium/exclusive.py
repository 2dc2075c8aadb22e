"""Open a medium for writing, and be the only one who writes to it, as far as others can be detected.

QEMU's programs lock bytes of raw images, each standing for something that they do, or do not want others to do
(block/file-posix.c: raw_apply_lock_bytes). The same bytes are locked here, so each side notices the other. One more
byte is mountsafe's own. These locks belong to the open file: they last until the last process that has the descriptor
is gone (fcntl(2), F_OFD_SETLK). A device that the host's kernel has mounted is found by O_EXCL; a file that is behind a
loop device is found in sysfs.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.medium.flag import is_read_only
from mountsafe.medium.source import Medium
from mountsafe.medium.windows import ReadOnly, check_medium
from mountsafe.text import shown_path

F_OFD_GETLK, F_OFD_SETLK = 36, 37  # include/uapi/asm-generic/fcntl.h
_FLOCK = struct.Struct("=hhxxxxqqixxxx")  # struct flock of 64-bit machines: kind, whence, start, length, pid
# RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE: who does something locks the byte at the first, who does not want others
# to do it the one at the second. BLK_PERM_*: 0 to read what does not change, 1 to write, 3 to change the size.
DOES, MINDS = 100, 200
READ, WRITE, RESIZE = 0, 1, 3
OURS = 300  # a byte that no program of QEMU's locks
PROTECTED = frozenset({errno.EROFS, errno.EPERM})
LOOPS = Path("/sys/block")
HINT = "Without --write it can be mounted read-only."


def open_for_writing(medium: Medium, otherwise: str = HINT) -> int:
    """Return a descriptor of an open medium that is open for reading and writing, and locked. Raises UserError.

    It is opened with the caller's rights. SOURCE if it is write-protected, or others have it in use. `otherwise`:
    what can be done with a medium that cannot be written to.
    """
    shown = shown_path(medium.path)
    try:
        check_medium(medium)
    except ReadOnly as error:
        hint = f"qemu-img convert -O raw makes an image of it that can be written to. {otherwise}"
        raise UserError(f"{shown} cannot be written to: {error}", hint, ExitCode.SOURCE) from error
    if medium.block_device and is_read_only(medium.fd):
        raise UserError(f"{shown} is write-protected", otherwise, ExitCode.SOURCE)
    if loop := _loop_over(medium):
        hint = f"sudo umount it, then sudo losetup -d {loop}. {otherwise}"
        raise UserError(f"{shown} is in use by this machine's kernel, as {loop}", hint, ExitCode.SOURCE)
    fd = _opened(medium, shown, otherwise)
    try:
        _lock(fd, shown, otherwise)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _opened(medium: Medium, shown: str, otherwise: str) -> int:
    """Open it. A device is held alone by the descriptor that there is; one of a file may not lead to a writable one."""
    path = f"/proc/self/fd/{medium.fd}" if medium.block_device else medium.path
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _cannot(shown, error, otherwise) from error
    if not os.path.samestat(os.fstat(fd), os.fstat(medium.fd)):
        os.close(fd)
        raise UserError(f"{shown} changed while it was opened", "Try again.", ExitCode.SOURCE)
    return fd


def _cannot(shown: str, error: OSError, otherwise: str) -> UserError:
    if error.errno in PROTECTED:
        return UserError(f"{shown} is write-protected", f"{error.strerror}. {otherwise}", ExitCode.SOURCE)
    if isinstance(error, PermissionError):
        return NoRight(f"you may read {shown}, and not write to it", otherwise)
    return UserError(
        f"{shown} cannot be opened for writing: {(error.strerror or '').lower()}", otherwise, ExitCode.SOURCE
    )


def _loop_over(medium: Medium) -> str:
    """Return the path of a loop device over the medium, as this machine's kernel has it; "" if there is none."""
    ours = os.fstat(medium.fd)
    for backing in LOOPS.glob("loop*/loop/backing_file"):
        try:
            name = backing.read_bytes().rstrip(b"\n").removesuffix(b" (deleted)")
            if os.path.samestat(os.stat(name), ours):
                return f"/dev/{backing.parent.parent.name}"
        except OSError:  # detached meanwhile, or behind a path that only others have
            continue
    return ""


def _lock(fd: int, shown: str, otherwise: str) -> None:
    """Lock the medium for one who writes. Raises UserError (SOURCE)."""
    if not _locked(fd, fcntl.F_WRLCK, OURS):
        hint = f"mountsafe list shows your mounts. {otherwise}"
        raise UserError(f"{shown} is mounted for writing already, by mountsafe", hint, ExitCode.SOURCE)
    # Who comes at the same time does this in the same order: then both hear of it, and neither goes on.
    done = [_locked(fd, fcntl.F_RDLCK, at) for at in (DOES + READ, DOES + WRITE, MINDS + WRITE, MINDS + RESIZE)]
    others = [at for at in (DOES + WRITE, DOES + RESIZE, MINDS + READ, MINDS + WRITE) if _is_locked(fd, at)]
    if others or not all(done):
        doing = "writes to it" if DOES + WRITE in others else "has it open"
        hint = f"A virtual machine, for example: shut it down. fuser {shown} shows which program it is. {otherwise}"
        raise UserError(f"{shown} is in use: another program {doing}", hint, ExitCode.SOURCE)


def _locked(fd: int, kind: int, at: int) -> bool:
    """Lock a byte; whether that could be done. A file system without locks has nobody who could have one."""
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _is_locked(fd: int, at: int) -> bool:
    """Whether somebody else has a byte locked, in whatever way."""
    try:
        told = fcntl.fcntl(fd, F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
    except OSError:
        return False
    return bool(_FLOCK.unpack(told)[0] != fcntl.F_UNLCK)
