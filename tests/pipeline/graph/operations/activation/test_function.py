"""Any function of one value: torch's floats, all 256 codes on both runtimes, and where they run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import ranges_of
from operation_checks import ALL, RUNTIMES, assert_cut, assert_float, codes_of
from prune_networks import conv, network

from paredown.pipeline.graph.operations.activation.function import CHAINS, chain
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.parity import compare, every_table

SHAPE = (1, 4, 8, 8)
INSIDE = {
    "mish": F.mish, "softplus": F.softplus, "softplus twice as steep": lambda x: F.softplus(x, 2.0),
    "log_sigmoid": F.logsigmoid, "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu of 0.5": lambda x: F.elu(x, 0.5), "selu": F.selu, "celu": lambda x: F.celu(x, 0.7), "exp": torch.exp,
    "abs": torch.abs, "floor": torch.floor, "ceil": torch.ceil, "square": lambda x: x**2,
}  # fmt: skip
LOOKED_UP = {
    "erf": torch.erf, "sin": torch.sin, "round": torch.round, "sign": torch.sign,
    "sqrt": lambda x: (x + 9).sqrt(),
    "atan": torch.atan, "cube": lambda x: x**3, "hardshrink": F.hardshrink, "remainder": lambda x: x % 0.7,
    "above": lambda x: x > 0.2, "softplus that ends": lambda x: F.softplus(x, 1.0, 1.0),
    "reciprocal": lambda x: 1 / (x + 9), "tanhshrink": F.tanhshrink,
}  # fmt: skip
EVERY = {**INSIDE, **LOOKED_UP}


def together(functions: dict) -> torch.nn.Module:
    """One network of all, since a program takes a second to make."""
    return network(lambda m, x: tuple(function(x) for function in functions.values()))


@pytest.mark.parametrize(
    "low_high",
    [(-0.3, 1.0), *(pytest.param(each, marks=pytest.mark.slow) for each in ((-3.0, 3.0), (-8.0, 6.5)))],
)
@pytest.mark.parametrize("inside", [True, False])
def test_all_256_codes_are_the_runtimes_and_a_plain_loops(inside, low_high):
    functions = INSIDE if inside else LOOKED_UP
    graph = trace(together(functions), SHAPE)
    x = torch.linspace(*low_high, 256).reshape(SHAPE)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}
    integer = quantize(graph, ranges, input_range=low_high)
    for runtime in RUNTIMES.values():
        lowered = runtime.lower_integer(integer)
        assert compare(integer, runtime.load(lowered.data), ALL).differing == 0
        assert not inside or (lowered.subgraphs, lowered.undelegated) == (1, ())
    made = dict(zip(functions, reference.predict(integer, ALL), strict=True))
    for name, output in zip(functions, integer.outputs, strict=True):
        node = integer[output]
        if node.kind != "function" or node.inputs != ("input",):
            continue  # what reads an affine is judged by the runtimes alone
        assert (chain(node.attrs) is not None) == inside
        real = functions[name](torch.from_numpy(integer.input.out.dequantize(ALL)).double()).double()
        wanted = [
            max(-128, min(127, round(v / node.out.scale) + node.out.zero_point))
            for v in real.ravel().tolist()
        ]
        assert made[name].ravel().tolist() == wanted, name


@pytest.mark.parametrize(
    "name", ["mish", "erf", *(pytest.param(n, marks=pytest.mark.slow) for n in ("above", "elu of 0.5"))]
)
def test_the_float_programs_compute_what_torch_computes(name):
    assert_float(network(lambda m, x: EVERY[name](m.a(x)) * 1.0, a=conv(4, 4)), SHAPE)


def test_it_is_proved_in_a_network():
    net = network(lambda m, x: m.b(F.mish(m.a(x))), a=conv(4, 8, 3), b=conv(8, 5))
    graph = trace(net, SHAPE)
    integer = quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))
    for runtime in RUNTIMES.values():
        proof = every_table(integer, lambda made, r=runtime: r.load(r.lower_integer(made).data))
        assert [(apart.values, apart.differing) for apart in proof.values()] == [(256, 0)]


@pytest.mark.parametrize(("name", "free"), [("mish", True), ("exp", False)])
def test_channels_pass_where_zero_stays_zero(name, free):
    net = network(lambda m, x: m.c(m.b(EVERY[name](m.a(x)))), a=conv(4, 8, 3), b=conv(8, 6), c=conv(6, 5))
    groups = assert_cut(net, SHAPE)
    assert bool(groups["a"].locked) != free
    assert not groups["b"].locked


def test_what_is_infinite_is_the_last_code():
    graph = trace(network(lambda m, x: (x.abs()).log()), SHAPE)
    integer = quantize(graph, {n.name: (-4.0, 1.0) for n in graph}, input_range=(0.0, 1.0))
    assert codes_of(integer, np.full((1, 4, 8, 8), -128, np.int8)).max() == -128


def test_every_chain_is_of_a_known_operation():
    assert all(hasattr(torch.ops.aten, name) for name in CHAINS)
