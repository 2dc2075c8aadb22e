"""Reads through the agent: in chunks, ahead of the reader, a few of them kept, and the bytes are the file's."""

import random

import pytest

from mountsafe import wire
from mountsafe.filesystem import chunks as chunks_module
from mountsafe.filesystem import reader as reader_module
from mountsafe.limits import AGENT_CHUNKS
from mountsafe.wire import Kind
from tests.guest import Liar, entry
from tests.handlers.opened import opened

SIZE = 100_000
CONTENT = random.Random(1).randbytes(SIZE)
CHUNK = 4096


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "CHUNK", CHUNK)
    monkeypatch.setattr(reader_module, "IN_ORDER", 512)


def guest() -> Liar:
    return Liar({b"": [entry(b"file", 12, size=SIZE)]}, {b"file": CONTENT})


def asked(liar: Liar) -> list[tuple[int, int]]:
    return [wire.unpack_read(body)[1:] for kind, body in liar.asked if kind == Kind.READ]


async def test_in_order_each_byte_is_asked_for_once() -> None:
    liar = guest()
    async with opened(lambda: liar) as mount:
        handle = (await mount.operations.open(await mount.walk(b"file"), 0, None)).fh
        data = b"".join([bytes(await mount.operations.read(handle, at, 1000)) for at in range(0, SIZE, 1000)])
    assert data == CONTENT
    assert sorted(asked(liar)) == [(at, min(CHUNK, SIZE - at)) for at in range(0, SIZE, CHUNK)]


async def test_in_any_order_the_bytes_are_right_and_little_is_kept() -> None:
    liar = guest()
    places = random.Random(2)
    async with opened(lambda: liar) as mount:
        handle = (await mount.operations.open(await mount.walk(b"file"), 0, None)).fh
        for _ in range(300):
            offset, length = places.randrange(SIZE + 10), places.randrange(1, 20_000)
            assert await mount.operations.read(handle, offset, length) == CONTENT[offset : offset + length]
            assert len(mount.reader._chunks) <= AGENT_CHUNKS
        mount.reader.rest()
        assert len(mount.reader._chunks) == 0


async def test_a_small_read_asks_for_no_more_than_it_needs() -> None:
    liar = guest()
    async with opened(lambda: liar) as mount:
        handle = (await mount.operations.open(await mount.walk(b"file"), 0, None)).fh
        assert await mount.operations.read(handle, 5000, 100) == CONTENT[5000:5100]
    assert asked(liar) == [(5000, 100)]


async def test_a_chunk_that_could_not_be_read_is_asked_for_again() -> None:
    liar = guest()
    failing = True

    def say(body: bytes) -> bytes:
        _, offset, length = wire.unpack_read(body)
        if failing and offset >= CHUNK:
            raise OSError(5, "bad block")
        return CONTENT[offset : offset + length]

    liar.say[Kind.READ] = say
    async with opened(lambda: liar) as mount:
        node = await mount.index.child(mount.index.root, b"file")
        assert node is not None
        assert await mount.reader.read(node, 0, 1000) == CONTENT[:1000]  # what lies ahead fails, and nobody is told
        with pytest.raises(OSError, match="no"):
            await mount.reader.read(node, CHUNK, 1000)
        failing = False
        assert await mount.reader.read(node, CHUNK, 1000) == CONTENT[CHUNK : CHUNK + 1000]
