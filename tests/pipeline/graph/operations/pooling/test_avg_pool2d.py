"""avg_pool2d: traced, against torch in float, exact on both runtimes, pruned around, placed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowering_networks import Builder, inputs_for, quantized
from operation_checks import assert_exact, both, integer_of, usual_runtimes
from prune_networks import assert_near, choose, conv, graph_outputs, masked, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import difference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError
from paredown.targets.mcu import tflm


def pooled(**options: object) -> nn.Module:
    return network(lambda m, x: F.avg_pool2d(x, **options))


@st.composite
def pools(draw: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]:
    """Arguments of the pool, explicit zeros before it, and the shape of the input."""
    size = st.integers(1, 4)
    kernel, stride = (draw(st.tuples(size, size)) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    override = draw(st.sampled_from([None, None, 1, 5, 7]))
    before = draw(st.sampled_from([(0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 2), (0, 1, 0, 1)]))
    shape = (1, draw(st.sampled_from([1, 2, 3, 8, 17])), *(draw(st.integers(4, 9)) for _ in range(2)))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "divisor_override": override}
    return options, before, shape


def case(drawn: tuple) -> tuple[nn.Module, tuple[int, ...]]:
    options, before, shape = drawn
    padded = tuple(
        n + a for n, a in zip(shape[2:], (before[2] + before[3], before[0] + before[1]), strict=True)
    )
    whole = options["kernel_size"] == padded and not any(options["padding"])
    assume(not whole or options["divisor_override"] is not None)
    return network(lambda m, x: F.avg_pool2d(F.pad(x, before) if any(before) else x, **options)), shape


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(0, 10**6))
def test_it_computes_what_torch_computes(drawn, seed):
    net, shape = case(drawn)
    graph = trace(net, shape)
    assert [node.kind for node in graph] == ["input", "avg_pool2d"]  # the zeros before it are taken in
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    expected = net(x)
    assert torch.equal(graph.run(x)[graph.outputs[0]], expected)
    torch.testing.assert_close(graph.written.run(x)[graph.outputs[0]], expected)


@both
@settings(max_examples=8, deadline=None, derandomize=True)
@given(drawn=pools())
def test_it_is_exact_and_in_one_delegate(runtime: object, drawn):
    assert_exact(integer_of(*case(drawn)), runtime)


@both
@pytest.mark.parametrize("zero", [-128, 3, 127])
def test_it_is_exact_at_any_scale_and_with_a_relu_taken_in(runtime: object, zero: int):
    b = Builder(5, (1, 6, 9, 8), 0.05)
    names = []
    for scale, low in ((0.05, -128), (0.0002, -128), (0.011, zero), (3.0, zero)):
        attrs = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 2, 1), "divisor": 6}
        names.append(b.put("avg_pool2d", ("input",), (1, 6, 5, 8), scale, zero, attrs, low))
    assert_exact(b.graph(*names), runtime, 8)


def test_the_integers_are_those_of_a_plain_loop():
    graph = integer_of(pooled(kernel_size=3, stride=2, padding=1), (1, 2, 7, 6))
    node, x = graph.nodes[1], inputs_for(graph, 1)[:1]
    source, out = graph.input.out, node.out
    scale = np.float32(source.scale) * (np.float32(1) / np.float32(9)) / np.float32(out.scale)
    found = reference.predict(graph, x)[0]
    for c, i, j in np.ndindex(found.shape[1:]):
        rows, columns = (
            range(max(2 * i - 1, 0), min(2 * i + 2, 7)),
            range(max(2 * j - 1, 0), min(2 * j + 2, 6)),
        )
        total = sum(int(x[0, c, u, v]) - source.zero_point for u in rows for v in columns)
        code = int(np.rint(np.float32(total) * scale)) + out.zero_point
        assert found[0, c, i, j] == max(-128, min(127, code))


def test_the_codes_are_the_average_within_half_a_code():
    graph = integer_of(pooled(kernel_size=2), (1, 3, 8, 8))
    x = inputs_for(graph)
    out, found = graph.nodes[1].out, reference.predict(graph, x)[0]
    real = F.avg_pool2d(torch.from_numpy(graph.input.out.dequantize(x)).double(), 2).numpy()
    inside = (found > -128) & (found < 127)
    assert inside.mean() > 0.3
    assert np.abs(out.dequantize(found) - real)[inside].max() <= out.scale * 0.501


@both
def test_the_float_program_computes_it_too(runtime):
    net = pooled(kernel_size=3, stride=2, padding=1)
    lowered = runtime.lower_float(trace(net, (1, 3, 9, 9)))
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    x = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(runtime.load(lowered.data)(x.numpy())[0], net(x).numpy(), rtol=1e-5, atol=1e-6)


# -- tracing -------------------------------------------------------------------------------------------------

ACCEPTED: dict[str, dict[str, object]] = {
    "ceil_mode without effect": {"kernel_size": 2, "ceil_mode": True},
    "padding that is not counted, of none": {"kernel_size": 2, "count_include_pad": False},
    "an override, whatever is counted": {
        "kernel_size": 3, "padding": 1, "count_include_pad": False, "divisor_override": 4,
    },
    "the whole map with padding": {"kernel_size": 8, "padding": 2},
}  # fmt: skip


@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
def test_what_divides_by_one_number_is_carried(options):
    net, x = pooled(**options), torch.randn(2, 3, 8, 8)
    graph = trace(net, (1, 3, 8, 8))
    assert graph.nodes[1].kind == "avg_pool2d"
    assert torch.equal(graph.run(x)[graph.outputs[0]], net(x))


def test_one_divisor_is_carried_where_every_window_has_as_many_values():
    net, x = (
        pooled(kernel_size=(4, 1), padding=(2, 0), stride=(4, 1), count_include_pad=False),
        torch.ones(1, 3, 4, 8),
    )
    graph = trace(net, tuple(x.shape))
    assert graph.nodes[1].attrs["divisor"] == 2
    assert torch.equal(graph.run(x)[graph.outputs[0]], net(x))


def test_the_whole_map_is_a_mean():
    assert trace(pooled(kernel_size=8), (1, 3, 8, 8)).nodes[1].kind == "mean"


UNEVEN: dict[str, dict[str, object]] = {
    "padding that is not counted": {"kernel_size": 3, "padding": 1, "stride": 1, "count_include_pad": False},
    "windows over the border": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "both": {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    "both, counted": {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
}


@both
@pytest.mark.parametrize("options", UNEVEN.values(), ids=UNEVEN)
def test_windows_of_fewer_values_are_interpolated(runtime: object, options):
    net, x = pooled(**options), torch.randn(2, 3, 8, 7)
    graph = trace(net, (1, 3, 8, 7))
    assert [node.kind for node in graph.nodes[1:]] == ["interpolate"]
    assert torch.equal(graph.run(x)[graph.outputs[0]], net(x))
    torch.testing.assert_close(graph.written.run(x)[graph.outputs[0]], net(x))
    assert_exact(integer_of(net, (1, 3, 8, 7)), runtime)


@settings(max_examples=30, deadline=None)
@given(after=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_adaptive_windows_are_torchs(after):
    net, x = network(lambda m, x: F.adaptive_avg_pool2d(x, after)), torch.randn(2, 3, 8, 6)
    graph = trace(net, (1, 3, 8, 6))
    kinds = {node.kind for node in graph.nodes[1:]}
    even = all(size % count == 0 for size, count in zip((8, 6), after, strict=True))
    assert kinds <= ({"avg_pool2d", "mean"} if even else {"interpolate", "resize"})
    for found in (graph, graph.written):
        torch.testing.assert_close(found.run(x)[graph.outputs[0]], net(x))


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "ceil_mode": (
        {"kernel_size": 3, "stride": 2, "ceil_mode": True, "divisor_override": 4}, "use F.pad before it",
    ),
    "divisor": ({"kernel_size": 3, "divisor_override": -2}, "it must be positive"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_carry_says_what_to_change(options, words):
    with pytest.raises(InputError, match=words) as error:
        trace(pooled(**options), (1, 3, 8, 8), floats=False)
    assert "prune_networks.py" in str(error.value) or "test_avg_pool2d.py" in str(error.value)


# -- pruning, placement, other devices -----------------------------------------------------------------------


def inception(m: nn.Module, x: Tensor) -> Tensor:
    """Pools with padding on all sides and on one, a branch behind a pool, darknet's pool."""
    x = F.relu(m.stem(x))
    joined = torch.cat([m.a(x), m.b(F.avg_pool2d(x, 3, 1, 1))], 1)
    joined = F.relu(F.avg_pool2d(F.pad(joined, (0, 1, 0, 1)), 2, 1))
    return m.head(F.avg_pool2d(joined, 2)).mean((2, 3))


def branches() -> nn.Module:
    layers = {"stem": conv(3, 8, 3), "a": conv(8, 6), "b": conv(8, 4), "head": conv(10, 5)}
    return network(inception, **layers)


def test_channels_are_pruned_through_it():
    net = branches()
    graph = trace(net, (1, 3, 8, 8))
    groups = couple(graph)
    assert [group.name for group in groups if not group.locked] == ["stem", "a", "b"]
    assert not any("not known" in group.describe() for group in groups)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        assert_near(outputs(cut(net, graph, groups, kept), x), expected)


@both
def test_a_network_with_it_is_exact(runtime):
    graph = quantized(branches(), (1, 3, 8, 8))
    assert [node.kind for node in graph].count("avg_pool2d") == 3 and "relu" not in {n.kind for n in graph}
    assert_exact(graph, runtime)


def test_each_channel_is_alike_beside_however_many_others():
    """What `channelwise` promises."""
    assert operation("avg_pool2d").channelwise
    x = torch.randn(3, 37, 9, 9).contiguous(memory_format=torch.channels_last)
    for options in ({"kernel_size": 3, "padding": 1}, {"kernel_size": (2, 3), "stride": 1}):
        whole = F.avg_pool2d(x, **options)
        for channels in ([0], [3, 8, 36], list(range(19))):
            part = x[:, channels].contiguous(memory_format=torch.channels_last)
            assert torch.equal(F.avg_pool2d(part, **options), whole[:, channels])


def placements(graph: Graph, name: str) -> Callable:
    card = load_card(name)
    return inspect_graph(graph, card, usual_runtimes(card), (0.0, 1.0), "net").placements


@pytest.mark.parametrize("name", ["host", "cortex-m4", "cortex-m55-ethos-u55-128", "android-vulkan"])
def test_every_target_takes_it_as_the_convolution_that_it_is(name):
    graph = trace(branches(), (1, 3, 8, 8))
    for placement in placements(graph, name):
        kinds = [operation.kind for operation in placement.operations]
        assert kinds.count("depthwise_conv2d") == 3 and "avg_pool2d" not in kinds
        assert placement.leaving == ()


def test_litert_micro_is_within_one_code():
    """Its kernel multiplies in fixed point."""
    graph = quantized(pooled(kernel_size=3, stride=2, padding=1), (1, 3, 9, 9))
    x = inputs_for(graph)
    (found,) = tflm.run(litert.lower_integer(graph).data, x).outputs
    assert difference(reference.predict(graph, x)[0], found).max_lsb <= 1


def test_an_npu_of_short_strides_says_so():
    graph = trace(pooled(kernel_size=4), (1, 3, 16, 16))
    (placement,) = placements(graph, "cortex-m55-ethos-u55-128")
    assert ["strides by at most 3" in found.reason for found in placement.leaving] == [True]
