"""The outputs app's side of a recipe: a network without labels, which is to stay what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.outputs.fidelity import counts, r2
from paredown.apps.own.filled import Filled
from paredown.apps.own.sheet import SIDE, captioned, colours, fitted, picture, sheet
from paredown.apps.own.tally import Sums, TallyTask
from paredown.apps.own.task import write_png
from paredown.calibration.datasets import ARRAYS, Dataset, Sample, open_dataset
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Batches, Outputs, Predict
from paredown.targets.errors import InputError

PREVIEW_INPUTS = 6
PLOT_POINTS = 4000
#: The network's outputs for one input, without any batch but that of one.
Reference = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class ReferenceSample(Sample):
    """An input with the outputs of the original network."""

    reference: Reference


class OutputsTask(TallyTask):
    """Any network with one input and nothing but its own outputs to be judged by.

    It takes an image as `preprocess` makes it, or an array, and returns a tensor or several, of any shapes.

    Args:
        recipe: resolved.

    Raises:
        InputError: the factory cannot be read, a key of the recipe does not fit, or the weights are missing:
            the score needs them.
    """

    name = "apps.outputs"
    metric = "r2"
    output_names: tuple[str, ...] = ("output",)
    what = "the outputs app"
    formats = (ARRAYS, "folder")
    lacking = "has labels, which this app does not look at"
    _hint = "return a tensor, or a tuple or list of tensors"

    def __init__(self, recipe: Recipe) -> None:
        self._original: Any = None
        super().__init__(recipe)
        for name, section in (("recover", recipe.recover), ("squantize", recipe.squantize)):
            if section.method in ("labels", "both"):
                raise InputError(
                    f'method = "{section.method}" needs labels, and outputs alone have none',
                    where=f"recipe, key {name}.method", hint='use "distil" or "auto"',
                )  # fmt: skip
        if recipe.prune.criterion == "taylor":
            raise InputError(
                'criterion = "taylor" needs a loss on labels, and outputs alone have none',
                where="recipe, key prune.criterion", hint='use "activation" or "norm"',
            )  # fmt: skip
        if self.model_file is None and not Path(recipe.weights).is_file():
            raise InputError("no such file, and its outputs are what is scored by", where=recipe.weights)

    def _names(self) -> tuple[str, ...]:
        for key in ("names", "label_names", "labels"):
            if getattr(self.recipe.data, key) is not None:
                raise InputError("outputs alone have no classes", where=f"recipe, key data.{key}",
                                 hint="remove the key")  # fmt: skip
        return ()

    # -- network -------------------------------------------------------------------------------------------

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The network's name and its factory's source file."""
        return {key: value for key, value in super().network_id.items() if key != "classes"}

    def _wanted(self, shapes: tuple[tuple[int, ...], ...]) -> str:
        right = bool(shapes) and all(shape[:1] == (1,) for shape in shapes)
        return "" if right else "tensors whose first axis is the batch of one"

    def loss(self, outputs: Any, labels: Any) -> Any:
        """None: there are no labels.

        Raises:
            InputError: always.
        """
        raise InputError("outputs alone have no labels", where="recipe, key recover.method")

    def distillation(self, student: Any, teacher: Any) -> Any:
        """The squared distance of each output as a share of its variance, the mean over the outputs."""
        pairs = list(zip(_several(student), _several(teacher), strict=True))
        shares = [(ours - theirs).square().mean() / _variance(theirs) for ours, theirs in pairs]
        return sum(shares) / len(shares)

    # -- data ----------------------------------------------------------------------------------------------

    def _open(self, split: str, path: str) -> Dataset:
        data = self.recipe.data
        return open_dataset(
            data.format, path, names=(), images=data.images, orientation=data.orientation or "upright"
        )

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """The inputs as they are, without labels."""
        from paredown.apps.own.batches import PlainBatches

        return PlainBatches(data, self.preprocess, batch, seed)

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first inputs with these outputs, by which others are scored."""

        def made(sample: Sample, found: Reference) -> Sample:
            plain = sample.name, sample.image, sample.boxes, sample.classes
            return ReferenceSample(*plain, labelled=True, reference=found)

        return Filled(data, outputs, made)

    # -- score ---------------------------------------------------------------------------------------------

    def _truth(self, sample: Sample) -> Reference:
        """The original network's outputs."""
        if isinstance(sample, ReferenceSample):
            return sample.reference
        import torch

        if self._original is None:
            self._original = self.network()
        with torch.no_grad():
            found = self._original(torch.from_numpy(self.preprocess(sample.image)[None]))
        return tuple(part.numpy() for part in _several(found))

    def arrays_of(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """The original network's outputs."""
        return {f"output{number}": each for number, each in enumerate(self._truth(sample))}

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """A sample with the original network's outputs."""
        reference = tuple(arrays[f"output{number}"] for number in range(len(arrays)))
        plain = sample.name, sample.image, sample.boxes, sample.classes
        return ReferenceSample(*plain, labelled=True, reference=reference)

    def _tally(self, outputs: tuple[NDArray[np.float32], ...], truth: Reference) -> Sums:
        return counts(outputs, truth)

    def _statistics(self, sums: Sums) -> dict[str, Sums]:
        return {"r2": r2(sums)}

    def _check(self, sums: Sums) -> None:
        """Nothing: every input counts."""

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Test inputs, and beside each its outputs over those of the original: equal ones lie on the line."""
        tiles = []
        for index in range(min(PREVIEW_INPUTS, len(data))):
            sample = data[index]
            found, truth = predict(self.preprocess(sample.image)[None]), self._truth(sample)
            tiles.append(captioned(fitted(picture(sample.image), SIDE), sample.name))
            share = float(r2(counts(found, truth)))
            tiles.append(captioned(_plot(found, truth), f"r2 {share:.4f}"))
        write_png(path, sheet(tiles, 6))


def _several(outputs: Any) -> Sequence[Any]:
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def _variance(values: Any) -> Any:
    return values.var(correction=0).clamp(min=1e-8)


def _plot(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Each value over the original's, a colour per output, each output over its own range."""
    plot = np.full((SIDE, SIDE, 3), 255, np.uint8)
    cv2.line(plot, (0, SIDE - 1), (SIDE - 1, 0), (200, 200, 200), 1, cv2.LINE_AA)
    for ours, theirs, colour in zip(found, truth, colours(len(truth)).tolist(), strict=True):
        step = -(-theirs.size // PLOT_POINTS)
        one, other = ours.ravel()[::step], theirs.ravel()[::step]
        low, high = float(theirs.min()), float(theirs.max())
        scale = (SIDE - 9) / (high - low or 1.0)
        for y, x in zip(one, other, strict=True):
            if np.isfinite(y):
                across, up = 4 + (float(x) - low) * scale, 4 + (float(y) - low) * scale
                place = round(across), SIDE - 1 - round(min(max(up, 0), SIDE - 1))
                cv2.circle(plot, place, 2, colour, -1, cv2.LINE_AA)
    return plot
