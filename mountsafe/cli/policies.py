"""`policy`: what is done with a medium, which rule says so, and the system rules that make it so."""

import difflib
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mountsafe import environment
from mountsafe.cli import inspecting, screen
from mountsafe.cli.options import Json, Source
from mountsafe.cli.typers import App, option
from mountsafe.errors import ExitCode
from mountsafe.medium.source import open_medium
from mountsafe.policy import files
from mountsafe.policy.facts import Facts
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Decision, Verdict
from mountsafe.system import inforce
from mountsafe.system.files import Change, Files, Plan

if TYPE_CHECKING:
    from mountsafe.system.check import Finding

group = App(no_args_is_help=True, help="What is done with a medium that is plugged in, and why.")

Rules = Annotated[Path, option("--rules", metavar="DIR", help="Take policy.toml and policy.d from here.")]
Root = Annotated[Path, option("--root", metavar="DIR", help="Install below this folder; nothing is reloaded.")]
Strict = Annotated[
    list[RiskClass] | None,
    option(
        "--strict",
        metavar="CLASS",
        help="Also keep the kernel from loading parsers of this risk class (critical, high); may be repeated, and "
        "stays until `uninstall`.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, option("--dry-run", "-n", help="Show what would be done, and do nothing.")]
Force = Annotated[bool, option("--force", "-f", help="Overwrite generated files that somebody has changed.")]
HOST = Path("/")


def register(app: App) -> None:
    """Add the group of verbs."""
    app.add_typer(group, name="policy")


@group.command(
    epilog="Examples: [bold]mountsafe policy explain /dev/sdb[/bold], "
    "[bold]mountsafe policy explain disk.img --rules ./my-rules --json[/bold]"
)
def explain(source: Source, rules: Rules = files.FOLDER, json: Json = False) -> None:
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
    screen.table(["DEVICE", "TYPE", "LABEL", "VERDICT", "ACCESS", "RULE", "BECAUSE"], [_row(*each) for each in judged])


def _facts(source: Path, quiet: bool) -> list[Facts]:
    try:
        is_device = stat.S_ISBLK(source.stat().st_mode)
    except OSError:
        is_device = False  # opening it says why
    if is_device:
        from mountsafe.hotplug.devices import facts_of  # loads libudev, which few verbs need

        return facts_of(source)
    volumes = inspecting.find(open_medium(source), quiet).volumes
    return [
        Facts(fstype=each.fstype, label=each.label, uuid=each.uuid, bus="image", size=each.size)
        for each in volumes
        if each.fstype
    ]


def _told(facts: Facts) -> dict[str, Any]:
    return {**asdict(facts), "risk": str(facts.risk.level), "encrypted": facts.encrypted}


def _row(facts: Facts, decision: Decision) -> list[str]:
    where = facts.device or "image"
    rule = decision.rule if decision.rule == decision.origin else f"{decision.rule} ({decision.origin})"
    return [
        where,
        facts.fstype or "-",
        facts.label,
        decision.verdict,
        _access(decision),
        rule if decision.rule else "none",
        decision.reason,
    ]


def _access(decision: Decision) -> str:
    """Whether it may be written to, as far as its type goes; of what no virtual machine opens nothing is said."""
    opened = decision.verdict in (Verdict.SANDBOX, Verdict.ASK)
    return decision.access if opened else ""


@group.command(epilog="Example: [bold]mountsafe policy example | sudo tee /etc/mountsafe/policy.toml[/bold]")
def example() -> None:
    """Print a policy.toml that explains itself: every key, and thirteen rules to copy. As it is it changes nothing."""
    screen.document(files.EXAMPLE.read_text(encoding="utf-8").rstrip("\n"))


# --- the system rules ------------------------------------------------------------------------------------------------
@group.command(
    epilog="Examples: [bold]mountsafe policy render[/bold], "
    "[bold]mountsafe policy render --strict critical --output ./rules[/bold]"
)
def render(
    rules: Rules = files.FOLDER,
    strict: Strict = None,
    output: Annotated[
        Path | None, option("--output", "-o", metavar="DIR", help="Write them there.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Print the udev, polkit and modprobe files that `install` puts in place. It needs no right."""
    wanted = inforce.wanted(rules, HOST, strict or [], harmless=False)
    if output is not None:
        environment.require_folder(output, {0, environment.caller()[0]})
        for path, text in wanted.items():
            place = output / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    if json:
        screen.print_json({"files": wanted})
    elif output is None:
        for path, text in wanted.items():
            screen.say(f"# {path}")
            screen.document(text)


@group.command(
    epilog="Examples: [bold]sudo mountsafe policy install[/bold], "
    "[bold]mountsafe policy install --strict critical --dry-run[/bold]"
)
def install(  # a parameter for each option, as typer wants it
    rules: Rules = files.FOLDER,
    root: Root = HOST,
    strict: Strict = None,
    dry_run: DryRun = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Put the rules in place that keep the host's kernel from mounting what the policy gives to the virtual machine.

    They apply to what is plugged in from then on. Nothing that the machine uses now is touched: if a rule would hide
    it, nothing is installed.
    """
    made = Files(root)
    wanted = inforce.wanted(rules, root, inforce.strict_of(made, strict), harmless=root == HOST)
    with inforce.rights():
        _carry_out(made, made.plan_install(wanted, force), dry_run, json)


@group.command(epilog="Example: [bold]sudo mountsafe policy uninstall[/bold]")
def uninstall(root: Root = HOST, dry_run: DryRun = False, force: Force = False, json: Json = False) -> None:
    """Remove the rules, and put back what was there before, to the byte."""
    made = Files(root)
    with inforce.rights():
        _carry_out(made, made.plan_uninstall(force), dry_run, json)


def _carry_out(made: Files, plan: Plan, dry_run: bool, json: bool) -> None:
    if not dry_run:
        environment.require_folder(made.root, {0, environment.caller()[0]})
        made.carry_out(plan)
    changed = [change for change in plan.changes if change.old != change.new]
    reloaded = bool(changed) and not dry_run and made.root == HOST and inforce.reload_udev()
    if json:
        told = [{"path": str(change.path), "change": change.verb} for change in plan.changes]
        screen.print_json({"dry_run": dry_run, "files": told, "reloaded": reloaded})
        return
    for change in plan.changes:
        screen.say(f"{change.verb:8}{change.path}")
    if reloaded:
        screen.say("udev has read its rules anew; they apply to what is plugged in from now on")
    elif not changed:
        screen.say("nothing to do")


@group.command(epilog="Example: [bold]mountsafe policy diff[/bold] (exit code 1: there are differences)")
def diff(rules: Rules = files.FOLDER, root: Root = HOST, strict: Strict = None, json: Json = False) -> None:
    """Show how the files in place differ from those that the policy makes now."""
    made = Files(root)
    with inforce.rights():
        plan = made.plan_install(
            inforce.wanted(rules, root, inforce.strict_of(made, strict), harmless=False), force=True
        )
    texts = [(change, "".join(_difference(change))) for change in plan.changes if change.old != change.new]
    if json:
        screen.print_json([{"path": str(change.path), "diff": text} for change, text in texts])
    else:
        for _, text in texts:
            screen.document(text.rstrip("\n"))
    if texts:
        raise typer.Exit(int(ExitCode.FAILURE))


def _difference(change: Change) -> list[str]:
    old, new = ((content or b"").decode("utf-8", "replace").splitlines(True) for content in (change.old, change.new))
    path = str(change.path)
    return list(difflib.unified_diff(old, new, path if change.old is not None else os.devnull, path))


@group.command(
    epilog="Examples: [bold]mountsafe policy check[/bold], [bold]sudo mountsafe policy check --json[/bold] "
    "(exit code 1: there are findings)"
)
def check(rules: Rules = files.FOLDER, strict: Strict = None, json: Json = False) -> None:
    """Look at this machine as it is: who could still mount what. No finding is the proof that the policy is in force.

    As root it also finds devices that nobody claims, which root could mount.
    """
    from mountsafe.system import check as live
    from mountsafe.system import generated

    found = live.findings(inforce.readable(rules), generated.exemptions(), inforce.strict_of(Files(), strict))
    if json:
        screen.print_json([asdict(finding) for finding in found])
    else:
        _tell(found)
    if not all(each.unknown for each in found):
        raise typer.Exit(int(ExitCode.FAILURE))


def _tell(found: "list[Finding]") -> None:
    for each in found:
        if each.unknown:
            screen.warn(f"{each.what}. {each.hint}")
    rows = [[each.device or "all", each.who, each.what, each.hint] for each in found if not each.unknown]
    if rows:
        screen.table(["DEVICE", "WHO", "WHY", "WHAT HELPS"], rows)
    else:
        screen.say("no findings: what the policy manages, nobody but mountsafe mounts")
