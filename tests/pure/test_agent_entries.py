"""What the agent tells of files: what lstat(2) says, whatever they are."""

import os
import socket
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent.entries import UNSEEN, all_packed, fitting, numbers, packed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "older").touch()
    os.utime(tmp_path / "older", ns=(-1, -1_500_000_000))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "folder").mkdir(mode=0o711)
    (tmp_path / "link").symlink_to("folder/elsewhere")
    (tmp_path / "long").symlink_to("x" * wire.MAX_TARGET)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    (tmp_path / os.fsdecode(b"\xff\n" + b"n" * 253)).touch()
    return tmp_path


def told(entries: list[bytes]) -> list[wire.Entry]:
    return wire.unpack_page(wire.pack_page(0, entries))[1]


def unread(entry: wire.Entry) -> wire.Entry:
    """To read a link is to access it: whoever looks next finds another time."""
    return entry._replace(atime=0) if entry.target else entry


def test_it_is_what_lstat_says(folder: Path) -> None:
    names = sorted(os.listdir(os.fsencode(folder)))
    fd = os.open(folder, os.O_RDONLY)
    try:
        found = told(all_packed(names, fd))
    finally:
        os.close(fd)
    assert [entry.name for entry in found] == names
    for entry in found:
        path = os.path.join(os.fsencode(folder), entry.name)
        target = os.readlink(path) if os.path.islink(path) else b""
        assert unread(entry) == unread(wire.Entry._make((entry.name, *numbers(os.lstat(path)), target)))


def test_amended_or_not_it_is_the_same(folder: Path) -> None:
    names = sorted(os.listdir(os.fsencode(folder)))
    fd = os.open(folder, os.O_RDONLY)
    try:
        amended = [packed(name, fd, lambda _, found: found) for name in names]
        assert list(map(unread, told(amended))) == list(map(unread, told(all_packed(names, fd))))
    finally:
        os.close(fd)


def test_what_cannot_be_looked_at_is_a_name_among_the_others(folder: Path) -> None:
    """A gap in a folder, where a name cannot be told, is an empty one."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        found = told(all_packed([b"file", b"gone", b"", b"older"], fd))
    finally:
        os.close(fd)
    assert [entry.name for entry in found] == [b"file", b"gone", b"", b"older"]
    assert [entry[1:-1] == UNSEEN for entry in found] == [False, True, True, False]


@pytest.mark.parametrize("seconds", [1 << 62, 9_223_372_037, -9_223_372_038, -(1 << 63)])
@pytest.mark.parametrize("at", [64, 96, 112], ids=["access", "status", "change"])  # in a `struct statx`
def test_a_time_beyond_64_bits_of_nanoseconds_is_the_last_that_there_is(at: int, seconds: int) -> None:
    statx = bytearray(wire.STATX)
    statx[at : at + 8] = seconds.to_bytes(8, "little", signed=True)
    (entry,) = told([wire.pack_told(memoryview(statx), b"name", b"")])
    last = (1 << 63) - 1 if seconds > 0 else -(1 << 63)
    assert sorted((entry.atime, entry.mtime, entry.ctime)) == sorted((0, 0, last))


def test_numbers_that_python_takes_for_negative_fit() -> None:
    assert fitting((0o100644, 1 << 33, 0, 0, 1, -12, -1, 1, 2, 3))[1:7] == (0, 0, 0, 1, (1 << 64) - 12, (1 << 64) - 1)
