"""The segmenter's side of a recipe: network, data, score, and what the device needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.own.filled import Filled
from paredown.apps.own.sheet import SIDE, TEXT, captioned, colours, fitted, legend, sheet
from paredown.apps.own.tally import Sums, TallyTask, unlabelled
from paredown.apps.own.task import first_output, write_png
from paredown.apps.segmenter.device.class_map import IGNORED, class_map
from paredown.apps.segmenter.masks import Mask, MaskSample, read_masks, with_mask
from paredown.apps.segmenter.miou import TRUE, accuracy, class_ious, counts, miou
from paredown.calibration.datasets import Dataset, Sample, classes_of
from paredown.calibration.readers.records import Classes
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Batches, Outputs, Predict
from paredown.targets.errors import InputError

PREVIEW_IMAGES = 8


class SegmenterTask(TallyTask):
    """A network that gives every pixel a class, with its data; satisfies `pipeline.recipe.task.Task`.

    The network takes images as `preprocess` makes them and returns logits, (N, classes, h, w), any h and w.

    Args:
        recipe: resolved.

    Raises:
        InputError: the factory or the class names cannot be read, or a key of the recipe does not fit.
    """

    name = "apps.segmenter"
    metric = "miou"
    score_rule = "with each image"  # details once were of classes only
    logits = True
    output_names: tuple[str, ...] = ("logits",)
    what = "the segmenter"
    formats = ("masks",)
    lacking = "has no class for every pixel"
    refused_resizes = ("crop",)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        if not 2 <= len(self.names) < IGNORED:
            raise InputError(f"{len(self.names)} classes: a segmenter has 2 to 254", where=recipe.data.names)

    # -- network -------------------------------------------------------------------------------------------

    def _wanted(self, shapes: tuple[tuple[int, ...], ...]) -> str:
        classes = len(self.names)
        right = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][:2] == (1, classes)
        return "" if right else f"logits of (1, {classes}, h, w)"

    def loss(self, outputs: Any, labels: Any) -> Any:
        """Cross entropy of logits, interpolated to the masks' size; pixels without a class do not count."""
        import torch.nn.functional as F

        logits = F.interpolate(first_output(outputs), labels.shape[1:], mode="bilinear")
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """Divergence of the pixels' probabilities, the mean over them (Liu et al., arXiv 1903.04197)."""
        import torch.nn.functional as F

        ours, theirs = (F.log_softmax(first_output(each), 1) for each in (student, teacher))
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()

    # -- data ----------------------------------------------------------------------------------------------

    def _open(self, split: str, path: str) -> Dataset:
        data = self.recipe.data
        assert data.labels is not None  # the schema asks for it
        images = None if data.images is None else Path(data.images)
        classes = Classes(self.names, self._label_names())
        return read_masks(Path(path), classes, Path(data.labels), images, require_labels=split == "test")

    def _check_test(self, data: Dataset, path: str) -> None:
        """One class on one image is enough to score; it is mostly on the first."""
        for index in range(len(data)):
            found = classes_of(data, index)
            if found is not None and len(found):
                return
        raise _nothing()

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Random parts and mirror images; see `apps.segmenter.batches`."""
        from paredown.apps.segmenter import batches

        return batches.Batches(data, self.image_input, batch, seed)

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first images; those without a label get the likeliest classes of these outputs."""

        def made(sample: Sample, found: tuple[NDArray[np.float32], ...]) -> Sample:
            height, width = sample.image.shape[:2]
            return with_mask(sample, self._found(found, (height, width)))

        return Filled(data, outputs, made)

    # -- score ---------------------------------------------------------------------------------------------

    def _found(self, outputs: tuple[NDArray[np.float32], ...], size: tuple[int, int]) -> Mask:
        return class_map(outputs[0][0], size, self.image_input.geometry(*size))

    def _truth(self, sample: Sample) -> Mask:
        if not isinstance(sample, MaskSample) or sample.mask is None:
            raise unlabelled(sample)
        return sample.mask

    def arrays_of(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """The mask."""
        return {"mask": self._truth(sample)} if sample.labelled else {}

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """A sample with its mask."""
        mask = arrays["mask"]
        if mask.shape != sample.image.shape[:2] or mask.dtype != np.uint8:
            raise ValueError(f"a mask of {mask.shape} for an image of {sample.image.shape}")
        if ((mask >= len(self.names)) & (mask != IGNORED)).any():
            raise ValueError("a mask of other classes")
        return with_mask(sample, mask)

    def _tally(self, outputs: tuple[NDArray[np.float32], ...], truth: Mask) -> Sums:
        height, width = truth.shape
        return counts(self._found(outputs, (height, width)), truth, len(self.names))

    def _statistics(self, sums: Sums) -> dict[str, Sums]:
        return {"miou": miou(sums), "pixel_accuracy": accuracy(sums)}

    def _check(self, sums: Sums) -> None:
        if not sums[..., TRUE].sum():
            raise _nothing()

    def _details(self, tallies: Sums) -> dict[str, Any]:
        """The intersection over union of each class that is there, and of how many pixels."""
        shares, sums = class_ious(tallies.sum(0)), tallies.sum(0)
        classes = [
            {"name": name, "score": float(share), "low": None, "high": None, "count": int(count)}
            for name, share, count in zip(self.names, shares, sums[:, TRUE], strict=True)
            if count > 0
        ]
        return {"classes": classes, "names": list(self.names)}

    def pictured(self, sample: Sample, outputs: tuple[NDArray[np.float32], ...] | None) -> np.ndarray:
        """An image under the colours of its labels, or of what a network finds, with the classes' names."""
        palette, (height, width) = colours(len(self.names)), sample.image.shape[:2]
        found = self._found(outputs, (height, width)) if outputs is not None else self._truth(sample)
        seen = np.flatnonzero(np.bincount(found.ravel(), minlength=256)[: len(self.names)])
        tile = _tile(sample.image, found, palette, "")[: -(TEXT // 2)]
        key = legend([self.names[index] for index in seen], palette[seen], tile.shape[1])
        return np.concatenate([tile, key])

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Test images, what the network finds in them, and the truth; the classes' colours below."""
        palette, tiles = colours(len(self.names)), []
        for index in range(min(PREVIEW_IMAGES, len(data))):
            sample = data[index]
            height, width = sample.image.shape[:2]
            found = self._found(predict(self.preprocess(sample.image)[None]), (height, width))
            tiles += [
                _tile(sample.image, None, palette, sample.name),
                _tile(sample.image, found, palette, "found"),
            ]
            truth = sample.mask if isinstance(sample, MaskSample) else None
            tiles.append(_tile(sample.image, truth, palette, "truth"))
        pictures = sheet(tiles, 6)
        write_png(path, np.concatenate([pictures, legend(self.names, palette, pictures.shape[1])]))


def _nothing() -> InputError:
    return InputError(
        "not one pixel of the labels is of a class: all are ignored (255)",
        where="recipe, section [data]", hint="check data.labels, data.names and data.label_names",
    )  # fmt: skip


def _tile(image: np.ndarray, mask: Mask | None, palette: np.ndarray, words: str) -> np.ndarray:
    """An image under the colours of its classes; where nothing is scored it stays grey."""
    if mask is not None:
        table = np.concatenate([palette, np.full((256 - len(palette), 3), 128, np.uint8)])
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        image = cv2.addWeighted(grey, 0.4, table[mask], 0.6, 0)
    return captioned(fitted(image, SIDE), words)
