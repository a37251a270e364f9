"""What makes a score doubtful is said: other preprocessing than in training, classes in another order."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.apps.classifier.task import ClassifierTask
from paredown.apps.own.doubts import differences, swapped, trained_with
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.schema import Data, PreprocessOverride, Recipe
from paredown.pipeline.store.checkpoint import save_weights

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def weights(tmp_path):
    """Weights as `paredown train` writes them."""
    path, made = tmp_path / "net.safetensors", Preprocess(64, 64, resize="letterbox")
    facts = {"names": NAMES, "preprocess": made.to_dict()}
    save_weights(path, nn.Linear(2, 2), {"paredown": json.dumps(facts)})
    return path


def test_what_the_training_did_is_read_from_the_weights(weights, tmp_path):
    same = Preprocess(64, 64, resize="letterbox")
    assert differences(weights, same, NAMES) == []
    (note,) = differences(weights, replace(same, resize="stretch"), NAMES)
    assert 'trained with preprocess.resize = "letterbox", and this recipe has "stretch"' in note
    (note,) = differences(weights, same, ("dog", "cat", "owl"))
    assert "classes in the order cat, dog, owl, and data.names has dog, cat, owl" in note
    assert differences(weights, same, ("Katze", "Hund", "Eule")) == []  # other words may be right
    save_weights(tmp_path / "plain.safetensors", nn.Linear(2, 2))
    for name, data in (("a.safetensors", b""), ("b.safetensors", b"\xff" * 40), ("c.pt", b"x")):
        (tmp_path / name).write_bytes(data)
        assert trained_with(tmp_path / name) == {}
    assert trained_with(tmp_path / "plain.safetensors") == {} == trained_with(tmp_path / "absent.safetensors")


def rows(counts):
    """A matrix of counts as details of scores have it."""
    return [[t, s, int(n)] for (t, s), n in np.ndenumerate(counts) if n]


def test_training_with_averages_is_noticed(tmp_path):
    path, made = tmp_path / "net.safetensors", Preprocess(64, 64, resample="area")
    save_weights(path, nn.Linear(2, 2), {"paredown": json.dumps({"preprocess": made.to_dict()})})
    (note,) = differences(path, Preprocess(64, 64), NAMES)
    assert 'trained with preprocess.resample = "area", and this recipe has "bilinear"' in note
    assert differences(path, made, NAMES) == []


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(5)), st.integers(3, 30), st.integers(0, 2))
def test_names_in_another_order_are_noticed_and_right_ones_are_not(order, count, noise):
    """A network that is nearly always right, under names that are permuted."""
    counts = np.full((5, 5), noise)
    counts[range(5), order] += 10 * count
    note = swapped(rows(counts), "abcde")
    fixed = sum(place == index for index, place in enumerate(order))
    assert (note is not None) == (fixed <= 2)
    if note:
        first = next(i for i, place in enumerate(order) if i != place)
        assert f"{'abcde'[first]} is called {'abcde'[order[first]]}" in note


def test_a_bad_network_and_few_objects_are_no_other_order():
    assert swapped(rows(np.full((5, 5), 7)), "abcde") is None
    assert swapped([[0, 1, 5], [1, 0, 5], [-1, 0, 9], [0, -1, 9]], "ab") is None  # ten objects
    assert swapped([[0, 1, 9], [1, 0, 9]], "ab") is not None


def test_a_better_way_to_resize_is_offered(tmp_path):
    """Wide images, whose class is told by their middle square alone: crop, and not stretch."""
    for split in ("calibration", "test"):
        for number in range(16):
            kind = ("bright", "dark")[number % 2]
            image = np.full((40, 120, 3), 255 if kind == "dark" else 0, np.uint8)
            image[:, 40:80] = 30 if kind == "dark" else 220
            path = tmp_path / split / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    save_weights(tmp_path / "net.safetensors", nn.Linear(2, 2))
    data = Data(
        format="imagefolder", names=str(tmp_path / "names.txt"), test=str(tmp_path / "test"),
        calibration=str(tmp_path / "calibration"),
    )  # fmt: skip
    recipe = Recipe(
        app="apps.classifier", network="resnet20", weights=str(tmp_path / "net.safetensors"), data=data,
        preprocess=PreprocessOverride(width=32, height=32),
    )  # fmt: skip

    def predict(x):
        light = float(x.mean())
        return (np.array([[light, -light]], np.float32),)

    (note,) = ClassifierTask(recipe).doubts(predict, {})
    assert 'top1 is 1.0000 with preprocess.resize = "crop" and 0.0000 with "stretch", which is used' in note
    chosen = recipe.model_copy(
        update={"preprocess": PreprocessOverride(width=32, height=32, resize="stretch")}
    )
    assert ClassifierTask(chosen).doubts(predict, {}) == []


def test_averages_are_offered(tmp_path):
    """The class is told by three quarters of an image, and bilinear looks at the fourth."""
    for number in range(16):
        kind = ("bright", "dark")[number % 2]
        light = 255 * (kind == "bright")
        image = np.full((128, 128, 3), light, np.uint8)
        image.reshape(32, 4, 32, 4, 3)[:, 1:3, :, 1:3] = 255 - light  # a quarter, all that bilinear looks at
        path = tmp_path / "images" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    save_weights(tmp_path / "net.safetensors", nn.Linear(2, 2))
    data = Data(format="imagefolder", names=str(tmp_path / "names.txt"), test=str(tmp_path / "images"),
                calibration=str(tmp_path / "images"))  # fmt: skip
    recipe = Recipe(
        app="apps.classifier", network="resnet20", weights=str(tmp_path / "net.safetensors"), data=data,
        preprocess=PreprocessOverride(width=32, height=32, mean=(0.5,), std=(0.5,)),
    )  # fmt: skip

    def predict(x):
        light = float(x.mean())
        return (np.array([[light, -light]], np.float32),)

    (note,) = ClassifierTask(recipe).doubts(predict, {})
    said = 'top1 is 1.0000 with preprocess.resample = "area" and 0.0000 with "bilinear", which is used'
    assert said in note
