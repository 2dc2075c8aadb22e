"""A client of QEMU's machine protocol (docs/interop/qmp-spec), just enough to plug things into a running VM."""

import json
import socket
from collections import deque
from typing import Any

from mountsafe.errors import GuestGone, MountsafeError

EVENTS = 256  # kept; a guest can cause as many as it likes


class QmpError(MountsafeError):
    """QEMU refused a command."""


class Qmp:
    """A connection to QEMU's monitor socket at `path`. Blocks; QEMU answers in milliseconds.

    `events`: what QEMU said unasked and nobody has taken yet, oldest first.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(seconds)
        self._sock.connect(path)
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
                self.events.append(answer)
        except TimeoutError as error:
            raise GuestGone(f"QEMU did not answer {command}") from error
        except (ConnectionError, BrokenPipeError) as error:
            raise GuestGone("QEMU is gone") from error

    def drain(self) -> bool:
        """Take in one event; False when QEMU is gone."""
        try:
            self.events.append(self._next())
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
