"""A locked medium in the daemon: who may try which key, how often, and what is left of it.

Its supervisor is a thread here that speaks a supervisor's part, over the channel that one has.
"""

import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import trio

from mountsafe import channel, pieces, trios
from mountsafe.daemon import claiming, keys, writes
from mountsafe.daemon import keeper as keepers
from mountsafe.daemon.keeper import Keeper
from mountsafe.daemon.keys import TooManyTries, WrongKey
from mountsafe.daemon.person import Person
from mountsafe.daemon.showing import DisplaySettings
from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import MAX_SECRET
from mountsafe.policy.inside import Seen
from mountsafe.policy.rules import Decision, Options, Policy, Verdict
from mountsafe.session.messages import ORDERS, REPORTS, Failed, Found, Key, KeyForm, Locked, Mounted
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Missing, Mount, Record
from mountsafe.session.start import Starting
from mountsafe.system import handed
from tests.handlers.test_keeper import DEVICE, StandInClaim, become

RIGHT = b"correct horse"
PLAIN = Mount("/run/media/u/EFI", "sda1", 1, "1", "vfat", "EFI", "", (), True, 0, 1)
SECRET = Mount("/run/media/u/SECRET", "sda2", 0, "2/0", "ext4", "SECRET", "", (), True, 0, 1)
ANN, BOB = Person("ann", 1000, 1000), Person("bob", 1001, 1001)


class Supervisor:
    """Shows a medium with one or several encrypted volumes, and perhaps a plain one, as a supervisor does."""

    def __init__(self, beside: bool = False, names: tuple[str, ...] = ("whole disk",)) -> None:
        self.beside = beside
        self.names = names
        self.heard: list[tuple[KeyForm, bytes]] = []
        self.keys: list[Key] = []
        self.options: list[MountOptions] = []
        self.inside = "ext4"
        self._end = threading.Event()

    def start(self) -> Starting:
        ours, theirs = channel.pair()
        end = self._end = threading.Event()
        starting = Starting.__new__(Starting)
        starting._report = ours
        starting._streams = {}
        starting._process = SimpleNamespace(wait=lambda *_, **__: None, pid=0)  # type: ignore[assignment]
        starting.order = lambda *words: self.options.append(words[2])  # type: ignore[method-assign]

        def finish() -> None:
            end.set()
            ours.close()

        starting.end = finish  # type: ignore[method-assign]
        threading.Thread(target=self._run, args=(theirs, end), daemon=True).start()
        return starting

    def end(self) -> None:
        """Unmount: by whoever does it."""
        self._end.set()

    def _tell(self, sock: Any, message: Any) -> None:
        pieces.send(sock, REPORTS.told(message))

    def _run(self, sock: Any, end: threading.Event) -> None:
        with sock, suppress(OSError):  # who started it may be gone
            seen = [Seen(name, "crypto_LUKS", "", "", 1, (), chosen=True) for name in self.names]
            self._tell(sock, Found(tuple(seen)))
            if channel.receive(sock) is None:
                return
            unlocked = [name for name in self.names if self._is_unlocked(sock, name)]
            if unlocked:
                outside = [replace(each, chosen=False) for each in seen]
                inside = Seen("0/0", self.inside, "SECRET", "", 1, (self.names[0],), chosen=True)
                self._tell(sock, Found((*outside, inside)))
                if channel.receive(sock) is None:
                    return
            left = [
                Missing("sda", 0, "crypto_LUKS", "", "locked", ExitCode.LOCKED) for _ in self.names[len(unlocked) :]
            ]
            mounts = (*([PLAIN] if self.beside else []), *([SECRET] if unlocked else []))
            if not mounts:
                self._tell(sock, Failed("it is encrypted", "", ExitCode.LOCKED))
                return
            self._tell(sock, Mounted(Record("/dev/sdb", "/run/media/u", 1, mounts=mounts, missing=tuple(left))))
            end.wait(30)

    def _is_unlocked(self, sock: Any, name: str) -> bool:
        why = ""
        while True:
            self._tell(sock, Locked(name, "LUKS2", f"uuid of {name}", "\x1b[2JBACKUP", "a hint", why))
            told, fds = channel.receive(sock) or ({}, [])
            key = ORDERS.read(told)
            assert isinstance(key, Key)
            if not key.given:
                assert fds == []
                return False
            (fd,) = fds
            self.keys.append(key)
            with os.fdopen(fd, "rb") as file:
                self.heard.append((key.form, file.read()))
            if self.heard[-1][1] == RIGHT:
                return True
            why = "that is not the passphrase"


class Desk:
    """A keeper, the supervisors that it starts, and the person at the seat."""

    def __init__(self, supervisor: Supervisor, policy: str = "") -> None:
        self.supervisor = supervisor
        self.person: Person | None = ANN
        self.public = Mock()

        async def take() -> Starting:
            return supervisor.start()

        spare: Any = SimpleNamespace(take=take)
        display = DisplaySettings(lambda: self.person, "/run/media", "/x", 60, spare)
        decision = Decision(Verdict.SANDBOX, "", "", "external", Options())
        self.keeper = Keeper(DEVICE, decision, display, self.public, Policy.parse([("p", policy)]).decide)

    async def unlock(self, secret: bytes, uid: int = ANN.uid, form: KeyForm = KeyForm.PASSPHRASE) -> None:
        fd = handed.carried(secret)
        try:
            with trio.fail_after(60):
                await self.keeper.unlock(form, fd, uid)
        finally:
            os.close(fd)

    def told(self, key: str) -> Any:
        return self.keeper.told()[key]


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No device is claimed here, no folder made, no process waited for."""
    StandInClaim.held = 0
    monkeypatch.setattr(claiming, "Claim", StandInClaim)
    monkeypatch.setattr(claiming, "is_to_be_detached", lambda _: None)
    monkeypatch.setattr(keepers, "folder_of", lambda *_: "/")
    monkeypatch.setattr(keepers, "held", Mock())
    monkeypatch.setattr(keepers, "ended", trio.sleep)
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "descriptors are left"  # a thread may still close its own


def played(desk: Desk, play: Callable[[], Awaitable[None]], state: str = "locked") -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.keeper.run)
            await become(desk.keeper, state)
            await play()
            await desk.keeper.end()

    trios.run(run)
    assert StandInClaim.held == 0
    desk.supervisor.end()


def test_an_encrypted_medium_is_locked_and_says_what_it_is() -> None:
    desk = Desk(Supervisor())

    async def play() -> None:
        assert StandInClaim.held == 1
        assert (desk.told("locked"), desk.told("locked_uuid"), desk.told("locked_hint")) == (
            "LUKS2",
            "uuid of whole disk",
            "a hint",
        )
        assert (desk.told("problem"), desk.told("mounts"), desk.told("user")) == ("", [], "ann")
        assert desk.supervisor.heard == []

    played(desk, play)
    assert not desk.public.incident.called


def test_the_right_key_opens_it_and_unmounting_locks_it_again() -> None:
    desk = Desk(Supervisor())

    async def play() -> None:
        for _ in range(2):
            await desk.unlock(RIGHT)
            assert (desk.keeper.state, desk.told("labels"), desk.told("locked")) == ("open", ["SECRET"], "")
            assert desk.told("fstype") == "ext4"
            desk.supervisor.end()
            await become(desk.keeper, "locked")
            assert (desk.told("mounts"), desk.told("fstype"), desk.told("label")) == ([], "crypto_LUKS", "")
            assert (desk.told("locked"), desk.told("locked_uuid")) == ("LUKS2", "uuid of whole disk")
        assert desk.supervisor.heard == [(KeyForm.PASSPHRASE, RIGHT)] * 2

    played(desk, play)


def test_a_wrong_key_is_told_and_three_of_them_close_it_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FIRST_PAUSE", 0.5)
    desk = Desk(Supervisor())

    async def play() -> None:
        for number in range(1, 4):
            with pytest.raises(WrongKey, match="not the passphrase") as refused:
                await desk.unlock(b"wrong")
            assert ("0 s" in refused.value.hint) == (number == 3), "the third says how long it is closed"
            assert refused.value.code is ExitCode.LOCKED
            assert desk.keeper.state == "locked"
        with pytest.raises(TooManyTries, match="3 wrong keys: wait"):
            await desk.unlock(RIGHT)
        assert len(desk.supervisor.heard) == 3
        await trio.sleep(0.6)
        await desk.unlock(RIGHT)
        assert desk.keeper.state == "open"

    played(desk, play)


def test_the_forms_are_passed_on_and_long_keys_come_whole() -> None:
    desk = Desk(Supervisor())
    long = os.urandom(1 << 20)

    async def play() -> None:
        with pytest.raises(WrongKey):
            await desk.unlock(long, form=KeyForm.KEY_FILE)
        assert desk.supervisor.heard == [(KeyForm.KEY_FILE, long)]

    played(desk, play)


def test_a_second_key_waits_for_none_and_disturbs_none() -> None:
    desk = Desk(Supervisor())
    refused = []

    async def other() -> None:
        try:
            await desk.unlock(RIGHT)
        except UserError as error:
            refused.append(error.message)

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(other)
        assert len(refused) == 2
        assert len(desk.supervisor.heard) == 1

    played(desk, play)


def test_somebody_else_at_the_seat_sees_nothing_of_what_was_unlocked() -> None:
    desk = Desk(Supervisor())

    async def play() -> None:
        for person in (BOB, None, Person("ann", 1000, 1000, locked=True)):
            desk.person = person
            with pytest.raises(UserError, match="somebody else is, or the screen is locked"):
                await desk.unlock(RIGHT)
            assert desk.supervisor.heard == []
            await become(desk.keeper, "locked")
            assert desk.told("locked") == "LUKS2"
        desk.person = ANN
        await desk.unlock(RIGHT)
        assert (desk.keeper.state, desk.told("user")) == ("open", "ann")

    played(desk, play)


def test_what_is_beside_it_is_shown_and_shown_again_when_it_is_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Supervisor(beside=True))
    unmounted: list[Path] = []

    def unmount(target: Path) -> None:
        unmounted.append(target)
        desk.supervisor.end()

    monkeypatch.setattr(writes, "unmount_at", unmount)

    async def play() -> None:
        assert desk.told("mounts") == [PLAIN.target]
        with pytest.raises(WrongKey):
            await desk.unlock(b"wrong")
        assert (desk.keeper.state, desk.told("mounts"), desk.told("locked")) == ("locked", [PLAIN.target], "LUKS2")
        await desk.unlock(RIGHT)
        assert (desk.keeper.state, desk.told("labels")) == ("open", ["EFI", "SECRET"])
        assert unmounted == [Path(PLAIN.target)] * 2
        await desk.keeper.lock()
        await become(desk.keeper, "locked")
        assert desk.told("mounts") == []

    played(desk, play)


def test_what_is_in_use_beside_it_stays_and_is_not_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Supervisor(beside=True))
    monkeypatch.setattr(writes, "unmount_at", Mock(side_effect=UserError("in use", "", ExitCode.BUSY)))

    async def play() -> None:
        with pytest.raises(UserError, match="in use"):
            await desk.unlock(RIGHT)
        assert (desk.keeper.state, desk.told("mounts")) == ("locked", [PLAIN.target])
        assert desk.supervisor.heard == []

    played(desk, play)


def test_it_is_opened_as_what_somebody_says_until_it_is_opened_as_it_is() -> None:
    desk = Desk(Supervisor())

    async def play() -> None:
        for said in (keys.said_of("VeraCrypt", 485, True), keys.NOTHING):
            desk.keeper.open(said)
            await become(desk.keeper, "locked")
            await desk.unlock(RIGHT)
            options = desk.supervisor.options[-1]
            assert options.fstype == (said.fstype or None)
            assert [each.key_named for each in desk.supervisor.options[-2:]] == [False, True]
            assert (desk.supervisor.keys[-1].pim, desk.supervisor.keys[-1].hidden) == (said.pim, said.hidden)
            desk.supervisor.end()
            await become(desk.keeper, "locked")

    played(desk, play)


@pytest.mark.parametrize("fstype", ["crypto_LUKS", "ext4", "", "veracrypt\n"])
def test_nobody_has_to_say_what_has_a_signature(fstype: str) -> None:
    with pytest.raises(UserError, match="nobody has to say") as refused:
        keys.said_of(fstype, 0, False)
    assert "\n" not in refused.value.message


def test_one_key_is_tried_with_each_volume() -> None:
    desk = Desk(Supervisor(names=("partition 1", "partition 2")))

    async def play() -> None:
        assert desk.told("locked") == "LUKS2, LUKS2"
        await desk.unlock(RIGHT)
        assert (desk.keeper.state, len(desk.supervisor.heard)) == ("open", 2)

    played(desk, play)


def test_a_medium_of_volumes_without_end_asks_for_a_few() -> None:
    desk = Desk(Supervisor(names=tuple(f"partition {number}" for number in range(40))))

    async def play() -> None:
        with pytest.raises(WrongKey):
            await desk.unlock(b"wrong")
        assert len(desk.supervisor.heard) == keys.MOST_VOLUMES
        assert len(desk.told("locked")) < 100

    played(desk, play)


def test_what_is_pulled_out_is_forgotten_and_who_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Supervisor())
    asked = threading.Event()
    told: list[str] = []

    def stall(*_: object) -> bool:
        asked.set()
        return threading.Event().wait(2)

    async def wait() -> None:
        with pytest.raises(UserError) as error:
            await desk.unlock(RIGHT)
        told.append(error.value.message)

    async def play() -> None:
        monkeypatch.setattr(Supervisor, "_is_unlocked", stall)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.to_thread.run_sync(asked.wait, 20)
            await desk.keeper.end()

    played(desk, play)
    assert told == ["sdb is gone"]
    assert (desk.keeper._keys.asked, desk.keeper._keys.pending, desk.keeper._keys.attempt) == ({}, None, None)


def test_what_the_policy_refuses_inside_is_told_to_who_unlocked_it() -> None:
    desk = Desk(Supervisor(), '[[rule]]\nverdict = "refuse"\nfstype = "jfs"\nreason = "nobody has that"')
    desk.supervisor.inside = "jfs"

    async def play() -> None:
        with pytest.raises(UserError, match="nobody has that"):
            await desk.unlock(RIGHT)
        await become(desk.keeper, "refuse")
        assert desk.told("mounts") == []

    played(desk, play)


def test_how_it_is_shown_may_follow_from_what_is_inside_and_the_key_is_given_again() -> None:
    desk = Desk(Supervisor(), '[[rule]]\nverdict = "sandbox"\nfstype = "ext4"\nhide = true')

    async def play() -> None:
        await desk.unlock(RIGHT)
        assert desk.keeper.state == "open"
        assert desk.supervisor.heard == [(KeyForm.PASSPHRASE, RIGHT)] * 2

    played(desk, play)


# --- key files of the policy -----------------------------------------------------------------------------------------
def rule(path: Path) -> str:
    return f'[[rule]]\nverdict = "sandbox"\nuuid = "uuid of whole disk"\nkey_file = "{path}"\n'


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keys, "is_roots_alone", lambda path: Path(path).parent.name != "open")
    path = tmp_path / "key"
    path.write_bytes(RIGHT)
    path.chmod(0o600)
    return path


def test_a_known_stick_is_unlocked_by_its_key_file_and_nobody_is_asked(key_file: Path) -> None:
    desk = Desk(Supervisor(), rule(key_file))

    async def play() -> None:
        assert desk.told("labels") == ["SECRET"]
        assert desk.supervisor.heard == [(KeyForm.KEY_FILE, RIGHT)]

    played(desk, play, "open")


def test_another_stick_gets_no_key_file(key_file: Path) -> None:
    desk = Desk(Supervisor(names=("partition 1",)), rule(key_file))

    async def play() -> None:
        assert desk.supervisor.heard == []

    played(desk, play)


def test_a_key_file_that_does_not_do_is_said_and_a_person_can_unlock_it(key_file: Path) -> None:
    key_file.write_bytes(b"old")
    desk = Desk(Supervisor(), rule(key_file))

    async def play() -> None:
        assert "the key file of the policy does not unlock whole disk: that is not" in desk.told("problem")
        await desk.unlock(RIGHT)
        assert desk.keeper.state == "open"

    played(desk, play)
    assert desk.public.incident.call_args_list[0].args[:2] == ("sdb", "key")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o640), "is not root's alone"),
        (lambda path: path.chmod(0o700), "is not root's alone"),
        (lambda path: os.chown(path, 1000, 0), "is not root's alone"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.rename(path.with_name("other")), path.symlink_to("other")), "cannot be opened"),
        (lambda path: subprocess.run(["sh", "-c", 'rm "$0" && mkfifo -m 600 "$0"', path], check=True), "is no file"),
        (lambda path: subprocess.run(["sh", "-c", 'rm "$0" && mkdir -m 600 "$0"', path], check=True), "is no file"),
        (lambda path: os.truncate(path, MAX_SECRET + 1), "is larger than 8"),
    ],
)
def test_a_key_file_that_others_can_have_is_not_used(key_file: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(key_file)
    desk = Desk(Supervisor(), rule(key_file))

    async def play() -> None:
        assert words in desk.told("problem")
        assert desk.supervisor.heard == []

    played(desk, play)


def test_a_key_file_in_a_folder_of_others_is_not_used(key_file: Path) -> None:
    folder = key_file.parent / "open"
    folder.mkdir()
    other = key_file.rename(folder / "key")
    with pytest.raises(keys.NoKeyFile, match="in a folder that others can change"):
        keys.opened_key_file(str(other))


def test_what_a_header_says_of_itself_is_fit_to_be_shown() -> None:
    desk = Desk(Supervisor(names=("\x1b[2Jdisk",)))

    async def play() -> None:
        (locked,) = desk.keeper._keys.locked
        assert locked.name == r"\x1b[2Jdisk"
        assert locked.label == r"\x1b[2JBACKUP"

    played(desk, play)
