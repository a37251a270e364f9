"""Training a classifier: what it learns, and settings that cannot work."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from paredown.apps.classifier.train import ClassifierConfig, ClassifierLesson
from paredown.targets.errors import UsageError


class Task:
    """Batches of one-hot images, scored by what the network says of them."""

    def batches(self, data, batch, seed):
        def made(step):
            labels = torch.arange(batch) % 3
            return nn.functional.one_hot(labels, 3).float()[:, :, None, None], labels

        made.per_epoch = 2
        return made

    def loss(self, outputs, labels):
        return nn.functional.cross_entropy(outputs, labels)

    def score(self, predict, data):
        (logits,) = predict(torch.eye(3)[:, :, None, None].numpy())
        return {"top1": float((logits.argmax(1) == range(3)).mean())}


def test_a_lesson_gives_batches_their_loss_and_the_score_of_the_task():
    config = ClassifierConfig(batch=6)
    lesson = ClassifierLesson(Task(), [], [], config)
    images, labels = lesson.batch(0)
    assert images.shape == (6, 3, 1, 1) and lesson.per_epoch == 2
    loss, told = lesson.loss(images.flatten(1) * 9, labels, 0)
    assert float(loss) < 0.01 and told == {"train_top1": 1.0}
    assert lesson.score(nn.Flatten()) == {"top1": 1.0}
    assert ClassifierLesson(Task(), [], None, config).score(nn.Flatten()) is None


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": math.nan}, {"ema": 1.0}, {"patience": -1}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ClassifierConfig(**wrong)
