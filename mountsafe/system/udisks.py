"""What udisks would do: asked over the system bus, for what `policy check` finds."""

from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, new_method_call

from mountsafe.system.answers import connected
from mountsafe.system.messages import Malformed

_MANAGER = DBusAddress("/org/freedesktop/UDisks2", "org.freedesktop.UDisks2", "org.freedesktop.DBus.ObjectManager")
_BLOCK = "org.freedesktop.UDisks2.Block"
_OFFERS = {
    "org.freedesktop.UDisks2.Filesystem": "mount",
    "org.freedesktop.UDisks2.Encrypted": "unlock",
    "org.freedesktop.UDisks2.Swapspace": "start as swap",
}
TIMEOUT = 20.0
MOST = 16 << 20  # bytes: some thousand for each partition, drive and its jobs


def offers() -> dict[str, list[str]] | None:
    """Return what udisks offers to do with each device node; None if there is no bus or no udisks."""
    try:
        with connected(most=MOST) as connection:
            call = new_method_call(_MANAGER, "GetManagedObjects")
            (objects,) = connection.ask(call, TIMEOUT, "a{oa{sa{sv}}}")
    except (OSError, DBusErrorResponse, Malformed):
        return None
    return dict(_offers_of(interfaces) for interfaces in objects.values() if _BLOCK in interfaces)


def _offers_of(interfaces: dict[str, dict[str, tuple[str, Any]]]) -> tuple[str, list[str]]:
    node = bytes(interfaces[_BLOCK]["Device"][1]).rstrip(b"\0").decode("utf-8", "replace")
    return node, [words for interface, words in _OFFERS.items() if interface in interfaces]
