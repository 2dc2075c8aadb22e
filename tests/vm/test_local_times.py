"""FAT and its like keep the local time of a camera's clock, and exFAT files may be larger than what was written."""

import hashlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mountsafe.system import zones
from tests.vm.recorder import SIZE, WRITTEN, recorder
from tests.vm.sight import Look, Looking, Sight

MIB = 1 << 20
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
def card_of_recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorder(tmp_path_factory.mktemp("exfat"))


@pytest.mark.parametrize("direct", [True, False])
def test_what_was_not_written_of_an_exfat_file_is_zeros(direct: bool, card_of_recorder: Path, looking: Looking) -> None:
    [sight] = looking(Look(card_of_recorder, direct=direct, zone=zones.rules_of("Europe/Berlin")))
    files = {path: (entry.size, entry.sha256) for path, entry in sight.entries.items() if entry.kind == "file"}
    assert files == {
        b"part.mp4": (SIZE, hashlib.sha256(b"R" * WRITTEN + bytes(SIZE - WRITTEN)).hexdigest()),
        b"folder/inner.mp4": (SIZE, hashlib.sha256(bytes(SIZE)).hexdigest()),
        b"away.mp4": (5, hashlib.sha256(b"away\n").hexdigest()),
    }
    assert sight.incidents == []
    assert sight.direct is direct


def test_an_exfat_time_with_an_offset_needs_no_zone(card_of_recorder: Path, looking: Looking) -> None:
    [sight] = looking(Look(card_of_recorder, zone=zones.rules_of("Europe/Berlin")))
    noon = "2024-07-01 10:00:00"
    assert times(sight) == {b"part.mp4": noon, b"folder/inner.mp4": noon, b"away.mp4": noon}
