"""softmax and log_softmax: against torch, exact on both runtimes in one delegate; what they lock."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import Builder, inputs_for, ranges_of
from operation_checks import assert_exact, both, usual_runtimes
from prune_networks import choose, conv, graph_outputs, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import difference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError
from paredown.targets.mcu import tflm

kinds = pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
SHAPES = {
    "(1, 5, 6, 7) by 1": 1,
    "(1, 5, 6, 7) by -1": -1,
    "(1, 5, 9) by 1": 1,
    "(1, 5, 9) by 2": 2,
    "(1, 9) by 1": 1,
}


def shape_of(name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in name[1 : name.index(")")].split(","))


@both
@kinds
@pytest.mark.parametrize("name", SHAPES)
def test_any_axis_is_computed_as_torch_does_and_exact(runtime, kind, name):
    net = network(lambda m, x: getattr(F, kind)(x, SHAPES[name]))
    graph = trace(net, shape_of(name))
    x = 3 * torch.randn((2, *graph.nodes[0].shape[1:]), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph_outputs(graph, x)[0], outputs(net, x)[0], rtol=1e-5, atol=1e-6)
    assert_exact(quantize(graph, ranges_of(graph), input_range=(-4.0, 3.0)), runtime, 6)


@both
@kinds
@pytest.mark.parametrize("scale", [0.003, 0.05, 0.4, 2.0])
def test_it_is_exact_at_any_scale(runtime, kind, scale):
    b = Builder(7, (1, 10, 4, 5), scale)
    out = (1 / 255, -128) if kind == "softmax" else (scale * 0.9, 120)
    assert_exact(b.graph(b.put(kind, ("input",), (1, 10, 4, 5), *out)), runtime, 12)


@kinds
def test_the_integers_are_those_of_a_plain_loop(kind):
    b = Builder(3, (1, 6, 2, 3), 0.07)
    graph = b.graph(b.put(kind, ("input",), (1, 6, 2, 3), 0.05, -7))
    x = inputs_for(graph, 1)[:1]
    found = reference.predict(graph, x)[0]
    for i, j in np.ndindex(2, 3):
        source = graph.input.out
        powers = [math.exp((int(code) - source.zero_point) * source.scale) for code in x[0, :, i, j]]
        for c, power in enumerate(powers):
            real = power / sum(powers)
            code = round((math.log(real) if kind == "log_softmax" else real) / graph.nodes[1].out.scale) - 7
            assert found[0, c, i, j] == max(-128, min(127, code))


def test_a_softmax_can_reach_one():
    graph = trace(network(lambda m, x: F.softmax(x, 1)), (1, 4))
    ranges = {name: (0.0, 0.3) for name in ranges_of(graph)}
    node = quantize(graph, ranges, input_range=(-20.0, 20.0)).nodes[1]
    assert node.out.dequantize(np.int8([127]))[0] == pytest.approx(1, abs=1e-5)


def classifier(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.relu(m.a(x))
    return F.softmax(m.f(x.mean((2, 3))), 1), F.softmax(F.relu(m.b(x)), 1).mean((2, 3))


def ends() -> nn.Module:
    return network(classifier, a=conv(3, 8, 3), b=conv(8, 6), f=nn.Linear(8, 5))


@both
def test_a_network_with_it_is_exact(runtime):
    graph = trace(ends(), (1, 3, 8, 8))
    assert_exact(quantize(graph, ranges_of(graph), input_range=(-0.3, 1.0)), runtime, 6)


def test_it_locks_its_channels_and_says_why():
    net = ends()
    graph = trace(net, (1, 3, 8, 8))
    groups = {group.name: group for group in couple(graph)}
    assert not groups["a"].locked and "every channel counts" in groups["b"].describe()
    x = torch.randn(2, 3, 8, 8)
    kept = choose([groups["a"]], 1)
    assert outputs(cut(net, graph, tuple(groups.values()), kept), x)[0].shape == (2, 5)


@both
def test_the_float_program_computes_it_too(runtime):
    net = network(lambda m, x: F.softmax(m.a(x), 1), a=conv(3, 4))
    x = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    found = runtime.load(runtime.lower_float(trace(net, (1, 3, 5, 6))).data)(x.numpy())[0]
    np.testing.assert_allclose(found, outputs(net, x)[0].numpy(), rtol=1e-5, atol=1e-6)


def test_litert_micro_computes_it_too():
    graph = trace(ends(), (1, 3, 8, 8))
    integer = quantize(graph, ranges_of(graph), input_range=(-0.3, 1.0))
    x = inputs_for(integer)
    found = tflm.run(litert.lower_integer(integer).data, x).outputs[0]
    assert difference(reference.predict(integer, x)[0], found).max_lsb <= 2


def test_targets_are_told_of_it():
    card = load_card("host")
    for placement in inspect_graph(
        trace(ends(), (1, 3, 8, 8)), card, usual_runtimes(card), (0.0, 1.0), "n"
    ).placements:
        assert placement.leaving == () and "softmax" in {operation.kind for operation in placement.operations}


def test_the_batch_is_no_axis_for_it():
    with pytest.raises(InputError, match="over axis 0 of 4 is not known"):
        trace(network(lambda m, x: F.softmax(x, 0)), (1, 3, 4, 4), floats=False)
