"""How well detections match the labels: mAP at IoU 0.5 (VOC, all points), and COCO's mAP through pycocotools.

The first follows the VOC development kit since 2010: the detections of a class, over all images and by
descending score, each claim the box they overlap most; a box can be claimed once; average precision is the
area under the precision envelope at every point; classes without a labelled box are left out of the mean.

Ignored objects are no truths, and what finds one is neither right nor wrong: of an object that VOC calls
difficult what overlaps it most, and enough; of a crowd region (COCO) what finds no other box and lies in it
with that share of its own area. pycocotools gets both as crowd regions, the one kind that it ignores.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.scoring.matching import REAL, Flat, Labels, Ranked, flatten, rank_classes
from paredown.pipeline.report.figures import CLASS

Array = np.ndarray


def average_precision(correct: Array, labelled: int) -> float:
    """Computes the area under the precision envelope, at all points.

    Args:
        correct: bool (N,), which detections are right, by descending score.
        labelled: number of labelled boxes, at least 1.
    """
    right = np.cumsum(correct)
    precision = right / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(
        envelope[np.asarray(correct, dtype=bool)].sum() / labelled
    )  # recall rises by 1 / labelled at each


def class_average_precisions(
    detections: Sequence[Detections], labels: Labels, iou: float = 0.5
) -> dict[int, float]:
    """Computes the average precision of every class that occurs in the labels.

    Args:
        detections: one per image, boxes x1, y1, x2, y2 normalised to the image. Nothing is clipped here; what
            `located` gives is, as boxes are that a device shows: it raises mAP by up to .01.
        labels: the images' labels, in the same order. Images that nobody labelled are left out.
        iou: the least overlap of a right detection.

    Raises:
        InputError: if there is no labelled box at all.
        ValueError: if the numbers of images differ.
    """
    ranked = rank_classes(detections, labels, iou)
    return {one.category: average_precision(one.correct, len(one.truth)) for one in ranked}


def map50_interval(
    detections: Sequence[Detections], labels: Labels, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Computes the 95 % interval of mAP at IoU 0.5 by the percentile bootstrap over images.

    Boxes are matched once: a detection is right or wrong whatever other images there are. A resample is then
    a whole-numbered weight per image, and all of them are scored together. Equal scores in different images
    aside, each is exactly the mAP of the images drawn.

    Args:
        detections: as for `class_average_precisions`.
        labels: likewise; images that nobody labelled are never drawn.
        resamples: how many.
        seed: of the drawing.

    Returns:
        The 2.5th and the 97.5th percentile. Resamples without any labelled box are left out; so are, as ever,
        the classes that a resample does not have.

    Raises:
        InputError: if there is no labelled box at all.
        ValueError: if the numbers of images differ.
    """
    images = len(detections)
    known = np.array([image for image in range(images) if labels[image].labelled])
    drawn = known[np.random.default_rng(seed).integers(0, len(known), (resamples, len(known)))]
    weights = np.zeros((resamples, images))
    np.add.at(weights, (np.arange(resamples)[:, None], drawn), 1)
    means = resampled_map50(detections, labels)(weights)
    means = means[~np.isnan(means)]
    if not len(means):  # hardly any image has a box: nothing is known
        return 0.0, 1.0
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def resampled_map50(detections: Sequence[Detections], labels: Labels) -> Callable[[Array], Array]:
    """Gives mAP at IoU 0.5 (R,) for weights (R, images), how often an image counts in each resample.

    Arguments and errors as for `class_average_precisions`. NaN where a resample has no labelled box.
    """
    ranked = rank_classes(detections, labels, 0.5)

    def means(weights: Array) -> Array:
        values = np.stack([_weighted_average_precision(one, weights) for one in ranked])
        occurs = ~np.isnan(values)
        total, counts = np.where(occurs, values, 0).sum(axis=0), occurs.sum(axis=0)
        return np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)

    return means


def _weighted_average_precision(one: Ranked, weights: Array) -> Array:
    """Average precision (R,) of a class where images count weights (R, images) times; NaN without a box."""
    labelled = weights[:, one.truth].sum(axis=1, dtype=np.float64)
    end = (
        int(np.flatnonzero(one.correct)[-1]) + 1 if one.correct.any() else 0
    )  # wrong ones at the end cost none
    each = weights[:, one.found[:end]].astype(np.float64)
    right = np.cumsum(each * one.correct[:end], axis=1)
    total = np.cumsum(each, axis=1)
    precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    gained = (envelope * each)[:, one.correct[:end]].sum(axis=1)
    return np.divide(gained, labelled, out=np.full_like(labelled, np.nan), where=labelled > 0)


def map50(detections: Sequence[Detections], labels: Labels) -> float:
    """Computes mAP at IoU 0.5, the mean over the classes that occur; see `class_average_precisions`."""
    return float(np.mean(list(class_average_precisions(detections, labels).values())))


def best_map50(detections: Sequence[Detections], labels: Labels) -> float:
    """The highest mAP at IoU 0.5 that these detections of the first images leave possible.

    That is if each box of the other images were found, surer than everything else. More wrong detections, or
    right ones that are less sure, only lower it.

    Args:
        detections: of the first images.
        labels: of all images.

    Raises:
        InputError: if there is no labelled box at all.
    """
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64))
    rest = len(labels) - len(detections)
    values = []
    for one in rank_classes([*detections, *[none] * rest], labels, 0.5):
        found = np.ones(int((one.truth >= len(detections)).sum()), bool)
        values.append(average_precision(np.concatenate([found, one.correct]), len(one.truth)))
    return float(np.mean(values))


def coco_map(detections: Sequence[Detections], labels: Labels) -> float:
    """Computes COCO's mAP at IoU 0.50:0.95 with pycocotools; arguments as for `class_average_precisions`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, scores, truth = flatten(detections, labels)
    size = 1000.0  # pycocotools counts in pixels; with area range "all" the unit does not matter

    def records(flat: Flat) -> list[dict[str, object]]:
        sides = flat.boxes[:, 2:] - flat.boxes[:, :2]
        boxes = np.concatenate([flat.boxes[:, :2], sides], axis=1) * size
        return [
            # ids from 1: pycocotools takes a match with annotation 0 for no match
            {"id": i, "image_id": int(image), "category_id": int(category), "bbox": box.tolist(),
             "area": float(box[2] * box[3]), "iscrowd": int(kind != REAL)}
            for i, (box, category, image, kind) in enumerate(
                zip(boxes, flat.classes, flat.images, flat.kinds, strict=True), 1
            )
        ]  # fmt: skip

    reference = COCO()
    reference.dataset = {
        "images": [{"id": i} for i in range(len(detections))],
        "categories": [{"id": int(c)} for c in truth.real],
        "annotations": records(truth),
    }
    results = COCO()
    results.dataset = {**reference.dataset, "annotations": records(found)}
    for record, score in zip(results.dataset["annotations"], scores, strict=True):
        record["score"] = float(score)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        reference.createIndex()
        results.createIndex()
        evaluation = COCOeval(reference, results, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # IoU, recall, class; all areas, 100 detections
    return float(precision[precision > -1].mean())


def score_detections(
    detections: Sequence[Detections], labels: Labels, names: Sequence[str] = ()
) -> dict[str, float]:
    """Computes {"map50": ..., "map": ...}, and with names the average precision of every class that occurs.

    Args:
        detections: as for `class_average_precisions`, and so are the errors.
        labels: likewise.
        names: of the classes; each gives a metric of its own, at IoU 0.5.
    """
    single = class_average_precisions(detections, labels)
    scores = {"map50": float(np.mean(list(single.values()))), "map": coco_map(detections, labels)}
    return scores | {f"{CLASS}{names[category]}": value for category, value in single.items() if names}


@dataclass(frozen=True, eq=False)
class Curve:
    """How one class is found.

    Attributes:
        score: average precision.
        interval: its 95 % interval, by the bootstrap over images; None where no resample has the class.
        labelled: boxes of the class.
        points: (N, 2), recall and the precision envelope at each detection that is right.
    """

    score: float
    interval: tuple[float, float] | None
    labelled: int
    points: Array


def class_curves(detections: Sequence[Detections], labels: Labels, weights: Array) -> dict[int, Curve]:
    """Gives the curve of every class that occurs in the labels.

    Args:
        detections: as for `class_average_precisions`, errors too.
        labels: likewise.
        weights: (R, images), how often an image counts in each resample.
    """
    found = {}
    for one in rank_classes(detections, labels, 0.5):
        values = _weighted_average_precision(one, weights)
        values = values[~np.isnan(values)]
        ends = np.percentile(values, (2.5, 97.5)).tolist() if len(values) else None
        right, count = np.cumsum(one.correct), len(one.truth)
        precision = right / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        points = np.stack([right / count, envelope], axis=1)[np.asarray(one.correct, dtype=bool)]
        interval = (ends[0], ends[1]) if ends else None
        found[one.category] = Curve(average_precision(one.correct, count), interval, count, points)
    return found
