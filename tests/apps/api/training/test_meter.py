"""Without a terminal there is a line now and then, with the minutes that are left."""

from __future__ import annotations

import re

from paredown.apps.api.training.meter import EVERY, Meter


def test_a_line_comes_after_some_seconds_and_not_before(capsys):
    meter = Meter()
    meter.opening = "training"
    meter.tick(1, 100)
    meter.tick(2, 100)
    assert capsys.readouterr().err == "training\n"
    meter.told -= EVERY
    meter.began -= 30 * 60
    meter.tick(26, 100)
    line = capsys.readouterr().err
    assert re.fullmatch(r"step 26 of 100, (\d+) min left\n", line) and "85 min" in line
    meter.close()
