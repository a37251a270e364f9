"""The pose app: keypoints of one person, or thing, by heatmaps of a network of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.pose.task import PoseTask
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.recipe.task import Packed


def make_task(recipe: Recipe) -> PoseTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.pose.task import PoseTask

    return PoseTask(recipe)


def make_scorer(packed: Packed) -> PoseTask:
    """What scores the sample of a bundle; see `pipeline.recipe.task.Scorer`."""
    from paredown.apps.pose.task import PoseTask

    return PoseTask.of_bundle(packed)
