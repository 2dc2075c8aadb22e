"""A client of NBD that is not the one under test: proto.md of the Network Block Device project, the oldest way."""

import socket
import struct

EXPORT_NAME = 1


class Unreadable(Exception):
    """The server says that it cannot read there."""


class Nbd:
    """A connection to the server whose socket has this name."""

    def __init__(self, name: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(30)
        self._sock.connect(name)
        magic, option, _ = struct.unpack(">8s8sH", self._take(18))
        assert (magic, option) == (b"NBDMAGIC", b"IHAVEOPT")
        self._sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", EXPORT_NAME, 0))
        self.size, _ = struct.unpack(">QH", self._take(10))

    def _take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._sock.recv(length - len(data))
            assert more, "the server has gone"
            data += more
        return data

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk."""
        self._sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, offset, length))
        magic, error, handle = struct.unpack(">IIQ", self._take(16))
        assert (magic, handle) == (0x67446698, 7)
        if error:
            raise Unreadable(error)
        return self._take(length)

    def __enter__(self) -> "Nbd":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
