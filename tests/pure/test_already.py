"""What a mount lends: a descriptor is taken only if it is of the device that was asked for."""

import os
import stat
from pathlib import Path

import pytest

from mountsafe.cli import already
from mountsafe.session import asking
from mountsafe.session.record import Record
from tests.conftest import missing

NUMBER = os.makedev(7, 251)


@pytest.mark.parametrize(
    ("lent", "taken"),
    [("device", True), ("other", False), ("file", False)],
)
def test_a_descriptor_that_is_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent: str, taken: bool) -> None:
    if os.geteuid() != 0:
        missing("root")
    for name, number in (("device", NUMBER), ("other", NUMBER + 1)):
        os.mknod(tmp_path / name, stat.S_IFBLK | 0o600, number)
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / lent, os.O_PATH)  # no device is opened: there need not be one
    monkeypatch.setattr(already, "_of", lambda source: [(None, Record("x", "/m", 1))])
    monkeypatch.setattr(asking, "lent", lambda runtime, deadline: fd)
    found = already.lent(tmp_path / "device")
    assert found == (fd if taken else None)
    if taken:
        os.close(fd)
    else:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
