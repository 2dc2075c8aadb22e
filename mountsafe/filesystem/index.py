"""What has been learned of a mounted tree.

A folder is learned page by page, by one task in the background; whoever looks at it waits only for as much as he needs,
so that a listing starts before a huge folder is known. Nothing that
was learned changes as long as the kernel may hold it: the medium is read-only. Learned folders are forgotten, oldest
first, when there are more than a limit of entries, and the kernel is asked to let their files go (`release`, called
with the folder's number and the file's name); a node that it still holds keeps its number, name and attributes.

Inode numbers are the medium's where they can be: unique, and stable for the type. Otherwise a number is made from the
path with a key of this mount, so that it is the same whenever the folder is learned again.
"""

import errno
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator

import trio

from mountsafe import wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name
from mountsafe.incidents import Incidents
from mountsafe.limits import ENTRY_BYTES, INDEX_ENTRIES, MAX_DEPTH, MAX_DIRECTORY_ENTRIES, MAX_INDEX_ENTRIES
from mountsafe.medium.extents import NO_PLAN, ReadPlan

ROOT = 1
MADE_INODE = 1 << 62  # numbers made from paths have this bit; no supported file system's own numbers do
UNSTABLE_INODES = frozenset({b"vfat", b"msdos", b"exfat"})  # numbered by the driver, in the order of first sight


class Node:
    """A file, folder or link: attributes are set once, at first sight."""

    __slots__ = (
        "atime",
        "blocks",
        "ctime",
        "depth",
        "gid",
        "ino",
        "listing",
        "lookups",
        "mode",
        "mtime",
        "name",
        "nlink",
        "parent",
        "plan",
        "position",
        "shown",
        "size",
        "target",
        "uid",
        "unplanned",
    )  # fmt: skip

    def __init__(self, ino: int, parent: "Node | None", entry: wire.Entry) -> None:
        self.ino = ino
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.name = entry.name
        self.mode = entry.mode
        self.nlink = max(1, entry.nlink)
        self.uid = entry.uid
        self.gid = entry.gid
        self.size = entry.size
        self.blocks = entry.blocks
        self.atime = entry.atime
        self.mtime = entry.mtime
        self.ctime = entry.ctime
        self.target = entry.target
        self.plan: ReadPlan = NO_PLAN
        self.unplanned = entry.size > 0 and stat.S_ISREG(entry.mode)  # where its bytes are was not asked for yet
        self.lookups = 0
        self.listing: Listing | None = None
        self.shown: object = None  # what the file system made of it for the kernel, to be told again
        self.position = 0  # in its folder's listing: a guess for hard links

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    def path(self) -> bytes:
        """The path from the root of the medium, without a leading slash; empty for the root."""
        names: list[bytes] = []
        node: Node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


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
        root = mounted.root._replace(name=b"")
        if fault := fault_of_attributes(root):
            raise GuestFault(fault)
        if not stat.S_ISDIR(root.mode):
            raise GuestFault("a root that is not a folder")
        self.root = Node(ROOT, None, root)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}

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
        path = folder.path()
        try:
            if folder.depth > MAX_DEPTH or len(path) + 1 + wire.MAX_NAME > wire.MAX_PATH:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            for attempt in range(3):
                try:
                    await self._learn_pages(folder, path, listing)
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

    async def _learn_pages(self, folder: Node, path: bytes, listing: "Listing") -> None:
        cursor = told = 0
        again = bool(listing.order)
        while True:
            question = wire.pack_list(path, cursor)
            body = await self._agents.request(wire.Kind.LIST, question, needed=listing.needed)
            cursor, untrusted_entries = self._agents.unpack(wire.unpack_page, body)
            if not again and untrusted_entries and all(each.name in listing.names for each in untrusted_entries):
                # Some drivers come back to the beginning, for ever, where an entry is broken.
                self._incidents.report("a folder that repeats itself", path)
                return
            for untrusted_entry in untrusted_entries:
                if not (again and untrusted_entry.name in listing.names):
                    self._admit(folder, path, untrusted_entry, listing)
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
                self._incidents.report("a folder without end", path)
                return

    def _admit(self, folder: Node, path: bytes, untrusted: wire.Entry, listing: "Listing") -> None:
        fault = fault_of_name(untrusted.name)
        if not fault and untrusted.name in listing.names:
            fault = "a name that comes twice"
        if not fault:
            fault = fault_of_attributes(untrusted)
        if fault:
            self._incidents.report(fault, path + b"/" + untrusted.name)
            return
        listing.add(untrusted.name, self._node_for(folder, path, untrusted))

    def _node_for(self, folder: Node, path: bytes, entry: wire.Entry) -> Node:
        wanted = entry.ino if self._stable and ROOT < entry.ino < MADE_INODE else 0
        for number in self._numbers(wanted, path, entry.name):
            known = self._nodes.get(number)
            if known is None:
                node = Node(number, folder, entry)
                self._nodes[number] = node
                return node
            if _same_place(known, folder, entry.name):
                known.parent = folder
                return known
            if number == wanted and _same_file(known, entry):
                return known
        raise GuestFault("no inode number left")  # eight keyed hashes that collide: it cannot happen by chance

    def _numbers(self, wanted: int, path: bytes, name: bytes) -> Iterator[int]:
        if wanted:
            yield wanted
        for turn in range(8):
            yield self._made_number(path, name, turn)

    def _made_number(self, path: bytes, name: bytes, turn: int) -> int:
        digest = hashlib.blake2b(path + b"/" + name, digest_size=8, key=self._key, salt=bytes([turn]))
        return MADE_INODE | (int.from_bytes(digest.digest(), "big") >> 3)

    def _make_room(self, folder: Node) -> None:
        """Forget what was learned before other folders; OSError ENOMEM if what is being learned is too much alone."""
        if self._entries <= self._limit:
            return
        for ino in list(self._learned):
            if ino not in (ROOT, folder.ino):
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
            if child.lookups and not child.is_folder:  # a folder may be somebody's working directory
                self._release(folder.ino, name)
            self._drop_unused(child)
        self._drop_unused(folder)

    def _drop_unused(self, node: Node) -> None:
        """Drop a node that neither the kernel nor a learned folder holds."""
        parent = node.parent
        if node.lookups or node.listing is not None or parent is None:
            return
        if parent.listing is not None and parent.listing.names.get(node.name) is node:
            return
        if self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]


class Listing:
    """The entries of a folder, in the order in which the guest told them; more may come until it is complete."""

    __slots__ = ("_ahead", "_changed", "_failure", "complete", "names", "needed", "order", "size")

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self.needed = False
        self.size = 0  # in entries; long ones count as several
        self.names: dict[bytes, Node] = {}
        self.order: list[tuple[bytes, Node]] = []
        self.complete = False
        self._failure: Exception | None = None
        self._changed = trio.Event()

    def add(self, name: bytes, node: Node) -> None:
        """Add an entry."""
        self.names[name] = node
        node.position = len(self.order)
        self.order.append((name, node))

    def following(self, node: Node) -> Iterator[Node]:
        """Yield the nodes from the position of `node` on."""
        for position in range(node.position, len(self.order)):
            yield self.order[position][1]

    def need(self) -> None:
        """Somebody waits for all of it."""
        if not self.needed:
            self.needed = True
            self.grown()

    def wants_more(self) -> bool:
        """Whether more is to be learned now."""
        return self.needed or self.size < self._ahead

    def grown(self) -> None:
        """Wake whoever waits for more."""
        self._changed.set()
        self._changed = trio.Event()

    async def stopped(self) -> None:
        """Wait until all of it is known, or as much as was wanted."""
        await self.wait_for(lambda: self.complete or not self.wants_more())

    def finish(self) -> None:
        """There are no more."""
        self.complete = True
        self.grown()

    def fail(self, error: Exception) -> None:
        """There may be more, but they cannot be had."""
        self._failure = error
        self.grown()

    async def begun(self) -> None:
        """Wait for the first entries, or for the knowledge that there are none."""
        await self.wait_for(lambda: bool(self.complete or self.order))

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; raises what kept the folder from being learned."""
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()


def _same_place(known: Node, folder: Node | None, name: bytes) -> bool:
    """Whether a known node is the entry `name` of a folder, which may have been forgotten and learned anew."""
    parent = known.parent
    if parent is None or folder is None:
        return False
    return (parent.ino, parent.depth, known.name) == (folder.ino, folder.depth, name)


def _same_file(known: Node, entry: wire.Entry | Node) -> bool:
    """Whether an entry with a known inode number is a hard link to the known file, and not a number used twice.

    Only files: whether a symbolic link leads out of the mount depends on the folder that it is in.
    """
    return (
        stat.S_ISREG(entry.mode)
        and min(known.nlink, entry.nlink) > 1
        and (known.mode, known.size, known.mtime) == (entry.mode, entry.size, entry.mtime)
    )
