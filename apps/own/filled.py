"""A data set whose unlabelled samples get what an app makes for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from paredown.calibration.datasets import Dataset, Sample
from paredown.pipeline.recipe.task import Outputs


class Filled:
    """The first samples of a data set.

    Args:
        data: may be unlabelled.
        outputs: of a network, for each of its first samples.
        made: of a sample without a label and its outputs: the sample with one.
    """

    def __init__(
        self, data: Dataset, outputs: Outputs, made: Callable[[Sample, tuple[Any, ...]], Sample]
    ) -> None:
        self.names = data.names
        self._data, self._outputs, self._made = data, outputs, made

    def __len__(self) -> int:
        return len(self._outputs)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        sample = self._data[index]
        return sample if sample.labelled else self._made(sample, self._outputs[index])

    def fingerprint(self) -> str:
        """Of the whole set and the outputs."""
        total = hashlib.sha256(f"{self._data.fingerprint()}:{len(self)}".encode())
        for outputs in self._outputs:
            for part in outputs:
                total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()
