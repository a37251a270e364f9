"""Typer options made of an argparse parser.

The code that runs on a device has no typer there, so it reads its options with argparse. The command here
has the same options: names, types, defaults and help texts are taken from that parser, and nothing is
written twice.
"""

from __future__ import annotations

import argparse
import copy
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

PLAIN = (int, float, str, Path)  # types that typer checks itself
OPTIONS = "paredown.options"


class FromParser(TyperCommand):
    """A command whose options are those of an argparse parser.

    A subclass says where the parser is. It is imported for this command alone, not for `paredown --help`.
    """

    def parser(self) -> argparse.ArgumentParser:
        """Makes the parser."""
        raise NotImplementedError

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the command's function, then those of the parser, then `--help`."""
        if not hasattr(self, "made"):
            self.made = self.parser()
            self.found = {parameter.name: parameter for parameter in parameters(self.made)}
        known, count = super().get_params(ctx), len(self.params)
        return [*known[:count], *self.found.values(), *known[count:]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words; the parser's values go to where `options_of` finds them."""
        rest = super().parse_args(ctx, args)
        values = {name: ctx.params.pop(name, None) for name in self.found}
        if not ctx.resilient_parsing:  # as for completion
            ctx.meta[OPTIONS] = self._namespace(ctx, values)
        return rest

    def _namespace(self, ctx: Any, values: dict[str, Any]) -> argparse.Namespace:
        options = argparse.Namespace()
        given = {
            name for name, value in values.items()
            if value is not None and value is not False and value not in ((), [])
        }  # fmt: skip
        for action in actions(self.made):
            value = copy.copy(action.default)
            if action.dest in given:
                try:
                    value = _converted(action, values[action.dest])
                except (argparse.ArgumentTypeError, ValueError) as error:
                    raise typer.BadParameter(str(error), ctx=ctx, param=self.found[action.dest]) from None
            setattr(options, action.dest, value)
        for group in self.made._mutually_exclusive_groups:
            names = [action.option_strings[0] for action in group._group_actions]
            count = len(given & {action.dest for action in group._group_actions})
            if count > 1 or (group.required and not count):
                raise typer.BadParameter(f"give one of {', '.join(names)}", ctx=ctx)
        return options


def options_of(context: typer.Context) -> argparse.Namespace:
    """The options of a `FromParser` command, as its parser would give them."""
    options: argparse.Namespace = context.meta[OPTIONS]
    return options


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options and arguments of a parser, without `--help`."""
    return [action for action in parser._actions if action.dest != "help"]


def parameters(parser: argparse.ArgumentParser) -> list[Any]:
    """Typer's parameters for a parser's options and arguments, in their order.

    The values of a type that typer does not know stay text. Defaults are left to the parser: an option that
    was not given is None, or False.
    """

    def made() -> None:
        """Has the signature that typer reads."""

    signature = [_parameter(action) for action in actions(parser)]
    made.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(made)
    return list(typer.main.get_command(app).params)


def _parameter(action: argparse.Action) -> inspect.Parameter:
    hidden = action.help == argparse.SUPPRESS
    text = "" if hidden or not action.help else action.help % vars(action)
    text = f"{text[:1].upper()}{text[1:]}." if text else ""  # as the other commands' help
    shown: dict[str, Any] = {"help": text, "hidden": hidden, "metavar": _metavar(action)}
    if action.choices is not None:
        shown["autocompletion"] = _starting([str(choice) for choice in action.choices])
    kind: Any = action.type if action.type in PLAIN and action.choices is None else str
    default: Any = inspect.Parameter.empty if action.required else None
    if action.nargs == 0:
        kind, default = bool, False
    elif isinstance(action.nargs, int):
        kind = tuple[(kind,) * action.nargs]  # type: ignore[misc]
    elif isinstance(action, argparse._AppendAction):
        kind = list[kind]
    if default is None:
        kind = kind | None
    of = typer.Option(*action.option_strings, show_default=False, **shown)
    if not action.option_strings:
        of = typer.Argument(show_default=False, **shown)
    place = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(action.dest, place, default=default, annotation=Annotated[kind, of])


def _metavar(action: argparse.Action) -> str | None:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar or action.nargs == 0:
        return action.metavar
    if action.choices is not None:
        return f"<{'|'.join(map(str, action.choices))}>"
    if action.type is None or action.type in PLAIN:
        return None
    return f"<{getattr(action.type, '__name__', 'value').replace('_', ' ')}>"


def _starting(words: list[str]) -> Any:
    """Completes one of these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _converted(action: argparse.Action, value: Any) -> Any:
    """A value, or each of several, by the parser's own type and choices.

    Raises:
        ArgumentTypeError: the type refuses it.
        ValueError: likewise, or it is none of the choices.
    """
    if action.nargs == 0:
        return value
    if isinstance(value, (list, tuple)):
        return [_converted(_one(action), each) for each in value]
    if action.choices is not None and str(value) not in map(str, action.choices):
        raise ValueError(f"`{value}` is none of {', '.join(map(str, action.choices))}")
    kind: Any = action.type or str
    return value if isinstance(kind, type) and isinstance(value, kind) else kind(value)


def _one(action: argparse.Action) -> argparse.Action:
    """The same without a count."""
    single = copy.copy(action)
    single.nargs = None
    return single
