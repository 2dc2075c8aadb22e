"""What the plaintext server is started with."""

from dataclasses import dataclass

SOCKET = "/tmp/nbd"  # in its box


@dataclass(frozen=True, slots=True)
class Settings:
    """Descriptors: its end of the talk, a file with the `Stack` as JSON, the medium or a socket to its disk, keys."""

    control: int
    stack: int
    disk: int
    keys: tuple[int, ...]
