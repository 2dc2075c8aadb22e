"""Where a file system may be written to: nowhere but in bytes that are its own by all that is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.medium import windows
from mountsafe.medium.formats import Format
from mountsafe.medium.part import Part
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import TYPES, ReadOnly, check_medium, kernel_partitions, window

MIB = 1 << 20
SIZE = 64 * MIB
MEDIUM = Medium(Path("x.img"), -1, SIZE, block_device=False)
DISK = Volume("sdb", "disk", 0, 0, SIZE, "", "", "", "", "gpt", "", name="0")


def partition(number: int, start: int, size: int, fstype: str = "ext4") -> Volume:
    return Volume(f"sdb{number}", "partition", number, start, size, fstype, "filesystem", "", "", "", "", str(number))


ONE, TWO = partition(1, MIB, 8 * MIB), partition(2, 9 * MIB, 8 * MIB, "vfat")
WHOLE = replace(DISK, fstype="ext4", usage="filesystem", table="")


def test_a_partition_is_its_window() -> None:
    assert window(ONE, [DISK, ONE, TWO], MEDIUM, SIZE) == (MIB, 8 * MIB)
    assert window(TWO, [DISK, ONE, TWO], MEDIUM, SIZE) == (9 * MIB, 8 * MIB)


def test_a_whole_disk_is_its_window_but_for_half_a_sector() -> None:
    assert window(WHOLE, [WHOLE], MEDIUM, SIZE) == (0, SIZE)
    odd = replace(WHOLE, size=SIZE + 512)  # as QEMU rounds it up
    assert window(odd, [odd], MEDIUM, SIZE + 100) == (0, SIZE)


def test_what_got_options_or_another_type_meanwhile_is_itself_still() -> None:
    assert window(replace(ONE, options=("sb=1",), fstype="ext2"), [DISK, ONE, TWO], MEDIUM, SIZE) == (MIB, 8 * MIB)


@pytest.mark.parametrize(
    "lie",
    [
        partition(3, 5 * MIB, MIB),
        partition(3, 0, MIB + 512),
        partition(3, 9 * MIB - 512, MIB),
        partition(3, 0, SIZE),
        partition(3, 2 * MIB, 1),
    ],
)
def test_a_window_over_another_partition_is_none(lie: Volume) -> None:
    with pytest.raises(ReadOnly, match="partition 3 has bytes of it"):
        window(ONE, [DISK, ONE, TWO, lie], MEDIUM, SIZE)
    with pytest.raises(ReadOnly, match="partition 1"):
        window(WHOLE, [WHOLE, ONE], MEDIUM, SIZE)


def test_what_is_told_and_not_there_is_in_nobodys_way() -> None:
    absent = replace(partition(3, 0, 0), absent=True)
    assert window(ONE, [DISK, ONE, absent], MEDIUM, SIZE) == (MIB, 8 * MIB)


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        (replace(ONE, start=SIZE - MIB), "as a whole"),
        (replace(ONE, start=SIZE + 512), "as a whole"),
        (replace(ONE, start=-512), "as a whole"),
        (replace(ONE, nested=True), "LVM"),
        (replace(ONE, kind="volume"), "LVM"),
        (replace(ONE, kind="array", nested=True, places=(wire.Place(0, 0, MIB),)), "LVM"),
        (replace(ONE, host=DISK, fstype="ext4"), "LUKS"),
        (replace(ONE, fstype="iso9660"), "iso9660 is only read"),
        (replace(ONE, fstype="squashfs"), "squashfs is only read"),
        (replace(ONE, resorts=wire.Resort.BACKUP_SUPERBLOCK), "unusual way"),
        (replace(ONE, condition="members are missing"), "damaged"),
    ],
)
def test_what_is_only_read(volume: Volume, why: str) -> None:
    if volume.host is not None:
        volume = replace(volume, host=replace(DISK, fstype="crypto_LUKS"))
    with pytest.raises(ReadOnly, match=why):
        window(volume, [DISK, volume, TWO], MEDIUM, SIZE)


@pytest.mark.parametrize("format_", [each for each in Format if each is not Format.RAW])
def test_a_container_is_only_read(format_: Format) -> None:
    with pytest.raises(ReadOnly, match=format_.value):
        check_medium(replace(MEDIUM, format=format_))
    check_medium(MEDIUM)


def test_types_are_such_as_there_are() -> None:
    assert all(word == word.lower() for word in TYPES)


@pytest.mark.parametrize(
    ("known", "possible"),
    [
        ({}, True),
        ({1: (MIB, 8 * MIB), 2: (9 * MIB, 8 * MIB)}, True),
        ({2: (9 * MIB, 8 * MIB)}, True),
        ({1: (MIB, 9 * MIB)}, False),
        ({1: (2 * MIB, 8 * MIB)}, False),
        ({3: (MIB, 8 * MIB)}, False),
        ({3: (8 * MIB, 2 * MIB)}, False),
    ],
)
def test_of_a_device_the_kernel_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, known: dict[int, tuple[int, int]], possible: bool
) -> None:
    """Also of one whose guest says that the whole of it is a file system."""
    monkeypatch.setattr(windows, "kernel_partitions", lambda device: known)
    with open("/dev/null") as device:
        medium = replace(MEDIUM, fd=device.fileno(), block_device=True)
        if possible:
            assert window(ONE, [DISK, ONE, TWO], medium, SIZE) == (MIB, 8 * MIB)
        else:
            with pytest.raises(ReadOnly, match="kernel has other partitions"):
                window(ONE, [DISK, ONE, TWO], medium, SIZE)
        if known:
            with pytest.raises(ReadOnly, match="kernel has other partitions"):
                window(WHOLE, [WHOLE], medium, SIZE)


def test_the_kernels_places_count_from_the_disks_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that were told from where the part begins that counts."""
    monkeypatch.setattr(windows, "kernel_partitions", lambda device: {1: (3 * MIB, 8 * MIB)})
    with open("/dev/null") as device:
        medium = replace(MEDIUM, fd=device.fileno(), block_device=True, part=Part(2 * MIB, None))
        assert window(ONE, [DISK, ONE, TWO], medium, SIZE) == (MIB, 8 * MIB)


def test_of_what_is_no_disk_the_kernel_has_no_partitions() -> None:
    assert kernel_partitions(0) == {}
