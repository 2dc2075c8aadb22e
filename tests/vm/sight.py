"""What the user of a mount sees: an image, opened as mountsafe opens it, walked and written down.

Everything is real: the virtual machine (one for each image, as for each medium, and thawed, so that it costs 0.3 s),
the boxes, the session process, the FUSE mount. Only the supervisor's part is done here, and the streams to the agent
are tapped: to count the bytes that were read through it, and to switch direct reads off.
"""

import hashlib
import logging
import os
import socket
import stat
import tempfile
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from mountsafe import trios, wire
from mountsafe.appliance import build
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, ExitCode, GuestGone, MountsafeError, UserError
from mountsafe.limits import KVM_PROBE_DEADLINE
from mountsafe.medium.choosing import choose, locked
from mountsafe.medium.options import with_options
from mountsafe.medium.part import WHOLE, Part
from mountsafe.medium.source import Medium, open_medium
from mountsafe.medium.volumes import Volume
from mountsafe.session.boxes import SessionBox
from mountsafe.session.finding import inspect_medium, machine_settings, open_storage
from mountsafe.session.machines import Machines
from mountsafe.session.served import Presentation, ServedVolume
from mountsafe.session.storage import Storage
from mountsafe.session.targets import held
from mountsafe.system.zones import UTC

T = TypeVar("T")
M = TypeVar("M", bound="TappedMachines")

AT_A_TIME = 2  # virtual machines beside each other; each takes about 300 MB
DEADLINE = 240.0  # for one image
COMPLAINTS = ("session: WARNING", "session: ERROR", "session: CRITICAL", "session: Traceback")  # a child's log
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One path of a mount. Size, hash and extended attributes of files only; `fault`: why it could not be read."""

    kind: str
    mode: int
    nlink: int
    ino: int
    uid: int
    rdev: int
    mtime: int  # ns
    size: int | None = None
    sha1: str | None = None
    sha256: str | None = None
    target: bytes | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""


@dataclass(slots=True)
class Sight:
    """One mounted volume: its tree by path, how many bytes of its files were read, and how many of them through the
    agent. `incidents` are the session's complaints about broken rules.
    """

    volume: Volume
    fstype: str
    note: str
    direct: bool
    entries: dict[bytes, Seen]
    read: int
    asked: int
    incidents: list[str]


@dataclass(frozen=True, slots=True)
class Look:
    """What to open and how. `fstype` and `partition` as the command line's options."""

    image: Path
    fstype: str | None = None
    partition: int | str | None = None
    direct: bool = True
    owner: tuple[int, int] | None = None
    sector_size: int | None = None
    part: Part = WHOLE
    zone: bytes = UTC
    options: tuple[str, ...] = ()


# --- the walk ------------------------------------------------------------------------------------------------------
def walk(root: Path) -> dict[bytes, Seen]:
    """Look at everything below `root`."""
    found: dict[bytes, Seen] = {}
    todo = [b""]
    top = os.fsencode(root)
    while todo:
        folder = todo.pop()
        try:
            names = sorted(os.listdir(os.path.join(top, folder)))
        except OSError as error:
            found[folder] = replace(found[folder], fault=error.strerror or str(error))
            continue
        for name in names:
            path = os.path.join(folder, name)
            found[path] = seen(os.path.join(top, path))
            if found[path].kind == "folder":
                todo.append(path)
    return found


def seen(path: bytes) -> Seen:
    """Look at one path without following a link."""
    st = os.lstat(path)
    kind = KINDS[stat.S_IFMT(st.st_mode)]
    common = (kind, stat.S_IMODE(st.st_mode), st.st_nlink, st.st_ino, st.st_uid, st.st_rdev, st.st_mtime_ns)
    if kind == "link":
        return Seen(*common, target=os.readlink(path))
    if kind != "file":
        return Seen(*common)
    sha1, sha256 = hashlib.sha1(), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                sha1.update(data)
                sha256.update(data)
        xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as error:
        return Seen(*common, size=st.st_size, fault=error.strerror or str(error))
    return Seen(*common, size=st.st_size, sha1=sha1.hexdigest(), sha256=sha256.hexdigest(), xattrs=xattrs)


# --- the tap -------------------------------------------------------------------------------------------------------
class TappedMachines(Machines):
    """Hands out streams that pass through here."""

    direct = True
    asked = 0
    nursery: trio.Nursery

    async def stream(self, user: object) -> Any:
        """Return one end of a pair whose other end is pumped to the guest."""
        guest = trio.SocketStream(trio.socket.from_stdlib_socket(await super().stream(user)))
        ours, theirs = trio.socket.socketpair()
        host = trio.SocketStream(ours)
        self.nursery.start_soon(self._pump, host, guest)
        return _detached(theirs)

    async def _pump(self, host: trio.SocketStream, guest: trio.SocketStream) -> None:
        async with host, guest, trio.open_nursery() as nursery:
            nursery.start_soon(self._down, host, guest, nursery.cancel_scope)
            nursery.start_soon(self._up, guest, host, nursery.cancel_scope)

    async def _down(self, host: trio.SocketStream, guest: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await host.receive_some():
                await guest.send_all(data)
        scope.cancel()

    async def _up(self, guest: trio.SocketStream, host: trio.SocketStream, scope: trio.CancelScope) -> None:
        decoder = wire.Decoder()
        with suppress(trio.BrokenResourceError):
            while data := await guest.receive_some():
                for frame in decoder.feed(data):
                    await host.send_all(wire.frame(frame.ident, frame.kind, self.tap(frame)))
        scope.cancel()

    def tap(self, frame: wire.Frame) -> bytes:
        """Note an answer; return what to pass on."""
        if frame.kind == wire.Kind.READ:
            self.asked += len(frame.body)
        elif frame.kind == wire.Kind.MOUNT and not self.direct:
            return wire.pack_mounted(wire.unpack_mounted(frame.body)._replace(direct=False))
        return frame.body


def _detached(sock: "trio.socket.SocketType") -> Any:
    """Return trio's socket as one of the standard library, as `Machines` hands it out."""
    return socket.socket(fileno=sock.detach())


# --- one image -----------------------------------------------------------------------------------------------------
async def show(served: ServedVolume, nursery: trio.Nursery, walk: Callable[[Path], T]) -> T:
    """Mount a volume, return what `walk` returns of it, unmount. Raises UserError if it does not mount."""
    ended = trio.Event()

    async def serve() -> None:
        await served.serve()
        ended.set()

    nursery.start_soon(serve)
    await served.serving.wait()
    if served.failure is not None:
        await ended.wait()
        raise served.failure
    try:
        return await trio.to_thread.run_sync(walk, served.target)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(served.unmount, True)
            await ended.wait()


def _folder(stack: ExitStack) -> Path:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mountsafe-sight-")))
    folder.chmod(0o755)
    return folder


@asynccontextmanager
async def opened(
    image: Path,
    settings: MachineSettings,
    acceleration: Acceleration,
    tapped: Callable[..., M],
    sector_size: int | None = None,
    part: Part = WHOLE,
) -> AsyncIterator[tuple[M, Medium, list[Volume]]]:
    """Start an image's virtual machine and give what is on it; end the machine. Raises UserError."""
    medium = open_medium(image, None, sector_size, part)
    async with trio.open_nursery() as nursery:
        machines = tapped(settings, acceleration, Storage(medium, nursery), nursery)
        machines.nursery = nursery
        try:
            await open_storage(machines.storage)
            yield machines, medium, await inspect_medium(machines, nursery)
        finally:
            await machines.close()
        nursery.cancel_scope.cancel()


async def _look(look: Look, settings: MachineSettings, acceleration: Acceleration) -> list[Sight]:
    sights: list[Sight] = []
    with ExitStack() as stack, trio.fail_after(DEADLINE):
        folder = _folder(stack)
        started = opened(look.image, settings, acceleration, TappedMachines, look.sector_size, look.part)
        async with started as (machines, medium, found):
            machines.direct = look.direct
            for number, volume in enumerate(with_options(choose(found, look.partition, look.fstype), look.options)):
                target = folder / str(number)
                target.mkdir()
                sights.append(await _look_at(look, volume, target, medium, machines))
    return sights


async def _look_at(look: Look, volume: Volume, target: Path, medium: Medium, machines: TappedMachines) -> Sight:
    if volume.encrypted:
        raise locked(volume, medium.name)
    uid, gid = os.geteuid(), os.getegid()
    machines.asked = 0
    with _incidents() as incidents:
        shown = Presentation(look.owner, uid, gid, "nofollow", zone=look.zone)
        place = held(target)
        try:
            served = ServedVolume(volume, place, machines, shown, SessionBox(medium), medium.name)
            entries = await show(served, machines.nursery, walk)
        finally:
            place.close()
    read = sum(entry.size or 0 for entry in entries.values())
    return Sight(volume, served.fstype, served.note, served.direct, entries, read, machines.asked, incidents)


class _ByThread(logging.Handler):
    """Keeps the lines about broken rules, for each thread that looks at images."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: dict[int, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING or line.startswith(COMPLAINTS):
            self.lines[threading.get_ident()].append(line)


_HANDLER = _ByThread()


@contextmanager
def _incidents() -> Iterator[list[str]]:
    lines = _HANDLER.lines[threading.get_ident()] = []
    yield lines


# --- all images ----------------------------------------------------------------------------------------------------
class Looking:
    """Looks at images, `AT_A_TIME` beside each other, ahead of whoever waits for the first one."""

    def __init__(self) -> None:
        # Held: others may build a newer one meanwhile.
        self._held = ExitStack()
        build.ensure(lambda _: None)
        self._settings, self._acceleration = self._held.enter_context(machine_settings(False))
        self._pool = ThreadPoolExecutor(AT_A_TIME, "look")
        self._looks: dict[Look, Future[list[Sight]]] = {}
        self._log = logging.getLogger("mountsafe")
        self._level = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(_HANDLER)
        self.accelerator = self._choose()

    def _choose(self) -> str:
        """Decide about KVM before two threads do."""
        *trials, last = self._acceleration.candidates()
        for trial in trials:
            if trios.run(self._boots, trial):
                self._acceleration.remember(trial)
                return trial
            self._acceleration.remember(last)
        return last

    async def _boots(self, accelerator: str) -> bool:
        machine = Machine.start(MachineSettings(self._settings.appliance, accelerator), lambda _: None)
        try:
            await machine.launched(KVM_PROBE_DEADLINE)
        except (GuestGone, DeadlinePassed):
            return False
        finally:
            await machine.stop()
        return True

    def soon(self, look: Look) -> Future[list[Sight]]:
        """Queue an image, or return the sight that there is of it."""
        if look not in self._looks:
            self._looks[look] = self._pool.submit(self._run, look)
        return self._looks[look]

    def __call__(self, look: Look) -> list[Sight]:
        """Return what is on an image. Raises UserError as the command line does."""
        return self.soon(look).result()

    def _run(self, look: Look) -> list[Sight]:
        try:
            return trios.run(_look, look, self._settings, self._acceleration)
        except UserError as error:
            if error.code != ExitCode.APPLIANCE:
                raise
        except (MountsafeError, trio.TooSlowError):
            pass
        # The machine died or hung: once more, in case that this host was too busy.
        return trios.run(_look, look, self._settings, self._acceleration)

    def close(self) -> None:
        """Drop what waits and end."""
        self._pool.shutdown(cancel_futures=True)
        self._held.close()
        self._log.removeHandler(_HANDLER)
        self._log.setLevel(self._level)
