"""Bits that codes need at least: their entropy, and what a channel needs beside its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


EXTRA = 8  # bytes of an output channel's bias and scale


def entropy(codes: NDArray[np.int8]) -> float:
    """Bits per code that an ideal code for these frequencies needs (Shannon)."""
    share = np.unique(codes, return_counts=True)[1] / max(1, codes.size)
    return abs(float((share * np.log2(share)).sum()))
