"""Disks in containers of every kind, made by qemu-img."""

import subprocess
from pathlib import Path

from mountsafe.medium.formats import Format

# Those that there are, each of which is a way as well: as qemu-img makes it if nothing more is said.
FORMATS = [each for each in Format if each is not Format.RAW]

# Words that qemu-img takes after `-O`.
WAYS = {
    "qcow2": ["qcow2"],
    "qcow2-zstd": ["qcow2", "-c", "-o", "compression_type=zstd"],
    "qcow2-old": ["qcow2", "-o", "compat=0.10,cluster_size=512"],
    "qcow2-l2": ["qcow2", "-o", "extended_l2=on"],
    "vmdk": ["vmdk"],
    "vmdk-stream": ["vmdk", "-o", "subformat=streamOptimized"],
    "vdi": ["vdi"],
    "vdi-static": ["vdi", "-o", "static=on"],
    "vpc": ["vpc"],
    "vpc-fixed": ["vpc", "-o", "subformat=fixed"],
    "vhdx": ["vhdx"],
}


def convert(source: Path, way: str, target: Path) -> None:
    """Write the raw image `source` as a container."""
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", *WAYS[way], source, target], check=True)
