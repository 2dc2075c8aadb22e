"""What must be there before a medium is opened in a virtual machine."""

from collections.abc import Callable

from mountsafe import sandbox
from mountsafe.appliance import build
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium


def prepare(medium: Medium, progress: Callable[[str], None]) -> None:
    """Make sure that all of it is there, and build the appliance if it is not; `progress` hears of that.

    Raises UserError.
    """
    sandbox.require()
    if medium.format is not Format.RAW:
        from mountsafe.container import opened  # with trio

        opened.require()
    build.ensure(progress)
