"""The engine against `Graph.run`; variants against the whole masked network, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prune_networks import assert_near, conv, graph_outputs, network, programs, randomized
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import mask
from paredown.pipeline.compress.sensitivity import forward as engine_module
from paredown.pipeline.compress.sensitivity import masked as variant_module
from paredown.pipeline.compress.sensitivity.forward import Engine, fuse, has_fusion, last
from paredown.pipeline.compress.sensitivity.masked import Variant
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace

EVERYTHING = frozenset()


def images(count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def run_all(engine: Engine, x: np.ndarray) -> list[np.ndarray]:
    """Every output for the whole sample."""
    parts = [[o[:n] for o in engine.outputs(engine.run(c, EVERYTHING))] for c, n in engine.chunks(x)]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


def run_variant(engine: Engine, variant: Variant, x: np.ndarray) -> list[np.ndarray]:
    parts = [[o[:n] for o in variant.run(engine.run(c, variant.reads))] for c, n in engine.chunks(x)]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


def free(graph: Graph) -> list[Group]:
    return [group for group in couple(graph) if not group.locked]


def residual(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.stem(x))
    y = F.relu(self.second(F.relu(self.first(x))) + x)
    return self.head(F.max_pool2d(F.leaky_relu(self.down(y), 0.1), 2).mean((2, 3)))


@pytest.fixture(scope="module")
def block() -> Graph:
    """A stem, a residual block, a strided convolution, a head."""
    net = network(
        residual, stem=conv(3, 16, 3), first=conv(16, 16, 3), second=conv(16, 16, 3),
        down=nn.Conv2d(16, 24, 3, 2, 1), head=nn.Linear(24, 5),
    )  # fmt: skip
    return trace(net, (1, 3, 16, 16))


@pytest.mark.skipif(not has_fusion(), reason="this torch has no oneDNN")
def test_convolutions_take_the_addition_and_the_activation_behind_them(block):
    ops = {op.node.name: op for op in fuse(block)}
    assert ops["first"].activation.kind == "relu" and not ops["first"].other
    assert ops["second"].activation.kind == "relu" and ops["second"].other == ops["stem"].name
    assert ops["down"].activation.kind == "leaky_relu"
    assert "add" not in {op.node.kind for op in ops.values()}
    assert len(ops) == 9  # input, four convolutions, pooling, mean, its flattening, head


def test_what_others_read_is_not_fused_away():
    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.a(x)
        z = self.b(F.relu(y))
        return y, F.relu(z) + z, self.c(x) + self.c(x)

    net = network(forward, a=conv(3, 4, 3), b=conv(4, 4, 3), c=conv(3, 4))
    graph = trace(net, (1, 3, 8, 8))
    x = images(3)
    found = run_all(Engine(graph, 2), x)
    assert_near([torch.from_numpy(f) for f in found], graph_outputs(graph, torch.from_numpy(x)))


@settings(max_examples=10, deadline=None)
@given(net=st.one_of(programs(), programs(unknown=True)), seed=st.integers(0, 1000))
def test_the_engine_computes_what_the_graph_does(net, seed):
    graph = trace(randomized(net, seed).eval(), (1, 3, 8, 8), opaque=True)
    x = images(5, seed=seed)
    expected = graph_outputs(graph, torch.from_numpy(x))
    assume(max(float(t.abs().max()) for t in expected) > 1e-3)
    assert_near([torch.from_numpy(f) for f in run_all(Engine(graph, 2), x)], expected)


@settings(max_examples=15, deadline=None)
@given(net=st.one_of(programs(), programs(unknown=True)), seed=st.integers(0, 1000))
def test_variants_are_the_masked_network_to_the_last_bit(net, seed):
    graph = trace(randomized(net, seed).eval(), (1, 3, 8, 8), opaque=True)
    groups, rng = couple(graph), np.random.default_rng(seed)
    x, engine = images(5, seed=seed), Engine(graph, 3)
    for group in groups:
        widths = [w for w in range(1, group.units) if w % group.step == 0]
        if group.locked or not widths:
            continue
        units = sorted(rng.permutation(group.units)[: rng.choice(widths)].tolist())
        expected = run_all(Engine(mask(graph, groups, {group.name: units}), 3), x)
        found = run_variant(engine, Variant(engine, group, units), x)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["thinner", "with zeros", "not fused"])
def test_every_way_of_computing_gives_the_same_bits(block, way, monkeypatch):
    if way == "with zeros":
        monkeypatch.setattr(variant_module, "same_bits", lambda *_: False)
    if way == "not fused":
        monkeypatch.setattr(engine_module, "has_fusion", lambda: False)
    groups, x, engine = couple(block), images(6, (3, 16, 16)), Engine(block, 4)
    for group in free(block):
        units = range(1, group.units, 2)
        expected = run_all(Engine(mask(block, groups, {group.name: list(units)}), 4), x)
        np.testing.assert_array_equal(run_variant(engine, Variant(engine, group, units), x), expected)


def test_a_convolution_that_adds_otherwise_keeps_its_zeros(block, monkeypatch):
    """As if the thinner kernel were another one, which rounds otherwise."""
    engine = Engine(block, 2)
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    variant = Variant(engine, next(g for g in free(block) if g.name == "first"), [0, 5])
    assert variant.bytes == 0
    assert engine.tried and not any(engine.tried.values())


def test_only_what_differs_is_computed(block):
    engine = Engine(block, 2)
    variants = {g.name: Variant(engine, g, [0, 5]) for g in free(block)}
    names = {op.node.name: op.name for op in engine.ops}
    # Behind the strided convolution only pooled channels are sliced: all that is left to do is the head.
    assert [step.key for step in variants["down"]._steps if ":" not in step.key] == ["head"]
    inner = variants["first"]
    assert inner.reads == {names["first"], names["stem"]}  # the producer's output, and the other branch
    computed = [step.key for step in inner._steps]
    assert names["second"] in computed and names["first"] not in computed
    assert inner.bytes == 16 * 2 * 9 * 4  # one weight, two input channels of sixteen


def test_where_removed_channels_are_dead_anyway_is_known(block):
    engine = Engine(block, 2)
    group = next(g for g in free(block) if g.name == "first")
    name = next(op.name for op in engine.ops if op.node.name == "first")
    assert Variant(engine, group, range(1, 16)).removed == {name: (0,)}
    stem = next(g for g in free(block) if g.name == "stem")
    assert Variant(engine, stem, range(1, 16)).removed is None  # the block's own output loses it too
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = -1
    assert engine.dead(x) == {0, 1}


def test_a_short_last_chunk_is_filled_up(block):
    x = images(5, (3, 16, 16))
    chunks = list(Engine(block, 2).chunks(x))
    assert [(len(c), n) for c, n in chunks] == [(2, 2), (2, 2), (2, 1)]
    np.testing.assert_array_equal(chunks[2][0].numpy(), x[[4, 4]])


def test_an_image_does_not_depend_on_its_neighbours(block):
    x = images(4, (3, 16, 16))
    one, two = run_all(Engine(block, 2), x), run_all(Engine(block, 2), x[[2, 3, 0, 1]])
    np.testing.assert_array_equal(one[0], two[0][[2, 3, 0, 1]])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1), (2, 1, 4, 4), (3, 4)])
def test_the_layout_is_one_whatever_came(shape):
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    forms = [x, x.transpose(0, 1).contiguous().transpose(0, 1)]
    strides = {last(form).stride() for form in forms}
    assert len(strides) == 1
    assert all(torch.equal(last(form), x) for form in forms)
