"""From float matrices to codes by rounding to the nearest, with the scales that lose least.

The range of a block need not hold its largest weight: a smaller scale rounds the many finer and cuts the few.
`nearest` tries a fixed set of scales for every block and keeps the one with the least squared error, then the
one that fits the codes best in the least-squares sense (our design, from usual parts). SQuantizer's grids
(`pipeline.compress.grids.grid`) are there too, for sparse codes: each block is divided by its largest weight,
so that one threshold of the layer means the same share of every block; zeros stay zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paredown.pipeline.compress.grids.grid import LARGEST_SIGMA, GridConfig, encode, sigma_for
from paredown.pipeline.compress.grids.weight import (
    BITS,
    BLOCK,
    BlockWeight,
    blocks_of,
    code_range,
    stored_scales,
)
from paredown.targets.errors import InputError, UsageError

LEVELS = ("integer", "uniform", "threshold")
SHRINK = tuple(1 - 0.07 * step for step in range(10))  # candidates of a scale, of the one that cuts nothing
SMALLEST = 2.0**-60  # scale: products with it are still normal numbers
CHUNK = 1 << 18  # weights at once: they stay in the cache

Levels = Literal["integer", "uniform", "threshold"]


@dataclass(frozen=True)
class BlockGrid:
    """Which codes a layer's weights can have."""

    bits: int = 4
    """2, 3, 4 or 8."""
    block: int | None = BLOCK
    """Weights of a row that share a scale; None for the whole row."""
    levels: Levels = "integer"
    """"integer": all that the bits hold; "uniform" and "threshold": SQuantizer's. The latter's levels are
    codes of 8 bits, at most 2**bits + 1 different ones."""
    sparsity: float = 0.0
    """Share of zeros on SQuantizer's grids."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work.
        """
        for name, known in (("bits", BITS), ("levels", LEVELS)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} = {getattr(self, name)!r}",
                    where="BlockGrid",
                    hint=f"one of {', '.join(map(str, known))}",
                )
        if not 0 <= self.sparsity < 1 or (self.sparsity and self.levels == "integer"):
            raise UsageError(
                f"sparsity = {self.sparsity} with levels = {self.levels!r}",
                where="BlockGrid",
                hint='0 or more and below 1; "integer" has no threshold',
            )

    @property
    def stored_bits(self) -> int:
        """Bits of the integers that hold the codes."""
        return 8 if self.levels == "threshold" else self.bits

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest code; SQuantizer's grids are symmetric."""
        low, high = code_range(self.stored_bits)
        return (low, high) if self.levels == "integer" else (-high, high)

    def block_in(self, columns: int) -> int:
        """The block's size in rows of so many weights.

        Raises:
            InputError: it does not divide them.
        """
        block = columns if self.block is None else self.block
        blocks_of(columns, block)
        return block


@torch.no_grad()
def nearest(weight: Tensor, grid: BlockGrid, importance: Tensor | None = None) -> BlockWeight:
    """The nearest codes, on the scales that lose least.

    Args:
        weight: float (out, in), finite.
        grid: the codes there are.
        importance: (in,) how much an error of each column counts, 0 or more; all alike where None.

    Raises:
        InputError: weights that are not finite, or a block that does not divide a row.
    """
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            "weights are NaN or infinite", where="nearest", hint="look at what they were read from"
        )
    rows, columns = weight.shape
    block = grid.block_in(columns)
    if grid.levels != "integer":
        return _squantized(weight.float(), grid, block)
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // block)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step].float()
        scales[start : start + step] = best_scales(part, grid.bits, block, importance)
        codes[start : start + step] = nearest_codes(part, scales[start : start + step], grid.bits)
    return BlockWeight(codes, scales, grid.bits, block)


def nearest_codes(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest codes on given scales: int8 (out, in)."""
    low, high = code_range(bits)
    blocks = weight.unflatten(1, (scales.shape[1], -1))
    return (blocks / scales.unsqueeze(2)).round_().clamp_(low, high).flatten(1).to(torch.int8)


def best_scales(weight: Tensor, bits: int, block: int, importance: Tensor | None = None) -> Tensor:
    """The scale of every block with the least (weighted) squared error of those that are tried.

    Args:
        weight: float32 (out, in).
        bits: of a code.
        block: divides `in`.
        importance: (in,), see `nearest`.

    Returns:
        float32 (out, in / block), as they are stored; 1 for a block of zeros.
    """
    low, high = code_range(bits)
    blocks = weight.unflatten(1, (-1, block))
    share = torch.ones(()) if importance is None else importance.to(weight.dtype).unflatten(0, (-1, block))
    widest = torch.maximum(blocks.amax(2) / high, blocks.amin(2) / low)
    best, least = usable(widest), torch.full_like(widest, torch.inf)
    for shrink in SHRINK:
        best, least = _better(blocks, share, usable(widest * shrink), bits, best, least)
    codes = (blocks / best.unsqueeze(2)).round_().clamp_(low, high)
    fit = (codes * blocks * share).sum(2) / (codes * codes * share).sum(2).clamp_min(1e-30)
    best, _ = _better(blocks, share, usable(fit), bits, best, least)
    return best


def _better(
    blocks: Tensor, share: Tensor, scales: Tensor, bits: int, best: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """The better of two scales for each block, and its error."""
    wide = scales.unsqueeze(2)
    rounded = (blocks / wide).round_().clamp_(*code_range(bits)).mul_(wide)
    error = rounded.sub_(blocks).square_().mul_(share).sum(2)
    better = error < least
    return torch.where(better, scales, best), torch.where(better, error, least)


def usable(scales: Tensor) -> Tensor:
    """Scales (out, blocks) as they can be stored: positive, those of several blocks in bfloat16; 1 for 0."""
    scales = torch.where(scales == 0, 1.0, scales.abs().clamp_min(SMALLEST))
    return stored_scales(scales) if scales.shape[1] > 1 else scales


def _squantized(weight: Tensor, grid: BlockGrid, block: int) -> BlockWeight:
    """Codes on SQuantizer's grids."""
    blocks = weight.unflatten(1, (-1, block))
    largest = usable(blocks.abs().amax(2))
    shares = (blocks / largest.unsqueeze(2)).clamp_(-1, 1).flatten(1)
    sigma = sigma_for(shares, grid.sparsity) if grid.sparsity else -LARGEST_SIGMA
    codes, step = encode(shares, sigma, GridConfig(grid.bits, grid.levels))  # type: ignore[arg-type]
    return BlockWeight(codes.to(torch.int8), usable(largest * step), grid.stored_bits, block)
