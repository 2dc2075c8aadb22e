"""The window of a medium that one file system may write to, as a disk: a boxed process alone can write there."""

import os

import trio

from mountsafe.encrypted.serving import Plaintext
from mountsafe.encrypted.tally import Counts, Tally
from mountsafe.errors import MountsafeError
from mountsafe.medium.encryption import Layer, Stack
from mountsafe.medium.flag import ReadOnlyFlag
from mountsafe.medium.part import WHOLE
from mountsafe.medium.swapped import Exchanged, is_same
from mountsafe.session.maker import Maker
from mountsafe.session.storage import Storage
from mountsafe.trios import in_thread


class Writable(Maker):
    """A window of `size` bytes from `start` on of the disk in a medium: see `mountsafe.session.storage.Lender`.

    `medium`: a descriptor of the medium that is open for reading and writing, which stays the caller's; `flag`: the
    read-only flag of all that is written to through it.
    """

    writable = True
    model = ""  # in it is no partition table whose sectors would have to be known
    keys: tuple[int, ...] = ()

    def __init__(
        self, base: Storage, medium: int, start: int, size: int, nursery: trio.Nursery, flag: ReadOnlyFlag | None = None
    ) -> None:
        super().__init__("the writing process", self._serving, nursery, size)
        self.part = WHOLE
        self.size = size
        self.base = base
        self._medium = medium
        self._flag = flag or ReadOnlyFlag(medium)
        self._layer = Layer(((0, start, size),), size, None)
        self._tally = Tally.made()

    async def _serving(self) -> Plaintext:
        if not is_same(self._medium, self.base.medium.sequence):
            raise Exchanged("another medium is in its place")
        self._flag.lift(self)
        return Plaintext.start(self.stack, self._medium, (), self._tally)

    @property
    def stack(self) -> Stack:
        """How the window is made of the medium."""
        below = self.base.stack
        return Stack(below.raw, below.reach, below.offset, below.size, (self._layer,))

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
        finally:
            self._flag.lower(self)

    async def close(self) -> None:
        """End the process for good."""
        await super().close()
        self._flag.lower(self)
        self._tally.close()
