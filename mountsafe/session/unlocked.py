"""The plaintext of an encrypted volume, as a disk: a boxed process decrypts for virtual machines, and a session process
for itself.
"""

import os

import trio

from mountsafe.encrypted.serving import Plaintext
from mountsafe.medium.encryption import Layer
from mountsafe.session.layered import LayeredDisk
from mountsafe.session.storage import Lender


class Unlocked(LayeredDisk):
    """A disk made of another one: see `mountsafe.session.storage.Lender`. `open` first.

    `key`: a descriptor of it, sealed, which this closes. Nobody is asked for a passphrase again: a process that died is
    started with the key. One that reads from a container process ends with that.
    """

    writable = False

    def __init__(self, below: Lender, layer: Layer, key: int, nursery: trio.Nursery) -> None:
        assert layer.layout is not None
        super().__init__("the decrypting process", self._plaintext, below, layer, nursery)
        self._key = key

    async def _plaintext(self) -> Plaintext:
        async with self.base.lent(to_qemu=False) as fd:
            number = self.base.number
            server = Plaintext.start(self.stack, fd, self.keys)
        self._nursery.start_soon(self._end_with_base, server, number)
        return server

    async def _end_with_base(self, server: Plaintext, number: int) -> None:
        async def ended() -> None:
            await server.wait()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended)
            await self.base.lost(number)
            await server.stop()
            nursery.cancel_scope.cancel()

    @property
    def model(self) -> str:
        """What the disk is called in the guest: by the size of its sectors."""
        assert self._layer.layout is not None
        return f"sector {self._layer.layout.sector}"

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of all layers."""
        return (*self.below.keys, self._key)

    async def close(self) -> None:
        """End the process, and forget the key. What it reads from is closed by itself."""
        await super().close()
        os.close(self._key)
