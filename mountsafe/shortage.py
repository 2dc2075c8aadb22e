"""What the host's limits allow a process, and the words for when that is not enough."""

import errno
import os
import resource
from dataclasses import dataclass

from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import APPLIANCE_ADDRESS_SPACE, MIB


@dataclass(frozen=True, slots=True)
class Need:
    """What a mount takes of a resource at most; `letter` is ulimit's option, `unit` systemd's setting."""

    number: int
    least: int
    what: str
    letter: str
    setting: str
    scale: int = 1


NEEDS = (
    # Of a disk with MAX_MOUNTS file systems the supervisor holds about eight descriptors each.
    Need(resource.RLIMIT_NOFILE, 256, "open files", "n", "LimitNOFILE"),
    # The boxes are given limits of their own, and nobody may raise one: see `mountsafe.sandbox`.
    Need(resource.RLIMIT_AS, APPLIANCE_ADDRESS_SPACE, "MiB of address space", "v", "LimitAS", MIB),
    Need(resource.RLIMIT_DATA, APPLIANCE_ADDRESS_SPACE, "MiB of data", "d", "LimitDATA", MIB),
    Need(resource.RLIMIT_NPROC, 256, "processes", "u", "LimitNPROC"),
    Need(resource.RLIMIT_SIGPENDING, 256, "waiting signals", "i", "LimitSIGPENDING"),
    # The appliance's disk has 1 GiB; the boxes' filters are files for a moment, and must not be cut off.
    Need(resource.RLIMIT_FSIZE, 1100 * MIB, "MiB in a file", "f", "LimitFSIZE", MIB),
)

_ROOM = "Make room there."
_SHORT = {
    errno.EMFILE: ("too many files are open", "ulimit -n shows how many may be."),
    errno.ENFILE: ("all programs together have too many files open", "sysctl fs.file-max shows how many may be."),
    errno.ENOMEM: ("there is not enough memory", "End some programs; ulimit -v shows how much may be had."),
    errno.EAGAIN: ("a resource cannot be had now, a process perhaps", "End some; ulimit -u shows how many may be."),
    errno.EFBIG: ("a file may not become so large", "ulimit -f shows how large one may be."),
    errno.ENOSPC: ("there is no space left", _ROOM),
    errno.EDQUOT: ("your share of the disk is used up", _ROOM),
    errno.EROFS: ("its file system is read-only", "Make it writable."),
}


def raise_limits() -> None:
    """Take what may be had without asking, where it is less than what a mount needs."""
    for need in NEEDS:
        soft, hard = resource.getrlimit(need.number)
        if _less(soft, need.least):
            resource.setrlimit(need.number, (need.least if _less(need.least, hard) else hard, hard))


def require() -> None:
    """Raise UserError (DEPENDENCY) if this process is allowed less of something than a mount needs."""
    for need in NEEDS:
        soft, _ = resource.getrlimit(need.number)
        if _less(soft, need.least):
            message = f"{soft // need.scale} {need.what} are allowed here, and {need.least // need.scale} are needed"
            hint = f"ulimit -{need.letter} was set too low: try another shell, or {need.setting}= of the service."
            raise UserError(message, hint, ExitCode.DEPENDENCY)


def _less(one: int, other: int) -> bool:
    if one == resource.RLIM_INFINITY:
        return False
    return other == resource.RLIM_INFINITY or one < other


def explained(error: BaseException) -> UserError | None:
    """Return what a user is told of an error that says that the host has run short; None if it is another one."""
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "")
    elif isinstance(error, RuntimeError) and "start new thread" in str(error):  # as CPython has it
        error = OSError(errno.EAGAIN, "")
    if not isinstance(error, OSError) or error.errno not in _SHORT:
        return None
    message, hint = _SHORT[error.errno]
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    code = ExitCode.FAILURE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else ExitCode.DEPENDENCY
    return UserError(f"{place}{message}", hint, code)
