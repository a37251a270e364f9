"""What makes a score doubtful although nothing failed: other preprocessing, classes in another order."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from paredown.calibration.datasets import Dataset, First, classes_of
from paredown.calibration.preprocess import YOUNGER, Preprocess, Resize
from paredown.pipeline.recipe.task import Predict
from paredown.targets.errors import InputError

RESIZES: tuple[Resize, ...] = ("stretch", "letterbox", "crop")
TRAINED = "paredown"  # the entry in the head of a .safetensors file that says how it was trained
IMAGES = 64  # that ways of resizing are compared on
FEWEST = 8
GAIN = 0.02  # of the metric, before another way is offered
ASPECT = 1.1  # width over height, image against input, from which resize modes differ
SMALLER = 2.0  # sides of image over input, from which averages differ
MOST_HEAD = 100 * 2**20  # bytes of the head of a .safetensors file
#: Of matched objects or images: fewer say nothing, and renaming must make that much better.
SWAP_OBJECTS, SWAP_GAIN = 12, 0.3


def trained_with(weights: Path) -> dict[str, Any]:
    """What `paredown train` wrote into the head of a .safetensors file; nothing of other files."""
    if weights.suffix.lower() != ".safetensors":
        return {}
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(min(length, MOST_HEAD)))
        found = json.loads(head.get("__metadata__", {}).get(TRAINED, "{}"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # it is told when the weights are read


def differences(weights: Path, preprocess: Preprocess, names: Sequence[str]) -> list[str]:
    """A sentence for everything that a recipe does otherwise than the training of its weights did."""
    known, notes = trained_with(weights), []
    before, now = known.get("preprocess"), asdict(preprocess)
    if isinstance(before, dict):
        before = {**YOUNGER, **before}
        now |= {key: list(value) for key, value in now.items() if isinstance(value, tuple)}
        for key in (key for key in now if key in before and before[key] != now[key]):
            notes.append(
                f"{weights.name} was trained with preprocess.{key} = {json.dumps(before[key])}, "
                f"and this recipe has {json.dumps(now[key])}: scores may be lower"
            )
    told = known.get("names")
    listed = [str(name) for name in told] if isinstance(told, list) else []
    if sorted(listed) == sorted(names) and listed != list(names):
        notes.append(
            f"{weights.name} was trained with the classes in the order {', '.join(listed[:6])}, and "
            f"data.names has {', '.join(names[:6])}: every score is of the wrong classes"
        )
    return notes


def doubts(task: Any, weights: Path, predict: Predict, details: Mapping[str, Any]) -> list[str]:
    """What is doubtful about a task of images, in sentences.

    Args:
        task: a detector's or a classifier's.
        weights: its file.
        predict: of the original network.
        details: of its scores, as `Scores` has them.
    """
    notes = differences(weights, task.preprocess, task.names)
    note = swapped(details.get("confusion", ()), task.names)
    notes += [note] if note else []
    if not trained_with(weights):
        note = better_way(task, task.data("calibration"), predict)
        notes += [note] if note else []
    return notes


def better_way(task: Any, data: Dataset, predict: Predict) -> str | None:
    """Tries the other ways to bring an image to the input's size, where they differ and none was asked for.

    Args:
        task: whose `_preprocess` is changed in a copy.
        data: not the test images; without labels nothing is tried.
        predict: of the original network.

    Returns:
        A sentence if one is better than that of the task.
    """
    own: Preprocess = task.preprocess
    images, asked = First(data, IMAGES), task.recipe.preprocess
    if len(images) < FEWEST or any(classes_of(images, index) is None for index in range(len(images))):
        return None
    sizes = np.array([images[index].image.shape[1::-1] for index in range(FEWEST)], float)
    per = sizes / (own.width, own.height)
    apart = per[:, 0] / per[:, 1]
    resizes = asked.resize is None and np.median(np.maximum(apart, 1 / apart)) >= ASPECT
    resamples = asked.resample is None and np.median(per.min(axis=1)) >= SMALLER
    if not resizes and not resamples:
        return None
    try:
        ways = [replace(own, resize=mode) for mode in RESIZES] if resizes else [own]
        found = {way: _score(task, way, images, predict) for way in ways}
        best = max(found, key=lambda way: found[way])
        if resamples:
            other = replace(best, resample="area" if own.resample == "bilinear" else "bilinear")
            found[other] = _score(task, other, images, predict)
    except InputError:  # labelled, but not one box
        return None
    best = max(found, key=lambda way: found[way])
    if found[best] <= found[own] + GAIN:
        return None
    keys = [key for key in ("resize", "resample") if getattr(best, key) != getattr(own, key)]
    said = " and ".join(f'preprocess.{key} = "{getattr(best, key)}"' for key in keys)
    used = " and ".join(f'"{getattr(own, key)}"' for key in keys)
    return (
        f"on {len(images)} calibration images {task.metric} is {found[best]:.4f} with {said} and "
        f"{found[own]:.4f} with {used}, which is used: how were the weights trained?"
    )


def _score(task: Any, way: Preprocess, images: Dataset, predict: Predict) -> float:
    """The task's metric with another preprocessing, in a copy."""
    other = copy.copy(task)
    other._preprocess = way
    other._known = {} if isinstance(task._known, dict) else None
    return float(other.score(predict, images)[task.metric])


def swapped(confused: Sequence[Sequence[int]], names: Sequence[str]) -> str | None:
    """A sentence if the classes' names look to be in another order than the network's outputs.

    That is so where renaming the outputs would make most of them right that are wrong now.

    Args:
        confused: true class, what it was called, and how often; -1 is nothing.
        names: of the classes.
    """
    from scipy.optimize import linear_sum_assignment

    confusion = np.zeros((len(names), len(names)), np.int64)
    for true, said, count in confused:
        if true >= 0 and said >= 0:
            confusion[true, said] += count
    total = int(confusion.sum())
    if total < SWAP_OBJECTS:
        return None
    rows, columns = linear_sum_assignment(-confusion)
    now, renamed = np.trace(confusion) / total, confusion[rows, columns].sum() / total
    if renamed - now < SWAP_GAIN or now > renamed / 2:
        return None
    moved = [(r, c) for r, c in zip(rows, columns, strict=True) if r != c and confusion[r, c]]
    told = ", ".join(f"{names[r]} is called {names[c]}" for r, c in moved[:4])
    return (
        f"{now:.0%} of the classes are right, and {renamed:.0%} would be with the names in another order "
        f"({told}): is data.names in the order of the network's outputs?"
    )
