"""The daemon: compares what is plugged in with what it keeps, after every event, and makes the two agree.

It looks at udev's database each time instead of following events one by one, so a lost or a doubled event costs
nothing, and what was plugged in before it started is treated like everything else. Each disk has a task of its own, and
whatever may block happens in a thread (see `aside`): no disk waits for another.
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
from mountsafe.daemon.aside import Remembered, aside, quietly
from mountsafe.daemon.claiming import NOTES
from mountsafe.daemon.control import Control, Request
from mountsafe.daemon.interface import Told
from mountsafe.daemon.journal import about
from mountsafe.daemon.keeper import Keeper
from mountsafe.daemon.notify import Pulse
from mountsafe.daemon.plugged import alike, plugged_in, same, stands
from mountsafe.daemon.requests import Requests
from mountsafe.daemon.showing import DisplaySettings
from mountsafe.daemon.states import State
from mountsafe.errors import MountsafeError, UserError
from mountsafe.hotplug.devices import Device, devices, of_disk
from mountsafe.hotplug.monitor import Monitor
from mountsafe.medium.claim import Swapped, take_back
from mountsafe.policy import files, trust
from mountsafe.policy.exempt import Exemption
from mountsafe.policy.facts import Facts
from mountsafe.policy.rules import Decision, Policy, Verdict
from mountsafe.session.running import running
from mountsafe.system import generated, inforce, trusting
from mountsafe.system.inuse import InUse
from mountsafe.text import printable

log = logging.getLogger(__name__)
LOOK_PATIENCE, LOOK_PAUSE = 30.0, 2.0  # seconds that udev's database may take, and until it is tried again
FILES_PATIENCE, RULES_PATIENCE, CLEAN_UP_PATIENCE = 20.0, 60.0, 60.0
ACCELERATION_AGE = 0.5
MOST_LOST = 8  # media that were pulled out too early, which are still told of


class Service:
    """Keeps all media of this machine. `most`: how many at a time.

    One task looks at a disk at a time (`_disks`): it alone adds that disk's keepers. Whoever awaits
    something compares the keeper again afterwards: another medium may be in its place.
    """

    def __init__(self, rules: Path, display: DisplaySettings, most: int) -> None:
        self._rules = rules
        self._display = display
        self._most = most
        self._keepers: dict[str, Keeper] = {}
        self._ending: set[Keeper] = set()  # what is being unmounted and let go, which may take its time
        self._lost: dict[str, Told] = {}  # media that were pulled out too early, by their devices
        self._left_alone: set[str] = set()  # disks for which there was no room
        self._disks: dict[str, bool] = {}  # that are looked at now: whether something has happened meanwhile
        self._control = Control(self)
        self._requests = Requests(self._keepers, display.person)
        self._policy: Policy
        self._exempt: list[Exemption]
        self._acceleration = Remembered(_acceleration, ACCELERATION_AGE)
        self._pulse = Pulse()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the rules anew, for what is plugged in from then on."""
        await self._load()
        monitor = Monitor()  # before the first look, so that nothing falls between
        # After a predecessor that was killed:
        await quietly(running, "cleaning up after a predecessor", CLEAN_UP_PATIENCE)
        await quietly(partial(take_back, NOTES), "making devices writable again", CLEAN_UP_PATIENCE)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._obey_signals)
            nursery.start_soon(notify.keep_watchdog_quiet, self._pulse.beats)
            nursery.start_soon(self._control.run)
            nursery.start_soon(self._display.spare.run)
            await self._look_at_all()
            notify.tell("READY=1")
            log.info("watching")
            while True:
                self._pulse.waits()
                await trio.lowlevel.wait_readable(monitor.fileno())
                self._pulse.works()
                disks = monitor.disks()
                if disks is None:
                    await self._look_at_all()
                else:
                    self._look_at(disks)

    async def _load(self) -> None:
        read = partial(_rules_and_exemptions, self._rules)
        self._policy, self._exempt = await aside(read, FILES_PATIENCE)
        if self._policy.broken:
            log.error("the policy cannot be read, so everything external is refused: %s", self._policy.broken)

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    try:
                        await self._reload()
                    except OSError as error:
                        log.warning("the rules stay as they were: %s", error)
                    continue
                notify.tell("STOPPING=1")
                async with trio.open_nursery() as ending:
                    for keeper in {*self._keepers.values(), *self._ending}:
                        ending.start_soon(keeper.end)
                self._nursery.cancel_scope.cancel()

    # --- what is there -----------------------------------------------------------------------------------------------
    async def _look_at_all(self) -> None:
        """Look at what there is, and at what there was."""
        try:
            found = {device.disk for device in await aside(devices, LOOK_PATIENCE)}
        except OSError as error:
            log.warning("udev's database cannot be read: %s", error)
            found = set()
            self._nursery.start_soon(self._look_again)
        self._look_at(found | {keeper.device.disk for keeper in self._keepers.values()})

    async def _look_again(self) -> None:
        await trio.sleep(LOOK_PAUSE)
        await self._look_at_all()

    def _look_at(self, disks: set[str]) -> None:
        """Have disks looked at, each in a task of its own: none waits for another."""
        for disk in sorted(disks):
            if disk in self._disks:
                self._disks[disk] = True
            else:
                self._disks[disk] = False
                self._nursery.start_soon(self._watch, disk)

    async def _watch(self, disk: str) -> None:
        """Make what we keep of a disk agree with what is there, until nothing more has happened."""
        try:
            again = True
            while again:
                self._disks[disk] = False
                try:
                    await self._agree(disk)
                except Exception as error:  # logged; the other disks have nothing to do with it
                    expected = isinstance(error, (OSError, MountsafeError))
                    log.warning("%s cannot be looked at: %s", disk, error, exc_info=not expected, extra=about(disk))
                    await trio.sleep(LOOK_PAUSE)
                    self._disks[disk] = True
                again = self._disks[disk]
        finally:
            del self._disks[disk]

    async def _agree(self, disk: str) -> None:
        """Make what we keep of a disk agree with what is there. Raises OSError if that cannot be told in time."""
        nodes, found = await aside(partial(self._found, disk), LOOK_PATIENCE)
        if not all(node.settled for node in nodes):
            return  # another event will come
        wanted = {node.name: (node, decision) for node, decision in found}
        for name, keeper in list(self._keepers.items()):
            if keeper.device.disk != disk:
                continue
            if name not in wanted or not stands(keeper, *wanted[name]):
                if not any(same(keeper.device, node) for node in nodes):
                    keeper.pulled()
                self._part_with(keeper)
        for name, (node, decision) in wanted.items():
            if name not in self._keepers:
                self._keep(name, node, decision)

    def _found(self, disk: str) -> tuple[list[Device], list[tuple[Device, Decision]]]:
        """Return a disk with its parts, and what is to be kept of it; in a thread."""
        nodes = of_disk(disk)
        return nodes, self._wanted(nodes) if all(node.settled for node in nodes) else []

    def _keep(self, name: str, node: Device, decision: Decision) -> None:
        if len(self._keepers) + len(self._ending) >= self._most:
            if node.disk not in self._left_alone:
                log.warning("%s is left alone: there are %d media already", name, self._most, extra=about(name))
            self._left_alone.add(node.disk)
            return
        keeper = self._keepers[name] = Keeper(node, decision, self._display, self._control, self._policy.decide)
        self._lost.pop(name, None)
        self._control.added(keeper.told())
        self._nursery.start_soon(self._run, keeper)

    async def _run(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        except Exception:  # nor have the other media
            log.exception("a bug in keeping %s", keeper.device.name)

    def _part_with(self, keeper: Keeper) -> trio.Event:
        """Let a medium go; what comes in its place does not wait for that. Return what tells when it is done."""
        del self._keepers[keeper.device.name]
        self._ending.add(keeper)
        self._control.removed(keeper.device.name)
        done = trio.Event()
        self._nursery.start_soon(self._see_it_off, keeper, done)
        return done

    async def _see_it_off(self, keeper: Keeper, done: trio.Event) -> None:
        await keeper.end()
        self._ending.discard(keeper)
        if keeper.lost and keeper.device.name not in self._keepers:
            self._lost[keeper.device.name] = keeper.told()
            while len(self._lost) > MOST_LOST:
                del self._lost[next(iter(self._lost))]
            self._control.changed(keeper.told())
        done.set()
        disks, self._left_alone = self._left_alone, set()
        self._look_at(disks)

    # --- what others ask (control.Desk) ------------------------------------------------------------------------------
    def media(self) -> list[Told]:
        """Return what is kept, and what was pulled out too early, until another medium comes in its place."""
        return [*(keeper.told() for keeper in self._keepers.values()), *self._lost.values()]

    async def status(self) -> Told:
        """Return what the daemon says of itself."""
        states = [keeper.state for keeper in self._keepers.values()]
        return {
            "version": __version__,
            "media": len(states),
            "most": self._most,
            "open": states.count(State.OPEN),
            "blocked": sum(state in (State.ASK, State.REFUSE) for state in states),
            "locked": states.count(State.LOCKED),
            "rules": len(self._policy.rules),
            "policy_error": self._policy.broken,
            "acceleration": await self._acceleration.get(),
        }

    async def asked(self, method: str, *arguments: str | int) -> Request:
        """Return what a method is about. Raises UserError."""
        match method, arguments:
            case "Trust", (str(device), str(verdict)):
                if verdict not in trust.VERDICTS:
                    raise UserError(f"trust is never {printable(verdict)}", f"One of: {', '.join(trust.VERDICTS)}.")
                change = partial(trusting.to_trust, verdict=Verdict(verdict))
                return await self._asked_to_trust(device, change)
            case "Untrust", (str(device),):
                return await self._asked_to_trust(device, trusting.to_untrust)
            case "Reload", ():
                return Request("", None, self._reload)
            case _:
                return await self._requests.asked(method, *arguments)

    async def _asked_to_trust(self, device: str, change: Callable[[Path, Facts], trusting.Change]) -> Request:
        node, nodes, facts = await aside(partial(plugged_in, device), LOOK_PATIENCE)

        async def run() -> None:
            _, there, now = await aside(partial(plugged_in, node.name), LOOK_PATIENCE)
            if now != facts or not all(map(same, nodes, there)):
                raise Swapped(node.node)
            await self._change_trust(there, partial(change, self._rules, facts))

        return Request(node.name, None, run)

    async def _change_trust(self, nodes: list[Device], change: Callable[[], trusting.Change]) -> None:
        await aside(partial(trusting.put_in_force, self._rules, change), RULES_PATIENCE)
        await self._reload()
        for keeper in [self._keepers[node.name] for node in nodes if node.name in self._keepers]:
            if self._keepers.get(keeper.device.name) is not keeper:
                continue  # while another was seen off, it went, or another medium came in its place
            with trio.move_on_after(RULES_PATIENCE):
                await self._part_with(keeper).wait()
        self._look_at({nodes[0].disk})
        await aside(partial(inforce.look_again, [node.name for node in nodes]), RULES_PATIENCE)

    async def _reload(self) -> None:
        """Read the rules anew, for what is plugged in from then on."""
        await self._load()
        log.info("the rules were read anew")

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
        if first is not None and all(each is not None and alike(each, first) for each in decisions):
            return [(disk, first)]
        return [(node, decision) for node in parts if (decision := judged[node.name]) is not None]

    def _judge(self, node: Device, in_use: InUse) -> Decision | None:
        """Return what is to be done with a node; None is nothing."""
        decision = generated.decision_on(node, self._policy, self._exempt)
        if decision is not None and (use := in_use.why(node.name, node.number)):
            log.warning("%s is %s: it is left alone", node.name, use, extra=about(node.name))
            return None
        return decision


def _rules_and_exemptions(rules: Path) -> tuple[Policy, list[Exemption]]:
    return files.load(rules), generated.exemptions()


def _acceleration() -> str:
    acceleration = build.acceleration()
    return "tcg" if acceleration.usable() else acceleration.remembered() or "not tried yet"
