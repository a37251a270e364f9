"""Entropy against distributions whose entropy is known, and against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paredown.pipeline.compress.squantize.entropy import entropy

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([5] * 9, 0.0), ([0, 1], 1.0), ([0, 0, 1, 2], 1.5), (list(range(-128, 128)), 8.0), ([], 0.0)],
)
def test_known_distributions(codes: list[int], bits: float) -> None:
    found = entropy(np.array(codes, np.int8))
    assert found == pytest.approx(bits) and str(found)[0] != "-"  # never a negative zero


def test_it_is_scipys_and_the_shape_does_not_matter() -> None:
    codes = np.random.default_rng(0).integers(-3, 4, (4, 5, 3, 3)).astype(np.int8)
    counts = np.unique(codes, return_counts=True)[1]
    assert entropy(codes) == pytest.approx(stats.entropy(counts, base=2))
