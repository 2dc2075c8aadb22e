"""Run the appliance's programs, and refuse requests."""

import subprocess
from collections.abc import Callable, Sequence

NO_PROGRAM = 127
Program = Callable[..., tuple[int, str]]  # runs a command, as `run` does
NO_UDEV = {"DM_DISABLE_UDEV": "1"}  # libdm then makes its device nodes itself


class Refused(Exception):
    """A request that cannot be done, with its errno and words for the host."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number
        self.message = message


def run(*command: str) -> tuple[int, str]:
    """Run a program of the appliance and return its exit code and its words."""
    return run_all([command])[0]


def run_all(commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Run programs beside each other; return the exit code and the words of each."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "LVM_SYSTEM_DIR": "/tmp/lvm",
        **NO_UDEV,
    }
    nothing, pipe, same = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    started: list[subprocess.Popen[bytes] | str] = []
    for command in commands:
        try:
            started.append(subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=same, env=environment))
        except OSError as error:
            started.append(f"{command[0]}: {error.strerror}")
    return [(NO_PROGRAM, each) if isinstance(each, str) else _ended(each) for each in started]


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    words, _ = process.communicate()
    return process.returncode, words.decode("utf-8", "replace").strip()


def read_text(path: str) -> str:
    """Return the content of a small file of /sys, or ""."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
