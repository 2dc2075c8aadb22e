"""An encrypted volume becomes a disk, with a key that whoever started us has."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from mountsafe import channel
from mountsafe.encrypted.keys import KeyProcess, Secret, key_memory
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.limits import KEY_MEMORY, KEY_MEMORY_MOST
from mountsafe.medium.encryption import Layer
from mountsafe.medium.volumes import ENCRYPTED, FORCED, Volume
from mountsafe.session.messages import Key, Locked
from mountsafe.session.reporter import Reporter
from mountsafe.session.storage import Lender
from mountsafe.session.unlocked import Unlocked


def layer_of(volume: Volume) -> Layer:
    """Return where the bytes of a volume are on its disk. Raises UserError (SOURCE) if the host does not know that."""
    if not volume.nested:
        return Layer(((0, volume.start, volume.size),), volume.size, None)
    if not volume.places:
        what = f"{volume.title} cannot be unlocked: its bytes are not in one piece on the medium (striped or mixed)"
        raise UserError(what, "Unlock it where its array or volume group is assembled.", ExitCode.SOURCE)
    return Layer(tuple((p.offset, p.physical, p.length) for p in volume.places), volume.size, None)


@asynccontextmanager
async def key_process(disk: Lender, volume: Volume, memory: int = KEY_MEMORY) -> AsyncIterator[KeyProcess]:
    """Start what reads the header of an encrypted volume, in a box. Raises UserError, GuestGone, DeadlinePassed."""
    stack = replace(disk.stack, layers=(*disk.stack.layers, layer_of(volume)))
    async with disk.base.lent(to_qemu=False) as fd:
        process = KeyProcess.start(stack, [fd, *disk.keys], volume.fstype, memory)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.log_words)
            yield process
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await process.stop()


async def unlock(disk: Lender, volume: Volume, name: str, reporter: Reporter, nursery: trio.Nursery) -> Unlocked | None:
    """Return the plaintext disk of an encrypted volume, which is called `name`; None if nobody has a key for it.

    Asks until a key does. Raises UserError: LOCKED if none was right, and what `mountsafe.encrypted.keys` raises.
    """
    try:
        question = await _question(disk, volume, name)
        while True:
            key, fds = await reporter.key(question)
            try:
                if not key.given:
                    break
                reporter.progress(f"deriving the key of {name}")
                layer, memory = await _derived(disk, volume, key, fds)
            except UserError as error:
                if error.code is not ExitCode.LOCKED:
                    raise
                question = replace(question, why=error.message)
                continue
            finally:
                channel.close(fds)
            return await _opened(disk, layer, memory, nursery)
    except UserError as error:
        raise UserError(f"{name} cannot be unlocked: {error.message}", error.hint, error.code) from error
    except MountsafeError as error:
        raise UserError(f"{name} cannot be unlocked: {error}", "--verbose shows more.", ExitCode.APPLIANCE) from error
    if question.why:
        raise UserError(f"{name} was not unlocked: {question.why}", "Try again.", ExitCode.LOCKED)
    return None


async def _question(disk: Lender, volume: Volume, name: str) -> Locked:
    """Return what is asked; of what has no signature, or its header elsewhere, nothing more is known."""
    if volume.usage == FORCED:
        return Locked(name, ENCRYPTED[volume.fstype], "", "", "", "")
    async with key_process(disk, volume) as process:
        about = await process.describe()
    return Locked(name, about.title, about.uuid, about.label, about.hint, "")


async def _derived(disk: Lender, volume: Volume, key: Key, fds: list[int]) -> tuple[Layer, int]:
    """Return what the plaintext is made of, and a descriptor of the key."""
    memory = key_memory()
    try:
        async with key_process(disk, volume, KEY_MEMORY_MOST if key.big_memory else KEY_MEMORY) as process:
            layout = await process.unlock(Secret.of(key), fds, memory)
    except BaseException:
        os.close(memory)
        raise
    return replace(layer_of(volume), layout=layout), memory


async def _opened(disk: Lender, layer: Layer, key: int, nursery: trio.Nursery) -> Unlocked:
    unlocked = Unlocked(disk, layer, key, nursery)
    try:
        await unlocked.open()
    except BaseException:
        await unlocked.close()
        raise
    return unlocked
