"""The pose app's side of a recipe: network, data, score, and what the device needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.own.filled import Filled
from paredown.apps.own.sheet import SIDE, TEXT, captioned, colours, fitted, legend, sheet
from paredown.apps.own.tally import Sums, TallyTask, unlabelled
from paredown.apps.own.task import first_output, write_png
from paredown.apps.pose.device.decode import decode
from paredown.apps.pose.people import Points, PoseSample, read_people
from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.recipe.task import Batches, Outputs, Predict
from paredown.targets.errors import InputError

NEAR = 0.2  # of the longer side of the box: PCK@0.2 (Yang and Ramanan, PAMI 2013)
RIGHT, COUNTED = range(2)
PSEUDO_THRESHOLD = 0.2  # height of a peak that counts as a label; as in arXiv 1804.06208's own code
PREVIEW_IMAGES = 18


@dataclass(frozen=True, eq=False)
class Truth:
    """What is right for a person: the keypoints, the box's longer side, and the size of the image."""

    points: Points
    length: float
    size: tuple[int, int]


class PoseTask(TallyTask):
    """A network that finds keypoints, with its data; satisfies `pipeline.recipe.task.Task`.

    The network takes images as `preprocess` makes them and returns heatmaps, (N, keypoints, h, w).

    Args:
        recipe: resolved.

    Raises:
        InputError: the factory or the names cannot be read, or a key of the recipe does not fit.
    """

    name = "apps.pose"
    metric = "pck"
    score_rule = "with each image"  # there once were no details
    output_names: tuple[str, ...] = ("heatmaps",)
    what = "the pose app"
    formats = ("coco",)
    lacking = "has no keypoints"
    resize = "letterbox"
    refused_resizes = ("crop",)
    _counted = "keypoints"
    _hint = "data.names must list the network's keypoints"

    # -- network -------------------------------------------------------------------------------------------

    def _wanted(self, shapes: tuple[tuple[int, ...], ...]) -> str:
        count = len(self.names)
        right = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][:2] == (1, count)
        return "" if right else f"heatmaps of (1, {count}, h, w)"

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The squared distance from hills at the labelled keypoints; see `apps.pose.heatmaps`."""
        from paredown.apps.pose.heatmaps import heatmap_loss

        return heatmap_loss(first_output(outputs), labels)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """The squared distance of the heatmaps."""
        return (first_output(student) - first_output(teacher)).square().mean()

    # -- data ----------------------------------------------------------------------------------------------

    def _open(self, split: str, path: str) -> Dataset:
        data = self.recipe.data
        if data.label_names is not None:
            raise InputError("keypoints are matched by their names in the file",
                             where="recipe, key data.label_names", hint="remove the key")  # fmt: skip
        images = None if data.images is None else Path(data.images)
        ratio = self.image_input.width / self.image_input.height
        return read_people(Path(path), self.names, images, ratio, require_labels=split == "test")

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Turned, scaled, shifted and, where names say left and right, mirrored people."""
        from paredown.apps.pose import batches

        return batches.Batches(data, self.image_input, batch, seed)

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first images; those without keypoints get the peaks over `PSEUDO_THRESHOLD`."""

        def made(sample: Sample, found: tuple[NDArray[np.float32], ...]) -> Sample:
            height, width = sample.image.shape[:2]
            points = self._found(found, (height, width))
            points[:, 2] = points[:, 2] >= PSEUDO_THRESHOLD
            points[~points[:, 2].astype(bool)] = 0
            seen = np.flatnonzero(points[:, 2]).astype(np.int64)
            length = float(max(height, width))
            return PoseSample(sample.name, sample.image, sample.boxes, seen, True, points, length)

        return Filled(data, outputs, made)

    # -- score ---------------------------------------------------------------------------------------------

    def _found(self, outputs: tuple[NDArray[np.float32], ...], size: tuple[int, int]) -> Points:
        return decode(outputs[0][0], size, self.image_input.geometry(*size))

    def _truth(self, sample: Sample) -> Truth:
        if not isinstance(sample, PoseSample):
            raise unlabelled(sample)
        height, width = sample.image.shape[:2]
        return Truth(sample.points, sample.length, (height, width))

    def arrays_of(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """The keypoints and the length by which they are judged."""
        if not sample.labelled:
            return {}
        truth = self._truth(sample)
        return {"points": truth.points, "length": np.array([truth.length])}

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """A sample with its keypoints."""
        points, length = arrays["points"], arrays["length"]
        if points.shape != (len(self.names), 3) or length.shape != (1,):
            raise ValueError(f"keypoints of {points.shape} for {len(self.names)} names")
        plain = sample.name, sample.image, sample.boxes, sample.classes
        return PoseSample(*plain, True, points.astype(np.float32), float(length[0]))

    def _tally(self, outputs: tuple[NDArray[np.float32], ...], truth: Truth) -> Sums:
        apart = np.linalg.norm(self._found(outputs, truth.size)[:, :2] - truth.points[:, :2], axis=1)
        counted = truth.points[:, 2] > 0
        right = counted & (apart <= NEAR * truth.length)  # of a NaN nothing is right
        return np.array([right.sum(), counted.sum()], np.float64)

    def _statistics(self, sums: Sums) -> dict[str, Sums]:
        counted = sums[..., COUNTED]
        return {"pck": np.where(counted > 0, sums[..., RIGHT] / np.maximum(counted, 1), np.nan)}

    def _check(self, sums: Sums) -> None:
        if not sums[..., COUNTED].sum():
            raise InputError("not one labelled keypoint to score by", where="recipe, section [data]")

    def pictured(self, sample: Sample, outputs: tuple[NDArray[np.float32], ...] | None) -> np.ndarray:
        """A person with labelled keypoints as rings, and what a network finds as discs of the same colour."""
        palette = colours(len(self.names) + 1)[1:].tolist()
        height, width = sample.image.shape[:2]
        truth = sample.points if isinstance(sample, PoseSample) else None
        found = np.full((len(self.names), 3), np.nan, np.float32)
        if outputs is not None:
            found = self._found(outputs, (height, width))
        return _tile(sample, found, truth, palette)[: -(TEXT // 2)]

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Test images with what is found, as discs, and the truth, as rings of the same colour."""
        palette, tiles = colours(len(self.names) + 1)[1:], []
        for index in range(min(PREVIEW_IMAGES, len(data))):
            sample = data[index]
            height, width = sample.image.shape[:2]
            found = self._found(predict(self.preprocess(sample.image)[None]), (height, width))
            truth = sample.points if isinstance(sample, PoseSample) else None
            tiles.append(_tile(sample, found, truth, palette.tolist()))
        pictures = sheet(tiles, 6)
        write_png(path, np.concatenate([pictures, legend(self.names, palette, pictures.shape[1])]))


def _tile(sample: Sample, found: Points, truth: Points | None, palette: list[list[int]]) -> np.ndarray:
    height, width = sample.image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.asarray(cv2.resize(sample.image, size, interpolation=cv2.INTER_LINEAR))
    for index, colour in enumerate(palette):
        x, y, peak = found[index]
        if np.isfinite(peak):
            cv2.circle(
                picture, (round(float(x) * scale), round(float(y) * scale)), 3, colour, -1, cv2.LINE_AA
            )
        if truth is not None and truth[index, 2] > 0:
            x, y = truth[index, :2]
            cv2.circle(picture, (round(float(x) * scale), round(float(y) * scale)), 5, colour, 1, cv2.LINE_AA)
    return captioned(fitted(picture, SIDE), sample.name)
