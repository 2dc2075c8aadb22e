"""Writes what a package has of mountsafe's own words: a manual page for each verb and the others, and completions.

    python3 packaging/pages.py FOLDER

Needs click-man, and mountsafe on Python's path. For the completions the program is asked as a shell asks it.
"""

import sys
from pathlib import Path

import manual
from click_man.core import write_man_pages
from typer._completion_shared import get_completion_script
from typer.main import get_command

from mountsafe import __version__
from mountsafe.cli.main import commands

SHELLS = ("bash", "zsh", "fish")


def main(folder: Path) -> None:
    """Write all of it into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_man_pages("mountsafe", get_command(commands()), version=__version__, target_dir=str(folder))
    for page in folder.glob("*.1"):
        page.write_text(roff(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, text in manual.pages(__version__).items():
        (folder / name).write_text(text, encoding="utf-8")
    for shell in SHELLS:
        script = get_completion_script(prog_name="mountsafe", complete_var="_MOUNTSAFE_COMPLETE", shell=shell)
        (folder / f"completion.{shell}").write_text(script + "\n", encoding="utf-8")


def roff(text: str) -> str:
    """Return a page without rich's markup: in roff a bracket that is escaped for it names a glyph."""
    for word in ("[bold]", "[/bold]"):
        text = text.replace(word, "")
    return text.replace("\\[", "[")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
