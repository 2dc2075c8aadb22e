"""Making the mount: fsmount as root, fusermount3 for everybody else. Both return a /dev/fuse descriptor.

A mount is put on a folder that has been held since it was checked, and is known by its number from then on: others may
change where its path leads at any moment, so nothing is ever unmounted or removed by path.
"""

import ctypes
import errno
import os
import shlex
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mountsafe import distribution
from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import Mounted, mounted
from mountsafe.session.attached import (
    FSTYPE,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MountId,
    at,
    attach,
    find,
    fsmount,
    identity,
    over,
    top_at,
)
from mountsafe.session.places import Place, number_of, walk
from mountsafe.text import printable, shown_path

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # include/linux/fs.h
ATTEMPTS = 64  # others may be mounted on it, or move it, while it is unmounted
HINT = "Choose another folder, one of yours on a local disk."
READ_AHEAD_KIB = 2048


# At the end of input: unmount what is at $0, while the mount with the numbers $1 is there.
UNMOUNTING = """
read -r _
while read -r id _ number _; do
    [ "$id $number" = "$1" ] && exec fusermount3 -u -z -- "$0"
done </proc/self/mountinfo
"""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where. `uid` and `gid` own the mount; `mode` is the root's; `follow_links` drops nosymfollow.

    `writable`: it is not read-only.
    """

    source: str
    place: Place
    uid: int
    gid: int
    mode: int
    follow_links: bool = False
    writable: bool = False


class Unmounter:
    """A process that unmounts when this one is gone, however it ended.

    fusermount3 has an option for that, auto_unmount, but it leaves mounts that are in use, and up to 3.14 every mount
    that root may not look into: those of ordinary users.
    """

    def __init__(self, target: Path, which: MountId) -> None:
        known = "{} {}:{}".format(which.number, *which.device)
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", UNMOUNTING, os.fspath(target), known],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(reading)

    def let_go(self) -> None:
        """End it: what is mounted there by now is no longer its business."""
        self._process.kill()
        self._process.wait()
        os.close(self._writing)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


class FuseMount:
    """A mount with its descriptor. `links_followed` says whether the kernel follows symbolic links in it."""

    def __init__(self, which: MountId, fd: int, links_followed: bool, unmounter: "Unmounter | None" = None) -> None:
        self.which = which
        self.fd = fd
        self.links_followed = links_followed
        self._unmounter = unmounter
        self._unmounting = threading.Lock()  # a client, the session's end and ours may want it at the same time

    @property
    def target(self) -> Path | None:
        """Where it is now; None if it is not mounted any more."""
        found = find(self.which)
        return None if found is None else Path(found.point)

    def widen_read_ahead(self) -> None:
        """Let the kernel ask for more at a time: sequential reads gain much. Only root may; others keep 128 KiB.

        Waits for the session process, because the first words between it and the kernel set the read-ahead as well.
        """
        if os.geteuid() != 0:
            return
        with suppress(OSError):
            if (target := self.target) is not None:
                os.statvfs(target)
            knob = Path("/sys/class/bdi", "{}:{}".format(*self.which.device), "read_ahead_kb")
            knob.write_text(str(READ_AHEAD_KIB), encoding="ascii")  # a container's /sys may be read-only

    def close_descriptor(self) -> None:
        """Close our copy: the connection then ends with the session process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unmount(self, lazy: bool = False) -> None:
        """Unmount; UserError (BUSY) if it is in use and `lazy` is not set. Nothing happens if it is unmounted."""
        with self._unmounting:
            unmount(self.which, lazy)
            if self._unmounter is not None:
                self._unmounter.let_go()
                self._unmounter = None


def mount(request: MountRequest) -> FuseMount:
    """Mount an empty FUSE connection. Raises UserError (TARGET or DEPENDENCY)."""
    require_fuse()
    return _mount_as_root(request) if os.geteuid() == 0 else _mount_as_user(request)


def require_fuse() -> None:
    """Raise UserError if this user cannot use FUSE."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise UserError("/dev/fuse does not exist", "sudo modprobe fuse", ExitCode.DEPENDENCY) from error
    except OSError as error:
        hint = "Its mode should be 0666, as udev sets it: sudo chmod 666 /dev/fuse"
        raise UserError(f"/dev/fuse cannot be opened: {error.strerror}", hint, ExitCode.DEPENDENCY) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UserError("fusermount3 is missing", distribution.install("fuse3"), ExitCode.DEPENDENCY)


def _mount_as_root(request: MountRequest) -> FuseMount:
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    attributes |= 0 if request.writable else MOUNT_ATTR_RDONLY
    attributes |= 0 if request.follow_links else MOUNT_ATTR_NOSYMFOLLOW
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options: dict[str, str | None] = {
        "fd": str(fd),
        "rootmode": f"{0o40000 | request.mode:o}",
        "user_id": str(request.uid),
        "group_id": str(request.gid),
        "allow_other": None,
        "default_permissions": None,
    }
    options |= {} if request.writable else {"ro": None}
    try:
        made = fsmount(request.source, options, attributes)
        try:
            attach(made, request.place.fd)
            which = _landed({number_of(made)}, request.place, made)
        finally:
            os.close(made)  # or it could not be unmounted
    except OSError as error:
        os.close(fd)
        raise UserError(
            f"cannot mount on {shown_path(request.place.path)}: {error.strerror}", HINT, ExitCode.TARGET
        ) from error
    return _in_place(FuseMount(which, fd, request.follow_links), request.place)


def _landed(numbers: set[int], place: Place, made: int | None = None) -> MountId:
    """Return the mount with one of these numbers; `made`: a descriptor of it. Raises OSError."""
    found = [each for each in mounted() if each.id in numbers and each.fstype == FSTYPE]
    for each in sorted(found, key=lambda each: each.point != os.fspath(place.path)):
        if made is not None:
            return identity(each, made)
        return at(Path(each.point)) or MountId(each.id, 0, each.number, each.source)
    raise OSError(errno.ENOENT, "its folder is gone")


def _in_place(mount: FuseMount, place: Place) -> FuseMount:
    """Return the mount, if it is where it was meant to be. Raises UserError, and nothing is mounted, if it is not."""
    if mount.target == place.path:
        return mount
    mount.close_descriptor()
    mount.unmount(lazy=True)
    raise UserError(
        f"{shown_path(place.path)} was moved away while it was being mounted on", "See who did that.", ExitCode.TARGET
    )


def _mount_as_user(request: MountRequest) -> FuseMount:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    source = request.source.replace("\\", "\\\\").replace(",", "\\,")
    access = "rw" if request.writable else "ro"
    options = f"{access},nosuid,nodev,noexec,default_permissions,fsname={source},subtype=mountsafe"
    before = {each.id for each in mounted()}
    with theirs:
        helper = subprocess.Popen(
            # It looks itself whose the folder is that it mounts on: the one it is in, and no path.
            ["fusermount3", "-o", options, "--", "."],
            env={"_FUSE_COMMFD": str(theirs.fileno()), **_environment()},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=f"/proc/self/fd/{request.place.fd}",
        )
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    words = helper.communicate()[1].decode("utf-8", "replace").strip()
    shown = shown_path(request.place.path)
    if not fds:
        raise UserError(f"cannot mount on {shown}: {printable(words)}", HINT, ExitCode.TARGET)
    os.set_inheritable(fds[0], False)
    new = {each.id for each in mounted() if each.source == request.source} - before
    try:
        which = _landed(new, request.place)
    except OSError as error:
        os.close(fds[0])
        raise UserError(f"cannot mount on {shown}: {error.strerror}", HINT, ExitCode.TARGET) from error
    return _in_place(FuseMount(which, fds[0], True, Unmounter(request.place.path, which)), request.place)


def unmount(which: MountId, lazy: bool = False) -> None:
    """Unmount a mount, wherever it is now. Raises UserError (BUSY). Nothing happens if it is unmounted.

    `lazy`: whatever uses it, and with all that is mounted on it.
    """
    words, attempts = "", 0
    while (found := find(which)) is not None:
        if attempts == ATTEMPTS or (words and not lazy):
            point = shown_path(Path(found.point))
            place = shlex.quote(point)
            hint = f"fuser -vm {place} shows what uses it; mountsafe unmount --force {place} detaches it now."
            raise UserError(f"cannot unmount {point}: {printable(words)}", hint, ExitCode.BUSY)
        words = _unmount_at(found, which, lazy)
        attempts += 1


def unmount_at(target: Path, lazy: bool = False) -> None:
    """Unmount what is on top at a path, if that is one of our mounts. Raises UserError (BUSY)."""
    if (which := at(target)) is not None:
        unmount(which, lazy)


def _unmount_at(found: Mounted, which: MountId, lazy: bool) -> str:
    """Try it once, where it is now; return what speaks against it."""
    point = Path(found.point)
    try:
        parent = walk(point.parent)
        try:
            top = top_at(parent, point.name)
            try:
                number = number_of(top)
                same = number == which.number and which.unique in (0, identity(found, top).unique)
            finally:
                os.close(top)
            if not same and not (lazy and over(number, which.number, mounted())):
                return "something else is mounted over it"
            return _umount(point, parent, lazy)
        finally:
            os.close(parent)
    except OSError as error:
        return f"it cannot be reached: {error.strerror}"


def _umount(point: Path, parent: int, lazy: bool) -> str:
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(f"/proc/self/fd/{parent}/{point.name}"), flags) == 0:
            return ""
        return os.strerror(ctypes.get_errno())
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(point)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment())
    return "" if done.returncode == 0 else done.stderr.strip()


def mounts() -> dict[str, str]:
    """Return the file system type of each mount point of this mount namespace; the topmost one counts."""
    return {each.point: each.fstype for each in mounted()}


def is_mounted(target: Path) -> bool:
    """Whether one of our mounts is at `target`, alive or not."""
    return mounts().get(os.fspath(target)) == FSTYPE
