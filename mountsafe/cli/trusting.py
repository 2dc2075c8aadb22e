"""`trust` and `untrust`: how a device is treated from now on, whatever is on it.

Root writes the rule himself, whether the daemon runs or not. For others the daemon does it, if polkit lets them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mountsafe.cli import screen
from mountsafe.cli.mounting import Json
from mountsafe.cli.policies import DryRun, Rules
from mountsafe.errors import ExitCode, UserError
from mountsafe.policy import files, trust
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Verdict
from mountsafe.text import printable

if TYPE_CHECKING:
    from mountsafe.system.trusting import Change

Device = Annotated[Path, typer.Argument(help="A block device, plugged in.", show_default=False, readable=False)]
HowFar = Annotated[
    Verdict, typer.Option(metavar="VERDICT", help="kernel: leave it to the system; sandbox: open it without asking.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(
        "trust",
        epilog="Examples: [bold]sudo mountsafe trust /dev/sdb[/bold], "
        "[bold]mountsafe trust /dev/sdb --verdict sandbox[/bold] (asks for an administrator's password)",
    )(trust_device)
    app.command("untrust", epilog="Example: [bold]sudo mountsafe untrust /dev/sdb[/bold]")(untrust_device)


def trust_device(
    device: Device,
    verdict: HowFar = Verdict.KERNEL,
    rules: Rules = files.FOLDER,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Leave a device to the system from now on, known by its vendor, model and serial number.

    With --verdict sandbox it is opened in a virtual machine, also where other rules ask or refuse.
    """
    if verdict not in trust.VERDICTS:
        raise UserError(f"trust is never {verdict}", f"One of: {', '.join(trust.VERDICTS)}.", ExitCode.USAGE)
    if _by_daemon(rules, dry_run):
        _ask("Trust", device, json, str(verdict))
    else:
        from mountsafe.system import trusting

        _write(lambda facts: trusting.to_trust(rules, facts, verdict), device, dry_run, json)
    if not json and verdict == Verdict.KERNEL:
        screen.warn(trust.WARNING)


def untrust_device(device: Device, rules: Rules = files.FOLDER, dry_run: DryRun = False, json: Json = False) -> None:
    """Treat a device as the other rules say again."""
    if _by_daemon(rules, dry_run):
        _ask("Untrust", device, json)
    else:
        from mountsafe.system import trusting

        _write(lambda facts: trusting.to_untrust(rules, facts), device, dry_run, json)


def _by_daemon(rules: Path, dry_run: bool) -> bool:
    return os.geteuid() != 0 and rules == files.FOLDER and not dry_run


def _ask(method: str, device: Path, json: bool, *arguments: str) -> None:
    from mountsafe.daemon import client

    client.act(method, str(device), *arguments)
    if json:
        screen.print_json({"device": str(device), "done": method.lower()})
    else:
        screen.say(f"{'trusted' if method == 'Trust' else 'no longer trusted'}: {printable(str(device))}")


def _facts(device: Path) -> Facts:
    from mountsafe.hotplug.devices import facts_of  # loads libudev, which few verbs need

    found = facts_of(device)
    if not found:
        raise UserError(
            f"{printable(str(device))} is no medium that is plugged in", "lsblk shows them.", ExitCode.SOURCE
        )
    return found[0]


def _write(change_of: "Callable[[Facts], Change]", device: Path, dry_run: bool, json: bool) -> None:
    change = change_of(_facts(device))
    if change.changed and not dry_run:
        change.write()
    if json:
        told = {"file": str(change.place), "dry_run": dry_run, "changed": change.changed}
        screen.print_json({**told, "trusted": trust.trusted(change.new)})
    elif not change.changed:
        screen.say("nothing to do")
    else:
        done = "would write" if dry_run else "wrote"
        screen.say(
            f"{done} {change.place}; sudo mountsafe policy install puts it in force, mountsafe reload in the daemon"
        )
