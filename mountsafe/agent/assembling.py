"""Arrays and volume groups, assembled from their members without writing to the medium.

md and LVM open their members for writing, and the medium's disk refuses that. Each member is therefore given to them as
a read-only loop device: it can be opened, and every write is refused below. What cannot start without writing (thin
pools, caches, snapshots, RAID inside LVM) gets its members with a copy-on-write layer in the guest's memory above.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent.layers import Graph, Node, Places, protect, size_of
from mountsafe.agent.mounting import CowLayer
from mountsafe.agent.programs import Refused, read_text, run

RAID_MEMBERS = frozenset({b"linux_raid_member", b"isw_raid_member", b"ddf_raid_member"})
FIRMWARE = frozenset({b"isw_raid_member", b"ddf_raid_member"})
PHYSICAL_VOLUME = b"LVM2_member"
MIRRORED = "raid1"
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,127}")
_LVM_CONFIG = """
devices {{ use_devicesfile=0 filter=[{filter} "r|.*|"] scan=["/dev"] external_device_info_source="none"
 multipath_component_detection=0 md_component_detection=0 scan_lvs=0 hints="none" }}
global {{ event_activation=0 use_lvmpolld=0 metadata_read_only={frozen} thin_check_executable=""
 cache_check_executable="" }}
activation {{ udev_sync=0 udev_rules=0 monitoring=0 activation_mode="degraded" {read_only} }}
backup {{ backup=0 archive=0 }}
"""
_COLUMNS = (
    "vg_uuid,vg_name,lv_uuid,lv_name,lv_size,lv_layout,lv_role,lv_health_status,pv_count,vg_missing_pv_count,lv_dm_path"
)


def loop_over(node: Node, *options: str) -> str:
    """Return a read-only loop device over a node, or ""."""
    code, words = run("losetup", "-r", "--show", "-f", *options, node.path)
    return words if code == 0 and words.startswith("/dev/loop") else ""


# --- md ------------------------------------------------------------------------------------------------------------
def assemble_arrays(graph: Graph, members: list[Node]) -> list[Node]:
    """Start the arrays that new members make up; return their nodes."""
    run("modprobe", "-q", "md_mod")
    with suppress(OSError), open("/sys/module/md_mod/parameters/start_dirty_degraded", "w") as file:
        file.write("1")  # it is only read, and what was being written is lost in any case
    groups: dict[tuple[bytes, str], list[Node]] = {}
    for member in members:
        member.done = True
        member.loop = loop_over(member)
        if member.loop:
            key = b"" if member.fstype in FIRMWARE else member.identity.encode()
            groups.setdefault((member.fstype, key.decode("ascii", "replace")), []).append(member)
    found: list[Node] = []
    for (fstype, _), group in groups.items():
        found += _assemble(graph, group, fstype in FIRMWARE)
    return found


def _arrays() -> set[str]:
    return {name for name in os.listdir("/sys/block") if re.fullmatch(r"md\d+", name)}


def _assemble(graph: Graph, group: list[Node], firmware: bool) -> list[Node]:
    before = _arrays()
    free = next(f"/dev/md{number}" for number in range(127, -1, -1) if f"md{number}" not in before)
    command = ("env", "IMSM_NO_PLATFORM=1", "mdadm")
    options = ("--config=/dev/null", "--homehost=mountsafe")
    loops = [member.loop for member in group]
    assemble = ("--assemble", "--run", "--auto=md", *options, free)
    if firmware:
        run(*command, *assemble, *loops)
        run(*command, "--incremental", "--run", *options, free)
    else:
        run(*command, *assemble, "--readonly", *loops)
    nodes = []
    for name in sorted(_arrays() - before):
        if _sysfs(name, "level") not in ("", "container") and _sysfs(name, "array_state") not in ("clear", "inactive"):
            nodes.append(_array_node(graph, name, group))
    if not nodes:
        run("mdadm", "--stop", free)
        nodes.append(_failed_array(graph, group))
    return nodes


def _sysfs(name: str, fact: str) -> str:
    return read_text(f"/sys/block/{name}/md/{fact}")


def _exported(*command: str) -> dict[str, str]:
    _, words = run("env", "IMSM_NO_PLATFORM=1", "mdadm", *command)
    return {key: value for key, _, value in (line.partition("=") for line in words.splitlines())}


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _array_node(graph: Graph, name: str, group: list[Node]) -> Node:
    node = graph.numbered(f"/dev/{name}", wire.VolumeKind.ARRAY, group)
    told = _exported("--detail", "--export", f"/dev/{name}")
    node.name = told.get("MD_NAME", "") or told.get("MD_DEVNAME", "")
    node.uuid = told.get("MD_UUID", "")
    node.wanted = min(_number(_sysfs(name, "raid_disks")), 0xFFFF)
    node.present = max(0, node.wanted - _number(_sysfs(name, "degraded")))
    with suppress(OSError):
        protect(node.path)
        node.size = size_of(node.path)
    if _sysfs(name, "level") == MIRRORED:
        node.places = _mirror_places(name, node.size, group)
    return node


def _mirror_places(name: str, size: int, group: list[Node]) -> Places:
    """Return where a mirror's bytes are: on any member that is in step with the others."""
    for member in group:
        facts = f"dev-{os.path.basename(member.loop)}"
        if _sysfs(name, f"{facts}/state") == "in_sync" and member.places:
            return tuple(member.slice(_number(_sysfs(name, f"{facts}/offset")) * 512, size))
    return ()


def _failed_array(graph: Graph, group: list[Node]) -> Node:
    node = graph.numbered("", wire.VolumeKind.ARRAY, group)
    told = _exported("--examine", "--export", group[0].loop)
    node.name, node.uuid = told.get("MD_NAME", ""), told.get("MD_UUID", "")
    node.wanted, node.present = min(_number(told.get("MD_DEVICES", "")), 0xFFFF), len(group)
    node.trouble = wire.Trouble.INCOMPLETE if node.present < node.wanted else wire.Trouble.REFUSED
    return node


# --- LVM -----------------------------------------------------------------------------------------------------------
class VolumeGroups:
    """What LVM makes of the physical volumes that have been found so far."""

    def __init__(self) -> None:
        self._members: list[Node] = []
        self._devices: dict[str, Node] = {}  # the block device of each member for LVM, as "major:minor"
        self._known: set[str] = set()  # UUIDs of logical volumes that are nodes already
        self._tried: set[str] = set()  # volume groups
        self._frozen = 1  # whether members refuse to be written

    def assemble(self, graph: Graph, members: list[Node]) -> list[Node]:
        """Start what new physical volumes make up; return the nodes."""
        found = self._take(graph, members)
        rows = self._rows()
        names = {row["vg_uuid"]: row["vg_name"] for row in rows}
        twice = {uuid for uuid, name in names.items() if list(names.values()).count(name) > 1}
        for uuid in names.keys() - twice - self._tried:
            self._lvm("vgchange", "-ay", "-K", "-qq", "--select", f"vg_uuid={uuid}", names=names.values())
            if not self._all_active([row for row in rows if row["vg_uuid"] == uuid]):
                self._activate_over_memory(uuid, names.values())
        tables = _tables()
        for row in rows:
            if row["lv_uuid"] not in self._known and "pool" not in row["lv_layout"].split(","):
                self._known.add(row["lv_uuid"])
                found.append(self._node(graph, row, tables, row["vg_uuid"] in twice))
        self._tried |= names.keys()
        return found

    def _take(self, graph: Graph, members: list[Node]) -> list[Node]:
        """Make loop devices over new members. Those that claim to be the same are left out, and told of."""
        known = {member.identity: member for member in self._members}
        refused = []
        for member in members:
            member.done = True
            if member.identity in known:
                node = graph.numbered("", wire.VolumeKind.LOGICAL, [known[member.identity], member])
                node.name, node.trouble = f"PV {member.identity}", wire.Trouble.DUPLICATE
                refused.append(node)
                continue
            member.loop = loop_over(member)
            if member.loop:
                known[member.identity] = member
                self._members.append(member)
                self._devices[_device_number(member.loop)] = member
        return refused

    def _lvm(self, *command: str, names: Iterable[str] = ()) -> list[str]:
        places = [f'"a|^{member.loop}$|",' for member in self._members]
        groups = ",".join(f'"{name}"' for name in names)
        config = _LVM_CONFIG.format(
            filter=" ".join(places),
            frozen=self._frozen,
            read_only=f"read_only_volume_list=[{groups}]" if groups and self._frozen else "",
        )
        return run("lvm", command[0], "--config", config.replace("\n", " "), *command[1:])[1].splitlines()

    def _rows(self) -> list[dict[str, str]]:
        """Return LVM's list of visible logical volumes."""
        columns = _COLUMNS.split(",")
        rows = []
        said = self._lvm("lvs", "--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o", _COLUMNS)
        for line in said:
            values = line.strip().split("|")
            row = dict(zip(columns, values, strict=False))
            # Beside the rows there are warnings, and the names go into a configuration.
            if len(values) == len(columns) and _NAME.fullmatch(row["vg_name"]) and _NAME.fullmatch(row["lv_name"]):
                rows.append(row)
        return rows

    def _all_active(self, rows: list[dict[str, str]]) -> bool:
        return all(
            os.path.exists(row["lv_dm_path"])
            for row in rows
            if "pool" not in row["lv_layout"].split(",") and row["lv_health_status"] != "partial"
        )

    def _activate_over_memory(self, uuid: str, names: Iterable[str]) -> None:
        """Try once more, with members that may be written: to the guest's memory."""
        self._lvm("vgchange", "-an", "-qq", "--select", f"vg_uuid={uuid}")
        for index, member in enumerate(self._members):
            if member.loop.startswith("/dev/mapper/"):
                continue
            layer = CowLayer(member.loop, f"pv{index}")
            try:
                path = layer.start()
            except Refused:
                layer.stop()
                continue
            member.loop = path
            self._devices[_device_number(path)] = member
        self._frozen = 0
        self._lvm("vgchange", "-ay", "-K", "-qq", "--select", f"vg_uuid={uuid}", names=names)

    def _node(self, graph: Graph, row: dict[str, str], tables: dict[str, list[list[str]]], twice: bool) -> Node:
        path = row["lv_dm_path"] if os.path.exists(row["lv_dm_path"]) else ""
        table = tables.get(os.path.basename(path), []) if path else []
        used = {id(self._devices[line[3]]) for line in table if len(line) > 3 and line[3] in self._devices}
        node = graph.numbered(
            path,
            wire.VolumeKind.LOGICAL,
            [member for member in self._members if id(member) in used] or self._members[:],
        )
        node.name, node.uuid, node.size = f"{row['vg_name']}/{row['lv_name']}", row["lv_uuid"], _number(row["lv_size"])
        node.wanted = _number(row["pv_count"])
        node.present = max(0, node.wanted - _number(row["vg_missing_pv_count"]))
        if path:
            with suppress(OSError):
                protect(path)
                node.size = size_of(path)
            if row["lv_health_status"] in ("", "refresh needed"):
                node.present = node.wanted = 0  # nothing that it needs is missing
            node.places = self._places(table)
        elif twice:
            node.trouble = wire.Trouble.DUPLICATE
        else:
            missing = node.present < node.wanted
            node.trouble = wire.Trouble.INCOMPLETE if missing else wire.Trouble.REFUSED
        return node

    def _places(self, table: list[list[str]]) -> Places:
        """Return where the bytes of a volume are that lie in runs on its members, by device-mapper's table."""
        places: list[wire.Place] = []
        for start, length, target, *arguments in table:
            if target == "linear" and len(arguments) == 2 and arguments[0] in self._devices:
                member, at = self._devices[arguments[0]], _number(arguments[1])
                places += member.slice(at * 512, _number(length) * 512, _number(start) * 512)
        return tuple(places)


def _device_number(path: str) -> str:
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _tables() -> dict[str, list[list[str]]]:
    """Return device-mapper's tables: the name of each device, and its lines in words: start, length, target, ..."""
    tables: dict[str, list[list[str]]] = {}
    for line in run("dmsetup", "table")[1].splitlines():
        name, _, words = line.partition(": ")
        if len(fields := words.split()) >= 3:
            tables.setdefault(name, []).append(fields)
    return tables
