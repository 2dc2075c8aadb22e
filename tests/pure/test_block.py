"""Raw reads: what is in memory at once, what is not by a thread, and the bytes are the same."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountsafe import trios
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
    return trios.run(BlockReader(medium, size).read, offset, length)


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


# --- what goes wrong at one place ------------------------------------------------------------------------------------
class Failing:
    """preadv of a medium of which a part cannot be read, in memory or not; everything else is in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, start: int, end: int) -> None:
        self.tries = 0
        self._real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
            self.tries += 1
            if offset < end and offset + len(buffers[0]) > start:
                raise OSError(number, os.strerror(number))
            return self._real(fd, buffers, offset, flags)

        monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ENOMEM, errno.EFAULT])
def test_a_bad_sector_slows_no_other_read(medium: int, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing = Failing(monkeypatch, number, 8192, 12288)
    reader = BlockReader(medium, SIZE)
    for _ in range(3):
        failing.tries = 0
        assert reader.read_now(8192, 4096) is None
        assert failing.tries == 1  # it is not tried over and over
        assert reader.read_now(4096, 4096) == os.pread(medium, 4096, 4096)
        assert reader.read_now(0, SIZE) is None
        assert reader.read_now(12288, SIZE - 12288) == os.pread(medium, SIZE, 12288)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_who_cannot_tell_what_is_at_hand_is_asked_once(
    medium: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing = Failing(monkeypatch, number, 0, SIZE)
    reader = BlockReader(medium, SIZE)
    for offset in range(0, SIZE - 4096, 4096):
        assert reader.read_now(offset, 4096) is None
    assert failing.tries == 1
    assert trios.run(reader.read, 0, SIZE) == os.pread(medium, SIZE, 0)


# --- a file that changes ---------------------------------------------------------------------------------------------
def test_what_is_gone_is_an_error_and_nothing_else(medium: int) -> None:
    whole = os.pread(medium, SIZE, 0)
    reader = BlockReader(medium, SIZE)
    assert not reader.cut_short()
    os.truncate(f"/proc/self/fd/{medium}", 100_000)
    assert reader.cut_short()
    for offset, length in [(0, 100_000), (99_999, 1), (50_000, 4096)]:
        assert trios.run(reader.read, offset, length) == whole[offset : offset + length]
    for offset, length in [(100_000, 1), (99_999, 2), (0, SIZE), (SIZE - 1, 1)]:
        assert reader.read_now(offset, length) is None
        with pytest.raises(MediumError):
            trios.run(reader.read, offset, length)
    assert trios.run(reader.read, SIZE, 512) == bytes(512)


def test_what_comes_to_it_does_not_belong_to_it(medium: int) -> None:
    reader = BlockReader(medium, SIZE)
    with open(f"/proc/self/fd/{medium}", "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"x" * 10_000)
    assert not reader.cut_short()
    assert reader.read_now(SIZE - 10, 20) is None
    assert trios.run(reader.read, SIZE - 10, 20) == os.pread(medium, 10, SIZE - 10) + bytes(10)


def test_a_device_has_no_size_of_its_own() -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert not BlockReader(fd, 1 << 20).cut_short()
    finally:
        os.close(fd)
