"""Media that cost more than they seem to: everything of them can be seen, and the host's memory stays small."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.vm.command.stage import Person, sh
from tests.vm.command.traces import descendants

MIB = 1 << 20
ENTRIES = int(os.environ.get("MOUNTSAFE_WIDE", "20000"))  # of one folder
DEPTH = 200
BOMB = int(os.environ.get("MOUNTSAFE_BOMB_MIB", "256")) * MIB  # 20 to 100 MiB a second are read in software emulation
MOST = 256 * MIB  # of the session process; 30 MiB are Python, 100,000 entries 80
EIB8 = (1 << 63) - 1


def most_memory(person: Person, source: Path) -> int:
    """The most memory that any process which serves a file system of this medium had, in bytes."""
    most = 0
    for mount in person.records_of(source)["mounts"]:
        for pid in descendants(mount["session"]):
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                most = max(most, *(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")))
    assert most
    return most


# --- a tree --------------------------------------------------------------------------------------------------------
def grow(top: Path) -> None:
    """Cycles of links, folders in folders, and one with many files."""
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    (top / "self").symlink_to("self/self/self")
    (top / "up").symlink_to(".")
    (top / "many").mkdir()
    folder = os.open(top / "many", os.O_RDONLY)
    for number in range(ENTRIES):
        os.mknod(f"{number}", 0o100644, dir_fd=folder)
    os.close(folder)
    here = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("folder-in-a-folder", dir_fd=here)
        below = os.open("folder-in-a-folder", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT, 0o644, dir_fd=here))
    os.close(here)


# Walks down with one descriptor after the other, as fts(3) does: the whole path is too long for a call.
LOOK = f"""
import errno, os, sys
top = sys.argv[1]
for name in ("a", "b", "self", "up/up/a"):
    try:
        open(os.path.join(top, name))
    except OSError as error:
        assert error.errno in (errno.ELOOP, errno.EPERM), error
assert len(os.listdir(os.path.join(top, "many"))) == {ENTRIES}
here = os.open(top, os.O_RDONLY)
for _ in range({DEPTH}):
    here = os.open("folder-in-a-folder", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=here)
print(os.listdir(here))
"""


def test_a_tree_that_is_deep_and_wide_and_goes_in_circles(user: Person, folder: Path, tmp_path: Path) -> None:
    tree, source = tmp_path / "tree", folder / "medium.img"
    tree.mkdir()
    grow(tree)
    sh("mksquashfs", tree, source, "-noappend", "-quiet")
    user.run("mount", user.give(source), folder / "m").ok()
    assert user.python(LOOK, folder / "m").ok().out == "['bottom']\n"
    assert most_memory(user, source) < MOST
    user.run("unmount", folder / "m").ok()


# --- files ---------------------------------------------------------------------------------------------------------
ENDS = """
import os, sys
with open(sys.argv[1], "rb", buffering=0) as file:
    size = os.fstat(file.fileno()).st_size
    for offset in (0, 1 << 40, size // 2, size - (1 << 20)):
        assert os.pread(file.fileno(), 1 << 20, offset) == bytes(min(1 << 20, size - offset)), offset
    print(size)
"""


def test_a_file_of_eight_exbibytes(user: Person, folder: Path, program: Callable[[str], str]) -> None:
    """The largest that Linux can have, all of it a hole: on xfs, written by its own tools."""
    source, prototype = folder / "medium.img", folder / "prototype"
    prototype.write_text("x\n0 0\nd--755 0 0\nhuge ---644 0 0 /dev/null\n$\n")
    with open(source, "wb") as file:
        file.truncate(320 * MIB)
    sh(program("mkfs.xfs"), "-q", "-p", prototype, source)
    listed = subprocess.run(
        ["xfs_db", "-r", "-c", "ls /", source], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout
    (inode,) = (line.split()[1] for line in listed.splitlines() if "huge" in line.split())
    sh("xfs_db", "-x", "-c", f"inode {inode}", "-c", f"write core.size {EIB8}", source)
    user.run("mount", user.give(source), folder / "m").ok()
    assert int(user.python(ENDS, folder / "m/huge").ok().out) == EIB8
    assert most_memory(user, source) < MOST
    user.run("unmount", folder / "m").ok()


READ = """
import sys
total = 0
with open(sys.argv[1], "rb", buffering=0) as file:
    while data := file.read(1 << 20):
        assert not any(data)
        total += len(data)
print(total)
"""


def test_a_bomb_of_compressed_zeros(user: Person, folder: Path, tmp_path: Path) -> None:
    """A thousand times what is on the medium and more, through the virtual machine."""
    source = folder / "medium.img"
    bomb = tmp_path / "bomb"
    bomb.mkdir()
    with open(bomb / "zeros", "wb") as file:
        file.truncate(BOMB)
    sh("mksquashfs", bomb, source, "-noappend", "-quiet", "-no-sparse", "-b", "1M", "-comp", "zstd")
    assert source.stat().st_size < BOMB // 1000
    user.run("mount", user.give(source), folder / "m").ok()
    assert int(user.python(READ, folder / "m/zeros").ok().out) == BOMB
    assert most_memory(user, source) < MOST
    user.run("unmount", folder / "m").ok()
