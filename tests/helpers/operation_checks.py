"""What every kind must show: torch's floats, the same codes on both runtimes, cuts that agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from lowering_networks import inputs_for, ranges_of
from numpy.typing import NDArray
from prune_networks import assert_near, choose, graph_outputs, masked, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import Group, couple
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, quantize
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import compare
from paredown.pipeline.recipe.schema import Lower
from paredown.targets.cards.card import Target

RUNTIMES = {"executorch": executorch, "litert": litert}
both = pytest.mark.parametrize("runtime", [litert, executorch], ids=["litert", "executorch"])
ALL = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 8, 8)


def usual_runtimes(card: Target) -> list[str]:
    """What recipes lower to for a card, unless they say otherwise."""
    return list(Lower().on(card.runtimes).runtimes)


def images(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((count, *shape[1:]), generator=torch.Generator().manual_seed(seed))


def kinds(graph: Graph | IntegerGraph) -> list[str]:
    """The kinds of a graph's nodes behind its input."""
    return [node.kind for node in graph.nodes[1:]]


def integer_of(net: nn.Module, shape: tuple[int, ...], **options: object) -> IntegerGraph:
    """The integer graph, with an input whose zero point is in the middle; the options are `quantize`'s."""
    graph = trace(net, shape)
    return quantize(graph, ranges_of(graph), input_range=(-0.3, 1.0), **options)


#: Whether an example is lowered too: one of eight.
PROGRAMS = st.sampled_from([True, *[False] * 7])


def assert_float(net: nn.Module, shape: tuple[int, ...], seed: int = 0, programs: bool = True) -> Graph:
    """The traced graph computes what the network does: alone, as it is written, as both programs.

    Lowering takes seconds: property tests of many examples make programs of some, `PROGRAMS`.
    """
    net.eval()
    graph, x = trace(net, shape), images(shape, seed=seed)
    expected = outputs(net, x)
    for made in (graph, graph.written):
        assert_near(graph_outputs(made, x), expected)
    for runtime in RUNTIMES.values() if programs else ():
        found = runtime.load(runtime.lower_float(graph).data)(x[:1].numpy())
        assert_near([torch.from_numpy(f).reshape(e[:1].shape) for f, e in zip(found, expected, strict=True)],
                    [e[:1] for e in expected])  # fmt: skip
    return graph


def assert_exact(graph: IntegerGraph, runtime: object, count: int = 4) -> None:
    """In one delegate with nothing beside it, and no other codes; the parts as a whole too."""
    lowered = runtime.lower_integer(graph)
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    x = inputs_for(graph, count)
    found = compare(graph, runtime.load(lowered.data), x)
    assert found.values and found.differing == 0
    for one, other in zip(reference.predict(graph, x), reference.predict(graph.written, x), strict=True):
        assert (one == other).all()


def assert_codes(graph: IntegerGraph, codes: NDArray[np.int8], outside: dict[str, tuple[str, ...]]) -> None:
    """No code differs on either runtime, and all is in one delegate but for what is named."""
    for name, runtime in RUNTIMES.items():
        lowered = runtime.lower_integer(graph)
        assert lowered.undelegated == outside.get(name, ()), name
        assert outside.get(name) or lowered.subgraphs == 1
        apart = compare(graph, runtime.load(lowered.data), codes)
        assert apart.values and not apart.differing, (name, apart)


def assert_network_exact(net: nn.Module, shape: tuple[int, ...], **outside: tuple[str, ...]) -> IntegerGraph:
    """A network, calibrated, is exact on both runtimes, on real-like and on extreme codes."""
    graph = trace(net.eval(), shape)
    integer = quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))
    rng = np.random.default_rng(0)
    codes = integer.input.out.quantize(images(shape, 2, 7).numpy())
    noise = rng.integers(-128, 128, (2, *shape[1:])).astype(np.int8)
    ends = np.where(rng.random((1, *shape[1:])) < 0.5, -128, 127).astype(np.int8)
    assert_codes(integer, np.concatenate([codes, noise, ends]), outside)
    return integer


def unary(
    kind: str, source: Affine, out: Affine, shape: tuple[int, ...] = ALL.shape, **attrs
) -> IntegerGraph:
    """One operation on one tensor."""
    start = IntegerNode("input", "input", (), shape, source)
    return IntegerGraph((start, IntegerNode("y", kind, ("input",), shape, out, attrs=attrs)), ("y",))


def assert_cut(net: nn.Module, shape: tuple[int, ...], seeds: int = 3) -> dict[str, Group]:
    """Mask, thin and cut agree with the user's module with these channels at zero; gives the groups."""
    graph = trace(net.eval(), shape, opaque=True)
    groups, x = couple(graph), images(shape, 2, 5)
    assert any(not group.locked for group in groups)
    for seed in range(seeds):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        assert_near(outputs(cut(net, graph, groups, kept), x), expected)
    return {group.name: group for group in groups}


def assert_thinner(net: nn.Module, shape: tuple[int, ...], seeds: int = 3) -> dict[str, Group]:
    """Mask, thin and cut agree, where what is left computes otherwise: norms count it. Gives the groups."""
    graph = trace(net.eval(), shape)
    groups, x = couple(graph), images(shape, 1, 5)
    assert any(not group.locked for group in groups)
    for seed in range(seeds):
        kept = choose(groups, seed)
        expected = graph_outputs(mask(graph, groups, kept), x)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        assert_near(outputs(cut(net, graph, groups, kept), x), expected)
    return {group.name: group for group in groups}


def codes_of(graph: IntegerGraph, codes: NDArray[np.int8] = ALL) -> NDArray[np.int8]:
    """The reference's output."""
    return reference.predict(graph, codes)[0]
