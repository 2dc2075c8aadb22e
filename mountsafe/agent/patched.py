"""A read-only device that equals another one except for some parts: by device-mapper, without copying its bytes."""

import errno
import itertools
from typing import NamedTuple

from mountsafe.agent.programs import Refused, run

ABSENT = -1  # reading it is an error
SECTOR = 512


class Patch(NamedTuple):
    """`length` bytes from `start` on are those that the device has at `source`; multiples of a sector."""

    start: int
    length: int
    source: int


def table(size: int, patches: tuple[Patch, ...], device: str) -> str:
    """Return device-mapper's table for a device of `size` bytes with patches; of two for a place the later one holds.

    Raises Refused if one does not fit.
    """
    whole = size // SECTOR * SECTOR
    if any(patch.start % SECTOR or patch.length % SECTOR or patch.source % SECTOR not in (0, 511) for patch in patches):
        raise Refused(errno.EINVAL, "a copy that begins inside of a sector")
    edges = sorted({0, whole} | {edge for patch in patches for edge in (patch.start, patch.start + patch.length)})
    lines = []
    for start, end in itertools.pairwise(edges):
        source = start if start < whole else ABSENT
        for patch in patches:
            if patch.start <= start < patch.start + patch.length:
                source = ABSENT if patch.source == ABSENT else patch.source + start - patch.start
        what = "error" if source == ABSENT else f"linear {device} {source // SECTOR}"
        lines.append(f"{start // SECTOR} {(end - start) // SECTOR} {what}")
    return "\n".join(lines)


class Patched:
    """Such a device, while it is needed."""

    def __init__(self, tag: str) -> None:
        self._name = f"mountsafe-patched-{tag}"
        self._running = False

    def start(self, device: str, size: int, patches: tuple[Patch, ...]) -> str:
        """Return its path. Raises Refused."""
        self.stop()
        code, words = run("dmsetup", "create", "-r", self._name, "--table", table(size, patches, device))
        if code:
            raise Refused(errno.EIO, f"no device with the copies in place: {words}")
        self._running = True
        return f"/dev/mapper/{self._name}"

    def stop(self) -> None:
        """Remove it, if it is there."""
        if self._running:
            run("dmsetup", "remove", self._name)
            self._running = False


def replaced(patches: tuple[Patch, ...]) -> list[tuple[int, int]]:
    """Return (start, end) of each range that is not what the device has there."""
    return [(patch.start, patch.start + patch.length) for patch in patches]
