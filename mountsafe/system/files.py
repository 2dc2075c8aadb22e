"""Put generated files in place, and take them away again so that every byte is as it was before.

What was there before is kept in a record, which is written first: whenever a step fails or the machine stops, the next
`install` or `uninstall` knows what it may replace. A file that somebody changed since is left alone.
"""

import base64
import binascii
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mountsafe.errors import ExitCode, UserError

RECORD = Path("var/lib/mountsafe/policy.json")
VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """An installed file: the digest of what we wrote, and what was there before (None: nothing)."""

    digest: str
    before: bytes | None
    mode: int


@dataclass(frozen=True, slots=True)
class Change:
    """One file: what is there and what shall be, each with its mode; None is no file."""

    path: Path
    old: bytes | None
    old_mode: int
    new: bytes | None
    mode: int = 0o644

    @property
    def verb(self) -> str:
        """What happens to it, in a word."""
        if self.old == self.new:
            return "keep"
        return "remove" if self.new is None else "create" if self.old is None else "replace"


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in their order, and the record that describes the machine after them."""

    changes: tuple[Change, ...]
    kept: Mapping[str, Kept]
    folders: tuple[str, ...]  # made by us, and removed when they are empty again


class Files:
    """The generated files below `root`, which is / or a folder that stages them."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._record = root / RECORD

    def installed(self) -> dict[str, Kept]:
        """Return what the record lists, by path."""
        told = self._read()["files"]
        return {path: Kept(each["digest"], _decoded(each["before"]), each["mode"]) for path, each in told.items()}

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_bytes())
            if record["version"] != VERSION:
                raise ValueError(f"version {record['version']!r}")
            _ = [(each["digest"], _decoded(each["before"]), each["mode"]) for each in record["files"].values()]
            _ = list(record["folders"])
        except FileNotFoundError:
            return {"files": {}, "folders": []}
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            hint = "It says what was there before: without it the files must be removed by hand."
            raise UserError(f"cannot read {self._record}: {error}", hint) from error
        found: dict[str, Any] = record
        return found

    def plan_install(self, wanted: Mapping[str, str], force: bool = False) -> Plan:
        """Return what makes the files be as `wanted` (absolute path -> text), and no other generated ones."""
        kept = self.installed()
        changes = [self._restored(path, kept[path], force) for path in kept if path not in wanted]
        record: dict[str, Kept] = {}
        for path, text in wanted.items():
            new = text.encode()
            old, mode = self._now(path)
            if path in kept:
                self._check_unchanged(path, old, kept[path], force)
            before = kept.get(path, Kept("", old, mode))
            record[path] = Kept(_digest(new), before.before, before.mode)
            changes.append(Change(self._place(path), old, mode, new))
        folders = self._read()["folders"]
        missing = {str(folder) for path in wanted for folder in self._missing_parents(path)}
        return Plan(tuple(changes), record, tuple(sorted({*folders, *missing})))

    def plan_uninstall(self, force: bool = False) -> Plan:
        """Return what makes everything as it was before the first install."""
        kept = self.installed()
        changes = tuple(self._restored(path, each, force) for path, each in kept.items())
        return Plan(changes, {}, tuple(self._read()["folders"]))

    def _restored(self, path: str, kept: Kept, force: bool) -> Change:
        old, mode = self._now(path)
        self._check_unchanged(path, old, kept, force)
        return Change(self._place(path), old, mode, kept.before, kept.mode)

    def _check_unchanged(self, path: str, now: bytes | None, kept: Kept, force: bool) -> None:
        if force or now is None or now == kept.before or _digest(now) == kept.digest:
            return
        hint = "mountsafe policy diff shows how; --force drops what was changed."
        raise UserError(f"{path} was changed since it was installed", hint, ExitCode.TARGET)

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _now(self, path: str) -> tuple[bytes | None, int]:
        place = self._place(path)
        try:
            if place.is_symlink():
                raise UserError(f"{place} is a symbolic link", "Remove it first.", ExitCode.TARGET)
            return place.read_bytes(), place.stat().st_mode & 0o7777
        except FileNotFoundError:
            return None, 0o644

    def _missing_parents(self, path: str) -> Iterator[Path]:
        folder = Path(path).parent
        while folder != folder.parent and not (self.root / str(folder).lstrip("/")).is_dir():
            yield folder
            folder = folder.parent

    def carry_out(self, plan: Plan) -> None:
        """Make the changes; if one fails, undo those before it and raise what failed."""
        with self._alone():
            before = self._record.read_bytes() if self._record.exists() else None
            # What is being taken away stays on record until it is gone.
            self._write_record({**self.installed(), **plan.kept}, plan.folders)
            done: list[Change] = []
            try:
                for change in plan.changes:
                    done.append(change)
                    put(change.path, change.new, change.mode)
            except BaseException:
                for change in reversed(done):
                    with suppress(OSError):
                        put(change.path, change.old, change.old_mode)
                put(self._record, before, 0o600)
                raise
            if plan.kept:
                self._write_record(plan.kept, plan.folders)
                return
            put(self._record, None, 0)
            for folder in sorted(plan.folders, reverse=True):
                with suppress(OSError):
                    self._place(folder).rmdir()

    def _write_record(self, kept: Mapping[str, Kept], folders: tuple[str, ...]) -> None:
        files = {path: {**asdict(each), "before": _encoded(each.before)} for path, each in kept.items()}
        record = {"version": VERSION, "files": files, "folders": folders}
        put(self._record, json.dumps(record, indent=1).encode() + b"\n", 0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold a lock, so that two installs do not mix."""
        self._record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self._record.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def put(path: Path, content: bytes | None, mode: int) -> None:
    """Make a file be so, or not be; whoever looks sees the old or the new one."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.mountsafe")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _encoded(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode("ascii")


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
