"""What a desktop says of a medium: in every state, whatever the medium calls itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.desktop.notices import LABELS, Action, detailed, details_of, is_blocked, notice_of, state_of
from mountsafe.text import printable

STICK: dict[str, Any] = {
    "device": "sdb",
    "state": "open",
    "verdict": "sandbox",
    "rule": "",
    "reason": "odd fixes: its driver has no regular maintainer",
    "fstype": "jfs",
    "label": "PHOTOS",
    "model": "Example Stick",
    "user": "alice",
    "problem": "",
    "note": "",
    "mounts": ["/run/media/alice/PHOTOS"],
}


def test_a_blocked_medium_says_why() -> None:
    notice = notice_of({**STICK, "state": "refuse"})
    assert notice is not None
    assert notice.body == "blocked because jfs: odd fixes: its driver has no regular maintainer"
    assert notice.lasts


@pytest.mark.parametrize(
    ("fstype", "reason", "words"),
    [
        ("jfs", "jfs: odd fixes", "blocked because jfs: odd fixes"),
        ("jfs, ext4", "nobody maintains jfs", "blocked because nobody maintains jfs"),
        ("jfs", "not on this machine", "blocked because jfs: not on this machine"),
        ("", "not on this machine", "blocked because not on this machine"),
    ],
)
def test_a_type_is_named_once_and_only_if_it_is_known(fstype: str, reason: str, words: str) -> None:
    notice = notice_of({**STICK, "state": "refuse", "fstype": fstype, "reason": reason})
    assert notice is not None
    assert notice.body == words


@pytest.mark.parametrize(
    ("medium", "summary", "body"),
    [
        ({}, "PHOTOS is open", "jfs, read-only, in a virtual machine"),
        ({"label": ""}, "Example Stick is open", "jfs, read-only, in a virtual machine"),
        ({"label": "", "model": ""}, "jfs is open", "jfs, read-only, in a virtual machine"),
        ({"label": "", "model": "", "fstype": ""}, "sdb is open", "read-only, in a virtual machine"),
        ({"label": "A, B", "fstype": "ext4, vfat"}, "A, B is open", "ext4, vfat, read-only, in a virtual machine"),
    ],
)
def test_a_medium_is_called_what_people_know_it_by(medium: dict[str, str], summary: str, body: str) -> None:
    notice = notice_of({**STICK, **medium})
    assert notice is not None
    assert (notice.summary, notice.body) == (summary, body)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "it is encrypted"),
        ("unmounted", "unmounted: it can be pulled out (mountsafe open sdb shows it again)"),
        ("refuse", "the policy refuses it: odd fixes: its driver has no regular maintainer"),
        ("ask", "the policy asks: odd fixes: its driver has no regular maintainer (mountsafe open sdb shows it)"),
        ("ejected", "it can be pulled out"),
        ("locked", "it is encrypted: LUKS2 (mountsafe unlock sdb asks for the key)"),
    ],
)
def test_a_state_says_why(state: str, words: str) -> None:
    told = {"locked": "LUKS2", "mounts": []} if state == "locked" else {}
    problem = "it is encrypted" if state == "failed" else ""
    assert state_of({**STICK, "state": state, "problem": problem, **told}) == words


@pytest.mark.parametrize(
    ("state", "buttons"),
    [
        ("opening", set()),
        ("open", {Action.DEFAULT, Action.OPEN, Action.EJECT, Action.DETAILS}),
        ("ask", {Action.OPEN, Action.TRUST, Action.DETAILS}),
        ("refuse", {Action.TRUST, Action.DETAILS}),
        ("failed", {Action.OPEN, Action.DETAILS}),
        ("locked", {Action.UNLOCK, Action.EJECT, Action.DETAILS}),
        ("ejected", set()),
        ("unmounted", {Action.OPEN}),
    ],
)
def test_buttons_are_those_that_can_do_something(state: str, buttons: set[Action]) -> None:
    notice = notice_of({**STICK, "state": state})
    assert notice is not None
    assert set(notice.actions) == buttons
    assert is_blocked({**STICK, "state": state}) == (state in ("ask", "refuse", "failed"))


@pytest.mark.parametrize("state", ["new", "waiting for a user", "what a later daemon says"])
def test_nothing_is_said_of_other_states(state: str) -> None:
    assert notice_of({**STICK, "state": state}) is None


def test_what_is_to_be_known_of_its_files_is_said() -> None:
    medium = {**STICK, "note": "its boot sector is damaged: the second one was used"}
    notice = notice_of(medium)
    assert notice is not None
    assert medium["note"] in notice.body
    assert medium["note"] in details_of(medium)


def test_details_tell_all_and_need_no_button_for_more() -> None:
    notice = notice_of(STICK)
    assert notice is not None
    shown = detailed(notice, STICK)
    assert Action.DETAILS not in shown.actions
    for words in ("sdb", "jfs: odd fixes", "PHOTOS", "sandbox, by no rule", "/run/media/alice"):
        assert words in shown.body


@given(st.text(), st.text(), st.sampled_from(["open", "ask", "refuse", "failed", "opening", "ejected", "locked"]))
def test_no_word_of_a_medium_comes_out_raw(label: str, problem: str, state: str) -> None:
    medium = {**STICK, "label": label, "fstype": label, "problem": problem, "state": state}
    medium |= {"locked": label, "locked_hint": problem, "locked_uuid": label}
    notice = notice_of(medium)
    assert notice is not None
    for text in (notice.summary, notice.body, details_of(medium)):
        assert all(line == printable(line, len(line)) for line in text.split("\n"))


def test_what_is_locked_says_what_it_is_and_what_helps_to_find_its_key() -> None:
    locked = {**STICK, "state": "locked", "mounts": [], "locked": "BitLocker", "locked_hint": "recovery key ID 4B8C"}
    notice = notice_of(locked)
    assert notice is not None
    assert (notice.summary, notice.lasts) == ("PHOTOS is encrypted (BitLocker)", True)
    assert "4B8C" in notice.body
    assert "Encrypted: BitLocker, recovery key ID 4B8C" in details_of(locked)
    partly = notice_of({**locked, "mounts": ["/run/media/alice/EFI"]})
    assert partly is not None
    assert partly.summary == "A part of PHOTOS is encrypted (BitLocker)"


def test_every_button_has_a_name() -> None:
    assert set(LABELS) == set(Action)


# --- what is written to ----------------------------------------------------------------------------------------------
LOST = "2 changes are lost (Holidays/a.jpg): the medium did not take them: Input/output error"


def test_it_says_whether_it_can_be_written_to() -> None:
    for access in ("read-only", "read-write"):
        notice = notice_of({**STICK, "access": access})
        assert notice is not None
        assert notice.body == f"jfs, {access}, in a virtual machine"
        assert f"Access: {access}" in details_of({**STICK, "access": access})
    assert "Access: read-only, jfs is only read" in details_of(
        {**STICK, "access": "read-only", "read_only": "jfs is only read"}
    )


def test_what_is_being_saved_is_not_to_be_pulled_out() -> None:
    notice = notice_of({**STICK, "state": "saving", "access": "read-write"})
    assert notice is not None
    assert (notice.summary, notice.lasts, notice.actions) == ("PHOTOS is being saved", True, ())
    assert "Do not pull it out" in notice.body


@pytest.mark.parametrize("state", ["open", "unmounted", "ejected", "lost", "failed"])
def test_what_was_not_saved_is_named_and_nobody_says_that_it_can_be_pulled_out(state: str) -> None:
    medium = {**STICK, "state": state, "lost": LOST}
    notice = notice_of(medium)
    assert notice is not None
    assert LOST in notice.body
    assert notice.lasts
    assert "can be pulled out" not in notice.summary + notice.body
    assert LOST in details_of(medium)
    if state not in ("open", "failed"):
        assert LOST in state_of(medium)
        assert "can be pulled out" not in state_of(medium)
