"""Whether a device still has the same medium: a card reader keeps its number while the cards in it change.

The kernel counts the media (diskseq, since Linux 5.15) and looks every two seconds or so; everybody can read the count
in sysfs.
"""

import os
import stat
from pathlib import Path

from mountsafe.errors import MountsafeError

LOOK = 1.0  # seconds from one look to the next


class Exchanged(MountsafeError):
    """Another medium is in the device."""


def number_of(status: os.stat_result) -> int:
    """Return the number of the medium in a block device; 0 for what is none, and where the kernel does not tell."""
    if not stat.S_ISBLK(status.st_mode):
        return 0
    device = f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for place in (f"{device}/diskseq", f"{device}/../diskseq"):  # a partition has that of its disk
        try:
            return int(Path(place).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return 0


def is_same(fd: int, sequence: int) -> bool:
    """Whether the medium in an open device is the one of that number; 0 is any. Of a file it always is.

    A device that is gone has no number, and no other medium either.
    """
    return not sequence or number_of(os.fstat(fd)) in (0, sequence)


async def until_exchanged(fd: int, sequence: int) -> None:
    """Return when there is another medium in an open device; never for a file, or where the kernel does not tell."""
    import trio  # here: who only compares numbers has no use for it, and it takes longer than that

    if not sequence:
        await trio.sleep_forever()
    while is_same(fd, sequence):  # noqa: ASYNC110  # only events that need a netlink socket would tell
        await trio.sleep(LOOK)
