"""Windows' reparse points: links lead where they did inside the volume, and what only Windows can read says so."""

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe.agent.reparse import MOUNT_POINT, SYMLINK
from tests.pure.test_agent_reparse import link
from tests.vm.sight import Look, Looking

POINTS = {
    "d/absolute": link(SYMLINK, "\\??\\C:\\Users\\me\\a.txt", "C:\\Users\\me\\a.txt"),
    "away": link(SYMLINK, "\\??\\D:\\x", "D:\\x"),
    "share": link(SYMLINK, "\\??\\UNC\\nas\\a", "\\\\nas\\a"),
    "d/junction": link(MOUNT_POINT, "\\??\\C:\\Users\\me", "C:\\Users\\me"),
    "wsl": struct.pack("<IHHI", 0xA000001D, 12, 0, 2) + b"Users/me",
    "compressed": struct.pack("<IHHIIII", 0x80000017, 16, 0, 1, 2, 1, 0),
    "cloud": struct.pack("<IHH", 0x9000701A, 8, 0) + bytes(8),
    "app": struct.pack("<IHH", 0x8000001B, 8, 0) + bytes(8),
}


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Path:
    """An NTFS with a reparse point of each kind, made through ntfs-3g."""
    folder = tmp_path_factory.mktemp("ntfs")
    image, top = folder / "windows.img", folder / "top"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    top.mkdir()
    subprocess.run(
        [program("mkfs.ntfs"), "-q", "-F", "-s", "512", "-c", "4096", image], check=True, capture_output=True
    )
    subprocess.run([program("ntfs-3g"), image, top], check=True)
    try:
        (top / "Users/me").mkdir(parents=True)
        (top / "Users/me/a.txt").write_text("a")
        (top / "d").mkdir()
        for name, data in POINTS.items():
            (top / name).mkdir() if name == "d/junction" else (top / name).touch()
            os.setxattr(top / name, "system.ntfs_reparse_data", data)
    finally:
        subprocess.run(["umount", top], check=True)
    return image


def test_each_is_what_it_is(ntfs: Path, looking: Looking) -> None:
    (sight,) = looking(Look(ntfs))
    links = {name: entry.target for name, entry in sight.entries.items() if entry.kind == "link"}
    assert links == {
        b"d/absolute": b"../Users/me/a.txt",
        b"away": b"D:\\x",
        b"share": b"\\\\nas\\a",
        b"d/junction": b"../Users/me",
        b"wsl": b"Users/me",
    }
    for name in (b"compressed", b"cloud", b"app"):
        entry = sight.entries[name]
        assert (entry.kind, entry.fault) == ("file", os.strerror(errno.EOPNOTSUPP))
    assert sight.entries[b"Users/me/a.txt"].fault == ""
    assert sight.incidents == []
