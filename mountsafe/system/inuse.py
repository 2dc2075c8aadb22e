"""Devices that this machine uses now: what is mounted, swapped to, or part of a device that is made of others."""

import os
import stat
from pathlib import Path

from mountsafe.mountinfo import mounted
from mountsafe.text import shown_path


class InUse:
    """A snapshot of /proc and /sys. Device numbers are (major, minor)."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._sys = sys
        self._by: dict[tuple[int, int], str] = {}
        self._read_mounts(proc / "self/mountinfo")
        self._read_swaps(proc / "swaps")

    def why(self, name: str, number: tuple[int, int]) -> str:
        """Return what uses a device, fit to be shown after "is"; "" if nothing does. `name` as in /sys/class/block."""
        try:
            holders = sorted(os.listdir(self._sys / "class/block" / name / "holders"))
        except OSError:
            holders = []
        return self._by.get(number, f"part of {', '.join(holders)}" if holders else "")

    def _read_mounts(self, path: Path) -> None:
        for each in mounted(path):
            words = f"mounted on {shown_path(each.point)}"
            if each.number[0]:
                self._by.setdefault(each.number, words)
            else:  # btrfs and others make up a number; the source is a device all the same
                self._remember(each.source, words)

    def _read_swaps(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            self._remember(line.split()[0], "used as swap")

    def _remember(self, device: str, words: str) -> None:
        if not device.startswith("/"):
            return
        try:
            status = os.stat(device)
        except OSError:
            return
        if stat.S_ISBLK(status.st_mode):
            self._by.setdefault((os.major(status.st_rdev), os.minor(status.st_rdev)), words)
