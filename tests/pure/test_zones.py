"""Time zones: how they are spelled, where their rules come from, and how the guest tells local times by them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountsafe.agent.localtimes import LocalTimes
from mountsafe.errors import ExitCode, UserError
from mountsafe.policy.conditions import PolicyError
from mountsafe.policy.rules import parse_rules
from mountsafe.system import zones

BERLIN = "Europe/Berlin"
SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def this_process() -> Iterator[None]:
    """Leave the process in the zone that it had."""
    before = os.environ.pop("TZ", None)
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def on_the_clock(*when: int) -> int:
    """What a driver tells that takes a clock's time for UTC, in ns."""
    return int(datetime(*when, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[misc,arg-type]


def told(zone: str, folder: Path, *when: int) -> str:
    utc = LocalTimes(zones.rules_of(zone), str(folder / "zone")).utc(on_the_clock(*when))
    return datetime.fromtimestamp(utc / SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("zone", "when", "utc"),
    [
        (BERLIN, (2024, 7, 1, 12), "2024-07-01 10:00:00"),
        (BERLIN, (2024, 1, 1, 12), "2024-01-01 11:00:00"),
        (BERLIN, (2060, 7, 1, 12), "2060-07-01 10:00:00"),  # after the last change that is written down
        ("America/New_York", (2024, 7, 1, 12), "2024-07-01 16:00:00"),
        ("Australia/Lord_Howe", (2024, 1, 1, 12), "2024-01-01 01:00:00"),  # half an hour of daylight saving time
        ("Asia/Kathmandu", (2024, 7, 1, 12), "2024-07-01 06:15:00"),
        ("UTC", (2024, 7, 1, 12), "2024-07-01 12:00:00"),
        ("+05:30", (2024, 7, 1, 12), "2024-07-01 06:30:00"),
        ("-03:00", (2024, 7, 1, 12), "2024-07-01 15:00:00"),
        ("-00:30", (2024, 7, 1, 12), "2024-07-01 12:30:00"),
    ],
)
def test_local_times_are_told_by_the_rules_of_their_date(
    zone: str, when: tuple[int, ...], utc: str, tmp_path: Path
) -> None:
    assert told(zone, tmp_path, *when) == utc


@given(st.integers(315532800, 4354819199))
def test_what_is_told_shows_on_the_clock_as_it_was(seconds: int) -> None:
    """Any time of FAT's, but in the hour that does not exist."""
    os.environ["TZ"] = BERLIN
    time.tzset()
    times = LocalTimes(b"CET-1CEST,M3.5.0,M10.5.0/3", "")
    back = datetime.fromtimestamp(times.utc(seconds * SECOND) / SECOND, ZoneInfo(BERLIN))
    wanted = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    if 1996 < wanted.year < 2037 and not (wanted.month == 3 and wanted.hour == 2):
        assert back.replace(tzinfo=None) == wanted


@pytest.mark.parametrize(
    "wrong", ["Europe/Atlantis", "+25:00", "+5", "../../etc/localtime", "/etc/localtime", "a\x1bb"]
)
def test_an_unknown_zone_is_a_wrong_argument_with_a_hint(wrong: str) -> None:
    with pytest.raises(UserError) as raised:
        zones.rules_of(wrong)
    assert raised.value.code == ExitCode.USAGE
    assert "Europe/Berlin" in raised.value.hint
    assert "\x1b" not in raised.value.message


def test_without_a_name_it_is_the_zone_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "MACHINES", tmp_path / "localtime")
    assert zones.rules_of("") == zones.UTC
    (tmp_path / "localtime").write_bytes(b"no zone")
    assert zones.rules_of("") == zones.UTC
    (tmp_path / "localtime").write_bytes(zones.rules_of("Asia/Tokyo"))
    assert zones.rules_of("") == zones.rules_of("Asia/Tokyo")


@pytest.mark.parametrize(("told", "name"), [(BERLIN, BERLIN), (f":{BERLIN}", BERLIN)])
def test_who_shows_times_in_another_zone_gets_those(told: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", told)
    assert zones.rules_of("") == zones.rules_of(name)


def test_a_rule_in_the_environment_is_passed_on_and_a_path_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = zones.rules_of("")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    assert zones.rules_of("") == b"CET-1CEST,M3.5.0,M10.5.0/3"
    monkeypatch.setenv("TZ", "/usr/share/zoneinfo/Europe/Berlin")
    assert zones.rules_of("") == machines


def test_no_place_that_the_environment_names_is_looked_at(tmp_path: Path) -> None:
    """Python's zoneinfo has a variable for it, which sudo -E may keep."""
    (tmp_path / "Evil").write_bytes(zones.rules_of("Asia/Tokyo"))
    code = "from mountsafe.system import zones; zones.rules_of('Evil')"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONTZPATH": os.fspath(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert b"Evil is no time zone" in done.stderr


def test_a_policy_names_a_zone() -> None:
    [rule] = parse_rules("x", '[[rule]]\nverdict = "sandbox"\ntimezone = "Asia/Tokyo"')
    assert rule.options.timezone == "Asia/Tokyo"
    with pytest.raises(PolicyError, match="timezone"):
        parse_rules("x", '[[rule]]\nverdict = "sandbox"\ntimezone = "tomorrow at noon"')
