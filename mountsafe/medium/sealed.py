"""A descriptor that stays read-only, even if its file is reopened.

Opening a file for reading confines nobody: opening /proc/self/fd/N again asks only for what the file's mode says, and
its owner may change that, its times and attributes through any descriptor. A descriptor from a read-only mount allows
none of it (EROFS), so images are opened once more through a private read-only mount of that single file, which nobody
sees and which lasts as long as the descriptor. Source: open_tree(2), mount_setattr(2) of Linux 5.12. Nodes of block
devices are not files of their file system: for them the mount's flag does not matter.
"""

import ctypes
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

OPEN_TREE, MOUNT_SETATTR = 428, 442  # asm-generic/unistd.h: the same on every architecture
# include/uapi/linux/fcntl.h, mount.h and sched.h
AT_FDCWD, AT_EMPTY_PATH, OPEN_TREE_CLONE, MOUNT_ATTR_RDONLY = -100, 0x1000, 1, 1
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def sealed(fd: int, path: Path) -> int | None:
    """Return a descriptor of the file behind `fd` that is read-only for good; None if it cannot be had here.

    `path` leads to the same file: who may not mount goes there in a namespace of their own.
    """
    made = _through_mount(fd, b"")
    if made is None:
        made = _from_own_namespace(path)
    if made is not None and not os.path.samestat(os.fstat(made), os.fstat(fd)):
        os.close(made)  # the path leads elsewhere by now
        return None
    return made


def can_seal() -> bool:
    """Whether this kernel, and who calls, can have such descriptors: tried with a file that everybody may read."""
    path = Path(__file__)
    with path.open("rb") as file:
        made = sealed(file.fileno(), path)
    if made is None:
        return False
    os.close(made)
    return True


def _through_mount(fd: int, path: bytes) -> int | None:
    """Open a file through a read-only mount of it; None if this process may not mount, or the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    tree = libc.syscall(OPEN_TREE, fd, path, OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC)
    if tree < 0:
        return None
    try:
        attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
        if libc.syscall(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes)) != 0:
            return None
        return os.open(f"/proc/self/fd/{tree}", FLAGS)
    except OSError:
        return None
    finally:
        os.close(tree)


def _from_own_namespace(path: Path) -> int | None:
    """Have a child open a file where it is root of a user namespace, as bubblewrap's children are."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
                made = _through_mount(AT_FDCWD, os.fsencode(path))
                if made is not None:
                    socket.send_fds(theirs, [b"."], [made])
        finally:
            os._exit(0)
    theirs.close()
    try:
        with ours, suppress(OSError):
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            for made in fds:
                os.set_inheritable(made, False)
                return made
        return None
    finally:
        os.waitpid(pid, 0)
