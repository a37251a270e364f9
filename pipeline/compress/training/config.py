"""How accuracy is recovered: the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paredown.pipeline.compress.training.loop import check_device, check_settings
from paredown.targets.errors import UsageError


@dataclass(frozen=True)
class RecoverConfig:
    """How to recover. An epoch leaves out an incomplete last batch."""

    method: Literal["labels", "distil", "both"] = "distil"
    """"labels": the task's loss; "distil": match the teacher, no labels needed; "both": their sum."""
    epochs: float = 10
    """Times through the training images; a part of one is fine."""
    lr: float = 0.01
    """Highest learning rate."""
    warmup: int = 50
    """Steps over which the rate rises from 0; at most half of all."""
    last_lr: float = 0.01
    """Where the cosine ends, as a share of `lr`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """"sgd": with Nesterov's momentum; "adamw": wants an `lr` about ten times lower."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On weights; batch norm and biases have none."""
    clip: float = 2.0
    """Largest norm of the gradient; a larger one is scaled down."""
    ema: float = 0.998
    """Decay of the weights' average per step; 0 keeps the last weights. The average is what comes back."""
    distil_weight: float = 1.0
    """Of the distance from the teacher's outputs."""
    feature_weight: float = 1.0
    """Of the distance from the teacher's features, where there are taps."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 = every epoch."""
    patience: int = 5
    """Evaluations without a gain after which it stops."""
    norm: Literal["live", "frozen"] = "live"
    """Statistics of batch norm: "live": of each batch, and learnt; "frozen": the network's own."""
    checkpoint_every: int = 100
    """Steps between two checkpoints, if they are kept; each evaluation has one too."""
    seed: int = 0
    """Of whatever the network itself draws (dropout); the batches have their own."""
    device: str = "cpu"
    """Where torch computes: cpu, cuda, ..."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        for name, known in (
            ("method", ("labels", "distil", "both")),
            ("optimizer", ("sgd", "adamw")),
            ("norm", ("live", "frozen")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} = {getattr(self, name)!r}",
                    where="RecoverConfig",
                    hint=f"one of {', '.join(known)}",
                )
        check_settings(
            self,
            whole=("patience", "checkpoint_every"),
            positive=("epochs", "lr", "clip"),
            shares=("momentum", "ema"),
            floored=("warmup", "last_lr", "weight_decay", "distil_weight", "feature_weight"),
        )
        check_settings(self, floored=("evaluate_every", "seed"))
        check_device(self.device)
