"""`org.mountsafe.Manager1` as D-Bus describes it: its introspection, and media as variants."""

from collections.abc import Mapping
from typing import Any

from mountsafe.daemon.address import NAME

INTROSPECTION = f"""\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
  <interface name="{NAME}">
    <method name="ListMedia"><arg type="aa{{sv}}" name="media" direction="out"/></method>
    <method name="Open"><arg type="s" name="device" direction="in"/></method>
    <method name="OpenAs">
      <arg type="s" name="device" direction="in"/>
      <arg type="s" name="fstype" direction="in"/>
      <arg type="u" name="pim" direction="in"/>
      <arg type="b" name="hidden" direction="in"/>
    </method>
    <method name="Eject"><arg type="s" name="device" direction="in"/></method>
    <method name="Unlock">
      <arg type="s" name="device" direction="in"/>
      <arg type="s" name="form" direction="in"/>
      <arg type="h" name="key" direction="in"/>
    </method>
    <method name="Lock"><arg type="s" name="device" direction="in"/></method>
    <method name="Trust">
      <arg type="s" name="device" direction="in"/>
      <arg type="s" name="verdict" direction="in"/>
    </method>
    <method name="Untrust"><arg type="s" name="device" direction="in"/></method>
    <method name="Reload"/>
    <method name="Status"><arg type="a{{sv}}" name="status" direction="out"/></method>
    <signal name="MediumAdded"><arg type="a{{sv}}" name="medium"/></signal>
    <signal name="MediumChanged"><arg type="a{{sv}}" name="medium"/></signal>
    <signal name="MediumRemoved"><arg type="s" name="device"/></signal>
    <signal name="Incident">
      <arg type="s" name="device"/>
      <arg type="s" name="kind"/>
      <arg type="s" name="words"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg type="s" name="xml" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer"><method name="Ping"/></interface>
</node>
"""

_TYPES: dict[type, str] = {str: "s", int: "u", list: "as"}
Told = Mapping[str, str | int | list[str]]


def variants(told: Told) -> dict[str, tuple[str, Any]]:
    """Return what is told of a medium, or of the daemon, as D-Bus has it."""
    return {key: (_TYPES[type(value)], value) for key, value in told.items()}
