"""A guest that lies about where bytes are, or gives others: what is read is of the same medium, or an error."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pyfuse3
import pytest
import trio

from mountsafe import wire
from mountsafe.filesystem import reader as reader_module
from mountsafe.limits import REQUEST_DEADLINE
from mountsafe.medium.extents import Window
from mountsafe.wire import Extent, ExtentKind, Kind
from tests.guest import Liar, entry, layout
from tests.handlers.opened import fails, opened

SECRET = b"S" * 4096
INSIDE = bytes(range(1, 129)) * 64  # 8 KiB
WINDOW = Window(4096, len(INSIDE))


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """A medium with something before and after the partition that is mounted."""
    path = tmp_path / "medium"
    path.write_bytes(SECRET + INSIDE + SECRET)
    return path


def file(*extents: Extent, size: int = 4096) -> Liar:
    """A guest with one file: its extents are as told, its bytes are the start of the partition."""
    liar = Liar({b"": [entry(b"file", 12, size=size)]}, {b"file": INSIDE[:size]})
    liar.say[Kind.LAYOUT] = lambda _: layout((list(extents), not extents))
    return liar


def data(logical: int, physical: int, length: int) -> Extent:
    return Extent(logical, physical, length, ExtentKind.DATA)


@pytest.mark.parametrize(
    "extents",
    [
        [data(0, len(INSIDE), 4096)],
        [data(0, len(INSIDE) - 1, 4096)],
        [data(0, (1 << 64) - 4096, 4096)],
        [data(0, (1 << 63) - 1, 4096)],
        [data(0, 0, len(INSIDE) + 1)],
        [data(0, 0, 0)],
        [data(0, 0, 4096), data(0, 0, 4096)],
        [data(0, 0, 4096), data(4095, 4096, 10)],
        [data(4096, 0, 10), data(0, 0, 10)],
        [Extent(0, 0, 4096, 9)],
        [data((1 << 64) - 1, 0, 1)],
    ],
)
async def test_impossible_extents_are_an_incident_and_the_agent_is_asked(medium: Path, extents: list[Extent]) -> None:
    liar = file(*extents)
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        assert mount.incidents.count == 1
        assert liar.count(Kind.READ) == 1


@pytest.mark.parametrize("place", range(0, len(INSIDE), 512))
async def test_a_lie_that_passes_shows_bytes_of_the_same_partition(medium: Path, place: int) -> None:
    length = min(4096, len(INSIDE) - place)
    liar = file(data(0, place, length), size=length)
    liar.files[b"file"] = INSIDE[place : place + length]  # the guest lies consistently
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[place : place + length]
        assert mount.reader.direct


async def test_bytes_that_differ_switch_direct_reads_off_loudly(medium: Path) -> None:
    liar = file(data(0, 4096 + 64, 2048), data(2048, 0, 2048))
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert mount.reader.direct
        assert await mount.read(b"file") == INSIDE[:4096]
        assert not mount.reader.direct
        assert mount.incidents.count >= 1
        before = liar.count(Kind.READ)
        assert await mount.read(b"file") == INSIDE[:4096]
        assert liar.count(Kind.READ) == before + 1


async def test_zeros_prove_nothing(tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.write_bytes(bytes(4096) + INSIDE[:4096])  # a test may block
    liar = file(data(0, 0, 4096))
    liar.files[b"file"] = bytes(4096)
    async with opened(lambda: liar, medium) as mount:
        for turn in (1, 2, 3):
            assert await mount.read(b"file") == bytes(4096)
            assert liar.count(Kind.READ) == turn
    liar = file(data(0, 4096, 4096))
    async with opened(lambda: liar, medium) as mount:
        for _ in range(3):
            assert await mount.read(b"file") == INSIDE[:4096]
            assert liar.count(Kind.READ) == 1


async def test_holes_need_neither_guest_nor_medium() -> None:
    liar = file(Extent(0, 0, 1 << 40, ExtentKind.ZERO), size=1 << 40)
    async with opened(lambda: liar) as mount:
        assert await mount.read(b"file", (1 << 40) - 100, 4096) == bytes(100)
        assert liar.count(Kind.READ) == 0


async def test_a_mount_that_tells_no_extents_believes_none(medium: Path) -> None:
    liar = file(data(0, 64, 4096))
    liar.mounted = liar.mounted._replace(direct=False)
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        assert mount.incidents.count == 0
        assert liar.count(Kind.READ) == 1


@pytest.mark.parametrize("answer", [b"", b"short", INSIDE, b"x" * 4097])
async def test_other_than_the_bytes_asked_for_is_an_error(answer: bytes) -> None:
    liar = file()
    liar.say[Kind.READ] = lambda _: answer
    async with opened(lambda: liar) as mount, fails(errno.EIO):
        await mount.read(b"file")


@pytest.mark.real_clock
async def test_a_medium_that_is_shorter_than_it_was_is_an_error(medium: Path) -> None:
    liar = file(data(0, 0, 4096))
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        os.truncate(medium, 4096)
        async with fails(errno.EIO):
            await mount.read(b"file")


async def test_the_last_sector_of_a_medium_is_filled_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "medium"
    path.write_bytes(INSIDE[:1000])
    liar = file(data(0, 0, 1024), size=1024)
    liar.files[b"file"] = INSIDE[:1000] + bytes(24)
    async with opened(lambda: liar, path, Window(0, 1024)) as mount:
        assert await mount.read(b"file") == INSIDE[:1000] + bytes(24)
        assert await mount.read(b"file") == INSIDE[:1000] + bytes(24)
        assert liar.count(Kind.READ) == 1


# --- extents that are asked for ------------------------------------------------------------------------------------
def asking(answers: list[tuple[list[Extent], int]]) -> Liar:
    """The file's extents come on request, one answer after the other; the last one for ever."""
    liar = file()
    liar.say[Kind.EXTENTS] = lambda _: wire.pack_extents(*(answers.pop(0) if len(answers) > 1 else answers[0]))
    return liar


async def test_extents_come_in_several_answers_and_once(medium: Path) -> None:
    liar = asking([([data(0, 0, 2048)], 2048), ([data(2048, 2048, 2048)], 0)])
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        assert await mount.read(b"file") == INSIDE[:4096]
        assert liar.count(Kind.EXTENTS) == 2
        assert liar.count(Kind.READ) == 1
        assert mount.incidents.count == 0


async def test_extents_that_overlap_over_answers_are_an_incident(medium: Path) -> None:
    liar = asking([([data(0, 0, 2048)], 2048), ([data(1024, 2048, 2048)], 0)])
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        assert mount.incidents.count == 1


@pytest.mark.parametrize("following", [lambda at: at, lambda at: at - 1, lambda at: at + 1], ids=["same", "back", "on"])
@pytest.mark.parametrize("count", [0, 1])
async def test_extents_without_end_are_cut(
    medium: Path, count: int, following: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_EXTENT_QUESTIONS", 20)
    liar = file()

    def say(body: bytes) -> bytes:
        at = wire.unpack_extents_request(body)[1]
        return wire.pack_extents([data(at, 0, 1)] * count, max(0, following(at)))  # type: ignore[operator]

    liar.say[Kind.EXTENTS] = say
    async with opened(lambda: liar, medium, WINDOW) as mount:
        await mount.operations.open(await mount.walk(b"file"), 0, None)
        assert liar.count(Kind.EXTENTS) <= 20


async def test_extents_that_take_long_are_not_waited_for(medium: Path) -> None:
    """Who opens a file of 4 GiB whose chain of clusters is a circle waited for a minute and a half."""

    def slowly(body: bytes) -> bytes:
        trio.lowlevel.current_clock().jump(4.0)  # type: ignore[attr-defined]  # the tests' own
        at = wire.unpack_extents_request(body)[1]
        return wire.pack_extents([data(at, 0, 1)], at + 1)

    liar = file(size=1 << 32)
    liar.say[Kind.EXTENTS] = slowly
    began = trio.current_time()
    async with opened(lambda: liar, medium, WINDOW) as mount:
        await mount.operations.open(await mount.walk(b"file"), os.O_RDONLY, None)
    assert trio.current_time() - began < REQUEST_DEADLINE


async def test_more_extents_than_are_kept_go_through_the_agent(medium: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_EXTENTS_PER_FILE", 4)
    monkeypatch.setattr("mountsafe.medium.extents.MAX_EXTENTS_PER_FILE", 4)
    liar = asking([([data(at, at, 1) for at in range(10)], 10)])
    async with opened(lambda: liar, medium, WINDOW) as mount:
        assert await mount.read(b"file") == INSIDE[:4096]
        assert liar.count(Kind.READ) == 1


# --- files that are asked for together -----------------------------------------------------------------------------
NAMES = [b"a", b"b", b"c"]


def neighbours(files: list[tuple[list[Extent], bool]]) -> Liar:
    """Three files of 1 KiB whose extents come with one answer to LAYOUT; their bytes are the start of the partition."""
    entries = [entry(name, 12 + at, size=1024) for at, name in enumerate(NAMES)]
    liar = Liar({b"": entries}, dict.fromkeys(NAMES, INSIDE[:1024]))
    liar.say[Kind.LAYOUT] = lambda _: layout(*files)
    return liar


GOOD = ([data(0, 0, 1024)], False)


async def test_the_first_open_of_a_folder_learns_of_the_files_after_it(medium: Path) -> None:
    liar = neighbours([GOOD, GOOD, GOOD])
    async with opened(lambda: liar, medium, WINDOW) as mount:
        for name in NAMES:
            assert await mount.read(name) == INSIDE[:1024]
        assert liar.count(Kind.LAYOUT) == 1
        assert liar.count(Kind.READ) == 1  # the proof


@pytest.mark.parametrize(
    "files",
    [[], [GOOD], [GOOD] * 100, [([], True)] * 3, [([data(0, 1 << 40, 1024)], False)] * 3, [([], False)] * 3],
    ids=["none", "too few", "too many", "more of each", "outside", "nowhere"],
)
async def test_a_strange_layout_costs_nothing_but_time(medium: Path, files: list[tuple[list[Extent], bool]]) -> None:
    liar = neighbours(files)
    async with opened(lambda: liar, medium, WINDOW) as mount:
        for _ in range(2):
            for name in NAMES:
                assert await mount.read(name) == INSIDE[:1024]
        assert len(mount.host.guests) == 1
        assert liar.count(Kind.LAYOUT) <= 3


async def test_a_refused_layout_fails_one_open_at_most(medium: Path) -> None:
    liar = neighbours([])

    def refuse(body: bytes) -> bytes:
        raise OSError(5, "no")

    liar.say[Kind.LAYOUT] = refuse
    async with opened(lambda: liar, medium, WINDOW) as mount:
        with suppress(pyfuse3.FUSEError):
            await mount.read(b"a")
        for name in NAMES:
            assert await mount.read(name) == INSIDE[:1024]
