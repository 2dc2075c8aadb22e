"""What differs between releases of trio is the same for all who use it, and known to one module."""

import re
import threading
from pathlib import Path

import pytest
import trio

from mountsafe import trios
from mountsafe.errors import UserError

# What trio calls otherwise in another release, or does otherwise: only mountsafe.trios may say it.
OTHERWISE = re.compile(r"\btrio\.run\(|\bcancellable=|\babandon_on_cancel=|\bExceptionGroup\b|\bMultiError\b")
ELSEWHERE = {
    "mountsafe/trios.py",
    "tests/pure/test_trios.py",
    "tests/vm/command/badisk.py",
}  # the last has no mountsafe


def test_what_fails_in_a_nursery_is_raised_as_it_is() -> None:
    async def fail() -> None:
        raise UserError("no such medium")

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(UserError, match="no such medium"):
        trios.run(main)


def test_what_is_returned_and_given() -> None:
    async def add(one: int, other: int) -> int:
        return await trios.in_thread(lambda left, right: left + right, one, other)

    assert trios.run(add, 3, 4) == 7


def test_who_is_cancelled_does_not_wait_for_the_thread() -> None:
    held = threading.Event()

    async def main() -> None:
        with trio.move_on_after(0.05) as scope:
            await trios.in_thread(held.wait, 60)
        assert scope.cancelled_caught
        assert not held.is_set()
        held.set()

    trios.run(main)


def test_one_module_knows_it(repository: Path) -> None:
    found = {
        str(path.relative_to(repository))
        for folder in ("mountsafe", "tests", "images", "bench")
        for path in (repository / folder).rglob("*.py")
        if OTHERWISE.search(path.read_text())
    }
    assert found <= ELSEWHERE
