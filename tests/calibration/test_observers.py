"""Observers and quantization parameters, against sorting and brute-force searches on the raw values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lines import lines_of

from paredown.calibration.observers import (
    MSE,
    SMALLEST_SCALE,
    SMALLEST_STEP,
    MinMax,
    Percentile,
    activation_qparams,
    make_observer,
    weight_scales,
)
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

NAMES = ("minmax", "percentile", "mse")
floats = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=floats)


def fake_quantize(values: np.ndarray, lo: float, hi: float) -> np.ndarray:
    scale, zero_point = activation_qparams(lo, hi)
    codes = np.clip(np.rint(values.astype(np.float64) / scale) + zero_point, -128, 127)
    return (codes - zero_point) * scale


def squared_error(values: np.ndarray, lo: float, hi: float) -> float:
    return float(np.mean((fake_quantize(values, lo, hi) - values) ** 2))


def observed(observer, *samples):
    for sample in samples:
        observer.update(sample)
    return observer.range()


@settings(deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4))
def test_minmax_is_the_extremes_with_zero(samples):
    everything = np.concatenate([sample.ravel() for sample in samples] + [np.zeros(1, np.float32)])
    assert observed(MinMax(), *samples) == (everything.min(), everything.max())


@settings(deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4), st.sampled_from(NAMES))
def test_ranges_hold_zero_and_stay_within_the_extremes(samples, name):
    lo, hi = observed(make_observer(name), *samples)
    low, high = observed(MinMax(), *samples)
    assert low <= lo <= 0 <= hi <= high
    assert (lo, hi) != (0, 0) or (low, high) == (0, 0)


@settings(deadline=None, max_examples=30)
@given(st.permutations(list(range(5))), st.sampled_from(NAMES))
def test_the_order_of_the_samples_does_not_matter(order, name):
    rng = np.random.default_rng(1)
    samples = [rng.standard_normal(3000).astype(np.float32) * 7.0**k for k in range(5)]
    samples = [np.maximum(s, 0) if k % 2 else s for k, s in enumerate(samples)]
    plain = observed(make_observer(name), *samples)
    assert observed(make_observer(name), *[samples[k] for k in order]) == plain


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_percentile_is_that_of_the_sorted_values_to_one_bin(percent, scale):
    rng = np.random.default_rng(2)
    values = (rng.standard_t(3, 200_000) * scale).astype(np.float32)
    lo, hi = observed(Percentile(percent), *np.array_split(values, 7))
    bin_width = np.abs(values).max() / 2048
    tail = len(values) * (1 - percent / 100)
    below, above = np.sort(values).astype(np.float64), np.sort(-values).astype(np.float64)
    for got, ends in ((lo, below), (-hi, above)):
        # outwards: never cutting more than asked; the two ranks are for the rounding of ``tail``
        assert ends[int(tail - 1e-6)] - bin_width <= got <= ends[int(tail + 1e-6)]


def test_percentile_leaves_out_just_the_share_that_was_asked():
    lo, hi = observed(Percentile(75), np.array([1, 2, 3, 4], np.float32))
    assert lo == 0 and 3 <= hi <= 3 + 4 / 2048


def test_percentile_drops_the_outlier_that_minmax_keeps():
    values = np.random.default_rng(3).random(100_000).astype(np.float32)
    values[5] = 1000
    assert observed(MinMax(), values)[1] == 1000
    assert observed(Percentile(), values)[1] < 1.5


def test_percentile_of_a_very_sparse_activation_is_not_nothing():
    values = np.zeros(1_000_000, np.float32)
    values[:3] = 0.001, 2.0, 4.0
    assert observed(Percentile(), values) == (0.0, 4.0)
    assert observed(Percentile(), -values) == (-4.0, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.standard_normal(4_000),
        lambda rng: np.maximum(rng.standard_normal(4_000), 0),
        lambda rng: rng.laplace(size=4_000),
        lambda rng: np.where((x := rng.standard_normal(4_000)) > 0, x, 0.1 * x),
        lambda rng: np.append(rng.standard_normal(4_000), [500.0]),
        lambda rng: np.append(np.maximum(rng.standard_normal(4_000), -0.5), [60.0, 3000.0]),
        lambda rng: -rng.exponential(size=4_000) - 3,
        lambda rng: rng.random(4_000),
    ],
    ids=["normal", "relu", "laplace", "leaky", "outlier", "one-sided outliers", "negative", "uniform"],
)
def test_mse_is_near_the_best_of_a_brute_force_search(make):
    values = make(np.random.default_rng(4)).astype(np.float32)
    low, high = observed(MinMax(), values)
    got = squared_error(values, *observed(MSE(), *np.array_split(values, 3)))
    # the oracle: both ends on a grid of their own, on the raw values
    lows, highs = (
        np.geomspace(1, 1 / 1000, 40 if low and high else 400) if end else [1] for end in (low, high)
    )
    best = min(squared_error(values, low * a, high * b) for a in lows for b in highs)
    assert got <= squared_error(values, low, high) * 1.001
    assert got <= best * 1.05


@settings(deadline=None, max_examples=50)
@given(arrays)
def test_mse_is_never_worse_than_the_extremes_by_more_than_a_bin(values):
    low, high = observed(MinMax(), values)
    slack = max(-low, high) / 2048
    got = squared_error(values, *observed(MSE(), values)) ** 0.5
    assert got <= squared_error(values, low, high) ** 0.5 + 2 * slack


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_values_that_are_not_finite(name, bad, word):
    values = np.ones(100, np.float32)
    values[50] = bad
    with pytest.raises(InputError, match=word):
        make_observer(name).update(values)


@pytest.mark.parametrize("name", NAMES)
def test_odd_inputs(name):
    with pytest.raises(InputError, match="no values"):
        make_observer(name).range()
    with pytest.raises(InputError, match="no values"):
        observed(make_observer(name), np.zeros((0, 3), np.float32))
    assert observed(make_observer(name), np.zeros(10, np.float32)) == (0.0, 0.0)
    lo, hi = observed(make_observer(name), np.float16([[1, 2], [3, 4]]))
    assert lo == 0 and 3.5 < hi <= 4
    lo, hi = observed(make_observer(name), np.array([5e-324, -1e-310, 1e-300]))  # subnormal
    assert lo <= 0 <= hi


def test_unknown_names():
    with pytest.raises(UsageError, match="minmax, percentile, mse"):
        make_observer("median")
    with pytest.raises(UsageError, match="50"):
        Percentile(0.01)


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse"])
def test_observers_work_on_whole_arrays(name):
    values = np.random.default_rng(5).standard_normal(200_000).astype(np.float32)
    observer = make_observer(name)
    observer.update(values)
    assert lines_of(lambda: observer.update(values)) < 1000


@settings(deadline=None)
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_qparams_represent_zero_exactly_and_the_ends_nearly(a, b):
    lo, hi = min(a, b), max(a, b)
    scale, zero_point = activation_qparams(lo, hi)
    assert -128 <= zero_point <= 127 and isinstance(zero_point, int)
    assert scale >= SMALLEST_STEP and scale == float(np.float32(scale))
    ends = np.array([min(lo, 0), 0.0, max(hi, 0)])
    got = fake_quantize(ends, lo, hi)
    assert got[1] == 0
    assert (np.abs(got - ends) <= scale * 0.5001 + 1e-4 * scale).all()


@pytest.mark.parametrize(
    ("lo", "hi", "want"),
    [
        (0, 255, (1.0, -128)),
        (-128, 127, (1.0, 0)),
        (-255, 0, (1.0, 127)),
        (51, 255, (1.0, -128)),  # widened to zero
        (0, 0, (SMALLEST_SCALE, -128)),
        (0, 2.55e-9, (float(np.float32(1e-11)), -128)),
    ],
)
def test_qparams_by_hand(lo, hi, want):
    assert activation_qparams(lo, hi) == want


@settings(deadline=None)
@given(st.floats(-1000, 0), st.floats(0, 1000))
def test_qparams_are_torchs(lo, hi):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization.observer import MinMaxObserver

    observer = MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_affine, quant_min=-128, quant_max=127,
        eps=SMALLEST_STEP if np.float32(lo) < np.float32(hi) else SMALLEST_SCALE,
    )  # fmt: skip
    observer(torch.tensor([lo, hi], dtype=torch.float32))
    scale, zero_point = observer.calculate_qparams()
    got = activation_qparams(float(np.float32(lo)), float(np.float32(hi)))
    assert got[0] == pytest.approx(float(scale), rel=1e-6, abs=0)
    assert abs(got[1] - int(zero_point)) <= 1  # torch computes in float32: ties may fall to the other side


@pytest.mark.parametrize("ends", [(float("nan"), 1), (0, float("inf")), (2, 1), (-1.7e308, 1.7e308)])
def test_bad_ranges(ends):
    with pytest.raises(InputError, match="range"):
        activation_qparams(*ends)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 3)), elements=floats
    )
)
def test_weight_scales_represent_the_largest_weight(w):
    scales = weight_scales(w)
    assert scales.shape == (w.shape[0],) and scales.dtype == np.float32
    for channel, scale in zip(w, scales, strict=True):
        largest = np.abs(channel).max()
        assert scale == (1 if largest == 0 else max(np.float32(np.float64(largest) / 127), SMALLEST_SCALE))
        assert np.abs(np.rint(channel / scale)).max() <= 127


def weight_error(w: np.ndarray, scales: np.ndarray) -> np.ndarray:
    s = scales.astype(np.float64).reshape(-1, 1)
    flat = w.reshape(w.shape[0], -1).astype(np.float64)
    return ((np.clip(np.rint(flat / s), -127, 127) * s - flat) ** 2).mean(axis=1)


def test_weight_scales_mse_is_never_worse_and_near_the_best():
    rng = np.random.default_rng(6)
    w = rng.standard_t(3, (6, 64, 3, 3)).astype(np.float32)
    w[3] = 0
    w[4] = np.where(
        rng.random((64, 3, 3)) < 0.5, 0.01, -0.01
    )  # the best is not the largest by rounding alone
    plain, best = weight_scales(w), weight_scales(w, "mse")
    assert best[3] == 1 and best.dtype == np.float32
    assert (weight_error(w, best) <= weight_error(w, plain)).all()
    oracle = np.min([weight_error(w, plain * f) for f in np.linspace(0.2, 1, 2000)], axis=0)
    assert (weight_error(w, best) <= oracle * 1.1 + 1e-12).all()


def test_weight_scales_mse_clips_an_outlier_that_costs_more_than_it_is_worth():
    w = np.random.default_rng(7).standard_normal((1, 100_000)).astype(np.float32)
    w[0, 0] = 60
    assert weight_error(w, weight_scales(w, "mse"))[0] < 0.8 * weight_error(w, weight_scales(w))[0]


def test_a_channel_of_almost_nothing_does_not_get_a_tiny_scale():
    w = np.array([[0.0, 0.0], [1e-30, -1e-38], [1.0, 0.5]], np.float32)
    assert weight_scales(w).tolist() == [1.0, SMALLEST_SCALE, float(np.float32(1 / 127))]
    # so that a bias of 1 with an input scale of 1/255 still fits its int32
    assert 1 / (SMALLEST_SCALE / 255) < 2**31


def test_bad_weights():
    w = np.ones((3, 2), np.float32)
    w[1, 1] = np.nan
    with pytest.raises(InputError, match="channel 1"):
        weight_scales(w)
    w[1, 1] = np.inf
    with pytest.raises(InputError, match="channel 1"):
        weight_scales(w, "mse")
    for empty in (np.float32(1), np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)):
        with pytest.raises(InputError, match="shape"):
            weight_scales(empty)
    with pytest.raises(UsageError, match="minmax, mse"):
        weight_scales(w, "median")  # type: ignore[arg-type]
