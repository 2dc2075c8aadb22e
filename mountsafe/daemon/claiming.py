"""How a medium is claimed, given to whoever shows it, and released: what may block is done `aside`."""

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from mountsafe.daemon.aside import TooSlow, aside, quietly
from mountsafe.hotplug.devices import Device, is_to_be_detached
from mountsafe.medium.claim import Claim
from mountsafe.medium.source import Medium
from mountsafe.policy.rules import Access

NOTES = Path("/run/mountsafe/claims")
CLAIM_PATIENCE = 3.0  # seconds: a predecessor of ours, or udev itself, may still have it open
CLAIM_INTERVAL = 0.1
BUSY_INTERVAL = 1.0
DETACH_INTERVAL = 0.5
# Seconds until what blocks is left behind. The kernel tries a command that a stick does not answer for 30 s, and again.
LOOK_PATIENCE, EJECT_PATIENCE, RELEASE_PATIENCE = 20.0, 40.0, 40.0


async def claimed(device: Device, busy: Callable[[], None]) -> Claim:
    """Claim a device, as soon as nobody else has it for himself; `busy` is called once if that takes a while.

    Raises OSError, Swapped.
    """
    end = trio.current_time() + CLAIM_PATIENCE
    said = False
    claim = partial(Claim, device.node, device.number, device.sequence, NOTES)
    while True:
        try:
            return await aside(claim, undo=Claim.release)  # opening a broken stick takes a minute
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        patient = trio.current_time() < end
        if not patient and not said:
            busy()
            said = True
        await trio.sleep(CLAIM_INTERVAL if patient else BUSY_INTERVAL)


async def until_detached(disk: str) -> None:
    """Wait for ever, or until a loop device is to be detached: our hold is what keeps that from happening."""
    asked = partial(is_to_be_detached, disk)
    detached: bool | None = False
    while not detached:
        with suppress(TooSlow):
            detached = await aside(asked, LOOK_PATIENCE)
        if detached is None:
            await trio.sleep_forever()
        await trio.sleep(DETACH_INTERVAL)  # nothing tells of it


@asynccontextmanager
async def medium_for(claim: Claim, access: Access | None) -> AsyncIterator[Medium]:
    """Give the medium to pass on, with a descriptor that is open for writing as well if that may be."""
    fd = None
    if access is Access.ON_DEMAND:
        fd = await aside(claim.open_for_writing, LOOK_PATIENCE, undo=_closed)
    try:
        yield replace(claim.medium, writable_fd=fd) if fd is not None else claim.medium
    finally:
        _closed(fd)


def _closed(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


async def let_go(claim: Claim, ejecting: bool, name: str) -> None:
    """Let go of a device, and have it open its tray, or stop, if it is ejected."""
    if ejecting:
        await quietly(claim.eject, f"ejecting {name}", EJECT_PATIENCE)
    await quietly(claim.release, f"letting go of {name}", RELEASE_PATIENCE)
