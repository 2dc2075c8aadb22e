"""Check the file systems of a medium, each with its type's own checker, inside a virtual machine; and repair them.

The virtual machine that checks cannot write: a repair has another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from mountsafe import wire
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.appliance.machine import MachineSettings
from mountsafe.checkers import CHECKERS
from mountsafe.errors import DeadlinePassed, GuestFault, MountsafeError
from mountsafe.jobs.checks import Checks, Outcome, Result, late, told_of
from mountsafe.limits import CHECK_SECONDS, REQUEST_DEADLINE
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import ReadOnly
from mountsafe.session.ahead import Ahead
from mountsafe.session.choice import Choice, Chosen
from mountsafe.session.finding import greeted, machine_settings, open_storage
from mountsafe.session.machines import Listener, Machines, started
from mountsafe.session.messages import Found, Judged, Key, Locked, Report
from mountsafe.session.order import MountOptions
from mountsafe.session.start import NO_KEY, Unlock
from mountsafe.session.storage import Lender, Storage
from mountsafe.session.writable import Writable
from mountsafe.session.writing import window_of, writable_disk
from mountsafe.text import printable
from mountsafe.trios import run

Approve = Callable[[Sequence[Volume]], bool]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be checked, as in MountOptions, and how many seconds each may take.

    `repair`: what has errors is to be repaired, on a medium that is open for writing.
    """

    partition: str | None = None
    fstype: str | None = None
    seconds: int = CHECK_SECONDS
    verbose: bool = False
    repair: bool = False


class _Person(Listener):
    """Who asked for the check: hears what a listener hears, and has keys, if anybody has."""

    def __init__(self, listener: Listener, unlock: Unlock | None, approve: Approve | None) -> None:
        self._listener = listener
        self._unlock = unlock
        self._approve = approve

    def tell(self, message: Report) -> None:
        """What was found is told of in the report."""

    def progress(self, what: str) -> None:
        self._listener.progress(what)

    def warn(self, what: str) -> None:
        self._listener.warn(what)

    async def judged(self, found: Found) -> Judged:
        """Nothing is shown, so nothing is judged."""
        raise AssertionError("not asked for")

    async def key(self, locked: Locked) -> tuple[Key, list[int]]:
        """Ask for a key, here and now: nothing else is to be done meanwhile, and Ctrl-C ends the question itself."""
        await trio.lowlevel.checkpoint()
        answer = self._unlock(locked) if self._unlock else None
        return answer or (NO_KEY, [])

    def approves(self, volumes: Sequence[Volume]) -> bool:
        """Ask whether file systems are to be written to, here and now."""
        return bool(volumes) and self._approve is not None and self._approve(volumes)


def checked(
    medium: Medium,
    wish: Wish,
    listener: Listener,
    unlock: Unlock | None = None,
    approve: Approve | None = None,
) -> Checks:
    """Return what came of checking what is on a medium, which is closed then. Blocks. Raises UserError.

    `listener` hears what is being done; `unlock` has keys for what is encrypted; `approve` is asked before what has
    errors is repaired, which is nobody's wish without it.
    """
    return run(_check, medium, wish, _Person(listener, unlock, approve))


async def _check(medium: Medium, wish: Wish, person: _Person) -> Checks:
    with machine_settings(wish.verbose) as (settings, acceleration):
        async with trio.open_nursery() as nursery:
            job = _Job(settings, acceleration, nursery, person, wish)
            storage = Storage(medium, nursery)
            first = job.machined(storage, None)
            try:
                await open_storage(storage)
                return await job.done(first, medium)
            finally:
                await job.close()
                nursery.cancel_scope.cancel()


class _Job:
    """One medium's check. Its machines: of the medium's disk, then of what was unlocked of an earlier one."""

    def __init__(
        self,
        settings: MachineSettings,
        acceleration: Acceleration,
        nursery: trio.Nursery,
        person: _Person,
        wish: Wish,
    ) -> None:
        self._start = partial(Machines, settings, acceleration)
        self._ahead = partial(Ahead, partial(started, settings, acceleration, nursery, person), nursery)
        self._nursery = nursery
        self._person = person
        self._wish = wish
        self._machines: list[Machines] = []

    def machined(self, disk: Lender, ahead: Ahead | None) -> Machines:
        self._machines.append(self._start(disk, self._nursery, self._person, ahead))
        return self._machines[-1]

    async def close(self) -> None:
        for machines in reversed(self._machines):
            await machines.close()

    async def done(self, first: Machines, medium: Medium) -> Checks:
        wish = self._wish
        options = MountOptions(wish.partition, wish.fstype, verbose=wish.verbose, unlock=True)
        choice = Choice(options, medium.name, self._person, self._nursery, self.machined, self._ahead)
        await choice.make(first)
        report = Checks(first.storage.size, missing=choice.missing)
        for position, chosen in enumerate(choice.chosen):
            report.results.append(await self._checked(chosen))
            if all(later.machines is not chosen.machines for later in choice.chosen[position + 1 :]):
                await chosen.machines.release(chosen.machines.storage)
                await chosen.machines.release(self)
        if wish.repair:
            await self._repair(choice.chosen, report, medium)
        return report

    async def _checked(self, chosen: Chosen) -> Result:
        volume = chosen.volume
        if (checker := CHECKERS.get(volume.fstype)) is None:
            return Result.without_checker(volume)
        self._person.progress(f"checking {volume.describe()}, with {checker.program}")
        return await asked(chosen.machines, volume, self._wish.seconds, self._nursery, self)

    async def _repair(self, chosen: Sequence[Chosen], report: Checks, medium: Medium) -> None:
        """Repair what has errors, and can be, if the person approves."""
        found: list[int] = []
        for position, each in enumerate(chosen):
            if report.results[position].outcome is Outcome.ERRORS:
                try:
                    _check_repairable(each, medium)
                    found.append(position)
                except ReadOnly as error:
                    why = f"it was not repaired: {error}"
                    report.results[position] = replace(report.results[position], why=why)
        if self._person.approves([chosen[position].volume for position in found]):
            for position in found:
                disk = writable_disk(chosen[position], medium, self._nursery)
                report.results[position] = await self._repaired(chosen[position].volume, disk)

    async def _repaired(self, volume: Volume, disk: Writable) -> Result:
        """Repair a file system: a virtual machine has its bytes as the only disk, and may write to them."""
        self._person.progress(f"repairing {volume.describe()}, with {CHECKERS[volume.fstype].program}")
        machines = self.machined(disk, None)
        result = await asked(machines, volume, self._wish.seconds, self._nursery, self, repair=True)
        await machines.release(self)
        try:
            await disk.settle()
        except MountsafeError as error:
            return replace(result, outcome=Outcome.FAILED, why=str(error))
        return result


def _check_repairable(chosen: Chosen, medium: Medium) -> None:
    """Raise ReadOnly for a file system that cannot be repaired, or not where it is."""
    checker = CHECKERS[chosen.volume.fstype]
    if not checker.repair:
        raise ReadOnly(checker.no_repair)
    if chosen.hosts:
        raise ReadOnly("what is encrypted is only checked")
    window_of(chosen, medium)


async def asked(
    machines: Machines, volume: Volume, seconds: int, nursery: trio.Nursery, user: object, repair: bool = False
) -> Result:
    """Ask a virtual machine for a check. One that breaks a rule or the deadline is ended. `user` keeps it."""
    number = 0  # of none
    try:
        stream, number = await machines.numbered(user)
        async with greeted(stream, nursery) as client:
            told = await _answer(client, volume, seconds, repair)
        return told_of(volume, CHECKERS[volume.fstype], told, seconds)
    except GuestRefused as refused:
        return Result(volume, Outcome.FAILED, why=str(refused))
    except (MountsafeError, OSError) as error:
        why = f"its kernel crashed ({printable(machines.crash)})" if machines.crash else str(error)
        await machines.end_misbehaving(number, why)
        if isinstance(error, DeadlinePassed):
            return Result(volume, Outcome.TIME, why=late(seconds))
        return Result(volume, Outcome.LOST, why=f"the virtual machine was lost: {why}")


async def _answer(client: AgentClient, volume: Volume, seconds: int, repair: bool) -> wire.Checked:
    question = wire.pack_check(volume.device.encode(), volume.fstype.encode(), seconds, repair)
    try:
        told = wire.unpack_checked(await client.request(wire.Kind.CHECK, question, seconds + REQUEST_DEADLINE))
    except wire.WireError as error:
        raise GuestFault(str(error)) from error
    if told.outcome == wire.CheckOutcome.REPAIRED and not repair:
        raise GuestFault("a repair that nobody asked for")
    return told
