"""The virtual machine of one medium: started when needed, replaced when it dies, given up if it keeps dying."""

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import trio

from mountsafe.appliance import trial
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.console import Console
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError
from mountsafe.limits import LAUNCH_DEADLINE, MAX_INCIDENTS_LOGGED
from mountsafe.process import said_by
from mountsafe.session.ahead import Ahead
from mountsafe.session.restarts import RestartLimit
from mountsafe.session.storage import Lender

log = logging.getLogger(__name__)
GIVEN_UP = "KVM does not work here"


class Listener:
    """Hears what a person may want to know. This one writes it to the log."""

    def progress(self, what: str) -> None:
        """Hear what is being done now."""
        log.info("%s", what)

    def warn(self, what: str) -> None:
        """Hear of what is worse than it might be."""
        log.warning("%s", what)

    def incident(self, words: str) -> None:
        """Hear why a virtual machine was lost."""
        log.warning("the virtual machine is lost: %s", words)

    def not_saved(self, words: str) -> None:
        """Hear that what programs were told of is not on the medium."""
        self.warn(words)

    def changing(self, names: Sequence[str]) -> None:
        """Hear of which volumes something was changed that the medium may not have yet; of none: it has all."""


async def started(
    settings: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery, listener: Listener
) -> Machine:
    """Start a VM with KVM where that works, and without where it does not. Raises GuestGone or DeadlinePassed."""
    *trials, last = acceleration.candidates()
    if trials and acceleration.remembered() is None:
        listener.progress("trying whether KVM works here")
        if lie := await trial.against_kvm(settings):
            acceleration.remember(last)
            listener.warn(f"{GIVEN_UP} ({lie}): software emulation from now on")
            trials = []
    failures: list[tuple[MountsafeError, Console]] = []
    for accelerator in trials:
        wanted = replace(settings, accelerator=accelerator)
        machine = await _thawed(wanted, acceleration, nursery)
        if machine is None:
            machine = _begun(replace(wanted, saved=False), nursery)
            try:
                await _launched(machine, *acceleration.patience())
            except (GuestGone, DeadlinePassed) as error:
                log.warning("a virtual machine with %s did not start: %s", accelerator, error)
                failures.append((error, machine.console))
                continue
        acceleration.remember(accelerator)
        return machine
    wanted = replace(settings, accelerator=last)
    machine = await _thawed(wanted, acceleration, nursery)
    if machine is None:
        machine = _begun(replace(wanted, saved=False), nursery)
        await _launched(machine, LAUNCH_DEADLINE)
    for why, console in failures:
        words = console.kvm or console.crash or console.host or why
        if acceleration.failed(isinstance(why, DeadlinePassed), console.kvm, console.crash or console.host):
            listener.warn(f"{GIVEN_UP} ({words}): software emulation from now on")
        else:
            log.warning("not with KVM this time: %s", words)
    return machine


async def _thawed(settings: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery) -> Machine | None:
    """Start a VM from its saved state; None if there is none, or if it did not come to life: then it must boot.

    Whatever is wrong with a state, it says nothing of the accelerator.
    """
    if not settings.thaws or not acceleration.trusts(settings.state):
        return None
    machine = _begun(settings, nursery)
    try:
        await _launched(machine, settings.patience, how="from its saved state")
    except (GuestGone, DeadlinePassed) as error:
        log.warning("the saved state was not taken, booting instead: %s", error)
        if isinstance(error, DeadlinePassed):
            acceleration.distrust(settings.state)
        return None
    return machine


def _begun(settings: MachineSettings, nursery: trio.Nursery) -> Machine:
    machine = Machine.start(settings, said_by("guest"))
    nursery.start_soon(machine.log_words)
    return machine


async def _launched(machine: Machine, deadline: float, lively: float = 0.0, how: str = "booted") -> None:
    since = time.monotonic()
    try:
        await machine.launched(deadline, lively)
    except BaseException:
        await machine.stop()
        raise
    log.info("virtual machine started with %s, %s, in %.1f s", machine.accelerator, how, time.monotonic() - since)


class _Life:
    """A VM that has the medium, until it is let go: what watches over it ends with that.

    `number`: how many there were. `disk`: the number of the container process that it reads from.
    """

    def __init__(self, machine: Machine, number: int, disk: int) -> None:
        self.machine = machine
        self.number = number
        self._disk = disk
        self._watching = trio.CancelScope()

    async def lost(self, storage: Lender) -> str:
        """Return why it is of no use any more; "" when it was let go."""
        reasons: list[str] = []

        async def ends() -> None:
            reasons.append(f"it ended ({await self.machine.wait()})")
            nursery.cancel_scope.cancel()

        async def has_no_disk() -> None:  # it reads nothing but errors from there on, and the next one has a disk again
            await storage.lost(self._disk)
            reasons.append("the process that opens the image ended")
            nursery.cancel_scope.cancel()

        with self._watching:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends)
                nursery.start_soon(has_no_disk)
        return reasons[0] if reasons else ""

    async def let_go(self) -> None:
        """End it."""
        self._watching.cancel()
        await self.machine.stop()


class Machines:
    """Hands out streams to a VM that has the medium; at most one VM at a time.

    `spare`: the first one, started ahead; `close` ends it. Any task may call any method. `_starting` is held wherever
    `_life` or `_users` change (but in `close`, which is the last), over the whole start of a VM, and before `Storage`'s
    lock, which never waits for this one. A caller that is cancelled stops the VM that it was starting. `number` grows
    with each VM, and names it for good.
    """

    def __init__(
        self,
        settings: MachineSettings,
        acceleration: Acceleration,
        storage: Lender,
        nursery: trio.Nursery,
        listener: Listener | None = None,
        spare: Ahead | None = None,
    ) -> None:
        self.storage = storage
        self._nursery = nursery
        self._settings = settings
        self._acceleration = acceleration
        self._listener = listener or Listener()
        self.number = 0  # of the VM that the latest stream leads to
        self.accelerator = ""
        self._life: _Life | None = None
        self._spare = spare
        self._starting = trio.Lock()
        self._users: set[object] = set()
        self._restarts = RestartLimit("the virtual machine")
        self._incidents = 0
        self._last: Machine | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the running VM's box, if one runs."""
        return self._life.machine.pid if self._life else None

    @property
    def crash(self) -> str:
        """Why the kernel of the VM that runs, or else of the last one that was lost, crashed; "" if it did not."""
        machine = self._life.machine if self._life else self._last
        return machine.crash if machine else ""

    async def stream(self, user: object) -> socket.socket:
        """Return a new stream to the agent, starting a VM if none runs. Raises GuestGone or DeadlinePassed.

        `user` is whoever keeps the VM from being ended, until `release`. `number` then says which VM it is, until
        something else is awaited.
        """
        async with self._starting:
            sock = await self._new_stream()
            self._users.add(user)
            return sock

    async def numbered(self, user: object) -> tuple[socket.socket, int]:
        """Return a new stream, as `stream` does, and the number of its VM."""
        sock = await self.stream(user)
        return sock, self.number  # nothing was awaited since: it is the stream's

    async def _new_stream(self) -> socket.socket:
        if self._life is not None:
            try:
                return await self._life.machine.open_stream()
            except MountsafeError as error:
                await self._bury(str(error))
        self._restarts.check()
        since = time.monotonic()
        try:
            machine, disk = await self._start()
            try:
                sock = await machine.open_stream()
            except BaseException:
                self._last = machine
                await machine.stop()
                raise
        except MountsafeError as error:
            log.warning("no virtual machine: %s", error)
            self._restarts.note(time.monotonic() - since)
            raise
        self.number += 1
        self.accelerator = machine.accelerator
        self._life = _Life(machine, self.number, disk)
        self._nursery.start_soon(self._watch, self._life)
        return sock

    async def _start(self) -> tuple[Machine, int]:
        """Return a VM that has the medium, and the number of the container process that it has it from."""
        spare = await self._spare.taken() if self._spare else None
        if spare is not None:
            try:
                return spare, await self._attach(spare)
            except (GuestGone, DeadlinePassed) as error:  # it may have ended while it waited
                log.warning("%s: starting another", error)
        machine = await started(self._settings, self._acceleration, self._nursery, self._listener)
        return machine, await self._attach(machine)

    async def _attach(self, machine: Machine) -> int:
        number = self.storage.number
        try:
            async with self.storage.lent(to_qemu=True) as fd:
                number = self.storage.number
                await machine.attach(fd, self.storage.model, self.storage.part, self.storage.writable)
        except BaseException as error:
            self._last = machine
            await machine.stop()
            if isinstance(error, MountsafeError):  # one of the two is at fault
                await self.storage.replace(number)
            raise
        return number

    async def _bury(self, why: str) -> None:
        life, self._life = self._life, None
        if life is not None:
            self._last = life.machine
            self._restarts.note()
            self._tell(f"its kernel crashed ({life.machine.crash})" if life.machine.crash else why)
            await life.let_go()

    def _tell(self, incident: str) -> None:
        """A guest that dies over and over, for days, must not fill a log: neither ours nor that of whoever listens."""
        self._incidents += 1
        if self._incidents <= MAX_INCIDENTS_LOGGED:
            last = self._incidents == MAX_INCIDENTS_LOGGED
            self._listener.incident(f"{incident}{'; further ones are not told' if last else ''}")

    async def release(self, user: object) -> None:
        """End the VM if nobody else needs it now."""
        async with self._starting:
            self._users.discard(user)
            life = self._life
            if life is not None and not self._users:
                log.info("nobody needs the virtual machine: ending it")
                self._life = None
                await life.let_go()

    async def end_misbehaving(self, number: int, why: str) -> None:
        """End the VM of that number, if it is still there, because the guest broke a rule or a deadline."""
        async with self._starting:
            if self._life is not None and self._life.number == number:
                await self._bury(why)

    async def renew(self, why: str) -> None:
        """End the VM, if one runs, because it has read what has changed since. It is not one that died."""
        async with self._starting:
            life, self._life = self._life, None
            if life is not None:
                log.info("ending the virtual machine: %s", why)
                await life.let_go()

    async def _watch(self, life: _Life) -> None:
        """Notice when the VM dies, so that its box is cleaned up at once."""
        why = await life.lost(self.storage)
        if why:
            async with self._starting:
                if self._life is life:
                    await self._bury(why)

    async def close(self) -> None:
        """End the VM for good, and what it reads."""
        with trio.CancelScope(shield=True):
            life, self._life = self._life, None
            if life is not None:
                await life.let_go()
            if self._spare is not None:
                await self._spare.end()
            await self.storage.close()
