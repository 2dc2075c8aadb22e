"""Partition tables that count sectors of another size than the disk has here: of 4Kn disks, cards, discs, enclosures.

The medium's disk has sectors of 512 bytes in the guest, because every file system can be mounted that way, whatever its
own sector size. The table is therefore read by the kernel on a loop device with the other sector size, and the
partitions that it finds are then made on the disk itself, in bytes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mountsafe import wire
from mountsafe.agent import tables
from mountsafe.agent.programs import read_text, run

NATIVE = 512  # what the host gives the disk
ONLY = "only"  # after the size, in the disk's model: see `wished`
EXTENDED = frozenset({b"0x5", b"0xf", b"0x85"})  # partitions whose table is the rest of the disk's
UNIT = 512  # in which the kernel tells and takes places, whatever sectors a disk has


class Part(NamedTuple):
    """A partition as a table tells it, in bytes, and what blkid(8) says of it."""

    number: int
    start: int
    size: int
    facts: dict[str, bytes]


class Table(NamedTuple):
    """A partition table read with sectors of some size, and what blkid(8) says of its disk."""

    sector: int
    facts: dict[str, bytes]
    parts: list[Part]

    @property
    def sensible(self) -> bool:
        """Whether something is known where it says that partitions are."""
        inner = [part for part in self.parts if part.facts.get("ID_PART_ENTRY_TYPE") not in EXTENDED]
        return any(is_known(part.facts) for part in inner)

    def entry(self, number: int) -> dict[str, bytes]:
        """Return what the table says of a partition: its name and type."""
        told = next((part.facts for part in self.parts if part.number == number), {})
        return {key: value for key, value in told.items() if key.startswith("ID_PART_ENTRY_")}


def is_known(facts: dict[str, bytes]) -> bool:
    """Whether blkid(8) knows what is there."""
    return any(facts.get(key) for key in ("ID_FS_TYPE", "ID_FS_AMBIVALENT", "ID_PART_TABLE_TYPE"))


def wished(disk: str) -> tuple[int, bool]:
    """Return the sector size that the host names, and whether no other is to be tried: (512, False) if it is silent.

    It is the disk's model: "sector 4096" is what the medium's own drive says, "sector 4096 only" what the user says.
    """
    word, *rest = read_text(f"/sys/block/{disk}/device/model").split() or [""]
    if word != "sector" or not rest or not rest[0].isdecimal() or int(rest[0]) not in wire.SECTOR_SIZES:
        return NATIVE, False
    return int(rest[0]), rest[1:] == [ONLY]


def has_table(path: str, sector: int) -> bool:
    """Whether a disk may have a partition table that counts sectors of this size: a GPT, or a DOS one with entries."""
    if has_gpt(path, sector):
        return True
    with open(path, "rb") as file, suppress(OSError):
        head = os.pread(file.fileno(), 512, 0)
        entries = [head[446 + 16 * number : 462 + 16 * number] for number in range(4)]
        kinds = {entry[4] for entry in entries if len(entry) == 16 and any(entry)}
        return head[510:512] == b"\x55\xaa" and bool(kinds - {0xEE})
    return False


def has_gpt(path: str, sector: int) -> bool:
    """Whether a GPT begins in a disk's second sector of this size."""
    with open(path, "rb") as file, suppress(OSError):
        return os.pread(file.fileno(), 8, sector) == b"EFI PART"
    return False


@contextmanager
def _loop(path: str, sector: int) -> Iterator[str]:
    """Give the name of a loop device over a disk with sectors of this size, scanned for partitions; "" if none."""
    options = ("-r", "--show", "-f", "--partscan", "--sector-size", str(sector))
    code, words = run("losetup", *options, path)
    made = words if code == 0 and words.startswith("/dev/loop") else ""
    try:
        yield os.path.basename(made)
    finally:
        if made:
            run("losetup", "-d", made)


def partitions_of(disk: str) -> list[tuple[str, int, int, int]]:
    """Return (name, number, start, size) of the partitions that the kernel knows on a disk, by their numbers."""
    found = []
    for name in os.listdir(f"/sys/block/{disk}"):
        if name.startswith(disk):
            folder = f"/sys/block/{disk}/{name}"
            values = [int(read_text(f"{folder}/{key}") or 0) for key in ("partition", "start", "size")]
            found.append((name, values[0], values[1] * UNIT, values[2] * UNIT))
    return sorted(found, key=lambda each: each[1])


def read_table(path: str, sector: int, blkid: Callable[[str], dict[str, bytes]]) -> Table:
    """Return the table of a disk as it reads with sectors of this size."""
    with _loop(path, sector) as loop:
        if not loop:
            return Table(sector, {}, [])
        parts = [Part(number, at, size, blkid(name)) for name, number, at, size in partitions_of(loop)]
        return Table(sector, blkid(loop), parts)


def other_table(
    path: str, wish: tuple[int, bool], native: bool, blkid: Callable[[str], dict[str, bytes]]
) -> Table | None:
    """Return the table that a disk is to be read by, if it is not the one that the kernel has read.

    `path` is the disk, or what lies on it and is divided; `wish` as `wished` returns it. `native`: something
    is known where the kernel found partitions. The size that the host names comes first. Another one is taken only
    where something is known in its partitions, or where it has the only GPT.
    """
    first, only = wish
    if first == NATIVE and (native or only):
        return None
    found: list[Table] = []
    for sector in (first,) if only else sorted(wire.SECTOR_SIZES, key=lambda size: size != first):
        if sector == NATIVE:
            if native:
                return None
        elif has_table(path, sector):
            table = read_table(path, sector, blkid)
            if table.sensible:
                return table
            if table.parts and (only or has_gpt(path, sector)) and not has_gpt(path, NATIVE):
                found.append(table)
    return found[0] if found else Table(first, {}, []) if only else None


def adopt(disk: str, table: Table) -> None:
    """Make the kernel's partitions of a disk those of a table; what it does not take is left out."""
    with open(f"/dev/{disk}", "rb") as file:
        fd = file.fileno()
        for _, number, _, _ in partitions_of(disk):
            with suppress(OSError):
                tables.remove(fd, number)
        for part in table.parts:
            with suppress(OSError):
                tables.add(fd, part.number, part.start, part.size)
