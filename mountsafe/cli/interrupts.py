"""What Ctrl-C does: it raises KeyboardInterrupt while a command works, and ends the process before and after that.

Only the main thread hears of signals, and may say what is done at one; in others nothing is done here.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SOON = 0.01  # seconds


def hear() -> None:
    """Have Ctrl-C raise KeyboardInterrupt from now on."""
    sys.unraisablehook = _again
    _set(signal.default_int_handler)


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Have one that came where nothing can be raised come again: in a destructor, or a callback of an import or a fork.

    The interpreter would print a traceback and go on as if nobody had pressed a key.
    """
    if lost.exc_type is KeyboardInterrupt:
        # A signal: it ends what the main thread waits for in the kernel.
        threading.Timer(SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def hear_no_more() -> None:
    """Have it end the process at once and without a word, unless it was ignored: there is nothing left to undo."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _set(signal.SIG_DFL)


def ignore() -> None:
    """Have it come too late: what was asked for is done."""
    _set(signal.SIG_IGN)


class Held:
    """In the block of `with`, one Ctrl-C waits until its end, or until `lifted`; a second one does not wait.

    For what would leave something if it were interrupted between two steps. Not by the signal mask: a thread that has
    another one, as that of a spinner, would take the signal.
    """

    def __init__(self) -> None:
        self._came = False
        self._before = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> Self:
        if callable(self._before):
            _set(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_through()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """In the block of this `with` none waits, nor one that came before. What `ignore` says in it lasts."""
        self._let_through()
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) is self._before:
                self.__enter__()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came and callable(self._before):
            self._before(number, frame)
        self._came = True

    def _let_through(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._note:
            _set(self._before)
            if self._came:
                self._came = False
                signal.raise_signal(signal.SIGINT)


def _set(handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
