"""A pose task: PCK by a plain loop, losses, recipes that are wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from task_projects import JOINTS, make_pose

from paredown.apps.pose.task import PoseTask
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import ParedownError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_pose(tmp_path_factory.mktemp("figures"), steps=80)


@pytest.fixture
def recipe(made, monkeypatch) -> Path:
    monkeypatch.chdir(made.parent)
    monkeypatch.delitem(sys.modules, "pose_net", raising=False)
    return made


def task_of(recipe: Path, *overrides: str) -> PoseTask:
    task = load_task(load_recipe(recipe, overrides))
    assert isinstance(task, PoseTask)
    return task


def test_scores_of_a_trained_network_its_interval_and_a_preview(recipe, tmp_path):
    task = task_of(recipe)
    data, network = task.data("test"), task.network()
    assert task.preprocess.resize == "letterbox" and data.names == JOINTS

    @torch.no_grad()
    def predict(x):
        return (network(torch.from_numpy(x)).numpy(),)

    scores = task.score(predict, data)
    assert scores["pck"] > 0.7
    outputs = [predict(task.preprocess(data[i].image)[None]) for i in range(8)]
    assert task.score_outputs(outputs, data) == scores
    told = scores.details()["images"]
    assert len(told) == 8 and told[0]["quality"] == pytest.approx(
        task.score_outputs(outputs[:1], data)["pck"]
    )
    rings, discs = (task.pictured(data[0], found) for found in (None, outputs[0]))
    assert rings.shape == discs.shape and not np.array_equal(rings, discs)
    low, high = task.interval(outputs, data)
    assert 0 < low <= scores["pck"] <= high <= 1
    task.preview(predict, data, tmp_path / "p.png")
    assert cv2.imread(str(tmp_path / "p.png")).shape[1] > 600
    assert task.bundle_members()["labels.txt"].decode().split() == list(JOINTS)


def test_pck_is_the_share_within_a_fifth_of_the_box(recipe):
    task = task_of(recipe)
    data = task.data("test")
    random = np.random.default_rng(0)
    outputs, right, counted = [], 0, 0
    for index in range(8):
        sample = data[index]
        side = sample.image.shape[0]
        heatmaps = np.zeros((1, 4, 24, 24), np.float32)
        for joint, (x, y, seen) in enumerate(sample.points):
            column, row = (
                int(v) for v in np.clip(np.array([x, y]) / side * 24 + random.integers(-9, 10, 2), 0, 23)
            )
            heatmaps[0, joint, row, column] = 1
            apart = np.hypot(column / 24 * side - x, row / 24 * side - y)
            right, counted = right + bool(seen and apart <= 0.2 * sample.length), counted + bool(seen)
        outputs.append((heatmaps,))
    assert 0 < right < counted and task.score_outputs(outputs, data)["pck"] == pytest.approx(
        right / counted, abs=0.04
    )
    nothing = [(np.full((1, 4, 24, 24), np.nan, np.float32),)] * 8
    assert task.score_outputs(nothing, data) == {"pck": 0.0}


def test_losses_and_labels_that_are_made(recipe):
    task = task_of(recipe)
    data = task.data("train")
    images, labels = task.batches(data, 8, 0)(0)
    network = task.network()
    with torch.no_grad():
        good, bad = task.loss(network(images), labels), task.loss((torch.zeros(8, 4, 24, 24),), labels)
    assert 0 < good < bad
    one, two = torch.zeros(1, 4, 3, 3), torch.full((1, 4, 3, 3), 0.5)
    assert task.distillation(one, one).item() == 0 and task.distillation((one,), two).item() == 0.25
    document = json.loads((recipe.parent / "train" / "people.json").read_text())
    del document["annotations"]
    (recipe.parent / "train" / "plain.json").write_text(json.dumps(document))
    plain = task_of(recipe, "data.train=train/plain.json").data("train")
    heatmaps = np.zeros((1, 4, 24, 24), np.float32)
    heatmaps[0, 1, 5, 6], heatmaps[0, 2, 5, 6] = 0.9, 0.1
    truth = task.pseudo_labelled([(heatmaps,)] * 2, plain)
    assert truth[0].classes.tolist() == [1] and task.score_outputs([(heatmaps,)] * 2, truth) == {"pck": 1.0}
    assert len(truth) == 2 and task.batches(truth, 2, 0)(0)[1][:, :, 2].sum() <= 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=pose_net:make_four", "returns (1, 5, 24, 24) for one image, not heatmaps of (1, 4, h, w)"),
        (
            "network=pose_net:make_pair",
            "not heatmaps of (1, 4, h, w); data.names must list the network's key",
        ),
        ("data.names=three.txt", "4 keypoints, and the network has 3"),
        ("data.format=cifar", 'format = "cifar" has no keypoints'),
        ("data.format=folder", 'format = "folder" has no keypoints; use coco'),
        ("data.label_names=joints.txt", "keypoints are matched by their names in the file"),
        ("preprocess.resize=crop", "hides a part of the image"),
        ("data.test=boxes.json", "no list 'keypoints' of finite numbers"),
    ],
)
def test_bad_recipes(recipe, override, message):
    (recipe.parent / "three.txt").write_text("head\nleft_hand\nfoot\n")
    document = json.loads((recipe.parent / "test" / "people.json").read_text())
    for entry in document["annotations"]:
        del entry["keypoints"]
    for entry in document["images"]:
        entry["file_name"] = f"test/{entry['file_name']}"
    (recipe.parent / "boxes.json").write_text(json.dumps(document))

    def everything():
        task = task_of(recipe, override)
        task.data("test")
        return task.network()

    with pytest.raises(ParedownError) as caught:
        everything()
    assert message in str(caught.value) and "\n" not in str(caught.value)
