"""Before a concatenation: who gets a requantization, and what that is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lowering_networks import ranges_of
from operation_checks import assert_codes, assert_network_exact
from prune_networks import conv, network

from paredown.pipeline.bundle.packed.ledger import check_codes
from paredown.pipeline.graph.fusion import fuse_relu, scales_apart
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize

SHAPE = (1, 3, 8, 8)


def case(loud: float, also_read: bool = True, act=torch.relu) -> torch.nn.Module:
    def run(m, x):
        quiet, other = act(m.a(x)), torch.relu(m.b(x))
        joined = m.c(torch.cat([quiet, other], 1))
        return (m.p(quiet), joined) if also_read else joined

    net = network(run, a=conv(3, 8, 3), b=conv(3, 8, 3), p=conv(8, 4), c=conv(16, 4))
    with torch.no_grad():
        net.b.weight.mul_(loud)
        net.b.bias.mul_(loud)
    return net.eval()


def edges(net: torch.nn.Module) -> list[str]:
    """The inputs of concatenations that keep a scale of their own."""
    graph = trace(net, SHAPE)
    nodes = [node for node, _ in fuse_relu(graph)]
    return [graph[name].inputs[index] for name, index in scales_apart(nodes, ranges_of(graph))]


def test_one_that_others_read_too_keeps_its_scale_where_it_would_lose_a_bit():
    assert len(edges(case(50))) == 1
    assert edges(case(1)) == []  # all are as loud
    assert edges(case(50, also_read=False)) == []  # nobody else would see it


def test_a_prescribed_scale_stays():
    (edge,) = edges(case(1, act=torch.sigmoid))
    integer = assert_network_exact(case(1, act=torch.sigmoid), SHAPE)
    assert integer[edge].kind == "sigmoid" and integer[edge].out.scale == 1 / 256


def test_all_of_one_prescribed_scale_need_nothing():
    net = network(lambda m, x: m.c(torch.cat([m.a(x).sigmoid(), m.b(x).sigmoid()], 1)),
                  a=conv(3, 8, 3), b=conv(3, 8, 3), c=conv(16, 4))  # fmt: skip
    assert edges(net) == []
    assert_network_exact(net, SHAPE)


def test_the_other_reader_gets_its_bits_back():
    """Against the same network whose every tensor shares the scale, which is what there was before."""
    net, x = case(50), torch.rand(4, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    graph = trace(net, SHAPE)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}
    joined = next(node for node in graph if node.kind == "concat")
    wide = ranges | {name: ranges[joined.name] for name in joined.inputs}
    with torch.no_grad():
        wanted = net(x)[0].numpy()
    errors = []
    for each in (ranges, wide):
        integer = quantize(graph, each, input_range=(-3.0, 3.0))
        codes = integer.input.out.quantize(x.numpy())
        assert_codes(integer, codes[:1], {})
        found = integer["p"].out.dequantize(reference.predict(integer, codes)[0])
        errors.append(float(np.square(found - wanted).mean()))
    assert errors[0] < errors[1] / 10


@pytest.mark.parametrize("loud", [1, 50])
def test_trained_codes_are_found_behind_it(loud):
    graph = trace(case(loud), SHAPE)
    integer = quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))
    check_codes(graph, integer)  # none is trained here: it must find every layer all the same
    assert len(integer.written.nodes) - len(integer.nodes) == (loud == 50)
