"""Numbers times and plus, clamps, hardsigmoid: torch's in float, a requantization on int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import ranges_of
from operation_checks import assert_cut, assert_float, assert_network_exact
from prune_networks import conv, network

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, quantize
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6, 5)
FUNCTIONS = {
    "times": (lambda x: 2.5 * x, ["affine"]),
    "over": (lambda x: x / 3, ["affine"]),
    "plus": (lambda x: x + 0.5, ["affine"]),
    "minus": (lambda x: x - 0.25, ["affine"]),
    "from": (lambda x: 1 - x, ["affine"]),
    "negative": (lambda x: -x, ["affine"]),
    "two in a row are one": (lambda x: (2 * x - 1) / 4, ["affine"]),
    "hardswish by hand": (lambda x: x * F.relu6(x + 3.0) / 6.0, ["hardsigmoid", "mul"]),
    "another slope": (lambda x: x * F.relu6(x + 3.0) / 5.0, ["affine", "relu6", "mul", "affine"]),
    "hardsigmoid": (F.hardsigmoid, ["hardsigmoid"]),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), ["clamp"]),
    "from below": (lambda x: x.clamp(min=-0.3), ["clamp"]),
    "from above": (lambda x: x.clamp_max(0.4), ["clamp"]),
    "hardtanh": (F.hardtanh, ["clamp"]),
    "away from zero": (lambda x: x.clamp(0.1, 0.6), ["affine", "clamp", "affine"]),
    "below zero": (lambda x: x.clamp(max=-0.2), ["affine", "clamp", "affine"]),
    "a clamp that is a ReLU": (lambda x: x.clamp(min=0), ["relu"]),
    "a clamp that is a ReLU6": (lambda x: F.hardtanh(x, 0.0, 6.0), ["relu6"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_float_network_computes_what_torch_computes(name):
    function, kinds = FUNCTIONS[name]
    graph = assert_float(network(lambda m, x: function(x)), SHAPE)
    assert [node.kind for node in graph][1:] == kinds


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_runtimes_compute_its_codes(name):
    function = FUNCTIONS[name][0]
    net = network(lambda m, x: m.b(function(m.a(x))), a=conv(4, 8, 3), b=conv(8, 5))
    assert_network_exact(net, SHAPE)


@pytest.mark.parametrize("function", [lambda x: 1 - x / 2, F.hardsigmoid, lambda x: x.clamp(-0.5, 0.5)])
def test_tensors_that_are_no_maps_are_exact_too(function):
    net = network(lambda m, x: m.b(function(m.a(x.flatten(1)))), a=torch.nn.Linear(120, 7),
                  b=torch.nn.Linear(7, 5))  # fmt: skip
    assert_float(net, SHAPE)
    assert_network_exact(net, SHAPE)


def test_codes_are_those_of_plain_arithmetic():
    rng = np.random.default_rng(0)
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    for _ in range(20):
        source = Affine(float(np.float32(10 ** rng.uniform(-2, 0))), int(rng.integers(-128, 128)))
        out = Affine(float(np.float32(source.scale * 10 ** rng.uniform(-1, 1))), int(rng.integers(-128, 128)))
        scale, shift = float(rng.uniform(-3, 3)), float(rng.uniform(-2, 2))
        nodes = (
            IntegerNode("input", "input", (), x.shape, source),
            IntegerNode("y", "affine", ("input",), x.shape, out, attrs={"scale": scale, "shift": shift}),
        )
        (found,) = reference.predict(IntegerGraph(nodes, ("y",)), x)
        real = (x.astype(np.float64) - source.zero_point) * source.scale
        wanted = np.clip(np.rint((scale * real + shift) / out.scale) + out.zero_point, -128, 127)
        # the shift is a whole number of the input's units times the scale: half of one may be lost
        assert np.abs(found - wanted).max() <= np.ceil(0.5 * abs(scale) * source.scale / out.scale) + 1


def test_a_clamp_is_int8s_own():
    integer = assert_network_exact(network(lambda m, x: F.hardtanh(m.a(x) * 9), a=conv(4, 8, 3)), SHAPE)
    out = integer[integer.outputs[0]].out
    assert np.isclose((-128 - out.zero_point) * out.scale, -1, atol=out.scale)
    assert np.isclose((127 - out.zero_point) * out.scale, 1, atol=out.scale)


@pytest.mark.parametrize(
    ("function", "free"),
    [(lambda x: 2 * x, True), (lambda x: x.clamp(-1, 1), True), (lambda x: 2 * x + 1, False),
     (F.hardsigmoid, False), (lambda x: x * F.relu6(x + 3) / 6, True)],
)  # fmt: skip
def test_channels_pass_through_where_zero_stays_zero(function, free):
    net = network(lambda m, x: m.c(m.b(function(m.a(x)))), a=conv(4, 8, 3), b=conv(8, 6), c=conv(6, 5))
    groups = assert_cut(net, SHAPE)
    assert bool(groups["a"].locked) != free and not groups["b"].locked


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: 2 / x, "reciprocal"),
        (lambda x: x / (x + 1), "divides by a tensor"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounds, or divides by zero"),
        (lambda x: x / torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1), "takes a constant of"),
    ],
)
def test_what_is_refused_says_why(function, why):
    with pytest.raises(InputError, match=why):
        trace(network(lambda m, x: function(x)), SHAPE, floats=False)


@pytest.mark.parametrize("function", [F.hardsigmoid, F.hardtanh])
def test_a_clamp_of_what_reaches_too_far_says_so_and_does_not_move(function):
    net = network(lambda m, x: function(m.a(x) * 1e4), a=conv(4, 8, 3)).eval()
    graph = trace(net, SHAPE)
    with pytest.raises(InputError, match="times as far as its limits"):
        quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))
