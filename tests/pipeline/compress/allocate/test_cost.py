"""cost.py against surgery: whatever a cost says of some widths, the graph that really has them says too."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.compress.allocate.cost import (
    Cost,
    CostTerm,
    channel_counts,
    counted,
    group_multiple,
    group_widths,
    nearest,
    widths,
)
from paredown.pipeline.compress.coupling.coupling import Group, couple
from paredown.pipeline.compress.coupling.surgery import thin
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.targets.cards.card import ChannelMultiple
from paredown.targets.errors import UsageError


class Mixed(nn.Module):
    """A stem, a depthwise and a grouped convolution, a shared one, a concat of three, an addition, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.point = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(12, 6, 1)
        self.after = nn.Conv2d(22, 10, 3, padding=1)
        self.head = nn.Linear(10 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = self.point(F.relu6(self.depth(x))), self.grouped(x)
        b = self.shared(self.shared(F.relu(b)))
        joined = torch.cat([a, b, self.side(x)], 1)
        return self.head(F.max_pool2d(self.after(joined), 2).flatten(1))


NETWORKS = {
    "mixed": (lambda: Mixed(), (1, 3, 8, 8)),
    "resnet20": (lambda: build("resnet20"), (1, 3, 32, 32)),
    "mobilenet_v2": (lambda: build("mobilenet_v2"), (1, 3, 32, 32)),
    "nano": (lambda: YoloV2.builtin("yolov2-nano"), (1, 3, 64, 64)),
}


@functools.cache
def coupled(name: str) -> tuple[Graph, tuple[Group, ...]]:
    make, shape = NETWORKS[name]
    graph = trace(make().eval(), shape)
    return graph, couple(graph)


def multiples(each: int) -> ChannelMultiple:
    return ChannelMultiple(conv=each, pointwise=each, depthwise=each, linear=each)


# -- allowed widths ------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 64), st.integers(1, 4))
def test_widths_are_the_full_one_and_every_multiple_below_it(units, per_unit, multiple, step):
    found = widths(units, per_unit, multiple, step=step)
    legal = [w for w in range(1, units) if w * per_unit % multiple == 0 and w % step == 0]
    assert found == (units, *reversed(legal))


@given(st.integers(1, 300), st.integers(1, 32), st.integers(2, 12))
def test_thinned_widths_keep_both_ends_and_are_even(units, multiple, count):
    whole, thinned = widths(units, 1, multiple), widths(units, 1, multiple, count)
    assert len(thinned) == min(count, len(whole))
    assert (thinned[0], thinned[-1]) == (whole[0], whole[-1])
    places = np.diff([whole.index(width) for width in thinned])
    assert len(places) == 0 or (places.min() > 0 and places.max() - places.min() <= 1)


@pytest.mark.parametrize("bad", [(0, 1, 1), (4, 0, 1), (4, 1, 0), (4, 1, 1, 1)])
def test_widths_of_nothing_are_refused(bad):
    with pytest.raises(UsageError):
        widths(*bad)


@given(st.floats(0, 1), st.integers(1, 100), st.integers(1, 16))
def test_nearest_is_nearest_and_never_nothing(share, units, multiple):
    allowed = widths(units, 1, multiple)
    found = nearest(share, allowed)
    assert found in allowed and found >= 1
    assert abs(found - share * units) == min(abs(width - share * units) for width in allowed)


@pytest.mark.parametrize("share", [math.nan, -0.1, 1.1, math.inf])
def test_nearest_takes_shares_only(share):
    with pytest.raises(UsageError, match="within 0 and 1"):
        nearest(share, (8, 4))


def test_the_multiple_is_that_of_the_layers_that_make_the_channels():
    graph, groups = coupled("mixed")
    multiple = ChannelMultiple(conv=4, pointwise=3, depthwise=5, linear=7)
    found = {group.name: group_multiple(graph, group, multiple) for group in groups}
    assert found["stem"] == 20  # a convolution and the depthwise one behind it
    assert found["point"] == 3 and found["side"] == 3
    assert found["head"] == 7


def test_a_locked_group_has_its_full_width_only():
    graph, groups = coupled("mixed")
    head = next(group for group in groups if group.name == "head")
    assert head.locked
    assert group_widths(graph, head, multiples(1)) == (4,)


@pytest.mark.parametrize("name", ["mixed", "nano"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_every_allowed_width_has_whole_multiples_and_can_be_cut(name, multiple):
    graph, groups = coupled(name)
    for group in groups[:: max(1, len(groups) // 4)]:
        for width in group_widths(graph, group, multiples(multiple), 3)[1:]:
            for maker in group.makers:
                assert width * len(maker.channels[0]) % multiple == 0
            thinner = thin(graph, groups, {group.name: range(width)})
            assert thinner[group.makers[0].node].shape[1] < graph[group.makers[0].node].shape[1]


# -- costs ---------------------------------------------------------------------------------------------------


def some_widths(graph: Graph, groups: tuple[Group, ...], seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {g.name: int(rng.choice(group_widths(graph, g, multiples(1)))) for g in groups}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "mobilenet_v2" else []) for n in NETWORKS]
)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_costs_are_those_of_the_thin_graph(name, seed):
    graph, groups = coupled(name)
    chosen = some_widths(graph, groups, seed)
    thinner = thin(graph, groups, {name: range(width) for name, width in chosen.items()})
    layers = [node for node in thinner if node.weight is not None]
    assert counted(graph, groups, "macs").total(chosen) == thinner.macs
    assert counted(graph, groups, "bytes").total(chosen) == sum(
        node.weight.numel() + 4 * node.bias.numel() for node in layers
    )
    counts = channel_counts(graph, groups)
    for node in thinner:
        if node.kind not in {"reshape", "permute"}:
            assert counts[node.name].at(chosen) == pytest.approx(node.shape[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_unpruned_cost_is_that_of_the_graph(name):
    graph, groups = coupled(name)
    cost = counted(graph, groups, "macs")
    assert cost.unpruned == graph.macs
    assert cost.share({}) == 1


@pytest.mark.parametrize("name", ["mixed", "nano"])
@pytest.mark.parametrize("what", ["macs", "bytes"])
def test_tables_add_up_to_the_cost(name, what):
    graph, groups = coupled(name)
    cost = counted(graph, groups, what)
    choices = {g.name: group_widths(graph, g, multiples(1), 4) for g in groups}
    tables, constant, exact = cost.tables(choices)
    assert exact and all(len(table.groups) <= 2 for table in tables)
    assert len({table.groups for table in tables}) == len(tables)
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = {name: int(rng.choice(found)) for name, found in choices.items()}
        assert summed(tables, constant, choices, chosen) == pytest.approx(cost.total(chosen), rel=1e-12)


def summed(tables, constant, choices, chosen) -> float:
    return constant + sum(
        table.values[tuple(choices[name].index(chosen[name]) for name in table.groups)] for table in tables
    )


def one_part(count: int, value) -> tuple[Cost, dict[str, tuple[int, ...]]]:
    names = [f"g{i}" for i in range(count)]
    cost = Cost("latency", "ms", dict.fromkeys(names, 4), (CostTerm("layer", tuple(names), value, False),))
    return cost, dict.fromkeys(names, (4, 2, 1))


def test_a_part_of_three_groups_is_one_exact_table():
    cost, choices = one_part(3, lambda chosen: float(math.prod(chosen.values())) ** 1.5)
    tables, constant, exact = cost.tables(choices)
    assert exact and [table.values.shape for table in tables] == [(3, 3, 3)]
    for combination in itertools.product((4, 2, 1), repeat=3):
        chosen = dict(zip(choices, combination, strict=True))
        assert summed(tables, constant, choices, chosen) == pytest.approx(cost.total(chosen))


def test_a_part_of_more_groups_is_split_and_says_so():
    cost, choices = one_part(4, lambda chosen: float(sum(chosen.values())) ** 2)  # pairs are enough for this
    tables, constant, exact = cost.tables(choices)
    assert not exact
    for combination in itertools.product((4, 2, 1), repeat=4):
        chosen = dict(zip(choices, combination, strict=True))
        assert summed(tables, constant, choices, chosen) == pytest.approx(cost.total(chosen))


def test_groups_without_a_choice_are_in_the_constant():
    cost, _ = one_part(3, lambda chosen: float(math.prod(chosen.values())))
    tables, constant, _ = cost.tables({"g1": (4, 2)})
    assert constant == 0 and [table.groups for table in tables] == [("g1",)]
    assert tables[0].values.tolist() == [64, 32]
