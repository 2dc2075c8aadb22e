"""What is lost is said in bounded words, whoever tells of it; and the log of changes has the names."""

from mountsafe.changes import Act, Change
from mountsafe.filesystem.changelog import ChangeLog, Logged, Subjects
from mountsafe.limits import MAX_LOST_NAMES
from mountsafe.session.losses import Losses


def test_names_and_the_first_reason_are_said() -> None:
    losses = Losses()
    assert losses.words == ""
    losses.add("Input/output error", 1, ["a.jpg"])
    assert losses.words == "a change is lost (a.jpg): Input/output error"
    losses.add("it is gone", 2, ["a.jpg", "b.jpg"])
    assert losses.words == "3 changes are lost (a.jpg, b.jpg): Input/output error"


def test_it_is_bounded_and_fit_to_be_shown() -> None:
    losses = Losses()
    for number in range(100):
        losses.add("\x1b[2J" * 1000, 1 << 40, [f"{number}-{each}\n" * 1000 for each in range(100)])
    assert losses.words.isprintable()
    assert len(losses.words) < 4000
    assert "0-9" in losses.words
    assert "0-10" not in losses.words
    assert " and more)" in losses.words


def test_what_has_no_number_and_no_name_is_said_all_the_same() -> None:
    losses = Losses()
    losses.add("it ended before all of it was saved", -5, [])
    assert losses.words == "changes may be lost: it ended before all of it was saved"


def made(path: bytes) -> Logged:
    return Logged(Change(Act.MKDIR, path))


def test_the_log_names_what_its_changes_are_about() -> None:
    log = ChangeLog()
    log.add(made(b"a"), Subjects(), done=False)
    log.add(Logged(Change(Act.RENAME, b"a", b"b")), Subjects(), done=False)
    log.add(Logged(Change(Act.CLOSE, handle=3)), Subjects(), done=False)
    log.add(made(b"a"), Subjects(), done=False)
    assert log.names == [b"a", b"b"]


def test_of_none_it_names_the_last_ones_before_until_all_of_it_was_left() -> None:
    log = ChangeLog()
    for number in range(100):
        log.add(made(b"%d" % number), Subjects(), done=False)
    assert len(log.names) == MAX_LOST_NAMES
    log.begin({})
    assert log.names == [b"%d" % number for number in range(MAX_LOST_NAMES)]
    log.begin({})
    assert len(log.names) == MAX_LOST_NAMES
    log.forget()
    assert log.names == []
