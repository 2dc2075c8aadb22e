"""The changes since the last checkpoint, as they are repeated if the virtual machine dies.

What the disk has by then is anything from the state at the checkpoint to the newest one: the guest's kernel writes when
it likes. Repeating all changes from the checkpoint on must lead to the same tree from each of these states. It does
where every change meets the thing that it met the first time, or one that was made since the checkpoint, all of which
is in the log; so what must not be lost is never under a name that an earlier change of the log removes, replaces or
moves. `ChangeLog.endangered_by` says whether a change would break that: then a checkpoint comes first.

By that a name is, since the checkpoint:
 - untouched;
 - TOUCHED: what was there at the checkpoint was changed, opened or removed;
 - MADE: a regular file that is all in the log, or nothing any more;
 - FIXED: something else was made there or moved there or away: it may be changed and removed, and no more.
"""

import errno
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from mountsafe import wire
from mountsafe.changes import Act, Change, Flag
from mountsafe.filesystem.nodes import Node
from mountsafe.limits import JOURNAL_BYTES, JOURNAL_CHANGES, MAX_LOST_NAMES

OVERHEAD = 128  # bytes that a change takes beside its own
MAKING = frozenset({Act.CREATE, Act.MKDIR, Act.MKNOD, Act.SYMLINK})
LEAVING = frozenset({Act.UNLINK, Act.RMDIR, Act.RENAME})  # after them there is nothing where something was
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})


class Name(Enum):
    """What became of a name since the checkpoint."""

    TOUCHED = 1
    MADE = 2
    FIXED = 3


@dataclass(slots=True)
class Logged:
    """A change, or a write of `data` at `offset` to an open file. `node`: what a handle in it is of.

    Of an exchange `offset` is the inode number of what was at its path before. Of what programs were told of before the
    guest has done it, `confirm` takes what the guest says of it (None: it is done, and nothing is known of how).
    `subject`: whose openers are told if it fails; `places`: the names in folders which are other ones then; `removes`:
    what has no name after it. `position`: its place among all changes of the mount, from 1 on.
    """

    change: Change
    node: Node | None = None
    offset: int = 0
    data: bytes | bytearray | None = None
    confirm: Callable[["list[wire.Entry] | None", int], None] | None = None
    subject: Node | None = None
    places: tuple[tuple[Node, bytes], ...] = ()
    removes: Node | None = None
    position: int = 0

    @property
    def name(self) -> bytes:
        """The path of what is changed, as far as it has one; b"" if nothing is changed for whoever looks at it."""
        change = self.change
        if self.data is None and change.act in (Act.OPEN, Act.CLOSE):
            return b""
        if self.node is not None:
            with suppress(OSError):  # it has none any more
                return self.node.path()
        return change.other if change.act == Act.RENAME else change.path

    @property
    def cost(self) -> int:
        """Bytes that it takes."""
        change = self.change
        return OVERHEAD + len(change.path) + len(change.other) + len(change.value) + len(self.data or b"")

    @property
    def leads_elsewhere(self) -> bool:
        """Whether a path that the guest is asked about may be another one's after it."""
        return self.change.act in LEAVING


@dataclass(frozen=True, slots=True)
class Subjects:
    """What a change is about: what it moves, removes or links, and what it replaces; None if there is no such thing.

    `linked`: one of them is a file that had several names before.
    """

    what: Node | None = None
    replaced: Node | None = None
    linked: bool = False

    @classmethod
    def of(cls, what: Node, replaced: Node | None = None) -> "Subjects":
        """Return subjects as they are before the change."""
        linked = any(each is not None and not each.is_folder and each.nlink > 1 for each in (what, replaced))
        return cls(what, replaced, linked)


class Names:
    """What became of names since the checkpoint, and out of which folders something was moved."""

    def __init__(self) -> None:
        self.states: dict[bytes, Name] = {}
        self.left: set[bytes] = set()

    def note(self, logged: Logged, about: Subjects) -> None:
        """It is done after what was noted before."""
        states, change = self.states, logged.change
        if logged.data is not None or change.act in (Act.OPEN, Act.SETATTR, Act.SETXATTR, Act.REMOVEXATTR):
            if logged.node is None:
                states.setdefault(change.path, Name.TOUCHED)
            elif not logged.node.gone:
                states.setdefault(logged.node.path(), Name.TOUCHED)
        elif change.act in MAKING:
            states[change.path] = Name.MADE if makes_file(change) else Name.FIXED
        elif change.act == Act.UNLINK and not about.linked:
            states.setdefault(change.path, Name.TOUCHED)
        elif change.act == Act.RENAME:
            state = Name.MADE if states.get(change.path) is Name.MADE else Name.FIXED
            states[change.path] = states[change.other] = state
            self.left.add(change.path.rpartition(b"/")[0])
        elif change.act != Act.CLOSE:
            states[change.path] = Name.FIXED
            if change.act == Act.LINK:
                states[change.other] = Name.FIXED

    def endangered_by(self, change: Change, about: Subjects) -> bool:
        """Whether repeating all since then could go wrong, with this change among it."""
        before = self.states.get(change.path)
        if change.act in MAKING:
            return before is Name.FIXED if makes_file(change) else before is not None
        if change.act == Act.UNLINK:
            return about.linked
        if change.act == Act.RMDIR:
            return change.path in self.left
        if change.act == Act.LINK:
            return True
        if change.act == Act.RENAME:
            return self._rename_endangers(change, about)
        return False

    def _rename_endangers(self, change: Change, about: Subjects) -> bool:
        before, there = self.states.get(change.path), self.states.get(change.other)
        if _alone(change, about) or about.linked:
            return True
        if before is Name.MADE:
            return there is Name.FIXED
        return before is not None or there is not None or _are_open(about)


Opened = list[tuple[int, bytes, Node]]


class ChangeLog:
    """What is in the log, and what it says of names.

    The first `done` changes are done, the first `sent` may be: a guest was asked for them. A checkpoint is `wanted`
    from `want` on until it is `reached`, or given up; nothing is added meanwhile.
    `fragile`: of a folder that was made the disk may have the name and not the rest, which nothing mends.
    """

    def __init__(self, fragile: bool = False) -> None:
        self._fragile = fragile
        self.changes: list[Logged] = []
        self.opened: Opened = []  # handles at the checkpoint, and where they led to
        self.base = 0  # changes that are not kept any more
        self.sent = 0
        self.done = 0
        self.wanted = False
        self._opened_then: Opened = []
        self._bytes = 0
        self._names = Names()
        self._sealed_at = 0  # nothing may come after the change of this position
        self._last_names: list[bytes] = []  # of what the disk was said to have since it was left

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def accepted(self) -> int:
        """The position of the last change."""
        return self.base + len(self.changes)

    @property
    def confirmed(self) -> int:
        """The position up to which all are done."""
        return self.base + self.done

    @property
    def sealed(self) -> bool:
        """Whether a checkpoint must come before any change."""
        return self._sealed_at > self.base

    @property
    def full(self) -> bool:
        """Whether no more is to be kept."""
        return self._bytes >= JOURNAL_BYTES or len(self.changes) >= JOURNAL_CHANGES

    @property
    def names(self) -> list[bytes]:
        """What a few of the changes are about; of none at all the last ones before."""
        found: dict[bytes, None] = {}
        for logged in self.changes:
            if name := logged.name:
                found[name] = None
                if len(found) == MAX_LOST_NAMES:
                    break
        return list(found) or self._last_names

    def forget(self) -> None:
        """The disk has it all, and is left: nothing that was changed so far can be lost."""
        self.begin({})
        self._last_names = []

    def begin(self, handles: dict[int, Node]) -> None:
        """The disk has it all, or what it has not is lost."""
        self.want(handles)
        self.reached()

    def want(self, handles: dict[int, Node]) -> None:
        """A checkpoint comes after what is there."""
        self.wanted = True
        self._opened_then = [(handle, node.path(), node) for handle, node in handles.items() if not node.gone]

    def give_up(self) -> None:
        """It does not come about: all is kept."""
        self.wanted = False

    def reached(self) -> None:
        """The disk has all of it, or what it has not is lost."""
        self.wanted = False
        self._last_names = self.names
        self.base += len(self.changes)
        self.changes.clear()
        self.sent = self.done = self._bytes = 0
        self._names = Names()
        self.opened = self._opened_then

    def add(self, logged: Logged, about: Subjects, done: bool) -> None:
        """It comes after what is there, or was done."""
        self.changes.append(logged)
        logged.position = self.accepted
        if done:
            self.sent = self.done = len(self.changes)
        self._bytes += logged.cost
        self._names.note(logged, about)
        change = logged.change
        alone = change.act == Act.RENAME and (_alone(change, about) or _are_open(about))
        if alone or (self._fragile and change.act == Act.MKDIR):
            self._sealed_at = logged.position

    def last_unsent(self) -> Logged | None:
        """Return the last change, if no guest was asked for it."""
        return self.changes[-1] if self.sent < len(self.changes) else None

    def extend(self, data: bytes) -> Logged:
        """The last change, a write, goes on; return it."""
        last = self.changes[-1]
        if not isinstance(last.data, bytearray):
            last.data = bytearray(last.data or b"")
        last.data += data
        self._bytes += len(data)
        return last

    # --- what must not come after what -----------------------------------------------------------------------------
    def endangered_by(self, change: Change, about: Subjects) -> bool:
        """Whether a checkpoint must come before this change."""
        return bool(self.changes) and self._names.endangered_by(change, about)

    def unsent_handles(self) -> set[int]:
        """The handles of files that no guest was asked to open yet."""
        unsent = (logged.change for logged in self.changes[self.sent :])
        return {change.handle for change in unsent if change.act in (Act.CREATE, Act.OPEN)}


def excused(changes: Sequence[Logged], position: int, path: bytes, pending: Change | None = None) -> bool:
    """Whether there may be nothing at a path where a change is repeated: a later one removed it or its folder.

    `changes`: those that are repeated; `pending`: the one that is being done, and may have been.
    """
    later = [logged.change for logged in changes[position + 1 :]]
    for change in [*later, pending] if pending is not None else later:
        if change.act in LEAVING and (path == change.path or path.startswith(change.path + b"/")):
            return True
    return False


def _alone(change: Change, about: Subjects) -> bool:
    return bool(change.flags & Flag.EXCHANGE) or (about.what is not None and about.what.is_folder)


def _are_open(about: Subjects) -> bool:
    """Handles are opened again by their paths at the checkpoint, which are others once something was moved."""
    return any(each is not None and each.handle != 0 for each in (about.what, about.replaced))


def makes_file(change: Change) -> bool:
    """Whether a change makes a regular file."""
    return change.act == Act.CREATE or (change.act == Act.MKNOD and stat.S_ISREG(change.mode))
