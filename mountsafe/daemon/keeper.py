"""One medium that is plugged in: claimed, shown, and let go when it is gone."""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import trio

from mountsafe.daemon.journal import MediumLog
from mountsafe.daemon.person import Person, folder_of
from mountsafe.daemon.spare import Spare
from mountsafe.errors import MountsafeError, UserError
from mountsafe.hotplug.devices import Device, is_to_be_detached
from mountsafe.medium.claim import Claim
from mountsafe.policy.rules import Decision, Verdict
from mountsafe.session.mounter import unmount_at
from mountsafe.session.start import MountOptions, Starting, held
from mountsafe.text import printable
from mountsafe.trios import in_thread

log = logging.getLogger(__name__)
CLAIM_PATIENCE = 3.0  # seconds: a predecessor of ours, or udev itself, may still have it open
CLAIM_INTERVAL = 0.1
BUSY_INTERVAL = 1.0
UNLOCK_INTERVAL = 1.0
NOTES = Path("/run/mountsafe/claims")
DETACH_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Wishes:
    """How media are shown. `person` is asked for whenever one is: it returns None while nobody is there.

    `base`: where each user has a folder of his media; `hidden`: the same for those that desktops are not to show.
    """

    person: Callable[[], Person | None]
    base: str
    hidden: str
    idle: float
    spare: Spare


class Trouble(StrEnum):
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


class Keeper:
    """Keeps one node: a whole disk, or one of its partitions where others are left to the system."""

    def __init__(self, device: Device, decision: Decision, wishes: Wishes, public: Public) -> None:
        self.device = device
        self.decision = decision
        self.state = "new"
        self.mounts: list[dict[str, Any]] = []
        self.person: Person | None = None  # whom it is shown to
        self.problem = ""  # what went wrong last
        self._public = public
        self._log = MediumLog(log, self.told)
        self._wanted = trio.Event()  # somebody wants it opened
        self._wishes = wishes
        self._claim: Claim | None = None
        self._ejecting = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Claim it, show it as the verdict says, and keep the claim until `end`."""
        try:
            with self._scope:
                self._claim = await self._claimed()
                self._log.info("%s is claimed: %s", self._shown, self.decision.reason)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_detached)
                    nursery.start_soon(self._treat)
        except (UserError, OSError) as error:
            self._suffer(Trouble.CLAIM, f"it cannot be claimed: {error}")
            self._become("failed")
        except Exception:  # noqa: BLE001  # logged in full
            self._log.exception("a bug in keeping %s", self._shown)  # the other media have nothing to do with it
            self._suffer(Trouble.BUG, "a bug in mountsafe: the log shows it")
            self._become("failed")
        finally:
            self._let_go()
            self._ended.set()

    async def _treat(self) -> None:
        """Show it at once or when somebody asks, and again after each time that it was unmounted."""
        state = "new"
        if self.decision.verdict != Verdict.SANDBOX:
            state = str(self.decision.verdict)
        while True:
            if state != "new":
                self._become(state)
                self._wanted = trio.Event()
                await self._wanted.wait()
            try:
                await self._show()
                state = "unmounted"
            except MountsafeError as error:
                # The claim stays: what the guest cannot read, the host's kernel might.
                self._suffer(Trouble.OPEN, str(error))
                state = "failed"
            self.person = None

    def open(self) -> None:
        """Show it, if it is held back or unmounted. Raises UserError."""
        if self.decision.verdict == Verdict.REFUSE:
            raise UserError(f"{self.device.name} is refused: {self.decision.reason}", "An administrator can trust it.")
        if self.state not in ("ask", "unmounted", "failed"):
            raise UserError(f"{self.device.name} is {self.state} already", "mountsafe devices shows it.")
        self._wanted.set()

    async def eject(self) -> None:
        """Unmount it and let go. Raises UserError (BUSY) if it is in use."""
        for mounted in self.mounts:
            await trio.to_thread.run_sync(unmount_at, Path(mounted["target"]))
        self._ejecting = True
        await self.end()
        self._become("ejected")

    def _become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._public.changed(self.told())

    def _suffer(self, kind: Trouble, words: str) -> None:
        self._log.warning("%s: %s", self._shown, words)
        self.problem = words
        self._public.incident(self.device.name, kind, words)

    def pulled(self) -> None:
        """Take note that it is not there any more."""
        if self.mounts:
            self._suffer(Trouble.PULLED, "it was pulled out while it was shown")

    def told(self) -> dict[str, str | list[str]]:
        """What others are told of it."""
        facts = self.device.facts
        return {
            "device": self.device.name,
            "state": self.state,
            "verdict": str(self.decision.verdict),
            "rule": self.decision.rule,
            "reason": self.decision.reason,
            "fstype": facts.fstype if facts else "",
            "label": facts.label if facts else "",
            "user": self.person.name if self.person else "",
            "problem": self.problem,
            "mounts": [printable(os.fsencode(mounted["target"]), 500) for mounted in self.mounts],
        }

    async def end(self) -> None:
        """Unmount it, whoever uses it, and let go; return when that is done."""
        self._scope.cancel()
        await self._ended.wait()

    @property
    def _shown(self) -> str:
        facts = self.device.facts
        told = (self.device.name, facts.fstype, facts.label) if facts else (self.device.name,)
        return " ".join(filter(None, told))

    async def _end_when_detached(self) -> None:
        """Wait for ever, or until a loop device is to be detached: our hold is what keeps that from happening."""
        if is_to_be_detached(self.device.disk) is None:
            await trio.sleep_forever()
        while not is_to_be_detached(self.device.disk):  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(DETACH_INTERVAL)
        self._log.info("%s is being detached", self._shown)
        self._scope.cancel()

    async def _claimed(self) -> Claim:
        """Claim it, as soon as nobody else has it for himself."""
        end = trio.current_time() + CLAIM_PATIENCE
        while True:
            try:
                return Claim(self.device.node, self.device.number, self.device.sequence, NOTES)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            patient = trio.current_time() < end
            if not patient and self.state != "busy":
                self._log.warning("%s is in use by another program: it is claimed when that lets go", self._shown)
                self._become("busy")
            await trio.sleep(CLAIM_INTERVAL if patient else BUSY_INTERVAL)

    async def _show(self) -> None:
        """Open it for whoever is at the seat; return when it is unmounted. Raises UserError."""
        self.person = person = await self._who()
        assert self._claim is not None
        wished = self.decision.options
        target = held(Path(folder_of(person, self._wishes.hidden if wished.hide else self._wishes.base)))
        options = MountOptions(
            owner=wished.owner,
            idle=self._wishes.idle,
            foreground=True,
            person=(person.uid, person.gid),
            by_label=True,
        )
        self.problem = ""
        self._become("opening")
        starting = self._wishes.spare.take()
        starting.order(self._claim.medium, target, options)
        target.close()
        try:
            record = await in_thread(starting.follow, self._log.info, self._log.warning)
            self.mounts = record["mounts"]
            for mounted in self.mounts:
                self._log.info("%s is on %s", self._shown, printable(os.fsencode(mounted["target"]), 500))
            if missing := record["missing"]:
                words = f"{len(missing)} of its file systems are not shown; the first: {missing[0]['message']}"
                self._suffer(Trouble.PARTIAL, words)
            self._become("open")
            await self._hear(starting)
            await _ended(starting.pid)
            self._log.info("%s is unmounted", self._shown)
        finally:
            self.mounts = []
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(starting.end)

    async def _hear(self, starting: Starting) -> None:
        """Take note of what goes wrong, until the supervisor ends."""
        await trio.lowlevel.wait_readable(starting.report)
        while (words := starting.incident()) is not None:
            self._suffer(Trouble.GUEST, f"its virtual machine was lost: {words}")
            self._public.changed(self.told())
            await trio.lowlevel.wait_readable(starting.report)

    async def _who(self) -> Person:
        """Wait until somebody is there, and his screen is not locked."""
        while True:
            person = await trio.to_thread.run_sync(self._wishes.person)
            if person is not None and not person.locked:
                return person
            self._become("waiting for a user")
            await trio.sleep(UNLOCK_INTERVAL)

    def _let_go(self) -> None:
        if self._claim is not None:
            if self._ejecting:
                self._claim.eject()
            self._claim.release()
            self._log.info("%s is let go", self._shown)


async def _ended(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
