"""mIoU against scikit-learn's Jaccard score and confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from paredown.apps.segmenter.miou import accuracy, counts, miou

pytestmark = pytest.mark.unit


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_it_is_the_mean_jaccard_score_of_what_is_scored(classes, images, seed):
    random = np.random.default_rng(seed)
    truth = random.choice([*range(classes), 255], (images, 5, 7)).astype(np.uint8)
    found = random.integers(0, classes, truth.shape).astype(np.uint8)
    sums = np.sum([counts(f, t, classes) for f, t in zip(found, truth, strict=True)], 0)
    scored = truth != 255
    if not scored.any():
        assert np.isnan(miou(sums)) and np.isnan(accuracy(sums))
        return
    there = np.union1d(truth[scored], found[scored])
    expected = jaccard_score(truth[scored], found[scored], labels=there, average="macro")
    assert miou(sums) == pytest.approx(expected)
    assert accuracy(sums) == pytest.approx(accuracy_score(truth[scored], found[scored]))
    stacked = np.stack([sums, 2 * sums])
    assert miou(stacked).shape == (2,) and np.allclose(miou(stacked), miou(sums))


def test_what_is_no_class_is_never_right():
    truth = np.zeros((2, 2), np.uint8)
    sums = counts(np.full((2, 2), 255, np.uint8), truth, 2)
    assert sums.tolist() == [[0, 4, 0], [0, 0, 0]] and miou(sums) == accuracy(sums) == 0
