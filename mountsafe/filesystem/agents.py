"""The agent that a mount asks, whichever virtual machine it lives in at the moment.

The VM may crash, be killed, or be shut down when idle. `request` finds it gone and gets a new one, once for all waiting
tasks, mounts the medium in it again, and repeats the request. A VM that misbehaves is reported to the parent, who ends
it.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from mountsafe import wire
from mountsafe.appliance.client import AgentClient, GuestRefused
from mountsafe.errors import DeadlinePassed, GuestFault, GuestGone, MountsafeError
from mountsafe.limits import CALL_DEADLINE, MOUNT_DEADLINE, REQUEST_DEADLINE
from mountsafe.medium.extents import Window

log = logging.getLogger(__name__)
QUIET = 0.005  # seconds in which no program waits for the guest, after which it may be asked what nobody needs yet
T = TypeVar("T")


class Agents:
    """Hands out answers of the guest's agent, over as many VMs as it takes.

    `mount` is the question that has each VM mount the same in the same way. `get_client` returns a fresh, running
    stream to a VM that has the medium (it starts one if it must); `misbehaved` is told when the guest broke a rule or a
    deadline, and in which VM: another may have taken its place.
    """

    def __init__(
        self,
        get_client: Callable[[], Awaitable[AgentClient]],
        misbehaved: Callable[[int, MountsafeError], Awaitable[None]],
        mount: bytes,
        window: Window,
    ) -> None:
        self._get_client = get_client
        self._misbehaved = misbehaved
        self._mount = mount
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
        client = await self._get_client()
        try:
            await client.hello()
            body = await client.request(wire.Kind.MOUNT, self._mount, MOUNT_DEADLINE)
            return client, wire.unpack_mounted(body)
        except wire.WireError as error:
            fault = GuestFault(str(error))
            client.end(fault)
            raise fault from error
        except BaseException:
            client.end(GuestGone("it could not mount the medium"))
            raise

    async def _usable(self) -> AgentClient:
        async with self._starting:
            while self._faults:
                await self._report(*self._faults.pop())
            if self._client is None or self._client.ended is not None:
                log.info("the virtual machine is gone: starting another")
                self._client, mounted = await self._new_client()
                if _way(mounted) != _way(self.mounted):
                    fault = GuestFault("the medium mounts in another way than before")
                    self._client.end(fault)
                    raise fault
            return self._client

    async def request(
        self, kind: int, body: bytes = b"", deadline: float = REQUEST_DEADLINE, needed: bool = True
    ) -> bytes:
        """Return the untrusted body of the answer. OSError is the guest's no; MountsafeError is the VM's failure.

        `needed` says that a program waits for it (see `quiet`).
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

    async def _request(self, kind: int, body: bytes, deadline: float) -> bytes:
        for attempt in (1, 2):
            client = await self._usable()
            try:
                answer = await client.request(kind, body, deadline)
            except GuestRefused as refused:
                raise OSError(refused.errno, refused.words) from refused
            except GuestGone:
                if attempt == 2:
                    raise
            except (GuestFault, DeadlinePassed) as error:
                await self._report(client, error)
                raise
            else:
                self._answered = client
                return answer
        raise AssertionError

    async def _report(self, client: AgentClient, error: MountsafeError) -> None:
        if self._reported is not client:  # once for all tasks that waited
            self._reported = client
            await self._misbehaved(client.machine, error)

    async def rest_when_idle(self, seconds: float, resting: Callable[[], Awaitable[None]]) -> None:
        """Let the VM go whenever it was not used for so long, and tell `resting`. The next request gets another."""
        while True:
            await trio.sleep(max(self._last_used + seconds - trio.current_time(), seconds / 8))
            client = self._client
            if client is None or client.ended is not None or client.busy:
                continue
            if trio.current_time() >= self._last_used + seconds:
                client.end(GuestGone("the virtual machine was not needed"))
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


def _way(mounted: wire.Mounted) -> tuple[bytes, int, int]:
    """How it was mounted."""
    return mounted.fstype, mounted.state, mounted.resorts
