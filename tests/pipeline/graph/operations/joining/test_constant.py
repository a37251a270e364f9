"""Constants beside tensors: a number per channel, position embeddings, class tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operation_checks import (
    RUNTIMES,
    assert_cut,
    assert_float,
    assert_network_exact,
    assert_thinner,
    images,
)
from prune_networks import conv, graph_outputs, network
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import parity
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.targets.errors import InputError

SHAPE = (1, 3, 5, 4)


class Scaled(nn.Module):
    """LayerScale: a number per channel."""

    def __init__(self, *shape: int, last: bool = False) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.linspace(-1, 2, max(shape)).reshape(shape)), last

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            return (x.permute(0, 2, 3, 1) * self.weight).permute(0, 3, 1, 2)
        return x * (self.weight if self.weight.ndim == 3 else self.weight.unsqueeze(-1).unsqueeze(-1))


class Given(nn.Module):
    """Random numbers of a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def scaled(*shape: int, last: bool = False) -> nn.Module:
    return network(lambda m, x: m.b(m.s(m.a(x))), a=conv(3, 8, 3), s=Scaled(*shape, last=last), b=conv(8, 4))


def tokens(m: nn.Module, x: Tensor) -> Tensor:
    found = torch.cat([m.c.weight.expand(len(x), -1, -1), m.a(x).flatten(2).transpose(1, 2)], 1)
    return m.b(found + m.p.weight)


def embedded() -> nn.Module:
    return network(tokens, a=conv(3, 8, 3), b=nn.Linear(8, 4), p=Given(1, 21, 8), c=Given(1, 1, 8))


def everywhere() -> nn.Module:
    return network(
        lambda m, x: m.b(m.p.weight - m.a(x) * m.p.weight), a=conv(3, 8, 3), b=conv(8, 4), p=Given(8, 5, 4)
    )


@pytest.mark.parametrize("net", [scaled(8), scaled(8, last=True), scaled(8, 1, 1)])
def test_a_number_per_channel_is_a_convolution_that_is_cut_with_them(net):
    graph = assert_float(net, SHAPE)
    assert [node.kind for node in graph] == ["input", "conv2d", "conv2d", "conv2d"]
    groups = assert_cut(net, SHAPE)
    assert not groups["a"].locked


@pytest.mark.parametrize("make", [embedded, pytest.param(everywhere, marks=pytest.mark.slow)])
def test_a_tensor_of_any_numbers_is_exact_on_both_runtimes(make):
    graph = assert_float(make(), SHAPE)
    assert "constant" in {node.kind for node in graph}
    integer = assert_network_exact(make(), SHAPE)
    x = integer.input.out.quantize(images(SHAPE, 1).numpy())
    for runtime in RUNTIMES.values():
        kinds, first = parity.every_operation(
            integer, lambda g, runtime=runtime: runtime.load(runtime.lower_integer(g).data), x
        )
        assert not first and kinds["constant"].values


def test_adding_and_taking_from_numbers_per_channel():
    net = network(
        lambda m, x: (m.p.weight - x, x - m.p.weight, x + m.p.weight, m.p.weight * x), p=Given(3, 1, 1)
    )
    graph = assert_float(net, SHAPE)
    assert [node.kind for node in graph] == ["input", *["conv2d"] * 4]
    assert_network_exact(net, SHAPE)


def test_both_graphs_are_kept_with_their_constants():
    graph, x = trace(embedded(), SHAPE), images(SHAPE)
    again = Graph.load(*graph.dump())
    assert torch.equal(graph_outputs(graph, x)[0], graph_outputs(again, x)[0])
    integer = assert_network_exact(embedded(), SHAPE)
    kept = IntegerGraph.load(*integer.dump())
    for node in integer:
        if node.kind == "constant":
            np.testing.assert_array_equal(node.value, kept[node.name].value)


def test_a_parameter_loses_the_channels_that_meet_it():
    groups = {group.name: group for group in couple(trace(everywhere(), SHAPE))}
    assert not groups["a"].locked and len(groups["a"].carriers) == 2
    assert_thinner(everywhere(), SHAPE)


def test_a_constant_that_is_no_parameter_locks_what_meets_it_and_says_why():
    net = network(lambda m, x: m.b(m.a(x) + m.p.weight.sin()), a=conv(3, 8), b=conv(8, 5), p=Given(8, 5, 4))
    group = couple(trace(net, SHAPE))[0]
    assert "a constant that is no parameter with these channels" in group.locked


def test_one_number_for_all_channels_leaves_them_free_but_for_a_layer_behind():
    net = network(lambda m, x: m.b(m.a(x) * m.p.weight), a=conv(3, 8), b=conv(8, 5), p=Given(1, 5, 4))
    assert_cut(net, SHAPE)
    assert not couple(trace(net, SHAPE))[0].locked
    added = network(lambda m, x: m.b(m.a(x) + m.p.weight), a=conv(3, 8), b=conv(8, 5), p=Given(1, 5, 4))
    assert "makes no zero of zero" in couple(trace(added, SHAPE))[0].locked


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda m, x: x.mean((2, 3), keepdim=True) * m.p.weight, "spreads a tensor over a constant"),
        (lambda m, x: x + m.p.weight.log(), "not of finite floats"),
    ],
)
def test_what_is_refused_says_what_to_change(function, why):
    with pytest.raises(InputError, match=why):
        trace(network(function, p=Given(3, 5, 4)), SHAPE, floats=False)


def test_what_changes_nothing_is_left_out():
    net = network(lambda m, x: m.a(x.to(torch.float32).expand(len(x), 3, 5, 4)), a=conv(3, 4))
    assert [node.kind for node in trace(net, SHAPE)] == ["input", "conv2d"]
    with pytest.raises(InputError, match="only what stays as it is"):
        net = network(lambda m, x: m.a(x.mean(1, keepdim=True).expand(1, 3, 5, 4)), a=conv(3, 4))
        trace(net, SHAPE, floats=False)


class Frozen(nn.Module):
    """Batch norm by hand, of buffers alone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        for index, name in enumerate(("weight", "bias", "mean", "var")):
            self.register_buffer(name, torch.linspace(0.5, 1 + index, count))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)


def test_what_is_computed_of_parameters_place_by_place_is_cut_with_them():
    net = network(lambda m, x: m.b(F.relu(m.f(m.a(x)))), a=conv(3, 8, 3), f=Frozen(8), b=conv(8, 4))
    assert not assert_thinner(net, SHAPE)["a"].locked
    graph = trace(net, SHAPE)
    smaller = cut(net, graph, couple(graph), {"a": (1, 4, 6)})
    assert all(torch.equal(t, net.f.get_buffer(n)[[1, 4, 6]]) for n, t in smaller.f.named_buffers())
