"""An ordinary user who does to the daemon's bus what he can, for a while; prints how often he did what, as JSON.

`python -m tests.hotplug.abuser SECONDS`, as root: it becomes nobody once everything is loaded.
"""

import array
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

from jeepney import DBusAddress, HeaderFields, Message, message_bus, new_method_call, new_method_return, new_signal
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from mountsafe.daemon.address import NAME, PATH

WHERE = DBusAddress(PATH, NAME, NAME)
NOBODY = 65534


def raw(connection: DBusConnection, message: Message, change: Callable[[bytearray], None] = lambda _: None) -> None:
    data = bytearray(message.serialise(serial=next(connection.outgoing_serial)))
    change(data)
    connection.sock.sendall(data)


def large(connection: DBusConnection) -> None:
    raw(connection, new_method_call(WHERE, "Open", "s", ("A" * random.choice((5_000, 70_000, 1 << 20, 32 << 20)),)))


def many_parts(connection: DBusConnection) -> None:
    raw(connection, new_method_call(WHERE, "Open", "a(yyyyyyyy)", ([(1,) * 8] * random.choice((8, 8_000, 100_000)),)))


def deep(connection: DBusConnection) -> None:
    value: object = "end"
    kind = "s"
    for _ in range(random.choice((3, 20, 30))):
        value, kind = (kind, value), "v"
    raw(connection, new_method_call(WHERE, "Trust", "v", (value,)))


def wide_header(connection: DBusConnection) -> None:
    raw(connection, new_method_call(DBusAddress("/a" * random.choice((1_000, 100_000)), NAME, NAME), "Open"))


def unknown(connection: DBusConnection) -> None:
    for number in range(50):
        raw(connection, new_method_call(WHERE, f"Nothing{number}"))


def introspection(connection: DBusConnection) -> None:
    where = DBusAddress(PATH, NAME, "org.freedesktop.DBus.Introspectable")
    for _ in range(50):
        raw(connection, new_method_call(where, "Introspect"))


def status(connection: DBusConnection) -> None:
    for _ in range(200):
        raw(connection, new_method_call(WHERE, random.choice(("Status", "ListMedia"))))


def acts(connection: DBusConnection) -> None:
    for _ in range(20):
        device = random.choice(("loop0", "/dev/loop1", "sdz", "../etc", "\u2028"))
        raw(connection, new_method_call(WHERE, random.choice(("Open", "Eject", "Untrust")), "s", (device,)))
        raw(connection, new_method_call(WHERE, "Trust", "ss", (device, random.choice(("kernel", "sandbox", "x")))))
        raw(connection, new_method_call(WHERE, "Reload"))


def signals(connection: DBusConnection) -> None:
    for member in ("NameOwnerChanged", "NameLost", "MediumAdded"):
        signal = new_signal(
            DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus"), member, "s", (NAME,)
        )
        signal.header.fields[HeaderFields.destination] = NAME
        raw(connection, signal)


def forged_answers(connection: DBusConnection) -> None:
    raw(connection, new_method_call(WHERE, "Reload"))
    for serial in range(1, 300):
        call = new_method_call(WHERE, "Ping", "(bba{ss})", ((True, False, {}),))
        call.header.fields[HeaderFields.reply_serial] = serial
        raw(connection, call)
    answer = new_method_return(new_method_call(WHERE, "Ping"), "u", (0,))
    answer.header.fields[HeaderFields.reply_serial] = random.randrange(1, 1000)
    answer.header.fields[HeaderFields.destination] = NAME
    raw(connection, answer)


def strange_kinds(connection: DBusConnection) -> None:
    def change(data: bytearray) -> None:
        data[1] = 5

    raw(connection, new_method_call(WHERE, "Status"), change)


def half_a_message(connection: DBusConnection) -> None:
    data = new_method_call(WHERE, "Open", "s", ("sdb",)).serialise(serial=9)
    connection.sock.sendall(data[: random.randrange(1, len(data))])
    raise ConnectionError


def gone_in_the_middle(connection: DBusConnection) -> None:
    raw(connection, new_method_call(WHERE, "Reload"))
    raise ConnectionError


def stolen_name(connection: DBusConnection) -> None:
    raw(connection, message_bus.RequestName(NAME, 2))


def lying_length(connection: DBusConnection) -> None:
    def change(data: bytearray) -> None:
        data[4:8] = struct.pack("<I", random.randrange(1 << 27))

    raw(connection, new_method_call(WHERE, "Status"), change)
    raise ConnectionError


def keys(connection: DBusConnection) -> None:
    """Descriptors of all kinds: a pipe that stays open, what has no end, what nothing is read from, and too many."""
    reader, writer = os.pipe()
    memory = os.memfd_create("key")
    os.write(memory, b"wrong")
    others = [os.open("/dev/zero", os.O_RDONLY), os.open("/", os.O_PATH), os.open("/dev/null", os.O_WRONLY)]
    try:
        for fd in (reader, writer, memory, *others):
            device, form = random.choice(("loop0", "/dev/loop1", "sdz")), random.choice(("passphrase", "key-file", "x"))
            for message in (
                new_method_call(WHERE, "Unlock", "ssh", (device, form, fd)),
                new_method_call(WHERE, "Unlock", "s" + "h" * 12, (device, *[fd] * 12)),
                new_method_call(WHERE, "Open", "sh", (device, fd)),
            ):
                fds = array.array("i")
                data = message.serialise(serial=next(connection.outgoing_serial), fds=fds)
                connection.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    finally:
        for fd in (reader, writer, memory, *others):
            os.close(fd)


KINDS: tuple[Callable[[DBusConnection], None], ...] = (
    large,
    many_parts,
    deep,
    wide_header,
    unknown,
    introspection,
    status,
    acts,
    signals,
    forged_answers,
)
KINDS += (strange_kinds, half_a_message, gone_in_the_middle, stolen_name, lying_length, keys)


def abuse(seconds: float) -> Counter[str]:
    end = time.monotonic() + seconds
    done: Counter[str] = Counter()
    while time.monotonic() < end:
        try:
            with open_dbus_connection(bus="SYSTEM", enable_fds=True) as connection:
                for _ in range(random.randrange(1, 10)):
                    kind = random.choice(KINDS)
                    done[kind.__name__] += 1
                    connection.sock.settimeout(5)
                    kind(connection)
                    connection.sock.settimeout(0.05)
                    while random.random() < 0.8 and connection.sock.recv(1 << 16):  # mostly he takes his answers
                        pass
        except (OSError, KeyError, ValueError):
            done["connections that ended"] += 1
    return done


def main() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.stdout.write(json.dumps(abuse(float(sys.argv[1]))))


if __name__ == "__main__":
    main()
