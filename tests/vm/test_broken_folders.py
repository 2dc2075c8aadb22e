"""Folders with entries that cannot be, written by hand into images: the rest of the folder is shown, by every driver.

Linux tells neither an empty name nor one with a slash, and stays where it met it: what comes after is the agent's work.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.sight import Look, Looking, Sight

BROKEN = ("broken-one", "broken-two")
GOOD = {f"good-{number:03}" for number in range(300)}  # more than one page, and more than a block
MIB = 1 << 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    for name in sorted(GOOD):
        (top / name).write_text(name)
    for name in BROKEN:
        (top / name).touch()
    return top


def sh(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def ext4(tree: Path, image: Path) -> None:
    sh("mkfs.ext4", "-q", "-O", "^metadata_csum", "-d", tree, image)


def ext4_without_index(tree: Path, image: Path) -> None:
    sh("mkfs.ext4", "-q", "-O", "^metadata_csum,^dir_index", "-d", tree, image)


def vfat(tree: Path, image: Path) -> None:
    sh("mkfs.vfat", image)
    sh("mcopy", "-i", image, *sorted(tree.iterdir()), "::")


def squashfs(tree: Path, image: Path) -> None:
    sh("mksquashfs", tree, image, "-noappend", "-noI", "-quiet")


def erofs(tree: Path, image: Path) -> None:
    sh("mkfs.erofs", "--quiet", image, tree)


def emptied(data: bytearray, name: str) -> None:
    """Set the length of a name of ext4 to zero."""
    at = data.index(name.encode())
    assert data[at - 2] == len(name)
    data[at - 2] = 0


def slashed(data: bytearray, name: str) -> None:
    at = data.index(name.encode())
    data[at + 3 : at + 4] = b"/"


def slashed_long(data: bytearray, name: str) -> None:
    """The same in a long name of FAT: its first five characters are together, in UTF-16."""
    at = data.index(name[:5].encode("utf-16-le"))
    data[at + 6 : at + 7] = b"/"


CASES = {
    "ext4, an empty name": (ext4, emptied, None),
    "ext4, a slash": (ext4, slashed, None),
    "ext4 without an index, an empty name": (ext4_without_index, emptied, None),
    "vfat, a slash": (vfat, slashed_long, "BROKEN~"),
    "squashfs, a slash": (squashfs, slashed, None),
    "erofs, a slash": (erofs, slashed, None),
}


def see(looking: Looking, image: Path) -> Sight:
    (sight,) = looking(Look(image))
    return sight


@pytest.mark.parametrize(("make", "spoil", "instead"), CASES.values(), ids=CASES.keys())
def test_the_rest_of_a_folder_is_shown(
    looking: Looking,
    tree: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], None],
    spoil: Callable[[bytearray, str], None],
    instead: str | None,
) -> None:
    image = tmp_path / "medium.img"
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    make(tree, image)
    data = bytearray(image.read_bytes())
    for name in BROKEN:
        spoil(data, name)
    image.write_bytes(data)
    sight = see(looking, image)
    shown = {path.decode() for path, seen in sight.entries.items() if seen.kind == "file"}
    assert shown >= GOOD
    if instead is None:
        assert shown == GOOD
    else:  # they have other names as well
        assert len(shown - GOOD) == len([name for name in shown if name.startswith(instead)])
    assert 1 <= len(sight.incidents) <= len(BROKEN)  # those that lie beside each other are one gap
    assert "a name of impossible length" in sight.incidents[0]


def test_a_superblock_cannot_have_the_kernel_give_up(looking: Looking, tmp_path: Path) -> None:
    """`tune2fs -e panic`, and a folder that cannot be read: without our word against it, no such medium would open."""
    top, image = tmp_path / "top", tmp_path / "image"
    for folder in ("good", "bad"):
        (top / folder).mkdir(parents=True)
        (top / folder / "file").write_text(folder)
    image.touch()
    os.truncate(image, 16 * MIB)
    sh("mkfs.ext4", "-q", "-d", top, image)
    sh("tune2fs", "-e", "panic", image)
    sh("debugfs", "-w", "-R", "set_inode_field /bad block[0] 0", image)  # the head of its extents
    shown = see(looking, image).entries
    assert set(shown) == {b"good", b"good/file", b"bad", b"lost+found"}
    assert (shown[b"good/file"].size, shown[b"good/file"].fault) == (4, "")
