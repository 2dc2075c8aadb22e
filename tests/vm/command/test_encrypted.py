"""Encrypted media through the command line: with the right key they open like any other."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from images import images
from mountsafe.errors import ExitCode
from tests.done import Done
from tests.luks import PASSPHRASE, luks
from tests.vm.command.stage import Person
from tests.vm.command.test_mount import check_tree, mounted

MIB = 1 << 20
NUMBERS = b"".join(b"%d\n" % number for number in range(300_000))
Image = Callable[[str], Path]

# Answers what is asked on a terminal, one line each, and prints what was said there.
ON_A_TERMINAL = """
import os, pty, sys
answers = sys.argv[1].split(",")
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[2], sys.argv[2:])
said = b""
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if not data:
        break
    said += data
    if said.rstrip().endswith(b"skips it:") and answers:
        said += b"\\n"
        os.write(terminal, answers.pop(0).encode() + b"\\n")
print(said.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system of 16 MiB with a large file and a small one."""
    folder = tmp_path_factory.mktemp("encrypted")
    (folder / "tree").mkdir()
    (folder / "tree/numbers.txt").write_bytes(NUMBERS)
    (folder / "tree/small.txt").write_bytes(b"inside\n")
    with (folder / "fs").open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "INSIDE", "-d", folder / "tree", folder / "fs"], check=True)
    return (folder / "fs").read_bytes()


@pytest.fixture(scope="module")
def secret(library: Path) -> Path:
    path = library / "secret"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o644)
    return path


def made(library: Path, name: str, data: bytes) -> Path:
    path = library / name
    path.write_bytes(data)
    return path


def check(person: Person, target: str | Path) -> None:
    assert person.run(Path(target) / "small.txt", program=["cat"]).ok().out == "inside\n"
    assert person.run(Path(target) / "numbers.txt", program=["cat"]).ok().out.encode() == NUMBERS


# --- the ways of a key ------------------------------------------------------------------------------------------------
def test_a_key_file(person: Person, folder: Path, image: Image, library: Path) -> None:
    key = made(library, "luks.key", b"mountsafe")
    source = image("encrypted-luks")
    (inside,) = images.volumes("encrypted-luks")
    with mounted(person, source, folder / "m", "--key-file", key) as record:
        (mount,) = record["mounts"]
        assert (mount["fstype"], mount["encryption"], mount["name"]) == ("vfat", "LUKS (whole disk)", "0/0")
        check_tree(person, folder / "m", inside.entries)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("sector", [512, 4096])
def test_files_are_read_directly(
    user: Person, folder: Path, library: Path, ext4: bytes, secret: Path, version: int, sector: int
) -> None:
    if version == 1 and sector != 512:
        pytest.skip("LUKS1 has sectors of 512 bytes")
    source = luks(ext4, library / f"luks{version}-{sector}.img", version=version, sector=sector)
    with mounted(user, source, folder / "m", "--key-file", secret) as record:
        assert record["mounts"][0]["direct_reads"]
        check(user, folder / "m")


def on_a_terminal(person: Person, answers: list[str], *arguments: str | Path) -> Done:
    return person.run(",".join(answers), person.program, *arguments, program=[sys.executable, "-c", ON_A_TERMINAL])


def test_a_passphrase_on_a_terminal(user: Person, folder: Path, image: Image) -> None:
    source = image("encrypted-luks")
    done = on_a_terminal(user, ["wrong", "mountsafe"], "mount", source, folder / "m").ok()
    assert "Passphrase of whole disk" in done.out
    assert "wrong" not in done.out.replace("wrong passphrase", "").replace("wrong key", "")  # nothing is echoed
    user.run("unmount", folder / "m").ok()


def test_three_wrong_passphrases(user: Person, folder: Path, image: Image) -> None:
    done = on_a_terminal(user, ["one", "two", "three", "four"], "mount", image("encrypted-luks"), folder / "m")
    assert done.code == ExitCode.LOCKED
    assert done.out.count("Passphrase of") == 3
    assert not (folder / "m").exists()


def test_nobody_is_there_to_ask(user: Person, folder: Path, image: Image) -> None:
    done = user.run(
        "mount", "--json", image("encrypted-luks"), folder / "m", program=["setsid", "-w", str(user.program)]
    )
    assert done.code == ExitCode.LOCKED
    assert "is encrypted (LUKS)" in done.err
    assert json.loads(done.out)["error"]["code"] == ExitCode.LOCKED


def test_a_wrong_key_file(user: Person, folder: Path, image: Image, secret: Path) -> None:
    done = user.run("mount", image("encrypted-luks"), folder / "m", "--key-file", secret)
    assert done.code == ExitCode.LOCKED
    assert "wrong" in done.err
