"""How the whole command looks: commands in groups by purpose, mistakes in one line, completion."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from paredown.targets.errors import ParedownError, UsageError
from paredown.targets.host.garbage import look_less_often

#: What a user wants to do, in the order of the work; each command names one.
MAKE, PROVE, USE, LOOK = "Make a bundle", "Prove a bundle", "Use a bundle", "Look inside"
TRUST = "Sign and trust"
PANELS = (MAKE, PROVE, USE, TRUST, LOOK)
ORDER = (
    "run", "sweep", "fit", "init", "train", "export", "bundle",
    "validate", "bench",
    "camera", "drone", "chat", "deploy", "stop", "logs", "status", "web", "serve", "unpack",
    "key", "sign", "verify", "trust",
    "report", "import", "inspect", "groups", "sense", "explain", "cost", "targets", "doctor", "schema",
    "examples",
)  # fmt: skip
ROOMS = Path(__file__).parents[2]  # the folder that holds apps/, calibration/, pipeline/ and targets/


class Commands(TyperGroup):
    """The group of all commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of `ORDER`."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the first line of each command's help, whole, below its group's title."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.commands.get(name))}
        width = max(map(len, commands))
        for title in PANELS:
            rows = [
                (f"{name:<{width}}", (command.help or "").partition("\n")[0])
                for name, command in commands.items()
                if getattr(command, "rich_help_panel", None) == title and not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Reads the words before the command's name."""
        if not args:  # the help, which is no error
            return super().make_context(info_name, args, parent, **extra)
        with _told():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        look_less_often()
        with _told():
            return super().invoke(ctx)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns a mistake in the words of the command line into one line and exit code 2."""
    try:
        yield
    except ParedownError as error:  # of an option's own type
        print(f"paredown: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except typer.TyperException as error:
        if error.exit_code != UsageError.exit_code:
            raise
        context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
        hint = f"see `{context.command_path if context else 'paredown'} --help`"
        if parameter is not None and error.message:
            line = UsageError(error.message, where=parameter.opts[0], hint=hint)
        else:
            line = UsageError(error.format_message(), hint=hint)
        print(f"paredown: {line}", file=sys.stderr)
        raise typer.Exit(line.exit_code) from None


def recipe_names(incomplete: str) -> list[str]:
    """Completes the name of a recipe that ships, or a .toml file of the working folder."""
    known = {path.stem for path in ROOMS.glob("apps/*/recipes/*.toml")}
    own = {str(path) for path in Path().glob("*.toml")}
    return sorted(name for name in known | own if name.startswith(incomplete))


def target_names(incomplete: str) -> list[str]:
    """Completes the name of a target card."""
    names = (path.stem for path in (ROOMS / "targets" / "cards").glob("*.toml"))
    return sorted(name for name in names if name.startswith(incomplete))
