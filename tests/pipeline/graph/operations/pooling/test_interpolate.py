"""interpolate: bilinear, bicubic and uneven averages; exact as matrices along rows and columns."""

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

from paredown.pipeline.graph.operations.pooling.interpolate import matrices
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
MODES = st.sampled_from([("bilinear", False), ("bilinear", True), ("bicubic", False), ("area", None)])


def resized(**options: object) -> nn.Module:
    return network(lambda m, x: F.interpolate(x, **{"mode": "bilinear", **options}))


@settings(max_examples=80, deadline=None)
@given(programs=PROGRAMS, before=SIZES, after=SIZES, mode=MODES)
def test_it_computes_what_torch_computes(programs, before, after, mode):
    assert_float(resized(size=after, mode=mode[0], align_corners=mode[1]), (1, 3, *before), programs=programs)


@settings(max_examples=30, deadline=None)
@given(programs=PROGRAMS, before=SIZES, scale=st.tuples(st.floats(0.3, 3.4), st.floats(0.3, 3.4)))
def test_factors_are_those_that_were_given(programs, before, scale):
    if all(int(size * factor) for size, factor in zip(before, scale, strict=True)):
        assert_float(resized(scale_factor=scale), (1, 2, *before), programs=programs)


def test_a_pixel_is_copied_and_the_same_is_nothing():
    assert kinds(trace(resized(size=(4, 5)), (1, 3, 1, 1))) == ["resize"]
    assert kinds(trace(resized(size=(8, 6)), (1, 3, 8, 6))) == []
    assert kinds(trace(resized(size=(9, 6)), (1, 3, 8, 6))) == ["interpolate"]


@both
@settings(max_examples=6, deadline=None, derandomize=True)
@given(before=SIZES, after=SIZES, mode=MODES, channels=st.integers(1, 9))
def test_it_is_exact_and_in_one_delegate(runtime: object, before, after, mode, channels):
    net = network(lambda m, x: m.a(F.interpolate(x, size=after, mode=mode[0], align_corners=mode[1])),
                  a=conv(channels, 3))  # fmt: skip
    assert_exact(integer_of(net, (1, channels, *before)), runtime, 1)


@both
@pytest.mark.parametrize(("ratio", "zero"), [(200.0, -128), (1.0, 127), (0.02, -7)])
def test_it_is_exact_at_any_scale(runtime: object, ratio: float, zero: int):
    b = Builder(3, (1, 3, 9, 4), 0.1)
    for size, corners in (((18, 8), False), ((5, 11), True)):
        attrs = {"mode": "bilinear", "size": size, "corners": corners}
        b.put("interpolate", ("input",), (1, 3, *size), 0.1 / ratio, zero, attrs)
    assert_exact(b.graph(), runtime)


def test_the_codes_are_those_of_a_plain_loop():
    """Twice as large: quarters along the columns, rounded, then along the rows."""
    graph = integer_of(resized(scale_factor=2), (1, 2, 4, 5))
    node, x = graph.nodes[1], inputs_for(graph, 1)[:1]
    zero, ratio = graph.input.out.zero_point, np.float32(graph.input.out.scale) / np.float32(node.out.scale)
    found = reference.predict(graph, x)[0]

    def between(values: list[int], place: int, scale: np.float32) -> np.float32:
        """Three quarters of one and one of the other, in units of the output."""
        near, far = place // 2, place // 2 + (1 if place % 2 else -1)
        far = min(max(far, 0), len(values) - 1)
        return np.float32(3 * values[near] + values[far]) * scale

    for c, i, j in np.ndindex(found.shape[1:]):
        middle = []
        for row in range(4):
            values = [int(v) - zero for v in x[0, c, row]]
            code = int(np.rint(between(values, j, np.float32(0.25)))) + zero
            middle.append(max(-128, min(127, code)) - zero)
        scale = np.float32(graph.input.out.scale) * np.float32(0.25) / np.float32(node.out.scale)
        code = int(np.rint(between(middle, i, scale))) + node.out.zero_point
        assert found[0, c, i, j] == max(-128, min(127, code))
    assert ratio > 0


def test_the_codes_are_the_map_within_a_code():
    graph = integer_of(resized(size=(13, 11), align_corners=True), (1, 3, 8, 8))
    x = inputs_for(graph)
    out, found = graph.nodes[1].out, reference.predict(graph, x)[0]
    real = torch.from_numpy(graph.input.out.dequantize(x)).double()
    real = F.interpolate(real, size=(13, 11), mode="bilinear", align_corners=True).numpy()
    inside = (found > -128) & (found < 127)
    step = 0.5 * out.scale + 0.5 * graph.input.out.scale
    assert inside.mean() > 0.3
    assert np.abs(out.dequantize(found) - real)[inside].max() <= 2.2 * step


@settings(max_examples=40, deadline=None)
@given(before=SIZES, after=SIZES, mode=MODES)
def test_a_flat_map_stays_flat(before, after, mode):
    attrs = {"mode": mode[0], "size": after, "corners": bool(mode[1])}
    for matrix in matrices(attrs, (1, 1, *before)):
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-9)


def test_smoothing_before_it_is_named():
    with pytest.raises(InputError, match="_upsample_bilinear2d_aa"):
        trace(resized(size=(3, 3), antialias=True), (1, 3, 8, 8), floats=False)


# -- pruning, placement --------------------------------------------------------------------------------------


def aspp(m: nn.Module, x: Tensor) -> Tensor:
    """A pyramid that pools, and a head that is brought to the size of the input."""
    y = F.relu(m.a(x))
    pooled = [F.relu(m.b(F.adaptive_avg_pool2d(y, size))) for size in (1, 3)]
    joined = [F.interpolate(p, size=y.shape[2:], mode="bilinear", align_corners=True) for p in pooled]
    return F.interpolate(m.c(torch.cat([y, *joined], 1)), scale_factor=2, mode="bilinear")


def branches() -> nn.Module:
    return network(aspp, a=conv(3, 6, 3), b=conv(6, 4), c=conv(14, 5))


def test_channels_are_pruned_through_it():
    groups = assert_cut(branches(), (1, 3, 8, 8))
    assert [name for name, group in groups.items() if not group.locked] == ["a", "b"]


@both
def test_a_network_with_it_is_exact(runtime):
    assert_exact(integer_of(branches(), (1, 3, 8, 8)), runtime)


@pytest.mark.parametrize("name", ["host", "cortex-m4"])
def test_no_target_runs_it_elsewhere(name):
    card = load_card(name)
    graph = trace(branches(), (1, 3, 8, 8))
    for placement in inspect_graph(graph, card, usual_runtimes(card), (0.0, 1.0), "net").placements:
        assert placement.leaving == ()
