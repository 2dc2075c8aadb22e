"""Symbolic links that cannot lead out of their mount, for where the kernel's nosymfollow is not available.

A link is contained if its target is relative, climbs only at its start, and by no more folders than there are above it
in the mount. Each folder or link on the way is held to the same, so a chain of contained links stays inside: a ".."
after a name is refused, because the name may be a link to a folder that is less deep.
"""

# Root owns "/", so nobody else can make this name exist.
BLOCKED = b"/.mountsafe-leads-out-of-the-mount/"


def contained(untrusted_target: bytes, depth: int) -> bytes:
    """Return the target of a link that lies `depth` names below the mount's root (1: in the root), defused if need be.

    A defused target names nothing, and shows where the link wanted to lead.
    """
    if untrusted_target.startswith(b"/"):
        return _blocked(untrusted_target)
    climbing = True
    climbed = 0
    for part in untrusted_target.split(b"/"):
        if part == b"..":
            climbed += 1
            if not climbing or climbed > depth - 1:
                return _blocked(untrusted_target)
        elif part not in (b"", b"."):
            climbing = False
    return untrusted_target


def _blocked(target: bytes) -> bytes:
    parts = [part for part in target.split(b"/") if part not in (b"", b".", b"..")]
    return (BLOCKED + b"/".join(parts))[:4095]
