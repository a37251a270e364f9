"""The terminal of the chat: asks, shows the answer as it comes, takes commands; works as a filter too.

A stream of text from a model can hold anything, also what moves a terminal's cursor or changes its title:
every control character is shown by its picture. Width and wrapping are left to the terminal.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from paredown.apps.chat.device.generation.session import Chat, Done, End, Forgot, Text, never
from paredown.apps.chat.device.generation.stats import Stats
from paredown.targets.errors import InputError, visible

ASK = "> "
HELP = """\
/reset   forget everything that was said
/stats   tokens and speed, of the last answer and of all
/help    this
/quit    leave; so do Ctrl-D, and Ctrl-C twice
Ctrl-C ends an answer. // starts a prompt with a slash."""
_WHY: dict[End, str] = {
    "length": "as long as it may be",
    "full": "the context is full",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Streams:
    """Where the terminal reads and writes.

    Attributes:
        source: prompts, one a line.
        out: answers.
        notes: everything else.
        interactive: whether a person sits there.
        colour: whether notes may be dimmed.
    """

    source: TextIO
    out: TextIO
    notes: TextIO
    interactive: bool
    colour: bool

    @classmethod
    def standard(cls) -> Streams:
        """This process's own: UTF-8 in, and what cannot be read or written is replaced."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        colour = interactive and sys.stderr.isatty() and "NO_COLOR" not in os.environ
        return cls(sys.stdin, sys.stdout, sys.stderr, interactive, colour)


class Interrupts:
    """Ctrl-C while an answer comes: the first one asks it to end, the second ends the program.

    Used with `with`, around one answer.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        """Whether the answer is to end."""
        return self._asked

    def __enter__(self) -> Interrupts:
        """Listens."""
        self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves Ctrl-C to whom it was."""
        signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


class Terminal:
    """A person, or a script, and a chat.

    Args:
        chat: that answers.
        streams: where both write.
    """

    def __init__(self, chat: Chat, streams: Streams) -> None:
        self._chat, self._streams = chat, streams
        self._last = self._total = Stats()
        self._at_start = True  # whether the next text starts a line

    def talk(self) -> int:
        """With a person: prompts and commands, until they leave; returns the exit code.

        Raises:
            KeyboardInterrupt: a second Ctrl-C in a row.
        """
        self._note(f"{self._chat.description}; /help, /quit")
        for line in self._typed():
            command = line.strip()
            if command == "/quit":
                break
            if command.startswith("/") and not command.startswith("//"):
                self._obey(command)
            elif command:
                try:
                    with Interrupts() as interrupted:
                        self._answer(line.removeprefix("/"), interrupted)
                except InputError as error:
                    self._note(str(error))
        return 0

    def filter(self, prompts: Iterable[str]) -> int:
        """Without a person: answers each prompt; returns the exit code.

        A prompt that cannot be answered is told as such, the next ones are answered, and the code is its.
        """
        code = 0
        for prompt in prompts:
            try:
                self._answer(prompt, never)
            except InputError as error:
                self._note(str(error))
                code = error.exit_code
        return code

    def _typed(self) -> Iterator[str]:
        """The lines that a person types, until Ctrl-D; Ctrl-C leaves a line, and twice in a row raises."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  -- from now on `input` can edit and remember lines
        left = False
        while True:
            try:
                line = input(ASK)
            except EOFError:
                self._streams.out.write("\n")
                return
            except OSError:  # the terminal itself is gone
                return
            except KeyboardInterrupt:
                self._streams.out.write("\n")
                if left:
                    raise
                self._note("Ctrl-C again leaves")
                left = True
            else:
                left = False
                yield line

    def _obey(self, command: str) -> None:
        match command:
            case "/reset":
                self._chat.reset()
                self._note("forgot everything")
            case "/stats":
                self._note(f"last answer: {described(self._last)}\nall answers: {described(self._total)}")
            case "/help":
                self._note(HELP)
            case _:
                self._note(f"no command {command.split()[0]}; there are /reset, /stats, /help, /quit")

    def _answer(self, text: str, interrupted: Callable[[], bool]) -> None:
        """Shows the answer to one prompt; whatever ends it, the next text starts on a line of its own."""
        shown = False
        try:
            for event in self._chat.answer(text, interrupted):
                match event:
                    case Text():
                        self._show(visible(event.text))
                        shown = True
                    case Forgot():
                        self._note(f"[forgot the oldest {_exchanges(event.exchanges)}: the context is full]")
                    case Done():
                        self._last, self._total = event.stats, self._total + event.stats
                        self._show("" if shown and self._at_start else "\n")
                        if event.why in _WHY:
                            self._note(f"[{_WHY[event.why]}]")
        finally:
            if not self._at_start:
                self._show("\n")

    def _show(self, text: str) -> None:
        """Writes text at once; what comes of a broken pipe is the caller's."""
        self._at_start = text.endswith("\n") if text else self._at_start
        self._streams.out.write(text)
        self._streams.out.flush()

    def _note(self, text: str) -> None:
        """Writes a word of ours beside the answers."""
        if self._streams.interactive and not self._at_start:
            self._show("\n")
        dim, plain = ("\x1b[2m", "\x1b[0m") if self._streams.colour else ("", "")
        print(f"{dim}{text}{plain}", file=self._streams.notes, flush=True)


def described(stats: Stats) -> str:
    """Tokens and speed in words; without times where they mean nothing."""
    read, written = f"{stats.prompt_tokens:,} tokens read", f"{stats.answer_tokens:,} written"
    if stats.prefill_s is None and stats.prompt_tokens:
        return f"{read}, {written}; emulated, its times mean nothing"
    if stats.prefill_rate:
        read += f" at {stats.prefill_rate:,.1f}/s"
    if stats.decode_rate:
        written += f" at {stats.decode_rate:,.1f}/s"
    first = f"; the first after {stats.first_token_s:.2f} s" if stats.first_token_s else ""
    return f"{read}, {written}{first}"


def _exchanges(count: int) -> str:
    return "exchange" if count == 1 else f"{count} exchanges"
