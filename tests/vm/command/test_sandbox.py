"""What code can do that has taken over a process below the wall: the probe runs where the real code would.

The command line is the installed one but for one line: in the appliance process, or in the session process, the probe
is called first. Everything before that line (who starts the box, with which descriptors, keys and limits) is real.
"""

import grp
import json
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mountsafe import landlock, limits
from mountsafe.sandbox import PYTHON
from tests import changes
from tests.conftest import missing
from tests.vm.command.stage import Person, Stage
from tests.vm.command.traces import command, descendants

Image = Callable[[str], Path]

BOXES = {
    "guest": (
        "appliance/serve.py",
        limits.APPLIANCE_SCRATCH,
        limits.APPLIANCE_ADDRESS_SPACE,
        limits.APPLIANCE_PROCESSES,
    ),
    "container": (
        "container/serve.py",
        limits.CONTAINER_SCRATCH,
        limits.CONTAINER_ADDRESS_SPACE,
        limits.CONTAINER_PROCESSES,
    ),
    "keys": (
        "encrypted/derive.py",
        limits.KEY_SCRATCH,
        limits.KEY_ADDRESS_SPACE + limits.KEY_MEMORY,
        limits.KEY_PROCESSES,
    ),
    "plaintext": (
        "encrypted/serve.py",
        limits.PLAINTEXT_SCRATCH,
        limits.PLAINTEXT_ADDRESS_SPACE,
        limits.PLAINTEXT_PROCESSES,
    ),
    "session": ("session/server.py", limits.SESSION_SCRATCH, limits.SESSION_ADDRESS_SPACE, limits.SESSION_PROCESSES),
}
ENCRYPTED = ("keys", "plaintext")  # which are there for an encrypted medium alone
# What is called first in each of them; nbdkit gives its script no arguments, but a value.
FIRST = "json.loads(sys.argv[1])"
FIRSTS = {"plaintext": "json.loads(value)"}
# What an ordinary user may do outside, so that the probe is known to be able to fail.
ANYBODY = (
    *("read /etc/passwd", "connect to the host's loopback", "connect to an abstract socket", "see a host process"),
    *("signal a host process", "trace a host process", "gain privileges by exec", "fill the scratch space"),
    *("allocate beyond the limit", "fork beyond the limit", "use the login's key", "use a keyring"),
    "take the user's share of descriptors on their way",
    *("keep memory beside the address space", "take the machine's share of AIO", "take the user's share of inotify"),
)
ROOT = (
    "read /etc/shadow",
    "mount",
    "unshare users",
    "unshare mounts",
    "unshare network",
    "be root",
    "have a capability",
)


@pytest.fixture(scope="module")
def probing(stage: Stage) -> dict[str, Path]:
    """The command lines with the probe in them, by what they take over."""
    programs = {}
    for name, (module, *_) in BOXES.items():
        call = "__import__('mountsafe.probe').probe.main() or sys.exit(1)"
        programs[name] = stage.variant(f"probing-{name}", {module: {FIRSTS.get(name, FIRST): call}})
        (programs[name].parent / "lib/mountsafe/probe.py").write_bytes(
            (Path(__file__).parent / "probe.py").read_bytes()
        )
    return programs


def as_qcow2(program: Callable[[str], str], image: Path, person: Person, folder: Path) -> Path:
    """Return a copy of an image in a container."""
    made = folder / f"{image.stem}.qcow2"
    subprocess.run([program("qemu-img"), "convert", "-O", "qcow2", image, made], check=True)
    return person.give(made)


@pytest.fixture(scope="module")
def key(library: Path) -> Path:
    """A file that opens the encrypted image."""
    path = library / "encrypted-luks.key"
    path.write_bytes(b"mountsafe")
    path.chmod(0o644)
    return path


@contextmanager
def host() -> Iterator[dict[str, Any]]:
    """Things on the host that must be out of reach, and really are there."""
    marker = f"mountsafe-marker-{os.getpid()}"
    name = f"mountsafe-abstract-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield {"port": tcp.getsockname()[1], "abstract": name, "marker": marker[::-1]}


# Joins a session keyring of its own with a key in it, as a login has, and runs a command there.
LOGIN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(250, 1, None) > 0
assert libc.syscall(248, b"user", b"mountsafe-login", b"secret", 6, -3) > 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def probe(person: Person, program: list[str], facts: dict[str, Any], *arguments: str | Path) -> dict[str, str]:
    """Run what runs the probe, as a login does; return the results by attempt."""
    marker = facts["marker"][::-1]
    sleeping = [PYTHON, "-I", "-c", "import time; time.sleep(300)", marker]
    with person.start(program=sleeping) as sleeper:
        try:
            Path(facts["file"]).write_text(json.dumps(facts | {"pid": sleeper.pid}))
            done = person.run(*arguments, program=[PYTHON, "-I", "-c", LOGIN, *program])
        finally:
            sleeper.kill()
    lines = [line.partition("PROBE ")[2] for line in (done.out + done.err).splitlines() if "PROBE " in line]
    results = dict(json.loads(line) for line in lines)
    assert "the end" in results, done.out + done.err
    return results


@pytest.mark.parametrize("box", BOXES)
def test_what_code_in_a_box_can_do(
    person: Person, folder: Path, image: Image, key: Path, probing: dict[str, Path], box: str,
    program: Callable[[str], str],
) -> None:  # fmt: skip
    _, scratch, address_space, processes = BOXES[box]
    library = probing[box].parent / "lib/mountsafe"
    source = image("encrypted-luks" if box in ENCRYPTED else "ext4")
    if box == "container":
        source = as_qcow2(program, source, person, folder)
    keys: list[str | Path] = ["--key-file", key] if box in ENCRYPTED else []
    places = ["/etc/passwd", "/etc/shadow", "/root", "/home", "/run", "/var/tmp/..", "/boot"]
    with host() as facts:
        facts |= {
            "file": str(library / "probe.json"),
            "reads": [
                *places[:5],
                "/boot",
                *map(str, (source, key, person.home, person.runtime, person.records, folder)),
            ],
            "writes": [
                "/",
                "/usr",
                "/app",
                "/app/mountsafe",
                "/appliance",
                "/etc",
                "/dev",
                "/dev/shm",
                "/var",
                str(folder),
            ],
            "scratch": scratch,
            "address_space": address_space,
            "processes": processes,
        }
        boxed = probe(person, [str(probing[box])], facts, "mount", source, folder / "m", "--verbose", *keys)
        free = probe(person, [PYTHON, "-I", str(library / "probe.py"), facts["file"]], facts)
    possible = {what for what, why in boxed.items() if not why}
    assert possible == {"the end"}
    expected = {*ANYBODY, f"read {source}", f"read {person.home}", f"write {folder}"}
    for what in expected | ({*ROOT, f"read {person.records}"} if person.is_root else set()):
        assert free[what] == "", f"{what} fails outside the box as well: {free[what]}"


# --- the medium itself ----------------------------------------------------------------------------------------------
TRIES = {  # where each process has the medium and is confined: what is called there, right before or after which line
    "appliance/serve.py": (
        'guest.attach(fds[0], model, *part, writable=message.get("writable") is True)',
        "__import__('mountsafe.attempts').attempts.tell(fds[0]); {}",
    ),
    "container/serve.py": (
        "qemu, qmp, said = _open(settings)",
        "__import__('mountsafe.attempts').attempts.tell(settings['medium']); {}",
    ),
    "encrypted/derive.py": (
        "landlock.enclose()",
        "tell = __import__('mountsafe.attempts').attempts.tell; {}; settings.stack.raw and tell(settings.fds[0])",
    ),
    "encrypted/serve.py": (
        "landlock.enclose()",
        "tell = __import__('mountsafe.attempts').attempts.tell; {}; stack.raw and tell(_settings.disk)",
    ),
    "session/server.py": (
        "held_in = landlock.enclose()",
        "tell = __import__('mountsafe.attempts').attempts.tell; {}; settings.medium and tell(settings.medium)",
    ),
}
# Who has the medium, by its kind.
HAVE = {
    "raw": {"guest", "session"},
    "qcow2": {"guest", "container"},
    "encrypted": {"guest", "keys", "plaintext", "session"},
}
UNSEALED = {"medium/source.py": {"found = sealed(fd, source)": "found = None"}}


@pytest.fixture(scope="module")
def changing(stage: Stage) -> dict[bool, list[str]]:
    """The command line whose boxes try to change the medium, by whether the medium comes from a read-only mount."""
    tries = {module: {line: how.format(line)} for module, (line, how) in TRIES.items()}
    programs = {}
    for sealed in (True, False):
        program = stage.variant(f"changing-{sealed}", tries | ({} if sealed else UNSEALED))
        (program.parent / "lib/mountsafe/attempts.py").write_bytes(Path(changes.__file__).read_bytes())
        programs[sealed] = [str(program)]
    return programs


def changed(
    person: Person, source: Path, folder: Path, program: list[str], *options: str | Path
) -> dict[str, dict[str, str]]:
    """Mount; return what each process could do to the medium: by process and attempt, an errno or "done"."""
    done = person.run("mount", source, folder / "m", "--verbose", *options, program=program).ok()
    person.run("unmount", source).ok()
    seen: dict[str, dict[str, str]] = {}
    for process, why, what in re.findall(r"(\w+): CHANGE (\w+) (.+)", done.err):
        tried = seen.setdefault(process, {})
        tried[what] = "done" if tried.get(what) == "done" else why  # there may be several of a kind
    for tried in seen.values():
        assert set(tried) == set(changes.ATTEMPTS)
    return seen


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
@pytest.mark.parametrize("kind", HAVE)
def test_no_box_changes_the_medium(
    person: Person, folder: Path, image: Image, key: Path, changing: dict[bool, list[str]],
    program: Callable[[str], str], kind: str, sealed: bool,
) -> None:  # fmt: skip
    """It is the caller's own, or anybody's: the mount below its descriptor and the layers of the box each hold it."""
    if not sealed and not landlock.version():
        missing("Landlock in this kernel")
    source = folder / "medium"
    source.write_bytes(image("encrypted-luks" if kind == "encrypted" else "romfs").read_bytes())
    if kind == "qcow2":
        source = as_qcow2(program, source, person, folder)
    person.give(source)
    source.chmod(0o666)
    os.setxattr(source, changes.KEPT, b"x")
    before = (source.read_bytes(), source.stat().st_mode, source.stat().st_ctime_ns, os.listxattr(source))
    keys: list[str | Path] = ["--key-file", key] if kind == "encrypted" else []
    seen = changed(person, source, folder, changing[sealed], *keys)
    assert set(seen) == HAVE[kind]
    assert not [(process, what) for process, tried in seen.items() for what, why in tried.items() if why == "done"]
    assert (source.read_bytes(), source.stat().st_mode, source.stat().st_ctime_ns, os.listxattr(source)) == before


def test_no_box_writes_to_a_device_of_the_users_group(
    user: Person, folder: Path, image: Image, changing: dict[bool, list[str]], program: Callable[[str], str]
) -> None:
    """A user cannot leave their groups, and the mount of a node does not matter: Landlock is what holds."""
    if not landlock.version():
        missing("Landlock in this kernel")
    disk = grp.getgrnam("disk").gr_gid
    source = folder / "medium"
    source.write_bytes(image("romfs").read_bytes())
    losetup = [program("losetup"), "--find", "--show", str(source)]
    device = Path(subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip())
    before = device.stat()
    try:
        os.chown(device, 0, disk)
        device.chmod(0o660)
        member = replace(user, groups=(disk,))
        control = member.python("import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))", device)
        assert control.code == 0, control.err
        seen = changed(member, device, folder, changing[True])
        assert set(seen) == {"guest", "session"}
        assert not [what for tried in seen.values() for what, why in tried.items() if why == "done"]
    finally:
        os.chown(device, before.st_uid, before.st_gid)
        device.chmod(stat.S_IMODE(before.st_mode))
        subprocess.run([program("losetup"), "--detach", device], check=True)
    assert source.read_bytes() == image("romfs").read_bytes()


# --- a real mount ---------------------------------------------------------------------------------------------------
def status(pid: int) -> dict[str, str]:
    """What /proc says about a process, seen from outside."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.strip() for key, _, value in lines}


def cmdline(pid: int) -> bytes:
    """A process's whole command line; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def host_files(pid: int) -> dict[tuple[int, int], tuple[Path, int]]:
    """The regular files and block devices of the host that a process has open, by inode: their names and flags.

    A file behind a mount of its own has the name "/".
    """
    disks = {os.stat(place).st_dev for place in ("/", "/usr", "/var", "/var/tmp", "/home", "/run", "/tmp")}
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        seen = link.stat()
        if stat.S_ISBLK(seen.st_mode) or (stat.S_ISREG(seen.st_mode) and seen.st_dev in disks):
            words = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()
            flags = int(words[words.index("flags:") + 1], 8)
            found[seen.st_dev, seen.st_ino] = (link.readlink(), flags)
    return found


def test_the_processes_of_a_mount(person: Person, folder: Path, image: Image) -> None:
    source = image("vfat")
    medium = (source.stat().st_dev, source.stat().st_ino)
    person.run("mount", source, folder / "m").ok()
    try:
        record = person.records_of(source)
        boxes = {record["virtual_machine"], record["mounts"][0]["session"]}
        inner = [pid for box in boxes for pid in descendants(box)]
        qemu = [pid for pid in inner if "qemu-system" in command(pid)]
        assert len(qemu) == 1
        assert len(inner) == 5  # two inner bubblewraps, serve, QEMU, server
        for pid in inner:
            facts = status(pid)
            uids = {int(uid) for uid in facts["Uid"].split()}
            assert 0 not in uids
            assert person.is_root or uids == {person.uid}
            assert facts["Groups"].split() == [] or not person.is_root  # a user cannot leave his groups
            assert facts["NoNewPrivs"] == "1"
            assert all(int(facts[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
            for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        assert {status(pid)["Seccomp"] for pid in inner} == {"2"}
        for pid in inner:
            for identity, (path, flags) in host_files(pid).items():
                assert flags & os.O_ACCMODE == os.O_RDONLY, path
                assert identity == medium or path.parts[-2].startswith("version-") or path.parts[1] == "appliance", path
        served = [pid for pid in inner if "session.server" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert {identity for pid in served for identity in host_files(pid)} == {medium}
        assert medium in host_files(qemu[0])
        if person.is_root:
            assert {status(pid)["Uid"] for pid in descendants(record["virtual_machine"])} == {
                status(record["virtual_machine"])["Uid"]
            }
    finally:
        person.run("unmount", source).ok()


WRITABLE = {f"{kind}, writable" for kind in ("file", "folder", "block device")}
# How a row of SECURITY.md's table reads what `doctor --sandbox` says of a process.
TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "own namespaces": lambda process: " ".join(process["namespaces"]),
    "capabilities, in any set": lambda process: " ".join(process["capabilities"]) or "none",
    "no new privileges": lambda process: "yes" if process["no_new_privileges"] else "no",
    "seccomp filters, at least": lambda process: str(process["seccomp_filters"]),
    "address space": lambda process: f"{int(process['limits']['address space']) >> 30} GiB",
    "processes, threads too": lambda process: process["limits"]["processes"],
    "core file": lambda process: process["limits"]["core file size"],
    "locked memory": lambda process: process["limits"]["locked memory"],
    "devices open, beside /dev/kvm": lambda process: " ".join(
        sorted(kind for kind in process["descriptors"] if kind.startswith("/") and kind != "/dev/kvm")
    ),
    "of the host's files, may write": lambda process: ", ".join(WRITABLE & set(process["descriptors"])) or "none",
}


# Rows that the kernel tells nobody but root of, where a process keeps its memory from its own user.
ROOTS = {"own namespaces", "devices open, beside /dev/kvm", "of the host's files, may write"}


def promised(repository: Path) -> dict[str, dict[str, str]]:
    """SECURITY.md's table of layers: its columns, by row."""
    text = (repository / "SECURITY.md").read_text().partition("## Layers of a live mount")[2].partition("\n- ")[0]
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return {column: {row[0]: row[number] for row in rows} for number, column in enumerate(head) if number}


# The columns of that table that are there for some media only, by kind of medium.
OPTIONAL = {
    "raw": set[str](),
    "qcow2": {"container", "QEMU, container"},
    "encrypted": {"decrypting"},
    "writing": {"writing"},
}


@contextmanager
def writing(person: Person, target: Path) -> Iterator[None]:
    """Change what is mounted there, all the time."""
    command = ["sh", "-c", 'while touch "$1" && echo; do sleep 1; done', "sh"]
    with person.start(target / "file", program=command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n", process.stderr
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("kind", OPTIONAL)
def test_the_kernel_tells_of_each_layer_that_is_promised(
    person: Person, folder: Path, image: Image, key: Path, repository: Path, program: Callable[[str], str], kind: str
) -> None:
    source = image("encrypted-luks" if kind == "encrypted" else "vfat")
    if kind == "qcow2":
        source = as_qcow2(program, source, person, folder)
    if kind == "writing":
        source = person.give(Path(shutil.copy(source, folder / "copy.img")))
    with_options: dict[str, list[str | Path]] = {"encrypted": ["--key-file", key], "writing": ["--write"]}
    person.run("mount", source, folder / "m", *with_options.get(kind, [])).ok()
    try:
        with writing(person, folder / "m") if kind == "writing" else nullcontext():
            [told] = person.run("doctor", "--sandbox", "--json").ok().json()
            shown = person.run("doctor", "--sandbox").ok().out
        pids = {process["pid"] for process in told["processes"]}
        inside = [pid for pid in descendants(told["processes"][0]["pid"]) if b"/app" in cmdline(pid)]
        assert set(inside) <= pids  # none is there that is not shown
    finally:
        person.run("unmount", source).ok()
    [mount] = told["mounts"]
    access = "rw" if kind == "writing" else "ro"
    assert set(mount["flags"]) >= {access, "nosuid", "nodev", "noexec", *(["nosymfollow"] if person.is_root else [])}
    assert mount["landlock"] == told["kernel_landlock"]
    assert told["sealed"] == {"by_mount": True, "by_device": False, "by_landlock": bool(landlock.version())}
    assert "through a read-only mount of that file alone" in shown
    columns = promised(repository)
    assert all(set(rows) == set(TOLD) for rows in columns.values())
    seen: dict[str, list[dict[str, str]]] = {}
    for process in told["processes"]:
        assert str(process["pid"]) in shown or process["program"] == "bwrap"
        role = process["role"]
        if process["program"].startswith("qemu"):
            role = "QEMU" if role == "appliance" else f"QEMU, {role}"
        if process["program"] != "bwrap" and role != "supervisor":
            closed = process["descriptors"] is None  # the kernel tells root alone of it
            assert closed == (role == "decrypting" and not person.is_root)
            assert closed == (process["namespaces"] is None)
            rows = {row: read(process) for row, read in TOLD.items() if not (closed and row in ROOTS)}
            seen.setdefault(role, []).append(rows)
    always = {"appliance", "QEMU", "session"}
    assert set(columns) == always.union(*OPTIONAL.values())
    assert set(seen) == always | OPTIONAL[kind]
    assert len(seen["QEMU"]) == (2 if kind == "writing" else 1)
    for role, processes in seen.items():
        for each in processes:
            rows = dict(columns[role])
            least = "seccomp filters, at least"
            assert int(each.pop(least)) >= int(rows.pop(least))
            assert each == {row: rows[row] for row in each}, role
            assert rows.keys() - each.keys() <= ROOTS


def test_what_code_in_a_session_process_can_open(person: Person, folder: Path, image: Image, stage: Stage) -> None:
    """Landlock: taken over when it serves, it cannot even open what the box shows. Before, it could."""
    if not landlock.version():
        missing("Landlock in this kernel")
    tries = "[os.access(p, os.R_OK) and _tried(p) for p in ('/usr/bin/env', '/proc/self/status', '/dev/null', '/tmp')]"
    tried = """
def _tried(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return "refused"
    return "opened"


def main() -> NoReturn:"""
    after = "held_in = landlock.enclose()"
    changes = {
        "def main() -> NoReturn:": tried,
        after: f'print("BEFORE", {tries}, file=sys.stderr); {after}; print("AFTER", {tries}, file=sys.stderr)',
    }
    name = f"opening-{person.name}"
    program = [str(stage.variant(name, {"session/server.py": changes}))]
    source = image("romfs")
    done = person.run("mount", source, folder / "m", "--verbose", program=program).ok()
    person.run("unmount", source).ok()
    assert f"BEFORE {['opened'] * 4}" in done.err
    assert f"AFTER {['refused'] * 4}" in done.err


def test_two_media_cannot_reach_each_other(root: Person, image: Image) -> None:
    """Root's boxes have a user id each: one that is taken over may not signal or trace another medium's."""
    folder = root.folder()
    for name in ("romfs", "squashfs"):
        root.run("mount", image(name), folder / name).ok()
    try:
        uids = [status(root.records_of(image(name))["virtual_machine"])["Uid"] for name in ("romfs", "squashfs")]
        assert uids[0] != uids[1]
    finally:
        root.run("unmount", "--all").ok()
        subprocess.run(["rm", "-r", folder], check=True)
