"""The appliance, for tests that want a place of their own for it: it is built and tried once, then linked or copied."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from images import images
from mountsafe.appliance.acceleration import Acceleration

MOUNTSAFE = (sys.executable, "-m", "mountsafe")
DEADLINE = 600.0  # seconds, of a build and of a virtual machine's first start


def _output(*command: str | Path) -> bytes:
    """Run a command that must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def put(place: Path, mountsafe: Sequence[str | Path] = MOUNTSAFE) -> None:
    """Make `place` a location with the current appliance: another build elsewhere cannot change it.

    Whether KVM works is known beside it: a start that hangs in it takes its whole deadline, and who may not write there
    would find that out each time.
    """
    built = Path(json.loads(_output(*mountsafe, "appliance", "build", "--json"))["path"])
    known = built.parent.parent / "kvm.json"
    kvm = Acceleration(known)
    if kvm.remembered() is None and not kvm.usable():
        with tempfile.TemporaryDirectory() as folder:
            _output(*mountsafe, "inspect", images.unpack("romfs", Path(folder)))
    version = place / built.name
    place.mkdir(parents=True)
    try:
        shutil.copytree(built, version, copy_function=os.link)
    except OSError:  # another file system
        shutil.rmtree(version, ignore_errors=True)
        _output("cp", "--archive", "--sparse=always", built, version)
    (place / "current").symlink_to(version.name)
    with suppress(FileNotFoundError):  # there is none where KVM may not be used
        shutil.copy(known, place.parent)
