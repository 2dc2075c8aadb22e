"""`view`: an image that is double-clicked in a file manager."""

from pathlib import Path

from mountsafe.cli import already, screen
from mountsafe.cli.opening import begin
from mountsafe.cli.options import Json, Source
from mountsafe.cli.typers import App
from mountsafe.cli.unlocking import Keys, unlocker
from mountsafe.medium.part import WHOLE
from mountsafe.medium.source import open_medium
from mountsafe.session.messages import Locked
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Record
from mountsafe.session.running import unmount_one
from mountsafe.text import printable, shown_path


def register(app: App) -> None:
    """Add the verb."""
    app.command(epilog="Example: [bold]mountsafe view suspicious.img[/bold] (`Open with mountsafe` does this)")(view)


def view(source: Source, json: Json = False) -> None:
    """Mount an image in a folder of yours and open that in a file manager; a notification unmounts it.

    Returns when it is unmounted, or when the notification is closed; then it stays mounted. What goes wrong is a
    notification as well.
    """
    from mountsafe.desktop.viewer import Opened, Viewer  # needs a bus, which few verbs do
    from mountsafe.trios import run

    records: list[Record] = []

    def mount() -> Opened:
        record = _mounted(source)
        records.append(record)
        if json:
            screen.print_json(record.facts())
        else:
            screen.say(f"{shown_path(record.source)} is open on {shown_path(record.target)}")
        what = ", ".join(" ".join(filter(None, (each.fstype, each.label))) for each in record.mounts)
        notes = dict.fromkeys(filter(None, (each.note for each in record.mounts)))
        words = [*notes, *(each.message for each in record.missing)]
        return Opened(record.target, printable(what), printable("; ".join(words), 500), record.supervisor)

    run(Viewer(shown_path(source.name), mount, lambda: unmount_one(Path(records[-1].target))).run)


def _mounted(source: Path) -> Record:
    options = MountOptions(judged=True, unlock=True)
    there = already.mounted(source, options, None, None, WHOLE)
    return there if there is not None else begin(open_medium(source), None, options, True, unlocker(Keys(), _asked))[1]


def _asked(locked: Locked) -> bytes | None:
    """Return what a person types into a window."""
    from mountsafe.desktop import prompts
    from mountsafe.trios import run

    title, hint = f"Unlock {locked.name} ({locked.kind})", f" {locked.hint}." if locked.hint else ""
    question = prompts.Question(title, f"{locked.name} is encrypted.{hint} It opens with its key.", locked.why)
    return run(prompts.ask, question)
