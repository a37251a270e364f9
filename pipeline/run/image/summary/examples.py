"""The test images on which the result is worst: their labels, what the original found, what ships finds."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.recipe.task import Predict

COUNT = 6
SIDE = 300  # pixels of a picture, at most
QUALITY = 80  # of JPEG
WORDS = "Quality of an image: 1 where everything in it is found right and nothing else."

Told = Sequence[Mapping[str, Any]]
Pictures = Callable[[Sample, Mapping[str, Any], Mapping[str, Any]], Sequence[Any]]


def worst(before: Told, after: Told, count: int = COUNT) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs of the same image, the lowest quality first, then the largest loss; none in which all is right.

    Args:
        before: `images` of the details of the original network.
        after: likewise, of what ships.
        count: at most so many.
    """
    known = {each["index"]: each for each in before}
    pairs = [(known[each["index"]], each) for each in after if each["index"] in known and each["quality"] < 1]

    def order(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> tuple[float, float, int]:
        return pair[1]["quality"], pair[1]["quality"] - pair[0]["quality"], pair[1]["index"]

    return sorted(pairs, key=order)[:count]


def by_details(drawn: Callable[[Sample, Any], Any]) -> Pictures:
    """Pictures by what the details of a score say was found, of images that are small before they are drawn.

    Args:
        drawn: of the task, see `pipeline.recipe.task.drawn_by`.
    """

    def pictures(sample: Sample, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Any]:
        small = replace(sample, image=_small(sample.image))
        return [drawn(small, found) for found in (None, old["found"], new["found"])]

    return pictures


def by_outputs(
    pictured: Callable[[Sample, Any], Any], predict: Sequence[Predict], preprocess: AnyInput
) -> Pictures:
    """Pictures by what the original network and the program that ships give for an image.

    Args:
        pictured: of the task, see `pipeline.recipe.task.pictured_by`.
        predict: both of them.
        preprocess: from an image to their input.
    """

    def pictures(sample: Sample, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Any]:
        x = preprocess(sample.image)[None]
        return [pictured(sample, None), *(pictured(sample, each(x)) for each in predict)]

    return pictures


def examples(before: Told, after: Told, data: Dataset, pictures: Pictures, runtime: str) -> dict[str, Any]:
    """As the report's document has it; pictures are small JPEG files in base64.

    Args:
        before: `images` of the details of the original network.
        after: likewise, of what ships.
        data: the test images.
        pictures: of a sample and both its entries: the labels, the original's answer, that of what ships.
        runtime: that ships.
    """
    rows = []
    for old, new in worst(before, after):
        sample = data[old["index"]]
        made = [_jpeg(picture) for picture in pictures(sample, old, new)]
        name = "/".join(sample.name.split("/")[-2:])  # with its class, where that is the folder
        rows.append({"name": name, "before": old["quality"],
                     "after": new["quality"], "pictures": made})  # fmt: skip
    return {"columns": ["labels", "fp32", f"{runtime}, int8"], "rows": rows, "words": WORDS}


def _small(image: np.ndarray) -> np.ndarray:
    """An image of `SIDE` pixels at its longer side; an array that is no image stays."""
    if image.dtype != np.uint8 or image.ndim != 3:
        return image
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def _jpeg(picture: np.ndarray) -> str:
    ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert ok
    return base64.b64encode(data.tobytes()).decode()
