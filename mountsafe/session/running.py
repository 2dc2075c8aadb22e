"""What this user has mounted: listed, unmounted, and cleaned up after supervisors that were killed."""

import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import LAST_SAVE_DEADLINE, SAVE_DEADLINE, SETTLE_DEADLINE, STATUS_DEADLINE, UNMOUNT_DEADLINE
from mountsafe.session.asking import NoAnswer, ask
from mountsafe.session.attached import MountId, at, find
from mountsafe.session.chase import chase, spelled
from mountsafe.session.messages import Mounted, Request, Verb
from mountsafe.session.mounter import unmount
from mountsafe.session.places import removed
from mountsafe.session.record import READ_WRITE, Held, Record
from mountsafe.session.runtime import RecordFault, Runtime, runtimes
from mountsafe.text import shown_path

log = logging.getLogger(__name__)


def running(warn: Callable[[str], None] = log.warning) -> list[tuple[Runtime, Record]]:
    """Return every medium that this user has mounted; clean up what killed supervisors left.

    `warn` hears of records that cannot be read.
    """
    found = []
    for runtime in runtimes():
        try:
            record = runtime.read()
        except RecordFault as fault:
            warn(f"{fault.message}. {fault.hint}")
            if not runtime.alive() and not fault.of_another_version:  # it says nothing to anybody
                runtime.remove()
            continue
        if not runtime.alive():
            clean_up(runtime, record)
        elif record is not None and record.mounts:
            found.append((runtime, record))
    return found


def clean_up(runtime: Runtime, record: Record | None) -> None:
    """Unmount and remove what a killed supervisor left, wherever it is now, and nothing else."""
    held = record.held if record is not None else Held()
    known = [MountId(*told) for told in held.mounts]
    # It may have been killed before it could write down what it had mounted: then it is by its place and its name.
    seen = [at(Path(place)) for place in held.planned]
    for which in known + [which for which in seen if which is not None and which.source == held.name]:
        unmount(which, lazy=True)
    for folder, *number in reversed(held.created):
        removed(Path(folder), (number[0], number[1]))
    runtime.remove()


def status(warn: Callable[[str], None] = log.warning) -> list[Record]:
    """Return the record of every medium, as its supervisor tells it now."""
    return [told(runtime, record) for runtime, record in running(warn)]


def told(runtime: Runtime, record: Record) -> Record:
    """Return the record of a medium as its supervisor tells it now; the one that is known if it is ending."""
    answer = ask(runtime, Request(Verb.STATUS), deadline=STATUS_DEADLINE)
    return answer.record if isinstance(answer, Mounted) else record


def end(runtime: Runtime, record: Record, force: bool, say: Callable[[str], None] = log.info) -> None:
    """Have a supervisor unmount, and wait for its end. Raises UserError.

    `force`: whatever uses the mount; and a supervisor that does not answer is killed. What can be changed is saved
    before: `say` hears of it if that takes a while.
    """
    deadline, late = UNMOUNT_DEADLINE, None
    if any(mount.access == READ_WRITE for mount in record.mounts):
        deadline += SETTLE_DEADLINE + (2 * LAST_SAVE_DEADLINE if force else SAVE_DEADLINE)
        late = partial(say, f"saving what was changed in {shown_path(record.target)}")
    try:
        ask(runtime, Request(Verb.UNMOUNT, force), until_gone=True, deadline=deadline, late=late)
    except NoAnswer:
        if not force:
            raise
        with suppress(ProcessLookupError):
            supervisor = os.pidfd_open(record.supervisor)
            try:
                if runtime.alive():  # so the number is still its own
                    signal.pidfd_send_signal(supervisor, signal.SIGKILL)
                select.select([supervisor], [], [])
            finally:
                os.close(supervisor)
        clean_up(runtime, record)


def end_of(record: Record) -> None:
    """Have the supervisor of a record save and unmount, and wait for its end, as `end` does. Raises UserError."""
    for runtime, now in running():
        if now.supervisor == record.supervisor and now.source == record.source:
            end(runtime, now, force=False)


def unmount_all(force: bool = False, say: Callable[[str], None] = log.info) -> list[str]:
    """Unmount every medium of this user; return their sources. `say`: see `end`."""
    gone = []
    for runtime, record in running():
        end(runtime, record, force, say)
        gone.append(record.source)
    return gone


def _spellings(name: Path) -> Iterator[str]:
    """Yield the absolute paths that a name may stand for, at last the one that takes a look at the place itself.

    Whoever looks at a mount waits for its session process, and that may be stopped. Raises LedAside.
    """
    path = name.absolute()
    yield os.fspath(path)
    with suppress(OSError):
        if (folder := spelled(path.parent)) is not None:
            yield os.path.join(folder, path.name)
        found, parent = chase(path)
        os.close(parent)
        yield os.fspath(found)


def unmount_one(name: Path, force: bool = False, say: Callable[[str], None] = log.info) -> str:
    """Unmount the medium whose source, folder, or one of whose mounts is `name`; return its source.

    `say`: see `end`.
    """
    media = running()
    for wanted in _spellings(name):
        for runtime, record in media:
            targets = {record.target, *(mount.target for mount in record.mounts), *_places(record)}
            if wanted in targets:
                end(runtime, record, force, say)
                return record.source
        parts = [each for each in media if wanted in (each[1].source, spelled(Path(each[1].source)))]
        for runtime, record in parts:
            end(runtime, record, force, say)
        if parts:
            return parts[0][1].source
        if (which := at(Path(wanted))) is not None:
            unmount(which, lazy=force)
            return wanted
    shown = shown_path(name)
    raise UserError(f"{shown} is not mounted by mountsafe", "mountsafe list shows what is.", ExitCode.NOT_MOUNTED)


def _places(record: Record) -> Iterator[str]:
    """Yield where a medium's mounts are now: they may have been moved."""
    for told in record.held.mounts:
        if (found := find(MountId(*told))) is not None:
            yield found.point
