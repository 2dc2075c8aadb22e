"""The FUSE operations of a mount that can be changed, beside those of `filesystem.operations`.

Each is work of the journal's (`filesystem.work`). The kernel may keep what it knows here too, as nothing changes but
through it. Set-user-ID, set-group-ID and sticky bits are not shown, and not set either.
"""

import errno
import os
import stat
from functools import partial
from typing import Any

import pyfuse3

from mountsafe import wire
from mountsafe.changes import MAX_VALUE, NO_TIME, Act, Change, Flag
from mountsafe.filesystem.attributes import SHOWN_XATTRS
from mountsafe.filesystem.journal import Journal
from mountsafe.filesystem.mending import Mending
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.opened import FileSystem
from mountsafe.filesystem.operations import Operations, View, boundary, release, renewed, within
from mountsafe.filesystem.work import Work, error
from mountsafe.limits import CHANGE_DEADLINE, SYNC_DEADLINE

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # include/uapi/linux/fs.h
PERMISSIONS = 0o777
SOON = 1.0  # seconds that the kernel may keep what is only expected of a file
changing = within(lambda: CHANGE_DEADLINE)
syncing = within(lambda: CHANGE_DEADLINE + SYNC_DEADLINE)  # what was begun before is finished first


class ChangingOperations(Operations):
    """Serves one file system, and has it changed."""

    def __init__(self, opened: FileSystem, view: View, journal: Journal) -> None:
        super().__init__(opened, view)
        self._journal = journal
        self._work = Work(opened, journal)
        self._mending = Mending(opened.index, opened.reader, journal, release, renewed)
        self._folders: dict[int, Node] = {}  # by handle
        self._failures: dict[int, tuple[int, int]] = {}  # how many of the journal's and the file's each was told of
        self._losses_told = 0  # of the root

    def _mode(self, node: Node) -> int:
        mode = super()._mode(node)
        # The owner of the mount can make something on his own medium.
        return mode | 0o700 if node is self._index.root and self._view.uid is not None else mode

    def _told_of(self, node: Node) -> pyfuse3.EntryAttributes:
        self._index.looked_up(node)
        return self._attributes(node)

    def _made_attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        made = super()._made_attributes(node)
        if node in self._journal.unsure or not self._journal.is_confirmed(node):
            made.attr_timeout = SOON
        return made

    @changing
    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        """Attributes, as the guest tells them of what is changed."""
        node = self._index.node(inode)
        await self._journal.confirmed(node)
        if node in self._journal.unsure:
            await self._journal.run(partial(self._mending.renew, node))
        return self._attributes(node)

    # --- something new ---------------------------------------------------------------------------------------------
    async def _make(self, parent_inode: int, name: bytes, change: Change, ctx: Any) -> pyfuse3.EntryAttributes:
        folder = self._folder(parent_inode)
        change = change._replace(uid=ctx.uid, gid=ctx.gid)
        node = await self._journal.run(partial(self._work.make, folder, name, change))
        self._xattrs.drop(node.ino)
        return self._told_of(node)

    @changing
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a folder."""
        change = Change(Act.MKDIR, mode=stat.S_IFDIR | (mode & PERMISSIONS))
        return await self._make(parent_inode, name, change, ctx)

    @changing
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a file or a FIFO. A device would be one elsewhere."""
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFIFO):
            raise pyfuse3.FUSEError(errno.EPERM)
        change = Change(Act.MKNOD, mode=stat.S_IFMT(mode) | (mode & PERMISSIONS))
        return await self._make(parent_inode, name, change, ctx)

    @changing
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a symbolic link: as it was said, wherever that leads; where the kernel follows it is another matter."""
        if len(target) > wire.MAX_TARGET:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        return await self._make(parent_inode, name, Change(Act.SYMLINK, other=target), ctx)

    @changing
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Give a file another name."""
        node = self._index.node(inode)
        await self._journal.run(partial(self._work.link, node, self._folder(new_parent_inode), new_name))
        return self._told_of(node)

    @changing
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it; one that is there is opened."""
        bits, owner = stat.S_IFREG | (mode & PERMISSIONS), (ctx.uid, ctx.gid)
        folder = self._folder(parent_inode)
        node = await self._journal.run(partial(self._work.create, folder, name, bits, flags, owner))
        self._xattrs.drop(node.ino)
        return self._opened(node), self._told_of(node)

    # --- names -----------------------------------------------------------------------------------------------------
    @changing
    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove what is not a folder."""
        await self._journal.run(partial(self._work.remove, self._folder(parent_inode), name, Act.UNLINK))

    @changing
    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove an empty folder."""
        await self._journal.run(partial(self._work.remove, self._folder(parent_inode), name, Act.RMDIR))

    @changing
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        """Give something another name, or two each other's."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        old, new = (self._folder(parent_inode_old), name_old), (self._folder(parent_inode_new), name_new)
        how = not flags & RENAME_NOREPLACE, bool(flags & RENAME_EXCHANGE)
        await self._journal.run(partial(self._work.rename, old, new, *how))

    # --- attributes ------------------------------------------------------------------------------------------------
    @changing
    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Change mode, owner, times or size. Where all files are shown as the mount's owner's, only root gives away."""
        node = self._index.node(inode)
        change = self._wanted(node, attr, fields, ctx)
        if change.flags:
            await self._journal.run(partial(self._work.set, node, change))
        return self._attributes(node)

    def _wanted(self, node: Node, attr: pyfuse3.EntryAttributes, fields: Any, ctx: Any) -> Change:
        """Return what is to be set; nothing where it is so already."""
        flags, mode = 0, attr.st_mode & PERMISSIONS
        shown = self._attributes(node)
        uid = attr.st_uid if fields.update_uid else shown.st_uid
        gid = attr.st_gid if fields.update_gid else shown.st_gid
        if (uid, gid) != (shown.st_uid, shown.st_gid):
            if self._view.uid is not None and ctx.uid != 0:
                raise pyfuse3.FUSEError(errno.EPERM)
            flags |= Flag.SET_UID * (uid != shown.st_uid) | Flag.SET_GID * (gid != shown.st_gid)
        if fields.update_mode and mode != stat.S_IMODE(node.mode):
            flags |= Flag.SET_MODE
        if fields.update_size:
            if not stat.S_ISREG(node.mode):
                raise pyfuse3.FUSEError(errno.EISDIR if node.is_folder else errno.EINVAL)
            flags |= Flag.SET_SIZE
        flags |= Flag.SET_ATIME * fields.update_atime | Flag.SET_MTIME * fields.update_mtime
        return Change(
            Act.SETATTR,
            flags=flags,
            mode=mode,
            uid=uid,
            gid=gid,
            size=attr.st_size if fields.update_size else 0,
            atime=attr.st_atime_ns if fields.update_atime else NO_TIME,
            mtime=attr.st_mtime_ns if fields.update_mtime else NO_TIME,
        )

    # --- files -----------------------------------------------------------------------------------------------------
    def _opened(self, node: Node) -> pyfuse3.FileInfo:
        handle = next(self._numbers)
        self._handles[handle] = node
        self._failures[handle] = self._journal.failures, node.failures
        node.opens += 1
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    def _closed(self, fh: int) -> Node | None:
        self._failures.pop(fh, None)
        node = self._handles.pop(fh, None)
        if node is not None:
            node.opens -= 1
        return node

    @changing
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open. That something may be written changes nothing yet."""
        node = self._index.node(inode)
        if node.mode == 0:
            raise error(errno.EIO)
        if node.gone and not node.handle:
            raise error(errno.ESTALE)  # the kernel looks again
        info = self._opened(node)
        try:
            if flags & os.O_TRUNC and node.size:
                await self._journal.run(partial(self._work.set, node, Change(Act.SETATTR, flags=Flag.SET_SIZE)))
            await self._reader.open(node)
        except BaseException:
            self._closed(info.fh)
            raise
        return info

    @changing
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of it."""
        await self._journal.run(partial(self._work.write, self._handles[fh], off, buf))
        return len(buf)

    def _report(self, fh: int) -> None:
        """Raise OSError if something was lost that this handle was not told of yet."""
        node = self._handles[fh]
        of_all, of_one = self._failures[fh]
        self._failures[fh] = self._journal.failures, node.failures
        if of_one < node.failures:
            raise error(node.failed)
        if of_all < self._journal.failures:
            raise error(errno.EIO)

    @boundary
    async def flush(self, fh: int) -> None:
        """Somebody closes it: say what went wrong. That the disk has it is said by fsync alone."""
        self._report(fh)

    @syncing
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Return when the disk has it."""
        await self._journal.sync()
        self._report(fh)

    @changing
    async def release(self, fh: int) -> None:
        """Close."""
        node = self._closed(fh)
        if node is not None and node.handle and not node.opens:
            await self._journal.run(partial(self._journal.close, node))

    # --- folders ---------------------------------------------------------------------------------------------------
    @changing
    async def opendir(self, inode: int, ctx: object) -> int:
        """Hold the folder's listing, and keep it the one that is changed."""
        handle: int = await super().opendir(inode, ctx)
        self._folders[handle] = self._index.node(inode)
        self._index.pin(self._folders[handle])
        return handle

    @changing
    async def releasedir(self, fh: int) -> None:
        """Let the listing go."""
        await super().releasedir(fh)
        if (folder := self._folders.pop(fh, None)) is not None:
            self._index.unpin(folder)

    @syncing
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Return when the disk has everything that was changed, in whichever folder. The root tells what was lost."""
        await self._journal.sync()
        if self._folders.get(fh) is self._index.root and self._losses_told < self._journal.losses:
            self._losses_told = self._journal.losses
            raise error(errno.EIO)

    # --- the rest --------------------------------------------------------------------------------------------------
    @changing
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        """Set an extended attribute."""
        if len(value) > MAX_VALUE:
            raise pyfuse3.FUSEError(errno.E2BIG)
        await self._set_xattr(inode, Change(Act.SETXATTR, other=name, value=value))

    @changing
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        """Remove one."""
        await self._set_xattr(inode, Change(Act.REMOVEXATTR, other=name))

    async def _set_xattr(self, inode: int, change: Change) -> None:
        if not change.other.startswith(SHOWN_XATTRS):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        await self._journal.run(partial(self._work.set_xattr, self._index.node(inode), change))
        self._xattrs.drop(inode)

    @changing
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """Figures of the file system: as it says now, while it is changed."""
        if (told := await self._journal.statfs()) is not None:
            self._statfs = told
        return await super().statfs(ctx)
