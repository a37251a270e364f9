"""A better rounding than to the nearest: what one weight's code loses, the others make good.

What counts is not how far the codes are from the weights but how far the layer's outputs are from what they
were: the error of a row w is (q - w) H (q - w), with H the second moments of the layer's inputs. Three steps:

1. GPTQ (Frantar et al., arXiv 2210.17323): column after column is rounded, and the error is made good in the
   columns that are left, by the rows of the Cholesky factor of H's inverse; the updates of columns further
   away are gathered, a block at a time. H is damped; columns can go by falling second moment ("act-order",
   from the authors' code). The scales are those that lose least on the plain weights, weighted by moment.
2. The scales that are best for these codes: a small linear system per row (our design).
3. Coordinate descent over the codes on these scales, as QuantEase does it (Behdin et al., arXiv 2309.01885).

Steps 2 and 3 never make a row worse, and a row for which the nearest codes are better keeps those. On
SQuantizer's uniform grid the weights that its threshold makes zero stay zero throughout, and the others make
good for them too, as in SparseGPT (Frantar and Alistarh, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest, usable
from paredown.pipeline.compress.grids.weight import BlockWeight, times_scales
from paredown.pipeline.compress.training.loop import check_settings
from paredown.targets.errors import InputError

GATHERED = 128  # columns whose updates of the rest are gathered into one product
ROWS = 4096  # rows at once: they are independent, and fewer fit the cache


@dataclass(frozen=True)
class RoundingConfig:
    """How codes are found for given inputs."""

    damping: float = 0.01
    """Added to H's diagonal, as a share of its mean: how much the plain error counts beside the outputs'."""
    by_moment: bool = True
    """Whether columns go by falling second moment ("act-order"), not from left to right."""
    sweeps: int = 1
    """Rounds of new scales and coordinate descent after GPTQ; 0 is GPTQ alone."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work.
        """
        check_settings(self, positive=("damping",), floored=("sweeps",))


@torch.no_grad()
def rounded(
    weight: Tensor, hessian: Tensor, grid: BlockGrid, config: RoundingConfig | None = None
) -> BlockWeight:
    """Codes with which the layer's outputs change least.

    Args:
        weight: float (out, in), finite.
        hessian: float (in, in), second moments of the layer's inputs (any factor).
        grid: the codes there are. On SQuantizer's threshold grid they are the nearest.
        config: how; the defaults where None.

    Returns:
        For every row of no more (q - w) H (q - w) than `nearest` has.

    Raises:
        InputError: weights or moments that are not finite, or whose shapes do not fit.
    """
    config = config or RoundingConfig()
    start = nearest(weight, grid)
    if hessian.shape != (weight.shape[1],) * 2 or not bool(torch.isfinite(hessian).all()):
        raise InputError(
            f"second moments of shape {tuple(hessian.shape)} for weights {tuple(weight.shape)}",
            where="rounded",
            hint="finite ones of the layer's own inputs are needed",
        )
    if grid.levels == "threshold":
        return start
    sparse = grid.levels != "integer"
    moments = _Moments.of(hessian, config)
    scales = start.scales.clone() if sparse else nearest(weight, grid, moments.damped.diagonal()).scales
    codes = torch.empty_like(start.codes)
    for first in range(0, len(weight), ROWS):
        part = slice(first, first + ROWS)
        w, its = weight[part].float(), scales[part]
        zeros = start.codes[part] == 0 if sparse else None
        found = _gptq(w, its, moments, grid.ends, zeros)
        for _ in range(config.sweeps):
            its = _refitted(w, found, its, moments.damped)
            found = _descended(w, found, its, moments.damped, grid.ends, zeros)
        before = _errors(w, start.codes[part], start.scales[part], moments.plain)
        worse = _errors(w, found, its, moments.plain) > before
        codes[part] = torch.where(worse.unsqueeze(1), start.codes[part], found)
        scales[part] = torch.where(worse.unsqueeze(1), start.scales[part], its)
    return BlockWeight(codes, scales, grid.bits, start.block)


@torch.no_grad()
def recoded(
    weight: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor, ends: tuple[int, int], zeros: Tensor
) -> Tensor:
    """Better codes on scales that stay: GPTQ, and a round of coordinate descent.

    Args:
        weight: float (out, in), finite.
        codes: int8 (out, in), the nearest ones.
        scales: float32 (out, 1).
        hessian: float (in, in), second moments of the layer's inputs (any factor), finite.
        ends: the smallest and the largest code.
        zeros: bool (out, in), codes that stay zero.

    Returns:
        int8 (out, in); for every row of no more (q - w) H (q - w) than `codes` have.
    """
    moments, weight = _Moments.of(hessian, RoundingConfig()), weight.float()
    found = _gptq(weight, scales, moments, ends, zeros)
    found = _descended(weight, found, scales, moments.damped, ends, zeros)
    worse = _errors(weight, found, scales, moments.plain) > _errors(weight, codes, scales, moments.plain)
    return torch.where(worse.unsqueeze(1), codes, found)


def weighted_error(weight: Tensor, found: BlockWeight, hessian: Tensor) -> Tensor:
    """What each row's outputs lose: (q - w) H (q - w), float32 (out,)."""
    return _errors(weight.float(), found.codes, found.scales, hessian.float())


def _errors(weight: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor) -> Tensor:
    lost = times_scales(codes.float(), scales) - weight
    return ((lost @ hessian) * lost).sum(1)


@dataclass(frozen=True)
class _Moments:
    """Second moments of a layer's inputs.

    Attributes:
        plain: float32 (in, in).
        damped: float32, what is minimised.
        order: (in,), which column comes when.
        factor: of the damped ones in that order, upper triangular; see `_factor`.
    """

    plain: Tensor
    damped: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, hessian: Tensor, config: RoundingConfig) -> _Moments:
        damped = _damped(hessian, config.damping)
        order = torch.arange(len(damped))
        if config.by_moment:
            order = torch.argsort(damped.diagonal(), descending=True, stable=True)
        return cls(hessian.float(), damped.float(), order, _factor(damped[order][:, order]))


def _damped(hessian: Tensor, damping: float) -> Tensor:
    """H that can be inverted, float64; inputs that never occur count for as little as the damping."""
    moments = hessian.double()
    mean = float(moments.diagonal().mean())
    return moments + (damping * mean if mean > 0 else 1.0) * torch.eye(len(moments), dtype=torch.float64)


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, float32."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _gptq(
    weight: Tensor, scales: Tensor, moments: _Moments, ends: tuple[int, int], zeros: Tensor | None
) -> Tensor:
    """GPTQ's codes on given scales.

    Args:
        weight: float32 (out, in).
        scales: (out, in / block).
        moments: of the inputs.
        ends: the smallest and the largest code.
        zeros: (out, in) codes that are zero in any case; None for none.

    Returns:
        int8 (out, in).
    """
    factor, order = moments.factor, moments.order
    # Columns lie in rows here: each is a contiguous vector.
    left = weight[:, order].T.contiguous()
    wide = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)[:, order].T.contiguous()
    codes = torch.empty_like(left)
    survives = None if zeros is None else ~zeros[:, order].T
    for first in range(0, len(left), GATHERED):
        last = min(first + GATHERED, len(left))
        errors = torch.empty_like(left[first:last])
        for at in range(first, last):
            codes[at] = (left[at] / wide[at]).round_().clamp_(*ends)
            if survives is not None:
                codes[at] *= survives[at]
            error = errors[at - first] = (left[at] - codes[at] * wide[at]) / factor[at, at]
            left[at + 1 : last].addr_(factor[at, at + 1 : last], error, alpha=-1)
        left[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return codes[torch.argsort(order)].T.to(torch.int8).contiguous()


def _refitted(weight: Tensor, codes: Tensor, scales: Tensor, moments: Tensor) -> Tensor:
    """The best scales for given codes, in every row where they are better as they are stored.

    With q_b the codes of block b, zero elsewhere, a row's error is s A s - 2 b s and a constant, where
    A = (q_a H q_b) and b = (q_a H w).
    """
    groups = scales.shape[1]
    values = codes.float()

    def by_block(rows: Tensor) -> Tensor:
        return (rows * values).unflatten(1, (groups, -1)).sum(2).double()

    parts = zip(values.split(len(moments) // groups, 1), moments.split(len(moments) // groups), strict=True)
    matrix = torch.stack([by_block(part @ rows) for part, rows in parts], 1)
    wanted = by_block(weight @ moments)

    def error(scales: Tensor) -> Tensor:
        wide = scales.double()
        return ((matrix @ wide.unsqueeze(2)).squeeze(2) * wide - 2 * wanted * wide).sum(1)

    diagonal = matrix.diagonal(dim1=1, dim2=2)
    # No scale of a block of zeros is better than another; the rest must not be singular either.
    ridge = torch.where(diagonal == 0, 1.0, 1e-9 * diagonal)
    solved = torch.linalg.solve(matrix + ridge.diag_embed(), wanted).float()
    fresh = usable(torch.where((solved > 0) & torch.isfinite(solved), solved, scales))
    return torch.where((error(fresh) < error(scales)).unsqueeze(1), fresh, scales)


def _descended(
    weight: Tensor,
    codes: Tensor,
    scales: Tensor,
    moments: Tensor,
    ends: tuple[int, int],
    zeros: Tensor | None,
) -> Tensor:
    """One round of coordinate descent: every code becomes the best one beside all others."""
    survives = None if zeros is None else ~zeros.T
    wide = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1).T.contiguous()
    values = codes.T.float().contiguous()
    slopes = moments @ (values * wide - weight.T)
    for first in range(0, len(values), GATHERED):
        last = min(first + GATHERED, len(values))
        moved = torch.empty_like(values[first:last])
        near = slopes[first:last].clone()
        for at in range(first, last):
            best = values[at] - near[at - first] / (moments[at, at] * wide[at])
            best = best.round_().clamp_(*ends)
            if survives is not None:
                best *= survives[at]
            moved[at - first] = (best - values[at]) * wide[at]
            values[at] = best
            near[at - first + 1 :].addr_(moments[at, at + 1 : last], moved[at - first])
        slopes.addmm_(moments[:, first:last], moved)
    return values.T.to(torch.int8).contiguous()
