"""What the appliance is made from, and the fingerprint that says whether an appliance is still made from that."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mountsafe import distribution
from mountsafe.appliance import dpkg, kernel, rpm
from mountsafe.appliance.installed import Database
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.limits import GUEST_MEMORY_MIB

PACKAGE = Path(__file__).resolve().parent.parent  # the folder of mountsafe itself
OPTIONAL = "optional"

# The files of ours that go into the appliance, code and others, and those that decide how it is made.
_AGENT = (
    *("__init__", "amended", "assembling", "attributes", "changing", "checking", "claimed", "copies", "disk"),
    *("entries", "exfat", "extents", "folders", "fsck", "layers", "localtimes", "mounting", "names", "naming"),
    *("patched", "places", "programs", "receiving", "reparse", "repeated", "runs", "sectors", "sessions", "signatures"),
    *("tables", "tree", "twin", "volumes", "worker", "writable"),
)
_WIRE = ("__init__", "bounds", "facts", "frames", "opening", "reading")
CODE = (
    *("__init__.py", "changes.py", "checkers.py", "fsoptions.py"),
    *(f"wire/{name}.py" for name in _WIRE),
    *(f"agent/{name}.py" for name in _AGENT),
)
_OURS = (*CODE, "appliance/init", "appliance/packages")
_MAKERS = (
    *("build.py", "contents.py", "features.py", "freeze.py", "hardware.py", "inputs.py", "kernel.py", "modules.py"),
    *("saving.py", "thaw.py"),
)

# libguestfs's parts that are used as they are; its init, its host files and its udev rules are not.
PARTS = ("base.tar.gz", "daemon.tar.gz", "excludefiles", "packages")


def database(root: Path) -> Database:
    """Return what says which packages are installed below `root`."""
    place = distribution.rpm_database(root)
    return rpm.Database(place) if place else dpkg.Database(root)


def _here() -> Database:
    return database(Path("/"))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one appliance is made of, taken before the work begins: what changes meanwhile shows in the next look."""

    kernel: kernel.Kernel
    chosen: tuple[str, ...]  # names of packages
    absent: tuple[str, ...]  # optional ones that are not installed
    packages: tuple[str, ...]  # "name version" of the chosen ones and of what they depend on
    stamp: str  # of the packages' database
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where everything comes from; tests put folders of their own here."""

    root: Path = Path("/")
    package: Path = PACKAGE
    database: Database = field(default_factory=_here)

    def kernel(self) -> kernel.Kernel:
        """Return the host's best kernel. Raises `UserError` if there is none."""
        return kernel.best(self.root)

    def ours(self) -> dict[str, bytes]:
        """Return our own files of the appliance. Raises `MountsafeError` if the installation lacks one."""
        try:
            return {name: (self.package / name).read_bytes() for name in _OURS}
        except FileNotFoundError as error:
            raise MountsafeError(f"this installation is incomplete: {error.filename} is missing") from error

    def libguestfs(self) -> Path:
        """Return libguestfs's folder supermin.d. Raises `UserError` if libguestfs is not installed."""
        places = [Path(place) for place in os.environ.get("LIBGUESTFS_PATH", "").split(":") if place]
        places += [*sorted(self.root.glob("usr/lib/*/guestfs")), self.root / "usr/lib/guestfs"]
        places += [self.root / "usr/lib64/guestfs"]
        for place in places:
            if all((place / "supermin.d" / part).is_file() for part in PARTS):
                return place / "supermin.d"
        raise UserError(
            "libguestfs's parts of the appliance (supermin.d) are missing",
            distribution.install("python3-guestfs"),
            ExitCode.DEPENDENCY,
        )

    def packages(self) -> dict[str, bool]:
        """Return the names of the packages to take, and whether the appliance works only with them."""
        names = {}
        for line in (self.package / "appliance/packages").read_text().splitlines():
            name, *flags = line.partition("#")[0].split() or [""]
            if name:
                names[distribution.named(name, self.root)] = OPTIONAL not in flags
        for name in (self.libguestfs() / "packages").read_text().split():
            if name.startswith("lib"):
                names.setdefault(name, True)
        return names

    def chosen(self) -> tuple[list[str], list[str]]:
        """Return the packages to take that are installed, and the optional ones that are not.

        Raises `UserError` if a necessary one is not installed.
        """
        names = self.packages()
        absent = [name for name in names if name not in self.database.packages]
        if needed := [name for name in absent if names[name]]:
            words = ", ".join(needed)
            raise UserError(f"not installed: {words}", distribution.install(*needed), ExitCode.DEPENDENCY)
        return [name for name in names if name not in absent], absent

    def recipe(self) -> Recipe:
        """Return what an appliance built now is made of. Raises `UserError` if something necessary is missing."""
        stamp = self.database.stamp()
        chosen, absent = self.chosen()
        packages = tuple(str(package) for package in self.database.closure(chosen))
        fingerprint = self.fingerprint([*packages, *(f"{name} -" for name in absent)])
        return Recipe(self.kernel(), tuple(chosen), tuple(absent), packages, stamp, fingerprint)

    def fingerprint(self, packages: Iterable[str]) -> str:
        """Return a hash over everything that goes into an appliance of `packages` ("name version", "name -")."""
        digest = hashlib.sha256()
        for name, content in self.ours().items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        for name in _MAKERS:
            digest.update((PACKAGE / "appliance" / name).read_bytes())
        folder = self.libguestfs()
        for part in PARTS:
            status = (folder / part).stat()
            digest.update(f"{part} {status.st_size} {status.st_mtime_ns}\n".encode())
        digest.update(f"{self.kernel().identity()}\n{GUEST_MEMORY_MIB}\n".encode())
        digest.update("\n".join(sorted(packages)).encode())
        return digest.hexdigest()
