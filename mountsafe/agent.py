"""What runs in the appliance: one worker process for each virtio-serial port named org.mountsafe.*.

Standard library only, and of that only what python3-minimal has; imports `wire` alone. It lives in zone 1: everything
that it says is validated on the host. A worker answers one request after the other. It keeps nothing that a restarted
VM could not learn again: requests carry paths, and a cursor that is unknown is answered with ESTALE.
"""

import array
import errno
import fcntl
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress

try:
    from mountsafe import wire
except ImportError:  # in the appliance the two files lie side by side, without the package
    import wire  # type: ignore[no-redef]  # the same file

PORT_PREFIX = "org.mountsafe."
MEDIUM_ADDRESS = ":0:8:0"  # where the host plugs the medium: SCSI channel, target and LUN
NO_PROGRAM = 127
NO_UDEV = {"DM_DISABLE_UDEV": "1"}  # libdm then makes its device nodes itself

FIBMAP, FIGETBSZ, BLKGETSIZE64, BLKRRPART, BLKFLSBUF = 1, 2, 0x80081272, 0x125F, 0x1261
FIEMAP = 0xC020660B  # include/uapi/linux/fs.h
_FIEMAP_HEAD = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT = struct.Struct("=QQQQQLLLL")
_FIEMAP_BATCH = 512
EXTENT_LAST, EXTENT_UNWRITTEN = 0x1, 0x800
# unknown, delalloc, encoded, encrypted, not aligned, inline, tail: bytes that are not on the device as they are
EXTENT_OPAQUE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
FIBMAP_STEPS = 2048  # ioctls for one answer to EXTENTS: each takes some microseconds in an emulated machine

# File systems whose FIEMAP or FIBMAP answers are addresses on their own device. Not btrfs (logical addresses).
MAPS_EXTENTS = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"f2fs", b"nilfs2", b"ocfs2", b"erofs", b"gfs2"})
MAPS_BLOCKS = frozenset({b"vfat", b"msdos", b"exfat", b"iso9660", b"udf", b"hfs", b"hfsplus", b"minix", b"jfs"})
CLUSTERED = frozenset({b"vfat", b"msdos", b"exfat"})  # st_blksize is the unit of allocation, of many blocks

COW_BYTES = 64 << 20  # what a journal's replay may write, kept in the guest's memory
COW_CHUNK = 4096
KERNEL_LINES = 3  # the last ones of its log, in the answer to a mount that failed

_QUIET = "ro,nosuid,nodev,noexec,noatime"
# blkid's name -> the (kernel type, options) to try in turn
MOUNT_AS: dict[bytes, list[tuple[str, str]]] = {
    b"ntfs": [("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8")],
    b"ntfs3": [("ntfs-3g", "streams_interface=xattr,locale=C.UTF-8")],
    b"vfat": [("vfat", "utf8,umask=022")],
    b"msdos": [("msdos", "umask=022")],
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
    b"ext4dev": [("ext4", "")],
    b"gfs2": [("gfs2", "lockproto=lock_nolock,spectator"), ("gfs2", "lockproto=lock_nolock")],
}
# Modules that a driver asks for by a name that they do not have.
NEEDS = {"hfs": ("mac-roman",)}
# Journals that need a writable device to replay, and the option that does without.
WITHOUT_REPLAY = {
    b"ext2": "noload", b"ext3": "noload", b"ext4": "noload", b"xfs": "norecovery", b"btrfs": "rescue=nologreplay",
    b"f2fs": "norecovery", b"nilfs2": "norecovery", b"reiserfs": "nolog", b"gfs2": "spectator", b"jfs": "",
}  # fmt: skip


class Refused(Exception):
    """A request that cannot be done, with its errno and words for the host."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number
        self.message = message


def run(*command: str) -> tuple[int, str]:
    """Run a program of the appliance and return its exit code and its words."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "LVM_SYSTEM_DIR": "/tmp/lvm",
        **NO_UDEV,
    }
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
    except OSError as error:
        return NO_PROGRAM, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


# --- the medium's volumes ------------------------------------------------------------------------------------------
def _read_text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def find_medium(seconds: float = 10.0) -> str:
    """Wait until the kernel has the medium's disk and return its name, for example "sdc"."""
    end = time.monotonic() + seconds
    while True:
        for device in os.listdir("/sys/class/scsi_disk"):
            if device.endswith(MEDIUM_ADDRESS):
                names = os.listdir(f"/sys/class/scsi_disk/{device}/device/block")
                if names and os.path.exists(f"/dev/{names[0]}"):
                    return names[0]
        if time.monotonic() > end:
            raise Refused(errno.ENODEV, "the medium did not appear in the appliance")
        time.sleep(0.005)


def _blkid(device: str) -> dict[str, bytes]:
    _, words = run("blkid", "-p", "-o", "udev", f"/dev/{device}")
    found: dict[str, bytes] = {}
    for line in words.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key] = _unescape(value.encode("utf-8", "replace"))
    # Several signatures, as "usage:type:version usage:type:version": the first file system is the best guess.
    for candidate in found.get("ID_FS_AMBIVALENT", b"").split():
        usage, _, rest = candidate.partition(b":")
        if usage == b"filesystem":
            found.setdefault("ID_FS_USAGE", usage)
            found.setdefault("ID_FS_TYPE", rest.partition(b":")[0])
    return found


def _unescape(value: bytes) -> bytes:
    r"""Undo blkid's \xNN."""
    head, *tail = value.split(b"\\x")
    for part in tail:
        try:
            head += bytes([int(part[:2], 16)]) + part[2:]
        except ValueError:
            head += b"\\x" + part
    return head


def _is_iso9660(device: str) -> bool:
    """Whether it is an ISO 9660 image: blkid(8) looks for none on a disk of up to 1.44 MB with a partition table."""
    with open(f"/dev/{device}", "rb") as file:
        return os.pread(file.fileno(), 5, 16 * 2048 + 1) == b"CD001"


def _volume(device: str, kind: int, number: int, start: int) -> wire.Volume:
    with open(f"/dev/{device}", "rb") as file:
        size = int.from_bytes(fcntl.ioctl(file, BLKGETSIZE64, bytes(8)), sys.byteorder)
    facts = _blkid(device)
    if kind == wire.VolumeKind.DISK and "ID_FS_TYPE" not in facts and _is_iso9660(device):
        facts |= {"ID_FS_TYPE": b"iso9660", "ID_FS_USAGE": b"filesystem"}

    def fact(*keys: str) -> bytes:
        return next((facts[key] for key in keys if facts.get(key)), b"")[: wire.MAX_TEXT]

    return wire.Volume(
        device.encode(), kind, number, start, size, fact("ID_FS_TYPE"), fact("ID_FS_USAGE"),
        fact("ID_FS_LABEL_ENC", "ID_FS_LABEL"), fact("ID_FS_UUID_ENC", "ID_FS_UUID"),
        fact("ID_PART_TABLE_TYPE"), fact("ID_PART_ENTRY_NAME", "ID_PART_ENTRY_TYPE"),
    )  # fmt: skip


def _mapped_devices() -> list[str]:
    return sorted(name for name in os.listdir("/sys/block") if name.startswith(("dm-", "md")))


def probe() -> list[wire.Volume]:
    """Return the medium's disk, its partitions, and the logical volumes and arrays that they make up."""
    disk = find_medium()
    # EINVAL: the disk is too small to be partitioned; EBUSY: in use, so it was scanned
    with open(f"/dev/{disk}", "rb") as file, suppress(OSError):
        fcntl.ioctl(file, BLKRRPART)  # returns when the kernel's scan for partitions is complete
    volumes = [_volume(disk, wire.VolumeKind.DISK, 0, 0)]
    parts = [name for name in os.listdir(f"/sys/block/{disk}") if name.startswith(disk)]
    numbers = {name: int(_read_text(f"/sys/block/{disk}/{name}/partition") or 0) for name in parts}
    for name in sorted(parts, key=lambda name: numbers[name])[: wire.MAX_VOLUMES - 1]:
        start = int(_read_text(f"/sys/block/{disk}/{name}/start") or 0) * 512
        volumes.append(_volume(name, wire.VolumeKind.PARTITION, numbers[name], start))
    types = {volume.fstype for volume in volumes}
    before = set(_mapped_devices())
    if b"LVM2_member" in types:
        run("lvm", "vgchange", "-aay", "--sysinit", "-qq")
    if types & {b"linux_raid_member", b"isw_raid_member", b"ddf_raid_member"}:
        run("mdadm", "-As", "--auto=yes", "--run", "--readonly")
    for number, name in enumerate(sorted(set(_mapped_devices()) - before), 1):
        if len(volumes) < wire.MAX_VOLUMES:
            volumes.append(_volume(name, wire.VolumeKind.MAPPED, number, 0))
    return volumes


# --- mounting ------------------------------------------------------------------------------------------------------
def _mount(device: str, where: str, fstype: str, options: str) -> str:
    """Mount read-only; return "" or what mount(8) and the kernel said."""
    if fstype == "ntfs-3g":
        options += ",allow_other"
    for module in NEEDS.get(fstype, ()):
        run("modprobe", "-q", module)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        code, words = run("mount", "-n", "-t", fstype, "-o", ",".join(filter(None, (_QUIET, options))), device, where)
        if code == 0:
            return ""
        lines = [line.removeprefix(f"mount: {where}: ") for line in words.splitlines() if "dmesg(1)" not in line]
        return " ".join(lines + _kernel_words(log)) or f"mount failed with {code}"
    finally:
        os.close(log)


def _kernel_words(log: int) -> list[str]:
    """Return what the kernel has logged: mount(8) knows only the errno, the driver says what is wrong."""
    lines: list[str] = []
    with suppress(OSError):  # EAGAIN: that was all
        while True:
            _, _, message = os.read(log, 8192).partition(b";")
            lines.append(message.partition(b"\n")[0].decode("utf-8", "replace"))
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


def mount_medium(layer: CowLayer, fstype: bytes, where: str) -> tuple[str, int, list[tuple[int, int]]]:
    """Mount the layer's device; return (kernel type, MountState, ranges of it that differ from the medium).

    First as it is. A journal that needs a replay is replayed into a `CowLayer`; where that fails too, without replay.
    """
    os.makedirs(where, exist_ok=True)
    attempts = MOUNT_AS.get(fstype, [(fstype.decode("ascii", "replace"), "")])
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


# --- extents -------------------------------------------------------------------------------------------------------
def fiemap(fd: int, size: int, start: int, limit: int) -> tuple[list[wire.Extent], int]:
    """Return the extents from `start` on, holes as ZERO, and where to go on (0: they reach the file's end)."""
    extents: list[wire.Extent] = []
    at = start
    while at < size and len(extents) < limit:
        batch = min(_FIEMAP_BATCH, limit)
        request = bytearray(_FIEMAP_HEAD.size + batch * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(request, 0, at, size - at, 0, 0, batch, 0)
        fcntl.ioctl(fd, FIEMAP, request)
        count = _FIEMAP_HEAD.unpack_from(request)[3]
        last = count == 0
        for index in range(count):
            logical, physical, length, _, _, flags, *_ = _FIEMAP_EXTENT.unpack_from(
                request, _FIEMAP_HEAD.size + index * _FIEMAP_EXTENT.size
            )
            if logical > at:
                extents.append(wire.Extent(at, 0, logical - at, wire.ExtentKind.ZERO))
            told = max(0, at - logical)  # an extent that begins before `start` is told whole
            logical, physical, length = logical + told, physical + told, length - told
            if flags & EXTENT_UNWRITTEN:
                extents.append(wire.Extent(logical, 0, length, wire.ExtentKind.ZERO))
            elif not flags & EXTENT_OPAQUE:
                extents.append(wire.Extent(logical, physical, length, wire.ExtentKind.DATA))
            at = max(at, logical + length)
            last = last or bool(flags & EXTENT_LAST)
        if last:
            if at < size:
                extents.append(wire.Extent(at, 0, size - at, wire.ExtentKind.ZERO))
            return extents, 0
    return extents, 0 if at >= size else at


def fibmap(fd: int, size: int, start: int, block: int, cluster: int) -> tuple[list[wire.Extent], int]:
    """The same by FIBMAP, one block of each cluster. Block 0 may be a hole, a tail or inline data: it is left out."""
    extents: list[wire.Extent] = []
    number = array.array("I", [0])
    step = max(1, cluster // block)
    end = (size + block - 1) // block
    first = start // block // step * step
    stop = min(end, first + FIBMAP_STEPS * step)
    run_start = run_physical = run_length = 0
    for logical in range(first, stop, step):
        number[0] = logical
        fcntl.ioctl(fd, FIBMAP, number)
        physical = number[0]
        count = min(step, end - logical)
        if run_length and physical == run_physical + run_length:
            run_length += count
            continue
        if run_length:
            extents.append(_blocks(run_start, run_physical, run_length, block))
        run_start, run_physical, run_length = logical, physical, count if physical else 0
    if run_length:
        extents.append(_blocks(run_start, run_physical, run_length, block))
    return extents, 0 if stop >= end else stop * block


def _blocks(logical: int, physical: int, count: int, block: int) -> wire.Extent:
    return wire.Extent(logical * block, physical * block, count * block, wire.ExtentKind.DATA)


def without(extents: list[wire.Extent], ranges: list[tuple[int, int]]) -> list[wire.Extent]:
    """Return `extents` less the DATA that lies in `ranges` of the device."""
    if not ranges:
        return extents
    kept: list[wire.Extent] = []
    for extent in extents:
        if extent.kind != wire.ExtentKind.DATA:
            kept.append(extent)
            continue
        at, end = extent.physical, extent.physical + extent.length
        shift = extent.logical - extent.physical
        for low, high in ranges:
            if high <= at or low >= end:
                continue
            if low > at:
                kept.append(wire.Extent(at + shift, at, low - at, extent.kind))
            at = high
        if at < end:
            kept.append(wire.Extent(at + shift, at, end - at, extent.kind))
    return kept


class ExtentMap:
    """Where the bytes of a mounted file system's files are, as its driver tells."""

    def __init__(self, kernel_type: str, mapped: bool, changed: list[tuple[int, int]], root: int) -> None:
        name = kernel_type.encode()
        self._changed = changed
        self._fiemap = not mapped and name in MAPS_EXTENTS
        self._clusters = name in CLUSTERED
        self._block = 0
        if not mapped and (name in MAPS_BLOCKS or self._fiemap):
            number = array.array("i", [0])
            fcntl.ioctl(root, FIGETBSZ, number)
            self._block = number[0]

    @property
    def direct(self) -> bool:
        """Whether DATA extents can be told at all."""
        return self._block > 0

    def of(self, fd: int, st: os.stat_result, start: int, limit: int) -> tuple[list[wire.Extent], int]:
        """Return extents from `start` on and where to go on (0: these are all, or the driver cannot tell)."""
        if not self._block:
            return [], 0
        try:
            if self._fiemap:
                extents, following = fiemap(fd, st.st_size, start, limit)
            else:
                cluster = st.st_blksize if self._clusters else self._block
                extents, following = fibmap(fd, st.st_size, start, self._block, cluster)
        except OSError:
            return [], 0  # inline or compressed: through the agent
        return without(extents, self._changed), following


# --- one mounted file system ---------------------------------------------------------------------------------------
class Tree:
    """A mounted file system as the host asks for it: by path, in bytes, from its root."""

    OPEN_FILES = 64
    OPEN_LISTINGS = 16

    def __init__(self, where: str, kernel_type: str, mapped: bool, changed: list[tuple[int, int]]) -> None:
        self._root = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        self._where = os.fsencode(where)
        self._map = ExtentMap(kernel_type, mapped, changed, self._root)
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._listings: OrderedDict[int, tuple[int, Iterator[os.DirEntry[str]]]] = OrderedDict()
        self._next_cursor = 1

    @property
    def direct(self) -> bool:
        """Whether the host may read from the medium by extents."""
        return self._map.direct

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (self._root, *self._files.values()):
            os.close(fd)
        for folder, listing in self._listings.values():
            self._close_listing(folder, listing)

    def root(self) -> wire.Entry:
        """The root's attributes, under an empty name."""
        return self._entry("", os.fstat(self._root), self._root)

    def _parent(self, path: bytes) -> tuple[int, bytes, bool]:
        """Return (descriptor of the folder, last name, whether to close it). Deep paths are walked in steps."""
        if len(path) < 3000:
            return self._root, path or b".", False
        at = os.dup(self._root)
        *folders, name = path.split(b"/")
        for index in range(0, len(folders), 8):
            step = b"/".join(folders[index : index + 8])
            following = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = following
        return at, name, True

    def _open(self, path: bytes, flags: int) -> int:
        folder, name, close = self._parent(path)
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            if close:
                os.close(folder)

    def _file(self, path: bytes) -> int:
        fd = self._files.pop(path, -1)
        if fd < 0:
            fd = self._open(path, os.O_RDONLY)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise Refused(errno.EINVAL, "not a regular file")
        self._files[path] = fd
        if len(self._files) > self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return fd

    def _entry(self, name: str, st: os.stat_result, folder: int) -> wire.Entry:
        target = b""
        flags = 0
        if stat.S_ISLNK(st.st_mode):
            target = os.readlink(os.fsencode(name), dir_fd=folder)[: wire.MAX_TARGET]
        elif stat.S_ISREG(st.st_mode) and st.st_size and self._map.direct:
            flags = wire.EntryFlag.EXTENTS_MORE
        return wire.Entry(
            os.fsencode(name), flags, st.st_mode, st.st_nlink & 0xFFFFFFFF, st.st_uid, st.st_gid, st.st_ino,
            st.st_size, st.st_blocks, _time(st.st_atime_ns), _time(st.st_mtime_ns), _time(st.st_ctime_ns),
            target, (),
        )  # fmt: skip

    def layout(self, path: bytes, names: list[bytes]) -> bytes:
        """Return the extents of files of the folder at `path`; of one with many of them, that there are more."""
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return wire.pack_layout([self._layout_of(folder, name) for name in names])
        finally:
            os.close(folder)

    def _layout_of(self, folder: int, name: bytes) -> tuple[list[wire.Extent], bool]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return [], False
        try:
            extents, following = self._map.of(fd, os.fstat(fd), 0, wire.MAX_ENTRY_EXTENTS)
        finally:
            os.close(fd)
        if following or len(extents) > wire.MAX_ENTRY_EXTENTS:
            return [], True
        return extents, False

    def list_page(self, path: bytes, cursor: int) -> bytes:
        """Return a page of the folder at `path`. What cannot be looked at is sent with mode 0: its name is known."""
        folder, listing = self._listing(path, cursor)
        page = wire.PageBuilder()
        for found in listing:
            try:
                entry = self._entry(found.name, found.stat(follow_symlinks=False), folder)
            except OSError:
                entry = wire.Entry(os.fsencode(found.name), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b"", ())
            if len(entry.name) > wire.MAX_NAME:
                continue
            if not page.add(entry):
                return page.pack(self._keep(cursor, folder, listing))
        self._listings.pop(cursor, None)
        self._close_listing(folder, listing)
        return page.pack(0)

    @staticmethod
    def _close_listing(folder: int, listing: Iterator[os.DirEntry[str]]) -> None:
        listing.close()  # type: ignore[attr-defined]  # os.scandir's iterator has it
        os.close(folder)

    def _listing(self, path: bytes, cursor: int) -> tuple[int, Iterator[os.DirEntry[str]]]:
        if cursor:
            if cursor not in self._listings:
                raise Refused(errno.ESTALE, "unknown cursor")
            return self._listings[cursor]
        folder = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        return folder, os.scandir(folder)

    def _keep(self, cursor: int, folder: int, listing: Iterator[os.DirEntry[str]]) -> int:
        if cursor:
            self._listings.move_to_end(cursor)
            return cursor
        cursor, self._next_cursor = self._next_cursor, self._next_cursor + 1
        self._listings[cursor] = (folder, listing)
        if len(self._listings) > self.OPEN_LISTINGS:
            self._close_listing(*self._listings.popitem(last=False)[1])
        return cursor

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        """Return bytes of a file."""
        fd = self._file(path)
        data = os.pread(fd, length, offset)
        while data and len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def extents(self, path: bytes, offset: int) -> bytes:
        """Return extents of a file from `offset` on."""
        fd = self._file(path)
        extents, following = self._map.of(fd, os.fstat(fd), offset, wire.MAX_EXTENTS)
        if len(extents) > wire.MAX_EXTENTS:
            last = extents[wire.MAX_EXTENTS - 1]
            extents, following = extents[: wire.MAX_EXTENTS], last.logical + last.length
        return wire.pack_extents(extents, following)

    def xattrs(self, path: bytes) -> bytes:
        """Return the extended attributes of anything but a symbolic link, which Linux gives none."""
        fd = self._open(path, os.O_RDONLY)
        try:
            pairs = [(os.fsencode(name), os.getxattr(fd, name)) for name in os.listxattr(fd)]
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # ntfs-3g comes to that opinion at the first reparse point
                raise
            pairs = []
        finally:
            os.close(fd)
        return wire.pack_xattrs([pair for pair in pairs if len(pair[0]) <= wire.MAX_TEXT])

    def statfs(self) -> bytes:
        """Return the file system's figures."""
        v = os.fstatvfs(self._root)
        told = (v.f_bsize, v.f_frsize, v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, v.f_namemax)
        # Python takes these unsigned numbers for signed; erofs says ULLONG_MAX files.
        return wire.pack_statfs(wire.Statfs(*(number & 0xFFFFFFFFFFFFFFFF for number in told)))


def _time(nanoseconds: int) -> int:
    return max(-(1 << 63), min((1 << 63) - 1, nanoseconds))


# --- a worker: one stream ------------------------------------------------------------------------------------------
class Worker:
    """Answers the requests of one stream."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._where = f"/run/mountsafe/fs-{tag}"
        self._mounted: Tree | None = None
        self._layer: CowLayer | None = None
        self._answers: dict[int, Callable[[bytes], bytes]] = {
            wire.Kind.HELLO: self._hello,
            wire.Kind.PROBE: lambda _: wire.pack_volumes(probe()),
            wire.Kind.MOUNT: self._mount,
            wire.Kind.LIST: lambda body: self._tree.list_page(*wire.unpack_list(body)),
            wire.Kind.READ: lambda body: self._tree.read(*wire.unpack_read(body)),
            wire.Kind.EXTENTS: lambda body: self._tree.extents(*wire.unpack_extents_request(body)),
            wire.Kind.LAYOUT: lambda body: self._tree.layout(*wire.unpack_layout_request(body)),
            wire.Kind.XATTRS: lambda body: self._tree.xattrs(body),
            wire.Kind.STATFS: lambda _: self._tree.statfs(),
        }

    @property
    def _tree(self) -> Tree:
        if self._mounted is None:
            raise Refused(errno.ENOTCONN, "nothing is mounted")
        return self._mounted

    def _hello(self, body: bytes) -> bytes:
        # A VM that was started from a saved state thinks that it is still then.
        time.clock_settime_ns(time.CLOCK_REALTIME, wire.unpack_hello_request(body))
        return wire.pack_hello(wire.VERSION, os.uname().release.encode())

    def _mount(self, body: bytes) -> bytes:
        device, fstype = wire.unpack_mount(body)
        name = os.fsdecode(device)
        self._layer = CowLayer(f"/dev/{name}", self._tag)
        kernel_type, state, changed = mount_medium(self._layer, fstype, self._where)
        tree = Tree(self._where, kernel_type, name.startswith(("dm-", "md")), changed)
        self._mounted = tree
        return wire.pack_mounted(wire.Mounted(kernel_type.encode(), state, tree.direct, tree.root()))

    def close(self) -> None:
        """Let go of the medium, so that it can be unplugged from the VM."""
        if self._mounted is not None:
            self._mounted.close()
        if self._layer is not None:
            run("umount", "-n", "-l", self._where)
            self._layer.stop()

    def answer(self, request: wire.Frame) -> bytes:
        """Return the frame that answers `request`; a failure becomes an ERROR frame."""
        try:
            handler = self._answers.get(request.kind)
            if handler is None:
                raise Refused(errno.ENOSYS, f"unknown request {request.kind}")
            return wire.frame(request.ident, request.kind, handler(request.body))
        except Refused as refused:
            failure = wire.pack_error(refused.errno, refused.message.encode("utf-8", "replace"))
        except OSError as error:
            failure = wire.pack_error(error.errno or errno.EIO, (error.strerror or "").encode("utf-8", "replace"))
        except Exception as error:  # noqa: BLE001  # a bug here must not end the stream: the host is told, and decides
            failure = wire.pack_error(errno.EIO, repr(error).encode("utf-8", "replace"))
        return wire.frame(request.ident, wire.Kind.ERROR, failure)

    def serve(self, fd: int) -> None:
        """Answer requests until the host closes the stream."""
        decoder = wire.Decoder()
        spoken = False
        patience = time.monotonic() + 5.0
        while True:
            data = os.read(fd, 65536)
            if not data:
                # Until the host's end is announced to the guest, a virtio port reads as closed.
                if spoken or time.monotonic() > patience:
                    return
                time.sleep(0.002)
                continue
            spoken = True
            for request in decoder.feed(data):
                view = memoryview(self.answer(request))
                while view:
                    view = view[os.write(fd, view) :]


# --- the main process: a worker for each port ----------------------------------------------------------------------
def ports() -> dict[str, str]:
    """Return the device of each of our ports by its name."""
    found = {}
    for device in os.listdir("/sys/class/virtio-ports"):
        name = _read_text(f"/sys/class/virtio-ports/{device}/name")
        if name.startswith(PORT_PREFIX):
            found[name] = device
    return found


def start_worker(name: str, device: str) -> None:
    """Fork a worker for a port."""
    if os.fork():
        return
    code = 1
    try:
        fd = os.open(f"/dev/{device}", os.O_RDWR | os.O_CLOEXEC)
        worker = Worker(name.removeprefix(PORT_PREFIX))
        worker.serve(fd)
        worker.close()
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Start a worker for every port, as the kernel announces them."""
    os.makedirs("/run/mountsafe", exist_ok=True)
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 15)  # NETLINK_KOBJECT_UEVENT
    events.bind((0, 1))
    served: dict[str, str] = {}
    while True:
        current = ports() if os.path.isdir("/sys/class/virtio-ports") else {}
        served = {name: device for name, device in served.items() if name in current}
        for name, device in current.items():
            if name not in served and os.path.exists(f"/dev/{device}"):
                served[name] = device
                start_worker(name, device)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        with suppress(OSError):  # ENOBUFS: events were lost, and the next turn looks at everything anyway
            events.recv(65536)


if __name__ == "__main__":
    main()
