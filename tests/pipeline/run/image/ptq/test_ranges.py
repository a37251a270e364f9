"""The observer of each tensor: chosen on images no observer has seen, and better on others than any one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prune_networks import conv, network
from torch import nn

from paredown.calibration.observers import Several
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.run.image.ptq.ranges import FEWEST, MOST, Simulation, choose, images_for

SHAPE = (1, 3, 12, 12)
INPUT = (0.0, 1.0)


def case() -> tuple:
    """Two branches: outliers that say nothing in one, outliers that are all that matters in the other."""
    torch.manual_seed(0)
    net = network(
        lambda m, x: m.f((torch.relu(m.b(torch.relu(m.a(x)))) + torch.relu(m.d(x))).mean((2, 3))),
        a=conv(3, 16, 3), b=conv(16, 16, 3), d=conv(3, 16, 3), f=nn.Linear(16, 8),
    ).eval()  # fmt: skip
    images = torch.rand(64, *SHAPE[1:], generator=torch.Generator().manual_seed(1)) ** 3
    images[::7] *= 0.1
    graph = trace(net, SHAPE)
    return graph, images


def candidates(graph, images) -> dict:
    found: dict[str, Several] = {}
    for image in images:
        for name, value in graph.run(image[None]).items():
            found.setdefault(name, Several()).update(value.numpy())
    each = {name: several.ranges() for name, several in found.items()}
    return {name: {tensor: r[name] for tensor, r in each.items()} for name in ("minmax", "percentile", "mse")}


def divergence(graph, ranges, images) -> float:
    """Of the integer graph itself, by the reference interpreter."""
    integer = quantize(graph, ranges, input_range=INPUT)
    out = graph.outputs[0]
    wanted = graph.run(images)[out].numpy()
    codes = reference.predict(integer, integer.input.out.quantize(images.numpy()))[0]
    error = integer[integer.outputs[0]].out.dequantize(codes) - wanted
    return float(np.square(error).sum() / np.square(wanted).sum())


def test_the_choice_is_no_worse_than_any_observer_alone():
    graph, images = case()
    found = candidates(graph, images[:40])
    held, fresh = images[40:52], images[52:]
    choice = choose(graph, found, held, input_range=INPUT)
    alone = {name: divergence(graph, ranges, held) for name, ranges in found.items()}
    assert choice.after <= choice.before
    assert divergence(graph, choice.ranges, held) <= 1.02 * min(alone.values())
    assert divergence(graph, choice.ranges, fresh) < max(
        divergence(graph, ranges, fresh) for ranges in found.values()
    )
    assert set(choice.observers) == {node.name for node in graph}
    assert all(choice.ranges[t] == found[name][t] for t, name in choice.observers.items())
    assert sum(choice.counts.values()) == len(graph.nodes)


def test_the_simulation_is_near_the_integer_graph():
    graph, images = case()
    ranges = candidates(graph, images[:40])["minmax"]
    simulated = Simulation(graph, images[40:], INPUT, "minmax").divergence(ranges)
    assert simulated == pytest.approx(divergence(graph, ranges, images[40:]), rel=0.1)


def test_what_a_change_does_not_reach_is_not_computed_again(monkeypatch):
    from paredown.pipeline.run.image.ptq import ranges as module

    graph, images = case()
    ranges = candidates(graph, images[:8])["minmax"]
    network = Simulation(graph, images[:2], INPUT, "minmax")
    network.settle(ranges)
    computed = []
    apply = module.apply
    monkeypatch.setattr(module, "apply", lambda node, *x: computed.append(node.name) or apply(node, *x))
    plain = network.divergence(ranges)
    assert computed == []
    last = [node.name for node in graph if node.kind == "linear"]
    wider = ranges | {last[0]: tuple(2 * end for end in ranges[last[0]])}
    changed = network.divergence(wider)
    assert computed == last
    assert changed != plain
    fresh = Simulation(graph, images[:2], INPUT, "minmax")
    assert fresh.divergence(wider) == changed  # to the bit, whatever was computed before


def test_trained_and_given_scales_are_left_alone():
    graph, images = case()
    network = Simulation(graph, images[:1], INPUT, "minmax")
    shared = network.sharing(candidates(graph, images[:2])["minmax"])
    names = [name for group in shared for name in group]
    assert len(names) == len(set(names))
    assert graph.nodes[0].name not in names


def test_large_networks_are_looked_at_on_fewer_images():
    graph, _ = case()
    assert images_for(graph, 100) == MOST
    assert images_for(graph, 3) == 3

    class Large:
        nodes, outputs, macs = graph.nodes, graph.outputs, 10**12
        consumers = graph.consumers

        def __iter__(self):
            return iter(self.nodes)

    assert images_for(Large(), 100) == FEWEST
