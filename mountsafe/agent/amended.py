"""What a driver tells of files otherwise than it is to be shown: local times, and the sizes of files on exFAT."""

import stat
from collections.abc import Callable

from mountsafe import wire
from mountsafe.agent import localtimes
from mountsafe.agent.exfat import Exfat, Record
from mountsafe.agent.localtimes import LocalTimes

Numbers = tuple[int, ...]  # of a wire.Entry, as `tree` has them
MODE, SIZE, BLOCKS, ACCESSED, CHANGED, STATUS = 0, 5, 6, 7, 8, 9  # places in them
Amend = Callable[[bytes, Numbers], Numbers]


class Amended:
    """How what is told of one mounted file system is amended. `times`: None if local times stay as they are."""

    def __init__(self, kernel_type: str, device: str = "", times: LocalTimes | None = None) -> None:
        self._exfat = Exfat(device) if kernel_type == "exfat" and device else None
        self._times = times if kernel_type in localtimes.LOCAL else None
        self._root_too = kernel_type not in localtimes.ROOT_WITHOUT

    def close(self) -> None:
        """Let go of the device."""
        if self._exfat is not None:
            self._exfat.close()

    def root(self, numbers: Numbers) -> Numbers:
        """Amend what is told of the root folder."""
        return self._timed(numbers, True, True) if self._root_too else numbers

    def in_folder(self, path: bytes) -> Amend | None:
        """Return how the numbers of what is in a folder are amended, each by its name; None if they are right."""
        if self._exfat is None:
            return None if self._times is None else lambda _, numbers: self._timed(numbers, True, True)
        found = self._exfat.folder(path)
        return lambda name, numbers: self._as_recorded(numbers, found.get(name))

    def written(self, path: bytes) -> tuple[int, int] | None:
        """Return how many bytes of a file were written, and its size, if it has more than those."""
        record = None if self._exfat is None else self._exfat.of(path)
        return (record.valid, record.size) if record is not None and record.valid < record.size else None

    def _as_recorded(self, numbers: Numbers, record: Record | None) -> Numbers:
        if record is None:
            return numbers
        if record.valid < record.size and stat.S_ISREG(numbers[MODE]) and self._exfat is not None:
            blocks = -(-record.size // self._exfat.cluster_size) * (self._exfat.cluster_size // 512)
            numbers = (*numbers[:SIZE], record.size, blocks, *numbers[ACCESSED:])
        return self._timed(numbers, record.local_access, record.local_change)

    def _timed(self, numbers: Numbers, access: bool, change: bool) -> Numbers:
        if self._times is None:
            return numbers
        utc = self._times.utc
        accessed = utc(numbers[ACCESSED]) if access else numbers[ACCESSED]
        changed, status = (utc(at) if change else at for at in numbers[CHANGED : STATUS + 1])
        return (*numbers[:ACCESSED], accessed, changed, status)


def padded(told: tuple[list[wire.Extent], int], written: tuple[int, int] | None) -> tuple[list[wire.Extent], int]:
    """Return extents of a file, and where to go on, with zeros where nothing was written: what lies there is old."""
    if written is None:
        return told
    extents, following = told
    valid, size = written
    kept = [each._replace(length=min(each.length, valid - each.logical)) for each in extents if each.logical < valid]
    if following and following < valid:
        return kept, following
    return [*kept, wire.Extent(valid, 0, size - valid, wire.ExtentKind.ZERO)], 0
