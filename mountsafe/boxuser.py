"""The user id that root's boxes of one medium run under: no account has it, and no other medium, as long as one lives.

A lock on a file says that a supervisor has it; it is gone with its holder, however that ended. Processes of its boxes
may outlive the holder for a moment, so the kernel's list of processes is asked as well.
"""

import fcntl
import grp
import os
import pwd
from contextlib import suppress
from functools import cache
from pathlib import Path

from mountsafe.errors import ExitCode, UserError

UIDS = range(61184, 65520)  # systemd's range for dynamic users: no package or administrator hands these out
LOCKS = Path("/run/mountsafe/uids")


@cache
def reserved() -> int:
    """Return this process's id, which it keeps until it ends. Root alone may ask. Raises UserError (FAILURE)."""
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    start = os.getpid()
    for step in range(len(UIDS)):
        uid = UIDS[(start + step) % len(UIDS)]
        # Processes are looked for when the lock is ours: its last holder can start no more of them.
        if not _has_account(uid) and _locked(LOCKS / str(uid)) and uid not in _running():
            return uid
    raise UserError(
        "no user id is left for another medium", "Unmount some: mountsafe list shows them.", ExitCode.FAILURE
    )


def _locked(path: Path) -> bool:
    """Whether the lock is ours now. Its descriptor stays open: nobody closes it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def _has_account(uid: int) -> bool:
    with suppress(KeyError):
        pwd.getpwuid(uid)
        return True
    with suppress(KeyError):
        grp.getgrgid(uid)
        return True
    return False


def _running() -> set[int]:
    """Return the ids of all processes."""
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            for line in status.read_bytes().splitlines():
                if line.startswith(b"Uid:"):
                    found.update(map(int, line.split()[1:]))
    return found
