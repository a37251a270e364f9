"""The grid against plain loops over single numbers, and what must always hold."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paredown.pipeline.compress.grids.grid import (
    BITS,
    GRIDS,
    GridConfig,
    check_sigma,
    encode,
    fake_quantize,
    sigma_for,
    threshold_at,
)
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit

SIGMAS = st.floats(-3, 6)
WEIGHTS = arrays.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-4, 4, width=32, allow_subnormal=False).filter(
        lambda x: x == 0 or abs(x) > 1e-4
    ),
)  # fmt: skip
GRID = st.builds(
    GridConfig, bits=st.sampled_from(BITS), grid=st.sampled_from(("threshold", "uniform", "ternary"))
)


@given(WEIGHTS, SIGMAS, st.sampled_from(BITS), st.sampled_from(("threshold", "uniform")))
def test_codes_stay_within_seven_bits_where_they_must(weight, sigma, bits, grid):
    config = GridConfig(bits, grid, top=63)
    codes, step = encode(torch.from_numpy(weight), sigma, config)
    assert float(codes.abs().max()) <= 63 and len(codes.unique()) <= config.most_codes
    if bits <= 7 and grid == "uniform":  # which had them for nothing
        wide, same = encode(torch.from_numpy(weight), sigma, GridConfig(bits, grid))
        assert torch.equal(codes, wide) and torch.equal(step, same)


def round_half_even(x: float) -> int:
    return int(np.rint(x))


def slow_threshold_grid(weights: list[float], sigma: float, bits: int) -> list[float]:
    """METHODS.md section 2, one number at a time, levels snapped to int8."""
    sizes = [abs(w) for w in weights]
    top = max(sizes)
    t = min(max(statistics.fmean(sizes) + sigma * statistics.pstdev(sizes), 0.0), top)
    n = 2 ** (bits - 1) - 1
    values = []
    for w in weights:
        if abs(w) < t or top == 0:
            values.append(0.0)
            continue
        q = round_half_even(n * (abs(w) - t) / (top - t)) if top > t else 0
        level = q * (top - t) / n + t
        values.append(math.copysign(round_half_even(level / (top / 127)) * top / 127, w) if w else 0.0)
    return values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [-0.5, 0.0, 0.3, 1.0])
def test_the_threshold_grid_is_the_formula(bits: int, sigma: float):
    weights = np.random.default_rng(bits).normal(0, 0.1, 400).astype(np.float32)
    found = fake_quantize(torch.from_numpy(weights), sigma, GridConfig(bits)).numpy()
    expected = np.array(slow_threshold_grid(weights.astype(float).tolist(), sigma, bits))
    step = np.abs(weights).max() / 127
    # float32 against float64 may round a level's tie to the neighbouring code, no further
    apart = np.abs(found - expected) / step
    assert apart.max() < 1.001 and (apart > 0.01).mean() < 0.02
    assert ((found == 0) == (expected == 0)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_uniform_grid_is_the_nearest_multiple(bits: int):
    weights = np.random.default_rng(bits).normal(0, 0.1, 400).astype(np.float32)
    codes, step = encode(torch.from_numpy(weights), 0.2, GridConfig(bits, "uniform"))
    t = np.abs(weights).mean() + 0.2 * np.abs(weights).std()
    n = 2 ** (bits - 1) - 1
    assert float(step) == pytest.approx(np.abs(weights).max() / n)
    for w, code in zip(weights, codes.tolist(), strict=True):
        assert code == (0 if abs(w) < t else math.copysign(max(1, round_half_even(abs(w) / float(step))), w))


def test_the_ternary_step_is_the_best_one():
    weights = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 300).astype(np.float32))
    codes, step = encode(weights, 0.0, GridConfig(2, "ternary"))
    assert set(codes.tolist()) == {-1.0, 0.0, 1.0}
    errors = [float((weights - codes * s).square().sum()) for s in (step, step * 1.01, step * 0.99)]
    assert errors[0] == min(errors)


@given(weight=WEIGHTS, sigma=SIGMAS, config=GRID)
def test_codes_are_few_int8_and_keep_the_sign(weight: np.ndarray, sigma: float, config: GridConfig):
    w = torch.from_numpy(weight)
    codes, step = encode(w, sigma, config)
    assert (codes == codes.round()).all() and codes.abs().max() <= 127 and step > 0
    assert len(codes.unique()) <= config.most_codes
    assert (codes * w >= 0).all()
    survives = (w.abs() >= threshold_at(w, sigma)) & (w != 0)
    assert torch.equal(codes != 0, survives) or threshold_at(w, sigma) == 0
    assert bool((codes != 0).any()) == bool((w != 0).any())  # a layer is never all zero


@given(weight=WEIGHTS, sparsity=st.floats(0, 0.99), config=GRID)
@settings(max_examples=200)
def test_a_wanted_sparsity_is_met_to_the_weight(weight: np.ndarray, sparsity: float, config: GridConfig):
    w = torch.from_numpy(weight)
    sizes = sorted(abs(float(x)) for x in weight)
    wanted = min(int(sparsity * len(sizes) + 1e-9), len(sizes) - 1)
    if len(set(sizes)) < len(sizes) or sizes[0] == 0 or min(np.diff([0, *sizes])) < 1e-4:
        return  # ties cannot be told apart
    codes, _ = encode(w, sigma_for(w, sparsity), config)
    assert int((codes == 0).sum()) == wanted


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_per_channel_is_the_layers_grid_of_channels_of_one_size(grid: str):
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    rows /= rows.abs().amax(1, keepdim=True)
    sizes = torch.tensor([1e-4, 0.03, 1.0, 2.0, 50.0, 1e3]).unsqueeze(1)
    together, step = encode(rows, 0.2, GridConfig(4, grid))
    codes, steps = encode(rows * sizes, 0.2, GridConfig(4, grid, per="channel"))
    assert steps.shape == (6, 1) and torch.allclose(steps, step * sizes)
    assert float((codes != together).float().mean()) < 0.02  # but for ties of float32
    sigma = sigma_for(rows * sizes, 0.5, "channel")
    assert int((encode(rows * sizes, sigma, GridConfig(4, grid, per="channel"))[0] == 0).sum()) == 120


def test_a_channel_of_zeros_stays_zero_beside_others():
    weight = torch.stack([torch.zeros(9), torch.arange(1.0, 10.0)])
    codes, steps = encode(weight, -30.0, GridConfig(4, "uniform", per="channel"))
    assert not codes[0].any() and codes[1].all() and torch.allclose(steps, torch.tensor(9 / 7))


@pytest.mark.parametrize("grid", GRIDS)
def test_noise_of_dead_channels_fills_no_grid(grid: str):
    """Weight decay leaves some channels at 1e-18; a share of zeros counts them, and none of them is lived."""
    alive = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    weight = torch.cat([alive, 1e-18 * alive])
    config = GridConfig(4, grid, per="channel")
    for sparsity in (0.25, 0.5, 0.75):
        codes, steps = encode(weight, sigma_for(weight, sparsity, "channel"), config)
        assert not codes[6:].any() and torch.isfinite(codes * steps).all()
    assert int((codes == 0).sum()) == 360
    plain, own = encode(alive, sigma_for(alive, 0.5, "channel"), config)
    assert torch.equal(codes[:6], plain) and torch.equal(steps[:6], own)


def test_sigma_of_a_gaussian_gives_the_published_sparsities():
    weights = torch.from_numpy(np.random.default_rng(1).normal(0, 1, 400_000).astype(np.float32))
    for sigma, zeros in ((-0.5, 0.380), (0.0, 0.575), (0.1, 0.609), (0.5, 0.728), (1.0, 0.839)):
        codes, _ = encode(weights, sigma, GridConfig(4))
        assert float((codes == 0).float().mean()) == pytest.approx(zeros, abs=0.003)


@pytest.mark.parametrize("order", ["sparsify-first", "quantize-first"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_go_straight_through_or_only_to_survivors(order, masked):
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    config = GridConfig(4, order=order, masked_gradient=masked)
    y = fake_quantize(weight, 0.3, config)
    direction = torch.arange(200.0)
    (y * direction).sum().backward()
    assert torch.equal(weight.grad, direction * (y != 0) if masked else direction)


def test_the_reverse_order_compares_what_was_quantized():
    weight = torch.from_numpy(np.random.default_rng(2).normal(0, 1, 1000).astype(np.float32))
    first, step = encode(weight, -30.0, GridConfig(4))  # no threshold: the plain grid
    codes, same = encode(weight, 0.4, GridConfig(4, order="quantize-first"))
    values = (first * step).abs()
    t = values.mean() + 0.4 * values.std(correction=0)
    assert torch.equal(codes, first * (values >= t)) and same == step


@pytest.mark.parametrize(
    "change", [{"bits": 1}, {"bits": 9}, {"grid": "log"}, {"order": "both"}, {"per": "row"}]
)
def test_what_does_not_exist_is_refused(change):
    with pytest.raises(UsageError, match="one of"):
        GridConfig(**change)


@pytest.mark.parametrize("sigma", [math.nan, math.inf, 31.0, -40.0])
def test_a_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(UsageError, match="sigma"):
        check_sigma(sigma)


def test_a_layer_of_zeros_stays_a_layer_of_zeros():
    codes, step = encode(torch.zeros(3, 3), 0.0, GridConfig(4))
    assert not codes.any() and step == 1


@pytest.mark.parametrize("grid", GRIDS)
def test_nan_is_not_taken_for_a_layer_of_zeros(grid: str):
    weight = torch.tensor([0.5, math.nan, -1.0, 0.1])
    assert bool(fake_quantize(weight, 0.1, GridConfig(4, grid)).isnan().any())
    codes, step = encode(torch.zeros(4), 0.1, GridConfig(4, grid))
    assert not codes.any() and step == 1
