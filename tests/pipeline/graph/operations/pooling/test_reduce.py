"""Means, sums and maxima over some axes: against torch, exact on both runtimes, pruned; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import inputs_for
from operation_checks import both, integer_of
from prune_networks import assert_near, choose, conv, graph_outputs, masked, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.compress.squantize.qat_network import QatNetwork
from paredown.pipeline.compress.training.sparsify import prunable
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.parity import compare
from paredown.targets.errors import InputError

MAP, LENGTH = (1, 5, 6, 7), (1, 5, 9)

CASES = {
    f"{what} over {dims}{' kept' if keep else ''} of {len(shape)}": (what, dims, keep, shape)
    for shape, some in ((MAP, ((2,), (3,), (2, 3), (1,), (-1, 1), (-2, 1))), (LENGTH, ((2,), (1,))))
    for what in ("mean", "sum", "amax")
    for dims in some
    for keep in (False, True)
}


def case(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    what, dims, keep, shape = CASES[name]
    return network(lambda m, x: getattr(torch, what)(x, dims, keepdim=keep)), shape


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_torch_computes(name):
    net, shape = case(name)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    graph = trace(net, shape)
    (found,), (expected,) = graph_outputs(graph, x), outputs(net, x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("name", CASES)
def test_it_is_exact_and_in_one_delegate(runtime, name):
    graph = integer_of(*case(name))
    lowered = runtime.lower_integer(graph)
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())
    found = compare(graph, runtime.load(lowered.data), inputs_for(graph, 4))
    assert found.values and found.differing == 0


@pytest.mark.parametrize("what", ["mean", "sum", "amax"])
def test_the_integers_are_those_of_a_plain_loop(what):
    graph = integer_of(network(lambda m, x: getattr(torch, what)(x, (3,))), MAP)
    x = inputs_for(graph, 1)[:1]
    source, out = graph.input.out, graph[graph.outputs[0]].out
    found = reference.predict(graph, x)[0]
    unit = np.float32(1) / np.float32(7 if what == "mean" else 1)
    scale = np.float32(source.scale) * unit / np.float32(out.scale)
    for c, i in np.ndindex(5, 6):
        row = [int(code) - source.zero_point for code in x[0, c, i]]
        code = max(row) if what == "amax" else int(np.rint(np.float32(sum(row)) * scale))
        assert found[0, c, i] == max(-128, min(127, code + out.zero_point))


def attention(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns, a whole map by its maximum, and a map of one channel."""
    x = F.relu(m.stem(x))
    rows, whole = m.rows(x.mean(3, keepdim=True)), m.head(x.amax((2, 3)))
    y = F.relu(m.side(x))
    return rows, whole, m.over(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)), m.last(y)


def branches() -> nn.Module:
    return network(
        attention, stem=conv(3, 8, 3), rows=conv(8, 4), head=nn.Linear(8, 3), side=conv(8, 6),
        over=conv(2, 1, 3), last=conv(6, 2),
    )  # fmt: skip


def test_channels_are_pruned_around_it():
    net = branches()
    graph = trace(net, (1, 3, 6, 8))
    groups = couple(graph)
    assert {group.name for group in groups if not group.locked and group.units > 1} == {"stem"}
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        kept = {name: units for name, units in choose(groups, seed).items() if name == "stem"}
        expected = outputs(masked(net, graph, groups, kept), x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        assert_near(outputs(cut(net, graph, groups, kept), x), expected)


def test_weights_that_are_no_parameters_are_not_trained():
    net = branches()
    graph = trace(net, (1, 3, 6, 8))
    assert "side.weight" in prunable(graph)
    x = torch.randn(2, 3, 6, 8)
    for found, expected in zip(QatNetwork(net, graph, {}).eval()(x), outputs(net, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: x.std((2, 3)), "normalize by running statistics"),
        (lambda m, x: torch.var(x, 1), "normalize by running statistics"),
        (lambda m, x: x.sum(), "keep the batch and another"),
        (lambda m, x: x.amax((1, 2, 3)), "keep the batch and another"),
    ],
)
def test_what_it_cannot_carry_says_what_to_change(function, words):
    with pytest.raises(InputError, match=words):
        trace(network(function), MAP, floats=False)
