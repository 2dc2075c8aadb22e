"""Check the file systems of a medium: each by its type's own checker, inside a virtual machine that cannot write."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import trio

from mountsafe import codec, distribution, wire
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.appliance.machine import MachineSettings
from mountsafe.checkers import CHECKERS, Checker
from mountsafe.errors import DeadlinePassed, ExitCode, GuestFault, MountsafeError
from mountsafe.limits import CHECK_SECONDS, REQUEST_DEADLINE
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.session.choice import Choice, Chosen
from mountsafe.session.finding import machine_settings, open_storage
from mountsafe.session.machines import Listener, Machines
from mountsafe.session.messages import Found, Judged, Key, KeyForm, Locked, Missing, MountOptions, Report
from mountsafe.session.start import Unlock
from mountsafe.session.storage import Lender, Storage
from mountsafe.text import printable
from mountsafe.trios import run

MAX_LINES = 400  # of what a checker said
MAX_LINE = 300  # characters of one


class Outcome(StrEnum):
    """What came of checking one file system."""

    CLEAN = "clean"
    ERRORS = "errors"
    REPAIRED = "repaired"
    FAILED = "failed"  # its checker could not look at it
    MISSING = "checker-missing"
    NONE = "no-checker"
    TIME = "timeout"
    LOST = "machine-lost"  # the virtual machine died, or broke a rule


OUTCOMES = {
    wire.CheckOutcome.CLEAN: Outcome.CLEAN,
    wire.CheckOutcome.ERRORS: Outcome.ERRORS,
    wire.CheckOutcome.REPAIRED: Outcome.REPAIRED,
    wire.CheckOutcome.FAILED: Outcome.FAILED,
    wire.CheckOutcome.MISSING: Outcome.MISSING,
    wire.CheckOutcome.NONE: Outcome.NONE,
    wire.CheckOutcome.TIME: Outcome.TIME,
}
CODES = {
    Outcome.CLEAN: ExitCode.OK,
    Outcome.REPAIRED: ExitCode.OK,
    Outcome.ERRORS: ExitCode.DAMAGED,
    Outcome.FAILED: ExitCode.UNCHECKED,
    Outcome.NONE: ExitCode.UNCHECKED,
    Outcome.MISSING: ExitCode.DEPENDENCY,
    Outcome.TIME: ExitCode.DEADLINE,
    Outcome.LOST: ExitCode.APPLIANCE,
}
JOURNALS = {
    wire.MountState.CLEAN: "",
    wire.MountState.RECOVERED: "the changes in its journal were taken into account",
    wire.MountState.SKIPPED: "the changes in its journal could not be taken into account, and may be all that is wrong",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be checked, as in MountOptions, and how many seconds each may take."""

    partition: str | None = None
    fstype: str | None = None
    seconds: int = CHECK_SECONDS
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What came of checking a volume. `code`: the checker's exit code, None if it has none. `why`: in words of ours.

    `words`: the checker's, fit to be shown. `note`: what is to be known of that check.
    """

    volume: Volume
    outcome: Outcome
    code: int | None = None
    words: tuple[str, ...] = ()
    why: str = ""
    note: str = ""

    @property
    def checker(self) -> str:
        """The program that checks its type; "" if there is none."""
        found = CHECKERS.get(self.volume.fstype)
        return found.program if found else ""

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        volume = self.volume
        return {
            "name": volume.name,
            "device": volume.device,
            "fstype": volume.fstype,
            "label": volume.label,
            "uuid": volume.uuid,
            "outcome": self.outcome.value,
            "why": self.why,
            "checker": self.checker,
            "checker_exit_code": self.code,
            "words": list(self.words),
            "note": self.note,
        }


@dataclass(slots=True)
class Checks:
    """What came of it; `size` is that of the disk in it, in bytes. `missing`: what stayed locked."""

    size: int = 0
    results: list[Result] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        missing = [codec.plain(each) for each in self.missing]
        return {"checked": [each.facts() for each in self.results], "missing": missing}

    def code(self) -> ExitCode:
        """Return the exit code of all of it: errors first, then what was not checked."""
        codes = [CODES[each.outcome] for each in self.results] + [each.code for each in self.missing]
        if ExitCode.DAMAGED in codes:
            return ExitCode.DAMAGED
        wrong = [code for code in codes if code != ExitCode.OK]
        if not wrong:
            return ExitCode.OK
        return wrong[0] if len(wrong) == len(codes) else ExitCode.PARTIAL


class _Person(Listener):
    """Who asked for the check: hears what a listener hears, and has keys, if anybody has."""

    def __init__(self, listener: Listener, unlock: Unlock | None) -> None:
        self._listener = listener
        self._unlock = unlock

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
        return answer or (Key(KeyForm.PASSPHRASE, given=False), [])


def checked(medium: Medium, wish: Wish, listener: Listener, unlock: Unlock | None = None) -> Checks:
    """Return what came of checking what is on a medium, which is closed then. Blocks. Raises UserError.

    `listener` hears what is being done; `unlock` has keys for what is encrypted.
    """
    return run(_check, medium, wish, _Person(listener, unlock))


async def _check(medium: Medium, wish: Wish, person: _Person) -> Checks:
    with machine_settings(wish.verbose) as (settings, acceleration):
        async with trio.open_nursery() as nursery:
            job = _Job(settings, acceleration, nursery, person, wish)
            storage = Storage(medium, nursery)
            first = job.machined(storage)
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
        self._nursery = nursery
        self._person = person
        self._wish = wish
        self._machines: list[Machines] = []

    def machined(self, disk: Lender) -> Machines:
        self._machines.append(self._start(disk, self._nursery, self._person))
        return self._machines[-1]

    async def close(self) -> None:
        for machines in reversed(self._machines):
            await machines.close()

    async def done(self, first: Machines, medium: Medium) -> Checks:
        wish = self._wish
        options = MountOptions(wish.partition, wish.fstype, verbose=wish.verbose, unlock=True)
        choice = Choice(options, medium.name, self._person, self._nursery, self.machined)
        await choice.make(first)
        report = Checks(first.storage.size, missing=choice.missing)
        for position, chosen in enumerate(choice.chosen):
            report.results.append(await self._checked(chosen))
            if all(later.machines is not chosen.machines for later in choice.chosen[position + 1 :]):
                await chosen.machines.release(chosen.machines.storage)
                await chosen.machines.release(self)
        return report

    async def _checked(self, chosen: Chosen) -> Result:
        volume, machines = chosen.volume, chosen.machines
        checker = CHECKERS.get(volume.fstype)
        if checker is None:
            why = f"there is no program that checks {volume.fstype}"
            return Result(volume, Outcome.NONE, why=why)
        self._person.progress(f"checking {volume.describe()}, with {checker.program}")
        try:
            return told_of(volume, checker, await self._asked(volume, machines), self._wish.seconds)
        except GuestRefused as refused:
            return Result(volume, Outcome.FAILED, why=str(refused))
        except DeadlinePassed:
            await machines.end_misbehaving(machines.number, "its check did not end")
            return Result(volume, Outcome.TIME, why=_late(self._wish.seconds))
        except (MountsafeError, OSError) as error:
            crash = f"its kernel crashed ({printable(machines.crash)})" if machines.crash else str(error)
            return Result(volume, Outcome.LOST, why=f"the virtual machine was lost: {crash}")

    async def _asked(self, volume: Volume, machines: Machines) -> wire.Checked:
        client = AgentClient(await machines.stream(self))
        self._nursery.start_soon(client.run)
        seconds = self._wish.seconds
        question = wire.pack_check(volume.device.encode(), volume.fstype.encode(), seconds)
        try:
            await client.hello()
            return wire.unpack_checked(await client.request(wire.Kind.CHECK, question, seconds + REQUEST_DEADLINE))
        except wire.WireError as error:
            raise GuestFault(str(error)) from error
        finally:
            client.end(MountsafeError("done"))


def _late(seconds: int) -> str:
    return f"its checker was not done in {seconds} s"


def told_of(volume: Volume, checker: Checker, told: wire.Checked, seconds: int) -> Result:
    """Return what the guest told, in words of ours: a code of its own, and what the checker said."""
    outcome = OUTCOMES[told.outcome]
    note = "; ".join(filter(None, (checker.partial, JOURNALS[told.journal])))
    if outcome is Outcome.MISSING:
        hint = f"{checker.package} is not installed: {distribution.install(checker.package)}"
        return Result(volume, outcome, why=f"{hint}; then mountsafe appliance build")
    if outcome is Outcome.NONE:
        return Result(volume, outcome, why=f"there is no program that checks {volume.fstype}")
    why = {
        Outcome.TIME: _late(seconds),
        Outcome.FAILED: f"{checker.program} could not look at it: {_ended(told.code)}",
    }.get(outcome, "")
    return Result(volume, outcome, told.code, lines(told.words), why, note)


def _ended(code: int) -> str:
    if code < 0:
        return f"it was ended by signal {-code}" + (" (for want of memory?)" if code == -9 else "")
    return f"it ended with code {code}"


def lines(untrusted_words: bytes) -> tuple[str, ...]:
    """Return what a checker said, as lines that are fit to be shown: the first ones, and the last."""
    found = [printable(line, MAX_LINE) for line in untrusted_words.split(b"\n") if line.strip()]
    if len(found) > MAX_LINES:
        found = [*found[: MAX_LINES // 2], "...", *found[-(MAX_LINES // 2 - 1) :]]
    return tuple(found)
