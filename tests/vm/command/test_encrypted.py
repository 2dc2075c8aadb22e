"""Encrypted media through the command line: with the right key they open like any other."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images import images
from images.layers import Group, Run, physical_volumes
from mountsafe.errors import ExitCode
from tests.done import Done
from tests.luks import PASSPHRASE, luks, volume_key
from tests.vm.command.stage import Person
from tests.vm.command.terminal import at_a_terminal
from tests.vm.command.test_faults import wait_for
from tests.vm.command.test_mount import check_tree, mounted
from tests.vm.command.traces import command, descendants
from tests.vm.test_layers import parted

MIB = 1 << 20
NUMBERS = b"".join(b"%d\n" % number for number in range(300_000))
Image = Callable[[str], Path]


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


# --- the ways of a key ----------------------------------------------------------------------------------------------
def test_a_key_file(person: Person, folder: Path, image: Image, library: Path) -> None:
    key = made(library, "luks.key", b"mountsafe")
    source = image("encrypted-luks")
    (inside,) = images.volumes("encrypted-luks")
    with mounted(person, source, folder / "m", "--key-file", key) as record:
        (mount,) = record["mounts"]
        assert (mount["fstype"], mount["encryption"], mount["name"]) == ("vfat", "LUKS (whole disk)", "0/0")
        check_tree(person, folder / "m", inside.entries)


@pytest.mark.parametrize(("version", "sector"), [(1, 512), (2, 512), (2, 4096)])
def test_files_are_read_directly(
    user: Person, folder: Path, library: Path, ext4: bytes, secret: Path, version: int, sector: int
) -> None:
    source = luks(ext4, library / f"luks{version}-{sector}.img", version=version, sector=sector)
    with mounted(user, source, folder / "m", "--key-file", secret) as record:
        assert record["mounts"][0]["direct_reads"]
        check(user, folder / "m")


def on_a_terminal(person: Person, answers: list[str], *arguments: str | Path) -> Done:
    return at_a_terminal(person, "skips it:", [f"{answer}\n" for answer in answers], *arguments)


def test_a_passphrase_on_a_terminal(user: Person, folder: Path, image: Image) -> None:
    source = image("encrypted-luks")
    done = on_a_terminal(user, ["wrong", "mountsafe"], "mount", source, folder / "m").ok()
    assert "Passphrase of encrypted-luks.img" in done.out
    assert "wrong" not in done.out  # nothing is echoed
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
    assert "does not open it" in done.err


def test_an_interrupted_prompt_leaves_nothing(user: Person, folder: Path, image: Image) -> None:
    done = at_a_terminal(user, "skips it:", ["\x03"], "mount", image("encrypted-luks"), folder / "m")
    assert done.code == ExitCode.INTERRUPTED
    assert not (folder / "m").exists()


# --- what lies around it, and in it ---------------------------------------------------------------------------------
def alone(data: bytes, extents: int = 5) -> bytes:
    """A physical volume with one logical volume of so many extents of 4 MiB."""
    (volume,) = physical_volumes(Group("vg", (extents,), {"data": [Run(0, 0, extents)]}), {"data": data})
    return volume


def sealed(library: Path, plain: bytes, **how: Any) -> bytes:
    return luks(plain, library / "sealed", **how).read_bytes()


# What is built around the file system, and what its volume is called.
AROUND: dict[str, tuple[Callable[[Path, bytes], bytes], str]] = {
    "a partition": (lambda library, fs: parted(sealed(library, fs)), "1/0"),
    "partitions inside": (lambda library, fs: sealed(library, parted(fs)), "0/1"),
    "LVM inside": (lambda library, fs: parted(sealed(library, alone(fs))), "1/vg/data"),
    "LVM outside": (lambda library, fs: parted(alone(sealed(library, fs), 10)), "vg/data/0"),
    "sectors of 4096 in LVM": (lambda library, fs: alone(sealed(library, fs, sector=4096), 10), "vg/data/0"),
    "in itself": (lambda library, fs: sealed(library, sealed(library, fs)), "0/0/0"),
}


@pytest.mark.parametrize("name", AROUND)
def test_layers_around_it_and_in_it(
    name: str, user: Person, folder: Path, library: Path, ext4: bytes, secret: Path
) -> None:
    build, title = AROUND[name]
    source = made(library, "around.img", build(library, ext4))
    with mounted(user, source, folder / "m", "--key-file", secret) as record:
        (mount,) = record["mounts"]
        assert (mount["name"], mount["label"], mount["direct_reads"]) == (title, "INSIDE", True)
        check(user, mount["target"])


def test_in_a_container(user: Person, folder: Path, library: Path, ext4: bytes, secret: Path) -> None:
    raw = luks(ext4, library / "contained.img")
    source = library / "contained.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, source], check=True)
    with mounted(user, source, folder / "m", "--key-file", secret):
        check(user, folder / "m")


def test_it_is_shown_beside_what_is_not_encrypted(
    user: Person, folder: Path, library: Path, ext4: bytes, secret: Path
) -> None:
    source = made(library, "beside.img", parted(ext4, sealed(library, ext4)))
    with mounted(user, source, folder / "both", "--key-file", secret) as record:
        assert [mount["name"] for mount in record["mounts"]] == ["1", "2/0"]
        for mount in record["mounts"]:
            check(user, mount["target"])
    done = user.run("mount", "--json", source, folder / "one", program=["setsid", "-w", str(user.program)])
    assert done.code == ExitCode.PARTIAL
    (missing,) = done.json()["missing"]
    assert (missing["partition"], missing["code"]) == (2, ExitCode.LOCKED)
    check(user, folder / "one")
    user.run("unmount", folder / "one").ok()
    with mounted(user, source, folder / "two", "--partition", "2", "--key-file", secret):
        check(user, folder / "two")


def test_inspect_tells_what_is_known(user: Person, library: Path, ext4: bytes) -> None:
    source = luks(
        ext4, library / "told.img", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1234", "--label", "VAULT"
    )
    (volume,) = user.run("inspect", "--json", source).ok().json()["volumes"]
    about = volume["encryption"]
    assert (about["kind"], about["version"], about["cipher"], about["label"]) == (
        "crypto_LUKS",
        2,
        "aes-xts-plain64",
        "VAULT",
    )
    assert [(slot["kdf"], slot["iterations"]) for slot in about["slots"]] == [("pbkdf2-sha256", 1234)]
    assert "LUKS2, aes-xts-plain64" in user.run("inspect", source).ok().out


# --- what happens to its processes ----------------------------------------------------------------------------------
def test_processes_that_die(user: Person, folder: Path, library: Path, ext4: bytes, secret: Path) -> None:
    """No passphrase is asked for again: the key file is gone by then."""
    source = luks(ext4, library / "dying.img")
    key = made(library, "once.key", PASSPHRASE)
    with mounted(user, source, folder / "m", "--key-file", key):
        key.unlink()
        for victim in ("virtual_machine", "decrypting"):
            pids = user.records_of(source)[victim]
            for pid in pids if isinstance(pids, list) else [pids]:
                os.kill(pid, signal.SIGKILL)
            user.run(folder / "m/lost+found", program=["stat"]).ok()
            check(user, folder / "m")


def test_a_virtual_machine_that_rests(user: Person, folder: Path, library: Path, ext4: bytes, secret: Path) -> None:
    source = luks(ext4, library / "resting.img")
    with mounted(user, source, folder / "m", "--key-file", secret, "--idle", "1", "--entries", "1000"):
        wait_for(lambda: user.records_of(source)["virtual_machine"] is None)
        check(user, folder / "m")


# --- who has the key ------------------------------------------------------------------------------------------------
def in_memory(pid: int, secrets: list[bytes]) -> list[bytes]:
    """Return which of these are in what a process can write to: the guest's memory is part of QEMU's."""
    found = set()
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            low, high = (int(each, 16) for each in place.split("-"))
            tail = b""
            for at in range(low, high, MIB) if rights.startswith("rw") else ():
                try:
                    memory.seek(at)
                    data = tail + memory.read(min(MIB, high - at))
                except OSError:
                    break
                found |= {secret for secret in secrets if secret in data}
                tail = data[-64:]
    return sorted(found)


def test_nobody_has_the_key_but_who_decrypts(root: Person, folder: Path, library: Path, ext4: bytes) -> None:
    """Neither passphrase nor key are in what processes were started with, in the guest's memory, or in a log."""
    passphrase = b"canary-" + os.urandom(12).hex().encode()
    source = luks(ext4, library / "canary.img", passphrase=passphrase)
    key, _ = volume_key(source, passphrase)
    secret = made(library, "canary.key", passphrase)
    wanted = [passphrase, key[:32], key[32:]]
    with mounted(root, source, folder / "m", "--key-file", secret):
        check(root, folder / "m")
        record = root.records_of(source)
        secret.unlink()
        everybody = {record["supervisor"], *descendants(record["supervisor"])}
        for pid in everybody:
            for name in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not any(each in content or each.hex().encode() in content for each in wanted)
        holders = {pid for pid in everybody if in_memory(pid, wanted)}
        assert holders  # who looks finds it where it must be
        for kind in ("decrypting", "sessions"):
            boxes = record["decrypting"] if kind == "decrypting" else [mount["session"] for mount in record["mounts"]]
            holders -= {pid for box in boxes for pid in (box, *descendants(box))}
        assert [command(pid) for pid in holders] == []
        assert not any(in_memory(pid, [passphrase]) for pid in everybody)
        for log in Path("/run/mountsafe").rglob("*"):
            if log.is_file():
                assert not any(each in log.read_bytes() for each in wanted)
