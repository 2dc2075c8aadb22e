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
from mountsafe.medium.encryption import Layer, Layout
from mountsafe.medium.volumes import ENCRYPTED, FORCED, Volume
from mountsafe.peer import LAST_WORDS
from mountsafe.session.ahead import Ahead
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


async def unlock(
    disk: Lender, volume: Volume, name: str, reporter: Asker, nursery: trio.Nursery, ahead: Ahead
) -> Unlocked | None:
    """Return the plaintext disk of an encrypted volume, which is called `name`; None if nobody has a key for it.

    Asks until a key does. `ahead` begins while it is derived, and ends if it was wrong.
    Raises UserError: LOCKED if none was right, and what `mountsafe.encrypted.keys` raises.
    """
    serving.require()
    try:
        async with key_process(disk, volume) as first:
            question, clear = await _question(first, volume, name)
            if clear:  # its owner has suspended the encryption: the key lies beside what it encrypts
                ahead.begin()
                opened: tuple[Layout, int] | None = await _derived(first, Secret(Form.CLEAR_KEY), [])
                why = ""
            else:
                opened, why = await _asked(_Attempts(disk, volume, first), question, reporter, ahead)
        if opened is not None:
            layout, key = opened
            return await _opened(disk, replace(layer_of(volume), layout=layout), key, nursery)
    except UserError as error:
        raise UserError(f"{name} cannot be unlocked: {error.message}", error.hint, error.code) from error
    except MountsafeError as error:
        raise UserError(f"{name} cannot be unlocked: {error}", "--verbose shows more.", ExitCode.APPLIANCE) from error
    if why:
        raise UserError(f"{name} was not unlocked: {why}", "Try again.", ExitCode.LOCKED)
    return None


async def _question(process: KeyProcess, volume: Volume, name: str) -> tuple[Locked, bool]:
    """Return what is asked, little where there is no header to read, and whether it need not be asked."""
    if volume.usage == FORCED:
        return Locked(name, ENCRYPTED[volume.fstype], "", "", "", ""), False
    about = await process.describe()
    return Locked(name, about.title, about.uuid, about.label, about.hint, ""), Note.CLEAR_KEY in about.notes


class _Attempts:
    """A box for each attempt; the first is the one that has told of the header, if it may have as much memory."""

    def __init__(self, disk: Lender, volume: Volume, first: KeyProcess) -> None:
        self._disk = disk
        self._volume = volume
        self._first: KeyProcess | None = first

    @asynccontextmanager
    async def next(self, memory: int) -> AsyncIterator[KeyProcess]:
        """Give the process of one attempt, which ends with that."""
        first, self._first = self._first, None
        if first is not None and memory == KEY_MEMORY:
            try:
                yield first
            finally:
                with trio.CancelScope(shield=True):
                    await first.stop()
        else:
            async with key_process(self._disk, self._volume, memory) as process:
                yield process


async def _asked(
    attempts: _Attempts, question: Locked, reporter: Asker, ahead: Ahead
) -> tuple[tuple[Layout, int] | None, str]:
    """Return the layout and key of the first secret that is right, or why the last one was not."""
    while True:
        key, fds = await reporter.key(question)
        try:
            if not key.given:
                return None, question.why
            ahead.begin()
            reporter.progress(f"deriving the key of {question.name}")
            async with attempts.next(KEY_MEMORY_MOST if key.big_memory else KEY_MEMORY) as process:
                return await _derived(process, Secret.of(key), fds), ""
        except UserError as error:
            if error.code is not ExitCode.LOCKED:
                raise
            question = replace(question, why=error.message)
            await ahead.end()  # nobody needs it while the next one is typed
        finally:
            channel.close(fds)


async def _derived(process: KeyProcess, secret: Secret, fds: list[int]) -> tuple[Layout, int]:
    """Return what the plaintext is made of, and a descriptor of the key."""
    key = key_memory()
    try:
        return await process.unlock(secret, fds, key), key
    except BaseException:
        os.close(key)
        raise


async def _opened(disk: Lender, layer: Layer, key: int, nursery: trio.Nursery) -> Unlocked:
    unlocked = Unlocked(disk, layer, key, nursery)
    try:
        await unlocked.open()
    except BaseException:
        await unlocked.close()
        raise
    return unlocked
