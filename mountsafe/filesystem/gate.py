"""Questions by path, and what makes paths lead elsewhere: never both at a time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Gate:
    """Many may be inside together, or one alone, who comes before all that are not inside yet."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = 0
        self._changed = trio.Event()
        self._alone = trio.Lock()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be inside with others."""
        await self.enter()
        try:
            yield
        finally:
            self.leave()

    async def enter(self) -> None:
        """Come inside with others; `leave` follows."""
        while self._closed:
            await self._changed.wait()
        self._inside += 1

    def leave(self) -> None:
        """See `enter`."""
        self._inside -= 1
        if self._closed:
            self._wake()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be the only one inside."""
        self._closed += 1
        try:
            async with self._alone:
                while self._inside:
                    await self._changed.wait()
                yield
        finally:
            self._closed -= 1
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
