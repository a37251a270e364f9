"""The segmenter app: a class for every pixel, by a network of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.segmenter.task import SegmenterTask
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.recipe.task import Packed


def make_task(recipe: Recipe) -> SegmenterTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.segmenter.task import SegmenterTask

    return SegmenterTask(recipe)


def make_scorer(packed: Packed) -> SegmenterTask:
    """What scores the sample of a bundle; see `pipeline.recipe.task.Scorer`."""
    from paredown.apps.segmenter.task import SegmenterTask

    return SegmenterTask.of_bundle(packed)
