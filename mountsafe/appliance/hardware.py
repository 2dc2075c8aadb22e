"""What the virtual machine is made of, the same when it is saved and when it is started."""

import os
from pathlib import Path

# libguestfs asks for every feature that QEMU can emulate but one, la57. Two more cost more than they bring: the kernel
# copies memory by single bytes where it is told that the processor is good at that (ERMS), and QEMU emulates each of
# them; and it changes what the page tables allow around every copy from and to programs (SMAP). With QEMU 7.2 a read
# of a file in the guest's page cache took 5.0 ms per MiB with both and 1.6 ms without.
_EMULATED = {"x86_64": ("max,la57=off,-erms,-smap",)}

# Guards of the guest's kernel against the guest's own programs. There are none that it does not trust, and all that
# counts on it is outside; the walls are the host's.
KERNEL_OPTIONS = "mitigations=off init_on_alloc=0 audit=0 lsm= randomize_kstack_offset=off"

# Two, so that the agent's twin can do half of the work (mountsafe/agent/twin.py).
PROCESSORS = 2

# Threads with which QEMU reads the medium. It would take up to 64 when a slow disk lets reads pile up, and aborts when
# the box (limits.APPLIANCE_PROCESSES) refuses it one.
DISK_THREADS = 16


def virtualises() -> bool:
    """Whether this machine's processor runs virtual machines, as far as the kernel tells."""
    if os.uname().machine != "x86_64":
        return True
    words = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    return bool({"vmx", "svm"} & set(words))


def options(accelerator: str) -> list[tuple[str, str]]:
    """Return options of QEMU's command line, in pairs, that come after those of libguestfs."""
    chosen = [("-object", f"main-loop,id=main-loop,thread-pool-max={DISK_THREADS}")]
    if accelerator == "tcg":
        chosen += [("-cpu", model) for model in _EMULATED.get(os.uname().machine, ())]
    return chosen
