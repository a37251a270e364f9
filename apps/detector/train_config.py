"""How a detector is trained: the settings, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from apps.detector.augment import Augment
from targets.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Steps, not epochs, are counted inside; an epoch leaves out an incomplete last batch."""

    epochs: int = 30
    """Times through the data set."""
    batch: int = 32
    """Images per step."""
    lr: float = 0.01
    """Highest learning rate; the loss is a mean over images, as darknet's rate divided by its batch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On the convolutions' weights; batch norm and biases have none, as in darknet."""
    warmup: int = 400
    """Steps over which the rate rises from 0."""
    last_lr: float = 0.01
    """Where the cosine ends, as a share of `lr`."""
    ema: float = 0.998
    """Decay of the weights' average per step; 0 keeps the last weights. The average is what comes back."""
    clip: float = 20.0
    """Largest norm of the gradient; a larger one is scaled down."""
    multi_scale: bool = False
    """Every 10 steps another input size, between 10/13 and 19/13 of the network's (320 to 608 for 416)."""
    augment: Augment = field(default_factory=Augment)
    """What is changed about the images."""
    seed: int = 0
    """Of the order and the augmentation."""
    evaluate_every: int = 5
    """Epochs between two scores on the validation set, if there is one."""
    checkpoint_every: int = 100
    """Steps between two checkpoints, if they are kept; each epoch's end has one too."""
    cache_mib: int = 1024
    """Decoded images kept in memory."""
    device: str = "cpu"
    """Where torch computes: cpu, cuda, ..."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        for name in ("epochs", "batch", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}", where="TrainConfig", hint="at least 1")
        for name in ("lr", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} = {getattr(self, name)}", where="TrainConfig", hint="more than 0")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{name} = {getattr(self, name)}", where="TrainConfig", hint="0 or more, below 1"
                )
        for name in ("weight_decay", "warmup", "last_lr", "cache_mib", "seed"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} = {getattr(self, name)}", where="TrainConfig", hint="0 or more")
        try:
            torch.empty(0, device=self.device)
        except (
            RuntimeError,
            AssertionError,
            NotImplementedError,
        ) as error:  # torch raises each of them for this
            raise UsageError(f"device {self.device!r} cannot be used here", hint="cpu always can") from error


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of a step, 0 <= step < steps: a straight rise over the warm-up, then half a cosine."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return config.lr * (config.last_lr + (1 - config.last_lr) * (1 + math.cos(math.pi * share)) / 2)
