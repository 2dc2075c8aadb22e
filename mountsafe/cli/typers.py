"""The command line's parameters, in the way that every typer from 0.7 (Debian 12) on accepts them.

We write `Annotated[T, option(...)]`, with the default where Python has it. typer reads that since 0.9; before, it wants
the default inside the option, and the option in the default's place, so it is given that.
"""

import inspect
from collections.abc import Callable
from copy import copy
from functools import wraps
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import typer
from typer.models import ParameterInfo

Command = TypeVar("Command", bound=Callable[..., Any])


def option(*words: str, **settings: Any) -> Any:
    """Return what `typer.Option` makes of these words and settings; its default is the parameter's."""
    return typer.Option(..., *words, **settings)


def argument(**settings: Any) -> Any:
    """Return what `typer.Argument` makes of these settings; its default is the parameter's."""
    return typer.Argument(..., **settings)


class App(typer.Typer):
    """A `typer.Typer` whose commands and callback have their options in `Annotated`."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Command], Command]:
        """Return a decorator, as typer's."""
        register = super().command(*names, **settings)
        return lambda function: register(_plain(function))

    def callback(self, *names: Any, **settings: Any) -> Callable[[Command], Command]:
        """Return a decorator, as typer's."""
        register = super().callback(*names, **settings)
        return lambda function: register(_plain(function))


def _plain(function: Command) -> Command:
    """Return the function with the signature that typer reads; it is called as before."""
    signature = inspect.signature(function)
    parameters = [_moved(each) for each in signature.parameters.values()]

    @wraps(function)
    def command(*words: Any, **settings: Any) -> Any:
        return function(*words, **settings)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return cast(Command, command)


def _moved(parameter: inspect.Parameter) -> inspect.Parameter:
    """Put the default into the option, and the option in the default's place."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, info = get_args(parameter.annotation)
    assert isinstance(info, ParameterInfo)
    info = copy(info)  # several commands share one
    if parameter.default is not parameter.empty:
        info.default = parameter.default
    if isinstance(kind, UnionType):  # of Python 3.10, which 0.7 does not know
        kind = Union[get_args(kind)]  # noqa: UP007
    return parameter.replace(annotation=kind, default=info)
