"""Key derivation within bounds: what a header asks for is weighed before it is done.

A header may ask for a year or for 16 GiB, and none of these functions can be stopped from inside. So each is tried with
a small cost first, and refused if the real one would take too long. The host ends a process that takes longer still.
"""

import time
from dataclasses import dataclass, field

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw

from mountsafe.encrypted import gcrypt
from mountsafe.encrypted.faults import Fault, KeyFault
from mountsafe.limits import KEY_SECONDS

TRIED_ITERATIONS = 2000  # of PBKDF2: 1 ms
TRIED_MEMORY = 4096  # KiB, of argon2: 5 ms
MAX_THREADS = 16  # of argon2; cryptsetup makes no more than 4
MAX_SALT = 256  # bytes; TrueCrypt and LUKS have 64 at most
ARGON2 = {"argon2i": Type.I, "argon2id": Type.ID}


@dataclass(slots=True)
class Budget:
    """What all attempts of one unlocking may take: `seconds` of a processor, and `memory` in KiB at a time.

    `available`: KiB that the machine has left, None if that is not known.
    """

    memory: int
    seconds: float = KEY_SECONDS
    available: int | None = None
    _speeds: dict[str, float] = field(default_factory=dict)

    def pay(self, seconds: float) -> None:
        """Take a time off. Raises KeyFault (TOO_COSTLY) if there is not as much."""
        if seconds > self.seconds:
            raise KeyFault(Fault.TOO_COSTLY, f"{seconds:.0f} s")
        self.seconds -= seconds

    def speed(self, name: str) -> float:
        """Return how many units of cost a function has a second: iterations, or KiB."""
        if name not in self._speeds:
            start = time.process_time()  # a machine that others use makes no header cost more
            if name in ARGON2:
                _argon2(name, b"", bytes(16), (1, TRIED_MEMORY, 1), 32)
                cost = TRIED_MEMORY
            else:
                gcrypt.pbkdf2(name, b"", bytes(16), TRIED_ITERATIONS, gcrypt.digest_size(name))
                cost = TRIED_ITERATIONS
            self._speeds[name] = cost / max(time.process_time() - start, 1e-6)
        return self._speeds[name]


def pbkdf2(budget: Budget, name: str, secret: bytes, salt: bytes, iterations: int, size: int) -> bytes:
    """Return `size` bytes. Raises KeyFault (KDF for a digest that is not there, TOO_COSTLY, DAMAGED)."""
    if not 0 < iterations < 1 << 32 or len(salt) > MAX_SALT or size <= 0:
        raise KeyFault(Fault.DAMAGED, "pbkdf2")
    try:
        blocks = -(-size // gcrypt.digest_size(name))
        budget.pay(iterations * blocks / budget.speed(name))
        return gcrypt.pbkdf2(name, secret, salt, iterations, size)
    except gcrypt.GcryptError as error:
        raise KeyFault(Fault.KDF, f"pbkdf2-{name}") from error


def argon2(budget: Budget, name: str, secret: bytes, salt: bytes, cost: tuple[int, int, int], size: int) -> bytes:
    """Return `size` bytes; `cost` is passes, KiB and threads.

    Raises KeyFault (KDF for a kind that is not there, TOO_COSTLY, NO_MEMORY, DAMAGED).
    """
    if name not in ARGON2:
        raise KeyFault(Fault.KDF, name)
    passes, memory, threads = cost
    if not (0 < passes < 1 << 32 and 0 < threads <= MAX_THREADS and 8 * threads <= memory and len(salt) >= 8):
        raise KeyFault(Fault.DAMAGED, name)
    if memory > budget.memory:
        raise KeyFault(Fault.TOO_COSTLY, f"{memory >> 10} MiB")
    if budget.available is not None and memory > budget.available:
        raise KeyFault(Fault.NO_MEMORY, f"{memory >> 10} MiB")
    budget.pay(passes * memory / budget.speed(name) / min(threads, 2))
    return _argon2(name, secret, salt, cost, size)


def _argon2(name: str, secret: bytes, salt: bytes, cost: tuple[int, int, int], size: int) -> bytes:
    passes, memory, threads = cost
    try:
        made: bytes = hash_secret_raw(secret, salt, passes, memory, threads, size, ARGON2[name])
    except MemoryError as error:
        raise KeyFault(Fault.NO_MEMORY, f"{memory >> 10} MiB") from error
    except HashingError as error:
        if "allocation" in str(error).lower() or "thread" in str(error).lower():
            raise KeyFault(Fault.NO_MEMORY, f"{memory >> 10} MiB") from error
        raise KeyFault(Fault.DAMAGED, name) from error
    return made
