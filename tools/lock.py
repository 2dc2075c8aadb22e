"""Writes requirements.lock: what `./dev install` takes from PyPI, each file by its hash. Needs a network.

    .venv/bin/python tools/lock.py

Wheels for every Python alone, so that one list serves all releases of Debian.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LOCK = REPOSITORY / "requirements.lock"
OURS = ("trio",)  # comes from Debian, with python3-pyfuse3
BOUNDS = ("typer<0.21",)  # later ones bring native code, which is another file for each Python
HEAD = "# What `./dev install` takes from PyPI. Made by tools/lock.py: not to be edited.\n"


def wanted() -> list[str]:
    """Return what the program and its build need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    return [each for each in needed if not each.startswith(OURS)] + list(BOUNDS)


def resolved(requirements: list[str]) -> str:
    """Return the lines of the lock. Raises SystemExit for what is not a wheel for every Python."""
    options = ("--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:", "--report=-")
    command = [sys.executable, "-m", "pip", "install", *options, *requirements]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = []
    for each in report["install"]:
        name, version = each["metadata"]["name"].lower(), each["metadata"]["version"]
        file = each["download_info"]["url"].rpartition("/")[2]
        if not file.endswith("-none-any.whl"):
            sys.exit(f"{file} is not for every Python: bound what needs it")
        lines.append(f"{name}=={version} --hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}\n")
    return "".join(sorted(lines))


if __name__ == "__main__":
    LOCK.write_text(HEAD + resolved(wanted()), encoding="ascii")
