"""`policy`: what is done with a medium, and which rule says so."""

import stat
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mountsafe.cli import inspecting, screen
from mountsafe.cli.mounting import Json, Source
from mountsafe.medium.source import open_medium
from mountsafe.policy import files
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision

app = typer.Typer(no_args_is_help=True, help="What is done with a medium that is plugged in, and why.")
_EXAMPLES = (
    "Examples: [bold]mountsafe policy explain /dev/sdb[/bold], "
    "[bold]mountsafe policy explain disk.img --rules ./my-rules --json[/bold]"
)


@app.command(epilog=_EXAMPLES)
def explain(
    source: Source,
    rules: Annotated[
        Path, typer.Option("--rules", metavar="DIR", help="Take policy.toml and policy.d from here.")
    ] = files.FOLDER,
    json: Json = False,
) -> None:
    """Say what the policy does with each file system of a device or an image, and which rule decides.

    Of a device udev's database is asked, which needs no right; an image is looked at inside a virtual machine.
    """
    policy = files.load(rules)
    judged = [(facts, policy.decide(facts)) for facts in _facts(source, json)]
    if json:
        told = [{"facts": _told(facts), **asdict(decision)} for facts, decision in judged]
        screen.print_json({"source": str(source), "policy_error": policy.broken, "decisions": told})
        return
    if policy.broken:
        screen.warn(f"the policy cannot be read: {policy.broken}")
    if not judged:
        screen.say("nothing in it is a medium: no rule applies")
        return
    screen.table(["DEVICE", "TYPE", "LABEL", "VERDICT", "RULE", "BECAUSE"], [_row(*each) for each in judged])


def _facts(source: Path, quiet: bool) -> list[Facts]:
    try:
        is_device = stat.S_ISBLK(source.stat().st_mode)
    except OSError:
        is_device = False  # opening it says why
    if is_device:
        from mountsafe.hotplug.devices import facts_of  # loads libudev, which no other verb needs

        return facts_of(source)
    volumes = inspecting.find(open_medium(source), quiet)
    return [
        Facts(fstype=each.fstype, label=each.label, uuid=each.uuid, bus="image", size=each.size)
        for each in volumes
        if each.fstype
    ]


def _told(facts: Facts) -> dict[str, Any]:
    return {**asdict(facts), "risk": str(facts.risk.level)}


def _row(facts: Facts, decision: Decision) -> list[str]:
    where = facts.device or "image"
    rule = decision.rule if decision.rule == decision.origin else f"{decision.rule} ({decision.origin})"
    return [
        where,
        facts.fstype or "-",
        facts.label,
        decision.verdict,
        rule if decision.rule else "none",
        decision.reason,
    ]
