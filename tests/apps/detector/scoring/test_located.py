"""Outputs become the boxes that a device shows, in training, runs and on devices alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.detector.digits import Digits
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.scoring import located as module
from paredown.apps.detector.scoring.located import Located, located
from paredown.apps.detector.task import DetectorTask
from paredown.apps.detector.train.train import evaluate, plain_input
from paredown.calibration.datasets import First
from paredown.pipeline.recipe.schema import Recipe


def predicted(network):
    def predict(x):
        with torch.no_grad():
            return tuple(part.numpy() for part in network(torch.from_numpy(x)))

    return predict


def test_boxes_are_clipped_to_the_image_and_scored_alike_in_training_and_in_a_run():
    """An untrained network: its boxes reach far outside, where clipping decides much."""
    torch.manual_seed(1)
    network = Yolo.builtin("yolov2-nano").eval()
    with torch.no_grad():
        for head in network.heads.values():
            head.wh.bias += 0.5
    task, data = DetectorTask(Recipe()), First(Digits("test"), 12)
    trained = evaluate(network, data, plain_input(network))
    ran = task.score(predicted(network), data)
    assert trained == pytest.approx(dict(ran), abs=1e-12)
    outputs = [part[0] for part in predicted(network)(task.preprocess(data[0].image)[None])]
    found = located(outputs, network.anchors, task.preprocess, data[0].image.shape[:2])
    assert len(found) and found.boxes.min() >= 0 and found.boxes.max() <= 1
    raw = located(outputs, network.anchors, task.preprocess, data[0].image.shape[:2], threshold=0.9)
    assert len(raw) <= len(found) and np.isfinite(found.boxes).all()


def test_outputs_that_come_again_are_decoded_once_and_the_oldest_are_forgotten(monkeypatch):
    torch.manual_seed(1)
    network, task = Yolo.builtin("yolov2-nano").eval(), DetectorTask(Recipe())
    images = np.random.default_rng(1).random((3, 1, 3, 160, 160), dtype=np.float32)
    outputs = [[part[0] for part in predicted(network)(image)]
               for image in images]  # fmt: skip
    decoded = []
    detect = module.detect

    def counted(made, *others):
        decoded.append(next(i for i, one in enumerate(outputs) if one[0] is made[0]))
        return detect(made, *others)

    monkeypatch.setattr(module, "detect", counted)
    plain = [located(one, network.anchors, task.preprocess, (160, 160)) for one in outputs]
    size = sum(part.nbytes for part in (plain[0].boxes, plain[0].scores, plain[0].classes))
    decoded.clear()

    def equal(a, b):
        return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "scores", "classes"))

    every = Located(network.anchors, task.preprocess)
    for _ in range(2):
        assert all(equal(every(one, (160, 160)), found) for one, found in zip(outputs, plain, strict=True))
    assert decoded == [0, 1, 2]
    every(outputs[0], (80, 160))
    assert decoded == [0, 1, 2, 0], "an image of another size has other boxes"
    outputs[1][0][:] += 1
    assert not equal(every(outputs[1], (160, 160)), plain[1]), "it was changed in place"
    decoded.clear()
    some = Located(network.anchors, task.preprocess, kept=2 * max(size, 1))
    for index in (0, 0, 2, 1, 0):
        some(outputs[index], (160, 160))
    assert decoded[0] == 0 and decoded[-1] == 0 and len(decoded) == 4, "the first was forgotten meanwhile"
    none = Located(network.anchors, task.preprocess, kept=0)
    assert equal(none(outputs[2], (160, 160)), plain[2]), "what is too large to be kept is given all the same"
