"""A disk that a boxed process makes of another one, by one more layer: plaintext, or a window to write to."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio

from mountsafe.medium.encryption import Layer, Stack
from mountsafe.medium.part import WHOLE
from mountsafe.medium.stacked import size_of
from mountsafe.session.maker import DiskServer, Maker
from mountsafe.session.storage import Lender, Storage


class LayeredDisk(Maker):
    """What is the same of all of them as of a `mountsafe.session.storage.Lender`. `below`: what it is made of."""

    def __init__(
        self, what: str, start: Callable[[], Awaitable[DiskServer]], below: Lender, layer: Layer, nursery: trio.Nursery
    ) -> None:
        self.part = WHOLE
        self.below = below
        self._layer = layer
        self.size = size_of(self.stack)
        super().__init__(what, start, nursery, self.size)

    @property
    def base(self) -> Storage:
        """The disk in the medium."""
        return self.below.base

    @property
    def stack(self) -> Stack:
        """How it is made of that."""
        return replace(self.below.stack, layers=(*self.below.stack.layers, self._layer))
