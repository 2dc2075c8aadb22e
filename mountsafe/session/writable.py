"""The window of a medium that one file system may write to, as a disk: a boxed process alone can write there."""

import os

import trio

from mountsafe.encrypted.serving import Plaintext
from mountsafe.encrypted.tally import Counts, Tally
from mountsafe.errors import MountsafeError
from mountsafe.medium.encryption import Layer
from mountsafe.medium.flag import ReadOnlyFlag
from mountsafe.medium.swapped import Exchanged, is_same
from mountsafe.session.layered import LayeredDisk
from mountsafe.session.storage import Lender
from mountsafe.trios import in_thread


class Writable(LayeredDisk):
    """A window of `size` bytes from `start` on of a disk: see `mountsafe.session.storage.Lender`.

    `below`: the disk in the medium, or one that was unlocked. `medium`: a descriptor of the medium that is open for
    reading and writing, which stays the caller's; `flag`: the read-only flag of all that is written to through it.
    """

    writable = True
    model = ""  # in it is no partition table whose sectors would have to be known

    def __init__(
        self, below: Lender, medium: int, start: int, size: int, nursery: trio.Nursery, flag: ReadOnlyFlag | None = None
    ) -> None:
        super().__init__("the writing process", self._serving, below, Layer(((0, start, size),), size, None), nursery)
        self._medium = medium
        self.flag = flag or ReadOnlyFlag(medium)
        self._tally = Tally.made()
        self._failures = 0  # that were told of

    async def _serving(self) -> Plaintext:
        if not is_same(self._medium, self.base.medium.sequence):
            raise Exchanged("another medium is in its place")
        self.flag.lift(self)
        return Plaintext.start(self.stack, self._medium, self.keys, self._tally)

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of what lies below."""
        return self.below.keys

    @property
    def counts(self) -> Counts:
        """What was written so far."""
        return self._tally.read()

    async def settle(self) -> None:
        """End the process, and return when the medium has what it wrote. Raises MountsafeError.

        A medium that keeps nothing may hold the call for good: who is cancelled leaves it to itself.
        """
        await self.rest()
        try:
            await in_thread(os.fdatasync, self._medium)
        except OSError as error:
            raise MountsafeError(f"the medium did not keep what was written: {error.strerror}") from error
        else:
            counts = self.counts
            new, self._failures = counts.failures - self._failures, counts.failures
            if new > 0:
                raise MountsafeError(f"{new} writes to the medium failed: {os.strerror(counts.error)}")
        finally:
            self.flag.lower(self)

    async def close(self) -> None:
        """End the process for good."""
        await super().close()
        self.flag.lower(self)
        self._tally.close()
