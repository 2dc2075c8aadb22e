"""Store an image small:

only its non-zero blocks, and those of the pseudo-random file by reference (see images.py for the format).
"""

import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from images.images import stream

BLOCK = 512
PROBE = 32
RANDOM_SIZE = 300 * 1024
SHORTEST_MATCH = 512


def pack(image: Path, packed: Path) -> None:
    """Write the stored form of `image` to `packed`."""
    random = stream(RANDOM_SIZE)
    parts: list[tuple[int, int, str, int]] = []
    stored = bytearray()
    with image.open("rb") as file:
        for offset, data in _data(file):
            for start, length, at in _with_matches(data, random):
                if at is not None:
                    parts.append((offset + start, length, "stream", at))
                else:
                    parts.append((offset + start, length, "stored", len(stored)))
                    stored += data[start : start + length]
    header = json.dumps({"size": image.stat().st_size, "parts": parts}, separators=(",", ":"))
    packed.write_bytes(lzma.compress(header.encode() + b"\n" + stored, preset=9 | lzma.PRESET_EXTREME))


def _data(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each run of the file that is neither a hole nor zeros."""
    descriptor, end = file.fileno(), 0
    size = os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        data = os.pread(descriptor, end - start, start)
        for run_start, run_end in _non_zero(data):
            yield start + run_start, data[run_start:run_end]


def _non_zero(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of blocks that are not zeros.

    Short gaps stay inside: a part costs more than they do.
    """
    run: tuple[int, int] | None = None
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if not block.strip(b"\0"):
            continue
        if run is not None and at - run[1] <= 8 * BLOCK:
            run = (run[0], at + len(block))
            continue
        if run is not None:
            yield run
        run = (at, at + len(block))
    if run is not None:
        yield run


def _with_matches(data: bytes, random: bytes) -> Iterator[tuple[int, int, int | None]]:
    """Split `data` into (start, length, offset in `random` or None)."""
    done = 0
    for start, length, at in sorted(_matches(data, random)):
        if start < done:
            continue
        if start > done:
            yield done, start - done, None
        yield start, length, at
        done = start + length
    if done < len(data):
        yield done, len(data) - done, None


def _matches(data: bytes, random: bytes) -> Iterator[tuple[int, int, int]]:
    covered = 0
    for at in range(0, len(random), BLOCK):
        if at < covered:
            continue
        start = data.find(random[at : at + PROBE])
        if start < 0:
            continue
        length = _common(data, start, random, at)
        if length >= SHORTEST_MATCH:
            covered = at + length
            yield start, length, at


def _common(data: bytes, start: int, random: bytes, at: int) -> int:
    """How many bytes agree from `start` and `at` on, counted in steps of a block."""
    length = 0
    while at + length + BLOCK <= len(random) and data.startswith(
        random[at + length : at + length + BLOCK], start + length
    ):
        length += BLOCK
    return length
