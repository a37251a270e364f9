"""pad and channel_pad: zeros on any side, channels too, the border again, and less than nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import Builder, inputs_for
from operation_checks import PROGRAMS, assert_cut, assert_exact, assert_float, both, integer_of, kinds
from prune_networks import conv, network
from torch import Tensor, nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.targets.errors import InputError

SHAPE = (1, 4, 7, 6)
SIDES = st.integers(-2, 4)


def padded(padding: tuple[int, ...], mode: str = "constant") -> nn.Module:
    return network(lambda m, x: F.pad(x, padding, mode=mode))


@settings(max_examples=60, deadline=None)
@given(programs=PROGRAMS, padding=st.tuples(*[SIDES] * 6), count=st.sampled_from([2, 4, 6]))
def test_zeros_on_any_side_are_torchs(programs, padding, count):
    padding = (*padding[:4], max(padding[4], -1), max(padding[5], -1))[:count]
    graph = assert_float(padded(padding), SHAPE, programs=programs)
    assert set(kinds(graph)) <= {"pad", "channel_pad", "slice"}


@settings(max_examples=40, deadline=None)
@given(
    programs=PROGRAMS,
    padding=st.tuples(*[SIDES] * 4),
    mode=st.sampled_from(["reflect", "replicate", "circular"]),
)
def test_borders_are_torchs(programs, padding, mode):
    if mode == "circular":
        padding = tuple(max(side, 0) for side in padding)
    assert set(kinds(assert_float(padded(padding, mode), SHAPE, programs=programs))) <= {"resize", "slice"}


@both
@settings(max_examples=5, deadline=None, derandomize=True)
@given(padding=st.tuples(*[st.integers(-1, 4)] * 4), channels=st.tuples(SIDES, SIDES))
def test_it_is_exact_and_in_one_delegate(runtime: object, padding, channels):
    channels = tuple(max(side, -1) for side in channels)

    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x)
        return F.relu(F.pad(y, (*padding, *channels))), F.relu(F.pad(y, padding, mode="reflect"))

    assert_exact(integer_of(network(forward, a=conv(3, 4)), (1, 3, *SHAPE[2:])), runtime, 1)


@both
@pytest.mark.parametrize(("scale", "zero"), [(3e-5, -128), (9.0, 127), (0.37, -7)])
def test_channels_of_zeros_are_exact_at_any_scale(runtime: object, scale: float, zero: int):
    b = Builder(2, SHAPE, scale)
    b.nodes.clear()
    b.put("input", (), SHAPE, scale, zero, name="input")
    b.put("channel_pad", ("input",), (1, 9, 7, 6), scale, zero, {"channels": (2, 3)})
    assert_exact(b.graph(), runtime)


def test_the_codes_are_the_zero_point_beside_the_codes():
    graph = integer_of(padded((0, 0, 0, 0, 1, 2)), SHAPE)
    x = inputs_for(graph)
    found = reference.predict(graph, x)[0]
    assert (found[:, 1:5] == x).all()
    assert np.unique(found[:, [0, 5, 6]]).tolist() == [graph.input.out.zero_point]


def test_nothing_is_left_out():
    assert kinds(trace(padded((0, 0, 0, 0)), SHAPE)) == []


REFUSED = {
    "a number": (lambda x: F.pad(x, (1, 1), value=3.0), "is known with zeros"),
    "the batch": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), "over height and width, and with zeros over"),
    "a list": (lambda x: F.pad(x.flatten(1), (1, 1)), "over height and width, and with zeros over"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_carry_says_so(name):
    form, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        trace(network(lambda m, x: form(x)), SHAPE, floats=False)


def blaze(m: nn.Module, x: Tensor) -> Tensor:
    """BlazeFace's block: a shortcut that gets channels of zeros; then a border that is reflected."""
    y = F.relu(m.a(x))
    y = F.relu(m.b(y) + F.pad(F.max_pool2d(y, 2), (0, 0, 0, 0, 0, 3)))
    return m.c(F.pad(y, (1, 1, 1, 1), mode="reflect"))


def branches() -> nn.Module:
    return network(blaze, a=conv(3, 5, 3), b=conv(5, 8, 3, stride=2), c=nn.Conv2d(8, 4, 3))


def test_channels_are_pruned_past_zeros():
    groups = assert_cut(branches(), (1, 3, 8, 8), 5)
    assert groups["a"].units == 5 and not groups["a"].locked
    fixed = groups["b"]
    assert fixed.units == 3 and "zeros of a fixed number" in fixed.locked
    assert "puts zeros beside them" in groups["a"].describe()


@both
def test_a_network_with_it_is_exact(runtime):
    assert_exact(integer_of(branches(), (1, 3, 8, 8)), runtime)
