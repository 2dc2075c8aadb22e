"""Corrections to what drivers report about files: local times, and the sizes of files on exFAT."""

import stat
from collections.abc import Callable, Iterable

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
        self._changed: set[bytes] = set()  # paths of which the driver knows more than the device has

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
        found, before = self._exfat.folder(path), path + b"/" if path else b""

        def amend(name: bytes, numbers: Numbers) -> Numbers:
            return self._as_recorded(numbers, None if before + name in self._changed else found.get(name))

        return amend

    def one(self, path: bytes, numbers: Numbers) -> Numbers:
        """Amend what is told of one file or folder, not the root."""
        return self._timed(numbers, True, True) if self._exfat is None else self._as_recorded(numbers, self._of(path))

    def _of(self, path: bytes) -> Record | None:
        return None if self._exfat is None or path in self._changed else self._exfat.of(path)

    def written(self, path: bytes) -> tuple[int, int] | None:
        """Return how many bytes of a file were written, and its size, if it has more than those."""
        record = self._of(path)
        return (record.valid, record.size) if record is not None and record.valid < record.size else None

    # --- while it is changed -----------------------------------------------------------------------------------------
    def unsettled(self, path: bytes) -> Record | None:
        """Return what is recorded of a file or folder that has to be settled before it is changed; None if nothing is.

        exFAT's driver writes the size and all times of whatever it changes as it knows them.
        """
        record = self._of(path) if path else None
        if record is None or not (record.local_access or record.local_change or record.valid < record.size):
            return None
        return record

    def times(self, record: Record, accessed: int, changed: int) -> tuple[int, int]:
        """Return the times, as the driver tells them, of what `unsettled` has returned: when it was."""
        if self._times is None:
            return accessed, changed
        utc = self._times.utc
        return utc(accessed) if record.local_access else accessed, utc(changed) if record.local_change else changed

    def settled(self, numbers: Numbers) -> Numbers:
        """Amend what is told of a file that has been opened to be changed, or was just changed."""
        return numbers if self._exfat is not None else self._timed(numbers, True, True)

    def local(self, at: int) -> int:
        """Return a time that is to be set, in ns since the epoch, as the driver is to be told it."""
        return at if self._times is None or self._exfat is not None else self._times.local(at)

    @property
    def rests_on_paths(self) -> bool:
        """Whether what the device has of files is kept by their paths."""
        return self._exfat is not None

    def changed(self, path: bytes) -> None:
        """What the device has of a file or folder is old, until it is synchronised."""
        if self._exfat is not None:
            self._changed.add(path)
            self._exfat.forget(path)

    def removed(self, path: bytes) -> None:
        """A folder is no more."""
        if self._exfat is not None:
            self._exfat.removed(path)

    def synchronised(self, opened: Iterable[bytes] = ()) -> None:
        """The device has all, but for what is written now to open files. `opened`: their paths."""
        self._changed = set(opened) if self._exfat is not None else set()

    def moved(self) -> None:
        """Paths lead elsewhere now; all is synchronised."""
        if self._exfat is not None:
            self._exfat.forget_all()

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
