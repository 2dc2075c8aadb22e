"""Options in `Annotated` as typers before 0.9 take them: the default in the option, the option in its place."""

import inspect
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer
from typer.models import ArgumentInfo, OptionInfo

from mountsafe.cli.typers import App, argument, option

Shared = Annotated[bool, option("--shared", help="Two commands have it.")]


def command(name: Annotated[Path | None, argument(help="A name.")] = None, shared: Shared = False) -> str:
    return f"{name} {shared}"


def test_the_signature_is_what_an_old_typer_reads() -> None:
    app = App()
    app.command()(command)
    (registered,) = app.registered_commands
    assert registered.callback is not None
    name, shared = inspect.signature(registered.callback).parameters.values()
    assert isinstance(name.default, ArgumentInfo)
    assert isinstance(shared.default, OptionInfo)
    assert (name.default.default, shared.default.default) == (None, False)
    assert str(name.annotation).startswith("typing.Optional") or "Union" in str(type(name.annotation))
    assert registered.callback(Path("x"), True) == command(Path("x"), True) == "x True"


@pytest.fixture
def switched() -> App:
    """Two commands that share an option, with another default each."""
    app = App()

    @app.command("on")
    def on(shared: Shared = True) -> None:
        typer.echo(shared)

    @app.command("off")
    def off(shared: Shared = False) -> None:
        typer.echo(shared)

    return app


def test_an_option_that_commands_share_has_the_default_of_each(switched: App) -> None:
    defaults = [
        inspect.signature(each.callback).parameters["shared"].default.default
        for each in switched.registered_commands
        if each.callback
    ]
    assert defaults == [True, False]
    assert get_args(Shared)[1].default is ...


@pytest.mark.parametrize(("words", "said"), [(["on"], "True"), (["off"], "False"), (["off", "--shared"], "True")])
def test_it_runs_with_the_typer_that_is_here(
    capsys: pytest.CaptureFixture[str], switched: App, words: list[str], said: str
) -> None:
    switched(words, standalone_mode=False)
    assert capsys.readouterr().out.strip() == said
