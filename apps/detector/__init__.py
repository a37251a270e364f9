"""The detector app: the YOLO family of darknet, from its files or by name, and the embedded digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.detector.scoring.scorer import DetectorScorer
    from paredown.apps.detector.task import DetectorTask
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.recipe.task import Packed


def make_task(recipe: Recipe) -> DetectorTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.detector.task import DetectorTask

    return DetectorTask(recipe)


def make_scorer(packed: Packed) -> DetectorScorer:
    """What scores the sample of a bundle; see `pipeline.recipe.task.Scorer`."""
    from paredown.apps.detector.scoring.scorer import DetectorScorer

    return DetectorScorer(packed)
