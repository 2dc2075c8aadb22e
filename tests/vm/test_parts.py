"""A part of an image: the disk that the guest sees, and where the host reads, are that part and nothing else."""

from pathlib import Path

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.part import WHOLE, Part
from tests.vm import qemu_img
from tests.vm.sight import Look, Looking
from tests.vm.test_sectors import MIB, gpt, made, shows_numbers

OTHER = b"\xa5" * 3000  # before and behind, of no use to anybody


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("ext4"), 8 * MIB, *("mkfs.ext4", "-q", "-F", "-L", "INSIDE", "-d", "tree"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("other"), 2 * MIB, *("mkfs.ext4", "-q", "-F", "-L", "OTHER"))


@pytest.mark.parametrize("before", [OTHER, b"\xa5" * 512, b"\xa5" * 1], ids=["3000", "512", "1"])
@pytest.mark.parametrize("limited", [True, False])
def test_a_file_system_somewhere_in_a_file(
    before: bytes, limited: bool, ext4: bytes, other: bytes, looking: Looking, tmp_path: Path
) -> None:
    image = tmp_path / "dump.bin"
    image.write_bytes(before + ext4 + other)
    (sight,) = looking(Look(image, part=Part(len(before), len(ext4) if limited else None)))
    shows_numbers(sight)
    assert (sight.volume.label, sight.volume.start) == ("INSIDE", 0)
    assert sight.volume.size == (len(ext4) if limited else len(ext4) + len(other))
    assert sight.direct
    assert sight.asked < sight.read


def test_a_partitioned_disk_somewhere_in_a_container(
    ext4: bytes, other: bytes, looking: Looking, tmp_path: Path
) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    disk = gpt(4096, other, ext4)
    raw.write_bytes(OTHER + disk + OTHER)
    qemu_img.convert(raw, "qcow2", image)
    look = Look(image, partition=2, sector_size=4096, part=Part(len(OTHER), len(disk)))
    (sight,) = looking(look)
    shows_numbers(sight)
    assert sight.volume.start == 3 * MIB
    assert sight.asked < sight.read
    with pytest.raises(UserError, match="--offset 99999999999 is beyond the end: the disk in disk") as failure:
        looking(Look(image, part=Part(99999999999)))
    assert failure.value.code == ExitCode.USAGE


def test_what_is_beyond_the_limit_is_not_there(ext4: bytes, other: bytes, looking: Looking, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(gpt(512, other, ext4))
    (sight,) = looking(Look(image, part=Part(0, 3 * MIB)))
    assert sight.volume.label == "OTHER"
    assert len(looking(Look(image, part=WHOLE))) == 2
