"""The program's first instructions: `python -m mountsafe`, and what the installed command calls."""

import signal


def run() -> None:
    """Run the command line. A Ctrl-C before it can be handled ends the process silently, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mountsafe.cli.main import run as run_command_line

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command_line()


if __name__ == "__main__":
    run()
