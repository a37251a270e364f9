"""ONNX Runtime: the integer graph's own codes from kernels on codes, floats like torch's, clear errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import (
    Builder,
    Passthrough,
    Residual,
    inputs_for,
    quantized,
    random_graph,
    randomized,
    ranges_of,
)
from torch import Tensor, nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import parity, reference
from paredown.pipeline.lower.integer import IntegerGraph, beyond, quantize
from paredown.pipeline.lower.onnxruntime.optimized import optimized
from paredown.pipeline.lower.onnxruntime.program import load, lower_float, lower_integer
from paredown.pipeline.lower.predict.placement import place
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.pipeline.recipe.schema import Quantize
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError
from paredown.targets.host.host import this_machine

ONNX = RUNTIMES["onnxruntime"]
#: What a mean of a map leaves in float.
OF_A_MEAN = {"Add", "DequantizeLinear", "Mul", "QuantizeLinear", "ReduceSum"}


class Net(nn.Module):
    """A 3x3 convolution of 3 to 8 channels, two of them where a function of two wants it."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.a(x), self.b(x))


def one(function, *layers):
    return Net(lambda net, a, b: function(net.layers, a), *layers)


def two(function):
    return Net(lambda net, a, b: function(a, b))


#: Kinds whose codes must be the integer graph's own, all of them.
EXACT = {
    "hardswish": one(lambda m, x: F.hardswish(x)),
    "silu": one(lambda m, x: F.silu(x)),
    "tanh": one(lambda m, x: x.tanh()),
    "gelu": one(lambda m, x: F.gelu(x)),
    "elu": one(lambda m, x: F.elu(x)),
    "clamp": one(lambda m, x: x.clamp(-0.3, 0.4)),
    "mish": one(lambda m, x: F.mish(x)),
    "sin": one(lambda m, x: x.sin()),
    "prelu": one(lambda m, x: m[0](x), nn.PReLU(8)),
    "softmax": one(lambda m, x: x.softmax(1)),
    "log_softmax": one(lambda m, x: F.log_softmax(m[0](x.mean((2, 3))), 1), nn.Linear(8, 9)),
    "group_norm": one(lambda m, x: m[0](x), nn.GroupNorm(2, 8)),
    "layer_norm": one(lambda m, x: m[0](x.flatten(2).transpose(1, 2)), nn.LayerNorm(8)),
    "transposed": one(lambda m, x: m[0](x), nn.ConvTranspose2d(8, 6, 4, 2, 1)),
    "transposed, groups": one(lambda m, x: m[0](x), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2)),
    "dilated": one(lambda m, x: m[0](x), nn.Conv2d(8, 6, 3, padding=2, dilation=2)),
    "resized": one(lambda m, x: F.interpolate(x, size=(21, 37))),
    "bilinear": one(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "average": one(lambda m, x: F.avg_pool2d(x, 2)),
    "sliced": one(lambda m, x: x[:, 2:6, ::2, 1:-1]),
    "split": one(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "padded": one(lambda m, x: F.pad(x, (1, 2, 3, 0))),
    "reflected": one(lambda m, x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "shuffled": one(lambda m, x: F.channel_shuffle(F.pixel_unshuffle(x, 2), 2)),
    "multiplied by constants": one(lambda m, x: x * torch.linspace(-1, 1, 8).reshape(1, 8, 1, 1)),
    "largest": two(torch.maximum),
    "chosen": two(lambda a, b: torch.where(a > 0.1, a, b)),
    "argmax": one(lambda m, x: x.argmax(1)),
    "one dimension": Net(lambda net, a, b: net.layers[0](a.flatten(2)), nn.Conv1d(8, 4, 5, 2, 2)),
}
#: Kinds that may be off by one: (network, kind).
OFF_BY_ONE = {"add": two(torch.add), "sub": two(torch.sub), "mul": two(torch.mul)}


# Without VNNI the full range of weight codes saturates: see below.
full_range = pytest.mark.skipif(this_machine().saturates, reason="this processor's sums saturate")


def made(net: nn.Module, shape: tuple[int, ...] = (1, 3, 16, 16)) -> IntegerGraph:
    """With weights that no processor's sums saturate on, where this one's would."""
    graph = trace(randomized(net), shape)
    most = 63 if this_machine().saturates else 127
    return quantize(graph, ranges_of(graph), input_range=(0.0, 1.0), most=most)


def codes(graph: IntegerGraph, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (count, *graph.input.shape[1:])).astype(np.int8)


def of(graph: IntegerGraph) -> parity.Runner:
    return load(lower_integer(graph).data)


@pytest.mark.parametrize("name", EXACT)
def test_no_code_differs(name):
    graph = made(EXACT[name])
    x = np.concatenate([codes(graph), inputs_for(graph, 2)])
    assert parity.compare(graph, of(graph), x).differing == 0
    kinds, first = parity.every_operation(graph, of, x[:2])
    assert not first and not any(apart.differing for apart in kinds.values())


@pytest.mark.parametrize("name", OFF_BY_ONE)
def test_what_rounds_halves_to_even_is_at_most_one_code_off(name):
    graph = made(OFF_BY_ONE[name])
    kinds, first = parity.every_operation(graph, of, codes(graph), ONNX.tolerance)
    assert not first and kinds[name].max_lsb <= ONNX.tolerance[name] == 1
    assert kinds[name].share < 0.01 and kinds["conv2d"].differing == 0


@full_range
@settings(max_examples=6, deadline=None)
@given(st.integers(8, 10_000))
def test_random_graphs_of_every_kind_differ_in_additions_alone(seed):
    graph = random_graph(seed, expose=True)
    kinds, first = parity.every_operation(graph, of, inputs_for(graph, 2), ONNX.tolerance)
    assert not first, first
    assert {kind for kind, apart in kinds.items() if apart.differing} <= {"add"}


@full_range
def test_an_addition_of_equal_scales_meets_halves_and_stays_within_one_code():
    b = Builder(4)
    x = b.conv("input", 8)
    total = b.add(x, x, scale=b.node(x).out.scale * 4)  # every second sum is a half
    graph = b.graph(total)
    result = parity.check(graph, of(graph), of, inputs_for(graph, 3), tolerance=ONNX.tolerance)
    assert result.outputs.max_lsb == 1 and not result.first
    assert result.to_dict()["allowed"] == 1
    assert parity.check(graph, of(graph), of, inputs_for(graph, 3)).first  # a runtime that promises none


@pytest.mark.parametrize("net", [Residual(), Passthrough()], ids=["residual", "passthrough"])
def test_every_layer_is_fused_to_a_kernel_on_codes(net):
    graph = made(net)
    lowered = lower_integer(graph)
    found = optimized(lowered.data)
    layers = [node for node in graph if node.kind in {"conv2d", "linear"}]
    assert found["QLinearConv"] == len(layers)
    assert found["QLinearAdd"] == sum(node.kind == "add" for node in graph)
    assert not {"Conv", "Gemm", "MatMul", "Relu", "LeakyRelu"} & found.keys()
    assert lowered.subgraphs == 1 and {*lowered.undelegated} <= OF_A_MEAN
    onnx.checker.check_model(onnx.load_from_string(lowered.data), full_check=True)


@pytest.mark.slow
def test_bytes_are_the_same_in_this_process_and_a_new_one():
    graph = quantized(randomized(Residual()))
    program = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]; import lowering_networks as n; "
        "from paredown.pipeline.lower.onnxruntime.program import lower_integer; "
        "g = n.quantized(n.randomized(n.Residual())); "
        "print(hashlib.sha256(lower_integer(g).data).hexdigest())"
    )
    words = [sys.executable, "-c", program, *filter(None, sys.path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    import hashlib

    assert said.split() == [hashlib.sha256(lower_integer(graph).data).hexdigest()]


@pytest.mark.parametrize("name", [*EXACT, *OFF_BY_ONE])
def test_the_float_network_is_torchs(name):
    graph = trace(randomized({**EXACT, **OFF_BY_ONE}[name]), (1, 3, 16, 16))
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (found,) = load(lower_float(graph).data)(x.numpy())
    np.testing.assert_allclose(found, graph.run(x)[graph.outputs[0]].numpy(), rtol=1e-4, atol=1e-4)


def test_an_operation_without_an_operator_is_named():
    graph = made(one(lambda m, x: F.local_response_norm(x, 3)))
    with pytest.raises(InputError, match=r'aten::\w+ has no ONNX operator here; lower to .*"litert"'):
        lower_integer(graph)


# -- seven bits ----------------------------------------------------------------------------------------------


def test_two_products_within_63_fit_in_an_int16_and_full_range_ones_do_not():
    """What `vpmaddubsw` adds: a uint8 times an int8, twice."""
    most = np.iinfo(np.int16).max
    every = np.arange(256)[:, None] * np.arange(-63, 64)
    assert 2 * every.max() == 2 * 255 * 63 == 32_130 < most and 2 * every.min() > -most
    assert 2 * 255 * 127 > most


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_weights_held_to_7_bits_are_exact_on_every_runtime(runtime):
    graph = trace(randomized(Passthrough()), (1, 3, 16, 16))
    integer = quantize(graph, ranges_of(graph), input_range=(0.0, 1.0), most=63)
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in integer.weights)
    assert largest == 63 and beyond(integer, 63) == ()
    wide = quantize(graph, ranges_of(graph), input_range=(0.0, 1.0))
    assert len(beyond(wide, 63)) == len(wide.weights)
    runner = runtime.load(runtime.lower_integer(integer).data)
    assert parity.compare(integer, runner, codes(integer, 3)).differing == 0


def test_codes_that_were_trained_beyond_the_range_are_refused():
    graph = trace(randomized(Passthrough()), (1, 3, 16, 16))
    nodes = [
        replace(node, scale=torch.full((len(node.weight),), float(node.weight.abs().max()) / 127))
        if node.weight is not None
        else node
        for node in graph
    ]
    trained = replace(graph, nodes=tuple(nodes))
    with pytest.raises(InputError, match=r"up to 127, beyond 63; train it with quantize.weight_range = 63"):
        quantize(trained, ranges_of(graph), input_range=(0.0, 1.0), most=63)
    assert reference.predict(
        quantize(trained, ranges_of(graph), input_range=(0.0, 1.0)), codes(made(Passthrough()), 1)
    )


@pytest.mark.parametrize(("own", "card", "most"), [
    (None, None, None), (None, 63, 63), (127, 63, None), (63, None, 63), (None, 127, None),
])  # fmt: skip
def test_a_recipe_wins_over_the_card_and_127_is_no_change(own, card, most):
    assert Quantize(weight_range=own).on(card).weight_range == most


@pytest.mark.parametrize("name", ["softmax", "transposed", "tanh", "group_norm", "resized"])
def test_what_runs_in_float_is_predicted(name):
    graph = trace(EXACT[name].eval(), (1, 3, 16, 16))
    placement = place(graph, quantized(EXACT[name]), load_card("host"), "onnxruntime")
    assert bool(placement.leaving) == bool(lower_integer(made(EXACT[name])).undelegated)
