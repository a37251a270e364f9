"""Reshapes and permutes that fold windows into the batch: torch's floats, exact, cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from operation_checks import assert_float, assert_network_exact, assert_thinner, images
from prune_networks import conv, network, outputs
from torch import Tensor, nn

from paredown.pipeline.graph.operations.moving.reshape import renamed
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 3, 8, 8)


def attended(m: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over (windows, places, features), heads of four features."""
    q, k, v = (y(m.n(x)).view(*x.shape[:2], -1, 4).transpose(1, 2) for y in (m.q, m.k, m.v))
    scores = q @ k.transpose(-1, -2) / 2
    if mask is not None:
        scores = scores.view(1, -1, *scores.shape[1:]) + mask[None, :, None]
        scores = scores.view(-1, *scores.shape[2:])
    return x + m.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


def windows(m: nn.Module, x: Tensor) -> Tensor:
    """As Swin does it: rolled, windows of 4 by 4 in the batch, masked, and back."""
    x = torch.roll(m.a(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
    b, h, w, c = x.shape
    x = x.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
    apart = torch.arange(16) // 8
    mask = torch.zeros(4, 16, 16).masked_fill((apart[None] != apart[:, None])[None], -100.0)
    x = attended(m, x, mask)
    x = x.view(-1, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(-1, h, w, c)
    return m.b(torch.roll(x, (2, 2), (1, 2)).permute(0, 3, 1, 2))


def patches(m: nn.Module, x: Tensor) -> Tensor:
    """As MobileViT does it: the pixels at one place of each patch are a sequence."""
    x = m.a(x)
    b, c, h, w = x.shape
    x = x.reshape(b * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(b, c, h * w // 4, 4)
    x = attended(m, x.transpose(1, 3).reshape(b * 4, h * w // 4, -1))
    x = x.view(b, 4, h * w // 4, -1).transpose(1, 3)
    x = x.reshape(b * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(b, c, h, w)
    return m.b(x)


def merged(m: nn.Module, x: Tensor) -> Tensor:
    """Four neighbours side by side, of a map with its channels last."""
    x = m.a(x).permute(0, 2, 3, 1).contiguous().view(len(x), 8, 8, 8)
    x = torch.cat([x[:, row::2, column::2] for column in range(2) for row in range(2)], -1)
    return m.c(x.view(len(x), -1, 32))


def built(function) -> nn.Module:
    layers = {name: nn.Linear(12, 12) for name in "qkvo"}
    return network(function, a=conv(3, 12, 3), b=conv(12, 5, 3), n=nn.LayerNorm(12), **layers)


FUNCTIONS = {"windows": windows, "patches": patches}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_windows_in_the_batch_are_those_of_torch(name):
    net = built(FUNCTIONS[name])
    graph = assert_float_of_one(net)
    assert "opaque" not in {node.kind for node in graph}
    assert all(node.shape[0] == 1 for node in graph)


def assert_float_of_one(net: nn.Module):
    """The graph computes each image as the network computes it alone: its batch is that of the windows."""
    graph, x = trace(net, SHAPE), images(SHAPE)
    found = graph.run(x)[graph.outputs[0]]
    for index in range(len(x)):
        torch.testing.assert_close(
            found[index : index + 1], outputs(net, x[index : index + 1])[0], rtol=1e-4, atol=1e-5
        )
    return graph


@pytest.mark.parametrize("name", FUNCTIONS)
def test_windows_in_the_batch_are_exact_on_both_runtimes(name):
    assert_network_exact(built(FUNCTIONS[name]), SHAPE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_windows_are_cut_with_their_heads_and_features(name):
    groups = assert_thinner(built(FUNCTIONS[name]), SHAPE)
    assert [(groups[name].units, groups[name].locked) for name in "aq"] == [(12, ""), (3, "")]


def test_neighbours_side_by_side_are_those_of_torch():
    assert_float(network(merged, a=conv(3, 8, 3), c=nn.Linear(32, 5)), SHAPE)


def test_a_layer_that_knows_maps_alone_refuses_windows():
    net = network(lambda m, x: m.b(m.a(x).view(4, 2, 8, 8)), a=conv(3, 8, 3), b=conv(2, 3, 3))
    with pytest.raises(InputError, match="first dim is not the batch"):
        trace(net, SHAPE)


def test_rolling_the_batch_is_refused():
    with pytest.raises(InputError, match="rolls the batch"):
        trace(network(lambda m, x: F.relu(torch.roll(m.a(x), 3)), a=conv(3, 8)), SHAPE, floats=False)


@pytest.mark.parametrize(
    ("before", "axes", "after", "found"),
    [
        ((4, 3, 16, 16), (2, 2, 3, 1), (1, 4, 3, 16, 16), (0, 2, 2, 3, 1)),
        ((1, 4, 3, 16, 16), (0, 2, 2, 3, 1), (4, 3, 16, 16), (2, 2, 3, 1)),
        ((4, 16, 24), (2, 3, 1), (4, 4, 4, 24), (2, 3, 3, 1)),
        ((4, 16, 24), (2, 3, 1), (64, 24), ()),
        ((4, 16, 24), (2, 3, 1), (4, 16, 4, 6), (2, 3, 1, 1)),
        ((4, 6), (2, 1), (6, 4), ()),
    ],
)
def test_a_shape_is_another_name_where_nothing_moves(before, axes, after, found):
    assert renamed(before, axes, after) == found
