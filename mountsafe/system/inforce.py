"""The system rules of a policy, put in force: what `policy install` does, and what changed trust repeats."""

import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.policy import files, modprobe
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Policy
from mountsafe.system import units
from mountsafe.system.files import Files
from mountsafe.text import printable

HOST = Path("/")
WORDS = 500  # characters of what went wrong


def wanted(rules: Path, root: Path, strict: Collection[RiskClass], harmless: bool) -> dict[str, str]:
    """Return the generated files; with `harmless` only if they hide nothing that this machine uses."""
    from mountsafe.system import generated  # loads libudev, which few verbs need

    policy = readable(rules)
    exempt = generated.exemptions(root)
    if harmless:
        generated.require_harmless(policy, exempt)
        generated.require_unused(strict)
    return generated.files(policy, exempt, strict)


def readable(rules: Path) -> Policy:
    """Return the policy. Raises UserError if it is broken."""
    policy = files.load(rules)
    if policy.broken:
        hint = "mountsafe policy explain DEVICE says what happens until it is mended."
        raise UserError(f"the policy cannot be read: {policy.broken}", hint, ExitCode.SOURCE)
    return policy


def strict_of(made: Files, chosen: list[RiskClass] | None = None) -> list[RiskClass]:
    """Return the classes that were chosen, or those that the installed file blocks."""
    if chosen:
        return chosen
    with suppress(OSError):
        return modprobe.classes_of((made.root / "etc/modprobe.d" / modprobe.NAME).read_text(encoding="utf-8"))
    return []


def reload_udev() -> bool:
    """Have udev read its rules anew; return whether it did."""
    return _udevadm("control", "--reload")


@contextmanager
def rights() -> Iterator[None]:
    """Raise NoRight in the place of PermissionError."""
    try:
        yield
    except PermissionError as error:
        raise NoRight.of(error.filename, error) from error


def put(rules: Path, made: Files) -> None:
    """Put the rules of this machine in place. Raises UserError if they would hide what it uses."""
    made.carry_out(made.plan_install(wanted(rules, HOST, strict_of(made), harmless=True)))
    reload_udev()


def renew(rules: Path) -> None:
    """Make the rules anew where they are installed. Raises UserError if they would hide what this machine uses.

    The daemon is root without root's right to every folder: polkit's may be polkit's own. The service manager does it.
    """
    made = Files()
    try:
        if made.installed():
            put(rules, made)
    except PermissionError:
        if not (run := units.once()):
            raise
        _have_installed(run, rules)


def _have_installed(run: Sequence[str], rules: Path) -> None:
    """Have somebody else install the rules. Raises UserError."""
    path = os.fspath(Path(__file__).resolve().parent.parent.parent)
    code = f"import sys; sys.path.insert(0, {path!r}); from mountsafe.__main__ import run; run()"
    command = [*run, sys.executable, "-I", "-c", code, "policy", "install", "--rules", os.fspath(rules)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        words = printable(done.stderr.strip().splitlines()[0] if done.stderr.strip() else b"", WORDS)
        raise UserError(f"the rules of udev and polkit stay as they were: {words}", "sudo mountsafe policy install")


def look_again(names: Collection[str]) -> None:
    """Have udev's rules run again for block devices."""
    _udevadm("trigger", "--action=change", *(f"/sys/class/block/{name}" for name in names))


def _udevadm(*words: str) -> bool:
    with suppress(OSError):
        return subprocess.run(["udevadm", *words], capture_output=True, check=False).returncode == 0
    return False
