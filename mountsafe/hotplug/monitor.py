"""Events of block devices, after udev has processed them."""

import errno
from contextlib import suppress

import pyudev

from mountsafe.hotplug.devices import disk_of

BUFFER = 16 << 20  # bytes: many hundred events while nobody listens


class Monitor:
    """Listens from the moment it is made."""

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev")
        self._monitor.filter_by("block")
        with suppress(OSError):  # more than the default is for those with rights
            self._monitor.set_receive_buffer_size(BUFFER)
        self._monitor.start()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return int(self._monitor.fileno())

    def disks(self) -> set[str] | None:
        """Return the names of disks that something happened to; None if events were lost: look at all of them."""
        found = set()
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                found.add(disk_of(device))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None
        return found
