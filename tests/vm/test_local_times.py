"""FAT and its like keep the local time of a camera's clock, and exFAT files may be larger than what was written."""

import hashlib
import os
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mountsafe.system import zones
from tests.pure.test_exfat import entries
from tests.vm.sight import Look, Looking, Sight

MIB = 1 << 20
WRITTEN, SIZE = 30_000, 100_000
STALE = b"STALE-SECRET"
BITMAP = 0x81  # the type of the root's entry that tells where the allocation bitmap is
ON_THE_CLOCK = {"summer.jpg": "2024-07-01 12:00:00", "winter.jpg": "2024-01-01 12:00:00"}
IN_BERLIN = {b"summer.jpg": "2024-07-01 10:00:00", b"winter.jpg": "2024-01-01 11:00:00"}


def times(sight: Sight) -> dict[bytes, str]:
    """When each file was changed, in UTC."""
    return {
        path: datetime.fromtimestamp(entry.mtime / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for path, entry in sight.entries.items()
        if entry.kind == "file"
    }


def sh(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, env=os.environ | {"TZ": "UTC"})


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera's card, whose clock showed Berlin's time."""
    folder = tmp_path_factory.mktemp("card")
    image = folder / "card.img"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    sh("mkfs.vfat", "-n", "CAM", "card.img", cwd=folder)
    for name, when in ON_THE_CLOCK.items():
        sh("touch", "-d", when, name, cwd=folder)
        sh("mcopy", "-m", "-i", "card.img", name, "::/", cwd=folder)
    return image


def test_fat_shows_what_the_clock_showed(card: Path, looking: Looking) -> None:
    [sight] = looking(Look(card, zone=zones.rules_of("Europe/Berlin")))
    assert times(sight) == IN_BERLIN


def test_of_an_offset_all_dates_are_the_same(card: Path, looking: Looking) -> None:
    [sight] = looking(Look(card, zone=zones.rules_of("-05:30")))
    assert times(sight) == {b"summer.jpg": "2024-07-01 17:30:00", b"winter.jpg": "2024-01-01 17:30:00"}


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorder's card: a file of which a part was written, one whose times have an offset, and a folder."""
    image = tmp_path_factory.mktemp("exfat") / "recorder.img"
    image.write_bytes(b"")
    os.truncate(image, 32 * MIB)
    sh("mkfs.exfat", "-L", "REC", "recorder.img", cwd=image.parent)
    with image.open("r+b") as file:
        boot = file.read(512)
        _, _, heap, _, root = struct.unpack_from("<IIIII", boot, 80)
        sector, cluster = 1 << boot[108], 1 << boot[108] + boot[109]

        def put(number: int, data: bytes) -> None:
            file.seek(heap * sector + (number - 2) * cluster)
            file.write(data)

        noon = (2024 - 1980) << 25 | 7 << 21 | 1 << 16 | 12 << 11
        part = entries("part.mp4", root + 10, SIZE, WRITTEN, flags=3)
        away = entries("away.mp4", root + 40, 5, 5, flags=3, offset=0x80 | 8)  # two hours before UTC
        folder = entries("folder", root + 50, cluster, cluster, flags=3, attributes=0x10)
        inner = entries("inner.mp4", root + 60, SIZE, 0, flags=3)
        put(root + 10, b"R" * WRITTEN + STALE * 6000)
        put(root + 40, b"away\n")
        put(root + 50, timed(inner, noon))
        put(root + 60, STALE * 9000)
        file.seek(heap * sector + (root - 2) * cluster)
        there = file.read(cluster)
        free = next(at for at in range(0, cluster, 32) if not there[at])
        file.seek(heap * sector + (root - 2) * cluster + free)
        file.write(timed(part, noon) + timed(away, noon) + timed(folder, noon))
        # Newer kernels (that of Debian 13) show no file that has more clusters than are in use in all.
        bitmap = next(there[at : at + 32] for at in range(0, cluster, 32) if there[at] == BITMAP)
        put(*struct.unpack_from("<I", bitmap, 20), b"\xff" * ((root + 100) // 8))
    return image


def timed(entry: bytes, when: int) -> bytes:
    """A set of entries with its times, and with the checksum that makes it valid."""
    made = bytearray(entry)
    struct.pack_into("<III", made, 8, when, when, when)
    stream_length, name = made[35], made[66 : 66 + 2 * made[35]]
    assert stream_length <= 15
    checksum = 0
    for upper in name.decode("utf-16-le").upper().encode("utf-16-le"):
        checksum = ((checksum >> 1) | (checksum & 1) << 15) + upper & 0xFFFF
    struct.pack_into("<H", made, 36, checksum)
    checksum = 0
    for at, byte in enumerate(made):
        if at not in (2, 3):
            checksum = ((checksum >> 1) | (checksum & 1) << 15) + byte & 0xFFFF
    struct.pack_into("<H", made, 2, checksum)
    return bytes(made)


@pytest.mark.parametrize("direct", [True, False])
def test_what_was_not_written_of_an_exfat_file_is_zeros(direct: bool, recorder: Path, looking: Looking) -> None:
    [sight] = looking(Look(recorder, direct=direct, zone=zones.rules_of("Europe/Berlin")))
    files = {path: (entry.size, entry.sha256) for path, entry in sight.entries.items() if entry.kind == "file"}
    assert files == {
        b"part.mp4": (SIZE, hashlib.sha256(b"R" * WRITTEN + bytes(SIZE - WRITTEN)).hexdigest()),
        b"folder/inner.mp4": (SIZE, hashlib.sha256(bytes(SIZE)).hexdigest()),
        b"away.mp4": (5, hashlib.sha256(b"away\n").hexdigest()),
    }
    assert sight.incidents == []
    assert sight.direct is direct


def test_an_exfat_time_with_an_offset_needs_no_zone(recorder: Path, looking: Looking) -> None:
    [sight] = looking(Look(recorder, zone=zones.rules_of("Europe/Berlin")))
    noon = "2024-07-01 10:00:00"
    assert times(sight) == {b"part.mp4": noon, b"folder/inner.mp4": noon, b"away.mp4": noon}
