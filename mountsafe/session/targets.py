"""Folders to mount on, as somebody names them: found, made if need be, checked, and held."""

import os
import shlex
from contextlib import ExitStack
from pathlib import Path

from mountsafe.errors import ExitCode, NoRight, UserError
from mountsafe.session.chase import chase
from mountsafe.session.mounter import mounts
from mountsafe.session.places import Place
from mountsafe.text import shown_path

CHOOSE = "Choose an empty folder, or one that does not exist yet."


def held(target: Path) -> Place:
    """Hold a folder that is there. Raises UserError (TARGET)."""
    path, parent = _chased(target)
    return _held(path, parent)


def _chased(target: Path) -> tuple[Path, int]:
    try:
        return chase(target)
    except OSError as error:
        hint = "Its parent folder must exist and be yours."
        raise _target_error(f"cannot reach {shown_path(target)}: {error.strerror}", hint, error) from error


def _held(path: Path, parent: int) -> Place:
    try:
        return Place.of(path, parent)
    except OSError as error:
        raise UserError(f"{shown_path(path)} is not a folder: {error.strerror}", CHOOSE, ExitCode.TARGET) from error


def prepare_target(target: Path) -> Place:
    """Return the mount point, made if need be, and held. Raises UserError (TARGET)."""
    path, parent = _chased(target)
    with ExitStack() as stack:
        stack.callback(os.close, parent)
        try:
            return Place.of(path, os.dup(parent), made=True)
        except FileExistsError:
            pass
        except OSError as error:
            hint = "Its parent folder must exist and be yours."
            raise _target_error(f"cannot make {shown_path(path)}: {error.strerror}", hint, error) from error
        if os.fspath(path) in mounts():  # asked first: who looks at a mount waits for its process
            hint = f"mountsafe unmount {shlex.quote(shown_path(path))}"
            raise UserError(f"something is already mounted on {shown_path(path)}", hint, ExitCode.TARGET)
        place = _held(path, os.dup(parent))
    try:
        _check_target(place.fd, shown_path(path))
    except UserError:
        place.close()
        raise
    return place


def _check_target(fd: int, shown: str) -> None:
    here = f"/proc/self/fd/{fd}"
    try:
        empty = not os.listdir(here)
    except OSError as error:
        hint = "Choose a folder of yours."
        raise _target_error(f"cannot look into {shown}: {error.strerror}", hint, error) from error
    if not empty:
        raise UserError(f"{shown} is not empty", CHOOSE, ExitCode.TARGET)
    if not os.access(here, os.W_OK):
        raise NoRight(f"{shown} is not yours to write to", "fusermount3 demands that: choose a folder of yours.")


def _target_error(message: str, hint: str, error: OSError) -> UserError:
    if isinstance(error, PermissionError):
        return NoRight(message, hint)
    return UserError(message, hint, ExitCode.TARGET)
