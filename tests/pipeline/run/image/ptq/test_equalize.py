"""Equalization: not a bit of the float network changes, and channels that one scale starved come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operation_checks import assert_codes
from prune_networks import conv, network
from torch import nn
from torch.nn import functional as F

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.run.image.ptq.equalize import MOST, Reach, equalize, pairs

SHAPE = (1, 3, 12, 12)


def chain(seed: int = 0, spread: float = 3.0) -> nn.Module:
    """Pointwise, depthwise, grouped and linear layers, channels of very different size between them."""
    torch.manual_seed(seed)
    net = network(
        lambda m, x: m.f(
            torch.relu(m.g(torch.max_pool2d(torch.relu(m.d(torch.relu(m.a(x)))), 2)))[:, :, 0, 0]
        ),
        a=conv(3, 16, 3), d=conv(16, 16, 3, groups=16), g=conv(16, 8, 6, groups=4, padding=0),
        f=nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (net.a, net.d, net.g):
            size = (spread * torch.randn(len(layer.weight))).exp2()
            layer.weight.mul_(size.view(-1, 1, 1, 1))
            layer.bias.mul_(size)
    return net


def reach(graph, images) -> dict:
    found: dict[str, Reach] = {}
    for image in images:
        for name, value in graph.run(image[None]).items():
            found.setdefault(name, Reach()).update(value.numpy())
    return {name: each.largest for name, each in found.items()}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_float_network_computes_the_same_bits(seed):
    graph = trace(chain(seed), SHAPE)
    images = torch.rand(6, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))
    balanced, changed = equalize(graph, reach(graph, images))
    assert changed
    out = graph.outputs[0]
    assert torch.equal(balanced.run(images)[out], graph.run(images)[out])
    for node in balanced:
        if node.weight is not None:
            ratio = node.weight / graph[node.name].weight
            exponents = ratio[graph[node.name].weight != 0].log2()
            assert torch.equal(exponents, exponents.round())
            assert float(exponents.abs().max()) <= 2 * np.log2(MOST)


def test_int8_loses_less_and_stays_exact():
    graph = trace(chain(), SHAPE)
    images = torch.rand(64, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    balanced, _ = equalize(graph, reach(graph, images[:32]))
    errors = []
    for each in (graph, balanced):
        ranges = {name: (float(v.min()), float(v.max())) for name, v in each.run(images[:32]).items()}
        integer = quantize(each, ranges, input_range=(0.0, 1.0))
        wanted = graph.run(images[32:])[graph.outputs[0]].numpy()
        codes = reference.predict(integer, integer.input.out.quantize(images[32:].numpy()))[0]
        found = integer[integer.outputs[0]].out.dequantize(codes)
        errors.append(float(np.square(found - wanted).sum()))
    assert errors[1] < 0.5 * errors[0]
    assert_codes(integer, integer.input.out.quantize(images[:4].numpy()), {})


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: m.b(torch.nn.functional.relu6(m.a(x))),
        lambda m, x: m.b(torch.sigmoid(m.a(x))),
        lambda m, x: m.b(y := torch.relu(m.a(x))) + y[:, :1],
        lambda m, x: (y := torch.relu(m.a(x)), m.b(y)),
    ],
    ids=["relu6", "sigmoid", "another reader", "an output"],
)
def test_where_it_would_not_be_exact_nothing_is_scaled(between):
    graph = trace(network(between, a=conv(3, 8, 3), b=conv(8, 8, 3)).eval(), SHAPE)
    assert pairs(graph) == []


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: m.b(F.leaky_relu(m.a(x), 0.1)),
        lambda m, x: m.f(torch.relu(m.a(x)).mean((2, 3))),
        lambda m, x: m.b(F.avg_pool2d(F.max_pool2d(m.a(x), 2), 2)),
        lambda m, x: m.f(F.adaptive_max_pool2d(torch.relu(m.a(x)), 1).flatten(1)),
    ],
    ids=["leaky", "mean and flatten", "pools", "the largest"],
)
def test_what_lies_between_may_be(between):
    net = network(between, a=conv(3, 8, 3), b=conv(8, 8, 3), f=nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net.a.weight[1].mul_(8)
    graph = trace(net, SHAPE)
    assert len(pairs(graph)) == 1
    images = torch.rand(2, *SHAPE[1:])
    balanced, changed = equalize(graph, reach(graph, images))
    assert changed
    assert torch.equal(balanced.run(images)[graph.outputs[0]], graph.run(images)[graph.outputs[0]])


def test_dead_channels_are_left_alone():
    net = network(lambda m, x: m.b(torch.relu(m.a(x))), a=conv(3, 8, 3), b=conv(8, 4, 3)).eval()
    with torch.no_grad():
        net.a.weight[2] = 0
        net.a.bias[2] = 0
        net.b.weight[:, 5] = 0
    graph = trace(net, SHAPE)
    images = torch.rand(2, *SHAPE[1:])
    balanced, _ = equalize(graph, reach(graph, images))
    for node in balanced:
        if node.weight is not None:
            assert torch.isfinite(node.weight).all()
    assert torch.equal(balanced.run(images)[graph.outputs[0]], graph.run(images)[graph.outputs[0]])
