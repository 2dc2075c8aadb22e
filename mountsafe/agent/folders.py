"""Open folders, by their paths from the root: every part of a path is a folder, and none is a link."""

import errno
import os
from collections import OrderedDict

from mountsafe.agent.programs import Refused

MOST = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_A_NAME = (b"", b".", b"..")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return (path of the folder, name in it). Raises Refused if it is no name, as that of the root is none."""
    folder, _, name = path.rpartition(b"/")
    if name in _NOT_A_NAME:
        raise Refused(errno.EINVAL, "not a name in a folder")
    return folder, name


class Folders:
    """Who changes the tree of folders says so: what was found under a path may be elsewhere then."""

    def __init__(self, root: int) -> None:
        """`root` stays the caller's."""
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def at(self, path: bytes) -> int:
        """Return a folder's descriptor, good until the next call of a method. Raises OSError, Refused."""
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        above, parts = path, []
        while above and above not in self._open:
            above, _, part = above.rpartition(b"/")
            if part in _NOT_A_NAME:
                raise Refused(errno.EINVAL, "not a path")
            parts.append(part)
        at = os.dup(self._open[above] if above else self._root)
        for part in reversed(parts):
            try:
                following = os.open(part, _FOLDER, dir_fd=at)
            finally:
                os.close(at)
            at = following
        self._open[path] = at
        if len(self._open) > MOST:
            os.close(self._open.popitem(last=False)[1])
        return at

    def forget(self) -> None:
        """Let go of all: paths lead elsewhere now."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
