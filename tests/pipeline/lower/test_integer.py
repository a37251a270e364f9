"""The integer graph's rules: shared scales, fused clamps, integers that survive, and storage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lowering_networks import Passthrough, Residual, quantized, random_graph, randomized, ranges_of
from torch import nn

from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import (
    LARGEST_BIAS,
    Affine,
    IntegerGraph,
    float_bias,
    integer_bias,
    quantize,
)
from paredown.targets.errors import InputError


def equal(a: IntegerGraph, b: IntegerGraph) -> bool:
    (text, arrays), (other_text, other_arrays) = a.dump(), b.dump()
    same = all(np.array_equal(arrays[k], other_arrays[k]) for k in arrays)
    return text == other_text and arrays.keys() == other_arrays.keys() and same


def chain(*nodes: Node) -> Graph:
    source = Node("input", "input", (), (1, 2, 4, 4))
    return Graph((source, *nodes), (nodes[-1].name,))


def conv_node(name: str, feed: str, weight: torch.Tensor, bias: torch.Tensor) -> Node:
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
    return Node(name, "conv2d", (feed,), (1, len(bias), 4, 4), attrs, weight, bias)


def graph_of(function, shape=(1, 3, 8, 8), **modules: nn.Module) -> Graph:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x):
            return function(self, x)

    return trace(Network().eval(), shape)


# -- scales ------------------------------------------------------------------------------------------------


def test_operations_that_move_values_keep_the_scale_and_concat_ties_its_inputs():
    graph = quantized(randomized(Passthrough()))
    assert {n.kind for n in graph} >= {"concat", "max_pool2d", "reshape", "permute"}
    for node in graph:
        if operation(node.kind).same_scale:
            assert {graph[name].out for name in node.inputs} == {node.out}, node.name


def test_tied_tensors_take_the_union_of_their_ranges():
    graph = graph_of(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1))
    ranges = {"input": (0, 1), "a": (-1.0, 2.0), "b": (-5.0, 0.5), "cat": (0.0, 0.0)}
    out = quantize(graph, ranges, input_range=(0, 1))
    assert out["a"].out == out["b"].out == out["cat"].out
    assert out["a"].out.scale == pytest.approx(7 / 255)


def test_the_input_scale_comes_from_preprocessing_and_an_image_enters_without_loss():
    graph = graph_of(lambda m, x: m.a(x), a=nn.Conv2d(3, 2, 1))
    out = quantize(graph, {"input": (0.2, 0.4), "a": (-1, 1)}, input_range=(0.0, 1.0))
    pixels = np.arange(256)
    codes = out.input.out.quantize((pixels / 255).astype(np.float32))
    assert np.array_equal(codes.astype(int), pixels - 128)


def test_a_missing_range_is_named():
    graph = graph_of(lambda m, x: m.a(x), a=nn.Conv2d(3, 2, 1))
    with pytest.raises(InputError, match="no calibrated range for tensor a"):
        quantize(graph, {"input": (0, 1)}, input_range=(0, 1))


@given(
    real=hnp.arrays(np.float32, 50, elements=st.floats(-10, 10, width=32)),
    scale=st.floats(0.01, 2.0), zero=st.integers(-128, 127),
)  # fmt: skip
def test_affine_is_within_half_a_step_inside_its_range(real, scale, zero):
    q = Affine(float(np.float32(scale)), zero)
    back = q.dequantize(q.quantize(real))
    low, high = (-128 - zero) * q.scale, (127 - zero) * q.scale
    assert np.all(np.abs(back - np.clip(real, low, high)) <= q.scale * 0.501)
    assert q.quantize(np.zeros(1, np.float32))[0] == zero


# -- fusing ------------------------------------------------------------------------------------------------


def test_relu_becomes_the_clamp_of_what_feeds_it():
    graph = quantized(randomized(Residual()))
    assert [n.kind for n in graph] == [
        "input", "conv2d", "max_pool2d", "conv2d", "conv2d", "add", "mean", "reshape", "linear",
    ]  # fmt: skip
    clamped = [n for n in graph if n.low != -128 or n.out.zero_point == -128]
    assert {n.kind for n in clamped} >= {"conv2d", "add"}


def test_relu6_clamps_both_ends_and_only_where_the_range_passes_six():
    graph = graph_of(lambda m, x: F.relu6(m.a(x)), a=nn.Conv2d(3, 2, 1))
    name = graph.outputs[0]
    wide = quantize(graph, {n.name: (-10.0, 10.0) for n in graph}, input_range=(0, 1))[name]
    assert (wide.low, wide.high) == (wide.out.zero_point, wide.out.zero_point + round(6 / wide.out.scale))
    narrow = quantize(graph, {n.name: (0.0, 5.0) for n in graph}, input_range=(0, 1))[name]
    assert (narrow.low, narrow.high) == (-128, 127)


def test_relu_stays_alone_where_its_input_is_read_or_returned_elsewhere():
    def twice(m, x):
        y = m.a(x)
        return F.relu(y) + y

    def returned(m, x):
        y = m.a(x)
        return F.relu(y), y

    def pooled(m, x):
        return F.relu(F.max_pool2d(m.a(x), 2))

    def relu_of_relu6(m, x):
        return F.relu(F.relu6(m.a(x)))

    for function, count in ((twice, 1), (returned, 1), (pooled, 1), (relu_of_relu6, 1)):
        graph = graph_of(function, a=nn.Conv2d(3, 2, 1))
        integer = quantize(graph, ranges_of(graph), input_range=(0, 1))
        alone = [n for n in integer if n.kind in {"relu", "relu6"}]
        assert len(alone) == count, function.__name__
        assert alone[0].low == alone[0].out.zero_point


def test_the_integer_graph_is_close_to_the_float_graph():
    for network in (Residual(), Passthrough()):
        graph = trace(randomized(network), (1, 3, 16, 16))
        integer = quantize(graph, ranges_of(graph), input_range=(0, 1))
        x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        real = graph.run(x)
        codes = reference.run(integer, integer.input.out.quantize(x.numpy()))
        for name in integer.outputs:
            out = integer[name].out
            error = np.abs(out.dequantize(codes[name]) - real[name].numpy()).max()
            assert error < 12 * out.scale, name


# -- weights and biases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_weights_stay_within_127_and_dead_channels_are_zero(method):
    weight = torch.randn(4, 2, 1, 1)
    weight[1], weight[2] = 0, 1e-30
    graph = chain(conv_node("c", "input", weight, torch.zeros(4)))
    node = quantize(graph, {"input": (0, 1), "c": (-3, 3)}, input_range=(0, 1), weights=method)["c"]
    assert node.weight.dtype == np.int8 and node.weight.min() >= -127
    assert not node.weight[1:3].any() and node.weight_scale[1] == 1
    assert np.abs(node.weight[[0, 3]]).max(axis=(1, 2, 3)).tolist() == [127, 127]


@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_their_layer(what, value):
    node = conv_node("layers.3.conv", "input", torch.ones(2, 2, 1, 1), torch.zeros(2))
    getattr(node, what).view(-1)[1] = value
    with pytest.raises(InputError, match=r"layers\.3\.conv has NaN or infinite"):
        quantize(chain(node), {"input": (0, 1), "layers.3.conv": (-3, 3)}, input_range=(0, 1))


units = st.floats(-12, 2).map(lambda e: np.float32(10**e))


@settings(max_examples=300)
@given(bias=st.integers(-(2**30), 2**30), unit=units)
def test_biases_survive_the_trip_through_float32(bias, unit):
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    unit = np.asarray([unit])
    real = np.asarray(bias * unit.astype(np.float64), np.float32)
    kept = integer_bias(real, unit)
    assert abs(int(kept[0]) - bias) <= max(0, abs(bias) * 2**-22)
    back = float_bias(kept, unit)
    # the very operation with which ExecuTorch makes the bias an integer again
    codes = torch.ops.quantized_decomposed.quantize_per_channel.default(
        torch.from_numpy(back), torch.from_numpy(unit), torch.zeros(1, dtype=torch.int64), 0,
        -(2**31), 2**31 - 1, torch.int32,
    )  # fmt: skip
    assert codes.item() == kept[0]


def test_a_bias_beside_which_the_weights_are_nothing_keeps_its_value():
    weight, bias = torch.full((2, 2, 1, 1), 1e-7), torch.tensor([50.0, -0.1])
    graph = chain(conv_node("c", "input", weight, bias))
    node = quantize(graph, {"input": (0, 1e-3), "c": (-1, 60)}, input_range=(0, 1e-3))["c"]
    real = node.bias * (np.float64(np.float32(1e-3 / 255)) * node.weight_scale)
    assert np.allclose(real, [50, -0.1], rtol=1e-3)
    assert np.abs(node.bias.astype(np.int64)).max() <= LARGEST_BIAS * 1.001


def test_scales_are_widened_until_the_kernels_can_bring_them_together():
    def forward(m, x):
        dead = F.relu(m.dead(x))  # always zero: its own range would be nothing
        return m.c(x) + m.small(x), dead, F.leaky_relu(m.leaky(x), 0.01)

    layer = lambda: nn.Conv2d(3, 3, 1)  # noqa: E731
    graph = graph_of(forward, c=layer(), small=layer(), dead=layer(), leaky=layer())
    ranges = dict.fromkeys([n.name for n in graph], (-1.0, 1.0))
    ranges |= {"relu": (0.0, 0.0), "small": (-1e-6, 1e-6), "leaky": (-1e-3, 1e-3)}
    out = quantize(graph, ranges, input_range=(0, 1))
    for node in out:
        feeds = [out[name].out.scale for name in node.inputs]
        ratios = [scale / node.out.scale for scale in feeds]
        if node.weight_scale is not None:
            assert ratios[0] * node.weight_scale.max() < 256
        elif node.kind == "add":
            assert 2**-10 <= min(ratios) and max(ratios) < 256
        elif node.kind == "leaky_relu":
            assert 2**-8 <= ratios[0] * 0.01 and ratios[0] <= 128
    assert out["c"].out.scale == pytest.approx(2 / 255)  # nobody else's scale moved
    codes = reference.run(out, np.zeros((1, 3, 8, 8), np.int8))["relu"]
    assert np.all(out["relu"].out.dequantize(codes) >= 0)


@pytest.mark.parametrize("slope", [1 / 300, 0.0, -0.1, 1.5])
def test_slopes_outside_the_kernels_range_are_refused(slope):
    graph = graph_of(lambda m, x: F.leaky_relu(x, slope))
    with pytest.raises(InputError, match="outside the int8 kernel's 1/256 to 1"):
        quantize(graph, {n.name: (-1, 1) for n in graph}, input_range=(0, 1))


def test_weights_without_measure_are_an_input_error_not_an_endless_loop():
    def forward(m, x):
        y = m.c(x)
        return torch.cat([x, y], 1)  # ties the output's scale to the input's

    graph = graph_of(forward, c=nn.Conv2d(3, 3, 1))
    graph["c"].weight[:] = 1e9
    with pytest.raises(InputError, match="no scales fit"):
        quantize(graph, {n.name: (-1, 1) for n in graph}, input_range=(-1, 1))


# -- storage and slicing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_dump_and_load_are_inverse_and_deterministic(seed):
    graph = random_graph(seed)
    again = IntegerGraph.load(*graph.dump())
    assert equal(graph, again)
    x = np.zeros(graph.input.shape, np.int8)
    for a, b in zip(reference.predict(graph, x), reference.predict(again, x), strict=True):
        assert np.array_equal(a, b)


def test_quantizing_twice_gives_the_same_graph():
    assert equal(quantized(randomized(Residual())), quantized(randomized(Residual())))
    assert not equal(quantized(randomized(Residual())), quantized(randomized(Residual(), 1)))


def test_upto_keeps_what_its_outputs_need_and_nothing_else():
    graph = quantized(randomized(Residual()))
    name = next(n.name for n in graph if n.kind == "max_pool2d")
    part = graph.upto([name])
    assert [n.kind for n in part] == ["input", "conv2d", "max_pool2d"]
    assert part.outputs == (name,)
    with pytest.raises(KeyError):
        part["add"]


def test_outputs_do_not_depend_on_unused_fields():
    graph = quantized(randomized(Residual()))
    renamed = replace(graph, outputs=graph.outputs[::-1])
    x = np.full(graph.input.shape, 3, np.int8)
    a, b = reference.predict(graph, x), reference.predict(renamed, x)
    assert np.array_equal(a[0], b[1]) and np.array_equal(a[1], b[0])


@settings(max_examples=50, deadline=None)
@given(
    mean=st.floats(0.0, 1.0),
    std=st.floats(0.05, 1.0),
    scale=st.floats(1e-4, 0.2),
    zero=st.integers(-128, 127),
)
def test_the_host_quantizes_images_as_the_device_does(mean, std, scale, zero):
    preprocess = Preprocess(16, 16, mean=(mean,), std=(std,))
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    host = Affine(float(np.float32(scale)), zero).quantize(preprocess(image))
    assert np.array_equal(host, preprocess.quantized(image, float(np.float32(scale)), zero))
