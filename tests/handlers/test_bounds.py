"""A guest that is never silent for long and never ends: calls end, and what is remembered of its lies is bounded."""

import errno
import os
import socket
import threading
from itertools import count
from pathlib import Path

import pytest
import trio

from mountsafe import wire
from mountsafe.appliance.client import AgentClient
from mountsafe.errors import GuestGone
from mountsafe.filesystem import index as index_module
from mountsafe.filesystem import operations as operations_module
from mountsafe.filesystem import reader as reader_module
from mountsafe.filesystem.index import ROOT
from mountsafe.filesystem.prefetch import prefetch
from mountsafe.limits import CALL_DEADLINE, REQUEST_DEADLINE
from mountsafe.medium import block as block_module
from mountsafe.medium.block import BlockReader
from mountsafe.wire import Entry, Extent, ExtentKind, Kind
from tests.guest import FolderWorker, Layout, Liar, entry, folder, link, page
from tests.handlers.opened import Opened, fails, opened

FOLDERS = 20


def endless(*entries: Entry) -> Liar:
    """The root has `FOLDERS` folders; each has page after page of new names, or of `entries` with new names."""
    liar = Liar()
    numbers = count()
    templates = entries or (entry(b""),) * 10

    def told(body: bytes) -> bytes:
        path, _ = wire.unpack_list(body)
        if not path:
            return page(*(folder(b"%d" % number) for number in range(FOLDERS)))
        return page(*(each._replace(name=b"n%d" % next(numbers)) for each in templates), cursor=7)

    liar.say[Kind.LIST] = told
    return liar


# --- time ----------------------------------------------------------------------------------------------------------
async def test_a_call_that_needs_many_slow_answers_ends() -> None:
    """Each answer comes in time, and there is always another one."""
    liar = endless()
    async with opened(lambda: liar) as mount:
        inode = await mount.walk(b"3")
        liar.pause = REQUEST_DEADLINE * 0.9
        started = trio.current_time()
        async with fails(errno.ETIMEDOUT):
            await mount.operations.lookup(inode, b"it is not there", None)
        assert trio.current_time() - started == pytest.approx(CALL_DEADLINE)
        assert (await mount.operations.getattr(inode, None)).st_ino == inode
        assert not mount.host.misbehaved


@pytest.mark.parametrize("what", ["open", "read"])
async def test_a_file_in_endless_slow_pieces_ends(what: str) -> None:
    liar = Liar({b"": [entry(b"file", 12, size=1 << 40)]}, {b"file": bytes(1 << 20)})
    holes = [Extent(2 * at, 0, 1, ExtentKind.ZERO) for at in range(1000)]  # and a byte of the agent's after each
    liar.say[Kind.EXTENTS] = lambda _: wire.pack_extents(holes, 0)
    liar.say[Kind.READ] = lambda body: bytes(wire.unpack_read(body)[2])
    async with opened(lambda: liar) as mount:
        inode = await mount.walk(b"file")
        if what == "open":
            liar.say[Kind.EXTENTS] = lambda body: wire.pack_extents([], wire.unpack_list(body)[1] + 1)
            liar.pause = REQUEST_DEADLINE * 0.9
            started = trio.current_time()
            await mount.operations.open(inode, os.O_RDONLY, None)  # its patience ends first
        else:
            handle = await mount.operations.open(inode, os.O_RDONLY, None)
            liar.pause = REQUEST_DEADLINE * 0.9
            started = trio.current_time()
            async with fails(errno.ETIMEDOUT):
                await mount.operations.read(handle.fh, 0, 2000)
        assert trio.current_time() - started <= CALL_DEADLINE + 1


async def test_a_question_that_was_cut_short_is_the_last_one() -> None:
    """The guest does not read, and whoever asks gives up: the guest would take the next question for the rest."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = AgentClient(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        with trio.move_on_after(1.0):
            await client.request(Kind.XATTRS, bytes(wire.MAX_BODY))
        with pytest.raises(GuestGone):
            await client.request(Kind.STATFS)
    theirs.close()


async def test_a_question_that_was_not_begun_may_be_cancelled() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = AgentClient(ours)
    liar = Liar()
    decoder = wire.Decoder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(client.request, Kind.XATTRS, bytes(wire.MAX_BODY))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await client.request(Kind.STATFS)
        assert client.ended is None
        far = trio.socket.from_stdlib_socket(theirs)
        while not (frames := decoder.feed(await far.recv(1 << 20))):
            pass
        await far.send(liar.answer(frames[0]))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client.request, Kind.STATFS)
        (frame,) = decoder.feed(await far.recv(1 << 20))
        await far.send(liar.answer(frame))
        await trio.testing.wait_all_tasks_blocked()
        client.end(GuestGone("done"))
        far.close()


# --- memory --------------------------------------------------------------------------------------------------------
def kept(mount: Opened) -> int:
    return len(mount.index)


async def test_learning_ahead_stops_in_the_middle_of_a_folder() -> None:
    liar = endless()
    async with opened(lambda: liar) as mount:
        await prefetch(mount.agents, mount.index, mount.reader, limit=200)
        asked = liar.count(Kind.LIST)
        await trio.sleep(100.0)
        assert liar.count(Kind.LIST) == asked
        assert kept(mount) <= 200 + FOLDERS
        names = {name for name, _ in mount.index.listing(mount.index.node(await mount.walk(b"0")), 1).order}
        assert b"n0" in names
        assert liar.count(Kind.LIST) == asked


async def test_folders_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_INDEX_ENTRIES", 1000)
    monkeypatch.setattr(index_module, "MAX_DIRECTORY_ENTRIES", 2000)
    liar = endless()
    async with opened(lambda: liar, limit=100) as mount:
        inodes = [await mount.walk(b"%d" % number) for number in range(FOLDERS)]
        failed = 0

        async def look(inode: int) -> None:
            nonlocal failed
            async with fails(errno.ENOMEM):
                await mount.operations.lookup(inode, b"it is not there", None)
            failed += 1

        async with trio.open_nursery() as nursery:
            for inode in inodes:
                nursery.start_soon(look, inode)
        assert failed == FOLDERS
        assert kept(mount) <= 2 * FOLDERS
        assert await mount.names()  # and the rest goes on
        liar.say[Kind.LIST] = lambda _: page(entry(b"file"))
        assert await mount.names(b"0") == [b"file"]
        assert mount.index._entries <= FOLDERS + 1


async def test_long_link_targets_count_as_several_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_DIRECTORY_ENTRIES", 1000)
    liar = endless(*[link(b"", b"t" * wire.MAX_TARGET)] * 10)
    async with opened(lambda: liar) as mount:
        assert len(await mount.names(b"0")) <= 1000 * index_module.ENTRY_BYTES // wire.MAX_TARGET + 10
        assert mount.incidents.count == 1


async def test_plans_of_many_extents_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_EXTENTS", 500)
    content = bytes(range(250)) * 16
    files = {b"%d" % number: content for number in range(50)}
    liar = Liar({b"": [entry(name, 100 + int(name), size=len(content)) for name in files]}, files)
    holes = [Extent(2 * at, 0, 1, ExtentKind.ZERO) for at in range(100)]
    liar.say[Kind.EXTENTS] = lambda _: wire.pack_extents(holes, 0)
    async with opened(lambda: liar) as mount:
        for name in files:
            await mount.read(name)
        nodes = [node for _, node in mount.index.listing(mount.index.node(ROOT)).order]
        assert sum(len(node.plan) for node in nodes) == mount.reader.plans.extents == 500
        assert [node.unplanned for node in nodes] == [True] * 45 + [False] * 5
        asked = liar.count(Kind.EXTENTS)
        assert await mount.read(b"0", 1, 1) == content[1:2]  # asked for again, and the oldest makes room
        assert liar.count(Kind.EXTENTS) == asked + 1
        assert mount.reader.plans.extents == 500


# --- disks ---------------------------------------------------------------------------------------------------------
@pytest.mark.real_clock
async def test_a_disk_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends, other files are read, and so is this one when the disk has come back."""
    medium, tree = tmp_path / "medium", tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 5000)
    (tree / "other").write_bytes(b"y" * 5000)
    layout = Layout.store(tree, medium)
    awake = threading.Event()
    read_exactly = block_module.read_exactly

    def hanging(fd: int, offset: int, length: int) -> bytes:
        awake.wait(60.0)
        return read_exactly(fd, offset, length)

    monkeypatch.setattr(BlockReader, "read_now", lambda self, offset, length: None)
    async with opened(lambda: FolderWorker(tree, layout=layout), medium) as mount:
        assert await mount.read(b"file") == b"x" * 5000
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "read_exactly", hanging)
            patch.setattr(operations_module, "CALL_DEADLINE", 0.3)
            async with fails(errno.ETIMEDOUT):
                await mount.read(b"file")
        assert await mount.read(b"other") == b"y" * 5000
        awake.set()
        assert await mount.read(b"file") == b"x" * 5000
