"""Who writes to a file system for its session process: a machine and a server on demand, both gone when settled.

The server is a real one, in its box; in the virtual machine's place is the test, which writes by NBD as QEMU would.
"""

import json
import os
import socket
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest
import trio

from mountsafe.encrypted import serving
from mountsafe.errors import ExitCode, GuestGone, UserError
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.session.choice import Chosen
from mountsafe.session.machines import Listener
from mountsafe.session.mounter import MountRequest
from mountsafe.session.storage import Lender, Storage
from mountsafe.session.writable import Writable
from mountsafe.session.writing import Writer, Writers
from tests.handlers.test_hostile_session import READY, FakeMachines, Session, patched, session

__all__ = ["patched"]  # a fixture
SIZE, START, WINDOW = 1 << 20, 8192, 65536
PATIENCE = 60.0


pytestmark = pytest.mark.usefixtures("nbdkit")


class Heard(Listener):
    """Notes what is worse than it might be."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, what: str) -> None:
        self.warnings.append(what)


class FakeWriting:
    """In the place of the machines that have the window: a client of its server."""

    def __init__(self, disk: Writable) -> None:
        self.storage = disk
        self.number = 0
        self.client: nbd.NBD | None = None
        self.ended: list[int] = []
        self.refuses = False

    async def numbered(self, user: object) -> tuple[socket.socket, int]:
        if self.refuses:
            raise GuestGone("no machine")
        if self.client is None:
            async with self.storage.lent(to_qemu=True) as fd:
                self.client = nbd.NBD()
                await trio.to_thread.run_sync(self.client.connect_socket, os.dup(fd))
            self.number += 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours, self.number

    async def write(self, data: bytes, offset: int) -> None:
        assert self.client is not None
        await trio.to_thread.run_sync(self.client.pwrite, data, offset)

    async def release(self, user: object) -> None:
        self.client = None

    async def end_misbehaving(self, number: int, why: str) -> None:
        self.ended.append(number)

    async def close(self) -> None:
        self.client = None
        await self.storage.close()


class Ground:
    """A session process that may write to a window of a medium."""

    def __init__(self, seen: Session, machines: FakeWriting, disk: Writable, heard: Heard) -> None:
        self.seen = seen
        self.machines = machines
        self.disk = disk
        self.heard = heard

    async def asked(self, message: Any) -> Any:
        await self.seen.say(message)
        with trio.fail_after(PATIENCE):
            return json.loads(await self.seen.receive(10_000))


@asynccontextmanager
async def ground(mounts: list[MountRequest], tmp_path: Path) -> AsyncIterator[Ground]:
    path = tmp_path / "medium"
    path.write_bytes(bytes(SIZE))
    reading, writing = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    made: list[Any] = []

    def writer(machines: FakeMachines, nursery: trio.Nursery) -> Writer:
        base = Storage(Medium(path, reading, SIZE, False), nursery)
        disk = Writable(base, writing, START, WINDOW, nursery)
        made.extend([FakeWriting(disk), disk, Heard()])
        return Writer(disk, made[0], machines, "sdb", made[2])  # type: ignore[arg-type]

    async with session(mounts, tmp_path, writer) as seen:
        yield Ground(seen, *made)
    os.close(reading)
    os.close(writing)


@pytest.mark.real_clock
async def test_nothing_runs_before_it_writes_nor_after_it_has_settled(
    patched: list[MountRequest], tmp_path: Path
) -> None:
    async with ground(patched, tmp_path) as at:
        for number in (1, 2):
            assert at.disk.pid is None
            assert await at.asked({"want-stream": True}) == {"stream": number}
            assert at.disk.pid is not None
            assert await at.asked({"want-stream": True}) == {"stream": number}
            await at.machines.write(b"%d" % number * 512, 512 * number)
            assert await at.asked({"settle": {}}) == {"settled": ""}
            assert at.disk.pid is None
            assert at.seen.machines.renewed == number
            assert at.seen.served.mounted().written
        data = (tmp_path / "medium").read_bytes()
        assert data == bytes(START + 512) + b"1" * 512 + b"2" * 512 + bytes(SIZE - START - 1536)


@pytest.mark.real_clock
async def test_what_is_only_looked_at_counts_as_unchanged(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        assert await at.asked({"settle": {}}) == {"settled": ""}
        told = at.seen.served.mounted()
        assert (told.access, told.written, told.unsaved) == ("read-write", False, "")


@pytest.mark.real_clock
async def test_a_write_that_failed_is_told_once(patched: list[MountRequest], tmp_path: Path) -> None:
    """Whoever was told of it then: the guest's kernel says it to nobody else."""
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        at.disk._tally.failed(28)
        assert await at.asked({"settle": {}}) == {"settled": "1 writes to the medium failed: No space left on device"}
        assert await at.asked({"settle": {}}) == {"settled": ""}


@pytest.mark.real_clock
async def test_a_medium_that_does_not_keep_it_is_told(
    patched: list[MountRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})

        def fails(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fails)
        answer = await at.asked({"settle": {}})
        assert "did not keep what was written: Input/output error" in answer["settled"]
        assert at.seen.machines.renewed == 1


@pytest.mark.real_clock
async def test_a_machine_that_cannot_be_had_is_an_answer(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        at.machines.refuses = True
        assert await at.asked({"want-stream": True}) == {"nothing": "no machine"}
        await at.seen.say({"misbehaved": {"number": 7, "why": "x", "writing": True}})
        assert await at.asked({"want-stream": True}) == {"nothing": "no machine"}
        assert at.machines.ended == [7]
        assert at.seen.machines.ended == []


@pytest.mark.real_clock
async def test_what_is_lost_is_said_and_stays_known(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.seen.say({"unsaved": {"why": "\x1b[2Jno space", "count": 3}})
        assert await at.asked({"settle": {}}) == {"settled": ""}
        [words] = at.heard.warnings
        assert words == at.seen.served.mounted().unsaved == at.seen.served.unsaved
        assert words.isprintable()
        assert words.startswith("3 changes are lost: ")
        for _ in range(300):
            await at.seen.say({"unsaved": {"why": "again", "count": 1}})
        await at.asked({"settle": {}})
        assert len(at.heard.warnings) == 100


@pytest.mark.real_clock
@pytest.mark.parametrize(("saved", "named"), [(False, " (a\\x1b[2J.jpg)"), (True, "")])
async def test_who_is_ended_while_it_saves_has_lost_what_it_was_saving(
    patched: list[MountRequest], tmp_path: Path, saved: bool, named: str
) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.say({"saving": ["a\x1b[2J.jpg"]})
        if saved:
            await at.seen.say({"saving": []})
        await at.seen.say({"serving": {}})  # out of turn: it is ended
        with trio.fail_after(PATIENCE):
            await at.seen.ended.wait()
        assert at.heard.warnings == [f"changes may be lost{named}: it ended before all of it was saved"]


@pytest.mark.real_clock
async def test_after_the_medium_was_exchanged_nothing_is_written(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.served.stop_writing()
        assert at.disk.pid is None
        assert await at.asked({"want-stream": True}) == {"nothing": "the medium is not written to any more"}
        assert at.seen.served.mounted().written is False


@pytest.mark.real_clock
async def test_the_server_ends_with_the_session_process(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.say({"serving": {}})  # out of turn
        with trio.fail_after(PATIENCE):
            await at.seen.ended.wait()
        assert at.disk.pid is None
        assert at.seen.served.ended.is_set()


@pytest.mark.real_clock
async def test_the_mount_is_one_that_can_be_written_to(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        assert await at.asked({"ready": READY}) == {"nothing": "not in this test"}
        [request] = patched
        assert request.writable
    async with session(patched, tmp_path) as seen:
        await seen.say({"ready": READY})
        await seen.receive(1000)
        assert not patched[1].writable


# --- which of them --------------------------------------------------------------------------------------------------
DISK = Volume("sdb", "disk", 0, 0, SIZE, "", "", "", "", "gpt", "", "0")
ONE = Volume("sdb1", "partition", 1, START, WINDOW, "ext4", "filesystem", "", "", "", "", "1")
TWO = Volume("sdb2", "partition", 2, START + WINDOW, WINDOW, "squashfs", "filesystem", "", "", "", "", "2")


async def made(tmp_path: Path, *volumes: Volume, demanded: bool = True) -> Writers:
    """Who writes to volumes that are to be mounted."""
    path = tmp_path / "medium"
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file:
        medium = Medium(path, file.fileno(), SIZE, False, writable_fd=file.fileno())
        async with trio.open_nursery() as nursery:

            def machined(disk: Lender, ahead: object) -> Any:
                assert disk.writable
                return FakeWriting(disk)  # type: ignore[arg-type]

            writers = Writers(medium, machined, nursery, Listener())
            machines: Any = types.SimpleNamespace(storage=Storage(medium, nursery))
            writers.make([Chosen(each, machines, (DISK, ONE, TWO)) for each in volumes], demanded=demanded)
    return writers


async def test_some_of_several_can_be_written_to(tmp_path: Path) -> None:
    writers = await made(tmp_path, ONE, TWO)
    writer, why = writers.of(ONE)
    assert writer is not None
    assert why == ""
    assert writer.assigned.device == "sdb"
    assert writers.of(TWO) == (None, "partition 2 cannot be written to: squashfs is only read")


async def test_none_of_them_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="squashfs is only read") as failure:
        await made(tmp_path, TWO)
    assert "--write" in failure.value.hint


@pytest.mark.parametrize("demanded", [True, False])
async def test_nothing_is_said_to_be_writable_without_what_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demanded: bool
) -> None:
    def missing() -> None:
        raise UserError("nbdkit is missing", "install it", ExitCode.DEPENDENCY)

    monkeypatch.setattr(serving, "require", missing)
    if demanded:
        with pytest.raises(UserError, match="nbdkit is missing") as failure:
            await made(tmp_path, ONE)
        assert failure.value.code == ExitCode.DEPENDENCY
    else:
        writers = await made(tmp_path, ONE, demanded=False)
        assert writers.of(ONE) == (None, "partition 1 cannot be written to: nbdkit is missing")


# --- what is on its way, and what is lost -----------------------------------------------------------------------------
@pytest.mark.real_clock
async def test_it_is_changing_until_the_medium_has_it(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        served = at.seen.served
        assert not served.changing
        at.machines.refuses = True
        await at.asked({"want-stream": True})
        assert not served.changing, "nobody could write"
        at.machines.refuses = False
        await at.asked({"want-stream": True})
        assert served.changing
        assert served.mounted().changing
        await at.asked({"settle": {}})
        assert not served.changing


@pytest.mark.real_clock
async def test_files_are_named(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.say({"unsaved": {"why": "full", "count": 2, "names": ["a\x1b[2J.jpg", "b.jpg"]}})
        await at.asked({"settle": {}})
        assert at.heard.warnings == ["2 changes are lost (a\\x1b[2J.jpg, b.jpg): full"]


@pytest.mark.real_clock
async def test_who_dies_before_it_has_saved_has_lost_something(patched: list[MountRequest], tmp_path: Path) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.say({"serving": {}})  # out of turn: it is ended
        with trio.fail_after(PATIENCE):
            await at.seen.ended.wait()
        assert at.heard.warnings == ["changes may be lost: it ended before all of it was saved"]
        assert not at.seen.served.changing


@pytest.mark.real_clock
async def test_after_the_medium_was_exchanged_what_is_lost_can_still_be_told(
    patched: list[MountRequest], tmp_path: Path
) -> None:
    async with ground(patched, tmp_path) as at:
        await at.asked({"want-stream": True})
        await at.seen.served.stop_writing()
        assert at.seen.served.changing
        await at.seen.say({"unsaved": {"why": "gone", "count": 1, "names": ["a.jpg"]}})
        assert await at.asked({"settle": {}}) == {"settled": "the medium is not written to any more"}
        assert at.heard.warnings == ["a change is lost (a.jpg): gone"]


async def test_the_policy_may_have_one_only_read_and_nobody_need_be_told(tmp_path: Path) -> None:
    path = tmp_path / "medium"
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file:
        medium = Medium(path, file.fileno(), SIZE, False, writable_fd=file.fileno())
        async with trio.open_nursery() as nursery:
            storage = Storage(medium, nursery)
            machined: Any = lambda disk, _: FakeWriting(disk)  # noqa: E731
            writers = Writers(medium, machined, nursery, Listener())
            machines: Any = FakeWriting(storage)  # type: ignore[arg-type]
            writers.make([Chosen(each, machines, (DISK, ONE, TWO)) for each in (ONE, TWO)], {"1"}, demanded=False)
    assert writers.of(ONE) == (None, "partition 1 cannot be written to: the policy has it only read")
    assert writers.of(TWO) == (None, "partition 2 cannot be written to: squashfs is only read")
