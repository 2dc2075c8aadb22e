"""What is on the medium: its disk, and what every layer on it leads to: partitions, arrays, logical volumes."""

import errno
import fcntl
import os
import time
from contextlib import suppress

from mountsafe import wire
from mountsafe.agent import copies, sectors, sessions, tables
from mountsafe.agent.assembling import PHYSICAL_VOLUME, RAID_MEMBERS, VolumeGroups, assemble_arrays, loop_over
from mountsafe.agent.claimed import claimed
from mountsafe.agent.layers import Graph, Node, size_of
from mountsafe.agent.programs import Refused, read_text
from mountsafe.agent.signatures import AMBIVALENT, blkid, blkid_all

MEDIUM_ADDRESS = ":0:8:0"  # where the host plugs the medium: SCSI channel, target and LUN
BLKRRPART = 0x125F  # include/uapi/linux/fs.h
OLD_RESERVED = 64 << 10  # bytes (MD_RESERVED_BYTES of include/uapi/linux/raid/md_p.h)
FOUND_IN = "/run/mountsafe/volumes"  # links to the devices of what was found


def find_medium(seconds: float = 10.0, disks: str = "/sys/class/scsi_disk") -> str:
    """Wait until the kernel has the medium's disk and return its name, for example "sdc"."""
    end = time.monotonic() + seconds
    while True:
        for device in os.listdir(disks):
            names: list[str] = []
            with suppress(FileNotFoundError):  # the kernel announces a disk before its block device
                names = os.listdir(f"{disks}/{device}/device/block") if device.endswith(MEDIUM_ADDRESS) else []
            if names and _opens(f"/dev/{names[0]}"):
                return names[0]
        if time.monotonic() > end:
            raise Refused(errno.ENODEV, "the medium did not appear in the appliance")
        time.sleep(0.005)


def _opens(device: str) -> bool:
    """Whether a disk can be opened: at first it has no node, then one that leads nowhere."""
    try:
        os.close(os.open(device, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENXIO)
    return True


def _small_iso9660(read: copies.Read) -> dict[str, bytes]:
    """Return what blkid(8) would say of an ISO 9660 image (ECMA-119, 8.4); nothing if it is none.

    On a disk of up to 1.44 MB with a partition table it looks for none.
    """
    block = read(sessions.DESCRIPTOR * sessions.SECTOR, sessions.SECTOR)
    if block[1:6] != b"CD001":
        return {}
    when = block[830:846] if block[830:846].strip(b"0\0 ") else block[813:829]
    parts = (when[:4], *(when[at : at + 2] for at in range(4, 16, 2)))
    facts = {"ID_FS_TYPE": b"iso9660", "ID_FS_USAGE": b"filesystem", "ID_FS_LABEL": block[40:72].rstrip(b" \0")}
    return facts | ({"ID_FS_UUID": b"-".join(parts)} if when.isdigit() else {})


def _look(node: Node, facts: dict[str, bytes] | None = None) -> None:
    """Learn a device's size and what is on it; `facts`: what blkid(8) has said of it already."""
    node.size = node.size or size_of(node.path)
    node.facts = blkid(node.path.removeprefix("/dev/")) if facts is None else facts
    if node.facts.get(AMBIVALENT) and node.fstype:
        node.resorts |= wire.Resort.AMBIGUOUS
    with open(node.path, "rb") as file:
        read = copies.reader(file.fileno())
        if node.kind == wire.VolumeKind.DISK and not node.fstype:
            node.facts |= _small_iso9660(read)
        node.claimed = claimed(node.fstype, read, node.size)
        if node.fstype == b"iso9660":
            _find_session(node, read)
    node.claimed = node.claimed or _cut_partition(node)


def _find_session(node: Node, read: copies.Read) -> bool:
    """Learn of a disc's last session; return whether there is one that is not at its beginning."""
    session = sessions.last(read, node.size)
    if session is None or not session.start:
        return False
    told = blkid(node.path.removeprefix("/dev/"), "-O", str(session.start * sessions.SECTOR))
    node.facts |= {key: value for key, value in told.items() if key.startswith("ID_FS_")}
    node.resorts |= wire.Resort.LAST_SESSION if session.earlier else 0
    return True


def _cut_partition(node: Node) -> int:
    """Return the size of a partition by its table, if that ends after the disk; else 0."""
    told = node.facts.get("ID_PART_ENTRY_SIZE", b"")
    if node.kind != wire.VolumeKind.PARTITION or not told.isdigit() or len(told) > 17:
        return 0
    size = int(told) * 512
    return size if node.start + size > node.parents[0].size and size > node.size else 0


def _guess(graph: Graph) -> None:
    """Where nothing was recognised, and nothing is in it: it is what a copy that it keeps says."""
    outer = {id(parent) for node in graph.nodes for parent in node.parents}
    for node in graph.nodes:
        if node.fstype or not node.path or id(node) in outer:
            continue
        with open(node.path, "rb") as file:
            read = copies.reader(file.fileno())
            guess = copies.guess(read, node.size)
            if not guess and node.kind == wire.VolumeKind.DISK and _find_session(node, read):
                continue
        if guess:
            node.resorts |= guess.resorts
            node.facts |= {"ID_FS_TYPE": guess.fstype, "ID_FS_USAGE": b"filesystem", "ID_PART_TABLE_TYPE": b""}
            node.facts |= {"ID_FS_LABEL": guess.label, "ID_FS_UUID": guess.uuid}


def _look_beneath(graph: Graph) -> None:
    """Where a member of an array or a group led to nothing that is known: it may be a signature that was left over."""
    for node in graph.nodes:
        if not node.path or node.fstype not in RAID_MEMBERS | {PHYSICAL_VOLUME}:
            continue
        inner = [child for child in graph.nodes if node in child.parents]
        if any(child.fstype or child.facts.get("ID_PART_TABLE_TYPE") or _is_wanting(child) for child in inner):
            continue
        facts = blkid(node.path.removeprefix("/dev/"), "-u", "noraid")
        if facts.get("ID_FS_USAGE") == b"filesystem":
            node.facts = facts
            node.resorts |= wire.Resort.AMBIGUOUS


def _is_wanting(node: Node) -> bool:
    """Whether a volume did not start because of what is not on the medium, or is there twice."""
    return node.trouble not in (wire.Trouble.NONE, wire.Trouble.REFUSED)


def _restore_table(parent: Node, disk: str) -> list[int]:
    """Have the kernel take partitions that it does not find by itself; return the numbers of the absent ones."""
    with open(f"/dev/{disk}", "rb") as file:
        read, fd = copies.reader(file.fileno()), file.fileno()
        sector = sectors.NATIVE
        if sectors.partitions_of(disk) or parent.fstype or not tables.is_protective(read):
            known = parent.facts.get("ID_PART_TABLE_TYPE") == b"dos"
            return tables.beyond(read, parent.size, sector) if known else []
        table = tables.gpt(read, parent.size, sector)
        if table is None:
            return []
        parent.resorts |= table.resorts
        parent.claimed = table.size
        parent.facts["ID_PART_TABLE_TYPE"] = b"gpt"
        there = [part for part in table.parts if part.start < parent.size]
        for part in there:
            with suppress(OSError):  # it overlaps another one
                tables.add(fd, part.number, part.start, min(part.length, parent.size - part.start))
        return [part.number for part in table.parts if part not in there]


def _partitions(graph: Graph, parent: Node, disk: str) -> list[Node]:
    """Add the partitions that are found on `disk`, in the order of their numbers; return them."""
    wished = sectors.wished(graph.nodes[0].device)
    told = blkid_all([name for name, *_ in sectors.partitions_of(disk)])
    table = None
    if parent.kind != wire.VolumeKind.DISK or not parent.fstype:
        known = any(sectors.is_known(facts) for facts in told.values())
        table = sectors.other_table(f"/dev/{disk}", wished, known, blkid)
    absent: list[int] = []
    if table is None:
        absent = _restore_table(parent, disk)
    else:
        sectors.adopt(disk, table)
        parent.facts |= {key: value for key, value in table.facts.items() if key.startswith("ID_PART_TABLE_")}
    found = []
    hybrid = _hybrid_size(parent)
    for name, number, start, size in sectors.partitions_of(disk):
        node = Node(f"/dev/{name}", wire.VolumeKind.PARTITION, number, [parent])
        node.start, node.size = start, size
        node.inside = hybrid is not None and (not start or start + size <= hybrid)
        if parent.kind != wire.VolumeKind.DISK:
            node.device = f"{parent.device}p{number}"
        if table is not None:
            # Another virtual machine has a partition of the kernel's name elsewhere until it has searched, too.
            node.device = f"{parent.device}s{table.sector}p{number}"
            node.sector = 0 if table.sector == wished[0] else table.sector
        if not graph.add(node):
            break
        _look(node, told.get(name) if table is None else blkid(name) | table.entry(number))
        node.places = tuple(parent.slice(start, size))
        found.append(node)
    for number in absent:
        node = Node("", wire.VolumeKind.PARTITION, number, [parent])
        node.device, node.trouble = f"{parent.device}p{number}", wire.Trouble.CUT_OFF
        graph.add(node)
    return found


def _hybrid_size(disk: Node) -> int | None:
    """Return the bytes of an image of a disc that lies on a whole disk, beside a partition table; None if none does."""
    if disk.kind != wire.VolumeKind.DISK or disk.fstype not in (b"iso9660", b"udf"):
        return None
    with open(disk.path, "rb") as file:
        session = sessions.last(copies.reader(file.fileno()), disk.size)
    return (session.start + session.blocks) * sessions.SECTOR if session else 0


def _is_divided(node: Node) -> bool:
    """Whether a volume that is not the disk has a partition table of its own."""
    inside = node.facts.get("ID_PART_ENTRY_TYPE", b"") not in sectors.EXTENDED
    return bool(node.facts.get("ID_PART_TABLE_TYPE")) and not node.fstype and inside and bool(node.path)


def _divided(graph: Graph, node: Node) -> list[Node]:
    """Have the kernel look for partitions on a volume, by a loop device over it."""
    node.done = True
    loop = loop_over(node, "--partscan")
    return _partitions(graph, node, os.path.basename(loop)) if loop else []


def _add(graph: Graph, nodes: list[Node]) -> list[Node]:
    """Add arrays or logical volumes, and learn what is on those that started; return them."""
    added = [node for node in nodes if graph.add(node)]
    for node in added:
        if node.path:
            _look(node)
    return added


def _next_layer(graph: Graph, groups: VolumeGroups) -> list[Node]:
    """Follow one kind of layer that was not followed yet, the lowest first; return what it led to."""
    todo = [node for node in graph.nodes if not node.done and node.path]
    for node in todo:
        if node.kind != wire.VolumeKind.DISK and _is_divided(node):
            return _divided(graph, node)
    if members := [node for node in todo if node.fstype in RAID_MEMBERS]:
        return _add(graph, assemble_arrays(graph, members))
    if members := [node for node in todo if node.fstype == PHYSICAL_VOLUME]:
        return _add(graph, groups.assemble(graph, members))
    return []


def _is_a_partitions(disk: Node, parts: list[tuple[str, int, int, int]]) -> bool:
    """Whether the superblock that makes a disk a member of an array is at the end of its last partition, and is its.

    Format 0.90 does not tell where the member begins. blkid(8) of util-linux 2.38 looks at that, 2.41 does not.
    """
    if disk.fstype != b"linux_raid_member" or not disk.facts.get("ID_FS_VERSION", b"").startswith(b"0.9"):
        return False
    return any(start + _old_superblock(size) == _old_superblock(disk.size) for _, _, start, size in parts)


def _old_superblock(size: int) -> int:
    """Return where a member of this size has a superblock of format 0.90."""
    return size // OLD_RESERVED * OLD_RESERVED - OLD_RESERVED


def _search(name: str) -> Graph:
    """Follow every layer of the medium to its end, within the graph's bounds."""
    graph = Graph()
    disk = Node(f"/dev/{name}", wire.VolumeKind.DISK, 0, [])
    graph.add(disk)
    # EINVAL: the disk is too small to be partitioned; EBUSY: in use, so it was scanned
    with open(disk.path, "rb") as file, suppress(OSError):
        fcntl.ioctl(file, BLKRRPART)  # returns when the kernel's scan for partitions is complete
    _look(disk)
    if disk.fstype in RAID_MEMBERS and _is_a_partitions(disk, sectors.partitions_of(name)):
        disk.facts = {key: value for key, value in disk.facts.items() if not key.startswith("ID_FS_")}
    disk.places = (wire.Place(0, 0, disk.size),)
    if disk.fstype not in RAID_MEMBERS:
        _partitions(graph, disk, name)
    groups = VolumeGroups()
    while any(_followable(node) for node in graph.nodes):
        if graph.full:
            graph.end()
            break
        _next_layer(graph, groups)
    if disk.fstype in RAID_MEMBERS and not any(node.path for node in graph.nodes[1:]):
        _partitions(graph, disk, name)  # an old superblock, of an array that is no more
    _look_beneath(graph)
    _guess(graph)
    return graph


def _followable(node: Node) -> bool:
    if node.done or not node.path:
        return False
    if node.fstype in RAID_MEMBERS or node.fstype == PHYSICAL_VOLUME:
        return True
    return node.kind != wire.VolumeKind.DISK and _is_divided(node)


def probe() -> list[wire.Volume]:
    """Return what is on the medium, and have a device for each of it that can be mounted (see `device_of`)."""
    name = find_medium()
    os.makedirs(FOUND_IN, exist_ok=True)
    with open(f"{FOUND_IN}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may ask as well
        answer = f"{FOUND_IN}/answer-{name}-{read_text(f'/sys/block/{name}/diskseq')}"
        with suppress(FileNotFoundError), open(answer, "rb") as file:
            return wire.unpack_volumes(file.read())
        graph = _search(name)
        told = graph.volumes()
        for node, volume in zip(graph.nodes, told, strict=True):
            if node.path and node.path != f"/dev/{node.device}":
                _remember(node, bool(volume.places) or node.lies_on_disk)
        with open(answer, "wb") as file:
            file.write(wire.pack_volumes(told))
        return told


def _remember(node: Node, placed: bool) -> None:
    """Keep where the device of a volume is, and whether the host was told where its bytes are."""
    link = f"{FOUND_IN}/{node.device}"
    with suppress(FileNotFoundError):
        os.remove(link)
    os.symlink(node.path, link)
    if placed:
        os.makedirs(f"{FOUND_IN}/placed", exist_ok=True)
        os.close(os.open(f"{FOUND_IN}/placed/{node.device}", os.O_CREAT | os.O_WRONLY))


def device_of(volume: str) -> tuple[str, bool]:
    """Return the path of a volume's device, and whether its bytes are the medium's, at places that the host knows.

    Another virtual machine may have told of it: then it is looked for here first.
    """
    link = f"{FOUND_IN}/{volume}"
    for searched in (False, True):
        if os.path.exists(f"/sys/class/block/{volume}"):
            return f"/dev/{volume}", True
        if os.path.islink(link):
            return os.path.realpath(link), os.path.exists(f"{FOUND_IN}/placed/{volume}")
        if not searched:
            probe()
    raise Refused(errno.ENODEV, "it is not on the medium any more")
