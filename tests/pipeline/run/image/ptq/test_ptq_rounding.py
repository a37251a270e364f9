"""Better int8 without training: nearer to the float network on images that nothing was chosen on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from operation_checks import assert_codes
from prune_networks import conv, network
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.run.image.ptq.rounding import improve

SHAPE = (1, 3, 12, 12)


@pytest.fixture(scope="module")
def case() -> tuple:
    net = network(
        lambda m, x: m.f(torch.relu(m.c(torch.relu(m.d(torch.relu(m.b(torch.relu(m.a(x)))))))).mean((2, 3))),
        a=conv(3, 16, 3), b=conv(16, 24, 3), d=conv(24, 24, 3, groups=24), c=conv(24, 16, 3),
        f=nn.Linear(16, 8),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(48, *SHAPE[1:], generator=generator) * torch.rand(48, 1, 1, 1, generator=generator)
    graph = trace(net, SHAPE)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(images[:24]).items()}
    return graph, quantize(graph, ranges, input_range=(0.0, 1.0)), images


def error(case: tuple, integer: IntegerGraph) -> float:
    """Mean square on the images that were held out, as a share of the float outputs' variance."""
    graph, _, images = case
    codes = integer.input.out.quantize(images[24:].numpy())
    wanted = graph.run(images[24:])[graph.outputs[0]].numpy()
    found = integer[integer.outputs[0]].out.dequantize(reference.predict(integer, codes)[0])
    return float(np.square(found - wanted).mean() / wanted.var())


@pytest.mark.parametrize("options", [{"codes": False}, {"biases": False}, {}])
def test_it_is_nearer_on_images_held_out(case, options):
    graph, integer, images = case
    better = improve(graph, integer, images[:24], **options)
    assert error(case, better) < error(case, integer)
    for node, before in zip(better, integer, strict=True):
        assert (node.name, node.out, node.low, node.high) == (
            before.name,
            before.out,
            before.low,
            before.high,
        )
        if node.weight is not None:
            assert np.array_equal(node.weight_scale, before.weight_scale)
            assert np.abs(node.weight).max() <= 127
            alone = options.get("codes") is False or node.attrs.get("groups", 1) > 1
            assert np.array_equal(node.weight, before.weight) == alone
            assert np.array_equal(node.bias, before.bias) == (options.get("biases") is False)
    assert_codes(better, better.input.out.quantize(images[24:26].numpy()), {})


def test_biases_take_away_what_outputs_are_off_by_on_average(case):
    graph, integer, images = case
    first = next(node for node in integer if node.weight is not None)
    wrong = (replace(n, bias=n.bias + 500) if n is first else n for n in integer)
    better = improve(graph, IntegerGraph(tuple(wrong), integer.outputs), images[:24], codes=False)
    assert np.abs(better[first.name].bias - first.bias).max() < 250


def test_trained_codes_stay(case):
    graph, _, images = case
    nodes = []
    for node in graph:
        if node.weight is not None:
            scale = node.weight.flatten(1).abs().amax(1) / 7
            across = scale.reshape(-1, *[1] * (node.weight.dim() - 1))
            node = replace(node, weight=(node.weight / across).round() * across, scale=scale)
        nodes.append(node)
    trained = replace(graph, nodes=tuple(nodes))
    ranges = {name: (float(v.min()), float(v.max())) for name, v in trained.run(images[:24]).items()}
    integer = quantize(trained, ranges, input_range=(0.0, 1.0))
    better = improve(trained, integer, images[:24])
    for node, before in zip(better, integer, strict=True):
        assert node.weight is None or np.array_equal(node.weight, before.weight)
