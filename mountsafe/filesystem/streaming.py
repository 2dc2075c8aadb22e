"""Serves a file system over a stream, without FUSE: what `mountsafe.reading` asks, read-only.

Attributes are told as the medium has them, owners and modes too: whoever asks reads, and nothing is mounted.
"""

import errno
import itertools
import logging
import os
import stat
from collections.abc import Awaitable, Callable

import trio

from mountsafe import reading, wire
from mountsafe.filesystem.attributes import KnownXattrs
from mountsafe.filesystem.failures import errno_of
from mountsafe.filesystem.nodes import Node
from mountsafe.filesystem.opened import FileSystem
from mountsafe.limits import CALL_DEADLINE
from mountsafe.medium.extents import Source
from mountsafe.reading import Asked, Flag, Held, Kind, Opened

log = logging.getLogger(__name__)
RECEIVE_SIZE = 64 << 10
PAGE_ROOM = wire.MAX_BODY - (8 << 10)  # bytes of entries in a page: the largest entry fits in beside them


class Streaming:
    """Answers the questions of one stream until it ends.

    `_handles` are open files, each of which the index keeps (`Index.looked_up`). Any number of questions, up to
    `MAX_INFLIGHT`, are answered at a time; whole answers are sent one after the other.
    """

    def __init__(self, opened: FileSystem, stream: trio.abc.Stream) -> None:
        self._opened = opened
        self._index = opened.index
        self._stream = stream
        self._sending = trio.Lock()
        self._places = trio.Semaphore(reading.MAX_INFLIGHT)
        self._over = trio.CancelScope()
        self._xattrs = KnownXattrs(opened.agents)
        self._handles: dict[int, Node] = {}
        self._numbers = itertools.count(1)
        self._answers: dict[int, Callable[[bytes], Awaitable[bytes]]] = {
            Kind.LOOK: self._look,
            Kind.LIST: self._list,
            Kind.OPEN: self._open,
            Kind.XATTRS: self._told_xattrs,
            Kind.STATFS: self._statfs,
            Kind.READ: self._read,
            Kind.DATA: self._data,
            Kind.CLOSE: self._close,
        }

    async def serve(self) -> None:
        """Answer until the other end is closed, or breaks the protocol."""
        decoder = wire.Decoder()
        try:
            with self._over:
                async with self._stream, trio.open_nursery() as nursery:
                    while data := await self._stream.receive_some(RECEIVE_SIZE):
                        for frame in decoder.feed(data):
                            if frame.kind not in Kind.ALL:
                                raise wire.WireError(f"a question of kind {frame.kind}")
                            await self._places.acquire()
                            nursery.start_soon(self._answer, frame)
                    self._over.cancel()
        except wire.WireError as error:
            log.warning("who reads broke the protocol: %s", error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nobody waits for answers any more
        finally:
            while self._handles:
                self._let_go(next(iter(self._handles)))

    async def _answer(self, frame: wire.Frame) -> None:
        """Answer a question. What ends the stream raises nothing: several tasks may find it at a time."""
        try:
            head, body = await self._answered(frame)
            async with self._sending:
                await self._stream.send_all(head)
                if body:
                    await self._stream.send_all(body)
        except wire.WireError as error:
            log.warning("who reads broke the protocol: %s", error)
            self._over.cancel()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._over.cancel()
        finally:
            self._places.release()

    async def _answered(self, frame: wire.Frame) -> tuple[bytes, bytes]:
        """Return the header and the body of an answer: a failure is an answer too, but for a broken protocol."""
        try:
            with trio.fail_after(CALL_DEADLINE):
                body = await self._answers[frame.kind](frame.body)
            return wire.HEADER.pack(len(body), frame.ident, frame.kind), body
        except wire.WireError:
            raise
        except trio.TooSlowError:
            log.warning("a question of kind %d took longer than %.0f s", frame.kind, CALL_DEADLINE)
            number = errno.ETIMEDOUT
        except Exception as error:  # noqa: BLE001  # told to who asked
            number = errno_of(error, f"a question of kind {frame.kind}")
        body = wire.pack_error(number, b"")
        return wire.HEADER.pack(len(body), frame.ident, Kind.ERROR), body

    # --- by path ---------------------------------------------------------------------------------------------------
    async def _look(self, body: bytes) -> bytes:
        asked = reading.unpack_asked(body)
        async with self._opened.held(asked.path, _follows(asked)) as node:
            return reading.pack_entries(0, [_entry(b"", node)])

    async def _list(self, body: bytes) -> bytes:
        asked = reading.unpack_asked(body)
        async with self._opened.held(asked.path, _follows(asked)) as folder:
            if not folder.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            listing = self._index.listing(folder)
            order = listing.order
            await listing.wait_for(lambda: listing.complete or len(order) > asked.number)
            entries: list[wire.Entry] = []
            at, room = asked.number, PAGE_ROOM
            while at < len(order) and len(entries) < wire.MAX_PAGE_ENTRIES and room > 0:
                name, node = order[at]
                entries.append(_entry(name, node))
                room -= len(name) + len(node.target) + 128  # more than what its numbers take
                at += 1
            return reading.pack_entries(0 if listing.complete and at >= len(order) else at, entries)

    async def _open(self, body: bytes) -> bytes:
        asked = reading.unpack_asked(body)
        if len(self._handles) >= reading.MAX_HANDLES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        async with self._opened.held(asked.path, _follows(asked)) as node:
            if node.is_folder:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(node.mode):  # nor what the guest could not look at
                raise OSError(errno.EIO if node.mode == 0 else errno.EINVAL, "it cannot be read")
            await self._opened.reader.open(node)
            first = bytes(await self._opened.reader.read(node, 0, asked.length)) if asked.length else b""
            handle = next(self._numbers)
            self._index.looked_up(node)
            self._handles[handle] = node
            return reading.pack_opened(Opened(handle, _entry(b"", node), first))

    async def _told_xattrs(self, body: bytes) -> bytes:
        asked = reading.unpack_asked(body)
        async with self._opened.held(asked.path, _follows(asked)) as node:
            return wire.pack_xattrs(list((await self._xattrs.of(node)).items()))

    async def _statfs(self, body: bytes) -> bytes:
        return wire.pack_statfs(self._opened.statfs)

    # --- by handle -------------------------------------------------------------------------------------------------
    def _node(self, held: Held) -> Node:
        node = self._handles.get(held.handle)
        if node is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return node

    async def _read(self, body: bytes) -> bytes:
        held = reading.unpack_held(body)
        return bytes(await self._opened.reader.read(self._node(held), held.offset, held.length))

    async def _data(self, body: bytes) -> bytes:
        held = reading.unpack_held(body)
        node = self._node(held)
        if not self._opened.reader.direct or held.offset >= node.size:
            return reading.pack_offset(min(held.offset, node.size))
        pieces = node.plan.pieces(held.offset, node.size - held.offset)
        found = next((piece.offset for piece in pieces if piece.source != Source.ZERO), node.size)
        return reading.pack_offset(found)

    async def _close(self, body: bytes) -> bytes:
        held = reading.unpack_held(body)
        self._node(held)
        self._let_go(held.handle)
        return b""

    def _let_go(self, handle: int) -> None:
        self._index.forget(self._handles.pop(handle).ino, 1)


def _follows(asked: Asked) -> bool:
    return bool(asked.flags & Flag.FOLLOW)


def _entry(name: bytes, node: Node) -> wire.Entry:
    """Return what is told of a node. Its number is that by which the index knows it."""
    numbers = (node.mode, node.nlink, node.uid, node.gid, node.ino, node.size, node.blocks)
    return wire.Entry(name, *numbers, node.atime, node.mtime, node.ctime, node.target)
