"""Changes of a tree, each in one piece: what is known is looked at, the guest makes the change, and it is known.

All of it is called in what `Journal.run` runs, one at a time. It raises OSError, what the guest or we say no to, and
MountsafeError: then a change may be on the medium or not.
"""

import errno
import os
import stat
from collections.abc import Sequence
from functools import partial

from mountsafe import wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem.changelog import Subjects
from mountsafe.filesystem.edits import Edits, require_fitting
from mountsafe.filesystem.index import UNSTABLE_INODES
from mountsafe.filesystem.journal import Journal
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.opened import FileSystem

# Types to which "A" and "a" are one name, and that make another name of one which ends like this.
CASELESS = frozenset({b"vfat", b"msdos", b"exfat"})
CUT_OFF = (b".", b" ")
Place = tuple[Node, bytes]  # a folder, and a name in it


def error(number: int) -> OSError:
    """Return the error of an errno."""
    return OSError(number, os.strerror(number))


class Work:
    """Changes one tree."""

    def __init__(self, opened: FileSystem, journal: Journal) -> None:
        self._index = opened.index
        self._reader = opened.reader
        self._journal = journal
        self._edits = Edits(opened.index)
        fstype = opened.agents.mounted.fstype
        self._caseless = fstype in CASELESS
        self._stable = fstype not in UNSTABLE_INODES
        self._longest = min(opened.statfs.namemax or wire.MAX_NAME, wire.MAX_NAME)

    # --- what is there, and where ----------------------------------------------------------------------------------
    @staticmethod
    def at(place: Place) -> Node | None:
        """Return what is there, in a folder that is learned to its end."""
        folder, name = place
        assert folder.listing is not None
        return folder.listing.names.get(name)

    def _there(self, place: Place) -> Node:
        node = self.at(place)
        if node is None:
            raise error(errno.ENOENT)
        return node

    def _path(self, folder: Node, name: bytes) -> bytes:
        above = folder.path()
        path = above + b"/" + name if above else name
        if len(name) > self._longest or len(path) > wire.MAX_PATH:
            raise error(errno.ENAMETOOLONG)
        if self._caseless and name.endswith(CUT_OFF):
            raise error(errno.EINVAL)
        return path

    def _told(self, untrusted: Sequence[wire.Entry], kind: int, name: bytes | None, *folders: Node) -> wire.Entry:
        """Return what an answer says of what was changed, all of it checked, and let the folders have what it says."""
        if not 1 <= len(untrusted) <= 1 + len(folders):
            raise wire.WireError(f"{len(untrusted)} entries of one change")
        entry = require_fitting(untrusted[0], kind, name)
        pairs = zip(folders, untrusted[1:], strict=False)
        told = [(folder, require_fitting(each, stat.S_IFDIR, folder.name)) for folder, each in pairs]
        for folder, checked in told:
            folder.renew(checked)
        return entry

    def _told_by_path(self, untrusted: Sequence[wire.Entry], node: Node) -> wire.Entry:
        """The same of attributes that were set by a path: it tells of the folder too, but for the root's."""
        folders = [] if node.parent is None else [node.parent]
        return self._told(untrusted, stat.S_IFMT(node.mode), node.name, *folders)

    async def _keep_open(self, node: Node) -> None:
        """A file is about to lose a name: have the guest hold it, if somebody has it open and it has no other."""
        if node.opens and not node.others:
            await self._journal.open(node)

    # --- something new ---------------------------------------------------------------------------------------------
    async def make(self, folder: Node, name: bytes, change: Change) -> Node:
        """Make something; `change` but for its path. Who may say who gets it, if the folder does not."""
        async with self._index.whole(folder):
            if self.at((folder, name)) is not None:
                raise error(errno.EEXIST)
            gid = folder.gid if folder.mode & stat.S_ISGID else change.gid
            change = change._replace(path=self._path(folder, name), gid=gid)
            kind = stat.S_IFLNK if change.act == Act.SYMLINK else stat.S_IFMT(change.mode)

            def apply(untrusted: list[wire.Entry]) -> Node:
                made = self._edits.add(folder, self._told(untrusted, kind, name, folder))
                if change.handle:
                    self._journal.opened(change.handle, made)
                self._reader.changing(made)
                return made

            return await self._journal.do(change, apply)

    async def create(self, folder: Node, name: bytes, mode: int, flags: int, owner: tuple[int, int]) -> Node:
        """Make a file and open it in the guest; one that is there is returned, as open(2) has it."""
        async with self._index.whole(folder):
            known = self.at((folder, name))
        if known is None:
            handle = self._journal.new_handle()
            change = Change(Act.CREATE, handle=handle, flags=Flag.EXCLUSIVE, mode=mode, uid=owner[0], gid=owner[1])
            return await self.make(folder, name, change)
        if flags & os.O_EXCL or not stat.S_ISREG(known.mode):
            raise error(errno.EEXIST)
        if flags & os.O_TRUNC:
            await self.set(known, Change(Act.SETATTR, flags=Flag.SET_SIZE))
        return known

    async def link(self, node: Node, folder: Node, name: bytes) -> None:
        """Give a file another name."""
        async with self._index.whole(folder):
            if self.at((folder, name)) is not None:
                raise error(errno.EEXIST)

            def apply(untrusted: list[wire.Entry]) -> None:
                node.renew(self._told(untrusted, stat.S_IFMT(node.mode), name, folder))
                self._edits.link(node, folder, name)

            await self._journal.do(Change(Act.LINK, self._path(folder, name), node.path()), apply, Subjects.of(node))

    # --- names -----------------------------------------------------------------------------------------------------
    async def remove(self, folder: Node, name: bytes, act: int) -> None:
        """Remove an empty folder (RMDIR), or what is none (UNLINK)."""
        async with self._index.whole(folder):
            node = self._there((folder, name))
            if node.is_folder != (act == Act.RMDIR):
                raise error(errno.EISDIR if node.is_folder else errno.ENOTDIR)
            await self._keep_open(node)
            self._reader.changing(node)

            def apply(untrusted: list[wire.Entry]) -> None:
                left = self._told(untrusted, 0, None, folder)
                if left.mode and (node.nlink < 2 or stat.S_IFMT(left.mode) != stat.S_IFMT(node.mode)):
                    raise wire.WireError("what was removed is still there")
                self._edits.remove(folder, name)
                if left.mode:  # by its other names
                    node.renew(left)

            await self._journal.do(Change(act, self._path(folder, name)), apply, Subjects.of(node))

    async def rename(self, old: Place, new: Place, replace: bool, exchange: bool) -> None:
        """Give something another name; what has that one is replaced, or gets the old one (`exchange`)."""
        async with self._index.whole(old[0], new[0]):
            node, target = self._there(old), self.at(new)
            if target is node:
                return
            if target is not None and not replace:
                raise error(errno.EEXIST)
            change = Change(Act.RENAME, self._path(*old), self._path(*new))
            change = change._replace(flags=self._rename_flags(change, target, exchange))
            if target is not None and not exchange:
                await self._keep_open(target)
                self._reader.changing(target)
            edit = self._edits.exchange if exchange else self._edits.move

            def apply(untrusted: list[wire.Entry]) -> None:
                entry = self._told(untrusted, stat.S_IFMT(node.mode), new[1], new[0], old[0])
                edit(old, new)
                node.renew(entry)

            await self._journal.do(change, apply, Subjects.of(node, target))

    def _rename_flags(self, change: Change, target: Node | None, exchange: bool) -> int:
        if exchange:
            if not self._stable:  # after a virtual machine's death nobody could say whether it was done
                raise error(errno.EINVAL)
            if target is None:
                raise error(errno.ENOENT)
            return Flag.EXCHANGE
        # What is there by a name that only looks otherwise is not to be replaced unawares.
        unawares = target is None and self._caseless and change.path.lower() != change.other.lower()
        return Flag.NOREPLACE if unawares else 0

    # --- attributes and bytes --------------------------------------------------------------------------------------
    async def set(self, node: Node, change: Change) -> None:
        """Change attributes of a file that may be open; `change` but for its path and its handle."""
        if change.flags & Flag.SET_SIZE:
            self._reader.changing(node)
        by_handle = node.handle != 0
        change = change._replace(handle=node.handle) if by_handle else change._replace(path=node.path())

        def apply(untrusted: list[wire.Entry]) -> None:
            if by_handle:
                entry = self._told(untrusted, stat.S_IFMT(node.mode), None)
            else:
                entry = self._told_by_path(untrusted, node)
            if change.flags & Flag.SET_SIZE and entry.size != change.size:
                raise wire.WireError("a file of another size than it was given")
            node.renew(entry)

        await self._journal.do(change, apply, node=node if by_handle else None)

    async def set_xattr(self, node: Node, change: Change) -> None:
        """Set or remove an extended attribute; `change` but for its path."""

        def apply(untrusted: list[wire.Entry]) -> None:
            node.renew(self._told_by_path(untrusted, node))

        await self._journal.do(change._replace(path=node.path()), apply)

    async def write(self, node: Node, offset: int, data: bytes) -> None:
        """Write all of it to a file."""
        self._reader.changing(node)
        await self._journal.write(node, offset, data, partial(self._wrote, node, offset + len(data)))

    def _wrote(self, node: Node, end: int, untrusted: list[wire.Entry]) -> None:
        entry = self._told(untrusted, stat.S_IFREG, None)
        if entry.size < end:
            raise wire.WireError("a file that is shorter than what was written to it")
        node.renew(entry)
