"""How long each step of a picture's way takes; the last thousand pictures are remembered, no more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paredown.apps.detector.device.frames.source import Clock

#: In order. "wait" is for the next picture; "draw" and "write" take nothing where nobody wants a picture.
STEPS = ("wait", "preprocess", "infer", "decode", "track", "draw", "write")
REMEMBERED = 1000


class Split:
    """A stopwatch for the steps of one picture after the other.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._mark = clock, clock()
        self._past, self._count = np.zeros((REMEMBERED, len(STEPS) + 1)), 0  # a ring; latency comes last
        self._now = dict.fromkeys(STEPS, 0.0)

    def lap(self, step: str) -> None:
        """Ends a step, and begins the next."""
        mark = self._clock()
        self._now[step] += mark - self._mark
        self._mark = mark

    def finish(self, taken: float) -> None:
        """Ends a picture.

        Args:
            taken: by our clock, when it had been read.
        """
        self._past[self._count % REMEMBERED] = [*self._now.values(), self._mark - taken]
        self._count += 1
        self._now = dict.fromkeys(STEPS, 0.0)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds of each step of this picture so far."""
        return {step: round(1e3 * seconds, 3) for step, seconds in self._now.items()}

    def median_ms(self) -> dict[str, float]:
        """Of each step, and of `latency`, from read to done; empty before the first picture ends."""
        if not self._count:
            return {}
        medians = 1e3 * np.median(self._known, axis=0)
        return {
            name: round(float(value), 3) for name, value in zip((*STEPS, "latency"), medians, strict=True)
        }

    def summary(self) -> Mapping[str, float]:
        """`median_ms`, the 90th percentile of the latency, and pictures per second."""
        if not self._count:
            return {}
        seconds = self._known[:, :-1].sum()
        return self.median_ms() | {
            "latency_p90": round(1e3 * float(np.percentile(self._known[:, -1], 90)), 3),
            "fps": round(float(len(self._known) / max(seconds, 1e-9)), 2),
        }

    @property
    def _known(self) -> np.ndarray:
        """Seconds (pictures, steps and latency) of the last pictures, in no order."""
        return self._past[: min(self._count, REMEMBERED)]
