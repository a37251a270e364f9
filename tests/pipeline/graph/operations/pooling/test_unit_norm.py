"""F.normalize: torch's floats, exact on both runtimes in one delegate, channels pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import f32
from operation_checks import (
    RUNTIMES,
    assert_cut,
    assert_float,
    assert_network_exact,
    codes_of,
    images,
    kinds,
    unary,
)
from prune_networks import assert_near, conv, graph_outputs, network, outputs
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.lower.parity import compare

MAP, VECTOR, TOKENS = (1, 4, 5, 6), (1, 12), (1, 5, 6)
NETS = {
    "of pixels": (network(lambda m, x: m.b(F.normalize(m.a(x))), a=conv(4, 8, 3), b=conv(8, 3)), MAP),
    "of a vector": (
        network(lambda m, x: m.b(F.normalize(m.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 3)), VECTOR,
    ),
    "of tokens": (
        network(lambda m, x: m.b(F.normalize(m.a(x), dim=-1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)), TOKENS,
    ),
    "by hand": (
        network(lambda m, x: m.b(m.a(x) / m.a(x).norm(dim=1, keepdim=True)), a=conv(4, 8, 3), b=conv(8, 3)),
        MAP,
    ),
    "an embedding": (
        network(lambda m, x: F.normalize(m.a(x).mean((2, 3))), a=conv(4, 8, 3)), MAP,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "of pixels",
        "an embedding",
        *(pytest.param(f"of {n}", marks=pytest.mark.slow) for n in ("a vector", "tokens")),
    ],
)
def test_the_float_network_computes_what_torch_computes(name: str) -> None:
    net, shape = NETS[name]
    graph = assert_float(net, shape)
    assert kinds(graph).count("unit_norm") == 1 and "island" not in kinds(graph)


@pytest.mark.parametrize("name", [name for name in NETS if name != "by hand"])
def test_both_runtimes_compute_its_codes(name: str) -> None:
    net, shape = NETS[name]
    assert_network_exact(net, shape)


def test_what_is_divided_must_be_what_is_measured() -> None:
    net, shape = NETS["by hand"]  # computed twice, so it is not one tensor
    assert "unit_norm" not in kinds(trace(net, shape))
    once = network(lambda m, x: (lambda y: y / y.norm(dim=1, keepdim=True))(m.a(x)), a=conv(4, 8, 3))
    assert "unit_norm" in kinds(trace(once, shape))


@pytest.mark.parametrize("options", [{"p": 1.0}, {"eps": 0.1}, {"dim": (1, 2)}], ids=str)
def test_other_lengths_stay_in_float(options: dict[str, object]) -> None:
    net = network(lambda m, x: F.normalize(m.a(x), **options), a=conv(4, 8, 3))
    found = kinds(trace(net, MAP))
    assert "unit_norm" not in found and "island" in found


def test_a_length_that_others_read_too_is_computed_too() -> None:
    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        length = y.norm(dim=1, keepdim=True)
        return torch.cat([y / length, length], 1)

    net, x = network(run, a=conv(4, 8, 3)), images(MAP)
    graph = trace(net, MAP)
    assert {"unit_norm", "island"} <= {*kinds(graph)}
    assert_near(graph_outputs(graph, x), outputs(net, x))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_codes_are_those_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels, height, width = (int(rng.integers(1, n)) for n in (40, 4, 4))
    source = Affine(f32(10 ** rng.uniform(-3, 1)), int(rng.integers(-128, 128)))
    out = Affine(f32(10 ** rng.uniform(-2.5, -1.5)), int(rng.integers(-128, 128)))
    graph = unary("unit_norm", source, out, (1, channels, height, width), groups=0, eps=1e-12)
    x = rng.integers(-128, 128, (1, channels, height, width)).astype(np.int8)
    x[:, :, 0, 0] = source.zero_point  # a row of zeros stays one
    found = codes_of(graph, x)
    for i in range(height):
        for j in range(width):
            row = [int(code) - source.zero_point for code in x[0, :, i, j]]
            length = sum(value * value for value in row) ** 0.5
            for channel, value in enumerate(row):
                unit = (value / length if length else 0.0) / out.scale
                if abs(abs(unit % 1) - 0.5) < 1e-4:
                    continue  # float32 may round it the other way
                assert found[0, channel, i, j] == np.clip(round(unit) + out.zero_point, -128, 127)


@pytest.mark.parametrize("seed", range(2))
def test_all_kernels_agree_at_any_scales(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = (300, 7)[seed]
    source = Affine(f32(10 ** rng.uniform(-3, 1)), (-128, 31)[seed])
    graph = unary("unit_norm", source, Affine(1 / 128, 0), (1, channels, 3, 2), groups=0, eps=1e-12)
    x = rng.integers(-128, 128, (6, channels, 3, 2)).astype(np.int8)
    x[0], x[1], x[2] = -128, 127, source.zero_point
    for runtime in RUNTIMES.values():
        lowered = runtime.lower_integer(graph)
        assert lowered.undelegated == ()
        apart = compare(graph, runtime.load(lowered.data), x)
        assert apart.values and not apart.differing


def test_channels_pass() -> None:
    groups = assert_cut(NETS["of pixels"][0], MAP)
    assert groups["a"].units == 8 and not groups["a"].locked
    assert "brings them to length 1" in groups["a"].describe()
