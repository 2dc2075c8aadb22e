"""What a file system says of itself, read from bytes: its size, and blocks that no kernel here reads."""

import struct
import subprocess
from pathlib import Path

import pytest

from mountsafe.agent.claimed import MOST, claimed, too_large_blocks
from mountsafe.agent.copies import Read, is_leftover, reader

MIB = 1 << 20


def reading(data: bytes) -> Read:
    def read(at: int, length: int) -> bytes:
        piece = data[at : at + length]
        return piece if len(piece) == length else b""

    return read


def made(folder: Path, size: int, *command: str) -> bytes:
    image = folder / "fs"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, image], check=True, capture_output=True)
    return image.read_bytes()


@pytest.mark.parametrize(
    ("fstype", "size", "command"),
    [
        (b"ext4", 8 * MIB, ("mkfs.ext4", "-q", "-F")),
        (b"ext4", 128 * MIB, ("mkfs.ext4", "-q", "-F", "-b", "65536")),
        (b"vfat", 8 * MIB, ("mkfs.vfat",)),
        (b"btrfs", 160 * MIB, ("mkfs.btrfs", "-q", "-s", "16384")),
    ],
)
def test_what_mkfs_writes_is_believed(fstype: bytes, size: int, command: tuple[str, ...], tmp_path: Path) -> None:
    data = made(tmp_path, size, *command)
    assert claimed(fstype, reading(data), size // 2) == size
    assert claimed(fstype, reading(data), size) == 0
    blocks = next((each for each in command if each.isdecimal()), "")
    words = f"its blocks have {blocks} bytes, and this kernel reads none of more than 4096" if blocks else ""
    assert too_large_blocks(fstype, reading(data), 4096) == words
    assert too_large_blocks(fstype, reading(data), 1 << 16) == ""


@pytest.mark.parametrize("fstype", [b"ext4", b"btrfs", b"xfs", b"f2fs", b"vfat", b"no such type"])
@pytest.mark.parametrize("data", [b"", bytes(1 << 17), b"\xff" * (1 << 17)])
def test_bytes_that_say_nothing_are_no_error(fstype: bytes, data: bytes) -> None:
    assert 0 <= claimed(fstype, reading(data), 1 << 17) <= MOST
    assert too_large_blocks(fstype, reading(data), 4096) == ""


def test_what_is_left_of_a_fat_is_told_from_a_whole_one(tmp_path: Path) -> None:
    fat = made(tmp_path, 8 * MIB, "mkfs.vfat")
    ext4 = made(tmp_path, 8 * MIB, "mkfs.ext4", "-q", "-F")
    over = fat[:1024] + ext4[1024:]
    assert not is_leftover(b"vfat", reading(fat))
    assert is_leftover(b"vfat", reading(over))
    assert not is_leftover(b"ext4", reading(over))
    (reserved,) = struct.unpack_from("<H", fat, 0x0E)
    (length,) = struct.unpack_from("<H", fat, 0x16)
    broken = bytearray(fat)
    broken[reserved * 512 : (reserved + length) * 512] = bytes(length * 512)
    assert not is_leftover(b"vfat", reading(bytes(broken)))  # its second table is there


def test_what_cannot_be_read_is_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"12345")
    with (tmp_path / "short").open("rb") as file:
        read = reader(file.fileno())
        assert (read(1, 4), read(1, 5), read(9, 1)) == (b"2345", b"", b"")
