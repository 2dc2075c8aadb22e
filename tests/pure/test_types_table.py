"""README.md's table of types says what the tests know. tests/vm/types_table.py writes it."""

import re
from pathlib import Path

from tests.vm.types import NOT, REFUSED, TYPES


def rows(readme: str) -> dict[str, list[str]]:
    """The table's rows by type, each with its other cells."""
    between = re.search(r"<!-- types:begin -->\n(.*?)<!-- types:end -->", readme, re.DOTALL)
    assert between is not None, "the markers are gone"
    lines = [line for line in between[1].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells if name != "type"}


def test_the_table_lists_the_types_that_the_tests_know(repository: Path) -> None:
    listed = rows((repository / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(TYPES)
    for name, (opens, read, _, remarks) in listed.items():
        assert opens == ("no" if TYPES[name].read == NOT else "yes")
        assert read == (TYPES[name].read or "-")
        assert remarks.startswith(TYPES[name].why)


def test_every_type_that_does_not_mount_says_why() -> None:
    assert all(known.why for known in TYPES.values() if known.read == NOT)
    assert all(refusal.why and refusal.words for refusal in REFUSED)
