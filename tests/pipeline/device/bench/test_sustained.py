"""Latency over minutes: the table says what the plot shows."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.pipeline.device.bench.sustained import ends, sustain, whole
from paredown.targets.devices.programs import Timing

pytestmark = pytest.mark.unit


class Slowing:
    """An executor that takes 20 ms at first, then 2, then 4; its clock is its own."""

    def __init__(self):
        self.asked, self.now = 0, 0.0

    def time(self, programs, x, runs, memory, tick):
        self.asked += 1
        ms = 20.0 if self.asked == 1 else 2.0 if self.now < 30 else 4.0
        self.now += 10.0
        return {name: Timing((ms,) * runs) for name in programs}


def test_what_the_minutes_measure_is_kept_whole():
    executor = Slowing()
    bursts = sustain(
        executor, {"litert": None}, np.zeros(1), 1.0, lambda: (None, None), now=lambda: executor.now
    )
    assert [burst.median_ms for burst in bursts] == [2.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    values = whole(bursts, "litert")
    assert len(values) == sum(burst.runs for burst in bursts) and set(values) == {2.0, 4.0}
    assert ends(bursts, "litert") == (2.0, 4.0)
    assert "ms" not in bursts[0].to_dict() and whole(bursts, "other") == ()
