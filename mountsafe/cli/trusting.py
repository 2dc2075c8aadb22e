"""`trust` and `untrust`: a device is left to the system, or no longer."""

from pathlib import Path
from typing import Annotated

import typer

from mountsafe.cli import screen
from mountsafe.cli.mounting import Json
from mountsafe.cli.policies import DryRun, Rules
from mountsafe.errors import ExitCode, UserError
from mountsafe.policy import files, trust
from mountsafe.policy.facts import Facts
from mountsafe.system.files import put
from mountsafe.text import printable

Device = Annotated[Path, typer.Argument(help="A block device, plugged in.", show_default=False, readable=False)]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("trust", epilog="Example: [bold]sudo mountsafe trust /dev/sdb[/bold]")(trust_device)
    app.command("untrust", epilog="Example: [bold]sudo mountsafe untrust /dev/sdb[/bold]")(untrust_device)


def trust_device(device: Device, rules: Rules = files.FOLDER, dry_run: DryRun = False, json: Json = False) -> None:
    """Leave a device to the system from now on, known by its vendor, model and serial number."""
    facts = _facts(device)
    if "serial" not in trust.conditions(facts):
        hint = "Write a rule by hand if every device like it shall be trusted: /etc/mountsafe/policy.d."
        raise UserError(f"{device} has no serial number to know it by", hint, ExitCode.SOURCE)
    old = _read(rules)
    _write(rules, old, trust.with_rule(old, facts), dry_run, json)
    if not json:
        screen.warn(trust.WARNING)


def untrust_device(device: Device, rules: Rules = files.FOLDER, dry_run: DryRun = False, json: Json = False) -> None:
    """Open a device in a virtual machine again."""
    old = _read(rules)
    _write(rules, old, trust.without_rule(old, _facts(device)), dry_run, json)


def _facts(device: Path) -> Facts:
    from mountsafe.hotplug.devices import facts_of  # loads libudev, which few verbs need

    found = facts_of(device)
    if not found:
        raise UserError(
            f"{printable(str(device))} is no medium that is plugged in", "lsblk shows them.", ExitCode.SOURCE
        )
    return found[0]


def _read(rules: Path) -> str:
    place = rules / trust.NAME
    try:
        text = place.read_text(encoding="utf-8")
        trust.trusted(text)
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise UserError(f"cannot read {place}: {error}", "Mend it, or move it away.", ExitCode.SOURCE) from error
    return text


def _write(rules: Path, old: str, new: str, dry_run: bool, json: bool) -> None:
    place = rules / trust.NAME
    changed = trust.trusted(old) != trust.trusted(new)
    if changed and not dry_run:
        try:
            put(place, new.encode(), 0o644)
        except PermissionError as error:
            raise UserError(f"{place}: {error.strerror}", "Run it as root.", ExitCode.TARGET) from error
    if json:
        screen.print_json({"file": str(place), "dry_run": dry_run, "changed": changed, "trusted": trust.trusted(new)})
    elif not changed:
        screen.say("nothing to do")
    else:
        screen.say(f"{'would write' if dry_run else 'wrote'} {place}; sudo mountsafe policy install puts it in force")
