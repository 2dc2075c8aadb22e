"""An encrypted volume becomes a disk, with a key that whoever started us has."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from mountsafe import channel
from mountsafe.encrypted.keys import KeyProcess, Secret
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.medium.encryption import Layer, Layout
from mountsafe.medium.volumes import ENCRYPTED, Volume
from mountsafe.session.messages import Key, Locked
from mountsafe.session.reporter import Reporter
from mountsafe.session.storage import Lender
from mountsafe.session.unlocked import Unlocked

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def layer_of(volume: Volume) -> Layer:
    """Return where the bytes of a volume are on its disk. Raises UserError (SOURCE) if the host does not know that."""
    if not volume.nested:
        return Layer(((0, volume.start, volume.size),), volume.size, None)
    if not volume.places:
        what = f"{volume.title} cannot be unlocked: its bytes are not in one piece on the medium (striped or mixed)"
        raise UserError(what, "Unlock it where its array or volume group is assembled.", ExitCode.SOURCE)
    return Layer(tuple((p.offset, p.physical, p.length) for p in volume.places), volume.size, None)


@asynccontextmanager
async def key_process(disk: Lender, volume: Volume) -> AsyncIterator[KeyProcess]:
    """Start what reads the header of an encrypted volume, in a box. Raises UserError, DeadlinePassed."""
    stack = replace(disk.stack, layers=(*disk.stack.layers, layer_of(volume)))
    async with disk.base.lent(to_qemu=False) as fd:
        process = KeyProcess.start(stack, [fd, *disk.keys], volume.fstype)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.log_words)
            yield process
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await process.stop()


async def unlock(disk: Lender, volume: Volume, reporter: Reporter, nursery: trio.Nursery) -> Unlocked | None:
    """Return the plaintext disk of an encrypted volume of a disk; None if nobody has a key for it.

    Asks until a key does. Raises UserError: LOCKED if none was right, and what `mountsafe.encrypted.keys` raises.
    """
    wrong: UserError | None = None
    try:
        while True:
            async with key_process(disk, volume) as process:
                key, fds = await reporter.key(await _question(process, volume, wrong))
                try:
                    if not key.given:
                        break
                    reporter.progress(f"deriving the key of {volume.title}")
                    layout, memory = await _derived(process, key, fds)
                except UserError as error:
                    if error.code is not ExitCode.LOCKED:
                        raise
                    wrong = error
                    continue
                finally:
                    channel.close(fds)
            return await _opened(disk, replace(layer_of(volume), layout=layout), memory, nursery)
    except UserError:
        raise
    except MountsafeError as error:
        what = f"{volume.title} cannot be unlocked: {error}"
        raise UserError(what, "--verbose shows more.", ExitCode.APPLIANCE) from error
    if wrong is not None:
        raise UserError(f"{volume.title} was not unlocked: {wrong.message}", wrong.hint, ExitCode.LOCKED)
    return None


async def _question(process: KeyProcess, volume: Volume, wrong: UserError | None) -> Locked:
    about = await process.describe()
    kind = about.title or ENCRYPTED[volume.fstype]
    return Locked(volume.title, kind, about.uuid, about.label, about.hint, wrong.message if wrong else "")


async def _derived(process: KeyProcess, key: Key, fds: list[int]) -> tuple[Layout, int]:
    """Return what the plaintext is made of, and a descriptor of the key."""
    memory = os.memfd_create("key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        layout = await process.unlock(Secret.of(key), fds, memory)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(memory)
        raise
    return layout, memory


async def _opened(disk: Lender, layer: Layer, key: int, nursery: trio.Nursery) -> Unlocked:
    unlocked = Unlocked(disk, layer, key, nursery)
    try:
        await unlocked.open()
    except BaseException:
        await unlocked.close()
        raise
    return unlocked
