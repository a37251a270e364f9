"""How long each step of a picture's way takes; the last thousand pictures are remembered, no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from apps.detector.device.source import Clock

#: In order. "wait" is for the next picture; "draw" and "write" take nothing where nobody wants a picture.
STEPS = ("wait", "preprocess", "infer", "decode", "track", "draw", "write")
REMEMBERED = 1000


class Split:
    """A stopwatch for the steps of one picture after the other.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Clock) -> None:
        """Starts the first step."""
        self._clock, self._mark = clock, clock()
        self._past: deque[list[float]] = deque(maxlen=REMEMBERED)
        self._latencies: deque[float] = deque(maxlen=REMEMBERED)
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
        self._past.append([self._now[step] for step in STEPS])
        self._latencies.append(self._mark - taken)
        self._now = dict.fromkeys(STEPS, 0.0)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds of each step of this picture so far."""
        return {step: round(1e3 * seconds, 3) for step, seconds in self._now.items()}

    def median_ms(self) -> dict[str, float]:
        """Of each step, and of `latency`, from read to done; empty before the first picture ends."""
        if not self._past:
            return {}
        medians = 1e3 * np.median(np.array(self._past), axis=0)
        found = {step: round(float(value), 3) for step, value in zip(STEPS, medians, strict=True)}
        return found | {"latency": round(1e3 * float(np.median(self._latencies)), 3)}

    def summary(self) -> Mapping[str, float]:
        """`median_ms`, the 90th percentile of the latency, and pictures per second."""
        if not self._past:
            return {}
        seconds = np.array(self._past).sum(axis=1)
        return self.median_ms() | {
            "latency_p90": round(1e3 * float(np.percentile(self._latencies, 90)), 3),
            "fps": round(float(len(seconds) / max(seconds.sum(), 1e-9)), 2),
        }
