"""One VM as the host sees it: a boxed child process and its control channel."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from mountsafe import channel, sandbox, syscalls
from mountsafe.appliance import thaw
from mountsafe.appliance.acceleration import KVM
from mountsafe.appliance.console import Console, Log
from mountsafe.errors import DeadlinePassed, GuestGone
from mountsafe.limits import (
    APPLIANCE_ADDRESS_SPACE,
    APPLIANCE_PROCESSES,
    APPLIANCE_SCRATCH,
    ATTACH_DEADLINE,
    GUEST_MEMORY_MIB,
    LAUNCH_DEADLINE,
    REQUEST_DEADLINE,
)
from mountsafe.medium.part import WHOLE, Part
from mountsafe.peer import Peer
from mountsafe.process import Child
from mountsafe.text import printable


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """How to start a VM. `accelerator` is "kvm" or "tcg"; memory in MiB. `saved`: from its saved state, if one fits."""

    appliance: Path
    accelerator: str = "tcg"
    memory_mib: int = GUEST_MEMORY_MIB
    verbose: bool = False
    kvm_device: Path = KVM
    saved: bool = True

    @property
    def state(self) -> Path:
        """Where the saved state is, if there is one."""
        return thaw.state(self.appliance, self.accelerator)

    @property
    def thaws(self) -> bool:
        """Whether the VM starts from a saved state. Else it boots."""
        return self.saved and thaw.fits(self.appliance, self.memory_mib, self.accelerator)

    @property
    def patience(self) -> float:
        """How many seconds it may take to start from its saved state."""
        return thaw.patience(self.appliance, self.memory_mib, self.accelerator)

    def box(self) -> sandbox.Box:
        """The box that the appliance process lives in."""
        return sandbox.Box(
            scratch=APPLIANCE_SCRATCH,
            address_space=APPLIANCE_ADDRESS_SPACE,
            processes=APPLIANCE_PROCESSES,
            readable=((self.appliance.resolve(), "/appliance"),),
            devices=((self.kvm_device, str(KVM)),) if self.accelerator == "kvm" else (),
        )

    def argv(self, control: int) -> list[str]:
        """The command inside the box."""
        settings = {
            "control": control,
            "appliance": "/appliance",
            "memory_mib": self.memory_mib,
            "accelerator": self.accelerator,
            "verbose": self.verbose,
            "thaws": self.thaws,
        }
        return sandbox.python("mountsafe.appliance.serve", json.dumps(settings))


class Machine(Peer):
    """A started VM."""

    def __init__(self, process: Child, control: socket.socket, console: Console, accelerator: str) -> None:
        super().__init__(process, control, "the appliance process", "the virtual machine")
        self.accelerator = accelerator
        self.console = console
        self._ahead: socket.socket | None = None  # a stream that nobody asked for yet

    @classmethod
    def start(cls, settings: MachineSettings, log: Log) -> "Machine":
        """Start the process; `launched` says when the VM runs. `log` gets the console's lines and the command."""
        with channel.handed_down() as (ours, theirs), syscalls.descriptor(syscalls.APPLIANCE) as seccomp:
            command = settings.box().command(settings.argv(theirs.fileno()), sandbox.outer_uid(), seccomp)
            if settings.verbose:
                log(sandbox.shown(command))
            console = Console(log)
            process = Child(command, [theirs.fileno(), seccomp], "guest", console.hear)
        return cls(process, ours, console, settings.accelerator)

    @property
    def crash(self) -> str:
        """Why the guest's kernel crashed, in its own words; "" if it did not."""
        return self.console.crash

    async def launched(self, deadline: float = LAUNCH_DEADLINE, lively: float = 0.0) -> None:
        """Wait until the VM runs. Raises GuestGone with the reason, or DeadlinePassed.

        A guest that has said something until the deadline is only slow: it gets `lively` seconds more.
        """
        try:
            untrusted = await self.receive(deadline, "start")
        except DeadlinePassed:
            if not (lively and self.process.last_line):
                raise
            untrusted = await self.receive(lively, "start")
        if untrusted.get("event") != "launched":
            raise GuestGone(f"the virtual machine did not start: {printable(str(untrusted.get('why')), 500)}")
        self.console.started = True

    async def attach(self, fd: int, model: str = "", part: Part = WHOLE, writable: bool = False) -> None:
        """Plug the medium behind `fd` in, or a part of it; `model` is what its disk is called.

        `writable`: of a socket, whose server then takes what is written.
        """
        where = {"offset": part.offset, "size": part.size}
        await self.ask("attach", [fd], ATTACH_DEADLINE, model=model, **where, writable=writable)

    async def detach(self) -> None:
        """Unplug it again. Only tests and a shared warm VM do; a medium's own VM ends with it."""
        await self.ask("detach", [], ATTACH_DEADLINE)

    async def open_ahead(self) -> None:
        """Open the stream that `open_stream` returns next: to whom a disk is given later. Raises as that does."""
        self._ahead = await self.open_stream()

    async def stop(self) -> None:
        """End it, and what was opened ahead."""
        if self._ahead is not None:
            self._ahead.close()
        await super().stop()

    async def open_stream(self) -> socket.socket:
        """Return the host end of a new stream to the agent, which has a worker on it."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                await self.ask("stream", [theirs.fileno()], REQUEST_DEADLINE + ATTACH_DEADLINE)
        except BaseException:
            ours.close()
            raise
        return ours
