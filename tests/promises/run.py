"""`./dev promises [N...]`: break each promise of SECURITY.md on purpose, and see that the test named there fails.

Each break is made in a copy of the checkout. Some tests need root, a virtual machine, or some minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.promises.breaks import BREAKS

REPOSITORY = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^\| (\d+) \| .* \| (tests/\S+::\S+) \|$", re.MULTILINE)
_WHY = re.compile(r"^FAILED \S+(?: - )?(.*)$", re.MULTILINE)  # in pytest's short summary
PATIENCE = 1800.0  # seconds: a test that hangs where its promise is broken holds nothing either
FAILED = 1  # pytest's exit code for a test that failed; others say that it could not be run


def promises() -> dict[int, str]:
    """Return the test that holds each promise."""
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    return {int(number): test for number, test in _ROW.findall(text)}


def copy(target: Path) -> None:
    """Copy what belongs to the checkout, and what git does not know yet."""
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def broken(number: int, checkout: Path) -> None:
    """Break a promise in a copy. Raises ValueError if the code is not as the break expects it."""
    for change in BREAKS[number]:
        path = checkout / "mountsafe" / change.file
        text = path.read_text(encoding="utf-8")
        if change.old not in text:
            raise ValueError(f"promise {number}: {change.file} has no {change.old!r}")
        path.write_text(text.replace(change.old, change.new), encoding="utf-8")


def tested(number: int, *tests: str) -> str:
    """Return how tests fail in a copy in which a promise is broken, 0 for none; "" if they pass.

    Raises RuntimeError if they cannot run, TimeoutExpired.
    """
    with tempfile.TemporaryDirectory(prefix="mountsafe-promise-", dir="/var/tmp") as name:
        checkout = Path(name)
        checkout.chmod(0o755)
        copy(checkout)
        if number:
            broken(number, checkout)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(["-x"] * bool(number)), *tests]
        environment = {**os.environ, "PYTHONPATH": name, "CI": "true"}
        patience = PATIENCE if number else None  # without a break they may be all of them
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=patience)
    passed = done.returncode == 0
    if done.returncode > FAILED or passed == bool(number):
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-2000:])
    if done.returncode > FAILED:
        raise RuntimeError(f"pytest ended with {done.returncode}")
    why = _WHY.search(done.stdout)
    if not passed and why is None:  # in a fixture, say: so nothing was tested
        sys.stderr.write(done.stdout[-4000:])
        raise RuntimeError("the test could not be run")
    return "" if why is None else why[1] or "pytest does not say why"


def say(words: str) -> None:
    """Tell the person."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main() -> int:
    """Run with the numbers of promises; all if there are none."""
    held = promises()
    parser = argparse.ArgumentParser(prog="./dev promises", description="Break promises, and see that tests fail.")
    parser.add_argument("number", nargs="*", type=int, help=f"of a promise, 1 to {len(held)} (default: all)")
    chosen = parser.parse_args().number or sorted(held)
    if unknown := set(chosen) - set(held):
        parser.error(f"there is no promise {min(unknown)}")
    if tested(0, *(held[number] for number in chosen)):
        say("some of these tests fail although nothing is broken")
        return 1
    say("none is broken: all their tests pass")
    unheld = []
    for number in chosen:
        began = time.monotonic()
        why = tested(number, held[number])
        told = "its test fails" if why else "ITS TEST PASSES"
        say(f"promise {number:2} is broken: {told:<16}{time.monotonic() - began:5.0f} s  {held[number]}")
        say(f"  {why}")  # so that a person sees that it fails for what it tests
        unheld += [number] * (not why)
    if unheld:
        say(f"not held: {', '.join(map(str, unheld))}")
    return 1 if unheld else 0


if __name__ == "__main__":
    raise SystemExit(main())
