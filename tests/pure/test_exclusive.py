"""Who writes to a medium is the only one who does, and others are told so by what they understand."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium import exclusive
from mountsafe.medium.exclusive import open_for_writing
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium, open_medium

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a.img"
    made.write_bytes(bytes(SIZE))
    return made


@pytest.fixture
def medium(path: Path) -> Iterator[Medium]:
    made = open_medium(path, Format.RAW)
    yield made
    os.close(made.fd)


def refused(medium: Medium, words: str, code: ExitCode = ExitCode.SOURCE) -> None:
    with pytest.raises(UserError, match=words) as failure:
        open_for_writing(medium)
    assert failure.value.code is code
    assert failure.value.hint


def test_it_is_opened_for_reading_and_writing_beside_the_one_that_stays_read_only(medium: Medium) -> None:
    fd = open_for_writing(medium)
    os.pwrite(fd, b"x", 5)
    assert os.pread(medium.fd, 1, 5) == os.pread(fd, 1, 5) == b"x"
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.pwrite(medium.fd, b"x", 5)
    os.close(fd)


def test_a_second_one_is_told_of_the_first_until_that_is_gone(medium: Medium) -> None:
    """Whatever process has the descriptor last: it is passed on."""
    fd = open_for_writing(medium)
    refused(medium, "mounted for writing already")
    passed = os.dup(fd)
    os.close(fd)
    refused(medium, "mounted for writing already")
    os.close(passed)
    os.close(open_for_writing(medium))


def test_one_that_came_to_nothing_leaves_no_lock(medium: Medium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "_is_locked", lambda fd, at: True)
    refused(medium, "in use")
    monkeypatch.undo()
    os.close(open_for_writing(medium))


class Qemu:
    """A program of QEMU's that has an image open, as long as it is used."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("read 0 512\n")
        self._process.stdin.flush()
        while "read 512/512" not in self._process.stdout.readline():
            assert self._process.poll() is None

    def __exit__(self, *_: object) -> None:
        self._process.communicate("quit\n", timeout=30)


def test_who_writes_by_qemu_is_told_apart(medium: Medium, path: Path, program: Callable[[str], str]) -> None:
    qemu_io = program("qemu-io")
    with Qemu(qemu_io, "-f", "raw", str(path)):
        refused(medium, "another program writes to it")
    with Qemu(qemu_io, "-r", "-f", "raw", str(path)):  # who reads minds nobody
        os.close(open_for_writing(medium))
    os.close(open_for_writing(medium))


def test_qemu_hears_of_us(medium: Medium, path: Path, program: Callable[[str], str]) -> None:
    fd = open_for_writing(medium)
    command = [program("qemu-io"), "-f", "raw", "-c", "write 0 512", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "lock" in done.stderr
    os.close(fd)
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_a_path_that_leads_elsewhere_by_now_is_not_written_to(medium: Medium, path: Path) -> None:
    path.rename(path.with_name("other"))
    path.write_bytes(b"something else")
    refused(medium, "changed while it was opened")
    assert path.read_bytes() == b"something else"


def test_what_cannot_be_written_is_said_before_anything_is_opened(medium: Medium) -> None:
    refused(replace(medium, format=Format.QCOW2), "qcow2 image is only read")


def test_a_file_behind_a_loop_device_is_in_use(medium: Medium, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys = path.parent / "sys"
    for name, text in {"loop0": "/nowhere", "loop3": f"{path} (deleted)"}.items():
        (sys / name / "loop").mkdir(parents=True)
        (sys / name / "loop" / "backing_file").write_text(f"{text}\n")
    monkeypatch.setattr(exclusive, "LOOPS", sys)
    refused(medium, "in use by this machine's kernel, as /dev/loop3")
