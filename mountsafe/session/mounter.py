"""Who makes the mount: mount(2) as root, fusermount3 for everybody else. Both return a /dev/fuse descriptor."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.mountinfo import mounted
from mountsafe.text import printable

# include/uapi/linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOSYMFOLLOW = 1, 2, 4, 8, 256
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
FSTYPE = "fuse.mountsafe"
HINT = "Choose another folder, one of yours on a local disk."
READ_AHEAD_KIB = 2048


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where. `uid` and `gid` own the mount; `mode` is the root's; `follow_links` drops nosymfollow."""

    source: str
    target: Path
    uid: int
    gid: int
    mode: int
    follow_links: bool = False


class Keeper:
    """A process that unmounts when this one is gone, however it ended.

    fusermount3 has an option for that, auto_unmount, but it leaves mounts that are in use, and up to 3.14 every mount
    that root may not look into: those of ordinary users.
    """

    def __init__(self, target: Path) -> None:
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", 'read -r _; exec fusermount3 -u -z -- "$0"', os.fspath(target)],
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

    def __init__(self, target: Path, fd: int, links_followed: bool, keeper: "Keeper | None" = None) -> None:
        self.target = target
        self.fd = fd
        self.links_followed = links_followed
        self._keeper = keeper
        self._unmounting = threading.Lock()  # a client, the session's end and ours may want it at the same time

    def widen_read_ahead(self) -> None:
        """Let the kernel ask for more at a time: sequential reads gain much. Only root may; others keep 128 KiB.

        Waits for the session process, because the first words between it and the kernel set the read-ahead as well.
        """
        if os.geteuid() != 0:
            return
        with suppress(OSError):
            os.statvfs(self.target)
        for each in mounted():
            if each.point == os.fspath(self.target):
                knob = Path("/sys/class/bdi", "{}:{}".format(*each.number), "read_ahead_kb")
                with suppress(OSError):  # a container's /sys may be read-only
                    knob.write_text(str(READ_AHEAD_KIB), encoding="ascii")

    def close_descriptor(self) -> None:
        """Close our copy: the connection then ends with the session process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unmount(self, lazy: bool = False) -> None:
        """Unmount; UserError (BUSY) if it is in use and `lazy` is not set. Nothing happens if it is unmounted."""
        with self._unmounting:
            if is_mounted(self.target):
                unmount(self.target, lazy)
            if self._keeper is not None:
                self._keeper.let_go()
                self._keeper = None


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
        raise UserError("fusermount3 is missing", "sudo apt install fuse3", ExitCode.DEPENDENCY)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount_as_root(request: MountRequest) -> FuseMount:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | (0 if request.follow_links else MS_NOSYMFOLLOW)
    options = (
        f"fd={fd},rootmode={0o40000 | request.mode:o},user_id={request.uid},group_id={request.gid},"
        "allow_other,default_permissions"
    )
    arguments = (request.source.encode(), os.fsencode(request.target), FSTYPE.encode(), flags, options.encode())
    if _libc().mount(*arguments) != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise UserError(f"cannot mount on {_shown(request.target)}: {os.strerror(number)}", HINT, ExitCode.TARGET)
    return FuseMount(request.target, fd, request.follow_links)


def _mount_as_user(request: MountRequest) -> FuseMount:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    source = request.source.replace("\\", "\\\\").replace(",", "\\,")
    options = f"ro,nosuid,nodev,noexec,default_permissions,fsname={source},subtype=mountsafe"
    with theirs:
        helper = subprocess.Popen(
            ["fusermount3", "-o", options, "--", os.fspath(request.target)],
            env={"_FUSE_COMMFD": str(theirs.fileno()), **_environment()},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    words = helper.communicate()[1].decode("utf-8", "replace").strip()
    if not fds:
        raise UserError(f"cannot mount on {_shown(request.target)}: {printable(words)}", HINT, ExitCode.TARGET)
    os.set_inheritable(fds[0], False)
    return FuseMount(request.target, fds[0], True, Keeper(request.target))


def unmount(target: Path, lazy: bool = False) -> None:
    """Unmount `target`. Raises UserError (BUSY) if it is in use."""
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if _libc().umount2(os.fsencode(target), flags) == 0:
            return
        words = os.strerror(ctypes.get_errno())
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(target)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0:
            return
        words = done.stderr.strip()
    if not is_mounted(target):
        return
    hint = "Close what uses it (fuser -vm DIR shows), or use --force to detach it now."
    raise UserError(f"cannot unmount {_shown(target)}: {printable(words)}", hint, ExitCode.BUSY)


def mounts() -> dict[str, str]:
    """Return the file system type of each mount point of this mount namespace; the topmost one counts."""
    return {each.point: each.fstype for each in mounted()}


def is_mounted(target: Path) -> bool:
    """Whether one of our mounts is at `target`, alive or not."""
    return mounts().get(os.fspath(target)) == FSTYPE


def _shown(path: Path) -> str:
    return printable(os.fsencode(path), 500)
