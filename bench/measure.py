"""The instruments: clock, page cache, reader processes, memory of a process tree."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

TIMEOUT = 1200.0
READER = Path(__file__).resolve().with_name("reader.py")
TOOLS = (
    ["find", "--version"],
    ["ls", "--version"],
    ["tar", "--version"],
    ["cat", "--version"],
    ["cp", "--version"],
    ["rm", "--version"],
)


class BenchError(Exception):
    """A step that failed; the text is for the user."""


def run(*command: str | Path, env: dict[str, str] | None = None, check: bool = True, **more: Any) -> str:
    """Run a command and return what it printed; BenchError with its words if it fails, unless that is no matter."""
    done = subprocess.run(
        [os.fspath(word) for word in command],
        stdin=more.pop("stdin", subprocess.DEVNULL),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=None if env is None else {**os.environ, **env},
        **more,
    )
    if done.returncode != 0 and check:
        raise BenchError(f"{' '.join(map(str, command))} failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return str(done.stdout)


def timed(command: list[str], folder: Path) -> float:
    """Return how long a command takes in a folder, in seconds. Its output goes nowhere."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed with {done.returncode} in {folder}")
    return took


def empty_caches(image: Path) -> None:
    """Leave nothing of the image or of any mount in memory. The programs that are timed are read again at once."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    fd = os.open(image, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    warm_tools()


def warm_tools() -> None:
    """Have the timed programs in the page cache."""
    for command in TOOLS:
        run(*command)


def touch_memory() -> None:
    """Write to most of the free memory once: a machine that is itself virtual may be given it only then, slowly."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            memory = bytearray(int(line.split()[1]) * 1024 * 7 // 10)
            memory[::4096] = bytes(len(memory[::4096]))


def fill_cache(image: Path) -> None:
    """Have the whole image in the page cache."""
    buffer = bytearray(4 << 20)
    with image.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


class Reader:
    """A process of reader.py: started, then told to go."""

    running: ClassVar[set["Reader"]] = set()

    def __init__(self, *arguments: str | int | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", READER, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        Reader.running.add(self)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def go(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for what it found."""
        answer, _ = self._process.communicate(timeout=TIMEOUT)
        Reader.running.discard(self)
        if self._process.returncode != 0:
            raise BenchError(f"a reader failed: {' '.join(map(str, self._process.args[4:]))}")  # type: ignore[index]
        result: dict[str, Any] = json.loads(answer)
        return result

    @classmethod
    def end_all(cls) -> None:
        """End those that an error left: they would keep their mount busy."""
        while cls.running:
            process = cls.running.pop()._process
            process.kill()
            process.communicate()


def read(*arguments: str | int | Path) -> dict[str, Any]:
    """Run one reader."""
    reader = Reader(*arguments)
    reader.go()
    return reader.result()


# --- memory ---------------------------------------------------------------------------------------------------------
def tree_of(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def pss(pids: list[int]) -> float:
    """Return the memory of processes in MiB: what is shared with others counts in proportion."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def program_of(pid: int) -> str:
    """Return the name of a process's program, or nothing if it is gone."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""
