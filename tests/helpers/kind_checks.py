"""What every operation kind's test shows: exact on both runtimes, the same in float, pruned around."""

from __future__ import annotations

import pytest
import torch
from lowering_networks import inputs_for, ranges_of
from prune_networks import assert_near, choose, graph_outputs, masked, outputs
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import compare

both = pytest.mark.parametrize("runtime", [litert, executorch], ids=["litert", "executorch"])


def kinds(graph: Graph | IntegerGraph) -> list[str]:
    """The kinds of a graph's nodes behind its input."""
    return [node.kind for node in graph.nodes[1:]]


def integer_of(net: nn.Module, shape: tuple[int, ...]) -> IntegerGraph:
    """The integer graph, with an input whose zero point is in the middle."""
    graph = trace(net, shape)
    return quantize(graph, ranges_of(graph), input_range=(-0.3, 1.0))


def assert_exact(graph: IntegerGraph, runtime, count: int = 2) -> None:
    """In one delegate with nothing beside it, and no other codes; the parts as a whole too."""
    lowered = runtime.lower_integer(graph)
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    x = inputs_for(graph, count)
    found = compare(graph, runtime.load(lowered.data), x)
    assert found.values and found.differing == 0
    for one, other in zip(reference.predict(graph, x), reference.predict(graph.written, x), strict=True):
        assert (one == other).all()


def assert_float(net: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Graph:
    """The traced graph, and what it is written as, compute what torch does; gives the graph."""
    graph = trace(net, shape)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    for found in (graph_outputs(graph, x), graph_outputs(graph.written, x)):
        for one, other in zip(found, outputs(net, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return graph


def assert_pruned(net: nn.Module, shape: tuple[int, ...], seeds: int = 3) -> dict[str, Group]:
    """Masked, thinned and cut it is the original with the same channels at zero; gives its groups."""
    graph = trace(net, shape)
    groups = couple(graph)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(1))
    for seed in range(seeds):
        kept = choose(groups, seed)
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        assert_near(outputs(cut(net, graph, groups, kept), x), expected)
    return {group.name: group for group in groups}
