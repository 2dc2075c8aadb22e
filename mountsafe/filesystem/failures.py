"""What whoever serves a file system answers where it fails."""

import errno
import logging

from mountsafe.errors import DeadlinePassed, MountsafeError
from mountsafe.medium.block import MediumError

log = logging.getLogger(__name__)


def errno_of(error: Exception, what: str) -> int:
    """Return the errno of a failure. One that no program has to do with is logged; a bug with its traceback."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, MediumError | MountsafeError):
        log.warning("%s", error)
        return errno.ETIMEDOUT if isinstance(error, DeadlinePassed) else errno.EIO
    log.error("a bug in %s", what, exc_info=error)
    return errno.EIO
