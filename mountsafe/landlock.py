"""Landlock: a process gives up every path for good, where its kernel has that (Linux 5.13 and later).

bubblewrap leaves a box the files of /usr, to start from. Who has started needs none of them any more: in a domain
without a single rule no file can be opened, made, run or renamed, and what is open stays so. Source: landlock(7).
"""

import ctypes
import os
import struct

CREATE_RULESET, RESTRICT_SELF = 444, 446  # asm-generic/unistd.h: the same on every architecture
VERSION = 1  # flag: only ask which version of the interface there is

# Of include/uapi/linux/landlock.h: how many kinds of access a version knows.
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # execute to ioctl on devices
_NET = 2  # since version 4: bind and connect, TCP
_SCOPES = 2  # since version 6: abstract sockets and signals to processes outside


def version() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none, or it is switched off."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, 0, VERSION)))


def enclose() -> int:
    """Give up all paths, from this thread and those that it starts; return the version in force, 0 if there is none.

    The process must have no new privileges (prctl(2)), as in every box.
    """
    known = version()
    if not known:
        return 0
    files = (1 << _FILES[min(known, max(_FILES))]) - 1
    attributes = struct.pack("=Q", files)
    if known >= 4:
        attributes += struct.pack("=Q", (1 << _NET) - 1)
    if known >= 6:
        attributes += struct.pack("=Q", (1 << _SCOPES) - 1)
    libc = _libc()
    ruleset = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return 0
    try:
        done = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)
    return known if done else 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
