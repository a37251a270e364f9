"""Accumulators are exact whether sums fit float32 or not, and no kernel's trick can change that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.weighted import layer
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d
from paredown.pipeline.graph.operations.weighted.layer import EXACT, largest_sum
from paredown.pipeline.graph.operations.weighted.linear import Linear
from paredown.pipeline.lower.integer import Affine, IntegerNode

pytestmark = pytest.mark.unit


def nodes(weight: np.ndarray, bias: np.ndarray, zero: int) -> tuple[IntegerNode, IntegerNode]:
    """A linear layer whose codes are nearly its accumulators, and what it reads."""
    feed = IntegerNode("x", "input", (), (1, weight.shape[1]), Affine(1.0, zero))
    scales = np.full(len(weight), 2.0**-17, np.float32)
    y = IntegerNode(
        "y", "linear", ("x",), (1, len(weight)), Affine(1.0, 0), weight=weight, weight_scale=scales, bias=bias
    )
    return feed, y


@pytest.mark.parametrize("inputs", [100, 500, 2000])
@pytest.mark.parametrize("zero", [-128, 3])
def test_sums_are_those_of_whole_numbers(inputs, zero, monkeypatch):
    random = np.random.default_rng(inputs)
    weight = random.integers(-127, 128, (40, inputs)).astype(np.int8)
    weight[0], weight[1] = 127, -127
    bias = random.integers(-1000, 1000, 40).astype(np.int32)
    x = random.integers(-128, 128, (3, inputs)).astype(np.int8)
    x[0], x[1] = 127, -128
    feed, node = nodes(weight, bias, zero)
    seen = []
    known = Linear.accumulated

    def watched(self: Linear, node: IntegerNode, *parts: Tensor) -> Tensor:
        seen.append((parts[0].dtype, known(self, node, *parts)))
        return seen[-1][1]

    monkeypatch.setattr(Linear, "accumulated", watched)
    Linear().codes(node, [feed], [x])
    exact = (x.astype(np.int64) - zero) @ weight.astype(np.int64).T + bias
    (dtype, made), *more = seen
    assert not more and np.array_equal(made.numpy().astype(np.int64), exact)
    most = int(np.abs(exact).max())
    assert most <= largest_sum(weight, bias, zero)
    assert dtype is (torch.float32 if inputs < 2000 else torch.float64)


def test_the_bound_is_reached_and_no_wider():
    weight = np.full((1, 1, 2, 2), -127, np.int8)
    assert largest_sum(weight, np.array([-5], np.int32), -128) == 4 * 127 * 255 + 5
    assert largest_sum(weight, np.array([7], np.int32), 0) == 4 * 127 * 128 + 7
    assert float(np.float32(EXACT)) == EXACT and float(np.float32(EXACT + 1)) != EXACT + 1


def test_a_kernel_that_transforms_is_not_believed(monkeypatch):
    """As Winograd's would: a hair off whole numbers; float64 decides."""
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    feed = IntegerNode("x", "input", (), (1, 3, 8, 8), Affine(1.0, 0))
    attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "groups": 1}
    node = IntegerNode(
        "y", "conv2d", ("x",), (1, 4, 8, 8), Affine(1.0, 0), attrs=attrs, weight=weight,
        weight_scale=np.full(4, 2.0**-9, np.float32), bias=np.zeros(4, np.int32),
    )  # fmt: skip
    x = random.integers(-128, 128, (1, 3, 8, 8)).astype(np.int8)
    right = Conv2d().codes(node, [feed], [x])
    known = Conv2d.accumulated

    def off(self: Conv2d, node: IntegerNode, *parts: Tensor) -> Tensor:
        made = known(self, node, *parts)
        return made if made.dtype is torch.float64 else made * 0.7 + 0.25

    monkeypatch.setattr(Conv2d, "accumulated", off)
    assert np.array_equal(Conv2d().codes(node, [feed], [x]), right)
    monkeypatch.setattr(layer, "EXACT", 0)
    monkeypatch.setattr(Conv2d, "accumulated", known)
    assert np.array_equal(Conv2d().codes(node, [feed], [x]), right)


def convolution(weight: np.ndarray, bias: np.ndarray, side: int) -> IntegerNode:
    """A convolution without padding whose requantization leaves no code clamped to the ends."""
    out, size = len(weight), weight.shape[2]
    shape = (1, out, side - size + 1, side - size + 1)
    return IntegerNode(
        "conv", "conv2d", ("x",), shape, Affine(2.0**18, 0), weight=weight, bias=bias,
        weight_scale=np.ones(out, np.float32), attrs={"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1},
    )  # fmt: skip


def image(zero: int, channels: int, side: int) -> IntegerNode:
    return IntegerNode("x", "input", (), (1, channels, side, side), Affine(1.0, zero))


@given(
    st.integers(0, 2**32 - 1), st.integers(-128, 127), st.sampled_from([1, 3, 57, 58, 70]),
    st.sampled_from([1, 3]), st.integers(1, 3), st.sampled_from([1, 17, 33]), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_layer_sums_exactly(seed, zero, channels, size, out, batch, extreme):
    rng = np.random.default_rng(seed)
    ends = (
        (np.array([-127, 127]), np.array([-128, 127]))
        if extreme
        else (np.arange(-127, 128), np.arange(-128, 128))
    )
    weight = rng.choice(ends[0], (out, channels, size, size)).astype(np.int8)
    x = rng.choice(ends[1], (batch, channels, 8, 8)).astype(np.int8)
    bias = rng.integers(-(2**22), 2**22, out).astype(np.int32)
    node, feed = convolution(weight, bias, 8), image(zero, channels, 8)
    windows = sliding_window_view(x.astype(np.int64) - zero, (size, size), (2, 3))
    held = torch.float32 if largest_sum(weight, bias, zero) <= EXACT else torch.float64
    sums = np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.int64)) + bias[:, None, None]
    made = operation("conv2d").accumulated(
        node,
        *(torch.from_numpy(each).to(held) for each in (x.astype(np.int64) - zero, weight, bias)),
    )
    np.testing.assert_array_equal(made.numpy().astype(np.int64), sums)
    expected = np.clip(np.rint(sums.astype(np.float32) * np.float32(2.0**-18)), -128, 127)
    np.testing.assert_array_equal(operation("conv2d").codes(node, [feed], [x]), expected)
