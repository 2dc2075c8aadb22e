"""The FUSE operations of a read-only mount; `filesystem.changing` has those that change it.

A handler that raises anything but FUSEError ends the whole mount, so `boundary` turns every failure into an errno.
"""

import errno
import functools
import itertools
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pyfuse3
import trio

from mountsafe import wire
from mountsafe.filesystem.attributes import SHOWN_XATTRS, KnownXattrs
from mountsafe.filesystem.failures import errno_of
from mountsafe.filesystem.links import contained
from mountsafe.filesystem.nodes import Listing, Node
from mountsafe.filesystem.opened import FileSystem
from mountsafe.limits import CALL_DEADLINE

log = logging.getLogger(__name__)
T = TypeVar("T")

FOREVER = 86400.0  # seconds that the kernel may keep names and attributes: nothing changes on a read-only medium
WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class View:
    """How the tree is shown. `uid` and `gid` None: as the medium says. `guard_links`: escaping links are defused."""

    uid: int | None
    gid: int | None
    guard_links: bool


Handler = Callable[..., Awaitable[T]]


def within(deadline: Callable[[], float]) -> Callable[[Handler[T]], Handler[T]]:
    """Turn every failure of a handler into a FUSEError, and one that lasts; a bug is logged with its traceback."""

    def bounded(handler: Handler[T]) -> Handler[T]:
        @functools.wraps(handler)
        async def guarded(*args: Any) -> T:
            seconds = deadline()
            try:
                with trio.fail_after(seconds):
                    return await handler(*args)
            except trio.TooSlowError as error:
                log.warning("%s took longer than %.0f s", handler.__name__, seconds)
                raise pyfuse3.FUSEError(errno.ETIMEDOUT) from error
            except pyfuse3.FUSEError:
                raise
            except Exception as error:
                raise pyfuse3.FUSEError(errno_of(error, handler.__name__)) from error

        return guarded

    return bounded


boundary = within(lambda: CALL_DEADLINE)


class Operations(pyfuse3.Operations):
    """Serves one file system."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, opened: FileSystem, view: View) -> None:
        super().__init__()
        self._index = opened.index
        self._reader = opened.reader
        self._agents = opened.agents
        self._statfs = opened.statfs
        self._view = view
        self._handles: dict[int, Node] = {}
        self._listings: dict[int, tuple[Listing, list[tuple[bytes, Node]]]] = {}
        self._numbers = itertools.count(1)
        self._xattrs = KnownXattrs(opened.agents)

    # --- attributes ------------------------------------------------------------------------------------------------
    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        if node.shown is None:
            node.shown = self._made_attributes(node)
        return node.shown

    def _made_attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        view = self._view
        a = pyfuse3.EntryAttributes()
        a.st_ino = node.ino
        a.st_mode = self._mode(node)
        a.st_nlink = node.nlink
        a.st_uid = node.uid if view.uid is None else view.uid
        a.st_gid = node.gid if view.gid is None else view.gid
        a.st_rdev = 0  # a device node copied from here must not be a device
        a.st_size = node.size
        a.st_blocks = node.blocks
        a.st_blksize = 4096
        a.st_atime_ns = node.atime
        a.st_mtime_ns = node.mtime
        a.st_ctime_ns = node.ctime
        a.entry_timeout = FOREVER
        a.attr_timeout = FOREVER
        return a

    def _mode(self, node: Node) -> int:
        if node.mode == 0:  # the guest could not look at it: a name without content
            return stat.S_IFREG
        mode = node.mode & ~(stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
        if self._view.uid is None:
            return mode
        # The owner of the mount may read everything on their own medium.
        return mode | (0o500 if node.is_folder else 0o400)

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Find a name in a folder; what is not there is remembered by the kernel as well."""
        node = await self._index.child(self._folder(parent_inode), name)
        if node is None:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = FOREVER
            return missing
        self._index.looked_up(node)
        return self._attributes(node)

    def _folder(self, inode: int) -> Node:
        node = self._index.node(inode)
        if not node.is_folder:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return node

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        """The kernel dropped what it held; must not fail."""
        for inode, count in inode_list:
            self._index.forget(inode, count)

    @boundary
    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Attributes of what the kernel holds."""
        return self._attributes(self._index.node(inode))

    @boundary
    async def readlink(self, inode: int, ctx: object) -> bytes:
        """A link's target: unchanged where the kernel follows no link of this mount, else without a way out."""
        node = self._index.node(inode)
        return contained(node.target, node.depth) if self._view.guard_links else node.target

    # --- folders ---------------------------------------------------------------------------------------------------
    @boundary
    async def opendir(self, inode: int, ctx: object) -> int:
        """Hold the folder's listing, so that it stays whole whatever is forgotten meanwhile."""
        listing = self._index.listing(self._folder(inode))
        await listing.begun()
        handle = next(self._numbers)
        self._listings[handle] = (listing, listing.order)
        return handle

    @boundary
    async def readdir(self, fh: int, start_id: int, token: object) -> None:
        """Reply with entries and their attributes until the kernel's buffer is full."""
        listing, order = self._listings[fh]
        if listing.complete:
            self._agents.defer()
        await listing.wait_for(lambda: listing.complete or len(order) > start_id)
        for position in range(start_id, len(order)):
            name, node = order[position]
            if not listing.stands(name, node):
                continue
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), position + 1):
                return
            self._index.looked_up(node)

    @boundary
    async def releasedir(self, fh: int) -> None:
        """Let the listing go."""
        self._listings.pop(fh, None)

    # --- files -----------------------------------------------------------------------------------------------------
    @boundary
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        """Open for reading; the kernel keeps what it has read."""
        if flags & WRITING:
            raise pyfuse3.FUSEError(errno.EROFS)
        node = self._index.node(inode)
        if node.mode == 0:
            raise pyfuse3.FUSEError(errno.EIO)
        await self._reader.open(node)
        handle = next(self._numbers)
        self._handles[handle] = node
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @boundary
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        """Read from an open file."""
        return await self._reader.read(self._handles[fh], off, size)

    @boundary
    async def release(self, fh: int) -> None:
        """Close."""
        self._handles.pop(fh, None)

    # --- the rest --------------------------------------------------------------------------------------------------
    @boundary
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """Figures of the medium's file system, as learned when it was mounted."""
        told = self._statfs
        figures = pyfuse3.StatvfsData()
        figures.f_bsize, figures.f_frsize = told.bsize, told.frsize
        figures.f_blocks, figures.f_bfree, figures.f_bavail = told.blocks, told.bfree, told.bavail
        figures.f_files, figures.f_ffree, figures.f_favail = told.files, told.ffree, told.ffree
        figures.f_namemax = min(told.namemax, wire.MAX_NAME) or wire.MAX_NAME
        return figures

    @boundary
    async def listxattr(self, inode: int, ctx: object) -> list[bytes]:
        """Names of the extended attributes that are shown."""
        return list(await self._xattrs.of(self._index.node(inode)))

    @boundary
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        """The value of one. Most calls ask for an ACL or a label: told that there is no such thing, ls(1) asks once."""
        if not name.startswith(SHOWN_XATTRS):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        value = (await self._xattrs.of(self._index.node(inode))).get(name)
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value


def release(parent_inode: int, name: bytes) -> None:
    """Let the kernel forget a name, and with it a file that nobody has open. Returns at once."""
    pyfuse3.invalidate_entry_async(parent_inode, name, ignore_enoent=True)


def renewed(inode: int) -> None:
    """Let the kernel forget what it keeps of a file's bytes and attributes. Returns at once."""
    trio.lowlevel.spawn_system_task(_renewed, inode)


async def _renewed(inode: int) -> None:
    with suppress(OSError):  # it holds it no more
        await trio.to_thread.run_sync(pyfuse3.invalidate_inode, inode)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log is one: not that an answer came when nobody waited any more (fuse(4): ENOENT)."""
    return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


async def serve(operations: Operations, fd: int, started: Callable[[], Awaitable[None]]) -> None:
    """Serve the /dev/fuse descriptor `fd` until it is unmounted. `started` is called when requests can come."""
    logging.getLogger("pyfuse3").addFilter(is_news)
    pyfuse3.init(operations, f"/dev/fd/{fd}", {"fsname=mountsafe"})
    await started()
    await pyfuse3.main()
