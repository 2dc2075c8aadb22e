"""Where the command line is tested: an installed copy of it, an ordinary user, and mounts that nobody else sees.

Root's session unshares its mount namespace. Root's records in /run, the ordinary user's account and all mounts live in
there and are gone with it, however the session ends, and whatever else runs on the machine is neither seen nor touched.
The copy is as root would install it: the checkout and its environment may be closed to the user, and may change.
"""

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from mountsafe.sandbox import PYTHON
from tests.appliance import put
from tests.done import Done

ACCOUNT = "mountsafe-test"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEADLINE = 180.0  # of any command: a virtual machine that boots on a busy machine, with much to spare

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000  # include/uapi/linux/sched.h
PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise OSError if a C function has failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def sh(*command: str | os.PathLike[str]) -> None:
    """Run a host program that must succeed."""
    subprocess.run(command, check=True, timeout=DEADLINE, stdin=subprocess.DEVNULL)


class Started(subprocess.Popen[str]):
    """A running command. If the block that it is used in fails, its process group is killed."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(kind, value, traceback)


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody with a home folder who runs mountsafe. `uid` None: whoever runs the tests."""

    name: str
    uid: int
    switch: bool
    home: Path
    program: Path
    environment: dict[str, str] = field(default_factory=dict)
    groups: tuple[int, ...] = ()  # beside that of the same number as the uid

    @property
    def is_root(self) -> bool:
        """Whether he is root."""
        return self.uid == 0

    @property
    def records(self) -> Path:
        """The folder that mountsafe keeps his records in."""
        return Path("/run/mountsafe/mounts") if self.is_root else self.runtime / "mountsafe"

    @property
    def runtime(self) -> Path:
        """His runtime folder."""
        return self.home / "runtime"

    @property
    def temporary(self) -> Path:
        """His folder for temporary files."""
        return self.home / "tmp"

    def start(
        self,
        *arguments: str | os.PathLike[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] | None = None,
    ) -> Started:
        """Start the command line, or another program, as this person, in a process group of its own."""
        identity: dict[str, Any] = {}
        if self.switch:
            identity = {"user": self.uid, "group": self.uid, "extra_groups": self.groups}
        return Started(
            [*(program or [str(self.program)]), *(str(argument) for argument in arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            cwd=cwd or self.home,
            env={**self.environment, **(env or {})},
            process_group=0,
            **identity,
        )

    def run(self, *arguments: str | os.PathLike[str], **how: Any) -> Done:
        """Run the command line, or another program, to its end."""
        with self.start(*arguments, **how) as process:
            out, err = process.communicate(timeout=DEADLINE)
        return Done([str(part) for part in process.args], process.returncode, out, err)  # type: ignore[union-attr]

    def python(self, code: str, *arguments: str | os.PathLike[str]) -> Done:
        """Run Python as this person."""
        return self.run(*arguments, program=[PYTHON, "-I", "-c", code])

    def folder(self) -> Path:
        """Make a new folder of his."""
        path = Path(tempfile.mkdtemp(prefix="test-", dir=self.home))
        self.give(path)
        return path

    def give(self, path: Path) -> Path:
        """Make a file or folder his."""
        os.chown(path, self.uid, self.uid if self.switch else -1, follow_symlinks=False)
        return path

    def records_of(self, source: Path) -> dict[str, Any]:
        """What `list --json` says about a source."""
        [record] = [record for record in self.run("list", "--json").ok().json() if record["source"] == str(source)]
        return dict(record)


@dataclass(frozen=True)
class Stage:
    """The folder of this session, and who is on it."""

    root: Path
    program: Path
    persons: dict[str, Person]

    def variant(self, name: str, changes: Mapping[str, Mapping[str, str]]) -> Path:
        """Return another installed copy's command. `changes`: for a file of the package, texts and their successors.

        Each text must be there once.
        """
        prefix = self.root / name
        shutil.copytree(self.program.parent, prefix)
        program = prefix / self.program.name
        program.write_text(program.read_text().replace(str(self.program.parent), str(prefix)))
        for module, replaced in changes.items():
            path = prefix / "lib/mountsafe" / module
            text = path.read_text()
            for old, new in replaced.items():
                assert text.count(old) == 1, f"{old!r} in {module}"
                text = text.replace(old, new)
            path.write_text(text)
        return program


# --- the installed copy ---------------------------------------------------------------------------------------------
def requirements(name: str, seen: set[str]) -> None:
    """Add to `seen` what a distribution needs, and it."""
    try:
        needed = [] if name in seen else metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # not for this Python or system
        return
    seen.add(name)
    for requirement in needed:
        if "extra ==" not in requirement and "Windows" not in requirement:
            requirements(re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower(), seen)


def install(repository: Path, prefix: Path) -> Path:
    """Copy the package, and what it needs that is not the system's, to `prefix`; return the command."""
    library = prefix / "lib"
    shutil.copytree(repository / "mountsafe", library / "mountsafe", ignore=shutil.ignore_patterns("__pycache__"))
    names: set[str] = set()
    requirements("mountsafe", names)
    for name in names - {"mountsafe"}:
        distribution = metadata.distribution(name)
        if Path(str(distribution.locate_file(""))).is_relative_to("/usr/lib"):
            continue
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.suffix != ".pyc" and source.exists():
                (library / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, library / file)
    entry = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]["mountsafe"]
    module, function = entry.split(":")
    program = prefix / "mountsafe"
    program.write_text(
        f"#!{PYTHON}\nimport sys\nsys.path.insert(0, {str(library)!r})\n"
        f"sys.dont_write_bytecode = True\nfrom {module} import {function}\nsys.exit({function}())\n"
    )
    for path in (prefix, *prefix.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path == program else 0o644)
    sh(PYTHON, "-m", "compileall", "-q", library)
    return program


# --- the namespace and the account ----------------------------------------------------------------------------------
@contextmanager
def private_mounts() -> Iterator[None]:
    """Enter a mount namespace of our own, without the FUSE mounts of others, which a copy here would keep alive."""
    with open("/proc/self/ns/mnt", encoding="ascii") as before:
        checked(libc.unshare(CLONE_NEWNS), "unshare")
        try:
            sh("mount", "--make-rprivate", "/")
            for line in Path("/proc/self/mounts").read_text().splitlines():
                if line.split(" ")[2].startswith("fuse"):
                    sh("umount", "--lazy", line.split(" ")[1].encode().decode("unicode_escape"))
            yield
        finally:
            checked(libc.unshare(CLONE_FS), "unshare")  # threads that have started since share it
            checked(libc.setns(before.fileno(), CLONE_NEWNS), "setns")


@contextmanager
def subreaper() -> Iterator[None]:
    """Be the parent of every orphan among our descendants: then they can be told from those of others."""
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    yield
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0), "prctl")


def add_account(home: Path, root: Path) -> int:
    """Add the ordinary user to this namespace's /etc/passwd and /etc/group; return his uid."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    uid = next(uid for uid in range(20000 + os.getpid() % 20000, 60000) if uid not in taken)
    lines = {"passwd": f"{ACCOUNT}:x:{uid}:{uid}::{home}:/bin/sh\n", "group": f"{ACCOUNT}:x:{uid}:\n"}
    for name, line in lines.items():
        text = Path("/etc", name).read_text()
        copy = root / name
        copy.write_text(text.rstrip("\n") + "\n" + line)
        copy.chmod(0o644)
        sh("mount", "--bind", copy, f"/etc/{name}")
    return uid


def person(name: str, uid: int, switch: bool, home: Path, program: Path, appliance: Path) -> Person:
    """Give somebody his folders."""
    environment = {
        "PATH": PATH,
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(home / "tmp"),
        "MOUNTSAFE_APPLIANCE": str(appliance),
    }
    if uid != 0:
        environment["XDG_RUNTIME_DIR"] = str(home / "runtime")
    made = Person(name, uid, switch, home, program, environment)
    for path in (home, made.runtime, made.temporary):
        path.mkdir(mode=0o700)
        made.give(path)
    home.chmod(0o711)
    return made


@contextmanager
def build_stage(repository: Path) -> Iterator[Stage]:
    """Set everything up; take it down again."""
    root = Path(tempfile.mkdtemp(prefix="mountsafe-stage-", dir="/var/tmp"))
    root.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        program = install(repository, root / "installed")
        appliance = root / "state/appliance"
        put(appliance, [program])
        stack.enter_context(subreaper())
        persons = {}
        if os.geteuid() == 0:
            stack.enter_context(private_mounts())
            Path("/run/mountsafe").mkdir(exist_ok=True)
            sh("mount", "-t", "tmpfs", "-o", "mode=0755", "mountsafe-test", "/run/mountsafe")
            uid = add_account(root / "user", root)
            persons["user"] = person(ACCOUNT, uid, True, root / "user", program, appliance)
            persons["root"] = person("root", 0, False, root / "root", program, appliance)
        else:
            me = pwd.getpwuid(os.geteuid()).pw_name
            persons["user"] = person(me, os.geteuid(), False, root / "user", program, appliance)
        yield Stage(root, program, persons)
