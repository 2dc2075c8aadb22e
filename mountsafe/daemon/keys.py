"""The keys of one medium: what it asks for, who tries to unlock it, and how often.

No secret is read here: what brings one is passed on, to the box that derives the key (`mountsafe.encrypted`). Nothing
is kept of it when the attempt is over, and nothing at all when the medium is gone.
"""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from mountsafe.environment import is_roots_alone
from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import MAX_SECRET
from mountsafe.medium.volumes import NO_SIGNATURE
from mountsafe.session.messages import Key, KeyForm, Locked
from mountsafe.system import handed
from mountsafe.text import printable, size

TRIES = 3  # wrong keys, and then a pause
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds
MOST_VOLUMES = 8  # of a medium that a key is tried with, and that are told of
TEXT = 200  # characters of what a header says
MODES = (0o600, 0o400)  # of a key file
Which = tuple[str, str, str]  # a volume, by its title, kind and UUID: a title may come twice


class WrongKey(UserError):
    """It was not unlocked with that key."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why, hint, ExitCode.LOCKED)


class TooManyTries(UserError):
    """There were so many wrong keys that it is not tried now."""

    def __init__(self, wrong: int, seconds: float) -> None:
        super().__init__(f"{wrong} wrong keys: wait {seconds:.0f} s", "Then it can be tried again.", ExitCode.LOCKED)


class NoKeyFile(UserError):
    """The key file of a rule cannot be used."""


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody says that a medium is which looks like noise: `fstype` is "" if nobody did."""

    fstype: str = ""
    pim: int = 0
    hidden: bool = False


NOTHING = Said()


def said_of(untrusted_fstype: str, untrusted_pim: int, hidden: bool) -> Said:
    """Return what somebody says, if it can be. Raises UserError."""
    if untrusted_fstype not in NO_SIGNATURE:
        hint = f"One of: {', '.join(NO_SIGNATURE)}."
        raise UserError(f"nobody has to say that it is {printable(untrusted_fstype, TEXT)}", hint, ExitCode.USAGE)
    return Said(untrusted_fstype, untrusted_pim, hidden)


@dataclass(slots=True, eq=False)
class Attempt:
    """Somebody's key, to show it to the user `uid`. `error`: why it was none, once it is `over`.

    `_fd` is ours until then. Another thread may have been left behind that still asks for it.
    """

    form: KeyForm
    uid: int
    _fd: int
    over: trio.Event = field(default_factory=trio.Event)
    error: UserError | None = None
    _closing: threading.Lock = field(default_factory=threading.Lock)

    def again(self) -> int:
        """Return a descriptor that the secret comes out of. Raises UserError, OSError."""
        with self._closing:
            if self._fd < 0:
                raise UserError("the attempt is over")
            return handed.again(self._fd)

    def end(self, error: UserError | None) -> None:
        """Let go of it, and tell who waits."""
        with self._closing:
            os.close(self._fd)
            self._fd = -1
        self.error = error
        self.over.set()


class Keys:
    """Answers what a supervisor asks for. `key_file`: which one the policy names for what is locked, or "".

    `said`: of a medium without a signature. `asked`: what was locked when it was last looked at, in its order.
    `pending`: an attempt that is still to be made; `attempt`: the one that is being made. `answer` runs in another
    thread, while the task of the medium waits for that.
    """

    def __init__(self, key_file: Callable[[Locked], str]) -> None:
        self.asked: dict[Which, Locked] = {}
        self.said = NOTHING
        self.pending: Attempt | None = None
        self.attempt: Attempt | None = None
        self.trouble = ""  # what is wrong with the key file of a rule
        self._key_file = key_file
        self._given: dict[Which, KeyForm | None] = {}  # what was tried last: None is a key file of a rule
        self._left: set[Which] = set()  # what there was no (other) key for
        self._why = ""  # why the attempt's key did not do
        self._wrong = 0
        self._closed_until = -1.0

    # --- who has a key -----------------------------------------------------------------------------------------------
    def offer(self, form: KeyForm, fd: int, uid: int) -> Attempt:
        """Take a key that is to be tried; `fd` stays the caller's. Raises UserError."""
        if self.pending is not None or self.attempt is not None:
            raise UserError("another key is being tried", "Wait for what comes of it.", ExitCode.BUSY)
        left = self._closed_until - trio.current_time()
        if left > 0:
            raise TooManyTries(self._wrong, max(left, 1.0))
        handed.require(fd)
        self.pending = Attempt(form, uid, os.dup(fd))
        return self.pending

    def withdraw(self, error: UserError) -> None:
        """Let go of an attempt that is not made."""
        if self.pending is not None:
            self.pending.end(error)
            self.pending = None

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Make the attempt that is pending, if there is one, with what is done meanwhile: one look or several."""
        self.attempt, self.pending = self.pending, None
        self._given, self._why = {}, ""
        try:
            yield
        except UserError as error:
            self.finish(error)
            raise
        except Exception as error:
            self.finish(UserError(printable(str(error), TEXT) or type(error).__name__))
            raise
        self.finish(UserError("it was unmounted while it was being unlocked"))

    # --- one look at the medium --------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Begin a look at the medium."""
        self.asked, self._given, self._left = {}, {}, set()
        self._why = self.trouble = ""

    def answer(self, untrusted: Locked) -> tuple[Key, list[int]] | None:
        """Return a key for what is locked; None if there is none, or none that is left."""
        locked = _shown(untrusted)
        which = (locked.name, locked.kind, locked.uuid)
        if which not in self.asked and len(self.asked) >= MOST_VOLUMES:
            return None
        self.asked.setdefault(which, locked)
        tried = which in self._given
        if tried:
            self._take_refusal(which, locked.why)
        key = (None if tried else self._key_from_rule(which, locked)) or self._key_from_attempt(which)
        if key is None:
            self._left.add(which)
        return key

    def _take_refusal(self, which: Which, why: str) -> None:
        if self._given[which] is None:
            self.trouble = f"the key file of the policy does not unlock {which[0]}: {why}"
        else:
            self._why = why

    def _key_from_rule(self, which: Which, locked: Locked) -> tuple[Key, list[int]] | None:
        path = self._key_file(locked)
        if not path:
            return None
        try:
            fd = opened_key_file(path)
        except NoKeyFile as error:
            self.trouble = error.message
            return None
        self._given[which] = None
        bek = locked.kind.startswith("BitLocker") and path.lower().endswith(".bek")
        return Key(KeyForm.BEK_FILE if bek else KeyForm.KEY_FILE), [fd]

    def _key_from_attempt(self, which: Which) -> tuple[Key, list[int]] | None:
        attempt = self.attempt
        if attempt is None or self._given.get(which) is not None:
            return None
        try:
            fd = attempt.again()
        except (UserError, OSError) as error:
            self._why = str(error)
            return None
        self._given[which] = attempt.form
        return Key(attempt.form, pim=self.said.pim, hidden=self.said.hidden), [fd]

    @property
    def locked(self) -> list[Locked]:
        """What is locked: before anything is shown, or beside it."""
        return [locked for which, locked in self.asked.items() if which in self._left]

    def lock(self) -> None:
        """Take note that nothing is shown any more: all that asked for a key is locked again."""
        self._left = set(self.asked)

    @property
    def unlocks(self) -> bool:
        """Whether the attempt's key did for something."""
        return any(form is not None and which not in self._left for which, form in self._given.items())

    def finish(self, error: UserError | None = None) -> None:
        """Say what came of the look: what is shown, or why nothing is."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        if not self.unlocks and (error is None or (error.code is ExitCode.LOCKED and self._why)):
            error = self._refusal()
        attempt.end(error)

    def _refusal(self) -> UserError:
        if not self._why:
            return UserError("nothing on it asked for that key", "mountsafe inspect shows what is on it.")
        self._wrong += 1
        hint = ""
        if self._wrong % TRIES == 0:
            pause = min(FIRST_PAUSE * 2 ** (self._wrong // TRIES - 1), LONGEST_PAUSE)
            self._closed_until = trio.current_time() + pause
            hint = f"Those were {self._wrong} wrong keys: it can be tried again in {pause:.0f} s."
        return WrongKey(self._why, hint)

    def close(self, device: str) -> None:
        """Forget all of it: the medium is gone."""
        gone = UserError(f"{device} is gone", "mountsafe devices shows what is there.", ExitCode.SOURCE)
        self.withdraw(gone)
        if self.attempt is not None:
            self.attempt.end(gone)
            self.attempt = None
        self.asked, self._given, self._left = {}, {}, set()


def _shown(untrusted: Locked) -> Locked:
    """Return what is told of an encrypted volume, fit to be shown: most of it are its header's words."""
    return Locked(
        name=printable(untrusted.name, TEXT),
        kind=printable(untrusted.kind, TEXT),
        uuid=printable(untrusted.uuid, TEXT),
        label=printable(untrusted.label, TEXT),
        hint=printable(untrusted.hint, TEXT),
        why=printable(untrusted.why, 2 * TEXT),
    )


def opened_key_file(path: str) -> int:
    """Return a descriptor of the key file of a rule. Raises NoKeyFile unless it is root's, and root's alone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NoKeyFile(f"the key file {path} cannot be opened: {error.strerror}") from error
    status = os.fstat(fd)
    wrong = ""
    if not stat.S_ISREG(status.st_mode):
        wrong = "is no file"
    elif status.st_uid != 0 or stat.S_IMODE(status.st_mode) not in MODES:
        wrong = "is not root's alone: sudo chown root, and chmod 0600 or 0400"
    elif not is_roots_alone(path):
        wrong = "is in a folder that others can change"
    elif status.st_size > MAX_SECRET:
        wrong = f"is larger than {size(MAX_SECRET)}"
    if wrong:
        os.close(fd)
        raise NoKeyFile(f"the key file {path} {wrong}")
    return fd
