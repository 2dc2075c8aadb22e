"""Read-ahead for bytes that only the agent has: while a program looks at one chunk of a file, the next is on its way.

A few chunks are kept for a whole mount, and the oldest are dropped first. Unless a privileged process has raised its
limit the kernel asks for little at a time; in large pieces a compressed file is read by two processors of the guest.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from mountsafe.filesystem.nodes import Node
from mountsafe.limits import AGENT_CHUNKS
from mountsafe.wire import MAX_READ

CHUNK = MAX_READ
Fetch = Callable[[Node, int, int], Awaitable[bytes]]


class Chunk:
    """Bytes of a file that are here, or on their way."""

    __slots__ = ("_arrived", "_data", "_failure")

    def __init__(self) -> None:
        self._arrived = trio.Event()
        self._data = b""
        self._failure: Exception | None = None

    async def fetch(self, fetch: Fetch, node: Node, offset: int) -> bool:
        """Get them; whether that went well."""
        try:
            self._data = await fetch(node, offset, min(CHUNK, node.size - offset))
        except Exception as error:  # noqa: BLE001  # whoever waits for the bytes is told
            self._failure = error
        self._arrived.set()
        return self._failure is None

    async def bytes(self) -> bytes:
        """Wait for them. Raises what kept them from coming."""
        await self._arrived.wait()
        if self._failure is not None:
            raise self._failure
        return self._data


class Chunks:
    """The chunks of one mount. `fetch` asks the agent for bytes of a file."""

    def __init__(self, fetch: Fetch, nursery: trio.Nursery, limit: int = AGENT_CHUNKS) -> None:
        self._fetch = fetch
        self._nursery = nursery
        self._limit = limit
        self._chunks: OrderedDict[tuple[int, int], Chunk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chunks)

    def clear(self) -> None:
        """Keep none."""
        self._chunks.clear()

    def drop(self, node: Node) -> None:
        """Keep none of a file."""
        for key in [key for key in self._chunks if key[0] == node.ino]:
            del self._chunks[key]

    async def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes that lie in the file, and have the chunk after them on its way."""
        parts = []
        end = offset + length
        while offset < end:
            start = offset - offset % CHUNK
            chunk = self._begun(node, start)
            if start + CHUNK < node.size:
                self._begun(node, start + CHUNK)
            part = (await chunk.bytes())[offset - start : end - start]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begun(self, node: Node, start: int) -> Chunk:
        key = (node.ino, start)
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = Chunk()
            self._nursery.start_soon(self._get, chunk, node, key)
            while len(self._chunks) > self._limit:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(key)
        return chunk

    async def _get(self, chunk: Chunk, node: Node, key: tuple[int, int]) -> None:
        if not await chunk.fetch(self._fetch, node, key[1]) and self._chunks.get(key) is chunk:
            del self._chunks[key]  # the next who asks tries again
