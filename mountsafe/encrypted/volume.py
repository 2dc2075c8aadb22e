"""The bytes that a parser looks at: a bounded view of an encrypted volume, without I/O of its own."""

from collections.abc import Callable
from dataclasses import dataclass

from mountsafe.encrypted.faults import Fault, KeyFault

Read = Callable[[int, int], bytes]  # offset, length; fewer bytes at the end
MAX_TAKEN = 8 << 20  # bytes at a time: LUKS2's largest header is 4 MiB, a key slot's area 2 MiB


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of `size` bytes; what is behind its end is cut off."""

    read: Read
    size: int

    def take(self, offset: int, length: int) -> bytes:
        """Return `length` bytes. Raises KeyFault (CUT_OFF, and DAMAGED for a length that nothing has)."""
        if not 0 < length <= MAX_TAKEN:
            raise KeyFault(Fault.DAMAGED, "length")
        if not 0 <= offset <= self.size - length:
            raise KeyFault(Fault.CUT_OFF)
        data = self.read(offset, length)
        if len(data) != length:
            raise KeyFault(Fault.CUT_OFF)
        return data
