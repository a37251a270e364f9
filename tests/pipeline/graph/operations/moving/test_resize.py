"""resize: nearest, to any size; exact as copies, as slices, and as selections along an axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import Builder, inputs_for
from operation_checks import (
    PROGRAMS,
    assert_cut,
    assert_exact,
    assert_float,
    both,
    integer_of,
    kinds,
    usual_runtimes,
)
from prune_networks import conv, network
from torch import Tensor, nn

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.moving import resize
from paredown.pipeline.graph.operations.moving.resize import repeated
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError


def nearest(**options: object) -> nn.Module:
    return network(lambda m, x: F.interpolate(x, **{"mode": "nearest", **options}))


SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=60, deadline=None)
@given(programs=PROGRAMS, before=SIZES, after=SIZES, mode=st.sampled_from(["nearest", "nearest-exact"]))
def test_it_computes_what_torch_computes(programs, before, after, mode):
    assert_float(nearest(size=after, mode=mode), (1, 3, *before), programs=programs)


@settings(max_examples=30, deadline=None)
@given(programs=PROGRAMS, before=SIZES, scale=st.tuples(st.floats(0.3, 3.4), st.floats(0.3, 3.4)))
def test_factors_are_those_that_were_given(programs, before, scale):
    if all(int(size * factor) for size, factor in zip(before, scale, strict=True)):
        assert_float(nearest(scale_factor=scale), (1, 2, *before), programs=programs)


def test_a_smaller_map_is_a_slice_and_the_same_is_nothing():
    assert kinds(trace(nearest(scale_factor=0.5), (1, 3, 8, 6))) == ["slice"]
    assert kinds(trace(nearest(size=(8, 6)), (1, 3, 8, 6))) == []


CASES = {
    "twice": ((7, 5), (14, 10), []),
    "three times down": ((7, 5), (21, 5), []),
    "eleven times right": ((4, 5), (4, 55), []),
    "from a pixel": ((1, 1), (13, 7), []),
    "odd": ((7, 5), (9, 8), ["concat"]),
    "large": ((23, 5), (40, 10), ["conv2d", "permute"]),
}


@both
@pytest.mark.parametrize("name", CASES)
def test_it_is_exact_and_in_one_delegate(runtime: object, name: str):
    before, after, parts = CASES[name]
    graph = integer_of(network(lambda m, x: F.interpolate(m.a(x), size=after), a=conv(3, 5)), (1, 3, *before))
    assert set(parts) <= set(kinds(graph.written)) and kinds(graph)[1] == "resize"
    assert_exact(graph, runtime)


@both
@settings(max_examples=5, deadline=None, derandomize=True)
@given(before=SIZES, after=SIZES, channels=st.integers(1, 9))
def test_it_is_exact_at_any_size(runtime: object, before, after, channels):
    net = network(lambda m, x: F.relu(F.interpolate(x, size=after)))
    assert_exact(integer_of(net, (1, channels, *before)), runtime, 1)


@both
@pytest.mark.parametrize(("scale", "zero"), [(3e-5, -128), (9.0, 127), (0.37, -7)])
def test_it_is_exact_at_any_scale(runtime: object, scale: float, zero: int):
    b = Builder(2, (1, 3, 19, 4), scale)
    b.nodes.clear()
    b.put("input", (), (1, 3, 19, 4), scale, zero, name="input")
    rows, columns = tuple(int(i) for i in b.rng.integers(0, 19, 40)), (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    for attrs in ({"rows": rows, "columns": columns}, {"rows": (3, 3, 1, 2), "columns": (0, 1, 2, 3)}):
        shape = (1, 3, len(attrs["rows"]), len(attrs["columns"]))
        b.put("resize", ("input",), shape, scale, zero, attrs)
    assert_exact(b.graph(), runtime)


def test_the_codes_are_the_codes_that_it_picks():
    graph = integer_of(nearest(size=(9, 4)), (1, 2, 7, 5))
    x = inputs_for(graph)
    found = reference.predict(graph, x)[0]
    for n, c, i, j in np.ndindex(found.shape):
        assert found[n, c, i, j] == x[n, c, i * 7 // 9, j * 5 // 4]


@pytest.mark.parametrize("times", [1, 2, 5, 7, 11, 12, 33])
def test_copies_are_joined_by_few_at_once(times):
    joined: list[int] = []

    def join(parts):
        joined.append(len(parts))
        return [item for part in parts for item in part]

    assert repeated(["x"], times, join) == ["x"] * times
    assert max(joined, default=0) <= 5


# -- pruning, placement --------------------------------------------------------------------------------------


def pyramid(m: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    z = F.relu(m.b(F.max_pool2d(y, 2)))
    return m.d(torch.cat([F.interpolate(z, scale_factor=2), m.c(y)], 1)) + F.interpolate(m.e(z), size=(8, 8))


def branches() -> nn.Module:
    layers = {"a": conv(3, 6, 3), "b": conv(6, 8), "c": conv(6, 4), "d": conv(12, 5), "e": conv(8, 5)}
    return network(pyramid, **layers)


def test_channels_are_pruned_through_it():
    groups = assert_cut(branches(), (1, 3, 8, 8))
    assert [name for name, group in groups.items() if not group.locked] == ["a", "b", "c"]


@both
def test_a_network_with_it_is_exact(runtime):
    assert_exact(integer_of(branches(), (1, 3, 8, 8)), runtime)


def test_each_channel_is_alike_beside_however_many_others():
    """What `channelwise` promises."""
    assert operation("resize").channelwise
    net, x = nearest(size=(11, 7)), torch.randn(2, 17, 5, 5)
    graph = trace(net, (1, 17, 5, 5))
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(graph.run(x)[graph.outputs[0]][:, 3:5], net(x[:, 3:5]))


@pytest.mark.parametrize("name", ["host", "cortex-m4"])
def test_no_target_runs_it_elsewhere(name):
    card = load_card(name)
    graph = trace(branches(), (1, 3, 8, 8))
    for placement in inspect_graph(graph, card, usual_runtimes(card), (0.0, 1.0), "net").placements:
        assert placement.leaving == ()


@both
@pytest.mark.parametrize("turned", [False, True], ids=["columns", "rows"])
def test_a_long_axis_is_slices_beside_small_matrices(monkeypatch, runtime: object, turned: bool):
    monkeypatch.setattr(resize, "MOST_WEIGHTS", 2**10)
    monkeypatch.setattr(resize, "LONG_RUN", 8)
    sides = (40, 3) if turned else (3, 40)
    border = (0, 0, 20, 21) if turned else (20, 21, 0, 0)
    net = network(lambda m, x: F.pad(x, border, "reflect"))
    found = integer_of(net, (1, 2, *sides))
    assert_exact(found, runtime)
    x = inputs_for(found, 2)
    (made,) = reference.predict(found, x)
    assert np.array_equal(made, F.pad(torch.from_numpy(x), border, "reflect").numpy())


def test_a_border_of_a_sound_is_a_small_program():
    graph = trace(network(lambda m, x: F.pad(x, (128, 128), "reflect")), (1, 1, 43844))
    (node,) = [each for each in graph if each.kind == "resize"]
    parts = graph.written
    weights = sum(each.weight.numel() for each in parts if each.weight is not None)
    assert weights == 2 * 128 * 128 and parts[node.name].kind == "concat"


def test_an_order_that_no_program_holds_is_one_line():
    places = torch.randperm(5000, generator=torch.Generator().manual_seed(0)).tolist()
    net = nearest(scale_factor=2.0)
    graph = trace(net, (1, 1, 1, 2500))
    attrs = {"rows": (0,), "columns": tuple(place // 2 for place in places)}
    changed = {"attrs": attrs, "shape": (1, 1, 1, 5000)}
    nodes = [replace(each, **changed) if each.kind == "resize" else each for each in graph]
    with pytest.raises(InputError, match="takes 5,000 of 2,500 places in an order that no program holds"):
        _ = replace(graph, nodes=tuple(nodes)).written
