"""Partition tables whose sectors are not of 512 bytes: they are read as they were made, or as the user says."""

import hashlib
import struct
import subprocess
import zlib
from pathlib import Path
from uuid import UUID

import pytest

from images.layers import Group, Run, array_members, physical_volumes
from mountsafe.errors import UserError
from tests.vm.sight import Look, Looking, Sight

MIB = 1 << 20
CONTENT = b"".join(b"%d\n" % number for number in range(20_000))
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
SIZES = (1024, 2048, 4096)


def made(folder: Path, size: int, *command: str) -> bytes:
    """A file system with numbers.txt of CONTENT: `command` makes it, from the tree beside it where it can."""
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "tree" / "numbers.txt").write_bytes(CONTENT)
    image = folder / "fs"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, "fs"], cwd=folder, check=True, capture_output=True)
    if command[0] == "mkfs.vfat":
        subprocess.run(["mcopy", "-i", "fs", "tree/numbers.txt", "::/"], cwd=folder, check=True)
    return image.read_bytes()


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("ext4"), 8 * MIB, *("mkfs.ext4", "-q", "-F", "-L", "INSIDE", "-d", "tree"))


@pytest.fixture(scope="module")
def vfat(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("vfat"), 40 * MIB, *("mkfs.vfat", "-S", "4096", "-s", "1", "-n", "INSIDE"))


def header(sector: int, last: int, mine: int, entries: bytes) -> bytes:
    """A GPT's header, after the UEFI Specification 2.10, 5.3.2."""
    other, table = (last, 2) if mine == 1 else (1, last - len(entries) // sector)
    fields = (mine, other, 2 + len(entries) // sector, last - 1 - len(entries) // sector, b"d" * 16, table, 128, 128)

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8s4sIIIQQQQ16sQIII", b"EFI PART", b"\0\0\1\0", 92, checksum, 0, *fields, zlib.crc32(entries)
        )

    return packed(zlib.crc32(packed(0))).ljust(sector, b"\0")


def gpt(sector: int, *members: bytes, names: tuple[str, ...] = ()) -> bytes:
    """A disk with sectors of this size, and a partition for each of `members`, each on a MiB."""
    entries, places, at = b"", [], MIB
    for number, member in enumerate(members):
        places.append(at)
        end = at + -(-len(member) // MIB) * MIB
        name = (names[number] if names else f"part {number + 1}").encode("utf-16-le")
        entries += struct.pack(
            "<16s16sQQQ72s", LINUX, bytes([number + 1]) * 16, at // sector, end // sector - 1, 0, name
        )
        at = end
    entries = entries.ljust(128 * 128, b"\0")
    disk = bytearray(at + MIB)
    last = len(disk) // sector - 1
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last)
    disk[510:512] = b"\x55\xaa"
    disk[sector : 2 * sector] = header(sector, last, 1, entries)
    disk[2 * sector : 2 * sector + len(entries)] = entries
    disk[last * sector :] = header(sector, last, last, entries)
    disk[last * sector - len(entries) : last * sector] = entries
    for place, member in zip(places, members, strict=True):
        disk[place : place + len(member)] = member
    return bytes(disk)


def dos(sector: int, member: bytes, first: int = 16, extended: bool = False) -> bytes:
    """A disk with a DOS table whose numbers are of such sectors; the one partition begins at sector `first`."""
    count = -(-len(member) // sector)

    def entry(kind: int, start: int, length: int) -> bytes:
        return struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\xff\xff\xff", start, length)

    begin = (2 * first if extended else first) * sector
    disk = bytearray(begin + count * sector + MIB)
    disk[510:512] = b"\x55\xaa"
    if extended:  # the partition lies in an extended one, whose own table is at its beginning
        disk[446:462] = entry(5, first, first + count)
        inner = first * sector
        disk[inner + 446 : inner + 462] = entry(0x83, first, count)
        disk[inner + 510 : inner + 512] = b"\x55\xaa"
    else:
        disk[446:462] = entry(0xC, first, count)
    disk[begin : begin + len(member)] = member
    return bytes(disk)


def look(looking: Looking, folder: Path, disk: bytes, sector_size: int | None = None) -> list[Sight]:
    image = folder / f"disk-{zlib.crc32(disk)}.img"  # a look is remembered by its name
    image.write_bytes(disk)
    return looking(Look(image, sector_size=sector_size))


def shows_numbers(sight: Sight) -> None:
    files = {path.decode(): entry.sha256 for path, entry in sight.entries.items() if entry.kind == "file"}
    assert files == {"numbers.txt": hashlib.sha256(CONTENT).hexdigest()}
    assert sight.incidents == []


@pytest.mark.parametrize("sector", SIZES)
def test_a_gpt_is_read_with_its_own_sectors(
    sector: int, ext4: bytes, vfat: bytes, looking: Looking, tmp_path: Path
) -> None:
    sights = look(looking, tmp_path, gpt(sector, vfat, ext4))
    assert [(sight.volume.number, sight.volume.fstype, sight.volume.start) for sight in sights] == [
        (1, "vfat", MIB),
        (2, "ext4", 41 * MIB),
    ]
    for sight in sights:
        shows_numbers(sight)
        assert sight.volume.sector_size == sector
        assert f"sectors of {sector} bytes" in sight.note
        assert sight.direct
    assert sights[1].asked < sights[1].read
    assert sights[0].volume.part_name == "part 1"


@pytest.mark.parametrize("sector", SIZES)
@pytest.mark.parametrize("extended", [False, True], ids=["primary", "logical"])
def test_a_dos_table_is_read_with_its_own_sectors(
    sector: int, extended: bool, ext4: bytes, looking: Looking, tmp_path: Path
) -> None:
    (sight,) = look(looking, tmp_path, dos(sector, ext4, extended=extended))
    shows_numbers(sight)
    assert sight.volume.number == (5 if extended else 1)
    assert sight.volume.sector_size == sector


def test_what_lies_in_layers_on_such_a_disk_is_found(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (physical,) = physical_volumes(Group("vg", (3,), {"data": [Run(0, 0, 3)]}), {"data": ext4}, "")
    (sight,) = look(looking, tmp_path, gpt(4096, *array_members(physical, 1, 2)))
    shows_numbers(sight)
    assert (sight.volume.name, sight.volume.layers) == ("vg/data", ("1+2", "nas:2"))
    assert sight.asked < sight.read


def test_such_a_table_in_an_array_is_read_too(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, array_members(gpt(4096, ext4), 1, 2)[0])
    shows_numbers(sight)
    assert (sight.volume.name, sight.volume.sector_size) == ("nas:2/1", 4096)
    assert sight.asked < sight.read


def test_the_user_says_which_sectors_count(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    disk = gpt(4096, ext4)
    with pytest.raises(UserError, match="no file system"):
        look(looking, tmp_path, disk, 512)
    (sight,) = look(looking, tmp_path, disk, 4096)
    shows_numbers(sight)
    assert (sight.volume.sector_size, sight.note) == (None, "")
    with pytest.raises(UserError, match="no file system"):
        look(looking, tmp_path, gpt(512, ext4), 4096)


def test_a_disk_of_512_is_read_as_ever(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, gpt(512, ext4))
    shows_numbers(sight)
    assert (sight.volume.sector_size, sight.note) == (None, "")


@pytest.mark.parametrize("cut", [512, 4096, 100])
def test_an_image_whose_end_is_missing(cut: int, ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, gpt(4096, ext4)[:-cut])
    shows_numbers(sight)


@pytest.mark.parametrize("more", [100, 512, 4096 * 3 + 7])
def test_an_image_with_something_behind_it(more: int, ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, gpt(4096, ext4) + b"\xa5" * more)
    shows_numbers(sight)
