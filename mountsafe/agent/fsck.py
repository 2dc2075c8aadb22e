"""Check a file system with its type's own checker, which does not write unless it is told to repair."""

import errno
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from mountsafe import wire
from mountsafe.agent.mounting import MOUNT_AS, READ_ONLY, CowLayer, attempt
from mountsafe.agent.programs import Refused, run
from mountsafe.checkers import CHECKERS, Checker
from mountsafe.wire import CheckOutcome, MountState

KEPT = wire.MAX_CHECK_WORDS // 2 - 64  # bytes of the beginning of what is said, and as many of its end
MOUNTED = "/run/mountsafe/replayed"  # where a journal's replay mounts
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
KILL_PATIENCE = 5.0  # seconds for a program that was killed: one that waits for its disk does not end


class Said(NamedTuple):
    """What a program came to: its exit code, or None if it was not done in time; what it said, cut."""

    code: int | None
    words: str


def said_by(command: Sequence[str], until: float) -> Said:
    """Run a program until a time of `time.monotonic`. Raises OSError if it is not there."""
    pipe, nothing, same = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
    process = subprocess.Popen(
        command, stdin=nothing, stdout=pipe, stderr=same, env=ENVIRONMENT, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        words, done = _heard(output.fileno(), until)
    try:
        code: int | None = process.wait(max(0.0, until - time.monotonic()) if done else 0.0)
    except subprocess.TimeoutExpired:
        code = None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_PATIENCE)
    return Said(code, cleaned(words))


def _heard(fd: int, until: float) -> tuple[bytes, bool]:
    """Read until the end or the time; return the beginning and the end of it, and whether that was the end."""
    head, tail, dropped = b"", b"", False
    while select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
        if not (data := os.read(fd, 65536)):
            return head + (b"\n...\n" if dropped else b"") + tail, True
        room = KEPT - len(head)
        head += data[:room]
        tail += data[room:] if room >= 0 else data
        dropped = dropped or len(tail) > KEPT
        tail = tail[-KEPT:]
    return head + (b"\n...\n" if dropped else b"") + tail, False


def cleaned(words: bytes) -> str:
    """Return what was said without what moves a cursor, each line on its own, none empty."""
    text = words.decode("utf-8", "replace").replace("\b", "")
    return "\n".join(line.rstrip() for line in re.split("[\r\n]+", text) if line.strip())


def is_there(program: str) -> bool:
    """Whether the appliance has a program."""
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in ENVIRONMENT["PATH"].split(":"))


def check(device: str, fstype: bytes, seconds: float, repair: bool, layer: CowLayer) -> wire.Checked:
    """Check a file system, and where `repair` is asked for, and it has errors, write to it and check it again.

    A journal's changes are replayed into the layer first, where the checker leaves them out. Raises Refused if it is to
    be repaired and cannot be.
    """
    checker = CHECKERS.get(os.fsdecode(fstype))
    if checker is None:
        return wire.Checked(CheckOutcome.NONE, MountState.CLEAN, 0, b"")
    if not is_there(checker.program):
        return wire.Checked(CheckOutcome.MISSING, MountState.CLEAN, 0, b"")
    check_ = _Check(checker, fstype, device, time.monotonic() + seconds)
    try:
        found = check_.look_with_journal(layer)
        if repair and (found.outcome == CheckOutcome.ERRORS or found.journal != MountState.CLEAN):
            found = check_.repair(found)
    finally:
        layer.stop()
    return found


class _Check:
    """A check of one file system, until a time of `time.monotonic`."""

    def __init__(self, checker: Checker, fstype: bytes, device: str, until: float) -> None:
        self._checker = checker
        self._fstype = fstype
        self._device = device
        self._until = until

    def look(self, device: str, commands: Sequence[Sequence[str]]) -> wire.Checked:
        """Look with each command in turn, as far as nothing is found."""
        outcome, code, words = CheckOutcome.CLEAN, 0, ""
        for command in commands:
            said = said_by([*command, device], self._until)
            words = "\n".join(filter(None, (words, said.words)))
            outcome, code = outcome_of(self._checker, said), said.code or 0
            if outcome != CheckOutcome.CLEAN:
                break
        return wire.Checked(outcome, MountState.CLEAN, code, _bounded(words))

    def look_with_journal(self, layer: CowLayer) -> wire.Checked:
        """Look, and once more with a journal's changes, if there are some."""
        looks = [command for command in self._checker.looks if is_there(command[0])]
        found = self.look(self._device, looks)
        if not self._checker.unreplayed or not re.search(self._checker.unreplayed, found.words.decode()):
            return found
        try:
            device = layer.start()
            if self._replays(device):
                return self.look(device, looks)._replace(journal=MountState.RECOVERED)
        except Refused:
            pass  # without memory for a layer what was found stands, and it is said
        return found._replace(journal=MountState.SKIPPED)

    def _replays(self, device: str) -> bool:
        """Have the journal's changes written to a device; whether that was done."""
        if self._checker.replay:
            return said_by([*self._checker.replay, device], self._until).code in (0, 1)
        os.makedirs(MOUNTED, exist_ok=True)
        kind, options = MOUNT_AS.get(self._fstype, [(os.fsdecode(self._fstype), "")])[0]
        mounted = not attempt(device, MOUNTED, kind, READ_ONLY, options, self._run).complaint
        return mounted and run("umount", "-n", MOUNTED)[0] == 0

    def _run(self, *command: str) -> tuple[int, str]:
        """Run a program as `programs.run` does, until the time is over."""
        said = said_by(command, self._until)
        return (-signal.SIGKILL if said.code is None else said.code), said.words

    def repair(self, found: wire.Checked) -> wire.Checked:
        """Have errors that were found repaired, on the medium."""
        if not self._checker.repair:
            raise Refused(errno.EOPNOTSUPP, self._checker.no_repair)
        try:
            os.close(os.open(self._device, os.O_RDWR))
        except OSError as error:
            raise Refused(error.errno or errno.EROFS, "the medium is read-only") from error
        if not self._checker.replay and found.journal != MountState.CLEAN:
            self._replays(self._device)
        said = said_by([*self._checker.repair, self._device], self._until)
        if said.code is None:
            return wire.Checked(CheckOutcome.TIME, MountState.CLEAN, 0, _bounded(said.words))
        after = self.look(self._device, self._checker.looks[:1])
        if after.outcome == CheckOutcome.CLEAN:
            return after._replace(outcome=CheckOutcome.REPAIRED, code=said.code, words=_bounded(said.words))
        return after._replace(words=_bounded(f"{said.words}\n{after.words.decode()}"))


def outcome_of(checker: Checker, said: Said) -> int:
    """Return what the end of one of a checker's commands says."""
    if said.code is None:
        return CheckOutcome.TIME
    if checker.failed and re.search(checker.failed, said.words):
        return CheckOutcome.FAILED
    if checker.wrong and re.search(checker.wrong, said.words):
        return CheckOutcome.ERRORS
    if said.code == 0:
        return CheckOutcome.CLEAN
    if said.code not in checker.errors or (checker.finished and not re.search(checker.finished, said.words)):
        return CheckOutcome.FAILED
    return CheckOutcome.ERRORS


def _bounded(words: str) -> bytes:
    data = words.encode("utf-8", "replace")
    if len(data) <= wire.MAX_CHECK_WORDS:
        return data
    half = wire.MAX_CHECK_WORDS // 2 - 8
    cut = data[:half] + b"\n...\n" + data[-half:]
    return cut.decode("utf-8", "ignore").encode()
