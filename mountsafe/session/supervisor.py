"""The process that keeps one medium: its virtual machine, its session processes, its mounts.

It reads no byte of the medium. `mountsafe mount` starts it and waits for its report; it then lives on alone until the
last mount is gone, and answers on a control socket. If it is killed, everything below it dies with it.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from mountsafe import codec, environment, shortage
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import ExitCode, MountsafeError, UserError
from mountsafe.limits import LAST_SAVE_DEADLINE, SAVE_DEADLINE, SETTLE_DEADLINE
from mountsafe.medium.source import Medium
from mountsafe.medium.swapped import until_exchanged
from mountsafe.session import logs
from mountsafe.session.ahead import Ahead, started_ahead
from mountsafe.session.answering import answer_all, listen
from mountsafe.session.boxes import SessionBoxes
from mountsafe.session.choice import Choice, Machined
from mountsafe.session.ending import SIGNALS, Ending, save_all, settle_all
from mountsafe.session.finding import machine_settings, open_storage
from mountsafe.session.folders import Folders
from mountsafe.session.machines import Machines, started
from mountsafe.session.messages import Answer, Done, Failed, Mounted, Request, Streamed, Verb
from mountsafe.session.missing import within_limit
from mountsafe.session.order import Begin, Order
from mountsafe.session.places import Place
from mountsafe.session.presentation import Presentation, mount_source
from mountsafe.session.record import Asked, Held, Missing, Record
from mountsafe.session.reporter import Reporter, given
from mountsafe.session.runtime import LOG, Runtime
from mountsafe.session.served import ServedVolume
from mountsafe.session.storage import Lender, Storage
from mountsafe.session.writing import Writers
from mountsafe.system.zones import rules_of
from mountsafe.trios import run

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps one medium. Without a `place` nothing is mounted, and whoever started it is handed streams.

    `_served` is filled by `_mount_all`; afterwards the task of each file system takes its own out, and whoever goes
    through it goes through a copy. It may be cancelled anywhere: `_end_all` is shielded, and folders go after that.
    """

    def __init__(self, order: Order, medium: Medium, place: Place | None, runtime: Runtime, reporter: Reporter) -> None:
        self._order = order
        self._options = order.options
        self._runtime = runtime
        self._reporter = reporter
        self._folders = Folders(place)
        self._medium = medium
        self._served: list[ServedVolume] = []
        self._missing: list[Missing] = []  # file systems that were to be mounted, and are not
        self._boxes = SessionBoxes(medium, fuse=place is not None)
        self._machines: list[Machines] = []  # of the medium's disk, then of what was unlocked of an earlier one
        self._nursery: trio.Nursery
        self._done = trio.Event()
        self._kept = False  # all of it is mounted
        self._exchanged = False  # another medium is in the place of ours

    async def run(self, machine: MachineSettings, acceleration: Acceleration, spare: Machine | None) -> None:
        """Mount, keep, clean up. `spare`: a virtual machine that runs already, if there is one."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                storage = Storage(self._medium, nursery)
                ahead = partial(Ahead, partial(started, machine, acceleration, nursery, self._reporter), nursery)
                self._machines = [Machines(machine, acceleration, storage, nursery, self._reporter, ahead(spare))]
                try:
                    self._write()
                    await self._keep(storage, partial(self._machined, machine, acceleration), ahead)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._end_all()
                    nursery.cancel_scope.cancel()
        finally:
            self._folders.remove()

    def _machined(
        self, machine: MachineSettings, acceleration: Acceleration, disk: Lender, ahead: Ahead | None
    ) -> Machines:
        """Return machines that have another disk than the medium's: a virtual machine never has both."""
        self._machines.append(Machines(machine, acceleration, disk, self._nursery, self._reporter, ahead))
        if not disk.writable:
            self._boxes.prepare(decrypts=True)
        return self._machines[-1]

    async def _keep(self, storage: Storage, machined: Machined, ahead: Callable[[], Ahead]) -> None:
        async with trio.open_nursery() as mounting:
            mounting.start_soon(self._cancel_when_gone, self._nursery)
            await self._mount_all(storage, machined, ahead)
            mounting.cancel_scope.cancel()
        listening = await listen(self._runtime)  # before anybody hears that it is mounted, and may ask
        self._nursery.start_soon(answer_all, listening, self._do, self._nursery, self._medium.fd)
        for served in self._served:
            if (stream := served.take_stream()) is not None:
                self._reporter.hand(Streamed(served.volume.name), stream)
        self._reporter.tell(Mounted(self._record()))
        if self._options.foreground:
            self._nursery.start_soon(self._end_when_gone)
        else:
            logs.leave_terminal()
        self._nursery.start_soon(self._end_when_exchanged)
        self._kept = True
        await self._done.wait()

    def end(self) -> bool:
        """Save what is to be saved, and end; False if nothing is, or that was asked for before: it may be cancelled."""
        if not self._options.write or not self._kept or self._done.is_set():
            return False
        self._done.set()
        return True

    async def _end_when_exchanged(self) -> None:
        """Show nothing of a medium that comes in the place of ours: it would be read as what is not there any more."""
        await until_exchanged(self._medium.fd, self._medium.sequence)
        log.warning("another medium is in its place: it is unmounted")
        self._exchanged = True
        for served in list(self._served):  # before a byte of what was meant for ours is written to that
            await served.stop_writing()
        self._done.set()

    async def _cancel_when_gone(self, everything: trio.Nursery) -> None:
        await self._reporter.gone()
        log.info("interrupted before the mount was there")
        everything.cancel_scope.cancel()

    async def _end_when_gone(self) -> None:
        await self._reporter.gone()
        self._done.set()

    async def _mount_all(self, storage: Storage, machined: Machined, ahead: Callable[[], Ahead]) -> None:
        if not storage.raw:
            self._reporter.progress(f"opening the {self._medium.format} image")
        await open_storage(storage)
        self._reporter.progress("starting the virtual machine")
        self._boxes.prepare(decrypts=self._options.key_named)
        choice = Choice(self._options, self._medium.name, self._reporter, self._nursery, machined, ahead)
        await choice.make(self._machines[0])
        volumes, beyond = within_limit([each.volume for each in choice.chosen])
        self._missing = choice.missing + beyond
        access = Writers(self._medium, machined, self._nursery, self._reporter)
        if self._options.write:
            access.make(choice.chosen, choice.read_only, not self._options.if_possible)
        places = self._folders.plan(volumes, self._options.by_label)
        self._write()
        self._reporter.progress("mounting " + "; ".join(volume.describe() for volume in volumes))
        shown = self._presentation()
        for each, place in zip(choice.chosen, places, strict=False):
            writer, why = access.of(each.volume)
            box = self._boxes.take(decrypts=each.volume.host is not None)
            how = replace(shown, read_only=why)
            served = ServedVolume(each.volume, place, each.machines, how, box, self._medium.name, writer)
            self._served.append(served)
            self._nursery.start_soon(self._serve, served)
        for served in list(self._served):
            await served.serving.wait()
        for machines in self._machines:
            await machines.release(machines.storage)
        await self._boxes.end()
        await self._drop_failed()
        self._write()

    async def _drop_failed(self) -> None:
        """Leave nothing of the file systems that could not be mounted but a word. Raises UserError if that is all."""
        failed = [served for served in self._served if served.failure is not None]
        self._served = [served for served in self._served if served.failure is None]
        if not self._served:
            gone = UserError("all of it was unmounted again while it was being mounted", "Mount it once more.")
            raise next(filter(None, (served.failure for served in failed)), gone)
        for served in failed:
            await served.end()
            await trio.to_thread.run_sync(served.detach)
            self._folders.give_up(served.place)
        self._missing[:0] = [served.missing() for served in failed]

    def _presentation(self) -> Presentation:
        uid, gid, options = self._order.uid, self._order.gid, self._options
        owner = None if options.owner == "image" else (uid, gid)
        zone = rules_of(options.timezone)
        return Presentation(owner, uid, gid, options.links, options.idle, options.entries, zone)

    async def _serve(self, served: ServedVolume) -> None:
        await served.serve()
        if served in self._served and served.failure is None:
            self._served.remove(served)
            if not self._served:
                self._done.set()

    def _record(self) -> Record:
        return Record(
            source=self._order.source,
            target="" if self._folders.top is None else os.fspath(self._folders.top.path),
            supervisor=os.getpid(),
            created=tuple(os.fspath(place.path) for place in self._folders.made),
            format=self._medium.format,
            sector_size=self._medium.sector_size,
            offset=self._order.part.offset,
            sizelimit=self._order.part.size,
            asked=Asked.of(self._options),
            accelerator=next((each.accelerator for each in self._machines if each.accelerator), ""),
            virtual_machine=next((each.pid for each in self._machines if each.pid and not each.storage.writable), None),
            container=self._machines[0].storage.pid,
            decrypting=self._pids(writable=False),
            writing=self._pids(writable=True),
            writing_machines=tuple(each.pid for each in self._machines if each.storage.writable and each.pid),
            mounts=tuple(served.mounted() for served in self._served),
            missing=tuple(self._missing),
            held=self._held(),
            sequence=self._medium.sequence,
        )

    def _pids(self, writable: bool) -> tuple[int, ...]:
        """Return what serves the disks that are made of the medium's."""
        disks = [each.storage for each in self._machines[1:]]
        return tuple(disk.pid for disk in disks if disk.pid is not None and disk.writable == writable)

    def _held(self) -> Held:
        return Held(
            mounts=tuple(served.which.told() for served in self._served if served.which is not None),
            planned=tuple(os.fspath(place.path) for place in self._folders.planned),
            created=tuple(place.told() for place in self._folders.made),
            name=mount_source(self._medium.name),
        )

    def _write(self) -> None:
        record = self._record()
        self._runtime.write(record if self._folders.top else replace(record, mounts=()))  # there is no mount

    async def _end_all(self) -> None:
        with trio.move_on_after(LAST_SAVE_DEADLINE):
            await settle_all(
                [each for each in self._served if each.changing or not self._exchanged], LAST_SAVE_DEADLINE
            )
        for served in list(self._served):  # whose tasks still run, and take them out
            await trio.to_thread.run_sync(served.detach)
            await served.end()
        await self._boxes.end()
        for machines in reversed(self._machines):
            await machines.close()

    # --- clients ---------------------------------------------------------------------------------------------------
    async def _do(self, request: Request) -> Answer:
        if request.do is Verb.STATUS:
            return Mounted(self._record())
        if request.do is Verb.LEND:
            return Done(request.do)
        return await self._unmount(request.force)

    async def _unmount(self, force: bool) -> Answer:
        """Unmount all, once all is saved."""
        told = list(self._served)
        try:
            await save_all(told, LAST_SAVE_DEADLINE if force else SAVE_DEADLINE, force)
            for served in told:
                await trio.to_thread.run_sync(partial(served.unmount, force))
        except UserError as error:
            return Failed.of(error)
        await settle_all(told, LAST_SAVE_DEADLINE if force else SETTLE_DEADLINE)
        self._done.set()
        if lost := next(filter(None, (served.unsaved for served in told)), ""):
            return Failed(f"{self._medium.name} is unmounted, and {lost}", "Look at what is on it.", ExitCode.FAILURE)
        return Done(Verb.UNMOUNT)  # the caller waits for the end of this connection, which is that of this process


async def _spare(
    machine: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery, reporter: Reporter
) -> Machine | None:
    try:
        return await started_ahead(partial(started, machine, acceleration, nursery, reporter))
    except MountsafeError as error:
        log.warning("no spare virtual machine: %s", error)
        return None


async def _supervise(begin: Begin, runtime: Runtime, reporter: Reporter) -> None:
    """Start ahead what can be, wait for the order, carry it out."""
    async with trio.open_nursery() as nursery:
        ending = Ending(nursery.cancel_scope)
        await nursery.start(ending.on_signal)
        with machine_settings(begin.verbose) as (machine, acceleration):
            spare = await _spare(machine, acceleration, nursery, reporter) if begin.spare else None
            try:
                if (received := await reporter.order()) is not None:
                    order, (fd, *folders) = received
                    told = (order.size, order.block_device, order.format, order.sector_size, order.part, order.sequence)
                    medium = Medium(Path(order.source), fd, *told, *folders[2:])
                    place = None
                    if not order.options.stream:
                        place = Place(Path(order.target), folders[0], folders[1], order.created_target)
                    supervisor = Supervisor(order, medium, place, runtime, reporter)
                    ending.gently = supervisor.end
                    await supervisor.run(machine, acceleration, spare)
            finally:
                if spare is not None:
                    await spare.stop()
        nursery.cancel_scope.cancel()


def main() -> NoReturn:
    """Run as `mountsafe.session.start` does: a `Begin` as JSON, the report as standard input."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until somebody listens: none is lost, and nothing is left
    environment.harden()
    begin = codec.read(Begin, json.loads(sys.argv[1]))
    reporter = Reporter(given())
    code = ExitCode.OK
    try:
        runtime = Runtime.create()
    except UserError as error:
        reporter.failed(error)
        reporter.finish()
        raise SystemExit(error.code) from error
    try:
        logs.start(begin.verbose, runtime.path / LOG)
        run(_supervise, begin, runtime, reporter)
    except UserError as error:
        reporter.failed(error)
        code = error.code
    except Exception as error:
        log.exception("a bug in the supervisor")
        bug = UserError(f"a bug: {error!r}", "Please report it, with the output of --verbose.")
        told = shortage.explained(error) or bug
        reporter.failed(told)
        code = told.code
    finally:
        runtime.remove()
        reporter.finish()
    raise SystemExit(code)
