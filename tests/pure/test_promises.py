"""Each promise of SECURITY.md names a test that exists."""

import ast
import re
from pathlib import Path

ROW = re.compile(r"^\| (\d+) \| (.+) \| (tests/[\w/]+\.py)::(\w+) \|$", re.MULTILINE)


def test_each_promise_is_held_by_a_test(repository: Path) -> None:
    promises = ROW.findall((repository / "SECURITY.md").read_text(encoding="utf-8"))
    assert [int(number) for number, *_ in promises] == list(range(1, len(promises) + 1))
    assert len(promises) >= 17
    for _, promise, path, name in promises:
        tree = ast.parse((repository / path).read_text(encoding="utf-8"))
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in tests, promise
