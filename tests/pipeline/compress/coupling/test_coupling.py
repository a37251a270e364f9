"""coupling.py: what is tied, what is not, and that a group says why."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operation_checks import assert_cut
from prune_networks import (
    choose,
    conv,
    masked,
    network,
    outputs,
    programs,
    removed,
    reorg,
    shuffle,
    unroll,
)
from torch import Tensor, nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.darknet.layers import Reorg
from paredown.apps.detector.network import ReorgLayer
from paredown.pipeline.compress.coupling.coupling import Group, Member, couple
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace

SHAPE = (1, 3, 8, 8)


def coupled(net: nn.Module, shape: tuple[int, ...] = SHAPE, opaque: bool = False) -> dict[str, Group]:
    return {group.name: group for group in couple(trace(net, shape, opaque=opaque))}


def singles(count: int, start: int = 0) -> tuple[tuple[int, ...], ...]:
    return tuple((start + i,) for i in range(count))


def free(groups: dict[str, Group]) -> list[str]:
    return [name for name, group in groups.items() if not group.locked]


# -- what is tied --------------------------------------------------------------------------------------------


def test_a_chain_of_layers_ties_what_one_makes_to_what_the_next_reads():
    def forward(m, x):
        return m.c(F.max_pool2d(F.relu6(m.n(m.b(F.relu(m.a(x))))), 2))

    net = network(forward, a=conv(3, 4), b=conv(4, 6, 3, bias=False), n=nn.BatchNorm2d(6), c=conv(6, 2))
    groups = coupled(net)
    assert list(groups) == ["a", "b", "c"]
    assert groups["a"].members == (Member("a", "out", singles(4)), Member("b", "in", singles(4)))
    assert groups["b"].members == (Member("b", "out", singles(6)), Member("c", "in", singles(6)))
    assert [g.units for g in groups.values()] == [4, 6, 2]
    assert groups["c"].locked == "is the network's output c"
    assert free(groups) == ["a", "b"]
    assert groups["b"].chain == ("b makes them", "c reads them")


def test_residual_additions_tie_every_layer_of_the_stream():
    def forward(m, x):
        x = m.stem(x)
        x = x + m.b(F.relu(m.a(x)))
        return m.head(F.relu(m.d(x) + m.e(x)) + x)

    net = network(
        forward, stem=conv(3, 6), a=conv(6, 4), b=conv(4, 6), d=conv(6, 6), e=conv(6, 6, 3), head=conv(6, 2)
    )
    groups = coupled(net)
    assert free(groups) == ["stem", "a"]
    stream = groups["stem"]
    assert {m.node for m in stream.makers} == {"stem", "b", "d", "e"}
    assert {m.node for m in stream.members if m.side == "in"} == {"a", "d", "e", "head"}
    assert all(member.channels == singles(6) for member in stream.members)
    assert stream.chain == (
        "stem makes them", "a reads them", "b makes them too", "add adds stem and b: tied",
        "d makes them too", "e makes them too", "add_1 adds d and e: tied",
        "add_2 adds relu_1 and add: tied", "head reads them",
    )  # fmt: skip


def test_a_concat_places_each_group_at_its_offset():
    def forward(m, x):
        a, b = m.a(x), m.b(x)
        return m.c(F.relu(torch.cat([b, a, F.relu(b)], 1)))

    groups = coupled(network(forward, a=conv(3, 4), b=conv(3, 6), c=conv(16, 5)))
    assert groups["a"].members == (Member("a", "out", singles(4)), Member("c", "in", singles(4, 6)))
    twice = tuple((i, 10 + i) for i in range(6))
    assert groups["b"].members == (Member("b", "out", singles(6)), Member("c", "in", twice))
    assert groups["a"].chain[1] == "cat places them at channels 6 to 9"
    assert groups["b"].chain[1] == "cat places them at channels 0 to 15, 2 for each"


def test_concats_of_concats_keep_the_offsets():
    def forward(m, x):
        a, b, c = m.a(x), m.b(x), m.c(x)
        return m.d(torch.cat([c, torch.cat([a, b], 1), a], 1))

    groups = coupled(network(forward, a=conv(3, 2), b=conv(3, 3), c=conv(3, 4), d=conv(11, 5)))
    reads = {name: groups[name].members[-1].channels for name in "abc"}
    assert reads == {"a": ((4, 9), (5, 10)), "b": singles(3, 6), "c": singles(4)}


def test_a_concat_along_width_ties_both_sides():
    net = network(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 3)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert {m.node for m in coupled(net)["a"].makers} == {"a", "b"}


def test_depthwise_convolutions_carry_channels_and_multiply_them():
    def forward(m, x):
        return m.c(m.d(m.b(m.a(x))))

    net = network(forward, a=conv(3, 4), b=conv(4, 4, 3, groups=4), d=conv(4, 8, 3, groups=4), c=conv(8, 2))
    group = coupled(net)["a"]
    pairs = ((0, 1), (2, 3), (4, 5), (6, 7))
    assert [(m.node, m.side, m.channels) for m in group.members] == [
        ("a", "out", singles(4)), ("b", "in", singles(4)), ("b", "out", singles(4)),
        ("d", "in", singles(4)), ("d", "out", pairs), ("c", "in", pairs),
    ]  # fmt: skip
    assert group.chain == ("a makes them", "b carries them too", "d carries them too", "c reads them")
    assert (group.units, group.channels) == (4, 4)


def test_a_convolution_of_many_small_groups_loses_whole_groups():
    net = network(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=conv(6, 12, groups=3), c=conv(12, 2))
    group = coupled(net)["a"]
    assert [m.channels for m in group.members] == [
        ((0, 1), (2, 3), (4, 5)), ((0, 1), (2, 3), (4, 5)),
        ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)), ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)),
    ]  # fmt: skip


def test_a_convolution_of_few_large_groups_loses_a_position_of_each():
    net = network(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 6, groups=2), c=conv(6, 2))
    groups = coupled(net)
    assert groups["a"].members == (
        Member("a", "out", tuple((i, i + 4) for i in range(4))),
        Member("b", "in", tuple((i, i + 4) for i in range(4))),
    )
    assert [m.channels for m in groups["b"].members] == [((0, 3), (1, 4), (2, 5))] * 2


def test_a_convolution_used_twice_is_one_layer():
    def forward(m, x):
        x = F.relu(m.a(x))
        return m.c(F.relu(m.b(F.relu(m.b(x)))))

    groups = coupled(network(forward, a=conv(3, 4), b=conv(4, 4, 3), c=conv(4, 2)))
    assert free(groups) == ["a"]
    assert {(m.node, m.side) for m in groups["a"].members} == {
        ("a", "out"), ("b", "in"), ("b", "out"), ("b#2", "in"), ("b#2", "out"), ("c", "in"),
    }  # fmt: skip
    assert "b#2 makes them too, sharing a parameter with b" in groups["a"].chain


def test_a_convolution_used_on_two_inputs_ties_their_channels():
    def forward(m, x):
        return m.d(torch.cat([m.c(m.a(x)), m.c(m.b(x))], 1))

    groups = coupled(network(forward, a=conv(3, 4), b=conv(3, 4, 3), c=conv(4, 5), d=conv(10, 2)))
    assert {m.node for m in groups["a"].makers} == {"a", "b"}
    assert groups["c"].members[-1] == Member("d", "in", tuple((i, i + 5) for i in range(5)))


@pytest.mark.parametrize("one", [True, False], ids=["one tensor", "two tensors of one memory"])
def test_a_parameter_under_two_names_ties_both_layers(one: bool):
    def forward(m, x):
        return m.d(torch.cat([m.b(x), m.c(F.relu(m.a(x)))], 1))

    net = network(forward, a=conv(3, 3, 3), b=conv(3, 4, bias=False), c=conv(3, 4, bias=False), d=conv(8, 2))
    net.c.weight = net.b.weight if one else nn.Parameter(net.b.weight.data)
    groups = coupled(net)
    assert {m.node for m in groups["b"].makers} == {"b", "c"}
    assert groups["a"].locked == "is the network's input"  # b reads the input with the same columns


def test_a_batch_norm_used_twice_ties_the_layers_before_it():
    def forward(m, x):
        return m.c(torch.cat([m.n(m.a(x)), F.relu(m.n(m.b(x)))], 1))

    net = network(forward, a=conv(3, 4), b=conv(3, 4), n=nn.BatchNorm2d(4), c=conv(8, 2))
    group = coupled(net)["a"]
    assert {m.node for m in group.makers} == {"a", "b"}
    assert group.members[-1].channels == tuple((i, i + 4) for i in range(4))
    assert "b makes them too, sharing a parameter with a" in group.chain


def test_flatten_gives_each_channel_all_of_its_pixels():
    net = network(lambda m, x: m.f(F.max_pool2d(m.a(x), 4).flatten(1)), a=conv(3, 5), f=nn.Linear(20, 3))
    group = coupled(net)["a"]
    assert group.members[-1] == Member("f", "in", tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(5)))
    assert (group.units, group.step) == (5, 1)
    assert group.chain[1:] == ("flatten reshapes them", "f reads them")
    turned = network(
        lambda m, x: m.f(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 5), f=nn.Linear(320, 3)
    )
    reads = coupled(turned)["a"].members[-1].channels
    assert reads == tuple(tuple(range(i, 320, 5)) for i in range(5))


def test_what_is_added_to_the_input_is_locked():
    net = network(lambda m, x: m.b(x + m.a(x)), a=conv(3, 3), b=conv(3, 2))
    group = coupled(net)["a"]
    assert group.locked == "is the network's input"


def test_every_output_is_locked_and_what_is_tied_to_it():
    def forward(m, x):
        y = m.a(x)
        return m.c(y + m.b(y)), y

    groups = coupled(network(forward, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2)))
    assert free(groups) == []
    assert groups["a"].locked == "is the network's output a"


# -- rearranged channels: who reaches whom is found by running it --------------------------------------------


def reached(function: object, channels: int, side: int) -> list[set[int]]:
    """Channel -> the channels of the output that change with it."""
    found = []
    for channel in range(channels):
        x = torch.zeros(1, channels, side, side)
        x[:, channel] = 1
        found.append(set(torch.nonzero(function(x)[0].sum((1, 2))).ravel().tolist()))
    return found


def darknet_reorg(x: Tensor) -> Tensor:
    return ReorgLayer(Reorg(2))(x)


REARRANGED = {
    "reorg, H % 4 == 0": (darknet_reorg, 16, 8, 16, 4),
    "reorg, H % 4 == 2": (darknet_reorg, 16, 10, 8, 2),
    "reorg as METHODS writes it": (reorg, 8, 6, 4, 2),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 16, 4, 4, 1),
    "pixel shuffle by hand": (unroll, 16, 4, 4, 1),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 5, 4, 5, 1),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), 12, 4, 6, 1),
    "channel shuffle by hand": (lambda x: shuffle(x, 3), 12, 8, 4, 1),
    "two shuffles": (lambda x: F.channel_shuffle(shuffle(x, 3), 2), 24, 4, 4, 1),
    "two views of one": (
        lambda x: F.relu(x.view(1, -1, 4, 4)) + x.reshape(1, 6, 16).view(1, 6, 4, 4), 6, 4, 6, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REARRANGED)
def test_rearranged_channels_are_followed_to_their_places(name: str):
    function, channels, side, units, step = REARRANGED[name]
    with torch.no_grad():
        made = function(torch.zeros(1, channels, side, side)).shape[1]
    net = network(lambda m, x: m.b(function(m.a(x))), a=conv(3, channels), b=conv(made, 2))
    group = coupled(net, (1, 3, side, side))["a"]
    assert not group.locked
    assert (group.units, group.step) == (units, step)
    reach = reached(function, channels, side)
    for inside, outside in zip(group.members[0].channels, group.members[1].channels, strict=True):
        assert set().union(*(reach[i] for i in inside)) == set(outside)
    # and nothing is tied that could live alone: a step of 1 means that any unit may go
    assert sorted(itertools.chain(*group.members[0].channels)) == list(range(channels))


def test_a_shuffle_after_a_convolution_of_as_many_groups_needs_no_more_ties():
    def forward(m, x):
        return m.c(F.channel_shuffle(m.b(m.a(x)), 2))

    groups = coupled(network(forward, a=conv(3, 8), b=conv(8, 12, groups=2), c=conv(12, 2)))
    assert groups["b"].members[0].channels == tuple((i, i + 6) for i in range(6))
    assert (groups["b"].units, groups["b"].step, groups["b"].locked) == (6, 1, "")


def test_a_reshape_that_no_width_but_its_own_fits_locks_and_is_named():
    def forward(m, x):
        x = m.a(x)  # (1, 6, 8, 8): channels and pixels in one
        return m.b(x.reshape(x.shape[0], 8, -1).permute(0, 2, 1).reshape(x.shape[0], 6, 8, 8))

    groups = coupled(network(forward, a=conv(3, 6), b=conv(6, 2)))
    assert groups["a"].units == 1 or "has no legal width but its own through reshape" in groups["a"].locked


# -- what is not known ---------------------------------------------------------------------------------------


def squeeze(m: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return m.c(m.n(m.b(y * torch.sigmoid(m.s(y.mean((2, 3), keepdim=True))))))


def wrap(function: object) -> object:
    """a -> something unknown -> b, batch norm -> c: b's channels can be cut, a's cannot."""
    return lambda m, x: m.c(m.n(m.b(function(m, m.a(x)))))


def parts() -> dict[str, nn.Module]:
    return dict(a=conv(3, 4), b=conv(4, 6, bias=False), n=nn.BatchNorm2d(6), c=conv(6, 2))


UNKNOWN = {
    "bernoulli": lambda m, y: torch.bernoulli(torch.sigmoid(y)),
    "dropout": lambda m, y: F.dropout(y, 0.5, training=True),
    "fft_fft2": lambda m, y: torch.fft.fft2(y).real,
}
WHOLE = {"cumsum": lambda m, y: torch.cumsum(y, 1), "flip": lambda m, y: y.flip(1)}


@pytest.mark.parametrize("operation", UNKNOWN)
def test_what_is_not_known_is_named_and_left_whole_the_rest_can_be_cut(operation: str):
    groups = coupled(network(wrap(UNKNOWN[operation]), **parts()), opaque=True)
    assert groups["a"].locked.startswith(f"passes through {operation}, which is not known (")
    assert re.search(r"\.py:\d+\)$", groups["a"].locked)
    assert any(f"({operation}) is not known: locked" in line for line in groups["a"].chain)
    assert free(groups) == ["b"]
    assert groups["b"].members == (Member("b", "out", singles(6)), Member("c", "in", singles(6)))


@pytest.mark.parametrize("operation", WHOLE)
def test_a_float_island_over_channels_keeps_what_it_reads_whole(operation: str):
    groups = coupled(network(wrap(WHOLE[operation]), **parts()))
    why = f"passes through aten::{operation}.default, which is computed in float as a whole ("
    assert groups["a"].locked.startswith(why)
    assert free(groups) == ["b"]


def test_a_function_of_single_values_leaves_every_channel_free():
    groups = coupled(network(wrap(lambda m, y: torch.sin(y)), **parts()))
    assert free(groups) == ["a", "b"]


def test_numbers_per_channel_that_are_computed_lock_what_they_multiply():
    def forward(m, y):
        return y * m.a.weight.sum((1, 2, 3)).reshape(1, 4, 1, 1)

    groups = coupled(network(wrap(forward), **parts()), opaque=True)
    assert "is no parameter of its own at mul" in groups["a"].locked
    assert free(groups) == ["b"]


def test_weights_that_are_computed_lock_their_layer_and_the_parameter_they_come_from():
    def forward(m, x):
        y = F.conv2d(m.a(x), m.w.weight * 2)
        return m.d(F.relu(m.c(m.b(y) + m.w(m.e(x)))))

    net = network(forward, a=conv(3, 4), w=conv(4, 5), b=conv(5, 5), c=conv(5, 6), d=conv(6, 2), e=conv(3, 4))
    groups = coupled(net, opaque=True)
    assert free(groups) == ["c"]
    assert "is no parameter" in groups["a"].locked
    assert "shares a parameter" in groups["b"].locked
    assert "shares a parameter" in groups["e"].locked


def test_a_batch_norm_that_is_folded_here_and_alone_there_ties_both():
    def forward(m, x):
        y = m.a(x)
        return m.c(m.n(m.b(x)) + m.n(F.relu(y)))

    layers = {"a": conv(3, 4), "b": conv(3, 4), "n": nn.BatchNorm2d(4), "c": conv(4, 2)}
    groups = coupled(network(forward, **layers), opaque=True)
    assert free(groups) == ["a"]
    assert {member.node for member in groups["a"].makers} == {"a", "b", "n"}
    assert_cut(network(forward, **layers), SHAPE)


def test_a_graph_without_parameter_names_is_left_whole():
    graph = trace(network(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 2)), SHAPE)
    bare = Graph(tuple(replace(node, parameters={}) for node in graph), graph.outputs)
    assert all(group.locked for group in couple(bare))
    assert "is no parameter" in couple(bare)[0].locked


# -- properties ----------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(net=programs(unknown=True), seed=st.integers(0, 1000))
def test_groups_part_the_channels_and_what_goes_is_zero_where_it_is_read(net: nn.Module, seed: int):
    graph = trace(net, SHAPE, opaque=True)
    groups = couple(graph)
    for side in ("out", "in"):
        places = [
            (m.node, c) for g in groups for m in g.members if m.side == side for u in m.channels for c in u
        ]
        assert len(places) == len(set(places))
        if side == "out":
            assert sorted(places) == sorted((n.name, c) for n in graph if n.weight is not None
                                            for c in range(n.weight.shape[0]))  # fmt: skip
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert all(len(member.channels) == group.units for member in group.members)
        assert all(len(set(map(len, member.channels))) == 1 for member in group.members)
        assert group.chain and group.describe().startswith(f"{group.name}: ")
    # with the channels set to zero in the module itself, every layer reads zeros at exactly those places
    kept = choose(groups, seed)
    twin, gone = masked(net, graph, groups, kept), removed(groups, kept, "in")
    seen: dict[str, Tensor] = {}
    for node in graph:
        if node.weight is not None and "#" not in node.name:
            layer = twin.get_submodule(node.name)
            layer.register_forward_pre_hook(lambda m, x, name=node.name: seen.setdefault(name, x[0]))
    outputs(twin, torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)))
    for name, x in seen.items():
        assert not x[:, sorted(gone.get(name, []))].any()


@pytest.mark.parametrize(("name", "blocks", "free_groups"), [("resnet20", 9, 12), ("resnet18", 8, 12)])
def test_resnets_have_a_group_per_stage_and_one_inside_each_block(name: str, blocks: int, free_groups: int):
    groups = coupled(build(name).eval(), (1, 3, 64, 64))
    inner = [g for g in groups.values() if g.name.endswith("conv1") and g.name != "conv1"]
    assert len(inner) == blocks and all(len(g.members) == 2 for g in inner)
    assert len(free(groups)) == free_groups == blocks + (3 if name == "resnet20" else 4)
    assert [g.units for g in groups.values() if g not in inner and not g.locked] == (
        [16, 32, 64] if name == "resnet20" else [64, 128, 256, 512]
    )
