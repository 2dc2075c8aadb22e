"""The three ways to mount an image: the kernel's loop mount (K), guestmount (G), mountsafe (M)."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import measure
from measure import BenchError, run

# What guestmount's manual offers to readers of what does not change. Its own cache holds a listed folder's attributes.
GUESTMOUNT_OPTIONS = (
    *("-o", "kernel_cache", "-o", "attr_timeout=86400", "-o", "entry_timeout=86400", "-o", "negative_timeout=86400"),
    *("--dir-cache-timeout", "86400"),
)
GONE_WITHIN = 60.0


class Mounted(Protocol):
    """A mount. `processes` are all that keep it; `unmount` returns when they are gone."""

    folder: Path

    def processes(self) -> list[int]:
        """Every process of the mount, its virtual machine's included."""

    def sync(self) -> None:
        """Return when all that was written is on the medium."""

    def unmount(self) -> None:
        """Unmount, and wait for the end."""


class Mounter(Protocol):
    """A way to mount. `letter` heads its column."""

    letter: str

    def can(self, filesystem: str) -> bool:
        """Whether it knows the file system."""

    def mount(self, image: Path, filesystem: str, folder: Path, write: bool = False) -> Mounted:
        """Mount an image on an empty folder, as its user would: read-only, unless it is to be written to."""


# --- K --------------------------------------------------------------------------------------------------------------
def kernel_has(filesystem: str) -> bool:
    """Whether this machine's kernel mounts the type, by a module if need be."""
    with suppress(OSError):
        subprocess.run(["modprobe", "-q", filesystem], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return filesystem in Path("/proc/filesystems").read_text(encoding="ascii").split()


class LoopMount:
    """A loop device and a mount."""

    def __init__(self, image: Path, filesystem: str, folder: Path, options: str = "ro") -> None:
        self.folder = folder
        read_only = ["--read-only"] if "ro" in options.split(",") else []
        self._device = run("losetup", "--find", "--show", "--direct-io=off", *read_only, image).strip()
        try:
            run("mount", "-t", filesystem, "-o", options, self._device, folder)
        except BenchError:
            run("losetup", "--detach", self._device)
            raise

    def processes(self) -> list[int]:
        """The kernel has none that count."""
        return []

    def sync(self) -> None:
        """By syncfs(2)."""
        run("sync", "-f", self.folder)

    def unmount(self) -> None:
        """Unmount and give the loop device back."""
        run("umount", self.folder)
        run("losetup", "--detach", self._device)


class NtfsMount:
    """ntfs-3g on this machine, to fill an image."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            ["ntfs-3g", "-o", "no_detach", image, folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 10
        while not os.path.ismount(folder):
            if self._process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"ntfs-3g did not mount {image}")
            time.sleep(0.01)

    def unmount(self) -> None:
        """Unmount, and wait until everything is written."""
        run("umount", self._folder)
        self._process.wait(GONE_WITHIN)


class Kernel:
    """What mountsafe is measured against: no wall at all."""

    letter = "K"

    def can(self, filesystem: str) -> bool:
        """Whether this kernel has the type."""
        return kernel_has(filesystem)

    def mount(self, image: Path, filesystem: str, folder: Path, write: bool = False) -> Mounted:
        """Mount by a loop device with buffered reads and writes."""
        return LoopMount(image, filesystem, folder, "rw" if write else "ro")


# --- G --------------------------------------------------------------------------------------------------------------
class GuestMounted:
    """A running guestmount."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self._process = process

    def processes(self) -> list[int]:
        """guestmount and its QEMU."""
        return measure.tree_of(self._process.pid)

    def sync(self) -> None:
        """By fsync of a file: it knows none of folders."""
        _fsync(self.folder / "synced", os.O_WRONLY | os.O_CREAT)

    def unmount(self) -> None:
        """Unmount and wait until its virtual machine is gone too."""
        run("guestunmount", self.folder)
        self._process.wait(GONE_WITHIN)


class Guestmount:
    """libguestfs's own FUSE mount. `environment`: see `guestfs_environment`."""

    letter = "G"

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**os.environ, **environment}

    def can(self, filesystem: str) -> bool:
        """Its appliance has the same drivers as mountsafe's."""
        return True

    def mount(self, image: Path, filesystem: str, folder: Path, write: bool = False) -> Mounted:
        """Mount with the options that serve it best; in the foreground, so that its QEMU stays its child."""
        ready, told = os.pipe()
        how = "--rw" if write else "--ro"
        command = ("guestmount", how, "--format=raw", "-a", image, "-m", "/dev/sda", *GUESTMOUNT_OPTIONS)
        process = subprocess.Popen(
            [*command, "--no-fork", f"--fd={told}", folder],
            stdin=subprocess.DEVNULL,
            env=self._environment,
            pass_fds=[told],
        )
        os.close(told)
        with os.fdopen(ready, "rb") as pipe:
            said = pipe.read(1)  # comes when it is mounted, or not at all
        if not said:
            process.wait(GONE_WITHIN)
            raise BenchError(f"guestmount failed with {process.returncode}")
        return GuestMounted(folder, process)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def guestfs_environment(cache: Path, accelerator: str) -> dict[str, str]:
    """Return the environment of libguestfs: its direct backend, its appliance cached in a folder of ours."""
    cache.mkdir(parents=True, exist_ok=True)
    forced = {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"} if accelerator == "tcg" else {}
    return {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_CACHEDIR": os.fspath(cache), **forced}


# --- M --------------------------------------------------------------------------------------------------------------
class MountsafeMounted:
    """A running mountsafe mount. `accelerator` is "kvm" or "tcg"."""

    def __init__(self, folder: Path, record: dict[str, object], program: Path) -> None:
        self.folder = folder
        self.accelerator = str(record["accelerator"])
        self._program = program
        self._supervisor = int(str(record["supervisor"]))
        self._machine = int(str(record["virtual_machine"] or 0))

    def processes(self) -> list[int]:
        """The supervisor, the session, and the virtual machine as long as it runs."""
        return measure.tree_of(self._supervisor)

    def sync(self) -> None:
        """By fsync of the mount's root."""
        _fsync(self.folder, os.O_RDONLY)

    def has_machine(self) -> bool:
        """Whether its virtual machine runs now."""
        return any(measure.program_of(pid).startswith("qemu-system") for pid in self.processes())

    def end_machine(self) -> None:
        """End the virtual machine; the mount goes on. To be dropped when an idle one ends by itself."""
        inner = measure.tree_of(self._machine)[1:2]
        for pid in inner:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GONE_WITHIN
        while self.has_machine() and time.monotonic() < end:
            time.sleep(0.1)

    def unmount(self) -> None:
        """Unmount; the command returns when everything is gone."""
        run(self._program, "unmount", self.folder)


class Mountsafe:
    """What this is about. `program`: the command."""

    letter = "M"

    def __init__(self, program: Path) -> None:
        self._program = program

    def can(self, filesystem: str) -> bool:
        """Every type of the benchmark."""
        return True

    def mount(self, image: Path, filesystem: str, folder: Path, write: bool = False) -> MountsafeMounted:
        """Mount as a user would."""
        how = ["--write"] if write else []
        record = json.loads(run(self._program, "mount", *how, "--json", image, folder))
        return MountsafeMounted(folder, record, self._program)

    def build(self) -> None:
        """Build the appliance, if it is missing or outdated."""
        run(self._program, "appliance", "build")
