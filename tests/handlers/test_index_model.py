"""The index against a model of the kernel: whatever is looked up, listed, forgotten and evicted, in whatever order.

The kernel keeps an inode as long as it holds a name of it, and a folder as long as it holds anything below; it forgets
an inode with all the times that it was told of it at once.
"""

import errno
import stat
from typing import Any

import pyfuse3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountsafe import trios, wire
from mountsafe.filesystem.index import ROOT
from mountsafe.wire import Entry, Kind
from tests.guest import Liar, entry, folder, link
from tests.handlers.opened import Opened, opened

FOLDERS = [b"", b"a", b"b", b"a/c", b"a/c/d", b"b/e"]


def small_tree() -> dict[bytes, list[Entry]]:
    """Some folders with files; the file "hard" is the same everywhere, "own" and "up" are not."""
    tree: dict[bytes, list[Entry]] = {}
    for number, path in enumerate(FOLDERS):
        tree[path] = [
            entry(b"own", 100 + number, size=number, nlink=1),
            entry(b"hard", 50, size=7, nlink=len(FOLDERS)),
            link(b"up", b"../..", 150 + number),
        ]
        for below, child in enumerate(FOLDERS):
            parent, _, name = child.rpartition(b"/")
            if child and parent == path:
                tree[path].append(folder(name, 10 + below))
    return tree


TREE = small_tree()


class Kernel:
    """What Linux holds of a FUSE mount: names with their inodes, and how often it was told of each inode."""

    def __init__(self, mount: Opened) -> None:
        self._mount = mount
        self._listings: dict[bytes, int] = {}
        self.dentries: dict[bytes, int] = {}
        self.told: dict[int, int] = {}
        self.numbers: dict[bytes, int] = {}  # every number ever seen of a path

    async def walk(self, path: bytes) -> int:
        """Look a path up, with what is held used as it is; return the inode."""
        inode, here = ROOT, b""
        for name in path.split(b"/"):
            if not name:
                continue
            here = here + b"/" + name if here else name
            if here not in self.dentries:
                attributes = await self._mount.operations.lookup(inode, name, None)
                assert attributes.st_ino, here
                self._tell(here, attributes)
            inode = self.dentries[here]
        return inode

    def _tell(self, path: bytes, attributes: Any) -> None:
        inode = attributes.st_ino
        self.told[inode] = self.told.get(inode, 0) + 1
        assert self.numbers.setdefault(path, inode) == inode, f"another number for {path!r}"
        self.dentries[path] = inode
        expected = next(e for e in TREE[path.rpartition(b"/")[0]] if e.name == path.rpartition(b"/")[2])
        assert (attributes.st_mode, attributes.st_size) == (expected.mode, expected.size)

    async def open_folder(self, path: bytes) -> None:
        inode = await self.walk(path)
        if path not in self._listings:
            self._listings[path] = await self._mount.operations.opendir(inode, None)

    async def list_some(self, path: bytes, start: int, room: int, patch: pytest.MonkeyPatch) -> None:
        """Read up to `room` entries of an open folder."""
        if path not in self._listings:
            return
        left = room

        def reply(token: object, name: bytes, attributes: Any, following: int) -> bool:
            nonlocal left
            left -= 1
            if left >= 0:
                self._tell(path + b"/" + name if path else name, attributes)
            return left >= 0

        patch.setattr(pyfuse3, "readdir_reply", reply)
        await self._mount.operations.readdir(self._listings[path], start, None)

    async def close_folder(self, path: bytes) -> None:
        if path in self._listings:
            await self._mount.operations.releasedir(self._listings.pop(path))

    async def drop(self, path: bytes) -> None:
        """Let go of a name, and of its inode with the last one."""
        held = [*self.dentries, *self._listings]
        if path not in self.dentries or path in self._listings or any(name.startswith(path + b"/") for name in held):
            return
        inode = self.dentries.pop(path)
        if inode not in self.dentries.values():
            await self._mount.operations.forget([(inode, self.told.pop(inode))])

    async def check(self) -> None:
        """Everything that is held is known, and is what it was."""
        for path, inode in self.dentries.items():
            attributes = await self._mount.operations.getattr(inode, None)
            expected = next(e for e in TREE[path.rpartition(b"/")[0]] if e.name == path.rpartition(b"/")[2])
            assert attributes.st_ino == inode
            assert (attributes.st_mode, attributes.st_size) == (expected.mode, expected.size)
            if stat.S_ISLNK(expected.mode):
                shown = await self._mount.operations.readlink(inode, None)
                assert (shown == expected.target) is (path.count(b"/") >= 2), path


PATHS = st.sampled_from(
    [f"{path.decode()}/{e.name.decode()}".lstrip("/").encode() for path in TREE for e in TREE[path]]
)
IN_FOLDERS = st.sampled_from(FOLDERS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("walk"), PATHS),
        st.tuples(st.just("drop"), PATHS),
        st.tuples(st.just("drop all"), st.none()),
        st.tuples(st.just("open"), IN_FOLDERS),
        st.tuples(st.just("list"), IN_FOLDERS, st.integers(0, 6), st.integers(1, 6)),
        st.tuples(st.just("close"), IN_FOLDERS),
        st.tuples(st.just("fail"), st.integers(1, 3)),
    ),
    max_size=40,
)


async def act(kernel: Kernel, step: tuple[Any, ...], liar: Liar, patch: pytest.MonkeyPatch) -> None:
    match step:
        case ("walk", path):
            await kernel.walk(path)
        case ("drop", path):
            await kernel.drop(path)
        case ("drop all", _):
            for path in sorted(kernel.dentries, key=len, reverse=True):
                await kernel.drop(path)
        case ("open", path):
            await kernel.open_folder(path)
        case ("list", path, start, room):
            await kernel.list_some(path, start, room, patch)
        case ("close", path):
            await kernel.close_folder(path)
        case ("fail", times):
            liar.failures = times  # type: ignore[attr-defined]


class Moody(Liar):
    """Refuses to list for a while."""

    failures = 0

    def answer(self, request: wire.Frame) -> bytes:
        if request.kind == Kind.LIST and self.failures:
            self.failures -= 1
            return wire.frame(request.ident, Kind.ERROR, wire.pack_error(errno.EACCES, b""))
        return super().answer(request)


@given(STEPS, st.integers(1, 12))
@settings(max_examples=150)
def test_what_the_kernel_holds_stays_known_and_keeps_its_number(steps: list[tuple[Any, ...]], limit: int) -> None:
    async def run() -> None:
        liar = Moody(TREE)
        async with opened(lambda: liar, limit=limit) as mount:
            kernel = Kernel(mount)
            with pytest.MonkeyPatch.context() as patch:
                for step in steps:
                    try:
                        await act(kernel, step, liar, patch)
                    except pyfuse3.FUSEError as error:
                        assert error.errno == errno.EACCES  # noqa: PT017  # the guest's refusal, passed on
                    await kernel.check()
            assert mount.incidents.count == 0

    trios.run(run)


async def test_forgetting_everything_leaves_no_more_than_the_limit() -> None:
    async with opened(lambda: Liar(TREE), limit=5) as mount:
        for path in TREE:
            for each in TREE[path]:
                await mount.walk(path + b"/" + each.name)
        for inode in list(mount.index._nodes):
            await mount.operations.forget([(inode, 1000)])
        in_use = sum(len(TREE[path]) for path in FOLDERS[:1]) + max(map(len, TREE.values()))
        assert len(mount.index) <= 1 + in_use + 5


@pytest.mark.parametrize("limit", range(1, 20))
async def test_a_folder_that_outlives_its_parents_keeps_its_number(limit: int) -> None:
    """It was used later than its parents, so they are evicted before it, and learned anew."""
    async with opened(lambda: Liar(TREE), limit=limit) as mount:
        kernel = Kernel(mount)
        for path in (b"a/c/d/own", b"b/own", b"a/c/d/hard"):
            await kernel.walk(path)
        for held in sorted(kernel.dentries, key=len, reverse=True):
            await kernel.drop(held)
        await kernel.walk(b"a/c/d/up")
        await kernel.check()


async def test_the_kernel_is_asked_to_let_go_of_files_of_forgotten_folders() -> None:
    """Of files that it holds, and never of folders: one of them may be where somebody is."""
    tree = {b"": [folder(b"%d" % at, 10 + at) for at in range(4)]}
    for at in range(4):
        tree[b"%d" % at] = [
            *(entry(b"f%d" % number, 100 * at + 100 + number) for number in range(10)),
            folder(b"in", 90 + at),
        ]
        tree[b"%d/in" % at] = []
    released: list[tuple[int, bytes]] = []
    async with opened(lambda: Liar(tree), limit=20) as mount:
        mount.index._release = lambda parent, name: released.append((parent, name))
        for at in range(4):
            for each in tree[b"%d" % at][at:]:  # the kernel is not told of the others
                await mount.walk(b"%d/" % at + each.name)
    assert released == [(10 + at, b"f%d" % number) for at in range(3) for number in range(at, 10)]
