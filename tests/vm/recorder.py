"""An exFAT as a recorder leaves it: files of which a part was written, times with an offset from UTC and without."""

import os
import struct
import subprocess
from pathlib import Path

from tests.pure.test_exfat import entries

MIB = 1 << 20
WRITTEN, SIZE = 30_000, 100_000
STALE = b"STALE-SECRET"


def recorder(folder: Path) -> Path:
    """Return a recorder's card: a file of which a part was written, one whose times have an offset, and a folder."""
    image = folder / "recorder.img"
    image.write_bytes(b"")
    os.truncate(image, 32 * MIB)
    subprocess.run(["mkfs.exfat", "-L", "REC", image], check=True, capture_output=True)
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
        bitmap = next(struct.unpack_from("<I", there, at + 20)[0] for at in range(0, cluster, 32) if there[at] == 0x81)
        file.seek(heap * sector + (bitmap - 2) * cluster)
        taken = int.from_bytes(file.read(cluster), "little")
        of_file = -(-SIZE // cluster)
        for first, count in ((10, of_file), (40, 1), (50, 1), (60, of_file)):
            taken |= ((1 << count) - 1) << root + first - 2
        put(bitmap, taken.to_bytes(cluster, "little"))
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
