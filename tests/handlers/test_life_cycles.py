"""What comes after what, walked: a medium in the daemon, a mount in its supervisor, the questions on a stream."""

import errno
from collections.abc import Mapping
from itertools import product
from typing import Any
from unittest.mock import Mock

import pytest

from mountsafe import wire
from mountsafe.agent.worker import Worker
from mountsafe.daemon.keeper import Keeper
from mountsafe.daemon.showing import DisplaySettings
from mountsafe.daemon.states import NEXT, OPENABLE, State, checked
from mountsafe.errors import ProtocolFault, UserError
from mountsafe.hotplug.devices import Device
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Options, Verdict
from mountsafe.session.conversation import (
    SAID,
    TURNS,
    Failed,
    Misbehaved,
    Phase,
    Ready,
    Refused,
    Resting,
    Saving,
    Serving,
    Settle,
    Unsaved,
    WantDisk,
    WantStream,
    turned,
)

DEVICE = Device("sdb", "sdb", "/dev/sdb", (8, 16), {}, (), Facts(device="sdb", fstype="jfs", size=1))


@pytest.fixture
def keeper() -> Keeper:
    display = DisplaySettings(lambda: None, "/run/media", "/x", 60, Mock())
    return Keeper(DEVICE, Decision(Verdict.SANDBOX, "", "", "external", Options()), display, Mock())


def reached(start: Any, after: Mapping[Any, Any]) -> set[Any]:
    """All that a walk can come to."""
    seen, todo = set(), [start]
    while todo:
        if (each := todo.pop()) not in seen:
            seen.add(each)
            todo += after[each]
    return seen


# --- a medium in the daemon ------------------------------------------------------------------------------------------
def test_every_state_of_a_medium_is_reached_and_only_two_are_the_end() -> None:
    assert set(NEXT) == set(State) == reached(State.NEW, NEXT)
    assert [state for state, after in NEXT.items() if not after] == [State.EJECTED, State.LOST]
    for state in set(State) - {State.EJECTED, State.LOST}:
        assert {State.FAILED, State.EJECTED} <= NEXT[state]
        assert State.NEW not in NEXT[state]


@pytest.mark.parametrize(("now", "after"), list(product(State, State)))
def test_a_keeper_goes_by_the_table(keeper: Keeper, now: State, after: State) -> None:
    keeper.state = now
    changed = keeper._public.changed  # type: ignore[attr-defined]
    if after == now or after in NEXT[now]:
        keeper._become(after)
        assert keeper.state == after
        assert changed.call_count == (after != now)
    else:
        with pytest.raises(ValueError, match="cannot become"):
            keeper._become(after)
        assert keeper.state == now
        assert not changed.called


@pytest.mark.parametrize("state", list(State))
def test_what_can_be_opened_is_what_the_table_says(keeper: Keeper, state: State) -> None:
    keeper.state = state
    if state in OPENABLE:
        keeper.open()
        assert keeper.state == State.OPENING
    else:
        with pytest.raises(UserError):
            keeper.open()
        assert keeper.state == state


def test_no_refused_medium_is_opened() -> None:
    assert State.OPENING not in NEXT[State.REFUSE]
    assert State.OPEN not in NEXT[State.REFUSE]
    assert {state for state, after in NEXT.items() if State.OPEN in after} == {State.OPENING, State.SAVING}
    assert {state for state, after in NEXT.items() if State.SAVING in after} == {State.OPEN, State.LOCKED}


def test_a_verdict_that_holds_back_is_a_state() -> None:
    for verdict in (Verdict.ASK, Verdict.REFUSE):
        assert checked(State.OPENING, State(verdict)) == verdict


# --- a mount in its supervisor ---------------------------------------------------------------------------------------
EXAMPLES = [
    WantStream(),
    WantDisk(1),
    Ready("ext4", 0, 0, True, 0o755),
    Serving(),
    Resting(),
    Settle(),
    Unsaved("x", 1),
    Saving(("x",)),
    Misbehaved(1, "x"),
    Refused("no"),
    Failed("no"),
]
FORWARD = {
    (Phase.LEARNING, Ready): Phase.MADE,
    (Phase.LEARNING, Refused): Phase.OVER,
    (Phase.LEARNING, Failed): Phase.OVER,
    (Phase.MADE, Serving): Phase.SERVING,
}
ANYTIME = (WantStream, WantDisk, Resting, Settle, Unsaved, Saving, Misbehaved)


@pytest.mark.parametrize(("phase", "said"), list(product(Phase, EXAMPLES)))
def test_a_session_process_speaks_in_turn(phase: Phase, said: Any) -> None:
    if isinstance(said, ANYTIME):
        assert turned(phase, said) == phase
    elif (phase, type(said)) in FORWARD:
        assert turned(phase, said) == FORWARD[phase, type(said)]
    else:
        with pytest.raises(ProtocolFault, match=f"{type(said).__name__} while it is {phase}"):
            turned(phase, said)


def test_every_word_has_its_turn_and_every_phase_is_reached() -> None:
    assert set(map(type, EXAMPLES)) == set(SAID.kinds.values())
    assert {kind for turns in TURNS.values() for kind in turns} == set(SAID.kinds.values())
    after = {phase: {turn or phase for turn in turns.values()} for phase, turns in TURNS.items()}
    assert reached(Phase.LEARNING, after) == set(Phase)


# --- a stream's questions --------------------------------------------------------------------------------------------
KINDS = {value: name for name, value in vars(wire.Kind).items() if not name.startswith("_") and name != "ERROR"}


def test_every_question_is_asked_before_the_mount_or_after_it() -> None:
    assert set(KINDS) == wire.BEFORE_MOUNT | wire.AFTER_MOUNT | wire.CHANGING
    assert len(KINDS) == len(wire.BEFORE_MOUNT) + len(wire.AFTER_MOUNT) + len(wire.CHANGING)


@pytest.mark.parametrize("mounted", ["not", "to be read", "to be changed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_agent_answers_in_turn(kind: int, mounted: str) -> None:
    worker = Worker("x")
    asked: list[int] = []

    def answer(body: bytes) -> bytes:
        asked.append(kind)
        return b""

    worker._answers[kind] = answer
    worker._read = lambda request: memoryview(wire.frame(1, kind, answer(b"")))  # type: ignore[method-assign]
    worker._mounted = None if mounted == "not" else object()  # type: ignore[assignment]
    worker._changing = object() if mounted == "to be changed" else None  # type: ignore[assignment]
    [told] = wire.Decoder().feed(bytes(worker.answer(wire.Frame(1, kind, b""))))
    before, after = (errno.ENOTCONN, errno.EISCONN)
    if mounted == "not":
        refusal = None if kind in wire.BEFORE_MOUNT else before
    elif kind in wire.BEFORE_MOUNT:
        refusal = after
    else:
        refusal = errno.EROFS if kind in wire.CHANGING and mounted == "to be read" else None
    if refusal is None:
        assert (told.kind, asked) == (kind, [kind])
    else:
        assert (told.kind, asked) == (wire.Kind.ERROR, [])
        assert wire.unpack_error(told.body)[0] == refusal
