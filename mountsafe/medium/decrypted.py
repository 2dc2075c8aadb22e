"""A disk made of another one, for readers that must not block: the session, which decrypts its own direct reads.

To be imported while modules can be: what decrypts is loaded with it.
"""

from collections.abc import Sequence

from mountsafe.medium import ciphers as ciphers  # else it would be looked for when /usr is closed
from mountsafe.medium.block import Disk
from mountsafe.medium.encryption import Stack
from mountsafe.medium.part import DiskPart
from mountsafe.medium.stacked import Decryptor, Plan, Run, decryptors


class Decrypted:
    """The disk that a layer makes of the one below. What is at hand there is decrypted where it lies."""

    def __init__(self, below: Disk, plan: Plan, decryptor: Decryptor | None) -> None:
        self._below = below
        self._plan = plan
        self._decryptor = decryptor
        self.size = plan.size

    def read_now(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes if they can be had at once, or None. They are valid until the next call.

        That is so where all of them are in one run below, which most files are.
        """
        if not 0 <= offset <= self.size - length:
            return None
        runs = self._plan.runs(offset, length)
        if len(runs) != 1 or len(runs[0].pieces) != 1:
            return None
        _, _, skip, whole, iv, ((_, where, many),) = runs[0]
        if many != whole:
            return None
        view = self._below.read_now(where, whole)
        if view is None:
            return None
        if iv is not None and self._decryptor is not None:
            if view.readonly:
                view = memoryview(bytearray(view))
            self._decryptor.decrypt(view, iv)
        return view if whole == length else view[skip : skip + length]

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises MediumError. Beyond the end, in its sector, are zeros."""
        available = max(0, min(length, self.size - offset))
        parts = [await self._read(run) for run in self._plan.runs(offset, available)] if available else []
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data if available == length else data.ljust(length, b"\0")

    async def _read(self, run: Run) -> bytes:
        data = bytearray(run.whole)
        for shift, where, many in run.pieces:
            data[shift : shift + many] = await self._below.read(where, many)
        if run.iv is not None and self._decryptor is not None:
            self._decryptor.decrypt(memoryview(data), run.iv)
        return bytes(memoryview(data)[run.skip : run.skip + run.length])

    def cut_short(self) -> bool:
        """Whether the medium is seen to be shorter than it was."""
        return self._below.cut_short()


def open_disk(stack: Stack, medium: Disk, keys: Sequence[int]) -> Disk:
    """Return the disk that a stack makes of its medium, of which `stack.reach` bytes are read through `medium`.

    `keys`: a descriptor for each layer that has a layout; all of them are closed. Raises ProtocolFault.
    """
    disk = medium
    if stack.offset or stack.size != stack.reach:  # who reads all of it is spared one call for each read
        disk = DiskPart(disk, stack.offset, stack.size)
    for layer, decryptor in zip(stack.layers, decryptors(stack, keys), strict=True):
        disk = Decrypted(disk, Plan(layer), decryptor)
    return disk
