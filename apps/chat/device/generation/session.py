"""A chat with a language model: what it has read, what still fits its context, and the answer as it comes.

The policy of the context: it starts as chats do and holds whole exchanges, a user's turn and its answer.
Where a new turn, and some room for its answer, do not fit, the oldest exchanges are forgotten, each as a
whole, and the model reads what is left anew; so too where an answer grows beyond the context. A turn that
does not even fit alone is refused, and what is remembered stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.generation.sampling import Sampler, Sampling, Stops
from paredown.apps.chat.device.generation.stats import Clock, Meter, Stats
from paredown.apps.chat.device.language_model import LanguageModel
from paredown.apps.chat.device.tokens.tokens import Detokenizer, Tokens
from paredown.targets.errors import InputError, UsageError

#: Why an answer ended: the model said so, a stop string came, it was long enough, the context is full, or we
#: were told to.
End = Literal["end", "stop", "length", "full", "interrupted"]
Logits = NDArray[np.float32]

ROOM = 256  # tokens that a prompt must leave for its answer; of a small context a quarter


@dataclass(frozen=True)
class Text:
    """A piece of an answer, of whole characters."""

    text: str


@dataclass(frozen=True)
class Forgot:
    """So many of the oldest exchanges did not fit the context any more."""

    exchanges: int


@dataclass(frozen=True)
class Done:
    """An answer is over.

    Attributes:
        why: it is.
        stats: of it.
    """

    why: End
    stats: Stats


Event: TypeAlias = Text | Forgot | Done


def never() -> bool:
    """Nobody interrupts."""
    return False


class Chat(Protocol):
    """What a terminal talks to: a session in this process, or one on a device.

    Attributes:
        description: what it is, in a line.
    """

    description: str

    def answer(self, text: str, cancelled: Callable[[], bool] = never) -> Iterator[Event]:
        """Answers; see `Session.answer`."""

    def reset(self) -> None:
        """Forgets everything that was said."""


@dataclass(frozen=True)
class ChatOptions:
    """How answers are made.

    Attributes:
        turns: whether the model was taught to chat; else each text is continued, and none remembered.
        sampling: how the next token is chosen.
        stops: strings at which an answer ends; they are not shown.
        max_tokens: of an answer; None = until the model ends it or the context is full.

    Raises:
        UsageError: an empty stop string, or less than one token.
    """

    turns: bool = True
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        Stops(self.stops)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"{self.max_tokens} tokens are no answer", hint="give 1 or more")


class Session:
    """A chat in this process; see the policy above.

    Args:
        model: that answers; it is this session's alone.
        tokens: its tokenizer.
        chat: how it answers.
        clock: seconds; None where they mean nothing, as under emulation.

    Raises:
        InputError: model, tokenizer and options do not fit.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        chat: ChatOptions,
        clock: Clock | None = time.perf_counter,
    ) -> None:
        tokens.check(model.vocabulary)
        if chat.turns and tokens.turns is None:
            raise InputError("the tokenizer knows no turns of a chat", hint="is it a base model's?")
        self._model, self._tokens, self._chat, self._clock = model, tokens, chat, clock
        self._sample = Sampler(chat.sampling)
        self._exchanges: list[list[int]] = []
        self._read: list[int] = []  # what the model has read
        self._sure = False  # whether that is known
        self._start = tokens.start if chat.turns else [tokens.bos]
        self._stop = tokens.turns.stop if chat.turns and tokens.turns else ""
        self._room = min(ROOM, model.context // 4)
        kind = "chat" if chat.turns else "continues a text, remembers none"
        self.description = f"{kind}; context of {model.context:,} tokens"

    def anew(self, chat: ChatOptions) -> Session:
        """A new session with the same model, which answers in another way; this one is over.

        Args:
            chat: how it answers; whether the model chats stays as it is.
        """
        return Session(self._model, self._tokens, replace(chat, turns=self._chat.turns), self._clock)

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._exchanges.clear()

    def answer(self, text: str, cancelled: Callable[[], bool] = never) -> Iterator[Event]:
        """Answers a text, or continues it where the model was not taught to chat.

        An interrupted answer is remembered as far as it came; a question that was not read to its end, not.

        Args:
            text: of the user.
            cancelled: asked between any two steps of the model whether to end.

        Returns:
            What was forgotten, the text as it comes, and at last why it ended.

        Raises:
            InputError: the text is empty or too long, or what the model gives are no numbers.
        """
        meter = Meter(self._clock)
        return self._answer(self._turn(text), cancelled, meter)

    def _turn(self, text: str) -> list[int]:
        """The tokens of a text, as the model takes it."""
        if not text.strip():
            raise InputError("the prompt is empty")
        most = self._model.context - self._room - len(self._start)
        turn: list[int] = []
        count = self._tokens.fewest(text)
        if exact := count <= most:
            turn = self._tokens.user_turn(text) if self._chat.turns else self._tokens.encode(text)
            count = len(turn)
        if count <= most:
            return turn
        raise InputError(
            f"a prompt of {'' if exact else 'at least '}{count:,} tokens is too long: the context of"
            f" {self._model.context:,} leaves {most:,} for it and {self._room:,} for the answer"
        )

    def _answer(self, exchange: list[int], cancelled: Callable[[], bool], meter: Meter) -> Iterator[Event]:
        """Answers the turn that an exchange starts with; the exchange grows with the answer."""
        if not self._chat.turns:
            self._exchanges.clear()
        self._exchanges.append(exchange)
        logits = None
        try:
            if forgotten := self._make_room():
                yield Forgot(forgotten)
            logits = self._prefill(cancelled, meter)
        finally:
            if logits is None:
                self._exchanges.remove(exchange)
        if logits is None:
            yield Done("interrupted", meter.stats)
            return
        text = Detokenizer(self._tokens)
        stops = Stops((*self._chat.stops, self._stop) if self._stop else self._chat.stops)
        begun, said = len(exchange), ""
        while True:
            with meter.choosing():
                token = self._sample(logits)
            why: End | None = "end"
            if token not in self._tokens.ends:
                exchange.append(token)
                meter.chose()
                if shown := stops.take(text.take(token)):
                    said += shown
                    yield Text(shown)
                why = self._why_over(stops, meter, cancelled)
            if why:
                break
            if self._model.position == self._model.context:
                yield Forgot(self._make_room())
                logits = self._prefill(cancelled, meter)
            else:
                with meter.decoding():
                    logits = self._feed([token])
            if logits is None:
                why = "interrupted"
                break
        if rest := stops.take(text.finish()) + stops.finish():
            said += rest
            yield Text(rest)
        if why == "stop" and self._stop:  # the end of the turn was spelled out: it is set before the next one
            exchange[begun:] = self._tokens.encode(said)
        yield Done(why, meter.stats)

    def _why_over(self, stops: Stops, meter: Meter, cancelled: Callable[[], bool]) -> End | None:
        """Why an answer ends after its newest token, if it does."""
        if stops.stopped:
            return "stop"
        if meter.chosen == self._chat.max_tokens:
            return "length"
        if len(self._exchanges) == 1 and self._model.position == self._model.context:
            return "full"
        return "interrupted" if cancelled() else None

    def _prompt(self) -> list[int]:
        """All that the model is to have read: the last exchange is at its end not over."""
        *past, now = self._exchanges
        return [*self._start, *(t for each in past for t in (*each, *self._tokens.turn_end)), *now]

    def _make_room(self) -> int:
        """Forgets the oldest exchanges while an answer has no room; how many. The last one stays."""
        forgotten = 0
        while len(self._exchanges) > 1 and len(self._prompt()) + self._room > self._model.context:
            del self._exchanges[0]
            forgotten += 1
        return forgotten

    def _prefill(self, cancelled: Callable[[], bool], meter: Meter) -> Logits | None:
        """Lets the model read what it has not; the logits after it, or None where we were interrupted."""
        prompt = self._prompt()
        known = len(self._read)
        if not self._sure or known >= len(prompt) or self._read != prompt[:known]:
            self._model.reset()
            self._read, self._sure, known = [], True, 0
        logits = None
        for start in range(known, len(prompt), self._model.chunk):
            if cancelled():
                return None
            part = prompt[start : start + self._model.chunk]
            with meter.reading(len(part)):
                logits = self._feed(part, start + len(part) == len(prompt))
        return logits

    def _feed(self, tokens: Sequence[int], last: bool = True) -> Logits | None:
        """Lets the model read on, to logits at the last part; where it fails, nobody knows how far."""
        self._sure = False
        logits = None
        if last:
            logits = self._model.feed(tokens)
        else:
            self._model.prefill(tokens)
        self._read += tokens
        self._sure = True
        return logits
