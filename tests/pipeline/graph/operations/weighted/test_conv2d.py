"""conv2d over lengths and with dilation: traced as over maps of height one, exact, pruned, in few bits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowering_networks import inputs_for, ranges_of
from operation_checks import assert_exact, both, integer_of
from prune_networks import assert_near, choose, graph_outputs, masked, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.patches import at_spots, patches, pick_spots
from paredown.pipeline.compress.coupling.reconstruct import reconstruct
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.sensitivity.forward import Engine
from paredown.pipeline.compress.sensitivity.masked import Variant
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.gptq_init import round_weights
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.targets.errors import InputError


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.3)
    return module.eval()


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of one or two dimensions, and the shape of its input."""
    dims = draw(st.sampled_from([1, 1, 2]))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation, groups = some(1, 4), some(1, 3), draw(st.sampled_from([1, 1, 2, 4]))
    same = draw(st.booleans()) and draw(st.booleans())
    stride = (1,) * dims if same else some(1, 2)
    padding = "same" if same else some(0, 3)
    size = some(4, 9)
    free = zip(size, kernel, dilation, padding if not same else size, strict=True)
    assume(all(n + 2 * p >= (k - 1) * d + 1 for n, k, d, p in free))
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    cout = groups * draw(st.sampled_from([1, 2, 3]))
    layer = kind(4, cout, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    before = nn.ConstantPad1d((3, 1), 0.0) if dims == 1 and draw(st.booleans()) else nn.Identity()
    return randomized(nn.Sequential(before, layer, nn.ReLU()), draw(st.integers(0, 99))), (1, 4, *size)


@settings(max_examples=80, deadline=None)
@given(layers(), st.integers(0, 10**6))
def test_it_computes_what_torch_computes(drawn, seed):
    net, shape = drawn
    graph = trace(net, shape)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = net(x)
    found = graph.run(x)[graph.outputs[0]]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "pad" not in {node.kind for node in graph}


@both
@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=layers())
def test_it_is_exact_and_in_one_delegate(runtime: object, drawn):
    assert_exact(integer_of(*drawn), runtime)


def test_the_integers_are_those_of_a_plain_loop():
    layer = randomized(nn.Conv1d(4, 6, 3, 2, 2, dilation=3, groups=2))
    graph = integer_of(layer, (1, 4, 11))
    node, x = next(n for n in graph if n.kind == "conv2d"), inputs_for(graph, 1)[:1]
    source, out, found = graph.input.out, node.out, reference.predict(graph, x)[0]
    assert node.attrs["dilation"] == (1, 3) and found.shape == (1, 6, 5)
    scale = np.float32(source.scale) * node.weight_scale / np.float32(out.scale)
    for o, t in np.ndindex(6, 5):
        total = int(node.bias[o])
        for i, k in np.ndindex(2, 3):
            place = 2 * t - 2 + 3 * k
            if 0 <= place < 11:
                read = int(x[0, o // 3 * 2 + i, place]) - source.zero_point
                total += read * int(node.weight[o, i, 0, k])
        code = int(np.rint(np.float32(total) * scale[o])) + out.zero_point
        assert found[0, o, t] == max(-128, min(127, code))


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 99))
def test_it_is_a_linear_problem(drawn, seed):
    net, shape = drawn
    graph = trace(net, shape)
    node = next(n for n in graph if n.kind == "conv2d")
    assume(node.attrs["groups"] == 1)
    values = graph.run(torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed)))
    spots = pick_spots((2, *node.shape[1:]), 20, np.random.default_rng(seed))
    read = patches(node, values[node.inputs[0]], spots)
    found = read @ node.weight.flatten(1).double().T + node.bias.double()
    torch.testing.assert_close(found, at_spots(values[node.name], spots), rtol=1e-4, atol=1e-5)


# -- networks over lengths -----------------------------------------------------------------------------------


def separable(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Causal padding, dilation, a depthwise convolution, pools, a skip, a concatenation, a head."""
    x = F.relu(m.na(m.a(F.pad(x, (4, 0)))))
    y = x + F.relu(m.nb(m.b(x)))
    y = F.max_pool1d(y, 2)
    z = F.avg_pool1d(F.leaky_relu(m.p(m.d(y)), 0.1), 2)
    joined = torch.cat([z, F.max_pool1d(y, 2)], 1)
    return m.head(F.adaptive_avg_pool1d(joined, 1).flatten(1)), m.end(joined)


def lengths(seed: int = 0) -> nn.Module:
    modules = {
        "a": nn.Conv1d(3, 8, 5, bias=False), "na": nn.BatchNorm1d(8),
        "b": nn.Conv1d(8, 8, 3, padding="same", dilation=2), "nb": nn.BatchNorm1d(8),
        "d": nn.Conv1d(8, 8, 3, padding=1, groups=8), "p": nn.Conv1d(8, 12, 1),
        "head": nn.Linear(20, 4), "end": nn.Conv1d(20, 2, 1),
    }  # fmt: skip
    return randomized(network(separable, seed, **modules), seed)


def test_the_input_is_reshaped_once_and_so_is_every_output():
    graph = trace(lengths(), (1, 3, 24))
    kinds = Counter(node.kind for node in graph)
    assert kinds["reshape"] == 3 and kinds["permute"] == 0  # to a map, to (1, features), to lengths
    assert graph.nodes[0].shape == (1, 3, 24)
    assert [graph[name].shape for name in graph.outputs] == [(1, 4), (1, 2, 6)]
    x = torch.randn(2, 3, 24)
    for found, expected in zip(graph_outputs(graph, x), outputs(lengths(), x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@both
def test_a_network_of_them_is_exact(runtime):
    assert_exact(integer_of(lengths(), (1, 3, 24)), runtime)


def test_channels_are_pruned_through_them():
    net = lengths()
    graph = trace(net, (1, 3, 24))
    groups = couple(graph)
    assert {g.name for g in groups if not g.locked} == {"a", "p"}
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1))
    for seed in range(5):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        smaller = cut(net, graph, groups, kept)
        assert_near(outputs(smaller, x), expected)
        assert smaller.b.weight.shape[:2] == (smaller.b.out_channels, smaller.b.in_channels)
    kept = {"p": tuple(range(8))}
    smaller = cut(net, graph, groups, kept)
    before = float((outputs(smaller, x)[0] - outputs(net, x)[0]).square().mean())
    reconstruct(smaller, graph, groups, kept, x)
    assert float((outputs(smaller, x)[0] - outputs(net, x)[0]).square().mean()) < before


def test_sensitivity_measures_what_a_mask_gives():
    net = lengths()
    graph = trace(net, (1, 3, 24))
    groups = couple(graph)
    engine, x = Engine(graph, 2), torch.randn(2, 3, 24)
    for group in (g for g in groups if not g.locked):
        units = tuple(range(0, group.units, 2))
        variant = Variant(engine, group, units)
        with torch.inference_mode():
            found = variant.run(engine.run(x, variant.reads))
            whole = Engine(mask(graph, groups, {group.name: units}), 2)
            for a, b in zip(found, whole.outputs(whole.run(x, frozenset())), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_they_are_trained_in_few_bits(per):
    net, shape = lengths(), (1, 3, 24)
    graph = trace(net, shape)
    plans = {
        name: LayerPlan(GridConfig(4, "uniform", per=per), sparsity=0.3)
        for name in quantizable(graph, net)
    }  # fmt: skip
    assert {"a.weight", "d.weight", "end.weight"} <= set(plans)
    live = QatNetwork(net, graph, plans).eval()
    x = torch.randn(6, 3, 24, generator=torch.Generator().manual_seed(0))
    round_weights(live, x)
    live.train()
    sum(y.square().mean() for y in live(x)).backward()
    assert net.b.weight.grad.abs().sum() > 0 and net.b.weight.ndim == 3
    live.eval()
    folded = fold(live, shape)
    for found, expected in zip(graph_outputs(folded, x), live(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    integer = quantize(folded, ranges_of(folded), input_range=(-0.3, 1.0))
    assert all(int(np.abs(n.weight).max()) <= 7 for n in integer if n.weight is not None)


def test_what_reads_no_batch_of_lengths_says_so():
    with pytest.raises(InputError, match=r"must read \(batch, channels, length\)"):
        trace(network(lambda m, x: m.a(x.flatten(1)), a=nn.Conv1d(1, 4, 3)), (1, 3, 4))
