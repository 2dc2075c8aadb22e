"""`devices`, `open`, `eject`, `watch`, `status` and `reload`: what the daemon keeps, and what it is asked to do."""

import time
from typing import Annotated, Any

from mountsafe.cli import completion, screen
from mountsafe.cli.mounting import Json
from mountsafe.cli.typers import App, argument
from mountsafe.desktop.notices import state_of
from mountsafe.errors import ExitCode, UserError

INTERVAL = 0.2  # seconds between two looks at a medium that is being opened
_ON_THE_WAY = ("new", "busy", "opening", "waiting for a user")

Medium = Annotated[
    str,
    argument(
        metavar="DEVICE|DIR",
        help="A device, or where it is shown.",
        show_default=False,
        autocompletion=completion.media,
    ),
]


def register(app: App) -> None:
    """Add the verbs."""
    app.command(epilog="Example: [bold]mountsafe devices --json[/bold]")(devices)
    app.command("open", epilog="Example: [bold]mountsafe open sdb[/bold]")(open_medium)
    app.command(epilog="Examples: [bold]mountsafe eject sdb[/bold], [bold]mountsafe eject /run/media/me/PHOTOS[/bold]")(
        eject
    )
    app.command(epilog="Example: [bold]mountsafe watch --json[/bold] (an object a line)")(watch)
    app.command(epilog="Example: [bold]mountsafe status --json[/bold] (exit code 5: the daemon does not run)")(status)
    app.command(epilog="Example: [bold]mountsafe reload[/bold] (asks for an administrator's password)")(reload)


def devices(json: Json = False) -> None:
    """List the media that the daemon keeps, and what it does with each."""
    from mountsafe.daemon import client  # needs a bus, which few verbs do

    found = client.media()
    if json:
        screen.print_json(found)
    elif found:
        rows = [[*(each[key] for key in ("device", "fstype", "label", "state")), _where(each)] for each in found]
        screen.table(["DEVICE", "TYPE", "LABEL", "STATE", "SHOWN ON, OR WHY NOT"], rows)
        for each in found:
            if each.get("note"):
                screen.warn(f"{each['device']}: {each['note']}")
    else:
        screen.note("no media")


def _where(medium: dict[str, Any]) -> list[str]:
    """Return a line for each place where it is shown, and what is wrong; or why it is not."""
    return [*medium["mounts"], *filter(None, [medium["problem"]])] if medium["mounts"] else [state_of(medium)]


def open_medium(medium: Medium, json: Json = False) -> None:
    """Show a medium that the policy asks about, or that was unmounted; return when it is shown."""
    from mountsafe.daemon import client

    if (told := _medium(medium)) is None or told["state"] not in ("open", *_ON_THE_WAY):
        client.act("Open", medium)
    with screen.progress(json) as progress:
        while (told := _medium(medium)) is not None and told["state"] in _ON_THE_WAY:
            progress(state_of(told))
            time.sleep(INTERVAL)
    if told is None:
        raise UserError(f"{medium} is gone", "mountsafe devices shows what is there.", ExitCode.SOURCE)
    if told["state"] != "open":
        raise UserError(state_of(told), f"mountsafe devices shows {told['device']}.", ExitCode.SOURCE)
    if json:
        screen.print_json({"device": medium, "done": "open", "mounts": told["mounts"], "problem": told["problem"]})
        return
    for where in told["mounts"]:
        screen.say(f"{told['device']} is open on {where}")
    if told["problem"]:
        screen.warn(told["problem"])


def _medium(name: str) -> dict[str, Any] | None:
    """Return what the daemon tells of a medium, by its device or a place where it is shown."""
    from mountsafe.daemon import client

    device = name.removeprefix("/dev/")
    return next((each for each in client.media() if each["device"] == device or name in each["mounts"]), None)


def eject(medium: Medium, json: Json = False) -> None:
    """Unmount a medium and let go of it: it can be pulled out."""
    _act("Eject", medium, json)


def _act(method: str, medium: str, json: bool) -> None:
    from mountsafe.daemon import client

    client.act(method, medium)
    if json:
        screen.print_json({"device": medium, "done": method.lower()})
    else:
        screen.say(f"{'ejected' if method == 'Eject' else 'opening'} {medium}")


def watch(json: Json = False) -> None:
    """Print what happens to media, until Ctrl-C."""
    from mountsafe.daemon import client

    for event, told in client.news():
        if json:
            screen.print_event({"event": event, "medium": told})
        elif event == "watching":
            screen.note("watching; Ctrl-C ends it")
        elif event == "removed":
            screen.say(f"{told}: removed")
        elif event == "incident":
            screen.say(f"{told['device']}: {told['words']}")
        else:
            screen.say(f"{told['device']} {told['fstype']} {told['label']}: {told['state']}  {'  '.join(_where(told))}")


def status(json: Json = False) -> None:
    """Say how the daemon is: its version, how many media it keeps, whether its policy can be read."""
    from mountsafe.daemon import client

    told = client.status()
    if json:
        screen.print_json(told)
        return
    screen.say(f"mountsafe {told['version']} keeps {told['media']} media of {told['most']} that it can")
    screen.say(f"open: {told['open']}, blocked by the policy: {told['blocked']}")
    screen.say(f"rules: {told['rules']}; virtual machines run with: {told['acceleration']}")
    if told["policy_error"]:
        screen.warn(f"the policy cannot be read, so everything external is refused: {told['policy_error']}")


def reload(json: Json = False) -> None:
    """Have the daemon read its rules anew, for what is plugged in from then on."""
    from mountsafe.daemon import client

    client.act("Reload")
    told = client.status()
    if json:
        screen.print_json(told)
    elif told["policy_error"]:
        screen.warn(f"the policy cannot be read, so everything external is refused: {told['policy_error']}")
    else:
        screen.say(f"{told['rules']} rules were read")
