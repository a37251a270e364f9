"""R squared against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from paredown.apps.outputs.fidelity import counts, r2

pytestmark = pytest.mark.unit


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0, 3))
def test_it_is_the_mean_over_the_outputs_of_scikit_learn_s(seed, samples, noise):
    random = np.random.default_rng(seed)
    shapes = ((1, 7), (1, 3, 4, 5))
    wanted = [[random.normal(2, 3, shape).astype(np.float32) for shape in shapes] for _ in range(samples)]
    found = [[w + random.normal(0, noise, w.shape).astype(np.float32) for w in one] for one in wanted]
    sums = np.sum([counts(f, w) for f, w in zip(found, wanted, strict=True)], 0)
    expected = []
    for output in range(2):
        true = np.concatenate([one[output].ravel() for one in wanted])
        said = np.concatenate([one[output].ravel() for one in found])
        expected.append(max(0.0, r2_score(true, said)))
    assert r2(sums) == pytest.approx(np.mean(expected), abs=1e-5)
    assert r2(np.stack([sums, sums])).shape == (2,)


def test_ends_constants_and_nonsense():
    wanted = (np.array([[1, 2, 4]], np.float32),)
    mean = np.full((1, 3), 7 / 3, np.float32)
    assert r2(counts(wanted, wanted)) == 1 and r2(counts((mean,), wanted)) == pytest.approx(0, abs=1e-6)
    assert r2(counts((wanted[0] * 9,), wanted)) == 0
    assert r2(counts((wanted[0] * np.nan,), wanted)) == 0
    for value in (0.0, 3.3):
        constant = (np.full((1, 5), value, np.float32),)
        assert r2(counts(constant, constant)) == 1
        assert r2(counts((constant[0] + 0.1,), constant)) == 0
