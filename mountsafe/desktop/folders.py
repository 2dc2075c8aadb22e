"""Show a folder with whatever the desktop has for that."""

import logging
import subprocess
from functools import partial

from mountsafe.system.units import apart
from mountsafe.trios import in_thread

log = logging.getLogger(__name__)


async def open_folder(folder: str) -> None:
    """Open a folder in a file manager; return when the program that was started for it has ended."""
    command = partial(subprocess.run, [*apart(), "xdg-open", folder], stdin=subprocess.DEVNULL, check=False)
    try:
        # It may last as long as the program that shows the folder, which outlives us.
        done = await in_thread(partial(command, start_new_session=True))
    except OSError as error:
        log.warning("cannot open %s: %s", folder, error)
        return
    if done.returncode:
        log.warning("nothing here opens folders: xdg-open ended with %d", done.returncode)
