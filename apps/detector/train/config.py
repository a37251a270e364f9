"""How a detector is trained: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from paredown.apps.detector.train.augment import Augment
from paredown.pipeline.compress.training.loop import check_device, check_settings


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
    patience: int = 0
    """Scores on the validation set without a gain after which it stops; 0 = never."""
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
        check_settings(
            self,
            whole=("epochs", "batch", "evaluate_every", "checkpoint_every"),
            positive=("lr", "clip"),
            shares=("momentum", "ema"),
            floored=("weight_decay", "warmup", "last_lr", "cache_mib", "seed", "patience"),
        )
        check_device(self.device)
