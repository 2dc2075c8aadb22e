"""What writes to one file system: a virtual machine that has its window as its only disk, while somebody changes it."""

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from mountsafe.errors import ExitCode, GuestGone, MountsafeError, UserError
from mountsafe.limits import MAX_INCIDENTS_LOGGED, SAVE_DEADLINE, WRITE_IDLE
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import ReadOnly, check_medium, window
from mountsafe.session.attached import MountId, find, top_at
from mountsafe.session.choice import Chosen, Machined
from mountsafe.session.conversation import Settled, Writing
from mountsafe.session.machines import Listener, Machines
from mountsafe.session.places import number_of, walk
from mountsafe.session.storage import Storage
from mountsafe.session.writable import Writable
from mountsafe.text import printable
from mountsafe.trios import in_thread

log = logging.getLogger(__name__)
WORDS = 500  # characters of why something is not saved


class Writer:
    """Writes to one file system, on demand: nothing runs until a stream is asked for, nor after `settle`.

    `disk` is the window, `machines` have that alone; `reading` are those of the whole medium. `device`: what a virtual
    machine calls its only disk. One task calls the methods, but for `close`, which is the last.
    """

    def __init__(self, disk: Writable, machines: Machines, reading: Machines, device: str, listener: Listener) -> None:
        self._disk = disk
        self._machines = machines
        self._reading = reading
        self._device = device
        self._listener = listener
        self._failures = 0  # that were told of
        self._losses = 0
        self._closed = False
        self.unsaved = ""  # why what programs were told of is not on the medium

    @property
    def assigned(self) -> Writing:
        """What a session process is told of it."""
        return Writing(self._device, WRITE_IDLE)

    @property
    def written(self) -> bool:
        """Whether a byte was written."""
        return self._disk.counts.written > 0

    async def stream(self) -> tuple[socket.socket, int]:
        """Return a stream to a virtual machine that may write, started if need be, and its number.

        Raises GuestGone, DeadlinePassed, and what else there is of MountsafeError.
        """
        if self._closed:
            raise GuestGone("the medium is not written to any more")
        return await self._machines.numbered(self)

    async def settle(self) -> Settled:
        """End the virtual machine and what it wrote through, and have the medium keep that.

        So ends the one that reads: it has read what is another thing by now.
        """
        await self._machines.release(self)
        why = ""
        try:
            await self._disk.settle()
        except MountsafeError as error:
            why = str(error)
        why = why or self._failed_writes()
        await self._reading.renew("what it has read was changed")
        if why:
            log.warning("not saved: %s", why)
        return Settled(why[:WORDS])

    def _failed_writes(self) -> str:
        """Return what the server says of writes that failed since the last time; "" if none did."""
        counts = self._disk.counts
        new, self._failures = counts.failures - self._failures, counts.failures
        return f"{new} writes to the medium failed: {os.strerror(counts.error)}" if new > 0 else ""

    async def end_misbehaving(self, number: int, why: str) -> None:
        """End the virtual machine of that number, if it is still there."""
        await self._machines.end_misbehaving(number, why)

    def not_saved(self, untrusted_why: str, count: int) -> None:
        """Take note of changes that are lost, and say so: not for ever, because who tells of it may be taken over."""
        what = f"{count} changes are lost" if count != 1 else "a change is lost"
        self.unsaved = f"{what}: {printable(untrusted_why, WORDS)}"
        self._losses += 1
        if self._losses <= MAX_INCIDENTS_LOGGED:
            self._listener.warn(self.unsaved)

    async def close(self) -> None:
        """End it, whatever it is doing: who uses it is gone, or the medium is another one."""
        self._closed = True
        await self._machines.close()


def sync(which: MountId) -> None:
    """Have a mount's session process save what it has. Blocks, for as long as that takes. Raises OSError."""
    found = find(which)
    if found is None:
        return
    parent = walk(Path(found.point).parent)
    try:
        top = top_at(parent, Path(found.point).name)
    finally:
        os.close(parent)
    try:
        if number_of(top) != which.number:  # something is mounted over it, and unmounting will say so
            return
        root = os.open(f"/proc/self/fd/{top}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(top)
    try:
        os.fsync(root)
    finally:
        os.close(root)


async def save(which: MountId, target: Path, deadline: float = SAVE_DEADLINE) -> None:
    """Have a mount's session process save what it has. Raises UserError (FAILURE) if it does not."""
    shown = printable(os.fsencode(target), WORDS)
    hint = f"mountsafe unmount --force {shown} unmounts it all the same; what is not saved is then lost."
    try:
        with trio.fail_after(deadline):
            await in_thread(sync, which)
    except OSError as error:
        what = f"what was changed in {shown} cannot be saved: {error.strerror}"
        raise UserError(what, hint, ExitCode.FAILURE) from error
    except trio.TooSlowError as error:
        raise UserError(f"{shown} was not saved within {deadline:.0f} s", hint, ExitCode.DEADLINE) from error


class Writers:
    """Which of a medium's file systems may be written to, and by whom: `make` first, if any is to be."""

    def __init__(
        self, medium: Medium, storage: Storage, machined: Machined, nursery: trio.Nursery, listener: Listener
    ) -> None:
        self._medium = medium
        self._storage = storage
        self._machined = machined
        self._nursery = nursery
        self._listener = listener
        self._made: dict[str, Writer] = {}  # by the names of volumes
        self._why: dict[str, str] = {}

    def of(self, volume: Volume) -> tuple[Writer | None, str]:
        """Return who writes to a file system; or None, and why nobody does if that is to be said."""
        return self._made.get(volume.name), self._why.get(volume.name, "")

    def make(self, chosen: Sequence[Chosen]) -> None:
        """Make a writer of each that can have one, and say which cannot. Raises UserError (SOURCE) if none can."""
        for each in chosen:
            try:
                self._made[each.volume.name] = self._writer(each)
            except ReadOnly as error:
                self._why[each.volume.name] = f"{each.volume.title} cannot be written to: {error}"
        if not self._made:
            why = next(iter(self._why.values()), "nothing of it can be written to")
            raise UserError(why, "Without --write it can be mounted read-only.", ExitCode.SOURCE)
        for words in self._why.values():
            self._listener.warn(words)

    def _writer(self, chosen: Chosen) -> Writer:
        """Return the writer of a file system. Raises ReadOnly."""
        check_medium(self._medium)
        start, size = window(chosen.volume, chosen.told, self._medium, self._storage.size)
        device = next((each.device for each in chosen.told if each.kind == "disk"), "")
        if self._medium.writable_fd is None or not device:
            raise ReadOnly("it is not open for that")
        disk = Writable(self._storage, self._medium.writable_fd, start, size, self._nursery)
        return Writer(disk, self._machined(disk, None), chosen.machines, device, self._listener)
