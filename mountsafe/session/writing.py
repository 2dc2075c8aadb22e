"""What writes to one file system: a virtual machine that has its window as its only disk, while somebody changes it."""

import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import trio

from mountsafe.encrypted import serving
from mountsafe.errors import ExitCode, GuestGone, MountsafeError, UserError
from mountsafe.limits import MAX_INCIDENTS_LOGGED, SAVE_DEADLINE, WRITE_IDLE
from mountsafe.medium.flag import ReadOnlyFlag
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import ReadOnly, check_host, check_medium, check_stack, window
from mountsafe.session.attached import MountId, find, top_at
from mountsafe.session.choice import Chosen, Machined
from mountsafe.session.conversation import Settled, Writing
from mountsafe.session.losses import WHY, Losses
from mountsafe.session.machines import Listener, Machines
from mountsafe.session.places import number_of, walk
from mountsafe.session.writable import Writable
from mountsafe.text import shown_path
from mountsafe.trios import in_thread

log = logging.getLogger(__name__)


class Writer:
    """Writes to one file system, on demand: nothing runs until a stream is asked for, nor after `settle`.

    `disk` is the window, `machines` have that alone; `reading` are those of the whole medium. `device`: what a virtual
    machine calls its only disk. One task calls the methods, but for `close`, which is the last. `turned` is called
    when `changing` is another than before.
    """

    def __init__(
        self,
        disk: Writable,
        machines: Machines,
        reading: Machines,
        device: str,
        listener: Listener,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._disk = disk
        self._machines = machines
        self._reading = reading
        self._device = device
        self._listener = listener
        self._turned = turned
        self._losses = Losses()
        self._told = 0  # losses that were said
        self._untrusted_saving: tuple[str, ...] = ()  # names of what is lost if no word of it comes
        self._closed = False
        self.changing = False  # something may have been written that the medium is not known to have
        self._doubt = ""  # why it may not have it, though nobody writes any more

    @property
    def assigned(self) -> Writing:
        """What a session process is told of it."""
        return Writing(self._device, WRITE_IDLE)

    @property
    def unsaved(self) -> str:
        """Which changes that programs were told of are not on the medium, and why; "" if all are."""
        return self._losses.words

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
        given = await self._machines.numbered(self)
        self._turn(True)  # nothing was awaited since: nobody has written yet
        return given

    def _turn(self, changing: bool) -> None:
        if self.changing != changing:
            self.changing = changing
            self._turned()

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
        if self._closed and self.changing:
            why = why or "the medium is not written to any more"
        await self._reading.renew("what it has read was changed")
        self._doubt = why
        if why:
            log.warning("not saved: %s", why)
        else:
            self._turn(False)
        return Settled(why[:WHY])

    async def end_misbehaving(self, number: int, why: str) -> None:
        """End the virtual machine of that number, if it is still there."""
        await self._machines.end_misbehaving(number, why)

    def not_saved(self, untrusted_why: str, count: int, untrusted_names: Sequence[str] = ()) -> None:
        """Take note of changes that are lost, and say so: not for ever, because who tells of it may be taken over."""
        self._losses.add(untrusted_why, count, untrusted_names)
        self._told += 1
        if self._told <= MAX_INCIDENTS_LOGGED:
            self._listener.not_saved(self.unsaved)
        if self._doubt:
            self._doubt = ""
            self._turn(False)

    def saving(self, untrusted_names: tuple[str, ...]) -> None:
        """Take note of what its user is about to save: it may be ended before it can tell how that went."""
        self._untrusted_saving = untrusted_names

    async def close(self) -> None:
        """End it, whatever it is doing: the medium is another one. Who uses it may still tell what is lost."""
        self._closed = True
        await self._machines.close()

    async def finish(self) -> None:
        """End it for good, as its user is gone: unless that has said that all is on the medium, something is lost."""
        await self.close()
        if self.changing:
            if not self.unsaved:
                self.not_saved(self._doubt or "it ended before all of it was saved", 0, self._untrusted_saving)
            self._turn(False)


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
    shown = shown_path(target, WHY)
    hint = f"mountsafe unmount --force {shown} unmounts it all the same; what is not saved is then lost."
    try:
        with trio.fail_after(deadline):
            await in_thread(sync, which)
    except OSError as error:
        what = f"what was changed in {shown} cannot be saved: {error.strerror}"
        raise UserError(what, hint, ExitCode.FAILURE) from error
    except trio.TooSlowError as error:
        raise UserError(f"{shown} was not saved within {deadline:.0f} s", hint, ExitCode.DEADLINE) from error


def window_of(chosen: Chosen, medium: Medium) -> tuple[int, int]:
    """Return the first byte and the size of what a file system has of its disk, to be written to. Raises ReadOnly."""
    check_medium(medium)
    below = chosen.machines.storage
    check_stack(below.stack)
    for position, (host, told) in enumerate(chosen.hosts):
        check_host(host, told, None if position else medium)
    return window(chosen.volume, chosen.told, below.size, None if chosen.hosts else medium)


def writable_disk(chosen: Chosen, medium: Medium, nursery: trio.Nursery, flag: ReadOnlyFlag | None = None) -> Writable:
    """Return the bytes of a file system as a disk that may be written to. Raises ReadOnly.

    `flag`: of the other disks on the medium, if there are any.
    """
    start, size = window_of(chosen, medium)
    if medium.writable_fd is None:
        raise ReadOnly("it is not open for that")
    return Writable(chosen.machines.storage, medium.writable_fd, start, size, nursery, flag)


class Writers:
    """Which of a medium's file systems may be written to, and by whom: `make` first, if any is to be."""

    def __init__(self, medium: Medium, machined: Machined, nursery: trio.Nursery, listener: Listener) -> None:
        self._medium = medium
        self._machined = machined
        self._nursery = nursery
        self._listener = listener
        self._flag: ReadOnlyFlag | None = None
        self._made: dict[str, Writer] = {}  # by the names of volumes
        self._why: dict[str, str] = {}

    def of(self, volume: Volume) -> tuple[Writer | None, str]:
        """Return who writes to a file system; or None, and why nobody does."""
        return self._made.get(volume.name), self._why.get(volume.name, "")

    def make(self, chosen: Sequence[Chosen], read_only: Collection[str] = (), demanded: bool = True) -> None:
        """Make a writer of each that can have one. `read_only`: the names of those that may not.

        `demanded`: raise UserError if none can (SOURCE), or if what serves a disk to be written is missing
        (DEPENDENCY).
        """
        served = ""
        try:
            serving.require()
        except UserError as error:
            if demanded:
                raise
            served = error.message
        for each in chosen:
            try:
                if served:
                    raise ReadOnly(served)
                if each.volume.name in read_only:
                    raise ReadOnly("the policy has it only read")
                self._made[each.volume.name] = self._writer(each)
            except ReadOnly as error:
                self._why[each.volume.name] = f"{each.volume.title} cannot be written to: {error}"
        if demanded and not self._made:
            why = next(iter(self._why.values()), "nothing of it can be written to")
            raise UserError(why, "Without --write it can be mounted read-only.", ExitCode.SOURCE)

    def _writer(self, chosen: Chosen) -> Writer:
        """Return the writer of a file system. Raises ReadOnly."""
        disk = writable_disk(chosen, self._medium, self._nursery, self._flag)
        self._flag = disk.flag
        device = next((each.device for each in chosen.told if each.kind == "disk"), "")
        if not device:
            raise ReadOnly("nothing is known of its disk")
        return Writer(disk, self._machined(disk, None), chosen.machines, device, self._listener, self._turned)

    def _turned(self) -> None:
        self._listener.changing([name for name, writer in self._made.items() if writer.changing])
