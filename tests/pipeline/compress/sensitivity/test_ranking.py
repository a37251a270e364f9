"""Ranking: each criterion against a direct computation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_networks import conv, network
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.sensitivity import ranking
from paredown.pipeline.graph.graph import apply
from paredown.pipeline.graph.trace import trace

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


def test_a_channel_that_its_readers_weigh_more_ranks_higher():
    net = small()
    graph = trace(net, SHAPE)
    images = torch.randn(8, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    before = ranking.activation(graph, couple(graph), [images])["a"]
    with torch.no_grad():
        net.b.weight[:, 1] *= 100
    graph = trace(net, SHAPE)
    after = ranking.activation(graph, couple(graph), [images])["a"]
    assert after[1] > before[1]
    assert ranking.ranking({"a": after})["a"][0] == 1
    others = [0, 2, 3, 4]
    assert np.argsort(after[others]).tolist() == np.argsort(before[others]).tolist()


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


# -- groups of several layers --------------------------------------------------------------------------------


def tied() -> nn.Module:
    """A residual stream made by three layers, a depthwise convolution with two channels for one, flatten."""

    def forward(m, x):
        x = F.relu(m.a(x))
        x = F.relu(m.n(m.b(x)) + x)
        x = m.d(x)
        return m.f(F.max_pool2d(x, 3).flatten(1))

    return network(
        forward, a=conv(3, 4, 3), b=conv(4, 4, 3, bias=False), n=nn.BatchNorm2d(4),
        d=conv(4, 8, 3, groups=4), f=nn.Linear(32, 3),
    )  # fmt: skip


def test_norm_adds_the_shares_of_every_layer_that_makes_a_unit():
    net = tied()
    graph = trace(net, SHAPE)
    found = ranking.norm(graph, couple(graph))["a"]
    scale = net.n.weight / (net.n.running_var + net.n.eps).sqrt()
    layers = [
        net.a.weight.flatten(1).norm(dim=1), net.b.weight.flatten(1).norm(dim=1) * scale.abs(),
        net.d.weight.reshape(4, 2, -1).flatten(1).norm(dim=1),  # both channels of a unit
    ]  # fmt: skip
    expected = sum(layer / layer.mean() for layer in layers).detach().numpy()
    assert found == pytest.approx(expected, rel=1e-5)


def test_activation_adds_the_shares_of_every_layer_that_reads_a_unit():
    net = tied()
    graph = trace(net, SHAPE)
    images = torch.randn(6, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    found = ranking.activation(graph, couple(graph), [images[:5], images[5:]])["a"]
    with torch.no_grad():
        first = F.relu(net.a(images))
        second = F.relu(net.n(net.b(first)) + first)
        third = F.max_pool2d(net.d(second), 3)  # (6, 8, 2, 2): 8 features of each of 4 units
    scale = net.n.weight / (net.n.running_var + net.n.eps).sqrt()
    folded = net.b.weight * scale[:, None, None, None]  # batch norm is a part of the layer
    shares = [
        first.square().mean((0, 2, 3)).sqrt() * folded.square().sum((0, 2, 3)).sqrt(),
        second.square().mean((0, 2, 3)).sqrt() * net.d.weight.reshape(4, -1).norm(dim=1),
        (third.square().mean(0).flatten() * net.f.weight.square().sum(0)).reshape(4, 8).sum(1).sqrt(),
    ]
    expected = sum(share / share.mean() for share in shares).detach().numpy()
    assert found == pytest.approx(expected, rel=1e-4)


def test_taylor_gates_every_layer_of_a_unit_at_once():
    net = tied()
    graph = trace(net, SHAPE)
    images = torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 2, 1, 0])
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]  # a mean over images, not over batches
    found = ranking.taylor(graph, couple(graph), batches, F.cross_entropy)["a"]

    def loss(unit: int, gate: float, image: int) -> float:
        """The module's own layers, in double, with the outputs of all makers of a unit faded."""
        twin = copy.deepcopy(net).double()
        for layer, channels in ((twin.a, [unit]), (twin.n, [unit]), (twin.d, [2 * unit, 2 * unit + 1])):
            fade = torch.ones(8 if layer is twin.d else 4, 1, 1, dtype=torch.float64)
            fade[channels] = gate
            layer.register_forward_hook(lambda m, x, y, fade=fade: y * fade)
        with torch.no_grad():
            outputs = twin(images[image : image + 1].double())
        return float(F.cross_entropy(outputs, labels[image : image + 1]))

    step = 1e-5
    for unit in range(4):
        slopes = [(loss(unit, 1 + step, i) - loss(unit, 1 - step, i)) / (2 * step) for i in range(4)]
        assert found[unit] == pytest.approx(np.mean(np.abs(slopes)), rel=1e-3, abs=1e-6)


def test_every_group_has_a_score_for_each_unit():
    for net in (small(), tied()):
        graph = trace(net, SHAPE)
        groups = couple(graph)
        images = torch.randn(4, *SHAPE[1:])
        batch = [(images, torch.tensor([0, 1, 2, 0]))]
        for scores in (
            ranking.norm(graph, groups),
            ranking.activation(graph, groups, [images]),
            ranking.taylor(graph, groups, batch, F.cross_entropy),
        ):
            assert {name: len(values) for name, values in scores.items()} == {g.name: g.units for g in groups}
            assert all(np.isfinite(values).all() and (values >= 0).all() for values in scores.values())
            assert all(sorted(order) == list(range(len(order))) for order in ranking.ranking(scores).values())
