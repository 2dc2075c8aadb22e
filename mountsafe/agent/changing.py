"""A mounted file system, changed as the host asks (`mountsafe.changes`): by path, or by the handle of an open file."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from mountsafe import changes
from mountsafe.agent.amended import Amended
from mountsafe.agent.attributes import Attributes
from mountsafe.agent.disk import Disk
from mountsafe.agent.naming import Naming
from mountsafe.agent.places import Places
from mountsafe.agent.programs import Refused
from mountsafe.agent.repeated import is_done
from mountsafe.agent.tree import Tree
from mountsafe.changes import Act, Change

_SOUND = (errno.EROFS, errno.EIO)  # what a driver says that has given up


class Handle(NamedTuple):
    """An open file: its descriptor, and the path under which it was opened."""

    fd: int
    path: bytes


class Changing:
    """What the host asks of a tree that is mounted to be changed."""

    def __init__(self, tree: Tree, amended: Amended, kernel_type: str, where: str, device: str = "") -> None:
        self._tree = tree
        self._type = kernel_type
        self._places = Places(tree, amended, kernel_type, where)
        self._attributes = Attributes(self._places)
        self._naming = naming = Naming(self._places)
        self._handles: dict[int, Handle] = {}
        self._disk = Disk(where, device)
        self._closed = False
        self._acts: dict[int, Callable[[Change], list[bytes]]] = {
            Act.OPEN: self._open,
            Act.CREATE: self._create,
            Act.CLOSE: self._close,
            **dict.fromkeys((Act.MKDIR, Act.MKNOD, Act.SYMLINK), naming.make),
            Act.LINK: naming.link,
            Act.RENAME: naming.rename,
            Act.UNLINK: naming.unlink,
            Act.RMDIR: naming.rmdir,
            Act.SETATTR: self._setattr,
            Act.SETXATTR: self._attributes.set_extended,
            Act.REMOVEXATTR: self._attributes.remove_extended,
        }

    # --- what the host asks ------------------------------------------------------------------------------------------
    def change(self, body: bytes) -> bytes:
        """Answer a CHANGE."""
        change = changes.unpack_change(body)
        try:
            told = self._acts[change.act](change)
        except OSError as error:
            self._require_sound(error)
            there, other = self._places.found(change.path), self._places.found(change.other) if change.other else None
            if not is_done(change, self._type, error.errno or 0, there, other):
                raise
            told = self._done(change)
        return changes.pack_changed(told)

    def write(self, body: bytes) -> bytes:
        """Answer a WRITE."""
        number, offset, data = changes.unpack_write(body)
        handle = self._handle(number)
        try:
            while data:
                done = os.pwrite(handle.fd, data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            self._require_sound(error)
            raise
        return changes.pack_changed([self._places.opened(*handle)])

    def read_into(self, number: int, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` with an open file's bytes from `offset` on; return how many there are."""
        return Tree.fill(self._handle(number).fd, offset, buffer)

    def sync(self) -> bytes:
        """Answer a SYNC."""
        self._disk.synchronise()
        self._places.amended.synchronised(handle.path for handle in self._handles.values())
        self._disk.require_sound()
        return b""

    def unmount(self) -> bytes:
        """Answer an UNMOUNT. If it cannot be unmounted it may be asked again, and nothing else may."""
        with suppress(OSError, Refused):  # it is kept
            self._disk.synchronise()
        self.close()
        self._disk.unmount()
        self._disk.require_whole()
        return b""

    def close(self) -> None:
        """Close every descriptor, the tree's too."""
        if self._closed:
            return
        self._closed = True
        for handle in self._handles.values():
            os.close(handle.fd)
        self._handles.clear()
        self._places.forget()
        self._disk.close()
        self._tree.close()

    # --- the whole ---------------------------------------------------------------------------------------------------
    def _require_sound(self, error: OSError) -> None:
        if error.errno in _SOUND:
            self._disk.require_sound()

    def _done(self, change: Change) -> list[bytes]:
        """Return what there is now, of a change that was done before."""
        if change.act == Act.RENAME:
            return [*self._places.now(change.other), self._places.now(change.path)[1]]
        return self._places.now(change.path)

    # --- handles -----------------------------------------------------------------------------------------------------
    def _handle(self, number: int) -> Handle:
        handle = self._handles.get(number)
        if handle is None:
            raise Refused(errno.EBADF, "no such handle")
        return handle

    def _keep(self, number: int, handle: Handle) -> None:
        self._let_go(number)
        self._handles[number] = handle

    def _let_go(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            os.close(handle.fd)

    def _open(self, change: Change) -> list[bytes]:
        self._places.settle(change.path)
        self._keep(change.handle, Handle(self._places.regular(*self._places.of(change.path)), change.path))
        return self._places.changed(change.path)

    def _create(self, change: Change) -> list[bytes]:
        fd, told = self._naming.create(change)
        self._keep(change.handle, Handle(fd, change.path))
        return told

    def _close(self, change: Change) -> list[bytes]:
        self._let_go(change.handle)
        return []

    def _setattr(self, change: Change) -> list[bytes]:
        if not change.handle:
            return self._attributes.by_path(change)
        handle = self._handle(change.handle)
        self._attributes.by_descriptor(change, handle.fd)
        self._places.amended.changed(handle.path)
        return [self._places.opened(*handle)]
