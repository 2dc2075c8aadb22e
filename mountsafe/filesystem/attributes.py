"""Extended attributes of files, as they are shown."""

import stat

from mountsafe import wire
from mountsafe.filesystem.agents import Agents
from mountsafe.filesystem.nodes import Node

SHOWN_XATTRS = (b"user.", b"osx.")  # security.*, trusted.* and system.* mean something to the host
XATTR_CACHE = 64  # files whose attributes are kept, 1 MiB each at most


class KnownXattrs:
    """The attributes of the files that were asked for last."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._known: dict[int, dict[bytes, bytes]] = {}

    async def of(self, node: Node) -> dict[bytes, bytes]:
        """Return those of a file or folder that are shown; other nodes have none. Raises OSError, MountsafeError."""
        known = self._known.get(node.ino)
        if known is None:
            known = {}
            if stat.S_ISREG(node.mode) or node.is_folder:
                body = await self._agents.request(wire.Kind.XATTRS, node.path)
                for name, value in self._agents.unpack(wire.unpack_xattrs, body):
                    if name.startswith(SHOWN_XATTRS) and b"\0" not in name:
                        known[name] = value
            if len(self._known) >= XATTR_CACHE:
                del self._known[next(iter(self._known))]
            self._known[node.ino] = known
        return known

    def drop(self, number: int) -> None:
        """A file's attributes have changed."""
        self._known.pop(number, None)
