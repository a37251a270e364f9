"""PReLU: torch's in float, exact in both runtimes, its slopes go with their channels."""

from __future__ import annotations

import copy

import pytest
import torch
from operation_checks import assert_cut, assert_float, assert_network_exact
from prune_networks import conv, network
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6, 5)


def case(slopes: str) -> nn.Module:
    act = nn.PReLU(1 if slopes == "one" else 8)
    with torch.no_grad():
        low = -0.6 if slopes == "negative" else 0.02
        act.weight.uniform_(low, 0.6, generator=torch.Generator().manual_seed(1))
    return network(lambda m, x: m.c(m.act(m.a(x))), a=conv(4, 8, 3), act=act, c=conv(8, 5))


@pytest.mark.parametrize("slopes", ["one", "each", "negative"])
def test_both_programs_compute_it(slopes):
    assert_float(case(slopes), SHAPE)
    integer = assert_network_exact(case(slopes), SHAPE)
    assert [node.kind for node in integer] == ["input", "conv2d", "prelu", "conv2d"]


@pytest.mark.parametrize("slopes", ["one", "each", "negative"])
def test_slopes_go_with_their_channels(slopes):
    net = case(slopes)
    groups = assert_cut(net, SHAPE)
    assert [group.name for group in groups.values() if not group.locked] == ["a"]
    smaller = cut(copy.deepcopy(net), trace(net, SHAPE), couple(trace(net, SHAPE)), {"a": (1, 4, 6)})
    assert smaller.act.num_parameters == (1 if slopes == "one" else 3)
    if slopes != "one":
        assert torch.equal(smaller.act.weight, net.act.weight[[1, 4, 6]])


def test_other_tensors_than_maps_are_refused():
    net = network(lambda m, x: m.act(x.flatten(1)), act=nn.PReLU())
    with pytest.raises(InputError, match=r"prelu must read \(batch, channels, height, width\)"):
        trace(net, SHAPE, floats=False)
