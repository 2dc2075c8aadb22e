"""What the host can judge by itself of a change, so that it may be answered before the guest has made it.

That it fits (by what the file system said of its room, with a margin; near its end everything is made at once), that
the type takes the name, size, owner and mode, and what the guest will say of what was changed. Where a type may have
something to say that is not known here, the guest is asked first: then nothing in here is returned (None).
"""

import os
import stat
import time
import unicodedata
from collections.abc import Awaitable, Callable

from mountsafe import wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem.nodes import Listing, Node

# Types that keep owners and modes as they were told, and have links; every change is judged for them.
KEEPING = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"f2fs"})
# Types that show all as one owner's, and to which "A" and "a" are one name.
ALIKE = frozenset({b"vfat", b"exfat", b"ntfs", b"ntfs3", b"ntfs-3g"})
_USUAL = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-+=@#%&()[]{},!$'^;")
# Names of devices of DOS; what comes after a dot does not count.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "clock$", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)
FAT_LARGEST = (4 << 30) - 1  # bytes of a file
LARGEST = (16 << 30) - 1  # of others, whichever block size and age: ext3 with blocks of 1 KiB has the least
LONGEST_TARGET = 1000  # of a symbolic link: XFS takes 1,023 bytes, ext4 with blocks of 1 KiB no more
MOST_FOLDERS = 30_000  # in a folder: ext3 takes 31,998
MOST_IN_FAT_FOLDER = 3000  # names of a folder: 65,536 places, of which the longest name takes 21
MARGIN_BYTES, MARGIN_BLOCKS, MARGIN_FILES = 2 << 20, 64, 64  # that are left to the guest to judge
BLOCKS_OF_A_CHANGE = 3  # a folder's next block, a tree's new nodes


class Room:
    """How much room a file system has left, of what it told last and of what has been promised since."""

    def __init__(self, ask: Callable[[], Awaitable[wire.Statfs | None]]) -> None:
        """`ask` returns what it says when all that was promised is done; None if that cannot be known."""
        self._ask = ask
        self._block = 4096
        self._blocks = self._files = 0
        self._counts_files = False

    async def renew(self) -> None:
        """Ask."""
        told = await self._ask()
        if told is None:
            self._blocks = self._files = 0
            return
        self._block = max(told.frsize, 512)
        self._blocks = told.bavail - max(MARGIN_BLOCKS, MARGIN_BYTES // self._block)
        self._counts_files = told.files > 0
        self._files = told.ffree - MARGIN_FILES

    async def reserve(self, size: int, files: int = 0) -> bool:
        """Whether so many bytes more, and so many files, have room for sure."""
        for attempt in range(2):
            blocks = -(-size // self._block) + BLOCKS_OF_A_CHANGE
            if self._blocks >= blocks and (not self._counts_files or self._files >= files):
                self._blocks -= blocks
                self._files -= files
                return True
            if not attempt:
                await self.renew()
        return False


class Judge:
    """Judges changes of one file system. What it returns is what the guest is expected to answer."""

    def __init__(self, fstype: bytes, root: Node, ask: Callable[[], Awaitable[wire.Statfs | None]]) -> None:
        self._keeps = fstype in KEEPING
        self._known = self._keeps or fstype in ALIKE
        self._fat = fstype == b"vfat"
        self._largest = FAT_LARGEST if self._fat else LARGEST
        self._root = root
        self.room = Room(ask)

    @property
    def any(self) -> bool:
        """Whether anything is judged here at all of this type."""
        return self._known

    # --- names -------------------------------------------------------------------------------------------------------
    def _takes(self, folder: Node, name: bytes) -> bool:
        """Whether a name is one that the type takes as it is, and nothing else in the folder could be meant by it."""
        if not self._known or folder.listing is None or folded(name) in _folded(folder.listing):
            return False
        if self._keeps:
            return _is_text(name)
        if self._fat and (folder is self._root or len(folder.listing.names) >= MOST_IN_FAT_FOLDER):
            return False  # the root of an older FAT has room for 512 names
        if name.startswith(b" ") or name.endswith((b".", b" ")) or not _USUAL.issuperset(name):
            return False
        return name.split(b".")[0].rstrip().lower().decode() not in _DEVICES

    # --- changes -----------------------------------------------------------------------------------------------------
    async def made(self, folder: Node, name: bytes, change: Change) -> list[wire.Entry] | None:
        """Something is made in a folder."""
        is_link, is_folder = change.act == Act.SYMLINK, change.act == Act.MKDIR
        kind = stat.S_IFLNK if is_link else stat.S_IFMT(change.mode)
        if not self._takes(folder, name) or not (self._keeps or kind in (stat.S_IFREG, stat.S_IFDIR)):
            return None
        if len(change.other) > LONGEST_TARGET or (is_folder and folder.nlink >= MOST_FOLDERS):
            return None
        if not await self.room.reserve(len(change.other), 1):
            return None
        now = _now()
        mode = 0o777 if is_link else stat.S_IMODE(change.mode)
        uid, gid = change.uid, change.gid
        if not self._keeps:
            mode, uid, gid = stat.S_IMODE(self._root.mode), self._root.uid, self._root.gid
        elif is_folder:
            mode |= folder.mode & stat.S_ISGID
        entry = wire.Entry(
            *(name, kind | mode, 2 if is_folder else 1, uid, gid, 0, len(change.other), 0, now, now, now, change.other)
        )
        return [entry, _changed_folder(folder, now, 1 if is_folder else 0)]

    async def removed(self, folder: Node, node: Node) -> list[wire.Entry] | None:
        """A file loses its only name."""
        if not self._known or node.is_folder or node.nlink != 1 or not await self.room.reserve(0):
            return None
        return [wire.Entry(node.name, *(0,) * 10, b""), _changed_folder(folder, _now(), 0)]

    async def renamed(
        self, old: tuple[Node, bytes], new: tuple[Node, bytes], node: Node, target: Node | None
    ) -> list[wire.Entry] | None:
        """A file has another name, maybe that of another file."""
        if not self._known or node.is_folder or not await self.room.reserve(0):
            return None
        if target is not None and (target.is_folder or target.nlink != 1):
            return None
        if target is None and not self._takes(*new):
            return None
        now = _now()
        told = [entry_of(node)._replace(name=new[1], ctime=now)]
        return [*told, *(_changed_folder(folder, now, 0) for folder in (new[0], old[0]))]

    async def set(self, node: Node, change: Change) -> list[wire.Entry] | None:
        """Attributes are set. The folder is not told of."""
        owner = Flag.SET_UID | Flag.SET_GID | Flag.SET_MODE
        if not self._known or (change.flags & owner and not self._keeps) or stat.S_ISLNK(node.mode):
            return None
        if change.size > self._largest or not await self.room.reserve(max(0, change.size - node.size)):
            return None
        return [changed(entry_of(node), change)]

    async def wrote(self, node: Node, offset: int, length: int) -> list[wire.Entry] | None:
        """Bytes are written."""
        end = offset + length
        if not self._known or end > self._largest or not await self.room.reserve(end - min(offset, node.size)):
            return None
        now = _now()
        size = max(node.size, end)
        return [entry_of(node)._replace(size=size, blocks=max(node.blocks, -(-size // 4096) * 8), mtime=now, ctime=now)]


def _now() -> int:
    """The time that a file which is changed now is expected to get."""
    return time.time_ns()


def entry_of(node: Node) -> wire.Entry:
    """Return what is known of a file, as an answer would tell it."""
    numbers = (node.mode, node.nlink, node.uid, node.gid, 0, node.size, node.blocks)
    return wire.Entry(node.name, *numbers, node.atime, node.mtime, node.ctime, node.target)


def changed(entry: wire.Entry, change: Change) -> wire.Entry:
    """Return what an entry is after attributes were set."""
    flags, now = change.flags, _now()
    told = entry._replace(ctime=now)
    if flags & Flag.SET_SIZE:
        told = told._replace(size=change.size, mtime=now)
    if flags & Flag.SET_MODE:
        told = told._replace(mode=stat.S_IFMT(told.mode) | stat.S_IMODE(change.mode))
    told = told._replace(
        uid=change.uid if flags & Flag.SET_UID else told.uid, gid=change.gid if flags & Flag.SET_GID else told.gid
    )
    return told._replace(
        atime=change.atime if flags & Flag.SET_ATIME else told.atime,
        mtime=change.mtime if flags & Flag.SET_MTIME else told.mtime,
    )


def _changed_folder(folder: Node, now: int, folders: int) -> wire.Entry:
    return entry_of(folder)._replace(mtime=now, ctime=now, nlink=folder.nlink + folders)


# --- names that are taken for one -----------------------------------------------------------------------------------
def folded(name: bytes) -> str:
    """Return what is the same for all names that some file system might take for one."""
    text = os.fsdecode(name)
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKD", text.upper().casefold())


def _folded(listing: Listing) -> dict[str, int]:
    if listing.folded is None:
        listing.folded = {}
        for name in listing.names:
            listing.count_folded(folded(name), 1)
    return listing.folded


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
