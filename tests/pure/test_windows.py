"""Where a file system may be written to: nowhere but in bytes that are its own by all that is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.medium import windows
from mountsafe.medium.encryption import Cipher, Layer, Layout, Segment, SegmentKind, Stack
from mountsafe.medium.formats import Format
from mountsafe.medium.part import Part
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume
from mountsafe.medium.windows import (
    TYPES,
    ReadOnly,
    check_host,
    check_medium,
    check_stack,
    kernel_partitions,
    why_read_only,
    window,
)

MIB = 1 << 20
SIZE = 64 * MIB
MEDIUM = Medium(Path("x.img"), -1, SIZE, block_device=False)
DISK = Volume("sdb", "disk", 0, 0, SIZE, "", "", "", "", "gpt", "", name="0")


def partition(number: int, start: int, size: int, fstype: str = "ext4") -> Volume:
    return Volume(f"sdb{number}", "partition", number, start, size, fstype, "filesystem", "", "", "", "", str(number))


ONE, TWO = partition(1, MIB, 8 * MIB), partition(2, 9 * MIB, 8 * MIB, "vfat")
WHOLE = replace(DISK, fstype="ext4", usage="filesystem", table="")


def test_a_partition_is_its_window() -> None:
    assert window(ONE, [DISK, ONE, TWO], SIZE, MEDIUM) == (MIB, 8 * MIB)
    assert window(TWO, [DISK, ONE, TWO], SIZE, MEDIUM) == (9 * MIB, 8 * MIB)


def test_a_whole_disk_is_its_window_but_for_half_a_sector() -> None:
    assert window(WHOLE, [WHOLE], SIZE, MEDIUM) == (0, SIZE)
    odd = replace(WHOLE, size=SIZE + 512)  # as QEMU rounds it up
    assert window(odd, [odd], SIZE + 100, MEDIUM) == (0, SIZE)


def test_what_got_options_or_another_type_meanwhile_is_itself_still() -> None:
    assert window(replace(ONE, options=("sb=1",), fstype="ext2"), [DISK, ONE, TWO], SIZE, MEDIUM) == (MIB, 8 * MIB)


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
        window(ONE, [DISK, ONE, TWO, lie], SIZE, MEDIUM)
    with pytest.raises(ReadOnly, match="partition 1"):
        window(WHOLE, [WHOLE, ONE], SIZE, MEDIUM)


def test_what_is_told_and_not_there_is_in_nobodys_way() -> None:
    absent = replace(partition(3, 0, 0), absent=True)
    assert window(ONE, [DISK, ONE, absent], SIZE, MEDIUM) == (MIB, 8 * MIB)


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        (replace(ONE, start=SIZE - MIB), "as a whole"),
        (replace(ONE, start=SIZE + 512), "as a whole"),
        (replace(ONE, start=-512), "as a whole"),
        (replace(ONE, nested=True), "LVM"),
        (replace(ONE, kind="volume"), "LVM"),
        (replace(ONE, kind="array", nested=True, places=(wire.Place(0, 0, MIB),)), "LVM"),
        (replace(ONE, fstype="iso9660"), "iso9660 is only read"),
        (replace(ONE, fstype="squashfs"), "squashfs is only read"),
        (replace(ONE, resorts=wire.Resort.BACKUP_SUPERBLOCK), "unusual way"),
        (replace(ONE, condition="members are missing"), "damaged"),
    ],
)
def test_what_is_only_read(volume: Volume, why: str) -> None:
    with pytest.raises(ReadOnly, match=why):
        window(volume, [DISK, volume, TWO], SIZE, MEDIUM)


def test_what_is_in_an_encrypted_volume() -> None:
    """Where that volume may be written to, and no hidden one can be in it."""
    host = partition(2, 9 * MIB, 8 * MIB, "crypto_LUKS")
    check_host(host, [DISK, ONE, host], MEDIUM)
    inside = replace(WHOLE, size=6 * MIB, host=host)
    assert window(inside, [inside], 6 * MIB, None) == (0, 6 * MIB)
    for lie, why in [
        (replace(host, fstype="VeraCrypt"), "hidden volume"),
        (replace(host, nested=True), "LVM"),
        (replace(host, start=8 * MIB), "partition 1 has bytes"),
        (replace(host, resorts=wire.Resort.AMBIGUOUS), "unusual"),
    ]:
        with pytest.raises(ReadOnly, match=why):
            check_host(lie, [DISK, ONE, lie], MEDIUM)


def test_what_another_system_is_encrypting_is_only_read() -> None:
    segments = (Segment(0, 512, SegmentKind.CRYPT, 0, 0), Segment(512, 512, SegmentKind.ZERO, 0, 0))
    layer = Layer(((0, 0, 1024),), 1024, Layout(Cipher.AES_XTS, 64, 512, 512, 1024, segments))
    check_stack(Stack(True, SIZE, 0, SIZE, (layer,)))
    plain = replace(segments[1], kind=SegmentKind.PLAIN)
    assert layer.layout is not None
    other = replace(layer, layout=replace(layer.layout, segments=(segments[0], plain)))
    with pytest.raises(ReadOnly, match="not complete"):
        check_stack(Stack(True, SIZE, 0, SIZE, (layer, other)))


@pytest.mark.parametrize("format_", [each for each in Format if each is not Format.RAW])
def test_a_container_is_only_read(format_: Format) -> None:
    with pytest.raises(ReadOnly, match=format_.value):
        check_medium(replace(MEDIUM, format=format_))
    check_medium(MEDIUM)


def test_why_it_is_read_only_is_said_beforehand() -> None:
    assert why_read_only(ONE, [DISK, ONE, TWO], SIZE, MEDIUM) == ""
    assert why_read_only(replace(ONE, fstype="romfs"), [DISK, ONE], SIZE, MEDIUM) == "romfs is only read"
    assert "only read" in why_read_only(ONE, [DISK, ONE], SIZE, replace(MEDIUM, format=Format.VDI))


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
            assert window(ONE, [DISK, ONE, TWO], SIZE, medium) == (MIB, 8 * MIB)
        else:
            with pytest.raises(ReadOnly, match="kernel has other partitions"):
                window(ONE, [DISK, ONE, TWO], SIZE, medium)
        if known:
            with pytest.raises(ReadOnly, match="kernel has other partitions"):
                window(WHOLE, [WHOLE], SIZE, medium)


def test_the_kernels_places_count_from_the_disks_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that were told from where the part begins that counts."""
    monkeypatch.setattr(windows, "kernel_partitions", lambda device: {1: (3 * MIB, 8 * MIB)})
    with open("/dev/null") as device:
        medium = replace(MEDIUM, fd=device.fileno(), block_device=True, part=Part(2 * MIB, None))
        assert window(ONE, [DISK, ONE, TWO], SIZE, medium) == (MIB, 8 * MIB)


def test_of_what_is_no_disk_the_kernel_has_no_partitions() -> None:
    assert kernel_partitions(0) == {}
