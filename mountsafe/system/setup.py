"""Policy and service, in force or not, together: rules without the service hide media from everybody."""

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.system import inforce
from mountsafe.system.files import Files
from mountsafe.system.units import SYSTEMD
from mountsafe.text import printable

SERVICE = "mountsafe.service"
AGENT = "mountsafe-agent.service"
# The service waits for the appliance, which is built in software emulation.
START_DEADLINE = 700.0
Say = Callable[[str], None]


def begin(rules: Path, say: Say) -> None:
    """Put the policy in force and start the service, now and at each boot. Raises UserError, with nothing changed."""
    if not SYSTEMD.is_dir():
        hint = "Without it: sudo mountsafe policy install; sudo mountsafe daemon"
        raise UserError("systemd does not run this machine", hint, ExitCode.DEPENDENCY)
    made = Files()
    was_installed = bool(made.installed())
    with inforce.rights():
        inforce.put(rules, made)
    say("policy: udisks and desktops mount nothing external from now on")
    try:
        _systemctl("enable", "--now", SERVICE)
        say(f"{SERVICE}: runs, now and at each boot")
        _systemctl("--global", "enable", AGENT)
        say(f"{AGENT}: tells each user of media, from their next login on")
    except BaseException:  # Ctrl-C as well
        if not was_installed:
            end(say)
        raise


def end(say: Say) -> None:
    """Take both back: every file is as it was before. What is mounted by hand stays mounted."""
    made = Files()
    with inforce.rights():
        made.carry_out(made.plan_uninstall())
    inforce.reload_udev()
    say("policy: every file is as it was before")
    if SYSTEMD.is_dir():
        _systemctl("--global", "disable", AGENT)
        _end_agents()
        _systemctl("disable", "--now", SERVICE)
        say(f"{SERVICE} and {AGENT}: ended, and not started again")


def _end_agents() -> None:
    """End what runs in the sessions of those who are logged in; that one has none is no reason to stop here."""
    listed = subprocess.run(
        ["loginctl", "list-users", "--no-legend"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    for user in (line.split()[1] for line in listed.stdout.splitlines()):
        with suppress(UserError):
            _systemctl("--user", f"--machine={user}@", "stop", AGENT)


def _systemctl(*words: str) -> None:
    command = ["systemctl", "--quiet", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=START_DEADLINE
        )
    except subprocess.TimeoutExpired:
        why = f"no answer in {START_DEADLINE:.0f} s"
    except OSError as error:
        why = f"{error}"
    else:
        if done.returncode == 0:
            return
        why = printable(done.stderr.strip().partition("\n")[0]) or f"exit code {done.returncode}"
    raise UserError(
        f"systemctl {' '.join(words)}: {why}", f"journalctl --unit={SERVICE} says more.", ExitCode.DEPENDENCY
    )
