"""BitLocker sticks for tests: the headers that Windows wrote, of cryptsetup's images, around a file system of ours.

Of what was in those images cryptsetup's project has wiped so much, to have them small, that no file system is left.
"""

import re
import subprocess
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path

from tests.cryptsetups import unpacked
from tests.luks import encrypted

ARCHIVE = "bitlk-images.tar.xz"
NAME = "bitlk-togo-aes-xts-128"  # "BitLocker To Go", as of sticks, with a password and a recovery key
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Stick:
    """An image, what opens it, and what its header says."""

    path: Path
    password: str
    recovery_key: str
    uuid: str
    recovery_id: str


def stick(plain: Path, folder: Path) -> Stick:
    """Write an image in `folder` whose plaintext begins with what is in `plain`. Gives the test up without a corpus.

    The key of it is cryptsetup's finding.
    """
    made = unpacked(folder, ARCHIVE, f"bitlk-images/{NAME}.img")
    config = RawConfigParser()
    config.read(unpacked(folder, ARCHIVE, "bitlk-images/images.conf"))
    said = config[NAME]
    command: list[str | Path] = ["cryptsetup", "bitlkDump", "-q", "--dump-volume-key", "--key-file", "-", made]
    password = said["pw"].encode()
    told = subprocess.run(command, input=password, check=True, capture_output=True, timeout=60).stdout.decode()
    key = bytes.fromhex(re.sub(r"\s", "", told[told.index("MK dump:") + 8 :]))
    told = subprocess.run([*command[:2], made], check=True, capture_output=True, timeout=60).stdout.decode()
    areas = [(int(at), int(size)) for at, size in re.findall(r"Offset:\s*(\d+) \[bytes\]\s*Size:\s*(\d+)", told)]
    *metadata, (moved, length) = areas
    data = plain.read_bytes()
    data += bytes(-len(data) % SECTOR)
    assert length < len(data) < min(at for at, _ in metadata), "it would lie where the metadata are"
    with made.open("r+b") as file:
        for at, part in ((moved, data[:length]), (length, data[length:])):
            file.seek(at)
            file.write(encrypted(part, key, SECTOR, at))
    return Stick(made, said["pw"], said["rp"], said["guid"], said["rp_vmk_guid"])
