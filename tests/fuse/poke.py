"""Use a mount in every way, at random, and tell how: `python3 poke.py FOLDER SEED SECONDS`.

Prints JSON: how many calls there were, how long the slowest took, how many ended with which error, and how many entries
of folders the kernel may have been told of.
"""

import errno
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

KEPT = 300  # paths that are remembered
PIECE = 256 << 10
LISTED = 1_000  # entries that the kernel asks for at once, for the C library's buffer of 32 KiB


class Poking:
    """One program that uses a mount."""

    def __init__(self, top: bytes, seed: int) -> None:
        self._random = random.Random(seed)
        self._paths = [top]
        self.calls = 0
        self.slowest = 0.0
        self.told = 0
        self.errors: Counter[str] = Counter()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a system call and take its time; None if it fails."""
        began = time.monotonic()
        try:
            return function(*arguments)
        except OSError as error:
            self.errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
            return None
        finally:
            self.calls += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def once(self) -> None:
        """Do one thing."""
        path = self._random.choice(self._paths)
        self._random.choice([self.look, self.look, self.read, self.ask, self.miss])(path)

    def look(self, path: bytes) -> None:
        """List a folder, a few entries of it, and look at them."""
        found = self._call(os.scandir, path)
        if found is None:
            return
        told = LISTED
        with found:
            for number in range(self._random.randrange(1, 300)):
                entry = self._call(next, found, None)
                if entry is None:
                    told = number
                    break
                self._paths.append(entry.path)
        self.told += told
        for _ in range(3):
            self._call(os.lstat, self._random.choice(self._paths))
        if len(self._paths) > KEPT:
            self._paths[1:] = self._random.sample(self._paths[1:], KEPT // 2)

    def read(self, path: bytes) -> None:
        """Open, read here and there, close."""
        fd = self._call(os.open, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        if fd is None:
            return
        size = min(os.fstat(fd).st_size, 1 << 62)
        for offset in (0, PIECE, self._random.randrange(size + 1), max(0, size - 10)):
            self._call(os.pread, fd, PIECE, offset)
        self._call(os.close, fd)

    def ask(self, path: bytes) -> None:
        """What else there is to know."""
        self._call(os.readlink, path)
        self._call(lambda: os.listxattr(path, follow_symlinks=False))
        self._call(lambda: os.getxattr(path, b"user.comment", follow_symlinks=False))
        self._call(os.statvfs, self._paths[0])

    def miss(self, path: bytes) -> None:
        """Look for what is not there."""
        self._call(os.lstat, path + b"/not there %d" % self._random.getrandbits(30))


if __name__ == "__main__":
    poking = Poking(os.fsencode(sys.argv[1]), int(sys.argv[2]))
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        poking.once()
    found = {"calls": poking.calls, "slowest": poking.slowest, "told": poking.told, "errors": poking.errors}
    json.dump(found, sys.stdout)
