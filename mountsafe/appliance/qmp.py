"""A client of QEMU's machine protocol (docs/interop/qmp-spec), just enough to plug things into a running VM."""

import json
import os
import socket
import stat
from typing import Any

from mountsafe.errors import GuestGone, MountsafeError

# QEMU's own seccomp filter: no old system calls, no privilege, no new process, no change of scheduling.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
MEDIUM_SET = 1  # the set of descriptors that the medium is in


class QmpError(MountsafeError):
    """QEMU refused a command."""


class Qmp:
    """A connection to QEMU's monitor: the path of its socket, or a connected one. Blocks; answers take milliseconds."""

    def __init__(self, monitor: str | socket.socket, seconds: float) -> None:
        if isinstance(monitor, str):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(seconds)
            self._sock.connect(monitor)
        else:
            self._sock = monitor
            self._sock.settimeout(seconds)
        self._lines = self._sock.makefile("rb")
        self._next()  # the greeting
        self.execute("qmp_capabilities")

    def fileno(self) -> int:
        """The socket, for select: readable on an event, and when QEMU is gone."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the monitor."""
        self._lines.close()
        self._sock.close()

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise GuestGone("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, arguments: dict[str, Any] | None = None, fd: int | None = None) -> Any:
        """Run a command, with a descriptor attached if given, and return what it returns."""
        packet = json.dumps({"execute": command, "arguments": arguments or {}}).encode()
        try:
            if fd is None:
                self._sock.sendall(packet)
            else:
                socket.send_fds(self._sock, [packet], [fd])
            while True:
                answer = self._next()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error'].get('desc', '')}")
        except TimeoutError as error:
            raise GuestGone(f"QEMU did not answer {command}") from error
        except (ConnectionError, BrokenPipeError) as error:
            raise GuestGone("QEMU is gone") from error

    def take_medium(self, fd: int) -> dict[str, Any]:
        """Hand a file or block device in, which QEMU then opens by no name; return how `blockdev-add` calls it."""
        self.execute("add-fd", {"fdset-id": MEDIUM_SET}, fd)
        driver = "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
        return {"driver": driver, "filename": f"/dev/fdset/{MEDIUM_SET}", "read-only": True, "locking": "off"}

    def drain(self) -> bool:
        """Read one event; False when QEMU is gone."""
        try:
            self._next()
        except (GuestGone, OSError):
            return False
        return True

    def wait_for(self, event: str) -> None:
        """Read events until one has this name."""
        while self._next().get("event") != event:
            pass
