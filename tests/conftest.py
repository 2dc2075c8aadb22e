"""What every level of the tests shares."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from images import images
from mountsafe.encrypted import serving
from mountsafe.errors import UserError

SUMMARY = 2_000  # characters

# No example has a deadline: how long one takes says more about the machine than about the code.
settings.register_profile("mountsafe", deadline=None, print_blob=True)
settings.load_profile("mountsafe")


def pytest_exception_interact(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Have the summary at the end tell of each failure in one line what was seen: of CI's log often nothing else is."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = " | ".join(filter(None, map(str.strip, crash.message.splitlines())))[:SUMMARY]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where unpacked images are kept."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def image(library: Path) -> Callable[[str], Path]:
    """A function that returns the path of an unpacked image."""

    def unpacked(name: str) -> Path:
        path = library / f"{name}.img"
        return path if path.exists() else images.unpack(name, library)

    return unpacked


def missing(what: str) -> NoReturn:
    """Skip the test for want of `what`; in CI nothing that the project needs may be missing, so fail there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


@pytest.fixture
def nbdkit() -> None:
    """What serves disks from a box is there, or the test is given up for want of it."""
    try:
        serving.require()
    except UserError as error:
        missing(error.message)


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """A function that returns the path of a host program, or gives the test up for want of it."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            missing(name)
        return str(path)

    return find
