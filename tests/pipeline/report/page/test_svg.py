"""Charts: well-formed XML, every mark inside, ticks that are round."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paredown.pipeline.report.page import svg

pytestmark = pytest.mark.unit
values = st.floats(0, 1e7, allow_nan=False)


def marks(chart):
    tree = ElementTree.fromstring(str(chart).partition('<ul class="legend">')[0])
    _, _, wide, high = map(float, tree.get("viewBox").split())
    return tree, wide, high


@given(st.lists(st.tuples(values, values), min_size=1, max_size=9))
def test_points_lie_inside(points):
    charts = (
        svg.lines([("a<b", points)], "t", "x", "y"),
        svg.scatter([(f"&{i}", x, y) for i, (x, y) in enumerate(points)], "t", "x", "y"),
    )
    for chart in charts:
        tree, wide, high = marks(chart)
        for dot in tree.iter("circle"):
            assert -0.1 <= float(dot.get("cx")) <= wide + 0.1 and -0.1 <= float(dot.get("cy")) <= high + 0.1


@given(st.lists(st.lists(values, min_size=1, max_size=9), min_size=1, max_size=4))
@example([[5e-324]])
def test_strips_and_bars_are_whole(rows):
    named = [(f"<{i}>", row) for i, row in enumerate(rows)]
    tree, _, _ = marks(svg.strips(named, "t", "ms"))
    assert len(list(tree.iter("circle"))) == 2 * len(rows)
    tree, _, _ = marks(svg.intervals([(name, 0.5, 0.1, None) for name, _ in named], "t"))
    assert len(list(tree.iter("rect"))) == len(rows)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_within(low, width):
    found = svg.ticks(low, low + width)
    assert all(low - width * 1e-6 <= each <= low + width * (1 + 1e-6) for each in found)
    if len(found) > 1:
        step = found[1] - found[0]
        lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert any(math.isclose(lead, round_one, rel_tol=1e-3) for round_one in (1, 2, 5, 10))


def test_numbers_are_told_apart():
    assert [svg.number(v, 0.001) for v in (0.989, 0.990)] == ["0.989", "0.990"]
    assert [svg.number(v, 500) for v in (0, 500, 1000)] == ["0", "500", "1,000"]
    assert svg.number(2_500_000, 500_000) == "2.5M" and svg.number(0.123456) == "0.123"
    assert svg.number(1477.2) == "1,477"


def test_points_have_their_names_beside_or_below_them():
    few = [("a", 1.0, 0.5), ("b", 2.0, 0.5)]
    assert ">a</text>" in svg.scatter(few, "t", "KiB", "y") and "legend" not in svg.scatter(
        few, "t", "KiB", "y"
    )
    many = svg.scatter([(name, 2.0, 0.25) for name in "abcde"], "t", "KiB", "y")
    assert "e: 2 KiB, 0.2500" in many and ">a</text>" not in many
    tree, _, _ = marks(svg.scatter([("a", 1.0, 0.5), ("b", 1.0, 0.5)], "t", "KiB", "y"))
    (dot, *_), names = tree.iter("circle"), [t for t in tree.iter("text") if t.text in ("a", "b")]
    assert all(abs(float(each.get("y")) - float(dot.get("cy"))) >= 8 for each in names), "none on the mark"


def test_long_names_stand_below():
    plot = svg.scatter([("digits host executorch", 1.0, 0.5), ("b", 2.0, 0.5)], "t", "KiB", "y")
    assert "<li>" in plot and "digits host executorch: 1 KiB" in plot


def test_differences_of_rounding_are_not_spread_over_the_height():
    """Two scores a millionth apart are at one height; two that differ by half use most of it."""
    for apart, least, most in ((1e-6, 0, 0.1), (0.5, 130, svg.HIGH)):
        tree, _, _ = marks(svg.scatter([("a", 1.0, 0.9), ("b", 2.0, 0.9 - apart)], "t", "KiB", "y"))
        first, second = (float(dot.get("cy")) for dot in tree.iter("circle"))
        assert least <= abs(first - second) <= most
        assert all(len(text.text or "") <= 6 for text in tree.iter("text")), "numbers of an axis are short"


def test_nothing_is_an_empty_chart():
    assert svg.lines([], "t", "x", "y") == svg.lines([("a", [])], "t", "x", "y") == ""
