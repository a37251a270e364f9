"""GPTQ and what follows it: against the nearest codes, a plain loop, and every code there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.rounding import RoundingConfig, recoded, rounded, weighted_error
from paredown.targets.errors import InputError, UsageError


def layer(rows: int, columns: int, seed: int, tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Weights, and second moments of inputs whose features depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(tokens or 4 * columns, columns, generator=generator) @ (mix + 0.3)
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((2, 3, 4, 8)), st.sampled_from((8, 16, None)), st.booleans(), st.integers(0, 2),
    st.integers(0, 2**31),
)  # fmt: skip
def test_never_worse_than_nearest_in_any_row(
    bits: int, block: int | None, by_moment: bool, sweeps: int, seed: int
) -> None:
    grid = BlockGrid(bits, block)
    weight, moments = layer(6, 48, seed, tokens=32)  # fewer tokens than columns: H is singular
    config = RoundingConfig(by_moment=by_moment, sweeps=sweeps)
    ours = weighted_error(weight, rounded(weight, moments, grid, config), moments)
    assert (ours <= weighted_error(weight, nearest(weight, grid), moments)).all()


@pytest.mark.parametrize("block", [32, None])
def test_each_step_pays(block: int | None) -> None:
    weight, moments = layer(64, 256, 0)
    grid = BlockGrid(4, block)

    def error(config: RoundingConfig) -> float:
        return float(weighted_error(weight, rounded(weight, moments, grid, config), moments).sum())

    plain = float(weighted_error(weight, nearest(weight, grid), moments).sum())
    gptq, more = error(RoundingConfig(sweeps=0)), error(RoundingConfig(sweeps=2))
    assert gptq < 0.8 * plain and more < gptq


def textbook(weight: Tensor, moments: Tensor, scales: Tensor, damping: float) -> Tensor:
    """GPTQ as its paper's algorithm reads, column by column with a new inverse each time."""
    columns = weight.shape[1]
    w = weight.double().clone()
    h = moments.double() + damping * moments.double().diagonal().mean() * torch.eye(columns)
    q = torch.zeros_like(w)
    for at in range(columns):
        inverse = torch.linalg.inv(h[at:, at:])
        scale = scales[:, at // (columns // scales.shape[1])].double()
        q[:, at] = (w[:, at] / scale).round().clamp(-8, 7) * scale
        w[:, at:] -= ((w[:, at] - q[:, at]) / inverse[0, 0]).unsqueeze(1) * inverse[0]
    return q


def test_gptq_is_the_papers() -> None:
    weight, moments = layer(5, 160, 1)
    # Scales of the paper's own choice are the nearest's here, and no row is so bad that it falls back.
    found = rounded(weight, moments, BlockGrid(4, 32), RoundingConfig(by_moment=False, sweeps=0))
    oracle = textbook(weight, moments, found.scales, 0.01)
    assert (found.dequantized() - oracle).abs().gt(1e-4).float().mean() < 0.01
    lost = oracle.float() - weight
    expected = ((lost @ moments) * lost).sum(1)
    assert torch.allclose(weighted_error(weight, found, moments), expected, rtol=0.02)


def test_near_the_best_of_all_codes() -> None:
    """On rows that are small enough, every assignment of codes is tried."""
    columns, ratios = 5, []
    for seed in range(6):
        weight, moments = layer(1, columns, seed)
        found = rounded(weight, moments, BlockGrid(2, None), RoundingConfig(damping=1e-6, sweeps=3))
        every = torch.tensor(list(itertools.product(range(-2, 2), repeat=columns))).float()
        lost = every * found.scales[0, 0] - weight
        best = ((lost @ moments) * lost).sum(1).min()
        ratios.append(float(weighted_error(weight, found, moments)[0] / best))
    assert min(ratios) == pytest.approx(1, rel=1e-3) and sum(ratios) / len(ratios) < 1.5


def test_inputs_that_never_occur_and_sparse_grids() -> None:
    weight, moments = layer(4, 64, 2)
    moments[:, 7] = moments[7] = 0
    found = rounded(weight, moments, BlockGrid())
    assert torch.isfinite(found.dequantized()).all()
    silent = rounded(weight, torch.zeros(64, 64), BlockGrid(), RoundingConfig(sweeps=1))
    assert torch.equal(silent.codes, nearest(weight, BlockGrid()).codes)
    sparse = BlockGrid(4, 32, "threshold", 0.5)
    assert torch.equal(rounded(weight, moments, sparse).codes, nearest(weight, sparse).codes)


def test_weights_below_the_threshold_stay_zero_and_the_others_make_good_for_them() -> None:
    weight, moments = layer(16, 64, 4)
    for bits, block in ((4, 32), (4, None), (8, None)):
        grid = BlockGrid(bits, block, "uniform", 0.5)
        plain, found = nearest(weight, grid), rounded(weight, moments, grid)
        assert not found.codes[plain.codes == 0].any() and int((plain.codes == 0).sum()) >= 16 * 64 // 2
        assert int(found.codes.abs().max()) <= 2 ** (bits - 1) - 1
        errors = [float(weighted_error(weight, each, moments).sum()) for each in (found, plain)]
        assert errors[0] < 0.5 * errors[1]


def test_moments_and_settings_that_cannot_work() -> None:
    weight, moments = layer(4, 64, 3)
    for wrong in (moments[:32, :32], moments * torch.nan):
        with pytest.raises(InputError, match="second moments"):
            rounded(weight, wrong, BlockGrid())
    with pytest.raises(UsageError, match="damping"):
        RoundingConfig(damping=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_on_scales_that_stay_no_row_is_worse_and_zeros_stay(bits: int, seed: int) -> None:
    weight, moments = layer(6, 32, seed, tokens=24)
    most = 2 ** (bits - 1) - 1
    scales = weight.abs().amax(1, keepdim=True) / most
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    codes = ((weight / scales).round() * ~zeros).to(torch.int8)
    found = recoded(weight, codes, scales, moments, (-most, most), zeros)
    assert found.abs().max() <= most and not found[zeros].any()

    def error(codes: Tensor) -> Tensor:
        lost = (codes * scales - weight).double()
        return ((lost @ moments.double()) * lost).sum(1)

    assert (error(found) <= error(codes) * (1 + 1e-5)).all()


def test_on_scales_that_stay_it_pays() -> None:
    weight, moments = layer(64, 256, 0)
    scales = weight.abs().amax(1, keepdim=True) / 7
    codes = (weight / scales).round().to(torch.int8)
    found = recoded(weight, codes, scales, moments, (-7, 7), torch.zeros_like(codes, dtype=torch.bool))
    lost = [((c * scales - weight) @ moments * (c * scales - weight)).sum() for c in (codes, found)]
    assert lost[1] < 0.8 * lost[0]


@pytest.mark.parametrize("sweeps", [0, 1])
def test_a_row_that_gptq_makes_worse_keeps_the_nearest_codes(sweeps: int) -> None:
    """With few columns there is little to make good with: what GPTQ moves often costs more than it saves."""
    kept = 0
    for seed in range(40):
        weight, moments = layer(6, 4, seed)
        plain = nearest(weight, BlockGrid(4, None))
        found = rounded(weight, moments, BlockGrid(4, None), RoundingConfig(sweeps=sweeps))
        before, after = (weighted_error(weight, each, moments) for each in (plain, found))
        assert (after <= before).all()
        kept += int(((found.codes == plain.codes).all(1) & (found.scales == plain.scales).all(1)).sum())
    assert kept > 0


def test_on_scales_that_stay_a_row_that_becomes_worse_keeps_its_codes() -> None:
    zeros, worse = torch.zeros(6, 4, dtype=torch.bool), 0
    for seed in range(200):
        weight, moments = layer(6, 4, seed)
        scales = weight.abs().amax(1, keepdim=True) / 7
        codes = (weight / scales).round().to(torch.int8)
        found = recoded(weight, codes, scales, moments, (-7, 7), zeros)

        def error(codes: Tensor, scales: Tensor = scales, w: Tensor = weight, h: Tensor = moments) -> Tensor:
            lost = (codes * scales - w).double()
            return ((lost @ h.double()) * lost).sum(1)

        assert (error(found) <= error(codes) * (1 + 1e-5)).all()
        alone = (textbook(weight, moments, scales, 0.01) / scales).round()
        worse += int((error(alone) > error(codes)).sum())
    assert worse > 0  # the guard had something to guard
