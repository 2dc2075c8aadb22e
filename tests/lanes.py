"""All tests, or those of some groups, in two lanes side by side, for much of their time they wait.

    python -m tests.lanes GROUP...

A lane is a pytest of its own, one file after the other. What must not run beside each other shares the first lane. Its
words are seen at once, those of the second when both have ended. Only the standard library and pytest.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parent.parent
# The daemon claims every loop device of this kernel, and hostile images are watched for what the kernel says: nobody
# else may attach or mount one meanwhile. The rest is here for the balance.
FIRST = (
    "tests/pure",
    "tests/hotplug",
    "tests/install",
    "tests/hostile",
    "tests/vm/command/test_check.py",
    "tests/vm/command/test_containers.py",
    "tests/vm/command/test_device.py",
    "tests/vm/command/test_doctor.py",
    "tests/vm/command/test_encrypted.py",
    "tests/vm/command/test_sandbox.py",
    "tests/vm/command/test_write.py",
    "tests/vm/command/test_write_faults.py",
    "tests/vm/test_containers.py",
    "tests/vm/test_corpus.py",
)


def files(groups: Sequence[str]) -> list[str]:
    """Return the test files of groups: each a file or a folder of the checkout."""
    found = []
    for group in groups:
        place = REPOSITORY / group
        paths = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
        assert paths, f"{group}: no tests"
        found += [str(path.relative_to(REPOSITORY)) for path in paths]
    return found


def lanes(groups: Sequence[str]) -> list[list[str]]:
    """Return the files of each lane."""
    first, second = [], []
    for name in files(groups):
        (first if name.startswith(FIRST) else second).append(name)
    return [lane for lane in (first, second) if lane]


def main(groups: Sequence[str]) -> int:
    """Run them; return the code of what failed."""
    running: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: FrameType | None) -> None:
        for process in running if number == signal.SIGTERM else ():  # a terminal's SIGINT reaches all of us
            process.send_signal(signal.SIGINT)  # at which pytest clears up

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with tempfile.TemporaryFile() as later:
        for lane in lanes(groups):
            output = later if running else None
            command = [sys.executable, "-m", "pytest", *lane]
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output))
        codes = [process.wait() for process in running]
        later.seek(0)
        shutil.copyfileobj(later, sys.stdout.buffer)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
