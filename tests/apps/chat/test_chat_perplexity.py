"""Perplexity against transformers' own loss, and against distributions whose perplexity is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gemma_models import oracle, ours

from paredown.apps.chat.perplexity import agreement, eager, measure, windows
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def test_windows_do_not_overlap_and_start_anew():
    found = windows(list(range(10, 21)), length=4, bos=2)
    assert [window.tolist() for window in found] == [[2, 10, 11, 12], [2, 13, 14, 15], [2, 16, 17, 18]]
    assert len(windows(list(range(10, 21)), 4, 2, count=2)) == 2
    for tokens, count in (([1, 2], None), (list(range(11)), 4), (list(range(11)), 0)):
        with pytest.raises(InputError, match="windows of 4"):
            windows(tokens, 4, 2, count)


def test_the_perplexity_of_what_is_known():
    """All tokens equally likely: the size of the vocabulary. One of them certain and right: 1."""
    samples = windows([5, 6, 7, 5, 6, 7], 4, 2)
    assert measure(lambda t: np.zeros((len(t), 50), np.float32), samples).perplexity == pytest.approx(50)
    sure = measure(lambda t: 100 * np.eye(50, dtype=np.float32)[np.roll(t, -1)], samples)
    assert sure.perplexity == pytest.approx(1) and sure.best.tolist() == [5, 6, 7, 5, 6, 7]
    half = measure(lambda t: np.log([[1e-30] * 5 + [0.5, 0.25, 0.25]] * len(t)), samples)
    assert half.perplexity == pytest.approx(math.exp(math.log(2 * 4 * 4) / 3))


def test_perplexity_is_that_of_transformers_loss():
    reference = oracle()
    text = torch.randint(4, 96, (130,), generator=torch.Generator().manual_seed(3)).tolist()
    samples = windows(text, 33, 2, 4)
    losses = [reference(torch.tensor(s)[None], labels=torch.tensor(s)[None]).loss.item() for s in samples]
    found = measure(eager(ours(reference), chunk=10), samples)
    assert found.tokens == 4 * 32
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    again = measure(eager(ours(reference), chunk=64), samples)
    assert agreement(found, again) == 1.0
    assert 0 < agreement(found, measure(eager(ours(oracle(seed=1))), samples)) < 0.5


def test_resampled_windows_are_windows_that_come_more_than_once():
    generator = np.random.default_rng(0)
    samples = [generator.integers(2, 50, length) for length in (4, 9, 6)]
    table = generator.normal(0, 2, (50, 50)).astype(np.float32)
    whole = measure(lambda t: table[t], samples)
    weights = np.array([[1, 1, 1], [0, 3, 0], [2, 0, 1]], np.uint8)
    drawn = [[0, 1, 2], [1, 1, 1], [0, 0, 2]]
    expected = [measure(lambda t: table[t], [samples[i] for i in row]).perplexity for row in drawn]
    assert whole.resampled(weights) == pytest.approx(expected, rel=1e-5)


def test_what_is_no_distribution_is_refused():
    samples = windows([5, 6, 7], 4, 2)
    with pytest.raises(InputError, match="3 positions of 4"):
        measure(lambda t: np.zeros((3, 50), np.float32), samples)
    with pytest.raises(InputError, match="no finite probability to 3 tokens"):
        measure(lambda t: np.full((4, 50), np.nan, np.float32), samples)
