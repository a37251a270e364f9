"""The next token from logits: greedy, temperature, top-k, top-p; and the strings at which an answer stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import InputError, UsageError

Tokens = NDArray[np.int64]
FIRST_LOOK = 1024  # candidates of top-p without top-k: sorting all of 262,144 takes longer than the network


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are those of Gemma 3's own checkpoints.

    Attributes:
        temperature: logits are divided by it; 0 = always the likeliest token.
        top_k: only so many of the likeliest tokens; 0 = all.
        top_p: of these only the likeliest that together reach this probability; 1 = all.
        seed: of the draws; None = another one each time.

    Raises:
        UsageError: a value that is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, value, fits, range_ in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 (all tokens) or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, and 1 at most"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"{name} {value} must be {range_}")


class Sampler:
    """Draws tokens.

    Args:
        sampling: how.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token for logits (vocabulary,); equal logits: the lower token comes first.

        Raises:
            InputError: some are NaN, or none is finite: no answer of such a model means anything.
        """
        highest = logits.max()  # NaN if any is
        if not np.isfinite(highest):
            raise InputError(f"the model's logits are {highest}", hint="is its file the one that was made?")
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        tokens, shares = distribution(logits, self._sampling)
        sums = shares.cumsum()
        drawn = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(tokens[min(drawn, len(tokens) - 1)])


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> tuple[Tokens, NDArray[np.float64]]:
    """The tokens that can be drawn, the likeliest first, and their probabilities.

    Top-k comes before top-p, which is taken of what top-k leaves, as in transformers.

    Args:
        logits: (vocabulary,); none NaN, one finite at least.
        sampling: with a temperature over 0.
    """
    k = min(sampling.top_k or len(logits), len(logits))
    if sampling.top_k or sampling.top_p == 1:
        tokens = _likeliest(logits, k)
        return _nucleus(tokens, _powers(logits[tokens], sampling.temperature), sampling.top_p)
    total = _powers(logits, sampling.temperature).sum()
    looked = min(FIRST_LOOK, k)
    while True:
        tokens = _likeliest(logits, looked)
        powers = _powers(logits[tokens], sampling.temperature)
        if powers.sum() >= sampling.top_p * total or looked == k:
            return _nucleus(tokens, powers, sampling.top_p, total)
        looked = min(8 * looked, k)


def _powers(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Unnormalised probabilities of logits of which the highest is among them: 1 at most, no overflow."""
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose power is 0
        return np.exp((logits.astype(np.float64) - logits.max()) / temperature)


def _likeliest(logits: NDArray[np.float32], k: int) -> Tokens:
    """The k tokens of the highest logits, in order; of equal ones the lower come first."""
    if k < len(logits):
        least = np.partition(logits, len(logits) - k)[len(logits) - k]
        above = np.flatnonzero(logits > least)
        tokens = np.concatenate([above, np.flatnonzero(logits == least)[: k - len(above)]])
    else:
        tokens = np.arange(len(logits))
    return tokens[np.lexsort((tokens, -logits[tokens]))]


def _nucleus(
    tokens: Tokens, powers: NDArray[np.float64], top_p: float, total: float | None = None
) -> tuple[Tokens, NDArray[np.float64]]:
    """The first tokens that reach a share `top_p` of the total, which is that of these if none is given."""
    sums = powers.cumsum()
    if top_p < 1:
        reached = int(np.searchsorted(sums, top_p * (sums[-1] if total is None else total)))
        tokens, powers = tokens[: reached + 1], powers[: reached + 1]
    return tokens, powers / powers.sum()


class Stops:
    """Cuts a stream of text at that of some strings which is complete first; they may come in pieces.

    Args:
        strings: where to stop; none = never.

    Attributes:
        stopped: whether one has come.

    Raises:
        UsageError: one is empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise UsageError("an empty stop string", hint="leave it out to never stop")
        self._strings, self._held = tuple(strings), ""
        self.stopped = False

    def take(self, text: str) -> str:
        """The text that is certain to come before a stop string, once this has come too."""
        if self.stopped:
            return ""
        text, self._held = self._held + text, ""
        found = [(at + len(string), at) for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            return text[:start]
        begun = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Characters at the end of a text that a string, not all of it, begins with."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
