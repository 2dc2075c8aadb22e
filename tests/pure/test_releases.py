"""What releases of Linux and of libguestfs do differently, done to the code that must bear both."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from mountsafe import sandbox, wire
from mountsafe.agent.tree import Tree


@pytest.mark.parametrize(("number", "left"), [(errno.ENODATA, [(b"user.b", b"2")]), (errno.EOPNOTSUPP, [])])
def test_an_attribute_that_is_listed_and_not_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, left: list[tuple[bytes, bytes]]
) -> None:
    """hfsplus of Linux 6.12 does that with each entry."""

    def answer(fd: int, name: str) -> bytes:
        if name == "user.a":
            raise OSError(number, os.strerror(number))
        return b"2"

    monkeypatch.setattr(os, "listxattr", lambda fd: ["user.a", "user.b"])
    monkeypatch.setattr(os, "getxattr", answer)
    (tmp_path / "file").touch()
    assert wire.unpack_xattrs(Tree(str(tmp_path), "xfs", False, []).xattrs(b"file")) == left


def test_an_attribute_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, name: str) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "listxattr", lambda fd: ["user.a"])
    monkeypatch.setattr(os, "getxattr", fail)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Tree(str(tmp_path), "xfs", False, []).xattrs(b"file")


@pytest.mark.parametrize("said", ["\ufffd[ 0.1] \ud800\n", b"\xff[ 0.1] \n"])
def test_the_console_is_passed_on_as_text_and_as_bytes(said: str | bytes, capfd: pytest.CaptureFixture[str]) -> None:
    from mountsafe.appliance.guest import Guest  # which imports guestfs: not all of these tests need that

    Guest._console(0, 0, said, [])
    assert "[ 0.1] " in capfd.readouterr().err


def test_in_a_box_nothing_looks_for_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import of trio does, by programs (gcc, ldconfig) that want a temporary file."""
    (tmp_path / "asks.py").write_text("import ctypes.util\ndef main(): print(ctypes.util.find_library('c'))\n")
    monkeypatch.setattr(sandbox, "INSIDE", str(tmp_path))
    done = subprocess.run(sandbox.python("asks"), capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
