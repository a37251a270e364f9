"""Equalization and chosen observers through a whole run: reused, resumable, told of, exact."""

from __future__ import annotations

import json

import pytest
from classifier_project import make_project

from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card

SETTINGS = ["quantize.observer=auto", "quantize.equalize=true"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("project")
    recipe = load_recipe(make_project(folder), SETTINGS)
    run = Run("colours", recipe, load_card("host"), folder / "runs")
    run.execute()
    return run


def test_it_is_exact_and_says_what_was_chosen(work):
    job = work.job
    cells = {(f.variant, f.metric): f.value for f in job.figures()}
    assert cells["litert", "parity_lsb"] == 0
    notes = " ".join(job.notes())
    assert "observers of" in notes
    assert "held-out calibration images" in notes
    assert "equalized" in notes
    assert "95 % interval" in notes


def test_what_was_chosen_is_kept(work):
    job = work.job
    facts = json.loads((job.path(job.quantizing.calibrate) / "observers.json").read_text())
    assert set(facts["observers"].values()) <= {"minmax", "percentile", "mse"}
    assert sum(facts["counts"].values()) == len(facts["observers"])
    assert facts["after"] <= facts["before"]
    ranges = json.loads((job.path(job.quantizing.calibrate) / "ranges.json").read_text())
    assert ranges["ranges"].keys() == facts["observers"].keys()


def test_a_second_run_reuses_all_and_other_settings_do_not(work, capsys):
    again = Run("colours", work.job.recipe, work.target, work.folder.parents[1])
    assert [s.key for s in again.plan()] == [s.key for s in work.plan()]
    plain = Run("colours", work.job.recipe.model_copy(update={"quantize": work.job.recipe.quantize.model_copy(
        update={"equalize": False})}), work.target, work.folder.parents[1])  # fmt: skip
    assert plain.job.integer.key != work.job.integer.key
    assert plain.job.quantizing.equalize is None
