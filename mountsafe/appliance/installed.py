"""What is installed on this host: one interface, and a reader for each database that says so.

No program is run: this is on the path of each mount.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package. `needs`: what it depends on, alternatives among them; `provides`: other names of it."""

    name: str
    version: str
    needs: frozenset[str]
    provides: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Database(ABC):
    """The installed packages by name. `path` is the file that changes with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> str:
        """Return what changes whenever a package is installed or removed. Costs one stat."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    @cached_property
    def packages(self) -> dict[str, Package]:
        """Every installed package. Raises `UserError` where there is no such database, or it cannot be read."""
        return self._read()

    @abstractmethod
    def _read(self) -> dict[str, Package]: ...

    @abstractmethod
    def files(self, name: str) -> list[str]:
        """Return the paths that a package brought."""

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
