"""Training from labels, of any task: what a detector's and a classifier's have in common.

A run is a pure function of its settings, the data and the initial weights: what a step does depends on its
number only, so a resumed run ends where an uninterrupted one would have (on the same machine with the same
number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.training.loop import (
    check_device,
    check_settings,
    decayed_groups,
    descend,
    fit,
    learning_rate,
    memory_order,
    reorder,
    run_identity,
    update_average,
)
from paredown.pipeline.report.figures import CLASS
from paredown.pipeline.store.checkpoint import damaged, load_run, save_checkpoint

Row = dict[str, float]


@dataclass(frozen=True)
class TrainSettings:
    """What every training has; a subclass has its own defaults. Steps, not epochs, are counted inside.

    An epoch leaves out an incomplete last batch.
    """

    epochs: int = 30
    """Times through the data set."""
    batch: int = 32
    """Images per step."""
    lr: float = 0.01
    """Highest learning rate of SGD; the loss is a mean over images."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On the weights; batch norm and biases have none."""
    warmup: int = 400
    """Steps over which the rate rises from 0."""
    last_lr: float = 0.01
    """Where the cosine ends, as a share of `lr`."""
    ema: float = 0.998
    """Decay of the weights' average per step; 0 keeps the last weights. The average is what comes back."""
    clip: float = 20.0
    """Largest norm of the gradient; a larger one is scaled down."""
    seed: int = 0
    """Of the order and the augmentation."""
    evaluate_every: int = 5
    """Epochs between two scores on the validation set, if there is one."""
    patience: int = 0
    """Scores on the validation set without a gain after which it stops; 0 = never."""
    checkpoint_every: int = 100
    """Steps between two checkpoints, if they are kept; each epoch's end has one too."""
    device: str = "cpu"
    """Where torch computes: cpu, cuda, ..."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        check_settings(
            self,
            whole=("epochs", "batch", "evaluate_every", "checkpoint_every"),
            positive=("lr", "clip"),
            shares=("momentum", "ema"),
            floored=("weight_decay", "warmup", "last_lr", "seed", "patience"),
        )
        check_device(self.device)


class Lesson(Protocol):
    """What is learned.

    Attributes:
        per_epoch: steps after which every image has come once.
        metric: of `score`, higher is better.
    """

    per_epoch: int
    metric: str

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """The images of a step, (N, C, H, W) float32, and their labels."""

    def loss(self, outputs: Any, labels: Any, seen: int) -> tuple[Tensor, Row]:
        """The loss of a batch, and what else is worth telling; `seen` images were trained on before."""

    def score(self, network: nn.Module) -> Row | None:
        """The scores of a network on images that are not trained on; None without any."""


@dataclass(frozen=True)
class Listener:
    """Who hears of a training.

    Attributes:
        report: takes one line per epoch.
        tick: takes (steps done, steps in all) after every step.
        keep: takes the averaged network at each look, the history, and whether no score before was better.
    """

    report: Callable[[str], None] | None = None
    tick: Callable[[int, int], None] | None = None
    keep: Callable[[nn.Module, Sequence[Row], bool], None] | None = None


class Run:
    """The state of a training: the live network, the average, the optimizer and how far it is.

    Args:
        network: from its present weights.
        lesson: what it learns.
        config: how.
        facts: what identifies data and preprocessing, JSON-able.
        checkpoint: a file to resume from if it is there.
        started_at: images that it has seen before.
    """

    def __init__(
        self, network: nn.Module, lesson: Lesson, config: TrainSettings, facts: Sequence[Any],
        checkpoint: Path | None, started_at: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.lesson, self.started_at = config, lesson, started_at
        self.steps, self.step = config.epochs * lesson.per_epoch, 0
        self.identity = run_identity([asdict(config), *facts], network)
        self.network = network.to(config.device).train()
        self.order = memory_order(network)
        reorder(self.network, self.order)
        self.average = copy.deepcopy(network).eval()
        self.optimizer = torch.optim.SGD(
            decayed_groups(network, config.weight_decay), lr=config.lr, momentum=config.momentum
        )
        self.history: list[Row] = []
        self.sums: Row = {}  # of the loss and the rest since the epoch began
        self.best, self.stale = -math.inf, 0  # the best score, and looks since then
        if checkpoint and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def seen(self) -> int:
        """Images trained on, in the network's whole life."""
        return self.started_at + self.step * self.config.batch

    def advance(self) -> float:
        """Takes a step, gives the loss; where that or the gradient is not finite, takes none and gives it."""
        images, labels = self.lesson.batch(self.step)
        outputs = self.network(images.to(self.config.device, memory_format=self.order))
        total, told = self.lesson.loss(outputs, labels, self.seen)
        rate = learning_rate(self.config, self.step, self.steps)
        parameters = self.network.parameters()
        loss = descend(
            total, self.optimizer, parameters, clip=self.config.clip, rate=rate, device=self.config.device
        )
        if not math.isfinite(loss):
            return loss
        update_average(self.average, self.network, self.step, self.config.ema)
        self.step += 1
        for name, value in {"loss": loss, **told}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return loss

    def close_epoch(self, epoch: int) -> Row:
        """Starts the next epoch's sums and gives the row of this one, which the history keeps."""
        count = self.lesson.per_epoch
        row: Row = {"epoch": epoch, "step": self.step}
        row |= {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        self.history.append(row)
        return row

    def judge(self, score: float) -> bool:
        """Whether a score is the best so far."""
        better = score > self.best
        self.best, self.stale = max(self.best, score), 0 if better else self.stale + 1
        return better

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "best": [self.best, self.stale],
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(path, state)

    def _resume(self, path: Path) -> None:
        state = load_run(path, self.identity)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
            self.best, self.stale = state["best"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise damaged(path, error) from error


def teach(run: Run, checkpoint: Path | None, listener: Listener) -> Mapping[str, Tensor]:
    """Runs a training to its end, or until its patience is out; gives the averaged weights.

    Raises:
        UsageError: a loss that is no longer a number; the last good checkpoint stays.
    """
    config, lesson = run.config, run.lesson
    started, before = time.monotonic(), run.step

    def look() -> None:
        epoch = run.step // lesson.per_epoch
        row, better = run.close_epoch(epoch), False
        if epoch % config.evaluate_every == 0 or epoch == config.epochs:
            scores = lesson.score(run.average)
            if scores:
                told = (name for name in scores if name == lesson.metric or name.startswith(CLASS))
                row |= {name: scores[name] for name in told}
                better = run.judge(scores[lesson.metric])
        if listener.keep:
            listener.keep(run.average, run.history, better)
        if listener.report:
            shown = {name: value for name, value in row.items() if not name.startswith(CLASS)}
            figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            listener.report(f"{figures}, {(time.monotonic() - started) / (run.step - before):.3f} s/step")

    def stopped() -> bool:
        return bool(config.patience) and run.stale >= config.patience

    fit(
        run, where="train", lr=config.lr, every=lesson.per_epoch, look=look, checkpoint=checkpoint,
        checkpoint_every=config.checkpoint_every, tick=listener.tick, stopped=stopped,
    )  # fmt: skip
    return run.average.state_dict()
