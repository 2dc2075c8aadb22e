"""The journal against a model: whatever is changed, and whenever virtual machines die, the tree comes to be the same.

When one dies, the disk has the state at the last checkpoint or any later one, with some of the bytes that were written.
Two mounts do the same, and in one of them nothing dies: what programs see, and what is there in the end, is the same.
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mountsafe import trios
from mountsafe.filesystem import changelog, delivery
from mountsafe.filesystem.index import ROOT
from tests.handlers.disk import Disk, DiskGuest
from tests.handlers.opened import Opened, opened

CTX = SimpleNamespace(uid=1000, gid=1000, pid=1, umask=0)
NAMES = [b"a", b"b", b"c", b"d/a", b"d/b", b"e", b"e/a", b"d", b"d/e"]
Step = tuple[Any, ...]


@dataclass
class Program:
    """What uses a mount: calls by path, files that it has open by a number of its own."""

    mount: Opened
    open: dict[int, int] = field(default_factory=dict)
    said: list[object] = field(default_factory=list)

    async def do(self, step: Step) -> None:
        """One step; what came of it is put down."""
        what, *arguments = step
        try:
            self.said.append((what, await getattr(self, "_" + what)(*arguments)))
        except pyfuse3.FUSEError as error:
            self.said.append((what, os.strerror(error.errno)))
        except FileNotFoundError:
            self.said.append((what, "not there"))

    async def _place(self, path: bytes) -> tuple[int, bytes]:
        above, _, name = path.rpartition(b"/")
        return await self.mount.walk(above), name

    async def _file(self, path: bytes) -> int:
        """The kernel opens nothing else."""
        inode = await self.mount.walk(path)
        if not stat.S_ISREG(self.mount.index.node(inode).mode):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return inode

    async def _save(self, path: bytes, data: bytes) -> int:
        """As a shell's > does."""
        operations = self.mount.operations
        try:
            handle = (await operations.open(await self._file(path), os.O_WRONLY | os.O_TRUNC, CTX)).fh
        except FileNotFoundError:
            info, _ = await operations.create(*await self._place(path), 0o644, os.O_WRONLY, CTX)  # type: ignore[attr-defined]
            handle = info.fh
        try:
            return await operations.write(handle, 0, data)  # type: ignore[attr-defined,no-any-return]
        finally:
            await operations.release(handle)

    async def _hold(self, path: bytes, number: int) -> None:
        if number not in self.open:
            info = await self.mount.operations.open(await self._file(path), os.O_RDWR, CTX)
            self.open[number] = info.fh

    async def _put(self, number: int, offset: int, data: bytes) -> object:
        if number in self.open:
            return await self.mount.operations.write(self.open[number], offset, data)  # type: ignore[attr-defined]
        return None

    async def _get(self, number: int) -> object:
        if number in self.open:
            return bytes(await self.mount.operations.read(self.open[number], 0, 1000))
        return None

    async def _drop(self, number: int) -> None:
        if number in self.open:
            await self.mount.operations.release(self.open.pop(number))

    async def _mkdir(self, path: bytes) -> None:
        await self.mount.operations.mkdir(*await self._place(path), 0o755, CTX)  # type: ignore[attr-defined]

    async def _symlink(self, path: bytes) -> None:
        await self.mount.operations.symlink(*await self._place(path), b"to/" + path, CTX)  # type: ignore[attr-defined]

    async def _mknod(self, path: bytes) -> None:
        await self.mount.operations.mknod(*await self._place(path), 0o100600, 0, CTX)  # type: ignore[attr-defined]

    async def _link(self, path: bytes, other: bytes) -> None:
        inode = await self.mount.walk(path)
        if not self.mount.index.node(inode).is_folder:  # as the kernel sees to it
            await self.mount.operations.link(inode, *await self._place(other), CTX)  # type: ignore[attr-defined]

    async def _rename(self, path: bytes, other: bytes, flags: int) -> None:
        if (other + b"/").startswith(path + b"/") or (path + b"/").startswith(other + b"/"):
            return  # as the kernel sees to it
        operations = self.mount.operations
        moved = self.mount.index.node(await self.mount.walk(path))
        try:
            target = self.mount.index.node(await self.mount.walk(other))
        except FileNotFoundError:
            target = None
        if target is None or flags or target.is_folder == moved.is_folder:
            await operations.rename(*await self._place(path), *await self._place(other), flags, CTX)  # type: ignore[attr-defined]

    async def _unlink(self, path: bytes) -> None:
        await self.mount.operations.unlink(*await self._place(path), CTX)  # type: ignore[attr-defined]

    async def _rmdir(self, path: bytes) -> None:
        await self.mount.operations.rmdir(*await self._place(path), CTX)  # type: ignore[attr-defined]

    async def _set(self, path: bytes, **wanted: int) -> None:
        fields = SimpleNamespace(**{f"update_{each}": each in wanted for each in FIELDS})
        attr = SimpleNamespace(**{f"st_{each}": wanted.get(each, 0) for each in FIELDS}, st_atime_ns=0, st_mtime_ns=0)
        await self.mount.operations.setattr(await self.mount.walk(path), attr, fields, None, CTX)  # type: ignore[attr-defined]

    async def _truncate(self, path: bytes, size: int) -> None:
        await self._file(path)
        await self._set(path, size=size)

    async def _chmod(self, path: bytes, mode: int) -> None:
        await self._file(path)
        await self._set(path, mode=mode)

    async def _xattr(self, path: bytes, value: bytes) -> None:
        await self.mount.operations.setxattr(await self.mount.walk(path), b"user.x", value, CTX)  # type: ignore[attr-defined]

    async def _sync(self) -> None:
        assert self.mount.journal is not None
        await self.mount.journal.sync()

    async def _settle(self) -> None:
        """As after a longer rest; not while a file without a name is open."""
        journal = self.mount.journal
        assert journal is not None
        await journal.sync()
        journal._last = trio.current_time() - 100
        await journal.run(journal._rest)

    async def _forget(self) -> None:
        """The kernel holds what is open."""
        held = {node.ino for node in self.mount.operations._handles.values()}
        for inode in list(self.mount.index._nodes):
            if inode not in held | {ROOT}:
                await self.mount.operations.forget([(inode, 1000)])


FIELDS = ("mode", "uid", "gid", "size", "atime", "mtime")
PATHS = st.sampled_from(NAMES)
NUMBERS = st.integers(0, 2)
BYTES = st.binary(max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), PATHS, BYTES),
        st.tuples(st.just("save"), PATHS, BYTES),
        st.tuples(st.just("rename"), PATHS, PATHS, st.just(0)),
        st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 1, 2])),
        st.tuples(st.just("unlink"), PATHS),
        st.tuples(st.just("mkdir"), PATHS),
        st.tuples(st.just("rmdir"), PATHS),
        st.tuples(st.just("link"), PATHS, PATHS),
        st.tuples(st.just("symlink"), PATHS),
        st.tuples(st.just("mknod"), PATHS),
        st.tuples(st.just("truncate"), PATHS, st.integers(0, 9)),
        st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o444])),
        st.tuples(st.just("xattr"), PATHS, BYTES),
        st.tuples(st.just("hold"), PATHS, NUMBERS),
        st.tuples(st.just("put"), NUMBERS, st.integers(0, 5), BYTES),
        st.tuples(st.just("get"), NUMBERS),
        st.tuples(st.just("drop"), NUMBERS),
        st.sampled_from([("sync",), ("settle",), ("forget",)]),
    ),
    max_size=30,
)


async def run(steps: list[Step], make: Callable[[], DiskGuest], limit: int) -> tuple[list[object], Opened]:
    async with opened(make, writable=True, limit=limit) as mount:
        program = Program(mount)
        for step in [("mkdir", b"d"), ("mkdir", b"e"), ("save", b"a", b"A"), ("settle",), *steps]:
            await program.do(step)
        for number in list(program.open):
            await program.do(("drop", number))
        assert mount.journal is not None
        await mount.journal.end()
        return program.said, mount


def compare(steps: list[Step], deaths: list[tuple[int, bool]], seed: int, limit: int = 1000) -> int:
    """Do the steps in two mounts; return how many changes were repeated. The first that dies writes what is there."""
    left = list(deaths)
    disks = Disk(), Disk(seed)

    async def both() -> int:
        expected, _ = await run(steps, lambda: DiskGuest(disks[0]), limit)
        said, mount = await run(steps, lambda: DiskGuest(disks[1], left), limit)
        # What had no name is lost with the machine.
        lost = [index for index, (one, other) in enumerate(zip(expected, said, strict=True)) if one != other]
        assert all(said[index] in [(what, os.strerror(5)) for what in ("put", "get")] for index in lost), [
            (expected[index], said[index]) for index in lost
        ]
        assert disks[1].now.facts() == disks[0].now.facts()
        assert mount.host.lost == []
        assert mount.host.misbehaved == []
        assert mount.journal is not None
        return mount.journal.repeated

    return trios.run(both)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BETWEEN", 0.0)
    monkeypatch.setattr(delivery, "ATTEMPTS", 100)


DEATHS = st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=6)


@given(STEPS, DEATHS, st.integers(0, 1000), st.sampled_from([3, 1000]))
@settings(max_examples=int(os.environ.get("MOUNTSAFE_JOURNAL_EXAMPLES", "300")), deadline=None)
def test_machines_die_and_the_tree_is_the_same(
    steps: list[Step], deaths: list[tuple[int, bool]], seed: int, limit: int
) -> None:
    compare(steps, deaths, seed, limit)


@pytest.mark.parametrize("kept", [changelog.JOURNAL_CHANGES, 20])
@pytest.mark.parametrize("seed", range(20))
def test_long_stories(seed: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, of more steps than hypothesis likes; also where checkpoints are always on their way (`kept`)."""
    monkeypatch.setattr(changelog, "JOURNAL_CHANGES", kept)
    chance = random.Random(seed)
    kinds: list[Callable[[], Step]] = [
        lambda: ("save", chance.choice(NAMES), chance.randbytes(5)),
        lambda: ("rename", chance.choice(NAMES), chance.choice(NAMES), chance.choice([0, 0, 0, 1, 2])),
        lambda: ("unlink", chance.choice(NAMES)),
        lambda: (chance.choice(["mkdir", "rmdir", "symlink", "mknod"]), chance.choice(NAMES)),
        lambda: ("link", chance.choice(NAMES), chance.choice(NAMES)),
        lambda: ("truncate", chance.choice(NAMES), chance.randrange(9)),
        lambda: ("hold", chance.choice(NAMES), chance.randrange(3)),
        lambda: ("put", chance.randrange(3), chance.randrange(5), chance.randbytes(4)),
        lambda: (chance.choice(["get", "drop"]), chance.randrange(3)),
        lambda: (chance.choice(["sync", "settle", "forget"]),),
    ]
    weights = [5, 5, 3, 3, 1, 1, 2, 3, 2, 0.5]
    steps = [chance.choices(kinds, weights)[0]() for _ in range(300)]
    deaths = [(chance.randrange(1, 40), chance.random() < 0.7) for _ in range(60)]
    assert compare(steps, deaths, seed) > 0
