"""How many tokens answers took, and how long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stats:
    """What answers took.

    Attributes:
        prompt_tokens: that were read, those read again after forgetting included.
        answer_tokens: that were chosen.
        decoded: of them those that the model read in its turn, one at a time.
        prefill_s: seconds that reading took; None where times mean nothing, as under emulation.
        decode_s: seconds that the decoded tokens took, choosing them included; None likewise.
        first_token_s: from the question to the first token; None likewise, or where there was none.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    decoded: int = 0
    prefill_s: float | None = None
    decode_s: float | None = None
    first_token_s: float | None = None

    @property
    def prefill_rate(self) -> float | None:
        """Tokens per second that were read."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second that were decoded."""
        return self.decoded / self.decode_s if self.decode_s else None

    def __add__(self, other: Stats) -> Stats:
        """Both together; the time to the first token is the later one's."""
        return Stats(
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.decoded + other.decoded,
            _sum(self.prefill_s, other.prefill_s),
            _sum(self.decode_s, other.decode_s),
            other.first_token_s,
        )


def _sum(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else a + b


class Meter:
    """Takes the time of one answer, from now on.

    Args:
        clock: seconds; None where they mean nothing.

    Attributes:
        chosen: tokens of the answer, so far.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._started = self._now()
        self._prompt = self._decoded = self.chosen = 0
        self._prefill_s = self._decode_s = self._first_s = 0.0

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Around the model's reading of so many tokens of a prompt."""
        started = self._now()
        yield
        self._prefill_s += self._now() - started
        self._prompt += tokens

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Around the model's reading of a token of its own."""
        started = self._now()
        yield
        self._decode_s += self._now() - started
        self._decoded += 1

    @contextlib.contextmanager
    def choosing(self) -> Iterator[None]:
        """Around the choice of a token; the first one's belongs to the time until it is there."""
        started = self._now()
        yield
        if self.chosen:
            self._decode_s += self._now() - started
        else:
            self._first_s = self._now() - self._started

    def chose(self) -> None:
        """A token was chosen that is part of the answer."""
        self.chosen += 1

    @property
    def stats(self) -> Stats:
        """What it took until now."""
        counts = (self._prompt, self.chosen, self._decoded)
        if self._clock is None:
            return Stats(*counts)
        return Stats(*counts, self._prefill_s, self._decode_s, self._first_s or None)

    def _now(self) -> float:
        return self._clock() if self._clock else 0.0
