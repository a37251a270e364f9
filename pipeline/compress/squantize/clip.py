"""Learned clips of activations: low-bit values on one step, behind a ReLU from zero, else from below zero.

PACT (Choi et al., arXiv 1805.06085) learns the clip alpha of y = clip(x, 0, alpha) on 2**bits - 1 levels; LSQ
(Esser et al., arXiv 1902.08153) learns the step alpha / levels with a gradient that also knows the rounding,
scaled by 1 / sqrt(values x levels). This is LSQ's gradient on PACT's unsigned grid. The step's gradient, one
number, is estimated on every eighth image, so that the backward pass needs little more than a bit of whether
a value was within (our design).

Where values may be negative, some of the levels lie below zero: the offset says how many. LSQ+ (Bhalgat et
al., arXiv 2004.09576) learns a real offset; here it is a whole number, so that zero stays a level and padding
exact, and it is found at the start and kept (our design).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paredown.targets.errors import InputError, UsageError

CLIP_BITS = (2, 3, 4, 5, 6, 7, 8)
PARTS = 20  # clips that are tried at the start
OFFSETS = 16  # parts of the levels that are tried as the offset
SAMPLE = 50_000  # values that these are tried on
SLOPE_EVERY = 8  # images; of one of them the step's gradient is computed


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        inside = scaled.gt(low).logical_and_(scaled.lt(high))
        y = scaled.clamp(low, high).round_()
        slope = y[::SLOPE_EVERY] - scaled[::SLOPE_EVERY] * inside[::SLOPE_EVERY]  # the ends where beyond them
        ctx.save_for_backward(inside, slope)
        ctx.norm = (x[0].numel() * (high - low)) ** 0.5
        return y.mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, slope = ctx.saved_tensors
        share = len(inside) / len(slope)
        slope = (gradient[::SLOPE_EVERY] * slope).sum() * (share / ctx.norm)
        return gradient * inside, slope, None, None


class Clip(nn.Module):
    """Clip and rounding in one: 2**bits levels, neighbours one learned step apart, zero among them.

    Args:
        bits: 2 to 8.
        top: the upper limit of what makes the values, if it has one: the levels stay below it.
        bottom: likewise the lower one.
        signed: whether levels may lie below zero; without, the clip is a ReLU too.

    Raises:
        UsageError: other bits.
    """

    offset: Tensor

    def __init__(
        self, bits: int, top: float | None = None, bottom: float | None = None, *, signed: bool = False
    ) -> None:
        super().__init__()
        if bits not in CLIP_BITS:
            raise UsageError(f"activation_bits = {bits}", where="squantize", hint="2 to 8")
        self.levels, self.top, self.bottom, self.signed = 2**bits - 1, top, bottom, signed
        self.log_step = nn.Parameter(torch.tensor(10.0 / self.levels).log())
        if signed:
            self.register_buffer("offset", torch.tensor(self.levels // 2))

    @property
    def below(self) -> int:
        """How many of the levels lie below zero."""
        return int(self.offset) if self.signed else 0

    @property
    def step(self) -> Tensor:
        """The real value of one level, more than 0."""
        return self.log_step.exp().clamp_max(self._most(self.below))

    def _most(self, below: int) -> float:
        """The largest step with which every level is within the limits."""
        ends = ((self.top, self.levels - below), (self.bottom, -below))
        return min((limit / level for limit, level in ends if limit is not None and level), default=math.inf)

    def forward(self, x: Tensor) -> Tensor:
        """Levels times step, for any x; NaN stays NaN."""
        return _Clip.apply(x, self.step, -self.below, self.levels - self.below)

    @torch.no_grad()
    def start(self, values: Tensor, name: str) -> None:
        """Sets the clip that loses least, in the least-squares sense, on these values.

        Args:
            values: of the tensor; where it is not signed, behind the ReLU.
            name: of the tensor, for errors.

        Raises:
            InputError: none of them is above zero, or, of a signed clip, not zero; or one is not finite.
        """
        low, top = (min(0.0, float(values.min())) if self.signed else 0.0), max(0.0, float(values.max()))
        if not top > low or not bool(values.isfinite().all()):
            what = "is not finite" if not bool(values.isfinite().all()) else "never fires"
            raise InputError(
                f"activation {name} {what} on the training images", hint="check the weights and preprocessing"
            )
        sample = values[:: max(1, len(values) // SAMPLE)]
        parts = sorted({round(self.levels * part / OFFSETS) for part in range(OFFSETS + 1)})
        best = math.inf
        for below in parts if low < 0 else (0,):
            ends = ((top, self.levels - below), (-low, below))
            widest = max(end / levels for end, levels in ends if levels)
            for part in range(1, PARTS + 1 if widest else 0):
                step = min(widest * part / PARTS, self._most(below))
                rounded = (sample / step).round().clamp(-below, self.levels - below) * step
                error = float((rounded - sample).square().mean())
                if error < best:
                    best = error
                    self.log_step.fill_(torch.tensor(step).log())
                    if self.signed:
                        self.offset.fill_(below)


def prescribed(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Values as a kernel gives them whose output has a scale of its own; gradients pass.

    Args:
        x: of any shape.
        scale: the real value of one code.
        zero_point: the code of zero.
    """
    made: Tensor = _Prescribed.apply(x, scale, zero_point)
    return made


class _Prescribed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
        return (x / scale).round_().clamp_(-128 - zero_point, 127 - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None
