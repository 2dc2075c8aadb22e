"""The program's first instructions: `python -m mountsafe`, and what the installed command calls."""

import gc
import os
import signal
import sys


def run() -> None:
    """Run the command line. A Ctrl-C before it can be handled ends the process silently, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_what_is_closed()
    gc.disable()  # what is imported stays until the end: see `sandbox.program`
    from mountsafe.cli.main import run as run_command_line

    gc.freeze()
    gc.enable()
    try:
        run_command_line()  # which hears Ctrl-C
    finally:
        gc.freeze()  # what is still there: the interpreter's end would look through it for garbage, and then drop it


def _open_what_is_closed() -> None:
    """Have input, output and errors lead somewhere: else the medium could be what the next word is written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  # until the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    run()
