"""Keys for what is encrypted: from a terminal, a file or a descriptor, never an argument or the environment."""

import getpass
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mountsafe import channel
from mountsafe.cli import screen
from mountsafe.cli.typers import option
from mountsafe.encrypted import secrecy
from mountsafe.errors import ExitCode, UserError
from mountsafe.limits import KEYFILE_BYTES, MAX_SECRET
from mountsafe.medium.volumes import NO_SIGNATURE
from mountsafe.session.messages import Key, KeyForm, Locked
from mountsafe.session.start import Unlock
from mountsafe.text import printable, shown_path, size

TRIES = 3
MAX_KEY_FILES = 4
TERMINAL = "/dev/tty"
MAX_DETACHED = 64 << 20  # bytes of a header that is elsewhere: LUKS2's are of 16 MiB if nothing else was asked for

KeyFile = Annotated[
    list[Path] | None,
    option(
        "--key-file",
        metavar="FILE",
        help="The key of what is encrypted: of LUKS a key file (- for standard input), of BitLocker a .BEK file, of"
        " VeraCrypt a keyfile beside the passphrase (may be repeated).",
        show_default=False,
        allow_dash=True,
        readable=False,
    ),
]
KeyFd = Annotated[
    int | None,
    option("--key-fd", metavar="N", min=0, help="Read the passphrase from this descriptor.", show_default=False),
]
RecoveryKey = Annotated[bool, option("--recovery-key", help="Ask for BitLocker's recovery key, not its password.")]
Header = Annotated[
    Path | None,
    option("--header", metavar="FILE", help="A LUKS header that is not on the medium.", show_default=False),
]
Pim = Annotated[int, option("--pim", min=0, metavar="N", help="VeraCrypt's PIM, if it has one.", show_default=False)]
BigMemory = Annotated[
    bool, option("--big-memory", help="Let the key's derivation have 4 GiB of memory, if its header asks for that.")
]
Hidden = Annotated[bool, option("--hidden", help="Open VeraCrypt's hidden volume.")]


@dataclass(frozen=True, slots=True)
class Keys:
    """What the command line says of keys."""

    files: tuple[Path, ...] = ()
    fd: int | None = None
    recovery: bool = False
    header: Path | None = None
    pim: int = 0
    hidden: bool = False
    big_memory: bool = False

    def named(self, fstype: str | None) -> bool:
        """Whether nobody has to type anything. `fstype`: what it is said to be."""
        return self.fd is not None or (bool(self.files) and fstype not in NO_SIGNATURE)

    def check(self) -> None:
        """Raise UserError (USAGE) for what does not go together."""
        if len(self.files) > MAX_KEY_FILES:
            raise UserError(f"more than {MAX_KEY_FILES} key files", "Name fewer.", ExitCode.USAGE)
        if self.fd is not None:
            try:
                os.fstat(self.fd)
            except OSError as error:
                hint = "For example: mountsafe mount disk.img --key-fd 3 3<secret"
                raise UserError(f"descriptor {self.fd} is not open", hint, ExitCode.USAGE) from error


def unlocker(keys: Keys, ask: Callable[[Locked], bytes | None] | None = None) -> Unlock:
    """Return who is asked for keys. A key that is named is tried once, and a person is asked thrice.

    `ask`: how, if not on the terminal.
    """
    count = 0

    def unlock(locked: Locked) -> tuple[Key, list[int]] | None:
        nonlocal count
        count = count + 1 if locked.why else 1
        if ask is None:
            secret = secret_of(keys, locked, count)
        else:
            typed = ask(locked) if count <= TRIES else None
            secret = (KeyForm.PASSPHRASE, secrecy.sealed(typed)) if typed else None
        if secret is None:
            return None
        form, fd = secret
        fds = [fd]
        try:
            fds += [secrecy.sealed(_content(keys.header, MAX_DETACHED))] if keys.header else []
            extra = keys.files if locked.kind in NO_SIGNATURE else ()
            fds += [secrecy.sealed(_content(path, KEYFILE_BYTES, cut=True)) for path in extra]
        except BaseException:
            channel.close(fds)
            raise
        return Key(form, True, keys.pim, keys.hidden, len(extra), keys.header is not None, keys.big_memory), fds

    return unlock


def secret_of(keys: Keys, locked: Locked, count: int) -> tuple[KeyForm, int] | None:
    """Return a secret and its form; None if there is no other than was tried.

    From here on no core is made of this process, and no other of its user reads its memory.
    """
    secrecy.undumpable()
    form = KeyForm.RECOVERY_KEY if keys.recovery else KeyForm.PASSPHRASE
    if keys.fd is not None:
        return (form, secrecy.sealed(_read(keys.fd, f"descriptor {keys.fd}"))) if count == 1 else None
    if keys.files and locked.kind not in NO_SIGNATURE:
        form = KeyForm.BEK_FILE if locked.kind == "BitLocker" else KeyForm.KEY_FILE
        return (form, secrecy.sealed(_content(keys.files[0]))) if count == 1 else None
    if count > TRIES:
        return None
    typed = _typed(locked, keys.recovery, count)
    return None if typed is None else (form, secrecy.sealed(typed))


def _typed(locked: Locked, recovery: bool, count: int) -> bytes | None:
    """Return what a person types; None if nobody is there, or they type nothing."""
    if not os.path.exists(TERMINAL):
        return None
    label = f' "{printable(locked.label)}"' if locked.label else ""
    hint = f" [{printable(locked.hint, 200)}]" if locked.hint and count == 1 else ""
    what = "Recovery key" if recovery else "Passphrase"
    before = f"{printable(locked.why, 300)}\n" if locked.why else ""
    asked = f"{before}{what} of {printable(locked.name)}{label} ({printable(locked.kind)}){hint}; Enter skips it: "
    with suppress(OSError, EOFError), screen.paused(), open(TERMINAL, "w", encoding="utf-8") as terminal:
        return getpass.getpass(asked, terminal).encode(errors="surrogateescape") or None
    return None


def _content(path: Path, most: int = MAX_SECRET, cut: bool = False) -> bytes:
    """Return what a key file has in it; `cut`: only so much of it. Raises UserError (USAGE)."""
    if os.fspath(path) == "-":
        return _read(sys.stdin.fileno(), "standard input", most, cut)
    name = shown_path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _unread(name, error) from error
    try:
        return _read(fd, name, most, cut)
    finally:
        os.close(fd)


def _read(fd: int, name: str, most: int = MAX_SECRET, cut: bool = False) -> bytes:
    data = b""
    try:
        while len(data) <= most and (piece := os.read(fd, most + 1 - len(data))):
            data += piece
    except OSError as error:
        raise _unread(name, error) from error
    if len(data) > most and not cut:
        raise UserError(f"{name} has more than {size(most)}", "It is no key file.", ExitCode.USAGE)
    return data[:most]


def _unread(name: str, error: OSError) -> UserError:
    return UserError(f"{name} cannot be read: {error.strerror}", "Name a file with the key.", ExitCode.USAGE)
