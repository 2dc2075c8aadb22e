"""Walk a mount that may hold anything, and read what is there, within bounds. Prints JSON; standard library only.

    python3 walk.py DIR

It is copied to where whoever walks can read it, and run as the one who has mounted: others do not see his mount.
"""

import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

ENTRIES = 400  # of the tree, breadth first
IN_A_FOLDER = 350
FILES = 40  # whose bytes are read
FILE_BYTES = 1 << 20  # from a file's beginning
TAIL = 64 << 10  # and before the end that it claims
SECONDS = 60.0  # after which nothing new is begun
XATTRS = 16


@dataclass
class Walked:
    """What was seen. `faults`: errors by name. `longest`: the slowest single call, in seconds. `wrong`: what no mount
    may show.
    """

    entries: int = 0
    files: int = 0
    bytes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    cut: bool = False


class Walk:
    """One walk."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.walked = Walked()
        self._end = time.monotonic() + seconds

    def _try(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Make one call; note how long it took and how it failed."""
        began = time.monotonic()
        try:
            return function(*arguments)
        except (OSError, ValueError) as error:
            self.walked.faults[os.strerror(getattr(error, "errno", None) or 0) or repr(error)] += 1
            return None
        finally:
            self.walked.longest = max(self.walked.longest, time.monotonic() - began)

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def run(self, top: bytes) -> Walked:
        """Walk below `top`."""
        self._try(os.statvfs, top)
        todo = [top]
        while todo:
            folder = todo.pop(0)
            for name in self._try(self._names, folder) or ():
                if self.walked.entries == ENTRIES or self._late():
                    self.walked.cut = True
                    return self.walked
                self.walked.entries += 1
                path = os.path.join(folder, name)
                if self._look(path):
                    todo.append(path)
        return self.walked

    @staticmethod
    def _names(folder: bytes) -> list[bytes]:
        with os.scandir(folder) as found:
            return [entry.name for entry in islice(found, IN_A_FOLDER)]

    def _look(self, path: bytes) -> bool:
        """Look at one path; say whether it is a folder."""
        st = self._try(os.lstat, path)
        if st is None:
            return False
        if st.st_mode & 0o7000 or st.st_rdev or st.st_size < 0:
            self.walked.wrong.append(f"{path!r}: mode {st.st_mode:o}, device {st.st_rdev}, {st.st_size} bytes")
        if stat.S_ISLNK(st.st_mode):
            self._try(os.readlink, path)
        elif stat.S_ISREG(st.st_mode) and self.walked.files < FILES:
            self.walked.files += 1
            self._read(path, st.st_size)
        return stat.S_ISDIR(st.st_mode)

    def _read(self, path: bytes, size: int) -> None:
        fd = self._try(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if fd is None:
            return
        try:
            for name in (self._try(os.listxattr, path) or [])[:XATTRS]:
                self._try(os.getxattr, path, name)
            for offset in self._offsets(size):
                data = self._try(os.pread, fd, TAIL, offset)
                if not data or self._late():
                    break
                self.walked.bytes += len(data)
        finally:
            os.close(fd)

    @staticmethod
    def _offsets(size: int) -> Iterator[int]:
        yield from range(0, min(size, FILE_BYTES), TAIL)
        if size > FILE_BYTES:
            yield min(size, (1 << 63) - 1) - TAIL


def walk(top: str | os.PathLike[str]) -> dict[str, Any]:
    """Walk a folder; return `Walked` as JSON has it."""
    return vars(Walk().run(os.fsencode(top)))


if __name__ == "__main__":
    json.dump(walk(sys.argv[1]), sys.stdout)
