"""What dpkg has installed, read from its database."""

import re
from pathlib import Path

from mountsafe import distribution
from mountsafe.appliance import installed
from mountsafe.appliance.installed import Package
from mountsafe.errors import ExitCode, UserError

_FIELD = re.compile(rb"^(Package|Status|Version|Depends|Pre-Depends|Provides): (.*)$", re.MULTILINE)
_RELATION = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::\w+)?\s*(?:\([^)]*\))?")


class Database(installed.Database):
    """The paragraphs of its status file."""

    def __init__(self, root: Path = Path("/")) -> None:
        super().__init__(root / distribution.DPKG)
        self.info = root / "var/lib/dpkg/info"

    def _read(self) -> dict[str, Package]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            hint = "the appliance is built from the packages of Debian, Fedora or a relative of theirs"
            raise UserError("neither dpkg nor rpm has a database here", hint, ExitCode.DEPENDENCY) from None
        found: dict[str, Package] = {}
        for package in map(_parse, content.split(b"\n\n")):
            if package is not None:  # of several architectures, the first is the host's own
                found.setdefault(package.name, package)
        return found

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
