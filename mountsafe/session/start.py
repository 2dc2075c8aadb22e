"""Start the supervisor of a medium and follow its report; talk to those that run."""

import json
import os
import pwd
import select
import shlex
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from mountsafe import channel, pieces
from mountsafe.errors import ExitCode, NoRight, ProtocolFault, UserError
from mountsafe.limits import IDLE, INDEX_ENTRIES, STATUS_DEADLINE, UNMOUNT_DEADLINE
from mountsafe.medium.source import Medium
from mountsafe.sandbox import PACKAGE, PYTHON
from mountsafe.session.attached import MountId, at, find
from mountsafe.session.mounter import mounts, unmount
from mountsafe.session.places import Place, removed
from mountsafe.session.runtime import Runtime, runtimes
from mountsafe.system.units import Unit
from mountsafe.text import printable

CHOOSE = "Choose an empty folder, or one that does not exist yet."

REFUSAL = 500  # characters of the policy's words
# What was found (see `mountsafe.medium.volumes.seen`) in; names of what is not to be shown, and why, out. One that
# raises UserError has nothing shown.
Judge = Callable[[list[dict[str, Any]]], tuple[list[str], str]]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the user asked for. `links` as in `mountsafe.session.served.Presentation`.

    `person`: uid and gid of whom it is for, if not the caller. `by_label`: each file system gets a folder of its own
    in the target, named after its label. `judged`: `Starting.follow` is given a judge of what is found.
    """

    partition: int | str | None = None
    fstype: str | None = None
    owner: str = "user"
    links: str = "nofollow"
    verbose: bool = False
    foreground: bool = False
    idle: float = IDLE
    entries: int = INDEX_ENTRIES
    person: tuple[int, int] | None = None
    by_label: bool = False
    judged: bool = False


class Starting:
    """A supervisor that is mounting, or waits to be told what. Closing it before it has mounted makes it undo all.

    `spare`: it starts a virtual machine ahead.
    """

    def __init__(self, verbose: bool = False, spare: bool = False, unit: Unit | None = None) -> None:
        ours, theirs = channel.pair()
        settings = {"verbose": verbose, "spare": spare}
        self._unit = unit or Unit()
        path = os.fspath(PACKAGE.parent)
        code = f"import sys; sys.path.insert(0, {path!r}); from mountsafe.session.supervisor import main; main()"
        with theirs:
            self._process = subprocess.Popen(
                [*self._unit.start, PYTHON, "-I", "-c", code, json.dumps(settings)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=None if verbose else subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self._report = ours

    def order(self, medium: Medium, target: Place, options: MountOptions) -> None:
        """Tell it what to mount, and where; `follow` says what came of it."""
        uid, gid = options.person or caller()
        wanted = {
            "source": os.fspath(medium.path),
            "target": os.fspath(target.path),
            "created_target": target.created,
            "size": medium.size,
            "block_device": medium.block_device,
            "format": medium.format,
            "sector_size": medium.sector_size,
            "part": astuple(medium.part),
            "uid": uid,
            "gid": gid,
            **asdict(options),
        }
        with suppress(OSError):  # it has ended: `follow` says so
            channel.send(self._report, wanted, [medium.fd, target.parent, target.fd])

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def follow(
        self, progress: Callable[[str], None], warn: Callable[[str], None], judge: Judge | None = None
    ) -> dict[str, Any]:
        """Return the record of the mount when it is there. Raises UserError when it came to nothing.

        `judge` hears what was found before any of it is shown.
        """
        while True:
            try:
                message = pieces.receive(self._report)
            except ConnectionError:  # it was killed before it had read what we told it
                message = None
            if message is None:
                self._process.wait()
                raise UserError("mounting ended without a word", "--verbose shows what happened.", ExitCode.FAILURE)
            if "progress" in message:
                progress(message["progress"])
            elif "warning" in message:
                warn(message["warning"])
            elif "found" in message:
                self._judge(message["found"], judge)
            elif "mounted" in message:
                record: dict[str, Any] = message["mounted"]
                return record
            elif "failed" in message:
                self._process.wait()
                raise _as_error(message["failed"])

    def _judge(self, found: list[dict[str, Any]], judge: Judge | None) -> None:
        try:
            refused, words = judge(found) if judge is not None else ([], "")
        except UserError:
            self.abandon()
            raise
        if any(each["chosen"] for each in found):
            with suppress(OSError):  # it has ended: `follow` says so
                positions = [position for position, each in enumerate(found) if each["name"] in refused]
                channel.send(self._report, {"refused": positions, "words": printable(words, REFUSAL)})

    @property
    def report(self) -> int:
        """A descriptor, readable when the supervisor has something to say after the mount is there, or has ended."""
        return self._report.fileno()

    def incident(self) -> str | None:
        """Return what went wrong with the mount; None if the supervisor has ended. Blocks until it can be read."""
        with suppress(OSError, ProtocolFault):
            if received := pieces.receive(self._report):
                return printable(str(received.get("incident", "")), 500)
        return None

    def abandon(self) -> None:
        """Close the report: before the mount is there, this ends everything; wait for that."""
        self._report.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # it may have mounted in this very moment: then it must be told
            self.end()

    @property
    def pid(self) -> int:
        """The id of a process that ends with the supervisor."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the mount is gone."""
        self._process.wait()

    def end(self) -> None:
        """Ask the supervisor to unmount, whatever uses it, and wait. One that does not answer is killed."""
        if self._unit.stop:
            subprocess.run(self._unit.stop, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        else:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(UNMOUNT_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            running()  # cleans up
        finally:
            self._report.close()


def caller() -> tuple[int, int]:
    """Return the uid and gid of the person: the one behind sudo, if there is one."""
    if os.geteuid() == 0:
        try:
            uid = int(os.environ["SUDO_UID"])
            return uid, pwd.getpwuid(uid).pw_gid
        except (KeyError, ValueError):
            pass
    return os.geteuid(), os.getegid()


def _as_error(told: dict[str, Any]) -> UserError:
    return UserError(str(told.get("message")), str(told.get("hint", "")), ExitCode(told.get("code", 1)))


def running() -> list[tuple[Runtime, dict[str, Any]]]:
    """Return every medium that this user has mounted; clean up what killed supervisors left."""
    found = []
    for runtime in runtimes():
        record = runtime.read()
        if runtime.alive():
            if record.get("mounts"):
                found.append((runtime, record))
        else:
            clean_up(runtime, record)
    return found


def clean_up(runtime: Runtime, record: dict[str, Any]) -> None:
    """Unmount and remove what a killed supervisor left, wherever it is now, and nothing else."""
    held_ = record.get("held", {})
    known = [MountId.read(told) for told in held_.get("mounts", [])]
    # It may have been killed before it could write down what it had mounted: then it is by its place and its name.
    seen = [at(Path(place)) for place in held_.get("planned", [])]
    for which in known + [which for which in seen if which is not None and which.source == held_["name"]]:
        if which is not None:
            unmount(which, lazy=True)
    for folder, *number in reversed(held_.get("created", [])):
        removed(Path(folder), (number[0], number[1]))
    runtime.remove()


def status() -> list[dict[str, Any]]:
    """Return the record of every medium, as its supervisor tells it now."""
    return [
        request(runtime, {"do": "status"}, deadline=STATUS_DEADLINE).get("mounted", record)
        for runtime, record in running()
    ]


class NoAnswer(UserError):
    """A supervisor that lives, and does nothing."""


def request(
    runtime: Runtime, message: channel.Message, until_gone: bool = False, deadline: float | None = None
) -> channel.Message:
    """Ask a supervisor; `until_gone` waits for its end after the answer. Raises UserError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, ExitStack() as stack:
        try:
            sock.settimeout(deadline)
            with runtime.control() as address:
                sock.connect(address)
            supervisor = _pidfd(sock)
            stack.callback(os.close, supervisor)
            channel.send(sock, message)
            answer = pieces.receive(sock) or {}
            if "failed" in answer:
                raise _as_error(answer["failed"])
            if until_gone and not select.select([supervisor], [], [], deadline)[0]:
                raise TimeoutError("it does not end")
        except (OSError, ProtocolFault) as error:
            if not runtime.alive():
                return {}
            record = runtime.read()
            force = f"mountsafe unmount --force {shlex.quote(printable(str(record.get('target')), 500))}"
            hint = f"It may be stopped: ps -fp {record.get('supervisor')} shows it; {force} ends it."
            raise NoAnswer(f"no answer from the mount's supervisor: {error}", hint) from error
    return answer


def _pidfd(sock: socket.socket) -> int:
    """Return a descriptor of the process that listens at the other end; it is readable when that has ended."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return os.pidfd_open(pid)


def end(runtime: Runtime, record: dict[str, Any], force: bool) -> None:
    """Have a supervisor unmount, and wait for its end. Raises UserError.

    `force`: whatever uses the mount; and a supervisor that does not answer is killed.
    """
    try:
        request(runtime, {"do": "unmount", "force": force}, until_gone=True, deadline=UNMOUNT_DEADLINE)
    except NoAnswer:
        if not force:
            raise
        with suppress(ProcessLookupError):
            supervisor = os.pidfd_open(int(record["supervisor"]))
            try:
                if runtime.alive():  # so the number is still its own
                    signal.pidfd_send_signal(supervisor, signal.SIGKILL)
                select.select([supervisor], [], [])
            finally:
                os.close(supervisor)
        clean_up(runtime, record)


def unmount_all(force: bool = False) -> list[str]:
    """Unmount every medium of this user; return their sources."""
    gone = []
    for runtime, record in running():
        end(runtime, record, force)
        gone.append(str(record["source"]))
    return gone


def _spellings(name: Path) -> Iterator[str]:
    """Yield the absolute paths that a name may stand for, at last the one that takes a look at the place itself.

    Whoever looks at a mount waits for its session process, and that may be stopped.
    """
    path = name.absolute()
    yield os.fspath(path)
    yield os.path.join(os.path.realpath(path.parent), path.name)
    yield os.path.realpath(path)


def unmount_one(name: Path, force: bool = False) -> str:
    """Unmount the medium whose source, folder, or one of whose mounts is `name`; return its source."""
    media = running()
    for wanted in _spellings(name):
        for runtime, record in media:
            targets = {record["target"], *(mount["target"] for mount in record["mounts"]), *_places(record)}
            if wanted in targets or wanted in (record["source"], os.path.realpath(record["source"])):
                end(runtime, record, force)
                return str(record["source"])
        if (which := at(Path(wanted))) is not None:
            unmount(which, lazy=force)
            return wanted
    shown = printable(os.fsencode(name), 500)
    raise UserError(f"{shown} is not mounted by mountsafe", "mountsafe list shows what is.", ExitCode.NOT_MOUNTED)


def _places(record: dict[str, Any]) -> Iterator[str]:
    """Yield where a medium's mounts are now: they may have been moved."""
    for told in record.get("held", {}).get("mounts", []):
        if (which := MountId.read(told)) is not None and (found := find(which)) is not None:
            yield found.point


def held(target: Path) -> Place:
    """Hold a folder that is there. Raises UserError (TARGET)."""
    path = Path(os.path.realpath(target))
    try:
        return Place.hold(path)
    except OSError as error:
        raise UserError(f"{_shown(path)} is not a folder: {error.strerror}", CHOOSE, ExitCode.TARGET) from error


def prepare_target(target: Path) -> Place:
    """Return the mount point, made if need be, and held. Raises UserError (TARGET)."""
    path = Path(os.path.realpath(target))
    try:
        return Place.hold(path, made=True)
    except FileExistsError:
        pass
    except OSError as error:
        hint = "Its parent folder must exist and be yours."
        raise _target_error(f"cannot make {_shown(path)}: {error.strerror}", hint, error) from error
    if os.fspath(path) in mounts():  # asked first: who looks at a mount waits for its process
        hint = f"mountsafe unmount {shlex.quote(_shown(path))}"
        raise UserError(f"something is already mounted on {_shown(path)}", hint, ExitCode.TARGET)
    place = held(path)
    try:
        _check_target(place.fd, _shown(path))
    except UserError:
        place.close()
        raise
    return place


def _check_target(fd: int, shown: str) -> None:
    here = f"/proc/self/fd/{fd}"
    try:
        empty = not os.listdir(here)
    except OSError as error:
        hint = "Choose a folder of yours."
        raise _target_error(f"cannot look into {shown}: {error.strerror}", hint, error) from error
    if not empty:
        raise UserError(f"{shown} is not empty", CHOOSE, ExitCode.TARGET)
    if not os.access(here, os.W_OK):
        raise NoRight(f"{shown} is not yours to write to", "fusermount3 demands that: choose a folder of yours.")


def _target_error(message: str, hint: str, error: OSError) -> UserError:
    if isinstance(error, PermissionError):
        return NoRight(message, hint)
    return UserError(message, hint, ExitCode.TARGET)


def _shown(path: Path) -> str:
    return printable(os.fsencode(path), 500)
