"""What a bundle says of its detector scores as the recipe's own task does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_project import make_project

from paredown.apps.detector import make_scorer
from paredown.apps.detector.task import DetectorTask
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import Packed

pytestmark = pytest.mark.unit


def test_it_scores_as_the_task_does(tmp_path):
    task = DetectorTask(load_recipe(str(make_project(tmp_path)), (), ()))
    data, told = task.data("test"), task.bundle_members()
    packed = Packed(json.loads(told["app.json"]), tuple(task.names), task.preprocess)
    random = np.random.default_rng(1)
    outputs = [
        tuple(random.normal(0, 1, (1, channels, 16, 16)).astype(np.float32) for channels in (4, 4, 2, 4))
        for _ in range(len(data))
    ]
    scorer = make_scorer(packed)
    assert scorer.metric == task.metric and scorer.preprocess.hash == task.preprocess.hash
    turns = iter(outputs)
    ours = scorer.score(lambda x: next(turns), data)
    theirs = task.score_outputs(outputs, data)
    assert dict(ours) == dict(theirs) and ours["map50"] > 0
    assert ours.details()["confusion"] == theirs.details()["confusion"]


@pytest.mark.parametrize("facts", [{}, {"heads": 3}, {"anchors": "x"}])
def test_facts_that_say_nothing_are_refused(facts, tmp_path):
    task = DetectorTask(load_recipe(str(make_project(tmp_path)), (), ()))
    with pytest.raises((KeyError, TypeError, ValueError)):
        make_scorer(Packed(facts, ("a", "b"), task.preprocess))
