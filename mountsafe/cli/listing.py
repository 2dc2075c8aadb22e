"""`list`."""

from mountsafe.cli import screen
from mountsafe.cli.mounting import tell_missing
from mountsafe.cli.options import Json
from mountsafe.cli.shown import DAEMON, by_daemon, to_me
from mountsafe.cli.typers import App
from mountsafe.session import running
from mountsafe.session.record import READ_ONLY, Mount
from mountsafe.text import shown_path


def register(app: App) -> None:
    """Add the verb."""
    app.command("list", epilog="Example: [bold]mountsafe list --json[/bold]")(list_mounts)


def _access(mounted: Mount) -> str:
    """Say whether a mount can be changed, and whether it was."""
    if mounted.access == READ_ONLY:
        return READ_ONLY
    lost = ", changes were lost" if mounted.unsaved else ""
    return f"{mounted.access}, {'changed' if mounted.written else 'unchanged'}{lost}"


def list_mounts(json: Json = False) -> None:
    """List what is mounted, by you or by the daemon for you; for root, all that the daemon shows."""
    records = running.status(screen.warn)
    kept = {medium.source: medium for medium in to_me()}
    if json:
        told = [record.facts() | by_daemon(kept.pop(record.source, None)) for record in records]
        screen.print_json(told + [medium.facts() for medium in kept.values()])
        return
    rows = [
        [shown_path(record.source), mounted.fstype, mounted.label, _access(mounted), shown_path(mounted.target), by]
        for record in records
        for by in [DAEMON if kept.pop(record.source, None) else "mount"]
        for mounted in record.mounts
    ]
    for medium in kept.values():
        rows += [[medium.source, *what, DAEMON] for what in medium.rows()]
    headings = ["SOURCE", "TYPE", "LABEL", "ACCESS", "MOUNTED ON", "BY"]
    if any(row[-1] == DAEMON for row in rows):
        screen.table(headings, rows)
    elif rows:
        screen.table(headings[:-1], [row[:-1] for row in rows])
    else:
        screen.note("nothing is mounted")
    for record in records:
        tell_missing(record)
