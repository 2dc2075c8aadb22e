"""The host's kernel for the appliance: which one, and its bare ELF image.

A distribution's kernel is a small program that unpacks the real one. Under software emulation that takes 3 of the
boot's 10 seconds, every time; done here, once, it takes one. QEMU starts the bare image by the PVH entry point that
its notes name (Documentation/arch/x86/boot.rst, include/xen/interface/elfnote.h). The unpacker would also have placed
the kernel at a random address (KASLR): the appliance does without, it is taken for lost once it mounts a medium.
"""

import lzma
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from mountsafe import distribution
from mountsafe.errors import ExitCode, UserError

_KERNELS = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")

_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248  # offsets in the x86 boot header
_XEN_PHYS32_ENTRY = 18
_PT_NOTE = 4
_MAX_IMAGE = 256 << 20  # of the kernels that distributions ship, the largest has 70 MiB


@dataclass(frozen=True, slots=True)
class Kernel:
    """One installed kernel: its image and the folder of its modules."""

    image: Path
    version: str
    modules: Path

    def identity(self) -> str:
        """Return what changes whenever the kernel or its modules are installed anew."""
        parts = [self.version]
        for path in (self.image, self.modules / "modules.dep"):
            status = path.stat()
            parts.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        return "\n".join(parts)


def _age(kernel: Kernel) -> tuple[bool, list[tuple[int, str]]]:
    """Sort key: a kernel for clouds lacks file systems, so it comes before any other; then by version."""
    numbers = [(int(number or -1), word) for number, word in re.findall(r"(\d+)|([a-z]+)", kernel.version)]
    return "cloud" not in kernel.version, numbers


def installed(root: Path = Path("/")) -> list[Kernel]:
    """Return the kernels that have modules, the best one first."""
    found: dict[str, Kernel] = {}
    for pattern in _KERNELS:
        for image in root.glob(pattern):
            version = image.name.removeprefix("vmlinuz-") if "-" in image.name else image.parent.name
            modules = root / "lib/modules" / version
            if (modules / "modules.dep").is_file():
                found.setdefault(version, Kernel(image, version, modules))
    return sorted(found.values(), key=_age, reverse=True)


def best(root: Path = Path("/")) -> Kernel:
    """Return the kernel to build with, readable or not: every user must come to the same one.

    Raises `UserError` if there is none.
    """
    kernels = installed(root)
    if not kernels:
        raise UserError(
            "no kernel with its modules in /boot", distribution.install("linux-image-amd64"), ExitCode.DEPENDENCY
        )
    return kernels[0]


def read(kernel: Kernel) -> bytes:
    """Return the image's bytes. Raises `UserError` if this user may not read it (Ubuntu's are root's alone)."""
    try:
        return kernel.image.read_bytes()
    except PermissionError:
        hint = (
            f"sudo chmod +r {kernel.image} (to keep it so: sudo dpkg-statoverride --add root root 0644 {kernel.image})"
        )
        raise UserError(f"this user may not read the kernel {kernel.image}", hint, ExitCode.DEPENDENCY) from None


def bare(image: bytes) -> bytes | None:
    """Return the ELF image inside an x86 bzImage if QEMU can start it, else None: then the bzImage must do."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    unpacked = _unpack(image[start : start + length])
    return unpacked if unpacked is not None and _has_pvh_entry(unpacked) else None


def _unpack(payload: bytes) -> bytes | None:
    """Decompress what the kernel's build appended: the compressed image, then (mostly) its length in 4 bytes."""
    try:
        if payload.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
            return lzma.LZMADecompressor().decompress(payload, _MAX_IMAGE)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(payload, _MAX_IMAGE)
    except (lzma.LZMAError, zlib.error):
        return None
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _unpack_with("zstd", payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _unpack_with("lz4", payload[:-4])
    return None


def _unpack_with(program: str, payload: bytes) -> bytes | None:
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, "-dc"], input=payload, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _has_pvh_entry(elf: bytes) -> bool:
    """Say whether a 64-bit ELF image has the note XEN_ELFNOTE_PHYS32_ENTRY."""
    if elf[:6] != b"\x7fELF\x02\x01" or len(elf) < 64:
        return False
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for number in range(count):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", elf, headers + number * size)
        if kind == _PT_NOTE and _note_names(elf[start : start + length], b"Xen\0", _XEN_PHYS32_ENTRY):
            return True
    return False


def _note_names(notes: bytes, owner: bytes, kind: int) -> bool:
    at = 0
    while at + 12 <= len(notes):
        owner_size, size, note_kind = struct.unpack_from("<III", notes, at)
        if note_kind == kind and notes[at + 12 : at + 12 + owner_size] == owner:
            return True
        at += 12 + (owner_size + 3 & ~3) + (size + 3 & ~3)
    return False
