"""`appliance build` and `appliance info`."""

from dataclasses import asdict
from typing import Annotated

from mountsafe.appliance import build as builder
from mountsafe.cli import screen
from mountsafe.cli.options import Json
from mountsafe.cli.typers import App, option
from mountsafe.errors import ExitCode, UserError
from mountsafe.text import size

group = App(help="The virtual machine's kernel and programs, built from this host's packages.", no_args_is_help=True)


def register(app: App) -> None:
    """Add the group of verbs."""
    app.add_typer(group, name="appliance")


@group.command(epilog="Example: [bold]sudo mountsafe appliance build[/bold] (for every user of this machine)")
def build(
    force: Annotated[bool, option("--force", "-f", help="Build it even if it is current.")] = False,
    json: Json = False,
) -> None:
    """Build the appliance, if what it is made of has changed. `mount` does this by itself when it must.

    Where no virtual machine is saved that fits the kernel and the processor of today, one is booted and saved anew.
    """
    with screen.progress(json) as progress:
        built = builder.build(progress) if force else builder.refresh(progress)
    _show(built, json)


@group.command(epilog="Example: [bold]mountsafe appliance info --json[/bold]")
def info(json: Json = False) -> None:
    """Show the appliance that mounts would use."""
    found = builder.find()
    if found is None:
        raise UserError("the appliance has not been built", "mountsafe appliance build", ExitCode.DEPENDENCY)
    _show(found, json)


def _show(appliance: builder.Appliance, json: bool) -> None:
    if json:
        screen.print_json(asdict(appliance) | {"path": str(appliance.path)})
        return
    state = "current" if appliance.current else "outdated: the next mount builds it anew"
    rows = [
        ["path", str(appliance.path)],
        ["state", state],
        ["kernel", appliance.kernel_version],
        ["built", appliance.built_at],
        ["size", size(appliance.size)],
        ["packages", str(len(appliance.packages))],
        ["file systems", " ".join(appliance.filesystems)],
    ]
    screen.table(["", ""], rows)
