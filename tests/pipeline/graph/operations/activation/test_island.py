"""What has no integer form: torch's floats, on both runtimes as the integer graph has it, within a code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import inputs_for, ranges_of
from operation_checks import RUNTIMES, assert_cut, assert_float, both, executorch, litert
from prune_networks import conv, network
from torch import Tensor

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.parity import compare, difference
from paredown.targets.errors import InputError

SHAPE = (1, 4, 5, 6)
PLACES = torch.tensor([0, 2, 2])
ISLANDS = {
    "cumsum": lambda x: x.cumsum(1), "argmax": lambda x: x.argmax(1, keepdim=True),
    "topk": lambda x: x.topk(2, 1)[0], "sort": lambda x: x.sort(2, descending=True)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(1)), "minimum": lambda x: torch.minimum(x, x * 0.5),
    "division": lambda x: x / (1 + x.abs()), "power": lambda x: (x.abs() + 0.1) ** (x * 0.5),
    "where": lambda x: torch.where(x > 0.2, x, 0.3), "and": lambda x: torch.logical_and(x > 0, x < 1),
    "norm": lambda x: x.norm(dim=1, keepdim=True), "shares": lambda x: F.normalize(x, 1.0, dim=1),
    "deviation": lambda x: x.std(1), "product": lambda x: x.prod(1),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x), "index": lambda x: x.index_select(1, PLACES),
    "windows": lambda x: x.unfold(2, 3, 1),
    "a constant": lambda x: torch.maximum(x, torch.linspace(-1, 1, 6)),
    "odd pool": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, divisor_override=3),
    "a border of halves": lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
    "angle": lambda x: torch.atan2(x, x.flip(1)),
}  # fmt: skip


def built(name: str) -> torch.nn.Module:
    return network(lambda m, x: ISLANDS[name](m.a(x)), a=conv(4, 4))


def calibrated(graph: Graph) -> IntegerGraph:
    return quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))


@pytest.mark.parametrize("name", ISLANDS)
def test_a_batch_is_computed_image_by_image_and_stored(name):
    net = built(name)
    graph = trace(net, SHAPE)
    assert any(operation(node.kind).island for node in graph)
    again = Graph.load(*graph.dump())
    x = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.cat([net(x[i : i + 1]).float() for i in range(3)])
    for each in (graph, again):
        torch.testing.assert_close(each.run(x)[each.outputs[0]], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runtime", [litert, pytest.param(executorch, marks=pytest.mark.slow)])
def test_programs_are_within_a_code_of_the_integer_graph(runtime):
    def run(m: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x)
        return tuple(each(y) for each in ISLANDS.values())

    net = network(run, a=conv(4, 4))
    integer = calibrated(trace(net, SHAPE))
    integer = IntegerGraph.load(*integer.dump())
    runner = runtime.load(runtime.lower_integer(integer).data)
    for x in inputs_for(integer, 3):
        pairs = zip(ISLANDS, reference.predict(integer, x[None]), runner(x[None]), strict=True)
        for name, ours, theirs in pairs:
            apart = difference(ours, theirs)
            assert apart.max_lsb <= operation("island").tolerance and apart.share < 0.02, name


@pytest.mark.parametrize(
    "name",
    [
        "cumsum",
        "windows",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("division", "norm", "odd pool")),
    ],
)
def test_the_float_programs_compute_what_torch_computes(name):
    assert_float(built(name), SHAPE)


@both
def test_random_shapes_and_axes(runtime):
    rng = np.random.default_rng(3)
    for _ in range(2 if runtime is RUNTIMES["executorch"] else 4):
        shape = (1, *(int(n) for n in rng.integers(2, 7, int(rng.integers(1, 4)))))
        axis = int(rng.integers(1, len(shape)))
        graph = trace(network(lambda m, x, axis=axis: torch.maximum(x.cumsum(axis), x * 0.5)), shape)
        integer = calibrated(graph)
        found = compare(integer, runtime.load(runtime.lower_integer(integer).data), inputs_for(integer, 2))
        assert found.values and found.max_lsb <= 1


def test_zero_by_zero_is_zero():
    graph = trace(network(lambda m, x: x / (x * 2)), SHAPE)
    integer = calibrated_plain(graph)
    x = np.full((1, *SHAPE[1:]), integer.input.out.zero_point, np.int8)
    for runtime in RUNTIMES.values():
        (made,) = runtime.load(runtime.lower_integer(integer).data)(x)
        assert (made == integer.nodes[-1].out.zero_point).all()


def calibrated_plain(graph: Graph) -> IntegerGraph:
    return quantize(graph, {node.name: (-1.0, 1.0) for node in graph}, input_range=(-3.0, 3.0))


# -- coupling ----------------------------------------------------------------------------------------------


def test_channels_are_tied_where_each_is_made_of_its_own():
    def run(m: torch.nn.Module, x: Tensor) -> Tensor:
        return m.c(m.d(torch.maximum(m.a(x), m.b(x))))

    groups = assert_cut(network(run, a=conv(4, 8), b=conv(4, 8), c=conv(6, 3), d=conv(8, 6)), SHAPE)
    assert not groups["a"].locked and "tied" in groups["a"].describe()


def test_what_counts_channels_together_locks_them_and_says_why():
    net = network(lambda m, x: m.b(m.a(x).cumsum(1)), a=conv(4, 8), b=conv(8, 3))
    groups = {group.name: group for group in couple(trace(net, SHAPE))}
    assert "aten::cumsum.default, which is computed in float as a whole" in groups["a"].locked


# -- what cannot -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.flatten(1).repeat(1, 3).argmax(1, keepdim=True), "says which of 360; 8 bits hold 256"),
        (lambda x: torch.fft.rfft2(x).real, "complex"),
        (lambda x: x + torch.rand_like(x), "is random"),
        (lambda x: x.cumsum(1).sum(), "batch"),
    ],
)
def test_what_cannot_stay_in_float_says_why(function, why):
    with pytest.raises(InputError, match=why):
        trace(network(lambda m, x: function(x)), SHAPE)


def test_whole_numbers_beyond_a_byte_are_refused():
    graph = trace(network(lambda m, x: (m.a(x) * 1000).long().float() * 1.0, a=conv(4, 4)), SHAPE)
    with pytest.raises(InputError, match="whole numbers over more than 255"):
        calibrated(graph)


def test_places_of_equal_values_are_refused_where_their_order_is_not_kept():
    graph = trace(network(lambda m, x: x.topk(2, 1)[1]), SHAPE)
    integer = calibrated(graph)
    with pytest.raises(InputError, match=r"no certain order in ExecuTorch.*lower to LiteRT alone"):
        RUNTIMES["executorch"].lower_integer(integer)
    litert = RUNTIMES["litert"]
    x = np.repeat(inputs_for(integer, 2)[:, :1], 4, 1)
    assert compare(integer, litert.load(litert.lower_integer(integer).data), x).differing == 0
