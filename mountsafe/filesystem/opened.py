"""A file system that a guest has mounted, opened without FUSE: what a mount serves, and all that another job needs."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from mountsafe import wire
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.index import Index
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.prefetch import prefetch
from mountsafe.filesystem.reader import Reader
from mountsafe.incidents import Incidents
from mountsafe.limits import INDEX_ENTRIES
from mountsafe.medium.block import Disk

CHUNK = 1 << 20  # bytes of a file that `content` reads at a time
MAX_LINKS = 40  # that one path may lead over, as the kernel has it


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What is known of it, and how the rest is learned. Everything is read-only; names and paths are bytes.

    All of it raises OSError (what the guest or the medium refuses) and MountsafeError (the virtual machine is lost).
    """

    agents: Agents
    index: Index
    reader: Reader
    statfs: wire.Statfs
    incidents: Incidents

    @classmethod
    async def open(
        cls,
        agents: Agents,
        disk: Callable[[], Disk],
        nursery: trio.Nursery,
        entries: int = INDEX_ENTRIES,
        release: Callable[[int, bytes], None] = lambda parent, name: None,
    ) -> "FileSystem":
        """Have the guest mount it. `entries` and `release` as in `Index`; tasks are in `nursery`.

        Raises GuestRefused if it is not to be mounted.
        """
        await agents.start()
        incidents = Incidents()
        index = Index(agents, incidents, nursery, entries, release)
        statfs = agents.unpack(wire.unpack_statfs, await agents.request(wire.Kind.STATFS))
        return cls(agents, index, Reader(agents, disk(), incidents, nursery, index.doubtful), statfs, incidents)

    async def begun(self) -> None:
        """Wait until the root's first entries are known: what every mount needs."""
        await self.index.listing(self.index.root).begun()

    async def node(self, path: bytes) -> Node:
        """Return what is at a path from the root; b"" is the root. No link is followed."""
        node = self.index.root
        for name in filter(None, path.split(b"/")):
            if not node.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            found = await self.index.child(node, name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = found
        return node

    @asynccontextmanager
    async def held(self, path: bytes, follow: bool) -> AsyncIterator[Node]:
        """Give what is at a path, which keeps its number meanwhile; links lead where they would if the root were "/".

        `follow`: the last part's too. ".." of the root is the root.
        """
        node, links = self.index.root, 0
        parts = path.split(b"/")[::-1]
        self.index.looked_up(node)
        try:
            while parts:
                name = parts.pop()
                if not node.is_folder:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                found = await self._next(node, name)
                if stat.S_ISLNK(found.mode) and (parts or follow):
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    parts += found.target.split(b"/")[::-1]
                    found = self.index.root if found.target.startswith(b"/") else node
                self.index.looked_up(found)  # nothing was awaited since it was found
                self.index.forget(node.ino, 1)
                node = found
            yield node
        finally:
            self.index.forget(node.ino, 1)

    async def _next(self, folder: Node, name: bytes) -> Node:
        if name in (b"", b"."):
            return folder
        if name == b"..":
            return folder.parent or folder
        found = await self.index.child(folder, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found

    async def names(self, path: bytes = b"") -> list[bytes]:
        """Return the names in a folder."""
        return list(await self.index.children(await self.node(path)))

    async def content(self, path: bytes) -> AsyncIterator[bytes]:
        """Yield the bytes of a file, `CHUNK` at a time."""
        node = await self.node(path)
        if not stat.S_ISREG(node.mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        await self.reader.open(node)
        for offset in range(0, node.size, CHUNK):
            yield bytes(await self.reader.read(node, offset, CHUNK))

    def doubt_all(self) -> None:
        """What is learned from now on may lie elsewhere than the guest says, until it has settled."""
        self.index.doubtful.all = True

    async def learn_ahead(self, limit: int) -> None:
        """Learn the tree while nobody asks for anything, `limit` entries at most."""
        await prefetch(self.agents, self.index, self.reader, limit)
