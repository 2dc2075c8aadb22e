"""A mount that can be changed, without a supervisor: the real session process and a real FUSE mount.

The part of the supervisor is played by a thread; virtual machines are processes that run `tests.changer` over a folder.
`python3 changed.py FOLDER FSTYPE STATE FD` is one of them.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mountsafe import channel, codec
from mountsafe.medium.encryption import Stack
from mountsafe.sandbox import PYTHON
from mountsafe.session.attached import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, attach, fsmount
from mountsafe.session.conversation import (
    GIVEN,
    SAID,
    Assignment,
    Connection,
    Misbehaved,
    Ready,
    Said,
    Serving,
    SessionSettings,
    Settle,
    Settled,
    Stream,
    Unsaved,
    WantStream,
    Writing,
)
from tests.changer import ChangingWorker, Control

REPOSITORY = str(Path(__file__).resolve().parents[2])
PATIENCE = 60.0
QUICKLY = 0.2  # seconds without a change until it settles


class Changed:
    """One mount of `tree`, on `target`. `said`: what the session process told, but for questions."""

    def __init__(
        self, tree: Path, target: Path, state: Path, idle: float = QUICKLY, writable: bool = True, **options: Any
    ) -> None:
        self.tree, self.target, self.state = tree, target, state
        self.said: list[Said] = []
        self.settled = 0
        self.machines: list[tuple[bool, subprocess.Popen[bytes]]] = []
        self.control(**options.pop("control", {}))
        self._options = options
        self._fstype = options.get("fstype", "ext4")
        self._writing = Writing("sda", idle) if writable else None
        self._serving = threading.Event()
        self._ours, theirs = channel.pair()
        medium = os.open(state / "medium", os.O_RDWR | os.O_CREAT)
        os.truncate(medium, 1 << 20)
        settings = SessionSettings(theirs.fileno(), medium, writes=writable)
        code = f"import sys; sys.path.insert(0, {REPOSITORY!r}); from mountsafe.session.server import main; main()"
        command = [PYTHON, "-c", code, json.dumps(codec.plain(settings))]
        with open(state / "words", "wb") as words:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), medium], stderr=words)
        theirs.close()
        os.close(medium)
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()
        self._serving.wait(PATIENCE)
        assert any(isinstance(said, Serving) for said in self.said), (self.said, self.words())

    def control(self, **told: Any) -> None:
        """Tell the guests what to do, beside what they were told before."""
        path = self.state / "control"
        now = Control.load(path) if path.exists() else Control()
        for name, value in told.items():
            setattr(now, name, value)
        now.turn += 1
        now.save(path)

    def _keep(self) -> None:
        try:
            self._converse()
        except ConnectionError:
            pass
        finally:
            self._serving.set()

    def _converse(self) -> None:
        uid, gid = self._options.get("owner", (None, None))
        size = 1 << 20
        told = Assignment(
            *("sdx", self._fstype, (), 0, size, (), Stack(True, size, 0, size), uid, gid),
            *(self._options.get("rests", 0.0), self._options.get("entries", 200_000), b"UTC0".hex(), self._writing),
        )
        channel.send(self._ours, GIVEN.told(told))
        while (heard := channel.receive(self._ours)) is not None:
            said = SAID.read(heard[0])
            match said:
                case WantStream(writing):
                    self._give_stream(writing)
                case Ready():
                    self._give_mount(said.mode)
                case Settle():
                    self.settled += 1
                    self._end_machines()
                    channel.send(self._ours, GIVEN.told(Settled("")))
                case Misbehaved(number):
                    self.machines[number - 1][1].kill()
            self.said.append(said)
            if isinstance(said, Serving):
                self._serving.set()

    def _give_stream(self, writing: bool) -> None:
        ours, theirs = socket.socketpair()
        command = [PYTHON, __file__, str(self.tree), self._fstype, str(self.state), str(theirs.fileno())]
        self.machines.append((writing, subprocess.Popen(command, pass_fds=[theirs.fileno()])))
        theirs.close()
        channel.send(self._ours, GIVEN.told(Stream(len(self.machines))), [ours.fileno()])
        ours.close()

    def _give_mount(self, mode: int) -> None:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = {"fd": str(fd), "rootmode": f"{0o40000 | mode:o}", "user_id": "0", "group_id": "0"}
        made = fsmount("changed", {**options, "allow_other": None, "default_permissions": None}, self._attributes())
        where = os.open(self.target, os.O_PATH)
        attach(made, where)
        os.close(where)
        os.close(made)
        channel.send(self._ours, GIVEN.told(Connection(False)), [fd])
        os.close(fd)

    def _attributes(self) -> int:
        return MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV

    def _end_machines(self) -> None:
        for _, machine in self.machines:
            machine.kill()
            machine.wait()

    @property
    def writers(self) -> int:
        """How many machines for writing there were."""
        return sum(writing for writing, _ in self.machines)

    @property
    def unsaved(self) -> list[Unsaved]:
        return [said for said in self.said if isinstance(said, Unsaved)]

    def words(self) -> str:
        return (self.state / "words").read_text()

    def sync(self) -> None:
        """As the supervisor does before it unmounts. Raises OSError."""
        fd = os.open(self.target, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount, and wait for the session process."""
        subprocess.run(["umount", self.target], check=True)
        self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.target], check=False, capture_output=True)
        try:
            self.process.wait(PATIENCE / 3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._end_machines()
        self._thread.join(PATIENCE)
        self._ours.close()


if __name__ == "__main__":
    folder, fstype, state, fd = sys.argv[1:]
    ChangingWorker(Path(folder), fstype, Path(state)).serve(int(fd))
