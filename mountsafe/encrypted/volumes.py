"""A volume of any kind: which it is, what it says of itself, and what a secret opens. Pure, over a `Volume`."""

from dataclasses import dataclass

from mountsafe.encrypted import bitlocker, bitlockerkeys, luks1, luks2, tcrypt
from mountsafe.encrypted.description import Description, Form, Kind
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.encrypted.kdf import Budget
from mountsafe.encrypted.unlocking import Unlocked
from mountsafe.encrypted.volume import Volume

TCRYPT = (Kind.VERACRYPT, Kind.TRUECRYPT)


@dataclass(frozen=True, slots=True)
class Secret:
    """What is to open a volume: its bytes, and for VeraCrypt what goes with it."""

    form: Form
    secret: bytes
    pim: int = 0
    hidden: bool = False
    keyfiles: tuple[bytes, ...] = ()


def describe(volume: Volume, header: Volume | None, kind: Kind | None) -> Description:
    """Tell of a volume. `header`: the one that lies elsewhere; `kind`: None for what it is. Raises KeyFault."""
    where = header or volume
    detached = header is not None
    if kind in TCRYPT:
        return tcrypt.describe(kind)
    if _is_bitlocker(volume, header, kind):
        return bitlocker.describe(bitlocker.read(volume), volume)
    if _is_luks1(where):
        return luks1.describe(luks1.read(where, detached), volume.size, detached)
    return luks2.describe(luks2.read(where), volume.size, detached)


def unlock(volume: Volume, header: Volume | None, kind: Kind | None, secret: Secret, budget: Budget) -> Unlocked:
    """Return the layout and key that a secret opens. Raises KeyFault."""
    where = header or volume
    if kind in TCRYPT:
        password = tcrypt.mixed(kind, secret.secret, secret.keyfiles)
        return tcrypt.unlock(volume, kind, secret.hidden, password, secret.pim, budget)
    if _is_bitlocker(volume, header, kind):
        return bitlockerkeys.unlock(bitlocker.read(volume), volume.size, secret.form, secret.secret, budget)
    if _is_luks1(where):
        old = luks1.read(where, header is not None)
        return luks1.unlock(old, where, volume.size, _of_luks(secret), budget)
    return luks2.unlock(luks2.read(where), where, volume.size, _of_luks(secret), budget)


def _of_luks(secret: Secret) -> bytes:
    if secret.form not in (Form.PASSPHRASE, Form.KEY_FILE):
        raise KeyFault(Fault.NO_SLOT)
    return secret.secret


def _is_bitlocker(volume: Volume, header: Volume | None, kind: Kind | None) -> bool:
    return kind is Kind.BITLOCKER or (kind is None and header is None and bitlocker.is_one(volume))


def _is_luks1(volume: Volume) -> bool:
    return volume.size >= len(luks1.MAGIC) and volume.take(0, len(luks1.MAGIC)) == luks1.MAGIC
