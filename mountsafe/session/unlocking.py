"""An encrypted volume becomes a disk, with a key that whoever started us has."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from mountsafe import channel
from mountsafe.encrypted import keys, serving
from mountsafe.encrypted.description import Form, Note
from mountsafe.encrypted.keys import KeyProcess, Secret, key_memory
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.limits import KEY_MEMORY, KEY_MEMORY_MOST
from mountsafe.medium.encryption import Layer
from mountsafe.medium.volumes import ENCRYPTED, FORCED, Volume
from mountsafe.peer import LAST_WORDS
from mountsafe.session.messages import Locked
from mountsafe.session.reporter import Asker
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
    keys.require()
    stack = replace(disk.stack, layers=(*disk.stack.layers, layer_of(volume)))
    async with disk.base.lent(to_qemu=False) as fd:
        process = KeyProcess.start(stack, [fd, *disk.keys], volume.fstype, memory)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.log_words)
            yield process
            await process.stop()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS
    finally:
        with trio.CancelScope(shield=True):
            await process.stop()


async def unlock(disk: Lender, volume: Volume, name: str, reporter: Asker, nursery: trio.Nursery) -> Unlocked | None:
    """Return the plaintext disk of an encrypted volume, which is called `name`; None if nobody has a key for it.

    Asks until a key does. Raises UserError: LOCKED if none was right, and what `mountsafe.encrypted.keys` raises.
    """
    serving.require()
    try:
        question, clear = await _question(disk, volume, name)
        if clear:  # its owner has suspended the encryption: the key lies beside what it encrypts
            return await _opened(disk, *await _derived(disk, volume, Secret(Form.CLEAR_KEY), []), nursery)
        while True:
            key, fds = await reporter.key(question)
            try:
                if not key.given:
                    break
                reporter.progress(f"deriving the key of {name}")
                memory = KEY_MEMORY_MOST if key.big_memory else KEY_MEMORY
                opened = await _derived(disk, volume, Secret.of(key), fds, memory)
            except UserError as error:
                if error.code is not ExitCode.LOCKED:
                    raise
                question = replace(question, why=error.message)
                continue
            finally:
                channel.close(fds)
            return await _opened(disk, *opened, nursery)
    except UserError as error:
        raise UserError(f"{name} cannot be unlocked: {error.message}", error.hint, error.code) from error
    except MountsafeError as error:
        raise UserError(f"{name} cannot be unlocked: {error}", "--verbose shows more.", ExitCode.APPLIANCE) from error
    if question.why:
        raise UserError(f"{name} was not unlocked: {question.why}", "Try again.", ExitCode.LOCKED)
    return None


async def _question(disk: Lender, volume: Volume, name: str) -> tuple[Locked, bool]:
    """Return what is asked, and whether it need not be: of what has no signature, or its header elsewhere, not much."""
    if volume.usage == FORCED:
        return Locked(name, ENCRYPTED[volume.fstype], "", "", "", ""), False
    async with key_process(disk, volume) as process:
        about = await process.describe()
    return Locked(name, about.title, about.uuid, about.label, about.hint, ""), Note.CLEAR_KEY in about.notes


async def _derived(
    disk: Lender, volume: Volume, secret: Secret, fds: list[int], memory: int = KEY_MEMORY
) -> tuple[Layer, int]:
    """Return what the plaintext is made of, and a descriptor of the key."""
    key = key_memory()
    try:
        async with key_process(disk, volume, memory) as process:
            layout = await process.unlock(secret, fds, key)
    except BaseException:
        os.close(key)
        raise
    return replace(layer_of(volume), layout=layout), key


async def _opened(disk: Lender, layer: Layer, key: int, nursery: trio.Nursery) -> Unlocked:
    unlocked = Unlocked(disk, layer, key, nursery)
    try:
        await unlocked.open()
    except BaseException:
        await unlocked.close()
        raise
    return unlocked
