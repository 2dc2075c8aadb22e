"""Open what the user named, read-only, and say clearly why not."""

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mountsafe import landlock
from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.medium import wrappers
from mountsafe.medium.flag import is_read_only
from mountsafe.medium.formats import Format, detect
from mountsafe.medium.part import WHOLE, Part
from mountsafe.medium.sealed import sealed
from mountsafe.medium.swapped import number_of
from mountsafe.text import shown_path
from mountsafe.wire import SECTOR_SIZES

BLKGETSIZE64, BLKSSZGET = 0x80081272, 0x1268  # include/uapi/linux/fs.h


@dataclass(frozen=True, slots=True)
class Medium:
    """An open medium: a read-only descriptor and its size in bytes. `format`: what holds the disk in it.

    `sector_size`: the one that the user says its partition table counts, or None. `part`: what counts of the
    disk in it. `sequence`: the number of the medium in a device (`medium.swapped`); 0 if it is not known.
    `writable_fd`: a descriptor that is open for writing as well, if it may be written to (`medium.exclusive`).
    """

    path: Path
    fd: int
    size: int
    block_device: bool
    format: Format = Format.RAW
    sector_size: int | None = None
    part: Part = WHOLE
    sequence: int = 0
    writable_fd: int | None = None

    @property
    def name(self) -> str:
        """The file's name, fit to be shown."""
        return shown_path(self.path.name)

    def model(self) -> str:
        """Return what the disk in the guest is called: by that the agent learns of sectors (`agent.sectors.wished`)."""
        if self.sector_size:
            return f"sector {self.sector_size} only"
        own = int.from_bytes(fcntl.ioctl(self.fd, BLKSSZGET, bytes(4)), "little") if self.block_device else 0
        return f"sector {own}" if own in SECTOR_SIZES else ""


def open_medium(
    source: Path,
    wanted: Format | None = None,
    sector_size: int | None = None,
    part: Part = WHOLE,
    lent: int | None = None,
) -> Medium:
    """Open an image file or a block device; it is of the format `wanted`, or of that which it looks like.

    A block device is opened with O_EXCL: that fails while it is mounted, and while it is held nobody can mount it. It
    is taken as raw if nothing is said: who made it does not get to choose. `lent`: a descriptor of a device that a
    mount of the same user holds already, which is shared with it, and so held until the last of both is gone.
    Raises UserError: SOURCE for anything that cannot be a medium, USAGE for a part that it does not have.
    """
    shown = shown_path(source)
    try:
        kind = source.stat().st_mode
    except OSError as error:
        raise _cannot_open(shown, error) from error
    if stat.S_ISDIR(kind):
        raise UserError(f"{shown} is a directory", "Name an image file or a block device.", ExitCode.SOURCE)
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        hint = "Name an image file or a block device."
        raise UserError(f"{shown} is neither a file nor a block device", hint, ExitCode.SOURCE)
    fd = _opened(source, stat.S_ISBLK(kind), shown) if lent is None else lent
    try:
        # The name may lead elsewhere by now: only what was opened counts.
        opened = os.fstat(fd)
        if not (stat.S_ISREG(opened.st_mode) or stat.S_ISBLK(opened.st_mode)):
            raise UserError(f"{shown} changed while it was opened", "Try again.", ExitCode.SOURCE)
        size = opened.st_size if stat.S_ISREG(opened.st_mode) else device_size(fd)
        if size == 0:
            raise UserError(f"{shown} is empty", "There is nothing to open in it.", ExitCode.SOURCE)
        if stat.S_ISREG(opened.st_mode):
            fd = _sealed(fd, source, shown)
        else:
            check_device(fd, opened.st_mode, shown)
        if wanted is None:
            wanted = Format.RAW if stat.S_ISBLK(opened.st_mode) else detect(partial(_readable, fd), size)
        if wanted is Format.RAW:  # of the disk in a container the size is not known yet
            part.within(size, shown_path(source.name))
        device = stat.S_ISBLK(opened.st_mode)
        return Medium(source.absolute(), fd, size, device, wanted, sector_size, part, number_of(opened))
    except BaseException:
        os.close(fd)
        raise


def _opened(source: Path, exclusive: bool, shown: str) -> int:
    try:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_EXCL if exclusive else 0))
    except OSError as error:
        raise _cannot_open(shown, error) from error


def _sealed(fd: int, source: Path, shown: str) -> int:
    """Return a descriptor that nobody below us can make writable, in place of `fd`. Raises UserError (DEPENDENCY).

    Where it cannot be had (a kernel before 5.12, a file without a name), Landlock keeps the boxes from writing.
    """
    found = sealed(fd, source)
    if found is not None:
        os.close(fd)
        return found
    if not landlock.version():
        message = f"this kernel has neither read-only mounts of single files nor Landlock to keep {shown} unchanged"
        raise UserError(
            message, "Linux 5.13 or later has both; Landlock can be switched on: lsm=landlock,...", ExitCode.DEPENDENCY
        )
    return fd


def check_device(fd: int, mode: int, shown: str, writable: bool = False) -> None:
    """Raise UserError (DEPENDENCY) if a box could open the device anew for writing, and nothing would refuse it.

    `writable`: that it is read-only now does not count, for it will not always be.
    Root's boxes have a user id of their own, so for them what anybody may counts; others' are in the caller's groups.
    """
    allowed = mode & stat.S_IWOTH if os.geteuid() == 0 else os.access(f"/proc/self/fd/{fd}", os.W_OK)
    if not allowed or landlock.version() or (is_read_only(fd) and not writable):
        return
    raise UserError(
        f"this kernel has no Landlock to keep {shown} unchanged, and whoever mounts it may write to it",
        "Switch Landlock on (lsm=landlock,...), or make the device read-only: sudo blockdev --setro DEVICE.",
        ExitCode.DEPENDENCY,
    )


def explained(medium: Medium, error: UserError) -> UserError:
    """Return what a user is told when a medium could not be mounted: what the file is, if that is another thing."""
    if medium.block_device or medium.format is not Format.RAW or medium.part != WHOLE:
        return error
    path = shown_path(medium.path)
    return wrappers.explained(error, medium.name, path, partial(_readable, medium.fd), medium.size)


def _readable(fd: int, offset: int, length: int) -> bytes:
    """Return what is at a place, nothing if it cannot be read: the header of a container could not be used either."""
    try:
        return os.pread(fd, length, offset)
    except OSError:
        return b""


def device_size(fd: int) -> int:
    """Return the size of an open block device, in bytes."""
    return int.from_bytes(fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)), "little")


def _cannot_open(shown: str, error: OSError) -> UserError:
    hints = {
        errno.ENOENT: "Check the name.",
        errno.EBUSY: "It is mounted or claimed by another program: unmount it first.",
        errno.ENOMEDIUM: "There is no medium in the drive.",
    }
    if isinstance(error, PermissionError):
        return NoRight.of(f"cannot open {shown}", error)
    reason = "it does not exist" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return UserError(f"cannot open {shown}: {reason}", hints.get(error.errno or 0, "Check the name."), ExitCode.SOURCE)
