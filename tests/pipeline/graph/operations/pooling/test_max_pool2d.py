"""max_pool2d: dilation, ceil_mode, adaptive windows and whole maps; exact, whatever is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowering_networks import inputs_for
from operation_checks import PROGRAMS, assert_cut, assert_exact, assert_float, both, integer_of, kinds
from prune_networks import conv, network
from torch import Tensor, nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.targets.errors import InputError


@st.composite
def pools(draw: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...]]:
    """Arguments of a pool that torch takes and that sees something in every window; a shape."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(2, 3)))
    options = {
        "kernel_size": kernel,
        "stride": tuple(draw(st.integers(1, k)) for k in kernel),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "dilation": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "ceil_mode": draw(st.booleans()),
    }
    shape = (1, draw(st.sampled_from([1, 3, 8])), draw(st.integers(5, 11)), draw(st.integers(5, 11)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, options["dilation"], strict=True)]
    assume(all(n + 2 * p >= r for n, p, r in zip(shape[2:], options["padding"], reach, strict=True)))
    return options, shape


def pooled(options: dict[str, object]) -> nn.Module:
    return network(lambda m, x: F.max_pool2d(x, **options))


@settings(max_examples=80, deadline=None)
@given(PROGRAMS, pools())
def test_it_computes_what_torch_computes(programs, drawn):
    options, shape = drawn
    graph = assert_float(pooled(options), shape, programs=programs)
    assert set(kinds(graph)) <= {"max_pool2d", "resize", "slice"}


@settings(max_examples=40, deadline=None)
@given(programs=PROGRAMS, after=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_adaptive_windows_are_torchs(programs, after):
    assert_float(network(lambda m, x: F.adaptive_max_pool2d(x, after)), (1, 3, 9, 8), programs=programs)


@both
@settings(max_examples=8, deadline=None, derandomize=True)
@given(drawn=pools())
def test_dilated_and_rounded_up_it_is_exact_and_in_one_delegate(runtime: object, drawn):
    """What has neither is as it was: LiteRT has no delegated pad by the smallest code."""
    options, shape = drawn
    assume(options["dilation"] != (1, 1) or (options["ceil_mode"] and not any(options["padding"])))
    assume(options["kernel_size"][0] > 1)
    assert_exact(integer_of(pooled(options), shape), runtime, 1)


@both
def test_whole_maps_are_exact(runtime):
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x)
        return (
            y.amax((2, 3)),
            y.amax(3, keepdim=True),
            F.adaptive_max_pool2d(y, 1),
            F.adaptive_max_pool2d(y, (4, 3)),
        )

    net = network(forward, a=conv(3, 5))
    graph = assert_float(net, (1, 3, 9, 14))
    assert kinds(graph).count("max_pool2d") == 4
    assert_exact(integer_of(net, (1, 3, 9, 14)), runtime)


def test_the_codes_are_the_largest_of_each_window():
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True}
    graph = integer_of(pooled(options), (1, 2, 9, 8))
    x = inputs_for(graph)
    found = reference.predict(graph, x)[0]
    for n, c, i, j in np.ndindex(found.shape):
        rows = [r for r in (2 * i - 1, 2 * i + 1, 2 * i + 3) if 0 <= r < 9]
        columns = [r for r in (2 * j - 1, 2 * j + 1, 2 * j + 3) if 0 <= r < 8]
        assert found[n, c, i, j] == max(x[n, c, r, s] for r in rows for s in columns)


def test_a_pool_of_one_pixel_is_left_out():
    assert kinds(trace(network(lambda m, x: F.adaptive_max_pool2d(x, (4, 4))), (1, 3, 4, 4))) == []


def test_rounding_up_without_effect_changes_nothing():
    options = {"kernel_size": 2, "ceil_mode": True}
    assert kinds(trace(pooled(options), (1, 3, 8, 8))) == ["max_pool2d"]


REFUSED = {
    "where": (lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True), "where the maxima are"),
    "gaps": (lambda x: F.max_pool2d(x[..., :1], (2, 2), 1, 1, 2), "would see only padding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_carry_says_so(name):
    form, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        trace(network(lambda m, x: form(x)), (1, 3, 8, 8), floats=False)


def test_positions_stay_opaque():
    net = network(lambda m, x: F.adaptive_max_pool2d(m.a(x), 2, return_indices=True)[0] * 1.0, a=conv(3, 4))
    graph, x = trace(net, (1, 3, 8, 8), opaque=True), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph.run(x)[graph.outputs[0]], net(x))


def test_channels_are_pruned_through_it():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(m.a(x)), 3, 2, ceil_mode=True)
        return m.c(F.max_pool2d(m.b(y), 2, 1, dilation=2)).amax((2, 3))

    net = network(forward, a=conv(3, 6, 3), b=conv(6, 4), c=conv(4, 5))
    groups = assert_cut(net, (1, 3, 8, 8))
    assert [name for name, group in groups.items() if not group.locked] == ["a", "b"]
