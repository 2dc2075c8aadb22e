"""What has been learned of a mounted tree.

A folder is learned whole, page by page, by at most one task at a time; everybody else waits for that one. Nothing that
was learned changes as long as the kernel may hold it: the medium is read-only. Learned folders are forgotten, oldest
first, when there are more than `INDEX_ENTRIES` entries; a node that the kernel still holds keeps its number, name and
attributes.

Inode numbers are the medium's where they can be: unique, and stable for the type. Otherwise a number is made from the
path with a key of this mount, so that it is the same whenever the folder is learned again.
"""

import errno
import hashlib
import os
import stat
from collections import OrderedDict

import trio

from mountsafe import wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name
from mountsafe.incidents import Incidents
from mountsafe.limits import INDEX_ENTRIES, MAX_DEPTH, MAX_DIRECTORY_ENTRIES
from mountsafe.medium.extents import NO_PLAN, ReadPlan, Window, plan

ROOT = 1
MADE_INODE = 1 << 62  # numbers made from paths have this bit; no supported file system's own numbers do
UNSTABLE_INODES = frozenset({b"vfat", b"msdos", b"exfat"})  # numbered by the driver, in the order of first sight


class Node:
    """A file, folder or link: attributes are set once, at first sight."""

    __slots__ = (
        "atime",
        "blocks",
        "children",
        "ctime",
        "depth",
        "gid",
        "ino",
        "loading",
        "lookups",
        "mode",
        "more_extents",
        "mtime",
        "name",
        "nlink",
        "parent",
        "plan",
        "size",
        "target",
        "uid",
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
        self.more_extents = bool(entry.flags & wire.EntryFlag.EXTENTS_MORE)
        self.lookups = 0
        self.children: dict[bytes, Node] | None = None
        self.loading: trio.Event | None = None

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
    """The nodes of one mount, by inode number."""

    def __init__(self, agents: Agents, incidents: Incidents, limit: int = INDEX_ENTRIES) -> None:
        mounted = agents.mounted
        self._agents = agents
        self._incidents = incidents
        self._limit = limit
        self._window: Window | None = agents.window if mounted.direct else None
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
        """The kernel was told of the node once more."""
        node.lookups += 1
        self._nodes[node.ino] = node

    def forget(self, ino: int, count: int) -> None:
        """The kernel forgot `count` of the times that it was told of the node."""
        node = self._nodes.get(ino)
        if node is None or node is self.root:
            return
        node.lookups = max(0, node.lookups - count)
        self._drop_unused(node)

    async def children(self, folder: Node) -> dict[bytes, Node]:
        """Return the folder's entries by name, asking the guest if they are not known."""
        while folder.children is None:
            if folder.loading is not None:
                await folder.loading.wait()
                continue
            folder.loading = trio.Event()
            try:
                self._keep(folder, await self._learn(folder))
            finally:
                folder.loading.set()
                folder.loading = None
        if folder.ino in self._learned:
            self._learned.move_to_end(folder.ino)
        return folder.children

    async def _learn(self, folder: Node) -> dict[bytes, Node]:
        path = folder.path()
        if folder.depth > MAX_DEPTH or len(path) + 1 + wire.MAX_NAME > wire.MAX_PATH:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        for attempt in range(3):
            try:
                return await self._learn_pages(folder, path)
            except OSError as error:
                # The guest forgot where the listing was, for instance because it was restarted.
                if error.errno != errno.ESTALE or attempt == 2:
                    raise
        raise AssertionError

    async def _learn_pages(self, folder: Node, path: bytes) -> dict[bytes, Node]:
        children: dict[bytes, Node] = {}
        cursor = 0
        while True:
            body = await self._agents.request(wire.Kind.LIST, wire.pack_list(path, cursor))
            cursor, untrusted_entries = self._agents.unpack(wire.unpack_page, body)
            for untrusted_entry in untrusted_entries:
                self._admit(folder, path, untrusted_entry, children)
            if not cursor:
                return children
            if len(children) >= MAX_DIRECTORY_ENTRIES or not untrusted_entries:
                self._incidents.report("a folder without end", path)
                return children

    def _admit(self, folder: Node, path: bytes, untrusted: wire.Entry, children: dict[bytes, Node]) -> None:
        fault = fault_of_name(untrusted.name)
        if not fault and untrusted.name in children:
            fault = "a name that comes twice"
        if not fault:
            fault = fault_of_attributes(untrusted)
        if fault:
            self._incidents.report(fault, path + b"/" + untrusted.name)
            return
        children[untrusted.name] = self._node_for(folder, path, untrusted)

    def _node_for(self, folder: Node, path: bytes, entry: wire.Entry) -> Node:
        wanted = entry.ino if self._stable and ROOT < entry.ino < MADE_INODE else 0
        for number in (wanted, *(self._made_number(path, entry.name, turn) for turn in range(8))):
            if not number:
                continue
            known = self._nodes.get(number)
            if known is None:
                node = Node(number, folder, entry)
                node.plan = self._plan(entry, path)
                self._nodes[number] = node
                return node
            if known.parent is folder and known.name == entry.name:
                return known
            if number == wanted and _same_file(known, entry):
                return known
        raise GuestFault("no inode number left")  # eight keyed hashes that collide: it cannot happen by chance

    def _made_number(self, path: bytes, name: bytes, turn: int) -> int:
        digest = hashlib.blake2b(path + b"/" + name, digest_size=8, key=self._key, salt=bytes([turn]))
        return MADE_INODE | (int.from_bytes(digest.digest(), "big") >> 3)

    def _plan(self, entry: wire.Entry, path: bytes) -> ReadPlan:
        if not entry.extents or self._window is None:
            return NO_PLAN
        try:
            return plan(entry.extents, self._window)
        except GuestFault as fault:
            self._incidents.report(str(fault), path + b"/" + entry.name)
            return NO_PLAN

    def _keep(self, folder: Node, children: dict[bytes, Node]) -> None:
        folder.children = children
        self._learned[folder.ino] = folder
        self._entries += len(children)
        while self._entries > self._limit and len(self._learned) > 1:
            _, oldest = self._learned.popitem(last=False)
            if oldest is self.root or oldest.loading is not None:
                self._learned[oldest.ino] = oldest
                if len(self._learned) <= 2:
                    return
                continue
            self._unlearn(oldest)

    def _unlearn(self, folder: Node) -> None:
        children, folder.children = folder.children or {}, None
        self._entries -= len(children)
        for child in children.values():
            self._drop_unused(child)
        self._drop_unused(folder)

    def _drop_unused(self, node: Node) -> None:
        """Drop a node that neither the kernel nor a learned folder holds."""
        parent = node.parent
        if node.lookups or node.children is not None or node.loading is not None or parent is None:
            return
        if parent.children is not None and parent.children.get(node.name) is node:
            return
        if self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]


def _same_file(known: Node, entry: wire.Entry) -> bool:
    """Whether an entry with a known inode number is a hard link to the known file, and not a number used twice.

    Only files: whether a symbolic link leads out of the mount depends on the folder that it is in.
    """
    return (
        stat.S_ISREG(entry.mode)
        and min(known.nlink, entry.nlink) > 1
        and (known.mode, known.size, known.mtime) == (entry.mode, entry.size, entry.mtime)
    )
