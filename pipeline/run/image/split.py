"""The training images of a run: those to train on, those held out, and the metric on these.

Everything is chosen by images of the training split that no training sees; the test split is never looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from paredown.calibration.datasets import Dataset, First, census_of
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.pipeline.recipe.task import Outputs, Task, metric_alone
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT_SHARE = 0.25  # of the training images at most
TRAINING_IMAGES = 256  # of ranking and reconstruction
SMOKE_HELD_OUT, SMOKE_TRAIN = 4, 16


class TrainingSplit:
    """What pruning and SQuantizer train on and choose by.

    Args:
        recipe: resolved.
        task: of its app.
        smoke: a handful of images.

    Attributes:
        data: all training images.
        shape: of the network's input, with a batch of one.
        preprocess: from an image to that input.
    """

    def __init__(self, recipe: Recipe, task: Task, smoke: bool) -> None:
        """Opens the training split, which checks its labels."""
        self.recipe, self.task, self.smoke = recipe, task, smoke
        name = "train" if recipe.data.train or recipe.data.format == EMBEDDED else "calibration"
        data = task.data(name)
        self.data: Dataset = First(data, SMOKE_TRAIN) if smoke else data
        self.preprocess = task.preprocess
        self.shape = self.preprocess.input_shape

    @property
    def fingerprint(self) -> str:
        """Of the images, and of how those are taught that hold something to be ignored."""
        found, census = self.data.fingerprint(), census_of(self.data)
        if census is None or not census.ignored:
            return found
        return hashlib.sha256(f"{found}, and what is ignored is no background".encode()).hexdigest()

    @property
    def held_out_images(self) -> int:
        """How many images are held out at most."""
        return min(self.recipe.prune.images, len(self.data))

    def held_out(self) -> tuple[Dataset, Dataset]:
        """The images to train on, and those held out."""
        from paredown.pipeline.compress.training.data import split

        most = SMOKE_HELD_OUT if self.smoke else self.recipe.prune.images
        return split(self.data, HELD_OUT_SHARE, self.recipe.recover.seed, most)

    def truth(self, held_out: Dataset, outputs: Outputs) -> Dataset:
        """The held-out images with labels: their own, else what the original network says.

        Raises:
            InputError: they show one class only, by which nothing can be told apart.
        """
        truth = self.task.pseudo_labelled(outputs, held_out)
        seen = {int(c) for i in range(len(truth)) for c in truth[i].classes}
        if len(seen) < 2 <= len(truth.names):
            shown = f"only class {truth.names[seen.pop()]!r}" if seen else "no object at all"
            raise InputError(
                f"the {len(truth)} held-out training images show {shown}: a score on them says nothing",
                where="recipe, key data.train",
                hint="shuffle or extend the training images, or hold out more with prune.images",
            )
        return truth

    def score(self, truth: Dataset) -> Callable[[Outputs], tuple[float, float, float]]:
        """The metric with its interval, on these images."""

        def metric(outputs: Outputs) -> tuple[float, float, float]:
            value = metric_alone(self.task, outputs, truth)
            return (value, *self.task.interval(outputs, truth))

        return metric

    def best_case(self, truth: Dataset) -> Callable[[Outputs], float] | None:
        """The highest metric on these images that the outputs of the first ones allow; None if unknown."""
        if (best_case := getattr(self.task, "best_case", None)) is None:
            return None
        return lambda outputs: float(best_case(outputs, truth))

    def telling_first(self, truth: Dataset, outputs: Outputs) -> tuple[Dataset, list[int]]:
        """The held-out images in the order in which a damaged network fails on them, as the task guesses it.

        Args:
            truth: of the images.
            outputs: of the original network on them.

        Returns:
            The truth in that order, and the indices of its images; as it is where the task does not say.
        """
        from paredown.pipeline.compress.training.data import ImageSubset

        if (telling_first := getattr(self.task, "telling_first", None)) is None:
            return truth, list(range(len(truth)))
        order = [int(index) for index in telling_first(outputs, truth)]
        return ImageSubset(truth, order), order

    def inputs(self, training: Dataset, images: int = TRAINING_IMAGES) -> Tensor:
        """The first images to train on as the network takes them, (N, C, H, W)."""
        from paredown.pipeline.compress.training.data import preprocessed

        return preprocessed(First(training, images), self.preprocess)
