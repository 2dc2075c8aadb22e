"""How the file systems of a medium are shown, and what is said of them."""

from dataclasses import dataclass

from mountsafe import wire
from mountsafe.limits import INDEX_ENTRIES
from mountsafe.medium.volumes import ENCRYPTED, Volume
from mountsafe.system.zones import UTC

STATE_WORDS = {
    wire.MountState.CLEAN: "",
    wire.MountState.RECOVERED: (
        "it was not unmounted properly: its journal was replayed in the virtual machine's memory, and the medium was"
        " not changed"
    ),
    wire.MountState.SKIPPED: (
        "it was not unmounted properly and its journal could not be replayed: the newest changes may be missing"
    ),
}


@dataclass(frozen=True, slots=True)
class Presentation:
    """How a mount is shown: owner of the files (None: as the medium says), owner of the mount, and what links do.

    `links`: "nofollow" (never followed where the kernel can be told so), "contained" (followed inside the mount),
    "follow" (as on any mount). `idle`: seconds without a question after which the VM is ended; 0 for never.
    `entries`: how many of the tree's entries are remembered. `zone`: by which local times are told
    (`mountsafe.system.zones`). `read_only`: why it cannot be written to, if it was to be.
    """

    owner: tuple[int, int] | None
    mount_uid: int
    mount_gid: int
    links: str
    idle: float = 0.0
    entries: int = INDEX_ENTRIES
    zone: bytes = UTC
    read_only: str = ""


def enclosed(volume: Volume) -> str:
    """Return what a volume was unlocked from, innermost first: "LUKS (partition 2)"; "" if it was not."""
    words = []
    while (host := volume.host) is not None:
        words.append(f"{ENCRYPTED[host.fstype]} ({host.title})")
        volume = host
    return " in ".join(words)


def mount_source(name: str) -> str:
    """Return what the mounts of a medium of this name show as their source."""
    return f"mountsafe:{name}".replace(",", "_").replace("\\", "_")
