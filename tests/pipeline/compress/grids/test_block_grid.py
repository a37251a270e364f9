"""Nearest codes and the search for scales, against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.pipeline.compress.grids.block_grid import SHRINK, BlockGrid, nearest
from paredown.pipeline.compress.grids.grid import GridConfig, encode
from paredown.pipeline.compress.grids.weight import code_range
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit


def heavy_tailed(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) ** 3


def error_of(block: list[float], scale: float, low: int, high: int, share: list[float]) -> float:
    rounded = [max(low, min(high, round(w / scale))) * scale for w in block]
    return sum(s * (w - q) ** 2 for w, q, s in zip(block, rounded, share, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from((2, 3, 4, 8)), st.sampled_from((4, 8, None)), st.integers(0, 2**31), st.booleans())
def test_scales_are_as_good_as_those_of_a_plain_search(
    bits: int, block: int | None, seed: int, weighted: bool
) -> None:
    weight = heavy_tailed(3, 16, seed)
    share = torch.rand(16, generator=torch.Generator().manual_seed(seed)) if weighted else torch.ones(16)
    found = nearest(weight, BlockGrid(bits, block), share if weighted else None)
    low, high = code_range(bits)
    size = block or 16
    for row in range(3):
        for number in range(16 // size):
            part = slice(number * size, (number + 1) * size)
            values, shares = weight[row, part].tolist(), share[part].tolist()
            widest = max(max(values) / high, min(values) / low)
            tried = [widest * shrink for shrink in SHRINK]
            if block:  # as bfloat16 stores them
                tried = torch.tensor(tried).bfloat16().float().tolist()
            least = min(error_of(values, scale, low, high, shares) for scale in tried)
            ours = error_of(values, float(found.scales[row, number]), low, high, shares)
            assert ours <= least * 1.0001 + 1e-12
            # The codes are the nearest there are on that scale.
            rounded = found.dequantized()[row, part].tolist()
            its = sum(s * (w - q) ** 2 for w, q, s in zip(values, rounded, shares, strict=True))
            assert math.isclose(its, ours, rel_tol=1e-3, abs_tol=1e-9)


def test_what_the_grid_holds_comes_back_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (5, 64), generator=generator)
    codes[:, ::32] = -8  # so that the range is known
    scales = 2.0 ** torch.randint(-4, 4, (5, 2), generator=generator)
    weight = (codes.unflatten(1, (2, 32)) * scales.unsqueeze(2)).flatten(1)
    found = nearest(weight, BlockGrid())
    assert torch.equal(found.codes, codes.to(torch.int8)) and torch.equal(found.scales, scales)


@pytest.mark.parametrize("block", [32, None])
def test_zeros_stay_zero_and_have_a_scale(block: int | None) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 5] = 0.3
    found = nearest(weight, BlockGrid(block=block))
    assert not found.dequantized()[weight == 0].any()
    assert (found.scales[0] == 1).all()
    assert found.dequantized()[1, 5] == pytest.approx(0.3, rel=1 / 256)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from((2, 3, 4)), st.sampled_from((0.0, 0.3, 0.6)), st.integers(0, 2**31))
def test_squantizer_levels_are_few_and_their_zeros_exact(bits: int, sparsity: float, seed: int) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    found = nearest(weight, BlockGrid(bits, 32, "threshold", sparsity))
    assert found.bits == 8 and len(found.codes.unique()) <= 2**bits + 1
    assert int((found.codes == 0).sum()) >= int(sparsity * 256)
    assert not found.dequantized()[found.codes == 0].any()
    assert (found.dequantized() * weight >= 0).all()


def test_squantizer_on_one_row_is_squantizer() -> None:
    weight = torch.randn(1, 48, generator=torch.Generator().manual_seed(3))
    for levels in ("threshold", "uniform"):
        found = nearest(weight, BlockGrid(4, None, levels))
        codes, step = encode(weight, -30.0, GridConfig(4, levels))
        assert torch.equal(found.codes, codes.to(torch.int8))
        assert torch.allclose(found.dequantized(), codes * step)
        if levels == "uniform":
            assert found.bits == 4 and int(found.codes.abs().max()) == 7


def test_more_bits_and_smaller_blocks_lose_less() -> None:
    weight = heavy_tailed(16, 128, 7)

    def error(grid: BlockGrid) -> float:
        return float((nearest(weight, grid).dequantized() - weight).square().mean())

    losses = [error(BlockGrid(bits)) for bits in (8, 4, 3, 2)]
    assert losses == sorted(losses)
    assert error(BlockGrid(4, 32)) < error(BlockGrid(4, 64)) < error(BlockGrid(4, None))


def test_settings_and_weights_that_cannot_work() -> None:
    with pytest.raises(UsageError, match="bits = 5"):
        BlockGrid(5)
    with pytest.raises(UsageError, match="sparsity"):
        BlockGrid(sparsity=0.5)
    with pytest.raises(InputError, match="blocks of 32"):
        nearest(torch.ones(2, 40), BlockGrid())
    with pytest.raises(InputError, match="NaN"):
        nearest(torch.full((1, 32), torch.nan), BlockGrid())
