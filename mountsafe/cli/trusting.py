"""`trust` and `untrust`: how a device is treated from now on, whatever is on it.

The daemon does it at once: for root, and for others if polkit lets them. Where none runs, root does the same here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mountsafe.cli import completion, screen
from mountsafe.cli.options import Json
from mountsafe.cli.policies import DryRun, Rules
from mountsafe.cli.typers import App, argument, option
from mountsafe.errors import ExitCode, UserError
from mountsafe.policy import files, trust
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Verdict
from mountsafe.text import printable

if TYPE_CHECKING:
    from mountsafe.system.trusting import Change

Device = Annotated[
    Path,
    argument(help="A block device, plugged in.", show_default=False, readable=False, autocompletion=completion.devices),
]
HowFar = Annotated[
    Verdict, option(metavar="VERDICT", help="kernel: leave it to the system; sandbox: open it without asking.")
]


def register(app: App) -> None:
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
    from mountsafe.system import trusting

    def change_of(facts: Facts) -> "Change":
        return trusting.to_trust(rules, facts, verdict)

    if dry_run or rules != files.FOLDER:
        _write(change_of, device, dry_run, json)
    else:
        _at_once("Trust", change_of, device, json, str(verdict))
    if not json and verdict == Verdict.KERNEL:
        screen.warn(trust.WARNING)


def untrust_device(device: Device, rules: Rules = files.FOLDER, dry_run: DryRun = False, json: Json = False) -> None:
    """Treat a device as the other rules say again."""
    from mountsafe.system import trusting

    def change_of(facts: Facts) -> "Change":
        return trusting.to_untrust(rules, facts)

    if dry_run or rules != files.FOLDER:
        _write(change_of, device, dry_run, json)
    else:
        _at_once("Untrust", change_of, device, json)


def _at_once(method: str, change_of: "Callable[[Facts], Change]", device: Path, json: bool, *arguments: str) -> None:
    """Write the rule and put it in force. Raises UserError."""
    from mountsafe.daemon import client

    try:
        client.act(method, str(device), *arguments)
    except client.DaemonAway:
        if os.geteuid() != 0:
            raise
        _here(change_of, device)
    if json:
        screen.print_json({"device": str(device), "done": method.lower()})
    else:
        screen.say(f"{'trusted' if method == 'Trust' else 'no longer trusted'}: {printable(str(device))}")


def _here(change_of: "Callable[[Facts], Change]", device: Path) -> None:
    """Do what the daemon would, but for letting go of the medium, which nobody keeps."""
    from mountsafe.hotplug.devices import facts_of
    from mountsafe.system import inforce, trusting

    facts = _facts(device)
    trusting.put_in_force(files.FOLDER, lambda: change_of(facts))
    inforce.look_again([each.device for each in facts_of(device)])


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
        screen.say(f"{done} {change.place}")
