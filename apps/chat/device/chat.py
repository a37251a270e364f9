"""Talks to an unpacked bundle's model: `python -m paredown.apps.chat.device.chat`, in the bundle's folder.

A person gets a terminal, a pipe an answer to each of its lines, `--prompt` one answer. `--serve` answers
another machine, see `serve.py`. Needs numpy and a runtime; no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paredown.apps.chat.device.generation.sampling import Sampling
from paredown.apps.chat.device.generation.session import Chat, ChatOptions, Session
from paredown.apps.chat.device.serve import serve
from paredown.apps.chat.device.terminal import Streams, Terminal
from paredown.apps.chat.device.tokens.tokens import Tokens
from paredown.apps.chat.device.tokens.turns import Turns
from paredown.targets.errors import InputError, ParedownError, UsageError

TOKENIZER, SETTINGS = "tokenizer.npz", "app.json"
#: Templates: Gemma's own turns, those that app.json spells out, and none for a model that continues texts.
GEMMA, SPELLED, NONE = "gemma", "turns", "none"
UNREAD, INTERRUPTED = 1, 130  # exit codes: nobody reads the answers any more; Ctrl-C


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    options = parser("python -m paredown.apps.chat.device.chat").parse_args(arguments)
    try:
        if options.serve:
            return serve(lambda: open_session(Path.cwd(), options))
        return converse(open_session(Path.cwd(), options), options.prompt)
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # standard output: what is left in its buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = error.filename or "standard output"
        print(InputError(error.strerror or str(error), where=where), file=sys.stderr)
        return InputError.exit_code


def parser(program: str) -> argparse.ArgumentParser:
    """The command line, the same on every machine."""
    default, found = Sampling(), argparse.ArgumentParser(program, description="Talks to a bundle's model.")
    add = found.add_argument
    add("--prompt", help="answer this prompt and exit")
    for name, kind, text in (
        ("temperature", float, "sampling temperature, 0 = greedy"),
        ("top-k", int, "sample from the k likeliest tokens, 0 = all"),
        ("top-p", float, "sample from this share of probability, 1 = all"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=kind, default=value, help=f"{text} (default: %(default)s)")
    add("--seed", type=int, help="random seed, for the same answers every time")
    add("--stop", action="append", default=[], help="end an answer at this text; repeatable")
    add("--max-tokens", type=int, help="maximum tokens per answer (default: no limit)")
    add("--runtime", help="the runtime, executorch or litert (default: the first in the bundle)")
    add("--threads", type=int, help="runtime threads (default: all cores)")
    add("--no-times", action="store_true", help="print no speeds, as on an emulated board")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    return found


def as_arguments(options: argparse.Namespace) -> list[str]:
    """What makes the same answers on another machine, whatever runtime that has."""
    names = ("temperature", "top_k", "top_p", "seed", "max_tokens", "threads")
    given = {name.replace("_", "-"): getattr(options, name) for name in names}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*words, *(f"--stop={string}" for string in options.stop)]


def chat_options(options: argparse.Namespace) -> ChatOptions:
    """How the options ask to answer; whether the model chats is the bundle's to say.

    Raises:
        UsageError: a value is out of its range.
    """
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"{options.threads} threads compute nothing", hint="give 1 or more")
    return ChatOptions(sampling=sampling, stops=tuple(options.stop), max_tokens=options.max_tokens)


def open_session(folder: Path, options: argparse.Namespace) -> Session:
    """A session with the model of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        options: of `parser`.

    Raises:
        InputError: the folder is no unpacked bundle of a language model, or a file of it is damaged.
        UsageError: an option is out of its range.
    """
    from paredown.apps.chat.device.models import open_model

    chat = chat_options(options)
    files = read_members(folder, (TOKENIZER, SETTINGS))
    where = folder / SETTINGS
    try:
        settings = json.loads(files[SETTINGS])
        template = settings["template"]
        turns = Turns.from_json(settings["turns"]) if template == SPELLED else None
        ends = [int(token) for token in settings.get("ends", ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("names no template", where=where) from error
    if template not in (GEMMA, SPELLED, NONE):
        raise InputError(f"names the template {template!r}", where=where, hint="update paredown")
    chat = replace(chat, turns=template != NONE)
    tokens = Tokens(files[TOKENIZER], folder / TOKENIZER, turns, ends)
    model = open_model(folder, options.runtime, options.threads or os.cpu_count() or 1)
    return Session(model, tokens, chat, None if options.no_times else time.perf_counter)


def read_members(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of an unpacked bundle, checked against its manifest.

    Raises:
        InputError: one is missing or damaged, or this is no bundle's folder.
    """
    try:
        members = json.loads((folder / "manifest.json").read_bytes())["members"]
        files = {name: (folder / name).read_bytes() for name in names}
        hashes = {name: members[name]["sha256"] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("no unpacked bundle of a language model", where=folder) from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise InputError("damaged: not what the manifest says", where=folder / name)
    return files


def converse(chat: Chat, prompt: str | None) -> int:
    """Talks by way of this process's own streams, until there is nothing more to say; the exit code.

    Args:
        chat: that answers.
        prompt: the only one; None = those of standard input.

    Raises:
        DeviceError: of a chat on a device.
    """
    streams = Streams.standard()
    terminal = Terminal(chat, streams)
    try:
        if prompt is not None:
            return terminal.filter([os.fsencode(prompt).decode(errors="replace")])
        if streams.interactive:
            return terminal.talk()
        lines = (line.rstrip("\r\n") for line in streams.source)
        return terminal.filter(line for line in lines if line.strip())
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has what it wanted: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), streams.out.fileno())
        return UNREAD


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
