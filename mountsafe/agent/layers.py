"""The graph of what is on the medium, while it is searched: its nodes, and where their bytes are.

A search is bounded in the number of volumes, in depth and in time, so it ends whatever a medium claims.
"""

import fcntl
import os
import sys
import time

from mountsafe import wire

MAX_DEPTH = 8  # layers above the disk; the deepest that people build (partition, md, LVM, a guest's disk, LVM) has 7
PATIENCE = 100.0  # seconds; less than the host waits for (`mountsafe.limits.PROBE_DEADLINE`)
BLKGETSIZE64, BLKROSET = 0x80081272, 0x125D  # include/uapi/linux/fs.h

Places = tuple[wire.Place, ...]


class Node:
    """One volume: where its device is in the guest, what it is made of, and what blkid says of it."""

    def __init__(self, path: str, kind: int, number: int, parents: "list[Node]") -> None:
        self.path = path
        self.device = os.path.basename(path)  # its name for the host
        self.kind = kind
        self.number = number
        self.parents = parents
        self.depth: int = 1 + max((parent.depth for parent in parents), default=0)
        self.start = 0
        self.size = 0
        self.sector = 0  # that its table counts in, if not the one that was expected
        self.name = ""
        self.uuid = ""
        self.present = self.wanted = 0
        self.trouble = wire.Trouble.NONE
        self.resorts = 0
        self.claimed = 0
        self.inside = False  # of the file system that its disk has as a whole
        self.places: Places = ()
        self.facts: dict[str, bytes] = {}
        self.loop = ""  # the read-only loop device over it, for programs that open it for writing
        self.done = False  # whether what it is part of was looked for

    @property
    def fstype(self) -> bytes:
        """The type as blkid names it."""
        return self.facts.get("ID_FS_TYPE", b"")

    @property
    def identity(self) -> str:
        """The UUID as blkid tells it."""
        return self.facts.get("ID_FS_UUID", b"").decode("ascii", "replace")

    @property
    def lies_on_disk(self) -> bool:
        """Whether it is the disk or a partition of it: so the host knows where its bytes are."""
        return self.kind == wire.VolumeKind.DISK or (self.kind == wire.VolumeKind.PARTITION and self.depth == 2)

    def slice(self, start: int, length: int, offset: int = 0) -> list[wire.Place]:
        """Return where `length` bytes from `start` on lie on the medium, for whoever has them at its `offset`."""
        found = []
        for place in self.places:
            low, high = max(start, place.offset), min(start + length, place.offset + place.length)
            if low < high:
                found.append(wire.Place(low - start + offset, place.physical + low - place.offset, high - low))
        return found


class Graph:
    """The volumes found so far, parents before children."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._end = time.monotonic() + PATIENCE
        self._counts: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether no other layer is followed. What a layer was found to hold is told all the same."""
        return len(self.nodes) >= wire.MAX_VOLUMES or time.monotonic() > self._end

    def end(self) -> None:
        """Note on the disk that not all of it was looked at."""
        self.nodes[0].resorts |= wire.Resort.UNFINISHED

    def add(self, node: Node) -> bool:
        """Take a node in; False if there is no more room, or it is too deep: the disk then says so."""
        if len(self.nodes) >= wire.MAX_VOLUMES or node.depth > MAX_DEPTH:
            self.end()
            return False
        self.nodes.append(node)
        return True

    def numbered(self, path: str, kind: int, parents: list[Node]) -> Node:
        """Return a new node for an array or a logical volume: they are counted, and called by that."""
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        node = Node(path, kind, number, parents)
        node.device = f"{'md' if kind == wire.VolumeKind.ARRAY else 'lv'}{number}"
        return node

    def volumes(self) -> list[wire.Volume]:
        """Return what the host is told."""
        positions = {id(node): position for position, node in enumerate(self.nodes)}
        left = wire.MAX_ALL_PLACES
        volumes = []
        for node in self.nodes:
            parents = tuple(positions[id(parent)] for parent in node.parents if id(parent) in positions)
            many = len(parents) > wire.MAX_PARENTS or len(node.places) > min(wire.MAX_PLACES, left)
            places = () if node.lies_on_disk or many else node.places
            left -= len(places)
            volumes.append(_volume(node, parents[: wire.MAX_PARENTS], places))
        return volumes


def _volume(node: Node, parents: tuple[int, ...], places: Places) -> wire.Volume:
    facts = node.facts

    def fact(*keys: str) -> bytes:
        return next((facts[key] for key in keys if facts.get(key)), b"")[: wire.MAX_TEXT]

    return wire.Volume(
        node.device.encode(), node.kind, node.number, node.start, node.size, fact("ID_FS_TYPE"), fact("ID_FS_USAGE"),
        fact("ID_FS_LABEL_ENC", "ID_FS_LABEL"), fact("ID_FS_UUID_ENC", "ID_FS_UUID"),
        fact("ID_PART_TABLE_TYPE"), fact("ID_PART_ENTRY_NAME", "ID_PART_ENTRY_TYPE"),
        node.name.encode("utf-8", "replace")[: wire.MAX_TEXT], parents, node.present, node.wanted, node.trouble, places,
        node.resorts, node.claimed, node.sector, node.inside,
    )  # fmt: skip


def size_of(path: str) -> int:
    """Return a block device's size in bytes."""
    with open(path, "rb") as file:
        return int.from_bytes(fcntl.ioctl(file, BLKGETSIZE64, bytes(8)), sys.byteorder)


def protect(path: str) -> None:
    """Make a block device read-only, so that a driver replays no journal on it."""
    with open(path, "rb") as file:
        fcntl.ioctl(file, BLKROSET, (1).to_bytes(4, sys.byteorder))
