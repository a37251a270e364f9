"""How sure a drop of accuracy is: the paired percentile bootstrap over test images (Efron & Tibshirani 1993).

Every variant is scored on the same resamples, so that an image that is hard for both cancels out: the
interval of the difference is what a reader wants, and is far narrower than that of either score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.recipe.task import Metric, Scores
from paredown.pipeline.store.files import read_json, write_json

#: What a score stage keeps of it: the metric on each resample.
RESAMPLED = "resampled.json"
#: And what a report shows beside it: each class, each image.
DETAILS = "details.json"
DROP = "accuracy_drop"
MOST_IMAGES = 2000  # whose single results are kept
RESAMPLES = 1000
SEED = 0
#: Of weights in memory; larger sets are resampled less often, and need it less.
MOST_WEIGHTS = 20_000_000
FEWEST = 100


def draws(images: int) -> NDArray[np.uint8]:
    """How often each image is drawn in each resample, (resamples, images): always the same for one number."""
    resamples = int(np.clip(MOST_WEIGHTS // images, FEWEST, RESAMPLES))
    generator = np.random.default_rng(SEED)
    weights = np.empty((resamples, images), np.uint8)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return weights


@dataclass(frozen=True)
class Drop:
    """How much worse a variant is than the original network.

    Attributes:
        variant: which.
        metric: that has fallen, or risen where less of it is better.
        value: as `Metric.drop` has it.
        interval: 95 %, paired; None where the task gives no resamples.
        samples: images or pieces of text that were scored.
    """

    variant: str
    metric: Metric
    value: float
    interval: tuple[float, float] | None
    samples: int

    def rows(self) -> list[tuple[str, str, str, float, str]]:
        """Its figures: stage, variant, metric, value and unit of each."""
        ends = zip((DROP, f"{DROP}_low", f"{DROP}_high"), (self.value, *(self.interval or ())), strict=False)
        return [("drop", self.variant, name, value, "1") for name, value in ends]

    def line(self) -> str:
        """One sentence, as a share where less is better."""
        form = "{:+.2%}" if self.metric.less_is_better else "{:+.4f}"
        value, *ends = (form.format(end) for end in (self.value, *(self.interval or ())))
        what = f"{self.variant}: drop of {self.metric.name} against the original network {value}"
        if not ends:
            return f"{what}; its confidence interval is not known"
        return f"{what}, 95 % interval {ends[0]} to {ends[1]} (paired bootstrap over {self.samples:,})"


def write_scores(out: Path, scores: Mapping[str, float]) -> None:
    """What a score stage keeps: the metrics, and the task's own on resamples where there are any."""
    write_json(out / "score.json", dict(scores))
    if isinstance(scores, Scores):
        values = scores.resampled(draws(scores.samples))
        known = [float(value) if np.isfinite(value) else None for value in values]
        write_json(out / RESAMPLED, {"samples": scores.samples, "values": known})
        details = dict(scores.details())
        if "images" in details:
            details["images"] = details["images"][:MOST_IMAGES]
        if details:
            write_json(out / DETAILS, details)


def read_details(folder: Path) -> dict[str, Any]:
    """What a report shows of a score; empty where the task gives nothing."""
    path = folder / DETAILS
    return dict(read_json(path)) if path.exists() else {}


def drops(metric: Metric, scores: Mapping[str, Path]) -> list[Drop]:
    """The drop of every variant but the original, "fp32".

    Args:
        metric: of the task.
        scores: variant -> the folder that `write_scores` wrote to.
    """
    folder = scores["fp32"]
    original, samples, known = _read(folder, metric)
    found = []
    for variant, folder in scores.items():
        if variant != "fp32":
            value, _, resampled = _read(folder, metric)
            drop = metric.drop(original, value)
            found.append(Drop(variant, metric, drop, interval(metric, known, resampled), samples))
    return found


def _read(folder: Path, metric: Metric) -> tuple[float, int, NDArray[np.float64]]:
    value, path = read_json(folder / "score.json")[metric.name], folder / RESAMPLED
    kept: dict[str, Any] = read_json(path) if path.exists() else {"samples": 0, "values": []}
    return value, kept["samples"], np.array(kept["values"], np.float64)


def interval(
    metric: Metric, original: NDArray[np.float64], score: NDArray[np.float64]
) -> tuple[float, float] | None:
    """The 95 % interval of a drop, from the metric of two variants on the same resamples.

    Returns:
        The 2.5th and the 97.5th percentile; None where no resample can be scored, or theirs are others.
    """
    if original.shape != score.shape:
        return None
    known = np.isfinite(original) & np.isfinite(score)
    drops = [metric.drop(*pair) for pair in zip(original[known].tolist(), score[known].tolist(), strict=True)]
    if not drops:
        return None
    low, high = np.percentile(drops, (2.5, 97.5))
    return float(low), float(high)
