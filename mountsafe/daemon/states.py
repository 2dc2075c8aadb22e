"""The states of a medium in the daemon, as a table. `daemon.keeper` keeps to it; programs read their names."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """What a medium is in. The words are those of D-Bus and `--json`."""

    NEW = "new"  # it was plugged in, and is about to be claimed
    BUSY = "busy"  # another program has it: it is claimed when that lets go
    ASK = "ask"  # somebody has to say that it may be opened
    REFUSE = "refuse"  # the policy refuses it, or all that is in it
    WAITING = "waiting for a user"  # nobody is at the seat, or the screen is locked
    OPENING = "opening"
    OPEN = "open"  # its files are shown
    SAVING = "saving"  # it is being unmounted, and the medium has not all of it yet
    LOCKED = "locked"  # it is encrypted, or a part of it, and somebody has to unlock it; other parts may be shown
    UNMOUNTED = "unmounted"  # it is claimed still, and can be opened again
    FAILED = "failed"  # it could not be claimed, opened or kept
    EJECTED = "ejected"  # it is let go
    LOST = "lost"  # it was pulled out before all of it was saved


# Where the verdict of what is known, of what was found inside, or of what went wrong leads.
_JUDGED = {State.ASK, State.REFUSE, State.FAILED}
_ALWAYS = {State.FAILED, State.EJECTED, State.LOST}  # by a fault, or by whoever ejects or pulls it
NEXT: Mapping[State, frozenset[State]] = {
    state: frozenset(_ALWAYS | after)
    for state, after in {
        State.NEW: {State.BUSY, State.WAITING, State.OPENING} | _JUDGED,
        State.BUSY: {State.WAITING, State.OPENING} | _JUDGED,
        State.ASK: {State.OPENING},
        State.REFUSE: set(),
        State.WAITING: {State.OPENING},
        State.OPENING: {State.BUSY, State.WAITING, State.OPEN, State.LOCKED} | _JUDGED,
        State.OPEN: {State.UNMOUNTED, State.LOCKED, State.SAVING},
        State.SAVING: {State.OPEN, State.UNMOUNTED, State.LOCKED, State.OPENING},
        State.LOCKED: {State.OPENING, State.SAVING},
        State.UNMOUNTED: {State.OPENING},
        State.FAILED: {State.OPENING},
    }.items()
} | {State.EJECTED: frozenset(), State.LOST: frozenset()}

# In these somebody may ask that it be opened; in the others it is open, on its way, or not to be opened. What is locked
# is looked at anew: somebody may have put its key file in place.
OPENABLE = frozenset({State.ASK, State.UNMOUNTED, State.LOCKED, State.FAILED})


def checked(now: State, after: State) -> State:
    """Return the state after another one. Raises ValueError, which is a bug, if it cannot come after that."""
    if after not in NEXT[now]:
        raise ValueError(f"a medium that is {now} cannot become {after}")
    return after
