"""`agent`: what happens to a user's media, on his desktop."""

import logging
from typing import Annotated

from mountsafe.cli.typers import App, option


def register(app: App) -> None:
    """Add the verb."""
    app.command(epilog="Example: [bold]systemctl --user enable --now mountsafe-agent[/bold] (starts it at each login)")(
        agent
    )


def agent(
    any_seat: Annotated[
        bool, option("--any-seat", help="Tell of blocked media wherever this user sits (without systemd-logind).")
    ] = False,
) -> None:
    """Show desktop notifications about media, with buttons, until the session ends.

    A user hears of the media that are shown to him, and of those that are blocked while he is at the seat.
    """
    from mountsafe.desktop.agent import Agent
    from mountsafe.encrypted import secrecy
    from mountsafe.trios import run

    secrecy.undumpable()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(Agent(any_seat).run)
