"""What is on a medium, as the guest told and the host checked, and which of it to mount."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mountsafe import wire
from mountsafe.errors import ExitCode, UserError
from mountsafe.incidents import Incidents
from mountsafe.medium.extents import Window
from mountsafe.policy.risk import risk_of
from mountsafe.text import printable, size

SECTOR = 512
NAME_LENGTH = 48  # characters of a label in a folder's name; with 4 bytes each and a number, fewer than NAME_MAX
KINDS = {
    wire.VolumeKind.DISK: "disk",
    wire.VolumeKind.PARTITION: "partition",
    wire.VolumeKind.MAPPED: "mapped",
}
_NAME = re.compile(rb"[A-Za-z0-9_.+-]{1,64}")
# Types that span a whole disk beside a partition table that only boot loaders read.
_HYBRID = frozenset({"iso9660", "udf"})


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk, partition or mapped device. Start and size in bytes; texts are fit to be shown."""

    device: str
    kind: str
    number: int
    start: int
    size: int
    fstype: str
    usage: str
    label: str
    uuid: str
    table: str
    part_name: str

    @property
    def mountable(self) -> bool:
        """Whether it holds a file system."""
        return self.usage == "filesystem"

    @property
    def encrypted(self) -> bool:
        """Whether it needs a passphrase."""
        return self.usage == "crypto" or self.fstype in {"crypto_LUKS", "BitLocker"}

    def window(self) -> Window:
        """The part of the medium that direct reads may touch: nothing for a mapped device, whatever the guest says."""
        return Window(0, 0) if self.kind == "mapped" else Window(self.start, self.size)

    def describe(self) -> str:
        """One line for a person."""
        where = "whole disk" if self.kind == "disk" else f"{self.kind} {self.number}"
        what = self.fstype or (f"{self.table} partition table" if self.table else "nothing known")
        label = f' "{self.label}"' if self.label else ""
        return f"{where}: {what}{label}, {size(self.size)}"

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        risk = risk_of(self.fstype)
        shown: dict[str, Any] = {"encrypted": self.encrypted, "mountable": self.mountable}
        if self.fstype:
            shown |= {"risk": risk.level.value, "risk_reason": risk.reason}
        return asdict(self) | shown


def checked(untrusted_volumes: Sequence[wire.Volume], medium_size: int, incidents: Incidents) -> list[Volume]:
    """Return the volumes that are possible on a medium of this size; every other is an incident."""
    limit = -(-medium_size // SECTOR) * SECTOR  # QEMU rounds the last sector up
    volumes: list[Volume] = []
    numbers: set[tuple[int, int]] = set()
    for untrusted in untrusted_volumes:
        mapped = untrusted.kind == wire.VolumeKind.MAPPED
        if untrusted.kind not in KINDS or not _NAME.fullmatch(untrusted.device):
            incidents.report("a volume of unknown kind or name", untrusted.device)
        elif not mapped and untrusted.start + untrusted.size > limit:
            incidents.report("a partition beyond the end of the medium", untrusted.device)
        elif untrusted.fstype and not _NAME.fullmatch(untrusted.fstype):
            incidents.report("an impossible type", untrusted.fstype)
        elif (untrusted.kind, untrusted.number) in numbers:
            incidents.report("a volume whose number comes twice", untrusted.device)
        else:
            numbers.add((untrusted.kind, untrusted.number))
            volumes.append(
                Volume(
                    device=untrusted.device.decode("ascii"),
                    kind=KINDS[untrusted.kind],
                    number=untrusted.number,
                    start=untrusted.start,
                    size=untrusted.size,
                    fstype=untrusted.fstype.decode("ascii"),
                    usage=printable(untrusted.usage),
                    label=printable(untrusted.label.rstrip(b" \0")),
                    uuid=printable(untrusted.uuid),
                    table=printable(untrusted.table),
                    part_name=printable(untrusted.part_name),
                )
            )
    return volumes


def choose(volumes: Sequence[Volume], partition: int | None, fstype: str | None) -> list[Volume]:
    """Return what to mount: the partition asked for, or the whole disk's file system, or every one there is.

    `fstype` forces a type on the volume that is chosen. Raises UserError (SOURCE) with what there is instead.
    """
    if partition is not None:
        chosen = [v for v in volumes if v.number == partition and v.kind == "partition"]
        if partition == 0:
            chosen = [v for v in volumes if v.kind == "disk"]
        if not chosen:
            raise UserError(f"there is no partition {partition}", _there_is(volumes), ExitCode.SOURCE)
        return [_as(v, fstype) for v in chosen]
    disk = [v for v in volumes if v.kind == "disk"]
    if fstype:
        matching = [v for v in volumes if v.fstype == fstype]
        return [_as(v, fstype) for v in (matching or disk)[:1]]
    if disk and disk[0].mountable and (disk[0].fstype in _HYBRID or len(volumes) == 1 or not disk[0].table):
        return disk[:1]
    chosen = [v for v in volumes if v.mountable and v.kind != "disk"] or [v for v in disk if v.mountable]
    if chosen:
        return chosen
    if any(v.encrypted for v in volumes):
        raise UserError("it is encrypted", "mountsafe cannot unlock encrypted media yet.", ExitCode.SOURCE)
    raise UserError("no file system was found on it", _there_is(volumes), ExitCode.SOURCE)


def _as(volume: Volume, fstype: str | None) -> Volume:
    if fstype is None:
        if not volume.fstype:
            hint = "If you know its type, name it with --type."
            raise UserError(f"no file system was recognised on {volume.describe()}", hint, ExitCode.SOURCE)
        if volume.encrypted:
            raise UserError("it is encrypted", "mountsafe cannot unlock encrypted media yet.", ExitCode.SOURCE)
        if volume.usage and not volume.mountable:
            hint = "If there is one all the same, name its type with --type."
            raise UserError(f"there is no file system on {volume.describe()}", hint, ExitCode.SOURCE)
        return volume
    return Volume(**(asdict(volume) | {"fstype": fstype, "usage": "filesystem"}))


def _there_is(volumes: Sequence[Volume]) -> str:
    shown = [v.describe() for v in volumes if v.fstype or v.table or v.kind != "disk"]
    if not shown:
        return "If you know its type, name it with --type."
    return "There is: " + "; ".join(shown[:20]) + ". --partition N and --type FSTYPE choose."


def folder_names(volumes: Sequence[Volume]) -> list[str]:
    """Return a folder name for each of several volumes: its number, and its label if it has one that can be a name."""
    names: list[str] = []
    for volume in volumes:
        prefix = "lv" if volume.kind == "mapped" else "p" if volume.kind == "partition" else "disk"
        label = _as_name(volume.label)
        names.append(f"{prefix}{volume.number or ''}{'-' if label else ''}{label}")
    return names


def label_name(volume: Volume) -> str:
    """Return a folder name for a file system that stands for itself: its label, or its type if it has none.

    The type is the guest's word as well, and may be "..".
    """
    return _as_name(volume.label, " ") or _as_name(volume.fstype) or volume.kind


def _as_name(label: str, also: str = "") -> str:
    """Return what of a label can be a folder's name: letters, digits, a few signs, and the characters in `also`."""
    return re.sub(rf"[^\w.+{also}-]+", "_", label).strip(f"._-{also}")[:NAME_LENGTH]
