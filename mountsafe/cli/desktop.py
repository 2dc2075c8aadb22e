"""`agent` and `forget`: notifications about a user's media on the desktop, and the keys that are remembered there."""

import logging
from typing import Annotated

from mountsafe.cli import screen
from mountsafe.cli.options import Json
from mountsafe.cli.typers import App, argument, option


def register(app: App) -> None:
    """Add the verb."""
    app.command(epilog="Example: [bold]systemctl --user enable --now mountsafe-agent[/bold] (starts it at each login)")(
        agent
    )
    app.command(
        epilog="Examples: [bold]mountsafe forget[/bold] (all of them), "
        "[bold]mountsafe forget 6f1c2a34-0000-4000-8000-5a3b2c1d0e9f[/bold]"
    )(forget)


def agent(
    any_seat: Annotated[
        bool, option("--any-seat", help="Tell of blocked media wherever this user sits (without systemd-logind).")
    ] = False,
) -> None:
    """Show desktop notifications about media, with buttons, until the session ends.

    Users are told of the media that are shown to them, and, while they are at the seat, of those that are blocked.
    """
    from mountsafe.desktop.agent import Agent
    from mountsafe.encrypted import secrecy
    from mountsafe.trios import run

    secrecy.undumpable()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(Agent(any_seat).run)


def forget(
    uuid: Annotated[
        str, argument(metavar="[UUID]", help="Of what the key unlocks; without it, all keys.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Forget keys of encrypted media that were remembered in the Secret Service of this session."""
    from mountsafe.desktop import remembering

    count = remembering.forget(uuid)
    if json:
        screen.print_json({"forgotten": count})
    else:
        screen.say(f"forgotten: {count} {'key' if count == 1 else 'keys'}")
