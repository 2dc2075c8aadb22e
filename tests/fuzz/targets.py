"""What stands at the wall, as functions of bytes: whatever the bytes are, the promise of each holds, or it raises.

A target takes what a hostile guest, medium, device or file of rules might say, and fails by any exception but the one
that the code under it names. `SEEDS` are where a fuzzer begins, and what tests/fuzz/test_seeds.py replays with every
run of the tests; an input that once found a defect is added to them.
"""

import json
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mountsafe import changes, channel, wire
from mountsafe.checkers import CHECKERS
from mountsafe.errors import ExitCode, GuestFault, ProtocolFault, UserError
from mountsafe.filesystem.links import BLOCKED, contained
from mountsafe.filesystem.untrusted import KNOWN_TYPES, fault_of_attributes, fault_of_name
from mountsafe.hotplug.devices import Device
from mountsafe.incidents import Incidents
from mountsafe.jobs.checks import CODES, MAX_LINE, MAX_LINES, Checks, told_of
from mountsafe.limits import MAX_FILE_SIZE
from mountsafe.medium.choosing import choose, folder_names, label_name
from mountsafe.medium.extents import Source, Window, plan
from mountsafe.medium.formats import DESCRIPTOR_BYTES, Fault, Format, detect, fault
from mountsafe.medium.volumes import Volume, checked
from mountsafe.policy import modprobe, polkit, trust, udev
from mountsafe.policy.exempt import of_crypttab, of_fstab
from mountsafe.policy.facts import Facts, facts_of_device
from mountsafe.policy.inside import Seen
from mountsafe.policy.risk import RiskClass
from mountsafe.policy.rules import Policy, Verdict
from mountsafe.session.conversation import GIVEN, SAID, Ready
from mountsafe.session.messages import ANSWERS, ORDERS, REPORTS, Failed, Found, Judged, Mounted, Progress, Request, Verb
from mountsafe.session.order import MountOptions, Order
from mountsafe.session.record import Held, Missing, Mount, Record
from mountsafe.text import printable
from tests import containers
from tests.fuzz import locked

Target = Callable[[bytes], None]


class Supply:
    """Numbers and bytes out of a fuzzer's input; when that is used up, zeros and nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        """The next unsigned number of `size` bytes."""
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def rest(self) -> bytes:
        """All that is left."""
        return self._data[self._at :]


def _visible(text: str) -> bool:
    return printable(text, len(text)) == text


# --- the stream ------------------------------------------------------------------------------------------------------
def decoder(data: bytes) -> None:
    """Frames do not depend on how the stream is cut, and no more than one is held."""
    supply = Supply(data)
    step = supply.number(1) + 1
    stream = supply.rest()
    whole, pieces = wire.Decoder(), wire.Decoder()
    try:
        expected = whole.feed(stream)
    except wire.WireError:
        expected = None
    found: list[wire.Frame] = []
    try:
        for at in range(0, len(stream), step):
            found += pieces.feed(stream[at : at + step])
            assert len(pieces._buffer) <= wire.HEADER.size + wire.MAX_BODY
    except wire.WireError:
        assert expected is None
        return
    assert found == expected
    packed = b"".join(wire.frame(*frame) for frame in found)
    assert packed + bytes(pieces._buffer) == stream


def _again(pack: Callable[..., bytes]) -> Callable[[Any], bytes]:
    return lambda message: pack(*message)


# Every message that the host takes from the guest: how it is unpacked, and packed again.
MESSAGES: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = [
    (wire.unpack_hello, _again(wire.pack_hello)),
    (wire.unpack_error, _again(wire.pack_error)),
    (wire.unpack_volumes, wire.pack_volumes),
    (wire.unpack_mounted, wire.pack_mounted),
    (
        wire.unpack_page,
        lambda page: wire.pack_page(page[0], [wire.pack_entry(e.name, e[1:-1], e.target) for e in page[1]]),
    ),
    (wire.unpack_extents, lambda told: wire.pack_extents(list(told[0]), told[1])),
    (wire.unpack_layout, lambda files: wire.pack_layout([wire.pack_file_layout(list(e), m) for e, m in files])),
    (wire.unpack_xattrs, wire.pack_xattrs),
    (wire.unpack_statfs, wire.pack_statfs),
    (wire.unpack_checked, wire.pack_checked),
]


def messages(data: bytes) -> None:
    """A body is a WireError, or a message that says the same when it is packed and unpacked again."""
    supply = Supply(data)
    unpack, pack = MESSAGES[supply.number(1) % len(MESSAGES)]
    try:
        message = unpack(supply.rest())
    except wire.WireError:
        return
    assert unpack(pack(message)) == message


def _packed(entries: list[wire.Entry]) -> bytes:
    return changes.pack_changed([wire.pack_entry(each.name, each[1:-1], each.target) for each in entries])


# Of `mountsafe.changes` those that the guest takes from the host as well.
CHANGES: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = [
    (changes.unpack_changed, _packed),
    (changes.unpack_change, changes.pack_change),
    (changes.unpack_write, _again(changes.pack_write)),
    (changes.unpack_read, _again(changes.pack_read)),
    (changes.unpack_batch, changes.pack_batch),
    (changes.unpack_results, changes.pack_results),
]


def changed(data: bytes) -> None:
    """The same of what is asked about changes, and of the answers."""
    supply = Supply(data)
    unpack, pack = CHANGES[supply.number(1) % len(CHANGES)]
    try:
        message = unpack(supply.rest())
    except wire.WireError:
        return
    assert unpack(pack(message)) == message


# --- what is believed ------------------------------------------------------------------------------------------------
def entries(data: bytes) -> None:
    """An entry that passes is one name in one folder, of a type that there is, and its link stays in the mount."""
    supply = Supply(data)
    depth = supply.number(1) + 1
    try:
        _, told = wire.unpack_page(supply.rest())
    except wire.WireError:
        return
    for entry in told:
        if fault_of_name(entry.name) or fault_of_attributes(entry):
            continue
        assert 0 < len(entry.name) <= 255
        assert not {0, ord("/")} & set(entry.name)
        assert entry.name not in (b".", b"..")
        assert max(entry.size, entry.blocks) <= MAX_FILE_SIZE
        assert not entry.mode or stat.S_IFMT(entry.mode) in KNOWN_TYPES
        assert bool(entry.target) == (stat.S_ISLNK(entry.mode)) or not entry.mode
        if stat.S_ISLNK(entry.mode):
            _stays(contained(entry.target, depth), depth)
        shown = printable(entry.name)
        assert _visible(shown)
        assert len(shown) <= 255


def _stays(target: bytes, depth: int) -> None:
    assert 0 < len(target) <= wire.MAX_TARGET
    if target.startswith(BLOCKED):
        assert b".." not in target.split(b"/")
        return
    assert not target.startswith(b"/")
    level = depth - 1
    for part in target.split(b"/"):
        level += -1 if part == b".." else part not in (b"", b".")
        assert level >= 0


def extents(data: bytes) -> None:
    """Every byte of a read has one source, and none lies outside the window."""
    supply = Supply(data)
    window = Window(supply.number(4), supply.number(4))
    offset, length = supply.number(5), supply.number(3)
    try:
        told, _ = wire.unpack_extents(supply.rest())
        plan_ = plan(told, window)
    except (wire.WireError, GuestFault):
        return
    at = offset
    pieces = list(plan_.pieces(offset, length))
    for piece in pieces:
        assert piece.offset == at
        assert piece.length > 0
        at += piece.length
        if piece.source == Source.MEDIUM:
            assert window.start <= piece.physical
            assert piece.physical + piece.length <= window.start + window.size
    assert at == offset + length
    place = plan_.place(offset, length)
    if length:
        alone = len(pieces) == 1 and pieces[0].source == Source.MEDIUM
        assert place == (pieces[0].physical if alone else None)


def checks(data: bytes) -> None:
    """What came of a check is a code of ours, and lines of the checker's that can be shown, not too many."""
    try:
        told = wire.unpack_checked(data)
    except wire.WireError:
        return
    result = told_of(_EXT4, CHECKERS["ext4"], told, 60)
    assert result.outcome in CODES
    assert all(_visible(line) and len(line) <= MAX_LINE for line in (*result.words, result.why, result.note))
    assert len(result.words) <= MAX_LINES
    assert json.loads(json.dumps(Checks(1, [result]).facts()))


def volumes(data: bytes) -> None:
    """Volumes lie on the medium; each has a folder's name of its own, and words that can be shown."""
    supply = Supply(data)
    size, number, fstype = supply.number(5), supply.number(1), (None, "vfat")[supply.number(1) & 1]
    try:
        told = wire.unpack_volumes(supply.rest())
    except wire.WireError:
        return
    found = checked(told, size, Incidents())
    for volume in found:
        window = volume.window()
        for offset in (0, window.size // 2, max(0, window.size - 512)):
            for _, physical, length in window.runs(offset, window.size - offset):
                assert 0 <= physical <= physical + length <= size + 511
        assert volume.name
        assert _visible(volume.describe())
        assert json.loads(json.dumps(volume.facts()))
    names = folder_names(found)
    assert len(set(names)) == len(names)
    for name in names:
        _is_folder_name(name)
    assert len({volume.name for volume in found}) == len(found)
    with suppress(UserError):
        for volume in found:
            assert choose(found, volume.name, "vfat")[0].device == volume.device
    with suppress(UserError):
        for volume in choose(found, number if number < 200 else None, fstype):
            _is_folder_name(label_name(volume))


def _is_folder_name(name: str) -> None:
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert _visible(name)
    assert not name.startswith(("-", "."))
    assert len(name.encode()) <= 255


_EXT4 = Volume("sda", "disk", 0, 0, 1 << 20, "ext4", "filesystem", "A", "", "", "", "0")


# --- what a device says ----------------------------------------------------------------------------------------------
def properties(data: bytes) -> None:
    """A device's words make facts, a verdict and conditions that are its own; they break out of no file of rules."""
    supply = Supply(data)
    size, removable = supply.number(6), supply.number(1)
    name, *lines = supply.rest().decode("utf-8", "surrogateescape").split("\n")
    told = {key: printable(value, 500) for key, _, value in (line.partition("=") for line in lines)}
    above = [word for bit, word in ((1, "1"), (2, "removable"), (4, "fixed")) if removable & bit]
    facts = facts_of_device(name, told, size, above, {"usb"} if removable & 8 else ())
    device = Device(name, name, "", (0, 0), told, (), facts)
    assert device.sequence >= 0
    if facts is None:
        return
    decision = Policy.parse([]).decide(facts)
    assert decision.verdict == (Verdict.SANDBOX if facts.external else Verdict.KERNEL)
    text = trust.with_rule("", facts)
    policy = Policy.parse([("trusted", text)])
    assert not policy.broken, policy.broken
    if trust.conditions(facts):
        assert policy.decide(facts).verdict == Verdict.KERNEL
    _generated(policy)
    assert trust.trusted(trust.without_rule(text, facts)) == []


def _generated(policy: Policy) -> None:
    """Generated files have one statement a line, whose quotes are in pairs."""
    lines = udev.render(policy)[udev.FIRST].splitlines()
    assert len(lines) == len(udev.render(Policy([]))[udev.FIRST].splitlines()) + 2 * len(policy.rules)
    for line in lines:
        assert _visible(line)
        if not line.startswith("#"):
            assert line.count('"') % 2 == 0
            assert "\\" not in line
    assert polkit.render(policy)


# --- what is written in files ----------------------------------------------------------------------------------------
SOME_FACTS = (
    Facts(),
    Facts("sdb1", "vfat", "STICK", "12-34", "usb", True, True, "Vendor", "Model", "4C53", 1 << 34, "seat0", False),
    Facts("sda1", "ext4", bus="ata", external=False, size=1 << 40, locked=True),
)


def policy(data: bytes) -> None:
    """A file of rules is a policy or a broken one, which refuses all that is external; both have files for udev."""
    text = data.decode("utf-8", "surrogateescape")
    found = Policy.parse([("fuzzed", text)])
    for facts in SOME_FACTS:
        decision = found.decide(facts)
        assert decision.verdict in Verdict
        if found.broken:
            assert decision.verdict == (Verdict.REFUSE if facts.external else Verdict.KERNEL)
    _generated(found)


def exemptions(data: bytes) -> None:
    """Whatever fstab and crypttab say, what is made of it stays between its quotes, and never matches everything."""
    text = data.decode("utf-8", "surrogateescape")
    found = of_fstab(text) + of_crypttab(text)
    for exemption in found:
        assert any(char.isalnum() for char in exemption.pattern)
        assert not set(exemption.pattern) & set('"\\|\n')
    for line in udev.render(Policy([]), found)[udev.FIRST].splitlines():
        assert line.startswith("#") or line.count('"') % 2 == 0
    modprobe.render(modprobe.classes_of(text) or [RiskClass.UNKNOWN])


def control(data: bytes) -> None:
    """A packet between our own processes is an object or a ProtocolFault; what is understood of it is told the same."""
    try:
        message = channel.decode(data)
    except ProtocolFault:
        return
    assert isinstance(message, dict)
    for messages in (ORDERS, REPORTS, ANSWERS, GIVEN, SAID):
        with suppress(ProtocolFault):
            told: Any = messages.read(message)
            again: Any = json.loads(json.dumps(messages.told(told)))
            assert messages.read(again) == told
    with suppress(ProtocolFault):
        record = Record.restored(message)
        assert Record.restored(json.loads(json.dumps(record.saved()))) == record
        assert json.loads(json.dumps(record.facts()))["source"] == record.source
    with suppress(ProtocolFault):
        assert Request.read(message).do in Verb


# --- a medium that may be a container -------------------------------------------------------------------------------
def container(data: bytes) -> None:
    """What a file is, and what speaks against opening it, is found by bounded reads of places that can be."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset < 1 << 63
        assert 0 <= length <= DESCRIPTOR_BYTES
        return data[offset : offset + length]

    with suppress(UserError):
        detect(read, len(data))
    for wanted in Format:
        if wanted is not Format.RAW:
            why = fault(wanted, read, len(data))
            assert why is None or why in Fault


_WIRE = (decoder, messages, changed, entries, extents, checks, volumes)
_OURS = (*_WIRE, properties, policy, exemptions, control, container)
TARGETS: dict[str, Target] = {**{each.__name__: each for each in _OURS}, **locked.TARGETS}

# --- where a fuzzer begins -------------------------------------------------------------------------------------------
_FILE = wire.pack_entry(b"file", (0o100644, 1, 0, 0, 12, 4096, 8, 0, 0, 0), b"")
_LINK = wire.pack_entry(b"link", (0o120777, 1, 0, 0, 13, 9, 0, 0, 0, 0), b"../a/./b")
_UP = wire.pack_entry(b"up", (0o120777, 1, 0, 0, 14, 9, 0, 0, 0, 0), b"a/../../b")
_PAGE = wire.pack_page(0, [_FILE, _LINK, _UP])
_EXTENTS = wire.pack_extents([wire.Extent(0, 4096, 4096, 1), wire.Extent(8192, 0, 512, 2)], 0)
_DISK = wire.Volume(b"sda", 1, 0, 0, 1 << 20, b"", b"", b"", b"", b"gpt", b"")
_PART = wire.Volume(b"sda1", 2, 1, 4096, 8192, b"vfat", b"filesystem", b"MY STICK", b"12-34", b"", b"part")
_MAPPED = wire.Volume(b"dm-0", 3, 1, 0, 1 << 50, b"ext4", b"filesystem", "Größe\x1b[2J".encode(), b"", b"", b"")
_ARRAY = wire.Volume(b"md1", 4, 1, 0, 4096, b"LVM2_member", b"raid", b"", b"", b"", b"", b"nas:2", (0, 1), 1, 2)
_INNER = _MAPPED._replace(parents=(3,), name=b"vg/\x1b", size=4096, places=(wire.Place(0, 8192, 4096),))
_INSIDE = _PART._replace(device=b"lv2p1", start=512, size=1024, parents=(4,), places=(wire.Place(0, 8704, 1024),))
_VOLUMES = wire.pack_volumes(
    [_DISK, _PART, _MAPPED, _ARRAY._replace(places=(wire.Place(0, 8192, 4096),)), _INNER, _INSIDE]
)
_NAMELESS = _PART._replace(label=b"", fstype=b"..")
_BODIES = (
    wire.pack_hello(1, b"6.1.0"),
    wire.pack_error(5, b"why not"),
    _VOLUMES,
    wire.pack_mounted(wire.Mounted(b"ext4", 1, True, wire.unpack_page(wire.pack_page(0, [_FILE]))[1][0])),
    _PAGE,
    _EXTENTS,
    wire.pack_layout([wire.pack_file_layout([wire.Extent(0, 0, 512, 1)], True)]),
    wire.pack_xattrs([(b"user.a", b"value")]),
    wire.pack_statfs(wire.Statfs(*range(8))),
    wire.pack_checked(wire.Checked(wire.CheckOutcome.ERRORS, wire.MountState.RECOVERED, -9, b"Fix? no\n\x1b[2J")),
)
_ON_1_MIB = b"\x00\x00\x10\x00\x00"
_USB = "sdb1\nID_BUS=usb\nID_VENDOR=A\nID_SERIAL_SHORT=4C\nID_FS_TYPE=vfat\nDISKSEQ=12\nID_INTEGRATION=external"

_ORDER = Order("x.img", 512, False, Format.QCOW2, 4096, "/m", True, 1, 1, MountOptions(partition="vg/a", idle=0.5))
_SEEN = Seen("vg/a", "ext4", "A", "12-34", 4096, ("2",), True)
_FAILED = Failed("no", "try", ExitCode.SOURCE)
_MOUNT = Mount("/m", "sda1", 1, "1", "ext4", "A", "", ("backup-gpt",), True, 5, 7)
_HELD = Held(((1, 2, (0, 45), "mountsafe:x"),), ("/m",), (("/m", 3, 4),), "mountsafe:x")
_MISSING = Missing("sda2", 2, "xfs", "", "no", ExitCode.SOURCE)
_RECORD = Record("x.img", "/m", 9, ("/m",), mounts=(_MOUNT,), missing=(_MISSING,), held=_HELD)

SEEDS: dict[str, list[bytes]] = {
    "decoder": [
        b"\x02" + wire.frame(1, wire.Kind.LIST, b"body") + wire.frame(2, wire.Kind.ERROR),
        b"\x00" + wire.frame(7, 9, b"")[:-1],
        b"\xff" + wire.HEADER.pack(wire.MAX_BODY + 1, 1, 1),
    ],
    "messages": [bytes([number]) + body for number, body in enumerate(_BODIES)],
    "changed": [
        b"\x00" + changes.pack_changed([_FILE, _LINK]),
        b"\x01" + changes.pack_change(changes.Change(changes.Act.SETXATTR, b"a/b", b"user.x", value=b"value")),
        b"\x01"
        + changes.pack_change(changes.Change(changes.Act.SETATTR, handle=3, flags=changes.Flag.SET_MTIME, mtime=5)),
        b"\x02" + changes.pack_write(1, 1 << 40, b"data"),
        b"\x03" + changes.pack_read(1, 4096, wire.MAX_READ),
        b"\x04" + changes.pack_batch([(wire.Kind.CHANGE, b"one"), (wire.Kind.WRITE, b"another")]),
        b"\x05" + changes.pack_results([changes.Result(0, b"done"), changes.Result(28, b"no room")]),
    ],
    "entries": [b"\x00" + _PAGE, b"\x02" + _PAGE],
    "extents": [
        bytes(4) + b"\x00\x00\x40\x00" + bytes(5) + b"\x00\x40\x00" + _EXTENTS,
        b"\x00\x00\x02\x00\x00\x00\x20\x00" + bytes(4) + b"\x10\x00\x00\x10" + _EXTENTS,
    ],
    "checks": [_BODIES[-1], wire.pack_checked(wire.Checked(2, 0, 1, b"\xff" * 900 + b"\n" * 900 + b"x\r\n" * 900))],
    "volumes": [
        _ON_1_MIB + b"\xff\x00" + _VOLUMES,
        _ON_1_MIB + b"\x01\x01" + _VOLUMES,
        _ON_1_MIB + b"\xff\x00" + wire.pack_volumes([_NAMELESS]),
        _ON_1_MIB + b"\xff\x00" + wire.pack_volumes([_NAMELESS._replace(fstype=b"")]),
    ],
    "properties": [bytes(6) + b"\x01" + _USB.encode(), b'\x00\x00\x00\x00\x10\x00\x08loop0\nID_MODEL=a"b|\x1b[\xff'],
    "policy": [
        b'version = 1\n[[rule]]\nname = "n"\nverdict = "kernel"\nbus = "usb"\nserial = ["4C53", "a*"]\n',
        b'[[rule]]\nverdict = "refuse"\nrisk = ["low", "unknown"]\nmin_size = "1 GiB"\nlocked = true\nhide = true\n',
        b'[[rule]]\nverdict = "sandbox"\nowner = "image"\nexternal = false\nlabel = ""\nreason = "why"\n',
        b"version = 2",
        b"rule = " + b"[" * 2000,
        b"version = " + b"1" * 5000,
        b'[[rule]]\nverdict = "sandbox"\nmin_size = "' + b"1" * 5000 + b'"\n',
        b"rule = 1979-05-27T07:32:00Z\n[a.b]\n",
    ],
    "exemptions": [
        b"UUID=0a-1b / ext4 defaults 0 1\nLABEL=my\\040data /d xfs\n# no\n/dev/sdb1 /mnt auto\n",
        b'swap /dev/disk/by-id/a"b none\nc PARTLABEL="x y" -\nd /dev/disk/by-uuid/AA-BB -\n',
        b"--strict` (low, unknown)",
    ],
    "container": [
        containers.qcow2(backing=b"x")[:200],
        containers.qcow2()[:200],
        containers.vmdk()[:2048],
        containers.vmdk_text('RW 1 FLAT "x"').encode(),
        containers.vdi()[:100],
        containers.vhd(),
        containers.vhd(4),
        containers.vhdx(parent=True),
    ],
    "control": [
        *(json.dumps(SAID.told(Ready("ext4", 0, 0, True, 0o755))).encode(), b"[1, 2]", b"{", b"\xff\xfe{\x00}\x00"),
        *(json.dumps(ORDERS.told(each)).encode() for each in (_ORDER, Judged((0, 1), "no"))),
        *(json.dumps(REPORTS.told(each)).encode() for each in (Found((_SEEN,)), Progress("x"), _FAILED)),
        json.dumps(ANSWERS.told(Mounted(_RECORD))).encode(),
        json.dumps(_RECORD.saved()).encode(),
        b'{"do": "unmount", "force": true}',
        b'{"version": 99, "source": 1}',
    ],
} | locked.SEEDS
