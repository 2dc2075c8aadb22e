"""Learn the tree before anybody asks, while the guest has nothing else to do.

It starts when the file system is mounted: folders first, in the order in which a walk comes to them, then where their
files are. It asks one question at a time, in moments when no program waits for the guest, so that a program waits for a
few ms of it at most. It stops after `PREFETCH_ENTRIES`, and when there is no guest or no room: what is needed later is
learned then. A folder that cannot be read is skipped.
"""

import errno
import logging
from collections import deque
from collections.abc import Awaitable

from mountsafe.errors import MountsafeError
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.index import Index
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.reader import Reader
from mountsafe.limits import PREFETCH_ENTRIES

log = logging.getLogger(__name__)


async def prefetch(agents: Agents, index: Index, reader: Reader, limit: int = PREFETCH_ENTRIES) -> None:
    """Learn at most `limit` entries of the tree, depth first, then the layout of the files among them."""
    folders = deque([index.root])
    seen: list[Node] = []
    try:
        while folders and len(seen) < limit:
            folder = folders.popleft()
            await agents.quiet()
            listing = index.listing(folder, limit - len(seen))
            await _without_refusal(listing.stopped())
            nodes = list(listing.names.values())
            seen += nodes
            folders.extendleft(node for node in reversed(nodes) if node.is_folder)
        for node in seen:
            if node.unplanned:
                await agents.quiet()
            await reader.open(node)
    except (MountsafeError, OSError) as error:
        log.info("prefetching ended: %s", error)
    except Exception:
        log.exception("a bug in prefetching")  # nobody waits for it, and it must not end the mount


async def _without_refusal(learning: Awaitable[None]) -> None:
    """Wait for something to be learned, or for the guest's no to it."""
    try:
        await learning
    except OSError as error:
        if error.errno == errno.ENOMEM:  # ours
            raise
        log.info("prefetching leaves something out: %s", error)
