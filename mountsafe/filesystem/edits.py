"""What a change does to what was learned: the index as it is after the guest has done it.

Folders that are changed were learned to their ends before (`Index.whole`), and nothing is awaited in here. The entries
of an answer are checked before anything is done with them: `require_fitting` says what is wrong with them.
"""

import stat

from mountsafe import wire
from mountsafe.filesystem.early import folded
from mountsafe.filesystem.index import Index
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.untrusted import fault_of_attributes, fault_of_name

ANY = 0  # a type that is not asked for


def require_fitting(untrusted: wire.Entry, kind: int, name: bytes | None = None) -> wire.Entry:
    """Return an entry of an answer. Raises WireError if it is impossible, or not what was changed.

    `kind`: its type, as of a mode; `name`: None if it is not known by one.
    """
    fault = fault_of_attributes(untrusted)
    if not fault and untrusted.name:
        fault = fault_of_name(untrusted.name)
    if not fault and name is not None and untrusted.name != name:
        fault = "the answer to a change tells of another name"
    if not fault and kind != ANY and stat.S_IFMT(untrusted.mode) != kind:
        fault = "what was changed is of another type than it should be"
    if fault:
        raise wire.WireError(fault)
    return untrusted


class Edits:
    """Changes an index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def add(self, folder: Node, entry: wire.Entry) -> Node:
        """Something new is in a folder."""
        node = self._index.fresh(folder, entry)
        self._enter(folder, entry.name, node)
        if node.is_folder:
            self._index.known_empty(node)
        return node

    def link(self, node: Node, folder: Node, name: bytes) -> None:
        """A file has another name."""
        self._enter(folder, name, node)
        self._index.also_at(node, folder, name)

    def remove(self, folder: Node, name: bytes) -> None:
        """A name is gone from a folder."""
        node = self._leave(folder, name)
        node.nlink = 0 if node.is_folder or node.nlink == 1 else node.nlink - 1
        node.shown = None
        self._index.left(node)

    def move(self, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """What has one name has another, and what had that one is gone."""
        if new[0].listing is not None and new[1] in new[0].listing.names:
            self.remove(*new)
        node = self._leave(*old)
        self.link(node, *new)
        node.shown = None

    def exchange(self, one: tuple[Node, bytes], other: tuple[Node, bytes]) -> None:
        """Two have each other's names."""
        first, second = self._leave(*one), self._leave(*other)
        self.link(first, *other)
        self.link(second, *one)

    def _enter(self, folder: Node, name: bytes, node: Node) -> None:
        assert folder.listing is not None
        folder.listing.add(name, node)
        if folder.listing.folded is not None:
            folder.listing.count_folded(folded(name), 1)
        self._index.counted(folder, 1)

    def _leave(self, folder: Node, name: bytes) -> Node:
        assert folder.listing is not None
        node = folder.listing.remove(name)
        if folder.listing.folded is not None:
            folder.listing.count_folded(folded(name), -1)
        self._index.counted(folder, -1)
        if node.others:
            node.others.pop((folder, name), None)
        if (node.parent, node.name) == (folder, name):
            if node.others:
                node.parent, node.name = node.others.popitem()[0]
            else:
                node.gone = True
        return node
