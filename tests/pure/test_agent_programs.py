"""The programs that the agent runs are in the appliance: distributions move them from package to package."""

import re
from pathlib import Path

import pytest

from mountsafe.appliance.inputs import CODE, PACKAGE, Inputs
from mountsafe.errors import UserError
from tests.conftest import missing

# What is run by name, and by a variable: run("losetup", run("env", "A=1", "mdadm", command = ("blkid",
_NAMED = re.compile(r'(?:\brun\(|\bcommand = \()(?:"env", "[A-Z_]+=\w+", )?"([a-z][\w.-]*)"')
_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")


def programs() -> list[str]:
    sources = [(PACKAGE / name).read_text() for name in CODE if name.startswith("agent/")]
    return sorted({name for source in sources for name in _NAMED.findall(source)})


@pytest.fixture(scope="module")
def inside() -> set[str]:
    """The files of the packages that an appliance built here is made of, the optional ones that are here included."""
    inputs = Inputs()
    try:
        chosen, _ = inputs.chosen()
    except UserError as error:
        missing(error.message)
    database = inputs.database
    return {path for package in database.closure(chosen) for path in database.files(package.name)}


def test_they_are_found() -> None:
    assert {"blkid", "dmsetup", "losetup", "lvm", "mdadm", "modprobe", "mount", "ntfsinfo"} <= set(programs())


@pytest.mark.parametrize("program", programs())
def test_it_is_in_the_appliance(program: str, inside: set[str]) -> None:
    if not [folder for folder in _FOLDERS if str(Path(folder, program)) in inside]:
        missing(f"{program}, which the agent runs, in the appliance")
