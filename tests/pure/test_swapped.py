"""Another medium in the same device: a card reader's, whose number stays."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mountsafe.cli import already
from mountsafe.errors import UserError
from mountsafe.medium import swapped
from mountsafe.medium.part import WHOLE
from mountsafe.session import asking
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Record

DISK, PARTITION = (8, 16), (8, 17)


def status(kind: int, number: tuple[int, int] = DISK) -> Any:
    return SimpleNamespace(st_mode=kind | 0o600, st_rdev=os.makedev(*number))


def test_a_device_of_this_machine_has_the_number_that_sysfs_tells() -> None:
    found = next(Path("/sys/block").glob("*/diskseq"), None)
    if found is None:
        pytest.skip("no block device here, or no number of media")
    number = tuple(map(int, (found.parent / "dev").read_text().split(":")))
    assert swapped.number_of(status(stat.S_IFBLK, number)) == int(found.read_text())  # type: ignore[arg-type]
    for part in found.parent.glob("*/partition"):
        number = tuple(map(int, (part.parent / "dev").read_text().split(":")))
        assert swapped.number_of(status(stat.S_IFBLK, number)) == int(found.read_text())  # type: ignore[arg-type]


def test_a_file_and_an_unknown_device_have_none() -> None:
    assert swapped.number_of(status(stat.S_IFREG)) == 0
    assert swapped.number_of(status(stat.S_IFBLK, (4095, 1))) == 0


@pytest.mark.parametrize(("now", "taken"), [(5, True), (6, False), (0, True)])
def test_a_mount_of_the_last_medium_is_none_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: int, taken: bool
) -> None:
    record = Record(str(tmp_path), "/m\x1b", 1, sequence=5)
    monkeypatch.setattr(already.running, "running", lambda: [(None, record)])
    monkeypatch.setattr(already.running, "told", lambda _, record: record)
    monkeypatch.setattr(already, "number_of", lambda _: now)
    if taken:
        assert already.mounted(tmp_path, MountOptions(), None, None, WHOLE) == record
        return
    with pytest.raises(UserError, match=r"^/m\\x1b is a mount of what was in") as failure:
        already.mounted(tmp_path, MountOptions(), None, None, WHOLE)
    assert "mountsafe unmount" in failure.value.hint


def test_no_mount_of_the_last_medium_lends_its_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(stat=lambda: status(stat.S_IFBLK), name="sdb")
    monkeypatch.setattr(already, "_of", lambda _: [(None, Record("/dev/sdb", "/m", 1, sequence=5))])
    monkeypatch.setattr(already, "_is_device", lambda fd, number: True)
    monkeypatch.setattr(asking, "lent", lambda runtime, deadline: 99)
    monkeypatch.setattr(already, "number_of", lambda _: 5)
    assert already.lent(device) == 99  # type: ignore[arg-type]
    monkeypatch.setattr(already, "number_of", lambda _: 6)
    assert already.lent(device) is None  # type: ignore[arg-type]
