"""A layer as a linear problem: patches times weights are the layer's outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pipeline.compress.coupling.patches import at_spots, patches, pick_spots
from paredown.pipeline.graph.graph import Node, apply

pytestmark = pytest.mark.unit


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    seed=st.integers(0, 2**31),
)
def test_of_a_convolution(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, 7, generator=generator)
    weight = torch.randn(4, 3, *kernel, generator=generator)
    attrs = {"stride": stride, "padding": padding, "groups": 1}
    node = Node("conv", "conv2d", ("x",), (1,), attrs, weight, torch.zeros(4))
    output = apply(node, x)
    spots = pick_spots(tuple(output.shape), 20, np.random.default_rng(seed))
    rows = patches(node, x, spots)
    assert rows.shape == (min(20, output[:, 0].numel()), weight[0].numel())
    assert torch.allclose(rows @ weight.flatten(1).double().T, at_spots(output, spots), atol=1e-4)


def test_of_a_linear_layer_all_rows() -> None:
    x, weight = torch.randn(6, 5), torch.randn(3, 5)
    node = Node("fc", "linear", ("x",), (1, 3), {}, weight, torch.zeros(3))
    spots = pick_spots((6, 3), 2, np.random.default_rng(0))
    rows = patches(node, x, spots)
    assert torch.allclose(rows @ weight.double().T, at_spots(apply(node, x), spots), atol=1e-5)
