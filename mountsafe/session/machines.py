"""The virtual machine of one medium: started when it is needed, replaced when it died, given up when it keeps dying."""

import logging
import socket
import time
from dataclasses import replace

import trio

from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError
from mountsafe.limits import KVM_SLOW_DEADLINE, LAUNCH_DEADLINE
from mountsafe.session.deaths import Deaths
from mountsafe.session.storage import Storage

log = logging.getLogger(__name__)


class Listener:
    """Hears what a person may want to know. This one writes it to the log."""

    def warn(self, what: str) -> None:
        """Hear of what is worse than it might be."""
        log.warning("%s", what)

    def incident(self, words: str) -> None:
        """Hear why a virtual machine was lost."""
        log.warning("the virtual machine is lost: %s", words)


async def started(
    settings: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery, listener: Listener
) -> Machine:
    """Start a VM with KVM where that works, and without where it does not. Raises GuestGone or DeadlinePassed."""
    *trials, last = acceleration.candidates()
    for accelerator in trials:
        try:
            machine = await _boot(
                replace(settings, accelerator=accelerator), acceleration.deadline(), nursery, KVM_SLOW_DEADLINE
            )
        except (GuestGone, DeadlinePassed) as error:
            listener.warn(f"KVM does not work here ({error}): software emulation from now on")
            acceleration.remember("tcg")
        else:
            acceleration.remember(accelerator)
            return machine
    return await _boot(replace(settings, accelerator=last), LAUNCH_DEADLINE, nursery)


async def _boot(settings: MachineSettings, deadline: float, nursery: trio.Nursery, lively: float = 0.0) -> Machine:
    machine = Machine.start(settings, log.info)
    nursery.start_soon(machine.log_words)
    since = time.monotonic()
    try:
        await machine.launched(deadline, lively)
    except BaseException:
        await machine.stop()
        raise
    log.info("virtual machine started with %s in %.1f s", machine.accelerator, time.monotonic() - since)
    return machine


class Machines:
    """Hands out streams to a VM that has the medium; at most one VM at a time.

    `spare`: the first one, started ahead.
    """

    def __init__(
        self,
        settings: MachineSettings,
        acceleration: Acceleration,
        storage: Storage,
        nursery: trio.Nursery,
        listener: Listener | None = None,
        spare: Machine | None = None,
    ) -> None:
        self.storage = storage
        self._nursery = nursery
        self._settings = settings
        self._acceleration = acceleration
        self._listener = listener or Listener()
        self._machine: Machine | None = None
        self._spare = spare
        self._starting = trio.Lock()
        self._users: set[object] = set()
        self._deaths = Deaths("the virtual machine")
        self.accelerator = ""
        self._last: Machine | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the running VM's box, if one runs."""
        return self._machine.pid if self._machine else None

    @property
    def crash(self) -> str:
        """Why the kernel of the VM that runs, or else of the last one that was lost, crashed; "" if it did not."""
        machine = self._machine or self._last
        return machine.crash if machine else ""

    async def stream(self, user: object) -> socket.socket:
        """Return a new stream to the agent, starting a VM if none runs. Raises GuestGone or DeadlinePassed.

        `user` is whoever keeps the VM from being ended, until `release`.
        """
        async with self._starting:
            self._users.add(user)
            if self._machine is not None:
                try:
                    return await self._machine.open_stream()
                except MountsafeError as error:
                    await self._bury(str(error))
            self._deaths.check()
            machine = await self._start()
            try:
                sock = await machine.open_stream()
            except BaseException:
                await machine.stop()
                raise
            self._machine = machine
            self._nursery.start_soon(self._watch, machine)
            self._nursery.start_soon(self._watch_storage, machine)
            return sock

    async def _start(self) -> Machine:
        """Return a VM that has the medium."""
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                return await self._attached(spare)
            except (GuestGone, DeadlinePassed) as error:  # it may have ended while it waited
                log.warning("%s: starting another", error)
        return await self._attached(await started(self._settings, self._acceleration, self._nursery, self._listener))

    async def _attached(self, machine: Machine) -> Machine:
        number = self.storage.number
        try:
            async with self.storage.lent(to_qemu=True) as fd:
                number = self.storage.number
                await machine.attach(fd)
        except BaseException as error:
            await machine.stop()
            if isinstance(error, MountsafeError):  # one of the two is at fault
                await self.storage.replace(number)
            raise
        self.accelerator = machine.accelerator
        return machine

    async def _bury(self, why: str) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            self._last = machine
            self._deaths.note()
            self._listener.incident(f"its kernel crashed ({machine.crash})" if machine.crash else why)
            await machine.stop()

    async def release(self, user: object) -> None:
        """End the VM if nobody else needs it now."""
        async with self._starting:
            self._users.discard(user)
            machine = self._machine
            if machine is not None and not self._users:
                log.info("nobody needs the virtual machine: ending it")
                self._machine = None
                await machine.stop()

    async def end_misbehaving(self, why: str) -> None:
        """End the VM because the guest broke a rule or a deadline."""
        async with self._starting:
            await self._bury(why)

    async def _watch(self, machine: Machine) -> None:
        """Notice when the VM dies, so that its box is cleaned up at once."""
        code = await machine.wait()
        async with self._starting:
            if self._machine is machine:
                await self._bury(f"it ended ({code})")

    async def _watch_storage(self, machine: Machine) -> None:
        """A VM whose disk is gone reads nothing but errors from there on: end it, and the next one has a disk again."""
        await self.storage.lost()
        async with self._starting:
            if self._machine is machine:
                await self._bury("the process that opens the image ended")

    async def close(self) -> None:
        """End the VM for good, and what it reads."""
        with trio.CancelScope(shield=True):
            machine, self._machine = self._machine, None
            if machine is not None:
                await machine.stop()
            await self.storage.close()
