"""A segmenter's task: scores, losses, recipes that are wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from task_projects import SHAPES, make_segmentation

from paredown.apps.own.filled import Filled
from paredown.apps.segmenter.masks import read_masks
from paredown.apps.segmenter.task import SegmenterTask
from paredown.calibration.readers.records import Classes
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import ParedownError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_segmentation(tmp_path_factory.mktemp("shapes"), steps=60)


@pytest.fixture
def recipe(made, monkeypatch) -> Path:
    monkeypatch.chdir(made.parent)
    monkeypatch.delitem(sys.modules, "unet", raising=False)
    return made


def task_of(recipe: Path, *overrides: str) -> SegmenterTask:
    task = load_task(load_recipe(recipe, overrides))
    assert isinstance(task, SegmenterTask)
    return task


def predictor(network):
    @torch.no_grad()
    def predict(x):
        return (network(torch.from_numpy(x)).numpy(),)

    return predict


def test_scores_of_a_trained_network_its_interval_and_a_preview(recipe, tmp_path):
    task = task_of(recipe)
    data, predict = task.data("test"), predictor(task.network())
    seen = []
    scores = task.score(predict, data, lambda done, of: seen.append((done, of)))
    assert scores.keys() == {"miou", "pixel_accuracy"} and scores["miou"] > 0.6 and len(seen) == 8
    outputs = [predict(task.preprocess(data[i].image)[None]) for i in range(8)]
    assert task.score_outputs(outputs, data) == pytest.approx(scores)
    told = scores.details()["images"]
    assert [image["index"] for image in told] == list(range(8))
    one = task.score_outputs(outputs[:1], data)["miou"]  # the first image alone
    assert told[0]["quality"] == pytest.approx(one, abs=1e-5)
    pictures = [task.pictured(data[0], found) for found in (None, outputs[0])]
    assert all(picture.dtype == np.uint8 and picture.shape[1] == 152 for picture in pictures)
    low, high = task.interval(outputs, data)
    assert 0 < low < scores["miou"] < high <= 1
    task.preview(predict, data, tmp_path / "p.png")
    assert cv2.imread(str(tmp_path / "p.png")).shape[1] > 600
    assert task.bundle_members()["labels.txt"].decode().split() == list(SHAPES)
    assert "paredown/apps/segmenter/device/class_map.py" in task.device_files()
    assert task.network_id["classes"] == 3 and task.features() == ()
    with pytest.raises(ValueError, match="9 outputs for 8 samples"):
        task.score_outputs([*outputs, outputs[0]], data)


def test_losses(recipe):
    task = task_of(recipe)
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[:, 0] = 255
    wide = F.interpolate(student, (8, 8), mode="bilinear")
    torch.testing.assert_close(task.loss(student, masks), F.cross_entropy(wide, masks, ignore_index=255))
    assert task.loss(student, torch.full((2, 8, 8), 255)).item() == 0  # nothing to learn, and no NaN
    p, q = teacher.softmax(1), student.softmax(1)
    expected = (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(task.distillation(student, (teacher,)), expected)
    assert task.distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_outputs_become_the_masks_of_images_without(recipe, tmp_path):
    task = task_of(recipe, f"data.labels={tmp_path}")
    data = task.data("train")
    assert not data[0].labelled and task.batches(data, 2, 0)(0)[1] is None
    logits = np.zeros((1, 3, 2, 2), np.float32)
    logits[0, 2] = 1
    truth = task.pseudo_labelled([(logits,)] * 3, data)
    assert isinstance(truth, Filled) and len(truth) == 3 and truth.names == SHAPES
    assert truth[0].classes.tolist() == [2] and truth[0].mask.shape == data[0].image.shape[:2]
    assert task.score_outputs([(logits,)] * 3, truth) == {"miou": 1.0, "pixel_accuracy": 1.0}
    assert task.batches(truth, 2, 0)(0)[1].unique().tolist() == [2]
    assert truth.fingerprint() != data.fingerprint()
    known = task_of(recipe).data("train")
    kept = task_of(recipe).pseudo_labelled([(logits,)], known)
    assert np.array_equal(kept[0].mask, known[0].mask)  # masks that are there stay
    with pytest.raises(IndexError):
        kept[1]


def test_labels_of_nothing_are_an_error(recipe, tmp_path):
    for name in ("test", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "test" / "0.png"), np.zeros((9, 9, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "labels" / "0.png"), np.full((9, 9), 255, np.uint8))
    task = task_of(recipe, f"data.test={tmp_path / 'test'}", f"data.labels={tmp_path / 'labels'}")
    with pytest.raises(ParedownError, match="not one pixel of the labels is of a class: all are ignored"):
        task.data("test")
    nothing = [(np.zeros((1, 3, 2, 2), np.float32),)]
    data = read_masks(tmp_path / "test", Classes(SHAPES), tmp_path / "labels", None, True)
    with pytest.raises(ParedownError, match="not one pixel of the labels is of a class"):
        task.score_outputs(nothing, data)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=unet:make_four", "returns (1, 4, 24, 24) for one image, not logits of (1, 3, h, w)"),
        ("network=unet:make_flat", "returns (1, 3) for one image, not logits of (1, 3, h, w)"),
        ("network=unet:make_pair", "returns [(1, 3, 24, 24), (1, 3)] for one image, not logits"),
        ("network=resnet18", "the segmenter has no built-in network 'resnet18'; use"),
        ("weights=digits", "the segmenter brings no weights along"),
        ("data.format=yolo", 'format = "yolo" has no class for every pixel; use masks'),
        ("data.labels=nowhere", "no such folder of labels"),
        ("data.labels=images", "an RGB PNG; a label is a PNG of one channel or a palette"),
        ("data.format=folder", 'format = "folder" has no class for every pixel'),
        ("data.labels=nothing", "it is needed here; labels are PNGs of the images' names"),
        ("preprocess.resize=crop", 'resize = "crop" hides a part of the image; use stretch or letterbox'),
    ],
)
def test_bad_recipes(recipe, override, message):
    recipe.with_name("nothing").mkdir(exist_ok=True)

    def everything():
        task = task_of(recipe, override)
        task.data("test"), task.data("train")
        return task.network()

    with pytest.raises(ParedownError) as caught:
        everything()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_class_is_nothing_to_tell_apart(recipe, tmp_path):
    (tmp_path / "one.txt").write_text("a\n")
    with pytest.raises(ParedownError, match="1 classes: a segmenter has 2 to 254"):
        task_of(recipe, f"data.names={tmp_path / 'one.txt'}")
