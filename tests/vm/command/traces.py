"""What a command may leave behind: processes, mounts, files in runtime and temporary folders, sockets."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.command.stage import Person

PATIENCE = 60.0  # seconds for what ends behind a command: nothing is timed, and the machine may be busy
GUARD = "kill -s KILL 0"  # what ends a process group when its first process is gone, and itself a moment later


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def descendants(pid: int) -> Iterator[int]:
    """A process's children, their children and so on; parents first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def state(pid: int) -> str:
    """The letter of a process's state; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def command(pid: int) -> str:
    """The command line of a process, shortened."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError:
        return ""


def running() -> dict[int, str]:
    """Every living descendant of this process; orphans are its children, for it is a subreaper."""
    return {pid: command(pid) for pid in descendants(os.getpid()) if state(pid) not in ("", "Z", "X")}


def mounts(below: str) -> list[str]:
    """The mount points of this namespace; below a place if it is not our own namespace, where others mount too."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    if os.geteuid() != 0:
        lines = [line for line in lines if line.split()[4].startswith(below)]
    return sorted(f"{line.split()[4]} {line.partition(' - ')[2].split()[0]}" for line in lines)


def unescaped(point: str) -> str:
    """A mount point as /proc writes it, plain."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)


def contents(folder: Path) -> list[str]:
    """Every path below a folder, without looking into mounts."""
    found = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(top, name))]
        found += [os.path.join(top, name) for name in (*folders, *files)]
    return sorted(found)


@dataclass(frozen=True)
class Traces:
    """One look at everything."""

    processes: dict[int, str]
    mounts: list[str]
    files: list[str]
    sockets: list[str]

    @classmethod
    def taken(cls, person: Person) -> "Traces":
        """Look now."""
        shared = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
        strangers = [] if person.is_root else [p for folder in shared for p in folder.iterdir() if owned(p, person)]
        folders = [person.records, person.temporary, person.runtime, person.home / "mountsafe"]
        kept = {str(person.records)}  # the folder of all records stays
        sockets = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
        return cls(
            running(),
            mounts(str(person.home)),
            sorted({*map(str, strangers), *(path for folder in folders for path in contents(folder))} - kept),
            sorted(path for path in sockets if str(person.home) in path),
        )

    def assert_same(self, person: Person, seconds: float = 0.0) -> None:
        """Fail if anything has come since; wait for it to go for as long as `seconds`, and for guards in any case."""
        began = time.monotonic()
        while left := self.news(person):
            guards = [*left] == ["processes"] and all(GUARD in line for line in left["processes"])
            if time.monotonic() - began > (PATIENCE if guards else seconds):
                pytest.fail(f"left behind: {json.dumps(left, indent=2)}")
            time.sleep(0.05)

    def restore(self, person: Person) -> None:
        """Be rid of what has come since, so that the next test starts from nothing."""
        news = self.news(person)
        for line in news.get("processes", []):
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        for line in news.get("mounts", []):
            subprocess.run(["umount", "--lazy", unescaped(line.rpartition(" ")[0])], check=False)
        for name in reversed(news.get("files", [])):
            path = Path(name)
            with suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def news(self, person: Person) -> dict[str, list[str]]:
        """What has come since."""
        now = Traces.taken(person)
        news = {
            "processes": [f"{pid} {what}" for pid, what in now.processes.items() if pid not in self.processes],
            "mounts": list((Counter(now.mounts) - Counter(self.mounts)).elements()),
            "files": sorted(set(now.files) - set(self.files)),
            "sockets": sorted(set(now.sockets) - set(self.sockets)),
        }
        return {kind: found for kind, found in news.items() if found}


def owned(path: Path, person: Person) -> bool:
    """Whether something in a shared folder is a person's."""
    try:
        return path.lstat().st_uid == person.uid
    except OSError:
        return False
