"""The appliance: found if there is one that is current, else built by supermin from the host's own packages.

A place holds versions and the link `current`, which is swapped in one step: whoever has opened files of an older
version keeps them. One builder works at a time; a second one waits and takes the first one's result.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mountsafe import distribution
from mountsafe.appliance import contents, features, kernel, modules, saving
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.inputs import Inputs, Recipe
from mountsafe.errors import ExitCode, UserError
from mountsafe.text import printable

SYSTEM = Path("/var/lib/mountsafe/appliance")
NEEDED = 850 << 20  # bytes on disk while building; about half of it stays
ROOT_SIZE = "1G"  # of the file system; sparse
SUPERMIN_DEADLINE = 600.0

_BUILDING = "building-"
_VERSION = "version-"


@dataclass(frozen=True, slots=True)
class Appliance:
    """A built appliance: `path` is a folder for LIBGUESTFS_PATH (kernel, initrd, root, README.fixed, qemu-cache)."""

    path: Path
    kernel_version: str
    packages: tuple[str, ...]  # "name version", dependencies included
    size: int  # bytes on disk
    filesystems: tuple[str, ...]  # the types that it can mount
    fingerprint: str
    built_at: str  # ISO 8601, UTC
    current: bool  # made from what is on this host now

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep this version from being removed while a VM starts from it. A running VM needs no hold."""
        with open(self.path / "info.json", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield


def location() -> Path:
    """Return the folder of this user's appliances: the system's for root and who has no home, else in their cache."""
    if override := os.environ.get("MOUNTSAFE_APPLIANCE"):
        return Path(override).absolute()
    if os.geteuid() == 0:
        return SYSTEM
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        return Path(cache) / "mountsafe/appliance"
    try:
        return Path.home() / ".cache/mountsafe/appliance"
    except RuntimeError:  # as in a container that is run by a number
        return SYSTEM


def acceleration() -> Acceleration:
    """Return what this user knows of KVM; it is kept beside their appliances."""
    return Acceleration(location().parent / "kvm.json")


def find() -> Appliance | None:
    """Return the appliance to use: this user's own or the system's if one is current, else whichever there is."""
    places = [location()]
    if SYSTEM not in places and "MOUNTSAFE_APPLIANCE" not in os.environ:
        places.append(SYSTEM)
    inputs = Inputs()
    found = [appliance for place in places if (appliance := _load(place, inputs)) is not None]
    return next((appliance for appliance in found if appliance.current), found[0] if found else None)


def mountable() -> tuple[str, ...]:
    """Return the types that what was built last can mount, whether it is current or not; none if nothing was built."""
    for place in (location(), SYSTEM):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return tuple(json.loads((place / "current/info.json").read_bytes())["filesystems"])
    return ()


def ensure(progress: Callable[[str], None]) -> Appliance:
    """Return a current appliance, building it if there is none. Raises `UserError`."""
    appliance = find()
    return appliance if appliance is not None and appliance.current else build(progress)


def refresh(progress: Callable[[str], None]) -> Appliance:
    """As `ensure`, and have a VM saved anew if none fits this host any more: another kernel runs, for example.

    That one cannot be saved is no error.
    """
    appliance = ensure(progress)
    place = appliance.path.parent
    known = acceleration()
    if not os.access(place, os.W_OK) or not saving.outdated(appliance.path, known, progress):
        return appliance
    try:
        with _lock(place, progress), tempfile.TemporaryDirectory(prefix=_BUILDING, dir=place) as work:
            replaced = (place / "current").resolve() != appliance.path  # by the builder that was waited for
            if not replaced and saving.outdated(appliance.path, known, progress):
                progress("booting it once, to start from there later")
                saving.renew(appliance.path, Path(work), known, progress)
    except OSError as error:
        progress(f"no virtual machine is saved: {printable(str(error))}")
    return appliance


def build(progress: Callable[[str], None]) -> Appliance:
    """Build the appliance anew and make it the current one. `progress` gets a sentence per step.

    Raises `UserError` for what the user can mend, `MountsafeError` if this installation lacks its own files. Whatever
    is raised, Ctrl-C included, nothing is left behind and the appliance that was there stays.
    """
    place = location()
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _lock(place, progress) as waited:
            if waited and (appliance := _load(place, Inputs())) is not None and appliance.current:
                return appliance
            _remove_leftovers(place)
            return _build_in(place, Inputs(), progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(place) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "set MOUNTSAFE_APPLIANCE to a folder that this user may write to"
            what = f"{error.filename}: {error.strerror}"
            raise UserError(f"cannot build the appliance in {place}: {what}", hint) from error
        raise


def obstacle() -> UserError | None:
    """Return why nothing can be built now, for want of a program, a package or a kernel; None if none is missing."""
    try:
        _ingredients(Inputs())
    except UserError as error:
        return error
    return None


# --- one build -----------------------------------------------------------------------------------------------------
def _build_in(place: Path, inputs: Inputs, progress: Callable[[str], None]) -> Appliance:
    started = time.monotonic()
    supermin, recipe, image = _ingredients(inputs)
    if shutil.disk_usage(place).free < NEEDED:
        raise _no_space(place)
    work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=place))
    try:
        progress(f"choosing modules of Linux {recipe.kernel.version}")
        pruned = work / "tree/lib/modules" / recipe.kernel.version
        modules.prune(recipe.kernel.modules, pruned)
        progress("collecting files from the host's packages")
        contents.prepare(inputs, work / "supermin.d", recipe.chosen)
        output = work / "appliance"
        _run_supermin(supermin, work, output, recipe.kernel, pruned)
        if (elf := kernel.bare(image)) is not None:
            (output / "kernel").write_bytes(elf)
        (output / "README.fixed").write_text("Built by mountsafe from this host's packages: see info.json.\n")
        progress("booting it once, to start from there later")
        saving.prepare(output, work, acceleration(), progress)
        _describe(output, recipe, pruned)
        _publish(place, output)
    finally:
        _remove_leftovers(place)
    if recipe.absent:
        progress(f"without {', '.join(recipe.absent)}: not installed on this host")
    progress(f"the appliance is ready after {time.monotonic() - started:.1f} s")
    found = _load(place, inputs)
    if found is None:
        raise UserError(f"the appliance in {place} vanished after it was built")
    return found


def _ingredients(inputs: Inputs) -> tuple[str, Recipe, bytes]:
    """Return supermin, what is going to be built, and the kernel's image. Raises `UserError` for what is missing."""
    supermin = shutil.which("supermin")
    if supermin is None:
        raise UserError("supermin is missing", distribution.install("supermin"), ExitCode.DEPENDENCY)
    recipe = inputs.recipe()
    return supermin, recipe, kernel.read(recipe.kernel)


def _run_supermin(supermin: str, work: Path, output: Path, chosen: kernel.Kernel, pruned: Path) -> None:
    command = [*features.MORTAL, supermin, "--build", "--format", "ext2", "--size", ROOT_SIZE, "--copy-kernel"]
    command += ["--host-cpu", os.uname().machine, str(work / "supermin.d"), "-o", str(output)]
    environment = {
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(work),
        "SUPERMIN_KERNEL": str(chosen.image),
        "SUPERMIN_KERNEL_VERSION": chosen.version,
        "SUPERMIN_MODULES": str(pruned),
    }
    # A session of its own: Ctrl-C reaches us alone, and we end it with whatever it has started.
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=SUPERMIN_DEADLINE)
    except subprocess.TimeoutExpired:
        raise UserError(f"supermin did not end within {SUPERMIN_DEADLINE:.0f} s", code=ExitCode.DEADLINE) from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        if b"No space left" in said or b"Could not allocate block" in said:
            raise _no_space(work.parent)
        tail = " / ".join(printable(line) for line in said.splitlines()[-4:])
        raise UserError(f"supermin failed: {tail or f'exit code {process.returncode}'}", code=ExitCode.APPLIANCE)


def _describe(output: Path, recipe: Recipe, pruned: Path) -> None:
    """Write info.json: what `_load` makes an Appliance of, and what `_is_current` compares."""
    types = {*modules.filesystems(pruned), *(["ntfs"] if "ntfs-3g" in recipe.chosen else [])}
    known = {
        "kernel_version": recipe.kernel.version,
        "packages": recipe.packages,
        "absent": recipe.absent,
        "size": sum(path.lstat().st_blocks * 512 for path in output.rglob("*")),
        "filesystems": sorted(types),
        "fingerprint": recipe.fingerprint,
        "dpkg": recipe.stamp,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (output / "info.json").write_text(json.dumps(known, indent=1) + "\n")


def _publish(place: Path, output: Path) -> None:
    """Give the finished folder its name and swap the link."""
    for path in (output, *output.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    version = place / output.parent.name.replace(_BUILDING, _VERSION)
    output.rename(version)
    link = place / f"{_BUILDING}link"
    link.symlink_to(version.name)
    link.rename(place / "current")


# --- the place -----------------------------------------------------------------------------------------------------
def _load(place: Path, inputs: Inputs) -> Appliance | None:
    """Read the current version in `place`; None if there is none that can be used."""
    try:
        path = (place / "current").resolve(strict=True)
        if path.stat().st_uid not in (0, os.geteuid()):  # a planted appliance
            return None
        known = json.loads((path / "info.json").read_bytes())
        names = {field.name for field in fields(Appliance)} - {"path", "current"}
        values: dict[str, Any] = {
            name: tuple(known[name]) if isinstance(known[name], list) else known[name] for name in names
        }
        current = _is_current(known, inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Appliance(path=path, current=current, **values)


def _is_current(known: dict[str, object], inputs: Inputs) -> bool:
    packages, absent = known["packages"], known["absent"]
    if not isinstance(packages, list) or not isinstance(absent, list):
        return False
    versions = [*packages, *(f"{name} -" for name in absent)]
    if known["dpkg"] != inputs.database.stamp():
        versions = [inputs.database.version(line.split()[0]) for line in versions]
    try:
        return inputs.fingerprint(versions) == known["fingerprint"]
    except UserError:  # libguestfs or the kernel is gone: a build will say so
        return False


@contextmanager
def _lock(place: Path, progress: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of `place`; yields whether another builder had to be waited for."""
    with open(place / "lock", "a+b") as file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the appliance")
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def _remove_leftovers(place: Path) -> None:
    """Remove what a killed build left, and versions that are not current and that no VM starts from."""
    current = (place / "current").resolve()
    for path in place.iterdir():
        if path.name.startswith(_BUILDING):
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_VERSION) and path != current and not _is_held(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_held(version: Path) -> bool:
    try:
        with open(version / "info.json", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _no_space(place: Path) -> UserError:
    hint = f"free some, or set MOUNTSAFE_APPLIANCE to a folder on a larger disk; {NEEDED >> 20} MiB are needed"
    return UserError(f"not enough space to build the appliance in {place}", hint)
