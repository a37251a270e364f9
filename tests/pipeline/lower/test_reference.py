"""The reference interpreter against plain numpy loops, TFLite's reference kernels, and both runtimes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import (
    Builder,
    Passthrough,
    Residual,
    f32,
    inputs_for,
    quantized,
    random_graph,
    randomized,
)

from paredown.pipeline.lower import reference
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import compare, every_operation
from paredown.targets.runners.quiet import quiet


def assert_exact(graph: IntegerGraph, runtime, count: int = 6, delegated: bool = True) -> None:
    lowered = runtime.lower_integer(graph)
    if delegated:
        assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    found = compare(graph, runtime.load(lowered.data), inputs_for(graph, count))
    if found.differing:  # name the culprit
        load = lambda g: runtime.load(runtime.lower_integer(g).data)  # noqa: E731
        culprit = every_operation(graph, load, inputs_for(graph, count))[1]
        raise AssertionError(f"{found}: {culprit}")


# -- oracle: a loop in plain integers ---------------------------------------------------------------------


def requantized(total: int, scale: np.float32, node) -> int:
    value = int(np.rint(np.float32(total) * scale)) + node.out.zero_point
    return max(node.low, min(node.high, value))


def conv_by_loops(node, feed, x: np.ndarray) -> np.ndarray:
    left, _, top, _ = node.attrs["padding"]
    (sh, sw), groups = node.attrs["stride"], node.attrs["groups"]
    cout, per_group, kh, kw = node.weight.shape
    _, _, height, width = x.shape
    out = np.empty(node.shape, np.int8)
    for o in range(cout):
        scale = np.float32(feed.out.scale) * node.weight_scale[o] / np.float32(node.out.scale)
        first = o // (cout // groups) * per_group
        for i in range(node.shape[2]):
            for j in range(node.shape[3]):
                total = int(node.bias[o])
                for c in range(per_group):
                    for u in range(kh):
                        for v in range(kw):
                            row, column = i * sh + u - top, j * sw + v - left
                            if 0 <= row < height and 0 <= column < width:
                                real = int(x[0, first + c, row, column]) - feed.out.zero_point
                                total += real * int(node.weight[o, c, u, v])
                out[0, o, i, j] = requantized(total, scale, node)
    return out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), k=st.integers(1, 3), stride=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4), groups=st.sampled_from([1, 2, 4]),
    clamp=st.sampled_from(["", "relu", "relu6"]),
)  # fmt: skip
def test_conv_equals_a_loop_in_plain_integers(seed, k, stride, pads, groups, clamp):
    b = Builder(seed, (1, 4, 5, 4))
    graph = b.graph(b.conv("input", 4, k, stride, pads, groups, clamp=clamp))
    x = b.rng.integers(-128, 128, (1, 4, 5, 4)).astype(np.int8)
    expected = conv_by_loops(graph.nodes[1], graph.input, x)
    assert np.array_equal(reference.predict(graph, x)[0], expected)


def test_linear_equals_a_loop_in_plain_integers():
    b = Builder(3, (1, 30))
    graph = b.graph(b.linear("input", 7))
    node, x = graph.nodes[1], b.rng.integers(-128, 128, (1, 30)).astype(np.int8)
    for o in range(7):
        total = int(node.bias[o])
        for c in range(30):
            total += (int(x[0, c]) - graph.input.out.zero_point) * int(node.weight[o, c])
        scale = np.float32(graph.input.out.scale) * node.weight_scale[o] / np.float32(node.out.scale)
        assert reference.predict(graph, x)[0][0, o] == requantized(total, scale, node)


def test_outputs_do_not_depend_on_the_batch():
    graph = random_graph(3)
    x = inputs_for(graph)
    together = reference.predict(graph, x)
    for index in range(len(x)):
        for a, b in zip(together, reference.predict(graph, x[index : index + 1]), strict=True):
            assert np.array_equal(a[index : index + 1], b)


def test_run_and_predict_agree_and_predict_keeps_outputs_that_are_read_again():
    graph = random_graph(4)
    inner = next(n.name for n in graph if n.kind == "leaky_relu")
    graph = IntegerGraph(graph.nodes, (*graph.outputs, inner))
    x = inputs_for(graph, 2)
    values = reference.run(graph, x)
    for name, out in zip(graph.outputs, reference.predict(graph, x), strict=True):
        assert np.array_equal(values[name], out)
        assert out.dtype == np.int8


# -- oracle: TFLite's reference kernels, within one code of every operation --------------------------------


def load_reference_kernels(graph: IntegerGraph):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet():
        runner = litert.load(litert.lower_integer(graph).data)
        runner.interpreter = Interpreter(
            model_content=litert.lower_integer(graph).data,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        )
        runner.interpreter.allocate_tensors()
    return runner


@pytest.mark.parametrize("seed", range(6))
def test_reference_kernels_differ_by_one_code_at_most(seed):
    graph = random_graph(seed)
    kinds, _ = every_operation(graph, load_reference_kernels, inputs_for(graph, 2))
    assert {kind: found.max_lsb for kind, found in kinds.items() if found.max_lsb > 1} == {}
    exact = {"max_pool2d", "concat", "reshape", "permute", "pad", "relu", "relu6"}
    assert {kind: kinds[kind].differing for kind in exact & set(kinds)} == dict.fromkeys(
        exact & set(kinds), 0
    )


# -- oracle: XNNPACK in both runtimes, exactly -------------------------------------------------------------

both = pytest.mark.parametrize("runtime", [litert, executorch], ids=["litert", "executorch"])


def some(cases: list, runtime: object, step: int) -> list:
    """ExecuTorch takes half a second of lowering for an operation: a sample, where LiteRT does them all."""
    return cases[::step] if runtime is executorch else cases


@pytest.mark.parametrize("seed", range(30))
def test_litert_is_exact_on_random_networks(seed):
    assert_exact(random_graph(seed, expose=seed % 3 == 0), litert, delegated=False)


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, *range(2, 8)))])
def test_executorch_is_exact_on_random_networks(seed):
    assert_exact(random_graph(seed, expose=seed == 0), executorch)


@both
def test_extreme_scales_zero_points_and_saturation(runtime: object):
    b = Builder(11, (1, 4, 9, 9), 0.5)
    names = []
    for zero in (-128, 127):
        names.append(b.conv("input", 5, zero=zero, scale=0.5 * 2**-7))  # big factor: all saturate
        names.append(b.conv("input", 5, zero=zero, scale=1e5))  # small factor
        names.append(b.conv("input", 5, zero=zero, bias=2**30))  # accumulators near their end
        names.append(b.conv("input", 5, zero=zero, bias=2**24, gain=500))
    node = b.node(b.conv("input", 4, 1, zero=5))
    node.weight[2:] = 0  # a pruned channel
    node.weight_scale[2:] = 1
    node.bias[2:] = 0
    names.append(node.name)
    for ratio in some([2**-9.8, 0.01, 1, 30, 250], runtime, 4):  # an addition's sides very far apart
        other = b.conv("input", 4, scale=1.0)
        b.put("add", ("input", other), b.node(other).shape, 1.0 / max(1.0, ratio), 3)
        names.append(b.nodes[-1].name)
        tiny = b.conv("input", 4, scale=f32(ratio))
        b.put("add", (tiny, other), b.node(other).shape, max(1.0, ratio / 100), -7)
        names.append(b.nodes[-1].name)
    assert_exact(survivable(b.graph(*names)), runtime, 10)


def survivable(graph: IntegerGraph) -> IntegerGraph:
    """Biases as `quantize` makes them: those that ExecuTorch's float32 can carry."""
    from dataclasses import replace

    from paredown.pipeline.lower.integer import integer_bias

    nodes = []
    for node in graph:
        if node.bias is not None:
            unit = np.float32(graph[node.inputs[0]].out.scale) * node.weight_scale
            real = (node.bias * unit.astype(np.float64)).astype(np.float32)
            node = replace(node, bias=integer_bias(real, unit))
        nodes.append(node)
    return IntegerGraph(tuple(nodes), graph.outputs)


LEAKY = [(slope, ratio) for ratio in (1, 1.37, 2.5, 6.1, 10) for slope in (0.1, 0.01, 0.25)]


@both
def test_leaky_relu_on_all_codes(runtime: object):
    b = Builder(5, (1, 1, 16, 16), 0.05)
    names = [b.leaky("input", slope, ratio) for slope, ratio in some(LEAKY, runtime, 4)]
    graph = b.graph(*names)
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    found = runtime.load(runtime.lower_integer(graph).data)(x)
    for name, out in zip(names, found, strict=True):
        assert np.array_equal(reference.run(graph, x)[name], out), graph[name]


@both
def test_mean_at_exact_ties(runtime: object):
    """Sums that land between two codes show in which order the kernel multiplies and adds."""
    names, b = [], Builder(6, (1, 64, 3, 2), 0.037)
    cases = [(ratio, zero) for ratio in (0.1, 0.3, 0.7, 1.1, 1.9, 3.0) for zero in (-5, 0, 40, 127)]
    for ratio, zero in some(cases, runtime, 5):
        scale = b.node("input").out.scale / ratio
        names.append(b.put("mean", ("input",), (1, 64, 1, 1), scale, zero))
    graph = b.graph(*names)
    runner = runtime.load(runtime.lower_integer(graph).data)
    for _ in range(20):
        level, noise = b.rng.integers(-128, 128, (1, 64, 1, 1)), b.rng.integers(-9, 10, (1, 64, 3, 2))
        x = np.clip(level + noise, -128, 127).astype(np.int8)
        for a, c in zip(reference.predict(graph, x), runner(x), strict=True):
            assert np.array_equal(a, c)


POOLS = [
    (2, 2, (0, 0, 0, 0)), (2, 1, (0, 1, 0, 1)), (2, 2, (0, 1, 0, 1)),  # darknet's
    (3, 2, (1, 1, 1, 1)), (3, 1, (1, 1, 1, 1)), (3, 1, (2, 0, 1, 1)), (3, 2, (2, 0, 0, 2)),
    (2, 2, (1, 1, 1, 1)), (3, 3, (1, 1, 1, 1)), (2, 1, (1, 0, 1, 0)), (3, 2, (1, 0, 1, 0)),
    (5, 1, (2, 2, 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("runtime", "relu"),
    [(litert, True), (litert, False), (executorch, False),
     pytest.param(executorch, True, marks=pytest.mark.slow)],
    ids=["litert-relu", "litert", "executorch", "executorch-relu"],
)  # fmt: skip
def test_every_padding_of_pools_and_convs(runtime: object, relu: bool):
    b = Builder(8, (1, 3, 9, 8), 0.05)
    names = []
    zero = -128 if relu else 17
    start = b.conv("input", 4, zero=zero, clamp="relu" if relu else "")
    for k, stride, pads in POOLS:
        names.append(b.pool(start, k, stride, pads))
    for k, stride, pads in some(POOLS, runtime, 3):
        names.append(b.conv(start, 3, k, stride, pads))
    graph = b.graph(*names)
    assert_exact(graph, runtime, 3, delegated=relu or runtime is executorch)


def quantize_and_check(network, runtime) -> None:
    assert_exact(quantized(randomized(network)), runtime)


@both
@pytest.mark.parametrize("network", [Residual, Passthrough])
def test_networks_as_people_write_them(network: Callable, runtime: object):
    quantize_and_check(network(), runtime)
