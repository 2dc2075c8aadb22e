"""Real FUSE mounts, for root and for an ordinary user, of a folder behind the real agent."""

import json
import os
import pickle
import pwd
import re
import select
import shutil
import socket
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mountsafe import channel, pieces
from mountsafe.codec import plain
from mountsafe.errors import UserError
from mountsafe.medium.formats import Format
from mountsafe.sandbox import PYTHON
from mountsafe.session.asking import ask
from mountsafe.session.messages import ORDERS, REPORTS, Failed, Request, Verb
from mountsafe.session.messages import Mounted as Told
from mountsafe.session.mounter import is_mounted, require_fuse
from mountsafe.session.order import Begin, MountOptions, Order
from mountsafe.session.places import Place
from mountsafe.session.record import Record
from mountsafe.session.runtime import Runtime
from tests.conftest import missing
from tests.guest import Layout

PATIENCE = 60.0  # seconds; nothing is timed, but a test that hangs must end
ORDINARY = "nobody"  # an account that every system has
T = TypeVar("T")


@dataclass(frozen=True)
class Person:
    """Somebody who mounts."""

    uid: int
    gid: int

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function as this person, in a process of its own if it is not us. OSErrors come back."""
        if self.uid == os.geteuid():
            return function(*arguments)
        read, write = os.pipe()
        if not (pid := os.fork()):
            self._answer(write, function, arguments)
        os.close(write)
        with open(read, "rb") as file:
            data = file.read()
        _, status = os.waitpid(pid, 0)
        assert data, f"the process that called it ended with {os.waitstatus_to_exitcode(status)}"
        failure, value, unexpected = pickle.loads(data)
        assert not unexpected, unexpected
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def _answer(self, fd: int, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            answer: tuple[OSError | None, T | None, str]
            try:
                answer = (None, function(*arguments), "")
            except OSError as error:
                answer = (error, None, "")
            except BaseException:  # noqa: BLE001  # whoever waits for the answer is told
                answer = (None, None, traceback.format_exc())
            with open(fd, "wb") as file:
                pickle.dump(answer, file)
            code = 0
        finally:
            os._exit(code)

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program as this person."""
        if self.uid != os.geteuid():
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(command, **options)


@pytest.fixture(scope="session", params=["root", "user"])
def person(request: pytest.FixtureRequest) -> Person:
    """Who mounts: root by mount(2), or an ordinary user by fusermount3."""
    try:
        require_fuse()
    except UserError as error:
        missing(error.message)
    if request.param == "root":
        if os.geteuid() != 0:
            missing("root")
        return Person(0, 0)
    for program in ("fusermount3", "bwrap"):
        if shutil.which(program) is None:
            missing(program)
    if os.geteuid() != 0:
        return Person(os.geteuid(), os.getegid())
    account = pwd.getpwnam(ORDINARY)
    return Person(account.pw_uid, account.pw_gid)


def gone(pid: int) -> bool:
    """Wait until a process has ended; whether it did."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], PATIENCE)[0])
    finally:
        os.close(pidfd)


class Mounted:
    """A mount, its supervisor, and what must be gone in the end."""

    def __init__(self, person: Person, target: Path, runtime: Path, process: "subprocess.Popen[bytes]") -> None:
        self.person = person
        self.target = target
        self.process = process
        self.record: Record
        self._place = runtime
        self._pids: set[int] = {process.pid}

    def follow(self, report: socket.socket) -> None:
        """Wait until it is mounted. Raises UserError with what the supervisor says instead."""
        while message := pieces.receive(report):
            told = REPORTS.read(message)
            if isinstance(told, Failed):
                raise told.error()
            if isinstance(told, Told):
                self._remember(told.record)
                return
        raise UserError("the supervisor ended without a word")

    def _remember(self, record: Record) -> None:
        self.record = record
        told = [record.virtual_machine, *(mount.session for mount in record.mounts)]
        self._pids |= {pid for pid in told if pid}

    @property
    def runtime(self) -> Runtime:
        (path,) = self._place.iterdir()
        return Runtime(path)

    def status(self) -> Record:
        told = ask(self.runtime, Request(Verb.STATUS))
        assert isinstance(told, Told)
        self._remember(told.record)
        return self.record

    @property
    def agent(self) -> int:
        """The process in the place of the virtual machine."""
        return self.status().virtual_machine or 0

    @property
    def session(self) -> int:
        return self.record.mounts[0].session

    def unmount(self, force: bool = False) -> None:
        """As `mountsafe unmount` does. Raises UserError (BUSY)."""
        ask(self.runtime, Request(Verb.UNMOUNT, force), until_gone=True)

    def hold(self, path: str) -> "subprocess.Popen[bytes]":
        """Start a program that has a file open; when it gets a line, it writes the rest of the file."""
        script = 'exec 3<"$1" && echo open && read _ && exec cat <&3'
        command = ["sh", "-c", script, "sh", str(self.target / path)]
        holder = self.person.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        return holder

    def assert_nothing_left(self) -> None:
        """The supervisor has ended, and with it everything that was its own."""
        self.process.wait(PATIENCE)
        assert not is_mounted(self.target)
        assert not list(self.target.iterdir())
        assert not list(self._place.iterdir())
        for pid in self._pids:
            assert gone(pid)

    def close(self) -> None:
        """End it however far it came."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)
        if is_mounted(self.target):
            subprocess.run(["umount", "-l", str(self.target)], check=False)


class Stage:
    """Folders that every person of a test can reach, with the program in them: a checkout may be private.

    `limits`: what is otherwise in the program's limits.py.
    """

    def __init__(self, base: Path, repository: Path, limits: Mapping[str, float] | None = None) -> None:
        self.base = base
        self._numbers = iter(range(1000))
        self._begun: list[Mounted] = []
        for name in ("mountsafe", "tests"):
            shutil.copytree(repository / name, base / "program" / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = base / "program/mountsafe/limits.py"
        for name, value in (limits or {}).items():
            text, found = re.subn(rf"^{name} = [^ \n]+", f"{name} = {value}", path.read_text(), flags=re.MULTILINE)
            assert found == 1, name
            path.write_text(text)

    def folder(self, person: Person | None = None, mode: int = 0o755) -> Path:
        """A new folder, of a person if one is named."""
        path = self.base / f"{next(self._numbers)}"
        path.mkdir()
        path.chmod(mode)
        if person is not None and os.geteuid() == 0:
            os.chown(path, person.uid, person.gid)
        return path

    def begin(
        self,
        person: Person,
        tree: Path,
        layout: Layout | None = None,
        medium: Path | None = None,
        options: dict[str, Any] | None = None,
        mode: int = 0o755,
        **told: Any,
    ) -> tuple[Mounted, socket.socket]:
        """Start a supervisor; return it and its report.

        `options` as in MountOptions; `mode` is the mount point's; `told`: more about the guest.
        """
        target, runtime = self.folder(person, mode), self.folder(person, 0o700)
        if medium is None:
            medium = self.base / "empty"
            medium.write_bytes(bytes(1 << 20))
        saved = target.with_suffix(".layout")
        if layout is not None:
            layout.save(saved)
        ours, theirs = channel.pair()
        fd = os.open(medium, os.O_RDONLY)
        size = os.fstat(fd).st_size
        guest = {"folder": str(tree), "runtime": str(runtime), "layout": str(saved) if layout else "", "size": size}
        guest |= {"fstype": "ext4", "start": 0, **told}
        wanted = MountOptions(**{"owner": "image", **(options or {})})
        order = Order(str(medium), size, False, Format.RAW, None, str(target), False, person.uid, person.gid, wanted)
        keeper = self.base / "program/tests/fuse/keeper.py"
        command = [PYTHON, str(keeper), json.dumps(plain(Begin(wanted.verbose))), json.dumps(guest)]
        with theirs:
            process = person.start(command, cwd="/", stdin=theirs)
        place = Place.hold(Path(os.path.realpath(target)))
        channel.send(ours, ORDERS.told(order), [fd, place.parent, place.fd])
        place.close()
        os.close(fd)
        self._begun.append(Mounted(person, target, runtime, process))
        return self._begun[-1], ours

    def close(self) -> None:
        """End whatever was begun."""
        for mounted in self._begun:
            mounted.close()


@pytest.fixture(scope="session")
def stage(repository: Path) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="mountsafe-fuse-") as folder:
        Path(folder).chmod(0o755)
        stage = Stage(Path(folder), repository)
        try:
            yield stage
        finally:
            stage.close()


Mount = Callable[..., Mounted]


def _mounting(stage: Stage, person: Person, stack: ExitStack) -> Mount:
    def mount(*what: Any, **told: Any) -> Mounted:
        mounted, report = stage.begin(person, *what, **told)
        stack.callback(mounted.close)
        with report:
            mounted.follow(report)
        return mounted

    return mount


@pytest.fixture
def mount(stage: Stage, person: Person) -> Iterator[Mount]:
    """A function that mounts a folder for the time of a test."""
    with ExitStack() as stack:
        yield _mounting(stage, person, stack)


@pytest.fixture(scope="session")
def mount_for_all(stage: Stage, person: Person) -> Iterator[Mount]:
    """A function that mounts a folder for all tests of a person."""
    with ExitStack() as stack:
        yield _mounting(stage, person, stack)
