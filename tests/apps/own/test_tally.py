"""Scores from sums: the bootstrap's interval covers what it should, and truths are looked up once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paredown.apps.own.filled import Filled
from paredown.apps.own.tally import TallyTask, unlabelled
from paredown.calibration.datasets import Sample

pytestmark = pytest.mark.unit


class Coin(TallyTask):
    """A task whose score is the share of samples that are right."""

    metric = "share"

    def __init__(self) -> None:  # no recipe is asked for what is tested here
        self._known, self._last, self.asked = None, None, 0

    def _truth(self, sample):
        self.asked += 1
        return sample.classes[0]

    def _tally(self, outputs, truth):
        return np.array([float(outputs[0] == truth), 1.0])

    def _statistics(self, sums):
        return {"share": sums[..., 0] / sums[..., 1]}

    def _check(self, sums):
        pass


class Ones:
    names = ()

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(str(index), np.zeros(1), np.zeros(0), np.ones(1), index != 0)

    def fingerprint(self):
        return "ones"


def test_the_interval_is_that_of_a_share():
    random, inside = np.random.default_rng(0), 0
    for _ in range(60):
        outputs = [(float(random.random() < 0.8),) for _ in range(120)]
        low, high = Coin().interval(outputs, Ones(120))
        inside += low <= 0.8 <= high
        half = 1.96 * (0.8 * 0.2 / 120) ** 0.5
        assert (high - low) / 2 == pytest.approx(half, rel=0.35)
    assert inside >= 52


def test_truths_are_looked_up_once_and_a_part_is_a_score():
    task, data = Coin(), Ones(8)
    right, wrong = (1.0,), (0.0,)
    scores = task.score_outputs([right, wrong], data)
    assert scores == {"share": 0.5} and scores.samples == 2 and task.asked == 2
    assert scores.resampled(np.array([[2, 0], [1, 1], [0, 2]], np.uint8)).tolist() == [1, 0.5, 0]
    assert task.score_outputs([right, right, wrong, right], data) == {"share": 0.75} and task.asked == 4
    assert task.interval([right] * 3, data) == (1.0, 1.0) and task.asked == 4
    task.score_outputs([right], Ones(1))
    assert task.asked == 5
    with pytest.raises(ValueError, match="0 outputs"):
        task.score_outputs([], data)


def test_what_is_unlabelled_is_filled_and_named():
    data = Ones(3)
    outputs = [(np.zeros(2),), (np.ones(2),)]
    filled = Filled(data, outputs, lambda sample, found: replace(sample, name=f"made {found[0][0]:g}"))
    assert len(filled) == 2 and [filled[i].name for i in (0, 1)] == ["made 0", "1"]  # 1 has a label
    assert filled.names == ()
    other = Filled(data, outputs[::-1], lambda sample, found: sample)
    assert len({each.fingerprint() for each in (data, filled, other)}) == 3
    with pytest.raises(IndexError):
        filled[2]
    assert "7 has no label" in str(unlabelled(Sample("7", np.zeros(1), np.zeros(0), np.zeros(0), False)))
