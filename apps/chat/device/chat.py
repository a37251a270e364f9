"""Talks to an unpacked bundle's model: `python -m apps.chat.device.chat`, in the bundle's folder.

A person gets a terminal, a pipe an answer to each of its lines, `--prompt` one answer. `--serve` answers
another machine, see `serve.py`. Needs numpy and a runtime; no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from apps.chat.device.sampling import Sampling
from apps.chat.device.session import Chat, Manner, Session
from apps.chat.device.terminal import Streams, Terminal
from apps.chat.device.tokens import Tokens
from targets.errors import InputError, ParedownError

TOKENIZER, SETTINGS = "tokenizer.npz", "app.json"
GEMMA = "gemma"  # the template of a model that was taught to chat
UNREAD, INTERRUPTED = 1, 130  # exit codes: nobody reads the answers any more; Ctrl-C


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        session = open_session(
            Path.cwd(), manner_of(options), options.runtime, options.threads, options.times
        )
        if options.serve:
            from apps.chat.device.serve import serve

            return serve(session)
        return converse(session, options.prompt)
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Sampling()
    found = argparse.ArgumentParser(
        "python -m apps.chat.device.chat", description="Talks to a bundle's model."
    )
    found.add_argument("--prompt", help="answer this and leave")
    found.add_argument(
        "--temperature", type=float, default=default.temperature, help="0: the likeliest token"
    )
    found.add_argument("--top-k", type=int, default=default.top_k, help="0: all tokens")
    found.add_argument("--top-p", type=float, default=default.top_p, help="1: all tokens")
    found.add_argument("--seed", type=int, help="the same answers every time")
    found.add_argument("--stop", action="append", default=[], help="a string that ends an answer; repeatable")
    found.add_argument("--max-tokens", type=int, help="of an answer")
    found.add_argument("--runtime", help="executorch or litert, where the bundle has both")
    found.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    found.add_argument("--no-times", dest="times", action="store_false", help="an emulated board: no speed")
    found.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return found


def manner_of(options: argparse.Namespace) -> Manner:
    """What the options ask for; whether the model chats is the bundle's to say.

    Raises:
        UsageError: a value is out of its range.
    """
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    return Manner(sampling=sampling, stops=tuple(options.stop), max_tokens=options.max_tokens)


def open_session(
    folder: Path, manner: Manner, runtime: str | None = None, threads: int = 1, times: bool = True
) -> Session:
    """A session with the model of an unpacked bundle.

    Args:
        folder: of the bundle, with its manifest.json.
        manner: of answering; its turns are the bundle's to say.
        runtime: whose model; None = the first one that runs here.
        threads: of the runtime.
        times: whether they mean something.

    Raises:
        InputError: the folder is no unpacked bundle of a language model, or a file of it is damaged.
    """
    from apps.chat.device.models import open_model

    files = read_members(folder, (TOKENIZER, SETTINGS))
    try:
        turns = json.loads(files[SETTINGS])["template"] == GEMMA
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("names no template", where=folder / SETTINGS) from error
    tokens = Tokens(files[TOKENIZER], folder / TOKENIZER)
    model = open_model(folder, runtime, threads)
    return Session(
        model, tokens, dataclasses.replace(manner, turns=turns), time.perf_counter if times else None
    )


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
        KeyboardInterrupt: Ctrl-C, twice where a person sits there.
    """
    streams = Streams.standard()
    terminal = Terminal(chat, streams)
    try:
        if prompt is not None:
            return terminal.filter([prompt])
        return terminal.talk() if streams.interactive else terminal.filter(streams.source)
    except BrokenPipeError:  # the reader has what it wanted: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), streams.out.fileno())
        return UNREAD


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
