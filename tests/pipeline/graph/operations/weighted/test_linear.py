"""linear over more than two axes: on the map whose channels are the last; few copies, exact, pruned."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import inputs_for
from operation_checks import assert_exact, assert_float, both, integer_of
from prune_networks import assert_near, choose, graph_outputs, network, outputs, removed
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group, Kept
from paredown.pipeline.compress.coupling.surgery import cut, mask, thin
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.gptq_init import round_weights
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.targets.errors import InputError


def steps(m: nn.Module, x: Tensor) -> Tensor:
    """(1, T, F) in and out, an activation and a skip between."""
    y = F.relu(m.a(x))
    return m.c(y + F.leaky_relu(m.b(y), 0.1))


def conv_next(m: nn.Module, x: Tensor) -> Tensor:
    """Channels last between two convolutions."""
    x = F.relu(m.stem(x))
    y = m.d(x).permute(0, 2, 3, 1)
    y = m.b(F.relu(m.a(y))).permute(0, 3, 1, 2)
    return m.head((x + y).mean((2, 3)))


def sequence(m: nn.Module, x: Tensor) -> Tensor:
    """A map as a sequence, linear layers over it, a convolution over lengths, a mean over time."""
    x = F.relu(m.stem(x)).flatten(2).transpose(1, 2)
    x = torch.cat([F.relu(m.a(x)), x], 2)
    x = m.conv(x.transpose(1, 2)).transpose(1, 2)
    return m.head(m.b(F.relu(x)).mean(1))


def matrices(m: nn.Module, x: Tensor) -> Tensor:
    """The same with products of matrices."""
    y = torch.relu(torch.matmul(x, m.a.weight))
    return torch.addmm(m.b.bias, y.mean(1), m.b.weight)


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...], int, set[str]]]:
    """Network, shape, most reshapes and permutes, groups that are free."""
    made = {
        "steps": (
            network(steps, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 5)), (1, 7, 6), 4, {"a"},
        ),
        "conv_next": (
            network(
                conv_next, stem=nn.Conv2d(3, 8, 3, 2, 1), d=nn.Conv2d(8, 8, 3, padding=1, groups=8),
                a=nn.Linear(8, 12), b=nn.Linear(12, 8), head=nn.Linear(8, 4),
            ),
            (1, 3, 12, 10), 1, {"stem", "a"},
        ),
        "sequence": (
            network(
                sequence, stem=nn.Conv2d(3, 8, 3, 2, 1), a=nn.Linear(8, 10),
                conv=nn.Conv1d(18, 6, 3, padding=1), b=nn.Linear(6, 9), head=nn.Linear(9, 4),
            ),
            (1, 3, 12, 10), 2, {"stem", "a", "conv", "b"},
        ),
        "matrices": (network(matrices, a=nn.Linear(8, 6), b=nn.Linear(8, 4)), (1, 5, 6), 4, set()),
    }  # fmt: skip
    with torch.no_grad():
        made["matrices"][0].a.weight = nn.Parameter(torch.randn(6, 8))
        made["matrices"][0].b.weight = nn.Parameter(torch.randn(8, 4))
    return made


@pytest.mark.parametrize("name", nets())
def test_it_computes_what_torch_computes_with_few_copies(name):
    net, shape, copies, _ = nets()[name]
    graph = trace(net, shape)
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph_outputs(graph, x)[0], outputs(net, x)[0], rtol=1e-4, atol=1e-5)
    kinds = Counter(node.kind for node in graph)
    assert kinds["reshape"] + kinds["permute"] <= copies


@both
@pytest.mark.parametrize("name", nets())
def test_it_is_exact_and_in_one_delegate(runtime, name):
    net, shape, _, _ = nets()[name]
    assert_exact(integer_of(net, shape), runtime)


def test_the_integers_are_those_of_a_plain_loop():
    graph = integer_of(network(lambda m, x: m.a(x), a=nn.Linear(6, 4)), (1, 5, 6))
    node, x = next(n for n in graph if n.weight is not None), inputs_for(graph, 1)[:1]
    source, out, found = graph.input.out, node.out, reference.predict(graph, x)[0]
    assert found.shape == (1, 5, 4)
    scale = np.float32(source.scale) * node.weight_scale / np.float32(out.scale)
    for t, o in np.ndindex(5, 4):
        weight = node.weight[o].ravel()
        total = int(node.bias[o]) + sum(
            (int(x[0, t, i]) - source.zero_point) * int(weight[i]) for i in range(6)
        )
        code = int(np.rint(np.float32(total) * scale[o])) + out.zero_point
        assert found[0, t, o] == max(-128, min(127, code))


def hooked(net: nn.Module, graph: Graph, groups: Sequence[Group], kept: Kept, x: Tensor) -> list[Tensor]:
    """The original with hooks that make channels zero: a linear layer's are its last axis."""
    twin = copy.deepcopy(net)
    for name, channels in removed(groups, kept, "out").items():
        layer = twin.get_submodule(graph[name].parameters["weight"].removesuffix(".weight"))
        axis = -1 if isinstance(layer, nn.Linear) else 1

        def hook(
            module: nn.Module, given: object, made: Tensor, gone: list[int] = channels, axis: int = axis
        ):
            return made.index_fill(axis, torch.tensor(gone), 0.0)

        layer.register_forward_hook(hook)
    return outputs(twin, x)


@pytest.mark.parametrize("name", ["steps", "conv_next", "sequence"])
def test_channels_are_pruned_through_it(name):
    net, shape, _, free = nets()[name]
    graph = trace(net, shape)
    groups = couple(graph)
    assert {group.name for group in groups if not group.locked} == free
    x = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        kept = choose(groups, seed)
        expected = hooked(net, graph, groups, kept, x)
        assert_near(graph_outputs(mask(graph, groups, kept), x), expected)
        assert_near(graph_outputs(thin(graph, groups, kept), x), expected)
        smaller = cut(net, graph, groups, kept)
        assert_near(outputs(smaller, x), expected)
        assert smaller.a.weight.shape == (smaller.a.out_features, smaller.a.in_features)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_it_is_trained_in_few_bits(per):
    net, shape, _, _ = nets()["sequence"]
    graph = trace(net, shape)
    plans = {
        name: LayerPlan(GridConfig(4, "uniform", per=per), sparsity=0.3) for name in quantizable(graph, net)
    }
    assert len(plans) == 5
    live = QatNetwork(net, graph, plans).eval()
    x = torch.randn((4, *shape[1:]), generator=torch.Generator().manual_seed(0))
    round_weights(live, x)
    folded = fold(live, shape)
    torch.testing.assert_close(graph_outputs(folded, x)[0], live(x), rtol=1e-3, atol=1e-4)
    live.train()
    live(x).square().mean().backward()
    assert net.a.weight.grad.abs().sum() > 0


def test_over_five_axes_it_is_carried():
    assert_float(
        network(lambda m, x: m.a(x.reshape(-1, 1, 2, 3, 6)).flatten(1), a=nn.Linear(6, 4)), (1, 6, 6)
    )


def test_weights_that_the_network_computes_are_refused():
    net = network(lambda m, x: torch.nn.functional.linear(x, x[:, 0]))
    with pytest.raises(InputError, match="make them parameters"):
        trace(net, (1, 6, 6), floats=False)
