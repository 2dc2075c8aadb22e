"""What speaks against KVM on this host, from a tiny guest that runs with it and without it at the same time.

A /dev/kvm that opens proves nothing. Where it lies, QEMU aborts; or each of the guest's instructions is emulated by the
host's kernel (kvm_pvm does so with guests that are not made for it), some 80,000 a second: a Linux that starts in that
says no word for minutes. So the tiny guest enters long mode with paging, counts to four million, which takes QEMU's
own emulation a tenth of a second and a processor a hundredth, and ends QEMU. How long it takes without KVM tells how
slow the host is: what is slow with both is no lie.

`main` runs in a box, and becomes QEMU; the rest is the host's side.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import trio

from mountsafe import sandbox, syscalls
from mountsafe.appliance import hardware
from mountsafe.appliance.acceleration import QEMU
from mountsafe.appliance.console import Console
from mountsafe.appliance.machine import MachineSettings
from mountsafe.limits import TRIAL_DEADLINE, TRIAL_PATIENCE, TRIAL_TIMES
from mountsafe.process import Child, said_by

ALIVE = 33  # QEMU's exit code when the guest writes 0x10 to its isa-debug-exit: twice that, and one
ROM_BYTES = 65536
# At f000:0000. Intel's manual, volume 3, 10.8.5 ("Initializing IA-32e mode"), gives the order of these steps.
CODE = bytes.fromhex(
    "fa 2e660f0116d000"  # cli; lgdt cs:[0xd0]
    "0f20c0 6683c801 0f22c0 66ea1a000f000800"  # cr0 |= PE; jump into protected mode
    "66b81000 8ed8 8ed0"  # ds = ss = 0x10
    "c7050010000003200000 c7050410000000000000"  # a page table of each level, at 0x1000, 0x2000 and 0x3000,
    "c7050020000003300000 c7050420000000000000"  # which map the first 2 MiB
    "c7050030000083000000 c7050430000000000000"
    "b800100000 0f22d8 0f20e0 83c820 0f22e0"  # cr3 = 0x1000; cr4 |= PAE
    "b9800000c0 0f32 0d00010000 0f30"  # EFER |= LME
    "0f20c0 0d00000080 0f22c0 ea8f000f001800"  # cr0 |= PG; jump into long mode
    "bc00800000 b801000000 0fa2"  # esp = 0x8000; cpuid
    "b900093d00 51 59 e2fc"  # four million times: push rcx; pop rcx
    "b010 e6f4 f4 ebfd"  # out 0xf4, 0x10; hlt for ever
    "0f1f440000"
    "0000000000000000 ffff0000009bcf00 ffff00000093cf00 ffff0000009baf00"  # GDT: none, code, data, code of 64 bits
    "1f00 b0000f00"  # where it is
)
JUMP = bytes.fromhex("ea000000f0")  # to f000:0000, where a processor starts


def rom() -> bytes:
    """Return the guest, as the firmware of a machine."""
    return CODE.ljust(ROM_BYTES - 16, b"\0") + JUMP.ljust(16, b"\0")


def qemu(accelerator: str) -> list[str]:
    """Return the command inside the box: the processor that libguestfs asks for, and a machine with nothing else."""
    machine = ["-machine", f"pc,accel={accelerator}", "-cpu", "max", "-smp", str(hardware.PROCESSORS), "-m", "16"]
    chosen = [word for pair in hardware.options(accelerator) for word in pair]
    ends = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-no-reboot"]
    return [str(QEMU), "-nodefaults", "-no-user-config", "-display", "none", *machine, *chosen, *ends, "-bios", "rom"]


class _Guest:
    """A run of the tiny guest. `alive`: after how many seconds it was done, None if QEMU ended without that."""

    def __init__(self, settings: MachineSettings, command: list[str]) -> None:
        self._settings = settings
        self._command = command
        self.console = Console(said_by("guest"))
        self.ended = trio.Event()
        self.alive: float | None = None

    async def run(self) -> None:
        since = trio.current_time()
        with syscalls.descriptor(syscalls.APPLIANCE) as seccomp:
            inside = sandbox.python("mountsafe.appliance.trial", json.dumps(self._command))
            command = self._settings.box().command(inside, sandbox.outer_uid(), seccomp)
            child = Child(command, [seccomp], "trial", self.console.hear)
        try:
            await child.log_words()
            if await child.wait() == ALIVE:
                self.alive = trio.current_time() - since
        finally:
            await child.stop()
        self.ended.set()


async def against_kvm(settings: MachineSettings) -> str:
    """Return why KVM does not run guests here; "" if it does, or if that could not be told."""
    if os.uname().machine != "x86_64":
        return ""
    with_it, without = (_Guest(replace(settings, accelerator=each), qemu(each)) for each in ("kvm", "tcg"))
    with trio.move_on_after(TRIAL_DEADLINE):
        async with trio.open_nursery() as nursery:

            async def settled() -> None:
                await with_it.ended.wait()
                if with_it.alive is not None:
                    nursery.cancel_scope.cancel()

            for task in (with_it.run, without.run, settled):
                nursery.start_soon(task)
            await without.ended.wait()
            if without.alive is not None:
                with trio.move_on_after(TRIAL_PATIENCE + TRIAL_TIMES * without.alive):
                    await with_it.ended.wait()
            nursery.cancel_scope.cancel()
    if with_it.alive is not None or without.alive is None:
        return ""
    if with_it.ended.is_set():
        return with_it.console.kvm
    return f"a guest that takes {without.alive:.1f} s without it was not done in {TRIAL_PATIENCE:.0f} s more"


def main() -> None:
    """Run with one argument: QEMU's command as JSON."""
    command = json.loads(sys.argv[1])
    Path("rom").write_bytes(rom())
    os.execv(command[0], command)
