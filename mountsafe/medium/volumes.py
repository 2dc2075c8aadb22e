"""What is on a medium, as the guest told and the host checked, and which of it to mount."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mountsafe import wire
from mountsafe.fsoptions import of_type
from mountsafe.incidents import Incidents
from mountsafe.medium import conditions, resorts
from mountsafe.medium.extents import Window
from mountsafe.policy.inside import Seen
from mountsafe.policy.risk import risk_of
from mountsafe.text import printable, size

SECTOR = 512
MAX_NAME = 120  # characters of a volume's name
MAX_DEPTH = 16  # layers; the agent follows fewer
KINDS = {
    wire.VolumeKind.DISK: "disk",
    wire.VolumeKind.PARTITION: "partition",
    wire.VolumeKind.LOGICAL: "volume",
    wire.VolumeKind.ARRAY: "array",
}
WHOLE_DISK = "whole disk"
PREFIXES = {"disk": "disk", "partition": "p", "volume": "lv", "array": "md"}
_NAME = re.compile(rb"[A-Za-z0-9_.+-]{1,64}")
# What is recognised or named as an encrypted disk, and what a person calls it.
ENCRYPTED = {
    "crypto_LUKS": "LUKS",
    "BitLocker": "BitLocker",
    "VeraCrypt": "VeraCrypt",
    "TrueCrypt": "TrueCrypt",
}
NO_SIGNATURE = ("VeraCrypt", "TrueCrypt")
FORCED = "encrypted"  # the usage of what somebody says is encrypted; blkid's word is "crypto"


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk, partition, array or logical volume. Start and size in bytes; texts are fit to be shown.

    `name` is what `--partition` takes; no two have the same. `layers` are the names of what it lies in, from the disk
    (which is not named) inwards. `condition`: what is wrong with it or with what it lies in, or "". `absent`: it is
    told of, and not there. `sector_size`: see `wire.Volume.sector`; None if it is the disk's. `places`: see `Window`;
    `nested`: it is not the disk nor one of its partitions. `resorts`: what it took to find it, as bits
    (`mountsafe.medium.resorts`). `claimed`: the bytes that it should have, if it has fewer. `inside`: it is a part of
    the file system that the whole disk has. `options`: what it is to be mounted with (`mountsafe.fsoptions`).
    `host`: the encrypted volume in whose plaintext it lies, which is a disk of its own: its places are on that.
    """

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
    name: str = ""
    layers: tuple[str, ...] = ()
    condition: str = ""
    absent: bool = False
    nested: bool = False
    places: tuple[wire.Place, ...] = ()
    resorts: int = 0
    claimed: int = 0
    sector_size: int | None = None
    options: tuple[str, ...] = ()
    inside: bool = False
    host: "Volume | None" = None

    @property
    def mountable(self) -> bool:
        """Whether it holds a file system."""
        return self.usage == "filesystem" and not self.absent

    @property
    def encrypted(self) -> bool:
        """Whether it needs a passphrase."""
        return self.fstype in ENCRYPTED and not self.absent

    def window(self) -> Window:
        """The part of the medium that direct reads may touch: what was told and checked of what has layers below it."""
        if not self.nested:
            return Window(self.start, self.size)
        return Window(0, self.size, self.places) if self.places else Window(0, 0)

    @property
    def title(self) -> str:
        """What a person calls it."""
        if self.kind == "disk":
            return self.host.title if self.host else WHOLE_DISK
        return f"{self.kind} {self.name or self.number}"

    def describe(self) -> str:
        """One line for a person."""
        what = self.fstype or (f"{self.table} partition table" if self.table else "nothing known")
        label = f' "{self.label}"' if self.label else ""
        condition = f" ({self.condition})" if self.condition else ""
        if self.absent:
            return f"{self.title}: {self.condition}"
        return f"{self.title}: {what}{label}, {size(self.size)}{condition}"

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        risk = risk_of(self.fstype)
        shown: dict[str, Any] = {"encrypted": self.encrypted, "mountable": self.mountable}
        if self.fstype:
            shown |= {"risk": risk.level.value, "risk_reason": risk.reason}
        told = asdict(self)
        del told["places"], told["options"], told["host"]
        return told | shown | {"resorts": resorts.codes(self.resorts), "mount_options": sorted(of_type(self.fstype))}


def checked(untrusted_volumes: Sequence[wire.Volume], medium_size: int, incidents: Incidents) -> list[Volume]:
    """Return the volumes that are possible on a medium of this size; every other is an incident."""
    check = _Check(-(-medium_size // SECTOR) * SECTOR)  # QEMU rounds the last sector up
    for untrusted in untrusted_volumes:
        if wrong := check.wrong(untrusted):
            incidents.report(*wrong)
            check.found.append(None)
        else:
            check.take(untrusted)
    return [volume for volume in check.found if volume is not None]


class _Check:
    """The volumes that have been told so far, those that were refused as None: parents are positions among them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # of the medium, in bytes
        self.found: list[Volume | None] = []
        self._numbers: set[tuple[tuple[int, ...], int, int]] = set()
        self._names: set[str] = set()

    def _parents(self, untrusted: wire.Volume) -> list[Volume]:
        """Return what a volume lies in. Parents come before their children, so there are no circles."""
        return [
            parent for position in untrusted.parents if position < len(self.found) and (parent := self.found[position])
        ]

    def _is_nested(self, untrusted: wire.Volume) -> bool:
        if untrusted.kind in (wire.VolumeKind.LOGICAL, wire.VolumeKind.ARRAY):
            return True
        return any(parent.kind != "disk" for parent in self._parents(untrusted))

    def wrong(self, untrusted: wire.Volume) -> tuple[str, bytes] | None:
        """Return why a volume cannot be, and of what the complaint is; None if it can."""
        parents = self._parents(untrusted)
        if untrusted.kind not in KINDS or not _NAME.fullmatch(untrusted.device):
            return "a volume of unknown kind or name", untrusted.device
        if len(parents) != len(untrusted.parents) or (parents and untrusted.kind == wire.VolumeKind.DISK):
            return "a volume in another that is not there", untrusted.device
        if untrusted.kind == wire.VolumeKind.PARTITION and len(parents) > 1:
            return "a partition of several disks", untrusted.device
        if any(len(parent.layers) >= MAX_DEPTH for parent in parents):
            return f"a volume in more than {MAX_DEPTH} others", untrusted.device
        return self._wrong_value(untrusted, parents)

    def _wrong_value(self, untrusted: wire.Volume, parents: Sequence[Volume]) -> tuple[str, bytes] | None:
        nested = self._is_nested(untrusted)
        limit = parents[0].size if nested and untrusted.kind == wire.VolumeKind.PARTITION else self._limit
        made = untrusted.kind in (wire.VolumeKind.LOGICAL, wire.VolumeKind.ARRAY)
        if not made and untrusted.start + untrusted.size > limit:
            return "a partition beyond the end of the medium", untrusted.device
        if untrusted.fstype and not _NAME.fullmatch(untrusted.fstype):
            return "an impossible type", untrusted.fstype
        if untrusted.trouble not in (wire.Trouble.NONE, *conditions.TROUBLES) or untrusted.resorts & ~wire.Resort.ALL:
            return "a volume in unknown trouble", untrusted.device
        if untrusted.sector and (
            untrusted.sector not in wire.SECTOR_SIZES or untrusted.kind != wire.VolumeKind.PARTITION
        ):
            return "a table with impossible sectors", untrusted.device
        if (untrusted.parents, untrusted.kind, untrusted.number) in self._numbers:
            return "a volume whose number comes twice", untrusted.device
        if nested and not _lie_within(untrusted.places, untrusted.size, self._ranges(parents)):
            return "a volume whose bytes lie outside of what it lies in", untrusted.device
        return None

    def _ranges(self, parents: Sequence[Volume]) -> list[tuple[int, int]]:
        """Return the (start, end) of what volumes have of the medium, sorted."""
        ranges: list[tuple[int, int]] = []
        for parent in parents:
            if parent.nested:
                ranges += [(place.physical, place.physical + place.length) for place in parent.places]
            else:
                ranges.append((parent.start, min(parent.start + parent.size, self._limit)))
        return sorted(ranges)

    def take(self, untrusted: wire.Volume) -> None:
        """Take in a volume that can be."""
        parents = self._parents(untrusted)
        self._numbers.add((untrusted.parents, untrusted.kind, untrusted.number))
        nested = self._is_nested(untrusted)
        self.found.append(
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
                name=self._name(untrusted, parents if nested else []),
                layers=conditions.layers(parents),
                condition=conditions.condition(untrusted, parents),
                absent=untrusted.trouble != wire.Trouble.NONE,
                nested=nested,
                places=untrusted.places if nested else (),
                resorts=untrusted.resorts,
                claimed=conditions.claimed(untrusted),
                sector_size=untrusted.sector or None,
                inside=untrusted.inside and untrusted.kind == wire.VolumeKind.PARTITION,
            )
        )

    def _name(self, untrusted: wire.Volume, parents: Sequence[Volume]) -> str:
        """Return a name that no other volume has, and that is no number unless it is a partition of the disk."""
        kind = KINDS[untrusted.kind]
        if kind == "disk":
            name = "0" if untrusted.number == 0 else f"disk{untrusted.number}"
        elif kind == "partition":
            name = f"{parents[0].name}/{untrusted.number}" if parents else str(untrusted.number)
        else:
            name = printable(untrusted.name, MAX_NAME)
            if not name or name.isdecimal():
                name = f"{PREFIXES[kind]}{untrusted.number}{'-' if name else ''}{name}"
        name = printable(name, MAX_NAME)
        found, count = name, 1
        while found in self._names:
            count += 1
            found = f"{name}~{count}"
        self._names.add(found)
        return found


def _lie_within(untrusted_places: Sequence[wire.Place], length: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether places are in order, inside their volume, and each inside one of the sorted ranges of the medium."""
    last = 0
    starts = [start for start, _ in ranges]
    ends: list[int] = []  # the furthest end of the ranges up to each
    for _, end in ranges:
        ends.append(max(end, ends[-1]) if ends else end)
    for offset, physical, size_ in untrusted_places:
        if size_ <= 0 or offset < last or offset + size_ > length:
            return False
        last = offset + size_
        index = bisect_right(starts, physical) - 1
        if index < 0 or physical + size_ > ends[index]:
            return False
    return True


def seen(volumes: Sequence[Volume], chosen: Sequence[Volume]) -> tuple[Seen, ...]:
    """Return what a policy is asked about: of each volume what it is, and whether it is to be shown."""
    to_show = {volume.name: volume for volume in chosen}
    return tuple(
        Seen(
            name=volume.name,
            fstype=to_show.get(volume.name, volume).fstype,
            label=volume.label,
            uuid=volume.uuid,
            size=volume.size,
            layers=volume.layers,
            chosen=volume.name in to_show,
            found=volume.fstype,
        )
        for volume in volumes
    )
