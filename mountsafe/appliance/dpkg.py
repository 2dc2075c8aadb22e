"""What dpkg has installed, read from its database: no program is run, since this is on the path of each mount."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mountsafe.errors import ExitCode, UserError

_FIELD = re.compile(rb"^(Package|Status|Version|Depends|Pre-Depends|Provides): (.*)$", re.MULTILINE)
_RELATION = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::\w+)?\s*(?:\([^)]*\))?")


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package. `needs` holds the names of all its dependencies, alternatives among them."""

    name: str
    version: str
    needs: frozenset[str]
    provides: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Database:
    """The installed packages by name."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.path = root / "var/lib/dpkg/status"
        self.info = root / "var/lib/dpkg/info"
        self._packages: dict[str, Package] | None = None

    def stamp(self) -> str:
        """Return what changes whenever a package is installed or removed. Costs one stat."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    @property
    def packages(self) -> dict[str, Package]:
        """Every installed package. Raises `UserError` on a host without dpkg."""
        if self._packages is None:
            try:
                content = self.path.read_bytes()
            except FileNotFoundError:
                hint = "the appliance is built from the packages of Debian or a relative of it"
                raise UserError("dpkg's database is missing", hint, ExitCode.DEPENDENCY) from None
            self._packages = {}
            for package in map(_parse, content.split(b"\n\n")):
                if package is not None:  # of several architectures, the first is the host's own
                    self._packages.setdefault(package.name, package)
        return self._packages

    def version(self, name: str) -> str:
        """Return "name version", or "name -" for a package that is not installed."""
        package = self.packages.get(name)
        return str(package) if package else f"{name} -"

    def closure(self, names: Iterable[str]) -> list[Package]:
        """Return the installed ones of `names` and of everything that they depend on, sorted by name."""
        providers: dict[str, list[str]] = {}
        for package in self.packages.values():
            for name in package.provides:
                providers.setdefault(name, []).append(package.name)
        todo, chosen = list(names), dict[str, Package]()
        while todo:
            name = todo.pop()
            if name not in self.packages:
                todo += [provider for provider in providers.get(name, []) if provider not in chosen]
            elif name not in chosen:
                chosen[name] = self.packages[name]
                todo += chosen[name].needs
        return [chosen[name] for name in sorted(chosen)]

    def files(self, name: str) -> list[str]:
        """Return the paths that a package brought."""
        lists = [*self.info.glob(f"{name}.list"), *self.info.glob(f"{name}:*.list")]
        return [line for path in lists for line in path.read_text().splitlines()]


def _parse(paragraph: bytes) -> Package | None:
    fields = {key.decode(): value.decode("utf-8", "replace") for key, value in _FIELD.findall(paragraph)}
    if not fields.get("Status", "").endswith(" installed"):
        return None
    needs = _names(fields.get("Depends", "")) | _names(fields.get("Pre-Depends", ""))
    return Package(fields["Package"], fields["Version"], needs, _names(fields.get("Provides", "")))


def _names(relations: str) -> frozenset[str]:
    return frozenset(match.group(1) for match in _RELATION.finditer(relations))
