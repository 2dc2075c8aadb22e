"""The base system: a Debian on a disk image, with all that mountsafe needs but without mountsafe.

    python3 -m tests.machine.base      # root; prints a line for each step and the folder last

It is built from this host's mirror, whatever this host's release is, and kept in /var/cache/mountsafe-machine until
what it is made of changes. Nothing of this host's configuration gets into it: packages are downloaded outside.
/etc/pip.conf in it names a folder of wheels in it, so `./dev install` works there without a network.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import on

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = Path(os.environ.get("MOUNTSAFE_MACHINE_CACHE", "/var/cache/mountsafe-machine"))
SIZE = "10G"  # sparse
USER = "alice"
PORT = "org.mountsafe.test"
PORTS = Path("/dev/virtio-ports")
AGENT = "/usr/local/lib/agent.py"
WHEELS = "/usr/local/share/wheels"
STEP_DEADLINE = 1800.0

# A seat with a user on it, and who mounts what he plugs in.
PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "polkitd", "libpam-systemd", "dbus-user-session", "login", "passwd"),
    *("udisks2", "kmod", "lz4", "linux-image-amd64"),
)

FILES = {
    "etc/hostname": "machine\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 0\n",
    "etc/pip.conf": f"[global]\nno-index = true\nfind-links = {WHEELS}\n",
    "etc/systemd/system/getty@tty1.service.d/autologin.conf": (
        f"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin {USER} --noclear %I linux\n"
    ),
    "etc/systemd/system/test-agent.service": (
        "[Unit]\n[Service]\n"
        f"ExecStart=/usr/bin/python3 {AGENT} {PORTS}/{PORT}.root\n"
        "Restart=always\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/udev/rules.d/99-test-agent.rules": (
        f'SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{PORT}.{USER}", OWNER="{USER}", TAG+="systemd"\n'
        f'SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{PORT}.root", TAG+="systemd", '
        'ENV{SYSTEMD_WANTS}+="test-agent.service"\n'
    ),
    # What runs from here is in the user's session, as what he starts himself.
    f"home/{USER}/.profile": f"exec /usr/bin/python3 {AGENT} {PORTS}/{PORT}.{USER}\n",
    AGENT[1:]: (HERE / "agent.py").read_text(),
    # A third of the time to boot is unpacking the modules of all the world's hardware.
    "etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=lz4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/dpkg/dpkg.cfg.d/fast": (
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
        "path-exclude=/usr/share/locale/*\npath-include=/usr/share/*/mountsafe*\n"
    ),
}
# Units that would only cost time.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_reap.service", "fstrim.timer")


class BaseFailedError(Exception):
    """The base system cannot be built; the text says which step, and what its command printed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of which release it is, what is in it, and the package that is going to be installed; none: `./dev install`."""

    release: str
    packages: Sequence[str]
    deb: Path | None


def wanted() -> Wanted | None:
    """Return what `./dev machine-test` asks for in the environment; None where that has not been run."""
    release, packages, deb = (os.environ.get(f"MACHINE_{name}", "") for name in ("RELEASE", "PACKAGES", "DEB"))
    if not release:
        return None
    if not deb:
        return Wanted(release, packages.split(), None)
    return Wanted(release, needed(Path(deb)), Path(deb))


def needed(deb: Path) -> list[str]:
    """Return what a package depends on and recommends, of alternatives the first."""
    told = run("dpkg-deb", "--show", "--showformat=${Depends}, ${Recommends}", deb)
    return sorted({re.split(r"[ :(|]", each.strip())[0] for each in told.split(",") if each.strip()})


@contextmanager
def step(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Tell how long something took."""
    started = time.monotonic()
    yield
    say(f"  {what:<58}{time.monotonic() - started:4.0f} s")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_DEADLINE,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **(env or {})},
        check=False,
    )
    if done.returncode:
        raise BaseFailedError(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def inside(root: Path, *command: str) -> None:
    """Run a command in the new system. Its mounts are those of a namespace that ends with it."""
    mounts = "".join(f'mount --rbind {path} "$0{path}" && ' for path in ("/dev", "/sys"))
    script = f'{mounts} mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private")
    run(*namespaces, "sh", "-c", script, root, *command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


LOCK = REPOSITORY / "requirements.lock"  # what pip installs for `./dev install`


def key(want: Wanted) -> str:
    """Name what the base system is made of."""
    made_of = [Path(__file__).read_text(), FILES[AGENT[1:]], sorted(want.packages), on.sources(want.release)]
    if want.deb is None:
        made_of.append(LOCK.read_text())
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def ensure(want: Wanted, say: Callable[[str], None]) -> Path:
    """Return the folder with disk.img, vmlinuz and initrd.img, built if need be. Raises BaseFailedError, on.Failed."""
    way = "package" if want.deb else "checkout"
    kept = CACHE / f"{want.release}-{way}"  # one of each kind
    kept.mkdir(parents=True, exist_ok=True)
    made = kept / key(want)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            say(f"  the base system is in {made}")
            return made
        for old in kept.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(prefix="building-", dir=kept) as folder:
            _build(Path(folder), want, say)
            os.rename(Path(folder) / "made", made)
    return made


def _build(folder: Path, want: Wanted, say: Callable[[str], None]) -> None:
    root, made = folder / "root", folder / "made"
    made.mkdir()
    with step(f"debootstrap {want.release}", say):
        on.debootstrap(want.release, root)
    _write_files(root)
    packages = sorted({*PACKAGES, *want.packages})
    with step("packages, downloaded", say):
        _download(root, want.release, packages)
    with step("packages, installed", say):
        # The user's home is there already, so it is given to him.
        inside(root, "useradd", "--shell", "/bin/bash", USER)
        inside(root, "chown", "-R", f"{USER}:{USER}", f"/home/{USER}")
        options = ("--yes", "--quiet", "--no-install-recommends", "--no-download", "-o", "Dpkg::Use-Pty=0")
        inside(root, "apt-get", "install", *options, "-o", "Dpkg::Options::=--force-confold", *packages)
        inside(root, "systemctl", "enable", "test-agent.service")
        inside(root, "systemctl", "mask", *MASKED)
    if want.deb is None:
        with step("wheels, downloaded", say):
            _download_wheels(root)
    with step("disk image", say):
        _make_disk(root, made)


def _write_files(root: Path) -> None:
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)  # the journal outlives a reboot


def _download(root: Path, release: str, packages: Sequence[str]) -> None:
    """With this host's apt, for the way to its mirror, and the new system's sources and state."""
    (root / "etc/apt/sources.list").write_text("\n".join(on.sources(release)) + "\n")
    places = {
        "Dir::Etc::sourcelist": "etc/apt/sources.list",
        "Dir::Etc::sourceparts": "etc/apt/sources.list.d",
        "Dir::Etc::preferencesparts": "etc/apt/preferences.d",
        "Dir::State": "var/lib/apt",
        "Dir::State::status": "var/lib/dpkg/status",
        "Dir::Cache": "var/cache/apt",
    }
    options = [word for name, path in places.items() for word in ("-o", f"{name}={root / path}")]
    apt = ("apt-get", "--yes", "--quiet", *options, "-o", "APT::Sandbox::User=root")
    run(*apt, "update")
    run(*apt, "install", "--no-install-recommends", "--download-only", *packages)


def _download_wheels(root: Path) -> None:
    version = run("chroot", root, "python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')").strip()
    pip = ("-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--only-binary=:all:")
    where = (f"--dest={root}{WHEELS}", f"--python-version={version}")
    run(sys.executable, *pip, *where, "--require-hashes", "-r", LOCK)


def _make_disk(root: Path, made: Path) -> None:
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(root / os.readlink(root / name), made / name)
    for debris in root.glob("var/cache/apt/archives/*.deb"):
        debris.unlink()
    for folder in (root / "etc/apt", root / "var/lib/apt/lists"):
        shutil.rmtree(folder)  # which mirror this host uses
        folder.mkdir()
    (root / "etc/machine-id").write_text("")
    run("mkfs.ext4", "-q", "-L", "machine", "-d", root, made / "disk.img", SIZE)


if __name__ == "__main__":

    def _say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        if (asked := wanted()) is None:
            sys.exit("MACHINE_RELEASE is not set: ./dev machine-test")
        ensure(asked, _say)
    except (BaseFailedError, on.Failed) as error:
        sys.exit(f"{error}")
