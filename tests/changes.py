"""What changes a file through a descriptor that was opened for reading. It also runs in boxes: no imports of ours."""

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NODUMP_FL = 0x80086601, 0x40086602, 0x40  # include/uapi/linux/fs.h
KEPT, ADDED = "user.kept", "user.added"  # attributes: the first must be there for its removal to be a change


def _write(fd: int) -> None:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(again, os.pread(fd, 1, 0), 0)


def _set_flags(fd: int) -> None:
    (flags,) = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flags ^ FS_NODUMP_FL))


ATTEMPTS: dict[str, Callable[[int], object]] = {
    "open it for writing": _write,
    "open it to append": lambda fd: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND),
    "truncate": lambda fd: os.truncate(f"/proc/self/fd/{fd}", os.fstat(fd).st_size),
    "fchmod": lambda fd: os.fchmod(fd, 0o4777),
    "chmod": lambda fd: os.chmod(f"/proc/self/fd/{fd}", 0o4777),
    "fchown": lambda fd: os.fchown(fd, os.fstat(fd).st_uid, os.fstat(fd).st_gid),
    "chown": lambda fd: os.chown(f"/proc/self/fd/{fd}", os.fstat(fd).st_uid, -1),
    "times by descriptor": lambda fd: os.utime(fd, (1, 1)),
    "times by name": lambda fd: os.utime(f"/proc/self/fd/{fd}", (1, 1)),
    "add an attribute": lambda fd: os.setxattr(fd, ADDED, b"x"),
    "add one by name": lambda fd: os.setxattr(f"/proc/self/fd/{fd}", ADDED, b"x"),
    "remove an attribute": lambda fd: os.removexattr(fd, KEPT),
    "set flags": _set_flags,
}


def attempted(fd: int) -> dict[str, str]:
    """Try all; return the name of the errno that each failed with, "" for what was done."""
    came = {}
    for what, attempt in ATTEMPTS.items():
        try:
            attempt(fd)
            came[what] = ""
        except OSError as error:
            came[what] = errno.errorcode.get(error.errno or 0, str(error))
    return came


def tell(fd: int) -> None:
    """Say on stderr what came of it, a line for each: CHANGE errno attempt."""
    sys.stderr.write("\n")  # the guest's console may have left a line open
    for what, why in attempted(fd).items():
        sys.stderr.write(f"CHANGE {why or 'done'} {what}\n")
    sys.stderr.flush()
