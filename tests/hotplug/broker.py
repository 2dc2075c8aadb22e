"""Start dbus-broker as systemd would: with the bus's socket, and somebody who takes what it logs."""

import os
import socket
import sys
from contextlib import suppress

JOURNAL = "/run/systemd/journal/socket"
FIRST = 3  # descriptor, of those that are handed over (sd_listen_fds(3))


def main(place: str) -> None:
    """Listen at a place, and become the broker's launcher."""
    os.makedirs(os.path.dirname(JOURNAL), exist_ok=True)
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(JOURNAL)
    broker = os.getpid()
    if os.fork() == 0:
        journal.settimeout(1.0)
        while os.getppid() == broker:  # no signal tells of its end, for it becomes another user
            with suppress(TimeoutError):
                os.write(2, journal.recv(1 << 16))
        os._exit(0)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    os.chmod(place, 0o666)
    listening.listen()
    os.dup2(listening.fileno(), FIRST)  # which exec leaves open
    os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execlp("dbus-broker-launch", "dbus-broker-launch", "--scope", "system")


if __name__ == "__main__":
    main(sys.argv[1])
