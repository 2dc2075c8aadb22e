"""What is reported of file systems that were asked for and are not there."""

from mountsafe.errors import ExitCode
from mountsafe.limits import MAX_MISSING, MAX_MOUNTS
from mountsafe.medium.volumes import Volume
from mountsafe.session.record import Missing


def not_mounted(volume: Volume, why: str, code: ExitCode) -> Missing:
    """Return what is told of a file system that was asked for and is not there. `why` is fit to be shown."""
    what = volume.describe()
    message = why if what in why else f"cannot mount {what}: {why}"
    return Missing(volume.device, volume.number, volume.fstype, volume.label, message, code)


def within_limit(volumes: list[Volume]) -> tuple[list[Volume], list[Missing]]:
    """Return the file systems that can be mounted, and what is told of the others."""
    why = f"only the first {MAX_MOUNTS} of {len(volumes)} file systems are mounted"
    beyond = volumes[MAX_MOUNTS : MAX_MOUNTS + MAX_MISSING]
    return volumes[:MAX_MOUNTS], [not_mounted(volume, why, ExitCode.PARTIAL) for volume in beyond]
