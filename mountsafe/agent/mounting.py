"""Mount the medium read-only, whatever its journal needs, without a byte written to it."""

import errno
import itertools
import os
import re
import struct
import sys
from contextlib import suppress
from typing import NamedTuple

from mountsafe import fsoptions, wire
from mountsafe.agent import copies
from mountsafe.agent.claimed import claimed, too_large_blocks
from mountsafe.agent.patched import Patched, replaced
from mountsafe.agent.programs import Program, Refused, run

COW_BYTES = 64 << 20  # what a journal's replay may write, kept in the guest's memory
COW_CHUNK = 4096
KERNEL_LINES = 3  # the last ones of its log, in the answer to a mount that failed

READ_ONLY = "ro,nosuid,nodev,noexec,noatime"
# blkid's name -> the (kernel type, options) to try in turn
MOUNT_AS: dict[bytes, list[tuple[str, str]]] = {
    # A superblock can ask for a kernel panic at the first error that is found.
    b"ext2": [("ext2", "errors=continue")],
    b"ext3": [("ext3", "errors=continue")],
    b"ext4": [("ext4", "errors=continue")],
    b"ext4dev": [("ext4", "errors=continue")],
    b"ntfs": [("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8")],
    b"ntfs3": [("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8")],
    b"vfat": [("vfat", "utf8,umask=022,tz=UTC")],
    b"msdos": [("msdos", "umask=022,tz=UTC")],
    b"exfat": [("exfat", "iocharset=utf8,umask=022")],
    b"iso9660": [("iso9660", "iocharset=utf8"), ("udf", "iocharset=utf8")],
    b"udf": [("udf", "iocharset=utf8"), ("iso9660", "iocharset=utf8")],
    # With iocharset alone hfs garbles every byte above 0x7F; without either, names are MacRoman as they are.
    b"hfs": [("hfs", "codepage=macroman,iocharset=utf8"), ("hfs", "")],
    b"hfsplus": [("hfsplus", "nls=utf8")],
    b"hfsx": [("hfsplus", "nls=utf8")],
    b"befs": [("befs", "iocharset=utf8")],
    b"xfs": [("xfs", "nouuid")],
    b"ufs": [("ufs", f"ufstype={kind}") for kind in ("ufs2", "44bsd", "sun", "sunx86", "old")],
    b"sysv": [("sysv", ""), ("v7", "")],
    b"ocfs2": [("ocfs2", "heartbeat=none,localflocks")],
    b"gfs2": [("gfs2", "lockproto=lock_nolock,spectator"), ("gfs2", "lockproto=lock_nolock")],
}
# Modules that a driver asks for by a name that they do not have.
NEEDS = {"hfs": ("mac-roman",)}
_MAC = re.compile("=mac([a-z]+)")
# Journals that need a writable device to replay, and the option that does without.
WITHOUT_REPLAY = {
    b"ext2": "noload", b"ext3": "noload", b"ext4": "noload", b"xfs": "norecovery", b"btrfs": "rescue=nologreplay",
    b"f2fs": "norecovery", b"nilfs2": "norecovery", b"reiserfs": "nolog", b"gfs2": "spectator", b"jfs": "",
}  # fmt: skip


def _mount(device: str, where: str, fstype: str, options: str) -> str:
    """Mount read-only; return "" or what mount(8) and the kernel said."""
    return attempt(device, where, fstype, READ_ONLY, options).complaint


class Said(NamedTuple):
    """What came of a mount(8): `complaint` is "" if it is mounted; `kernel` are the lines logged meanwhile."""

    complaint: str
    kernel: list[str]


def attempt(device: str, where: str, fstype: str, common: str, options: str, program: Program = run) -> Said:
    """Mount with options of all types, which say whether it is read-only, and those of this one.

    `program` runs mount(8), for callers that have a deadline.
    """
    if fstype == "ntfs-3g":
        options += ",allow_other"
    for module in (*NEEDS.get(fstype, ()), *(f"mac-{name}" for name in _MAC.findall(options))):
        run("modprobe", "-q", module)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        options = ",".join(filter(None, (common, options)))
        code, words = program("mount", "-n", "-t", fstype, "-o", options, device, where)
        kernel = _kernel_lines(log)
        if code == 0:
            return Said("", kernel)
        lines = [line.removeprefix(f"mount: {where}: ") for line in words.splitlines() if "dmesg(1)" not in line]
        return Said(" ".join(lines + _last_words(kernel)) or f"mount failed with {code}", kernel)
    finally:
        os.close(log)


def _kernel_lines(log: int) -> list[str]:
    """Return what the kernel has logged: mount(8) knows only the errno, the driver says what is wrong."""
    lines: list[str] = []
    with suppress(OSError):  # EAGAIN: that was all
        while True:
            _, _, message = os.read(log, 8192).partition(b";")
            lines.append(message.partition(b"\n")[0].decode("utf-8", "replace"))
    return lines


def _last_words(lines: list[str]) -> list[str]:
    return [f"[{line}]" for line in lines[-KERNEL_LINES:]]


class CowLayer:
    """A dm-snapshot over a read-only device: what a journal's replay writes goes to a bounded file in memory."""

    def __init__(self, device: str, tag: str) -> None:
        self.device = device
        self._folder = f"/run/mountsafe/cow-{tag}"
        self._store = f"{self._folder}/store"
        self._name = f"mountsafe-{tag}"
        self._loop = ""

    def start(self) -> str:
        """Return the path of the writable device."""
        os.makedirs(self._folder, exist_ok=True)
        code, words = run("mount", "-n", "-t", "tmpfs", "-o", f"size={COW_BYTES},mode=0700", "tmpfs", self._folder)
        if code:
            raise Refused(errno.ENOMEM, f"no memory for a copy-on-write layer: {words}")
        with open(self._store, "wb") as file:
            file.truncate(COW_BYTES)
        code, self._loop = run("losetup", "--show", "-f", self._store)
        with open(self.device, "rb") as file:
            sectors = file.seek(0, os.SEEK_END) // 512
        table = f"0 {sectors} snapshot {self.device} {self._loop} P {COW_CHUNK // 512}"
        code, words = run("dmsetup", "create", self._name, "--table", table)
        if code:
            raise Refused(errno.EIO, f"no copy-on-write layer: {words}")
        return f"/dev/mapper/{self._name}"

    def stop(self) -> None:
        """Undo `start`, as far as it came."""
        if self._loop:
            run("dmsetup", "remove", self._name)
            run("losetup", "-d", self._loop)
            self._loop = ""
        if os.path.exists(self._store):
            run("umount", "-n", self._folder)

    def changed(self) -> list[tuple[int, int]]:
        """Return (start, end) of each range of the device that the layer replaces, in bytes, sorted.

        Reads dm-snapshot's persistent exception store (linux/drivers/md/dm-snap-persistent.c): a header chunk, then
        areas of one metadata chunk of (old chunk, new chunk) pairs and the data chunks that it describes.
        """
        os.sync()
        ranges: list[tuple[int, int]] = []
        per_area = COW_CHUNK // 16
        with open(self._store, "rb") as file:
            area = 0
            while True:
                file.seek(COW_CHUNK * (1 + area * (per_area + 1)))
                chunk = file.read(COW_CHUNK)
                for old, new in struct.iter_unpack("<QQ", chunk):
                    if new == 0:
                        return sorted(ranges)
                    ranges.append((old * COW_CHUNK, (old + 1) * COW_CHUNK))
                if len(chunk) < COW_CHUNK:
                    return sorted(ranges)
                area += 1


class Mount(NamedTuple):
    """How something was mounted: `changed` are the (start, end) of its device that are not what the medium has."""

    fstype: str
    state: int
    resorts: int
    changed: list[tuple[int, int]]


class Target(NamedTuple):
    """What is to be mounted, as what, and where. `whole`: the bytes that it should have, if they are more than `size`.

    `layer` and `patched` are what may be put above its device; who asks ends them after unmounting. `options`: those
    that a person gave.
    """

    device: str
    fstype: bytes
    where: str
    layer: CowLayer
    patched: Patched
    size: int = 0
    whole: int = 0
    options: tuple[str, ...] = ()


def mount_medium(target: Target) -> Mount:
    """Mount as it is; then with what its type has as a last resort (`copies.ways`).

    Of something whose end is missing the end is made up, of bytes that cannot be read: drivers insist on it.
    """
    try:
        fsoptions.check(target.options, [os.fsdecode(target.fstype)])
    except fsoptions.NotTaken as wrong:
        raise Refused(errno.EINVAL, wrong.message) from wrong
    os.makedirs(target.where, exist_ok=True)
    with open(target.device, "rb") as file:
        read, size = copies.reader(file.fileno()), file.seek(0, os.SEEK_END)
        whole = claimed(target.fstype, read, size)
        target = target._replace(size=size)
        first = copies.before(target.fstype, read, size) or copies.Way(0)
        try:
            return _mount_so(target, first)
        except Refused as refused:
            complaint = refused
        target = target._replace(whole=whole)
        for way in itertools.chain([first] if whole else [], copies.ways(target.fstype, read, whole or size, first)):
            sys.stderr.write(f"agent: a last resort: {way.resorts:#x} {way.options}\n")
            try:
                return _mount_so(target, way)
            except Refused as refused:
                sys.stderr.write(f"agent: {refused.message}\n")
        if why := too_large_blocks(target.fstype, read, os.sysconf("SC_PAGE_SIZE")):
            raise Refused(complaint.errno, why)
        raise complaint


def _mount_so(target: Target, way: copies.Way) -> Mount:
    """Mount in one way."""
    patches, fstype = way.patches, target.fstype
    if target.whole:
        patches = copies.missing_end(fstype, target.size, target.whole) + patches
    target.layer.device = target.device
    if patches:
        size = copies.reach(target.size, target.whole, patches)
        target.layer.device = target.patched.start(target.device, size, patches)
    more = [way.options, *(f"device={each}" for each in copies.other_devices(target.device) if fstype == b"btrfs")]
    try:
        kernel_type, state, changed = _mount_or_replay(target.layer, fstype, target.where, _attempts(target, more))
    except Refused:
        target.patched.stop()
        raise
    resorts = way.resorts
    left_out = fsoptions.WITHOUT_REPLAY.intersection(target.options) and fstype in copies.EXT
    if state == wire.MountState.CLEAN and (way.unreplayed or (left_out and not copies.is_clean(target.device))):
        state = wire.MountState.SKIPPED
    elif state == wire.MountState.SKIPPED and fstype in copies.EXT and copies.is_clean(target.device):
        state, resorts = wire.MountState.CLEAN, resorts | wire.Resort.JOURNAL_UNREADABLE
    return Mount(kernel_type, state, resorts, sorted(changed + replaced(patches)))


def _attempts(target: Target, more: list[str]) -> list[tuple[str, str]]:
    """Return (kernel type, options) of what is tried in turn: what does not take the given options is left out."""
    options = MOUNT_AS.get(target.fstype, [(target.fstype.decode("ascii", "replace"), "")])
    return [
        (kind, fsoptions.merged(kind, ",".join(filter(None, (plain, *more))), target.options))
        for kind, plain in options
        if fsoptions.taken(target.options, kind) == target.options
    ]


def _mount_or_replay(
    layer: CowLayer, fstype: bytes, where: str, attempts: list[tuple[str, str]]
) -> tuple[str, int, list[tuple[int, int]]]:
    """Mount the layer's device; return (kernel type, MountState, ranges of it that differ from the medium).

    First as it is. A journal that needs a replay is replayed into the layer; where that fails too, without replay.
    """
    complaint = ""
    for kernel_type, options in attempts:
        said = _mount(layer.device, where, kernel_type, options)
        if not said:
            return kernel_type, wire.MountState.CLEAN, []
        complaint = complaint or said
    if fstype not in WITHOUT_REPLAY:
        raise Refused(errno.EINVAL, complaint)
    kernel_type, options = attempts[0]
    try:
        said = _mount(layer.start(), where, kernel_type, options)
        if not said:
            return kernel_type, wire.MountState.RECOVERED, layer.changed()
        sys.stderr.write(f"agent: {said}\n")
    except Refused as refused:
        sys.stderr.write(f"agent: {refused.message}\n")  # the last resort below needs no layer
    layer.stop()
    skip = ",".join(filter(None, (options, WITHOUT_REPLAY[fstype])))
    if not _mount(layer.device, where, kernel_type, skip):
        return kernel_type, wire.MountState.SKIPPED, []
    raise Refused(errno.EINVAL, complaint)
