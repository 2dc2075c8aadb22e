"""What is written to one medium: what can be written to, what is unsaved or lost, and how everything is saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from mountsafe.daemon.aside import aside
from mountsafe.limits import SAVE_DEADLINE, SETTLE_DEADLINE, UNMOUNT_DEADLINE
from mountsafe.mountinfo import mounted
from mountsafe.session.attached import FSTYPE
from mountsafe.session.messages import Changing, NotSaved, Report
from mountsafe.session.mounter import unmount_at
from mountsafe.session.record import READ_ONLY, READ_WRITE, Mount, Record
from mountsafe.session.running import end_of
from mountsafe.text import printable, shown_path

# For all of it to be on the medium and unmounted: the supervisor's own deadlines, and some more.
SAVE_PATIENCE = SAVE_DEADLINE + SETTLE_DEADLINE + 2 * UNMOUNT_DEADLINE
SAVE_UNSAID = 1.0  # seconds that it may take to save what was changed before that is said
WORDS = 1500  # characters of what is lost: ten names, and why


class Writes:
    """As the supervisor tells it, of a medium that is shown; `lost` outlives that, until it is shown again.

    `lost`: which changes that programs were told of are not on the medium, and why; "" if all are.
    """

    lost: str
    _record: Record | None
    _changing: tuple[str, ...]  # names of volumes

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """It is to be shown, anew perhaps."""
        self.lost, self._record, self._changing = "", None, ()

    def shown(self, record: Record) -> None:
        """It is shown."""
        self._record = record

    def hear(self, told: Report) -> bool:
        """Take note of what the supervisor tells; whether something is lost by that."""
        match told:
            case Changing(names):
                self._changing = names
            case NotSaved(untrusted_words):
                self.lost = printable(untrusted_words, WORDS)
                return True
        return False

    def over(self) -> bool:
        """The supervisor has ended: whether it did not say that the medium has all, nor what it has not."""
        unknown = bool(self._changing) and not self.lost
        if unknown:
            self.lost = "what was changed last may be lost: nothing says that it was saved"
        self._changing, self._record = (), None
        return unknown

    @property
    def changing(self) -> list[str]:
        """Where something was changed that the medium may not have yet."""
        return [each.target for each in self._mounts if each.name in self._changing]

    @property
    def access(self) -> str:
        """Whether any of it can be written to; "" if nothing is shown."""
        if not self._mounts:
            return ""
        return READ_WRITE if any(each.access == READ_WRITE for each in self._mounts) else READ_ONLY

    @property
    def _mounts(self) -> Sequence[Mount]:
        return self._record.mounts if self._record else ()

    def told(self) -> dict[str, str | list[str]]:
        """Return what others are told of it."""
        changing = [shown_path(each) for each in self.changing]
        return {"access": self.access, "changing": changing, "lost": self.lost}

    def left(self) -> bool:
        """Whether it is mounted nowhere any more, as when a file manager has unmounted it. It may be saving still."""
        ours = {each.target for each in self._mounts}
        return not any(each.fstype == FSTYPE and each.point in ours for each in mounted())

    async def save(self, late: Callable[[], None]) -> None:
        """Have all of it saved and unmounted; return when the medium has it. `late` is called if that takes a while.

        Raises UserError: BUSY if it is in use, FAILURE if it cannot be saved, or was unmounted and something is lost.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say, late)
            await aside(self._save, SAVE_PATIENCE)
            nursery.cancel_scope.cancel()

    async def _say(self, late: Callable[[], None]) -> None:
        await trio.sleep(SAVE_UNSAID)
        if self._changing:
            late()

    def _save(self) -> None:
        if self._record is None or self.access != READ_WRITE:
            for each in self._mounts:
                unmount_at(Path(each.target))
        else:
            end_of(self._record)
