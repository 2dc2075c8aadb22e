"""A running daemon, and what the tests expect of it."""

import signal
import subprocess
import sys
from pathlib import Path

from images import images
from tests.hotplug.machine import DEADLINE, USER, Machine, wait_for

MEDIA = f"/run/media/{USER}"
RULES = """
[[rule]]
verdict = "refuse"
bus = "loop"
fstype = "jfs"
reason = "nobody has that"

[[rule]]
verdict = "sandbox"
bus = "loop"
fstype = "romfs"
hide = true

[[rule]]
verdict = "sandbox"
bus = "loop"
"""


class Daemon:
    """A running daemon. It logs to a file. `options`: more of its command line."""

    def __init__(self, machine: Machine, log: Path, *options: str) -> None:
        self.machine = machine
        self.log = log
        self._options = options
        self._starts = 0
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.machine.command(sys.executable, "-m", "mountsafe", "daemon", "--user", USER, *self._options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._starts += 1
        self.wait_for_words("watching", self._starts)

    def words(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_words(self, words: str, times: int = 1) -> None:
        wait_for(lambda: self.process.poll() is not None or self.words().count(words) >= times, words)
        assert self.process.poll() is None, self.words()

    def mounts(self) -> list[str]:
        lines = self.machine.run("cat", "/proc/self/mountinfo").ok().out.splitlines()
        found = [line.split(" ")[4].replace("\\040", " ") for line in lines if " fuse.mountsafe " in line]
        return sorted(point for point in found if point.startswith(MEDIA))

    def wait_for_mounts(self, *names: str) -> None:
        expected = sorted(f"{MEDIA}/{name}" for name in names)
        instead = lambda: f"there is {self.mounts()}, log {self.words()}"  # noqa: E731
        wait_for(lambda: self.mounts() == expected, str(expected), instead)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=DEADLINE)


def label(name: str) -> str:
    (volume,) = images.volumes(name)
    return shown(volume)


def shown(volume: images.Volume) -> str:
    return volume.label.decode() or volume.filesystem
