"""An encrypted medium has several disks, and no virtual machine has two of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from mountsafe.errors import UserError
from mountsafe.medium.part import Part
from mountsafe.medium.volumes import Volume
from mountsafe.session import choice as choices
from mountsafe.session import machines as machines_module
from mountsafe.session.ahead import Ahead
from mountsafe.session.choice import Choice
from mountsafe.session.machines import Machines
from mountsafe.session.order import MountOptions
from mountsafe.session.supervisor import Supervisor
from tests.handlers.test_machines import FakeMachine, FakeStorage

MEDIUM, OUTER, INNER = 0, 1, 2  # the disks: the second lies in the medium, the third in the second
FOUND = {MEDIUM: ["vfat", "crypto_LUKS"], OUTER: ["ext4", "crypto_LUKS"], INNER: ["ext4"]}


class Disk(FakeStorage):
    """A disk whose descriptor is its number."""

    def __init__(self, disk: int) -> None:
        super().__init__()
        self.disk = disk

    @asynccontextmanager
    async def lent(self, to_qemu: bool) -> AsyncIterator[int]:
        yield self.disk


class Machine(FakeMachine):
    """A VM that notes which disks it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.disks: list[int] = []

    async def attach(self, fd: int, model: str, part: Part, writable: bool) -> None:
        await super().attach(fd, model, part, writable)
        self.disks.append(fd)


def partition(number: int, fstype: str) -> Volume:
    usage = "crypto" if fstype == "crypto_LUKS" else "filesystem"
    where = (f"sda{number}", "partition", number, number << 20, 1 << 20)
    return Volume(*where, fstype, usage, "", "", "", "", name=str(number))


async def look(machines: Machines, _: trio.Nursery) -> list[Volume]:
    """What a virtual machine finds that has a disk."""
    disk: Any = machines.storage
    (await machines.stream(disk)).close()
    return [partition(number, fstype) for number, fstype in enumerate(FOUND[disk.disk], 1)]


async def unlocked(disk: Any, *_: object) -> Disk:
    return Disk(disk.disk + 1)


@pytest.mark.parametrize("key_named", [False, True])
async def test_no_virtual_machine_has_a_medium_and_what_is_decrypted_of_it(
    monkeypatch: pytest.MonkeyPatch, key_named: bool
) -> None:
    made: list[Machine] = []

    async def started(*_: object) -> Machine:
        made.append(Machine())
        return made[-1]

    monkeypatch.setattr(machines_module, "started", started)
    monkeypatch.setattr(choices, "inspect_medium", look)
    monkeypatch.setattr(choices, "unlock", unlocked)
    order: Any = SimpleNamespace(options=MountOptions(unlock=True, key_named=key_named))
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(order, Mock(), Mock(), Mock(), Mock())
        supervisor._nursery = nursery
        supervisor._boxes = Mock()
        nothing: Any = None
        supervisor._machines = [Machines(nothing, nothing, Disk(MEDIUM), nursery)]
        machined = partial(supervisor._machined, nothing, nothing)
        ahead = partial(Ahead, started, nursery)
        choice = Choice(order.options, "medium", Mock(), nursery, machined, ahead)
        await choice.make(supervisor._machines[0])
        chosen = {each.volume.name: each.machines for each in choice.chosen}
        for _ in range(2):  # the second time all of them have died
            for name, disk in {"1": MEDIUM, "2/1": OUTER, "2/2/1": INNER}.items():
                (await chosen[name].stream(name)).close()
                life: Any = chosen[name]._life
                assert life.machine.disks == [disk]
            for machine in made:
                machine.dead.set()
            await trio.testing.wait_all_tasks_blocked()
        assert [machine for machine in made if len(machine.disks) != 1] == []
        nursery.cancel_scope.cancel()


class Early:
    """Begins machines, and notes what became of each."""

    def __init__(self) -> None:
        self.made: list[Machine] = []

    async def start(self) -> Any:
        await trio.lowlevel.checkpoint()
        self.made.append(Machine())
        return self.made[-1]


@pytest.mark.parametrize("found", [["crypto_LUKS"], ["vfat"], []])
@pytest.mark.parametrize("key_named", [False, True])
async def test_a_machine_for_what_a_named_key_opens_runs_before_it_is_found(
    monkeypatch: pytest.MonkeyPatch, key_named: bool, found: list[str]
) -> None:
    """It is the one that is given the plaintext, or else it is ended."""
    early, seen = Early(), []

    async def look(machines: Any, _: trio.Nursery) -> list[Volume]:
        await trio.testing.wait_all_tasks_blocked()
        seen.append(len(early.made))
        there = found if machines.storage.disk == MEDIUM else ["ext4"]
        return [partition(number, fstype) for number, fstype in enumerate(there, 1)]

    async def unlock(disk: Any, *words: Any) -> Disk:
        words[-1].begin()
        return Disk(disk.disk + 1)

    taken: list[Machine] = []

    def machined(disk: Any, ahead: Any) -> Any:
        return SimpleNamespace(storage=disk, ahead=ahead, release=release)

    async def release(_: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(choices, "inspect_medium", look)
    monkeypatch.setattr(choices, "unlock", unlock)
    first: Any = SimpleNamespace(storage=Disk(MEDIUM), release=release)
    async with trio.open_nursery() as nursery:
        options = MountOptions(unlock=True, key_named=key_named)
        choice = Choice(options, "medium", Mock(), nursery, machined, partial(Ahead, early.start, nursery))
        with suppress(UserError):
            await choice.make(first)
        for each in choice.chosen:
            if each.machines is not first:
                taken.append(await each.machines.ahead.taken())  # type: ignore[attr-defined]
        assert seen[0] == key_named
        assert len(early.made) == (key_named or bool(taken))
        assert taken == (early.made if "crypto_LUKS" in found else [])
        assert [machine.dead.is_set() for machine in early.made] == [not taken] * len(early.made)
