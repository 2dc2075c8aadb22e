"""The results of checking a medium's file systems: what the guest told, in words and codes of the host's."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mountsafe import codec, distribution, wire
from mountsafe.checkers import CHECKERS, Checker
from mountsafe.errors import ExitCode
from mountsafe.medium.volumes import Volume
from mountsafe.session.record import Missing
from mountsafe.text import printable

MAX_LINES = 400  # of what a checker said
MAX_LINE = 300  # characters of one


class Outcome(StrEnum):
    """What came of checking one file system."""

    CLEAN = "clean"
    ERRORS = "errors"
    REPAIRED = "repaired"
    FAILED = "failed"  # its checker could not look at it
    MISSING = "checker-missing"
    NONE = "no-checker"
    TIME = "timeout"
    LOST = "machine-lost"  # the virtual machine died, or broke a rule


OUTCOMES = {
    wire.CheckOutcome.CLEAN: Outcome.CLEAN,
    wire.CheckOutcome.ERRORS: Outcome.ERRORS,
    wire.CheckOutcome.REPAIRED: Outcome.REPAIRED,
    wire.CheckOutcome.FAILED: Outcome.FAILED,
    wire.CheckOutcome.MISSING: Outcome.MISSING,
    wire.CheckOutcome.NONE: Outcome.NONE,
    wire.CheckOutcome.TIME: Outcome.TIME,
}
CODES = {
    Outcome.CLEAN: ExitCode.OK,
    Outcome.REPAIRED: ExitCode.OK,
    Outcome.ERRORS: ExitCode.DAMAGED,
    Outcome.FAILED: ExitCode.UNCHECKED,
    Outcome.NONE: ExitCode.UNCHECKED,
    Outcome.MISSING: ExitCode.DEPENDENCY,
    Outcome.TIME: ExitCode.DEADLINE,
    Outcome.LOST: ExitCode.APPLIANCE,
}
JOURNALS = {
    wire.MountState.CLEAN: "",
    wire.MountState.RECOVERED: "the changes in its journal were taken into account",
    wire.MountState.SKIPPED: "the changes in its journal could not be taken into account, and may be all that is wrong",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of checking a volume. `code`: the checker's exit code, None if it has none. `why`: in words of ours.

    `words`: the checker's, fit to be shown. `note`: what is to be known of that check.
    """

    volume: Volume
    outcome: Outcome
    code: int | None = None
    words: tuple[str, ...] = ()
    why: str = ""
    note: str = ""

    @classmethod
    def without_checker(cls, volume: Volume) -> "Result":
        """Return what is told of a volume whose type has no checker."""
        return cls(volume, Outcome.NONE, why=f"there is no program that checks {volume.fstype}")

    @property
    def checker(self) -> str:
        """The program that checks its type; "" if there is none."""
        found = CHECKERS.get(self.volume.fstype)
        return found.program if found else ""

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        volume = self.volume
        return {
            "name": volume.name,
            "device": volume.device,
            "fstype": volume.fstype,
            "label": volume.label,
            "uuid": volume.uuid,
            "outcome": self.outcome.value,
            "why": self.why,
            "checker": self.checker,
            "checker_exit_code": self.code,
            "words": list(self.words),
            "note": self.note,
        }


@dataclass(slots=True)
class Checks:
    """What came of it; `size` is that of the disk in it, in bytes. `missing`: what stayed locked."""

    size: int = 0
    results: list[Result] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What `--json` shows."""
        missing = [codec.plain(each) for each in self.missing]
        return {"checked": [each.facts() for each in self.results], "missing": missing}

    def code(self) -> ExitCode:
        """Return the exit code of all of it: errors first, then what was not checked."""
        codes = [CODES[each.outcome] for each in self.results] + [each.code for each in self.missing]
        if ExitCode.DAMAGED in codes:
            return ExitCode.DAMAGED
        wrong = [code for code in codes if code != ExitCode.OK]
        if not wrong:
            return ExitCode.OK
        return wrong[0] if len(wrong) == len(codes) else ExitCode.PARTIAL


def late(seconds: int) -> str:
    """Return why there is no outcome when the time is over."""
    return f"its checker was not done in {seconds} s"


def told_of(volume: Volume, checker: Checker, told: wire.Checked, seconds: int) -> Result:
    """Return what the guest told, in words of ours: a code of its own, and what the checker said."""
    outcome = OUTCOMES[told.outcome]
    note = "; ".join(filter(None, (checker.partial, JOURNALS[told.journal])))
    if outcome is Outcome.MISSING:
        hint = f"{checker.package} is not installed: {distribution.install(checker.package)}"
        return Result(volume, outcome, why=f"{hint}; then mountsafe appliance build")
    if outcome is Outcome.NONE:
        return Result.without_checker(volume)
    why = {
        Outcome.TIME: late(seconds),
        Outcome.FAILED: f"{checker.program} could not look at it: {_ended(told.code)}",
    }.get(outcome, "")
    return Result(volume, outcome, told.code, lines(told.words), why, note)


def _ended(code: int) -> str:
    if code < 0:
        return f"it was ended by signal {-code}" + (" (for want of memory?)" if code == -9 else "")
    return f"it ended with code {code}"


def lines(untrusted_words: bytes) -> tuple[str, ...]:
    """Return what a checker said, as lines that are fit to be shown: the first ones, and the last."""
    found = [printable(line, MAX_LINE) for line in untrusted_words.split(b"\n") if line.strip()]
    if len(found) > MAX_LINES:
        found = [*found[: MAX_LINES // 2], "...", *found[-(MAX_LINES // 2 - 1) :]]
    return tuple(found)
