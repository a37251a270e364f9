"""Before a concatenation: who gets a requantization, and what that is worth. What layers take in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lowering_networks import ranges_of
from operation_checks import assert_codes, assert_network_exact
from prune_networks import conv, network
from torch import nn

from paredown.pipeline.bundle.packed.ledger import check_codes
from paredown.pipeline.graph.fusion import fold_affine, fuse_relu, scales_apart
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize

SHAPE = (1, 3, 8, 8)
MAP = (1, 4, 6, 6)


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


# -- a number times plus a number, beside a layer -----------------------------------------------------------


def layer(name: str, feed: str, padding: int = 0, groups: int = 1, side: int = 1) -> Node:
    generator = torch.Generator().manual_seed(len(name))
    weight = torch.randn(4, 4 // groups, side, side, generator=generator)
    attrs = {"stride": (1, 1), "padding": (padding,) * 4, "groups": groups, "dilation": (1, 1)}
    return Node(name, "conv2d", (feed,), MAP, attrs, weight, torch.randn(4, generator=generator))


def affine(name: str, feed: str, scale: float = -0.4, shift: float = 0.7) -> Node:
    return Node(name, "affine", (feed,), MAP, {"scale": scale, "shift": shift})


def chained(*nodes: Node) -> Graph:
    return Graph((Node("input", "input", (), MAP), *nodes), (nodes[-1].name,))


def relu(name: str, feed: str) -> Node:
    return Node(name, "relu", (feed,), MAP)


def check(before: Graph, names: list[str]) -> Graph:
    """Folds, and compares names and outputs."""
    after = fold_affine(before)
    assert [node.name for node in after] == ["input", *names]
    x = torch.randn(2, *MAP[1:], generator=torch.Generator().manual_seed(9))
    for name in before.outputs:
        torch.testing.assert_close(after.run(x)[name], before.run(x)[name], rtol=1e-5, atol=1e-5)
    return after


def test_a_layer_takes_in_what_is_behind_it():
    check(
        chained(layer("a", "input"), affine("b", "a"), relu("c", "input"), *sum_of("b", "c")), ["a", "c", "d"]
    )


def sum_of(one: str, other: str) -> tuple[Node]:
    return (Node("d", "add", (one, other), MAP),)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_take_in_what_is_before_them(groups):
    """All its readers, or none."""
    both = layer("b", "a", groups=groups), layer("cc", "a", groups=groups)
    check(chained(affine("a", "input"), *both, *sum_of("b", "cc")), ["b", "cc", "d"])
    check(chained(affine("a", "input"), both[0], relu("cc", "a"), *sum_of("b", "cc")), ["a", "b", "cc", "d"])


def test_of_a_padded_layer_only_a_factor_goes_in():
    padded = layer("b", "a", padding=1, side=3)
    check(chained(affine("a", "input"), padded), ["a", "b"])
    check(chained(affine("a", "input", shift=0.0), padded), ["b"])


def test_a_chain_is_taken_in_from_both_sides():
    nodes = layer("a", "input"), affine("b", "a"), affine("c", "b", 2.0), relu("e", "c"), affine("f", "e")
    check(chained(*nodes, layer("gg", "f")), ["a", "c", "e", "gg"])


def test_what_must_stay_stays():
    """Outputs, trained codes, a layer that others read too, and what a ReLU makes part of the layer."""
    check(chained(layer("a", "input"), affine("b", "a")), ["a", "b"])
    trained = replace(layer("a", "input"), scale=torch.ones(4))
    check(chained(trained, affine("b", "a"), *sum_of("a", "b")), ["a", "b", "d"])
    check(chained(layer("a", "input"), affine("b", "a"), *sum_of("a", "b")), ["a", "b", "d"])
    check(chained(layer("a", "input"), affine("b", "a"), relu("c", "b")), ["a", "b", "c"])


def test_linear_layers_too():
    last = nn.Linear(3, 2)
    nodes = (
        Node("input", "input", (), (1, 3)),
        Node("a", "affine", ("input",), (1, 3), {"scale": 3.0, "shift": -1.0}),
        Node("b", "linear", ("a",), (1, 2), {}, last.weight.detach(), last.bias.detach()),
    )
    before = Graph(nodes, ("b",))
    after, x = fold_affine(before), torch.ones(1, 3)
    assert [node.name for node in after] == ["input", "b"]
    torch.testing.assert_close(after.run(x)["b"], last(3 * x - 1).detach())
