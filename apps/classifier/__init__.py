"""The classifier app: CIFAR ResNets, ResNet-18/50 and MobileNetV2, or a network of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.classifier.task import ClassifierTask
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.recipe.task import Packed


def make_task(recipe: Recipe) -> ClassifierTask:
    """What the pipeline asks of this app; see `pipeline.recipe.task.Task`."""
    from paredown.apps.classifier.task import ClassifierTask

    return ClassifierTask(recipe)


def make_scorer(packed: Packed) -> ClassifierTask:
    """What scores the sample of a bundle; see `pipeline.recipe.task.Scorer`."""
    from paredown.apps.classifier.task import ClassifierTask

    return ClassifierTask.of_bundle(packed)
