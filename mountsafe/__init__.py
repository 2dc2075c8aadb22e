"""mountsafe: open a disk that nobody trusts, through a virtual machine."""

__version__ = "0.1.0"
