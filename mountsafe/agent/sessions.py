"""Sessions of a disc: what was written later lies behind what was there before, as an ISO 9660 file system of its own.

All its sector numbers count from the disc's beginning. A drive tells where the last session begins, an image does not:
the next session is looked for where the one before ends.
"""

import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

SECTOR = 2048
DESCRIPTOR = 16  # sectors from a session's beginning to its volume descriptor
GAP = 16384  # sectors after a session in which the next one begins: on a disc 11,400 at the most lie between them
DISC = 450_000  # sectors of the largest CD, and some more
CHUNK = 32  # sectors that are read at once: what cannot be read hides no more
PATIENCE = 10.0  # seconds
_PRIMARY = b"\x01CD001\x01"

Read = Callable[[int, int], bytes]


class Session(NamedTuple):
    """Where a session begins, how many blocks it says it has, and where its root folder is: sectors of the disc.

    `earlier`: how many come before it.
    """

    start: int
    blocks: int
    root: int
    earlier: int = 0


def _told(block: bytes, start: int) -> Session | None:
    """Return what a volume descriptor says."""
    if len(block) < SECTOR or not block.startswith(_PRIMARY):
        return None
    return Session(start, *struct.unpack_from("<I", block, 80), *struct.unpack_from("<I", block, 158))


def _is_folder(record: bytes, root: int) -> bool:
    """Whether a folder begins here, with the entry of itself, and is the one that lies at this sector."""
    return (
        len(record) >= 34
        and record[2:10] == struct.pack("<I", root) + struct.pack(">I", root)
        and record[32:34] == b"\1\0"
    )


def _found(read: Read, first: int, end: int) -> Iterator[Session]:
    """Yield the sessions whose descriptors are in a range of sectors, and whose numbers count from the beginning."""
    until = time.monotonic() + PATIENCE
    for at in range(first, end, CHUNK):
        data = read(at * SECTOR, min(CHUNK, end - at) * SECTOR)
        if _PRIMARY in data:
            for sector in range(len(data) // SECTOR):
                start = at + sector - DESCRIPTOR
                told = _told(data[sector * SECTOR : (sector + 1) * SECTOR], start)
                if told and start > 0 and told.root >= start and _is_folder(read(told.root * SECTOR, 34), told.root):
                    yield told
        if time.monotonic() > until:
            return


def sessions(read: Read, size: int) -> Iterator[Session]:
    """Yield the sessions of an image, the first one where it is, or wherever that is on a disc that begins with music.

    An image that lies in a file or a partition behind another one is none: its numbers count from itself.
    """
    end = size // SECTOR
    session = _told(read(DESCRIPTOR * SECTOR, SECTOR), 0)
    if session is None:
        session = next(_found(read, 0, end), None) if end <= DISC else None
    while session is not None:
        yield session
        # Some writers count a session's blocks from the disc's beginning.
        after = session.blocks if session.blocks > session.start else session.start + session.blocks
        first = max(after, session.start + DESCRIPTOR + 1)
        session = next(_found(read, first, min(end, after + session.start + GAP)), None)


def last(read: Read, size: int) -> Session | None:
    """Return the last session, which is what a drive shows; None if there is none."""
    found = None
    for number, session in enumerate(sessions(read, size)):
        found = session._replace(earlier=number)
    return found


def missing_before(read: Read, size: int) -> int:
    """Return how many sectors of its disc are missing before a session that is all that is there; 0 if none are."""
    session = _told(read(DESCRIPTOR * SECTOR, SECTOR), 0)
    if session is None or _is_folder(read(session.root * SECTOR, 34), session.root):
        return 0
    for sector in range(DESCRIPTOR + 1, min(size // SECTOR, DESCRIPTOR + 1024)):
        if sector < session.root and _is_folder(read(sector * SECTOR, 34), session.root):
            return session.root - sector
    return 0
