"""The plaintext server as it runs, in its box: what its clients read, what they cannot, and who has the key."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from mountsafe import trios
from mountsafe.encrypted.serving import Plaintext
from mountsafe.errors import DiskGone, GuestGone, MediumError, ProtocolFault, UserError
from mountsafe.medium.encryption import Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.medium.nbd import BlockingNbd
from mountsafe.medium.stacked import open_blocking
from mountsafe.process import descendants
from tests.served import work_with

SIZE = 4 << 20
KEY = random.Random(7).randbytes(64)
SEGMENTS = (
    Segment(0, 1 << 20, SegmentKind.CRYPT, 8192, 0),
    Segment(1 << 20, 64 << 10, SegmentKind.ZERO, 0, 0),
    Segment((1 << 20) + (64 << 10), 1 << 20, SegmentKind.CRYPT, 2 << 20, 2048),
)
LAYOUT = Layout(Cipher.AES_XTS, 64, 512, 512, (2 << 20) + (64 << 10), SEGMENTS)
STACK = Stack(True, SIZE, 0, SIZE, (Layer(((0, 0, SIZE),), SIZE, LAYOUT),))


pytestmark = pytest.mark.usefixtures("nbdkit")


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "medium").write_bytes(os.urandom(SIZE))
    with (tmp_path / "medium").open("rb") as file:
        yield file.fileno()


def key() -> int:
    fd = os.memfd_create("key")
    os.write(fd, KEY)
    return fd


Work = Callable[[Plaintext], object]


def served(disk: int, work: Callable[[Plaintext], object], stack: Stack = STACK) -> None:
    """Work with a server that has a key for each layer."""

    def start() -> Plaintext:
        held = key()
        try:
            return Plaintext.start(stack, disk, [held] * sum(layer.layout is not None for layer in stack.layers))
        finally:
            os.close(held)

    work_with(start, work)


def connected(server: Plaintext, relayed: bool = False) -> int:
    return trio.from_thread.run(server.connect, relayed).detach()


def nbdkits(server: Plaintext) -> list[int]:
    pids = descendants(server.pid)
    return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip().startswith("nbdkit")]


def test_its_clients_read_what_is_encrypted(medium: int) -> None:
    """Several at a time, at any place."""
    whole = open_blocking(STACK, [os.dup(medium), key()]).read(0, LAYOUT.size)
    chance = random.Random(3)

    def work(server: Plaintext) -> None:
        clients = [BlockingNbd(connected(server), LAYOUT.size) for _ in range(5)]
        for _ in range(100):
            offset = chance.randrange(LAYOUT.size)
            length = chance.randrange(1, chance.choice([2, 5000, 300_000]))
            there = whole[offset : offset + length]
            assert chance.choice(clients).read(offset, length) == there.ljust(length, b"\0")
        assert clients[0].read(0, LAYOUT.size) == whole

    served(medium, work)


def test_qemu_reads_it(medium: int, tmp_path: Path, program: Callable[[str], str]) -> None:
    qemu_img = program("qemu-img")
    whole = open_blocking(STACK, [os.dup(medium), key()]).read(0, LAYOUT.size)

    def work(server: Plaintext) -> None:
        sock = connected(server, relayed=True)
        source = f'json:{{"driver": "nbd", "server": {{"type": "fd", "str": "{sock}"}}}}'
        argv = [qemu_img, "convert", "-O", "raw", source, str(tmp_path / "plain")]
        subprocess.run(argv, pass_fds=[sock], check=True, timeout=60)
        os.close(sock)

    served(medium, work)
    assert (tmp_path / "plain").read_bytes() == whole


def test_what_cannot_be_read_is_an_error_and_the_rest_is_read(medium: int, program: Callable[[str], str]) -> None:
    """By libnbd and by QEMU: the connection goes on."""
    qemu_io = program("qemu-io")
    before = open_blocking(STACK, [os.dup(medium), key()]).read(0, 1 << 20)
    os.truncate(f"/proc/self/fd/{medium}", 2 << 20)

    def work(server: Plaintext) -> None:
        client = BlockingNbd(connected(server), LAYOUT.size)
        for _ in range(3):
            with pytest.raises(MediumError) as failure:
                client.read(LAYOUT.size - 512, 512)
            assert not isinstance(failure.value, DiskGone)
            assert client.read(0, 1 << 20) == before
        sock = connected(server, relayed=True)
        reads = [part for where in ("2m 4k", "0 4k", "2m 4k", "512 512") for part in ("-c", f"read {where}")]
        source = f'json:{{"driver": "nbd", "server": {{"type": "fd", "str": "{sock}"}}}}'
        done = subprocess.run(
            [qemu_io, "-r", *reads, source], pass_fds=[sock], capture_output=True, text=True, timeout=60
        )
        os.close(sock)
        said = (done.stdout + done.stderr).splitlines()
        told = [line for line in said if line.startswith("read")]
        assert [line.startswith("read failed: Input/output error") for line in told] == [True, False, True, False]

    served(medium, work)


def test_it_cannot_be_written_to(medium: int, program: Callable[[str], str]) -> None:
    qemu_io = program("qemu-io")

    def work(server: Plaintext) -> None:
        sock = connected(server)
        source = f'json:{{"driver": "nbd", "server": {{"type": "fd", "str": "{sock}"}}}}'
        argv = [qemu_io, "-c", "write 0 4k", source]
        done = subprocess.run(argv, pass_fds=[sock], capture_output=True, text=True, timeout=60)
        os.close(sock)
        assert done.returncode != 0
        assert "wrote" not in done.stdout

    served(medium, work)


def test_who_is_killed_is_gone_for_all(medium: int) -> None:
    def work(server: Plaintext) -> None:
        client = BlockingNbd(connected(server), LAYOUT.size)
        client.read(0, 4096)
        [pid] = nbdkits(server)
        os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(DiskGone):
                client.read(0, 4096)
        assert trio.from_thread.run(server.wait) != 0
        with pytest.raises(GuestGone):
            connected(server)

    served(medium, work)


def test_it_ends_with_who_serves_the_disk_below(medium: int) -> None:
    """A server of a server: when the lower one ends, the upper one must, as it cannot connect anew."""

    def work(lower: Plaintext) -> None:
        async def run() -> None:
            with await lower.connect(relayed=False) as sock:
                above = Stack(False, LAYOUT.size, 0, 1 << 20, (Layer(((0, 0, 1 << 20),), 1 << 20, None),))
                upper = Plaintext.start(above, sock.fileno(), [])
            try:
                assert await upper.opened() == 1 << 20
                client = await trio.to_thread.run_sync(BlockingNbd, (await upper.connect(True)).detach(), 1 << 20)
                below = open_blocking(STACK, [os.dup(medium), key()])
                assert await trio.to_thread.run_sync(client.read, 500, 5000) == below.read(500, 5000)
                await lower.process.stop()
                with pytest.raises(DiskGone):
                    await trio.to_thread.run_sync(client.read, 0, 512)
                assert await upper.wait() != 0
            finally:
                await upper.stop()

        trio.from_thread.run(run)

    served(medium, work)


def test_nobody_else_sees_the_key(medium: int) -> None:
    """Not in what is seen of the processes, which no other of the same user may look into."""
    secrets = (KEY, KEY[:32], KEY.hex().encode(), KEY[:16].hex().encode())

    def work(server: Plaintext) -> None:
        BlockingNbd(connected(server), LAYOUT.size).read(0, 4096)
        for pid in (server.pid, *descendants(server.pid)):
            for name in ("cmdline", "environ"):
                seen = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not any(secret in seen for secret in secrets)
        [pid] = nbdkits(server)
        uid = next(
            int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line[:4] == "Uid:"
        )
        if uid != 0:
            assert Path(f"/proc/{pid}/mem").stat().st_uid != uid  # proc(5): of a process that is not dumpable

    served(medium, work)


def test_a_lie_is_not_even_started(medium: int) -> None:
    with pytest.raises(ProtocolFault):
        Plaintext.start(Stack(True, SIZE, 0, SIZE + 1), medium, [])


@pytest.mark.parametrize("size", [0, 63])
def test_a_key_that_is_none_is_said(medium: int, size: int) -> None:
    async def run() -> None:
        fd = os.memfd_create("key")
        os.write(fd, KEY[:size])
        server = Plaintext.start(STACK, medium, [fd])
        os.close(fd)
        try:
            with pytest.raises(UserError, match="key"):
                await server.opened()
        finally:
            await server.stop()

    trios.run(run)
