"""Where a path leads, walked part by part, each folder held before the next is looked up.

A symbolic link that somebody else may put into the path while it is walked would lead root anywhere, so one is followed
only if it, and every folder above it, are the caller's or root's alone. The kernel has such a rule for sticky folders
(protected_symlinks), and systemd one for all (chase(), CHASE_SAFE). Without links no trick is left: who swaps a folder
for another one can put only those of their own there, and `..` is the folder that the walk came from.

Whose a link is, its file system says, and a FUSE server says what it likes: its mount is believed only if it is the
caller's or root's own. Where the kernel follows no link (nosymfollow), none is followed here: a medium may have any.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from mountsafe.environment import caller
from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import Mounted, mounted
from mountsafe.session.places import FOLDER, number_of
from mountsafe.text import shown_path

LINKS = 40  # as many as the kernel follows: path_resolution(7)
ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OTHERS = 0o022


class LedAside(UserError):
    """A symbolic link in a path is another's, or others could put one in its place."""

    def __init__(self, link: str) -> None:
        shown = shown_path(link)
        hint = "Name the folder itself that it leads to, or one that nobody but you can change."
        super().__init__(f"{shown} is a symbolic link that others may change", hint, ExitCode.TARGET)


class Chase:
    """The folders that a path leads through, from / on. `owners` (uids): whose links are followed."""

    def __init__(self, owners: frozenset[int]) -> None:
        self._owners = owners
        self._names: list[str] = []
        self._held = [os.open("/", FOLDER)]
        self._links = 0

    def close(self) -> None:
        """Let go of all."""
        while self._held:
            os.close(self._held.pop())

    def parent_of(self, path: Path) -> tuple[Path, int]:
        """Return an absolute path without links that leads to the same, and a descriptor of the folder that it is in.

        What it leads to need not be there. Raises LedAside, and OSError where a folder on the way cannot be entered.
        """
        rest = deque(path.absolute().parts[1:])
        while rest:
            name = rest.popleft()
            if name == "..":
                self._leave()
            elif name not in ("", "."):
                target = self._enter(name, last=not any(part not in ("", ".") for part in rest))
                if target is None:
                    return Path("/", *self._names, name), os.dup(self._held[-1])
                rest.extendleft(reversed(target))
        if not self._names:
            return Path("/"), os.dup(self._held[0])
        return Path("/", *self._names), os.dup(self._held[-2])

    def _leave(self) -> None:
        if self._names:
            self._names.pop()
            os.close(self._held.pop())

    def _enter(self, name: str, last: bool) -> list[str] | None:
        """Enter a folder, and return what a link adds to the path; None if the path's last part is no folder."""
        try:
            self._held.append(os.open(name, FOLDER, dir_fd=self._held[-1]))
        except FileNotFoundError:
            if last:
                return None
            raise
        except NotADirectoryError:
            return self._followed(name, last)
        self._names.append(name)
        return []

    def _followed(self, name: str, last: bool) -> list[str] | None:
        fd = os.open(name, ANYTHING, dir_fd=self._held[-1])  # its target never changes, whatever comes in its place
        try:
            status = os.fstat(fd)
            if not stat.S_ISLNK(status.st_mode):
                if last:
                    return None
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            theirs = status.st_uid in self._owners and all(map(self._is_theirs, self._held))
            if not theirs or not self._are_believed([*self._held, fd]):
                raise LedAside(os.path.join("/", *self._names, name))
            self._links += 1
            if self._links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)
        while target.startswith("/") and self._names:
            self._leave()
        return target.split("/")

    def _is_theirs(self, folder: int) -> bool:
        """Whether nobody else can put something of the owners' in a folder, or in its place."""
        status = os.fstat(folder)
        return status.st_uid in self._owners and (not status.st_mode & OTHERS or bool(status.st_mode & stat.S_ISVTX))

    def _are_believed(self, fds: Collection[int]) -> bool:
        """Whether all the mounts that descriptors are in may say whose their files are, and have links followed.

        The one at / is not told of in a chroot; any other that is not has been detached meanwhile.
        """
        told = {each.id: each for each in mounted()}
        numbers = set(map(number_of, fds)) - {number_of(self._held[0])}
        return all(number in told and is_believed(told[number], self._owners) for number in numbers)


def is_believed(mount: Mounted, owners: Collection[int]) -> bool:
    """Whether links in a mount may be followed, for all that is known of the mount."""
    if "nosymfollow" in mount.options:
        return False
    made_by = (option.removeprefix("user_id=") for option in mount.shared if option.startswith("user_id="))
    return not mount.fstype.startswith("fuse") or all(int(uid) in owners for uid in made_by)


def chase(path: Path) -> tuple[Path, int]:
    """Return what `Chase.parent_of` does, and hold nothing else. Root's links, ours and the caller's are followed."""
    walk = Chase(frozenset({0, os.geteuid(), caller()[0]}))
    try:
        return walk.parent_of(path)
    finally:
        walk.close()


def spelled(path: Path) -> str | None:
    """Return the path without links that leads to the same; None if there is none that may be followed to its end."""
    with suppress(OSError, LedAside):
        found, parent = chase(path)
        os.close(parent)
        return os.fspath(found)
    return None
