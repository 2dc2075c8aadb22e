"""`devices`, `open`, `unlock`, `eject` and so on: what the daemon keeps, and what it is asked to do."""

import os
import time
from dataclasses import replace
from typing import Annotated, Any

from mountsafe.cli import completion, screen
from mountsafe.cli.options import Json
from mountsafe.cli.typers import App, argument, option
from mountsafe.cli.unlocking import Hidden, KeyFd, KeyFile, Keys, Pim, RecoveryKey, secret_of
from mountsafe.desktop.notices import state_of
from mountsafe.encrypted import secrecy
from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.volumes import NO_SIGNATURE
from mountsafe.session.messages import Locked
from mountsafe.session.record import READ_ONLY

INTERVAL = 0.2  # seconds between two looks at a medium that is being opened
_ON_THE_WAY = ("new", "busy", "opening", "waiting for a user")

NoSignature = Annotated[
    str | None,
    option(
        "--type",
        "-t",
        metavar="veracrypt|truecrypt",
        help="Take it for this type, of which there is no sign on it.",
        show_default=False,
    ),
]
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
    app.command(
        epilog="Examples: [bold]mountsafe unlock sdb[/bold], [bold]mountsafe unlock sdb --key-file secret[/bold], "
        "[bold]mountsafe unlock sdb --recovery-key[/bold], [bold]mountsafe unlock sdb --key-fd 3 3<secret[/bold], "
        "[bold]mountsafe unlock sdb --type veracrypt[/bold] (exit code 11: it is locked still)"
    )(unlock)
    app.command(epilog="Example: [bold]mountsafe lock sdb[/bold]")(lock)
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
        known = ("device", "fstype", "label", "state")
        rows = [[*(each[key] for key in known), _access(each), _where(each)] for each in found]
        screen.table(["DEVICE", "TYPE", "LABEL", "STATE", "ACCESS", "SHOWN ON, OR WHY NOT"], rows)
        for each in found:
            if each.get("note"):
                screen.warn(f"{each['device']}: {each['note']}")
    else:
        screen.note("no media")


def _access(medium: dict[str, Any]) -> str:
    """Whether it can be written to; a daemon of an earlier version has all of it only read."""
    access = str(medium.get("access", READ_ONLY if medium["mounts"] else ""))
    return f"{access}, saving" if medium.get("changing") else access


def _where(medium: dict[str, Any]) -> list[str]:
    """Return a line for each place where it is shown, and what is wrong; or why it is not."""
    if not medium["mounts"]:
        return [state_of(medium)]
    return [*medium["mounts"], *filter(None, [state_of(medium) if _is_locked(medium) else medium["problem"]])]


def _is_locked(medium: dict[str, Any]) -> bool:
    return bool(medium["state"] == "locked")


def open_medium(medium: Medium, json: Json = False) -> None:
    """Show a medium that the policy asks about, or that was unmounted; return when it is shown."""
    from mountsafe.daemon import client

    told = _medium(medium)
    if told is None or not (told["mounts"] or told["state"] in ("open", *_ON_THE_WAY)):
        client.act("Open", medium)
    told = _settled(medium, json)
    if not told["mounts"]:
        code = ExitCode.LOCKED if _is_locked(told) else ExitCode.SOURCE
        raise UserError(state_of(told), f"mountsafe devices shows {told['device']}.", code)
    _tell_where(told, medium, "open", json)


def _settled(medium: str, quiet: bool) -> dict[str, Any]:
    """Return what the daemon tells of a medium that is not on its way any more. Raises UserError."""
    with screen.progress(quiet) as progress:
        while (told := _medium(medium)) is not None and told["state"] in _ON_THE_WAY:
            progress(state_of(told))
            time.sleep(INTERVAL)
    if told is None:
        raise UserError(f"{medium} is gone", "mountsafe devices shows what is there.", ExitCode.SOURCE)
    return told


def _tell_where(told: dict[str, Any], medium: str, done: str, json: bool) -> None:
    """Say where it is shown, and what of it is not."""
    problem = state_of(told) if _is_locked(told) else told["problem"]
    if json:
        screen.print_json({"device": medium, "done": done, "mounts": told["mounts"], "problem": problem})
        return
    for where in told["mounts"]:
        screen.say(f"{told['device']} is open on {where}")
    if problem:
        screen.warn(problem)


def unlock(  # noqa: PLR0913  # a parameter for each option, as typer wants it
    medium: Medium,
    key_file: KeyFile = None,
    key_fd: KeyFd = None,
    recovery_key: RecoveryKey = False,
    fstype: NoSignature = None,
    pim: Pim = 0,
    hidden: Hidden = False,
    json: Json = False,
) -> None:
    """Unlock an encrypted medium, and show it to the user at the seat.

    It asks for the passphrase, three times at most. Whoever is at the seat may do that, and root.
    """
    secrecy.undumpable()
    keys = Keys(tuple(key_file or ()), key_fd, recovery_key)
    keys.check()
    told = _said(_settled(medium, json), fstype, pim, hidden, json)
    if key_file and told["locked"] in NO_SIGNATURE:
        hint = "Eject it, and plug it in while the daemon is stopped: mountsafe mount takes them."
        raise UserError(f"key files of {told['locked']} cannot be handed to the daemon", hint, ExitCode.USAGE)
    if not _is_locked(told):
        raise UserError(f"{told['device']} is not locked: it is {told['state']}", "mountsafe devices shows it.")
    _try(keys, told, json)
    _tell_where(_settled(medium, json), medium, "unlock", json)


def _said(told: dict[str, Any], named: str | None, pim: int, hidden: bool, quiet: bool) -> dict[str, Any]:
    """Have a medium that looks like noise taken for what somebody says that it is; return what is then told of it."""
    from mountsafe.daemon import client

    if named is None:
        if pim or hidden:
            raise UserError("--pim and --hidden go with --type", "For example: --type veracrypt", ExitCode.USAGE)
        return told
    fstype = next((each for each in NO_SIGNATURE if each.lower() == named.lower()), named)
    client.open_as(told["device"], fstype, pim, hidden)
    return _settled(told["device"], quiet)


def _try(keys: Keys, told: dict[str, Any], quiet: bool) -> None:
    """Have it unlocked with what is named or typed, as often as that makes sense. Raises UserError."""
    from mountsafe.daemon import client

    refused = UserError(f"there is no key for {told['device']}", "Name one, or use a terminal.", ExitCode.LOCKED)
    kind = told["locked"].split(", ")[0]
    locked = Locked(told["device"], kind, told["locked_uuid"], told["label"], told["locked_hint"], "")
    count = 1
    while (secret := secret_of(keys, locked, count)) is not None:
        form, fd = secret
        try:
            with screen.progress(quiet) as progress:
                progress(f"unlocking {told['device']}")
                return client.unlock(told["device"], form, fd)
        except client.WrongKey as error:
            refused = error
            locked = replace(locked, why=error.message)
        finally:
            os.close(fd)
        count += 1
    raise refused


def lock(medium: Medium, json: Json = False) -> None:
    """Unmount an encrypted medium that was unlocked: its key is forgotten, and needed again."""
    _act("Lock", medium, json)


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

    with screen.progress(json) as progress:
        progress(f"waiting until all of {medium} is saved")
        client.act(method, medium)
    if json:
        screen.print_json({"device": medium, "done": method.lower()})
    else:
        screen.say(f"{'ejected' if method == 'Eject' else 'locked'} {medium}")


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
    locked = f", locked: {told['locked']}" if told.get("locked") else ""
    screen.say(f"open: {told['open']}{locked}, blocked by the policy: {told['blocked']}")
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
