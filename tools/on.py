"""Runs a verb of ./dev on another release of Debian, in a root of that release, which is made once and kept.

The kernel, its modules and devices, and the network are this machine's; programs, libraries and the appliance's kernel
are the root's. What makes downloads work here (apt's mirror and proxy, pip's settings, certificates) is carried over.
Only the standard library: it runs before there is an environment.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PLACE = Path(os.environ.get("MOUNTSAFE_DEV_ROOTS", "/var/cache/mountsafe-dev"))
INSIDE = "srv/mountsafe"  # the checkout: what an ordinary user can reach, as some tests ask for one
ROLLING = ("sid", "unstable")  # have neither updates nor security
DAY = 86400  # seconds after which the root's packages are brought up to date
GRACE = 20.0  # seconds that a verb has to end by itself
COMPLETE = "etc/mountsafe-root"  # its time is when the packages were last brought up to date
# In namespaces of its own, whose processes and mounts end with this process, whatever ends it.
ENDED_WITH_US = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--propagation",
    "private",
]
APT = ["apt-get", "--yes", "--quiet", "-o", "Dpkg::Use-Pty=0"]
ARCHIVE, SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
# What apt is told about reaching mirrors; the rest of its settings are about this machine's packages.
REACHING = re.compile(r"Acquire::(http|https|Retries|ForceIPv|Check-)", re.IGNORECASE)
PASSED = re.compile(
    r"([a-z]+_proxy|PIP_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|CI|TERM|DEMO_IMAGE)", re.IGNORECASE
)
# Images that other projects made, which are in no checkout: see tests/vm/corpus.py.
CORPUS = Path(os.environ.get("MOUNTSAFE_CORPUS") or CHECKOUT.parent / "shared/corpus").absolute()
PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip", "/root/.config/pip", "/root/.pip")
CERTIFICATES = "usr/local/share/ca-certificates"


class Failed(Exception):
    """A message for the person who called."""


def sh(*command: str | Path) -> str:
    """Run a command and return what it said; Failed shows that."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise Failed(f"{words}\nfailed with {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def step(what: str) -> None:
    """Say what is done, as it may take minutes."""
    print(f"  {what}", flush=True)


def mirrors() -> tuple[str, str]:
    """Return the archive and the security archive that this machine uses, or Debian's own."""
    format_ = "$(REPO_URI) $(LABEL)"
    done = subprocess.run(["apt-get", "indextargets", "--format", format_], capture_output=True, text=True, check=False)
    used = [line.partition(" ") for line in done.stdout.splitlines()]
    archive = next((uri for uri, _, label in used if label == "Debian"), ARCHIVE)
    security = next((uri for uri, _, label in used if label == "Debian-Security"), SECURITY)
    return archive, security


def sources(release: str) -> list[str]:
    """Return the lines of sources.list for a release, from where this machine has its Debian."""
    archive, security = mirrors()
    lines = [f"deb {archive} {release} main"]
    if release not in ROLLING:
        lines += [f"deb {archive} {release}-updates main", f"deb {security} {release}-security main"]
    return lines


def debootstrap(release: str, root: Path) -> None:
    """Make the root beside its place, and move it there when it is whole."""
    script = Path("/usr/share/debootstrap/scripts") / release
    # A release that is younger than this debootstrap is made as the newest is.
    how = [] if script.exists() else [str(script.with_name("sid"))]
    part = root.with_name(f"{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    # It mounts /proc and /sys in there: no mount may be left for the next time, which removes that folder.
    sh(
        *ENDED_WITH_US,
        "--mount",
        "debootstrap",
        "--variant=minbase",
        "--include=ca-certificates",
        release,
        part,
        mirrors()[0],
        *how,
    )
    part.rename(root)


def write(path: Path, text: str) -> None:
    """Write a file of the root, in the place of a link that may lead out of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def carry_over(release: str, root: Path) -> None:
    """Give the root what makes downloads work on this machine."""
    write(root / "etc/apt/sources.list", "\n".join(sources(release)) + "\n")
    settings = [line for line in sh("apt-config", "dump").splitlines() if REACHING.match(line)]
    write(root / "etc/apt/apt.conf.d/90mountsafe", "\n".join(settings) + "\n")
    write(root / "etc/resolv.conf", Path("/etc/resolv.conf").read_text())
    write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {release}\n::1 localhost\n")
    write(root / "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")  # no package starts a service in here
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for name in PIP_FILES:
        path, copy = Path(name), root / name[1:]
        if path.is_dir():
            shutil.copytree(path, copy, dirs_exist_ok=True)
        elif path.exists():
            write(copy, path.read_text())
    if (Path("/") / CERTIFICATES).is_dir():
        shutil.copytree(Path("/") / CERTIFICATES, root / CERTIFICATES, dirs_exist_ok=True)


def folders_of_pip() -> Iterator[str]:
    """Yield the folders of this machine that pip's settings name: packages that are found there."""
    files = [path for name in PIP_FILES for path in (Path(name), *Path(name).glob("*")) if path.is_file()]
    words = [word for path in files for word in path.read_text().replace("=", " ").split()]
    words += [word for name, value in os.environ.items() if name.startswith("PIP_") for word in value.split()]
    for word in words:
        path = Path(word.removeprefix("file://"))
        if path.name == "simple":  # an index, whose links lead to files beside it
            path = path.parent
        if path.is_absolute() and path.is_dir():
            yield str(path)


def copy_checkout(root: Path) -> None:
    """Copy what git tracks and what it does not ignore; the environment that is there stays."""
    there = root / INSIDE
    there.mkdir(parents=True, exist_ok=True)
    for old in there.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    for name in sh(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        source, copy = CHECKOUT / name, there / name
        if name and os.path.lexists(source):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def bring_back(release: str, root: Path) -> None:
    """Copy what `deb` has made to dist/RELEASE, in the place of what an earlier one has."""
    there = CHECKOUT / "dist" / release
    if packages := list((root / INSIDE / "dist").glob("*.deb")):
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir(parents=True)
    for made in packages:
        shutil.copy2(made, there)
        step(f"{there.relative_to(CHECKOUT)}/{made.name}")


def folders() -> list[str]:
    """Return the folders of this machine that are seen in the root, read-only."""
    return sorted({*folders_of_pip(), *([str(CORPUS)] if CORPUS.is_dir() else [])})


def environment() -> dict[str, str]:
    """Return the environment of what runs in the root."""
    passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = {"HOME": "/root", "PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return {**passed, **own, "MOUNTSAFE_CORPUS": str(CORPUS)}


class Inside:
    """Commands in the root, each in namespaces of its own that end with it."""

    def __init__(self, release: str, root: Path) -> None:
        self._enter = [*ENDED_WITH_US, "--mount", "--uts", "--ipc", str(HERE / "enter"), str(root), release]

    def run(self, *command: str) -> int:
        """Run a command and return its exit code. A signal gives it time to clear up."""
        process = subprocess.Popen([*self._enter, *folders(), "--", *command], env=environment())

        def end(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGINT:  # which a terminal sends to all of them
                signal_all(process.pid, signal.SIGTERM)
            signal.alarm(int(GRACE))

        def kill(number: int, frame: FrameType | None) -> None:
            process.kill()

        handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGALRM: kill}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            code = process.wait()
        finally:
            process.kill()
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)
        return code if code >= 0 else 128 - code


def signal_all(pid: int, number: int) -> None:
    """Signal what the first process of the namespaces has started: that one hears of no signal but SIGKILL."""
    for first in children(pid):
        for child in children(first):
            os.kill(child, number)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def prepare(release: str, root: Path, inside: Inside) -> None:
    """Make the root, or bring it up to date once a day."""
    complete = root / COMPLETE
    if not root.exists():
        step(f"debootstrap {release}, into {root}: some minutes, once")
        debootstrap(release, root)
    carry_over(release, root)
    if not complete.exists() or time.time() - complete.stat().st_mtime > DAY:
        step(f"{release} is brought up to date")
        upgrade = " ".join([*APT, "dist-upgrade"])
        code = inside.run("sh", "-c", f"update-ca-certificates >&2 && {' '.join(APT)} update >&2 && {upgrade} >&2")
        if code:
            raise Failed(f"apt-get failed in {root} with {code}")
        complete.write_text(f"{release}\n")


def main() -> int:
    """Run the verb and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="./dev on",
        description="Run a verb of ./dev on a release of Debian (bookworm, trixie, forky, sid), in a root of that "
        f"release. It is kept in {PLACE}, to be removed at any time; MOUNTSAFE_DEV_ROOTS is another place.",
    )
    parser.add_argument("release", metavar="RELEASE")
    parser.add_argument("verb", metavar="VERB", nargs=argparse.REMAINDER, help="and its arguments")
    wanted = parser.parse_args()
    if not re.fullmatch(r"[a-z]+", wanted.release):
        parser.error(f"{wanted.release} is no name of a release")
    if not wanted.verb:
        parser.error("which verb?")
    PLACE.mkdir(parents=True, exist_ok=True)
    root = PLACE / wanted.release
    with (PLACE / f"{wanted.release}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step(f"another ./dev on {wanted.release} is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        inside = Inside(wanted.release, root)
        prepare(wanted.release, root, inside)
        copy_checkout(root)
        code = inside.run(f"/{INSIDE}/dev", *wanted.verb)
        bring_back(wanted.release, root)
        return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"dev: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
