"""mountsafe: open a disk that you do not trust, through a virtual machine.

`mountsafe.open` reads one from a program. Nothing is loaded for it before it is called for: this module is imported
wherever any of ours is, in a box and by the installer too.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mountsafe.errors import UserError as UserError
    from mountsafe.library.filesystem import FileSystem as FileSystem
    from mountsafe.library.image import Image as Image
    from mountsafe.library.image import open as open  # the library's door

__version__ = "0.1.0"
__all__ = ["FileSystem", "Image", "UserError", "open"]  # see __getattr__

_PLACES = {"UserError": "errors", "FileSystem": "library.filesystem", "Image": "library.image", "open": "library.image"}


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
