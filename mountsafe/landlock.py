"""Landlock: a process gives up paths for good, where its kernel has that (Linux 5.13 and later).

bubblewrap leaves a box the files of /usr, to start from. A process that has started needs none of them any more: in a
domain without a single rule no file can be opened, made, run or renamed, and what is open stays open. Processes that
still start programs (libguestfs, QEMU) keep the right to read, and give up writing anywhere but in a few places. A
descriptor's own file counts as well: /proc/self/fd/N leads to a path that no rule allows, however the descriptor was
opened. Source: landlock(7).
"""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # asm-generic/unistd.h: the same on every architecture
VERSION = 1  # flag: only ask which version of the interface there is
PATH_BENEATH = 1  # the kind of a rule

# Of include/uapi/linux/landlock.h: how many kinds of access a version knows.
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # execute to ioctl on devices
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
_NET = 2  # since version 4: bind and connect, TCP
_SCOPES = 2  # since version 6: abstract sockets and signals to processes outside


def version() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none, or it is switched off."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, 0, VERSION)))


def enclose() -> int:
    """Give up all paths, from this thread and those that it starts; return the version in force, 0 if there is none.

    The process must have no new privileges (prctl(2)), as in every box. Raises OSError if the kernel has Landlock and
    does not put it in force: who opened the medium counts on it.
    """
    known = version()
    return _restrict(known, _all_files(known), ()) if known else 0


def write_only_in(folders: Sequence[str], devices: Sequence[str] = ()) -> int:
    """Give up every change to files outside `folders`, as `enclose` gives up all; reading and running stay.

    `devices`: files and folders in which what is there may be written to, and nothing made.
    """
    known = version()
    if not known:
        return 0
    changes = _all_files(known) & ~(_EXECUTE | _READ_FILE | _READ_DIR | _IOCTL_DEV)
    existing = changes & (_WRITE_FILE | _TRUNCATE)
    return _restrict(known, changes, [*((path, changes) for path in folders), *((path, existing) for path in devices)])


def _all_files(known: int) -> int:
    return int((1 << _FILES[min(known, max(_FILES))]) - 1)


def _restrict(known: int, files: int, rules: Sequence[tuple[str, int]]) -> int:
    """Give up the kinds of access in `files` but for what the rules (path, kinds) leave; return the version."""
    attributes = struct.pack("=Q", files)
    if known >= 4:
        attributes += struct.pack("=Q", (1 << _NET) - 1)
    if known >= 6:
        attributes += struct.pack("=Q", (1 << _SCOPES) - 1)
    libc = _libc()
    ruleset = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        raise _failed()
    try:
        for path, kinds in rules:
            _allow(ruleset, path, kinds)
        if libc.syscall(RESTRICT_SELF, ruleset, 0) != 0:
            raise _failed()
    finally:
        os.close(ruleset)
    return known


def _allow(ruleset: int, path: str, kinds: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            kinds &= _WRITE_FILE | _TRUNCATE  # a file has no others
        rule = struct.pack("=Qi", kinds, place)
        if _libc().syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0) != 0:
            raise _failed(path)
    finally:
        os.close(place)


def _failed(path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"Landlock: {os.strerror(number)}", path)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
