"""A boxed server of a disk, and work with it in a thread of its own."""

from collections.abc import Callable

import trio

from mountsafe import trios
from mountsafe.encrypted.serving import Plaintext


def work_with(start: Callable[[], Plaintext], work: Callable[[Plaintext], object]) -> None:
    """Start a server, work with it, and end it."""

    async def run() -> None:
        server = start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.log_words)
            try:
                await server.opened()
                await trio.to_thread.run_sync(work, server)
            finally:
                await server.stop()

    trios.run(run)
