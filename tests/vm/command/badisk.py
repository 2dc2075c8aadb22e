"""A disk with bad sectors: `python3 badisk.py IMAGE FOLDER START END` shows IMAGE as FOLDER/medium.img.

Bytes from START to END cannot be read, by whomever: EIO, as a kernel gives it. A FUSE mount, because device-mapper,
which has a target for that, is not in every kernel.
"""

import errno
import os
import sys

import pyfuse3
import trio

FILE = pyfuse3.ROOT_INODE + 1


class Disk(pyfuse3.Operations):
    """One file."""

    def __init__(self, image: str, start: int, end: int) -> None:
        super().__init__()
        self._fd = os.open(image, os.O_RDONLY)
        self._bad = (start, end)

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Readable by all."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = 0o100444 if inode == FILE else 0o40555
        attributes.st_size = os.fstat(self._fd).st_size if inode == FILE else 0
        return attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        """The only name."""
        if name != b"medium.img":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        """Past the page cache: a page that is there cannot be bad."""
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Or not."""
        start, end = self._bad
        if off < end and off + size > start:
            raise pyfuse3.FUSEError(errno.EIO)
        return os.pread(self._fd, size, off)


if __name__ == "__main__":
    image, folder, start, end = sys.argv[1:]
    pyfuse3.init(Disk(image, int(start), int(end)), folder, {"fsname=badisk", "allow_other", "default_permissions"})
    trio.run(pyfuse3.main)
