"""Disks with the signature of what they were before, and file systems that this machine's kernel cannot read."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images.layers import Group, Run, array_members, physical_volumes
from mountsafe.errors import ExitCode, UserError
from tests.vm.sight import Look, Looking, Sight

MIB = 1 << 20
SIZE = 12 * MIB


def made(folder: Path, size: int, *command: str) -> bytearray:
    (folder / "tree").mkdir()
    (folder / "tree" / "new.txt").write_bytes(b"what is there now")
    image = folder / "fs"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, "fs"], cwd=folder, check=True, capture_output=True)
    return bytearray(image.read_bytes())


def look(looking: Looking, folder: Path, disk: bytes) -> list[Sight]:
    image = folder / "disk.img"
    image.write_bytes(disk)
    return looking(Look(image))


def fat(disk: bytearray, folder: Path) -> None:
    """The boot sector of a FAT, which mke2fs need not clear."""
    (folder / "old").mkdir()
    disk[:1024] = made(folder / "old", SIZE, "mkfs.vfat", "-n", "OLD")[:1024]


def lvm(disk: bytearray, folder: Path) -> None:
    """The label of a physical volume without its metadata."""
    disk[512:1024] = physical_volumes(Group("old", (3,), {"data": [Run(0, 0, 2)]}), {})[0][512:1024]


def md(disk: bytearray, folder: Path) -> None:
    """A mirror's superblock, in a place that is free in an ext4."""
    disk[4096:4608] = array_members(bytes(8 * MIB), 1, 2)[0][4096:4608]


@pytest.mark.parametrize("leave", [fat, lvm, md])
def test_what_a_disk_was_is_not_in_the_way(
    leave: Callable[[bytearray, Path], None], looking: Looking, tmp_path: Path
) -> None:
    # With blocks of 1 KiB the table of groups is at 2,048, and its copies' room for growth is free at 4,096.
    disk = made(tmp_path, SIZE, "mkfs.ext4", "-q", "-F", "-L", "NOW", "-b", "1024", "-d", "tree")
    leave(disk, tmp_path)
    (sight,) = look(looking, tmp_path, bytes(disk))
    assert (sight.volume.fstype, sight.volume.label) == ("ext4", "NOW")
    assert sight.entries[b"new.txt"].size == len(b"what is there now")
    assert "signatures of other types" in sight.note


def test_blocks_that_the_kernel_cannot_read_are_told(looking: Looking, tmp_path: Path) -> None:
    disk = made(tmp_path, 128 * MIB, "mkfs.ext4", "-q", "-F", "-b", "65536")
    words = "its blocks have 65536 bytes, and this kernel reads none of more than"
    with pytest.raises(UserError, match=words) as failure:
        look(looking, tmp_path, bytes(disk))
    assert failure.value.code == ExitCode.SOURCE


def test_a_type_without_a_driver_is_told(looking: Looking, tmp_path: Path) -> None:
    disk = bytearray(SIZE)
    disk[:8] = b"\0\0\0ReFS\0"
    with pytest.raises(UserError, match="this machine's kernel has no driver for it") as failure:
        look(looking, tmp_path, bytes(disk))
    assert failure.value.hint == "Windows reads it."
    assert failure.value.code == ExitCode.SOURCE
