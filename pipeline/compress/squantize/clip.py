"""Learned clips of activations: unsigned low-bit values behind a ReLU.

PACT (Choi et al., arXiv 1805.06085) learns the clip alpha of y = clip(x, 0, alpha) on 2**bits - 1 levels; LSQ
(Esser et al., arXiv 1902.08153) learns the step alpha / levels with a gradient that also knows the rounding,
scaled by 1 / sqrt(values x levels). This is LSQ's gradient on PACT's unsigned grid. The step's gradient, one
number, is estimated on every eighth image, so that the backward pass needs little more than a bit of whether
a value was within (our design).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.targets.errors import InputError, UsageError

CLIP_BITS = (2, 4, 8)
PARTS = 20  # clips that are tried at the start
SAMPLE = 50_000  # values that these are tried on
SLOPE_EVERY = 8  # images; of one of them the step's gradient is computed


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: int) -> Tensor:
        scaled = x / step
        inside = scaled.gt(0).logical_and_(scaled.lt(levels))
        y = scaled.clamp(0, levels).round_()
        slope = y[::SLOPE_EVERY] - scaled[::SLOPE_EVERY] * inside[::SLOPE_EVERY]  # 0 below, levels above
        ctx.save_for_backward(inside, slope)
        ctx.norm = (x[0].numel() * levels) ** 0.5
        return y.mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inside, slope = ctx.saved_tensors
        share = len(inside) / len(slope)
        return gradient * inside, (gradient[::SLOPE_EVERY] * slope).sum() * (share / ctx.norm), None


class Clip(nn.Module):
    """ReLU, clip and rounding in one: 0..2**bits - 1 times a learned step.

    Args:
        bits: 8, 4 or 2.
        top: the ReLU's own upper limit, if it has one.

    Raises:
        UsageError: other bits.
    """

    def __init__(self, bits: int, top: float | None = None) -> None:
        super().__init__()
        if bits not in CLIP_BITS:
            raise UsageError(f"activation_bits = {bits}", where="squantize", hint="one of 8, 4, 2")
        self.levels, self.top = 2**bits - 1, top
        self.log_step = nn.Parameter(torch.tensor(10.0 / self.levels).log())

    @property
    def step(self) -> Tensor:
        """The real value of one level, more than 0."""
        step = self.log_step.exp()
        return step if self.top is None else step.clamp_max(self.top / self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """Levels times step, for any x; NaN stays NaN."""
        return _Clip.apply(x, self.step, self.levels)

    @torch.no_grad()
    def start(self, values: Tensor, name: str) -> None:
        """Sets the clip that loses least, in the least-squares sense, on these values.

        Args:
            values: behind the ReLU.
            name: of the tensor, for errors.

        Raises:
            InputError: none of them is above zero, or one is not finite.
        """
        top = float(values.max())
        if not top > 0 or not bool(values.isfinite().all()):
            what = "is not finite" if not bool(values.isfinite().all()) else "never fires"
            raise InputError(
                f"activation {name} {what} on the training images", hint="check the weights and preprocessing"
            )
        sample = values[:: max(1, len(values) // SAMPLE)]
        steps = [top * part / PARTS / self.levels for part in range(1, PARTS + 1)]
        errors = [((sample / s).round().clamp(0, self.levels) * s - sample).square().mean() for s in steps]
        self.log_step.fill_(torch.tensor(steps[int(torch.stack(errors).argmin())]).log())
