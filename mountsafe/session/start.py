"""Start the supervisor of a medium, give it its order, and follow its report."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from mountsafe import channel, codec, pieces
from mountsafe.environment import caller
from mountsafe.errors import ExitCode, ProtocolFault, UserError
from mountsafe.limits import LAST_SAVE_DEADLINE, STOP_DEADLINE, UNMOUNT_DEADLINE
from mountsafe.medium.source import Medium
from mountsafe.policy.inside import Judgement, Seen
from mountsafe.sandbox import PACKAGE, PYTHON, program
from mountsafe.session.messages import (
    ORDERS,
    REPORTS,
    Failed,
    Found,
    Judged,
    Key,
    KeyForm,
    Locked,
    Mounted,
    Progress,
    Report,
    Streamed,
    Warned,
)
from mountsafe.session.order import Begin, MountOptions, Order
from mountsafe.session.places import Place
from mountsafe.session.record import Record
from mountsafe.session.running import running
from mountsafe.system.units import Unit
from mountsafe.text import printable

UNHEARD = 1000  # reports
REFUSAL = 500  # characters of the policy's words
# What was found in; what is not to be shown out. One that raises UserError has nothing shown.
Judge = Callable[[Sequence[Seen]], Judgement]
# Returns a key and its descriptors, which are closed when they are sent; None if there is none.
Unlock = Callable[[Locked], tuple[Key, list[int]] | None]
NO_KEY = Key(KeyForm.PASSPHRASE, given=False)


class Lost(UserError):
    """The supervisor ended before the mount was there, and did not say why: it was killed."""


class Starting:
    """A supervisor that is mounting, or waits to be told what. Closing it before it has mounted makes it undo all.

    `spare`: it starts a virtual machine ahead. `unheard`: what it told until its end, and nobody has heard.
    """

    unheard: tuple[Report, ...] = ()

    def __init__(self, verbose: bool = False, spare: bool = False, unit: Unit | None = None) -> None:
        ours, theirs = channel.pair()
        self._unit = unit or Unit()
        code = program(os.fspath(PACKAGE.parent), "mountsafe.session.supervisor")
        with theirs:
            self._process = subprocess.Popen(
                [*self._unit.start, PYTHON, "-I", "-c", code, json.dumps(codec.plain(Begin(verbose, spare)))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=None if verbose else subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self._report = ours
        self._streams: dict[str, int] = {}

    def take_streams(self) -> dict[str, socket.socket]:
        """Return the stream of each file system by its `Mount.name`, once `follow` has returned: the caller's then."""
        streams, self._streams = self._streams, {}
        return {name: socket.socket(fileno=fd) for name, fd in streams.items()}

    def order(
        self, medium: Medium, target: Place | None, options: MountOptions, person: tuple[int, int] | None = None
    ) -> None:
        """Tell it what to mount, and where; `follow` says what came of it. `person`: for whom, if not the caller.

        Without a `target`, and with `MountOptions.stream`, nothing is mounted: see `take_streams`.
        """
        uid, gid = person or caller()
        order = Order(
            source=os.fspath(medium.path),
            size=medium.size,
            block_device=medium.block_device,
            format=medium.format,
            sector_size=medium.sector_size,
            part=medium.part,
            sequence=medium.sequence,
            target="" if target is None else os.fspath(target.path),
            created_target=target is not None and target.created,
            uid=uid,
            gid=gid,
            options=options,
        )
        with suppress(OSError):  # it has ended: `follow` says so
            folders = [] if target is None else [target.parent, target.fd]
            writable = [] if medium.writable_fd is None else [medium.writable_fd]
            channel.send(self._report, ORDERS.told(order), [medium.fd, *folders, *writable])

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def follow(
        self,
        progress: Callable[[str], None],
        warn: Callable[[str], None],
        judge: Judge | None = None,
        unlock: Unlock | None = None,
        patience: float | None = None,
    ) -> Record:
        """Return the record of the mount when it is there. Raises UserError when it came to nothing; Lost.

        `judge` hears what was found before any of it is shown; `unlock` is asked for keys, if that was ordered. One
        that says nothing for `patience` seconds is ended.
        """
        self._report.settimeout(patience)
        try:
            return self._followed(progress, warn, judge, unlock)
        finally:
            with suppress(OSError):  # it was given up, and is closed
                self._report.settimeout(None)

    def _followed(
        self, progress: Callable[[str], None], warn: Callable[[str], None], judge: Judge | None, unlock: Unlock | None
    ) -> Record:
        while True:
            match self._told():
                case Progress(what):
                    progress(what)
                case Warned(what):
                    warn(what)
                case Found(volumes):
                    self._judge(volumes, judge)
                case Locked() as locked:
                    self._unlock(locked, unlock)
                case Mounted(record):
                    return record
                case Streamed():
                    pass  # it is among the streams
                case Failed() as failed:
                    self._see_it_end()
                    raise failed.error()
                case None:
                    self._see_it_end()
                    raise Lost("mounting ended without a word", "--verbose shows what happened.", ExitCode.FAILURE)

    def _see_it_end(self) -> None:
        """Wait for what is about to end, not for ever."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(UNMOUNT_DEADLINE)

    def _told(self) -> Report | None:
        """Return what it tells next; None if it has ended. Blocks. Raises UserError if that cannot be understood."""
        try:
            fds: list[int] = []
            told = pieces.receive(self._report, fds)
            return None if told is None else self._taken(REPORTS.read(told), fds)
        except ConnectionError:  # it was killed before it had read what we told it
            return None
        except TimeoutError as error:
            seconds = self._report.gettimeout() or 0.0
            self.abandon()
            hint = "Try again. --verbose shows what happened."
            raise UserError(f"it has said nothing for {seconds:.0f} s", hint, ExitCode.DEADLINE) from error
        except ProtocolFault as fault:
            self.abandon()
            raise UserError(f"what the supervisor tells cannot be understood: {fault}", "Try again.") from fault

    def _taken(self, report: Report, fds: list[int]) -> Report:
        """Keep the stream that came with a report."""
        if isinstance(report, Streamed) and (fd := channel.only(fds)) is not None:
            self._streams[report.name] = fd
        return report

    def _judge(self, found: Sequence[Seen], judge: Judge | None) -> None:
        try:
            ruling = judge(found) if judge is not None else Judgement({}, None, False)
        except UserError:
            self.abandon()
            raise
        if any(each.chosen for each in found):
            numbers = {each.name: position for position, each in enumerate(found)}
            refused = tuple(numbers[name] for name in ruling.refused)
            options = tuple((numbers[name], tuple(wished)) for name, wished in ruling.mount_options.items())
            read_only = tuple(numbers[name] for name in sorted(ruling.read_only))
            judged = Judged(refused, printable(ruling.words, REFUSAL), options, read_only)
            with suppress(OSError):  # it has ended: `follow` says so
                channel.send(self._report, ORDERS.told(judged))

    def _unlock(self, locked: Locked, unlock: Unlock | None) -> None:
        try:
            key, fds = (unlock(locked) if unlock is not None else None) or (NO_KEY, [])
        except BaseException:
            self.abandon()
            raise
        try:
            with suppress(OSError):  # it has ended: `follow` says so
                channel.send(self._report, ORDERS.told(key), fds)
        finally:
            channel.close(fds)

    @property
    def report(self) -> int:
        """A descriptor, readable when the supervisor has something to say after the mount is there, or has ended."""
        return self._report.fileno()

    def heard(self) -> Report | None:
        """Return what the supervisor tells next; None if it has ended, or cannot be understood. Blocks."""
        with suppress(OSError, ProtocolFault):
            if (received := pieces.receive(self._report)) is not None:
                return REPORTS.read(received)
        return None

    def abandon(self) -> None:
        """Close the report: before the mount is there, this ends everything; wait for that."""
        self._report.close()
        channel.close(list(self._streams.values()))
        self._streams.clear()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # it may have mounted in this very moment: then it must be told
            self.end()

    def let_go(self) -> None:
        """Close what this process has of it, which was forked from the one that started it, and leave it alone."""
        self._report.close()
        self._process.returncode = self._process.returncode or 0  # it is no child of ours to be waited for

    @property
    def pid(self) -> int:
        """The id of a process that ends with the supervisor."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the mount is gone."""
        self._process.wait()

    def end(self) -> None:
        """Ask the supervisor to unmount, whatever uses it, and wait. One that does not answer is killed.

        What one leaves that was killed, by us or by others, is cleaned up. What it told that nobody has heard yet is in
        `unheard` then.
        """
        self._ask_to_end()
        try:
            self._process.wait(LAST_SAVE_DEADLINE + UNMOUNT_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # the kernel does not let it go
                self._process.wait(STOP_DEADLINE)
        finally:
            self._hear_last_words()
        if self._process.returncode != ExitCode.OK:
            running()

    def _hear_last_words(self) -> None:
        """Take what it has told, and close the report. Nothing is done if that is closed."""
        if self._report.fileno() < 0:
            return
        self._report.settimeout(0.0)
        while (told := self.heard()) is not None and len(self.unheard) < UNHEARD:
            self.unheard = (*self.unheard, told)
        self._report.close()

    def _ask_to_end(self) -> None:
        if not self._unit.stop:
            self._process.send_signal(signal.SIGTERM)
            return
        nothing = subprocess.DEVNULL
        with suppress(subprocess.TimeoutExpired):  # the service manager does not answer
            subprocess.run(
                self._unit.stop, stdin=nothing, stdout=nothing, stderr=nothing, check=False, timeout=UNMOUNT_DEADLINE
            )
