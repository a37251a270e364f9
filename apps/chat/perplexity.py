"""Perplexity on fixed windows, and how often two models would say the same: one function for all runtimes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.apps.chat.network.cache import empty_cache
from paredown.apps.chat.network.network import Gemma
from paredown.targets.errors import InputError

#: Tokens int64 (T,) to logits (T, vocabulary), whole or in blocks of rows one after the other: a window's
#: logits over Gemma's vocabulary take a gigabyte.
Predict = Callable[[NDArray[np.int64]], Iterable[NDArray[np.float32]]]


@dataclass(frozen=True)
class Quality:
    """What a model makes of some windows."""

    perplexity: float
    """exp of the mean negative log-likelihood of every token but each window's first."""
    tokens: int
    """How many that are."""
    best: NDArray[np.int64]
    """The likeliest token at each of them, (tokens,)."""
    losses: NDArray[np.float64]
    """Each window's mean negative log-likelihood and its number of tokens, (windows, 2)."""
    each: NDArray[np.float32]
    """Negative log-likelihood of each token, (tokens,)."""

    def resampled(self, weights: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Perplexity where each window counts weights[:, i] times; (resamples,) of (resamples, windows)."""
        means, tokens = self.losses.T
        found: NDArray[np.float64] = np.exp(weights @ (means * tokens) / (weights @ tokens))
        return found


def windows(
    tokens: Sequence[int], length: int, bos: int, count: int | None = None
) -> list[NDArray[np.int64]]:
    """Cuts a text into windows that do not overlap, each with a `bos` of its own before it.

    Args:
        tokens: of the whole text, without a `bos`.
        length: of a window, its `bos` included; what is left over at the end is dropped.
        bos: the token every text starts with.
        count: take the first so many; None for all.

    Raises:
        InputError: the text does not fill that many windows, or not even one.
    """
    step = length - 1
    there = len(tokens) // step
    wanted = there if count is None else count
    if not 0 < wanted <= there:
        what = f"{len(tokens)} tokens fill {there} windows of {length}, not {max(wanted, 1)}"
        raise InputError(what, hint="give a longer text, or fewer or shorter windows")
    return [np.array([bos, *tokens[n * step : (n + 1) * step]], np.int64) for n in range(wanted)]


def measure(predict: Predict, samples: Iterable[NDArray[np.int64]]) -> Quality:
    """Scores a model.

    Args:
        predict: the model; called with one window after the other, starting over each time.
        samples: of `windows`.

    Raises:
        InputError: it gives no finite probability to some token, or logits for another number of them.
    """
    losses, best, lengths = [], [], []
    for sample in samples:
        rows = 0
        lengths.append(len(sample) - 1)
        for block in predict(sample):
            logits = np.atleast_2d(np.asarray(block, np.float32))
            targets = sample[rows + 1 : rows + 1 + len(logits)]  # none for the last position
            rows += len(logits)
            logits = logits[: len(targets)]
            best.append(logits.argmax(-1))
            highest = logits.max(-1, initial=-np.inf)
            sums = np.exp(logits - highest[:, None]).sum(-1, dtype=np.float64)
            losses.append(np.log(sums) + highest - logits[np.arange(len(targets)), targets])
        if rows != len(sample):
            raise InputError(f"the model gave logits for {rows} positions of {len(sample)}")
    loss = np.concatenate(losses)
    if not np.isfinite(loss).all():
        raise InputError(f"the model gives no finite probability to {int((~np.isfinite(loss)).sum())} tokens")
    windows = np.split(loss, np.cumsum(lengths)[:-1])
    means = np.array([[window.mean(dtype=np.float64), len(window)] for window in windows])
    return Quality(math.exp(loss.mean()), len(loss), np.concatenate(best), means, loss)


def agreement(one: Quality, other: Quality) -> float:
    """The share of positions at which both would say the same token; of the same windows."""
    return float((one.best == other.best).mean())


def eager(network: Gemma, chunk: int = 128) -> Predict:
    """The network in torch, as something to measure: read in chunks, through its ring buffers."""

    def predict(tokens: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        ids = torch.from_numpy(tokens)[None]
        cache = empty_cache(network.config, len(tokens), chunk)
        for start in range(0, len(tokens), chunk):
            piece = ids[:, start : start + chunk]
            positions = torch.arange(start, start + piece.shape[1])
            with torch.no_grad():
                logits, cache = network(piece, positions, cache, write=Tensor.index_copy_)
            yield logits[0].numpy()

    return predict
