"""What exFAT's folders say of files beside what its driver tells."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent.amended import Amended, padded
from mountsafe.agent.exfat import IS_FOLDER, NO_CHAIN, Exfat, Record, records
from mountsafe.wire import Extent, ExtentKind

CLUSTER = 4096
HEAP = 64 * 512  # where cluster 2 is


def entries(
    name: str, cluster: int, size: int, valid: int, flags: int = 1, attributes: int = 0x20, offset: int = 0
) -> bytes:
    """A file's set of entries; `offset` as its times' bytes have it."""
    units = name.encode("utf-16-le")
    names = [units[at : at + 30] for at in range(0, len(units), 30)]
    first = struct.pack("<BBHHHIIIBBBBB7x", 0x85, 1 + len(names), 0, attributes, 0, 0, 0, 0, 0, 0, *[offset] * 3)
    stream = struct.pack("<BBBBHHQIIQ", 0xC0, flags, 0, len(units) // 2, 0, 0, valid, 0, cluster, size)
    return first + stream + b"".join(b"\xc1\0" + part.ljust(30, b"\0") for part in names)


def disk(path: Path, chain: dict[int, int], clusters: dict[int, bytes]) -> str:
    image = bytearray(HEAP + 32 * CLUSTER)
    struct.pack_into("<IIIII", image, 80, 32, 8, HEAP // 512, 32, 2)
    image[108:110] = bytes((9, 3))
    for cluster, following in chain.items():
        struct.pack_into("<I", image, 32 * 512 + 4 * cluster, following)
    for cluster, data in clusters.items():
        at = HEAP + (cluster - 2) * CLUSTER
        image[at : at + len(data)] = data
    path.write_bytes(image)
    return str(path)


END = 0xFFFFFFFF


@pytest.fixture
def exfat(tmp_path: Path) -> Exfat:
    many = b"".join(entries(f"number {number}", 20, 10, 5) for number in range(60))
    root = b"\x83" + bytes(31) + entries("folder", 4, 2 * CLUSTER, 2 * CLUSTER, 1, IS_FOLDER)
    root += entries("Grüße an alle, die das lesen 😀", 9, 100_000, 30_000, 1 | NO_CHAIN, offset=0x84)
    root += entries("flat", 10, CLUSTER, CLUSTER, 1 | NO_CHAIN, IS_FOLDER)
    clusters = {2: root, 4: many[:CLUSTER], 7: many[CLUSTER:], 10: entries("inner", 12, 8, 8)}
    return Exfat(disk(tmp_path / "disk", {2: END, 4: 7, 7: END}, clusters))


def test_a_file_has_its_whole_size_and_says_what_was_written(exfat: Exfat) -> None:
    name = "Grüße an alle, die das lesen 😀".encode()
    assert exfat.of(name) == Record(9, 100_000, 30_000, False, False, False, False)


def test_folders_in_chains_and_in_one_piece_are_found(exfat: Exfat) -> None:
    assert len(exfat.folder(b"folder")) == 60
    assert exfat.of(b"folder/number 59") == Record(20, 10, 5, True, False, True, True)
    assert exfat.of(b"flat/inner") is not None


def test_what_is_not_there_is_nothing(exfat: Exfat) -> None:
    assert exfat.of(b"nothing/below") is None
    assert exfat.folder(b"folder/number 1") == {}


def test_a_chain_in_a_circle_ends(tmp_path: Path) -> None:
    root = entries("folder", 4, 0, 0, 1, IS_FOLDER)
    exfat = Exfat(disk(tmp_path / "disk", {2: END, 4: 5, 5: 4}, {2: root, 4: b"\x83" * CLUSTER, 5: b"\x83" * CLUSTER}))
    assert exfat.folder(b"folder") == {}


@given(st.binary(max_size=400))
def test_any_bytes_are_a_folder(data: bytes) -> None:
    for record in records(data + bytes(32)).values():
        assert 0 <= record.valid <= record.size


def test_a_device_that_is_none_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"short")
    assert Exfat(str(tmp_path / "disk")).folder(b"") == {}


def data(logical: int, length: int) -> Extent:
    return Extent(logical, 1 << 20 | logical, length, ExtentKind.DATA)


def test_what_was_not_written_is_zeros_whatever_lies_there() -> None:
    told = ([data(0, 4096), data(4096, 28672), data(32768, 4096)], 0)
    assert padded(told, (30_000, 100_000)) == (
        [data(0, 4096), data(4096, 25904), Extent(30_000, 0, 70_000, ExtentKind.ZERO)],
        0,
    )
    assert padded(told, None) == told


def test_of_a_file_in_many_runs_the_zeros_come_last() -> None:
    assert padded(([data(0, 4096)], 4096), (30_000, 100_000)) == ([data(0, 4096)], 4096)
    assert padded(([data(28672, 4096)], 32768), (30_000, 100_000))[1] == 0


def test_other_types_are_told_as_their_drivers_have_them() -> None:
    amended = Amended("ext4")
    assert amended.in_folder(b"") is None
    assert amended.written(b"file") is None
