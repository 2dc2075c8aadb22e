"""Arrays, volume groups and what lies in them: followed to the end, opened without a write, shown with their bytes."""

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images.layers import Group, Run, Striped, array_members, physical_volumes
from mountsafe.errors import ExitCode, UserError
from tests.vm.sight import Look, Looking, Sight

MIB = 1 << 20
TREE = {"numbers.txt": b"".join(b"%d\n" % number for number in range(60_000)), "small.txt": b"inside\n"}
LINEAR = {"data": [Run(0, 0, 2)]}
APART = {"data": [Run(0, 2, 1), Run(1, 0, 1)]}  # a volume in two pieces, on two physical volumes
STRIPED = {"data": [Striped((Run(0, 0, 1), Run(1, 1, 1)))]}


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system of 8 MiB with the files of TREE."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "tree").mkdir()
    for name, content in TREE.items():
        (folder / "tree" / name).write_bytes(content)
    image = folder / "fs"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "INSIDE", "-d", folder / "tree", image], check=True)
    return image.read_bytes()


def parted(*members: bytes) -> bytes:
    """A disk with a partition for each of `members`, each on a MiB."""
    script, at, places = "label: gpt\n", MIB, []
    for member in members:
        script += f"start={at // 512}, size={-(-len(member) // 512)}\n"
        places.append(at)
        at += -(-len(member) // MIB) * MIB
    made = subprocess.run(
        ["sh", "-c", 'f=$(mktemp) && truncate -s "$0" "$f" && sfdisk -q "$f" >&2 && cat "$f"; rm "$f"', str(at + MIB)],
        input=script.encode(),
        capture_output=True,
        check=True,
    )
    disk = bytearray(made.stdout)
    for place, member in zip(places, members, strict=True):
        disk[place : place + len(member)] = member
    return bytes(disk)


def mirror(data: bytes) -> list[bytes]:
    return array_members(data, 1, 2)


def group(data: bytes, volumes: dict[str, list[Run | Striped]], salt: str = "") -> list[bytes]:
    return physical_volumes(Group("vg", (3, 3), volumes), {"data": data}, salt)


def alone(data: bytes, extents: int = 3, name: str = "vg") -> bytes:
    """A physical volume that is a group of its own, with one logical volume."""
    (volume,) = physical_volumes(Group(name, (extents,), {"data": [Run(0, 0, extents)]}), {"data": data})
    return volume


# What is built around the file system, what its volume is called, what it lies in, and whether it is read directly.
LAYERS: dict[str, tuple[Callable[[bytes], bytes], str, tuple[str, ...], bool]] = {
    "md on the disk": (lambda fs: mirror(fs)[0], "nas:2", (), True),
    "md on partitions": (lambda fs: parted(*mirror(fs)), "nas:2", ("1+2",), True),
    "half of an md": (lambda fs: parted(mirror(fs)[1]), "nas:2", ("1",), True),
    "striped md": (lambda fs: parted(*array_members(fs, 0, 2)), "nas:2", ("1+2",), False),
    "partitioned md": (lambda fs: mirror(parted(fs))[0], "nas:2/1", ("nas:2",), True),
    "LVM on the disk": (lambda fs: alone(fs), "vg/data", (), True),
    "LVM on a partition": (lambda fs: parted(alone(fs)), "vg/data", ("1",), True),
    "LVM in two pieces": (lambda fs: parted(*group(fs, APART)), "vg/data", ("1+2",), True),
    "striped LVM": (lambda fs: parted(*group(fs, STRIPED)), "vg/data", ("1+2",), False),
    "a disk in LVM": (lambda fs: parted(alone(parted(fs))), "vg/data/1", ("1", "vg/data"), True),
    "LVM on md": (lambda fs: parted(*mirror(alone(fs))), "vg/data", ("1+2", "nas:2"), True),
    "all of them": (
        lambda fs: parted(*mirror(alone(parted(alone(fs, name="inner")), 5))),
        "inner/data",
        ("1+2", "nas:2", "vg/data", "vg/data/1"),
        True,
    ),
}


def look(looking: Looking, folder: Path, disk: bytes, wanted: str | None = None) -> list[Sight]:
    image = folder / "disk.img"
    image.write_bytes(disk)
    return looking(Look(image, partition=wanted))


def shows_the_tree(sight: Sight) -> None:
    shown = {path.decode(): entry.sha256 for path, entry in sight.entries.items() if entry.kind == "file"}
    assert shown == {name: hashlib.sha256(content).hexdigest() for name, content in TREE.items()}
    assert sight.incidents == []


@pytest.mark.parametrize("name", LAYERS)
def test_what_lies_in_layers_is_shown(name: str, ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    build, title, layers, direct = LAYERS[name]
    disk = build(ext4)
    (sight,) = look(looking, tmp_path, disk)
    shows_the_tree(sight)
    assert (sight.volume.name, sight.volume.layers, sight.direct) == (title, layers, direct)
    assert (sight.asked < sight.read) is direct
    assert (tmp_path / "disk.img").read_bytes() == disk


# Level, members, those that are there, and how the superblock is written.
ARRAYS = [
    (4, 3, (0, 1, 2), "1.2"),
    (4, 3, (1, 2), "1.2"),
    (5, 3, (0, 1, 2), "1.1"),
    (5, 4, (3, 1, 0), "0.90"),
    (6, 4, (0, 1, 2, 3), "1.0"),
    (6, 5, (0, 2, 4), "1.2"),
    (10, 4, (0, 1, 2, 3), "1.0"),
    (10, 4, (1, 2), "1.2"),
    (1, 2, (0, 1), "0.90"),
    (1, 3, (2,), "1.0"),
]


@pytest.mark.parametrize(("level", "count", "there", "metadata"), ARRAYS)
def test_an_array_of_each_level_is_shown(
    level: int, count: int, there: tuple[int, ...], metadata: str, ext4: bytes, looking: Looking, tmp_path: Path
) -> None:
    members = array_members(ext4, level, count, metadata=metadata)
    disk = parted(*(members[number] for number in there))
    (sight,) = look(looking, tmp_path, disk)
    shows_the_tree(sight)
    whole = len(there) == count
    assert sight.note == ("" if whole else f"degraded: {len(there)} of {count} members")
    assert sight.direct is (level == 1)
    assert (tmp_path / "disk.img").read_bytes() == disk


@pytest.mark.parametrize(("level", "count", "there"), [(5, 3, 1), (6, 5, 2), (10, 4, 1)])
def test_an_array_of_too_few_members_is_told(
    level: int, count: int, there: int, ext4: bytes, looking: Looking, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"incomplete: {there} of {count} members are on the medium"):
        look(looking, tmp_path, parted(*array_members(ext4, level, count)[:there]))


def at_the_end(member: bytes) -> bytes:
    """A disk that ends with its only partition, so that what is at the end of the one is at the end of the other."""
    disk = bytearray(MIB)
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xFD, b"\xff\xff\xff", MIB // 512, len(member) // 512)
    disk[510:512] = b"\x55\xaa"
    return bytes(disk) + member


@pytest.mark.parametrize("metadata", ["0.90", "1.0"])
@pytest.mark.parametrize("build", [at_the_end, bytes], ids=["last partition", "whole disk"])
def test_a_superblock_at_the_end_of_the_disk(
    metadata: str, build: Callable[[bytes], bytes], ext4: bytes, looking: Looking, tmp_path: Path
) -> None:
    member = array_members(ext4, 1, 2, metadata=metadata)[0]
    (sight,) = look(looking, tmp_path, build(member))
    shows_the_tree(sight)
    assert sight.note == "degraded: 1 of 2 members"


def test_half_of_a_mirror_says_so(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, mirror(ext4)[0])
    assert sight.volume.condition == sight.note == "degraded: 1 of 2 members"


def test_a_volume_is_chosen_by_its_name(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    disk = parted(alone(ext4, name="one"), alone(ext4, name="two"))
    assert [sight.volume.name for sight in look(looking, tmp_path, disk)] == ["one/data", "two/data"]
    (sight,) = look(looking, tmp_path, disk, "two/data")
    assert sight.volume.name == "two/data"
    shows_the_tree(sight)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda fs: parted(array_members(fs, 0, 2)[0]), "array nas:2: incomplete: 1 of 2 members are on the medium"),
        (lambda fs: parted(group(fs, APART)[0]), "volume vg/data: incomplete: 1 of 2 members are on the medium"),
        (lambda fs: parted(*group(fs, LINEAR), *group(fs, LINEAR, "other")), "volume vg/data: another one"),
    ],
    ids=["half of a striped md", "half of a group", "two groups of one name"],
)
def test_what_cannot_be_assembled_is_told(
    build: Callable[[bytes], bytes], words: str, ext4: bytes, looking: Looking, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as failure:
        look(looking, tmp_path, build(ext4))
    assert words in failure.value.message
    assert failure.value.code == ExitCode.SOURCE


def test_of_two_physical_volumes_alike_one_is_used(ext4: bytes, looking: Looking, tmp_path: Path) -> None:
    (sight,) = look(looking, tmp_path, parted(alone(ext4), alone(ext4)))
    assert (sight.volume.name, sight.volume.layers) == ("vg/data", ("1",))
    shows_the_tree(sight)
