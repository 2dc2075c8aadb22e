"""Damage to images: the same for the same seed, where drivers look, and past their checksums."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from images import images
from tests.hostile import cases, mutations
from tests.hostile.mutations import Edit, Map, crc32c, crc_udf
from tests.vm import qemu_img

TYPES = ("ext4", "vfat", "exfat", "xfs", "btrfs", "udf", "ntfs")


def test_checksums_are_those_of_the_standards() -> None:
    """The check values of CRC-32C and CRC-16/XMODEM for the digits."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc_udf(b"123456789") == 0x31C3


@pytest.fixture(scope="module", params=(*TYPES, *qemu_img.FORMATS))
def image(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]
) -> tuple[bytes, Map]:
    folder = tmp_path_factory.mktemp("base")
    if request.param in qemu_img.FORMATS:
        program("qemu-img")
        path = folder / "container"
        qemu_img.convert(images.unpack("hostile-names", folder), request.param, path)
    else:
        path = images.unpack(request.param, folder)
    data = path.read_bytes()
    return data, mutations.find(data, list(cases.parts(path)), request.param)


def test_metadata_is_found(image: tuple[bytes, Map]) -> None:
    """Every kind of structure is there, inside the image, and its seal is what the image has already."""
    data, found = image
    assert len(found.kinds) >= 3
    for kind in found.kinds:
        for spot in kind[:20]:
            assert 0 <= spot.offset < spot.offset + spot.length <= len(data)
            if spot.seal is not None:
                stored = data[spot.offset : spot.offset + spot.length]
                assert spot.seal(stored) == stored


def test_damage_is_the_same_for_the_same_seed(image: tuple[bytes, Map]) -> None:
    data, found = image
    made = [mutations.mutate(data, found, Random(f"seed {n}")) for n in range(20)]
    assert made == [mutations.mutate(data, found, Random(f"seed {n}")) for n in range(20)]
    assert len(set(made)) > 15
    assert any(data[edit.offset : edit.offset + len(edit.data)] != edit.data for edits in made for edit in edits)


def test_what_is_changed_in_a_structure_is_sealed_again(image: tuple[bytes, Map]) -> None:
    data, found = image
    spots = [spot for kind in found.kinds for spot in kind if spot.seal is not None]
    if not spots:
        return
    spot = spots[0]
    edit = Edit(spot.offset + 40, b"\xaa\x55")
    changed = bytearray(data)
    for each in mutations.sealed(data, found, [edit]):
        changed[each.offset : each.offset + len(each.data)] = each.data
    now = bytes(changed[spot.offset : spot.offset + spot.length])
    assert now != data[spot.offset : spot.offset + spot.length]
    assert spot.seal is not None
    assert spot.seal(now) == now


def test_nothing_is_written_beyond_the_end() -> None:
    assert mutations.sealed(bytes(16), Map(()), [Edit(12, b"12345678")]) == [Edit(12, b"1234")]


def test_parts_are_what_is_not_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(512 << 10)
        file.write(b"x" * 4096)
    assert list(cases.parts(path)) == [(512 << 10, 4096)]
