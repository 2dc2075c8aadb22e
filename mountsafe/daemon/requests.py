"""What is asked of one medium: each request is for that medium, and for whom it is shown to.

Between a question and its approval, by polkit, minutes may pass: then another medium may be in its place, another user
at the seat. So both are compared again before anything is done.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from mountsafe.daemon.aside import aside
from mountsafe.daemon.control import Request
from mountsafe.daemon.keeper import Keeper
from mountsafe.daemon.keys import NOTHING, Said, said_of
from mountsafe.daemon.person import Person
from mountsafe.daemon.plugged import is_idle
from mountsafe.daemon.showing import PERSON_PATIENCE
from mountsafe.daemon.states import State
from mountsafe.errors import ExitCode, UserError
from mountsafe.hotplug.devices import cut_power
from mountsafe.medium.claim import Swapped
from mountsafe.session.messages import KeyForm
from mountsafe.text import printable

DRIVE_PATIENCE = 30.0  # seconds until a look at a drive, or a command to it, is left behind


class Requests:
    """Of the media that are kept, by the names of their devices. `person`: who is at the seat, if somebody is."""

    def __init__(self, keepers: Mapping[str, Keeper], person: Callable[[], Person | None]) -> None:
        self._keepers = keepers
        self._person = person

    async def asked(self, method: str, *arguments: str | int) -> Request:
        """Return what a method is about. Raises UserError."""
        match method, arguments:
            case "Open", (str(device),):
                return self._asked_of(device, partial(self._open, said=NOTHING))
            case "OpenAs", (str(device), str(fstype), int(pim), bool(hidden)):
                return self._asked_of(device, partial(self._open, said=said_of(fstype, pim, hidden)))
            case "Eject", (str(device),):
                return self._asked_of(device, self._eject)
            case "Lock", (str(device),):
                return self._asked_of(device, self._lock)
            case "Unlock", (str(device), str(form), int(fd)):
                return await self._asked_to_unlock(self._named(device), form, fd)
            case _:
                raise UserError(f"there is no {method}")

    def _asked_of(self, device: str, do: Callable[[Keeper, int | None], Awaitable[None]]) -> Request:
        """Return what is about a medium as it is now: `do` is given its keeper and whom it is shown to."""
        keeper = self._named(device)
        owner = keeper.person.uid if keeper.person else None
        return Request(keeper.device.name, owner, partial(do, keeper, owner))

    async def _open(self, keeper: Keeper, owner: int | None, said: Said) -> None:
        self._require_same(keeper, owner)
        keeper.open(said)

    async def _eject(self, keeper: Keeper, owner: int | None) -> None:
        """Unmount a medium, let go of it, and cut its drive's power if nothing else of the drive is in use."""
        self._require_same(keeper, owner)
        await keeper.eject()
        drive = keeper.device.drive
        if drive and not self._is_kept(drive) and await aside(partial(is_idle, drive), DRIVE_PATIENCE):
            await aside(partial(cut_power, drive), DRIVE_PATIENCE)

    async def _lock(self, keeper: Keeper, owner: int | None) -> None:
        self._require_same(keeper, owner)
        await keeper.lock()

    async def _asked_to_unlock(self, keeper: Keeper, form: str, fd: int) -> Request:
        """Unlock it for the person at the seat: nobody else may see what is in it, and nobody while they are away."""
        if form not in list(KeyForm):
            raise UserError(f"there is no key of the form {printable(form)}", f"One of: {', '.join(KeyForm)}.")
        person = await self._at_seat()

        async def run() -> None:
            if (await self._at_seat()).uid != person.uid:
                raise UserError("somebody else is at the seat by now", "Try again.")
            if self._keepers.get(keeper.device.name) is not keeper:
                raise Swapped(keeper.device.node)
            await keeper.unlock(KeyForm(form), fd, person.uid)

        return Request(keeper.device.name, person.uid, run)

    async def _at_seat(self) -> Person:
        """Return who is there. Raises UserError if nobody is, or the screen is locked."""
        person = await aside(self._person, PERSON_PATIENCE)
        if person is None or person.locked:
            raise UserError("nobody is at the seat, or the screen is locked", "Nothing is unlocked while that is so.")
        return person

    def _require_same(self, keeper: Keeper, owner: int | None) -> None:
        """Raise Swapped unless it is the medium that was asked for still, shown to the same user."""
        now = keeper.person.uid if keeper.person else None
        if self._keepers.get(keeper.device.name) is not keeper or now != owner:
            raise Swapped(keeper.device.node)

    def _is_kept(self, drive: str) -> bool:
        """Whether something of a drive is kept: a card reader has several slots, a disk several partitions."""
        return any(keeper.device.drive == drive and keeper.state != State.EJECTED for keeper in self._keepers.values())

    def _named(self, device: str) -> Keeper:
        """Return the keeper of a device, or of one with a mount of this path."""
        name = device.removeprefix("/dev/")
        for keeper in self._keepers.values():
            if name == keeper.device.name or device in keeper.told()["mounts"]:
                return keeper
        shown = printable(device)
        raise UserError(f"{shown} is no medium that mountsafe keeps", "mountsafe devices shows them.", ExitCode.SOURCE)
