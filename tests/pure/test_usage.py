"""Wrong arguments, for programs."""

import json
import subprocess
import sys

import pytest

from mountsafe.errors import ExitCode


@pytest.mark.parametrize(
    "words",
    [
        ("mount", "--json", "--nonsense", "x"),
        ("mount", "x", "--nonsense", "--json"),
        ("nonsense", "--json"),
        ("mount", "x", "--owner", "nobody", "--json"),
        ("mount", "x", "--timezone", "Europe/Atlantis", "--json"),
        ("unmount", "--json"),
    ],
)
def test_wrong_arguments_are_told_as_json(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "mountsafe", *words], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert json.loads(done.stdout)["error"]["code"] == ExitCode.USAGE


def test_what_comes_after_the_options_is_no_option() -> None:
    words = ("mount", "--nonsense", "--", "--json")
    done = subprocess.run([sys.executable, "-m", "mountsafe", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
