"""What a VM's process says, its guest's console too: passed on, and searched for why it failed. All of it untrusted.

Before the medium is plugged in nobody speaks but QEMU, libguestfs and the appliance's own kernel.
"""

import re
from collections.abc import Callable

Log = Callable[[str], None]
# The words of Linux's kernel/panic.c, lib/bug.c, arch/x86/mm/fault.c and arch/x86/kernel/traps.c.
_CRASH = re.compile(r"\] ((?:Kernel panic - not syncing: |kernel BUG at |BUG: |general protection fault).{,200})")
# QEMU's accel/kvm and target/*/kvm. A guest's kernel speaks of KVM as well, where it works.
_KVM = re.compile(
    r"(?:failed to [sg]et MSR|KVM internal error|KVM kernel module|KVM: entry failed|kvm run failed|ioctl\(KVM_"
    r"|initialize kvm|kvm_\w+(?:\(\))?(?::.*)? (?:failed|Assertion)|: failed to .*\bkvm\b).{,200}",
    re.IGNORECASE,
)
_KERNEL_LINE = re.compile(r"\[ *\d+\.\d+\] ")
# glibc's and QEMU's words for ENOMEM, QEMU's and the box's for a limit on threads, bubblewrap's prefix.
_HOST = re.compile(r"(?:Cannot allocate memory|cannot set up guest memory|qemu_thread_create: |\bbwrap: ).{,200}", re.I)


def crash_in(untrusted_text: str) -> str:
    """Return why a guest's kernel crashed, in its own words; "" if it does not say so."""
    found = _CRASH.search(untrusted_text)
    return found[1] if found else ""


class Console:
    """Passes what a VM's process says on to a log, and keeps what it said first of each kind of failure.

    `crash`: why the guest's kernel crashed. Until it has `started`, `kvm`: what QEMU has against KVM, and `host`: what
    this host did not give.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.started = False
        self.crash = ""
        self.kvm = ""
        self.host = ""

    def hear(self, line: str) -> None:
        """Hear a line, which is fit to be shown."""
        self.crash = self.crash or crash_in(line)
        if not self.started and not _KERNEL_LINE.search(line):
            self.kvm = self.kvm or _first(_KVM, line)
            self.host = self.host or _first(_HOST, line)
        self._log(line)


def _first(what: re.Pattern[str], line: str) -> str:
    found = what.search(line)
    return found[0] if found else ""
