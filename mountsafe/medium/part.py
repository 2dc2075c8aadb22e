"""The part of a disk that counts, if not all of it does: its offsets count from where it begins in its medium."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mountsafe.errors import ExitCode, UserError
from mountsafe.text import size as shown

if TYPE_CHECKING:
    from mountsafe.medium.block import Disk  # with trio, which a command that only asks for a part has no use for

UNIT = 512  # bytes: the sectors of a disk in the guest, of which it has no half


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes from `offset` on, or all up to the disk's end."""

    offset: int = 0
    size: int | None = None

    @classmethod
    def checked(cls, offset: int, size: int | None) -> "Part":
        """Return a part that a disk can have. Raises UserError (USAGE); what is beyond its end shows later."""
        if offset < 0:
            raise UserError(f"--offset {offset} is negative", "It counts from the beginning.", ExitCode.USAGE)
        if size is not None and (size <= 0 or size % UNIT):
            what = f"--sizelimit {size} " + (f"is no multiple of {UNIT}" if size > 0 else "leaves nothing")
            nearest = max(UNIT, size // UNIT * UNIT)
            raise UserError(what, f"A disk has whole sectors: --sizelimit {nearest}, for example.", ExitCode.USAGE)
        return cls(offset, size)

    def within(self, whole: int, name: str) -> int:
        """Return how many bytes it has of a disk of `whole` bytes. Raises UserError (USAGE), which `name`s the disk.

        QEMU fills the last sector of a medium with zeros, but of one that begins inside of a sector it would have up to
        two too many: such a part ends with its last whole one.
        """
        there = f"{name} has {whole} bytes ({shown(whole)})"
        left = whole - self.offset
        if left <= 0 or (self.offset and left < UNIT):
            hint = "--offset says after how many bytes the disk or the file system begins."
            where = "beyond the end" if left <= 0 else "within the last sector"
            raise UserError(f"--offset {self.offset} is {where}: {there}", hint, ExitCode.USAGE)
        if self.size is None:
            return left // UNIT * UNIT if self.offset % UNIT else left
        if self.size > left:
            hint = f"--sizelimit {left // UNIT * UNIT} is the most; without it, all is taken up to the end."
            what = f"--sizelimit {self.size} reaches beyond the end"
            raise UserError(f"{what}: {there}, {left} after --offset {self.offset}", hint, ExitCode.USAGE)
        return self.size


WHOLE = Part()


class DiskPart:
    """A disk of which only `size` bytes from `offset` on are there."""

    def __init__(self, disk: "Disk", offset: int, size: int) -> None:
        self._disk = disk
        self._offset = offset
        self._size = size

    def read_now(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes if they can be had at once, or None. They are valid until the next call."""
        if not 0 <= offset <= self._size - length:
            return None
        return self._disk.read_now(self._offset + offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end, in its sector, are zeros."""
        available = max(0, min(length, self._size - offset))
        data = await self._disk.read(self._offset + offset, available) if available else b""
        return data.ljust(length, b"\0")

    def cut_short(self) -> bool:
        """Whether the medium is seen to be shorter than it was."""
        return self._disk.cut_short()
