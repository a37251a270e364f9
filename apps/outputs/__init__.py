"""The outputs app: any network of the user's own, judged by how near its outputs stay to its own in float."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.outputs.task import OutputsTask
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.recipe.task import Packed


def make_task(recipe: Recipe) -> OutputsTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.outputs.task import OutputsTask

    return OutputsTask(recipe)


def make_scorer(packed: Packed) -> OutputsTask:
    """What scores the sample of a bundle; see `pipeline.recipe.task.Scorer`."""
    from paredown.apps.outputs.task import OutputsTask

    return OutputsTask.of_bundle(packed)
