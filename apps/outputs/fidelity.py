"""How near outputs are to those of the original network: R squared, from sums over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOISE, SUM, SQUARES, COUNT = range(4)


def counts(
    outputs: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """(outputs, 4): squared distance; sum, squares and number of the values that are wanted."""
    found = np.zeros((len(wanted), 4))
    for row, ours, theirs in zip(found, outputs, wanted, strict=True):
        one, other = ours.astype(np.float64), theirs.astype(np.float64)
        row[:] = np.square(one - other).sum(), other.sum(), np.square(other).sum(), other.size
    return found


def r2(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the outputs of 1 - noise / variance, each 0 at least, of sums (..., outputs, 4).

    1 is equal, and 0 no nearer than a network that always says the mean. An output that never changes is
    1 if it is equal, else 0.
    """
    count = np.maximum(sums[..., COUNT], 1)
    signal = sums[..., SQUARES] - np.square(sums[..., SUM]) / count
    # What is left of a constant's squares is rounding.
    constant = signal <= 1e-12 * sums[..., SQUARES]
    share = 1 - sums[..., NOISE] / np.where(constant, 1, signal)
    share = np.where(constant, sums[..., NOISE] <= 1e-12 * sums[..., SQUARES], np.maximum(share, 0))
    return np.where(np.isfinite(share), share, 0).mean(-1)
