"""Outputs become the boxes that a device shows, in training, runs and on devices alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.detector.digits import Digits
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.scoring.located import located
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
