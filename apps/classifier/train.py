"""Trains a classifier on labelled images; batches, loss and score are those of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.apps.classifier.task import ClassifierTask
from paredown.apps.own.trainer import Listener, Row, Run, TrainSettings, teach
from paredown.calibration.datasets import Dataset
from paredown.pipeline.compress.training.loop import reorder


@dataclass(frozen=True)
class ClassifierConfig(TrainSettings):
    """How to train: what small networks on small images want."""

    epochs: int = 60
    lr: float = 0.05
    warmup: int = 100
    ema: float = 0.99
    clip: float = 5.0
    evaluate_every: int = 1
    patience: int = 20
    checkpoint_every: int = 200


class ClassifierLesson:
    """Classes of labelled images; satisfies `apps.own.trainer.Lesson`."""

    metric = "top1"

    def __init__(
        self, task: ClassifierTask, data: Dataset, validation: Dataset | None, config: ClassifierConfig
    ) -> None:
        """Takes what is learned."""
        self._task, self._validation, self._device = task, validation, config.device
        self._batches = task.batches(data, config.batch, config.seed)
        self.per_epoch = self._batches.per_epoch

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """See `Lesson`."""
        images, labels = self._batches(step)
        return images, labels.to(self._device)

    def loss(self, outputs: Any, labels: Any, seen: int) -> tuple[Tensor, Row]:
        """See `Lesson`."""
        loss: Tensor = self._task.loss(outputs, labels)
        right = (outputs.argmax(1) == labels).float().mean()
        return loss, {"train_top1": float(right)}

    def score(self, network: nn.Module) -> Row | None:
        """See `Lesson`."""
        if self._validation is None:
            return None

        def predict(x: Any) -> tuple[Any, ...]:
            with torch.no_grad():
                return (network(torch.from_numpy(x).to(self._device)).cpu().numpy(),)

        return dict(self._task.score(predict, self._validation))


def train_classifier(
    task: ClassifierTask,
    network: nn.Module,
    data: Dataset,
    config: ClassifierConfig,
    validation: Dataset | None = None,
    checkpoint: Path | None = None,
    report: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
    keep: Callable[[nn.Module, Sequence[Row], bool], None] | None = None,
) -> tuple[Row, ...]:
    """Trains a network in place, from its present weights.

    Args:
        task: of the recipe that a run takes later.
        network: which returns logits.
        data: labelled images.
        config: how.
        validation: scored at epochs' ends; patience, and what `keep` is told is best, go by it.
        checkpoint: a file to resume from if it is there, and to keep up to date.
        report: takes one line per epoch.
        tick: takes (steps done, steps in all) after every step.
        keep: takes the averaged network at each epoch's end, the history, and whether it is the best so far.

    Returns:
        A row per epoch.

    Raises:
        UsageError: fewer images than a batch, or a loss that is no longer a number.
        InputError: a checkpoint of another run, or an image that cannot be read.
    """
    lesson = ClassifierLesson(task, data, validation, config)
    run = Run(network, lesson, config, [task.preprocess.hash, data.fingerprint()], checkpoint)
    network.load_state_dict(teach(run, checkpoint, Listener(report, tick, keep)))
    reorder(network.cpu().eval(), torch.contiguous_format)
    return tuple(run.history)
