"""What of a medium is shown: found by virtual machines, judged by a policy, unlocked with keys."""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from mountsafe.errors import ExitCode, UserError
from mountsafe.medium.choosing import called, choose, deeper, left_out, locked, parts, within
from mountsafe.medium.options import with_options, with_wished
from mountsafe.medium.volumes import ENCRYPTED, Volume, seen
from mountsafe.session.ahead import Ahead
from mountsafe.session.finding import inspect_medium
from mountsafe.session.machines import Machines
from mountsafe.session.messages import Found
from mountsafe.session.missing import not_mounted
from mountsafe.session.order import MountOptions
from mountsafe.session.record import Missing
from mountsafe.session.reporter import Asker
from mountsafe.session.storage import Lender
from mountsafe.session.unlocking import unlock

MAX_ENCLOSED = 4  # encrypted volumes in each other
Machined = Callable[[Lender, Ahead | None], Machines]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A file system that is to be shown, the machines that have its disk, and what was told of that along with it.

    `hosts`: the encrypted volumes that it is in, from the medium's disk inwards, each with what was told of its disk.
    """

    volume: Volume
    machines: Machines
    told: tuple[Volume, ...] = ()
    hosts: tuple[tuple[Volume, tuple[Volume, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for on one disk. `hosts`: the encrypted volumes that it is in, as of `Chosen`."""

    partition: int | str | None
    fstype: str | None
    hosts: tuple[tuple[Volume, tuple[Volume, ...]], ...] = ()

    @property
    def host(self) -> Volume | None:
        """The one that it is the plaintext of."""
        return self.hosts[-1][0] if self.hosts else None


class Choice:
    """What is to be shown of a medium, which one task makes. `missing`: what was asked for and is not to be shown.

    `read_only`: the names of what the policy says is not to be written to.

    `machined` returns machines for a disk that was unlocked, the first of them started ahead, as `ahead` is to do;
    whoever gives it closes them.
    """

    def __init__(
        self,
        options: MountOptions,
        medium: str,
        reporter: Asker,
        nursery: trio.Nursery,
        machined: Machined,
        ahead: Callable[[], Ahead],
    ) -> None:
        self.chosen: list[Chosen] = []
        self.missing: list[Missing] = []
        self.read_only: set[str] = set()
        self._options = options
        self._medium = medium
        self._reporter = reporter
        self._nursery = nursery
        self._machined = machined
        self._ahead = ahead
        self._early: Ahead | None = None
        self._found: list[Volume] = []  # on the medium's disk, and in what was unlocked
        self._failures: list[UserError] = []

    async def make(self, machines: Machines) -> None:
        """Choose of what is on the medium's disk, and in encrypted volumes of it. Raises UserError if that is none."""
        if self._options.key_named:
            self._early = self._ahead()
            self._early.begin()
        try:
            await self._search(machines, Wanted(self._options.partition, self._options.fstype))
        finally:
            if self._early is not None:
                await self._early.end()
        if self._failures and not self.chosen:
            raise self._failures[0]

    async def _search(self, machines: Machines, wanted: Wanted) -> None:
        async with trio.open_nursery() as nursery:
            volumes = await inspect_medium(machines, nursery)
            nursery.cancel_scope.cancel()
        chosen = self._choose(volumes, wanted)
        named = {within(wanted.host, volume).name: volume for volume in chosen}
        permitted = await self._permitted([within(wanted.host, volume) for volume in chosen])
        self.chosen += [
            Chosen(each, machines, tuple(volumes), wanted.hosts) for each in permitted if not each.encrypted
        ]
        encrypted = [volume for volume in permitted if volume.encrypted]
        if len(encrypted) == len(permitted):
            await machines.release(machines.storage)  # nobody needs it while a passphrase is typed
        for volume in encrypted:
            partition = deeper(volumes, wanted.partition, named[volume.name])
            fstype = wanted.fstype if partition is not None and wanted.fstype not in ENCRYPTED else None
            hosts = (*wanted.hosts, (volume, tuple(volumes)))
            await self._enter(machines.storage, Wanted(partition, fstype, hosts))

    def _choose(self, volumes: list[Volume], wanted: Wanted) -> list[Volume]:
        """Return what is to be shown of one disk, or to be unlocked, as far as nobody objects. Raises UserError."""
        self._found += [within(wanted.host, volume) for volume in volumes]
        try:
            chosen = choose(volumes, wanted.partition, wanted.fstype, self._medium)
            mountable = with_options([v for v in chosen if not v.encrypted], self._options.mount_options)
        except UserError:
            self._reporter.tell(Found(seen(self._found, [])))
            raise
        if wanted.partition is None:
            self._tell_of_others(volumes, chosen)
        return mountable + [volume for volume in chosen if volume.encrypted]

    def _tell_of_others(self, volumes: list[Volume], chosen: list[Volume]) -> None:
        for volume in left_out(volumes):
            self._reporter.warn(f"not mounted: {volume.describe()}")
        for volume in parts(volumes, chosen):
            what = f"not mounted, for it is a part of the {chosen[0].fstype}: {volume.describe()}"
            self._reporter.warn(f"{what}. --partition {volume.name} shows it")

    async def _permitted(self, chosen: list[Volume]) -> list[Volume]:
        """Return what the policy lets be shown, now that it is known what is inside."""
        if not self._options.judged:
            return chosen
        so_far = [each.volume for each in self.chosen]
        answer = await self._reporter.judged(Found(seen(self._found, so_far + chosen)))
        names = {volume.name for position, volume in enumerate(self._found) if position in answer.refused}
        wished = {self._found[position].name: options for position, options in answer.options}
        why = f"the policy refuses it: {answer.words}"
        self.read_only |= {self._found[position].name for position in answer.read_only}
        self.missing += [not_mounted(v, why, ExitCode.SOURCE) for v in chosen if v.name in names]
        return with_wished([volume for volume in chosen if volume.name not in names], wished)

    async def _enter(self, disk: Lender, wanted: Wanted) -> None:
        """Choose of what is in an encrypted volume, the host of what is wanted, if somebody has a key for it."""
        host = wanted.host
        assert host is not None
        try:
            machines = None
            if self._options.unlock and len(wanted.hosts) <= MAX_ENCLOSED:
                machines = await self._unlocked(disk, host)
            if machines is None:
                raise locked(host, self._medium)
            await self._search(machines, wanted)
        except UserError as error:
            self._failures.append(error)
            self.missing.append(not_mounted(host, error.message, error.code))

    async def _unlocked(self, disk: Lender, host: Volume) -> Machines | None:
        """Return machines for what is in an encrypted volume; None if nobody has a key. Raises UserError."""
        ahead, self._early = self._early or self._ahead(), None
        machines = None
        try:
            unlocked = await unlock(disk, host, called(host, self._medium), self._reporter, self._nursery, ahead)
            if unlocked is not None:
                machines = self._machined(unlocked, ahead)
        finally:
            if machines is None:
                await ahead.end()
        return machines
