"""Learned clips against a plain loop and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paredown.pipeline.compress.squantize.clip import CLIP_BITS, Clip, prescribed
from paredown.targets.errors import InputError, UsageError


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at(bits: int, step: float, top: float | None = None) -> Clip:
    clip = Clip(bits, top)
    with torch.no_grad():
        clip.log_step.fill_(torch.tensor(step).log())
    return clip


@pytest.mark.parametrize("bits", CLIP_BITS)
def test_it_is_relu_clip_and_rounding(bits: int):
    x, clip = values(4, 3, 5, 5), at(bits, 1.5 / (2**bits - 1))
    step = float(clip.step)
    expected = [min(max(round(v / step), 0), 2**bits - 1) * step for v in x.flatten().tolist()]
    apart = (clip(x).flatten() - torch.tensor(expected)).abs() / step
    assert apart.max() < 1.001 and (apart > 1e-3).sum() <= 1  # float32 and float64 may part at a tie
    assert len(clip(x).unique()) <= 2**bits


def test_the_gradient_passes_inside_only():
    x = torch.tensor([[-0.5, 0.2, 0.9, 1.49, 1.6, 7.0]]).requires_grad_()
    at(4, 0.1)(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0, 0]]


def test_the_step_learns_what_lsq_says():
    """LSQ's eq. 3: round(v/s) - v/s inside, the number of levels above, 0 below; over sqrt(n levels)."""
    x, clip = values(8, 30), at(2, 0.4)
    clip(x).sum().backward()
    scaled = (x[:1] / 0.4).flatten()
    slopes = [0.0 if v <= 0 else 3.0 if v >= 3 else round(v) - v for v in scaled.tolist()]
    expected = sum(slopes) * 8 * 0.4 / (30 * 3) ** 0.5  # times the step: the parameter is its logarithm
    assert float(clip.log_step.grad) == pytest.approx(expected, rel=1e-4)


def test_training_finds_a_step_for_uniform_values():
    """Uniform values in 0..1 on 3 levels above zero lose least with a clip a little below 1."""
    x, clip = values(64, 100).abs().remainder(1.0), at(2, 1.0)
    optimizer = torch.optim.SGD(clip.parameters(), 0.05)
    first = float((clip(x) - x).square().mean())
    for _ in range(300):
        optimizer.zero_grad()
        (clip(x) - x).square().sum().backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
    last = float((clip(x) - x).square().mean())
    best = min(float((at(2, s / 100)(x) - x).square().mean()) for s in range(20, 60))
    assert last < first / 2 and last < 1.15 * best


def test_it_starts_where_least_is_lost():
    x, clip = values(1000).relu(), Clip(4)
    clip.start(x, "a")
    found = float((clip(x[None]) - x).square().mean())
    tried = [
        float((at(4, float(x.max()) * part / 20 / 15)(x[None]) - x).square().mean()) for part in range(1, 21)
    ]
    assert found == pytest.approx(min(tried), rel=1e-5)


def test_relu6_never_goes_beyond_six():
    assert float(at(4, 1.0, top=6.0)(torch.tensor([[50.0]]))) == pytest.approx(6.0)


@pytest.mark.parametrize("x, words", [([0.0, 0.0], "never fires"), ([1.0, float("nan")], "is not finite")])
def test_what_cannot_be_clipped_is_named(x: list[float], words: str):
    with pytest.raises(InputError, match=f"activation layer3 {words}"):
        Clip(4).start(torch.tensor(x), "layer3")


def test_other_bits_are_refused():
    with pytest.raises(UsageError, match="activation_bits = 9"):
        Clip(9)


def signed(bits: int, step: float, below: int, **limits: float) -> Clip:
    clip = Clip(bits, signed=True, **limits)
    with torch.no_grad():
        clip.log_step.fill_(torch.tensor(step).log())
        clip.offset.fill_(below)
    return clip


@pytest.mark.parametrize("bits", CLIP_BITS)
@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_signed_it_is_clip_and_rounding_round_zero(bits: int, part: float):
    below = round((2**bits - 1) * part)
    x, clip = values(4, 3, 5, 5), signed(bits, 2.5 / (2**bits - 1), below)
    step = float(clip.step)
    expected = [min(max(round(v / step), -below), 2**bits - 1 - below) * step for v in x.flatten().tolist()]
    apart = (clip(x).flatten() - torch.tensor(expected)).abs() / step
    assert apart.max() < 1.001 and (apart > 1e-3).sum() <= 1
    assert float(clip(torch.zeros(1, 1))) == 0  # padding stays what it is


def test_signed_gradients_pass_inside_and_the_step_learns_from_both_ends():
    x = torch.tensor([[-0.5, -0.19, 0.02, 0.9, 1.4, 7.0]]).requires_grad_()
    clip = signed(4, 0.1, 2)
    clip(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0, 0]]
    slopes = [-2, -2 + 1.9, -0.2, 0, 13, 13]
    assert float(clip.log_step.grad) == pytest.approx(sum(slopes) * 0.1 / (6 * 15) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_signed_it_starts_with_an_offset_that_loses_little(bits: int):
    x = nn.functional.silu(2 * values(4000))
    clip, relu = Clip(bits, signed=True), Clip(bits)
    clip.start(x, "a")
    relu.start(x, "a")
    found, plain = (float((each(x[None]) - x).square().mean()) for each in (clip, relu))
    assert found <= plain and (bits == 2 or clip.below > 0)
    most = 2**bits - 1
    tried = [
        float((signed(bits, float(x.max() - x.min()) * part / 40 / most, below)(x[None]) - x).square().mean())
        for part in range(1, 41) for below in range(0, most + 1, max(1, most // 15))
    ]  # fmt: skip
    assert found < 1.1 * min(tried)


def test_signed_limits_keep_the_levels_within():
    clip = signed(4, 1.0, 5, top=0.9, bottom=-0.4)
    x = torch.tensor([[-9.0, 9.0]])
    assert clip(x).tolist() == [[pytest.approx(-0.4), pytest.approx(0.8)]]


def test_values_without_a_negative_one_start_as_behind_a_relu():
    x, clip, other = values(1000).relu(), Clip(4, signed=True), Clip(4)
    clip.start(x, "a")
    other.start(x, "a")
    assert clip.below == 0 and float(clip.step) == float(other.step)


def test_a_kernel_s_own_scale_rounds_and_passes_gradients():
    x = torch.tensor([-2.0, -0.3, 0.001, 0.5, 3.0]).requires_grad_()
    made = prescribed(x, 1 / 128, 0)
    made.sum().backward()
    assert made.tolist() == [-1.0, -38 / 128, 0.0, 0.5, 127 / 128] and x.grad.tolist() == [1] * 5
