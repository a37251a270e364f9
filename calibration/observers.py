"""Range observers and quantization parameters, in numpy: the values of a tensor, and an int8 grid for them.

Activations are int8 affine per tensor, weights int8 symmetric per output channel. MinMax and percentiles are
the field's common observers; the streaming histogram and the search for the least squared error are ours.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import numpy as np

from paredown.targets.errors import InputError, UsageError

ObserverName = Literal["minmax", "percentile", "mse"]

# The smallest scale. A bias is stored as int32 in units of input scale times weight scale, and a tiny scale
# overflows it. torch.ao's observers have the same floor.
SMALLEST_SCALE = 2.0**-23
# Of an activation that is not always zero: a network may make values as small as that, and tell them apart.
SMALLEST_STEP = 2.0**-40

# Of these the larger side of zero fills 2,048 at least: eight and more per step of the int8 grid.
_BINS = 8192
_STEPS = 64  # candidates per sweep of the search for the least squared error


class Observer(Protocol):
    """Watches a tensor over many samples."""

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample, of any shape and floating type.

        Raises:
            InputError: a value is NaN or infinite.
        """

    def range(self) -> tuple[float, float]:
        """The range to represent, ``lo <= 0 <= hi``.

        Raises:
            InputError: nothing was observed.
        """


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self._low, self._high, self._count = 0.0, 0.0, 0

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample; see ``Observer``."""
        if np.size(values):
            self.widen(*_extent(values), np.size(values))

    def widen(self, low: float, high: float, count: int) -> None:
        """Takes the extremes of so many values."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._count += count

    def range(self) -> tuple[float, float]:
        """The extremes, widened to include zero; see ``Observer``."""
        _check_seen(self._count)
        return self._low, self._high


class _Histogram:
    """Counts over all samples in bins of one width, centred on zero.

    When a value falls outside, neighbouring bins are merged in pairs and the width doubles: counts stay exact
    and the data are read once. Widths are powers of two, so the order of the samples does not matter.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.width = 0.0  # of a bin; 0 until a value other than zero comes
        self.zeros = 0  # exact zeros are kept apart: half of a ReLU's output, and without error on any grid
        self.extent = MinMax()
        self.total = 0

    def update(self, values: np.ndarray) -> None:
        values = np.asarray(values).ravel()
        if not values.size:
            return
        low, high = _extent(values)
        self.extent.widen(low, high, values.size)
        self.total += values.size
        reach = max(-low, high)
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if reach == 0:
            return
        self._cover(reach)
        # float64: a float32 has too few digits for the reciprocal of a tiny width
        position = values.astype(np.float64) * (1.0 / self.width) + _BINS // 2
        counts = np.bincount(position.astype(np.int64), minlength=_BINS + 1)
        counts[_BINS - 1] += counts[_BINS]  # the very end belongs to the last bin
        counts = counts[:_BINS]
        counts[_BINS // 2] -= zeros
        self.counts += counts

    def _cover(self, reach: float) -> None:
        half = _BINS // 2
        if self.width == 0:
            # The floor keeps the reciprocal of the width finite.
            self.width = 2.0 ** max(math.ceil(math.log2(reach) - math.log2(half)), -1000)
        while reach > self.width * half:
            merged = np.zeros_like(self.counts)
            merged[half // 2 : half + half // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
            self.width *= 2

    def edges(self) -> np.ndarray:
        """(bins + 1,) float64."""
        return (np.arange(_BINS + 1) - _BINS // 2) * self.width


class Percentile:
    """The range between two percentiles, each leaving out the same share of all values seen.

    Found in a histogram, so exact to one bin: at most 1/2,048 of the larger extreme.
    """

    def __init__(self, percent: float = 99.99) -> None:
        """Sets the upper percentile; the lower is ``100 - percent``.

        Raises:
            UsageError: ``percent`` is not above 50 and at most 100.
        """
        if not 50 < percent <= 100:
            raise UsageError(f"a percentile of {percent} is not above 50 and at most 100")
        self.percent = percent
        self._histogram = _Histogram()

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample; see ``Observer``."""
        self._histogram.update(values)

    def range(self) -> tuple[float, float]:
        """The percentiles, widened to include zero; see ``Observer``.

        Where both percentiles are zero and some values are not (a very sparse activation) it is the extremes:
        a range of nothing would erase the tensor.
        """
        histogram = self._histogram
        lowest, highest = histogram.extent.range()
        counts, edges, half = histogram.counts, histogram.edges(), _BINS // 2
        tail = histogram.total * (1 - self.percent / 100)
        low = max(_beyond_tail(counts[:half], edges[:half], tail), lowest)
        high = min(_beyond_tail(counts[half:][::-1], edges[half + 1 :][::-1], tail), highest)
        return (lowest, highest) if low == high else (low, high)


class MSE:
    """The range whose int8 grid has the least squared error over all values seen.

    Clipping a few outliers makes every step finer. First both ends shrink together, then each end for itself,
    on the histogram; the unclipped range is a candidate, so the result is never worse.
    """

    def __init__(self) -> None:
        self._histogram = _Histogram()

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample; see ``Observer``."""
        self._histogram.update(values)

    def range(self) -> tuple[float, float]:
        """The best range; see ``Observer``."""
        histogram = self._histogram
        low, high = histogram.extent.range()
        used = np.flatnonzero(histogram.counts)
        if not used.size:
            return low, high
        edges = histogram.edges()
        centres, counts = (edges[used] + edges[used + 1]) / 2, histogram.counts[used].astype(np.float64)
        coarse = np.geomspace(1.0, 1 / 2048, _STEPS)  # steps of 11 %
        fine = np.concatenate([[1.0], np.linspace(1.12, 0.88, _STEPS)])  # to between two of the coarse ones
        lowest, highest = low, high
        low, high = _best(centres, counts, low * coarse, high * coarse)
        for sweep in (coarse, fine):
            stay = np.ones(sweep.size)
            low, high = _best(centres, counts, low * stay, np.minimum(high * sweep, highest))
            low, high = _best(centres, counts, np.maximum(low * sweep, lowest), high * stay)
        return low, high


class Several:
    """All observers at once, on one histogram: what each of them would say."""

    def __init__(self) -> None:
        """Makes the observers."""
        self._percentile, self._mse = Percentile(), MSE()
        self._histogram = self._mse._histogram = self._percentile._histogram

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample; see ``Observer``."""
        self._histogram.update(values)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Observer to range, "minmax" first."""
        extent = self._histogram.extent.range()
        return {"minmax": extent, "percentile": self._percentile.range(), "mse": self._mse.range()}


def make_observer(name: str) -> Observer:
    """A fresh observer: ``minmax``, ``percentile`` (99.99) or ``mse``.

    Raises:
        UsageError: there is no observer of this name.
    """
    if name == "minmax":
        return MinMax()
    if name == "percentile":
        return Percentile()
    if name == "mse":
        return MSE()
    raise UsageError(f"unknown observer {name!r}", hint="known: minmax, percentile, mse")


def activation_qparams(lo: float, hi: float) -> tuple[float, int]:
    """Scale and zero point of the int8 affine grid for a range, widened to include zero.

    Zero is exactly representable, and the range's ends are within half a step of the grid's.

    Args:
        lo: smallest value to represent.
        hi: largest value to represent.

    Returns:
        The scale, a float32 value and at least ``SMALLEST_STEP``, and the zero point, -128..127.

    Raises:
        InputError: an end is not finite, or ``lo > hi``.
    """
    if not (math.isfinite(lo) and math.isfinite(hi)) or lo > hi:
        raise InputError(f"[{lo}, {hi}] is not a range of finite values")
    scale, zero_point = _qparams(np.array([lo]), np.array([hi]))
    if not np.isfinite(scale[0]):
        raise InputError(f"the range [{lo}, {hi}] is too wide for a float32 scale")
    return float(scale[0]), int(zero_point[0])


def weight_scales(w: np.ndarray, method: Literal["minmax", "mse"] = "minmax", most: int = 127) -> np.ndarray:
    """Scales of int8 symmetric weights (codes -127..127), one per output channel.

    Args:
        w: (out_channels, ...) float weights.
        method: ``minmax`` represents the largest weight exactly; ``mse`` shrinks each channel's range, down
            to a fifth, where that lessens its squared error.
        most: the largest code, where it is less than 127.

    Returns:
        (out_channels,) float32, at least ``SMALLEST_SCALE``; 1 for a channel of zeros.

    Raises:
        InputError: a weight is NaN or infinite (its channel is named), or ``w`` is empty.
        UsageError: ``method`` is unknown.
    """
    if method not in ("minmax", "mse"):
        raise UsageError(f"unknown method {method!r} for weight scales", hint="known: minmax, mse")
    w = np.asarray(w)
    if w.ndim == 0 or w.size == 0:
        raise InputError(f"weights of shape {w.shape} have no output channels or no weights")
    flat = w.reshape(w.shape[0], -1).astype(np.float32, copy=False)
    largest = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(largest))
    if wrong.size:
        raise InputError(f"weights of output channel {wrong[0]} are not finite (NaN or infinite)")
    scales = _weight_scale(largest, most)
    if method == "mse":
        best = _weight_error(flat, scales, most)
        for fraction in np.linspace(0.98, 0.2, 40):
            candidate = _weight_scale(largest * fraction, most)
            error = _weight_error(flat, candidate, most)
            scales = np.where(error < best, candidate, scales)
            best = np.minimum(error, best)
    return scales


def _weight_scale(largest: np.ndarray, most: int) -> np.ndarray:
    scales = np.maximum(largest / most, SMALLEST_SCALE).astype(np.float32)
    return np.where(largest == 0, np.float32(1), scales)


def _weight_error(flat: np.ndarray, scales: np.ndarray, most: int) -> np.ndarray:
    """(out_channels,) sum of squared errors; two temporaries of the weights' size."""
    codes = flat / scales[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, -most, most, out=codes)
    codes *= scales[:, None]
    codes -= flat
    return np.einsum("ij,ij->i", codes, codes, dtype=np.float64)


def _qparams(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales (float32 values, as float64) and zero points of many ranges at once."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    with np.errstate(over="ignore"):
        least = np.where(high > low, SMALLEST_STEP, SMALLEST_SCALE)
        scale = np.maximum((high / 255 - low / 255), least).astype(np.float32).astype(np.float64)
    zero_point = np.clip(np.rint(-128 - low / scale), -128, 127)
    return scale, zero_point


def _best(centres: np.ndarray, counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """The candidate range with the least squared error over a histogram; the first of equals."""
    scale, zero_point = (column[:, None] for column in _qparams(low, high))
    codes = np.clip(np.rint(centres / scale) + zero_point, -128, 127)
    error = ((codes - zero_point) * scale - centres) ** 2 @ counts
    best = int(np.argmin(error))
    return float(low[best]), float(high[best])


def _beyond_tail(counts: np.ndarray, edges: np.ndarray, tail: float) -> float:
    """The outer edge of the first bin, inwards, beyond which no more than ``tail`` values lie."""
    at = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
    return float(edges[at]) if at < len(counts) else 0.0


def _extent(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))  # both carry a NaN through
    if not (math.isfinite(low) and math.isfinite(high)):
        kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite"
        raise InputError(f"a value is {kind}")
    return low, high


def _check_seen(count: int) -> None:
    if not count:
        raise InputError("no values were observed")
