"""Whole numbers for the weights of a resize, and lists of places as runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.pipeline.graph.operations.moving.axes import runs, whole_numbers

pytestmark = pytest.mark.unit


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_runs_are_the_list(places):
    found = runs(places)
    assert [place for run in found for place in run] == places
    assert len(found) == 1 + sum(b != a + 1 for a, b in zip(places, places[1:], strict=False))


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        ([0.25, 0.75], [1, 3]), ([0.0, 1.0], [0, 1]), ([1 / 3] * 3, [1, 1, 1]), ([0.125, 0.875], [1, 7]),
        ([-0.09375, 0.59375, 0.59375, -0.09375], [-3, 19, 19, -3]),
    ],
)  # fmt: skip
def test_fractions_are_exact(row, codes):
    found, units = whole_numbers(np.asarray([row]))
    assert found.tolist() == [codes]
    assert units[0] == np.float32(row[-1] / codes[-1])


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_sums_stay_and_nothing_is_far(values):
    row = np.asarray(values) / sum(values)
    codes, units = whole_numbers(row[None])
    assert abs(codes[0].sum() * float(units[0]) - 1) < 1e-6 or len(row) > 4
    assert np.abs(codes[0] * units[0] - row).max() < 0.02
