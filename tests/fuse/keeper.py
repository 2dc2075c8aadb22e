"""The processes of a mount without a virtual machine: `python3 keeper.py SETTINGS GUEST`.

The supervisor, and the session process that it starts in its box, are the real ones. Only the virtual machine is a
process of this host that runs the real agent over a folder: `python3 keeper.py agent GUEST FD READY`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mountsafe.session import runtime, supervisor  # the path comes first
from mountsafe.session.storage import Storage
from tests.fuse import liar
from tests.guest import FolderWorker, Layout


class FolderMachines:
    """In the place of `session.machines.Machines`: a process instead of a virtual machine."""

    accelerator = "none"
    crash = ""
    guest: dict[str, Any] = {}  # noqa: RUF012  # set once, for this process
    number = 1  # of the virtual machine, as the parent calls it

    def __init__(  # the same parameters
        self, settings: object, acceleration: object, storage: Storage, nursery: object, listener: object, spare: object
    ) -> None:
        self.storage = storage
        self._processes: list[subprocess.Popen[bytes]] = []
        self._held: list[socket.socket] = []
        self._streams = 0
        self._users: set[object] = set()

    @property
    def pid(self) -> int | None:
        return self._processes[-1].pid if self._processes else None

    async def numbered(self, user: object) -> tuple[socket.socket, int]:
        return await self.stream(user), self.number

    async def stream(self, user: object) -> socket.socket:
        self._users.add(user)
        ours, theirs = socket.socketpair()
        if self.guest.get("silent"):
            self._held.append(theirs)
            return ours
        self._streams += 1
        guest = self.guest | {"stream": self._streams}
        with theirs:
            started = self._start(guest, theirs.fileno())
        try:
            await trio.lowlevel.wait_readable(started)
        finally:
            os.close(started)
        return ours

    def _start(self, guest: dict[str, Any], fd: int) -> int:
        """Start a process with a far end; return what becomes readable when it is there.

        As a worker of the real one it is there before anybody waits for answers.
        """
        reading, writing = os.pipe()
        command = [sys.executable, __file__, "agent", json.dumps(guest), str(fd), str(writing)]
        self._processes.append(subprocess.Popen(command, pass_fds=[fd, writing]))
        os.close(writing)
        return reading

    async def release(self, user: object) -> None:
        self._users.discard(user)
        if not self._users:
            self._kill()

    async def end_misbehaving(self, number: int, why: str) -> None:
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    async def close(self) -> None:
        self._kill()
        await self.storage.close()


def agent(guest: dict[str, Any], fd: int) -> None:
    """Answer on a stream until it is closed."""
    if lies := guest.get("lies"):
        liar.serve(fd, **lies | {"seed": lies["seed"] + 1000 * guest["stream"]})
        return
    layout = Layout.load(Path(guest["layout"])) if guest["layout"] else None
    worker = FolderWorker(Path(guest["folder"]), guest["fstype"], layout, guest["size"], guest["start"])
    worker.serve(fd)


@contextmanager
def settings(verbose: bool) -> Iterator[tuple[Any, Any]]:
    yield None, None


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if sys.argv[1] == "agent":
        os.close(int(sys.argv[4]))  # which says that we are there
        agent(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        FolderMachines.guest = json.loads(sys.argv[2])
        place = Path(FolderMachines.guest["runtime"])
        runtime.base = lambda: place
        supervisor.Machines = FolderMachines  # type: ignore[misc,assignment]
        supervisor.machine_settings = settings
        supervisor.main()
