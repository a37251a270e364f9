"""The command of the chat app: the terminal is here, the model here or on a device."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from paredown.apps.cli.console import handled, screen
from paredown.pipeline.store.event import Event

if TYPE_CHECKING:
    from argparse import Namespace

    from paredown.apps.chat.device.generation.session import Chat
    from paredown.pipeline.bundle.archive import Bundle

#: The app's own parser reads the options: they are the same on a board.
PASSED_ON: dict[str, Any] = {
    "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": [],
}  # fmt: skip
APP, HERE = "apps.chat", "local:"

app = typer.Typer()


@app.command(context_settings=PASSED_ON)
def chat(context: typer.Context) -> None:
    """Talks to a bundle's model: a terminal, an answer to each line of a pipe, or to --prompt."""
    with handled(False):
        from paredown.apps.chat.device.chat import converse, manner_of, parser
        from paredown.pipeline.bundle.archive import unpack
        from paredown.targets.errors import InputError

        ours = parser("paredown chat")
        ours.add_argument("bundle", type=Path, metavar="BUNDLE", help="a language model's .paredown file")
        ours.add_argument("--device", default=HERE, help="ssh://user@host, adb:SERIAL or emulated:NAME")
        options = ours.parse_args(context.args)
        manner_of(options)  # a mistake is told before anything is loaded or sent
        bundle = unpack(options.bundle)
        if bundle.manifest.app != APP:
            what = f"a bundle of {bundle.manifest.app} does not talk"
            raise InputError(what, where=options.bundle, hint="make one with `paredown run gemma3-tiny`")
        with contextlib.ExitStack() as stack:
            opened = _here if options.device == HERE else _there
            code = converse(opened(bundle, options, stack), options.prompt)
        raise typer.Exit(code)


def _here(bundle: Bundle, options: Namespace, stack: contextlib.ExitStack) -> Chat:
    """A session in this process."""
    from paredown.apps.chat.device.chat import open_session
    from paredown.pipeline.bundle.archive import extract

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    extract(bundle, folder)
    return open_session(folder, options)


def _there(bundle: Bundle, options: Namespace, stack: contextlib.ExitStack) -> Chat:
    """A session on a device, and a terminal here."""
    from paredown.apps.chat.remote import on_device
    from paredown.targets.address import open_device

    with screen() as (tell, _):
        tell(Event(f"connecting to {options.device}", "running"))
        device = stack.enter_context(open_device(options.device))
        return stack.enter_context(on_device(bundle, device, options, tell))
