"""The grid: from float weights to sparse low-bit integer codes, as pure functions of tensors.

SQuantizer (Park, Xu, Brick, arXiv 1812.08301) sparsifies and quantizes a layer's latent float weights W anew
in every forward pass, in this order. With k bits and n = 2**(k-1) - 1:

    t = mean|W| + sigma * std|W|                        what is smaller becomes zero
    q = round(n * (|W| - t) / (max|W| - t))             0..n, of what survives
    v = sign(W) * (q * (max|W| - t) / n + t)

`threshold` is that grid. Our design: its levels are snapped to the int8 grid, code = round(v / step) with
step = max|W| / 127 (or 63, `GridConfig.top`), so that the layer is an exact int8 layer for every int8 kernel,
with at most 2**k + 1 different codes. `uniform` (our design) has the codes -n..n and step = max|W| / n, as
native int4 tensors hold them; `ternary` has -1, 0, 1 and for its step the mean of the survivors, the nearest
one in the least-squares sense. What survives the threshold never becomes zero by rounding.

A layer has one grid, as in the paper; or (our design) each output channel has its own: its weights are
measured in units of the channel's largest, threshold included, and the step is a step per channel. That is
for networks whose channels differ much in size, as those of depthwise separable ones do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from paredown.targets.errors import UsageError

GRIDS = ("threshold", "uniform", "ternary")
PER = ("layer", "channel")
BITS = (2, 3, 4, 5, 6, 7, 8)
ORDERS = ("sparsify-first", "quantize-first")
TOP = 127  # largest int8 code; -128 is not used
LARGEST_SIGMA = 30.0  # no weight is that far out

Grid = Literal["threshold", "uniform", "ternary"]
Order = Literal["sparsify-first", "quantize-first"]
Per = Literal["layer", "channel"]


@dataclass(frozen=True)
class GridConfig:
    """How a layer's weights are made sparse and low-bit."""

    bits: int = 4
    """2 to 8; `ternary` has no other choice than its own."""
    grid: Grid = "threshold"
    """Which levels there are."""
    order: Order = "sparsify-first"
    """The reverse exists to reproduce the ablation: it compares quantized weights with the threshold."""
    masked_gradient: bool = False
    """Whether a weight that is zero now gets no gradient; without, it can grow back."""
    per: Per = "layer"
    """What has a grid of its own."""
    top: int = TOP
    """The largest code."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: one of them is none that exists.
        """
        for name, known in (("bits", BITS), ("grid", GRIDS), ("order", ORDERS), ("per", PER)):
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise UsageError(
                    f"{name} = {getattr(self, name)!r}", where="squantize", hint=f"one of {listed}"
                )

    @property
    def most_uniform(self) -> int:
        """The largest code of the uniform grid."""
        return min(self.top, 2 ** (self.bits - 1) - 1)

    @property
    def most_codes(self) -> int:
        """How many different codes a layer can have at most, zero included."""
        if self.grid == "ternary":
            return 3
        return min(2 * self.top + 1, 2**self.bits + 1 if self.grid == "threshold" else 2**self.bits - 1)


def check_sigma(sigma: float) -> None:
    """Checks a threshold in standard deviations.

    Raises:
        UsageError: not a number that a threshold can have.
    """
    if not (math.isfinite(sigma) and abs(sigma) <= LARGEST_SIGMA):
        raise UsageError(
            f"sigma = {sigma}", where="squantize", hint="from -30 to 30; 0.1 gives about 60 % zeros"
        )


def in_units(weight: Tensor, per: Per) -> tuple[Tensor, Tensor]:
    """A weight in the units of its grids.

    Args:
        weight: (out, ...).
        per: what has a grid of its own.

    Returns:
        The weight divided by its units; and these: a scalar of 1, or (out, 1, ...), the largest |weight| of
        each output channel. A dead channel, all of whose weights are beside the layer's largest one less than
        a float32 can add to it, is zero, in the layer's units: its noise would fill a grid of its own.
    """
    if per == "layer":
        return weight, weight.new_ones(())
    top = weight.detach().abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    largest = top.max()
    dead = top <= torch.finfo(torch.float32).eps / 2 * largest
    units = torch.where(dead, torch.where(largest == 0, 1.0, largest), top)
    return torch.where(dead, 0.0, weight / units), units


def threshold_at(weight: Tensor, sigma: Tensor | float) -> Tensor:
    """T = mean|W| + sigma * std|W|, but never beyond the largest weight, so that one survives."""
    size = weight.detach().abs()
    t = size.mean() + sigma * size.std(correction=0)
    return t.clamp_min(0.0).minimum(size.max())


def sigma_for(weight: Tensor, sparsity: float, per: Per = "layer") -> float:
    """The sigma at which a share of the weights is zero, rounded down to whole weights; one survives.

    Args:
        weight: of any shape, finite; (out, ...) per channel.
        sparsity: 0 <= sparsity < 1.
        per: what has a grid of its own.
    """
    size = in_units(weight, per)[0].detach().abs().flatten().sort().values
    zeros = min(int(sparsity * len(size) + 1e-9), len(size) - 1)
    spread = float(size.std(correction=0))
    if not spread:
        return 0.0
    # In the middle between two neighbours float32 rounding cannot move a weight to the other side.
    below = float(size[zeros - 1]) if zeros else 0.0
    return ((below + float(size[zeros])) / 2 - float(size.double().mean())) / spread


@torch.no_grad()
def encode(weight: Tensor, sigma: Tensor | float, config: GridConfig) -> tuple[Tensor, Tensor]:
    """Gives a layer's codes, and their step.

    Args:
        weight: of any shape, float.
        sigma: the threshold in standard deviations of |W|.
        config: the grid.

    Returns:
        Whole numbers from -127 to 127 as floats, of the weight's shape; and the real value of code 1: a
        scalar, or (out, 1, ...) where each channel has a grid. For weights that are all zero the codes are
        zero and the step is 1.
    """
    weight, units = in_units(weight, config.per)
    codes, step = _encode(weight, sigma, config)
    return codes, step * units


def _encode(weight: Tensor, sigma: Tensor | float, config: GridConfig) -> tuple[Tensor, Tensor]:
    if config.order == "sparsify-first":
        t = threshold_at(weight, sigma)
        return _levels(weight, t, weight.abs() >= t, config)
    codes, step = _levels(weight, weight.new_zeros(()), torch.ones_like(weight, dtype=torch.bool), config)
    return codes * (codes.abs() * step >= threshold_at(codes * step, sigma)), step


def _levels(weight: Tensor, t: Tensor, survives: Tensor, config: GridConfig) -> tuple[Tensor, Tensor]:
    """The nearest level of each survivor."""
    # No branch hangs on a value: a GPU would have to be waited for.
    size = weight.abs()
    top = size.max()
    if config.grid == "ternary":
        # Quantizing everything first, a ternary grid has to have a zero of its own.
        codes = torch.where(t > 0, survives, 2 * size >= size.mean()).to(weight.dtype)
        step = (size * codes).sum() / codes.sum().clamp_min(1)
        return codes * weight.sign(), torch.where(top == 0, torch.ones_like(step), step)
    n = 2 ** (config.bits - 1) - 1 if config.grid == "threshold" else config.most_uniform
    # Of a layer of zeros every code is 0 times a step of 1; NaN goes on, for the loss to stop at.
    step = torch.where(top == 0, torch.ones_like(top), top / (n if config.grid == "uniform" else config.top))
    if config.grid == "uniform":
        codes = (size / step).round()
    else:
        span = (top - t).clamp_min(torch.finfo(weight.dtype).tiny)
        q = (n * (size - t) / span).round()
        codes = ((q * (span / n) + t) / step).round()
    codes = codes.clamp_max(config.top).maximum((t > 0).to(codes.dtype))
    return codes * weight.sign() * survives, step


class _FakeQuantize(torch.autograd.Function):
    """Codes times step forward, a straight-through gradient backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, config: GridConfig) -> Tensor:
        codes, step = encode(weight, sigma, config)
        ctx.masked = config.masked_gradient
        if ctx.masked:
            ctx.save_for_backward(codes != 0)
        return codes * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient * ctx.saved_tensors[0] if ctx.masked else gradient), None, None


def fake_quantize(weight: Tensor, sigma: Tensor | float, config: GridConfig) -> Tensor:
    """The weights that the codes stand for; differentiable straight through.

    Args:
        weight: latent float weights.
        sigma: the threshold in standard deviations of |W|.
        config: the grid.
    """
    return _FakeQuantize.apply(weight, torch.as_tensor(sigma), config)
