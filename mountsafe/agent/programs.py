"""The appliance's programs, and how a request is refused."""

import subprocess

NO_PROGRAM = 127
NO_UDEV = {"DM_DISABLE_UDEV": "1"}  # libdm then makes its device nodes itself


class Refused(Exception):
    """A request that cannot be done, with its errno and words for the host."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number
        self.message = message


def run(*command: str) -> tuple[int, str]:
    """Run a program of the appliance and return its exit code and its words."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "LVM_SYSTEM_DIR": "/tmp/lvm",
        **NO_UDEV,
    }
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
    except OSError as error:
        return NO_PROGRAM, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def read_text(path: str) -> str:
    """Return the content of a small file of /sys, or ""."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
