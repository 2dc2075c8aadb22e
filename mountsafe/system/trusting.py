"""The file of trusted devices, changed: for `mountsafe trust` as root, and for the daemon that others ask."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.policy import trust
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Verdict
from mountsafe.system import inforce
from mountsafe.system.files import put


@dataclass(frozen=True, slots=True)
class Change:
    """The file as it was and as it is to be; `rules` is the folder that it belongs to."""

    rules: Path
    old: str
    new: str

    @property
    def place(self) -> Path:
        """The path of the file."""
        return self.rules / trust.NAME

    @property
    def changed(self) -> bool:
        """Whether another device is trusted, or one in another way."""
        return trust.trusted(self.old) != trust.trusted(self.new)

    def write(self) -> None:
        """Write it. Raises UserError (TARGET)."""
        self._put(self.new)

    def take_back(self) -> None:
        """Write what was there before, which may be no file."""
        self._put(self.old or None)

    def _put(self, text: str | None) -> None:
        try:
            put(self.place, None if text is None else text.encode(), 0o644)
        except OSError as error:
            raise _unwritable(self.place, error) from error


def to_trust(rules: Path, facts: Facts, verdict: Verdict) -> Change:
    """Return what trusts a device. Raises UserError (SOURCE) if there is nothing to know it by."""
    if "serial" not in trust.conditions(facts):
        hint = "Write a rule by hand if every device like it shall be trusted: /etc/mountsafe/policy.d."
        raise UserError(f"{facts.device} has no serial number to know it by", hint, ExitCode.SOURCE)
    old = _read(rules)
    return Change(rules, old, trust.with_rule(old, facts, verdict))


def to_untrust(rules: Path, facts: Facts) -> Change:
    """Return what takes the trust in a device back."""
    old = _read(rules)
    return Change(rules, old, trust.without_rule(old, facts))


def put_in_force(rules: Path, change: Callable[[], Change]) -> None:
    """Write what `change` returns, and the system rules after it where they are installed. Raises UserError.

    If that fails, nothing has changed.
    """
    with _alone(rules):
        changed = change()
        if not changed.changed:
            return
        changed.write()
        try:
            inforce.renew(rules)
        except OSError as error:
            changed.take_back()
            raise _unwritable(inforce.HOST, error) from error
        except BaseException:
            changed.take_back()
            raise


def _read(rules: Path) -> str:
    place = rules / trust.NAME
    try:
        text = place.read_text(encoding="utf-8")
        trust.trusted(text)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {place}: {error}", "Mend it, or move it away.", ExitCode.SOURCE) from error
    return text


@contextmanager
def _alone(rules: Path) -> Iterator[None]:
    """Hold a lock on the folder, so that no change is lost to another. Raises UserError (TARGET)."""
    try:
        rules.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(rules, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(rules, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _unwritable(place: Path, error: OSError) -> UserError:
    if isinstance(error, PermissionError):
        return NoRight.of(error.filename or place, error)
    hint = "Nothing has changed. Is its disk full, or read-only?"
    return UserError(f"cannot write to {error.filename or place}: {error.strerror}", hint, ExitCode.TARGET)
