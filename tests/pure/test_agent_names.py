"""A folder with entries that the kernel does not tell: every other one is found, whatever positions look like."""

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from mountsafe.agent.names import LAST, UNTOLD, names_in

MIDDLE = 1 << 62
BATCH = 3  # entries that the kernel tells at a time


class Folder:
    """A folder behind os.scandir and os.lseek, as Linux shows it. `entries`: (position, name or None if broken)."""

    def __init__(
        self, entries: list[tuple[int, bytes | None]], step: int = 1, last: int = LAST, error: int = errno.EIO
    ):
        self._entries = entries
        self._step = step
        self._last = last
        self._error = error
        self._at = 0

    def lseek(self, fd: int, position: int, whence: int) -> int:
        if whence == os.SEEK_SET:
            if position > self._last:
                raise OSError(errno.EINVAL, "beyond")
            self._at = position
        return self._at

    def scandir(self, fd: int) -> "Scan":
        return Scan(self)

    def getdents(self) -> list[bytes]:
        if self._at % self._step:
            raise OSError(errno.ENOENT, "misaligned")
        told: list[bytes] = []
        for position, name in self._entries:
            if position < self._at or len(told) == BATCH:
                continue
            if name is None:
                if not told:
                    self._at = position
                    raise OSError(self._error, "broken")
                self._at = position
                return told
            told.append(name)
            self._at = position + self._step
        return told

    def rewind(self) -> None:
        self._at = 0


class Named:
    def __init__(self, name: bytes) -> None:
        self.name = os.fsdecode(name)


class Scan:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._buffer: list[bytes] = []

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.rewind()  # CPython does, at an error as well

    def __iter__(self) -> Iterator[Named]:
        return self

    def __next__(self) -> Named:
        if not self._buffer:
            self._buffer = self._folder.getdents()
        if not self._buffer:
            raise StopIteration
        return Named(self._buffer.pop(0))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    def read(folder: Folder, kernel_type: str = "ext4") -> list[bytes]:
        monkeypatch.setattr(os, "lseek", folder.lseek)
        monkeypatch.setattr(os, "scandir", folder.scandir)
        try:
            return list(names_in(3, kernel_type))
        finally:
            monkeypatch.undo()

    return read


A, B, C, D = b"a", b"b", b"c", b"d"
FOLDERS = {
    "in the middle": ([A, None, B], [A, UNTOLD, B]),
    "at the beginning": ([None, A, B], [UNTOLD, A, B]),
    "at the end": ([A, B, None], [A, B, UNTOLD]),
    "after a batch": ([A, B, C, None, D], [A, B, C, UNTOLD, D]),
    "several": ([A, None, B, None, C, D, None], [A, UNTOLD, B, UNTOLD, C, D, UNTOLD]),
    "one after the other": ([A, None, None, None, B], [A, UNTOLD, B]),
}


@pytest.mark.parametrize(("entries", "wanted"), FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize(
    ("place", "kernel_type", "step"),
    [
        (lambda number: number, "hfsplus", 1),
        (lambda number: 24 + 40 * number, "ext2", 1),
        (lambda number: 64 + 96 * number, "vfat", 32),
        (lambda number: MIDDLE // 7 * number + 12345, "ext4", 1),
    ],
    ids=["numbers", "bytes", "slots", "hashes"],
)
def test_what_comes_after_a_broken_entry_is_told(
    listed: Callable[..., list[bytes]],
    entries: list[bytes | None],
    wanted: list[bytes],
    place: Callable[[int], int],
    kernel_type: str,
    step: int,
) -> None:
    folder = Folder([(place(number), name) for number, name in enumerate(entries)], step)
    assert listed(folder, kernel_type) == wanted


@pytest.mark.parametrize("last", [4096, 1 << 44, LAST])
def test_a_broken_entry_with_nothing_after_it(listed: Callable[..., list[bytes]], last: int) -> None:
    assert listed(Folder([(12, A), (40, None)], last=last)) == [A, UNTOLD]
    assert listed(Folder([(12, A), (last, None)], last=last)) == [A, UNTOLD]


def test_where_positions_are_not_known_the_rest_is_lost_and_that_is_told(listed: Callable[..., list[bytes]]) -> None:
    assert listed(Folder([(12, A), (40, None), (60, B)]), "udf") == [A, UNTOLD]


@pytest.mark.parametrize("entries", [[(12, None)], [(12, None), (13, None)]])
def test_a_folder_of_which_nothing_can_be_told_is_an_error(
    listed: Callable[..., list[bytes]], entries: list[tuple[int, bytes | None]]
) -> None:
    with pytest.raises(OSError, match="broken"):
        listed(Folder(entries))


def test_another_error_is_not_a_broken_entry(listed: Callable[..., list[bytes]]) -> None:
    assert listed(Folder([(12, A), (40, None), (60, B)], error=errno.EUCLEAN)) == [A, UNTOLD, B]
    with pytest.raises(OSError, match="broken"):
        listed(Folder([(12, A), (40, None), (60, B)], error=errno.ENOMEM))
