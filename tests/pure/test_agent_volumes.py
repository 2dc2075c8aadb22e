"""Finding the medium in the guest, and whose the superblock at its end is."""

import errno
import os
import threading
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent.layers import Node
from mountsafe.agent.programs import Refused
from mountsafe.agent.volumes import _is_a_partitions, find_medium


def test_a_disk_without_its_block_device_yet_is_waited_for(tmp_path: Path) -> None:
    """The kernel makes the one a moment after the other, and a busy machine looks between."""
    disk = tmp_path / "0:0:8:0"
    (tmp_path / "0:0:1:0/device/block/zero").mkdir(parents=True)  # not the medium
    disk.mkdir()
    timer = threading.Timer(0.05, os.makedirs, [disk / "device/block/null"])  # /dev/null is there
    timer.start()
    assert find_medium(10.0, str(tmp_path)) == "null"
    timer.join()


def test_a_node_that_leads_nowhere_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next moment: the node is there, and the disk behind it is not."""
    (tmp_path / "0:0:8:0/device/block/null").mkdir(parents=True)
    real, tried = os.open, []

    def late(path: str, flags: int) -> int:
        tried.append(path)
        if len(tried) < 3:
            raise OSError(errno.ENXIO, "No such device or address")
        return real(path, flags)

    monkeypatch.setattr(os, "open", late)
    assert find_medium(10.0, str(tmp_path)) == "null"
    assert tried == ["/dev/null"] * 3


def test_a_medium_that_never_comes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0:0:8:0").mkdir()
    with pytest.raises(Refused, match="did not appear"):
        find_medium(0.02, str(tmp_path))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("start", "size", "version", "its"),
    [
        (MIB, 9 * MIB, b"0.90.0", True),
        (MIB, 9 * MIB + 4096, b"0.90.0", True),  # the same 64 KiB
        (MIB, 8 * MIB, b"0.90.0", False),  # it ends before
        (63 * 512, 10 * MIB - 63 * 512, b"0.90.0", False),  # its own would be elsewhere
        (MIB, 9 * MIB, b"1.0", False),  # which says where it lies
        (MIB, 9 * MIB, b"", False),
    ],
)
def test_a_superblock_at_the_end_of_the_last_partition_is_the_partitions(
    start: int, size: int, version: bytes, its: bool
) -> None:
    disk = Node("/dev/sdc", wire.VolumeKind.DISK, 0, [])
    disk.size = 10 * MIB + 4096
    disk.facts = {"ID_FS_TYPE": b"linux_raid_member", "ID_FS_VERSION": version}
    assert _is_a_partitions(disk, [("sdc1", 1, 0, 512), ("sdc2", 2, start, size)]) == its
    disk.facts["ID_FS_TYPE"] = b"ext4"
    assert not _is_a_partitions(disk, [("sdc2", 2, start, size)])
