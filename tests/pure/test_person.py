"""The folder that a user's media appear in: his alone to read, and root's alone to change."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountsafe.daemon import person as module
from mountsafe.daemon.person import Person, folder_of
from mountsafe.errors import UserError
from tests.conftest import missing

HE, OTHER, GROUP = 20001, 20002, 20100
PERSON = Person("he", HE, GROUP)


@pytest.fixture
def base() -> Iterator[Path]:
    if os.geteuid() != 0:
        missing("root")
    path = Path(tempfile.mkdtemp(prefix="mountsafe-person-", dir="/dev/shm"))  # a tmpfs, as /run is one
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def may(uid: int, folder: Path, *command: str) -> bool:
    argv = ["setpriv", f"--reuid={uid}", f"--regid={GROUP}", "--clear-groups", *command, str(folder)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def assert_his_alone(folder: Path) -> None:
    (folder / "LABEL").mkdir(exist_ok=True)
    assert may(HE, folder, "ls")
    assert may(HE, folder / "LABEL", "ls")
    assert not may(HE, folder / "new", "mkdir")
    assert not may(OTHER, folder, "ls")
    assert not may(OTHER, folder / "LABEL", "ls", "-d")


def test_it_is_closed_to_his_group(base: Path) -> None:
    assert_his_alone(Path(folder_of(PERSON, str(base / "media"))))


def test_one_that_was_open_to_his_group_is_closed(base: Path) -> None:
    (base / "he").mkdir()
    os.chown(base / "he", 0, GROUP)
    (base / "he").chmod(0o750)
    assert_his_alone(Path(folder_of(PERSON, str(base))))


def test_one_of_udisks_is_taken(base: Path) -> None:
    (base / "he").mkdir(mode=0o700)
    if shutil.which("setfacl") is None:
        missing("setfacl")
    subprocess.run(["setfacl", "-m", f"u:{HE}:rx", base / "he"], check=True)
    before = os.getxattr(base / "he", module.ACL)
    assert_his_alone(Path(folder_of(PERSON, str(base))))
    assert os.getxattr(base / "he", module.ACL) == before


@pytest.mark.parametrize("kind", ["his own", "open to all", "a link"])
def test_one_that_others_may_change_is_refused(base: Path, kind: str) -> None:
    if kind == "a link":
        (base / "he").symlink_to("/etc")
    else:
        (base / "he").mkdir()
        os.chown(base / "he", HE if kind == "his own" else 0, 0)
        (base / "he").chmod(0o777 if kind == "open to all" else 0o755)
    with pytest.raises(UserError):
        folder_of(PERSON, str(base))


def test_without_access_control_lists_it_is_refused(base: Path) -> None:
    plain = base / "plain"
    plain.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", plain], check=True)  # which has none
    try:
        with pytest.raises(UserError) as failure:
            folder_of(PERSON, str(plain))
        assert "--media" in failure.value.hint
    finally:
        subprocess.run(["umount", plain], check=True)
