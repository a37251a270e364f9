"""The detector app: the YOLO family of darknet, from its files or by name, and the embedded digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.detector.task import DetectorTask
    from paredown.pipeline.recipe.schema import Recipe


def make_task(recipe: Recipe) -> DetectorTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.detector.task import DetectorTask

    return DetectorTask(recipe)
