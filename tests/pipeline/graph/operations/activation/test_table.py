"""Functions of one value: against torch in float, and all 256 codes on both runtimes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operation_checks import (
    ALL,
    RUNTIMES,
    assert_codes,
    assert_cut,
    assert_float,
    assert_network_exact,
    codes_of,
    unary,
    usual_runtimes,
)
from prune_networks import conv, network

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import Affine, IntegerGraph, Scales
from paredown.pipeline.lower.parity import check, compare, every_table
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6, 5)
FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "elu": F.elu, "gelu": F.gelu}


def output(kind: str, source: Affine) -> Affine:
    """The scale that calibration would give, or that the kernels prescribe."""
    fixed = operation(kind).fixed(None)
    if fixed is not None:
        return Affine(*fixed)
    made = FUNCTIONS[kind](torch.from_numpy(source.dequantize(ALL))).numpy()
    low, high = min(0.0, float(made.min())), max(1e-3, float(made.max()))
    scale = float(np.float32((high - low) / 255))
    return Affine(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_the_float_network_computes_what_torch_computes(kind):
    graph = assert_float(network(lambda m, x: FUNCTIONS[kind](x)), SHAPE)
    assert [node.kind for node in graph] == ["input", kind]


SCALES = (1.0, 0.75, 0.5, 0.03125, 0.01, 0.0013)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("scale", SCALES)
def test_all_256_codes_are_the_runtimes_and_arithmetics(kind, scale):
    """Also at scales that would put values halfway between two codes."""
    for zero in (-128, 5, 127):
        graph = settled(kind, Affine(float(np.float32(scale)), zero))
        source, out = graph["input"].out, graph["y"].out
        real = torch.from_numpy(source.dequantize(ALL)).double()
        wanted = np.rint(FUNCTIONS[kind](real).numpy() / out.scale) + out.zero_point
        assert np.array_equal(codes_of(graph), np.clip(wanted, -128, 127).astype(np.int8))
        assert source.scale / scale - 1 < 1e-3
        assert_codes(graph, ALL, {})


def settled(kind: str, source: Affine) -> IntegerGraph:
    """One operation with scales as `quantize` chooses them."""
    graph = unary(kind, source, output(kind, source))
    fixed = operation(kind).fixed(None)
    scales = Scales({n.name: n.out for n in graph}, lambda name: name, {}, {"y"} if fixed else set())
    operation(kind).widen(graph["y"], scales)
    nodes = (replace(node, out=scales.affine(node.name)) for node in graph)
    return IntegerGraph(tuple(nodes), graph.outputs)


def test_a_value_halfway_between_two_codes_moves_a_scale():
    source = Affine(0.5, 5)
    before = unary("elu", source, output("elu", source))
    litert = RUNTIMES["litert"]
    assert compare(before, litert.load(litert.lower_integer(before).data), ALL).differing
    after = settled("elu", source)
    assert 0 < after["y"].out.scale / before["y"].out.scale - 1 < 1e-3
    assert not compare(after, litert.load(litert.lower_integer(after).data), ALL).differing


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_it_is_exact_in_a_network_and_proved_there(kind):
    net = network(lambda m, x: m.b(FUNCTIONS[kind](m.a(x))), a=conv(4, 8, 3), b=conv(8, 5))
    integer = assert_network_exact(net, SHAPE)
    for runtime in RUNTIMES.values():
        load = lambda graph, r=runtime: r.load(r.lower_integer(graph).data)  # noqa: E731
        proof = every_table(integer, load)
        assert {integer[name].kind for name in proof} == {kind}
        assert [(apart.values, apart.differing) for apart in proof.values()] == [(256, 0)]
        found = check(integer, load(integer), load, np.zeros((1, *SHAPE[1:]), np.int8), probes=1)
        assert found.kinds[kind].values == 256 + np.prod(integer[next(iter(proof))].shape)


def test_a_table_that_differs_is_named():
    class Wrong:
        def __init__(self, graph):
            self.graph = graph

        def __call__(self, x):
            return tuple(codes + (codes == 0) for codes in [codes_of(self.graph, x)])

    source = Affine(0.05, 0)
    graph = unary("tanh", source, Affine(1 / 128, 0))
    assert every_table(graph, Wrong)["y"].differing == int((codes_of(graph) == 0).sum()) > 0
    found = check(graph, Wrong(graph), Wrong, np.full((1, 4, 8, 8), 100, np.int8))
    assert found.first.startswith("y (tanh): ")


@pytest.mark.parametrize(
    ("kind", "free"), [("tanh", True), ("gelu", True), ("elu", True), ("sigmoid", False)]
)
def test_channels_pass_through_where_zero_stays_zero(kind, free):
    net = network(lambda m, x: m.b(FUNCTIONS[kind](m.a(x))), a=conv(4, 8, 3), b=conv(8, 6), c=conv(6, 5))
    both = network(lambda m, x: m.c(m.b(FUNCTIONS[kind](m.a(x)))), **dict(net.named_children()))
    groups = assert_cut(both, SHAPE)
    assert bool(groups["a"].locked) != free
    assert free or "makes no zero of zero" in groups["a"].locked
    assert not groups["b"].locked


def test_a_gelu_by_tanh_and_other_alphas_are_no_tables_of_kernels():
    """They are functions of their own, which `test_function.py` looks at."""
    for function, why in (
        (lambda x: F.gelu(x, approximate="tanh"), "gelu is approximated by tanh"),
        (lambda x: F.elu(x, 0.5), "elu has an alpha or a scale other than 1"),
    ):
        net = network(lambda m, x, function=function: function(x))
        assert [node.kind for node in trace(net, SHAPE)] == ["input", "function"]
        with pytest.raises(InputError, match=why):
            trace(net, SHAPE, floats=False)


@pytest.mark.parametrize("kind", ["gelu", "elu"])
def test_inspect_says_that_nothing_leaves_the_delegate(kind):
    net = network(lambda m, x: m.b(FUNCTIONS[kind](m.a(x))), a=conv(4, 8, 3), b=conv(8, 5))
    card = load_card("host")
    report = inspect_graph(trace(net, SHAPE), card, usual_runtimes(card), (-3.0, 3.0), "net")
    leaving = {place.runtime: [operation.kind for operation in place.leaving] for place in report.placements}
    assert leaving == {name: [] for name in RUNTIMES}
