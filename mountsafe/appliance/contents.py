"""What goes into the appliance's disk, as the folder that supermin reads: packages, our files, what to leave out."""

import io
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mountsafe.appliance.inputs import CODE, Inputs
from mountsafe.errors import ExitCode, UserError

PYTHON = "/usr/bin/python3"  # the Python of the package python3-minimal, in the guest too
INSIDE = "usr/lib/mountsafe"

# Folders that the packages do not bring: where /init and guestfsd mount.
_FOLDERS = ("dev", "proc", "run", "sys", "sysroot", "tmp", "var/tmp")

# All in one call of mount, /proc first: mount reads it to see what is mounted.
_FSTAB = """\
proc /proc proc nosuid,nodev,noexec
sysfs /sys sysfs nosuid,nodev,noexec
devtmpfs /dev devtmpfs nosuid,noexec
devpts /dev/pts devpts nosuid,noexec,x-mount.mkdir
tmpfs /dev/shm tmpfs nosuid,nodev,mode=1777,x-mount.mkdir
tmpfs /run tmpfs nosuid,nodev,mode=755
tmpfs /tmp tmpfs nosuid,nodev,mode=1777
"""

# Of the packages' files, what nothing in the appliance reads. "*" matches "/" as well.
_EXCLUDED = (
    "/usr/share/*",
    "/usr/lib/file/*",
    "/usr/lib/systemd/*",
    "/lib/systemd/*",
    "/usr/lib/udev/*",
    "/lib/udev/*",
    "/usr/bin/udevadm",
    "/bin/udevadm",
    "/usr/lib/gcc/*",
    "/usr/lib/dpkg/*",
    "/usr/lib/init/*",
    "/usr/lib/lsb/*",
    "/usr/lib/pkgconfig/*",
    "/usr/lib/*/perl*",
    "/usr/lib/python3/dist-packages/*",
    "/var/cache/*",
    "/var/lib/dpkg/*",
)

_MODULE, _CTYPES = re.compile(r"\.py$"), re.compile(r"/ctypes/(__init__|_endian)\.py$")

# Compiles each file named by the arguments (source, target, name in tracebacks) for the interpreter that runs it.
_COMPILE = """\
import py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for source, target, name in zip(*[iter(sys.argv[1:])] * 3):
    py_compile.compile(source, target, name, doraise=True, invalidation_mode=mode)
print(sys.implementation.cache_tag)
"""


def prepare(inputs: Inputs, folder: Path, packages: Iterable[str]) -> None:
    """Fill `folder` with supermin's input for an appliance of `packages`."""
    folder.mkdir()
    source = inputs.libguestfs()
    for part in ("base.tar.gz", "daemon.tar.gz"):
        shutil.copyfile(source / part, folder / part)
    excluded = "".join(f"-{pattern}\n" for pattern in _EXCLUDED)
    (folder / "excludefiles").write_text((source / "excludefiles").read_text() + excluded)
    (folder / "packages").write_text("".join(f"{name}\n" for name in packages))
    if compiled := _compiled_library(inputs):
        (folder / "hostfiles").write_text("".join(f"{path}\n" for path in ["/etc/ld.so.cache", *compiled]))
    pack(_our_files(inputs, folder.parent), folder / "zz-mountsafe.tar.gz")


def _compiled_library(inputs: Inputs) -> list[str]:
    """Return the host's compiled files of Python's minimal library, and of ctypes.

    dpkg does not own them (the package compiles at its installation), so supermin would not take them, and the guest
    would compile every module that the agent imports at each boot: seconds, in software emulation.
    """
    files = []
    for package in inputs.database.closure(["python3"]):
        if package.name.startswith(("python3", "libpython3")):
            wanted = _MODULE if "minimal" in package.name else _CTYPES
            files += [Path(path) for path in inputs.database.files(package.name) if wanted.search(path)]
    compiled = []
    for path in files:
        for cache in sorted((path.parent / "__pycache__").glob(f"{path.stem}.cpython-3*[0-9].pyc")):
            compiled.append(str(cache))
    return compiled


def _our_files(inputs: Inputs, scratch: Path) -> dict[str, tuple[int, bytes]]:
    """Return path in the appliance -> (mode, content) of our own files."""
    ours = inputs.ours()
    sources = []
    for name in CODE:
        source, target = scratch / "code" / name, scratch / "code" / f"{name}c"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(ours[name])
        sources += [str(source), str(target), f"/{INSIDE}/mountsafe/{name}"]
    done = subprocess.run([PYTHON, "-I", "-c", _COMPILE, *sources], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{PYTHON} cannot compile the agent: {done.stderr.strip()[-300:]}", code=ExitCode.DEPENDENCY)
    files = {"init": (0o755, ours["appliance/init"]), f"{INSIDE}/fstab": (0o644, _FSTAB.encode())}
    for name in CODE:
        place = Path(INSIDE, "mountsafe", name)
        files[str(place)] = (0o644, ours[name])
        compiled = (scratch / "code" / f"{name}c").read_bytes()
        files[str(place.parent / "__pycache__" / f"{place.stem}.{done.stdout.strip()}.pyc")] = (0o644, compiled)
    return files


def pack(files: dict[str, tuple[int, bytes]], archive: Path) -> None:
    """Write a tar archive of `files` and the folders that they need: root's, and the same bytes for the same files."""
    import tarfile  # here: each command looks whether its appliance is current, and few build one

    folders = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."} | {*_FOLDERS}
    with tarfile.open(archive, "w:gz", format=tarfile.USTAR_FORMAT, compresslevel=1) as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder.endswith("tmp") else 0o755
            tar.addfile(entry)
        for path, (mode, content) in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = mode, len(content)
            tar.addfile(entry, io.BytesIO(content))
