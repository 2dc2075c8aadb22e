"""What the tests with a real virtual machine share."""

from collections.abc import Iterator

import pytest

from mountsafe.errors import UserError
from tests.conftest import missing
from tests.vm.sight import Looking


@pytest.fixture(scope="session")
def looking() -> Iterator[Looking]:
    """A function that opens an image as mountsafe does and returns all that a user sees of it."""
    try:
        looking = Looking()
    except UserError as error:
        missing(error.message)
        raise
    yield looking
    looking.close()
