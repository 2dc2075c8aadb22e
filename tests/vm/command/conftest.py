"""The stage, once for all tests of the command line; and a look at what each test leaves behind."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.vm.command.stage import Person, Stage, build_stage
from tests.vm.command.traces import PATIENCE, Traces


@pytest.fixture(scope="session")
def stage(repository: Path, program: Callable[[str], str]) -> Iterator[Stage]:
    for name in ("qemu-system-x86_64", "supermin", "bwrap", "fusermount3"):
        program(name)
    with build_stage(repository) as made:
        yield made


@pytest.fixture(scope="session")
def user(stage: Stage) -> Person:
    return stage.persons["user"]


@pytest.fixture(scope="session")
def root(stage: Stage) -> Person:
    if "root" not in stage.persons:
        missing("root")
    return stage.persons["root"]


@pytest.fixture(params=["user", "root"])
def person(request: pytest.FixtureRequest) -> Person:
    found: Person = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def library(stage: Stage) -> Path:
    """Where unpacked images are; they belong to who runs the tests and may be read by all."""
    path = stage.root / "images"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def folder(request: pytest.FixtureRequest, user: Person) -> Iterator[Path]:
    """A folder for one test: of the person it is about, else of the user."""
    owner: Person = request.getfixturevalue("person") if "person" in request.fixturenames else user
    path = owner.folder()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def traces(stage: Stage) -> Iterator[None]:
    """Nothing that a test did not have before it may be there after it, whoever did it."""
    before = {person: Traces.taken(person) for person in stage.persons.values()}
    yield
    try:
        for person, taken in before.items():
            taken.assert_same(person, PATIENCE)
    finally:
        for person, taken in before.items():
            taken.restore(person)
