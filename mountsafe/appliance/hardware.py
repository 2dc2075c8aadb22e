"""What the virtual machine is made of, the same when it is saved and when it is started."""

import os

# libguestfs asks for every feature that QEMU can emulate but one, la57. Two more cost more than they bring: the kernel
# copies memory by single bytes where it is told that the processor is good at that (ERMS), and QEMU emulates each of
# them; and it changes what the page tables allow around every copy from and to programs (SMAP). With QEMU 7.2 a read
# of a file in the guest's page cache took 5.0 ms per MiB with both and 1.6 ms without.
_EMULATED = {"x86_64": ("max,la57=off,-erms,-smap",)}

# Guards of the guest's kernel against the guest's own programs. There are none that it does not trust, and all that
# counts on it is outside; the walls are the host's.
KERNEL_OPTIONS = "mitigations=off init_on_alloc=0 audit=0 lsm= randomize_kstack_offset=off"


def processors(accelerator: str) -> int:
    """Return how many the guest has: with two, the agent's twin does half of the work (mountsafe/agent/twin.py).

    In software emulation QEMU 7.2 ended with an abort in about one of thirty mounts while two of them ran.
    """
    return 1 if accelerator == "tcg" else 2


def options(accelerator: str) -> list[tuple[str, str]]:
    """Return options of QEMU's command line, in pairs, that come after those of libguestfs."""
    if accelerator != "tcg":
        return []
    return [("-cpu", model) for model in _EMULATED.get(os.uname().machine, ())]
