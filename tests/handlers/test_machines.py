"""One medium's virtual machines: a report names the one that it speaks of, each death counts, nothing outlives one."""

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mountsafe.appliance import thaw
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.console import Console
from mountsafe.appliance.machine import MachineSettings
from mountsafe.errors import DeadlinePassed, GuestGone, MountsafeError
from mountsafe.limits import DEATHS, DEATHS_WINDOW, LAUNCH_DEADLINE, MAX_INCIDENTS_LOGGED
from mountsafe.medium.part import WHOLE, Part
from mountsafe.session import machines as machines_module
from mountsafe.session.machines import Listener, Machines


class FakeMachine:
    """A VM without QEMU. `dead` ends it; `refuses` says at which step it fails."""

    accelerator = "tcg"
    way = ""
    crash = ""
    pid = 1

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.dead = trio.Event()

    async def open_stream(self) -> socket.socket:
        await trio.lowlevel.checkpoint()
        if self.refuses == "stream":
            raise GuestGone("no stream")
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    async def open_ahead(self) -> None:
        (await self.open_stream()).close()

    async def attach(self, fd: int, model: str, part: Part, writable: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses == "attach":
            raise GuestGone("no medium")

    async def wait(self) -> int:
        await self.dead.wait()
        return -9

    async def stop(self) -> None:
        self.dead.set()


class FakeStorage:
    """A disk in a container, whose process may be replaced."""

    raw = False
    writable = False
    pid = None
    part = WHOLE

    def __init__(self) -> None:
        self.model = ""
        self.number = 1
        self.ends = {1: trio.Event()}

    @asynccontextmanager
    async def lent(self, to_qemu: bool) -> AsyncIterator[int]:
        yield 0

    async def lost(self, number: int) -> None:
        await self.ends[number].wait()

    def die(self) -> None:
        self.ends[self.number].set()
        self.number += 1
        self.ends[self.number] = trio.Event()

    async def replace(self, number: int) -> None:
        pass

    async def close(self) -> None:
        pass


class Heard(Listener):
    """Notes incidents."""

    def __init__(self) -> None:
        self.incidents: list[str] = []

    def incident(self, words: str) -> None:
        self.incidents.append(words)


class Ground:
    """Machines over fakes. `made`: the VMs so far; `make` returns the next, or raises what keeps it from starting."""

    def __init__(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nursery = nursery
        self.storage = FakeStorage()
        self.heard = Heard()
        self.made: list[FakeMachine] = []
        self.tried = 0
        self.make: Callable[[], FakeMachine] = FakeMachine
        self.takes = 0.0
        monkeypatch.setattr(machines_module, "started", self._started)
        self.machines = Machines(None, None, self.storage, nursery, self.heard)  # type: ignore[arg-type]

    async def _started(self, *_: object) -> FakeMachine:
        self.tried += 1
        await trio.sleep(self.takes)
        self.made.append(self.make())
        return self.made[-1]

    async def stream(self, user: object = "a") -> int:
        (await self.machines.stream(user)).close()
        return self.machines.number


@asynccontextmanager
async def ground(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    monkeypatch.setattr(time, "monotonic", trio.current_time)
    async with trio.open_nursery() as nursery:
        yield Ground(nursery, monkeypatch)
        nursery.cancel_scope.cancel()


# --- who is spoken of ------------------------------------------------------------------------------------------------
async def test_a_late_complaint_ends_no_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions meet the same silence; the second says so when the next virtual machine runs already."""
    async with ground(monkeypatch) as at:
        first = await at.stream("a")
        assert await at.stream("b") == first
        await at.machines.end_misbehaving(first, "no answer")
        second = await at.stream("a")
        await at.machines.end_misbehaving(first, "no answer")
        assert not at.made[1].dead.is_set()
        assert at.heard.incidents == ["no answer"]
        assert await at.stream("b") == second != first
        await at.machines.end_misbehaving(second, "no answer")
        assert at.made[1].dead.is_set()


async def test_a_number_that_never_was_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ground(monkeypatch) as at:
        number = await at.stream()
        for other in (0, -1, number + 1, 1 << 80):
            await at.machines.end_misbehaving(other, "x")
        assert not at.made[0].dead.is_set()


# --- what watches over it --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["not needed", "misbehaves", "dies", "its disk is lost"])
async def test_nothing_stays_of_a_machine_that_is_gone(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with ground(monkeypatch) as at:
        for turn in range(20):
            number = await at.stream()
            await trio.testing.wait_all_tasks_blocked()
            if how == "not needed":
                await at.machines.release("a")
            elif how == "misbehaves":
                await at.machines.end_misbehaving(number, "x")
            elif how == "dies":
                at.made[-1].dead.set()
            else:
                at.storage.die()
            await trio.testing.wait_all_tasks_blocked()
            assert at.made[-1].dead.is_set()
            assert at.machines.pid is None
            assert len(at.nursery.child_tasks) == 0, turn
            await trio.sleep(DEATHS_WINDOW)
        assert len(at.made) == 20


async def test_a_disk_that_is_lost_before_the_machine_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual machine has the old container process's disk, and another process is there already."""
    async with ground(monkeypatch) as at:
        original = FakeMachine.open_stream

        async def slow(self: FakeMachine) -> socket.socket:
            at.storage.die()
            return await original(self)

        with monkeypatch.context() as patch:
            patch.setattr(FakeMachine, "open_stream", slow)
            await at.stream()
        await trio.testing.wait_all_tasks_blocked()
        assert at.made[0].dead.is_set()
        assert at.heard.incidents == ["the process that opens the image ended"]


# --- deaths ----------------------------------------------------------------------------------------------------------
def refuses_to_start() -> FakeMachine:
    raise DeadlinePassed("it did not start")


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: FakeMachine("attach"), 0.1),
        (lambda: FakeMachine("stream"), 0.1),
        (refuses_to_start, 0.1),
        (refuses_to_start, LAUNCH_DEADLINE),
    ],
    ids=["takes no medium", "opens no stream", "does not start", "takes long not to start"],
)
async def test_a_machine_that_dies_before_its_first_stream_counts(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], FakeMachine], takes: float
) -> None:
    async with ground(monkeypatch) as at:
        at.make, at.takes = make, takes
        for _ in range(DEATHS):
            with pytest.raises(MountsafeError):
                await at.stream()
        assert at.tried == DEATHS
        for _ in range(10):
            with pytest.raises(GuestGone, match="times within"):
                await at.stream()
        assert at.tried == DEATHS
        assert all(machine.dead.is_set() for machine in at.made)
        at.make, at.takes = FakeMachine, 0.1
        await trio.sleep(DEATHS_WINDOW)
        await at.stream()


async def test_who_never_had_a_stream_keeps_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ground(monkeypatch) as at:
        at.make = lambda: FakeMachine("stream")
        with pytest.raises(MountsafeError):
            await at.stream("a")
        at.make = FakeMachine
        await at.stream("b")
        await at.machines.release("b")
        assert at.made[-1].dead.is_set()


async def test_deaths_over_days_are_told_of_so_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ground(monkeypatch) as at:
        for _ in range(2 * MAX_INCIDENTS_LOGGED):
            await at.machines.end_misbehaving(await at.stream(), "x")
            await trio.sleep(DEATHS_WINDOW)
        assert len(at.heard.incidents) == MAX_INCIDENTS_LOGGED
        assert "further" in at.heard.incidents[-1]


# --- KVM -------------------------------------------------------------------------------------------------------------
class Starting:
    """Starts of VMs that go as a test says: for each accelerator what the process says, and the error or None.

    "kvm, saved" and "tcg, saved" are those from a saved state, which there is where a test says how that goes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: Path) -> None:
        device = memory.parent / "kvm"
        device.touch()
        device.chmod(0o666)
        self.acceleration = Acceleration(memory, device)
        self.goes: dict[str, tuple[list[str], MountsafeError | None]] = {"tcg": ([], None)}
        self.tried: list[str] = []
        self.warned: list[str] = []
        monkeypatch.setattr(machines_module, "_begun", self._begun)
        monkeypatch.setattr(machines_module, "_launched", self._launched)
        self.against = ""  # what the tiny guest finds
        self.trials = 0
        monkeypatch.setattr(machines_module.trial, "against_kvm", self._tried)
        self.appliance = memory.parent
        for accelerator in ("kvm", "tcg"):
            thaw.state(self.appliance, accelerator).touch()
        monkeypatch.setattr(thaw, "fits", lambda appliance, memory, accelerator: f"{accelerator}, saved" in self.goes)

    async def _tried(self, settings: MachineSettings) -> str:
        self.trials += 1
        await trio.lowlevel.checkpoint()
        return self.against

    def _begun(self, settings: MachineSettings, nursery: trio.Nursery) -> FakeMachine:
        machine = FakeMachine()
        machine.accelerator = settings.accelerator
        machine.way = f"{settings.accelerator}, saved" if settings.thaws else settings.accelerator
        machine.console = Console(lambda line: None)  # type: ignore[attr-defined]
        return machine

    async def _launched(self, machine: FakeMachine, deadline: float, lively: float = 0.0, how: str = "") -> None:
        self.tried.append(machine.way)
        await trio.lowlevel.checkpoint()
        words, error = self.goes[machine.way]
        for line in words:
            machine.console.hear(line)  # type: ignore[attr-defined]
        if error is not None:
            raise error

    async def start(self) -> str:
        self.tried.clear()
        listener = Listener()
        listener.warn = self.warned.append  # type: ignore[method-assign]
        settings, nursery = MachineSettings(self.appliance), None  # nothing is started in it
        machine = await machines_module.started(settings, self.acceleration, nursery, listener)  # type: ignore[arg-type]
        return machine.accelerator


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Starting:
    return Starting(monkeypatch, tmp_path / "kvm.json")


QEMU = "qemu-system-x86_64: "
ENDED = GuestGone("the virtual machine did not start: guestfs_launch failed")
HUNG = DeadlinePassed("the virtual machine did not start in 30 s")
AGAINST_KVM = [
    "error: failed to set MSR 0x48f to 0x7fffff00036dfb",
    f"{QEMU}../../target/i386/kvm/kvm.c:3177: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.",
    "Could not access KVM kernel module: No such file or directory",
    f"{QEMU}failed to initialize kvm: No such device",
    "KVM internal error. Suberror: 1",
    f"{QEMU}error: failed to set MSR 0x38d to 0x0",
    "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy",
]
NOT_KVM = [
    "[    0.70] Kernel panic - not syncing: No working init found.",
    f"{QEMU}cannot set up guest memory 'pc.ram': Cannot allocate memory",
    "bwrap: Creating new namespace failed: No space left on device",
]


@pytest.mark.parametrize("words", AGAINST_KVM)
async def test_qemus_words_against_kvm_are_believed(starting: Starting, words: str) -> None:
    starting.goes["kvm"] = [words], ENDED
    assert await starting.start() == "tcg"
    assert starting.tried == ["kvm", "tcg"]
    assert starting.acceleration.remembered() == "tcg"
    assert "KVM does not work here" in starting.warned[0]
    assert await starting.start() == "tcg"
    assert starting.tried == ["tcg"]


async def test_where_the_tiny_guest_finds_kvm_lying_no_start_is_tried_with_it(starting: Starting) -> None:
    starting.against = "failed to set MSR 0x10a"
    for _ in range(2):
        assert await starting.start() == "tcg"
        assert starting.tried == ["tcg"]
    assert starting.trials == 1, "it is remembered"
    assert starting.warned == ["KVM does not work here (failed to set MSR 0x10a): software emulation from now on"]


async def test_where_kvm_works_it_is_not_asked_again(starting: Starting) -> None:
    starting.goes["kvm"] = [], None
    for _ in range(2):
        assert await starting.start() == "kvm"
    assert starting.trials == 1


async def test_a_guest_that_hangs_where_kvm_never_worked(starting: Starting) -> None:
    starting.goes["kvm"] = [], HUNG
    assert await starting.start() == "tcg"
    assert starting.acceleration.remembered() == "tcg"


@pytest.mark.parametrize("words", NOT_KVM)
async def test_another_fault_is_not_taken_for_kvms(starting: Starting, words: str) -> None:
    starting.goes["kvm"] = ["[    0.01] Hypervisor detected: KVM", "[    0.02] kvm-guest: failed to see", words], ENDED
    for _ in range(3):
        assert await starting.start() == "tcg"
        assert starting.tried == ["kvm", "tcg"]
    starting.goes["kvm"] = [], None
    assert await starting.start() == "kvm"
    assert not any("KVM does not work" in warning for warning in starting.warned)


@pytest.mark.parametrize(("before", "error"), [(None, ENDED), ("kvm", ENDED), ("kvm", HUNG)])
async def test_a_start_that_failed_once_for_no_reason_that_is_known(
    starting: Starting, before: str | None, error: MountsafeError
) -> None:
    """It may have been killed: KVM is tried once more, and a start that works clears it."""
    if before:
        starting.acceleration.remember(before)
    starting.goes["kvm"] = [], error
    assert await starting.start() == "tcg"
    assert starting.acceleration.remembered() is None
    starting.goes["kvm"] = [], None
    assert await starting.start() == "kvm"
    assert starting.acceleration.remembered() == "kvm"
    starting.goes["kvm"] = [], error
    assert await starting.start() == "tcg"
    assert await starting.start() == "tcg"
    assert starting.acceleration.remembered() == "tcg"
    assert await starting.start() == "tcg"
    assert starting.tried == ["tcg"]


@pytest.mark.parametrize("words", AGAINST_KVM[:1] + NOT_KVM)
async def test_what_starts_in_no_way_says_nothing_of_kvm(starting: Starting, words: str) -> None:
    starting.goes["kvm"] = [words], ENDED
    starting.goes["tcg"] = [], GuestGone("the appliance is missing")
    with pytest.raises(GuestGone, match="missing"):
        await starting.start()
    assert starting.acceleration.remembered() is None
    assert starting.acceleration.candidates() == ["kvm", "tcg"]
    assert not starting.warned


# --- saved states ----------------------------------------------------------------------------------------------------
async def test_a_machine_starts_from_its_saved_state(starting: Starting) -> None:
    starting.goes["kvm, saved"] = [], None
    assert await starting.start() == "kvm"
    assert starting.tried == ["kvm, saved"]
    assert starting.acceleration.remembered() == "kvm"
    starting.acceleration.remember("tcg")
    starting.goes["tcg, saved"] = [], None
    assert await starting.start() == "tcg"
    assert starting.tried == ["tcg, saved"]


@pytest.mark.parametrize("before", [None, "kvm"])
@pytest.mark.parametrize("error", [ENDED, HUNG], ids=["ended", "hung"])
@pytest.mark.parametrize("words", ["", *AGAINST_KVM, *NOT_KVM])
async def test_a_bad_state_says_nothing_of_kvm(
    starting: Starting, words: str, error: MountsafeError, before: str | None
) -> None:
    if before:
        starting.acceleration.remember(before)
    starting.goes |= {"kvm, saved": ([words], error), "kvm": ([], None), "tcg, saved": ([], None)}
    for turn in range(3):
        assert await starting.start() == "kvm"
        assert starting.tried == (["kvm"] if turn and error is HUNG else ["kvm, saved", "kvm"])
        assert starting.acceleration.remembered() == "kvm"
    assert starting.warned == []


async def test_a_state_that_hung_is_not_taken_again_and_its_successor_is(starting: Starting) -> None:
    starting.goes |= {"kvm, saved": ([], HUNG), "kvm": ([], None)}
    await starting.start()
    thaw.state(starting.appliance, "kvm").unlink()
    thaw.state(starting.appliance, "kvm").touch()
    starting.goes["kvm, saved"] = [], None
    assert await starting.start() == "kvm"
    assert starting.tried == ["kvm, saved"]


@pytest.mark.parametrize("words", AGAINST_KVM[:1])
async def test_where_booting_fails_as_well_kvm_is_judged_by_that(starting: Starting, words: str) -> None:
    """What was said against it when the state was taken is not said of the boot."""
    starting.acceleration.remember("kvm")
    starting.goes |= {"kvm, saved": ([words], ENDED), "kvm": ([NOT_KVM[1]], ENDED)}
    for _ in range(3):
        assert await starting.start() == "tcg"
        assert starting.tried == ["kvm, saved", "kvm", "tcg"]
    assert starting.acceleration.remembered() == "kvm"
    starting.goes["kvm"] = [words], ENDED
    assert await starting.start() == "tcg"
    assert starting.acceleration.remembered() == "tcg"


async def test_software_emulation_boots_where_its_state_is_not_taken(starting: Starting) -> None:
    starting.acceleration.remember("tcg")
    starting.goes["tcg, saved"] = [], ENDED
    assert await starting.start() == "tcg"
    assert starting.tried == ["tcg, saved", "tcg"]
