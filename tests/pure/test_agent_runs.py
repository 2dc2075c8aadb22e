"""Runs of blocks, as a medium's own structures tell them: compared with what the tools and a naive reading say."""

import os
import random
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent import runs

CLUSTER = 512


def naive(chain: list[int]) -> list[runs.Run]:
    """The runs of a list of clusters, put together one by one."""
    found: list[runs.Run] = []
    for position, cluster in enumerate(chain):
        if found and found[-1][1] + found[-1][2] == cluster * CLUSTER:
            found[-1] = (*found[-1][:2], found[-1][2] + CLUSTER)
        else:
            found.append((position * CLUSTER, cluster * CLUSTER, CLUSTER))
    return found


@given(st.data(), st.sampled_from(["H", "I"]), st.sampled_from([1, 2, 3, 7, 16384]))
def test_a_chain_is_followed_like_a_careful_reader_would(data: st.DataObject, code: str, window: int) -> None:
    pieces = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    places = data.draw(st.permutations(range(len(pieces))))
    starts = {place: 2 + sum(pieces[p] + 1 for p in places[:turn]) for turn, place in enumerate(places)}
    chain = [starts[i] + k for i in range(len(pieces)) for k in range(pieces[i])]
    clusters = sum(pieces) + len(pieces) + 2
    table = [0] * (clusters + 2)
    for here, following in zip(chain, [*chain[1:], 0xFFF8], strict=True):
        table[here] = following
    device = os.memfd_create("table")
    try:
        os.write(device, struct.pack(f"<{len(table)}{code}", *table))
        followed = runs._Chain(device, 0, code, clusters)
        followed.WINDOW = window  # type: ignore[misc]
        count = data.draw(st.integers(1, len(chain)))
        assert followed.follow(chain[0], count, lambda c: c * CLUSTER, CLUSTER) == naive(chain[:count])
        assert followed.follow(chain[0], len(chain) + 1, lambda c: c * CLUSTER, CLUSTER) is None
    finally:
        os.close(device)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("bits", "size"), [(16, "60M"), (32, "300M")])
def test_a_fragmented_file_on_fat(program: Callable[[str], str], tmp_path: Path, bits: int, size: str) -> None:
    image, content, small = tmp_path / "image", tmp_path / "content", tmp_path / "small"
    run("truncate", "-s", size, str(image))
    run(program("mkfs.vfat"), f"-F{bits}", "-s", "2" if bits == 16 else "1", str(image))
    content.write_bytes(random.Random(1).randbytes(3_000_000))
    small.write_bytes(bytes(5000))
    mcopy, mdel, mshowfat = program("mcopy"), program("mdel"), program("mshowfat")
    names = [f"::s{number}" for number in range(120)]
    for name in names:
        run(mcopy, "-i", str(image), str(small), name)
    for name in names[::2]:
        run(mdel, "-i", str(image), name)
    if bits == 32:  # let the next file start in the first gap
        with open(image, "r+b") as file:
            file.seek(512 + 488)
            file.write(struct.pack("<II", 0xFFFFFFFF, 2))
    run(mcopy, "-i", str(image), str(content), "::big")
    first = int(re.findall(r"<(\d+)", run(mshowfat, "-i", str(image), "::big"))[0])
    device = os.open(image, os.O_RDONLY)
    try:
        boot = os.pread(device, 512, 0)
        sector, per_cluster, reserved, tables, roots = struct.unpack_from("<HBHBH", boot, 11)
        sectors = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
        data = (reserved + tables * sectors) * sector + roots * 32
        start = data + (first - 2) * sector * per_cluster
        found = runs.fat(device, 3_000_000, lambda _: start)
        assert found is not None
        assert len(found) > 20
        read = b"".join(os.pread(device, length, physical) for _, physical, length in found)
        assert read[:3_000_000] == content.read_bytes()
    finally:
        os.close(device)


def test_an_iso_record_that_says_more_is_not_believed(tmp_path: Path) -> None:
    record = bytearray(34)
    struct.pack_into("<I", record, 10, 5000)
    device = os.memfd_create("iso")
    try:
        os.pwrite(device, bytes([38]), 2048)  # a shorter record comes first
        os.pwrite(device, record, 2048 + 38)
        os.ftruncate(device, 8192)
        number = 64 + 38 // 32
        assert runs.iso9660(device, 5000, lambda _: 4096, number) == [(0, 4096, 6144)]
        assert runs.iso9660(device, 5001, lambda _: 4096, number) is None
        assert runs.iso9660(device, 5000, lambda _: 4096, number + 3) is None
        record[25] = 0x80  # more extents follow
        os.pwrite(device, record, 2048 + 38)
        assert runs.iso9660(device, 5000, lambda _: 4096, number) is None
    finally:
        os.close(device)


NTFSINFO = """\
Dumping attribute $DATA (0x80) from mft record 67 (0x43)
	Name length:		 0 (0x0)
	Attribute flags:	 0x0000
	Data size:		 307200 (0x4b000)
	Initialized size:	 307200 (0x4b000)
	Runlist:	VCN		LCN		Length
			0x0		0x169		0x40
			0x40		0x300		0xb
End of inode reached
"""


def test_what_ntfsinfo_says() -> None:
    assert runs.ntfs(NTFSINFO, 4096, 307200) == [(0, 0x169000, 0x40000), (0x40000, 0x300000, 0xB000)]


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("Initialized size:	 307200", "Initialized size:	 4096"),  # the rest reads as zeros
        ("flags:	 0x0000", "flags:	 0x0001"),  # compressed
        ("Name length:		 0", "Name length:		 3"),  # another stream
        ("0x40		0x300", "0x41		0x300"),  # a hole
    ],
)
def test_what_ntfsinfo_says_of_other_files(said: str, instead: str) -> None:
    assert said in NTFSINFO
    assert runs.ntfs(NTFSINFO.replace(said, instead), 4096, 307200) is None
