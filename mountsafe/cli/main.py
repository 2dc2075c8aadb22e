"""`mountsafe`: the command line, put together."""

import os
import shlex
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from mountsafe import __version__, environment, shortage
from mountsafe.cli import interrupts, screen
from mountsafe.cli.typers import App, option
from mountsafe.errors import ExitCode, MountsafeError, NoRight, UserError

# Which module of this room has a verb. Where that is called, it alone is imported, with all that it needs.
VERBS = {
    **dict.fromkeys(("mount", "unmount"), "mounting"),
    "list": "listing",
    "inspect": "inspecting",
    **dict.fromkeys(("ls", "cat"), "looking"),
    "cp": "copying",
    **dict.fromkeys(("tar", "hash", "timeline"), "listings"),
    "run": "commanding",
    "check": "checking",
    "doctor": "diagnose",
    **dict.fromkeys(("trust", "untrust"), "trusting"),
    "setup": "setting",
    "daemon": "serving",
    **dict.fromkeys(("devices", "open", "eject", "unlock", "lock", "watch", "status", "reload"), "media"),
    **dict.fromkeys(("agent", "forget"), "desktop"),
    "view": "viewing",
    "appliance": "appliance",
    "policy": "policies",
}
COMPLETING = "_MOUNTSAFE_COMPLETE"  # a shell asks for what could come next


def commands(verb: str = "") -> App:
    """Return the command line: with all verbs, or that of a module alone which has this one."""
    app = App(
        name="mountsafe",
        help="Open a disk that nobody trusts: a virtual machine reads its file system, and your kernel never does.",
        epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 source, 4 mount point, 5 something or a right is missing on"
        " this host, 6 virtual machine, 7 not mounted, 8 busy, 9 deadline, 10 partly done, 11 locked, 12 errors found, "
        "13 not checked, 130 interrupted.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    modules = [VERBS[verb]] if verb in VERBS and COMPLETING not in os.environ else dict.fromkeys(VERBS.values())
    for module in modules:
        import_module(f"mountsafe.cli.{module}").register(app)
    return app


# Every error of typer's about arguments; where it comes from depends on typer's version.
USAGE: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        screen.say(f"mountsafe {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[bool, option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options that come before a verb."""


def _drop_output() -> None:
    """Let the interpreter's last flush succeed: what is still to be written cannot be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _misused(error: Any) -> NoReturn:
    """Say what is wrong with the arguments: typer would print them as they are."""
    context = error.ctx
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        screen.usage(context.get_help())
        sys.exit(int(ExitCode.USAGE))
    hint = f"{context.command_path} --help shows how." if context is not None else ""
    words = error.format_message().replace("Value error, ", "", 1)  # pydantic's, of typer's newer releases
    screen.fail(UserError(words, hint, ExitCode.USAGE))


def _as_root() -> str:
    """Return the command that does the same with root's rights."""
    if os.geteuid() == 0:
        return "Root may not do it either: is it read-only, or forbidden by a security module?"
    return shlex.join(["sudo", "mountsafe", *sys.argv[1:]])


def _look_for_json() -> None:
    """Take note of --json. The option's own callback is not called where the arguments are wrong."""
    words = sys.argv[1:]
    screen.for_programs("--json" in words[: words.index("--") if "--" in words else None])


def _for_the_user(error: MountsafeError) -> UserError:
    if isinstance(error, NoRight):
        return NoRight(error.message, error.hint or _as_root())
    return error if isinstance(error, UserError) else UserError(str(error))


def _as_told(error: BaseException) -> UserError:
    """Return the words of an error of the operating system's that nobody expected."""
    name, words = getattr(error, "filename", None), getattr(error, "strerror", None)
    place = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
    return UserError(f"{place}{words or error}", "--verbose may show more.")


def run() -> None:
    """The console script: every error that is meant for a user ends here, as one sentence and a hint."""
    shortage.raise_limits()
    for name in environment.harden():
        screen.warn(f"{name} is ignored: what it names is not root's alone")
    _look_for_json()
    try:
        try:
            interrupts.hear()
            code = commands(sys.argv[1] if len(sys.argv) > 1 else "")(standalone_mode=False)
        finally:
            interrupts.hear_no_more()
            sys.stdout.flush()
        if code == ExitCode.INTERRUPTED:  # typer's newer releases make that of Ctrl-C
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except USAGE as error:
        _misused(error)
    except MountsafeError as error:
        screen.fail(_for_the_user(error))
    except (KeyboardInterrupt, typer.Abort):
        interrupts.hear_no_more()
        screen.note("interrupted")
        sys.exit(int(ExitCode.INTERRUPTED))
    except BrokenPipeError:
        _drop_output()
        sys.exit(int(ExitCode.FAILURE))
    except (OSError, MemoryError, RuntimeError) as error:
        if (short := shortage.explained(error)) is None and not isinstance(error, OSError):
            raise
        with suppress(OSError):
            _drop_output()
        screen.fail(short or _as_told(error))
