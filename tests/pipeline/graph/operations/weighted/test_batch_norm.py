"""Batch norm that nothing takes in: a depthwise convolution of one pixel, cut with its channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from operation_checks import assert_cut, assert_float, assert_network_exact
from prune_networks import conv, network
from torch import nn

SHAPE = (1, 4, 6, 5)


def norm(channels: int, flat: bool = False) -> nn.Module:
    made = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for tensor, low, high in ((made.weight, -1.5, 1.5), (made.bias, -1, 1), (made.running_mean, -1, 1),
                                  (made.running_var, 0.3, 2)):  # fmt: skip
            tensor.uniform_(low, high, generator=generator)
    return made


CASES = {
    "before the convolution": (
        lambda m, x: m.c(m.b(F.relu(m.n(m.a(x) + m.s(x))))),
        dict(a=conv(4, 8, 3), s=conv(4, 8), n=norm(8), b=conv(8, 6), c=conv(6, 5)),
    ),
    "behind a concatenation": (
        lambda m, x: m.c(F.relu(m.n(torch.cat([m.a(x), m.s(x)], 1)))),
        dict(a=conv(4, 5, 3), s=conv(4, 3), n=norm(8), c=conv(8, 5)),
    ),
    "of a layer that another reads": (
        lambda m, x: (lambda y: m.c(F.relu(m.n(y)) + y))(m.a(x)),
        dict(a=conv(4, 8, 3), n=norm(8), c=conv(8, 5)),
    ),
    "as a branch": (
        lambda m, x: (lambda y: m.c(m.b(y) + m.n(y)))(F.relu(m.a(x))),
        dict(a=conv(4, 8, 3), b=conv(8, 8), n=norm(8), c=conv(8, 5)),
    ),
    "behind another": (
        lambda m, x: m.c(F.relu(m.n(m.first(m.a(x))))),
        dict(a=conv(4, 8, 3), first=norm(8), n=norm(8), c=conv(8, 5)),
    ),
    "of features": (
        lambda m, x: m.c(m.n(torch.tanh(m.f(m.a(x).mean((2, 3)))))),
        dict(a=conv(4, 8, 3), f=nn.Linear(8, 6), n=norm(6, flat=True), c=nn.Linear(6, 5)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_programs_compute_it(name):
    function, layers = CASES[name]
    graph = assert_float(network(function, **layers), SHAPE)
    assert graph["n"].kind == "conv2d" and graph["n"].attrs["groups"] == layers["n"].num_features
    assert_network_exact(network(function, **layers), SHAPE)


@pytest.mark.parametrize("name", CASES)
def test_its_channels_go_with_those_that_it_reads(name):
    function, layers = CASES[name]
    groups = assert_cut(network(function, **layers), SHAPE)
    free = {member.node for group in groups.values() if not group.locked for member in group.makers}
    assert free == layers.keys() - {"c", "first"}
