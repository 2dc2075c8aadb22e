"""What udisks would do: asked over the system bus, for what `policy check` finds."""

from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, new_method_call
from jeepney.io.blocking import open_dbus_connection

from mountsafe.system.answers import ask

_MANAGER = DBusAddress("/org/freedesktop/UDisks2", "org.freedesktop.UDisks2", "org.freedesktop.DBus.ObjectManager")
_BLOCK = "org.freedesktop.UDisks2.Block"
_OFFERS = {
    "org.freedesktop.UDisks2.Filesystem": "mount",
    "org.freedesktop.UDisks2.Encrypted": "unlock",
    "org.freedesktop.UDisks2.Swapspace": "start as swap",
}
TIMEOUT = 20.0


def offers() -> dict[str, list[str]] | None:
    """Return what udisks offers to do with each device node; None if there is no bus or no udisks."""
    try:
        with open_dbus_connection(bus="SYSTEM") as connection:
            (objects,) = ask(connection, new_method_call(_MANAGER, "GetManagedObjects"), TIMEOUT)
    except (OSError, KeyError, DBusErrorResponse):
        return None
    return dict(_offers_of(interfaces) for interfaces in objects.values() if _BLOCK in interfaces)


def _offers_of(interfaces: dict[str, dict[str, tuple[str, Any]]]) -> tuple[str, list[str]]:
    node = bytes(interfaces[_BLOCK]["Device"][1]).rstrip(b"\0").decode("utf-8", "replace")
    return node, [words for interface, words in _OFFERS.items() if interface in interfaces]
