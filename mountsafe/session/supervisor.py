"""The process that keeps one medium: its virtual machine, its session processes, its mounts.

It reads no byte of the medium. `mountsafe mount` starts it and waits for its report; it then lives on alone until the
last mount is gone, and answers on a control socket. If it is killed, everything below it dies with it.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import trio

from mountsafe import channel, environment, pieces, shortage
from mountsafe.appliance import build
from mountsafe.appliance.acceleration import Acceleration
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.appliance.machine import Machine, MachineSettings
from mountsafe.errors import DeadlinePassed, ExitCode, MountsafeError, ProtocolFault, UserError
from mountsafe.incidents import Incidents
from mountsafe.limits import CONTROL_MESSAGE
from mountsafe.medium.formats import Format
from mountsafe.medium.source import Medium
from mountsafe.medium.volumes import Volume, checked, choose, folder_names, label_name, left_out, seen
from mountsafe.session import logs
from mountsafe.session.machines import Machines, started
from mountsafe.session.places import Place
from mountsafe.session.reporter import Reporter
from mountsafe.session.runtime import LOG, Runtime
from mountsafe.session.served import Presentation, ServedVolume, SessionBox, mount_source, not_mounted, within_limit
from mountsafe.session.storage import Storage
from mountsafe.trios import run

log = logging.getLogger(__name__)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_NUMBERED = 1000  # media of one label that a user can have at a time


async def open_storage(storage: Storage) -> None:
    """Open the disk in the medium. Raises UserError (SOURCE if it is the image's fault)."""
    try:
        await storage.open()
    except UserError:
        raise
    except MountsafeError as error:
        raise UserError(str(error), "--verbose shows what it said.", ExitCode.APPLIANCE) from error


async def inspect_medium(machines: Machines, nursery: trio.Nursery) -> list[Volume]:
    """Return what the guest finds on the disk, which is open. Raises UserError (APPLIANCE)."""
    try:
        client = AgentClient(await machines.stream(machines.storage))
        nursery.start_soon(client.run)
        try:
            await client.hello()
            untrusted_volumes = await client.probe()
        finally:
            client.end(MountsafeError("done"))
    except (GuestRefused, DeadlinePassed, MountsafeError, OSError) as error:
        raise UserError(str(error), "--verbose shows the virtual machine's console.", ExitCode.APPLIANCE) from error
    return checked(untrusted_volumes, machines.storage.size, Incidents())


@contextmanager
def machine_settings(verbose: bool) -> Iterator[tuple[MachineSettings, Acceleration]]:
    """Say how to start VMs here; meanwhile no newer build removes the appliance, which must have been built."""
    appliance = build.find()
    if appliance is None:
        raise UserError("the appliance is missing", "mountsafe appliance build", ExitCode.DEPENDENCY)
    with appliance.held():
        yield MachineSettings(appliance.path, verbose=verbose), build.acceleration()


class Supervisor:
    """Keeps one medium. `order` as `mountsafe.session.start` sends it."""

    def __init__(
        self, order: channel.Message, medium: Medium, place: Place, runtime: Runtime, reporter: Reporter
    ) -> None:
        self._settings = order
        self._runtime = runtime
        self._reporter = reporter
        self._place = place
        self._medium = medium
        self._served: list[ServedVolume] = []
        self._missing: list[dict[str, object]] = []  # file systems that were to be mounted, and are not
        self._refused: list[dict[str, object]] = []  # those of them that the policy refuses
        self._folders: list[Place] = []
        self._planned: list[Place] = []
        self._boxes: list[SessionBox] = []  # started, and not in use yet
        self._machines: Machines
        self._nursery: trio.Nursery
        self._done = trio.Event()

    async def run(self, machine: MachineSettings, acceleration: Acceleration, spare: Machine | None) -> None:
        """Mount, keep, clean up. `spare`: a virtual machine that runs already, if there is one."""
        first = {"source": self._settings["source"], "target": os.fspath(self._place.path), "mounts": []}
        self._runtime.write(first | {"created": self._created(), "supervisor": os.getpid(), "held": self._held()})
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                storage = Storage(self._medium, nursery)
                self._machines = Machines(machine, acceleration, storage, nursery, self._reporter, spare)
                try:
                    await self._keep()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._end_all()
                    nursery.cancel_scope.cancel()
        finally:
            self._remove_folders()

    async def _keep(self) -> None:
        async with trio.open_nursery() as mounting:
            mounting.start_soon(self._cancel_when_gone, self._nursery)
            await self._mount_all()
            mounting.cancel_scope.cancel()
        self._nursery.start_soon(self._answer_clients, await self._listen())
        self._reporter.tell({"mounted": self._record()})
        if self._settings["foreground"]:
            self._nursery.start_soon(self._end_when_gone)
        else:
            logs.leave_terminal()
        await self._done.wait()

    async def _cancel_when_gone(self, everything: trio.Nursery) -> None:
        await self._reporter.gone()
        log.info("interrupted before the mount was there")
        everything.cancel_scope.cancel()

    async def _end_when_gone(self) -> None:
        await self._reporter.gone()
        self._done.set()

    async def _mount_all(self) -> None:
        storage = self._machines.storage
        if not storage.raw:
            self._reporter.progress(f"opening the {self._medium.format} image")
        await open_storage(storage)
        self._reporter.progress("starting the virtual machine")
        self._boxes.append(SessionBox(self._medium))
        volumes = await self._find()
        volumes, beyond = within_limit(volumes)
        self._missing = self._refused + beyond
        places = self._places(volumes)
        self._reporter.progress("mounting " + "; ".join(v.describe() for v in volumes))
        shown = self._presentation()
        for volume, place in zip(volumes, places, strict=True):
            box = self._boxes.pop() if self._boxes else SessionBox(self._medium)
            served = ServedVolume(volume, place, self._machines, shown, box, self._medium.name)
            self._served.append(served)
            self._nursery.start_soon(self._serve, served)
        for served in list(self._served):
            await served.serving.wait()
        await self._machines.release(storage)
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
            if served.place in self._folders:
                served.place.remove()
                self._folders.remove(served.place)
        self._missing[:0] = [served.missing() for served in failed]

    async def _find(self) -> list[Volume]:
        async with trio.open_nursery() as nursery:
            found = await inspect_medium(self._machines, nursery)
            nursery.cancel_scope.cancel()
        try:
            chosen = choose(found, self._settings["partition"], self._settings["fstype"], self._medium.name)
        except UserError:
            self._reporter.tell({"found": seen(found, [])})
            raise
        if self._settings["judged"]:
            chosen = await self._permitted(found, chosen)
        if self._settings["partition"] is None:
            for volume in left_out(found):
                self._reporter.warn(f"not mounted: {volume.describe()}")
        return chosen

    async def _permitted(self, found: list[Volume], chosen: list[Volume]) -> list[Volume]:
        """Return what the policy lets be shown, now that it is known what is inside."""
        answer = await self._reporter.asked({"found": seen(found, chosen)})
        names = {found[position].name for position in answer["refused"]}
        refused = [volume for volume in chosen if volume.name in names]
        why = f"the policy refuses it: {answer['words']}"
        self._refused = [not_mounted(volume, why, ExitCode.SOURCE) for volume in refused]
        return [volume for volume in chosen if volume not in refused]

    def _presentation(self) -> Presentation:
        s = self._settings
        owner = None if s["owner"] == "image" else (s["uid"], s["gid"])
        return Presentation(owner, s["uid"], s["gid"], s["links"], s["idle"], s["entries"])

    def _places(self, volumes: list[Volume]) -> list[Place]:
        if self._settings["by_label"]:
            self._planned = [self._made(label_name(volume), MAX_NUMBERED) for volume in volumes]
        elif len(volumes) == 1:
            self._planned = [self._place]
        else:
            self._planned = [self._made(name) for name in folder_names(volumes)]
        self._write()
        return self._planned

    def _made(self, name: str, most: int = 1) -> Place:
        self._folders.append(self._place.below(name, most))
        return self._folders[-1]

    async def _serve(self, served: ServedVolume) -> None:
        await served.serve()
        if served in self._served and served.failure is None:
            self._served.remove(served)
            if not self._served:
                self._done.set()

    def _record(self) -> dict[str, Any]:
        return {
            "source": self._settings["source"],
            "target": os.fspath(self._place.path),
            "format": self._medium.format,
            "sector_size": self._medium.sector_size,
            "created": self._created(),
            "supervisor": os.getpid(),
            "accelerator": self._machines.accelerator,
            "virtual_machine": self._machines.pid,
            "container": self._machines.storage.pid,
            "mounts": [served.facts() | {"session": served.pid} for served in self._served],
            "missing": self._missing,
        }

    def _created(self) -> list[str]:
        return [os.fspath(place.path) for place in self._made_for_this()]

    def _made_for_this(self) -> list[Place]:
        return ([self._place] if self._place.created else []) + self._folders

    def _held(self) -> dict[str, Any]:
        """What is needed to clean up after us: what is or will be mounted, and which folders are ours."""
        return {
            "mounts": [served.which.told() for served in self._served if served.which is not None],
            "planned": [os.fspath(place.path) for place in self._planned],
            "created": [place.told() for place in self._made_for_this()],
            "name": mount_source(self._medium.name),
        }

    def _write(self) -> None:
        self._runtime.write(self._record() | {"held": self._held()})

    async def _end_all(self) -> None:
        for served in self._served:
            await trio.to_thread.run_sync(served.detach)
            await served.end()
        for box in self._boxes:
            await box.child.stop()
        await self._machines.close()

    def _remove_folders(self) -> None:
        for place in reversed(self._made_for_this()):
            place.remove()

    # --- clients ---------------------------------------------------------------------------------------------------
    async def _listen(self) -> trio.socket.SocketType:
        """Open the control socket, before anybody hears that it is mounted, and may ask."""
        listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._runtime.control() as address:
            await listening.bind(address)
        listening.listen(8)
        return listening

    async def _answer_clients(self, listening: trio.socket.SocketType) -> None:
        while True:
            client, _ = await listening.accept()
            self._nursery.start_soon(self._answer, client)

    async def _answer(self, client: trio.socket.SocketType) -> None:
        """Answer a client. Whatever goes wrong with that is its loss, and not that of the mounts."""
        with client:
            try:
                while packet := await client.recv(CONTROL_MESSAGE):
                    for piece in pieces.split(await self._do(channel.decode(packet))):
                        await client.send(piece)
            except (OSError, ProtocolFault):
                return
            except Exception:
                log.exception("a client could not be answered")

    async def _do(self, request: channel.Message) -> channel.Message:
        what = request.get("do")
        if what == "status":
            return {"mounted": self._record()}
        if what != "unmount":
            return {"failed": {"message": "unknown request", "hint": "", "code": int(ExitCode.USAGE)}}
        lazy = bool(request.get("force"))
        for served in list(self._served):
            try:
                await trio.to_thread.run_sync(partial(served.unmount, lazy))
            except UserError as error:
                return {"failed": {"message": error.message, "hint": error.hint, "code": int(error.code)}}
        self._done.set()
        # The caller waits for the end of this connection, which is the end of this process.
        return {"done": "unmount"}


async def _end_on_signal(everything: trio.CancelScope, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(*ENDING) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        task_status.started()
        async for number in signals:
            log.info("ended by signal %d", number)
            everything.cancel()


async def _started_ahead(
    machine: MachineSettings, acceleration: Acceleration, nursery: trio.Nursery, reporter: Reporter
) -> Machine | None:
    try:
        return await started(machine, acceleration, nursery, reporter)
    except MountsafeError as error:
        log.warning("no spare virtual machine: %s", error)
        return None


async def _supervise(begin: dict[str, Any], runtime: Runtime, reporter: Reporter) -> None:
    """Start ahead what can be, wait for the order, carry it out."""
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal, nursery.cancel_scope)
        with machine_settings(begin["verbose"]) as (machine, acceleration):
            spare = await _started_ahead(machine, acceleration, nursery, reporter) if begin["spare"] else None
            try:
                order = await reporter.order()
                if order is not None:
                    settings, (fd, parent, folder) = order
                    format_ = Format(settings["format"])
                    told = (settings["size"], settings["block_device"], format_, settings["sector_size"])
                    medium = Medium(Path(settings["source"]), fd, *told)
                    place = Place(Path(settings["target"]), parent, folder, settings["created_target"])
                    await Supervisor(settings, medium, place, runtime, reporter).run(machine, acceleration, spare)
            finally:
                if spare is not None:
                    await spare.stop()
        nursery.cancel_scope.cancel()


def _report() -> socket.socket:
    """Return what we have as standard input, which is left empty: no child is to have it."""
    report = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return report


def main() -> NoReturn:
    """Run as `mountsafe.session.start` does: `verbose` and `spare` as JSON, the report as standard input."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until somebody listens: none is lost, and nothing is left
    environment.harden()
    begin = json.loads(sys.argv[1])
    reporter = Reporter(_report())
    code = ExitCode.OK
    try:
        runtime = Runtime.create()
    except UserError as error:
        reporter.failed(error)
        reporter.finish()
        raise SystemExit(error.code) from error
    try:
        logs.start(begin["verbose"], runtime.path / LOG)
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
