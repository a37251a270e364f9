"""How a detector is trained: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from paredown.apps.detector.train.augment import Augment
from paredown.apps.own.trainer import TrainSettings
from paredown.pipeline.compress.training.loop import check_settings


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """How to train; the rate is darknet's divided by its batch."""

    multi_scale: bool = False
    """Every 10 steps another input size, between 10/13 and 19/13 of the network's (320 to 608 for 416)."""
    augment: Augment = field(default_factory=Augment)
    """What is changed about the images."""
    cache_mib: int = 1024
    """Decoded images kept in memory."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        super().__post_init__()
        check_settings(self, floored=("cache_mib",))
