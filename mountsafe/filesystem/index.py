"""What has been learned of a mounted tree.

A folder is learned page by page, by one task in the background; a reader waits only for as much as it needs,
so that a listing starts before a huge folder is known. Nothing that was learned changes as long as the kernel may hold
it, but by `filesystem.edits`: where the mount can be written to, only its own programs change anything. Learned folders
are forgotten, oldest first, when there are more than a limit of entries, and the kernel is asked to let their files go
(`release`, called with the folder's number and the file's name); a node that it still holds keeps its number, name and
attributes.

Inode numbers are the medium's where they can be: unique, and stable for the type. Otherwise a number is made from the
folder's number and the name with a key of this mount, so that it is the same whenever the folder is learned again.
"""

import errno
import hashlib
import os
import random
import stat
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from mountsafe import wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.nodes import Doubtful, Listing, Node
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name
from mountsafe.incidents import Incidents
from mountsafe.limits import ENTRY_BYTES, INDEX_ENTRIES, MAX_DEPTH, MAX_DIRECTORY_ENTRIES, MAX_INDEX_ENTRIES

ROOT = 1
MADE_INODE = 1 << 62  # numbers made from paths have this bit; no supported file system's own numbers do
UNSTABLE_INODES = frozenset({b"vfat", b"msdos", b"exfat"})  # numbered by the driver, in the order of first sight


class Index:
    """The nodes of one mount, by inode number.

    Nothing is awaited between a look at `_nodes`, `_learned` or `_entries` and a change of them. One task learns a
    folder (`_learn`), and goes on when whoever waits for it is cancelled.
    """

    def __init__(
        self,
        agents: Agents,
        incidents: Incidents,
        nursery: trio.Nursery,
        limit: int = INDEX_ENTRIES,
        release: Callable[[int, bytes], None] = lambda parent, name: None,
    ) -> None:
        mounted = agents.mounted
        self._release = release
        self._agents = agents
        self._incidents = incidents
        self._nursery = nursery
        self._limit = limit
        self._stable = mounted.fstype not in UNSTABLE_INODES
        self._key = os.urandom(16)
        self._entries = 0
        self._learned: OrderedDict[int, Node] = OrderedDict()
        self._pinned: Counter[int] = Counter()  # folders that stay learned
        self._editable = agents.writable is not None  # whether what is learned may change
        self._kept: dict[tuple[int, bytes], Node] = {}  # then: held nodes of folders that were forgotten, by place
        self.doubtful = Doubtful()
        root = mounted.root._replace(name=b"")
        if fault := fault_of_attributes(root):
            raise GuestFault(fault)
        if not stat.S_ISDIR(root.mode):
            raise GuestFault("a root that is not a folder")
        self.root = Node(ROOT, None, root)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        self._told: dict[int, Node] = {}  # by the medium's numbers, what was known before it had one

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, ino: int) -> Node:
        """Return the node that the kernel names; OSError ESTALE if it is none."""
        node = self._nodes.get(ino)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def looked_up(self, node: Node) -> None:
        """The kernel is told of the node once more.

        A listing may outlive what the index remembers of it. Raises OSError ESTALE if the number is another file's by
        now: the kernel would take the two for one, and a link for one that lies elsewhere.
        """
        known = self._nodes.setdefault(node.ino, node)
        if known is not node and not (_same_place(known, node.parent, node.name) or _same_file(known, node)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        known.lookups += 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel forgot `count` of the times that it was told of the node."""
        node = self._nodes.get(ino)
        if node is None or node is self.root:
            return
        node.lookups = max(0, node.lookups - count)
        self._drop_unused(node)

    async def children(self, folder: Node) -> dict[bytes, Node]:
        """Return the folder's entries by name, when all of them are known."""
        listing = self.listing(folder)
        await listing.wait_for(lambda: listing.complete)
        return listing.names

    async def child(self, folder: Node, name: bytes) -> Node | None:
        """Return the entry of this name, as soon as it is known, or None when it is known not to be there."""
        listing = self.listing(folder)
        if name not in listing.names:
            await listing.wait_for(lambda: listing.complete or name in listing.names)
        return listing.names.get(name)

    def listing(self, folder: Node, ahead: int = 0) -> "Listing":
        """Return what is known of a folder; the rest is being learned.

        `ahead`: nobody needs it yet, so it is learned in quiet moments, and only about so many entries of it.
        """
        listing = folder.listing
        if listing is None:
            listing = folder.listing = Listing(ahead)
            self._nursery.start_soon(self._learn, folder, listing)
        elif folder.ino in self._learned:
            self._learned.move_to_end(folder.ino)
        if not ahead:
            listing.need()
        return listing

    async def _learn(self, folder: Node, listing: "Listing") -> None:
        try:
            path = folder.path()
            if folder.depth > MAX_DEPTH or len(path) + 1 + wire.MAX_NAME > wire.MAX_PATH:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            for attempt in range(3):
                try:
                    await self._learn_pages(folder, listing)
                    break
                except OSError as error:
                    # The guest forgot where the listing was, for instance because it was restarted.
                    if error.errno != errno.ESTALE or attempt == 2:
                        raise
        except Exception as error:  # noqa: BLE001  # whoever waits for the listing is told
            folder.listing = None
            self._entries -= listing.size
            listing.fail(error)
            for _, child in listing.order:
                self._drop_unused(child)
            self._drop_unused(folder)
        else:
            self._learned[folder.ino] = folder
            self._make_room(folder)
            listing.finish()

    async def _learn_pages(self, folder: Node, listing: "Listing") -> None:
        cursor = told = 0
        again = bool(listing.order)
        while True:
            question = partial(_listing_question, folder, cursor)
            body = await self._agents.request(wire.Kind.LIST, question, needed=listing.needed)
            cursor, untrusted_entries = self._agents.unpack(wire.unpack_page, body)
            if not again and untrusted_entries and all(each.name in listing.names for each in untrusted_entries):
                # Some drivers come back to the beginning, for ever, where an entry is broken.
                self._incidents.report("a folder that repeats itself", folder.path())
                return
            for untrusted_entry in untrusted_entries:
                if not (again and untrusted_entry.name in listing.names):
                    self._admit(folder, untrusted_entry, listing)
            listing.grown()
            size = max(len(untrusted_entries), len(body) // ENTRY_BYTES)
            listing.size += size
            self._entries += size
            self._make_room(folder)
            if not cursor:
                return
            if not listing.needed:
                await listing.wait_for(listing.wants_more)
                await self._agents.quiet(lambda: listing.needed)
            told += size  # the refused ones as well: a guest may repeat one for ever
            if told >= MAX_DIRECTORY_ENTRIES or not untrusted_entries:
                self._incidents.report("a folder without end", folder.path())
                return

    def _admit(self, folder: Node, untrusted: wire.Entry, listing: "Listing") -> None:
        fault = fault_of_name(untrusted.name)
        if not fault and untrusted.name in listing.names:
            fault = "a name that comes twice"
        if not fault:
            fault = fault_of_attributes(untrusted)
        if fault:
            self._incidents.report(fault, folder.path() + b"/" + untrusted.name)
            return
        listing.add(untrusted.name, self._node_for(folder, untrusted))

    def _node_for(self, folder: Node, entry: wire.Entry) -> Node:
        kept = self._kept.pop((folder.ino, entry.name), None) if self._kept else None
        if kept is not None and not kept.gone and _same_type(kept, entry):
            kept.parent = folder
            return kept
        wanted = self._wanted(entry)
        for number in self._numbers(wanted, folder, entry.name):
            known = self._nodes.get(number) or (self._told.get(number) if number == wanted else None)
            if known is None:
                return self._born(number, folder, entry)
            if _same_place(known, folder, entry.name):
                known.parent = folder
                return known
            if number == wanted and _same_file(known, entry):
                self.also_at(known, folder, entry.name)
                return known
        raise GuestFault("no inode number left")  # eight keyed hashes that collide: it cannot happen by chance

    def _born(self, number: int, folder: Node, entry: wire.Entry) -> Node:
        node = self._nodes[number] = Node(number, folder, entry)
        if number in self.doubtful or entry.ino in self.doubtful:
            self.doubtful.add(number)
            node.unplanned = False
        return node

    def settled(self) -> None:
        """What was changed lies where the guest says, from now on."""
        for node in self._nodes.values():
            if node.ino in self.doubtful:
                node.unplanned = node.size > 0 and stat.S_ISREG(node.mode)
        self.doubtful.clear()

    def _wanted(self, entry: wire.Entry) -> int:
        return entry.ino if self._stable and ROOT < entry.ino < MADE_INODE else 0

    def _numbers(self, wanted: int, folder: Node, name: bytes) -> Iterator[int]:
        if wanted:
            yield wanted
        for turn in range(8):
            yield self._made_number(folder, name, turn)

    def _made_number(self, folder: Node, name: bytes, turn: int) -> int:
        place = folder.ino.to_bytes(8, "big") + name
        digest = hashlib.blake2b(place, digest_size=8, key=self._key, salt=bytes([turn]))
        return MADE_INODE | (int.from_bytes(digest.digest(), "big") >> 3)

    # --- for `filesystem.edits` ------------------------------------------------------------------------------------
    def fresh(self, folder: Node, entry: wire.Entry) -> Node:
        """Return a node for what has just been made, which is none of those that are known, whatever its number."""
        for number in self._numbers(self._wanted(entry), folder, entry.name):
            if number not in self._nodes:
                return self._born(number, folder, entry)
        while (number := MADE_INODE | random.getrandbits(61)) in self._nodes:
            pass
        return self._born(number, folder, entry)

    def told(self, node: Node, number: int) -> None:
        """Something that was made has this number on the medium; it keeps the one by which the kernel knows it."""
        if self._stable and number > ROOT and number != node.ino:
            self._told[number] = node
            node.told = number
            if node.ino in self.doubtful:
                self.doubtful.add(number)

    def forget_folder(self, folder: Node) -> None:
        """What is in a folder is not what was thought: it is asked for again."""
        if self._learned.pop(folder.ino, None) is not None and folder.listing is not None:
            self._unlearn(folder)

    def also_at(self, node: Node, folder: Node, name: bytes) -> None:
        """The file has this name as well; or again one, if it had none that was known."""
        if not self._editable:
            return
        if node.gone:
            node.parent, node.name, node.gone = folder, name, False
        elif (node.parent, node.name) != (folder, name):
            node.others = node.others or {}
            node.others[folder, name] = None

    def counted(self, folder: Node, entries: int) -> None:
        """There are so many entries more, or less, in a folder that is learned."""
        assert folder.listing is not None
        folder.listing.size += entries
        self._entries += entries
        if entries > 0:
            with suppress(OSError):  # it is there, and must be known
                self._make_room(folder)

    def known_empty(self, folder: Node) -> None:
        """It was just made: there is nothing to be learned of it."""
        folder.listing = Listing(0)
        folder.listing.needed = True
        folder.listing.finish()
        self._learned[folder.ino] = folder

    def left(self, node: Node) -> None:
        """It was removed from its folder: forget it when nobody holds it."""
        if node.gone and node.listing is not None and node.ino in self._learned:
            del self._learned[node.ino]
            self._entries -= node.listing.size
            node.listing = None
        self._drop_unused(node)

    @asynccontextmanager
    async def whole(self, *folders: Node) -> AsyncIterator[None]:
        """Learn folders to their ends, and keep them so for a while. Raises OSError, MountsafeError."""
        for folder in folders:
            self.pin(folder)
        try:
            for folder in folders:
                await self.children(folder)
            yield
        finally:
            for folder in folders:
                self.unpin(folder)

    def pin(self, folder: Node) -> None:
        """Keep a folder learned, until `unpin` was called as often."""
        self._pinned[folder.ino] += 1

    def unpin(self, folder: Node) -> None:
        """See `pin`."""
        self._pinned[folder.ino] -= 1
        if self._pinned[folder.ino] <= 0:
            del self._pinned[folder.ino]

    # --- how much is known -----------------------------------------------------------------------------------------
    def _make_room(self, folder: Node) -> None:
        """Forget what was learned before other folders; OSError ENOMEM if what is being learned is too much alone."""
        if self._entries <= self._limit:
            return
        for ino in list(self._learned):
            if ino not in (ROOT, folder.ino) and ino not in self._pinned:
                self._unlearn(self._learned.pop(ino))
            if self._entries <= self._limit:
                return
        if self._entries > MAX_INDEX_ENTRIES:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def _unlearn(self, folder: Node) -> None:
        listing, folder.listing = folder.listing, None
        assert listing is not None
        self._entries -= listing.size
        for name, child in listing.order:
            if not listing.stands(name, child):
                continue
            if child.lookups and not child.is_folder:  # a folder may be somebody's working directory
                self._release(folder.ino, name)
            if child.others:
                child.others.pop((folder, name), None)
            if self._editable and (child.lookups or child.listing is not None):
                self._kept[folder.ino, name] = child
            self._drop_unused(child)
        self._drop_unused(folder)

    def _drop_unused(self, node: Node) -> None:
        """Drop a node that neither the kernel nor a learned folder holds."""
        parent = node.parent
        if node.lookups or node.listing is not None or parent is None:
            return
        if not node.gone and parent.listing is not None and parent.listing.stands(node.name, node):
            return
        if self._kept and self._kept.get((parent.ino, node.name)) is node:
            del self._kept[parent.ino, node.name]
        if self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]
            if self._told.get(node.told) is node:
                del self._told[node.told]


def _listing_question(folder: Node, cursor: int) -> bytes:
    return wire.pack_list(folder.path(), cursor)


def _same_place(known: Node, folder: Node | None, name: bytes) -> bool:
    """Whether a known node is the entry `name` of a folder, which may have been forgotten and learned anew."""
    parent = known.parent
    if parent is None or folder is None or known.gone:
        return False
    return known.name == name and (parent is folder or (parent.ino == folder.ino and parent.depth == folder.depth))


def _same_file(known: Node, entry: wire.Entry | Node) -> bool:
    """Whether an entry with a known inode number is a hard link to the known file, and not a number used twice.

    Only files: whether a symbolic link leads out of the mount depends on the folder that it is in.
    """
    others = known.nlink if known.gone else known.nlink - 1  # names that it has beside the one that is known
    return (
        stat.S_ISREG(entry.mode)
        and others > 0
        and (known.gone or entry.nlink > 1)
        and (known.mode, known.size, known.mtime) == (entry.mode, entry.size, entry.mtime)
    )


def _same_type(known: Node, entry: wire.Entry) -> bool:
    return stat.S_IFMT(known.mode) == stat.S_IFMT(entry.mode)
