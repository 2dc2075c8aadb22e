"""The daemon: compares what is plugged in with what it keeps, after every event, and makes the two agree.

It looks at udev's database each time instead of following events one by one, so a lost or a doubled event costs
nothing, and what was plugged in before it started is treated like everything else.
"""

import logging
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from mountsafe import __version__
from mountsafe.appliance import build
from mountsafe.daemon import notify
from mountsafe.daemon.control import Control, Told
from mountsafe.daemon.journal import about
from mountsafe.daemon.keeper import NOTES, Keeper, Wishes
from mountsafe.errors import ExitCode, UserError
from mountsafe.hotplug.devices import Device, cut_power, devices, of_disk
from mountsafe.hotplug.monitor import Monitor
from mountsafe.medium.claim import take_back
from mountsafe.policy import files, trust
from mountsafe.policy.exempt import Exemption
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Policy, Verdict
from mountsafe.session import start
from mountsafe.system import generated, inforce, trusting
from mountsafe.system.inuse import InUse
from mountsafe.text import printable

log = logging.getLogger(__name__)


class Service:
    """Keeps all media of this machine. `most`: how many at a time."""

    def __init__(self, rules: Path, wishes: Wishes, most: int) -> None:
        self._rules = rules
        self._wishes = wishes
        self._most = most
        self._keepers: dict[str, Keeper] = {}
        self._left_alone: set[str] = set()  # disks for which there was no room
        self._control = Control(self)
        self._policy: Policy
        self._exempt: list[Exemption]
        self._looking = trio.Lock()  # one at a time compares what is there with what is kept
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the rules anew, for what is plugged in from then on."""
        self._load()
        monitor = Monitor()  # before the first look, so that nothing falls between
        # After a predecessor that was killed:
        await trio.to_thread.run_sync(start.running)
        take_back(NOTES)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._obey_signals)
            nursery.start_soon(notify.keep_watchdog_quiet)
            nursery.start_soon(self._control.run)
            nursery.start_soon(self._wishes.spare.run)
            await self._look_at(None)
            notify.tell("READY=1")
            log.info("watching")
            while True:
                await trio.lowlevel.wait_readable(monitor.fileno())
                await self._look_at(monitor.disks())
                if self._left_alone and len(self._keepers) < self._most:
                    disks, self._left_alone = self._left_alone, set()
                    await self._look_at(disks)

    def _load(self) -> None:
        self._policy = files.load(self._rules)
        self._exempt = generated.exemptions()
        if self._policy.broken:
            log.error("the policy cannot be read, so everything external is refused: %s", self._policy.broken)

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    await self.reload()
                    continue
                notify.tell("STOPPING=1")
                async with trio.open_nursery() as ending:
                    for keeper in self._keepers.values():
                        ending.start_soon(keeper.end)
                self._nursery.cancel_scope.cancel()

    async def _look_at(self, disks: set[str] | None) -> None:
        """Make what we keep agree with what is there; None is all disks."""
        if disks is None:
            disks = {device.disk for device in devices()} | {keeper.device.disk for keeper in self._keepers.values()}
        async with self._looking, trio.open_nursery() as looking:
            for disk in sorted(disks):
                nodes = of_disk(disk)
                if all(node.settled for node in nodes):  # else another event will come
                    looking.start_soon(self._agree, disk, nodes)

    async def _agree(self, disk: str, nodes: list[Device]) -> None:
        wanted = {node.name: (node, decision) for node, decision in self._wanted(nodes)}
        for name, keeper in list(self._keepers.items()):
            if keeper.device.disk != disk:
                continue
            if name not in wanted or not _same(keeper.device, wanted[name][0]):
                if not any(_same(keeper.device, node) for node in nodes):
                    keeper.pulled()
                await keeper.end()
                del self._keepers[name]
                self._control.removed(name)
        for name, (node, decision) in wanted.items():
            if name not in self._keepers:
                self._keep(name, node, decision)

    def _keep(self, name: str, node: Device, decision: Decision) -> None:
        if len(self._keepers) >= self._most:
            log.warning("%s is left alone: there are %d media already", name, self._most, extra=about(name))
            self._left_alone.add(node.disk)
            return
        keeper = self._keepers[name] = Keeper(node, decision, self._wishes, self._control)
        self._control.added(keeper.told())
        self._nursery.start_soon(keeper.run)

    # --- what others ask (control.Desk) ------------------------------------------------------------------------------
    def media(self) -> list[Told]:
        """Return what is kept."""
        return [keeper.told() for keeper in self._keepers.values()]

    def owner(self, device: str) -> int | None:
        """Return the uid that a medium is shown to; None if nobody is."""
        person = self._named(device).person
        return person.uid if person else None

    async def open(self, device: str) -> None:
        """Show a medium that was held back or unmounted."""
        self._named(device).open()

    async def eject(self, device: str) -> None:
        """Unmount a medium, let go of it, and cut its drive's power if nothing else of the drive is in use."""
        keeper = self._named(device)
        await keeper.eject()
        drive = keeper.device.drive
        if drive and self._is_idle(drive):
            await trio.to_thread.run_sync(cut_power, drive)

    def _is_idle(self, drive: str) -> bool:
        """Whether nothing of a drive is kept or in use: a card reader has several slots, a disk several partitions."""
        in_use = InUse()
        kept = any(keeper.device.drive == drive and keeper.state != "ejected" for keeper in self._keepers.values())
        return not kept and not any(in_use.why(each.name, each.number) for each in devices() if each.drive == drive)

    async def trust(self, device: str, verdict: str) -> None:
        """Write a rule for a device that is plugged in, and treat it so at once."""
        if verdict not in trust.VERDICTS:
            raise UserError(f"trust is never {printable(verdict)}", f"One of: {', '.join(trust.VERDICTS)}.")
        await self._change_trust(device, partial(trusting.to_trust, verdict=Verdict(verdict)))

    async def untrust(self, device: str) -> None:
        """Take the rules for a device back, and treat it as the others say."""
        await self._change_trust(device, trusting.to_untrust)

    async def _change_trust(self, device: str, change: Callable[[Path, Facts], trusting.Change]) -> None:
        nodes, facts = _plugged_in(device)
        await trio.to_thread.run_sync(trusting.put_in_force, self._rules, partial(change, self._rules, facts))
        await self.reload()
        async with self._looking:
            for node in nodes:
                if keeper := self._keepers.pop(node.name, None):
                    await keeper.end()
                    self._control.removed(node.name)
        await self._look_at({nodes[0].disk})
        await trio.to_thread.run_sync(inforce.look_again, [node.name for node in nodes])

    async def reload(self) -> None:
        """Read the rules anew, for what is plugged in from then on."""
        self._load()
        log.info("the rules were read anew")

    def status(self) -> Told:
        """Return what the daemon says of itself."""
        states = [keeper.state for keeper in self._keepers.values()]
        acceleration = build.acceleration()
        return {
            "version": __version__,
            "media": len(states),
            "most": self._most,
            "open": states.count("open"),
            "blocked": sum(state in (Verdict.ASK, Verdict.REFUSE) for state in states),
            "rules": len(self._policy.rules),
            "policy_error": self._policy.broken,
            "acceleration": "tcg" if acceleration.usable() else acceleration.remembered() or "not tried yet",
        }

    def _named(self, device: str) -> Keeper:
        """Return the keeper of a device, or of one with a mount of this path."""
        name = device.removeprefix("/dev/")
        for keeper in self._keepers.values():
            if name == keeper.device.name or device in keeper.told()["mounts"]:
                return keeper
        shown = printable(device)
        raise UserError(f"{shown} is no medium that mountsafe keeps", "mountsafe devices shows them.", ExitCode.SOURCE)

    # --- what the policy says ----------------------------------------------------------------------------------------
    def _wanted(self, nodes: list[Device]) -> list[tuple[Device, Decision]]:
        """Return what is to be kept of a disk: the whole of it, or parts where not all are to be treated alike.

        A claim on the whole covers the parts: with it none of them can be left to the system.
        """
        if not nodes or nodes[0].facts is None or not nodes[0].facts.size:
            return []
        disk, *parts = nodes
        in_use = InUse()
        judged = {node.name: self._judge(node, in_use) for node in nodes}
        asked = parts if parts and not nodes[0].facts.fstype else nodes
        decisions = [judged[node.name] for node in asked]
        first = decisions[0]
        if first is not None and all(each is not None and _alike(each, first) for each in decisions):
            return [(disk, first)]
        return [(node, decision) for node in parts if (decision := judged[node.name]) is not None]

    def _judge(self, node: Device, in_use: InUse) -> Decision | None:
        """Return what is to be done with a node; None is nothing."""
        decision = generated.decision_on(node, self._policy, self._exempt)
        if decision is not None and (use := in_use.why(node.name, node.number)):
            log.warning("%s is %s: it is left alone", node.name, use, extra=about(node.name))
            return None
        return decision


def _plugged_in(device: str) -> tuple[list[Device], Facts]:
    """Return the disk that a device is, or is a part of, with its parts; and its facts. Raises UserError (SOURCE)."""
    name = device.removeprefix("/dev/")
    disk = next((each.disk for each in devices() if each.name == name), "")
    nodes = of_disk(disk) if disk else []
    if not nodes or nodes[0].facts is None:
        raise UserError(f"{printable(name)} is no medium that is plugged in", "lsblk shows them.", ExitCode.SOURCE)
    return nodes, nodes[0].facts


def _alike(one: Decision, other: Decision) -> bool:
    return (one.verdict, one.options) == (other.verdict, other.options)


def _same(kept: Device, node: Device) -> bool:
    """Whether it is the same medium still."""
    facts, now = kept.facts, node.facts
    if facts is None or now is None:
        return False
    return (kept.number, kept.sequence, facts.size) == (node.number, node.sequence, now.size)
