"""Mount options in the guest: each kind does what its driver says of it, and what a driver refuses is said."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mountsafe.errors import UserError
from tests.vm.sight import Look, Looking, Sight


def names(sights: list[Sight]) -> set[bytes]:
    (sight,) = sights
    assert sight.incidents == []
    assert not any(entry.fault for entry in sight.entries.values())
    return set(sight.entries)


def tree(folder: Path) -> Path:
    (folder / "tree/sub").mkdir(parents=True)
    (folder / "tree/read me.txt").write_text("a")
    (folder / "tree/sub/file.dat").write_text("b")
    return folder / "tree"


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iso")
    image = folder / "disc.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-J", "-R", "-o", image, tree(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return image


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ((), {b"read me.txt", b"sub", b"sub/file.dat"}),
        (("norock",), {b"read me.txt", b"sub", b"sub/file.dat"}),
        (("norock", "nojoliet"), {b"read_me.txt", b"sub", b"sub/file.dat"}),
        (("norock", "nojoliet", "map=off"), {b"READ_ME.TXT;1", b"SUB", b"SUB/FILE.DAT;1"}),
    ],
)
def test_a_discs_names(options: tuple[str, ...], seen: set[bytes], iso: Path, looking: Looking) -> None:
    assert names(looking(Look(iso, options=options))) == seen


def test_a_discs_other_volume_descriptor(iso: Path, looking: Looking, tmp_path: Path) -> None:
    image = tmp_path / "shifted.iso"  # as a session that begins later: its descriptors are 16 blocks after that
    disc = iso.read_bytes()
    first, end = 16 * 2048, 20 * 2048
    image.write_bytes(disc[:first] + bytes(end - first) + disc[end:] + disc[first:end])
    with pytest.raises(UserError, match="cannot mount"):
        looking(Look(image, "iso9660", options=("sbsector=3",)))
    sights = looking(Look(image, "iso9660", options=(f"sbsector={len(disc) // 2048 - 16}",)))
    assert names(sights) == {b"read me.txt", b"sub", b"sub/file.dat"}


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fat")
    image = folder / "fat.img"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    subprocess.run(["mkfs.vfat", "-n", "FAT", image], check=True, capture_output=True)
    for name in ("README.TXT", "Größe.txt"):
        (folder / name).write_text(name)
        subprocess.run(["mcopy", "-i", image, folder / name, "::/"], check=True, env={"LC_ALL": "C.UTF-8"})
    return image


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ((), {b"README.TXT", "Größe.txt".encode()}),
        (("shortname=lower",), {b"readme.txt", "Größe.txt".encode()}),
        (("iocharset=iso8859-1",), {b"README.TXT", "Größe.txt".encode("latin-1")}),
        (("codepage=850", "utf8=1"), {b"README.TXT", "Größe.txt".encode()}),
    ],
)
def test_a_sticks_names(options: tuple[str, ...], seen: set[bytes], fat: Path, looking: Looking) -> None:
    assert names(looking(Look(fat, options=options))) == seen


def test_a_character_set_that_the_kernel_lacks(fat: Path, looking: Looking) -> None:
    with pytest.raises(UserError, match="klingon not found"):
        looking(Look(fat, options=("iocharset=klingon",)))


def test_a_subvolume(looking: Looking, tmp_path: Path) -> None:
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "--mixed", "--rootdir", tree(tmp_path), image], check=True, capture_output=True)
    assert names(looking(Look(image, options=("subvolid=5",)))) == {b"read me.txt", b"sub", b"sub/file.dat"}
    for option in ("subvolid=300", "subvol=@away ä", "subvol=sub"):  # the last one is a folder and no subvolume
        with pytest.raises(UserError, match="cannot mount whole disk: btrfs"):
            looking(Look(image, options=(option,)))


def test_one_that_no_type_on_it_takes(fat: Path, looking: Looking, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    shutil.copy(fat, image)
    with pytest.raises(UserError, match="vfat takes no mount option map") as failure:
        looking(Look(image, options=("map=off",)))
    assert "vfat takes codepage=, dos1xfloppy," in failure.value.hint
