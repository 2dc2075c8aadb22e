"""What of the caller's environment counts when root runs us: `sudo -E`, or a job that somebody else wrote.

A variable is kept if no program that we start, and no decision of ours, could be turned against root by it. One that
names a place is kept only if nobody but root can change that place or any folder above it: otherwise somebody else
would choose what root runs, reads or overwrites.
"""

import os
import pwd
import re
import stat
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.text import shown_path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Words for people's eyes; who is behind sudo; what a service manager tells its service; what a shell asks to complete.
_WORDS = re.compile(
    r"LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM|COLORTERM|DISPLAY|WAYLAND_DISPLAY|NO_COLOR|FORCE_COLOR|COLUMNS|LINES|PWD"
    r"|SUDO_(UID|GID|USER|COMMAND)|USER|LOGNAME|SHELL"
    r"|NOTIFY_SOCKET|WATCHDOG_(USEC|PID)|JOURNAL_STREAM|INVOCATION_ID"
    r"|_MOUNTSAFE_COMPLETE|_TYPER_[A-Z_]+|COMP_[A-Z]+"
)
# With a slash they lead anywhere: by LANGUAGE a program's messages, which it formats, come from another's catalogue.
_NAMES = re.compile(r"LANG|LANGUAGE|LC_[A-Z]+|TERM|COLORTERM")
_PLACES = ("HOME", "MOUNTSAFE_APPLIANCE", "TMPDIR", "XDG_RUNTIME_DIR", "XAUTHORITY")  # one each
_LISTS = ("PATH", "LIBGUESTFS_PATH")  # several each
_ADDRESSES = ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS")  # of sockets, "unix:path=/..."
OTHERS = 0o022  # may not write to what we make
TOLD = ("MOUNTSAFE_APPLIANCE", "LIBGUESTFS_PATH", "DBUS_SYSTEM_BUS_ADDRESS")  # who sets them wants something by it


def harden(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Take out of root's environment what could be turned against root; return the names that somebody may miss.

    An ordinary user's is left as it is: what it makes a program do, its user could do without us. A file mode creation
    mask is inherited as well, and what we make nobody else may write to.
    """
    os.umask(os.umask(OTHERS) | OTHERS)
    if os.geteuid() != 0:
        return []
    kept = {name: value for name, old in environment.items() if (value := _safe(name, old))}
    kept.setdefault("PATH", SYSTEM_PATH)
    kept.setdefault("HOME", pwd.getpwuid(0).pw_dir)
    missed = [name for name in TOLD if environment.get(name, "") != kept.get(name, "")]
    environment.clear()
    environment.update(kept)
    return missed


def _safe(name: str, value: str) -> str:
    """Return the value that may be kept; "" for none."""
    if name == "TZ":
        return value if _is_zone(value) else ""
    if _WORDS.fullmatch(name):
        return "" if _NAMES.fullmatch(name) and "/" in value else value
    if name in _PLACES:
        return value if is_roots_alone(value) else ""
    if name in _LISTS:
        return ":".join(place for place in value.split(":") if is_roots_alone(place))
    if name in _ADDRESSES:
        path = re.fullmatch(r"unix:path=(/[^,;%]*)(,guid=[0-9a-f]+)?", value)
        return value if path and is_roots_alone(path[1]) else ""
    return ""


def _is_zone(value: str) -> bool:
    """Whether the C library reads no file for a time zone but the system's, or root's."""
    place = value.removeprefix(":")
    return is_roots_alone(place) if place.startswith("/") else ".." not in place.split("/")


def is_roots_alone(path: str, owners: Collection[int] = (0,)) -> bool:
    """Whether nobody but root, or the `owners`, can change what is at an absolute path, or comes to be there."""
    if not os.path.isabs(path):
        return False
    return all(_is_theirs(step, owners) for step in {*_steps(path), *_steps(os.path.realpath(path))})


def require_folder(path: Path, owners: Collection[int]) -> None:
    """Raise UserError (TARGET) if others than the `owners` could put a link in a folder, for root to write through."""
    place = os.path.abspath(path)
    if os.geteuid() == 0 and not (is_roots_alone(place, owners) and not _is_open(Path(place))):
        shown = shown_path(place)
        hint = "Choose a folder that nobody but you can change, and that is in such folders."
        raise UserError(f"others may change what is in {shown}, or where it leads", hint, ExitCode.TARGET)


def _steps(path: str) -> Iterator[Path]:
    """Yield a path and all above it, as it is written: no link is followed in its last part."""
    normal = Path(os.path.abspath(path))
    yield normal
    yield from normal.parents


def _is_theirs(path: Path, owners: Collection[int]) -> bool:
    """Whether what is there is the owners', or nothing is: its folder then says who could change that."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return not _is_open(path.parent)
    except OSError:
        return False
    if status.st_uid not in owners:
        return False
    return stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX)


def _is_open(folder: Path) -> bool:
    """Whether others can make something in a folder, as in /tmp."""
    try:
        return bool(folder.stat().st_mode & 0o022)
    except OSError:
        return False


def caller() -> tuple[int, int]:
    """Return the uid and gid of the person: the one behind sudo, if there is one."""
    if os.geteuid() == 0:
        try:
            uid = int(os.environ["SUDO_UID"])
            return uid, pwd.getpwuid(uid).pw_gid
        except (KeyError, ValueError):
            pass
    return os.geteuid(), os.getegid()
