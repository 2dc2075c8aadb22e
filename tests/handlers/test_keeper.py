"""A keeper when what it needs fails: its claim stays, it says why, and it can be asked again."""

import json
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import trio

from mountsafe import channel, pieces, trios
from mountsafe.daemon import aside as asides
from mountsafe.daemon import claiming, writes
from mountsafe.daemon import keeper as keepers
from mountsafe.daemon.hearing import Hearing
from mountsafe.daemon.keeper import Keeper
from mountsafe.daemon.person import Person
from mountsafe.daemon.showing import DisplaySettings
from mountsafe.errors import UserError
from mountsafe.hotplug.devices import Device
from mountsafe.policy.facts import Facts
from mountsafe.policy.inside import Seen
from mountsafe.policy.rules import Decision, Options, Verdict
from mountsafe.session.messages import REPORTS, Changing, Incident, NotSaved, Report, Warned
from mountsafe.session.record import Mount, Record
from mountsafe.session.start import Lost, Starting

DEVICE = Device("sdb", "sdb", "/dev/sdb", (8, 16), {}, (), Facts(device="sdb", fstype="jfs", size=1))


class StandInClaim:
    """Counts what is held: a device would be claimed."""

    held = 0

    def __init__(self, *_: object) -> None:
        type(self).held += 1
        self.medium = SimpleNamespace(writable_fd=None)

    def eject(self) -> None:
        """Nothing has a tray."""

    def open_for_writing(self) -> None:
        """It is write-protected."""

    def release(self) -> None:
        type(self).held -= 1


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    StandInClaim.held = 0
    monkeypatch.setattr(claiming, "Claim", StandInClaim)
    monkeypatch.setattr(claiming, "is_to_be_detached", lambda _: None)
    spare = SimpleNamespace(take=None)
    display = DisplaySettings(lambda: Person("u", 1000, 1000), "/run/media", "/x", 60, spare)  # type: ignore[arg-type]
    return Keeper(DEVICE, Decision(Verdict.SANDBOX, "", "", "external", Options()), display, Mock())


async def become(keeper: Keeper, state: str) -> None:
    with trio.fail_after(60):
        while keeper.state != state:  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(0.01)


def kept(keeper: Keeper, do: Callable[[], object]) -> None:
    """Run a keeper until it has failed, do something, and see it through to its end."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await become(keeper, "failed")
            do()
            await keeper.end()

    trios.run(run)
    assert StandInClaim.held == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_the_claim_stays_when_it_cannot_be_shown(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(keepers, "folder_of", Mock(side_effect=error))

    def look() -> None:
        assert StandInClaim.held == 1
        assert keeper.problem != ""
        keeper.open()

    kept(keeper, look)


def test_what_could_not_be_claimed_is_tried_again_when_asked(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "Claim", Mock(side_effect=OSError(5, "Input/output error")))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await become(keeper, "failed")
            monkeypatch.setattr(claiming, "Claim", StandInClaim)
            monkeypatch.setattr(keepers, "folder_of", Mock(side_effect=OSError(28, "No space left on device")))
            keeper.open()
            with trio.fail_after(60):
                while not StandInClaim.held:  # noqa: ASYNC110  # nothing tells of it
                    await trio.sleep(0.01)
            await keeper.end()

    trios.run(run)
    assert StandInClaim.held == 0


def test_a_stick_that_does_not_answer_holds_up_nobody_and_is_let_go_when_it_does(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, opening = threading.Event(), threading.Event()
    released = threading.Event()

    class Slow(StandInClaim):
        def __init__(self, *_: object) -> None:
            opening.set()
            opened.wait(20)
            super().__init__()

        def release(self) -> None:
            super().release()
            released.set()

    monkeypatch.setattr(claiming, "Claim", Slow)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await trio.to_thread.run_sync(opening.wait, 20)
            with trio.fail_after(60):
                await keeper.end()
        opened.set()
        assert await trio.to_thread.run_sync(released.wait, 20)

    trios.run(run)
    assert Slow.held == 0


def hearing(keeper: Keeper, starting: Starting) -> Hearing:
    return Hearing(starting, keeper._writes, keeper._take, keeper._say_that_it_is_saved)


def test_a_warning_is_no_incident(keeper: Keeper) -> None:
    """A later virtual machine may find that KVM does not work, which loses none."""
    ours, theirs = channel.pair()
    with ours, theirs:
        pieces.send(theirs, REPORTS.told(Warned("KVM does not work here")))
        pieces.send(theirs, REPORTS.told(Incident("its kernel crashed")))
        theirs.close()
        starting = Starting.__new__(Starting)
        starting._report = ours
        trios.run(hearing(keeper, starting).run)
    told = [call.args for call in keeper._public.incident.call_args_list]  # type: ignore[attr-defined]
    assert told == [("sdb", "guest", "its virtual machine was lost: its kernel crashed")]


def mount(name: str, note: str) -> Mount:
    return Mount(f"/run/media/u/{name}", "sda", 0, "0", "ext4", name, note, (), True, 0, 1)


def test_a_message_that_stops_in_the_middle_stops_nothing_else(keeper: Keeper) -> None:
    ours, theirs = channel.pair()
    starting = Starting.__new__(Starting)
    starting._report = ours
    message = json.dumps({"incident": "its kernel crashed"}).encode()
    instead = threading.Timer(20, theirs.shutdown, [socket.SHUT_RDWR])  # if the loop waits, it waits for ever

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            theirs.send(b"+" + message[:5])
            nursery.start_soon(hearing(keeper, starting).run)
            with trio.fail_after(60):
                while not asides._running:  # noqa: ASYNC110  # nothing tells of it
                    await trio.sleep(0.01)
            theirs.send(b"." + message[5:])
            theirs.close()

    instead.start()
    with ours, theirs:
        trios.run(run)
    instead.cancel()
    keeper._public.incident.assert_called_once()  # type: ignore[attr-defined]


def test_what_is_to_be_known_of_its_files_is_told(keeper: Keeper) -> None:
    keeper.mounts = (mount("A", "its journal\x1b[2J was replayed"),)
    assert keeper.told()["note"] == r"its journal\x1b[2J was replayed"
    assert (keeper.told()["types"], keeper.told()["labels"]) == (["ext4"], ["A"])
    keeper.mounts += (mount("B", ""), mount("C", "cut"))
    assert keeper.told()["note"] == r"A: its journal\x1b[2J was replayed; C: cut"


def test_it_is_shown_again_where_what_is_inside_belongs_and_no_third_time(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that tells of another type in each virtual machine does not make it start one for ever."""
    bases: list[str] = []
    ended: list[bool] = []
    answers = iter(["romfs", "ext4", "romfs"])

    def folder(_: Person, base: str) -> str:
        bases.append(base)
        return base

    class StandInStarting:
        """A supervisor that finds something in it, and fails when it is to be shown."""

        order = Mock()
        unheard = ()

        def follow(self, *told: Callable[[list[Seen]], object], patience: float) -> object:
            told[2]([Seen("1", next(answers), "", "", 1, (), chosen=True)])
            raise UserError("enough")

        def end(self) -> None:
            ended.append(True)

    async def take() -> StandInStarting:
        return StandInStarting()

    keeper._display.spare.take = take  # type: ignore[assignment, method-assign]
    keeper._inside._decide = lambda facts: replace(keeper.decision, options=Options(hide=facts.fstype == "romfs"))
    monkeypatch.setattr(keepers, "folder_of", folder)
    monkeypatch.setattr(keepers, "held", Mock())
    kept(keeper, lambda: None)
    assert bases == ["/run/media", "/x"]
    assert keeper.problem == "enough"
    assert len(ended) == len(bases)


@pytest.mark.parametrize("killed", [1, 2])
def test_a_supervisor_that_is_killed_before_it_has_shown_anything_is_replaced_once(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    started: list[str] = []
    ended: list[bool] = []

    class StandInStarting:
        order = Mock()
        unheard = ()

        def follow(self, *_: object, patience: float) -> object:
            started.append("killed" if len(started) < killed else "there")
            raise Lost("without a word") if started[-1] == "killed" else UserError("enough")

        def end(self) -> None:
            ended.append(True)

    async def take() -> StandInStarting:
        return StandInStarting()

    keeper._display.spare.take = take  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(keepers, "folder_of", lambda _, base: base)
    monkeypatch.setattr(keepers, "held", Mock())
    kept(keeper, lambda: None)
    assert len(started) == len(ended) == 2
    assert keeper.problem == ("enough" if killed == 1 else "without a word")


# --- what is written to ----------------------------------------------------------------------------------------------
PHOTOS = Mount("/run/media/u/PHOTOS", "sdb", 0, "0", "vfat", "PHOTOS", "", (), True, 0, 1, access="read-write")
LOST = "2 changes are lost (a.jpg): the medium did not take them"


class Supervisor:
    """In a supervisor's place: it shows a medium, and tells `last` when it is ended."""

    def __init__(self, *last: Report) -> None:
        self.order = Mock()
        self.ours, self.theirs = channel.pair()
        self.unheard: tuple[Report, ...] = ()
        self.pid = 0
        self._last = last

    def tell(self, *reports: Report) -> None:
        for each in reports:
            pieces.send(self.theirs, REPORTS.told(each))

    def follow(self, *_: object, patience: float) -> Record:
        return Record("/dev/sdb", "/run/media/u", 1, mounts=(PHOTOS,))

    @property
    def report(self) -> int:
        return self.ours.fileno()

    def heard(self) -> Report | None:
        received = pieces.receive(self.ours)
        return None if received is None else REPORTS.read(received)

    def end(self) -> None:
        self.unheard = self._last
        self.ours.close()
        self.theirs.close()


def shown(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, do: Callable[[], Awaitable[None]]
) -> None:
    """Have a medium shown by a supervisor, do something, and see the keeper through to its end."""

    async def take() -> Supervisor:
        return supervisor

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await become(keeper, "open")
            await do()
            await keeper.end()

    keeper._display.spare.take = take  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(keepers, "folder_of", lambda _, base: base)
    monkeypatch.setattr(keepers, "held", Mock())
    monkeypatch.setattr(keepers, "ended", trio.sleep)
    trios.run(run)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(0.01)


def incidents(keeper: Keeper) -> list[tuple[str, str]]:
    return [call.args[1:] for call in keeper._public.incident.call_args_list]  # type: ignore[attr-defined]


def test_what_is_on_its_way_is_told_and_what_was_not_saved_by_its_name(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor()

    async def do() -> None:
        assert keeper.told()["access"] == "read-write"
        supervisor.tell(Changing(("0",)))
        await until(lambda: keeper.told()["changing"] == ["/run/media/u/PHOTOS"])
        supervisor.tell(NotSaved(LOST), Changing(()))
        await until(lambda: keeper.told()["changing"] == [])
        assert keeper.told()["lost"] == LOST

    shown(keeper, monkeypatch, supervisor, do)
    assert incidents(keeper) == [("unsaved", LOST)]
    assert keeper.state != "lost", "it was not pulled out"


def test_what_a_supervisor_says_last_is_heard_when_the_medium_was_pulled_out(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(NotSaved(LOST), Changing(()))

    async def do() -> None:
        supervisor.tell(Changing(("0",)))
        await until(lambda: keeper.told()["changing"] != [])
        keeper.pulled()

    shown(keeper, monkeypatch, supervisor, do)
    assert incidents(keeper) == [("pulled", "it was pulled out while it was written to"), ("unsaved", LOST)]
    assert (keeper.state, keeper.lost, keeper.told()["lost"]) == ("lost", True, LOST)


def test_a_supervisor_that_was_killed_while_it_wrote_has_lost_something(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor()

    async def do() -> None:
        supervisor.tell(Changing(("0",)))
        await until(lambda: keeper.told()["changing"] != [])
        supervisor.theirs.shutdown(socket.SHUT_RDWR)
        await become(keeper, "unmounted")

    shown(keeper, monkeypatch, supervisor, do)
    assert incidents(keeper) == [("unsaved", "what was changed last may be lost: nothing says that it was saved")]


def test_it_is_said_that_it_is_saved_if_that_takes_a_while(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = threading.Event()
    supervisor = Supervisor()
    monkeypatch.setattr(writes, "end_of", lambda _: saved.wait(20))
    monkeypatch.setattr(writes, "SAVE_UNSAID", 0.05)

    async def do() -> None:
        supervisor.tell(Changing(("0",)))
        await until(lambda: keeper.told()["changing"] != [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.eject)
            await become(keeper, "saving")
            supervisor.tell(Changing(()))
            saved.set()

    shown(keeper, monkeypatch, supervisor, do)
    assert keeper.state == "ejected"
    assert incidents(keeper) == []


def test_what_cannot_be_saved_is_not_ejected(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor()
    monkeypatch.setattr(writes, "end_of", Mock(side_effect=UserError("it cannot be saved: No space left on device")))

    async def do() -> None:
        with pytest.raises(UserError, match="No space left"):
            await keeper.eject()
        assert keeper.state == "open"

    shown(keeper, monkeypatch, supervisor, do)
