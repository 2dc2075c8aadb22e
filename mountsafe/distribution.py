"""What differs between distributions: whose database says what is installed, names of packages, how one installs them.

Everywhere else packages have the names that Debian gives them.
"""

from pathlib import Path

ROOT = Path("/")
DPKG = Path("var/lib/dpkg/status")
# Where rpm keeps its packages: Fedora's place, then the one that everybody had.
RPM = (Path("usr/lib/sysimage/rpm/rpmdb.sqlite"), Path("var/lib/rpm/rpmdb.sqlite"))

# Fedora's names, where they are others. Written from memory: to be looked up on a Fedora, where none of this was tried.
FEDORA = {
    "base-files": "filesystem",
    "cryptsetup-bin": "cryptsetup",
    "dmsetup": "device-mapper",
    "hfsprogs": "hfsplus-tools",
    "libc-bin": "glibc-common",
    "libgcrypt20": "libgcrypt",
    "linux-image-amd64": "kernel",
    "mount": "util-linux-core",
    "nbdkit-plugin-python": "nbdkit-python-plugin",
    "passwd": "shadow-utils",
    "polkitd": "polkit",
    "procps": "procps-ng",
    "python3-argon2": "python3-argon2-cffi",
    "python3-guestfs": "python3-libguestfs",
    "python3-minimal": "python3",
    "python3-seccomp": "python3-libseccomp",
    "qemu-system-x86": "qemu-system-x86-core",
    "reiserfsprogs": "reiserfs-utils",
    "udev": "systemd-udev",
}


def rpm_database(root: Path = ROOT) -> Path | None:
    """Return where rpm keeps what is installed; None where dpkg does that, or nobody."""
    if (root / DPKG).exists():
        return None
    return next((root / place for place in RPM if (root / place).exists()), None)


def named(package: str, root: Path = ROOT) -> str:
    """Return what a package of Debian's name is called here."""
    return FEDORA.get(package, package) if rpm_database(root) else package


def install(*packages: str, root: Path = ROOT) -> str:
    """Return the command by which a person installs packages of Debian's names."""
    program = "dnf" if rpm_database(root) else "apt"
    return f"sudo {program} install {' '.join(named(package, root) for package in packages)}"
