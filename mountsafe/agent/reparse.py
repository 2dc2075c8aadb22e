"""Windows reparse points on NTFS, as ntfs-3g shows them, reported as what they are.

ntfs-3g looks up a link's absolute path in the volume, and shows where that is below its own mount point, or below a
folder of other drives that does not exist. What it does not know it shows as a link to the words "unsupported reparse
tag". The data, and what they mean: MS-FSCC 2.1.2.
"""

import struct

XATTR = "system.ntfs_reparse_data"
SYMLINK, MOUNT_POINT = 0xA000000C, 0xA0000003
_UNKNOWN = b"unsupported reparse tag 0x"
_ELSEWHERE = b".NTFS-3G/"
_OBJECTS = "\\??\\"  # what the names of Windows' own objects begin with
_HEAD = struct.Struct("<IHxx")  # the tag, and the length of what follows
_NAMES = struct.Struct("<HHHH")  # where the name to follow and the name to show are in what follows them, in bytes


def told(shown: bytes, data: bytes, where: bytes, depth: int) -> bytes | None:
    """Return where a link of ntfs-3g's leads; None if it is a file that only Windows can read.

    `shown` is its target, `data` are its reparse data (none if they cannot be had), `where` is the mount point and
    `depth` the number of folders that it lies in. A target inside the volume becomes a relative one.
    """
    if shown.startswith(_UNKNOWN):
        return _windows_path(data) or None
    if not shown.startswith(where + b"/") and shown != where:
        return shown
    inside = shown[len(where) + 1 :]
    if inside.startswith(_ELSEWHERE):
        return _windows_path(data) or inside[len(_ELSEWHERE) :]
    return b"../" * depth + inside or b"."


def _windows_path(data: bytes) -> bytes:
    """Return where a symbolic link or a junction leads, as Windows writes it; nothing for all else, or if damaged."""
    if len(data) < _HEAD.size + _NAMES.size:
        return b""
    tag, length = _HEAD.unpack_from(data)
    if tag not in (SYMLINK, MOUNT_POINT):
        return b""
    body = data[_HEAD.size : _HEAD.size + length]
    if len(body) < _NAMES.size:
        return b""
    follow_at, follow, show_at, show = _NAMES.unpack_from(body)
    names = body[_NAMES.size + (4 if tag == SYMLINK else 0) :]
    for at, size in ((show_at, show), (follow_at, follow)):
        if size and size % 2 == 0 and at + size <= len(names):
            name = names[at : at + size].decode("utf-16-le", "replace").removeprefix(_OBJECTS)
            return name.replace("\0", "").encode("utf-8", "replace")
    return b""
