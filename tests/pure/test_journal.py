"""Whoever makes us log without end fills no disk, and it is told what was dropped."""

import logging

from mountsafe.daemon.journal import BURST, MAX_ENTRY, RATE, Flood


def entry(words: str, device: str = "") -> logging.LogRecord:
    record = logging.LogRecord("mountsafe.daemon", logging.WARNING, "", 0, words, None, None)
    record.MOUNTSAFE_DEVICE = device
    return record


def test_a_flood_is_cut_and_counted_and_others_are_heard() -> None:
    time = [0.0]
    flood = Flood(lambda: time[0])
    assert sum(flood.filter(entry("again", "sdb")) for _ in range(BURST + 1000)) == BURST
    assert flood.filter(entry("once", "sdc"))
    time[0] += 1 / RATE
    late = entry("later", "sdb")
    assert flood.filter(late)
    assert late.getMessage() == "[1000 entries of sdb were dropped] later"


def test_a_long_entry_is_cut() -> None:
    long = entry("x" * (2 * MAX_ENTRY))
    assert Flood().filter(long)
    assert len(long.getMessage()) == MAX_ENTRY
