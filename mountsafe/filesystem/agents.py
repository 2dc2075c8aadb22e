"""The agent that a mount asks, whichever virtual machine it lives in at the moment.

The VM may crash, be killed, or be shut down when idle. `request` finds it gone and gets a new one, once for all waiting
tasks, mounts the medium in it again, and repeats the request. A VM that misbehaves is reported to the parent, who ends
it. Where the file system may be changed there are two ways: a VM that reads it, and, from the first change until it has
settled, another that writes, which is then asked everything.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from mountsafe import wire
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.errors import DeadlinePassed, GuestFault, GuestGone, MountsafeError
from mountsafe.filesystem.gate import Gate
from mountsafe.limits import CALL_DEADLINE, MOUNT_DEADLINE, REQUEST_DEADLINE, SYNC_DEADLINE
from mountsafe.medium.extents import Window

log = logging.getLogger(__name__)
QUIET = 0.005  # seconds in which no program waits for the guest, after which it may be asked what nobody needs yet
UNMOUNT_ATTEMPTS = 3  # each in a VM of its own
# A type is mounted for writing by the same driver, or by another that knows it.
DRIVERS = {b"ntfs": b"ntfs", b"ntfs3": b"ntfs", b"ntfs-3g": b"ntfs"}
READ_AFTER = (wire.MountState.CLEAN, wire.MountState.RECOVERED)  # it was changed, and maybe not left clean
WRITABLE_STATES = (wire.MountState.CLEAN, wire.MountState.RECOVERED, wire.MountState.REPAIRED)
T = TypeVar("T")
Question = bytes | Callable[[], bytes]  # made when it is sent, if there is a path in it
Ask = Callable[[int, bytes], Awaitable[bytes]]


class LetGo(GuestGone):
    """The VM was not needed any more: whoever still waits for it asks the next one, and that is no failure."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the file system is reached: in which VMs, and mounted how.

    `mount` is what has each VM mount the same in the same way. `get_client` returns a fresh, running stream to a VM
    that has the medium (it starts one if it must); `misbehaved` is told when the guest broke a rule or a deadline, and
    in which VM: another may have taken its place.
    """

    get_client: Callable[[], Awaitable[AgentClient]]
    misbehaved: Callable[[int, MountsafeError], Awaitable[None]]
    mount: wire.MountRequest


@dataclass(frozen=True, slots=True)
class Writable(Way):
    """The way that writes.

    `settled` is called when the guest has unmounted, and returns why the medium does not have all of it, or "".
    """

    settled: Callable[[], Awaitable[str]]


class Agents:
    """Hands out answers of the guest's agent, over as many VMs as it takes."""

    def __init__(self, readable: Way, window: Window, writable: Writable | None = None) -> None:
        self._readable = readable
        self.writable = writable
        self.writing = False  # whether the VM that is asked may change it
        self.replay: Callable[[Ask], Awaitable[None]] = _nothing  # done in a new VM that writes, before all else
        self._changed = False  # since it was mounted to be read: its journal may be in another state
        self._leaving: AgentClient | None = None  # has unmounted, or is about to
        self.paths = Gate()
        self.order = trio.Lock()  # who has it is asked before anything more is changed
        self.passed: Callable[[int | None], Awaitable[None]] = _passed  # changes up to a position, or all, are done
        self._client: AgentClient | None = None
        self._reported: AgentClient | None = None
        self._starting = trio.Lock()
        self._answered: AgentClient | None = None  # whose answer came last
        self._faults: list[tuple[AgentClient, GuestFault]] = []  # to be reported before anything else is asked
        self._awaited = 0  # answers that programs wait for
        self._last_awaited = 0.0
        self._last_used = 0.0
        self.window = window
        self.mounted: wire.Mounted  # set by start()

    async def start(self) -> None:
        """Mount for the first time. Raises GuestRefused with the guest's words if the type cannot be mounted."""
        self._client, self.mounted = await self._new_client()

    async def _new_client(self) -> tuple[AgentClient, wire.Mounted]:
        """Return a stream to a VM, and what it says of the medium that it has mounted."""
        way = self._way_of(self.writing)
        client = await way.get_client()
        return client, await self._begun(client, way.mount._replace(again=self.writing))

    def _way_of(self, writing: bool) -> Way:
        return self.writable if writing and self.writable is not None else self._readable

    async def _begun(self, client: AgentClient, mount: wire.MountRequest) -> wire.Mounted:
        try:
            await client.hello()
            body = await client.request(wire.Kind.MOUNT, wire.pack_mount(mount), MOUNT_DEADLINE)
            return wire.unpack_mounted(body)
        except wire.WireError as error:
            fault = GuestFault(str(error))
            client.end(fault)
            raise fault from error
        except BaseException:
            client.end(GuestGone("it could not mount the medium"))
            raise

    async def usable(self) -> AgentClient:
        """Return a stream to a VM that has been brought to where the last one was. Raises MountsafeError."""
        async with self._starting:
            return await self._current()

    async def _current(self) -> AgentClient:
        while self._faults:
            await self._report(*self._faults.pop())
        if self._client is None or self._client.ended is not None:
            self._client = await self._another()
        return self._client

    async def _another(self) -> AgentClient:
        log.info("the virtual machine is gone: starting another")
        client, mounted = await self._new_client()
        self._require_same(client, mounted)
        if self.writing:
            try:
                await self.replay(partial(self._answered_by, client))
            except BaseException:
                client.end(GuestGone("what was changed could not be repeated"))
                raise
        return client

    def _require_same(self, client: AgentClient, mounted: wire.Mounted) -> None:
        """Raise GuestFault, and end the VM, if the medium is mounted otherwise than it should be."""
        before = self.mounted
        if not self.writing:
            if self._changed and mounted.state in READ_AFTER:
                before = before._replace(state=mounted.state)
            same = _how(mounted) == _how(before)
            if same:
                self.mounted, self._changed = before, False
        else:
            drivers = [DRIVERS.get(each.fstype, each.fstype) for each in (mounted, before)]
            same = drivers[0] == drivers[1] and mounted.state in WRITABLE_STATES
        if not same:
            fault = GuestFault("the medium mounts in another way than before")
            client.end(fault)
            raise fault

    # --- the way that writes ---------------------------------------------------------------------------------------
    async def write(self) -> None:
        """Ask a VM from now on that may change the file system.

        Raises GuestRefused with the guest's words if it cannot be mounted so, and goes on reading; MountsafeError.
        """
        assert self.writable is not None
        client = await self.writable.get_client()
        async with self._starting:
            # What another VM reads while this one writes would be neither old nor new.
            self._let_go()
            self.writing = True
            try:
                self._require_same(client, await self._begun(client, self.writable.mount))
            except BaseException:
                self.writing = False
                with trio.CancelScope(shield=True):
                    await self.writable.settled()
                raise
            self._client = client

    async def settle(self) -> str:
        """Leave the file system clean, and read it from now on. Returns why not all of it is on the medium, or ""."""
        assert self.writable is not None
        async with self._starting:
            try:
                why = await self._unmounted()
            except MountsafeError as error:
                why = str(error)
            self._let_go()
            self.writing, self._changed = False, True
            told = await self.writable.settled()
            self._leaving = None
            return told or why

    async def _unmounted(self) -> str:
        for attempt in range(1, UNMOUNT_ATTEMPTS + 1):
            try:
                self._leaving = client = await self._current()
                await self._answered_by(client, wire.Kind.UNMOUNT, b"", SYNC_DEADLINE)
            except OSError as refused:
                return f"it could not be unmounted: {refused.strerror}"
            except MountsafeError:
                if attempt == UNMOUNT_ATTEMPTS:
                    raise
            else:
                break
        return ""

    def _let_go(self) -> None:
        if self._client is not None:
            self._client.end(LetGo("the virtual machine is not needed any more"))
            self._client = None

    # --- questions -------------------------------------------------------------------------------------------------
    async def ask_once(self, question: Callable[[], Awaitable[tuple[int, bytes]]], deadline: float) -> bytes:
        """Ask whichever VM there is, and let the caller see to it if that is gone: as `request` otherwise.

        `question` is called when there is one that has been brought to where the last one was.
        """
        self._last_used = trio.current_time()
        client = await self.usable()
        return await self._answered_by(client, *await question(), deadline)

    async def request(
        self, kind: int, body: Question = b"", deadline: float = REQUEST_DEADLINE, needed: bool = True
    ) -> bytes:
        """Return the untrusted body of the answer. OSError is the guest's no; MountsafeError is the VM's failure.

        `needed` says that a program waits for it (see `quiet`). A question with a path in it is given as what makes it:
        the guest has done by then all that was changed, and while it is asked no path changes.
        """
        self._last_used = trio.current_time()
        self._awaited += needed
        try:
            with trio.move_on_after(CALL_DEADLINE):
                return await self._request(kind, body, deadline)
        finally:
            self._awaited -= needed
            self._last_awaited = trio.current_time() if needed else self._last_awaited
        raise DeadlinePassed(f"no answer in {CALL_DEADLINE:.0f} s, new virtual machine included")

    async def _request(self, kind: int, body: Question, deadline: float) -> bytes:
        if not callable(body):
            return await self._repeated(kind, body, deadline)
        if self.writable is None:  # no path ever changes
            return await self._repeated(kind, body(), deadline)
        async with self.order:
            await self.passed(None)  # a path is what it is to the guest
            await self.paths.enter()
            try:
                question = body()
            except BaseException:
                self.paths.leave()
                raise
        try:
            return await self._repeated(kind, question, deadline)
        finally:
            self.paths.leave()

    async def _repeated(self, kind: int, body: bytes, deadline: float) -> bytes:
        deaths = 0
        while True:
            client = await self.usable()
            try:
                return await self._answered_by(client, kind, body, deadline)
            except OSError as refused:
                if refused.errno != errno.ENOTCONN or client is not self._leaving:
                    raise
            except GuestGone:
                deaths += not isinstance(client.ended, LetGo)
                if deaths == 2:
                    raise

    async def _answered_by(
        self, client: AgentClient, kind: int, body: bytes, deadline: float = REQUEST_DEADLINE
    ) -> bytes:
        try:
            answer = await client.request(kind, body, deadline)
        except GuestRefused as refused:
            raise OSError(refused.errno, refused.words) from refused
        except MountsafeError as error:
            await self.blame(client, error)
            raise
        self._answered = client
        return answer

    async def blame(self, client: AgentClient, error: MountsafeError) -> None:
        """Have a VM ended that has broken a rule or a deadline, if that is what the error says."""
        if isinstance(error, GuestFault | DeadlinePassed):
            await self._report(client, error)

    async def _report(self, client: AgentClient, error: MountsafeError) -> None:
        if self._reported is not client:  # once for all tasks that waited
            self._reported = client
            await self._way_of(client.writing).misbehaved(client.machine, error)

    async def rest_when_idle(self, seconds: float, resting: Callable[[], Awaitable[None]]) -> None:
        """Let the VM go whenever it was not used for so long, and tell `resting`. The next request gets another."""
        while True:
            await trio.sleep(max(self._last_used + seconds - trio.current_time(), seconds / 8))
            client = self._client
            if client is None or client.ended is not None or client.busy or self.writing:
                continue
            if trio.current_time() >= self._last_used + seconds:
                client.end(LetGo("the virtual machine was not needed"))
                await resting()

    def defer(self) -> None:
        """What nobody needs yet has to wait: a program needs the processor, though not the guest."""
        self._last_awaited = trio.current_time()

    async def quiet(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until no program has waited for the guest for a moment, or `enough` holds."""
        while not enough() and (self._awaited or trio.current_time() < self._last_awaited + QUIET):  # noqa: ASYNC110
            await trio.sleep(QUIET / 2)

    def unpack(self, decode: Callable[[bytes], T], untrusted_body: bytes) -> T:
        """Decode the answer that `request` just returned, before anything else is awaited.

        One that is malformed ends the stream, and the VM before anything else is asked.
        """
        try:
            return decode(untrusted_body)
        except wire.WireError as error:
            fault = GuestFault(str(error))
            if self._answered is not None:
                self._answered.end(fault)
                self._faults.append((self._answered, fault))
            raise fault from error

    def close(self) -> None:
        """Let the VM go."""
        if self._client is not None:
            with suppress(OSError):
                self._client.end(GuestGone("unmounted"))


async def _nothing(ask: Ask) -> None:
    pass


async def _passed(position: int | None) -> None:
    pass


def _how(mounted: wire.Mounted) -> tuple[bytes, int, int]:
    """How it was mounted."""
    return mounted.fstype, mounted.state, mounted.resorts
