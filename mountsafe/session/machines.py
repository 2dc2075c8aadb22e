"""The virtual machine of one medium: started when it is needed, replaced when it died, given up when it keeps dying."""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import trio

from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError
from mountsafe.limits import DEATHS, DEATHS_WINDOW, KVM_SLOW_DEADLINE, LAUNCH_DEADLINE
from mountsafe.medium.source import Medium

log = logging.getLogger(__name__)


class Machines:
    """Hands out streams to a VM that has the medium; at most one VM at a time."""

    def __init__(
        self,
        settings: MachineSettings,
        acceleration: Acceleration,
        medium: Medium,
        nursery: trio.Nursery,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self._nursery = nursery
        self._settings = settings
        self._acceleration = acceleration
        self._medium = medium
        self._warn = warn
        self._machine: Machine | None = None
        self._starting = trio.Lock()
        self._users: set[object] = set()
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self.accelerator = ""

    @property
    def pid(self) -> int | None:
        """The process id of the running VM's box, if one runs."""
        return self._machine.pid if self._machine else None

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
                    log.warning("%s", error)
                    await self._bury()
            if len(self._deaths) == DEATHS and time.monotonic() - self._deaths[0] < DEATHS_WINDOW:
                raise GuestGone(f"the virtual machine ended {DEATHS} times within {DEATHS_WINDOW:.0f} s")
            machine = await self._start()
            try:
                await machine.attach(self._medium.fd)
                sock = await machine.open_stream()
            except BaseException:
                await machine.stop()
                raise
            self._machine = machine
            self._nursery.start_soon(self._watch, machine)
            return sock

    async def _start(self) -> Machine:
        *trials, last = self._acceleration.candidates()
        for accelerator in trials:
            try:
                machine = await self._boot(accelerator, self._acceleration.deadline(), KVM_SLOW_DEADLINE)
            except (GuestGone, DeadlinePassed) as error:
                self._warn(f"KVM does not work here ({error}): software emulation from now on")
                self._acceleration.remember("tcg")
            else:
                self._acceleration.remember(accelerator)
                return machine
        return await self._boot(last, LAUNCH_DEADLINE)

    async def _boot(self, accelerator: str, deadline: float, lively: float = 0.0) -> Machine:
        settings = replace(self._settings, accelerator=accelerator)
        machine = Machine.start(settings, log.info)
        self._nursery.start_soon(machine.log_words)
        started = time.monotonic()
        try:
            await machine.launched(deadline, lively)
        except BaseException:
            await machine.stop()
            raise
        log.info("virtual machine started with %s in %.1f s", accelerator, time.monotonic() - started)
        self.accelerator = accelerator
        return machine

    async def _bury(self) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            self._deaths.append(time.monotonic())
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
        log.warning("ending the virtual machine: %s", why)
        async with self._starting:
            await self._bury()

    async def _watch(self, machine: Machine) -> None:
        """Notice when the VM dies, so that its box is cleaned up at once."""
        code = await machine.wait()
        async with self._starting:
            if self._machine is machine:
                log.warning("the virtual machine ended (%d)", code)
                await self._bury()

    async def close(self) -> None:
        """End the VM for good."""
        with trio.CancelScope(shield=True):
            machine, self._machine = self._machine, None
            if machine is not None:
                await machine.stop()
        os.close(self._medium.fd)
