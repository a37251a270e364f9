"""What an app gives the pipeline: a network, data, a score. Nothing here knows what the task is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.recipe.imports import folders
from paredown.pipeline.recipe.imports.read import SUFFIXES
from paredown.pipeline.recipe.schema import Quantize, Recipe
from paredown.targets.errors import InputError

#: One float32 input with its batch of one, as `preprocess.input_shape` has it, to the network's outputs.
Predict = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]
#: How often each image counts in each resample, (resamples, images), to a metric of each resample.
Resampled = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
#: Makes what a report shows of a score, beside its numbers.
Details = Callable[[], Mapping[str, Any]]
#: Told after each image: how many are done, of how many.
Progress = Callable[[int, int], None]

#: The network's float32 outputs for one image after the other, each with its batch of one.
Outputs = Sequence[tuple[NDArray[np.float32], ...]]


#: The apps whose code comes with paredown.
APPS = frozenset(
    f"apps.{name}" for name in ("chat", "classifier", "detector", "outputs", "pose", "segmenter")
)

#: Suffixes of model files that this code reads itself, as data. All others torch, transformers or TensorFlow
#: would load, and what they hold may be executed on the way.
PARSED = frozenset({".onnx", ".tflite", ".keras", ".h5", ".hdf5"})


class Scores(dict[str, float]):
    """Metric to value, fractions of one, and the task's `metric` on resamples of the same images.

    Args:
        values: by metric.
        samples: how many images, or pieces of text, were scored.
        resampled: an image that counts twice in a resample is as good as two equal ones. NaN where a resample
            has nothing to score.
        details: makes what a report shows of them, JSON-able, each part as far as the task has it:
            `classes`, a list of {name, score, low, high, count, curve}, the metric of each class that occurs,
            its 95 % interval, how often it occurs, and points (recall, precision); `names` of all classes
            and `confusion`, a list of [true, said, count], -1 for nothing; `images`, a list of {index,
            quality, found}, 0 to 1, and what `drawn_by` takes; no found where `pictured_by` draws.
    """

    def __init__(
        self, values: Mapping[str, float], samples: int, resampled: Resampled, details: Details | None = None
    ) -> None:
        """A dictionary like any other, since a task may as well give a plain one."""
        super().__init__(values)
        self.samples = samples
        self.resampled = resampled
        self.details: Details = details or dict


@dataclass(frozen=True)
class Metric:
    """What budgets and tables speak of.

    Attributes:
        name: as scores have it ("map50").
        less_is_better: then a drop of accuracy is a rise of it, as a share of the original's.
    """

    name: str
    less_is_better: bool = False

    def drop(self, original: float, score: float) -> float:
        """How much worse a score is than the original network's."""
        if self.less_is_better and original:
            return score / original - 1
        return score - original if self.less_is_better else original - score


@dataclass(frozen=True)
class Packed:
    """What a bundle says of its task: all that scoring needs. It is data; no network is read, no code.

    Attributes:
        app: the app's own facts, as `app.json` has them.
        names: of the classes.
        preprocess: from an image or an array to the network's input.
    """

    app: Mapping[str, Any]
    names: tuple[str, ...]
    preprocess: AnyInput


class Scorer(Protocol):
    """The part of a task that scores; an app's `make_scorer(packed)` makes it.

    Attributes:
        metric: as of a task.
    """

    metric: str

    @property
    def preprocess(self) -> AnyInput:
        """As of a task."""

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """As of a task."""

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """A sample with labels that are neither boxes nor classes, as `Task.arrays_of` named them.

        Raises:
            ValueError: they do not fit the sample.
        """


class Batches(Protocol):
    """Makes training batches, each a pure function of its step's number.

    Attributes:
        per_epoch: steps after which every image has come once.
    """

    @property
    def per_epoch(self) -> int:
        """At least 1."""

    def __call__(self, step: int, /) -> tuple[Any, Any]:
        """The images (N, C, H, W), a float32 tensor, and what `Task.loss` takes as labels, None without."""


class Task(Protocol):
    """An app's side of a recipe; made cheaply, loads nothing before it is asked.

    Attributes:
        name: import path of the app.
        metric: the metric of `score` that budgets and tables speak of. A task whose metric is better when it
            is less says so in an attribute `less_is_better`. One whose score has changed for the same outputs
            names its present rule in an attribute `score_rule`. One that can say it has a method
            `best_case(outputs, data)`: the highest `metric` that the outputs of the first images leave
            possible on all of the data; and `telling_first(outputs, data)`: indices of the images, those
            first on which a damaged network fails first.
        output_names: what the network returns, in order.
        network_id: everything but weights and data that decides what the network is; JSON-able.
    """

    name: str
    metric: str
    output_names: tuple[str, ...]
    network_id: Mapping[str, Any]

    @property
    def preprocess(self) -> AnyInput:
        """From an image or an array to the network's input; one for training, scoring and the device."""

    def weights_hash(self) -> str:
        """sha256 of the weights file."""

    def network(self) -> Any:
        """The trained `torch.nn.Module` in evaluation mode."""

    def data(self, split: str) -> Dataset:
        """The images of "train", "calibration" or "test"."""

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """Metric to value, fractions of one, for any way of predicting.

        A plain dictionary, or `Scores`, from which the confidence interval of a drop comes.
        """

    def score_outputs(self, outputs: Outputs, data: Dataset) -> dict[str, float]:
        """The metrics of `score`, from outputs for the first len(outputs) images of the data."""

    def interval(self, outputs: Outputs, data: Dataset) -> tuple[float, float]:
        """The 95 % confidence interval of `metric`, as far as the number of images decides it."""

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first len(outputs) images; those without labels get what these outputs say.

        Args:
            outputs: of the original network.
            data: may be unlabelled.
        """

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The training loss of the network's outputs, as the network returns them."""

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Training batches with the task's augmentation.

        Raises:
            UsageError: fewer images than a batch.
        """

    def distillation(self, student: Any, teacher: Any) -> Any:
        """A scalar tensor, 0 at its least, that pulls the student's outputs to the teacher's."""

    def features(self) -> tuple[str, ...]:
        """Paths of modules whose outputs a student should match too; none where outputs are enough."""

    def bundle_members(self) -> dict[str, bytes]:
        """Files that the device needs beside model and preprocessing (labels, anchors)."""

    def device_files(self) -> dict[str, Path]:
        """Source files that run on the device: path in the bundle to file here."""

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Draws what the network finds on a test image as a PNG."""


def metric_alone(task: Task, outputs: Outputs, data: Dataset) -> float:
    """The task's metric of outputs for the first images.

    A task may have a method of this name that computes it without the other scores.
    """
    own: Callable[[Outputs, Dataset], float] | None = getattr(task, "metric_alone", None)
    return own(outputs, data) if own else task.score_outputs(outputs, data)[task.metric]


def import_app(name: str, known: str) -> ModuleType:
    """The package of an app: one of ours, "apps.detector", or else the user's own.

    Args:
        name: as recipes and bundles spell it.
        known: an app to try instead, for the error's hint.

    Raises:
        InputError: there is no such app.
    """
    own = f"paredown.{name}" if name.startswith("apps.") else name
    for package in dict.fromkeys((own, name)):
        try:
            return importlib.import_module(package)
        except ModuleNotFoundError as error:
            if not error.name or not package.startswith(error.name):
                raise
    raise InputError(f"no app `{name}`", where="recipe, key app", hint=f"try {known}")


def metric_of(task: Any) -> Metric:
    """The metric of a task, and its direction."""
    return Metric(task.metric, bool(getattr(task, "less_is_better", False)))


def doubts_of(task: Any, predict: Predict, scores: Mapping[str, float]) -> tuple[str, ...]:
    """What makes scores of a task's network doubtful: sentences, of its method `doubts(predict, details)`."""
    find: Callable[[Predict, Mapping[str, Any]], Sequence[str]] | None = getattr(task, "doubts", None)
    details = scores.details() if isinstance(scores, Scores) else {}
    return tuple(find(predict, details)) if find else ()


def notes_of(task: Any) -> tuple[str, ...]:
    """What a task says of how its network was read, once it was: sentences, in its attribute `notes`."""
    return tuple(getattr(task, "notes", ()))


def codes_of(task: Any) -> Path | None:
    """The file of int8 that a task's network is, where the recipe does not choose new codes."""
    file = getattr(task, "model_file", None)
    found: Path | None = None if file is None else file.codes
    return found if found is not None and task.recipe.quantize == Quantize() else None


def check_no_code(recipe: Recipe) -> None:
    """Refuses a recipe that came with a bundle and names code: a recipe is a program, a bundle is data.

    A file of TorchScript or `torch.export` and a folder of Hugging Face count as code: what loads them can be
    made to do more than to read.

    Args:
        recipe: of the bundle.

    Raises:
        InputError: its app or its network is code of somebody's own, or a file that may hold some.
    """
    hint = "give the recipe itself, --recipe FILE, if you trust it: a bundle may not name code"
    if recipe.app not in APPS:
        raise InputError(f"the bundle was made by the app `{recipe.app}`", hint=hint)
    if recipe.network is not None and ":" in recipe.network:
        raise InputError(f"the bundle's network is made by `{recipe.network}`", hint=hint)
    suffix = PurePath(recipe.network or "").suffix.lower()
    folder = recipe.network is not None and folders.kind(Path(recipe.network)) is not None
    if folder or suffix in SUFFIXES.keys() - PARSED:
        name = PurePath(recipe.network or "").name
        raise InputError(f"the bundle's network is the file `{name}`, which may hold code", hint=hint)


def drawn_by(task: Any) -> Callable[[Sample, Any], Any] | None:
    """How a task draws a sample for a report; None of a task that draws nothing.

    What it takes beside the sample is what was found in it (`images` of its details), or None for the labels;
    what it gives is a picture, (H, W, 3) uint8 BGR.
    """
    found: Callable[[Sample, Any], Any] | None = getattr(task, "drawn", None)
    return found


def pictured_by(task: Any) -> Callable[[Sample, Any], Any] | None:
    """How a task draws a sample whose details say nothing to draw; None of one that does not.

    What it takes beside the sample is what a network gave for it, or None for the labels; what it gives is as
    of `drawn_by`.
    """
    found: Callable[[Sample, Any], Any] | None = getattr(task, "pictured", None)
    return found


def arrays_of(task: Any) -> Callable[[Sample], Mapping[str, NDArray[Any]]]:
    """What finds a sample's labels that are neither boxes nor classes, by name: the task's `arrays_of`."""
    found: Callable[[Sample], Mapping[str, NDArray[Any]]] | None = getattr(task, "arrays_of", None)
    return found or (lambda sample: {})


def load_scorer(app: str, packed: Packed) -> Scorer | None:
    """What scores a bundle's own sample; None of an app that is not one of ours, or has none."""
    if app not in APPS:
        return None
    make: Callable[[Packed], Scorer] | None = getattr(import_app(app, app), "make_scorer", None)
    return make(packed) if make else None


def load_task(recipe: Recipe) -> Task:
    """Imports the recipe's app and asks it for its task.

    Raises:
        InputError: there is no such app, or it has no `make_task(recipe)`.
    """
    app = import_app(recipe.app, "apps.detector")
    make: Callable[[Recipe], Task] | None = getattr(app, "make_task", None)
    if make is None:
        raise InputError(f"app `{recipe.app}` has no function make_task(recipe)", where="recipe, key app")
    return make(recipe)
