"""Nothing is timed by a clock that somebody can set: a host whose clock jumps keeps its deadlines."""

import ast
from collections.abc import Iterator
from pathlib import Path

WALL_CLOCKS = {"time", "time_ns", "localtime", "gmtime", "now", "utcnow", "today"}
OWNERS = {"time", "datetime", "date"}
# What needs the time of day, and why that is no deadline.
TIME_OF_DAY = {
    "mountsafe/agent/localtimes.py": "times of a medium are taken apart, and the guest's clock is set",
    "mountsafe/filesystem/early.py": "a file that is changed now gets that time",
    "mountsafe/appliance/client.py": "the guest is told what time it is",
    "mountsafe/appliance/build.py": "people are told when it was built",
    "mountsafe/sandbox.py": "the age of a folder is told by the time of day in its inode",
}


def wall_clocks(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that read such a clock."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in WALL_CLOCKS:
            if ast.unparse(node.value).rpartition(".")[2] in OWNERS:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in OWNERS:
            yield from (node.lineno for alias in node.names if alias.name in WALL_CLOCKS)


def test_no_deadline_depends_on_the_time_of_day(repository: Path) -> None:
    found = {
        str(path.relative_to(repository)): lines
        for path in sorted((repository / "mountsafe").rglob("*.py"))
        if (lines := list(wall_clocks(ast.parse(path.read_text()))))
    }
    assert found.keys() == TIME_OF_DAY.keys(), found
    assert all(len(lines) == 1 + 2 * path.endswith("localtimes.py") for path, lines in found.items()), found


def test_such_a_clock_is_found() -> None:
    for source in ("import time\ntime.time()", "from time import time", "import datetime\ndatetime.datetime.now()"):
        assert list(wall_clocks(ast.parse(source)))
    assert not list(wall_clocks(ast.parse("import time\ntime.monotonic()")))
