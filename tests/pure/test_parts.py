"""A part of a disk: what the options say, what of it can be, and that no read leaves it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.cli.sizes import bytes_of, checked_part
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.part import DiskPart, Part
from mountsafe.trios import run


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("0x100000", 1 << 20),
        ("1MiB", 1 << 20),
        ("1M", 1 << 20),
        ("1m", 1 << 20),
        ("1MB", 10**6),
        ("2048s", 1 << 20),
        ("63s", 63 * 512),
        ("7B", 7),
        ("3 GiB", 3 << 30),
        ("2T", 2 << 40),
    ],
)
def test_a_number_of_bytes(words: str, number: int) -> None:
    assert bytes_of("--offset", words) == number


@pytest.mark.parametrize("words", ["", "x", "1Q", "1.5M", "0x", "1e6", "1 2", "M", "9" * 40, "\x1b[2J", "1iB", "٣"])
def test_what_is_no_number_of_bytes(words: str) -> None:
    with pytest.raises(UserError, match="no number of bytes") as failure:
        bytes_of("--offset", words)
    assert failure.value.code == ExitCode.USAGE
    assert "\x1b" not in failure.value.message


@pytest.mark.parametrize(
    ("offset", "limit", "words"),
    [
        ("-1", None, "negative"),
        (None, "-512", "negative"),
        (None, "0", "leaves nothing"),
        (None, "1000", "no multiple of 512"),
        ("8E", None, "more than any disk has"),
        (None, "9999999999999999999", "more than any disk has"),
    ],
)
def test_parts_that_no_disk_has(offset: str | None, limit: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as failure:
        checked_part(offset, limit)
    assert failure.value.code == ExitCode.USAGE


def test_a_part_is_within_its_disk() -> None:
    assert Part().within(1000, "it") == 1000
    assert Part(488).within(1000, "it") == 512
    assert Part(512).within(1100, "it") == 588
    assert Part(1, None).within(1600, "it") == 1536
    assert Part(488, 512).within(1000, "it") == 512
    with pytest.raises(UserError, match="within the last sector"):
        Part(999).within(1000, "it")
    for part in (Part(1000), Part(1 << 70), Part(488, 1024), Part(0, 1024)):
        with pytest.raises(UserError, match="beyond the end: it has 1000 bytes") as failure:
            part.within(1000, "it")
        assert failure.value.code == ExitCode.USAGE


class Recorded:
    """A disk of the bytes 0, 1, 2... that refuses every read that leaves `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def _bytes(self, offset: int, length: int) -> bytes:
        assert self._low <= offset <= offset + length <= self._high
        return bytes(number & 0xFF for number in range(offset, offset + length))

    def read_now(self, offset: int, length: int) -> memoryview:
        return memoryview(self._bytes(offset, length))

    async def read(self, offset: int, length: int) -> bytes:
        return self._bytes(offset, length)

    def cut_short(self) -> bool:
        return False


@given(st.integers(0, 2000), st.integers(1, 2000), st.integers(0, 3000), st.integers(1, 3000))
def test_no_read_leaves_the_part(start: int, size: int, offset: int, length: int) -> None:
    part = DiskPart(Recorded(start, start + size), start, size)
    there = [number & 0xFF for number in range(start, start + size)]
    expected = bytes(there[offset : offset + length]).ljust(length, b"\0")
    assert run(part.read, offset, length) == expected
    now = part.read_now(offset, length)
    assert now is None or bytes(now) == expected
    assert (now is None) == (offset + length > size)
