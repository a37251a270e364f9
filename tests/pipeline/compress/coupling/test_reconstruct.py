"""Reconstruction: layers solved again after a cut come nearer to the original, and BN stays consistent."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from prune_networks import conv, network
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.reconstruct import reconstruct
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.compress.sensitivity.ranking import keep, norm, ranking
from paredown.pipeline.graph.trace import trace


def residual() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.n0(m.a(x)))
        y = m.n2(m.c(F.relu(m.n1(m.b(x)))))
        return m.d(F.relu(x + y).mean((2, 3)))

    norms = {f"n{i}": nn.BatchNorm2d(12) for i in range(3)}
    parts = {"a": conv(3, 12, 3), "b": conv(12, 12, 3), "c": conv(12, 12, 3)}
    return network(forward, **parts, **norms, d=nn.Linear(12, 5))


def halved(net: nn.Module, shape: tuple[int, ...] = (1, 3, 10, 10)):
    graph = trace(net, shape)
    groups = couple(graph)
    widths = {g.name: g.units // 2 for g in groups if not g.locked}
    kept = keep(ranking(norm(graph, groups)), widths)
    return graph, groups, kept, cut(net, graph, groups, kept)


def error(net: nn.Module, original: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((net(images) - original(images)).square().mean())


def test_it_comes_nearer_to_the_original_on_images_that_it_never_saw():
    net = residual()
    graph, groups, kept, smaller = halved(net)
    images, others = torch.randn(48, 3, 10, 10), torch.randn(48, 3, 10, 10)
    before = error(smaller, net, others)
    shapes = {name: t.shape for name, t in smaller.state_dict().items()}
    reconstruct(smaller, graph, groups, kept, images)
    assert error(smaller, net, others) < 0.5 * before
    assert {name: t.shape for name, t in smaller.state_dict().items()} == shapes


def test_images_that_do_not_fit_into_memory_are_left_out(monkeypatch: pytest.MonkeyPatch):
    net = residual()
    graph, groups, kept, few = halved(net)
    _, _, _, capped = halved(net)
    images = torch.randn(48, 3, 10, 10)
    reconstruct(few, graph, groups, kept, images[:5])
    one = 2 * 4 * sum(t.numel() for t in graph.run(images[:1]).values())
    monkeypatch.setattr("paredown.pipeline.compress.coupling.reconstruct.MEMORY", 5 * one + 1)
    reconstruct(capped, graph, groups, kept, images)
    expected = few.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in capped.state_dict().items())


def test_a_network_that_lost_nothing_that_counts_is_found_again():
    """Channels that copy another one go: the least squares give their part to the one that stays."""
    net = network(
        lambda m, x: m.d(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 8, 3), b=conv(8, 6, 3), d=conv(6, 4)
    )
    with torch.no_grad():
        net.a.weight[4:] = net.a.weight[:4]
        net.a.bias[4:] = net.a.bias[:4]
    graph = trace(net, (1, 3, 10, 10))
    groups = couple(graph)
    kept = {"a": (0, 1, 2, 3)}
    smaller = cut(net, graph, groups, kept)
    images, others = torch.randn(64, 3, 10, 10), torch.randn(16, 3, 10, 10)
    before = error(smaller, net, others)
    reconstruct(smaller, graph, groups, kept, images)
    assert error(smaller, net, others) < 1e-3 * before


def test_batch_norm_says_what_it_then_sees():
    """In training mode on the same images the network computes the same: its statistics are the true ones."""
    graph, groups, kept, smaller = halved(residual())
    images = torch.randn(48, 3, 10, 10)
    reconstruct(smaller, graph, groups, kept, images)
    with torch.no_grad():
        wanted = smaller(images)
        found = copy.deepcopy(smaller).train()(images)
    assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())


def test_it_is_a_function_of_its_seed():
    net = residual()
    states = []
    for seed in (0, 0, 1):
        graph, groups, kept, smaller = halved(net)
        reconstruct(smaller, graph, groups, kept, torch.arange(64 * 300.0).sin().reshape(64, 3, 10, 10), seed)
        states.append(smaller.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["depthwise", "frozen", "shared"])
def test_what_is_not_its_own_stays_as_it_was(kind: str):
    def forward(m, x):
        x = F.relu(m.a(x))
        x = F.relu(m.w(x))
        return m.d(F.relu(m.w(x)) if kind == "shared" else x)

    middle = conv(8, 8, 3, groups=8) if kind == "depthwise" else conv(8, 8, 3)
    net = network(forward, a=conv(3, 8, 3), w=middle, d=conv(8, 4))
    if kind == "frozen":
        net.w.requires_grad_(False)
    graph, groups, kept, smaller = halved(net)
    before = smaller.w.weight.clone()
    reconstruct(smaller, graph, groups, kept, torch.randn(32, 3, 10, 10))
    assert torch.equal(smaller.w.weight, before)
    assert not torch.equal(smaller.d.weight, net.d.weight[:, : smaller.d.in_channels])
