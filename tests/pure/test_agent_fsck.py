"""A checker's end, its words and its time, without a virtual machine: programs of this test stand for checkers."""

import time
from pathlib import Path

import pytest

from mountsafe import wire
from mountsafe.agent import fsck
from mountsafe.agent.fsck import Said, cleaned, outcome_of, said_by
from mountsafe.agent.mounting import CowLayer
from mountsafe.agent.programs import Refused
from mountsafe.checkers import CHECKERS, Checker
from mountsafe.wire import CheckOutcome, MountState

FAR = 60.0  # seconds


class NoLayer(CowLayer):
    """No memory for one."""

    def start(self) -> str:
        raise Refused(12, "no memory")


def checker(script: str, **fields: object) -> Checker:
    return Checker("sh", "dash", (("sh", "-c", script),), **fields)  # type: ignore[arg-type]


def checked(
    monkeypatch: pytest.MonkeyPatch, device: Path, each: Checker, seconds: float = FAR, repair: bool = False
) -> wire.Checked:
    monkeypatch.setitem(CHECKERS, "testfs", each)
    return fsck.check(str(device), b"testfs", seconds, repair, NoLayer(str(device), "test"))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    path.write_bytes(b"bad")
    return path


@pytest.mark.parametrize(
    ("fstype", "code", "words", "outcome"),
    [
        ("ext4", 0, "", CheckOutcome.CLEAN),
        ("ext4", 4, "Fix? no", CheckOutcome.ERRORS),
        ("ext4", 8, "Bad magic number in super-block", CheckOutcome.FAILED),
        ("ext4", 8, "e2fsck: Superblock checksum does not match superblock while", CheckOutcome.ERRORS),
        ("ext4", 12, "error reading block", CheckOutcome.FAILED),
        ("ext4", -9, "", CheckOutcome.FAILED),
        ("ext4", None, "Pass 1", CheckOutcome.TIME),
        ("vfat", 1, "Leaving filesystem unchanged.\nx: 3 files, 5/81 clusters", CheckOutcome.ERRORS),
        ("vfat", 1, "Logical sector size is zero.", CheckOutcome.FAILED),
        ("xfs", 1, "would have cleared inode 128", CheckOutcome.ERRORS),
        ("xfs", 1, "Sorry, could not find valid secondary superblock", CheckOutcome.FAILED),
        ("xfs", 2, "", CheckOutcome.FAILED),
        ("btrfs", 1, "ERROR: errors found in fs roots", CheckOutcome.ERRORS),
        ("btrfs", 1, "ERROR: cannot open file system", CheckOutcome.FAILED),
        ("ntfs", 1, "Volume is scheduled for check.", CheckOutcome.ERRORS),
        ("erofs", 0, "<E> erofs: superblock chksum doesn't match", CheckOutcome.ERRORS),
        ("f2fs", 255, "Can't find a valid F2FS superblock at 0x1", CheckOutcome.FAILED),
        ("gfs2", 127, "", CheckOutcome.FAILED),
    ],
)
def test_what_an_end_says(fstype: str, code: int | None, words: str, outcome: int) -> None:
    assert outcome_of(CHECKERS[fstype], Said(code, words)) == outcome


def test_no_checker_and_none_here(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    layer = NoLayer(str(device), "test")
    assert fsck.check(str(device), b"udf", FAR, False, layer).outcome == CheckOutcome.NONE
    assert fsck.check(str(device), b"\xff", FAR, False, layer).outcome == CheckOutcome.NONE
    absent = checker("true")._replace(program="fsck.such-a-thing-is-not")
    assert checked(monkeypatch, device, absent).outcome == CheckOutcome.MISSING


def runs(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_time_ends_a_checker_and_what_it_has_started(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    told = checked(monkeypatch, device, checker("echo $$; sleep 1000 & echo $!; exec sleep 1000"), seconds=0.5)
    assert told.outcome == CheckOutcome.TIME
    for pid in map(int, told.words.split()):
        end = time.monotonic() + FAR
        while runs(pid):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_checker_that_has_closed_its_output_and_hangs(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    told = checked(monkeypatch, device, checker("exec sleep 1000 >/dev/null 2>&1"), seconds=0.5)
    assert told.outcome == CheckOutcome.TIME


def test_endless_words_are_cut_in_the_middle(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    told = checked(monkeypatch, device, checker("echo first; seq 300000; echo last; exit 4"))
    assert told.outcome == CheckOutcome.ERRORS
    assert len(told.words) <= wire.MAX_CHECK_WORDS
    lines = told.words.split(b"\n")
    assert (lines[0], lines[-1], lines.count(b"...")) == (b"first", b"last", 1)
    assert wire.unpack_checked(wire.pack_checked(told)) == told
    assert len(checked(monkeypatch, device, checker("yes '\xff\xff\xff' | head -c 200000")).words) > 0


def test_words_are_lines() -> None:
    assert cleaned(b"1%\r2%\r3%\r\n\n  \nphase\b\b\bdone \xff\n") == "1%\n2%\n3%\nphasedone \ufffd"


def test_all_looks_must_find_nothing(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    two = checker("echo one")._replace(looks=(("sh", "-c", "echo one"), ("sh", "-c", "echo two; exit 4")))
    told = checked(monkeypatch, device, two)
    assert (told.outcome, told.code, told.words) == (CheckOutcome.ERRORS, 4, b"one\ntwo")


def test_without_a_layer_a_journal_is_said_to_be_left_out(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    told = checked(monkeypatch, device, checker("echo log ignored; exit 4", unreplayed="log ignored"))
    assert (told.outcome, told.journal) == (CheckOutcome.ERRORS, MountState.SKIPPED)


LOOK = 'grep -q good "$0" || { echo bad; exit 4; }'


def test_a_repair_is_what_a_second_look_says(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    mends = checker(LOOK, repair=("sh", "-c", 'echo mended; echo good > "$0"; exit 1'))
    assert checked(monkeypatch, device, mends).outcome == CheckOutcome.ERRORS
    assert device.read_bytes() == b"bad"
    told = checked(monkeypatch, device, mends, repair=True)
    assert (told.outcome, told.words) == (CheckOutcome.REPAIRED, b"mended")
    device.write_bytes(b"bad")
    told = checked(monkeypatch, device, checker(LOOK, repair=("sh", "-c", "echo no; exit 0")), repair=True)
    assert (told.outcome, told.words) == (CheckOutcome.ERRORS, b"no\nbad")


def test_what_is_clean_is_not_written_to(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    device.write_bytes(b"good")
    writes = checker(LOOK, repair=("sh", "-c", 'echo good too > "$0"'))
    assert checked(monkeypatch, device, writes, repair=True).outcome == CheckOutcome.CLEAN
    assert device.read_bytes() == b"good"


def test_a_repair_that_there_is_not(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    with pytest.raises(Refused, match="no program that repairs it"):
        checked(monkeypatch, device, checker(LOOK), repair=True)


def test_no_command_that_looks_is_one_that_repairs() -> None:
    for each in CHECKERS.values():
        assert each.repair not in each.looks
        assert each.preen not in each.looks
        assert all(look[0] for look in each.looks)
        assert each.program == each.looks[0][0]
    assert said_by(["true"], time.monotonic() + FAR) == Said(0, "")
