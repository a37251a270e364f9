"""Sums of products are whole numbers, in whatever type they are carried: int64 by numpy is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.weighted import layer
from paredown.pipeline.lower.integer import Affine, IntegerNode


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
    sums = np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.int64)) + bias[:, None, None]
    made = operation("conv2d").accumulated(
        node,
        *(torch.from_numpy(each).to(held(node, feed)) for each in (x.astype(np.int64) - zero, weight, bias)),
    )
    np.testing.assert_array_equal(made.numpy().astype(np.int64), sums)
    expected = np.clip(np.rint(sums.astype(np.float32) * np.float32(2.0**-18)), -128, 127)
    np.testing.assert_array_equal(operation("conv2d").codes(node, [feed], [x]), expected)


def held(node: IntegerNode, feed: IntegerNode) -> torch.dtype:
    """The type in which the layer's sums are carried."""
    return torch.float32 if layer._largest_sum(node, feed) <= layer.FLOAT32_WHOLE else torch.float64


@pytest.mark.parametrize(("zero", "bias", "wide"), [(-128, 0, False), (-128, 2**24, True), (0, 2**23, False)])
def test_the_largest_sum_counts_zero_point_and_bias(zero, bias, wide):
    weight = np.full((1, 1, 1, 1), 127, np.int8)
    node = convolution(weight, np.array([bias], np.int32), 8)
    reach = 127 * max(127 - zero, zero + 128) + bias
    assert layer._largest_sum(node, image(zero, 1, 8)) == reach
    assert (reach > 2**24) is wide
