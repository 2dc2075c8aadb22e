"""The part of the host's kernel modules that the appliance gets, and the file systems that it can mount with them.

Every file system that lives on a disk stays. What goes is hardware that the VM does not have, and the network.
Modules are stored unpacked and without their signature: the kernel in the VM then neither unpacks nor verifies them
at each boot (it does not insist on signatures, and whoever could write into the appliance could change the kernel).
"""

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from mountsafe import distribution
from mountsafe.errors import ExitCode, UserError

# Patterns of module paths below kernel/, without the suffix. "*" matches "/" as well. What these depend on comes too.
WANTED = (
    "fs/*",
    "lib/*",
    "crypto/*",
    "arch/*/crypto/*",
    "arch/*/lib/*",
    "drivers/block/loop",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "drivers/md/*",
    "drivers/scsi/sd_mod",
    "drivers/scsi/virtio_scsi",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci",
)
# What WANTED would take and a disk never needs. Modules that others depend on come back.
UNWANTED = (
    *(f"fs/{name}/*" for name in ("9p", "afs", "autofs", "cachefiles", "ceph", "coda", "ecryptfs", "efivarfs")),
    *(f"fs/{name}/*" for name in ("fscache", "jffs2", "lockd", "netfs", "nfs", "nfs_common", "nfsd", "orangefs")),
    *(f"fs/{name}/*" for name in ("overlayfs", "pstore", "smb", "ubifs", "vboxsf")),
    "fs/binfmt_misc",
    "fs/fuse/virtiofs",
    "lib/*test*",
    "crypto/tcrypt",
    "drivers/md/dm-vdo/*",
)
# Types that a kernel knows and no disk holds, or none that can be plugged into the VM (zoned, flash).
_NOT_ON_A_DISK = frozenset({
    "9p", "afs", "aufs", "autofs", "binfmt_misc", "bpf", "ceph", "cgroup", "cgroup2", "cifs", "coda", "configfs",
    "debugfs", "devtmpfs", "ecryptfs", "efivarfs", "functionfs", "fuse", "fuseblk", "fusectl", "gadgetfs", "gfs2meta",
    "hugetlbfs", "ibmasmfs", "ipathfs", "jffs2", "mqueue", "nfs", "nfs4", "nfsd", "ocfs2_dlmfs", "orangefs",
    "overlay", "proc", "pstore", "pvfs2", "ramfs", "rpc_pipefs", "secretmem", "selinuxfs", "shiftfs", "smackfs",
    "smb3", "sysfs", "tmpfs", "tracefs", "ubifs", "vboxsf", "virtiofs", "xenfs", "zonefs",
})  # fmt: skip

_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_SIGNED = b"~Module signature appended~\n"  # kernel/module_signature.c: signature, 12 bytes that end in its size, this
_INFORMATION = struct.Struct(">8xI")


def select(dependencies: dict[str, list[str]]) -> list[str]:
    """Return the modules that the appliance gets, of `dependencies` (modules.dep: module to what it needs)."""
    todo = [module for module in dependencies if _is_wanted(_name(module))]
    chosen: set[str] = set()
    while todo:
        module = todo.pop()
        if module not in chosen:
            chosen.add(module)
            todo += dependencies.get(module, [])
    return sorted(chosen)


def _name(module: str) -> str:
    stem = module.removeprefix("kernel/")
    return next((stem.removesuffix(suffix) for suffix in reversed(_SUFFIXES) if stem.endswith(suffix)), stem)


def _is_wanted(name: str) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return matches(WANTED) and not matches(UNWANTED)


def dependencies(modules: Path) -> dict[str, list[str]]:
    """Read modules.dep of a module folder."""
    found = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        found[module] = needs.split()
    return found


def prune(source: Path, target: Path) -> None:
    """Copy the selection from `source` (/lib/modules/VERSION) to `target`, a folder lib/modules/VERSION, for depmod.

    Raises `UserError` if depmod is missing or fails, OSError on a full disk.
    """
    target.mkdir(parents=True)
    chosen = select(dependencies(source))
    for module in chosen:
        content, name = unpacked((source / module).read_bytes(), module)
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(unsigned(content))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    _depmod(target)


def _depmod(target: Path) -> None:
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod is None:
        raise UserError("depmod is missing", distribution.install("kmod"), ExitCode.DEPENDENCY)
    base = target.parents[2]
    if not (base / "usr").exists():  # a kmod for a merged /usr looks there
        (base / "usr").symlink_to(".")
    done = subprocess.run([depmod, "-b", str(base), target.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"depmod failed: {done.stderr.strip()[-200:]}", code=ExitCode.APPLIANCE)


def unpacked(content: bytes, name: str) -> tuple[bytes, str]:
    """Return a module's bytes without compression, and its name without the suffix of it."""
    if name.endswith(".xz"):
        return lzma.decompress(content), name.removesuffix(".xz")
    if name.endswith(".gz"):
        return gzip.decompress(content), name.removesuffix(".gz")
    if name.endswith(".zst") and shutil.which("zstd") is not None:
        done = subprocess.run(["zstd", "-dc"], input=content, capture_output=True, check=True)
        return done.stdout, name.removesuffix(".zst")
    return content, name


def unsigned(content: bytes) -> bytes:
    """Return a module without the signature appended to it, if it has one."""
    if not content.endswith(_SIGNED):
        return content
    end = len(content) - len(_SIGNED) - _INFORMATION.size
    if end < 0:
        return content
    (size,) = _INFORMATION.unpack_from(content, end)
    return content[: end - size] if size <= end else content


def filesystems(modules: Path) -> tuple[str, ...]:
    """Return the types that a kernel with this module folder can mount from a disk, sorted."""
    types = {alias.removeprefix("fs-") for alias in _aliases(modules) if alias.startswith("fs-")}
    return tuple(sorted(types - _NOT_ON_A_DISK))


def _aliases(modules: Path) -> Iterator[str]:
    for line in (modules / "modules.alias").read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "alias":
            yield words[1]
    builtin = modules / "modules.builtin.modinfo"
    for record in builtin.read_bytes().split(b"\0") if builtin.exists() else []:
        key, _, value = record.decode("utf-8", "replace").partition("=")
        if key.endswith(".alias"):
            yield value
