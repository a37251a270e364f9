"""conv_transpose2d: traced, against torch in float, exact on both runtimes, pruned, in few bits, placed."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowering_networks import inputs_for, ranges_of
from operation_checks import assert_exact, both, integer_of, usual_runtimes
from prune_networks import assert_near, choose, conv, graph_outputs, masked, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.allocate.cost import counted
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.patches import at_spots, patches, pick_spots
from paredown.pipeline.compress.coupling.reconstruct import reconstruct
from paredown.pipeline.compress.coupling.surgery import cut, load_pruned, mask, save_pruned, thin
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.sensitivity.forward import Engine
from paredown.pipeline.compress.sensitivity.masked import Variant
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.gptq_init import round_weights
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError


def layer(cin: int, cout: int, kernel: object, seed: int = 0, **options: object) -> nn.ConvTranspose2d:
    module = nn.ConvTranspose2d(cin, cout, kernel, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return module


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with all that torch has, behind it perhaps a ReLU; and the shape of its input."""
    kernel, stride = (draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) for _ in range(2))
    stride = tuple(min(s, 3) for s in stride)
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    more = tuple(draw(st.integers(0, s - 1)) for s in stride)
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    cin, cout = draw(st.sampled_from([4, 8])), groups * draw(st.sampled_from([1, 2, 3]))
    shape = (1, cin, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    sizes = zip(shape[2:], kernel, stride, padding, more, strict=True)
    assume(all((n - 1) * s + k + m - 2 * p > 0 for n, k, s, p, m in sizes))
    options = {"stride": stride, "padding": padding, "output_padding": more, "groups": groups}
    module = layer(cin, cout, kernel, draw(st.integers(0, 99)), bias=draw(st.booleans()), **options)
    return nn.Sequential(module, *[nn.ReLU()] * draw(st.integers(0, 1))).eval(), shape


@settings(max_examples=80, deadline=None)
@given(layers(), st.integers(0, 10**6))
def test_it_computes_what_torch_computes(drawn, seed):
    net, shape = drawn
    graph = trace(net, shape)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = net(x)
    assert torch.equal(graph.run(x)[graph.outputs[0]], expected)
    torch.testing.assert_close(graph.written.run(x)[graph.outputs[0]], expected, rtol=1e-5, atol=1e-5)
    module, node = net[0], graph.nodes[1]
    assert torch.equal(node.weight[0], module.weight[: len(node.weight[0]), 0])
    assert node.macs == module.weight.numel() * shape[2] * shape[3]


@both
@settings(max_examples=30, deadline=None, derandomize=True)
@given(drawn=layers())
def test_it_is_exact_and_in_one_delegate(runtime: object, drawn):
    assert_exact(integer_of(*drawn), runtime)


COMMON: dict[str, dict[str, object]] = {
    "a gap": {"kernel": 1, "stride": 3, "output_padding": 1},
    "2x2": {"kernel": 2, "stride": 2},
    "4x4": {"kernel": 4, "stride": 2, "padding": 1},
    "3x3": {"kernel": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "3x3 to odd": {"kernel": 3, "stride": 2, "padding": 1},
    "far": {"kernel": 16, "stride": 8, "padding": 4},
    "sliced": {"kernel": 5, "stride": 1, "padding": 1},
    "depthwise": {"kernel": 4, "stride": 2, "padding": 1, "groups": 8},
    "grouped to odd": {"kernel": 3, "stride": 2, "padding": 1, "groups": 2},
}


@both
@pytest.mark.parametrize("options", COMMON.values(), ids=COMMON)
def test_what_networks_use_is_exact(runtime, options):
    assert_exact(common(options), runtime, 6)


def common(options: dict[str, object]) -> IntegerGraph:
    options = dict(options)
    net = nn.Sequential(conv(3, 8, 3), nn.ReLU(), layer(8, 8, options.pop("kernel"), **options), nn.ReLU6())
    return integer_of(net.eval(), (1, 3, 6, 5))


@both
@pytest.mark.slow
@pytest.mark.parametrize("options", COMMON.values(), ids=COMMON)
def test_what_networks_use_is_exact_at_any_scale(runtime, options):
    graph = common(options)
    last = graph.nodes[-1]
    rng = np.random.default_rng(0)
    for zero in (-128, 0, 127):
        bias = rng.integers(-3000, 3000, len(last.bias)).astype(np.int32)
        changed = replace(last, out=replace(last.out, zero_point=zero), bias=bias, low=-128, high=127)
        assert_exact(IntegerGraph((*graph.nodes[:-1], changed), graph.outputs), runtime)


@pytest.mark.parametrize("options", COMMON.values(), ids=COMMON)
def test_the_integers_are_those_of_a_plain_loop(options):
    options = dict(options)
    kernel, groups = options.pop("kernel"), options.get("groups", 1)
    graph = integer_of(layer(8, 8, kernel, **options).eval(), (1, 8, 3, 4))
    node, x = graph.nodes[1], inputs_for(graph, 1)[:1]
    step, pad, source, out = options["stride"], options.get("padding", 0), graph.input.out, node.out
    found = reference.predict(graph, x)[0]
    total = np.zeros(found.shape, np.int64) + node.bias.reshape(1, -1, 1, 1)
    for o, i, y, c, u, v in np.ndindex(8, 8 // groups, 3, 4, kernel, kernel):
        row, column = y * step + u - pad, c * step + v - pad
        if 0 <= row < found.shape[2] and 0 <= column < found.shape[3]:
            read = int(x[0, o // (8 // groups) * (8 // groups) + i, y, c]) - source.zero_point
            total[0, o, row, column] += read * int(node.weight[o, i, u, v])
    scale = np.float32(source.scale) * node.weight_scale / np.float32(out.scale)
    codes = np.rint(total.astype(np.float32) * scale.reshape(1, -1, 1, 1)) + out.zero_point
    assert np.array_equal(found, np.clip(codes, -128, 127))


@both
def test_the_float_program_computes_it_too(runtime):
    first = layer(3, 6, 3, stride=2, padding=1, output_padding=1)
    net = nn.Sequential(first, layer(6, 6, 2, stride=2, groups=3))
    lowered = runtime.lower_float(trace(net.eval(), (1, 3, 5, 6)))
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    x = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x).numpy()
    np.testing.assert_allclose(runtime.load(lowered.data)(x.numpy())[0], expected, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("groups", [1, 2])
def test_over_lengths_it_is_one_over_maps_of_height_one(runtime, groups):
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.c(F.relu(m.n(m.b(F.relu(m.a(x))))))

    up = nn.ConvTranspose1d(6, 8, 4, 2, 1, groups=groups)
    net = network(run, a=nn.Conv1d(3, 6, 3, 2, 1), b=up, n=nn.BatchNorm1d(8), c=nn.Conv1d(8, 2, 1))
    graph, x = trace(net, (1, 3, 18)), torch.randn(2, 3, 18)
    torch.testing.assert_close(graph_outputs(graph, x)[0], outputs(net, x)[0], rtol=1e-4, atol=1e-5)
    assert_exact(integer_of(net, (1, 3, 18)), runtime)
    groups_found = couple(graph)
    kept = choose(groups_found, 1)
    thinner = graph_outputs(thin(graph, groups_found, kept), x)
    assert_near(outputs(cut(net, graph, groups_found, kept), x), thinner)


def test_dilation_is_refused():
    with pytest.raises(InputError, match="write the zeros into the kernel") as error:
        net = network(lambda m, x: m.a(x), a=nn.ConvTranspose2d(3, 4, 3, dilation=2))
        trace(net, (1, 3, 8, 8), floats=False)
    assert "test_conv_transpose2d.py" in str(error.value) or "prune_networks.py" in str(error.value)


# -- compression ---------------------------------------------------------------------------------------------


def decoder(m: nn.Module, x: Tensor) -> Tensor:
    a = F.relu(m.a(x))
    b = F.relu(m.nb(m.b(F.max_pool2d(a, 2))))
    up = F.relu(m.nu(m.up(b)))
    deep = m.deep(F.relu(m.wide(torch.cat([up, a], 1))))
    return m.head(F.relu(m.last(deep)))


def unet(seed: int = 0) -> nn.Module:
    modules = {
        "a": conv(3, 6, 3), "b": conv(6, 8, 3), "nb": nn.BatchNorm2d(8),
        "up": nn.ConvTranspose2d(8, 10, 4, 2, 1, bias=False), "nu": nn.BatchNorm2d(10),
        "wide": nn.ConvTranspose2d(16, 12, 3, 2, 1, 1), "deep": nn.ConvTranspose2d(12, 12, 2, 2, groups=12),
        "last": nn.ConvTranspose2d(12, 8, 3, 1, 1, groups=2), "head": conv(8, 2),
    }  # fmt: skip
    net = network(decoder, seed, **modules)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.ConvTranspose2d):
                for tensor in module.parameters():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net


@both
def test_batch_norm_behind_it_folds_and_the_network_is_exact(runtime):
    graph = integer_of(unet(), (1, 3, 8, 8))
    kinds = [node.kind for node in graph]
    assert kinds.count("conv_transpose2d") == 4 and "relu" not in kinds
    assert_exact(graph, runtime)


def test_channels_are_pruned_through_it(tmp_path):
    net = unet()
    graph = trace(net, (1, 3, 8, 8))
    groups = couple(graph)
    assert {g.name for g in groups if not g.locked} == {"a", "b", "up", "wide", "last"}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for seed in range(6):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        smaller = cut(net, graph, groups, kept)
        assert_near(outputs(smaller, x), expected)
        chosen = {g.name: len(kept.get(g.name, range(g.units))) for g in groups}
        assert round(counted(graph, groups, "macs").total(chosen)) == trace(smaller, (1, 3, 8, 8)).macs
        for module in smaller.modules():
            if isinstance(module, nn.ConvTranspose2d):
                shape = (module.in_channels, module.out_channels // module.groups)
                assert tuple(module.weight.shape[:2]) == shape
        save_pruned(smaller, tmp_path / "n.safetensors")
        again = load_pruned(copy.deepcopy(net), tmp_path / "n.safetensors")
        assert_near(outputs(again, x), outputs(smaller, x))


def test_sensitivity_measures_what_a_mask_gives():
    net = unet()
    graph = trace(net, (1, 3, 8, 8))
    groups = couple(graph)
    engine, x = Engine(graph, 2), torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for group in (g for g in groups if not g.locked):
        units = tuple(range(0, group.units, 2))
        variant = Variant(engine, group, units)
        with torch.inference_mode():
            found = variant.run(engine.run(x, variant.reads))
        whole = Engine(mask(graph, groups, {group.name: units}), 2)
        with torch.inference_mode():
            assert np.array_equal(found[0], whole.outputs(whole.run(x, frozenset()))[0])


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 99))
def test_it_is_a_linear_problem(drawn, seed):
    net, shape = drawn
    graph = trace(net, shape)
    node = graph.nodes[1]
    assume(node.attrs["groups"] == 1)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    y = graph.run(x)[node.name]
    spots = pick_spots(tuple(y.shape), 20, np.random.default_rng(seed))
    found = patches(node, x, spots) @ node.weight.flatten(1).double().T + node.bias.double()
    torch.testing.assert_close(found, at_spots(y, spots), rtol=1e-4, atol=1e-5)


def test_reconstruction_makes_a_cut_network_better():
    net = unet()
    graph = trace(net, (1, 3, 8, 8))
    groups = couple(graph)
    kept = {g.name: tuple(range(g.units - 2)) for g in groups if not g.locked and g.units > 4}
    smaller = cut(net, graph, groups, kept)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    (whole,) = outputs(net, x)
    before = float((outputs(smaller, x)[0] - whole).square().mean())
    reconstruct(smaller, graph, groups, kept, x)
    assert float((outputs(smaller, x)[0] - whole).square().mean()) < 0.7 * before


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_it_is_trained_in_few_bits(per):
    net = unet()
    shape = (1, 3, 8, 8)
    graph = trace(net, shape)
    config = GridConfig(4, "uniform", per=per)
    plans = {name: LayerPlan(config, sparsity=0.3) for name in quantizable(graph, net)}
    assert "up.weight" in plans and "deep.weight" in plans
    live = QatNetwork(net, graph, plans).eval()
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = outputs(net, x)[0]
    plain = float((live(x) - exact).square().mean())
    round_weights(live, x)
    live.train()
    live(x).square().mean().backward()
    assert net.up.weight.grad.abs().sum() > 0
    live.eval()
    assert float((live(x) - exact).square().mean()) < plain
    folded = fold(live, shape)
    torch.testing.assert_close(graph_outputs(folded, x)[0], live(x), rtol=1e-3, atol=1e-4)
    for name in ("up", "wide", "deep", "last"):
        codes = folded[name].weight / folded[name].scale.reshape(-1, 1, 1, 1)
        assert torch.equal(codes, codes.round()) or float((codes - codes.round()).abs().max()) < 1e-3
        assert int(codes.round().abs().max()) <= 7
        if per == "channel":
            assert (codes.round().abs().flatten(1).amax(1) == 7).all()
    integer = quantize(folded, ranges_of(folded), input_range=(-0.3, 1.0))
    found = [n for n in integer if n.kind == "conv_transpose2d"]
    assert len(found) == 4 and max(int(np.abs(n.weight).max()) for n in found) <= 7


def test_every_target_is_told_what_it_is():
    graph = trace(unet(), (1, 3, 8, 8))
    for name in ("host", "raspberry-pi-5"):
        card = load_card(name)
        for placement in inspect_graph(graph, card, usual_runtimes(card), (0.0, 1.0), "net").placements:
            assert placement.leaving == ()
            assert "conv_transpose2d" in {operation.kind for operation in placement.operations}


def test_graphs_keep_it():
    graph = trace(unet(), (1, 3, 8, 8))
    again = Graph.load(*graph.dump())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(graph_outputs(graph, x)[0], graph_outputs(again, x)[0])
