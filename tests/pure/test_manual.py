"""The manual pages that are filled from elsewhere: all of it is there, and roff takes it."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from mountsafe.errors import ExitCode
from mountsafe.policy.conditions import CHECKS
from mountsafe.policy.rules import _STRINGS, Verdict


@pytest.fixture(scope="module")
def manual(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual", repository / "packaging/manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_policys_page_has_every_key_verdict_and_example(manual: ModuleType) -> None:
    page = manual.pages("1")["mountsafe-policy.5"]
    keys = set(re.findall(r"^\\fB(\w+) = ", page, re.MULTILINE))
    assert keys == {*CHECKS, *_STRINGS, "verdict", "hide", "access"}
    assert set(Verdict) <= set(re.findall(r"^\.B (\w+)$", page, re.MULTILINE))
    assert re.findall(r"^\.SS (\d+)\.$", page, re.MULTILINE) == [str(number) for number in range(1, 14)]
    assert page.count("[[rule]]") == 14
    assert "as above" not in page, "a key without words"


def test_the_overview_has_every_exit_code(manual: ModuleType) -> None:
    page = manual.pages("1")["mountsafe.7"]
    told = {int(number) for number in re.findall(r"^\.B (\d+)$", page, re.MULTILINE)}
    assert told == set(ExitCode)


def test_roff_takes_the_pages_without_a_word(manual: ModuleType, tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is missing")
    for name, text in manual.pages("1").items():
        assert "@" not in re.sub(r"\S+@\S+", "", text)
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["man", "--warnings", "--encoding=UTF-8", "--local-file", "--pager=cat", tmp_path / name],
            capture_output=True,
            text=True,
            check=True,
            env={"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "PATH": "/usr/bin:/bin"},
        )
        assert done.stderr == ""
        assert "NAME" in done.stdout
        assert "policy" not in name or 'fstype = ["vfat", "exfat"]\n' in done.stdout
