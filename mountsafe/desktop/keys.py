"""The key of a locked medium: asked for, and given to the daemon, which tries it."""

import logging
import os
import re
from contextlib import suppress

import trio

from mountsafe.daemon import client
from mountsafe.desktop import prompts, remembering
from mountsafe.desktop.notices import Medium, name_of
from mountsafe.encrypted import secrecy
from mountsafe.errors import UserError
from mountsafe.session.messages import KeyForm
from mountsafe.system import handed

log = logging.getLogger(__name__)
TRIES = 3
_RECOVERY_KEY = re.compile(rb"\s*\d{6}(-\d{6}){7}\s*")  # as BitLocker has them


def form_of(secret: bytes, kind: str) -> KeyForm:
    """Return what somebody has typed."""
    recovery = kind.startswith("BitLocker") and _RECOVERY_KEY.fullmatch(secret)
    return KeyForm.RECOVERY_KEY if recovery else KeyForm.PASSPHRASE


def question_about(medium: Medium, error: str) -> prompts.Question:
    """Return what is asked."""
    name, kind, hint = name_of(medium), medium["locked"], medium["locked_hint"]
    lines = (f"{name} ({medium['device']}) is encrypted: {kind}.", f"{hint}." if hint else "", "It opens with its key.")
    return prompts.Question(f"Unlock {name} ({kind})", " ".join(filter(None, lines)), error)


async def unlock(medium: Medium) -> bytes | None:
    """Have it unlocked with what somebody types; return that, to be wiped. None: they do not want to. UserError."""
    refused: UserError | None = None
    for _ in range(TRIES):
        secret = await prompts.ask(question_about(medium, refused.message if refused else ""))
        if not secret:
            return None
        try:
            await give(medium, secret)
        except BaseException as error:
            secrecy.wipe(secret)
            if not isinstance(error, client.WrongKey):
                raise
            refused = error
        else:
            return secret
    assert refused is not None
    raise refused


async def recalled(medium: Medium) -> bool:
    """Have it unlocked with what is remembered of it; return whether that did. Raises UserError."""
    uuid = medium.get("locked_uuid", "")
    secret = await trio.to_thread.run_sync(remembering.recall, uuid) if uuid else None
    if not secret:
        return False
    try:
        await give(medium, secret)
    except client.WrongKey as error:
        log.info("what is remembered of %s does not unlock it: %s", medium["device"], error.message)
        return False
    finally:
        secrecy.wipe(secret)
    return True


async def give(medium: Medium, secret: bytes) -> None:
    """Have the daemon try a key. Raises WrongKey, UserError."""
    fd = handed.carried(secret)
    try:
        form = form_of(secret, medium["locked"])
        await trio.to_thread.run_sync(client.unlock, medium["device"], form, fd)
    finally:
        with suppress(OSError):
            os.close(fd)
