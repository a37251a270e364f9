"""A run whose trainings are shared out: `torchrun --nproc-per-node 2 --no-python paredown run RECIPE`.

The first process makes the run as ever. The others wait until it comes to a training, build that stage with
it, step by step, and drop what they made: it is what the first one publishes. They need the same folder of
runs, for what the training reads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from paredown.pipeline.run.params import processes
from paredown.pipeline.store.stage import Stage

TRAININGS = ("recover", "squantize")


def follows() -> bool:
    """Whether this process only helps another one with its trainings."""
    return processes() is not None and os.environ["RANK"] != "0"


def lead(stage: Stage) -> None:
    """Calls the other processes to a training; does nothing for other stages, or where there are none."""
    if processes() is not None and stage.name in TRAININGS:
        _said(stage.key)


def release() -> None:
    """Lets the other processes end."""
    if processes() is not None:
        _said("")


def follow(stages: Callable[[], tuple[Stage, ...]], build: Callable[[Stage, Path], None]) -> None:
    """Helps with every training until the first process has no more.

    Args:
        stages: of the run.
        build: builds one of them into a folder.
    """
    while key := _said(None):
        stage = next(stage for stage in stages() if stage.key == key)
        with tempfile.TemporaryDirectory() as folder:
            build(stage, Path(folder))


def _said(key: str | None) -> str:
    """What the first process says to all."""
    from torch.distributed import broadcast_object_list

    from paredown.pipeline.compress.ranks import ranks

    ranks()
    told = [key]
    broadcast_object_list(told, src=0)
    return told[0] or ""
