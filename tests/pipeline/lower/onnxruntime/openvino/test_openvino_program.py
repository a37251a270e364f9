"""OpenVINO: the integer graph's own codes, every one, from kernels on codes; without VNNI those within 63."""

from __future__ import annotations

import os
import subprocess
import sys

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
)
from torch import nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import parity
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.onnxruntime.openvino.program import lower_float, lower_integer
from paredown.pipeline.lower.predict.placement import place
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.targets.cards.card import load_card
from paredown.targets.errors import DeviceError
from paredown.targets.host.host import this_machine
from paredown.targets.runners.onnxruntime.openvino import load


class Net(nn.Module):
    """A 3x3 convolution of 3 to 8 channels, a second one, and a function of the two."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return self.function(self.layers, self.a(x), self.b(x))


NETS = {
    "add": Net(lambda m, a, b: a + b),
    "sub": Net(lambda m, a, b: a - b),
    "mul": Net(lambda m, a, b: a * b),
    "depthwise": Net(lambda m, a, b: m[0](a), nn.Conv2d(8, 8, 3, 2, 1, groups=8)),
    "leaky relu": Net(lambda m, a, b: m[0](F.leaky_relu(a, 0.1)), nn.Conv2d(8, 8, 3)),
    "mean, linear": Net(lambda m, a, b: m[0](a.mean((2, 3))), nn.Linear(8, 9)),
    "transposed": Net(lambda m, a, b: m[0](a), nn.ConvTranspose2d(8, 6, 4, 2, 1)),
    "transposed, groups": Net(lambda m, a, b: m[0](a), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2)),
    "bilinear": Net(lambda m, a, b: F.interpolate(a, scale_factor=2, mode="bilinear")),
    "softmax": Net(lambda m, a, b: a.softmax(1)),
    "silu": Net(lambda m, a, b: F.silu(a)),
    "group norm": Net(lambda m, a, b: m[0](a), nn.GroupNorm(2, 8)),
    "residual": Residual(),
    "passthrough": Passthrough(),
}
#: Of those, the ones with a layer in float.
IN_FLOAT = {"mean, linear", "transposed", "bilinear", "softmax", "group norm", "residual"}


def codes(graph: IntegerGraph, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (count, *graph.input.shape[1:])).astype(np.int8)


def of(graph: IntegerGraph) -> parity.Runner:
    return load(lower_integer(graph).data)


# Without VNNI the full range of weight codes saturates: see below.
full_range = pytest.mark.skipif(this_machine().saturates, reason="this processor's sums saturate")


@full_range
@pytest.mark.parametrize("name", NETS)
def test_no_code_differs(name):
    assert not RUNTIMES["openvino"].tolerance  # every kind is promised
    graph = quantized(randomized(NETS[name]))
    lowered = lower_integer(graph)
    x = np.concatenate([codes(graph, 4), inputs_for(graph, 2)])
    assert parity.compare(graph, load(lowered.data), x).differing == 0
    kinds, first = parity.every_operation(graph, of, x[:2])
    assert not first and not any(apart.differing for apart in kinds.values())
    onnx.checker.check_model(onnx.load_from_string(lowered.data), full_check=True)


@pytest.mark.slow
@full_range
@settings(max_examples=6, deadline=None)
@given(st.integers(8, 10_000))
def test_no_code_of_random_graphs_differs(seed):
    graph = random_graph(seed, expose=True)
    kinds, first = parity.every_operation(graph, of, inputs_for(graph, 2))
    assert not first and not any(apart.differing for apart in kinds.values())


@pytest.mark.slow
@full_range
@pytest.mark.parametrize("network", ["resnet20", "yolov2-nano"])
def test_no_code_of_a_whole_network_differs(network):
    """Chains of additions before a mean, sums beside large biases: OpenVINO rewrites these as a whole."""
    torch.manual_seed(0)
    net = build(network, 10) if network == "resnet20" else YoloV2.builtin(network)
    side = 32 if network == "resnet20" else net.height
    graph = quantized(randomized(net), (1, 3, side, side))
    assert parity.compare(graph, of(graph), inputs_for(graph, 2)).differing == 0


@full_range
@pytest.mark.parametrize("factor", [4.0, 1.0, 1 / 128, 200.0])
def test_an_addition_meets_halves_and_far_scales_and_is_exact(factor):
    b = Builder(4)
    x = b.conv("input", 8)
    graph = b.graph(b.add(x, x, scale=b.node(x).out.scale * factor))
    assert parity.compare(graph, of(graph), codes(graph, 3)).differing == 0


@pytest.mark.parametrize("name", NETS)
def test_layers_run_on_codes_and_what_does_not_is_named_and_predicted(name):
    graph = trace(randomized(NETS[name]).eval(), (1, 3, 16, 16))
    lowered = lower_integer(quantized(randomized(NETS[name])))
    assert bool(lowered.undelegated) == (name in IN_FLOAT) and lowered.subgraphs == 1
    placed = place(graph, quantized(randomized(NETS[name])), load_card("host"), "openvino")
    # How OpenVINO resizes, with layers over moved axes, is not predicted.
    assert bool(placed.leaving) == (name in IN_FLOAT - {"bilinear"})


def test_a_leaky_relu_is_in_the_kernel_of_its_layer_and_codes_have_no_zero_point():
    data = lower_integer(quantized(randomized(NETS["leaky relu"]))).data
    layers = [
        each.get_rt_info()["layerType"].value for each in load(data).model.get_runtime_model().get_ops()
    ]
    assert layers.count("Convolution") == 2 and not {"Subgraph", "Eltwise", "Subtract"} & set(layers)
    held = onnx.load_from_string(data).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in held.initializer}
    kinds = [node.op_type for node in held.node]
    assert kinds.count("QuantizeLinear") == 2  # none between a layer and its leaky ReLU
    assert not any(values[node.input[2]].any() for node in held.node if node.op_type == "DequantizeLinear")
    assert {name for node in held.node for name in node.input} >= set(values)  # nothing is held for nothing


@full_range
@pytest.mark.parametrize("stride, padding", [(1, (2, 0)), (2, (1, 2))])
def test_a_border_of_codes_with_a_zero_point_is_exact(stride, padding):
    net = Net(lambda m, a, b: m[0](a), nn.Conv2d(8, 6, (5, 3), stride, padding, dilation=(1, 2), groups=2))
    graph = quantized(randomized(net))
    assert graph[graph.nodes[-1].inputs[0]].out.zero_point != -128
    assert parity.compare(graph, of(graph), codes(graph, 3)).differing == 0


@pytest.mark.parametrize("name", ["add", "mean, linear", "softmax", "residual"])
def test_the_float_network_is_torchs(name):
    graph = trace(randomized(NETS[name]), (1, 3, 16, 16))
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = load(lower_float(graph).data)(x.numpy())
    for each, name in zip(found, graph.outputs, strict=True):
        np.testing.assert_allclose(each, graph.run(x)[name].numpy(), rtol=1e-5, atol=1e-5)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r'openvino is not installed; pip install "paredown\[openvino\]"'):
        lower_integer(quantized(randomized(Residual())))


HELD = """
import sys; sys.path[:0] = sys.argv[1:]
import numpy as np
from lowering_networks import Passthrough, randomized, ranges_of
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import parity
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.runtimes import RUNTIMES
graph = trace(randomized(Passthrough()), (1, 3, 16, 16))
for most in (63, 127):
    held = quantize(graph, ranges_of(graph), input_range=(0.0, 1.0), most=most)
    x = np.random.default_rng(0).integers(-128, 128, (3, *held.input.shape[1:])).astype(np.int8)
    runner = RUNTIMES["openvino"].load(RUNTIMES["openvino"].lower_integer(held).data)
    print(parity.compare(held, runner, x).differing)
"""


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in this_machine().instructions, reason="no AVX2 here")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_vnni_codes_within_63_are_exact_and_others_are_not(isa):
    """oneDNN's own switch keeps it from VNNI, whatever the processor has."""
    if isa == "AVX512_CORE" and "avx512" not in this_machine().instructions:
        pytest.skip("no AVX-512 here")
    words = [sys.executable, "-c", HELD, *filter(None, sys.path)]
    said = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    ).stdout
    within, beyond = map(int, said.split())
    assert within == 0 < beyond
