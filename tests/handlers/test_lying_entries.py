"""A guest that lies about folders and files: the kernel is never told what is impossible, and incidents are counted."""

import errno
import os
import stat
from typing import Any

import pyfuse3
import pytest

from mountsafe import wire
from mountsafe.errors import GuestFault
from mountsafe.filesystem import index as index_module
from mountsafe.filesystem.index import MADE_INODE, ROOT
from mountsafe.filesystem.links import BLOCKED
from mountsafe.filesystem.operations import View
from mountsafe.wire import Entry, Kind
from tests.guest import IMPOSSIBLE_NAMES, Liar, entry, folder, link, page
from tests.handlers.opened import fails, opened

GOOD = entry(b"good", 12)


# --- names and attributes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lie",
    [
        *map(entry, IMPOSSIBLE_NAMES),
        entry(b"x", mode=0o644),
        entry(b"x", mode=0o170000),
        entry(b"x", mode=0xFFFF),
        entry(b"x", size=1 << 63),
        entry(b"x", size=(1 << 64) - 1),
        entry(b"x", blocks=1 << 63),
        link(b"x", b""),
        link(b"x", b"a\0b"),
        entry(b"x", target=b"not a link"),
    ],
    ids=lambda lie: f"{lie.name!r} {lie.mode:o}",
)
async def test_an_impossible_entry_is_dropped_and_the_rest_is_shown(lie: Entry) -> None:
    async with opened(lambda: Liar({b"": [GOOD, lie, entry(b"after", 13)]})) as mount:
        assert await mount.names() == [b"good", b"after"]
        assert mount.incidents.count == 1


async def test_a_name_that_comes_twice_is_shown_once() -> None:
    async with opened(lambda: Liar({b"": [GOOD, folder(b"good", 13), GOOD]})) as mount:
        assert await mount.names() == [b"good"]
        assert (await mount.operations.getattr(await mount.walk(b"good"), None)).st_ino == 12
        assert mount.incidents.count == 2


EXTREMES = [
    entry(b"x", nlink=0, uid=0xFFFFFFFF, gid=0xFFFFFFFF),
    entry(b"x", nlink=0xFFFFFFFF, size=(1 << 63) - 1, blocks=(1 << 63) - 1),
    entry(b"x", atime=-(1 << 63), mtime=-(1 << 63), ctime=-(1 << 63)),
    entry(b"x", atime=(1 << 63) - 1, mtime=-1, ctime=(1 << 63) - 1),
    entry(b"x", mode=0, size=(1 << 64) - 1, blocks=0, ino=5),
    entry(b"x", mode=0, blocks=(1 << 64) - 1),
    entry(b"x", mode=stat.S_IFCHR | 0o7777),
    entry(b"x", mode=stat.S_IFBLK | 0o4666),
]


@pytest.mark.parametrize("extreme", EXTREMES, ids=range(len(EXTREMES)))
async def test_extreme_attributes_never_stop_a_listing(extreme: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []

    def reply(token: object, name: bytes, attributes: Any, following: int) -> bool:
        told.append(name)
        assert attributes.st_rdev == 0
        assert not attributes.st_mode & 0o7000
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    async with opened(lambda: Liar({b"": [GOOD, extreme, entry(b"after", 13)]})) as mount:
        handle = await mount.operations.opendir(ROOT, None)
        await mount.operations.readdir(handle, 0, None)
        assert {b"good", b"after"} <= set(told)


async def test_what_the_guest_could_not_look_at_is_a_name_that_cannot_be_opened() -> None:
    async with opened(lambda: Liar({b"": [entry(b"broken", mode=0)]})) as mount:
        inode = await mount.walk(b"broken")
        assert (await mount.operations.getattr(inode, None)).st_mode == stat.S_IFREG
        async with fails(errno.EIO):
            await mount.operations.open(inode, os.O_RDONLY, None)


@pytest.mark.parametrize(
    "root", [entry(b""), link(b"", b"/etc"), folder(b"", mode=0), folder(b"", size=1 << 63), folder(b"", mode=0xFFFF)]
)
async def test_a_root_that_is_no_folder_is_not_mounted(root: Entry) -> None:
    liar = Liar()
    liar.mounted = liar.mounted._replace(root=root)
    with pytest.raises(GuestFault):
        async with opened(lambda: liar):
            pass


# --- inode numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ino", [0, ROOT, 1 << 62, 1 << 63, (1 << 64) - 1])
async def test_an_impossible_inode_number_is_replaced(ino: int) -> None:
    async with opened(lambda: Liar({b"": [entry(b"a", ino), entry(b"b", ino)]})) as mount:
        numbers = {await mount.walk(b"a"), await mount.walk(b"b")}
        assert len(numbers) == 2
        assert all(MADE_INODE <= number < 1 << 63 for number in numbers)


@pytest.mark.parametrize(
    "second",
    [
        entry(b"b", 12, size=6, nlink=2),
        entry(b"b", 12, size=5, nlink=1),
        entry(b"b", 12, size=5, nlink=2, mtime=1),
        entry(b"b", 12, size=5, nlink=2, mode=stat.S_IFREG | 0o600),
        folder(b"b", 12),
        link(b"b", b"a", 12, nlink=2),
    ],
)
async def test_a_number_used_twice_is_not_taken_for_a_hard_link(second: Entry) -> None:
    async with opened(lambda: Liar({b"": [entry(b"a", 12, size=5, nlink=2), second]})) as mount:
        assert await mount.walk(b"a") == 12
        assert await mount.walk(b"b") >= MADE_INODE


async def test_a_folder_is_never_a_hard_link() -> None:
    """The kernel would move it about."""
    async with opened(lambda: Liar({b"": [folder(b"a", 12), folder(b"b", 12)], b"a": [], b"b": [GOOD]})) as mount:
        assert await mount.walk(b"a") != await mount.walk(b"b")
        assert await mount.names(b"a") == []
        assert await mount.names(b"b") == [b"good"]


async def test_a_symbolic_link_in_two_folders_is_two_nodes() -> None:
    """How far it may climb depends on the folder that it is in."""
    up = link(b"up", b"../..", 12, nlink=2)
    tree = {b"": [folder(b"a", 10), up], b"a": [folder(b"b", 11)], b"a/b": [up]}
    async with opened(lambda: Liar(tree), view=View(None, None, True)) as mount:
        deep = await mount.operations.readlink(await mount.walk(b"a/b/up"), None)
        shallow = await mount.operations.readlink(await mount.walk(b"up"), None)
        assert deep == b"../.."
        assert shallow.startswith(BLOCKED)


@pytest.mark.parametrize("order", [(b"twice", b"a/b/twice"), (b"a/b/twice", b"twice")], ids=["down", "up"])
async def test_a_folder_at_two_depths_is_two_folders(order: tuple[bytes, bytes]) -> None:
    """The kernel would take it for one, and move it: what may be climbed in the one place leads out in the other."""
    twice, up = folder(b"twice", 12, nlink=4), link(b"up", b"../..", 13, nlink=2)
    tree = {b"": [folder(b"a", 10), twice], b"a": [folder(b"b", 11)], b"a/b": [twice]}
    tree |= {b"twice": [up], b"a/b/twice": [up]}
    async with opened(lambda: Liar(tree), view=View(None, None, True)) as mount:
        seen = {path: (await mount.walk(path), await mount.walk(path + b"/up")) for path in order}
        assert len({number for numbers in seen.values() for number in numbers}) == 4
        for _ in range(2):
            assert await mount.operations.readlink(seen[b"a/b/twice"][1], None) == b"../.."
            assert (await mount.operations.readlink(seen[b"twice"][1], None)).startswith(BLOCKED)


# --- trees that do not end -----------------------------------------------------------------------------------------
async def test_a_folder_that_is_its_own_child_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_DEPTH", 50)
    liar = Liar()
    liar.say[Kind.LIST] = lambda _: page(folder(b"again", 12))
    async with opened(lambda: liar) as mount:
        await mount.walk(b"/".join([b"again"] * 51))
        async with fails(errno.ELOOP):
            await mount.walk(b"/".join([b"again"] * 52))


async def test_a_path_longer_than_a_request_carries_ends() -> None:
    liar = Liar()
    liar.say[Kind.LIST] = lambda _: page(folder(b"n" * 255, 12))
    async with opened(lambda: liar) as mount, fails(errno.ELOOP):
        await mount.walk(b"/".join([b"n" * 255] * 200))


def endless(step: Any) -> Liar:
    """Every page has another one after it."""
    liar = Liar()
    told = iter(range(10_000))  # then the test fails, and does not hang
    liar.say[Kind.LIST] = lambda _: page(*step(next(told)), cursor=7)
    return liar


@pytest.mark.parametrize(
    "step",
    [
        lambda number: [entry(b"%d" % number)],
        lambda number: [entry(b"the same")],
        lambda number: [entry(b"a/b")],
        lambda number: [],
    ],
    ids=["new names", "the same name", "an impossible name", "no name"],
)
async def test_an_endless_folder_is_cut(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_DIRECTORY_ENTRIES", 100)
    liar = endless(step)
    async with opened(lambda: liar) as mount:
        assert len(await mount.names()) <= 100
        assert mount.incidents.count > 0
        assert liar.count(Kind.LIST) <= 101


async def test_a_folder_that_repeats_itself_ends_at_once() -> None:
    """UDF's driver starts anew where an entry is broken: found by the hostile run, where it went on for two minutes."""
    liar = endless(lambda number: [GOOD, entry(b"other")])
    async with opened(lambda: liar) as mount:
        assert await mount.names() == [b"good", b"other"]
        assert mount.incidents.count == 1
        assert liar.count(Kind.LIST) == 2


async def test_a_cursor_that_is_always_stale_ends() -> None:
    liar = Liar()

    def stale(body: bytes) -> bytes:
        raise OSError(errno.ESTALE, "stale")

    liar.say[Kind.LIST] = stale
    async with opened(lambda: liar) as mount:
        async with fails(errno.ESTALE):
            await mount.operations.opendir(ROOT, None)
        assert liar.count(Kind.LIST) == 3


async def test_a_cursor_that_was_forgotten_starts_the_listing_anew() -> None:
    liar = Liar()
    pages = [page(entry(b"a", 11), cursor=5), None, page(entry(b"a", 11), entry(b"b"), cursor=6), page(entry(b"c"))]
    turns = iter(pages)

    def say(body: bytes) -> bytes:
        turn = next(turns)
        if turn is None:
            raise OSError(errno.ESTALE, "stale")
        return turn

    liar.say[Kind.LIST] = say
    async with opened(lambda: liar) as mount:
        assert await mount.names() == [b"a", b"b", b"c"]
        assert mount.incidents.count == 0
        cursors = [wire.unpack_list(body)[1] for kind, body in liar.asked if kind == Kind.LIST]
        assert cursors == [0, 5, 0, 6]


# --- what the host keeps for itself --------------------------------------------------------------------------------
async def test_xattrs_with_a_nul_or_of_a_namespace_that_counts_are_dropped() -> None:
    liar = Liar({b"": [GOOD]})
    pairs = [
        (b"user.a", b"1"),
        (b"security.ima", b"x"),
        (b"user.\0b", b"x"),
        (b"", b"x"),
        (b"osx.c", b"2"),
        (b"users", b""),
    ]
    liar.say[Kind.XATTRS] = lambda _: wire.pack_xattrs(pairs)
    async with opened(lambda: liar) as mount:
        inode = await mount.walk(b"good")
        assert await mount.operations.listxattr(inode, None) == [b"user.a", b"osx.c"]
        assert await mount.operations.getxattr(inode, b"osx.c", None) == b"2"
        assert liar.count(Kind.XATTRS) == 1


async def test_a_bug_in_a_handler_is_an_errno_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(lambda: Liar({b"": [GOOD]})) as mount:
        inode = await mount.walk(b"good")

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(mount.operations, "_attributes", broken)
        async with fails(errno.EIO):
            await mount.operations.getattr(inode, None)
        async with fails(errno.EIO):
            await mount.operations.read(99, 0, 1)


async def test_a_number_that_the_kernel_was_not_told_is_stale() -> None:
    async with opened(lambda: Liar({b"": [GOOD]})) as mount:
        for number in (2, 0, 1 << 63):
            async with fails(errno.ESTALE):
                await mount.operations.getattr(number, None)
        await mount.operations.forget([(2, 1), (ROOT, 5)])
        assert (await mount.operations.getattr(ROOT, None)).st_ino == ROOT


async def test_a_number_given_to_another_link_while_a_folder_was_open_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a link near the root would lead where one deep down may lead: out of the mount."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
    tree = {
        b"": [folder(b"deep", 10), folder(b"near", 11), folder(b"large", 12)],
        b"deep": [folder(b"er", 13)],
        b"deep/er": [link(b"l", b"../..", 77)],
        b"near": [link(b"m", b"inside", 77)],
        b"large": [entry(b"%d" % number, 100 + number) for number in range(20)],
    }
    async with opened(lambda: Liar(tree), limit=8) as mount:
        handle = await mount.operations.opendir(await mount.walk(b"deep/er"), None)
        await mount.names(b"large")
        near = await mount.walk(b"near/m")
        assert near == 77
        async with fails(errno.ESTALE):
            await mount.operations.readdir(handle, 0, None)
        assert await mount.operations.readlink(near, None) == b"inside"


async def test_a_folder_that_was_forgotten_while_it_was_open_is_listed_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda token, name, *_: told.append(name) or True)
    files = [entry(b"%d" % number, 100 + number) for number in range(6)]
    tree = {b"": [folder(b"a", 10), folder(b"b", 11)], b"a": files, b"b": [entry(b"x", 50), entry(b"y", 51)]}
    async with opened(lambda: Liar(tree), limit=5) as mount:
        inode = await mount.walk(b"a")
        handle = await mount.operations.opendir(inode, None)
        await mount.names(b"b")
        await mount.operations.lookup(inode, b"3", None)  # learned anew: other nodes, the same numbers
        await mount.operations.readdir(handle, 0, None)
        assert told == [each.name for each in files]
        assert (await mount.operations.getattr(103, None)).st_ino == 103
