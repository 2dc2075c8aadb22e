"""Three kinds of failure, one hierarchy.

`UserError` is for the person at the keyboard: a sentence, a hint, an exit code. `ProtocolFault` says that a peer across
the wall broke the rules: the type shows whose fault it is. Anything else that escapes is a bug and deserves its
traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, documented in README.md; loosely after sysexits.h."""

    OK = 0
    FAILURE = 1  # something failed that fits none of the others
    USAGE = 2  # wrong arguments (typer's own code as well)
    SOURCE = 3  # the source is absent, empty, truncated, a directory, or nothing mountable
    TARGET = 4  # the mount point is busy, not empty, or cannot be made
    DEPENDENCY = 5  # a program, package, kernel or right is missing on this host
    APPLIANCE = 6  # the virtual machine did not start, died, or broke the protocol
    NOT_MOUNTED = 7  # unmount or status of something that is not mounted
    BUSY = 8  # the mount is in use
    DEADLINE = 9  # a deadline passed
    PARTIAL = 10  # some of what was asked for is there, and some is missing
    LOCKED = 11  # it is encrypted, and was not unlocked: no passphrase or key was given, or not the right one
    DAMAGED = 12  # a check has found errors
    UNCHECKED = 13  # it could not be checked: its type has no checker, or that could not look at it
    INTERRUPTED = 130  # Ctrl-C


class MountsafeError(Exception):
    """Base of every error that mountsafe raises on purpose."""


class UserError(MountsafeError):
    """One sentence for a user, a hint what to do, and the exit code.

    The message may hold text from the medium only after `text.printable`.
    """

    def __init__(self, message: str, hint: str = "", code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class NoRight(UserError):
    """The caller lacks a right on this host. Without a hint, it helps to do the same as root (see `cli.main`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, ExitCode.DEPENDENCY)

    @classmethod
    def of(cls, what: object, error: OSError) -> "NoRight":
        """Return what a user is told who may not do something with `what`."""
        return cls(f"{what}: {(error.strerror or str(error)).lower()}")


class ProtocolFault(MountsafeError):
    """A peer sent what the protocol does not allow."""


class GuestFault(ProtocolFault):
    """The appliance broke a rule: the session treats it as hostile from here on."""


class GuestGone(MountsafeError):
    """The stream to the appliance ended: the VM died, was shut down, or was cut off."""


class MediumError(MountsafeError):
    """The medium did not give the bytes: a read error, or it is shorter than it said."""


class DiskGone(MediumError):
    """Who served the disk has gone, or is silent: no byte of it will come any more."""


class DeadlinePassed(MountsafeError):
    """The appliance did not answer within the stated time."""
