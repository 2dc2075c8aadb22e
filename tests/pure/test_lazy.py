"""What a program loads that imports mountsafe."""

import json
import subprocess
import sys

import pytest

import mountsafe

PRINT = "import json, sys; print(json.dumps(sorted(sys.modules)))"
FORBIDDEN = {"guestfs", "pyfuse3", "rich", "typer", "pyudev", "jeepney"}


def loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}; {PRINT}"], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_of_it() -> None:
    new = loaded("import mountsafe") - loaded("import typing")
    assert {name for name in new if name.split(".")[0] not in sys.stdlib_module_names} == {"mountsafe"}


def test_what_reads_an_image_brings_no_native_library_and_no_command_line() -> None:
    found = {name.split(".")[0] for name in loaded("import mountsafe; mountsafe.open")}
    assert found & FORBIDDEN == set()
    assert {"mountsafe", "subprocess"} <= found  # so what is looked at is what is there


def test_names_are_those_that_are_promised() -> None:
    for name in mountsafe.__all__:
        assert getattr(mountsafe, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = mountsafe.nothing  # type: ignore[attr-defined]
