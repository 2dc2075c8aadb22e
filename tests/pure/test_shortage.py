"""What a host allows too little of: taken where it may be, and named where not."""

import errno
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mountsafe import shortage
from mountsafe.errors import ExitCode
from mountsafe.shortage import NEEDS, Need, explained

# For a process of its own: the limits of this one could not be raised again.
ASK = """
import resource, sys
from mountsafe import shortage
from mountsafe.errors import UserError
shortage.raise_limits()
print(resource.getrlimit(int(sys.argv[1]))[0])
try:
    shortage.require()
except UserError as error:
    print(int(error.code), error.message, error.hint)
"""


def limited(number: int, soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(number, (soft, hard))


def asked(repository: Path, need: Need, soft: int, hard: int) -> list[str]:
    command = [sys.executable, "-c", ASK, str(need.number)]
    done = subprocess.run(
        command, cwd=repository, preexec_fn=limited(need.number, soft, hard), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.letter)
def test_a_soft_limit_is_raised_as_far_as_it_is_needed(repository: Path, need: Need) -> None:
    _, hard = resource.getrlimit(need.number)
    small = 100 << 20 if need.scale > 1 else 20
    assert asked(repository, need, small, hard) == [str(need.least)]


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.letter)
def test_a_hard_limit_is_named(repository: Path, need: Need) -> None:
    small = 100 << 20 if need.scale > 1 else 20
    soft, words = asked(repository, need, small, small)
    assert soft == str(small)
    assert words.startswith(f"5 {small // need.scale} {need.what} are allowed here")
    assert f"ulimit -{need.letter}" in words


@pytest.mark.parametrize("verb", [["mount", "x.img", "dir"], ["inspect", "x.img"]])
def test_the_command_says_so_before_anything_is_made(repository: Path, tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "x.img").write_bytes(b"x" * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "mountsafe", *verb],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin:/usr/sbin"},
        preexec_fn=limited(resource.RLIMIT_NOFILE, 20, 20),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.DEPENDENCY
    assert done.stderr.startswith("mountsafe: 20 open files are allowed here, and 256 are needed\n")
    assert not (tmp_path / "dir").exists()


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (OSError(errno.ENOSPC, "x", "/run/x"), "/run/x: there is no space left", ExitCode.FAILURE),
        (OSError(errno.EROFS, "x", b"/etc/x"), "/etc/x: its file system is read-only", ExitCode.FAILURE),
        (OSError(errno.EMFILE, "x"), "too many files are open", ExitCode.DEPENDENCY),
        (MemoryError(), "there is not enough memory", ExitCode.DEPENDENCY),
        (RuntimeError("can't start new thread"), "a resource cannot be had now, a process perhaps", 5),
    ],
)
def test_what_ran_short_is_named(error: BaseException, words: str, code: int) -> None:
    told = explained(error)
    assert told is not None
    assert (told.message, int(told.code)) == (words, code)
    assert told.hint


def test_other_errors_are_not_explained_away() -> None:
    for error in (OSError(errno.EIO, "x"), RuntimeError("x"), ValueError()):
        assert shortage.explained(error) is None
