"""Last resorts: what is damaged, cut off or incomplete opens by the copies that its type keeps, and that is said."""

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import UserError
from mountsafe.medium.resorts import words
from mountsafe.wire import Resort
from tests.vm.sight import Look, Looking, Sight
from tests.vm.test_images import differences

MIB = 1 << 20
NUMBERS = b"".join(b"%d\n" % number for number in range(60_000))
FILES = {"numbers.txt": NUMBERS, "small.txt": b"inside\n"}

Damage = Callable[[bytearray], None]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def made(image: Path, size: int, *command: str | Path) -> bytearray:
    """Return a new image that a program has made a file system in."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, image], check=True, stdout=subprocess.DEVNULL)
    return bytearray(image.read_bytes())


def ext4(folder: Path, tree: Path, size: int = 24 * MIB, block: int = 1024) -> bytearray:
    command = ("mkfs.ext4", "-q", "-F", "-b", str(block), "-L", "EXT", "-d", tree)
    return made(folder / "fs", size, *command)


def fat32(folder: Path, tree: Path) -> bytearray:
    made(folder / "fs", 40 * MIB, "mkfs.vfat", "-F", "32", "-n", "FATTY")
    subprocess.run(["mcopy", "-i", folder / "fs", *(tree / name for name in FILES), "::/"], check=True)
    return bytearray((folder / "fs").read_bytes())


def seen(looking: Looking, folder: Path, disk: bytes, partition: int | None = None) -> Sight:
    image = folder / "damaged.img"
    image.write_bytes(disk)
    (sight,) = looking(Look(image, partition=partition))
    assert image.read_bytes() == bytes(disk)
    assert sight.incidents == []
    return sight


def shows_the_files(sight: Sight) -> None:
    shown = {path.decode(): entry.sha256 for path, entry in sight.entries.items() if entry.kind == "file"}
    assert shown == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def says(sight: Sight, *bits: int) -> None:
    """Nothing else is said, neither more nor less."""
    assert sight.note == "; ".join(said for bit in bits for said in words(bit))


def zero(at: int, length: int) -> Damage:
    def damage(disk: bytearray) -> None:
        disk[at : at + length] = bytes(length)

    return damage


@pytest.mark.parametrize("block", [1024, 4096])
def test_ext_by_a_copy_of_its_superblock(looking: Looking, tmp_path: Path, tree: Path, block: int) -> None:
    disk = ext4(tmp_path, tree, 24 * MIB if block == 1024 else 136 * MIB, block)
    zero(1024, 1024)(disk)
    sight = seen(looking, tmp_path, disk)
    shows_the_files(sight)
    says(sight, Resort.BACKUP_SUPERBLOCK)
    assert (sight.volume.fstype, sight.volume.label, sight.direct) == ("ext4", "EXT", True)


def test_a_superblock_that_is_recognised_and_wrong(looking: Looking, tmp_path: Path, tree: Path) -> None:
    disk = ext4(tmp_path, tree)
    disk[1024 + 0x20 : 1024 + 0x24] = bytes(4)  # no blocks in a group; and the checksum is of what was there
    sight = seen(looking, tmp_path, disk)
    shows_the_files(sight)
    says(sight, Resort.BACKUP_SUPERBLOCK)


@pytest.mark.parametrize(
    ("damage", "bits"),
    [
        pytest.param([zero(0, 512)], [Resort.BACKUP_BOOT], id="boot sector"),
        pytest.param([zero(32 * 512, 4096)], [Resort.SECOND_FAT], id="FAT"),
        pytest.param([zero(0, 512), zero(32 * 512, 512)], [Resort.SECOND_FAT, Resort.BACKUP_BOOT], id="both"),
    ],
)
def test_fat32_by_what_it_has_twice(
    looking: Looking, tmp_path: Path, tree: Path, damage: list[Damage], bits: list[int]
) -> None:
    disk = fat32(tmp_path, tree)
    for each in damage:
        each(disk)
    sight = seen(looking, tmp_path, disk)
    shows_the_files(sight)
    says(sight, *bits)


def _mft(disk: bytearray, which: int) -> None:
    """Wipe the first record of NTFS's file table, or of its copy."""
    cluster = struct.unpack_from("<H", disk, 11)[0] * disk[13]
    at = struct.unpack_from("<Q", disk, 0x30 + 8 * which)[0] * cluster
    zero(at, 1024)(disk)


@pytest.mark.parametrize(
    ("name", "damage", "bit"),
    [
        pytest.param("exfat", zero(0, 12 * 512), Resort.BACKUP_BOOT, id="exfat"),
        pytest.param("ntfs", zero(0, 512), Resort.BACKUP_BOOT, id="ntfs-boot"),
        pytest.param("ntfs", lambda disk: _mft(disk, 0), Resort.MFT_MIRROR, id="ntfs-table"),
        pytest.param("ntfs", lambda disk: _mft(disk, 1), Resort.MFT_MIRROR, id="ntfs-mirror"),
        pytest.param("hfsplus", zero(1024, 512), Resort.BACKUP_SUPERBLOCK, id="hfsplus"),
        pytest.param("f2fs", zero(1024, 1024), Resort.BACKUP_SUPERBLOCK, id="f2fs"),
    ],
)
def test_by_a_copy(looking: Looking, tmp_path: Path, name: str, damage: Damage, bit: int) -> None:
    images.unpack(name, tmp_path)
    disk = bytearray((tmp_path / f"{name}.img").read_bytes())
    damage(disk)
    sight = seen(looking, tmp_path, disk)
    (volume,) = images.volumes(name)
    assert differences(volume, sight) == []
    says(sight, bit)


def test_partitions_by_the_copy_of_a_gpt(looking: Looking, tmp_path: Path) -> None:
    images.unpack("disk-gpt", tmp_path)
    disk = bytearray((tmp_path / "disk-gpt.img").read_bytes())
    zero(0, 34 * 512)(disk)
    for volume in images.volumes("disk-gpt"):
        if volume.entries:
            sight = seen(looking, tmp_path, disk, volume.partition)
            assert differences(volume, sight) == []
            says(sight, Resort.BACKUP_TABLE)


def btrfs_mirror(folder: Path) -> tuple[bytes, bytes]:
    """Return the two halves of an empty mirror: mkfs.btrfs fills none that has several devices."""
    made(folder / "other", 160 * MIB, "true")
    one = made(folder / "fs", 160 * MIB, "mkfs.btrfs", "-q", "-m", "raid1", "-d", "raid1", folder / "other")
    return bytes(one), (folder / "other").read_bytes()


def test_half_of_a_btrfs_mirror(looking: Looking, tmp_path: Path) -> None:
    for half in btrfs_mirror(tmp_path):
        sight = seen(looking, tmp_path, half)
        assert sight.entries == {}
        says(sight, Resort.DEGRADED)


def test_both_halves_of_a_btrfs_mirror_on_one_medium(looking: Looking, tmp_path: Path) -> None:
    one, other = btrfs_mirror(tmp_path)
    disk = made(tmp_path / "disk", 322 * MIB, "true")
    script = b"label: gpt\nsize=160MiB\nsize=160MiB\n"
    subprocess.run(["sfdisk", "-q", tmp_path / "disk"], input=script, check=True)
    disk = bytearray((tmp_path / "disk").read_bytes())
    disk[MIB : 161 * MIB], disk[161 * MIB : 321 * MIB] = one, other
    sight = seen(looking, tmp_path, disk, 1)
    assert sight.entries == {}
    says(sight)


# --- journals ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dirty", [False, True])
def test_a_journal_on_another_device(looking: Looking, tmp_path: Path, tree: Path, dirty: bool) -> None:
    disk = ext4(tmp_path, tree)
    (journal,) = struct.unpack_from("<I", disk, 1024 + 0xE0)
    assert journal == 8
    made(tmp_path / "fs2", 24 * MIB, "mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", "-b", "1024", "-d", tree)
    disk = bytearray((tmp_path / "fs2").read_bytes())
    struct.pack_into("<II", disk, 1024 + 0xE0, 0, 0x801)  # no inode, and a device's number
    disk[1024 + 0xD0 : 1024 + 0xE0] = bytes(range(1, 17))
    if dirty:
        disk[1024 + 0x60] |= 4
    sight = seen(looking, tmp_path, disk)
    shows_the_files(sight)
    assert sight.note.endswith("its journal is on another device, which is not here")
    assert ("not unmounted properly" in sight.note) == dirty


# --- what is cut off -----------------------------------------------------------------------------------------------
def test_what_is_there_of_a_cut_off_image_is_shown_and_the_rest_is_an_error(
    looking: Looking, tmp_path: Path, tree: Path
) -> None:
    disk = ext4(tmp_path, tree, 24 * MIB, 4096)
    at = disk.rindex(NUMBERS[-4096:-2048])
    cut = at // 4096 * 4096 - 8192  # in the middle of the larger file
    sight = seen(looking, tmp_path, disk[:cut])
    assert f"the image ends before its file system: {cut} of {24 * MIB} bytes" in sight.note
    assert "not unmounted properly" not in sight.note
    assert sight.entries[b"small.txt"].fault == "" or disk.rindex(b"inside\n") >= cut
    assert sight.entries[b"numbers.txt"].fault == "Input/output error"


@pytest.mark.parametrize("name", ["vfat", "exfat", "ntfs", "hfsplus", "btrfs", "f2fs", "iso9660"])
def test_a_cut_off_image_opens(looking: Looking, tmp_path: Path, name: str) -> None:
    images.unpack(name, tmp_path)
    disk = (tmp_path / f"{name}.img").read_bytes()
    cut = len(disk) * 15 // 16 // 4096 * 4096
    sight = seen(looking, tmp_path, disk[:cut])
    assert f"the image ends before its file system: {cut} of " in sight.note
    (volume,) = images.volumes(name)
    there = {path for path, entry in sight.entries.items() if not entry.fault}
    wanted = {entry.path: entry.sha256 for entry in volume.entries if entry.kind == "file"}
    right = [path for path in there & wanted.keys() if sight.entries[path].sha256 == wanted[path]]
    assert len(right) > len(wanted) // 2
    assert sorted(there & wanted.keys()) == sorted(right)  # no byte is made up


def test_a_disk_that_ends_in_its_first_partition(looking: Looking, tmp_path: Path) -> None:
    images.unpack("disk-gpt", tmp_path)
    whole = (tmp_path / "disk-gpt.img").read_bytes()
    first = next(volume for volume in images.volumes("disk-gpt") if volume.entries)
    sight = seen(looking, tmp_path, whole[:-MIB], first.partition)
    assert differences(first, sight) == []
    assert sight.note == ""  # it is all there
    last = images.volumes("disk-gpt")[-1]
    with pytest.raises(UserError, match="the image ends before it begins"):
        seen(looking, tmp_path, whole[: 2 * MIB], last.partition)
