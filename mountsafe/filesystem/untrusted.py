"""What a directory entry from the guest must satisfy before anything on the host believes it."""

import stat

from mountsafe.limits import MAX_FILE_SIZE
from mountsafe.wire import MAX_NAME, Entry

KNOWN_TYPES = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)


def fault_of_name(untrusted_name: bytes) -> str:
    """Return why a name is impossible in a Linux directory, or ""."""
    if not untrusted_name or len(untrusted_name) > MAX_NAME:
        return "a name of impossible length"
    if untrusted_name in (b".", b".."):
        return "a name that means a directory itself or its parent"
    if b"/" in untrusted_name or b"\0" in untrusted_name:
        return "a name with a slash or NUL"
    return ""


def fault_of_attributes(untrusted_entry: Entry) -> str:
    """Return what is impossible about an entry apart from its name, or "". Mode 0 says: the guest could not look."""
    if untrusted_entry.size > MAX_FILE_SIZE:
        return f"an impossible size {untrusted_entry.size}"
    if untrusted_entry.blocks > MAX_FILE_SIZE:  # blkcnt_t is signed as well
        return f"an impossible number of blocks {untrusted_entry.blocks}"
    if untrusted_entry.mode == 0:
        return ""
    kind = stat.S_IFMT(untrusted_entry.mode)
    if kind not in KNOWN_TYPES or untrusted_entry.mode > 0o177777:
        return f"an unknown file type {untrusted_entry.mode:o}"
    if (kind == stat.S_IFLNK) != bool(untrusted_entry.target):
        return "a link without a target, or a target without a link"
    if b"\0" in untrusted_entry.target:
        return "a link target with NUL"
    return ""
