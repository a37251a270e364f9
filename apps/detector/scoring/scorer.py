"""Scores a detector from what its bundle says: no network, no recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from paredown.apps.detector.device.boxes.decode import decoder_of
from paredown.apps.detector.scoring.details import details
from paredown.apps.detector.scoring.located import located
from paredown.apps.detector.scoring.score import resampled_map50, score_detections
from paredown.apps.detector.scoring.truth import Truths
from paredown.calibration.datasets import Dataset, Sample
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.task import Packed, Predict, Progress, Scores


class DetectorScorer:
    """Satisfies `pipeline.recipe.task.Scorer`.

    Args:
        packed: of a bundle.

    Raises:
        KeyError, TypeError, ValueError: its app.json does not say how boxes are decoded.
    """

    metric = "map50"

    def __init__(self, packed: Packed) -> None:
        if not isinstance(packed.preprocess, Preprocess):
            raise ValueError("a detector looks at images")
        self.names, self._preprocess = packed.names, packed.preprocess
        self._decoder = decoder_of(packed.app)
        self._threshold = float(packed.app["show_threshold"])

    @property
    def preprocess(self) -> Preprocess:
        """As the bundle has it."""
        return self._preprocess

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """As `DetectorTask.score`."""
        known, found = Truths(data), []
        for index in range(len(data)):
            sample = data[index]
            outputs = predict(self._preprocess(sample.image)[None])
            size = known.note(index, sample).size
            found.append(located([each[0] for each in outputs], self._decoder, self._preprocess, size))
            if progress:
                progress(index + 1, len(data))
        truths = known.first(len(data))
        return Scores(
            score_detections(found, truths, self.names), len(found),
            lambda weights: resampled_map50(found, truths)(weights),
            lambda: details(found, truths, self.names, self._threshold),
        )  # fmt: skip

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """Boxes and classes are all that there is."""
        return sample
