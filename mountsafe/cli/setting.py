"""`setup`: put the policy and the service in force in one step, and revert that."""

from typing import Annotated

from mountsafe.cli import screen
from mountsafe.cli.options import Json
from mountsafe.cli.policies import Rules
from mountsafe.cli.typers import App, option
from mountsafe.policy import files


def register(app: App) -> None:
    """Add the verb."""
    app.command(
        epilog="Examples: [bold]sudo mountsafe setup[/bold], [bold]sudo mountsafe setup --undo[/bold]",
    )(setup)


def setup(
    undo: Annotated[bool, option("--undo", help="Take it back: media are handled as they were before.")] = False,
    rules: Rules = files.FOLDER,
    json: Json = False,
) -> None:
    """Have whatever is plugged in shown through a virtual machine from now on, and mounted by nobody else.

    It puts the policy in force and starts the service: `policy install` and `systemctl enable --now mountsafe` in one.
    Nothing that the machine uses now is touched.
    """
    from mountsafe.system import setup as doing

    done: list[str] = []
    with screen.progress(json) as progress:
        if undo:
            progress("taking the policy back, ending the service")
            doing.end(done.append)
        else:
            progress("putting the policy in force, starting the service, which may build the virtual machine first")
            doing.begin(rules, done.append)
    if json:
        screen.print_json({"undone" if undo else "done": done})
        return
    for each in done:
        screen.say(each)
    if not undo:
        screen.say("mountsafe devices lists media; to take all of it back: sudo mountsafe setup --undo")
