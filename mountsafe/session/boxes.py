"""Session processes that are started ahead: each in a box, and told later what it serves."""

import json
import logging

from mountsafe import channel, codec, sandbox, syscalls
from mountsafe.limits import SESSION_ADDRESS_SPACE, SESSION_PROCESSES, SESSION_SCRATCH
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium
from mountsafe.process import Child, said_by
from mountsafe.session.conversation import SessionSettings

log = logging.getLogger(__name__)


class SessionBox:
    """A session process that is not told yet which file system it serves: it starts while that is found out.

    It gets the medium if that is raw; a disk in a container it asks for. `decrypts`: it will serve an encrypted one.
    `fuse`: it will serve a mount, and else a stream.
    """

    def __init__(self, medium: Medium, decrypts: bool = False, fuse: bool = True) -> None:
        with channel.handed_down() as (self.control, theirs), syscalls.descriptor(syscalls.SESSION) as seccomp:
            box = sandbox.Box(SESSION_SCRATCH, SESSION_ADDRESS_SPACE, SESSION_PROCESSES)
            raw = medium.format is Format.RAW
            settings = SessionSettings(
                theirs.fileno(), medium.fd if raw else None, decrypts, medium.writable_fd is not None, fuse
            )
            argv = sandbox.python("mountsafe.session.server", json.dumps(codec.plain(settings)))
            command = box.command(argv, sandbox.outer_uid(), seccomp)
            log.debug("%s", sandbox.shown(command))
            fds = [theirs.fileno(), seccomp, *([medium.fd] if raw else [])]
            self.child = Child(command, fds, "session", said_by("session"))


class SessionBoxes:
    """Session processes that were started before it is known what they will serve."""

    def __init__(self, medium: Medium, fuse: bool = True) -> None:
        self._medium = medium
        self._fuse = fuse
        self._boxes: dict[bool, list[SessionBox]] = {False: [], True: []}  # by whether they decrypt

    def prepare(self, decrypts: bool) -> None:
        """Start one, unless one waits."""
        if not self._boxes[decrypts]:
            self._boxes[decrypts].append(SessionBox(self._medium, decrypts, self._fuse))

    def take(self, decrypts: bool) -> SessionBox:
        """Return one, whose end is its taker's business."""
        return self._boxes[decrypts].pop() if self._boxes[decrypts] else SessionBox(self._medium, decrypts, self._fuse)

    async def end(self) -> None:
        """End those that nobody took: they have the medium, and serve nothing."""
        for boxes in self._boxes.values():
            while boxes:
                box = boxes.pop()
                box.control.close()
                await box.child.stop()
