"""mountsafe: open a disk that you do not trust, through a virtual machine."""

__version__ = "0.1.0"
