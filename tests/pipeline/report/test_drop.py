"""Drops with their interval: paired, the same every time, and kept by the score stages."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.pipeline.recipe.task import Metric, Scores
from paredown.pipeline.report.budget import check_budget
from paredown.pipeline.report.drop import RESAMPLES, draws, drops, interval, write_scores
from paredown.pipeline.report.figures import Figure
from paredown.targets.cards.card import Budget
from paredown.targets.host.host import Machine

pytestmark = pytest.mark.unit

TOP1, PERPLEXITY = Metric("top1"), Metric("perplexity", less_is_better=True)


def scored(right: np.ndarray) -> Scores:
    right = right.astype(np.float64)
    return Scores({"top1": right.mean()}, len(right), lambda w: w @ right / w.sum(axis=1))


def test_a_resample_draws_as_many_images_as_there_are():
    weights = draws(37)
    assert weights.shape == (RESAMPLES, 37)
    assert (weights.sum(axis=1) == 37).all()
    assert (weights == draws(37)).all()
    assert len(np.unique(weights, axis=0)) == RESAMPLES
    assert len(draws(10**6)) < RESAMPLES  # a million images take no gigabytes


def test_the_interval_is_that_of_paired_differences(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.8
    after = before.copy()
    after[rng.choice(np.flatnonzero(before), 12, replace=False)] = False
    for name, right in (("fp32", before), ("litert", after)):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, scored(right))
    (drop,) = drops(TOP1, {name: tmp_path / name for name in ("fp32", "litert")})
    assert drop.value == pytest.approx(12 / 400)
    assert drop.interval is not None
    low, high = drop.interval
    # an oracle of another kind: the normal interval of the mean of the paired differences
    differences = before.astype(float) - after
    reach = 1.96 * differences.std() / 20
    assert (low, high) == pytest.approx((0.03 - reach, 0.03 + reach), abs=0.005)
    # unpaired it would be three times as wide
    apart = 1.96 * np.sqrt(before.var() + after.var()) / 20
    assert high - low < 2 * apart / 2.5
    assert "+0.0300" in drop.line()
    assert "400" in drop.line()
    assert [row[2] for row in drop.rows()] == ["accuracy_drop", "accuracy_drop_low", "accuracy_drop_high"]


def test_networks_alike_have_a_drop_of_nothing(tmp_path):
    for name in ("fp32", "executorch"):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, scored(np.arange(50) % 3 == 0))
    (drop,) = drops(TOP1, {name: tmp_path / name for name in ("fp32", "executorch")})
    assert (drop.value, drop.interval) == (0, (0, 0))


def test_a_task_that_gives_a_plain_dictionary_has_drops_without_interval(tmp_path):
    for name, value in (("fp32", 0.9), ("litert", 0.85)):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, {"top1": value})
    (drop,) = drops(TOP1, {name: tmp_path / name for name in ("fp32", "litert")})
    assert drop.interval is None
    assert drop.value == pytest.approx(0.05)
    assert "not known" in drop.line()
    assert len(drop.rows()) == 1


def test_resamples_without_anything_to_score_are_left_out():
    nan = float("nan")
    before, after = np.array([nan, 0.5, 0.5, nan]), np.array([0.1, 0.4, 0.4, nan])
    assert interval(TOP1, before, after) == pytest.approx((0.1, 0.1))
    assert interval(TOP1, np.array([nan]), np.array([0.2])) is None


def test_where_less_is_better_a_drop_is_a_share():
    rise = interval(PERPLEXITY, np.array([10.0, 20.0]), np.array([11.0, 22.0]))
    assert rise == pytest.approx((0.1, 0.1))


def test_a_budget_that_is_broken_says_how_sure_that_is():
    where = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7")
    cells = {
        ("fp32", "top1"): 0.9, ("litert", "top1"): 0.8, ("litert", "file_bytes"): 1,
        ("litert", "accuracy_drop_low"): 0.07, ("litert", "accuracy_drop_high"): 0.13,
    }  # fmt: skip
    figures = [Figure("x", v, m, value, "1", "measured", where) for (v, m), value in cells.items()]
    (violation,) = check_budget(Budget(accuracy_drop=0.02), figures, TOP1)
    assert violation.interval == (0.07, 0.13)
    assert violation.line().endswith("95 % interval 0.07 to 0.13")
