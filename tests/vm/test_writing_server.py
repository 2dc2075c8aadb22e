"""The writing server as it runs, in its box: what its clients write is where it belongs, and nothing else changes."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest
import trio

from mountsafe.encrypted.serving import Plaintext
from mountsafe.encrypted.tally import Counts, Tally
from mountsafe.errors import GuestGone, ProtocolFault
from mountsafe.medium.encryption import Layer, Stack
from mountsafe.process import descendants
from tests.served import work_with

SIZE = 8 << 20
START, WINDOW = 1 << 20, (3 << 20) + 512
STACK = Stack(True, SIZE, 0, SIZE, (Layer(((0, START, WINDOW),), WINDOW, None),))
ERROR = "Input/output error"


pytestmark = pytest.mark.usefixtures("nbdkit")


class Ground:
    """A medium, and a server that may write to a window of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = random.Random(5).randbytes(SIZE)
        path.write_bytes(self.before)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.tally = Tally.made()

    def serve(self, work: Callable[[Plaintext], object], stack: Stack = STACK) -> None:
        """Work with a server."""
        work_with(lambda: Plaintext.start(stack, self.fd, [], self.tally), work)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path / "medium")
    yield made
    os.close(made.fd)
    os.close(made.tally.fd)


def client(server: Plaintext) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_strict_mode(0)  # what is wrong is to reach the other end
    handle.connect_socket(trio.from_thread.run(server.connect, True).detach())
    return handle


def test_its_clients_write_and_nothing_else_changes(ground: Ground) -> None:
    model = bytearray(ground.before[START : START + WINDOW])
    chance = random.Random(8)
    total = 0

    def work(server: Plaintext) -> None:
        nonlocal total
        clients = [client(server) for _ in range(3)]
        assert not clients[0].is_read_only()
        assert clients[0].can_flush()
        assert clients[0].can_fua()
        assert clients[0].get_size() == WINDOW
        for _ in range(200):
            offset = chance.randrange(WINDOW)
            data = chance.randbytes(min(WINDOW - offset, chance.randrange(1, chance.choice([2, 5000, 300_000]))))
            chance.choice(clients).pwrite(data, offset, chance.choice([0, nbd.CMD_FLAG_FUA]))
            model[offset : offset + len(data)] = data
            total += len(data)
        clients[1].zero(4096, 8192)
        model[8192 : 8192 + 4096] = bytes(4096)
        total += 4096
        clients[2].flush()
        assert bytes(clients[0].pread(WINDOW, 0)) == model

    ground.serve(work)
    after = ground.path.read_bytes()
    assert after[START : START + WINDOW] == model
    assert after[:START] == ground.before[:START]
    assert after[START + WINDOW :] == ground.before[START + WINDOW :]
    assert ground.tally.read() == Counts(total, 0, 0)


@pytest.mark.parametrize(("offset", "length"), [(WINDOW, 512), (WINDOW - 511, 512), (WINDOW + START, 1), (1 << 62, 4)])
def test_what_is_beyond_the_window_is_refused(ground: Ground, offset: int, length: int) -> None:
    def work(server: Plaintext) -> None:
        handle = client(server)
        with pytest.raises(nbd.Error):
            handle.pwrite(b"x" * length, offset)
        with pytest.raises(nbd.Error):
            handle.zero(length, offset)
        handle.pwrite(ground.before[START : START + 512], 0)  # it goes on

    ground.serve(work)
    assert ground.path.read_bytes() == ground.before


def test_whoever_writes_nothing_changes_nothing(ground: Ground) -> None:
    def work(server: Plaintext) -> None:
        handle = client(server)
        assert bytes(handle.pread(WINDOW, 0)) == ground.before[START : START + WINDOW]
        handle.flush()

    modified = ground.path.stat().st_mtime_ns
    ground.serve(work)
    assert ground.path.stat().st_mtime_ns == modified
    assert ground.tally.read() == Counts()


def test_what_fails_is_counted_and_is_an_error_of_that_request_alone(ground: Ground) -> None:
    """The descriptor is not one for writing: a medium that was write-protected meanwhile fails so."""
    os.close(ground.fd)
    ground.fd = os.open(ground.path, os.O_RDONLY)

    def work(server: Plaintext) -> None:
        handle = client(server)
        for _ in range(2):
            with pytest.raises(nbd.Error) as failure:
                handle.pwrite(b"x" * 512, 0)
            assert ERROR in str(failure.value)
        assert bytes(handle.pread(512, 0)) == ground.before[START : START + 512]

    ground.serve(work)
    counts = ground.tally.read()
    assert (counts.failures, os.strerror(counts.error)) == (2, "Bad file descriptor")


def test_a_medium_that_keeps_nothing_is_an_error_of_who_asks(ground: Ground) -> None:
    """In its place is the end of a pipe, which cannot be synced."""
    os.close(ground.fd)
    reading, ground.fd = os.pipe()

    def work(server: Plaintext) -> None:
        handle = client(server)
        with pytest.raises(nbd.Error) as failure:
            handle.flush()
        assert ERROR in str(failure.value)

    ground.serve(work)
    os.close(reading)
    assert ground.tally.read().failures == 1


def test_what_was_flushed_outlives_a_server_that_is_killed(ground: Ground) -> None:
    """And the count goes on with the next one."""

    def killed(server: Plaintext) -> None:
        handle = client(server)
        handle.pwrite(b"y" * 512, 512)
        handle.flush()
        for pid in descendants(server.pid):
            if Path(f"/proc/{pid}/comm").read_text().startswith("nbdkit"):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(nbd.Error):
            handle.pwrite(b"z" * 512, 512)
        assert trio.from_thread.run(server.wait) != 0
        with pytest.raises(GuestGone):
            client(server)

    ground.serve(killed)
    assert ground.path.read_bytes()[START + 512 : START + 1024] == b"y" * 512
    ground.serve(lambda server: client(server).pwrite(b"x" * 512, 0))
    assert ground.tally.read().written == 1024


@pytest.mark.parametrize(
    "stack",
    [
        Stack(False, SIZE, 0, SIZE),
        Stack(True, SIZE, 0, SIZE, (Layer(((0, SIZE - 512, 1024),), 1024, None),)),
        Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, 1024), (1024, 512, 1024)), 2048, None),)),
    ],
)
def test_what_cannot_be_written_to_is_not_even_started(ground: Ground, stack: Stack) -> None:
    with pytest.raises(ProtocolFault):
        Plaintext.start(stack, ground.fd, [], ground.tally)


def test_the_count_fills_no_memory(ground: Ground) -> None:
    with pytest.raises(PermissionError):
        os.pwrite(ground.tally.fd, b"x", 1 << 30)
    with pytest.raises(PermissionError):
        os.ftruncate(ground.tally.fd, 0)
