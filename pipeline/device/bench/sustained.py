"""What a device keeps up: latency over minutes, with the temperature and the clock that the board tells.

A phone or a board that is fast for ten seconds and hot after a minute has two latencies; a median over both
is neither. Variants take turns in short bursts, so that all of them see the same temperatures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.device.executor import Executor
from paredown.targets.devices.programs import Program

BURST = 2.0  # seconds of a variant at a time
FEWEST, MOST = 3, 500  # runs of a burst
EDGE = 0.2  # part of the bursts that is the beginning, and the end

#: Degrees Celsius and MHz, None where the board does not tell.
Probe = Callable[[], tuple[float | None, float | None]]


@dataclass(frozen=True)
class Burst:
    """A few seconds of one variant.

    Attributes:
        seconds: since the first began.
        variant: what ran.
        runs: how often.
        median_ms: of these.
        p90_ms: of these.
        temperature_c: behind it.
        clock_mhz: behind it.
        ms: every run.
    """

    seconds: float
    variant: str
    runs: int
    median_ms: float
    p90_ms: float
    temperature_c: float | None
    clock_mhz: float | None
    ms: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the single runs."""
        return {name: value for name, value in asdict(self).items() if name != "ms"}


def sustain(
    executor: Executor,
    programs: Mapping[str, Program],
    x: NDArray[Any],
    minutes: float,
    probe: Probe,
    tick: Callable[[int, int], None] = lambda done, total: None,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Burst, ...]:
    """Runs every variant in turn until the time is over; each at least once.

    Args:
        executor: where.
        programs: variant -> what to run.
        x: a sample, (1, channels, height, width).
        minutes: how long.
        probe: asks for temperature and clock.
        tick: seconds passed, of how many.
        now: the clock.
    """
    first = executor.time(programs, x, FEWEST, False, lambda done, total: None)
    runs = {name: _runs(timing.percentile(50)) for name, timing in first.items()}
    start = now()
    found: list[Burst] = []
    while not found or now() - start < 60 * minutes:
        for name, program in programs.items():
            began = now() - start
            timing = executor.time({name: program}, x, runs[name], False, lambda done, total: None)[name]
            temperature, clock = probe()
            ms = (timing.percentile(50), timing.percentile(90))
            found.append(Burst(began, name, runs[name], *ms, temperature, clock, timing.times_ms))
            tick(min(int(now() - start), int(60 * minutes)), int(60 * minutes))
    return tuple(found)


def _runs(ms: float) -> int:
    return int(np.clip(BURST * 1e3 / max(ms, 1e-3), FEWEST, MOST))


def whole(bursts: Sequence[Burst], variant: str) -> tuple[float, ...]:
    """Every run of a variant, in milliseconds: what tables say is then what the plot shows."""
    return tuple(value for burst in bursts if burst.variant == variant for value in burst.ms)


def ends(bursts: Sequence[Burst], variant: str) -> tuple[float, float]:
    """The median milliseconds of a variant's first and last fifth; more at the end is heat."""
    medians = [burst.median_ms for burst in bursts if burst.variant == variant]
    count = max(1, round(EDGE * len(medians)))
    return float(np.median(medians[:count])), float(np.median(medians[-count:]))


def plot(bursts: Sequence[Burst], device: str, path: Path) -> None:
    """Draws latency over time, and the temperature where the board told, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((7, 3.6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    pane = figure.subplots()
    for variant in dict.fromkeys(burst.variant for burst in bursts):
        mine = [burst for burst in bursts if burst.variant == variant]
        pane.plot([b.seconds for b in mine], [b.median_ms for b in mine], marker=".", lw=1, label=variant)
    pane.set_xlabel("seconds")
    pane.set_ylabel("ms per inference")
    pane.set_ylim(bottom=0)
    pane.grid(lw=0.3)
    pane.set_title(f"Sustained on {device}", fontsize=9)
    pane.legend(fontsize=8, loc="lower left")
    hot = [(b.seconds, b.temperature_c) for b in bursts if b.temperature_c is not None]
    if hot:
        side = pane.twinx()
        side.plot(*zip(*hot, strict=True), color="tab:red", lw=0.8, ls=":")
        side.set_ylabel("degrees Celsius", color="tab:red")
    canvas.print_png(str(path))
