"""Training as a recipe asks for it: from the task's data and losses to a call of `recover`.

Recovery after pruning and SQuantizer's pass are one and the same loop, with another student.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from paredown.calibration.datasets import Dataset
from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.data import agreement, evaluator, preprocessed, run_graph
from paredown.pipeline.compress.training.features import FeatureTap
from paredown.pipeline.compress.training.loop import training_device
from paredown.pipeline.compress.training.recover import Evaluate, Recovered, recover
from paredown.pipeline.compress.training.sparsify import SparsitySchedule
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.recipe.schema import Training
from paredown.pipeline.recipe.task import Batches, Outputs, Task

SMOKE_STEPS = 2
AGREEMENT = "agreement"
"""What a training is judged by where there are no labels: minus the distillation loss."""


@dataclass(frozen=True)
class TrainingSetup:
    """All that one training needs: data, losses, configuration.

    Attributes:
        wanted: the recipe's section.
        task: gives batches, losses, the original network and the score.
        graph: the original's.
        training: images to train on.
        held_out: images that decide which average comes back.
        truth: checks the held-out images' labels, and adds them where some have none.
        checkpoint: where to resume from; None keeps none.
        smoke: a step or two.
        tick: progress.
    """

    wanted: Training
    task: Task
    graph: Graph
    training: Dataset
    held_out: Dataset
    truth: Callable[[Dataset, Outputs], Dataset]
    checkpoint: Path | None
    smoke: bool
    tick: Callable[[int, int], None]

    @functools.cached_property
    def batches(self) -> Batches:
        """Of the training images."""
        return self.task.batches(self.training, min(self.wanted.batch, len(self.training)), self.wanted.seed)

    @functools.cached_property
    def has_labels(self) -> bool:
        """Whether the training images do."""
        return self.batches(0)[1] is not None

    @property
    def steps(self) -> int:
        """How many there are to take."""
        return max(1, round(self._epochs * self.batches.per_epoch))

    @property
    def _epochs(self) -> float:
        return SMOKE_STEPS / self.batches.per_epoch if self.smoke else self.wanted.epochs

    def evaluation(self) -> tuple[str, Evaluate]:
        """The metric's name, and the function that computes it on held-out images.

        Held-out images with labels are scored. Without, what counts is how near the outputs are to the
        original's (minus the distillation loss): a score on the original's own findings hangs on the few
        boxes near its threshold, and picks by chance.
        """
        if not self.has_labels:
            return AGREEMENT, agreement(self.task, self.held_out, self.task.network())
        outputs = run_graph(self.graph, preprocessed(self.held_out, self.task.preprocess))
        return self.task.metric, evaluator(self.task, self.truth(self.held_out, outputs))

    def train(
        self,
        student: nn.Module,
        evaluate: Evaluate,
        features: Sequence[FeatureTap] = (),
        feature_weight: float = 1.0,
        sparsity: SparsitySchedule | None = None,
    ) -> Recovered:
        """Trains a network; see `pipeline.compress.training.recover.recover`."""
        wanted = self.wanted
        method = ("both" if self.has_labels else "distil") if wanted.method == "auto" else wanted.method
        config = RecoverConfig(
            method=method, epochs=self._epochs, lr=wanted.lr, warmup=wanted.warmup,
            weight_decay=wanted.weight_decay, ema=wanted.ema, distil_weight=wanted.distil_weight,
            feature_weight=feature_weight, evaluate_every=max(1, self.steps // wanted.evaluations),
            patience=wanted.patience, norm=wanted.norm, seed=wanted.seed,
            device=training_device(wanted.device),
        )  # fmt: skip
        task = self.task
        return recover(
            student, self.batches, config, label_loss=task.loss, teacher=task.network(),
            distil=task.distillation, features=features, evaluate=evaluate, sparsity=sparsity,
            checkpoint=self.checkpoint, tick=self.tick,
            identity=self.training.fingerprint() + self.held_out.fingerprint(),
        )  # fmt: skip
