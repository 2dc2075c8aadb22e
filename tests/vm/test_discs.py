"""Images of discs: the last of several sessions, sessions whose disc begins with music, and what lies beside one."""

import struct
import subprocess
from pathlib import Path

import pytest

from tests.vm.sight import Look, Looking, Sight

SECTOR = 2048
MIB = 1 << 20
MUSIC = 5000  # sectors


def iso(folder: Path, label: str, files: dict[str, str], *more: str) -> bytes:
    """What xorriso writes."""
    tree = folder / label
    tree.mkdir()
    for name, text in files.items():
        (tree / name).write_text(text)
    command = ("xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-V", label, *more, "-o", f"{label}.iso", label)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / f"{label}.iso").read_bytes()


def look(looking: Looking, folder: Path, disc: bytes) -> list[Sight]:
    image = folder / "disc.img"
    image.write_bytes(disc)
    return looking(Look(image))


def files(sight: Sight) -> set[str]:
    return {path.decode() for path, entry in sight.entries.items() if entry.kind == "file" and not entry.fault}


@pytest.fixture(autouse=True)
def _programs(program) -> None:  # type: ignore[no-untyped-def]
    program("xorriso")


def test_the_last_session_is_shown_as_a_drive_shows_it(looking: Looking, tmp_path: Path) -> None:
    first = iso(tmp_path, "FIRST", {"old.txt": "old"})
    start = -(-len(first) // SECTOR) + 150
    second = iso(tmp_path, "SECOND", {"new.txt": "new"}, "-M", "FIRST.iso", "-C", f"0,{start}")
    [sight] = look(looking, tmp_path, first.ljust(start * SECTOR, b"\0") + second)
    assert (sight.volume.label, files(sight)) == ("SECOND", {"old.txt", "new.txt"})
    assert "last session" in sight.volume.condition
    assert sight.incidents == []


@pytest.mark.parametrize("disc", ["with its music", "alone"])
def test_the_files_of_a_disc_that_begins_with_music(disc: str, looking: Looking, tmp_path: Path) -> None:
    session = iso(tmp_path, "BONUS", {"extra.txt": "extra"}, "-C", f"0,{MUSIC}")
    whole = bytes(MUSIC * SECTOR) + session
    [sight] = look(looking, tmp_path, whole if disc == "with its music" else session)
    assert (sight.volume.label, files(sight)) == ("BONUS", {"extra.txt"})
    assert ("a part of a disc" in sight.note) is (disc == "alone")


def test_what_lies_beside_an_image_on_a_stick_is_shown_and_what_is_in_it_is_not_shown_twice(
    looking: Looking, tmp_path: Path
) -> None:
    image = iso(tmp_path, "LIVECD", {"live.txt": "live"})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "work.txt").write_text("my work")
    for command in (
        "truncate -s 8M ext4; mkfs.ext4 -q -L persistence -d tree ext4",
        "truncate -s 4M vfat; mkfs.vfat -n DATA vfat; mcopy -i vfat tree/work.txt ::/",
    ):
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    places = {MIB: "ext4", 10 * MIB: "vfat"}
    stick = bytearray(16 * MIB)
    stick[: len(image)] = image
    entries = [(0x17, 0, len(image))]
    for at, name in places.items():
        data = (tmp_path / name).read_bytes()
        stick[at : at + len(data)] = data
        entries.append((0x83, at, len(data)))
    entries.append((0xEF, 64 * 512, 32 * 512))  # a part of the image, of no known type
    for number, (kind, at, size) in enumerate(entries):
        struct.pack_into("<8BII", stick, 446 + 16 * number, 0, 0, 1, 0, kind, 254, 255, 255, at // 512, size // 512)
    stick[510:512] = b"\x55\xaa"
    sights = look(looking, tmp_path, bytes(stick))
    told = {sight.volume.label: files(sight) for sight in sights}
    assert told == {"LIVECD": {"live.txt"}, "persistence": {"work.txt"}, "DATA": {"work.txt"}}
    assert len(sights) == 3


def test_an_image_for_two_kinds_of_machines_keeps_its_label(looking: Looking, tmp_path: Path) -> None:
    [sight, *_] = look(looking, tmp_path, iso(tmp_path, "GAME", {"both.txt": "both"}, "-hfsplus"))
    assert (sight.fstype, sight.volume.label, files(sight)) == ("iso9660", "GAME", {"both.txt"})
