"""What a volume lies in, and what is wrong with it: our words for the guest's codes and numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mountsafe import wire
from mountsafe.medium import resorts
from mountsafe.text import printable

if TYPE_CHECKING:
    from mountsafe.medium.volumes import Volume

SHOWN_PARENTS = 4
TROUBLES = {
    wire.Trouble.INCOMPLETE: "members are missing",
    wire.Trouble.DUPLICATE: "another one on the medium has the same name or identity",
    wire.Trouble.REFUSED: "the virtual machine's programs cannot start it",
    wire.Trouble.CUT_OFF: "the image ends before it begins",
}


def layers(parents: "Sequence[Volume]") -> tuple[str, ...]:
    """Return the names of what a volume lies in, from the outermost inwards; several beside each other with a plus."""
    inner = [parent for parent in parents if parent.kind != "disk"]
    if not inner:
        return ()
    names = [parent.name for parent in inner[:SHOWN_PARENTS]]
    more = ["..."] if len(inner) > SHOWN_PARENTS else []
    deepest = max(inner, key=lambda parent: len(parent.layers))
    return (*deepest.layers, "+".join(names + more))


def claimed(untrusted: wire.Volume) -> int:
    """Return the bytes that a volume should have, if it has fewer; else 0."""
    return untrusted.claimed if untrusted.size < untrusted.claimed < 1 << 63 else 0


def condition(untrusted: wire.Volume, parents: "Sequence[Volume]") -> str:
    """Return what is wrong with a volume, in words of ours."""
    counted = f"{untrusted.present} of {untrusted.wanted} members"
    words = []
    if untrusted.trouble == wire.Trouble.INCOMPLETE:
        words.append(f"incomplete: {counted} are on the medium")
    elif untrusted.trouble != wire.Trouble.NONE:
        words.append(TROUBLES[untrusted.trouble])
    elif untrusted.present < untrusted.wanted:
        words.append(f"degraded: {counted}")
    if untrusted.sector:
        words.append(f"its partition table counts sectors of {untrusted.sector} bytes")
    words += resorts.words(untrusted.resorts)
    if whole := claimed(untrusted):
        what = "its file system" if untrusted.fstype else "what its partition table says"
        words.append(f"the image ends before {what}: {untrusted.size} of {whole} bytes")
    for parent in parents:
        # That a disk is cut off is of no account for a part of it that is whole.
        inherited = "; ".join(resorts.words(parent.resorts)) if parent.kind == "disk" else parent.condition
        if inherited and inherited not in words and len(words) < SHOWN_PARENTS:
            words.append(inherited)
    return printable("; ".join(words), 600)
