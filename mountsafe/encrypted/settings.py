"""What a server of disks is started with: of plaintext, or of a window to write to."""

from dataclasses import dataclass

SOCKET = "/tmp/nbd"  # in its box


@dataclass(frozen=True, slots=True)
class Settings:
    """Descriptors: its end of the talk, a file with the `Stack` as JSON, the medium or a socket to its disk, keys.

    `tally`: a `Tally`'s, for a disk that is written to; None for one that is only read.
    """

    control: int
    stack: int
    disk: int
    keys: tuple[int, ...]
    tally: int | None = None
