"""Calls that may block, in threads that can be left behind: a slow disk holds up neither the loop nor another disk.

A thread in the kernel that waits for a dying stick cannot be interrupted: it is gone until the kernel gives up. So each
such call has a deadline, and a thread of its own that nobody else needs; if it succeeds after all, its result is
undone.
"""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from mountsafe.trios import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST = 512  # threads at a time, with those that were left behind: a part of the unit's TasksMax
FOR_EVER = float("inf")
ANSWER_PATIENCE = 10.0  # seconds
_running: set[object] = set()
_changing = threading.Lock()


class TooSlow(OSError):
    """It has not come to an end in time, and goes on alone."""


class _Work:
    """One call. `left`: nobody waits for it any more. Whoever comes last, its thread or its caller, undoes it."""

    def __init__(self, undo: Callable[[T], object] | None) -> None:
        self._undo = undo
        self._results: list[object] = []
        self._left = False

    def finish(self, result: object) -> None:
        with _changing:
            self._results.append(result)
            left = self._left
        if left:
            self._undo_it()

    def leave(self) -> None:
        with _changing:
            self._left = True
            finished = bool(self._results)
        if finished and self._undo is not None:
            threading.Thread(target=self._undo_it, daemon=True).start()

    def _undo_it(self) -> None:
        if self._undo is None:
            return
        try:
            self._undo(self._results[0])  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  # in a thread that nobody waits for
            log.warning("what came too late was not undone: %s", error)


async def aside(work: Callable[[], T], deadline: float = FOR_EVER, undo: Callable[[T], object] | None = None) -> T:
    """Return what `work` returns. Raises TooSlow after so many seconds.

    When that happens or the caller is cancelled it is left behind; `undo` is then called with what it returns.
    """
    if len(_running) >= MOST:
        raise TooSlow("too many devices do not answer")
    state = _Work(undo)

    def run() -> T:
        with _changing:
            _running.add(state)
        try:
            result = work()
            state.finish(result)
            return result
        finally:
            with _changing:
                _running.discard(state)

    try:
        with trio.fail_after(deadline):
            return await in_thread(run, limiter=trio.CapacityLimiter(1))
    except BaseException as error:
        state.leave()
        if isinstance(error, trio.TooSlowError):
            raise TooSlow(f"no answer within {deadline:.0f} s") from error
        raise


class Remembered(Generic[T]):
    """What `work` returned less than `age` seconds ago: however many ask, it is not done more often."""

    def __init__(self, work: Callable[[], T], age: float) -> None:
        self._work = work
        self._age = age
        self._doing = trio.Lock()
        self._until = -FOR_EVER
        self._result: T

    async def get(self) -> T:
        """Return it, as of now or of then. Raises TooSlow, and whatever `work` raises."""
        async with self._doing:
            if trio.current_time() >= self._until:
                self._result = await aside(self._work, self._age + ANSWER_PATIENCE)
                self._until = trio.current_time() + self._age
            return self._result


async def quietly(work: Callable[[], object], what: str, deadline: float) -> None:
    """Do what must not be left out, even if the caller is cancelled; if it fails, that is logged."""
    with trio.CancelScope(shield=True):
        try:
            await aside(work, deadline)
        except Exception as error:  # noqa: BLE001  # whoever lets go of a medium goes on
            log.warning("%s: %s", what, str(error)[:500] or type(error).__name__)
