"""Keeping a secret in one process: out of cores, other processes' sight and swap, and gone when it is used.

Python makes copies that nobody can find, so this is as far as it goes: what is read and what is handed on is locked and
overwritten, and the process ends soon after.
"""

import ctypes
import os
import resource

from mountsafe.encrypted.faults import Fault, KeyFault

PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
_PIECE = 1 << 16
_BEFORE = bytes.__basicsize__ - 1  # bytes of a bytes object before its contents (CPython)


def undumpable() -> None:
    """Have no core made of this process, and no other process of its user read its memory."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def lock(secret: bytes) -> None:
    """Keep a secret's pages out of swap, if that is allowed for as much."""
    if secret:
        ctypes.CDLL(None).mlock(ctypes.c_void_p(id(secret) + _BEFORE), ctypes.c_size_t(len(secret)))


def wipe(secret: bytes) -> None:
    """Overwrite a secret that nobody needs any more. Not for literals and single bytes, which Python shares."""
    if len(secret) > 1:
        ctypes.memset(id(secret) + _BEFORE, 0, len(secret))


def sealed(secret: bytes) -> int:
    """Return a descriptor of a secret, which is in no file, to be read from its begin."""
    fd = os.memfd_create("secret", os.MFD_CLOEXEC)
    os.write(fd, secret)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def taken(fd: int, limit: int, whole: bool = True) -> bytes:
    """Read a secret to its end, and close its descriptor.

    `whole`: one longer than `limit` is a KeyFault (SECRET_TOO_LONG); otherwise its begin is what counts.
    """
    pieces: list[bytes] = []
    length = 0
    try:
        while length <= limit and (piece := os.read(fd, min(_PIECE, limit + 1 - length))):
            pieces.append(piece)
            length += len(piece)
    finally:
        os.close(fd)
    secret = b"".join(pieces)
    if len(pieces) > 1:  # else it is the piece itself
        for piece in pieces:
            wipe(piece)
    lock(secret)
    if length > limit and whole:
        wipe(secret)
        raise KeyFault(Fault.SECRET_TOO_LONG)
    return secret[:limit]
