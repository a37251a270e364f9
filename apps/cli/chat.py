"""The command of the chat app: the terminal is here, the model here or on a device."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paredown.apps.cli.console import handled, screen
from paredown.apps.cli.group import USE
from paredown.apps.cli.options import FromParser, options_of
from paredown.pipeline.store.event import Event

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from paredown.apps.chat.device.generation.session import Chat
    from paredown.pipeline.bundle.archive import Bundle

APP, HERE = "apps.chat", "local:"

app = typer.Typer()


class _Chat(FromParser):
    """The options of the device's own program."""

    def parser(self) -> ArgumentParser:
        from paredown.apps.chat.device.chat import parser

        return parser("paredown chat")


@app.command(cls=_Chat, rich_help_panel=USE)
def chat(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A language model's .paredown file.")],
    device: Annotated[str, typer.Option(help="local: | ssh://user@host | adb:SERIAL | emulated:NAME")] = HERE,
) -> None:
    """Chat with a language model.

    In a terminal it is a conversation. Standard input from a pipe gives one answer per line; --prompt gives
    one answer.
    """
    with handled(False):
        from paredown.apps.chat.device.chat import chat_options, converse
        from paredown.pipeline.bundle.archive import unpack
        from paredown.targets.errors import InputError

        options = options_of(context)
        chat_options(options)  # a mistake is told before anything is loaded or sent
        bundle = unpack(path)
        if bundle.manifest.app != APP:
            what = f"a bundle of {bundle.manifest.app} has no language model"
            raise InputError(what, where=path, hint="make one with `paredown run gemma3-tiny`")
        with contextlib.ExitStack() as stack:
            if device == HERE:
                session = _here(bundle, options, stack)
            else:
                session = _there(bundle, device, options, stack)
            code = converse(session, options.prompt)
        raise typer.Exit(code)


def _here(bundle: Bundle, options: Namespace, stack: contextlib.ExitStack) -> Chat:
    """A session in this process."""
    from paredown.apps.chat.device.chat import open_session
    from paredown.pipeline.bundle.archive import extract

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    extract(bundle, folder)
    return open_session(folder, options)


def _there(bundle: Bundle, address: str, options: Namespace, stack: contextlib.ExitStack) -> Chat:
    """A session on a device, and a terminal here."""
    from paredown.apps.chat.remote import on_device
    from paredown.targets.address import open_device

    with screen() as (tell, _):
        tell(Event(f"connecting to {address}", "running"))
        device = stack.enter_context(open_device(address))
        return stack.enter_context(on_device(bundle, device, options, tell))
