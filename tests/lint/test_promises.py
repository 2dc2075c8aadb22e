"""Every promise of SECURITY.md has a test that there is, and can be broken on purpose: `./dev promises` does it."""

from pathlib import Path

import pytest

from tests.promises import run
from tests.promises.breaks import BREAKS

HELD = run.promises()


def test_every_promise_has_a_test_and_a_break() -> None:
    assert sorted(HELD) == list(range(1, len(HELD) + 1))
    assert sorted(BREAKS) == sorted(HELD)


@pytest.mark.parametrize("number", BREAKS)
def test_the_code_is_as_the_break_expects_it(number: int, tmp_path: Path) -> None:
    place, _, name = HELD[number].partition("::")
    assert f"def {name}(" in (run.REPOSITORY / place).read_text(encoding="utf-8")
    for change in BREAKS[number]:
        path = tmp_path / "mountsafe" / change.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((run.REPOSITORY / "mountsafe" / change.file).read_text(encoding="utf-8"), encoding="utf-8")
    run.broken(number, tmp_path)
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path, "exec")
