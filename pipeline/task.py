"""What an app gives the pipeline: a network, data, a score. Nothing here knows what the task is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import Dataset
from calibration.preprocess import Preprocess
from pipeline.recipe import Recipe
from targets.errors import InputError

#: One float32 input with its batch of one, (1, channels, height, width), to the network's float32 outputs.
Predict = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]
#: Told after each image: how many are done, of how many.
Progress = Callable[[int, int], None]


class Task(Protocol):
    """An app's side of a recipe; made cheaply, loads nothing before it is asked.

    Attributes:
        name: import path of the app.
        metric: the metric of `score` that budgets and tables speak of.
        output_names: what the network returns, in order.
        network_id: everything but weights and data that decides what the network is; JSON-able.
    """

    name: str
    metric: str
    output_names: tuple[str, ...]
    network_id: Mapping[str, Any]

    @property
    def preprocess(self) -> Preprocess:
        """From an image to the network's input; one object for training, scoring and the device."""

    def weights_hash(self) -> str:
        """sha256 of the weights file."""

    def network(self) -> Any:
        """The trained `torch.nn.Module` in evaluation mode."""

    def data(self, split: str) -> Dataset:
        """The images of "train", "calibration" or "test"."""

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """Metric to value, fractions of one, for any way of predicting."""

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The training loss of the network's outputs."""

    def bundle_members(self) -> dict[str, bytes]:
        """Files that the device needs beside model and preprocessing (labels, anchors)."""

    def device_files(self) -> dict[str, Path]:
        """Source files that run on the device: path in the bundle to file here."""

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Draws what the network finds on a test image as a PNG."""


def load_task(recipe: Recipe) -> Task:
    """Imports the recipe's app and asks it for its task.

    Raises:
        InputError: there is no such app, or it has no `make_task(recipe)`.
    """
    try:
        app = importlib.import_module(recipe.app)
    except ModuleNotFoundError as error:
        if error.name and recipe.app.startswith(error.name):
            raise InputError(
                f"no app `{recipe.app}`", where="recipe, key app", hint="try apps.detector"
            ) from error
        raise
    make: Callable[[Recipe], Task] | None = getattr(app, "make_task", None)
    if make is None:
        raise InputError(f"app `{recipe.app}` has no function make_task(recipe)", where="recipe, key app")
    return make(recipe)
