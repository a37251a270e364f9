"""layer_norm, group_norm and instance_norm: torch's floats, exact on both runtimes in one delegate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import f32
from operation_checks import (  # fmt: skip
    RUNTIMES,
    assert_codes,
    assert_cut,
    assert_float,
    assert_network_exact,
    assert_thinner,
    codes_of,
    images,
    unary,
    usual_runtimes,
)
from prune_networks import conv, graph_outputs, network, outputs
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.operations.pooling.whole import MOST_SQUARES, parts_of
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import difference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError
from paredown.targets.mcu import tflm


def affine(norm: nn.Module) -> nn.Module:
    """With weights and biases that show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
    return norm


def behind(norm: nn.Module) -> nn.Module:
    return network(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 8, 3), n=affine(norm), b=conv(8, 5))


def as_convnext(norm: nn.Module) -> nn.Module:
    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    return network(run, a=conv(3, 8, 3), n=affine(norm), b=conv(8, 4))


def as_plain(norm: nn.Module, last: bool = True) -> nn.Module:
    """Between linear layers over (batch, places, features), or over (batch, features)."""

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        return m.b(m.n(x.flatten(2).transpose(1, 2) if last else x.mean((2, 3))))

    return network(run, a=conv(3, 8, 3), n=norm, b=nn.Linear(8, 4))


NETWORKS = {
    "instance": lambda: behind(nn.InstanceNorm2d(8, affine=True)),
    "groups": lambda: behind(nn.GroupNorm(2, 8)),
    "one group": lambda: behind(nn.GroupNorm(1, 8)),
    "a pixel's channels": lambda: as_convnext(nn.LayerNorm(8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_it_is_exact(name):
    assert_float(NETWORKS[name](), (1, 3, 9, 7))
    assert_network_exact(NETWORKS[name](), (1, 3, 9, 7))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (network(lambda m, x: m.n(m.a(x)), a=nn.Linear(12, 8), n=affine(nn.LayerNorm(8))), (2, 6, 12)),
        (network(lambda m, x: m.n(x), n=affine(nn.LayerNorm(12))), (2, 12)),
        (network(lambda m, x: F.layer_norm(x, (3, 5, 4))), (2, 3, 5, 4)),
        (network(lambda m, x: m.n(x), n=nn.InstanceNorm1d(3)), (2, 3, 9)),
    ],
)
def test_tokens_features_and_lengths(net, shape):
    x = images(shape, 2)
    found = graph_outputs(trace(net, (1, *shape[1:])), x)[0]
    torch.testing.assert_close(found, outputs(net, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [0, 1, 4])
@pytest.mark.parametrize("scale", [0.002, 0.9])
def test_it_is_exact_on_long_rows_at_any_scale(groups, scale):
    shape = (1, 12, 33, 16)
    graph = unary("normalize", Affine(f32(scale), 90), Affine(f32(0.031), -7), shape, groups=groups, eps=1e-5)
    noise = np.random.default_rng(0).integers(-128, 128, (1, *shape[1:])).astype(np.int8)
    near = np.random.default_rng(1).integers(100, 103, (1, *shape[1:])).astype(np.int8)
    flat = np.full((1, *shape[1:]), 127, np.int8)
    assert_codes(graph, np.concatenate([noise, near, flat]), {})


@given(st.sampled_from([0, 1, 2, 6]), st.integers(1, 5), st.floats(0.001, 1), st.integers(-128, 127))
@settings(deadline=None, max_examples=25)
def test_the_integers_are_those_of_torch_in_double(groups, height, scale, zero):
    shape = (1, 6, height, 4)
    source, out = Affine(f32(scale), zero), Affine(f32(0.03), 5)
    x = np.random.default_rng(height).integers(-128, 128, shape).astype(np.int8)
    found = codes_of(unary("normalize", source, out, shape, groups=groups, eps=1e-3), x)
    real = torch.from_numpy((x.astype(np.float64) - zero) * source.scale)
    if groups:
        wanted = F.group_norm(real, groups, eps=1e-3).numpy()
    else:
        wanted = F.layer_norm(real.permute(0, 2, 3, 1), (6,), eps=1e-3).permute(0, 3, 1, 2).numpy()
    units = wanted / out.scale
    tie = np.abs(np.abs(units - np.floor(units)) - 0.5) < 1e-3
    apart = np.abs(np.clip(np.rint(units) + 5, -128, 127) - found)
    assert not apart[~tie].any() and apart.max() <= 1


@given(st.integers(1, 4000))
def test_the_parts_of_a_sum_are_equal_and_short(size):
    parts = parts_of(size)
    assert size % parts == 0 and size // parts <= MOST_SQUARES


def test_instance_norm_is_cut_with_its_channels():
    groups = assert_cut(NETWORKS["instance"](), (1, 3, 9, 7))
    assert not groups["a"].locked and "n.normal carries them" in groups["a"].describe()


@pytest.mark.parametrize(("name", "units"), [("groups", 4), ("one group", 8), ("a pixel's channels", 8)])
def test_a_norm_is_cut_with_its_channels_and_counts_those_that_stay(name, units):
    groups = assert_thinner(NETWORKS[name](), (1, 3, 9, 7))
    assert groups["a"].units == units and not groups["a"].locked
    assert "n.normal carries them, and counts those that are there" in groups["a"].describe()


def test_what_a_cut_norm_computes_is_torchs_norm_of_the_channels_that_stay():
    net, x, kept = as_convnext(nn.LayerNorm(8)), images((1, 3, 9, 7)), [1, 2, 6]
    graph = trace(net, (1, 3, 9, 7))
    smaller = cut(net, graph, couple(graph), {"a": tuple(kept)})
    inner = F.layer_norm(net.a(x)[:, kept].permute(0, 2, 3, 1), (3,), net.n.weight[kept], net.n.bias[kept])
    wanted = F.conv2d(inner.permute(0, 3, 1, 2), net.b.weight[:, kept], net.b.bias)
    torch.testing.assert_close(smaller(x), wanted, rtol=1e-4, atol=1e-5)
    assert smaller.n.normalized_shape == (3,)


def test_a_norm_without_parameters_is_cut_too():
    assert not assert_thinner(as_plain(nn.LayerNorm(8, elementwise_affine=False)), (1, 3, 9, 7))["a"].locked
    assert not assert_thinner(as_plain(nn.LayerNorm(8), last=False), (1, 3, 9, 7))["a"].locked


def test_running_statistics_are_batch_norm():
    net = behind(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    graph = trace(net, (1, 3, 9, 7))
    assert "normalize" not in {node.kind for node in graph}
    x = images((1, 3, 9, 7))
    torch.testing.assert_close(graph_outputs(graph, x)[0], outputs(net, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (network(lambda m, x: m.n(x), n=affine(nn.LayerNorm((3, 4, 4)))), "elementwise_affine=False"),
        (network(lambda m, x: F.layer_norm(x, (4, 4))), "over the last 2 of 4 axes"),
    ],
)
def test_what_is_refused_says_what_to_change(net, why):
    with pytest.raises(InputError, match=why):
        trace(net, (1, 3, 4, 4), floats=False)


def test_litert_micro_and_the_targets_know_it():
    graph = assert_network_exact(NETWORKS["groups"](), (1, 3, 9, 7))
    x = graph.input.out.quantize(images((1, 3, 9, 7), 1).numpy())
    found = tflm.run(litert.lower_integer(graph).data, x).outputs[0]
    assert difference(reference.predict(graph, x)[0], found).max_lsb <= 2
    card = load_card("host")
    for placement in inspect_graph(
        trace(NETWORKS["groups"](), (1, 3, 9, 7)), card, usual_runtimes(card), (0.0, 1.0), "n"
    ).placements:
        assert placement.leaving == () and "normalize" in {o.kind for o in placement.operations}
    assert set(RUNTIMES.values()) == {litert, executorch}
