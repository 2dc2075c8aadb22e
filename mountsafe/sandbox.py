"""The box that a child process is started in, as values that can be shown before they run.

A box is a bubblewrap command: own user, mount, PID, network, IPC, UTS and cgroup namespaces, no capability, no new
privileges, no nested user namespace, an empty environment, no files of the host but /usr and what is named, and a
filter of system calls (`mountsafe.syscalls`). The parent's death ends it. Root starts it under a user id of its own, so
that even outside the namespaces the process would be nobody.
"""

import os
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_MEMLOCK, RLIMIT_NOFILE, getrlimit

from mountsafe import boxuser, distribution, shortage
from mountsafe.errors import ExitCode, UserError

PYTHON = "/usr/bin/python3"  # the interpreter that has Debian's python3-guestfs and python3-pyfuse3
PACKAGE = Path(__file__).resolve().parent
INSIDE = "/app"  # where the package is seen in a box
# Of a process: open, and signals on their way (timers of POSIX count). The first also bounds the descriptors on their
# way through sockets, which are counted for a user: half of what the user's other programs have, usually.
DESCRIPTORS, SIGNALS = 512, 256
WRITABLE = ("/tmp", "/var/tmp")  # of a bounded size each
DEVICES = "/dev"
# In the environment of a process with threads: each would reserve 64 MiB of address space for what it allocates.
FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True, slots=True)
class Box:
    """What a child may see and use. Sizes in bytes; paths are the host's, seen at the same place unless mapped."""

    scratch: int
    address_space: int
    processes: int
    readable: tuple[tuple[Path, str], ...] = ()  # (host path, path inside)
    devices: tuple[tuple[Path, str], ...] = ()  # (host device, path inside)
    environment: dict[str, str] = field(default_factory=dict)
    locked: int = 0  # memory that may be kept out of swap: no more than this process may lock itself

    def command(self, argv: list[str], uid: int | None = None, seccomp: int | None = None) -> list[str]:
        """Return the command that runs `argv` in this box.

        `uid` is the outer user id that root takes on first; `seccomp` a descriptor with a filter of system calls
        (`mountsafe.syscalls`), which bubblewrap reads, closes, and puts in force right before `argv`.
        """
        command = []
        if uid is not None:
            command += ["setpriv", f"--reuid={uid}", f"--regid={uid}", *self._groups(), "--inh-caps=-all"]
        command += ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
        command += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--clearenv"]
        if seccomp is not None:
            command += ["--seccomp", str(seccomp)]
        environment = {"PATH": "/usr/bin:/usr/sbin", "HOME": "/tmp", "LC_ALL": "C.UTF-8", **self.environment}
        for name, value in environment.items():
            command += ["--setenv", name, value]
        command += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if os.path.islink(f"/{name}"):
                command += ["--symlink", f"usr/{name}", f"/{name}"]
            elif os.path.isdir(f"/{name}"):
                command += ["--ro-bind", f"/{name}", f"/{name}"]
        command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", DEVICES]
        for device, inside in self.devices:
            command += ["--dev-bind", str(device), inside]
        command += ["--remount-ro", DEVICES]  # else a tmpfs without a bound; the devices are mounts of their own
        for path in WRITABLE:
            command += ["--size", str(self.scratch), "--tmpfs", path]
        for source, inside in ((_package(uid), f"{INSIDE}/{PACKAGE.name}"), *self.readable):
            command += ["--ro-bind", str(source), inside]
        command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
        limits = [f"--as={self.address_space}", f"--nproc={self.processes}", "--core=0"]
        limits += [f"--memlock={_at_most(self.locked, RLIMIT_MEMLOCK)}"]
        # What the kernel keeps for a process is not in its address space, and an ordinary user's is counted as theirs.
        limits += [f"--nofile={_at_most(DESCRIPTORS, RLIMIT_NOFILE)}", f"--sigpending={SIGNALS}"]
        # Not bubblewrap's --new-session: its first process would leave the group that our guard ends (`process.Guard`).
        return [*command, "setsid", "prlimit", *limits, "--", *argv]

    def _groups(self) -> list[str]:
        groups = sorted({os.stat(device).st_gid for device, _ in self.devices} - {0})
        return [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]


def _at_most(wanted: int, limit: int) -> int:
    """Return what is wanted of a limit, or less: who is not root gets no more than they have."""
    most = getrlimit(limit)[1]
    return wanted if most == RLIM_INFINITY else min(wanted, most)


def _package(uid: int | None) -> Path:
    """Return the package's folder, or a copy if `uid` could not read it (a checkout in a private home folder)."""
    if uid is None or all(path.stat().st_mode & 0o005 == 0o005 for path in (PACKAGE, *PACKAGE.parents)):
        return PACKAGE
    newest = max(path.stat().st_mtime_ns for path in PACKAGE.rglob("*.py"))
    copy = Path(f"/run/mountsafe/code-{newest:x}") / PACKAGE.name
    if not copy.exists():
        copy.parent.parent.mkdir(mode=0o755, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="code-", dir=copy.parent.parent))
        shutil.copytree(PACKAGE, fresh / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            fresh.rename(copy.parent)
        except OSError:  # another process was first
            shutil.rmtree(fresh)
        for old in copy.parent.parent.glob("code-*"):
            if old != copy.parent and time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
    return copy


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package inside a box."""
    # Importing trio looks for a library, to name threads: where gcc is installed that starts it, and it fails in a box.
    blind = "import ctypes.util; ctypes.util.find_library = lambda name: None"
    return [PYTHON, "-I", "-B", "-c", f"{blind}; {program(INSIDE, module)}", *arguments]


def program(folder: str, module: str) -> str:
    """Return the Python that runs `main` of a module of this package, which is in `folder`.

    What is imported stays until the end, so nothing looks for garbage in it: not while it is imported, nor later, nor
    when the interpreter ends. For who lives a second only that is a good part of it.
    """
    imports = f"import gc, sys; gc.disable(); sys.path.insert(0, {folder!r}); from {module} import main"
    return f"{imports}; gc.freeze(); gc.enable(); main()"


def outer_uid() -> int | None:
    """Return the user id that a child of root should take on, this process's own; None if it is not root."""
    if os.geteuid() != 0:
        return None
    return boxuser.reserved()


def shown(command: list[str]) -> str:
    """Return a command as it can be pasted into a shell."""
    return shlex.join(command)


def require() -> None:
    """Raise `UserError` if what makes a box is missing, or this process is allowed too little for one."""
    shortage.require()
    for program, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux"), ("prlimit", "util-linux")):
        if shutil.which(program) is None:
            raise UserError(f"{program} is missing", distribution.install(package), ExitCode.DEPENDENCY)
    if find_spec("seccomp") is None:
        raise UserError("Python's seccomp is missing", distribution.install("python3-seccomp"), ExitCode.DEPENDENCY)
