"""A client of QEMU's machine protocol (docs/interop/qmp-spec), just enough to plug things into a running VM."""

import json
import os
import socket
import stat
from collections import deque
from typing import Any

from mountsafe.errors import GuestGone, MountsafeError

# QEMU's own seccomp filter: no old system calls, no privilege, no new process, no change of scheduling.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
MEDIUM_SET = 1  # the set of descriptors that the medium is in
EVENTS = 256  # kept; a guest can cause as many as it likes
RECEIVE_SIZE = 64 << 10


class QmpError(MountsafeError):
    """QEMU refused a command."""


class Qmp:
    """A connection to QEMU's monitor, over a connected socket. Blocks; answers take milliseconds.

    `events`: what QEMU said unasked and nobody has taken yet, oldest first.
    """

    def __init__(self, monitor: socket.socket, seconds: float) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._sock = monitor
        self._sock.settimeout(seconds)
        self._unread = b""
        try:
            self._next()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._sock.close()
            raise

    @classmethod
    def connected(cls, path: str, seconds: float) -> "Qmp":
        """Connect to the monitor whose socket has this path. Raises OSError."""
        monitor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        monitor.settimeout(seconds)
        try:
            monitor.connect(path)
        except BaseException:
            monitor.close()
            raise
        return cls(monitor, seconds)

    def fileno(self) -> int:
        """The socket, for select: readable on an event, and when QEMU is gone."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the monitor."""
        self._sock.close()

    def _next(self) -> dict[str, Any]:
        while b"\n" not in self._unread:
            data = self._sock.recv(RECEIVE_SIZE)
            if not data:
                raise GuestGone("QEMU closed its monitor")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _keep_events(self) -> None:
        """Take in the events that came together with something else: the socket is readable for them no more."""
        while b"\n" in self._unread:
            self.events.append(self._next())

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
                    self._keep_events()
                    return answer["return"]
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error'].get('desc', '')}")
                self.events.append(answer)
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
        """Take in the events that have come, one at least; False when QEMU is gone."""
        try:
            self.events.append(self._next())
            self._keep_events()
        except (GuestGone, OSError):
            return False
        return True

    def take(self, event: str) -> list[dict[str, Any]]:
        """Return the data of the events of this name that have come, and forget them."""
        found = [told["data"] for told in self.events if told.get("event") == event]
        self.events = deque((told for told in self.events if told.get("event") != event), EVENTS)
        return found

    def wait_for_end_of(self, device: str) -> None:
        """Take in events until this device is gone."""
        while all(data.get("device") != device for data in self.take("DEVICE_DELETED")):
            self.events.append(self._next())
