"""The picture in ARCHITECTURE.md, held: who may import what, and how long a piece of code may be.

The tables below are the rules; `violations` reads the sources (never imports them) and names each breach.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "mountsafe"

# Rooms from the lowest to the highest. A room knows rooms of its own line and of the lines above it, never below.
WORDS = ("errors", "limits", "text", "model", "fsoptions", "checkers")
ROOMS = (
    WORDS,
    ("policy",),
    ("wire",),
    ("changes",),
    (
        *(
            "boxuser",
            "channel",
            "codec",
            "distribution",
            "environment",
            "incidents",
            "landlock",
            "mountinfo",
            "peer",
            "pieces",
            "process",
            "reading",
        ),
        *("shortage", "syscalls", "trios"),
    ),
    ("agent", "medium", "sandbox", "appliance", "container", "encrypted", "hotplug"),
    ("system",),
    ("filesystem",),
    ("session",),
    ("jobs",),
    ("library",),
    ("daemon",),
    ("desktop",),
    ("cli",),
    ("__main__",),
)

# Modules that import the standard library and these rooms, and nothing else at all.
CLOSED = {
    **{f"{PACKAGE}.{word}": WORDS for word in WORDS},
    f"{PACKAGE}.policy*": (*WORDS, "policy"),
    f"{PACKAGE}.wire*": ("wire",),
    f"{PACKAGE}.changes": ("wire",),
    f"{PACKAGE}.reading": ("wire",),
    f"{PACKAGE}.agent*": ("wire", "changes", "agent", "checkers", "fsoptions"),
}

# Every import from outside the standard library: the modules that may do it.
FOREIGN = {
    "argon2": (f"{PACKAGE}.encrypted.kdf",),
    "guestfs": (f"{PACKAGE}.appliance.guest",),
    "nbd": (f"{PACKAGE}.medium.nbd",),
    "nbdkit": (f"{PACKAGE}.encrypted.serve",),
    "pyfuse3": (f"{PACKAGE}.filesystem.operations", f"{PACKAGE}.filesystem.changing"),
    "trio": (
        f"{PACKAGE}.channel",
        f"{PACKAGE}.peer",
        f"{PACKAGE}.process",
        f"{PACKAGE}.trios",
        f"{PACKAGE}.medium*",
        f"{PACKAGE}.sandbox",
        f"{PACKAGE}.appliance*",
        f"{PACKAGE}.encrypted.keys",
        f"{PACKAGE}.filesystem*",
        f"{PACKAGE}.session*",
        f"{PACKAGE}.jobs*",
        f"{PACKAGE}.daemon*",
        f"{PACKAGE}.desktop*",
        f"{PACKAGE}.cli*",
    ),
    "jeepney": (
        *(f"{PACKAGE}.system.{name}" for name in ("answers", "messages", "udisks")),
        *(f"{PACKAGE}.daemon*", f"{PACKAGE}.desktop*"),
    ),
    "seccomp": (f"{PACKAGE}.syscalls",),
    "pyudev": (f"{PACKAGE}.hotplug*",),
    "systemd": (f"{PACKAGE}.daemon.journal",),
    "secretstorage": (f"{PACKAGE}.desktop.remembering",),
    "rich": (f"{PACKAGE}.cli*",),
    "typer": (f"{PACKAGE}.cli*",),
}

# Rooms that nobody may import, and who may all the same.
NOT_IMPORTED = {"cli": (f"{PACKAGE}.cli*", f"{PACKAGE}.__main__")}

# What the package itself names, for type checkers alone: it is loaded when it is asked for (tests/pure/test_lazy.py).
LAZY = (f"{PACKAGE}.errors", f"{PACKAGE}.library.filesystem", f"{PACKAGE}.library.image")

# Libraries that never meet in one process: libguestfs blocks and calls back into Python, so its process has one thread.
APART = (("guestfs", "trio"), ("guestfs", "pyfuse3"))

BANNED_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")

MODULE_LINES = 400
FUNCTION_LINES = 60
# "mountsafe/x.py" or "mountsafe/x.py:function" -> why it is one piece nevertheless.
LONGER: dict[str, str] = {
    "mountsafe/cli/mounting.py:mount": "its parameters are the options with their help texts",
}


@dataclass(frozen=True)
class Import:
    """One imported module; `at_import`: it comes with the importer (no deferred import, none for type checkers)."""

    name: str
    at_import: bool


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    path: str
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        return room_of(self.name)


def room_of(name: str) -> str:
    """Return the second part of a dotted name: "" for the package itself."""
    return name.partition(".")[2].partition(".")[0]


def read_modules(root: Path) -> dict[str, Module]:
    """Parse all of `root`/mountsafe, by dotted name."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text()
        modules[name] = Module(name, str(relative), ast.parse(source), len(source.splitlines()))
    return modules


def import_nodes(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            deferred |= isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from import_nodes(child, at_import and not deferred)


def imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """Name every module that `module` imports; `from package import module` names the module."""
    for node, at_import in import_nodes(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            origin = "." * node.level + (node.module or "")
            inner = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in known else origin for name in inner]
        for name in dict.fromkeys(names):
            yield Import(name, at_import)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rank(room: str) -> int | None:
    return next((rank for rank, rooms in enumerate(ROOMS) if room in rooms), None)


def wrong_foreign(module: Module, name: str) -> Iterator[str]:
    """Breaches by an import from outside the package."""
    top = name.split(".")[0]
    if name.startswith("."):
        yield f"{module.path}: relative import of {name}"
    elif top in sys.stdlib_module_names:
        return
    elif top not in FOREIGN:
        yield f"{module.path}: imports {top}, which no rule names"
    elif not matches(module.name, FOREIGN[top]):
        yield f"{module.path}: imports {top}, which only {', '.join(FOREIGN[top])} may"


def wrong_direction(module: Module, name: str) -> Iterator[str]:
    """Breaches by an import of one room by another."""
    room = room_of(name)
    own, other = rank(module.room), rank(room)
    if not module.room and name not in LAZY:
        yield f"{module.path}: the package itself imports {name}: it must stay importable in the guest and in setup"
    elif room and own is not None and other is not None and other > own:
        yield f"{module.path}: imports {name}, a higher room"
    if room in NOT_IMPORTED and not matches(module.name, NOT_IMPORTED[room]):
        yield f"{module.path}: imports {name}, which only {', '.join(NOT_IMPORTED[room])} may"
    for pattern, rooms in CLOSED.items():
        if fnmatchcase(module.name, pattern) and room not in rooms:
            yield f"{module.path}: imports {name}, but may know only {', '.join(rooms) or 'the standard library'}"


def wrong_imports(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.room and rank(module.room) is None:
            yield f"{module.path}: the room {module.room} has no place in ROOMS"
        for imported in imports(module, modules):
            inside = imported.name.split(".")[0] == PACKAGE
            yield from (wrong_direction if inside else wrong_foreign)(module, imported.name)


def import_graph(modules: dict[str, Module]) -> dict[str, set[str]]:
    """What each module imports when it is imported."""
    return {
        module.name: {imported.name for imported in imports(module, modules) if imported.at_import}
        for module in modules.values()
    }


def cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"import cycle: {' -> '.join(error.args[1])}"


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything in the process once `start` is imported; importing a.b imports a first."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, set())
            todo += [name.rpartition(".")[0]] if "." in name else []
    return seen


def wrong_company(graph: dict[str, set[str]]) -> Iterator[str]:
    for name in graph:
        together = {found.split(".")[0] for found in reachable(graph, name)}
        for one, other in APART:
            if {one, other} <= together:
                yield f"{name}: importing it brings {one} and {other} into one process"


def wrong_sizes(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.lines > MODULE_LINES and module.path not in LONGER:
            yield f"{module.path}: {module.lines} lines; over {MODULE_LINES} it usually hides two things"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES and f"{module.path}:{node.name}" not in LONGER:
                    yield f"{module.path}:{node.name}: {lines} lines, over {FUNCTION_LINES}"


def wrong_names(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for part in module.name.split("."):
            if part.strip("_") in BANNED_NAMES:
                yield f"{module.path}: {part} says nothing about what is inside"


def violations(root: Path) -> list[str]:
    """Name every breach of the tables above under `root`."""
    modules = read_modules(root)
    graph = import_graph(modules)
    return [
        *wrong_imports(modules),
        *cycles(graph),
        *wrong_company(graph),
        *wrong_sizes(modules),
        *wrong_names(modules),
    ]


def write_package(root: Path, sources: dict[str, str]) -> None:
    for path, source in sources.items():
        place = root / PACKAGE / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(source)


def test_layers_hold(repository: Path) -> None:
    assert "\n".join(violations(repository)) == ""


def test_exceptions_are_still_needed(repository: Path) -> None:
    """An exception whose module has shrunk or gone is to be removed."""
    modules = read_modules(repository)
    paths = {module.path: module for module in modules.values()}
    for place in LONGER:
        path, _, function = place.partition(":")
        assert path in paths, f"{place} is gone"
        nodes = [n for n in ast.walk(paths[path].tree) if getattr(n, "name", None) == function]
        lines = [getattr(n, "end_lineno", 0) - getattr(n, "lineno", 0) + 1 for n in nodes]
        assert max(lines) > FUNCTION_LINES if function else paths[path].lines > MODULE_LINES, f"{place} fits"


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        pytest.param("cli/mount.py", "import guestfs", "which only mountsafe.appliance.guest may", id="guestfs"),
        pytest.param("medium/block.py", "import nbd", "which only mountsafe.medium.nbd may", id="nbd"),
        pytest.param("session/x.py", "def f():\n    import pyfuse3", "imports pyfuse3", id="deferred-pyfuse3"),
        pytest.param("text.py", "import trio", "imports trio", id="words-trio"),
        pytest.param("policy/rules.py", "from mountsafe.wire import Frame", "may know only", id="policy-closed"),
        pytest.param("wire/frames.py", "from mountsafe import limits", "may know only wire", id="wire-closed"),
        pytest.param("agent/tree.py", "from mountsafe import limits", "may know only", id="agent-closed"),
        pytest.param("agent/tree.py", "import attr", "imports attr, which no rule names", id="agent-foreign"),
        pytest.param("medium/block.py", "import wire", "imports wire, which no rule names", id="alias-elsewhere"),
        pytest.param("medium/block.py", "import mountsafe.session.life", "a higher room", id="upwards"),
        pytest.param("daemon/broker.py", "from mountsafe.cli import main", "may", id="nobody-imports-cli"),
        pytest.param("daemon/broker.py", "from . import notify", "relative import", id="relative"),
        pytest.param("daemon/broker.py", "import requests", "which no rule names", id="undeclared"),
        pytest.param("__init__.py", "from mountsafe import text", "the package itself", id="package"),
        pytest.param("tools/x.py", "", "has no place in ROOMS", id="unknown-room"),
        pytest.param("medium/utils.py", "", "says nothing", id="name"),
        pytest.param("medium/block.py", "#\n" * 401, "401 lines", id="long-module"),
        pytest.param("medium/block.py", "def f():\n" + "    f()\n" * 60, "61 lines", id="long-function"),
        pytest.param("medium/block.py", "import mountsafe.medium.block", "import cycle", id="cycle"),
    ],
)
def test_a_breach_is_caught(tmp_path: Path, path: str, source: str, breach: str) -> None:
    write_package(tmp_path, {"limits.py": "", "text.py": "", path: source})
    found = violations(tmp_path)
    assert any(breach in line for line in found), found


def test_libraries_that_meet_over_a_third_module_are_caught(tmp_path: Path) -> None:
    sources = {
        "appliance/guest.py": "import guestfs",
        "appliance/serve.py": "from mountsafe.appliance import guest\nfrom mountsafe.medium import block",
        "medium/block.py": "import trio",
    }
    write_package(tmp_path, sources)
    assert violations(tmp_path) == ["mountsafe.appliance.serve: importing it brings guestfs and trio into one process"]


def test_what_the_picture_allows_passes(tmp_path: Path) -> None:
    sources = {
        "agent/tree.py": "from mountsafe import wire\nfrom mountsafe.agent import runs",
        "agent/runs.py": "import os",
        "wire/__init__.py": "from mountsafe.wire.frames import Frame",
        "wire/frames.py": "import struct",
        "session/life.py": "import trio\nfrom mountsafe.appliance.client import Client\nfrom mountsafe import wire",
        "appliance/client.py": "import trio\nfrom mountsafe.wire import Frame",
        "cli/main.py": "def run():\n    from mountsafe.session import life",
        "__main__.py": "from mountsafe.cli.main import run",
    }
    write_package(tmp_path, sources)
    assert violations(tmp_path) == []
