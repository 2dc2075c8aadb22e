"""The names in a folder, including those after a broken entry.

When Linux meets an impossible name, an empty one or one with a slash, or a block that cannot be read, it returns EIO
and stays where it is: a reader that only goes on reading never learns what comes after.
"""

import array
import errno
import fcntl
import os
from collections.abc import Generator
from itertools import islice

Names = Generator[bytes, None, None]
UNTOLD = b""  # in the place of what cannot be told: the host knows that no file is called so, and counts it
BROKEN = (errno.EIO, errno.EUCLEAN)  # in the words of the kernel, and of some of its drivers
LAST = (1 << 63) - 1  # the largest position in a folder: loff_t
EXT = ("ext2", "ext3", "ext4")
FINDS_BY_INDEX = frozenset({"xfs", "btrfs", "f2fs"})
FS_IOC_GETFLAGS, EXT4_INDEX_FL = 0x80086601, 0x1000  # include/uapi/linux/fs.h, fs/ext4/ext4.h
FEW_BLOCKS = 8192  # bytes of a folder in which it does not matter where the search for a name begins
# How far a position in a folder may be from the next. Most drivers take any number for the place of the entry after it;
# some count bytes and take only the beginning of an entry. Of those that are not named here it is not known.
STEP = {
    **dict.fromkeys(
        ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "hfs", "hfsplus", "minix", "squashfs", "erofs"), 1
    ),
    **dict.fromkeys(("vfat", "msdos", "exfat"), 32),
}


def names_in(folder: int, kernel_type: str) -> Names:
    """Yield the names in an open folder, and `UNTOLD` for each place where there are some that cannot be told.

    Raises OSError if there is nothing else, or something else is wrong than an entry.
    """
    told = 0
    try:
        with os.scandir(folder) as found:
            for entry in found:
                yield os.fsencode(entry.name)
                told += 1
    except OSError as error:
        if error.errno not in BROKEN:
            raise
        rest = islice(_with_gaps(folder, STEP.get(kernel_type, 0)), told, None)
        first = list(islice(rest, 2))
        if not told and not any(first):
            raise
        yield from first
        yield from rest


def _with_gaps(folder: int, step: int) -> Names:
    """Yield all names and gaps from the beginning. With a step of 0 the first gap is the end."""
    at = 0
    while _go_to(folder, at):
        with os.scandir(folder) as found:
            while True:
                # libc reads ahead, and no further than to what cannot be told: when it has to ask again, it is there.
                at = os.lseek(folder, 0, os.SEEK_CUR)
                try:
                    entry = next(found, None)
                except OSError:
                    break
                if entry is None:
                    return
                yield os.fsencode(entry.name)
        yield UNTOLD
        if not step:
            return
        at = _after(folder, at, step)


def _after(folder: int, at: int, step: int) -> int:
    """Return the first position after `at` from which the folder can be read, if only to its end.

    One broken entry may follow another, and a block that cannot be read has many positions: so the distance is doubled
    until it is far enough, and then the first that is far enough is sought between the last two.
    """
    near, far = 0, 1
    while not _can_be_read(folder, at + far * step):
        near, far = far, 2 * far
    while far - near > 1:
        middle = (near + far) // 2
        if _can_be_read(folder, at + middle * step):
            far = middle
        else:
            near = middle
    return at + far * step


def _can_be_read(folder: int, position: int) -> bool:
    try:
        if _go_to(folder, position):
            with os.scandir(folder) as found:
                next(found, None)
    except OSError:
        return False
    return True


def _go_to(folder: int, position: int) -> bool:
    """Go to a position; False if there cannot be any that far."""
    try:
        os.lseek(folder, min(position, LAST), os.SEEK_SET)
    except OSError:
        return False
    return position <= LAST


def finds_by_index(folder: int, kernel_type: str) -> bool:
    """Whether two processes can look at files of an open folder without being in each other's way.

    Where there is no index a driver searches from the place of the last name it found, which is good for one who
    takes them in order, and worst for two who do so at two places.
    """
    if kernel_type not in EXT:
        return kernel_type in FINDS_BY_INDEX
    if os.fstat(folder).st_size <= FEW_BLOCKS:
        return True
    flags = array.array("l", [0])
    fcntl.ioctl(folder, FS_IOC_GETFLAGS, flags)
    return bool(flags[0] & EXT4_INDEX_FL)
