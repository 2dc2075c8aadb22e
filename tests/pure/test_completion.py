"""What a shell is offered: what is there, in the form that the verbs take, and no name that is not fit to be shown."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mountsafe.cli import completion
from mountsafe.daemon import client
from mountsafe.errors import UserError
from mountsafe.mountinfo import mounted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.iso", "B.IMG", "notes.txt", ".hidden.img", "vms/disk.qcow2", "vms/log", "evil\x1b[2J.img"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_are_offered_and_folders_on_the_way_to_them(folder: Path) -> None:
    assert completion.images("") == ["B.IMG", "a.iso", "vms/"]
    assert completion.images("a") == ["a.iso"]
    assert completion.images("v") == ["vms/disk.qcow2"]
    assert completion.images(f"{folder}/vm") == [f"{folder}/vms/disk.qcow2"]
    assert completion.images(".h") == [".hidden.img"]
    assert completion.images("nowhere/") == []


HOSTILE = (
    *("$(touch RUN).img", "\\$(touch RUN).img", "`touch RUN`.img", "\\`touch RUN`.img", "x;touch RUN;.img", "x&.img"),
    *('a"b.img', "a'b.img", "a\\.img", "two words.img", "x|y.img", "<x.img", "*.img", "a{b,c}.img", "#x.img", "!x.img"),
)
OPTIONS = ("-oloop.img", "~root.img", "=ls.img")


@pytest.mark.parametrize("name", [*HOSTILE, *OPTIONS])
def test_no_name_that_is_more_than_a_word_to_a_shell_is_offered(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).touch()
    kept = [{"device": "sdb", "mounts": [name, f"/run/media/me/{name}"]}]
    monkeypatch.setattr(client, "media", lambda timeout: kept)
    assert completion.images("") == []
    assert name not in completion.media("")
    if name in HOSTILE:
        assert completion.images(name[:1]) == completion.media(name[:1]) == completion.media("/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_pressing_the_key_runs_nothing(folder: Path, shell: str) -> None:
    """Bash puts an offer on the command line as it is, zsh evaluates all (which its _arguments does, here in bash)."""
    for name in HOSTILE[:5]:
        (folder / name).touch()
    told = asked(shell, "mountsafe mount ", folder)
    arguments = '_files() { :; }; _arguments() { a=${1#*:*:}; eval ws=\\( "${a:2:-2}" \\); }; '
    script = f"printf %s {' '.join(told.splitlines())}" if shell == "bash" else arguments + told
    subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, check=True)
    assert not (folder / "RUN").exists()


def test_a_name_that_needs_quotes_leaves_all_to_the_shell(folder: Path) -> None:
    (folder / "two words.img").touch()
    assert completion.images("") == completion.images("t") == []
    assert completion.images("a") == ["a.iso"]


def test_mounted_folders_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "40 29 0:50 / /home/me/disk ro - fuse.mountsafe mountsafe ro\n"
        "43 29 0:50 / /home/me/a\\040disk;id ro - fuse.mountsafe mountsafe ro\n"
        "41 29 0:51 / /home/me/bad\\033 ro - fuse.mountsafe mountsafe ro\n"
        "42 29 0:52 / /home/me/other ro - fuse.sshfs x ro\n"
    )
    monkeypatch.setattr(completion, "mounted", lambda: mounted(table))
    assert completion.mounts("") == ["/home/me/disk"]
    assert completion.mounts("/srv") == []


def test_media_are_offered_by_device_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = [
        {"device": "sdb", "mounts": ["/run/media/me/PHOTOS"]},
        {"device": "sdc", "mounts": ["/run/media/me/\x07", "/run/media/me/$(id)"]},
    ]
    monkeypatch.setattr(client, "media", lambda timeout: kept)
    assert completion.media("") == ["/run/media/me/PHOTOS", "sdb", "sdc"]
    assert completion.media("/run") == ["/run/media/me/PHOTOS"]
    assert completion.devices("/dev/sd") == ["/dev/sdb", "/dev/sdc"]


def test_without_a_daemon_nothing_is_offered_and_nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(timeout: float) -> None:
        raise UserError("the daemon does not run")

    monkeypatch.setattr(client, "media", away)
    assert completion.media("") == completion.devices("") == []


def test_types_are_those_of_what_was_built(tmp_path: Path) -> None:
    """Asked as a shell asks, of the whole program."""
    built = tmp_path / "current"
    built.mkdir()
    (built / "info.json").write_text(json.dumps({"filesystems": ["exfat", "ext4", "vfat"]}))
    assert asked("bash", "mountsafe mount --type ex", tmp_path).split() == ["exfat", "ext4"]


def asked(shell: str, line: str, folder: Path) -> str:
    """What the program tells a shell at the end of a line; an appliance is looked for in the folder."""
    code = "import sys; sys.argv[0] = 'mountsafe'; from mountsafe.__main__ import run; run()"
    told = {"_MOUNTSAFE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line}
    repository = os.fspath(Path(__file__).parents[2])
    more = {"COMP_CWORD": str(line.count(" ")), "MOUNTSAFE_APPLIANCE": os.fspath(folder), "PYTHONPATH": repository}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **told, **more},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout
