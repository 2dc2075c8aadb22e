"""What the index is made of: files, folders and links, and the entries of a folder."""

import errno
import os
import stat
from collections.abc import Callable, Iterator

import trio

from mountsafe import wire
from mountsafe.limits import DOUBTFUL_FILES
from mountsafe.medium.extents import NO_PLAN, ReadPlan


class Node:
    """A file, folder or link. On a read-only mount its attributes are set once, at first sight."""

    __slots__ = (
        "atime",
        "blocks",
        "changed",
        "ctime",
        "failed",
        "failures",
        "gid",
        "gone",
        "handle",
        "ino",
        "listing",
        "lookups",
        "mode",
        "mtime",
        "name",
        "nlink",
        "opens",
        "others",
        "parent",
        "plan",
        "position",
        "shown",
        "size",
        "target",
        "told",
        "uid",
        "unplanned",
    )  # fmt: skip

    def __init__(self, ino: int, parent: "Node | None", entry: wire.Entry) -> None:
        self.ino = ino
        self.parent = parent
        self.name = entry.name
        self.target = entry.target
        self.plan: ReadPlan = NO_PLAN
        self.unplanned = entry.size > 0 and stat.S_ISREG(entry.mode)  # where its bytes are was not asked for yet
        self.lookups = 0
        self.listing: Listing | None = None
        self.position = 0  # in its folder's listing: a guess for hard links
        self.gone = False  # it was removed: no path that is known leads to it
        self.opens = 0  # where it can be changed: how often it is open here
        self.told = 0  # the number that it got on the medium after it was known here
        self.changed = 0  # the position of the last change of it, in the order of `ChangeLog`
        self.failures = 0  # so often something was refused that programs had been told of, the last time with this:
        self.failed = 0  # an errno
        self.handle = 0  # and by what number it is open in the guest; 0 if it is not
        self.others: dict[tuple[Node, bytes], None] | None = None  # and its further names, if there are any
        self.renew(entry)

    def renew(self, entry: wire.Entry) -> None:
        """Take what an entry says of its attributes; the type and the place stay."""
        self.mode = entry.mode
        self.nlink = max(1, entry.nlink)
        self.uid = entry.uid
        self.gid = entry.gid
        self.size = entry.size
        self.blocks = entry.blocks
        self.atime = entry.atime
        self.mtime = entry.mtime
        self.ctime = entry.ctime
        self.shown: object = None  # what the file system made of it for the kernel, to be told again

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def depth(self) -> int:
        """How many names lead to it: 0 for the root."""
        depth, node = 0, self.parent
        while node is not None:
            depth, node = depth + 1, node.parent
        return depth

    def path(self) -> bytes:
        """The path from the root of the medium, without a leading slash; empty for the root.

        Raises OSError (ENOENT) if there is none any more.
        """
        names: list[bytes] = []
        node: Node = self
        while node.parent is not None:
            if node.gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class Doubtful:
    """Files whose bytes may not lie where the guest says: those that were changed since it mounted them, by number.

    Which they are is remembered of `DOUBTFUL_FILES`; when there are more, of all files that are learned from then on.
    """

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self.all = False

    def add(self, *numbers: int) -> None:
        """Doubt some more."""
        self._numbers.update(numbers)
        if len(self._numbers) > DOUBTFUL_FILES:
            self.all = True
            self._numbers.clear()

    def __contains__(self, number: int) -> bool:
        return self.all or number in self._numbers

    def clear(self) -> None:
        """Doubt nothing any more."""
        self._numbers.clear()
        self.all = False


class Listing:
    """The entries of a folder, in the order in which the guest told them; more may come until it is complete.

    What is removed leaves a place behind in `order` that counts no more (see `stands`), so that whoever goes through it
    keeps his place. A new list takes the old one's place when most of it is such.
    """

    __slots__ = ("_ahead", "_changed", "_failure", "complete", "folded", "names", "needed", "order", "size")

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self.needed = False
        self.size = 0  # in entries; long ones count as several
        self.names: dict[bytes, Node] = {}
        self.order: list[tuple[bytes, Node]] = []
        self.complete = False
        self.folded: dict[str, int] | None = None  # how many names `early.folded` makes the same of, once it is asked
        self._failure: Exception | None = None
        self._changed = trio.Event()

    def add(self, name: bytes, node: Node) -> None:
        """Add an entry."""
        self.names[name] = node
        node.position = len(self.order)
        self.order.append((name, node))

    def remove(self, name: bytes) -> Node:
        """Take an entry out. Raises KeyError."""
        node = self.names.pop(name)
        at = node.position
        if at >= len(self.order) or self.order[at] != (name, node):
            at = self.order.index((name, node))  # of its hard links another one was added last
        self.order[at] = (b"", node)
        if len(self.order) > 2 * len(self.names) + 64:
            self.order = [entry for entry in self.order if self.stands(*entry)]
            for position, (_, each) in enumerate(self.order):
                each.position = position
        return node

    def count_folded(self, folded: str, more: int) -> None:
        """There are so many more, or less, names that are folded to this."""
        if self.folded is not None:
            self.folded[folded] = self.folded.get(folded, 0) + more
            if self.folded[folded] <= 0:
                del self.folded[folded]

    def stands(self, name: bytes, node: Node) -> bool:
        """Whether an entry of `order`, or of an earlier one, is still there."""
        return self.names.get(name) is node

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
