"""Changes of a tree, each in one piece: what is known is looked at, the guest makes the change, and it is known.

What the host can judge by itself (`filesystem.early`) is known before the guest makes it; what that says later
(`Work._confirm`) counts if nothing else of the same file is under way. All of it is called in what `Journal.run` runs,
one at a time. It raises OSError, what the guest or we say no to, and MountsafeError: then a change may be on the medium
or not.
"""

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from mountsafe import wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem.changelog import Subjects
from mountsafe.filesystem.early import Judge
from mountsafe.filesystem.edits import Edits, require_fitting
from mountsafe.filesystem.index import UNSTABLE_INODES
from mountsafe.filesystem.journal import Early, Journal
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
        self._judge = Judge(fstype, opened.index.root, journal.statfs)
        journal.begun = self._judge.room.renew
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
        entry, told = _checked(untrusted, kind, name, folders)
        for folder, checked in told:
            folder.renew(checked)
        return entry

    def _told_by_path(self, untrusted: Sequence[wire.Entry], node: Node) -> wire.Entry:
        """The same of attributes that were set by a path: it tells of the folder too, but for the root's."""
        return self._told(untrusted, stat.S_IFMT(node.mode), node.name, *_above(node))

    def _confirm(
        self,
        untrusted: Sequence[wire.Entry] | None,
        position: int,
        node: Node,
        kind: int,
        name: bytes | None,
        folders: Sequence[Node] = (),
        least: int = 0,
    ) -> None:
        """Let files have what the guest says of a change that counted as made, if it is the last one of each.

        `least`: the size that the file has, at least. None: it was made again by another guest.
        """
        if untrusted is None:
            self._journal.unsure.update(each for each in (node, *folders) if each.changed == position)
            return
        entry, told = _checked(untrusted, kind, name, folders)
        if entry.mode and entry.size < least:
            raise wire.WireError("a file that is shorter than what was written to it")
        self._index.told(node, entry.ino)
        for each, checked in [(node, entry), *told]:
            if each.changed == position:
                each.renew(checked)
                self._journal.unsure.discard(each)

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

            early = await self._early(self._judge.made(folder, name, change), [folder], [(folder, name)])

            def apply(untrusted: list[wire.Entry]) -> Node:
                made = self._edits.add(folder, self._told(untrusted, kind, name, folder))
                if change.handle:
                    self._journal.opened(change.handle, made)
                self._reader.changing(made)
                if early is not None:
                    early.touched.insert(0, made)
                    early.confirm = partial(self._confirm, node=made, kind=kind, name=name, folders=(folder,))
                return made

            return await self._journal.do(change, apply, early=early)

    async def _early(
        self,
        judged: Awaitable[list[wire.Entry] | None],
        touched: list[Node],
        places: Sequence[Place] = (),
        confirm: Callable[[list[wire.Entry] | None, int], None] = lambda untrusted, position: None,
    ) -> Early | None:
        guess = await judged
        return None if guess is None else Early(guess, confirm, touched, tuple(places))

    async def create(self, folder: Node, name: bytes, mode: int, flags: int, owner: tuple[int, int]) -> Node:
        """Make a file and open it in the guest; one that is there is returned, as open(2) has it."""
        async with self._index.whole(folder):
            known = self.at((folder, name))
        if known is None:
            handle = self._journal.new_handle()
            change = Change(Act.CREATE, handle=handle, mode=mode, uid=owner[0], gid=owner[1])
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

            judged = self._judge.removed(folder, node)
            early = await self._early(judged, [node, folder], [(folder, name)], self._removal(node, folder))

            def apply(untrusted: list[wire.Entry]) -> None:
                left = self._told(untrusted, 0, None, folder)
                if left.mode and (node.nlink < 2 or stat.S_IFMT(left.mode) != stat.S_IFMT(node.mode)):
                    raise wire.WireError("what was removed is still there")
                self._edits.remove(folder, name)
                if left.mode:  # by its other names
                    node.renew(left)

            change = Change(act, self._path(folder, name))
            await self._journal.do(change, apply, Subjects.of(node), early=_removing(early, node))

    def _removal(self, node: Node, folder: Node) -> Callable[[list[wire.Entry] | None, int], None]:
        def confirm(untrusted: list[wire.Entry] | None, position: int) -> None:
            if untrusted is None:
                self._journal.unsure.update({folder} if folder.changed == position else ())
                return
            left, told = _checked(untrusted, 0, None, (folder,))
            if left.mode:
                raise wire.WireError("what was removed is still there")
            for _, checked in told:
                if folder.changed == position:
                    folder.renew(checked)

        return confirm

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
            early = None
            if not exchange:
                folders, kind = (new[0], old[0]), stat.S_IFMT(node.mode)
                confirm = partial(self._confirm, node=node, kind=kind, name=new[1], folders=folders)
                judged = self._judge.renamed(old, new, node, target)
                early = await self._early(judged, [node, *folders], [old, new], confirm)

            def apply(untrusted: list[wire.Entry]) -> None:
                entry = self._told(untrusted, stat.S_IFMT(node.mode), new[1], new[0], old[0])
                edit(old, new)
                node.renew(entry)

            await self._journal.do(change, apply, Subjects.of(node, target), early=_removing(early, target))

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
        early = None
        if by_handle or not node.gone:
            least = change.size if change.flags & Flag.SET_SIZE else 0
            name, folders = (None, ()) if by_handle else (node.name, _above(node))
            kind = stat.S_IFMT(node.mode)
            confirm = partial(self._confirm, node=node, kind=kind, name=name, folders=folders, least=least)
            early = await self._early(self._judge.set(node, change), [node, *folders], confirm=confirm)
        change = change._replace(handle=node.handle) if by_handle else change._replace(path=node.path())

        def apply(untrusted: list[wire.Entry]) -> None:
            if by_handle:
                entry = self._told(untrusted, stat.S_IFMT(node.mode), None)
            else:
                entry = self._told_by_path(untrusted, node)
            if change.flags & Flag.SET_SIZE and entry.size != change.size:
                raise wire.WireError("a file of another size than it was given")
            node.renew(entry)

        await self._journal.do(change, apply, node=node if by_handle else None, early=early)

    async def set_xattr(self, node: Node, change: Change) -> None:
        """Set or remove an extended attribute; `change` but for its path."""

        def apply(untrusted: list[wire.Entry]) -> None:
            node.renew(self._told_by_path(untrusted, node))

        await self._journal.do(change._replace(path=node.path()), apply)

    async def write(self, node: Node, offset: int, data: bytes) -> None:
        """Write all of it to a file."""
        self._reader.changing(node)
        end = offset + len(data)
        confirm = partial(self._confirm, node=node, kind=stat.S_IFREG, name=None, least=end)
        early = await self._early(self._judge.wrote(node, offset, len(data)), [node], confirm=confirm)
        await self._journal.write(node, offset, data, partial(self._wrote, node, end), early)

    def _wrote(self, node: Node, end: int, untrusted: list[wire.Entry]) -> None:
        entry = self._told(untrusted, stat.S_IFREG, None)
        if entry.size < end:
            raise wire.WireError("a file that is shorter than what was written to it")
        node.renew(entry)


def _checked(
    untrusted: Sequence[wire.Entry], kind: int, name: bytes | None, folders: Sequence[Node]
) -> tuple[wire.Entry, list[tuple[Node, wire.Entry]]]:
    """Return what an answer says of what was changed, and of its folders. Raises WireError."""
    if not 1 <= len(untrusted) <= 1 + len(folders):
        raise wire.WireError(f"{len(untrusted)} entries of one change")
    entry = require_fitting(untrusted[0], kind, name)
    pairs = zip(folders, untrusted[1:], strict=False)
    return entry, [(folder, require_fitting(each, stat.S_IFDIR, folder.name)) for folder, each in pairs]


def _above(node: Node) -> tuple[Node, ...]:
    return () if node.parent is None else (node.parent,)


def _removing(early: Early | None, node: Node | None) -> Early | None:
    if early is not None:
        early.removes = node
    return early
