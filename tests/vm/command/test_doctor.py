"""What `doctor --sandbox` says of a medium that is not sealed; what it says of one that is: test_sandbox."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.vm.command.stage import Person, Stage
from tests.vm.command.test_sandbox import UNSEALED

Image = Callable[[str], Path]


def test_doctor_says_where_landlock_alone_keeps_the_medium(
    person: Person, folder: Path, image: Image, stage: Stage, program: Callable[[str], str]
) -> None:
    """An image that could not be opened through a read-only mount; and for root a device, writable or not."""
    unsealed = [str(stage.variant(f"unsealed-{person.name}", UNSEALED))]
    sources = [(image("romfs"), "alone", False)]
    device = ""
    if person.is_root:
        behind = folder / "behind"
        behind.write_bytes(image("romfs").read_bytes())
        losetup = [program("losetup"), "--find", "--show", str(behind)]
        device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
        sources += [(Path(device), "alone", False), (Path(device), "the device is read-only", True)]
    try:
        for source, words, by_device in sources:
            if source == Path(device):  # said each time: a loop device keeps it for whoever has it next
                subprocess.run([program("blockdev"), "--setro" if by_device else "--setrw", device], check=True)
            person.run("mount", source, folder / "m", program=unsealed).ok()
            [told] = person.run("doctor", "--sandbox", "--json").ok().json()
            assert told["sealed"] == {"by_mount": False, "by_device": by_device, "by_landlock": True}
            assert words in person.run("doctor", "--sandbox").ok().out
            person.run("unmount", source).ok()
    finally:
        if device:
            person.run("unmount", "--all")
            subprocess.run([program("blockdev"), "--setrw", device], check=True)
            subprocess.run([program("losetup"), "-d", device], check=True)
