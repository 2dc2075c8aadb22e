"""One medium that is plugged in: claimed, shown, and released when it is gone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from mountsafe.daemon.aside import aside, quietly
from mountsafe.daemon.claiming import claimed, let_go, medium_for, until_detached
from mountsafe.daemon.contents import noted, told_of_locked, told_of_mounts
from mountsafe.daemon.hearing import Hearing
from mountsafe.daemon.inside import HeldBack, Inside, Otherwise
from mountsafe.daemon.journal import MediumLog
from mountsafe.daemon.keys import NOTHING, Keys, Said
from mountsafe.daemon.person import Person, folder_of
from mountsafe.daemon.showing import DisplaySettings, IncidentKind, Public, until_there
from mountsafe.daemon.states import OPENABLE, State, checked
from mountsafe.daemon.writes import Writes
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.hotplug.devices import Device
from mountsafe.limits import SILENCE_DEADLINE
from mountsafe.medium.claim import Claim
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Options, Verdict
from mountsafe.process import ended
from mountsafe.session.messages import Changing, Incident, KeyForm, NotSaved, Report
from mountsafe.session.order import MountOptions
from mountsafe.session.places import Place
from mountsafe.session.record import Mount, Record
from mountsafe.session.start import Lost
from mountsafe.session.targets import held
from mountsafe.system import handed
from mountsafe.text import printable, shown_path

log = logging.getLogger(__name__)
# Seconds until what blocks is left behind.
FILES_PATIENCE, END_PATIENCE = 20.0, 60.0


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
        self._inside = Inside(device, decide or (lambda _: decision))
        self.state = State.NEW
        self.mounts: tuple[Mount, ...] = ()
        self.person: Person | None = None  # whom it is shown to, or was until it was unmounted
        self.problem = ""  # what went wrong last
        self._writes = Writes()
        self._public = public
        self._log = MediumLog(log, self.told)
        self._wanted = trio.Event()  # somebody wants it opened
        self._display = display
        self._claim: Claim | None = None
        self._keys = Keys(self._inside.key_file)
        self._showing = False  # a supervisor has it
        self._ejecting = self._pulled = False
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
            self._keys.close(self.device.name)
            await self._let_go()
            self._ended.set()

    async def _is_claimed(self) -> bool:
        if self._claim is None:
            with self._surviving(IncidentKind.CLAIM, "it cannot be claimed"):
                self._claim = await claimed(self.device, self._be_busy)
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
            if state not in (State.UNMOUNTED, State.LOCKED):
                self.person = None
            if self._keys.pending is None:
                await self._until_wanted(state)

    async def _shown_as(self) -> State:
        """Show it; return the state that it is in when that has ended. Raises UserError."""
        try:
            with self._keys.tried():
                try:
                    await self._show(self.decision.wished, settled=False)
                except Otherwise as found:
                    await self._show(found.options, settled=True)  # whatever the guest finds now
        except HeldBack as held:
            self.decision = held.decision
            self._log.info("%s is held back, as is known now what is inside: %s", self._shown, held.decision.reason)
            return State(held.decision.verdict)
        except UserError as error:
            if error.code is not ExitCode.LOCKED:
                raise
            self._log.info("%s is locked: %s", self._shown, error.message)
        if not self._keys.asked:
            return State.UNMOUNTED
        self._inside.lock()
        self._keys.lock()
        return State.LOCKED

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

    def open(self, said: Said = NOTHING) -> None:
        """Show it, if it is held back or unmounted, as what somebody says that it is. Raises UserError."""
        if self.decision.verdict == Verdict.REFUSE:
            raise UserError(f"{self.device.name} is refused: {self.decision.reason}", "An administrator can trust it.")
        if self.state == State.EJECTED:
            raise UserError(f"{self.device.name} is ejected", "Pull it out, and plug it in again.")
        if self.state not in OPENABLE or self._showing:
            raise UserError(f"{self.device.name} is {self.state} already", "mountsafe devices shows it.")
        self._inside.approved |= self.state == State.ASK
        self._keys.said = said
        self._become(State.OPENING)
        self._wanted.set()

    async def unlock(self, form: KeyForm, fd: int, uid: int) -> None:
        """Show it, or what of it is locked, to the user `uid`, with a key; `fd` stays the caller's. Raises UserError.

        Of what is shown of it already all is unmounted first.
        """
        self._require_locked()
        handed.require(fd)
        await aside(partial(handed.wait, fd), 2 * handed.PATIENCE)
        self._require_locked()
        attempt = self._keys.offer(form, fd, uid)
        try:
            await self._unmount()
        except BaseException as error:
            self._keys.withdraw(error if isinstance(error, UserError) else UserError("it was interrupted"))
            raise
        if not self._showing and self._keys.pending is attempt:
            self._become(State.OPENING)
            self._wanted.set()
        await attempt.over.wait()
        if attempt.error is not None:
            raise attempt.error

    def _require_locked(self) -> None:
        if self.state != State.LOCKED:
            raise UserError(f"{self.device.name} is not locked: it is {self.state}", "mountsafe devices shows it.")

    async def lock(self) -> None:
        """Unmount what needed a key: whoever wants it needs that again. Raises UserError (BUSY) if it is in use."""
        if not self._keys.asked or self.state not in (State.OPEN, State.LOCKED):
            hint = "mountsafe eject lets it go."
            raise UserError(f"nothing of {self.device.name} was unlocked: it is {self.state}", hint)
        await self._unmount()

    async def eject(self) -> None:
        """Unmount it and let go. Raises UserError: BUSY if it is in use, FAILURE if not all of it could be saved."""
        await self._unmount()
        self._ejecting = True
        await self.end()
        self._become(State.EJECTED)

    async def _unmount(self) -> None:
        """Unmount it once the medium has what was changed; if that takes a while, it is said. Raises UserError."""
        before = self.state
        try:
            await self._writes.save(self._say_that_it_is_saved)
        except BaseException:
            if self.state == State.SAVING:
                self._become(before)
            raise

    def _say_that_it_is_saved(self) -> None:
        if self.state in (State.OPEN, State.LOCKED):
            self._become(State.SAVING)

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
            doing = "written to" if self._writes.changing else "shown"
            self._suffer(IncidentKind.PULLED, f"it was pulled out while it was {doing}")
        self._pulled |= self._showing

    @property
    def lost(self) -> bool:
        """Whether it was pulled out too early: known once it has ended."""
        return self._pulled and bool(self._writes.lost)

    def told(self) -> dict[str, str | list[str]]:
        """What others are told of it."""
        return {
            "device": self.device.name,
            "state": str(self.state),
            "verdict": str(self.decision.verdict),
            "rule": self.decision.rule,
            "reason": self.decision.reason,
            "user": self.person.name if self.person else "",
            "problem": self.problem,
            **asdict(self._inside.contents),
            **told_of_locked(self._keys.locked),
            **told_of_mounts(self.mounts),
            **self._writes.told(),
        }

    async def end(self) -> None:
        """Unmount it, whoever uses it, and let go; return when that is done."""
        self._scope.cancel()
        await self._ended.wait()
        if self.lost:
            self._become(State.LOST)

    @property
    def _shown(self) -> str:
        return " ".join(filter(None, (self.device.name, self._inside.contents.words)))

    async def _end_when_detached(self) -> None:
        await until_detached(self.device.disk)
        self._log.info("%s is being detached", self._shown)
        self._pulled = self._showing
        self._scope.cancel()

    def _be_busy(self) -> None:
        self._log.warning("%s is in use by another program: it is claimed when that lets go", self._shown)
        self._become(State.BUSY)

    async def _show(self, wished: Options, settled: bool) -> None:
        """Open it for whoever is at the seat; return when it is unmounted. Raises UserError.

        `wished`: how; Otherwise is raised if what is inside is to be shown in another way, unless that is `settled`.
        """
        try:
            await self._show_once(wished, settled)
        except Lost as error:  # the spare one may have died in the moment in which it was taken
            self._log.warning("%s: %s: once more, by another supervisor", self._shown, error.message)
            await self._show_once(wished, settled)

    async def _show_once(self, wished: Options, settled: bool) -> None:
        """Do so. Raises Lost if the supervisor was killed before it was shown."""
        attempt = self._keys.attempt
        uid = None if attempt is None else attempt.uid
        self.person = person = await until_there(self._display, uid, partial(self._become, State.WAITING))
        self._keys.begin()
        self._inside.lock()
        assert self._claim is not None
        base = self._display.hidden if wished.hide else self._display.base
        target = await aside(lambda: held(Path(folder_of(person, base))), FILES_PATIENCE, undo=Place.close)
        self.problem = ""
        self._writes.begin()
        self._become(State.OPENING)
        try:
            starting = await self._display.spare.take()
        except BaseException:
            target.close()
            raise
        hearing = Hearing(starting, self._writes, self._take, self._say_that_it_is_saved)
        self._showing = True
        try:
            with closing(target):
                async with medium_for(self._claim, wished.access) as medium:
                    options = MountOptions(
                        fstype=self._keys.said.fstype or None,
                        owner=wished.owner,
                        timezone=wished.timezone,
                        idle=self._display.idle,
                        foreground=True,
                        by_label=True,
                        judged=True,
                        unlock=True,
                        write=medium.writable_fd is not None,
                        if_possible=True,
                        key_named=attempt is not None,
                    )
                    starting.order(medium, target, options, (person.uid, person.gid))
            asked = partial(self._inside.judge, self._keys, None if settled else wished)
            told = self._log.info, self._log.warning
            follow = partial(starting.follow, *told, asked, self._keys.answer, patience=SILENCE_DEADLINE)
            try:
                record = await aside(follow)
            finally:
                if self._keys.trouble:
                    self._suffer(IncidentKind.KEY, self._keys.trouble)
            self._writes.shown(record)
            self._tell_of(record)
            await hearing.run()
            await ended(starting.pid)
            self._log.info("%s is unmounted", self._shown)
        finally:
            self.mounts = ()
            await quietly(starting.end, f"ending what shows {self.device.name}", END_PATIENCE)
            hearing.rest()
            if self._writes.over():
                self._suffer(IncidentKind.UNSAVED, self._writes.lost)
            self._showing = False

    def _tell_of(self, record: Record) -> None:
        """Say what is shown, and what is not."""
        self.mounts = record.mounts
        self._inside.found(self.mounts)
        for mounted in self.mounts:
            self._log.info("%s is on %s", self._shown, shown_path(mounted.target))
        if note := noted(self.mounts):
            self._log.warning("%s: %s", self._shown, note)
        missing = [each for each in record.missing if each.code is not ExitCode.LOCKED]
        if missing:
            words = f"{len(missing)} of its file systems are not shown; the first: {missing[0].message}"
            self._suffer(IncidentKind.PARTIAL, words)
        self._keys.finish()
        self._become(State.OPEN if missing == list(record.missing) else State.LOCKED)

    def _take(self, told: Report) -> None:
        if self._writes.hear(told):
            self._suffer(IncidentKind.UNSAVED, self._writes.lost)
        elif isinstance(told, Incident):
            self._suffer(IncidentKind.GUEST, f"its virtual machine was lost: {printable(told.words, 500)}")
        if isinstance(told, Incident | Changing | NotSaved):
            self._public.changed(self.told())

    async def _let_go(self) -> None:
        if self._claim is not None:
            claim, self._claim = self._claim, None
            await let_go(claim, self._ejecting, self.device.name)
            self._log.info("%s is let go", self._shown)
