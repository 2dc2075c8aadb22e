"""One medium that is plugged in: claimed, shown, and let go when it is gone."""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from mountsafe.daemon.aside import TooSlow, aside, quietly
from mountsafe.daemon.contents import Contents
from mountsafe.daemon.journal import MediumLog
from mountsafe.daemon.person import Person, folder_of
from mountsafe.daemon.spare import Spare
from mountsafe.daemon.states import OPENABLE, State, checked
from mountsafe.errors import MountsafeError, UserError
from mountsafe.hotplug.devices import Device, is_to_be_detached
from mountsafe.medium.claim import Claim
from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Judgement, Seen, judge
from mountsafe.policy.rules import Decision, Options, Verdict
from mountsafe.session.messages import Mount, MountOptions
from mountsafe.session.mounter import unmount_at
from mountsafe.session.places import Place
from mountsafe.session.start import Starting
from mountsafe.session.targets import held
from mountsafe.text import printable

log = logging.getLogger(__name__)
CLAIM_PATIENCE = 3.0  # seconds: a predecessor of ours, or udev itself, may still have it open
CLAIM_INTERVAL = 0.1
BUSY_INTERVAL = 1.0
UNLOCK_INTERVAL = 1.0
NOTES = Path("/run/mountsafe/claims")
DETACH_INTERVAL = 0.5
NOTE = 1000  # characters of what is to be known of a medium's mounts
# Seconds until what blocks is left behind. The kernel tries a command that a stick does not answer for 30 s, and again.
FILES_PATIENCE, PERSON_PATIENCE, UNMOUNT_PATIENCE, END_PATIENCE = 20.0, 60.0, 60.0, 60.0
EJECT_PATIENCE, RELEASE_PATIENCE = 40.0, 40.0


@dataclass(frozen=True, slots=True)
class DisplaySettings:
    """How media are shown. `person` is asked for whenever one is: it returns None while nobody is there.

    `base`: where each user has a folder of his media; `hidden`: the same for those that desktops are not to show.
    """

    person: Callable[[], Person | None]
    base: str
    hidden: str
    idle: float
    spare: Spare


class IncidentKind(StrEnum):
    """What can go wrong with a medium: the kinds of incidents."""

    CLAIM = "claim"  # it cannot be claimed
    OPEN = "open"  # it cannot be opened
    PARTIAL = "partial"  # some of its file systems cannot be opened
    GUEST = "guest"  # its virtual machine died or broke the rules, and was ended
    PULLED = "pulled"  # it was pulled out while it was shown
    BUG = "bug"  # a fault of ours


class Public(Protocol):
    """Whoever is told what happens to media."""

    def changed(self, medium: Mapping[str, str | int | list[str]]) -> None:
        """Hear of a medium in another state."""

    def incident(self, device: str, kind: str, words: str) -> None:
        """Hear that something went wrong."""


class HeldBack(UserError):
    """What was found inside is not to be shown, or not yet."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


class Otherwise(UserError):
    """What was found inside is to be shown in another way, elsewhere perhaps."""

    def __init__(self, options: Options) -> None:
        super().__init__("it is to be shown in another way")
        self.options = options


class Keeper:
    """Keeps one node: a whole disk, or one of its partitions where others are left to the system.

    `run` is one task, which alone has the claim, and lets go of it however it ends. Others call `open`, `eject`, `end`
    and `pulled`, from the same loop. `state` goes by `daemon.states.NEXT`. What blocks is done `aside`, and is left
    behind when this is ended meanwhile.
    """

    def __init__(
        self,
        device: Device,
        decision: Decision,
        display: DisplaySettings,
        public: Public,
        decide: Callable[[Facts], Decision] | None = None,
    ) -> None:
        self.device = device
        self.decision = self.decided = decision  # what holds now, and what was decided when it came
        self._contents = Contents.known(device)
        self._decide = decide or (lambda _: decision)
        self._approved = False  # somebody was asked, and wants it opened
        self.state = State.NEW
        self.mounts: tuple[Mount, ...] = ()
        self.person: Person | None = None  # whom it is shown to, or was until it was unmounted
        self.problem = ""  # what went wrong last
        self._public = public
        self._log = MediumLog(log, self.told)
        self._wanted = trio.Event()  # somebody wants it opened
        self._display = display
        self._claim: Claim | None = None
        self._ejecting = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Claim it, show it as the verdict says, and keep the claim until `end`, whatever goes wrong meanwhile."""
        try:
            with self._scope:
                while True:
                    if await self._is_claimed():
                        await self._care()
                    await self._until_wanted(State.FAILED)
        finally:
            await self._let_go()
            self._ended.set()

    async def _is_claimed(self) -> bool:
        if self._claim is None:
            with self._surviving(IncidentKind.CLAIM, "it cannot be claimed"):
                self._claim = await self._claimed()
                self._log.info("%s is claimed: %s", self._shown, self.decision.reason)
        return self._claim is not None

    async def _care(self) -> None:
        """Treat it for ever; return after a fault of ours. The claim stays."""
        with self._surviving(IncidentKind.OPEN, "it cannot be kept"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_detached)
                nursery.start_soon(self._treat)

    async def _treat(self) -> None:
        """Show it at once or when somebody asks, and again after each time that it was unmounted."""
        if self.decision.verdict != Verdict.SANDBOX:
            await self._until_wanted(State(self.decision.verdict))
        while True:
            state = State.FAILED
            # The claim stays: what the guest cannot read, the host's kernel might.
            with self._surviving(IncidentKind.OPEN, ""):
                state = await self._shown_as()
            if state != State.UNMOUNTED:
                self.person = None
            await self._until_wanted(state)

    async def _shown_as(self) -> State:
        """Show it; return the state that it is in when that has ended. Raises UserError."""
        try:
            try:
                await self._show(self.decision.options, settled=False)
            except Otherwise as found:
                await self._show(found.options, settled=True)  # whatever the guest finds now
        except HeldBack as held:
            self.decision = held.decision
            self._log.info("%s is held back, as is known now what is inside: %s", self._shown, held.decision.reason)
            return State(held.decision.verdict)
        return State.UNMOUNTED

    @contextmanager
    def _surviving(self, kind: IncidentKind, words: str) -> Iterator[None]:
        """Say what goes wrong, and go on: no fault of a medium, of the host's files or of ours lets a medium go."""
        try:
            yield
        except (MountsafeError, OSError) as error:
            self._suffer(kind, ": ".join(filter(None, (words, printable(str(error), 500)))))
        except Exception:  # noqa: BLE001  # logged in full
            self._log.exception("a bug in keeping %s", self._shown)
            self._suffer(IncidentKind.BUG, "a bug in mountsafe: the log shows it")

    async def _until_wanted(self, state: State) -> None:
        """Be in a state until somebody asks for more."""
        self._wanted = trio.Event()
        self._become(state)
        await self._wanted.wait()

    def open(self) -> None:
        """Show it, if it is held back or unmounted. Raises UserError."""
        if self.decision.verdict == Verdict.REFUSE:
            raise UserError(f"{self.device.name} is refused: {self.decision.reason}", "An administrator can trust it.")
        if self.state == State.EJECTED:
            raise UserError(f"{self.device.name} is ejected", "Pull it out, and plug it in again.")
        if self.state not in OPENABLE:
            raise UserError(f"{self.device.name} is {self.state} already", "mountsafe devices shows it.")
        self._approved = self._approved or self.state == State.ASK
        self._become(State.OPENING)
        self._wanted.set()

    async def eject(self) -> None:
        """Unmount it and let go. Raises UserError (BUSY) if it is in use."""
        for mounted in self.mounts:
            await aside(partial(unmount_at, Path(mounted.target)), UNMOUNT_PATIENCE)
        self._ejecting = True
        await self.end()
        self._become(State.EJECTED)

    def _become(self, state: State) -> None:
        if state != self.state:
            self.state = checked(self.state, state)
            self._public.changed(self.told())

    def _suffer(self, kind: IncidentKind, words: str) -> None:
        self._log.warning("%s: %s", self._shown, words)
        self.problem = words
        self._public.incident(self.device.name, kind, words)

    def pulled(self) -> None:
        """Take note that it is not there any more."""
        if self.mounts:
            self._suffer(IncidentKind.PULLED, "it was pulled out while it was shown")

    def told(self) -> dict[str, str | list[str]]:
        """What others are told of it."""
        return {
            "device": self.device.name,
            "state": str(self.state),
            "verdict": str(self.decision.verdict),
            "rule": self.decision.rule,
            "reason": self.decision.reason,
            "fstype": self._contents.fstype,
            "label": self._contents.label,
            "model": self._contents.model,
            "user": self.person.name if self.person else "",
            "problem": self.problem,
            "note": noted(self.mounts),
            "mounts": [printable(os.fsencode(mounted.target), 500) for mounted in self.mounts],
            "types": [printable(mounted.fstype) for mounted in self.mounts],
            "labels": [printable(mounted.label) for mounted in self.mounts],
        }

    async def end(self) -> None:
        """Unmount it, whoever uses it, and let go; return when that is done."""
        self._scope.cancel()
        await self._ended.wait()

    @property
    def _shown(self) -> str:
        return " ".join(filter(None, (self.device.name, self._contents.words)))

    async def _end_when_detached(self) -> None:
        """Wait for ever, or until a loop device is to be detached: our hold is what keeps that from happening."""
        asked = partial(is_to_be_detached, self.device.disk)
        if await aside(asked) is None:
            await trio.sleep_forever()
        detached: bool | None = False
        while not detached:
            await trio.sleep(DETACH_INTERVAL)  # nothing tells of it
            with suppress(TooSlow):
                detached = await aside(asked)
        self._log.info("%s is being detached", self._shown)
        self._scope.cancel()

    async def _claimed(self) -> Claim:
        """Claim it, as soon as nobody else has it for himself."""
        end = trio.current_time() + CLAIM_PATIENCE
        claim = partial(Claim, self.device.node, self.device.number, self.device.sequence, NOTES)
        while True:
            try:
                return await aside(claim, undo=Claim.release)  # opening a broken stick takes a minute
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            patient = trio.current_time() < end
            if not patient and self.state != State.BUSY:
                self._log.warning("%s is in use by another program: it is claimed when that lets go", self._shown)
                self._become(State.BUSY)
            await trio.sleep(CLAIM_INTERVAL if patient else BUSY_INTERVAL)

    async def _show(self, wished: Options, settled: bool) -> None:
        """Open it for whoever is at the seat; return when it is unmounted. Raises UserError.

        `wished`: how; Otherwise is raised if what is inside is to be shown in another way, unless that is `settled`.
        """
        self.person = person = await self._who()
        assert self._claim is not None
        base = self._display.hidden if wished.hide else self._display.base
        target = await aside(lambda: held(Path(folder_of(person, base))), FILES_PATIENCE, undo=Place.close)
        options = MountOptions(
            owner=wished.owner,
            timezone=wished.timezone,
            idle=self._display.idle,
            foreground=True,
            by_label=True,
            judged=True,
        )
        self.problem = ""
        self._become(State.OPENING)
        starting = await self._display.spare.take()
        try:
            starting.order(self._claim.medium, target, options, (person.uid, person.gid))
            target.close()
            asked = partial(self._judge, None if settled else wished)
            record = await aside(partial(starting.follow, self._log.info, self._log.warning, asked))
            self.mounts = record.mounts
            self._contents = self._contents.found(self.mounts)
            for mounted in self.mounts:
                self._log.info("%s is on %s", self._shown, printable(os.fsencode(mounted.target), 500))
            if note := noted(self.mounts):
                self._log.warning("%s: %s", self._shown, note)
            if missing := record.missing:
                words = f"{len(missing)} of its file systems are not shown; the first: {missing[0].message}"
                self._suffer(IncidentKind.PARTIAL, words)
            self._become(State.OPEN)
            await self._hear(starting)
            await _ended(starting.pid)
            self._log.info("%s is unmounted", self._shown)
        finally:
            self.mounts = ()
            await quietly(starting.end, f"ending what shows {self.device.name}", END_PATIENCE)

    def _judge(self, wished: Options | None, found: Sequence[Seen]) -> Judgement:
        """Ask the policy again, now that it is known what is inside; in a thread. Raises HeldBack, Otherwise."""
        self._contents = self._contents.found([each for each in found if each.chosen] or found)
        judgement = judge(self._decide, self.device.facts or Facts(), found)
        if judgement.nothing:
            raise HeldBack(next(iter(judgement.refused.values())))
        if judgement.asks is not None and not self._approved:
            raise HeldBack(judgement.asks)
        if wished is not None and replace(wished, mount_options=()) != judgement.options:
            raise Otherwise(judgement.options)
        return judgement

    async def _hear(self, starting: Starting) -> None:
        """Take note of what goes wrong, until the supervisor ends."""
        await trio.lowlevel.wait_readable(starting.report)
        # In a thread: of a longer message there may be a piece, and its sender be stopped.
        while (words := await aside(starting.incident)) is not None:
            if words:  # or it was told of something else, KVM that does not work for example
                self._suffer(IncidentKind.GUEST, f"its virtual machine was lost: {words}")
                self._public.changed(self.told())
            await trio.lowlevel.wait_readable(starting.report)

    async def _who(self) -> Person:
        """Wait until somebody is there, and his screen is not locked."""
        while True:
            person = await aside(self._display.person, PERSON_PATIENCE)
            if person is not None and not person.locked:
                return person
            self._become(State.WAITING)
            await trio.sleep(UNLOCK_INTERVAL)

    async def _let_go(self) -> None:
        if self._claim is not None:
            claim, self._claim = self._claim, None
            if self._ejecting:
                await quietly(claim.eject, f"ejecting {self.device.name}", EJECT_PATIENCE)
            await quietly(claim.release, f"letting go of {self.device.name}", RELEASE_PATIENCE)
            self._log.info("%s is let go", self._shown)


def noted(mounts: Sequence[Mount]) -> str:
    """Return what is to be known of what is shown: of a journal, of what is missing, of what is damaged."""
    notes: dict[str, list[str]] = {}
    for mounted in mounts:
        if mounted.note:
            notes.setdefault(mounted.note, []).append(os.path.basename(mounted.target))
    many = len(mounts) > 1
    words = [f"{', '.join(names)}: {note}" if many else note for note, names in notes.items()]
    return printable("; ".join(words), NOTE)


async def _ended(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
