"""slice: all that takes a part of a tensor; exact, and cut with the channels that it takes."""

from __future__ import annotations

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

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

SHAPE = (1, 6, 9, 10)
FORMS = {
    "split": lambda x: x.split(2, 1)[1],
    "split of uneven sizes": lambda x: x.split([1, 2, 3], 1),
    "chunk of an uneven last part": lambda x: x.chunk(4, 1),
    "chunk of rows": lambda x: x.chunk(3, 2)[2],
    "chunk of an axis before the batch": lambda x: (
        x.view(x.shape[0], 3, 2, 9, 10).transpose(0, 1).chunk(3, 0)[1].squeeze(0)
    ),
    "tensor_split": lambda x: x.tensor_split(4, 1)[3],
    "unbind": lambda x: x.unbind(2)[4],
    "select": lambda x: x.select(3, -1),
    "index": lambda x: x[:, 3],
    "narrow": lambda x: x.narrow(1, -4, 3),
    "a negative end": lambda x: x[:, 1:-2, :, -3:],
    "focus": lambda x: torch.cat([x[..., i:8:2, j::2] for j in (0, 1) for i in (0, 1)], 1),
    "of what is flat": lambda x: x.flatten(1)[:, 7:100],
    "of five axes": lambda x: x.view(x.shape[0], 2, 3, 9, 10)[:, 1],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_it_computes_what_torch_computes(form):
    graph = assert_float(network(lambda m, x: form(x)), SHAPE)
    assert {"slice"} <= set(kinds(graph)) <= {"slice", "reshape", "concat"}


@both
def test_it_is_exact_and_in_one_delegate(runtime: object):
    net = network(
        lambda m, x: tuple(t for form in FORMS.values() for t in _tuple(form(m.a(x)))), a=conv(3, 6)
    )
    assert_exact(integer_of(net, (1, 3, 9, 10)), runtime)


def _tuple(found: object) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[slice, ...]:
    found = [slice(None)]
    for size, steps in zip(SHAPE[1:], (1, 3, 3), strict=True):
        start = draw(st.integers(0, size - 1))
        found.append(slice(start, draw(st.integers(start + 1, size)), draw(st.integers(1, steps))))
    return tuple(found)


@settings(max_examples=40, deadline=None)
@given(programs=PROGRAMS, first=ranges(), second=ranges())
def test_slices_of_slices_are_one(programs, first, second):
    sizes = [len(range(size)[taken]) for size, taken in zip(SHAPE, first, strict=True)]
    starts = [min(taken.start or 0, size - 1) for taken, size in zip(second, sizes, strict=True)]
    inner = tuple(slice(start, None, taken.step) for start, taken in zip(starts, second, strict=True))
    graph = assert_float(network(lambda m, x: x[first][inner]), SHAPE, programs=programs)
    assert kinds(graph) in ([], ["slice"])


@both
@settings(max_examples=6, deadline=None, derandomize=True)
@given(taken=ranges())
def test_it_is_exact_at_any_place(runtime: object, taken):
    whole = all(len(range(n)[each]) == n for n, each in zip(SHAPE[1:], taken[1:], strict=True))
    net = network(lambda m, x: F.relu(x) if whole else x[taken])
    assert_exact(integer_of(net, SHAPE), runtime)


@both
@pytest.mark.parametrize("zero", [-128, 5, 127])
def test_it_is_exact_at_any_scale(runtime: object, zero: int):
    b = Builder(1, SHAPE, 7.3)
    out = b.node("input").out
    attrs = {"dims": (1, 2, 3), "starts": (2, 0, 1), "ends": (5, 9, 9), "steps": (1, 3, 2)}
    first = b.put("slice", ("input",), (1, 3, 3, 4), out.scale, out.zero_point, attrs)
    attrs = {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0, 0, 0), "divisor": 4}
    b.put("avg_pool2d", (first,), (1, 3, 2, 3), 5.0, zero, attrs)
    assert_exact(b.graph(), runtime)


def test_the_codes_are_the_codes_that_it_takes():
    graph = integer_of(network(lambda m, x: x[:, 1:4, ::2, 3:9:2]), SHAPE)
    x = inputs_for(graph)
    found = reference.predict(graph, x)[0]
    for n, c, i, j in np.ndindex(found.shape):
        assert found[n, c, i, j] == x[n, 1 + c, 2 * i, 3 + 2 * j]


def test_every_second_channel_is_taken_with_the_channels_aside():
    net = network(lambda m, x: m.a(x[:, ::2]), a=conv(3, 4))
    assert_float(net, SHAPE)


REFUSED = {
    "the batch": (lambda x: x[0], "keep the batch whole"),
    "the batch split": (lambda x: x.split(1, 0)[0], "splits the batch"),
    "every second of a list": (lambda x: x.flatten(1)[:, ::2], "not height or width of a map"),
    "topk": (lambda x: x.topk(2, 1)[0], "topk"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_carry_says_what_to_change(name):
    form, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as error:
        trace(network(lambda m, x: form(x)), SHAPE, floats=False)
    assert "prune_networks.py" in str(error.value)


def test_results_that_are_not_known_stay_opaque():
    net = network(lambda m, x: m.a(x).topk(2, 1)[0] + m.a(x).chunk(2, 1)[0], a=conv(6, 4))
    graph, x = trace(net, SHAPE, opaque=True, floats=False), torch.randn(2, *SHAPE[1:])
    assert torch.equal(graph.run(x)[graph.outputs[0]], net(x))
    assert kinds(graph).count("opaque") == 2 and kinds(graph).count("slice") == 1


# -- pruning, placement --------------------------------------------------------------------------------------


def halves(m: nn.Module, x: Tensor) -> Tensor:
    """A part that passes, one that is convolved and added to itself (C2f), a part alone (CSP)."""
    a, b = F.relu(m.a(x)).chunk(2, 1)
    c = m.c(torch.cat([a, b, b + F.relu(m.b(b))], 1)).chunk(3, 1)
    return m.d(torch.cat([c[2], c[0].chunk(2, 1)[1]], 1)[:, :, 1:, ::2])


def branches() -> nn.Module:
    return network(halves, a=conv(3, 8, 3), b=conv(4, 4, 3), c=conv(12, 12), d=conv(6, 5))


def test_parts_are_cut_alike():
    groups = assert_cut(branches(), (1, 3, 8, 8), 5)
    assert [name for name, group in groups.items() if not group.locked] == ["a", "c"]
    assert groups["a"].units == 4 and groups["c"].units == 2
    assert "takes channels 0 to 3, a part of them: tied" in groups["a"].describe()
    assert not any("not known" in group.describe() for group in groups.values())


def test_channels_are_pruned_past_a_slice_of_the_map():
    net = network(lambda m, x: m.b(m.a(x)[:, :, 1:7, ::2]), a=conv(3, 8, 3), b=conv(8, 4))
    assert not assert_cut(net, (1, 3, 8, 8))["a"].locked


NUMBERS = {
    "a slice": lambda y: torch.cat([y[:, 2:], y[:, :2]], 1),
    "a split": lambda y: y.split(2, 1)[1],
    "an index": lambda y: y[:, 1:2],
    "a chunk of a slice": lambda y: y[:, :2].chunk(2, 1)[1],
    "a slice of a chunk": lambda y: y.chunk(2, 1)[1][:, :1],
    "fewer parts than were asked for": lambda y: y.chunk(3, 1)[1],
}


@pytest.mark.parametrize("form", NUMBERS.values(), ids=NUMBERS)
def test_channels_that_are_numbers_lock_what_they_count(form):
    width = form(torch.zeros(1, 4, 8, 8)).shape[1]
    net = network(lambda m, x: m.c(F.relu(m.b(form(m.a(x))))), a=conv(3, 4), b=conv(width, 6), c=conv(6, 2))
    groups = assert_cut(net, (1, 3, 8, 8))
    assert "is sliced at a channel that is a number (" in groups["a"].locked
    assert not groups["b"].locked


def test_all_channels_up_to_a_number_are_all_of_them():
    net = network(lambda m, x: m.b(m.a(x)[:, :4]), a=conv(3, 4), b=conv(4, 6))
    graph = trace(net, (1, 3, 8, 8))
    groups = couple(graph)
    assert kinds(graph) == ["conv2d", "conv2d"]
    assert cut(net, graph, groups, {"a": (0, 2)}).b.in_channels == 2


@both
def test_a_network_with_it_is_exact(runtime):
    assert_exact(integer_of(branches(), (1, 3, 8, 8)), runtime)


@pytest.mark.parametrize("name", ["host", "cortex-m4", "cortex-m55-ethos-u55-128"])
def test_no_target_runs_it_elsewhere(name):
    card = load_card(name)
    graph = trace(branches(), (1, 3, 8, 8))
    for placement in inspect_graph(graph, card, usual_runtimes(card), (0.0, 1.0), "net").placements:
        assert placement.leaving == ()
