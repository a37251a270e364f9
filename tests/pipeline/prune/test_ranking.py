"""Ranking: each criterion against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_networks import conv, network
from torch import nn

from pipeline.graph import apply
from pipeline.prune import ranking
from pipeline.prune.coupling import couple
from pipeline.trace import trace

SHAPE = (1, 3, 6, 6)


def small() -> nn.Module:
    def forward(m, x):
        return m.f(F.relu(m.b(F.relu(m.n(m.a(x))))).mean((2, 3)))

    return network(forward, a=conv(3, 5, 3), n=nn.BatchNorm2d(5), b=conv(5, 4, 3), f=nn.Linear(4, 3))


def test_norm_is_that_of_the_filters_with_batch_norm_folded_in():
    net = small()
    graph = trace(net, SHAPE)
    found = ranking.norm(graph, couple(graph))["a"]
    gamma = net.n.weight / (net.n.running_var + net.n.eps).sqrt()
    filters = (net.a.weight.flatten(1).norm(dim=1) * gamma.abs()).detach().double().numpy()
    assert found == pytest.approx(filters / filters.mean(), rel=1e-5)


def test_taylor_is_the_slope_of_the_loss_when_a_channel_fades():
    net = small()
    graph = trace(net, SHAPE)
    images = torch.randn(6, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    found = ranking.taylor(graph, couple(graph), [(images, labels)], F.cross_entropy)["a"]

    def loss(channel: int, gate: float, image: int) -> float:
        values = {}
        for node in graph:
            inputs = [values[name] for name in node.inputs]
            value = images[image : image + 1] if node.kind == "input" else apply(node, *inputs)
            if node.name == "a":
                value = value.clone()
                value[:, channel] *= gate
            values[node.name] = value
        return float(F.cross_entropy(values[graph.outputs[0]].double(), labels[image : image + 1]))

    step = 1e-2
    for channel in range(5):
        slopes = [(loss(channel, 1 + step, i) - loss(channel, 1 - step, i)) / (2 * step) for i in range(6)]
        assert found[channel] == pytest.approx(np.mean(np.abs(slopes)), rel=0.02, abs=1e-4)


def test_activation_is_what_the_readers_get():
    net = small()
    graph = trace(net, SHAPE)
    images = torch.randn(8, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    found = ranking.activation(graph, couple(graph), list(images.split(4)))["a"]
    with torch.no_grad():
        read = F.relu(net.n(net.a(images)))
        power = read.square().mean((0, 2, 3)).sqrt()
        gain = net.b.weight.square().sum((0, 2, 3)).sqrt()
    expected = (power * gain).double().numpy()
    assert found == pytest.approx(expected / expected.mean(), rel=1e-4)


def test_a_dead_channel_is_worth_nothing():
    net = small()
    with torch.no_grad():
        net.n.weight[2] = net.n.bias[2] = 0
    graph = trace(net, SHAPE)
    groups = couple(graph)
    images = torch.randn(4, *SHAPE[1:])
    batch = [(images, torch.tensor([0, 1, 2, 0]))]
    scores = [
        ranking.norm(graph, groups), ranking.activation(graph, groups, [images]),
        ranking.taylor(graph, groups, batch, F.cross_entropy),
    ]  # fmt: skip
    for found in scores:
        assert found["a"][2] == 0
        assert ranking.ranking(found)["a"][-1] == 2


def test_a_ranking_is_stable_and_its_widths_are_nested():
    ranks = ranking.ranking({"a": np.array([1.0, 3.0, 3.0, 0.5])})
    assert ranks["a"] == (1, 2, 0, 3)
    kept = [set(ranking.keep(ranks, {"a": width})["a"]) for width in range(1, 5)]
    assert all(fewer < more for fewer, more in zip(kept, kept[1:], strict=False))
    assert ranking.keep(ranks, {"a": 3})["a"] == (0, 1, 2)
