"""Raw reads: what is in memory at once, what is not by a thread, and the bytes are the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mountsafe.medium import block
from mountsafe.medium.block import BlockReader, MediumError

SIZE = 300_000


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "medium"
    path.write_bytes(os.urandom(SIZE))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def read(medium: int, size: int, offset: int, length: int) -> bytes:
    return trio.run(BlockReader(medium, size).read, offset, length)


class Absent:
    """preadv of a medium that is not in memory: the first `times` tries would block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.tries = 0
        self._times = times
        self._real = os.preadv
        monkeypatch.setattr(os, "preadv", self._read)

    def _read(self, fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        self.tries += 1
        if self.tries <= self._times:
            raise BlockingIOError
        return self._real(fd, buffers, offset, flags)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, SIZE), (4095, 70_000), (SIZE - 1, 1), (SIZE, 0)])
@pytest.mark.parametrize("times", [0, 1, 1 << 30])
def test_the_bytes_are_right(
    medium: int, offset: int, length: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Absent(monkeypatch, times)
    assert read(medium, SIZE, offset, length) == os.pread(medium, length, offset)


@pytest.mark.parametrize("length", [4096, SIZE])
def test_what_is_in_memory_is_read_at_once(medium: int, length: int) -> None:
    assert BlockReader(medium, SIZE).read_now(0, length) == os.pread(medium, length, 0)


def test_a_fast_disk_is_waited_for(medium: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "PATIENCE", 60.0)
    Absent(monkeypatch, 3)
    assert BlockReader(medium, SIZE).read_now(4096, 4096) == os.pread(medium, 4096, 4096)


def waits(reader: BlockReader, absent: Absent, reads: int) -> list[int]:
    """Which of so many small reads were waited for."""
    waited = []
    for number in range(reads):
        absent.tries = 0
        reader.read_now(0, 4096)
        if absent.tries > 1:
            waited.append(number)
    return waited


def test_a_slow_disk_is_waited_for_less_and_less(medium: int, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent(monkeypatch, 1 << 30)
    waited = waits(BlockReader(medium, SIZE), absent, 400)
    assert waited == [0, 2, 5, 10, 19, 36, 69, 134, 199, 264, 329, 394]


def test_a_disk_that_was_late_once_is_waited_for_soon_again(medium: int, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent(monkeypatch, 1 << 30)
    reader = BlockReader(medium, SIZE)
    assert waits(reader, absent, 100)
    monkeypatch.setattr(reader, "_distrust", 0)
    monkeypatch.setattr(absent, "_times", 3)
    assert waits(reader, absent, 1) == [0]
    monkeypatch.setattr(absent, "_times", 1 << 30)
    assert waits(reader, absent, 6) == [0, 2, 5]


def test_a_large_read_is_not_waited_for(medium: int, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent(monkeypatch, 1 << 30)
    assert BlockReader(medium, SIZE).read_now(0, block.SMALL + 1) is None
    assert absent.tries == 1


def test_beyond_the_end_nothing_is_to_be_had_at_once(medium: int) -> None:
    assert BlockReader(medium, SIZE).read_now(SIZE - 10, 20) is None


def test_the_last_sector_ends_in_zeros(medium: int) -> None:
    data = read(medium, SIZE, SIZE - 10, 512)
    assert data == os.pread(medium, 10, SIZE - 10) + bytes(502)


def test_a_medium_that_lost_its_end_is_an_error(medium: int) -> None:
    with pytest.raises(MediumError):
        read(medium, SIZE + 100_000, SIZE - 10, 100)


def test_near_a_small_read_that_waited_more_is_fetched(medium: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: asked.append((offset, length)))
    monkeypatch.setattr(block, "NEAR", 10_000)
    Absent(monkeypatch, 1 << 30)
    reader = BlockReader(medium, SIZE)
    for offset in (50_000, 55_000, 40_000, 200_000):
        assert reader.read_now(offset, 100) is None
    assert [length for _, length in asked] == [100, block.NEIGHBOURHOOD, 100, 100]
