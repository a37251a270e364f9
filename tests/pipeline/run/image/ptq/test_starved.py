"""Outputs of several parts whose sizes are worlds apart are told of, with figures."""

from __future__ import annotations

import pytest
import torch
from prune_networks import conv, network

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.run.image.ptq.starved import starved

SHAPE = (1, 3, 8, 8)


def found(forward) -> list:
    torch.manual_seed(0)
    net = network(forward, a=conv(3, 4, 3), b=conv(3, 5, 3)).eval()
    graph = trace(net, SHAPE)
    images = torch.rand(8, *SHAPE[1:])
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(images).items()}
    return starved(quantize(graph, ranges, input_range=(0.0, 1.0)), ranges)


def boxes(m, x):
    return m.a(x).relu() * 300


def test_scores_beside_boxes_are_starved():
    (part,) = found(lambda m, x: torch.cat([boxes(m, x), m.b(x).sigmoid()], 1).flatten(2).transpose(1, 2))
    assert part.part.startswith("sigmoid")
    assert part.codes == pytest.approx(part.span / part.step)
    assert part.codes < 4
    assert "of 256 codes" in part.line()
    assert "outputs of their own" in part.line()


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (boxes(m, x), m.b(x).sigmoid()),
        lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
        lambda m, x: boxes(m, x),
        lambda m, x: m.b(x).sigmoid().flatten(1),
    ],
    ids=["two outputs", "alike", "boxes alone", "scores alone"],
)
def test_others_are_not(forward):
    assert found(forward) == []
