"""Scores that are computed from sums over samples, and their intervals: one way for several tasks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.apps.own.task import OwnTask
from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.recipe.task import Outputs, Predict, Progress, Scores, pictured_by
from paredown.targets.errors import InputError

Sums = NDArray[np.float64]

RESAMPLES, SEED = 1000, 0


class TallyTask(OwnTask):
    """A task whose score is a function of numbers that are summed over the samples.

    A subclass says what is right for a sample, counts, and turns sums into scores.
    """

    metric: str
    _known: tuple[Dataset, list[Any]] | None = None
    _last: tuple[Outputs, Dataset, Sums] | None = None

    @abstractmethod
    def _truth(self, sample: Sample) -> Any:
        """What outputs for a sample are compared with.

        Raises:
            InputError: it has no label.
        """

    @abstractmethod
    def _tally(self, outputs: tuple[NDArray[np.float32], ...], truth: Any) -> Sums:
        """The numbers of one sample, of a shape that is the same for all."""

    @abstractmethod
    def _statistics(self, sums: Sums) -> dict[str, Sums]:
        """Metric to value, for sums over samples that may have more axes in front."""

    @abstractmethod
    def _check(self, sums: Sums) -> None:
        """Refuses sums of all samples that say nothing.

        Raises:
            InputError: nothing was counted.
        """

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> Scores:
        """Metric to value over all samples of a data set; outputs are not kept."""
        tallies = []
        for index in range(len(data)):
            sample = data[index]
            tallies.append(self._tally(predict(self.preprocess(sample.image)[None]), self._truth(sample)))
            if progress:
                progress(index + 1, len(data))
        return self._scores(np.stack(tallies))

    def score_outputs(self, outputs: Outputs, data: Dataset) -> Scores:
        """`score`, from outputs for the first samples."""
        return self._scores(self._tallies(outputs, data))

    def interval(self, outputs: Outputs, data: Dataset) -> tuple[float, float]:
        """The 95 % interval of the metric, by the percentile bootstrap over samples."""
        tallies = self._tallies(outputs, data)
        count = len(tallies)
        drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        values = self._resampled(drawn, tallies)
        values = values[np.isfinite(values)]  # a resample may have none that is counted
        if not len(values):
            return 0.0, 1.0
        low, high = np.quantile(values, (0.025, 0.975))
        return float(low), float(high)

    def _scores(self, tallies: Sums) -> Scores:
        sums = tallies.sum(0)
        self._check(sums)
        found = {name: float(value) for name, value in self._statistics(sums).items()}
        return Scores(
            found, len(tallies), lambda weights: self._resampled(weights, tallies),
            lambda: self._details(tallies) | self._images_told(tallies),
        )  # fmt: skip

    def _details(self, tallies: Sums) -> dict[str, Any]:
        """What a report shows beside the scores, see `Scores.details`; nothing, unless a subclass knows."""
        return {}

    def _images_told(self, tallies: Sums) -> dict[str, Any]:
        """How good each image is, of a task that draws them; one that counts for nothing is left out."""
        if pictured_by(self) is None:
            return {}
        values = self._statistics(tallies)[self.metric]
        known = np.flatnonzero(np.isfinite(values)).tolist()
        return {"images": [{"index": i, "quality": round(float(values[i]), 6)} for i in known]}

    def _resampled(self, weights: NDArray[Any], tallies: Sums) -> Sums:
        """The metric of each resample, in which sample i counts weights[:, i] times."""
        return self._statistics(np.tensordot(weights.astype(np.float64), tallies, 1))[self.metric]

    def _tallies(self, outputs: Outputs, data: Dataset) -> Sums:
        """Of each of the first samples; the last answer is kept, for it is asked for twice."""
        if self._last is None or self._last[0] is not outputs or self._last[1] is not data:
            if not 1 <= len(outputs) <= len(data):
                raise ValueError(f"{len(outputs)} outputs for {len(data)} samples")
            truths = self._truths(data, len(outputs))
            found = [self._tally(one, truth) for one, truth in zip(outputs, truths, strict=True)]
            self._last = outputs, data, np.stack(found)
        return self._last[2]

    def _truths(self, data: Dataset, count: int) -> list[Any]:
        """Of the first samples; kept, because a sensitivity test asks hundreds of times."""
        if self._known is None or self._known[0] is not data:
            self._known = (data, [])
        known = self._known[1]
        for index in range(len(known), count):
            known.append(self._truth(data[index]))
        return known[:count]


def unlabelled(sample: Sample) -> InputError:
    """The error of a sample that has no label."""
    return InputError(f"{sample.name} has no label to score by")
