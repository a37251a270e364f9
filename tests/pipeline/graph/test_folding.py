"""Affine nodes that layers take in: the same network, with fewer nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from paredown.pipeline.graph.folding import fold_affine
from paredown.pipeline.graph.graph import Graph, Node

SHAPE = (1, 4, 6, 6)


def conv(name: str, feed: str, padding: int = 0, groups: int = 1, side: int = 1) -> Node:
    generator = torch.Generator().manual_seed(len(name))
    weight = torch.randn(4, 4 // groups, side, side, generator=generator)
    attrs = {"stride": (1, 1), "padding": (padding,) * 4, "groups": groups, "dilation": (1, 1)}
    return Node(name, "conv2d", (feed,), SHAPE, attrs, weight, torch.randn(4, generator=generator))


def affine(name: str, feed: str, scale: float = -0.4, shift: float = 0.7) -> Node:
    return Node(name, "affine", (feed,), SHAPE, {"scale": scale, "shift": shift})


def graph(*nodes: Node) -> Graph:
    return Graph((Node("input", "input", (), SHAPE), *nodes), (nodes[-1].name,))


def relu(name: str, feed: str) -> Node:
    return Node(name, "relu", (feed,), SHAPE)


def check(before: Graph, names: list[str]) -> Graph:
    """Folds, and compares names and outputs."""
    after = fold_affine(before)
    assert [node.name for node in after] == ["input", *names]
    x = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(9))
    for name in before.outputs:
        torch.testing.assert_close(after.run(x)[name], before.run(x)[name], rtol=1e-5, atol=1e-5)
    return after


def test_a_layer_takes_in_what_is_behind_it():
    check(graph(conv("a", "input"), affine("b", "a"), relu("c", "input"), *sum_of("b", "c")), ["a", "c", "d"])


def sum_of(one: str, other: str) -> tuple[Node]:
    return (Node("d", "add", (one, other), SHAPE),)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_take_in_what_is_before_them(groups):
    """All its readers, or none."""
    both = conv("b", "a", groups=groups), conv("cc", "a", groups=groups)
    check(graph(affine("a", "input"), *both, *sum_of("b", "cc")), ["b", "cc", "d"])
    check(graph(affine("a", "input"), both[0], relu("cc", "a"), *sum_of("b", "cc")), ["a", "b", "cc", "d"])


def test_of_a_padded_layer_only_a_factor_goes_in():
    padded = conv("b", "a", padding=1, side=3)
    check(graph(affine("a", "input"), padded), ["a", "b"])
    check(graph(affine("a", "input", shift=0.0), padded), ["b"])


def test_a_chain_is_taken_in_from_both_sides():
    nodes = conv("a", "input"), affine("b", "a"), affine("c", "b", 2.0), relu("e", "c"), affine("f", "e")
    check(graph(*nodes, conv("gg", "f")), ["a", "c", "e", "gg"])


def test_what_must_stay_stays():
    """Outputs, trained codes, a layer that others read too, and what a ReLU makes part of the layer."""
    check(graph(conv("a", "input"), affine("b", "a")), ["a", "b"])
    trained = replace(conv("a", "input"), scale=torch.ones(4))
    check(graph(trained, affine("b", "a"), *sum_of("a", "b")), ["a", "b", "d"])
    check(graph(conv("a", "input"), affine("b", "a"), *sum_of("a", "b")), ["a", "b", "d"])
    check(graph(conv("a", "input"), affine("b", "a"), relu("c", "b")), ["a", "b", "c"])


def test_linear_layers_too():
    layer = nn.Linear(3, 2)
    nodes = (
        Node("input", "input", (), (1, 3)),
        Node("a", "affine", ("input",), (1, 3), {"scale": 3.0, "shift": -1.0}),
        Node("b", "linear", ("a",), (1, 2), {}, layer.weight.detach(), layer.bias.detach()),
    )
    before = Graph(nodes, ("b",))
    after, x = fold_affine(before), torch.ones(1, 3)
    assert [node.name for node in after] == ["input", "b"]
    torch.testing.assert_close(after.run(x)["b"], layer(3 * x - 1).detach())
