"""What a shell offers to complete the word that a person is typing. Starts nothing, and reports no failures.

Names may come from media and mailed images. A name that is not fit to be shown is not offered, nor one in which a shell
would see more than a word: bash puts it on the command line as it is, and what typer writes for zsh runs `$(...)` in it
when the key is pressed. If nothing is offered the shell completes by itself, and quotes what it finds.
"""

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mountsafe.appliance import build
from mountsafe.errors import MountsafeError
from mountsafe.mountinfo import mounted
from mountsafe.text import printable

FSTYPE = "fuse.mountsafe"
# What no shell takes for anything else, wherever in a word it is but at the beginning.
_PLAIN = re.compile(r"[\w./,:=@%+~-]+")
_MEANS_MORE_FIRST = "-~=%+"  # an option, a home folder, a program, a job
PATIENCE = 1.0  # seconds for the daemon's answer: somebody waits with a finger on the key
IMAGES = (
    *(".img", ".iso", ".raw", ".dd", ".bin", ".image", ".ima", ".vfd", ".dsk", ".udf", ".squashfs", ".sqsh"),
    *(".qcow2", ".vmdk", ".vdi", ".vhd", ".vhdx"),
)


def _offered(words: Iterable[str], incomplete: str) -> list[str]:
    fitting = (word for word in words if word.startswith(incomplete) and _is_plain(word))
    return sorted({word for word in fitting if incomplete or word[0] not in _MEANS_MORE_FIRST})


def _is_plain(word: str) -> bool:
    """Whether a word stands for itself on a command line and a screen."""
    return bool(_PLAIN.fullmatch(word)) and printable(word, len(word)) == word


def mounts(incomplete: str) -> list[str]:
    """Offer folders that mountsafe shows something in."""
    return _offered((each.point for each in mounted() if each.fstype == FSTYPE), incomplete)


def media(incomplete: str) -> list[str]:
    """Offer what the daemon keeps: devices, and where they are shown."""
    found = _kept()
    return _offered(
        [*(each["device"] for each in found), *(place for each in found for place in each["mounts"])], incomplete
    )


def devices(incomplete: str) -> list[str]:
    """Offer the paths of the devices that the daemon keeps."""
    return _offered((os.path.join("/dev", each["device"]) for each in _kept()), incomplete)


def _kept() -> list[dict[str, Any]]:
    from mountsafe.daemon import client  # needs a bus, which few verbs do

    with suppress(MountsafeError):
        return client.media(PATIENCE)
    return []


def types(incomplete: str) -> list[str]:
    """Offer what the appliance can mount."""
    return _offered(build.mountable(), incomplete)


def images(incomplete: str) -> list[str]:
    """Offer folders, block devices, and files that are named as images are; one folder alone is looked into.

    Nothing, if one of them had to be quoted: the shell offers all of them then.
    """
    sources = [name for name in _sources(incomplete) if name.startswith(incomplete)]
    found = _offered(sources, incomplete)
    if any(printable(name, len(name)) == name and name not in found for name in sources):
        return []
    if len(found) == 1 and found[0].endswith("/") and found[0] != incomplete:
        return images(found[0]) or found
    return found


def _sources(incomplete: str) -> Iterable[str]:
    folder, name = os.path.split(incomplete)
    prefix = incomplete[: len(incomplete) - len(name)]
    with suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:
        for entry in entries:
            if entry.name.startswith(".") and not name.startswith("."):
                continue
            if entry.is_dir():
                yield f"{prefix}{entry.name}/"
            elif entry.name.lower().endswith(IMAGES) or _is_device(entry.path):
                yield f"{prefix}{entry.name}"


def _is_device(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISBLK(Path(path).stat().st_mode)
    return False
