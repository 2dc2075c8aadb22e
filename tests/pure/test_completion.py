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


def test_mounted_folders_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "40 29 0:50 / /home/me/a\\040disk ro - fuse.mountsafe mountsafe ro\n"
        "41 29 0:51 / /home/me/bad\\033 ro - fuse.mountsafe mountsafe ro\n"
        "42 29 0:52 / /home/me/other ro - fuse.sshfs x ro\n"
    )
    monkeypatch.setattr(completion, "mounted", lambda: mounted(table))
    assert completion.mounts("") == ["/home/me/a disk"]
    assert completion.mounts("/srv") == []


def test_media_are_offered_by_device_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = [
        {"device": "sdb", "mounts": ["/run/media/me/PHOTOS"]},
        {"device": "sdc", "mounts": ["/run/media/me/\x07"]},
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
    code = "import sys; sys.argv[0] = 'mountsafe'; from mountsafe.__main__ import run; run()"
    asked = {"COMP_WORDS": "mountsafe mount --type ex", "COMP_CWORD": "3", "_MOUNTSAFE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked, "MOUNTSAFE_APPLIANCE": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["exfat", "ext4"], "")
