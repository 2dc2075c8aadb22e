"""Whether KVM works here: proven by a VM that booted with it, remembered until kernel, QEMU or processor change.

A /dev/kvm that opens proves nothing: on nested hosts guests abort or hang in it. Nor does one VM that did not start
with it: that may have been killed, or had no memory. So KVM is given up only if the same start works without it (of a
tiny guest first: `trial`), and only if QEMU had something against it, or the guest hung where none has started before,
or it is the second in succession.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mountsafe.limits import KNOWN_SLOW_DEADLINE, KVM_PROBE_DEADLINE, KVM_SLOW_DEADLINE, LAUNCH_DEADLINE

KVM = Path("/dev/kvm")
QEMU = Path("/usr/bin/qemu-system-x86_64")
DOUBT = "doubt"  # remembered where a VM did not start, and nobody knows why
VERDICTS = ("kvm", "tcg", DOUBT)


def circumstances() -> list[object]:
    """Return what a verdict about KVM, and a VM that was saved with it, hold for: kernel, processor, modules, QEMU."""
    qemu = QEMU.stat() if QEMU.exists() else None
    return [os.uname().release, *_processor(), *_modules(), *((qemu.st_size, qemu.st_mtime_ns) if qemu else ())]


class Acceleration:
    """The verdict about KVM for this host and user. `memory` is the file that it is remembered in."""

    def __init__(self, memory: Path, device: Path = KVM) -> None:
        self._memory = memory
        self._device = device

    def usable(self) -> str:
        """Return "" if the device can be opened by the process that would use it, or why not."""
        if not self._device.exists():
            return f"{self._device} does not exist"
        status = self._device.stat()
        if os.geteuid() == 0:
            # A child of root is nobody, with the device's group at most.
            open_to_child = status.st_mode & 0o006 == 0o006 or (status.st_gid and status.st_mode & 0o060 == 0o060)
            return "" if open_to_child else f"{self._device} is open to root alone (mode {status.st_mode & 0o777:o})"
        return "" if os.access(self._device, os.R_OK | os.W_OK) else f"you may not use {self._device}"

    def remembered(self) -> str | None:
        """Return "kvm" or "tcg" if a boot has decided it under today's circumstances."""
        verdict, then = self._recall()
        return verdict if verdict != DOUBT and then == circumstances() else None

    def patience(self) -> tuple[float, float]:
        """Return how many seconds a VM may take to show that KVM works, and how many more if it has said something.

        Where it worked before, slowness is the machine's.
        """
        if self._recall()[0] == "kvm":
            return LAUNCH_DEADLINE, KNOWN_SLOW_DEADLINE
        return KVM_PROBE_DEADLINE, KVM_SLOW_DEADLINE

    def _recall(self) -> tuple[str | None, object]:
        memory = self._read()
        verdict = memory.get("verdict")
        return (verdict, memory.get("circumstances")) if verdict in VERDICTS else (None, None)

    def _read(self) -> dict[str, Any]:
        try:
            memory = json.loads(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return memory if isinstance(memory, dict) else {}

    def remember(self, verdict: str) -> None:
        """Store what a boot has shown. A folder that cannot be written costs the next start a trial."""
        self._write(verdict=verdict, circumstances=circumstances())

    def _write(self, **changed: object) -> None:
        with suppress(OSError):
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._memory.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(self._read() | changed), encoding="utf-8")
            fresh.replace(self._memory)

    def distrust(self, saved: Path) -> None:
        """Store that a VM hung which started from this saved state: the next ones boot, until another is saved."""
        with suppress(OSError):
            self._write(hung=_identity(saved))

    def trusts(self, saved: Path) -> bool:
        """Whether a VM may be started from this saved state."""
        try:
            return self._read().get("hung") != _identity(saved)
        except OSError:
            return True

    def failed(self, hung: bool, complaint: str, excuse: str) -> bool:
        """A VM did not start with KVM, and then one did without; return whether KVM is given up.

        `hung`: it ran out of time. `complaint`: what QEMU has against KVM. `excuse`: what else it was.
        """
        before, then = self._recall()
        known = before if then == circumstances() else None
        if not complaint and (excuse or not (known == DOUBT or (hung and known != "kvm"))):
            if not excuse:
                self.remember(DOUBT)
            return False
        self.remember("tcg")
        return True

    def candidates(self) -> list[str]:
        """Return what to try, in order: KVM only where it may work."""
        if self.usable():
            return ["tcg"]
        return {"kvm": ["kvm", "tcg"], "tcg": ["tcg"]}.get(self.remembered() or "", ["kvm", "tcg"])


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_mtime_ns]


def _processor() -> list[str]:
    """Return the first processor's model and features, as the kernel tells: the host's, where this is a guest."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    told = {name.strip(): value.strip() for name, _, value in lines}
    features = hashlib.sha256(told.get("flags", "").encode()).hexdigest()[:16]
    return [told.get("model name", ""), told.get("microcode", ""), features]


def _modules() -> list[str]:
    """Return the parts of KVM that the kernel has loaded."""
    return sorted(path.name for path in Path("/sys/module").glob("kvm*"))
